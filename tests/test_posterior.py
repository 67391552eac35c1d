import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_jax as sj
from score_jax.posterior import METHODS, posterior_score
from score_jax.samplers.ode import probability_flow
from score_jax.solvers import conjugate_residuals

SIGMAS = sj.geometric_sigmas(4.0, 0.05, 6)
SHAPE = (4, 4, 1)
NOISE = 0.2
MEAN = np.linspace(-1, 1, 16, dtype=np.float32).reshape(SHAPE)


def covariance(side, length):
    """An exponential covariance of side x side pixels."""
    axis = np.arange(side)
    pixels = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    distance = np.sqrt(((pixels[:, None] - pixels[None]) ** 2).sum(-1))
    return np.exp(-distance / length).astype(np.float32)


COVARIANCE = covariance(4, 2.0)
PRIOR = sj.full_gaussian_score_fn(MEAN, COVARIANCE, SIGMAS)
LEFT = np.repeat([[True, True, False, False]], 4, 0)
OPERATORS = {
    "mask": sj.mask(LEFT),
    "block mean": sj.block_mean(2),
    "blur": sj.blur(1.0),
    "projections": sj.random_projections(jax.random.key(1), SHAPE, 6),
    "Fourier": sj.masked_fourier(LEFT),
}


def draws(batch, seed=0):
    """States and levels of a batch; all levels occur."""
    x = jax.random.normal(jax.random.key(seed), (batch, *SHAPE))
    level = jnp.arange(batch) % len(SIGMAS)
    return x * (1 + SIGMAS[level][:, None, None, None]), level


@jax.jit
def run(function, *arguments):
    """One program instead of one for each operation; score functions and operators are pytrees."""
    return function(*arguments)


def measurement(operator, seed=5):
    return operator(jax.random.normal(jax.random.key(seed), (1, *SHAPE)))


@pytest.mark.parametrize(
    ("name", "fractional"), [*((n, True) for n in OPERATORS), ("mask", False)]
)
def test_moment_matching_is_the_exact_posterior_score_of_gaussians(name, fractional):
    """The posterior of a Gaussian is a Gaussian, perturbed by the same noise."""
    operator = OPERATORS[name]
    y = measurement(operator)
    x, level = draws(12)
    if fractional:
        level = jnp.linspace(0, 5, 12)
    means, rest = sj.full_gaussian_posterior(MEAN, COVARIANCE, operator, y, NOISE)
    expected = run(sj.full_gaussian_score_fn(means[0], rest, SIGMAS), x, level)
    settings = {"num_iterations": 60, "tolerance": 0.0}
    found = run(posterior_score(PRIOR, y, operator, NOISE, SIGMAS, **settings), x, level)
    # Compare the denoised images, in posterior standard deviations.
    sigma = np.asarray(sj.noise.sigma_of(level, SIGMAS, x))
    error = sigma**2 * np.asarray(found - expected) / np.sqrt(np.diag(rest)).reshape(SHAPE)
    assert np.abs(error).max() < 0.01


