"""Law of a sampler on Gaussian data: the variance with which its chains end.

On data N(0, v) with exact scores, the final state of a sampler that is linear in the state and the
noise is x = a x_0 + sum_n b_n z_n, and its variance a^2 var(x_0) + sum_n b_n^2. The coefficients
are derivatives of the sampler itself, so the law holds for the steps as they are computed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.analytic import gaussian_score_fn
from score_jax.noise import checked_sigmas
from score_jax.samplers.loop import Trajectory
from score_jax.typing import Float, Sigmas

MAX_NOISES = 2**20


def final_variance(
    sampler: Callable[..., Trajectory],
    sigmas: Sigmas,
    variance: Float[np.ndarray, "dimensions"],
    *,
    start_variance: float | None = None,
    **settings,
) -> Float[np.ndarray, "dimensions"]:
    """Variance of the final states of a sampler on N(0, variance), with exact scores.

    Args:
        sampler: Linear in the state and the noise for linear scores, as all samplers of this
            package are; takes (keys, score_fn, x, sigmas, noise_fn=..., **settings).
        sigmas: Noise levels, decreasing and concrete.
        variance: v, the variance of each dimension of the data, in the square of the unit of
            `sigmas`, [dimensions].
        start_variance: Variance of the initial states; None takes sigma_1^2.
        **settings: Settings of the sampler, such as num_steps and step_size.

    Returns:
        Variances [dimensions]. The ideal is `variance` for chains that end with `denoise=True` at
        a small sigma_L, and up to variance + sigma_L^2 without.

    Raises:
        ValueError: If the sampler draws noise more than 2**20 times.

    Example:
        >>> sigmas = sj.geometric_sigmas(10.0, 0.1, 20)
        >>> variance = sj.final_variance(
        ...     sj.annealed_langevin, sigmas, np.ones(1), step_size=5e-3, num_steps=10
        ... )
        >>> bool(abs(variance[0] - 1) < 0.3)
        True
    """
    sigmas = checked_sigmas(np.asarray(sigmas, np.float32))
    variance = np.asarray(variance, np.float32)
    start = sigmas[0] ** 2 if start_variance is None else start_variance
    score_fn = gaussian_score_fn(jnp.zeros(len(variance)), jnp.asarray(variance), sigmas)

    def final_state(x, noises):
        # Noise beyond the end of the table reads as 0.
        def noise_fn(n):
            return noises.at[n].get(mode="fill", fill_value=0.0)[None]

        result = sampler(None, score_fn, x[None], sigmas, noise_fn=noise_fn, **settings)
        # Dimensions do not mix, so the gradient of the sum has the coefficients of each.
        return jnp.sum(result.x)

    derivatives = jax.jit(jax.grad(final_state, argnums=(0, 1)))
    # Every size of the table compiles anew: begin with room for twice `num_steps` draws a level.
    num_steps = settings.get("num_steps") or 0
    num_noises = min(MAX_NOISES, 2 * len(sigmas) * (num_steps + 1))
    while num_noises <= MAX_NOISES:
        zeros = jnp.zeros((num_noises, len(variance)), jnp.float32)
        of_start, of_noise = derivatives(zeros[0], zeros)
        of_noise = np.asarray(of_noise, np.float64)
        # An unused second half shows that no noise was cut off.
        if not of_noise[num_noises // 2 :].any():
            squares = np.asarray(of_start, np.float64) ** 2 * float(start)
            return squares + np.sum(of_noise**2, axis=0)
        num_noises *= 4
    raise ValueError(f"the sampler draws noise more than {MAX_NOISES} times: take fewer steps")
