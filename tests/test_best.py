"""The best checkpoints of a run, and the use of any kept one."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from runs import assert_same, opened, perceptron, samples, saved_config, train

import score_jax as sj
from score_jax.checkpoint import BestCheckpoints, Checkpoints

SIGMAS = sj.geometric_sigmas(1.0, 0.1, 4)


def state(step):
    return {"x": jnp.full(3, float(step))}


def offered(folder, values, keep=2, measure="held_out_loss"):
    best = BestCheckpoints(folder, keep, measure)
    for step, value in values.items():
        best.offer(step, value, state(step), {"seed": 0})
    best.wait()
    return best


def test_the_smallest_values_are_kept_with_their_states(tmp_path):
    values = {10: 3.0, 20: 1.0, 30: np.nan, 40: 2.0, 50: 4.0, 60: 1.5}
    assert offered(tmp_path, values).steps() == [20, 60]
    again = BestCheckpoints(tmp_path, 2)
    assert again.steps() == [20, 60]
    stored = Checkpoints(tmp_path, None)
    assert sorted(stored.steps()) == [20, 60]
    assert stored.metadata(60) == {"seed": 0, "value": 1.5, "measure": "held_out_loss"}
    assert_same(stored.restore(state(0), 60), (60, {"x": np.full(3, 60, np.float32)}))


def test_better_ones_are_never_removed_by_a_resumed_run(tmp_path):
    offered(tmp_path, {10: 1.0, 20: 2.0})
    resumed = BestCheckpoints(tmp_path, 2)
    assert resumed.offer(20, 2.0, state(20))
    assert not resumed.offer(30, 5.0, state(30))
    assert resumed.offer(40, 1.5, state(40))
    resumed.wait()
    assert BestCheckpoints(tmp_path).steps() == [10, 40]


def test_a_reader_finds_the_successor_of_a_checkpoint_that_is_replaced(tmp_path, monkeypatch):
    writer = offered(tmp_path, {10: 2.0}, keep=1)
    read = Checkpoints.metadata

    def replaced_before(self, step):
        monkeypatch.setattr(Checkpoints, "metadata", read)
        writer.offer(20, 1.0, state(20))
        writer.wait()
        return read(self, step)

    monkeypatch.setattr(Checkpoints, "metadata", replaced_before)
    assert BestCheckpoints(tmp_path, 1).steps() == [20]


def test_another_measure_replaces_first_and_damaged_ones_are_put_aside(tmp_path, caplog):
    offered(tmp_path, {10: 1.0, 20: 2.0, 30: 3.0}, keep=3)
    shutil.rmtree(tmp_path / "30" / "meta")
    with caplog.at_level(logging.WARNING):
        best = BestCheckpoints(tmp_path, 2, "fd_classifier")
    assert str(tmp_path / "30") in caplog.text
    assert best.offer(20, 70.0, state(20))
    assert best.offer(30, 60.0, state(30))
    best.wait()
    assert BestCheckpoints(tmp_path, 2, "fd_classifier").steps() == [30, 20]
    assert len(list(tmp_path.glob("unusable_30_*"))) == 1


def linear_pair():
    def init(key, x, level):
        return {"slope": jnp.ones(4)}

    def apply(params, x, level):
        return -params["slope"][level][:, None] * x

    return init, apply


def run_fit(workdir, num_steps=40, **settings):
    rng = np.random.default_rng(0)
    x, held_out = rng.normal(0.5, 0.8, (2, 64, 3)).astype(np.float32)
    trainer = sj.make_trainer(linear_pair(), sj.annealed_dsm, optax.adam(0.3), SIGMAS)
    arguments = {
        "batch_size": 8,
        "held_out": held_out,
        "eval_every": 10,
        "checkpoint_every": 20,
        "log_every": 20,
        "keep_best": 2,
        "progress": False,
        **settings,
    }
    return sj.fit(trainer, x, num_steps=num_steps, workdir=workdir, **arguments)


def test_fit_keeps_the_states_with_the_smallest_held_out_losses(tmp_path):
    losses, states = {}, {}

    def keep(report):
        losses.update(report.held_out_losses)
        states[report.step] = jax.tree.map(np.asarray, report.state)

    plain = run_fit(tmp_path / "plain", keep_best=0, callbacks=[(10, keep)])
    assert not (tmp_path / "plain" / "best").exists()
    assert sorted(losses) == [10, 20, 30, 40]

    chosen = run_fit(tmp_path / "best")
    assert_same(plain, chosen)
    best = BestCheckpoints(tmp_path / "best" / "best").steps()
    assert best == sorted(losses, key=losses.get)[:2]
    stored = Checkpoints(tmp_path / "best" / "best", None)
    for step in best:
        assert stored.metadata(step)["value"] == losses[step]
        assert_same(stored.restore(jax.eval_shape(lambda: chosen), step)[1], states[step])


def test_a_resumed_run_keeps_the_same_best_ones_as_a_whole_one(tmp_path):
    """It is stopped at a step that is no multiple of eval_every, which is not compared."""
    whole = run_fit(tmp_path / "whole")
    calls = iter([False, False, True])
    stopped = run_fit(tmp_path / "cut", stop=lambda: next(calls), steps_per_call=7)
    assert int(stopped.step) not in (10, 20, 30, 40)
    assert_same(run_fit(tmp_path / "cut"), whole)
    kept = [BestCheckpoints(tmp_path / name / "best").steps() for name in ("whole", "cut")]
    assert kept[0] == kept[1]


def test_fit_chooses_by_any_measure_of_a_report(tmp_path):
    def distance(report):
        return abs(report.step - 20.0)

    run_fit(tmp_path, best_by=distance, keep_best=1, held_out=None)
    assert BestCheckpoints(tmp_path / "best", 1, "distance").steps() == [20]
    metadata = Checkpoints(tmp_path / "best", None).metadata(20)
    assert (metadata["value"], metadata["measure"]) == (0.0, "distance")


def test_a_damaged_best_checkpoint_does_not_stop_training(tmp_path):
    run_fit(tmp_path, num_steps=20)
    step = BestCheckpoints(tmp_path / "best").steps()[0]
    shutil.rmtree(tmp_path / "best" / str(step))
    (tmp_path / "best" / str(step)).mkdir()
    assert int(run_fit(tmp_path).step) == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_best": -1}, "keep_best=-1 must be at least 0"),
        ({"held_out": None}, "keep_best=2 needs a measure: give held_out examples, or best_by"),
    ],
)
def test_best_checkpoints_without_a_measure_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run_fit(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


# --step


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "run"
    settings = {"training__eval_every": 5, "training__checkpoint_every": 10}
    assert train(folder, perceptron(**settings))
    return folder


def test_the_train_mode_keeps_the_best_checkpoint(finished):
    losses = dict(json.loads((finished / "metrics.json").read_text())["held_out_loss"])
    best = Checkpoints(finished / "best", None)
    (step,) = best.steps()
    assert step == min(losses, key=losses.get)
    assert best.metadata(step)["value"] == losses[step]


def test_any_kept_step_can_be_used(finished, command):
    folder = f"--workdir={finished}"
    (best,) = Checkpoints(finished / "best", None).steps()
    for asked, step in (("10", 10), ("20", 20), ("best", best)):
        code, _ = command(
            folder, "--mode=sample", "--number=4", f"--step={asked}", f"--name=s{asked}"
        )
        assert code == 0
        assert samples(finished, f"s{asked}")["step"] == step
    assert np.abs(samples(finished, "s10")["samples"] - samples(finished, "s20")["samples"]).max()
    code, _ = command(folder, "--mode=evaluate", "--step=10")
    assert code == 0
    assert json.loads((finished / "evaluation.json").read_text())["step"] == 10
    assert opened(finished).step == 20


def test_a_step_that_is_not_kept_is_refused_with_those_that_are(finished, command, tmp_path):
    folder = f"--workdir={finished}"
    for asked, message in (
        ("7", "--step=7 is not kept in .*: choose among the steps kept, "),
        ("newest", "--step=newest must be the number of a step, or best"),
    ):
        code, shown = command(folder, "--mode=sample", f"--step={asked}")
        assert code == 2
        assert len(shown.splitlines()) == 1
        assert message.split(".*")[0] in shown
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "best")
    code, shown = command(f"--workdir={copy}", "--mode=sample", "--step=best")
    assert code == 2
    assert "choose among the steps kept, 10, 20" in shown


def test_a_damaged_step_that_is_asked_for_is_an_error(finished, command, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "20" / "state")
    shutil.rmtree(copy / "best")
    code, shown = command(f"--workdir={copy}", "--mode=sample", "--step=20", "--name=x")
    assert code == 2
    assert "the checkpoint of step 20 in" in shown
    assert "choose another step" in shown
    assert saved_config(copy)["training"]["keep_best"] == 1
