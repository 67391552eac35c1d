"""Samples with a trained network and writes the samples, a picture of them and the chains' way there."""

import functools
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import images, workdir
from score_jax.consistent import consistent_annealed_sampling
from score_jax.data.dataset import batch_index
from score_jax.langevin import Trajectory, annealed_langevin_trajectory, langevin_trajectory
from score_jax.noise import example_keys, standard_normal, standard_uniform
from score_jax.progress import Progress
from score_jax.run.job import Job, events, merge, merge_second, say
from score_jax.typing import Array, Index, Keys, OneKey

SAMPLERS = {
    "annealed": annealed_langevin_trajectory,
    "consistent": consistent_annealed_sampling,
    "langevin": langevin_trajectory,
}
GRID = 100  # chains in the picture of the samples, ten by ten


def sample(job: Job) -> bool:
    """Samples with the newest checkpoint's averaged parameters; True when done.

    Raises:
        FloatingPointError: If a chain is not finite, with the level where that began; nothing is written.
    """
    step, state = job.restored
    draw_samples(job, step, state.ema_params)
    say(f"next: python main.py --workdir={job.folder} --mode=evaluate")
    return True


def make_sampler(job: Job, params) -> Callable:
    """Compiles (params, index [devices, share]) -> Trajectory; chain i is a function of the seed and i."""
    sampling = job.config["sampling"]
    labels = [jnp.asarray(chain_labels(job, len(job.data.train)))] if job.config["data"]["labels"] else []

    def chains(key, params, index):
        label = [array[index % len(array)] for array in labels]
        return run_sampler(job, params, key, index, label, sampling["num_frames"])

    index = job.split(np.arange(sampling["batch_size"]))
    program = job.pmap(chains, (None, None, 0), 0).lower(job.keys["sample"], params, index).compile()
    return lambda params, index: program(job.keys["sample"], params, index)


def run_sampler(job: Job, params, key: OneKey, index: Index, label: Sequence[Array], num_snapshots: int = 0) -> Trajectory:
    """The config's sampler, to be compiled.

    Args:
        job: The job.
        params: Those of the network.
        key: That of all samples.
        index: Numbers of the chains, int [batch].
        label: The class of each chain, [int [batch]], or [] for a network that takes none.
        num_snapshots: How many to keep on the way.
    """
    sampling = job.config["sampling"]
    start_keys, chain_keys = jnp.moveaxis(jax.vmap(jax.random.split)(example_keys(key, index)), 1, 0)
    return SAMPLERS[sampling["method"]](
        chain_keys,
        lambda x, level: job.apply(params, x, level, *label),
        start(job, start_keys),
        job.sigmas,
        step_size=job.step_size,
        num_steps=sampling["num_steps"],
        denoise=sampling["denoise"],
        num_snapshots=num_snapshots,
    )


def start(job: Job, keys: Keys) -> Array:
    """Where chains start, [batch, *event], in the space in which the network knows data."""
    if job.config["sampling"]["start"] == "uniform":
        return job.to_data(standard_uniform(keys, job.event))
    return job.to_data(jnp.full((1, *job.event), 0.5)) + job.sigmas[0] * standard_normal(keys, job.event)


def chain_labels(job: Job, number: int) -> np.ndarray:
    """The classes that the first `number` chains sample, int32: those of the training images, in an order drawn from the seed.

    So the classes are as frequent among the samples as in the data.
    """
    size = len(job.data.train)
    return job.data.train_labels[batch_index(job.config["seed"], 0, size, size)][np.arange(number) % size]


