"""The comparison of several runs in a report, read from compare.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from score_jax.cli import workdir
from score_jax.cli.charts import Chart, Point, Series, axis
from score_jax.cli.report_data import BROKEN_CONTENT, Part, RunReport
from score_jax.cli.report_files import SIGMA, number
from score_jax.cli.report_images import MissingError

STYLES = ("main", "second", "third", "fourth")


def read_comparison(folder: Path, runs: Sequence[RunReport]) -> dict[str, Any]:
    """The comparison of just these runs.

    Args:
        folder: Folder of compare.json.
        runs: The runs.

    Raises:
        MissingError: If there is none of just these runs, or it is damaged.
    """
    folders = ",".join(run.folder for run in runs)
    command = workdir.command_line("--mode=compare", "--workdirs", folders, "--workdir", folder)
    file = Path(folder) / "compare.json"
    try:
        content = workdir.read_json(file)
    except (ValueError, OSError):
        raise MissingError(f"{file} cannot be read: write it again.", command) from None
    if content is None:
        raise MissingError(f"These runs have not been compared: {file} is missing.", command)
    try:
        compared = {Path(each).resolve() for each in content["runs"]}
        if compared != {Path(run.folder).resolve() for run in runs}:
            raise MissingError(f"{file} compares other runs.", command)
        names = {str(each): _name(each, runs) for each in content["runs"]}
        return _checked(content, names)
    except BROKEN_CONTENT as error:
        raise MissingError(
            f"{file} does not have the expected form ({type(error).__name__}): write it again.",
            command,
        ) from error


def comparison_part(folder: Path, runs: Sequence[RunReport]) -> Part:
    """`read_comparison` as a part of the report; an empty part for one run."""
    if len(runs) < 2:
        return Part()
    try:
        return Part(read_comparison(folder, runs))
    except MissingError as missing:
        return Part(None, missing.sentence, missing.command)


def _name(folder: str, runs: Sequence[RunReport]) -> str:
    """The name of a run: that of its folder, or its path if another run has the same name."""
    resolved = Path(folder).resolve()
    same = [run for run in runs if run.name == resolved.name]
    return resolved.name if len(same) == 1 else str(folder)


def _checked(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of compare.json, with the names of runs and a chart of each objective."""
    objectives = []
    for objective in content["objectives"]:
        values = [
            {
                "run": names[each["run"]],
                "total": number(each["total"]),
                "total_error": number(each.get("total_error")),
                "levels": [number(level) for level in each.get("levels", ())],
                "levels_error": [number(error) for error in each.get("levels_error", ())],
            }
            for each in objective["values"]
        ]
        objectives.append(
            {
                "name": str(objective["name"]),
                "unit": str(objective.get("unit") or ""),
                "note": objective.get("common_sigmas") or objective.get("note"),
                "sigmas": [number(sigma) for sigma in objective.get("sigmas") or ()],
                "values": values,
                "pairs": [_pair(pair, names) for pair in objective.get("pairs", ())],
                "chart": _chart(objective, values),
            }
        )
    return {
        "objectives": objectives,
        **{key: number(content.get(key)) for key in ("examples", "draws", "confidence")},
    }


def _pair(pair: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of one pair of runs, in total and per level."""
    keys = ("difference", "error", "p_value", "power_2_percent", "detectable_percent")
    first, second = pair["runs"]
    return {
        "runs": (names[first], names[second]),
        "verdict": _named(pair["verdict"], names),
        "interval": _interval(pair),
        "levels": [
            {
                "difference": number(level.get("difference")),
                "error": number(level.get("error")),
                "interval": _interval(level),
                "verdict": _named(level.get("verdict", ""), names),
            }
            for level in pair.get("levels") or ()
        ],
        **{key: number(pair.get(key)) for key in keys},
    }


def _named(verdict: str, names: Mapping[str, str]) -> str:
    """A verdict with the name of the run instead of its folder."""
    better = " is better"
    folder = verdict.removesuffix(better)
    return names[folder] + better if folder in names else verdict


def _interval(pair: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    """The interval of a difference; None without one."""
    if pair.get("interval") is None:
        return None
    low, high = pair["interval"]
    return number(low), number(high)


def _chart(objective: Mapping[str, Any], values: Sequence[Mapping[str, Any]]) -> Chart | None:
    """The objective of each run against sigma; None without levels."""
    sigmas = objective.get("sigmas") or ()
    series = []
    for place, each in enumerate(values):
        errors = each["levels_error"] or [None] * len(each["levels"])
        points = [
            Point(number(sigma), loss, error)
            for sigma, loss, error in zip(sigmas, each["levels"], errors, strict=True)
            if loss is not None
        ]
        if points:
            style = STYLES[place % len(STYLES)]
            series.append(Series(each["run"], "loss", tuple(points), style))
    if not series:
        return None
    heights = [
        point.y + sign * (point.error or 0.0)
        for each in series
        for point in each.points
        for sign in (-1, 1)
    ]
    return Chart(
        f"Objective {objective['name']} per noise level",
        "The same held-out examples, levels and noise for all runs, with standard errors. Lower "
        "is better.",
        axis(SIGMA, "sigma", [number(sigma) for sigma in sigmas], log=True),
        axis("objective (sum over dimensions)", "loss", heights),
        tuple(series),
    )
