import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from truths import assert_mean

from score_jax.data import sources
from score_jax.data.dataset import split_examples
from score_jax.reading import read_regular


def test_digits_are_scikit_learns_in_the_stated_split():
    table, order = load_digits(), np.random.RandomState(0).permutation(1797)
    data = sources.digits()
    assert data.train.dtype == np.uint8
    assert data.num_values == 17
    assert data.num_classes == 10
    np.testing.assert_array_equal(data.train_labels, table.target[order[:1500]])
    np.testing.assert_array_equal(data.held_out_labels, table.target[order[1500:]])
    np.testing.assert_array_equal(data.train[..., 0], table.images[order[:1500]])
    np.testing.assert_array_equal(data.held_out[..., 0], table.images[order[1500:]])


def test_mixture_has_the_stated_weights_means_and_variances():
    data = sources.mixture()
    assert (data.train.shape, data.held_out.shape, data.train.dtype) == (
        (20000, 2),
        (5000, 2),
        np.float32,
    )
    assert data[2:] == (None, None, None, None, None)
    for points in (data.train, data.held_out):
        near = points.sum(1) > 0  # the other component is 14 standard deviations away
        assert_mean(near, 0.8)
        for component, mean in ((points[near], 5), (points[~near], -5)):
            assert_mean(component[:, 0], mean)
            assert_mean(component[:, 1], mean)
            assert_mean((component[:, 0] - mean) ** 2, 1)
            assert_mean((component[:, 0] - mean) * (component[:, 1] - mean), 0)
    np.testing.assert_array_equal(sources.mixture().train, data.train)


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def images(number, *shape, dtype=np.uint8):
    return np.zeros((number, *shape), dtype)


def test_npz_round_trip(tmp_path):
    train = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    data = sources.npz(write(tmp_path / "x.npz", train=train, held_out=train[:2]))
    np.testing.assert_array_equal(data.train, train)
    assert data.held_out.shape == (2, 4, 6, 3)
    assert data[2:] == (256, None, None, None, None)


def test_npz_with_labels(tmp_path):
    labels = {
        "train_labels": np.array([0, 4], np.int64),
        "held_out_labels": np.array([6, 1, 1], np.uint8),
    }
    data = sources.npz(
        write(tmp_path / "x.npz", train=images(2, 4, 4, 1), held_out=images(3, 4, 4, 1), **labels)
    )
    np.testing.assert_array_equal(data.train_labels, [0, 4])
    np.testing.assert_array_equal(data.held_out_labels, [6, 1, 1])
    assert data.train_labels.dtype == data.held_out_labels.dtype == np.int32
    assert data.num_classes == 7


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"train_labels": np.zeros(2, int)}, "holds train_labels alone"),
        ({"held_out_labels": np.zeros(1, int)}, "holds held_out_labels alone"),
        (
            {"train_labels": np.zeros(3, int), "held_out_labels": np.zeros(1, int)},
            r"train_labels is int64 \[3\], .* integers \[2\]",
        ),
        (
            {"train_labels": np.zeros(2, int), "held_out_labels": np.zeros(1)},
            r"held_out_labels is float64 \[1\]",
        ),
        (
            {"train_labels": np.array([0, -1]), "held_out_labels": np.zeros(1, int)},
            "train_labels runs from -1 to 0",
        ),
        (
            {"train_labels": np.array([0, 2**40]), "held_out_labels": np.zeros(1, int)},
            "classes count from 0",
        ),
    ],
)
def test_npz_with_labels_that_do_not_fit(tmp_path, labels, words):
    with pytest.raises(ValueError, match=words):
        sources.npz(
            write(
                tmp_path / "x.npz", train=images(2, 4, 4, 1), held_out=images(1, 4, 4, 1), **labels
            )
        )


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {"held_out": images(1, 4, 4, 1), "more": images(1)},
            r"x\.npz lacks the array 'train', it holds held_out, more: write it with numpy\.savez",
        ),
        ({}, r"lacks the array 'train', it holds nothing: write"),
        ({"train": images(2), "held_out": images(1)}, r"train is uint8 \[2\], but must be uint8"),
        ({"train": np.float32(2)}, r"train is float32 \[\], but must be"),
        ({"train": images(2, 3, dtype=np.int64)}, r"train is int64 \[2, 3\], but must be uint8"),
        ({"train": images(2, 3, dtype=np.complex64)}, r"train is complex64 \[2, 3\], but must be"),
        ({"train": np.array(["a", "b"])}, r"train is <U1 \[2\], but must be"),
        (
            {"train": images(2, 4, 4, 1), "held_out": images(0, 4, 4, 1)},
            r"held_out is uint8 \[0, 4, 4, 1\], .* not empty",
        ),
        (
            {"train": images(2, 4, 4, 1), "held_out": images(1, 4, 5, 1)},
            r"train are uint8 \[4, 4, 1\], but those in held_out uint8 \[4, 5, 1\]; they",
        ),
        (
            {"train": images(2, 4), "held_out": images(1, 4, dtype=np.float64)},
            r"train are uint8 \[4\], but those in held_out float32 \[4\]; they must agree",
        ),
        (
            {"train": images(1, 4, 4, 1)},
            r"x\.npz needs at least 2 examples to hold one out, but has 1",
        ),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, words):
    with pytest.raises(ValueError, match=words):
        sources.npz(write(tmp_path / "x.npz", **arrays))


