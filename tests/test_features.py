"""Features over devices, and the classifier whose features measure distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import assert_same

from score_jax.cli.feature_space import metric_name, quantized, rescaled
from score_jax.data import sources
from score_jax.evaluation.classifier import accuracy, classifier_features, train_classifier
from score_jax.evaluation.features import extract, feature_batches, flat_pixels
from score_jax.evaluation.metrics import Outputs

X = np.random.default_rng(0).random((23, 4, 4, 1), np.float32)


def weighted_sum(weights, x):
    """Features and logits of a batch."""
    features = jnp.einsum("bhwc,hwf->bf", x, weights)
    return features, features[:, :3]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 8, 64])
def test_features_of_batches_over_devices_are_those_of_the_function(devices, batch_size):
    weights = np.random.default_rng(1).random((4, 4, 5), np.float32)
    function = jax.tree_util.Partial(weighted_sum, weights)
    settings = {"batch_size": batch_size, "devices": jax.devices()[:devices], "progress": False}
    found = extract(function, X, **settings)
    features, logits = weighted_sum(weights, X)
    np.testing.assert_allclose(found.features, features, rtol=1e-5)
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits), rtol=1e-5)
    sizes = [len(each.features) for each in feature_batches(function, X, **settings)]
    assert sum(sizes) == 23
    assert max(sizes) <= max(batch_size, devices)


def test_a_function_of_another_library_gets_numpy_arrays():
    def function(x):
        assert isinstance(x, np.ndarray)
        return np.asarray(x).reshape(len(x), -1)

    found = extract(function, X, batch_size=10, compiled=False, progress=False)
    np.testing.assert_array_equal(found.features, X.reshape(23, 16))
    same = extract(flat_pixels, X, batch_size=10, progress=False)
    assert isinstance(same, Outputs)
    np.testing.assert_array_equal(same.features, found.features)


def test_features_must_be_a_matrix():
    with pytest.raises(ValueError, match="but must be \\[batch, dimensions\\]"):
        extract(lambda x: x, X, batch_size=10, progress=False)
    with pytest.raises(ValueError, match="batch_size=3 cannot be split over 2 devices"):
        extract(flat_pixels, X, batch_size=3, devices=jax.devices()[:2], progress=False)


@functools.cache
def trained():
    data = sources.digits()
    x = rescaled(data, data.train)[:]
    return train_classifier(
        x, data.train_labels, 10, num_steps=60, devices=jax.devices()[:2], progress=False
    )


def test_the_classifier_learns_the_digits():
    data = sources.digits()
    found = accuracy(
        trained(), rescaled(data, data.held_out), data.held_out_labels, progress=False
    )
    assert found > 0.9
    features = extract(classifier_features(trained()), rescaled(data, data.train), progress=False)
    assert np.mean(features.features**2) == pytest.approx(1, rel=1e-3)
    assert features.features.shape == (1500, 128)


def test_training_is_deterministic():
    data = sources.digits()
    arguments = (rescaled(data, data.train)[:], data.train_labels, 10)
    settings = {"num_steps": 12, "devices": jax.devices()[:2], "progress": False}
    assert_same(
        train_classifier(*arguments, **settings).params,
        train_classifier(*arguments, **settings).params,
    )


def test_the_classifier_takes_bytes_and_odd_sizes():
    x = np.random.default_rng(0).integers(0, 256, (40, 11, 9, 3), np.uint8)
    settings = {"num_steps": 2, "batch_size": 8, "devices": jax.devices()[:2], "progress": False}
    found = train_classifier(x, np.arange(40) % 2, 2, **settings)
    assert extract(classifier_features(found), x, progress=False).features.shape == (40, 128)
    with pytest.raises(ValueError, match="with 3 labels, but must be"):
        train_classifier(x, np.arange(3), 2, **settings)


def test_samples_are_compared_as_the_pixels_that_data_can_hold():
    data = sources.digits()
    stored = data.train[:50]
    exact = rescaled(data, stored)[:]
    np.testing.assert_array_equal(exact, stored.astype(np.float32) / 16)
    u = np.random.default_rng(0).random(stored.shape)
    np.testing.assert_array_equal(quantized((stored + u) / 17, 17, True), exact)
    near = exact + np.float32(0.02) * (u - 0.5)
    np.testing.assert_array_equal(quantized(near, 17, False), exact)
    np.testing.assert_array_equal(quantized(exact, 17, True), exact)
    np.testing.assert_array_equal(quantized(near, None, True), near.astype(np.float32))


def test_only_inception_gives_published_names():
    names = ("frechet_distance", "unlimited_frechet_distance", "kernel_distance", "recall")
    assert [metric_name(name, "inception") for name in names] == [
        "fid",
        "fid_unlimited",
        "kid",
        "recall",
    ]
    assert [metric_name(name, "classifier") for name in names] == [
        "fd_classifier",
        "fd_classifier_unlimited",
        "kd_classifier",
        "recall",
    ]
    assert metric_name("frechet_distance", "mine:features") == "fd_features"
    assert metric_name("inception_score", "classifier") == "is_classifier"
    assert metric_name("inception_score", "inception") == "inception_score"
