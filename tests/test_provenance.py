"""The origin of a run: a command that gives the same config, and the state of git."""

import shlex
import shutil
import subprocess

import pytest
from runs import changed, make_command, perceptron, small

from score_jax.cli import provenance
from score_jax.cli.config_files import load_config, published_configs
from score_jax.cli.flags import parse
from score_jax.cli.settings import flatten


@pytest.mark.parametrize("name", published_configs())
def test_a_published_config_is_its_own_name(name):
    assert provenance.nearest_config(load_config(name)) == (name, {})


OTHERS = {
    "small": small(),
    "perceptron": perceptron(seed=7),
    "none": changed(load_config("cifar10"), optim__clip_norm=None, data__path="a b/c.zip"),
    "own": changed(
        load_config("toy"),
        loss={"name": "mine:robust", "levels": "uniform", "scale": 2, "kind": "l1"},
        model={"name": "mine:net", "units": (3, 4), "wide": True},
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_command_of_a_training_run_gives_its_config(kind, tmp_path):
    command = make_command(tmp_path / "it's new", config=OTHERS[kind])._replace(devices=2)
    words = shlex.split(provenance.reproducing(command))
    found = parse(words[1:])
    missing = ("num_projections", "projection", "variance_reduced")
    expected = {
        name: value
        for name, value in flatten(OTHERS[kind])
        if kind != "own" or not name.endswith(missing)
    }
    got = dict(flatten(found.config))
    assert {name: got[name] for name in expected} == expected
    assert (found.workdir, found.devices) == (command.workdir, 2)


def test_the_state_of_git_is_that_of_the_package_or_the_current_folder(tmp_path, monkeypatch):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    monkeypatch.setattr(provenance, "MODULE", tmp_path / "p" / "__init__.py")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path)
    assert provenance.git_state() is None

    def git(*words):
        names = ["-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "first")
    found = provenance.git_state()
    assert (len(found["commit"]), found["dirty"]) == (40, False)
    (tmp_path / "a").write_text("2")
    assert provenance.git_state()["dirty"] is True

    # No git at all.
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state() is None


def test_a_damaged_file_is_written_anew(tmp_path):
    import jax

    (tmp_path / "provenance.json").write_text("{")
    provenance.record(make_command(tmp_path), jax.devices())
    assert '"command"' in (tmp_path / "provenance.json").read_text()
