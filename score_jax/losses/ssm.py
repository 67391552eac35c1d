"""Sliced score matching: score matching without a trace, along random projections.

    l(x, v) = v^T (grad s(x)) v + 1/2 || s(x) ||^2       variance reduced
    l(x, v) = v^T (grad s(x)) v + 1/2 (v^T s(x))^2       plain,             E[v v^T] = I

Two layers: `sliced_score_matching` is deterministic and takes the projection, `ssm` and `annealed_ssm` draw it.

Reference: Song, Garg, Shi & Ermon (2019), "Sliced score matching: a scalable approach to density and score estimation",
section 3; Song & Ermon (2019), equation 3.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from score_jax.noise import perturb, standard_normal, standard_uniform
from score_jax.typing import Batch, Keys, Levels, Losses, ScoreFn, Sigmas


def sliced_score_matching(
    score_fn: ScoreFn, x: Batch, projection: Batch, level: Levels, *, variance_reduced: bool = True
) -> Losses:
    """The loss of each example for a given draw of the projection: the score and one derivative along a line.

    On average over projections with E[v v^T] = I, and over x ~ p, both forms are 1/2 E||s - grad log p||^2 - 1/2 E||grad log p||^2:
    least at the true score, and negative there.

    Args:
        score_fn: The score to be learned. The score of one example must not depend on the others.
        x: Where: data, clean or already perturbed.
        projection: v above, of the shape of `x`.
        level: Noise level of each example, handed on to `score_fn`.
        variance_reduced: Whether ||s||^2 replaces (v^T s)^2, its mean over projections.
    Returns:
        One loss per example, summed over its dimensions; in 1/unit^2, unit being that of `x`.
    """
    return _mean_over_projections(score_fn, x, [projection], level, variance_reduced)


def _mean_over_projections(
    score_fn: ScoreFn, x: Batch, projections: Sequence[Batch], level: Levels, variance_reduced: bool
) -> Losses:
    x = jnp.asarray(x)
    # One pass for the score, and one for each derivative. Under vmap the latter took twice as long on a CPU.
    score, derivative = jax.linearize(lambda x: score_fn(x, level), x)
    score = score.reshape(len(x), -1)
    total = 0.0
    for projection in projections:
        projection = jnp.asarray(projection, x.dtype)
        slope = derivative(projection).reshape(len(x), -1)
        projection = projection.reshape(len(x), -1)
        square = jnp.sum(score**2, axis=1) if variance_reduced else jnp.sum(projection * score, axis=1) ** 2
        trace = jnp.sum(projection * slope, axis=1)
        total = total + trace + 0.5 * square
    return total / len(projections)


def rademacher(keys: Keys, event: tuple[int, ...]) -> Batch:
    """Projections of independent signs, [batch, *event]; exact for a diagonal grad s."""
    return jnp.where(standard_uniform(keys, event) < 0.5, -1.0, 1.0)


def gaussian(keys: Keys, event: tuple[int, ...]) -> Batch:
    """Standard normal projections, [batch, *event]."""
    return standard_normal(keys, event)


def sphere(keys: Keys, event: tuple[int, ...]) -> Batch:
    """Projections uniform on the sphere of radius sqrt(D), D = prod(event), [batch, *event]; exact for grad s = c I."""
    normal = standard_normal(keys, (math.prod(event),))
    return (normal * (math.prod(event) ** 0.5 / jnp.linalg.norm(normal, axis=1, keepdims=True))).reshape(len(keys), *event)


PROJECTIONS = {"rademacher": rademacher, "gaussian": gaussian, "sphere": sphere}
"""Name -> (keys [batch], event) -> projections [batch, *event] with E[v v^T] = I."""


def ssm(
    keys: Keys,
    score_fn: ScoreFn,
    x: Batch,
    level: Levels,
    sigmas: Sigmas,
    *,
    projection: str = "rademacher",
    num_projections: int = 1,
    variance_reduced: bool = True,
) -> Losses:
    """`sliced_score_matching` at `x` as it is, neither perturbed nor weighted (a LossFn).

    Its minimum over all score functions is the score of the data themselves, if they have a density.

    Args:
        keys: One per example; used up.
        score_fn: The score to be learned.
        x: Data.
        level: Handed on to `score_fn`.
        sigmas: Plays no part.
        projection: A name in `PROJECTIONS`.
        num_projections: Projections per example, of whose losses the mean is taken. The score itself is computed once; time,
            memory and compile time of its derivatives grow in proportion.
        variance_reduced: As in `sliced_score_matching`.
    Returns:
        One loss per example.
    Raises:
        ValueError: If the projection is unknown, or there is not at least one.
    """
    del sigmas
    if projection not in PROJECTIONS:
        raise ValueError(f"projection={projection!r} is unknown: it must be one of {', '.join(PROJECTIONS)}")
    if num_projections < 1:
        raise ValueError(f"num_projections={num_projections} must be at least 1")
    # The number of a projection is folded into its keys, so that more projections do not change the first ones.
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    draws = [PROJECTIONS[projection](fold(keys, number), x.shape[1:]) for number in range(num_projections)]
    return _mean_over_projections(score_fn, x, draws, level, variance_reduced)


def annealed_ssm(
    keys: Keys,
    score_fn: ScoreFn,
    x: Batch,
    level: Levels,
    sigmas: Sigmas,
    *,
    projection: str = "rademacher",
    num_projections: int = 1,
    variance_reduced: bool = True,
) -> Losses:
    """`ssm` at `x` perturbed by its own level's noise, weighted by sigma^2 (a LossFn).

    Has the minimum of `losses.dsm.annealed_dsm` and, on average, its value less D / 2 in D dimensions.

    Args:
        keys: One per example; used up.
        score_fn: The score to be learned.
        x: Clean data.
        level: Noise level of each example, an index into `sigmas`.
        sigmas: Noise levels, decreasing, in the unit of `x`.
        projection: As in `ssm`.
        num_projections: As in `ssm`.
        variance_reduced: As in `ssm`.
    Returns:
        One loss per example; without a unit.
    Raises:
        ValueError: As `ssm`.
    """
    noise_keys, projection_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    perturbed = perturb(x, standard_normal(noise_keys, x.shape[1:]), level, sigmas)
    losses = ssm(
        projection_keys,
        score_fn,
        perturbed,
        level,
        sigmas,
        projection=projection,
        num_projections=num_projections,
        variance_reduced=variance_reduced,
    )
    return jnp.asarray(sigmas)[level] ** 2 * losses
