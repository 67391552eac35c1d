"""Locks in a workdir: one writer at a time, while readers work beside it.

A lock is a hidden file that the system locks for a process and releases when the process ends,
also by SIGKILL. The file itself stays behind and means nothing. On network file systems the lock
holds as far as these support `flock`: NFS does among the hosts of one server unless it is mounted
with `nolock`, and Lustre if it is mounted with `flock`.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from score_jax.cli import workdir
from score_jax.progress import announce

RUN = "run"
"""Name of the lock of the run itself: its config, checkpoints and logs."""
PATIENCE, PAUSE = 1.0, 0.05
"""Seconds to wait for the facts about a holder that has just begun, and between two looks."""
SHORTLY = 60.0
"""Seconds to wait for a process that writes a few files."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP)
"""Errors of a file system that supports no locks."""
LONGEST_COMMAND = 300
"""Characters of the holder's command line that a message shows."""


@contextlib.contextmanager
def held(folder: str | Path, name: str = RUN, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock of a workdir for the duration of the block; the folder is made if needed.

    Of several processes of one job, only the first takes it.

    Args:
        folder: The workdir.
        name: "run" for the run itself, or the name of a single output.
        wait: Seconds to wait for another process.

    Raises:
        ValueError: If another process holds it; names that process.
        OSError: If the folder cannot be written.
    """
    import jax

    if jax.process_index() != 0:
        yield
        return
    lock = _acquired(Path(folder), name, wait)
    try:
        if name == RUN:
            remove_leftovers(folder)
        _write_facts(Path(folder), name)
        yield
    finally:
        with contextlib.suppress(OSError):
            _facts_file(Path(folder), name).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def changing(file: str | Path) -> Iterator[None]:
    """Holds the lock of one small file while it is read, changed and replaced.

    Waits for other processes, which hold it for as short a time.

    Args:
        file: The file.

    Raises:
        ValueError: If the file is still locked after `SHORTLY` seconds.
        OSError: If its folder cannot be written.
    """
    with held(Path(file).parent, Path(file).name, SHORTLY):
        yield


@contextlib.contextmanager
def output(folder: Path, name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Holds the lock of an output while its files are written.

    Args:
        folder: The workdir.
        name: Stem of the files, as `workdir.output_name` chose it.
        settings: The settings that decide what the output holds.

    Yields:
        The stem; another one if another process has written files of other settings meanwhile.

    Raises:
        ValueError: If another process writes them for more than `SHORTLY` seconds.
        OSError: If the folder cannot be written.
    """
    while True:
        chosen = workdir.output_name(folder, name, None, settings)
        with held(folder, chosen, SHORTLY):
            with contextlib.redirect_stdout(io.StringIO()):
                still = workdir.output_name(folder, name, None, settings)
            if still == chosen:
                yield chosen
                return


@contextlib.contextmanager
def trying(folder: str | Path) -> Iterator[bool]:
    """Holds the lock of the run if no other process does; True if this process holds it.

    For what a process other than the run's writer can add to the run's logs.
    """
    facts = _facts_of_holder(Path(folder), RUN)
    if facts is not None:
        own = facts["process"] == os.getpid() and facts.get("host") == platform.node()
        yield own
        return
    try:
        lock = _acquired(Path(folder), RUN, 0.0)
    except ValueError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _acquired(folder: Path, name: str, wait: float) -> filelock.FileLock:
    """A lock that this process holds, after `wait` seconds or less."""
    lock = filelock.FileLock(folder / f".{name}.lock", thread_local=False)
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
                raise ValueError(_refusal(folder, name, facts)) from None
            if not announced:
                announced = True
                announce(f"waits for process {(facts or {}).get('process')}, which writes {name}")
        except OSError as error:
            reason = error.strerror or str(error)
            problem = f"cannot be written ({reason}): make it writable"
            if error.errno in WITHOUT_LOCKS:
                problem = f"cannot be locked ({reason}): mount its file system with locks"
            raise OSError(f"--workdir={folder} {problem}, or choose another --workdir") from error
        time.sleep(PAUSE)


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


def _refusal(folder: Path, name: str, facts: dict[str, Any] | None) -> str:
    what = f"--workdir={folder}" if name == RUN else f"{folder / name}"
    other = "--workdir" if name == RUN else "--name or --workdir"
    who = "another process"
    if facts is not None:
        who = (
            f"process {facts['process']} on host {facts.get('host')} since {facts.get('since')} "
            f"({facts.get('command')})"
        )
    return (
        f"{what} is being written by {who}: wait until it ends, stop it, or choose another {other}"
    )


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
