"""Predictor-corrector sampling: a step to the next sigma, then Langevin steps at that sigma.

    predictor:  x <- x + a s(x, sigma) + b z               from sigma to sigma'
    corrector:  x <- x + alpha s(x, sigma') + sqrt(2 alpha) z,   alpha = 2 r^2 sigma'^2

with, for d = sigma^2 - sigma'^2,

    reverse diffusion:  a = d,                       b = sqrt(d)
    ancestral:          a = d,                       b = sqrt(d) sigma' / sigma
    Euler:              a = sigma (sigma - sigma'),  b = 0    (the probability-flow ODE)

Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential
equations", algorithms 2 and 4 and appendix F. They take r ||z|| / ||s|| for the size of a
corrector's step, with the norms of the batch at hand; here ||z|| / ||s|| is replaced by sigma',
its expected value, so that a chain does not depend on its batch.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_jax.continuous_score import continuous
from score_jax.samplers.grid import run_steps, step_sigmas
from score_jax.samplers.loop import Trajectory
from score_jax.typing import AnyBatch, AnyKeys, Array, NoiseFn, ObserveFn, Scalar, ScoreFn, Sigmas

PREDICTORS = ("reverse_diffusion", "ancestral", "euler")


def predictor_corrector(
    keys: AnyKeys | None,
    score_fn: ScoreFn,
    x: AnyBatch,
    sigmas: Sigmas,
    *,
    num_steps: int,
    denoise: bool = True,
    num_snapshots: int = 0,
    noise_fn: NoiseFn | None = None,
    observe: ObserveFn | None = None,
    predictor: str = "reverse_diffusion",
    num_corrector_steps: int = 1,
    snr: Scalar = 0.16,
    grid: str = "geometric",
) -> Trajectory:
    """Runs chains of `num_steps` predictor steps, each followed by corrector steps.

    Args:
        keys: One key per chain; do not reuse them. Ignored if `noise_fn` is given.
        score_fn: The score at every level, in 1/unit of `x`; between the levels as in
            `continuous_score.continuous`.
        x: Initial states with noise of standard deviation sigma_1, [batch, *shape].
        sigmas: Noise levels of `score_fn`, decreasing, two or more.
        num_steps: Predictor steps from the first level to the last, at least 1. The score is
            evaluated num_steps (1 + num_corrector_steps) times.
        denoise: If True, one more evaluation ends the chain at the posterior mean.
        num_snapshots: Number of snapshots to keep, at most one per predictor step.
        noise_fn: n -> standard normal noise of update n, predictors and correctors counted in
            their order; None draws it from `keys`.
        observe: As in `loop.anneal`.
        predictor: "reverse_diffusion", "ancestral" or "euler".
        num_corrector_steps: Langevin steps after each predictor step, 0 or more.
        snr: r, the target signal-to-noise ratio of a corrector step; above 0.
        grid: "geometric", or "edm" for `noise.edm_sigmas`.

    Returns:
        The trajectory, with `finite` [num_steps, batch]. Not clipped.

    Raises:
        ValueError: As `loop.anneal`; if another argument is out of range.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> sj.predictor_corrector(keys, score_fn, jnp.zeros((8, 2)), sigmas, num_steps=10).x.shape
        (8, 2)
    """
    if num_corrector_steps < 0:
        raise ValueError(f"num_corrector_steps={num_corrector_steps} must be at least 0")
    steps = step_sigmas(sigmas, num_steps, grid)
    table = update_table(steps, predictor, num_corrector_steps, snr)

    def update(x, score, noise, level, n):
        return x + table.drift[n] * score + table.diffusion[n] * noise

    return run_steps(
        update,
        keys,
        continuous(score_fn, sigmas),
        x,
        steps,
        table.sigma,
        denoise=denoise,
        num_snapshots=num_snapshots,
        noise_fn=noise_fn,
        observe=observe,
        noise_scale=lambda level, n: table.diffusion[n],
        num_updates=1 + num_corrector_steps,
    )


def ancestral(
    keys: AnyKeys | None,
    score_fn: ScoreFn,
    x: AnyBatch,
    sigmas: Sigmas,
    *,
    num_steps: int,
    denoise: bool = True,
    num_snapshots: int = 0,
    noise_fn: NoiseFn | None = None,
    observe: ObserveFn | None = None,
    grid: str = "geometric",
) -> Trajectory:
    """Ancestral sampling: `predictor_corrector` with the ancestral predictor alone.

    Arguments, result and errors are those of `predictor_corrector`.

    Reference: Song et al. (2021), equation 47.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> sj.ancestral(keys, score_fn, jnp.zeros((8, 2)), sigmas, num_steps=10).x.shape
        (8, 2)
    """
    return predictor_corrector(
        keys,
        score_fn,
        x,
        sigmas,
        num_steps=num_steps,
        denoise=denoise,
        num_snapshots=num_snapshots,
        noise_fn=noise_fn,
        observe=observe,
        predictor="ancestral",
        num_corrector_steps=0,
        grid=grid,
    )


class Table(NamedTuple):
    """Coefficients of the updates x <- x + drift s(x, sigma) + diffusion z, [updates] each."""

    sigma: Array
    drift: Array
    diffusion: Array


def update_table(steps: Array, predictor: str, num_corrector_steps: int, snr: Scalar) -> Table:
    """The updates of predictor-corrector sampling.

    Args:
        steps: The sigmas between which the predictors lead, [num_steps + 1].
        predictor: As in `predictor_corrector`.
        num_corrector_steps: As in `predictor_corrector`.
        snr: As in `predictor_corrector`.

    Raises:
        ValueError: If `predictor` is unknown, or snr is concrete and not positive.
    """
    if not isinstance(snr, jax.core.Tracer) and not 0 < float(snr) < math.inf:
        raise ValueError(f"snr={snr} must be positive and finite")
    before, after = steps[:-1], steps[1:]
    removed = before**2 - after**2
    if predictor == "reverse_diffusion":
        drift, diffusion = removed, jnp.sqrt(removed)
    elif predictor == "ancestral":
        drift, diffusion = removed, jnp.sqrt(removed) * after / before
    elif predictor == "euler":
        drift, diffusion = before * (before - after), jnp.zeros_like(before)
    else:
        raise ValueError(f"predictor={predictor!r} must be one of {', '.join(PREDICTORS)}")

    # Each row holds a predictor and its correctors, which stay at the sigma after it.
    alpha = 2 * snr**2 * after**2
    corrector = [(after, alpha, jnp.sqrt(2 * alpha))] * num_corrector_steps
    updates = [(before, drift, diffusion), *corrector]
    return Table(*(jnp.stack(column, axis=1).reshape(-1) for column in zip(*updates, strict=True)))
