import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn
from score_jax.noise import geometric_sigmas, standard_normal
from score_jax.samplers.consistent import ancestral_step_size, consistent_annealed_sampling

SIGMAS = geometric_sigmas(2.0, 0.1, 6)
KEYS = jax.random.split(jax.random.key(0), 30_000)
START = 2.0 * standard_normal(jax.random.split(jax.random.key(1), 30_000), (1,))


def run(eta, num_steps=1, variance=0.0, **more):
    score_fn = gaussian_score_fn(jnp.array([3.0]), variance, SIGMAS)
    step_size = eta * float(SIGMAS[-1]) ** 2
    return consistent_annealed_sampling(
        KEYS,
        score_fn,
        3.0 + START,
        SIGMAS,
        step_size=step_size,
        num_steps=num_steps,
        num_snapshots=6,
        **more,
    )


@pytest.mark.parametrize("eta", [0.46, 0.7, 1.0])
def test_noise_keeps_step_with_the_levels(eta):
    """For a point mass, the step of level i leaves exactly the noise of level i + 1.

    The last step leaves (1 - eta) sigma_L of it.
    """
    trajectory = run(eta)
    for snapshot, sigma in zip(trajectory.snapshots[:-1], SIGMAS[1:], strict=True):
        assert_mean((np.asarray(snapshot, np.float64).ravel() - 3) ** 2, float(sigma) ** 2)
    left = (1 - eta) * float(SIGMAS[-1])
    if eta < 1:
        assert_mean((np.asarray(trajectory.x, np.float64).ravel() - 3) ** 2, left**2)
    else:
        np.testing.assert_allclose(trajectory.x, 3.0, atol=1e-5)


def test_the_last_step_can_go_to_the_posterior_mean():
    np.testing.assert_allclose(run(0.6, denoise=True).x, 3.0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_a_gaussian_obeys_the_recursion_in_float64(num_steps):
    """With more steps per level, the sigmas are a finer geometric sequence.

    The score is that of the nearest level, rescaled.
    """
    eta, variance = 0.55, 0.5
    x = np.asarray(run(eta, num_steps, variance).x, np.float64).ravel()
    sigmas = np.asarray(SIGMAS, np.float64)
    sizes = np.geomspace(2.0, 0.1, 6 * num_steps)
    nearest = sigmas[np.round(np.linspace(0, 5, 6 * num_steps)).astype(int)]
    spread = 4.0
    for i, (size, level) in enumerate(zip(sizes, nearest, strict=True)):
        keep = 1 - eta * size * level / (variance + level**2)
        following = sizes[i + 1] if i + 1 < len(sizes) else 0.0
        spread = keep**2 * spread + (
            max(following**2 - ((1 - eta) * size) ** 2, 0.0) if following else 0.0
        )
    assert_mean((x - 3) ** 2, spread)


def test_the_ancestral_step_size():
    """At eta = 1 - sigma_{i+1}^2 / sigma_i^2 the added noise has the ancestral variance.

    It is sigma_{i+1}^2 (sigma_i^2 - sigma_{i+1}^2) / sigma_i^2.
    """
    eta = ancestral_step_size(SIGMAS) / 0.1**2
    ratio = 20 ** (1 / 5)
    np.testing.assert_allclose(eta, 1 - ratio**-2, rtol=1e-5)
    sigma, following = 1.0, 1 / ratio
    added = following**2 - ((1 - eta) * sigma) ** 2
    np.testing.assert_allclose(
        added, following**2 * (sigma**2 - following**2) / sigma**2, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("eta", "words"), [(0.3, r"needs 0\.45.* to 1 sigma_min\*\*2"), (1.1, "is 1.1 sigma_min")]
)
def test_eta_out_of_its_range_is_refused(eta, words):
    with pytest.raises(ValueError, match=words):
        run(eta)


def test_one_level_has_no_ancestral_step():
    with pytest.raises(ValueError, match="two or more noise levels"):
        ancestral_step_size(np.array([0.1]))
