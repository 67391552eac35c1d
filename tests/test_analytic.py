import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from truths import assert_mean

from score_jax.analytic import (
    full_gaussian_log_density,
    full_gaussian_posterior,
    full_gaussian_score_fn,
    gaussian_score_fn,
    mixture_log_density,
    mixture_score_fn,
    sample_full_gaussian,
    sample_mixture,
)

WEIGHTS, MEANS, SCALES = (
    jnp.array([0.7, 0.3]),
    jnp.array([[1.0, 2.0], [-2.0, 0.5]]),
    jnp.array([0.6, 1.1]),
)
SIGMAS = jnp.array([1.5, 0.2])
log_density = jax.jit(mixture_log_density)
gradient_of_log_density = jax.jit(jax.grad(lambda *args: mixture_log_density(*args).sum()))


@jax.jit
def run(score_fn, x, level):
    """One program instead of one for each operation."""
    return score_fn(x, level)


def test_score_is_the_gradient_of_the_log_density_at_every_level():
    x = jax.random.normal(jax.random.key(0), (50, 2)) * 3
    score_fn = jax.jit(mixture_score_fn(WEIGHTS, MEANS, SCALES, SIGMAS))
    for level, sigma in enumerate(SIGMAS):
        gradient = gradient_of_log_density(x, WEIGHTS, MEANS, SCALES, sigma)
        score = score_fn(x, np.full(50, level))
        np.testing.assert_allclose(score, gradient, rtol=1e-4, atol=1e-5)


def test_density_integrates_to_one():
    axis = np.linspace(-9, 9, 361)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    mass = (
        np.exp(np.asarray(log_density(jnp.asarray(x), WEIGHTS, MEANS, SCALES), np.float64)).sum()
        * 0.05**2
    )
    np.testing.assert_allclose(mass, 1, atol=1e-4)


def test_gaussian_is_the_mixture_of_one():
    x = jax.random.normal(jax.random.key(1), (10, 2))
    level = np.zeros(10, int)
    one = jax.jit(mixture_score_fn(jnp.ones(1), MEANS[:1], SCALES[:1], SIGMAS))(x, level)
    gaussian = jax.jit(gaussian_score_fn(MEANS[0], float(SCALES[0]) ** 2, SIGMAS))
    np.testing.assert_allclose(gaussian(x, level), one, rtol=1e-5)


def test_samples_have_the_moments_of_the_mixture():
    x = np.asarray(
        jax.jit(sample_mixture)(
            jax.random.split(jax.random.key(2), 20000), WEIGHTS, MEANS, SCALES
        ),
        np.float64,
    )
    assert_mean(x[:, 0], 0.7 * 1.0 - 0.3 * 2.0)
    assert_mean(x[:, 1] ** 2, 0.7 * (0.36 + 4.0) + 0.3 * (1.21 + 0.25))


def test_noise_widens_every_mode():
    x = jax.random.normal(jax.random.key(0), (6, 2)) * 3
    for sigma in (0.0, 0.4, 2.0):
        widened = log_density(x, WEIGHTS, MEANS, np.sqrt(SCALES**2 + sigma**2))
        found = log_density(x, WEIGHTS, MEANS, SCALES, sigma)
        np.testing.assert_allclose(found, widened, rtol=1e-5)
    own = jnp.linspace(0.1, 2.0, 6)
    together = log_density(x, WEIGHTS, MEANS, SCALES, own)
    for i in range(6):
        alone = log_density(x[i : i + 1], WEIGHTS, MEANS, SCALES, own[i])
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-5)


# A Gaussian in 2 x 3 dimensions with a full covariance.
ROOT = np.random.default_rng(0).normal(size=(6, 6))
COVARIANCE = (ROOT @ ROOT.T / 6 + 0.1 * np.eye(6)).astype(np.float32)
MEAN = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
FULL = full_gaussian_score_fn(MEAN, COVARIANCE, SIGMAS)


@pytest.mark.parametrize("sigma", [0.0, 0.7])
def test_log_density_of_a_full_covariance_is_that_of_scipy(sigma):
    x = np.random.default_rng(1).normal(size=(20, 2, 3)).astype(np.float32) * 2
    truth = multivariate_normal(MEAN.ravel(), COVARIANCE + sigma**2 * np.eye(6))
    found = jax.jit(lambda x: full_gaussian_log_density(x, MEAN, COVARIANCE, sigma))(x)
    np.testing.assert_allclose(found, truth.logpdf(x.reshape(20, 6)), rtol=1e-4)


def test_score_of_a_full_covariance_solves_its_linear_system_at_every_level():
    x = np.random.default_rng(2).normal(size=(5, 2, 3)).astype(np.float32) * 2
    level = np.array([0.0, 1.0, 0.3, 0.5, 0.9], np.float32)
    sigmas = np.asarray(SIGMAS, np.float64)
    sigma = sigmas[0] ** (1 - level) * sigmas[1] ** level
    found = run(FULL, x, level)
    for i in range(5):
        total = COVARIANCE.astype(np.float64) + sigma[i] ** 2 * np.eye(6)
        truth = -np.linalg.solve(total, (x[i] - MEAN).ravel()).reshape(2, 3)
        np.testing.assert_allclose(found[i], truth, rtol=2e-4, atol=1e-4)
    whole = run(FULL, x[:2], np.array([0, 1]))
    np.testing.assert_allclose(whole, found[:2], rtol=1e-5)


