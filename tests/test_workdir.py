import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from score_jax import reading
from score_jax.cli import workdir
from score_jax.cli.workdir import output_name


def test_a_failed_write_leaves_what_was_there(tmp_path):
    workdir.write_json(tmp_path / "x.json", {"a": 1})

    def fail():
        with workdir.replacing(tmp_path / "x.json") as path:
            path.write_text("half")
            raise KeyError("on the way")

    with pytest.raises(KeyError):
        fail()
    assert workdir.read_json(tmp_path / "x.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_reading_json(tmp_path):
    assert workdir.read_json(tmp_path / "none.json") is None
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        workdir.read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        workdir.read_json(tmp_path / "x.json")


def test_a_folder_that_can_be_written_passes_and_stays_as_it_was(tmp_path):
    workdir.check_writable(tmp_path / "a" / "b", 1000)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: choose another"):
        workdir.check_writable(tmp_path / "file" / "run", 1000)


def test_a_read_only_folder():
    with pytest.raises(OSError, match="cannot be written"):
        workdir.check_writable(Path("/proc/run"), 1000)  # not even root writes there


def test_a_full_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 3_000_000, 3_000_000)
    )
    with pytest.raises(OSError, match="has 3 MB of free disk, but this run needs about 50 MB"):
        workdir.check_writable(tmp_path, 50_000_000)


def test_unfinished_files_are_removed_when_the_process_ends(tmp_path):
    with workdir.replacing(tmp_path / "x.json") as path:
        path.write_text("half")
        workdir.remove_unfinished()
        assert list(tmp_path.iterdir()) == []
        path.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


SETTINGS = {"seed": 0, "num_steps": 10, "step_size": None}


def write(folder, name, settings):
    np.savez(folder / f"{name}.npz", samples=np.zeros(2), settings=json.dumps(settings))


def test_an_output_replaces_one_of_the_same_settings_only(tmp_path, capsys):
    assert output_name(tmp_path, "samples", None, SETTINGS) == "samples"
    write(tmp_path, "samples", SETTINGS)
    assert output_name(tmp_path, "samples", None, SETTINGS) == "samples"
    assert capsys.readouterr().out == ""

    other = SETTINGS | {"num_steps": 20}
    assert output_name(tmp_path, "samples", None, other) == "samples_2"
    assert capsys.readouterr().out == (
        f"{tmp_path}/samples.npz was made with num_steps=10, not 20, so the name of these files "
        "is samples_2\n"
    )
    write(tmp_path, "samples_2", SETTINGS | {"seed": 1})
    assert output_name(tmp_path, "samples", None, other) == "samples_3"
    write(tmp_path, "samples_3", other)
    assert output_name(tmp_path, "samples", None, other) == "samples_3"


def test_a_given_name_is_used_or_refused(tmp_path):
    assert output_name(tmp_path, "samples", "threes", SETTINGS) == "threes"
    write(tmp_path, "threes", SETTINGS)
    assert output_name(tmp_path, "samples", "threes", SETTINGS) == "threes"
    words = "--name=threes is taken: .*threes.npz was made with step_size=None, not 0.1; choose an"
    with pytest.raises(ValueError, match=words):
        output_name(tmp_path, "samples", "threes", SETTINGS | {"step_size": 0.1})


@pytest.mark.parametrize("name", ["a/b", "../a", ".hidden", "x.npz", "x.png", "", ".", "a/"])
def test_a_name_is_a_plain_stem(name, tmp_path):
    with pytest.raises(ValueError, match="must be a file name without folder and suffix"):
        output_name(tmp_path, "samples", name, SETTINGS)


def test_an_output_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch, capsys):
    write(tmp_path, "samples", SETTINGS)

    def failing(stream):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(reading, "_read_array", failing)
    assert output_name(tmp_path, "samples", None, SETTINGS) == "samples_2"
    assert "samples.npz cannot be read (Stale file handle)" in capsys.readouterr().out


def test_files_of_others_are_kept_and_damaged_ones_replaced(tmp_path, capsys):
    np.savez(tmp_path / "samples.npz", mine=np.zeros(2))
    assert output_name(tmp_path, "samples", None, SETTINGS) == "samples_2"
    words = "samples.npz does not say with which settings it was made, so the name of these files"
    assert words in capsys.readouterr().out
    (tmp_path / "samples.npz").write_bytes(b"PK half of one")
    assert output_name(tmp_path, "samples", None, SETTINGS) == "samples"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--workdir", "runs/a b"), "score-jax --workdir='runs/a b'"),
        (("--mode=sample", "--workdir", Path("x")), "score-jax --mode=sample --workdir=x"),
        (("--workdir", "--odd", "--dry_run=True"), "score-jax --workdir=--odd --dry_run=True"),
        (("--config.data.path=a (b)",), "score-jax '--config.data.path=a (b)'"),
    ],
)
def test_command_lines_are_quoted(arguments, line):
    assert workdir.command_line(*arguments) == line
