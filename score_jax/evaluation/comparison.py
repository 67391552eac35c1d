"""Paired comparison of runs: which differences of their losses are larger than chance gives.

    d_e = loss of run a - loss of run b at example e,   t = mean(d) / (std(d) / sqrt(examples))

All pairs of runs are compared at once. A difference counts as found if |t| exceeds the quantile of
the largest |t| of the family under the hypothesis that all differences are zero. That distribution
is estimated by random signs, one per example, of the centred differences: comparisons that are
correlated stay so, and the probability of any false alarm in the family is 1 - confidence.

The examples are the sample, and the networks are fixed: a verdict says which network has the lower
expected loss on such examples, not which training procedure gives better networks.

References: Westfall & Young (1993), "Resampling-based multiple testing" (single-step max-T);
Liu (1988), "Bootstrap procedures under some non-i.i.d. models".
"""

import itertools
import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

DIFFERENCE = 0.02
"""Relative difference of totals whose power is stated."""
POWER = 0.8
"""Power with which the smallest detectable difference is found."""
AT_ONCE = 4_000_000
"""Largest number of random signs in memory."""


class Value(NamedTuple):
    """The mean loss of one run and its standard errors over examples.

    Attributes:
        total: Mean over levels and examples.
        total_error: Its standard error.
        levels: Mean at each level, float64 [levels].
        levels_error: Their standard errors, float64 [levels].
    """

    total: float
    total_error: float
    levels: np.ndarray
    levels_error: np.ndarray


class Difference(NamedTuple):
    """The paired difference of two runs, a - b, in total or at one level.

    Attributes:
        difference: Mean of the differences.
        error: Its standard error.
        interval: Simultaneous confidence interval, (low, high): with probability `confidence`, the
            intervals of the whole family hold their true differences.
        p_value: Probability that the largest |t| of the family is at least this one if there are
            no differences; corrected for the number of comparisons.
        better: Name of the run with the lower loss; None if the interval includes 0.
    """

    difference: float
    error: float
    interval: tuple[float, float]
    p_value: float
    better: str | None


class Pair(NamedTuple):
    """Two runs compared.

    Attributes:
        runs: Their names, (a, b).
        total: Difference of the totals; its family is the totals of all pairs.
        levels: Difference at each level; the family is all levels of all pairs.
        power: Probability that a difference of 2 % of the mean of both totals is found.
        detectable: Smallest difference of totals that is found with probability 0.8, in units of
            the loss.
        detectable_percent: The same in percent of the mean of both totals; None if that is 0.
    """

    runs: tuple[str, str]
    total: Difference
    levels: tuple[Difference, ...]
    power: float
    detectable: float
    detectable_percent: float | None


class Comparison(NamedTuple):
    """The result of `compare`.

    Attributes:
        values: Name of the run -> its mean losses.
        pairs: All pairs of runs, in the order of the names; empty for a single run.
        confidence: Confidence of the intervals of each family.
        examples: Number of examples.
    """

    values: dict[str, Value]
    pairs: tuple[Pair, ...]
    confidence: float
    examples: int


def compare(
    losses: Mapping[str, np.ndarray],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    num_resamples: int = 10_000,
) -> Comparison:
    """Compares the losses of several runs on the same examples, levels and noise.

    The totals of all pairs are one family of comparisons, and all levels of all pairs another.

    Args:
        losses: Name of the run -> its losses [examples, levels], lower is better. Example e of all
            runs is the same example with the same noise; average over draws of the noise first.
        confidence: Probability, in (0, 1), that a family without differences gives no verdict.
        seed: Seed of the random signs.
        num_resamples: Number of draws of the signs, at least 100.

    Returns:
        Means, paired differences, intervals and verdicts.

    Raises:
        ValueError: If there is no run, the arrays differ in shape, hold fewer than two examples or
            values that are not finite, or confidence or num_resamples is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> losses = rng.normal(size=(200, 5))
        >>> found = sj.compare({"a": losses, "b": losses + 1 + rng.normal(size=(200, 5))})
        >>> found.pairs[0].total.better
        'a'
    """
    arrays = {name: np.asarray(array, np.float64) for name, array in losses.items()}
    _check(arrays, confidence, num_resamples)
    number = len(next(iter(arrays.values())))
    values = {name: _value(array) for name, array in arrays.items()}
    names = list(itertools.combinations(arrays, 2))
    if not names:
        return Comparison(values, (), confidence, number)

    # Paired differences: of totals [examples, pairs], and of levels [examples, pairs * levels].
    by_level = np.stack([arrays[a] - arrays[b] for a, b in names], axis=1)
    num_levels = by_level.shape[2]
    totals, critical = _family(by_level.mean(axis=2), confidence, seed, num_resamples)
    levels, _ = _family(by_level.reshape(number, -1), confidence, seed, num_resamples)

    pairs = []
    for index, (a, b) in enumerate(names):
        own = levels[index * num_levels : (index + 1) * num_levels]
        scale = abs(values[a].total + values[b].total) / 2
        error = totals[index].error
        detectable = (critical + NormalDist().inv_cdf(POWER)) * error
        pairs.append(
            Pair(
                runs=(a, b),
                total=_named(totals[index], a, b),
                levels=tuple(_named(each, a, b) for each in own),
                power=_power(DIFFERENCE * scale, error, critical),
                detectable=detectable,
                detectable_percent=100 * detectable / scale if scale else None,
            )
        )
    return Comparison(values, tuple(pairs), confidence, number)


