import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn
from score_jax.noise import geometric_sigmas
from score_jax.samplers.inpainting import inpaint, toward_known

SIGMAS = geometric_sigmas(3.0, 0.3, 4)
COVARIANCE = np.array([[1.0, 0.95], [0.95, 1.0]])
MEAN = np.array([0.5, -1.0])


def score_fn(x, level):
    """Of N(MEAN, COVARIANCE), perturbed."""
    precision = jnp.linalg.inv(
        jnp.asarray(COVARIANCE, jnp.float32) + jnp.asarray(SIGMAS)[level][0] ** 2 * jnp.eye(2)
    )
    return -(x - jnp.asarray(MEAN, jnp.float32)[None]) @ precision


def complete(number, known, num_steps=5, **settings):
    mask = np.tile([[True, False]], (number, 1))
    image = np.tile(np.array([[known, 99.0]], np.float32), (number, 1))
    keys = jax.random.split(jax.random.key(0), number)
    run = jax.jit(
        lambda keys, x: inpaint(
            keys, score_fn, x, image, mask, SIGMAS, step_size=0.02, num_steps=num_steps, **settings
        )
    )
    return run(keys, np.zeros((number, 2), np.float32))


def recursion(known, num_steps, renew):
    """Mean and variance of the missing coordinate, step by step in float64."""
    sigmas = np.asarray(SIGMAS, np.float64)
    mean = variance = 0.0
    for sigma in sigmas:
        alpha = 0.02 * (sigma / sigmas[-1]) ** 2
        precision = np.linalg.inv(COVARIANCE + sigma**2 * np.eye(2))
        keep, pull = 1 - alpha * precision[1, 1], alpha * precision[1, 0]
        shared = 0.0  # covariance with the known pixel's noise of this level
        for _ in range(num_steps):
            mean = mean - alpha * (
                precision[1, 1] * (mean - MEAN[1]) + precision[1, 0] * (known - MEAN[0])
            )
            variance = (
                keep**2 * variance
                + pull**2 * sigma**2
                - 2 * keep * pull * sigma * shared
                + 2 * alpha
            )
            shared = 0.0 if renew else keep * shared - pull * sigma
    return mean, variance


@pytest.mark.parametrize("renew", [False, True])
def test_the_missing_pixel_follows_the_law_of_the_algorithm(renew):
    x = np.asarray(complete(40_000, 2.0, num_steps=10, renew=renew).x, np.float64)
    mean, variance = recursion(2.0, 10, renew)
    assert_mean(x[:, 1], mean)
    assert_mean((x[:, 1] - mean) ** 2, variance)


def test_the_two_variants_differ():
    assert abs(recursion(2.0, 10, True)[1] / recursion(2.0, 10, False)[1] - 1) > 0.05


def test_what_is_known_is_exact_and_what_it_hides_plays_no_part():
    trajectory = complete(64, 2.0, denoise=True, num_snapshots=2)
    np.testing.assert_array_equal(trajectory.x[:, 0], np.float32(2.0))
    assert trajectory.snapshots.shape == (2, 64, 2)
    assert bool(trajectory.finite.all())
    assert np.abs(trajectory.x[:, 1]).max() < 20  # not the 99 that stands where the mask is False


@pytest.mark.optimized
def test_many_small_steps_find_the_conditional_mean():
    """E[x_2 | x_1] of the Gaussian; the noise of the known pixel is small in the end."""
    sigmas = geometric_sigmas(3.0, 0.05, 12)

    def fine(x, level):
        precision = jnp.linalg.inv(
            jnp.asarray(COVARIANCE, jnp.float32) + sigmas[level][0] ** 2 * jnp.eye(2)
        )
        return -(x - jnp.asarray(MEAN, jnp.float32)[None]) @ precision

    number = 4000
    mask = np.tile([[True, False]], (number, 1))
    image = np.full((number, 2), 2.0, np.float32)
    keys = jax.random.split(jax.random.key(1), number)
    x = inpaint(
        keys,
        fine,
        np.zeros((number, 2), np.float32),
        image,
        mask,
        sigmas,
        step_size=0.0005,
        num_steps=200,
        renew=True,
    ).x
    assert_mean(np.asarray(x)[:, 1], MEAN[1] + 0.95 * (2.0 - MEAN[0]), "conditional mean")


def test_shapes_must_agree():
    keys = jax.random.split(jax.random.key(0), 2)
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="must have one shape"):
        inpaint(
            keys, score_fn, x, x[:, :2], np.ones((2, 3), bool), SIGMAS, step_size=0.1, num_steps=1
        )


def test_guidance_of_an_uncorrelated_gaussian_is_the_stated_gradient():
    """D(x) = x + sigma^2 s(x) is linear there, so that the gradient can be written down."""
    v, sigma = 0.5, float(SIGMAS[1])
    exact = gaussian_score_fn(jnp.zeros(3), v, SIGMAS)
    x, known = np.array([[0.3, -1.0, 2.0]], np.float32), np.array([[1.0, 0.5, 9.0]], np.float32)
    mask, level = np.array([[True, True, False]]), np.array([1])
    found = toward_known(exact, known, mask, SIGMAS, weight=0.7, variance=v)(x, level) - exact(
        x, level
    )
    shrink = v / (v + sigma**2)
    expected = 0.7 * shrink * (known - shrink * x) * (sigma**2 + v) / (sigma**2 * v) * mask
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # If v is the variance of the data, this is the exact score of the known pixels of x given
    # their values.
    posterior = (known - x) / sigma**2
    whole = toward_known(exact, known, mask, SIGMAS, variance=v)(x, level)
    np.testing.assert_allclose(np.asarray(whole)[mask], posterior[mask], rtol=1e-4)


def test_no_weight_is_no_guidance():
    exact = gaussian_score_fn(jnp.zeros(3), 0.5, SIGMAS)
    x, level = np.ones((2, 3), np.float32), np.array([0, 2])
    same = toward_known(exact, x, x > 0, SIGMAS, weight=0.0)(x, level)
    np.testing.assert_allclose(same, exact(x, level), rtol=1e-6)
    with pytest.raises(ValueError, match="weight=-1"):
        toward_known(exact, x, x > 0, SIGMAS, weight=-1.0)
