import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from score_jax import workdir


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
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 3_000_000, 3_000_000))
    with pytest.raises(OSError, match="has 3 MB of free disk, but this run needs about 50 MB"):
        workdir.check_writable(tmp_path, 50_000_000)
