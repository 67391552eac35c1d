"""Pictures of samples: grids of images, scatter plots of points, curves, and their files.

A picture is an array, uint8 [height, width, 3]. Matplotlib is imported when it is used.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

DPI = 120


def grid(images: np.ndarray, columns: int, pixels: int = 720) -> np.ndarray:
    """Lays out images in rows, enlarged by a whole factor.

    Args:
        images: [number, height, width, channels]; values are clipped to [0, 1]. Three channels are
            drawn as colours; of any other number, the first is drawn in grey.
        columns: Number of images per row.
        pixels: Approximate width of the grid, in pixels.

    Returns:
        uint8 [height, width, 3], with white lines between the images.
    """
    number, height, width, channels = images.shape
    if channels != 3:
        images = images[..., :1]

    # Quantise so that both v / 255 and (v + 1/2) / 256 map back to v.
    values = np.minimum(np.clip(np.nan_to_num(images), 0, 1) * 256, 255).astype(np.uint8)
    values = np.broadcast_to(values, (number, height, width, 3))

    # Enlarge every pixel to a square, and leave a gap that grows with it.
    factor = max(1, pixels // (columns * width))
    gap = max(1, factor // 4)
    values = values.repeat(factor, axis=1).repeat(factor, axis=2)

    # Copy the images into their places on a white canvas.
    rows = -(-number // columns)
    cell_height = height * factor + gap
    cell_width = width * factor + gap
    canvas = np.full((rows * cell_height + gap, columns * cell_width + gap, 3), 255, np.uint8)
    for i, image in enumerate(values):
        top = gap + i // columns * cell_height
        left = gap + i % columns * cell_width
        canvas[top : top + height * factor, left : left + width * factor] = image
    return canvas


def scatter(points: np.ndarray, pixels: int = 720, extent: float = 8.0) -> np.ndarray:
    """Draws points in the plane.

    Args:
        points: [number, coordinates]; the first two coordinates are drawn, a single one is drawn
            along the horizontal axis.
        pixels: Width and height of the picture.
        extent: Both axes run from -extent to extent.

    Returns:
        uint8 [pixels, pixels, 3].
    """
    figure, (axes,) = _panels(1, size=pixels / DPI)
    _draw_points(axes, points, extent)
    return _rendered(figure)


def scatters(points: Mapping[str, np.ndarray], extent: float) -> np.ndarray:
    """Draws named sets of points side by side, as `scatter` does; uint8 [height, width, 3]."""
    figure, panels = _panels(len(points))
    for axes, (name, found) in zip(panels, points.items(), strict=True):
        _draw_points(axes, found, extent)
        axes.set_title(name)
    return _rendered(figure)


def fields(
    positions: np.ndarray,
    vectors: Mapping[str, np.ndarray],
    density: np.ndarray,
    extent: float,
) -> np.ndarray:
    """Draws named vector fields side by side over a density.

    Args:
        positions: Positions of the vectors, [number, 2].
        vectors: The vectors of each field, [number, 2].
        density: Density on a square grid, [rows, columns], lowest row first.
        extent: The axes, and the grid, run from -extent to extent.

    Returns:
        uint8 [height, width, 3].
    """
    figure, panels = _panels(len(vectors))
    corners = (-extent, extent, -extent, extent)
    for axes, (name, field) in zip(panels, vectors.items(), strict=True):
        axes.imshow(density, origin="lower", extent=corners, cmap="Oranges")
        axes.quiver(positions[:, 0], positions[:, 1], field[:, 0], field[:, 1], width=0.003)
        axes.set_title(name)
    return _rendered(figure)


def curves_apart(curves: Mapping[str, np.ndarray], xlabel: str, ylabel: str) -> np.ndarray:
    """Draws named curves, one value per step, in panels of their own; uint8 [height, width, 3]."""
    figure, panels = _panels(len(curves))
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        axes.plot(np.arange(1, len(values) + 1), values, linewidth=0.8)
        axes.set_yscale("symlog", linthresh=float(np.median(np.abs(values))) or 1.0)
        axes.set_title(name)
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.grid(alpha=0.3)
    return _rendered(figure)


def save_curves(
    path: Path,
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    xlabel: str,
    ylabel: str,
) -> None:
    """Draws named curves (x values, y values) into one PNG file.

    The y axis is fitted to the values after the first tenth of the x axis, so that the steep
    beginning does not flatten the rest.
    """
    figure = _figure(7.0, 4.2)
    axes = figure.add_subplot()
    late = []
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, linewidth=1.2)
        late += [value for step, value in zip(x, y, strict=True) if step >= 0.1 * max(x)]
    if late:
        margin = 0.15 * (max(late) - min(late)) or 1.0
        axes.set_ylim(min(late) - margin, max(late) + 3 * margin)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, format="png")


class Differences(NamedTuple):
    """Losses of several runs less those of the first, for one objective.

    Attributes:
        name: Name of the objective.
        sigmas: Noise levels, decreasing; fewer than two draw no curves.
        curves: Name of the run -> (difference, low, high) at each level.
        totals: Name of the run -> (difference, low, high) of its total.
        values: Name of every run -> (total, standard error).
    """

    name: str
    sigmas: Sequence[float]
    curves: Mapping[str, Sequence[tuple[float, float, float]]]
    totals: Mapping[str, tuple[float, float, float]]
    values: Mapping[str, tuple[float, float]]


def differences(panels: Sequence[Differences], first: str, title: str) -> np.ndarray:
    """Draws losses relative to those of the first run, one row per objective.

    Args:
        panels: The objectives.
        first: Name of the first run.
        title: Title of the picture.

    Returns:
        uint8 [height, width, 3].
    """
    figure = _figure(10.0, 3.6 * len(panels) + 0.4)
    rows = figure.subplots(len(panels), 2, squeeze=False, width_ratios=(2, 1))
    for (left, right), panel in zip(rows, panels, strict=True):
        if len(panel.sigmas) > 1:
            _draw_curves_apart(left, panel)
            left.set_ylabel(f"{panel.name} loss, less that of {first}")
        else:
            left.remove()
        names = list(panel.values)
        right.axhline(0.0, color="black", linewidth=0.8)
        for index, name in enumerate(names[1:], 1):
            _draw_interval(right, [index], [panel.totals[name]], index, name)
        labels = [
            f"{name}\n{value:.4g}\n± {error:.2g}" for name, (value, error) in panel.values.items()
        ]
        right.set_xticks(range(len(names)), labels)
        right.set_xlim(-0.5, len(names) - 0.5)
        right.set_title(f"{panel.name}: total, less that of {first}")
        _spread_axis(right, list(panel.totals.values()))
    figure.suptitle(title, fontsize=9)
    return _rendered(figure)


def _draw_curves_apart(axes, panel: Differences) -> None:
    """Draws differences over sigma, the points of different runs a little apart."""
    axes.axhline(0.0, color="black", linewidth=0.8)
    sigmas = np.asarray(panel.sigmas)
    apart = 0.15 * np.log(sigmas[0] / sigmas[-1]) / len(sigmas)
    for index, (name, curve) in enumerate(panel.curves.items(), 1):
        shift = np.exp(apart * (index - (len(panel.curves) + 1) / 2))
        _draw_interval(axes, sigmas * shift, curve, index, name)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.set_xlabel("sigma")
    axes.set_title("at each noise level, with simultaneous intervals")
    axes.legend(frameon=False)
    _spread_axis(axes, [each for curve in panel.curves.values() for each in curve])


def _draw_interval(
    axes, x, points: Sequence[tuple[float, float, float]], index: int, name
) -> None:
    values, low, high = np.asarray(points).T
    bars = np.stack([values - low, high - values])
    colour = f"C{(index - 1) % 10}"
    axes.errorbar(x, values, bars, fmt="o", markersize=3, capsize=2, color=colour, label=name)


def _spread_axis(axes, points: Sequence[tuple[float, float, float]]) -> None:
    """Makes the y axis logarithmic beyond the width of the intervals, if they are far apart."""
    values, low, high = np.asarray(points).T
    width = float(np.median(high - low))
    if width and np.abs(values).max() > 20 * width:
        axes.set_yscale("symlog", linthresh=2 * width)
        lowest, highest = min(low.min(), 0.0), max(high.max(), 0.0)
        axes.set_ylim(lowest - max(width, -0.5 * lowest), highest + max(width, 0.5 * highest))
    axes.grid(alpha=0.3)


def save_png(path: Path, picture: np.ndarray) -> None:
    """Writes a picture as a PNG file."""
    Image.fromarray(picture).save(path, format="PNG", optimize=True)


def encoded(pixels: np.ndarray, **settings) -> bytes:
    """The content of a file with an image, uint8 [height, width, 1 or 3].

    Args:
        pixels: The image.
        **settings: `format` and its options, as in `PIL.Image.Image.save`.
    """
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, **settings)
    return file.getvalue()


def save_webp(
    path: Path, pictures: Sequence[np.ndarray], milliseconds: int = 180, last: int = 2500
) -> None:
    """Writes an endless lossless animation.

    Args:
        path: Its file.
        pictures: The frames.
        milliseconds: Duration of every frame but the last.
        last: Duration of the last frame, in milliseconds.
    """
    frames = [Image.fromarray(picture) for picture in pictures]
    frames[0].save(
        path,
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=[milliseconds] * (len(frames) - 1) + [last],
        loop=0,
        lossless=True,
    )


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(number: int, size: float = 4.0):
    figure = _figure(size * number, size)
    return figure, figure.subplots(1, number, squeeze=False)[0]


def _draw_points(axes, points: np.ndarray, extent: float) -> None:
    heights = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    axes.scatter(points[:, 0], heights, s=4, alpha=0.5, linewidths=0)
    axes.set_xlim(-extent, extent)
    axes.set_ylim(-extent, extent)
    axes.set_aspect("equal")


def _rendered(figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