def test_npz_that_is_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        sources.npz(str(tmp_path / "none.npz"))
    for path in (None, ""):
        with pytest.raises(FileNotFoundError, match=f"path={path!r} is not a file: it must be an"):
            sources.npz(path)
    whole = Path(write(tmp_path / "x.npz", train=images(20, 4, 4, 1))).read_bytes()
    np.save(tmp_path / "x.npy", images(20, 4))
    npy = (tmp_path / "x.npy").read_bytes()
    for broken in (b"PK\x03\x04 not really", b"", b"text", whole[:-30], npy[:-30], npy[:20]):
        (tmp_path / "x.npz").write_bytes(broken)
        with pytest.raises(ValueError, match=r"x\.npz cannot be read as an \.npz or \.npy file"):
            sources.npz(str(tmp_path / "x.npz"))


def test_npz_with_python_objects_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.npz cannot .*train: it holds Python objects"):
        sources.npz(write(tmp_path / "x.npz", train=np.array([{}, {}], object)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("shape", [(), (2,), (4, 6, 3), (2, 3, 4, 5)])
def test_npz_with_floating_point_values(tmp_path, dtype, shape):
    train = np.random.default_rng(0).standard_normal((5, *shape)).astype(dtype)
    data = sources.npz(write(tmp_path / "x.npz", train=train, held_out=train[:2]))
    assert data.train.dtype == data.held_out.dtype == np.float32
    np.testing.assert_array_equal(data.train, train.astype(np.float32))
    np.testing.assert_array_equal(data.held_out, data.train[:2])
    assert data[2:] == (None, None, None, None, None)


@pytest.mark.parametrize("shape", [(2,), (4, 6), (2, 3, 4, 5)])
def test_npz_with_pixels_of_any_shape(tmp_path, shape):
    train = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    data = sources.npz(write(tmp_path / "x.npz", train=train, held_out=train[:2]))
    np.testing.assert_array_equal(data.train, train)
    assert (data.train.dtype, data.num_values) == (np.uint8, 256)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("name", ["train", "held_out"])
def test_npz_with_values_that_are_not_finite(tmp_path, name, value):
    arrays = {"train": np.zeros((5, 3)), "held_out": np.zeros((5, 3))}
    arrays[name][3, 1:] = value
    words = (
        rf"x\.npz: {name} holds 2 values that are not finite in float32, the first in example 3"
    )
    with pytest.raises(ValueError, match=words):
        sources.npz(write(tmp_path / "x.npz", **arrays))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_without_held_out_are_split_by_a_fixed_permutation(tmp_path, dtype):
    array = np.arange(60).reshape(30, 2).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    train, held_out = split_examples(30)
    for path in (write(tmp_path / "x.npz", train=array), str(tmp_path / "x.npy")):
        data = sources.npz(path)
        assert data.train.dtype == dtype
        np.testing.assert_array_equal(data.train, array[train])
        np.testing.assert_array_equal(data.held_out, array[held_out])
        assert data[2:6] == (256 if dtype == np.uint8 else None, None, None, None)
        assert data.note == (
            f"{path} has no array held_out: 27 examples to train on, 3 held out, chosen by a "
            "fixed permutation"
        )


def test_labelled_arrays_without_held_out_are_split_class_by_class(tmp_path):
    array = np.arange(30, dtype=np.float32)[:, None]
    labels = np.array([0, 5, 5] * 10)
    path = write(tmp_path / "x.npz", train=array, train_labels=labels)
    data = sources.npz(path)
    of_class_0, of_class_5 = split_examples(10)[1], split_examples(20)[1]
    held_out = sorted(
        [*np.flatnonzero(labels == 0)[of_class_0], *np.flatnonzero(labels)[of_class_5]]
    )
    np.testing.assert_array_equal(data.held_out[:, 0], held_out)
    np.testing.assert_array_equal(data.train[:, 0], np.delete(np.arange(30), held_out))
    np.testing.assert_array_equal(data.held_out_labels, labels[held_out])
    np.testing.assert_array_equal(data.train_labels, np.delete(labels, held_out))
    assert (data.train_labels.dtype, data.num_classes) == (np.int32, 6)
    assert data.note == (
        f"{path} has no array held_out: 27 examples to train on, 3 held out, chosen by a fixed "
        "permutation in each class"
    )


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            {"train_labels": np.array([0, 0, 2])},
            r"x\.npz: class 2 needs at least 2 examples .* has 1",
        ),
        ({"train_labels": np.zeros(2, int)}, r"train_labels is int64 \[2\], .* integers \[3\]"),
        ({"held_out_labels": np.zeros(3, int)}, "holds held_out_labels, but not held_out: add"),
    ],
)
def test_labels_without_held_out_that_do_not_fit(tmp_path, labels, words):
    with pytest.raises(ValueError, match=words):
        sources.npz(write(tmp_path / "x.npz", train=images(3, 4, 4, 1), **labels))


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "x.npz", train=images(5, 4, 4, 1))
    assert sources.npz("~/x.npz").train.shape == (4, 4, 4, 1)
    (tmp_path / "mnist").mkdir()
    truth = write_mnist(tmp_path / "mnist")
    assert_is_mnist(sources.idx("~/mnist"), truth)


