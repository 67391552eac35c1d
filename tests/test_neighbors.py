import numpy as np
import pytest

from score_jax.evaluation.neighbors import nearest_neighbors


@pytest.mark.parametrize("block_size", [3, 1000, None])
def test_neighbors_are_those_of_a_full_sort(block_size):
    rng = np.random.default_rng(0)
    x, examples = rng.normal(size=(5, 2, 3)), rng.normal(size=(40, 2, 3))
    every = np.linalg.norm((x[:, None] - examples[None]).reshape(5, 40, 6), axis=2)
    index, distance = nearest_neighbors(x, examples, 4, block_size=block_size)
    np.testing.assert_array_equal(index, np.argsort(every, axis=1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(every, axis=1)[:, :4])


def test_an_example_is_its_own_nearest_neighbor():
    examples = np.random.default_rng(1).uniform(size=(30, 8, 8, 1)).astype(np.float32)
    index, distance = nearest_neighbors(examples[7:9], examples, 1)
    assert index[:, 0].tolist() == [7, 8]
    np.testing.assert_allclose(distance, 0, atol=1e-6)


@pytest.mark.parametrize("number", [0, 31])
def test_a_number_out_of_range_is_an_error(number):
    with pytest.raises(
        ValueError, match=f"number={number} must be between 1 and the number of examples, 30"
    ):
        nearest_neighbors(np.zeros((1, 2)), np.zeros((30, 2)), number)


def test_a_block_size_below_1_is_an_error():
    with pytest.raises(ValueError, match="block_size=0 must be at least 1"):
        nearest_neighbors(np.zeros((1, 2)), np.zeros((30, 2)), 1, block_size=0)
