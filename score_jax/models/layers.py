"""Convolutions, instance norms, pooling and resizing of the two published network families.

    instance norm++:
    gamma ((h - mu) / sqrt(var + eps) + alpha (mu - mean(mu)) / sqrt(var(mu) + eps)) + beta

Feature maps are [batch, height, width, features].
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.ops.winograd import convolve
from score_jax.typing import Array, Float, Labels, Levels

FeatureMap = Float[Array, "batch _ _ _"]


def flat_uniform(bound: float):
    """An initialiser: uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        # A flat draw has the same numbers as a shaped one and compiles many times faster.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


def flat_normal(variance: float):
    """An initialiser: normal with variance `variance / fan_in`.

    The fan-in is the product of all dimensions but the last.
    """

    def init(key, shape, dtype=jnp.float32):
        std = (variance / math.prod(shape[:-1])) ** 0.5
        return std * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

    return init


class Conv(nn.Module):
    """A square convolution in the precision of its input: 'same' padding, or halving the size.

    Attributes:
        features: Number of output features.
        kernel_size: Height and width of the kernel; odd. Ignored if `halve`.
        dilation: Distance between the kernel's taps, in pixels.
        use_bias: If True, add a bias.
        kernel_init: Initialiser of the weights; biases then start at 0. None initialises both
            uniformly in +-1/sqrt(fan_in), as in the published networks.
        halve: If True, use a 2x2 kernel with stride 2, which needs an even height and width.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer | None = None
    halve: bool = False

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        size = 2 if self.halve else self.kernel_size
        kernel_init, bias_init = self.kernel_init, nn.initializers.zeros
        if kernel_init is None:
            kernel_init = bias_init = flat_uniform((size * size * x.shape[-1]) ** -0.5)
        shape = (size, size, x.shape[-1], self.features)
        kernel = jnp.asarray(self.param("kernel", kernel_init, shape, jnp.float32), x.dtype)
        y = _halved(x, kernel) if self.halve else convolve(x, kernel, self.dilation)
        if self.use_bias:
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
            y = y + jnp.asarray(bias, x.dtype)[None, None, None]
        return y


def dense(h: Array, features: int, **fields: Any) -> Array:
    """`flax.linen.Dense` in the calling module, as a product of two matrices.

    XLA:CPU transposes an operand of the weights' gradient if the input has more than two axes.

    Args:
        h: Values, [..., features in].
        features: Number of features that it returns.
        **fields: Fields of the layer.
    """
    return _of_rows(nn.Dense(features, **fields), h)


def _of_rows(function: Callable[[Array], Array], x: Array) -> Array:
    """Applies a function of matrices to the last axis of `x`."""
    y = function(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _halved(x: FeatureMap, kernel: Array) -> FeatureMap:
    """The 2x2 convolution of stride 2, as a matrix product over the pixels of each square."""
    kernel = kernel.reshape(-1, kernel.shape[-1])
    return _of_rows(lambda rows: rows @ kernel, from_squares_to_features(x, 2))


def from_squares_to_features(x: FeatureMap, size: int) -> FeatureMap:
    """Makes one position of every square of `size` x `size` positions."""
    batch, height, width, features = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, features).swapaxes(2, 3)
    return x.reshape(batch, height // size, width // size, size * size * features)


def from_features_to_squares(h: FeatureMap, size: int) -> FeatureMap:
    """The inverse of `from_squares_to_features`."""
    batch, height, width, features = h.shape
    features //= size * size
    h = h.reshape(batch, height, width, size, size, features).swapaxes(2, 3)
    return h.reshape(batch, height * size, width * size, features)


class ConditionalInstanceNormPlus(nn.Module):
    """Instance norm++ with a scale, a weight of the mean and a shift for every noise level.

    Reference: Song & Ermon (2019), appendix A.1.
    """

    num_levels: int

    @nn.compact
    def __call__(self, h: FeatureMap, level: Levels) -> FeatureMap:
        features = h.shape[-1]

        def init(key, shape):
            num_levels = shape[0]
            noise = jax.random.normal(key, (num_levels * 2 * features,), jnp.float32)
            near_one = 1 + 0.02 * noise.reshape(num_levels, 2 * features)
            beta = jnp.zeros((num_levels, features), jnp.float32)
            return jnp.concatenate([near_one, beta], axis=1)

        # One row per level: gamma, alpha, beta.
        shape = (self.num_levels, 3 * features)
        embedding = jnp.asarray(self.param("embedding", init, shape))
        gamma, alpha, beta = jnp.split(embedding[level][:, None, None], 3, axis=-1)
        return _instance_norm_plus(h, gamma, alpha, beta)


class InstanceNormPlus(nn.Module):
    """Instance norm++ with one scale, weight of the mean and shift; the noise level is ignored.

    Reference: Song & Ermon (2020), appendix.
    """

    @nn.compact
    def __call__(self, h: FeatureMap, level: Levels) -> FeatureMap:
        del level
        shape = (h.shape[-1],)

        def near_one(key):
            return 1 + 0.02 * jax.random.normal(key, shape, jnp.float32)

        gamma, alpha = self.param("gamma", near_one), self.param("alpha", near_one)
        beta = self.param("beta", nn.initializers.zeros, shape, jnp.float32)
        broadcast = (jnp.asarray(value)[None, None, None] for value in (gamma, alpha, beta))
        return _instance_norm_plus(h, *broadcast)


class ClassConditional(nn.Module):
    """A norm, followed by a scale and a shift for every class that start at 1 and 0.

    Attributes:
        norm: Constructor of the norm from its name.
        num_classes: Number of classes; the label num_classes stands for no class.
    """

    norm: Callable[..., nn.Module]
    num_classes: int

    @nn.compact
    def __call__(self, h: FeatureMap, condition: tuple[Levels, Labels]) -> FeatureMap:
        level, label = condition
        h = self.norm(name="norm")(h, level)
        shape = (self.num_classes + 1, 2 * h.shape[-1])
        embedding = jnp.asarray(self.param("classes", nn.initializers.zeros, shape, jnp.float32))
        scale, shift = jnp.split(embedding[label][:, None, None], 2, axis=-1)
        return (h * (1 + scale) + shift).astype(h.dtype)


def _instance_norm_plus(h: FeatureMap, gamma: Array, alpha: Array, beta: Array) -> FeatureMap:
    epsilon, dtype = 1e-5, h.dtype
    # Statistics are always computed in float32.
    h = h.astype(jnp.float32)
    mu, missing, centered, variance = (_moments if dtype == jnp.float32 else _raw_moments)(h)

    # Normalise the means over the features of one example, with the unbiased variance.
    mu_hat = mu - jnp.mean(mu, axis=-1, keepdims=True)
    mu_hat = mu_hat * jax.lax.rsqrt(jnp.var(mu, axis=-1, keepdims=True, ddof=1) + epsilon)

    scale = gamma * jax.lax.rsqrt(variance + epsilon)
    scaled = centered * scale
    shift = beta + gamma * alpha * mu_hat - missing * scale
    return (scaled + shift).astype(dtype)


def _moments(h: FeatureMap) -> tuple[Array, Array, Array, Array]:
    """The mean over pixels, its part not yet subtracted, the map minus the rest, the variance."""
    mu = jnp.mean(h, axis=(1, 2), keepdims=True)

    # Subtract a stop-gradient mean; `missing` is numerically zero but restores its gradient. The
    # norm is then one multiplication and one addition per value, and its gradient two sums.
    constant = jax.lax.stop_gradient(mu)
    centered, missing = h - constant, mu - constant
    return mu, missing, centered, jnp.mean(centered**2, axis=(1, 2), keepdims=True) - missing**2


def _raw_moments(h: FeatureMap) -> tuple[Array, Array, Array, Array]:
    """As `_moments`, but with nothing subtracted; for maps that were rounded to bfloat16.

    Both sums are made in one pass, which compilers for accelerators fuse with the convolution that
    computes the map. The error of the variance, 2^-24 mu^2 relative to 1, is below that of the
    rounded values.
    """
    mu = jnp.mean(h, axis=(1, 2), keepdims=True)
    variance = jnp.mean(h**2, axis=(1, 2), keepdims=True) - mu**2
    return mu, mu, h, jnp.maximum(variance, 0)


def elu(x: Array) -> Array:
    """x above 0, exp(x) - 1 below."""
    # exp(x) - 1 instead of expm1: twice as fast on CPU, absolute error at most 1 ulp of 1.
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of that name.

    Raises:
        ValueError: If networks cannot compute in it.
    """
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={name!r} is not supported: choose float32 or bfloat16")
    return jnp.dtype(name)


