import errno
import shutil
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import ExifTags, Image

from score_jax.data.dataset import in_memory, split_examples
from score_jax.data.files import (
    AS_STORED,
    ImageTransform,
    UnreadableImageError,
    decode_image,
    folder,
    lazy_images,
    read_image,
    zipped,
)
from score_jax.data.retry import UnreachableError

RNG = np.random.default_rng(0)


def picture(*shape):
    return RNG.integers(0, 256, shape or (5, 6, 3), dtype=np.uint8)


def write_images(root, numbers, *shape):
    """Writes random PNGs, numbers[split][class] of each, and returns split -> (images, labels)."""
    truth = {}
    for split, classes in numbers.items():
        images, labels = [], []
        for label, (name, number) in enumerate(sorted(classes.items())):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                images.append(picture(*shape))
                labels.append(label)
                Image.fromarray(images[-1].squeeze()).save(root / split / name / f"{i:04d}.png")
        truth[split] = (np.stack(images), labels)
    return truth


def zip_folder(root, file, above="", directories=True):
    """Packs a folder, its files in reverse order."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(root.rglob("*"), reverse=True):
            if directories or path.is_file():
                archive.write(path, above + str(path.relative_to(root)))
    return str(file)


def load(path, transform=AS_STORED, train="train", held_out="test"):
    source = folder if not str(path).endswith(".zip") else zipped
    return source(str(path), train_split=train, held_out_split=held_out, transform=transform)


def assert_holds(data, truth):
    for images, labels, (true_images, true_labels) in (
        (data.train, data.train_labels, truth["train"]),
        (data.held_out, data.held_out_labels, truth["test"]),
    ):
        assert (images.shape, images.dtype) == (true_images.shape, np.uint8)
        np.testing.assert_array_equal(in_memory(images), true_images)
        np.testing.assert_array_equal(labels, true_labels)
        assert labels.dtype == np.int32
    assert (data.num_values, data.note) == (256, None)


TWO = {"train": {"cat": 3, "ant": 2}, "test": {"ant": 1, "cat": 4}}


@pytest.mark.parametrize("shape", [(5, 6, 3), (4, 4, 1)])
def test_a_folder_holds_what_was_written(tmp_path, shape):
    truth = write_images(tmp_path, TWO, *shape)
    data = load(tmp_path)
    assert_holds(data, truth)
    assert data.num_classes == 2
    np.testing.assert_array_equal(data.train[[4, 0]], truth["train"][0][[4, 0]])


def test_a_folder_without_classes_has_no_labels(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    images = [picture() for _ in range(3)]
    for image, name in zip(images, ("train/a.png", "train/b.PNG", "test/x.png"), strict=True):
        Image.fromarray(image).save(tmp_path / name)
    for path in (tmp_path, zip_folder(tmp_path, tmp_path.parent / "bare.zip")):
        data = load(path)
        np.testing.assert_array_equal(in_memory(data.train), images[:2])
        np.testing.assert_array_equal(in_memory(data.held_out), images[2:])
        assert data[3:] == (None, None, None, None)


def test_splits_may_have_any_name_and_other_splits_do_not_matter(tmp_path):
    truth = write_images(tmp_path, {"a": {"x": 2}, "b": {"x": 1}, "c": {"y": 1}})
    (tmp_path / "d" / "deeper" / "still").mkdir(parents=True)
    data = load(tmp_path, train="b", held_out="a")
    assert data.note == f"{tmp_path}: passed over 2 beside the splits (c, d)"
    assert_holds(data._replace(note=None), {"train": truth["b"], "test": truth["a"]})


def test_hidden_and_other_files_are_passed_over(tmp_path):
    truth = write_images(tmp_path, TWO)
    for name in (
        ".DS_Store",
        "train/.thumbs/x.png",
        "train/cat/._0000.png",
        "__MACOSX/train/cat/0000.png",
        "train/note.txt",
        "test/cat/Thumbs.db",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("no image")
    for path in (tmp_path, zip_folder(tmp_path, tmp_path.parent / "hidden.zip")):
        data = load(path)
        assert data.note.startswith(f"{path}: passed over 4 hidden or an archiver's own (")
        assert data.note.endswith(", 2 not .png, .jpg or .jpeg (Thumbs.db, note.txt)")
        assert_holds(data._replace(note=None), truth)


def test_jpegs_of_either_spelling_are_read(tmp_path):
    for i, name in enumerate(("train/a.jpg", "train/b.JPEG", "test/c.jpeg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / name, format="JPEG")
    data = load(tmp_path)
    np.testing.assert_array_equal(in_memory(data.train)[:, 0, 0, 0], [0, 40])
    np.testing.assert_array_equal(in_memory(data.held_out)[:, 0, 0, 0], [80])


@pytest.mark.parametrize(
    ("above", "directories"), [("", True), ("", False), ("my data/", True), ("my data/", False)]
)
def test_a_zip_holds_what_its_folder_does(tmp_path, above, directories):
    truth = write_images(tmp_path / "files", TWO)
    assert_holds(
        load(zip_folder(tmp_path / "files", tmp_path / "x.zip", above, directories)), truth
    )


def test_several_zips_hold_together_what_a_folder_does(tmp_path, monkeypatch):
    truth = write_images(tmp_path / "files", TWO)
    parts = {
        "set_1": ["train/cat/0000", "test/cat", "test/ant"],
        "set_2": ["train/cat/0001", "train/cat/0002", "train/ant"],
    }
    for name, begins in parts.items():
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for path in (tmp_path / "files").rglob("*.png"):
                inside = str(path.relative_to(tmp_path / "files"))
                if inside.startswith(tuple(begins)):
                    archive.write(path, f"{name}/{inside}")
    shutil.rmtree(tmp_path / "files")
    assert_holds(load(tmp_path / "set_*.zip"), truth)
    assert_holds(load(f"{tmp_path}/set_2.zip, {tmp_path}/set_1.zip"), truth)
    monkeypatch.chdir(tmp_path)
    assert_holds(load("set_1.zip,set_?.zip"), truth)


def write_unsplit(root, classes, number):
    """Writes random PNGs, `number` of each class; returns class -> images."""
    truth = {}
    for name in classes:
        (root / name).mkdir(parents=True)
        truth[name] = np.stack([picture() for _ in range(number)])
        for i, image in enumerate(truth[name]):
            Image.fromarray(image).save(root / name / f"{i:04d}.png")
    return truth


def both_kinds(tmp_path, above=""):
    """The folder `photos`, and a zip archive of it."""
    return tmp_path / "photos", zip_folder(tmp_path / "photos", tmp_path / "x.zip", above)


@pytest.mark.parametrize("above", ["", "my data/"])
def test_images_without_splits_are_split_by_a_fixed_permutation(tmp_path, above):
    truth = write_unsplit(tmp_path / "photos", [""], 30)[""]
    (tmp_path / "photos" / "note.txt").write_text("no image")
    train, held_out = split_examples(30)
    for path in both_kinds(tmp_path, above):
        data = load(path)
        np.testing.assert_array_equal(in_memory(data.train), truth[train])
        np.testing.assert_array_equal(in_memory(data.held_out), truth[held_out])
        assert (len(data.held_out), data[3:6]) == (3, (None, None, None))
        assert data.note == (
            f"{path} has no folders train and test: 27 images to train on, 3 held out, chosen by "
            f"a fixed permutation; {path}: passed over 1 not .png, .jpg or .jpeg (note.txt)"
        )


@pytest.mark.parametrize("above", ["", "my data/"])
def test_classes_without_splits_are_split_class_by_class(tmp_path, above):
    truth = write_unsplit(tmp_path / "photos", ["dog", "ant"], 20)
    train, held_out = split_examples(20)
    for path in both_kinds(tmp_path, above):
        data = load(path, train="first", held_out="second")
        for images, labels, chosen in (
            (data.train, data.train_labels, train),
            (data.held_out, data.held_out_labels, held_out),
        ):
            expected = np.concatenate([truth["ant"][chosen], truth["dog"][chosen]])
            np.testing.assert_array_equal(in_memory(images), expected)
            np.testing.assert_array_equal(labels, np.repeat([0, 1], len(chosen)))
            assert labels.dtype == np.int32
        assert data.num_classes == 2
        assert data.note == (
            f"{path} has no folders first and second: 36 images to train on, 4 held out, chosen "
            "by a fixed permutation in each class (ant, dog)"
        )


def test_the_split_depends_on_the_names_and_not_on_the_order_of_the_files(tmp_path):
    truth = write_unsplit(tmp_path / "photos", [""], 12)[""]
    order = np.random.default_rng(1).permutation(12)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in order:
            archive.write(tmp_path / "photos" / f"{i:04d}.png", f"{i:04d}.png")
    for path in (tmp_path / "photos", tmp_path / "photos", tmp_path / "x.zip"):
        data = load(path)
        np.testing.assert_array_equal(in_memory(data.held_out), truth[split_examples(12)[1]])


def test_zips_made_on_windows_are_read(tmp_path):
    truth = write_images(tmp_path / "files", TWO)
    for above in ("", "my data\\"):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for path in (tmp_path / "files").rglob("*.png"):
                inside = str(path.relative_to(tmp_path / "files")).replace("/", "\\")
                archive.writestr(above + inside, path.read_bytes())
        with zipfile.ZipFile(tmp_path / "x.zip") as archive:
            assert above + "train\\cat\\0000.png" in archive.namelist()
        assert_holds(load(tmp_path / "x.zip"), truth)


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    truth = write_images(tmp_path / "files", TWO)
    zip_folder(tmp_path / "files", tmp_path / "x.zip")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/files", "~/x.zip", "~/x.zip, ~/x.zip", "~/?.zip"):
        assert_holds(load(path), truth)
    with pytest.raises(FileNotFoundError, match=r"there is no file '/.*/none\.zip'"):
        load("~/x.zip, ~/none.zip")
    with pytest.raises(FileNotFoundError, match="path='~/none' is not a folder"):
        load("~/none")


def test_a_path_that_exists_is_neither_a_list_nor_a_pattern(tmp_path):
    truth = write_images(tmp_path / "files", TWO)
    (tmp_path / "a,[b]").mkdir()
    for name in ("x*.zip", "x,y.zip", "x[1].zip", "a,[b]/x.zip"):
        zip_folder(tmp_path / "files", tmp_path / name)
    (tmp_path / "x1.zip").write_text("matches x[1].zip as a pattern")
    (tmp_path / "xx.zip").write_text("matches x*.zip as a pattern")
    for name in ("x*.zip", "x,y.zip", "x[1].zip", "a,[b]/x.zip", "a,[b]/?.zip"):
        assert_holds(load(tmp_path / name), truth)
    shutil.copytree(tmp_path / "files", tmp_path / "files, [all]*")
    assert_holds(load(tmp_path / "files, [all]*"), truth)


def test_a_zip_may_be_read_by_many_threads(tmp_path):
    truth = write_images(tmp_path / "files", {"train": {"": 200}, "test": {"": 1}})["train"][0]
    data = load(zip_folder(tmp_path / "files", tmp_path / "x.zip"))
    index = RNG.integers(0, 200, (16, 100))
    with ThreadPoolExecutor(8) as pool:
        for rows, images in zip(index, pool.map(data.train.__getitem__, index), strict=True):
            np.testing.assert_array_equal(images, truth[rows])


def test_only_the_first_of_each_split_is_read_at_first(tmp_path):
    truth = write_images(tmp_path, TWO)
    files = sorted(tmp_path.rglob("*.png"))
    for file in files:
        if "ant/0000" not in str(file):
            file.write_bytes(b"")
    data = load(tmp_path)
    assert data.train.shape == truth["train"][0].shape
    np.testing.assert_array_equal(data.train[0], truth["train"][0][0])


def encoded(tmp_path, image, kind="png"):
    image.save(tmp_path / f"image.{kind}")
    return (tmp_path / f"image.{kind}").read_bytes()


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_crop_and_size_are_those_of_pillow(tmp_path, kind):
    image = Image.fromarray(picture(218, 178, 3))
    data = encoded(tmp_path, image, kind)
    stored = Image.open(tmp_path / f"image.{kind}")
    middle = stored.crop((19, 39, 159, 179))
    np.testing.assert_array_equal(decode_image(data, ImageTransform(crop=140)), np.asarray(middle))
    small = middle.resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(
        decode_image(data, ImageTransform(crop=140, size=32)), np.asarray(small)
    )
    largest = stored.crop((0, 20, 178, 198)).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(data, ImageTransform(size=64)), np.asarray(largest))
    np.testing.assert_array_equal(
        decode_image(data, ImageTransform(size=64, channels=1)).shape, (64, 64, 1)
    )
    np.testing.assert_array_equal(decode_image(data, AS_STORED), np.asarray(stored))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_images_are_turned_upright(tmp_path, kind, orientation):
    # The operation that brings an image stored with this orientation upright, from the standard.
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
        8: lambda x: np.rot90(x),
    }[orientation]
    image = Image.fromarray(picture(8, 6, 3))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / f"x.{kind}", exif=exif)
    stored = np.asarray(Image.open(tmp_path / f"x.{kind}"))
    pixels = read_image(tmp_path / f"x.{kind}", AS_STORED)
    np.testing.assert_array_equal(pixels, upright(stored))
    cropped = read_image(tmp_path / f"x.{kind}", ImageTransform(crop=4, channels=1))
    assert cropped.shape == (4, 4, 1)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_are_ignored(tmp_path):
    image = Image.fromarray(picture(8, 8, 3))
    for data in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0"):
        image.save(tmp_path / "x.jpg", exif=data)
        stored = np.asarray(Image.open(tmp_path / "x.jpg"))
        np.testing.assert_array_equal(read_image(tmp_path / "x.jpg", AS_STORED), stored)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (ImageTransform(crop=0), "crop=0 must be from 1 to 8192 pixels, or None"),
        (ImageTransform(size=-1), "size=-1 must be from 1 to 8192 pixels, or None"),
        (ImageTransform(channels=2), "channels=2 must be 1 or 3, or None"),
    ],
)
def test_transforms_that_are_out_of_range(tmp_path, transform, words):
    write_images(tmp_path / "files", TWO)
    for path in (tmp_path / "files", zip_folder(tmp_path / "files", tmp_path / "x.zip")):
        with pytest.raises(ValueError, match=words):
            load(path, transform)


def test_resizing_averages_over_what_it_leaves_out(tmp_path):
    checkers = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    small = decode_image(encoded(tmp_path, Image.fromarray(checkers)), ImageTransform(size=8))
    assert small.shape == (8, 8, 1)
    assert np.abs(small.astype(float) - 127.5).max() < 3


def test_an_image_of_the_right_size_is_not_touched(tmp_path):
    pixels = picture(32, 32, 3)
    np.testing.assert_array_equal(
        decode_image(encoded(tmp_path, Image.fromarray(pixels)), ImageTransform(crop=32, size=32)),
        pixels,
    )


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_channels_as_stored_or_as_asked_for(tmp_path, mode, channels):
    image = Image.fromarray(picture()).convert(mode)
    data = encoded(tmp_path, image)
    grey, rgb = np.asarray(image.convert("L"))[..., None], np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, ImageTransform(channels=1)), grey)
    np.testing.assert_array_equal(decode_image(data, ImageTransform(channels=3)), rgb)
    np.testing.assert_array_equal(decode_image(data, AS_STORED), grey if channels == 1 else rgb)


def test_images_of_several_sizes_and_kinds_are_made_alike(tmp_path):
    for i, shape in enumerate([(9, 8, 3), (8, 20, 3), (8, 8)]):
        for split in ("train", "test"):
            (tmp_path / split).mkdir(exist_ok=True)
            Image.fromarray(picture(*shape)).save(tmp_path / split / f"{i}.png")
    assert in_memory(load(tmp_path, ImageTransform(size=4, channels=3)).train).shape == (
        3,
        4,
        4,
        3,
    )
    data = load(tmp_path)
    with pytest.raises(
        UnreadableImageError,
        match=r"train/1\.png is \[8, 20, 3\], .* \[9, 8, 3\] .*set size and channels",
    ):
        in_memory(data.train)
    with pytest.raises(UnreadableImageError, match=r"train/2\.png is \[4, 4, 1\], .* \[4, 4, 3\]"):
        in_memory(load(tmp_path, ImageTransform(size=4)).train)
    (tmp_path / "test" / "0.png").unlink()
    with pytest.raises(UnreadableImageError, match=r"test/1\.png is \[8, 20, 3\], .* \[9, 8, 3\]"):
        load(tmp_path)


def damage_text(file):
    file.write_text("this is no image")


def damage_cut(file):
    Image.fromarray(picture(64, 64, 3)).save(file, format="JPEG")
    file.write_bytes(file.read_bytes()[:-500])


def damage_with_a_bomb(file):
    """Writes a PNG whose header claims 65535 x 65535 pixels."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    file.write_bytes(content)


