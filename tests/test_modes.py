"""Modes beside train, sample and evaluate, on a network trained for a moment."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from test_main import command  # noqa: F401 (a fixture)
from test_run import finished, small  # noqa: F401 (a fixture)
from truths import golden

from score_jax.checkpoint import Checkpoints
from score_jax.config import ncsn
from score_jax.convert import from_official
from score_jax.data import sources
from score_jax.run import figures, inpaint
from score_jax.run.figures import Figures
from score_jax.run.job import Options, prepare
from score_jax.run.train import train

ROOT = Path(__file__).parents[1]


def load(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_held_out_images_are_completed(finished, command):  # noqa: F811
    code, _ = command(f"--workdir={finished}", "--mode=inpaint", "--mask=left", "--number=5", "--completions=3")
    assert code == 0
    found, data = load(finished / "inpainting.npz"), sources.digits()
    np.testing.assert_allclose(found["originals"], (data.held_out[:5] + 0.5) / 17, rtol=1e-6)
    np.testing.assert_array_equal(found["labels"], data.held_out_labels[:5])
    mask = found["mask"]
    assert mask[:, 4:].all()
    assert not mask[:, :4].any()
    completions = found["completions"]
    assert completions.shape == (5, 3, 8, 8, 1)
    np.testing.assert_array_equal(completions[:, :, mask], np.repeat(found["originals"][:, None], 3, 1)[:, :, mask])
    missing = completions[:, :, ~mask]
    assert np.abs(missing[:, 0] - missing[:, 1]).reshape(5, -1).max(1).min() > 0.01  # each completion is one of its own
    assert missing.min() >= 0
    assert missing.max() <= 1
    with Image.open(finished / "inpainting.png") as picture:
        assert picture.size[0] > picture.size[1] * 0.8


def test_own_image_and_mask_files_are_completed(finished, command, tmp_path):  # noqa: F811
    """What is known survives in the picture's own 256 values."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(255 - pixels).save(tmp_path / "b.png")
    known = np.zeros((8, 8), np.uint8)
    known[2:, 1:5] = 255
    Image.fromarray(known).save(tmp_path / "mask.png")
    code, shown = command(
        f"--workdir={finished}",
        "--mode=inpaint",
        f"--image={tmp_path}/a.png,{tmp_path}/b.png",
        f"--mask={tmp_path}/mask.png",
        "--completions=2",
        "--label=3",
        "--config.sampling.renew_known=True",
    )
    assert (code, shown) == (0, "")
    found = load(finished / "inpainting.npz")
    np.testing.assert_array_equal(found["mask"][..., 0], known > 0)
    for image, original in enumerate((pixels, 255 - pixels)):
        for completion in found["completions"][image]:
            np.testing.assert_array_equal(np.floor(completion[..., 0] * 256)[known > 0], original[known > 0])


def test_masks_of_every_name():
    for name, missing in (
        ("right", np.s_[:, 4:]),
        ("left", np.s_[:, :4]),
        ("top", np.s_[:4]),
        ("bottom", np.s_[4:]),
        ("center", np.s_[2:6, 2:6]),
    ):
        expected = np.ones((8, 8, 3), bool)
        expected[missing] = False
        np.testing.assert_array_equal(inpaint.read_mask(name, (8, 8, 3)), expected, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image=/none.png"], "/none.png is not a file"),
        (["--image={text}"], "text.png cannot be read as an image"),
        (["--mask=/none.png"], "--mask=/none.png is neither a file nor one of right, left"),
        (["--mask={large}"], "is 4x6, but the images are 8x8"),
        (["--mask={white}"], "leaves nothing to complete"),
        (["--label=10"], "--label=10 must be a class from 0 to 9"),
        (["--number=0"], "--number=0 must be at least 1"),
        (["--completions=0"], "--completions=0 must be at least 1"),
        (["--completions=two"], "--completions=two"),
    ],
)
def test_bad_input_to_inpainting(arguments, sentence, finished, command, tmp_path):  # noqa: F811
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "large.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "white.png")
    names = {name: tmp_path / f"{name}.png" for name in ("text", "large", "white")}
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    code, shown = command(f"--workdir={finished}", "--mode=inpaint", *(argument.format(**names) for argument in arguments))
    assert (code, shown.count("\n")) == (2, 1)
    assert sentence in shown
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_rows_between_two_samples(finished, command):  # noqa: F811
    code, _ = command(f"--workdir={finished}", "--mode=interpolate", "--number=3", "--completions=6")
    assert code == 0
    found = load(finished / "interpolation.npz")
    samples = found["samples"].reshape(3, 6, 64)
    np.testing.assert_allclose(found["angle"], np.linspace(0, np.pi / 2, 6), rtol=1e-6)
    steps = np.linalg.norm(np.diff(samples, axis=1), axis=2)
    ends = np.linalg.norm(samples[:, -1] - samples[:, 0], axis=1)
    assert (steps.max(1) < 0.8 * ends).all()  # small steps from one end to the other
    assert (finished / "interpolation.png").is_file()
    code, shown = command(f"--workdir={finished}", "--mode=interpolate", "--completions=1")
    assert code == 2
    assert "--completions=1 at least 2" in shown


