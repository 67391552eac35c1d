"""Images in [0, 1] as files: grids, animations and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def grid(images: np.ndarray, columns: int, pixels: int = 720) -> np.ndarray:
    """Lays images out in rows, enlarged by a whole factor so that one can see them.

    Args:
        images: [number, height, width, channels]; values outside [0, 1] are clipped. Three channels are drawn as colors, of
            any other number the first, in grey.
        columns: Images per row.
        pixels: Width that the grid should reach, in pixels.

    Returns:
        uint8 [height, width, 3], with white lines between the images.
    """
    number, height, width, channels = images.shape
    images = images if channels == 3 else images[..., :1]
    factor = max(1, pixels // (columns * width))
    # Both v / 255 and (v + 1/2) / 256 give v back.
    values = np.minimum(np.clip(np.nan_to_num(images), 0, 1) * 256, 255).astype(np.uint8)
    values = np.broadcast_to(values, (number, height, width, 3)).repeat(factor, 1).repeat(factor, 2)
    gap = max(1, factor // 4)
    rows = -(-number // columns)
    canvas = np.full((rows * (height * factor + gap) + gap, columns * (width * factor + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(values):
        top = gap + i // columns * (height * factor + gap)
        left = gap + i % columns * (width * factor + gap)
        canvas[top : top + height * factor, left : left + width * factor] = image
    return canvas


def scatter(points: np.ndarray, pixels: int = 720, extent: float = 8.0) -> np.ndarray:
    """Draws points of a plane.

    Args:
        points: [number, 2]; of more coordinates, the first two.
        pixels: Width and height of the picture.
        extent: The axes go from -extent to extent.

    Returns:
        uint8 [pixels, pixels, 3].
    """
    figure, (axes,) = _panels(1, size=pixels / 120)
    _draw_points(axes, points, extent)
    return _rendered(figure)


def scatters(points: Mapping[str, np.ndarray], extent: float) -> np.ndarray:
    """Draws named sets of points [number, 2] side by side, as `scatter` does one; uint8 [height, width, 3]."""
    figure, panels = _panels(len(points))
    for axes, (name, found) in zip(panels, points.items(), strict=True):
        _draw_points(axes, found, extent)
        axes.set_title(name)
    return _rendered(figure)


def fields(at: np.ndarray, fields: Mapping[str, np.ndarray], density: np.ndarray, extent: float) -> np.ndarray:
    """Draws named vector fields side by side over a density.

    Args:
        at: Where the vectors stand, [number, 2].
        fields: The vectors, [number, 2] each.
        density: On a square grid, [rows, columns], lowest row first.
        extent: The axes, and the grid, go from -extent to extent.

    Returns:
        uint8 [height, width, 3].
    """
    figure, panels = _panels(len(fields))
    for axes, (name, field) in zip(panels, fields.items(), strict=True):
        axes.imshow(density, origin="lower", extent=(-extent, extent, -extent, extent), cmap="Oranges")
        axes.quiver(at[:, 0], at[:, 1], field[:, 0], field[:, 1], width=0.003)
        axes.set_title(name)
    return _rendered(figure)


def curves_apart(curves: Mapping[str, np.ndarray], xlabel: str, ylabel: str) -> np.ndarray:
    """Draws named curves, one value per step, each in a panel with an axis of its own; uint8 [height, width, 3]."""
    figure, panels = _panels(len(curves))
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        axes.plot(np.arange(1, len(values) + 1), values, linewidth=0.8)
        axes.set_yscale("symlog", linthresh=float(np.median(np.abs(values))) or 1.0)
        axes.set_title(name)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
    return _rendered(figure)


def _panels(number: int, size: float = 4.0) -> tuple[Figure, Sequence | np.ndarray]:
    figure = Figure(figsize=(size * number, size), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, number, squeeze=False)[0]


def _draw_points(axes, points: np.ndarray, extent: float) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5, linewidths=0)
    axes.set_xlim(-extent, extent)
    axes.set_ylim(-extent, extent)
    axes.set_aspect("equal")


def _rendered(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def save_png(path: Path, picture: np.ndarray) -> None:
    """Writes a uint8 picture [height, width, 3]."""
    Image.fromarray(picture).save(path, format="PNG", optimize=True)


def save_webp(path: Path, pictures: Sequence[np.ndarray], milliseconds: int = 180, last: int = 2500) -> None:
    """Writes an endless lossless animation; the last picture stays for `last` milliseconds."""
    frames = [Image.fromarray(picture) for picture in pictures]
    durations = [milliseconds] * (len(frames) - 1) + [last]
    frames[0].save(path, format="WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, lossless=True)


def save_curves(path: Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], xlabel: str, ylabel: str) -> None:
    """Draws named curves (x values, y values) into one PNG; the y axis leaves out the first tenth's peaks."""
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    late = []
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, linewidth=1.2)
        late += [v for u, v in zip(x, y, strict=True) if u >= 0.1 * max(x)]
    if late:
        margin = 0.15 * (max(late) - min(late)) or 1.0
        axes.set_ylim(min(late) - margin, max(late) + 3 * margin)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")
