"""Reads files of unknown origin: regular files only, within bounds of memory, nothing unpickled.

Whatever a header claims is checked before memory is taken for it: the size of an array against the
bytes that are stored, a compressed size against what the format can expand to, and both against
the memory of the machine.
"""

import contextlib
import errno
import glob
import gzip
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_FILE = 2**30
"""Largest encoded image or JSON file that is read, in bytes."""
DEFLATE_RATIO = 1032
"""Largest number of bytes that one byte of deflated data, as in .zip and .gz, can expand to."""
GROWN = 2**20
"""Number of bytes read at once of those that a file has grown by while it is read."""
NPY = ""
"""Name of the array of an .npy file."""


def expanded(path: str | os.PathLike) -> Path:
    """The path with `~` expanded; unchanged if there is no such home folder."""
    return Path(os.path.expanduser(path))


def within(path: str | os.PathLike | None) -> str:
    """A clause that names the current folder for a relative path; empty for an absolute one."""
    text = os.path.expanduser(path or "")
    return "" if not text or os.path.isabs(text) else f" in the current folder, {Path.cwd()}"


def listed(text: str, exists: Callable[[str], Any] = os.path.exists) -> list[str]:
    """The paths of a list separated by commas, with `~` expanded; names can contain commas.

    Pieces are joined again where the joined name exists, the longest name first. Spaces around a
    path are removed unless it exists with them; empty pieces are dropped.

    Args:
        text: The list.
        exists: (path) -> true if there is such a path.
    """
    pieces, paths = text.split(","), []
    while pieces:
        for number in range(len(pieces), 0, -1):
            path = os.path.expanduser(",".join(pieces[:number]))
            if number == 1 or exists(path) or exists(path.strip()):
                break
        if path.strip():
            paths.append(path if exists(path) else os.path.expanduser(path.strip()))
        del pieces[:number]
    return paths


def matching_files(pattern: str) -> list[str]:
    """The file of this name; if there is none, the files that match it as a pattern, sorted."""
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        return [pattern]
    above, name = os.path.split(pattern)
    if os.path.isdir(above):
        pattern = os.path.join(glob.escape(above), name)
    return [file for file in sorted(glob.glob(pattern)) if os.path.isfile(file)]


def memory_bytes() -> int | None:
    """Memory of this machine, or of the part of it that this process may use; None if unknown."""
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Another operating system
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(file).read_text()))
        except (OSError, ValueError):
            continue  # No such limit.
    return min(found, default=None)


def check_memory(num_bytes: int, need: str) -> None:
    """Raises a ValueError if more bytes are needed than the machine has.

    Args:
        num_bytes: Number of bytes, at least.
        need: Subject of the sentence, with its verb: "the batch needs".
    """
    memory = memory_bytes()
    if memory is not None and num_bytes > memory:
        raise ValueError(
            f"{need} at least {gigabytes(num_bytes)}, but there are {gigabytes(memory)} of memory"
        )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 200 characters; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def gigabytes(num_bytes: int) -> str:
    """A number of bytes in words."""
    for size, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading; never waits for a pipe and never reads a device.

    Raises:
        OSError: If there is no such file, or it cannot be opened.
        ValueError: If it is a folder, a pipe, a socket or a device.
    """
    _check_regular(os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode)  # It can have been replaced.
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise ValueError(f"it is {kind}, not a regular file")


def read_regular(path: str | os.PathLike, limit: int = LARGEST_FILE) -> bytes:
    """The content of a regular file.

    Args:
        path: The file.
        limit: Largest size in bytes.

    Raises:
        OSError: If there is no such file, or it cannot be read.
        ValueError: If it is not a regular file, or larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Python allocates as many bytes as it is asked to read, so do not ask for the limit.
        data = b"" if size > limit else file.read(size + 1)
        while size < len(data) <= limit and (more := file.read(GROWN)):
            data += more
    if max(size, len(data)) > limit:
        raise ValueError(f"it is larger than the {gigabytes(limit)} that are read of such a file")
    return data


