"""The loop of every sampler: a scan over noise levels of a scan over steps, one XLA program.

    for level i, for step n of the level:   x <- update(x, s(x, i), z_n),   z_n ~ N(0, I)
    optionally at the end:                  x <- x + sigma_L^2 s(x, L)

A sampler is a formula for `update`. This module checks the arguments, draws the noise, thins
snapshots, keeps the dtype of the chains and denoises at the end.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.noise import (
    check_batch,
    check_counts,
    check_level,
    checked_sigmas,
    sigma_of,
    standard_normal,
)
from score_jax.typing import (
    AnyBatch,
    AnyKeys,
    Array,
    Batch,
    Flags,
    Float,
    JaxBatch,
    Keys,
    Levels,
    NoiseFn,
    ObserveFn,
    ScoreFn,
    Sigmas,
)


class Trajectory(NamedTuple):
    """Result of running a batch of chains.

    Attributes:
        x: Final states, [batch, *shape]. Not clipped.
        snapshots: Intermediate states, [snapshots, batch, *shape]; the last one is taken before
            the final denoising.
        finite: True where a chain was finite at the end of a level, bool [levels, batch].
        observed: Results of `observe` in the last step of each level, [levels, batch, ...]; None
            without it.
    """

    x: Batch
    snapshots: Float[Array, "snapshots batch *shape"]
    finite: Flags
    observed: Any = None


class Step(NamedTuple):
    """Values of one step of all chains, as an observer receives them.

    Attributes:
        x: States before the step, [batch, *shape].
        score: Their scores; None if the sampler evaluates the score elsewhere.
        sigma: Noise level of the scores, a scalar.
        drift: Deterministic part of the step, [batch, *shape].
        random: Random part of the step; the step is their sum.
        n: Number of the step, from the first step of the first level.
    """

    x: Array
    score: Array | None
    sigma: Array
    drift: Array
    random: Array
    n: Array


def chain_noise(keys: Keys, n: Array | int, shape: tuple[int, ...], dtype: Any = None) -> JaxBatch:
    """Standard normal noise [batch, *shape] of step number `n`, from the keys with n folded in."""
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)
    return standard_normal(step_keys, shape, dtype or jnp.float32)


def _noise_of(keys: Any, shape: tuple[int, ...], dtype: Any, n: Any) -> JaxBatch:
    return chain_noise(keys, n, shape, dtype)


def denoise(score_fn: ScoreFn, x: Batch, level: Levels, sigmas: Sigmas) -> JaxBatch:
    """The posterior mean of the clean data, `x + sigma^2 s(x, level)`, in the dtype of `x`.

    Raises:
        ValueError: If a concrete level is out of range.

    Reference: Robbins (1956) / Miyasawa (1961), "Tweedie's formula"; Jolicoeur-Martineau et al.
    (2020), section 3.1.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> sj.denoise(score_fn, jnp.ones((1, 2)), jnp.array([0]), sigmas).tolist()
        [[0.5, 0.5]]
    """
    level = check_level(level, len(sigmas))
    x = jnp.asarray(x)
    return (x + sigma_of(level, sigmas, x) ** 2 * score_fn(x, level)).astype(x.dtype)


def anneal(
    update: Callable[[Any, Any, Any, Any, Any], Array],
    keys: AnyKeys | None,
    score_fn: ScoreFn,
    x: AnyBatch,
    sigmas: Sigmas | Sequence[float],
    *,
    num_steps: int,
    denoise: bool = False,
    num_snapshots: int = 0,
    noise_fn: NoiseFn | None = None,
    constrain: Callable[[Any, Any, Any], Any] = lambda x, level, n: x,
    score_levels: Array | np.ndarray | None = None,
    observe: ObserveFn | None = None,
    noise_scale: Callable[[Array, Array], Any] = lambda level, n: 0.0,
) -> Trajectory:
    """Runs a batch of chains through all noise levels, `num_steps` steps at each.

    Args:
        update: (x, score, noise, level, n) -> x, one step of all chains. `level` is the index of
            the level; `n` counts the steps from the first step of the first level.
        keys: One key per chain; do not reuse them. Ignored if `noise_fn` is given.
        score_fn: The score at every level, in 1/unit of `x`.
        x: Initial states, [batch, *shape]; may be an empty batch.
        sigmas: Noise levels, decreasing, in the unit of `x`.
        num_steps: Steps per level, at least 1.
        denoise: If True, end with one step to the posterior mean at the last level.
        num_snapshots: Number of snapshots to keep, at most one per level, at the ends of evenly
            spread levels. Memory grows with the snapshots, not with the steps.
        noise_fn: n -> noise [batch, *shape] of step n; None draws it from `keys`.
        constrain: (x, level, n) -> x, applied before each step and before the final denoising.
        score_levels: Level whose score step n takes, int [levels * steps]; None takes the score
            of the level that the chain is at.
        observe: `Step` -> pytree of arrays [batch, ...], recorded in the last step of each level;
            None records nothing.
        noise_scale: (level, n) -> factor of the noise in `update`, for observers.

    Returns:
        The trajectory. Chains keep the dtype of `x`.

    Raises:
        ValueError: If num_steps is less than 1, num_snapshots is below 0 or above the number of
            levels, sigmas do not decrease, `x` is not real floating-point, or the number of keys
            differs from the batch size.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> keys = jax.random.split(jax.random.key(0), 8)
        >>> ascend = lambda x, score, noise, level, n: x + 0.01 * score  # without noise
        >>> sj.anneal(ascend, keys, score_fn, jnp.ones((8, 2)), sigmas, num_steps=3).x.shape
        (8, 2)
    """
    # Everything that can be checked is checked here, on Python numbers, before tracing the loop.
    x = check_batch(x, keys if noise_fn is None else None)
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    num_levels = len(sigmas)
    check_counts(num_steps=num_steps)
    if not 0 <= num_snapshots <= num_levels:
        raise ValueError(
            f"num_snapshots={num_snapshots} must lie between 0 and the number of noise levels, "
            f"{num_levels}"
        )
    batch_size, *shape = x.shape
    if noise_fn is None:
        noise_fn = functools.partial(_noise_of, keys, tuple(shape), x.dtype)

    def one_step(x, n, level):
        x = constrain(x, level, n)
        score_level = level if score_levels is None else jnp.asarray(score_levels)[n]
        score = score_fn(x, jnp.full(batch_size, score_level, jnp.int32))
        noise = noise_fn(n)
        end = update(x, score, noise, level, n).astype(x.dtype)
        if observe is None:
            return end, None
        random = jnp.broadcast_to(noise_scale(level, n) * noise, x.shape)
        step = Step(x, score, sigmas[score_level], end - x - random, random, n)
        return end, observe(step)

    # The scan over steps carries the last observation; its first value is not read.
    number, first = jnp.int32(0), jnp.int32(0)
    unobserved = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(lambda x: one_step(x, number, first)[1], x),
    )

    def one_level(carry, inputs):
        x, snapshots = carry
        level, slot = inputs
        steps = level * num_steps + np.arange(num_steps, dtype=np.int32)
        start = (x, unobserved)
        (x, observed), _ = jax.lax.scan(
            lambda carry, n: (one_step(carry[0], n, level), None), start, steps
        )
        # Record where chains stop being finite, and the snapshot of this level if it has one.
        finite = jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        if num_snapshots:
            snapshots = snapshots.at[slot].set(x, mode="drop")
        return (x, snapshots), (finite, observed)

    snapshots = jnp.zeros((num_snapshots, *x.shape), x.dtype)
    levels = np.arange(num_levels, dtype=np.int32)
    slots = _snapshot_slots(num_levels, num_snapshots)
    (x, snapshots), (finite, observed) = jax.lax.scan(one_level, (x, snapshots), (levels, slots))

    if denoise:
        last = num_levels - 1
        x = constrain(x, last, num_levels * num_steps)
        x = _denoise(score_fn, x, jnp.full(batch_size, last, jnp.int32), sigmas)
    return Trajectory(x, snapshots, finite, observed)


_denoise = denoise  # The argument `denoise` of `anneal` hides the function.


def _snapshot_slots(num_levels: int, num_snapshots: int) -> np.ndarray:
    """Index of the snapshot that stores each level's end; an index past the last is dropped."""
    slots = np.full(num_levels, num_snapshots, np.int32)
    slots[snapshot_levels(num_levels, num_snapshots)] = np.arange(num_snapshots)
    return slots


def snapshot_levels(num_levels: int, num_snapshots: int) -> np.ndarray:
    """Index of the level at whose end each snapshot is taken, int [snapshots]."""
    return np.arange(1, num_snapshots + 1) * num_levels // max(num_snapshots, 1) - 1


def check_step_size(step_size: Any) -> None:
    """Raises a ValueError for a concrete step size that is not positive and finite."""
    if isinstance(step_size, jax.core.Tracer):
        return
    with np.errstate(over="ignore"):
        single = np.float32(step_size)
    if not np.finfo(np.float32).tiny <= single < np.inf:
        raise ValueError(f"step_size={step_size} must be positive and finite in float32")
