import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from score_jax.data import prepared
from score_jax.data.dataset import in_memory
from score_jax.data.files import AS_STORED, ImageTransform, UnreadableImageError
from score_jax.data.retry import UnreachableError

NUMBERS = {"train": 20, "test": 7}


def images(split, shape=(6, 7, 3)):
    return np.random.default_rng(len(split)).integers(
        0, 256, (NUMBERS[split], *shape), dtype=np.uint8
    )


class PreparedBuilder(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features.FeaturesDict(self.features())
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in NUMBERS}

    def _generate_examples(self, split):
        yield from enumerate(self.examples(split))


class TinyColors(PreparedBuilder):
    def features(self):
        return {
            "image": tensorflow_datasets.features.Image(shape=(6, 7, 3)),
            "label": tensorflow_datasets.features.ClassLabel(num_classes=5),
            "number": tensorflow_datasets.features.Scalar(np.int64),
        }

    def examples(self, split):
        return [
            {"image": Image.fromarray(x), "label": i % 5, "number": i}
            for i, x in enumerate(images(split))
        ]


class TinyGreys(PreparedBuilder):
    def features(self):
        return {
            "image": tensorflow_datasets.features.Image(shape=(4, 4, 1)),
            "attributes": {"smiling": np.bool_},
        }

    def examples(self, split):
        greys = images(split, (4, 4))
        return [{"image": Image.fromarray(x), "attributes": {"smiling": True}} for x in greys]


class TinyUnlabeled(TinyColors):
    def examples(self, split):
        return [
            {**example, "label": -1 if split == "test" else 0}
            for example in super().examples(split)
        ]


class TinyWords(PreparedBuilder):
    def features(self):
        return {"words": tensorflow_datasets.features.Text()}

    def examples(self, split):
        return [{"words": str(i)} for i in range(NUMBERS[split])]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tensorflow_datasets"))
    for builder in (TinyColors, TinyGreys, TinyUnlabeled, TinyWords):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def load(name, data_dir, transform=AS_STORED, train="train", held_out="test", **options):
    return prepared.tfds(
        name, data_dir, train_split=train, held_out_split=held_out, transform=transform, **options
    )


def in_any_order(stored, *truths):
    """The order in which truths are stored: a preparation shuffles."""
    order = [
        next(i for i, true in enumerate(truths[0]) if np.array_equal(true, one)) for one in stored
    ]
    assert sorted(order) == list(range(len(truths[0])))
    return np.array(order)


def test_images_and_labels_are_those_that_were_prepared(data_dir):
    data = load("tiny_colors", data_dir)
    assert (data.train.shape, data.train.dtype, data.num_values, data.num_classes) == (
        (20, 6, 7, 3),
        np.uint8,
        256,
        5,
    )
    for split, stored, labels in (
        ("train", data.train, data.train_labels),
        ("test", data.held_out, data.held_out_labels),
    ):
        order = in_any_order(in_memory(stored), images(split))
        np.testing.assert_array_equal(labels, order % 5)
        assert labels.dtype == np.int32


def test_images_are_those_of_the_library_itself(data_dir):
    source = tensorflow_datasets.data_source(
        "tiny_colors", split="train", data_dir=data_dir, download=False
    )
    data = load("tiny_colors", data_dir)
    np.testing.assert_array_equal(in_memory(data.train), [record["image"] for record in source])
    np.testing.assert_array_equal(data.train_labels, [record["label"] for record in source])


def test_grey_images_without_labels(data_dir):
    data = load("tiny_greys", data_dir)
    assert data[3:] == (None, None, None, None)
    in_any_order(in_memory(data.train), images("train", (4, 4))[..., None])
    assert load("tiny_greys", data_dir, ImageTransform(channels=3)).train.shape == (20, 4, 4, 3)


def test_examples_without_a_class_make_a_data_set_without_labels(data_dir):
    assert load("tiny_unlabeled", data_dir, held_out="train").num_classes == 5
    assert load("tiny_unlabeled", data_dir)[3:] == (None, None, None, None)


def test_labels_need_not_be_read(data_dir):
    assert load("tiny_colors", data_dir, labels=False)[3:] == (None, None, None, None)


def test_splits_may_be_parts(data_dir):
    whole = load("tiny_colors", data_dir)
    parts = load("tiny_colors:1.0.0", data_dir, train="train[:90%]", held_out="train[90%:]")
    assert (len(parts.train), len(parts.held_out)) == (18, 2)
    np.testing.assert_array_equal(in_memory(parts.train), whole.train[:18])
    np.testing.assert_array_equal(in_memory(parts.held_out), whole.train[18:])
    np.testing.assert_array_equal(parts.held_out_labels, whole.train_labels[18:])


