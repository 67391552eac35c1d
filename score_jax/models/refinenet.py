"""RefineNet: residual blocks on the way down, refine blocks on the way up.

Blocks construct their norms as `norm(name=...)`, a module called with (h, condition). The two
published families differ in the places of the norms, in their conditioning and in the pooling.

Reference: Lin et al. (2017), "RefineNet"; Song & Ermon (2019), appendix A.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn

from score_jax.models.layers import Conv, elu, mean_pool_2x2, resize_aligned
from score_jax.typing import Array, Labels, Levels

Condition: TypeAlias = Levels | tuple[Levels, Labels]
"""Argument of the norms: noise levels, or noise levels and labels."""


class ResidualBlock(nn.Module):
    """Norm, ELU, conv, norm, ELU, conv, plus a shortcut.

    Attributes:
        features: Number of output features.
        norm: Constructor of a norm from its name.
        down: If True, the block begins a stage; without dilation it then halves the resolution by
            mean pooling.
        dilation: Dilation of all convolutions of the block; above 1 the resolution is kept.
    """

    features: int
    norm: Callable[..., nn.Module]
    down: bool = False
    dilation: int = 1

    @nn.compact
    def __call__(self, h: Array, condition: Condition) -> Array:
        width = h.shape[-1]
        pool = self.down and self.dilation == 1
        # In a block that begins a stage, the first convolution keeps the width and the second
        # changes it.
        first_features = width if self.down else self.features
        y = elu(self.norm(name="normalize1")(h, condition))
        y = Conv(first_features, dilation=self.dilation, name="conv1")(y)
        y = elu(self.norm(name="normalize2")(y, condition))
        y = Conv(self.features, dilation=self.dilation, name="conv2")(y)
        if pool:
            # A 1x1 convolution commutes with the mean, and costs a quarter after it.
            y, h = mean_pool_2x2(y), mean_pool_2x2(h)
        if self.down or width != self.features:
            size = 1 if pool else 3
            h = Conv(self.features, size, dilation=self.dilation, name="shortcut")(h)
        return y + h


class ResidualConvUnits(nn.Module):
    """`num_blocks` residual blocks of two stages, each norm, ELU, conv without bias."""

    num_blocks: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, h: Array, condition: Condition) -> Array:
        for block in range(1, self.num_blocks + 1):
            residual = h
            for stage in (1, 2):
                h = elu(self.norm(name=f"{block}_{stage}_norm")(h, condition))
                h = Conv(h.shape[-1], use_bias=False, name=f"{block}_{stage}_conv")(h)
            h = h + residual
        return h


class MultiScaleFusion(nn.Module):
    """Convolves maps of several resolutions to one width, resizes them to one size and adds."""

    features: int
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: Sequence[Array], condition: Condition, size: Any) -> Array:
        resized = []
        for i, h in enumerate(maps):
            h = Conv(self.features, name=f"convs_{i}")(self.norm(name=f"norms_{i}")(h, condition))
            resized.append(resize_aligned(h, size))
        return sum(resized[1:], resized[0])


class ChainedResidualPooling(nn.Module):
    """Adds context of growing extent: twice norm, 5x5 pool and conv, each with a residual."""

    norm: Callable[..., nn.Module]
    pool: Callable[[Array], Array]

    @nn.compact
    def __call__(self, h: Array, condition: Condition) -> Array:
        h = path = elu(h)
        for i in range(2):
            path = self.pool(self.norm(name=f"norms_{i}")(path, condition))
            path = Conv(h.shape[-1], use_bias=False, name=f"convs_{i}")(path)
            h = h + path
        return h


class RefineBlock(nn.Module):
    """Combines the maps of a stage with those of the next coarser one.

    Attributes:
        features: Number of output features.
        norm: Constructor of a norm from its name.
        pool: The 5x5 pooling.
        last: If True, this is the last refine block, with three residual units instead of one at
            its output.
    """

    features: int
    norm: Callable[..., nn.Module]
    pool: Callable[[Array], Array]
    last: bool = False

    @nn.compact
    def __call__(self, maps: Sequence[Array], condition: Condition) -> Array:
        """Combines `maps`, of which the first one has the resolution of the output."""
        adapted = []
        for i, h in enumerate(maps):
            units = ResidualConvUnits(2, self.norm, name=f"adapt_convs_{i}")
            adapted.append(units(h, condition))
        h = adapted[0]
        if len(maps) > 1:
            fusion = MultiScaleFusion(self.features, self.norm, name="msf")
            h = fusion(adapted, condition, maps[0].shape[1:3])
        h = ChainedResidualPooling(self.norm, self.pool, name="crp")(h, condition)
        num_blocks = 3 if self.last else 1
        return ResidualConvUnits(num_blocks, self.norm, name="output_convs")(h, condition)


class Stage(NamedTuple):
    """One stage on the way down and the refine block of the same resolution on the way up.

    Attributes:
        name: Number of the stage in the official names.
        features: Features of the stage, in units of the network's width.
        down: If True, the stage begins with a block that halves the resolution or, with dilation 2
            or more, only changes the width.
        dilation: Dilation of the stage's convolutions.
        refine: Number of the refine block in the official names.
        refined: Features of the refine block, in units of the network's width.
    """

    name: str
    features: int
    down: bool
    dilation: int
    refine: str
    refined: int


def refine_net(
    h: Array,
    condition: Condition,
    width: int,
    stages: Sequence[Stage],
    norm: Callable[..., nn.Module],
    refine_norm: Callable[..., nn.Module],
    pool: Callable[[Array], Array],
    remat: bool,
) -> Array:
    """Applies the residual stages and the refine blocks; call it within a Flax module.

    The blocks become submodules of the calling module.

    Args:
        h: Output of the first convolution, [batch, height, width, features].
        condition: Noise level of each example, or (level, label) for norms that are conditional
            on the class.
        width: n, the unit of the features.
        stages: Stages from the finest to the coarsest.
        norm: Constructor of the norms of the residual blocks.
        refine_norm: Constructor of the norms of the refine blocks.
        pool: 5x5 pooling of the refine blocks.
        remat: If True, recompute blocks for the gradient.
    """
    residual = nn.remat(ResidualBlock) if remat else ResidualBlock
    refine = nn.remat(RefineBlock) if remat else RefineBlock

    # On the way down, keep the map of every stage.
    maps = []
    for stage in stages:
        features, name = stage.features * width, f"res{stage.name}"
        settings: dict[str, Any] = {"dilation": stage.dilation}
        h = residual(features, norm, down=stage.down, name=f"{name}_0", **settings)(h, condition)
        h = residual(features, norm, name=f"{name}_1", **settings)(h, condition)
        maps.append(h)

    # On the way up, combine each with the result of the coarser stages.
    for stage, own in zip(reversed(stages), reversed(maps), strict=True):
        coarser = [] if stage is stages[-1] else [h]
        block = refine(
            stage.refined * width,
            refine_norm,
            pool,
            last=stage is stages[0],
            name=f"refine{stage.refine}",
        )
        h = block([own, *coarser], condition)
    return h


def check_size(kind: str, height: int, width: int, stages: Sequence[Stage]) -> None:
    """Raises a ValueError for images that cannot be halved as often as the network does."""
    factor = 2 ** sum(stage.down and stage.dilation == 1 for stage in stages)
    if height % factor or width % factor or min(height, width) < 2 * factor:
        raise ValueError(
            f"{kind} cannot take {height}x{width}: height and width must be multiples of {factor} "
            f"and at least {2 * factor}"
        )


def check_width(width: int) -> None:
    """Raises a ValueError for a width at which the norms would divide by 0."""
    if width < 2:
        # The unbiased variance over features divides by width - 1.
        raise ValueError(f"width={width} must be at least 2")


def check_label(kind: str, num_classes: int | None, label: Labels | None) -> None:
    """Raises a ValueError if labels are missing or not accepted."""
    if (label is None) != (num_classes is None):
        need = "takes no" if num_classes is None else "needs"
        raise ValueError(f"{kind} of num_classes={num_classes} {need} labels")
