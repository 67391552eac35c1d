"""The files of samples: arrays, a picture of the samples, an animation of the chains."""

import contextlib
import dataclasses
import json
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.cli import images, workdir
from score_jax.cli.run import Run, output_settings
from score_jax.cli.settings import completed
from score_jax.cli.table import WHOLE_CHAIN
from score_jax.progress import announce
from score_jax.samplers.loop import Trajectory

NAMES = ("method", "num_frames")
GRID = 100
"""Largest number of chains in the picture of the samples, ten by ten."""


def settings_of(
    run: Run, number: int, label: int | None = None, step: int | None = None
) -> dict[str, Any]:
    """The settings that decide which samples a network gives.

    Args:
        run: The run.
        number: Number of samples.
        label: Class of all samples; None if they have the classes of the data.
        step: Training step of the parameters; None is that of the newest checkpoint.
    """
    step = run.step if step is None else step
    return output_settings(run.config, step, NAMES, num_samples=number, label=label)


def saved_settings(file: Path) -> dict[str, Any] | None:
    """The settings of the samples in a file; None if there is no such file or it is damaged."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as content:
            if "settings" in content.files:
                return json.loads(str(content["settings"]))
            # Earlier versions saved the config, and drew as many samples as it says.
            config = completed(json.loads(str(content["config"])))
            number = config["sampling"]["num_samples"]
            step = int(content["step"])
            return output_settings(config, step, NAMES, num_samples=number, label=None)
    except (KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def describe(run: Run, settings: dict[str, Any]) -> str:
    """One line about the samples to be drawn."""
    steps = f"{len(run.sigmas)} levels x {settings['num_steps']} steps"
    if settings["method"] in WHOLE_CHAIN:
        steps = f"{settings['num_steps']} steps over {len(run.sigmas)} levels"
    step_size = "" if run.step_size is None else f", step size {run.step_size:.3g}"
    return (
        f"samples {settings['num_samples']} with the parameters of step {settings['step']}: "
        f"{steps} ({settings['method']}){step_size}"
    )


class Frames:
    """A callback of `sampling.sample` that keeps the snapshots of the chains in the picture."""

    def __init__(self):
        self._kept: list[np.ndarray] = []
        self._number = 0

    def __call__(self, first: int, trajectory: Trajectory) -> None:
        """Keeps the snapshots of chains below `GRID`."""
        if first < GRID:
            self._kept.append(trajectory.snapshots[:, : GRID - first])

    def states(self) -> np.ndarray:
        """Intermediate states, [snapshots, chains, *shape]."""
        return np.concatenate(self._kept, axis=1)


@dataclasses.dataclass
class Clock:
    """Seconds that a block took."""

    seconds: float = 0.0


@contextlib.contextmanager
def timed() -> Iterator[Clock]:
    """Measures the time of a block."""
    clock, begun = Clock(), time.monotonic()
    yield clock
    clock.seconds = time.monotonic() - begun


def write(
    run: Run,
    name: str,
    x: np.ndarray,
    labels: np.ndarray | None,
    frames: Frames,
    settings: dict[str, Any],
    seconds: float,
) -> None:
    """Writes samples as `name`.npz and `name`.png, and the chains' way as an animation.

    Args:
        run: The run.
        name: Name of the files. The animation of "samples" is chain.webp.
        x: Final states, [number, *shape].
        labels: Classes of the samples; None for an unconditional network.
        frames: Intermediate states.
        settings: As in `settings_of`.
        seconds: Time that sampling took.
    """
    x = run.to_images(x)
    arrays = {"samples": x} if labels is None else {"samples": x, "labels": labels}
    with workdir.replacing(run.folder / f"{name}.npz") as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            **arrays,
            seed=settings["seed"],
            step=settings["step"],
            config=json.dumps(run.config),
            settings=json.dumps(settings),
        )
    picture = run.picture(x[:GRID])
    with workdir.replacing(run.folder / f"{name}.png") as path:
        images.save_png(path, picture)
    written = [f"{name}.npz", f"{name}.png"]

    if settings["num_frames"]:
        animation = "chain.webp" if name == "samples" else f"{name}.webp"
        pictures = [run.picture(run.to_images(states)) for states in frames.states()]
        with workdir.replacing(run.folder / animation) as path:
            images.save_webp(path, [*pictures, picture])
        written.append(animation)
    if name == "samples":
        _add_to_log(run, picture, settings["step"], seconds)
    announce(f"wrote {', '.join(written)} to {run.folder} ({seconds:.1f} s)")


def _add_to_log(run: Run, picture: np.ndarray, step: int, seconds: float) -> None:
    """Adds the run's own samples to metrics.json and to TensorBoard's events."""
    import tensorboardX

    log = workdir.read_json(run.folder / "metrics.json") or {}
    log.setdefault("seconds", {})["sample"] = round(seconds, 3)
    workdir.write_json(run.folder / "metrics.json", log)
    with tensorboardX.SummaryWriter(str(run.folder), purge_step=step + 1) as writer:
        writer.add_image("samples", picture, step, dataformats="HWC")
