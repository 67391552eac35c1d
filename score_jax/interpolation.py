"""Chains between two chains: annealed Langevin dynamics whose noise is mixed by an angle.

    z = cos(angle) z_1 + sin(angle) z_2,   z_1, z_2 ~ N(0, I):   standard normal at every angle

At angle 0 a chain is the first one, at pi/2 the second; in between, samples change gradually.

Reference: Song & Ermon (2020), appendix B.3 (interpolation).
"""

import jax.numpy as jnp

from score_jax.langevin import Trajectory, anneal, annealed_step_sizes, chain_noise, check_steps, langevin_step
from score_jax.langevin import denoise as to_posterior_mean
from score_jax.noise import checked_sigmas, per_example, standard_normal
from score_jax.typing import Array, Batch, Float, Keys, Scalar, ScoreFn, Sigmas


def mixed_normal(first_keys: Keys, second_keys: Keys, angle: Float[Array, "batch"], event: tuple[int, ...]) -> Batch:
    """Standard normal draws [batch, *event], mixed by an angle: a start between two starts.

    A start uniform in [0, 1] that mixes as gradually is the normal distribution function of it, `jax.scipy.stats.norm.cdf`.
    """
    first, second = standard_normal(first_keys, event), standard_normal(second_keys, event)
    return per_example(jnp.cos(angle), first) * first + per_example(jnp.sin(angle), first) * second


def interpolate(
    first_keys: Keys,
    second_keys: Keys,
    angle: Float[Array, "batch"],
    score_fn: ScoreFn,
    x: Batch,
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    num_steps: int,
    denoise: bool = False,
    num_snapshots: int = 0,
) -> Trajectory:
    """Annealed Langevin dynamics with the noise of two chains, mixed.

    Args:
        first_keys: The key of the chain at angle 0, one per chain; used up.
        second_keys: The key of the chain at angle pi/2.
        angle: In radians, [batch].
        score_fn: The score at every level, in 1/unit of `x`.
        x: Where the chains start, such as `mixed_normal` of two other keys.
        sigmas: Decreasing, in the unit of `x`.
        step_size: alpha at the last level, as in `langevin.annealed_langevin`.
        num_steps: Steps per level.
        denoise: Whether to end with one step to the posterior mean.
        num_snapshots: How many snapshots to keep, at most one per level.
    Raises:
        ValueError: As `langevin.annealed_langevin_trajectory`.
    """
    check_steps(num_steps, step_size)
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    alphas = annealed_step_sizes(sigmas, step_size)

    def step(x, level, n):
        first, second = (chain_noise(keys, n, x.shape[1:]) for keys in (first_keys, second_keys))
        noise = per_example(jnp.cos(angle), x) * first + per_example(jnp.sin(angle), x) * second
        return langevin_step(score_fn(x, jnp.full(len(x), level)), x, noise, alphas[level])

    trajectory = anneal(step, x, len(sigmas), num_steps, num_snapshots)
    if denoise:
        last = jnp.full(len(x), len(sigmas) - 1, jnp.int32)
        trajectory = trajectory._replace(x=to_posterior_mean(score_fn, trajectory.x, last, sigmas))
    return trajectory
