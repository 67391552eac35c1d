"""Distances of samples from real examples, and the statistics of a data set.

quality.json holds one entry for each file of samples, kind of features and reference.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_jax.cli import build, lock, workdir
from score_jax.cli.cache import cache_folder
from score_jax.cli.feature_space import (
    Space,
    as_rows,
    choose_space,
    described,
    quantized,
    rescaled,
)
from score_jax.data.dataset import Dataset
from score_jax.data.files import ImageTransform
from score_jax.data.image_sets import read_images
from score_jax.evaluation.metrics import Estimate, Moments, Outputs, moments, sample_metrics
from score_jax.progress import announce
from score_jax.reading import check_memory, load_arrays

SPLITS = ("held_out", "train")
HIGHER = ("precision", "recall", "density", "coverage", "inception_score", "is_")
FEWEST = 16
"""Smallest number of samples or of reference examples."""


class Reference(NamedTuple):
    """The real examples that samples are compared with.

    Attributes:
        name: "held_out", "train", or a path.
        number: Number of examples.
        outputs: Their features; None if only their moments are known.
        moments: Mean and covariance of all their features.
    """

    name: str
    number: int
    outputs: Outputs | None
    moments: Moments


@dataclasses.dataclass(frozen=True)
class Judge:
    """Everything that samples are judged with: a feature function, a reference, its floor.

    Attributes:
        space: The feature function.
        reference: The real examples.
        floor: Metrics of other real examples, which a perfect model would reach; empty if there
            are none.
        floor_number: Number of those examples.
        num_values: As in `data.dataset.Dataset`.
        dequantized: True if the network was trained on dequantised pixels.
        devices: Devices that share the work.
    """

    space: Space
    reference: Reference
    floor: Mapping[str, Estimate]
    floor_number: int
    num_values: int | None
    dequantized: bool
    devices: Sequence[jax.Device]

    def metrics(self, x: Any, progress: bool = True) -> dict[str, Estimate]:
        """Metrics of samples [number, *shape] in [0, 1], named by `metric_name`."""
        x = quantized(np.asarray(x), self.num_values, self.dequantized)
        outputs = self.space.outputs(x, self.devices, progress)
        found = sample_metrics(outputs, self.reference.outputs, self.reference.moments)
        return as_rows(found, self.space)


def labelled_data(config: Mapping[str, Any]) -> Dataset:
    """The data set of a config with its labels, also for an unconditional network."""
    return build.open_source({**config["data"], "labels": True})


def judge(
    data: Dataset | None,
    config: Mapping[str, Any],
    devices: Sequence[jax.Device],
    *,
    number: int,
    shape: tuple[int, ...],
    features: str | None = None,
    weights: str | None = None,
    reference: str | None = None,
    progress: bool = True,
) -> Judge:
    """Prepares the judgement of `number` samples.

    Args:
        data: The data set with its labels, as from `labelled_data`; None if neither the features
            nor the reference need it.
        config: The config.
        devices: Devices that share the work.
        number: Number of samples, for which the floor is computed.
        shape: Shape of one sample.
        features: Features to compare in; None for the classifier's.
        weights: File of Inception's weights.
        reference: "held_out", "train" or a path; None takes the held-out examples, and the
            training examples for Inception, as in publications.
        progress: If True, show progress.

    Raises:
        ValueError: If the features or the reference do not fit the data.
        OSError: If a file is missing.
    """
    space = choose_space(data, features, weights, devices, cache_folder(), shape)
    name = reference or default_reference(features)
    splits = {}
    if name in SPLITS:
        splits = {"held_out": rescaled(data, data.held_out), "train": rescaled(data, data.train)}
        found = reference_of(name, splits[name], space, devices, progress)
    else:
        found = _read_reference(name, shape, space, devices, progress)

    # The floor is the same comparison with real examples that the reference does not hold.
    floor, floor_number = {}, 0
    if name in SPLITS and found.outputs is not None:
        others = splits["train" if name == "held_out" else "held_out"]
        floor_number = min(number, len(others))
        index = np.random.default_rng(0).permutation(len(others))[:floor_number]
        if floor_number >= FEWEST:
            outputs = space.outputs(others[index], devices, progress)
            floor = as_rows(sample_metrics(outputs, found.outputs, found.moments), space)
    return Judge(
        space=space,
        reference=found,
        floor=floor,
        floor_number=floor_number,
        num_values=data.num_values if data else None,
        dequantized=config["data"]["dequantize"],
        devices=devices,
    )


def reference_of(
    name: str, x: Any, space: Space, devices: Sequence[jax.Device], progress: bool
) -> Reference:
    """A reference from examples."""
    if len(x) < FEWEST:
        raise ValueError(
            f"--reference={name} has {len(x)} examples, but at least {FEWEST} are needed"
        )
    outputs = space.outputs(x, devices, progress)
    return Reference(name, len(x), outputs, moments([outputs.features]))


def default_reference(features: str | None) -> str:
    """The reference of a kind of features: for Inception that of publications."""
    return "train" if features == "inception" else "held_out"


def _read_reference(
    path: str, shape: tuple[int, ...], space: Space, devices: Sequence[jax.Device], progress: bool
) -> Reference:
    """A reference from a file of statistics, or from images."""
    file = Path(path)
    if file.suffix == ".npz" and file.is_file():
        try:
            arrays = load_arrays(file, lambda names: names if {"mu", "sigma"} <= {*names} else [])
        except (OSError, ValueError) as error:
            raise ValueError(f"--reference={path} cannot be read ({error})") from error
        if arrays:
            return _from_statistics(path, arrays, space)
    x = read_samples(path, "reference", None if space.name == "inception" else shape)
    return reference_of(path, x, space, devices, progress)


def _from_statistics(path: str, arrays: Mapping[str, np.ndarray], space: Space) -> Reference:
    """A reference from the arrays of a file of statistics."""
    mean, covariance = np.float64(arrays["mu"]), np.float64(arrays["sigma"])
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(
            f"--reference={path} has mu {list(mean.shape)} and sigma {list(covariance.shape)}, "
            "but must have [features] and [features, features]"
        )
    fingerprint = str(arrays.get("fingerprint", space.fingerprint))
    if fingerprint != space.fingerprint:
        raise ValueError(
            f"--reference={path} was computed with features of {fingerprint}, not "
            f"{space.fingerprint}: make it anew with --mode=stats"
        )
    count = int(arrays.get("count", 0))
    features = arrays.get("features")
    outputs = None if features is None else Outputs(features)
    return Reference(path, count, outputs, Moments(count, mean, covariance))


def read_samples(
    path: str, flag: str, shape: tuple[int, ...] | None, pixels: bool = True
) -> np.ndarray:
    """Samples of a file or folder as floats; images in [0, 1].

    Args:
        path: As in `data.image_sets.read_images`.
        flag: Name of the flag that gives the path.
        shape: Shape that they must have; None for any.
        pixels: If True, floating-point images must lie in [0, 1].

    Raises:
        ValueError: If they have another shape, or images are not in [0, 1].
        OSError: If the file is missing.
    """
    channels = shape[-1] if shape and len(shape) == 3 else None
    try:
        x = read_images(path, ImageTransform(channels=channels if channels in (1, 3) else None))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--{flag}={path} is not there: {error}") from error
    grey = len(x.shape) == 3 and (shape is None or (len(shape) == 3 and shape[-1] == 1))
    if isinstance(x, np.ndarray) and grey:
        x = x[..., None]
    if shape is not None and x.shape[1:] != shape:
        raise ValueError(
            f"--{flag}={path} holds examples {list(x.shape[1:])}, but those to compare with are "
            f"{list(shape)}"
        )
    if len(x) < FEWEST:
        raise ValueError(f"--{flag}={path} holds {len(x)} examples, but needs at least {FEWEST}")
    if getattr(x, "note", None):
        announce(x.note)
    check_memory(8 * math.prod(x.shape), f"--{flag}={path} needs")
    x = np.asarray(x[:])
    if x.dtype == np.uint8:
        return x.astype(np.float32) / 255
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError(f"--{flag}={path} holds values that are not finite")
    if pixels and x.ndim == 4 and not -1e-3 <= x.min() <= x.max() <= 1 + 1e-3:
        raise ValueError(
            f"--{flag}={path} holds values from {x.min():.3g} to {x.max():.3g}, but images must "
            "be uint8, or floating-point in [0, 1]"
        )
    return x


def as_entry(
    prepared: Judge,
    found: Mapping[str, Estimate],
    samples: str,
    number: int,
    step: int | None,
    seconds: float,
) -> dict[str, Any]:
    """An entry of quality.json."""
    rows = []
    for name, (value, error) in found.items():
        floor = prepared.floor.get(name, Estimate(None, None))
        better = "higher" if name.startswith(HIGHER) else "lower"
        row = {"name": name, "value": value, "error": error}
        row |= {"floor": floor.value, "floor_error": floor.error, "better": better}
        rows.append(row)
    return {
        "samples": samples,
        "number": number,
        "step": step,
        "features": prepared.space.name,
        "fingerprint": prepared.space.fingerprint,
        "classifier_accuracy": prepared.space.accuracy,
        "reference": prepared.reference.name,
        "reference_number": prepared.reference.number,
        "floor_number": prepared.floor_number,
        "seconds": round(seconds, 3),
        "metrics": rows,
    }


def saved_entries(folder: Path) -> list[dict[str, Any]]:
    """The entries of quality.json; empty if there is no such file.

    Raises:
        ValueError: If the file is damaged.
    """
    content = workdir.read_json(folder / "quality.json") or {}
    entries = content.get("entries", [])
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise ValueError(
            f"{folder / 'quality.json'} does not hold a list of entries: move it away, or restore "
            "it from a copy"
        )
    return entries


def add_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    """Adds an entry to quality.json; it replaces the one of the same comparison."""
    same = ("samples", "features", "fingerprint", "reference")
    with lock.changing(folder / "quality.json"):
        kept = [
            other
            for other in saved_entries(folder)
            if any(other.get(key) != entry[key] for key in same)
        ]
        workdir.write_json(folder / "quality.json", {"entries": [entry, *kept]})


def print_entry(prepared: Judge, entry: Mapping[str, Any]) -> None:
    """Prints an entry as a table."""
    names = {"held_out": "held-out examples", "train": "training examples"}
    reference = names.get(entry["reference"], f"examples of {entry['reference']}")
    count = f"{entry['reference_number']} " if entry["reference_number"] else ""
    announce(f"{entry['number']} samples against {count}{reference}, {described(prepared.space)}:")
    floor = {"held_out": "training", "train": "held-out"}.get(entry["reference"])
    if floor:
        few = entry["floor_number"] < entry["number"]
        hint = ", fewer than the samples: compare the metrics named unlimited" if few else ""
        announce(f"floor: {entry['floor_number']} {floor} examples instead of samples{hint}")
    width = max(len(row["name"]) for row in entry["metrics"])
    announce(f"{'metric':{width}}     value  standard error     floor  better")
    for row in entry["metrics"]:
        value, error, least = (_shown(row[key]) for key in ("value", "error", "floor"))
        announce(f"{row['name']:{width}} {value:>9} {error:>15} {least:>9}  {row['better']}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
