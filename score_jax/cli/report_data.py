"""Content of a report: reads the files of a workdir into numbers and charts for the templates.

Every part is optional: where its file is missing, it holds one sentence and the command that
makes the file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from score_jax.cli import report_images, workdir
from score_jax.cli.charts import Chart, Number, Point, Series, averaged, axis
from score_jax.cli.provenance import nearest_config
from score_jax.cli.report_images import BROKEN, MissingError
from score_jax.cli.settings import completed, flatten
from score_jax.cli.table import SECTIONS, SETTINGS, written
from score_jax.data.dataset import Dataset

SIGMA = "sigma (unit of the data)"
MAIN_METRICS = ("fid", "fd_classifier", "fd_features", "fd_pixels")
"""Metrics that can stand in the verdict, the first that is there."""
BROKEN_CONTENT = (*BROKEN, AttributeError, IndexError, OverflowError)


class Part(NamedTuple):
    """One part of a report.

    Attributes:
        content: Its content; None if it is missing.
        missing: One sentence about the reason why it is missing.
        command: The command that makes it; "" if there is none.
    """

    content: Any = None
    missing: str = ""
    command: str = ""


class Verdict(NamedTuple):
    """The first answer to the question: is this run good?

    Attributes:
        tone: "good", "warning" or "unknown".
        sentence: The answer.
        num_warnings: Number of warnings; None if nothing has been checked.
        held_out: Held-out loss and its error; None if it is not known.
        metric: The main metric, as in quality.json; None if it is not known.
    """

    tone: str
    sentence: str
    num_warnings: int | None
    held_out: tuple[float, float | None] | None
    metric: Mapping[str, Any] | None


class RunReport(NamedTuple):
    """The report of one run.

    Attributes:
        id: Prefix of its ids in the page.
        name: Name of the folder.
        folder: The folder.
        config: The config.
        about: (label, key or "", value) of the lines in the header.
        verdict: Its verdict.
        warnings: Sentences of diagnostics and calibration.
        notes: Sentences about files that do not belong together.
        samples: `report_images.Samples`.
        neighbors: `report_images.Neighbors`.
        training: Charts of the losses, and the last values.
        levels: Loss per noise level.
        calibration: Charts of the calibration.
        quality: Entries of quality.json.
        diagnostics: Charts of the chains.
        restorations: `report_images.Restoration` of each file.
        provenance: Content of provenance.json.
    """

    id: str
    name: str
    folder: str
    config: Mapping[str, Any]
    about: list[tuple[str, str, Any]]
    verdict: Verdict
    warnings: list[str]
    notes: list[str]
    samples: Part
    neighbors: Part
    training: Part
    levels: Part
    calibration: Part
    quality: Part
    diagnostics: Part
    restorations: Part
    provenance: Part


def read_run(
    folder: Path,
    id: str = "r0",
    config: Mapping[str, Any] | None = None,
    data: Dataset | None = None,
) -> RunReport:
    """Reads one workdir.

    Args:
        folder: The workdir.
        id: Prefix of its ids in the page.
        config: The config; None takes the one that is saved there.
        data: The data set; None opens it for the nearest training examples.

    Raises:
        FileNotFoundError: If the folder holds no run.
    """
    folder = Path(folder)
    saved = workdir.read_json(folder / "config.json")
    if saved is None:
        raise FileNotFoundError(
            f"{folder} holds no run, because it has no config.json: give the --workdir of a run, "
            "or train one first"
        )
    config = completed(saved if config is None else config)
    samples = part(report_images.read_samples, folder)
    neighbors = Part(missing="Nearest training examples need samples.")
    if samples.content:
        neighbors = part(report_images.find_neighbors, samples.content, config["data"], data)
    files = {
        name: part(_read, folder, name, mode)
        for name, mode in (
            ("metrics", "train"),
            ("evaluation", "evaluate"),
            ("quality", "metrics"),
            ("diagnostics", "sample"),
            ("provenance", "train"),
        )
    }
    run = RunReport(
        id=id,
        name=folder.resolve().name,
        folder=str(folder),
        config=config,
        about=[],
        verdict=Verdict("unknown", "", None, None, None),
        warnings=[],
        notes=[],
        samples=samples,
        neighbors=neighbors,
        training=_then(files["metrics"], training, config),
        levels=_then(files["evaluation"], levels),
        calibration=_then(files["evaluation"], calibration, folder),
        quality=_then(files["quality"], quality),
        diagnostics=_then(files["diagnostics"], diagnostics),
        restorations=part(report_images.read_restorations, folder),
        provenance=_then(files["provenance"], provenance),
    )
    run = run._replace(
        warnings=[
            *(run.diagnostics.content or {}).get("warnings", ()),
            *(run.levels.content or {}).get("warnings", ()),
        ]
    )
    return run._replace(about=about(run), verdict=verdict(run), notes=notes(run))


def part(build: Callable[..., Any], *arguments: Any) -> Part:
    """The result of a function, or the sentence of the exception `MissingError` that it raises."""
    try:
        return Part(build(*arguments))
    except MissingError as missing:
        return Part(None, missing.sentence, missing.command)


def _then(file: Part, build: Callable[..., Any], *arguments: Any) -> Part:
    """A part that is made of the content of a file."""
    if file.content is None:
        return file
    name, content = file.content
    try:
        return part(build, content, *arguments)
    except BROKEN_CONTENT as error:
        return Part(
            None,
            f"{name}.json does not have the expected form ({type(error).__name__}): write it "
            "again.",
            file.command,
        )


def _read(folder: Path, name: str, mode: str) -> tuple[str, dict[str, Any]]:
    """Name and content of a JSON file.

    Raises:
        MissingError: If there is no such file, or it is damaged.
    """
    command = workdir.command_line("--workdir", folder, f"--mode={mode}")
    try:
        content = workdir.read_json(folder / f"{name}.json")
    except (ValueError, OSError):
        raise MissingError(f"{name}.json cannot be read: write it again.", command) from None
    if content is None:
        raise MissingError(f"{name}.json is missing.", command)
    return name, content


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
        points = [Point(number(step), number(loss)) for step, loss in content.get(key, ())]
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
        Point(number(row["sigma"]), number(row["loss"]), number(row.get("standard_error")))
        for row in rows
    ]
    errors = [point.error for point in points]
    bound = sum(errors) / len(errors) if None not in errors else None
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
        "step": content.get("step"),
        "examples": content.get("examples"),
        "held_out": (number(content["held_out_loss"]), bound),
        "warnings": sentences(content.get("warnings", [])),
    }


def _reach(points: Sequence[Point]) -> list[float]:
    """Ends of the error bars of points."""
    return [point.y + sign * (point.error or 0.0) for point in points for sign in (-1, 1)]


def _curve(rows: Sequence[Mapping[str, Any]], key: str, name: str, style: str) -> Series:
    """One quantity of each level against sigma, without levels where it is missing."""
    points = [
        Point(number(row["sigma"]), number(row[key]), number(row.get(f"{key}_error")))
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
    line: str = "healthy",
    log: bool = False,
) -> Chart | None:
    """A chart of quantities per noise level; None if there are none.

    Args:
        rows: The levels.
        title: Its title.
        healthy: The look of a healthy run.
        label: Label of the vertical axis.
        curves: (key, name in the legend, style) of each quantity.
        at: Height of a line for the healthy value; None for none.
        line: Name of that line.
        log: If True, the vertical axis is logarithmic.
    """
    series = [_curve(rows, *curve) for curve in curves]
    series = [each for each in series if each.points]
    if not series or series[0].style == "reference":
        return None
    sigmas = [point.x for each in series for point in each.points]
    if at is not None:
        ends = (min(sigmas), max(sigmas))
        points = tuple(Point(x, at) for x in ends)
        series.append(Series(line, series[0].key, points, "healthy"))
    return Chart(
        title,
        f"Healthy: {healthy}",
        axis(SIGMA, "sigma", sigmas, log=True),
        axis(label, series[0].key, [v for s in series for v in _reach(s.points)], log=log),
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
            "a smooth curve near 0.",
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
            "on its expectation at every level.",
            "sigma |s| / sqrt(D)",
            (
                ("score_norm", "chains", "main"),
                ("score_norm_expected", "expected", "reference"),
            ),
        ),
        _level_chart(
            rows,
            "Step-to-noise ratio",
            "a smooth curve below 1; steps of Langevin dynamics above 1 are unstable.",
            "step / noise",
            (("step_to_noise", "chains", "main"),),
            at=1.0,
            line="limit",
            log=True,
        ),
        _level_chart(
            rows,
            "Pixels out of range",
            "falls towards 0 at small sigmas.",
            "share of pixels",
            (("out_of_range", "chains", "main"),),
            at=0.0,
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
        **{key: content.get(key) for key in ("samples", "sampler", "step", "number")},
    }


def provenance(content: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(title, origin) of the training run and of files of samples."""
    origins = [("Training", content)] if "command" in content else []
    origins += [(f"{name}.npz", each) for name, each in content.get("samples", {}).items()]
    if not origins:
        raise MissingError("provenance.json holds no command.")
    return [(title, _origin(each)) for title, each in origins]


