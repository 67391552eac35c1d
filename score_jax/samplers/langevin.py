"""Langevin dynamics, plain and annealed, each as one XLA program.

    x <- x + alpha s(x) + sqrt(2 alpha) z,   z ~ N(0, I)

Step size convention of this package: at level i, alpha_i = step_size (sigma_i / sigma_L)^2, so
`step_size` is the step size at the last and smallest sigma. Algorithm 1 of the paper writes
alpha / 2 and sqrt(alpha); the code released with it, the paper of NCSNv2 and this package use the
form above with the same published numbers.
"""

import jax.numpy as jnp
import numpy as np

from score_jax.noise import check_level, checked_sigmas
from score_jax.samplers.loop import Trajectory, anneal, check_step_size
from score_jax.typing import (
    AnyBatch,
    AnyKeys,
    Array,
    Batch,
    Float,
    JaxBatch,
    Levels,
    NoiseFn,
    ObserveFn,
    Scalar,
    ScoreFn,
    Sigmas,
)


def langevin_step(score: Batch, x: Batch, noise: Batch, step_size: Scalar) -> JaxBatch:
    """One step, `x + step_size * score + sqrt(2 * step_size) * noise`.

    Args:
        score: Value of the score at `x`, in 1/unit of `x`.
        x: States of the chains.
        noise: Standard normal, of the shape of `x`.
        step_size: alpha above, in the square of the unit of `x`.

    Example:
        >>> x = jnp.array([[1.0]])
        >>> print(sj.langevin_step(-x, x, jnp.array([[0.5]]), 0.02))  # 1 - 0.02 + 0.2 / 2
        [[1.08]]
    """
    return jnp.asarray(x) + step_size * score + jnp.sqrt(2.0 * step_size) * noise


def langevin(
    keys: AnyKeys | None,
    score_fn: ScoreFn,
    x: AnyBatch,
    level: Levels,
    *,
    step_size: Scalar,
    num_steps: int,
    noise_fn: NoiseFn | None = None,
) -> Trajectory:
    """Langevin dynamics in which each chain stays at one noise level.

    Args:
        keys: One key per chain; do not reuse them.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Initial states, [batch, *shape].
        level: Level of each chain, an index into the noise levels.
        step_size: alpha above, in the square of the unit of `x`.
        num_steps: Number of steps, at least 1.
        noise_fn: n -> noise of step n; None draws it from `keys`.

    Returns:
        The trajectory, without snapshots; `finite` has one row.

    Raises:
        ValueError: As `loop.anneal`; if step_size is not positive or a level is below 0.

    Reference: Song & Ermon (2019), equation 4.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> last = jnp.full(8, 4)
        >>> x = jnp.zeros((8, 2))
        >>> sj.langevin(keys, score_fn, x, last, step_size=0.05, num_steps=100).x.shape
        (8, 2)
    """
    check_step_size(step_size)
    level = check_level(level)

    def update(x, score, noise, _, n):
        return langevin_step(score, x, noise, step_size)

    # One stage of `anneal` whose sigma is not used.
    return anneal(
        update,
        keys,
        lambda x, _: score_fn(x, level),
        x,
        np.ones(1, np.float32),
        num_steps=num_steps,
        noise_fn=noise_fn,
    )


def annealed_langevin(
    keys: AnyKeys | None,
    score_fn: ScoreFn,
    x: AnyBatch,
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    num_steps: int,
    denoise: bool = False,
    num_snapshots: int = 0,
    noise_fn: NoiseFn | None = None,
    observe: ObserveFn | None = None,
) -> Trajectory:
    """Annealed Langevin dynamics: `num_steps` Langevin steps at every noise level in turn.

    At level i, with alpha_i = step_size * sigma_i**2 / sigma_L**2, repeats num_steps times
        x <- x + alpha_i s(x, i) + sqrt(2 alpha_i) z,   z ~ N(0, I).

    Args:
        keys: One key per chain; do not reuse them.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Initial states, [batch, *shape]; NCSN starts uniform in [0, 1].
        sigmas: Noise levels, decreasing, in the unit of `x`.
        step_size: alpha_L, in the square of that unit; stable below 2 sigma_L**2.
        num_steps: Steps per level, T in the paper.
        denoise: If True, end with one step to the posterior mean, `denoise`.
        num_snapshots: Number of snapshots to keep, at most one per level.
        noise_fn: n -> noise of step n; None draws it from `keys`.
        observe: As in `loop.anneal`.

    Returns:
        The trajectory; `.x` holds the final states. Not clipped.

    Raises:
        ValueError: As `loop.anneal`; if step_size is not positive.

    Reference: Song & Ermon (2019), Algorithm 1. Their alpha is twice ours; their released code
        uses ours.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> chains = sj.annealed_langevin(
        ...     keys, score_fn, jnp.zeros((8, 2)), sigmas, step_size=5e-3, num_steps=10
        ... )
        >>> chains.x.shape, bool(chains.finite.all())
        ((8, 2), True)
    """
    check_step_size(step_size)
    alphas = annealed_step_sizes(sigmas, step_size)

    def update(x, score, noise, level, n):
        return langevin_step(score, x, noise, alphas[level])

    return anneal(
        update,
        keys,
        score_fn,
        x,
        sigmas,
        num_steps=num_steps,
        denoise=denoise,
        num_snapshots=num_snapshots,
        noise_fn=noise_fn,
        observe=observe,
        noise_scale=lambda level, n: jnp.sqrt(2.0 * alphas[level]),
    )


def langevin_baseline(
    keys: AnyKeys | None,
    score_fn: ScoreFn,
    x: AnyBatch,
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    num_steps: int,
    denoise: bool = False,
    num_snapshots: int = 0,
    noise_fn: NoiseFn | None = None,
    observe: ObserveFn | None = None,
) -> Trajectory:
    """The baseline without annealing: all steps of `annealed_langevin`, at the last level.

    Takes len(sigmas) * num_steps steps of size `step_size`. Arguments, result and errors are those
    of `annealed_langevin`.

    Reference: Song & Ermon (2019), section 3.2.2 and the baseline of section 5.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> sj.langevin_baseline(
        ...     keys, score_fn, jnp.zeros((8, 2)), sigmas, step_size=5e-3, num_steps=10
        ... ).x.shape
        (8, 2)
    """
    check_step_size(step_size)
    num_levels = len(checked_sigmas(sigmas))

    def update(x, score, noise, level, n):
        return langevin_step(score, x, noise, step_size)

    return anneal(
        update,
        keys,
        score_fn,
        x,
        sigmas,
        num_steps=num_steps,
        denoise=denoise,
        num_snapshots=num_snapshots,
        noise_fn=noise_fn,
        score_levels=np.full(num_levels * num_steps, num_levels - 1, np.int32),
        observe=observe,
        noise_scale=lambda level, n: jnp.sqrt(2.0 * jnp.asarray(step_size)),
    )


def annealed_step_sizes(sigmas: Sigmas, step_size: Scalar) -> Float[Array, "levels"]:
    """alpha_i = step_size sigma_i^2 / sigma_L^2, for every level."""
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    return jnp.asarray(step_size * (sigmas / sigmas[-1]) ** 2)
