import functools
import io
import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from runs import (
    assert_same,
    final_state,
    finished_perceptron,
    finished_run,
    make_command,
    opened,
    perceptron,
    run_mode,
    samples,
    saved_config,
    small,
    train,
    tree,
)

from score_jax import fitting, sampling
from score_jax.checkpoint import Checkpoints
from score_jax.cli import build
from score_jax.cli.config_files import load_config
from score_jax.cli.interrupts import Stopped
from score_jax.cli.moments import prepared_examples
from score_jax.data.dataset import batch_index
from score_jax.losses import dsm
from score_jax.noise import example_keys, run_keys, standard_normal
from score_jax.training import make_trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run from beginning to end; tests may read it, not change it."""
    return finished_run(tmp_path_factory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same with an unconditional perceptron, which compiles faster."""
    return finished_perceptron(tmp_path_factory)


def draw(run, params, **changes):
    """Final states of a run's chains with these parameters."""
    arguments = run.sampling(24) | {"label": run.labels(24), "progress": False} | changes
    return sampling.sample(run.score_fn(params), run.sigmas, **arguments)


def test_a_run_writes_all_of_its_files(finished):
    names = "config.json metrics.json samples.npz samples.png chain.webp loss.png preview.png"
    for name in names.split():
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
    assert int(found["step"]) == 60
    assert json.loads(str(found["config"]))["model"]["width"] == 4
    settings = json.loads(str(found["settings"]))
    assert (settings["num_samples"], settings["label"], settings["num_steps"]) == (24, None, 3)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert [step for step, _ in metrics["train_loss"]] == [20, 40, 60]
    assert [step for step, _ in metrics["held_out_loss"]] == [30, 60]
    assert metrics["train_loss"][-1][1] < metrics["train_loss"][0][1]
    assert all(metrics["seconds"][name] > 0 for name in ("compile", "train", "sample"))
    hidden = [path.name for path in finished.iterdir() if path.name.startswith(".")]
    assert all(name.endswith(".lock") for name in hidden)
    with Image.open(finished / "chain.webp") as file:
        assert file.n_frames == 3 + 1  # the snapshots and the end


def test_tensorboard_reads_the_events(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(finished)).Reload()
    tags = {tag: len(read.Scalars(tag)) for tag in read.Tags()["scalars"]}
    tags |= {tag: len(read.Images(tag)) for tag in read.Tags()["images"]}
    image = read.Images("preview")[0]
    with Image.open(io.BytesIO(image.encoded_image_string)) as file:
        assert file.size == (image.width, image.height)
    assert tags == {
        "loss/train": 3,
        "loss/held_out": 2,
        "gradient_norm": 3,
        "steps_per_second": 3,
        "preview": 1,
        "samples": 1,
    }


def test_the_same_command_again_does_nothing(finished, capsys):
    before = tree(finished)
    assert train(finished, small(training__preview_every=30))
    shown = capsys.readouterr().out
    assert "training is complete (60 steps)" in shown
    assert "holds this run's samples already" in shown
    assert tree(finished) == before


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(finished, tmp_path):
    train(tmp_path / "same")
    assert_same(final_state(tmp_path / "same"), final_state(finished))
    first = samples(finished)["samples"]
    np.testing.assert_array_equal(samples(tmp_path / "same")["samples"], first)
    run_mode(make_command(tmp_path / "same", "sample", small(seed=1), name="other"))
    other = samples(tmp_path / "same", "other")
    assert int(other["seed"]) == 1
    assert (np.abs(other["samples"] - first).reshape(24, -1).max(1) > 0.01).all()
    assert saved_config(tmp_path / "same")["seed"] == 0


