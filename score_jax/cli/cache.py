"""Keeps compiled programs from one run to the next, in JAX's persistent compilation cache."""

import contextlib
import os
import sys
from pathlib import Path

import jax

from score_jax.cli.workdir import try_to_write
from score_jax.reading import expanded

MAX_BYTES = 2_000_000_000
VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled(folder: str | None) -> None:
    """Turns the cache on for this process.

    If the folder cannot be written, one line says so and the run goes on without a cache.

    Args:
        folder: Folder of the programs; "" for no cache. None leaves the choice to
            JAX_COMPILATION_CACHE_DIR, and without it takes $XDG_CACHE_HOME/score_jax or
            ~/.cache/score_jax.
    """
    if folder is None and VARIABLE in os.environ:
        if os.environ[VARIABLE]:
            return  # JAX has read it.
        folder = ""
    if folder is None:
        user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(user_cache, "score_jax")
        if not os.path.isabs(folder):
            folder = ""  # A user without a home folder
    if not folder:
        jax.config.update("jax_compilation_cache_dir", None)
        return

    path = expanded(folder).absolute()
    try:
        _make_room(path)
    except OSError as error:
        print(
            f"score-jax: compiled programs are not kept, because --cache={folder} cannot be "
            f"written ({error.strerror}): choose another --cache, or --cache= for none",
            file=sys.stderr,
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    # Keep small programs, too: there are many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder() -> Path | None:
    """The folder of the cache of this process; None if nothing is kept."""
    folder = jax.config.jax_compilation_cache_dir
    return Path(folder) if folder else None


def _make_room(folder: Path) -> None:
    """Makes the folder and evicts the least recently used programs above `MAX_BYTES`.

    JAX's own limit needs another package.

    Raises:
        OSError: If the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try_to_write(folder)

    used = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # Another process has evicted it.
            found = path.stat()
            used.append((max(found.st_atime, found.st_mtime), found.st_size, path))
    total = sum(size for _, size, _ in used)
    for _, size, path in sorted(used):
        if total <= MAX_BYTES:
            break
        path.unlink(missing_ok=True)
        total -= size
