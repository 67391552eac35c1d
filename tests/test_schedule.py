import numpy as np
import pytest

from score_jax.noise import geometric_sigmas
from score_jax.schedule import step_size_for


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "num_steps", "published"),
    [(50.0, 232, 5, "6.2e-06"), (90.0, 500, 5, "3.3e-06"), (190.0, 1086, 3, "1.8e-06"), (348.0, 2311, 3, "9e-07")],
)
def test_technique_4_gives_the_published_step_sizes(sigma_max, num_levels, num_steps, published):
    """CIFAR-10, CelebA, LSUN and FFHQ of NCSNv2, to the digits printed there."""
    step_size = step_size_for(geometric_sigmas(sigma_max, 0.01, num_levels), num_steps)
    assert f"{step_size:.{1 if '.' in published else 0}e}" == published


def test_technique_4_keeps_the_spread_of_chains():
    """Chains of a point mass that arrive with the spread of one level leave the next with its own."""
    sigmas, num_steps = np.asarray(geometric_sigmas(1.0, 0.03, 16), np.float64), 20
    step_size = step_size_for(sigmas, num_steps)
    variance = sigmas[0] ** 2
    for sigma in sigmas[1:]:
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        for _ in range(num_steps):
            variance = (1 - alpha / sigma**2) ** 2 * variance + 2 * alpha
    np.testing.assert_allclose(variance, sigmas[-1] ** 2, rtol=0.08)


@pytest.mark.parametrize(("sigmas", "num_steps", "words"), [([1.0], 5, "two or more"), ([1.0, 0.1], 0, "num_steps=0")])
def test_refusals(sigmas, num_steps, words):
    with pytest.raises(ValueError, match=words):
        step_size_for(sigmas, num_steps)
