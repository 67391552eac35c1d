import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.analytic import gaussian_score_fn
from score_jax.models.layers import from_features_to_squares, from_squares_to_features
from score_jax.models.unet import UNet

SIGMAS = (2.0, 0.5, 0.1)


def initialised(model, *shape):
    params = jax.jit(model.init)(
        jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32)
    )["params"]
    return params, jax.jit(lambda params, x, level: model.apply({"params": params}, x, level))


@jax.jit
def perturbed(params):
    """Parameters that differ from each other and from those at the start."""

    def moved(leaf):
        return leaf + 0.05 * jax.random.normal(jax.random.key(2), (leaf.size,)).reshape(leaf.shape)

    return jax.tree.map(moved, params)


def test_starts_as_the_exact_score_of_a_gaussian():
    params, score_fn = initialised(
        UNet(sigmas=SIGMAS, width=8, data_mean=0.3, data_std=0.4), 4, 6, 2
    )
    x, level = jax.random.normal(jax.random.key(1), (3, 4, 6, 2)), jnp.array([0, 1, 2])
    exact = gaussian_score_fn(jnp.full((4, 6, 2), 0.3), 0.16, jnp.array(SIGMAS))(x, level)
    np.testing.assert_allclose(score_fn(params, x, level), exact, rtol=1e-4, atol=1e-5)


def test_every_pixel_and_the_level_matter_once_its_last_layer_is_not_zero():
    params, score_fn = initialised(UNet(sigmas=SIGMAS, width=8), 8, 8, 1)
    params = perturbed(params)
    x = jnp.zeros((1, 8, 8, 1))
    far = jax.jit(jax.grad(lambda x: score_fn(params, x, jnp.array([1]))[0, 0, 0, 0]))(x)
    assert (np.abs(far) > 0).all()
    one, other = (
        score_fn(params, x + 0.5, jnp.array([level])) * SIGMAS[level] for level in (1, 2)
    )
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {"patch_size": 2},
        {"multipliers": (1, 2, 3), "num_blocks": (1, 1, 1), "attention": 2},
        {"multipliers": (2,), "num_blocks": (1,), "patch_size": 4},
    ],
)
def test_deeper_networks_and_patches_start_alike_and_see_every_pixel(fields):
    model = UNet(sigmas=SIGMAS, width=8, data_mean=0.3, data_std=0.4, **fields)
    params, score_fn = initialised(model, 8, 12, 2)
    x, level = jax.random.normal(jax.random.key(1), (3, 8, 12, 2)), jnp.array([0, 1, 2])
    exact = gaussian_score_fn(jnp.full((8, 12, 2), 0.3), 0.16, jnp.array(SIGMAS))(x, level)
    np.testing.assert_allclose(score_fn(params, x, level), exact, rtol=1e-4, atol=1e-5)
    params = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(2)), params)
    far = jax.jit(jax.grad(lambda x: score_fn(params, x, level)[0, 0, 0, 0]))(x)
    assert (np.abs(far[0]) > 0).all()


def test_squares_of_pixels_become_positions_and_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    positions = from_squares_to_features(x, 2)
    assert positions.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(positions[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(from_features_to_squares(positions, 2), x)


def test_examples_do_not_see_each_other():
    params, score_fn = initialised(UNet(sigmas=SIGMAS, width=8), 8, 8, 1)
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    x, level = jax.random.normal(jax.random.key(3), (5, 8, 8, 1)), jnp.array([0, 1, 2, 1, 0])
    np.testing.assert_allclose(
        score_fn(params, x[1:3], level[1:3]), score_fn(params, x, level)[1:3], rtol=1e-4, atol=1e-5
    )


def test_each_class_has_a_score_of_its_own_and_labels_must_fit():
    model = UNet(sigmas=SIGMAS, width=8, num_classes=3)
    x, level, label = (
        jax.random.normal(jax.random.key(4), (3, 8, 8, 1)),
        jnp.array([1, 1, 1]),
        jnp.array([0, 1, 2]),
    )
    params = jax.jit(model.init)(jax.random.key(0), x, level, label)["params"]
    params = perturbed(params)
    same = jnp.tile(x[:1], (3, 1, 1, 1))
    score = jax.jit(model.apply)({"params": params}, same, level, label)
    assert min(np.abs(score[0] - score[1]).max(), np.abs(score[1] - score[2]).max()) > 1e-2
    with pytest.raises(ValueError, match="num_classes=3 needs labels"):
        model.apply({"params": params}, x, level)
    with pytest.raises(ValueError, match="num_classes=None takes no labels"):
        jax.eval_shape(UNet(sigmas=SIGMAS).init, jax.random.key(0), x, level, label)


@pytest.mark.parametrize(
    ("fields", "shape", "words"),
    [
        ({}, (7, 8, 1), "cannot take 7x8: height and width must be multiples of 2"),
        ({"patch_size": 4}, (12, 16, 1), "cannot take 12x16: .* multiples of 8"),
        ({"multipliers": (1, 2, 2)}, (8, 8, 1), "must have one number for each resolution"),
        ({"multipliers": ()}, (8, 8, 1), "multipliers=.* at least one layer"),
        ({"num_blocks": (1, 0)}, (8, 8, 1), r"num_blocks\[1\]=0"),
        (
            {"attention": 3},
            (8, 8, 1),
            "attention=3 must be from 0 to the number of resolutions, 2",
        ),
        ({"width": 10}, (8, 8, 1), "width=10 must be a multiple of groups=4"),
        ({"heads": 5}, (8, 8, 1), "2 times width=24 must be a multiple of heads=5"),
        ({"groups": 0}, (8, 8, 1), "groups=0"),
        ({"data_std": 0.0}, (8, 8, 1), "data_std=0.0 must be above 0"),
    ],
)
def test_refusals(fields, shape, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(
            UNet(sigmas=SIGMAS, **fields).init,
            jax.random.key(0),
            jnp.zeros((1, *shape)),
            jnp.zeros(1, jnp.int32),
        )


def test_no_classes_may_be_written_as_0():
    assert UNet(sigmas=SIGMAS, num_classes=0) == UNet(sigmas=SIGMAS)
    assert UNet(sigmas=SIGMAS).num_classes is None


def test_images_without_a_channel_axis_are_refused():
    model = UNet(sigmas=np.array([1.0, 0.1], np.float32))
    with pytest.raises(ValueError, match=r"not \[2, 8, 8\]: grey images have one channel"):
        model.init(jax.random.key(0), jnp.zeros((2, 8, 8)), jnp.zeros(2, int))
