"""The least memory that a config needs, from its sizes alone, before anything is built.

Lower bounds only: what is refused here cannot run, and what passes may still be too large.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from score_jax.devices import described
from score_jax.reading import gigabytes, memory_bytes

STATES = 5
"""Copies of the parameters in training: themselves, their average, two moments, the gradient."""
SQUARE = {"ncsn": 1000, "ncsnv2": 1000, "unet": 26}
"""Network -> a factor below its number of parameters divided by width**2; for the U-Net per block,
and times the multiplier**2 of the block's resolution."""


class Need(NamedTuple):
    """Bytes of one array, or of several, and the settings that they come from.

    Attributes:
        num_bytes: Bytes over all devices.
        what: What they hold, in words.
        names: The settings, the one to lower first.
    """

    num_bytes: int
    what: str
    names: tuple[str, ...]


def check_memory(
    config: Mapping[str, Any],
    shape: Sequence[int],
    devices: Sequence[jax.Device],
    batches: Sequence[str],
    trains: bool,
) -> None:
    """Checks that no array of a config is larger than the memory of the devices.

    Args:
        config: The config.
        shape: Shape of one example.
        devices: Devices that share the work.
        batches: Sections whose batch the mode runs, "training" and "sampling".
        trains: If True, the parameters are trained.

    Raises:
        ValueError: If one is; names the setting to lower.
    """
    limit, where = device_memory(devices), described(devices)
    for need in _needs(config, shape, len(devices), batches, trains):
        if need.num_bytes > limit:
            first, *others = need.names
            beside = "".join(f", config.{name}={_value(config, name)}" for name in others)
            raise ValueError(
                f"config.{first}={_value(config, first)}{beside} needs at least "
                f"{gigabytes(need.num_bytes)} for {need.what} of examples {list(shape)}, but "
                f"{where} has {gigabytes(limit)}: lower config.{first}"
            )


def check_state(state_bytes: int, devices: Sequence[jax.Device], width: str) -> None:
    """Checks that the state of training fits into memory.

    Args:
        state_bytes: Bytes of one copy.
        devices: Devices that each hold one.
        width: The setting that the size of the network depends on, such as "model.width".

    Raises:
        ValueError: If it does not fit.
    """
    limit = device_memory(devices)
    if state_bytes * len(devices) > limit:
        raise ValueError(
            f"the state of training takes {gigabytes(state_bytes)} per device, but "
            f"{described(devices)} has {gigabytes(limit)}: lower config.{width}"
        )


def device_memory(devices: Sequence[jax.Device]) -> int:
    """Bytes of memory of all devices together; for CPUs, those of the machines.

    Each process knows its own devices, and expects as much of the others.
    """
    own = [device for device in devices if device.process_index == jax.process_index()]
    num_processes = len(devices) // len(own)
    if devices[0].platform == "cpu":
        return num_processes * host_memory()
    stats = [device.memory_stats() or {} for device in own]
    known = [each["bytes_limit"] for each in stats if "bytes_limit" in each]
    return num_processes * sum(known) if len(known) == len(own) else 2**63


def host_memory() -> int:
    """Bytes of memory of this machine; a very large number if the system does not say."""
    return memory_bytes() or 2**63


def _needs(config, shape, num_devices, batches, trains) -> Iterator[Need]:
    model, loss, training = config["model"], config["loss"], config["training"]
    size, (per_example, width) = math.prod(shape), _features(model, shape)
    parameters = 4 * num_devices * _parameters(model, size)
    if parameters:
        copies = STATES if trains else 1
        yield Need(copies * parameters, "the parameters", (width, "model.name"))
    for section in batches:
        batch = config[section]["batch_size"]
        name = f"{section}.batch_size"
        yield Need(4 * batch * size, "a batch", (name, *_size_setting(config)))
        if per_example:
            yield Need(batch * per_example, "one layer's features", (name, width))
    if "training" in batches:
        batch = training["batch_size"]
        calls = training["steps_per_call"]
        names = ("training.steps_per_call", "training.batch_size")
        yield Need(4 * calls * batch, "the indices of the steps of one call", names)
        if loss["name"] in ("ssm", "ssm_clean"):
            number = loss["num_projections"]
            names = ("loss.num_projections", "training.batch_size")
            yield Need(4 * number * batch * size, "the projections", names)
        if loss["num_references"]:
            number, names = loss["num_references"], ("loss.num_references",)
            yield Need(4 * number * num_devices * size, "the references", names)
    if "sampling" in batches:
        sampling = config["sampling"]
        frames, batch = sampling["num_frames"], sampling["batch_size"]
        names = ("sampling.num_frames", "sampling.batch_size")
        yield Need(4 * frames * min(batch, sampling["num_samples"]) * size, "the frames", names)


def _features(model: Mapping[str, Any], shape: Sequence[int]) -> tuple[int, str]:
    """Bytes per example of one layer of a network of the package, and the setting of its width."""
    if model["name"] == "mlp" and model.get("hidden"):
        return 4 * max(model["hidden"]), "model.hidden"
    if model["name"] in SQUARE and "width" in model and len(shape) == 3:
        item = 2 if model.get("dtype") == "bfloat16" else 4
        positions = shape[0] * shape[1] // model.get("patch_size", 1) ** 2
        return item * positions * model["width"], "model.width"
    return 0, "model.name"


def _parameters(model: Mapping[str, Any], size: int) -> int:
    """A number that the network's parameters exceed; 0 for a user's own."""
    if model["name"] == "mlp" and model.get("hidden"):
        widths = [size, *model["hidden"], size]
        return sum(a * b for a, b in itertools.pairwise(widths))
    if model["name"] not in SQUARE:
        return 0
    number = SQUARE[model["name"]]
    if model["name"] == "unet":
        resolutions = zip(model["multipliers"], model["num_blocks"], strict=False)
        number *= sum(blocks * multiplier**2 for multiplier, blocks in resolutions)
    return number * model.get("width", 0) ** 2


def _size_setting(config: Mapping[str, Any]) -> tuple[str, ...]:
    return ("data.size",) if config["data"]["size"] else ()


def _value(config: Mapping[str, Any], name: str) -> Any:
    section, _, last = name.partition(".")
    value = config[section][last]
    return tuple(value) if isinstance(value, list) else value
