"""Langevin dynamics, plain and annealed, each as one XLA program.

    x <- x + alpha s(x) + sqrt(2 alpha) z,   z ~ N(0, I)

Step size convention, the one of this package: at level i, alpha_i = step_size (sigma_i / sigma_L)^2, so
`step_size` is the one at the last and smallest sigma. The paper's Algorithm 1 writes alpha / 2 and sqrt(alpha);
the code released with it, NCSNv2's paper and this package use the form above with the same published numbers.
"""

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
    _check_steps(num_steps, step_size)
    return _steps(keys, score_fn, x, level, step_size, np.arange(num_steps))


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
    _check_steps(num_steps, step_size)
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    num_levels = len(sigmas)
    if not 0 <= num_snapshots <= num_levels:
        raise ValueError(f"num_snapshots={num_snapshots} must lie between 0 and the number of noise levels, {num_levels}")
    # The slot a level's end is written to; one past the last is dropped.
    slots = np.full(num_levels, num_snapshots)
    slots[(np.arange(1, num_snapshots + 1) * num_levels) // max(num_snapshots, 1) - 1] = np.arange(num_snapshots)
    alphas = step_size * (sigmas / sigmas[-1]) ** 2
    x = jnp.asarray(x)

    def one_level(carry, inputs):
        x, snapshots = carry
        i, alpha, slot = inputs
        level = jnp.full(len(x), i, jnp.int32)
        x = _steps(keys, score_fn, x, level, alpha, i * num_steps + np.arange(num_steps))
        finite = jnp.isfinite(x.reshape(len(x), -1)).all(axis=1)
        if num_snapshots:
            snapshots = snapshots.at[slot].set(x, mode="drop")
        return (x, snapshots), finite

    snapshots = jnp.zeros((num_snapshots, *x.shape), x.dtype)
    (x, snapshots), finite = jax.lax.scan(one_level, (x, snapshots), (np.arange(num_levels), alphas, slots))
    if denoise:
        x = _denoise(score_fn, x, jnp.full(len(x), num_levels - 1, jnp.int32), sigmas)
    return Trajectory(x, snapshots, finite)


def _steps(keys: Keys, score_fn: ScoreFn, x: Batch, level: Levels, step_size: Scalar, steps) -> Batch:
    """Langevin steps at one level; step number n of a chain draws from its key with n folded in."""

    def one_step(x, step):
        noise = standard_normal(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, step), x.shape[1:])
        return langevin_step(score_fn(x, level), x, noise, step_size), None

    return jax.lax.scan(one_step, jnp.asarray(x), jnp.asarray(steps))[0]


def _check_steps(num_steps: int, step_size: Scalar) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if not isinstance(step_size, jax.core.Tracer) and not 0 < float(step_size) < np.inf:
        raise ValueError(f"step_size={step_size} must be positive and finite")
