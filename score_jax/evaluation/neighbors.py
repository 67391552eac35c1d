"""The training images nearest to samples: whether a network copies.

Reference: Song & Ermon (2019), appendix C.
"""

from typing import Any

import numpy as np


def nearest_neighbors(x: np.ndarray, examples: Any, number: int, block_size: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The examples with the smallest Euclidean distance to each of some points.

    Args:
        x: The points, [points, *event].
        examples: [examples, *event]; or anything that has a length and gives such arrays for slices.
        number: How many neighbours of each.
        block_size: Examples that are compared at once; 0: as many as make up about 100 MB.

    Returns:
        Their indices, int [points, number], nearest first, and distances, float64 of the same shape.

    Raises:
        ValueError: If number is not between 1 and the number of examples.
    """
    if not 1 <= number <= len(examples):
        raise ValueError(f"number={number} must be between 1 and the number of examples, {len(examples)}")
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    block_size = block_size or max(1, 100_000_000 // (8 * x.shape[1]))
    indices, squares = np.empty((len(x), 0), np.int64), np.empty((len(x), 0))
    for start in range(0, len(examples), block_size):
        block = np.asarray(examples[start : start + block_size], np.float64)
        block = block.reshape(len(block), -1)
        found = np.sum(x**2, 1)[:, None] + np.sum(block**2, 1)[None] - 2 * x @ block.T
        squares = np.concatenate([squares, found], axis=1)
        indices = np.concatenate([indices, np.broadcast_to(start + np.arange(len(block)), found.shape)], axis=1)
        order = np.argsort(squares, axis=1, kind="stable")[:, :number]
        squares, indices = np.take_along_axis(squares, order, 1), np.take_along_axis(indices, order, 1)
    return indices, np.sqrt(np.maximum(squares, 0))
