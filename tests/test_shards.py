import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from runs import (
    finished_perceptron,
    load,
    make_command,
    opened,
    run_mode,
    samples,
    saved_config,
    train,
)

from score_jax import reading
from score_jax.cli import events, shards, workdir
from score_jax.cli import provenance as provenance_of
from score_jax.cli import samples as cli_samples
from score_jax.cli.shards import Part, Shards
from score_jax.data.retry import UnreachableError, retried
from score_jax.evaluation.diagnostics import ChainValues, Summary


@pytest.fixture
def plain(tmp_path_factory):
    """A trained perceptron, to be changed."""
    return finished_perceptron(tmp_path_factory)


@pytest.fixture
def few(monkeypatch):
    """Five chains per shard."""
    monkeypatch.setattr(shards, "MOST_CHAINS", 5)


def part(first, end):
    """A part whose samples are the numbers of its chains."""
    x = np.arange(first, end, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    values = ChainValues(*np.full((6, 3), float(first)))
    return Part(x, np.zeros((0, 0, 2), np.float32), Summary(end - first, values, values))


def stored(folder, **identity):
    """Shards of twelve samples, all of them written."""
    found = Shards(folder, {"seed": 0, **identity}, 12, (2,))
    for i in range(len(found)):
        found.write(i, part(*found.bounds(i)))
    return found


def raising(error):
    """A function that raises an error."""

    def function(*arguments, **named):
        raise error

    return function


def test_shards_are_read_as_they_were_written(tmp_path, few):
    written = stored(tmp_path / "a.shards")
    assert len(written) == 3
    assert written.kept() == "3 of 3 shards are kept; the same command continues"
    again = Shards(tmp_path / "a.shards", {"seed": 0}, 12, (2,))
    assert again.missing() == [(0, 12)]
    again.find()
    assert again.missing() == []
    np.testing.assert_array_equal(np.concatenate([p.samples for p in again])[:, 0], np.arange(12))
    assert next(iter(again)).summary.number == 5


def test_shards_that_are_damaged_or_of_another_set_are_never_used(
    tmp_path, few, monkeypatch, capsys
):
    """Every third byte of a shard flipped: it is found, or nothing that is read has changed."""
    folder = tmp_path / "a.shards"
    written = stored(folder)
    path = folder / "00001.npz"
    sound, harmless = path.read_bytes(), 0
    for position in range(0, len(sound), 3):
        damaged = bytearray(sound)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        try:
            found = written.read(1)
        except Exception:  # As in `Shards.find`
            continue
        np.testing.assert_array_equal(found.samples, part(5, 10).samples)
        harmless += 1  # A date or the like, in the archive's own headers
    assert harmless < len(sound) / 12
    path.write_bytes(sound[:-100])
    written.find()
    assert "00001.npz is damaged" in capsys.readouterr().out
    assert written.missing() == [(5, 10)]
    written.write(1, part(5, 10))

    # Errors that may pass are no damage.
    for error in (MemoryError(), OSError(errno.EIO, "bad disk")):
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_read_array", raising(error))
            with pytest.raises(type(error)):
                written.find()
    assert (folder / "00001.npz").exists()
    other = Shards(folder, {"seed": 1}, 12, (2,))
    assert "stopped command with seed=0, not 1" in other.difference()
    assert written.difference() == ""


def test_a_set_that_was_stopped_ends_with_the_same_samples(plain, few, monkeypatch, capsys):
    """Fails while it writes, loses a shard, and goes on with the same bits."""

    def draw(name):
        run_mode(make_command(plain, "sample", saved_config(plain), number=24, name=name))
        return {**samples(plain, name), "settings": None}

    monkeypatch.setattr(shards, "MOST_CHAINS", 24)
    whole = draw("whole")
    monkeypatch.setattr(shards, "MOST_CHAINS", 5)
    write, count = Shards.write, []

    def full(self, i, piece):
        count.append(i)
        if len(count) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, i, piece)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", full)
        with pytest.raises(OSError, match="No space left") as caught:
            draw("parts")
    assert caught.value.__notes__ == ["3 of 5 shards are kept; the same command continues"]
    (plain / "parts.shards" / "00001.npz").unlink()
    parts = draw("parts")
    assert "continues from 2 of 5 shards" in capsys.readouterr().out
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array, err_msg=name)
    assert not (plain / "parts.shards").exists()

    # Another network of the same settings never takes the shards.
    run = opened(plain)
    arguments = (cli_samples.settings_of(run, 24), None)
    one = cli_samples.shards_of(run, "x", run.state.ema_params, *arguments)
    one.write(0, part(0, 5))
    other = cli_samples.shards_of(run, "x", run.state.params, *arguments)
    assert "parameters" in other.difference()


