"""Denoising, sliced and implicit score matching are one objective, up to constants that are known.

J = E[tr(grad s) + 1/2 |s|^2] = 1/2 E|s - grad log p|^2 - 1/2 E|grad log p|^2       (x ~ p; integration by parts)
implicit, sliced: J             annealed: sigma^2 J of the perturbed density        denoising: sigma^2 J + D / 2
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn, mixture_score_fn, sample_mixture
from score_jax.losses.dsm import annealed_dsm
from score_jax.losses.implicit import annealed_implicit, implicit
from score_jax.losses.ssm import PROJECTIONS, annealed_ssm, ssm
from score_jax.models.mlp import MLP
from score_jax.noise import example_keys
from score_jax.training import make_trainer

SIGMAS = jnp.array([3.0, 0.8, 0.3])
MIXTURE = jnp.array([0.8, 0.2]), jnp.array([[5.0, 5.0], [-5.0, -5.0]]), jnp.ones(2)  # the paper's, in two dimensions
MEAN, VARIANCE = jnp.array([0.5, -1.0, 0.0, 2.0]), jnp.array([0.3, 1.0, 2.5, 0.7])

SLICES = [{"projection": name, "variance_reduced": reduced} for name in PROJECTIONS for reduced in (True, False)]
CLEAN = {f"ssm {tuple(k.values())}": functools.partial(ssm, **k) for k in SLICES} | {"implicit": implicit}
ANNEALED = {f"ssm {tuple(k.values())}": functools.partial(annealed_ssm, **k) for k in SLICES}
ANNEALED |= {"ssm, 3 projections": functools.partial(annealed_ssm, num_projections=3)}
ANNEALED |= {"implicit": annealed_implicit, "dsm": annealed_dsm}


def sample_gaussian(keys):
    return MEAN[None] + jnp.sqrt(VARIANCE)[None] * jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)


DENSITIES = {
    "gaussian": (sample_gaussian, functools.partial(gaussian_score_fn, MEAN, VARIANCE)),
    "mixture": (lambda keys: sample_mixture(keys, *MIXTURE), functools.partial(mixture_score_fn, *MIXTURE)),
}


def wrong_score(kind, exact, dimension):
    """A smooth score that is not the true one."""
    if kind == "scaled":
        return lambda x, level: 0.7 * exact(x, level) + 0.2
    model = MLP(sigmas=tuple(SIGMAS.tolist()), hidden=(16, 16))
    params = model.init(jax.random.key(11), jnp.zeros((1, dimension)), jnp.zeros(1, jnp.int32))
    return functools.partial(model.apply, params)


@pytest.mark.parametrize("kind", ["scaled", "mlp"])
@pytest.mark.parametrize("density", list(DENSITIES))
@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_values(density, kind, level):
    """All objectives have the value J, with J also from the exact score, at a score that is wrong; level None is clean."""
    sample, exact_fn = DENSITIES[density]
    n = 20000
    sample_key, loss_key, noise_key = jax.random.split(jax.random.key(0), 3)
    keys, x = jax.random.split(loss_key, n), sample(jax.random.split(sample_key, n))
    d, levels = x.shape[1], jnp.full(n, level or 0)
    objectives, sigma, exact = CLEAN, 1.0, exact_fn(jnp.zeros(3))
    perturbed = x
    if level is not None:
        objectives, sigma, exact = ANNEALED, float(SIGMAS[level]), exact_fn(SIGMAS)
        perturbed = x + sigma * jax.random.normal(noise_key, x.shape)
    score_fn = wrong_score(kind, exact, d)
    s, truth = (np.asarray(f(perturbed, levels), np.float64) for f in (score_fn, exact))
    value = sigma**2 * 0.5 * (((s - truth) ** 2).sum(1) - (truth**2).sum(1))
    losses = {name: np.asarray(jax.jit(f, static_argnums=1)(keys, score_fn, x, levels, SIGMAS)) for name, f in objectives.items()}
    if level is not None:
        losses["dsm"] = losses["dsm"] - d / 2
    for name, values in losses.items():
        assert_mean(values - value, 0, f"{name} and the Fisher divergence")
        if name != "implicit":
            assert_mean(values - losses["implicit"], 0, f"{name} and implicit")


@pytest.mark.parametrize("name", list(CLEAN))
def test_gradients_on_clean_data(name):
    check_gradients(CLEAN[name], None)


@pytest.mark.parametrize("name", list(ANNEALED))
def test_gradients_on_perturbed_data(name):
    check_gradients(ANNEALED[name], 1)


def check_gradients(loss_fn, level):
    """For s(x) = b - A x and N(m, V): dJ/dA = A (V + m m^T) - b m^T - I and dJ/db = b - A m, V the perturbed variance."""
    n = 10000
    matrix = jnp.array([[1.0, 0.3, 0.0, -0.2], [0.5, 0.4, 0.1, 0.0], [-0.3, 0.2, 0.8, 0.1], [0.0, 0.6, -0.1, 1.5]])
    params = {"matrix": matrix, "offset": jnp.array([0.1, -0.4, 0.7, 1.0])}
    sample_key, loss_key = jax.random.split(jax.random.key(1))
    x = sample_gaussian(jax.random.split(sample_key, n))

    def loss(params, key, x):
        def score_fn(x, level):
            return params["offset"][None] - x @ params["matrix"].T

        return loss_fn(key[None], score_fn, x[None], jnp.full(1, level or 0), SIGMAS)[0]

    gradients = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, jax.random.split(loss_key, n), x)
    weight, noise = (1.0, 0.0) if level is None else (float(SIGMAS[level]) ** 2,) * 2
    a, b, m = (np.asarray(value, np.float64) for value in (matrix, params["offset"], MEAN))
    second = np.diag(np.asarray(VARIANCE, np.float64) + noise) + np.outer(m, m)
    expected = {"matrix": weight * (a @ second - np.outer(b, m) - np.eye(4)), "offset": weight * (b - a @ m)}
    for name, values in gradients.items():
        for index in np.ndindex(expected[name].shape):
            assert_mean(values[(slice(None), *index)], expected[name][index], f"{name}{list(index)}")


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def trained(model, loss_fn, sigmas, num_steps, key):
    """Parameters, and averaged ones, after Adam at 1e-3 on batches of 128 from the mixture."""
    init_key, data_key, train_key = jax.random.split(key, 3)

    def apply(params, x, level):
        return model.apply({"params": params}, x, level)

    trainer = make_trainer(apply, loss_fn, optax.adam(1e-3), sigmas)

    def step(state, i):
        x = sample_mixture(example_keys(jax.random.fold_in(data_key, i), jnp.arange(128)), *MIXTURE)
        return trainer.step(train_key, state, x)[0], None

    params = model.init(init_key, jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32))["params"]
    state, _ = jax.lax.scan(step, trainer.init(params), jnp.arange(num_steps))
    return state.params, state.ema_params


def divergence(model, params, sigmas, level):
    """E|s - s*|^2 / E|s*|^2 over fresh samples at a level; a sigma of 0 is clean."""
    n = 20000
    sample_key, noise_key = jax.random.split(jax.random.key(99))
    x = sample_mixture(jax.random.split(sample_key, n), *MIXTURE) + sigmas[level] * jax.random.normal(noise_key, (n, 2))
    exact = mixture_score_fn(*MIXTURE, sigmas)(x, jnp.full(n, level))
    score = model.apply({"params": params}, x, jnp.full(n, level))
    return float(jnp.sum((score - exact) ** 2) / jnp.sum(exact**2))


def test_sliced_training_on_clean_data_finds_the_score():
    """The paper's experiment: the plain form, 10,000 iterations."""
    model = MLP(sigmas=(1.0,))
    loss_fn = functools.partial(ssm, variance_reduced=False)
    params, ema_params = trained(model, loss_fn, jnp.ones(1), 10_000, jax.random.key(0))
    print(divergence(model, params, jnp.zeros(1), 0), divergence(model, ema_params, jnp.zeros(1), 0))


@pytest.mark.parametrize("loss_fn", [annealed_dsm, annealed_ssm, annealed_implicit])
def test_training_at_every_level_finds_the_scores(loss_fn):
    sigmas = jnp.geomspace(20.0, 0.1, 10)
    model = MLP(sigmas=tuple(sigmas.tolist()))
    params, ema_params = trained(model, loss_fn, sigmas, 5_000, jax.random.key(0))
    print([divergence(model, params, sigmas, i) for i in range(10)], [divergence(model, ema_params, sigmas, i) for i in range(10)])
