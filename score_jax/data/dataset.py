"""Data sets, lazily decoded images, and the order in which training visits the examples."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

CHUNK = 64  # images that a thread decodes at a time


class LazyImages:
    """Images that are decoded on access, like an array uint8 [examples, height, width, channels].

    `images[index]` is an ndarray for every index that numpy accepts on the first axis: an integer,
    a slice, or an array of integers or booleans.

    Attributes:
        note: One sentence about files that were passed over; None if there is nothing to say.
    """

    note: str | None = None

    dtype = np.dtype(np.uint8)

    def __init__(
        self, decode: Callable[[int], np.ndarray], number: int, shape: tuple[int, int, int]
    ):
        """Decodes nothing yet.

        Args:
            decode: Function from the position of an image to its pixels, uint8 [height, width,
                channels]. Several threads call it at once.
            number: Number of images.
            shape: Shape of each image, (height, width, channels).
        """
        self._decode = decode
        self.shape = (number, *shape)

    @property
    def nbytes(self) -> int:
        """Size of all images once they are decoded, in bytes."""
        return int(np.prod(self.shape, dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        positions = np.arange(len(self))[index]
        images = np.empty((positions.size, *self.shape[1:]), self.dtype)
        for image, position in zip(images, positions.ravel(), strict=True):
            image[...] = self._decode(int(position))
        return images.reshape(*positions.shape, *self.shape[1:])


class Dataset(NamedTuple):
    """Examples as they are stored, before any random transform.

    Attributes:
        train: Training examples: uint8 pixels [examples, *shape], in memory or lazily decoded; or,
            if num_values is None, float32 [examples, *shape].
        held_out: Examples that are never trained on, of the same type and shape.
        num_values: Number of values that a pixel can take: 256, or 17 for the digits. None if the
            values are not pixels; they are then used as they are.
        train_labels: Class of each training example, int32 [examples]; None without labels.
        held_out_labels: Class of each held-out example, int32 [examples]; None without labels.
        num_classes: Number of classes; None without labels.
        note: One sentence about a choice that the source made and its user should know, such as
            the split of examples that came without one; None if there is nothing to say.
    """

    train: np.ndarray | LazyImages
    held_out: np.ndarray | LazyImages
    num_values: int | None
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    num_classes: int | None = None
    note: str | None = None


def in_memory(images: np.ndarray | LazyImages) -> np.ndarray:
    """Decodes all images, with one thread per core; an array is returned unchanged.

    Raises:
        UnreadableImageError: If an image cannot be read; names the first such image.
    """
    if isinstance(images, np.ndarray):
        return images
    decoded = np.empty(images.shape, images.dtype)

    def decode_chunk(start: int) -> None:
        decoded[start : start + CHUNK] = images[start : start + CHUNK]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Iterate over the results, which raises the exceptions of the threads in order.
        for _ in pool.map(decode_chunk, range(0, len(images), CHUNK)):
            pass
    return decoded


def spread_index(number: int, kept: int) -> np.ndarray:
    """Positions of `kept` of `number` examples, evenly spread, as they can be sorted by class.

    int32 [kept], all positions if `kept` is `number`.
    """
    return np.linspace(0, number - 1, kept).round().astype(np.int32)


def split_examples(num_examples: int, name: str = "the data") -> tuple[np.ndarray, np.ndarray]:
    """Holds out one tenth of the examples, at least one, chosen by a fixed permutation.

    Args:
        num_examples: Number of examples, at least 2.
        name: Name of the examples in messages.

    Returns:
        Positions of the training examples and of the held-out examples, both increasing. They
        depend on `num_examples` alone.

    Raises:
        ValueError: If there are fewer than two examples.
    """
    if num_examples < 2:
        raise ValueError(
            f"{name} needs at least 2 examples to hold one out, but has {num_examples}: add "
            "examples, or give a split of your own"
        )
    order = np.random.default_rng(0).permutation(num_examples)
    num_held_out = max(1, num_examples // 10)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def batch_index(seed: int, step: int, num_examples: int, batch_size: int) -> np.ndarray:
    """Positions of the examples in the batch of one step, a pure function of its arguments.

    Batches are consecutive pieces of an endless sequence of random permutations of all examples.
    Every example is therefore used once before any is used again, whatever the batch size.

    Args:
        seed: Seed of the run, at least 0.
        step: Number of the step, counted from 0.
        num_examples: Number of examples in the data set.
        batch_size: Number of examples per step, over all devices.

    Returns:
        int32 [batch_size].
    """
    epochs, offsets = np.divmod(step * batch_size + np.arange(batch_size), num_examples)
    index = np.empty(batch_size, np.int32)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = _permutation(seed, int(epoch), num_examples)[offsets[here]]
    return index


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
