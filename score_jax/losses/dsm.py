"""Denoising score matching, weighted by sigma^2.

    l(x, z, i) = 1/2 || sigma_i s(x + sigma_i z, i) + z ||^2,   z ~ N(0, I)

Two layers: `denoising_score_matching` is deterministic and takes the noise, `annealed_dsm` draws
it.

Reference: Vincent (2011), "A connection between score matching and denoising autoencoders"; Song &
Ermon (2019), equations 5 and 6 with lambda(sigma) = sigma^2.
"""

import jax.numpy as jnp

from score_jax.noise import (
    check_batch,
    check_level,
    perturb,
    sigma_of,
    standard_normal,
    sum_per_example,
)
from score_jax.typing import AnyBatch, AnyKeys, Batch, Levels, Losses, ScoreFn, Sigmas


def denoising_score_matching(
    score_fn: ScoreFn, x: AnyBatch, noise: Batch, level: Levels, sigmas: Sigmas
) -> Losses:
    """The loss of each example for a given draw of the noise.

    Its minimiser over all score functions is the score of the perturbed data. The minimum value is
    not zero; for data N(0, v I) in D dimensions it is D v / (2 (v + sigma^2)) in expectation.

    Args:
        score_fn: The score to be learned.
        x: Clean data, [batch, *shape].
        noise: Standard normal, of the shape of `x`.
        level: Noise level of each example, an index into `sigmas`.
        sigmas: Noise levels, decreasing, in the unit of `x`.

    Returns:
        One loss per example, summed over its dimensions; without a unit.

    Raises:
        ValueError: If `x` is not real floating-point, or a concrete level is out of range.
    """
    x = check_batch(x)
    level = check_level(level, len(sigmas))
    sigma = sigma_of(level, sigmas, x)
    score = score_fn(perturb(x, noise, level, sigmas), level)
    residual = sigma * score + noise
    residual = residual.astype(jnp.promote_types(x.dtype, jnp.float32))
    return 0.5 * sum_per_example(residual**2)


def annealed_dsm(
    keys: AnyKeys, score_fn: ScoreFn, x: AnyBatch, level: Levels, sigmas: Sigmas
) -> Losses:
    """`denoising_score_matching` with noise drawn from `keys`, one per example (a LossFn).

    Raises:
        ValueError: As `denoising_score_matching`; if the number of keys differs from the batch
            size.
    """
    x = check_batch(x, keys)
    noise = standard_normal(keys, x.shape[1:], x.dtype)
    return denoising_score_matching(score_fn, x, noise, level, sigmas)
