"""Nearest training images, to check for memorisation.

Reference: Song & Ermon (2019), appendix C.
"""

from typing import Any

import numpy as np

BLOCK_BYTES = 100_000_000
"""Memory for the examples that are compared at once, if no block size is given."""


def nearest_neighbors(
    x: np.ndarray, examples: Any, number: int, block_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The examples with the smallest Euclidean distance to each of some points.

    Args:
        x: The points, [points, *shape].
        examples: Array [examples, *shape], or an object with a length whose slices are such
            arrays.
        number: Number of neighbours of each point.
        block_size: Number of examples that are compared at once; None uses as many as take about
            100 MB.

    Returns:
        (indices, distances), int and float64 [points, number], nearest first.

    Raises:
        ValueError: If number is not between 1 and the number of examples, or block_size is less
            than 1.

    Example:
        >>> examples = np.array([[0.0], [1.0], [3.0]])
        >>> index, distance = sj.nearest_neighbors(np.array([[0.9]]), examples, 2)
        >>> index.tolist()
        [[1, 0]]
    """
    if not 1 <= number <= len(examples):
        raise ValueError(
            f"number={number} must be between 1 and the number of examples, {len(examples)}"
        )
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    if block_size is None:
        block_size = max(1, BLOCK_BYTES // (8 * x.shape[1]))
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1")

    # Squared distances and indices of the nearest examples so far.
    squares = np.empty((len(x), 0))
    indices = np.empty((len(x), 0), np.int64)
    for start in range(0, len(examples), block_size):
        block = np.asarray(examples[start : start + block_size], np.float64)
        block = block.reshape(len(block), -1)
        new = np.sum(x**2, 1)[:, None] + np.sum(block**2, 1)[None] - 2 * x @ block.T

        # Merge the block with them, and keep the nearest.
        new_indices = np.broadcast_to(start + np.arange(len(block)), new.shape)
        squares = np.concatenate([squares, new], axis=1)
        indices = np.concatenate([indices, new_indices], axis=1)
        order = np.argsort(squares, axis=1, kind="stable")[:, :number]
        squares = np.take_along_axis(squares, order, 1)
        indices = np.take_along_axis(indices, order, 1)
    return indices, np.sqrt(np.maximum(squares, 0))
