import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_jax as sj
from score_jax.continuous_score import takes_fractional_levels

SIGMAS = sj.geometric_sigmas(2.0, 0.1, 6)
X = jax.random.normal(jax.random.key(0), (5, 3))
BETWEEN = jnp.asarray([2.0, 1.3, 0.5, 0.17, 0.1])


def divided(x, level):
    """A network that divides by sigma and takes whole levels only."""
    return jnp.sin(x) / SIGMAS[level][:, None]


def test_it_is_exact_for_scores_that_divide_by_sigma():
    found = sj.continuous(divided, SIGMAS)(X, BETWEEN)
    np.testing.assert_allclose(found, jnp.sin(X) / BETWEEN[:, None], rtol=1e-5)


@pytest.mark.parametrize("sigma", [3.0, 0.05])
def test_beyond_the_levels_the_same_rule_holds(sigma):
    sigma = jnp.full(5, sigma)
    found = sj.continuous(divided, SIGMAS)(X, sigma)
    np.testing.assert_allclose(found, jnp.sin(X) / sigma[:, None], rtol=1e-5)


def test_analytic_densities_are_exact_at_any_sigma():
    exact = sj.gaussian_score_fn(jnp.zeros(3), 0.7, SIGMAS)
    found = sj.continuous(exact, SIGMAS)(X, BETWEEN)
    np.testing.assert_allclose(found, -X / (0.7 + BETWEEN[:, None] ** 2), rtol=1e-5)


def test_a_network_conditioned_on_sigma_is_evaluated_at_sigma():
    """The same parameters with the levels themselves in the place of the training levels."""
    network = sj.MLP(sigmas=SIGMAS)
    params = network.init(jax.random.key(1), X, jnp.zeros(5, jnp.int32))["params"]
    found = sj.continuous(sj.score_fn(network, params), SIGMAS)(X, BETWEEN)
    other = sj.score_fn(sj.MLP(sigmas=BETWEEN), params)
    np.testing.assert_allclose(found, other(X, jnp.arange(5)), rtol=2e-5, atol=1e-6)


def test_at_the_levels_it_is_the_score_function():
    level = jnp.arange(5)
    exact = sj.gaussian_score_fn(jnp.zeros(3), 0.7, SIGMAS)
    for score_fn in (divided, exact):
        found = sj.continuous(score_fn, SIGMAS)(X, SIGMAS[level])
        np.testing.assert_allclose(found, score_fn(X, level), rtol=1e-5)


def test_which_score_functions_take_fractional_levels():
    assert not takes_fractional_levels(divided, X)
    assert takes_fractional_levels(sj.gaussian_score_fn(jnp.zeros(3), 0.7, SIGMAS), X)
    images = jnp.zeros((2, 8, 8, 1))
    for network, expected in (
        (sj.UNet(sigmas=SIGMAS), True),
        (sj.NCSN(num_levels=6, width=4), False),
        (sj.NCSNv2(sigmas=SIGMAS, width=4), False),
    ):
        level = jnp.zeros(2, jnp.int32)
        params = jax.eval_shape(network.init, jax.random.key(0), images, level)["params"]
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
        assert takes_fractional_levels(sj.score_fn(network, params), images) is expected


def test_it_works_under_jit_grad_and_vmap():
    exact = sj.gaussian_score_fn(jnp.zeros(3), 0.7, SIGMAS)
    at = sj.continuous(exact, SIGMAS)
    slope = jax.jit(jax.grad(lambda sigma: jnp.sum(at(X[:1], sigma[None])[0])))(0.4)
    expected = jax.grad(lambda sigma: jnp.sum(-X[0] / (0.7 + sigma**2)))(0.4)
    np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_edm_levels():
    """Karras et al. (2022), equation 5, with their values."""
    found = np.asarray(sj.edm_sigmas(80.0, 0.002, 18), np.float64)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="num_levels=1 must be at least 2"):
        sj.edm_sigmas(1.0, 0.1, 1)
    with pytest.raises(ValueError, match=r"rho=-1\.0"):
        sj.edm_sigmas(1.0, 0.1, 4, rho=-1.0)


def test_at_sigmas_is_a_score_function_of_other_levels():
    others = jnp.asarray([1.5, 0.4, 0.1])
    level = jnp.asarray([0, 1, 2, 1, 0])
    exact = sj.gaussian_score_fn(jnp.zeros(3), 0.7, SIGMAS)
    found = sj.at_sigmas(exact, SIGMAS, others)(X, level)
    np.testing.assert_allclose(found, -X / (0.7 + others[level][:, None] ** 2), rtol=1e-5)
    found = jax.jit(sj.at_sigmas(divided, SIGMAS, others))(X, level)
    np.testing.assert_allclose(found, jnp.sin(X) / others[level][:, None], rtol=1e-5)

    # A label is passed on, and the parameters are leaves.
    def scaled(scale, x, level, label):
        return scale * label[:, None] * divided(x, level)

    own = jax.tree_util.Partial(scaled, jnp.float32(3.0))
    at = sj.at_sigmas(own, SIGMAS, others)
    label = jnp.asarray([0, 1, 2, 3, 4])
    expected = 3 * label[:, None] * jnp.sin(X) / others[level][:, None]
    np.testing.assert_allclose(at(X, level, label), expected, rtol=1e-5)
    assert any(leaf.shape == () for leaf in jax.tree.leaves(at))