def test_a_run_cut_in_two_is_one_run(finished, tmp_path, monkeypatch, capsys):
    """SIGTERM between two calls: the step is saved, and the run goes on to the same bits."""
    folder, seen = tmp_path / "cut", []

    def interrupting(seed, step, *arguments):
        seen.append(step)
        if step == 33 and seen.count(33) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_index(seed, step, *arguments)

    monkeypatch.setattr(fitting, "batch_index", interrupting)
    with pytest.raises(Stopped):
        train(folder)
    assert "stopped at step 37 of 60, which is saved" in capsys.readouterr().out
    assert not (folder / "samples.npz").exists()
    assert train(folder)
    assert "continues from the checkpoint of step 37" in capsys.readouterr().out
    assert_same(final_state(folder), final_state(finished))
    np.testing.assert_array_equal(samples(folder)["samples"], samples(finished)["samples"])
    losses = json.loads((folder / "metrics.json").read_text())["train_loss"]
    assert [step for step, _ in losses] == [20, 37, 40, 60]


def test_a_request_to_stop_in_the_last_step_leaves_the_samples_for_later(
    tmp_path, monkeypatch, capsys
):
    def interrupting(seed, step, *arguments):
        if step == 19:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_index(seed, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "batch_index", interrupting)
        with pytest.raises(Stopped):
            train(tmp_path / "run", perceptron())
    assert "stopped after the last step, 20, which is saved" in capsys.readouterr().out
    assert not (tmp_path / "run" / "samples.npz").exists()
    assert train(tmp_path / "run", perceptron())
    assert samples(tmp_path / "run")["samples"].shape == (24, 8, 8, 1)


def test_a_finished_run_can_be_continued_to_more_steps(tmp_path):
    folder, constant = tmp_path / "more", {"optim__schedule": "constant"}
    train(folder, perceptron(**constant))
    train(folder, perceptron(training__num_steps=30, **constant))
    assert final_state(folder)[0] == 30
    assert int(samples(folder)["step"]) == 30
    words = r"has been trained for 30 steps, more than config\.training\.num_steps=20"
    with pytest.raises(ValueError, match=words):
        train(folder, perceptron(**constant))


def test_one_device_and_two_train_and_sample_alike(plain, tmp_path):
    train(tmp_path / "one", perceptron(), devices=1)
    # The arithmetic differs in its last bits, and Adam normalises gradients near 0: the losses
    # agree, not each number.
    one, two = (
        json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "one", plain)
    )
    for name in ("train_loss", "held_out_loss"):
        np.testing.assert_allclose(one[name], two[name], rtol=2e-4)


def test_one_device_and_two_give_the_same_samples(finished):
    run = opened(finished, devices=1)
    ends = draw(run, run.state.ema_params)
    np.testing.assert_allclose(np.clip(ends, 0, 1), samples(finished)["samples"], atol=1e-4)


