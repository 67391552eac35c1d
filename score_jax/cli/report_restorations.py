"""Inverse problems that were solved in a workdir, for a report."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from score_jax.cli import workdir
from score_jax.cli.report_images import BROKEN, MissingError, image_uri
from score_jax.data.files import FORMATS
from score_jax.reading import load_arrays

PIXELS = 1000
"""Largest width of a picture."""
ROWS = 8
"""Largest number of rows of a picture."""
NUMBER = 8
"""Largest number of files; the newest are shown."""


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
    # Hidden files are temporary ones of processes that write beside this one.
    files = [file for file in Path(folder).glob("*.npz") if not file.name.startswith(".")]
    files.sort(key=_time, reverse=True)
    found = []
    for file in files:
        try:
            held = load_arrays(file, _if_restored)
            if held:
                found.append(_restoration(file, held))
        except BROKEN:
            continue  # Damaged, or another kind of file.
        if len(found) == NUMBER:
            break
    if not found:
        raise MissingError(
            "No inverse problems have been solved in this workdir.",
            workdir.command_line("--workdir", folder, "--mode=restore", "--task=superresolve:2"),
        )
    return found


def _time(file: Path) -> float:
    """When a file was last written; 0 if it has vanished."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _if_restored(names: list[str]) -> list[str]:
    """All names of a file of restored or completed images; none of another file."""
    return names if "settings" in names and {"completions", "misfit"} & {*names} else []


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
    rows = min(len(originals), 20)  # Rows of the picture that the modes write
    shape = ("", 0, 0) if not picture.is_file() else _picture(picture, ROWS / rows)
    listed = [(name, value) for name, value in shown.items() if value is not None]
    cut = rows > ROWS
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
    with Image.open(path, formats=FORMATS) as picture:
        picture = picture.convert("RGB")
    if share < 1:
        picture = picture.crop((0, 0, picture.width, math.ceil(share * picture.height)))
    if picture.width > PIXELS:
        height = max(1, round(picture.height * PIXELS / picture.width))
        picture = picture.resize((PIXELS, height), Image.Resampling.BOX)
    return image_uri(np.asarray(picture)), picture.width, picture.height
