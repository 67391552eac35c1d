"""Bad input of every kind: the right reading, or one sentence with exit code 2 and no compilation.

REFUSED and READ are tables, one row per input; each row is a function that makes the input.
"""

import gzip
import io
import json
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from score_jax import exported, reading
from score_jax.cli import check_sampler, masks, switches, workdir
from score_jax.cli.flags import parse
from score_jax.cli.main import main
from score_jax.data import files, image_sets, sources
from score_jax.data.dataset import in_memory
from score_jax.reading import listed


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained run, which these tests do not change."""
    return runs.finished_perceptron(tmp_path_factory)


@pytest.fixture
def no_compilation(monkeypatch):
    """Fails the test if a program is compiled ahead of its run, as training and sampling do."""

    def fail(*arguments, **more):
        raise AssertionError("compiled before the input was refused")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    monkeypatch.setattr(jax, "pmap", fail)


# Contents of bad inputs


def npy(array):
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def claiming(shape, descr="<f4", stored=b"few"):
    """The bytes of an .npy file whose header claims a shape."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + stored


def png(size=8, mode="RGB", value=0):
    """The bytes of a PNG file of one colour."""
    file = io.BytesIO()
    Image.new(mode, (size, size), value).save(file, "PNG")
    return file.getvalue()


def noise(size=16):
    """The bytes of a PNG file that does not compress."""
    x = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(x).save(file, "PNG")
    return file.getvalue()


