"""The blocks of the conditional RefineNet: residual blocks on the way down, refine blocks on the way up.

A block takes its norm as `norm(name=...)`, a module called with (h, level).

Reference: Lin et al. (2017), "RefineNet"; Song & Ermon (2019), appendix A.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn

from score_jax.models.layers import Conv, mean_pool_2x2, mean_pool_5x5, resize_aligned
from score_jax.typing import Array, Levels


class ResidualBlock(nn.Module):
    """Norm, ELU, conv, norm, ELU, conv, plus a shortcut.

    Attributes:
        features: Number of output features.
        norm: Makes a norm from its name.
        down: Whether the block begins a stage. Without dilation it then halves the resolution by mean pooling.
        dilation: Of all convolutions of the block; above 1 the resolution stays.
    """

    features: int
    norm: Callable[..., nn.Module]
    down: bool = False
    dilation: int = 1

    @nn.compact
    def __call__(self, h: Array, level: Levels) -> Array:
        width = h.shape[-1]
        pool = self.down and self.dilation == 1
        # The first convolution of a block that begins a stage keeps the width, the second changes it.
        first, shortcut_size = (width, 1 if pool else 3) if self.down else (self.features, 3)
        y = nn.elu(self.norm(name="normalize1")(h, level))
        y = Conv(first, dilation=self.dilation, name="conv1")(y)
        y = nn.elu(self.norm(name="normalize2")(y, level))
        y = Conv(self.features, dilation=self.dilation, name="conv2")(y)
        if self.down or width != self.features:
            h = Conv(self.features, kernel_size=shortcut_size, dilation=self.dilation, name="shortcut")(h)
        return mean_pool_2x2(y) + mean_pool_2x2(h) if pool else y + h


class ResidualConvUnits(nn.Module):
    """`num_blocks` residual blocks of two stages, each norm, ELU, conv without bias."""

    num_blocks: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, h: Array, level: Levels) -> Array:
        for block in range(1, self.num_blocks + 1):
            residual = h
            for stage in (1, 2):
                h = nn.elu(self.norm(name=f"{block}_{stage}_norm")(h, level))
                h = Conv(h.shape[-1], use_bias=False, name=f"{block}_{stage}_conv")(h)
            h = h + residual
        return h


class MultiScaleFusion(nn.Module):
    """Brings maps of several resolutions to one width and size, and adds them."""

    features: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Sequence[Array], level: Levels, size: tuple[int, int]) -> Array:
        total = 0.0
        for i, h in enumerate(maps):
            h = Conv(self.features, name=f"convs_{i}")(self.norm(name=f"norms_{i}")(h, level))
            total = total + resize_aligned(h, size)
        return total


class ChainedResidualPooling(nn.Module):
    """Adds context of growing extent: twice norm, 5x5 mean pool and conv, each result added."""

    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, h: Array, level: Levels) -> Array:
        h = path = nn.elu(h)
        for i in range(2):
            path = mean_pool_5x5(self.norm(name=f"norms_{i}")(path, level))
            path = Conv(h.shape[-1], use_bias=False, name=f"convs_{i}")(path)
            h = h + path
        return h


class RefineBlock(nn.Module):
    """Refines the maps of a stage with those of the coarser one.

    Attributes:
        features: Number of output features.
        norm: Makes a norm from its name.
        last: Whether this is the last refine block, whose output goes through three residual units, not one.
    """

    features: int
    norm: Callable[..., nn.Module]
    last: bool = False

    @nn.compact
    def __call__(self, maps: Sequence[Array], level: Levels) -> Array:
        """`maps`: the stage's own first; its resolution is that of the output."""
        adapted = [ResidualConvUnits(2, self.norm, name=f"adapt_convs_{i}")(h, level) for i, h in enumerate(maps)]
        if len(maps) > 1:
            h = MultiScaleFusion(self.features, self.norm, name="msf")(adapted, level, maps[0].shape[1:3])
        else:
            h = adapted[0]
        h = ChainedResidualPooling(self.norm, name="crp")(h, level)
        return ResidualConvUnits(3 if self.last else 1, self.norm, name="output_convs")(h, level)
