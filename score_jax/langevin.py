"""Langevin dynamics, plain and annealed, each as one XLA program.

    x <- x + alpha s(x) + sqrt(2 alpha) z,   z ~ N(0, I)

Step size convention, the one of this package: at level i, alpha_i = step_size (sigma_i / sigma_L)^2, so
`step_size` is the one at the last and smallest sigma. The paper's Algorithm 1 writes alpha / 2 and sqrt(alpha);
the code released with it, NCSNv2's paper and this package use the form above with the same published numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import checked_sigmas, per_example, standard_normal
from score_jax.typing import Array, Batch, Flags, Float, Keys, Levels, Scalar, ScoreFn, Sigmas


class Trajectory(NamedTuple):
    """Where chains went.

    Attributes:
        x: Where they end, [batch, *event]. Not clipped.
        snapshots: Where they were on the way, [snapshots, batch, *event]; the last one before denoising.
        finite: Whether a chain was finite at the end of each level, bool [levels, batch].
    """

    x: Batch
    snapshots: Float[Array, "snapshots batch *event"]
    finite: Flags


def langevin_step(score: Batch, x: Batch, noise: Batch, step_size: Scalar) -> Batch:
    """One step, `x + step_size * score + sqrt(2 * step_size) * noise`; takes the value of the score."""
    return x + step_size * score + jnp.sqrt(2.0 * step_size) * noise


def denoise(score_fn: ScoreFn, x: Batch, level: Levels, sigmas: Sigmas) -> Batch:
    """The posterior mean of the clean data, `x + sigma^2 s(x, level)`.

    Reference: Robbins (1956) / Miyasawa (1961), "Tweedie's formula"; Jolicoeur-Martineau et al. (2020), section 3.1.
    """
    return x + per_example(jnp.asarray(sigmas)[level] ** 2, x) * score_fn(x, level)


_denoise = denoise  # `denoise` is also the name of an argument below


def langevin(keys: Keys, score_fn: ScoreFn, x: Batch, level: Levels, *, step_size: Scalar, num_steps: int) -> Batch:
    """Langevin dynamics at one fixed noise level per chain.

    Args:
        keys: One per chain; used up.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Where the chains start.
        level: Level at which each chain stays, an index into the noise levels.
        step_size: alpha above, in the square of the unit of `x`.
        num_steps: Steps to take.
    Returns:
        Where the chains end. Not clipped.
    Raises:
        ValueError: If num_steps is less than 1, or step_size is not positive.
    Reference: Song & Ermon (2019), equation 4.
    """
    check_steps(num_steps, step_size)

    def one_step(x, n):
        return langevin_step(score_fn(x, level), x, chain_noise(keys, n, x.shape[1:]), step_size), None

    return jax.lax.scan(one_step, jnp.asarray(x), np.arange(num_steps))[0]


def langevin_trajectory(
    keys: Keys,
    score_fn: ScoreFn,
    x: Batch,
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    num_steps: int,
    denoise: bool = False,
    num_snapshots: int = 0,
) -> Trajectory:
    """The baseline without annealing: as many steps as `annealed_langevin` takes, all at the last noise level.

    Args, returned value and errors are those of `annealed_langevin_trajectory`.

    Reference: Song & Ermon (2019), section 3.2.2 and the baseline of section 5.
    """
    last = len(sigmas) - 1

    def score_at_last(x, level):
        return score_fn(x, jnp.full_like(level, last))

    check_steps(num_steps, step_size)
    alphas = jnp.full(len(sigmas), step_size)
    return _annealed(keys, score_at_last, x, checked_sigmas(sigmas), alphas, num_steps, denoise, num_snapshots)


def annealed_langevin(
    keys: Keys, score_fn: ScoreFn, x: Batch, sigmas: Sigmas, *, step_size: Scalar, num_steps: int, denoise: bool = False
) -> Batch:
    """Walks `x` towards the data, one noise level after the other.

    At level i, with alpha_i = step_size * sigma_i**2 / sigma_L**2, repeats num_steps times
        x <- x + alpha_i s(x, i) + sqrt(2 alpha_i) z,   z ~ N(0, I).

    Args:
        keys: One per chain; used up.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Where the chains start; NCSN starts uniform in [0, 1].
        sigmas: Decreasing, in the unit of `x`.
        step_size: alpha_L, in the square of that unit; stable below 2 sigma_L**2.
        num_steps: Steps per level, T in the paper.
        denoise: Whether to end with one step to the posterior mean, `denoise`.
    Returns:
        Where the chains end. Not clipped.
    Raises:
        ValueError: If num_steps is less than 1, step_size is not positive, or sigmas do not decrease.
    Reference: Song & Ermon (2019), Algorithm 1. Their alpha is twice ours; their released code is ours.
    """
    return annealed_langevin_trajectory(
        keys, score_fn, x, sigmas, step_size=step_size, num_steps=num_steps, denoise=denoise, num_snapshots=0
    ).x


def annealed_langevin_trajectory(
    keys: Keys,
    score_fn: ScoreFn,
    x: Batch,
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    num_steps: int,
    denoise: bool = False,
    num_snapshots: int = 0,
) -> Trajectory:
    """`annealed_langevin`, and what it passed on the way.

    Snapshots are thinned inside the program: memory grows with how many are kept, not with the number of steps.

    Args:
        num_snapshots: How many to keep, at most one per level, at the ends of evenly spread levels.
    Raises:
        ValueError: As `annealed_langevin`; if num_snapshots is below 0 or above the number of levels.
    """
    check_steps(num_steps, step_size)
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    alphas = annealed_step_sizes(sigmas, step_size)
    return _annealed(keys, score_fn, x, sigmas, alphas, num_steps, denoise, num_snapshots)


def _annealed(keys, score_fn, x, sigmas, alphas, num_steps, denoise, num_snapshots) -> Trajectory:
    def step(x, level, n):
        score = score_fn(x, jnp.full(x.shape[0], level))
        return langevin_step(score, x, chain_noise(keys, n, x.shape[1:]), alphas[level])

    trajectory = anneal(step, x, len(sigmas), num_steps, num_snapshots)
    if denoise:
        last = jnp.full(x.shape[0], len(sigmas) - 1, jnp.int32)
        trajectory = trajectory._replace(x=_denoise(score_fn, trajectory.x, last, sigmas))
    return trajectory


def annealed_step_sizes(sigmas: Sigmas, step_size: Scalar) -> Float[Array, "levels"]:
    """alpha_i = step_size sigma_i^2 / sigma_L^2, for every level."""
    return step_size * (sigmas / sigmas[-1]) ** 2


def chain_noise(keys: Keys, n: Array | int, event: tuple[int, ...]) -> Batch:
    """What each chain draws at its step number n: standard normal, from its key with n folded in."""
    return standard_normal(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n), event)


def anneal(
    step: Callable[[Array, Array, Array], Array], x: Batch, num_levels: int, num_steps: int, num_snapshots: int = 0
) -> Trajectory:
    """A scan over levels of a scan over steps, the loop of every sampler of this package: one XLA program.

    Args:
        step: (x, level, n) -> x, one step of all chains at a level; n counts the steps from the first of the first level.
        x: Where the chains start.
        num_levels: How many levels, visited from 0 on.
        num_steps: Steps per level.
        num_snapshots: How many snapshots to keep, at most one per level, at the ends of evenly spread levels.
    Raises:
        ValueError: If num_snapshots is below 0 or above the number of levels.
    """
    if not 0 <= num_snapshots <= num_levels:
        raise ValueError(f"num_snapshots={num_snapshots} must lie between 0 and the number of noise levels, {num_levels}")
    # The slot a level's end is written to; one past the last is dropped.
    slots = np.full(num_levels, num_snapshots)
    slots[(np.arange(1, num_snapshots + 1) * num_levels) // max(num_snapshots, 1) - 1] = np.arange(num_snapshots)
    x = jnp.asarray(x)

    def one_level(carry, inputs):
        x, snapshots = carry
        level, slot = inputs
        x = jax.lax.scan(lambda x, n: (step(x, level, n), None), x, level * num_steps + np.arange(num_steps))[0]
        finite = jnp.isfinite(x.reshape(x.shape[0], -1)).all(axis=1)
        if num_snapshots:
            snapshots = snapshots.at[slot].set(x, mode="drop")
        return (x, snapshots), finite

    snapshots = jnp.zeros((num_snapshots, *x.shape), x.dtype)
    levels = np.arange(num_levels, dtype=np.int32)
    (x, snapshots), finite = jax.lax.scan(one_level, (x, snapshots), (levels, slots))
    return Trajectory(x, snapshots, finite)


def check_steps(num_steps: int, step_size: Scalar) -> None:
    """Raises a ValueError for fewer steps than one, or a step size that is not positive and finite."""
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if not isinstance(step_size, jax.core.Tracer) and not 0 < float(step_size) < np.inf:
        raise ValueError(f"step_size={step_size} must be positive and finite")
