"""What a run leaves in its folder, and how it is written: whole or not at all.

config.json  checkpoints/  metrics.json  samples.npz  samples.png  chain.webp  loss.png  preview.png  events.out.*
evaluation.json  inpainting.npz  inpainting.png  interpolation.npz  interpolation.png
figure1.png  figure2.png  figure3.png  neighbors.png  mixing.png  sampler.zip
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved there when the block succeeds and removed when it fails."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if there is no such file.

    Raises:
        ValueError: If the file is not a JSON object.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): restore it from a copy, or choose another --workdir") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a JSON object, got {type(content).__name__}: restore it from a copy, or choose another --workdir"
        )
    return content


def check_writable(folder: Path, needed_bytes: int) -> None:
    """Makes sure that a run can write to `folder`, without leaving anything there.

    Raises:
        OSError: If the folder, or the nearest one above it that exists, cannot be written, or the disk is too full.
    """
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"--workdir={folder} cannot be made because {existing} is a file: choose another --workdir")
    probe = existing / f".write_test.{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
    except OSError as error:
        raise OSError(
            f"--workdir={folder} cannot be written ({error.strerror}): make it writable, or choose another --workdir"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise OSError(
            f"--workdir={folder} has {free / 1e6:.0f} MB of free disk, but this run needs about {needed_bytes / 1e6:.0f} MB: "
            "free some, or choose another --workdir"
        )