def draw_samples(job: Job, step: int, params, sampler: Callable | None = None) -> None:
    """Samples with `params`, those of `step`, and writes everything that comes of it."""
    sampling = job.config["sampling"]
    params = job.replicate(params)
    number = sampling["num_samples"]
    say(
        f"samples {number} with the parameters of step {step}: {len(job.sigmas)} levels x {sampling['num_steps']} steps "
        f"({sampling['method']}), step size {job.step_size:.3g}"
    )
    if sampler is None:
        begun = time.monotonic()
        sampler = make_sampler(job, params)
        say(f"compiled in {time.monotonic() - begun:.1f} s")
    samples, frames, begun = [], [], time.monotonic()
    for first, trajectory, ends in run_chains(job, functools.partial(sampler, params), number, "sample", sampling["batch_size"]):
        samples.append(ends)
        if sampling["num_frames"] and first < GRID:
            frames.append(job.to_images(merge_second(trajectory.snapshots)))
    seconds = time.monotonic() - begun
    _write(job, step, np.concatenate(samples), np.concatenate(frames)[: min(GRID, number)] if frames else None, seconds)


def _write(job: Job, step: int, samples: np.ndarray, frames: np.ndarray | None, seconds: float) -> None:
    """Everything that sampling leaves; `frames` [chains, snapshots, *event]."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with workdir.replacing(job.folder / "samples.npz") as path, path.open("wb") as file:
        extra = {"labels": chain_labels(job, len(samples))} if job.config["data"]["labels"] else {}
        np.savez_compressed(file, samples=samples, **extra, seed=job.config["seed"], step=step, config=json.dumps(job.config))
    picture = job.picture(samples[:GRID])
    with workdir.replacing(job.folder / "samples.png") as path:
        images.save_png(path, picture)
    written = ["samples.npz", "samples.png"]
    if frames is not None:
        with workdir.replacing(job.folder / "chain.webp") as path:
            images.save_webp(path, [*(job.picture(frame) for frame in np.moveaxis(frames, 1, 0)), picture])
        written.append("chain.webp")
    log = workdir.read_json(job.folder / "metrics.json") or {}
    log.setdefault("seconds", {})["sample"] = round(seconds, 3)
    workdir.write_json(job.folder / "metrics.json", log)
    with events(job, step) as writer:
        writer.add_image("samples", picture, step, dataformats="HWC")
    say(f"wrote {', '.join(written)} to {job.folder} ({seconds:.1f} s)")


def run_chains(
    job: Job, program: Callable[[np.ndarray], Trajectory], number: int, label: str, batch_size: int
) -> Iterator[tuple[int, Trajectory, np.ndarray]]:
    """Runs chains in batches.

    Args:
        job: The job.
        program: index [devices, share] of the chains -> their trajectory.
        number: How many chains.
        label: What to call it while it goes on.
        batch_size: Chains at once, over all devices.

    Yields:
        The number of the batch's first chain, the trajectory, and the ends of its chains as images.

    Raises:
        FloatingPointError: If a chain is not finite.
    """
    with Progress(number, label, "chain") as progress:
        for first in range(0, number, batch_size):
            trajectory = program(job.split(first + np.arange(batch_size)))
            yield first, trajectory, job.to_images(_checked_chains(job, trajectory, first, number))
            progress.update(min(first + batch_size, number))


def _checked_chains(job: Job, trajectory: Trajectory, first: int, number: int) -> np.ndarray:
    """The ends of the chains that are asked for, [at most batch, *event], all of which must be finite."""
    x = merge(trajectory.x)[: number - first]
    if not np.isfinite(x).all():
        finite = merge_second(trajectory.finite)  # [batch, levels]
        chain = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(1)))
        where = "the last denoising step" if finite[chain].all() else f"noise level {int(np.argmin(finite[chain]))}"
        raise FloatingPointError(
            f"chain {first + chain} is not finite after {where}: lower config.sampling.step_size "
            f"(now {job.step_size:.3g}), or train the network longer"
        )
    return x


def samples_are_those_of(job: Job, step: int) -> bool:
    """Whether samples.npz was made with this config and the parameters of `step`."""
    path = job.folder / "samples.npz"
    if not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["config"])) == dict(job.config) and int(file["step"]) == step
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):  # another program's file, or half of ours
        return False
