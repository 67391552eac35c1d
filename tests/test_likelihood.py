"""Log densities by the probability-flow ODE against analytic densities, and --mode=likelihood."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import finished_perceptron, opened, run_command
from truths import assert_mean

import score_jax as sj
from score_jax.cli import likelihood as mode
from score_jax.data import sources
from score_jax.data.dataset import Dataset
from score_jax.data.transforms import inverse_logit, logit, logit_log_volume, make_prepare
from score_jax.evaluation.densities import Likelihood, _check_finite, _summary
from score_jax.likelihood import CHUNK, _divergence, density_flow
from score_jax.noise import sigma_at

SIGMAS = sj.geometric_sigmas(5.0, 0.05, 12)
LAST = float(SIGMAS[-1])
ONE_DEVICE = jax.devices()[:1]


def example_keys(number, seed=0):
    return sj.example_keys(jax.random.key(seed), np.arange(number))


def gaussian_truth(x, mean, variance):
    """Log density of independent dimensions, float64 [batch]."""
    x = np.asarray(x, np.float64)
    terms = (x - mean) ** 2 / variance + np.log(2 * np.pi * np.broadcast_to(variance, x.shape))
    return -0.5 * terms.reshape(len(x), -1).sum(axis=1)


class Mixture:
    """Two modes of different widths, their score and the density at any noise level."""

    def __init__(self, dimension):
        rng = np.random.default_rng(dimension)
        self.weights = jnp.asarray([0.3, 0.7])
        self.means = jnp.asarray(rng.normal(size=(2, dimension)), jnp.float32)
        self.scales = jnp.asarray([0.2, 0.5])
        self.score_fn = sj.mixture_score_fn(self.weights, self.means, self.scales, SIGMAS)

    def draws(self, number):
        density = (self.weights, self.means, self.scales)
        return sj.sample_mixture(example_keys(number, 7), *density)

    def log_density(self, x, sigma):
        scales = jnp.sqrt(self.scales**2 + sigma**2)
        return sj.mixture_log_density(x, self.weights, self.means, scales)

    def prior(self, x):
        return self.log_density(x, SIGMAS[0])


@pytest.fixture(scope="module")
def plane():
    return Mixture(2)


# Truths


def test_a_gaussian_has_its_log_density_perturbed_by_the_last_sigma():
    mean, variance = 0.3, np.linspace(0.04, 1.0, 64).astype(np.float32)
    score_fn = sj.gaussian_score_fn(jnp.full(64, mean), jnp.asarray(variance), SIGMAS)
    # Draws, and points far outside.
    noise = np.random.default_rng(0).normal(size=(8, 64)) * np.repeat([1, 3], 4)[:, None]
    x = (mean + np.sqrt(variance) * noise).astype(np.float32)
    found = density_flow(None, score_fn, x, SIGMAS, mean=mean, variance=variance)
    truth = gaussian_truth(x, mean, variance + LAST**2)
    np.testing.assert_allclose(found.log_density, truth, atol=0.01)
    # The flow scales each dimension by its standard deviations.
    total = np.sqrt((variance + 25.0) / (variance + LAST**2))
    np.testing.assert_allclose(found.end, mean + total * (x - mean), rtol=1e-3, atol=1e-3)
    assert found.probe_log_density.shape == (8, 1)


def test_a_gaussian_in_the_plane_in_float64():
    """Each probe alone is exact: the Jacobian is diagonal, and the squares of a probe are 1."""
    variance, x = np.array([0.1, 1.0]), np.random.default_rng(0).normal(size=(6, 2))
    with jax.enable_x64(True):
        sigmas = np.geomspace(5.0, 0.05, 12)
        score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.asarray(variance), sigmas)
        settings = {"num_probes": 3, "variance": variance, "rtol": 1e-9, "atol": 1e-9}
        found = density_flow(example_keys(6), score_fn, x, sigmas, **settings)
    assert found.log_density.dtype == found.end.dtype == np.float64
    truth = gaussian_truth(x, 0.0, variance + 0.05**2)
    np.testing.assert_allclose(found.probe_log_density, truth[:, None].repeat(3, 1), atol=1e-6)


@jax.jit
def solved(tolerance, unit):
    """The mixture in the plane, in any unit, at 11 of its draws and at one point far outside."""
    mixture = Mixture(2)
    x = mixture.draws(12).at[11].mul(20.0)
    score_fn = sj.mixture_score_fn(
        mixture.weights, unit * mixture.means, unit * mixture.scales, unit * SIGMAS
    )
    found = density_flow(
        None,
        score_fn,
        unit * x,
        unit * SIGMAS,
        prior_log_density=lambda x: mixture.prior(x / unit) - 2 * jnp.log(unit),
        rtol=tolerance,
        atol=tolerance,
    )
    return found, mixture.log_density(x, LAST), mixture.log_density(x, 0.0)


def test_a_mixture_has_its_log_density_perturbed_by_the_last_sigma():
    found, truth, clean = solved(1e-5, 1.0)
    np.testing.assert_allclose(found.log_density[:11], truth[:11], atol=0.02)
    np.testing.assert_allclose(found.log_density[11], truth[11], rtol=1e-3)
    assert np.abs(clean - truth)[:11].max() > 0.05  # It is not the density of the data.


def test_a_mixture_in_64_dimensions():
    mixture = Mixture(64)
    x = mixture.draws(12)
    found = sj.log_density(None, mixture.score_fn, x, SIGMAS, prior_log_density=mixture.prior)
    np.testing.assert_allclose(found, mixture.log_density(x, LAST), atol=0.02)


def test_any_prior_gives_a_density_whose_integral_is_1():
    line = Mixture(1)
    x = jnp.linspace(-6.0, 6.0, 601)
    settings = {"rtol": 1e-4, "atol": 1e-4, "mean": -1.0, "variance": 3.0}
    found = sj.log_density(None, line.score_fn, x[:, None], SIGMAS, **settings)
    np.testing.assert_allclose(np.exp(found).sum() * 0.02, 1.0, atol=1e-3)
    assert np.abs(found - line.log_density(x[:, None], LAST)).max() > 0.1


def test_the_error_falls_with_the_tolerance():
    errors = []
    for tolerance in (1e-2, 1e-4, 1e-6):
        found, truth, _ = solved(tolerance, 1.0)
        error = (found.log_density - truth)[:11]
        errors.append((np.sqrt(np.mean(error**2)), float(found.num_evaluations.mean())))
    (coarse, few), (middle, more), (fine, most) = errors
    assert coarse > 10 * middle > 50 * fine
    assert few < more < most < 300


def test_tolerances_hold_in_any_unit():
    ours, truth, _ = solved(1e-5, 1.0)
    theirs, *_ = solved(1e-5, 1000.0)
    shifted = truth[:11] - 2 * np.log(1000)
    np.testing.assert_allclose(theirs.log_density[:11], shifted, atol=0.02)
    np.testing.assert_allclose(theirs.num_evaluations, ours.num_evaluations, atol=20)


# The trace estimator


def test_hutchinsons_estimator_is_unbiased_for_any_seed():
    """Correlated dimensions, with the exact prior."""
    number, dimension = 300, 6
    spread = np.ones((dimension, dimension)) + 0.1 * np.eye(dimension)

    def score_fn(x, level):
        sigma = sigma_at(level, SIGMAS)[:, None, None]
        total = jnp.asarray(spread, jnp.float32)[None] + sigma**2 * jnp.eye(dimension)[None]
        return -jnp.linalg.solve(total, x[..., None])[..., 0]

    def log_density_at(x, sigma):
        values, axes = np.linalg.eigh(spread)
        squares = (x @ axes.astype(np.float32)) ** 2
        total = (values + sigma**2).astype(np.float32)
        return -0.5 * (squares / total[None] + np.log(2 * np.pi * total)[None]).sum(axis=1)

    settings = {"num_probes": 2, "prior_log_density": lambda x: log_density_at(x, 5.0)}
    flow = jax.jit(lambda keys, x: density_flow(keys, score_fn, x, SIGMAS, **settings))
    for seed in range(3):
        draws = np.random.default_rng(seed).multivariate_normal(np.zeros(6), spread, number)
        x = draws.astype(np.float32)
        found = flow(example_keys(number, seed), x)
        errors = np.asarray(found.probe_log_density) - log_density_at(x, LAST)[:, None]
        assert_mean(errors.mean(axis=1), 0.0)
        # The two probes are independent.
        assert abs(np.corrcoef(errors.T)[0, 1]) < 5 / np.sqrt(number)


@pytest.mark.parametrize("dimension", [1, CHUNK + 6])
def test_the_exact_divergence_of_any_number_of_dimensions(dimension):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.normal(size=(dimension, dimension)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(dimension, 1)), jnp.float32)
    score, divergence = _divergence(lambda x: matrix @ x + x**2, x, None)
    np.testing.assert_allclose(score, matrix @ x + x**2, rtol=1e-5)
    expected = np.trace(matrix) + 2 * np.sum(x)
    np.testing.assert_allclose(divergence, [expected], rtol=1e-4, atol=1e-4)


# The function as part of programs


def test_an_example_does_not_depend_on_its_batch():
    """Twelve examples at once under jit, and under vmap as four batches, one with a NaN."""
    whole = solved(1e-5, 1.0)[0]
    mixture = Mixture(2)
    x = mixture.draws(12).at[11].mul(20.0).at[4].set(jnp.nan)
    settings = {"prior_log_density": mixture.prior}
    parts = jax.vmap(lambda x: density_flow(None, mixture.score_fn, x, SIGMAS, **settings))
    found = parts(x.reshape(4, 3, 2))
    log_densities, numbers = found.log_density.ravel(), found.num_evaluations.ravel()
    assert np.isnan(log_densities[4])
    others = np.arange(12) != 4
    np.testing.assert_allclose(log_densities[others], whole.log_density[others], atol=2e-3)
    np.testing.assert_allclose(numbers[others], whole.num_evaluations[others], atol=6)
    assert len(set(numbers[others].tolist())) > 1


def test_its_gradients_are_the_score_at_the_last_sigma_and_that_of_the_variance():
    x = jnp.asarray([[0.7], [-1.2]])

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(x, variance):
        score_fn = sj.gaussian_score_fn(jnp.zeros(1), variance, SIGMAS)
        settings = {"variance": variance, "rtol": 1e-4, "atol": 1e-4, "max_steps": 64}
        return jnp.sum(sj.log_density(None, score_fn, x, SIGMAS, **settings))

    in_x, in_variance = gradients(x, jnp.asarray([0.5]))
    total = 0.5 + LAST**2
    np.testing.assert_allclose(in_x, -x / total, atol=5e-3)
    slopes = 0.5 * np.asarray(x) ** 2 / total**2 - 0.5 / total
    np.testing.assert_allclose(in_variance, [slopes.sum()], atol=5e-3)


@pytest.mark.parametrize(("number", "dtype"), [(3, "bfloat16"), (0, "float32")])
def test_log_densities_of_any_shape_are_float32_or_wider(number, dtype):
    with jax.enable_x64(True):
        score_fn = sj.gaussian_score_fn(jnp.zeros((2, 1, 3)), 0.5, SIGMAS)
        settings = {"num_probes": 2, "mean": np.zeros((2, 1, 3), np.float32)}
        sigmas = np.asarray(SIGMAS, np.float64)
        flow = jax.jit(lambda keys, x: density_flow(keys, score_fn, x, sigmas, **settings))
        lowered = flow.lower(example_keys(number), jnp.zeros((number, 2, 1, 3), dtype))
    found = lowered.out_info
    assert "callback" not in lowered.as_text()  # No call of the host within the program.
    assert found.end.shape == (number, 2, 1, 3)
    assert found.log_density.shape == found.num_evaluations.shape == (number,)
    assert found.probe_log_density.shape == (number, 2)
    for array in (found.log_density, found.probe_log_density, found.end):
        assert array.dtype == "float32"


def test_scores_that_jump_between_levels_are_integrated():
    """A score function that takes whole levels only, and counts its calls."""
    calls = []

    def score_fn(x, level):
        assert jnp.issubdtype(level.dtype, jnp.integer)
        jax.debug.callback(lambda: calls.append(1))
        return -0.5 * x / SIGMAS[level][:, None]

    # Between the levels it is -x / (2 sigma), too: dx / dsigma = x / 2.
    x, stretch = jnp.asarray([[0.3, -0.1]]), (5.0 - LAST) / 2
    found = density_flow(None, score_fn, x, SIGMAS)
    end = x * np.exp(stretch)
    np.testing.assert_allclose(found.end, end, rtol=1e-3)
    truth = gaussian_truth(end, 0.0, 25.0) + 2 * stretch
    np.testing.assert_allclose(found.log_density, truth, atol=0.01)
    jax.effects_barrier()
    assert len(calls) == int(found.num_evaluations[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keys": None, "num_probes": 2}, "num_probes=2 needs keys"),
        ({"num_probes": 0}, "num_probes=0 must be at least 1, or None for an exact trace"),
        ({"keys": example_keys(3), "num_probes": 1}, "keys have shape .3., but x is a batch of 2"),
        ({"sigmas": SIGMAS[:1]}, "the only noise level, 5, leaves no path"),
        ({"sigmas": SIGMAS[::-1]}, "sigmas must decrease"),
        ({"rtol": 0.0}, "rtol=0.0 must be between 0 and 1"),
        ({"atol": 2.0}, "atol=2.0 must be between 0 and 1"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
        ({"variance": -1.0}, "variance=-1.0 must be 0 or above"),
        ({"mean": np.zeros(3, np.float32)}, r"mean has shape \[3\], but must be a number or"),
        ({"prior_log_density": gaussian_truth, "mean": 0.0}, "excludes mean and variance"),
        ({"x": np.zeros((2, 2), np.int32)}, "x is int32, but must be floating-point"),
        (
            {"score_fn": lambda x, level: jnp.zeros((2, 2))},
            r"score_fn returns \[2, 2\] for one example \[1, 2\]: what differs between examples",
        ),
    ],
)
def test_bad_arguments(change, words):
    arguments = {
        "keys": example_keys(2),
        "score_fn": sj.gaussian_score_fn(jnp.zeros(2), 1.0, SIGMAS),
        "x": np.zeros((2, 2), np.float32),
        "sigmas": SIGMAS,
    }
    with pytest.raises(ValueError, match=words):
        density_flow(**(arguments | change))


# Many examples


def test_log_likelihood_within_its_errors_on_any_number_of_devices():
    mixture = Mixture(8)
    x = np.asarray(mixture.draws(100))
    settings = {"prior_log_density": mixture.prior, "rtol": 1e-4, "atol": 1e-4, "progress": False}
    run = functools.partial(sj.log_likelihood, mixture.score_fn, x, SIGMAS, **settings)
    truth = np.asarray(mixture.log_density(x, LAST)).mean()

    # Any seed agrees within the stated errors.
    for seed in (1, 0):
        found = run(num_probes=4, seed=seed, batch_size=40)
        error = abs(found.log_density.mean() - truth)
        assert 0 < error < 5 * found.trace_error + found.solver_error
        assert found.trace_error < found.standard_error
        assert 0 < found.solver_error < 0.2
    assert found.log_density.dtype == np.float64
    assert found.log_density.shape == found.num_evaluations.shape == (100,)

    # Streamed, in other batches, on one device.
    other = run(num_probes=4, batch_size=33, devices=ONE_DEVICE, device_megabytes=0)
    np.testing.assert_allclose(other.log_density, found.log_density, atol=5e-3)
    np.testing.assert_allclose(other.trace_error, found.trace_error, rtol=1e-2)


def test_the_stated_errors_of_few_probes():
    densities = np.array([[1.0], [2.0], [3.0]])
    found = _summary(densities, np.array([7, 7, 7]), densities[:2] + 0.25)
    assert np.isnan(found.trace_error)
    assert (found.solver_error, found.standard_error) == (0.25, 1 / np.sqrt(3))
    alone = _summary(densities[:1].repeat(2, 1), np.array([7]), densities[:1])
    assert np.isnan(alone.standard_error)
    assert alone.trace_error == 0


def test_log_likelihood_prepares_pixels_and_conditions_on_labels():
    """Logits of dequantised pixels, Gaussian given the class: the density of the pixels."""
    pixels = np.random.default_rng(0).integers(0, 17, (10, 2), dtype=np.uint8)
    label = np.arange(10, dtype=np.int32) % 2
    means = np.array([[1.0, 0.0], [-1.0, 2.0]], np.float32)

    def score_fn(x, level, label):
        return sj.gaussian_score_fn(jnp.zeros(2), 2.0, SIGMAS)(
            x - jnp.asarray(means)[label], level
        )

    seen = []

    def prepare(keys, x, label):
        x, label = make_prepare(17, logit=True)(keys, x, label)
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return x, label

    settings = {"prepare": prepare, "log_volume": logit_log_volume, "variance": 2.0}
    found = sj.log_likelihood(
        score_fn, pixels, SIGMAS, label=label, devices=ONE_DEVICE, progress=False, **settings
    )
    jax.effects_barrier()

    # The prior does not know the means of the classes.
    y, centres = seen[0][:10], means[label]
    first, last = 2.0 + LAST**2, 2.0 + 25.0
    end = centres + np.sqrt(last / first) * (y - centres)
    truth = gaussian_truth(y, centres, first) - gaussian_truth(end, centres, last)
    truth += gaussian_truth(end, 0.0, last)
    p = np.asarray(inverse_logit(jnp.asarray(y)), np.float64)
    truth -= np.log(p * (1 - p)).sum(axis=1)
    np.testing.assert_allclose(found.log_density, truth, atol=0.02)


def test_log_likelihood_refuses_what_cannot_be_solved(plane):
    x = np.zeros((5, 2), np.float32)
    for change, words in (
        ({"batch_size": 3}, "batch_size=3 cannot be split over 2 devices"),
        ({"rtol": 0.0}, "rtol=0.0 must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            sj.log_likelihood(plane.score_fn, x, SIGMAS, **change)
    words = "did not finish example 41 in max_steps=2 steps: train the network longer"
    with pytest.raises(FloatingPointError, match=words):
        _check_finite(np.array([[1.0, 2.0], [np.nan, 1.0]]), 40, 2)


# Bits per dimension


def test_bits_of_uniform_values_are_those_of_their_number():
    assert sj.bits_per_dimension(np.zeros(3), 5, 256).tolist() == [8.0] * 3
    assert sj.bits_per_dimension(np.float64(-np.log(2) * 6), 3) == 2.0


def test_dequantised_bits_bound_those_of_the_discrete_values():
    """For a Gaussian the probability of each cell is known."""
    from scipy.stats import norm

    centre, std, num_values = 0.4, 0.1, 8
    edges = np.arange(num_values + 1) / num_values
    probabilities = np.diff(norm.cdf(edges, centre, std))
    noise = (np.arange(1000) + 0.5) / 1000
    x = (np.arange(num_values)[:, None] + noise) / num_values
    bound = sj.bits_per_dimension(norm.logpdf(x, centre, std).mean(axis=1), 1, num_values)
    assert (bound > -np.log2(probabilities)).all()
    fine = sj.bits_per_dimension(norm.logpdf(centre, centre, std), 1, 1000)
    cell = norm.cdf(centre + 5e-4, centre, std) - norm.cdf(centre - 5e-4, centre, std)
    np.testing.assert_allclose(fine, -np.log2(cell), atol=1e-4)


@pytest.mark.parametrize("boundary", [1e-6, 0.05])
def test_the_volume_of_the_logit_is_its_derivative(boundary):
    x = jnp.asarray([[1e-3, 0.2], [0.5, 0.97]])
    slopes = jax.vmap(jax.vmap(jax.grad(lambda value: logit(value[None], boundary)[0])))(x)
    found = logit_log_volume(logit(x, boundary), boundary)
    np.testing.assert_allclose(found, jnp.log(slopes).sum(axis=1), rtol=1e-4)


# The command


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of an unconditional perceptron on the digits."""
    return finished_perceptron(tmp_path_factory)


