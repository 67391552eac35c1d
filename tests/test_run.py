import collections
import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_config import ROOT, digits, load
from truths import assert_mean

from score_jax.checkpoint import Checkpoints
from score_jax.data.dataset import batch_index
from score_jax.langevin import Trajectory
from score_jax.noise import example_keys, standard_normal
from score_jax.run import build
from score_jax.run import sample as sampling
from score_jax.run import train as training
from score_jax.run.build import prepare_examples
from score_jax.run.evaluate import evaluate
from score_jax.run.job import prepare
from score_jax.run.sample import chain_labels, make_sampler, sample
from score_jax.run.train import train


def small(**settings):
    """A network so narrow that compiling it is most of the work."""
    narrow = {
        "model__width": 4,
        "noise__num_levels": 4,
        "optim__warmup_steps": 5,
        "training__num_steps": 60,
        "training__batch_size": 32,
        "training__log_every": 20,
        "training__eval_every": 30,
        "training__eval_batches": 2,
        "training__steps_per_call": 7,  # divides none of the others
        "training__preview_every": 0,
        "training__checkpoint_every": 20,
        "sampling__num_samples": 24,
        "sampling__batch_size": 16,
        "sampling__num_steps": 3,
        "sampling__num_frames": 3,
    }
    return digits(**(narrow | settings))


def job(folder, mode="train", devices=2, **settings):
    return prepare(mode, small(**settings), folder, jax.devices()[:devices])


def quick(folder, **settings):
    """A job with a perceptron, which compiles in no time."""
    config = small(**({"data__labels": False, "data__label_dropout": 0.0, "training__num_steps": 20} | settings))
    config["model"] = {"name": "mlp", "hidden": (16,)}
    return prepare("train", config, folder, jax.devices())


def final_state(folder):
    """Step and state of the newest checkpoint of a run."""
    prepared = prepare("sample", json.loads((folder / "config.json").read_text()), folder, jax.devices())
    return prepared.checkpoints.restore(prepared.state_shape)


