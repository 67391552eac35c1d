"""The files of samples: arrays, a picture of the samples, an animation of the chains."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_jax import sampling
from score_jax.cli import images, workdir
from score_jax.cli.run import Run, naming_step_size, output_settings
from score_jax.cli.settings import completed
from score_jax.cli.table import WHOLE_CHAIN
from score_jax.evaluation.diagnostics import diagnose, warnings_of
from score_jax.progress import announce
from score_jax.reading import load_arrays
from score_jax.samplers.loop import Trajectory, snapshot_levels
from score_jax.typing import Params

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
        own = ("settings", "config", "step")
        content = load_arrays(file, lambda names: [name for name in names if name in own])
        if "settings" in content:
            settings = json.loads(str(content["settings"]))
            return settings if isinstance(settings, dict) else None
        # Earlier versions saved the config, and drew as many samples as it says.
        config = completed(json.loads(str(content["config"])))
        number = config["sampling"]["num_samples"]
        step = int(content["step"])
        return output_settings(config, step, NAMES, num_samples=number, label=None)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
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


class Drawn(NamedTuple):
    """Samples and what their chains recorded.

    Attributes:
        x: Final states, [number, *shape].
        labels: Classes of the samples; None for an unconditional network.
        frames: Snapshots of the first `GRID` chains, [snapshots, chains, *shape].
        frame_sigmas: Noise level at each snapshot; None if the sampler does not say.
        diagnostics: One row per level, as `evaluation.diagnostics.diagnose` makes them; None if
            the sampler takes no observer, or nothing is known of the data.
        seconds: Time that sampling took.
    """

    x: np.ndarray
    labels: np.ndarray | None
    frames: np.ndarray
    frame_sigmas: np.ndarray | None
    diagnostics: list[dict[str, Any]] | None
    seconds: float


def draw(run: Run, score_fn: Callable[..., Any], number: int, labels: np.ndarray | None) -> Drawn:
    """Draws samples, and diagnoses their chains in the same program.

    Raises:
        FloatingPointError: If a chain is not finite.
    """
    frames, observed = [], []

    def keep(first: int, trajectory: Trajectory) -> None:
        if first < GRID:
            frames.append(trajectory.snapshots[:, : GRID - first])
        observed.append(trajectory.observed)

    begun = time.monotonic()
    with naming_step_size(run):
        x = sampling.sample(
            score_fn,
            run.sigmas,
            label=labels,
            callbacks=[keep],
            **run.sampling(number),
        )
    seconds = time.monotonic() - begun
    diagnostics = sigmas = None
    if run.observer is not None:
        diagnostics = diagnose(observed, run.moments, int(np.prod(run.shape)))
        slots = snapshot_levels(len(diagnostics), len(frames[0]))
        sigmas = np.float32([diagnostics[level]["sigma"] for level in slots])
    return Drawn(x, labels, np.concatenate(frames, axis=1), sigmas, diagnostics, seconds)


def draw_quietly(run: Run, params: Params, number: int) -> np.ndarray:
    """Final states of the first chains, by the program of `draw`, without progress."""
    return sampling.sample(
        run.score_fn(params),
        run.sigmas,
        label=run.labels(number),
        progress=False,
        **run.sampling(number),
    )


def write(run: Run, name: str, drawn: Drawn, settings: dict[str, Any]) -> None:
    """Writes samples as `name`.npz and `name`.png, and the chains' way as an animation.

    The diagnostics of "samples" are written to diagnostics.json; those of other names are only
    checked. One sentence says if they are far from those of a healthy run.

    Args:
        run: The run.
        name: Name of the files. The animation of "samples" is chain.webp.
        drawn: The samples.
        settings: As in `settings_of`.
    """
    x, labels = run.to_images(drawn.x), drawn.labels
    arrays = {"samples": x} if labels is None else {"samples": x, "labels": labels}
    if len(drawn.frames):
        chain = run.to_images(drawn.frames)
        arrays["chain"] = np.uint8(np.round(255 * chain)) if run.has_pixels else chain
    if drawn.frame_sigmas is not None:
        arrays["chain_sigma"] = drawn.frame_sigmas
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
        pictures = [run.picture(run.to_images(states)) for states in drawn.frames]
        with workdir.replacing(run.folder / animation) as path:
            images.save_webp(path, [*pictures, picture])
        written.append(animation)
    if name == "samples":
        _add_to_log(run, picture, settings["step"], drawn.seconds)
    written += _write_diagnostics(run, name, drawn, settings)
    announce(f"wrote {', '.join(written)} to {run.folder} ({drawn.seconds:.1f} s)")


def _write_diagnostics(run: Run, name: str, drawn: Drawn, settings: dict[str, Any]) -> list[str]:
    """Writes diagnostics.json for "samples", and prints a warning; the names of the files."""
    if drawn.diagnostics is None:
        return []
    # Chains of one class, or drawn towards their class, spread less than the data.
    as_data = settings.get("label") is None and settings.get("guidance") is None
    warnings = warnings_of(drawn.diagnostics, spread=as_data)
    if warnings:
        announce(f"the chains are not healthy: {'; '.join(warnings)}")
    if name != "samples":
        return []
    content = {
        "samples": "samples.npz",
        "sampler": settings["method"],
        "step": settings["step"],
        "number": len(drawn.x),
        "levels": drawn.diagnostics,
        "warnings": warnings,
    }
    workdir.write_json(run.folder / "diagnostics.json", content)
    return ["diagnostics.json"]


def _add_to_log(run: Run, picture: np.ndarray, step: int, seconds: float) -> None:
    """Adds the run's own samples to metrics.json and to TensorBoard's events."""
    log = workdir.read_json(run.folder / "metrics.json") or {}
    log.setdefault("seconds", {})["sample"] = round(seconds, 3)
    workdir.write_json(run.folder / "metrics.json", log)
    with workdir.event_writer(run.folder, step) as writer:
        writer.add_image("samples", picture, step, dataformats="HWC")
