"""Estimates the memory and the time of a command, for `--dry_run`; writes nothing."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from score_jax import sampling
from score_jax.cli import build, samples
from score_jax.cli.run import Run
from score_jax.devices import described, feed, replicate
from score_jax.fitting import compile_steps, initial_params
from score_jax.noise import run_keys
from score_jax.progress import announce
from score_jax.samplers.langevin import annealed_langevin
from score_jax.training import TrainState

SECONDS = 3.0
"""Approximate time for which training steps are measured."""


def estimate_training(run: Run) -> bool:
    """Prints parameters, memory and an estimate of the time of training and sampling; True."""
    settings = run.config["training"]
    if run.state is None:
        run = dataclasses.replace(run, state=_initial_state(run))
    announce(run.describe())
    announce(_describe_data(run))
    state_bytes = _num_bytes(run.state_shape)
    announce(f"state of training: {_megabytes(state_bytes)} per device and per checkpoint")

    # Compile the training step as `fit` does, and time a few steps of it.
    where = f"batch of {settings['batch_size']} on {described(run.devices)}"
    announce(f"compiling the training step ({where}) ...")
    begun = time.monotonic()
    step_fn, state, arguments = _training_step(run)
    compile_seconds = time.monotonic() - begun
    announce(f"compiled in {compile_seconds:.1f} s; {_memory(step_fn.compiled)}")
    step_seconds = _time_steps(run, step_fn, state, arguments)
    left = settings["num_steps"] - (run.step or 0)
    announce(
        f"training: {left} steps x {step_seconds:.3g} s = {_duration(left * step_seconds)}, apart "
        "from held-out losses, previews and checkpoints"
    )

    number = run.config["sampling"]["num_samples"]
    drawn = samples.settings_of(run, number, step=settings["num_steps"])
    seconds = estimate_chains(run, drawn)
    announce(f"in total about {_duration(compile_seconds + left * step_seconds + seconds)}")
    announce("nothing was written")
    return True


def estimate_sampling(run: Run, settings: dict[str, Any]) -> bool:
    """Prints parameters and an estimate of the time of sampling; True."""
    announce(samples.describe(run, settings))
    parameters = _num_bytes(run.state_shape.ema_params)
    announce(f"parameters: {_megabytes(parameters)} per device")
    estimate_chains(run, settings)
    announce("nothing was written")
    return True


def estimate_chains(run: Run, settings: dict[str, Any]) -> float:
    """Times a few Langevin steps at the sampling batch size; returns the seconds of all chains."""
    number = settings["num_samples"]
    batch_size = run.chains_at_once(number)
    announce(f"compiling a few Langevin steps for {batch_size} chains ...")
    step_seconds = _langevin_seconds(run, batch_size)
    num_batches = -(-number // batch_size)
    num_steps = num_evaluations(run.config["sampling"], len(run.sigmas))
    seconds = num_batches * num_steps * step_seconds
    announce(
        f"sampling: {num_batches} batches x {num_steps} steps x {step_seconds:.3g} s = "
        f"{_duration(seconds)}"
    )
    return seconds


def num_evaluations(sampling: Mapping[str, Any], num_levels: int) -> int:
    """Evaluations of the network per chain, from the config's section `sampling`."""
    num_steps, denoise = sampling["num_steps"], sampling["denoise"]
    per_step = {
        "ode": 2 if sampling["solver"] == "heun" else 1,
        "stochastic_heun": 2,
        "predictor_corrector": 1 + sampling["num_corrector_steps"],
        "ancestral": 1,
    }
    per_step = per_step.get(sampling["method"], num_levels)
    # Consistent annealed sampling denoises in its last step.
    number = num_steps * per_step + (denoise and sampling["method"] != "consistent")
    # Autoguidance evaluates a second network, at most each time.
    return number * (1 if sampling["autoguidance_step"] is None else 2)


def _langevin_seconds(run: Run, batch_size: int) -> float:
    """Seconds of one Langevin step of a batch of chains."""
    ends = []
    arguments = {
        **run.sampling(batch_size),
        "number": 3 * batch_size,
        "label": run.labels(3 * batch_size),
        "sampler": annealed_langevin,
        "step_size": float(run.sigmas[-1]) ** 2 / 10,
        "denoise": False,
        "num_snapshots": 0,
        "callbacks": [lambda first, trajectory: ends.append(time.monotonic())],
        "progress": False,
    }

    # One noise level is enough: every step costs one evaluation of the network. Fast networks
    # need more steps for the time of a step to show beside that of a call.
    for num_steps in (2, 50):
        ends.clear()
        arguments["num_steps"] = num_steps
        sampling.sample(run.score_fn(run.state.ema_params), run.sigmas[:1], **arguments)
        seconds = ends[-1] - ends[0]
        if seconds > 1.0:
            break
    return seconds / (2 * num_steps)


def _initial_state(run: Run) -> TrainState:
    """The state in which a run begins."""
    data, seed = run.data, run.config["seed"]
    return run.trainer.init(initial_params(run.trainer, data.train, data.train_labels, seed))


def _training_step(run: Run) -> tuple[Callable, Any, tuple]:
    """The compiled training step, a state, and the arguments of one call."""
    settings = run.config["training"]
    data = run.data
    resident = build.fits(data, run.config["data"])
    arrays = (data.train,) if data.train_labels is None else (data.train, data.train_labels)
    source = feed(arrays, run.devices, resident)
    state = replicate(run.state, run.devices)
    batch_size, steps_per_call = settings["batch_size"], settings["steps_per_call"]
    step_fn = compile_steps(run.trainer, source, state, run.devices, batch_size, steps_per_call)
    batch = source.fetch(np.arange(batch_size, dtype=np.int32) % len(data.train))
    arguments = tuple(np.stack([array] * steps_per_call, axis=1) for array in batch)
    return step_fn, state, arguments


def _time_steps(run: Run, step_fn: Callable, state: Any, arguments: tuple) -> float:
    """Seconds of one training step, from as many as fit into the time of a measurement."""
    key = run_keys(run.config["seed"])["train"]
    steps_per_call = run.config["training"]["steps_per_call"]
    state = jax.block_until_ready(step_fn(key, state, arguments, 1)[0])
    begun = time.monotonic()
    state = jax.block_until_ready(step_fn(key, state, arguments, 1)[0])
    once = time.monotonic() - begun
    number = min(steps_per_call, max(1, int(SECONDS / max(once, 1e-6))))
    done, begun = 0, time.monotonic()
    while done == 0 or time.monotonic() - begun < SECONDS:
        state = jax.block_until_ready(step_fn(key, state, arguments, number)[0])
        done += number
    return (time.monotonic() - begun) / done


def _describe_data(run: Run) -> str:
    data = run.data
    num_bytes = data.train.nbytes + data.held_out.nbytes
    resident = build.fits(data, run.config["data"])
    placed = "held by every device" if resident else "streamed from the host"
    return (
        f"data: {len(data.train)} training and {len(data.held_out)} held-out examples, "
        f"{_megabytes(num_bytes)}, {placed}"
    )


def _memory(compiled: Any) -> str:
    """Memory of a compiled program on each device, where XLA reports it."""
    try:
        found = compiled.memory_analysis()
        arguments, temporary = found.argument_size_in_bytes, found.temp_size_in_bytes
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return "the backend does not report its memory"
    return (
        f"memory per device: {_megabytes(arguments)} for arguments (state and data) and "
        f"{_megabytes(temporary)} for intermediate values"
    )


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
