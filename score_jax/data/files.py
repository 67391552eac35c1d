"""Images in folders, or in zip archives that are read without unpacking them.

`layout` describes how the files may be arranged. Images are decoded on access, by Pillow.
"""

import contextlib
import io
import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from score_jax.data.dataset import Dataset, LazyImages
from score_jax.data.layout import (
    LAYOUT,
    Layout,
    PassedOver,
    arrange,
    list_archive,
    list_folder,
    open_archives,
)
from score_jax.data.retry import UnreachableError, check_reachable, retried
from score_jax.reading import expanded, read_member, read_regular, within


class UnreadableImageError(ValueError):
    """An image is damaged, or has another shape than the others; found when it is decoded."""


class ImageTransform(NamedTuple):
    """Deterministic changes to an image when it is decoded: channels, then crop, then size.

    CelebA as in the papers is crop=140 and size=32 or 64.

    Attributes:
        crop: Side in pixels of the central square to cut out. None cuts nothing if `size` is None,
            else the largest square.
        size: Height and width to resize to, bilinear with antialiasing; None keeps the size.
        channels: 1 for grey, 3 for RGB; None keeps 1 for grey files and converts all others to
            RGB. Transparency is dropped.
    """

    crop: int | None = None
    size: int | None = None
    channels: int | None = None


AS_STORED = ImageTransform()
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats of images, whatever the file's name. Others of Pillow's start programs."""
LARGEST_SIDE = 8192
"""Largest side to crop or resize to, in pixels."""


def folder(
    path: str | os.PathLike | None,
    *,
    train_split: str = "train",
    held_out_split: str = "test",
    transform: ImageTransform = AS_STORED,
) -> Dataset:
    """Images in `path/split/class/`, or without classes in `path/split/`.

    If the folder contains neither split, its images, or those of the classes in it, are split by a
    fixed permutation as in `dataset.split_examples`, and the data set's note says so. Classes are
    numbered in the order of their names. Hidden files and files of other kinds are ignored.

    Args:
        path: The folder.
        train_split: Name of the folder of training images in it.
        held_out_split: Name of the folder of held-out images in it.
        transform: Changes to each image when it is decoded.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If the layout is another one, if one split has other classes than the other, or
            if a transform is out of range.
        UnreadableImageError: If an image is damaged or has another shape than the first. The first
            image of each split is decoded here, all others on access.
        UnreachableError: If the system does not give the file of an image.
    """
    root = os.path.expanduser(path or "")
    if not os.path.isdir(root):
        raise FileNotFoundError(
            f"path={path!r} is not a folder{within(path)}: it must hold {LAYOUT}"
        )

    def place(*parts: str) -> str:
        return os.path.join(root, *parts)

    passed, splits = PassedOver(), (train_split, held_out_split)
    entries = list_folder(root, splits, passed)
    with passed.explaining(root):
        layout = arrange(entries, place, *splits)
    passed.add_others(entries, splits)
    return _noting(_dataset(layout, str, read_regular, transform), passed.sentence(root))


def zipped(
    path: str | os.PathLike | None,
    *,
    train_split: str = "train",
    held_out_split: str = "test",
    transform: ImageTransform = AS_STORED,
) -> Dataset:
    """Images in zip archives, which are not unpacked; otherwise as `folder`.

    Args:
        path: An archive, several separated by commas, or a pattern such as "data/cifar10_*.zip".
            Together the archives hold the content of one folder; in each, it may lie within one
            more folder of any name. A path that exists is not taken for a list or a pattern.
        train_split: Name of the folder of training images.
        held_out_split: Name of the folder of held-out images.
        transform: Changes to each image when it is decoded.

    Raises:
        FileNotFoundError: If there is no such archive, or a split is missing.
        ValueError: If a file is not a zip archive, and as in `folder`.
        UnreadableImageError: As in `folder`.
    """
    archives = open_archives(path)
    entries, passed, splits = [], PassedOver(), (train_split, held_out_split)
    for number, archive in enumerate(archives):
        entries += list_archive(archive, number, splits, passed)
    lock = threading.Lock()

    def place(*parts: str) -> str:
        return f"{path}: {'/'.join(parts)}" if parts else str(path)

    def name(member: tuple[int, str]) -> str:
        number, inside = member
        return f"{archives[number].filename}: {inside}"

    def read(member: tuple[int, str]) -> bytes:
        # All threads share one file position per archive.
        number, inside = member
        with lock:
            return read_member(archives[number], inside)

    with passed.explaining(str(path)):
        layout = arrange(entries, place, *splits)
    passed.add_others(entries, splits)
    return _noting(_dataset(layout, name, read, transform), passed.sentence(str(path)))


def lazy_images(
    decode: Callable[[int], np.ndarray],
    name: Callable[[int], str],
    number: int,
    shape: tuple[int, int, int] | None = None,
) -> LazyImages:
    """Lazily decoded images of one shape; errors name the offending image.

    Args:
        decode: Function from the position of an image to its pixels, uint8 [height, width,
            channels].
        name: Function from the position of an image to its name in messages.
        number: Number of images, at least 1. The first one is decoded here.
        shape: Shape that all images must have; None for the shape of the first.

    Raises:
        UnreadableImageError: If the first image is damaged or has another shape. Access to the
            result raises it for the others.
        UnreachableError: Likewise, if the system does not give the file of an image.
    """

    def decode_checked(position: int) -> np.ndarray:
        try:
            image = decode(position)
        except (UnreachableError, MemoryError):
            raise
        except Exception as error:  # decoders raise exceptions of any kind at damaged data
            check_reachable(error, name(position))
            raise UnreadableImageError(
                f"{name(position)} cannot be read ({error}): replace it, or remove it from the "
                "data"
            ) from error
        if shape is not None and image.shape != shape:
            raise UnreadableImageError(
                f"{name(position)} is {list(image.shape)}, but the first training image is "
                f"{list(shape)} [height, width, channels]: set size and channels to make all "
                "images alike"
            )
        return image

    first_shape = decode_checked(0).shape
    shape = shape or first_shape
    return LazyImages(decode_checked, number, shape)


def check_transform(transform: ImageTransform) -> None:
    """Raises ValueError if a value of `transform` is out of range."""
    for name in ("crop", "size"):
        value = getattr(transform, name)
        if value is not None and not 1 <= value <= LARGEST_SIDE:
            raise ValueError(
                f"{name}={value} must be from 1 to {LARGEST_SIDE} pixels, or None to keep what is "
                "stored"
            )
    if transform.channels not in (None, 1, 3):
        raise ValueError(
            f"channels={transform.channels} must be 1 or 3, or None to keep what is stored"
        )


def decode_image(data: bytes, transform: ImageTransform) -> np.ndarray:
    """The pixels of an image file, upright, uint8 [height, width, channels].

    Args:
        data: Content of the file.
        transform: Changes to the image, after the orientation in its EXIF data is applied.

    Raises:
        ValueError: If the file is not an image, or does not fit the transform. Pillow raises
            exceptions of other kinds at damaged files.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("its content is no image of a known format") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"its header claims too many pixels: {error}") from None
    if image.mode[0] in "IF":
        raise ValueError(f"its pixels, of mode {image.mode}, have more than 8 bits")
    _make_upright(image)

    # Channels.
    grey = transform.channels == 1
    if transform.channels is None:
        grey = image.mode in ("1", "L", "LA")
    image = image.convert("L" if grey else "RGB")

    # Central crop.
    side = transform.crop
    if side is None and transform.size is not None:
        side = min(image.size)
    if side is not None:
        if side > min(image.size):
            raise ValueError(
                f"its {image.height} x {image.width} pixels are fewer than crop={side}"
            )
        left = (image.width - side) // 2
        top = (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))

    # Size.
    size = transform.size
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if grey else pixels


