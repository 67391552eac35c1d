import errno
import json
import logging
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax import checkpoint, records
from score_jax.checkpoint import BestCheckpoints, Checkpoints
from score_jax.losses.dsm import annealed_dsm
from score_jax.noise import geometric_sigmas
from score_jax.records import RunIdentity
from score_jax.training import make_trainer


def state(step, width=64):
    kernel = jnp.arange(float(width * width)).reshape(width, width)
    params = {"dense": {"kernel": kernel, "bias": jnp.ones(width)}}
    schedule = optax.cosine_decay_schedule(1e-3, 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    model = (lambda key, x, level: params, lambda params, x, level: x)
    trainer = make_trainer(model, annealed_dsm, optimizer, geometric_sigmas(1.0, 0.1, 2))
    return trainer.init(params)._replace(step=jnp.int32(step))


def saved(folder, *steps, keep=3):
    run = RunIdentity(folder.parent) if folder.name == "checkpoints" else None
    checkpoints = Checkpoints(folder, keep, run)
    for step in steps:
        checkpoints.save(step, state(step), {"seed": 0})
    checkpoints.wait()
    return checkpoints


def kernel_file(folder):
    """The file that holds the numbers of the arrays, not their description."""
    files = [path for path in (folder / "state").rglob("*") if path.parent.name == "d"]
    return max(files, key=lambda path: path.stat().st_size)


def test_round_trip_is_exact_and_the_newest_few_are_kept(tmp_path):
    saved(tmp_path / "c", 10, 20, 30, 40, keep=2)
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.steps() == [40, 30]
    step, restored = checkpoints.restore(jax.eval_shape(lambda: state(0)))
    assert step == 40
    assert jax.tree.structure(restored) == jax.tree.structure(state(40))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state(40)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def test_looking_makes_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.steps() == []
    assert checkpoints.restore(state(0)) is None
    assert not (tmp_path / "none").exists()


def test_saving_a_step_again_is_no_error(tmp_path):
    checkpoints = saved(tmp_path, 10)
    checkpoints.save(10, state(10), {})
    checkpoints.wait()
    assert checkpoints.steps() == [10]


def test_an_unfinished_save_is_not_listed(tmp_path):
    saved(tmp_path, 10)
    (tmp_path / "20.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).steps() == [10]


def flip_a_byte(folder):
    path = kernel_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = kernel_file(folder)
    path.write_bytes(path.read_bytes()[:20])


def remove(folder):
    kernel_file(folder).unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, truncate, remove])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage):
    saved(tmp_path, 10, 20)
    damage(tmp_path / "20")
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        step, restored = checkpoints.restore(state(0))
    assert step == 10
    assert int(restored.step) == 10
    assert f"{tmp_path / '20'} is unusable" in caplog.text
    # The run that goes on from there can save the same step anew.
    checkpoints.save(20, state(20), {})
    checkpoints.wait()
    assert Checkpoints(tmp_path).restore(state(0))[0] == 20


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "many"), RuntimeError("x [os_error_code='5']"), MemoryError("full")],
)
def test_an_error_that_may_pass_is_no_damage(tmp_path, monkeypatch, error):
    saved(tmp_path, 10, 20)

    def failing():
        raise error

    monkeypatch.setattr(checkpoint, "_reader", failing)
    for read in (Checkpoints(tmp_path).restore, partial(Checkpoints(tmp_path).restore, step=20)):
        with pytest.raises((OSError, MemoryError), match=r"many|Input/output error: .*/20|full"):
            read(state(0))
    with pytest.raises((OSError, MemoryError)):
        BestCheckpoints(tmp_path)
    assert Checkpoints(tmp_path).steps() == [20, 10]


@pytest.mark.parametrize("content", ['{"identity": "a", "without_identity_until": Infinity}', "["])
def test_a_damaged_identity_is_named(tmp_path, content):
    (tmp_path / "run.json").write_text(content * (1 if "{" in content else 100_000))
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        records.RunIdentity(tmp_path).read()


def test_a_changed_number_is_found_by_its_checksum(tmp_path, monkeypatch):
    """Orbax restores changed numbers without an error; here the stored checksum is another."""
    true = records.checksums
    changed = lambda tree: {name: crc ^ 1 for name, crc in true(tree).items()}  # noqa: E731
    monkeypatch.setattr(records, "checksums", changed)
    saved(tmp_path, 10)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="differs from its checksum"):
        Checkpoints(tmp_path).restore(state(0))


def meta_file(folder):
    files = [path for path in (folder / "meta").rglob("*") if path.is_file()]
    return next(path for path in files if b"crc" in path.read_bytes())


def edit_the_metadata(folder):
    file = meta_file(folder)
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))


def copy_the_older_one(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "10", folder)


