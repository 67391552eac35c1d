import numpy as np
import pytest
from truths import assert_mean

from score_jax.noise import geometric_sigmas
from score_jax.schedule import largest_distance, num_levels_for, overlap, step_size_for


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "num_steps", "published"),
    [
        (50.0, 232, 5, "6.2e-06"),
        (90.0, 500, 5, "3.3e-06"),
        (190.0, 1086, 3, "1.8e-06"),
        (348.0, 2311, 3, "9e-07"),
    ],
)
def test_technique_4_gives_the_published_step_sizes(sigma_max, num_levels, num_steps, published):
    """CIFAR-10, CelebA, LSUN and FFHQ of NCSNv2, to the digits printed there."""
    step_size = step_size_for(geometric_sigmas(sigma_max, 0.01, num_levels), num_steps)
    assert f"{step_size:.{1 if '.' in published else 0}e}" == published


def test_technique_4_keeps_the_spread_of_chains():
    """Chains of a point mass leave each level with the spread of that level."""
    sigmas, num_steps = np.asarray(geometric_sigmas(1.0, 0.03, 16), np.float64), 20
    step_size = step_size_for(sigmas, num_steps)
    variance = sigmas[0] ** 2
    for sigma in sigmas[1:]:
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        for _ in range(num_steps):
            variance = (1 - alpha / sigma**2) ** 2 * variance + 2 * alpha
    np.testing.assert_allclose(variance, sigmas[-1] ** 2, rtol=0.08)


@pytest.mark.parametrize(
    ("sigmas", "num_steps", "words"), [([1.0], 5, "two or more"), ([1.0, 0.1], 0, "num_steps=0")]
)
def test_errors_of_technique_4(sigmas, num_steps, words):
    with pytest.raises(ValueError, match=words):
        step_size_for(sigmas, num_steps)


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "dimension"),
    [
        (50.0, 232, 32 * 32 * 3),
        (90.0, 500, 64 * 64 * 3),
        (190.0, 1086, 128 * 128 * 3),
        (348.0, 2311, 256 * 256 * 3),
    ],
)
def test_the_published_schedules_have_one_overlap(sigma_max, num_levels, dimension):
    ratio = (sigma_max / 0.01) ** (1 / (num_levels - 1))
    assert 0.566 <= overlap(ratio, dimension) <= 0.567
    # The fewest levels that reach it are those that were published.
    assert (
        num_levels_for(sigma_max, 0.01, dimension, target=overlap(ratio, dimension) - 1e-9)
        == num_levels
    )


def test_technique_2_is_the_stated_probability():
    """Radii of noise are N(sqrt(D), 1/2) in units of sigma.

    Counted are those within three standard deviations of the radius of the next larger level.
    """
    ratio, dimension = 1.05, 200
    radius = np.sqrt(dimension) + np.sqrt(0.5) * np.random.default_rng(0).standard_normal(400_000)
    assert_mean(
        np.abs(radius - ratio * np.sqrt(dimension)) < 3 * ratio * np.sqrt(0.5),
        overlap(ratio, dimension),
    )


def test_one_level_fewer_has_too_little_overlap():
    levels = num_levels_for(10.0, 0.01, 500)
    assert overlap(1000 ** (1 / (levels - 1)), 500) >= 0.5
    assert overlap(1000 ** (1 / (levels - 2)), 500) < 0.5


@pytest.mark.parametrize("block_size", [7, 64, 1000])
def test_technique_1_is_the_largest_distance_of_all_pairs(block_size):
    x = np.random.default_rng(1).normal(size=(150, 3, 4)).astype(np.float32) + 100
    flat = x.reshape(150, 12).astype(np.float64)
    every = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    found = largest_distance(x, block_size=block_size)
    np.testing.assert_allclose(found.value, every.max(), rtol=1e-6)
    assert every[found.first, found.second] == every.max()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: largest_distance(np.zeros((1, 3))), "two or more examples, got 1"),
        (lambda: largest_distance(np.zeros((3, 3)), block_size=0), "block_size=0 must be"),
        (lambda: overlap(0.9, 10), "ratio=0.9 must be 1 or above"),
        (lambda: num_levels_for(1.0, 2.0, 10), "sigma_max=1.0 must be above sigma_min=2.0"),
        (lambda: num_levels_for(1.0, 0.1, 10, target=1.0), "target=1.0 must be in"),
    ],
)
def test_errors_of_techniques_1_and_2(call, words):
    with pytest.raises(ValueError, match=words):
        call()