def report_of(folder):
    return json.loads((folder / "likelihood.json").read_text())


def test_bits_per_dimension_of_held_out_digits(digits, capsys):
    folder, flags = digits, ["--mode=likelihood", "--number=20"]
    assert run_command(capsys, f"--workdir={folder}", *flags) == (0, "")
    report = report_of(folder)
    assert (report["examples"], report["dimensions"]) == (20, 64)
    assert (report["given_labels"], report["trace"]) == (False, "4 probes")
    nats, bits = report["log_density"], report["bits_per_dimension"]
    np.testing.assert_allclose(bits["mean"], np.log2(17) - nats["mean"] / 64 / np.log(2))
    np.testing.assert_allclose(bits["standard_error"], nats["standard_error"] / 64 / np.log(2))
    assert 0 < bits["trace_error"] < bits["standard_error"]
    assert 0 < bits["solver_error"] < 0.01
    assert 20 < report["evaluations"] <= report["most_evaluations"] < 1000
    assert 1 < bits["mean"] < 8  # A network of 20 steps.
    # Another seed agrees within the errors.
    assert run_command(capsys, f"--workdir={folder}", *flags, "--config.seed=1") == (0, "")
    other = report_of(folder)["bits_per_dimension"]
    bound = 5 * np.hypot(bits["trace_error"], other["trace_error"]) + 0.02
    assert 0 < abs(other["mean"] - bits["mean"]) < bound


