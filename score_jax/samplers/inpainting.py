"""Image completion: annealed Langevin dynamics constrained to the known pixels.

Before every step of level i the known pixels are set to  known + sigma_i z,   z ~ N(0, I),
and at the end to the known values themselves.

Conditioning on noised pixels loses information. `toward_known` adds the gradient of
    log N(known; D(x), r^2 I)   over the known pixels,
    D(x) = x + sigma_i^2 s(x, i),   r^2 = sigma_i^2 v / (sigma_i^2 + v)
to the score.

Reference: Song & Ermon (2019), Algorithm 2, where z is drawn once per level; the code of Song &
Ermon (2020) draws it anew at every step. Ho et al. (2022), "Video diffusion models", section 3.1,
for the guidance.
"""

import jax
import jax.numpy as jnp

from score_jax.noise import check_batch, checked_sigmas, sigma_of, split_keys
from score_jax.samplers.langevin import annealed_step_sizes, langevin_step
from score_jax.samplers.loop import Trajectory, anneal, chain_noise, check_step_size
from score_jax.typing import AnyBatch, AnyKeys, Batch, Mask, Scalar, ScoreFn, Sigmas


def inpaint(
    keys: AnyKeys,
    score_fn: ScoreFn,
    x: AnyBatch,
    known: AnyBatch,
    mask: AnyBatch | Mask,
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
        keys: One key per chain; do not reuse them.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Initial states, [batch, *shape].
        known: The images to complete, [batch, *shape]; values where `mask` is False are ignored.
        mask: True where a pixel is known, bool [batch, *shape].
        sigmas: Noise levels, decreasing, in the unit of `x`.
        step_size: alpha at the last level, as in `langevin.annealed_langevin`.
        num_steps: Steps per level.
        renew: If True, draw the noise of the known pixels at every step; otherwise once per level.
        denoise: If True, end with one step to the posterior mean.
        num_snapshots: Number of snapshots to keep, at most one per level.

    Returns:
        The trajectory; where `mask` is True, its final state is `known` exactly. Not clipped.

    Raises:
        ValueError: As `langevin.annealed_langevin`; if the shape of known or mask differs from
            that of `x`.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> known, mask = jnp.ones((8, 2)), jnp.tile(jnp.array([True, False]), (8, 1))
        >>> completed = sj.inpaint(
        ...     keys, score_fn, known, known, mask, sigmas, step_size=5e-3, num_steps=10
        ... )
        >>> bool((completed.x[:, 0] == 1).all())
        True
    """
    check_step_size(step_size)
    x = check_batch(x, keys)
    if not x.shape == known.shape == mask.shape:
        raise ValueError(
            f"x {list(x.shape)}, known {list(known.shape)} and mask {list(mask.shape)} must have "
            "one shape"
        )
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    alphas = annealed_step_sizes(sigmas, step_size)
    chain_keys, known_keys = split_keys(keys)

    def set_known(x, level, n):
        noise = chain_noise(known_keys, n if renew else level, x.shape[1:], x.dtype)
        return jnp.where(mask, known + sigmas[level] * noise, x).astype(x.dtype)

    def update(x, score, noise, level, n):
        return langevin_step(score, x, noise, alphas[level])

    trajectory = anneal(
        update,
        chain_keys,
        score_fn,
        x,
        sigmas,
        num_steps=num_steps,
        denoise=denoise,
        num_snapshots=num_snapshots,
        constrain=set_known,
    )
    return trajectory._replace(x=jnp.where(mask, known, trajectory.x).astype(x.dtype))


def toward_known(
    score_fn: ScoreFn,
    known: Batch,
    mask: Mask,
    sigmas: Sigmas,
    *,
    weight: float = 1.0,
    variance: float = 0.1,
) -> ScoreFn:
    """An approximate score of images conditioned on their known pixels: guidance for `inpaint`.

    Args:
        score_fn: The score at every level. It is differentiated once, so a step takes two to three
            times as long. On a CPU, where XLA compiles gradients of convolutions less well within
            loops, it takes up to ten times as long.
        known: The images to complete, [batch, *shape].
        mask: True where a pixel is known, bool [batch, *shape].
        sigmas: Noise levels, in the unit of `known`.
        weight: Guidance weight; 0 disables it, 1 is the exact gradient above.
        variance: v above, approximately the variance of a pixel over the data.

    Raises:
        ValueError: If weight is negative, or variance is not positive.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> known, mask = jnp.ones((8, 2)), jnp.tile(jnp.array([True, False]), (8, 1))
        >>> guided = sj.toward_known(score_fn, known, mask, sigmas)
        >>> guided(jnp.zeros((8, 2)), jnp.zeros(8, int)).shape
        (8, 2)
    """
    if not weight >= 0 or not variance > 0:
        raise ValueError(f"weight={weight} must be 0 or above and variance={variance} above 0")

    def guided(x, level):
        squares = sigma_of(level, sigmas, x) ** 2

        def log_likelihood(x):
            score = score_fn(x, level)
            error = jnp.where(mask, known - x - squares * score, 0)
            precision = (squares + variance) / (squares * variance)
            return -0.5 * jnp.sum(error**2 * precision), score

        gradient, score = jax.grad(log_likelihood, has_aux=True)(x)
        return score + weight * gradient

    return guided
