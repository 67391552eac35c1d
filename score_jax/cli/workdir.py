"""The folder of a run: how its files are written, read and named.

config.json  run.json  checkpoints/  best/  metrics.json  samples.npz  samples.png  chain.webp
samples.shards/ (while many samples are drawn)
loss.png  preview.png  events.out.*  evaluation.json  likelihood.json  inpainting.npz
inpainting.png  interpolation.npz  interpolation.png  figure1.png  figure2.png  figure3.png
neighbors.png  mixing.png  sampler.zip  provenance.json  report.html  quality.json
diagnostics.json  moments.json  compare.json  compare.png
"""

import contextlib
import json
import os
import shlex
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from score_jax.reading import load_arrays, parse_json, read_regular
from score_jax.writing import host
from score_jax.writing import process_of_temporary as process_of_temporary
from score_jax.writing import remove_unfinished as remove_unfinished
from score_jax.writing import replacing as replacing
from score_jax.writing import write_nothing as write_nothing

_kept: list[Callable[[], str]] = []


@contextlib.contextmanager
def keeping(clause: Callable[[], str]) -> Iterator[None]:
    """Adds a clause about what is kept to the line of a process that ends within the block.

    A system error that leaves the block gets it as a note.

    Args:
        clause: Called by another thread when the process ends; "" says nothing.
    """
    _kept.append(clause)
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            if clause():
                error.add_note(clause())
        raise
    finally:
        _kept.remove(clause)


def what_is_kept() -> str:
    """The clauses of `keeping`, joined by semicolons."""
    return "; ".join(filter(None, (clause() for clause in list(_kept))))


class Streamed(NamedTuple):
    """An array that is written in pieces.

    Attributes:
        shape: Shape of the whole array.
        dtype: Its type.
        pieces: Arrays that follow each other along the first axis.
    """

    shape: tuple[int, ...]
    dtype: Any
    pieces: Iterable[Any]


def write_npz(path: Path, arrays: Mapping[str, Any], compressed: bool = True) -> None:
    """Writes arrays as an .npz, as numpy does, in pieces where they are `Streamed`.

    Args:
        path: The file, which is replaced.
        arrays: Arrays by name.
        compressed: If False, store them as they are.
    """
    import numpy as np

    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", kind) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                if not isinstance(array, Streamed):
                    np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
                    continue
                descr = np.lib.format.dtype_to_descr(np.dtype(array.dtype))
                header = {"descr": descr, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(file, header)
                for piece in array.pieces:
                    file.write(np.ascontiguousarray(piece, array.dtype).data.cast("B"))


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
        content = parse_json(read_regular(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): restore it from a copy, or choose another "
            "--workdir"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a JSON object, got {type(content).__name__}: restore it from a "
            "copy, or choose another --workdir"
        )
    return content


def try_to_write(folder: Path) -> None:
    """Raises an OSError if no file can be written in a folder, and leaves none there."""
    probe = Path(folder) / f".write_test.{host()}-{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def check_writable(folder: Path, needed_bytes: int, largest: str = "") -> None:
    """Checks that a run can write to a folder, without leaving anything there.

    Args:
        folder: The folder; it need not exist.
        needed_bytes: Number of bytes to be written, about.
        largest: The setting that most of them come from, with its value; for the message.

    Raises:
        OSError: If the folder, or the nearest one above it that exists, cannot be written, or the
            disk is too full.
    """
    folder = Path(folder).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(
            f"--workdir={folder} cannot be made because {existing} is a file: choose another "
            "--workdir"
        )
    try:
        try_to_write(existing)
    except OSError as error:
        raise OSError(
            f"--workdir={folder} cannot be written ({error.strerror}): make it writable, or "
            "choose another --workdir"
        ) from error
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        most = f", most of it for {largest}" if largest else ""
        raise OSError(
            f"--workdir={folder} has {free / 1e6:.0f} MB of free disk, but this run needs about "
            f"{needed_bytes / 1e6:.0f} MB{most}: free some, or choose another --workdir"
        )


def command_line(*arguments: Any) -> str:
    """A command that can be pasted into a shell.

    Args:
        *arguments: Flags, each followed by its value unless it holds one itself:
            `command_line("--workdir", folder, "--mode=sample")`.
    """
    words = ["score-jax"]
    waits_for_value = False
    for argument in map(str, arguments):
        if waits_for_value:
            words[-1] += f"={shlex.quote(argument)}"
            waits_for_value = False
            continue
        words.append(shlex.quote(argument))
        waits_for_value = argument.startswith("--") and "=" not in argument
    return " ".join(words)


def output_name(
    folder: Path,
    default: str,
    name: str | None,
    settings: Mapping[str, Any],
    unfinished: Callable[[str], str] = lambda stem: "",
) -> str:
    """The stem of an .npz output, such that no output of other settings is overwritten.

    An output stores its settings as JSON in the array `settings`.

    Args:
        folder: Folder of the output.
        default: Stem to use if no name is given; if it is taken, a number is appended.
        name: Stem that the user gives; None for none.
        settings: The settings that decide what the output holds.
        unfinished: Function from a stem to a sentence about unfinished output of other settings
            there; "" if there is none.

    Raises:
        ValueError: If `name` is not a file's stem, or is taken by an output of other settings.
    """

    def taken(stem: str) -> str:
        return difference(Path(folder, f"{stem}.npz"), settings) or unfinished(stem)

    if name is not None:
        _check_stem(name)
        reason = taken(name)
        if reason:
            raise ValueError(f"--name={name} is taken: {reason}; choose another --name")
        return name

    first_reason = taken(default)
    if not first_reason:
        return default
    number = 2
    while taken(f"{default}_{number}"):
        number += 1
    print(f"{first_reason}, so the name of these files is {default}_{number}", flush=True)
    return f"{default}_{number}"


def _check_stem(name: str) -> None:
    """Raises a ValueError for a name that is not a plain file stem."""
    plain = name and name == Path(name).name and not name.startswith(".") and "\0" not in name
    if not plain or Path(name).suffix in (".npz", ".png", ".webp"):
        raise ValueError(f"--name={name} must be a file name without folder and suffix")


def difference(path: Path, settings: Mapping[str, Any]) -> str:
    """A sentence about the first setting in which an output differs; "" if it can be replaced."""
    if not path.exists():
        return ""
    try:
        held = load_arrays(path, lambda names: [name for name in names if name == "settings"])
    except (FileNotFoundError, ValueError):
        return ""  # The file is damaged, or another process has removed it.
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"  # It may be sound.
    try:
        stored = json.loads(str(held.get("settings", "")))
    except (ValueError, RecursionError):
        stored = None
    if not isinstance(stored, dict):
        return f"{path} does not say with which settings it was made"

    # Name the first setting that differs.
    wanted = json.loads(json.dumps(settings))
    for setting in dict.fromkeys([*wanted, *stored]):
        if stored.get(setting) != wanted.get(setting):
            return (
                f"{path} was made with {setting}={stored.get(setting)!r}, not "
                f"{wanted.get(setting)!r}"
            )
    return ""
