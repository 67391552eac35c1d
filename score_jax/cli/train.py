"""Trains to the config's number of steps, from the newest checkpoint if there is one, and samples.

The loop itself is `fit`. Its callbacks write metrics.json, loss.png, preview.png and the events
that TensorBoard shows.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax.checkpoint import Checkpoints
from score_jax.cli import build, images, interrupts, lock, provenance, samples, workdir
from score_jax.cli.events import EventWriter
from score_jax.cli.flags import Command
from score_jax.cli.judging import RunJudge, add_scalars, is_judged, judge_final
from score_jax.cli.moments import prepared_examples, write_moments
from score_jax.cli.names import naming
from score_jax.cli.quality import saved_entries
from score_jax.cli.report import write_report
from score_jax.cli.run import Run, belongs_to, naming_step_size, open_run
from score_jax.debugging import is_debugging
from score_jax.devices import from_first_process, is_first_process, maximum_over_processes
from score_jax.fitting import Report, fit, initial_params
from score_jax.models.unet import with_principal_components
from score_jax.progress import announce
from score_jax.reading import load_arrays
from score_jax.training import TrainState

MEASURED = 8192
"""Largest number of training examples that principal components are taken from."""
WAIT = 3600.0
"""Seconds to wait for another process that writes "samples" when training ends."""
PREVIEWS = 36
"""Largest number of chains in a preview, six by six."""


def train_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Trains and samples; True when done.

    Raises:
        interrupts.Stopped: If a signal asked to stop; the step is saved.
        ValueError: If the command does not match the data, the devices or the workdir.
        OSError: If a file is missing, or files cannot be written; finished files are kept.
        FloatingPointError: If a loss or a chain is not finite; earlier checkpoints are kept.
    """
    # Check everything before anything is compiled or written.
    settings = command.config["training"]
    weaker = command.config["sampling"]["autoguidance_step"]
    num_states = settings["keep_checkpoints"] + 1 + (weaker is not None)
    if settings["keep_best"]:
        num_states += settings["keep_best"] + 1
    opened = functools.partial(
        open_run, command, devices, needs_data=True, decode=True, num_states=num_states
    )
    if command.dry_run:
        from score_jax.cli.estimate import estimate_training

        return estimate_training(with_stable_targets(opened()))
    folder = Path(command.workdir)
    if _in_any_process((folder / "config.json").is_file()):
        with lock.held(folder):
            return _train(command, devices, opened())
    # Nothing is written to a folder without a run before everything is checked.
    run = opened()
    best_by(run, RunJudge(dataclasses.replace(run, state=None)))
    with lock.held(folder):
        if _in_any_process((folder / "config.json").exists()):
            run = opened()  # Another process was faster.
        return _train(command, devices, run)


