import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from truths import NCSN_FIXTURES, NCSNV2_FIXTURES, golden, relative

from score_jax.losses.dsm import denoising_score_matching
from score_jax.models.layers import ConditionalInstanceNormPlus
from score_jax.models.ncsn import NCSN
from score_jax.models.ncsnv2 import NCSNv2
from score_jax.models.official import from_official, to_official
from score_jax.models.refinenet import ResidualBlock
from score_jax.noise import geometric_sigmas
from score_jax.samplers.langevin import annealed_langevin


@functools.cache
def official(name):
    g = golden(name)
    g["model"], params = from_official(g["param"])
    g["params"] = jax.tree.map(jnp.asarray, params)
    g["score_fn"] = jax.jit(
        lambda params, x, level: g["model"].apply({"params": params}, x, level)
    )
    return g


@pytest.mark.parametrize("name", NCSN_FIXTURES + NCSNV2_FIXTURES)
def test_forward_pass_is_the_official_one(name):
    g = official(name)
    assert relative(g["score_fn"](g["params"], g["x"], g["labels"]), g["score"]) < 1e-5


@functools.cache
def loss_and_gradients(name, remat=False):
    g = official(name)
    model = g["model"].clone(remat=remat)

    @jax.jit
    @jax.value_and_grad
    def loss_fn(params):
        score_fn = functools.partial(model.apply, {"params": params})
        return denoising_score_matching(
            score_fn, g["x"], g["dsm_noise"], g["labels"], g["sigmas"]
        ).mean()

    return loss_fn(g["params"])


@pytest.mark.parametrize("name", NCSN_FIXTURES)
def test_loss_gradients_and_adam_step_are_the_official_ones(name):
    g, (loss, grads) = official(name), loss_and_gradients(name)
    assert relative(loss, g["dsm_loss"]) < 1e-4
    assert relative(optax.tree.norm(grads), g["dsm_grad_global_norm"]) < 1e-4
    ours = to_official(grads)
    assert len(g["dsm_grad"]) == 6
    for parameter, gradient in g["dsm_grad"].items():
        assert relative(ours[parameter], gradient) < 1e-4, parameter

    @jax.jit
    def adam_step(params, grads):
        optimizer = optax.adam(1e-3)
        updates, _ = optimizer.update(grads, optimizer.init(params))
        return optax.apply_updates(params, updates)

    stepped = adam_step(g["params"], grads)
    assert relative(g["score_fn"](stepped, g["x"], g["labels"]), g["score_after_adam"]) < 1e-4


@pytest.mark.parametrize("name", NCSN_FIXTURES + NCSNV2_FIXTURES)
def test_annealed_langevin_chain_is_the_official_one(name):
    """The sampler itself, fed with the official noise in the place of its own."""
    g = official(name)
    sigmas, noise = jnp.asarray(g["sigmas"]), jnp.asarray(g["ald_noise"])
    num_levels, num_steps = noise.shape[:2]
    recorded = noise.reshape(num_levels * num_steps, *noise.shape[2:])
    run = functools.partial(
        annealed_langevin,
        None,
        functools.partial(g["score_fn"], g["params"]),
        jnp.asarray(g["ald_init"]),
        sigmas,
        step_size=float(g["config"]["step_lr"]),
        num_steps=num_steps,
        noise_fn=lambda n: recorded[n],
    )
    if name in NCSN_FIXTURES:
        assert relative(run().x, g["ald_final"]) < 1e-4
        return
    trajectory = run(denoise=True, num_snapshots=1)
    assert relative(trajectory.snapshots[0], g["ald_final_before_denoise"]) < 1e-4
    assert relative(trajectory.x, g["ald_final_denoised"]) < 1e-4


@pytest.mark.parametrize("name", ["ncsn_mnist_ngf8", "ncsnv2_cifar_ngf8"])
def test_host_arrays_as_parameters_sample_in_one_program(name):
    """Parameters as they come from a file, closed over and not passed as arguments."""
    g = official(name)
    params = jax.tree.map(np.asarray, g["params"])
    score_fn = functools.partial(g["model"].apply, {"params": params})
    x = jnp.asarray(g["ald_init"])
    keys = jax.random.split(jax.random.key(0), len(x))
    settings = {"step_size": 1e-7, "num_steps": 1}
    found = annealed_langevin(keys, score_fn, x, g["sigmas"][-2:], **settings)
    assert bool(jnp.isfinite(found.x).all())


def init_shapes(model, *shape):
    return jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    )["params"]


@pytest.mark.parametrize(
    ("width", "shape", "published"),
    [
        (16, (28, 28, 1), 518_817),
        (32, (32, 32, 3), 1_966_019),
        (64, (28, 28, 1), 7_638_657),
        (128, (32, 32, 3), 30_117_635),
    ],
)
def test_parameter_counts_of_ncsn(width, shape, published):
    params = init_shapes(NCSN(num_levels=10, width=width), *shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published


@pytest.mark.parametrize(
    ("variant", "size", "published"),
    [("standard", 32, 29_694_083), ("deeper", 64, 83_445_379), ("deepest", 256, 94_132_611)],
)
def test_parameter_counts_of_ncsnv2(variant, size, published):
    params = init_shapes(NCSNv2(sigmas=(1.0, 0.1), width=128, variant=variant), size, size, 3)
    assert params.pop("sigmas").shape == (2,)  # a buffer there, not counted
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == published


@pytest.mark.parametrize("shape", [(8, 8, 1), (6, 10, 2), (30, 4, 4)])
@pytest.mark.parametrize(
    "model", [NCSN(num_levels=3, width=4), NCSNv2(sigmas=(1.0, 0.5, 0.1), width=4)]
)
def test_any_even_size_and_any_number_of_channels(model, shape):
    x = jnp.zeros((2, *shape))
    level = jnp.zeros(2, int)
    out = jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0), x, level), x, level))
    assert out.shape == x.shape


