"""Rules that every network keeps: noise levels, dtypes, empty batches, float32 parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.models.mlp import MLP
from score_jax.models.ncsn import NCSN
from score_jax.models.ncsnv2 import NCSNv2
from score_jax.models.unet import UNet
from score_jax.noise import geometric_sigmas

SIGMAS = geometric_sigmas(1.0, 0.1, 4)
NETWORKS = {
    "mlp": (MLP, {"hidden": (8,)}, (2, 3)),
    "unet": (UNet, {"width": 4}, (12, 12, 3)),
    "ncsn": (NCSN, {"width": 4}, (6, 8, 1)),
    "ncsnv2": (NCSNv2, {"width": 4}, (6, 8, 1)),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    """(constructor, fields, shape of an example)."""
    return NETWORKS[request.param]


def shapes_of(model, shape, dtype="float32", batch=2):
    """Shapes of the parameters and of the score."""
    x, level = jnp.zeros((batch, *shape), dtype), jnp.zeros(batch, jnp.int32)
    one = (jnp.ones((1, *shape)), jnp.zeros(1, jnp.int32))
    params = jax.eval_shape(model.init, jax.random.key(0), *one)
    return params["params"], jax.eval_shape(model.apply, params, x, level)


def test_all_are_built_from_an_array_of_noise_levels(network):
    build, fields, _ = network
    model = build(sigmas=SIGMAS, **fields)
    same = build(sigmas=tuple(np.asarray(SIGMAS).tolist()), **fields)
    assert model == same
    assert hash(model) == hash(same)
    assert model.clone() == model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_scores_have_the_shape_and_dtype_of_the_data(network, dtype):
    build, fields, shape = network
    params, score = shapes_of(build(sigmas=SIGMAS, **fields), shape, dtype)
    assert score.shape == (2, *shape)
    assert score.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_parameters_are_float32_under_x64_too(network):
    build, fields, shape = network
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            params, score = shapes_of(build(sigmas=SIGMAS, **fields), shape, dtype)
            assert score.dtype == dtype
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_an_empty_batch_gives_an_empty_score(network):
    build, fields, shape = network
    _, score = shapes_of(build(sigmas=SIGMAS, **fields), shape, batch=0)
    assert score.shape == (0, *shape)
