"""Consistent annealed sampling: each step leaves exactly the noise that the next level expects.

    x <- x + alpha_i s(x, i) + beta_i sigma_{i+1} z
    alpha_i = eta sigma_i^2,   beta_i^2 = 1 - (1 - eta)^2 sigma_i^2 / sigma_{i+1}^2

with eta = step_size / sigma_L^2 and sigma_{L+1} = 0. If s removes its share of noise of standard
deviation sigma_i, (1 - eta) sigma_i of it remains, and the added noise restores sigma_{i+1}. At
eta = 1 - sigma_{i+1} / sigma_i no noise is added; at eta = 1 - sigma_{i+1}^2 / sigma_i^2 the step
is that of ancestral sampling.

Reference: Jolicoeur-Martineau et al. (2020), "Adversarial score matching and improved sampling for
image generation", arXiv 2009.05475, Algorithm 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import check_counts, checked_sigmas
from score_jax.samplers.loop import Trajectory, anneal, check_step_size
from score_jax.typing import AnyBatch, AnyKeys, NoiseFn, ObserveFn, Scalar, ScoreFn, Sigmas


def consistent_annealed_sampling(
    keys: AnyKeys | None,
    score_fn: ScoreFn,
    x: AnyBatch,
    sigmas: Sigmas,
    *,
    step_size: Scalar,
    num_steps: int = 1,
    denoise: bool = False,
    num_snapshots: int = 0,
    noise_fn: NoiseFn | None = None,
    observe: ObserveFn | None = None,
) -> Trajectory:
    """Runs chains with `num_steps` consistent steps per noise level.

    Args:
        keys: One key per chain; do not reuse them.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Initial states with noise of standard deviation sigma_1, [batch, *shape].
        sigmas: Noise levels, decreasing, in the unit of `x`.
        step_size: eta sigma_L^2, with 1 - sigma_{i+1} / sigma_i <= eta <= 1 for all steps.
        num_steps: Steps per level. Above 1, the steps use a finer sequence of sigmas between the
            same ends; the score at such a sigma is that of the nearest level times
            sigma_i / sigma, which is exact for networks that divide by sigma.
        denoise: If True, the last step ends at the posterior mean (eta = 1).
        num_snapshots: Number of snapshots to keep, at most one per level.
        noise_fn: n -> noise of step n; None draws it from `keys`.
        observe: As in `loop.anneal`.

    Returns:
        The trajectory. Not clipped.

    Raises:
        ValueError: As `loop.anneal`; if eta is concrete and out of its range.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> sj.consistent_annealed_sampling(
        ...     keys, score_fn, jnp.zeros((8, 2)), sigmas, step_size=5e-3, num_steps=2
        ... ).x.shape
        (8, 2)
    """
    check_step_size(step_size)
    schedule = consistent_schedule(sigmas, step_size, num_steps)
    alphas = schedule.alphas
    if denoise:
        # With eta = 1 the last step is the posterior mean itself.
        last_step = jnp.arange(len(alphas)) == len(alphas) - 1
        alphas = jnp.where(last_step, alphas / schedule.eta, alphas)

    def update(x, score, noise, level, n):
        return x + alphas[n] * score + schedule.added[n] * noise

    return anneal(
        update,
        keys,
        score_fn,
        x,
        sigmas,
        num_steps=num_steps,
        num_snapshots=num_snapshots,
        noise_fn=noise_fn,
        score_levels=schedule.levels,
        observe=observe,
        noise_scale=lambda level, n: schedule.added[n],
    )


class Schedule(NamedTuple):
    """The steps of consistent annealed sampling; arrays have one entry per step.

    Attributes:
        levels: Level whose score the step takes, int [steps].
        alphas: Factor of that score.
        added: Standard deviation of the added noise.
        eta: Share of the noise that a step removes.
    """

    levels: np.ndarray
    alphas: Any
    added: Any
    eta: Any


def consistent_schedule(sigmas: Sigmas, step_size: Scalar, num_steps: int) -> Schedule:
    """The steps for these noise levels; computed in float64 where the arguments are concrete.

    Raises:
        ValueError: If num_steps is less than 1, sigmas do not decrease, or step_size is concrete
            and eta out of its range.
    """
    check_counts(num_steps=num_steps)
    checked_sigmas(sigmas)
    concrete = not any(isinstance(value, jax.core.Tracer) for value in (sigmas, step_size))
    xp = np if concrete else jnp
    sigmas = np.asarray(sigmas, np.float64) if concrete else jnp.asarray(sigmas)

    # The steps sit at evenly spaced positions between the first level and the last.
    position = np.linspace(0, len(sigmas) - 1, len(sigmas) * num_steps)
    levels = np.round(position).astype(np.int32)
    own = xp.exp(xp.interp(position, np.arange(len(sigmas)), xp.log(sigmas)))
    following = xp.concatenate([own[1:], xp.zeros_like(own[:1])])

    eta = step_size / sigmas[-1] ** 2
    if concrete:
        _check_eta(float(eta), np.asarray(own), float(sigmas[-1]), float(step_size))
    added = xp.sqrt(xp.maximum(following**2 - ((1 - eta) * own) ** 2, 0))
    # eta sigma^2 times the score at sigma, which is the score of the level times sigma_i / sigma.
    alphas = eta * own * sigmas[levels]
    dtype = jnp.result_type(float) if concrete else alphas.dtype
    return Schedule(levels, jnp.asarray(alphas, dtype), jnp.asarray(added, dtype), eta)


def _check_eta(eta: float, own: np.ndarray, sigma_min: float, step_size: Scalar) -> None:
    lowest = float(np.max(1 - own[1:] / own[:-1], initial=0.0))
    if not lowest - 1e-6 <= eta <= 1:
        raise ValueError(
            f"step_size={float(step_size):g} is {eta:.4g} sigma_min**2, but consistent annealed "
            f"sampling of these noise levels needs {lowest:.4g} to 1 sigma_min**2: choose a step "
            f"size from {lowest * sigma_min**2:.3g} to {sigma_min**2:.3g}"
        )


def ancestral_step_size(sigmas: Sigmas, num_steps: int = 1) -> float:
    """The step size that turns consistent annealed sampling into ancestral sampling.

    For geometric `sigmas`, eta = 1 - ratio^-2.

    Raises:
        ValueError: If there are fewer than two levels.

    Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential
        equations", appendix F.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> 0 < sj.ancestral_step_size(sigmas) < 0.1**2
        True
    """
    sigmas = np.asarray(checked_sigmas(sigmas), np.float64)
    if len(sigmas) < 2:
        raise ValueError("consistent annealed sampling needs two or more noise levels")
    ratio = (sigmas[0] / sigmas[-1]) ** (1 / (len(sigmas) * num_steps - 1))
    return float((1 - ratio**-2) * sigmas[-1] ** 2)
