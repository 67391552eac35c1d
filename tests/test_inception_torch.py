"""Inception v3 of score_jax against that of torch-fidelity, with the same random weights."""

import importlib.util

import jax
import numpy as np
import pytest
from inception_reference import (
    SIZES,
    fidelity_module,
    fidelity_network,
    fidelity_outputs,
    golden_inception,
    images,
    random_state,
    tensors,
)
from truths import relative

import score_jax as sj
from score_jax.models import inception

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torch_fidelity") is None:
    pytest.skip("needs torch-fidelity", allow_module_level=True)

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, with the statistics of the batch norms."""
    untrained = fidelity_network()
    shapes = {
        name: tuple(value.shape)
        for name, value in untrained.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert shapes == golden_inception()[0]
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(untrained.state_dict() | tensors(random_state(shapes)), path)
    return path


@pytest.fixture(scope="module")
def features(weights):
    return sj.inception_features(sj.read_inception(weights))


@pytest.fixture(scope="module")
def reference(weights):
    network = fidelity_network(weights)
    return {size: fidelity_outputs(network, images(*size)) for size in SIZES}


@pytest.mark.parametrize("size", SIZES)
def test_features_and_logits_are_those_of_the_reference(features, reference, size):
    found = jax.jit(features)(images(*size))
    for ours, theirs in zip(found, reference[size], strict=True):
        assert relative(ours, theirs) < 1e-5
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * theirs.std())


def test_the_golden_file_is_up_to_date(reference):
    for size, golden in golden_inception()[1].items():
        for old, new in zip(golden, reference[size], strict=True):
            assert relative(old, new) < 1e-5


@pytest.mark.parametrize("size", [(299, 299), (64, 100), (7, 5)])
@pytest.mark.parametrize("before", [(32, 32), (200, 150), (299, 299), (400, 301)])
def test_resizing_is_that_of_the_reference(before, size):
    resize = fidelity_module(
        "interpolate_compat_tensorflow"
    ).interpolate_bilinear_2d_like_tensorflow1x
    x = images(*before)
    tensor = torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32))
    expected = resize(tensor, size, align_corners=False).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(inception.resize_bilinear_tf1(x, size), expected, atol=1e-4)


def half_pixel_centres(x, size):
    return jax.image.resize(x, (x.shape[0], size, size, 3), "bilinear")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mean_pool", lambda x: inception.nn.avg_pool(x, (3, 3), (1, 1), "SAME")),
        ("max_pool", inception.mean_pool),
        ("resize_bilinear_tf1", half_pixel_centres),
    ],
)
def test_the_comparison_sees_each_detail_of_the_graph(
    features, reference, monkeypatch, name, wrong
):
    """Padding counted, mean pooling in the last block, another resizing."""
    monkeypatch.setattr(inception, name, wrong)
    found, _ = jax.jit(lambda x: features(x))(images(32, 32))
    assert relative(found, reference[32, 32][0]) > 1e-3
