"""Training states on disk, with Orbax: the newest few steps and the best, each with checksums.

States are saved as plain host arrays, so a checkpoint restores on any number of devices. Orbax
does not detect a flipped byte, nor a folder that was renamed: `records` says what is stored beside
the arrays and compared on restore. One process writes; others can read at the same time.
"""

import contextlib
import errno
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax.debugging import first_not_finite
from score_jax.reading import expanded, first_line
from score_jax.records import (
    HIDDEN,
    RunIdentity,
    canonical_steps,
    check_record,
    check_state,
    record,
)

Check = Callable[[int, Mapping[str, Any]], None]
"""(step, metadata) -> None; raises a ValueError, one sentence, for what belongs to another run."""
ATTEMPTS = 20
"""Largest number of times that checkpoints are listed anew because a writer removed one."""
UNFINISHED = ".orbax-checkpoint-tmp"
"""Part of the names of folders that are being written or removed."""
DAMAGED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
"""System errors of a checkpoint that lacks files, or has them in another form."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Folder of the checkpoints; created by the first save.
        keep: Number of newest checkpoints to keep; None keeps all.
        run: Identity of the run, which is stored and compared; None for none.
        keep_steps: Steps whose checkpoints are kept besides.

    Example:
        >>> checkpoints = sj.Checkpoints("runs/mine/checkpoints")  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int | None = 3,
        run: RunIdentity | None = None,
        keep_steps: Sequence[int] = (),
    ):
        self.folder = expanded(folder).absolute()
        self._keep = keep
        self._keep_steps = frozenset(keep_steps)
        self._run = run
        self._manager: Any = None
        self._unusable: list[int] = []

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, newest first; unfinished saves are not listed."""
        return canonical_steps(self.folder)

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

        identity = None if self._run is None else self._run.begin(step)
        with _quiet_orbax(), _as_system_errors(self.folder):
            manager = self._opened()
            if step in manager.all_steps():
                return
            self.wait()
            state = jax.tree.map(np.asarray, state)
            self.check_finite(step, state)
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave(record(step, state, metadata or {}, identity)),
            )
            manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Returns once everything is on disk, and removes the checkpoints that are surplus."""
        if self._manager is None:
            return
        with _quiet_orbax(), _as_system_errors(self.folder):
            self._manager.wait_until_finished()
        if self._keep is not None:
            for step in set(self.steps()[self._keep :]) - self._keep_steps:
                self._remove(step)

    def kept(self) -> str:
        """A clause about the newest checkpoint, once everything is on disk."""
        with contextlib.suppress(OSError):
            self.wait()
        # A folder that vanished during a save can hold the remains of that save.
        step = next(filter(self._is_readable, self.steps()), None)
        return "nothing was saved" if step is None else f"the checkpoint of step {step} is kept"

    def restore(
        self, like: Any, step: int | None = None, check: Check | None = None
    ) -> tuple[int, Any] | None:
        """The newest sound checkpoint, or that of one step.

        A checkpoint is sound if its arrays and metadata have their checksums, and it is of the run
        and the step that it is stored under. Arrays whose type differs by JAX's precision alone
        (`JAX_ENABLE_X64`) are converted.

        Args:
            like: Pytree of arrays or shapes, of the structure that was saved.
            step: Step to restore; None for the newest sound one.
            check: Called with the step and the metadata; raises a ValueError for a checkpoint that
                belongs to another run.

        Returns:
            Its step and state, as host arrays; None if there is no checkpoint at all.

        Raises:
            ValueError: If there are checkpoints, but none is sound and of these shapes, or the
                checkpoint of the step that was asked for is missing or damaged.
            OSError, MemoryError: If the system cannot read a checkpoint, which may be sound.
        """
        if self._run is not None:
            self._run.read()  # Report a damaged file, rather than one per checkpoint.
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        for attempt in range(ATTEMPTS):
            time.sleep(0.01 * attempt)
            try:
                if step is not None:
                    return step, self._asked_for(step, target, check)
                return self._newest(target, check)
            except _VanishedError:
                continue
        raise ValueError(
            f"the checkpoints in {self.folder} are replaced faster than they are read: try again, "
            "or keep more of them"
        )

    def metadata(self, step: int) -> dict[str, Any]:
        """The JSON values that were saved with the checkpoint of a step.

        Raises:
            ValueError: If they are damaged, or belong to another step or run.
            OSError: If the system cannot read them.
        """
        with _as_system_errors(self.folder / str(step)):
            return _own_values(self._metadata(step))

    def delete(self, step: int) -> None:
        """Removes the checkpoint of a step, once everything is on disk."""
        self._opened()
        self.wait()
        self._remove(step)

    def set_aside(self, step: int) -> None:
        """Renames the checkpoint of a step at the first save, so that another can replace it."""
        self._unusable.append(step)

    def put_remains_aside(self) -> None:
        """Renames the checkpoints without readable metadata.

        A save that was writing when its folder vanished can leave one.

        Raises:
            OSError: If the system cannot rename them.
        """
        for step in self.steps():
            if not self._is_readable(step):
                self.set_aside(step)
        self._put_unusable_aside()

    def _is_readable(self, step: int) -> bool:
        try:
            with _as_system_errors(self.folder / str(step)):
                self._unchecked_metadata(step)
        except Exception as error:  # As in `restore`
            return _may_pass(error)
        return True

    def has(self, step: int) -> bool:
        """True if there is a checkpoint of this step."""
        return os.path.lexists(self.folder / str(step))

    def _newest(self, target: Any, check: Check | None) -> tuple[int, Any] | None:
        errors: dict[int, Exception] = {}
        for step in self.steps():
            try:
                state = self._restore(step, target, check)
            except _VanishedError:
                raise
            except Exception as error:  # Orbax raises bare Exceptions for damaged files
                if _may_pass(error):
                    raise
                errors[step] = error
                continue
            self._unusable = list(errors)
            for passed, reason in errors.items():
                logging.getLogger(__name__).warning(
                    "checkpoint %s is unusable (%s)", self.folder / str(passed), first_line(reason)
                )
            return step, state
        if not errors:
            return None
        first = next(iter(errors.values()))
        if all(isinstance(error, _ForeignError) for error in errors.values()):
            raise first
        problems = [f"step {step}: {first_line(error)}" for step, error in errors.items()]
        raise ValueError(
            f"no checkpoint in {self.folder} can be used ({'; '.join(problems)}): restore "
            "that folder from a copy, or train in another one"
        )

    def _asked_for(self, step: int, target: Any, check: Check | None) -> Any:
        if step not in self.steps():
            kept = ", ".join(map(str, sorted(self.steps()))) or "none"
            raise ValueError(
                f"{self.folder} holds no checkpoint of step {step}: the steps kept are {kept}"
            )
        try:
            return self._restore(step, target, check)
        except (_VanishedError, _ForeignError):
            raise
        except Exception as error:
            if _may_pass(error):
                raise
            raise ValueError(
                f"the checkpoint of step {step} in {self.folder} cannot be used "
                f"({first_line(error)}): choose another step, or restore it from a copy"
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
            self.folder.mkdir(parents=True, exist_ok=True)
            self._put_unusable_aside()
            options = ocp.CheckpointManagerOptions(
                create=False,
                cleanup_tmp_directories=True,
                multiprocessing_options=_this_process_alone(),
            )
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=_handlers()
            )
        return self._manager

    def _put_unusable_aside(self) -> None:
        # Damaged checkpoints would stand in the way of their sound successors.
        for damaged in self._unusable:
            aside = f"unusable_{damaged}_{time.time_ns()}"
            with contextlib.suppress(FileNotFoundError):
                (self.folder / str(damaged)).rename(self.folder / aside)
        self._unusable.clear()

    def _remove(self, step: int) -> None:
        # The renaming makes it vanish at once for those who read it.
        removed = self.folder / f"{step}{UNFINISHED}-{time.time_ns()}"
        with contextlib.suppress(FileNotFoundError):
            (self.folder / str(step)).rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        with _quiet_orbax():
            self._manager.reload()

    def _restore(self, step: int, target: Any, check: Check | None) -> Any:
        try:
            with _as_system_errors(self.folder / str(step)):
                return self._restored(step, target, check)
        except _ForeignError:
            raise
        except Exception:
            if self.has(step):
                raise
        raise _VanishedError(step)

    def _restored(self, step: int, target: Any, check: Check | None) -> Any:
        import orbax.checkpoint as ocp

        # The metadata say in which types the arrays were written.
        meta = self._metadata(step)
        if check is not None:
            try:
                check(step, _own_values(meta))
            except ValueError as error:
                raise _ForeignError(str(error)) from error
        stored = _as_stored(target, meta)
        with _quiet_orbax(), _reader() as reader:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(stored))
            state = reader.restore(self.folder / str(step), args=items).state
        _check_shapes(state, stored)
        check_state(state, meta, step)
        name = first_not_finite(state)
        if name is not None:
            raise ValueError(f"{name} is not finite")
        if self._run is not None and "stored" in meta:
            self._run.seen = meta["stored"]["identity"]
        return _converted(state, target, self.folder / str(step))

    def _metadata(self, step: int) -> dict[str, Any]:
        meta = self._unchecked_metadata(step)
        check_record(meta, step, self._run)
        return meta

    def _unchecked_metadata(self, step: int) -> Any:
        import orbax.checkpoint as ocp

        # A checkpointer of its own per step: it creates nothing and cleans nothing up.
        with _quiet_orbax(), _reader() as reader:
            items = ocp.args.Composite(meta=ocp.args.JsonRestore())
            return reader.restore(self.folder / str(step), args=items).meta


class BestCheckpoints:
    """The checkpoints of one run with the smallest values of some measure.

    Checkpoints that were chosen by another measure count as worse than any other. Those without a
    readable value are renamed at the first save.

    Args:
        folder: Folder of the checkpoints; created by the first save.
        keep: Number of checkpoints to keep.
        measure: Name of the measure, stored with each checkpoint.
        run: As in `Checkpoints`.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 1,
        measure: str = "held_out_loss",
        run: RunIdentity | None = None,
    ):
        self._checkpoints = Checkpoints(folder, keep=None, run=run)
        self._keep = keep
        self._measure = measure
        self._values: dict[int, float] = {}
        # Another process that trains may replace a checkpoint between its listing and its reading.
        for attempt in range(ATTEMPTS):
            time.sleep(0.01 * attempt)
            if self._read_values():
                break

    def _read_values(self) -> bool:
        """Reads the value of each checkpoint; returns False if one has vanished meanwhile."""
        self._values.clear()
        for step in self._checkpoints.steps():
            try:
                stored = self._checkpoints.metadata(step)
                same = stored["measure"] == self._measure
                self._values[step] = float(stored["value"]) if same else math.inf
            except Exception as error:  # As in `Checkpoints.restore`
                if not self._checkpoints.has(step):
                    return False
                if _may_pass(error):
                    raise
                self._checkpoints.set_aside(step)
                logging.getLogger(__name__).warning(
                    "checkpoint %s is unusable (%s)",
                    self._checkpoints.folder / str(step),
                    first_line(error),
                )
        return True

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


