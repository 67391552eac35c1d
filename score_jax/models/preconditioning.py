"""Preconditioning: a network of unit scale as a correction to the score of a Gaussian.

    s(x, i) = -(x - m) / t^2 + d / (t sigma_i) F((x - m) / t, log sigma_i),   t^2 = sigma_i^2 + d^2

The first term is the exact score of data N(m, d^2) perturbed by sigma_i. The target of F is then
of unit size at every level, and 0 for data that are such a Gaussian.

The same with a Gaussian N(mu, C) that has the principal components of the data:

    s(x, i) = (mu_i(x) - x) / sigma_i^2 + c_i / sigma_i F([(x - mu) / t, (mu_i(x) - mu) / d])

with the posterior mean mu_i(x) = mu + C (C + sigma_i^2 I)^-1 (x - mu) as further channels of the
input, and c_i^2 = trace(C (C + sigma_i^2 I)^-1) / D. Much of an image at a large sigma is linear,
and a convolution sees too little of it to learn that soon.

Reference: Karras et al. (2022), "Elucidating the design space of diffusion-based generative
models", table 1, written for the score.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from score_jax.noise import checked_sigmas, per_example, sigma_at
from score_jax.typing import AnyLevels, Array, Batch, Float, JaxBatch, Sigmas

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
    network: Callable[[Any, Any], Array],
    x: Batch,
    level: AnyLevels,
    sigmas: Sequence[float],
    mean: float = 0.0,
    std: float = 1.0,
) -> JaxBatch:
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


class PrincipalComponents(NamedTuple):
    """A Gaussian N(mean, C) of examples of D values, with k principal components.

    C has the eigenvectors and variances of the components, and `rest` in all other directions.

    Attributes:
        mean: [*shape].
        basis: Orthonormal eigenvectors, [*shape, k].
        variance: Variances along them, [k].
        rest: Variance in any other direction, a scalar.
    """

    mean: Float[Array | np.ndarray, "*shape"]
    basis: Float[Array | np.ndarray, "*shape k"]
    variance: Float[Array | np.ndarray, "k"]
    rest: Float[Array | np.ndarray, ""]


def principal_components(x: Batch | np.ndarray, number: int) -> PrincipalComponents:
    """The principal components of examples, as float32 arrays of NumPy.

    Args:
        x: Examples [examples, *shape] of D values; at least 2.
        number: k, from 1 to D - 1, and below the number of examples.

    Raises:
        ValueError: If `number` is out of range.
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    size = flat.shape[1]
    most = min(size, len(flat)) - 1
    if not 1 <= number <= most:
        raise ValueError(
            f"components={number} must be from 1 to {most}, for {len(flat)} examples of {size} "
            "values"
        )
    mean = flat.mean(axis=0)
    flat = (flat - mean) / (len(flat) - 1) ** 0.5
    # The smaller one of the covariance and of the products between examples.
    if size <= len(flat):
        variance, basis = np.linalg.eigh(flat.T @ flat)
        basis = basis[:, ::-1][:, :number]
    else:
        variance, weights = np.linalg.eigh(flat @ flat.T)
        basis = flat.T @ weights[:, ::-1][:, :number]
        basis /= np.maximum(np.linalg.norm(basis, axis=0), 1e-300)
    variance = np.maximum(variance[::-1][:number], 0)
    total = np.sum(flat**2)
    # Keep the variance above 0, also where all examples agree.
    rest = max((total - variance.sum()) / (size - number), 1e-6 * total / size, 1e-12)
    shape = x.shape[1:]
    arrays = (mean.reshape(shape), basis.reshape(*shape, number), np.maximum(variance, rest), rest)
    return PrincipalComponents(*(np.asarray(array, np.float32) for array in arrays))


def preconditioned_by(
    network: Callable[[Any, Any], Array],
    x: Batch,
    level: AnyLevels,
    sigmas: Sigmas | Sequence[float],
    gaussian: PrincipalComponents,
) -> JaxBatch:
    """The score of a network F with the preconditioning by a Gaussian with principal components.

    Args:
        network: F: (images [batch, height, width, 2 channels] of unit scale, log sigma
            [batch, 1]) -> float32 [batch, height, width, channels].
        x: Perturbed images, [batch, height, width, channels].
        level: Indices into `sigmas`, int [batch] or floating-point as in `noise.sigma_at`.
        sigmas: Noise levels, decreasing.
        gaussian: The Gaussian.

    Returns:
        The score, of the shape and dtype of `x`.
    """
    size, number = gaussian.mean.size, gaussian.variance.size
    basis = gaussian.basis.reshape(size, number)
    variance, rest = gaussian.variance[None], gaussian.rest
    centered = (x - gaussian.mean[None]).astype(jnp.float32).reshape(len(x), size)
    sigma = sigma_at(level, jnp.asarray(sigmas, jnp.float32)).reshape(-1, 1)

    # Shrink the deviation from the mean along every direction by variance / (variance + sigma^2).
    along, gain = variance / (variance + sigma**2), rest / (rest + sigma**2)
    projected = centered @ basis
    posterior = gain * centered + ((along - gain) * projected) @ basis.T
    mean_gain = (jnp.sum(along, axis=1, keepdims=True) + (size - number) * gain) / size

    # The score of the Gaussian, without the cancellation of (posterior - centered) / sigma^2.
    change = (variance - rest) / ((variance + sigma**2) * (rest + sigma**2))
    score = (change * projected) @ basis.T - centered / (rest + sigma**2)

    square = (jnp.sum(variance) + (size - number) * rest) / size
    pair = (centered / jnp.sqrt(square + sigma**2), posterior / jnp.sqrt(square))
    inputs = jnp.concatenate([value.reshape(x.shape) for value in pair], axis=-1)
    f = network(inputs, jnp.log(sigma)).reshape(len(x), size)
    total = score + jnp.sqrt(mean_gain) / sigma * f
    return jnp.asarray(total).reshape(x.shape).astype(x.dtype)
