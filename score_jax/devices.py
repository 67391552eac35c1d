"""Data parallelism with `jax.pmap`: splitting batches, replicating trees, averaging gradients.

Mapped arrays are [devices, share, ...]; unmapped ones are the same on every device. The devices
can belong to several processes, connected by `jax.distributed`. Each process then holds the rows
of its own devices, all run the same calls in the same order, and the results are the same in all.
"""

import functools
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P

from score_jax.typing import Array

AXIS = "devices"
LARGEST_PACKED = 2**15
"""Number of elements up to which a leaf joins the flat all-reduce buffer."""
TPU_OPTIONS = {"xla_tpu_enable_deduplicated_calls": "true"}
"""Options of the TPU compiler: equal operations share their code, with the same cycles."""


def num_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def compile_pmapped(
    function: Callable,
    devices: Sequence[jax.Device],
    arguments: tuple,
    in_axes: Any,
    out_axes: Any,
    donate: tuple[int, ...] = (),
) -> Callable:
    """Compiles `pmap` of a function, for arguments of these shapes.

    Args:
        function: The function.
        devices: As in `pmap`.
        arguments: Its arguments; of several processes, each gives the rows of its own devices.
        in_axes: As in `pmap`, for the function's own arguments.
        out_axes: As in `pmap`.
        donate: As in `pmap`.

    Returns:
        The compiled function; its method `as_text` gives the compiled program.
    """
    mapped: Any = pmap(function, devices, in_axes, out_axes, donate)
    options = TPU_OPTIONS if devices[0].platform == "tpu" else None
    compiled = mapped.lower(*arguments).compile(options)
    if jax.process_count() == 1:
        return compiled

    # A compiled program of several processes takes and returns global arrays.
    mesh = jax.tree.leaves(compiled.input_shardings)[0].mesh
    specs = lambda axes: jax.tree.map(  # noqa: E731
        lambda axis: P() if axis is None else P(AXIS), axes, is_leaf=lambda axis: axis is None
    )

    def call(*arguments):
        arguments = multihost_utils.host_local_array_to_global_array(
            arguments, mesh, specs(in_axes)
        )
        out = compiled(*arguments)
        return multihost_utils.global_array_to_host_local_array(out, mesh, specs(out_axes))

    program: Any = call
    program.as_text = compiled.as_text
    return program


def split(array: np.ndarray, devices: Sequence[jax.Device]) -> np.ndarray:
    """Reshapes [batch, ...] to [devices, share, ...], with the rows of this process's devices."""
    array = array.reshape(len(devices), len(array) // len(devices), *array.shape[1:])
    own = _own_positions(devices)
    return array if len(own) == len(devices) else array[own]


def merge(array: Array | np.ndarray) -> np.ndarray:
    """Fetches [devices, share, ...], of all processes, as [batch, ...]."""
    array = _fetch(array)
    return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])


def merge_second(array: Array | np.ndarray) -> np.ndarray:
    """Fetches [devices, kept, share, ...], of all processes, as [batch, kept, ...]."""
    return merge(np.moveaxis(_fetch(array), 1, 2))


def _own_positions(devices: Sequence[jax.Device]) -> list[int]:
    """Positions of this process's devices."""
    process = jax.process_index()
    return [i for i, device in enumerate(devices) if device.process_index == process]


def _fetch(array: Array | np.ndarray) -> np.ndarray:
    """A mapped array as a host array, with the rows of all processes."""
    if jax.process_count() == 1:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(np.asarray(array), tiled=True))


def is_first_process() -> bool:
    """True in the one process, among those that run together, that writes files."""
    return jax.process_index() == 0


def maximum_over_processes(value: int) -> int:
    """The largest of the values of all processes, which must all call this."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def from_first_process(array: np.ndarray) -> np.ndarray:
    """The array of the first process, in all; they must all call this with equal shapes."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def check_agreement(content: Any, name: str) -> None:
    """Checks that all processes have the same JSON value; all of them must call this.

    Args:
        content: The value.
        name: Name of the value in the message.

    Raises:
        ValueError: If they differ.
    """
    if jax.process_count() == 1:
        return
    checksum = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    checksums = multihost_utils.process_allgather(np.uint32(checksum))
    if (checksums != checksums[0]).any():
        raise ValueError(
            f"{name} of process {int(np.argmax(checksums != checksums[0]))} differ from those of "
            "process 0: all processes need the same command and the same files"
        )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Replicates `tree`, in the same layout as a pmap output with out_axes=None.

    With several processes, `tree` must be the same in all.
    """
    return _replicator(tuple(devices))(tree, np.arange(len(_own_positions(devices))))


@functools.lru_cache(maxsize=8)
def _replicator(devices: tuple[jax.Device, ...]) -> Callable:
    return pmap(lambda tree, _: tree, devices, (None, 0), None)


def first_replica(tree: Any) -> Any:
    """The copy that the first device holds, as arrays of that device alone."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def described(devices: Sequence[jax.Device]) -> str:
    """The number of devices and their kind, such as "8 x TPU v4"."""
    num_processes = len({device.process_index for device in devices})
    processes = f" in {num_processes} processes" if num_processes > 1 else ""
    return f"{len(devices)} x {devices[0].device_kind}{processes}"


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
    return jax.tree.unflatten(treedef, [means[i] for i in range(len(leaves))])


class Feed(NamedTuple):
    """Access of a pmapped program to the examples of one split.

    Attributes:
        resident: Arrays that every device holds; empty if examples are streamed from the host.
        fetch: index [batch] -> the mapped arguments of one call, a tuple of [devices, share, ...];
            of the examples, it reads those of this process only.
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
    if resident:
        return Feed(
            resident=replicate(tuple(arrays), devices),
            fetch=lambda index: (split(index, devices),),
            take=lambda held, arguments: tuple(array[arguments[0]] for array in held),
        )

    def fetch(index):
        own = split(index, devices)
        return tuple(array[own] for array in arrays)

    return Feed(resident=(), fetch=fetch, take=lambda held, arguments: tuple(arguments))
