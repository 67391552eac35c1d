"""The probability-flow ODE, stochastic Heun, predictor-corrector, and their law on Gaussians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_jax as sj
from score_jax.samplers.grid import step_sigmas
from score_jax.samplers.predictor_corrector import update_table

SIGMAS = sj.geometric_sigmas(10.0, 0.01, 40)
FEW = sj.geometric_sigmas(3.0, 0.1, 5)
SAMPLERS = {
    "heun": functools.partial(sj.probability_flow, num_steps=20),
    "euler": functools.partial(sj.probability_flow, num_steps=30, solver="euler"),
    "geometric": functools.partial(sj.probability_flow, num_steps=15, grid="geometric"),
    "stochastic_heun": functools.partial(sj.stochastic_heun, num_steps=15, churn=0.2),
    "predictor_corrector": functools.partial(sj.predictor_corrector, num_steps=25),
    "euler_corrector": functools.partial(
        sj.predictor_corrector, num_steps=10, predictor="euler", num_corrector_steps=2, grid="edm"
    ),
    "ancestral": functools.partial(sj.ancestral, num_steps=30),
    "annealed": functools.partial(
        sj.annealed_langevin, num_steps=3, step_size=sj.step_size_for(SIGMAS, 3), denoise=True
    ),
    "consistent": functools.partial(
        sj.consistent_annealed_sampling,
        num_steps=1,
        step_size=sj.ancestral_step_size(SIGMAS),
        denoise=True,
    ),
}


def score_fn_of(variance, sigmas=SIGMAS):
    return sj.gaussian_score_fn(jnp.zeros(len(variance)), jnp.asarray(variance), sigmas)


@pytest.mark.parametrize("name", SAMPLERS)
def test_chains_end_with_the_variance_of_the_law(name):
    """2000 chains of 50 dimensions; a variance from n draws has the relative error sqrt(2 / n)."""
    variance = np.repeat(np.float32([1.0, 0.04]), 25)
    law = sj.final_variance(SAMPLERS[name], SIGMAS, np.float32([1.0, 0.04]))
    keys = jax.random.split(jax.random.key(0), 2000)
    x = 10 * jax.random.normal(jax.random.key(1), (2000, 50))
    score_fn = score_fn_of(variance)
    ends = jax.jit(lambda keys, x: SAMPLERS[name](keys, score_fn, x, SIGMAS).x)(keys, x)
    found = np.mean(np.asarray(ends, np.float64).reshape(2000, 2, 25) ** 2, axis=(0, 2))
    np.testing.assert_allclose(found / law, 1, atol=5 * np.sqrt(2 / 50_000))


def test_the_law_of_annealed_langevin_is_the_recursion_of_its_steps():
    """s <- a^2 s + 2 alpha with a = 1 - alpha / (v + sigma^2), in float64."""
    step_size, v = sj.step_size_for(FEW, 7), 0.3
    sigmas = np.asarray(FEW, np.float64)
    s = sigmas[0] ** 2
    for alpha, sigma in zip(step_size * (sigmas / sigmas[-1]) ** 2, sigmas, strict=True):
        for _ in range(7):
            s = (1 - alpha / (v + sigma**2)) ** 2 * s + 2 * alpha
    found = sj.final_variance(
        sj.annealed_langevin, FEW, np.float32([v]), num_steps=7, step_size=step_size
    )
    np.testing.assert_allclose(found, s, rtol=1e-4)


def test_the_law_counts_noise_that_is_drawn_late():
    """More noise than the first table of the law holds: 5 levels of 40 steps."""
    sampler = functools.partial(sj.annealed_langevin, num_steps=40, step_size=1e-3)
    found = sj.final_variance(sampler, FEW, np.float32([0.5]))
    sigmas = np.asarray(FEW, np.float64)
    s = sigmas[0] ** 2
    for sigma in sigmas:
        alpha = 1e-3 * (sigma / sigmas[-1]) ** 2
        for _ in range(40):
            s = (1 - alpha / (0.5 + sigma**2)) ** 2 * s + 2 * alpha
    np.testing.assert_allclose(found, s, rtol=1e-4)


def test_the_law_takes_more_steps_than_noises_fit_into_its_table():
    """The ODE draws no noise, however many steps it takes."""
    variance = np.float32([0.5])
    law = sj.final_variance(sj.probability_flow, SIGMAS, variance, num_steps=20_000)
    np.testing.assert_allclose(law / variance, 1, atol=0.01)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_order_of_the_solvers(solver, order):
    """On N(0, v) the ODE has the solution x sqrt((v + sigma_L^2) / (v + sigma_1^2))."""
    v, sigmas = 0.5, sj.geometric_sigmas(2.0, 0.1, 10)
    x = jnp.ones((1, 1))
    exact = np.sqrt((v + 0.01) / (v + 4.0))
    errors = []
    for num_steps in (16, 32, 64):
        end = sj.probability_flow(
            None,
            score_fn_of([v], sigmas),
            x,
            sigmas,
            num_steps=num_steps,
            solver=solver,
            denoise=False,
        ).x
        errors.append(abs(float(end[0, 0]) - exact))
    rates = np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))
    np.testing.assert_allclose(rates, order, atol=0.25)


def test_few_evaluations_reach_the_variance_within_three_percent():
    """At most 100 evaluations with exact scores, data of 1 and 0.1 standard deviations."""
    variance = np.float32([1.0, 0.01])
    for num_steps in (30, 49):
        law = sj.final_variance(sj.probability_flow, SIGMAS, variance, num_steps=num_steps)
        np.testing.assert_allclose(law / variance, 1, atol=0.03)


def test_stochastic_heun_without_churn_is_the_ode():
    x = 10 * jax.random.normal(jax.random.key(1), (4, 3))
    keys = jax.random.split(jax.random.key(0), 4)
    score_fn = score_fn_of([1.0, 0.5, 0.1])
    ode = sj.probability_flow(None, score_fn, x, SIGMAS, num_steps=12)
    found = sj.stochastic_heun(keys, score_fn, x, SIGMAS, num_steps=12, churn=0.0)
    np.testing.assert_allclose(found.x, ode.x, rtol=1e-4, atol=1e-5)


def test_euler_as_a_predictor_is_the_ode():
    x = 10 * jax.random.normal(jax.random.key(1), (4, 3))
    keys = jax.random.split(jax.random.key(0), 4)
    score_fn = score_fn_of([1.0, 0.5, 0.1])
    ode = sj.probability_flow(None, score_fn, x, SIGMAS, num_steps=12, solver="euler")
    found = sj.predictor_corrector(
        keys,
        score_fn,
        x,
        SIGMAS,
        num_steps=12,
        predictor="euler",
        num_corrector_steps=0,
        grid="edm",
    )
    np.testing.assert_allclose(found.x, ode.x, rtol=1e-4, atol=1e-5)


def test_ancestral_steps_with_a_perfect_denoiser_keep_the_noise_at_sigma():
    """For data at 0, s = -x / sigma^2: a step leaves x sigma'^2/sigma^2 + noise, variance
    sigma'^2 in total."""
    steps = step_sigmas(FEW, 6, "geometric")
    table = update_table(steps, "ancestral", 0, 0.1)
    s = np.float64(steps[0]) ** 2
    for sigma, drift, diffusion, after in zip(*table, steps[1:], strict=True):
        s = (1 - float(drift) / float(sigma) ** 2) ** 2 * s + float(diffusion) ** 2
        np.testing.assert_allclose(s, float(after) ** 2, rtol=1e-5)