def parse_json(data: bytes) -> Any:
    """The content of a JSON file in UTF-8, with or without a mark of the byte order.

    Raises:
        ValueError: If it is not valid, nested too deeply, or repeats a key of an object.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} occurs twice")
        content[key] = value
    return content


def read_gzip(path: str | os.PathLike, header: int, claims: Callable[[bytes], int]) -> bytes:
    """The content of a gzipped file, up to one byte more than its header claims.

    Args:
        path: The file.
        header: Number of bytes of the header.
        claims: (header) -> number of bytes that follow.

    Raises:
        OSError: If there is no such file, or it cannot be read or decompressed.
        ValueError: If it is not a regular file, or claims more than it can hold.
    """
    with open_regular(path) as file, gzip.open(file) as content:
        first = content.read(header)
        number = claims(first)
        _check_ratio(header + number, os.fstat(file.fileno()).st_size)
        check_memory(number, "its values need")
        return first + content.read(number + 1)


def _check_ratio(claimed: int, stored: int) -> None:
    if claimed > DEFLATE_RATIO * (stored + 64):
        raise ValueError(
            f"it claims {gigabytes(claimed)}, more than {stored} compressed bytes can expand to"
        )


def read_member(archive: zipfile.ZipFile, name: str, limit: int = LARGEST_FILE) -> bytes:
    """One member of a zip archive, decompressed.

    Args:
        archive: The archive.
        name: Name of the member.
        limit: Largest size in bytes.

    Raises:
        ValueError: If it claims a larger size, or cannot be read.
    """
    member = _checked_member(archive, name)
    if member.file_size > limit:
        raise ValueError(
            f"it claims {gigabytes(member.file_size)}, more than the {gigabytes(limit)} that are "
            "read of such a file"
        )
    with archive.open(member) as stream:
        return stream.read()  # No more than claimed


def _checked_member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """The entry of a member that is not encrypted and claims a possible size."""
    member = archive.getinfo(name)
    if member.flag_bits & 1:
        raise ValueError("it is encrypted: write the archive without a password")
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        _check_ratio(member.file_size, member.compress_size)
    return member


def check_archive(path: str | os.PathLike) -> int:
    """The number of bytes of the content of a zip archive, or of a file that is none.

    Raises:
        ValueError: If an archive claims more than it can hold or the memory can take.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            return os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(file) as archive:
            found = [_checked_member(archive, name) for name in archive.namelist()]
    claimed = sum(member.file_size for member in found)
    check_memory(claimed, "its content needs")
    return claimed


def load_arrays(
    path: str | os.PathLike, choose: Callable[[list[str]], Sequence[str]] = list
) -> dict[str, Any]:
    """Arrays of an .npz file by name, or the array of an .npy file by the name `NPY`.

    Args:
        path: The file.
        choose: (names in an .npz) -> names of the arrays to read, by default all. Its ValueError
            is raised as it is.

    Raises:
        OSError: If there is no such file, or the system cannot read it.
        ValueError: With the reason, if it is not a regular file, is damaged, claims more than it
            holds or the memory can take, or holds objects, which are never unpickled.
        MemoryError: If there is no memory for it at present.
    """
    try:
        with open_regular(path) as file:
            if file.read(2) != b"PK":
                file.seek(0)
                _check_array(file, os.fstat(file.fileno()).st_size)
                file.seek(0)
                return {NPY: _read_array(file)}
            with zipfile.ZipFile(file) as archive:
                names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
                chosen = choose(names)
                found = [_checked_member(archive, f"{name}.npy") for name in chosen]
                check_memory(sum(member.file_size for member in found), "its arrays need")
                return {name: _member_array(archive, f"{name}.npy") for name in chosen}
    except (FileNotFoundError, ValueError, MemoryError):
        raise
    except Exception as error:  # Damaged files raise exceptions of any kind.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            error.filename = error.filename or os.fspath(path)
            raise  # The system fails, and the file may be sound.
        raise ValueError(str(error) or type(error).__name__) from error


def _member_array(archive: zipfile.ZipFile, name: str) -> Any:
    member = _checked_member(archive, name)
    try:
        with archive.open(member) as stream:
            _check_array(stream, member.file_size)
        with archive.open(member) as stream:
            return _read_array(stream)
    except ValueError as error:
        raise ValueError(f"{name[:-4]}: {error}") from error


def _read_array(stream: Any) -> Any:
    from numpy.lib.format import read_array  # Slow to import, and not needed by --help.

    return read_array(stream, allow_pickle=False)


def _check_array(stream: Any, size: int) -> None:
    """Reads the header of an array and raises a ValueError if it claims what cannot be read."""
    from numpy.lib import format as headers

    version = headers.read_magic(stream)
    # Version 3 is version 2 with another encoding of names.
    read = headers.read_array_header_1_0 if version < (2, 0) else headers.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except MemoryError:  # The parser's, at a header that is nested deeply
        raise ValueError("its header is damaged") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read since pickles run code")
    if any(each < 0 for each in shape):
        raise ValueError(f"its header claims the shape {list(shape)}")
    claimed = math.prod(shape) * max(dtype.itemsize, 1)
    if claimed > size:
        raise ValueError(
            f"its header claims {gigabytes(claimed)}, {dtype} {list(shape)}, but it holds "
            f"{gigabytes(size)}"
        )
    check_memory(claimed, "its values need")
