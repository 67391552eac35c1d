"""The probability-flow ODE: samples by a deterministic path, in few evaluations.

    dx / dsigma = -sigma s(x, sigma),   from sigma_1 down to sigma_L

Its solutions have the density of the perturbed data at every sigma. Euler's method takes one
evaluation of the score per step, Heun's method two.

Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential
equations", section 4.3; Karras et al. (2022), "Elucidating the design space of diffusion-based
generative models", algorithms 1 and 2.
"""

import math

import jax.numpy as jnp

from score_jax.continuous_score import ContinuousScoreFn, continuous
from score_jax.noise import check_batch
from score_jax.samplers.grid import run_steps, step_sigmas
from score_jax.samplers.loop import Trajectory
from score_jax.typing import (
    AnyBatch,
    AnyKeys,
    Array,
    Batch,
    JaxBatch,
    NoiseFn,
    ObserveFn,
    ScoreFn,
    Sigmas,
)

SOLVERS = ("heun", "euler")


def probability_flow(
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
    solver: str = "heun",
    grid: str = "edm",
) -> Trajectory:
    """Solves the probability-flow ODE from the first level to the last.

    Args:
        keys: Ignored; the path of a chain is determined by `x`.
        score_fn: The score at every level, in 1/unit of `x`; between the levels as in
            `continuous_score.continuous`.
        x: Initial states with noise of standard deviation sigma_1, [batch, *shape].
        sigmas: Noise levels of `score_fn`, decreasing, two or more. Concrete.
        num_steps: Steps of the whole path, at least 1: num_steps evaluations of the score by
            Euler's method and 2 num_steps by Heun's.
        denoise: If True, one more evaluation ends the path at the posterior mean.
        num_snapshots: Number of snapshots to keep, at most one per step.
        noise_fn: Ignored.
        observe: As in `loop.anneal`.
        solver: "heun" (second order) or "euler" (first order).
        grid: "edm" for `noise.edm_sigmas`, or "geometric".

    Returns:
        The trajectory, with `finite` [num_steps, batch]. Not clipped.

    Raises:
        ValueError: As `loop.anneal`; if `solver` or `grid` is unknown.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> sj.probability_flow(None, score_fn, jnp.ones((8, 2)), sigmas, num_steps=10).x.shape
        (8, 2)
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver={solver!r} must be one of {', '.join(SOLVERS)}")
    steps = step_sigmas(sigmas, num_steps, grid)
    at = continuous(score_fn, sigmas)

    def update(x, score, noise, level, n):
        return flow_step(at, x, score, steps[level], steps[level + 1], solver)

    # `anneal` evaluates the score at the sigma from which a step starts.
    still = jnp.zeros((), check_batch(x).dtype)
    return run_steps(
        update,
        None,
        at,
        x,
        steps,
        steps[:-1],
        denoise=denoise,
        num_snapshots=num_snapshots,
        noise_fn=lambda n: still,
        observe=observe,
    )


def stochastic_heun(
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
    churn: float = 0.4,
    churn_range: tuple[float, float] = (0.0, math.inf),
    grid: str = "edm",
) -> Trajectory:
    """Heun's method with fresh noise before every step, which corrects earlier errors.

    A step from sigma to sigma' raises the noise to (1 + churn) sigma and solves the
    probability-flow ODE from there to sigma'.

    Args:
        keys: One key per chain; do not reuse them. Ignored if `noise_fn` is given.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Initial states with noise of standard deviation sigma_1, [batch, *shape].
        sigmas: Noise levels of `score_fn`, decreasing, two or more. Concrete.
        num_steps: Steps of the whole path, at least 1, of two evaluations of the score each.
        denoise: If True, one more evaluation ends the path at the posterior mean.
        num_snapshots: Number of snapshots to keep, at most one per step.
        noise_fn: n -> standard normal noise of step n; None draws it from `keys`.
        observe: As in `loop.anneal`; the steps have no score.
        churn: Relative increase of sigma before a step, 0 or above; 0 is `probability_flow`. The
            paper bounds it by sqrt(2) - 1. The noise does not rise above sigma_1.
        churn_range: Smallest and largest sigma at which noise is added.
        grid: "edm" for `noise.edm_sigmas`, or "geometric".

    Returns:
        The trajectory, with `finite` [num_steps, batch]. Not clipped.

    Raises:
        ValueError: As `loop.anneal`; if churn is negative or `grid` is unknown.

    Reference: Karras et al. (2022), algorithm 2, with S_noise = 1.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> sj.stochastic_heun(keys, score_fn, jnp.zeros((8, 2)), sigmas, num_steps=10).x.shape
        (8, 2)
    """
    if not churn >= 0:
        raise ValueError(f"churn={churn} must be 0 or above")
    steps = step_sigmas(sigmas, num_steps, grid)
    at = continuous(score_fn, sigmas)
    low, high = churn_range
    inside = (steps >= low) & (steps <= high)
    raised = jnp.where(inside, jnp.minimum((1 + churn) * steps, steps[0]), steps)
    added = jnp.sqrt(jnp.maximum(raised**2 - steps**2, 0))

    def update(x, _, noise, level, n):
        x = (x + added[level] * noise).astype(x.dtype)
        score = at(x, jnp.full(x.shape[0], raised[level]))
        return flow_step(at, x, score, raised[level], steps[level + 1], "heun")

    return run_steps(
        update,
        keys,
        at,
        x,
        steps,
        None,
        denoise=denoise,
        num_snapshots=num_snapshots,
        noise_fn=noise_fn,
        observe=observe,
        noise_scale=lambda level, n: added[level],
    )


def flow_step(
    at: ContinuousScoreFn, x: Batch, score: Batch, sigma: Array, following: Array, solver: str
) -> JaxBatch:
    """One step of the probability-flow ODE from `sigma` to `following`.

    Args:
        at: The score as a function of sigma.
        x: States at noise level sigma.
        score: Score of `x` at sigma.
        sigma: The sigma of the states, a scalar.
        following: The sigma after the step, a scalar.
        solver: "heun" or "euler".
    """
    x = jnp.asarray(x)
    slope = -sigma * score
    end = (x + (following - sigma) * slope).astype(x.dtype)
    if solver == "euler":
        return end
    end_slope = -following * at(end, jnp.full(x.shape[0], following))
    return x + (following - sigma) * 0.5 * (slope + end_slope)
