"""Small runs for the tests of the command: narrow networks, few steps."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from score_jax.cli.config_files import load_config
from score_jax.cli.flags import Command, Options
from score_jax.cli.main import main
from score_jax.cli.modes import MODES
from score_jax.cli.run import open_run

ROOT = Path(__file__).parents[1]

NARROW = {
    "model__width": 4,
    "model__groups": 4,
    "noise__num_levels": 4,
    "optim__warmup_steps": 5,
    "training__num_steps": 60,
    "training__batch_size": 32,
    "training__log_every": 20,
    "training__eval_every": 30,
    "training__eval_batches": 2,
    "training__steps_per_call": 7,  # divides none of the others
    "training__preview_every": None,
    "training__metric_samples": 0,
    "training__checkpoint_every": 20,
    "sampling__num_samples": 24,
    "sampling__batch_size": 16,
    "sampling__method": "annealed",
    "sampling__num_steps": 3,
    "sampling__num_frames": 3,
}
"""Settings of a network so narrow that compiling it is most of the work."""


def changed(config, **settings):
    """A config with settings changed, such as `model__width=4`."""
    for name, value in settings.items():
        section, _, last = name.rpartition("__")
        (config[section] if section else config)[last] = value
    return config


def small(**settings):
    """The digits' config with a narrow U-Net and few steps."""
    return changed(load_config("digits"), **(NARROW | settings))


def perceptron(**settings):
    """The same with an unconditional perceptron, which compiles in no time."""
    plain = {"data__labels": False, "data__label_dropout": 0.0, "training__num_steps": 20}
    plain |= {"model": {"name": "mlp", "hidden": (16,)}}
    config = small()
    return changed(config, **(plain | settings))


def make_command(folder, mode="train", config=None, dry_run=False, **options):
    """A parsed command."""
    config = small() if config is None else config
    options = Options(**options)
    return Command(mode=mode, config=config, workdir=folder, dry_run=dry_run, options=options)


def run_mode(command, devices=2):
    """Runs the mode of a command in this process."""
    module, _, name = MODES[command.mode].function.partition(":")
    return getattr(importlib.import_module(module), name)(command, jax.devices()[:devices])


def train(folder, config=None, devices=2):
    """Trains and samples."""
    return run_mode(make_command(folder, config=config), devices)


def opened(folder, mode="sample", devices=2, config=None):
    """The run of a workdir, with the config that is saved there unless another is given."""
    config = saved_config(folder) if config is None else config
    return open_run(make_command(folder, mode, config), jax.devices()[:devices])


def saved_config(folder):
    """The config that a workdir holds."""
    return json.loads((folder / "config.json").read_text())


def final_state(folder):
    """Step and state of the newest checkpoint."""
    run = opened(folder)
    return run.step, run.state


def load(path):
    """The arrays of an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def samples(folder, name="samples"):
    """The arrays of a file of samples."""
    return load(folder / f"{name}.npz")


def assert_same(a, b):
    """Asserts that two pytrees have the same bits."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def tree(folder):
    """All files of a folder with the times of their last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def run_command(capsys, *arguments):
    """Runs the command in this process; the exit code and what it wrote to stderr."""
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err


def flags(config, sections=("model", "noise", "optim", "training", "sampling")):
    """Settings of a config as flags."""
    return [
        f"--config.{section}.{name}={'none' if value is None else value}"
        for section in sections
        for name, value in config[section].items()
    ]


def start(*arguments, cwd=ROOT, **more):
    """Starts the command in a process of its own, with a cache and the devices of its own."""
    line = command_line(*arguments)
    return subprocess.Popen(line, cwd=cwd, env=environment(), text=True, **more)


def started(*arguments, cwd=ROOT):
    """Runs the command in a process of its own, to its end; raises if it fails."""
    done = subprocess.run(
        command_line(*arguments), cwd=cwd, env=environment(), text=True, capture_output=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def command_line(*arguments):
    """The command of a process."""
    return [sys.executable, "-m", "score_jax", *(str(argument) for argument in arguments)]


def environment():
    """Environment of a process, in which this checkout can be imported from anywhere."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


_finished: dict[str, Path] = {}


def finished_run(tmp_path_factory):
    """A copy of a run from beginning to end, which is trained once for all tests."""
    config = small(training__preview_every=30)
    return _copy_of("unet", config, tmp_path_factory)


def finished_perceptron(tmp_path_factory):
    """The same with an unconditional perceptron."""
    return _copy_of("mlp", perceptron(), tmp_path_factory)


def _copy_of(name, config, tmp_path_factory):
    if name not in _finished:
        _finished[name] = tmp_path_factory.mktemp("trained") / "run"
        train(_finished[name], config)
    return Path(shutil.copytree(_finished[name], tmp_path_factory.mktemp("finished") / "run"))
