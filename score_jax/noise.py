"""Noise levels, perturbed data, and one random key per example.

    perturbed = x + sigma_level * noise,   noise ~ N(0, I)

Randomness rule of the package: example i draws from its own key, folded from its global index. What it
draws then depends on (seed, step, i) alone, never on the batch size or on how many devices share it.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.typing import Array, Batch, Float, Index, Keys, Levels, OneKey, Sigmas


def geometric_sigmas(sigma_max: float, sigma_min: float, num_levels: int) -> Sigmas:
    """A geometric sequence of noise levels, largest first.

    Args:
        sigma_max: First level, in the unit of the data.
        sigma_min: Last level, above 0 and below `sigma_max`.
        num_levels: How many, at least 2 (with 1, only `sigma_max` is returned and must equal `sigma_min`).
    Returns:
        float32 [num_levels], decreasing by a constant ratio; computed in float64.
    Raises:
        ValueError: If the levels would not be positive, finite and decreasing.
    Reference: Song & Ermon (2019), section 4.1.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels={num_levels} must be at least 1")
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(f"sigma_max={sigma_max} and sigma_min={sigma_min} must be finite with sigma_max >= sigma_min > 0")
    if (num_levels == 1) != (sigma_min == sigma_max):
        raise ValueError(
            f"num_levels={num_levels} levels from sigma_max={sigma_max} to sigma_min={sigma_min} do not decrease: "
            "use sigma_min < sigma_max with 2 or more levels, or equal ones with 1"
        )
    sigmas = np.geomspace(sigma_max, sigma_min, num_levels)
    return jnp.asarray(checked_sigmas(sigmas.astype(np.float32)))


def checked_sigmas(sigmas: Sequence[float] | Array | np.ndarray) -> Sequence[float] | Array | np.ndarray:
    """`sigmas`, if they are one-dimensional, positive, finite and decreasing; traced values pass unchecked.

    Raises:
        ValueError: If they are not, with the first offending pair.
    """
    if isinstance(sigmas, jax.core.Tracer):
        return sigmas
    values = np.asarray(sigmas)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"sigmas of shape {values.shape} must be one-dimensional and not empty")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"sigmas must be positive and finite, got {values.tolist()}")
    if (rising := np.flatnonzero(np.diff(values) >= 0)).size:
        i = int(rising[0])
        raise ValueError(
            f"sigmas must decrease, but sigmas[{i}]={values[i]:g} is followed by {values[i + 1]:g}: "
            "put the largest first and do not repeat one"
        )
    return sigmas


def example_keys(key: OneKey, index: Index) -> Keys:
    """One key per example: the example's global index folded into `key`.

    Args:
        key: The key of a step, or of a run.
        index: Global indices of the examples, int [batch].
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(index))


def standard_normal(keys: Keys, event: tuple[int, ...]) -> Batch:
    """Standard normal draws [batch, *event], each from its own key."""
    return _draw(jax.random.normal, keys, event)


def standard_uniform(keys: Keys, event: tuple[int, ...]) -> Batch:
    """Uniform draws in [0, 1), [batch, *event], each from its own key."""
    return _draw(jax.random.uniform, keys, event)


def _draw(distribution: Callable, keys: Keys, event: tuple[int, ...]) -> Batch:
    # Flat draws are bitwise those of the full shape and compile up to 20 times faster.
    flat = jax.vmap(lambda key: distribution(key, (math.prod(event),)))(keys)
    return flat.reshape(keys.shape[0], *event)


def uniform_levels(key: OneKey, index: Index, *, batch_size: int, num_levels: int) -> Levels:
    """Independent uniform levels, int32 [batch], as in the paper; `batch_size` plays no part."""
    del batch_size
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, num_levels))(example_keys(key, index))


def stratified_levels(key: OneKey, index: Index, *, batch_size: int, num_levels: int) -> Levels:
    """Levels that cover all noise levels evenly in every batch, int32 [batch].

    Example i of `batch_size` gets level floor(num_levels * frac(i / batch_size + u)), with one shared
    u ~ U[0, 1). Each is uniform by itself; together they vary far less than independent draws.

    Args:
        key: The key of the step.
        index: Global indices of the examples in this step's batch, in [0, batch_size).
        batch_size: Examples per step over all devices.
        num_levels: Number of noise levels.
    """
    position = jnp.asarray(index) / batch_size + jax.random.uniform(key)
    level = jnp.floor(num_levels * (position % 1.0)).astype(jnp.int32)
    return jnp.minimum(level, num_levels - 1)  # 1 - 2**-25 rounds to 1 in float32


def per_example(values: Float[Array, "batch"], x: Batch) -> Array:
    """`values` [batch], shaped [batch, 1, ..., 1] so that they multiply `x` [batch, *event]."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def perturb(x: Batch, noise: Batch, level: Levels, sigmas: Sigmas) -> Batch:
    """`x + sigma * noise` with each example's own level, [batch, *event]."""
    return x + per_example(jnp.asarray(sigmas)[level], x) * noise
