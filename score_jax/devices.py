"""Data parallelism with `jax.pmap`: splitting batches, replicating trees, averaging gradients.

Mapped arrays are [devices, share, ...]; unmapped ones are the same on every device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from score_jax.typing import Array

AXIS = "devices"
LARGEST_PACKED = 2**15
"""Number of elements up to which a leaf joins the flat all-reduce buffer."""


def pmap(
    function: Callable,
    devices: Sequence[jax.Device],
    in_axes: Any,
    out_axes: Any,
    donate: tuple[int, ...] = (),
) -> Callable:
    """`jax.pmap` of `function` over the axis `AXIS` of these devices.

    Every argument must have at least one leaf: JAX assigns wrong axes if an argument without
    leaves makes up for one with two. Pass arguments that may be empty together with another one.
    """
    return jax.pmap(
        function,
        AXIS,
        in_axes=in_axes,
        out_axes=out_axes,
        donate_argnums=donate,
        devices=tuple(devices),
    )


def split(array: np.ndarray, num_devices: int) -> np.ndarray:
    """Reshapes [batch, ...] to [devices, share, ...]."""
    return array.reshape(num_devices, len(array) // num_devices, *array.shape[1:])


def merge(array: Array | np.ndarray) -> np.ndarray:
    """Fetches [devices, share, ...] as [batch, ...]."""
    array = np.asarray(array)
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def merge_second(array: Array | np.ndarray) -> np.ndarray:
    """Fetches [devices, kept, share, ...] as [batch, kept, ...]."""
    return merge(np.moveaxis(np.asarray(array), 1, 2))


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Replicates `tree`, in the same layout as a pmap output with out_axes=None."""
    return _replicator(tuple(devices))(tree, np.arange(len(devices)))


@functools.lru_cache(maxsize=8)
def _replicator(devices: tuple[jax.Device, ...]) -> Callable:
    return pmap(lambda tree, _: tree, devices, (None, 0), None)


def first_replica(tree: Any) -> Any:
    """The copy that the first device holds, as arrays of that device alone."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def described(devices: Sequence[jax.Device]) -> str:
    """The number of devices and their kind, such as "8 x TPU v4"."""
    return f"{len(devices)} x {devices[0].device_kind}"


def check_divides(batch_size: int, num_devices: int, name: str = "batch_size") -> None:
    """Raises a ValueError that names the nearest sizes if a batch cannot be split evenly."""
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        near = " or ".join(str(size) for size in (below, below + num_devices) if size)
        raise ValueError(
            f"{name}={batch_size} cannot be split over {num_devices} devices: use {near}, or "
            "another number of devices"
        )


def mean_over_devices(tree: Any, axis_name: str | None) -> Any:
    """The mean of `tree` over a pmapped axis; None returns `tree` unchanged.

    All-reduces small leaves as one flat buffer; concatenating large ones costs more than it saves.
    """
    if axis_name is None:
        return tree
    leaves, treedef = jax.tree.flatten(tree)
    small = {i: leaf for i, leaf in enumerate(leaves) if leaf.size <= LARGEST_PACKED}
    large = {i: leaf for i, leaf in enumerate(leaves) if i not in small}
    flat, unflatten = ravel_pytree(small)
    flat, large = jax.lax.pmean((flat, large), axis_name)
    means = unflatten(flat) | large
    return treedef.unflatten(means[i] for i in range(len(leaves)))


class Feed(NamedTuple):
    """Access of a pmapped program to the examples of one split.

    Attributes:
        resident: Arrays that every device holds; empty if examples are streamed from the host.
        fetch: index [batch] -> the mapped arguments of one call, a tuple of [devices, share, ...].
        take: (resident, arguments of one device) -> the examples, a tuple of [share, ...]; called
            inside the compiled program.
    """

    resident: tuple[Array, ...]
    fetch: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    take: Callable[[tuple, tuple], tuple]


def feed(arrays: Sequence[Any], devices: Sequence[jax.Device], resident: bool) -> Feed:
    """Feeds examples by index, from device memory or from the host.

    Args:
        arrays: Arrays with one entry per example, such as (images, labels).
        devices: Devices that share each batch.
        resident: If True, every device holds all examples and a call sends indices only;
            otherwise a call sends the examples.
    """
    num_devices = len(devices)
    if resident:
        return Feed(
            resident=replicate(tuple(arrays), devices),
            fetch=lambda index: (split(index, num_devices),),
            take=lambda held, arguments: tuple(array[arguments[0]] for array in held),
        )
    return Feed(
        resident=(),
        fetch=lambda index: tuple(split(array[index], num_devices) for array in arrays),
        take=lambda held, arguments: tuple(arguments),
    )