def without_norm(name: str):
    """Identity used where a norm is expected."""
    del name
    return lambda h, level: h


def mean_pool_2x2(h: FeatureMap) -> FeatureMap:
    """Halves height and width, which must be even, by the mean of each 2x2 square."""
    batch, height, width, features = h.shape

    def of_squares(h):
        return h.reshape(batch, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))

    def of_windows(h):
        window, zero = (1, 2, 2, 1), np.array(0, h.dtype)
        return jax.lax.reduce_window(h, zero, jax.lax.add, window, window, "VALID") / 4

    # Compilers for accelerators fuse windows with the convolution; a CPU keeps the reshape.
    return jax.lax.platform_dependent(h, cpu=of_squares, default=of_windows)


def mean_pool_5x5(h: FeatureMap) -> FeatureMap:
    """The mean of the 5x5 square around each pixel; zero padding counts in the mean."""
    return _over_5x5(h, 0.0, jax.lax.add) / 25


def max_pool_5x5(h: FeatureMap) -> FeatureMap:
    """The maximum of the 5x5 square around each pixel; pixels beyond the border are ignored."""
    return _over_5x5(h, -jnp.inf, jax.lax.max)


def _over_5x5(
    h: FeatureMap, initial: float, operation: Callable[[Array, Array], Array]
) -> FeatureMap:
    # Columns, then rows: 10 operations per value instead of 25.
    start = np.array(initial, h.dtype)
    for window in ((1, 5, 1, 1), (1, 1, 5, 1)):
        h = jax.lax.reduce_window(h, start, operation, window, (1, 1, 1, 1), "SAME")
    return h


def resize_aligned(h: FeatureMap, size: tuple[int, int]) -> FeatureMap:
    """Bilinear resize to (height, width) `size`, with aligned corner pixels."""
    if h.shape[1:3] == size:
        return h
    rows = jnp.asarray(_interpolation(h.shape[1], size[0]), h.dtype)
    columns = jnp.asarray(_interpolation(h.shape[2], size[1]), h.dtype)
    return jnp.einsum("yh,bhwf,xw->byxf", rows, h, columns)


def _interpolation(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of linear interpolation between `old` points with fixed ends."""
    position = np.linspace(0, old - 1, new)
    distance = np.abs(position[:, None] - np.arange(old)[None])
    return np.maximum(0, 1 - distance).astype(np.float32)
