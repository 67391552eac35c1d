import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from truths import NCSN_FIXTURES, golden, relative

from score_jax.convert import ncsn_params
from score_jax.langevin import langevin_step
from score_jax.losses.dsm import denoising_score_matching
from score_jax.models.ncsn import NCSN

MODEL = NCSN(num_levels=10, width=8)


@pytest.fixture(scope="module", params=NCSN_FIXTURES)
def official(request):
    g = golden(request.param)
    g["params"] = jax.tree.map(jnp.asarray, ncsn_params(g["param"]))
    g["score_fn"] = jax.jit(lambda params, x, level: MODEL.apply({"params": params}, x, level))
    return g


def test_forward_pass_is_the_official_one(official):
    assert relative(official["score_fn"](official["params"], official["x"], official["labels"]), official["score"]) < 1e-5


def test_loss_gradients_and_adam_step_are_the_official_ones(official):
    @jax.jit
    @jax.value_and_grad
    def loss_fn(params):
        score_fn = functools.partial(MODEL.apply, {"params": params})
        return denoising_score_matching(
            score_fn, official["x"], official["dsm_noise"], official["labels"], official["sigmas"]
        ).mean()

    loss, grads = loss_fn(official["params"])
    assert relative(loss, official["dsm_loss"]) < 1e-4
    assert relative(optax.tree.norm(grads), official["dsm_grad_global_norm"]) < 1e-4
    expected = jax.tree_util.tree_leaves_with_path(ncsn_params(official["dsm_grad"]))
    assert len(expected) == 6
    for path, gradient in expected:
        assert relative(functools.reduce(lambda tree, step: tree[step.key], path, grads), gradient) < 1e-4, path
    optimizer = optax.adam(1e-3)
    updates, _ = optimizer.update(grads, optimizer.init(official["params"]))
    stepped = optax.apply_updates(official["params"], updates)
    assert relative(official["score_fn"](stepped, official["x"], official["labels"]), official["score_after_adam"]) < 1e-4


def test_annealed_langevin_chain_is_the_official_one(official):
    """The official noise, step by step; the sampler draws its own and is held to the same formula in test_langevin."""
    x, sigmas = official["ald_init"], official["sigmas"]
    for level, noises in enumerate(official["ald_noise"]):
        alpha = official["config"]["step_lr"] * (sigmas[level] / sigmas[-1]) ** 2
        for noise in noises:
            score = official["score_fn"](official["params"], x, jnp.full(len(x), level))
            x = langevin_step(score, x, noise, alpha)
    assert relative(x, official["ald_final"]) < 1e-4


def init_shapes(model, *shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32))["params"]


def test_parameters_have_the_official_names_and_shapes(official):
    shapes = init_shapes(MODEL, *official["x"].shape[1:])
    assert jax.tree.map(lambda leaf: leaf.shape, shapes) == jax.tree.map(lambda leaf: leaf.shape, official["params"])


@pytest.mark.parametrize(
    ("width", "shape", "published"),
    [(16, (28, 28, 1), 518_817), (32, (32, 32, 3), 1_966_019), (64, (28, 28, 1), 7_638_657), (128, (32, 32, 3), 30_117_635)],
)
def test_parameter_counts(width, shape, published):
    assert sum(leaf.size for leaf in jax.tree.leaves(init_shapes(NCSN(num_levels=10, width=width), *shape))) == published


@pytest.mark.parametrize("shape", [(8, 8, 1), (6, 10, 2), (30, 4, 4)])
def test_any_even_size_and_any_number_of_channels(shape):
    model = NCSN(num_levels=3, width=4)
    x = jnp.zeros((2, *shape))
    out = jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0), x, jnp.zeros(2, int)), x, jnp.zeros(2, int)))
    assert out.shape == x.shape


@pytest.mark.parametrize("shape", [(27, 28, 1), (8, 7, 1), (2, 2, 1)])
def test_other_sizes_are_refused(shape):
    with pytest.raises(ValueError, match=f"cannot take {shape[0]}x{shape[1]}"):
        init_shapes(NCSN(num_levels=3, width=4), *shape)


def test_initial_values():
    """Convolutions uniform in +-1/sqrt(fan_in); gamma and alpha near 1, beta 0."""
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros(1, jnp.int32))["params"]
    kernel, bound = np.asarray(params["res4_1"]["conv1"]["kernel"], np.float64), 1 / np.sqrt(9 * 16)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
    assert 0 < np.abs(params["res4_1"]["conv1"]["bias"]).max() <= bound
    gamma, alpha, beta = np.split(np.asarray(params["res4_1"]["normalize1"]["embedding"]), 3, axis=1)
    np.testing.assert_array_equal(beta, 0)
    for near_one in (gamma, alpha):
        np.testing.assert_allclose([near_one.mean(), near_one.std()], [1, 0.02], atol=0.01)


def test_logit_transformed_data_is_not_centered(official):
    shifted = NCSN(num_levels=10, width=8, centered=False)
    score = shifted.apply({"params": official["params"]}, 2 * official["x"] - 1, official["labels"])
    assert relative(score, official["score"]) < 1e-5
