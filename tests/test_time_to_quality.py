"""benchmarks/time_to_quality.py with narrow networks, few steps and digits of 8x8 pixels."""

import importlib.util
import json
import os
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import score_jax as sj
from score_jax.cli.config_files import load_config
from score_jax.cli.flags import parse
from score_jax.cli.provenance import differences
from score_jax.data.sources import digits

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = [
    "--config.data.size=8",
    "--config.training.batch_size=32",
    "--config.training.eval_batches=1",
    "--config.noise.num_levels=4",
    "--config.sampling.num_steps=2",
    "--config.sampling.num_frames=0",
]
# A perceptron compiles in no time.
PERCEPTRON = [
    "--config.model.name=mlp",
    "--config.model.hidden=16",
    "--config.sampling.start=normal",
    *SMALL,
]
NCSN = ["--config.model.width=4", *SMALL]


@pytest.fixture
def bench():
    """The program."""
    spec = importlib.util.spec_from_file_location(
        "time_to_quality", BENCHMARKS / "time_to_quality.py"
    )
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program


def shrink(monkeypatch, program):
    """Gives the program flags of small runs."""
    # Programs that another test compiled are used again.
    monkeypatch.setattr(program, "COLD", f"--cache={os.environ['JAX_COMPILATION_CACHE_DIR']}")
    monkeypatch.setattr(program, "PACE_STEPS", 8)
    recipe = [flag for flag in program.RECIPE if "width" not in flag]
    flags = {
        "mnist_small": [*program.FLAGS["mnist_small"], *PERCEPTRON],
        "ncsn": [*recipe, *PERCEPTRON],
        "pytorch": [*recipe, *NCSN],
    }
    monkeypatch.setattr(program, "FLAGS", flags)


@pytest.fixture
def mnist(tmp_path):
    """A folder of real digits in MNIST's format."""
    data, folder = digits(), tmp_path / "mnist"
    folder.mkdir()
    for split, x, label in (
        ("train", data.train, data.train_labels),
        ("t10k", data.held_out, data.held_out_labels),
    ):
        header = struct.pack(">IIII", 0x803, len(x), 8, 8)
        pixels = (15 * x.astype(np.uint8)).tobytes()
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + pixels)
        header = struct.pack(">II", 0x801, len(x))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(
            header + label.astype(np.uint8).tobytes()
        )
    return folder


def run(program, mnist, *flags):
    """Runs the program and returns the content of results.json."""
    output = mnist.parent / "out"
    program.main([str(mnist), f"--output={output}", "--number=16", *flags])
    return json.loads((output / "results.json").read_text())


def check_files(output, name, minutes):
    """Checks the picture, the samples and their grid."""
    assert Image.open(output / "time_to_quality.png").width == 1800
    assert Image.open(output / f"samples_{name}.png").width > 8 * 10
    for each in minutes:
        with np.load(output / f"samples_{name}_{each:g}.npz") as file:
            x = file["samples"]
        assert x.shape == (16, 8, 8, 1)
        # The judge sees pixels as images have them.
        np.testing.assert_allclose(255 * x, np.round(255 * x), atol=1e-4)
        assert 0 <= x.min() <= x.max() <= 1


