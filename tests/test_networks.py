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


LABELLED = {
    "ncsn": NCSN(num_levels=4, width=4, num_classes=3),
    "ncsnv2": NCSNv2(sigmas=geometric_sigmas(1.0, 0.1, 4), width=4, num_classes=3),
}


def test_class_conditional_networks_start_as_the_unconditional_ones():
    """Every class starts with scale 1 and shift 0; other embeddings change the score."""
    model = LABELLED["ncsn"]
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    level, label = jnp.asarray([0, 1, 3]), jnp.asarray([0, 2, 3])
    shapes = jax.eval_shape(model.init, jax.random.key(1), x, level, label)["params"]
    rng = np.random.default_rng(0)
    flat, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    values = [
        (0 if "classes" in name else 0.3) * rng.standard_normal(leaf.shape, np.float32)
        for name, (_, leaf) in zip(names, flat, strict=True)
    ]
    apply = jax.jit(lambda params: model.apply({"params": params}, x, level, label))
    base = apply(jax.tree.unflatten(treedef, values))

    # Without the classes, these are the parameters of the unconditional network.
    unlabelled = model.clone(num_classes=None)
    shapes = jax.eval_shape(unlabelled.init, jax.random.key(1), x, level)["params"]
    plain = {name.replace("/norm/", "/"): value for name, value in zip(names, values, strict=True)}
    taken = jax.tree_util.tree_map_with_path(
        lambda path, _: plain[jax.tree_util.keystr(path, simple=True, separator="/")], shapes
    )
    expected = jax.jit(unlabelled.apply)({"params": taken}, x, level)
    np.testing.assert_allclose(base, expected, rtol=1e-4, atol=1e-5)

    # The embedding of class 2 changes the example of class 2 only.
    changed = [value.copy() for value in values]
    for name, value in zip(names, changed, strict=True):
        if "classes" in name:
            value[2] += 0.3
    found = apply(jax.tree.unflatten(treedef, changed))
    np.testing.assert_array_equal(found[0], base[0])
    np.testing.assert_array_equal(found[2], base[2])
    assert np.abs(found[1] - base[1]).max() > 1e-3


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_missing_or_not_accepted_are_refused(name):
    x, level = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="num_classes=3 needs labels"):
        jax.eval_shape(LABELLED[name].init, jax.random.key(0), x, level)
    unlabelled = LABELLED[name].clone(num_classes=None)
    with pytest.raises(ValueError, match="num_classes=None takes no labels"):
        jax.eval_shape(unlabelled.init, jax.random.key(0), x, level, level)
