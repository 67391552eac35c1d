"""Sets of images in folders, archives and arrays."""

import errno
import io
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from score_jax.data import image_sets
from score_jax.data.files import ImageTransform, UnreadableImageError
from score_jax.data.image_sets import read_images

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), np.uint8)


def png(image):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x" / "deep").mkdir(parents=True)
    for i, image in enumerate(IMAGES):
        place = tmp_path / "x" / "deep" if i > 2 else tmp_path / "x"
        (place / f"{'z' if i > 2 else 'a'}{i}.PNG").write_bytes(png(image))
    (tmp_path / "x" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "x" / "readme.txt").write_text("no image")
    return tmp_path / "x"


def test_a_folder_is_searched_in_the_order_of_names(folder):
    found = read_images(folder)
    assert (found.shape, found.dtype) == (IMAGES.shape, np.uint8)
    np.testing.assert_array_equal(found[:], IMAGES)
    grey = read_images(folder, ImageTransform(size=4, channels=1))
    assert grey.shape == (5, 4, 4, 1)


def test_a_read_that_fails_once_is_repeated(folder, monkeypatch):
    failing = [OSError(errno.EIO, "Input/output error")]

    def read(path):
        if failing:
            raise failing.pop()
        return path.read_bytes()

    monkeypatch.setattr(image_sets, "read_regular", read)
    np.testing.assert_array_equal(read_images(folder)[:], IMAGES)
    assert not failing


def test_an_archive_is_read_without_unpacking(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("__MACOSX/a0.png", b"no image")
        for i, image in enumerate(IMAGES):
            archive.writestr(f"some/where/{i}.png", png(image))
    np.testing.assert_array_equal(read_images(tmp_path / "x.zip")[:], IMAGES)


@pytest.mark.parametrize("name", ["samples", "images", "x", "arr_0", "anything"])
def test_an_array_is_found_by_its_name_or_alone(tmp_path, name):
    others = {} if name == "anything" else {"labels": np.arange(5)}
    np.savez(tmp_path / "x.npz", **{name: IMAGES}, **others)
    np.testing.assert_array_equal(read_images(tmp_path / "x.npz"), IMAGES)
    np.save(tmp_path / "x.npy", IMAGES / np.float32(255))
    assert read_images(tmp_path / "x.npy").dtype == np.float32


def test_what_cannot_be_read_is_said(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "two.npz", a=IMAGES, b=IMAGES)
    np.savez(tmp_path / "ints.npz", np.arange(4))
    np.savez(tmp_path / "objects.npz", np.array([{}], object))
    (tmp_path / "broken.npz").write_bytes(b"PK no archive")
    (tmp_path / "text.csv").write_text("1,2")
    for name, message in {
        "empty": "holds no images",
        "two.npz": "it holds a, b: name the array of images `samples`",
        "ints.npz": "holds int64 [4], but must hold examples",
        "objects.npz": "cannot be read as arrays",
        "broken.npz": "cannot be read as arrays",
        "text.csv": "must be a folder of images, a .zip of them, or an .npz of arrays",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            read_images(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        read_images(tmp_path / "nowhere")
    (folder / "a1.PNG").write_bytes(b"damaged")
    found = read_images(folder)
    with pytest.raises(UnreadableImageError, match=r"a1\.PNG"):
        found[:]
