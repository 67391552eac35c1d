"""NCSN, the network of the paper: a RefineNet with dilated convolutions, conditioned on the noise level.

Reference: Song & Ermon (2019), appendix A.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from score_jax.models.layers import ConditionalInstanceNormPlus, Conv, compute_dtype, elu, mean_pool_5x5
from score_jax.models.refinenet import Stage, check_size, check_width, refine_net
from score_jax.typing import Images, Levels

STAGES = (
    Stage("1", 1, down=False, dilation=1, refine="4", refined=1),
    Stage("2", 2, down=True, dilation=1, refine="3", refined=1),
    Stage("3", 2, down=True, dilation=2, refine="2", refined=2),
    Stage("4", 2, down=True, dilation=4, refine="1", refined=2),
)


class NCSN(nn.Module):
    """Noise conditional score network.

    Attributes:
        num_levels: Number of noise levels.
        width: Features of the first stage, n; the published settings are 64 (MNIST) and 128 (CIFAR-10, CelebA).
        centered: Whether images in [0, 1] are mapped to [-1, 1] first; not for logit-transformed data.
        dtype: Precision of the convolutions and of the maps between them, float32 or bfloat16; parameters, statistics and the score
            are float32 in any case.
        remat: Whether, for a gradient, blocks are computed again and not kept: less memory, about a third more time.
    """

    num_levels: int
    width: int = 128
    centered: bool = True
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x: Images, level: Levels) -> Images:
        """The score of images at their noise levels.

        Args:
            x: Perturbed images, [batch, height, width, channels], clean ones in [0, 1].
            level: int [batch], 0 is the largest sigma.
        Returns:
            The estimated gradient of the log density of `x`, of its shape.
        Raises:
            ValueError: If height or width is odd or below 4, or the network's width is below 2.
        """
        check_size("NCSN", *x.shape[1:3], STAGES)
        check_width(self.width)
        norm = functools.partial(ConditionalInstanceNormPlus, num_levels=self.num_levels)
        x = jnp.asarray(x)
        h = (2 * x - 1 if self.centered else x).astype(compute_dtype(self.dtype))
        h = Conv(self.width, name="begin_conv")(h)
        h = refine_net(h, level, self.width, STAGES, norm, norm, mean_pool_5x5, self.remat)
        h = elu(norm(name="normalizer")(h, level))
        return Conv(x.shape[-1], name="end_conv")(h).astype(jnp.float32)
