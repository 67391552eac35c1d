"""Modes beside train and evaluate, on a network trained for a moment."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import (
    changed,
    final_state,
    finished_perceptron,
    finished_run,
    load,
    make_command,
    opened,
    perceptron,
    run_mode,
    samples,
    saved_config,
    train,
    tree,
)

from score_jax.checkpoint import Checkpoints
from score_jax.cli import figures, inpaint, masks
from score_jax.cli.config_files import load_config
from score_jax.cli.flags import parse
from score_jax.cli.settings import ncsn
from score_jax.data import sources
from score_jax.samplers.loop import Trajectory


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run of an unconditional perceptron, which compiles faster."""
    return finished_perceptron(tmp_path_factory)


def test_held_out_images_are_completed(finished, command):
    code, _ = command(
        f"--workdir={finished}", "--mode=inpaint", "--mask=left", "--number=5", "--completions=3"
    )
    assert code == 0
    found, data = load(finished / "inpainting.npz"), sources.digits()
    np.testing.assert_allclose(found["originals"], (data.held_out[:5] + 0.5) / 17, rtol=1e-6)
    np.testing.assert_array_equal(found["labels"], data.held_out_labels[:5])
    mask = found["mask"]
    assert mask[:, 4:].all()
    assert not mask[:, :4].any()
    completions = found["completions"]
    assert completions.shape == (5, 3, 8, 8, 1)
    np.testing.assert_array_equal(
        completions[:, :, mask], np.repeat(found["originals"][:, None], 3, 1)[:, :, mask]
    )
    missing = completions[:, :, ~mask]
    difference = np.abs(missing[:, 0] - missing[:, 1]).reshape(5, -1)
    assert difference.max(1).min() > 0.01  # each completion is one of its own
    assert missing.min() >= 0
    assert missing.max() <= 1
    with Image.open(finished / "inpainting.png") as picture:
        assert picture.size[0] > picture.size[1] * 0.8


def test_every_chain_completes_its_own_image(plain, monkeypatch):
    """A sampler that returns the images that it is asked to complete, in batches of 16 chains."""

    def given(keys, score_fn, x, known, mask, sigmas, **settings):
        finite = jnp.ones((len(sigmas), len(known)), bool)
        return Trajectory(known, jnp.zeros((0, *known.shape)), finite)

    monkeypatch.setattr(inpaint, "inpaint", given)
    run_mode(make_command(plain, "inpaint", saved_config(plain), number=5, completions=4))
    found = load(plain / "inpainting.npz")
    expected = np.repeat(found["originals"][:, None], 4, axis=1)
    np.testing.assert_array_equal(found["completions"], expected)


def test_own_image_and_mask_files_are_completed(finished, command, tmp_path):
    """Known pixels keep their own 256 values."""
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
        "--name=own",
    )
    assert (code, shown) == (0, "")
    found = load(finished / "own.npz")
    np.testing.assert_array_equal(found["mask"][..., 0], known > 0)
    for image, original in enumerate((pixels, 255 - pixels)):
        for completion in found["completions"][image]:
            np.testing.assert_array_equal(
                np.floor(completion[..., 0] * 256)[known > 0], original[known > 0]
            )


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
        np.testing.assert_array_equal(masks.read_mask(name, (8, 8, 3)), expected, err_msg=name)


@pytest.mark.parametrize(
    "kind",
    [
        "bool",
        "0 and 1",
        "palette",
        "opaque",
        "erased",
        "white brush",
        "black brush",
        "both",
        "ones",
    ],
)
def test_masks_saved_in_other_ways(kind, tmp_path):
    known = np.zeros((8, 8), bool)
    known[2:, 1:5] = True
    opaque = np.full((8, 8, 4), 255, np.uint8)
    opaque[~known, :3] = 0
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)

    def transparent(rgb, alpha):
        return Image.fromarray(np.dstack([rgb, np.where(alpha, 255, 0)]).astype(np.uint8), "RGBA")

    white, black = np.full((8, 8, 3), 255), np.zeros((8, 8, 3))
    half = np.arange(8)[:, None] + np.zeros(8) >= 4
    image = {
        "erased": lambda: transparent(colours, known),
        "white brush": lambda: transparent(white, known),
        "black brush": lambda: transparent(black, ~known),
        "both": lambda: transparent(np.where(known[..., None], white, black), known | half),
        "ones": lambda: transparent(known[..., None] * np.ones(3), known | half),
        "bool": lambda: Image.fromarray(known),
        "0 and 1": lambda: Image.fromarray(known.astype(np.uint8)),
        "palette": lambda: Image.fromarray(known.astype(np.uint8) * 255).convert("P"),
        "opaque": lambda: Image.fromarray(opaque, "RGBA"),
    }[kind]()
    image.save(tmp_path / "mask.png")
    found = masks.read_mask(str(tmp_path / "mask.png"), (8, 8, 3))
    np.testing.assert_array_equal(found, np.broadcast_to(known[..., None], (8, 8, 3)))


