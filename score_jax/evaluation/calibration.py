"""Calibration of a score network: tests that the score of a posterior mean passes.

For x~ = x + sigma z and the exact score, s = -E[z | x~] / sigma, so that

    slope       E<-z / sigma, s> / E|s|^2 = 1
    bias        E[x^ - x] = 0 for every value of x^ = x~ + sigma^2 s
    residual    E|sigma s + z|^2 / D <= that of the best linear denoiser, mean v / (v + sigma^2)

and sigma s + z = (x^ - x) / sigma is white where sigma is far below the details of the data.

Reference: Robbins (1956); Vincent (2011), section 4.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from score_jax.noise import perturb, sigma_of, standard_normal
from score_jax.typing import Array, Batch, Float, Keys, Levels, Losses, ScoreFn, Sigmas

STANDARD_ERRORS = 5.0
"""Standard errors by which a value must miss its target to be reported."""
SLOPE, BIAS, RESIDUAL = 0.25, 0.25, 0.02
"""Deviation from 1, share of sigma and relative excess above which a level is reported."""


class Residuals(NamedTuple):
    """Statistics of the residual r = sigma s + z, one per example, [batch].

    Attributes:
        square: |r|^2 / D, the loss of denoising score matching times 2 / D.
        score: sigma^2 |s|^2 / D.
        product: -sigma <z, s> / D, on average equal to `score` for the exact score.
        neighbours: Mean product of r at neighbouring pixels; nan if the data are not images.
        residual: r itself, [batch, *shape]; None in `residual_scalars`.
    """

    square: Losses
    score: Losses
    product: Losses
    neighbours: Losses
    residual: Batch | None


def residuals(keys: Keys, score_fn: ScoreFn, x: Array, level: Levels, sigmas: Sigmas) -> Residuals:
    """The residuals of perturbed examples.

    Args:
        keys: One per example; do not reuse them.
        score_fn: The score.
        x: Clean data, [batch, *shape].
        level: Level of each example.
        sigmas: Noise levels, decreasing.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> found = sj.residuals(keys, score_fn, jnp.zeros((8, 2)), jnp.zeros(8, int), sigmas)
        >>> found.square.shape  # |sigma s + z|^2 / D of each example
        (8,)
    """
    # The noise is that of `losses.dsm.annealed_dsm` for the same keys.
    noise = standard_normal(keys, x.shape[1:], x.dtype)
    perturbed = perturb(x, noise, level, sigmas)
    scaled = sigma_of(level, sigmas, x) * score_fn(perturbed, level)
    r = scaled + noise
    axes = tuple(range(1, x.ndim))
    neighbours = jnp.full(len(x), jnp.nan)
    if x.ndim == 4:
        products = [r[:, :, 1:] * r[:, :, :-1], r[:, 1:] * r[:, :-1]]
        means = [jnp.mean(each, axis=axes) for each in products if each.size]
        neighbours = sum(means, jnp.zeros(len(x))) / max(len(means), 1)
    return Residuals(
        square=jnp.mean(r**2, axis=axes),
        score=jnp.mean(scaled**2, axis=axes),
        product=-jnp.mean(noise * scaled, axis=axes),
        neighbours=neighbours,
        residual=r,
    )


def residual_scalars(
    keys: Keys, score_fn: ScoreFn, x: Array, level: Levels, sigmas: Sigmas
) -> Residuals:
    """`residuals` without the residual itself, for large images at many levels."""
    return residuals(keys, score_fn, x, level, sigmas)._replace(residual=None)


def gaussian_residual(sigmas: Any, eigenvalues: Any) -> Float[np.ndarray, "levels"]:
    """Residual of the best linear denoiser, mean v / (v + sigma^2), [levels]."""
    squares = np.asarray(sigmas, np.float64)[:, None] ** 2
    v = np.asarray(eigenvalues, np.float64)[None]
    return np.mean(v / (v + squares), axis=1)


def calibrate(
    found: Residuals, sigmas: Sigmas, eigenvalues: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """The calibration of each level.

    Args:
        found: Residuals of independent examples, averaged over draws: [examples, levels, ...].
        sigmas: Noise levels, decreasing.
        eigenvalues: Those of the training data's covariance; None if they are not known.

    Returns:
        One row per level: residual, gaussian_residual, slope, bias and whiteness, with the
        standard error of each value but the second as `NAME_error`; None where one is not
        defined. `bias` is the root mean square over values of E[x^ - x], in the unit of the data,
        and 0 if it does not exceed the noise of its estimate; `bias_error` is that noise.

    Raises:
        ValueError: If the residuals are not of these levels, or not averaged over draws.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
        >>> found = sj.map_examples(sj.residuals, score_fn, x, sigmas, progress=False)
        >>> found = jax.tree.map(lambda part: part.mean(axis=0), found)  # over draws
        >>> rows = sj.calibrate(found, sigmas)
        >>> all(abs(row["slope"] - 1) < 4 * row["slope_error"] for row in rows)
        True
    """
    shape = np.shape(found.square)
    if len(shape) != 2 or shape[1] != len(sigmas):
        raise ValueError(
            f"found.square is {list(shape)}, but needs [examples, {len(sigmas)}]: average the "
            "result of map_examples over draws, its first axis"
        )
    bound = None if eigenvalues is None else gaussian_residual(sigmas, eigenvalues)
    rows = []
    for i, sigma in enumerate(np.asarray(sigmas, np.float64)):
        square, score, product, near = (
            np.asarray(values[:, i], np.float64)
            for values in (found.square, found.score, found.product, found.neighbours)
        )
        number = len(square)
        slope, slope_error = _ratio(product, score)
        whiteness, whiteness_error = _ratio(near, square)
        bias = bias_error = None
        if found.residual is not None:
            bias, bias_error = _bias(np.asarray(found.residual[:, i], np.float64), sigma)
        rows.append(
            {
                "residual": float(square.mean()),
                "residual_error": _error(square) if number > 1 else None,
                "gaussian_residual": None if bound is None else float(bound[i]),
                "slope": slope,
                "slope_error": slope_error,
                "bias": bias,
                "bias_error": bias_error,
                "whiteness": whiteness,
                "whiteness_error": whiteness_error,
            }
        )
    return rows


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def _ratio(above: np.ndarray, below: np.ndarray) -> tuple[float | None, float | None]:
    """Ratio of two means over the same examples, and its standard error by the delta method."""
    mean = below.mean()
    if not np.isfinite(above).all() or not mean > 0 or len(above) < 2:
        return None, None
    ratio = above.mean() / mean
    return float(ratio), _error(above - ratio * below) / float(mean)


def _bias(residual: np.ndarray, sigma: float) -> tuple[float, float | None]:
    """Root mean square of the mean residual, without the noise of the estimate, times sigma."""
    number = len(residual)
    mean = residual.mean(axis=0)
    if number < 2:
        return float(sigma * np.sqrt(np.mean(mean**2))), None
    noise = np.mean(residual.var(axis=0, ddof=1)) / number
    excess = max(float(np.mean(mean**2) - noise), 0.0)
    return float(sigma * np.sqrt(excess)), float(sigma * np.sqrt(noise))


def calibration_warnings(rows: Sequence[dict[str, Any]], sigmas: Sigmas) -> list[str]:
    """One sentence for every level at which the network fails a test of calibration."""
    found = []
    for level, (row, sigma) in enumerate(zip(rows, np.asarray(sigmas), strict=True)):
        where = f"level {level} (sigma {float(sigma):.3g})"
        reasons = []
        if row["slope"] is None:
            reasons.append("the score is zero")
        elif abs(row["slope"] - 1) > SLOPE + STANDARD_ERRORS * row["slope_error"]:
            reasons.append(
                f"the slope of the noise on the score is {row['slope']:.3g} instead of 1"
            )
        bound, residual = row["gaussian_residual"], row["residual"]
        margin = STANDARD_ERRORS * (row["residual_error"] or 0.0)
        if bound is not None and residual > bound * (1 + RESIDUAL) + margin:
            reasons.append(
                f"the residual {residual:.3g} exceeds that of the best linear denoiser, "
                f"{bound:.3g}"
            )
        margin = BIAS * float(sigma) + STANDARD_ERRORS * (row["bias_error"] or 0.0)
        if row["bias"] is not None and row["bias"] > margin:
            reasons.append(f"the denoised values are off by {row['bias']:.3g} on average")
        if reasons:
            found.append(f"{where} is not well trained: {', and '.join(reasons)}")
    return found
