"""`fit` and `sample` on arrays, as a user calls them."""

import functools
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import score_jax as sj
from score_jax.checkpoint import Checkpoints
from score_jax.data.dataset import Dataset, LazyImages

SIGMAS = sj.geometric_sigmas(1.0, 0.1, 4)

# The program of the README, as printed, but for the network and the number of steps.
PROGRAM = """
import numpy as np, optax
import score_jax as sj
x = np.load("mine.npy")
sigmas = sj.geometric_sigmas(1.0, 0.03, 16)
model = sj.MLP(sigmas=sigmas)
trainer = sj.make_trainer(model, sj.annealed_dsm, optax.adam(1e-3), sigmas)
state = sj.fit(trainer, x, num_steps=2000, batch_size=128, seed=0, workdir="runs/mine")
score_fn = sj.score_fn(model, state.ema_params)
samples = sj.sample(score_fn, sigmas, number=1000, shape=x.shape[1:], num_steps=10, seed=0)
"""
SAVE = '\nnp.savez("out.npz", samples, *__import__("jax").tree.leaves(state))\n'
POINTS = np.random.default_rng(0).normal(0.5, 0.8, (500, 2)).astype(np.float32)


def points(number=64, seed=0):
    return np.random.default_rng(seed).normal(0.5, 0.8, (number, 3)).astype(np.float32)


def linear_pair():
    """The score of a Gaussian with its own precision and mean at each level, as pure functions."""

    def init(key, x, level):
        return {"slope": jnp.ones(4), "offset": jnp.zeros((4, *x.shape[1:]))}

    def apply(params, x, level):
        slope = params["slope"][level].reshape(-1, *(1,) * (x.ndim - 1))
        return params["offset"][level] - slope * x

    return init, apply


def make_trainer(**settings):
    return sj.make_trainer(linear_pair(), sj.annealed_dsm, optax.adam(1e-2), SIGMAS, **settings)


def run_fit(x=None, trainer=None, **settings):
    arguments = {
        "num_steps": 40,
        "batch_size": 8,
        "steps_per_call": 7,  # divides none of the other intervals
        "log_every": 10,
        "checkpoint_every": 10,
        "progress": False,
        **settings,
    }
    x = points() if x is None else x
    return sj.fit(trainer or make_trainer(), x, **arguments)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def run_program(folder, code):
    (folder / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    with np.load(folder / "out.npz") as file:
        return done.stdout, [file[name] for name in file.files]


@pytest.mark.optimized
def test_the_program_runs_as_printed_and_a_killed_run_ends_with_the_same_bits(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        np.save(folder / "mine.npy", POINTS)
    code = PROGRAM + SAVE
    shown, expected = run_program(whole, code)
    samples = expected[0]
    assert samples.shape == (1000, 2)
    np.testing.assert_allclose(samples.mean(0), POINTS.mean(0), atol=0.15)
    np.testing.assert_allclose(samples.std(0), POINTS.std(0), rtol=0.2)
    assert "compiling the training step" in shown
    assert "compiling the sampler" in shown

    # Kill the same program after its first checkpoint, and start it again.
    (killed / "program.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, "program.py"], cwd=killed, stdout=subprocess.DEVNULL
    )
    checkpoint = killed / "runs" / "mine" / "checkpoints" / "1000"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "out.npz").exists()
    shown, found = run_program(killed, code)
    assert "continues from the checkpoint of step" in shown or "training is complete" in shown
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_program_runs_on_images(tmp_path, dtype):
    small = "width=16, groups=4, multipliers=(1,), num_blocks=(1,), attention=0"
    model = f"sj.UNet(sigmas=sigmas, {small})"
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (200, 12, 12, 3))
    np.save(tmp_path / "mine.npy", (x * 255 if dtype == "uint8" else x).astype(dtype))
    code = PROGRAM.replace("sj.MLP(sigmas=sigmas)", model)
    code = code.replace("num_steps=2000, batch_size=128", "num_steps=4, batch_size=8")
    code = code.replace("number=1000", "number=6").replace("num_steps=10,", "num_steps=1,")
    _, found = run_program(tmp_path, code + SAVE)
    assert found[0].shape == (6, 12, 12, 3)
    assert np.isfinite(found[0]).all()


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = run_fit()
    assert int(state.step) == 40
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    first = run_fit(seed=3)
    assert_same(run_fit(seed=3), first)
    other = run_fit(seed=4)
    leaves = zip(jax.tree.leaves(other.params), jax.tree.leaves(first.params), strict=True)
    assert all(np.abs(a - b).max() > 0 for a, b in leaves)