@pytest.mark.parametrize("method", [None, "pseudo_inverse"])
def test_masks_are_scaled_with_their_images(method, finished, command, tmp_path):
    """Paint over the missing part does not change the known pixels of the small image."""
    rng = np.random.default_rng(1)
    large = np.repeat(np.repeat(rng.integers(0, 256, (8, 8)), 6, axis=0), 6, axis=1)
    large = np.pad(large, ((0, 0), (10, 14))).astype(np.uint8)  # The central square is cut out.
    known = np.zeros((48, 72), bool)
    known[:, :36] = True
    for name, paint in (("a", 0), ("b", 255)):
        Image.fromarray(np.where(known, large, paint).astype(np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    Image.fromarray(known).save(tmp_path / "mask.png")
    code, shown = command(
        f"--workdir={finished}",
        "--mode=inpaint",
        f"--image={tmp_path}/a.png,{tmp_path}/b.png",
        f"--mask={tmp_path}/mask.png",
        *([] if method is None else [f"--method={method}"]),
        "--completions=1",
        f"--name=scaled_{method}",
    )
    assert (code, shown) == (0, "")
    found = load(finished / f"scaled_{method}.npz")
    mask = found["mask"][..., 0]
    assert mask[:, :4].all()
    assert not mask[:, 4:].any()
    first, second = found["originals"][..., 0]
    np.testing.assert_allclose(first[mask], second[mask], atol=1.5 / 256)
    np.testing.assert_array_equal(found["completions"][0, 0, ..., 0][mask], first[mask])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image=/none.png"], "/none.png is not a file"),
        (["--image={own}", "--number=3"], "--number=3 counts held-out images: leave it out"),
        (["--image={text}"], "text.png cannot be read as an image"),
        (["--mask=/none.png"], "--mask=/none.png is neither a file nor one of right, left"),
        (["--mask={white}"], "leaves nothing to complete"),
        (["--label=10"], "--label=10 must be a class from 0 to 9"),
        (["--number=0"], "--number=0 must be an integer from 1"),
        (["--completions=0"], "--completions=0 must be an integer from 1"),
        (["--completions=two"], "--completions=two"),
        (["--mask={hidden}"], "leaves nothing known"),
        (["--image={own}", "--mask={large}"], "is 4x6, but --image="),
        (["--method=best"], "--method=best must be moment_matching"),
        (["--label=-1"], "--label=-1 must be"),
        (["--name=a/b"], "--name=a/b must be a file name without folder and suffix"),
        (["--checkpoint=x.pth"], "--checkpoint is not used by --mode=inpaint"),
    ],
)
def test_bad_input_to_inpainting(arguments, sentence, finished, command, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10).save(tmp_path / "large.png")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "white.png")
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(tmp_path / "own.png")
    Image.fromarray(np.zeros((8, 8, 4), np.uint8), "RGBA").save(tmp_path / "hidden.png")
    kinds = ("text", "large", "white", "own", "hidden")
    names = {name: tmp_path / f"{name}.png" for name in kinds}
    before = tree(finished)
    code, shown = command(
        f"--workdir={finished}",
        "--mode=inpaint",
        *(argument.format(**names) for argument in arguments),
    )
    assert (code, shown.count("\n")) == (2, 1)
    assert sentence in shown
    assert tree(finished) == before


def test_rows_between_two_samples(finished, command):
    code, _ = command(
        f"--workdir={finished}", "--mode=interpolate", "--number=3", "--completions=6"
    )
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


@pytest.mark.optimized
def test_the_weights_of_figure_3_are_those_of_an_independent_simulation(capsys):
    """0.51 for plain and 0.784 for annealed Langevin dynamics, where 0.8 is true."""
    picture = figures.toy_samples(jax.random.key(0))
    assert picture.ndim == 3
    assert picture.std() > 1
    shown = re.findall(r": (0\.\d{4})$", capsys.readouterr().out, re.MULTILINE)
    weights = [float(weight) for weight in shown]
    np.testing.assert_allclose(weights, [0.8, 0.51, 0.784], atol=0.015)


