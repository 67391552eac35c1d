"""Linear measurements y = A x of images, for inverse problems.

    operator: x [batch, *shape] -> y [batch, *measurement],   linear, each example by itself

Each operator of this module is a pytree of its arrays, so that compiled programs take them as
arguments. Any other linear JAX function serves as well: `adjoint` transposes it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Complex

from score_jax.typing import Array, Batch, OneKey

Operator = Callable[[Any], Array]
"""x [batch, *shape] -> y [batch, *measurement], a linear function."""

AnyMask = Bool[Array, "*shape"] | Bool[np.ndarray, "*shape"]
PixelMask = Bool[Array, "height width"] | Bool[np.ndarray, "height width"]
Coils = Complex[Array, "*_"] | Complex[np.ndarray, "*_"]
HIGHEST = jax.lax.Precision.HIGHEST


def adjoint(operator: Operator, x: Any) -> Operator:
    """The adjoint A^T of a linear operator: <A x, y> = <x, A^T y>.

    Args:
        operator: A linear JAX function [batch, *shape] -> [batch, *measurement] of real arrays.
        x: An array of the operator's input shape and dtype, or a `jax.ShapeDtypeStruct`.

    Returns:
        y [batch, *measurement] -> [batch, *shape], for the same batch size as `x`.

    Raises:
        ValueError: If JAX cannot transpose the operator, as it is not linear.

    Example:
        >>> x = jnp.ones((1, 4, 4, 1))
        >>> back = sj.adjoint(sj.block_mean(2), x)
        >>> float(back(jnp.ones((1, 2, 2, 1)))[0, 0, 0, 0])
        0.25
    """
    measured = jax.eval_shape(operator, jax.ShapeDtypeStruct(x.shape, x.dtype))
    transposed = jax.linear_transpose(operator, jax.ShapeDtypeStruct(x.shape, x.dtype))
    try:
        jax.eval_shape(transposed, measured)
    except Exception as error:  # JAX raises errors of several types here.
        raise ValueError(
            f"the operator is not a linear JAX function of an array {list(x.shape)}, so it has no "
            f"adjoint: {error}"
        ) from error
    return lambda y: transposed(y)[0]


def mask(mask: AnyMask) -> Operator:
    """Measures the known entries: [batch, *shape] -> [batch, num_known, *rest].

    Args:
        mask: True where an entry is known. Its shape is that of x, or the first axes of it: a
            mask [height, width] keeps all channels of a pixel, the axes `rest`.

    Raises:
        ValueError: If nothing is known; when applied, if the shape of x does not fit.

    Example:
        >>> left = jnp.zeros((8, 8, 1), bool).at[:, :4].set(True)
        >>> sj.mask(left)(jnp.ones((2, 8, 8, 1))).shape
        (2, 32)
    """
    known = _indices(mask)
    return jax.tree_util.Partial(_select, known, jnp.asarray(mask))


def _indices(mask: AnyMask) -> Array:
    """Flat indices of the entries that are True, int32."""
    if isinstance(mask, jax.core.Tracer):
        raise ValueError("mask is traced, but the number of measurements depends on its values")
    indices = np.flatnonzero(np.asarray(mask)).astype(np.int32)
    if not indices.size:
        raise ValueError(f"mask {list(mask.shape)} is False everywhere: nothing is measured")
    return jnp.asarray(indices)


def _select(known: Array, mask: Array, x: Batch) -> Array:
    if x.shape[1 : 1 + mask.ndim] != mask.shape:
        raise ValueError(
            f"x is {list(x.shape)}, but the mask {list(mask.shape)} needs [batch, "
            f"{', '.join(map(str, mask.shape))}, ...]"
        )
    x = jnp.asarray(x).reshape(x.shape[0], mask.size, *x.shape[1 + mask.ndim :])
    return x.at[:, known].get(indices_are_sorted=True, unique_indices=True)


def grayscale(weights: Sequence[float] = (0.299, 0.587, 0.114)) -> Operator:
    """Weighted sum of the channels: [batch, ..., channels] -> [batch, ..., 1].

    Args:
        weights: One per channel; by default the luma of ITU-R BT.601, for red, green and blue.

    Raises:
        ValueError: If there are no weights; when applied, if x has another number of channels.

    Example:
        >>> sj.grayscale()(jnp.ones((1, 8, 8, 3))).shape
        (1, 8, 8, 1)
    """
    if not len(weights):
        raise ValueError("weights must name one weight per channel, such as (0.3, 0.6, 0.1)")
    return jax.tree_util.Partial(_weigh_channels, jnp.asarray(weights, jnp.float32))


def _weigh_channels(weights: Array, x: Batch) -> Array:
    if x.ndim < 2 or x.shape[-1] != len(weights):
        raise ValueError(
            f"x is {list(x.shape)}, but {len(weights)} weights need [batch, ..., {len(weights)}]"
        )
    return jnp.matmul(x, jnp.asarray(weights, x.dtype)[:, None], precision=HIGHEST)


def block_mean(factor: int) -> Operator:
    """Means of blocks of factor x factor pixels, for super-resolution.

    It maps [batch, height, width, *rest] to [batch, height / factor, width / factor, *rest].

    Args:
        factor: Side of a block in pixels, at least 1.

    Raises:
        ValueError: If factor is less than 1; when applied, if it does not divide both sides.

    Example:
        >>> sj.block_mean(2)(jnp.ones((1, 8, 8, 3))).shape
        (1, 4, 4, 3)
    """
    if factor < 1:
        raise ValueError(f"factor={factor} must be at least 1")
    return jax.tree_util.Partial(_BlockMean(int(factor)))


@dataclasses.dataclass(frozen=True)
class _BlockMean:
    """Equal for equal factors, so that compiled programs are reused."""

    factor: int

    def __call__(self, x: Batch) -> Array:
        height, width = _image_sides(x)
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"factor={self.factor} must divide the sides of the image, {height}x{width}"
            )
        blocks = (height // self.factor, self.factor, width // self.factor, self.factor)
        return jnp.mean(x.reshape(x.shape[0], *blocks, *x.shape[3:]), axis=(2, 4))


def blur(std: float) -> Operator:
    """Gaussian blur of images [batch, height, width, *rest], of the same shape.

    The kernel is cut off at 4 std and normalised to sum 1. At the border the image is reflected
    with its last pixel repeated (d c b a | a b c d | d c b a), so that the blur keeps constants
    and the mean of an image, and is its own adjoint.

    Args:
        std: Standard deviation of the kernel in pixels, above 0.

    Raises:
        ValueError: If std is not positive and finite; when applied, if x is no image.

    Example:
        >>> sj.blur(1.0)(jnp.ones((1, 8, 8, 1))).shape
        (1, 8, 8, 1)
    """
    if not 0 < std < math.inf:
        raise ValueError(f"std={std} must be positive and finite, in pixels")
    radius = int(4 * std + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    return jax.tree_util.Partial(_blur, jnp.asarray(weights / weights.sum(), jnp.float32))


def _blur(kernel: Array, x: Batch) -> Array:
    height, width = _image_sides(x)
    rows, columns = (_reflecting_convolution(kernel, side, x.dtype) for side in (height, width))
    return jnp.einsum("ih,jw,bhw...->bij...", rows, columns, x, precision=HIGHEST)


def _reflecting_convolution(kernel: Array, side: int, dtype: Any) -> Array:
    """Matrix [side, side] of the convolution of a line with reflected ends."""
    radius = len(kernel) // 2
    target = np.repeat(np.arange(side), len(kernel))
    source = (target.reshape(side, -1) + np.arange(-radius, radius + 1)).ravel() % (2 * side)
    source = np.minimum(source, 2 * side - 1 - source)
    matrix = jnp.zeros((side, side), kernel.dtype)
    return matrix.at[target, source].add(jnp.tile(jnp.asarray(kernel), side)).astype(dtype)


def random_projections(key: OneKey, shape: Sequence[int], num: int) -> Operator:
    """Projections on random directions, for compressed sensing: [batch, *shape] -> [batch, num].

    Each row of the matrix is uniform on the unit sphere: standard normal, divided by its Euclidean
    norm. A measurement of white data has the standard deviation of one entry.

    Args:
        key: Key of the matrix.
        shape: Shape of one example; the matrix takes `num` times its size.
        num: Number of measurements, at least 1.

    Raises:
        ValueError: If num is less than 1 or shape is empty; when applied, if x does not fit.

    Example:
        >>> operator = sj.random_projections(jax.random.key(0), (8, 8, 1), 16)
        >>> operator(jnp.ones((2, 8, 8, 1))).shape
        (2, 16)
    """
    size = math.prod(shape)
    if num < 1 or size < 1:
        raise ValueError(f"num={num} and the size of shape={list(shape)} must be at least 1")
    rows = jax.random.normal(key, (num * size,)).reshape(num, size)
    rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return jax.tree_util.Partial(_project, rows.reshape(num, *shape))


def _project(rows: Array, x: Batch) -> Array:
    if x.shape[1:] != rows.shape[1:]:
        raise ValueError(
            f"x is {list(x.shape)}, but these projections are of arrays [batch, "
            f"{', '.join(map(str, rows.shape[1:]))}]"
        )
    rows = rows.reshape(len(rows), -1).astype(x.dtype)
    return jnp.matmul(x.reshape(x.shape[0], rows.shape[1]), rows.T, precision=HIGHEST)


def masked_fourier(mask: PixelMask, sensitivities: Coils | None = None) -> Operator:
    """Some coefficients of the unitary two-dimensional Fourier transform, for MRI.

    It maps real images [batch, height, width, 1], or complex ones as two channels [batch, height,
    width, 2] (real, imaginary), to [batch, num_known, 2]; with coils to [batch, coils, num_known,
    2]. The last axis holds real and imaginary part; noise_std is that of each.

    Args:
        mask: True where a coefficient is measured, in the order of `numpy.fft.fft2`: frequency
            zero is [0, 0]. Use `numpy.fft.ifftshift` for a mask with frequency zero in its centre.
        sensitivities: Complex sensitivities of the coils, by which the image is multiplied before
            the transform; None is one coil of sensitivity 1.

    Raises:
        ValueError: If nothing is measured or the coils do not fit the mask; when applied, if x
            does not fit.

    Example:
        >>> lines = jnp.zeros((8, 8), bool).at[::2].set(True)
        >>> sj.masked_fourier(lines)(jnp.ones((1, 8, 8, 1))).shape[0]
        1
    """
    known = _indices(mask)
    if sensitivities is not None:
        if sensitivities.shape[1:] != mask.shape:
            raise ValueError(
                f"sensitivities are {list(sensitivities.shape)}, but the mask {list(mask.shape)} "
                f"needs [coils, {mask.shape[0]}, {mask.shape[1]}]"
            )
        sensitivities = jnp.asarray(sensitivities)
    return jax.tree_util.Partial(_masked_fourier, known, jnp.asarray(mask), sensitivities)


def _masked_fourier(known: Array, mask: Array, sensitivities: Array | None, x: Batch) -> Array:
    if x.ndim != 4 or x.shape[1:3] != mask.shape or x.shape[3] not in (1, 2):
        raise ValueError(
            f"x is {list(x.shape)}, but the mask {list(mask.shape)} needs [batch, "
            f"{mask.shape[0]}, {mask.shape[1]}, channels] with 1 channel (real images) or 2 (real "
            "and imaginary part)"
        )
    # The Fourier transform needs float32 or wider. Images become [batch, coils, height, width].
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))[:, None]
    imaginary = wide[..., 1] if x.shape[3] == 2 else jnp.zeros_like(wide[..., 0])
    image = jax.lax.complex(wide[..., 0], imaginary)
    if sensitivities is not None:
        image = jnp.asarray(sensitivities, image.dtype)[None] * image
    coefficients = jnp.fft.fft2(image, norm="ortho")
    coefficients = coefficients.reshape(*image.shape[:2], mask.size)
    measured = coefficients.at[:, :, known].get(indices_are_sorted=True, unique_indices=True)
    if sensitivities is None:
        measured = measured[:, 0]
    return jnp.stack([measured.real, measured.imag], axis=-1).astype(x.dtype)


def sum_of_sources(num: int) -> Operator:
    """The sum of several sources, for their separation: [batch, num, *shape] -> [batch, *shape].

    Args:
        num: Number of sources, at least 1.

    Raises:
        ValueError: If num is less than 1; when applied, if x has another number of sources.

    Reference: Jayaram & Thickstun (2020), "Source separation with deep generative priors" (BASIS).

    Example:
        >>> sj.sum_of_sources(2)(jnp.ones((1, 2, 8, 8, 1))).shape
        (1, 8, 8, 1)
    """
    if num < 1:
        raise ValueError(f"num={num} must be at least 1")
    return jax.tree_util.Partial(_SumOfSources(int(num)))


@dataclasses.dataclass(frozen=True)
class _SumOfSources:
    """Equal for equal numbers, so that compiled programs are reused."""

    num: int

    def __call__(self, x: Batch) -> Array:
        if x.ndim < 2 or x.shape[1] != self.num:
            raise ValueError(
                f"x is {list(x.shape)}, but {self.num} sources need [batch, {self.num}, ...]"
            )
        return jnp.sum(x, axis=1)


def _image_sides(x: Batch) -> tuple[int, int]:
    """Height and width of images [batch, height, width, *rest]."""
    if x.ndim < 3:
        raise ValueError(f"x is {list(x.shape)}, but must be images [batch, height, width, ...]")
    return x.shape[1], x.shape[2]
