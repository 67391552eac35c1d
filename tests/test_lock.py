import json
import os
import subprocess
import sys

import numpy as np
import pytest
from runs import ROOT

from score_jax import writing
from score_jax.cli import lock

HOLD = """
import sys, time
from score_jax.cli import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_process_and_its_facts_mean_nothing_then(tmp_path):
    folder = tmp_path / "run"
    line = [sys.executable, "-c", HOLD, str(folder)]
    holder = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        words = f"run is being written by process {holder.pid} on host .* since 20.*choose another"
        with pytest.raises(ValueError, match=words), lock.held(folder):
            pass
        # Outputs have locks of their own.
        with lock.held(folder, "samples"), lock.changing(folder / "quality.json"):
            assert lock._facts_of_holder(folder, "run")["process"] == holder.pid
        with lock.trying(folder) as owns:
            assert not owns
    finally:
        holder.kill()
        holder.communicate()

    # The next one holds it at once, and removes what the dead process left half written.
    left = folder / f".samples.{writing.host()}-{holder.pid}.npz"
    own = folder / f".samples.{writing.host()}-{os.getpid()}.npz"
    half = folder / "checkpoints" / "20.orbax-checkpoint-tmp"
    half.mkdir(parents=True)
    left.touch()
    own.touch()
    assert lock._facts_of_holder(folder, "run") is None
    with lock.held(folder):
        assert own.exists()
        assert not left.exists()
        assert not half.exists()
        with pytest.raises(ValueError, match=f"process {os.getpid()} on"), lock.held(folder):
            pass
        with lock.trying(folder) as owns:
            assert owns
    with lock.held(folder):
        pass
    assert not list(folder.glob("*.json"))


def test_a_holder_without_facts_is_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    words = "samples is being written by another process: .*choose another --name"
    with lock.held(tmp_path, "samples"):
        (tmp_path / ".output.samples.lock.json").write_text("[half")
        with pytest.raises(ValueError, match=words), lock.held(tmp_path, "samples"):
            pass


def test_an_output_of_other_settings_gets_another_name(tmp_path):
    for seed, stem in ((0, "x"), (1, "x_2"), (0, "x"), (1, "x_2")):
        with lock.output(tmp_path, "x", {"seed": seed}) as name:
            assert name == stem
            np.savez(tmp_path / f"{name}.npz", settings=json.dumps({"seed": seed}))


def test_a_folder_that_cannot_be_written_is_named():
    words = "--workdir=/proc/run cannot be written"
    with pytest.raises(OSError, match=words), lock.held("/proc/run"):
        pass