def test_intervals_and_workdirs_do_not_change_the_result(tmp_path):
    whole = run_fit()
    assert_same(
        run_fit(workdir=tmp_path, steps_per_call=3, log_every=4, held_out=points(16)), whole
    )


def test_a_run_that_is_stopped_continues_with_the_same_bits(tmp_path):
    whole, calls = run_fit(), []

    def stop():
        calls.append(1)
        return len(calls) == 3

    stopped = run_fit(workdir=tmp_path, stop=stop)
    assert 0 < int(stopped.step) < 40
    assert Checkpoints(tmp_path / "checkpoints").steps()[0] == int(stopped.step)
    assert_same(run_fit(workdir=tmp_path), whole)


def test_a_finished_run_is_returned_and_may_be_extended(tmp_path, capsys):
    whole = run_fit(num_steps=60)
    first = run_fit(workdir=tmp_path)
    again = run_fit(workdir=tmp_path, progress=True)
    assert "training is complete (40 steps)" in capsys.readouterr().out
    assert_same(again, first)
    assert_same(run_fit(workdir=tmp_path, num_steps=60), whole)
    with pytest.raises(ValueError, match="trained for 60 steps, more than num_steps=40"):
        run_fit(workdir=tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"batch_size": 16}, "batch_size is 8 there and 16 here"),
        ({"x": points(65)}, "num_examples is 64 there and 65 here"),
    ],
)
def test_checkpoints_of_another_run_are_refused(tmp_path, change, words):
    run_fit(workdir=tmp_path)
    with pytest.raises(
        ValueError, match=f"belong to another run: {words}; choose another workdir"
    ):
        run_fit(workdir=tmp_path, num_steps=50, **change)


def test_one_device_and_two_train_alike():
    one, two = run_fit(devices=jax.devices()[:1]), run_fit(devices=jax.devices())
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_training_finds_the_score_of_a_gaussian():
    """N(0.5, 0.64): the score at sigma is -(x - 0.5) / (0.64 + sigma^2)."""
    sigmas = sj.geometric_sigmas(1.0, 0.4, 4)  # the gradient of a slope shrinks with sigma^2
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    trainer = sj.make_trainer(linear_pair(), sj.annealed_dsm, optimizer, sigmas, ema_decay=0.99)
    settings = {"num_steps": 1500, "batch_size": 256, "log_every": 500, "steps_per_call": 50}
    state = run_fit(points(20_000), trainer, **settings)
    slope = 1 / (0.64 + np.asarray(sigmas, np.float64) ** 2)
    np.testing.assert_allclose(state.ema_params["slope"], slope, rtol=0.04)
    expected = np.tile(0.5 * slope[:, None], 3)
    np.testing.assert_allclose(state.ema_params["offset"], expected, rtol=0.08)


def test_callbacks_receive_reports_at_their_intervals():
    seen, states = [], []

    def callback(report):
        seen.append(report.step)
        states.append(float(jax.tree.leaves(report.state.params)[0].sum()))
        assert report.num_steps == 40
        assert report.compile_seconds > 0

    reports = []
    run_fit(
        held_out=points(16),
        eval_every=20,
        callbacks=[(16, callback), (40, reports.append)],
    )
    assert seen == [16, 32, 40]
    assert len(set(states)) == 3
    [report] = reports
    assert [step for step, _ in report.losses] == [10, 20, 30, 40]
    assert [step for step, _ in report.held_out_losses] == [20, 40]
    assert report.losses[-1][1] < report.losses[0][1]
    assert report.grad_norm > 0
    assert report.steps_per_second > 0


