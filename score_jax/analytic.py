"""Gaussians and their mixtures, whose scores have closed forms at every noise level.

    p_sigma(x) = sum_k w_k N(x; m_k, (s_k^2 + sigma^2) I)
    p_sigma(x) = N(x; m, C + sigma^2 I),   C = U diag(c) U^T
    p(x | y)   = N(x; m + K (y - A m), C - K A C),   K = C A^T (A C A^T + noise^2 I)^-1

References for training, sampling, likelihoods and inverse problems, and the toy densities of the
paper's figures.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import sigma_at, sigma_of
from score_jax.typing import (
    AnyLevels,
    Array,
    Batch,
    Float,
    JaxBatch,
    Keys,
    Losses,
    Scalar,
    ScoreFn,
    Sigmas,
)

PerMode = Float[Array, "modes"] | Float[np.ndarray, "modes"]
Centres = Float[Array, "modes *shape"] | Float[np.ndarray, "modes *shape"]
Point = Float[Array, "*shape"] | Float[np.ndarray, "*shape"]
Matrix = Float[Array, "size size"] | Float[np.ndarray, "size size"]
AnySigma = Scalar | Float[Array, "batch"] | Float[np.ndarray, "batch"]
HIGHEST = jax.lax.Precision.HIGHEST


def mixture_log_density(
    x: Batch, weights: PerMode, means: Centres, scales: PerMode, sigma: AnySigma = 0.0
) -> Losses:
    """Log density of a mixture of isotropic Gaussians, [batch].

    Args:
        x: Points, [batch, *shape].
        weights: Weights of the modes; positive, sum 1.
        means: Centres of the modes, [modes, *shape].
        scales: Standard deviations of the modes, in the unit of `x`.
        sigma: Standard deviation of the noise that perturbs the mixture, one for all points or
            [batch]; 0 for the mixture itself.

    Example:
        >>> weights, means, scales = jnp.array([0.8, 0.2]), jnp.array([[5.0], [-5.0]]), jnp.ones(2)
        >>> print(sj.mixture_log_density(means, weights, means, scales).round(2))
        [-1.14 -2.53]
    """
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))
    dimension = means[0].size
    offsets = x.reshape(len(x), 1, -1) - means.reshape(1, len(means), -1)
    squares = jnp.sum(offsets**2, axis=2)
    # Variances are [batch, modes], or [1, modes] for one sigma.
    variances = scales[None] ** 2 + jnp.asarray(sigma).reshape(-1, 1) ** 2
    exponents = -0.5 * squares / variances - 0.5 * dimension * jnp.log(variances)
    log_weights = jnp.log(weights)[None]
    log_constant = 0.5 * dimension * jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(exponents + log_weights, axis=1) - log_constant


def mixture_score_fn(weights: PerMode, means: Centres, scales: PerMode, sigmas: Sigmas) -> ScoreFn:
    """The exact score of the mixture perturbed by each of `sigmas`, as a score function.

    Args:
        weights: Weights of the modes, which sum to 1.
        means: Their means.
        scales: Their standard deviations, the same in every direction.
        sigmas: Noise levels.

    Example:
        >>> weights, means, scales = jnp.array([0.8, 0.2]), jnp.array([[5.0], [-5.0]]), jnp.ones(2)
        >>> score_fn = sj.mixture_score_fn(weights, means, scales, jnp.array([0.1]))
        >>> print(np.asarray(score_fn(jnp.array([[4.0]]), jnp.array([0]))).round(2))
        [[0.99]]
    """
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))

    def score_fn(x, level):
        # Variances are [batch, modes].
        variances = scales[None] ** 2 + sigma_at(level, sigmas)[:, None] ** 2
        offsets = means.reshape(1, len(means), -1) - x.reshape(len(x), 1, -1)
        dimension = offsets.shape[2]
        squares = jnp.sum(offsets**2, axis=2)
        exponents = -0.5 * squares / variances - 0.5 * dimension * jnp.log(variances)
        responsibilities = jax.nn.softmax(exponents + jnp.log(weights)[None], axis=1)
        score = jnp.sum((responsibilities / variances)[..., None] * offsets, axis=1)
        return score.reshape(x.shape)

    return score_fn


def gaussian_score_fn(mean: Point, variance: float | Point, sigmas: Sigmas) -> ScoreFn:
    """The exact score of N(mean, variance) perturbed by each of `sigmas`.

    It is -(x - mean) / (variance + sigma^2).

    Args:
        mean: Mean of the data.
        variance: Variance of each dimension, or one for all.
        sigmas: Noise levels, in the unit of the data.

    Example:
        >>> sigmas = jnp.array([1.0])
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.array([1.0, 3.0]), sigmas)
        >>> score_fn(jnp.ones((1, 2)), jnp.array([0])).tolist()
        [[-0.5, -0.25]]
    """

    def score_fn(x, level):
        sigma = sigma_of(level, sigmas, x)
        spread = jnp.broadcast_to(jnp.asarray(variance), x.shape[1:])[None]
        return (jnp.asarray(mean)[None] - x) / (spread + sigma**2)

    return score_fn


def sample_mixture(keys: Keys, weights: PerMode, means: Centres, scales: PerMode) -> JaxBatch:
    """Exact samples of the mixture, [batch, *shape], one per key.

    Example:
        >>> weights, means, scales = jnp.array([0.8, 0.2]), jnp.array([[5.0], [-5.0]]), jnp.ones(2)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> sj.sample_mixture(keys, weights, means, scales).shape
        (8, 1)
    """
    weights, means, scales = (jnp.asarray(array) for array in (weights, means, scales))

    def one(key):
        mode_key, noise_key = jax.random.split(key)
        mode = jax.random.categorical(mode_key, jnp.log(weights))
        noise = jax.random.normal(noise_key, (means[0].size,)).reshape(means.shape[1:])
        return means[mode] + scales[mode] * noise

    return jax.vmap(one)(keys)


def full_gaussian_score_fn(mean: Point, covariance: Matrix, sigmas: Sigmas) -> ScoreFn:
    """The exact score of N(mean, covariance) perturbed by each of `sigmas`.

    It is -U (c + sigma^2)^-1 U^T (x - mean), with the eigenvalues c and eigenvectors U of the
    covariance, which are computed once, here.

    Args:
        mean: Mean of the data, [*shape].
        covariance: Covariance of the flattened data, [size, size].
        sigmas: Noise levels, in the unit of the data.

    Returns:
        (x, level) -> score, for whole and floating-point levels; a pytree of its arrays.

    Raises:
        ValueError: If the covariance does not fit the mean, or is concrete and not symmetric or
            not positive semidefinite.

    Example:
        >>> sigmas = jnp.array([1.0])
        >>> score_fn = sj.full_gaussian_score_fn(jnp.zeros(2), jnp.eye(2), sigmas)
        >>> score_fn(jnp.ones((1, 2)), jnp.array([0])).round(3).tolist()
        [[-0.5, -0.5]]
    """
    mean = jnp.asarray(mean)
    variances, axes = _eigen(covariance, mean.size)
    return jax.tree_util.Partial(_full_score, mean, variances, axes, jnp.asarray(sigmas))


def _full_score(
    mean: Array, variances: Array, axes: Array, sigmas: Array, x: Batch, level: AnyLevels
) -> JaxBatch:
    sigma = sigma_at(level, sigmas)[:, None]
    scaled = _along_axes(x, mean, axes) / (variances[None] + sigma**2)
    return -jnp.matmul(scaled, axes.T, precision=HIGHEST).reshape(x.shape).astype(x.dtype)


def full_gaussian_log_density(
    x: Batch, mean: Point, covariance: Matrix, sigma: AnySigma = 0.0
) -> Losses:
    """Log density of N(mean, covariance + sigma^2 I), [batch].

    Args:
        x: Points, [batch, *shape].
        mean: Mean, [*shape].
        covariance: Covariance of flattened points, [size, size].
        sigma: Standard deviation of the noise that perturbs the Gaussian, one for all points or
            [batch].

    Raises:
        ValueError: As `full_gaussian_score_fn`.

    Example:
        >>> x = jnp.zeros((1, 2))
        >>> print(sj.full_gaussian_log_density(x, jnp.zeros(2), jnp.eye(2)).round(3))
        [-1.838]
    """
    mean = jnp.asarray(mean)
    variances, axes = _eigen(covariance, mean.size)
    variances = variances[None] + jnp.asarray(sigma).reshape(-1, 1) ** 2
    squares = _along_axes(x, mean, axes) ** 2 / variances
    return -0.5 * jnp.sum(squares + jnp.log(2 * jnp.pi * variances), axis=1)


def sample_full_gaussian(keys: Keys, mean: Point, covariance: Matrix) -> JaxBatch:
    """Exact samples of N(mean, covariance), [batch, *shape], one per key.

    Raises:
        ValueError: As `full_gaussian_score_fn`.

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> sj.sample_full_gaussian(keys, jnp.zeros(2), jnp.eye(2)).shape
        (8, 2)
    """
    mean = jnp.asarray(mean)
    variances, axes = _eigen(covariance, mean.size)
    noise = jax.vmap(lambda key: jax.random.normal(key, (mean.size,)))(keys)
    offsets = jnp.matmul(jnp.sqrt(variances)[None] * noise, axes.T, precision=HIGHEST)
    return mean[None] + offsets.reshape(-1, *mean.shape)


def full_gaussian_posterior(
    mean: Point,
    covariance: Matrix,
    operator: Callable[[Array], Array],
    y: Float[Array, "batch *_"] | Float[np.ndarray, "batch *_"],
    noise_std: Scalar,
) -> tuple[Batch, Matrix]:
    """Mean and covariance of x ~ N(mean, covariance) given y = A x + noise_std z, z ~ N(0, I).

    Computed in float64 where all arguments are concrete.

    Args:
        mean: Mean of x, [*shape].
        covariance: Covariance of the flattened x, [size, size].
        operator: A, any linear function [batch, *shape] -> [batch, *measurement].
        y: Measurements, [batch, *measurement].
        noise_std: Standard deviation of the noise; 0 only if A covariance A^T is invertible.

    Returns:
        The posterior means [batch, *shape], and the covariance [size, size] that all have.

    Raises:
        ValueError: If noise_std is negative, or shapes do not fit each other.

    Example:
        >>> known_first = sj.mask(jnp.array([True, False]))
        >>> covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
        >>> mean, covariance = sj.full_gaussian_posterior(
        ...     jnp.zeros(2), covariance, known_first, jnp.array([[1.0]]), 1e-3
        ... )
        >>> print(np.asarray(mean).round(2))
        [[1.  0.8]]
    """
    if not isinstance(noise_std, jax.core.Tracer) and not noise_std >= 0:
        raise ValueError(f"noise_std={noise_std} must be 0 or above")
    shape, size = jnp.shape(mean), jnp.size(mean)
    _check_covariance(covariance, size)
    measured = operator(jnp.eye(size).reshape(size, *shape))
    if jnp.shape(y)[1:] != measured.shape[1:]:
        raise ValueError(
            f"y is {list(jnp.shape(y))}, but the operator maps {list(shape)} to "
            f"{list(measured.shape[1:])}: y must be [batch, *{list(measured.shape[1:])}]"
        )
    arrays = (mean, covariance, measured, y, noise_std)
    concrete = not any(isinstance(array, jax.core.Tracer) for array in arrays)
    xp = np if concrete else jnp
    mean, covariance, transposed, y = (
        xp.asarray(array, np.float64 if concrete else None)
        for array in (mean, covariance, measured.reshape(size, -1), y)
    )

    # Condition on the measurements: K^T = (A C A^T + noise^2 I)^-1 A C.
    mean, y = mean.reshape(1, size), y.reshape(len(y), -1)
    cross = transposed.T @ covariance
    total = cross @ transposed + noise_std**2 * xp.eye(len(cross))
    gain = xp.linalg.solve(total, cross)
    means = mean + (y - mean @ transposed) @ gain
    rest = covariance - cross.T @ gain
    rest = (rest + rest.T) / 2
    dtype = jnp.result_type(float)
    return jnp.asarray(means.reshape(-1, *shape), dtype), jnp.asarray(rest, dtype)


def _along_axes(x: Batch, mean: Array, axes: Array) -> Array:
    """Coordinates [batch, size] of x - mean along the eigenvectors."""
    offsets = (x - mean[None]).reshape(x.shape[0], mean.size)
    return jnp.matmul(offsets, axes, precision=HIGHEST)


def _check_covariance(covariance: Any, size: int) -> None:
    if jnp.shape(covariance) != (size, size):
        raise ValueError(
            f"covariance is {list(jnp.shape(covariance))}, but for a mean of {size} numbers it "
            f"must be [{size}, {size}]"
        )
    if isinstance(covariance, jax.core.Tracer):
        return
    values = np.asarray(covariance, np.float64)
    if not np.allclose(values, values.T, rtol=1e-4, atol=1e-6 * np.abs(values).max()):
        raise ValueError("covariance is not symmetric: use (covariance + covariance.T) / 2")


def _eigen(covariance: Any, size: int) -> tuple[Array, Array]:
    """Eigenvalues [size] and eigenvectors, columns of [size, size], of a covariance.

    Computed in float64 where the covariance is concrete.
    """
    _check_covariance(covariance, size)
    if isinstance(covariance, jax.core.Tracer):
        variances, axes = jnp.linalg.eigh(covariance)
        return jnp.maximum(variances, 0), axes
    values = np.asarray(covariance, np.float64)
    variances, axes = np.linalg.eigh((values + values.T) / 2)
    if variances[0] < -1e-5 * abs(variances[-1]):
        raise ValueError(
            f"covariance has the eigenvalue {variances[0]:.3g}, but must be positive semidefinite"
        )
    dtype = jnp.result_type(float)
    return jnp.asarray(np.maximum(variances, 0), dtype), jnp.asarray(axes, dtype)
