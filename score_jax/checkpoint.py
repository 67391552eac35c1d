"""The state of training on disk, with Orbax: the last few steps, each with checksums, the newest sound one restored.

Saved as plain host arrays, a checkpoint restores on any number of devices. Orbax does not notice a flipped byte, so every
array's CRC-32 is stored beside it and compared.
"""

import logging
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save at INFO and WARNING


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are; made when the first is saved.
        keep: How many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int = 3):
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None
        self._unusable: list[int] = []

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, newest first; of an unfinished save nothing is listed."""
        if not self.folder.is_dir():
            return []
        return sorted((int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit()), reverse=True)

    def save(self, step: int, state: Any, config: Mapping[str, Any]) -> None:
        """Saves `state`, a pytree of arrays, in the background; a save of the same step twice is one.

        Raises:
            OSError: If the disk is full or cannot be written; possibly only at the next save or at `wait`.
        """
        if self._manager is None:
            for damaged in self._unusable:  # put aside, or they would stand in the way of their sound successors
                (self.folder / str(damaged)).rename(self.folder / f"unusable_{damaged}_{time.time_ns()}")
            options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, cleanup_tmp_directories=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        if step in self._manager.all_steps():
            return
        state = jax.tree.map(np.asarray, state)
        meta = {"crc": _checksums(state), "config": dict(config)}
        self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)), force=True
        )

    def wait(self) -> None:
        """Returns once everything is on disk."""
        if self._manager is not None:
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest sound checkpoint.

        Args:
            like: A pytree of arrays or shapes, as was saved.
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
                logging.getLogger(__name__).warning("checkpoint %s is unusable (%s)", self.folder / str(step), _first_line(error))
        if problems:
            raise ValueError(
                f"no checkpoint in {self.folder} can be used ({'; '.join(problems)}): restore that folder from a copy, "
                "or delete it to begin anew"
            )
        return None

    def _restore(self, step: int, target: Any) -> Any:
        # A checkpointer of its own per step: reading makes nothing and cleans nothing up.
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                self.folder / str(step),
                args=ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()),
            )
        for (path, leaf), wanted in zip(jax.tree_util.tree_leaves_with_path(restored.state), jax.tree.leaves(target), strict=True):
            if leaf.shape != wanted.shape or leaf.dtype != wanted.dtype:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} is {leaf.dtype} {leaf.shape}, this network's is {wanted.dtype} {wanted.shape}"
                )
        if damaged := [name for name, crc in _checksums(restored.state).items() if restored.meta["crc"].get(name) != crc]:
            raise ValueError(f"{damaged[0]} differs from its checksum")
        return restored.state


def _checksums(state: Any) -> dict[str, int]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf)) for path, leaf in leaves}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
