"""Images that are files: in folders, or in zip archives that are read as they are. The layout is split/class/image."""

import glob
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from score_jax.data.dataset import Dataset, LazyImages

LAYOUT = "split/class/image.png, .jpg or .jpeg, or split/image without classes"


class UnreadableImageError(ValueError):
    """An image turns out to be damaged, or of another shape, when it is read."""


class ImageTransform(NamedTuple):
    """What is done to an image when it is decoded: channels, then crop, then size.

    Attributes:
        crop: Width and height, in pixels, of the square that is cut out of the middle; 0: none, but if `size` is not 0 the largest.
        size: Width and height that it is resized to, bilinear with antialiasing; 0: none.
        channels: 1: grey, 3: RGB, 0: as stored, where grey files have 1 and all others 3. Transparency is dropped.

    CelebA as in the papers is crop=140 and size=32 or 64.
    """

    crop: int = 0
    size: int = 0
    channels: int = 0


def folder(path: str, *, train_split: str, held_out_split: str, transform: ImageTransform) -> Dataset:
    """Images in `path/split/class/`, or without classes in `path/split/`; decoded when they are asked for.

    Classes are numbered in the order of their names. Hidden files, and files of other kinds, are passed over.

    Args:
        path: The folder.
        train_split: Name of the folder in it that holds the training images.
        held_out_split: The same of the held-out images.
        transform: What is done to each image.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If the folders are not laid out so, or have other classes in one split than in the other.
        UnreadableImageError: If an image is damaged or has another shape than the first; from here if it is the first of its
            split, else when it is asked for.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"config.data.path={path!r} is not a folder: it must hold {LAYOUT}")
    listed = list(_walk(path, (train_split, held_out_split)))
    return _dataset(
        listed, os.path.join(path, ""), str, lambda file: Path(file).read_bytes(), train_split, held_out_split, transform
    )


def zipped(path: str, *, train_split: str, held_out_split: str, transform: ImageTransform) -> Dataset:
    """The same as `folder`, from zip archives, which are not unpacked.

    Args:
        path: An archive, several separated by commas, or a pattern like "data/cifar10_*.zip". Together they hold what a folder
            would; in each it may lie below one more folder, of any name.
        train_split: As in `folder`.
        held_out_split: As in `folder`.
        transform: As in `folder`.

    Raises:
        FileNotFoundError: If there is no such archive, or no such split in them.
        ValueError: If one is no zip archive, and as in `folder`.
        UnreadableImageError: As in `folder`.
    """
    archives, listed = [], []
    for number, file in enumerate(_archives(path)):
        try:
            archives.append(zipfile.ZipFile(file))
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(f"{file} cannot be opened as a zip archive ({error}): copy or download it again") from error
        listed += _members(archives[-1], number, (train_split, held_out_split))
    lock = threading.Lock()

    def read(member: tuple[int, str]) -> bytes:
        # The archives share one position in each file among all threads.
        with lock:
            return archives[member[0]].read(member[1])

    def name(member: tuple[int, str]) -> str:
        return f"{archives[member[0]].filename}: {member[1]}"

    return _dataset(listed, f"{path}: ", name, read, train_split, held_out_split, transform)


def lazy_images(
    decode: Callable[[int], np.ndarray], name: Callable[[int], str], number: int, event: tuple[int, int, int] | None = None
) -> LazyImages:
    """Images of one shape; whatever is wrong with one is said with its name.

    Args:
        decode: The image of a number below `number`, uint8 [height, width, channels].
        name: What to call it in a message.
        number: How many there are.
        event: The shape that they must have; None: that of the first. The first is decoded here.

    Raises:
        UnreadableImageError: If the first cannot be read or has another shape; of others when they are asked for.
    """

    def read(i: int) -> np.ndarray:
        try:
            image = decode(i)
        except Exception as error:  # decoders raise anything at damaged data
            raise UnreadableImageError(f"{name(i)} cannot be read ({error}): replace it, or take it out of the data") from error
        if event is not None and image.shape != event:
            raise UnreadableImageError(
                f"{name(i)} is {list(image.shape)}, but the first training image is {list(event)} [height, width, channels]: "
                "set config.data.size and config.data.channels to make them all alike"
            )
        return image

    first = read(0).shape
    event = event or first
    return LazyImages(read, number, event)


def decode_image(data: bytes, transform: ImageTransform) -> np.ndarray:
    """The pixels of an image file, uint8 [height, width, channels].

    Raises:
        ValueError: If the file is no image, or one that does not fit the transform; Pillow raises other errors at damaged files.
    """
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("its content is no image of a known format") from None
    if image.mode[0] in "IF":
        raise ValueError(f"its pixels, of mode {image.mode}, have more than 8 bits")
    grey = transform.channels == 1 or (transform.channels == 0 and image.mode in ("1", "L", "LA"))
    image = image.convert("L" if grey else "RGB")
    side = transform.crop or (min(image.size) if transform.size else 0)
    if side > min(image.size):
        raise ValueError(f"its {image.height} x {image.width} pixels are fewer than config.data.crop={side}")
    if side:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if transform.size and image.size != (transform.size, transform.size):
        image = image.resize((transform.size, transform.size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[..., None] if grey else pixels


def read_image(path: str | os.PathLike, transform: ImageTransform) -> np.ndarray:
    """The pixels of one image file, uint8 [height, width, channels].

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableImageError: If it is damaged, or no image that fits the transform.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not a file: it must be an image")
    try:
        return decode_image(Path(path).read_bytes(), transform)
    except (ValueError, OSError, SyntaxError) as error:  # Pillow raises all of these at damaged files
        raise UnreadableImageError(f"{path} cannot be read as an image ({error})") from error


