"""Convolutions of stride 1 with 'same' padding, by the fastest algorithm of the platform.

    y[b, i, j, o] = sum_{p, q, c}  x[b, i + d (p - r), j + d (q - r), c] kernel[p, q, c, o]

with d the dilation and r = size // 2.

The convolution is a JAX primitive, bilinear in x and kernel: its derivatives of any order and mode
are again convolutions or filter gradients. Accelerators use XLA's own algorithms. On a CPU, where
XLA's convolutions reach the multiplication rate of the cores, 3x3 kernels use Winograd's algorithm
with 4 times fewer multiplications, or 2.25 times on the smallest images:

    Y = A^T [(G k G^T) * (B^T x B)] A

for every 4x4 or 2x2 tile Y of output pixels and the 6x6 or 4x4 square x of input pixels around it.

Reference: Lavin & Gray (2016), "Fast algorithms for convolutional neural networks", F(4x4, 3x3),
F(2x2, 3x3) and their transposes for filter gradients.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from score_jax.devices import num_cores
from score_jax.typing import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")
BLOCK_BYTES = 2**20
"""Size of the transform of the images that a core convolves at a time."""


class _Transform(NamedTuple):
    """The matrices of F(size x size, 3x3), and of F(3x3, size x size) for filter gradients.

    They interpolate a product of two polynomials at 0, at opposite points and at infinity.

    Attributes:
        size: Height and width of a tile of outputs.
        images: B^T, [size + 2, size + 2], for the pixels around a tile.
        kernel: G, [size + 2, 3].
        outputs: A^T, [size, size + 2].
    """

    size: int
    images: np.ndarray
    kernel: np.ndarray
    outputs: np.ndarray


def _transform(*points: float) -> _Transform:
    """The matrices for the finite points given; see Lavin & Gray (2016), section 5."""
    finite, number = np.array(points), len(points) + 1
    outputs, kernel = np.zeros((number - 2, number)), np.zeros((number, 3))
    images = np.zeros((number, number))
    outputs[:, :-1] = finite ** np.arange(number - 2)[:, None]
    outputs[-1, -1] = kernel[-1, -1] = 1
    images[-1] = np.poly(finite)[::-1]
    for i, point in enumerate(points):
        others = np.delete(finite, i)
        kernel[i] = point ** np.arange(3) / np.prod(point - others)
        images[i, :-1] = np.poly(others)[::-1]
    matrices = (matrix.astype(np.float32) for matrix in (images, kernel, outputs))
    return _Transform(number - 2, *matrices)


_SMALL = _transform(0.0, 1.0, -1.0)
# These points have a third of the rounding error of the usual 0, 1, -1, 2 and -2.
_LARGE = _transform(0.0, 0.75, -0.75, 1.5, -1.5)


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
        kernel = _reflected(kernel)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_LAYOUT,
    )


def _reflected(kernel):
    """The kernel whose convolution is the transpose of the convolution with `kernel`."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _filter_gradient_directly(x, g, *, dilation, size):
    # Use an explicit layout: XLA:CPU has no fast kernel for the one that JAX would generate inside
    # a loop.
    pad = dilation * (size // 2)
    y = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        (dilation, dilation),
        [(pad, pad)] * 2,
        dimension_numbers=_LAYOUT,
    )
    return y.transpose(1, 2, 0, 3)


def _convolve_on_cpu(x, kernel, *, dilation, transposed):
    if len(kernel) == 3 and x.dtype == jnp.float32 and x.size:
        inputs, outputs = kernel.shape[:1:-1] if transposed else kernel.shape[2:]
        # With few features, the transforms cost more than they save.
        if min(inputs, outputs) >= 32:
            return _winograd(x, kernel, dilation, transposed)
        if 8 <= outputs <= 16 and dilation == 1 and x.shape[2] % 2 == 0:
            return _two_columns(x, _reflected(kernel) if transposed else kernel)
    return _convolve_directly(x, kernel, dilation=dilation, transposed=transposed)


