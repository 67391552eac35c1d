"""NCSN, the network of the paper: a RefineNet with dilated convolutions, conditioned on the noise level.

Reference: Song & Ermon (2019), appendix A.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from score_jax.models.layers import ConditionalInstanceNormPlus, Conv
from score_jax.models.refinenet import RefineBlock, ResidualBlock
from score_jax.typing import Images, Levels


def check_even(height: int, width: int) -> None:
    """Raises a ValueError for an image size that does not halve."""
    if height % 2 or width % 2 or min(height, width) < 4:
        raise ValueError(
            f"NCSN halves the image once and cannot take {height}x{width}: height and width must be even and at least 4"
        )


class NCSN(nn.Module):
    """Noise conditional score network.

    Attributes:
        num_levels: Number of noise levels.
        width: Features of the first stage, n; the published settings are 64 (MNIST) and 128 (CIFAR-10, CelebA).
        centered: Whether images in [0, 1] are mapped to [-1, 1] first; not for logit-transformed data.
    """

    num_levels: int
    width: int = 128
    centered: bool = True

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
        check_even(*x.shape[1:3])
        if self.width < 2:
            raise ValueError(f"width={self.width} must be at least 2")  # the norm's variance over features divides by width - 1
        n = self.width
        norm = functools.partial(ConditionalInstanceNormPlus, num_levels=self.num_levels)
        x = jnp.asarray(x)
        h = Conv(n, name="begin_conv")(2 * x - 1 if self.centered else x)
        stages = []
        for stage, (features, down, dilation) in enumerate(
            [(n, False, 1), (2 * n, True, 1), (2 * n, True, 2), (2 * n, True, 4)], 1
        ):
            h = ResidualBlock(features, norm, down=down, dilation=dilation, name=f"res{stage}_0")(h, level)
            h = ResidualBlock(features, norm, dilation=dilation, name=f"res{stage}_1")(h, level)
            stages.append(h)
        h = RefineBlock(2 * n, norm, name="refine1")([stages[3]], level)
        h = RefineBlock(2 * n, norm, name="refine2")([stages[2], h], level)
        h = RefineBlock(n, norm, name="refine3")([stages[1], h], level)
        h = RefineBlock(n, norm, last=True, name="refine4")([stages[0], h], level)
        h = nn.elu(norm(name="normalizer")(h, level))
        return Conv(x.shape[-1], name="end_conv")(h)