def damage_sixteen_bits(file):
    Image.fromarray(np.full((5, 6), 1000, np.uint16)).save(file, format="PNG")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_text, "is no image of a known format"),
        (damage_cut, "truncated"),
        (damage_sixteen_bits, "have more than 8 bits"),
        (damage_with_a_bomb, "its header claims too many pixels: .* exceeds limit"),
        (lambda file: file.write_bytes(b""), "is no image of a known format"),
    ],
)
def test_a_damaged_image_is_named_when_it_is_read(tmp_path, damage, words):
    write_images(tmp_path / "files", TWO)
    damage(tmp_path / "files" / "train" / "cat" / "0001.png")
    zip_folder(tmp_path / "files", tmp_path / "x.zip")
    for path, name in (
        (tmp_path / "files", r"files/train/cat/0001\.png"),
        (tmp_path / "x.zip", r"x\.zip: train/cat/0001\.png"),
    ):
        data = load(path)
        data.train[[0, 1, 2, 4]]
        for read in (in_memory, lambda images: images[[3]]):
            with pytest.raises(UnreadableImageError, match=rf"{name} cannot be read \(.*{words}"):
                read(data.train)


@pytest.mark.parametrize(
    "damage", [damage_text, damage_cut, damage_with_a_bomb, damage_sixteen_bits]
)
def test_a_single_damaged_image_is_named(tmp_path, damage):
    damage(tmp_path / "x.png")
    with pytest.raises(
        UnreadableImageError, match=r"x\.png cannot be read as an image \("
    ) as caught:
        read_image(tmp_path / "x.png", AS_STORED)
    assert "\n" not in str(caught.value)