def _two_columns(x, kernel):
    """Computes neighbouring columns as features, since few of them leave vectors half empty."""
    left, right = (jnp.pad(kernel, ((0, 0), pad, (0, 0), (0, 0))) for pad in ((0, 1), (1, 0)))
    y = jax.lax.conv_general_dilated(
        x,
        jnp.concatenate([left, right], axis=3),
        (1, 2),
        [(1, 1), (1, 1)],
        dimension_numbers=_LAYOUT,
    )
    return y.reshape(*x.shape[:3], -1)


def _winograd(x, kernel, dilation, transposed):
    transform = _best_transform(x.shape, dilation)
    matrix = transform.kernel[:, ::-1] if transposed else transform.kernel
    u = _both(matrix) @ kernel.reshape(9, -1)
    u = u.reshape(-1, *kernel.shape[2:])
    if transposed:
        u = u.swapaxes(1, 2)

    def of_block(x):
        tiles = _Tiles(x.shape, dilation, transform.size)
        return tiles.join(tiles.overlapping(x, transform.images) @ u, transform.outputs)

    # Blocks are at least as large as the kernel, which every block reads.
    elements = _num_products(x.shape, dilation, transform) * max(u.shape[1:])
    size = _block_size(x.shape[0], 4 * elements, max(BLOCK_BYTES, 4 * u.size))
    if size is None:
        return of_block(x)
    blocks = x.reshape(-1, size, *x.shape[1:])
    if u.shape[1] != u.shape[2]:
        y = jax.lax.map(of_block, blocks)
    else:
        # Results replace their images, since memory for all results would first be filled.
        replace = lambda i, all: all.at[i].set(of_block(all[i]))  # noqa: E731
        y = jax.lax.fori_loop(0, len(blocks), replace, blocks)
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
    transform = _best_transform(x.shape, dilation)

    def of_block(x, g):
        tiles = _Tiles(x.shape, dilation, transform.size)
        v = tiles.overlapping(x, transform.images)
        w = tiles.apart(g, transform.outputs.T)
        return jax.lax.dot_general(v, w, (((1,), (1,)), ((0,), (0,))))

    # Blocks are at least as large as the sum, to which every block adds.
    points = transform.size + 2
    like = jax.ShapeDtypeStruct((points**2, x.shape[-1], g.shape[-1]), x.dtype)
    elements = _num_products(x.shape, dilation, transform) * max(like.shape[1:])
    size = _block_size(x.shape[0], 4 * elements, max(BLOCK_BYTES, 4 * like.size))
    m = _sum_of_blocks(of_block, x, g, size, like)
    gradient = _both(transform.kernel.T) @ m.reshape(points**2, -1)
    return gradient.reshape(3, 3, *m.shape[1:])


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
    elements = height * width * max(4 * features, 9 * g.shape[-1])
    size = _block_size(x.shape[0], 4 * elements, BLOCK_BYTES)
    total = _sum_of_blocks(of_block, x, g, size, like)
    return total.reshape(features, 3, 3, -1).transpose(1, 2, 0, 3)


def _sum_of_blocks(of_block, x, g, size, like):
    """The sum of a function of `size` images at a time; None for all at once."""
    if size is None:
        return of_block(x, g)
    blocks = [array.reshape(-1, size, *array.shape[1:]) for array in (x, g)]
    zeros = _varying_alike(jnp.zeros(like.shape, like.dtype), x)[0]
    return jax.lax.scan(lambda total, block: (total + of_block(*block), None), zeros, blocks)[0]