def json_config(folder):
    return json.loads((folder / "config.json").read_text())


def test_the_lines_on_the_terminal(digits, capsys):
    """Those of a report without a standard error: one example."""
    run = dataclasses.replace(opened(digits, "likelihood"), data=sources.digits())
    found = Likelihood(np.array([-3.0]), np.array([61]), float("nan"), 0.5, 0.01)
    mode.print_summary(run, mode.summary(run, found, 12.3))
    shown = capsys.readouterr().out
    assert "density of data with noise of sigma_min=0.03 at 1 held-out examples, step 20" in shown
    bits = np.log2(17) + 3 / 64 / np.log(2)
    assert f"bits per dimension (an upper bound for the pixels): {bits:.4f}\n" in shown
    assert "61 evaluations" in shown


def test_points_are_reported_in_nats_with_an_exact_trace(digits, capsys, monkeypatch):
    """A standard normal distribution and its score."""
    x = np.random.default_rng(0).normal(size=(70, 2)).astype(np.float32)
    sigmas = sj.geometric_sigmas(2.0, 0.1, 5)
    exact = sj.gaussian_score_fn(jnp.zeros(2), 1.0, sigmas)
    run = opened(digits, "likelihood")
    run.config["data"].update(dequantize=False)
    model = (lambda key, x, level: {}, lambda params, x, level: exact(x, level))
    data = Dataset(x[:50], x[50:], None)
    run = dataclasses.replace(run, data=data, shape=(2,), sigmas=sigmas, model=model)
    monkeypatch.setattr(mode, "open_run", lambda *arguments, **more: run)
    assert run_command(capsys, f"--workdir={digits}", "--mode=likelihood") == (0, "")
    report = report_of(digits)
    assert (report["examples"], report["trace"]) == (20, "exact")
    assert report["log_density"]["trace_error"] == 0
    assert "bits_per_dimension" not in report
    # The prior has the moments of 50 training examples.
    truth = gaussian_truth(x[50:], 0.0, 1.01).mean()
    np.testing.assert_allclose(report["log_density"]["mean"], truth, atol=0.1)


