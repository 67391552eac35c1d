"""Metrics of a run's own samples: during training, as a measure of checkpoints, and at its end."""

import functools
import time
from collections.abc import Callable

import jax
import numpy as np

from score_jax.cli import quality, samples
from score_jax.cli.events import EventWriter
from score_jax.cli.run import Run
from score_jax.data.dataset import Dataset
from score_jax.evaluation.metrics import Estimate
from score_jax.fitting import Report
from score_jax.progress import announce


class RunJudge:
    """Judges samples of a run in the features of a classifier, which it prepares when needed.

    Args:
        run: A run whose data set is open.
    """

    def __init__(self, run: Run):
        self._run = run
        self._prepared: quality.Judge | None = None
        self._last: tuple[int, dict[str, Estimate]] | None = None

    @property
    def number(self) -> int:
        """Number of samples that are judged."""
        settings = self._run.config
        return min(settings["training"]["metric_samples"], settings["sampling"]["num_samples"])

    @functools.cached_property
    def obstacle(self) -> str | None:
        """The reason why metrics cannot be computed; None if they can."""
        run = self._run
        if self.number < quality.FEWEST:
            return (
                "config.training.metric_samples or config.sampling.num_samples is below "
                f"{quality.FEWEST}"
            )
        if not run.has_images:
            return "the data are not images"
        if min(len(run.data.held_out), len(run.data.train)) < quality.FEWEST:
            return f"a split of the data has fewer than {quality.FEWEST} examples"
        if (self._data.num_classes or 0) < 2:
            return "the data have no labels of two or more classes"
        return None

    @functools.cached_property
    def _data(self) -> Dataset:
        """The data set with its labels, also for an unconditional network."""
        run = self._run
        if run.data.train_labels is not None:
            return run.data
        # The images are decoded already; only their labels are missing.
        source = quality.labelled_data(run.config)
        return run.data._replace(
            train_labels=source.train_labels,
            held_out_labels=source.held_out_labels,
            num_classes=source.num_classes,
        )

    def prepared(self) -> quality.Judge:
        """Feature function, reference and floor."""
        if self._prepared is None:
            run = self._run
            self._prepared = quality.judge(
                self._data, run.config, run.devices, number=self.number, shape=run.shape
            )
        return self._prepared

    def of_samples(self, x: np.ndarray) -> dict[str, Estimate]:
        """Metrics of samples in [0, 1]."""
        return self.prepared().metrics(x[: self.number], progress=False)

    def during(self, report: Report, stop: Callable[[], int] | None = None) -> dict[str, Estimate]:
        """Metrics of samples drawn with the averaged parameters of a report; once per step.

        Empty if a chain is not finite, as it can be early in training.

        Raises:
            samples.NotDrawn: If `stop` returns anything but 0 meanwhile.
        """
        if self._last is None or self._last[0] != report.step:
            self._last = report.step, self._drawn(report, stop)
        return self._last[1]

    def _drawn(self, report: Report, stop: Callable[[], int] | None) -> dict[str, Estimate]:
        run = self._run
        try:
            x = samples.draw_quietly(run, report.state.ema_params, self.number, stop)
        except FloatingPointError as error:
            announce(f"no metrics at step {report.step}: {error}")
            return {}
        return self.of_samples(run.to_images(x))


def judge_final(run: Run, x: np.ndarray, step: int, judge: RunJudge) -> None:
    """Prints the metrics of the run's samples with their floor, and adds them to quality.json.

    A failure is announced in one sentence: the run and its samples are complete without metrics.
    """
    if judge.obstacle is not None:
        return
    try:
        _judge_final(run, x, step, judge)
    except (ValueError, OSError) as error:
        if jax.process_count() > 1:
            raise  # The others wait for this process.
        announce(f"the samples are not judged: {' '.join(str(error).split())}")


def _judge_final(run: Run, x: np.ndarray, step: int, judge: RunJudge) -> None:
    begun = time.monotonic()
    found = judge.of_samples(x)
    prepared = judge.prepared()
    seconds = time.monotonic() - begun
    entry = quality.as_entry(prepared, found, "samples.npz", judge.number, step, seconds)
    quality.print_entry(prepared, entry)
    quality.add_entry(run.folder, entry)
    _add_to_events(run, found, step)
    announce(f"wrote quality.json to {run.folder} ({seconds:.1f} s)")


def is_judged(run: Run, step: int) -> bool:
    """True if quality.json has metrics of the run's samples of this step."""
    return any(
        entry.get("samples") == "samples.npz" and entry.get("step") == step
        for entry in quality.saved_entries(run.folder)
    )


def add_scalars(writer, found: dict[str, Estimate], step: int) -> None:
    """Adds metrics to TensorBoard's events."""
    for name, estimate in found.items():
        writer.add_scalar(f"quality/{name}", estimate.value, step)


def _add_to_events(run: Run, found: dict[str, Estimate], step: int) -> None:
    with EventWriter(run.folder, step) as writer:
        add_scalars(writer, found, step)
