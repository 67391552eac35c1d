"""A release has one version, and its page on a package index has no relative link."""

import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest

import score_jax as sj

ROOT = Path(__file__).parents[1]
NAMES = ["README.md", "pyproject.toml", "CHANGELOG.md", "CITATION.cff", "score_jax/__init__.py"]


@pytest.fixture
def prepare(tmp_path):
    """The function of .github/release.py, for a copy of the files that it reads."""
    (tmp_path / "score_jax").mkdir()
    for name in NAMES:
        shutil.copy(ROOT / name, tmp_path / name)
    script = runpy.run_path(str(ROOT / ".github" / "release.py"))
    return lambda tag: script["prepare"](tmp_path, "someone/score_jax", tag)


def test_all_files_have_the_version_of_the_package(prepare):
    prepare(f"v{sj.__version__}")
    with pytest.raises(SystemExit, match=r"the tag v9\.9\.9 is not the version of"):
        prepare("v9.9.9")


def test_links_of_the_readme_are_absolute_and_their_targets_exist(prepare, tmp_path):
    tag = f"v{sj.__version__}"
    prepare(tag)
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", (tmp_path / "README.md").read_text())
    assert len(links) > 20
    own = 0
    for mark, target in links:
        assert target.startswith("https://"), target
        kind = "raw.githubusercontent.com/someone/score_jax" if mark else "github.com/someone"
        if kind in target:
            path = target.partition(f"{tag}/")[2]
            assert (ROOT / path).exists(), path
            own += 1
    assert own > 10


def test_the_first_command_installs_from_the_index(prepare, tmp_path):
    prepare(f"v{sj.__version__}")
    text = (tmp_path / "README.md").read_text()
    assert ".venv/bin/pip install score_jax && .venv/bin/score-jax" in text


def test_the_project_has_addresses(prepare, tmp_path):
    prepare(f"v{sj.__version__}")
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Source"] == "https://github.com/someone/score_jax"
