import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn
from score_jax.evaluation.objective import (
    common_sigmas,
    evaluate,
    losses_per_level,
    map_examples,
    score_error,
)
from score_jax.losses.dsm import annealed_dsm
from score_jax.noise import geometric_sigmas

SIGMAS = geometric_sigmas(2.0, 0.1, 4)


def test_losses_of_a_gaussian_at_every_level_are_the_known_ones():
    v, n = 0.7, 20000
    x = np.sqrt(v) * jax.random.normal(jax.random.key(0), (n, 3))
    exact = gaussian_score_fn(jnp.zeros(3), v, SIGMAS)
    losses = losses_per_level(jax.random.key(1), annealed_dsm, exact, x, np.arange(n), SIGMAS)
    assert losses.shape == (4, n)
    for level, sigma in enumerate(np.asarray(SIGMAS)):
        at_level = np.asarray(losses[level], np.float64)
        assert abs(at_level.mean() - 1.5 * v / (v + sigma**2)) < 5 * at_level.std() / np.sqrt(n)


def test_the_loss_of_an_example_does_not_depend_on_its_batch():
    score_fn = gaussian_score_fn(jnp.zeros(3), 1.0, SIGMAS)
    x, key = jax.random.normal(jax.random.key(0), (6, 3)), jax.random.key(1)
    whole = losses_per_level(key, annealed_dsm, score_fn, x, np.arange(6), SIGMAS)
    part = losses_per_level(key, annealed_dsm, score_fn, x[4:], np.arange(4, 6), SIGMAS)
    np.testing.assert_allclose(part, whole[:, 4:], rtol=1e-6)


def test_evaluate_covers_every_example_on_any_number_of_devices():
    v, n = 0.7, 5000
    x = (np.sqrt(v) * np.random.default_rng(0).normal(size=(n, 3))).astype(np.float32)
    exact = gaussian_score_fn(jnp.zeros(3), v, SIGMAS)
    run = functools.partial(evaluate, annealed_dsm, exact, x, SIGMAS, progress=False)
    losses = run(batch_size=1024)
    assert losses.shape == (n, 4)
    assert losses.dtype == np.float64
    for level, sigma in enumerate(np.asarray(SIGMAS)):
        assert_mean(losses[:, level], 1.5 * v / (v + sigma**2))
    for change in ({"batch_size": 700}, {"devices": jax.devices()[:1]}, {"device_megabytes": 0}):
        np.testing.assert_allclose(run(**change), losses, rtol=1e-5)
    assert np.abs(run(seed=1) - losses).max() > 0.1


def test_evaluate_conditions_on_labels():
    x = np.array([[1.0], [-1.0]] * 8, np.float32)
    label = np.array([0, 1] * 8)

    def score_fn(x, level, label):
        mean = jnp.where(label == 0, 1.0, -1.0)[:, None]
        return (mean - x) / SIGMAS[level][:, None] ** 2

    # Point masses: the exact score of the own class has no loss, that of the other class has.
    run = functools.partial(evaluate, annealed_dsm, score_fn, x, SIGMAS, progress=False)
    assert run(label=label, batch_size=16).max() < 1e-6
    assert run(label=1 - label, batch_size=16).min() > 0.49  # 2 / sigma^2 at sigma = 2


def test_evaluate_refuses_a_batch_that_the_devices_do_not_divide():
    score_fn = gaussian_score_fn(jnp.zeros(3), 1.0, SIGMAS)
    with pytest.raises(ValueError, match="batch_size=5 cannot be split over 2 devices"):
        evaluate(annealed_dsm, score_fn, np.zeros((8, 3), np.float32), SIGMAS, batch_size=5)


