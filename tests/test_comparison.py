"""The comparison of runs, against simulated losses whose differences are known."""

import math

import numpy as np
import pytest

from score_jax.evaluation.comparison import compare

EXAMPLES, LEVELS, TRIALS = 300, 8, 200


def simulated(rng, runs=3, shift=0.0):
    """Losses of equal runs, correlated within examples and heavy-tailed; the last is shifted.

    Between examples they differ by a gamma-distributed factor, between runs by noise of Student's
    t distribution with 4 degrees of freedom that all levels of an example share in part.
    """
    example = rng.gamma(2.0, 4.0, (EXAMPLES, 1)) * np.linspace(0.5, 2.0, LEVELS)[None]
    losses = {}
    for run in range(runs):
        shared = rng.standard_t(4, (EXAMPLES, 1))
        own = rng.standard_t(4, (EXAMPLES, LEVELS))
        losses[f"run {run}"] = example + 0.5 * shared + 0.5 * own
    losses[f"run {runs - 1}"] += shift
    return losses


def test_equal_triples_give_false_alarms_at_the_nominal_rate():
    rng = np.random.default_rng(0)
    totals = levels = 0
    for trial in range(TRIALS):
        found = compare(simulated(rng), seed=trial, num_resamples=1000)
        totals += any(pair.total.better for pair in found.pairs)
        levels += any(level.better for pair in found.pairs for level in pair.levels)
    error = math.sqrt(0.05 * 0.95 / TRIALS)
    assert abs(totals / TRIALS - 0.05) < 2 * error
    assert abs(levels / TRIALS - 0.05) < 2 * error


def test_a_difference_is_found_with_the_stated_power():
    """The last of three runs is worse by 2 % of the mean of the totals."""
    rng = np.random.default_rng(1)
    shift = 0.02 * 10.0 / (1 - 0.01)
    found, stated, detectable = 0, [], []
    for trial in range(TRIALS):
        comparison = compare(simulated(rng, shift=shift), seed=trial, num_resamples=1000)
        pair = next(pair for pair in comparison.pairs if pair.runs == ("run 0", "run 2"))
        found += pair.total.better == "run 0"
        stated.append(pair.power)
        detectable.append(pair.detectable_percent)
    power = float(np.mean(stated))
    assert 0.3 < power < 0.95  # neither hopeless nor certain
    assert abs(found / TRIALS - power) < 3 * math.sqrt(power * (1 - power) / TRIALS)
    assert (np.array(detectable) > 2).mean() == (np.array(stated) < 0.8).mean()


def test_the_smallest_detectable_difference_is_found_with_power_80_percent():
    rng = np.random.default_rng(2)
    shift = np.mean([compare(simulated(rng)).pairs[1].detectable for _ in range(20)])
    found = 0
    for trial in range(TRIALS):
        comparison = compare(simulated(rng, shift=float(shift)), seed=trial, num_resamples=1000)
        found += comparison.pairs[1].total.better == "run 0"
    assert abs(found / TRIALS - 0.8) < 3 * math.sqrt(0.8 * 0.2 / TRIALS)


def test_values_and_differences_are_means_over_examples_with_standard_errors():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 50, 4)) + 3
    found = compare({"a": a, "b": b})
    (pair,) = found.pairs
    assert found.values["a"].total == pytest.approx(a.mean())
    np.testing.assert_allclose(found.values["b"].levels, b.mean(axis=0))
    np.testing.assert_allclose(found.values["b"].levels_error, b.std(0, ddof=1) / np.sqrt(50))
    paired = (a - b).mean(axis=1)
    assert pair.total.difference == pytest.approx(paired.mean())
    assert pair.total.error == pytest.approx(paired.std(ddof=1) / np.sqrt(50))
    assert pair.levels[2].difference == pytest.approx((a - b)[:, 2].mean())
    low, high = pair.total.interval
    assert low < pair.total.difference < high
    assert found.examples == 50


def test_the_interval_of_one_comparison_is_that_of_students_t():
    """With one level and two runs there is nothing to correct: t of 199 degrees of freedom."""
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 200, 1))
    (pair,) = compare({"a": a, "b": b}, num_resamples=100_000).pairs
    low, high = pair.total.interval
    assert (high - low) / 2 / pair.total.error == pytest.approx(1.972, rel=0.02)


def test_more_comparisons_need_larger_differences():
    losses = simulated(np.random.default_rng(5), runs=6)
    few = compare({name: losses[name] for name in ("run 0", "run 1")}).pairs[0]
    many = compare(losses).pairs[0]
    assert many.total.p_value >= few.total.p_value
    assert many.total.interval[0] < few.total.interval[0]
    assert many.levels[0].interval[0] < many.levels[0].difference - 2.5 * many.levels[0].error


def test_verdicts_agree_with_intervals_and_p_values_and_name_the_lower_loss():
    rng = np.random.default_rng(6)
    base = rng.normal(size=(100, 5))
    losses = {"a": base, "b": base + 0.01 * rng.normal(size=(100, 5)), "c": base + 0.5}
    found = {pair.runs: pair for pair in compare(losses).pairs}
    assert found["a", "c"].total.better == "a"
    assert found["b", "c"].total.better == "b"
    for pair in found.values():
        for each in (pair.total, *pair.levels):
            excludes = each.interval[0] > 0 or each.interval[1] < 0
            assert (each.better is not None) == excludes == (each.p_value <= 0.05)


@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_runs_without_variance_between_them_are_compared_exactly(offset):
    losses = np.random.default_rng(7).integers(0, 100, (20, 3)) / 4
    (pair,) = compare({"a": losses, "b": losses + offset}).pairs
    for each in (pair.total, *pair.levels):
        assert (each.difference, each.error) == (-offset, 0.0)
        assert each.interval == (-offset, -offset)
        assert each.better == ("a" if offset else None)
        assert each.p_value < 0.001 if offset else each.p_value == 1.0
    assert (pair.power, pair.detectable, pair.detectable_percent) == (1.0, 0.0, 0.0)


def test_zero_losses_and_a_single_run_give_finite_values():
    zero = np.zeros((5, 2))
    (pair,) = compare({"a": zero, "b": zero}).pairs
    assert (pair.power, pair.detectable_percent) == (0.0, None)
    alone = compare({"a": zero + 1})
    assert alone.pairs == ()
    assert (alone.values["a"].total, alone.values["a"].total_error) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("losses", "settings", "message"),
    [
        ({}, {}, "losses is empty"),
        ({"a": np.zeros(3)}, {}, r"losses\['a'\] has shape \[3\], but must be"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((3, 1))}, {}, r"losses\['b'\] has shape \[3, 1\]"),
        ({"a": np.zeros((1, 2))}, {}, "one example have no standard error"),
        ({"a": np.full((3, 2), np.nan)}, {}, "not finite"),
        ({"a": np.zeros((3, 2))}, {"confidence": 1.0}, r"confidence=1.0 must be in \(0, 1\)"),
        ({"a": np.zeros((3, 2))}, {"num_resamples": 9}, "num_resamples=9 must be at least 100"),
    ],
)
def test_losses_that_cannot_be_compared_are_refused(losses, settings, message):
    with pytest.raises(ValueError, match=message):
        compare(losses, **settings)