def test_the_corrector_has_the_target_ratio():
    """r = ||alpha s|| / ||sqrt(2 alpha) z|| with ||s|| = sqrt(D) / sigma and ||z|| = sqrt(D)."""
    steps = step_sigmas(FEW, 6, "geometric")
    table = update_table(steps, "reverse_diffusion", 2, 0.16)
    sigma, drift, diffusion = (np.asarray(column).reshape(6, 3)[:, 1:] for column in table)
    np.testing.assert_allclose(drift / sigma / diffusion, 0.16, rtol=1e-5)
    np.testing.assert_allclose(sigma, np.repeat(np.asarray(steps)[1:, None], 2, axis=1))


@pytest.mark.parametrize("grid", ["edm", "geometric"])
def test_the_grid_leads_from_the_first_level_to_the_last(grid):
    steps = np.asarray(step_sigmas(FEW, 9, grid))
    assert steps.shape == (10,)
    assert (np.diff(steps) < 0).all()
    np.testing.assert_allclose(steps[[0, -1]], np.asarray(FEW)[[0, -1]], rtol=1e-6)
    traced = jax.jit(lambda sigmas: step_sigmas(sigmas, 9, grid))(FEW)
    np.testing.assert_allclose(traced, steps, rtol=1e-5)


@pytest.mark.parametrize("name", ["heun", "stochastic_heun", "predictor_corrector", "ancestral"])
def test_rules_of_all_samplers(name):
    """Dtype, chains independent of their batch, noise seam, vmap over sigmas, empty batch."""
    sampler, score_fn = SAMPLERS[name], score_fn_of([1.0, 0.5, 0.1], FEW)
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3 * jax.random.normal(jax.random.key(1), (4, 3))
    whole = sampler(keys, score_fn, x, FEW, num_snapshots=5)
    assert whole.snapshots.shape == (5, 4, 3)
    assert whole.finite.shape[1] == 4
    part = sampler(keys[1:3], score_fn, x[1:3], FEW)
    np.testing.assert_allclose(part.x, whole.x[1:3], rtol=1e-5, atol=1e-6)
    narrow = sampler(keys, score_fn, x.astype(jnp.bfloat16), FEW)
    assert narrow.x.dtype == jnp.bfloat16
    assert sampler(keys[:0], score_fn, x[:0], FEW).x.shape == (0, 3)

    silent = sampler(None, score_fn, x, FEW, noise_fn=jnp.zeros_like(x).__mul__)
    doubled = sampler(None, score_fn, 2 * x, FEW, noise_fn=jnp.zeros_like(x).__mul__)
    np.testing.assert_allclose(doubled.x, 2 * silent.x, rtol=1e-4, atol=1e-5)

    several = jnp.stack([FEW, 0.5 * FEW])
    by_vmap = jax.vmap(
        lambda sigmas: sampler(keys, score_fn_of([1.0, 0.5, 0.1], sigmas), x, sigmas).x
    )(several)
    np.testing.assert_allclose(by_vmap[0], whole.x, rtol=1e-3, atol=1e-4)


