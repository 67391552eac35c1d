"""The objective at every noise level, on examples that were not trained on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.data.transforms import prepare_pixels
from score_jax.devices import check_divides, feed, merge_second, pmap, replicate, split
from score_jax.network import as_pytree, with_label
from score_jax.noise import checked_sigmas, example_keys, run_keys
from score_jax.progress import Progress, announce
from score_jax.typing import Array, Float, Index, LossFn, OneKey, ScoreFn, Sigmas


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
    """

    def at_level(level):
        keys = example_keys(jax.random.fold_in(key, level), index)
        return loss_fn(keys, score_fn, x, jnp.full(len(x), level, jnp.int32), sigmas)

    return jax.lax.map(at_level, jnp.arange(len(sigmas)))


def evaluate(
    loss_fn: LossFn,
    score_fn: Callable[..., Array],
    x: Any,
    sigmas: Sigmas,
    *,
    seed: int = 0,
    label: np.ndarray | None = None,
    prepare: Callable[..., tuple[Array, Array | None]] = prepare_pixels,
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
        devices: Devices that share a batch; None takes all local ones.
        device_megabytes: Data sets up to this size are held by every device.
        progress: If True, show progress and announce what is being compiled.

    Returns:
        float64 [examples, levels].

    Raises:
        ValueError: If the devices do not divide batch_size, or sigmas do not decrease.
    """
    devices = tuple(devices or jax.local_devices())
    check_divides(batch_size, len(devices))
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    number = x.shape[0]
    fits = x.nbytes <= device_megabytes * 1_000_000
    stored = x[:] if fits else x
    arrays = (stored,) if label is None else (stored, np.asarray(label))
    source = feed(arrays, devices, resident=fits)

    def batch_losses(fixed, index, arguments):
        key, score_fn, resident = fixed
        prepare_key, loss_key = jax.random.split(key)
        x, *label = source.take(resident, arguments)
        keys = example_keys(prepare_key, index)
        x, label = prepare(keys, x, label[0] if label else None)
        return losses_per_level(loss_key, loss_fn, with_label(score_fn, label), x, index, sigmas)

    fixed = (run_keys(seed)["evaluate"], replicate(as_pytree(score_fn), devices), source.resident)
    program = pmap(batch_losses, devices, (None, 0, 0), 0)
    announce(f"compiling the objective at {len(sigmas)} noise levels ...", progress)

    losses = []
    with Progress(number, "evaluate", "example", shown=progress) as bar:
        for first in range(0, number, batch_size):
            # The last batch is filled up with examples from the beginning.
            index = first + np.arange(batch_size)
            mapped = split(index, len(devices))
            found = program(fixed, mapped, source.fetch(index % number))
            losses.append(merge_second(found))
            bar.update(min(first + batch_size, number))
    return np.concatenate(losses)[:number].astype(np.float64)
