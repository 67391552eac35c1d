"""Trains a job to its number of steps, from the newest checkpoint if there is one, then samples."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from score_jax import images, workdir
from score_jax.data.dataset import batch_index
from score_jax.data.stream import prefetch
from score_jax.progress import Progress
from score_jax.run.build import init_params
from score_jax.run.job import Feed, Job, events, merge, say
from score_jax.run.sample import draw_samples, make_sampler, samples_are_those_of
from score_jax.training import Metrics, take_steps


def train(job: Job) -> bool:
    """Trains up to the config's number of steps, from the newest checkpoint if there is one, then samples.

    Returns:
        Whether it came to the end; False if it was asked to stop while it trained.

    Raises:
        FloatingPointError: If a loss is not finite; the last checkpoint stays.
    """
    total = job.config["training"]["num_steps"]
    say(f"{job.folder}: {_describe(job)}")
    if job.restored and job.restored[0] == total:
        say(f"training is complete ({total} steps)")
        params, sampler = job.restored[1].ema_params, None
    elif (trained := _train_from(job)) is not None:
        params, sampler = trained
    else:
        return False
    if samples_are_those_of(job, total):
        say(f"{job.folder / 'samples.npz'} holds this run's samples already")
    else:
        draw_samples(job, total, params, sampler)
    say(f"next: python main.py --workdir={job.folder} --mode=evaluate   or, for other samples: --mode=sample --config.seed=1")
    return True


def _train_from(job: Job) -> tuple[Any, Callable | None] | None:
    """Trains on from what was restored.

    Returns:
        The averaged parameters, and the sampler if it was compiled for a preview; None if asked to stop on the way.
    """
    first, state = job.restored or (0, None)
    training, total = job.config["training"], job.config["training"]["num_steps"]
    job.folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(job.folder / "config.json", job.config)
    log = _Log(job, first)
    state = _initial_state(job) if state is None else job.replicate(state)
    feed = job.feed(job.data.train, job.data.train_labels)

    begun = time.monotonic()
    step_fn = _compiled_step(job, feed, state)
    held_out_loss = _held_out_loss_fn(job, state.ema_params)
    log.compiled(time.monotonic() - begun)
    sampler = None
    # Blocking keeps programs with collectives from piling up on the CPU, where they deadlock.
    wait = job.devices[0].platform == "cpu"

    with _stop_requested() as stop, Progress(total, "train", "step", first) as progress, events(job, first) as writer:
        for done, number, args in _calls(job, feed, first, total):
            state, metrics = step_fn(job.keys["train"], state, feed.constants, args, np.int32(number))
            log.pending.append((metrics, number))
            if wait:
                jax.block_until_ready(metrics)
            stopping = stop()  # asked once: what it brings about must all happen in the same step
            last = stopping or done == total
            due = {name: last or done % training[f"{name}_every"] == 0 for name in ("log", "eval", "checkpoint")}
            if due["log"] or due["checkpoint"]:
                log.train(done, writer)
            if due["eval"]:
                log.held_out(done, held_out_loss(state.ema_params), writer)
            if due["checkpoint"]:
                job.checkpoints.save(done, state, job.config)
                log.write()
            if training["preview_every"] and done % training["preview_every"] == 0 and done < total:
                sampler = sampler or make_sampler(job, state.ema_params)
                _preview(job, sampler, state.ema_params, done, writer)
            progress.update(done, loss=log.last_loss(metrics))
            if stopping:
                job.checkpoints.wait()
                say(f"stopped at step {done} of {total}, which is saved; the same command continues from there")
                return None
        job.checkpoints.wait()
        if stop():
            say(f"stopped after the last step, {total}, which is saved; the same command goes on to sample")
            return None
    log.done()
    return state.ema_params, sampler


class _Log:
    """The losses of a run so far, as metrics.json, loss.png and TensorBoard show them."""

    def __init__(self, job: Job, first: int):
        self._job = job
        log = workdir.read_json(job.folder / "metrics.json") or {}
        seconds = {"compile": 0.0, "train": 0.0, **(log.get("seconds", {}) if first else {})}
        curves = {name: [pair for pair in log.get(name, []) if pair[0] <= first] for name in ("train_loss", "held_out_loss")}
        self._log = {**curves, "seconds": seconds}
        self.pending: list[tuple[Metrics, int]] = []  # of the calls since the last look: metrics of their steps, and how many
        if first:
            say(f"continues from the checkpoint of step {first}")

    def compiled(self, seconds: float) -> None:
        """From here on, time counts as training."""
        self._log["seconds"]["compile"] += seconds
        say(f"compiled in {seconds:.1f} s")
        self._trained, self._begun = self._log["seconds"]["train"], time.monotonic()
        self._rate_from = self._begun

    def train(self, done: int, writer) -> None:
        """Notes the mean loss since the last look."""
        metrics = _flatten(self.pending)
        loss = _mean_loss(self._job, metrics, done)
        now = time.monotonic()
        self._log["train_loss"].append([done, loss])
        writer.add_scalar("loss/train", loss, done)
        writer.add_scalar("gradient_norm", float(metrics.grad_norm[-1]), done)
        writer.add_scalar("steps_per_second", len(metrics.loss) / max(now - self._rate_from, 1e-9), done)
        self.pending, self._rate_from = [], now
        self._log["seconds"]["train"] = self._trained + now - self._begun

    def held_out(self, done: int, loss: float, writer) -> None:
        """Notes the held-out loss."""
        self._log["held_out_loss"].append([done, loss])
        writer.add_scalar("loss/held_out", loss, done)

    def last_loss(self, metrics) -> float:
        """The last mean loss, or that of the first step there was."""
        return self._log["train_loss"][-1][1] if self._log["train_loss"] else float(np.asarray(metrics.loss)[0])

    def write(self) -> None:
        """Brings metrics.json and loss.png up to date."""
        workdir.write_json(self._job.folder / "metrics.json", self._log)
        curves = {
            name: tuple(zip(*self._log[key], strict=True))
            for name, key in (("training", "train_loss"), ("held out (averaged parameters)", "held_out_loss"))
            if self._log[key]
        }
        if curves:
            label = f"loss ({self._job.config['loss']['name']}, sum over dimensions)"
            with workdir.replacing(self._job.folder / "loss.png") as path:
                images.save_curves(path, curves, xlabel="step", ylabel=label)

    def done(self) -> None:
        """Writes the time that it all took."""
        self._log["seconds"]["train"] = self._trained + time.monotonic() - self._begun
        self.write()
        seconds = self._log["seconds"]
        say(f"trained in {seconds['train']:.1f} s (and {seconds['compile']:.1f} s to compile)")


def _calls(job: Job, feed: Feed, first: int, total: int) -> Iterator[tuple[int, int, tuple]]:
    """For each call of the compiled program: the step it ends with, how many steps it takes, and their batches.

    A call ends where something else is due. Batches are a function of the seed and the step; the last is repeated where a
    call takes fewer than fit.
    """
    training, number = job.config["training"], len(job.data.train)
    every = [training[f"{name}_every"] for name in ("log", "eval", "checkpoint", "preview")]

    def batch(step: int):
        return feed.args(batch_index(job.config["seed"], step, number, training["batch_size"]))

    steps = range(first, total)
    batches = map(batch, steps) if feed.constants else prefetch(batch, steps)
    done = first
    while done < total:
        ahead = min([training["steps_per_call"], total - done, *(each - done % each for each in every if each)])
        own = [next(batches) for _ in range(ahead)]
        own += [own[-1]] * (training["steps_per_call"] - ahead)
        done += ahead
        yield done, ahead, tuple(np.stack(arrays, axis=1) for arrays in zip(*own, strict=True))


def _initial_state(job: Job):
    """The state at step 0, on every device."""
    labels = job.config["data"]["labels"]
    init = job.pmap(lambda key, _: job.trainer.init(init_params(job.model, key, job.event, labels)), (None, 0), None)
    return init(job.keys["init"], np.arange(len(job.devices)))


def _compiled_step(job: Job, feed: Feed, state) -> Callable:
    """(key, state, constants, args [devices, steps per call, ...], number of steps) -> (state, metrics of each step)."""
    steps_per_call = job.config["training"]["steps_per_call"]

    def steps(key, state, held, args, number):
        def step(key, state, *batch):
            return job.trainer.step(key, state, *feed.take(held, batch))

        return take_steps(step, key, state, args, number)

    program = job.pmap(steps, (None, None, None, 0, None), None, donate=(1,))
    args = feed.args(np.zeros(job.config["training"]["batch_size"], np.int32))
    args = tuple(np.stack([array] * steps_per_call, axis=1) for array in args)
    return program.lower(job.keys["train"], state, feed.constants, args, np.int32(1)).compile()


def _held_out_loss_fn(job: Job, params) -> Callable[[Any], float]:
    """params -> mean held-out loss, always over the same examples, levels and noise."""
    training, number = job.config["training"], len(job.data.held_out)
    feed = job.feed(job.data.held_out, job.data.held_out_labels)
    program = job.pmap(
        lambda key, params, held, args: job.trainer.loss(key, params, *feed.take(held, args))[0], (None, None, None, 0), None
    )
    args = feed.args(np.zeros(training["batch_size"], np.int32))
    program = program.lower(job.keys["evaluate"], params, feed.constants, args).compile()

    def held_out_loss(params) -> float:
        losses = []
        for k in range(training["eval_batches"]):
            args = feed.args(batch_index(job.config["seed"], k, number, training["batch_size"]))
            losses.append(float(program(jax.random.fold_in(job.keys["evaluate"], k), params, feed.constants, args)))
        return float(np.mean(losses))

    return held_out_loss


def _flatten(pending: list[tuple[Metrics, int]]) -> Metrics:
    """The metrics of the steps of several calls, one array each."""
    parts = [jax.tree.map(lambda values, number=number: np.asarray(values)[:number], metrics) for metrics, number in pending]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def _mean_loss(job: Job, metrics: Metrics, done: int) -> float:
    """The mean loss of the steps since the last look, all of which must be finite."""
    finite = np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm)
    if not finite.all():
        at = int(np.argmin(finite))
        level, step = int(metrics.nonfinite_level[at]), done - len(finite) + 1 + at
        what = f"the loss at noise level {level} (sigma {float(job.sigmas[level]):.4g})" if level >= 0 else "the gradient"
        saved = job.checkpoints.steps()
        kept = f"the checkpoint of step {saved[0]} stays" if saved else "no checkpoint had been written yet"
        raise FloatingPointError(
            f"{what} is not finite at step {step}: {kept}; lower config.optim.learning_rate="
            f"{job.config['optim']['learning_rate']:g}, or set config.optim.clip_norm, in another --workdir"
        )
    return float(np.mean(metrics.loss))


def _preview(job: Job, sampler: Callable, params, step: int, writer) -> None:
    """A small grid of the chains as they would end now; the same chains each time."""
    trajectory = sampler(params, job.split(np.arange(job.config["sampling"]["batch_size"])))
    picture = job.picture(job.to_images(merge(trajectory.x))[:36], columns=6, pixels=360)
    with workdir.replacing(job.folder / "preview.png") as path:
        images.save_png(path, picture)
    writer.add_image("preview", picture, step, dataformats="HWC")


def _describe(job: Job) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(job.state_shape.params))
    return (
        f"{job.config['model']['name']} of {parameters:,} parameters, {len(job.data.train)} training examples "
        f"{list(job.event)}, {len(job.sigmas)} noise levels from {job.config['noise']['sigma_max']:g} to "
        f"{job.config['noise']['sigma_min']:g}, {len(job.devices)} x {job.devices[0].device_kind}"
    )


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a request that is heard between two steps."""
    asked = []

    def ask(number, frame):
        if asked:
            sys.exit(128 + number)
        asked.append(number)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