NAMES = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def write_mnist(folder, train=7, held_out=3, side=28, **instead):
    """Writes files as their format describes them; `instead` replaces or, by None, omits some."""
    rng = np.random.default_rng(0)
    files, truth = {}, []
    for split, number in (("train", train), ("t10k", held_out)):
        pixels, labels = (
            rng.integers(0, 256, number * side * side).tolist(),
            rng.integers(0, 10, number).tolist(),
        )
        files[f"{split}-images-idx3-ubyte"] = struct.pack(
            ">IIII", 0x803, number, side, side
        ) + bytes(pixels)
        files[f"{split}-labels-idx1-ubyte"] = struct.pack(">II", 0x801, number) + bytes(labels)
        truth.append((np.array(pixels).reshape(number, side, side, 1), labels))
    files.update({name.replace("_", "-"): content for name, content in instead.items()})
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return truth


def assert_is_mnist(data, truth):
    assert data.train.dtype == np.uint8
    assert data.train_labels.dtype == np.int32
    assert data.num_values == 256
    assert data.num_classes == max(truth[0][1] + truth[1][1]) + 1
    for stored, (images, labels) in zip(
        [(data.train, data.train_labels), (data.held_out, data.held_out_labels)],
        truth,
        strict=True,
    ):
        np.testing.assert_array_equal(stored[0], images)
        np.testing.assert_array_equal(stored[1], labels)


