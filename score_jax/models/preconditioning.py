"""Preconditioning: a network of unit scale as a correction to the score of a Gaussian.

    s(x, i) = -(x - m) / t^2 + d / (t sigma_i) F((x - m) / t, log sigma_i),   t^2 = sigma_i^2 + d^2

The first term is the exact score of data N(m, d^2) perturbed by sigma_i. The target of F is then
of unit size at every level, and 0 for data that are such a Gaussian.

Reference: Karras et al. (2022), "Elucidating the design space of diffusion-based generative
models", table 1, written for the score.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from score_jax.noise import checked_sigmas, per_example, sigma_at
from score_jax.typing import AnyLevels, Array, Batch

LARGEST = 1e15
"""Size of data above which their squares, or the inverse of them, leave float32."""


def as_floats(sigmas: Any) -> tuple[float, ...]:
    """Noise levels as a tuple of Python floats, the form in which modules hold them.

    Args:
        sigmas: An array such as that of `noise.geometric_sigmas`, or a sequence of numbers.

    Raises:
        ValueError: If they are not one-dimensional, positive, finite and decreasing.
    """
    values = checked_sigmas(np.asarray(sigmas))
    return tuple(float(sigma) for sigma in values)


def preconditioned(
    network: Callable[[Array, Array], Array],
    x: Batch,
    level: AnyLevels,
    sigmas: Sequence[float],
    mean: float = 0.0,
    std: float = 1.0,
) -> Batch:
    """The score of a network F with the preconditioning above.

    Args:
        network: F: (x [batch, *shape] of unit scale, log sigma [batch, 1]) -> float32
            [batch, *shape].
        x: Perturbed data.
        level: Indices into `sigmas`, int [batch] or floating-point as in `noise.sigma_at`.
        sigmas: Noise levels, decreasing.
        mean: m, approximately the mean of the data.
        std: d, approximately the standard deviation of the data; above 0.

    Returns:
        The score, of the shape and dtype of `x`.

    Raises:
        ValueError: If mean is not finite in float32, or std is not positive and finite.
    """
    if not abs(mean) < LARGEST:
        raise ValueError(f"data_mean={mean} must be finite and of size below {LARGEST:g}")
    if not 1 / LARGEST < std < LARGEST:
        raise ValueError(f"data_std={std} must be above 0, from 1e-15 to 1e15")
    sigma = per_example(sigma_at(level, jnp.asarray(sigmas, jnp.float32)), x)
    total = jnp.sqrt(sigma**2 + std**2)
    log_sigma = jnp.log(sigma).reshape(x.shape[0], 1)
    f = network((x - mean) / total, log_sigma)
    return (std / (total * sigma) * f - (x - mean) / total**2).astype(x.dtype)
