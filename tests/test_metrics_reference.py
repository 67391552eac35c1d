"""The metrics of samples against torch-fidelity and prdc, on identical float64 features."""

import importlib.util

import numpy as np
import pytest
from inception_reference import fidelity_module
from scipy.special import softmax

from score_jax.evaluation import metrics

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torch_fidelity") is None:
    pytest.skip("needs torch-fidelity", allow_module_level=True)

pytestmark = pytest.mark.torch

# More examples than features; fewer, so that covariances are singular; a large common mean.
SETS = [(400, 300, 24, 0.0), (60, 60, 128, 0.0), (200, 200, 64, 50.0)]


def two_sets(number, others, dimensions, mean):
    """Correlated, skewed features of samples and of a reference, float64."""
    rng = np.random.default_rng(number)
    mixing = rng.normal(size=(dimensions, dimensions)) / dimensions**0.5
    x = np.exp(0.3 * rng.normal(size=(number, dimensions))) @ mixing
    y = 1.1 * np.exp(0.3 * rng.normal(size=(others, dimensions))) @ mixing
    return x + mean, y + mean


@pytest.mark.parametrize("sizes", SETS)
def test_the_frechet_distance(sizes):
    x, y = two_sets(*sizes)
    fid = fidelity_module("metric_fid")
    statistics = [fid.fid_features_to_statistics(torch.from_numpy(each)) for each in (x, y)]
    expected = fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    # Features in several batches.
    found = metrics.frechet_distance(metrics.moments(np.array_split(x, 7)), metrics.moments([y]))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sizes", [(300, 300, 24, 0.0), *SETS[1:]])
def test_the_kernel_distance(sizes):
    """The reference with one subset, of all examples."""
    x, y = two_sets(*sizes)
    kid = fidelity_module("metric_kid").kid_features_to_metric
    settings = {"kid_subsets": 1, "kid_subset_size": len(x), "verbose": False}
    found = kid(torch.from_numpy(x), torch.from_numpy(y), **settings)
    expected = found["kernel_inception_distance_mean"]
    # Kernels of a large mean cancel almost.
    size = np.mean((np.sum(x * y[: len(x)], axis=1) / x.shape[1] + 1) ** 3)
    assert metrics.kernel_distance(x, y) == pytest.approx(expected, rel=1e-6, abs=1e-12 * size)


def test_the_inception_score():
    logits = 3 * np.random.default_rng(0).normal(size=(500, 20))
    score = fidelity_module("metric_isc").isc_features_to_metric
    expected = score(torch.from_numpy(logits), splits=1, shuffle=False)["inception_score_mean"]
    found = metrics.inception_score(softmax(logits, axis=1))
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sizes", SETS)
@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall(sizes, k):
    x, y = two_sets(*sizes)
    prc = fidelity_module("metric_prc").prc_features_to_metric
    settings = {"prc_neighborhood": k, "prc_batch_size": 10_000, "verbose": False}
    expected = prc(torch.from_numpy(x), torch.from_numpy(y), **settings)
    found = metrics.coverings(x, y, manifold_k=k)
    # The reference averages in float32.
    assert found.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-6)


@pytest.mark.parametrize("sizes", SETS)
@pytest.mark.parametrize("k", [3, 5])
def test_density_and_coverage(sizes, k):
    prdc = pytest.importorskip("prdc")
    x, y = two_sets(*sizes)
    expected = prdc.compute_prdc(real_features=y, fake_features=x, nearest_k=k)
    found = metrics.coverings(x, y, manifold_k=k, density_k=k)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(expected[name], abs=1e-9), name
