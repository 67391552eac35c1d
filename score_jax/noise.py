"""Noise levels, perturbed data, and one random key per example.

    perturbed = x + sigma_level * noise,   noise ~ N(0, I)

Every example draws from its own key, which is folded from the example's global index. Its random
numbers therefore depend on (seed, step, index) alone, and not on the batch size or the number of
devices.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key, Shaped

from score_jax.typing import (
    AnyLevels,
    Array,
    Batch,
    Float,
    Index,
    JaxBatch,
    Keys,
    Levels,
    OneKey,
    Sigmas,
)

PURPOSES = ("init", "train", "sample", "evaluate", "inpaint", "interpolate", "figures")


def geometric_sigmas(sigma_max: float, sigma_min: float, num_levels: int) -> Sigmas:
    """A geometric sequence of noise levels, largest first.

    Args:
        sigma_max: First level, in the unit of the data.
        sigma_min: Last level, above 0 and below `sigma_max`.
        num_levels: Number of levels, at least 2. A single level is allowed if `sigma_min` equals
            `sigma_max`.

    Returns:
        float32 [num_levels], decreasing by a constant ratio; computed in float64.

    Raises:
        ValueError: If the levels would not be positive, finite and decreasing.

    Reference: Song & Ermon (2019), section 4.1.

    Example:
        >>> print(sj.geometric_sigmas(1.0, 0.01, 3))
        [1.   0.1  0.01]
    """
    check_counts(num_levels=num_levels)
    if not 0 < sigma_min <= sigma_max < math.inf:
        raise ValueError(
            f"sigma_max={sigma_max} and sigma_min={sigma_min} must be finite with "
            "sigma_max >= sigma_min > 0"
        )
    if (num_levels == 1) != (sigma_min == sigma_max):
        raise ValueError(
            f"num_levels={num_levels} levels from sigma_max={sigma_max} to sigma_min={sigma_min} "
            "do not decrease: use sigma_min < sigma_max with 2 or more levels, or equal ones "
            "with 1"
        )
    sigmas = np.geomspace(sigma_max, sigma_min, num_levels).astype(np.float32)
    if (np.diff(sigmas) >= 0).any():
        raise ValueError(
            f"num_levels={num_levels} levels from sigma_max={sigma_max} to sigma_min={sigma_min} "
            "are so near each other that float32 does not tell them apart: use fewer"
        )
    return jnp.asarray(checked_sigmas(sigmas))


def edm_sigmas(sigma_max: float, sigma_min: float, num_levels: int, rho: float = 7.0) -> Sigmas:
    """Noise levels whose rho-th roots are evenly spaced, largest first; dense at small sigmas.

    Args:
        sigma_max: First level.
        sigma_min: Last level, above 0 and below `sigma_max`.
        num_levels: Number of levels, at least 2.
        rho: Above 0. 1 spaces the levels evenly; a geometric sequence is the limit of large rho.

    Returns:
        float32 [num_levels], decreasing; computed in float64.

    Raises:
        ValueError: If the levels would not be positive, finite and decreasing.

    Reference: Karras et al. (2022), equation 5.

    Example:
        >>> print(np.asarray(sj.edm_sigmas(10.0, 0.1, 4)).round(2))
        [10.    2.93  0.66  0.1 ]
    """
    check_counts(2, num_levels=num_levels)
    if not 0 < sigma_min < sigma_max < math.inf or not 0 < rho < math.inf:
        raise ValueError(
            f"sigma_max={sigma_max}, sigma_min={sigma_min} and rho={rho} must be finite with "
            "sigma_max > sigma_min > 0 and rho > 0"
        )
    first, last = float(sigma_max) ** (1 / rho), float(sigma_min) ** (1 / rho)
    sigmas = np.linspace(first, last, num_levels) ** rho
    return jnp.asarray(checked_sigmas(sigmas.astype(np.float32)))


def check_counts(low: int = 1, **counts: Any) -> None:
    """Checks that arguments are whole Python numbers, or arrays of one, and not too small.

    Args:
        low: Smallest allowed number.
        **counts: Arguments by name.

    Raises:
        ValueError: If one is not; names it.
    """
    for name, value in counts.items():
        try:
            whole = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            whole = None
        if whole is None:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {low}")
        if whole < low:
            raise ValueError(f"{name}={value} must be at least {low}")


def check_seed(seed: Any) -> None:
    """Raises a ValueError for a seed that is not a whole number in [0, 2**32)."""
    try:
        allowed = not isinstance(seed, bool) and 0 <= operator.index(seed) < 2**32
    except TypeError:
        allowed = False
    if not allowed:
        raise ValueError(f"seed={seed} must be in [0, 2**32)")


def checked_sigmas(sigmas: Sequence[float] | Array | np.ndarray) -> Any:
    """Returns `sigmas` unchanged if they are one-dimensional, positive, finite and decreasing.

    Traced values are returned unchecked.

    Raises:
        ValueError: If they are not; names the first offending pair.
    """
    if isinstance(sigmas, jax.core.Tracer):
        return sigmas
    values = np.asarray(sigmas)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"sigmas of shape {values.shape} must be one-dimensional and not empty")
    if not (np.isfinite(values) & (values > 0)).all():
        wrong = values[~(np.isfinite(values) & (values > 0))][0]
        raise ValueError(f"sigmas must be positive and finite, but one is {wrong}")
    if (rising := np.flatnonzero(np.diff(values) >= 0)).size:
        i = int(rising[0])
        raise ValueError(
            f"sigmas must decrease, but sigmas[{i}]={values[i]:g} is followed by "
            f"{values[i + 1]:g}: put the largest first and do not repeat one"
        )
    return sigmas


def check_batch(x: Any, keys: Any = None, name: str = "x") -> Array:
    """Converts a batch to a JAX array and checks its type and its number of keys.

    Args:
        x: Real floating-point array [batch, *shape].
        keys: Key array [batch], or None to skip that check.
        name: Name of `x` in messages.

    Returns:
        `x` as a JAX array of its own dtype.

    Raises:
        ValueError: If `x` has no batch axis, is complex or not floating-point, or if the number of
            keys differs from the batch size.
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} is {x.dtype}, but a score is defined for real data: give the real and the "
            "imaginary part as two channels"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} is {x.dtype}, but must be floating-point: convert it first")
    if x.ndim == 0:
        raise ValueError(f"{name} is a scalar, but must be a batch [batch, *shape]")
    if keys is not None and jnp.shape(keys) != x.shape[:1]:
        raise ValueError(
            f"keys have shape {list(jnp.shape(keys))}, but {name} is a batch of {x.shape[0]}: "
            "give one key per example, such as jax.random.split(key, len(x))"
        )
    return x


