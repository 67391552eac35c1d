"""Rules that every objective keeps: dtypes, keys, levels, complex data, empty batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.losses.dsm import annealed_dsm
from score_jax.losses.implicit import annealed_implicit, implicit
from score_jax.losses.ssm import annealed_ssm, ssm
from score_jax.noise import geometric_sigmas

SIGMAS = geometric_sigmas(1.0, 0.1, 4)
LOSSES = {
    "dsm": annealed_dsm,
    "ssm": annealed_ssm,
    "implicit": annealed_implicit,
    "ssm_clean": ssm,
    "implicit_clean": implicit,
}


@pytest.fixture(params=LOSSES)
def loss_fn(request):
    return LOSSES[request.param]


def pull(x, level):
    return -x


def draws(number):
    x = jax.random.normal(jax.random.key(1), (number, 3))
    return jax.random.split(jax.random.key(0), number), x, jnp.arange(number) % 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_data_give_float32_losses(loss_fn, dtype):
    keys, x, level = draws(6)
    narrow = loss_fn(keys, pull, x.astype(dtype), level, SIGMAS)
    assert narrow.dtype == "float32"
    wide = loss_fn(keys, pull, x, level, SIGMAS)
    assert wide.dtype == "float32"
    np.testing.assert_allclose(narrow, wide, rtol=0.1, atol=0.1)


def test_under_x64_losses_have_the_dtype_of_the_data(loss_fn):
    keys, x, level = draws(6)
    expected = loss_fn(keys, pull, x, level, SIGMAS)
    with jax.enable_x64(True):
        for sigmas in (np.asarray(SIGMAS), np.asarray(SIGMAS, np.float64)):
            single = loss_fn(keys, pull, x, level, sigmas)
            assert single.dtype == "float32"
            np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-5)
        double = loss_fn(keys, pull, jnp.asarray(np.asarray(x, np.float64)), level, SIGMAS)
        assert double.dtype == "float64"


def test_one_key_for_several_examples_is_an_error(loss_fn):
    keys, x, level = draws(3)
    with pytest.raises(ValueError, match=r"keys have shape \[1\], but x is a batch of 3"):
        loss_fn(keys[:1], pull, x, level, SIGMAS)


def test_complex_data_are_an_error(loss_fn):
    keys, x, level = draws(3)
    with pytest.raises(ValueError, match="give the real and the imaginary part as two channels"):
        loss_fn(keys, pull, x.astype(jnp.complex64), level, SIGMAS)


def test_levels_out_of_range_are_errors(loss_fn):
    keys, x, _ = draws(3)
    with pytest.raises(ValueError, match="level=-1 is out of range"):
        loss_fn(keys, pull, x, np.array([0, -1, 1]), SIGMAS)


@pytest.mark.parametrize("name", ["dsm", "ssm", "implicit"])
def test_levels_above_the_last_are_errors_where_levels_are_perturbed(name):
    keys, x, _ = draws(3)
    with pytest.raises(ValueError, match="level=4 is out of range: levels are from 0 to 3"):
        LOSSES[name](keys, pull, x, np.array([0, 4, 1]), SIGMAS)


def test_traced_levels_are_not_checked(loss_fn):
    keys, x, level = draws(4)
    found = jax.jit(lambda level: loss_fn(keys, pull, x, level, SIGMAS))(level)
    np.testing.assert_allclose(found, loss_fn(keys, pull, x, level, SIGMAS), rtol=1e-5, atol=1e-6)


def test_an_empty_batch_gives_an_empty_result(loss_fn):
    keys, x, level = draws(2)
    assert loss_fn(keys[:0], pull, x[:0], level[:0], SIGMAS).shape == (0,)
