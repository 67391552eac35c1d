"""Official checkpoints as workdirs."""

import numpy as np
import pytest
from runs import load, opened, saved_config, started
from truths import golden

from score_jax.checkpoint import Checkpoints
from score_jax.cli.imports import config_for
from score_jax.models.official import from_official

FEW = [
    "--config.sampling.num_samples=4",
    "--config.sampling.batch_size=4",
    "--config.sampling.num_steps=2",
]


def write_npz(path, fixture="ncsn_mnist_ngf8", without=()):
    """An official state dict as an .npz file."""
    state = golden(fixture)["param"]
    kept = {f"module.{name}": value for name, value in state.items() if name not in without}
    np.savez(path, **kept)
    return path


def write_pth(path):
    """A checkpoint of the code of 2020, as PyTorch writes it; returns its state dict."""
    torch = pytest.importorskip("torch")
    state = golden("ncsnv2_cifar_ngf8")["param"]
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    ema = {name: 0.5 * value for name, value in tensors.items() if name != "sigmas"}
    prefixed = {f"module.{name}": value for name, value in tensors.items()}
    torch.save([prefixed, {}, 7, 700, ema], path)
    return state


def check_pth(folder, state):
    """Asserts that a workdir holds the parameters of `write_pth`."""
    config = saved_config(folder)
    assert config["noise"]["num_levels"] == 12
    assert config["model"]["variant"] == "standard"
    run = opened(folder)
    assert run.step == 700
    params = from_official(state)[1]
    kernel = params["end_conv"]["kernel"]
    np.testing.assert_array_equal(run.state.params["end_conv"]["kernel"], kernel)
    np.testing.assert_array_equal(run.state.ema_params["end_conv"]["kernel"], kernel * 0.5)
    np.testing.assert_array_equal(run.state.ema_params["sigmas"], params["sigmas"])


def test_an_official_checkpoint_becomes_a_workdir(command, tmp_path):
    file, folder = write_npz(tmp_path / "official.npz"), tmp_path / "imported"
    assert command("--mode=import", f"--checkpoint={file}", f"--workdir={folder}") == (0, "")
    config = saved_config(folder)
    assert {**config["model"], "dtype": "float32", "remat": False} == {
        "name": "ncsn",
        "width": 8,
        "centered": True,
        "dtype": "float32",
        "remat": False,
    }
    assert (config["data"]["size"], config["data"]["channels"]) == (28, 1)
    assert Checkpoints(folder / "checkpoints").steps() == [0]
    assert command(f"--workdir={folder}", "--mode=sample", *FEW) == (0, "")
    found = load(folder / "samples.npz")
    assert found["samples"].shape == (4, 28, 28, 1)
    assert np.isfinite(found["samples"]).all()
    code, shown = command("--mode=import", f"--checkpoint={file}", f"--workdir={folder}")
    assert code == 2
    assert "holds checkpoints already" in shown


def test_import_and_sample_in_processes_of_their_own(tmp_path):
    """Reading the checkpoint must not start JAX before the number of its devices is set."""
    file, folder = write_npz(tmp_path / "official.npz"), tmp_path / "my runs" / "official"
    shown = started(
        "--mode=import", f"--checkpoint={file}", f"--workdir={folder}", "--devices=2", cwd=tmp_path
    )
    assert f"next: score-jax --workdir='{folder}' --mode=sample" in shown
    sampling = [f"--workdir={folder}", "--mode=sample", "--devices=2", "--number=4", *FEW]
    started(*sampling, cwd=tmp_path)
    assert load(folder / "samples.npz")["samples"].shape == (4, 28, 28, 1)


@pytest.mark.parametrize(
    ("fixture", "config"), [("ncsn_mnist_ngf8", "mnist"), ("ncsnv2_cifar_ngf8", "cifar10_v2")]
)
def test_the_config_is_chosen_by_names_and_shapes(fixture, config, tmp_path):
    assert config_for(str(write_npz(tmp_path / "official.npz", fixture))) == config


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"sigmas": np.ones(232)}, "cifar10_v2"),
        ({"sigmas": np.ones(500)}, "celeba_v2"),
        ({"sigmas": np.ones(1086), "res5.0.conv1.weight": np.ones(1)}, "lsun_bedroom_v2"),
        ({"sigmas": np.ones(788), "res5.0.conv1.weight": np.ones(1)}, "lsun_church_v2"),
        ({"sigmas": np.ones(2311), "res31.0.conv1.weight": np.ones(1)}, "ffhq_v2"),
        ({"sigmas": np.ones(9), "res31.0.conv1.weight": np.ones(1)}, "ffhq_v2"),
        ({"sigmas": np.ones(9), "res5.0.conv1.weight": np.ones(1)}, "lsun_bedroom_v2"),
        ({"begin_conv.weight": np.ones((8, 3, 3, 3))}, "cifar10"),
    ],
)
def test_published_networks_get_their_published_settings(changes, config, tmp_path):
    np.savez(tmp_path / "x.npz", **changes)
    assert config_for(str(tmp_path / "x.npz")) == config


@pytest.mark.torch
def test_a_pth_written_by_pytorch_is_imported_with_its_average(command, tmp_path):
    state = write_pth(tmp_path / "x.pth")
    folder = tmp_path / "imported"
    code, shown = command("--mode=import", f"--checkpoint={tmp_path}/x.pth", f"--workdir={folder}")
    assert (code, shown) == (0, "")
    check_pth(folder, state)


@pytest.mark.torch
def test_a_pth_is_imported_in_a_process_of_its_own(tmp_path):
    state = write_pth(tmp_path / "x.pth")
    arguments = ["--mode=import", "--checkpoint=x.pth", "--workdir=imported", "--devices=2"]
    started(*arguments, cwd=tmp_path)
    check_pth(tmp_path / "imported", state)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--mode=import needs --checkpoint=file.pth"),
        (["--checkpoint=/none.pth"], "/none.pth"),
        (["--checkpoint={broken}"], "broken.npz cannot be read as an .npz file"),
        (["--checkpoint={missing}"], "lacks 'end_conv.bias'"),
    ],
)
def test_bad_input_to_import(arguments, sentence, command, tmp_path):
    write_npz(tmp_path / "missing.npz", without=["end_conv.bias"])
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    names = {name: tmp_path / f"{name}.npz" for name in ("broken", "missing")}
    arguments = [argument.format(**names) for argument in arguments]
    code, shown = command("--mode=import", f"--workdir={tmp_path / 'run'}", *arguments)
    assert (code, shown.count("\n")) == (2, 1)
    assert sentence in shown
    assert not (tmp_path / "run").exists()
