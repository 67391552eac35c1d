import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.noise import (
    checked_sigmas,
    example_keys,
    geometric_sigmas,
    normal_levels,
    perturb,
    standard_normal,
    standard_uniform,
    stratified_levels,
    uniform_levels,
)


def test_geometric_sigmas_have_a_constant_ratio_and_the_given_ends():
    sigmas = np.asarray(geometric_sigmas(50.0, 0.01, 232), np.float64)
    assert len(sigmas) == 232
    np.testing.assert_allclose(sigmas[[0, -1]], [50.0, 0.01], rtol=1e-6)
    np.testing.assert_allclose(sigmas[1:] / sigmas[:-1], (0.01 / 50.0) ** (1 / 231), rtol=1e-6)


def test_a_single_level():
    np.testing.assert_array_equal(geometric_sigmas(0.01, 0.01, 1), np.float32([0.01]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((1.0, 2.0, 3), "sigma_max=1.0"),
        ((1.0, 0.0, 3), "sigma_min=0.0"),
        ((1.0, 0.1, 0), "num_levels=0"),
        ((1.0, 1.0, 3), "do not decrease"),
        ((1.0, 0.5, 1), "do not decrease"),
        ((float("inf"), 0.5, 3), "finite"),
    ],
)
def test_bad_sigmas_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        geometric_sigmas(*arguments)


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([1.0, 2.0], r"sigmas\[0\]=1 is followed by 2"),
        ([1.0, 1.0], "decrease"),
        ([[1.0]], "one-dimensional"),
        ([1.0, -1.0], "positive"),
        ([np.nan], "finite"),
        ([], "empty"),
    ],
)
def test_checked_sigmas_refuses(sigmas, words):
    with pytest.raises(ValueError, match=words):
        checked_sigmas(np.array(sigmas))


def test_what_an_example_draws_depends_on_its_index_alone():
    key = jax.random.key(7)
    whole = standard_normal(example_keys(key, np.arange(6)), (4, 4, 3))
    part = standard_normal(example_keys(key, np.array([4, 1])), (4, 4, 3))
    np.testing.assert_array_equal(part, whole[np.array([4, 1])])

    def draw(index):
        return standard_normal(example_keys(key, index), (4, 4, 3))

    one = jax.pmap(draw, devices=jax.devices()[:1])(np.arange(6).reshape(1, 6))
    two = jax.pmap(draw)(np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(np.asarray(two).reshape(whole.shape), np.asarray(one)[0])
    # Compiled and not, the last bit of the normal's inverse may differ.
    np.testing.assert_allclose(one[0], whole, rtol=3e-7)


def test_flat_draws_are_those_of_the_full_shape():
    keys = jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(
        standard_normal(keys, (5, 3, 2)), jax.vmap(lambda k: jax.random.normal(k, (5, 3, 2)))(keys)
    )
    np.testing.assert_array_equal(
        standard_uniform(keys, (5, 3, 2)),
        jax.vmap(lambda k: jax.random.uniform(k, (5, 3, 2)))(keys),
    )


def test_noise_is_standard_normal_and_independent():
    x = np.asarray(
        standard_normal(example_keys(jax.random.key(1), np.arange(20000)), (2,)), np.float64
    )
    assert_mean(x[:, 0], 0, "mean")
    assert_mean(x[:, 0] ** 2, 1, "variance")
    assert_mean(x[:, 0] ** 4, 3, "fourth moment")
    assert_mean(x[:, 0] * x[:, 1], 0, "within an example")
    assert_mean(x[:-1, 0] * x[1:, 0], 0, "between examples")


@pytest.mark.parametrize("draw", [uniform_levels, stratified_levels])
def test_each_level_is_drawn_equally_often(draw):
    index, count = np.arange(50), 400
    levels = jax.jit(jax.vmap(lambda k: draw(k, index, batch_size=50, num_levels=7)))(
        jax.random.split(jax.random.key(2), count)
    )
    levels = np.asarray(levels)
    assert levels.dtype == np.int32
    assert levels.min() == 0
    assert levels.max() == 6
    # Any example by itself, and the batch as a whole.
    for k in range(7):
        assert_mean(levels[:, 11] == k, 1 / 7, f"example 11, level {k}")
        assert abs((levels == k).mean() - 1 / 7) < 5 * np.sqrt(6 / 49 / levels.size)


def test_stratified_levels_cover_all_levels_in_every_batch():
    levels = np.asarray(
        stratified_levels(jax.random.key(3), np.arange(64), batch_size=64, num_levels=16)
    )
    np.testing.assert_array_equal(np.bincount(levels, minlength=16), 4)
    halves = [
        stratified_levels(jax.random.key(3), np.arange(32) + 32 * d, batch_size=64, num_levels=16)
        for d in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), levels)


def test_normal_levels_have_the_frequencies_of_a_normal_distribution():
    """Stratified: within one example of n Phi(6 (level / num_levels - 1/2)), and on any device."""
    n, num_levels, key = 4096, 24, jax.random.key(5)
    found = np.asarray(normal_levels(key, np.arange(n), batch_size=n, num_levels=num_levels))
    below = np.array([(found < level).sum() for level in range(1, num_levels)])
    position = 6 * (np.arange(1, num_levels) / num_levels - 0.5)
    expected = [n * (1 + math.erf(x / math.sqrt(2))) / 2 for x in position]
    np.testing.assert_allclose(below, expected, atol=1.5)
    assert found.min() == 0
    assert found.max() == num_levels - 1
    part = normal_levels(key, np.arange(100, 200), batch_size=n, num_levels=num_levels)
    np.testing.assert_array_equal(part, found[100:200])


def test_perturb_uses_each_examples_own_level():
    x, noise = jnp.ones((2, 3, 1)), jnp.full((2, 3, 1), 2.0)
    np.testing.assert_allclose(
        perturb(x, noise, np.array([1, 0]), np.array([10.0, 0.5]))[:, 0, 0], [2.0, 21.0]
    )
