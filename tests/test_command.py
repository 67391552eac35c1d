"""The command as a user starts it: in a process of its own."""

import itertools
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image
from runs import (
    assert_same,
    final_state,
    flags,
    load,
    opened,
    perceptron,
    run_command,
    samples,
    saved_config,
    start,
    started,
)

SECTIONS = ("data", "model", "noise", "optim", "training", "sampling")

PACKAGE = {
    "__init__.py": "",
    "shapes.py": """
        import numpy as np

        def circle(number, radius):
            angle = 2 * np.pi * np.arange(number) / number
            return radius * np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    """,
    "sources.py": """
        from mine.shapes import circle
        from score_jax.data.dataset import Dataset

        def rings(radius, number=64):
            return Dataset(circle(number, radius), circle(number // 2, radius), num_values=None)
    """,
    "networks.py": """
        import jax
        import jax.numpy as jnp

        def two_layers(sigmas, units):
            sigmas = jnp.asarray(sigmas)

            def init(key, x, level):
                keys = jax.random.split(key)
                features = x.shape[1]
                first = jax.random.normal(keys[0], (features, units)) / features**0.5
                second = jax.random.normal(keys[1], (units, features)) / units**0.5
                return {"first": first, "second": second}

            def apply(params, x, level):
                sigma = sigmas[level][:, None]
                h = jnp.tanh(x / jnp.sqrt(1 + sigma**2) @ params["first"])
                return h @ params["second"] / sigma

            return init, apply
    """,
    "losses.py": """
        import jax.numpy as jnp
        from score_jax.losses.dsm import annealed_dsm

        def robust(keys, score_fn, x, level, sigmas, *, delta, scale=1.0):
            losses = annealed_dsm(keys, score_fn, x, level, sigmas)
            return scale * delta**2 * (jnp.sqrt(1 + losses / delta**2) - 1)
    """,
    "samplers.py": """
        from score_jax.samplers.langevin import langevin_step
        from score_jax.samplers.loop import anneal

        def walk(keys, score_fn, x, sigmas, *, step_size, num_steps, denoise=False,
                 num_snapshots=0, noise_fn=None, temperature):
            def update(x, score, noise, level, n):
                return langevin_step(score, x, temperature * noise, step_size)

            return anneal(update, keys, score_fn, x, sigmas, num_steps=num_steps, denoise=denoise,
                          num_snapshots=num_snapshots, noise_fn=noise_fn)
    """,
}
"""A user's own package: one object of each kind, with settings of its own."""

OWN = [
    "--config=toy",
    "--config.data.source=mine.sources:rings",
    "--config.data.radius=1.5",
    "--config.model.name=mine.networks:two_layers",
    "--config.model.units=12",
    "--config.loss.name=mine.losses:robust",
    "--config.loss.delta=2.5",
    "--config.sampling.method=mine.samplers:walk",
    "--config.sampling.temperature=0.0",
    "--config.sampling.num_samples=6",
    "--config.sampling.batch_size=4",
    "--config.sampling.num_steps=2",
    "--config.sampling.num_frames=2",
    "--config.training.num_steps=40",
    "--config.training.log_every=10",
    "--config.training.batch_size=16",
    "--config.training.eval_batches=1",
]


def write_package(folder):
    """Writes the package `mine` below a folder."""
    import textwrap

    (folder / "mine").mkdir()
    for name, code in PACKAGE.items():
        (folder / "mine" / name).write_text(textwrap.dedent(code))


def test_a_package_of_ones_own_runs_from_the_command(tmp_path):
    """An own loss, sampler, network and data source, without a change of score_jax."""
    write_package(tmp_path)
    run = "--workdir=run"
    shown = started(run, *OWN, cwd=tmp_path)
    assert "mine.networks:two_layers of 48 parameters, 64 training examples [2]" in shown
    config = saved_config(tmp_path / "run")
    assert (config["loss"]["delta"], config["model"]["units"]) == (2.5, 12)
    found = samples(tmp_path / "run")
    assert found["samples"].shape == (6, 2)
    # The workdir alone is enough for the other modes, and settings of one's own can change.
    for mode in ("evaluate", "export"):
        started(run, f"--mode={mode}", cwd=tmp_path)
    hot = ["--config.sampling.temperature=1.0", "--name=hot", "--number=6"]
    started(run, "--mode=sample", *hot, cwd=tmp_path)
    assert np.abs(samples(tmp_path / "run", "hot")["samples"] - found["samples"]).max() > 1e-3