def test_the_weights_of_figure_3_are_those_of_an_independent_simulation(capsys, tmp_path):
    """0.51 for plain and 0.784 for annealed Langevin dynamics, where 0.8 is true."""
    name, picture = figures._toy_samples(
        Figures(0, tmp_path, Options(), np.zeros((1, 8, 8, 1), np.float32), None), jax.random.key(0)
    )
    assert name == "figure3.png"
    assert picture.ndim == 3
    assert picture.std() > 1
    weights = [float(weight) for weight in re.findall(r": (0\.\d{4})$", capsys.readouterr().out, re.MULTILINE)]
    np.testing.assert_allclose(weights, [0.8, 0.51, 0.784], atol=0.015)


def test_figures_of_a_trained_network(finished, command, monkeypatch):  # noqa: F811
    train = figures._train
    monkeypatch.setattr(figures, "_train", lambda *arguments, num_steps: train(*arguments, num_steps=20))
    monkeypatch.setattr(figures, "NUM_CHAINS", 1280)
    code, _ = command(f"--workdir={finished}", "--mode=figures", "--number=4")
    assert code == 0
    for name in ("figure1.png", "figure2.png", "figure3.png", "neighbors.png", "mixing.png"):
        with Image.open(finished / name) as picture:
            assert np.asarray(picture).std() > 1, name


def test_figures_without_a_network_say_what_is_left_out(tmp_path, command, monkeypatch):  # noqa: F811
    for name in ("_sliced_losses", "_toy_scores", "_toy_samples"):
        monkeypatch.setattr(figures, name, lambda figures, key: ("x.png", np.zeros((2, 2, 3), np.uint8)))
    assert command(f"--workdir={tmp_path}", "--mode=figures")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png"]


