"""Draws images with an exported network: one file, sampler.zip, without the training code.

    sampler = load_sampler("runs/digits/sampler.zip")
    images = sampler(seed=0, number=1000)

`score-jax --mode=export` writes the file, and the images are those of `score-jax --mode=sample`
with the same seed. This module needs JAX, with the package flatbuffers, and NumPy, but nothing
else of this package: it may be copied, and every sampler.zip contains a copy. The other files in
sampler.zip are

    sampler.bin      the sampler as serialised by `jax.export`, for any batch on a CPU, GPU or TPU:
                     (parameters, seed uint32 [], index int32 [batch]) -> float32 [batch, *shape];
                     for a conditional network, label int32 [batch] is a fourth argument
    parameters.npz   the averaged parameters, the first argument of the sampler
    sampler.json     metadata: shapes, batch size, seed, step
    labels.npy       classes of the training images, for a conditional network
    config.json      the config
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import numpy as np

FILES = ("sampler.bin", "parameters.npz", "labels.npy", "sampler.json")
"""The files in a sampler.zip that `load_sampler` reads."""


@dataclass(frozen=True)
class Sampler:
    """Draws images with a trained network.

    Attributes:
        program: The exported sampler; see above.
        parameters: Its parameters.
        labels: Classes of the training images, int32 [examples]; None for an unconditional
            network.
        facts: Content of sampler.json. `shape`: shape of one image. `batch_size`: number of chains
            that run at once. `any_batch`: True if smaller batches can run, too. `seed`: seed of
            the config. `num_classes`: number of classes, for a conditional network. `step`:
            training step of the parameters.
    """

    program: Any
    parameters: dict[str, Any]
    labels: np.ndarray | None
    facts: dict[str, Any]

    def __call__(
        self, seed: int, number: int, labels: int | Sequence[int] | np.ndarray | None = None
    ) -> np.ndarray:
        """Draws `number` images; image i depends only on (seed, i, label i).

        Args:
            seed: Seed in [0, 2**32).
            number: Number of images.
            labels: Class of each image, or one class for all; the number of classes itself draws
                from all classes. None draws classes with the frequencies of the training set.

        Returns:
            float32 [number, *shape]; images are in [0, 1].

        Raises:
            ValueError: If seed, number or labels are out of range.
            FloatingPointError: If a chain is not finite.
        """
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must be in [0, 2**32)")
        if number < 1:
            raise ValueError(f"number={number} must be at least 1")
        label = self.classes(seed, number, labels)
        size = self.facts["batch_size"]
        if self.facts["any_batch"]:
            size = min(number, size)

        # Run the chains in batches; surplus chains of the last batch are discarded.
        batches = []
        for first in range(0, number, size):
            index = first + np.arange(size, dtype=np.int32)
            own_label = [array[np.minimum(index, number - 1)] for array in label]
            x = self.program(self.parameters, np.uint32(seed), index, *own_label)
            batches.append(np.asarray(x))
        images = np.concatenate(batches)[:number]

        finite = np.isfinite(images.reshape(number, -1)).all(axis=1)
        if not finite.all():
            raise FloatingPointError(
                f"chain {int(np.argmin(finite))} is not finite: export the sampler again with a "
                "smaller step size"
            )
        return images

    def classes(
        self, seed: int, number: int, labels: int | Sequence[int] | np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The classes of the images: [int32 [number]], or [] for an unconditional network.

        Raises:
            ValueError: If `labels` have a wrong shape or type or are out of range, or if the
                network is unconditional.
        """
        if self.labels is None:
            if labels is not None:
                raise ValueError("this network takes no labels: leave them out")
            return []
        if labels is None:
            # Repeat the labels of the training images, in an order drawn from the seed.
            order = np.random.default_rng((seed, 0)).permutation(len(self.labels))
            return [self.labels[order][np.arange(number) % len(order)]]
        labels, num_classes = np.asarray(labels), self.facts["num_classes"]
        fits = labels.shape in ((), (number,)) and labels.dtype.kind in "iu"
        if not fits or not ((labels >= 0) & (labels <= num_classes)).all():
            raise ValueError(
                f"labels must be one or {number} whole numbers from 0 to {num_classes - 1}, or "
                f"{num_classes} for all classes, got {labels}"
            )
        return [np.broadcast_to(labels, (number,)).astype(np.int32)]


def load_sampler(path: str | os.PathLike) -> Sampler:
    """Reads an exported sampler.

    Args:
        path: A sampler.zip; `~` is expanded.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt or not an exported sampler.
        ImportError: If the package flatbuffers is missing.

    Example:
        >>> sampler = sj.load_sampler("runs/digits/sampler.zip")  # doctest: +SKIP
        >>> images = sampler(seed=0, number=10)  # doctest: +SKIP
    """
    path = os.path.expanduser(path)
    try:
        with zipfile.ZipFile(path) as archive:
            content = {name: _read(archive, name) for name in FILES if name in archive.namelist()}
        return _sampler_from(content)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"path={path!r} is not a file: it must name a sampler.zip that was exported from a "
            "trained network"
        ) from error
    except (OSError, ImportError):
        raise
    except Exception as error:  # The readers raise any kind of exception for a corrupt file.
        raise ValueError(
            f"path={path!r} cannot be read as an exported sampler ({type(error).__name__}: "
            f"{error}): copy or export it again"
        ) from error


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    """One file in an archive; a ValueError if it claims more than deflate can expand to."""
    member = archive.getinfo(name)
    if member.file_size > 1032 * (member.compress_size + 64):
        raise ValueError(f"{name} claims {member.file_size} bytes, but holds few")
    return archive.read(name)


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz, which must be stored without compression, as `np.savez` does."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # Deflated data within deflated data could expand to a million times their size.
        if sum(member.file_size for member in archive.infolist()) > len(content):
            raise ValueError("its arrays are compressed, or claim more bytes than are stored")
        names = archive.namelist()
        return {name.removesuffix(".npy"): _array(archive.read(name)) for name in names}


def _array(content: bytes) -> np.ndarray:
    """The array of an .npy, whose header must not claim more bytes than there are."""
    stream = io.BytesIO(content)
    headers = np.lib.format
    old = headers.read_magic(stream) < (2, 0)
    read = headers.read_array_header_1_0 if old else headers.read_array_header_2_0
    shape, _, dtype = read(stream)
    size = len(content)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"a header claims {dtype} {list(shape)}, but there are {size} bytes")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _sampler_from(content: dict[str, bytes]) -> Sampler:
    """The sampler from the files in a sampler.zip, by name."""
    program = jax.export.deserialize(bytearray(content["sampler.bin"]))
    parameters = jax.device_put(_arrays(content["parameters.npz"]))
    labels = None
    if "labels.npy" in content:
        labels = _array(content["labels.npy"])
    facts = json.loads(content["sampler.json"])
    # Earlier versions called the shape of an image its event.
    if "event" in facts:
        facts["shape"] = facts.pop("event")
    return Sampler(jax.jit(program.call), parameters, labels, facts)