def test_noise_of_a_chain_is_the_same_bits_on_any_number_of_devices():
    key = jax.random.key(3)
    noise = functools.partial(lambda index: standard_normal(example_keys(key, index), (8, 8, 1)))
    one = jax.pmap(noise, devices=jax.devices()[:1])(np.arange(8)[None])
    two = jax.pmap(noise)(np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(np.asarray(one)[0], np.asarray(two).reshape(8, 8, 8, 1))


def test_batch_size_of_the_sampler_does_not_change_a_sample(plain):
    run = opened(plain)
    ends = {size: draw(run, run.state.ema_params, batch_size=size) for size in (4, 12)}
    np.testing.assert_allclose(ends[4], ends[12], atol=1e-4)
    assert np.abs(ends[4][0] - ends[4][1]).max() > 0.01


def test_uniform_start_and_flips_and_no_dequantisation(tmp_path):
    config = perceptron(
        sampling__start="uniform",
        data__flip=True,
        data__dequantize=False,
        loss__levels="uniform",
        optim__schedule="constant",
        optim__clip_norm=None,
        sampling__denoise=False,
        sampling__num_frames=0,
    )
    train(tmp_path / "other", config)
    assert samples(tmp_path / "other")["samples"].shape == (24, 8, 8, 1)
    assert not (tmp_path / "other" / "chain.webp").exists()


def test_the_classes_of_the_samples_are_those_of_the_data(finished):
    run = opened(finished)
    labels = run.labels(3000)
    np.testing.assert_array_equal(np.bincount(labels[:1500]), np.bincount(run.data.train_labels))
    np.testing.assert_array_equal(labels[1500:], labels[:1500])
    assert len(set(labels[:30])) > 5
    np.testing.assert_array_equal(samples(finished)["labels"], labels[:24])
    # The label of the first chain reaches the network: with another one its end changes, and no
    # other's.
    params = jax.tree.map(lambda leaf: leaf + 0.01, run.state.ema_params)
    relabelled = labels[:24].copy()
    relabelled[0] = (relabelled[0] + 1) % 10
    ends = [draw(run, params, label=each).reshape(24, 64) for each in (labels[:24], relabelled)]
    difference = np.abs(ends[1] - ends[0]).max(1)
    assert difference[0] > 1e-4
    np.testing.assert_allclose(difference[1:], 0, atol=1e-5)


def test_evaluation_prints_and_writes_the_loss_of_every_level(finished, capsys):
    assert run_mode(make_command(finished, "evaluate"))
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
    train(folder, perceptron(optim__schedule="constant"))
    normal = dsm.annealed_dsm

    def overflowing(keys, score_fn, x, level, sigmas):
        losses = normal(keys, score_fn, x, level, sigmas)
        return losses + jnp.where(level == 2, jnp.inf, 0.0)

    monkeypatch.setattr(dsm, "annealed_dsm", overflowing)
    words = (
        r"the loss at noise level 2 \(sigma .*\) is not finite at step 21; the checkpoint of step "
        r"20 is kept: .*config\.optim\.learning_rate is 0\.002 and config\.optim\.clip_norm 1\.0"
    )
    with pytest.raises(FloatingPointError, match=words):
        train(folder, perceptron(training__num_steps=60, optim__schedule="constant"))
    assert Checkpoints(folder / "checkpoints").steps() == [20]


def test_a_chain_that_is_not_finite_is_named_and_nothing_is_overwritten(finished, monkeypatch):
    before = (finished / "samples.npz").read_bytes()
    network = type(opened(finished).model)
    apply = network.apply

    def broken(self, variables, x, level, *label):
        score = apply(self, variables, x, level, *label)
        return jnp.where((level == 1)[:, None, None, None], jnp.nan, score)

    monkeypatch.setattr(network, "apply", broken)
    words = (
        r"chain 0 is not finite after noise level 1 \(sigma .*\): lower "
        r"config\.sampling\.step_size \(now 0\.000499\), or train"
    )
    # Programs compiled with the sound network would be reused.
    config = small(sampling__batch_size=20)
    with pytest.raises(FloatingPointError, match=words):
        run_mode(make_command(finished, "sample", config, name="samples"))
    assert (finished / "samples.npz").read_bytes() == before


def test_another_network_of_the_same_shape_does_not_compile_again(plain):
    run = opened(plain)
    arguments = run.sampling(24) | {"label": run.labels(24), "progress": False}
    other = jax.tree.map(lambda leaf: leaf * 1.01, run.state.ema_params)
    first = sampling.sample(run.score_fn(run.state.ema_params), run.sigmas, **arguments)
    compiled = []

    def listener(name, *_, **__):
        if "backend_compile" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    second = sampling.sample(run.score_fn(other), run.sigmas, **arguments)
    assert len(compiled) <= 1  # the copy of the parameters to all devices
    assert np.abs(first - second).max() > 0
    jax.jit(lambda x: x * 3.25 + len(compiled))(1.0)
    assert compiled  # the listener listens


def test_a_data_set_that_is_streamed_gives_the_same_run(tmp_path):
    train(tmp_path / "held", perceptron())
    train(tmp_path / "streamed", perceptron(data__device_megabytes=0))
    streamed, held = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("streamed", "held")
    )
    for name in ("train_loss", "held_out_loss"):
        np.testing.assert_allclose(streamed[name], held[name], rtol=2e-5)
    ends = [samples(tmp_path / name)["samples"] for name in ("streamed", "held")]
    np.testing.assert_allclose(*ends, atol=1e-3)