def copy_from_another_run(folder):
    saved(folder.parent / "other" / "checkpoints", 20)
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "other" / "checkpoints" / "20", folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (edit_the_metadata, "its metadata differ from their checksum"),
        (copy_the_older_one, "it was saved as step 10, but is named 20"),
        (copy_from_another_run, "it belongs to the run [0-9a-f]{32}, but run.json says"),
    ],
)
def test_a_checkpoint_that_does_not_belong_is_passed_over(tmp_path, caplog, change, problem):
    saved(tmp_path / "checkpoints", 10, 20)
    for name in ("²", "007", "1_000"):
        (tmp_path / "checkpoints" / name).mkdir()
    change(tmp_path / "checkpoints" / "20")
    checkpoints = Checkpoints(tmp_path / "checkpoints", run=RunIdentity(tmp_path))
    assert checkpoints.steps() == [20, 10]
    assert checkpoints.restore(state(0))[0] == 10
    assert re.search(problem, caplog.text)
    with pytest.raises(ValueError, match=problem):
        checkpoints.restore(state(0), 20)
    # A reader leaves it where it is, a writer renames it.
    assert (tmp_path / "checkpoints" / "20").exists()
    checkpoints.save(20, state(20), {})
    checkpoints.wait()
    assert len(list((tmp_path / "checkpoints").glob("unusable_20_*"))) == 1
    assert (
        Checkpoints(tmp_path / "checkpoints", run=RunIdentity(tmp_path)).restore(state(0))[0] == 20
    )


def test_checkpoints_of_earlier_versions_are_restored_up_to_the_first_with_an_identity(tmp_path):
    folder = tmp_path / "checkpoints"
    old = Checkpoints(folder)
    old.save(10, state(10))
    old.wait()
    meta = meta_file(folder / "10")
    content = json.loads(meta.read_text())
    del content["stored"]
    meta.write_text(json.dumps(content))
    checkpoints = Checkpoints(folder, run=RunIdentity(tmp_path))
    assert checkpoints.restore(state(0))[0] == 10
    checkpoints.save(20, state(20))
    checkpoints.wait()
    assert json.loads((tmp_path / "run.json").read_text())["without_identity_until"] == 19
    assert checkpoints.restore(state(0), 10)[0] == 10
    shutil.copytree(folder / "10", folder / "30")
    with pytest.raises(ValueError, match="carries no identity"):
        checkpoints.restore(state(0), 30)

    # The identity of a run that has lost its file is that of its checkpoints.
    identity = json.loads((tmp_path / "run.json").read_text())["identity"]
    (tmp_path / "run.json").unlink()
    checkpoints = Checkpoints(folder, run=RunIdentity(tmp_path))
    assert checkpoints.restore(state(0), 20)[0] == 20
    checkpoints.save(40, state(40))
    checkpoints.wait()
    assert json.loads((tmp_path / "run.json").read_text())["identity"] == identity


def test_types_that_differ_by_the_precision_of_jax_are_converted(tmp_path, caplog):
    wide = {"x": np.arange(3.0), "n": np.int32(3)}
    narrow = {"x": np.zeros(3, np.float32), "n": np.int32(0)}
    for name, stored, like in (("a", wide, narrow), ("b", narrow, wide)):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(10, stored)
        checkpoints.wait()
        _, restored = checkpoints.restore(like)
        assert restored["x"].dtype == like["x"].dtype
        np.testing.assert_array_equal(restored["x"], stored["x"])
        assert "JAX_ENABLE_X64" in caplog.text
        caplog.clear()


def test_remains_of_a_save_are_put_aside_and_sound_checkpoints_stay(tmp_path):
    checkpoints = saved(tmp_path, 10, 20)
    shutil.rmtree(tmp_path / "20" / "meta")
    assert "step 10 is kept" in checkpoints.kept()
    checkpoints.put_remains_aside()
    assert Checkpoints(tmp_path).steps() == [10]
    assert len(list(tmp_path.glob("unusable_20_*"))) == 1


def test_no_sound_checkpoint_left(tmp_path):
    saved(tmp_path, 10)
    truncate(tmp_path / "10")
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* can be used \(step 10: .*from a copy"
    ):
        Checkpoints(tmp_path).restore(state(0))


def test_shapes_of_another_network_are_named(tmp_path):
    saved(tmp_path, 10)
    words = r"bias'\] is float32 \(64,\), but this network has float32 \(32,\)"
    with pytest.raises(ValueError, match=words):
        Checkpoints(tmp_path).restore(state(0, width=32))


def test_metadata_is_read_back(tmp_path):
    assert saved(tmp_path, 10).metadata(10) == {"seed": 0}


def test_saving_and_restoring_leave_the_log_level_of_others_alone(tmp_path):
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.INFO)
    try:
        saved(tmp_path, 10).restore(state(0))
        assert logger.level == logging.INFO
    finally:
        logger.setLevel(before)
