"""Where images come from: the embedded digits, or an .npz file."""

import os
import zipfile
from pathlib import Path

import numpy as np

from score_jax.data.dataset import Dataset

DIGITS = Path(__file__).with_name("digits.npz")


def digits() -> Dataset:
    """1797 handwritten digits of 8x8 pixels with values 0 to 16, the table that scikit-learn ships.

    The split is fixed: the first 1500 of `numpy.random.RandomState(0).permutation(1797)` are for training.

    Reference: Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI repository (test part).
    """
    with np.load(DIGITS) as file:
        images, labels = file["images"][..., None], file["labels"].astype(np.int32)
    order = np.random.RandomState(0).permutation(len(images))
    train, held_out = order[:1500], order[1500:]
    return Dataset(images[train], images[held_out], 17, labels[train], labels[held_out], num_classes=10)


def npz(path: str) -> Dataset:
    """Images in the arrays `train` and `held_out` of an .npz file, uint8 [examples, height, width, channels] each.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, with what it lacks.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"config.data.path={path!r} is not a file: it must name an .npz file with the arrays train and held_out"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("train", "held_out") if name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of arrays ({error}): write it with numpy.savez") from error
    for name in ("train", "held_out"):
        if name not in arrays:
            raise ValueError(f"{path} lacks the array {name!r}: it must hold train and held_out")
        array = arrays[name]
        if array.dtype != np.uint8 or array.ndim != 4 or 0 in array.shape:
            raise ValueError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, but must be uint8 "
                "[examples, height, width, channels] and not empty"
            )
    if arrays["train"].shape[1:] != arrays["held_out"].shape[1:]:
        raise ValueError(
            f"{path}: images of train are {list(arrays['train'].shape[1:])}, those of held_out "
            f"{list(arrays['held_out'].shape[1:])}; they must agree"
        )
    return Dataset(arrays["train"], arrays["held_out"], num_values=256)