def _check(arrays: dict[str, np.ndarray], confidence: float, num_resamples: int) -> None:
    """Raises a ValueError for arguments that `compare` cannot use."""
    if not arrays:
        raise ValueError("losses is empty: give the losses of one run or more")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must be in (0, 1)")
    if num_resamples < 100:
        raise ValueError(f"num_resamples={num_resamples} must be at least 100")
    first, shape = next((name, array.shape) for name, array in arrays.items())
    for name, array in arrays.items():
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(
                f"losses[{name!r}] has shape {list(array.shape)}, but must be [examples, levels]"
            )
        if array.shape != shape:
            raise ValueError(
                f"losses[{name!r}] has shape {list(array.shape)}, but losses[{first!r}] "
                f"{list(shape)}: evaluate both on the same examples and levels"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"losses[{name!r}] holds values that are not finite")
    if shape[0] < 2:
        raise ValueError("losses of one example have no standard error: give two or more examples")


def _value(losses: np.ndarray) -> Value:
    """Means and standard errors of losses [examples, levels]."""
    totals = losses.mean(axis=1)
    return Value(
        total=float(totals.mean()),
        total_error=float(_standard_error(totals)),
        levels=losses.mean(axis=0),
        levels_error=_standard_error(losses),
    )


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis; exactly 0 if all values are equal."""
    errors = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return np.where((values == values[:1]).all(axis=0), 0.0, errors)


def _family(
    differences: np.ndarray, confidence: float, seed: int, num_resamples: int
) -> tuple[list[Difference], float]:
    """The differences [examples, comparisons] of one family, and the critical value of |t|."""
    means, errors = differences.mean(axis=0), _standard_error(differences)
    largest = _largest_statistics(differences - means[None], errors > 0, seed, num_resamples)

    # The probability that the largest |t| exceeds the critical value is 1 - confidence.
    rank = min(math.ceil(confidence * (num_resamples + 1)), num_resamples)
    critical = float(np.sort(largest)[rank - 1])
    found = []
    for mean, error in zip(means.tolist(), errors.tolist(), strict=True):
        statistic = abs(mean) / error if error else (math.inf if mean else 0.0)
        above = int((largest >= statistic).sum()) if statistic else num_resamples
        half = critical * error
        found.append(
            Difference(
                difference=mean,
                error=error,
                interval=(mean - half, mean + half),
                p_value=(1 + above) / (1 + num_resamples),
                better=None,
            )
        )
    return found, critical


def _largest_statistics(
    centred: np.ndarray, varies: np.ndarray, seed: int, num_resamples: int
) -> np.ndarray:
    """The largest |t| of a family for random signs of its examples, [num_resamples].

    Args:
        centred: Differences less their means, [examples, comparisons].
        varies: Comparisons whose differences are not all equal; the others have no statistic.
        seed: Seed of the signs.
        num_resamples: Number of draws of the signs.
    """
    centred = centred[:, varies]
    if not centred.shape[1]:
        return np.zeros(num_resamples)
    number = len(centred)
    centred = centred / np.abs(centred).max(axis=0, keepdims=True)
    squares = (centred**2).mean(axis=0)
    rng = np.random.default_rng(seed)
    found = []
    for first in range(0, num_resamples, size := max(1, AT_ONCE // number)):
        # Signs leave the squares as they are, so that the variance follows from the mean.
        rows = min(size, num_resamples - first)
        signs = 2.0 * rng.integers(0, 2, (rows, number), dtype=np.int8) - 1.0
        means = signs @ centred / number
        variances = np.maximum(squares[None] - means**2, np.finfo(float).tiny) / (number - 1)
        found.append(np.abs(means / np.sqrt(variances)).max(axis=1))
    return np.concatenate(found)


def _named(difference: Difference, a: str, b: str) -> Difference:
    """Adds the verdict: the run with the lower loss, if the interval excludes 0."""
    low, high = difference.interval
    if low <= 0 <= high:
        return difference
    return difference._replace(better=a if high < 0 else b)


def _power(difference: float, error: float, critical: float) -> float:
    """Probability that a true difference is found, by the normal approximation."""
    if not error:
        return 1.0 if difference else 0.0
    normal, shift = NormalDist(), difference / error
    return normal.cdf(shift - critical) + normal.cdf(-shift - critical)
