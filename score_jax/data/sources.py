"""Examples that are arrays: the embedded digits, a toy density, an .npz file, MNIST's idx files."""

import gzip
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from score_jax.data.dataset import Dataset

DIGITS = Path(__file__).with_name("digits.npz")
SPLITS = ("train", "held_out")


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


def mixture() -> Dataset:
    """Points of the plane from 0.8 N((5, 5), I) + 0.2 N((-5, -5), I), float32: 20000 for training, 5000 held out.

    Always the same points, those of `numpy.random.default_rng(0)`.

    Reference: Song & Ermon (2019), figures 2 and 3.
    """
    rng = np.random.default_rng(0)
    means = np.where(rng.random((25000, 1)) < 0.8, 5.0, -5.0)
    points = (means + rng.standard_normal((25000, 2))).astype(np.float32)
    return Dataset(points[:20000], points[20000:], num_values=0)


def npz(path: str) -> Dataset:
    """Images in the arrays `train` and `held_out` of an .npz file, uint8 [examples, height, width, channels] each.

    It may also hold their classes, integers from 0 on: `train_labels` and `held_out_labels`, [examples] each.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not such a file, with what it lacks.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"config.data.path={path!r} is not a file: it must name an .npz file with the arrays train and held_out"
        )
    names = (*SPLITS, *(f"{split}_labels" for split in SPLITS))
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names if name in file.files}
    except (ValueError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of arrays ({error}): write it with numpy.savez") from error
    for name in SPLITS:
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
    present = [name for name in names[2:] if name in arrays]
    if len(present) == 1:
        raise ValueError(f"{path} holds {present[0]} alone: it must hold train_labels and held_out_labels, or neither")
    labels = [_labels_of_npz(path, name, arrays[name], len(arrays[name.removesuffix("_labels")])) for name in present]
    return Dataset(arrays["train"], arrays["held_out"], 256, *labels, num_classes=_num_classes(labels))


def idx(path: str) -> Dataset:
    """MNIST as its authors publish it: a folder with four idx files, each as it is or compressed by gzip.

    They are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, also spelled
    train-images.idx3-ubyte and so on, with .gz at the end if compressed. Images are uint8 [examples, height, width, 1]; those of
    t10k are held out.

    Raises:
        FileNotFoundError: If files are missing, with their names.
        ValueError: If one is damaged, is no such file, or does not fit the others.

    Reference: LeCun et al. (1998).
    """
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    files = [_find_idx(path, name) for name in names]
    if missing := [name for name, file in zip(names, files, strict=True) if file is None]:
        raise FileNotFoundError(
            f"config.data.path={path!r} lacks {', '.join(missing)} (or .gz of it): it must be a folder with MNIST's four files"
        )
    images, labels = ([_read_idx(file, dimensions) for file in files[i::2]] for i, dimensions in ((0, 3), (1, 1)))
    for i in (0, 1):
        if len(images[i]) != len(labels[i]):
            raise ValueError(
                f"{files[2 * i]} holds {len(images[i])} images, but {files[2 * i + 1]} {len(labels[i])} labels: "
                "take both from the same data set"
            )
    if images[0].shape[1:] != images[1].shape[1:]:
        raise ValueError(
            f"images of {files[0]} are {list(images[0].shape[1:])}, those of {files[2]} {list(images[1].shape[1:])}: "
            "take both from the same data set"
        )
    train, held_out = (array[..., None] for array in images)
    labels = [array.astype(np.int32) for array in labels]
    return Dataset(train, held_out, 256, *labels, num_classes=_num_classes(labels))


def _num_classes(labels: list[np.ndarray]) -> int:
    return max((int(array.max()) + 1 for array in labels), default=0)


def _labels_of_npz(path: str, name: str, labels: np.ndarray, number: int) -> np.ndarray:
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (number,):
        raise ValueError(f"{path}: {name} is {labels.dtype} {list(labels.shape)}, but must be integers [{number}], one per image")
    if labels.min() < 0 or labels.max() >= 2**31 - 1:
        raise ValueError(f"{path}: {name} runs from {labels.min()} to {labels.max()}, but classes count from 0")
    return labels.astype(np.int32)


def _find_idx(path: str, name: str) -> Path | None:
    """The file of this name, or of the other spelling, rather as it is than compressed."""
    spellings = (name, name.replace("-idx", ".idx"))
    found = (Path(path, spelling + suffix) for suffix in ("", ".gz") for spelling in spellings)
    return next((file for file in found if file.is_file()), None)


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The bytes of an idx file, uint8 with this many dimensions. Layout: 0, 0, 8 (uint8), dimensions, big-endian sizes, values."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{file} cannot be decompressed ({error}): copy or download it again") from error
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if data[:4] != magic:
        raise ValueError(f"{file} begins with {data[:4].hex(' ') or 'nothing'}, not with {magic.hex(' ')}: it is no such idx file")
    if len(data) < header:
        raise ValueError(f"{file} ends within its header: copy or download it again")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise ValueError(
            f"{file} holds {len(data) - header} bytes of values, but its header says {' x '.join(map(str, shape))}: "
            "copy or download it again"
        )
    if 0 in shape:
        raise ValueError(f"{file} is empty: its header says {' x '.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
