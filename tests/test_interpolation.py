import jax
import jax.numpy as jnp
import numpy as np
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn
from score_jax.noise import geometric_sigmas, standard_normal
from score_jax.samplers.interpolation import interpolate, mixed_normal
from score_jax.samplers.langevin import annealed_langevin
from score_jax.samplers.ode import stochastic_heun
from score_jax.samplers.predictor_corrector import predictor_corrector

SIGMAS = geometric_sigmas(2.0, 0.2, 3)
FIRST, SECOND = (jax.random.split(jax.random.key(seed), 16) for seed in (0, 1))
SETTINGS = {"step_size": 0.01, "num_steps": 4}


def between(angle, score_fn, x, **more):
    return interpolate(
        FIRST, SECOND, jnp.full(16, angle, jnp.float32), score_fn, x, SIGMAS, **SETTINGS, **more
    )


def test_the_ends_are_the_two_chains():
    exact = gaussian_score_fn(jnp.ones(3), 0.5, SIGMAS)
    x = np.zeros((16, 3), np.float32)
    for angle, keys in ((0.0, FIRST), (np.pi / 2, SECOND)):
        chain = annealed_langevin(keys, exact, x, SIGMAS, **SETTINGS, denoise=True).x
        np.testing.assert_allclose(between(angle, exact, x, denoise=True).x, chain, atol=1e-5)


def test_any_sampler_interpolates():
    exact = gaussian_score_fn(jnp.ones(3), 0.5, SIGMAS)
    x = np.zeros((16, 3), np.float32)
    for sampler in (predictor_corrector, stochastic_heun):
        for angle, keys in ((0.0, FIRST), (np.pi / 2, SECOND)):
            angles = jnp.full(16, angle, jnp.float32)
            settings = {"num_steps": 5, "denoise": True}
            found = interpolate(
                FIRST, SECOND, angles, exact, x, SIGMAS, sampler=sampler, **settings
            )
            chain = sampler(keys, exact, x, SIGMAS, **settings)
            np.testing.assert_allclose(found.x, chain.x, atol=1e-5)


def test_without_a_score_the_noise_is_mixed_linearly():
    x = np.zeros((16, 3), np.float32)
    ends = [
        between(angle, lambda x, level: jnp.zeros_like(x), x).x for angle in (0.0, np.pi / 2, 0.7)
    ]
    np.testing.assert_allclose(ends[2], np.cos(0.7) * ends[0] + np.sin(0.7) * ends[1], atol=1e-5)


def test_mixed_starts_are_standard_normal_at_every_angle():
    first, second = (jax.random.split(jax.random.key(seed), 5000) for seed in (2, 3))
    z = np.asarray(mixed_normal(first, second, jnp.full(5000, 0.7), (2,)), np.float64)
    assert_mean(z.ravel(), 0.0)
    assert_mean(z.ravel() ** 2, 1.0)
    np.testing.assert_array_equal(
        mixed_normal(first, second, jnp.zeros(5000), (2,)), standard_normal(first, (2,))
    )
