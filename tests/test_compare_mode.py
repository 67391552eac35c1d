"""The mode compare, on perceptrons trained for a moment."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from runs import (
    finished_perceptron,
    make_command,
    opened,
    perceptron,
    saved_config,
    tree,
)

from score_jax.checkpoint import Checkpoints
from score_jax.cli import compare
from score_jax.cli.flags import parse
from score_jax.cli.run import open_run
from score_jax.evaluation.densities import Likelihood
from score_jax.fitting import initial_params


def write_run(folder, config, state=None, scale=1.0):
    """Writes a workdir without training; the parameters are new ones unless a state is given."""
    if state is None:
        run = open_run(make_command(folder, "train", config), jax.devices()[:1], needs_data=True)
        label = run.data.train_labels if run.conditional else None
        x = run.data.train
        state = run.trainer.init(initial_params(run.trainer, x, label, config["seed"]))
    rng = np.random.default_rng(0)
    noisy = [leaf + scale * rng.normal(size=leaf.shape) for leaf in jax.tree.leaves(state[2])]
    noisy = [np.asarray(leaf, np.float32) for leaf in noisy]
    params = jax.tree.unflatten(jax.tree.structure(state[2]), noisy)
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(20, state._replace(ema_params=params, step=np.int32(20)))
    checkpoints.wait()
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A trained run, one almost like it, another range of noise levels, and a worse one."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished_perceptron(tmp_path_factory), folder / "a")
    state = opened(folder / "a").state
    write_run(folder / "b", perceptron(seed=1), state, scale=1e-3)
    other = {"noise__num_levels": 5, "noise__sigma_max": 0.8, "noise__sigma_min": 0.02}
    write_run(folder / "other", perceptron(**other), state, scale=1e-3)
    write_run(folder / "worse", perceptron(), state, scale=1.0)
    return folder


def compared(command, output, folders, *arguments):
    """Runs the comparison; the content of compare.json."""
    joined = ",".join(map(str, folders))
    code, shown = command(
        "--mode=compare", f"--workdirs={joined}", f"--workdir={output}", *arguments
    )
    assert code == 0, shown
    with Image.open(output / "compare.png") as picture:
        assert picture.size[0] > 600
    return json.loads((output / "compare.json").read_text())


def test_runs_are_compared_on_the_same_examples_and_noise(runs, command, tmp_path, capsys):
    folders = [runs / name for name in ("a", "b", "worse")]
    before = [tree(folder) for folder in folders]
    found = compared(command, tmp_path, folders, "--draws=2")
    assert [tree(folder) for folder in folders] == before
    assert found["runs"] == [str(folder) for folder in folders]
    assert (found["steps"], found["examples"], found["draws"]) == ([20, 20, 20], 297, 2)
    assert found["given_labels"] == [False] * 3
    (dsm,) = found["objectives"]
    assert dsm["name"] == "dsm"
    assert dsm["common_sigmas"] is None
    assert len(dsm["sigmas"]) == 4
    assert [value["run"] for value in dsm["values"]] == found["runs"]
    for value in dsm["values"]:
        assert value["total"] == pytest.approx(np.mean(value["levels"]))
        assert min(value["total_error"], *value["levels_error"]) > 0
    pairs = {tuple(pair["runs"]): pair for pair in dsm["pairs"]}
    a, b, worse = found["runs"]
    assert set(pairs) == {(a, b), (a, worse), (b, worse)}
    assert pairs[a, worse]["verdict"] == f"{a} is better"
    assert pairs[b, worse]["verdict"] == f"{b} is better"
    for pair in pairs.values():
        assert len(pair["levels"]) == 4
        excludes = pair["interval"][0] > 0 or pair["interval"][1] < 0
        assert (pair["verdict"] != "no difference") == excludes
        assert 0 <= pair["power_2_percent"] <= 1

    # Another seed draws other noise, which gives other values within the errors.
    again = compared(command, tmp_path / "again", folders, "--draws=2", "--config.seed=3")
    for value, other in zip(dsm["values"], again["objectives"][0]["values"], strict=True):
        assert value["total"] != other["total"]
        assert abs(value["total"] - other["total"]) < 8 * value["total_error"]


def test_equal_runs_do_not_differ_at_all(runs, command, tmp_path, capsys):
    shutil.copytree(runs / "a", tmp_path / "copy")
    folders = [runs / "a", tmp_path / "copy"]
    found = compared(command, tmp_path / "out", folders, "--objectives=dsm,ssm", "--number=40")
    assert found["examples"] == 40
    assert [each["name"] for each in found["objectives"]] == ["dsm", "ssm"]
    for each in found["objectives"]:
        (pair,) = each["pairs"]
        for difference in (pair, *pair["levels"]):
            assert (difference["difference"], difference["error"]) == (0.0, 0.0)
            assert difference["verdict"] == "no difference"
    # In expectation, ssm is dsm less D / 2.
    dsm, ssm = (each["values"][0]["total"] for each in found["objectives"])
    errors = sum(each["values"][0]["total_error"] for each in found["objectives"])
    assert abs(dsm - ssm - 32) < 5 * errors


def test_other_noise_levels_and_labels_are_compared_and_said(runs, command, tmp_path, capsys):
    found = compared(command, tmp_path, [runs / "a", runs / "other"], "--draws=1")
    (dsm,) = found["objectives"]
    assert dsm["sigmas"][0] == pytest.approx(0.8)
    assert dsm["sigmas"][-1] == pytest.approx(0.03)
    assert "from 0.8 to 0.03" in dsm["common_sigmas"]
    assert all(np.isfinite(value["total"]) for value in dsm["values"])


def conditional(sigmas, num_classes):
    """A network that takes labels: one scale of the data per class."""

    def init(key, x, level, label):
        return {"scale": jnp.ones(num_classes + 1)}

    def apply(params, x, level, label):
        return -(params["scale"][label] / jnp.asarray(sigmas)[level])[:, None, None, None] * x

    return init, apply


def test_conditional_networks_receive_their_labels(runs, command, tmp_path, capsys):
    labels = {"data__labels": True, "model": {"name": "test_compare_mode:conditional"}}
    write_run(tmp_path / "c", perceptron(**labels))
    output = tmp_path / "out"
    found = compared(command, output, [runs / "a", tmp_path / "c"], "--draws=1", "--number=16")
    assert found["given_labels"] == [False, True]


def test_likelihoods_are_compared_in_bits(runs, command, tmp_path):
    arguments = ("--objectives=likelihood", "--number=16")
    found = compared(command, tmp_path, [runs / "a", runs / "b"], *arguments)
    (each,) = found["objectives"]
    assert "bits per dimension" in each["unit"]
    assert (each["sigmas"], each["pairs"][0]["levels"]) == ([], [])
    assert each["note"] is None

    # The same densities as in the mode likelihood.
    copy = shutil.copytree(runs / "a", tmp_path / "copy")
    code, _ = command(f"--workdir={copy}", "--mode=likelihood", "--number=16")
    assert code == 0
    alone = json.loads((copy / "likelihood.json").read_text())["bits_per_dimension"]
    assert each["values"][0]["total"] == pytest.approx(alone["mean"], rel=1e-4)


def test_likelihoods_at_other_sigma_min_are_said_to_be_of_other_data(
    runs, command, tmp_path, monkeypatch
):
    densities = np.linspace(-1.0, 1.0, 6)
    fake = Likelihood(densities, np.ones(6, int), 0.0, 0.0, 0.0)
    monkeypatch.setattr(compare, "log_likelihood", lambda score_fn, **settings: fake)
    arguments = ("--objectives=likelihood", "--number=6")
    found = compared(command, tmp_path, [runs / "a", runs / "other"], *arguments)
    (each,) = found["objectives"]
    assert "sigma_min differs" in each["note"]
    assert f"{runs / 'other'}: 0.02" in each["note"]
    expected = np.mean(np.log2(17) - densities / (64 * np.log(2)))
    assert each["values"][0]["total"] == pytest.approx(expected)


def test_the_exact_error_is_computed_where_the_density_is_known(command, tmp_path):
    """dsm less its minimum is the exact error, so both have the same difference in expectation."""
    toy = {
        "data__source": "mixture",
        "data__size": None,
        "data__channels": None,
        "data__dequantize": False,
        "noise__sigma_max": 5.0,
        "noise__sigma_min": 0.5,
        "sampling__step_size": 0.01,
        "sampling__num_frames": 0,
    }
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        write_run(folder, perceptron(seed=seed, **toy))
    found = compared(command, tmp_path / "out", folders, "--number=2000", "--draws=2")
    dsm, exact = found["objectives"]
    assert (dsm["name"], exact["name"]) == ("dsm", "exact")
    assert all(value["total"] > 0 for value in exact["values"])
    for ours, theirs in zip(dsm["pairs"][0]["levels"], exact["pairs"][0]["levels"], strict=True):
        error = np.hypot(ours["error"], theirs["error"])
        assert abs(ours["difference"] - theirs["difference"]) < 5 * error


def refused(command, *arguments):
    code, shown = command("--mode=compare", *arguments)
    assert code == 2
    assert len(shown.splitlines()) == 1
    return shown


def test_runs_that_cannot_be_compared_are_refused_in_one_sentence(runs, command, tmp_path):
    a, b = runs / "a", runs / "b"
    out = f"--workdir={tmp_path / 'out'}"
    assert "--workdirs is missing" in refused(command, out)
    assert "needs two or more: --workdirs=a,b" in refused(command, f"--workdirs={a}", out)
    assert "twice" in refused(command, f"--workdirs={a},{b},{a}", out)
    assert "as well: list every run once" in refused(command, f"--workdirs={a},{b}/../a", out)
    assert "holds no run" in refused(command, f"--workdirs={a},{tmp_path / 'none'}", out)
    both = f"--workdirs={a},{b}"
    assert "must list some of dsm, ssm" in refused(command, both, out, "--objectives=fid")
    assert "lists dsm twice" in refused(command, both, out, "--objectives=dsm,dsm")
    assert "density is known" in refused(command, both, out, "--objectives=exact")
    assert "--number=2" in refused(command, both, out, "--number=1")
    assert "the steps kept" in refused(command, both, out, "--step=3")

    # A run without a checkpoint, and one of other data.
    empty = shutil.copytree(b, tmp_path / "empty")
    shutil.rmtree(empty / "checkpoints")
    message = refused(command, f"--workdirs={a},{empty}", out)
    assert f"--workdirs={empty} holds no checkpoint" in message
    shutil.copytree(b, tmp_path / "logit")
    config = saved_config(b)
    config["data"]["logit"] = True
    (tmp_path / "logit" / "config.json").write_text(json.dumps(config))
    message = refused(command, f"--workdirs={a},{tmp_path / 'logit'}", out)
    assert "config.data.logit True" in message
    assert not (tmp_path / "out").exists()


def test_files_with_other_examples_are_refused(command, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    folders = [tmp_path / name for name in ("same", "equal", "differing")]
    for folder in folders:
        held_out = x[50:] if folder.name != "differing" else x[40:50]
        np.savez(tmp_path / f"{folder.name}.npz", train=x[:40], held_out=held_out)
    own = {"data__source": "npz", "data__path": str(tmp_path / "same.npz")}
    write_run(folders[0], perceptron(**own))
    for folder in folders[1:]:
        shutil.copytree(folders[0], folder)
        config = saved_config(folder)
        config["data"]["path"] = str(tmp_path / f"{folder.name}.npz")
        (folder / "config.json").write_text(json.dumps(config))
    out = f"--workdir={tmp_path / 'out'}"
    message = refused(command, f"--workdirs={folders[0]},{folders[2]}", out)
    assert f"the held-out examples of {folders[2]} are not those of {folders[0]}" in message
    compared(command, tmp_path / "out", folders[:2], "--draws=1")


def test_the_default_folder_is_runs_compare_and_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    parsed = parse(["--mode=compare", "--workdirs=~/a,b", "--config.seed=3"])
    assert str(parsed.workdir) == "runs/compare"
    assert parsed.options.workdirs == f"{tmp_path}/a,b"
    assert parsed.config["seed"] == 3
