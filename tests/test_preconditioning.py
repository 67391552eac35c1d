import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.models import mlp, preconditioning, unet
from score_jax.models.preconditioning import as_floats, preconditioned
from score_jax.noise import geometric_sigmas

SIGMAS = (2.0, 0.5, 0.1)
MEAN, STD = 0.3, 0.7


def draws(*shape):
    return jax.random.normal(jax.random.key(0), (3, *shape)), jnp.array([0, 1, 2])


@pytest.mark.parametrize("shape", [(5,), (4, 6, 2)])
def test_it_is_the_formula(shape):
    x, level = draws(*shape)

    def network(x, log_sigma):
        return jnp.sin(x) + log_sigma.reshape(3, *(1,) * len(shape))

    found = preconditioned(network, x, level, SIGMAS, MEAN, STD)
    sigma = np.reshape(SIGMAS, (3, *(1,) * len(shape)))
    total = np.sqrt(sigma**2 + STD**2)
    centered = np.asarray(x, np.float64) - MEAN
    f = np.sin(centered / total) + np.log(sigma)
    expected = STD / (total * sigma) * f - centered / total**2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_at_zero_it_is_the_exact_score_of_a_gaussian():
    x, level = draws(5)
    found = preconditioned(lambda x, _: jnp.zeros_like(x), x, level, SIGMAS, MEAN, STD)
    variance = STD**2 + np.array(SIGMAS)[:, None] ** 2
    np.testing.assert_allclose(found, -(x - MEAN) / variance, rtol=1e-5, atol=1e-6)


def test_the_unet_and_the_mlp_share_it():
    assert mlp.preconditioned is unet.preconditioned is preconditioning.preconditioned


def test_noise_levels_become_a_tuple_of_floats():
    sigmas = geometric_sigmas(1.0, 0.1, 5)
    expected = tuple(np.asarray(sigmas).tolist())
    for given in (sigmas, np.asarray(sigmas), list(expected), expected):
        found = as_floats(given)
        assert found == expected
        assert all(type(sigma) is float for sigma in found)
    assert as_floats((2, 1)) == (2.0, 1.0)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [((), "not empty"), ((0.1, 1.0), "must decrease"), ((1.0, 0.0), "must be positive")],
)
def test_noise_levels_that_do_not_decrease_are_errors(sigmas, words):
    with pytest.raises(ValueError, match=words):
        as_floats(sigmas)


def test_a_standard_deviation_of_0_is_an_error():
    x, level = draws(5)
    with pytest.raises(ValueError, match=r"std=0\.0 must be above 0"):
        preconditioned(lambda x, _: x, x, level, SIGMAS, MEAN, 0.0)
