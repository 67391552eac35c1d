"""Convolutions, instance norms, pooling and resizing of the two published network families.

    instance norm++:  gamma (h - mu) / sqrt(var + eps) + alpha (mu - mean(mu)) / sqrt(var(mu) + eps) + beta

Feature maps are [batch, height, width, features].
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.models.convolution import convolve
from score_jax.typing import Array, Float, Levels

FeatureMap = Float[Array, "batch _ _ _"]


def flat_uniform(bound: float):
    """An initialiser: uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        # Drawn flat: the same numbers as with the full shape, compiled many times faster.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


def flat_normal(variance: float):
    """An initialiser: normal with variance `variance / fan_in`, fan_in being the product of all dimensions but the last."""

    def init(key, shape, dtype=jnp.float32):
        return (variance / math.prod(shape[:-1])) ** 0.5 * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

    return init


class Conv(nn.Module):
    """A square convolution of stride 1, padded so that the size stays, in the precision of what it is given.

    Weights and biases start uniform in +-1/sqrt(fan_in), as in the published networks.

    Attributes:
        features: Number of output features.
        kernel_size: Height and width of the kernel; odd.
        dilation: Distance between the kernel's taps, in pixels.
        use_bias: Whether to add a bias.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        size = self.kernel_size
        init = flat_uniform((size * size * x.shape[-1]) ** -0.5)
        kernel = self.param("kernel", init, (size, size, x.shape[-1], self.features))
        y = convolve(x, jnp.asarray(kernel, x.dtype), self.dilation)
        if self.use_bias:
            y = y + jnp.asarray(self.param("bias", init, (self.features,)), x.dtype)[None, None, None]
        return y


class ConditionalInstanceNormPlus(nn.Module):
    """Instance norm++ with a scale, a weight of the mean and a shift for every noise level.

    Reference: Song & Ermon (2019), appendix A.1.
    """

    num_levels: int

    @nn.compact
    def __call__(self, h: FeatureMap, level: Levels) -> FeatureMap:
        features = h.shape[-1]

        def init(key, shape):
            near_one = 1 + 0.02 * jax.random.normal(key, (shape[0] * 2 * features,)).reshape(shape[0], 2 * features)
            return jnp.concatenate([near_one, jnp.zeros((shape[0], features))], axis=1)

        # One row per level: gamma, alpha, beta.
        embedding = jnp.asarray(self.param("embedding", init, (self.num_levels, 3 * features)))
        gamma, alpha, beta = jnp.split(embedding[level][:, None, None], 3, axis=-1)
        return _instance_norm_plus(h, gamma, alpha, beta)


class InstanceNormPlus(nn.Module):
    """Instance norm++ with one scale, weight of the mean and shift; the noise level plays no part.

    Reference: Song & Ermon (2020), appendix.
    """

    @nn.compact
    def __call__(self, h: FeatureMap, level: Levels) -> FeatureMap:
        del level
        shape = (h.shape[-1],)
        gamma, alpha = (self.param(name, lambda key: 1 + 0.02 * jax.random.normal(key, shape)) for name in ("gamma", "alpha"))
        beta = self.param("beta", nn.initializers.zeros, shape)
        return _instance_norm_plus(h, *(jnp.asarray(value)[None, None, None] for value in (gamma, alpha, beta)))


def _instance_norm_plus(h: FeatureMap, gamma: Array, alpha: Array, beta: Array) -> FeatureMap:
    epsilon, dtype = 1e-5, h.dtype
    h = h.astype(jnp.float32)  # statistics are, whatever the precision of the rest
    mu = jnp.mean(h, axis=(1, 2), keepdims=True)
    # Differences from a mean that counts as a constant, and what is then missing, which is 0 but has a derivative: so that the
    # norm is one multiplication and addition per value, and its gradient two sums and one more.
    constant = jax.lax.stop_gradient(mu)
    centered, missing = h - constant, mu - constant
    variance = jnp.mean(centered**2, axis=(1, 2), keepdims=True) - missing**2
    # Over the features of one example, and unbiased: divided by features - 1.
    mu_hat = (mu - jnp.mean(mu, axis=-1, keepdims=True)) * jax.lax.rsqrt(jnp.var(mu, axis=-1, keepdims=True, ddof=1) + epsilon)
    scale = gamma * jax.lax.rsqrt(variance + epsilon)
    return (centered * scale + (beta + gamma * alpha * mu_hat - missing * scale)).astype(dtype)


def elu(x: Array) -> Array:
    """x above 0, exp(x) - 1 below."""
    # As that difference, which near 0 is off by one rounding of 1 at most, twice as fast on a CPU as expm1.
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def compute_dtype(name: str) -> jnp.dtype:
    """The type of that name.

    Raises:
        ValueError: If a network cannot compute in it.
    """
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={name!r} is not a precision that networks compute in: choose float32 or bfloat16")
    return jnp.dtype(name)


def without_norm(name: str):
    """In the place of a norm: nothing."""
    del name
    return lambda h, level: h


def mean_pool_2x2(h: FeatureMap) -> FeatureMap:
    """Halves height and width, which must be even, by the mean of each 2x2 square."""
    batch, height, width, features = h.shape
    return h.reshape(batch, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))


def mean_pool_5x5(h: FeatureMap) -> FeatureMap:
    """The mean of the 5x5 square around each pixel, zeros beyond the border counted."""
    return _over_5x5(h, 0.0, jax.lax.add) / 25


def max_pool_5x5(h: FeatureMap) -> FeatureMap:
    """The maximum of the 5x5 square around each pixel, what lies beyond the border not counted."""
    return _over_5x5(h, -jnp.inf, jax.lax.max)


def _over_5x5(h: FeatureMap, initial: float, operation: Callable[[Array, Array], Array]) -> FeatureMap:
    # Columns, then rows: 10 operations per value, not 25.
    for window in ((1, 5, 1, 1), (1, 1, 5, 1)):
        h = jax.lax.reduce_window(h, np.array(initial, h.dtype), operation, window, (1, 1, 1, 1), "SAME")
    return h


def resize_aligned(h: FeatureMap, size: tuple[int, int]) -> FeatureMap:
    """Bilinear resize to (height, width) `size`, with the corner pixels' centres kept in place."""
    if h.shape[1:3] == size:
        return h
    rows, columns = (jnp.asarray(_interpolation(old, new), h.dtype) for old, new in zip(h.shape[1:3], size, strict=True))
    return jnp.einsum("yh,bhwf,xw->byxf", rows, h, columns)


def _interpolation(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of linear interpolation between `old` points with the ends kept."""
    position = np.linspace(0, old - 1, new)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(old)[None])).astype(np.float32)
