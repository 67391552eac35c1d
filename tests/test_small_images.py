"""The settings of small images, and the configs that --mode=schedule writes with them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from runs import samples, saved_config, small

from score_jax.cli import build
from score_jax.cli.config_files import load_config
from score_jax.cli.flags import parse
from score_jax.cli.settings import plain, small_images, validate
from score_jax.gaussian_law import final_variance
from score_jax.noise import geometric_sigmas, normal_levels


def images(number, size=16, channels=1, brightness=0.0):
    """Smooth random images of 256 values, with a brightness of their own."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, size)
    waves = np.sin(2 * np.pi * (ramp[:, None] * [1, 2] + [0.1, 0.4]))  # [size, 2]
    parts = rng.normal(size=(number, 2, channels))
    x = 0.5 + 0.1 * np.einsum("nkc,hk,wk->nhwc", parts, waves, waves)
    x += brightness * rng.normal(size=(number, 1, 1, 1)) + 0.03 * rng.normal(size=x.shape)
    return np.uint8(255 * np.clip(x, 0, 1))


def write(tmp_path, x, **arrays):
    """The flags of a data set of these images, one fifth of them held out, and of its config."""
    cut = len(x) * 4 // 5
    np.savez(tmp_path / "images.npz", train=x[:cut], held_out=x[cut:], **arrays)
    source = ["--config.data.source=npz", f"--config.data.path={tmp_path}/images.npz"]
    return ["--mode=schedule", *source, f"--write={tmp_path}/mine.py"]


def statistics(x):
    """Mean and standard deviation of pixels, and the largest eigenvalue of the covariance."""
    flat = x.reshape(len(x), -1) / 255
    return flat.mean(), flat.std(), np.linalg.eigvalsh(np.cov(flat.T))[-1]


def test_a_config_for_small_images_has_their_statistics_and_trains(command, tmp_path):
    x = images(200)
    labels = {"train_labels": np.arange(160) % 2, "held_out_labels": np.arange(40) % 2}
    assert command(*write(tmp_path, x, **labels)) == (0, "")
    file = tmp_path / "mine.py"
    config = load_config(str(file))
    mean, std, _ = statistics(x[:160])
    recipe = plain(small_images(size=16, channels=1, mean=0.5, std=0.25))
    for section in ("optim", "training"):
        assert config[section] == recipe[section]
    measured = dict.fromkeys(("data_mean", "data_std", "components"))
    assert config["model"] | measured == recipe["model"] | measured
    np.testing.assert_allclose(config["model"]["data_mean"], mean, rtol=1e-3)
    np.testing.assert_allclose(config["model"]["data_std"], std, rtol=1e-3)
    assert config["loss"]["data_std"] == config["model"]["data_std"]
    np.testing.assert_allclose(config["sampling"]["autoguidance_sigma_max"], 6.5 * std, rtol=0.03)
    assert config["model"]["components"] == 16  # of 160 examples
    assert not config["data"]["labels"]
    words = "Their 2 classes are not used; data.labels=True uses them."
    assert words in " ".join(file.read_text().split())

    # 4 of the 10 steps are those of the weaker network.
    few = {
        "model.width": 16,
        "model.num_blocks": "1,1",
        "training.num_steps": 10,
        "training.batch_size": 8,
        "training.eval_batches": 1,
        "training.checkpoint_every": 4,
        "optim.warmup_steps": 2,
        "sampling.num_samples": 4,
        "sampling.batch_size": 4,
        "sampling.num_steps": 2,
        "sampling.num_frames": 2,
        "sampling.autoguidance_step": 4,
    }
    flags = [f"--config.{name}={value}" for name, value in few.items()]
    run = tmp_path / "run"
    assert command(f"--config={file}", f"--workdir={run}", *flags) == (0, "")
    found = samples(run)["samples"]
    assert found.shape == (4, 16, 16, 1)
    assert saved_config(run)["optim"]["name"] == "muon"


@pytest.mark.parametrize(("brightness", "channels"), [(0.0, 1), (0.2, 3)])
def test_chains_keep_the_variance_along_the_widest_direction(
    brightness, channels, command, tmp_path
):
    """Colour photos differ most in brightness, which a multiple of the pixels' width neglects."""
    x = images(200, channels=channels, brightness=brightness)
    assert command(*write(tmp_path, x)) == (0, "")
    config = load_config(str(tmp_path / "mine.py"))
    _, std, widest = statistics(x[:160])
    sigma_max = config["noise"]["sigma_max"]
    assert sigma_max**2 / (sigma_max**2 + widest) >= 0.949
    if brightness:
        assert sigma_max > 32.5 * std

    sigmas = geometric_sigmas(**config["noise"])
    sampler = build.build_sampler(config["sampling"])
    steps = {"num_steps": config["sampling"]["num_steps"], "denoise": True}
    variance = np.float32([widest, std**2])
    ends = final_variance(sampler, sigmas, variance, **steps)
    np.testing.assert_allclose(ends, variance, rtol=0.06)


@pytest.mark.parametrize("sigma_max", [None, 33.0])
def test_the_median_level_is_a_multiple_of_the_standard_deviation(sigma_max):
    """The factor of configs/mnist_small.py, 10 and 0.02 for 0.31, whatever the first level."""
    config = small_images(size=32, channels=3, mean=0.5, std=0.25, sigma_max=sigma_max)
    validate(config)
    sigmas = np.asarray(geometric_sigmas(**config.noise))
    index = np.arange(4096)
    level = normal_levels(jax.random.key(0), index, batch_size=4096, num_levels=64)
    median = np.median(sigmas[np.asarray(level)])
    np.testing.assert_allclose(median / 0.25, np.sqrt(10 * 0.02) / 0.31, rtol=0.08)


