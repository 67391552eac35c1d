"""Writes report.html: one self-contained page about a run, or about several side by side.

It reads the files of the workdirs and, for the nearest training examples, the data set; it needs
no checkpoint and compiles nothing.
"""

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from score_jax.cli import workdir
from score_jax.cli.charts import Chart, shown, shown_error
from score_jax.cli.flags import Command
from score_jax.cli.glossary import BETTER, EXACT, TERMS, Term, define
from score_jax.cli.provenance import VERSION
from score_jax.cli.report_comparison import comparison_part
from score_jax.cli.report_data import Part, RunReport, config_rows, read_run
from score_jax.cli.report_files import shared_axes
from score_jax.data.dataset import Dataset
from score_jax.progress import announce
from score_jax.reading import listed

NO_PART = Part()


def report_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Writes report.html of one workdir, or one of several side by side; True when done.

    Raises:
        ValueError: If a file of a run is damaged such that nothing can be shown.
        OSError: If a folder holds no run, or the file cannot be written.
    """
    text = command.options.workdirs
    folders = [Path(each) for each in listed(text or "", os.path.isdir)]
    if len(folders) > 1:
        runs = [read_run(folder, f"r{place}") for place, folder in enumerate(folders)]
        folder = Path(command.workdir)
    elif folders:
        [folder] = folders
        runs = [read_run(folder)]
    else:
        folder = Path(command.workdir)
        runs = [read_run(folder, config=command.config)]
    workdir.check_writable(folder, 10_000_000)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, render(runs, comparison_part(folder, runs)))
    return True


def write_report(folder: Path, data: Dataset | None = None) -> None:
    """Writes report.html of a run into its workdir.

    Args:
        folder: The workdir.
        data: The data set; None opens it for the nearest training examples.

    Raises:
        OSError: If the folder holds no run, or the file cannot be written.
    """
    _write(Path(folder), render([read_run(folder, data=data)]))


def _write(folder: Path, page: str) -> None:
    content = page.encode("utf-8", "replace")  # Names of files can hold lone surrogates.
    with workdir.replacing(folder / "report.html") as path:
        path.write_bytes(content)
    announce(f"wrote {folder / 'report.html'} ({len(content) / 1000:.0f} kB)")


def render(runs: Sequence[RunReport], comparison: Part = NO_PART) -> str:
    """The page of some runs.

    Args:
        runs: The runs.
        comparison: Their comparison, as in `report_comparison`.
    """
    terms = Terms()
    return (
        _environment()
        .get_template("report.html")
        .render(
            runs=runs,
            comparison=comparison,
            config=config_rows(runs),
            version=VERSION,
            term_of=terms.use,
            terms_used=terms.used,
            drawn=_with_shared_axes(runs),
        )
    )


@functools.cache
def _environment() -> Any:
    """The templates, compiled once."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("score_jax.cli", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "shown_error": shown_error}
    environment.globals |= {
        "better": BETTER,
        "exact": EXACT,
        "finite": lambda value: value is not None and math.isfinite(value),
        "known": lambda key: key in TERMS,
    }
    return environment


class Terms:
    """The glossary, which remembers the entries that a page uses."""

    def __init__(self):
        self._used: dict[str, Term] = {}

    def use(self, key: str) -> Term:
        """The definition of a quantity, which the glossary of the page will hold.

        Raises:
            KeyError: If there is none.
        """
        term = define(key)
        if not key.startswith("config."):
            self._used[key] = term
        return term

    def used(self) -> list[tuple[str, Term]]:
        """(key, definition) of all quantities so far, by name."""
        return sorted(self._used.items(), key=lambda item: item[1].name.lower())


def _with_shared_axes(runs: Sequence[RunReport]) -> Callable[[Chart], Chart]:
    """A function that gives a chart the axes that it shares with those of the other runs."""
    groups: dict[str, list[Chart]] = {}
    for run in runs:
        for chart in charts_of(run):
            groups.setdefault(chart.title, []).append(chart)
    shared = {title: shared_axes(charts)[0] for title, charts in groups.items()}

    def drawn(chart: Chart) -> Chart:
        other = shared.get(chart.title, chart)
        return chart._replace(x=other.x, y=other.y)

    return drawn


def charts_of(run: RunReport) -> list[Chart]:
    """All charts of a run."""
    found: list[Any] = []
    for part in (run.training, run.levels):
        found += [part.content["chart"]] if part.content else []
    found += run.calibration.content or []
    found += run.diagnostics.content["charts"] if run.diagnostics.content else []
    return found