def test_the_logit_transform_reaches_the_network_and_the_samples(tmp_path):
    train(tmp_path / "logit", perceptron(data__logit=True, sampling__num_frames=0))
    found = samples(tmp_path / "logit")["samples"]
    assert 0 <= found.min() < 0.2 < 0.8 < found.max() <= 1


def test_points_of_the_plane_are_a_data_set_too(tmp_path):
    training = {"num_steps": 40, "log_every": 20, "eval_every": 20, "checkpoint_every": 40}
    config = load_config("toy")
    config["training"].update(**training, batch_size=64)
    config["sampling"].update(num_samples=64, batch_size=64, num_steps=3, num_frames=2)
    train(tmp_path / "toy", config)
    assert samples(tmp_path / "toy")["samples"].shape == (64, 2)
    assert (tmp_path / "toy" / "samples.png").stat().st_size > 0
    assert opened(tmp_path / "toy", "train").step == 40


def test_a_dry_run_estimates_and_writes_nothing(tmp_path, monkeypatch, capsys):
    from score_jax.cli import estimate

    monkeypatch.setattr(estimate, "SECONDS", 0.01)
    folder = tmp_path / "run"
    command = make_command(folder, config=perceptron(), dry_run=True)
    assert run_mode(command)
    shown = capsys.readouterr().out
    for words in (
        r"mlp of \d",
        r"memory per device: .* MB",
        r"compiling the training step \(batch of 32 on 2 x cpu\)",
        r"training: 20 steps x ",
        r"sampling: 2 batches x 13 steps x ",
        r"in total about ",
    ):
        assert re.search(words, shown), words
    assert not list(tmp_path.iterdir())

    train(folder, perceptron())
    before = tree(folder)
    for mode in ("train", "sample"):
        assert run_mode(make_command(folder, mode, perceptron(), dry_run=True))
    assert "training: 0 steps" in capsys.readouterr().out
    assert tree(folder) == before


def test_a_dry_run_of_a_network_with_components_ends(tmp_path, monkeypatch, capsys):
    """The Gaussian of an untrained network has variances above 0."""
    from score_jax.cli import estimate

    monkeypatch.setattr(estimate, "SECONDS", 0.01)
    network = small()["model"] | {"components": 4}
    command = make_command(tmp_path / "run", config=perceptron(model=network), dry_run=True)
    assert run_mode(command)
    assert "in total about " in capsys.readouterr().out


def test_a_run_takes_training_examples_as_references(tmp_path):
    """The loss of its first step is that of the objective with these references."""
    one = {"training__num_steps": 1, "training__log_every": 1, "training__checkpoint_every": 1}
    config = perceptron(loss__num_references=64, optim__warmup_steps=0, **one)
    train(tmp_path / "run", config)
    run = opened(tmp_path / "run", "train")
    references = prepared_examples(run, 64)
    assert references.shape == (64, *run.shape)
    trainer = make_trainer(
        run.trainer.model,
        functools.partial(dsm.annealed_dsm, references=references),
        optax.sgd(0.1),
        run.sigmas,
        draw_levels=build.resolve(build.LEVELS, config["loss"]["levels"], "loss.levels"),
        prepare=build.build_prepare(config["data"], run.data),
    )
    x, batch_size = run.data.train, config["training"]["batch_size"]
    state = trainer.init(fitting.initial_params(run.trainer, x))
    index = batch_index(0, 0, len(x), batch_size)
    _, metrics = jax.jit(trainer.step)(run_keys(0)["train"], state, x[index])
    saved = json.loads((tmp_path / "run" / "metrics.json").read_text())
    np.testing.assert_allclose(saved["train_loss"], [[1, float(metrics.loss)]], rtol=1e-4)
