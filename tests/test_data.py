import threading

import numpy as np
import pytest

from score_jax.data.dataset import Dataset, LazyImages, batch_index, in_memory, split_examples


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
    np.testing.assert_array_equal(
        np.concatenate([batch_index(3, step, 50, 4) for step in (10, 11)]),
        batch_index(3, 5, 50, 8),
    )


def test_a_batch_may_be_larger_than_the_data():
    assert np.bincount(batch_index(0, 2, 7, 21)).tolist() == [3] * 7


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
    assert (images.shape, images.dtype, images.nbytes, len(images)) == (
        truth.shape,
        truth.dtype,
        truth.nbytes,
        11,
    )
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


@pytest.mark.parametrize(
    ("number", "num_held_out"), [(2, 1), (9, 1), (19, 1), (20, 2), (1000, 100)]
)
def test_one_tenth_is_held_out_by_a_fixed_permutation(number, num_held_out):
    train, held_out = split_examples(number)
    assert len(held_out) == num_held_out
    assert sorted([*train, *held_out]) == list(range(number))
    assert (np.diff(train) > 0).all()
    assert (np.diff(held_out) > 0).all()
    chosen = np.random.default_rng(0).permutation(number)[:num_held_out]
    np.testing.assert_array_equal(held_out, np.sort(chosen))


@pytest.mark.parametrize("number", [0, 1])
def test_a_split_needs_two_examples(number):
    with pytest.raises(ValueError, match=f"photos needs at least 2 .*, but has {number}: add"):
        split_examples(number, "photos")


def test_a_data_set_has_no_labels_and_no_note_by_default():
    data = Dataset(np.zeros((2, 1), np.float32), np.zeros((1, 1), np.float32), num_values=None)
    assert data[2:] == (None, None, None, None, None)
