"""A data set in memory, which of its examples a step takes, and what is random about them."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import standard_uniform
from score_jax.typing import Images, Keys, Pixels


class Dataset(NamedTuple):
    """Images as stored.

    Attributes:
        train: uint8 [examples, height, width, channels].
        held_out: The same, never trained on.
        num_values: How many values a pixel can take: 256, or 17 for the digits.
        train_labels: Class of each training image, int32 [examples]; None if there are none.
        held_out_labels: The same of the held-out ones.
        num_classes: How many classes there are; 0 without labels.
    """

    train: np.ndarray
    held_out: np.ndarray
    num_values: int
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    num_classes: int = 0


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


def random_flip(keys: Keys, x: Images) -> Images:
    """Mirrors each image left to right with probability 1/2."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)