def test_a_diagonal_covariance_is_the_gaussian_of_its_variances():
    variance = jnp.linspace(0.2, 2.0, 6).reshape(2, 3)
    x = jax.random.normal(jax.random.key(0), (4, 2, 3))
    level = jnp.array([0, 1, 1, 0])
    found = run(full_gaussian_score_fn(MEAN, jnp.diag(variance.ravel()), SIGMAS), x, level)
    expected = jax.jit(gaussian_score_fn(jnp.asarray(MEAN), variance, SIGMAS))(x, level)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_samples_have_the_full_covariance():
    x = sample_full_gaussian(jax.random.split(jax.random.key(3), 20000), MEAN, COVARIANCE)
    offsets = (np.asarray(x, np.float64) - MEAN).reshape(-1, 6)
    for i in range(6):
        assert_mean(offsets[:, i], 0.0)
        for j in range(i + 1):
            assert_mean(offsets[:, i] * offsets[:, j], COVARIANCE[i, j])


WEIGHTING = np.random.default_rng(4).normal(size=(6, 4)).astype(np.float32)


def measure(x):
    """Four mixed pixels, as [batch, 2, 2]."""
    return (x.reshape(-1, 6) @ jnp.asarray(WEIGHTING)).reshape(-1, 2, 2)


def test_posterior_is_the_conditional_of_the_joint_precision():
    """In information form: precision C^-1 + A^T A / noise^2, an inverse that we do not use."""
    y = np.random.default_rng(5).normal(size=(3, 2, 2)).astype(np.float32)
    found = full_gaussian_posterior(MEAN, COVARIANCE, measure, y, 0.3)
    matrix = WEIGHTING.T.astype(np.float64)
    prior = np.linalg.inv(COVARIANCE.astype(np.float64))
    truth = np.linalg.inv(prior + matrix.T @ matrix / 0.3**2)
    np.testing.assert_allclose(found[1], truth, rtol=1e-4, atol=1e-5)
    for i in range(3):
        pull = prior @ MEAN.ravel() + matrix.T @ y[i].ravel() / 0.3**2
        np.testing.assert_allclose(found[0][i].ravel(), truth @ pull, rtol=1e-3, atol=1e-4)
    assert found[0].shape == (3, 2, 3)


def test_traced_covariances_give_the_same():
    x = jax.random.normal(jax.random.key(0), (3, 2, 3))
    y, level = measure(x), jnp.array([0, 1, 1])

    def all_of(covariance):
        means, rest = full_gaussian_posterior(MEAN, covariance, measure, y, 0.3)
        score = full_gaussian_score_fn(MEAN, covariance, SIGMAS)(x, level)
        density = full_gaussian_log_density(x, MEAN, covariance)
        return means, rest, score, density

    covariance = jnp.asarray(COVARIANCE)
    for traced, concrete in zip(jax.jit(all_of)(covariance), all_of(covariance), strict=True):
        np.testing.assert_allclose(traced, concrete, rtol=1e-3, atol=1e-4)


def test_the_score_is_a_pytree_that_compiles_once():
    traces = []

    @jax.jit
    def run(score_fn, x):
        traces.append(1)
        return score_fn(x, jnp.zeros(3, jnp.int32))

    x = jnp.ones((3, 2, 3))
    first = run(FULL, x)
    second = run(full_gaussian_score_fn(MEAN, 2 * COVARIANCE, SIGMAS), x)
    assert len(traces) == 1
    assert np.abs(first - second).max() > 1e-3
    half = FULL(x.astype(jnp.bfloat16), jnp.zeros(3, jnp.int32))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("covariance", "words"),
    [
        (np.eye(5, dtype=np.float32), r"covariance is \[5, 5\].* must be \[6, 6\]"),
        (np.triu(np.ones((6, 6), np.float32)), "not symmetric"),
        (-np.eye(6, dtype=np.float32), "eigenvalue -1"),
    ],
)
def test_wrong_covariances_are_errors(covariance, words):
    with pytest.raises(ValueError, match=words):
        full_gaussian_score_fn(MEAN, covariance, SIGMAS)


def test_wrong_measurements_are_errors():
    with pytest.raises(ValueError, match=r"y is \[3, 4\], but .* maps \[2, 3\] to \[2, 2\]"):
        full_gaussian_posterior(MEAN, COVARIANCE, measure, np.ones((3, 4), np.float32), 0.3)
    with pytest.raises(ValueError, match="noise_std=-1"):
        full_gaussian_posterior(MEAN, COVARIANCE, measure, np.ones((3, 2, 2), np.float32), -1.0)
