"""Trains a classifier on labelled images, as a feature function where Inception is not at hand.

Distances in its features compare models of one data set; they are no published FID.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax.data.dataset import batch_index, spread_index
from score_jax.devices import (
    AXIS,
    check_divides,
    first_replica,
    mean_over_devices,
    pmap,
    replicate,
)
from score_jax.devices import split as split_batch
from score_jax.evaluation.features import extract
from score_jax.models.classifier import Classifier
from score_jax.progress import Progress, announce
from score_jax.typing import Params

LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-3
STEPS_PER_CALL = 10


class Trained(NamedTuple):
    """A trained classifier.

    Attributes:
        params: Its parameters.
        num_classes: Number of classes.
        mean: Mean of the training images.
        std: Their standard deviation.
        scale: Factor that gives the features a mean square of 1 on the training images.
    """

    params: Params
    num_classes: int
    mean: float
    std: float
    scale: float = 1.0


def train_classifier(
    x: np.ndarray,
    label: np.ndarray,
    num_classes: int,
    *,
    num_steps: int = 300,
    batch_size: int = 128,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> Trained:
    """Trains the classifier of `models.classifier` with AdamW; deterministic on equal devices.

    Args:
        x: Images [examples, height, width, channels]: float, or uint8 that stand for x / 255.
        label: Classes, int [examples].
        num_classes: Number of classes.
        num_steps: Number of steps.
        batch_size: Examples per step, a multiple of the number of devices.
        seed: Seed of the parameters and of the batches.
        devices: Devices that share a batch; None takes all of them.
        progress: If True, show progress and announce the compilation.

    Raises:
        ValueError: If the images are no images, or the devices do not divide batch_size.

    Example:
        >>> x = np.zeros((64, 8, 8, 1), np.uint8)
        >>> label = np.arange(64) % 2
        >>> trained = sj.train_classifier(x, label, 2, num_steps=1, batch_size=16, progress=False)
        >>> features = sj.classifier_features(trained)
    """
    devices = tuple(devices or jax.devices())
    check_divides(batch_size, len(devices))
    if x.ndim != 4 or len(x) != len(label):
        raise ValueError(
            f"x is {list(x.shape)} with {len(label)} labels, but must be [examples, height, "
            "width, channels] with one label each"
        )
    part = as_floats(x[spread_index(len(x), min(len(x), 5000))])
    trained = Trained(None, num_classes, float(np.mean(part)), float(np.std(part)) or 1.0)
    network = _network(trained)
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, num_steps)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

    def loss(params, images, labels):
        logits = network.apply(params, as_floats(images))[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def steps(state, images, labels):
        # Several steps in one program; `images` are [steps, share, ...].
        def one_step(state, batch):
            params, opt_state = state
            value, grads = jax.value_and_grad(loss)(params, *batch)
            value, grads = mean_over_devices((value, grads), AXIS)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), value

        return jax.lax.scan(one_step, state, (images, labels))

    params = jax.jit(initial_classifier, static_argnums=(0, 1, 2))(x.shape[1:], num_classes, seed)
    state = replicate((params, optimizer.init(params)), devices)
    program = pmap(steps, devices, (None, 0, 0), None, donate=(0,))
    announce(f"training a classifier of {num_classes} classes, {num_steps} steps ...", progress)
    with Progress(num_steps, "classifier", "step", shown=progress) as bar:
        for first in range(0, num_steps, STEPS_PER_CALL):
            chosen = range(first, min(first + STEPS_PER_CALL, num_steps))
            steps_index = [
                split_batch(batch_index(seed, step, len(x), batch_size), devices)
                for step in chosen
            ]
            index = np.stack(steps_index, axis=1)
            state, losses = program(state, x[index], np.asarray(label, np.int32)[index])
            # Collectives that pile up on the CPU deadlock in XLA.
            losses = np.asarray(losses)
            bar.update(chosen[-1] + 1, loss=float(losses[-1]))
    trained = trained._replace(params=jax.tree.map(np.asarray, first_replica(state)[0]))
    features = extract(classifier_features(trained), part, devices=devices, progress=False)
    rms = float(np.sqrt(np.mean(np.square(features.features, dtype=np.float64))))
    return trained._replace(scale=1 / (rms or 1.0))


def initial_classifier(shape: Sequence[int], num_classes: int, seed: int = 0) -> Params:
    """Initial parameters of the classifier of images [height, width, channels]."""
    x = jnp.zeros((1, *shape))
    return Classifier(num_classes).init(jax.random.key(seed), x)


def classifier_features(trained: Trained) -> Callable:
    """The feature function of a classifier: images -> (features [batch, 128], logits).

    Images are float, or uint8 that stand for x / 255, [batch, height, width, channels].

    Example:
        >>> x = np.zeros((64, 8, 8, 1), np.uint8)
        >>> trained = sj.train_classifier(x, np.arange(64) % 2, 2, num_steps=1, progress=False)
        >>> features, logits = sj.classifier_features(trained)(x[:4])
        >>> features.shape, logits.shape
        ((4, 128), (4, 2))
    """
    scale = np.float32(trained.scale)
    return jax.tree_util.Partial(_Features(_network(trained)), trained.params, scale)


def accuracy(trained: Trained, x: Any, label: np.ndarray, **settings: Any) -> float:
    """Share of images whose class is found; settings as in `features.feature_batches`."""
    probabilities = extract(classifier_features(trained), x, **settings).probabilities
    assert probabilities is not None  # The features of a classifier come with them.
    return float(np.mean(probabilities.argmax(axis=1) == label))


def as_floats(x: Any) -> Any:
    """Images as floats; uint8 pixels become x / 255."""
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x


class _Features(NamedTuple):
    """Output of a classifier; equal for equal networks, so that compiled programs are reused."""

    network: Classifier

    def __call__(self, params, scale, x):
        features, logits = self.network.apply(params, as_floats(x))
        return scale * features, logits


def _network(trained: Trained) -> Classifier:
    return Classifier(trained.num_classes, trained.mean, trained.std)
