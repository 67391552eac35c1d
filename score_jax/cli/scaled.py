"""Stored examples in the unit of samples."""

import numpy as np

from score_jax.data.dataset import LazyImages
from score_jax.data.transforms import unit_scale


class ScaledExamples:
    """Examples in the unit of samples, decoded slice by slice.

    Args:
        stored: Examples as a data set stores them.
        num_values: Number of values of a pixel, as in `data.dataset.Dataset`.
        dequantized: If True, pixels stand for the middle of their dequantisation interval.
        index: Indices of the examples; None takes all.
    """

    def __init__(
        self,
        stored: np.ndarray | LazyImages,
        num_values: int | None,
        dequantized: bool,
        index: np.ndarray | None = None,
    ):
        self._stored, self._num_values, self._dequantized = stored, num_values, dequantized
        self.index = np.arange(len(stored)) if index is None else index

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of examples, and the shape of one."""
        return (len(self), *self._stored.shape[1:])

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.at(np.arange(len(self))[rows])

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The examples at these positions, float32 [examples, *shape]."""
        stored = self._stored[self.index[positions]]
        return unit_scale(stored, self._num_values, self._dequantized)
