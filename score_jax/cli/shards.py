"""Shards of samples: the finished parts of a large set, from which a stopped command continues.

    NAME.shards/00000.npz  00001.npz  ...

A shard holds a fixed number of chains, whatever the batch size or the devices, with the settings
that decide them and a checksum. Shards of other settings, or of other parameters, are never mixed.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_jax.cli import workdir
from score_jax.devices import from_first_process, is_first_process
from score_jax.evaluation.diagnostics import ChainValues, Summary
from score_jax.progress import announce
from score_jax.reading import first_line, load_arrays

MOST_CHAINS = 1000
"""Largest number of chains in a shard."""
MOST_BYTES = 64_000_000
"""Largest size of the samples in a shard."""
DAMAGED = (ValueError, KeyError, TypeError, RecursionError)
"""Errors of a shard that is damaged; those of the system may pass."""


class Part(NamedTuple):
    """Consecutive samples and what their chains recorded.

    Attributes:
        samples: Samples as they are written, float32 [chains, *shape].
        frames: Snapshots of those chains that are animated, [snapshots, animated, *shape].
        summary: Summary of the chains' diagnostics; None if they are not observed.
    """

    samples: np.ndarray
    frames: np.ndarray
    summary: Summary | None


def chains_per_shard(shape: tuple[int, ...]) -> int:
    """Number of chains in a shard, a function of the shape of a sample alone."""
    return max(1, min(MOST_CHAINS, MOST_BYTES // (4 * int(np.prod(shape)))))


def checksum(tree: Any) -> str:
    """CRC-32 over all arrays of a pytree, with their names and shapes, as hexadecimal digits."""
    crc = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.ascontiguousarray(leaf)
        crc = zlib.crc32(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode(), crc)
        crc = zlib.crc32(leaf.reshape(-1).view(np.uint8), crc)
    return f"{crc:08x}"


class Shards:
    """The shards of one set of samples; iterating over them reads one after the other.

    Args:
        folder: Their folder, NAME.shards; created by the first write.
        identity: JSON values that decide the samples, stored in every shard.
        number: Number of samples in the set.
        shape: Shape of one sample.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], number: int, shape: tuple[int, ...]
    ):
        self.folder = Path(folder)
        self._chains = chains_per_shard(shape)
        identity = {**identity, "chains_per_shard": self._chains}
        self._identity = json.loads(json.dumps(identity))
        self.number, self._shape = number, tuple(shape)
        self.written: set[int] = set()

    def __len__(self) -> int:
        return -(-self.number // self._chains)

    def __iter__(self) -> Iterator[Part]:
        return (self.read(i) for i in range(len(self)))

    def renamed(self, name: str) -> "Shards":
        """The shards of the same set in another folder beside theirs; nothing is read."""
        return Shards(self.folder.with_name(name), self._identity, self.number, self._shape)

    def bounds(self, i: int) -> tuple[int, int]:
        """Index of the first chain of a shard, and of the first one after it."""
        return i * self._chains, min((i + 1) * self._chains, self.number)

    def containing(self, chain: int) -> int:
        """The shard of a chain."""
        return chain // self._chains

    def find(self) -> None:
        """Fills `written` with the sound shards of this set; damaged ones are named and removed.

        Of several processes, the first one looks for all.

        Raises:
            OSError: If a shard cannot be read, or a damaged one cannot be removed.
        """
        self.written = set()
        if is_first_process():
            self._find()
        found = np.isin(np.arange(len(self)), list(self.written))
        self.written = set(np.flatnonzero(from_first_process(found)).tolist())

    def _find(self) -> None:
        if not self.folder.is_dir():
            return
        for path in self.folder.glob(".*"):
            path.unlink(missing_ok=True)  # A temporary file of a process that was killed
        for i in range(len(self)):
            if not self._file(i).exists():
                continue
            try:
                self._read(i)
                self.written.add(i)
            except DAMAGED as error:
                announce(f"{self._file(i)} is damaged ({first_line(error)}): draws it again")
                self._file(i).unlink()

    def missing(self) -> list[tuple[int, int]]:
        """Ranges of chains, (first, end), that no sound shard holds."""
        ranges: list[tuple[int, int]] = []
        for i in range(len(self)):
            if i in self.written:
                continue
            first, end = self.bounds(i)
            if ranges and ranges[-1][1] == first:
                first = ranges.pop()[0]
            ranges.append((first, end))
        return ranges

    def write(self, i: int, part: Part) -> None:
        """Writes one shard, whole or not at all; only the first of several processes does."""
        self.written.add(i)
        if not is_first_process():
            return
        arrays = {"samples": part.samples, "frames": part.frames}
        if part.summary is not None:
            arrays |= {
                "observed": np.int64(part.summary.number),
                "mean": np.stack(part.summary.mean),
                "squares": np.stack(part.summary.squares),
            }
        arrays["identity"] = np.array(json.dumps(self._identity))
        self.folder.mkdir(exist_ok=True)
        arrays["crc"] = np.array(checksum(arrays))
        workdir.write_npz(self._file(i), arrays, compressed=False)

    def read(self, i: int) -> Part:
        """Reads one shard.

        Raises:
            ValueError: If it is damaged, or belongs to another set.
            OSError: If the system cannot read it.
        """
        try:
            return self._read(i)
        except DAMAGED as error:
            raise ValueError(
                f"{self._file(i)} is damaged ({first_line(error)}): run the same command again, "
                "which draws it again"
            ) from error

    def _read(self, i: int) -> Part:
        arrays = load_arrays(self._file(i))
        if str(arrays.pop("crc")) != checksum(arrays):
            raise ValueError("it differs from its checksum")
        if json.loads(str(arrays["identity"])) != self._identity:
            raise ValueError("it belongs to another set of samples")
        first, end = self.bounds(i)
        if arrays["samples"].shape != (end - first, *self._shape):
            raise ValueError(f"it holds samples {list(arrays['samples'].shape)}")
        summary = None
        if "observed" in arrays:
            mean, squares = ChainValues(*arrays["mean"]), ChainValues(*arrays["squares"])
            summary = Summary(int(arrays["observed"]), mean, squares)
        return Part(arrays["samples"], arrays["frames"], summary)

    def difference(self) -> str:
        """A sentence about shards of another set in the folder; "" if there are none."""
        for path in sorted(self.folder.glob("[0-9]*.npz")):
            try:
                stored = dict(json.loads(str(load_arrays(path, _identity)["identity"])))
            except (FileNotFoundError, *DAMAGED):
                continue  # It has been removed, or is damaged, and `find` will name it.
            except OSError as error:
                return f"{path} cannot be read ({error.strerror})"  # It may be sound.
            for name in dict.fromkeys([*self._identity, *stored]):
                if stored.get(name) != self._identity.get(name):
                    return (
                        f"{self.folder} holds samples of a stopped command with {name}="
                        f"{stored.get(name)!r}, not {self._identity.get(name)!r}"
                    )
        return ""

    def kept(self) -> str:
        """A clause about the shards that are kept when the process ends."""
        if not self.written:
            return ""
        return f"{len(self.written)} of {len(self)} shards are kept; the same command continues"

    def remove(self) -> None:
        """Removes the folder, once the set is complete."""
        if is_first_process():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, i: int) -> Path:
        return self.folder / f"{i:05d}.npz"


def _identity(names: list[str]) -> list[str]:
    return [name for name in names if name == "identity"]