def _make_upright(image: Image.Image) -> None:
    """Applies the orientation in the EXIF data of an image to its pixels, in place."""
    image.load()  # not below: damaged pixels are an error
    with contextlib.suppress(Exception):  # damaged EXIF data of a sound image are ignored
        ImageOps.exif_transpose(image, in_place=True)


def read_image(path: str | os.PathLike, transform: ImageTransform) -> np.ndarray:
    """The pixels of one image file, upright, uint8 [height, width, channels].

    Args:
        path: The file.
        transform: Changes to the image, as in `decode_image`.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If it is damaged, not an image, or does not fit the transform.
    """
    check_transform(transform)
    file = expanded(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path} is not a file{within(path)}: it must be an image")
    try:
        return decode_image(read_regular(file), transform)
    except Exception as error:  # Pillow raises exceptions of any kind at damaged files
        raise UnreadableImageError(f"{path} cannot be read as an image ({error})") from error


def _noting(data: Dataset, sentence: str | None) -> Dataset:
    """Adds a sentence to the note of a data set."""
    notes = [note for note in (data.note, sentence) if note]
    return data._replace(note="; ".join(notes) or None)


def _dataset(
    layout: Layout,
    name: Callable[[Any], str],
    read: Callable[[Any], bytes],
    transform: ImageTransform,
) -> Dataset:
    """The data set of a layout.

    Args:
        layout: Handles of the images.
        name: Function from a handle to the name of the image in messages.
        read: Function from a handle to the content of the file.
        transform: Changes to each image when it is decoded.
    """
    check_transform(transform)
    read = retried(read, name)

    def lazy(groups: dict[str, list[Any]], shape: tuple[int, int, int] | None) -> LazyImages:
        handles = [handle for group in groups.values() for handle in group]

        def decode(position: int) -> np.ndarray:
            return decode_image(read(handles[position]), transform)

        return lazy_images(decode, lambda i: name(handles[i]), len(handles), shape)

    def labels(groups: dict[str, list[Any]]) -> np.ndarray:
        sizes = [len(group) for group in groups.values()]
        return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)

    train = lazy(layout.train, None)
    held_out = lazy(layout.held_out, train.shape[1:])
    data = Dataset(train, held_out, num_values=256, note=layout.note)
    if layout.classes is None:
        return data
    return data._replace(
        train_labels=labels(layout.train),
        held_out_labels=labels(layout.held_out),
        num_classes=len(layout.classes),
    )