def check_level(level: Any, num_levels: int | None = None) -> Array:
    """Converts noise levels to a JAX array and, where they are concrete, checks their range.

    Args:
        level: int [batch], indices into the noise levels.
        num_levels: Number of noise levels; None checks the lower bound only.

    Raises:
        ValueError: If a concrete level is below 0, or `num_levels` or above.
    """
    if not isinstance(level, jax.core.Tracer):
        values = np.asarray(level)
        wrong = values < 0 if num_levels is None else (values < 0) | (values >= num_levels)
        if wrong.any():
            bound = "0 or above" if num_levels is None else f"from 0 to {num_levels - 1}"
            raise ValueError(f"level={values[wrong].flat[0]} is out of range: levels are {bound}")
    return jnp.asarray(level)


def run_keys(seed: int | Array) -> dict[str, jax.Array]:
    """One random key for each purpose of a run (`PURPOSES`), from the run's seed.

    Args:
        seed: In [0, 2**32).
    """
    keys = jax.random.split(jax.random.key(seed), len(PURPOSES))
    return dict(zip(PURPOSES, keys, strict=True))


def example_keys(key: OneKey, index: Index) -> Keys:
    """One key per example: the example's global index folded into `key`.

    Args:
        key: The key of a step, or of a run.
        index: Global indices of the examples, int [batch].

    Example:
        >>> keys = sj.example_keys(jax.random.key(0), jnp.arange(3))
        >>> later = sj.example_keys(jax.random.key(0), jnp.arange(2, 3))
        >>> bool(keys[2] == later[0])
        True
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.asarray(index))


def split_keys(keys: Keys, num: int = 2) -> Key[Array, "num batch"]:
    """Splits every key into `num` independent ones: [num, batch]."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0)


