"""Features of many images, by any function of a batch, over all devices."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.devices import check_divides, merge, pmap, replicate, split
from score_jax.evaluation.metrics import Outputs
from score_jax.network import as_pytree
from score_jax.progress import Progress

FeatureFn = Callable[[Any], Any]
"""x [batch, *shape] -> features [batch, dimensions], or (features, logits [batch, classes])."""


def flat_pixels(x: Any) -> Any:
    """The examples themselves as features, [batch, dimensions].

    Example:
        >>> sj.flat_pixels(np.zeros((10, 8, 8, 1))).shape
        (10, 64)
    """
    return x.reshape(len(x), -1)


def feature_batches(
    feature_fn: FeatureFn,
    x: Any,
    *,
    batch_size: int = 128,
    devices: Sequence[jax.Device] | None = None,
    compiled: bool = True,
    progress: bool = True,
) -> Iterator[Outputs]:
    """Features of examples in batches, as they are computed.

    Args:
        feature_fn: As in `FeatureFn`. If it is a pytree of arrays, like a
            `jax.tree_util.Partial`, these are arguments of the compiled program.
        x: Examples [examples, *shape], an array or an object whose slices are arrays.
        batch_size: Examples at once over all devices, a multiple of their number.
        devices: Devices that share a batch; None takes all of them.
        compiled: If True, `feature_fn` is pmapped; if False, it receives numpy arrays, and may be
            a function of another library.
        progress: If True, show progress.

    Yields:
        Outputs of up to batch_size examples, as float32 host arrays; their probabilities are the
        softmax of the logits.

    Raises:
        ValueError: If the devices do not divide batch_size, or the features are not [batch,
            dimensions].

    Example:
        >>> x = np.zeros((10, 8, 8, 1), np.float32)
        >>> batches = sj.feature_batches(sj.flat_pixels, x, batch_size=4, progress=False)
        >>> sum(len(batch.features) for batch in batches)
        10
    """
    devices = tuple(devices or jax.devices())
    number = len(x)
    batch_size = min(batch_size, -(-number // len(devices)) * len(devices))
    if compiled:
        check_divides(batch_size, len(devices))
        shared = replicate(as_pytree(feature_fn), devices)
        program = _mapped(devices)
    with Progress(number, "features", "example", shown=progress) as bar:
        for first in range(0, number, batch_size):
            batch = np.asarray(x[first : first + batch_size])
            size = len(batch)
            if compiled:
                # The last batch is filled up with its own first example.
                filled = np.concatenate([batch, np.repeat(batch[:1], batch_size - size, axis=0)])
                found = jax.tree.map(merge, program(shared, split(filled, devices)))
            else:
                found = feature_fn(batch)
            yield _outputs(found, size)
            bar.update(first + size)


@functools.lru_cache(maxsize=8)
def _mapped(devices: tuple[jax.Device, ...]) -> Callable:
    """(function, batch) -> function(batch); equal functions are compiled once."""
    return pmap(_apply, devices, (None, 0), 0)


def _apply(function: FeatureFn, batch: Any) -> Any:
    return function(batch)


def _outputs(found: Any, size: int) -> Outputs:
    """The outputs of the first `size` examples of a batch."""
    features, logits = found if isinstance(found, tuple) else (found, None)
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or len(features) < size:
        raise ValueError(
            f"the features have shape {list(features.shape)}, but must be [batch, dimensions]"
        )
    if logits is None:
        return Outputs(features[:size])
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits)), np.float32)
    return Outputs(features[:size], probabilities[:size])


def extract(feature_fn: FeatureFn, x: Any, **settings: Any) -> Outputs:
    """Features of all examples; arguments and errors as in `feature_batches`.

    Example:
        >>> x = np.zeros((10, 8, 8, 1), np.float32)
        >>> sj.extract(sj.flat_pixels, x, progress=False).features.shape
        (10, 64)
    """
    batches = list(feature_batches(feature_fn, x, **settings))
    features = np.concatenate([each.features for each in batches])
    if batches[0].probabilities is None:
        return Outputs(features)
    return Outputs(features, np.concatenate([each.probabilities for each in batches]))
