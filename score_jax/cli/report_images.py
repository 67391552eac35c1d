"""Images of a report: sprites of samples and of the states of their chains.

An image becomes a data URI, the bytes of a PNG or WebP file, so that the report is one file.
"""

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from score_jax.cli import images, workdir
from score_jax.reading import load_arrays

SHOWN = 100
"""Largest number of samples in a report."""
COLUMNS = 10
CELL = 64
"""Largest height and width of a sample in a sprite, in pixels; larger images are reduced."""
LOSSLESS_BYTES = 60_000
"""Size up to which an image is stored without loss."""
BROKEN = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)
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
        return _samples(load_arrays(file))
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
    factor = reduction(height, width)
    frames = []
    for state, sigma in zip(states, sigmas, strict=True):
        if are_images:
            pixels = reduced(pixels_of(state, low, high), factor)
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


def pixels_of(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images as uint8; `low` becomes black and `high` white."""
    x = np.nan_to_num((np.asarray(x, np.float32) - low) / (high - low))
    return np.minimum(np.clip(x, 0, 1) * 256, 255).astype(np.uint8)


def reduction(height: int, width: int) -> int:
    """The factor by which images are reduced to fit into `CELL`."""
    return max(1, math.ceil(max(height, width) / CELL))


def reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
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
    files = {
        "png": images.encoded(pixels, format="PNG", optimize=True),
        "webp": images.encoded(pixels, format="WEBP", lossless=True),
    }
    kind = min(files, key=lambda each: len(files[each]))
    if len(files[kind]) > LOSSLESS_BYTES:
        kind, files["webp"] = "webp", images.encoded(pixels, format="WEBP", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode('ascii')}"
