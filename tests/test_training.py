import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax.devices import feed, replicate
from score_jax.fitting import compile_steps
from score_jax.losses.dsm import annealed_dsm
from score_jax.noise import example_keys, geometric_sigmas, stratified_levels, uniform_levels
from score_jax.training import make_trainer

SIGMAS = geometric_sigmas(1.0, 0.1, 4)
KEY = jax.random.key(5)


def linear(params, x, level):
    """The score of N(mean, v) at each level, with one slope and one offset per level."""
    return params["offset"][level] - params["slope"][level][:, None] * x


def model_of(apply):
    """A network of which only `apply` is used."""
    return (lambda key, x, level: linear_params(), apply)


def linear_params(size=3):
    return {"slope": jnp.ones(4), "offset": jnp.zeros((4, size))}


def data(batch, seed=0, size=3):
    return 0.5 + 0.8 * jax.random.normal(jax.random.key(seed), (batch, size))


def over_devices(function):
    """`function` of (key, state, x) with x split over all devices."""
    named = functools.partial(function, axis_name="devices")
    return jax.pmap(named, "devices", in_axes=(None, None, 0), out_axes=None)


# With 9000 dimensions, one leaf of the gradient is too large for the flat all-reduce buffer.
@pytest.mark.parametrize(
    ("draw_levels", "size"), [(uniform_levels, 3), (stratified_levels, 3), (uniform_levels, 9000)]
)
def test_two_devices_take_the_same_step_as_one(draw_levels, size):
    def prepare(keys, x, label):
        return x + jax.vmap(lambda k: jax.random.uniform(k, (size,)))(keys), label

    trainer = make_trainer(
        model_of(linear),
        annealed_dsm,
        optax.adam(1e-2),
        SIGMAS,
        draw_levels=draw_levels,
        prepare=prepare,
    )
    x, params = data(8, size=size), linear_params(size)
    alone = jax.jit(trainer.step)(KEY, trainer.init(params), x)
    shared = over_devices(trainer.step)(KEY, trainer.init(params), x.reshape(2, 4, size))
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(alone[0].params["offset"], params["offset"])


stable_dsm = functools.partial(annealed_dsm, references=data(9, seed=1))


@pytest.mark.parametrize("step_loss_fn", [None, stable_dsm])
def test_step_is_gradient_descent_on_the_mean_loss_of_its_own_draws(step_loss_fn):
    trainer = make_trainer(
        model_of(linear),
        annealed_dsm,
        optax.sgd(0.1),
        SIGMAS,
        ema_decay=0.9,
        step_loss_fn=step_loss_fn,
    )
    state, x = trainer.init(linear_params()), data(6)
    new, metrics = jax.jit(trainer.step)(KEY, state, x)
    level_key, _, loss_key = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    level = uniform_levels(level_key, np.arange(6), batch_size=6, num_levels=4)

    def loss(params, loss_fn=step_loss_fn or annealed_dsm):
        keys, score_fn = example_keys(loss_key, np.arange(6)), functools.partial(linear, params)
        return loss_fn(keys, score_fn, x, level, SIGMAS).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(linear_params())
    np.testing.assert_allclose(metrics.loss, value, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, optax.tree.norm(grads), rtol=1e-6)
    np.testing.assert_allclose(new.params["slope"], 1 - 0.1 * grads["slope"], rtol=1e-5)
    assert int(new.step) == 1
    assert int(metrics.nonfinite_level) == -1
    # The objective on held-out examples is the first one.
    value, _ = trainer.loss(jax.random.fold_in(KEY, 0), linear_params(), x)
    np.testing.assert_allclose(value, loss(linear_params(), annealed_dsm), rtol=1e-6)


