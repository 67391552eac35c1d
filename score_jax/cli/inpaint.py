"""Completes images of which a part is missing: the user's own, or held-out ones."""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.cli import images, workdir
from score_jax.cli.flags import Command, Options
from score_jax.cli.names import naming
from score_jax.cli.run import Run, naming_step_size, open_run, output_settings
from score_jax.data.files import ImageTransform, read_image
from score_jax.data.transforms import unit_scale
from score_jax.network import with_label
from score_jax.noise import example_keys, run_keys, split_keys
from score_jax.progress import announce
from score_jax.samplers.inpainting import inpaint, toward_known
from score_jax.sampling import run_chains

SIDES = {
    "right": (slice(None), slice(1, None)),
    "left": (slice(None), slice(0, 1)),
    "bottom": (slice(1, None), slice(None)),
    "top": (slice(0, 1), slice(None)),
}
"""Name of a side -> the quarters of the image [rows, columns] that it covers."""
MASKS = (*SIDES, "center")
NUMBER = 8
"""Default number of images, and of completions of each."""


class Originals(NamedTuple):
    """Images to complete.

    Attributes:
        x: float32 [images, height, width, channels], in the unit of the data: [0, 1] for pixels.
        labels: Their classes, int32 [images]; None if they are not known.
    """

    x: np.ndarray
    labels: np.ndarray | None


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
    run = open_run(command, devices, needs_data=options.image is None, annealed=True)
    if not run.has_images:
        raise ValueError(
            f"--mode=inpaint completes images, but the data of this run are points "
            f"{list(run.shape)}"
        )
    originals = read_originals(run, options)
    mask = read_mask("right" if options.mask is None else options.mask, run.shape)
    label = completion_label(run, options.label)
    settings = output_settings(
        run.config,
        run.step,
        ("renew_known", "guidance"),
        image=options.image,
        mask=options.mask,
        label=options.label,
        number=len(originals.x),
        completions=completions,
    )
    name = workdir.output_name(run.folder, "inpainting", options.name, settings)

    # Complete every image `completions` times: chain i completes image i // completions.
    number = len(originals.x)
    announce(
        f"completes {number} images {completions} times each, {1 - mask.mean():.0%} of the pixels "
        f"missing, with the parameters of step {run.step}"
    )
    key = run_keys(run.config["seed"])["inpaint"]
    chains = number * completions
    with naming_step_size(run):
        ends = run_chains(
            _program(run, label),
            (key, run.score_fn(run.state.ema_params), originals.x, mask),
            chains,
            per_chain=np.repeat(np.arange(number, dtype=np.int32), completions),
            batch_size=run.chains_at_once(chains),
            devices=devices,
            name="inpaint",
        )

    # The logit transform and its inverse lose the last bit; restore the known pixels exactly.
    ends = run.to_images(ends).reshape(number, completions, *run.shape)
    completed = np.where(mask, originals.x[:, None], ends)
    write_completions(run, name, originals, mask, completed, settings)
    return True


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
            num_steps=settings["num_steps"],
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
    columns = rows.shape[1]
    picture = run.picture(rows.reshape(-1, *run.shape), columns, pixels=80 * columns)
    with workdir.replacing(run.folder / f"{name}.png") as path:
        images.save_png(path, picture)

    labels = {} if originals.labels is None else {"labels": originals.labels}
    with workdir.replacing(run.folder / f"{name}.npz") as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            completions=completed,
            originals=originals.x,
            mask=mask,
            **labels,
            settings=json.dumps(settings),
        )
    announce(
        f"wrote {name}.png (original, known part, completions) and {name}.npz to {run.folder}"
    )


