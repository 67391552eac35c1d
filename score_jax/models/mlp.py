"""A multilayer perceptron, for densities in a few dimensions.

    one noise level:      s(x) = F(x)
    several:              s(x, i) = -x / t^2 + F(x / t, log sigma_i) / (t sigma_i),   t^2 = sigma_i^2 + 1

F is a stack of dense layers with softplus between them. The first term is the exact score of data N(0, I) perturbed by sigma_i;
what F must learn is then of about unit size at every level, if the data are.

Reference: the toy experiments of Song & Ermon (2019), figures 2 and 3; the preconditioning as in `models.unet`.
"""

import flax.linen as nn
import jax.numpy as jnp

from score_jax.models.layers import flat_normal
from score_jax.noise import checked_sigmas
from score_jax.typing import Array, Batch, Levels


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), to one rounding of 1."""
    # Written so, it takes half the time of log1p and the like on a CPU; beyond 20 it is x.
    return jnp.where(x > 20, x, jnp.log(1 + jnp.exp(jnp.minimum(x, 20))))


class MLP(nn.Module):
    """Score network for points in a few dimensions; 2-128-128-2 in the paper.

    Attributes:
        sigmas: The noise levels, decreasing; with one of them, whatever it is, the network is F(x).
        hidden: Widths of the hidden layers, at least one.
    """

    sigmas: tuple[float, ...]
    hidden: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, x: Batch, level: Levels) -> Batch:
        """The score at the examples' noise levels.

        Args:
            x: Data of about unit size, perturbed or clean.
            level: int [batch], 0 is the largest sigma.
        Returns:
            The estimated gradient of the log density of `x`, of its shape.
        Raises:
            ValueError: If there is no hidden layer, one has no units, or sigmas do not decrease.
        """
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden={self.hidden} must name at least one layer, and every width must be at least 1")
        sigmas = jnp.asarray(checked_sigmas(self.sigmas), jnp.float32)
        h = jnp.asarray(x).reshape(x.shape[0], -1)
        if len(self.sigmas) == 1:
            return self._network(h, h.shape[1]).reshape(x.shape)
        sigma = sigmas[level][:, None]
        total = jnp.sqrt(sigma**2 + 1)
        f = self._network(jnp.concatenate([h / total, jnp.log(sigma)], axis=1), h.shape[1])
        return (f / (total * sigma) - h / total**2).reshape(x.shape)

    def _network(self, h: Array, features: int) -> Array:
        for width in self.hidden:
            # Smooth, unlike ReLU: the sliced and the implicit objective differentiate the score.
            h = softplus(nn.Dense(width, kernel_init=flat_normal(1.0))(h))
        return nn.Dense(features, kernel_init=flat_normal(1.0))(h)
