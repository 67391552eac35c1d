import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from score_jax.operators import (
    adjoint,
    block_mean,
    blur,
    grayscale,
    mask,
    masked_fourier,
    random_projections,
    sum_of_sources,
)

RNG = np.random.default_rng(0)
KNOWN = RNG.random((6, 8)) < 0.5
COILS = (RNG.normal(size=(3, 6, 8)) + 1j * RNG.normal(size=(3, 6, 8))).astype(np.complex64)
COLOUR, COMPLEX, GREY = (6, 8, 3), (6, 8, 2), (6, 8, 1)

# Name -> operator, shape of one example.
OPERATORS = {
    "mask of pixels": (mask(KNOWN), COLOUR),
    "mask of entries": (mask(np.repeat(KNOWN[..., None], 3, 2)), COLOUR),
    "grayscale": (grayscale(), COLOUR),
    "block mean": (block_mean(2), COLOUR),
    "blur": (blur(1.3), COLOUR),
    "wide blur": (blur(5.0), (6, 8)),
    "projections": (random_projections(jax.random.key(0), COLOUR, 20), COLOUR),
    "Fourier, real": (masked_fourier(KNOWN), GREY),
    "Fourier, complex": (masked_fourier(KNOWN), COMPLEX),
    "Fourier, coils": (masked_fourier(KNOWN, COILS), COMPLEX),
    "Fourier, real, coils": (masked_fourier(KNOWN, COILS), GREY),
    "sources": (sum_of_sources(4), (4, *GREY)),
}


@jax.jit
def run(operator, x):
    """One program instead of one for each operation."""
    return operator(x)


@pytest.fixture(params=OPERATORS)
def case(request):
    operator, shape = OPERATORS[request.param]
    return operator, RNG.normal(size=(3, *shape)).astype(np.float32)


def measured(name, x):
    """The operator of that name and its measurement of `x`, in float64."""
    operator = OPERATORS[name][0]
    return np.asarray(run(operator, jnp.asarray(x, jnp.float32)), np.float64)


def test_adjoint_of_every_operator(case):
    """<A x, y> = <x, A^T y>, relative to the norms of both sides, for every example."""
    operator, x = case
    forward = np.asarray(run(operator, x), np.float64)
    y = RNG.normal(size=forward.shape)
    transposed = jax.jit(adjoint(operator, x))
    backward = np.asarray(transposed(jnp.asarray(y, jnp.float32)), np.float64)
    assert backward.shape == x.shape
    for i in range(len(x)):
        left, right = np.vdot(forward[i], y[i]), np.vdot(x[i], backward[i])
        scale = np.linalg.norm(forward[i]) * np.linalg.norm(y[i])
        assert abs(left - right) < 1e-5 * scale


def test_every_operator_is_linear_in_each_example_by_itself(case):
    operator, x = case
    whole = run(operator, x)
    combined = run(operator, np.repeat(2 * x[:1] - 0.5 * x[1:2], 3, axis=0))
    np.testing.assert_allclose(combined[0], 2 * whole[0] - 0.5 * whole[1], rtol=1e-4, atol=1e-4)


def test_every_operator_is_a_pytree_that_keeps_the_dtype(case):
    operator, x = case
    assert all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(operator))
    half = run(operator, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), run(operator, x), rtol=0.1, atol=0.1)
    empty = jax.eval_shape(operator, jax.ShapeDtypeStruct((0, *x.shape[1:]), x.dtype))
    assert empty.shape == (0, *half.shape[1:])


def test_equal_settings_share_one_compiled_program():
    traces = []

    @jax.jit
    def counted(operator, x):
        traces.append(1)
        return operator(x)

    x = jnp.ones((2, 6, 8, 3))
    for make in (lambda i: block_mean(2), lambda i: blur(1.0 + i / 100), lambda i: grayscale()):
        before = len(traces)
        for i in range(3):
            counted(make(i), x)
        assert len(traces) == before + 1


def test_mask_keeps_the_known_pixels():
    x = RNG.normal(size=(3, *COLOUR))
    np.testing.assert_allclose(measured("mask of pixels", x), x[:, KNOWN], rtol=1e-6)
    entries = np.repeat(KNOWN[..., None], 3, 2)
    np.testing.assert_allclose(measured("mask of entries", x), x[:, entries], rtol=1e-6)


def test_grayscale_is_the_weighted_sum():
    x = RNG.normal(size=(3, *COLOUR))
    expected = 0.299 * x[..., :1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:]
    np.testing.assert_allclose(measured("grayscale", x), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grayscale()(np.ones((1, 2, 2, 3), np.float32)), 1, rtol=1e-6)


