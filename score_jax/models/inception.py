"""Inception v3 as in the TensorFlow graph of FID, KID and the inception score.

Figures are comparable with published ones only if every detail is that of the graph of 2015-12-05,
which differs from later versions of Inception v3:

    resizing        bilinear, output pixel i taken at i * in / out, no smoothing before shrinking
    pixels          (v - 128) / 128 for v in 0..255
    mean pooling    padding is not counted
    last block      max pooling instead of mean pooling
    logits          1008, here without their bias, as for the inception score

Modules have the names of the usual PyTorch conversion. Batch norms are part of the convolutions:
`models.inception_weights` folds their constants into kernel and bias.

Reference: Szegedy et al. (2016), "Rethinking the Inception architecture"; Salimans et al. (2016)
for the inception score; Heusel et al. (2017) for the FID.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.models.layers import FeatureMap, flat_normal
from score_jax.typing import AnyBatch, Array, Float, Params

SIZE = 299
"""Height and width of the images that the network takes."""

Features: TypeAlias = tuple[Float[Array, "batch 2048"], Float[Array, "batch 1008"]]
Layer: TypeAlias = tuple[str, int] | tuple[str, int, tuple[int, int]] | tuple[str, int, str]
"""(name, features), optionally with the size of the kernel or "halve": 3x3 with stride 2."""


class ConvReLU(nn.Module):
    """A convolution with bias, followed by a ReLU.

    Products are computed in full float32 on every device, so that features do not depend on it.

    Attributes:
        features: Number of output features.
        size: Height and width of the kernel.
        stride: Distance between outputs, in pixels.
        padding: "SAME" or "VALID".
    """

    features: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        shape = (*self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", flat_normal(2.0), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = jax.lax.conv_general_dilated(
            x,
            jnp.asarray(kernel, x.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return nn.relu(y + jnp.asarray(bias, x.dtype)[None, None, None])


class BlockA(nn.Module):
    """Convolutions up to 5x5, at 35x35 pixels."""

    pool_features: int

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        return _join(
            _chain(x, ("branch1x1", 64)),
            _chain(x, ("branch5x5_1", 48), ("branch5x5_2", 64, (5, 5))),
            _chain(
                x,
                ("branch3x3dbl_1", 64),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, (3, 3)),
            ),
            _chain(mean_pool(x), ("branch_pool", self.pool_features)),
        )


class BlockB(nn.Module):
    """From 35x35 to 17x17 pixels."""

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        return _join(
            _chain(x, ("branch3x3", 384, "halve")),
            _chain(
                x,
                ("branch3x3dbl_1", 64),
                ("branch3x3dbl_2", 96, (3, 3)),
                ("branch3x3dbl_3", 96, "halve"),
            ),
            _halved(x),
        )


class BlockC(nn.Module):
    """Convolutions of 1x7 and 7x1, at 17x17 pixels."""

    width: int

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        width = self.width
        return _join(
            _chain(x, ("branch1x1", 192)),
            _chain(
                x,
                ("branch7x7_1", width),
                ("branch7x7_2", width, (1, 7)),
                ("branch7x7_3", 192, (7, 1)),
            ),
            _chain(
                x,
                ("branch7x7dbl_1", width),
                ("branch7x7dbl_2", width, (7, 1)),
                ("branch7x7dbl_3", width, (1, 7)),
                ("branch7x7dbl_4", width, (7, 1)),
                ("branch7x7dbl_5", 192, (1, 7)),
            ),
            _chain(mean_pool(x), ("branch_pool", 192)),
        )


class BlockD(nn.Module):
    """From 17x17 to 8x8 pixels."""

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        return _join(
            _chain(x, ("branch3x3_1", 192), ("branch3x3_2", 320, "halve")),
            _chain(
                x,
                ("branch7x7x3_1", 192),
                ("branch7x7x3_2", 192, (1, 7)),
                ("branch7x7x3_3", 192, (7, 1)),
                ("branch7x7x3_4", 192, "halve"),
            ),
            _halved(x),
        )


class BlockE(nn.Module):
    """Convolutions of 1x3 beside 3x1, at 8x8 pixels.

    Attributes:
        pool: The pooling of the last branch: (x) -> x of the same shape.
    """

    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, x: FeatureMap) -> FeatureMap:
        single = _chain(x, ("branch3x3_1", 384))
        double = _chain(x, ("branch3x3dbl_1", 448), ("branch3x3dbl_2", 384, (3, 3)))
        return _join(
            _chain(x, ("branch1x1", 320)),
            _chain(single, ("branch3x3_2a", 384, (1, 3))),
            _chain(single, ("branch3x3_2b", 384, (3, 1))),
            _chain(double, ("branch3x3dbl_3a", 384, (1, 3))),
            _chain(double, ("branch3x3dbl_3b", 384, (3, 1))),
            _chain(self.pool(x), ("branch_pool", 192)),
        )


class Inception(nn.Module):
    """Inception v3: images [batch, 299, 299, 3] in [-1, 1] -> (features, logits without bias).

    Features are the means of the last 8x8 feature maps, [batch, 2048]; logits are
    [batch, 1008].
    """

    @nn.compact
    def __call__(self, x: FeatureMap) -> Features:
        x = ConvReLU(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = ConvReLU(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = ConvReLU(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = ConvReLU(80, name="Conv2d_3b_1x1")(_halved(x))
        x = ConvReLU(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _halved(x)
        for name, pool_features in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = BlockA(pool_features, name=name)(x)
        x = BlockB(name="Mixed_6a")(x)
        for name, width in (
            ("Mixed_6b", 128),
            ("Mixed_6c", 160),
            ("Mixed_6d", 160),
            ("Mixed_6e", 192),
        ):
            x = BlockC(width, name=name)(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(mean_pool, name="Mixed_7b")(x)
        x = BlockE(max_pool, name="Mixed_7c")(x)
        features = jnp.mean(x, axis=(1, 2))
        logits = nn.Dense(
            1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, dtype=x.dtype, name="fc"
        )
        return features, logits(features)


def mean_pool(x: FeatureMap) -> FeatureMap:
    """Means over 3x3 pixels with stride 1; at the border, over the pixels inside the image."""
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: FeatureMap) -> FeatureMap:
    """Maxima over 3x3 pixels with stride 1."""
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _halved(x: FeatureMap) -> FeatureMap:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _chain(x: Array, *layers: Layer) -> Array:
    """Convolutions one after another."""
    for name, features, *size in layers:
        if size == ["halve"]:
            x = ConvReLU(features, (3, 3), 2, "VALID", name=name)(x)
        else:
            x = ConvReLU(features, *size, name=name)(x)
    return x


def _join(*branches: Array) -> Array:
    return jnp.concatenate(branches, axis=-1)


def resize_bilinear_tf1(x: AnyBatch, size: int | tuple[int, int]) -> Array:
    """Bilinear resizing as in TensorFlow 1: output pixel i is taken at the position i * in / out.

    The position is not shifted by half a pixel, and nothing is smoothed before shrinking: the
    function `tf.compat.v1.image.resize_bilinear(x, size, align_corners=False)`.

    Args:
        x: Images [batch, height, width, channels].
        size: Height and width of the result, or one number for both.

    Returns:
        Resized images, in the dtype of x; float32 for integers.
    """
    height, width = (size, size) if isinstance(size, int) else size
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.float32)
    return _resized(_resized(x, width, axis=2), height, axis=1)


def _resized(x: Array, size: int, axis: int) -> Array:
    # Positions are rounded to float32, as in TensorFlow.
    position = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
    low = np.minimum(position.astype(np.int32), x.shape[axis] - 1)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    shape = [1] * x.ndim
    shape[axis] = size
    weight = jnp.asarray((position - low).reshape(shape), x.dtype)
    below, above = jnp.take(x, low, axis=axis), jnp.take(x, high, axis=axis)
    return below + (above - below) * weight


def inception_features(params: Params) -> Callable[[AnyBatch], Features]:
    """The features of images that FID, KID and the inception score are computed from.

    The result is a pytree with the leaves of `params`, to be compiled with `jax.jit` or `jax.pmap`
    like a score function.

    Args:
        params: Parameters of `Inception`, for example from `read_inception`.

    Returns:
        (images [batch, height, width, channels]) -> (features [batch, 2048], logits without bias
        [batch, 1008]). Images are uint8, or floating point in [0, 1], which are rounded to 256
        values as in an image file: floor(256 v), at most 255. They have one channel, which is
        repeated, or three. They are resized to 299x299 pixels. Non-finite pixels give non-finite
        features. A ValueError is raised for images of other shapes or types.

    Example:
        >>> params = sj.read_inception("pt_inception.pth")  # doctest: +SKIP
        >>> features = sj.inception_features(params)  # doctest: +SKIP
        >>> found = sj.extract(features, images)  # doctest: +SKIP
    """
    return jax.tree_util.Partial(_features, params)


def _features(params: Params, images: AnyBatch) -> Any:
    x = resize_bilinear_tf1(pixel_values(images), SIZE)
    return Inception().apply({"params": params}, (x - 128) / 128)


def pixel_values(images: AnyBatch) -> Array:
    """Whole numbers 0..255 as float32 [batch, height, width, 3]."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images is {list(images.shape)}, but must be [batch, height, width, channels] with 1 "
            "channel (grey) or 3 (red, green, blue)"
        )
    is_float = jnp.issubdtype(images.dtype, jnp.floating)
    if not is_float and images.dtype != jnp.uint8:
        raise ValueError(
            f"images has dtype {images.dtype}, but must be uint8, or floating point in [0, 1]"
        )
    x = jnp.asarray(images).astype(jnp.float32)
    if is_float:
        x = jnp.floor(jnp.minimum(jnp.clip(x, 0, 1) * 256, 255))
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))
