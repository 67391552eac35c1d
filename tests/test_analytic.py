import jax
import jax.numpy as jnp
import numpy as np
from truths import assert_mean

from score_jax.analytic import (
    gaussian_score_fn,
    mixture_log_density,
    mixture_score_fn,
    sample_mixture,
)

WEIGHTS, MEANS, SCALES = (
    jnp.array([0.7, 0.3]),
    jnp.array([[1.0, 2.0], [-2.0, 0.5]]),
    jnp.array([0.6, 1.1]),
)
SIGMAS = jnp.array([1.5, 0.2])


def test_score_is_the_gradient_of_the_log_density_at_every_level():
    x = jax.random.normal(jax.random.key(0), (50, 2)) * 3
    for level, sigma in enumerate(SIGMAS):
        widened = jnp.sqrt(SCALES**2 + sigma**2)
        gradient = jax.grad(
            lambda x, widened=widened: mixture_log_density(x, WEIGHTS, MEANS, widened).sum()
        )(x)
        score = mixture_score_fn(WEIGHTS, MEANS, SCALES, SIGMAS)(x, jnp.full(50, level))
        np.testing.assert_allclose(score, gradient, rtol=1e-4, atol=1e-5)


def test_density_integrates_to_one():
    axis = np.linspace(-9, 9, 361)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    mass = (
        np.exp(
            np.asarray(mixture_log_density(jnp.asarray(x), WEIGHTS, MEANS, SCALES), np.float64)
        ).sum()
        * 0.05**2
    )
    np.testing.assert_allclose(mass, 1, atol=1e-4)


def test_gaussian_is_the_mixture_of_one():
    x = jax.random.normal(jax.random.key(1), (10, 2))
    one = mixture_score_fn(jnp.ones(1), MEANS[:1], SCALES[:1], SIGMAS)(x, jnp.zeros(10, int))
    np.testing.assert_allclose(
        gaussian_score_fn(MEANS[0], float(SCALES[0]) ** 2, SIGMAS)(x, jnp.zeros(10, int)),
        one,
        rtol=1e-5,
    )


def test_samples_have_the_moments_of_the_mixture():
    x = np.asarray(
        sample_mixture(jax.random.split(jax.random.key(2), 20000), WEIGHTS, MEANS, SCALES),
        np.float64,
    )
    assert_mean(x[:, 0], 0.7 * 1.0 - 0.3 * 2.0)
    assert_mean(x[:, 1] ** 2, 0.7 * (0.36 + 4.0) + 0.3 * (1.21 + 0.25))