def test_a_single_image_is_read_from_home(tmp_path, monkeypatch):
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(read_image("~/x.png", AS_STORED), pixels)
    with pytest.raises(FileNotFoundError, match=r"~/y\.png is not a file: it must be an image"):
        read_image("~/y.png", AS_STORED)


def test_a_file_that_vanishes_is_named(tmp_path):
    write_images(tmp_path, TWO)
    data = load(tmp_path)
    (tmp_path / "train" / "cat" / "0001.png").unlink()
    with pytest.raises(
        UnreachableError, match=r"cat/0001\.png cannot be read \(No such file.*: check the file"
    ):
        in_memory(data.train)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), UnreachableError),
        (MemoryError(), MemoryError),
        (OSError("image file is truncated"), UnreadableImageError),
    ],
)
def test_only_an_image_that_was_read_is_called_damaged(error, kind):
    def decode(position):
        raise error

    with pytest.raises(kind):
        lazy_images(decode, str, 1)


def test_a_zip_with_a_damaged_member_names_it(tmp_path):
    write_images(tmp_path / "files", TWO)
    file = tmp_path / "x.zip"
    zip_folder(tmp_path / "files", file)
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        at = archive.getinfo("train/cat/0001.png").header_offset
    content[at + 100] ^= 255
    file.write_bytes(content)
    with pytest.raises(
        UnreadableImageError, match=r"x\.zip: train/cat/0001\.png cannot be read \(Bad CRC-32"
    ):
        in_memory(load(file).train)


