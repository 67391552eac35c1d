"""The objective at every noise level, on data that was not trained on."""

import jax
import jax.numpy as jnp

from score_jax.noise import example_keys
from score_jax.typing import Array, Float, Index, LossFn, OneKey, ScoreFn, Sigmas


def losses_per_level(
    key: OneKey, loss_fn: LossFn, score_fn: ScoreFn, x: Array, index: Index, sigmas: Sigmas
) -> Float[Array, "levels batch"]:
    """The loss of each example at each noise level.

    Args:
        key: Of the evaluation; example i at level l draws from it with l and then its global index folded in.
        loss_fn: The objective.
        score_fn: The score.
        x: Clean data.
        index: Global index of each example, int [batch].
        sigmas: Noise levels, decreasing.
    """

    def at_level(level):
        keys = example_keys(jax.random.fold_in(key, level), index)
        return loss_fn(keys, score_fn, x, jnp.full(len(x), level, jnp.int32), sigmas)

    return jax.lax.map(at_level, jnp.arange(len(sigmas)))