def _train(command: Command, devices: Sequence[jax.Device], run: Run) -> bool:
    """`train_mode` of an opened run, whose lock is held."""
    saved_entries(run.folder)  # Report a damaged file now, not after hours.

    # Train, unless that is done already.
    judge = RunJudge(dataclasses.replace(run, state=None))
    measure = best_by(run, judge)
    announce(f"{run.folder}: {run.describe()}")
    num_steps = run.config["training"]["num_steps"]
    state = run.state
    if run.step is not None:
        # A weaker network that is missing is an error now, not at the end.
        run.is_guided(run.step)
    if run.step == num_steps:
        announce(f"training is complete ({num_steps} steps)")
    else:
        # `fit` restores the state; do not keep it twice.
        run = with_stable_targets(dataclasses.replace(run, state=None))
        run.folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(run.folder / "config.json", run.config)
        write_moments(run)
        provenance.record(command, devices)
        with (
            stop_requested() as asked,
            workdir.keeping(lambda: _newest(run)),
            Log(run) as log,
            naming_optimizer(run),
        ):
            # All processes stop at the same step when one of them is asked to.
            stop = functools.partial(_asked_anywhere, asked)
            with naming("training", "data"):
                state = fit(
                    run.trainer,
                    run.data,
                    workdir=run.folder,
                    seed=run.config["seed"],
                    devices=devices,
                    device_megabytes=run.config["data"]["device_megabytes"],
                    best_by=measure,
                    callbacks=callbacks(run, log, judge, stop),
                    stop=stop,
                    metadata={"config": run.config},
                    state=_measured(run),
                    check=belongs_to(run.folder),
                    **training_arguments(run),
                )
            number = stop()
            if number:
                announce(_stopped(int(state.step), num_steps))
                raise interrupts.Stopped(number)
        announce(log.summary())

    # Sample, unless the samples are there already.
    number = run.config["sampling"]["num_samples"]
    settings = samples.settings_of(run, number, step=num_steps)
    file = run.folder / "samples.npz"
    missing = _in_any_process(samples.saved_settings(file) != settings)
    judged = judge.obstacle is not None or not _in_any_process(not is_judged(run, num_steps))
    params = run.for_samples(state.ema_params, num_steps)
    if not missing:
        announce(f"{file} holds this run's samples already")
        _remove_shards(run, params, settings)
        if not judged:
            judge_final(run, load_arrays(file)["samples"], num_steps, judge)
    else:
        judged_samples = _sample(run, params, settings, judge.number)
        judge_final(run, judged_samples, num_steps, judge)
    if missing or not judged or not (run.folder / "report.html").exists():
        _write_report(run)
    evaluating = workdir.command_line("--workdir", run.folder, "--mode=evaluate")
    sampling_more = workdir.command_line("--workdir", run.folder, "--mode=sample", "--number=10")
    announce(f"next: {evaluating}   or, for other samples: {sampling_more}")
    return True


def _measured(run: Run) -> TrainState | None:
    """The first state of a network with the principal components of the data; else None."""
    if run.step is not None or not run.config["model"].get("components"):
        return None
    train, labels = run.data.train, run.data.train_labels
    params = initial_params(run.trainer, train, labels, run.config["seed"])
    with naming("model"):
        params = with_principal_components(params, prepared_examples(run, MEASURED))
    return run.trainer.init(params)


def with_stable_targets(run: Run) -> Run:
    """The run, with the training examples that config.loss.num_references asks for."""
    number = run.config["loss"]["num_references"]
    if not number:
        return run
    references = prepared_examples(run, number)
    trainer = build.build_trainer(run.config, run.data, run.trainer.model, run.sigmas, references)
    return dataclasses.replace(run, trainer=trainer)


def _in_any_process(fact: bool) -> bool:
    """True if it is true in one of the processes, all of which must call this."""
    return bool(maximum_over_processes(int(fact)))


def _asked_anywhere(asked: Callable[[], int]) -> int:
    """The signal that asks this or another process to stop; 0 for none. All must call it."""
    return maximum_over_processes(int(asked()))


def _sample(run: Run, params: Any, settings: dict[str, Any], number: int) -> np.ndarray:
    """Draws and writes the samples of a trained run; the first `number` of them, in all processes.

    Samples of other settings that the user drew are kept under another name.
    """
    labels = run.labels(settings["num_samples"])
    with lock.held(run.folder, "samples", wait=WAIT):
        shards = samples.shards_of(run, "samples", params, settings, labels)
        samples.make_way(run, settings, shards)
        announce(samples.describe(run, settings))
        drawn = samples.draw(run, run.score_fn(params), labels, shards)
        samples.write(run, "samples", drawn, settings)
        first = from_first_process(drawn.first(number))
        shards.remove()
    return first


def _remove_shards(run: Run, params: Any, settings: dict[str, Any]) -> None:
    """Removes shards of samples that are complete, which a killed process left behind."""
    folder = run.folder / "samples.shards"
    if not is_first_process() or not folder.is_dir():
        return
    labels = run.labels(settings["num_samples"])
    with lock.held(run.folder, "samples", wait=WAIT):
        shards = samples.shards_of(run, "samples", params, settings, labels)
        if not shards.difference():
            shards.remove()


def _write_report(run: Run) -> None:
    """Writes report.html; a failure is announced, since the run is complete without it."""
    if not is_first_process():
        return
    try:
        write_report(run.folder, run.data)
    except (ValueError, OSError) as error:
        announce(f"no report: {' '.join(str(error).split())}")


