"""Charts and numbers of a report, made of the content of the JSON files in a workdir.

A function raises MissingError if its part of the content is missing, and KeyError, TypeError or
ValueError if it does not have the expected form.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from score_jax.cli import workdir
from score_jax.cli.charts import Chart, Number, Point, Series, averaged, axis
from score_jax.cli.report_images import MissingError

SIGMA = "sigma (unit of the data)"


def number(value: Any) -> float | None:
    """A number of a file; None stands for itself.

    Raises:
        ValueError: If it is not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def measured(value: Any) -> float:
    """A number of a file that cannot be missing.

    Raises:
        ValueError: If it is not a number.
    """
    found = number(value)
    if found is None:
        raise ValueError("a number is missing")
    return found


def whole(value: Any) -> int | None:
    """A whole number of a file; None stands for itself.

    Raises:
        ValueError: If it is not a whole number, or too large for any count.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
        raise ValueError("not a whole number")
    return value


def text(value: Any) -> str | None:
    """A text of a file; None stands for itself."""
    return None if value is None else str(value)


def sentences(value: Any) -> list[str]:
    """A list of sentences.

    Raises:
        ValueError: If it is not one.
    """
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("not a list of sentences")
    return value


def training(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The loss curves of metrics.json."""
    series, last = [], {}
    for name, key, style in (
        ("training", "train_loss", "main"),
        ("held out", "held_out_loss", "second"),
    ):
        points = [Point(measured(step), measured(loss)) for step, loss in content.get(key, ())]
        if points:
            series.append(Series(name, key, averaged(points), style))
            last[key] = points[-1]
    if not series:
        raise MissingError("metrics.json holds no losses yet.")

    # The steep beginning shall not flatten the rest.
    points = [point for each in series for point in each.points]
    end = max(point.x for point in points)
    late = [point.y for point in points if point.x >= 0.1 * end]
    thinned = any(len(content.get(each.key, ())) > len(each.points) for each in series)
    chart = Chart(
        "Losses during training",
        f"Objective {config['loss']['name']}, sum over dimensions, at each logged training step. "
        + ("Each point is a mean of neighbouring entries. " if thinned else "")
        + "Healthy: both curves fall and level off, and the held-out loss does not rise again. "
        "The first tenth may leave the chart. The training loss is measured with the current "
        "parameters, the held-out loss with their average.",
        axis("training step", "step", [point.x for point in points], include=[0], margin=0.02),
        axis("loss (sum over dimensions)", "train_loss", late, margin=0.15),
        tuple(series),
    )
    seconds = {name: number(value) for name, value in dict(content.get("seconds", {})).items()}
    return {"chart": chart, "last": last, "seconds": seconds}


def levels(content: Mapping[str, Any]) -> dict[str, Any]:
    """The loss per noise level of evaluation.json."""
    rows = content["levels"]
    points = [
        Point(measured(row["sigma"]), measured(row["loss"]), number(row.get("standard_error")))
        for row in rows
    ]
    chart = Chart(
        "Held-out loss per noise level",
        "Mean over held-out examples with standard errors. Healthy: a smooth curve; a level that "
        "stands out is not trained like its neighbours.",
        axis(SIGMA, "sigma", [point.x for point in points], log=True),
        axis("loss (sum over dimensions)", "loss", _reach(points)),
        (Series("held-out loss", "loss", tuple(points)),),
    )
    return {
        "chart": chart,
        "step": whole(content.get("step")),
        "examples": whole(content.get("examples")),
        "held_out": (
            number(content["held_out_loss"]),
            number(content.get("held_out_loss_error")),
        ),
        "warnings": sentences(content.get("warnings", [])),
    }


def _reach(points: Sequence[Point]) -> list[float]:
    """Ends of the error bars of points."""
    return [point.y + sign * (point.error or 0.0) for point in points for sign in (-1, 1)]


def _curve(rows: Sequence[Mapping[str, Any]], key: str, name: str, style: str) -> Series:
    """One quantity of each level against sigma, without levels where it is missing."""
    points = [
        Point(measured(row["sigma"]), measured(row[key]), number(row.get(f"{key}_error")))
        for row in rows
        if row.get(key) is not None
    ]
    return Series(name, key, tuple(points), style)


def _level_chart(
    rows: Sequence[Mapping[str, Any]],
    title: str,
    healthy: str,
    label: str,
    curves: Sequence[tuple[str, str, str]],
    *,
    at: Number | None = None,
    log: bool = False,
    least: Number | None = None,
) -> Chart | None:
    """A chart of quantities per noise level; None if there are none.

    Args:
        rows: The levels.
        title: Its title.
        healthy: The look of a healthy run.
        label: Label of the vertical axis.
        curves: (key, name in the legend, style) of each quantity.
        at: Height of a line for the healthy value; None for none.
        log: If True, the vertical axis is logarithmic.
        least: A value that the vertical axis holds in any case; None for none.
    """
    series = [_curve(rows, *curve) for curve in curves]
    series = [each for each in series if each.points]
    if not series or series[0].style == "reference":
        return None
    sigmas = [point.x for each in series for point in each.points]
    if at is not None:
        ends = (min(sigmas), max(sigmas))
        points = tuple(Point(x, at) for x in ends)
        series.append(Series("healthy", series[0].key, points, "healthy"))
    held = [value for each in series for value in _reach(each.points)]
    held += [] if least is None else [least]
    return Chart(
        title,
        f"Healthy: {healthy}",
        axis(SIGMA, "sigma", sigmas, log=True),
        axis(label, series[0].key, held, log=log),
        tuple(series),
    )


