"""The examples of the documentation run as printed."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import score_jax as sj

ROOT = Path(__file__).parents[1]


def blocks(path, language):
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def test_the_parts_of_a_users_own_file_run_from_the_command(tmp_path):
    """docs/extending.md: own data, loss, network and sampler, in a process of their own."""
    page = ROOT / "docs" / "extending.md"
    parts = blocks(page, "python")
    assert len(parts) == 4
    for part in parts:
        lines = [line for line in part.splitlines() if line]
        code = [line for line in lines if not line.startswith(("import", "from"))]
        assert len(code) <= 14, "a dozen lines each"
    (tmp_path / "mine.py").write_text("\n".join(parts))
    [command] = blocks(page, "bash")
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "score-jax"
    short = {
        "training.num_steps": 300,
        "training.eval_every": 300,
        "training.log_every": 100,
        "training.checkpoint_every": 300,
        "training.steps_per_call": 50,
        "sampling.num_samples": 200,
        "sampling.batch_size": 200,
        "sampling.num_steps": 5,
    }
    more = [f"--config.{name}={value}" for name, value in short.items()]
    run = [sys.executable, "-m", "score_jax", *words[1:], *more]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "runs" / "extended" / "samples.npz") as file:
        samples = file["samples"]
    assert samples.shape == (200, 2)
    # The chains end near the circle of radius 3, not where they began.
    radius = np.linalg.norm(samples, axis=1)
    assert abs(np.median(radius) - 3) < 0.7


PROGRAMS = ("bad_samples", "conditioning", "inverse_problems", "noise_levels", "programs")
"""Guides whose Python blocks are a program from the first to the last."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_program_of_a_guide_runs_as_printed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts = blocks(ROOT / "docs" / "guides" / f"{name}.md", "python")
    assert parts
    scope = {}
    for part in parts:
        exec(part, scope)
    if name == "programs":
        assert scope["losses"].shape == (16,)
        assert bool(jax.numpy.isfinite(scope["chains"].x).all())
    if name == "noise_levels":
        np.testing.assert_allclose(scope["variance"] / [33, 1], [1.14, 1.15], atol=0.01)
    if name == "bad_samples":
        for row in scope["levels"]:
            assert abs(row["slope"] - 1) < 4 * row["slope_error"]
        spread, expected = (
            [row[key] for row in scope["rows"]] for key in ("spread", "spread_expected")
        )
        np.testing.assert_allclose(spread, expected, rtol=0.5)
    if name == "inverse_problems":
        known = scope["known"]
        for found, original in (("completions", scope["x"][:1]), ("restored", scope["x"][:16])):
            error = np.abs(scope[found] - original)[:, known]
            assert np.sqrt(np.mean(error**2)) < 0.04
    if name == "conditioning":
        assert scope["samples"].shape == (8, 8, 8, 1)


def test_the_lines_about_comparing_run_as_printed(capsys):
    (part,) = blocks(ROOT / "docs" / "guides" / "comparing.md", "python")
    sigmas = sj.geometric_sigmas(1.0, 0.1, 3)
    exact = sj.gaussian_score_fn(np.zeros(2, np.float32), np.ones(2, np.float32), sigmas)
    wrong = sj.gaussian_score_fn(np.zeros(2, np.float32), np.full(2, 9, np.float32), sigmas)
    x = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    scope = {"score_fns": {"a": exact, "b": wrong}, "held_out": x, "sigmas": sigmas, "sj": sj}
    exec(part, scope)
    assert capsys.readouterr().out.strip().endswith("a")
