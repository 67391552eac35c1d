import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from truths import assert_mean

from score_jax.data import sources
from score_jax.data.dataset import batch_index, dequantize, random_flip, rescale


def test_digits_are_scikit_learns_in_the_stated_split():
    table, order = load_digits(), np.random.RandomState(0).permutation(1797)
    data = sources.digits()
    assert data.train.dtype == np.uint8
    assert data.num_values == 17
    assert data.num_classes == 10
    np.testing.assert_array_equal(data.train_labels, table.target[order[:1500]])
    np.testing.assert_array_equal(data.held_out_labels, table.target[order[1500:]])
    np.testing.assert_array_equal(data.train[..., 0], table.images[order[:1500]])
    np.testing.assert_array_equal(data.held_out[..., 0], table.images[order[1500:]])


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


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def images(number, *shape, dtype=np.uint8):
    return np.zeros((number, *shape), dtype)


def test_npz_round_trip(tmp_path):
    train = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    data = sources.npz(write(tmp_path / "x.npz", train=train, held_out=train[:2]))
    np.testing.assert_array_equal(data.train, train)
    assert data.held_out.shape == (2, 4, 6, 3)
    assert data.num_values == 256


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train": images(2, 4, 4, 1)}, "lacks the array 'held_out'"),
        ({"train": images(2, 4, 4), "held_out": images(1, 4, 4)}, r"train is uint8 \[2, 4, 4\]"),
        ({"train": images(2, 4, 4, 1, dtype=np.float32), "held_out": images(1, 4, 4, 1)}, "train is float32"),
        ({"train": images(2, 4, 4, 1), "held_out": images(0, 4, 4, 1)}, "not empty"),
        ({"train": images(2, 4, 4, 1), "held_out": images(1, 4, 5, 1)}, "must agree"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, words):
    with pytest.raises(ValueError, match=words):
        sources.npz(write(tmp_path / "x.npz", **arrays))


def test_npz_that_is_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        sources.npz(str(tmp_path / "none.npz"))
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=r"x\.npz cannot be read"):
        sources.npz(str(tmp_path / "x.npz"))