def training_arguments(run: Run) -> dict[str, Any]:
    """The settings that `fit` takes by the names of its arguments."""
    settings = run.config["training"]
    own = ("preview_every", "best_by", "metrics_every", "metric_samples")
    arguments = {name: value for name, value in settings.items() if name not in own}
    weaker = run.config["sampling"]["autoguidance_step"]
    return arguments | {"keep_steps": () if weaker is None else (weaker,)}


def best_by(run: Run, judge: RunJudge) -> Callable[[Report], float] | None:
    """The measure by which `fit` chooses the best checkpoints; None for the held-out loss.

    Raises:
        ValueError: If the measure cannot be computed for this run.
    """
    name = run.config["training"]["best_by"]
    if name == "held_out_loss":
        return None
    obstacle = judge.obstacle
    if obstacle is not None:
        raise ValueError(
            f"config.training.best_by={name!r} cannot be computed, because {obstacle}: use "
            "held_out_loss"
        )

    def fd_classifier(report: Report) -> float:
        found = judge.during(report)
        return found["fd_classifier"].value if found else float("nan")

    return fd_classifier


def callbacks(
    run: Run, log: "Log", judge: RunJudge, stop: Callable[[], int]
) -> list[tuple[int, Callable[[Report], None]]]:
    """The callbacks of `fit`: scalars when they are due, files at checkpoints, previews.

    Previews and metrics are left out when training stops early, and end after the batch of chains
    in which `stop` asks for it, so that the run ends soon.
    """
    settings = run.config["training"]
    due = [
        (settings["log_every"], log.add_scalars),
        (settings["eval_every"], log.add_scalars),
        (settings["checkpoint_every"], log.write),
    ]
    if settings["preview_every"]:
        due.append((settings["preview_every"], lambda report: preview(run, log, report, stop)))
    if settings["metrics_every"] and judge.obstacle is not None:
        announce(f"computes no metrics during training, because {judge.obstacle}")
    elif settings["metrics_every"]:
        due.append((settings["metrics_every"], lambda report: _metrics(log, judge, report, stop)))
    return due


def _metrics(log: "Log", judge: RunJudge, report: Report, stop: Callable[[], int]) -> None:
    """Adds metrics of samples to TensorBoard's events; those of the end are computed later."""
    if report.step < report.num_steps and not report.stopping:
        with contextlib.suppress(samples.NotDrawn):
            add_scalars(log.writer, judge.during(report, stop), report.step)


def _newest(run: Run) -> str:
    """A clause about the newest checkpoint."""
    steps = Checkpoints(run.folder / "checkpoints").steps()
    if not steps:
        return ""
    return f"the checkpoint of step {steps[0]} is kept; the same command continues from there"


def _stopped(step: int, num_steps: int) -> str:
    if step < num_steps:
        return (
            f"stopped at step {step} of {num_steps}, which is saved; the same command continues "
            "from there"
        )
    return (
        f"stopped after the last step, {num_steps}, which is saved; the same command goes on to "
        "sample"
    )