def _block_size(batch, image_bytes, block_bytes):
    """The number of images, with transforms of `image_bytes`, that the cores take at a time.

    It divides the batch. None for batches without a suitable divisor, and for those whose size an
    exported program leaves open: they are not divided.
    """
    if not isinstance(batch, int):
        return None
    threads = max(1, num_cores() // jax.local_device_count("cpu"))
    wanted = max(1, threads * block_bytes // image_bytes)
    divisor = next(n for n in range(min(wanted, batch), 0, -1) if batch % n == 0)
    return divisor if divisor < batch and 4 * divisor > wanted else None


def _num_products(shape, dilation, transform):
    """The number of elements of the transform of one feature of one image."""
    tiles = _Tiles(shape, dilation, transform.size)
    return tiles.rows * tiles.columns * (dilation * (transform.size + 2)) ** 2


def _best_transform(shape, dilation):
    """The transform with the fewest products, since tiles can exceed small images."""
    return min(_LARGE, _SMALL, key=functools.partial(_num_products, shape, dilation))


class _Tiles:
    """The tiling of images by squares of `size` pixels that are `dilation` apart."""

    def __init__(self, shape: tuple[Any, ...], dilation: int, size: int):
        self.shape, self.dilation, self.size = shape, dilation, size
        self.rows, self.columns = (-(-length // (size * dilation)) for length in shape[1:3])

    def overlapping(self, x: Array, matrix: np.ndarray) -> Array:
        """Transforms the square of size + 2 pixels around each tile.

        Args:
            x: Images.
            matrix: [points, size + 2]; it is applied to rows and columns.

        Returns:
            [points^2, tiles, features].
        """
        x = self._padded(x, before=self.dilation, more=1)
        return self._along_both(x, matrix, self.size + 2)

    def apart(self, x: Array, matrix: np.ndarray) -> Array:
        """Transforms each tile, with a matrix of [points, size]: [points^2, tiles, features]."""
        return self._along_both(self._padded(x, before=0, more=0), matrix, self.size)

    def join(self, m: Array, matrix: np.ndarray) -> Array:
        """Images whose tiles are transforms of [points^2, tiles, features], by [size, points]."""
        batch, height, width, _ = self.shape
        points, distance = matrix.shape[1], self.dilation
        inner = (batch, self.rows, distance, self.columns, distance)
        m = m.reshape(points, points, *inner, m.shape[-1])
        # Barrier: two passes over the rows and columns are cheaper than one over both.
        m = jax.lax.optimization_barrier(jnp.stack(_products(matrix, list(m)), 3))
        y = jnp.stack(_products(matrix, list(m)), 5)
        size = self.size * distance
        return y.reshape(batch, self.rows * size, self.columns * size, -1)[:, :height, :width]

    def _padded(self, x: Array, before: int, more: int) -> Array:
        """`x` with a border of zeros, up to `more` tiles beyond the last one."""
        pads = []
        for number, length in zip((self.rows, self.columns), x.shape[1:3], strict=True):
            pads.append((before, self.size * self.dilation * (number + more) - before - length))
        # Barrier: prevents XLA from recomputing x in each fusion.
        return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *pads, (0, 0))))

    def _along_both(self, x: Array, matrix: np.ndarray, num_taps: int) -> Array:
        parts = self._taps(x, 1, self.rows, num_taps)
        # [points, batch, rows, dilation, width, features].
        x = jax.lax.optimization_barrier(jnp.stack(_products(matrix, parts)))
        parts = self._taps(x, 4, self.columns, num_taps)
        v = jnp.stack(_products(matrix, parts), 1)
        return v.reshape(len(matrix) ** 2, -1, v.shape[-1])

    def _taps(self, x: Array, axis: int, number: int, num_taps: int) -> list[Array]:
        """The pixels of all tiles, one array for each position in them along an axis."""
        x = x.reshape(*x.shape[:axis], -1, self.size, self.dilation, *x.shape[axis + 1 :])
        taps = []
        for tap in range(num_taps):
            first, tap = divmod(tap, self.size)
            tiles = jax.lax.slice_in_dim(x, first, first + number, axis=axis)
            taps.append(jax.lax.index_in_dim(tiles, tap, axis + 1, keepdims=False))
        return taps


def _both(matrix: np.ndarray) -> np.ndarray:
    """The matrix that applies another one to the rows and to the columns of squares."""
    return np.kron(matrix, matrix)


def _products(matrix: np.ndarray, terms: Sequence[Array]) -> list[Array]:
    """For each row of the matrix, the sum of the terms with its weights."""
    sums = []
    for row in matrix:
        weighted = [weight * term for weight, term in zip(row, terms, strict=True) if weight]
        sums.append(functools.reduce(operator.add, weighted))
    return sums


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
