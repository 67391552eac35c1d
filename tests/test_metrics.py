"""Metrics of samples: identities, closed forms of Gaussians, and known small cases."""

import numpy as np
import pytest

from score_jax.evaluation.metrics import (
    Moments,
    Outputs,
    coverings,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    resample_counts,
    sample_metrics,
    unlimited_frechet_distance,
)


def gaussian(number, dimensions=4, seed=0, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).standard_normal((number, dimensions))


def test_moments_of_batches_are_those_of_numpy():
    x = gaussian(301, 5, mean=1e4)
    found = moments([x[:7], x[7:8], x[8:8], x[8:300], x[300:]])
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.T), rtol=1e-9)
    assert found.count == 301


def test_moments_need_finite_features_of_two_examples():
    with pytest.raises(ValueError, match="two examples or more, got 1"):
        moments([np.zeros((1, 3))])
    with pytest.raises(ValueError, match="must be finite"):
        moments([np.full((3, 3), np.nan)])


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form():
    rotation = np.linalg.qr(gaussian(4, 4, seed=1))[0]
    a, b = np.array([1.0, 2.0, 3.0, 0.0]), np.array([4.0, 0.0, 1.0, 2.0])
    mean = np.array([1.0, -2.0, 0.5, 0.0])
    first = Moments(10, np.zeros(4), rotation @ np.diag(a) @ rotation.T)
    second = Moments(10, mean, rotation @ np.diag(b) @ rotation.T)
    expected = mean @ mean + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-7)


def test_frechet_distance_of_fewer_samples_than_features_is_the_same():
    """The short way by a Gram matrix against the definition."""
    x, y = gaussian(20, 30, mean=3.0), gaussian(80, 30, seed=1)
    found = sample_metrics(Outputs(x), Outputs(y), num_resamples=20)
    expected = frechet_distance(moments([x]), moments([y]))
    assert found["frechet_distance"].value == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="must be finite"):
        sample_metrics(Outputs(np.full((20, 30), np.nan)), Outputs(y))


def test_the_extrapolation_removes_the_bias_of_few_samples():
    """Between samples of one Gaussian the distance is positive, and its limit 0."""
    x = gaussian(4000, 20)
    truth = Moments(10**9, np.zeros(20), np.eye(20))
    biased = frechet_distance(moments([x]), truth)
    found = unlimited_frechet_distance(x, truth)
    assert biased > 10 * abs(found.value)
    assert abs(found.value) < 5 * found.error + 1e-3
    with pytest.raises(ValueError, match="at least 8 samples, got 7"):
        unlimited_frechet_distance(x[:7], truth)


def test_kernel_distance_is_the_unbiased_estimate_of_its_definition():
    x, y = gaussian(7, 3), gaussian(5, 3, seed=1, mean=1.0)

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    own = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    other = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    cross = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(own + other - 2 * cross, rel=1e-12)


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    found = [
        kernel_distance(gaussian(50, 4, seed=2 * i), gaussian(60, 4, seed=2 * i + 1))
        for i in range(200)
    ]
    assert abs(np.mean(found)) < 5 * np.std(found) / np.sqrt(200)


def test_blocks_do_not_change_kernels_and_neighbourhoods(monkeypatch):
    x, y = gaussian(70, 3), gaussian(50, 3, seed=1, mean=0.3)
    whole = kernel_distance(x, y), coverings(x, y)
    monkeypatch.setattr("score_jax.evaluation.metrics.BLOCK_BYTES", 8 * 70 * 11)
    assert kernel_distance(x, y) == pytest.approx(whole[0], rel=1e-10)
    assert coverings(x, y) == whole[1]


@pytest.mark.parametrize("classes", [2, 10])
def test_inception_score_is_between_one_and_the_number_of_classes(classes):
    sure = np.eye(classes)[np.arange(50 * classes) % classes]
    assert inception_score(sure) == pytest.approx(classes)
    assert inception_score(np.full((40, classes), 1 / classes)) == pytest.approx(1)
    assert inception_score(sure[:1].repeat(9, axis=0)) == pytest.approx(1)


def test_coverings_of_a_small_case():
    """Points on a line, whose neighbourhoods are counted by hand."""
    real = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])
    x = np.array([[0.5], [2.5], [30.0], [31.0], [32.0], [33.0]])
    found = coverings(x, real, manifold_k=1, density_k=1)
    # Radii of the real points: 1, 1, 1, 1, 7. 0.5 lies in those of 0 and 1, 2.5 in those of 2
    # and 3.
    assert found.precision == pytest.approx(2 / 6)
    assert found.density == pytest.approx(4 / 6)
    assert found.coverage == pytest.approx(4 / 5)
    # The samples' radii are 2, 2 and four times 1: 0.5 reaches 0, 1, 2 and 2.5 reaches 1, 2, 3.
    assert found.recall == pytest.approx(4 / 5)
    same = coverings(real, real, manifold_k=1, density_k=1)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    with pytest.raises(ValueError, match="sets of more than 5 examples, got 6 and 5"):
        coverings(x, real)


def test_bootstrap_errors_are_the_spread_of_independent_samples():
    """Errors of one set of samples against the spread of the values of 60 sets."""
    reference = Outputs(gaussian(400, 3, seed=99), None)
    sets = []
    for seed in range(60):
        x = gaussian(200, 3, seed=seed, mean=0.5)
        p = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
        sets.append(sample_metrics(Outputs(x, p), reference, num_resamples=200))
    for name in ("frechet_distance", "kernel_distance", "inception_score", "precision", "density"):
        spread = np.std([each[name].value for each in sets], ddof=1)
        error = np.mean([each[name].error for each in sets])
        # The spread of 60 values is known to 1 / sqrt(118); resampling adds a bias of its own.
        assert error == pytest.approx(spread, rel=5 / np.sqrt(118))


def test_resamples_have_the_size_of_the_set():
    counts = resample_counts(30, 50, seed=0)
    assert counts.shape == (50, 30)
    assert (counts.sum(axis=1) == 30).all()
    np.testing.assert_array_equal(counts, resample_counts(30, 50, seed=0))


def test_what_a_reference_does_not_know_is_left_out():
    x, y = gaussian(40), gaussian(50, seed=1)
    full = sample_metrics(Outputs(x), Outputs(y))
    few = sample_metrics(Outputs(x), None, moments([y]))
    assert set(few) == {"frechet_distance", "unlimited_frechet_distance"}
    assert few["frechet_distance"] == full["frechet_distance"]
    assert "inception_score" not in full
    with pytest.raises(ValueError, match="give the features of a reference, or its moments"):
        sample_metrics(Outputs(x), None)
    with pytest.raises(ValueError, match="the samples have 4 features, but the reference has 3"):
        sample_metrics(Outputs(x), Outputs(gaussian(50, 3)))


def test_images_are_not_features():
    images = Outputs(np.zeros((10, 4, 4, 1)))
    with pytest.raises(ValueError, match=r"\[10, 4, 4, 1\], but need \[examples, dimensions\]"):
        sample_metrics(images, images)
