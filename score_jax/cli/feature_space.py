"""The features in which samples are compared: a classifier's, Inception's, or the user's own."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_jax.cli import workdir
from score_jax.cli.names import resolve
from score_jax.cli.scaled import ScaledExamples
from score_jax.cli.table import is_own
from score_jax.data.dataset import Dataset, in_memory, spread_index
from score_jax.devices import maximum_over_processes
from score_jax.evaluation.classifier import (
    Trained,
    accuracy,
    classifier_features,
    initial_classifier,
    train_classifier,
)
from score_jax.evaluation.features import extract, flat_pixels
from score_jax.evaluation.metrics import Outputs
from score_jax.progress import announce
from score_jax.reading import load_arrays

FEATURES = {
    "classifier": "score_jax.evaluation.classifier:classifier_features",
    "inception": "score_jax.models.inception:inception_features",
    "pixels": "score_jax.evaluation.features:flat_pixels",
}
FEWEST_STEPS, MOST_STEPS, EPOCHS = 200, 1000, 10
"""Bounds of the steps of training the classifier, and its passes over the data between them."""
LARGEST, LARGEST_BYTES = 50_000, 1_000_000_000
"""Largest number of images to train the classifier on, and of their bytes as floats."""
BATCH, SMALL_BATCH = 256, 32
"""Examples at once; of Inception."""


class Space(NamedTuple):
    """A feature function.

    Attributes:
        name: "classifier", "inception", "pixels", or the dotted path of the user's own.
        function: images -> features, or (features, logits).
        fingerprint: Text that differs for functions whose features cannot be compared; the name
            alone for the user's own.
        accuracy: Share of held-out images that the classifier gets right; None for others.
        compiled: False for a function that is not made of JAX operations.
        batch_size: Examples at once.
    """

    name: str
    function: Callable
    fingerprint: str
    accuracy: float | None = None
    compiled: bool = True
    batch_size: int = BATCH

    def outputs(self, x: Any, devices: Sequence[jax.Device], progress: bool = True) -> Outputs:
        """Features of all examples."""
        return extract(
            self.function,
            x,
            batch_size=-(-self.batch_size // len(devices)) * len(devices),
            devices=devices,
            compiled=self.compiled,
            progress=progress and len(x) > 4 * self.batch_size,
        )


SHORT = {"frechet_distance": "fd", "unlimited_frechet_distance": "fd", "kernel_distance": "kd"}


def metric_name(metric: str, features: str) -> str:
    """The name of a metric: that of publications for Inception's features alone.

    >>> metric_name("frechet_distance", "classifier")
    'fd_classifier'
    """
    unlimited = "_unlimited" if metric.startswith("unlimited") else ""
    if features == "inception":
        published = {"fd": "fid", "kd": "kid"}
        return published[SHORT[metric]] + unlimited if metric in SHORT else metric
    own = features if features in FEATURES else "features"
    if metric == "inception_score":
        return f"is_{own}"
    return f"{SHORT[metric]}_{own}{unlimited}" if metric in SHORT else metric


def rescaled(data: Dataset, stored: Any) -> ScaledExamples:
    """Stored examples as feature functions take them; pixels v as v / (values - 1)."""
    return ScaledExamples(stored, data.num_values, dequantized=False)


def quantized(x: np.ndarray, num_values: int | None, dequantized: bool) -> np.ndarray:
    """Samples in [0, 1] as the pixels that the data could hold, v / (num_values - 1).

    Args:
        x: Samples.
        num_values: Number of values that a pixel can take; None returns the samples unchanged.
        dequantized: If True, value v stands for the interval [v, v + 1) / num_values, as for a
            network that was trained on dequantised pixels; else for v / (num_values - 1).
    """
    if num_values is None:
        return np.asarray(x, np.float32)
    v = np.floor(x * num_values) if dequantized else np.round(x * (num_values - 1))
    return np.clip(v, 0, num_values - 1).astype(np.float32) / np.float32(num_values - 1)


def choose_space(
    data: Dataset | None,
    name: str | None,
    weights: str | None,
    devices: Sequence[jax.Device],
    cache: Path | None,
    shape: tuple[int, ...],
) -> Space:
    """The feature function of a name; trains the classifier if it is not in the cache.

    Args:
        data: The data set, with its labels; None if it is not needed.
        name: Name as in `FEATURES`, or a dotted path; None takes the classifier.
        weights: File of Inception's weights.
        devices: Devices that train.
        cache: Folder in which classifiers are kept; None keeps none.
        shape: Shape of one sample.

    Raises:
        ValueError: If the features cannot be computed for these data.
        OSError: If a file cannot be read.
    """
    if name == "inception":
        from score_jax.models.inception import inception_features
        from score_jax.models.inception_weights import read_inception

        function = inception_features(read_inception(weights))
        digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16]
        return Space("inception", function, f"inception {digest}", batch_size=SMALL_BATCH)
    if name == "pixels":
        return Space("pixels", flat_pixels, "pixels")
    if name not in (None, "classifier"):
        try:
            function = resolve(FEATURES, name, "features")
        except ValueError as error:
            raise ValueError(str(error).replace("config.features", "--features")) from error
        return Space(name, function, name, compiled=_is_traceable(function, shape))
    trained, fingerprint, found = _classifier(data, devices, cache)
    return Space("classifier", classifier_features(trained), fingerprint, found)


def needs_data(name: str | None) -> bool:
    """True if a feature function is trained on the data set."""
    return name in (None, "classifier")


def check_space(
    data: Dataset | None, name: str | None, weights: str | None, shape: tuple[int, ...]
) -> None:
    """Raises a ValueError if features of examples of this shape cannot be computed."""
    if name is not None and name not in FEATURES and not is_own(name):
        raise ValueError(
            f"--features={name} must be {', '.join(FEATURES)}, or your own as package.module:name"
        )
    is_image = len(shape) == 3
    if weights is not None and name != "inception":
        raise ValueError(f"--weights={weights} is used with --features=inception alone")
    if name == "inception":
        if not weights or not is_image:
            need = "images" if weights else "its weights: --weights=FILE (.pth or .npz)"
            raise ValueError(f"--features=inception needs {need}")
        return
    if needs_data(name) and ((data.num_classes or 0) < 2 or not is_image):
        raise ValueError(
            "--features=classifier needs images of two classes or more: choose "
            "--features=pixels, --features=inception, or your own as package.module:name"
        )


def _is_traceable(function: Callable, shape: tuple[int, ...]) -> bool:
    """True if a function of examples of this shape is made of JAX operations."""
    try:
        jax.eval_shape(function, np.zeros((2, *shape), np.float32))
    except Exception:  # A user's function may raise anything; calling it reports it.
        return False
    return True


def _classifier(
    data: Dataset, devices: Sequence[jax.Device], cache: Path | None
) -> tuple[Trained, str, float]:
    """The classifier of a data set, its fingerprint, and its accuracy on held-out images."""
    fitting = max(1000, LARGEST_BYTES // (4 * int(np.prod(data.train.shape[1:]))))
    number = min(len(data.train), LARGEST, fitting)
    index = spread_index(len(data.train), number)
    stored = in_memory(data.train) if len(index) == len(data.train) else data.train[index]
    label = np.asarray(data.train_labels)[index]
    steps = int(np.clip(EPOCHS * len(index) // 128, FEWEST_STEPS, MOST_STEPS))

    # Everything that decides its parameters, apart from the machine.
    key = hashlib.sha256(np.ascontiguousarray(stored))
    key.update(label.astype(np.int32).tobytes())
    facts = [1, list(stored.shape), str(stored.dtype), data.num_values, data.num_classes, steps]
    key.update(json.dumps([*facts, len(devices), devices[0].platform]).encode())
    fingerprint = key.hexdigest()[:16]
    file = None if cache is None else cache / f"classifier_{fingerprint}.npz"
    kept = None if file is None else _read_classifier(file, stored.shape[1:], data.num_classes)
    # All of several processes must train it together if one of them has to.
    is_missing = maximum_over_processes(int(kept is None))
    if kept is not None and not is_missing:
        return kept[0], f"classifier {fingerprint}", kept[1]

    size = -(-128 // len(devices)) * len(devices)
    x = np.asarray(rescaled(data, stored)[:])
    trained = train_classifier(
        x, label, data.num_classes, num_steps=steps, batch_size=size, devices=devices
    )
    held_out = rescaled(data, data.held_out)
    found = accuracy(
        trained,
        held_out,
        np.asarray(data.held_out_labels),
        batch_size=2 * size,
        devices=devices,
        progress=False,
    )
    if file is not None:
        _keep_classifier(file, trained, found)
    return trained, f"classifier {fingerprint}", found


def _keep_classifier(file: Path, trained: Trained, found: float) -> None:
    """Writes a classifier to the cache; a cache that cannot be written is left alone."""
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(trained.params))}
    facts = {"mean": trained.mean, "std": trained.std, "scale": trained.scale, "accuracy": found}
    try:
        workdir.write_npz(file, {**leaves, "facts": json.dumps(facts)}, compressed=False)
    except OSError as error:
        announce(f"the classifier is not kept: {file} cannot be written ({error.strerror})")


def _read_classifier(
    file: Path, shape: tuple[int, ...], num_classes: int
) -> tuple[Trained, float] | None:
    """A classifier of the cache and its accuracy; None if there is none, or it is damaged."""
    if not file.is_file():
        return None
    try:
        content = load_arrays(file)
        facts = json.loads(str(content["facts"]))
        leaves = [content[str(i)] for i in range(len(content) - 1)]
    except (OSError, KeyError, ValueError, RecursionError):
        return None
    like = jax.eval_shape(functools.partial(initial_classifier, shape, num_classes))
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(like)]:
        return None
    params = jax.tree.unflatten(jax.tree.structure(like), leaves)
    found = facts.pop("accuracy")
    return Trained(params, num_classes, **facts), found


def described(space: Space) -> str:
    """The features in words."""
    if space.accuracy is not None:
        return f"features of a classifier (accuracy {space.accuracy:.3f} on held-out images)"
    return {"inception": "Inception features", "pixels": "pixels as features"}.get(
        space.name, f"features {space.name}"
    )


def as_rows(metrics: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Metrics under the names by which they are reported."""
    return {metric_name(name, space.name): estimate for name, estimate in metrics.items()}