def standard_normal(keys: Keys, shape: tuple[int, ...], dtype: Any = jnp.float32) -> JaxBatch:
    """Standard normal draws [batch, *shape], each example from its own key.

    Args:
        keys: One per example.
        shape: Shape of one example.
        dtype: Floating-point type of the result. Types narrower than float32 are rounded from
            float32 draws.
    """
    return _draw(jax.random.normal, keys, shape, dtype)


def standard_uniform(keys: Keys, shape: tuple[int, ...], dtype: Any = jnp.float32) -> JaxBatch:
    """Uniform draws in [0, 1), [batch, *shape]; arguments as in `standard_normal`."""
    return _draw(jax.random.uniform, keys, shape, dtype)


def _draw(distribution: Callable, keys: Keys, shape: tuple[int, ...], dtype: Any) -> JaxBatch:
    # A flat draw has the same bits as a shaped one and compiles up to 20 times faster.
    size = math.prod(shape)
    wide = jnp.promote_types(dtype, jnp.float32)
    flat = jax.vmap(lambda key: distribution(key, (size,), wide))(keys)
    return flat.reshape(keys.shape[0], *shape).astype(dtype)


def uniform_levels(key: OneKey, index: Index, *, batch_size: int, num_levels: int) -> Levels:
    """Independent uniform levels, int32 [batch], as in the paper; `batch_size` is ignored.

    Example:
        >>> key = jax.random.key(0)
        >>> level = sj.uniform_levels(key, jnp.arange(6), batch_size=6, num_levels=3)
        >>> level.shape, bool(((0 <= level) & (level < 3)).all())
        ((6,), True)
    """
    del batch_size
    keys = example_keys(key, index)
    return jax.vmap(lambda k: jax.random.randint(k, (), 0, num_levels, jnp.int32))(keys)


def stratified_levels(key: OneKey, index: Index, *, batch_size: int, num_levels: int) -> Levels:
    """Levels that cover all noise levels evenly in every batch, int32 [batch].

    Example i of `batch_size` gets level floor(num_levels * frac(i / batch_size + u)), with one
    u ~ U[0, 1) shared by the batch. Each level is uniform by itself; their average over a batch
    varies far less than that of independent draws.

    Args:
        key: The key of the step.
        index: Global indices of the examples in this step's batch, in [0, batch_size).
        batch_size: Examples per step over all devices.
        num_levels: Number of noise levels.

    Example:
        >>> key = jax.random.key(0)
        >>> level = sj.stratified_levels(key, jnp.arange(6), batch_size=6, num_levels=3)
        >>> sorted(level.tolist())
        [0, 0, 1, 1, 2, 2]
    """
    position = _stratified(key, index, batch_size)
    level = jnp.floor(num_levels * position).astype(jnp.int32)
    # 1 - 2**-25 rounds to 1 in float32.
    return jnp.minimum(level, num_levels - 1)


