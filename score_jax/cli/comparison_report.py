"""The comparison of several runs as a table, as compare.json and as a picture."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from score_jax.cli import images
from score_jax.cli.run import Run
from score_jax.evaluation.comparison import Comparison, Difference
from score_jax.progress import announce


class Result(NamedTuple):
    """One objective of all runs.

    Attributes:
        name: Name of the objective.
        unit: What its losses are, in words.
        sigmas: The noise levels of the losses; empty for an objective without levels.
        note: A sentence on how runs of different levels were compared; None for equal ones.
        comparison: Its result, by folder.
    """

    name: str
    unit: str
    sigmas: list[float]
    note: str | None
    comparison: Comparison


def verdict(difference: Difference) -> str:
    """The verdict on a difference, in words."""
    return f"{difference.better} is better" if difference.better else "no difference"


def summary(
    folders: Sequence[str],
    runs: Sequence[Run],
    results: Sequence[Result],
    number: int,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """All results, as compare.json stores them."""
    return {
        "runs": list(folders),
        "steps": [run.step for run in runs],
        "given_labels": [run.conditional for run in runs],
        "examples": number,
        "draws": draws,
        "seed": seed,
        "confidence": results[0].comparison.confidence,
        "objectives": [_objective(result) for result in results],
    }


def _objective(result: Result) -> dict[str, Any]:
    values = [
        {
            "run": folder,
            "total": value.total,
            "total_error": value.total_error,
            "levels": value.levels.tolist() if result.sigmas else [],
            "levels_error": value.levels_error.tolist() if result.sigmas else [],
        }
        for folder, value in result.comparison.values.items()
    ]
    pairs = [
        {
            "runs": list(pair.runs),
            **_difference(pair.total),
            "power_2_percent": pair.power,
            "detectable_percent": pair.detectable_percent,
            "levels": [_difference(level) for level in pair.levels] if result.sigmas else [],
        }
        for pair in result.comparison.pairs
    ]
    return {
        "name": result.name,
        "unit": result.unit,
        "sigmas": result.sigmas,
        "common_sigmas": result.note if result.sigmas else None,
        "note": result.note,
        "values": values,
        "pairs": pairs,
    }


def _difference(difference: Difference) -> dict[str, Any]:
    return {
        "difference": difference.difference,
        "error": difference.error,
        "interval": list(difference.interval),
        "p_value": difference.p_value,
        "verdict": verdict(difference),
    }


def describe(folders: Sequence[str], runs: Sequence[Run], number: int) -> None:
    """Prints the letter of each run, its step, and whether its network receives labels."""
    announce(f"runs compared on {number} held-out examples, with the same noise:")
    mixed = len({run.conditional for run in runs}) > 1
    for letter, folder, run in zip(_letters(folders).values(), folders, runs, strict=True):
        given = "given their classes" if run.conditional else "without labels"
        also = f", {given}" if mixed or run.conditional else ""
        announce(f"  {letter}  {folder}, step {run.step}{also}")


def print_result(result: Result, folders: Sequence[str]) -> None:
    """Prints the tables of one objective."""
    letters = _letters(folders)
    found = result.comparison
    announce(f"{result.name}: {result.unit}; lower is better")
    if result.note:
        announce(f"  {result.note}")
    if len(result.sigmas) > 1:
        announce(f"  total: mean over {len(result.sigmas)} noise levels")
    announce("run       total   error")
    for folder, value in found.values.items():
        announce(f"{letters[folder]:3} {value.total:11.5g} {value.total_error:7.2g}")
    percent = f"{100 * found.confidence:g} %"
    announce(f"pair   difference   error  {percent + ' interval':>22}      p  verdict")
    for pair in found.pairs:
        a, b = (letters[folder] for folder in pair.runs)
        each = pair.total
        low, high = each.interval
        announce(
            f"{a} - {b} {each.difference:11.4g} {each.error:7.2g}  "
            f"{f'{low:.4g} to {high:.4g}':>22} {each.p_value:6.2g}  "
            f"{_short_verdict(each, letters)}"
        )
    if len(found.pairs) > 1:
        announce(f"the intervals of all {len(found.pairs)} pairs hold together with {percent}")
    for pair in found.pairs:
        a, b = (letters[folder] for folder in pair.runs)
        if pair.detectable_percent is not None:
            announce(
                f"{a} - {b}: a difference of 2 % is found with probability {pair.power:.2f}; the "
                "smallest difference found with probability 0.8 is "
                f"{pair.detectable_percent:.2g} %"
            )
    if len(result.sigmas) > 1:
        _print_levels(result, letters)


def _print_levels(result: Result, letters: dict[str, str]) -> None:
    """Prints losses and differences at each level; * marks a difference that is found."""
    found = result.comparison
    names = [f"{letters[a]} - {letters[b]}" for a, b in (pair.runs for pair in found.pairs)]
    heads = [f"{letter:>9}" for letter in letters.values()] + [f"{name:>19}" for name in names]
    announce(f"level    sigma {' '.join(heads)}")
    for level, sigma in enumerate(result.sigmas):
        cells = [f"{value.levels[level]:9.4g}" for value in found.values.values()]
        for pair in found.pairs:
            each = pair.levels[level]
            mark = "*" if each.better else " "
            cells.append(f"{f'{each.difference:.3g} +- {each.error:.2g}':>18}{mark}")
        announce(f"{level:5d} {sigma:8.4g} {' '.join(cells)}")
    comparisons = len(found.pairs) * len(result.sigmas)
    announce(
        f"* the {100 * found.confidence:g} % interval excludes 0, corrected for the "
        f"{comparisons} comparisons of all levels and pairs"
    )


def _short_verdict(difference: Difference, letters: dict[str, str]) -> str:
    better = difference.better
    return f"{letters[better]} is better" if better else "no difference"


def _letters(folders: Sequence[str]) -> dict[str, str]:
    """Folder -> its letter."""
    return {folder: chr(ord("A") + index) for index, folder in enumerate(folders)}


def picture(results: Sequence[Result], folders: Sequence[str]) -> np.ndarray:
    """Draws the losses less those of the first run, with simultaneous intervals."""
    letters = _letters(folders)
    first = folders[0]
    panels = []
    for result in results:
        pairs = {pair.runs[1]: pair for pair in result.comparison.pairs if pair.runs[0] == first}
        curves, totals = {}, {}
        for folder, pair in pairs.items():
            curves[letters[folder]] = [_reversed(level) for level in pair.levels]
            totals[letters[folder]] = _reversed(pair.total)
        values = {
            letters[folder]: (value.total, value.total_error)
            for folder, value in result.comparison.values.items()
        }
        panels.append(images.Differences(result.name, result.sigmas, curves, totals, values))
    title = ", ".join(f"{letter}: {folder}" for folder, letter in letters.items())
    return images.differences(panels, letters[first], title)


def _reversed(difference: Difference) -> tuple[float, float, float]:
    """Difference b - a, and its interval (low, high)."""
    low, high = difference.interval
    return -difference.difference, -high, -low
