"""Calibration of exact scores, and the faults that it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax.analytic import full_gaussian_score_fn, mixture_score_fn
from score_jax.evaluation.calibration import (
    Residuals,
    calibrate,
    calibration_warnings,
    gaussian_residual,
    residuals,
)
from score_jax.evaluation.diagnostics import ChainObserver, data_moments, diagnose, warnings_of
from score_jax.evaluation.objective import evaluate, map_examples
from score_jax.fitting import fit
from score_jax.losses.dsm import annealed_dsm
from score_jax.network import score_fn
from score_jax.noise import geometric_sigmas
from score_jax.sampling import sample
from score_jax.training import make_trainer

SIGMAS = geometric_sigmas(2.0, 0.05, 6)
SHAPE = (4, 4, 1)
VARIANCES = np.geomspace(0.01, 1.0, 16).astype(np.float32)
BASIS = np.linalg.qr(np.random.default_rng(3).standard_normal((16, 16)))[0].astype(np.float32)
COVARIANCE = (BASIS * VARIANCES) @ BASIS.T


def examples(number=1500):
    z = np.random.default_rng(4).standard_normal((number, 16))
    return ((z * np.sqrt(VARIANCES)) @ BASIS.T).reshape(number, *SHAPE).astype(np.float32)


def exact_score_fn():
    flat = full_gaussian_score_fn(np.zeros(16, np.float32), COVARIANCE, SIGMAS)
    return lambda x, level: flat(x.reshape(len(x), 16), level).reshape(x.shape)


def calibration(function, x, sigmas=SIGMAS, eigenvalues=VARIANCES):
    found = map_examples(residuals, function, x, sigmas, batch_size=500, progress=False)
    return calibrate(Residuals(*(part[0] for part in found)), sigmas, eigenvalues)


def test_an_exact_score_is_calibrated():
    """On a Gaussian the exact score is the best linear denoiser: every target is met."""
    rows = calibration(exact_score_fn(), examples())
    assert calibration_warnings(rows, SIGMAS) == []
    bound = gaussian_residual(SIGMAS, VARIANCES)
    for row, least in zip(rows, bound, strict=True):
        assert abs(row["slope"] - 1) < 5 * row["slope_error"]
        assert abs(row["residual"] - least) < 5 * row["residual_error"]
        assert row["gaussian_residual"] == pytest.approx(least)
        assert row["bias"] < 2 * row["bias_error"]
    # Far below the details of the data the residual is nearly the noise itself, which is white.
    assert abs(rows[-1]["whiteness"]) < abs(rows[0]["whiteness"]) + 5 * rows[-1]["whiteness_error"]


def test_a_mixture_lies_below_the_linear_bound():
    x = np.random.default_rng(0).choice([-1.0, 1.0], (2000, 1)) + np.zeros((2000, 4))
    x = (x + 0.1 * np.random.default_rng(1).standard_normal(x.shape)).astype(np.float32)
    weights, means = np.float32([0.5, 0.5]), np.float32([[-1] * 4, [1] * 4])
    exact = mixture_score_fn(weights, means, np.full(2, 0.1, np.float32), SIGMAS)
    rows = calibration(exact, x, eigenvalues=np.linalg.eigvalsh(np.cov(x.T)))
    assert calibration_warnings(rows, SIGMAS) == []
    assert rows[2]["residual"] < 0.5 * rows[2]["gaussian_residual"]
    assert rows[0]["whiteness"] is None  # No images


def test_the_residual_is_the_loss_of_denoising_score_matching():
    x = examples(40)
    losses = evaluate(annealed_dsm, exact_score_fn(), x, SIGMAS, batch_size=20, progress=False)
    found = map_examples(residuals, exact_score_fn(), x, SIGMAS, batch_size=20, progress=False)
    np.testing.assert_allclose(found.square[0] * 16 / 2, losses, rtol=1e-5)


FAULTS = {
    "zero": (lambda s: 0.0 * s, "the score is zero, and the residual "),
    "half": (lambda s: 0.5 * s, "the slope of the noise on the score is"),
    "twice": (lambda s: 2.0 * s, "the slope of the noise on the score is 0.5"),
    "shifted": (lambda s: s + 1.0, "the denoised values are off by"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_level_is_found_and_named(fault):
    exact, broken = exact_score_fn(), 2
    change, message = FAULTS[fault]

    def broken_fn(x, level):
        s = exact(x, level)
        return jnp.where((level == broken)[:, None, None, None], change(s), s)

    [sentence] = calibration_warnings(calibration(broken_fn, examples()), SIGMAS)
    assert sentence.startswith(
        f"level {broken} (sigma {SIGMAS[broken]:.3g}) is not well trained: "
    )
    assert message in sentence


def test_one_example_has_values_without_errors():
    rows = calibration(exact_score_fn(), examples(1))
    assert all(row["residual_error"] is None and row["slope"] is None for row in rows)


def test_residuals_run_under_jit():
    x = jnp.asarray(examples(6))
    keys = jax.random.split(jax.random.key(0), 6)
    level = jnp.arange(6)
    compiled = jax.jit(lambda x: residuals(keys, exact_score_fn(), x, level, SIGMAS))(x)
    plain = residuals(keys, exact_score_fn(), x, level, SIGMAS)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), compiled, plain
    )


def test_a_trained_network_with_one_zeroed_embedding_is_found_at_that_level():
    """A linear network with an embedding for every level, before and after it loses one."""
    x = examples(1000)

    def init(key, x, level):
        return {"embedding": jnp.full((len(SIGMAS), 1, 16), 0.5)}

    def apply(params, x, level):
        flat = x.reshape(len(x), 1, 16) @ BASIS[None]
        scaled = flat * params["embedding"][level] / jnp.square(SIGMAS[level])[:, None, None]
        return -(scaled @ BASIS.T[None]).reshape(x.shape)

    trainer = make_trainer((init, apply), annealed_dsm, optax.adam(0.02), SIGMAS)
    state = fit(trainer, x, num_steps=400, batch_size=128, progress=False)
    held_out = np.random.default_rng(5).standard_normal((600, 16)) * np.sqrt(VARIANCES)
    held_out = (held_out @ BASIS.T).reshape(600, *SHAPE).astype(np.float32)
    whole = calibration(score_fn((init, apply), state.ema_params), held_out)
    assert calibration_warnings(whole, SIGMAS) == []

    for broken in (1, 4):
        params = {"embedding": state.ema_params["embedding"].at[broken].set(0.0)}
        rows = calibration(score_fn((init, apply), params), held_out)
        [sentence] = calibration_warnings(rows, SIGMAS)
        assert sentence.startswith(f"level {broken} (sigma {SIGMAS[broken]:.3g})")

        # Chains tell the same.
        observed = []
        sample(
            score_fn((init, apply), params),
            SIGMAS,
            number=64,
            shape=SHAPE,
            num_steps=60,
            observe=ChainObserver(0.0),
            callbacks=[lambda first, trajectory, kept=observed: kept.append(trajectory.observed)],
            progress=False,
        )
        moments = data_moments(x)
        found = warnings_of(diagnose(observed, moments, 16))
        [low] = [each for each in found if "smaller than those of a Gaussian" in each]
        assert low.startswith(f"score_norm 0 at level {broken} ")


def test_residuals_that_still_have_draws_are_refused():
    sigmas = geometric_sigmas(1.0, 0.1, 3)
    exact = full_gaussian_score_fn(np.zeros(2, np.float32), np.eye(2, dtype=np.float32), sigmas)
    x = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    found = map_examples(residuals, exact, x, sigmas, progress=False)
    with pytest.raises(ValueError, match=r"\[1, 4, 3\], but needs \[examples, 3\]: average"):
        calibrate(found, sigmas)
