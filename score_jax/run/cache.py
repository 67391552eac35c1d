"""Keeps compiled programs from one run to the next, in JAX's persistent compilation cache."""

import os
import sys
from pathlib import Path

import jax

LARGEST = 2_000_000_000  # bytes; above, what has not been used for longest goes
VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled(folder: str | None) -> None:
    """Turns the cache on, for the process; where it cannot be, says so in one line and goes on without.

    Args:
        folder: Where programs are kept; "" keeps none. None leaves it to JAX's own environment variables, and without
            JAX_COMPILATION_CACHE_DIR takes the user's cache folder, $XDG_CACHE_HOME/score_jax or ~/.cache/score_jax.
    """
    if folder is None and os.environ.get(VARIABLE):
        return
    if folder is None and VARIABLE not in os.environ:
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "score_jax")
    if not folder:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    try:
        _make_room(Path(folder))
    except OSError as error:
        print(
            f"main.py: compiled programs are not kept, --cache={folder} cannot be written ({error.strerror}): choose another "
            "--cache, or --cache= for none",
            file=sys.stderr,
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs, too: there are many


def _make_room(folder: Path) -> None:
    """Makes the folder, makes sure that it can be written, and keeps it below its largest size.

    JAX's own bound needs another package.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    probe = folder / f".write_test.{os.getpid()}"
    try:
        probe.write_bytes(b"x")
    finally:
        probe.unlink(missing_ok=True)
    used = []
    for path in folder.glob("*-cache"):
        found = path.stat()
        used.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= LARGEST:
            break
        path.unlink(missing_ok=True)
        total -= size
