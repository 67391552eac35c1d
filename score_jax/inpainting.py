"""Fills in what is missing of an image: annealed Langevin dynamics that is held to the known pixels.

Before every step of level i the known pixels are set to  known + sigma_i z,   z ~ N(0, I),
and in the end to the known values themselves.

Noised pixels say less than the known ones do. `toward_known` makes up for it: a score function that also climbs
    log N(known; D(x), r^2 I) on the known pixels,   D(x) = x + sigma_i^2 s(x, i),   r^2 = sigma_i^2 v / (sigma_i^2 + v).

Reference: Song & Ermon (2019), Algorithm 2 (z drawn once per level); the code of Song & Ermon (2020) draws it anew at every step.
Ho et al. (2022), "Video diffusion models", section 3.1, for the guidance.
"""

import jax
import jax.numpy as jnp

from score_jax.langevin import Trajectory, anneal, annealed_step_sizes, chain_noise, check_steps, langevin_step
from score_jax.langevin import denoise as to_posterior_mean
from score_jax.noise import checked_sigmas, per_example
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


def toward_known(
    score_fn: ScoreFn, known: Batch, mask: Mask, sigmas: Sigmas, *, weight: float = 1.0, variance: float = 0.1
) -> ScoreFn:
    """The score of images given their known pixels, approximately: guidance for `inpaint`.

    Args:
        score_fn: The score at every level; differentiated once, so that a step takes two to three times as long (on a CPU, where
            XLA compiles gradients of convolutions less well within loops, up to ten times).
        known: The images to complete, [batch, *event].
        mask: Which pixels are known, bool [batch, *event].
        sigmas: Noise levels, in the unit of `known`.
        weight: Of what is added to the score; 0 adds nothing, 1 is the gradient above.
        variance: v above, about the variance of a pixel over the data.
    Raises:
        ValueError: If weight is negative, or variance is not positive.
    """
    if not weight >= 0 or not variance > 0:
        raise ValueError(f"weight={weight} must be 0 or above and variance={variance} above 0")

    def guided(x, level):
        squares = per_example(jnp.asarray(sigmas)[level] ** 2, x)

        def log_likelihood(x):
            score = score_fn(x, level)
            missed = jnp.where(mask, known - x - squares * score, 0)
            return -0.5 * jnp.sum(missed**2 * (squares + variance) / (squares * variance)), score

        gradient, score = jax.grad(log_likelihood, has_aux=True)(x)
        return score + weight * gradient

    return guided
