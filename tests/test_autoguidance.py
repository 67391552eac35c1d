"""Autoguidance in the command: the checkpoint of an earlier step guides the samples."""

import shutil

import numpy as np
import pytest
from runs import make_command, opened, perceptron, run_mode, samples, train

import score_jax as sj
from score_jax.checkpoint import Checkpoints
from score_jax.exported import load_sampler

GUIDED = {
    "training__num_steps": 40,
    "training__checkpoint_every": 10,
    "training__keep_checkpoints": 1,
    "sampling__autoguidance_step": 20,
    "sampling__autoguidance_weight": 1.5,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guided") / "run"
    train(folder, perceptron(**GUIDED))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def expected(folder, weight, first_level=0.0):
    """Samples by the library alone, from two checkpoints."""
    run = opened(folder)
    checkpoints = Checkpoints(folder / "checkpoints")
    scores = [
        run.score_fn(checkpoints.restore(run.state_shape, step)[1].ema_params) for step in (40, 20)
    ]
    arguments = run.sampling(24) | {"observe": None, "num_snapshots": 0, "progress": False}
    guided = sj.autoguidance(*scores, weight, first_level)
    return run.to_images(sj.sample(guided, run.sigmas, **arguments))


def test_the_weaker_checkpoint_is_kept_and_guides_the_samples(finished):
    assert Checkpoints(finished / "checkpoints").steps() == [40, 20]
    found = samples(finished)["samples"]
    np.testing.assert_allclose(found, expected(finished, 1.5), atol=1e-5)
    # The guidance matters: these are not the samples of the network alone.
    assert np.abs(found - expected(finished, 1.0)).max() > 1e-3


def test_another_weight_gives_other_samples_under_another_name(copy, command):
    weight = "--config.sampling.autoguidance_weight=3"
    code, shown = command(f"--workdir={copy}", "--mode=sample", "--number=24", weight)
    assert code == 0, shown
    (other,) = {path.stem for path in copy.glob("samples*.npz")} - {"samples"}
    np.testing.assert_allclose(samples(copy, other)["samples"], expected(copy, 3.0), atol=1e-5)


def test_guidance_can_begin_at_a_smaller_sigma(copy, command):
    run = opened(copy)
    largest = float(run.sigmas[1] ** 0.7 * run.sigmas[2] ** 0.3)
    flag = f"--config.sampling.autoguidance_sigma_max={largest}"
    code, shown = command(f"--workdir={copy}", "--mode=sample", "--number=24", flag)
    assert code == 0, shown
    (other,) = {path.stem for path in copy.glob("samples*.npz")} - {"samples"}
    found = samples(copy, other)["samples"]
    np.testing.assert_allclose(found, expected(copy, 1.5, 1.3), atol=1e-5)
    assert np.abs(found - samples(copy)["samples"]).max() > 1e-3


def test_the_exported_sampler_is_guided(copy):
    run_mode(make_command(copy, "export", perceptron(**GUIDED)))
    found = load_sampler(copy / "sampler.zip")(seed=0, number=24)
    np.testing.assert_allclose(found, samples(copy)["samples"], atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_missing_checkpoint_is_named_before_anything_is_compiled(mode, copy, command):
    shutil.rmtree(copy / "checkpoints" / "20")
    more = ["--config.training.num_steps=60"] if mode == "train" else []
    code, shown = command(f"--workdir={copy}", f"--mode={mode}", *more)
    assert code == 2
    assert "autoguidance_step=20, but --workdir=" in shown
    assert "holds no checkpoint of this step: choose among 40, or none" in shown
    assert "compil" not in shown
