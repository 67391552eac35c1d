"""Content of a report: reads the files of a workdir into numbers and charts for the templates.

Every part is optional: where its file is missing, it holds one sentence and the command that
makes the file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from score_jax.cli import report_files, workdir
from score_jax.cli.provenance import nearest_config
from score_jax.cli.report_images import BROKEN, MissingError, read_samples
from score_jax.cli.report_neighbors import find_neighbors
from score_jax.cli.report_restorations import read_restorations
from score_jax.cli.settings import completed, flatten, validate
from score_jax.cli.table import SECTIONS, SETTINGS, written
from score_jax.data.dataset import Dataset

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
        neighbors: `report_neighbors.Neighbors`.
        training: Charts of the losses, and the last values.
        levels: Loss per noise level.
        calibration: Charts of the calibration.
        quality: Entries of quality.json.
        diagnostics: Charts of the chains.
        restorations: `report_restorations.Restoration` of each file.
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
    validate(config)
    samples = part(read_samples, folder)
    neighbors = Part(missing="Nearest training examples need samples.")
    if samples.content:
        neighbors = part(find_neighbors, samples.content, config["data"], data)
    files = {
        name: part(_read, folder, name, mode)
        for name, mode in (
            ("metrics", "train"),
            ("evaluation", "evaluate"),
            ("quality", "metrics"),
            ("diagnostics", "sample"),
            ("provenance", "sample"),
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
        training=_then(files["metrics"], report_files.training, config),
        levels=_then(files["evaluation"], report_files.levels),
        calibration=_then(files["evaluation"], report_files.calibration, folder),
        quality=_then(files["quality"], report_files.quality),
        diagnostics=_then(files["diagnostics"], report_files.diagnostics),
        restorations=part(read_restorations, folder),
        provenance=_then(files["provenance"], report_files.provenance),
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
        tone = "good" if num_warnings == 0 else "unknown"
    else:
        sentence += " The samples are farther from the reference than real images are."
        tone = "unknown"
    return Verdict(tone, sentence, num_warnings, held_out, metric)


def main_metric(entries: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The metric of the verdict: that of samples.npz with a floor, if there is one."""

    def rank(entry: Mapping[str, Any]) -> tuple[bool, bool]:
        floors = [metric["floor"] for metric in entry["metrics"]]
        return entry.get("samples") != "samples.npz", not any(each is not None for each in floors)

    for name in MAIN_METRICS:
        for entry in sorted(entries, key=rank):
            # A floor of fewer examples is biased more; the extrapolation is not.
            numbers = entry.get("floor_number"), entry.get("number")
            fewer = None not in numbers and numbers[0] < numbers[1]
            wanted = f"{name}_unlimited" if fewer else name
            for metric in entry["metrics"]:
                if metric["name"] == wanted and metric["value"] is not None:
                    return metric
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
