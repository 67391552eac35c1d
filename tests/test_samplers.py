import functools
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn, mixture_score_fn
from score_jax.noise import example_keys, geometric_sigmas, standard_normal
from score_jax.samplers.consistent import consistent_annealed_sampling
from score_jax.samplers.inpainting import inpaint
from score_jax.samplers.interpolation import interpolate
from score_jax.samplers.langevin import (
    annealed_langevin,
    langevin,
    langevin_baseline,
    langevin_step,
)
from score_jax.samplers.loop import Trajectory, chain_noise, denoise

SIGMAS = geometric_sigmas(3.0, 0.2, 6)
MEAN, VARIANCE = jnp.array([0.5, -1.0]), 0.3
GAUSSIAN = gaussian_score_fn(MEAN, VARIANCE, SIGMAS)


def chains(number, seed=0):
    keys = example_keys(jax.random.key(seed), np.arange(number))
    return keys, standard_normal(example_keys(jax.random.key(seed + 1), np.arange(number)), (2,))


def test_step_is_the_stated_formula():
    x, score, noise = jnp.array([[1.0]]), jnp.array([[-3.0]]), jnp.array([[0.5]])
    np.testing.assert_allclose(
        langevin_step(score, x, noise, 0.08), [[1 - 0.24 + 0.4 * 0.5]], rtol=1e-6
    )


def test_plain_langevin_follows_its_finite_step_law():
    """m <- mu + a (m - mu), s <- a^2 s + 2 alpha with a = 1 - alpha / (v + sigma^2)."""
    keys, _ = chains(20000)
    alpha, num_steps, level = 0.05, 7, 4
    start, levels = jnp.full((20000, 2), 2.0), jnp.full(20000, level)
    x = langevin(keys, GAUSSIAN, start, levels, step_size=alpha, num_steps=num_steps).x
    a = 1 - alpha / (VARIANCE + float(SIGMAS[level]) ** 2)
    mean, variance = np.array([2.0, 2.0]), 0.0
    for _ in range(num_steps):
        mean, variance = (
            np.asarray(MEAN) + a * (mean - np.asarray(MEAN)),
            a**2 * variance + 2 * alpha,
        )
    for d in (0, 1):
        assert_mean(x[:, d], mean[d], "mean")
        assert_mean((np.asarray(x[:, d], np.float64) - mean[d]) ** 2, variance, "variance")


def test_annealed_langevin_follows_its_finite_step_law():
    keys, start = chains(20000)
    step_size, num_steps = 0.01, 5
    settings = {"step_size": step_size, "num_steps": num_steps}
    x = annealed_langevin(keys, GAUSSIAN, 3 * start, SIGMAS, **settings).x
    sigmas = np.asarray(SIGMAS, np.float64)
    mean, variance = np.zeros(2), 9.0
    for sigma in sigmas:
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        a = 1 - alpha / (VARIANCE + sigma**2)
        for _ in range(num_steps):
            mean, variance = (
                np.asarray(MEAN) + a * (mean - np.asarray(MEAN)),
                a**2 * variance + 2 * alpha,
            )
    for d in (0, 1):
        assert_mean(x[:, d], mean[d], "mean")
        assert_mean((np.asarray(x[:, d], np.float64) - mean[d]) ** 2, variance, "variance")
    assert_mean((np.asarray(x, np.float64) - mean).prod(1), 0.0, "dimensions are independent")


def test_annealed_langevin_recovers_the_weights_of_distant_modes():
    """The paper's toy: modes of weight 0.8 and 0.2 too far apart for plain Langevin to cross."""
    weights, scales = jnp.array([0.8, 0.2]), jnp.ones(2)
    means = jnp.array([[5.0, 5.0], [-5.0, -5.0]])
    sigmas = jnp.sqrt(geometric_sigmas(20.0, 1.05, 10) ** 2 - 1)  # total spread from 20 to 1.05
    score_fn = mixture_score_fn(weights, means, scales, sigmas)
    keys, _ = chains(4000)
    x = 16 * jax.random.uniform(jax.random.key(9), (4000, 2)) - 8
    annealed = annealed_langevin(keys, score_fn, x, sigmas, step_size=0.01, num_steps=100).x
    plain = langevin(keys, score_fn, x, jnp.full(4000, 9), step_size=0.05, num_steps=1000).x
    assert abs(float((annealed.sum(1) > 0).mean()) - 0.8) < 0.03
    assert abs(float((plain.sum(1) > 0).mean()) - 0.5) < 0.05