def samples(folder):
    with np.load(folder / "samples.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run from beginning to end; tests may read it, not change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(job(folder, training__preview_every=30))
    return folder


def test_a_run_leaves_what_it_promises(finished):
    for name in ("config.json", "metrics.json", "samples.npz", "samples.png", "chain.webp", "loss.png", "preview.png"):
        assert (finished / name).stat().st_size > 0, name
    assert list(finished.glob("events.out.tfevents.*"))
    assert Checkpoints(finished / "checkpoints").steps() == [60, 40, 20]
    found = samples(finished)
    assert found["samples"].shape == (24, 8, 8, 1)
    assert found["samples"].dtype == np.float32
    assert found["samples"].min() >= 0
    assert found["samples"].max() <= 1
    assert found["samples"].std() > 0.1
    assert int(found["seed"]) == 0
    assert json.loads(str(found["config"]))["model"]["width"] == 4
    metrics = json.loads((finished / "metrics.json").read_text())
    assert [step for step, _ in metrics["train_loss"]] == [20, 40, 60]
    assert [step for step, _ in metrics["held_out_loss"]] == [30, 60]
    assert metrics["train_loss"][-1][1] < metrics["train_loss"][0][1]
    assert all(metrics["seconds"][name] > 0 for name in ("compile", "train", "sample"))
    assert not [path for path in finished.iterdir() if path.name.startswith(".")]
    with Image.open(finished / "chain.webp") as file:
        assert file.n_frames == 3 + 1  # the snapshots and the end


def test_tensorboard_reads_the_events(finished):
    from tensorboardX.proto.event_pb2 import Event

    tags = collections.Counter()
    for path in finished.glob("events.out.tfevents.*"):
        content = path.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            size = int.from_bytes(content[:8], "little")
            tags.update(value.tag for value in Event.FromString(content[12 : 12 + size]).summary.value)
            content = content[16 + size :]
    assert tags == {"loss/train": 3, "loss/held_out": 2, "gradient_norm": 3, "steps_per_second": 3, "preview": 1, "samples": 1}


def test_run_again_does_not_train_anew(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    train(job(finished, training__preview_every=30))
    shown = capsys.readouterr().out
    assert "training is complete (60 steps)" in shown
    assert "holds this run's samples already" in shown
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(finished, tmp_path):
    train(job(tmp_path / "same"))
    assert_same(final_state(tmp_path / "same"), final_state(finished))
    np.testing.assert_array_equal(samples(tmp_path / "same")["samples"], samples(finished)["samples"])
    sample(job(tmp_path / "same", mode="sample", seed=1))
    other, first = samples(tmp_path / "same")["samples"], samples(finished)["samples"]
    assert int(samples(tmp_path / "same")["seed"]) == 1
    assert (np.abs(other - first).reshape(24, -1).max(1) > 0.01).all()
    assert json.loads((tmp_path / "same" / "config.json").read_text())["seed"] == 0


def test_a_run_cut_in_two_is_one_run(finished, tmp_path, monkeypatch, capsys):
    """SIGTERM between two calls: the step is saved, and the run goes on to the same bits."""
    folder, seen = tmp_path / "cut", []

    def interrupting(seed, step, *arguments):
        seen.append(step)
        if step == 33 and seen.count(33) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_index(seed, step, *arguments)

    monkeypatch.setattr(training, "batch_index", interrupting)
    train(job(folder))
    assert "stopped at step 37 of 60" in capsys.readouterr().out
    assert not (folder / "samples.npz").exists()
    train(job(folder))
    assert "continues from the checkpoint of step 37" in capsys.readouterr().out
    assert_same(final_state(folder), final_state(finished))
    np.testing.assert_array_equal(samples(folder)["samples"], samples(finished)["samples"])
    losses = json.loads((folder / "metrics.json").read_text())["train_loss"]
    assert [step for step, _ in losses] == [20, 37, 40, 60]


def test_a_finished_run_can_be_continued_to_more_steps(tmp_path):
    folder, constant = tmp_path / "more", {"optim__schedule": "constant"}
    train(quick(folder, **constant))
    train(quick(folder, training__num_steps=30, **constant))
    assert final_state(folder)[0] == 30
    with pytest.raises(ValueError, match=r"has been trained for 30 steps, more than config\.training\.num_steps=20"):
        quick(folder, **constant)


def test_one_device_and_two_train_and_sample_alike(finished, tmp_path):
    train(job(tmp_path / "one", devices=1))
    # The arithmetic differs in its last bits, and Adam makes of a gradient near 0 what it will: the losses agree, not each number.
    one, two = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "one", finished))
    for name in ("train_loss", "held_out_loss"):
        np.testing.assert_allclose(one[name], two[name], rtol=2e-4)
    # The same network on one device and on two.
    before = samples(finished)["samples"]
    one, state = job(finished, mode="sample", devices=1), final_state(finished)[1]
    ends = make_sampler(one, state.ema_params)(state.ema_params, np.arange(16)[None]).x[0]
    np.testing.assert_allclose(np.clip(ends, 0, 1), before[:16], atol=1e-4)


