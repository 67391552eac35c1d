"""Completes images of which a part is missing: the user's own, or held-out ones."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import operators
from score_jax.cli import lock
from score_jax.cli.build import inpaint_steps
from score_jax.cli.flags import Command
from score_jax.cli.masks import read_mask
from score_jax.cli.originals import (
    NUMBER,
    Originals,
    check_images,
    completion_label,
    image_transform,
    read_originals,
    write_rows,
)
from score_jax.cli.restore import Task, posterior_samples
from score_jax.cli.run import Run, naming_step_size, open_run, output_settings
from score_jax.network import with_label
from score_jax.noise import example_keys, run_keys, split_keys
from score_jax.progress import announce
from score_jax.samplers.inpainting import inpaint, toward_known
from score_jax.sampling import run_chains


def inpaint_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Completes images; writes inpainting.png and inpainting.npz; True when done.

    Raises:
        ValueError: If an image, the mask or another option does not fit.
        OSError: If a file is missing, or files cannot be written.
        FloatingPointError: If a chain is not finite; nothing is written.
    """
    # Check everything before anything is compiled.
    options = command.options
    completions = NUMBER if options.completions is None else options.completions
    for flag, value in (("number", options.number), ("completions", completions)):
        if value is not None and value < 1:
            raise ValueError(f"--{flag}={value} must be at least 1")
    method = options.method
    run = open_run(command, devices, needs_data=options.image is None, inpainting=method is None)
    check_images(run, "--mode=inpaint completes")
    mask = read_mask(
        "right" if options.mask is None else options.mask, run.shape, image_transform(run)
    )
    originals = read_originals(run, options)
    label = completion_label(run, options.label)
    settings = output_settings(
        run.config,
        run.step,
        ("renew_known", "guidance", "inpaint_steps") if method is None else ("method",),
        image=options.image,
        mask=options.mask,
        label=options.label,
        number=len(originals.x),
        completions=completions,
        **({} if method is None else {"posterior": method}),
    )
    name = lock.choose(run.folder, "inpainting", options.name, settings)

    number = len(originals.x)
    announce(
        f"completes {number} images {completions} times each, {1 - mask.mean():.0%} of the pixels "
        f"missing, with the parameters of step {run.step}"
    )
    if method is None:
        ends = langevin_completions(run, originals.x, mask, label, completions)
    else:
        # The known pixels are measured with the noise of the last level, as the training data are.
        task = Task(operators.mask(mask), float(run.sigmas[-1]), method)
        measured = np.asarray(task.operator(jnp.asarray(run.to_network(originals.x))))
        ends = posterior_samples(run, task, measured, label, completions)

    # The logit transform and its inverse lose the last bit; restore the known pixels exactly.
    ends = run.to_images(ends)
    completed = np.where(mask, originals.x[:, None], ends)
    write_completions(run, name, originals, mask, completed, settings)
    return True


def langevin_completions(
    run: Run, x: np.ndarray, mask: np.ndarray, label: int | None, completions: int
) -> np.ndarray:
    """Completions by the paper's algorithm, [images, completions, *shape].

    Args:
        run: The run.
        x: Images in [0, 1] or in the unit of the data, [images, *shape].
        mask: Known pixels, bool [*shape].
        label: The class as `originals.completion_label` gives it.
        completions: Completions per image.

    Raises:
        FloatingPointError: If a chain is not finite.
    """
    # Chain i completes image i // completions.
    number = len(x) * completions
    key = run_keys(run.config["seed"])["inpaint"]
    with naming_step_size(run):
        ends = run_chains(
            _program(run, label),
            (key, run.score_fn(run.state.ema_params), x, mask),
            number,
            per_chain=np.repeat(np.arange(len(x), dtype=np.int32), completions),
            batch_size=run.chains_at_once(number),
            devices=run.devices,
            name="inpaint",
        )
    return ends.reshape(len(x), completions, *run.shape)


def _program(run: Run, label: int | None):
    """((key, score_fn, originals, mask), (index, image)) -> Trajectory of one device's chains."""
    settings = run.config["sampling"]

    def chains(shared, own):
        key, score_fn, originals, mask = shared
        index, image = own
        known = run.to_network(originals[image])
        mask = jnp.broadcast_to(mask, known.shape)
        if label is not None:
            score_fn = with_label(score_fn, jnp.full(len(index), label))
        if settings["guidance"]:
            score_fn = toward_known(score_fn, known, mask, run.sigmas, weight=settings["guidance"])
        start_keys, chain_keys = split_keys(example_keys(key, index))
        return inpaint(
            chain_keys,
            score_fn,
            run.start(start_keys, run.shape),
            known,
            mask,
            run.sigmas,
            step_size=run.step_size,
            num_steps=inpaint_steps(settings),
            renew=settings["renew_known"],
            denoise=settings["denoise"],
        )

    return chains


def write_completions(
    run: Run,
    name: str,
    originals: Originals,
    mask: np.ndarray,
    completed: np.ndarray,
    settings: dict,
) -> None:
    """Writes completions [images, completions, height, width, channels] as .npz and .png."""
    # Each row shows the original, its known part, and the completions; at most 20 rows of 20.
    grey = 0.5 * (originals.x.min() + originals.x.max()) if not run.has_pixels else 0.5
    masked = np.where(mask, originals.x, np.float32(grey))
    rows = np.concatenate([originals.x[:, None], masked[:, None], completed], axis=1)[:20, :22]
    name = write_rows(run, name, rows, originals, settings, completions=completed, mask=mask)
    announce(
        f"wrote {name}.png (original, known part, completions) and {name}.npz to {run.folder}"
    )