def test_a_loss_that_is_not_finite_names_step_and_level_and_keeps_the_checkpoint(tmp_path):
    run_fit(workdir=tmp_path, num_steps=20)

    def overflowing(keys, score_fn, x, level, sigmas):
        losses = sj.annealed_dsm(keys, score_fn, x, level, sigmas)
        return losses + jnp.where(level == 2, jnp.inf, 0.0)

    trainer = sj.make_trainer(
        linear_pair(), overflowing, optax.adam(1e-2), SIGMAS, draw_levels=sj.stratified_levels
    )
    words = (
        r"the loss at noise level 2 \(sigma .*\) is not finite at step 21; the checkpoint of step"
    )
    with pytest.raises(FloatingPointError, match=words + " 20 is kept: lower the learning rate"):
        run_fit(trainer=trainer, workdir=tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps()[0] == 20


def test_labels_reach_a_conditional_network():
    """Two classes with opposite means: the score of each class points to its own mean."""
    label = np.arange(64) % 2
    x = points() + np.where(label == 1, 4.0, -4.0)[:, None].astype(np.float32)

    def init(key, x, level, label):
        return {"means": jnp.zeros((2, 3))}

    def apply(params, x, level, label):
        return params["means"][label] - x

    sigmas = sj.geometric_sigmas(0.5, 0.1, 4)
    trainer = sj.make_trainer((init, apply), sj.annealed_dsm, optax.adam(0.05), sigmas)
    state = run_fit(x, trainer, label=label, num_steps=400, steps_per_call=20, log_every=100)
    means = np.asarray(state.ema_params["means"])
    assert means[0].max() < -2
    assert means[1].min() > 2
    samples = sj.sample(
        sj.score_fn(trainer.model, state.ema_params),
        sigmas,
        number=10,
        shape=(3,),
        label=label[:10],
        progress=False,
    )
    assert (samples[label[:10] == 1] > 0).all()
    assert (samples[label[:10] == 0] < 0).all()


def test_a_dataset_brings_labels_and_held_out_examples():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 4, 4, 1), dtype=np.uint8)
    data = Dataset(pixels[:32], pixels[32:], 256)
    reports = []
    run_fit(data, eval_every=20, callbacks=[(40, reports.append)])
    assert [step for step, _ in reports[0].held_out_losses] == [20, 40]
    with pytest.raises(ValueError, match="x is a Dataset, which brings its own labels"):
        run_fit(data, held_out=pixels[32:])


def test_streamed_and_lazy_examples_give_the_same_bits_as_resident_ones():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 4, 4, 1), dtype=np.uint8)
    resident = run_fit(pixels, held_out=pixels[:8])
    for leaf, other in (
        (resident, run_fit(pixels, held_out=pixels[:8], device_megabytes=0)),
        (resident, run_fit(LazyImages(lambda i: pixels[i], 32, (4, 4, 1)), held_out=pixels[:8])),
    ):
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 7}, "batch_size=7 cannot be split over 2 devices: use 6 or 8"),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"log_every": 0}, "log_every=0 must be"),
        ({"seed": -1}, r"seed=-1 must be in \[0, 2\*\*32\)"),
        ({"x": points().astype(np.complex64)}, "x is complex64, .* as two channels"),
        ({"x": points().astype(np.int32)}, "x is int32, but must be floating-point, or uint8"),
        ({"x": points()[:0]}, "and not empty"),
        ({"x": points()[:, 0]}, r"x has shape \[64\], but must be \[examples, ...\]"),
        ({"x": np.where(np.arange(64)[:, None] == 5, np.nan, points())}, "in example 5"),
        ({"held_out": points()[:, :2]}, r"held_out has examples of shape \[2\]"),
        ({"label": np.zeros(3, int)}, r"the labels of x are int64 \[3\]"),
        ({"callbacks": [(0, print)]}, r"callbacks\[0\]=0 must be"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        run_fit(**change)


def test_a_given_state_is_the_start():
    trained = run_fit()
    assert_same(run_fit(state=trained), trained)
    longer = run_fit(state=trained, num_steps=60)
    assert_same(longer, run_fit(num_steps=60))


# Networks of other libraries: a pair of pure functions (init, apply).


def nnx_pair():
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 16, rngs=rngs)
            self.last = nnx.Linear(16, 3, rngs=rngs)

        def __call__(self, x, level):
            sigma = SIGMAS[level][:, None]
            h = jnp.concatenate([x, jnp.log(sigma)], axis=1)
            return self.last(nnx.silu(self.first(h))) / sigma

    graph = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))[0]
    return (
        lambda key, x, level: nnx.split(Network(nnx.Rngs(key)))[1],
        lambda params, x, level: nnx.merge(graph, params)(x, level),
    )