def test_training_keeps_the_samples_that_its_user_drew(plain, monkeypatch, capsys):
    run_mode(make_command(plain, "sample", saved_config(plain), number=4, name="samples_2"))
    for suffix in (".npz", ".png"):
        (plain / f"samples_2{suffix}").replace(plain / f"samples{suffix}")
    (plain / "samples_2.webp").replace(plain / "chain.webp")
    provenance = json.loads((plain / "provenance.json").read_text())
    provenance["samples"]["samples"] = provenance["samples"].pop("samples_2")
    (plain / "provenance.json").write_text(json.dumps(provenance))
    run = opened(plain)
    settings = cli_samples.settings_of(run, 24)
    stored = cli_samples.shards_of(run, "samples", run.state.ema_params, settings, None)

    # Killed twice on the way, it continues.
    rename = Path.rename

    def killed(*arguments):
        if Path(arguments[0]).suffix != ".npz":
            return rename(*arguments)
        raise KeyboardInterrupt

    for owner, name in ((Path, "rename"), (provenance_of, "rename_samples")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed if owner is Path else lambda *a: killed("a.npz"))
            with pytest.raises(KeyboardInterrupt):
                cli_samples.make_way(run, settings, stored)
        assert (plain / "samples_2.png").exists()
        assert (plain / "samples.npz").exists() == (owner is Path)
    assert not provenance_of.has_samples(plain, "samples_2")
    cli_samples.make_way(run, settings, stored)
    assert provenance_of.has_samples(plain, "samples_2")
    assert not provenance_of.has_samples(plain, "samples")
    assert "num_samples=4, not 24: keeps it as samples_2" in capsys.readouterr().out
    assert samples(plain, "samples_2")["samples"].shape[0] == 4
    assert not (plain / "samples.npz").exists()
    assert (plain / "samples_2.webp").exists()


def test_an_npz_in_pieces_is_read_by_numpy(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
    for compressed in (True, False):
        streamed = workdir.Streamed(x.shape, x.dtype, iter([x[:4], x[4:]]))
        workdir.write_npz(tmp_path / "a.npz", {"x": streamed, "text": "b"}, compressed)
        found = load(tmp_path / "a.npz")
        np.testing.assert_array_equal(found["x"], x)
        assert str(found["text"]) == "b"


def test_events_that_cannot_be_written_are_an_error_and_leave_no_rest(tmp_path):
    with events.EventWriter(tmp_path, 0) as writer:
        writer.add_scalar("loss", 1.0, 1)
        path = next(tmp_path.iterdir())
        size, file = path.stat().st_size, writer._file
        with open("/dev/full", "ab", buffering=0) as full:
            writer._file = full
            with pytest.raises(OSError, match=r"No space left on device.*events\.out"):
                writer.add_scalar("loss", 1.0, 2)
        writer._file = file
    assert path.stat().st_size == size


@pytest.mark.parametrize(
    ("errors", "calls", "outcome"),
    [
        ([OSError(errno.EIO, "Input/output error")] * 2, 3, None),
        ([OSError(errno.ESTALE, "Stale file handle")] * 9, 4, UnreachableError),
        ([FileNotFoundError(errno.ENOENT, "No such file")], 1, FileNotFoundError),
        ([OSError("image file is truncated")], 1, OSError),
    ],
)
def test_reads_are_repeated_after_errors_that_may_pass(errors, calls, outcome):
    left, seen, pauses = list(errors), [], []

    def read(handle):
        seen.append(handle)
        if left:
            raise left.pop()
        return handle

    repeated = retried(read, pauses=(1.0, 2.0, 4.0), sleep=pauses.append)
    if outcome is None:
        assert repeated("a.png") == "a.png"
    else:
        with pytest.raises(outcome):
            repeated("a.png")
    assert len(seen) == calls
    assert pauses == [1.0, 2.0, 4.0][: calls - 1]


def test_shards_of_a_complete_set_are_removed_by_the_same_command(tmp_path_factory):
    """A process that is killed between samples.npz and the removal leaves them behind."""
    folder = finished_perceptron(tmp_path_factory)
    before = (folder / "samples.npz").read_bytes()
    (folder / "samples.shards").mkdir()
    train(folder, saved_config(folder))
    assert not (folder / "samples.shards").exists()
    assert (folder / "samples.npz").read_bytes() == before