def test_figures_of_a_trained_network(finished, command, monkeypatch):
    whole = figures.train_briefly
    monkeypatch.setattr(
        figures, "train_briefly", lambda *arguments, num_steps: whole(*arguments, num_steps=20)
    )
    monkeypatch.setattr(figures, "NUM_CHAINS", 1280)
    monkeypatch.setattr(figures, "MIXING_STEPS", 10)
    code, _ = command(f"--workdir={finished}", "--mode=figures", "--number=4")
    assert code == 0
    for name in ("figure1.png", "figure2.png", "figure3.png", "neighbors.png", "mixing.png"):
        with Image.open(finished / name) as picture:
            assert np.asarray(picture).std() > 1, name


def test_figures_without_a_network_say_what_is_left_out(tmp_path, capsys, monkeypatch):
    for name in ("sliced_losses", "toy_scores", "toy_samples"):
        monkeypatch.setattr(figures, name, lambda *_: np.zeros((2, 2, 3), np.uint8))
    assert run_mode(make_command(tmp_path, "figures"))
    assert "holds no trained network: nearest neighbours and mixing" in capsys.readouterr().out
    names = [path.name for path in tmp_path.iterdir()]
    assert sorted(names) == ["figure1.png", "figure2.png", "figure3.png"]


def test_a_schedule_is_printed_as_a_fragment_of_a_config(tmp_path, capsys):
    config = load_config("digits")
    command = make_command(tmp_path / "none", "schedule", config, subsample=500)
    assert run_mode(command)
    assert not (tmp_path / "none").exists()
    shown = capsys.readouterr().out
    x = sources.digits().train.reshape(1500, 64).astype(np.float64) / 17
    chosen = np.sort(np.random.default_rng(0).permutation(1500)[:500])
    largest = max(np.linalg.norm(x[chosen] - x[i], axis=1).max() for i in chosen)
    assert f"technique 1: {largest:.4f}" in shown
    fragment = ncsn()
    lines = [line for line in shown.splitlines() if line.startswith("config.")]
    exec("\n".join(lines), {"config": fragment})
    np.testing.assert_allclose(fragment.noise.sigma_max, largest, rtol=0.01)
    assert fragment.noise.num_levels > 10


FEW_STEPS = {
    "training.num_steps": 10,
    "training.batch_size": 8,
    "training.eval_batches": 1,
    "training.preview_every": "none",
    "optim.warmup_steps": 2,
    "sampling.num_samples": 4,
    "sampling.batch_size": 4,
    "sampling.num_steps": 1,
    "sampling.num_frames": 2,
}
"""Settings of a run of a few steps, whatever the data and the network."""


def as_flags(settings):
    return [f"--config.{name}={value}" for name, value in settings.items()]


def test_a_config_for_points_is_written_and_trains(command, tmp_path):
    rng = np.random.default_rng(0)
    points = (3 + 0.5 * rng.normal(size=(60, 2))).astype(np.float32)
    np.savez(tmp_path / "points.npz", train=points[:50], held_out=points[50:])
    data = ["--config.data.source=npz", f"--config.data.path={tmp_path}/points.npz"]
    file = tmp_path / "mine.py"
    assert command("--mode=schedule", *data, f"--write={file}") == (0, "")
    config = load_config(str(file))
    assert config["model"] == {"name": "mlp", "hidden": (128, 128)}
    assert config["data"]["path"] == str(tmp_path / "points.npz")
    assert (config["data"]["size"], config["data"]["dequantize"]) == (None, False)
    assert config["noise"]["num_levels"] >= 10
    assert "expects data of about unit size" in file.read_text()
    few = as_flags(FEW_STEPS)
    code, shown = command(f"--config={file}", f"--workdir={tmp_path / 'run'}", *few)
    assert (code, shown) == (0, "")
    assert samples(tmp_path / "run")["samples"].shape == (4, 2)


def test_data_smaller_than_the_smallest_noise_level_are_refused(command, tmp_path):
    points = 1e-3 * np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    np.savez(tmp_path / "points.npz", train=points[:15], held_out=points[15:])
    data = ["--config.data.source=npz", f"--config.data.path={tmp_path}/points.npz"]
    code, shown = command("--mode=schedule", *data)
    assert (code, shown.count("\n")) == (2, 1)
    assert "is not above config.noise.sigma_min=0.03: lower it, or scale the data" in shown


