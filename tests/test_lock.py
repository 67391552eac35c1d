import errno
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


def test_a_run_an_output_and_a_file_of_one_name_have_locks_of_their_own(tmp_path):
    with lock.held(tmp_path), lock.held(tmp_path, "run"), lock.changing(tmp_path / "run"):
        names = {path.name for path in tmp_path.glob(".*.lock")}
    assert names == {".run.lock", ".output.run.lock", ".file.run.lock"}


def test_facts_of_a_dead_holder_on_another_host_mean_nothing(tmp_path):
    facts = tmp_path / ".run.lock.json"
    facts.write_text(json.dumps({"process": os.getpid(), "host": "elsewhere"}))
    with lock.trying(tmp_path) as owns:
        assert owns


def test_what_was_computed_is_written_beside_an_output_that_stays_locked(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(lock, "SHORTLY", 0.1)
    with lock.held(tmp_path, "x"):
        with lock.output(tmp_path, "x", {"seed": 0}) as name:
            assert name == "x_2"
        assert "x is being written by process" in capsys.readouterr().out
        # A name that the user gives is refused before anything is computed.
        with pytest.raises(lock.HeldError, match="choose another --name or --workdir"):
            lock.choose(tmp_path, "samples", "x", {"seed": 0})


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def missing(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    words = "cannot be locked .*: mount its file system with locks"
    with pytest.raises(OSError, match=words), lock.held(tmp_path):
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