def test_noise_of_a_chain_is_the_same_bits_on_any_number_of_devices():
    key = jax.random.key(3)
    draw = functools.partial(lambda index: standard_normal(example_keys(key, index), (8, 8, 1)))
    one = jax.pmap(draw, devices=jax.devices()[:1])(np.arange(8)[None])
    two = jax.pmap(draw)(np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(np.asarray(one)[0], np.asarray(two).reshape(8, 8, 8, 1))


def test_batch_size_of_the_sampler_does_not_change_a_sample(finished):
    state = final_state(finished)[1]

    def ends(batch_size):
        prepared = job(finished, mode="sample", sampling__batch_size=batch_size)
        sampler = make_sampler(prepared, state.ema_params)
        batches = [sampler(state.ema_params, prepared.split(start + np.arange(batch_size))) for start in range(0, 24, batch_size)]
        return np.concatenate([np.asarray(batch.x).reshape(-1, 8, 8, 1) for batch in batches])[:24]

    np.testing.assert_allclose(ends(4), ends(12), atol=1e-4)
    assert np.abs(ends(4)[0] - ends(4)[1]).max() > 0.01


def test_uniform_start_and_flips_and_no_dequantisation(tmp_path):
    train(
        quick(
            tmp_path / "other",
            sampling__start="uniform",
            data__flip=True,
            data__dequantize=False,
            loss__levels="uniform",
            optim__schedule="constant",
            optim__clip_norm=0.0,
            sampling__denoise=False,
            sampling__num_frames=0,
        )
    )
    assert samples(tmp_path / "other")["samples"].shape == (24, 8, 8, 1)
    assert not (tmp_path / "other" / "chain.webp").exists()


def test_examples_are_prepared_as_the_config_says():
    pixels = np.tile(np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1), (2000, 1, 1, 1))
    keys = example_keys(jax.random.key(0), np.arange(2000))
    settings = {"dequantize": False, "flip": False, "logit": False, "label_dropout": 0.0}
    plain = prepare_examples(settings, 17, 0, keys, pixels)[0]
    np.testing.assert_allclose(plain, pixels / 16, rtol=1e-6)
    x = np.asarray(prepare_examples({**settings, "dequantize": True, "flip": True}, 17, 0, keys, pixels)[0], np.float64) * 17
    flipped = np.floor(x)[:, 0, 0, 0] == 3
    assert_mean(flipped, 0.5)
    assert_mean((x - np.floor(x))[:, 2, 2, 0], 0.5)
    assert abs(np.corrcoef(flipped, (x - np.floor(x))[:, 0, 0, 0])[0, 1]) < 0.1  # from keys of their own


def test_the_classes_of_the_samples_are_those_of_the_data(finished):
    prepared = job(finished, mode="sample")
    labels = chain_labels(prepared, 3000)
    np.testing.assert_array_equal(np.bincount(labels[:1500]), np.bincount(prepared.data.train_labels))
    np.testing.assert_array_equal(labels[1500:], labels[:1500])
    assert len(set(labels[:30])) > 5
    np.testing.assert_array_equal(samples(finished)["labels"], labels[:24])
    # A chain's label reaches the network: the label of the first chain changed, its end changes, and no other's.
    state = final_state(finished)[1]
    params = jax.tree.map(lambda leaf: leaf + 0.01, state.ema_params)

    def ends(changed):
        relabeled = prepared.data.train_labels.copy()
        first = batch_index(0, 0, 1500, 1500)[0]
        relabeled[first] = (relabeled[first] + changed) % 10
        sampler = make_sampler(dataclasses.replace(prepared, data=prepared.data._replace(train_labels=relabeled)), params)
        return np.asarray(sampler(params, prepared.split(np.arange(16))).x).reshape(16, 64)

    difference = np.abs(ends(1) - ends(0)).max(1)
    assert difference[0] > 1e-4
    np.testing.assert_allclose(difference[1:], 0, atol=1e-5)


def test_evaluation_tells_the_loss_of_every_level(finished, capsys):
    evaluate(job(finished, mode="evaluate"))
    report = json.loads((finished / "evaluation.json").read_text())
    (finished / "evaluation.json").unlink()
    shown = capsys.readouterr().out
    assert [level["level"] for level in report["levels"]] == [0, 1, 2, 3]
    assert report["examples"] == 297
    for level in report["levels"]:
        assert f"{level['loss']:9.4f}" in shown
        assert 0 < level["loss"] < 40
        assert 0 < level["standard_error"] < 1
    # More noise leaves less to be predicted, relative to it.
    losses = [level["loss"] for level in report["levels"]]
    assert losses == sorted(losses)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_level(tmp_path, monkeypatch):
    """Twenty good steps and a checkpoint, then noise level 2 overflows."""
    folder = tmp_path / "run"
    train(quick(folder, optim__schedule="constant"))
    normal = build.LOSSES["dsm"]({})

    def overflowing(keys, score_fn, x, level, sigmas):
        return normal(keys, score_fn, x, level, sigmas) + jnp.where(level == 2, jnp.inf, 0.0)

    monkeypatch.setitem(build.LOSSES, "dsm", lambda settings: overflowing)
    with pytest.raises(
        FloatingPointError,
        match=r"the loss at noise level 2 \(sigma .*\) is not finite at step 21: the checkpoint of step 20 stays",
    ):
        train(quick(folder, training__num_steps=60, optim__schedule="constant"))
    assert Checkpoints(folder / "checkpoints").steps() == [20]