def test_map_examples_returns_the_pytree_of_the_function_for_every_draw():
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    score_fn = gaussian_score_fn(jnp.zeros(3), 1.0, SIGMAS)

    def both(keys, score_fn, x, level, sigmas):
        return {"loss": annealed_dsm(keys, score_fn, x, level, sigmas), "x": x, "level": level}

    run = functools.partial(map_examples, both, score_fn, x, SIGMAS, batch_size=4, progress=False)
    found = run(draws=3)
    assert found["loss"].shape == (3, 10, 4)
    assert found["x"].shape == (3, 10, 4, 3)
    assert all(array.dtype == np.float64 for array in found.values())
    np.testing.assert_array_equal(found["x"], np.broadcast_to(x[None, :, None], (3, 10, 4, 3)))
    np.testing.assert_array_equal(found["level"][1, 5], np.arange(4))

    # The first draw is that of `evaluate`; all draws are independent.
    losses = evaluate(annealed_dsm, score_fn, x, SIGMAS, batch_size=4, progress=False)
    np.testing.assert_allclose(found["loss"][0], losses, rtol=1e-6)
    first, second, third = found["loss"].reshape(3, -1)
    for one, other in ((first, second), (first, third), (second, third)):
        assert np.abs(one - other).min() > 0
    with pytest.raises(ValueError, match="draws=0 must be at least 1"):
        run(draws=0)


def test_map_examples_compiles_once_for_equal_arguments():
    x = np.zeros((4, 3), np.float32)
    traces = []

    def counted(keys, score_fn, x, level, sigmas):
        traces.append(1)
        return annealed_dsm(keys, score_fn, x, level, sigmas)

    score_fn = jax.tree_util.Partial(_shrink, jnp.ones(3))
    other = jax.tree_util.Partial(_shrink, 2 * jnp.ones(3))
    run = functools.partial(map_examples, counted, batch_size=4, progress=False)
    losses = run(score_fn, x, SIGMAS)
    before = len(traces)
    assert np.abs(run(other, x, SIGMAS) - losses).max() > 0
    assert len(traces) == before


def _shrink(scale, x, level):
    return -scale[None] * x


def test_common_sigmas_cover_the_range_that_all_levels_share():
    equal, note = common_sigmas([SIGMAS, np.asarray(SIGMAS)])
    np.testing.assert_array_equal(equal, SIGMAS)
    assert note is None
    ours, theirs = geometric_sigmas(2.0, 0.1, 8), geometric_sigmas(1.0, 0.01, 3)
    found, note = common_sigmas([ours, theirs])
    inside = int(((ours <= 1.0) & (ours >= 0.1)).sum())
    np.testing.assert_allclose(found, geometric_sigmas(1.0, 0.1, inside), rtol=1e-6)
    assert f"{inside} levels from 1 to 0.1" in note
    single, _ = common_sigmas([np.float32([0.5]), ours])
    np.testing.assert_array_equal(single, np.float32([0.5]))
    with pytest.raises(ValueError, match="no range in common: one network begins at"):
        common_sigmas([ours, np.float32([0.05, 0.01])])


def test_the_error_of_a_score_is_its_loss_above_the_minimum():
    """For a Gaussian, dsm(s) - dsm(truth) = sigma^2 / 2 E|s - truth|^2, and 0 for the truth."""
    n, v, wrong = 20_000, 0.7, 1.3
    x = np.sqrt(v) * jax.random.normal(jax.random.key(0), (n, 3))
    truth = gaussian_score_fn(jnp.zeros(3), v, SIGMAS)
    score_fn = gaussian_score_fn(jnp.zeros(3), wrong, SIGMAS)
    exact = score_error(truth)
    run = functools.partial(losses_per_level, jax.random.key(1), x=x, index=np.arange(n))
    assert float(run(exact, truth, sigmas=SIGMAS).max()) == 0.0
    found = np.asarray(run(exact, score_fn, sigmas=SIGMAS), np.float64)
    above = run(annealed_dsm, score_fn, sigmas=SIGMAS) - run(annealed_dsm, truth, sigmas=SIGMAS)
    for level, sigma in enumerate(np.asarray(SIGMAS, np.float64)):
        # The perturbed data have the variance v + sigma^2.
        factor = 1 / (v + sigma**2) - 1 / (wrong + sigma**2)
        assert_mean(found[level], 1.5 * sigma**2 * factor**2 * (v + sigma**2))
        assert_mean(np.asarray(above[level], np.float64) - found[level], 0.0)
