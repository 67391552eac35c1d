"""The files of samples: arrays, a picture of the samples, an animation of the chains."""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_jax import sampling
from score_jax.cli import images, lock, provenance, workdir
from score_jax.cli.events import EventWriter
from score_jax.cli.run import Run, naming_step_size, output_settings
from score_jax.cli.settings import completed
from score_jax.cli.shards import Part, Shards, chains_per_shard, checksum
from score_jax.cli.table import WHOLE_CHAIN
from score_jax.devices import is_first_process
from score_jax.evaluation.diagnostics import combined, diagnose, summary_of, warnings_of
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
    return output_settings(
        run.config, step, NAMES, num_samples=number, label=label, **_autoguidance(run.config)
    )


def _autoguidance(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of autoguidance, if there is any."""
    names = ("autoguidance_step", "autoguidance_weight", "autoguidance_sigma_max")
    chosen = {name: config["sampling"][name] for name in names}
    return {} if chosen["autoguidance_step"] is None else chosen


def saved_settings(file: Path) -> dict[str, Any] | None:
    """The settings of the samples in a file; None if there is no such file or it is damaged.

    Raises:
        OSError: If the system cannot read the file, which may be sound.
    """
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
    except (FileNotFoundError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
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
        parts: The samples in consecutive parts; can be read several times. Of several processes,
            only the first one has them.
        number: Number of samples.
        shape: Shape of one sample.
        labels: Classes of the samples; None for an unconditional network.
        frames: Snapshots of the first `GRID` chains, [snapshots, chains, *shape].
        frame_sigmas: Noise level at each snapshot; None if the sampler does not say.
        diagnostics: One row per level, as `evaluation.diagnostics.diagnose` makes them; None if
            the sampler takes no observer, or nothing is known of the data.
        seconds: Time that sampling took.
    """

    parts: Iterable[Part]
    number: int
    shape: tuple[int, ...]
    labels: np.ndarray | None
    frames: np.ndarray
    frame_sigmas: np.ndarray | None
    diagnostics: list[dict[str, Any]] | None
    seconds: float

    def first(self, number: int) -> np.ndarray:
        """The first samples, as many as there are up to `number`."""
        found = np.zeros((min(number, self.number), *self.shape), np.float32)
        done = 0
        for part in self.parts:
            piece = part.samples[: len(found) - done]
            found[done : done + len(piece)] = piece
            done += len(piece)
            if done == len(found):
                break
        return found


def shards_of(
    run: Run, name: str, params: Params, settings: dict[str, Any], labels: np.ndarray | None
) -> Shards:
    """The shards of a set of samples; nothing is read or written.

    Args:
        run: The run.
        name: Name of the files of samples.
        params: Parameters of the network.
        settings: As in `settings_of`.
        labels: Classes of the samples.
    """
    config = run.config
    identity = {
        **settings,
        "parameters": checksum(params),
        "labels": None if labels is None else checksum(labels),
        "network": config["model"],
        "levels": config["noise"],
        "logit": config["data"]["logit"],
        "observer": None if run.observer is None else dataclasses.asdict(run.observer),
        "denoised": config["sampling"]["denoise"],
    }
    folder = run.folder / f"{name}.shards"
    return Shards(folder, identity, settings["num_samples"], run.shape)


def draw(
    run: Run, score_fn: Callable[..., Any], labels: np.ndarray | None, shards: Shards
) -> Drawn:
    """Draws samples, and diagnoses their chains in the same program.

    A set of several shards is written shard by shard. Those that are sound already are kept; the
    caller removes them once the samples are written.

    Args:
        run: The run.
        score_fn: Its score function.
        labels: Classes of the samples.
        shards: Shards of the set.

    Raises:
        FloatingPointError: If a chain is not finite.
        OSError: If a shard cannot be written; the others are kept.
    """
    number = shards.number
    begun = time.monotonic()
    if len(shards) > 1:
        shards.find()
    batch_size = run.chains_at_once(number)
    arguments = run.sampling(number)
    if len(shards) > len(shards.written) > 0:
        announce(f"continues from {len(shards.written)} of {len(shards)} shards")
    elif len(shards) > 1 and not shards.written:
        announce(f"writes {len(shards)} shards of {shards.bounds(0)[1]} to {shards.folder}")
    in_memory: list[Part] = []
    with naming_step_size(run), workdir.keeping(shards.kept):
        for first, end in shards.missing():
            collector = _Collector(run, shards, range(first, end), in_memory)
            # Draw the batches of an undisturbed run, so that the samples have the same bits.
            first = first // batch_size * batch_size
            end = min(-(-end // batch_size) * batch_size, number)
            sampling.sample(
                score_fn,
                run.sigmas,
                label=None if labels is None else labels[first:end],
                callbacks=[collector],
                collect=False,
                **(arguments | {"first": first, "number": end - first}),
            )
    if not is_first_process():
        return Drawn((), number, run.shape, labels, np.empty(0), None, None, 0.0)
    parts = shards if len(shards) > 1 else in_memory
    return _drawn(run, parts, number, labels, time.monotonic() - begun)


def _drawn(
    run: Run, parts: Iterable[Part], number: int, labels: np.ndarray | None, seconds: float
) -> Drawn:
    """Reads all parts once for the frames and the diagnostics."""
    frames, summary = [], None
    for part in parts:
        frames.append(part.frames)
        if part.summary is not None:
            summary = part.summary if summary is None else combined(summary, part.summary)
    frames = np.concatenate(frames, axis=1)
    diagnostics = sigmas = None
    if summary is not None:
        diagnostics = diagnose(summary, run.moments, int(np.prod(run.shape)))
        slots = snapshot_levels(len(diagnostics), len(frames))
        sigmas = np.float32([diagnostics[level]["sigma"] for level in slots])
    return Drawn(parts, number, run.shape, labels, frames, sigmas, diagnostics, seconds)


class _Collector:
    """A callback of `sampling.sample` that makes parts of batches.

    Args:
        run: The run.
        shards: Shards of the set, to which the parts are written if there are several.
        wanted: The chains to collect, which fill whole parts; others are ignored.
        in_memory: List to which the part of a set of one part is appended.
    """

    def __init__(self, run: Run, shards: Shards, wanted: range, in_memory: list[Part]):
        self._run, self._shards = run, shards
        self._wanted, self._in_memory = wanted, in_memory
        self._pieces: list[Trajectory] = []

    def __call__(self, first: int, trajectory: Trajectory) -> dict[str, float]:
        shards, begin = self._shards, first
        end = first + len(trajectory.x)
        while begin < end:
            i = shards.containing(begin)
            part_end = shards.bounds(i)[1]
            upto = min(end, part_end)
            if begin in self._wanted:
                self._pieces.append(_cut(trajectory, begin - first, upto - first, begin))
                if upto == part_end:
                    self._finish(i)
            begin = upto
        return {"shards": float(len(shards.written))} if len(shards) > 1 else {}

    def _finish(self, i: int) -> None:
        """Makes a part of the pieces."""
        pieces, self._pieces = self._pieces, []
        part = Part(
            samples=self._run.to_images(np.concatenate([piece.x for piece in pieces])),
            frames=np.concatenate([piece.snapshots for piece in pieces], axis=1),
            summary=None
            if self._run.observer is None
            else summary_of([piece.observed for piece in pieces]),
        )
        if len(self._shards) > 1:
            self._shards.write(i, part)
        else:
            self._in_memory.append(part)


def _cut(trajectory: Trajectory, begin: int, end: int, chain: int) -> Trajectory:
    """Some chains of a batch, the first of which is `chain`, with the snapshots to animate."""
    here = slice(begin, end)
    animated = slice(begin, max(begin, min(end, begin + GRID - chain)))
    return Trajectory(
        x=trajectory.x[here],
        snapshots=trajectory.snapshots[:, animated].copy(),
        finite=trajectory.finite[:, here],
        observed=jax.tree.map(lambda leaf: leaf[:, here], trajectory.observed),
    )


class NotDrawn(Exception):  # noqa: N818 (no error)
    """Samples were not drawn to the end, because training is to stop."""


def draw_quietly(
    run: Run, params: Params, number: int, stop: Callable[[], int] | None = None
) -> np.ndarray:
    """Final states of the first chains, by the program of `draw`, without progress.

    Args:
        run: The run.
        params: Parameters of the network.
        number: Number of chains.
        stop: Read after each batch, the same in all processes; None draws all chains in any case.

    Raises:
        NotDrawn: If `stop` returns anything but 0.
    """

    def check(first: int, trajectory: Trajectory) -> None:
        if stop is not None and stop():
            raise NotDrawn

    return sampling.sample(
        run.score_fn(params),
        run.sigmas,
        label=run.labels(number),
        callbacks=[check],
        progress=False,
        **run.sampling(number),
    )


def write(run: Run, name: str, drawn: Drawn, settings: dict[str, Any]) -> None:
    """Writes samples as `name`.npz and `name`.png, and the chains' way as an animation.

    The diagnostics of "samples" are written to diagnostics.json; those of other names are only
    checked. One sentence says if they are far from those of a healthy run. Of several processes,
    only the first one writes.

    Args:
        run: The run.
        name: Name of the files. The animation of "samples" is chain.webp.
        drawn: The samples.
        settings: As in `settings_of`.
    """
    if not is_first_process():
        return
    pieces = (part.samples for part in drawn.parts)
    samples = workdir.Streamed((drawn.number, *run.shape), np.float32, pieces)
    arrays = {"samples": samples}
    if drawn.labels is not None:
        arrays["labels"] = drawn.labels
    if len(drawn.frames):
        chain = run.to_images(drawn.frames)
        arrays["chain"] = np.uint8(np.round(255 * chain)) if run.has_pixels else chain
    if drawn.frame_sigmas is not None:
        arrays["chain_sigma"] = drawn.frame_sigmas
    arrays |= {
        "seed": settings["seed"],
        "step": settings["step"],
        "config": json.dumps(run.config),
        "settings": json.dumps(settings),
    }
    is_small = drawn.number <= chains_per_shard(run.shape)
    workdir.write_npz(run.folder / f"{name}.npz", arrays, compressed=is_small)
    picture = run.picture(drawn.first(GRID))
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


def make_way(run: Run, settings: dict[str, Any], shards: Shards) -> None:
    """Renames samples of other settings that the user drew, before "samples" are replaced.

    Samples that an earlier end of training wrote are replaced.

    Args:
        run: The run.
        settings: Settings of the samples to be written.
        shards: Their shards.
    """
    if not is_first_process():
        return
    file = run.folder / "samples.npz"
    drawn_by_user = provenance.has_samples(run.folder, "samples")
    if drawn_by_user and not file.exists():
        _record_interrupted(run.folder)
    reason = workdir.difference(file, settings)
    unfinished = shards.difference()
    if reason and not drawn_by_user:
        announce(f"{reason}: replaces it")
    if not (reason and drawn_by_user) and not unfinished:
        return

    # A process that is killed on the way is continued by the next one.
    if unfinished:
        name = _keep(run.folder, {shards.folder.name: ".shards"})
        announce(f"{unfinished}: keeps it as {name}")
    if reason and drawn_by_user:
        animation, picture = {"chain.webp": ".webp"}, {"samples.png": ".png"}
        name = _keep(run.folder, {**picture, **animation, "samples.npz": ".npz"})
        announce(f"{reason}: keeps it as {name}")
        provenance.rename_samples(run.folder, "samples", name)


def _keep(folder: Path, files: Mapping[str, str]) -> str:
    """Renames files to the first free stem of those that --mode=sample tries; returns the stem.

    A stem that has a part of them already, from a process that was killed, is still free.

    Args:
        folder: The workdir.
        files: Name of a file -> suffix of its new name. Those that do not exist are left out.
    """
    for number in itertools.count(2):
        stem = f"samples_{number}"
        with contextlib.suppress(lock.HeldError), lock.held(folder, stem):
            if any((folder / f"{stem}{suffix}").exists() for suffix in (".npz", ".shards")):
                continue
            moved = {folder / old: folder / f"{stem}{suffix}" for old, suffix in files.items()}
            moved = {old: new for old, new in moved.items() if old.exists()}
            if any(new.exists() for new in moved.values()):
                continue
            for old, new in moved.items():
                old.rename(new)
            return stem
    raise AssertionError("itertools.count ends")


def _record_interrupted(folder: Path) -> None:
    """Records the name of samples that a process renamed before it was killed."""
    stems = [file.stem for file in folder.glob("samples_[0-9]*.npz")]
    for stem in sorted(stems, key=lambda stem: (len(stem), stem)):
        if not provenance.has_samples(folder, stem):
            provenance.rename_samples(folder, "samples", stem)
            return


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
        "number": drawn.number,
        "levels": drawn.diagnostics,
        "warnings": warnings,
    }
    workdir.write_json(run.folder / "diagnostics.json", content)
    return ["diagnostics.json"]


def _add_to_log(run: Run, picture: np.ndarray, step: int, seconds: float) -> None:
    """Adds the run's own samples to metrics.json and to TensorBoard's events.

    Both belong to the process that trains in this workdir, if another one does.
    """
    with lock.trying(run.folder) as owns_log:
        if not owns_log:
            return
        log = workdir.read_json(run.folder / "metrics.json") or {}
        log.setdefault("seconds", {})["sample"] = round(seconds, 3)
        workdir.write_json(run.folder / "metrics.json", log)
        with EventWriter(run.folder, step) as writer:
            writer.add_image("samples", picture, step)
