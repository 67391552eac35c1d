"""Implicit score matching with the exact trace: the objective that the sliced one estimates.

    l(x) = tr(grad s(x)) + 1/2 || s(x) ||^2

For few dimensions: in D of them it costs as much as D sliced losses.

Reference: Hyvärinen (2005), "Estimation of non-normalized statistical models by score matching",
theorem 1; Song & Ermon (2019), equation 1.
"""

import math

import jax
import jax.numpy as jnp

from score_jax.noise import (
    check_batch,
    check_level,
    perturb,
    standard_normal,
    sum_per_example,
    weighted,
)
from score_jax.typing import AnyBatch, AnyKeys, Levels, Losses, ScoreFn, Sigmas

CHUNK = 16
"""Number of derivatives that are computed at a time."""


def implicit_score_matching(score_fn: ScoreFn, x: AnyBatch, level: Levels) -> Losses:
    """The loss of each example.

    In expectation over x ~ p it equals 1/2 E||s - grad log p||^2 - 1/2 E||grad log p||^2: the true
    score is the minimiser, and the minimum is negative.

    Costs one pass for the score and D derivatives, each along one axis, with the memory of `CHUNK`
    of them: the gradient with respect to parameters recomputes them instead of storing all D.

    Args:
        score_fn: The score to be learned. The score of one example must not depend on the others.
        x: Points, [batch, *shape]: data, clean or already perturbed.
        level: Noise level of each example, passed on to `score_fn`.

    Returns:
        One loss per example, summed over its dimensions; in 1/unit^2, unit being that of `x`.

    Raises:
        ValueError: If `x` is not real floating-point, or a concrete level is negative.

    Example:
        >>> score_fn = lambda x, level: -x
        >>> sj.implicit_score_matching(score_fn, jnp.array([[1.0, 2.0]]), jnp.array([0])).tolist()
        [0.5]
    """
    x, level = check_batch(x), check_level(level)
    if len(x) == 0:
        return jnp.zeros(0, jnp.promote_types(x.dtype, jnp.float32))
    dimension = math.prod(x.shape[1:])
    score, derivative = jax.linearize(lambda x: score_fn(x, level), x)

    @jax.checkpoint
    def diagonal(axis):
        # Examples are independent, so one JVP along this axis gives the derivative for all of
        # them.
        tangent = jax.nn.one_hot(axis, dimension, dtype=x.dtype).reshape(1, *x.shape[1:])
        slope = derivative(jnp.broadcast_to(tangent, x.shape))
        return sum_per_example(tangent * slope)

    axes = jnp.arange(dimension)
    diagonals = jax.lax.map(diagonal, axes, batch_size=min(CHUNK, dimension))
    return jnp.sum(diagonals, axis=0) + 0.5 * sum_per_example(score**2)


def implicit(
    keys: AnyKeys, score_fn: ScoreFn, x: AnyBatch, level: Levels, sigmas: Sigmas
) -> Losses:
    """`implicit_score_matching` at `x` itself, unperturbed and unweighted (a LossFn).

    `sigmas` is ignored, and no random numbers are drawn.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> x, level = jnp.zeros((8, 2)), jnp.zeros(8, int)
        >>> losses = sj.implicit(keys, score_fn, x, level, sigmas)
        >>> losses.shape  # one per example
        (8,)
    """
    del sigmas
    return implicit_score_matching(score_fn, check_batch(x, keys), level)


def annealed_implicit(
    keys: AnyKeys, score_fn: ScoreFn, x: AnyBatch, level: Levels, sigmas: Sigmas
) -> Losses:
    """`implicit_score_matching` at `x` perturbed by noise from `keys`, weighted by sigma^2.

    A LossFn. It has the minimiser of `losses.dsm.annealed_dsm` and, in expectation, its value less
    D / 2 in D dimensions.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> x, level = jnp.zeros((8, 2)), jnp.zeros(8, int)
        >>> losses = sj.annealed_implicit(keys, score_fn, x, level, sigmas)
        >>> losses.shape  # one per example
        (8,)
    """
    x, level = check_batch(x, keys), check_level(level, len(sigmas))
    noise = standard_normal(keys, x.shape[1:], x.dtype)
    losses = implicit_score_matching(score_fn, perturb(x, noise, level, sigmas), level)
    return weighted(losses, level, sigmas)
