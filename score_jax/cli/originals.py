"""The images that a mode completes or restores: the user's own, or held-out ones."""

import json
from typing import Any, NamedTuple

import numpy as np

from score_jax.cli import images, lock, workdir
from score_jax.cli.flags import Options
from score_jax.cli.masks import MASKS, read_mask_file, scale_known
from score_jax.cli.names import naming
from score_jax.cli.run import Run
from score_jax.data.files import AS_STORED, ImageTransform, read_image
from score_jax.data.transforms import unit_scale
from score_jax.reading import listed, matching_files

NUMBER = 8
"""Default number of images, and of completions of each."""


class Originals(NamedTuple):
    """Images to complete or restore.

    Attributes:
        x: float32 [images, height, width, channels], in the unit of the data: [0, 1] for pixels.
        labels: Their classes, int32 [images]; None if they are not known.
    """

    x: np.ndarray
    labels: np.ndarray | None


def check_images(run: Run, action: str) -> None:
    """Raises a ValueError that names the mode and its action if the data are not images."""
    if not run.has_images:
        raise ValueError(f"{action} images, but the data of this run are points {list(run.shape)}")


def read_originals(run: Run, options: Options) -> Originals:
    """Reads the images to complete; pixels stand for the middle of their dequantisation interval.

    With a mask file of the size of the user's own images, known pixels are scaled without the
    missing ones.

    Raises:
        ValueError: If an image does not have the shape of the network's data, or the size of the
            mask.
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
    known = None
    if options.mask not in (None, *MASKS):
        known = read_mask_file(options.mask)
    pixels = []
    for pattern in listed(options.image, matching_files) or [options.image]:
        paths = matching_files(pattern) or [pattern]
        pixels += [_read_original(run, path, known, options.mask) for path in paths]
    return Originals(unit_scale(np.stack(pixels), 256, dequantized), None)


def image_transform(run: Run) -> ImageTransform:
    """Changes to images of any size, as to the training images."""
    height, width, channels = run.shape
    size = height if height == width else None
    return ImageTransform(run.config["data"]["crop"], size, channels)


def _read_original(run: Run, path: str, known: np.ndarray | None, mask: str | None) -> np.ndarray:
    """The pixels of an image file, prepared as the training images are."""
    transform = image_transform(run)
    with naming("data"):
        if known is None or known.shape == run.shape[:2]:
            image = read_image(path, transform)
        else:
            image = read_image(path, AS_STORED._replace(channels=transform.channels))
            if image.shape[:2] != known.shape:
                raise ValueError(
                    f"--mask={mask} is {known.shape[0]}x{known.shape[1]}, but --image={path} is "
                    f"{image.shape[0]}x{image.shape[1]}: they must have the same size, or the "
                    f"mask that of the network's images, {run.shape[0]}x{run.shape[1]}"
                )
            image = scale_known(image, known, transform)
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


def write_rows(
    run: Run,
    name: str,
    rows: np.ndarray,
    originals: Originals,
    settings: dict[str, Any],
    **arrays: np.ndarray,
) -> str:
    """Writes NAME.png, a row of pictures per image, and NAME.npz.

    Args:
        run: The run.
        name: Stem of the files.
        rows: Pictures, [rows, columns, *shape].
        originals: The images, which the .npz contains with their labels.
        settings: The settings that decide the result.
        **arrays: Further arrays of the .npz.

    Returns:
        The stem; another one if another process has written files of other settings meanwhile.
    """
    columns = rows.shape[1]
    picture = run.picture(rows.reshape(-1, *run.shape), columns, pixels=80 * columns)
    arrays = {**arrays, "originals": originals.x, "settings": json.dumps(settings)}
    if originals.labels is not None:
        arrays["labels"] = originals.labels
    with lock.output(run.folder, name, settings) as name:
        with workdir.replacing(run.folder / f"{name}.png") as path:
            images.save_png(path, picture)
        workdir.write_npz(run.folder / f"{name}.npz", arrays)
    return name
