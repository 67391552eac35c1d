"""Data sets from arrays: the embedded digits, a toy density, .npz and .npy files, idx files."""

import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from score_jax.data.dataset import Dataset, split_examples
from score_jax.reading import (
    LARGEST_FILE,
    NPY,
    load_arrays,
    memory_bytes,
    read_gzip,
    read_regular,
    within,
)

DIGITS = Path(__file__).with_name("digits.npz")
ARRAYS = ("train", "held_out", "train_labels", "held_out_labels")
MIXTURE_WEIGHTS = np.array([0.8, 0.2], np.float32)
MIXTURE_MEANS = np.array([[5, 5], [-5, -5]], np.float32)
MIXTURE_SCALES = np.ones(2, np.float32)
"""Parameters of the density of `mixture`, as `analytic.mixture_score_fn` takes them."""
MOST_CLASSES = 1_000_000
"""Largest number of classes; a larger label is a mistake, and the embedding a waste of memory."""
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def digits() -> Dataset:
    """1797 handwritten digits of 8x8 pixels with values 0 to 16, as shipped with scikit-learn.

    The split is fixed: the first 1500 of `numpy.random.RandomState(0).permutation(1797)` are
    training examples.

    Reference: Alpaydin & Kaynak (1998), "Optical recognition of handwritten digits", UCI
    repository (test part).
    """
    with np.load(DIGITS) as file:
        images = file["images"][..., None]
        labels = file["labels"].astype(np.int32)
    order = np.random.RandomState(0).permutation(len(images))
    train = order[:1500]
    held_out = order[1500:]
    return Dataset(
        images[train],
        images[held_out],
        num_values=17,
        train_labels=labels[train],
        held_out_labels=labels[held_out],
        num_classes=10,
    )


def mixture() -> Dataset:
    """Points in the plane from 0.8 N((5, 5), I) + 0.2 N((-5, -5), I), float32.

    There are 20000 training points and 5000 held-out points, always the same ones: those of
    `numpy.random.default_rng(0)`.

    Reference: Song & Ermon (2019), figures 2 and 3.
    """
    rng = np.random.default_rng(0)
    means = np.where(rng.random((25000, 1)) < 0.8, 5.0, -5.0)
    points = (means + rng.standard_normal((25000, 2))).astype(np.float32)
    return Dataset(points[:20000], points[20000:], num_values=None)


def npz(path: str | os.PathLike | None) -> Dataset:
    """Examples in an .npz file of named arrays, or in an .npy file of one array.

    An .npz file holds the array `train` and may hold `held_out`, `train_labels` and
    `held_out_labels`; an .npy file holds `train` alone. Examples are one of
    - uint8 [examples, *shape], at least two-dimensional: pixels with 256 values;
    - floating-point [examples, *shape]: no pixels, converted to float32 and used as they are.

    Labels are integers [examples] that count from 0. Without `held_out`, one tenth of the examples
    (of each class) is held out as in `dataset.split_examples`, and the data set's note says so.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, lacks an array, or holds arrays of other types or shapes,
            or values that are not finite.
    """
    file = os.path.expanduser(path or "")
    if not os.path.isfile(file):
        raise FileNotFoundError(
            f"path={path!r} is not a file{within(path)}: it must be an .npz file with the array "
            "train and, optionally, held_out, or an .npy file"
        )
    arrays = _load_arrays(file)
    train = _examples(f"{file}: train", arrays["train"])
    if "held_out" not in arrays:
        return _split(file, train, arrays)

    held_out = _examples(f"{file}: held_out", arrays["held_out"])
    if (train.dtype, train.shape[1:]) != (held_out.dtype, held_out.shape[1:]):
        raise ValueError(
            f"{file}: examples in train are {train.dtype} {list(train.shape[1:])}, but those in "
            f"held_out {held_out.dtype} {list(held_out.shape[1:])}; they must agree"
        )
    data = Dataset(train, held_out, _num_values(train))
    present = [name for name in ("train_labels", "held_out_labels") if name in arrays]
    if len(present) == 1:
        raise ValueError(
            f"{file} holds {present[0]} alone: it must hold train_labels and held_out_labels, or "
            "neither"
        )
    if not present:
        return data
    train_labels = _labels(file, "train_labels", arrays, len(train))
    held_out_labels = _labels(file, "held_out_labels", arrays, len(held_out))
    return _with_labels(data, train_labels, held_out_labels)


