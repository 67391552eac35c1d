"""Writes files whole or not at all: beside their place first, and moved there once complete."""

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

_unfinished: set[Path] = set()
_writes_nothing = False


def write_nothing() -> None:
    """Lets `replacing` discard what is written, for the rest of this process.

    For all processes but the first of those that run one command together.
    """
    global _writes_nothing
    _writes_nothing = True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved there if the block succeeds, removed if it fails."""
    path = Path(path)
    if _writes_nothing:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder, path.name)
        return
    temporary = path.with_name(f".{path.stem}.{host()}-{os.getpid()}{path.suffix}")
    _unfinished.add(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        _unfinished.discard(temporary)


def process_of_temporary(name: str) -> int | None:
    """The process of this host that made a temporary file; None for all other names."""
    found = re.fullmatch(rf"\..+\.{re.escape(host())}-(\d+)(\.\w+)?", name)
    return int(found[1]) if found else None


def host() -> str:
    """The name of this host as part of a file's name; empty if it has none."""
    return re.sub(r"[^A-Za-z0-9_]", "_", platform.node())[:40]


def remove_unfinished() -> None:
    """Removes the temporary files that are being written, before the process ends."""
    for path in list(_unfinished):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