def _origin(content: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of provenance.json, with None for what it lacks."""
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


def about(run: RunReport) -> list[tuple[str, str, Any]]:
    """(label, key, value) of the lines in the header; the key is "" for words."""
    config, samples = run.config, run.samples.content
    step = samples.step if samples else None
    if step is None and run.training.content:
        step = max(point.x for point in run.training.content["last"].values())
    origin = run.provenance.content[0][1] if run.provenance.content else {}
    data = config["data"]
    name, flags = nearest_config(config)
    differing = f", {len(flags)} settings changed" if flags else ""
    lines = [
        ("Config", "", name + differing),
        ("Data", "", data.get("name") or data["source"]),
        ("Network", "", config["model"]["name"]),
        ("Objective", "", config["loss"]["name"]),
        ("Sampler", "", config["sampling"]["method"]),
        ("Noise levels", "config.noise.num_levels", config["noise"]["num_levels"]),
        ("Training step", "step", step),
        ("Seed", "seed", config["seed"]),
        ("Samples", "number", samples.number if samples else None),
        ("Devices", "", origin.get("devices")),
    ]
    return [line for line in lines if line[2] is not None]


def verdict(run: RunReport) -> Verdict:
    """The answer of the first screen."""
    checked = run.diagnostics.content or (run.levels.content and run.calibration.content)
    num_warnings = len(run.warnings) if checked else None
    held_out = None
    if run.levels.content:
        held_out = run.levels.content["held_out"]
    elif run.training.content and "held_out_loss" in run.training.content["last"]:
        held_out = (run.training.content["last"]["held_out_loss"].y, None)
    metric = main_metric(run.quality.content or [])
    if num_warnings:
        return Verdict("warning", "Look at the warnings first.", num_warnings, held_out, metric)
    if num_warnings is None and metric is None:
        sentence = "Not judged yet: neither metrics nor diagnostics have been computed."
        return Verdict("unknown", sentence, None, held_out, None)

    # Compare the metric with its floor.
    sentence = "No warnings." if num_warnings == 0 else "Chains and calibration are not checked."
    if metric is None:
        sentence += " The samples have not been measured."
        return Verdict("unknown", sentence, num_warnings, held_out, None)
    if metric["floor"] is None:
        return Verdict("unknown", sentence, num_warnings, held_out, metric)
    error = math.hypot(metric["error"] or 0.0, metric["floor_error"] or 0.0)
    if metric["value"] - metric["floor"] <= 2 * error:
        sentence += " The samples are as close to the reference as real images are."
    else:
        sentence += " The samples are farther from the reference than real images are."
    tone = "good" if num_warnings == 0 else "unknown"
    return Verdict(tone, sentence, num_warnings, held_out, metric)


def main_metric(entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The metric of the verdict: that of samples.npz with a floor, if there is one."""

    def rank(entry: Mapping[str, Any]) -> tuple[bool, bool]:
        floors = [metric["floor"] for metric in entry["metrics"]]
        return entry.get("samples") != "samples.npz", not any(each is not None for each in floors)

    for entry in sorted(entries, key=rank):
        found = {metric["name"]: metric for metric in entry["metrics"]}
        for name in MAIN_METRICS:
            if name in found and found[name]["value"] is not None:
                return found[name]
    return None


def notes(run: RunReport) -> list[str]:
    """Sentences about files of other training steps than the samples."""
    samples = run.samples.content
    if samples is None or samples.step is None:
        return []
    found = []
    trained = run.training.content and max(
        point.x for point in run.training.content["last"].values()
    )
    steps = {
        "metrics.json": trained,
        "evaluation.json": (run.levels.content or {}).get("step"),
        "diagnostics.json": (run.diagnostics.content or {}).get("step"),
    }
    for name, step in steps.items():
        if step is not None and step != samples.step:
            found.append(
                f"{name} is of training step {step:g}, but samples.npz of step {samples.step}."
            )
    return found


def config_rows(runs: Sequence[RunReport]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(section, rows) of the settings of all runs."""
    flat = [dict(flatten(run.config)) for run in runs]
    names = dict.fromkeys(name for name in SETTINGS if any(name in each for each in flat))
    names |= dict.fromkeys(name for each in flat for name in each)
    sections: dict[str, list[dict[str, Any]]] = {"seed": [], **{name: [] for name in SECTIONS}}
    for name in names:
        values = [written(each[name]) if name in each else "–" for each in flat]  # noqa: RUF001
        row = {
            "name": name,
            "known": name in SETTINGS,
            "meaning": SETTINGS[name].meaning
            if name in SETTINGS
            else "Argument of the object that is named.",
            "values": values,
            "numeric": [
                isinstance(each.get(name), int | float) and not isinstance(each.get(name), bool)
                for each in flat
            ],
            "differs": len(set(values)) > 1,
        }
        sections.setdefault(name.partition(".")[0], []).append(row)
    return [(section, rows) for section, rows in sections.items() if rows]


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