def test_they_run_through_sample():
    """Step size neither needed nor given; equal to the sampler called by hand."""
    score_fn = score_fn_of([1.0, 0.5, 0.1], FEW)
    x = sj.sample(
        score_fn,
        FEW,
        number=6,
        shape=(3,),
        sampler=functools.partial(sj.predictor_corrector, predictor="ancestral"),
        num_steps=8,
        batch_size=4,
        progress=False,
    )
    assert x.shape == (6, 3)
    flow = {"number": 5, "shape": (3,), "sampler": sj.probability_flow, "progress": False}
    whole = sj.sample(score_fn, FEW, num_steps=8, batch_size=4, **flow)
    other = sj.sample(score_fn, FEW, num_steps=8, batch_size=2, **flow)
    np.testing.assert_allclose(whole, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "settings", "words"),
    [
        (sj.probability_flow, {"num_steps": 0}, "num_steps=0 must be at least 1"),
        (sj.probability_flow, {"num_steps": 3, "solver": "rk4"}, "solver='rk4' must be one of"),
        (sj.probability_flow, {"num_steps": 3, "grid": "even"}, "grid='even' must be one of"),
        (sj.stochastic_heun, {"num_steps": 3, "churn": -1.0}, "churn=-1.0 must be 0 or above"),
        (sj.predictor_corrector, {"num_steps": 3, "predictor": "x"}, "predictor='x' must be"),
        (sj.predictor_corrector, {"num_steps": 3, "snr": 0.0}, "snr=0.0 must be positive"),
        (
            sj.predictor_corrector,
            {"num_steps": 3, "num_corrector_steps": -1},
            "num_corrector_steps=-1 must be at least 0",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(sampler, settings, words):
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=words):
        sampler(keys, score_fn_of([1.0], FEW), jnp.zeros((2, 1)), FEW, **settings)


def test_a_single_level_has_no_steps_between():
    one = sj.geometric_sigmas(0.1, 0.1, 1)
    with pytest.raises(ValueError, match="need two or more"):
        sj.probability_flow(None, score_fn_of([1.0], one), jnp.zeros((2, 1)), one, num_steps=3)
