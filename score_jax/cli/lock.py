"""Locks in a workdir: one writer at a time, while readers work beside it.

A lock is a hidden file that the system locks for a process and releases when the process ends,
also by SIGKILL. The file itself stays behind and means nothing. On network file systems the lock
holds as far as these support `flock`: NFS does among the hosts of one server unless it is mounted
with `nolock`, and Lustre if it is mounted with `flock`. A file system that refuses it is an error.

    .run.lock  .output.NAME.lock  .file.NAME.lock, each with a .lock.json while it is held
"""

import contextlib
import datetime
import errno
import io
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from score_jax.cli import workdir
from score_jax.progress import announce

RUN = "run"
"""Name of the lock of the run itself: its config, checkpoints and logs."""
OUTPUT, FILE = "output.", "file."
"""First part of the names of the locks of outputs, and of single files."""
PATIENCE, PAUSE = 1.0, 0.05
"""Seconds to wait for the facts about a holder that has just begun, and between two looks."""
SHORTLY = 60.0
"""Seconds to wait for a process that writes a few files."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of a file system that supports no locks."""
LONGEST_COMMAND = 300
"""Characters of the holder's command line that a message shows."""
_own: set[Path] = set()
"""Locks that this process holds."""


class HeldError(ValueError):
    """A lock that another process holds.

    Args:
        reason: A clause that names what is locked, and the process.
        advice: What to do, a clause.

    Attributes:
        reason: As given.
    """

    def __init__(self, reason: str, advice: str):
        super().__init__(f"{reason}: {advice}")
        self.reason = reason


