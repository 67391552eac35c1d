"""Restores images from linear measurements: samples of the posterior of an inverse problem.

y = A x + noise z,   z ~ N(0, I)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import operators
from score_jax.cli import lock
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
from score_jax.cli.run import Run, naming_step_size, open_run, output_settings
from score_jax.data.files import AS_STORED, ImageTransform
from score_jax.guidance import with_fixed_label
from score_jax.noise import example_keys, run_keys, standard_normal
from score_jax.posterior import posterior_score
from score_jax.progress import announce
from score_jax.sampling import sample

TASKS = {
    "colorize": "the colours of grey images",
    "superresolve:2": "images of half the size, or of another factor",
    "deblur:1": "images blurred by a Gaussian of this standard deviation in pixels",
    "sense:0.25": "random projections, as many as this fraction of the values",
    "mri:2": "Fourier coefficients of grey images, this number of times fewer than all",
    "inpaint:right": "images with a missing part, as in --mask",
}
"""Example of a task -> its measurements."""


NUM_ITERATIONS = 5
"""Iterations of the linear solver; more do not help with the Jacobian of a network."""


class Task(NamedTuple):
    """An inverse problem.

    Attributes:
        operator: A, as in `score_jax.operators`.
        noise_std: Standard deviation of the noise of the measurements.
        method: Approximation of the posterior, as in `posterior.posterior_score`.
    """

    operator: Callable[..., Any]
    noise_std: float
    method: str


def restore_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Restores images; writes restoration.png and restoration.npz; True when done.

    Raises:
        ValueError: If the task, an image or another option does not fit.
        OSError: If a file is missing, or files cannot be written.
        FloatingPointError: If a chain is not finite; nothing is written.
    """
    # Check everything before anything is compiled.
    options = command.options
    if options.task is None:
        raise ValueError(f"--mode=restore needs --task, such as {', '.join(TASKS)}")
    run = open_run(command, devices, needs_data=options.image is None)
    check_images(run, "--mode=restore restores")
    if run.config["data"]["logit"]:
        raise ValueError(
            "--mode=restore needs a network of pixels: measurements of images are not linear in "
            "their logits (config.data.logit=True)"
        )
    operator = read_task(options.task, run.shape, run.config["seed"], image_transform(run))
    originals = read_originals(run, options)
    label = completion_label(run, options.label)
    task = Task(
        operator,
        0.05 if options.noise is None else options.noise,
        options.method or "moment_matching",
    )
    completions = NUMBER if options.completions is None else options.completions
    settings = output_settings(
        run.config,
        run.step,
        ("method",),
        task=options.task,
        noise=task.noise_std,
        posterior=task.method,
        image=options.image,
        label=options.label,
        number=len(originals.x),
        completions=completions,
    )
    name = lock.choose(run.folder, "restoration", options.name, settings)

    announce(
        f"restores {len(originals.x)} images ({options.task}, noise {task.noise_std:g}, "
        f"{task.method}), {completions} samples of each posterior, with the parameters of step "
        f"{run.step}"
    )
    measured = measure(run, task, originals.x)
    ends = posterior_samples(run, task, measured, label, completions)
    write_restorations(run, name, task, originals, measured, ends, settings)
    return True


def read_task(
    task: str,
    shape: tuple[int, ...],
    seed: int,
    transform: ImageTransform = AS_STORED,
) -> Callable[..., Any]:
    """The operator of a task such as "superresolve:2".

    Args:
        task: Name and parameter, as in `TASKS`.
        shape: Shape of an image, [height, width, channels].
        seed: Seed of random operators.
        transform: Crop and size of the images, for a mask file of another size.

    Raises:
        ValueError: If the task is unknown, or does not fit the images.
    """
    name, _, value = task.partition(":")
    defaults = dict(example.partition(":")[::2] for example in TASKS)
    if name not in defaults:
        raise ValueError(f"--task={task} is not known: choose among {', '.join(TASKS)}")
    if value and not defaults[name]:
        raise ValueError(f"--task={task}: {name} takes no parameter")
    value = value or defaults[name]
    height, width, channels = shape
    if name == "inpaint":
        return operators.mask(read_mask(value, shape, transform, "--task=inpaint:"))
    if name == "colorize":
        if channels != 3:
            raise ValueError(
                f"--task={task} needs colour images, but these have {channels} channel"
            )
        return operators.grayscale()

    # The other tasks take a number.
    try:
        number = float(value)
    except ValueError:
        number = np.nan
    if name == "superresolve":
        factor = int(number) if number == np.round(number) else 0
        if factor < 2 or height % factor or width % factor:
            raise ValueError(
                f"--task={task}: the factor must be a whole number of at least 2 that divides "
                f"{height} and {width}"
            )
        return operators.block_mean(factor)
    if name == "deblur":
        if not 0 < number <= min(height, width):
            raise ValueError(
                f"--task={task}: the standard deviation must be above 0 and at most "
                f"{min(height, width)} pixels"
            )
        return operators.blur(number)
    key = jax.random.key(seed)
    if name == "sense":
        if not 0 < number <= 1:
            raise ValueError(f"--task={task}: the fraction must be above 0 and at most 1")
        size = int(np.prod(shape))
        return operators.random_projections(key, shape, max(1, round(number * size)))
    if channels > 2 or not 1 <= number <= width:
        raise ValueError(
            f"--task={task} needs images of 1 channel (these have {channels}) and an acceleration "
            f"from 1 to {width}"
        )
    return operators.masked_fourier(cartesian_mask(key, height, width, number))


