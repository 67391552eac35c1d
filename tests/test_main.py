"""The command line: parsing, help, refusals, devices, the cache, and Ctrl-C."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import (
    ROOT,
    finished_run,
    flags,
    make_command,
    opened,
    perceptron,
    samples,
    small,
    tree,
)

from score_jax.cli import cache, config_files, interrupts, main, modes, workdir
from score_jax.cli.flags import Command, Options, parse
from score_jax.cli.modes import EVERY_MODE, FLAGS, MODES
from score_jax.cli.settings import flatten
from score_jax.cli.table import SETTINGS, allowed, written


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of a finished run, to be changed."""
    return shutil.copytree(finished, tmp_path / "copy")


# Parsing


def test_without_flags_the_digits_are_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parse([])
    config = config_files.load_config("digits")
    expected = Command(mode="train", config=config, workdir=Path("runs/digits"), is_default=True)
    assert found == expected
    assert found.options == Options()


def test_flags_in_any_order_with_one_dash_or_two_and_a_space():
    words = ["-config.seed", "3", "--devices=1", "-workdir", "some/where", "--config=digits"]
    found = parse(words)
    assert (found.config["seed"], found.devices, found.workdir) == (3, 1, Path("some/where"))


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--config.data.flip", "data.flip", True),
        ("--config.data.flip=True", "data.flip", True),
        ("--config.data.flip=false", "data.flip", False),
        ("--noconfig.data.dequantize", "data.dequantize", False),
        ("-noconfig.data.dequantize", "data.dequantize", False),
        ("--config.optim.clip_norm=none", "optim.clip_norm", None),
        ("--config.optim.clip_norm=None", "optim.clip_norm", None),
        ("--config.data.path=", "data.path", None),
        ("--config.data.path=a b/(c).npz", "data.path", "a b/(c).npz"),
        ("--config.data.size=16", "data.size", 16),
        ("--config.optim.learning_rate=1e-4", "optim.learning_rate", 1e-4),
        ("--config.optim.learning_rate=1", "optim.learning_rate", 1.0),
        ("--config.loss.name=mine.losses:robust", "loss.name", "mine.losses:robust"),
        ("--config.model.width=12", "model.width", 12),
    ],
)
def test_a_flag_sets_a_setting(flag, name, value):
    settings = dict(flatten(parse([flag]).config))
    assert settings[name] == value
    assert type(settings[name]) is type(value)


@pytest.mark.parametrize("text", ["64,32", "(64, 32)", "[64,32]", "64, 32,"])
def test_tuples_are_written_with_or_without_brackets(text):
    found = parse(["--config=toy", f"--config.model.hidden={text}"])
    assert found.config["model"]["hidden"] == (64, 32)
    found = parse(["--config=toy", "--config.model.hidden=64"])
    assert found.config["model"]["hidden"] == (64,)


def test_the_last_of_equal_flags_wins():
    assert parse(["--config.seed=1", "--config.seed=2"]).config["seed"] == 2


@pytest.mark.parametrize("name", ["mnist", "mnist.py", "configs/mnist", "configs/mnist.py"])
def test_published_configs_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parse([f"--config={name}"])
    assert found.config == config_files.load_config("mnist")
    assert found.workdir == Path("runs/mnist")


