"""The stages `quality` and `cifar10` of benchmarks/gpu.sh: training, samples and their metrics."""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu_stages import Record

from score_jax.cli import feature_space, images, main, quality, samples
from score_jax.cli.flags import parse
from score_jax.cli.judging import RunJudge
from score_jax.cli.run import Run, open_run
from score_jax.cli.train import training_arguments
from score_jax.fitting import Report, fit, initial_params
from score_jax.reading import load_arrays

QUICK = {
    "model.dtype": "bfloat16",
    "optim.ema_decay": 0.999,
    "sampling.num_steps": 10,
    "sampling.step_size": "none",
    "sampling.denoise": True,
    "sampling.num_samples": 1000,
    "sampling.batch_size": 500,
}
"""Settings of the config cifar10 that differ: 101 instead of 1000 evaluations for a sample."""

TINY = {
    "data.labels": False,
    "data.label_dropout": 0.0,
    "model.name": "mlp",
    "model.hidden": 16,
    "training.num_steps": 40,
    "training.batch_size": 32,
    "optim.warmup_steps": 5,
    "noise.num_levels": 4,
    "sampling.method": "annealed",
    "sampling.num_steps": 2,
    "sampling.num_frames": 2,
    "sampling.num_samples": 32,
    "sampling.batch_size": 16,
}
EVERY = 20
"""Training steps between two looks at the clock."""
ROW = 20
"""Samples of one time in the picture."""


def prepare(tiny: bool) -> None:
    """Shortens the training of the classifier in a rehearsal."""
    if tiny:
        feature_space.FEWEST_STEPS = feature_space.MOST_STEPS = 20


def flags(settings: dict[str, Any]) -> list[str]:
    """Settings of a config as flags."""
    return [f"--config.{name}={value}" for name, value in settings.items()]


def quality_of(folder: Path) -> dict[str, Any]:
    """The metrics that a run has written: name -> value, error, floor and floor_error."""
    [entry] = quality.saved_entries(folder)
    return {row.pop("name"): row for row in entry["metrics"]}


def quality_stage(record: Record) -> None:
    """Runs the digits job in every precision, with the metrics that it prints at its end."""
    rows = []
    prepare(record.options.tiny)
    for dtype in record.options.dtype.split(","):
        folder = Path(record.options.scratch) / f"digits_{dtype}_{time.time_ns()}"
        # A perceptron has one precision.
        settings = TINY if record.options.tiny else {"model.dtype": dtype}
        begun = time.monotonic()
        line = ["--config=digits", "--devices=1", f"--workdir={folder}", *flags(settings)]
        code = main.main(line)
        if code != 0:
            raise RuntimeError(f"the digits job in {dtype} ended with exit code {code}")
        seconds = time.monotonic() - begun
        record.write(**{dtype: {"seconds": seconds, "metrics": quality_of(folder)}})
        rows.append(load_arrays(folder / "samples.npz")["samples"][: 5 * ROW])
        images.save_png(record.picture("quality.png"), images.grid(np.concatenate(rows), ROW))


def cifar10(record: Record) -> None:
    """Trains until the time is over, and judges samples after the minutes that were asked for."""
    prepare(record.options.tiny)
    run = open_cifar10(record)
    judge = RunJudge(run)
    if judge.obstacle is not None:
        raise ValueError(f"samples cannot be judged: {judge.obstacle}")
    begun = time.monotonic()
    prepared = judge.prepared()
    compile_sampler(run, judge.number)
    record.write(
        run=run.describe(),
        config=run.config,
        judged_by={
            "features": prepared.space.name,
            "accuracy": prepared.space.accuracy,
            "reference": prepared.reference.name,
            "reference_number": prepared.reference.number,
            "floor_number": prepared.floor_number,
            "prepared_in_seconds": time.monotonic() - begun,
        },
        floor=estimates(prepared.floor),
        times=[],
    )
    clock = Clock(record, run, judge)
    fit(
        run.trainer,
        run.data.train,
        label=run.data.train_labels,
        seed=run.config["seed"],
        devices=run.devices,
        device_megabytes=run.config["data"]["device_megabytes"],
        callbacks=[(EVERY, clock.look)],
        stop=lambda: clock.over,
        progress=False,
        **training_arguments(run) | {"keep_best": 0},
    )
    record.write(not_reached_minutes=clock.minutes)


