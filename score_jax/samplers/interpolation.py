"""Chains between two chains: a sampler whose noise is mixed by an angle.

    z = cos(angle) z_1 + sin(angle) z_2,   z_1, z_2 ~ N(0, I):   standard normal at every angle

At angle 0 a chain is the first one, at pi/2 the second; in between, samples change gradually.

Reference: Song & Ermon (2020), appendix B.3 (interpolation).
"""

from collections.abc import Callable

import jax.numpy as jnp

from score_jax.noise import check_batch, per_example, standard_normal
from score_jax.samplers.langevin import annealed_langevin
from score_jax.samplers.loop import Trajectory, chain_noise
from score_jax.typing import (
    AnyBatch,
    AnyKeys,
    Array,
    Batch,
    Float,
    JaxBatch,
    Keys,
    Scalar,
    ScoreFn,
    Sigmas,
)

Angle = Float[Array, "batch"]


def mixed_normal(
    first_keys: Keys, second_keys: Keys, angle: Angle, shape: tuple[int, ...]
) -> JaxBatch:
    """Standard normal draws [batch, *shape], mixed by an angle: a start between two starts.

    For a uniform start, pass the result through the normal CDF, `jax.scipy.stats.norm.cdf`.

    Args:
        first_keys: Key of the start at angle 0, one per chain.
        second_keys: Key of the start at angle pi/2, one per chain.
        angle: In radians, [batch].
        shape: Shape of one state.

    Example:
        >>> keys, others = jax.random.split(jax.random.key(0), (2, 5))
        >>> sj.mixed_normal(keys, others, jnp.linspace(0, jnp.pi / 2, 5), (2,)).shape
        (5, 2)
    """
    first, second = standard_normal(first_keys, shape), standard_normal(second_keys, shape)
    return _mix(angle, first, second)


def interpolate(
    first_keys: AnyKeys,
    second_keys: AnyKeys,
    angle: Angle,
    score_fn: ScoreFn,
    x: AnyBatch,
    sigmas: Sigmas,
    *,
    num_steps: int,
    step_size: Scalar | None = None,
    denoise: bool = False,
    num_snapshots: int = 0,
    sampler: Callable[..., Trajectory] = annealed_langevin,
) -> Trajectory:
    """Runs a sampler with the mixed noise of two chains.

    Args:
        first_keys: Key of the chain at angle 0, one per chain; do not reuse them.
        second_keys: Key of the chain at angle pi/2, one per chain.
        angle: In radians, [batch].
        score_fn: The score at every level, in 1/unit of `x`.
        x: Initial states, such as `mixed_normal` of two other keys.
        sigmas: Noise levels, decreasing, in the unit of `x`.
        num_steps: Steps per level; of the whole chain for samplers that count so.
        step_size: alpha at the last level, as in `langevin.annealed_langevin`; None for a sampler
            without one.
        denoise: If True, end with one step to the posterior mean.
        num_snapshots: Number of snapshots to keep, at most one per level.
        sampler: Any sampler that takes `noise_fn`.

    Returns:
        The trajectory. Not clipped.

    Raises:
        ValueError: As the sampler.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys, others = jax.random.split(jax.random.key(0), (2, 5))
        >>> x, angle = jnp.zeros((5, 2)), jnp.linspace(0, jnp.pi / 2, 5)
        >>> sj.interpolate(
        ...     keys, others, angle, score_fn, x, sigmas, num_steps=5, step_size=5e-3
        ... ).x.shape
        (5, 2)
    """
    x = check_batch(check_batch(x, first_keys), second_keys)

    def mixed_noise(n):
        first, second = (
            chain_noise(keys, n, x.shape[1:], x.dtype) for keys in (first_keys, second_keys)
        )
        return _mix(angle, first, second).astype(x.dtype)

    return sampler(
        None,
        score_fn,
        x,
        sigmas,
        **({} if step_size is None else {"step_size": step_size}),
        num_steps=num_steps,
        denoise=denoise,
        num_snapshots=num_snapshots,
        noise_fn=mixed_noise,
    )


def _mix(angle: Angle, first: Batch, second: Batch) -> JaxBatch:
    return per_example(jnp.cos(angle), first) * first + per_example(jnp.sin(angle), first) * second