def idx(path: str | os.PathLike | None) -> Dataset:
    """MNIST as its authors publish it: a folder with four idx files, which may be gzipped.

    The files are train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, also spelled train-images.idx3-ubyte and so on; gzipped files end in
    .gz. Images are uint8 [examples, height, width, 1]; those of t10k are held out.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: If the folder or files in it are missing; names the files.
        ValueError: If a file is damaged, is not an idx file, or does not fit the others.

    Reference: LeCun et al. (1998).
    """
    folder = os.path.expanduser(path or "")
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"path={path!r} is not a folder{within(path)}: it must hold MNIST's four files"
        )
    found = {name: _find_idx(folder, name) for name in IDX_FILES}
    files = {name: file for name, file in found.items() if file is not None}
    missing = [name for name in found if name not in files]
    if missing:
        raise FileNotFoundError(
            f"path={path!r} lacks {', '.join(missing)} (or .gz of it): it must be a folder with "
            "MNIST's four files"
        )
    train_file, train_labels_file, held_out_file, held_out_labels_file = files.values()
    train, train_labels = _read_idx_pair(train_file, train_labels_file)
    held_out, held_out_labels = _read_idx_pair(held_out_file, held_out_labels_file)
    if train.shape[1:] != held_out.shape[1:]:
        raise ValueError(
            f"images of {train_file} are {list(train.shape[1:-1])}, those of {held_out_file} "
            f"{list(held_out.shape[1:-1])}: take both from the same data set"
        )
    return _with_labels(Dataset(train, held_out, 256), train_labels, held_out_labels)


def _load_arrays(file: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that have names in ARRAYS; that of an .npy file as `train`."""
    names: list[str] = []

    def choose(found: list[str]) -> list[str]:
        names.extend(found)
        return [name for name in ARRAYS if name in found]

    try:
        arrays = load_arrays(file, choose)
    except ValueError as error:
        raise ValueError(
            f"{file} cannot be read as an .npz or .npy file of arrays ({error}): write it with "
            "numpy.savez or numpy.save"
        ) from error
    if NPY in arrays:
        return {"train": arrays[NPY]}
    if "train" not in arrays:
        raise ValueError(
            f"{file} lacks the array 'train', it holds {', '.join(names) or 'nothing'}: write it "
            "with numpy.savez(path, train=..., held_out=...)"
        )
    return arrays


def _examples(name: str, array: np.ndarray) -> np.ndarray:
    """Checks an array of examples; floating-point ones are converted to float32."""
    is_pixels = array.dtype == np.uint8
    is_float = np.issubdtype(array.dtype, np.floating)
    if not (is_pixels or is_float) or array.ndim < 1 + is_pixels or array.size == 0:
        raise ValueError(
            f"{name} is {array.dtype} {list(array.shape)}, but must be uint8 pixels, at least "
            "two-dimensional, or floating-point values [examples, *shape], and not empty"
        )
    if is_pixels:
        return array
    with np.errstate(over="ignore"):  # overflow gives infinities, refused below
        array = array.astype(np.float32, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        raise ValueError(
            f"{name} holds {finite.size - finite.sum()} values that are not finite in float32, "
            f"the first in example {np.argwhere(~finite)[0][0]}: remove or replace them"
        )
    return array


def _num_values(array: np.ndarray) -> int | None:
    return 256 if array.dtype == np.uint8 else None


def _split(file: str, examples: np.ndarray, arrays: dict[str, np.ndarray]) -> Dataset:
    """The data set of a file without held-out examples; one tenth of each class is held out."""
    if "held_out_labels" in arrays:
        raise ValueError(f"{file} holds held_out_labels, but not held_out: add it, or remove both")
    has_labels = "train_labels" in arrays
    if has_labels:
        labels = _labels(file, "train_labels", arrays, len(examples))
        train, held_out = _split_classes(file, labels)
    else:
        train, held_out = split_examples(len(examples), file)
    note = (
        f"{file} has no array held_out: {len(train)} examples to train on, {len(held_out)} held "
        f"out, chosen by a fixed permutation{' in each class' if has_labels else ''}"
    )
    data = Dataset(examples[train], examples[held_out], _num_values(examples), note=note)
    if not has_labels:
        return data
    return _with_labels(data, labels[train], labels[held_out])


def _split_classes(file: str, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `split_examples` within each class, so that both splits have all classes."""
    train = []
    held_out = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        name = f"{file}: class {label}"
        train_positions, held_out_positions = split_examples(len(members), name)
        train.append(members[train_positions])
        held_out.append(members[held_out_positions])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(held_out))


