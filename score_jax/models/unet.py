"""A U-Net that corrects the score of a Gaussian: for small images, on small machines.

The network F of `models.preconditioning`, with m the mean and d the standard deviation of the
data; F starts at 0.

Reference: the U-Net of Ho et al. (2020), appendix B, at two or more resolutions; squares of pixels
as the features of one position as in Dosovitskiy et al. (2021), "An image is worth 16x16 words".
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.models.fields import check_widths
from score_jax.models.layers import (
    Conv,
    FeatureMap,
    compute_dtype,
    dense,
    flat_normal,
    from_features_to_squares,
    from_squares_to_features,
)
from score_jax.models.preconditioning import (
    PrincipalComponents,
    as_floats,
    preconditioned,
    preconditioned_by,
    principal_components,
)
from score_jax.noise import check_counts
from score_jax.typing import AnyBatch, AnyLevels, Array, Batch, Images, Labels, Params


class GroupNorm(nn.Module):
    """Group norm with learned affine parameters, or with those passed in.

    Parameters that are passed in are [batch, 1, 1, features].
    """

    groups: int

    @nn.compact
    def __call__(
        self, h: FeatureMap, scale: Array | None = None, shift: Array | None = None
    ) -> FeatureMap:
        batch, _, _, features = h.shape
        if scale is None:
            ones, zeros = nn.initializers.ones, nn.initializers.zeros
            scale = jnp.asarray(self.param("scale", ones, (features,), jnp.float32))
            shift = jnp.asarray(self.param("bias", zeros, (features,), jnp.float32))
            scale, shift = scale[None, None, None], shift[None, None, None]

        def group_mean(x):
            # Reduce over pixels first: contiguous memory access.
            x = jnp.mean(x, axis=(1, 2)).reshape(batch, self.groups, features // self.groups)
            x = jnp.broadcast_to(jnp.mean(x, axis=2, keepdims=True), x.shape)
            return x.reshape(batch, 1, 1, features)

        dtype, h = h.dtype, h.astype(jnp.float32)
        mean = group_mean(h)
        variance = jnp.maximum(group_mean(h**2) - mean**2, 0)
        scale = scale * jax.lax.rsqrt(variance + 1e-6)
        return (h * scale + (shift - mean * scale)).astype(dtype)


class Block(nn.Module):
    """Two 3x3 convolutions with group norms, and a shortcut.

    The second norm is scaled and shifted by the condition.

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
        modulation = dense(condition, 2 * self.features, kernel_init=flat_normal(0.04))
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        y = nn.silu(GroupNorm(self.groups)(y, 1 + scale, shift))
        y = Conv(self.features, kernel_init=flat_normal(0.1))(y)
        if h.shape[-1] != self.features:
            h = dense(h, self.features, dtype=h.dtype, kernel_init=flat_normal(1.0))
        return y + h


class SelfAttention(nn.Module):
    """Multi-head attention between all pixels, with a residual connection."""

    heads: int
    groups: int

    @nn.compact
    def __call__(self, h: FeatureMap) -> FeatureMap:
        batch, height, width, features = h.shape
        depth = features // self.heads
        qkv = GroupNorm(self.groups)(h)
        qkv = dense(qkv, 3 * features, dtype=h.dtype, kernel_init=flat_normal(1.0))
        qkv = qkv.reshape(batch, height * width, 3, self.heads, depth)
        # Each of q, k and v is [batch, heads, pixels, depth].
        q, k, v = jnp.moveaxis(qkv, (2, 3), (0, 2))
        logits = (q @ k.mT).astype(jnp.float32) * depth**-0.5
        y = nn.softmax(logits).astype(h.dtype) @ v
        y = jnp.moveaxis(y, 1, 2).reshape(h.shape)
        return h + dense(y, features, dtype=h.dtype, kernel_init=flat_normal(0.02))


