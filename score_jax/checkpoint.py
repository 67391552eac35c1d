"""Training states on disk, with Orbax: the newest few steps and the best, each with checksums.

States are saved as plain host arrays, so a checkpoint restores on any number of devices. Orbax
does not detect a flipped byte; the CRC-32 of every array is stored beside it and compared on
restore.
"""

import contextlib
import logging
import math
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax.debugging import first_not_finite


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Folder of the checkpoints; created by the first save.
        keep: Number of newest checkpoints to keep; None keeps all.
    """

    def __init__(self, folder: str | Path, keep: int | None = 3):
        self.folder = Path(folder).expanduser().absolute()
        self._keep = keep
        self._manager: Any = None
        self._unusable: list[int] = []

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, newest first; unfinished saves are not listed."""
        if not self.folder.is_dir():
            return []
        names = [entry.name for entry in self.folder.iterdir()]
        steps = (int(name) for name in names if name.isascii() and name.isdigit())
        return sorted(steps, reverse=True)

    def save(self, step: int, state: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Saves `state`, a pytree of arrays, in the background.

        Saving a step that is saved already does nothing.

        Args:
            step: Number of the step.
            state: Pytree of arrays.
            metadata: JSON values to store with it, read by `metadata`.

        Raises:
            OSError: If the disk is full or cannot be written; possibly only at the next save or at
                `wait`.
            FloatingPointError: If the state is not finite; nothing is saved then.
        """
        import orbax.checkpoint as ocp

        with _quiet_orbax():
            manager = self._opened()
            if step in manager.all_steps():
                return
            state = jax.tree.map(np.asarray, state)
            self.check_finite(step, state)
            content = {**(metadata or {}), "crc": _checksums(state)}
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(content)
            )
            manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns once everything is on disk."""
        if self._manager is not None:
            with _quiet_orbax():
                self._manager.wait_until_finished()

    def kept(self) -> str:
        """A clause about the newest checkpoint, once everything is on disk."""
        with contextlib.suppress(OSError):
            self.wait()
        steps = self.steps()
        return f"the checkpoint of step {steps[0]} is kept" if steps else "nothing was saved"

    def restore(self, like: Any, step: int | None = None) -> tuple[int, Any] | None:
        """The newest sound checkpoint, or that of one step.

        Args:
            like: Pytree of arrays or shapes, of the structure that was saved.
            step: Step to restore; None for the newest sound one.

        Returns:
            Its step and state, as host arrays; None if there is no checkpoint at all.

        Raises:
            ValueError: If there are checkpoints, but none is sound and of these shapes, or the
                checkpoint of the step that was asked for is missing or damaged.
        """
        problems = []
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        if step is not None:
            return step, self._asked_for(step, target)
        for step in self.steps():
            try:
                return step, self._restore(step, target)
            except Exception as error:  # Orbax raises bare Exceptions for damaged files
                self._unusable.append(step)
                problems.append(f"step {step}: {_first_line(error)}")
                logging.getLogger(__name__).warning(
                    "checkpoint %s is unusable (%s)", self.folder / str(step), _first_line(error)
                )
        if problems:
            raise ValueError(
                f"no checkpoint in {self.folder} can be used ({'; '.join(problems)}): restore "
                "that folder from a copy, or train in another one"
            )
        return None

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON values that were saved with the checkpoint of a step."""
        import orbax.checkpoint as ocp

        with _quiet_orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = ocp.args.Composite(meta=ocp.args.JsonRestore())
            meta = checkpointer.restore(self.folder / str(step), args=items).meta
        return {name: value for name, value in meta.items() if name != "crc"}

    def delete(self, step: int) -> None:
        """Removes the checkpoint of a step, once everything is on disk."""
        self.wait()
        with _quiet_orbax():
            self._opened().delete(step)

    def set_aside(self, step: int) -> None:
        """Renames the checkpoint of a step at the first save, so that another can replace it."""
        self._unusable.append(step)

    def _asked_for(self, step: int, target: Any) -> Any:
        if step not in self.steps():
            kept = ", ".join(map(str, sorted(self.steps()))) or "none"
            raise ValueError(
                f"{self.folder} holds no checkpoint of step {step}: the steps kept are {kept}"
            )
        try:
            return self._restore(step, target)
        except Exception as error:
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} cannot be used "
                f"({_first_line(error)}): choose another step, or restore it from a copy"
            ) from error

    def check_finite(self, step: int, state: Any) -> None:
        """Raises a FloatingPointError for a state that must not replace a sound one."""
        name = first_not_finite(state)
        if name is not None:
            raise FloatingPointError(
                f"{name} is not finite at step {step}, which is not saved; {self.kept()}"
            )

    def _opened(self) -> Any:
        import orbax.checkpoint as ocp

        if self._manager is None:
            self._put_unusable_aside()
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, cleanup_tmp_directories=True
            )
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self._manager

    def _put_unusable_aside(self) -> None:
        # Damaged checkpoints would stand in the way of their sound successors.
        for damaged in self._unusable:
            aside = f"unusable_{damaged}_{time.time_ns()}"
            (self.folder / str(damaged)).rename(self.folder / aside)

    def _restore(self, step: int, target: Any) -> Any:
        import orbax.checkpoint as ocp

        # A checkpointer of its own per step: it creates nothing and cleans nothing up.
        with _quiet_orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            items = ocp.args.Composite(
                state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()
            )
            restored = checkpointer.restore(self.folder / str(step), args=items)
        _check_shapes(restored.state, target)
        stored = restored.meta["crc"]
        for name, crc in _checksums(restored.state).items():
            if stored.get(name) != crc:
                raise ValueError(f"{name} differs from its checksum")
        name = first_not_finite(restored.state)
        if name is not None:
            raise ValueError(f"{name} is not finite")
        return restored.state


class BestCheckpoints:
    """The checkpoints of one run with the smallest values of some measure.

    Checkpoints that were chosen by another measure count as worse than any other. Those without a
    readable value are renamed at the first save.

    Args:
        folder: Folder of the checkpoints; created by the first save.
        keep: Number of checkpoints to keep.
        measure: Name of the measure, stored with each checkpoint.
    """

    def __init__(self, folder: str | Path, keep: int = 1, measure: str = "held_out_loss"):
        self._checkpoints = Checkpoints(folder, keep=None)
        self._keep = keep
        self._measure = measure
        self._values: dict[int, float] = {}
        for step in self._checkpoints.steps():
            try:
                stored = self._checkpoints.metadata(step)
                same = stored["measure"] == measure
                self._values[step] = float(stored["value"]) if same else math.inf
            except Exception as error:  # As in `Checkpoints.restore`
                self._checkpoints.set_aside(step)
                logging.getLogger(__name__).warning(
                    "checkpoint %s is unusable (%s)",
                    self._checkpoints.folder / str(step),
                    _first_line(error),
                )

    def steps(self) -> list[int]:
        """Steps of the sound checkpoints, the best first."""
        return sorted(self._values, key=lambda step: (self._values[step], step))

    def offer(
        self, step: int, value: float, state: Any, metadata: Mapping[str, Any] | None = None
    ) -> bool:
        """Saves a state if its value is among the smallest, and removes what is then surplus.

        Args:
            step: Number of the step.
            value: Value of the measure; one that is not finite is never saved.
            state: Pytree of arrays.
            metadata: JSON values to store with it, besides the value and the measure.

        Returns:
            True if the state is kept.

        Raises:
            OSError, FloatingPointError: As `Checkpoints.save`.
        """
        known = self._values.get(step)
        if known is not None and known < math.inf:
            return True
        better = sum(other <= value for other in self._values.values())
        if not math.isfinite(value) or better >= self._keep:
            return False
        self._checkpoints.check_finite(step, state)

        # A checkpoint of another measure stands in the way of that of the same step.
        if known is not None:
            self._checkpoints.delete(step)
            del self._values[step]
        content = {**(metadata or {}), "value": float(value), "measure": self._measure}
        self._checkpoints.save(step, state, content)
        self._values[step] = float(value)
        for surplus in self.steps()[self._keep :]:
            self._checkpoints.delete(surplus)
            del self._values[surplus]
        return True

    def wait(self) -> None:
        """Returns once everything is on disk."""
        self._checkpoints.wait()


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silences the messages that Orbax logs at every save, for the duration of the block."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_shapes(state: Any, target: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), wanted in zip(leaves, jax.tree.leaves(target), strict=True):
        if leaf.shape != wanted.shape or leaf.dtype != wanted.dtype:
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is {leaf.dtype} {leaf.shape}, but this network has "
                f"{wanted.dtype} {wanted.shape}"
            )


def _checksums(state: Any) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf)) for path, leaf in leaves
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