def test_a_config_for_images_has_their_mean_and_their_classes(command, tmp_path):
    write_images(tmp_path / "images", 6, splits=(".",))
    data = ["--config.data.source=folder", f"--config.data.path={tmp_path}/images"]
    file = tmp_path / "mine.py"
    assert command("--mode=schedule", *data, f"--write={file}") == (0, "")
    config = load_config(str(file))
    assert config["data"]["size"] is None  # images of 8x8 are small enough
    assert config["data"]["labels"]
    assert config["model"]["name"] == "unet"
    np.testing.assert_allclose(config["model"]["data_mean"], 0.5, atol=0.03)
    np.testing.assert_allclose(config["model"]["data_std"], 0.29, atol=0.02)
    assert max(len(line) for line in file.read_text().splitlines()) <= 100 + len(str(tmp_path))
    # Networks that take no labels get none.
    file.unlink()
    network = "--config.model.name=mlp"
    assert command("--mode=schedule", *data, network, f"--write={file}") == (0, "")
    config = load_config(str(file))
    assert config["model"]["name"] == "mlp"
    assert not config["data"]["labels"]


def test_photos_of_several_sizes_are_resized(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (34 + 2 * i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if i == 3 else "RGB").save(tmp_path / f"{i}.png")
    config = load_config("digits")
    config["data"].update(source="folder", path=str(tmp_path))
    file = tmp_path / "mine.py"
    assert run_mode(make_command(tmp_path / "none", "schedule", config, write=str(file)))
    shown = capsys.readouterr().out
    assert "images are resized to 32x32; --config.data.size chooses another size" in shown
    assert "9 images to train on, 1 held out" in shown
    written = load_config(str(file))
    assert (written["data"]["size"], written["data"]["channels"]) == (32, 3)
    assert not written["data"]["labels"]
    assert written["noise"]["num_levels"] > 50


def test_a_config_file_is_never_overwritten(command, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("precious")
    for arguments, sentence in (
        ([f"--write={file}"], "exists already: choose another name"),
        ([f"--write={tmp_path}/mine.txt"], "must end with .py"),
        ([f"--write={tmp_path}/none/mine.py"], "there is no folder"),
    ):
        code, shown = command("--mode=schedule", "--subsample=20", *arguments)
        assert (code, shown.count("\n")) == (2, 1)
        assert sentence in shown
    assert file.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@pytest.mark.parametrize("method", ["consistent", "langevin"])
def test_every_sampler_samples(method, plain, command):
    more = [f"--config.sampling.method={method}", "--config.sampling.step_size=none"]
    run = [f"--workdir={plain}", "--mode=sample"]
    assert command(*run, *more, f"--name={method}") == (0, "")
    assert samples(plain, method)["samples"].shape == (24, 8, 8, 1)
    tiny = "--config.sampling.step_size=1e-7"
    code, shown = command(*run, *more, tiny, f"--name={method}_tiny")
    if method == "langevin":
        assert code == 0
        return
    assert code == 2
    assert "config.sampling.step_size=1e-07 is" in shown
    assert "none for that of ancestral sampling" in shown
    # Completing images is annealed Langevin dynamics whatever the method.
    few = ["--mode=inpaint", "--number=1", "--completions=2", "--name=tiny"]
    method_flag = f"--config.sampling.method={method}"
    assert command(f"--workdir={plain}", *few, method_flag, tiny) == (0, "")


def test_samples_of_one_class_in_any_number(finished, command):
    run = [f"--workdir={finished}", "--mode=sample"]
    assert command(*run, "--number=5", "--label=3", "--name=threes") == (0, "")
    found = samples(finished, "threes")
    assert found["samples"].shape == (5, 8, 8, 1)
    np.testing.assert_array_equal(found["labels"], np.full(5, 3))
    settings = json.loads(str(found["settings"]))
    assert (settings["num_samples"], settings["label"]) == (5, 3)
    assert (finished / "threes.png").is_file()
    assert (finished / "threes.webp").is_file()
    # The first chains are those of the run's own samples where the class is the same.
    own = samples(finished)
    assert command(*run, "--number=30", "--name=more") == (0, "")
    more = samples(finished, "more")["samples"]
    np.testing.assert_allclose(more[:24], own["samples"], atol=1e-4)
    code, shown = command(*run, "--label=10")
    assert (code, shown.count("\n")) == (2, 1)
    assert "--label=10 must be a class from 0 to 9" in shown


def test_outputs_of_other_settings_are_not_overwritten(plain, command):
    run = [f"--workdir={plain}", "--mode=sample"]
    own = (plain / "samples.npz").read_bytes()
    # The same settings give the run's own samples again.
    before = samples(plain)["samples"]
    assert command(*run) == (0, "")
    np.testing.assert_array_equal(samples(plain)["samples"], before)
    # Others go elsewhere, and the same again to the same place.
    own = (plain / "samples.npz").read_bytes()
    for _ in range(2):
        assert command(*run, "--number=3") == (0, "")
        assert samples(plain, "samples_2")["samples"].shape == (3, 8, 8, 1)
    assert command(*run, "--number=2") == (0, "")
    assert samples(plain, "samples_3")["samples"].shape == (2, 8, 8, 1)
    code, shown = command(*run, "--number=4", "--name=samples_2")
    assert code == 2
    assert "--name=samples_2 is taken" in shown
    assert (plain / "samples.npz").read_bytes() == own


def test_a_label_needs_a_network_that_takes_labels(plain, command):
    code, shown = command(f"--workdir={plain}", "--mode=sample", "--label=3")
    assert (code, shown.count("\n")) == (2, 1)
    assert "--label=3 cannot be used: the network of" in shown


def test_labels_without_dropout_must_be_given(finished, command, tmp_path):
    run, folder = opened(finished), tmp_path / "run"
    config = changed(saved_config(finished), data__label_dropout=0.0)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(run.step, run.state, {"config": config})
    checkpoints.wait()
    (folder / "config.json").write_text(json.dumps(config))
    code, shown = command(f"--workdir={folder}", "--mode=inpaint")
    assert code == 2
    words = "was always conditioned on the class (config.data.label_dropout=0): give it with"
    assert words in shown
    few = ["--label=2", "--number=1", "--completions=2", "--config.sampling.guidance=0"]
    assert command(f"--workdir={folder}", "--mode=inpaint", *few) == (0, "")
    code, shown = command(f"--workdir={tmp_path / 'none'}", "--mode=inpaint")
    assert (code, shown.count("\n")) == (2, 1)
    assert "holds no checkpoint to inpaint from" in shown


def write_images(folder, number, size=8, splits=("train", "test")):
    """Grey images of two classes in folders for each split."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 256, (size, size), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i:03d}.png")


def narrow(path, **more):
    """Flags of a short run on a folder of images, with a perceptron, which compiles in no time."""
    settings = FEW_STEPS | {
        "data.source": "folder",
        "data.path": path,
        "data.dequantize": True,
        "loss.name": "dsm",
    }
    return ["--config=toy", *as_flags(settings | more)]


def test_a_streamed_folder_trains_and_a_damaged_image_is_named(command, tmp_path):
    write_images(tmp_path / "images", 10)
    stream = narrow(tmp_path / "images", **{"data.device_megabytes": 0})
    code, shown = command(f"--workdir={tmp_path / 'run'}", *stream)
    assert (code, shown) == (0, "")
    assert samples(tmp_path / "run")["samples"].shape == (4, 8, 8, 1)
    damaged = tmp_path / "images" / "train" / "b" / "007.png"
    damaged.write_bytes(damaged.read_bytes()[:40])
    code, shown = command(f"--workdir={tmp_path / 'other'}", *stream)
    assert (code, shown.count("\n")) == (2, 1)
    assert str(damaged) in shown
    # Data that fit into memory are read, and found to be damaged, before anything is written.
    code, shown = command(f"--workdir={tmp_path / 'third'}", *narrow(tmp_path / "images"))
    assert (code, shown.count("\n")) == (2, 1)
    assert str(damaged) in shown
    assert not (tmp_path / "third").exists()


def test_shapes_that_the_config_gives_need_no_data_to_sample(command, tmp_path):
    write_images(tmp_path / "images", 4)
    flags = narrow(tmp_path / "images", **{"data.size": 8, "data.channels": 1})
    run = f"--workdir={tmp_path / 'run'}"
    assert command(run, *flags)[0] == 0
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    assert command(run, "--mode=sample", "--config.seed=1") == (0, "")
    code, shown = command(run, "--mode=evaluate")
    assert code == 2
    assert "is not a folder" in shown
    elsewhere = f"--config.data.path={tmp_path / 'elsewhere'}"
    assert command(run, "--mode=evaluate", elsewhere) == (0, "")


def test_float_images_keep_their_own_range(tmp_path):
    rng = np.random.default_rng(0)
    x = (100 + 20 * rng.normal(size=(40, 6, 6, 2))).astype(np.float32)
    np.savez(tmp_path / "x.npz", train=x[:30], held_out=x[30:])
    plain = {"data__dequantize": False, "data__source": "npz", "data__path": f"{tmp_path}/x.npz"}
    noise = {"noise__sigma_max": 100.0, "noise__sigma_min": 5.0}
    train(tmp_path / "run", perceptron(**plain, **noise))
    assert samples(tmp_path / "run")["samples"].max() > 1.5
    config = saved_config(tmp_path / "run")
    assert run_mode(make_command(tmp_path / "run", "inpaint", config, number=2, completions=2))
    found = load(tmp_path / "run" / "inpainting.npz")
    np.testing.assert_array_equal(found["originals"], x[30:32])
    command = make_command(tmp_path / "run", "inpaint", config, image="x.png")
    with pytest.raises(ValueError, match="the data of this run are not pixels"):
        run_mode(command)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mode=figures", "--number=0"], "--number=0 must be"),
        (["--mode=schedule", "--subsample=1"], "--subsample=1 must be"),
        (
            ["--mode=schedule", "--config.data.device_megabytes=0"],
            "give --subsample, the number of them to compare",
        ),
        (
            ["--config.data.size=16"],
            "config.data.size=16 and channels=None, but the source 'digits' has examples of "
            "[8, 8, 1], which it does not resize: set both to none",
        ),
        (["--config.data.crop=4"], "the source 'digits' does not crop: set it to none"),
        (
            ["--config.data.logit=True", "--config.data.dequantize=False"],
            "config.data.logit=True needs config.data.dequantize=True",
        ),
        (
            ["--config.data.labels=False"],
            "config.data.label_dropout=0.1 needs config.data.labels=True",
        ),
        (
            ["--config=digits_ncsn", "--config.data.logit=True"],
            "needs config.model.centered=False",
        ),
        (
            [
                "--config=digits_ncsn",
                "--config.data.source=mixture",
                "--config.data.dequantize=False",
            ],
            "the network 'ncsn' takes images, but the data are points [2]: set "
            "config.model.name=mlp",
        ),
        (
            ["--config=toy", "--config.data.flip=True"],
            "the source 'mixture' has no pixels",
        ),
        (["--config=cifar10", "--config.data.path=/nowhere"], "tfds build"),
        (["--config.loss.name=nowhere:loss"], "the module 'nowhere' cannot be imported"),
        (["--config.loss.name=json:dumped"], "the module 'json' defines no 'dumped'"),
        (["--config.loss.name=math:pi"], "is a float, but must be a function or a class"),
        (
            ["--config.loss.name=score_jax.losses.dsm:annealed_dsm", "--config.loss.delta=1"],
            "config.loss.delta=1 is not an argument of score_jax.losses.dsm:annealed_dsm",
        ),
        (
            ["--config.sampling.method=builtins:print", "--config.sampling.wrong=1"],
            "config.sampling.wrong=1 is not an argument of builtins:print",
        ),
    ],
)
def test_more_bad_input(arguments, sentence, command, tmp_path):
    code, shown = command(f"--workdir={tmp_path / 'run'}", *arguments)
    assert sentence in shown
    assert (code, shown.count("\n")) == (2, 1)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_an_earlier_version_goes_on(finished, command, tmp_path, capsys):
    """Its config has 0 and "" where there is None now, and lacks what was added since."""
    folder = shutil.copytree(finished, tmp_path / "old")
    config = saved_config(folder)
    assert config["training"]["preview_every"] == 30
    for name in ("renew_known", "guidance", "method"):
        del config["sampling"][name]
    config["sampling"]["step_size"] = 0.0
    del config["data"]["name"]
    config["data"].update(path="", crop=0, size=0, channels=0)
    (folder / "config.json").write_text(json.dumps(config))
    # Samples were saved with the config alone.
    found = samples(folder)
    del found["settings"]
    np.savez(folder / "samples.npz", **found | {"config": json.dumps(config)})
    assert command(f"--workdir={folder}", "--mode=evaluate") == (0, "")
    before = tree(folder)
    assert run_mode(make_command(folder, config=parse([f"--workdir={folder}"]).config))
    shown = capsys.readouterr().out
    assert "training is complete (60 steps)" in shown
    assert "holds this run's samples already" in shown
    assert tree(folder) == before
    assert final_state(finished)[0] == 60
