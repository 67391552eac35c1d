import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.data.transforms import (
    dequantize,
    inverse_logit,
    logit,
    make_prepare,
    prepare_pixels,
    random_flip,
    rescale,
    unit_scale,
)


def test_dequantized_pixels_are_uniform_within_their_value():
    pixels = np.full((20000, 1, 1, 1), 5, np.uint8)
    x = (
        np.asarray(
            dequantize(jax.random.split(jax.random.key(0), 20000), pixels, 17), np.float64
        ).ravel()
        * 17
    )
    assert x.min() >= 5
    assert x.max() <= 6
    assert_mean(x, 5.5)
    assert_mean((x - 5.5) ** 2, 1 / 12)


def test_rescaled_pixels_span_the_unit_interval():
    np.testing.assert_array_equal(
        np.asarray(rescale(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), 256)).ravel(), [0, 1]
    )


def test_flips_mirror_half_of_the_images_left_to_right():
    x = np.tile(np.arange(12.0, dtype=np.float32).reshape(1, 2, 3, 2), (4000, 1, 1, 1))
    flipped = np.asarray(random_flip(jax.random.split(jax.random.key(1), 4000), x))
    mirrored = (flipped == x[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == x).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert_mean(mirrored, 0.5)


def test_logit_is_that_of_float64():
    x = np.concatenate(
        [np.linspace(0, 1, 101), 10.0 ** -np.arange(1, 8), 1 - 2.0 ** -np.arange(1, 24)]
    ).astype(np.float32)
    for boundary in (1e-6, 0.05):
        p = boundary + (1 - 2 * boundary) * x.astype(np.float64)
        np.testing.assert_allclose(logit(x, boundary), np.log(p / (1 - p)), rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(
        logit(np.array([0, 1], np.float32)), [-np.log(1e6 - 1), np.log(1e6 - 1)], rtol=1e-6
    )


def test_inverse_logit_gives_back_what_logit_took():
    x = np.linspace(0, 1, 10001, dtype=np.float32).reshape(-1, 73)
    for boundary in (1e-6, 0.05):
        y = logit(x, boundary)
        assert y.dtype == np.float32
        np.testing.assert_allclose(inverse_logit(y, boundary), x, atol=2e-7)
    y = np.linspace(-5, 5, 101, dtype=np.float32)
    np.testing.assert_allclose(logit(inverse_logit(y)), y, atol=3e-5)
    np.testing.assert_array_equal(
        inverse_logit(np.array([-1e4, -14, 14, 1e4], np.float32)), [0, 0, 1, 1]
    )


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_logit_keeps_the_type(dtype):
    y = logit(jnp.array([0, 0.25, 1], dtype))
    x = inverse_logit(y)
    assert (y.dtype, x.dtype) == (dtype, dtype)
    assert jnp.isfinite(y).all()
    np.testing.assert_allclose(x.astype(np.float32), [0, 0.25, 1], atol=0.01)


def test_logit_keeps_float64():
    with jax.enable_x64(True):
        y = logit(np.array([0.3]))
        assert (y.dtype, inverse_logit(y).dtype) == (np.float64, np.float64)


PIXELS = np.arange(17, dtype=np.uint8).reshape(17, 1, 1, 1)


def test_unit_scale_gives_the_middle_of_what_dequantize_draws():
    middle = unit_scale(PIXELS, 17, True)
    assert middle.dtype == np.float32
    np.testing.assert_allclose(middle.ravel() * 17, np.arange(17) + 0.5, rtol=1e-6)
    drawn = np.asarray(dequantize(jax.random.split(jax.random.key(0), 17), PIXELS, 17))
    assert np.abs(drawn - middle).max() <= 0.5 / 17 + 1e-6


def test_unit_scale_agrees_with_rescale():
    scaled = unit_scale(PIXELS, 17, False)
    assert type(scaled) is np.ndarray
    np.testing.assert_array_equal(scaled, rescale(jnp.asarray(PIXELS), 17))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dequantized", [True, False])
def test_unit_scale_leaves_values_that_are_not_pixels(dtype, dequantized):
    x = np.array([[-3, 7.5]], dtype)
    scaled = unit_scale(x, None, dequantized)
    assert scaled.dtype == dtype
    np.testing.assert_array_equal(scaled, x)


def keys(number, seed=0):
    return jax.random.split(jax.random.key(seed), number)


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def three_keys(keys):
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)


@pytest.mark.parametrize("compiled", [False, True])
def test_prepare_draws_flips_and_drops_with_one_key_each(compiled):
    x, label = pixels(200, 3, 4, 2), np.arange(200, dtype=np.int32) % 7
    prepare = make_prepare(256, flip=True, logit=True, label_dropout=0.4, num_classes=7)
    draw_keys, flip_keys, drop_keys = three_keys(keys(200))

    def by_hand(x, label):
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, 0.4))(drop_keys)
        images = logit(random_flip(flip_keys, dequantize(draw_keys, x, 256)))
        return images, jnp.where(dropped, 7, label)

    def prepared(x, label):
        return prepare(keys(200), x, label)

    if compiled:
        by_hand, prepared = jax.jit(by_hand), jax.jit(prepared)
    for ours, theirs in zip(prepared(x, label), by_hand(x, label), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    dropped = np.asarray(prepared(x, label)[1]) == 7
    assert_mean(dropped, 0.4)


def test_the_default_dequantizes_pixels_of_any_shape():
    for shape in [(5, 3), (5, 4, 4, 1), (5, 2, 2, 2, 2)]:
        x, label = prepare_pixels(keys(5), pixels(*shape))
        assert (x.dtype, x.shape, label) == (np.float32, shape, None)
        np.testing.assert_array_equal(x, dequantize(three_keys(keys(5))[0], pixels(*shape), 256))
    assert prepare_pixels == make_prepare(256)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_floating_point_values_and_labels_are_left_unchanged(dtype):
    x = jnp.array([[-3, 700.5], [0, 1]], dtype)
    label = jnp.array([4, 0])
    for prepare in (prepare_pixels, make_prepare(None), make_prepare(17, dequantize=False)):
        prepared, prepared_label = prepare(keys(2), x, label)
        assert prepared.dtype == dtype
        np.testing.assert_array_equal(prepared, x)
        np.testing.assert_array_equal(prepared_label, label)


def test_prepare_without_dequantisation_is_rescale():
    x = pixels(5, 2, 2, 1) % 17
    np.testing.assert_array_equal(
        make_prepare(17, dequantize=False)(keys(5), x)[0], rescale(x, 17)
    )


def test_equal_arguments_give_equal_functions():
    first = make_prepare(17, flip=True)
    assert first == make_prepare(17, flip=True)
    assert hash(first) == hash(make_prepare(17, flip=True))
    assert first != make_prepare(17)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_values": 0}, "num_values=0 must be at least 2, or None"),
        ({"num_values": 1}, "num_values=1 must be at least 2, or None"),
        ({"label_dropout": 1.0}, r"label_dropout=1\.0 must be in \[0, 1\)"),
        ({"label_dropout": -0.1}, r"label_dropout=-0\.1 must be in"),
    ],
)
def test_arguments_of_prepare_that_are_out_of_range(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_prepare(**arguments)


def test_examples_that_cannot_be_prepared():
    with pytest.raises(ValueError, match="x is int32, but must be floating-point values or uint8"):
        prepare_pixels(keys(2), np.zeros((2, 3), np.int32))
    with pytest.raises(ValueError, match=r"flip=True needs images .* x is \[2, 3\]: set flip"):
        make_prepare(flip=True)(keys(2), np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"label_dropout=0\.1 needs num_classes"):
        make_prepare(label_dropout=0.1)(keys(2), pixels(2, 3), np.zeros(2, np.int32))
