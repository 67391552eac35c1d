"""Images of a report: sprites of samples and chains, nearest training images, restored images.

An image becomes a data URI, the bytes of a PNG or WebP file, so that the report is one file.
"""

import base64
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from score_jax.cli import build, workdir
from score_jax.cli.scaled import ScaledExamples
from score_jax.data.dataset import Dataset
from score_jax.evaluation.neighbors import nearest_neighbors

SHOWN = 100
"""Largest number of samples in a report."""
COLUMNS = 10
CELL = 64
"""Largest height and width of a sample in a sprite, in pixels; larger images are reduced."""
LOSSLESS_BYTES = 60_000
"""Size up to which an image is stored without loss."""
PICTURE_PIXELS = 1000
"""Largest width of a picture of restored images."""
PICTURE_ROWS = 8
"""Largest number of rows of such a picture."""
PICTURES = 8
"""Largest number of pictures of restored images; the newest are shown."""
NEIGHBORS = 5
NEIGHBOR_COLUMNS = 20
HELD_OUT = 300
"""Largest number of held-out examples whose nearest training examples are sought."""
COMPARISONS = 2e9
"""Largest number of values, over all pairs of examples, that are compared with held-out ones."""
TRAINING_VALUES = 200_000_000
"""Largest number of values of the training examples that are compared."""
BROKEN = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""Errors for files that are damaged or not of the expected form."""


class MissingError(Exception):
    """A part of the report that cannot be shown.

    Args:
        sentence: One sentence about the reason.
        command: The command that makes it; "" if there is none.
    """

    def __init__(self, sentence: str, command: str = ""):
        super().__init__(sentence)
        self.sentence, self.command = sentence, command


class Frame(NamedTuple):
    """One position of the slider.

    Attributes:
        image: Data URI of the sprite; "" for points.
        points: Points in the plane, [(x, y), ...]; () for images.
        sigma: Noise level; None for the final samples of a chain whose last level is shown before.
    """

    image: str
    points: tuple[tuple[float, float], ...]
    sigma: float | None


class Neighbors(NamedTuple):
    """Nearest training examples.

    Attributes:
        image: Data URI of the sprite of all of them; "" for points.
        rows: Number of rows of the sprite.
        columns: Number of its columns.
        nearest: Per sample, [position in the sprite, index, class or None, distance] of each.
        ranks: Per sample, the share of held-out examples that are nearer to the training data.
        samples: Median distance of samples and its standard error.
        held_out: Median distance of held-out examples and its standard error.
        near_share: Share of samples nearer than 95 % of held-out examples, and its error.
        num_held_out: Number of held-out examples.
        num_train: Number of training examples that were compared.
        all_train: True if these are all.
    """

    image: str
    rows: int
    columns: int
    nearest: list[list[tuple[int, int, int | None, float]]]
    ranks: list[float]
    samples: tuple[float, float]
    held_out: tuple[float, float]
    near_share: tuple[float, float]
    num_held_out: int
    num_train: int
    all_train: bool


class Samples(NamedTuple):
    """The samples of a run.

    Attributes:
        number: Number of samples in the file.
        step: Training step of the parameters.
        x: The samples that are shown, [shown, *shape].
        labels: Their classes; None for an unconditional network.
        rows: Number of rows of a sprite.
        columns: Number of columns of a sprite.
        height: Height of one sample in pixels, as shown.
        width: Width of one sample in pixels, as shown.
        frames: Positions of the slider; the last one holds the samples.
        scale: (low, high) of the values that are drawn black and white.
        reduced: True if images are shown smaller than they are.
    """

    number: int
    step: int | None
    x: np.ndarray
    labels: list[int] | None
    rows: int
    columns: int
    height: int
    width: int
    frames: list[Frame]
    scale: tuple[float, float]
    reduced: bool

    @property
    def are_images(self) -> bool:
        """True if the samples are images."""
        return self.x.ndim == 4

    @property
    def reach(self) -> float:
        """Half the side of the square in which points are drawn: twice what the samples need."""
        return 2 * float(np.abs(self.x.reshape(len(self.x), -1)[:, :2]).max()) or 1.0


def read_samples(folder: Path) -> Samples:
    """The first samples of samples.npz and the chains that led to them.

    Raises:
        MissingError: If there is no such file, or it is damaged.
    """
    file = Path(folder) / "samples.npz"
    command = workdir.command_line("--workdir", folder, "--mode=sample", "--name=samples")
    if not file.is_file():
        raise MissingError("samples.npz is missing: no samples have been drawn.", command)
    try:
        with np.load(file, allow_pickle=False) as content:
            held = {name: content[name] for name in content.files}
        return _samples(held)
    except BROKEN as error:
        raise MissingError(
            f"samples.npz cannot be read ({type(error).__name__}): draw the samples again.",
            command,
        ) from error


def _samples(held: Mapping[str, np.ndarray]) -> Samples:
    """The samples of the arrays of a file."""
    x = np.asarray(held["samples"], np.float32)
    if x.ndim < 2 or not len(x):
        raise ValueError(f"samples of shape {list(x.shape)}")
    shown = x[:SHOWN]
    are_images = x.ndim == 4
    low, high = float(np.min(x, initial=0.0)), float(np.max(x, initial=1.0))

    # The chain in the unit of the samples, with these as its last frame.
    states, sigmas = [], []
    if "chain" in held:
        chain = np.asarray(held["chain"])
        shown = shown[: chain.shape[1]]
        chain = chain[:, : len(shown)]
        states = list(chain.astype(np.float32) / 255 if chain.dtype == np.uint8 else chain)
        sigmas = [float(sigma) for sigma in held["chain_sigma"]]
    ends_there = bool(states) and np.abs(states[-1] - shown).max() < 1 / 128
    if ends_there:
        states[-1] = shown
    else:
        states, sigmas = [*states, shown], [*sigmas, None]

    columns = min(COLUMNS, len(shown))
    height, width = x.shape[1:3] if are_images else (1, 1)
    factor = max(1, math.ceil(max(height, width) / CELL))
    frames = []
    for state, sigma in zip(states, sigmas, strict=True):
        if are_images:
            pixels = _reduced(_pixels(state, low, high), factor)
            frames.append(Frame(image_uri(sheet(pixels, columns)), (), sigma))
        else:
            frames.append(Frame("", _in_the_plane(state), sigma))
    labels = held.get("labels")
    return Samples(
        number=len(x),
        step=int(held["step"]) if "step" in held else None,
        x=shown,
        labels=None if labels is None else [int(label) for label in labels[: len(shown)]],
        rows=-(-len(shown) // columns),
        columns=columns,
        height=-(-height // factor),
        width=-(-width // factor),
        frames=frames,
        scale=(low, high),
        reduced=factor > 1,
    )


def _pixels(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images as uint8; `low` becomes black and `high` white."""
    x = np.nan_to_num((np.asarray(x, np.float32) - low) / (high - low))
    return np.minimum(np.clip(x, 0, 1) * 256, 255).astype(np.uint8)


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Images [number, height, width, channels] reduced by a whole factor, by means of squares."""
    if factor == 1:
        return pixels
    number, height, width, channels = pixels.shape
    rows, columns = -height % factor, -width % factor
    padded = np.pad(pixels, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge")
    blocks = padded.reshape(
        number, padded.shape[1] // factor, factor, padded.shape[2] // factor, factor, channels
    )
    return blocks.mean(axis=(2, 4)).astype(np.uint8)


def _in_the_plane(x: np.ndarray) -> tuple[tuple[float, float], ...]:
    """The first two coordinates of points; the second is 0 if there is one only."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    heights = flat[:, 1] if flat.shape[1] > 1 else np.zeros(len(flat))
    return tuple(zip(flat[:, 0].tolist(), heights.tolist(), strict=True))