class UNet(nn.Module):
    """Noise conditional score network for small images.

    Positions of the first resolution are squares of `patch_size` x `patch_size` pixels. Every
    further resolution has half the height and width of the one before.

    Attributes:
        sigmas: Noise levels, decreasing: a tuple of floats or an array.
        width: Number of features at the first resolution. A multiple of `groups`.
        multipliers: Number of features at each resolution, in units of `width`.
        num_blocks: Number of blocks at each resolution, on the way down and again on the way up;
            at the last resolution they are in the middle, once.
        attention: Number of resolutions, counted from the last one, at which attention between all
            positions follows each block.
        patch_size: Side of the squares of pixels. Larger ones are cheaper.
        heads: Heads of the attention, a divisor of the features wherever there is attention.
        groups: Groups of the group norms.
        data_mean: m above, approximately the mean of the data.
        data_std: d above, approximately the standard deviation of the data; above 0.
        components: Number of principal components of the Gaussian; 0 for N(m, d^2) in all
            directions. It is N(m, d^2) until `with_principal_components` measures it.
        num_classes: Number of classes of a class-conditional network; None (or 0) for an
            unconditional one. The label num_classes stands for no class, if the network was
            trained with label dropout.
        dtype: Precision of the layers, float32 or bfloat16; parameters and statistics are float32
            in any case.

    Example:
        >>> model = sj.UNet(sigmas=sj.geometric_sigmas(1.0, 0.1, 5), width=8)
        >>> x, level = jnp.zeros((1, 8, 8, 1)), jnp.array([0])
        >>> params = model.init(jax.random.key(0), x, level)["params"]
        >>> sj.score_fn(model, params)(x, level).shape
        (1, 8, 8, 1)
    """

    sigmas: Any
    width: int = 24
    multipliers: tuple[int, ...] = (1, 2)
    num_blocks: tuple[int, ...] = (1, 2)
    attention: int = 1
    patch_size: int = 1
    heads: int = 4
    groups: int = 4
    data_mean: float = 0.5
    data_std: float = 0.5
    components: int = 0
    num_classes: int | None = None
    dtype: str = "float32"

    def __post_init__(self):
        check_counts(
            width=self.width, heads=self.heads, groups=self.groups, patch_size=self.patch_size
        )
        check_widths(multipliers=self.multipliers, num_blocks=self.num_blocks)
        self.multipliers, self.num_blocks = tuple(self.multipliers), tuple(self.num_blocks)
        compute_dtype(self.dtype)
        self.sigmas = as_floats(self.sigmas)
        self.num_classes = self.num_classes or None
        super().__post_init__()

    @nn.compact
    def __call__(self, x: AnyBatch, level: AnyLevels, label: Labels | None = None) -> Images:
        """The score of images at their noise levels.

        Args:
            x: Perturbed images, [batch, height, width, channels].
            level: int [batch], 0 is the largest sigma; or floating-point, for a sigma between
                two levels, as in `noise.sigma_at`.
            label: int [batch] in [0, num_classes], for a class-conditional network.

        Returns:
            The estimated gradient of the log density of `x`, of its shape and dtype.

        Raises:
            ValueError: If the resolutions do not divide height or width, the fields do not fit
                each other, or labels are missing or not accepted.
        """
        x = jnp.asarray(x)
        if x.ndim != 4:
            raise ValueError(
                f"a U-Net needs images [batch, height, width, channels], not {list(x.shape)}: "
                "grey images have one channel, x[..., None]"
            )
        self._check(*x.shape[1:])
        if (label is None) != (self.num_classes is None):
            need = "takes no" if self.num_classes is None else "needs"
            raise ValueError(f"a U-Net of num_classes={self.num_classes} {need} labels")

        channels = x.shape[3]

        def network(x, log_sigma):
            return self._network(x, self._condition(log_sigma, label), channels)

        if self.components:
            law = Gaussian(self.components, self.data_mean, self.data_std)(x.shape[1:])
            return preconditioned_by(network, x, level, self.sigmas, law)
        settings = (self.sigmas, self.data_mean, self.data_std)
        return preconditioned(network, x, level, *settings)

    def _condition(self, log_sigma: Array, label: Labels | None) -> Array:
        """The embedding [batch, 4 width] of noise level and class."""
        angle = log_sigma * jnp.geomspace(0.25, 4.0, 8, dtype=jnp.float32)[None]
        condition = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
        condition = dense(condition, 4 * self.width, kernel_init=flat_normal(1.0))
        if label is not None and self.num_classes is not None:
            num_labels = self.num_classes + 1
            init = flat_normal(float(num_labels))
            embed = nn.Embed(num_labels, 4 * self.width, embedding_init=init)
            condition = condition + embed(label)
        return nn.silu(condition)

    def _network(self, x: FeatureMap, condition: Array, channels: int) -> FeatureMap:
        """F at unit scale, in float32, with `channels` channels as output."""
        dtype = compute_dtype(self.dtype)
        features = [self.width * multiplier for multiplier in self.multipliers]
        last = len(features) - 1
        h = from_squares_to_features(x.astype(dtype), self.patch_size)
        h = Conv(self.width, kernel_init=flat_normal(1.0))(h)
        position = self.param("position", flat_normal(0.01 * math.prod(h.shape[1:3])), h.shape[1:])
        h = h + jnp.asarray(position, dtype)[None]

        def blocks(h, i):
            for _ in range(self.num_blocks[i]):
                h = Block(features[i], self.groups)(h, condition)
                if i > last - self.attention:
                    h = SelfAttention(self.heads, self.groups)(h)
            return h

        # Down to the last resolution; what each resolution ends with is kept.
        skips = []
        for i in range(last):
            h = blocks(h, i)
            skips.append(h)
            h = Conv(features[i + 1], kernel_init=flat_normal(1.0), halve=True)(h)
        h = blocks(h, last)

        # Up again: each position becomes a square of 2x2.
        for i in reversed(range(last)):
            h = dense(h, 4 * features[i], dtype=dtype, kernel_init=flat_normal(1.0))
            h = from_features_to_squares(h, 2)
            h = blocks(jnp.concatenate([h, skips[i]], axis=-1), i)
        h = nn.silu(GroupNorm(self.groups)(h))
        h = Conv(self.patch_size**2 * channels, kernel_init=nn.initializers.zeros)(h)
        return from_features_to_squares(h, self.patch_size).astype(jnp.float32)

    def _check(self, height: int, width: int, channels: int) -> None:
        multipliers, num_blocks = self.multipliers, self.num_blocks
        size = height * width * channels
        if not 0 <= self.components < size:
            raise ValueError(
                f"components={self.components} must be from 0 to {size - 1}, for images of "
                f"{height}x{width}x{channels}"
            )
        if len(multipliers) != len(num_blocks):
            raise ValueError(
                f"multipliers={multipliers} and num_blocks={num_blocks} must have one number for "
                "each resolution"
            )
        divisor = size_divisor(self.patch_size, multipliers)
        if height % divisor or width % divisor:
            raise ValueError(
                f"a U-Net of patch_size={self.patch_size} and multipliers={multipliers} cannot "
                f"take {height}x{width}: height and width must be multiples of {divisor}"
            )
        if self.width % self.groups:
            raise ValueError(f"width={self.width} must be a multiple of groups={self.groups}")
        if not 0 <= self.attention <= len(multipliers):
            raise ValueError(
                f"attention={self.attention} must be from 0 to the number of resolutions, "
                f"{len(multipliers)}"
            )
        for multiplier in multipliers[len(multipliers) - self.attention :]:
            if multiplier * self.width % self.heads:
                raise ValueError(
                    f"{multiplier} times width={self.width} must be a multiple of "
                    f"heads={self.heads}"
                )


