"""Nearest training examples of samples in a report, and of held-out examples as the yardstick."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from score_jax.cli import build
from score_jax.cli.report_images import (
    SHOWN,
    MissingError,
    Samples,
    image_uri,
    pixels_of,
    reduced,
    reduction,
    sheet,
)
from score_jax.cli.scaled import ScaledExamples
from score_jax.data.dataset import Dataset, spread_index
from score_jax.evaluation.neighbors import nearest_neighbors

NUMBER = 5
"""Number of neighbours of each sample."""
COLUMNS = 20
HELD_OUT = 300
"""Largest number of held-out examples whose nearest training examples are sought."""
COMPARISONS = 2e9
"""Largest number of values, over all pairs of examples, that are compared with held-out ones."""
TRAINING_VALUES = 200_000_000
"""Largest number of values of the training examples that are compared."""


class Neighbors(NamedTuple):
    """Nearest training examples.

    Attributes:
        image: Data URI of the sprite of all of them; "" for points.
        rows: Number of rows of the sprite.
        columns: Number of its columns.
        nearest: Per sample, [position in the sprite, index, class or None, distance] of each.
        ranks: Per sample, the share of held-out examples that are nearer to the training data.
        samples: Median distance of samples and its standard error.
        held_out: Median distance of held-out examples and its standard error.
        near_share: Share of samples nearer than 95 % of held-out examples, and its error.
        num_held_out: Number of held-out examples.
        num_train: Number of training examples that were compared.
        all_train: True if these are all.
    """

    image: str
    rows: int
    columns: int
    nearest: list[list[tuple[int, int, int | None, float]]]
    ranks: list[float]
    samples: tuple[float, float]
    held_out: tuple[float, float]
    near_share: tuple[float, float]
    num_held_out: int
    num_train: int
    all_train: bool


def open_data(settings: Mapping[str, Any]) -> Dataset:
    """The data set of a config, with its labels even if the network does not use them.

    Raises:
        MissingError: If the data are not at hand.
    """
    try:
        return build.open_source(settings)
    except (ValueError, OSError, ImportError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise MissingError(
            f"Nearest training examples are left out, because the data are not at hand ({reason})."
        ) from error


def find_neighbors(
    samples: Samples, settings: Mapping[str, Any], data: Dataset | None
) -> Neighbors:
    """The training examples nearest to the samples, and to held-out examples as the yardstick.

    Args:
        samples: The samples.
        settings: The config's section `data`.
        data: The data set; None opens it.

    Raises:
        MissingError: If the data are not at hand, or of another shape.
    """
    data = open_data(settings) if data is None else data
    shape, size = data.train.shape[1:], int(np.prod(data.train.shape[1:]))
    if shape != samples.x.shape[1:]:
        raise MissingError(
            f"Nearest training examples are left out, because those at hand are {list(shape)}, "
            f"but the samples {list(samples.x.shape[1:])}."
        )

    # Compare with training examples, evenly spaced if there are too many.
    number = min(len(data.train), max(1, TRAINING_VALUES // size))
    index = spread_index(len(data.train), number)
    scaling = (data.num_values, settings["dequantize"])
    train = ScaledExamples(data.train, *scaling, index)
    affordable = max(SHOWN, int(COMPARISONS // (number * size)))
    num_held_out = min(len(data.held_out), HELD_OUT, affordable)
    if not num_held_out:
        raise MissingError(
            "Nearest training examples are left out: there are no held-out examples."
        )
    held_out = ScaledExamples(data.held_out, *scaling)[:num_held_out]
    found, distance = nearest_neighbors(samples.x, train, min(NUMBER, number))
    _, yardstick = nearest_neighbors(held_out, train, 1)

    # One sprite holds every training example once.
    unique, position = np.unique(found, return_inverse=True)
    position = position.reshape(found.shape)
    image, columns = "", min(COLUMNS, len(unique))
    if samples.are_images:
        factor = reduction(*shape[:2])
        pixels = reduced(pixels_of(train.at(unique), *samples.scale), factor)
        image = image_uri(sheet(pixels, columns))
    labels = data.train_labels
    nearest = [
        [
            (
                int(position[i, j]),
                int(index[found[i, j]]),
                None if labels is None else int(labels[index[found[i, j]]]),
                float(distance[i, j]),
            )
            for j in range(found.shape[1])
        ]
        for i in range(len(found))
    ]
    closest, yardstick = distance[:, 0], yardstick[:, 0]
    share = float(np.mean(closest < np.quantile(yardstick, 0.05)))
    return Neighbors(
        image=image,
        rows=-(-len(unique) // columns),
        columns=columns,
        nearest=nearest,
        ranks=[float(np.mean(yardstick < each)) for each in closest],
        samples=median_with_error(closest),
        held_out=median_with_error(yardstick),
        near_share=(share, math.sqrt(max(share * (1 - share), 0.05 * 0.95) / len(closest))),
        num_held_out=num_held_out,
        num_train=number,
        all_train=number == len(data.train),
    )


def median_with_error(values: np.ndarray) -> tuple[float, float]:
    """The median and its standard error, from the order statistics 1.96 sqrt(n) / 2 around it."""
    ordered = np.sort(values)
    number = len(ordered)
    reach = 1.96 * math.sqrt(number) / 2
    low = ordered[max(0, math.floor(number / 2 - reach))]
    high = ordered[min(number - 1, math.ceil(number / 2 + reach))]
    return float(np.median(ordered)), float(high - low) / (2 * 1.96)