def calibration(content: Mapping[str, Any], folder: Path) -> list[Chart]:
    """The charts of the calibration in evaluation.json."""
    rows = content["levels"]
    charts = [
        _level_chart(
            rows,
            "Size of the residual",
            "below the best linear denoiser, and far below 1 where the noise is large.",
            "E|sigma s + z|^2 / D",
            (
                ("residual", "network", "main"),
                ("gaussian_residual", "best linear denoiser", "reference"),
            ),
        ),
        _level_chart(
            rows,
            "Slope of the posterior mean",
            "1 at all levels, within the errors.",
            "slope of -z / sigma on s",
            (("slope", "network", "main"),),
            at=1.0,
        ),
        _level_chart(
            rows,
            "Bias of the denoiser",
            "near 0 compared with sigma.",
            "bias (unit of the data)",
            (("bias", "network", "main"),),
            at=0.0,
        ),
        _level_chart(
            rows,
            "Correlation of the residual",
            "smooth, and falling towards 0 at small sigmas.",
            "correlation of neighbours",
            (("whiteness", "network", "main"),),
            at=0.0,
        ),
    ]
    found = [chart for chart in charts if chart]
    if not found:
        raise MissingError(
            "evaluation.json holds no calibration, which is there for the denoising objective.",
            workdir.command_line("--workdir", folder, "--mode=evaluate"),
        )
    return found


def quality(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries of quality.json, checked."""
    entries = []
    for entry in content["entries"]:
        metrics = [
            {
                "name": str(metric["name"]),
                "better": metric.get("better"),
                **{
                    key: number(metric.get(key))
                    for key in ("value", "error", "floor", "floor_error")
                },
            }
            for metric in entry["metrics"]
        ]
        counts = ("number", "step", "reference_number", "floor_number", "classifier_accuracy")
        numbers = {key: number(entry.get(key)) for key in (*counts, "seconds")}
        names = {
            key: None if entry.get(key) is None else str(entry[key])
            for key in ("samples", "features", "weights", "reference")
        }
        entries.append({**numbers, **names, "metrics": metrics})
    if not entries:
        raise MissingError("quality.json holds no metrics yet.")
    return entries


def diagnostics(content: Mapping[str, Any]) -> dict[str, Any]:
    """The charts of diagnostics.json."""
    rows = content["levels"]
    charts = [
        _level_chart(
            rows,
            "Norm of the score",
            "between that of a Gaussian of the data's covariance and 1; above 1 the chains are "
            "noisier than their level.",
            "sigma |s| / sqrt(D)",
            (
                ("score_norm", "chains", "main"),
                ("score_norm_expected", "Gaussian data", "reference"),
            ),
        ),
        _level_chart(
            rows,
            "Step-to-noise ratio",
            "smooth and well below 1. Langevin steps of ratio r leave chains too wide by "
            "sqrt(1 + r^2).",
            "step / noise",
            (("step_to_noise", "chains", "main"),),
            log=True,
        ),
        _level_chart(
            rows,
            "Pixels out of range",
            "falls towards 0 at small sigmas.",
            "share of pixels",
            (("out_of_range", "chains", "main"),),
            at=0.0,
            least=0.05,
        ),
        _level_chart(
            rows,
            "Spread of the chains",
            "1 at every level: the chains are as wide as the perturbed data.",
            "spread / expectation",
            (("spread", "chains", "main"), ("spread_expected", "expected", "reference")),
        ),
    ]
    return {
        "charts": [chart for chart in charts if chart],
        "warnings": sentences(content.get("warnings", [])),
        **{key: text(content.get(key)) for key in ("samples", "sampler")},
        **{key: whole(content.get(key)) for key in ("step", "number")},
    }


def provenance(content: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(title, origin) of the training run and of files of samples."""
    origins = [("Training", content)] if "command" in content else []
    origins += [(f"{name}.npz", each) for name, each in content.get("samples", {}).items()]
    if not origins:
        raise MissingError("provenance.json holds no command.")
    return [(title, _origin(each)) for title, each in origins]


def _origin(content: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of provenance.json; missing values are None."""
    git = content.get("git")
    return {
        "command": str(content["command"]),
        "versions": {str(name): str(each) for name, each in content["versions"].items()},
        "git": {"commit": str(git["commit"]), "dirty": git.get("dirty")} if git else None,
        "seed": number(content.get("seed")),
        **{
            key: None if content.get(key) is None else str(content[key])
            for key in ("devices", "date")
        },
    }


def shared_axes(charts: Sequence[Chart]) -> list[Chart]:
    """The same chart of several runs, with the same axes."""
    axes = []
    for each in ("x", "y"):
        held = [getattr(chart, each) for chart in charts]
        first = held[0]
        ends = [end for axis_ in held for end in (axis_.low, axis_.high)]
        log = all(axis_.log for axis_ in held)
        axes.append(axis(first.label, first.key, ends, log=log, margin=0.0))
    return [chart._replace(x=axes[0], y=axes[1]) for chart in charts]
