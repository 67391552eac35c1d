import functools
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn, mixture_score_fn
from score_jax.langevin import (
    annealed_langevin,
    annealed_langevin_trajectory,
    denoise,
    langevin,
    langevin_step,
    langevin_trajectory,
)
from score_jax.noise import example_keys, geometric_sigmas, standard_normal

SIGMAS = geometric_sigmas(3.0, 0.2, 6)
MEAN, VARIANCE = jnp.array([0.5, -1.0]), 0.3
GAUSSIAN = gaussian_score_fn(MEAN, VARIANCE, SIGMAS)


def chains(number, seed=0):
    keys = example_keys(jax.random.key(seed), np.arange(number))
    return keys, standard_normal(example_keys(jax.random.key(seed + 1), np.arange(number)), (2,))


def test_step_is_the_stated_formula():
    x, score, noise = jnp.array([[1.0]]), jnp.array([[-3.0]]), jnp.array([[0.5]])
    np.testing.assert_allclose(langevin_step(score, x, noise, 0.08), [[1 - 0.24 + 0.4 * 0.5]], rtol=1e-6)


def test_plain_langevin_follows_its_finite_step_law():
    """m <- mu + a (m - mu), s <- a^2 s + 2 alpha with a = 1 - alpha / (v + sigma^2), at any step size."""
    keys, _ = chains(20000)
    alpha, num_steps, level = 0.05, 7, 4
    x = langevin(keys, GAUSSIAN, jnp.full((20000, 2), 2.0), jnp.full(20000, level), step_size=alpha, num_steps=num_steps)
    a = 1 - alpha / (VARIANCE + float(SIGMAS[level]) ** 2)
    mean, variance = np.array([2.0, 2.0]), 0.0
    for _ in range(num_steps):
        mean, variance = np.asarray(MEAN) + a * (mean - np.asarray(MEAN)), a**2 * variance + 2 * alpha
    for d in (0, 1):
        assert_mean(x[:, d], mean[d], "mean")
        assert_mean((np.asarray(x[:, d], np.float64) - mean[d]) ** 2, variance, "variance")


def test_annealed_langevin_follows_its_finite_step_law():
    keys, start = chains(20000)
    step_size, num_steps = 0.01, 5
    x = annealed_langevin(keys, GAUSSIAN, 3 * start, SIGMAS, step_size=step_size, num_steps=num_steps)
    sigmas = np.asarray(SIGMAS, np.float64)
    mean, variance = np.zeros(2), 9.0
    for sigma in sigmas:
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        a = 1 - alpha / (VARIANCE + sigma**2)
        for _ in range(num_steps):
            mean, variance = np.asarray(MEAN) + a * (mean - np.asarray(MEAN)), a**2 * variance + 2 * alpha
    for d in (0, 1):
        assert_mean(x[:, d], mean[d], "mean")
        assert_mean((np.asarray(x[:, d], np.float64) - mean[d]) ** 2, variance, "variance")
    assert_mean((np.asarray(x, np.float64) - mean).prod(1), 0.0, "dimensions are independent")


def test_annealed_langevin_recovers_the_weights_of_distant_modes():
    """The paper's toy: modes of weight 0.8 and 0.2 too far apart for plain Langevin to cross."""
    weights, means, scales = jnp.array([0.8, 0.2]), jnp.array([[5.0, 5.0], [-5.0, -5.0]]), jnp.ones(2)
    sigmas = jnp.sqrt(geometric_sigmas(20.0, 1.05, 10) ** 2 - 1)  # total spread from 20 to 1.05
    score_fn = mixture_score_fn(weights, means, scales, sigmas)
    keys, _ = chains(4000)
    x = 16 * jax.random.uniform(jax.random.key(9), (4000, 2)) - 8
    annealed = annealed_langevin(keys, score_fn, x, sigmas, step_size=0.01, num_steps=100)
    plain = langevin(keys, score_fn, x, jnp.full(4000, 9), step_size=0.05, num_steps=1000)
    assert abs(float((annealed.sum(1) > 0).mean()) - 0.8) < 0.03
    assert abs(float((plain.sum(1) > 0).mean()) - 0.5) < 0.05


