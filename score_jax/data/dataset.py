"""A data set in memory or on disk, which of its examples a step takes, and what is random about them."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import standard_uniform
from score_jax.typing import Batch, Images, Keys, Pixels

CHUNK = 64  # images that a thread decodes at a time


class LazyImages:
    """Images that are decoded when they are asked for; as an array, uint8 [examples, height, width, channels].

    `images[index]` is an ndarray, for whatever `index` numpy takes on the first axis: a number, a slice, an array of numbers.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, decode: Callable[[int], np.ndarray], number: int, event: tuple[int, int, int]):
        """Decodes nothing yet.

        Args:
            decode: The image of a number below `number`, uint8 [height, width, channels]; called by several threads at once.
            number: How many images there are.
            event: (height, width, channels) of each of them.
        """
        self._decode = decode
        self.shape = (number, *event)

    @property
    def nbytes(self) -> int:
        """Bytes that all of them take once decoded."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        chosen = np.arange(len(self))[index]
        images = np.empty((chosen.size, *self.shape[1:]), self.dtype)
        for image, number in zip(images, chosen.ravel(), strict=True):
            image[...] = self._decode(int(number))
        return images.reshape(*chosen.shape, *self.shape[1:])


class Dataset(NamedTuple):
    """Examples as stored.

    Attributes:
        train: uint8 [examples, height, width, channels], in memory or lazily decoded; or, with num_values = 0, float32
            [examples, *event].
        held_out: The same, never trained on.
        num_values: How many values a pixel can take: 256, or 17 for the digits; 0 if the values are no pixels and stay as they are.
        train_labels: Class of each training example, int32 [examples]; None if there are none.
        held_out_labels: The same of the held-out ones.
        num_classes: How many classes there are; 0 without labels.
    """

    train: np.ndarray | LazyImages
    held_out: np.ndarray | LazyImages
    num_values: int
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    num_classes: int = 0


def in_memory(images: np.ndarray | LazyImages) -> np.ndarray:
    """All images decoded, by one thread per core; an array stays what it is.

    Raises:
        UnreadableImageError: If an image cannot be read; of several, the first.
    """
    if isinstance(images, np.ndarray):
        return images
    decoded = np.empty(images.shape, images.dtype)

    def fill(start: int) -> None:
        decoded[start : start + CHUNK] = images[start : start + CHUNK]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, len(images), CHUNK)):
            pass
    return decoded


def batch_index(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Which examples make up the batch of a step: int32 [batch_size], a pure function.

    The batches cut an endless row of permutations of all examples, so each is used once before any is used again,
    whatever the batch size.

    Args:
        seed: Of the run, at least 0.
        step: Number of the step, from 0.
        num_examples: Size of the data set.
        batch_size: Examples over all devices.
    """
    epoch, offset = np.divmod(step * batch_size + np.arange(batch_size), num_examples)
    index = np.empty(batch_size, np.int32)
    for e in np.unique(epoch):
        index[epoch == e] = _permutation(seed, int(e), num_examples)[offset[epoch == e]]
    return index


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)


def dequantize(keys: Keys, pixels: Pixels, num_values: int) -> Images:
    """(v + u) / num_values with u ~ U[0, 1): integer pixels become a density on [0, 1).

    Reference: Theis et al. (2016); for 256 values the x * 255/256 + U/256 of NCSN.
    """
    return (pixels.astype(jnp.float32) + standard_uniform(keys, pixels.shape[1:])) / num_values


def rescale(pixels: Pixels, num_values: int) -> Images:
    """v / (num_values - 1), in [0, 1]: no dequantisation, as in NCSNv2."""
    return pixels.astype(jnp.float32) / (num_values - 1)


def unit_scale(stored: np.ndarray, num_values: int, dequantized: bool) -> np.ndarray:
    """Stored examples in the unit of the network's data, without anything random; float32, of the same shape.

    Args:
        stored: Integer pixels; or, with num_values 0, values that are left as they are.
        num_values: As in `Dataset`.
        dequantized: Whether pixels stand for the middle of what dequantisation spreads them over, (v + 1/2) / num_values; else they
            are v / (num_values - 1).
    """
    x = np.asarray(stored, np.float32)
    if num_values == 0:
        return x
    return (x + np.float32(0.5)) / np.float32(num_values) if dequantized else x / np.float32(num_values - 1)


def logit(x: Batch, boundary: float = 1e-6) -> Batch:
    """log(p / (1 - p)) with p = boundary + (1 - 2 boundary) x: what lives in [0, 1] spreads over the real line.

    Args:
        x: In [0, 1].
        boundary: Keeps 0 and 1 finite, at -+log(1 / boundary - 1), which is 13.8 for 1e-6.

    References: Dinh et al. (2017), section 4.1; Papamakarios et al. (2017), whose boundary is 1e-6 for MNIST and 0.05 for CIFAR-10.
    """
    # 1 - p, formed from 1 - x, keeps its digits near x = 1.
    p, q = (boundary + (1 - 2 * boundary) * side for side in (x, 1 - x))
    return jnp.log(p) - jnp.log(q)


def inverse_logit(y: Batch, boundary: float = 1e-6) -> Batch:
    """The x in [0, 1] of which `logit(x, boundary)` is y; 0 or 1 for what is farther out than any."""
    return jnp.clip((jax.nn.sigmoid(y) - boundary) / (1 - 2 * boundary), 0, 1)


def random_flip(keys: Keys, x: Images) -> Images:
    """Mirrors each image left to right with probability 1/2."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)
