import gzip
import struct

import numpy as np
import pytest
from sklearn.datasets import load_digits
from truths import assert_mean

from score_jax.data import sources


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
    assert (data.train.shape, data.held_out.shape, data.train.dtype) == ((20000, 2), (5000, 2), np.float32)
    assert (data.num_values, data.num_classes, data.train_labels) == (0, 0, None)
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
    assert data.num_values == 256
    assert (data.train_labels, data.held_out_labels, data.num_classes) == (None, None, 0)


def test_npz_with_labels(tmp_path):
    labels = {"train_labels": np.array([0, 4], np.int64), "held_out_labels": np.array([6, 1, 1], np.uint8)}
    data = sources.npz(write(tmp_path / "x.npz", train=images(2, 4, 4, 1), held_out=images(3, 4, 4, 1), **labels))
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
        ({"train_labels": np.zeros(2, int), "held_out_labels": np.zeros(1)}, r"held_out_labels is float64 \[1\]"),
        ({"train_labels": np.array([0, -1]), "held_out_labels": np.zeros(1, int)}, "train_labels runs from -1 to 0"),
        ({"train_labels": np.array([0, 2**40]), "held_out_labels": np.zeros(1, int)}, "classes count from 0"),
    ],
)
def test_npz_with_labels_that_do_not_fit(tmp_path, labels, words):
    with pytest.raises(ValueError, match=words):
        sources.npz(write(tmp_path / "x.npz", train=images(2, 4, 4, 1), held_out=images(1, 4, 4, 1), **labels))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train": images(2, 4, 4, 1)}, "lacks the array 'held_out'"),
        ({"train": images(2, 4, 4), "held_out": images(1, 4, 4)}, r"train is uint8 \[2, 4, 4\]"),
        ({"train": images(2, 4, 4, 1, dtype=np.float32), "held_out": images(1, 4, 4, 1)}, "train is float32"),
        ({"train": images(2, 4, 4, 1), "held_out": images(0, 4, 4, 1)}, "not empty"),
        ({"train": images(2, 4, 4, 1), "held_out": images(1, 4, 5, 1)}, "must agree"),
    ],
)
def test_npz_that_does_not_fit(tmp_path, arrays, words):
    with pytest.raises(ValueError, match=words):
        sources.npz(write(tmp_path / "x.npz", **arrays))


def test_npz_that_is_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a file"):
        sources.npz(str(tmp_path / "none.npz"))
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(ValueError, match=r"x\.npz cannot be read"):
        sources.npz(str(tmp_path / "x.npz"))


NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def write_mnist(folder, train=7, held_out=3, side=28, **instead):
    """Files as their format describes them; `instead` replaces contents by name, with None for no file."""
    rng = np.random.default_rng(0)
    files, truth = {}, []
    for split, number in (("train", train), ("t10k", held_out)):
        pixels, labels = rng.integers(0, 256, number * side * side).tolist(), rng.integers(0, 10, number).tolist()
        files[f"{split}-images-idx3-ubyte"] = struct.pack(">IIII", 0x803, number, side, side) + bytes(pixels)
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
        [(data.train, data.train_labels), (data.held_out, data.held_out_labels)], truth, strict=True
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
        ({"t10k_labels_idx1_ubyte": header(0x801, 3) + bytes(2)}, "t10k-labels.* holds 2 bytes of values, but its header says 3"),
        ({"train_images_idx3_ubyte": header(0x803, 7, 28, 28) + bytes(9)}, "holds 9 bytes .* says 7 x 28 x 28"),
        ({"train_labels_idx1_ubyte": header(0x801, 6) + bytes(6)}, r"holds 7 images, but .*train-labels-idx1-ubyte 6 labels"),
        ({"t10k_images_idx3_ubyte": header(0x803, 3, 8, 8) + bytes(192)}, r"\[28, 28\], those of .* \[8, 8\]"),
        ({"t10k_images_idx3_ubyte": header(0x803, 0, 28, 28)}, "is empty"),
    ],
)
def test_idx_that_does_not_fit(tmp_path, instead, words):
    write_mnist(tmp_path, **instead)
    with pytest.raises(ValueError, match=words):
        sources.idx(str(tmp_path))


def test_idx_that_is_missing(tmp_path):
    write_mnist(tmp_path, train_labels_idx1_ubyte=None, t10k_images_idx3_ubyte=None)
    with pytest.raises(FileNotFoundError, match="lacks train-labels-idx1-ubyte, t10k-images-idx3-ubyte "):
        sources.idx(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"lacks train-images-idx3-ubyte, .* must be a folder"):
        sources.idx(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-30], lambda data: b"plain", lambda data: data[:20] + b"zzzz" + data[24:], lambda data: b""]
)
def test_idx_whose_compression_is_damaged(tmp_path, damage):
    write_mnist(tmp_path)
    file = tmp_path / NAMES[0]
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(damage(gzip.compress(file.read_bytes())))
    file.unlink()
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz (cannot be decompressed|begins with nothing)"):
        sources.idx(str(tmp_path))