def silence_background_saves() -> None:
    """Keeps the threads of Orbax from printing tracebacks, for a process of its own.

    What fails in them is raised by the next `save` or `wait`.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    in_threads, elsewhere = threading.excepthook, sys.excepthook

    def thread_hook(arguments):
        frames = traceback.walk_tb(arguments.exc_traceback)
        modules = {frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in frames}
        if "orbax" not in modules:
            in_threads(arguments)

    def hook(kind, error, trace):
        # TensorStore, in any thread, prints that the loop that awaits its writes has ended.
        if str(error) != "Event loop is closed":
            elsewhere(kind, error, trace)

    threading.excepthook, sys.excepthook = thread_hook, hook


@contextlib.contextmanager
def _as_system_errors(folder: Path) -> Iterator[None]:
    """Turns errors of Orbax about the disk, whose kinds differ, into OSErrors."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or str(folder)
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if isinstance(error, OSError) or found is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(folder)) from error


def _may_pass(error: Exception) -> bool:
    """True for an error of the system, which says nothing about the files that were read."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in DAMAGED
    return isinstance(error, MemoryError)


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silences the messages that Orbax logs at every save, for the duration of the block."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
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


def _as_stored(target: Any, meta: Mapping[str, Any]) -> Any:
    """A target with the types that arrays were written in where JAX's precision alone differs."""
    types = meta.get("stored", {}).get("types", {})
    narrower = {wide: narrow for narrow, wide in _WIDER.items()}

    def leaf_as_stored(path, leaf):
        # Earlier versions did not store the types, which were then those of 32 bits.
        earlier = narrower.get(leaf.dtype.name, leaf.dtype.name)
        stored = types.get(jax.tree_util.keystr(path)) if types else earlier
        wide = {_WIDER.get(stored, stored), _WIDER.get(leaf.dtype.name, leaf.dtype.name)}
        return np.zeros(leaf.shape, stored if stored and len(wide) == 1 else leaf.dtype)

    return jax.tree_util.tree_map_with_path(leaf_as_stored, target)