def normal_levels(key: OneKey, index: Index, *, batch_size: int, num_levels: int) -> Levels:
    """Levels that are most frequent in the middle, int32 [batch].

    They are stratified as in `stratified_levels`, but with a normal distribution about the middle
    of which three standard deviations reach the first and the last level. The logarithm of
    geometric sigmas is then normal: with mean log(sigma_max sigma_min) / 2 and standard deviation
    log(sigma_max / sigma_min) / 6.

    Args:
        key: The key of the step.
        index: Global indices of the examples in this step's batch, in [0, batch_size).
        batch_size: Examples per step over all devices.
        num_levels: Number of noise levels.

    Reference: Karras et al. (2022), table 1, "noise distribution".

    Example:
        >>> key = jax.random.key(0)
        >>> level = sj.normal_levels(key, jnp.arange(6), batch_size=6, num_levels=3)
        >>> level.shape, bool(((0 <= level) & (level < 3)).all())
        ((6,), True)
    """
    quantile = jnp.clip(_stratified(key, index, batch_size), 1e-6, 1 - 1e-6)
    position = 0.5 + jax.scipy.special.ndtri(quantile) / 6
    level = jnp.floor(num_levels * position).astype(jnp.int32)
    return jnp.clip(level, 0, num_levels - 1)


def _stratified(key: OneKey, index: Index, batch_size: int) -> Float[Array, "batch"]:
    """frac(i / batch_size + u) for each example i, with one u ~ U[0, 1) for the batch."""
    shift = jax.random.uniform(key, dtype=jnp.float32)
    return (jnp.asarray(index).astype(jnp.float32) / batch_size + shift) % 1.0


def per_example(values: Shaped[Array, "batch"], x: Batch) -> Array:
    """Reshapes `values` [batch] to [batch, 1, ..., 1], to be broadcast against `x`."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def sigma_at(level: AnyLevels, sigmas: Sigmas | Sequence[float]) -> Float[Array, "batch"]:
    """The sigma of each level, [batch].

    Args:
        level: int [batch], or floating-point for sigmas between two levels: level i + f stands
            for sigma_i^(1 - f) sigma_{i+1}^f.
        sigmas: Noise levels, decreasing.
    """
    level, sigmas = jnp.asarray(level), jnp.asarray(sigmas)
    if jnp.issubdtype(level.dtype, jnp.integer):
        return sigmas[level]
    return jnp.exp(jnp.interp(level, jnp.arange(sigmas.shape[0]), jnp.log(sigmas)))


def level_at(
    sigma: Float[Array, "*batch"] | float, sigmas: Sigmas | Sequence[float]
) -> Float[Array, "*batch"]:
    """The floating-point levels of sigmas, the inverse of `sigma_at`.

    Args:
        sigma: Sigmas; those beyond either end of `sigmas` get the level of that end.
        sigmas: Noise levels, decreasing.
    """
    rising = -jnp.log(jnp.asarray(sigmas))
    return jnp.interp(-jnp.log(sigma), rising, jnp.arange(len(rising), dtype=rising.dtype))


def sigma_of(level: AnyLevels, sigmas: Sigmas, x: Batch) -> Array:
    """`sigma_at` as [batch, 1, ..., 1], to be broadcast against `x`."""
    return per_example(sigma_at(level, sigmas), x)


def perturb(x: Batch, noise: Batch, level: Levels, sigmas: Sigmas) -> JaxBatch:
    """`x + sigma * noise` with each example's own level, [batch, *shape], in the dtype of `x`.

    Raises:
        ValueError: If a concrete level is out of range.

    Example:
        >>> sigmas, level = jnp.array([1.0, 0.1]), jnp.array([0, 1])
        >>> print(sj.perturb(jnp.zeros((2, 1)), jnp.ones((2, 1)), level, sigmas).ravel())
        [1.  0.1]
    """
    level = check_level(level, len(sigmas))
    x = jnp.asarray(x)
    return (x + sigma_of(level, sigmas, x) * noise).astype(x.dtype)


def sum_per_example(values: Batch) -> Float[Array, "batch"]:
    """The sum of each example, [batch], in float32 or wider; works for an empty batch, too."""
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    flat = values.reshape(values.shape[0], math.prod(values.shape[1:]))
    return jnp.sum(flat.astype(dtype), axis=1)


def weighted(
    losses: Float[Array, "batch"], level: Levels, sigmas: Sigmas
) -> Float[Array, "batch"]:
    """`losses` times sigma^2 of each example's level."""
    return (jnp.asarray(sigmas)[level] ** 2 * losses).astype(losses.dtype)
