import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.models.mlp import MLP

LEVELS = (20.0, 1.0, 0.1)


def initialised(model, shape):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32))[
        "params"
    ]


def draws(batch, shape):
    return 3 * jax.random.normal(jax.random.key(1), (batch, *shape)), jnp.arange(batch) % 3


def by_hand(params, h):
    """Dense layers with softplus between them, in float64."""
    layers = [
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[f"Dense_{i}"])
        for i in range(len(params))
    ]
    for layer in layers[:-1]:
        h = np.logaddexp(0, h @ layer["kernel"] + layer["bias"])
    return h @ layers[-1]["kernel"] + layers[-1]["bias"]


def test_with_one_level_it_is_the_plain_network_of_the_paper():
    model = MLP(sigmas=(0.5,))
    params, (x, level) = initialised(model, (2,)), draws(6, (2,))
    assert [params[f"Dense_{i}"]["kernel"].shape for i in range(3)] == [
        (2, 128),
        (128, 128),
        (128, 2),
    ]
    score = model.apply({"params": params}, x, jnp.zeros_like(level))
    np.testing.assert_allclose(
        score, by_hand(params, np.asarray(x, np.float64)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(
        MLP(sigmas=(7.0,)).apply({"params": params}, x, jnp.zeros_like(level)), score
    )


def test_with_several_levels_it_is_the_formula():
    model = MLP(sigmas=LEVELS, hidden=(16,))
    params, (x, level) = initialised(model, (2, 2)), draws(6, (2, 2))
    assert params["Dense_0"]["kernel"].shape == (5, 16)
    sigma, flat = (
        np.array(LEVELS)[np.asarray(level)][:, None],
        np.asarray(x, np.float64).reshape(6, 4),
    )
    total = np.sqrt(1 + sigma**2)
    f = by_hand(params, np.concatenate([flat / total, np.log(sigma)], axis=1))
    expected = (f / (total * sigma) - flat / total**2).reshape(6, 2, 2)
    np.testing.assert_allclose(
        model.apply({"params": params}, x, level), expected, rtol=1e-4, atol=1e-5
    )


def test_initial_values():
    """Weights normal with variance 1 / fan_in, biases 0."""
    params = initialised(MLP(sigmas=LEVELS), (2,))
    np.testing.assert_allclose(np.std(params["Dense_1"]["kernel"]), 128**-0.5, rtol=0.05)
    for layer in params.values():
        np.testing.assert_array_equal(layer["bias"], 0)


@pytest.mark.parametrize("sigmas", [(0.5,), LEVELS])
def test_examples_do_not_see_each_other(sigmas):
    model = MLP(sigmas=sigmas, hidden=(8, 8))
    params, (x, level) = initialised(model, (4,)), draws(6, (4,))
    level = level % len(sigmas)
    score = model.apply({"params": params}, x, level)
    np.testing.assert_allclose(
        model.apply({"params": params}, x[1:3], level[1:3]), score[1:3], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden": ()}, r"hidden=\(\) must name at least one layer"),
        ({"hidden": (8, 0)}, r"hidden\[1\]=0 must be at least 1"),
        ({"hidden": (True,)}, r"hidden\[0\]=True must be a whole number of at least 1"),
        ({"sigmas": ()}, "not empty"),
        ({"sigmas": (0.1, 1.0)}, "sigmas must decrease"),
        ({"sigmas": (1.0, 0.0)}, "sigmas must be positive"),
    ],
)
def test_refusals(fields, words):
    with pytest.raises(ValueError, match=words):
        initialised(MLP(**{"sigmas": LEVELS, **fields}), (2,))