def test_a_flat_folder_of_photos_from_end_to_end(tmp_path):
    """As the README says, without reading code: a config for the photos, then training on them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "my photos"
    folder.mkdir()
    for i in range(12):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg")
    data = ["--config.data.source=folder", "--config.data.path=my photos"]
    shown = started("--mode=schedule", *data, "--write=mine.py", cwd=tmp_path)
    assert "11 images to train on, 1 held out" in shown
    assert "next: score-jax --config=mine.py" in shown
    few = perceptron(
        training__num_steps=10,
        optim__warmup_steps=2,
        training__batch_size=4,
        training__eval_batches=1,
        sampling__num_samples=4,
        sampling__batch_size=4,
        sampling__num_steps=1,
    )
    # From another folder: the config holds the whole path of the photos.
    (tmp_path / "elsewhere").mkdir()
    settings = flags(few, ("training", "optim", "sampling"))
    config = f"--config={tmp_path / 'mine.py'}"
    started(config, *settings, cwd=tmp_path / "elsewhere")
    found = load(tmp_path / "elsewhere" / "runs" / "mine" / "samples.npz")
    assert found["samples"].shape == (4, 8, 8, 3)


@pytest.mark.optimized
def test_kill_in_the_middle_of_training_loses_nothing(tmp_path, capsys):
    """kill -9, then the same command again: the bits of a run that was never killed.

    Before, a second writer is refused, while readers work beside the first one.
    """
    config = perceptron(
        training__num_steps=2000,
        training__checkpoint_every=50,
        training__eval_every=2000,
        sampling__num_samples=4,
        sampling__batch_size=4,
    )
    command, whole, killed = flags(config, SECTIONS), tmp_path / "whole", tmp_path / "killed"
    process = start(*command, f"--workdir={killed}", stdout=subprocess.DEVNULL)
    for _ in itertools.takewhile(lambda _: process.poll() is None, range(2400)):
        if (killed / "checkpoints" / "300").exists():
            break
        time.sleep(0.05)
    code, shown = run_command(capsys, f"--workdir={killed}", "--config.optim.learning_rate=0.5")
    assert (code, len(shown.splitlines())) == (2, 1)
    assert f"is being written by process {process.pid} on host" in shown
    for _ in range(3):
        run = opened(killed)
        assert run.step == int(run.state.step)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "samples.npz").exists()
    saved = [path.name for path in (killed / "checkpoints").iterdir()]
    done = max(int(name) for name in saved if name.isdigit())
    assert 300 <= done < 2000
    shown = started(*command, f"--workdir={killed}")
    assert "continues from the checkpoint of step" in shown
    # How often a run is saved changes nothing.
    started(*command, f"--workdir={whole}", "--config.training.checkpoint_every=2000")
    step, state = final_state(killed)
    assert step == 2000
    assert_same(state, final_state(whole)[1])
    np.testing.assert_array_equal(samples(killed)["samples"], samples(whole)["samples"])


def test_ctrl_c_saves_the_step_and_says_how_to_go_on(tmp_path):
    config = perceptron(training__num_steps=10_000, training__checkpoint_every=10_000)
    folder = tmp_path / "run"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(*flags(config, SECTIONS), f"--workdir={folder}", **pipes)
    for line in process.stdout:
        if line.startswith("train "):
            break
    process.send_signal(signal.SIGINT)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "which is saved; the same command continues from there" in shown
    assert "Traceback" not in errors
    step = final_state(folder)[0]
    assert f"stopped at step {step} of 10000" in shown
