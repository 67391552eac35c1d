"""NCSN, the network of the paper: a RefineNet with dilated convolutions and conditional norms.

Reference: Song & Ermon (2019), appendix A.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from score_jax.models.fields import check_booleans
from score_jax.models.layers import (
    ClassConditional,
    ConditionalInstanceNormPlus,
    Conv,
    compute_dtype,
    elu,
    mean_pool_5x5,
)
from score_jax.models.preconditioning import as_floats
from score_jax.models.refinenet import Stage, check_label, check_size, check_width, refine_net
from score_jax.noise import check_counts
from score_jax.typing import Images, Labels, Levels

STAGES = (
    Stage("1", 1, down=False, dilation=1, refine="4", refined=1),
    Stage("2", 2, down=True, dilation=1, refine="3", refined=1),
    Stage("3", 2, down=True, dilation=2, refine="2", refined=2),
    Stage("4", 2, down=True, dilation=4, refine="1", refined=2),
)


class NCSN(nn.Module):
    """Noise conditional score network.

    Attributes:
        num_levels: Number of noise levels; None takes that of `sigmas`.
        width: Features of the first stage, n; the published settings are 64 (MNIST) and 128
            (CIFAR-10, CelebA).
        centered: If True, map images in [0, 1] to [-1, 1] first; not for logit-transformed data.
        dtype: Precision of the convolutions and feature maps, float32 or bfloat16; parameters and
            statistics are float32 in any case.
        remat: If True, recompute blocks for the gradient instead of storing their activations:
            less memory, about a third more time.
        sigmas: Noise levels, as other networks take them; only their number is used.
        num_classes: Number of classes of a class-conditional network, whose norms have a scale and
            a shift per class; None (or 0) for an unconditional one, as published. The label
            num_classes stands for no class, if the network was trained with label dropout.

    Example:
        >>> model = sj.NCSN(num_levels=10, width=8)
        >>> x, level = jnp.zeros((1, 8, 8, 1)), jnp.array([0])
        >>> params = model.init(jax.random.key(0), x, level)["params"]
        >>> sj.score_fn(model, params)(x, level).shape
        (1, 8, 8, 1)
    """

    num_levels: int | None = None
    width: int = 128
    centered: bool = True
    dtype: str = "float32"
    remat: bool = False
    sigmas: Any = None
    num_classes: int | None = None

    def __post_init__(self):
        check_counts(width=self.width)
        check_booleans(centered=self.centered, remat=self.remat)
        compute_dtype(self.dtype)
        self.num_classes = self.num_classes or None
        if self.sigmas is not None:
            num_levels = len(as_floats(self.sigmas))
            if self.num_levels not in (None, num_levels):
                raise ValueError(
                    f"num_levels={self.num_levels} differs from the number of sigmas, "
                    f"{num_levels}: give one of them"
                )
            self.num_levels, self.sigmas = num_levels, None
        if self.num_levels is None or self.num_levels < 1:
            raise ValueError(
                f"num_levels={self.num_levels} must be at least 1: give num_levels or sigmas"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Images, level: Levels, label: Labels | None = None) -> Images:
        """The score of images at their noise levels.

        Args:
            x: Perturbed images, [batch, height, width, channels]; clean ones are in [0, 1].
            level: int [batch], 0 is the largest sigma.
            label: int [batch] in [0, num_classes], for a class-conditional network.

        Returns:
            The estimated gradient of the log density of `x`, of its shape and dtype.

        Raises:
            ValueError: If height or width is odd or below 4, the network's width is below 2, or
                labels are missing or not accepted.
        """
        check_size("NCSN", x.shape[1], x.shape[2], STAGES)
        check_width(self.width)
        check_label("NCSN", self.num_classes, label)
        norm: Callable[..., nn.Module] = functools.partial(
            ConditionalInstanceNormPlus, num_levels=int(self.num_levels or 0)
        )
        condition: Any = level
        if self.num_classes is not None:
            norm = functools.partial(ClassConditional, norm, self.num_classes)
            condition = (level, label)
        x = jnp.asarray(x)
        h = (2 * x - 1 if self.centered else x).astype(compute_dtype(self.dtype))
        h = Conv(self.width, name="begin_conv")(h)
        h = refine_net(h, condition, self.width, STAGES, norm, norm, mean_pool_5x5, self.remat)
        h = elu(norm(name="normalizer")(h, condition))
        score = Conv(x.shape[-1], name="end_conv")(h).astype(jnp.float32)
        return score.astype(x.dtype)