@pytest.mark.parametrize(
    ("model", "shape", "words"),
    [
        (
            NCSN(num_levels=3, width=4),
            (27, 28, 1),
            "NCSN cannot take 27x28: height and width must be multiples of 2",
        ),
        (NCSN(num_levels=3, width=4), (2, 2, 1), "cannot take 2x2: .* at least 4"),
        (NCSN(num_levels=3, width=1), (8, 8, 1), "width=1 must be at least 2"),
        (
            NCSNv2(sigmas=(1.0,), width=4, variant="deeper"),
            (30, 32, 3),
            r"NCSNv2 \(deeper\) cannot take 30x32: .* multiples of 4",
        ),
        (
            NCSNv2(sigmas=(1.0,), width=4, variant="deepest"),
            (36, 36, 3),
            "multiples of 8 and at least 16",
        ),
        (
            NCSNv2(sigmas=(1.0,), width=4, variant="deep"),
            (32, 32, 3),
            "variant='deep' is not known: choose among standard, deeper",
        ),
    ],
)
def test_what_a_network_cannot_take_is_refused(model, shape, words):
    with pytest.raises(ValueError, match=words):
        init_shapes(model, *shape)


def test_initial_values():
    """Convolutions uniform in +-1/sqrt(fan_in); gamma and alpha near 1, beta 0."""
    norm = functools.partial(ConditionalInstanceNormPlus, num_levels=10)
    block = ResidualBlock(16, norm).init(
        jax.random.key(0), jnp.zeros((1, 8, 8, 16)), jnp.zeros(1, jnp.int32)
    )["params"]
    kernel, bound = np.asarray(block["conv1"]["kernel"], np.float64), 1 / np.sqrt(9 * 16)
    assert np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.05)
    assert 0 < np.abs(block["conv1"]["bias"]).max() <= bound
    gamma, alpha, beta = np.split(np.asarray(block["normalize1"]["embedding"]), 3, axis=1)
    np.testing.assert_array_equal(beta, 0)
    for near_one in (gamma, alpha):
        np.testing.assert_allclose([near_one.mean(), near_one.std()], [1, 0.02], atol=0.01)


def test_logit_transformed_data_is_not_centered():
    g = official("ncsn_mnist_ngf8")
    shifted = NCSN(num_levels=10, width=8, centered=False)
    score = jax.jit(shifted.apply)({"params": g["params"]}, 2 * g["x"] - 1, g["labels"])
    assert relative(score, g["score"]) < 1e-5


def test_no_gradient_reaches_the_sigmas_of_ncsnv2():
    g = official("ncsnv2_cifar_ngf8")
    grads = jax.jit(
        jax.grad(lambda params: g["model"].apply({"params": params}, g["x"], g["labels"]).sum())
    )(g["params"])
    np.testing.assert_array_equal(grads["sigmas"], 0)
    assert np.abs(grads["begin_conv"]["kernel"]).max() > 0
    optimizer = optax.adam(1e-3)
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(g["params"]))
    np.testing.assert_array_equal(updates["sigmas"], 0)


@pytest.mark.parametrize("name", ["ncsn_mnist_ngf8", "ncsnv2_cifar_ngf8"])
def test_bfloat16_computes_nearly_the_same_score_from_the_same_parameters(name):
    g = official(name)
    model = g["model"].clone(dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0), g["x"], g["labels"])["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    score = jax.jit(model.apply)({"params": g["params"]}, g["x"], g["labels"])
    assert score.dtype == jnp.float32
    assert (
        1e-4 < relative(score, g["score"]) < 5e-2
    )  # 8 bits of mantissa, through some twenty layers


def test_rematerialisation_changes_no_gradient():
    plain = loss_and_gradients("ncsn_mnist_ngf8")[1]
    again = loss_and_gradients("ncsn_mnist_ngf8", remat=True)[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max()),
        plain,
        again,
    )


def test_networks_take_the_array_of_noise_levels():
    sigmas = geometric_sigmas(1.0, 0.1, 5)
    assert NCSN(sigmas=sigmas) == NCSN(num_levels=5)
    assert NCSNv2(sigmas=sigmas) == NCSNv2(sigmas=tuple(np.asarray(sigmas).tolist()))
    assert hash(NCSNv2(sigmas=sigmas)) == hash(NCSNv2(sigmas=np.asarray(sigmas)))
    with pytest.raises(ValueError, match="num_levels=4 differs from the number of sigmas, 5"):
        NCSN(num_levels=4, sigmas=sigmas)
    with pytest.raises(ValueError, match="num_levels=None must be at least 1: give num_levels or"):
        NCSN()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    "model", [NCSN(num_levels=3, width=4), NCSNv2(sigmas=(1.0, 0.5, 0.1), width=4)]
)
def test_the_score_has_the_dtype_of_the_images(model, dtype):
    x = jnp.zeros((2, 8, 8, 1), dtype)
    level = jnp.zeros(2, int)
    out = jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0), x, level), x, level))
    assert out.dtype == dtype
