"""Transforms between stored pixels and the values that the network sees.

    dequantize   (v + u) / num_values, u ~ U[0, 1)     pixels v as a density on [0, 1)
    rescale      v / (num_values - 1)                  pixels in [0, 1], without noise
    logit        log(p / (1 - p))                      [0, 1] spread over the real line

`make_prepare` combines them into the random part of data loading, which runs on the devices.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import split_keys, standard_uniform, sum_per_example
from score_jax.typing import AnyBatch, Batch, Images, Keys, Labels, Losses, Pixels


def dequantize(keys: Keys, pixels: Pixels, num_values: int = 256) -> Batch:
    """(v + u) / num_values with u ~ U[0, 1): integer pixels become a density on [0, 1).

    Args:
        keys: One per example.
        pixels: Integers in [0, num_values).
        num_values: Number of values that a pixel can take.

    Returns:
        float32, of the shape of `pixels`.

    Reference: Theis et al. (2016). For 256 values this is x * 255/256 + U/256 of NCSN, with x in
    [0, 1].
    """
    return _from_pixels(pixels, num_values, standard_uniform(keys, pixels.shape[1:]))


def rescale(pixels: Pixels, num_values: int = 256) -> Batch:
    """v / (num_values - 1), float32 in [0, 1], without dequantisation, as in NCSNv2."""
    return _from_pixels(pixels, num_values - 1, None)


def _from_pixels(pixels: Any, scale: int, offset: Any) -> Any:
    """(pixels + offset) / scale in float32; numpy arrays stay numpy arrays."""
    x = pixels.astype(np.float32)
    if offset is not None:
        x = x + offset
    return x / scale


def unit_scale(x: np.ndarray, num_values: int | None, dequantized: bool) -> np.ndarray:
    """Stored examples in the unit of the network's data, without anything random.

    Args:
        x: Integer pixels; or, if num_values is None, values that are returned unchanged.
        num_values: Number of values that a pixel can take, as in `data.dataset.Dataset`.
        dequantized: If True, map pixels to the centres of their dequantisation bins,
            (v + 1/2) / num_values; else to v / (num_values - 1).

    Returns:
        Array of the shape of `x`: float32 for pixels, else of the dtype of `x`.
    """
    x = np.asarray(x)
    if num_values is None:
        return x
    if dequantized:
        return _from_pixels(x, num_values, 0.5)
    return np.asarray(rescale(x, num_values))


def logit(x: Batch, boundary: float = 1e-6) -> Batch:
    """log(p / (1 - p)) with p = boundary + (1 - 2 boundary) x.

    Args:
        x: Values in [0, 1].
        boundary: Keeps the results for 0 and 1 finite, at -+log(1 / boundary - 1), which is 13.8
            for 1e-6.

    Returns:
        Real numbers of the shape and dtype of `x`.

    Reference: Dinh et al. (2017), section 4.1; Papamakarios et al. (2017), whose boundary is 1e-6
    for MNIST and 0.05 for CIFAR-10.
    """
    # Form 1 - p from 1 - x, which keeps its digits near x = 1.
    scale = 1 - 2 * boundary
    p = boundary + scale * x
    q = boundary + scale * (1 - x)
    return jnp.log(p) - jnp.log(q)


def inverse_logit(y: Batch, boundary: float = 1e-6) -> Batch:
    """The inverse of `logit`; values outside its range are clipped to 0 or 1."""
    return jnp.clip((jax.nn.sigmoid(y) - boundary) / (1 - 2 * boundary), 0, 1)


def logit_log_volume(y: Batch, boundary: float = 1e-6) -> Losses:
    """Log determinant of the Jacobian of `logit`, [batch], at y = logit(x).

    Added to the log density of y, it gives the log density of x.

    Args:
        y: Logits, [batch, *shape].
        boundary: That of `logit`.
    """
    # The derivative is (1 - 2 boundary) / (p (1 - p)) with p = sigmoid(y).
    logs = math.log1p(-2 * boundary) - jax.nn.log_sigmoid(y) - jax.nn.log_sigmoid(-y)
    return sum_per_example(logs)


def random_flip(keys: Keys, x: Images) -> Images:
    """Mirrors each image left to right with probability 1/2."""
    flip = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


@dataclasses.dataclass(frozen=True)
class _Prepare:
    """The function that `make_prepare` returns; equal for equal arguments."""

    num_values: int | None
    dequantize: bool
    flip: bool
    logit: bool
    label_dropout: float
    num_classes: int | None

    def __call__(
        self, keys: Keys, x: AnyBatch, label: Labels | None = None
    ) -> tuple[AnyBatch, Labels | None]:
        draw_keys, flip_keys, drop_keys = split_keys(keys, 3)
        x = self._scaled(draw_keys, x)
        if self.flip:
            if x.ndim != 4:
                raise ValueError(
                    "flip=True needs images [batch, height, width, channels], but x is "
                    f"{list(x.shape)}: set flip=False"
                )
            x = random_flip(flip_keys, x)
        if self.logit:
            x = logit(x)
        return x, self._with_dropout(drop_keys, label)

    def _scaled(self, keys, x):
        if self.num_values is None or jnp.issubdtype(x.dtype, jnp.floating):
            return x
        if x.dtype != jnp.uint8:
            raise ValueError(
                f"x is {x.dtype}, but must be floating-point values or uint8 pixels: convert it"
            )
        if self.dequantize:
            return dequantize(keys, x, self.num_values)
        return rescale(x, self.num_values)

    def _with_dropout(self, keys, label):
        if label is None or self.label_dropout == 0:
            return label
        if self.num_classes is None:
            raise ValueError(
                f"label_dropout={self.label_dropout} needs num_classes, the label that stands for "
                "any class: set num_classes, or label_dropout=0"
            )
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.label_dropout))(keys)
        return jnp.where(dropped, self.num_classes, label)


def make_prepare(
    num_values: int | None = 256,
    *,
    dequantize: bool = True,
    flip: bool = False,
    logit: bool = False,
    label_dropout: float = 0.0,
    num_classes: int | None = None,
) -> _Prepare:
    """Builds the random part of data loading.

    Args:
        num_values: Number of values that a uint8 pixel can take, at least 2; None if the values
            are not pixels. Floating-point values are never rescaled.
        dequantize: If True, pixels become (v + u) / num_values with u ~ U[0, 1); else
            v / (num_values - 1).
        flip: If True, mirror each image left to right with probability 1/2.
        logit: If True, map [0, 1] to the real line by `logit`, after all else.
        label_dropout: Probability in [0, 1) of replacing a label by num_classes, which stands for
            any class, as in classifier-free guidance.
        num_classes: Number of classes; needed only where labels are dropped.

    Returns:
        prepare: (keys, x, label=None) -> (x, label), with one key per example. Equal arguments
        give equal, hashable functions, so that compiled programs are reused.

    Raises:
        ValueError: If num_values or label_dropout is out of range. `prepare` raises it if x is
            neither floating-point nor uint8, or not images while `flip` is True.

    Example:
        >>> prepare = sj.make_prepare(256, flip=True)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> x, label = prepare(keys, jnp.zeros((2, 8, 8, 1), jnp.uint8), None)
        >>> x.dtype.name, label
        ('float32', None)
    """
    if num_values is not None and num_values < 2:
        raise ValueError(f"num_values={num_values} must be at least 2, or None for no pixels")
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout={label_dropout} must be in [0, 1)")
    return _Prepare(num_values, dequantize, flip, logit, label_dropout, num_classes)


prepare_pixels = make_prepare()
"""Dequantises uint8 pixels to [0, 1); leaves floating-point values and labels unchanged."""
