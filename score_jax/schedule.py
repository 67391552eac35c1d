"""Noise levels and step sizes that follow from the data: techniques 1, 2 and 4 of NCSNv2.

Reference: Song & Ermon (2020), "Improved techniques for training score-based generative models",
arXiv 2006.09011.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from score_jax.noise import check_counts
from score_jax.typing import Sigmas


class Distance(NamedTuple):
    """A distance between two examples of a set.

    Attributes:
        value: Euclidean distance, in the unit of the data.
        first: Index of one of the examples.
        second: Index of the other one.
    """

    value: float
    first: int
    second: int


def largest_distance(x: np.ndarray, block_size: int = 2048) -> Distance:
    """Technique 1: the largest Euclidean distance between two examples, for the first sigma.

    Time grows with the square of the number of examples: 2 D operations per pair in D dimensions.

    Args:
        x: Examples, [examples, *shape].
        block_size: Number of examples whose distances are computed at once; memory grows with its
            square.

    Returns:
        The distance, in float64, and its pair of examples. Pairs are compared in float32, so the
        distance of another pair may be larger by a rounding error.

    Raises:
        ValueError: If there are fewer than two examples, or block_size is less than 1.

    Example:
        >>> sj.largest_distance(np.array([[0.0, 0.0], [1.0, 1.0], [3.0, 4.0]])).value
        5.0
    """
    if len(x) < 2:
        raise ValueError(f"a distance needs two or more examples, got {len(x)}")
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1")
    starts = range(0, len(x), block_size)
    best = Distance(-1.0, 0, 1)
    for start in starts:
        # Subtract the mean of the block: smaller numbers lose less to cancellation.
        rows = _flat(x[start : start + block_size])
        center = rows.mean(axis=0, keepdims=True)
        rows = rows - center
        row_squares = np.sum(rows**2, axis=1)[:, None]

        # Squared distances to this block and to all later ones.
        for other in starts:
            if other < start:
                continue
            columns = rows
            if other != start:
                columns = _flat(x[other : other + block_size]) - center
            squares = row_squares + np.sum(columns**2, axis=1)[None] - 2 * rows @ columns.T
            i, j = np.unravel_index(np.argmax(squares), squares.shape)
            if squares[i, j] > best.value:
                best = Distance(float(squares[i, j]), start + int(i), other + int(j))

    # Compute the distance of that pair again, in float64.
    first = _flat(x[best.first : best.first + 1]).astype(np.float64)
    second = _flat(x[best.second : best.second + 1])
    return best._replace(value=float(np.linalg.norm(first - second)))


def overlap(ratio: float, dimension: int) -> float:
    """Overlap of the noise radii of adjacent levels (technique 2).

    In D dimensions, the radius of the noise of one level is approximately normal. With ratio g of
    successive sigmas, the probability that it falls within three standard deviations of the radius
    of the next larger level is
        Phi(sqrt(2 D) (g - 1) + 3 g) - Phi(sqrt(2 D) (g - 1) - 3 g).

    Args:
        ratio: g, at least 1.
        dimension: D, at least 1.

    Raises:
        ValueError: If ratio or dimension is out of range.

    Reference: Proposition 2 and technique 2 of the paper above.

    Example:
        >>> round(sj.overlap(1.0375, 32 * 32 * 3), 2)
        0.57
    """
    if not ratio >= 1 or dimension < 1:
        raise ValueError(f"ratio={ratio} must be 1 or above and dimension={dimension} at least 1")
    shift = math.sqrt(2 * dimension) * (ratio - 1)
    return _normal_cdf(shift + 3 * ratio) - _normal_cdf(shift - 3 * ratio)


def num_levels_for(sigma_max: float, sigma_min: float, dimension: int, target: float = 0.5) -> int:
    """Technique 2: the smallest number of geometric levels with an `overlap` of at least `target`.

    Args:
        sigma_max: First sigma.
        sigma_min: Last sigma, above 0 and below `sigma_max`.
        dimension: Dimension of the data.
        target: Overlap of adjacent levels. The rule of the paper is about 0.5; its published
            schedules have 0.567.

    Raises:
        ValueError: If the sigmas do not decrease, or target is not in (0, 0.99].

    Example:
        >>> sj.num_levels_for(50.0, 0.01, 32 * 32 * 3)
        220
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(
            f"sigma_max={sigma_max} must be above sigma_min={sigma_min}, both positive and finite"
        )
    if not 0 < target <= 0.99:
        raise ValueError(f"target={target} must be in (0, 0.99]")

    # The overlap falls as the ratio grows: bracket the ratio, then bisect.
    low, high = 1.0, 2.0
    while overlap(high, dimension) > target:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if overlap(middle, dimension) >= target:
            low = middle
        else:
            high = middle
    return max(2, math.ceil(math.log(sigma_max / sigma_min) / math.log(low)) + 1)


def _flat(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x.reshape(len(x), -1)


def _normal_cdf(z: float) -> float:
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


def step_size_for(sigmas: Sigmas | Sequence[float], num_steps: int) -> float:
    """Technique 4: the step size with which the spread of chains follows the noise levels.

    With g the ratio of successive sigmas and e = step_size / sigma_L^2, chains that arrive at a
    level with the spread of the level before leave it with the variance
        (1 - e)^(2T) (g^2 - v) + v,   v = 2 e / (1 - (1 - e)^2),
    in units of the level's own variance. The step size returned is the one in (0, sigma_L^2) that
    brings this closest to 1.

    Args:
        sigmas: Noise levels, decreasing, in a geometric sequence; two or more.
        num_steps: Steps per level, T.

    Returns:
        The step size at the last level, in the square of the unit of `sigmas`.

    Raises:
        ValueError: If there are fewer than two sigmas, or num_steps is less than 1.

    Reference: Equation 5 and technique 4 of the paper above.

    Example:
        >>> sigmas = sj.geometric_sigmas(50.0, 0.01, 232)
        >>> f"{sj.step_size_for(sigmas, num_steps=5):.1e}"
        '6.2e-06'
    """
    sigmas = np.asarray(sigmas, np.float64)
    if len(sigmas) < 2:
        raise ValueError(
            f"technique 4 needs two or more noise levels, got {len(sigmas)}: give a step size"
        )
    check_counts(num_steps=num_steps)
    ratio = (sigmas[0] / sigmas[-1]) ** (1 / (len(sigmas) - 1))

    def excess(e):
        v = 2 * e / (1 - (1 - e) ** 2)
        return (1 - e) ** (2 * num_steps) * (ratio**2 - v) + v - 1

    candidates = np.geomspace(1e-6, 1, 20001)[:-1]
    e = candidates[np.argmin(np.abs(excess(candidates)))]
    return float(e * sigmas[-1] ** 2)
