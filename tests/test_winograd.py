import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.ops.winograd import convolve


def by_definition(x, kernel, dilation):
    """The sum over taps of shifted images, in float64."""
    x, kernel = np.float64(x), np.float64(kernel)
    reach = dilation * (len(kernel) // 2)
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    height, width = x.shape[1:3]
    return sum(
        padded[:, p * dilation : p * dilation + height, q * dilation : q * dilation + width]
        @ kernel[p, q]
        for p in range(len(kernel))
        for q in range(len(kernel))
    )


def drawn(batch, height, width, features, out, size=3):
    rng = np.random.default_rng(0)
    x, g = (
        rng.normal(size=(batch, height, width, features)),
        rng.normal(size=(batch, height, width, out)),
    )
    return np.float32(x), np.float32(rng.normal(size=(size, size, features, out))), np.float32(g)


# From 32 features on, convolutions are by tiles of 4x4 pixels, or of 2x2 if those are fewer
# products (the fifth case from the end); results of 8 to 16 features and even width are by
# neighbouring columns; all others directly. The kernel's gradient is by tiles from 24 features on;
# from 8 on, on large maps, by shifted images. Odd sizes and those that the dilation does not
# divide are padded. The last four are divided into blocks of images.
CASES = [
    ((2, 8, 6, 3, 5), 1),
    ((4, 7, 9, 16, 24), 1),
    ((2, 8, 8, 32, 40), 1),
    ((1, 7, 5, 33, 32), 1),
    ((2, 8, 8, 32, 32), 2),
    ((1, 14, 10, 32, 32), 4),
    ((2, 6, 6, 64, 66), 1),
    ((3, 9, 6, 64, 64), 2),
    ((2, 4, 4, 40, 32, 1), 1),
    ((1, 6, 6, 34, 32, 5), 1),
    ((3, 5, 8, 5, 16), 1),
    ((3, 2, 6, 32, 40), 1),
    ((8, 24, 24, 32, 32), 1),
    ((6, 24, 24, 32, 36), 2),
    ((4, 32, 32, 16, 40), 1),
    ((3, 25, 21, 8, 12), 2),
]


@pytest.mark.parametrize(("shape", "dilation"), CASES)
def test_is_the_convolution_and_its_gradients_are(shape, dilation):
    x, kernel, g = drawn(*shape)
    y, gradients = jax.jit(
        lambda x, kernel: jax.vjp(lambda *a: convolve(*a, dilation), x, kernel)
    )(x, kernel)
    expected = by_definition(x, kernel, dilation)
    assert np.linalg.norm(y - expected) < 2e-6 * np.linalg.norm(expected)
    # <g, conv(dx, k)> = <dx, gradient>, and the same for the kernel.
    rng = np.random.default_rng(1)
    for i, gradient in enumerate(jax.jit(gradients)(g)):
        d = np.float32(rng.normal(size=gradient.shape))
        change = by_definition(*((d, kernel) if i == 0 else (x, d)), dilation)
        expected, scale = np.sum(g * change), np.linalg.norm(g) * np.linalg.norm(change)
        assert abs(np.sum(np.float64(gradient) * d) - expected) < 1e-6 * scale


@pytest.mark.parametrize(("shape", "dilation"), [((1, 6, 6, 32, 32), 1), ((1, 6, 4, 3, 2), 2)])
def test_is_bilinear_through_every_derivative(shape, dilation):
    """For L = sum conv(x, k)^2 / 2, along d in both arguments,

    L'' = |conv(d, k) + conv(x, d)|^2 + 2 <conv(x, k), conv(d, d)>.
    """
    x, kernel, _ = drawn(*shape)
    dx, dk = np.roll(x, 1, axis=1), kernel[::-1]
    loss = lambda x, kernel: 0.5 * jnp.sum(convolve(x, kernel, dilation) ** 2)  # noqa: E731
    first, second = jax.jit(lambda: jax.jvp(jax.grad(loss, (0, 1)), (x, kernel), (dx, dk)))()
    mixed = by_definition(dx, kernel, dilation) + by_definition(x, dk, dilation)
    y = by_definition(x, kernel, dilation)
    expected = np.sum(mixed**2) + 2 * np.sum(y * by_definition(dx, dk, dilation))
    np.testing.assert_allclose(
        np.sum(second[0] * dx) + np.sum(second[1] * dk), expected, rtol=1e-4
    )
    np.testing.assert_allclose(np.sum(first[0] * x), np.sum(y**2), rtol=1e-5)

    # Backwards over backwards, too.
    def squared(x, kernel):
        return sum(jnp.sum(v**2) for v in jax.grad(loss, (0, 1))(x, kernel))

    outer = jax.jit(jax.grad(squared, (0, 1)))(x, kernel)
    step = 1e-3
    slope = (
        squared(x + step * dx, kernel + step * dk) - squared(x - step * dx, kernel - step * dk)
    ) / (2 * step)
    np.testing.assert_allclose(np.sum(outer[0] * dx) + np.sum(outer[1] * dk), slope, rtol=5e-3)


def test_eager_jitted_mapped_and_in_a_loop_are_alike():
    x, kernel, g = drawn(3, 8, 8, 32, 32)
    eager = convolve(x, kernel)
    np.testing.assert_allclose(
        jax.vmap(convolve, (0, None))(x[:, None], kernel)[:, 0], eager, atol=2e-4
    )
    np.testing.assert_allclose(
        jax.vmap(convolve, (None, 0))(x, jnp.stack([kernel, 2 * kernel]))[1], 2 * eager, atol=2e-4
    )
    # The kernel is an argument, since XLA rounds products of constants in another way.
    looped = jax.jit(
        lambda x, kernel: jax.lax.scan(lambda c, _: (c, convolve(c, kernel)), x, None, length=2)[
            1
        ][1]
    )(x, kernel)
    np.testing.assert_allclose(looped, eager, atol=1e-5)

    def gradient(x, g):
        return jax.vjp(lambda k: convolve(x, k), kernel)[1](g)[0]

    np.testing.assert_allclose(
        jax.vmap(gradient)(x[:, None], g[:, None]).sum(0), gradient(x, g), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("shape", [(4, 8, 8, 32, 32), (4, 32, 32, 32, 64), (4, 32, 32, 16, 24)])
def test_within_shard_map_gradients_of_shared_weights_are_summed(shape):
    x, kernel, g = drawn(*shape)
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def gradient(x, kernel, g):
        return jax.grad(lambda kernel: jnp.sum(convolve(x, kernel) * g))(kernel)

    split = jax.shard_map(
        gradient, mesh=mesh, in_specs=(spec("devices"), spec(), spec("devices")), out_specs=spec()
    )
    np.testing.assert_allclose(
        jax.jit(split)(x, kernel, g), gradient(x, kernel, g), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("features", [8, 32])
def test_a_batch_of_any_size_can_be_exported(features):
    x, kernel, _ = drawn(6, 32, 32, features, features)
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [
        jax.ShapeDtypeStruct((batch, *x.shape[1:]), jnp.float32),
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
    ]
    program = jax.export.export(jax.jit(convolve))(*shapes)
    for given in (x, x[:1]):
        np.testing.assert_allclose(program.call(given, kernel), convolve(given, kernel), atol=1e-3)


def test_other_platforms_get_xlas_own_convolution():
    shape = (
        jax.ShapeDtypeStruct((1, 8, 8, 32), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 32, 32), jnp.float32),
    )
    texts = {
        platform: jax.jit(convolve).trace(*shape).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "stablehlo.convolution" not in texts["cpu"]
    assert all(texts[name].count("stablehlo.convolution") == 1 for name in ("cuda", "tpu"))


def test_an_empty_batch_gives_an_empty_result_and_no_gradient():
    _, kernel, _ = drawn(1, 8, 8, 64, 64)
    y, gradients = jax.vjp(convolve, jnp.zeros((0, 8, 8, 64)), kernel)
    assert y.shape == (0, 8, 8, 64)
    np.testing.assert_array_equal(gradients(y)[1], 0)
