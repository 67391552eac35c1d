import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn, mixture_log_density, mixture_score_fn
from score_jax.losses.implicit import CHUNK, annealed_implicit, implicit, implicit_score_matching
from score_jax.models.mlp import MLP
from score_jax.noise import geometric_sigmas, perturb, standard_normal

SIGMAS = geometric_sigmas(2.0, 0.1, 5)


def draws(batch, shape, seed=0):
    keys = jax.random.split(jax.random.key(seed), batch)
    level = jnp.arange(batch) % len(SIGMAS)
    return keys, jax.random.normal(jax.random.key(seed + 1), (batch, *shape)), level


@pytest.mark.parametrize("dimension", [1, 3, CHUNK, 2 * CHUNK + 5])
def test_trace_of_any_matrix_is_exact(dimension):
    _, x, level = draws(4, (dimension,))
    matrix = np.random.default_rng(0).normal(size=(dimension, dimension))
    losses = implicit_score_matching(lambda x, level: x @ jnp.float32(matrix.T), x, level)
    square = ((np.asarray(x, np.float64) @ matrix.T) ** 2).sum(1)
    np.testing.assert_allclose(losses, np.trace(matrix) + 0.5 * square, rtol=1e-4, atol=1e-4)


def test_laplacian_of_a_mixture():
    """The trace at the true score is that of the Hessian of the log density."""
    weights, scales = jnp.array([0.7, 0.3]), jnp.array([1.0, 0.6])
    means = jnp.stack([jnp.ones((2, 3)), -0.5 * jnp.ones((2, 3))])
    _, x, level = draws(5, (2, 3))

    def log_density(flat):
        return mixture_log_density(flat.reshape(1, 2, 3), weights, means, scales)[0]

    flat = x.reshape(5, 6)
    hessian, gradient = (
        jax.jit(jax.vmap(derivative(log_density)))(flat) for derivative in (jax.hessian, jax.grad)
    )
    expected = jnp.trace(hessian, axis1=1, axis2=2) + 0.5 * (gradient**2).sum(1)
    score_fn = mixture_score_fn(weights, means, scales, jnp.zeros(5))
    losses = jax.jit(implicit_score_matching, static_argnums=0)(score_fn, x, level)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-5)


def test_minimum_for_a_gaussian_is_the_known_one():
    """For N(0, v I) in D dimensions the mean is -D / (2 v).

    Perturbed and weighted it is -D sigma^2 / (2 (v + sigma^2)).
    """
    v, d, n, level = 0.7, 6, 20000, 2
    keys, x, _ = draws(n, (d,), seed=level)
    x, levels, sigma = np.sqrt(v) * x, jnp.full(n, level), float(SIGMAS[level])
    losses = annealed_implicit(keys, gaussian_score_fn(jnp.zeros(d), v, SIGMAS), x, levels, SIGMAS)
    assert_mean(losses, -d * sigma**2 / (2 * (v + sigma**2)))
    assert_mean(implicit(keys, lambda x, level: -x / v, x, levels, SIGMAS), -d / (2 * v))


def test_edges_are_the_core():
    keys, x, level = draws(4, (5,))

    def score_fn(x, level):
        return jnp.sin(x) * (1.0 + level[:, None])

    core = implicit_score_matching(score_fn, x, level)
    np.testing.assert_array_equal(implicit(keys, score_fn, x, level, SIGMAS), core)
    np.testing.assert_array_equal(implicit(keys[::-1], score_fn, x, level, 3 * SIGMAS), core)
    perturbed = perturb(x, standard_normal(keys, (5,)), level, SIGMAS)
    weighted = np.asarray(SIGMAS)[np.asarray(level)] ** 2 * implicit_score_matching(
        score_fn, perturbed, level
    )
    np.testing.assert_allclose(
        annealed_implicit(keys, score_fn, x, level, SIGMAS), weighted, rtol=1e-6
    )


def test_under_jit_vmap_and_grad():
    keys, x, level = draws(4, (20,))
    model = MLP(sigmas=(1.0,), hidden=(8,))
    params = model.init(jax.random.key(2), x, level)

    def losses(params, keys, x, level):
        return annealed_implicit(keys, functools.partial(model.apply, params), x, level, SIGMAS)

    def plainly(params, keys, x, level):
        """One example at a time, with the whole Jacobian."""
        perturbed = perturb(x, standard_normal(keys, (20,)), level, SIGMAS)

        def one(x, level):
            score = functools.partial(model.apply, params, level=level[None])
            return (
                jnp.trace(jax.jacrev(lambda x: score(x[None])[0])(x))
                + 0.5 * (score(x[None]) ** 2).sum()
            )

        return jnp.asarray(SIGMAS)[level] ** 2 * jax.vmap(one)(perturbed, level)

    expected = jax.jit(plainly)(params, keys, x, level)
    np.testing.assert_allclose(
        jax.jit(losses)(params, keys, x, level), expected, rtol=1e-5, atol=1e-5
    )
    singles = jax.vmap(losses, (None, 0, 0, 0))(params, keys[:, None], x[:, None], level[:, None])
    np.testing.assert_allclose(singles[:, 0], expected, rtol=1e-5, atol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda p, f=f: f(p, keys, x, level).mean()))(params)
        for f in (losses, plainly)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_memory_of_the_gradient_grows_like_that_of_the_score():
    """Ten times the dimensions take about ten times the memory.

    Storing every derivative would take a hundred times as much.
    """

    def bytes_for(dimension):
        _, x, level = draws(4, (dimension,))

        def loss(scales):
            def score_fn(x, level):
                for scale in scales:
                    x = jnp.tanh(scale[None] * x)
                return x

            return implicit_score_matching(score_fn, x, level).mean()

        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((4, dimension))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_for(1000) < 15 * bytes_for(100)
