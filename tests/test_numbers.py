"""NaN and infinity in training and sampling: what is said, and what stays on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import score_jax as sj
from score_jax import training_log
from score_jax.checkpoint import BestCheckpoints, Checkpoints
from score_jax.debugging import first_not_finite

SIGMAS = sj.geometric_sigmas(1.0, 0.1, 4)
NORMS = r"gradient norms before it: [0-9.]+, [0-9.]+, [0-9.]+, [0-9.]+, [0-9.]+"


def pair():
    """A linear network with parameters that no loss depends on."""

    def init(key, x, level):
        return {"mean": jnp.zeros(3), "unused": jnp.ones(2)}

    def apply(params, x, level):
        return params["mean"][None] - x

    return init, apply


def late(optimizer_step=44):
    """Adam whose learning rate is NaN in the update of step 45."""
    return optax.adam(lambda count: jnp.where(count == optimizer_step, jnp.nan, 1e-2))


def only_unused():
    """Gradient descent that makes the unused parameters NaN in the update of step 45."""

    def update(grads, count, params=None):
        wrong = jnp.where(count == 44, jnp.nan, 0.0)
        return {"mean": -1e-2 * grads["mean"], "unused": jnp.full(2, wrong)}, count + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


def fitted(optimizer, loss_fn=sj.annealed_dsm, **more):
    """Sixty steps with a checkpoint after 20 and 40."""
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    trainer = sj.make_trainer(pair(), loss_fn, optimizer, SIGMAS)
    arguments = {"num_steps": 60, "batch_size": 8, "log_every": 20, "eval_every": 30}
    arguments |= {"checkpoint_every": 20, "steps_per_call": 7, "progress": False}
    return sj.fit(trainer, x, devices=jax.devices()[:1], **(arguments | more))


def test_a_loss_that_fails_late_names_the_norms_before_it_and_the_last_checkpoint(tmp_path):
    words = rf"noise level \d \(sigma .*\) is not finite at step 46; {NORMS}; .* step 40 is kept"
    with pytest.raises(FloatingPointError, match=words):
        fitted(late(), workdir=tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [40, 20]


def test_parameters_that_no_loss_shows_replace_no_sound_checkpoint(tmp_path):
    held_out = np.ones((8, 3), np.float32)
    words = rf"params\['unused'\] is not finite at step 60, .* step 40 is kept; {NORMS}"
    with pytest.raises(FloatingPointError, match=words):
        fitted(only_unused(), workdir=tmp_path, held_out=held_out, keep_best=1)
    for name in ("checkpoints", "best"):
        saved = Checkpoints(tmp_path / name)
        step, state = saved.restore(_like())
        assert step == {"checkpoints": 40, "best": 30}[name]
        assert first_not_finite(state) is None


def _like():
    optimizer = only_unused()
    trainer = sj.make_trainer(pair(), sj.annealed_dsm, optimizer, SIGMAS)
    return trainer.init({"mean": jnp.zeros(3), "unused": jnp.ones(2)})


def test_a_state_that_is_not_finite_is_refused(monkeypatch, tmp_path):
    """As an argument, in a checkpoint of an earlier version, and among the best."""
    bad = _like()._replace(params={"mean": jnp.zeros(3), "unused": jnp.array([1.0, jnp.nan])})
    with pytest.raises(ValueError, match=r"^state\.params\['unused'\] is not finite"):
        fitted(only_unused(), state=bad)
    best = BestCheckpoints(tmp_path / "best")
    with pytest.raises(FloatingPointError, match=r"at step 7, which is not saved; nothing was"):
        best.offer(7, 1.0, bad)

    saved = Checkpoints(tmp_path / "checkpoints")
    saved.save(1, _like()._replace(step=jnp.int32(1)))
    monkeypatch.setattr(Checkpoints, "check_finite", lambda *arguments: None)
    saved.save(2, bad._replace(step=jnp.int32(2)))
    saved.wait()
    assert Checkpoints(tmp_path / "checkpoints").restore(_like())[0] == 1


@pytest.mark.parametrize(
    ("function", "sign", "words"),
    [
        (jnp.log, -1.0, r"operation log gave the first NaN, at .*py:\d+ in robust; "),
        (jnp.exp, 1000.0, r"operation exp gave the first infinity, at .* in robust; "),
    ],
)
def test_debug_nans_names_the_operation(function, sign, words):
    def robust(keys, score_fn, x, level, sigmas):
        losses = sj.annealed_dsm(keys, score_fn, x, level, sigmas)
        return losses + function(sign * (1 + losses**2))

    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=words):
        fitted(optax.sgd(1e-2), robust)


@pytest.mark.parametrize("debug", [False, True])
def test_a_chain_names_level_sigma_and_the_operation(debug):
    def score_fn(x, level):
        return jnp.where((level == 2)[:, None], jnp.sqrt(-1 - x**2), -x)

    words = r"chain 0 is not finite after noise level 2 \(sigma 0.2154\): lower step_size"
    words = rf"operation sqrt gave the first NaN, at .* in score_fn; {words}" if debug else words
    arguments = {"number": 3, "shape": (3,), "num_steps": 2, "step_size": 1e-4, "progress": False}
    with jax.debug_nans(debug), pytest.raises(FloatingPointError, match=words):
        sj.sample(score_fn, SIGMAS, **arguments)
    params = {"mean": jnp.full(3, jnp.nan), "unused": jnp.ones(2)}
    with pytest.raises(FloatingPointError, match="because a parameter is not"):
        sj.sample(sj.score_fn(pair(), params), SIGMAS, **arguments)


def test_only_as_many_norms_as_there_are_steps():
    assert training_log.norms_before([]) == ""
    assert training_log.norms_before([1.25, 250.0]) == "; gradient norms before it: 1.25, 250"