class _Listed(NamedTuple):
    """Something below the folder or in an archive: its path, split into parts, the last "" if a folder; and what reads it."""

    parts: tuple[str, ...]
    source: Any


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith((".png", ".jpg", ".jpeg"))


def _some(names: Iterable[str]) -> str:
    """A few of them, in words."""
    names = sorted(names)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "nothing"


def _walk(path: str, splits: Sequence[str], above: tuple[str, ...] = ()) -> Iterator[_Listed]:
    """What lies in a folder, three folders deep in the splits, one elsewhere."""
    with os.scandir(path) as entries:
        for entry in entries:
            if _hidden(entry.name):
                continue
            parts = (*above, entry.name)
            if not entry.is_dir():
                yield _Listed(parts, entry.path)
                continue
            yield _Listed((*parts, ""), entry.path)
            if parts[0] in splits and len(parts) < 3:
                yield from _walk(entry.path, splits, parts)


def _archives(path: str) -> list[str]:
    """The archives that a path, a list or a pattern names."""
    if os.path.isfile(path):
        return [path]
    found = []
    for pattern in (part.strip() for part in path.split(",")):
        files = [pattern] if os.path.isfile(pattern) else [file for file in sorted(glob.glob(pattern)) if os.path.isfile(file)]
        if not files:
            raise FileNotFoundError(
                f"config.data.path={path!r}: there is no file {pattern!r}; it must name zip archives, separated by commas or as "
                "a pattern with *"
            )
        found += files
    return list(dict.fromkeys(found))


def _members(archive: zipfile.ZipFile, number: int, splits: Sequence[str]) -> list[_Listed]:
    """What an archive holds, without the one folder that may lie above the splits."""
    listed = [_Listed(tuple(name.split("/")), (number, name)) for name in archive.namelist()]
    listed = [member for member in listed if not any(_hidden(part) for part in member.parts)]
    tops = {member.parts[0] for member in listed if len(member.parts) > 1}
    if len(tops) != 1 or tops & set(splits):
        return listed
    return [member._replace(parts=member.parts[1:]) for member in listed if len(member.parts) > 1]


def _dataset(
    listed: list[_Listed],
    above: str,
    name: Callable[[Any], str],
    read: Callable[[Any], bytes],
    train_split: str,
    held_out_split: str,
    transform: ImageTransform,
) -> Dataset:
    """The data set of what was listed; `above` stands before its parts in messages."""
    splits = {"train_split": train_split, "held_out_split": held_out_split}
    train, held_out = (_images_by_class(listed, above, split, f"config.data.{setting}") for setting, split in splits.items())
    classes = sorted(set(train) | set(held_out))
    for split, images, other in ((train_split, train, held_out_split), (held_out_split, held_out, train_split)):
        if missing := [label for label in classes if label and label not in images]:
            lacked = "classes" if "" in images else f"the class{'es' * (len(missing) > 1)} {_some(missing)}"
            raise ValueError(f"{above}{split} lacks {lacked}, which {other} has: both splits must have the same classes, or none")

    def lazy(images: dict[str, list[Any]], event: tuple[int, int, int] | None) -> LazyImages:
        sources = [source for label in classes for source in images[label]]
        return lazy_images(lambda i: decode_image(read(sources[i]), transform), lambda i: name(sources[i]), len(sources), event)

    train_images = lazy(train, None)
    held_out_images = lazy(held_out, train_images.shape[1:])
    if classes == [""]:
        return Dataset(train_images, held_out_images, 256)
    numbers = np.arange(len(classes), dtype=np.int32)
    labels = [np.repeat(numbers, [len(images[label]) for label in classes]) for images in (train, held_out)]
    return Dataset(train_images, held_out_images, 256, *labels, num_classes=len(classes))


def _images_by_class(listed: list[_Listed], above: str, split: str, setting: str) -> dict[str, list[Any]]:
    """What reads the images of a split, in the order of their names, by class; a split without classes has the class ""."""
    inside = [_Listed(entry.parts[1:], entry.source) for entry in listed if entry.parts[0] == split and len(entry.parts) > 1]
    if not split or not inside:
        there = {entry.parts[0] for entry in listed if len(entry.parts) > 1} or {entry.parts[0] for entry in listed}
        raise FileNotFoundError(f"{setting}={split!r}: there is no folder {above}{split}, instead there is {_some(there)}")
    if deep := next((entry for entry in inside if len(entry.parts) > 2), None):
        raise ValueError(f"{above}{split}/{'/'.join(deep.parts)} lies too deep: the layout is {LAYOUT}")
    bare = [entry for entry in inside if len(entry.parts) == 1 and _is_image(entry.parts[0])]
    folders: dict[str, list[_Listed]] = {entry.parts[0]: [] for entry in inside if len(entry.parts) == 2}
    for entry in inside:
        if len(entry.parts) == 2 and entry.parts[1]:
            folders[entry.parts[0]].append(entry)
    if bare and folders:
        raise ValueError(
            f"{above}{split} holds both images, like {bare[0].parts[0]}, and folders, like {min(folders)}: "
            "put every image into the folder of its class, or all of them outside of any"
        )
    groups = folders or {"": bare}
    images = {label: [entry for entry in groups[label] if _is_image(entry.parts[-1])] for label in sorted(groups)}
    for label, group in images.items():
        if not group:
            there = {entry.parts[-1] for entry in (groups[label] if label else inside)} - {""}
            place = f"{above}{split}/{label}".rstrip("/")
            raise ValueError(f"{place} holds no .png, .jpg or .jpeg, but {_some(there)}: add images, or remove the folder")
    return {label: [entry.source for entry in sorted(group, key=lambda entry: entry.parts)] for label, group in images.items()}