def test_a_schedule_is_printed_as_a_fragment_of_a_config(command, tmp_path):  # noqa: F811
    assert command(f"--workdir={tmp_path / 'none'}", "--mode=schedule")[0] == 0
    assert not (tmp_path / "none").exists()
    code = subprocess.run(
        [sys.executable, "main.py", "--mode=schedule", "--subsample=500"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    x = sources.digits().train.reshape(1500, 64).astype(np.float64) / 17  # as dequantisation has it
    chosen = np.sort(np.random.default_rng(0).permutation(1500)[:500])
    largest = max(np.linalg.norm(x[chosen] - x[i], axis=1).max() for i in chosen)
    assert f"technique 1: {largest:.4f}" in code
    fragment = ncsn()
    exec("\n".join(line for line in code.splitlines() if line.startswith("config.")), {"config": fragment})
    np.testing.assert_allclose(fragment.noise.sigma_max, largest, rtol=0.01)
    assert fragment.noise.num_levels > 10


def test_an_official_checkpoint_becomes_a_workdir(command, tmp_path):  # noqa: F811
    state = golden("ncsn_mnist_ngf8")["param"]
    np.savez(tmp_path / "official.npz", **{f"module.{name}": value for name, value in state.items()})
    folder = tmp_path / "imported"
    narrow = ["--config.sampling.num_samples=4", "--config.sampling.batch_size=4", "--config.sampling.num_steps=2"]
    code, shown = command("--mode=import", f"--checkpoint={tmp_path}/official.npz", f"--workdir={folder}")
    assert (code, shown) == (0, "")
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == {"name": "ncsn", "width": 8, "centered": True}
    assert (config["data"]["size"], config["data"]["channels"]) == (28, 1)
    restored = Checkpoints(folder / "checkpoints").steps()
    assert restored == [0]
    code, shown = command(f"--workdir={folder}", "--mode=sample", *narrow)
    assert (code, shown) == (0, "")
    found = load(folder / "samples.npz")
    assert found["samples"].shape == (4, 28, 28, 1)
    assert np.isfinite(found["samples"]).all()
    code, shown = command("--mode=import", f"--checkpoint={tmp_path}/official.npz", f"--workdir={folder}")
    assert code == 2
    assert "holds checkpoints already" in shown


def test_a_pth_written_by_pytorch_is_imported_with_its_average(command, tmp_path):  # noqa: F811
    torch = pytest.importorskip("torch")
    state = golden("ncsnv2_cifar_ngf8")["param"]
    tensors = {f"module.{name}": torch.from_numpy(np.array(value)) for name, value in state.items()}
    ema = {name: torch.from_numpy(np.array(value)) * 0.5 for name, value in state.items() if name != "sigmas"}
    torch.save([tensors, {}, 7, 700, ema], tmp_path / "x.pth")
    folder = tmp_path / "imported"
    code, shown = command("--mode=import", f"--checkpoint={tmp_path}/x.pth", f"--workdir={folder}")
    assert (code, shown) == (0, "")
    config = json.loads((folder / "config.json").read_text())
    assert config["noise"]["num_levels"] == 12
    assert config["model"]["variant"] == "standard"
    step, restored = prepare("sample", config, folder, jax.devices()).restored
    assert step == 700
    params = from_official(state)[1]
    np.testing.assert_array_equal(restored.params["end_conv"]["kernel"], params["end_conv"]["kernel"])
    np.testing.assert_array_equal(restored.ema_params["end_conv"]["kernel"], params["end_conv"]["kernel"] * 0.5)
    np.testing.assert_array_equal(restored.ema_params["sigmas"], params["sigmas"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--mode=import needs --checkpoint=file.pth"),
        (["--checkpoint=/none.pth"], "--checkpoint=/none.pth is not a file"),
        (["--checkpoint={broken}"], "broken.npz cannot be read as an .npz file"),
        (["--checkpoint={missing}"], "lacks 'end_conv.bias'"),
    ],
)
def test_bad_input_to_import(arguments, sentence, command, tmp_path):  # noqa: F811
    state = golden("ncsn_mnist_ngf8")["param"]
    np.savez(tmp_path / "missing.npz", **{name: value for name, value in state.items() if name != "end_conv.bias"})
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    names = {name: tmp_path / f"{name}.npz" for name in ("broken", "missing")}
    code, shown = command("--mode=import", f"--workdir={tmp_path / 'run'}", *(argument.format(**names) for argument in arguments))
    assert (code, shown.count("\n")) == (2, 1)
    assert sentence in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["consistent", "langevin"])
def test_every_sampler_samples(method, finished, command):  # noqa: F811
    more = [f"--config.sampling.method={method}", "--config.sampling.step_size=0"]
    code, shown = command(f"--workdir={finished}", "--mode=sample", *more)
    assert (code, shown) == (0, "")
    assert load(finished / "samples.npz")["samples"].shape == (24, 8, 8, 1)
    code, shown = command(f"--workdir={finished}", "--mode=sample", *more, "--config.sampling.step_size=1e-7")
    if method == "langevin":
        assert code == 0
        return
    assert code == 2
    assert "config.sampling.step_size=1e-07 is" in shown
    assert "0 for that of ancestral sampling" in shown
    # Completing images is annealed Langevin dynamics whatever the method.
    flags = ["--mode=inpaint", "--number=1", "--completions=2", "--config.sampling.method=consistent"]
    assert command(f"--workdir={finished}", *flags, "--config.sampling.step_size=1e-7") == (0, "")


def test_labels_without_dropout_must_be_told(command, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    train(prepare("train", small(data__label_dropout=0.0, training__num_steps=20), folder, jax.devices()))
    code, shown = command(f"--workdir={folder}", "--mode=inpaint")
    assert code == 2
    assert "was always told the class (config.data.label_dropout=0): give it with --label" in shown
    assert command(f"--workdir={folder}", "--mode=inpaint", "--label=2", "--number=1", "--completions=2") == (0, "")
    code, shown = command(f"--workdir={tmp_path / 'none'}", "--mode=inpaint")
    assert (code, shown.count("\n")) == (2, 1)
    assert "holds no checkpoint to inpaint from" in shown


def write_images(folder, number, size=8):
    """Grey images in train/ and test/, of two classes."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(number):
                Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(folder / split / name / f"{i:03d}.png")


def narrow(path, **more):
    """Flags of a short run on a folder of images, with a perceptron, which compiles in no time."""
    settings = {
        "data.source": "folder",
        "data.path": path,
        "data.dequantize": True,
        "loss.name": "dsm",
        "training.num_steps": 10,
        "training.batch_size": 8,
        "training.eval_batches": 1,
        "sampling.num_samples": 4,
        "sampling.batch_size": 4,
        "sampling.num_steps": 1,
        **more,
    }
    return ["--config=configs/toy.py", *(f"--config.{name}={value}" for name, value in settings.items())]


def test_a_streamed_folder_trains_and_a_damaged_image_is_named(command, tmp_path):  # noqa: F811
    write_images(tmp_path / "images", 10)
    stream = {"data.device_megabytes": 0}
    code, shown = command(f"--workdir={tmp_path / 'run'}", *narrow(tmp_path / "images", **stream))
    assert (code, shown) == (0, "")
    assert load(tmp_path / "run" / "samples.npz")["samples"].shape == (4, 8, 8, 1)
    damaged = tmp_path / "images" / "train" / "b" / "007.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    code, shown = command(f"--workdir={tmp_path / 'other'}", *narrow(tmp_path / "images", **stream))
    assert (code, shown.count("\n")) == (2, 1)
    assert str(damaged) in shown
    # What fits is read, and found to be damaged, before anything is written.
    code, shown = command(f"--workdir={tmp_path / 'third'}", *narrow(tmp_path / "images"))
    assert (code, shown.count("\n")) == (2, 1)
    assert str(damaged) in shown
    assert not (tmp_path / "third").exists()


def test_shapes_that_the_config_gives_need_no_data_to_sample(command, tmp_path):  # noqa: F811
    write_images(tmp_path / "images", 4)
    flags = narrow(tmp_path / "images", **{"data.size": 8, "data.channels": 1})
    assert command(f"--workdir={tmp_path / 'run'}", *flags)[0] == 0
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert command(f"--workdir={tmp_path / 'run'}", "--mode=sample", "--config.seed=1") == (0, "")
    code, shown = command(f"--workdir={tmp_path / 'run'}", "--mode=evaluate")
    assert code == 2
    assert "is not a folder" in shown
    assert command(f"--workdir={tmp_path / 'run'}", "--mode=evaluate", f"--config.data.path={tmp_path / 'elsewhere'}") == (0, "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mode=figures", "--number=0"], "--number=0 must be at least 1"),
        (["--mode=schedule", "--subsample=1"], "--subsample=1 must be 2 or more, or 0 for all 1500"),
        (["--mode=schedule", "--config.data.device_megabytes=0"], "give --subsample, how many of them to compare"),
        (
            ["--mode=schedule", "--config.noise.sigma_max=30", "--config.noise.sigma_min=20"],
            "is not above config.noise.sigma_min=20",
        ),
        (["--config.data.size=16"], "which it does not resize: set both to 0"),
        (["--config.data.crop=4"], "the source 'digits' does not crop: set it to 0"),
        (
            ["--config.data.logit=True", "--config.data.dequantize=False"],
            "config.data.logit=True needs config.data.dequantize=True",
        ),
        (["--config.data.labels=False"], "config.data.label_dropout=0.1 needs config.data.labels=True"),
        (["--config=configs/digits_ncsn.py", "--config.data.logit=True"], "needs config.model.centered=False"),
        (
            ["--config=configs/digits_ncsn.py", "--config.data.source=mixture", "--config.data.dequantize=False"],
            "NCSN takes images, but the data are points [2]: set config.model.name=mlp",
        ),
        (["--config=configs/toy.py", "--config.data.flip=True"], "the source 'mixture' has no pixels"),
        (["--config=configs/cifar10.py", "--config.data.path=/nowhere"], "tfds build"),
    ],
)
def test_more_bad_input(arguments, sentence, command, tmp_path):  # noqa: F811
    code, shown = command(f"--workdir={tmp_path / 'run'}", *arguments)
    assert sentence in shown
    assert (code, shown.count("\n")) == (2, 1)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_an_earlier_version_goes_on(finished, command, tmp_path):  # noqa: F811
    """Its config lacks what was added since, and means what it meant."""
    folder = shutil.copytree(finished, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    for name in ("renew_known", "guidance", "method"):
        del config["sampling"][name]
    del config["data"]["name"]
    (folder / "config.json").write_text(json.dumps(config))
    assert command(f"--workdir={folder}", "--mode=evaluate") == (0, "")
