"""Diagnostics of chains on a known density, and the faults that they find."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.analytic import full_gaussian_score_fn
from score_jax.evaluation.diagnostics import (
    ChainObserver,
    ChainValues,
    DataMoments,
    combined,
    data_moments,
    diagnose,
    gaussian_score_norm,
    summary_of,
    warnings_of,
)
from score_jax.noise import geometric_sigmas
from score_jax.samplers.consistent import consistent_annealed_sampling
from score_jax.samplers.langevin import annealed_langevin, langevin_baseline
from score_jax.samplers.loop import Step, anneal
from score_jax.samplers.ode import probability_flow, stochastic_heun
from score_jax.samplers.predictor_corrector import ancestral, predictor_corrector
from score_jax.sampling import default_step_size, normal_start, sample

DIMENSION = 12
VARIANCES = np.geomspace(0.001, 0.3, DIMENSION).astype(np.float32)
MEAN = np.full(DIMENSION, 0.4, np.float32)
SIGMAS = geometric_sigmas(1.0, 0.05, 24)
MOMENTS = DataMoments(0.4, float(VARIANCES.sum()), VARIANCES.astype(np.float64), -1.5, 2.5)


def exact_score_fn():
    return full_gaussian_score_fn(MEAN, np.diag(VARIANCES), SIGMAS)


def diagnosed(score_fn, sampler=annealed_langevin, number=400, **settings):
    """Rows of the diagnostics of chains in two batches."""
    observed = []
    sample(
        score_fn,
        SIGMAS,
        number=number,
        shape=(DIMENSION,),
        sampler=sampler,
        start=normal_start(1.0, 0.4),
        observe=ChainObserver(0.4, -1.5, 2.5),
        batch_size=number // 2,
        callbacks=[lambda first, trajectory: observed.append(trajectory.observed)],
        progress=False,
        **settings,
    )
    return diagnose(observed, MOMENTS, DIMENSION)


def test_summaries_of_parts_combine_to_that_of_the_whole():
    rng = np.random.default_rng(0)
    values = ChainValues(*rng.normal(2, 1, (6, 3, 50)).astype(np.float32))
    parts = [ChainValues(*(value[:, cut] for value in values)) for cut in (slice(7), slice(7, 50))]
    whole, joined = summary_of([values]), combined(*(summary_of([part]) for part in parts))
    assert whole.number == joined.number == 50
    np.testing.assert_allclose(joined.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(joined.squares, whole.squares, rtol=1e-12)
    # The truth, by numpy in another form.
    exact = np.asarray(values, np.float64)
    np.testing.assert_allclose(whole.squares, exact.var(axis=2) * 50, rtol=1e-12)


def test_a_sampler_that_works_is_healthy():
    rows = diagnosed(exact_score_fn(), num_steps=40)
    assert warnings_of(rows) == []
    np.testing.assert_allclose([row["sigma"] for row in rows], SIGMAS, rtol=1e-6)
    expected = gaussian_score_norm(SIGMAS, VARIANCES)
    found = np.array([row["score_norm"] for row in rows])
    # Steps of finite size leave chains a little too wide, as the step to noise ratio r says: by
    # 1 / sqrt(1 - r^2) for the narrowest dimensions.
    ratio = default_step_size(annealed_langevin, SIGMAS, 40) / SIGMAS[-1] ** 2 / 2
    assert (found > 0.97 * expected).all()
    assert (found < 1.05 / np.sqrt(1 - ratio)).all()


SAMPLERS = {
    "annealed": (annealed_langevin, {"num_steps": 20}),
    "baseline": (langevin_baseline, {"num_steps": 2, "step_size": 1e-4}),
    "consistent": (consistent_annealed_sampling, {"num_steps": 2}),
    "predictor_corrector": (predictor_corrector, {"num_steps": 60}),
    "ancestral": (ancestral, {"num_steps": 60}),
    "ode": (probability_flow, {"num_steps": 20}),
    "stochastic_heun": (stochastic_heun, {"num_steps": 20}),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_observed_and_gives_the_same_samples(name):
    sampler, settings = SAMPLERS[name]
    keys = jax.random.split(jax.random.key(1), 3)
    x = jnp.ones((3, DIMENSION))
    if "step_size" not in settings and name in ("annealed", "consistent"):
        settings = settings | {"step_size": default_step_size(sampler, SIGMAS, 2)}

    @jax.jit
    def chains(x):
        observer = ChainObserver(0.4, 0.0, 1.0)
        return sampler(keys, exact_score_fn(), x, SIGMAS, observe=observer, **settings)

    plain = sampler(keys, exact_score_fn(), x, SIGMAS, **settings)
    observed = chains(x)
    np.testing.assert_allclose(observed.x, plain.x, rtol=2e-4, atol=2e-5)
    values = observed.observed
    assert values.spread.shape == observed.finite.shape
    has_score = name != "stochastic_heun"
    assert (values.score >= 0).all() == has_score
    assert (np.asarray(values.random) > 0).any() == (name != "ode")
    assert plain.observed is None


def test_the_parts_of_a_step_are_its_drift_and_its_noise():
    """The observer of a step of known size and noise, at the last step of each level."""
    sigmas = np.float32([2.0, 1.0])
    noise = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
    found = anneal(
        lambda x, score, noise, level, n: x + 0.1 * score + 0.5 * noise,
        None,
        lambda x, level: -x,
        jnp.ones((1, 3)),
        sigmas,
        num_steps=2,
        noise_fn=lambda n: jnp.asarray(noise)[n],
        observe=lambda step: step._replace(n=jnp.full(1, step.n), sigma=jnp.full(1, step.sigma)),
        noise_scale=lambda level, n: 0.5,
    ).observed
    assert isinstance(found, Step)
    np.testing.assert_array_equal(found.n[:, 0], [1, 3])
    np.testing.assert_array_equal(found.sigma[:, 0], sigmas)
    np.testing.assert_allclose(found.random, 0.5 * noise[[1, 3]])
    np.testing.assert_allclose(found.drift, 0.1 * found.score, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.score, -found.x)


def test_five_times_the_step_size_is_found():
    step_size = default_step_size(annealed_langevin, SIGMAS, 10)
    settings = {"num_steps": 10, "number": 4000}
    healthy = warnings_of(diagnosed(exact_score_fn(), step_size=step_size, **settings))
    rows = diagnosed(exact_score_fn(), step_size=5 * step_size, **settings)
    found = warnings_of(rows)
    assert healthy == []
    [sentence] = [each for each in found if each.startswith("score_norm")]
    assert "the steps are too large" in sentence
    worst = max(rows, key=lambda row: row["score_norm"])
    assert f"level {worst['index']} (sigma {worst['sigma']:.3g})" in sentence


def test_a_level_whose_score_is_zero_is_found_and_named():
    exact, broken = exact_score_fn(), 9

    def score_fn(x, level):
        return jnp.where((level == broken)[:, None], 0.0, exact(x, level))

    found = warnings_of(diagnosed(score_fn, num_steps=40))
    [sentence] = [each for each in found if "smaller than those of a Gaussian" in each]
    assert sentence.startswith(
        f"score_norm 0 at level {broken} (sigma {SIGMAS[broken]:.3g}), 1 of"
    )


def test_the_moments_of_examples():
    x = np.random.default_rng(0).standard_normal((500, 2, 3)) * 0.5 + 1
    found = data_moments(x, 0.0, 1.0)
    flat = x.reshape(500, 6)
    assert found.center == pytest.approx(x.mean())
    assert found.square == pytest.approx(np.mean(np.sum((flat - x.mean()) ** 2, axis=1)))
    np.testing.assert_allclose(found.eigenvalues.sum(), np.trace(np.cov(flat.T)))
    assert data_moments(x, largest=5).eigenvalues is None
    assert gaussian_score_norm([1e6], found.eigenvalues) == pytest.approx(1)