def test_a_crop_that_is_larger_than_the_image(tmp_path):
    write_images(tmp_path, TWO)
    with pytest.raises(
        UnreadableImageError,
        match=r"ant/0000\.png cannot be read \(its 5 x 6 pixels are fewer than crop=7",
    ):
        load(tmp_path, ImageTransform(crop=7))


def layout(*names):
    """Returns a function that creates empty files and folders below a root."""

    def make(root):
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=True) if name.endswith("/") else path.touch()

    return make


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (
            ["train/x.png"],
            FileNotFoundError,
            r"held_out_split='test': there is no folder .*test, only train$",
        ),
        (
            ["valid/x.png", "test/x.png", "more.txt"],
            FileNotFoundError,
            "train_split='train': .* only test, valid$",
        ),
        (
            ["a.webp", "b.webp"],
            FileNotFoundError,
            r"train_split='train' and held_out_split='test': there are no such folders in .*"
            r" holds no \.png, \.jpg or \.jpeg, but a\.webp, b\.webp: add",
        ),
        (
            ["training/a/x.png", "valid/a/x.png"],
            FileNotFoundError,
            "no such folders in .*, only training, valid, and .*training/a.* lies too deep",
        ),
        (["a/x.png", "x.png"], FileNotFoundError, "no such folders .* holds both images"),
        (
            ["a/x.png", "a/y.png", "b/"],
            FileNotFoundError,
            "no such folders .*b holds no .* nothing",
        ),
        (
            ["x.png", "note.txt"],
            ValueError,
            "needs at least 2 examples to hold one out, but has 1",
        ),
        (
            ["a/x.png", "a/y.png", "b/x.png"],
            ValueError,
            "b needs at least 2 examples .* has 1: add",
        ),
        (
            ["train/", "test/x.png"],
            ValueError,
            r"train holds no \.png, \.jpg or \.jpeg, but nothing",
        ),
        (
            ["train/a.webp", "test/x.png"],
            ValueError,
            r"train holds no \.png, \.jpg or \.jpeg, but a\.webp",
        ),
        (
            ["train/a/x.png", "train/b/", "test/a/x.png"],
            ValueError,
            "train/b holds no .* but nothing: add images",
        ),
        (
            ["train/a/x.png", "test/a/x.gif", "test/a/y.gif"],
            ValueError,
            r"test/a holds no .* but x\.gif, y\.gif: add",
        ),
        (
            ["train/a/x.png", "train/x.png", "test/a/x.png"],
            ValueError,
            r"train holds both images, like x\.png, and folders, like a: put",
        ),
        (
            ["train/a/x.png", "train/a/b/x.png", "test/a/x.png"],
            ValueError,
            "train/a/b/.* lies too deep",
        ),
        (
            ["train/a/x.png", "train/b/x.png", "test/b/x.png"],
            ValueError,
            "test lacks the class a, which train has",
        ),
        (
            ["train/a/x.png", "test/a/x.png", "test/c/x.png", "test/d/x.png"],
            ValueError,
            "train lacks the classes c, d, which test has",
        ),
        (["train/a/x.png", "test/x.png"], ValueError, "test lacks classes, which train has"),
        (["train/x.png", "test/a/x.png"], ValueError, "train lacks classes, which test has"),
    ],
)
def test_layouts_that_do_not_fit(tmp_path, names, error, words):
    layout(*names)(tmp_path / "files")
    for path in (tmp_path / "files", zip_folder(tmp_path / "files", tmp_path / "x.zip")):
        with pytest.raises(error, match=words) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_path_that_leads_nowhere(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"path='.*none' is not a folder: it must hold split/class"
    ):
        load(tmp_path / "none")
    for path in (None, ""):
        with pytest.raises(FileNotFoundError, match=f"path={path!r} is not a folder"):
            folder(path)
        with pytest.raises(
            FileNotFoundError, match=f"path={path!r}: there is no file ''; path must"
        ):
            zipped(path)
    with pytest.raises(
        FileNotFoundError, match=r"there is no file '.*none\.zip'; path must name zip archives"
    ):
        load(tmp_path / "none.zip")
    write_images(tmp_path / "files", TWO)
    whole = zip_folder(tmp_path / "files", tmp_path / "x.zip")
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*y\*\.zip'"):
        load(f"{whole},{tmp_path}/y*.zip")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: b"no archive", lambda data: b""]
)
def test_a_broken_zip_is_named(tmp_path, damage):
    write_images(tmp_path / "files", TWO)
    whole = zip_folder(tmp_path / "files", tmp_path / "x.zip")
    (tmp_path / "y.zip").write_bytes(damage((tmp_path / "x.zip").read_bytes()))
    with pytest.raises(
        ValueError, match=r"y\.zip cannot be opened as a zip archive \(File is not a zip file\)"
    ):
        load(f"{whole},{tmp_path}/y.zip")
