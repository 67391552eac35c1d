import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_run import final_state, samples, small

import main
from score_jax.run import cache

ROOT = Path(__file__).parents[1]


def flags(**settings):
    """The small run's settings as command line flags."""
    config = small(**settings)
    return [
        f"--config.{section}.{name}={value}"
        for section in ("model", "noise", "optim", "training", "sampling")
        for name, value in config[section].items()
    ]


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs main in this process, whose devices are already there; returns the exit code and what stderr said."""
    monkeypatch.setattr(main, "choose_devices", lambda config, requested: jax.devices()[: requested or None])

    def run(*arguments):
        code = main.main([str(argument) for argument in arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    subprocess.run([sys.executable, "main.py", f"--workdir={folder}", *flags(training__num_steps=20)], cwd=ROOT, check=True)
    return folder


def tree(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


BAD_INPUT = {
    "unknown key": (["--config.optim.lr=1e-3"], "--config.optim.lr is not a setting of this config: did you mean"),
    "misspelt key": (["--config.optim.learning_rat=1"], "did you mean optim.learning_rate"),
    "unknown section": (["--config.optimizer.beta1=0.1"], "--config.optimizer.beta1 is not a setting of this config"),
    "unknown mode": (
        ["--mode=tran"],
        "flag --mode=tran: value should be one of <train|sample|evaluate|inpaint|interpolate|export|schedule|figures|import>",
    ),
    "unknown flag": (["--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
    "no workdir": (["--workdir="], "--workdir and --config must not be empty"),
    "no value": (["--config"], "expected one argument: write --workdir=folder and --config=file"),
    "not a flag": (["train"], "'train' is not a flag: write --name=value"),
    "wrong type": (["--config.model.width=wide"], "--config.model.width=wide must be of type int, like 24"),
    "fraction for a whole number": (["--config.training.num_steps=1.5"], "--config.training.num_steps=1.5 must be of type int"),
    "sigmas do not decrease": (["--config.noise.sigma_min=3"], "levels from sigma_max=1 to sigma_min=3 do not decrease"),
    "zero steps": (["--config.training.num_steps=0"], "config.training.num_steps=0 must be at least 1"),
    "zero steps per level": (["--config.sampling.num_steps=0"], "config.sampling.num_steps=0 must be at least 1"),
    "batch not divided": (
        ["--config.training.batch_size=127"],
        "config.training.batch_size=127 cannot be split over 2 devices: use 126 or 128",
    ),
    "sampling batch not divided": (
        ["--config.sampling.batch_size=1"],
        "config.sampling.batch_size=1 cannot be split over 2 devices: use 2",
    ),
    "network cannot take the image": (
        ["--config.data.source=npz", "--config.data.path={odd}", "--config.data.labels=False", "--config.data.label_dropout=0"],
        "cannot take 7x8: height and width must be even",
    ),
    "fields that do not fit": (["--config.model.width=10"], "width=10 must be a multiple of groups=4"),
    "unknown network": (
        ["--config.model.name=resnet"],
        "config.model.name='resnet' is not known: choose among ncsn, ncsnv2, unet, mlp",
    ),
    "a network's foreign field": (
        ["--config.model.name=ncsn", "--config.data.labels=False", "--config.data.label_dropout=0"],
        "is not a setting of this network: choose among name, width, centered",
    ),
    "a network that takes no labels": (["--config.model.name=ncsn"], "the network 'ncsn' takes no labels: set it to False"),
    "data without labels": (
        ["--config.data.source=npz", "--config.data.path={even}"],
        "the source 'npz' has no labels: set it to False",
    ),
    "unknown data": (
        ["--config.data.source=mnist"],
        "config.data.source='mnist' is not known: choose among digits, mixture, npz, idx, folder, zip, tfds",
    ),
    "missing data": (["--config.data.source=npz", "--config.data.path=/none.npz"], "config.data.path='/none.npz' is not a file"),
    "broken data": (["--config.data.source=npz", "--config.data.path={broken}"], "broken.npz cannot be read as an .npz file"),
    "missing config": (["--config=configs/none.py"], "--config=configs/none.py is not a file: there are configs/celeba.py"),
    "broken config": (["--config={broken_config}"], "broken_config.py cannot be loaded (ZeroDivisionError"),
    "no checkpoint to sample": (["--mode=sample"], "holds no checkpoint to sample from: train first"),
    "no checkpoint to evaluate": (["--mode=evaluate"], "holds no checkpoint to evaluate from: train first"),
    "read-only": (["--workdir=/proc/run"], "--workdir=/proc/run cannot be written"),
    "a file in the way": (["--workdir={odd}/run"], "is a file: choose another --workdir"),
    "unstable step size": (["--config.sampling.step_size=0.5"], "config.sampling.step_size=0.5 must be below 2 * sigma_min**2"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_sentence_and_leaves_nothing(case, tmp_path, command):
    np.savez(tmp_path / "odd.npz", train=np.zeros((4, 7, 8, 1), np.uint8), held_out=np.zeros((4, 7, 8, 1), np.uint8))
    np.savez(tmp_path / "even.npz", train=np.zeros((4, 8, 8, 1), np.uint8), held_out=np.zeros((4, 8, 8, 1), np.uint8))
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "broken_config.py").write_text("1 / 0\n")
    before = tree(tmp_path)
    arguments, sentence = BAD_INPUT[case]
    names = {name: tmp_path / f"{name}.npz" for name in ("odd", "even", "broken")} | {
        "broken_config": tmp_path / "broken_config.py"
    }
    code, shown = command(f"--workdir={tmp_path / 'run'}", *(argument.format(**names) for argument in arguments))
    assert code == 2
    assert sentence in shown
    assert shown.startswith("main.py: ")
    assert shown.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config.model.width=8"], "holds another run: config.model.width is 4 there and 8 here; choose another --workdir"),
        (["--config.data.dequantize=False"], "config.data.dequantize is True there and False here"),
        (["--mode=sample", "--config.noise.sigma_max=2.0"], "config.noise.sigma_max is 1.0 there and 2.0 here"),
        (["--config=configs/digits.py"], "holds another run:"),
        (["--config.training.num_steps=10"], "has been trained for 20 steps, more than config.training.num_steps=10"),
    ],
)
def test_a_workdir_of_another_run_is_left_alone(arguments, sentence, trained, command):
    before = tree(trained)
    code, shown = command(f"--workdir={trained}", *arguments)
    assert (code, shown.count("\n")) == (2, 1)
    assert sentence in shown
    assert tree(trained) == before


def test_a_damaged_config_or_no_sound_checkpoint(trained, tmp_path, command):
    copy = shutil.copytree(trained, tmp_path / "copy")
    for path in (copy / "checkpoints").rglob("_METADATA"):
        path.write_text("{")
    code, shown = command(f"--workdir={copy}", "--mode=sample")
    assert code == 2
    assert "can be used (step 20: " in shown
    (copy / "config.json").write_text("{")
    code, shown = command(f"--workdir={copy}", "--mode=sample")
    assert code == 2
    assert "config.json is not valid JSON" in shown


def test_a_full_disk(trained, command, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    code, shown = command(f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert "has 1 MB of free disk, but this run needs about" in shown
    monkeypatch.undo()


def test_a_disk_that_fills_up_on_the_way(trained, tmp_path, command, monkeypatch):
    copy = shutil.copytree(trained, tmp_path / "copy")
    before = samples(copy)["samples"]

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    code, shown = command(f"--workdir={copy}", "--mode=sample")
    assert code == 2
    assert "No space left on device" in shown
    assert shown.count("\n") == 1
    np.testing.assert_array_equal(samples(copy)["samples"], before)
    assert not [path for path in copy.iterdir() if path.name.startswith(".")]


def test_any_mode_runs_from_the_workdir_alone(trained, tmp_path, command):
    copy = shutil.copytree(trained, tmp_path / "copy")
    assert command(f"--workdir={copy}", "--mode=evaluate") == (0, "")
    assert (copy / "evaluation.json").exists()
    assert command(f"--workdir={copy}", "--mode=sample", "--config.sampling.num_samples=5", "--config.seed=2") == (0, "")
    assert samples(copy)["samples"].shape == (5, 8, 8, 1)


def test_checkpoints_without_their_config_are_refused(trained, tmp_path, command):
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "config.json").unlink()
    code, shown = command(f"--workdir={copy}")
    assert code == 2
    assert "holds checkpoints but no config.json: restore it from a copy" in shown


def test_a_foreign_samples_file_is_replaced(trained, tmp_path, command):
    copy = shutil.copytree(trained, tmp_path / "copy")
    (copy / "samples.npz").write_bytes(b"PK half of one")
    assert command(f"--workdir={copy}") == (0, "")
    assert samples(copy)["samples"].shape == (24, 8, 8, 1)


def test_a_run_that_has_saved_nothing_yet_may_be_changed(tmp_path, command):
    (tmp_path / "config.json").write_text(json.dumps(small()))
    found = main.parse([f"--workdir={tmp_path}", "--config.optim.learning_rate=1e-4"])
    assert main.prepare("train", found.config, found.folder, jax.devices()).restored is None


def test_a_run_that_was_stopped_says_so(command, monkeypatch, tmp_path):
    monkeypatch.setitem(main.MODES, "train", (main.MODES["train"][0], lambda job: False))
    assert command(f"--workdir={tmp_path / 'run'}") == (130, "")


def test_workdir_and_config_with_one_dash_and_a_space():
    assert main.parse(["-workdir", "some/where", "-config", "configs/digits.py"])[2] == Path("some/where")


def test_flags_may_come_before_the_config(command, tmp_path):
    found = main.parse(["--config.seed=3", "--devices=1", "--config=configs/digits.py"])
    assert (found.mode, found.config["seed"], found.folder, found.devices) == ("train", 3, Path("runs/digits"), 1)


def test_help_lists_flags_and_settings(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for words in ("--mode", "--workdir", "--devices", "--cache", "--config.optim.learning_rate=0.002"):
        assert words in shown


@pytest.mark.parametrize(
    ("cores", "batch_sizes", "chosen"),
    [(2, (128, 128), 2), (6, (128, 128), 4), (1, (127, 127), 1), (2, (127, 128), 2), (8, (4, 128), 8), (3, (128, 128), 2)],
)
def test_cores_that_share_the_work(cores, batch_sizes, chosen, monkeypatch):
    """All that divide the batches; if fewer than half would, all, so that the batch is refused with a hint."""
    asked = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    config = {"training": {"batch_size": batch_sizes[0]}, "sampling": {"batch_size": batch_sizes[1]}}
    main.choose_devices(config, 0)
    assert asked == {"jax_num_cpu_devices": chosen}


def test_compiled_programs_are_kept_for_the_next_run(trained, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    folder = tmp_path / "user" / "score_jax"

    def evaluate():
        command = [sys.executable, "main.py", f"--workdir={trained}", "--mode=evaluate"]
        done = subprocess.run(
            command, cwd=ROOT, env={**environment, "XDG_CACHE_HOME": str(folder.parent)}, check=True, capture_output=True, text=True
        )
        assert done.stderr.count("\n") <= 1, done.stderr  # how far it is
        (trained / "evaluation.json").unlink()
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    first = evaluate()
    assert any(name.endswith("-cache") for name in first)
    assert evaluate() == first


def test_where_compiled_programs_are_kept(tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def kept(folder):
        asked.clear()
        cache.keep_compiled(folder)
        return asked.get("jax_compilation_cache_dir", "as it was")

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "jax"))
    assert kept(None) == "as it was"
    assert kept(str(tmp_path / "flag")) == str(tmp_path / "flag")
    assert kept("") is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert kept(None) is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert not (tmp_path / "score_jax").exists()
    assert kept(None) == str(tmp_path / "score_jax")
    assert asked["jax_persistent_cache_min_compile_time_secs"] == 0
    assert capsys.readouterr().err == ""
    assert kept("/proc/cache") is None
    shown = capsys.readouterr().err
    assert shown.startswith("main.py: compiled programs are not kept, --cache=/proc/cache cannot be written (")
    assert shown.count("\n") == 1


def test_the_oldest_compiled_programs_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(cache, "LARGEST", 250)
    for age, name in enumerate(("new", "newer", "old", "older")):
        (tmp_path / f"{name}-cache").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{name}-cache", (1e9 - age, 1e9 - age))
    (tmp_path / "not ours").write_bytes(b"x" * 1000)
    cache.keep_compiled(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"new-cache", "newer-cache", "not ours"}


def test_kill_in_the_middle_of_training_loses_nothing(tmp_path):
    """kill -9, then the same command again: the bits of a run that was never killed."""
    settings = flags(training__num_steps=300, training__checkpoint_every=25, training__eval_every=300)
    start = [sys.executable, "main.py", *settings, "--config.sampling.num_samples=4", "--config.sampling.batch_size=4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen([*start, f"--workdir={killed}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    for _ in itertools.takewhile(lambda _: process.poll() is None, range(1200)):
        if (killed / "checkpoints" / "100").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "samples.npz").exists()
    done = max(int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit())
    assert 100 <= done < 300
    again = subprocess.run([*start, f"--workdir={killed}"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "continues from the checkpoint of step" in again.stdout
    subprocess.run([*start, f"--workdir={whole}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    step, state = final_state(killed)
    assert step == 300
    for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(final_state(whole)[1]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(samples(killed)["samples"], samples(whole)["samples"])
