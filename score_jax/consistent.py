"""Consistent annealed sampling: each step leaves exactly the noise that the next level expects.

    x <- x + alpha_i s(x, i) + beta_i sigma_{i+1} z
    alpha_i = eta sigma_i^2,   beta_i^2 = 1 - (1 - eta)^2 sigma_i^2 / sigma_{i+1}^2

with eta = step_size / sigma_L^2 and sigma_{L+1} = 0. If s removes its share of noise of size sigma_i, (1 - eta) sigma_i of it is
left, and the fresh noise fills it up to sigma_{i+1}. At eta = 1 - sigma_{i+1} / sigma_i nothing is added; at
eta = 1 - sigma_{i+1}^2 / sigma_i^2 the step is that of ancestral sampling.

Reference: Jolicoeur-Martineau et al. (2020), "Adversarial score matching and improved sampling for image generation",
arXiv 2009.05475, Algorithm 1.
"""

import jax.numpy as jnp
import numpy as np

from score_jax.langevin import Trajectory, anneal, chain_noise, check_steps
from score_jax.noise import checked_sigmas
from score_jax.typing import Batch, Keys, ScoreFn, Sigmas


def consistent_annealed_sampling(
    keys: Keys,
    score_fn: ScoreFn,
    x: Batch,
    sigmas: Sigmas,
    *,
    step_size: float,
    num_steps: int = 1,
    denoise: bool = False,
    num_snapshots: int = 0,
) -> Trajectory:
    """Walks `x` towards the data with num_steps consistent steps per noise level.

    Args:
        keys: One per chain; used up.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Where the chains start; with noise of size sigma_1.
        sigmas: Decreasing, in the unit of `x`; Python or numpy numbers, or a concrete array.
        step_size: eta sigma_L^2, with 1 - sigma_{i+1} / sigma_i <= eta <= 1 for all steps.
        num_steps: Steps per level. Above 1, the steps are spread over more sigmas between the same ends, where the score is taken
            to be that of the nearest level times sigma_i / sigma, as it is for networks that divide by sigma.
        denoise: Whether the last step goes all the way to the posterior mean (eta = 1).
        num_snapshots: How many snapshots to keep, at most one per level.
    Returns:
        The trajectory. Not clipped.
    Raises:
        ValueError: If eta is out of its range, num_steps is less than 1, or sigmas do not decrease.
    """
    check_steps(num_steps, step_size)
    levels, eta, sizes, added = consistent_steps(np.asarray(checked_sigmas(sigmas), np.float64), step_size, num_steps)
    # eta sigma^2 times the score at sigma, which is that at sigma_i times sigma_i / sigma.
    alphas = eta * sizes * np.asarray(sigmas, np.float64)[levels]
    if denoise:
        alphas[-1] /= eta
    levels, alphas, added = jnp.asarray(levels), jnp.asarray(alphas, jnp.float32), jnp.asarray(added, jnp.float32)

    def step(x, level, n):
        score = score_fn(x, jnp.full(x.shape[0], levels[n]))
        return x + alphas[n] * score + added[n] * chain_noise(keys, n, x.shape[1:])

    return anneal(step, x, len(np.asarray(sigmas)), num_steps, num_snapshots)


def ancestral_step_size(sigmas: Sigmas, num_steps: int = 1) -> float:
    """The step size at which consistent annealed sampling of geometric `sigmas` is ancestral sampling: eta = 1 - ratio^-2.

    Raises:
        ValueError: If there are fewer than two levels.
    Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential equations", appendix F.
    """
    sigmas = np.asarray(checked_sigmas(sigmas), np.float64)
    if len(sigmas) < 2:
        raise ValueError("consistent annealed sampling needs two or more noise levels")
    ratio = (sigmas[0] / sigmas[-1]) ** (1 / (len(sigmas) * num_steps - 1))
    return float((1 - ratio**-2) * sigmas[-1] ** 2)


def consistent_steps(sigmas: np.ndarray, step_size: float, num_steps: int):
    """Of every step: the level whose score it takes, eta, its own sigma, and the size of the noise it adds."""
    position = np.linspace(0, len(sigmas) - 1, len(sigmas) * num_steps)
    levels = np.round(position).astype(np.int32)
    sizes = np.exp(np.interp(position, np.arange(len(sigmas)), np.log(sigmas)))
    eta = step_size / sigmas[-1] ** 2
    lowest = float(np.max(1 - sizes[1:] / sizes[:-1], initial=0.0))
    if not lowest - 1e-6 <= eta <= 1:
        raise ValueError(
            f"step_size={step_size:g} is {eta:.4g} sigma_min**2, but consistent annealed sampling of these noise levels needs "
            f"{lowest:.4g} to 1 sigma_min**2: choose a step size from {lowest * sigmas[-1] ** 2:.3g} to {sigmas[-1] ** 2:.3g}"
        )
    following = np.append(sizes[1:], 0.0)
    added = np.sqrt(np.maximum(following**2 - ((1 - eta) * sizes) ** 2, 0))
    return levels, eta, sizes, added