def cartesian_mask(key: Any, height: int, width: int, acceleration: float) -> np.ndarray:
    """Columns of Fourier coefficients that an accelerated scan measures, bool [height, width].

    A third of the columns are the lowest frequencies; the others are drawn at random.
    """
    num_columns = max(1, round(width / acceleration))
    order = np.argsort(np.abs(np.fft.fftfreq(width)), kind="stable")
    num_low = -(-num_columns // 3)
    others = np.asarray(jax.random.permutation(key, width - num_low))[: num_columns - num_low]
    columns = np.zeros(width, bool)
    columns[order[:num_low]] = True
    columns[order[num_low + others]] = True
    return np.broadcast_to(columns, (height, width)).copy()


def measure(run: Run, task: Task, x: np.ndarray) -> np.ndarray:
    """Noisy measurements of images, [images, *measurement]; the noise of an image is its own."""
    clean = jax.jit(task.operator)(jnp.asarray(x))
    key = jax.random.fold_in(run_keys(run.config["seed"])["inpaint"], 1)
    noise = standard_normal(example_keys(key, np.arange(len(x))), clean.shape[1:])
    return np.asarray(clean + task.noise_std * noise)


def posterior_samples(
    run: Run, task: Task, measured: np.ndarray, label: int | None, completions: int
) -> np.ndarray:
    """Samples of the posterior of each image, [images, completions, *shape].

    Args:
        run: The run.
        task: The inverse problem, of images as the network sees them.
        measured: Measurements, [images, *measurement].
        label: The class as `originals.completion_label` gives it.
        completions: Samples per image.

    Raises:
        FloatingPointError: If a chain is not finite.
    """
    score_fn = run.score_fn(run.state.ema_params)
    if label is not None:
        score_fn = with_fixed_label(score_fn, label)
    posterior = posterior_score(
        score_fn,
        None,
        task.operator,
        task.noise_std,
        run.sigmas,
        method=task.method,
        num_iterations=NUM_ITERATIONS,
    )
    number = len(measured) * completions
    arguments = run.sampling(number) | {"num_snapshots": 0, "observe": None}
    with naming_step_size(run):
        ends = sample(
            posterior,
            run.sigmas,
            condition=np.repeat(measured, completions, axis=0),
            **arguments,
        )
    return ends.reshape(len(measured), completions, *run.shape)


def misfit(task: Task, measured: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Root mean square of |y - A x| / noise per measurement, [images, completions].

    Its square has the mean 1 over samples of the exact posterior, as it has for the originals.
    """
    flat = jnp.asarray(x.reshape(-1, *x.shape[2:]))
    fitted = np.asarray(jax.jit(task.operator)(flat)).reshape(*x.shape[:2], -1)
    rest = (measured.reshape(len(measured), 1, -1) - fitted) / task.noise_std
    return np.sqrt(np.mean(rest**2, axis=2))


def write_restorations(
    run: Run,
    name: str,
    task: Task,
    originals: Originals,
    measured: np.ndarray,
    samples: np.ndarray,
    settings: dict[str, Any],
) -> None:
    """Writes samples, mean and standard deviation as .npz and .png, and prints the misfit."""
    mean, std = samples.mean(axis=1), samples.std(axis=1)
    found = misfit(task, measured, samples)

    # Each row shows the original, its measurements, mean, standard deviation and samples.
    rows = np.concatenate(
        [
            np.stack([originals.x, measurements_as_images(task, measured, run.shape), mean], 1),
            2 * std[:, None] * (1.0 if run.has_pixels else 1 / max(float(std.max()), 1e-9)),
            samples,
        ],
        axis=1,
    )[:20, :20]
    name = write_rows(
        run,
        name,
        run.to_images(rows),
        originals,
        settings,
        samples=samples,
        mean=mean,
        std=std,
        measurements=measured,
        misfit=found,
    )
    error = np.sqrt(np.mean((mean - originals.x) ** 2))
    announce(
        f"data misfit {np.sqrt(np.mean(found**2)):.3f} (1 for a correct posterior); root mean "
        f"square error of the mean {error:.4f}, mean standard deviation {std.mean():.4f}"
    )
    announce(
        f"wrote {name}.png (original, measurements, mean, 2 standard deviations, samples) and "
        f"{name}.npz to {run.folder}"
    )


def measurements_as_images(task: Task, measured: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A^T y, scaled so that its measurements fit y best; [images, *shape]."""
    like = jax.ShapeDtypeStruct((len(measured), *shape), jnp.float32)
    back = np.asarray(operators.adjoint(task.operator, like)(jnp.asarray(measured)))
    again = np.asarray(task.operator(jnp.asarray(back))).reshape(len(measured), -1)
    y = measured.reshape(len(measured), -1)
    scale = np.sum(again * y, axis=1) / np.maximum(np.sum(again**2, axis=1), 1e-12)
    return scale.reshape(-1, *[1] * len(shape)) * back
