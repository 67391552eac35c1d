"""Samples with a network that `main.py --mode=export` wrote: one file, sampler.zip, and nothing of the code that trained it.

    sampler = load_sampler("runs/digits/sampler.zip")
    images = sampler(seed=0, number=1000)   # those of `main.py --mode=sample --config.seed=0`

This module needs JAX, with the package flatbuffers, and NumPy, but nothing else of this package: it may be copied, and a copy lies
in every sampler.zip. There are also

    sampler.bin      the sampler as `jax.export` serialises it, for any batch on a CPU, GPU or TPU:
                     (parameters, seed uint32 [], index int32 [batch], *label int32 [batch]) -> images float32 [batch, *event]
    parameters.npz   the averaged parameters that it takes
    sampler.json     what else is to know: shapes, sizes, seed, step
    labels.npy       classes of the training images, for a network that is told the class
    config.json      the config
"""

import io
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import numpy as np


@dataclass(frozen=True)
class Sampler:
    """Draws images with a trained network.

    Attributes:
        program: The exported sampler; see above.
        parameters: The parameters that it takes.
        labels: Classes of the training images, int32 [examples]; None for a network that takes none.
        facts: What sampler.json says: `event`, the shape of one image; `batch_size`, how many chains run at once, and `any_batch`,
            whether fewer can; `seed`, that of the config; `num_classes`; `step`, the training step of the parameters.
    """

    program: Any
    parameters: dict[str, Any]
    labels: np.ndarray | None
    facts: dict[str, Any]

    def __call__(self, seed: int, number: int, labels: int | Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Chains 0 to number - 1 of a seed, each a function of the two and its class alone.

        Args:
            seed: In [0, 2**32).
            number: How many images.
            labels: Class of each image, or one for all; the number of classes stands for any. Without them, classes are as frequent
                as in the data.
        Returns:
            float32 [number, *event]; images are in [0, 1].
        Raises:
            ValueError: If an argument cannot be used.
            FloatingPointError: If a chain is not finite.
        """
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed} must be in [0, 2**32)")
        if number < 1:
            raise ValueError(f"number={number} must be at least 1")
        label = self.classes(seed, number, labels)
        size = min(number, self.facts["batch_size"]) if self.facts["any_batch"] else self.facts["batch_size"]
        found = []
        for first in range(0, number, size):
            index = first + np.arange(size, dtype=np.int32)
            # Chains that only fill up the last batch are thrown away.
            args = (index, *(array[np.minimum(index, number - 1)] for array in label))
            found.append(np.asarray(self.program(self.parameters, np.uint32(seed), *args)))
        images = np.concatenate(found)[:number]
        finite = np.isfinite(images.reshape(number, -1)).all(1)
        if not finite.all():
            raise FloatingPointError(
                f"chain {int(np.argmin(finite))} is not finite: lower config.sampling.step_size and export again"
            )
        return images

    def classes(self, seed: int, number: int, labels: int | Sequence[int] | np.ndarray | None = None) -> list[np.ndarray]:
        """The classes that the chains are told: [int32 [number]], or [] if the network takes none.

        Raises:
            ValueError: If `labels` cannot be used.
        """
        if self.labels is None:
            if labels is not None:
                raise ValueError("this network takes no labels: leave them out")
            return []
        if labels is None:
            # The training images' own, in an order drawn from the seed, over and over again.
            order = np.random.default_rng((seed, 0)).permutation(len(self.labels))
            return [self.labels[order][np.arange(number) % len(order)]]
        labels, last = np.asarray(labels), self.facts["num_classes"]
        if labels.shape not in ((), (number,)) or labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels <= last)).all():
            raise ValueError(
                f"labels must be one or {number} whole numbers, classes from 0 to {last - 1} or {last}, any: got {labels}"
            )
        return [np.broadcast_to(labels, (number,)).astype(np.int32)]


def load_sampler(path: str | os.PathLike) -> Sampler:
    """The sampler in a file that `main.py --mode=export` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or no such file.
        ImportError: If the package flatbuffers is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}
        program = jax.export.deserialize(bytearray(content["sampler.bin"]))
        with np.load(io.BytesIO(content["parameters.npz"]), allow_pickle=False) as arrays:
            parameters = jax.device_put(dict(arrays))
        labels = np.load(io.BytesIO(content["labels.npy"]), allow_pickle=False) if "labels.npy" in content else None
        return Sampler(jax.jit(program.call), parameters, labels, json.loads(content["sampler.json"]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not a file: write it with main.py --workdir=folder --mode=export") from error
    except (OSError, ImportError):
        raise
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(
            f"{path} cannot be read as an exported sampler ({type(error).__name__}: {error}): copy it, or export it, once more"
        ) from error
