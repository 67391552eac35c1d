import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import final_state, opened, small, train

import score_jax as sj
from score_jax.cli.moments import prepared_examples
from score_jax.models.preconditioning import preconditioned_by, principal_components

SIGMAS = sj.geometric_sigmas(2.0, 0.1, 5)
LEVEL = jnp.arange(5)


def examples(number=400, shape=(4, 4, 1)):
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    mixing = rng.normal(size=(size, size)) * 0.9 ** np.arange(size)
    return np.float32(0.5 + 0.3 * rng.normal(size=(number, size)) @ mixing.T).reshape(-1, *shape)


def no_network(h, log_sigma):
    return jnp.zeros((*h.shape[:3], h.shape[3] // 2))


def test_with_nearly_all_components_the_score_is_that_of_the_full_gaussian():
    x = examples()
    flat = np.float64(x.reshape(len(x), -1))
    mean, covariance = flat.mean(axis=0), np.cov(flat.T)
    at = jnp.asarray(x[:5] + 0.3)
    found = preconditioned_by(no_network, at, LEVEL, SIGMAS, principal_components(x, 15))
    for i, sigma in enumerate(np.float64(SIGMAS)):
        total = covariance + sigma**2 * np.eye(16)
        expected = -np.linalg.solve(total, np.float64(at[i]).ravel() - mean)
        np.testing.assert_allclose(found[i].ravel(), expected, rtol=1e-4, atol=1e-4)


def test_components_of_fewer_examples_than_values_are_those_of_the_covariance():
    """The products between examples have the eigenvalues of the covariance."""
    x = examples(10)
    law = principal_components(x, 4)
    flat = np.float64(x.reshape(10, -1))
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    np.testing.assert_allclose(law.variance, values[::-1][:4], rtol=1e-5)
    overlap = vectors[:, ::-1][:, :4].T @ np.float64(law.basis.reshape(16, 4))
    np.testing.assert_allclose(np.abs(overlap), np.eye(4), atol=1e-5)
    # The remaining variance is shared by all other directions.
    np.testing.assert_allclose(12 * law.rest, values.sum() - values[::-1][:4].sum(), rtol=1e-5)


def test_the_target_of_the_network_has_unit_size_for_gaussian_data():
    """The error of the posterior mean is c_i in root mean square, at every level."""
    x = examples(20_000)
    law = principal_components(x, 6)
    noise = np.random.default_rng(1).normal(size=x.shape)
    slope = lambda h, log_sigma: jnp.ones((*h.shape[:3], 1))  # noqa: E731
    for i, sigma in enumerate(np.float64(SIGMAS)):
        at, level = jnp.asarray(np.float32(x + sigma * noise)), jnp.full(len(x), i)
        score = np.float64(preconditioned_by(no_network, at, level, SIGMAS, law))
        unit = np.float64(preconditioned_by(slope, at, level, SIGMAS, law)) - score
        error = np.float64(x) - (np.float64(at) + sigma**2 * score)
        assert np.sqrt(np.mean(error**2)) == pytest.approx(sigma**2 * unit.mean(), rel=0.02)


@pytest.mark.parametrize(("number", "given"), [(16, 400), (0, 400), (10, 10)])
def test_impossible_numbers_of_components_are_refused(number, given):
    with pytest.raises(
        ValueError, match=rf"components={number} must be from 1 to \d+, for {given}"
    ):
        principal_components(examples(given), number)


def networks(components):
    return sj.UNet(sigmas=SIGMAS, width=4, components=components, data_mean=0.4, data_std=0.7)


def test_before_it_is_measured_the_gaussian_is_isotropic():
    x = jnp.asarray(examples(5))
    plain, other = networks(0), networks(3)
    outputs = [
        jax.jit(net.init_with_output)(jax.random.key(0), x, LEVEL)[0] for net in (plain, other)
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-5)


def test_more_components_than_values_are_refused():
    with pytest.raises(ValueError, match=r"components=16 must be from 0 to 15, for images of 4x4"):
        networks(16).init(jax.random.key(0), jnp.asarray(examples(5)), LEVEL)


def test_training_measures_the_components_and_never_changes_them(tmp_path):
    train(tmp_path / "run", small(model__components=5, optim__name="muon"))
    run = opened(tmp_path / "run", "train")
    data = prepared_examples(run, 8192)
    expected = principal_components(data, 5)._asdict()
    state = final_state(tmp_path / "run")[1]
    for params in (state.params, state.ema_params):
        assert set(params["Gaussian_0"]) == set(expected)
        for name, leaf in expected.items():
            np.testing.assert_array_equal(params["Gaussian_0"][name], leaf)
