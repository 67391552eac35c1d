"""The wheel and the source distribution, built and used in processes of their own."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from score_jax.cli.config_files import load_config, published_configs

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv*", ".lint", "*.egg-info", "build", "dist", "runs", "__pycache__", ".*_cache"
)


def run(*words, cwd, **environment):
    """Runs a program to its end; its output. Fails with all that it wrote."""
    environment = {**os.environ, "PYTHONPATH": "", **environment}
    words = [str(word) for word in words]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the source distribution and the wheel that is built from it."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("needs the package build")
    if int(importlib.metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs setuptools 77, offline")
    source = shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "source", ignore=LEFT_OUT)
    folder = tmp_path_factory.mktemp("built")
    words = ["-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", folder]
    run(sys.executable, *words, cwd=source)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """A folder into which the wheel is installed, without what it depends on."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    [wheel] = built.glob("*.whl")
    words = ["install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", folder]
    run(sys.executable, "-m", "pip", *words, wheel, cwd=built)
    return folder


@pytest.fixture
def from_wheel(installed, tmp_path):
    """Runs the installed command in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def score_jax(*arguments):
        script = installed / "bin" / "score-jax"
        return run(sys.executable, script, *arguments, cwd=empty, PYTHONPATH=str(installed))

    return score_jax


def test_the_wheel_holds_all_modules_and_configs_and_no_tests(built):
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    modules = (ROOT / "score_jax").rglob("*.py")
    expected = {path.relative_to(ROOT).as_posix() for path in modules}
    expected |= {f"score_jax/configs/{name}.py" for name in published_configs()}
    expected |= {"score_jax/data/digits.npz", "score_jax/py.typed", "score_jax/__init__.pyi"}
    templates = (ROOT / "score_jax" / "cli" / "templates").iterdir()
    expected |= {path.relative_to(ROOT).as_posix() for path in templates}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_installed_command_explains_every_config(from_wheel, installed, tmp_path):
    shown = from_wheel("--config=cifar10", "--help")
    assert "--config.data.name: Name in tensorflow-datasets.\n    (default: cifar10)" in shown
    assert f"Published configs: {', '.join(published_configs())}" in shown
    words = ["-m", "score_jax", "--config=configs/cifar10.py", "--help"]
    assert run(sys.executable, *words, cwd=tmp_path, PYTHONPATH=str(installed)) == shown


@pytest.mark.optimized
def test_the_installed_command_trains_and_samples_the_digits(from_wheel, tmp_path):
    settings = {
        "model.name": "mlp",
        "model.hidden": "16",
        "data.labels": False,
        "data.label_dropout": 0,
        "noise.num_levels": 4,
        "optim.warmup_steps": 0,
        "training.num_steps": 20,
        "training.preview_every": "none",
        "sampling.num_samples": 16,
        "sampling.num_frames": 2,
        "sampling.batch_size": 16,
    }
    from_wheel(*(f"--config.{name}={value}" for name, value in settings.items()))
    with np.load(tmp_path / "empty" / "runs" / "digits" / "samples.npz") as file:
        assert file["samples"].shape == (16, 8, 8, 1)


def test_a_config_that_is_read_from_the_wheel_is_that_of_the_repository(installed, tmp_path):
    code = (
        "from score_jax.cli import config_files; print(config_files.config_folder()); "
        "print(repr(config_files.load_config('ffhq_v2')))"
    )
    shown = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    folder, config = shown.splitlines()
    assert Path(folder) == (installed / "score_jax" / "configs").resolve()
    assert config == repr(load_config("ffhq_v2"))


def test_the_source_distribution_holds_all_that_its_tests_need(built, tmp_path):
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    folders = ("tests", "benchmarks", "configs", "docs", "score_jax", ".ci")
    files = [path for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    files += [ROOT / name for name in ("README.md", "LICENSE", "main.py", "pyproject.toml")]
    wanted = {path.relative_to(ROOT) for path in files if "__pycache__" not in path.parts}
    held = {path.relative_to(source) for path in source.rglob("*")}
    assert not wanted - held
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_workdir.py"]
    assert "passed" in run(sys.executable, *words, cwd=source)