class Log:
    """The losses of a run as metrics.json, loss.png and TensorBoard show them; a context manager.

    Args:
        run: The run. Entries of metrics.json up to its step are kept.
    """

    def __init__(self, run: Run):
        self._run = run
        first = run.step or 0
        saved = workdir.read_json(run.folder / "metrics.json") or {}
        self._before = {
            name: [entry for entry in saved.get(name, []) if entry[0] <= first]
            for name in ("train_loss", "held_out_loss")
        }
        self._seconds_before = {"compile": 0.0, "train": 0.0}
        if first:
            self._seconds_before |= saved.get("seconds", {})
        self._first = first
        self._num_train = self._num_held_out = 0  # Entries of the report that were handled.
        self._content: dict[str, Any] = {}

    def __enter__(self) -> "Log":
        self.writer = EventWriter(self._run.folder, self._first)
        return self

    def __exit__(self, *exception) -> None:
        self.writer.close()

    def add_scalars(self, report: Report) -> None:
        """Adds the new entries of a report to TensorBoard's events."""
        for step, loss in report.losses[self._num_train :]:
            self.writer.add_scalar("loss/train", loss, step)
            self.writer.add_scalar("gradient_norm", report.grad_norm, step)
            self.writer.add_scalar("steps_per_second", report.steps_per_second, step)
        for step, loss in report.held_out_losses[self._num_held_out :]:
            self.writer.add_scalar("loss/held_out", loss, step)
        self._num_train = len(report.losses)
        self._num_held_out = len(report.held_out_losses)

    def write(self, report: Report) -> None:
        """Updates metrics.json and loss.png."""
        self.add_scalars(report)
        before = self._seconds_before
        self._content = {
            "train_loss": self._before["train_loss"] + report.losses,
            "held_out_loss": self._before["held_out_loss"] + report.held_out_losses,
            "seconds": {
                **before,
                "compile": before["compile"] + report.compile_seconds,
                "train": before["train"] + report.train_seconds,
            },
        }
        if not is_first_process():
            return
        workdir.write_json(self._run.folder / "metrics.json", self._content)

        curves = {}
        for name, key in (
            ("training", "train_loss"),
            ("held out (averaged parameters)", "held_out_loss"),
        ):
            if self._content[key]:
                curves[name] = tuple(zip(*self._content[key], strict=True))
        label = f"loss ({self._run.config['loss']['name']}, sum over dimensions)"
        with workdir.replacing(self._run.folder / "loss.png") as path:
            images.save_curves(path, curves, xlabel="step", ylabel=label)

    def summary(self) -> str:
        """One line about the time that training took."""
        seconds = self._content["seconds"]
        return f"trained in {seconds['train']:.1f} s (and {seconds['compile']:.1f} s to compile)"


def preview(run: Run, log: Log, report: Report, stop: Callable[[], int]) -> None:
    """Writes a small grid of the chains as they would end now; the same chains each time."""
    due = report.step % run.config["training"]["preview_every"] == 0
    if not due or report.stopping or report.step == report.num_steps:
        return
    if report.step == run.config["training"]["preview_every"]:
        announce("drawing a preview; the first one compiles the sampler ...")
    number = run.chains_at_once(run.config["sampling"]["num_samples"])
    try:
        with naming_step_size(run):
            x = samples.draw_quietly(run, report.state.ema_params, number, stop)
    except samples.NotDrawn:
        return
    picture = run.picture(run.to_images(x[:PREVIEWS]), columns=6, pixels=360)
    with workdir.replacing(run.folder / "preview.png") as path:
        images.save_png(path, picture)
    log.writer.add_image("preview", picture, report.step)


@contextlib.contextmanager
def naming_optimizer(run: Run) -> Iterator[None]:
    """Adds the settings of the optimizer to the error for a loss that is not finite."""
    try:
        yield
    except FloatingPointError as error:
        rate = run.config["optim"]["learning_rate"]
        hint = "" if is_debugging() else "; --debug_nans names the operation"
        raise FloatingPointError(
            f"{error}; config.optim.learning_rate is {rate:g} and config.optim.clip_norm "
            f"{run.config['optim']['clip_norm'] or 'none'}: change them in another --workdir{hint}"
        ) from error


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], int]]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request, which `fit` reads between calls.

    Yields a function that returns the number of the signal, 0 before there is one. Until it is
    called for the first time, while `fit` compiles, there is nothing to save, and signals end the
    process. Signals that are ignored stay ignored.
    """
    requests: list[int] = []
    replaced: dict[int, Any] = {}
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def request(number, frame):
        if requests:
            sys.exit(interrupts.exit_code(number))
        requests.append(number)
        # The terminal may have gone, and writing to it would then fail.
        for terminal in terminals if number != signal.SIGINT else ():
            _drop_if_gone(terminal)
        # Printing is not safe in a signal handler.
        with contextlib.suppress(OSError):
            os.write(2, b"stopping after the current steps ...\n")

    def stop() -> int:
        if not replaced:
            for number in interrupts.SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    replaced[number] = signal.signal(number, request)
        return requests[0] if requests else 0

    try:
        yield stop
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _drop_if_gone(terminal: int) -> None:
    """Lets what is written to a terminal that has hung up vanish without an error."""
    if not os.isatty(terminal):
        os.dup2(os.open(os.devnull, os.O_WRONLY), terminal)
