"""NCSNv2: the same skeleton without conditioning, divided by sigma, at three depths.

    s(x, i) = net(x) / sigma_i

Reference: Song & Ermon (2020), "Improved techniques for training score-based generative models",
technique 3 and appendix.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_jax.models.fields import check_booleans
from score_jax.models.layers import (
    ClassConditional,
    Conv,
    InstanceNormPlus,
    compute_dtype,
    elu,
    max_pool_5x5,
    without_norm,
)
from score_jax.models.preconditioning import as_floats
from score_jax.models.refinenet import Stage, check_label, check_size, check_width, refine_net
from score_jax.noise import check_counts
from score_jax.typing import Images, Labels, Levels

VARIANTS = {
    "standard": (
        Stage("1", 1, down=False, dilation=1, refine="4", refined=1),
        Stage("2", 2, down=True, dilation=1, refine="3", refined=1),
        Stage("3", 2, down=True, dilation=2, refine="2", refined=2),
        Stage("4", 2, down=True, dilation=4, refine="1", refined=2),
    ),
    "deeper": (
        Stage("1", 1, down=False, dilation=1, refine="5", refined=1),
        Stage("2", 2, down=True, dilation=1, refine="4", refined=1),
        Stage("3", 2, down=True, dilation=1, refine="3", refined=2),
        Stage("4", 4, down=True, dilation=2, refine="2", refined=2),
        Stage("5", 4, down=True, dilation=4, refine="1", refined=4),
    ),
    "deepest": (
        Stage("1", 1, down=False, dilation=1, refine="5", refined=1),
        Stage("2", 2, down=True, dilation=1, refine="4", refined=1),
        Stage("3", 2, down=True, dilation=1, refine="3", refined=2),
        Stage("31", 2, down=True, dilation=1, refine="31", refined=2),
        Stage("4", 4, down=True, dilation=2, refine="2", refined=2),
        Stage("5", 4, down=True, dilation=4, refine="1", refined=4),
    ),
}


class NCSNv2(nn.Module):
    """The unconditional network of NCSNv2.

    Attributes:
        sigmas: Noise levels, decreasing: a tuple of floats or an array. Also stored as a
            non-trainable parameter, as in the official checkpoints.
        width: Features of the first stage, n; 128 in all published settings.
        variant: "standard" (32x32 and 64x64), "deeper" (96x96 and 128x128) or "deepest"
            (256x256).
        centered: If True, map images in [0, 1] to [-1, 1] first; not for logit-transformed data.
        dtype: Precision of the convolutions and feature maps, float32 or bfloat16; parameters and
            statistics are float32 in any case.
        remat: If True, recompute blocks for the gradient instead of storing their activations:
            less memory, about a third more time.
        num_classes: Number of classes of a class-conditional network, whose norms have a scale and
            a shift per class; None (or 0) for an unconditional one, as published. The label
            num_classes stands for no class, if the network was trained with label dropout.

    Example:
        >>> model = sj.NCSNv2(sigmas=sj.geometric_sigmas(50.0, 0.01, 232), width=8)
        >>> x, level = jnp.zeros((1, 8, 8, 1)), jnp.array([0])
        >>> params = model.init(jax.random.key(0), x, level)["params"]
        >>> sj.score_fn(model, params)(x, level).shape
        (1, 8, 8, 1)
    """

    sigmas: Any
    width: int = 128
    variant: str = "standard"
    centered: bool = True
    dtype: str = "float32"
    remat: bool = False
    num_classes: int | None = None

    def __post_init__(self):
        check_counts(width=self.width)
        check_booleans(centered=self.centered, remat=self.remat)
        compute_dtype(self.dtype)
        self.num_classes = self.num_classes or None
        self.sigmas = as_floats(self.sigmas)
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
            ValueError: If height or width cannot be halved as often as the variant does, the width
                is below 2, the variant is unknown, or labels are missing or not accepted.
        """
        if self.variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            raise ValueError(f"variant={self.variant!r} is not known: choose among {known}")
        stages = VARIANTS[self.variant]
        check_size(f"NCSNv2 ({self.variant})", x.shape[1], x.shape[2], stages)
        check_width(self.width)
        check_label("NCSNv2", self.num_classes, label)
        norm: Callable[..., nn.Module] = InstanceNormPlus
        condition: Any = level
        if self.num_classes is not None:
            norm = functools.partial(ClassConditional, norm, self.num_classes)
            condition = (level, label)
        stored = self.param("sigmas", lambda key: jnp.asarray(self.sigmas, jnp.float32))
        sigmas = jax.lax.stop_gradient(jnp.asarray(stored))
        x = jnp.asarray(x)
        h = (2 * x - 1 if self.centered else x).astype(compute_dtype(self.dtype))
        h = Conv(self.width, name="begin_conv")(h)
        h = refine_net(
            h,
            condition,
            self.width,
            stages,
            norm,
            without_norm,
            max_pool_5x5,
            self.remat,
        )
        h = elu(norm(name="normalizer")(h, condition))
        score = Conv(x.shape[-1], name="end_conv")(h).astype(jnp.float32)
        return (score / sigmas[level][:, None, None, None]).astype(x.dtype)