def read_mask(mask: str, shape: tuple[int, ...]) -> np.ndarray:
    """Reads which pixels are known, bool of shape `shape`.

    Args:
        mask: The side that is missing (right, left, top, bottom), "center" for the middle half, or
            an image file of the same height and width: white where a pixel is known, black where
            it is missing. A file without values above 1 marks known pixels by 1.
        shape: Shape of an image.

    Raises:
        ValueError: If the mask is none of these, or leaves everything known or missing.
        FileNotFoundError: If there is no such file.
    """
    height, width, _ = shape
    if mask in SIDES:
        quarters = np.zeros((2, 2), bool)
        quarters[SIDES[mask]] = True
        row_half = np.arange(height) * 2 // height
        column_half = np.arange(width) * 2 // width
        known = ~quarters[row_half][:, column_half]
    elif mask == "center":
        known = np.ones((height, width), bool)
        known[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    else:
        known = _read_mask_file(mask)
        if known.shape != (height, width):
            raise ValueError(
                f"--mask={mask} is {known.shape[0]}x{known.shape[1]}, but the images are "
                f"{height}x{width}"
            )
    if known.all() or not known.any():
        left = "nothing to complete" if known.all() else "nothing known"
        raise ValueError(f"--mask={mask} leaves {left}")
    return np.broadcast_to(known[..., None], shape).copy()


def _read_mask_file(mask: str) -> np.ndarray:
    """Known pixels of a mask file, bool [height, width]."""
    path = Path(mask).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"--mask={mask} is neither a file nor one of {', '.join(MASKS)}")
    if has_transparency(path):
        raise ValueError(
            f"--mask={mask} is partly transparent: save it without transparency, white where the "
            "image is known and black where it is missing"
        )
    values = read_image(path, ImageTransform(channels=1))[..., 0]
    return values > 0 if values.max() <= 1 else values > 127


def has_transparency(path: Path) -> bool:
    """True if an image file has pixels that are not opaque."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if "A" not in image.getbands() and "transparency" not in image.info:
                return False
            return image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    except (UnidentifiedImageError, OSError, SyntaxError):
        return False  # `read_image` says what is wrong with the file.


def read_originals(run: Run, options: Options) -> Originals:
    """Reads the images to complete; pixels stand for the middle of their dequantisation interval.

    Raises:
        ValueError: If an image does not have the shape of the network's data.
        FileNotFoundError: If there is no such file.
    """
    dequantized = run.config["data"]["dequantize"]
    if options.image is None:
        number = NUMBER if options.number is None else options.number
        number = min(number, len(run.data.held_out))
        index = np.arange(number)
        x = unit_scale(run.data.held_out[index], run.data.num_values, dequantized)
        labels = run.data.held_out_labels
        return Originals(x, None if labels is None else labels[index])
    if options.number is not None:
        raise ValueError(
            f"--number={options.number} counts held-out images: leave it out with --image"
        )
    if not run.has_pixels:
        raise ValueError(
            f"--image={options.image} cannot be used: the data of this run are not pixels"
        )
    pixels = []
    for pattern in options.image.split(","):
        pattern = os.path.expanduser(pattern.strip())
        pixels += [_read_original(run, path) for path in sorted(glob.glob(pattern)) or [pattern]]
    return Originals(unit_scale(np.stack(pixels), 256, dequantized), None)


def _read_original(run: Run, path: str) -> np.ndarray:
    """The pixels of an image file, prepared as the training images are."""
    height, width, channels = run.shape
    size = height if height == width else None
    with naming("data"):
        image = read_image(path, ImageTransform(run.config["data"]["crop"], size, channels))
    if image.shape != run.shape:
        raise ValueError(
            f"--image={path} is {list(image.shape)}, but this network was trained on "
            f"{list(run.shape)}"
        )
    return image


def completion_label(run: Run, label: int | None) -> int | None:
    """The class of the images to complete, as the network takes it.

    Args:
        run: The run.
        label: The class; None for any.

    Returns:
        The class, the number of classes for any class, or None for an unconditional network.

    Raises:
        ValueError: If the network cannot be conditioned so.
    """
    run.check_label(label)
    if not run.conditional or label is not None:
        return label
    if run.config["data"]["label_dropout"] == 0:
        raise ValueError(
            f"the network of --workdir={run.folder} was always conditioned on the class "
            "(config.data.label_dropout=0): give it with --label, from 0 to "
            f"{run.data.num_classes - 1}, or train with label_dropout above 0"
        )
    return run.data.num_classes
