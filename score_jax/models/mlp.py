"""A multilayer perceptron, for densities in a few dimensions.

    one noise level:   s(x) = F(x)
    several:           the preconditioning of `models.preconditioning` with m = 0 and d = 1

F is a stack of dense layers with softplus between them. With several levels, the target of F is of
unit size if the data are.

Reference: the toy experiments of Song & Ermon (2019), figures 2 and 3.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from score_jax.models.fields import check_widths
from score_jax.models.layers import flat_normal
from score_jax.models.preconditioning import as_floats, preconditioned
from score_jax.typing import AnyLevels, Array, Batch, JaxBatch


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), with an absolute error of 1 ulp of 1."""
    # Half the time of log1p on a CPU; above 20 the result is x.
    return jnp.where(x > 20, x, jnp.log(1 + jnp.exp(jnp.minimum(x, 20))))


class MLP(nn.Module):
    """Score network for points in a few dimensions; 2-128-128-2 in the paper.

    Attributes:
        sigmas: Noise levels, decreasing: a tuple of floats or an array. With a single level, the
            network is F(x) and the value of the level is ignored.
        hidden: Widths of the hidden layers, at least one.

    Raises:
        ValueError: If there is no hidden layer or one has no units.

    Example:
        >>> model = sj.MLP(sigmas=sj.geometric_sigmas(1.0, 0.1, 5))
        >>> x, level = jnp.zeros((1, 2)), jnp.array([0])
        >>> params = model.init(jax.random.key(0), x, level)["params"]
        >>> sj.score_fn(model, params)(x, level).shape
        (1, 2)
    """

    sigmas: Any
    hidden: tuple[int, ...] = (128, 128)

    def __post_init__(self):
        self.sigmas = as_floats(self.sigmas)
        check_widths(hidden=self.hidden)
        self.hidden = tuple(self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Batch, level: AnyLevels) -> JaxBatch:
        """The score at the examples' noise levels.

        Args:
            x: Perturbed data, [batch, *shape]; clean data of about unit size.
            level: int [batch], 0 is the largest sigma; or floating-point, for a sigma between
                two levels, as in `noise.sigma_at`.

        Returns:
            The estimated gradient of the log density of `x`, of its shape and dtype.

        """
        x = jnp.asarray(x)
        dimension = math.prod(x.shape[1:])

        def network(x, *condition):
            h = jnp.concatenate([x.reshape(x.shape[0], dimension), *condition], axis=1)
            return self._network(h, dimension).reshape(x.shape)

        if len(self.sigmas) == 1:
            return network(x).astype(x.dtype)

        return preconditioned(network, x, level, self.sigmas)

    def _network(self, h: Array, features: int) -> Array:
        for width in self.hidden:
            # Smooth, unlike ReLU: the sliced and the implicit objective differentiate the score.
            h = softplus(nn.Dense(width, kernel_init=flat_normal(1.0))(h))
        return nn.Dense(features, kernel_init=flat_normal(1.0))(h)
