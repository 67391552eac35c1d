"""Diagnostics of chains at every noise level, recorded in the program that samples.

    score norm      sigma |s| / sqrt(D)                       1 or slightly below
    step to noise   |deterministic part| / |random part|      of a step
    out of range    share of the denoised values x + sigma^2 s outside the data's range
    spread          |x - c| / sqrt(E|data - c|^2 + D sigma^2)  1: as a Gaussian of the data's
                                                              covariance, perturbed by sigma

Norms are root mean squares over chains. c is a constant near the data's mean.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from score_jax.samplers.loop import Step
from score_jax.typing import Array, Float, Losses

TOO_FAR = 0.1
"""Relative deviation of spread and score norm above which a level is reported."""
STANDARD_ERRORS = 5.0
"""Standard errors by which a value must exceed that in addition."""
OUTSIDE = 0.2
"""Share of denoised values out of range above which a level is reported."""
MARGIN = 0.1
"""Share of the range by which a value may lie outside it."""


class ChainValues(NamedTuple):
    """Values of one step, per chain, [batch] or, as recorded, [levels, batch].

    Attributes:
        sigma: Noise level of the step.
        score: sigma^2 |s|^2 / D; -1 if the sampler evaluates the score elsewhere.
        drift: Square of the deterministic part of the step.
        random: Square of its random part.
        outside: Share of denoised values out of range; -1 without a range or a score.
        spread: |x - center|^2.
    """

    sigma: Array
    score: Array
    drift: Array
    random: Array
    outside: Array
    spread: Array


@dataclasses.dataclass(frozen=True)
class ChainObserver:
    """An observer for `sampling.sample`; equal for equal attributes.

    Attributes:
        center: c, about the mean of the data.
        low: Smallest value of the data; None if they have no range.
        high: Largest value.
    """

    center: float
    low: float | None = None
    high: float | None = None

    def __call__(self, step: Step) -> ChainValues:
        """Values of a step."""
        axes = tuple(range(1, step.x.ndim))
        missing = jnp.full(len(step.x), -1.0, jnp.float32)  # A nan would stop jax_debug_nans.
        score = outside = missing
        if step.score is not None:
            score = step.sigma**2 * jnp.mean(step.score**2, axis=axes)
        if step.score is not None and self.low is not None and self.high is not None:
            margin = MARGIN * (self.high - self.low)
            denoised = step.x + step.sigma**2 * step.score
            beyond = (denoised < self.low - margin) | (denoised > self.high + margin)
            outside = jnp.mean(beyond.astype(jnp.float32), axis=axes)
        return ChainValues(
            sigma=jnp.full(len(step.x), step.sigma, jnp.float32),
            score=score,
            drift=_square(step.drift, axes),
            random=_square(step.random, axes),
            outside=outside,
            spread=_square(step.x - self.center, axes),
        )


def _square(x: Array, axes: tuple[int, ...]) -> Losses:
    return jnp.sum(jnp.square(x), axis=axes).astype(jnp.float32)


class DataMoments(NamedTuple):
    """Moments and range of the data, in the unit of the network.

    Attributes:
        center: Mean over all values.
        square: E|x - center|^2.
        eigenvalues: Those of the covariance, [D]; None if D is too large to compute them.
        low: Smallest value of the data; None if they have no range.
        high: Largest value.
    """

    center: float
    square: float
    eigenvalues: np.ndarray | None
    low: float | None = None
    high: float | None = None


def data_moments(
    x: np.ndarray,
    low: float | None = None,
    high: float | None = None,
    largest: int = 1024,
) -> DataMoments:
    """The moments of examples.

    Args:
        x: Examples in the unit of the network, [examples, *shape].
        low: Smallest value that the data can have; None if they have no range.
        high: Largest value.
        largest: Largest number of dimensions for which eigenvalues are computed.

    Example:
        >>> x = np.random.default_rng(0).uniform(size=(100, 8)).astype(np.float32)
        >>> found = sj.data_moments(x)
        >>> abs(found.center - 0.5) < 0.05, found.eigenvalues.shape
        (True, (8,))
    """
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    center = float(x.mean())
    eigenvalues = None
    if x.shape[1] <= largest and len(x) > 1:
        covariance = np.atleast_2d(np.cov(x.T))
        eigenvalues = np.maximum(np.linalg.eigvalsh(covariance), 0)
    square = float(np.mean(np.sum((x - center) ** 2, axis=1)))
    return DataMoments(center, square, eigenvalues, low, high)


def gaussian_score_norm(sigmas: Any, eigenvalues: Any) -> Float[np.ndarray, "levels"]:
    """sigma |s| / sqrt(D) of a Gaussian of this covariance, a lower bound for other data.

    sigma^2 E|s|^2 = sum sigma^2 / (v + sigma^2): the score predicts the more of the noise, the
    wider the data.
    """
    squares = np.asarray(sigmas, np.float64)[:, None] ** 2
    return np.sqrt(np.mean(squares / (np.asarray(eigenvalues)[None] + squares), axis=1))


class Summary(NamedTuple):
    """Means and spread of the values of some chains, from which diagnostics follow.

    Attributes:
        number: Number of chains.
        mean: Mean over the chains, float64 [levels] each.
        squares: Sum of the squared deviations from it, float64 [levels] each.
    """

    number: int
    mean: ChainValues
    squares: ChainValues


def summary_of(observed: Sequence[ChainValues]) -> Summary:
    """The summary of batches of chains, each [levels, batch]."""
    parts = zip(*observed, strict=True)
    arrays: list[Any] = [np.concatenate(each, axis=1).astype(np.float64) for each in parts]
    joined = ChainValues(*arrays)
    mean = ChainValues(*(values.mean(axis=1) for values in joined))
    squares = ChainValues(*(values.var(axis=1) * values.shape[1] for values in joined))
    return Summary(joined.sigma.shape[1], mean, squares)


def combined(first: Summary, second: Summary) -> Summary:
    """The summary of the chains of two summaries.

    Reference: Chan, Golub & LeVeque (1979), Updating formulae and a pairwise algorithm for
    computing sample variances, equations 2.1.
    """
    number = first.number + second.number
    share = second.number / number
    mean, squares = [], []
    for a, b, a_squares, b_squares in zip(
        first.mean, second.mean, first.squares, second.squares, strict=True
    ):
        mean.append(a + share * (b - a))
        squares.append(a_squares + b_squares + first.number * share * (b - a) ** 2)
    return Summary(number, ChainValues(*mean), ChainValues(*squares))


def diagnose(
    observed: Sequence[ChainValues] | Summary, data: DataMoments, dimension: int
) -> list[dict[str, Any]]:
    """The diagnostics of each level, over all chains.

    Args:
        observed: Values of batches of chains, each [levels, batch], or their summary.
        data: Moments of the data.
        dimension: D.

    Returns:
        One row per level: index, sigma, score_norm, score_norm_expected (the lower end of the
        healthy range, whose upper end is 1), step_to_noise, out_of_range, spread and
        spread_expected, and the standard errors over chains of those that are measured, as
        NAME_error; None where a value is not defined.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
        >>> data = sj.data_moments(x)
        >>> observer = sj.ChainObserver(center=float(data.center))
        >>> seen = []
        >>> x = sj.sample(
        ...     score_fn, sigmas, number=100, shape=(2,), observe=observer, progress=False,
        ...     callbacks=[lambda first, chains: seen.append(chains.observed)],
        ... )
        >>> len(sj.diagnose(seen, data, dimension=2))  # one entry per level
        5
    """
    summary = observed if isinstance(observed, Summary) else summary_of(observed)
    means, squares, number = summary.mean, summary.squares, summary.number
    expected = np.full_like(means.sigma, np.nan)
    if data.eigenvalues is not None:
        expected = gaussian_score_norm(means.sigma, data.eigenvalues)
    healthy = data.square + dimension * means.sigma**2
    rows = []
    for i in range(len(means.sigma)):

        def measured(name: str, field: str, unit: Any = 1.0, root: bool = False, i: int = i):
            mean, total = getattr(means, field)[i], getattr(squares, field)[i]
            if not unit:
                return _with_error(name, np.nan, np.nan, number, root)
            return _with_error(name, mean / unit, total / unit**2, number, root)

        rows.append(
            {
                "index": i,
                "sigma": float(means.sigma[i]),
                **measured("score_norm", "score", root=True),
                "score_norm_expected": float(expected[i]) if np.isfinite(expected[i]) else None,
                **measured("step_to_noise", "drift", means.random[i], root=True),
                **measured("out_of_range", "outside"),
                **measured("spread", "spread", healthy[i], root=True),
                "spread_expected": 1.0,
            }
        )
    return rows


def _with_error(
    name: str, mean: float, squares: float, number: int, root: bool = False
) -> dict[str, float | None]:
    """The mean over chains, or its square root, with its standard error; None if not defined."""
    if not np.isfinite(mean) or mean < 0:  # -1 stands for a missing value.
        return {name: None, f"{name}_error": None}
    error = np.sqrt(squares / (number - 1) / number) if number > 1 else np.nan
    if root:
        mean = np.sqrt(mean)
        error = error / (2 * mean) if mean else 0.0  # The derivative of the square root
    return {name: float(mean), f"{name}_error": float(error) if np.isfinite(error) else None}


def _below_gaussian(row: dict[str, Any], value: float) -> float:
    """Relative deviation below the score norm of Gaussian data; 0 if that is not known."""
    expected = row["score_norm_expected"]
    return 0.0 if expected is None else 1 - value / expected


def warnings_of(rows: Sequence[dict[str, Any]], spread: bool = True) -> list[str]:
    """One sentence for each kind of value that is far from that of a healthy run.

    A value is far if it misses its target by more than a limit and five standard errors. A
    sentence names the worst level.

    Args:
        rows: The diagnostics, as `diagnose` makes them.
        spread: False for chains of a single class, whose spread is not that of the data.
    """
    kinds = [
        (
            "score_norm",
            lambda row, value: value - 1,
            "scores are larger than noise of this level allows: the steps are too large, or the "
            "level is not trained",
        ),
        (
            "score_norm",
            _below_gaussian,
            "scores are smaller than those of a Gaussian of the data's covariance: the level is "
            "not trained",
        ),
        (
            "out_of_range",
            lambda row, value: value - OUTSIDE + TOO_FAR,
            "denoised values leave the range of the data",
        ),
    ]
    if spread:
        kinds += [
            (
                "spread",
                lambda row, value: value - 1,
                "chains spread more than perturbed data: the steps are too large or too few",
            ),
            (
                "spread",
                lambda row, value: 1 - value,
                "chains spread less than perturbed data: they collapse, or the start is too "
                "narrow",
            ),
        ]
    found = []
    for name, deviation, meaning in kinds:
        bad = {}
        for row in rows:
            value, error = row[name], row[f"{name}_error"]
            if value is None or error is None:
                continue
            if deviation(row, value) > TOO_FAR + STANDARD_ERRORS * error:
                bad[row["index"]] = deviation(row, value)
        if not bad:
            continue
        row = rows[max(bad, key=lambda level: bad[level])]
        where = f"level {row['index']} (sigma {row['sigma']:.3g})"
        number = f"{len(bad)} of {len(rows)} levels"
        found.append(f"{name} {row[name]:.3g} at {where}, {number} affected: {meaning}")
    return found
