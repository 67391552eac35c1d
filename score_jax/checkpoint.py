"""Training states on disk, with Orbax: the newest few steps, each with checksums.

States are saved as plain host arrays, so a checkpoint restores on any number of devices. Orbax
does not detect a flipped byte; the CRC-32 of every array is stored beside it and compared on
restore.
"""

import contextlib
import logging
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Folder of the checkpoints; created by the first save.
        keep: Number of newest checkpoints to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
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
        """
        import orbax.checkpoint as ocp

        with _quiet_orbax():
            if self._manager is None:
                self._put_unusable_aside()
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep, cleanup_tmp_directories=True
                )
                self._manager = ocp.CheckpointManager(self.folder, options=options)
            if step in self._manager.all_steps():
                return
            state = jax.tree.map(np.asarray, state)
            content = {**(metadata or {}), "crc": _checksums(state)}
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(content)
            )
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns once everything is on disk."""
        if self._manager is not None:
            with _quiet_orbax():
                self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest sound checkpoint.

        Args:
            like: Pytree of arrays or shapes, of the structure that was saved.

        Returns:
            Its step and state, as host arrays; None if there is no checkpoint at all.

        Raises:
            ValueError: If there are checkpoints, but none is sound and of these shapes.
        """
        problems = []
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
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
        return restored.state


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
