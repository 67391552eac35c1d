"""Completes images of which a part is missing: the user's own, or held-out ones."""

import glob
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import images, workdir
from score_jax.data.dataset import unit_scale
from score_jax.data.files import ImageTransform, read_image
from score_jax.inpainting import inpaint, toward_known
from score_jax.noise import example_keys
from score_jax.run.job import Job, Options, prepare, say
from score_jax.run.sample import run_chains, start

SIDES = {
    "right": (slice(None), slice(1, None)),
    "left": (slice(None), slice(0, 1)),
    "bottom": (slice(1, None), slice(None)),
    "top": (slice(0, 1), slice(None)),
}


class Inpainting(NamedTuple):
    """Images to complete.

    Attributes:
        job: The job, with the trained network.
        originals: float32 [images, height, width, channels] in [0, 1].
        mask: Which pixels are known, bool [height, width, channels].
        label: The class that the network is told; None for a network that takes none.
    """

    job: Job
    originals: np.ndarray
    mask: np.ndarray
    label: int | None


def prepare_inpainting(config, folder: Path, devices, options: Options) -> Inpainting:
    """Prepares the job and reads the images and the mask.

    Raises:
        ValueError: If an image, the mask or the label does not fit.
        OSError: If a file is missing.
    """
    for name in ("number", "completions"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}={getattr(options, name)} must be at least 1")
    job = prepare("inpaint", config, folder, devices, options)
    if len(job.event) != 3:
        raise ValueError(f"--mode=inpaint completes images, but the data of this run are points {list(job.event)}")
    return Inpainting(job, _originals(job), read_mask(options.mask, job.event), _label(job))


def complete(inpainting: Inpainting) -> bool:
    """Writes inpainting.png and inpainting.npz; True when done.

    Raises:
        FloatingPointError: If a chain is not finite; nothing is written.
    """
    job, originals, number = inpainting.job, inpainting.originals, len(inpainting.originals)
    completions = job.options.completions
    say(
        f"completes {number} images {completions} times each, {1 - inpainting.mask.mean():.0%} of the pixels missing, "
        f"with the parameters of step {job.restored[0]}"
    )
    chains = number * completions
    ends = [ends for _, _, ends in run_chains(job, _program(inpainting), chains, "inpaint", job.chains_at_once(chains))]
    # The way through the logit and back leaves the last bit open; what is known is known exactly.
    known = np.repeat(originals, completions, 0)
    completed = np.where(inpainting.mask, known, np.concatenate(ends)).reshape(number, completions, *job.event)

    masked = np.where(inpainting.mask, originals, 0.5)
    rows = np.concatenate([originals[:, None], masked[:, None], completed], axis=1)[:20, :22]
    with workdir.replacing(job.folder / "inpainting.png") as path:
        images.save_png(path, images.grid(rows.reshape(-1, *job.event), columns=rows.shape[1], pixels=80 * rows.shape[1]))
    with workdir.replacing(job.folder / "inpainting.npz") as path, path.open("wb") as file:
        labels = None if job.options.image else job.data.held_out_labels
        extra = {} if labels is None else {"labels": labels[:number]}
        np.savez_compressed(file, completions=completed, originals=originals, mask=inpainting.mask, **extra)
    say(f"wrote inpainting.png (original, what is known, completions) and inpainting.npz to {job.folder}")
    return True


