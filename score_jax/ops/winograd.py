"""Convolutions of stride 1 with 'same' padding, by the fastest algorithm of the platform.

    y[b, i, j, o] = sum_{p, q, c}  x[b, i + d (p - r), j + d (q - r), c] kernel[p, q, c, o]

with d the dilation and r = size // 2.

The convolution is a JAX primitive, bilinear in x and kernel: its derivatives of any order and mode
are again convolutions or filter gradients. Accelerators use XLA's own algorithms. On a CPU, where
XLA's convolutions reach the multiplication rate of the cores, 3x3 kernels use Winograd's algorithm
with 2.25 times fewer multiplications:

    Y = A^T [(G k G^T) * (B^T x B)] A

for every 2x2 square Y of output pixels and the 4x4 square x of input pixels around it.

Reference: Lavin & Gray (2016), "Fast algorithms for convolutional neural networks", F(2x2, 3x3)
and F(3x3, 2x2).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from score_jax.devices import num_cores
from score_jax.typing import Array, Float

# The Winograd transform matrices: rows of B^T and of its counterpart for filter gradients as pairs
# (taps, weights), G and A^T as matrices.
_INPUT = (
    (np.array([0, 1, 2, 1]), np.ones(4, np.float32)),
    (np.array([2, 2, 1, 3]), np.array([-1, 1, -1, -1], np.float32)),
)
_OUTPUT = (
    (np.array([1, 1, 1, 2]), np.array([1, 1, 1, -1], np.float32)),
    (np.array([2, 2, 2, 2]), np.array([0, 1, -1, 0], np.float32)),
)
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)

BLOCK_BYTES = 2**20
"""Size of the transform of the images that a core convolves at a time."""


def convolve(
    x: Float[Array | np.ndarray, "batch height width features"],
    kernel: Float[Array | np.ndarray, "size size features out"],
    dilation: int = 1,
) -> Float[Array, "batch height width out"]:
    """The convolution of `x` with a square kernel of odd size and zero padding.

    Args:
        x: Feature maps.
        kernel: Weights.
        dilation: Distance between the kernel's taps, in pixels.
    """
    x, kernel = _varying_alike(jnp.asarray(x), jnp.asarray(kernel))
    return _convolution.bind(x, kernel, dilation=dilation, transposed=False)


def _varying_alike(*arrays: Array) -> list[Array]:
    """Casts arrays so that, within `jax.shard_map`, they vary over the same mesh axes."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    union = frozenset().union(*axes)
    cast = []
    for array, own in zip(arrays, axes, strict=True):
        missing = tuple(union - own)
        cast.append(jax.lax.pcast(array, missing, to="varying") if missing else array)
    return cast


def _primitive(name, shape_of, direct, on_cpu) -> Primitive:
    """A primitive of two arrays.

    Args:
        name: Name of the primitive.
        shape_of: (shape, shape, **settings) -> shape of the result.
        direct: The computation on any platform but a CPU.
        on_cpu: The computation on a CPU.
    """
    primitive = Primitive(name)

    @functools.partial(jax.jit, static_argnames=("dilation", "transposed", "size"))
    def eagerly(x, y, **settings):
        return primitive.bind(x, y, **settings)

    def batched(args, axes, **settings):
        return jax.vmap(functools.partial(direct, **settings), axes)(*args), 0

    primitive.def_impl(eagerly)
    primitive.def_abstract_eval(
        lambda x, y, **settings: x.update(shape=shape_of(x.shape, y.shape, **settings))
    )
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(direct, multiple_results=False))
    lowered = mlir.lower_fun(on_cpu, multiple_results=False)
    mlir.register_lowering(primitive, lowered, platform="cpu")
    return primitive


