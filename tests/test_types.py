"""Type checkers see the public names, and find no error in the package or in a user's program."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import PROGRAMS, blocks

import score_jax as sj

ROOT = Path(__file__).parents[1]


def test_the_stub_has_the_names_of_the_package():
    tree = ast.parse((ROOT / "score_jax" / "__init__.pyi").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, alias.name
                found[alias.name] = node.module.removeprefix("score_jax.")
    assert found == sj._HOME_OF


def mypy(*arguments):
    pytest.importorskip("mypy", reason="needs mypy")
    command = [sys.executable, "-m", "mypy", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_mypy_finds_no_error_in_the_library():
    done = mypy()
    assert done.returncode == 0, done.stdout


def test_mypy_finds_the_errors_of_a_program_and_no_others(tmp_path):
    """The programs of README and guides are clean; a wrong argument is not."""
    (tmp_path / "readme.py").write_text(blocks(ROOT / "README.md", "python")[0])
    for name in PROGRAMS:
        programs = blocks(ROOT / "docs" / "guides" / f"{name}.md", "python")
        (tmp_path / f"{name}.py").write_text("\n".join(programs))
    (tmp_path / "wrong.py").write_text(
        "import score_jax as sj\n\nsj.geometric_sigmas('large', 0.03, 16)\nsj.fitt\n"
    )
    config = ROOT / "pyproject.toml"
    files = [tmp_path / f"{name}.py" for name in ("readme", *PROGRAMS)]
    done = mypy(f"--config-file={config}", *files)
    assert done.returncode == 0, done.stdout
    done = mypy(f"--config-file={config}", tmp_path / "wrong.py")
    assert '"geometric_sigmas" has incompatible type "str"' in done.stdout
    assert 'Module has no attribute "fitt"' in done.stdout
