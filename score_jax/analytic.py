"""Gaussian mixtures, whose score has a closed form at every noise level.

    p_sigma(x) = sum_k w_k N(x; m_k, (s_k^2 + sigma^2) I)

References for training and sampling, and the toy densities of the paper's figures.
"""

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import sigma_at, sigma_of
from score_jax.typing import Array, Batch, Float, Keys, Losses, ScoreFn, Sigmas

PerMode = Float[Array, "modes"] | Float[np.ndarray, "modes"]
Centres = Float[Array, "modes *shape"] | Float[np.ndarray, "modes *shape"]


def mixture_log_density(x: Batch, weights: PerMode, means: Centres, scales: PerMode) -> Losses:
    """Log density of a mixture of isotropic Gaussians, [batch].

    Args:
        x: Points, [batch, *shape].
        weights: Weights of the modes; positive, sum 1.
        means: Centres of the modes, [modes, *shape].
        scales: Standard deviations of the modes, in the unit of `x`.
    """
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))
    dimension = means[0].size
    offsets = x.reshape(len(x), 1, -1) - means.reshape(1, len(means), -1)
    squares = jnp.sum(offsets**2, axis=2)
    exponents = -0.5 * squares / scales[None] ** 2 - dimension * jnp.log(scales)[None]
    log_weights = jnp.log(weights)[None]
    log_constant = 0.5 * dimension * jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(exponents + log_weights, axis=1) - log_constant


def mixture_score_fn(weights: PerMode, means: Centres, scales: PerMode, sigmas: Sigmas) -> ScoreFn:
    """The exact score of the mixture perturbed by each of `sigmas`, as a score function."""
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))

    def score_fn(x, level):
        # Variances are [batch, modes].
        variances = scales[None] ** 2 + sigma_at(level, sigmas)[:, None] ** 2
        offsets = means.reshape(1, len(means), -1) - x.reshape(len(x), 1, -1)
        dimension = offsets.shape[2]
        squares = jnp.sum(offsets**2, axis=2)
        exponents = -0.5 * squares / variances - 0.5 * dimension * jnp.log(variances)
        responsibilities = jax.nn.softmax(exponents + jnp.log(weights)[None], axis=1)
        score = jnp.sum((responsibilities / variances)[..., None] * offsets, axis=1)
        return score.reshape(x.shape)

    return score_fn


def gaussian_score_fn(
    mean: Float[Array, "*shape"], variance: float | Float[Array, "*shape"], sigmas: Sigmas
) -> ScoreFn:
    """The exact score of N(mean, variance) perturbed by each of `sigmas`.

    It is -(x - mean) / (variance + sigma^2).

    Args:
        mean: Mean of the data.
        variance: Variance of each dimension, or one for all.
        sigmas: Noise levels, in the unit of the data.
    """

    def score_fn(x, level):
        sigma = sigma_of(level, sigmas, x)
        spread = jnp.broadcast_to(jnp.asarray(variance), x.shape[1:])[None]
        return (jnp.asarray(mean)[None] - x) / (spread + sigma**2)

    return score_fn


def sample_mixture(keys: Keys, weights: PerMode, means: Centres, scales: PerMode) -> Batch:
    """Exact samples of the mixture, [batch, *shape], one per key."""
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))

    def one(key):
        mode_key, noise_key = jax.random.split(key)
        mode = jax.random.categorical(mode_key, jnp.log(weights))
        noise = jax.random.normal(noise_key, (means[0].size,)).reshape(means.shape[1:])
        return means[mode] + scales[mode] * noise

    return jax.vmap(one)(keys)