_WIDER = {"float32": "float64", "int32": "int64", "uint32": "uint64", "complex64": "complex128"}


def _converted(state: Any, target: Any, where: Path) -> Any:
    """A state in the types of a target; says so if any differs."""
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(target), strict=True)
    differing = [(old.dtype, new.dtype) for old, new in pairs if old.dtype != new.dtype]
    if not differing:
        return state
    logging.getLogger(__name__).warning(
        "checkpoint %s was written in %s and is converted to %s, because JAX_ENABLE_X64 has "
        "another value now",
        where,
        *differing[0],
    )
    return jax.tree.map(lambda old, new: np.asarray(old).astype(new.dtype), state, target)


def _own_values(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if name not in HIDDEN}


def _this_process_alone() -> Any:
    """Options of Orbax by which it waits for no other process of a job."""
    import orbax.checkpoint as ocp

    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )


def _handlers() -> dict[str, Any]:
    import orbax.checkpoint as ocp

    alone = _this_process_alone()
    return {
        "state": ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        "meta": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    }


def _reader() -> Any:
    """A checkpointer for one checkpoint, which makes nothing."""
    import orbax.checkpoint as ocp

    alone = _this_process_alone()
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options, **_handlers())
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


class _VanishedError(Exception):
    """A checkpoint that another process removed while it was read."""


class _ForeignError(ValueError):
    """A checkpoint of another run; the message is a whole sentence."""