def test_images_are_transformed_as_files_are(data_dir):
    whole = load("tiny_colors", data_dir).train[3]
    data = load("tiny_colors", data_dir, ImageTransform(crop=5, size=3, channels=1))
    truth = (
        Image.fromarray(whole)
        .convert("L")
        .crop((1, 0, 6, 5))
        .resize((3, 3), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(data.train[3], np.asarray(truth)[..., None])
    with pytest.raises(
        UnreadableImageError,
        match=r"tiny_colors: train, record 0 cannot be read \(its 6 x 7 pixels",
    ):
        load("tiny_colors", data_dir, ImageTransform(crop=50))


def test_many_threads_may_read(data_dir):
    data = load("tiny_colors", data_dir)
    truth, index = in_memory(data.train), np.random.default_rng(0).integers(0, 20, (16, 50))
    with ThreadPoolExecutor(8) as pool:
        for rows, stored in zip(index, pool.map(data.train.__getitem__, index), strict=True):
            np.testing.assert_array_equal(stored, truth[rows])


def test_a_damaged_record_is_named(data_dir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    (file,) = (copy / "tiny_colors").rglob("*train.array_record*")
    content = bytearray(file.read_bytes())
    content[content.rindex(b"IDAT") + 20] ^= 255
    file.write_bytes(content)
    with pytest.raises(
        UnreadableImageError, match=r"tiny_colors: train cannot be read \(.*\): prepare it again"
    ):
        load("tiny_colors", str(copy))
    with pytest.raises(
        UnreadableImageError, match=r"tiny_colors: train, record \d+ cannot be read \("
    ):
        in_memory(load("tiny_colors", str(copy), labels=False).train)


def test_a_read_that_fails_once_is_repeated(data_dir, monkeypatch):
    data = load("tiny_colors", data_dir)
    expected, opened = in_memory(data.train), prepared._opened_records
    reasons = ["pread() failed: Input/output error; reading x; at byte 0", "Invalid hash of chunk"]

    class Failing:
        def __init__(self, *arguments):
            self.records = opened(*arguments)

        def __len__(self):
            return len(self.records)

        def __getitem__(self, position):
            if position == 3 and reasons:
                raise RuntimeError(reasons.pop(0))
            return self.records[position]

    monkeypatch.setattr(prepared, "_opened_records", Failing)
    data = load("tiny_colors", data_dir, labels=False)
    with pytest.raises(UnreadableImageError, match=r"record 3 cannot be read \(Invalid hash"):
        data.train[3]
    np.testing.assert_array_equal(in_memory(data.train), expected)
    reasons += ["open() failed: Permission denied; reading x"]
    with pytest.raises(UnreachableError, match=r"record 3 cannot be read \(Permission denied\)"):
        data.train[3]


def test_a_data_set_that_is_not_prepared(tmp_path):
    command = f"tfds build cifar10 --file_format=array_record --data_dir={tmp_path}"
    with pytest.raises(FileNotFoundError, match=rf"cifar10 is not prepared in .*, {command}$"):
        load("cifar10", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_command_that_prepares_a_data_set_can_be_pasted(tmp_path):
    folder = str(tmp_path / "my data")
    with pytest.raises(FileNotFoundError) as caught:
        load("cifar10", folder)
    command = str(caught.value).partition("TensorFlow is installed, ")[2]
    assert shlex.split(command)[-1] == f"--data_dir={folder}"


@pytest.mark.parametrize("path", [None, ""])
def test_the_usual_place_is_that_of_the_library(data_dir, monkeypatch, path):
    usual = tensorflow_datasets.core.constants
    monkeypatch.setattr(usual, "DATA_DIR", data_dir)
    assert load("tiny_colors", path).train.shape == (20, 6, 7, 3)


def test_a_path_may_begin_at_home(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(data_dir).parent))
    assert load("tiny_colors", f"~/{Path(data_dir).name}").train.shape == (20, 6, 7, 3)


def test_transforms_that_are_out_of_range(data_dir):
    with pytest.raises(ValueError, match="size=0 must be from 1 to 8192 pixels, or None"):
        load("tiny_colors", data_dir, ImageTransform(size=0))


def test_a_data_set_that_is_prepared_in_another_format(data_dir, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"prepared as tfrecord only in .* tfds build tiny_colors --file_format=array_record",
    ):
        load("tiny_colors", in_other_format(data_dir, tmp_path))


def in_other_format(data_dir, tmp_path):
    folder = tmp_path / "tiny_colors" / "1.0.0"
    folder.mkdir(parents=True)
    for file in Path(data_dir, "tiny_colors", "1.0.0").glob("*.json"):
        (folder / file.name).write_text(file.read_text().replace('"array_record"', '"tfrecord"'))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "cifer10",
            "^name='cifer10' is not known to .*: similar names are cifar10, .*; in .* there is "
            "tiny_colors, tiny_greys",
        ),
        ("tiny_color", "similar names are tiny_colors"),
        (
            "lsun/bathtub",
            r"name='lsun/bathtub' cannot be opened by .* \(BuilderConfig bathtub not found .*\): "
            r"there is .*lsun/bedroom, ",
        ),
        ("cifar10:9.9.9", "cannot be loaded at version 9.9.9"),
        ("", "name='' must be that of a data set, such as 'cifar10'"),
        (None, "name=None must be that of a data set"),
        ("tiny_words", r"'tiny_words' .* has no 8-bit image, but the features words \(Text\)"),
    ],
)
def test_names_that_do_not_fit(data_dir, name, words):
    with pytest.raises(ValueError, match=words) as caught:
        load(name, data_dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (
            {"train": "training"},
            r"^train_split='training' cannot be read \(.*: there is train \(20 examples\), "
            r"test \(7 examples\), and",
        ),
        ({"held_out": "test[:x]"}, r"held_out_split='test\[:x\]' cannot be read"),
        ({"held_out": "test[50:]"}, r"there is train \(20 examples\), test \(7 examples\)"),
        ({"held_out": "test[:0]"}, r"there is train \(20 examples\), test \(7 examples\)"),
        ({"held_out": ""}, "held_out_split='' cannot be read"),
    ],
)
def test_splits_that_do_not_fit(data_dir, splits, words):
    with pytest.raises(ValueError, match=words) as caught:
        load("tiny_colors", data_dir, **splits)
    assert "\n" not in str(caught.value)