def equinox_pair():
    eqx = pytest.importorskip("equinox")

    def make(key):
        return eqx.nn.MLP(4, 3, 16, 1, jax.nn.silu, key=key)

    static = eqx.partition(make(jax.random.key(0)), eqx.is_array)[1]

    def apply(params, x, level):
        network, sigma = eqx.combine(params, static), SIGMAS[level][:, None]
        h = jnp.concatenate([x, jnp.log(sigma)], axis=1)
        return jax.vmap(network)(h) / sigma

    return lambda key, x, level: eqx.partition(make(key), eqx.is_array)[0], apply


def haiku_pair():
    hk = pytest.importorskip("haiku")

    def network(x, level):
        sigma = SIGMAS[level][:, None]
        h = jnp.concatenate([x, jnp.log(sigma)], axis=1)
        return hk.nets.MLP([16, 3], activation=jax.nn.silu)(h) / sigma

    transformed = hk.without_apply_rng(hk.transform(network))
    return transformed.init, transformed.apply


@pytest.mark.parametrize(
    "pair",
    [
        linear_pair,
        nnx_pair,
        pytest.param(equinox_pair, marks=pytest.mark.networks),
        pytest.param(haiku_pair, marks=pytest.mark.networks),
    ],
)
def test_networks_of_other_libraries_train_the_same_way(pair, tmp_path):
    model = pair()
    trainer = sj.make_trainer(model, sj.annealed_dsm, optax.adam(1e-2), SIGMAS)
    reports = []
    settings = {"callbacks": [(200, reports.append)], "log_every": 20, "steps_per_call": 10}
    state = run_fit(points(512), trainer, num_steps=200, batch_size=32, **settings)
    assert reports[0].losses[-1][1] < reports[0].losses[0][1]

    # A resumed run gives the same state, and its score function samples.
    run = functools.partial(run_fit, points(512), trainer, batch_size=32, workdir=tmp_path)
    run(num_steps=100, **settings)
    assert_same(run(num_steps=200, **settings), state)
    score_fn = sj.score_fn(model, state.ema_params)
    samples = sj.sample(score_fn, SIGMAS, number=16, shape=(3,), num_steps=5, progress=False)
    assert samples.shape == (16, 3)
    assert np.isfinite(samples).all()


def test_neither_a_module_nor_a_pair_is_refused():
    with pytest.raises(ValueError, match="model is a function, but must be a Flax linen module"):
        sj.make_trainer(lambda params, x, level: x, sj.annealed_dsm, optax.adam(1e-2), SIGMAS)


def test_importing_the_library_changes_no_global_state():
    code = (
        "import logging, signal, warnings\n"
        "before = (logging.getLogger('absl').level, logging.root.level,\n"
        "          signal.getsignal(signal.SIGINT), list(warnings.filters))\n"
        "import score_jax.checkpoint, score_jax.fitting, score_jax.sampling\n"
        "import jax\n"
        "after = (logging.getLogger('absl').level, logging.root.level,\n"
        "         signal.getsignal(signal.SIGINT))\n"
        "assert after == before[:3], (before, after)\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout == "None\n"