@pytest.mark.parametrize("method", ["moment_matching", "pseudo_inverse"])
@pytest.mark.parametrize("name", ["blur", "projections"])
def test_both_covariances_are_exact_for_white_gaussians(name, method):
    """Cov[x_0 | x] is r^2 I there, if v is the variance of the data."""
    operator, variance = OPERATORS[name], 0.5
    y = measurement(operator)
    x, level = draws(12)
    white = variance * np.eye(16, dtype=np.float32)
    means, rest = sj.full_gaussian_posterior(MEAN, white, operator, y, NOISE)
    expected = run(sj.full_gaussian_score_fn(means[0], rest, SIGMAS), x, level)
    prior = sj.gaussian_score_fn(jnp.asarray(MEAN), variance, SIGMAS)
    settings = {"method": method, "variance": variance, "tolerance": 0.0}
    found = run(posterior_score(prior, y, operator, NOISE, SIGMAS, **settings), x, level)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_dps_is_the_stated_gradient():
    operator = OPERATORS["projections"]
    y = measurement(operator)
    x, level = draws(6)
    prior = sj.mixture_score_fn(
        jnp.array([0.5, 0.5]), jnp.stack([MEAN, -MEAN]), jnp.array([0.5, 1.0]), SIGMAS
    )
    score_fn = posterior_score(prior, y, operator, NOISE, SIGMAS, method="dps", zeta=0.7)
    found = run(score_fn, x, level)
    sigma = SIGMAS[level]

    def weighted_norms(x):
        denoised = x + sigma[:, None, None, None] ** 2 * prior(x, level)
        norms = jnp.sqrt(jnp.sum((y - operator(denoised)) ** 2, axis=1))
        return jnp.sum(0.7 * math.sqrt(6) / sigma * norms)

    expected = jax.jit(lambda x: prior(x, level) - jax.grad(weighted_norms)(x))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_annealed_likelihood_is_exact_for_a_flat_prior():
    """With A = I and no prior, x given y is N(y, (noise_std^2 + sigma^2) I)."""
    x, level = draws(6)
    y = jnp.ones((1, *SHAPE))
    flat, identity = (lambda x, level: 0 * x), (lambda x: x)
    found = posterior_score(flat, y, identity, NOISE, SIGMAS, method="annealed")(x, level)
    variance = NOISE**2 + np.asarray(SIGMAS[level])[:, None, None, None] ** 2
    np.testing.assert_allclose(found, (1 - x) / variance, rtol=1e-5)
    settings = {"method": "annealed", "annealing": 0.0}
    plain = posterior_score(flat, y, identity, NOISE, SIGMAS, **settings)(x, level)
    np.testing.assert_allclose(plain, (1 - x) / NOISE**2, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_chain_does_not_depend_on_its_batch(method):
    """Examples stop after different numbers of iterations, as their levels differ."""
    operator = OPERATORS["blur"]
    x, level = draws(12)
    y = operator(jax.random.normal(jax.random.key(3), x.shape))
    build = functools.partial(
        posterior_score, operator=operator, noise_std=NOISE, sigmas=SIGMAS, method=method
    )
    whole = run(build(PRIOR, y), x, level)
    for i in (0, 11):
        alone = run(build(PRIOR, y[i : i + 1]), x[i : i + 1], level[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], rtol=1e-3, atol=1e-3)
    assert run(build(PRIOR, y[:0]), x[:0], level[:0]).shape == (0, *SHAPE)


@pytest.mark.parametrize("method", METHODS)
def test_one_measurement_serves_all_chains_and_may_be_an_argument(method):
    operator = OPERATORS["mask"]
    x, level = draws(6)
    y = measurement(operator)
    build = functools.partial(
        posterior_score, operator=operator, noise_std=NOISE, sigmas=SIGMAS, method=method
    )
    repeated = run(build(PRIOR, jnp.repeat(y, 6, axis=0)), x, level)
    for found in (run(build(PRIOR, y), x, level), run(build(PRIOR, None), x, level, y)):
        np.testing.assert_allclose(found, repeated, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_dtype_of_chains_is_kept(method):
    operator = OPERATORS["block mean"]
    x, level = draws(6)
    score_fn = posterior_score(
        PRIOR, measurement(operator), operator, NOISE, SIGMAS, method=method
    )
    half = run(score_fn, x.astype(jnp.bfloat16), level)
    assert half.dtype == jnp.bfloat16
    whole = run(score_fn, x.astype(jnp.bfloat16).astype(jnp.float32), level)
    np.testing.assert_allclose(half.astype(jnp.float32), whole, rtol=0.02, atol=0.02)


def test_new_measurements_do_not_compile_again():
    """The measurements, the operator, the noise and the prior are arguments of the program."""
    traces = []

    @jax.jit
    def counted(score_fn, x, level):
        traces.append(1)
        return score_fn(x, level)

    x, level = draws(6)
    for seed in (1, 2):
        operator = sj.random_projections(jax.random.key(seed), SHAPE, 6)
        prior = sj.full_gaussian_score_fn(MEAN, COVARIANCE * seed, SIGMAS)
        y = measurement(operator, seed)
        counted(posterior_score(prior, y, operator, NOISE * seed, SIGMAS), x, level)
    assert len(traces) == 1


def test_it_works_with_sample_on_any_number_of_devices():
    operator = OPERATORS["mask"]
    y = operator(jax.random.normal(jax.random.key(3), (6, *SHAPE)))
    score_fn = posterior_score(PRIOR, None, operator, NOISE, SIGMAS)
    sample = functools.partial(
        sj.sample,
        score_fn,
        SIGMAS,
        number=6,
        shape=SHAPE,
        num_steps=2,
        condition=np.asarray(y),
        progress=False,
    )
    both = sample(batch_size=4)
    one = sample(batch_size=3, devices=jax.devices()[:1])
    np.testing.assert_allclose(both, one, atol=1e-3)
    # The known pixels follow their own measurements.
    assert np.abs(np.asarray(operator(both)) - np.asarray(y)).max() < 6 * NOISE


def test_scores_of_whole_levels_are_used_between_levels_by_the_rule_of_continuous():
    """A network that divides by sigma and takes whole levels only."""
    operator = OPERATORS["projections"]
    y = measurement(operator)

    def whole(x, level):
        return jnp.sin(x) / SIGMAS[level][:, None, None, None]

    def exact(x, level):
        return jnp.sin(x) / sj.noise.sigma_of(level, SIGMAS, x)

    x, _ = draws(5)
    level = jnp.array([0.0, 0.4, 1.7, 3.2, 5.0])
    for method in ("moment_matching", "annealed"):
        found, expected = (
            run(posterior_score(prior, y, operator, NOISE, SIGMAS, method=method), x, level)
            for prior in (whole, exact)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_a_jacobian_that_is_neither_symmetric_nor_positive_does_no_harm():
    """The denoised image moves towards the data in directions of positive variance only."""
    rng = np.random.default_rng(0)
    tilt = rng.normal(size=(16, 16)) * 0.1
    matrix = np.diag(np.linspace(0.9, -0.2, 16)) + (tilt - tilt.T) / 2

    def score_fn(x, level):
        jacobian = jnp.asarray(matrix - np.eye(16), jnp.float32)
        flat = (x.reshape(-1, 16) @ jacobian.T).reshape(x.shape)
        return flat / sj.noise.sigma_of(level, SIGMAS, x) ** 2

    x, level = draws(12)
    y = jax.random.normal(jax.random.key(4), (1, *SHAPE))
    identity = lambda x: x  # noqa: E731
    for num_iterations in (1, 3, 20):
        settings = {"num_iterations": num_iterations, "tolerance": 0.0}
        given = run(posterior_score(score_fn, y, identity, 0.01, SIGMAS, **settings), x, level)
        squares = np.asarray(sj.noise.sigma_of(level, SIGMAS, x)) ** 2
        before = np.asarray(y - x - squares * score_fn(x, level))
        after = np.asarray(y - x - squares * given)
        norms = [np.sqrt((error**2).sum((1, 2, 3))) for error in (before, after)]
        assert (norms[1] < 1.001 * norms[0]).all()
        assert np.median(norms[1] / norms[0]) < 0.9


@pytest.mark.parametrize("method", METHODS)
def test_a_network_can_be_the_prior(method):
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    level = jax.ShapeDtypeStruct((2,), jnp.int32)
    network = sj.UNet(sigmas=SIGMAS, width=8)
    params = jax.eval_shape(network.init, jax.random.key(0), images, level)["params"]
    operator = sj.block_mean(2)
    y = jnp.zeros((1, 4, 4, 1))

    def given(params, x, level):
        prior = sj.score_fn(network, params)
        return posterior_score(prior, y, operator, NOISE, SIGMAS, method=method)(x, level)

    found = jax.eval_shape(given, params, images, level)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)


def test_it_is_differentiable():
    operator = OPERATORS["mask"]
    x, level = draws(6)
    y = measurement(operator)

    def total(noise_std):
        return jnp.sum(posterior_score(PRIOR, y, operator, noise_std, SIGMAS)(x, level))

    total = jax.jit(total)
    slope = jax.jit(jax.grad(total))(0.2)
    difference = (total(0.202) - total(0.198)) / 0.004
    np.testing.assert_allclose(slope, difference, rtol=0.05)


def test_any_log_likelihood_gives_the_gradient_at_the_denoised_image():
    operator = OPERATORS["projections"]
    y = measurement(operator)
    x, level = draws(6)

    def log_likelihood(clean, y):
        return -0.5 * jnp.sum((y - operator(clean)) ** 2, axis=1) / NOISE**2

    build = functools.partial(sj.likelihood_score, PRIOR, log_likelihood, SIGMAS)
    sigma = np.asarray(SIGMAS, np.float64)[np.asarray(level)]
    rows = np.asarray(operator(jnp.eye(16).reshape(16, *SHAPE)), np.float64)
    for weight in (0.0, 1.0, 0.5):
        found = run(build(weight=weight), x, level, y)
        prior = np.asarray(run(PRIOR, x, level))
        for i in range(6):
            jacobian = COVARIANCE @ np.linalg.inv(COVARIANCE + sigma[i] ** 2 * np.eye(16))
            clean = MEAN.ravel() + jacobian @ np.asarray(x[i] - MEAN).ravel()
            residual = np.asarray(y)[0] - clean @ rows
            pull = weight * jacobian.T @ rows @ residual / NOISE**2
            expected = prior[i].ravel() + pull
            np.testing.assert_allclose(found[i].ravel(), expected, rtol=2e-3, atol=2e-2)
    with pytest.raises(ValueError, match=r"must return one number per example, \[6\]"):
        sj.likelihood_score(PRIOR, jnp.sum, SIGMAS)(x, level)
    with pytest.raises(ValueError, match=r"weight=-1\.0 must be 0 or above"):
        build(weight=-1.0)


def test_sources_are_scored_one_by_one():
    x = jax.random.normal(jax.random.key(0), (6, 3, *SHAPE))
    level = jnp.arange(6)
    found = run(sj.independent_sources(PRIOR), x, level)
    for i in range(3):
        np.testing.assert_allclose(found[:, i], run(PRIOR, x[:, i], level), rtol=1e-4, atol=1e-5)


def test_separation_of_two_sources_is_exact_for_gaussians():
    """Each source given the sum: the posterior of the joint Gaussian of both."""
    both = np.kron(np.eye(2), COVARIANCE).astype(np.float32)
    means = np.stack([MEAN, -MEAN])
    operator = sj.sum_of_sources(2)
    prior = sj.full_gaussian_score_fn(means, both, SIGMAS)
    y = jnp.ones((1, *SHAPE))
    x = jax.random.normal(jax.random.key(0), (6, 2, *SHAPE))
    level = jnp.arange(6)
    centre, rest = sj.full_gaussian_posterior(means, both, operator, y, NOISE)
    expected = run(sj.full_gaussian_score_fn(centre[0], rest, SIGMAS), x, level)
    settings = {"num_iterations": 60, "tolerance": 0.0}
    found = run(posterior_score(prior, y, operator, NOISE, SIGMAS, **settings), x, level)
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.02)


def systems(batch, size, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(batch, size, size))
    return (roots @ roots.mT + np.eye(size)).astype(np.float32), rng.normal(size=(batch, size))


def test_conjugate_residuals_solve_each_system_within_the_tolerance():
    matrices, b = systems(5, 8)
    b = jnp.asarray(b * np.array([[1], [10], [0], [0.1], [1]]), jnp.float32)

    def matrix(u):
        return jnp.einsum("bij,bj->bi", matrices, u)

    for shift in (0.0, 0.7):
        whole = matrices.astype(np.float64) + shift * np.eye(8)
        exact = np.linalg.solve(whole, np.asarray(b)[..., None])[..., 0]
        found = conjugate_residuals(matrix, b, 40, shift=shift)
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-4)
    tolerance = jnp.array([0.3, 0.01, 0.3, 0.3, 100.0])
    rough = conjugate_residuals(matrix, b, 40, tolerance=tolerance)
    rest = np.linalg.norm(np.asarray(b - matrix(rough)), axis=1)
    assert (rest <= tolerance * 1.01).all()
    np.testing.assert_array_equal(rough[4], 0)
    one = conjugate_residuals(matrix, b, 1)
    size = (b * matrix(b)).sum(1) / (matrix(b) ** 2).sum(1).clip(1e-9)
    np.testing.assert_allclose(one, size[:, None] * b, rtol=1e-4, atol=1e-6)