def sheet(pixels: np.ndarray, columns: int) -> np.ndarray:
    """Lays images [number, height, width, channels] out in rows without gaps, as one image."""
    number, height, width, channels = pixels.shape
    if channels != 3:
        pixels, channels = pixels[..., :1], 1
    rows = -(-number // columns)
    whole = np.zeros((rows * columns, height, width, channels), np.uint8)
    whole[:number] = pixels
    grid = whole.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def image_uri(pixels: np.ndarray) -> str:
    """A uint8 image [height, width, 1 or 3] as the data URI of a PNG or WebP file.

    The smaller of both without loss, or, above `LOSSLESS_BYTES`, WebP with loss.
    """
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    files = {
        "png": _encoded(picture, format="PNG", optimize=True),
        "webp": _encoded(picture, format="WEBP", lossless=True),
    }
    kind = min(files, key=lambda each: len(files[each]))
    if len(files[kind]) > LOSSLESS_BYTES:
        kind, files["webp"] = "webp", _encoded(picture, format="WEBP", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode('ascii')}"


def _encoded(picture: Image.Image, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **settings)
    return buffer.getvalue()


def open_data(settings: Mapping[str, Any]) -> Dataset:
    """The data set of a config, with its labels even if the network does not use them.

    Raises:
        MissingError: If the data are not at hand.
    """
    try:
        return build.open_source(settings)
    except (ValueError, OSError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise MissingError(
            f"Nearest training examples are left out, because the data are not at hand ({reason})."
        ) from error


def find_neighbors(
    samples: Samples, settings: Mapping[str, Any], data: Dataset | None
) -> Neighbors:
    """The training examples nearest to the samples, and to held-out examples as the yardstick.

    Args:
        samples: The samples.
        settings: The config's section `data`.
        data: The data set; None opens it.

    Raises:
        MissingError: If the data are not at hand, or of another shape.
    """
    data = open_data(settings) if data is None else data
    shape, size = data.train.shape[1:], int(np.prod(data.train.shape[1:]))
    if shape != samples.x.shape[1:]:
        raise MissingError(
            f"Nearest training examples are left out, because those at hand are {list(shape)}, "
            f"but the samples {list(samples.x.shape[1:])}."
        )

    # Compare with training examples, evenly spaced if there are too many.
    number = min(len(data.train), max(1, TRAINING_VALUES // size))
    index = np.linspace(0, len(data.train) - 1, number).astype(np.int64)
    scaling = (data.num_values, settings["dequantize"])
    train = ScaledExamples(data.train, *scaling, index)
    affordable = max(SHOWN, int(COMPARISONS // (number * size)))
    num_held_out = min(len(data.held_out), HELD_OUT, affordable)
    if not num_held_out:
        raise MissingError(
            "Nearest training examples are left out: there are no held-out examples."
        )
    held_out = ScaledExamples(data.held_out, *scaling)[:num_held_out]
    found, distance = nearest_neighbors(samples.x, train, min(NEIGHBORS, number))
    _, yardstick = nearest_neighbors(held_out, train, 1)

    # One sprite holds every training example once.
    unique, position = np.unique(found, return_inverse=True)
    position = position.reshape(found.shape)
    image, columns = "", min(NEIGHBOR_COLUMNS, len(unique))
    if samples.are_images:
        factor = max(1, math.ceil(max(shape[:2]) / CELL))
        pixels = _reduced(_pixels(train.at(unique), *samples.scale), factor)
        image = image_uri(sheet(pixels, columns))
    labels = data.train_labels
    nearest = [
        [
            (
                int(position[i, j]),
                int(index[found[i, j]]),
                None if labels is None else int(labels[index[found[i, j]]]),
                float(distance[i, j]),
            )
            for j in range(found.shape[1])
        ]
        for i in range(len(found))
    ]
    closest, yardstick = distance[:, 0], yardstick[:, 0]
    share = float(np.mean(closest < np.quantile(yardstick, 0.05)))
    return Neighbors(
        image=image,
        rows=-(-len(unique) // columns),
        columns=columns,
        nearest=nearest,
        ranks=[float(np.mean(yardstick < each)) for each in closest],
        samples=median_with_error(closest),
        held_out=median_with_error(yardstick),
        near_share=(share, math.sqrt(max(share * (1 - share), 0.05 * 0.95) / len(closest))),
        num_held_out=num_held_out,
        num_train=number,
        all_train=number == len(data.train),
    )


def median_with_error(values: np.ndarray) -> tuple[float, float]:
    """The median and its standard error, from the order statistics 1.96 sqrt(n) / 2 around it."""
    ordered = np.sort(values)
    number = len(ordered)
    reach = 1.96 * math.sqrt(number) / 2
    low = ordered[max(0, math.floor(number / 2 - reach))]
    high = ordered[min(number - 1, math.ceil(number / 2 + reach))]
    return float(np.median(ordered)), float(high - low) / (2 * 1.96)


class Restoration(NamedTuple):
    """Images that were completed or restored in a workdir.

    Attributes:
        name: Stem of the files.
        title: The task, in words.
        columns: The columns of the picture, in words.
        image: Data URI of the picture; "" if there is none.
        width: Its width in pixels.
        height: Its height in pixels.
        cut: True if it has more rows than are shown.
        values: (key, value, standard error or None) of each number.
        settings: Further settings, (name, value).
    """

    name: str
    title: str
    columns: str
    image: str
    width: int
    height: int
    cut: bool
    values: list[tuple[str, float, float | None]]
    settings: list[tuple[str, Any]]


def read_restorations(folder: Path) -> list[Restoration]:
    """The newest restored and completed images of a workdir.

    Raises:
        MissingError: If there are none.
    """
    files = sorted(Path(folder).glob("*.npz"), key=lambda file: -file.stat().st_mtime)
    found = []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as content:
                if "settings" in content.files and {"completions", "misfit"} & {*content.files}:
                    found.append(_restoration(file, {n: content[n] for n in content.files}))
        except BROKEN:
            continue  # Damaged, or another kind of file.
        if len(found) == PICTURES:
            break
    if not found:
        raise MissingError(
            "No inverse problems have been solved in this workdir.",
            workdir.command_line("--workdir", folder, "--mode=restore", "--task=superresolve:2"),
        )
    return found


def _restoration(file: Path, held: Mapping[str, np.ndarray]) -> Restoration:
    settings = json.loads(str(held["settings"]))
    originals = np.asarray(held["originals"], np.float64)
    values: list[tuple[str, float, float | None]] = [("images", len(originals), None)]
    restored = "misfit" in held
    ends = np.asarray(held["samples" if restored else "completions"], np.float64)
    values.append(("completions", ends.shape[1], None))
    weight = np.ones(originals.shape[1:])
    if restored:
        title = f"Restoration: {settings['task']}, {settings['posterior']}"
        columns = "original, measurements, mean, two standard deviations, samples"
        values.append(("noise", float(settings["noise"]), None))
        values.append(("misfit", *_root_mean(np.mean(held["misfit"] ** 2, axis=1))))
    else:
        weight = np.broadcast_to(~held["mask"].astype(bool), weight.shape).astype(float)
        mask = settings.get("mask") or "right"
        title = f"Inpainting: {mask}, {settings.get('posterior', 'annealed Langevin dynamics')}"
        columns = "original, known part, completions"
    if weight.sum():
        axes = tuple(range(1, originals.ndim))
        squares = weight * (ends.mean(axis=1) - originals) ** 2
        values.append(("rmse", *_root_mean(squares.sum(axes) / weight.sum())))
        if ends.shape[1] > 1:
            squares = weight * ends.var(axis=1, ddof=1)
            values.append(("std", *_root_mean(squares.sum(axes) / weight.sum())))
    shown = {name: settings.get(name) for name in ("step", "seed", "label", "image")}
    picture = file.with_suffix(".png")
    rows = min(len(originals), 20)  # Of the picture, as the modes write it.
    shape = ("", 0, 0) if not picture.is_file() else _picture(picture, PICTURE_ROWS / rows)
    listed = [(name, value) for name, value in shown.items() if value is not None]
    cut = rows > PICTURE_ROWS
    return Restoration(file.stem, title, columns, *shape, cut, values, listed)


def _root_mean(squares: np.ndarray) -> tuple[float, float | None]:
    """The root of a mean over images, and its standard error (None for one image)."""
    root = math.sqrt(float(np.mean(squares)))
    if len(squares) < 2:
        return root, None
    error = float(np.std(squares, ddof=1)) / math.sqrt(len(squares))
    return root, error / (2 * root) if root else 0.0


def _picture(path: Path, share: float) -> tuple[str, int, int]:
    """The upper share of a picture, small, as a data URI with its width and height."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    if share < 1:
        picture = picture.crop((0, 0, picture.width, math.ceil(share * picture.height)))
    if picture.width > PICTURE_PIXELS:
        height = max(1, round(picture.height * PICTURE_PIXELS / picture.width))
        picture = picture.resize((PICTURE_PIXELS, height), Image.Resampling.BOX)
    return image_uri(np.asarray(picture)), picture.width, picture.height