@pytest.mark.parametrize(
    ("size", "patch_size"), [(16, 2), (18, 1), (20, 2), (26, 1), (28, 2), (32, 2)]
)
def test_squares_of_pixels_are_used_where_the_network_can_divide_the_size(size, patch_size):
    config = small_images(size=size, channels=3, mean=0.5, std=0.25)
    validate(config)
    assert config.model.patch_size == patch_size
    assert config.model.components < size**2 * 3


@pytest.mark.parametrize(("size", "patch_size"), [(9, 1), (10, 2)])
def test_a_config_for_tiny_images_divides_them(command, tmp_path, size, patch_size):
    """Below 16x16 pixels the settings are those of the digits."""
    assert command(*write(tmp_path, images(60, size=size))) == (0, "")
    config = load_config(str(tmp_path / "mine.py"))
    assert config["model"]["patch_size"] == patch_size
    x = jax.ShapeDtypeStruct((2, size, size, 1), "float32")
    level = jax.ShapeDtypeStruct((2,), "int32")
    sigmas = geometric_sigmas(**config["noise"])
    network = build.build_model(config["model"], sigmas, None, config["data"])
    scores, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x, level)
    assert scores.shape == x.shape


def test_a_config_for_tiny_images_of_an_odd_size_trains(command, tmp_path):
    assert command(*write(tmp_path, images(60, size=9))) == (0, "")
    few = {"model.width": 8, "model.num_blocks": 1, "training.num_steps": 2}
    few |= {"training.metric_samples": 0, "optim.warmup_steps": 1}
    few |= {"sampling.num_samples": 2, "sampling.num_steps": 3}
    flags = [f"--config.{name}={value}" for name, value in few.items()]
    run = [f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run"]
    assert command(*run, *flags) == (0, "")
    assert samples(tmp_path / "run")["samples"].shape == (2, 9, 9, 1)


def test_squares_of_pixels_that_do_not_divide_the_images_are_refused(command, tmp_path):
    line = [*write(tmp_path, images(60, size=9)), "--config.model.patch_size=2"]
    code, error = command(*line)
    assert code == 2
    assert "multiples of 2, but these are 9x9" in error


def test_flags_change_the_settings_of_small_images(command, tmp_path):
    x = images(60, size=18, channels=3)
    labels = {"train_labels": np.arange(48) % 3, "held_out_labels": np.arange(12) % 3}
    flags = {
        "data.labels": True,
        "model.width": 24,
        "training.num_steps": 1200,
        "noise.sigma_min": 0.01,
        "sampling.churn": 0.1,
    }
    more = [f"--config.{name}={value}" for name, value in flags.items()]
    assert command(*write(tmp_path, x, **labels), *more) == (0, "")
    config = load_config(str(tmp_path / "mine.py"))
    for name, value in flags.items():
        section, _, last = name.partition(".")
        assert config[section][last] == value, name
    assert config["training"]["checkpoint_every"] == 300
    assert config["sampling"]["autoguidance_step"] == 300
    assert config["model"]["patch_size"] == 1


def test_larger_photos_are_resized_to_small_images(command, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(images(12, size=40, channels=3)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    source = ["--config.data.source=folder", f"--config.data.path={folder}"]
    assert command("--mode=schedule", *source, f"--write={tmp_path}/mine.py") == (0, "")
    config = load_config(str(tmp_path / "mine.py"))
    assert (config["data"]["size"], config["data"]["channels"]) == (32, 3)
    assert config["model"]["patch_size"] == 2
    assert config["model"]["components"] == 1  # of 11 examples


def test_a_config_that_was_chosen_stays(command, tmp_path):
    """By a workdir with a run, or by --config; the levels of mnist_small follow the data."""
    x = images(50, size=28, brightness=0.2)
    arguments, file = write(tmp_path, x), tmp_path / "mine.py"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(small()))
    assert command(*arguments, f"--workdir={tmp_path / 'run'}") == (0, "")
    config = load_config(str(file))
    assert config["model"]["width"] == 4
    flat = x[:40].reshape(40, -1) / 255
    distance = max(np.linalg.norm(flat - one, axis=1).max() for one in flat)
    np.testing.assert_allclose(config["noise"]["sigma_max"], distance, rtol=0.02)

    file.unlink()
    assert command(*arguments, "--config=mnist_small", "--config.noise.num_levels=40") == (0, "")
    config, (_, std, _) = load_config(str(file)), statistics(x[:40])
    np.testing.assert_allclose(config["loss"]["data_std"], std, rtol=1e-3)
    assert config["noise"]["sigma_max"] > 32 * std
    assert config["noise"]["num_levels"] == 40


def test_a_run_of_the_main_job_does_not_choose_the_config(tmp_path, monkeypatch):
    """Unless --workdir names it; runs/digits is the workdir without flags."""
    monkeypatch.chdir(tmp_path)
    assert parse(["--mode=schedule"]).is_default
    Path("runs/digits").mkdir(parents=True)
    Path("runs/digits/config.json").write_text(json.dumps(small()))
    assert parse(["--mode=schedule"]).is_default
    assert parse(["--mode=schedule", "--workdir=runs/other"]).is_default
    assert not parse(["--mode=schedule", "--workdir=runs/digits"]).is_default
    assert not parse(["--mode=schedule", "--config=digits"]).is_default


def test_images_that_do_not_differ_are_refused(command, tmp_path):
    for pixels in (images(1), np.zeros((1, 16, 16, 1), np.uint8)):
        arguments = write(tmp_path, np.repeat(pixels, 20, axis=0))
        code, shown = command(*arguments)
        assert (code, shown.count("\n")) == (2, 1)
        assert "the training examples hardly differ" in shown
