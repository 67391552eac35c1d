"""Examples in any form: arrays, lazily decoded images, data sets; checked and placed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.data.dataset import Dataset, in_memory


class Examples(NamedTuple):
    """One split of a data set: stored examples and, for a conditional network, their labels."""

    x: Any
    label: np.ndarray | None

    def arrays(self) -> tuple[Any, ...]:
        """The arrays that a batch is taken from."""
        return (self.x,) if self.label is None else (self.x, self.label)


def splits_of(
    x: Any, label: Any = None, held_out: Any = None, held_out_label: Any = None
) -> tuple[Examples, Examples | None]:
    """The training and the held-out examples of `fit`'s arguments.

    Raises:
        ValueError: If `x` is a Dataset and other arguments are given, or the examples do not fit
            each other.
    """
    if isinstance(x, Dataset):
        if label is not None or held_out is not None or held_out_label is not None:
            raise ValueError(
                "x is a Dataset, which brings its own labels and held-out examples: leave out "
                "label, held_out and held_out_label"
            )
        label, held_out, held_out_label = x.train_labels, x.held_out, x.held_out_labels
        x = x.train
    train = Examples(_as_examples(x), _as_labels(label))
    if held_out is not None:
        held_out = Examples(_as_examples(held_out), _as_labels(held_out_label))
    _check_splits(train, held_out)
    return train, held_out


def _as_labels(label: Any) -> np.ndarray | None:
    return None if label is None else np.asarray(label)


def _as_examples(x: Any) -> Any:
    """Examples with `shape`, `dtype`, `nbytes` and indexing: lazy images, or a numpy array."""
    return x if hasattr(x, "nbytes") and not isinstance(x, jax.Array) else np.asarray(x)


def _check_splits(train: Examples, held_out: Examples | None) -> None:
    """Raises a ValueError for examples that cannot be used or do not fit each other."""
    for name, split in (("x", train), ("held_out", held_out)):
        if split is not None:
            _check_examples(name, split)
    if held_out is not None:
        if held_out.x.shape[1:] != train.x.shape[1:]:
            raise ValueError(
                f"held_out has examples of shape {list(held_out.x.shape[1:])}, but those of x are "
                f"{list(train.x.shape[1:])}"
            )
        if (held_out.label is None) != (train.label is None):
            raise ValueError("give label and held_out_label both, or neither")


def _check_examples(name: str, split: Examples) -> None:
    x, label = split
    if np.issubdtype(x.dtype, np.complexfloating):
        raise ValueError(
            f"{name} is {x.dtype}, but a score is defined for real data: give the real and the "
            "imaginary part as two channels"
        )
    if x.dtype != np.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} is {x.dtype}, but must be floating-point, or uint8 for pixels")
    if len(x.shape) < 2 or 0 in x.shape:
        raise ValueError(
            f"{name} has shape {list(x.shape)}, but must be [examples, ...] and not empty"
        )
    if label is not None and (label.shape != x.shape[:1] or label.dtype.kind not in "iu"):
        raise ValueError(
            f"the labels of {name} are {label.dtype} {list(label.shape)}, but must be integers "
            f"[{x.shape[0]}]"
        )
    if isinstance(x, np.ndarray) and x.dtype != np.uint8 and not np.isfinite(x).all():
        bad = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(axis=1)))
        raise ValueError(f"{name} is not finite in example {bad}: replace or remove such examples")


def placed(
    train: Examples, held_out: Examples | None, device_megabytes: int
) -> tuple[Examples, Examples | None, bool]:
    """The splits, decoded if every device may hold them, and whether it may."""
    splits = [split for split in (train, held_out) if split is not None]
    resident = sum(split.x.nbytes for split in splits) <= device_megabytes * 1_000_000
    if resident:
        train = train._replace(x=in_memory(train.x))
        if held_out is not None:
            held_out = held_out._replace(x=in_memory(held_out.x))
    return train, held_out, resident
