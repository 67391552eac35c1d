"""Rows of samples between two samples."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import images, workdir
from score_jax.interpolation import interpolate, mixed_normal
from score_jax.noise import example_keys
from score_jax.run.job import Job, Options, prepare, say
from score_jax.run.sample import chain_labels, run_chains


def prepare_interpolation(config, folder: Path, devices, options: Options) -> Job:
    """Prepares the job.

    Raises:
        ValueError: If the config or the options do not fit.
        OSError: If there is no checkpoint.
    """
    if options.number < 1 or options.completions < 2:
        raise ValueError(f"--number={options.number} must be at least 1 and --completions={options.completions} at least 2")
    return prepare("interpolate", config, folder, devices, options)


def draw_interpolation(job: Job) -> bool:
    """Writes interpolation.png and interpolation.npz; True when done.

    Raises:
        FloatingPointError: If a chain is not finite; nothing is written.
    """
    rows, columns = job.options.number, job.options.completions
    say(f"{rows} rows of {columns} chains from one sample to another, with the parameters of step {job.restored[0]}")
    ends = [
        ends for _, _, ends in run_chains(job, _program(job), rows * columns, "interpolate", job.chains_at_once(rows * columns))
    ]
    found = np.concatenate(ends).reshape(rows, columns, *job.event)
    with workdir.replacing(job.folder / "interpolation.png") as path:
        images.save_png(path, job.picture(found.reshape(-1, *job.event), columns=columns, pixels=80 * columns))
    with workdir.replacing(job.folder / "interpolation.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, samples=found, angle=_angles(columns))
    say(f"wrote interpolation.png and interpolation.npz to {job.folder}")
    return True


def _angles(columns: int) -> np.ndarray:
    return np.linspace(0, np.pi / 2, columns).astype(np.float32)


def _program(job: Job):
    """index [devices, share] of the chains -> their trajectories; row r lies between the ends 2r and 2r + 1."""
    sampling, columns = job.config["sampling"], job.options.completions
    labels = [jnp.asarray(chain_labels(job, job.options.number))] if job.config["data"]["labels"] else []

    def chains(key, params, index):
        row, angle = index // columns, jnp.asarray(_angles(columns))[index % columns]
        label = [array[jnp.minimum(row, len(array) - 1)] for array in labels]
        (first_start, first), (second_start, second) = (
            jnp.moveaxis(jax.vmap(jax.random.split)(example_keys(key, 2 * row + end)), 1, 0) for end in (0, 1)
        )
        x = mixed_normal(first_start, second_start, angle, job.event)
        if sampling["start"] == "uniform":
            x = job.to_data(jax.scipy.stats.norm.cdf(x))
        else:
            x = job.to_data(jnp.full((1, *job.event), 0.5)) + job.sigmas[0] * x
        return interpolate(
            first,
            second,
            angle,
            lambda x, level: job.apply(params, x, level, *label),
            x,
            job.sigmas,
            step_size=job.step_size,
            num_steps=sampling["num_steps"],
            denoise=sampling["denoise"],
        )

    program, params = job.pmap(chains, (None, None, 0), 0), job.replicate(job.restored[1].ema_params)
    return lambda index: program(job.keys["interpolate"], params, index)