def test_idx_reads_what_the_format_says(tmp_path):
    truth = write_mnist(tmp_path)
    assert_is_mnist(sources.idx(str(tmp_path)), truth)


def test_idx_reads_compressed_files_and_the_other_spelling(tmp_path):
    truth = write_mnist(tmp_path)
    for i, name in enumerate(NAMES):
        file = tmp_path / name
        if i % 2 == 0:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
        if i == 1:
            file.rename(tmp_path / name.replace("-idx", ".idx"))
        if i == 2:
            (tmp_path / f"{name}.gz").rename(tmp_path / (name.replace("-idx", ".idx") + ".gz"))
    assert_is_mnist(sources.idx(str(tmp_path)), truth)


def header(magic, *sizes):
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes)


@pytest.mark.parametrize(
    ("instead", "words"),
    [
        (
            {"train_images_idx3_ubyte": header(0x801, 7, 28, 28) + bytes(7 * 784)},
            "train-images.* begins with 00 00 08 01, not with 00 00 08 03",
        ),
        ({"t10k_labels_idx1_ubyte": b""}, "t10k-labels.* begins with nothing"),
        ({"t10k_labels_idx1_ubyte": header(0x801, 3)[:6]}, "ends within its header"),
        (
            {"t10k_labels_idx1_ubyte": header(0x801, 3) + bytes(2)},
            "t10k-labels.* holds 2 bytes of values, but its header says 3",
        ),
        (
            {"train_images_idx3_ubyte": header(0x803, 7, 28, 28) + bytes(9)},
            "holds 9 bytes .* says 7 x 28 x 28",
        ),
        (
            {"train_labels_idx1_ubyte": header(0x801, 6) + bytes(6)},
            r"holds 7 images, but .*train-labels-idx1-ubyte 6 labels",
        ),
        (
            {"t10k_images_idx3_ubyte": header(0x803, 3, 8, 8) + bytes(192)},
            r"\[28, 28\], those of .* \[8, 8\]",
        ),
        ({"t10k_images_idx3_ubyte": header(0x803, 0, 28, 28)}, "is empty"),
    ],
)
def test_idx_that_does_not_fit(tmp_path, instead, words):
    write_mnist(tmp_path, **instead)
    with pytest.raises(ValueError, match=words):
        sources.idx(str(tmp_path))


def test_a_limit_beyond_the_memory_takes_no_memory(tmp_path):
    """The limit for an idx file is the memory of the machine, which cannot be allocated."""
    content = bytes(100_000)
    (tmp_path / "file").write_bytes(content)
    assert read_regular(tmp_path / "file", limit=2**60) == content
    assert read_regular(tmp_path / "file", limit=len(content)) == content
    with pytest.raises(ValueError, match="larger than the 99999 bytes"):
        read_regular(tmp_path / "file", limit=len(content) - 1)


def test_idx_that_is_missing(tmp_path):
    write_mnist(tmp_path, train_labels_idx1_ubyte=None, t10k_images_idx3_ubyte=None)
    with pytest.raises(
        FileNotFoundError, match="lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
    ):
        sources.idx(str(tmp_path))
    for path in (str(tmp_path / "nowhere"), "", None):
        with pytest.raises(
            FileNotFoundError, match=f"path={path!r} is not a folder: it must hold"
        ):
            sources.idx(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: b"plain",
        lambda data: data[:20] + b"zzzz" + data[24:],
        lambda data: b"",
    ],
)
def test_idx_whose_compression_is_damaged(tmp_path, damage):
    write_mnist(tmp_path)
    file = tmp_path / NAMES[0]
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(damage(gzip.compress(file.read_bytes())))
    file.unlink()
    with pytest.raises(
        ValueError,
        match=r"train-images-idx3-ubyte\.gz (cannot be decompressed|begins with nothing)",
    ):
        sources.idx(str(tmp_path))