@pytest.mark.slow
def test_both_networks_of_the_library_and_a_run_that_is_cut_off(bench, mnist, monkeypatch):
    shrink(monkeypatch, bench)
    flags = ["--only=mnist_small,ncsn", "--minutes=0.001,0.002", "--minutes_mnist_small=0.001"]
    draw, drawn = bench.draw, []

    def draw_until_cut_off(folder, number, devices):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(draw(folder, number, devices))
        return drawn[-1]

    monkeypatch.setattr(bench, "draw", draw_until_cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(bench, mnist, *flags)
    output = mnist.parent / "out"
    before = json.loads((output / "results.json").read_text())
    assert [point["contestant"] for point in before["points"]] == ["mnist_small", "ncsn"]
    assert set(before["trained"]) == {"mnist_small 0.001", "ncsn 0.001", "ncsn 0.002"}

    # The same command goes on where it was cut off: it neither trains nor judges again.
    monkeypatch.setattr(bench, "draw", draw)
    monkeypatch.setattr(bench, "wall_seconds", None)
    record = run(bench, mnist, *flags)
    assert record["points"][:2] == before["points"]
    assert record["judge"] == before["judge"]
    assert record["real"] == before["real"]
    found = [(point["contestant"], point["steps"]) for point in record["points"]]
    assert found == [("mnist_small", 4), ("ncsn", 4), ("ncsn", 8)]
    assert all(point["sampling_seconds_per_1000"] > 0 for point in record["points"])
    # The clock holds the training of all processes, and starts and compilation besides.
    assert (
        60 * record["points"][-1]["minutes"] > bench.trained_seconds(output / "ncsn" / "run") > 0
    )
    check_files(output, "mnist_small", [0.001])
    check_files(output, "ncsn", [0.001, 0.002])

    # The judge recognises real digits, and an untrained network draws none.
    assert record["judge"]["accuracy"] > 0.9
    assert record["real"]["confident"] > 0.5
    assert record["points"][1]["frechet"] > record["real"]["frechet"]

    with pytest.raises(SystemExit, match="number 16, not 32"):
        bench.main([str(mnist), f"--output={output}", "--number=32"])


def test_steps_fit_into_the_minutes(bench):
    pace = {"start": 30.0, "step": 0.5}
    assert [bench.steps_for(pace, minutes, i) for i, minutes in enumerate((1, 2))] == [60, 180]
    # Minutes that the start alone takes still give points at different steps.
    assert [bench.steps_for(pace, 0.1, i) for i in range(3)] == [4, 8, 12]


def test_the_contestants_are_those_of_the_configs(bench, tmp_path):
    for steps in (4, 60, 2400):
        found = {
            name: parse(bench.training_command(name, "mnist", tmp_path, steps)[3:]).config
            for name in ("mnist_small", "ncsn")
        }
        small, recipe = load_config("mnist_small"), load_config("mnist")
        changed = {"data.path", "training.num_steps", "training.checkpoint_every"}
        changed |= {"sampling.autoguidance_step", "optim.warmup_steps"}
        assert set(differences(small, found["mnist_small"])) <= changed
        assert found["mnist_small"]["sampling"]["autoguidance_step"] == steps // 4
        changed = {"data.source", "data.path", "model.width", "training.num_steps"}
        changed |= {f"training.{name}" for name in ("eval_batches", "keep_best", "metric_samples")}
        assert set(differences(recipe, found["ncsn"])) <= changed
        assert found["ncsn"]["model"]["width"] == 16


@pytest.mark.torch
def test_pytorch_learns_and_its_samples_come_from_its_own_network(bench, mnist, monkeypatch):
    pytest.importorskip("torch")
    shrink(monkeypatch, bench)
    record = run(bench, mnist, "--only=pytorch", "--minutes=0.001,0.002")
    assert [point["steps"] for point in record["points"]] == [4, 8]
    output = mnist.parent / "out"
    check_files(output, "pytorch", [0.001, 0.002])

    # Its objective, as score_jax computes it, falls.
    folder, losses = output / "pytorch" / "run", []
    bench.train("pytorch", str(mnist), folder, 60)
    x = np.float32(digits().held_out) / 17
    keys, level = (
        jax.random.split(jax.random.key(0), len(x)),
        np.arange(len(x), dtype=np.int32) % 4,
    )
    for name in ("initial", "network"):
        with np.load(folder / f"{name}.npz") as state:
            model, params = sj.from_official(dict(state))
        score_fn = sj.score_fn(model, params)
        sigmas = sj.geometric_sigmas(1.0, 0.01, 4)
        losses.append(float(np.mean(sj.annealed_dsm(keys, score_fn, x, level, sigmas))))
    assert losses[1] < 0.8 * losses[0]