def test_a_chain_that_is_not_finite_is_named_and_nothing_is_overwritten(finished, monkeypatch):
    before = (finished / "samples.npz").read_bytes()
    prepared = job(finished, mode="sample")
    apply = type(prepared.model).apply

    def broken(self, variables, x, level, *label):
        return jnp.where((level == 1)[:, None, None, None], jnp.nan, apply(self, variables, x, level, *label))

    monkeypatch.setattr(type(prepared.model), "apply", broken)
    with pytest.raises(FloatingPointError, match="chain 0 is not finite after noise level 1"):
        sample(prepared)
    # Chains that only fill up the last batch may do what they like.
    trajectory = Trajectory(np.where(np.arange(16) < 8, 0.5, np.nan).reshape(2, 8, 1), None, None)
    assert sampling._checked_chains(prepared, trajectory, 16, 24).tolist() == [[0.5]] * 8
    assert (finished / "samples.npz").read_bytes() == before


def test_a_second_batch_does_not_compile(finished, monkeypatch):
    prepared = job(finished, mode="sample")
    params = prepared.replicate(final_state(finished)[1].ema_params)
    sampler = make_sampler(prepared, params)
    sampler(params, prepared.split(np.arange(16)))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    sampler(params, prepared.split(np.arange(16, 32)))
    assert compiled == []
    jax.jit(lambda x: x * 3.25 + len(compiled))(1.0)
    assert compiled  # the listener listens


def test_a_data_set_that_is_streamed_gives_the_same_run(tmp_path):
    train(quick(tmp_path / "held"))
    train(quick(tmp_path / "streamed", data__device_megabytes=0))
    streamed, held = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("streamed", "held"))
    for name in ("train_loss", "held_out_loss"):
        np.testing.assert_allclose(streamed[name], held[name], rtol=2e-5)
    np.testing.assert_allclose(samples(tmp_path / "streamed")["samples"], samples(tmp_path / "held")["samples"], atol=1e-3)


def test_labels_are_dropped_as_often_as_asked():
    settings = {"dequantize": False, "flip": False, "logit": False, "label_dropout": 0.25}
    keys = example_keys(jax.random.key(0), np.arange(4000))
    labels = np.arange(4000, dtype=np.int32) % 10
    found = np.asarray(prepare_examples(settings, 17, 10, keys, np.zeros((4000, 1, 1, 1), np.uint8), labels)[1])
    assert_mean(found == 10, 0.25)
    np.testing.assert_array_equal(found[found < 10], labels[found < 10])


def test_the_logit_transform_reaches_the_network_and_the_samples(tmp_path):
    settings = {"dequantize": True, "flip": False, "logit": True, "label_dropout": 0.0}
    keys = example_keys(jax.random.key(0), np.arange(500))
    (x,) = prepare_examples(settings, 17, 0, keys, np.full((500, 1, 1, 1), 8, np.uint8))
    values = 17 / (1 + np.exp(-np.asarray(x, np.float64)))
    assert values.min() > 7.99
    assert values.max() < 9.01
    train(quick(tmp_path / "logit", data__logit=True, sampling__num_frames=0))
    found = samples(tmp_path / "logit")["samples"]
    assert 0 <= found.min() < 0.2 < 0.8 < found.max() <= 1


def test_points_of_the_plane_are_a_data_set_too(tmp_path):
    settings = load(ROOT / "configs" / "toy.py")[1]
    settings["training"].update(num_steps=40, log_every=20, eval_every=20, checkpoint_every=40, batch_size=64)
    settings["sampling"].update(num_samples=64, batch_size=64, num_steps=3, num_frames=2)
    train(prepare("train", settings, tmp_path / "toy", jax.devices()))
    assert samples(tmp_path / "toy")["samples"].shape == (64, 2)
    assert (tmp_path / "toy" / "samples.png").stat().st_size > 0
    again = prepare("train", json.loads((tmp_path / "toy" / "config.json").read_text()), tmp_path / "toy", jax.devices())
    assert again.restored[0] == 40
