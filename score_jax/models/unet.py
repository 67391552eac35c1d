"""A small U-Net that corrects the score of a Gaussian: for small images, on small machines.

    s(x, i) = -(x - m) / t^2 + d / (t sigma_i) F((x - m) / t, log sigma_i),   t^2 = sigma_i^2 + d^2

The first term is the exact score of data N(m, d^2) perturbed by sigma_i; what F must learn is then of unit size at every level, and
0 for data that are such a Gaussian. F starts at 0.

Reference: the preconditioning of Karras et al. (2022), "Elucidating the design space of diffusion-based generative models",
table 1, written for the score; the U-Net of Ho et al. (2020), appendix B, at two resolutions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_jax.models.convolution import convolve
from score_jax.models.layers import FeatureMap, compute_dtype, flat_normal
from score_jax.typing import Array, Images, Levels


class Conv(nn.Module):
    """A convolution with a bias: 3x3 of stride 1, or, to halve the resolution, 2x2 of stride 2."""

    features: int
    kernel_init: nn.initializers.Initializer
    halve: bool = False

    @nn.compact
    def __call__(self, h: FeatureMap) -> FeatureMap:
        size = 2 if self.halve else 3
        kernel = self.param("kernel", self.kernel_init, (size, size, h.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.halve:
            batch, height, width, features = h.shape
            squares = h.reshape(batch, height // 2, 2, width // 2, 2, features).swapaxes(2, 3)
            h = squares.reshape(batch, height // 2, width // 2, 4 * features) @ jnp.asarray(kernel, h.dtype).reshape(
                4 * features, -1
            )
        else:
            h = convolve(h, jnp.asarray(kernel, h.dtype))
        return h + jnp.asarray(bias, h.dtype)[None, None, None]


class GroupNorm(nn.Module):
    """Group norm, with a scale and a shift of its own or, [batch, 1, 1, features], given ones."""

    groups: int

    @nn.compact
    def __call__(self, h: FeatureMap, scale: Array | None = None, shift: Array | None = None) -> FeatureMap:
        batch, _, _, features = h.shape
        if scale is None:
            scale = jnp.asarray(self.param("scale", nn.initializers.ones, (features,)))[None, None, None]
            shift = jnp.asarray(self.param("bias", nn.initializers.zeros, (features,)))[None, None, None]

        def of_group(x):
            # Over the pixels first, where neighbours in memory go the same way, then over the few features of a group.
            x = jnp.mean(x, axis=(1, 2)).reshape(batch, self.groups, -1)
            return jnp.broadcast_to(jnp.mean(x, axis=2, keepdims=True), x.shape).reshape(batch, 1, 1, features)

        dtype, h = h.dtype, h.astype(jnp.float32)
        mean = of_group(h)
        scale = scale * jax.lax.rsqrt(jnp.maximum(of_group(h**2) - mean**2, 0) + 1e-6)
        return (h * scale + (shift - mean * scale)).astype(dtype)


class Block(nn.Module):
    """Two 3x3 convolutions with group norms, the second one scaled and shifted by the noise level, and a shortcut.

    Attributes:
        features: Number of output features.
        groups: Groups of the norms.
    """

    features: int
    groups: int

    @nn.compact
    def __call__(self, h: FeatureMap, condition: Array) -> FeatureMap:
        y = nn.silu(GroupNorm(self.groups)(h))
        y = Conv(self.features, kernel_init=flat_normal(1.0))(y)
        modulation = nn.Dense(2 * self.features, kernel_init=flat_normal(0.04))(condition)
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        y = nn.silu(GroupNorm(self.groups)(y, 1 + scale, shift))
        y = Conv(self.features, kernel_init=flat_normal(0.1))(y)
        return y + (h if h.shape[-1] == self.features else nn.Dense(self.features, dtype=h.dtype, kernel_init=flat_normal(1.0))(h))


class SelfAttention(nn.Module):
    """Every pixel attends to every pixel, in several heads; the result is added."""

    heads: int
    groups: int

    @nn.compact
    def __call__(self, h: FeatureMap) -> FeatureMap:
        batch, height, width, features = h.shape
        qkv = nn.Dense(3 * features, dtype=h.dtype, kernel_init=flat_normal(1.0))(GroupNorm(self.groups)(h))
        qkv = qkv.reshape(batch, height * width, 3, self.heads, features // self.heads)
        q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))  # each [batch, heads, pixels, features / heads]
        weights = nn.softmax((q @ k.mT).astype(jnp.float32) * (features // self.heads) ** -0.5).astype(h.dtype)
        y = jnp.moveaxis(weights @ v, 1, 2).reshape(h.shape)
        return h + nn.Dense(features, dtype=h.dtype, kernel_init=flat_normal(0.02))(y)


class UNet(nn.Module):
    """Noise conditional score network for small images.

    Attributes:
        sigmas: The noise levels, decreasing.
        width: Features at full resolution; twice as many at half of it. A multiple of `groups`, twice it a multiple of `heads`.
        heads: Heads of the attention at half resolution.
        groups: Groups of the group norms.
        data_mean: m above, about the mean of the data.
        data_std: d above, about the standard deviation of the data; above 0.
        num_classes: Above 0, the network takes the class of each image, too: its score is that of the class's own density. The
            class num_classes stands for any, if it was trained with it.
        dtype: Precision of the layers and of the maps between them, float32 or bfloat16; parameters, statistics and the score are
            float32 in any case.
    """

    sigmas: tuple[float, ...]
    width: int = 24
    heads: int = 4
    groups: int = 4
    data_mean: float = 0.5
    data_std: float = 0.5
    num_classes: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Images, level: Levels, label: Levels | None = None) -> Images:
        """The score of images at their noise levels.

        Args:
            x: Perturbed images, [batch, height, width, channels].
            level: int [batch], 0 is the largest sigma.
            label: int [batch] in [0, num_classes], for a network that takes one.
        Returns:
            The estimated gradient of the log density of `x`, of its shape.
        Raises:
            ValueError: If the image does not halve, the fields do not fit each other, or labels are missing or unasked for.
        """
        batch, height, width, channels = x.shape
        self._check(height, width)
        dtype = compute_dtype(self.dtype)
        if (label is None) != (self.num_classes == 0):
            raise ValueError(f"a U-Net of num_classes={self.num_classes} {'needs' if self.num_classes else 'takes no'} labels")
        sigma = jnp.asarray(self.sigmas, jnp.float32)[level][:, None, None, None]
        total = jnp.sqrt(sigma**2 + self.data_std**2)
        angle = jnp.log(sigma[:, 0, 0]) * jnp.geomspace(0.25, 4.0, 8)[None]
        condition = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        condition = nn.Dense(4 * self.width, kernel_init=flat_normal(1.0))(condition)
        if label is not None:
            embed = nn.Embed(self.num_classes + 1, 4 * self.width, embedding_init=flat_normal(self.num_classes + 1.0))
            condition = condition + embed(label)
        condition = nn.silu(condition)

        h = Conv(self.width, kernel_init=flat_normal(1.0))(((x - self.data_mean) / total).astype(dtype))
        position = self.param("position", flat_normal(0.01 * height * width), (height, width, self.width))
        skip = h = Block(self.width, self.groups)(h + jnp.asarray(position, dtype)[None], condition)
        h = Conv(2 * self.width, kernel_init=flat_normal(1.0), halve=True)(h)
        for _ in range(2):
            h = Block(2 * self.width, self.groups)(h, condition)
            h = SelfAttention(self.heads, self.groups)(h)
        # Each pixel of half resolution becomes a square of 2x2.
        h = nn.Dense(4 * self.width, dtype=dtype, kernel_init=flat_normal(1.0))(h).reshape(
            batch, height // 2, width // 2, 2, 2, self.width
        )
        h = h.swapaxes(2, 3).reshape(batch, height, width, self.width)
        h = Block(self.width, self.groups)(jnp.concatenate([h, skip], axis=-1), condition)
        h = nn.silu(GroupNorm(self.groups)(h))
        f = Conv(channels, kernel_init=nn.initializers.zeros)(h).astype(jnp.float32)
        return self.data_std / (total * sigma) * f - (x - self.data_mean) / total**2

    def _check(self, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(f"the U-Net halves the image once and cannot take {height}x{width}: height and width must be even")
        if self.groups < 1 or self.width < 1 or self.width % self.groups:
            raise ValueError(f"width={self.width} must be a multiple of groups={self.groups}, both at least 1")
        if self.heads < 1 or 2 * self.width % self.heads:
            raise ValueError(f"twice width={self.width} must be a multiple of heads={self.heads}, which must be at least 1")
        if not self.data_std > 0:
            raise ValueError(f"data_std={self.data_std} must be above 0")
