"""The main job, whole: minutes of training, hence marked slow."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_digits_of_the_main_job_are_good(seed, tmp_path):
    spec = importlib.util.spec_from_file_location(
        "digits_quality", ROOT / "benchmarks" / "digits_quality.py"
    )
    measure = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(measure)
    command = [sys.executable, "main.py", f"--workdir={tmp_path / 'run'}", f"--config.seed={seed}"]
    subprocess.run(command, cwd=ROOT, check=True)
    with np.load(tmp_path / "run" / "samples.npz") as file:
        quality = measure.score(file["samples"])
    assert quality["fd_mlp"] <= 2.8, quality
    assert quality["one_nn"] <= 0.59, quality
    assert quality["is_svc"] >= 6.5, quality
    assert quality["nn_ratio"] >= 0.9, quality
    assert quality["duplicates"] <= 0.02, quality