def test_residuals_never_grow_even_if_the_matrix_is_not_symmetric():
    matrices, b = systems(5, 8)
    tilted = matrices + 3 * np.random.default_rng(1).normal(size=matrices.shape)
    tilted, b = jnp.asarray(tilted, jnp.float32), jnp.asarray(b, jnp.float32)

    def matrix(u):
        return jnp.einsum("bij,bj->bi", tilted, u)

    before = np.linalg.norm(b, axis=1)
    for num_iterations in (1, 2, 5, 20):
        u = conjugate_residuals(matrix, b, num_iterations, shift=0.5)
        after = np.linalg.norm(b - 0.5 * u - matrix(u), axis=1)
        assert (after <= before * (1 + 1e-5)).all()
        before = after


def test_conjugate_residuals_stop_before_negative_directions():
    diagonal = jnp.array([[2.0, 1.0, -1.0], [2.0, 1.0, 1.0]])
    b = jnp.array([[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    found = conjugate_residuals(lambda u: diagonal * u, b, 10)
    np.testing.assert_allclose(found, [[0, 0, 0], [0.5, 1, 1]], atol=1e-5)
    # With the shift, the eigenvalue 1 of shift I + S is below half of the shift.
    shifted = conjugate_residuals(lambda u: diagonal * u, b, 10, shift=1.5)
    np.testing.assert_allclose(shifted, [[0, 0, 0], [1 / 3.5, 0.4, 0.4]], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "exact"}, "method='exact' must be one of moment_matching, pseudo_inverse"),
        ({"num_iterations": 0}, "num_iterations=0 must be at least 1"),
        ({"noise_std": 0.0}, "noise_std=0.0 must be above 0 and finite"),
        ({"noise_std": float("nan")}, "noise_std=nan"),
        ({"tolerance": -1.0}, "tolerance=-1.0 must be 0 or above"),
        ({"variance": 0.0}, "variance=0.0 must be above 0"),
        ({"zeta": -1.0}, "zeta=-1.0 must be 0 or above"),
        ({"annealing": -1.0}, "annealing=-1.0 must be 0 or above"),
        ({"sigmas": np.array([0.1, 1.0])}, "must decrease"),
        ({"y": None}, "y is missing"),
        ({"y": np.zeros((2, 5), np.float32)}, r"y is \[2, 5\], but .* to \[6, 8, 1\]"),
        ({"y": np.zeros((2, 8, 1), np.float32)}, r"y is \[2, 8, 1\], but .* to \[6, 8, 1\]"),
        ({"operator": lambda x: x[:, :2].reshape(-1, 8, 1) ** 2}, "not a linear JAX function"),
    ],
)
def test_refusals(change, words):
    x, level = draws(6)
    operator = OPERATORS["mask"]
    arguments = {
        "score_fn": PRIOR,
        "y": np.zeros((6, 8, 1), np.float32),
        "operator": operator,
        "noise_std": NOISE,
        "sigmas": SIGMAS,
    } | change
    with pytest.raises(ValueError, match=words):
        posterior_score(**arguments)(x, level)


