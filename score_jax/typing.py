"""The shapes that cross module borders, and the protocols of the package.

    ScoreFn = (x, level) -> score
    LossFn  = (keys, score_fn, x, level, sigmas) -> losses
    Trainer = (init: params -> state, step: (key, state, x) -> (state, metrics))

`batch` is the number of examples or chains, `event` the shape of one of them, `levels` the number of
noise levels. A level is an index into `sigmas`: 0 is the largest sigma.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, UInt8

Scalar: TypeAlias = float | np.floating | Float[Array, ""] | Float[np.ndarray, ""]
Batch: TypeAlias = Float[Array, "batch *event"] | Float[np.ndarray, "batch *event"]
Images: TypeAlias = Float[Array, "batch height width channels"] | Float[np.ndarray, "batch height width channels"]
Pixels: TypeAlias = UInt8[Array, "batch height width channels"] | UInt8[np.ndarray, "batch height width channels"]
Levels: TypeAlias = Integer[Array, "batch"] | Integer[np.ndarray, "batch"]
Sigmas: TypeAlias = Float[Array, "levels"] | Float[np.ndarray, "levels"]
Losses: TypeAlias = Float[Array, "batch"]
OneKey: TypeAlias = Key[Array, ""]
Keys: TypeAlias = Key[Array, "batch"]
Index: TypeAlias = Integer[Array, "batch"] | Integer[np.ndarray, "batch"]
Flags: TypeAlias = Bool[Array, "levels batch"]
Mask: TypeAlias = Bool[Array, "batch *event"] | Bool[np.ndarray, "batch *event"]
Params: TypeAlias = Any

ScoreFn: TypeAlias = Callable[[Array, Array], Array]
"""(x [batch, *event], level int [batch]) -> score [batch, *event], the gradient of log density."""

LossFn: TypeAlias = Callable[[Keys, ScoreFn, Array, Array, Array], Array]
"""(keys [batch], score_fn, x [batch, *event], level [batch], sigmas) -> losses [batch]."""

__all__ = [
    "Array",
    "Batch",
    "Flags",
    "Float",
    "Images",
    "Index",
    "Int",
    "Keys",
    "Levels",
    "LossFn",
    "Losses",
    "Mask",
    "OneKey",
    "Params",
    "Pixels",
    "Scalar",
    "ScoreFn",
    "Sigmas",
]
