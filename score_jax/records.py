"""Records of checkpoints: the step, run and facts to which a state belongs, with checksums.

A run has a random identity, which is drawn at its first save and lies in run.json of its workdir.
Every checkpoint carries it, so that a checkpoint of another run is recognised wherever it lies.
"""

import json
import os
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax.reading import expanded, parse_json, read_regular
from score_jax.writing import replacing

HIDDEN = ("crc", "stored")
"""Names in the metadata of a checkpoint that are its record's own."""


class RunIdentity:
    """The identity of the run in a workdir.

    Args:
        workdir: Folder of the run. Nothing is written to it before `begin`.

    Attributes:
        file: The file run.json.
        seen: Identity of a sound checkpoint that was read; taken over if run.json is lost.
    """

    def __init__(self, workdir: str | Path):
        self.file = expanded(workdir).absolute() / "run.json"
        self.seen: str | None = None
        self._known: tuple[str, int] | None = None

    def read(self) -> tuple[str, int] | None:
        """The identity, and the last step whose checkpoint can lack one; None if there is none.

        Checkpoints of earlier versions carry no identity. The step is -1 without such.

        Raises:
            ValueError: If run.json is damaged.
        """
        if self._known is None and self.file.is_file():
            try:
                content = parse_json(read_regular(self.file))
                self._known = str(content["identity"]), int(content["without_identity_until"])
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise ValueError(
                    f"{self.file} is damaged ({type(error).__name__}: {error}): restore it from a "
                    "copy, or choose another workdir"
                ) from error
        return self._known

    def begin(self, step: int) -> str:
        """The identity, drawn and written if there is none.

        Args:
            step: Step that is saved next. Checkpoints that the workdir holds already are of
                earlier steps.

        Raises:
            ValueError: As `read`.
            OSError: If run.json cannot be written.
        """
        known = self.read()
        if known is not None:
            return known[0]
        folders = (self.file.parent / name for name in ("checkpoints", "best"))
        older = any(canonical_steps(folder) for folder in folders)
        identity = self.seen or uuid.uuid4().hex
        self._known = identity, step - 1 if older and self.seen is None else -1
        content = {"identity": identity, "without_identity_until": self._known[1]}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")
        return identity


def canonical_steps(folder: Path) -> list[int]:
    """Steps of which a folder holds checkpoints, newest first.

    Names that no step is saved under, such as 007 or ², are ignored.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [int(name) for name in names if name.isascii() and name.isdigit()]
    return sorted((step for step in steps if str(step) in names), reverse=True)


def record(step: int, state: Any, metadata: Mapping[str, Any], identity: str | None) -> dict:
    """The metadata of a checkpoint with its record.

    Args:
        step: Number of the step.
        state: Pytree of arrays.
        metadata: JSON values.
        identity: Identity of the run; None for none.

    Returns:
        JSON values: `metadata`, the checksum and the type of each array, the step, the identity,
        and a checksum of all of these.
    """
    content = json.loads(json.dumps({**metadata, "crc": checksums(state)}))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    types = {jax.tree_util.keystr(path): np.asarray(leaf).dtype.name for path, leaf in leaves}
    content["stored"] = {"step": int(step), "identity": identity, "types": types}
    content["stored"]["checksum"] = _checksum(content)
    return content


def check_record(content: Any, step: int, run: RunIdentity | None) -> None:
    """Checks that metadata are undamaged and belong to a step of a run.

    Args:
        content: As `record` makes it; metadata of earlier versions have no record.
        step: Step under which the checkpoint is stored.
        run: The run; None for any.

    Raises:
        ValueError: If they do not, with both values.
    """
    expected = run.read() if run is not None else None
    if not isinstance(content, Mapping):
        raise ValueError("its metadata are no JSON object")
    stored = content.get("stored")
    if stored is None:
        if expected is not None and step > expected[1]:
            raise ValueError(f"it carries no identity, but this run is {expected[0]}")
        return
    if not isinstance(stored, Mapping) or stored.get("checksum") != _checksum(content):
        raise ValueError("its metadata differ from their checksum")
    if stored["step"] != step:
        raise ValueError(f"it was saved as step {stored['step']}, but is named {step}")
    identity = stored["identity"]
    if run is not None and expected is not None and identity != expected[0]:
        raise ValueError(
            f"it belongs to the run {identity}, but {run.file.name} says {expected[0]}"
        )


def check_state(state: Any, content: Mapping[str, Any], step: int) -> None:
    """Checks that a state has the checksums of its record, and the step if it counts steps.

    Raises:
        ValueError: For the first difference.
    """
    stored, found = content.get("crc"), checksums(state)
    if not isinstance(stored, Mapping):
        raise ValueError("it has no checksums")
    for name, crc in found.items():
        if stored.get(name) != crc:
            raise ValueError(f"{name} differs from its checksum")
    counted = getattr(state, "step", None)
    if counted is not None and np.ndim(counted) == 0 and int(counted) != step:
        raise ValueError(f"its state is of step {int(counted)}, but it is named {step}")


def checksums(state: Any) -> dict[str, int]:
    """The CRC-32 of every array of a pytree, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf).data)
        for path, leaf in leaves
    }


def _checksum(content: Mapping[str, Any]) -> int:
    """The CRC-32 of metadata, without the one that they hold."""
    stored = {name: value for name, value in content["stored"].items() if name != "checksum"}
    text = json.dumps({**content, "stored": stored}, sort_keys=True)
    return zlib.crc32(text.encode())