def test_chains_have_the_moments_of_the_posterior():
    """Right half missing, correlation length 2; benchmarks/posterior_accuracy.py has more."""
    shape, number = (8, 8, 1), 6000
    operator = sj.mask(np.repeat([[True] * 4 + [False] * 4], 8, 0))
    sigmas = sj.geometric_sigmas(100.0, 0.01, 50)
    mean, matrix = np.zeros(shape, np.float32), covariance(8, 2.0)
    y = operator(sj.sample_full_gaussian(jax.random.split(jax.random.key(2), 1), mean, matrix))
    means, rest = sj.full_gaussian_posterior(mean, matrix, operator, y, 0.05)
    prior = sj.full_gaussian_score_fn(mean, matrix, sigmas)
    x = np.asarray(
        sj.sample(
            posterior_score(prior, y, operator, 0.05, sigmas),
            sigmas,
            number=number,
            shape=shape,
            sampler=probability_flow,
            num_steps=40,
            batch_size=number,
            progress=False,
        ),
        np.float64,
    )
    deviations = np.sqrt(np.diag(rest)).reshape(shape)
    assert np.abs((x.mean(0) - means[0]) / deviations).max() < 0.1
    ratios = x.var(0) / deviations**2
    assert 0.9 < ratios.min() < ratios.max() < 1.1
