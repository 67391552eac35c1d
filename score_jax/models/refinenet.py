"""RefineNet: residual blocks on the way down, refine blocks on the way up.

A block takes its norm as `norm(name=...)`, a module called with (h, level); the two published families differ in where norms stand,
what they depend on, and in the pooling.

Reference: Lin et al. (2017), "RefineNet"; Song & Ermon (2019), appendix A.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn

from score_jax.models.layers import Conv, elu, mean_pool_2x2, resize_aligned
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
        y = elu(self.norm(name="normalize1")(h, level))
        y = Conv(first, dilation=self.dilation, name="conv1")(y)
        y = elu(self.norm(name="normalize2")(y, level))
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
                h = elu(self.norm(name=f"{block}_{stage}_norm")(h, level))
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
    """Adds context of growing extent: twice norm, 5x5 pool and conv, each result added."""

    norm: Callable[..., nn.Module]
    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, h: Array, level: Levels) -> Array:
        h = path = elu(h)
        for i in range(2):
            path = self.pool(self.norm(name=f"norms_{i}")(path, level))
            path = Conv(h.shape[-1], use_bias=False, name=f"convs_{i}")(path)
            h = h + path
        return h


class RefineBlock(nn.Module):
    """Refines the maps of a stage with those of the coarser one.

    Attributes:
        features: Number of output features.
        norm: Makes a norm from its name.
        pool: The 5x5 pooling.
        last: Whether this is the last refine block, whose output goes through three residual units, not one.
    """

    features: int
    norm: Callable[..., nn.Module]
    pool: Callable[[Array], Array]
    last: bool = False

    @nn.compact
    def __call__(self, maps: Sequence[Array], level: Levels) -> Array:
        """`maps`: the stage's own first; its resolution is that of the output."""
        adapted = [ResidualConvUnits(2, self.norm, name=f"adapt_convs_{i}")(h, level) for i, h in enumerate(maps)]
        if len(maps) > 1:
            h = MultiScaleFusion(self.features, self.norm, name="msf")(adapted, level, maps[0].shape[1:3])
        else:
            h = adapted[0]
        h = ChainedResidualPooling(self.norm, self.pool, name="crp")(h, level)
        return ResidualConvUnits(3 if self.last else 1, self.norm, name="output_convs")(h, level)


class Stage(NamedTuple):
    """One stage of the way down and the refine block that meets it on the way up.

    Attributes:
        name: Its number in the official names.
        features: Features of the stage, in units of the network's width.
        down: Whether the stage begins with a block that halves, or with dilation 2 or more only widens.
        dilation: Of the stage's convolutions.
        refine: Number of the refine block.
        refined: Features of the refine block, in units of the width.
    """

    name: str
    features: int
    down: bool
    dilation: int
    refine: str
    refined: int


def refine_net(
    h: Array,
    level: Levels,
    width: int,
    stages: Sequence[Stage],
    norm: Callable[..., nn.Module],
    refine_norm: Callable[..., nn.Module],
    pool: Callable[[Array], Array],
    remat: bool,
) -> Array:
    """Down the `stages` and up again; to be called within a module, which its blocks become part of.

    Args:
        h: What the first convolution makes of the images, [batch, height, width, features].
        level: Noise level of each example.
        width: n, the unit of the features.
        stages: From the finest to the coarsest.
        norm: Of the residual blocks.
        refine_norm: Of the refine blocks.
        pool: Of the refine blocks, 5x5.
        remat: Whether blocks are computed again for a gradient.
    """
    residual, refine = (nn.remat(block) if remat else block for block in (ResidualBlock, RefineBlock))
    maps = []
    for stage in stages:
        features = stage.features * width
        h = residual(features, norm, down=stage.down, dilation=stage.dilation, name=f"res{stage.name}_0")(h, level)
        h = residual(features, norm, dilation=stage.dilation, name=f"res{stage.name}_1")(h, level)
        maps.append([h])
    for stage, own in zip(reversed(stages), reversed(maps), strict=True):
        coarser = [] if stage is stages[-1] else [h]
        block = refine(stage.refined * width, refine_norm, pool, last=stage is stages[0], name=f"refine{stage.refine}")
        h = block(own + coarser, level)
    return h


def check_size(kind: str, height: int, width: int, stages: Sequence[Stage]) -> None:
    """Raises a ValueError for images that do not halve as often as the network does."""
    factor = 2 ** sum(stage.down and stage.dilation == 1 for stage in stages)
    if height % factor or width % factor or min(height, width) < 2 * factor:
        raise ValueError(
            f"{kind} cannot take {height}x{width}: height and width must be multiples of {factor} and at least {2 * factor}"
        )


def check_width(width: int) -> None:
    """Raises a ValueError for a width with which the norms divide by 0."""
    if width < 2:
        raise ValueError(f"width={width} must be at least 2")  # the variance over features divides by width - 1
