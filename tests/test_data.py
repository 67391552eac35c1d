import threading

import jax
import numpy as np
import pytest
from truths import assert_mean

from score_jax.data.dataset import LazyImages, batch_index, dequantize, in_memory, inverse_logit, logit, random_flip, rescale


def test_every_example_is_used_once_before_any_is_used_again():
    stream = np.concatenate([batch_index(3, step, 10, 4) for step in range(10)])
    for epoch in range(4):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert not np.array_equal(stream[:10], stream[10:20])


def test_a_batch_depends_on_seed_and_step_alone():
    late = batch_index(3, 1000, 50, 8)
    for step in range(20):
        batch_index(3, step, 50, 8)
    np.testing.assert_array_equal(batch_index(3, 1000, 50, 8), late)
    assert not np.array_equal(batch_index(4, 1000, 50, 8), late)
    np.testing.assert_array_equal(np.concatenate([batch_index(3, step, 50, 4) for step in (10, 11)]), batch_index(3, 5, 50, 8))


def test_a_batch_may_be_larger_than_the_data():
    assert np.bincount(batch_index(0, 2, 7, 21)).tolist() == [3] * 7


def test_dequantized_pixels_are_uniform_within_their_value():
    pixels = np.full((20000, 1, 1, 1), 5, np.uint8)
    x = np.asarray(dequantize(jax.random.split(jax.random.key(0), 20000), pixels, 17), np.float64).ravel() * 17
    assert x.min() >= 5
    assert x.max() <= 6
    assert_mean(x, 5.5)
    assert_mean((x - 5.5) ** 2, 1 / 12)


def test_rescaled_pixels_span_the_unit_interval():
    np.testing.assert_array_equal(np.asarray(rescale(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), 256)).ravel(), [0, 1])


def test_flips_mirror_half_of_the_images_left_to_right():
    x = np.tile(np.arange(12.0, dtype=np.float32).reshape(1, 2, 3, 2), (4000, 1, 1, 1))
    flipped = np.asarray(random_flip(jax.random.split(jax.random.key(1), 4000), x))
    mirrored = (flipped == x[:, :, ::-1]).all((1, 2, 3))
    kept = (flipped == x).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert_mean(mirrored, 0.5)


def test_logit_is_that_of_float64():
    x = np.concatenate([np.linspace(0, 1, 101), 10.0 ** -np.arange(1, 8), 1 - 2.0 ** -np.arange(1, 24)]).astype(np.float32)
    for boundary in (1e-6, 0.05):
        p = boundary + (1 - 2 * boundary) * x.astype(np.float64)
        np.testing.assert_allclose(logit(x, boundary), np.log(p / (1 - p)), rtol=3e-6, atol=1e-6)
    np.testing.assert_allclose(logit(np.array([0, 1], np.float32)), [-np.log(1e6 - 1), np.log(1e6 - 1)], rtol=1e-6)


def test_inverse_logit_gives_back_what_logit_took():
    x = np.linspace(0, 1, 10001, dtype=np.float32).reshape(-1, 73)
    for boundary in (1e-6, 0.05):
        y = logit(x, boundary)
        assert y.dtype == np.float32
        np.testing.assert_allclose(inverse_logit(y, boundary), x, atol=2e-7)
    y = np.linspace(-5, 5, 101, dtype=np.float32)
    np.testing.assert_allclose(logit(inverse_logit(y)), y, atol=3e-5)
    np.testing.assert_array_equal(inverse_logit(np.array([-1e4, -14, 14, 1e4], np.float32)), [0, 0, 1, 1])


def lazy(images, decoded=None):
    def decode(i):
        if decoded is not None:
            decoded.append((i, threading.get_ident()))
        if i >= len(images):
            raise AssertionError
        return images[i]

    return LazyImages(decode, len(images), images.shape[1:])


def test_lazy_images_are_indexed_as_an_array_is():
    truth = np.random.default_rng(0).integers(0, 256, (11, 2, 3, 3), dtype=np.uint8)
    images = lazy(truth)
    assert (images.shape, images.dtype, images.nbytes, len(images)) == (truth.shape, truth.dtype, truth.nbytes, 11)
    for index in (
        np.array([3, 3, 0], np.int32),
        [10, -1],
        slice(2, 9, 3),
        slice(0, 0),
        4,
        np.array([[1, 2], [3, 4]]),
        np.arange(11) > 7,
    ):
        np.testing.assert_array_equal(images[index], truth[index])
    with pytest.raises(IndexError):
        images[11]


def test_only_what_is_asked_for_is_decoded():
    decoded = []
    images = lazy(np.zeros((9, 1, 1, 1), np.uint8), decoded)
    assert images.nbytes == 9
    assert decoded == []
    images[[5, 2]]
    assert [i for i, _ in decoded] == [5, 2]


def test_in_memory_decodes_every_image_once():
    truth = np.random.default_rng(0).integers(0, 256, (333, 2, 3, 1), dtype=np.uint8)
    decoded = []
    np.testing.assert_array_equal(in_memory(lazy(truth, decoded)), truth)
    assert sorted(i for i, _ in decoded) == list(range(333))
    assert threading.get_ident() not in {thread for _, thread in decoded}
    assert in_memory(truth) is truth


def test_in_memory_raises_what_a_decoder_raises():
    def decode(i):
        if i in (200, 300):
            raise ValueError(f"image {i}")
        return np.zeros((1, 1, 1), np.uint8)

    with pytest.raises(ValueError, match="image 200"):
        in_memory(LazyImages(decode, 1000, (1, 1, 1)))
