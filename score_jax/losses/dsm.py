"""Denoising score matching, weighted by sigma^2.

    l(x, z, i) = 1/2 || sigma_i s(x + sigma_i z, i) + z ||^2,   z ~ N(0, I)

Two layers: `denoising_score_matching` is deterministic and takes the noise, `annealed_dsm` draws it.

Reference: Vincent (2011), "A connection between score matching and denoising autoencoders"; Song & Ermon
(2019), equations 5 and 6 with lambda(sigma) = sigma^2.
"""

import jax.numpy as jnp

from score_jax.noise import per_example, perturb, standard_normal
from score_jax.typing import Batch, Keys, Levels, Losses, ScoreFn, Sigmas


def denoising_score_matching(score_fn: ScoreFn, x: Batch, noise: Batch, level: Levels, sigmas: Sigmas) -> Losses:
    """The loss of each example for a given draw of the noise.

    Its minimum over all score functions is the score of the perturbed data; its value there is not 0, but
    for N(0, v I) in D dimensions D v / (2 (v + sigma^2)) on average.

    Args:
        score_fn: The score to be learned.
        x: Clean data.
        noise: Standard normal, of the shape of `x`.
        level: Noise level of each example, an index into `sigmas`.
        sigmas: Noise levels, decreasing, in the unit of `x`.
    Returns:
        One loss per example, summed over its dimensions; without a unit.
    """
    sigma = per_example(jnp.asarray(sigmas)[level], x)
    score = score_fn(perturb(x, noise, level, sigmas), level)
    residual = sigma * score + noise
    return 0.5 * jnp.sum(residual.reshape(len(x), -1) ** 2, axis=1)


def annealed_dsm(keys: Keys, score_fn: ScoreFn, x: Batch, level: Levels, sigmas: Sigmas) -> Losses:
    """`denoising_score_matching` with noise drawn from `keys`, one per example (a LossFn)."""
    return denoising_score_matching(score_fn, x, standard_normal(keys, x.shape[1:]), level, sigmas)