def _convolve_directly(x, kernel, *, dilation, transposed):
    if transposed:
        kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _filter_gradient_directly(x, g, *, dilation, size):
    # Use an explicit layout: XLA:CPU has no fast kernel for the one that JAX would generate inside
    # a loop.
    pad = dilation * (size // 2)
    y = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (dilation, dilation),
        [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.transpose(1, 2, 0, 3)


def _convolve_on_cpu(x, kernel, *, dilation, transposed):
    # With few features, the transforms cost more than they save.
    few = min(kernel.shape[2:]) < 32
    if few or len(kernel) != 3 or x.dtype != jnp.float32 or not x.size:
        return _convolve_directly(x, kernel, dilation=dilation, transposed=transposed)
    u = _along_two(_G[:, ::-1] if transposed else _G, kernel).reshape(16, *kernel.shape[2:])
    if transposed:
        u = jax.lax.optimization_barrier(u).swapaxes(1, 2)

    def of_block(x):
        squares = _Squares(x.shape, dilation)
        v = squares.take(squares.padded(x), _INPUT)
        m = (v @ u).reshape(4, 4, *squares.shape, -1)
        # Compute one of the four pixels of a square at a time; faster here than `_along_two`.
        rows = [_combine(_A[i], m) for i in range(2)]
        y = jnp.stack([jnp.stack([_combine(_A[j], row) for j in range(2)], 4) for row in rows], 2)
        y = y.reshape(x.shape[0], *squares.size, -1)
        return y[:, : x.shape[1], : x.shape[2]]

    # Blocks are at least as large as the kernel, which every block reads.
    size = _block_size(x, u.shape[2], dilation, max(BLOCK_BYTES, 4 * u.size))
    if size is None:
        return of_block(x)
    y = jax.lax.map(of_block, x.reshape(-1, size, *x.shape[1:]))
    return y.reshape(len(x), *y.shape[2:])


def _filter_gradient_on_cpu(x, g, *, dilation, size):
    fewest = min(x.shape[-1], g.shape[-1])
    if size == 3 and fewest >= 8 and x.dtype == jnp.float32 and x.size:
        # With few features, the products of the transforms are too small for a gain.
        if fewest >= 24:
            return _winograd_gradient(x, g, dilation)
        if math.prod(x.shape[1:3]) >= 400:
            return _few_features(x, g, dilation)
    return _filter_gradient_directly(x, g, dilation=dilation, size=size)


def _winograd_gradient(x, g, dilation):
    def of_block(x, g):
        squares = _Squares(x.shape, dilation)
        v = squares.take(squares.padded(x), _INPUT)
        w = squares.take(squares.padded(g), _OUTPUT)
        return jax.lax.dot_general(v, w, (((1,), (1,)), ((0,), (0,))))

    # Blocks are at least as large as the sum, to which every block adds.
    like = jax.ShapeDtypeStruct((16, x.shape[-1], g.shape[-1]), x.dtype)
    size = _block_size(x, g.shape[-1], dilation, max(BLOCK_BYTES, 4 * like.size))
    m = _sum_of_blocks(of_block, x, g, size, like)
    return _along_two(_G.T, m.reshape(4, 4, *m.shape[1:]))


def _few_features(x, g, dilation):
    """One product of `x` with the outputs at all nine taps as further features."""
    height, width, features = x.shape[1:]

    def of_block(x, g):
        border = (dilation, dilation)
        padded = jnp.pad(g, ((0, 0), border, border, (0, 0)))
        taps = [dilation * i for i in (2, 1, 0)]
        shifted = [padded[:, i : i + height, j : j + width] for i in taps for j in taps]
        rows = jnp.concatenate(shifted, axis=-1).reshape(-1, 9 * g.shape[-1])
        return jax.lax.dot_general(x.reshape(-1, features), rows, (((0,), (0,)), ((), ())))

    like = jax.ShapeDtypeStruct((features, 9 * g.shape[-1]), x.dtype)
    size = _block_size(x, 9 * g.shape[-1] // 4, dilation, BLOCK_BYTES)
    total = _sum_of_blocks(of_block, x, g, size, like)
    return total.reshape(features, 3, 3, -1).transpose(1, 2, 0, 3)


def _sum_of_blocks(of_block, x, g, size, like):
    """The sum of a function of `size` images at a time; None for all at once."""
    if size is None:
        return of_block(x, g)
    blocks = [array.reshape(-1, size, *array.shape[1:]) for array in (x, g)]
    zeros = _varying_alike(jnp.zeros(like.shape, like.dtype), x)[0]
    return jax.lax.scan(lambda total, block: (total + of_block(*block), None), zeros, blocks)[0]


def _block_size(x, num_outputs, dilation, num_bytes):
    """The number of images at a time whose transform stays in the caches of a core.

    It divides the batch. None for batches without a suitable divisor, and for those whose size an
    exported program leaves open: they are not divided.
    """
    batch = x.shape[0]
    if not isinstance(batch, int):
        return None
    largest = max(x.shape[-1], num_outputs)
    squares = math.prod(_Squares((1, *x.shape[1:]), dilation).size) // 4
    threads = max(1, num_cores() // jax.local_device_count("cpu"))
    wanted = max(1, threads * num_bytes // (16 * 4 * squares * largest))
    divisor = next(n for n in range(min(wanted, batch), 0, -1) if batch % n == 0)
    return divisor if divisor < batch and 4 * divisor > wanted else None


class _Squares:
    """The tiling of images by squares of 2x2 pixels that are `dilation` apart."""

    def __init__(self, shape: tuple[Any, ...], dilation: int):
        self.dilation = dilation
        batch, height, width, _ = shape
        rows, columns = (-(-length // (2 * dilation)) for length in (height, width))
        self.shape = (batch, rows, dilation, columns, dilation)
        self.size = (2 * dilation * rows, 2 * dilation * columns)

    def padded(self, x: Array) -> Array:
        """`x` with a border of zeros."""
        pads = []
        for size, length in zip(self.size, x.shape[1:3], strict=True):
            pads.append((self.dilation, self.dilation + size - length))
        # Barrier: prevents XLA from recomputing x in each fusion.
        return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))

    def take(self, padded: Array, transform) -> Array:
        """Transforms the 4x4 square around every 2x2 square: [16, squares, features]."""
        x = jax.lax.optimization_barrier(self._along(1, padded, transform, self.shape[1]))
        # [batch, 4, rows, d, 4, columns, d, features].
        x = self._along(4, x, transform, self.shape[3])
        return x.transpose(1, 4, 0, 2, 3, 5, 6, 7).reshape(16, -1, padded.shape[-1])

    def _along(self, axis, x, transform, number):
        start = 2 * self.dilation * np.arange(number)[:, None] + np.arange(self.dilation)
        total = 0
        for taps, weights in transform:
            index = taps[:, None, None] * self.dilation + start
            term = x.at[(*(slice(None),) * axis, index)].get(mode="promise_in_bounds")
            if not (weights == 1).all():
                term = _aligned(weights, term, axis) * term
            total = total + term
        return total


def _along_two(weights: np.ndarray, x) -> Array:
    """[i, j, ...] -> [a, b, ...], the sum over i and j with weights[a, i] weights[b, j]."""
    for axis in range(2):
        terms = []
        for i in range(x.shape[axis]):
            term = jnp.expand_dims(jax.lax.index_in_dim(x, i, axis, keepdims=False), axis)
            terms.append(_aligned(weights[:, i], term, axis) * term)
        x = sum(terms)
    return x


def _aligned(weights: np.ndarray, x: Array, axis: int) -> np.ndarray:
    """The weights, reshaped to broadcast along that axis of x."""
    return weights.reshape(*(1,) * axis, -1, *(1,) * (x.ndim - axis - 1))


def _combine(weights: np.ndarray, terms) -> Array:
    """The sum of the terms with weights 1, -1 or 0."""
    used = [(weight, terms[i]) for i, weight in enumerate(weights) if weight]
    total = used[0][1] if used[0][0] > 0 else -used[0][1]
    for weight, term in used[1:]:
        total = total + term if weight > 0 else total - term
    return total


_convolution = _primitive(
    "convolution",
    lambda x, kernel, *, dilation, transposed: (*x[:3], kernel[2 if transposed else 3]),
    _convolve_directly,
    _convolve_on_cpu,
)
_filter_gradient = _primitive(
    "filter_gradient",
    lambda x, g, *, dilation, size: (size, size, x[3], g[3]),
    _filter_gradient_directly,
    _filter_gradient_on_cpu,
)


def _batched_convolution(args, axes, **settings):
    """Folds a mapped axis of images into the batch; mapped kernels are left to XLA."""
    (x, kernel), (axis, of_kernel) = args, axes
    if of_kernel is not None:
        return jax.vmap(functools.partial(_convolve_directly, **settings), axes)(*args), 0
    x = jnp.moveaxis(x, axis, 0)
    y = _convolution.bind(x.reshape(-1, *x.shape[2:]), kernel, **settings)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


batching.primitive_batchers[_convolution] = _batched_convolution


def _gradient_of_kernel(g, x, kernel, *, dilation, transposed):
    pair = (g, x) if transposed else (x, g)
    return _filter_gradient.bind(*pair, dilation=dilation, size=kernel.aval.shape[0])


def _gradient_of_images(g, x, kernel, *, dilation, transposed):
    return _convolution.bind(g, kernel, dilation=dilation, transposed=not transposed)


def _filter_gradient_of_images(kernel, x, g, *, dilation, size):
    return _convolution.bind(g, kernel, dilation=dilation, transposed=True)


def _filter_gradient_of_outputs(kernel, x, g, *, dilation, size):
    return _convolution.bind(x, kernel, dilation=dilation, transposed=False)


ad.defbilinear(_convolution, _gradient_of_images, _gradient_of_kernel)
ad.defbilinear(_filter_gradient, _filter_gradient_of_images, _filter_gradient_of_outputs)