def png_halves(size, white=255, alpha=None):
    """A mask whose upper half is white, or opaque."""
    x = np.zeros((size, size), np.uint8)
    x[: size // 2] = white
    layers = [x] if alpha is None else [x, x, x, np.where(x > 0, 255, alpha).astype(np.uint8)]
    file = io.BytesIO()
    Image.fromarray(np.dstack(layers) if alpha is not None else x).save(file, "PNG")
    return file.getvalue()


def png_claiming(side):
    """A PNG of a few bytes whose header claims a size."""
    whole = png()
    head = b"IHDR" + struct.pack(">II", side, side) + whole[24:29]
    checked = head + struct.pack(">I", zlib.crc32(head))
    return whole[:12] + checked + whole[33:]


def write(path, content):
    """Writes a file and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    """Writes a zip archive of (name, content), in which names can occur twice."""
    with zipfile.ZipFile(path, "w", compression) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that occurs twice
        for name, content in members:
            member = zipfile.ZipInfo("x")
            member.filename, member.compress_type = name, compression
            opened.writestr(member, content)
    return path


def images(prefix="", names=("train/a/0", "train/b/0", "test/a/0", "test/b/0")):
    """Members of an archive of images in two classes."""
    return [(f"{prefix}{name}.png", png(value=i)) for i, name in enumerate(names)]


def patched(path, field, value):
    """Overwrites one field of four bytes in the central directory entry and the local header."""
    data = bytearray(path.read_bytes())
    central = data.find(b"PK\x01\x02")
    offsets = {"size": (24, 22), "flags": (8, 6)}[field]
    for start, offset in ((central, offsets[0]), (0, offsets[1])):
        width = 4 if field == "size" else 2
        data[start + offset : start + offset + width] = value.to_bytes(width, "little")
    path.write_bytes(data)
    return path


def pipe(path):
    """A named pipe that nobody writes to."""
    os.mkfifo(path)
    return path


def bound_socket(path):
    """A socket in the file system."""
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))
    return path


def from_npz(path):
    """The command that trains on an .npz file."""
    return data("npz", path)


def data(source, path, *more):
    """The command that trains on data of a source."""
    plain = ("labels=false", "label_dropout=0", *more)
    return [f"--config.data.source={source}", f"--config.data.path={path}"] + [
        f"--config.data.{setting}" for setting in plain
    ]


def npz_of(place, **arrays):
    """The command that trains on an .npz file of arrays."""
    np.savez(place / "x.npz", **arrays)
    return from_npz(place / "x.npz")


def folder_of(place, content, *more):
    """The command that trains on a folder with one odd image."""
    for i in range(3):
        write(place / "photos" / f"{i}.png", png())
    if content is None:
        pipe(place / "photos" / "odd.png")
    else:
        write(place / "photos" / "odd.png", content)
    return data("folder", place / "photos", *more)


def zip_of(place, members):
    """The command that trains on an archive."""
    return data("zip", archive(place / "x.zip", members))


def labelled(place, label):
    """The command that trains on examples of this label."""
    train = np.zeros((8, 8, 8, 1), np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1, 0, label])
    np.savez(place / "x.npz", train=train, train_labels=labels)
    return ["--config.data.source=npz", f"--config.data.path={place / 'x.npz'}"]


def idx(place, **changed):
    """The command that trains on idx files, gzipped, with some of them changed."""
    for name in sources.IDX_FILES:
        number = 3 if "images" in name else 1
        shape = (4, 8, 8)[:number]
        content = bytes((0, 0, 8, number)) + struct.pack(f">{number}I", *shape)
        content += bytes(int(np.prod(shape)))
        if name.startswith(changed.get("of", "-")):
            content = changed["content"]
        write(place / f"{name}.gz", gzip.compress(content))
    return data("idx", place)


def saved_config(place, content):
    """The command that samples from a workdir with this config.json."""
    write(place / "run" / "config.json", content)
    return ["--mode=sample"]


def config_with(**settings):
    """The JSON of a config with some settings changed."""
    return json.dumps(runs.perceptron(**settings)).encode()


def imported(place, **arrays):
    """The command that imports arrays as an official checkpoint."""
    np.savez(place / "official.npz", **arrays)
    return ["--mode=import", f"--checkpoint={place / 'official.npz'}"]


def judged(path):
    """The command that judges samples of a file."""
    return ["--mode=metrics", "--features=pixels", f"--samples={path}"]


ZEROS = np.zeros((8, 8, 8, 1), np.uint8)
LONG = "n" * 300

REFUSED = {
    # Arrays
    "npy header of 78 TB": (
        lambda p: from_npz(write(p / "x.npy", claiming((10**9, 140, 140)))),
        r"header claims 78\.4 TB",
    ),
    "npz member whose header claims 78 TB": (
        lambda p: from_npz(archive(p / "x.npz", [("train.npy", claiming((10**9, 140, 140)))])),
        r"train: its header claims 78\.4 TB",
    ),
    "npz member that claims 4 GB of a few bytes": (
        lambda p: from_npz(
            patched(archive(p / "x.npz", [("train.npy", npy(ZEROS))]), "size", 2**32 - 2)
        ),
        r"claims 4\.29 GB, more than \d+ compressed bytes can expand to",
    ),
    "negative shape": (
        lambda p: from_npz(write(p / "x.npy", claiming((-1, 8, 8, 1)))),
        "claims the shape",
    ),
    "objects in an npz": (
        lambda p: npz_of(p, train=np.array([print, len], object)),
        "pickles run code",
    ),
    "a pickle as npy": (
        lambda p: from_npz(write(p / "x.npy", pickle.dumps([1]))),
        "cannot be read as an",
    ),
    "structured array": (
        lambda p: npz_of(p, train=np.zeros(8, [("a", "f4"), ("b", "u1")])),
        "must be uint8 pixels",
    ),
    "array without axes": (lambda p: npz_of(p, train=np.float32(1)), "must be uint8 pixels"),
    "encrypted npz": (
        lambda p: from_npz(patched(archive(p / "x.npz", [("train.npy", npy(ZEROS))]), "flags", 1)),
        "it is encrypted",
    ),
    "truncated npz": (
        lambda p: from_npz(write(p / "x.npz", b"PK\x03\x04 and no more")),
        "cannot be read",
    ),
    "label 2**40": (lambda p: labelled(p, 2**40), "classes count from 0 to 999999"),
    "label 2**31 - 2": (lambda p: labelled(p, 2**31 - 2), "number them anew"),
    "negative label": (lambda p: labelled(p, -1), "runs from -1 to 1"),
    "fractional label": (lambda p: labelled(p, 0.5), "must be integers"),
    "idx that expands beyond its header": (
        lambda p: idx(p, of="t10k-labels", content=bytes((0, 0, 8, 1, 0, 0, 0, 4)) + bytes(10**6)),
        "holds 5 bytes of values, but its header says 4",
    ),
    "idx whose header claims 2**96 bytes": (
        lambda p: idx(p, of="train-images", content=bytes((0, 0, 8, 3)) + b"\xff" * 12),
        "compressed bytes can expand to",
    ),
    "idx that ends early": (
        lambda p: idx(p, of="train-images", content=bytes((0, 0, 8, 3, 0))),
        "ends within its header",
    ),
    # Special files and paths
    "a pipe as data": (lambda p: from_npz(pipe(p / "x.npz")), "is not a file"),
    "a device as data": (lambda p: from_npz("/dev/zero"), "is not a file"),
    "a socket as data": (lambda p: from_npz(bound_socket(p / "x.npz")), "is not a file"),
    "a folder as npz": (lambda p: from_npz(p), "is not a file"),
    "a path relative to another folder": (
        lambda p: from_npz("no/such.npz"),
        r"config\.data\.path='no/such\.npz' is not a file in the current folder, /",
    ),
    "the home of nobody": (lambda p: from_npz("~nobody_here/x.npz"), "is not a file"),
    "a workdir at the home of nobody": (
        lambda p: ["--mode=sample", "--workdir=~nobody_here/run"],
        "holds no checkpoint",
    ),
    "a path of 300 letters": (lambda p: from_npz(LONG), "is not a file"),
    "a workdir of 300 letters": (
        lambda p: ["--mode=sample", f"--workdir={p / LONG}"],
        "name too long",
    ),
    "a path with a NUL byte": (
        lambda p: saved_config(p, config_with(data__path="a\0b", data__source="npz")),
        "holds no checkpoint",
    ),
    # Archives and images
    "absolute paths in a zip": (
        lambda p: zip_of(p, images("/")),
        r"4 with a path that leaves the archive \(/test",
    ),
    "paths with .. in a zip": (
        lambda p: zip_of(p, images("../")),
        "4 with a path that leaves the archive",
    ),
    "drives in a zip": (lambda p: zip_of(p, images("C:\\")), "4 with a path that leaves"),
    "an encrypted zip": (
        lambda p: data("zip", patched(archive(p / "x.zip", images(names="ab")), "flags", 1)),
        "it is encrypted",
    ),
    "a zip of zips": (
        lambda p: zip_of(p, [("inner.zip", archive(p / "i.zip", images()).read_bytes())]),
        r"holds no \.png, \.jpg or \.jpeg, but inner\.zip",
    ),
    "a zip member that claims 4 GB": (
        lambda p: data(
            "zip", patched(archive(p / "x.zip", images(names="ab")), "size", 2**32 - 2)
        ),
        r"claims 4\.29 GB",
    ),
    "a zip that is none": (
        lambda p: data("zip", write(p / "x.zip", b"no zip")),
        "cannot be opened as a zip archive",
    ),
    "a list of zips of which one is missing": (
        lambda p: data("zip", f"{archive(p / 'x.zip', images())},{p / 'y.zip'}"),
        "there is no file",
    ),
    "a pipe among images": (lambda p: folder_of(p, None), "it is a named pipe"),
    "an image of 60000 x 60000": (
        lambda p: folder_of(p, png_claiming(60_000)),
        "its header claims too many pixels",
    ),
    "a truncated image": (lambda p: folder_of(p, noise()[:200]), r"odd\.png cannot be read"),
    "PostScript as an image": (
        lambda p: folder_of(p, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"),
        "no image of a known format",
    ),
    "an image of 16 bits": (
        lambda p: folder_of(p, png(mode="I;16")),
        "have more than 8 bits",
    ),
    "images to be resized to 65536": (
        lambda p: folder_of(p, png(), "size=65536"),
        r"config\.data\.size=65536 must be",
    ),
    # Checkpoints of others
    "a checkpoint with NaN": (
        lambda p: imported(p, **{"begin_conv.weight": np.full((4, 1, 3, 3), np.nan)}),
        "'begin_conv.weight' contains NaN or infinite values",
    ),
    "a checkpoint of something else": (lambda p: imported(p, weight=np.ones(3)), "begin_conv"),
    "a checkpoint of objects": (
        lambda p: imported(p, **{"begin_conv.weight": np.array([print], object)}),
        "pickles run code",
    ),
    "a folder as checkpoint": (
        lambda p: ["--mode=import", f"--checkpoint={p}"],
        "--checkpoint=.* is not a file",
    ),
    "a device as checkpoint": (
        lambda p: ["--mode=import", "--checkpoint=/dev/zero"],
        "is not a file",
    ),
    # Config files and JSON of another shape
    "config.json of a list": (lambda p: saved_config(p, b"[1, 2]"), "must hold a JSON object"),
    "config.json of null": (lambda p: saved_config(p, b"null"), "must hold a JSON object"),
    "config.json in UTF-16": (
        lambda p: saved_config(p, config_with().decode().encode("utf-16")),
        "is not valid JSON",
    ),
    "an empty config.json": (lambda p: saved_config(p, b""), "is not valid JSON"),
    "config.json nested 100,000 deep": (
        lambda p: saved_config(p, b"[" * 100_000),
        "is not valid JSON",
    ),
    "a key twice in config.json": (
        lambda p: saved_config(p, b'{"seed": 1, "seed": 2}'),
        "'seed' occurs twice",
    ),
    "a section of config.json that is a list": (
        lambda p: saved_config(p, b'{"seed": 1, "noise": [1]}'),
        "noise",
    ),
    "a number of 400 digits in config.json": (
        lambda p: saved_config(p, config_with(optim__learning_rate=10**400)),
        "learning_rate",
    ),
    "infinity in config.json": (
        lambda p: saved_config(p, config_with(noise__sigma_max=float("inf"))),
        "sigma_max",
    ),
    "a folder as config.json": (
        lambda p: [(p / "run" / "config.json").mkdir(parents=True), ["--mode=sample"]][1],
        "it is a folder, not a regular file",
    ),
    "a pipe as config.json": (
        lambda p: [(p / "run").mkdir(), pipe(p / "run" / "config.json"), ["--mode=sample"]][2],
        "it is a named pipe, not a regular file",
    ),
    "a config that is no Python": (
        lambda p: [f"--config={write(p / 'c.py', bytes(9))}"],
        "cannot be loaded",
    ),
    "a device as config": (lambda p: ["--config=/dev/zero"], "neither a Python file"),
    # Samples, references and weights
    "a pipe as samples": (lambda p: judged(pipe(p / "x.npz")), "neither a file nor a folder"),
    "samples whose header claims 78 TB": (
        lambda p: judged(write(p / "x.npy", claiming((10**9, 140, 140)))),
        r"header claims 78\.4 TB",
    ),
    "samples with .. in a zip": (
        lambda p: judged(archive(p / "x.zip", images("../"))),
        "holds no images",
    ),
    "a folder as weights": (
        lambda p: ["--mode=stats", "--features=inception", f"--weights={p}", "--reference=/none"],
        "/none is not there",
    ),
}
"""Name -> (place) -> arguments of the command, and a pattern of the sentence."""

ON_A_RUN = {
    "a pipe as image": (lambda p: ["--mode=inpaint", f"--image={pipe(p / 'x.png')}"], "is not a"),
    "a folder as image": (lambda p: ["--mode=inpaint", f"--image={p}"], "is not a file"),
    "an image of 60000 x 60000 to complete": (
        lambda p: ["--mode=inpaint", f"--image={write(p / 'x.png', png_claiming(60_000))}"],
        "claims too many pixels",
    ),
    "images of which one is missing": (
        lambda p: ["--mode=inpaint", f"--image={write(p / 'x.png', png())},{p}/y.png"],
        "y.png is not a file",
    ),
    "a pipe as mask": (lambda p: ["--mode=inpaint", f"--mask={pipe(p / 'm.png')}"], "neither a"),
    "a mask of white": (
        lambda p: ["--mode=inpaint", f"--mask={write(p / 'm.png', png(value=(255,) * 3))}"],
        "leaves nothing to complete",
    ),
    "a mask of another size": (
        lambda p: [
            "--mode=inpaint",
            f"--mask={write(p / 'm.png', png_halves(9))}",
            f"--image={write(p / 'x.png', png())}",
        ],
        r"m\.png is 9x9, but --image=.* is 8x8",
    ),
}
"""The same on a trained run."""


def refused(capsys, place, arguments, words):
    """Asserts that the command ends with one sentence."""
    own = [] if any("--workdir" in each for each in arguments) else [f"--workdir={place / 'run'}"]
    assert main([*own, "--cache=", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("score-jax: ")
    assert said.count("\n") == 1, said
    assert re.search(words, said), said


@pytest.mark.parametrize(("arguments", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_one_sentence(capsys, tmp_path, no_compilation, arguments, words):
    refused(capsys, tmp_path, arguments(tmp_path), words)


@pytest.mark.parametrize(("arguments", "words"), ON_A_RUN.values(), ids=ON_A_RUN)
def test_bad_files_for_a_trained_run(capsys, tmp_path, trained, no_compilation, arguments, words):
    refused(capsys, tmp_path, [f"--workdir={trained}", *arguments(tmp_path)], words)


# Inputs that are read


def opened(place, members, compression=zipfile.ZIP_STORED):
    """Classes, training images and note of an archive."""
    found = files.zipped(archive(place / "x.zip", members, compression))
    return found.num_classes, in_memory(found.train)[:, 0, 0, 0].tolist(), found.note


def first_image(place, content):
    """One image as it is read, [height, width, channels]."""
    return files.read_image(write(place / "x.png", content), files.AS_STORED)


def known(place, content):
    """Share of known pixels of the upper and of the lower half of a mask of 8x8."""
    mask = masks.read_mask(str(write(place / "m.png", content)), (8, 8, 1))
    return [float(half.mean()) for half in np.split(mask, 2)]


def turned():
    """A portrait whose upper half is white, stored lying on its side."""
    x = np.zeros((24, 16, 3), np.uint8)
    x[:12] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    turn = Image.Transpose.ROTATE_90
    Image.fromarray(x).transpose(turn).save(file, "PNG", exif=exif)
    return file.getvalue()


def palette():
    """An image of one colour stored with a palette."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).convert("P").save(file, "PNG")
    return file.getvalue()


def stored(place, array, name="x.npy"):
    """Examples of an .npy file in a folder of this name."""
    path = write(place / name, npy(array))
    found = sources.npz(path)
    return len(found.train) + len(found.held_out), found.train.dtype


def home_of(place, monkeypatch, name):
    """Writes examples into the home folder and reads them by `~`."""
    monkeypatch.setenv("HOME", str(place))
    return stored(place, ZEROS, name) and len(sources.npz(f"~/{name}").train)


COMMAS = "a, b,c"
ODD = "\u00e9 \udcff (1) 'x'"

READ = {
    "names that begin with ./": (
        lambda p: opened(p, images("./")),
        (2, [0, 1], None),
    ),
    "backslashes": (lambda p: opened(p, images("data\\")), (2, [0, 1], None)),
    "a name that occurs twice": (
        lambda p: opened(p, [*images(), ("train/a/0.png", png(value=9))]),
        (2, [9, 1], "{p}/x.zip: passed over 1 with a name that occurs again (train/a/0.png)"),
    ),
    "foreign and hidden members": (
        lambda p: opened(
            p,
            [
                *images(),
                ("train/a/Thumbs.db", b""),
                ("train/b/inner.zip", b""),
                ("__MACOSX/train/a/0.png", b""),
                ("../x.png", b""),
            ],
        ),
        (
            2,
            [0, 1],
            "{p}/x.zip: passed over 1 with a path that leaves the archive (../x.png), 1 hidden or "
            "an archiver's own (__MACOSX), 2 not .png, .jpg or .jpeg (Thumbs.db, inner.zip)",
        ),
    ),
    "foreign files among samples": (
        lambda p: (
            image_sets.read_images(
                archive(p / "x.zip", [*images(), ("train/a.txt", b""), ("/train/1.png", png())])
            ).note
        ),
        "{p}/x.zip: passed over 1 with a path that leaves the archive (/train/1.png), 1 not .png, "
        ".jpg or .jpeg (a.txt)",
    ),
    "an image turned by EXIF": (
        lambda p: (lambda x: (x.shape, x[:12].min(), x[12:].max()))(first_image(p, turned())),
        ((24, 16, 3), 255, 0),
    ),
    "an image with transparency": (
        lambda p: first_image(p, png(mode="RGBA", value=(9, 8, 7, 0)))[0, 0].tolist(),
        [9, 8, 7],
    ),
    "a palette": (lambda p: first_image(p, palette())[0, 0].tolist(), [255, 0, 0]),
    "a mask of 0 and 1": (lambda p: known(p, png_halves(8, white=1)), [1.0, 0.0]),
    "a mask that is transparent where missing": (
        lambda p: known(p, png_halves(8, alpha=0)),
        [1.0, 0.0],
    ),
    "columns first": (lambda p: stored(p, np.asfortranarray(ZEROS)), (8, np.uint8)),
    "half precision": (
        lambda p: stored(p, np.zeros((8, 2), np.float16)),
        (8, np.float32),
    ),
    "commas and spaces": (lambda p: stored(p, ZEROS, f"{COMMAS}/x,y.npy"), (8, np.uint8)),
    "bytes that are no text": (lambda p: stored(p, ZEROS, f"{ODD}/x.npy"), (8, np.uint8)),
    "a list of paths with commas": (
        lambda p: [
            write(p / COMMAS / "x.png", b""),
            listed(f"{p / COMMAS}, {p / COMMAS / 'x.png'},,{p}/none,~"),
        ][1],
        ["{p}/a, b,c", "{p}/a, b,c/x.png", "{p}/none", os.path.expanduser("~")],
    ),
    "a mark of the byte order in JSON": (
        lambda p: workdir.read_json(write(p / "x.json", b"\xef\xbb\xbf{}")),
        {},
    ),
}
"""Name -> (place) -> what is read, and the truth, in which {p} is the place."""


@pytest.mark.parametrize(("read", "truth"), READ.values(), ids=READ)
def test_odd_input_is_read_rightly(tmp_path, read, truth):
    def placed(value):
        if isinstance(value, str):
            return value.replace("{p}", str(tmp_path))
        return type(value)(map(placed, value)) if isinstance(value, list | tuple) else value

    assert read(tmp_path) == placed(truth)


@pytest.mark.parametrize("name", ["x.npy", "a, b.npy"])
def test_the_home_folder_in_a_path_of_data(tmp_path, monkeypatch, name):
    assert home_of(tmp_path, monkeypatch, name) == 7
    arguments = [f"--{flag}=~/x" for flag in ("workdir", "cache")]
    command = parse([*arguments, "--config.data.source=npz", f"--config.data.path=~/{name}"])
    assert (command.workdir, command.cache) == (tmp_path / "x", str(tmp_path / "x"))


# JAX's switches, streams, and what a sampler.zip holds


@pytest.mark.parametrize(
    ("switch", "value", "words"),
    [
        ("jax_disable_jit", True, "JAX_DISABLE_JIT=1 cannot be used here"),
        ("jax_transfer_guard_host_to_device", "disallow", "moved to the devices implicitly"),
        ("jax_numpy_dtype_promotion", "strict", "JAX_NUMPY_DTYPE_PROMOTION=strict cannot"),
    ],
)
def test_switches_of_jax_that_nothing_runs_with(switch, value, words):
    before = getattr(jax.config, switch)
    jax.config.update(switch, value)
    try:
        with pytest.raises(ValueError, match=words):
            switches.check_switches()
    finally:
        jax.config.update(switch, before)


PROCESS = """
import sys
from score_jax.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("shell", "environment", "code", "words"),
    [
        ("{run} --workdir=é/$(printf '\\377') --mode=sample", {}, 2, r"\\xe9/\\udcff"),
        ("{run} --help >&- 2>&-", {}, 0, ""),
        ("{run} --workdir=none --mode=sample >/dev/full 2>/dev/full", {}, 2, ""),
        ("{run} --help >/dev/full", {"COLUMNS": "0"}, 2, "No space left on device"),
        ("{run} --workdir=none --mode=sample", {"HOME": None, "COLUMNS": "0"}, 2, "no checkpoint"),
        ("{run} --mode=train", {"JAX_PLATFORMS": "nonsense"}, 2, "JAX_PLATFORMS=nonsense gives"),
    ],
    ids=["ASCII only", "closed streams", "full streams", "full stdout", "no home", "no platform"],
)
def test_streams_and_environments(tmp_path, shell, environment, code, words):
    """In processes of their own: no traceback, whatever the streams and the environment."""
    given = runs.environment() | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"} | environment
    given = {name: value for name, value in given.items() if value is not None}
    program = f"'{sys.executable}' -c '{PROCESS}'"
    done = subprocess.run(
        ["sh", "-c", shell.replace("{run}", program)], cwd=tmp_path, env=given, capture_output=True
    )
    said = done.stderr.decode("ascii")
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert re.search(words, said), said


def test_what_a_sampler_zip_holds_is_shown_without_running_it(tmp_path, capsys):
    program = jax.export.export(jax.jit(lambda x: x + 1))(jax.ShapeDtypeStruct((), np.float32))
    own = [
        ("sampler.bin", bytes(program.serialize())),
        ("exported.py", Path(exported.__file__).read_bytes()),
        ("sampler.json", b"{}"),
    ]
    assert check_sampler.main([str(archive(tmp_path / "good.zip", own))]) == 0
    assert capsys.readouterr().out.endswith("nothing unusual\n")

    # The commands of docs/security.md, in processes of their own. The name of the function that a
    # config would call is shown, however JSON writes it.
    page = (runs.ROOT / "docs" / "security.md").read_text()
    config = r'{"seed": 0, "model": {"name": "os\u003asystem", "width": 4}, "data": {"name": "x"}}'
    (tmp_path / "config.json").write_text(config)
    shown = []
    (tmp_path / "good.zip").rename(tmp_path / "sampler.zip")
    for block in re.findall("```bash\n(.*?)```", page, re.DOTALL):
        script = "set -e; python() { nice " + f"'{sys.executable}' " + '"$@"; }\n' + block
        done = subprocess.run(
            ["sh", "-c", script], cwd=tmp_path, env=runs.environment(), capture_output=True
        )
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout.decode())
    assert shown[0] == "[('model', 'name', 'os:system')]\n"
    assert (tmp_path / "exported_of_zip.py").read_bytes() == own[1][1]

    hostile = [
        ("sampler.bin", own[0][1]),
        ("exported.py", b"raise SystemExit('ran')"),
        ("sitecustomize.py", b"raise SystemExit('ran')"),
    ]
    assert check_sampler.main([str(archive(tmp_path / "bad.zip", hostile))]) == 1
    said = capsys.readouterr().out
    assert "sitecustomize.py is no member that --mode=export writes" in said
    assert "exported.py differs" in said
    assert check_sampler.main([str(tmp_path / "none.zip")]) == 2
    with pytest.raises(ValueError, match="cannot be read as an exported sampler"):
        exported.load_sampler(patched(archive(tmp_path / "bomb.zip", own[:1]), "size", 2**32 - 2))


def test_all_arrays_together_must_fit_into_memory(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(4000), b=np.zeros(4000), c=np.zeros(3))
    monkeypatch.setattr(reading, "memory_bytes", lambda: 50_000)
    with pytest.raises(ValueError, match=r"^its arrays need at least 64\d+ bytes, but there are"):
        reading.load_arrays(tmp_path / "x.npz")
    assert reading.load_arrays(tmp_path / "x.npz", lambda names: ["b"])["b"].shape == (4000,)
