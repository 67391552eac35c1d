"""Fills in what is missing of an image: annealed Langevin dynamics that is held to the known pixels.

Before every step of level i the known pixels are set to  known + sigma_i z,   z ~ N(0, I),
and in the end to the known values themselves.

Reference: Song & Ermon (2019), Algorithm 2 (z drawn once per level); the code of Song & Ermon (2020) draws it anew at every step.
"""

import jax
import jax.numpy as jnp

from score_jax.langevin import Trajectory, anneal, annealed_step_sizes, chain_noise, check_steps, langevin_step
from score_jax.langevin import denoise as to_posterior_mean
from score_jax.noise import checked_sigmas
from score_jax.typing import Batch, Keys, Mask, Scalar, ScoreFn, Sigmas


def inpaint(
    keys: Keys,
    score_fn: ScoreFn,
    x: Batch,
    known: Batch,
    mask: Mask,
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    num_steps: int,
    renew: bool = False,
    denoise: bool = False,
    num_snapshots: int = 0,
) -> Trajectory:
    """Completes images, one completion per chain.

    Args:
        keys: One per chain; used up.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Where the chains start, [batch, *event].
        known: The images to complete, [batch, *event]; what they hold where `mask` is False plays no part.
        mask: Which pixels are known, bool [batch, *event].
        sigmas: Decreasing, in the unit of `x`.
        step_size: alpha at the last level, as in `langevin.annealed_langevin`.
        num_steps: Steps per level.
        renew: Whether the known pixels are noised anew at every step; otherwise once per level.
        denoise: Whether to end with one step to the posterior mean.
        num_snapshots: How many snapshots to keep, at most one per level.
    Returns:
        The trajectory; where `mask` is True, its end is `known` exactly. Not clipped.
    Raises:
        ValueError: As `langevin.annealed_langevin_trajectory`; if known or mask differ from `x` in shape.
    """
    check_steps(num_steps, step_size)
    if not x.shape == known.shape == mask.shape:
        raise ValueError(f"x {x.shape}, known {known.shape} and mask {mask.shape} must have one shape")
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    alphas = annealed_step_sizes(sigmas, step_size)
    chain_keys, known_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)

    def hold(x, level, n):
        noise = chain_noise(known_keys, n if renew else level, x.shape[1:])
        return jnp.where(mask, known + sigmas[level] * noise, x)

    def step(x, level, n):
        x = hold(x, level, n)
        score = score_fn(x, jnp.full(len(x), level))
        return langevin_step(score, x, chain_noise(chain_keys, n, x.shape[1:]), alphas[level])

    trajectory = anneal(step, x, len(sigmas), num_steps, num_snapshots)
    x = trajectory.x
    if denoise:
        last = len(sigmas) - 1
        x = to_posterior_mean(score_fn, hold(x, last, last * num_steps), jnp.full(len(x), last, jnp.int32), sigmas)
    return trajectory._replace(x=jnp.where(mask, known, x))