def test_moving_average_follows_its_formula():
    trainer = make_trainer(model_of(linear), annealed_dsm, optax.sgd(0.05), SIGMAS, ema_decay=0.4)
    state, average = trainer.init(linear_params()), np.ones(4)
    step = jax.jit(trainer.step)
    for t in range(12):
        state, _ = step(KEY, state, data(6, seed=t))
        decay = min(0.4, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * np.asarray(state.params["slope"])
    np.testing.assert_allclose(state.ema_params["slope"], average, rtol=1e-5)
    assert not np.allclose(state.params["slope"], average, rtol=1e-5)


def test_training_finds_the_true_score():
    """For N(0.5, 0.64) the best slope is 1 / (0.64 + sigma^2), the best offset 0.5 of it."""
    sigmas = geometric_sigmas(1.0, 0.4, 4)  # the gradient of a slope shrinks with sigma^2
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    trainer = make_trainer(model_of(linear), annealed_dsm, optimizer, sigmas, ema_decay=0.99)

    def body(state, t):
        noise = jax.random.normal(jax.random.fold_in(KEY, t), (256, 3))
        return trainer.step(KEY, state, 0.5 + 0.8 * noise)

    run = jax.jit(lambda s: jax.lax.scan(body, s, jnp.arange(1500)))
    state, metrics = run(trainer.init(linear_params()))
    slope = 1 / (0.64 + np.asarray(sigmas, np.float64) ** 2)
    np.testing.assert_allclose(state.ema_params["slope"], slope, rtol=0.03)
    np.testing.assert_allclose(
        state.ema_params["offset"], np.tile(0.5 * slope[:, None], 3), rtol=0.06
    )
    np.testing.assert_allclose(metrics.loss[-500:].mean(), (1.5 * 0.64 * slope).mean(), rtol=0.02)


def test_metrics_name_the_level_of_a_loss_that_is_not_finite():
    def broken(params, x, level):
        return jnp.where((level == 2)[:, None], jnp.inf, linear(params, x, level))

    trainer = make_trainer(
        model_of(broken), annealed_dsm, optax.adam(1e-2), SIGMAS, draw_levels=stratified_levels
    )
    _, metrics = trainer.step(KEY, trainer.init(linear_params()), data(8))
    assert int(metrics.nonfinite_level) == 2
    assert not np.isfinite(metrics.loss)


@pytest.mark.parametrize("bad", [(), (0,), (3,), (0, 3)])
def test_metrics_name_the_largest_such_level_of_any_device(bad):
    """The first device draws level 0 only, the second level 3."""

    def broken(params, x, level):
        return jnp.where(
            jnp.isin(level, jnp.array(bad, int))[:, None], jnp.nan, linear(params, x, level)
        )

    def draw(key, index, *, batch_size, num_levels):
        return index // 4 * 3

    settings = {"draw_levels": draw}
    trainer = make_trainer(model_of(broken), annealed_dsm, optax.adam(1e-2), SIGMAS, **settings)
    x = data(8).reshape(2, 4, 3)
    _, metrics = over_devices(trainer.step)(KEY, trainer.init(linear_params()), x)
    loss, level = over_devices(trainer.loss)(KEY, linear_params(), x)
    assert int(metrics.nonfinite_level) == int(level) == max(bad, default=-1)
    assert np.isfinite(metrics.loss) == np.isfinite(loss) == (not bad)


def test_state_starts_with_copies():
    params = linear_params()
    state = make_trainer(model_of(linear), annealed_dsm, optax.adam(1e-2), SIGMAS).init(params)
    assert state.ema_params["slope"] is not state.params["slope"]
    np.testing.assert_array_equal(state.ema_params["slope"], params["slope"])


def test_several_steps_in_one_program_are_the_steps_one_by_one():
    trainer = make_trainer(model_of(linear), annealed_dsm, optax.adam(1e-2), SIGMAS)
    batches = np.stack([data(8, seed) for seed in range(4)])
    expected, state = [], trainer.init(linear_params())
    for x in batches[:3]:
        state, metrics = jax.jit(trainer.step)(KEY, state, x)
        expected.append(metrics)

    devices = jax.devices()[:1]
    source = feed((batches[0],), devices, resident=False)
    start = replicate(trainer.init(linear_params()), devices)
    several = compile_steps(trainer, source, start, devices, batch_size=8, steps_per_call=4)
    together, metrics = several(KEY, start, (batches[None],), 3)
    assert int(together.step) == 3
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, together, state)
    for i, each in enumerate(expected):
        np.testing.assert_allclose(metrics.loss[i], each.loss, rtol=1e-6)
    assert metrics.loss[3] == 0


def test_uint8_examples_are_dequantised_and_floats_are_not():
    """The default `prepare`: pixels become values in [0, 1), floats stay as they are."""
    seen = []

    def loss_fn(keys, score_fn, x, level, sigmas):
        seen.append(x)
        return annealed_dsm(keys, score_fn, x, level, sigmas)

    trainer = make_trainer(model_of(linear), loss_fn, optax.sgd(0.1), SIGMAS)
    pixels = np.tile(np.array([[0, 128, 255]], np.uint8), (5, 1))
    trainer.loss(KEY, linear_params(), pixels)
    x = np.asarray(seen[0]) * 256
    np.testing.assert_array_equal(np.floor(x), pixels)
    assert len(np.unique(x - np.floor(x))) > 10
    trainer.loss(KEY, linear_params(), data(5))
    np.testing.assert_array_equal(seen[1], data(5))


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"ema_decay=1\.0 must be in"):
        make_trainer(model_of(linear), annealed_dsm, optax.sgd(0.1), SIGMAS, ema_decay=1.0)