@contextlib.contextmanager
def held(folder: str | Path, output: str | None = None, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock of a workdir for the duration of the block; the folder is made if needed.

    Of several processes of one job, only the first takes it.

    Args:
        folder: The workdir.
        output: Stem of a single output; None for the run itself.
        wait: Seconds to wait for another process.

    Raises:
        HeldError: If another process holds it; names that process.
        OSError: If the folder cannot be written.
    """
    with _held(Path(folder), RUN if output is None else OUTPUT + output, wait):
        yield


@contextlib.contextmanager
def _held(folder: Path, name: str, wait: float) -> Iterator[None]:
    import jax

    if jax.process_index() != 0:
        yield
        return
    lock = _acquired(folder, name, wait)
    _own.add(_lock_file(folder, name))
    try:
        if name == RUN:
            remove_leftovers(folder)
        _write_facts(folder, name)
        yield
    finally:
        with contextlib.suppress(OSError):
            _facts_file(folder, name).unlink(missing_ok=True)
        _own.discard(_lock_file(folder, name))
        lock.release()


@contextlib.contextmanager
def changing(file: str | Path) -> Iterator[None]:
    """Holds the lock of one small file while it is read, changed and replaced.

    Waits for other processes, which hold it for as short a time.

    Args:
        file: The file.

    Raises:
        HeldError: If the file is still locked after `SHORTLY` seconds.
        OSError: If its folder cannot be written.
    """
    with _held(Path(file).parent, FILE + Path(file).name, SHORTLY):
        yield


def _free(stem: str) -> str:
    return ""


def choose(
    folder: Path,
    default: str,
    name: str | None,
    settings: Mapping[str, Any],
    unfinished: Callable[[str], str] = _free,
) -> str:
    """The stem of an output, as `workdir.output_name` chooses it, before anything is computed.

    Args:
        folder: The workdir.
        default: Stem if no name is given; `output` replaces it if it is locked at the end.
        name: Stem that the user gives; None for none.
        settings: The settings that decide what the output holds.
        unfinished: As in `workdir.output_name`.

    Raises:
        ValueError: If `name` is no stem, is taken, or is locked for more than `SHORTLY` seconds.
        OSError: If the folder cannot be written.
    """
    chosen = workdir.output_name(folder, default, name, settings, unfinished)
    if name is not None:
        with held(folder, name, SHORTLY):
            pass
    return chosen


@contextlib.contextmanager
def output(
    folder: Path,
    name: str,
    settings: Mapping[str, Any],
    unfinished: Callable[[str], str] = _free,
) -> Iterator[str]:
    """Holds the lock of an output while its files are written.

    Args:
        folder: The workdir.
        name: Stem of the files, as `choose` chose it.
        settings: The settings that decide what the output holds.
        unfinished: As in `workdir.output_name`.

    Yields:
        The stem; another one if another process has written files of other settings meanwhile, or
        has held the lock for `SHORTLY` seconds, so that nothing that was computed is lost.

    Raises:
        OSError: If the folder cannot be written.
    """
    busy: dict[str, str] = {}

    def reason(stem: str) -> str:
        return busy.get(stem, "") or unfinished(stem)

    with contextlib.ExitStack() as stack:
        while True:
            chosen = workdir.output_name(folder, name, None, settings, reason)
            try:
                stack.enter_context(held(folder, chosen, SHORTLY))
            except HeldError as error:
                busy[chosen] = error.reason
                continue
            with contextlib.redirect_stdout(io.StringIO()):
                still = workdir.output_name(folder, name, None, settings, reason)
            if still == chosen:
                yield chosen
                return
            stack.close()


@contextlib.contextmanager
def trying(folder: str | Path) -> Iterator[bool]:
    """Holds the lock of the run if no other process does; True if this process holds it.

    For what a process other than the run's writer can add to the run's logs.
    """
    folder = Path(folder)
    if _lock_file(folder, RUN) in _own:
        yield True
        return
    try:
        lock = _acquired(folder, RUN, 0.0)
    except HeldError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _acquired(folder: Path, name: str, wait: float) -> filelock.FileLock:
    """A lock that this process holds, after `wait` seconds or less."""
    file = _lock_file(folder, name)
    lock = filelock.FileLock(file, thread_local=False, fallback_to_soft=False)
    begun, announced = time.monotonic(), wait <= SHORTLY
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            return lock
        except filelock.Timeout:
            # A holder that has just begun has not written its facts yet.
            facts = _facts_of_holder(folder, name)
            waited = time.monotonic() - begun
            if waited >= (wait if facts is not None else max(wait, PATIENCE)):
                raise _refusal(folder, name, facts) from None
            if not announced:
                announced = True
                process, written = (facts or {}).get("process"), name.removeprefix(OUTPUT)
                announce(f"waits for process {process}, which writes {written}")
        except OSError as error:
            reason = error.strerror or str(error)
            problem = f"cannot be written ({reason}): make it writable"
            if error.errno in WITHOUT_LOCKS:
                problem = f"cannot be locked ({reason}): mount its file system with locks"
            raise OSError(f"--workdir={folder} {problem}, or choose another --workdir") from error
        time.sleep(PAUSE)


def _lock_file(folder: Path, name: str) -> Path:
    return folder.absolute() / f".{name}.lock"


def _facts_file(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock.json"


def _write_facts(folder: Path, name: str) -> None:
    facts = {
        "process": os.getpid(),
        "host": platform.node(),
        "command": workdir.command_line(*sys.argv[1:])[:LONGEST_COMMAND],
        "since": datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds"),
    }
    # The lock holds without them, as on a full disk.
    with contextlib.suppress(OSError):
        workdir.write_json(_facts_file(folder, name), facts)


def _facts_of_holder(folder: Path, name: str) -> dict[str, Any] | None:
    """Facts about the process that holds a lock; None if there are only those of a dead one."""
    try:
        facts = workdir.read_json(_facts_file(folder, name))
    except (ValueError, OSError):
        return None
    if facts is None or not isinstance(facts.get("process"), int):
        return None
    here = facts.get("host") == platform.node()
    return None if here and not is_alive(facts["process"]) else facts


def _refusal(folder: Path, name: str, facts: dict[str, Any] | None) -> HeldError:
    what, other = f"{folder / name.removeprefix(FILE)}", "--workdir"
    if name == RUN:
        what = f"--workdir={folder}"
    elif name.startswith(OUTPUT):
        what, other = f"{folder / name.removeprefix(OUTPUT)}", "--name or --workdir"
    who = "another process"
    if facts is not None:
        who = (
            f"process {facts['process']} on host {facts.get('host')} since {facts.get('since')} "
            f"({facts.get('command')})"
        )
    reason = f"{what} is being written by {who}"
    return HeldError(reason, f"wait until it ends, stop it, or choose another {other}")


def is_alive(process: int) -> bool:
    """True if a process of this host with this number runs."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True  # It belongs to another user.
    return True


def remove_leftovers(folder: str | Path) -> None:
    """Removes temporary files of dead processes of this host, and checkpoints half written.

    Only the holder of the lock "run" can call it: nobody else writes checkpoints.
    """
    folder = Path(folder)
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            process = workdir.process_of_temporary(path.name)
            if process is not None and not is_alive(process):
                with contextlib.suppress(OSError):
                    path.unlink()
    for part in ("checkpoints", "best"):
        with contextlib.suppress(OSError):
            for path in list((folder / part).iterdir()):
                if re.search(r"\.orbax-checkpoint-tmp", path.name):
                    shutil.rmtree(path, ignore_errors=True)
