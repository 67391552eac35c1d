"""Steps between sigmas of a sampler's own, from the first noise level to the last."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.continuous_score import ContinuousScoreFn
from score_jax.noise import check_counts, checked_sigmas, edm_sigmas, geometric_sigmas
from score_jax.samplers.loop import Trajectory, anneal
from score_jax.typing import AnyBatch, AnyKeys, Array, NoiseFn, ObserveFn, Sigmas

GRIDS = ("edm", "geometric")
RHO = 7.0
"""Exponent of EDM's grid, as in table 1 of Karras et al. (2022)."""


def step_sigmas(sigmas: Sigmas, num_steps: int, grid: str) -> Array:
    """The sigmas between which `num_steps` steps lead from the first level to the last.

    Args:
        sigmas: Noise levels, decreasing; two or more.
        num_steps: Number of steps, at least 1.
        grid: "edm" for the spacing of `noise.edm_sigmas`, or "geometric".

    Returns:
        [num_steps + 1], decreasing.

    Raises:
        ValueError: If an argument is out of range.
    """
    checked_sigmas(sigmas)
    if len(sigmas) < 2:
        raise ValueError(
            f"sigmas={np.asarray(sigmas).tolist()} is a single noise level, but steps between "
            "levels need two or more"
        )
    check_counts(num_steps=num_steps)
    if grid not in GRIDS:
        raise ValueError(f"grid={grid!r} must be one of {', '.join(GRIDS)}")
    if isinstance(sigmas, jax.core.Tracer):
        first, last = sigmas[0], sigmas[-1]
        if grid == "edm":
            return jnp.linspace(first ** (1 / RHO), last ** (1 / RHO), num_steps + 1) ** RHO
        return jnp.exp(jnp.linspace(jnp.log(first), jnp.log(last), num_steps + 1))
    first, last = np.asarray(sigmas)[[0, -1]].tolist()
    make = edm_sigmas if grid == "edm" else geometric_sigmas
    return jnp.asarray(make(first, last, num_steps + 1))


def run_steps(
    update: Callable[[Array, Array, Array, Array, Array], Array],
    keys: AnyKeys | None,
    at: ContinuousScoreFn,
    x: AnyBatch,
    steps: Array,
    score_sigmas: Array | None,
    *,
    denoise: bool,
    num_snapshots: int,
    noise_fn: NoiseFn | None,
    observe: ObserveFn | None = None,
    noise_scale: Callable[[Array, Array], Any] = lambda level, n: 0.0,
    num_updates: int = 1,
) -> Trajectory:
    """Runs `loop.anneal` over steps between sigmas, and ends at the posterior mean.

    Args:
        update: As in `loop.anneal`; `level` is the index of the step between sigmas.
        keys: One key per chain.
        at: The score as a function of sigma.
        x: Initial states, [batch, *shape].
        steps: The sigmas between which the steps lead, [num_steps + 1].
        score_sigmas: The sigma at which the score of update n is evaluated,
            [num_steps * num_updates]; None evaluates no score, and `update` receives zeros.
        denoise: If True, end at the posterior mean at the last sigma.
        num_snapshots: Number of snapshots to keep, at most one per step.
        noise_fn: As in `loop.anneal`.
        observe: As in `loop.anneal`; the sigma of a step is that of its score, or the one from
            which it leads if there is no score.
        noise_scale: As in `loop.anneal`.
        num_updates: Updates per step between sigmas.
    """

    def score_fn(x, n):
        return jnp.zeros_like(x) if score_sigmas is None else at(x, score_sigmas[n])

    def observe_step(step):
        if score_sigmas is None:
            return observe(step._replace(score=None, sigma=steps[step.n // num_updates]))
        return observe(step._replace(sigma=score_sigmas[step.n]))

    num_steps = len(steps) - 1
    trajectory = anneal(
        update,
        keys,
        score_fn,
        x,
        steps[:-1],
        num_steps=num_updates,
        num_snapshots=num_snapshots,
        noise_fn=noise_fn,
        score_levels=np.arange(num_steps * num_updates, dtype=np.int32),
        observe=None if observe is None else observe_step,
        noise_scale=noise_scale,
    )
    if not denoise:
        return trajectory
    x = jnp.asarray(trajectory.x)
    mean = x + steps[-1] ** 2 * at(x, jnp.full(x.shape[0], steps[-1]))
    return trajectory._replace(x=mean.astype(x.dtype))
