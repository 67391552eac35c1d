import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.models.layers import (
    ConditionalInstanceNormPlus,
    Conv,
    compute_dtype,
    elu,
    flat_uniform,
    max_pool_5x5,
    mean_pool_2x2,
    mean_pool_5x5,
    resize_aligned,
)


def test_conv_with_a_centered_kernel_is_the_identity():
    x = jax.random.normal(jax.random.key(0), (1, 6, 5, 2))
    kernel = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
    for dilation in (1, 2, 4):
        y = Conv(2, dilation=dilation, use_bias=False).apply({"params": {"kernel": kernel}}, x)
        np.testing.assert_array_equal(y, x)


def test_dilation_reaches_further():
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 1].set(1.0)
    x = jnp.zeros((1, 8, 8, 1)).at[0, 3, 4, 0].set(1.0)
    y = Conv(1, dilation=2, use_bias=False).apply({"params": {"kernel": kernel}}, x)
    assert np.argwhere(y).tolist() == [[0, 5, 4, 0]]


def test_instance_norm_removes_mean_and_scale_and_adds_the_means_back():
    h = (
        3
        + 5
        * jax.random.normal(jax.random.key(1), (4, 16, 16, 6))
        * jnp.arange(1.0, 7.0)[None, None, None]
    )
    norm = ConditionalInstanceNormPlus(num_levels=2)
    embedding = jnp.concatenate(
        [jnp.ones((2, 6)), jnp.array([[0.0], [1.0]]) * jnp.ones((2, 6)), jnp.zeros((2, 6))], 1
    )
    plain = norm.apply({"params": {"embedding": embedding}}, h, jnp.zeros(4, int))
    np.testing.assert_allclose(plain.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(plain.std((1, 2)), 1, atol=1e-4)
    with_means = norm.apply({"params": {"embedding": embedding}}, h, jnp.ones(4, int))
    means = np.asarray((with_means - plain)[:, 0, 0], np.float64)
    np.testing.assert_allclose(means.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(means.std(1, ddof=1), 1, atol=1e-3)
    assert np.corrcoef(means[0], np.asarray(h.mean((1, 2)))[0])[0, 1] > 0.9999


def test_pooling():
    h = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(mean_pool_2x2(h)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    ones = mean_pool_5x5(jnp.ones((1, 6, 6, 1)))[0, :, :, 0]
    np.testing.assert_allclose(
        [ones[0, 0], ones[2, 2], ones[0, 2]], [9 / 25, 1, 15 / 25], rtol=1e-6
    )


@pytest.mark.parametrize("size", [(8, 6), (5, 9), (4, 3)])
def test_resize_keeps_linear_functions_and_corners(size):
    rows, columns = jnp.linspace(0, 1, 4), jnp.linspace(0, 1, 3)
    h = (2 * rows[:, None] - 3 * columns[None])[None, :, :, None]
    expected = 2 * np.linspace(0, 1, size[0])[:, None] - 3 * np.linspace(0, 1, size[1])[None]
    np.testing.assert_allclose(resize_aligned(h, size)[0, :, :, 0], expected, atol=1e-6)


def test_flat_uniform_equals_a_shaped_draw():
    key = jax.random.key(2)
    np.testing.assert_array_equal(
        flat_uniform(0.5)(key, (3, 3, 2, 4)),
        jax.random.uniform(key, (3, 3, 2, 4), minval=-0.5, maxval=0.5),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2**-6)])
def test_derivatives_of_the_norm_are_those_of_its_definition(dtype, tolerance):
    """First and second ones: the sliced objective needs both. The latter rounds to 2^-9."""
    h, v = 2 + jax.random.normal(jax.random.key(2), (2, 2, 4, 4, 5)).astype(dtype)
    embedding = 1 + 0.3 * jax.random.normal(jax.random.key(3), (1, 15))

    def defined(h):
        gamma, alpha, beta = jnp.split(embedding[:, None, None], 3, axis=-1)
        mu = h.mean((1, 2), keepdims=True)
        variance = ((h - mu) ** 2).mean((1, 2), keepdims=True)
        of_means = ((mu - mu.mean(-1, keepdims=True)) ** 2).sum(-1, keepdims=True) / 4
        normalized = (h - mu) / jnp.sqrt(variance + 1e-5) + alpha * (
            mu - mu.mean(-1, keepdims=True)
        ) / jnp.sqrt(of_means + 1e-5)
        return gamma * normalized + beta

    def ours(h):
        return ConditionalInstanceNormPlus(num_levels=1).apply(
            {"params": {"embedding": embedding}}, h, jnp.zeros(2, int)
        )

    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(norm, h, v):
        gradient = jax.grad(lambda h: jnp.sum(norm(h) ** 3))
        return [
            norm(h),
            *jax.jvp(gradient, (h,), (v,)),
            jax.grad(lambda h: jnp.sum(jax.jvp(norm, (h,), (v,))[1] ** 2))(h),
        ]

    wide = derivatives(defined, h.astype(jnp.float32), v.astype(jnp.float32))
    for found, expected in zip(derivatives(ours, h, v), wide, strict=True):
        found = np.asarray(found, np.float32)
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


def test_the_maximum_of_5x5_is_that_of_every_square_and_its_gradient_goes_there():
    h = jax.random.normal(jax.random.key(4), (2, 7, 6, 3))
    padded = np.pad(h, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=-np.inf)
    squares = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    np.testing.assert_array_equal(max_pool_5x5(h), squares.max((-2, -1)))
    gradient = jax.grad(lambda h: max_pool_5x5(h).sum())(h)
    for value, times in zip(*np.unique(squares.max((-2, -1)), return_counts=True), strict=True):
        assert gradient[h == value] == times


def test_elu():
    x = jnp.linspace(-20, 20, 4001)
    np.testing.assert_allclose(
        elu(x), np.where(x > 0, x, np.expm1(np.minimum(np.float64(x), 0))), atol=1.5e-7
    )
    np.testing.assert_allclose(
        jax.vmap(jax.grad(elu))(x), np.where(x > 0, 1, np.exp(np.minimum(x, 0))), rtol=1e-5
    )
    assert jax.grad(elu)(1000.0) == 1


def test_only_two_precisions_are_offered():
    assert compute_dtype("bfloat16") == jnp.bfloat16
    with pytest.raises(ValueError, match="dtype='float16' is not supported: choose float32 or"):
        compute_dtype("float16")