class Gaussian(nn.Module):
    """The Gaussian of the data: parameters that are measured and not learned."""

    components: int
    data_mean: float
    data_std: float

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> PrincipalComponents:
        constant, zeros = nn.initializers.constant, nn.initializers.zeros
        variance, number = constant(self.data_std**2), self.components
        law = PrincipalComponents(
            mean=self.param("mean", constant(self.data_mean), shape),
            basis=self.param("basis", zeros, (*shape, number)),
            variance=self.param("variance", variance, (number,)),
            rest=self.param("rest", variance, ()),
        )
        return jax.tree.map(jax.lax.stop_gradient, law)


def with_principal_components(params: Params, x: Batch | np.ndarray) -> Params:
    """The parameters of a U-Net with the Gaussian that these examples have.

    Args:
        params: Parameters of a `UNet` with `components` above 0.
        x: Examples [examples, height, width, channels], as the network sees them; thousands.

    Raises:
        ValueError: If the examples are too few for the number of components.

    Example:
        >>> model = sj.UNet(sigmas=sj.geometric_sigmas(1.0, 0.1, 5), width=8, components=4)
        >>> x = np.random.default_rng(0).uniform(size=(32, 8, 8, 1)).astype(np.float32)
        >>> params = model.init(jax.random.key(0), x[:1], jnp.array([0]))["params"]
        >>> params = sj.with_principal_components(params, x)
        >>> score_fn = sj.score_fn(model, params)
    """
    number = params["Gaussian_0"]["variance"].size
    law = principal_components(x, number)._asdict()
    return {**params, "Gaussian_0": {name: jnp.asarray(leaf) for name, leaf in law.items()}}


def size_divisor(patch_size: int, multipliers: Sequence[int]) -> int:
    """The number of which a U-Net needs height and width to be multiples."""
    return patch_size * 2 ** (len(multipliers) - 1)
