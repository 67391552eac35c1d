"""The objective at every noise level, on examples that were not trained on."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.data.transforms import prepare_pixels
from score_jax.devices import check_divides, feed, merge_second, pmap, replicate, split
from score_jax.network import as_pytree, with_label
from score_jax.noise import (
    check_batch,
    checked_sigmas,
    example_keys,
    geometric_sigmas,
    perturb,
    run_keys,
    standard_normal,
    sum_per_example,
    weighted,
)
from score_jax.progress import Progress, announce
from score_jax.typing import Array, Float, Index, LossFn, OneKey, PrepareFn, ScoreFn, Sigmas


def losses_per_level(
    key: OneKey, loss_fn: LossFn, score_fn: ScoreFn, x: Array, index: Index, sigmas: Sigmas
) -> Float[Array, "levels batch"]:
    """The loss of each example at each noise level.

    Args:
        key: Key of the evaluation. Example i at level l draws from it with l and then its global
            index folded in.
        loss_fn: The objective.
        score_fn: The score.
        x: Clean data, [batch, *shape].
        index: Global index of each example, int [batch].
        sigmas: Noise levels, decreasing.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> x, index = jnp.zeros((3, 2)), jnp.arange(3)
        >>> key = jax.random.key(0)
        >>> sj.losses_per_level(key, sj.annealed_dsm, score_fn, x, index, sigmas).shape
        (5, 3)
    """
    return _at_levels(key, loss_fn, score_fn, x, index, sigmas)


def _at_levels(key: OneKey, fn: Callable, score_fn, x: Array, index: Index, sigmas: Sigmas) -> Any:
    """The results of `fn` at each noise level, stacked along a first axis."""

    def at_level(level):
        keys = example_keys(jax.random.fold_in(key, level), index)
        return fn(keys, score_fn, x, jnp.full(len(x), level, jnp.int32), sigmas)

    return jax.lax.map(at_level, jnp.arange(len(sigmas)))


def evaluate(
    loss_fn: LossFn,
    score_fn: Callable[..., Array],
    x: Any,
    sigmas: Sigmas,
    *,
    seed: int = 0,
    label: np.ndarray | None = None,
    prepare: PrepareFn = prepare_pixels,
    batch_size: int = 128,
    devices: Sequence[jax.Device] | None = None,
    device_megabytes: int = 1024,
    progress: bool = True,
) -> np.ndarray:
    """The loss of every example at every noise level, over all devices.

    Args:
        loss_fn: The objective, such as `losses.dsm.annealed_dsm`.
        score_fn: (x, level) -> score; (x, level, label) -> score if `label` is given.
        x: Examples as stored, [examples, *shape], an array or lazy images.
        sigmas: Noise levels, decreasing.
        seed: Seed of the noise, in [0, 2**32); the same seed gives paired losses.
        label: Labels of the examples, int [examples].
        prepare: (keys, x, label) -> (x, label), as in `training.make_trainer`.
        batch_size: Examples that are evaluated at once, a multiple of the number of devices.
        devices: Devices that share a batch; None takes all of them.
        device_megabytes: Data sets up to this size are held by every device.
        progress: If True, show progress and announce what is being compiled.

    Returns:
        float64 [examples, levels].

    Raises:
        ValueError: If the devices do not divide batch_size, or sigmas do not decrease.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> sj.evaluate(sj.annealed_dsm, score_fn, x, sigmas, progress=False).shape
        (50, 5)
    """
    losses = map_examples(
        loss_fn,
        score_fn,
        x,
        sigmas,
        seed=seed,
        label=label,
        prepare=prepare,
        batch_size=batch_size,
        devices=devices,
        device_megabytes=device_megabytes,
        progress=progress,
    )
    return losses[0]


def common_sigmas(sigmas: Sequence[Any]) -> tuple[Any, str | None]:
    """Noise levels at which networks of different levels can be compared.

    Equal levels are returned unchanged. Otherwise they are a geometric sequence over the range
    that all have in common, with as many levels as the network with most levels there.

    Args:
        sigmas: The levels of each network, arrays [levels], decreasing.

    Returns:
        The levels, float32 [levels], and a sentence on how they were chosen; None for equal ones.

    Raises:
        ValueError: If there is no common range.

    Example:
        >>> sigmas, why = sj.common_sigmas([sj.geometric_sigmas(1.0, 0.1, 5)] * 2)
        >>> len(sigmas), why
        (5, None)
    """
    arrays = [np.asarray(checked_sigmas(each), np.float32) for each in sigmas]
    if all(np.array_equal(each, arrays[0]) for each in arrays):
        return jnp.asarray(arrays[0]), None
    largest = float(min(each[0] for each in arrays))
    smallest = float(max(each[-1] for each in arrays))
    if smallest > largest:
        raise ValueError(
            f"the noise levels have no range in common: one network begins at {largest:g}, below "
            f"{smallest:g}, where another ends"
        )
    inside = [int(((each <= largest) & (each >= smallest)).sum()) for each in arrays]
    number = 1 if smallest == largest else max(2, *inside)
    levels = f"{number} levels from {largest:g} to {smallest:g}" if number > 1 else f"{largest:g}"
    return geometric_sigmas(largest, smallest, number), (
        f"the runs differ in their noise levels, so each network is evaluated at {levels}, the "
        "range that all have in common: networks that take any level at these sigmas, others by "
        "the score of their nearest level, rescaled"
    )


def score_error(true_score_fn: ScoreFn) -> LossFn:
    """The exact error of a score whose truth is known, as a LossFn.

    It is sigma^2 / 2 || s(x + sigma z, i) - true score ||^2, with the noise z that
    `losses.dsm.annealed_dsm` draws from the same keys.

    Args:
        true_score_fn: The true score at the levels that the losses are computed at.
    """
    return jax.tree_util.Partial(_score_error, as_pytree(true_score_fn))


def _score_error(true_score_fn, keys, score_fn, x, level, sigmas) -> Array:
    x = check_batch(x, keys)
    noise = standard_normal(keys, x.shape[1:], x.dtype)
    perturbed = perturb(x, noise, level, sigmas)
    error = score_fn(perturbed, level) - true_score_fn(perturbed, level)
    error = error.astype(jnp.promote_types(x.dtype, jnp.float32))
    return weighted(0.5 * sum_per_example(error**2), level, sigmas)


def map_examples(
    fn: Callable[..., Any],
    score_fn: Callable[..., Array],
    x: Any,
    sigmas: Sigmas,
    *,
    seed: int = 0,
    draws: int = 1,
    label: np.ndarray | None = None,
    prepare: PrepareFn = prepare_pixels,
    batch_size: int = 128,
    devices: Sequence[jax.Device] | None = None,
    device_megabytes: int = 1024,
    progress: bool = True,
) -> Any:
    """The results of a function for every example, noise level and draw, over all devices.

    Args:
        fn: (keys, score_fn, x, level, sigmas) -> pytree of arrays [batch, ...], such as an
            objective or several; with one key per example.
        score_fn: As in `evaluate`.
        x: As in `evaluate`.
        sigmas: Noise levels, decreasing.
        seed: Seed of the noise, in [0, 2**32). What example i draws at a level depends on (seed,
            draw, i, level) alone, so that two calls with the same seed give paired results.
        draws: Number of independent draws of the noise per example, of dequantisation as well.
        label: As in `evaluate`.
        prepare: As in `evaluate`.
        batch_size: As in `evaluate`.
        devices: As in `evaluate`.
        device_megabytes: As in `evaluate`.
        progress: As in `evaluate`.

    Returns:
        The pytree of `fn`, with arrays float64 [draws, examples, levels, ...].

    Raises:
        ValueError: If the devices do not divide batch_size, sigmas do not decrease, or draws is
            not positive.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> def norm(keys, score_fn, x, level, sigmas):
        ...     return jnp.sum(score_fn(x, level) ** 2, axis=1)
        >>> sj.map_examples(norm, score_fn, x, sigmas, progress=False).shape
        (1, 50, 5)
    """
    devices = tuple(devices or jax.devices())
    check_divides(batch_size, len(devices))
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    number = x.shape[0]
    fits = x.nbytes <= device_megabytes * 1_000_000
    stored = x[:] if fits else x
    arrays = (stored,) if label is None else (stored, np.asarray(label))
    source = feed(arrays, devices, resident=fits)

    levels = tuple(np.asarray(checked_sigmas(sigmas)).tolist())
    program = _mapped(_Levels(fn, levels, prepare), devices)
    shared = (replicate(as_pytree(score_fn), devices), source.resident)
    announce(f"compiling the objective at {len(levels)} noise levels ...", progress)

    found = []
    with Progress(draws * number, "evaluate", "example", shown=progress) as bar:
        for draw in range(draws):
            fixed = (_key_of_draw(seed, draw), *shared)
            for first in range(0, number, batch_size):
                # The last batch is filled up with examples from the beginning.
                index = first + np.arange(batch_size)
                mapped = split(index, devices)
                batch = program(fixed, mapped, source.fetch(index % number))
                kept = min(batch_size, number - first)
                found.append(jax.tree.map(lambda array, n=kept: merge_second(array)[:n], batch))
                bar.update(draw * number + first + kept)

    def joined(*batches):
        values = np.concatenate(batches).astype(np.float64)
        return values.reshape(draws, number, *values.shape[1:])

    return jax.tree.map(joined, *found)


def _key_of_draw(seed: int, draw: int) -> OneKey:
    """The key of one draw; that of draw 0 is the key of the evaluation itself."""
    key = run_keys(seed)["evaluate"]
    # Numbers from the top: small ones give the keys that `jax.random.split` returns.
    return key if draw == 0 else jax.random.fold_in(key, np.uint32(2**32 - draw))


@dataclasses.dataclass(frozen=True)
class _Levels:
    """The program of one device's examples; equal for equal settings.

    Attributes:
        fn: (keys, score_fn, x, level, sigmas) -> pytree of arrays [batch, ...].
        sigmas: Noise levels, decreasing.
        prepare: (keys, x, label) -> (x, label).
    """

    fn: Callable[..., Any]
    sigmas: tuple[float, ...]
    prepare: PrepareFn

    def __call__(self, fixed: tuple, index: Array, arguments: tuple) -> Any:
        key, score_fn, resident = fixed
        prepare_key, loss_key = jax.random.split(key)
        x, *rest = [array[arguments[0]] for array in resident] or arguments
        x, label = self.prepare(example_keys(prepare_key, index), x, rest[0] if rest else None)
        sigmas = jnp.asarray(self.sigmas)
        return _at_levels(loss_key, self.fn, with_label(score_fn, label), x, index, sigmas)


def _mapped(program: _Levels, devices: tuple[jax.Device, ...]) -> Callable:
    """The pmapped program; the same object for equal arguments, which compiles once."""
    try:
        hash(program)
    except TypeError:  # A user's function can hold lists.
        return pmap(program, devices, (None, 0, 0), 0)
    return _cached(program, devices)


@functools.lru_cache(maxsize=8)
def _cached(program: _Levels, devices: tuple[jax.Device, ...]) -> Callable:
    return pmap(program, devices, (None, 0, 0), 0)
