"""Array shapes and the protocols that cross the package's borders.

    ScoreFn = (x, level) -> score
    LossFn  = (keys, score_fn, x, level, sigmas) -> losses
    Sampler = (keys, score_fn, x, sigmas, *, step_size, num_steps, ...) -> Trajectory

`batch` is the number of examples or chains, `shape` the shape of one of them, `levels` the number
of noise levels. A level is an index into `sigmas`: 0 is the largest sigma.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, Num, UInt8

Scalar: TypeAlias = float | np.floating | Float[Array, ""] | Float[np.ndarray, ""]
Batch: TypeAlias = Float[Array, "batch *shape"] | Float[np.ndarray, "batch *shape"]
JaxBatch: TypeAlias = Float[Array, "batch *shape"]
"""As `Batch`, for results, which are never numpy arrays."""
AnyBatch: TypeAlias = Num[Array, "_ *_"] | Num[np.ndarray, "_ *_"]
"""Arrays of any numeric type, for functions that check their arguments themselves."""
Images: TypeAlias = (
    Float[Array, "batch height width channels"] | Float[np.ndarray, "batch height width channels"]
)
Pixels: TypeAlias = UInt8[Array, "batch *shape"] | UInt8[np.ndarray, "batch *shape"]
Levels: TypeAlias = Integer[Array, "batch"] | Integer[np.ndarray, "batch"]
AnyLevels: TypeAlias = Levels | Float[Array, "batch"] | Float[np.ndarray, "batch"]
"""Levels, or floating-point positions between them as in `noise.sigma_at`."""
Labels: TypeAlias = Integer[Array, "batch"] | Integer[np.ndarray, "batch"]
Sigmas: TypeAlias = Float[Array, "levels"] | Float[np.ndarray, "levels"]
Losses: TypeAlias = Float[Array, "batch"]
OneKey: TypeAlias = Key[Array, ""]
Keys: TypeAlias = Key[Array, "batch"]
AnyKeys: TypeAlias = Key[Array, "*_"]
"""Keys of any number, for functions that check their arguments themselves."""
Index: TypeAlias = Integer[Array, "batch"] | Integer[np.ndarray, "batch"]
Flags: TypeAlias = Bool[Array, "levels batch"]
Mask: TypeAlias = Bool[Array, "batch *shape"] | Bool[np.ndarray, "batch *shape"]
Params: TypeAlias = Any

ScoreFn: TypeAlias = Callable[[Any, Any], Array]
"""(x [batch, *shape], level int [batch]) -> score [batch, *shape], the gradient of log density."""

LossFn: TypeAlias = Callable[[Keys, ScoreFn, Any, Any, Any], Array]
"""(keys [batch], score_fn, x [batch, *shape], level [batch], sigmas) -> losses [batch]."""

PrepareFn: TypeAlias = Callable[..., tuple[Any, Any]]
"""(keys, x, label) -> (x, label): the random part of data loading."""

NoiseFn: TypeAlias = Callable[[Any], Array]
"""n -> standard normal noise [batch, *shape] of step number n, counted from 0."""

ObserveFn: TypeAlias = Callable[[Any], Any]
"""Values of one step, a `samplers.loop.Step`, -> pytree of arrays [batch, ...]."""

__all__ = [
    "AnyBatch",
    "AnyKeys",
    "AnyLevels",
    "Array",
    "Batch",
    "Flags",
    "Float",
    "Images",
    "Index",
    "Int",
    "JaxBatch",
    "Keys",
    "Labels",
    "Levels",
    "LossFn",
    "Losses",
    "Mask",
    "NoiseFn",
    "ObserveFn",
    "OneKey",
    "Params",
    "Pixels",
    "PrepareFn",
    "Scalar",
    "ScoreFn",
    "Sigmas",
]