def test_denoise_is_the_posterior_mean():
    x = jnp.array([[1.0, 2.0], [-3.0, 0.0]])
    level = jnp.array([0, 5])
    sigma2 = np.asarray(SIGMAS)[np.asarray(level)][:, None] ** 2
    posterior = (VARIANCE * np.asarray(x) + sigma2 * np.asarray(MEAN)) / (VARIANCE + sigma2)
    found = denoise(GAUSSIAN, x, level, SIGMAS)
    np.testing.assert_allclose(found, posterior, rtol=1e-5, atol=1e-6)


def test_last_denoising_is_one_denoise_more():
    keys, x = chains(8)
    run = functools.partial(
        annealed_langevin, keys, GAUSSIAN, x, SIGMAS, step_size=0.01, num_steps=3
    )
    expected = denoise(GAUSSIAN, run().x, jnp.full(8, 5), SIGMAS)
    np.testing.assert_allclose(run(denoise=True).x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("num_snapshots", "levels"),
    [(6, [0, 1, 2, 3, 4, 5]), (3, [1, 3, 5]), (4, [0, 2, 3, 5]), (1, [5]), (0, [])],
)
def test_snapshots_are_the_ends_of_evenly_spread_levels(num_snapshots, levels):
    keys, x = chains(4)
    run = functools.partial(annealed_langevin, keys, GAUSSIAN, x, step_size=0.01, num_steps=3)
    trajectory = run(SIGMAS, num_snapshots=num_snapshots)
    assert trajectory.snapshots.shape == (num_snapshots, 4, 2)
    every = run(SIGMAS, num_snapshots=6).snapshots
    for snapshot, level in zip(trajectory.snapshots, levels, strict=True):
        np.testing.assert_array_equal(snapshot, every[level])
    np.testing.assert_array_equal(trajectory.x, every[-1])
    assert not np.array_equal(every[0], every[1])


def test_the_trajectory_records_where_a_chain_stops_being_finite():
    def score_fn(x, level):
        return jnp.where((level[:, None] == 2) & (x > 1e3), jnp.nan, -x)

    keys, _ = chains(2)
    x = jnp.array([[0.0, 0.0], [1e6, 0.0]])
    trajectory = annealed_langevin(keys, score_fn, x, SIGMAS, step_size=1e-5, num_steps=1)
    finite = trajectory.finite
    np.testing.assert_array_equal(finite[:, 0], True)
    np.testing.assert_array_equal(finite[:, 1], [True, True, False, False, False, False])


def test_batch_and_devices_do_not_change_a_chain():
    keys, x = chains(6)
    settings = {"step_size": 0.01, "num_steps": 5}
    run = jax.jit(lambda keys, x: annealed_langevin(keys, GAUSSIAN, x, SIGMAS, **settings).x)
    whole = run(keys, x)
    np.testing.assert_allclose(run(keys[1:3], x[1:3]), whole[1:3], atol=1e-5)
    split = jax.pmap(run)(keys.reshape(2, 3), x.reshape(2, 3, 2)).reshape(6, 2)
    np.testing.assert_allclose(split, whole, atol=1e-5)
    np.testing.assert_array_equal(run(keys, x), whole)
    eager = annealed_langevin(keys, GAUSSIAN, x, SIGMAS, **settings).x
    np.testing.assert_allclose(eager, whole, atol=1e-5)