def compile_sampler(run: Run, number: int) -> None:
    """Draws one batch with initial parameters, so that samples take no longer than they must."""
    x, label, seed = run.data.train, run.data.train_labels, run.config["seed"]
    params = initial_params(run.trainer, x, label, seed)
    with contextlib.suppress(FloatingPointError):
        samples.draw_quietly(run, params, run.chains_at_once(number))


def open_cifar10(record: Record) -> Run:
    """The run of the stage: its config, its data, its network."""
    options = record.options
    settings = QUICK if options.config == "cifar10" else {}
    name = options.config
    if options.tiny:
        name, settings = "digits", TINY | {"training.num_steps": 1_000_000}
    source = "npz" if options.data.endswith(".npz") else "zip"
    settings = settings | {"data.source": source, "data.path": options.data}
    own = [f"--config.{each}" for each in options.set]
    folder = Path(options.scratch) / f"cifar10_{time.time_ns()}"
    command = parse([f"--config={name}", f"--workdir={folder}", *flags(settings), *own])
    devices = main.choose_devices(command.config, 1, "train")
    run = open_run(command, devices, needs_data=True, decode=True)
    print(f"  {run.describe()}", flush=True)
    return run


class Clock:
    """Judges samples when the time has come, and ends training in time.

    Attributes:
        minutes: Training times that are still to come.
        over: True once training must end.
    """

    def __init__(self, record: Record, run: Run, judge: RunJudge):
        self.minutes = sorted(float(each) for each in record.options.minutes.split(","))
        self.over = False
        self._record, self._run, self._judge = record, run, judge
        self._rows: list[np.ndarray] = []
        self._spent = 0.0  # Seconds of training time that went into judging
        self._last = 20.0  # Seconds of the last judgement

    def look(self, report: Report) -> None:
        """Judges the samples of a report if a time has come or training ends."""
        trained = report.train_seconds - self._spent
        late = self._record.seconds_left < 1.5 * self._last
        ended = late or report.step == report.num_steps
        if self.over or not (ended or trained >= 60 * self.minutes[0]):
            return
        begun = time.monotonic()
        self._judge_samples(report, trained)
        taken = time.monotonic() - begun
        self._spent += taken
        self._last = taken
        self.minutes = [each for each in self.minutes if trained < 60 * each]
        self.over = ended or not self.minutes

    def _judge_samples(self, report: Report, trained: float) -> None:
        """Adds an entry with the metrics, and a row to the picture."""
        run = self._run
        batch = run.config["training"]["batch_size"]
        entry = {
            "train_seconds": trained,
            "compile_seconds": report.compile_seconds,
            "step": report.step,
            "images_per_second": report.step * batch / trained,
            "loss": report.losses[-1][1] if report.losses else None,
        }
        begun = time.monotonic()
        try:
            x = samples.draw_quietly(run, report.state.ema_params, self._judge.number)
        except FloatingPointError as error:
            entry["not_finite"] = str(error)
        else:
            x = run.to_images(x)
            entry["sample_seconds"] = time.monotonic() - begun
            entry["metrics"] = estimates(self._judge.of_samples(x))
            self._rows.append(x[:ROW])
            picture = images.grid(np.concatenate(self._rows), ROW, 1440)
            images.save_png(self._record.picture("cifar10.png"), picture)
        entry["judge_seconds"] = time.monotonic() - begun
        self._record.write(times=[*self._record.content["times"], entry])
        fd = entry.get("metrics", {}).get("fd_classifier", {}).get("value")
        print(f"  {trained:.0f} s, step {report.step}: fd_classifier {fd}", flush=True)


def estimates(found: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Metrics as JSON values."""
    return {name: {"value": each.value, "error": each.error} for name, each in found.items()}
