"""Gaussian mixtures, whose score is known in closed form at every noise level.

    p_sigma(x) = sum_k w_k N(x; m_k, (s_k^2 + sigma^2) I)

Truths to train and sample against, and the toy densities of the paper's figures.
"""

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import per_example
from score_jax.typing import Array, Batch, Float, Keys, Losses, ScoreFn, Sigmas

PerMode = Float[Array, "modes"] | Float[np.ndarray, "modes"]
Centres = Float[Array, "modes *event"] | Float[np.ndarray, "modes *event"]


def mixture_log_density(x: Batch, weights: PerMode, means: Centres, scales: PerMode) -> Losses:
    """Log density of a mixture of isotropic Gaussians, [batch].

    Args:
        x: Where, [batch, *event].
        weights: Of the modes; positive, sum 1.
        means: Centres of the modes, [modes, *event].
        scales: Standard deviations of the modes, in the unit of `x`.
    """
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))
    dimension = means[0].size
    squares = jnp.sum((x.reshape(len(x), 1, -1) - means.reshape(1, len(means), -1)) ** 2, axis=2)
    exponents = -0.5 * squares / scales[None] ** 2 - dimension * jnp.log(scales)[None]
    return jax.nn.logsumexp(exponents + jnp.log(weights)[None], axis=1) - 0.5 * dimension * jnp.log(2 * jnp.pi)


def mixture_score_fn(
    weights: PerMode,
    means: Centres,
    scales: PerMode,
    sigmas: Sigmas,
) -> ScoreFn:
    """The exact score of the mixture perturbed by each of `sigmas`, as a score function."""
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))

    def score_fn(x, level):
        variances = scales[None] ** 2 + jnp.asarray(sigmas)[level][:, None] ** 2  # [batch, modes]
        offsets = means.reshape(1, len(means), -1) - x.reshape(len(x), 1, -1)
        dimension = offsets.shape[2]
        exponents = -0.5 * jnp.sum(offsets**2, axis=2) / variances - 0.5 * dimension * jnp.log(variances)
        responsibilities = jax.nn.softmax(exponents + jnp.log(weights)[None], axis=1)
        return jnp.sum((responsibilities / variances)[..., None] * offsets, axis=1).reshape(x.shape)

    return score_fn


def gaussian_score_fn(mean: Float[Array, "*event"], variance: float | Float[Array, "*event"], sigmas: Sigmas) -> ScoreFn:
    """The exact score of N(mean, variance) perturbed by each of `sigmas`: -(x - mean) / (variance + sigma^2)."""

    def score_fn(x, level):
        sigma = per_example(jnp.asarray(sigmas)[level], x)
        return (jnp.asarray(mean)[None] - x) / (jnp.broadcast_to(variance, x.shape[1:])[None] + sigma**2)

    return score_fn


def sample_mixture(keys: Keys, weights: PerMode, means: Centres, scales: PerMode) -> Batch:
    """Exact samples of the mixture, [batch, *event], one per key."""
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))

    def one(key):
        mode_key, noise_key = jax.random.split(key)
        mode = jax.random.categorical(mode_key, jnp.log(weights))
        noise = jax.random.normal(noise_key, (means[0].size,)).reshape(means.shape[1:])
        return means[mode] + scales[mode] * noise

    return jax.vmap(one)(keys)
