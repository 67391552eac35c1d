"""Chains in batches over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

import score_jax as sj
from score_jax.noise import example_keys, run_keys, split_keys, standard_normal
from score_jax.sampling import default_step_size

pytestmark = pytest.mark.optimized  # Bits of a sample, in programs as users run them.
SIGMAS = sj.geometric_sigmas(2.0, 0.1, 8)
EXACT = sj.gaussian_score_fn(jnp.array([1.0, -2.0]), 0.25, SIGMAS)
sample = functools.partial(sj.sample, EXACT, SIGMAS, shape=(2,), progress=False)


def test_samples_of_a_gaussian_obey_the_law_of_the_sampler():
    """Annealed Langevin dynamics with the exact score, against its recursion in float64."""
    x = sample(number=20_000, num_steps=5, denoise=False, batch_size=20_000).astype(np.float64)
    assert x.shape == (20_000, 2)
    sigmas = np.asarray(SIGMAS, np.float64)
    step_size = sj.step_size_for(sigmas, 5)
    mean, variance = np.zeros(2), sigmas[0] ** 2
    for sigma in sigmas:
        alpha = step_size * (sigma / sigmas[-1]) ** 2
        a = 1 - alpha / (0.25 + sigma**2)
        for _ in range(5):
            target = np.array([1.0, -2.0])
            mean, variance = target + a * (mean - target), a**2 * variance + 2 * alpha
    for d in (0, 1):
        assert_mean(x[:, d], mean[d])
        assert_mean((x[:, d] - mean[d]) ** 2, variance)


def test_a_sample_depends_on_seed_and_index_alone():
    whole = sample(number=24, seed=5)
    for change in (
        {"batch_size": 4},
        {"devices": jax.devices()[:1], "batch_size": 7},
        {"devices": jax.devices(), "batch_size": 10},
    ):
        np.testing.assert_allclose(sample(number=24, seed=5, **change), whole, atol=1e-5)
    np.testing.assert_allclose(sample(number=5, seed=5), whole[:5], atol=1e-5)
    np.testing.assert_array_equal(sample(number=24, seed=5), whole)
    assert np.abs(sample(number=24, seed=6) - whole).max(1).min() > 1e-3


def test_it_is_the_sampler_called_with_the_keys_of_the_run():
    keys = example_keys(run_keys(3)["sample"], np.arange(6))
    start_keys, chain_keys = split_keys(keys)
    start = SIGMAS[0] * standard_normal(start_keys, (2,))
    settings = {"step_size": 0.004, "num_steps": 3, "denoise": True}
    expected = sj.annealed_langevin(chain_keys, EXACT, start, SIGMAS, **settings).x
    found = sample(number=6, seed=3, step_size=0.004, num_steps=3)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def linear_network():
    def init(key, x, level):
        return {"mean": jnp.zeros(x.shape[1:])}

    def apply(params, x, level):
        return (params["mean"][None] - x) / (0.25 + SIGMAS[level][:, None] ** 2)

    return init, apply


def test_other_parameters_of_a_network_do_not_compile_again():
    model = sj.Model(*linear_network())
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )

    def draw(mean, **more):
        score_fn = sj.score_fn(model, {"mean": jnp.full(2, mean)})
        settings = {"number": 8, "shape": (2,), "progress": False, **more}
        return sj.sample(score_fn, SIGMAS, **settings)

    first = draw(0.0)
    compiled.clear()
    second = draw(3.0)
    assert compiled == []
    assert (second.mean(0) - first.mean(0) > 1).all()
    np.testing.assert_array_equal(draw(0.0), first)
    draw(0.0, num_steps=3)
    assert compiled  # the listener listens


def test_what_is_compiled_is_announced(capsys):
    sj.sample(lambda x, level: -x, SIGMAS, number=4, shape=(3,), num_steps=1)
    shown = capsys.readouterr().out
    assert "compiling the sampler (batch of 4 on 2 x cpu) ..." in shown
    assert "sample 4/4" in shown


def test_callbacks_receive_every_batch():
    seen = []
    found = sample(
        number=10,
        batch_size=4,
        num_snapshots=3,
        callbacks=[lambda first, trajectory: seen.append((first, trajectory))],
    )
    assert [first for first, _ in seen] == [0, 4, 8]
    np.testing.assert_array_equal(np.concatenate([t.x for _, t in seen]), found)
    assert [t.snapshots.shape for _, t in seen] == [(3, 4, 2), (3, 4, 2), (3, 2, 2)]
    assert seen[0][1].finite.shape == (8, 4)
    assert seen[0][1].finite.all()


def test_a_set_can_be_drawn_in_parts():
    """Chains 4 to 9 alone are those of the whole set, with their labels; nothing is collected."""
    whole = sample(number=10, batch_size=4)
    seen = []

    def callback(first, trajectory):
        seen.append((first, trajectory.x))
        return {"parts": 1.0}

    found = sample(number=6, first=4, batch_size=4, callbacks=[callback], collect=False)
    assert found.shape == (0, 2)
    assert [first for first, _ in seen] == [4, 8]
    np.testing.assert_array_equal(np.concatenate([x for _, x in seen]), whole[4:])
    with pytest.raises(ValueError, match="first=-1 must be at least 0"):
        sample(number=4, first=-1)


def test_every_sampler_is_accepted():
    for sampler in (sj.consistent_annealed_sampling, sj.langevin_baseline):
        x = sample(number=400, sampler=sampler, num_steps=4)
        assert x.shape == (400, 2)
        assert np.isfinite(x).all()


def test_consistent_sampling_keeps_the_law_of_a_gaussian():
    """With many small steps and the exact score, the marginal is that of the data."""
    exact = sj.gaussian_score_fn(jnp.ones(2), 0.25, SIGMAS)
    x = sj.sample(
        exact,
        SIGMAS,
        number=20_000,
        shape=(2,),
        sampler=sj.consistent_annealed_sampling,
        num_steps=20,
        start=sj.normal_start((0.25 + 4.0) ** 0.5, center=1.0),
        batch_size=20_000,
        progress=False,
    ).astype(np.float64)
    assert_mean(x.ravel(), 1.0)
    np.testing.assert_allclose(((x - 1) ** 2).mean(), 0.25, rtol=0.05)


def test_starts():
    keys = jax.random.split(jax.random.key(0), 4000)
    x = np.asarray(sj.normal_start(2.0, center=0.5)(keys, (2,)), np.float64).ravel()
    assert_mean(x, 0.5)
    assert_mean((x - 0.5) ** 2, 4.0)
    x = np.asarray(sj.uniform_start()(keys, (2,)), np.float64).ravel()
    assert_mean(x, 0.5)
    assert 0 <= x.min() <= x.max() < 1
    assert sj.normal_start(2.0) == sj.normal_start(2.0) != sj.normal_start(1.0)
    assert np.abs(sample(number=8, start=sj.uniform_start()) - sample(number=8)).max() > 1e-3


def test_a_chain_that_is_not_finite_is_named():
    def overflowing(x, level):
        return jnp.where((level == 3)[:, None] & (x[:, :1] > 0), jnp.nan, EXACT(x, level))

    with pytest.raises(
        FloatingPointError, match=r"chain \d is not finite after noise level 3 \(sigma .*\): lower"
    ):
        sj.sample(overflowing, SIGMAS, number=8, shape=(2,), progress=False)

    def bad_end(x, level):
        return jnp.where((level == 7)[:, None] & (jnp.abs(x).max() < 1e9), x * jnp.inf, -x)

    with pytest.raises(FloatingPointError, match="is not finite after"):
        sj.sample(bad_end, SIGMAS, number=2, shape=(2,), progress=False)


def test_every_chain_has_its_own_label_in_every_batch():
    """Classes are Gaussians of mean 3 label and standard deviation 0.1."""

    def score_fn(x, level, label):
        return (3.0 * label[:, None] - x) / (0.01 + SIGMAS[level][:, None] ** 2)

    label = np.array([4, 0, 3, 1, 2])
    settings = {"number": 5, "shape": (1,), "num_steps": 30, "batch_size": 4, "progress": False}
    x = sj.sample(score_fn, SIGMAS, label=label, **settings)
    np.testing.assert_array_equal(np.round(x[:, 0] / 3), label)
    one_class = sj.sample(score_fn, SIGMAS, label=3, **settings)
    np.testing.assert_array_equal(np.round(one_class[:, 0] / 3), np.full(5, 3))


def test_chains_that_only_fill_up_the_last_batch_are_not_checked():
    def program(shared, own):
        index, _ = own
        x = jnp.where(index < 5, 1.0, jnp.nan)[:, None]
        return sj.Trajectory(x, jnp.zeros((0, *x.shape)), jnp.isfinite(x).T)

    found = sj.run_chains(program, (), 5, batch_size=4, progress=False)
    np.testing.assert_array_equal(found, np.ones((5, 1)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"number": 0}, "number=0 must be at least 1"),
        ({"seed": 2**32}, "seed=4294967296 must be in"),
        ({"batch_size": 3}, "batch_size=3 cannot be split over 2 devices: use 2 or 4"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"step_size": -1.0}, "step_size=-1.0 must be positive"),
        ({"label": np.zeros(3, int)}, r"label is int64 \[3\], but must be a whole number or"),
        ({"label": np.full(4, 0.5)}, r"label is float64 \[4\], but must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        sample(**{"number": 4, **change})


def test_default_step_sizes():
    assert default_step_size(sj.annealed_langevin, SIGMAS, 5) == sj.step_size_for(SIGMAS, 5)
    ancestral = sj.ancestral_step_size(SIGMAS, 5)
    assert default_step_size(sj.consistent_annealed_sampling, SIGMAS, 5) == ancestral
    with pytest.raises(ValueError, match="two or more noise levels"):
        default_step_size(sj.annealed_langevin, SIGMAS[:1], 5)
