"""Implicit score matching, with the exact trace: the objective that the sliced one estimates.

    l(x) = tr(grad s(x)) + 1/2 || s(x) ||^2

For few dimensions: in D of them it costs as much as D sliced losses.

Reference: Hyvärinen (2005), "Estimation of non-normalized statistical models by score matching", theorem 1; Song & Ermon
(2019), equation 1.
"""

import math

import jax
import jax.numpy as jnp

from score_jax.noise import perturb, standard_normal
from score_jax.typing import Batch, Keys, Levels, Losses, ScoreFn, Sigmas

CHUNK = 16
"""How many derivatives are taken at a time."""


def implicit_score_matching(score_fn: ScoreFn, x: Batch, level: Levels) -> Losses:
    """The loss of each example.

    On average over x ~ p it is 1/2 E||s - grad log p||^2 - 1/2 E||grad log p||^2: least at the true score, and negative there.

    Costs one pass for the score and D derivatives, each along one axis, with the memory of `CHUNK` of them: the gradient with
    respect to parameters computes them again rather than keep all D.

    Args:
        score_fn: The score to be learned. The score of one example must not depend on the others.
        x: Where: data, clean or already perturbed.
        level: Noise level of each example, handed on to `score_fn`.
    Returns:
        One loss per example, summed over its dimensions; in 1/unit^2, unit being that of `x`.
    """
    x = jnp.asarray(x)
    dimension = math.prod(x.shape[1:])
    score, derivative = jax.linearize(lambda x: score_fn(x, level), x)

    @jax.checkpoint
    def diagonal(axis):
        # The same axis in every example: as no example sees another, one derivative serves them all.
        tangent = jax.nn.one_hot(axis, dimension, dtype=x.dtype).reshape(1, *x.shape[1:])
        slope = derivative(jnp.broadcast_to(tangent, x.shape))
        return jnp.sum((tangent * slope).reshape(len(x), -1), axis=1)

    diagonals = jax.lax.map(diagonal, jnp.arange(dimension), batch_size=min(CHUNK, dimension))
    return jnp.sum(diagonals, axis=0) + 0.5 * jnp.sum(score.reshape(len(x), -1) ** 2, axis=1)


def implicit(keys: Keys, score_fn: ScoreFn, x: Batch, level: Levels, sigmas: Sigmas) -> Losses:
    """`implicit_score_matching` at `x` as it is, neither perturbed nor weighted: keys and sigmas play no part (a LossFn)."""
    del keys, sigmas
    return implicit_score_matching(score_fn, x, level)


def annealed_implicit(keys: Keys, score_fn: ScoreFn, x: Batch, level: Levels, sigmas: Sigmas) -> Losses:
    """`implicit_score_matching` at `x` perturbed with noise drawn from `keys`, weighted by sigma^2 (a LossFn).

    Has the minimum of `losses.dsm.annealed_dsm` and, on average, its value less D / 2 in D dimensions.
    """
    perturbed = perturb(x, standard_normal(keys, x.shape[1:]), level, sigmas)
    return jnp.asarray(sigmas)[level] ** 2 * implicit_score_matching(score_fn, perturbed, level)