def test_denoise_is_the_posterior_mean():
    x = jnp.array([[1.0, 2.0], [-3.0, 0.0]])
    level = jnp.array([0, 5])
    sigma2 = np.asarray(SIGMAS)[np.asarray(level)][:, None] ** 2
    posterior = (VARIANCE * np.asarray(x) + sigma2 * np.asarray(MEAN)) / (VARIANCE + sigma2)
    np.testing.assert_allclose(denoise(GAUSSIAN, x, level, SIGMAS), posterior, rtol=1e-5, atol=1e-6)


def test_last_denoising_is_one_denoise_more():
    keys, x = chains(8)
    end = annealed_langevin(keys, GAUSSIAN, x, SIGMAS, step_size=0.01, num_steps=3)
    denoised = annealed_langevin(keys, GAUSSIAN, x, SIGMAS, step_size=0.01, num_steps=3, denoise=True)
    np.testing.assert_allclose(denoised, denoise(GAUSSIAN, end, jnp.full(8, 5), SIGMAS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_snapshots", "levels"), [(6, [0, 1, 2, 3, 4, 5]), (3, [1, 3, 5]), (4, [0, 2, 3, 5]), (1, [5]), (0, [])]
)
def test_snapshots_are_the_ends_of_evenly_spread_levels(num_snapshots, levels):
    keys, x = chains(4)
    run = functools.partial(annealed_langevin_trajectory, keys, GAUSSIAN, x, step_size=0.01, num_steps=3)
    trajectory = run(SIGMAS, num_snapshots=num_snapshots)
    assert trajectory.snapshots.shape == (num_snapshots, 4, 2)
    every = run(SIGMAS, num_snapshots=6).snapshots
    for snapshot, level in zip(trajectory.snapshots, levels, strict=True):
        np.testing.assert_array_equal(snapshot, every[level])
    np.testing.assert_array_equal(trajectory.x, every[-1])
    assert not np.array_equal(every[0], every[1])


def test_where_a_chain_stops_being_finite_is_told():
    def score_fn(x, level):
        return jnp.where((level[:, None] == 2) & (x > 1e3), jnp.nan, -x)

    keys, _ = chains(2)
    x = jnp.array([[0.0, 0.0], [1e6, 0.0]])
    finite = annealed_langevin_trajectory(keys, score_fn, x, SIGMAS, step_size=1e-5, num_steps=1).finite
    np.testing.assert_array_equal(finite[:, 0], True)
    np.testing.assert_array_equal(finite[:, 1], [True, True, False, False, False, False])


def test_batch_and_devices_do_not_change_a_chain():
    keys, x = chains(6)
    run = jax.jit(lambda keys, x: annealed_langevin(keys, GAUSSIAN, x, SIGMAS, step_size=0.01, num_steps=5))
    whole = run(keys, x)
    np.testing.assert_allclose(run(keys[1:3], x[1:3]), whole[1:3], atol=1e-5)
    split = jax.pmap(run)(keys.reshape(2, 3), x.reshape(2, 3, 2)).reshape(6, 2)
    np.testing.assert_allclose(split, whole, atol=1e-5)
    np.testing.assert_array_equal(run(keys, x), whole)
    eager = annealed_langevin(keys, GAUSSIAN, x, SIGMAS, step_size=0.01, num_steps=5)
    np.testing.assert_allclose(eager, whole, atol=1e-5)


def test_differentiable_and_vmappable_in_its_step_size():
    keys, x = chains(3)

    def end(step_size):
        return annealed_langevin(keys, GAUSSIAN, x, SIGMAS, step_size=step_size, num_steps=2).sum()

    h = 1e-4
    np.testing.assert_allclose(jax.grad(end)(0.01), (end(0.01 + h) - end(0.01 - h)) / (2 * h), rtol=2e-2)
    np.testing.assert_allclose(jax.vmap(end)(jnp.array([0.01, 0.005]))[1], end(0.005), rtol=1e-4)


def test_whole_chain_is_one_program_that_compiles_once():
    """A scan in a scan: two loops in the compiled text, however many levels and steps, and no host callbacks."""
    compilations = []
    score_fn = mixture_score_fn(jnp.array([0.5, 0.5]), jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.ones(2), SIGMAS)

    @jax.jit
    def run(keys, x, step_size):
        compilations.append(1)  # runs when traced
        return annealed_langevin(keys, score_fn, x, SIGMAS, step_size=step_size, num_steps=50, denoise=True)

    keys, x = chains(4)
    text = run.lower(keys, x, 0.01).compile().as_text()
    outer = [line for line in text.splitlines() if " while(" in line and '"known_trip_count":{"n":"6"}' in line]
    inner = [line for line in text.splitlines() if " while(" in line and '"known_trip_count":{"n":"50"}' in line]
    assert len(outer) == 1
    assert len(inner) == 1
    assert "callback" not in text
    run(keys, x, 0.01)
    run(keys, x + 1, 0.02)
    assert len(compilations) == 1
    assert run._cache_size() == 1


def executions(function, folder):
    """How often an executable was launched while `function` ran, from the profiler's own record."""
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(function())
    [trace] = folder.rglob("*.trace.json.gz")
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    return sum("::ExecuteHelper" in event.get("name", "") for event in events)


def test_number_of_executions_does_not_grow_with_levels_or_steps(tmp_path):
    keys, x = chains(4)
    counts = {}
    for num_levels, num_steps in [(2, 1), (8, 40)]:
        sigmas = geometric_sigmas(3.0, 0.2, num_levels)
        run = jax.jit(lambda keys, x, s=sigmas, t=num_steps: annealed_langevin(keys, GAUSSIAN, x, s, step_size=0.01, num_steps=t))
        jax.block_until_ready(run(keys, x))
        counts[num_levels * num_steps] = executions(lambda run=run: run(keys, x), tmp_path / str(num_levels))
    assert counts == {2: 1, 320: 1}
    assert executions(lambda: [run(keys, x), run(keys, x)], tmp_path / "twice") == 2  # the count counts


def test_memory_does_not_grow_with_the_number_of_steps():
    keys, x = chains(64)

    def temporary_bytes(num_steps):
        run = jax.jit(lambda keys, x: annealed_langevin(keys, GAUSSIAN, x, SIGMAS, step_size=0.01, num_steps=num_steps))
        return run.lower(keys, x).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1000) - temporary_bytes(10) < 20_000  # the step numbers themselves are 4 bytes each


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"step_size": 0.0}, "step_size=0.0"),
        ({"step_size": float("nan")}, "step_size=nan"),
        ({"sigmas": np.array([0.1, 1.0])}, "must decrease"),
        ({"num_snapshots": 7}, "num_snapshots=7"),
    ],
)
def test_refusals(change, words):
    keys, x = chains(2)
    arguments = {"sigmas": SIGMAS, "step_size": 0.01, "num_steps": 1} | change
    with pytest.raises(ValueError, match=words):
        annealed_langevin_trajectory(keys, GAUSSIAN, x, **arguments)


def test_the_baseline_is_as_many_steps_at_the_last_level():
    sigmas = geometric_sigmas(1.0, 0.1, 3)
    exact = gaussian_score_fn(jnp.zeros(2), 0.5, sigmas)
    keys = jax.random.split(jax.random.key(0), 8)
    x = np.ones((8, 2), np.float32)
    plain = langevin(keys, exact, x, np.full(8, 2), step_size=0.003, num_steps=12)
    found = langevin_trajectory(keys, exact, x, sigmas, step_size=0.003, num_steps=4, num_snapshots=3)
    np.testing.assert_allclose(found.x, plain, rtol=1e-6)
    assert found.finite.shape == (3, 8)
    denoised = langevin_trajectory(keys, exact, x, sigmas, step_size=0.003, num_steps=4, denoise=True).x
    np.testing.assert_allclose(denoised, denoise(exact, found.x, np.full(8, 2), sigmas), rtol=1e-5)