def test_a_config_file_takes_what_follows_the_colon(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from score_jax.cli.settings import ncsn\n"
        "def get_config(seed='1'):\n    return ncsn(seed=int(seed))\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse(["--config=~/mine.py"]).config["seed"] == 1
    found = parse([f"--config={tmp_path}/mine.py:7"])
    assert (found.config["seed"], found.workdir) == (7, Path("runs/mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_a_file_here_goes_before_a_published_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    source = (ROOT / "configs" / "toy.py").read_text()
    (tmp_path / "configs" / "mnist.py").write_text(source)
    assert parse(["--config=configs/mnist.py"]).config["model"]["name"] == "mlp"
    assert parse(["--config=mnist"]).config["model"]["name"] == "ncsn"


def test_a_config_may_be_a_plain_dict_with_lists(tmp_path):
    config = json.loads(json.dumps(perceptron()))
    (tmp_path / "mine.py").write_text(f"null = None\ndef get_config():\n    return {config!r}\n")
    assert parse([f"--config={tmp_path}/mine.py"]).config["model"]["hidden"] == (16,)


def test_the_saved_config_is_used_without_config(tmp_path):
    saved = json.loads(json.dumps(perceptron(seed=5)))
    saved["sampling"]["step_size"] = 0.0  # as earlier versions wrote it
    (tmp_path / "config.json").write_text(json.dumps(saved))
    found = parse([f"--workdir={tmp_path}", "--config.model.hidden=8,8"])
    assert found.config["seed"] == 5
    assert found.config["model"]["hidden"] == (8, 8)
    assert found.config["sampling"]["step_size"] is None
    assert parse([f"--workdir={tmp_path}", "--config=digits"]).config["seed"] == 0


def test_the_home_folder_is_meant_in_every_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    found = parse(["--workdir=~/runs/x", "--cache=~/cache"])
    assert (found.workdir, found.cache) == (Path("/home/someone/runs/x"), "/home/someone/cache")
    found = parse(["--mode=inpaint", "--image=~/a.png,b.png,~/c d/*.png", "--mask=~/mask.png"])
    assert found.options.image == "/home/someone/a.png,b.png,/home/someone/c d/*.png"
    assert found.options.mask == "/home/someone/mask.png"
    assert parse(["--mode=inpaint", "--mask=left"]).options.mask == "left"
    found = parse(["--mode=schedule", "--write=~/mine.py"])
    assert found.options.write == "/home/someone/mine.py"
    found = parse(["--mode=import", "--config=mnist", "--checkpoint=~/x.pth"])
    assert found.options.checkpoint == "/home/someone/x.pth"


def test_an_empty_cache_is_none_at_all():
    assert parse(["--cache="]).cache == ""
    assert parse([]).cache is None


# Networks and other objects that a flag changes


def test_another_network_brings_its_own_fields():
    unconditional = ["--noconfig.data.labels", "--config.data.label_dropout=0"]
    found = parse(["--config.model.name=ncsn", "--config.model.width=8", *unconditional])
    assert found.config["model"] == config_files.load_config("cifar10")["model"] | {"width": 8}
    found = parse(["--config.model.name=mine:Net", "--config.model.depth=3"])
    assert found.config["model"] == {"name": "mine:Net", "depth": 3}


def test_own_objects_take_settings_of_their_own(tmp_path):
    words = ["--config.loss.name=mine:robust", "--config.sampling.method=mine:walk"]
    values = {"1": 1, "0.5": 0.5, "True": True, "none": None, "(1, 2)": (1, 2), "a b": "a b"}
    for text, value in values.items():
        config = parse([*words, f"--config.loss.extra={text}"]).config
        assert config["loss"]["extra"] == value
        assert type(config["loss"]["extra"]) is type(value)
    with pytest.raises(ValueError, match=r"--config\.loss\.extra is not a setting: loss has name"):
        parse(["--config.loss.extra=1"])
    with pytest.raises(ValueError, match=r"config\.loss\.extra=1e400 must be|extra=inf must be"):
        parse([*words, "--config.loss.extra=1e400"])

    # In a saved config they keep their type, and go when the object changes.
    saved = json.loads(json.dumps(perceptron()))
    saved["loss"] |= {"name": "mine:robust", "scale": 2.0, "kind": "1"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    folder = f"--workdir={tmp_path}"
    config = parse([folder, "--config.loss.scale=3", "--config.loss.kind=2"]).config
    assert isinstance(config["loss"]["scale"], float)
    assert config["loss"]["kind"] == "2"
    assert "scale" not in parse([folder, "--config.loss.name=dsm"]).config["loss"]


# Flags and settings that a mode does not use

VALUES = {
    "dry_run": "True",
    "debug_nans": "True",
    "coordinator": "none",
    "num_processes": "2",
    "process_id": "0",
    "label": "3",
    "number": "3",
    "completions": "3",
    "subsample": "3",
    "mask": "left",
    "noise": "0.1",
    "method": "dps",
    "guidance": "2",
    "draws": "2",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", [flag.name for flag in FLAGS if flag.name not in EVERY_MODE])
def test_a_flag_that_a_mode_does_not_use_is_refused(mode, flag):
    words = ["--config=digits", f"--mode={mode}", f"--{flag}={VALUES.get(flag, 'x')}"]
    if flag in MODES[mode].flags:
        assert parse(words).mode == mode
        return
    users = [f"--mode={name}" for name, other in MODES.items() if flag in other.flags]
    listed = " and ".join([", ".join(users[:-1]), users[-1]]) if users[1:] else users[0]
    message = f"--{flag} is not used by --mode={mode}; it is used by {listed}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(words)


def test_every_flag_is_used_by_some_mode():
    used = {flag for mode in MODES.values() for flag in mode.flags} | set(EVERY_MODE)
    assert used == {flag.name for flag in FLAGS}
    own = {"options", "changes", "is_default"}
    assert set(Options._fields) | set(Command._fields) - own == used - {"help"}


READ = {
    "train": {"seed", "data.flip", "noise.sigma_min", "optim.beta1", "training.log_every"},
    "sample": {"seed", "data.path", "model.width", "noise.sigma_max", "sampling.num_steps"},
    "evaluate": {"seed", "loss.name", "training.batch_size", "data.device_megabytes"},
    "likelihood": {"seed", "sampling.batch_size", "data.path", "data.device_megabytes"},
    "inpaint": {"sampling.guidance", "data.path"},
    "restore": {"sampling.method", "data.path", "seed"},
    "interpolate": {"sampling.step_size"},
    "export": {"sampling.num_steps", "seed"},
    "metrics": {"data.path", "noise.sigma_min", "model.width"},
    "stats": {"data.path", "data.size"},
    "figures": {"sampling.batch_size", "seed"},
    "compare": {"seed"},
    "report": {"data.path"},
    "schedule": {"data.path", "noise.sigma_min", "sampling.num_steps", "seed"},
    "import": {"training.num_steps", "data.size", "sampling.step_size"},
}
NOT_READ = {
    "sample": {"optim.learning_rate", "training.batch_size", "loss.name"},
    "evaluate": {"sampling.num_steps", "optim.beta1", "training.num_steps"},
    "likelihood": {"loss.name", "training.batch_size", "optim.beta1"},
    "inpaint": {"loss.name", "training.log_every"},
    "restore": {"loss.name", "training.batch_size"},
    "interpolate": {"optim.clip_norm"},
    "export": {"loss.levels", "optim.beta2"},
    "metrics": {"training.batch_size", "optim.beta1"},
    "stats": {"training.batch_size", "loss.levels"},
    "figures": {"training.batch_size"},
    "compare": {"loss.name", "training.batch_size", "data.path", "sampling.num_steps"},
    "report": {"loss.name", "sampling.num_steps", "optim.beta1"},
    "schedule": {"noise.num_levels", "noise.sigma_max", "model.width", "optim.beta1"},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_setting_that_a_mode_does_not_use_is_refused(mode):
    for name in READ[mode]:
        parse(["--config=digits", f"--mode={mode}", setting_flag(name)])
    for name in NOT_READ.get(mode, ()):
        message = rf"--config\.{name} is not used by --mode={mode}; it is used by --mode=train"
        with pytest.raises(ValueError, match=message):
            parse(["--config=digits", f"--mode={mode}", setting_flag(name)])


def setting_flag(name):
    """A flag that gives a setting the value that the digits have."""
    return f"--config.{name}={written(dict(flatten(config_files.load_config('digits')))[name])}"


def test_a_schedule_that_is_written_can_have_any_setting():
    words = ["--mode=schedule", "--write=x.py", "--config.optim.learning_rate=1e-4"]
    assert parse(words).config["optim"]["learning_rate"] == 1e-4


# Help


def helped(*arguments):
    done = subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def flat(text):
    return " ".join(text.split())


def entry(text, flag):
    """What help says of one flag."""
    [found] = re.findall(
        rf"^  (?:-h,)?--(?:\[no\])?{re.escape(flag)}: .*\n(?:    .*\n?)*", text, re.M
    )
    return flat(found)


def test_help_explains_every_mode_flag_and_setting():
    shown = helped("--config=cifar10", "--help")
    for name, mode in MODES.items():
        assert re.search(rf"^  {name} +{re.escape(mode.meaning)}$", shown, re.MULTILINE)
        assert " ".join(f"--{flag}" for flag in mode.flags) in shown
    for flag in FLAGS:
        found = entry(shown, flag.name)
        assert flag.meaning in found
        if flag.kind is int or flag.choices:
            assert f"({flat(allowed(flag))})" in found
    settings = dict(flatten(config_files.load_config("cifar10")))
    for name, setting in SETTINGS.items():
        found = entry(shown, f"config.{name}")
        assert setting.meaning in found
        if setting.kind is not str or setting.choices:
            assert f"({flat(allowed(setting))})" in found
        if name in settings:
            assert f"(default: {written(settings[name])})" in found
    for name in config_files.published_configs():
        assert name in shown


def test_help_shows_the_values_of_the_chosen_config():
    shown = helped("-h", "--config=toy", "--config.seed=5")
    assert "(default: 5)" in entry(shown, "config.seed")
    assert "(default: (128, 128))" in entry(shown, "config.model.hidden")
    assert "default" not in entry(shown, "config.model.width")


def test_in_this_process_help_returns_0(capsys):
    assert main.main(["--help"]) == 0
    assert "--config.optim.learning_rate" in capsys.readouterr().out
    assert parse(["--mode=sample", "--help", "--dry_run"]) is None


HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "matplotlib", "tensorboard", "torch", "numpy"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--config=cifar10", "-h"], ["--label=3"], ["--config.optim.lr=1"]]
)
def test_help_and_refusals_import_nothing_heavy(arguments):
    code = (
        "import sys; from score_jax.cli.main import main; main(sys.argv[1:]); "
        "print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}
    assert "absl" in loaded
    assert not loaded & HEAVY


def test_the_reader_of_help_may_leave(tmp_path):
    shown = subprocess.run(
        f"{shlex.quote(sys.executable)} main.py --help | head -1",
        cwd=ROOT,
        shell=True,
        capture_output=True,
        text=True,
    )
    assert shown.stderr == ""


# Bad input

BAD_INPUT = {
    "unknown key": (
        ["--config.optim.lr=1e-3"],
        "--config.optim.lr is not a setting (did you mean optim.learning_rate?): optim has",
    ),
    "misspelt key": (["--config.optim.learning_rat=1"], "did you mean optim.learning_rate"),
    "unknown section": (
        ["--config.optimizer.beta1=0.1"],
        "--config.optimizer.beta1 is not a setting (did you mean optim.beta1",
    ),
    "a section": (["--config.optim=0.1"], "--config.optim is not a setting: optim has"),
    "unknown mode": (
        ["--mode=tran"],
        "--mode=tran must be train, sample, evaluate, likelihood, inpaint, restore, interpolate, "
        "export, metrics, stats, figures, compare, report, schedule or import",
    ),
    "unknown flag": (["--wrkdir=x"], "--wrkdir is not a flag: did you mean --workdir"),
    "no such flag": (["--xyzzy"], "--xyzzy is not a flag (score-jax --help lists the flags)"),
    "no workdir": (["--workdir="], "--workdir= must be a non-empty text"),
    "no config": (["--config="], "--config= must be a non-empty text"),
    "no value": (["--config"], "--config needs a value: write --config=value"),
    "no value of a setting": (["--config.seed"], "--config.seed needs a value"),
    "a value after no": (["--noconfig.data.flip=1"], "does not take an argument"),
    "address": (
        ["--workdir=gs://bucket/run"],
        "--workdir=gs://bucket/run is an address, not a path: mount that storage",
    ),
    "not a flag": (["train"], "'train' is not a flag: write --name=value"),
    "missing file of flags": (["--flagfile=/none"], "Unable to open flagfile"),
    "wrong type": (
        ["--config.model.width=wide"],
        "--config.model.width=wide must be an integer from 1 to 65536",
    ),
    "fraction for a whole number": (
        ["--config.training.num_steps=1.5"],
        "--config.training.num_steps=1.5 must be an integer",
    ),
    "neither true nor false": (["--config.data.flip=maybe"], "=maybe must be True or False"),
    "not a number": (["--config.model.data_mean=nan"], "=nan must be a number from -1e6 to 1e6"),
    "too small": (["--config.optim.learning_rate=1e-320"], "=1e-320 must be a number from 1e-12"),
    "too large": (["--config.training.batch_size=1000000000000"], "must be an integer from 1 to"),
    "no tuple": (["--config=toy", "--config.model.hidden=8,x"], "=8,x must be a tuple such as"),
    "none where it is not allowed": (["--config.seed=none"], "=none must be an integer from 0"),
    "0 for none": (["--config.data.size=0"], "=0 must be an integer from 1 to 65536, or none"),
    "no devices": (["--devices=0"], "--devices=0 must be an integer from 1 to 4096"),
    "a negative label": (["--mode=sample", "--label=-1"], "--label=-1 must be an integer from 0"),
    "a flag of another mode": (["--label=3"], "--label is not used by --mode=train"),
    "a setting of another mode": (
        ["--mode=sample", "--config.optim.beta1=0.5"],
        "--config.optim.beta1 is not used by --mode=sample; it is used by --mode=train",
    ),
    "sigmas do not decrease": (
        ["--config.noise.sigma_min=3"],
        "levels from sigma_max=1 to sigma_min=3 do not decrease",
    ),
    "zero steps": (
        ["--config.training.num_steps=0"],
        "--config.training.num_steps=0 must be an integer from 1",
    ),
    "zero steps per level": (
        ["--config.sampling.num_steps=0"],
        "--config.sampling.num_steps=0 must be an integer from 1",
    ),
    "batch not divided": (
        ["--config.training.batch_size=127"],
        "config.training.batch_size=127 cannot be split over 2 devices: use 126 or 128",
    ),
    "sampling batch not divided": (
        ["--config.sampling.batch_size=1"],
        "config.sampling.batch_size=1 cannot be split over 2 devices: use 2",
    ),
    "more devices than there are": (
        ["--devices=64"],
        "--devices=64 is more than there are: 2 x cpu",
    ),
    "network cannot take the image": (
        [
            "--config.data.source=npz",
            "--config.data.path={odd}",
            "--config.data.labels=False",
            "--config.data.label_dropout=0",
        ],
        "cannot take 7x8: height and width must be multiples of 2; set config.data.size",
    ),
    "fields that do not fit": (
        ["--config.model.width=10"],
        "config.model.width=10 must be a multiple of",
    ),
    "unknown network": (
        ["--config.model.name=resnet"],
        "--config.model.name=resnet must be ncsn, ncsnv2, unet or mlp, or your own as",
    ),
    "missing module": (
        ["--config.loss.name=no_such_module:loss"],
        "config.loss.name='no_such_module:loss': the module 'no_such_module' cannot be imported",
    ),
    "a network's foreign field": (
        ["--config=cifar10", "--config.model.heads=2"],
        "config.model.heads is not a setting: the network 'ncsn' has name, width, centered",
    ),
    "a network that takes no labels": (
        ["--config.model.name=flax.linen:Dense", "--config.model.features=1"],
        "config.model.name='flax.linen:Dense' takes no labels: set config.data.labels to False",
    ),
    "data without labels": (
        ["--config.data.source=npz", "--config.data.path={even}"],
        "the source 'npz' has no labels: set it to False",
    ),
    "unknown data": (
        ["--config.data.source=mnist"],
        "--config.data.source=mnist must be digits, mixture, npz, idx, folder, zip or tfds, or",
    ),
    "missing data": (
        ["--config.data.source=npz", "--config.data.path=/none.npz"],
        "config.data.path='/none.npz' is not a file",
    ),
    "broken data": (
        ["--config.data.source=npz", "--config.data.path={broken}"],
        "broken.npz cannot be read as an .npz or .npy file",
    ),
    "missing config": (
        ["--config=configs/none.py"],
        "--config=configs/none.py is neither a Python file nor a published config: choose among "
        "celeba, celeba_v2",
    ),
    "broken config": (
        ["--config={broken_config}"],
        "broken_config.py cannot be loaded (ZeroDivisionError: division by zero)",
    ),
    "no get_config": (["--config={no_config}"], "(NameError: it defines no function get_config)"),
    "a config that is none": (
        ["--config={three}"],
        "must return an ml_collections.ConfigDict, got",
    ),
    "no checkpoint to sample": (
        ["--mode=sample"],
        "holds no checkpoint to sample from: train first",
    ),
    "no checkpoint to evaluate": (
        ["--mode=evaluate"],
        "holds no checkpoint to evaluate from: train first",
    ),
    "read-only": (["--workdir=/proc/run"], "--workdir=/proc/run cannot be written"),
    "a file in the way": (["--workdir={odd}/run"], "is a file: choose another --workdir"),
    "unstable step size": (
        ["--config.sampling.method=annealed", "--config.sampling.step_size=0.5"],
        "config.sampling.step_size=0.5 must be below 2 * sigma_min**2",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_sentence_and_leaves_nothing(case, tmp_path, command):
    odd, even = np.zeros((4, 7, 8, 1), np.uint8), np.zeros((4, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "odd.npz", train=odd, held_out=odd)
    np.savez(tmp_path / "even.npz", train=even, held_out=even)
    (tmp_path / "broken.npz").write_bytes(b"PK nothing")
    (tmp_path / "broken_config.py").write_text("1 / 0\n")
    (tmp_path / "no_config.py").write_text("config = {}\n")
    (tmp_path / "three.py").write_text("def get_config():\n    return 3\n")
    before = tree(tmp_path)
    arguments, sentence = BAD_INPUT[case]
    names = {path.stem: path for path in tmp_path.iterdir()}
    words = [argument.format(**names) for argument in arguments]
    code, shown = command(f"--workdir={tmp_path / 'run'}", *words)
    assert sentence in shown
    assert code == 2
    assert shown.startswith("score-jax: ")
    assert shown.count("\n") == 1
    assert tree(tmp_path) == before


def test_a_backend_that_does_not_start_is_one_sentence(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(
        [sys.executable, "main.py", f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        pytest.skip("there is a GPU")
    assert done.returncode == 2
    sentence = [line for line in done.stderr.splitlines() if line.startswith("score-jax: ")]
    assert len(sentence) == 1
    assert "JAX_PLATFORMS=cuda gives no device (" in sentence[0]
    assert "set JAX_PLATFORMS=cpu to use the CPU" in sentence[0]
    assert "Traceback" not in done.stderr


# A workdir of another run, or a damaged one


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--config.model.width=8"],
            "holds another run: config.model.width is 4 there and 8 here; choose another",
        ),
        (
            ["--config.data.dequantize=False"],
            "config.data.dequantize is True there and False here",
        ),
        (
            ["--mode=sample", "--config.noise.sigma_max=2.0"],
            "config.noise.sigma_max is 1.0 there and 2.0 here",
        ),
        (["--config=digits"], "holds another run:"),
        (
            ["--config.training.num_steps=10"],
            "has been trained for 60 steps, more than config.training.num_steps=10",
        ),
    ],
)
def test_a_workdir_of_another_run_is_left_alone(arguments, sentence, finished, command):
    before = tree(finished)
    code, shown = command(f"--workdir={finished}", *arguments)
    assert (code, shown.count("\n")) == (2, 1)
    assert sentence in shown
    assert tree(finished) == before


def test_a_damaged_config_or_no_sound_checkpoint(copied, command):
    for path in (copied / "checkpoints").rglob("_METADATA"):
        path.write_text("{")
    code, shown = command(f"--workdir={copied}", "--mode=sample")
    assert code == 2
    assert "can be used (step 60: " in shown
    (copied / "config.json").write_text("{")
    code, shown = command(f"--workdir={copied}", "--mode=sample")
    assert code == 2
    assert "config.json is not valid JSON" in shown
    (copied / "config.json").write_text('{"data": 3}')
    code, shown = command(f"--workdir={copied}", "--mode=sample")
    assert code == 2
    assert "config.data=3 must be a section of settings" in shown


def test_checkpoints_without_their_config_are_refused(copied, command):
    (copied / "config.json").unlink()
    code, shown = command(f"--workdir={copied}", *flags(small()), "--config.training.num_steps=60")
    assert code == 2
    assert "holds checkpoints but no config.json: restore it from a copy" in shown


def test_remains_of_a_folder_that_vanished_do_not_stand_in_the_way(copied, command):
    for path in copied.iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for step in (copied / "checkpoints").iterdir():
        shutil.rmtree(step / "meta")
    assert (
        command(f"--workdir={copied}", *flags(small()), "--config.training.num_steps=60")[0] == 0
    )
    assert (copied / "samples.npz").exists()
    assert list((copied / "checkpoints").glob("unusable_*"))


def test_any_mode_runs_from_the_workdir_alone(copied, command):
    assert command(f"--workdir={copied}", "--mode=evaluate") == (0, "")
    assert (copied / "evaluation.json").exists()
    assert command(f"--workdir={copied}", "--mode=sample", "--number=5", "--name=few") == (0, "")
    assert samples(copied, "few")["samples"].shape == (5, 8, 8, 1)


def test_a_damaged_samples_file_is_replaced(copied, command):
    (copied / "samples.npz").write_bytes(b"PK half of one")
    assert command(f"--workdir={copied}") == (0, "")
    assert samples(copied)["samples"].shape == (24, 8, 8, 1)


def test_a_run_that_has_saved_nothing_yet_may_be_changed(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small()))
    found = parse([f"--workdir={tmp_path}", "--config.optim.learning_rate=1e-4"])
    assert opened(tmp_path, "train", config=found.config).step is None


# The disk


def test_a_full_disk(command, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    code, shown = command(f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert "has 1 MB of free disk, but this run needs about" in shown
    assert "most of it for config." in shown


def test_a_disk_that_fills_up_on_the_way(copied, command, monkeypatch):
    before = samples(copied)["samples"]

    def full(file, header):
        raise OSError(28, "No space left on device", "samples.npz")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    words = ["--mode=sample", "--config.seed=1"]
    code, shown = command(f"--workdir={copied}", *words)
    assert code == 2
    assert shown == (
        "score-jax: reading or writing failed with samples.npz (No space left on device): files "
        "written so far are kept\n"
    )
    np.testing.assert_array_equal(samples(copied)["samples"], before)
    assert {path.suffix for path in copied.glob(".*")} <= {".lock"}


# Stopping


def replaced(monkeypatch, mode, function):
    """Lets a mode run another function."""
    monkeypatch.setattr(main, "_function", lambda name: {mode: function}[name])


def test_a_run_that_was_stopped_says_so(command, monkeypatch, tmp_path):
    def stopped(command, devices):
        raise interrupts.Stopped(signal.SIGTERM)

    replaced(monkeypatch, "train", stopped)
    assert command(f"--workdir={tmp_path / 'run'}") == (143, "")


def test_an_interrupt_in_this_process_is_one_line(command, monkeypatch, tmp_path):
    def interrupted(command, devices):
        raise KeyboardInterrupt

    replaced(monkeypatch, "train", interrupted)
    assert command(f"--workdir={tmp_path / 'run'}") == (130, "score-jax: interrupted\n")


COMPILES_LONG = """
import sys
from score_jax.cli import main

def mode(command, devices):
    import jax
    import jax.numpy as jnp

    def chain(x):
        for i in range(1500):
            x = jnp.sin(x) @ x + i
        return x

    print("compiling", flush=True)
    lowered = jax.jit(chain).lower(jnp.ones((8, 8)))
    print("lowered", flush=True)
    lowered.compile()
    return True

main._function = lambda name: mode
sys.exit(main.main())
"""


@pytest.mark.parametrize(
    ("moment", "number", "said"),
    [
        ("starting", signal.SIGINT, "interrupted"),
        ("importing", signal.SIGHUP, "stopped by SIGHUP"),
        ("compiling", signal.SIGTERM, "stopped by SIGTERM"),
        ("lowered", signal.SIGINT, "interrupted"),
    ],
)
def test_a_signal_ends_at_once_in_one_line(moment, number, said, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(COMPILES_LONG)
    process = subprocess.Popen(
        [sys.executable, str(program), "--cache=", f"--workdir={tmp_path / 'run'}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    delay = {"starting": 0.4, "importing": 1.0}.get(moment, 0.5)
    for line in process.stdout if moment not in ("starting", "importing") else ():
        if line.startswith(moment):
            break
    time.sleep(delay)
    begun = time.monotonic()
    process.send_signal(number)
    _, shown = process.communicate(timeout=120)
    assert (process.returncode, shown) == (128 + number, f"score-jax: {said}\n")
    assert time.monotonic() - begun < 10  # a compile takes far longer


# Devices


@pytest.mark.parametrize(
    ("cores", "batch_sizes", "mode", "chosen"),
    [
        (2, (128, 128), "train", 2),
        (6, (128, 128), "train", 4),
        (1, (127, 127), "train", 1),
        (2, (127, 128), "train", 2),
        (8, (4, 128), "train", 8),
        (3, (128, 128), "train", 2),
        (4, (128, 3), "train", 4),
        (4, (128, 3), "sample", 3),
        (4, (3, 128), "evaluate", 3),
        (4, (3, 3), "schedule", 4),
    ],
)
def test_cores_that_share_the_work(cores, batch_sizes, mode, chosen, monkeypatch):
    """Those that divide the batches; if they are fewer than half, all, and a hint follows."""
    asked = {}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    sizes = zip(("training", "sampling"), batch_sizes, strict=True)
    main.choose_devices({section: {"batch_size": size} for section, size in sizes}, None, mode)
    assert asked == {"jax_num_cpu_devices": chosen}


def test_fewer_devices_than_there_are():
    config = config_files.load_config("digits")
    assert main.choose_devices(config, 1, "train") == jax.devices()[:1]
    assert main.choose_devices(config, None, "train") == jax.devices()


# Compiled programs


def test_compiled_programs_are_kept_for_the_next_run(finished, tmp_path):
    environment = {name: value for name, value in os.environ.items() if "JAX" not in name}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "user")}
    folder = tmp_path / "user" / "score_jax"

    def evaluate():
        done = subprocess.run(
            [sys.executable, "main.py", f"--workdir={finished}", "--mode=evaluate"],
            cwd=ROOT,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stderr.count("\n") <= 1, done.stderr  # progress
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
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept("~/home cache") == str(tmp_path / "home cache")
    assert capsys.readouterr().err == ""
    assert kept("/proc/cache") is None
    shown = capsys.readouterr().err
    words = "compiled programs are not kept, because --cache=/proc/cache cannot be written ("
    assert shown.startswith(f"score-jax: {words}")
    assert shown.count("\n") == 1


def test_the_oldest_compiled_programs_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(cache, "MAX_BYTES", 250)
    for age, name in enumerate(("new", "newer", "old", "older")):
        (tmp_path / f"{name}-cache").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{name}-cache", (1e9 - age, 1e9 - age))
    (tmp_path / "not ours").write_bytes(b"x" * 1000)
    (tmp_path / "gone-cache").symlink_to("removed meanwhile")
    cache.keep_compiled(str(tmp_path))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"new-cache", "newer-cache", "not ours", "gone-cache"}


# What the command prints


@pytest.mark.parametrize("name", ["a b", "it's", "(x)", "$HOME; rm *", '"quoted"', "plain"])
def test_printed_commands_can_be_pasted(name):
    folder = Path("runs") / name
    line = workdir.command_line("--workdir", folder, "--mode=sample", "--number", 10)
    assert shlex.split(line) == [
        "score-jax",
        f"--workdir={folder}",
        "--mode=sample",
        "--number=10",
    ]
    found = parse(shlex.split(line)[1:])
    assert (found.workdir, found.options.number) == (folder, 10)


def test_the_command_is_the_same_three_ways():
    shown = {helped("--help")}
    for words in (["-m", "score_jax"], ["-m", "score_jax.cli.main"]):
        done = subprocess.run(
            [sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0
        shown.add(done.stdout)
    assert len(shown) == 1


def test_modes_name_functions_that_exist():
    for mode in MODES.values():
        module, _, function = mode.function.partition(":")
        file = ROOT / (module.replace(".", "/") + ".py")
        assert f"def {function}(command: Command, devices" in file.read_text()
    assert modes.users("label") == "--mode=sample, --mode=inpaint and --mode=restore"


def test_a_mode_gets_its_command_and_devices(tmp_path, monkeypatch):
    seen = []
    replaced(monkeypatch, "evaluate", lambda *arguments: seen.append(arguments) or True)
    assert main.main(["--mode=evaluate", f"--workdir={tmp_path}", "--devices=1"]) == 0
    [(command, devices)] = seen
    expected = make_command(tmp_path, "evaluate", command.config)
    assert command == expected._replace(devices=1, is_default=True)
    assert devices == jax.devices()[:1]