def test_differentiable_in_its_step_size():
    keys, x = chains(3)

    def end(step_size):
        settings = {"step_size": step_size, "num_steps": 2}
        return annealed_langevin(keys, GAUSSIAN, x, SIGMAS, **settings).x.sum()

    h = 1e-4
    slope = (end(0.01 + h) - end(0.01 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(end)(0.01), slope, rtol=2e-2)


def test_whole_chain_is_one_program_that_compiles_once():
    """A scan in a scan: two loops in the compiled text, and no host callbacks."""
    compilations = []
    means = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    score_fn = mixture_score_fn(jnp.array([0.5, 0.5]), means, jnp.ones(2), SIGMAS)

    @jax.jit
    def run(keys, x, step_size):
        compilations.append(1)  # runs when traced
        settings = {"step_size": step_size, "num_steps": 50, "denoise": True}
        return annealed_langevin(keys, score_fn, x, SIGMAS, **settings).x

    keys, x = chains(4)
    text = run.lower(keys, x, 0.01).compile().as_text()
    loops = [line for line in text.splitlines() if " while(" in line]
    for trips in (6, 50):
        assert sum(f'"known_trip_count":{{"n":"{trips}"}}' in line for line in loops) == 1
    assert "callback" not in text
    run(keys, x, 0.01)
    run(keys, x + 1, 0.02)
    assert len(compilations) == 1
    assert run._cache_size() == 1


def executions(function, folder):
    """Number of launched executables while `function` ran, from the profiler's record."""
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
        settings = {"step_size": 0.01, "num_steps": num_steps}
        run = jax.jit(
            lambda keys, x, s=sigmas, settings=settings: annealed_langevin(
                keys, GAUSSIAN, x, s, **settings
            )
        )
        jax.block_until_ready(run(keys, x))
        folder = tmp_path / str(num_levels)
        counts[num_levels * num_steps] = executions(lambda run=run: run(keys, x), folder)
    assert counts == {2: 1, 320: 1}
    # The count counts.
    assert executions(lambda: [run(keys, x), run(keys, x)], tmp_path / "twice") == 2


def test_memory_does_not_grow_with_the_number_of_steps():
    keys, x = chains(64)

    def temporary_bytes(num_steps):
        settings = {"step_size": 0.01, "num_steps": num_steps}
        run = jax.jit(lambda keys, x: annealed_langevin(keys, GAUSSIAN, x, SIGMAS, **settings))
        return run.lower(keys, x).compile().memory_analysis().temp_size_in_bytes

    # The step numbers themselves take 4 bytes each.
    assert temporary_bytes(1000) - temporary_bytes(10) < 20_000


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
        annealed_langevin(keys, GAUSSIAN, x, **arguments)


def test_the_baseline_is_as_many_steps_at_the_last_level():
    sigmas = geometric_sigmas(1.0, 0.1, 3)
    exact = gaussian_score_fn(jnp.zeros(2), 0.5, sigmas)
    keys = jax.random.split(jax.random.key(0), 8)
    x = np.ones((8, 2), np.float32)
    last = np.full(8, 2)
    plain = langevin(keys, exact, x, last, step_size=0.003, num_steps=12).x
    run = functools.partial(
        langevin_baseline, keys, exact, x, sigmas, step_size=0.003, num_steps=4
    )
    found = run(num_snapshots=3)
    np.testing.assert_allclose(found.x, plain, rtol=1e-6)
    assert found.finite.shape == (3, 8)
    denoised = run(denoise=True).x
    np.testing.assert_allclose(denoised, denoise(exact, found.x, last, sigmas), rtol=1e-5)


# Every sampler, as a function of (keys, score_fn, x, sigmas, step size in units of sigma_L^2).


def run_inpaint(keys, score_fn, x, sigmas, step_size, **more):
    known, mask = jnp.ones_like(x), jnp.zeros(x.shape, bool)
    settings = {"step_size": step_size, "num_steps": 2, **more}
    return inpaint(keys, score_fn, x, known, mask, sigmas, **settings)


def run_interpolate(keys, score_fn, x, sigmas, step_size, **more):
    angle = jnp.full(len(x), 0.3, jnp.float32)
    settings = {"step_size": step_size, "num_steps": 2, **more}
    return interpolate(keys, keys, angle, score_fn, x, sigmas, **settings)


def run_langevin(keys, score_fn, x, sigmas, step_size):
    level = jnp.full(len(x), len(sigmas) - 1, jnp.int32)
    return langevin(keys, score_fn, x, level, step_size=step_size, num_steps=2)


def runner(sampler):
    def run(keys, score_fn, x, sigmas, step_size, **more):
        return sampler(keys, score_fn, x, sigmas, step_size=step_size, num_steps=2, **more)

    return run


SAMPLERS = {
    "langevin": run_langevin,
    "annealed": runner(annealed_langevin),
    "baseline": runner(langevin_baseline),
    "consistent": runner(consistent_annealed_sampling),
    "inpaint": run_inpaint,
    "interpolate": run_interpolate,
}


def pull(x, level):
    return -x


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return SAMPLERS[request.param]


def test_every_sampler_returns_a_trajectory(sampler):
    keys, x = chains(4)
    found = sampler(keys, pull, x, SIGMAS, 0.02)
    assert isinstance(found, Trajectory)
    assert found.x.shape == (4, 2)
    assert found.snapshots.shape == (0, 4, 2)
    assert found.finite.shape[1] == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_chains_keep_their_dtype(sampler, dtype):
    keys, x = chains(4)
    found = sampler(keys, pull, x.astype(dtype), SIGMAS, 0.02)
    assert found.x.dtype == found.snapshots.dtype == dtype
    wide = sampler(keys, pull, x, SIGMAS, 0.02).x
    precision = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(found.x.astype(jnp.float32), wide, atol=300 * precision)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_chains_keep_their_dtype_under_x64(sampler, dtype):
    """Noise levels have the other dtype, so that nothing but the chains decides."""
    keys, x = chains(4)
    other = {"float32": np.float64, "float64": np.float32}[dtype]
    with jax.enable_x64(True):
        start = jnp.asarray(np.asarray(x), dtype)
        found = sampler(keys, pull, start, np.asarray(SIGMAS, other), 0.02)
        assert found.x.dtype == found.snapshots.dtype == dtype
    if dtype == "float32":
        np.testing.assert_allclose(found.x, sampler(keys, pull, x, SIGMAS, 0.02).x, atol=1e-4)


def test_jit_and_vmap_in_step_size_and_sigmas(sampler):
    """Traced step sizes and noise levels give the results of concrete ones."""
    keys, x = chains(4)

    def run(step_size, sigmas):
        return sampler(keys, pull, x, sigmas, step_size).x

    jitted = jax.jit(run)
    np.testing.assert_allclose(jitted(0.02, SIGMAS), run(0.02, SIGMAS), atol=1e-4)
    step_sizes, scaled = jnp.array([0.015, 0.03]), jnp.stack([SIGMAS, SIGMAS * 1.1])
    mapped = jax.vmap(run, (0, None))(step_sizes, SIGMAS)
    mapped_sigmas = jax.vmap(run, (None, 0))(0.03, scaled)
    for i in (0, 1):
        np.testing.assert_allclose(mapped[i], jitted(step_sizes[i], SIGMAS), atol=1e-4)
        np.testing.assert_allclose(mapped_sigmas[i], jitted(0.03, scaled[i]), atol=1e-4)


def test_one_key_for_several_chains_is_an_error(sampler):
    keys, x = chains(3)
    with pytest.raises(ValueError, match=r"keys have shape \[1\], but x is a batch of 3"):
        sampler(keys[:1], pull, x, SIGMAS, 0.02)


def test_complex_and_integer_data_are_errors(sampler):
    keys, x = chains(3)
    with pytest.raises(ValueError, match="give the real and the imaginary part as two channels"):
        sampler(keys, pull, x.astype(jnp.complex64), SIGMAS, 0.02)
    with pytest.raises(ValueError, match="x is int32, but must be floating-point"):
        sampler(keys, pull, x.astype(jnp.int32), SIGMAS, 0.02)


def test_an_empty_batch_gives_an_empty_result(sampler):
    keys, x = chains(2)
    found = sampler(keys[:0], pull, x[:0], SIGMAS, 0.02)
    assert found.x.shape == (0, 2)
    assert found.finite.shape[1] == 0


@pytest.mark.parametrize("name", ["annealed", "baseline", "consistent"])
def test_recorded_noise_replaces_the_keys(name):
    keys, x = chains(4)
    run = SAMPLERS[name]
    recorded = jnp.stack([chain_noise(keys, n, (2,)) for n in range(2 * len(SIGMAS))])
    drawn = run(keys, pull, x, SIGMAS, 0.02)
    fed = run(None, pull, x, SIGMAS, 0.02, noise_fn=lambda n: recorded[n])
    np.testing.assert_allclose(fed.x, drawn.x, rtol=1e-5, atol=1e-6)
    silent = run(None, pull, x, SIGMAS, 0.02, noise_fn=lambda n: jnp.zeros_like(x))
    assert np.abs(silent.x - drawn.x).max() > 0.01


def test_levels_out_of_range_are_errors():
    keys, x = chains(2)
    with pytest.raises(ValueError, match="level=6 is out of range: levels are from 0 to 5"):
        denoise(GAUSSIAN, x, np.array([0, 6]), SIGMAS)
    with pytest.raises(ValueError, match="level=-1 is out of range"):
        langevin(keys, pull, x, np.array([0, -1]), step_size=0.1, num_steps=1)
