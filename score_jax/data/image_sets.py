"""Sets of images without splits or classes: a folder, a zip archive or an .npz of arrays."""

import os
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.data.dataset import LazyImages
from score_jax.data.files import ImageTransform, decode_image, lazy_images
from score_jax.data.layout import (
    FOREIGN,
    HIDDEN,
    PassedOver,
    is_hidden,
    is_image,
    members,
)
from score_jax.data.retry import retried
from score_jax.reading import (
    expanded,
    load_arrays,
    read_member,
    read_regular,
    within,
)

NAMES = ("samples", "images", "x", "arr_0")
"""Arrays of an .npz that may hold the images, in the order of preference."""


def read_images(
    path: str | os.PathLike,
    transform: ImageTransform = ImageTransform(),  # noqa: B008
) -> np.ndarray | LazyImages:
    """All images of a folder or zip archive, in the order of their names, or of an .npz.

    Args:
        path: A folder, of which all subfolders are searched; a .zip of the same; or an .npz or
            .npy with an array [examples, ...]. An .npz holds it as `samples`, `images`, `x` or
            `arr_0`, or as its only array.
        transform: Changes to each image file when it is decoded.

    Returns:
        uint8 [examples, height, width, channels], decoded on access, with a note on the files that
        were passed over; the array itself for .npz.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it holds no images, or an array of another kind.
        UnreadableImageError: If the first image is damaged; access raises it for the others.
        UnreachableError: Likewise, if the system does not give the file of an image.

    Example:
        >>> images = sj.read_images("photos.zip")  # doctest: +SKIP
    """
    file, passed = expanded(path), PassedOver()
    if file.is_dir():
        below = [each.relative_to(file) for each in sorted(file.rglob("*")) if not each.is_dir()]
        found = [(each.parts, file / each) for each in below]
        return _lazily(file, found, read_regular, transform, passed)
    if not file.is_file():
        raise FileNotFoundError(f"{path} is neither a file nor a folder{within(path)}")
    if file.suffix in (".npz", ".npy"):
        return _array(file)
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} must be a folder of images, a .zip of them, or an .npz of arrays"
        ) from error
    lock = threading.Lock()

    def read(name: str) -> bytes:
        # All threads share one file position.
        with lock:
            return read_member(archive, name)

    entries = [(parts, name) for parts, name in sorted(members(archive, passed)) if parts[-1]]
    return _lazily(file, entries, read, transform, passed)


def _lazily(
    file: Path,
    found: Sequence[tuple[tuple[str, ...], Any]],
    read: Callable[[Any], bytes],
    transform: ImageTransform,
    passed: PassedOver,
) -> LazyImages:
    """The images among files, given as pairs of path and handle."""
    images = []
    for parts, handle in found:
        if any(map(is_hidden, parts)):
            passed.add(HIDDEN, "/".join(parts))
        elif not is_image(parts[-1]):
            passed.add(FOREIGN, parts[-1])
        else:
            images.append(("/".join(parts), handle))
    with passed.explaining(str(file)):
        if not images:
            raise ValueError(f"{file} holds no images (.png, .jpg or .jpeg)")

    def name(position: int) -> str:
        return f"{file}: {images[position][0]}"

    content = retried(lambda position: read(images[position][1]), name)

    def decode(position: int) -> np.ndarray:
        return decode_image(content(position), transform)

    lazy = lazy_images(decode, name, len(images))
    lazy.note = passed.sentence(str(file))
    return lazy


def _name(names: list[str]) -> str:
    """The name of the array of images."""
    known = [name for name in NAMES if name in names] or names
    if not known or (known[0] not in NAMES and len(known) > 1):
        raise ValueError(
            f"it holds {', '.join(names) or 'no array'}: name the array of images `samples`"
        )
    return known[0]


def _array(file: Path) -> np.ndarray:
    """The array of images of an .npz or .npy."""
    try:
        [x] = load_arrays(file, lambda names: [_name(names)]).values()
    except ValueError as error:
        raise ValueError(f"{file} cannot be read as arrays ({error})") from error
    if x.ndim < 2 or not len(x) or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        raise ValueError(
            f"{file} holds {x.dtype} {list(x.shape)}, but must hold examples, uint8 or "
            "floating-point, [examples, ...]"
        )
    return x