def _labels(file: str, name: str, arrays: dict[str, np.ndarray], number: int) -> np.ndarray:
    labels = arrays[name]
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (number,):
        raise ValueError(
            f"{file}: {name} is {labels.dtype} {list(labels.shape)}, but must be integers "
            f"[{number}], one per example"
        )
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ValueError(
            f"{file}: {name} runs from {labels.min()} to {labels.max()}, but classes count from 0 "
            f"to {MOST_CLASSES - 1} at most: number them anew, as numpy.unique with "
            "return_inverse=True does"
        )
    return labels.astype(np.int32)


def _with_labels(data: Dataset, train_labels: np.ndarray, held_out_labels: np.ndarray) -> Dataset:
    """Adds labels; the number of classes is one more than the largest label."""
    largest = max(int(train_labels.max()), int(held_out_labels.max()))
    return data._replace(
        train_labels=train_labels, held_out_labels=held_out_labels, num_classes=largest + 1
    )


def _find_idx(folder: str, name: str) -> Path | None:
    """The file of this name in either spelling; an uncompressed one is preferred."""
    for suffix in ("", ".gz"):
        for spelling in (name, name.replace("-idx", ".idx")):
            file = Path(folder, spelling + suffix)
            if file.is_file():
                return file
    return None


def _read_idx_pair(images_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 [examples, height, width, 1], and their labels, int32 [examples]."""
    images = _read_idx(images_file, 3)
    labels = _read_idx(labels_file, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels: "
            "take both from the same data set"
        )
    return images[..., None], labels.astype(np.int32)


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The values of an idx file, uint8 with this number of dimensions.

    The format: the bytes 0, 0, 8 (for uint8) and the number of dimensions, big-endian sizes of
    four bytes each, then the values.
    """
    magic = bytes((0, 0, 8, dimensions))
    header = 4 + 4 * dimensions

    def claims(first: bytes) -> int:
        if first[:4] != magic or len(first) < header:
            return 0
        return math.prod(struct.unpack(f">{dimensions}I", first[4:]))

    try:
        if file.suffix == ".gz":
            data = read_gzip(file, header, claims)
        else:
            data = read_regular(file, memory_bytes() or LARGEST_FILE)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(
            f"{file} cannot be decompressed ({error}): copy or download it again"
            if file.suffix == ".gz"
            else f"{file} cannot be read ({error})"
        ) from error
    if data[:4] != magic:
        raise ValueError(
            f"{file} begins with {data[:4].hex(' ') or 'nothing'}, not with {magic.hex(' ')}: it "
            "is not an idx file of this kind"
        )
    if len(data) < header:
        raise ValueError(f"{file} ends within its header: copy or download it again")
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    sizes = " x ".join(map(str, shape))
    if len(data) - header != math.prod(shape):
        raise ValueError(
            f"{file} holds {len(data) - header} bytes of values, but its header says {sizes}: "
            "copy or download it again"
        )
    if 0 in shape:
        raise ValueError(f"{file} is empty: its header says {sizes}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
