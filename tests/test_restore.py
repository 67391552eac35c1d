"""`--mode=restore`: inverse problems with the trained network as their prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import finished_perceptron, load

from score_jax.cli import modes, restore
from score_jax.cli.restore import Task, cartesian_mask, misfit, read_task
from score_jax.posterior import METHODS

GREY, COLOUR = (8, 8, 1), (8, 8, 3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return finished_perceptron(tmp_path_factory)


@pytest.mark.parametrize(
    ("task", "shape", "measurement"),
    [
        ("colorize", COLOUR, (8, 8, 1)),
        ("superresolve", GREY, (4, 4, 1)),
        ("superresolve:4", COLOUR, (2, 2, 3)),
        ("deblur:0.7", GREY, (8, 8, 1)),
        ("sense:0.25", GREY, (16,)),
        ("sense:0.5", COLOUR, (96,)),
        ("mri:2", GREY, (32, 2)),
        ("inpaint:left", COLOUR, (32 * 3,)),
    ],
)
def test_tasks_measure_what_they_say(task, shape, measurement):
    operator = read_task(task, shape, seed=0)
    x = jax.random.normal(jax.random.key(0), (2, *shape))
    assert operator(x).shape == (2, *measurement)


@pytest.mark.parametrize(
    ("task", "shape", "words"),
    [
        ("sharpen", GREY, "--task=sharpen is not known: choose among colorize"),
        ("colorize", GREY, "needs colour images"),
        ("colorize:2", COLOUR, "takes no parameter"),
        ("superresolve:3", GREY, "must be a whole number of at least 2 that divides 8 and 8"),
        ("superresolve:1", GREY, "must be a whole number of at least 2"),
        ("superresolve:two", GREY, "must be a whole number"),
        ("deblur:0", GREY, "must be above 0 and at most 8 pixels"),
        ("deblur:nan", GREY, "must be above 0"),
        ("sense:1.5", GREY, "must be above 0 and at most 1"),
        ("mri:2", COLOUR, "needs images of 1 channel"),
        ("mri:0.5", GREY, "an acceleration from 1 to 8"),
        ("inpaint:nowhere", GREY, "neither a file nor one of right"),
    ],
)
def test_tasks_that_do_not_fit_are_refused(task, shape, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_task(task, shape, seed=0)


@pytest.mark.parametrize(("width", "acceleration"), [(8, 2), (32, 4), (7, 3), (8, 1), (8, 8)])
def test_an_accelerated_scan_measures_whole_columns_with_the_lowest_frequencies(
    width, acceleration
):
    mask = cartesian_mask(jax.random.key(1), 6, width, float(acceleration))
    assert mask.shape == (6, width)
    assert (mask == mask[:1]).all()
    assert mask[0].sum() == max(1, round(width / acceleration))
    assert mask[0, 0]


def test_the_misfit_of_the_originals_is_that_of_the_noise():
    """Its square is the mean of chi-squared variables: 1 within 5 sqrt(2 / n)."""
    operator = read_task("superresolve:2", GREY, seed=0)
    x = np.asarray(jax.random.normal(jax.random.key(0), (200, 1, *GREY)))
    noise = 0.05 * np.asarray(jax.random.normal(jax.random.key(1), (200, 4, 4, 1)))
    measured = np.asarray(operator(jnp.asarray(x[:, 0]))) + noise
    found = misfit(Task(operator, 0.05, "dps"), measured, x)
    assert found.shape == (200, 1)
    np.testing.assert_allclose(np.mean(found**2), 1, atol=5 * np.sqrt(2 / (200 * 16)))


def test_the_command_offers_the_methods_of_the_library():
    assert modes.POSTERIORS == METHODS


def test_digits_are_restored_from_half_the_resolution(plain, command):
    words = ["--mode=restore", "--task=superresolve:2", "--number=3", "--completions=4"]
    sampler = ["--config.sampling.method=ode", "--config.sampling.num_steps=6"]
    code, err = command(f"--workdir={plain}", *words, *sampler)
    assert code == 0, err
    found = load(plain / "restoration.npz")
    assert found["samples"].shape == (3, 4, *GREY)
    assert found["measurements"].shape == (3, 4, 4, 1)
    np.testing.assert_allclose(found["mean"], found["samples"].mean(1), rtol=1e-5, atol=1e-6)
    blocks = found["originals"].reshape(3, 4, 2, 4, 2, 1).mean((2, 4))
    noise = (found["measurements"] - blocks) / 0.05
    assert 0.5 < noise.std() < 1.5

    # Even a network that has learned little fits the data: the misfit of its samples is far below
    # that of independent ones.
    assert found["misfit"].max() < 3
    other = np.roll(found["samples"], 1, axis=0)
    operator = restore.read_task("superresolve:2", GREY, seed=0)
    others = misfit(Task(operator, 0.05, ""), found["measurements"], other)
    assert others.mean() > 2 * found["misfit"].mean()
    assert (plain / "restoration.png").stat().st_size > 1000

    # The same command again writes the same bits; another seed of the noise, a file of its own.
    command(f"--workdir={plain}", *words, *sampler, "--noise=0.1")
    assert len(list(plain.glob("restoration*.npz"))) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--mode=restore needs --task, such as colorize"),
        (["--task=sharpen"], "--task=sharpen is not known"),
        (["--task=sense", "--method=best"], "--method=best must be moment_matching"),
        (["--task=sense", "--noise=0"], "--noise=0"),
        (["--task=sense", "--mask=left"], "--mask"),
    ],
)
def test_commands_that_cannot_be_run_are_refused(plain, command, words, message):
    code, err = command(f"--workdir={plain}", "--mode=restore", *words)
    assert code == 2
    assert message in err
