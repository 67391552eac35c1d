"""Shows what a sampler.zip holds, without running anything of it.

    python -m score_jax.cli.check_sampler sampler.zip

Prints size and SHA-256 of every member, and whether all of them are those that `--mode=export`
writes: a member of another name, or an `exported.py` that differs from the installed one, would
run with `PYTHONPATH=sampler.zip`. Exit code 0 if nothing is unusual, 1 if something is, 2 if the
file cannot be read.
"""

import hashlib
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax.export

from score_jax import exported
from score_jax.reading import check_archive, expanded, read_member, within

MODULE = "exported.py"
KNOWN = (*exported.FILES, MODULE, "config.json")
"""Members that `--mode=export` writes."""
HARMLESS = ("Sharding", "shape_assertion", "annotate_device_placement")
"""Custom calls of programs that JAX exports which call no code outside of XLA."""
LARGEST = 2**36
"""Largest member that is read, in bytes."""


def main(arguments: Sequence[str]) -> int:
    """Checks the file that the one argument names; the exit code."""
    if len(arguments) != 1:
        print("usage: python -m score_jax.cli.check_sampler sampler.zip", file=sys.stderr)
        return 2
    try:
        unusual = check(arguments[0])
    except Exception as error:  # A hostile file can raise anything.
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"{arguments[0]} cannot be read as a sampler.zip: {sentence}", file=sys.stderr)
        return 2
    for sentence in unusual:
        print(f"unusual: {sentence}")
    print("do not run it" if unusual else "nothing unusual")
    return 1 if unusual else 0


def check(path: str) -> list[str]:
    """Prints the members of a sampler.zip; sentences about what is unusual.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a zip archive, or claims more than it can hold.
    """
    file = expanded(path)
    if not file.is_file():
        raise FileNotFoundError(f"it is not a file{within(path)}")
    check_archive(file)
    unusual = []
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        contents = {name: read_member(archive, name, LARGEST) for name in names}
    for name in names:
        digest = hashlib.sha256(contents[name]).hexdigest()
        print(f"{len(contents[name]):>14,}  {digest}  {name}")
        if name not in KNOWN:
            unusual.append(f"{name} is no member that --mode=export writes")
        if names.count(name) > 1:
            unusual.append(f"{name} occurs {names.count(name)} times")
    if contents.get(MODULE) not in (None, Path(exported.__file__).read_bytes()):
        unusual.append(f"{MODULE} differs from that of the installed version")
    unusual += [f"sampler.bin calls {name}" for name in custom_calls(contents["sampler.bin"])]
    return list(dict.fromkeys(unusual))


def custom_calls(program: bytes) -> list[str]:
    """Names of the functions outside of the program that an exported program calls."""
    text = jax.export.deserialize(bytearray(program)).mlir_module()
    found = re.findall(r"custom_call\s+@?\"?([\w.$]+)", text)
    return sorted({*found} - {*HARMLESS})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
