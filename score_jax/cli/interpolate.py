"""Rows of samples between two samples."""

import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.cli import images, lock, workdir
from score_jax.cli.flags import Command
from score_jax.cli.run import Run, naming_step_size, open_run, output_settings
from score_jax.network import with_label
from score_jax.noise import example_keys, run_keys, split_keys
from score_jax.progress import announce
from score_jax.samplers.interpolation import interpolate, mixed_normal
from score_jax.sampling import run_chains

ROWS, COLUMNS = 8, 8


def interpolate_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Draws rows of chains; writes interpolation.png and interpolation.npz; True when done.

    Raises:
        ValueError: If the options or the config do not fit.
        OSError: If there is no checkpoint, or files cannot be written.
        FloatingPointError: If a chain is not finite; nothing is written.
    """
    # Check everything before anything is compiled.
    options = command.options
    rows = ROWS if options.number is None else options.number
    columns = COLUMNS if options.completions is None else options.completions
    if rows < 1 or columns < 2:
        raise ValueError(
            f"--number={rows} must be at least 1 and --completions={columns} at least 2"
        )
    run = open_run(command, devices)
    settings = output_settings(run.config, run.step, number=rows, completions=columns)
    name = lock.choose(run.folder, "interpolation", options.name, settings)

    # Row r runs from the chain of key 2r to that of key 2r + 1.
    announce(
        f"{rows} rows of {columns} chains from one sample to another, with the parameters of step "
        f"{run.step}"
    )
    angles = np.linspace(0, np.pi / 2, columns).astype(np.float32)
    row = np.repeat(np.arange(rows, dtype=np.int32), columns)
    labels = run.labels(rows)
    key = run_keys(run.config["seed"])["interpolate"]
    with naming_step_size(run):
        ends = run_chains(
            _program(run),
            (key, run.score_fn(run.state.ema_params)),
            rows * columns,
            per_chain=(row, np.tile(angles, rows), None if labels is None else labels[row]),
            batch_size=run.chains_at_once(rows * columns),
            devices=devices,
            name="interpolate",
        )
    samples = run.to_images(ends).reshape(rows, columns, *run.shape)

    picture = run.picture(samples.reshape(-1, *run.shape), columns, pixels=80 * columns)
    with lock.output(run.folder, name, settings) as name:
        with workdir.replacing(run.folder / f"{name}.png") as path:
            images.save_png(path, picture)
        arrays = {"samples": samples, "angle": angles, "settings": json.dumps(settings)}
        workdir.write_npz(run.folder / f"{name}.npz", arrays)
    announce(f"wrote {name}.png and {name}.npz to {run.folder}")
    return True


def _program(run: Run):
    """((key, score_fn), (index, (row, angle, label))) -> Trajectory of one device's chains."""
    settings = run.config["sampling"]

    def chains(shared, own):
        key, score_fn = shared
        _, (row, angle, label) = own
        score_fn = with_label(score_fn, label)
        first_start, first_keys = split_keys(example_keys(key, 2 * row))
        second_start, second_keys = split_keys(example_keys(key, 2 * row + 1))

        # The start lies between the starts of the two chains, as the noise does.
        x = mixed_normal(first_start, second_start, angle, run.shape)
        if settings["start"] == "uniform":
            x = run.to_network(jax.scipy.stats.norm.cdf(x))
        else:
            x = run.to_network(jnp.full((1, *run.shape), 0.5)) + run.sigmas[0] * x
        return interpolate(
            first_keys,
            second_keys,
            angle,
            score_fn,
            x,
            run.sigmas,
            step_size=run.step_size,
            num_steps=settings["num_steps"],
            denoise=settings["denoise"],
            sampler=run.sampler,
        )

    return chains