def test_block_mean_is_the_mean_of_each_block():
    x = RNG.normal(size=(3, *COLOUR))
    found = measured("block mean", x)
    assert found.shape == (3, 3, 4, 3)
    for i in range(3):
        for j in range(4):
            block = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            np.testing.assert_allclose(found[:, i, j], block.mean((1, 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "std"), [("blur", 1.3), ("wide blur", 5.0)])
def test_blur_is_that_of_scipy(name, std):
    x = RNG.normal(size=(3, *OPERATORS[name][1]))
    expected = gaussian_filter1d(gaussian_filter1d(x, std, 1), std, 2)
    np.testing.assert_allclose(measured(name, x), expected, atol=1e-5)


def test_blur_keeps_constants_and_means_and_is_its_own_adjoint():
    x = RNG.normal(size=(3, *COLOUR)).astype(np.float32)
    operator = blur(1.3)
    blurred = np.asarray(run(operator, x))
    np.testing.assert_allclose(run(operator, np.ones_like(x)), 1, rtol=1e-5)
    np.testing.assert_allclose(blurred.mean((1, 2)), x.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(jax.jit(adjoint(operator, x))(x), blurred, atol=1e-5)


def test_projections_have_unit_rows_of_mean_zero():
    x = np.eye(144).reshape(144, *COLOUR)
    rows = measured("projections", x).T
    assert rows.shape == (20, 144)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    # The mean of n entries of variance 1 / 144 each.
    assert abs(rows.mean()) < 5 / np.sqrt(144 * rows.size)
    inner = rows @ rows.T
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 5 / np.sqrt(144)


def as_complex(y):
    return y[..., 0] + 1j * y[..., 1]


@pytest.mark.parametrize("coils", [None, COILS])
@pytest.mark.parametrize("shape", [GREY, COMPLEX])
def test_masked_fourier_is_that_of_numpy(coils, shape):
    x = RNG.normal(size=(3, *shape))
    image = x[..., 0] if shape == GREY else as_complex(x)
    found = run(masked_fourier(KNOWN, coils), jnp.asarray(x, jnp.float32))
    found = as_complex(np.asarray(found))
    if coils is None:
        expected = np.fft.fft2(image, norm="ortho")[:, KNOWN]
    else:
        expected = np.fft.fft2(coils[None] * image[:, None], norm="ortho")[:, :, KNOWN]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_whole_fourier_transform_is_unitary():
    x = RNG.normal(size=(3, *COMPLEX)).astype(np.float32)
    operator = masked_fourier(np.ones((6, 8), bool))
    y = run(operator, x)
    np.testing.assert_allclose(jax.jit(adjoint(operator, x))(y), x, atol=1e-5)
    np.testing.assert_allclose((np.asarray(y) ** 2).sum(), (x**2).sum(), rtol=1e-5)


def test_sources_are_summed():
    x = RNG.normal(size=(3, 4, *GREY))
    np.testing.assert_allclose(measured("sources", x), x.sum(1), rtol=1e-4, atol=1e-6)


def test_any_linear_function_has_an_adjoint():
    x = RNG.normal(size=(3, *GREY)).astype(np.float32)
    backward = jax.jit(adjoint(lambda x: jnp.cumsum(x, axis=1)[:, ::2], x))
    y = RNG.normal(size=(3, 3, 8, 1)).astype(np.float32)
    left = (np.cumsum(x, 1)[:, ::2] * y).sum()
    np.testing.assert_allclose((x * np.asarray(backward(y))).sum(), left, rtol=1e-4)


def images(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mask(np.zeros((2, 2), bool)), "False everywhere"),
        (lambda: mask(KNOWN)(images(2, 8, 6, 1)), r"x is \[2, 8, 6, 1\], but the mask \[6, 8\]"),
        (lambda: grayscale()(images(2, 4, 4, 1)), r"need \[batch, ..., 3\]"),
        (lambda: grayscale(()), "one weight per channel"),
        (lambda: block_mean(0), "factor=0 must be at least 1"),
        (lambda: block_mean(4)(images(2, 8, 6, 1)), "factor=4 must divide .* 8x6"),
        (lambda: block_mean(2)(images(2, 8)), r"must be images \[batch, height, width, ...\]"),
        (lambda: blur(0.0), "std=0.0 must be positive"),
        (lambda: random_projections(jax.random.key(0), (4,), 0), "num=0"),
        (
            lambda: random_projections(jax.random.key(0), (4,), 2)(images(2, 5)),
            r"x is \[2, 5\], but these projections are of arrays \[batch, 4\]",
        ),
        (lambda: masked_fourier(KNOWN, COILS[:, :3]), r"sensitivities are \[3, 3, 8\]"),
        (lambda: masked_fourier(KNOWN)(images(2, 6, 8, 3)), "1 channel"),
        (lambda: sum_of_sources(0), "num=0 must be at least 1"),
        (lambda: sum_of_sources(2)(images(2, 3, 4)), r"2 sources need \[batch, 2, ...\]"),
        (lambda: adjoint(jnp.sin, images(2, 3)), "not a linear JAX function"),
        (lambda: jax.jit(mask)(KNOWN), "mask is traced"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