def test_the_cells_of_pixels_that_are_not_dequantised_in_training(digits):
    """v / 16 is the middle of its cell, which is 1 / 16 wide."""
    run = opened(digits, "evaluate")
    run.config["data"]["dequantize"] = False
    run = dataclasses.replace(run, data=sources.digits())
    assert mode.values_per_unit(run) == 16
    x = np.asarray(mode.build_prepare(run)(example_keys(4000), np.full((4000, 1), 3, np.uint8))[0])
    assert 2.5 / 16 <= x.min() < 2.52 / 16
    assert 3.48 / 16 < x.max() <= 3.5 / 16
    assert_mean(x[:, 0], 3 / 16)


def test_one_noise_level_has_no_flow(digits, capsys, monkeypatch, tmp_path):
    def open_run(command, devices, **more):
        return dataclasses.replace(opened(digits, "likelihood"), sigmas=SIGMAS[:1])

    code, shown = run_command(capsys, f"--workdir={tmp_path}/none", "--mode=likelihood")
    assert (code, shown.count("\n")) == (2, 1)
    assert "holds no checkpoint to likelihood from" in shown
    monkeypatch.setattr(mode, "open_run", open_run)
    code, shown = run_command(capsys, f"--workdir={digits}", "--mode=likelihood")
    assert (code, shown.count("\n")) == (2, 1)
    assert "needs two or more noise levels" in shown