def read_mask(mask: str, event: tuple[int, ...]) -> np.ndarray:
    """Which pixels are known, bool of shape `event`.

    Args:
        mask: The side that is missing (right, left, top, bottom), "center" for the middle half, or an image file of the same
            height and width: white where the image is known, black where it is missing.
        event: Shape of an image.

    Raises:
        ValueError: If it is none of these, all known or all missing.
        FileNotFoundError: If there is no such file.
    """
    height, width, _ = event
    known = np.ones((height, width), bool)
    if mask in SIDES:
        rows, columns = SIDES[mask]
        halves = np.zeros((2, 2), bool)
        halves[rows, columns] = True
        known = ~halves[np.arange(height) * 2 // height][:, np.arange(width) * 2 // width]
    elif mask == "center":
        known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    elif Path(mask).is_file():
        values = read_image(mask, ImageTransform(channels=1))[..., 0]
        if values.shape != (height, width):
            raise ValueError(f"--mask={mask} is {values.shape[0]}x{values.shape[1]}, but the images are {height}x{width}")
        known = values > 127
    else:
        raise FileNotFoundError(f"--mask={mask} is neither a file nor one of {', '.join([*SIDES, 'center'])}")
    if known.all() or not known.any():
        raise ValueError(f"--mask={mask} leaves {'nothing to complete' if known.all() else 'nothing known'}")
    return np.broadcast_to(known[..., None], event).copy()


def _originals(job: Job) -> np.ndarray:
    """The images to complete, in [0, 1]; pixels stand for the middle of what dequantisation spreads them over."""
    options = job.options
    if options.image:
        paths = [path for pattern in options.image.split(",") for path in sorted(glob.glob(pattern)) or [pattern]]
        pixels, num_values = np.stack([_read(path, job) for path in paths]), 256
    else:
        number = min(options.number, len(job.data.held_out))
        pixels, num_values = job.data.held_out[np.arange(number)], job.data.num_values
    return unit_scale(pixels, num_values, job.config["data"]["dequantize"])


def _read(path: str, job: Job) -> np.ndarray:
    height, width, channels = job.event
    size = height if height == width else 0
    image = read_image(path, ImageTransform(job.config["data"]["crop"], size, channels))
    if image.shape != job.event:
        raise ValueError(f"--image={path} is {list(image.shape)}, but this network was trained on {list(job.event)}")
    return image


def _label(job: Job) -> int | None:
    """The class to tell the network, or the one that stands for any."""
    label, data = job.options.label, job.config["data"]
    if not data["labels"]:
        if label >= 0:
            raise ValueError(f"--label={label} cannot be told: the network of --workdir={job.folder} takes no labels")
        return None
    num_classes = job.data.num_classes
    if label >= num_classes:
        raise ValueError(f"--label={label} must be a class from 0 to {num_classes - 1}")
    if label < 0 and data["label_dropout"] == 0:
        raise ValueError(
            f"the network of --workdir={job.folder} was always told the class (config.data.label_dropout=0): give it with --label, "
            f"from 0 to {num_classes - 1}, or train with label_dropout above 0"
        )
    return label if label >= 0 else num_classes


def _program(inpainting: Inpainting):
    """index [devices, share] of the chains -> their trajectories; chain i completes image i // completions."""
    job, sampling, label = inpainting.job, inpainting.job.config["sampling"], inpainting.label
    completions, number = job.options.completions, len(inpainting.originals)

    def chains(key, params, originals, mask, index):
        known = job.to_data(originals[jnp.minimum(index // completions, number - 1)])
        start_keys, chain_keys = jnp.moveaxis(jax.vmap(jax.random.split)(example_keys(key, index)), 1, 0)
        mask = jnp.broadcast_to(mask, known.shape)
        told = [] if label is None else [jnp.full(len(index), label)]

        def score_fn(x, level):
            return job.apply(params, x, level, *told)

        if sampling["guidance"]:
            score_fn = toward_known(score_fn, known, mask, job.sigmas, weight=sampling["guidance"])
        return inpaint(
            chain_keys,
            score_fn,
            start(job, start_keys),
            known,
            mask,
            job.sigmas,
            step_size=job.step_size,
            num_steps=sampling["num_steps"],
            renew=sampling["renew_known"],
            denoise=sampling["denoise"],
        )

    program = job.pmap(chains, (None, None, None, None, 0), 0)
    held = job.replicate((job.restored[1].ema_params, inpainting.originals, inpainting.mask[None]))
    return lambda index: program(job.keys["inpaint"], *held, index)
