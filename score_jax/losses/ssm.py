"""Sliced score matching: score matching without a trace, along random projections.

    l(x, v) = v^T (grad s(x)) v + 1/2 || s(x) ||^2       variance reduced
    l(x, v) = v^T (grad s(x)) v + 1/2 (v^T s(x))^2       plain,             E[v v^T] = I

Two layers: `sliced_score_matching` is deterministic and takes the projection, `ssm` and
`annealed_ssm` draw it.

Reference: Song, Garg, Shi & Ermon (2019), "Sliced score matching: a scalable approach to density
and score estimation", section 3; Song & Ermon (2019), equation 3.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from score_jax.noise import (
    check_batch,
    check_counts,
    check_level,
    perturb,
    split_keys,
    standard_normal,
    standard_uniform,
    sum_per_example,
    weighted,
)
from score_jax.typing import (
    AnyBatch,
    AnyKeys,
    Batch,
    JaxBatch,
    Keys,
    Levels,
    Losses,
    ScoreFn,
    Sigmas,
)


def sliced_score_matching(
    score_fn: ScoreFn,
    x: AnyBatch,
    projection: Batch,
    level: Levels,
    *,
    variance_reduced: bool = True,
) -> Losses:
    """The loss of each example for a given projection: the score and one derivative along a line.

    In expectation over projections with E[v v^T] = I and over x ~ p, both forms equal
    1/2 E||s - grad log p||^2 - 1/2 E||grad log p||^2: the true score is the minimiser, and the
    minimum is negative.

    Args:
        score_fn: The score to be learned. The score of one example must not depend on the others.
        x: Points, [batch, *shape]: data, clean or already perturbed.
        projection: v above, of the shape of `x`.
        level: Noise level of each example, passed on to `score_fn`.
        variance_reduced: If True, use ||s||^2, the mean of (v^T s)^2 over projections.

    Returns:
        One loss per example, summed over its dimensions; in 1/unit^2, unit being that of `x`.

    Raises:
        ValueError: If `x` is not real floating-point, or a concrete level is negative.

    Example:
        >>> score_fn = lambda x, level: -x
        >>> x, projection = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, -1.0]])
        >>> print(sj.sliced_score_matching(score_fn, x, projection, jnp.array([0])))  # -2 + 5/2
        [0.5]
    """
    x, level = check_batch(x), check_level(level)
    return _mean_over_projections(score_fn, x, [projection], level, variance_reduced)


def _mean_over_projections(
    score_fn: ScoreFn,
    x: Batch,
    projections: Sequence[Batch],
    level: Levels,
    variance_reduced: bool,
) -> Losses:
    # One pass for the score and one for each derivative; under vmap the derivatives take twice as
    # long on a CPU.
    score, derivative = jax.linearize(lambda x: score_fn(x, level), x)
    losses = []
    for projection in projections:
        projection = jnp.asarray(projection, x.dtype)
        trace = sum_per_example(projection * derivative(projection))
        if variance_reduced:
            square = sum_per_example(score**2)
        else:
            square = sum_per_example(projection * score) ** 2
        losses.append(trace + 0.5 * square)
    return sum(losses[1:], losses[0]) / len(projections)


def rademacher(keys: Keys, shape: tuple[int, ...]) -> JaxBatch:
    """Projections of independent signs, [batch, *shape]; exact for a diagonal grad s."""
    return jnp.where(standard_uniform(keys, shape) < 0.5, -1.0, 1.0)


def gaussian(keys: Keys, shape: tuple[int, ...]) -> JaxBatch:
    """Standard normal projections, [batch, *shape]."""
    return standard_normal(keys, shape)


def sphere(keys: Keys, shape: tuple[int, ...]) -> JaxBatch:
    """Projections uniform on the sphere of radius sqrt(D), D = prod(shape), [batch, *shape].

    Exact for grad s = c I.
    """
    dimension = math.prod(shape)
    normal = standard_normal(keys, (dimension,))
    radius = dimension**0.5 / jnp.linalg.norm(normal, axis=1, keepdims=True)
    return (normal * radius).reshape(len(keys), *shape)


PROJECTIONS = {"rademacher": rademacher, "gaussian": gaussian, "sphere": sphere}
"""Name -> (keys [batch], shape) -> projections [batch, *shape] with E[v v^T] = I."""


def ssm(
    keys: AnyKeys,
    score_fn: ScoreFn,
    x: AnyBatch,
    level: Levels,
    sigmas: Sigmas,
    *,
    projection: str = "rademacher",
    num_projections: int = 1,
    variance_reduced: bool = True,
) -> Losses:
    """`sliced_score_matching` at `x` itself, unperturbed and unweighted (a LossFn).

    Its minimiser over all score functions is the score of the data, if they have a density.

    Args:
        keys: One key per example; do not reuse them.
        score_fn: The score to be learned.
        x: Data, [batch, *shape].
        level: Passed on to `score_fn`.
        sigmas: Ignored.
        projection: A name in `PROJECTIONS`.
        num_projections: Number of projections per example over whose losses the mean is taken. The
            score is computed once; time, memory and compile time of its derivatives grow in
            proportion.
        variance_reduced: As in `sliced_score_matching`.

    Returns:
        One loss per example.

    Raises:
        ValueError: If the projection is unknown, num_projections is less than 1, or as
            `losses.dsm.annealed_dsm`.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> x, level = jnp.zeros((8, 2)), jnp.zeros(8, int)
        >>> losses = sj.ssm(keys, score_fn, x, level, sigmas)
        >>> losses.shape  # one per example
        (8,)
    """
    del sigmas
    if projection not in PROJECTIONS:
        known = ", ".join(PROJECTIONS)
        raise ValueError(f"projection={projection!r} is unknown: it must be one of {known}")
    check_counts(num_projections=num_projections)
    x, level = check_batch(x, keys), check_level(level)
    # Fold the projection's number into its keys, so that more projections do not change the first.
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    draw = PROJECTIONS[projection]
    draws = [draw(fold(keys, number), x.shape[1:]) for number in range(num_projections)]
    return _mean_over_projections(score_fn, x, draws, level, variance_reduced)


def annealed_ssm(
    keys: AnyKeys,
    score_fn: ScoreFn,
    x: AnyBatch,
    level: Levels,
    sigmas: Sigmas,
    *,
    projection: str = "rademacher",
    num_projections: int = 1,
    variance_reduced: bool = True,
) -> Losses:
    """`ssm` at `x` perturbed by the noise of its own level, weighted by sigma^2 (a LossFn).

    It has the minimiser of `losses.dsm.annealed_dsm` and, in expectation, its value less D / 2 in
    D dimensions.

    Args:
        keys: One key per example; do not reuse them.
        score_fn: The score to be learned.
        x: Clean data, [batch, *shape].
        level: Noise level of each example, an index into `sigmas`.
        sigmas: Noise levels, decreasing, in the unit of `x`.
        projection: As in `ssm`.
        num_projections: As in `ssm`.
        variance_reduced: As in `ssm`.

    Returns:
        One loss per example; without a unit.

    Raises:
        ValueError: As `ssm`.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> x, level = jnp.zeros((8, 2)), jnp.zeros(8, int)
        >>> losses = sj.annealed_ssm(keys, score_fn, x, level, sigmas)
        >>> losses.shape  # one per example
        (8,)
    """
    x, level = check_batch(x, keys), check_level(level, len(sigmas))
    noise_keys, projection_keys = split_keys(keys)
    noise = standard_normal(noise_keys, x.shape[1:], x.dtype)
    losses = ssm(
        projection_keys,
        score_fn,
        perturb(x, noise, level, sigmas),
        level,
        sigmas,
        projection=projection,
        num_projections=num_projections,
        variance_reduced=variance_reduced,
    )
    return weighted(losses, level, sigmas)
