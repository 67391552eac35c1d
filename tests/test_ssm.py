import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import NCSN_FIXTURES, assert_mean, golden, relative

from score_jax.analytic import gaussian_score_fn, mixture_score_fn
from score_jax.losses.ssm import (
    PROJECTIONS,
    annealed_ssm,
    gaussian,
    rademacher,
    sliced_score_matching,
    sphere,
    ssm,
)
from score_jax.models.mlp import MLP
from score_jax.models.official import from_official
from score_jax.noise import geometric_sigmas, perturb, standard_normal

SIGMAS = geometric_sigmas(2.0, 0.1, 5)
FORMS = [(name, reduced) for name in PROJECTIONS for reduced in (True, False)]


def draws(batch, shape, seed=0):
    keys = jax.random.split(jax.random.key(seed), batch)
    level = jnp.arange(batch) % len(SIGMAS)
    return keys, jax.random.normal(jax.random.key(seed + 1), (batch, *shape)), level


def mixture(shape=(5,)):
    """A smooth score that is not linear, at every level."""
    means = jnp.stack([jnp.ones(shape), -0.5 * jnp.ones(shape)])
    return mixture_score_fn(jnp.array([0.7, 0.3]), means, jnp.array([1.0, 0.6]), SIGMAS)


@pytest.mark.parametrize(
    ("projection", "slopes"),
    [("rademacher", [0.5, -2.0, 3.0, 0.1]), ("sphere", [1.7, 1.7, 1.7, 1.7])],
)
def test_exact_for_every_draw(projection, slopes):
    """Signs square to 1, so v^T diag(a) v = sum(a); and on the sphere v^T c v = c D."""
    keys, x, level = draws(50, (2, 2))
    a, offset = (
        jnp.array(slopes).reshape(1, 2, 2),
        jnp.array([0.3, 0.0, -1.0, 2.0]).reshape(1, 2, 2),
    )
    losses = ssm(keys, lambda x, level: offset - a * x, x, level, SIGMAS, projection=projection)
    expected = -np.sum(slopes) + 0.5 * np.sum(
        (np.asarray(offset) - np.asarray(a) * np.asarray(x, np.float64)) ** 2, axis=(1, 2)
    )
    assert losses.shape == (50,)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)


def test_core_is_the_formula_for_any_matrix_and_projection():
    _, x, level = draws(6, (3,))
    _, v, _ = draws(6, (3,), seed=7)
    matrix = np.array([[1.0, 2.0, -1.0], [0.5, 0.3, 4.0], [-2.0, 1.0, 0.7]])
    scores = np.asarray(x, np.float64) @ matrix.T
    trace = np.einsum("bi,ij,bj->b", v, matrix, v)
    for reduced, square in (
        (True, (scores**2).sum(1)),
        (False, (np.asarray(v) * scores).sum(1) ** 2),
    ):
        losses = sliced_score_matching(
            lambda x, level: x @ jnp.float32(matrix.T), x, v, level, variance_reduced=reduced
        )
        np.testing.assert_allclose(losses, trace + 0.5 * square, rtol=1e-4)


def test_minimum_for_a_gaussian_is_the_known_one():
    """For N(0, v I) in D dimensions the mean is -D / (2 v).

    Perturbed and weighted it is -D sigma^2 / (2 (v + sigma^2)).
    """
    v, d, n, level = 0.7, 6, 20000, 2
    keys, x, _ = draws(n, (d,), seed=level)
    sigma = float(SIGMAS[level])

    @jax.jit
    def losses(x):
        values = {}
        arguments = (jnp.sqrt(v) * x, jnp.full(n, level), SIGMAS)
        for name, reduced in FORMS:
            keywords = {"projection": name, "variance_reduced": reduced}
            clean = ssm(keys, lambda x, level: -x / v, *arguments, **keywords)
            exact = gaussian_score_fn(jnp.zeros(d), v, SIGMAS)
            values[f"{name} {reduced}"] = clean, annealed_ssm(keys, exact, *arguments, **keywords)
        return values

    for name, (clean, annealed) in losses(x).items():
        assert_mean(clean, -d / (2 * v), name)
        assert_mean(annealed, -d * sigma**2 / (2 * (v + sigma**2)), name)


def test_spread_over_projections_is_the_known_one():
    """Variances for s = -x at a fixed x.

    Rademacher: 0 in the reduced form, (D^2 - D) / 2 in the plain one. Gaussian: 2 D.
    """
    n, d = 20000, 5
    keys, x, level = draws(n, (d,))
    x = jnp.ones_like(x)
    losses = {
        name: ssm(keys, lambda x, level: -x, x, level, SIGMAS, projection=name)
        for name in ("gaussian", "rademacher")
    }
    assert_mean((losses["gaussian"] + d / 2) ** 2, 2 * d)  # chi-square with d degrees of freedom
    np.testing.assert_allclose(losses["rademacher"], -d / 2, rtol=1e-5)
    plain = ssm(keys, lambda x, level: -x, x, level, SIGMAS, variance_reduced=False)
    assert_mean((plain + d / 2) ** 2, (d**2 - d) / 2)


@pytest.mark.parametrize("projection", list(PROJECTIONS))
def test_projections_are_white(projection):
    keys = jax.random.split(jax.random.key(3), 40000)
    v = np.asarray(PROJECTIONS[projection](keys, (2, 2)), np.float64).reshape(-1, 4)
    for i in range(4):
        assert_mean(v[:, i], 0)
        for j in range(i):
            assert_mean(v[:, i] * v[:, j], 0)
        if projection == "rademacher":
            assert set(v[:, i]) == {-1.0, 1.0}
        else:
            assert_mean(v[:, i] ** 2, 1)
            assert_mean(v[:, i] ** 4, 3 if projection == "gaussian" else 3 * 4 / (4 + 2))
    if projection == "sphere":
        np.testing.assert_allclose((v**2).sum(1), 4, rtol=1e-5)


@pytest.mark.parametrize("draw", [rademacher, gaussian, sphere])
def test_what_an_example_draws_depends_on_its_key_alone(draw):
    keys = jax.random.split(jax.random.key(4), 6)
    np.testing.assert_array_equal(draw(keys, (3, 2))[4:5], draw(keys[4:5], (3, 2)))
    np.testing.assert_array_equal(draw(keys, (3, 2)).reshape(6, 6), draw(keys, (6,)))


@pytest.mark.parametrize("reduced", [True, False])
def test_edges_are_the_core_with_their_own_draws(reduced):
    keys, x, level = draws(4, (2, 3))
    score_fn = mixture((2, 3))

    def by_hand(keys, x):
        v = [
            sphere(jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys), (2, 3))
            for i in range(3)
        ]
        return np.mean(
            [
                sliced_score_matching(score_fn, x, one, level, variance_reduced=reduced)
                for one in v
            ],
            axis=0,
        )

    keywords = {"projection": "sphere", "num_projections": 3, "variance_reduced": reduced}
    np.testing.assert_allclose(
        ssm(keys, score_fn, x, level, SIGMAS, **keywords), by_hand(keys, x), rtol=1e-4, atol=1e-5
    )
    halves = jax.vmap(jax.random.split)(keys)
    perturbed = perturb(x, standard_normal(halves[:, 0], (2, 3)), level, SIGMAS)
    weighted = np.asarray(SIGMAS)[np.asarray(level)] ** 2 * by_hand(halves[:, 1], perturbed)
    np.testing.assert_allclose(
        annealed_ssm(keys, score_fn, x, level, SIGMAS, **keywords), weighted, rtol=1e-4, atol=1e-5
    )


def test_clean_loss_knows_no_sigmas():
    keys, x, level = draws(4, (5,))
    one, other = (ssm(keys, mixture(), x, level, sigmas) for sigmas in (SIGMAS, 3 * SIGMAS))
    np.testing.assert_array_equal(one, other)


def test_every_projection_is_drawn_anew():
    """The mean over k Gaussian projections has a kth of the variance of one."""
    n, d, k = 20000, 5, 3
    keys, x, level = draws(n, (d,))
    losses = ssm(
        keys,
        lambda x, level: -x,
        jnp.ones_like(x),
        level,
        SIGMAS,
        projection="gaussian",
        num_projections=k,
    )
    assert_mean((losses + d / 2) ** 2, 2 * d / k)


def test_under_jit_grad_vmap_and_pmap():
    keys, x, level = draws(4, (3,))

    def losses(scale, keys, x, level):
        return annealed_ssm(
            keys,
            lambda x, i: jnp.tanh(-scale * x),
            x,
            level,
            SIGMAS,
            projection="gaussian",
            num_projections=2,
        )

    def loss(scale, keys, x, level):
        return losses(scale, keys, x, level).mean()

    eager = losses(0.5, keys, x, level)
    np.testing.assert_allclose(jax.jit(losses)(0.5, keys, x, level), eager, rtol=1e-5)
    singles = jax.vmap(losses, (None, 0, 0, 0))(0.5, keys[:, None], x[:, None], level[:, None])
    np.testing.assert_allclose(singles[:, 0], eager, rtol=1e-5)
    halves = jax.pmap(losses, in_axes=(None, 0, 0, 0))(
        0.5, keys.reshape(2, 2), x.reshape(2, 2, 3), level.reshape(2, 2)
    )
    np.testing.assert_allclose(halves.reshape(4), eager, rtol=1e-5)
    step = 1e-2
    numeric = (loss(0.5 + step, keys, x, level) - loss(0.5 - step, keys, x, level)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(0.5, keys, x, level), numeric, rtol=1e-3)


def products(jaxpr):
    """Matrix products in a program, those of its parts included."""
    own = sum(equation.primitive.name == "dot_general" for equation in jaxpr.eqns)
    values = [value for equation in jaxpr.eqns for value in equation.params.values()]
    return own + sum(products(value.jaxpr) for value in values if hasattr(value, "jaxpr"))


@pytest.mark.parametrize("num_projections", [1, 4])
def test_the_score_is_computed_once_however_many_projections(num_projections):
    model = MLP(sigmas=(1.0,), hidden=(8, 8))
    keys, x, level = draws(4, (3,))
    params = jax.eval_shape(model.init, jax.random.key(0), x, level)

    def loss(params):
        return ssm(
            keys,
            functools.partial(model.apply, params),
            x,
            level,
            SIGMAS,
            num_projections=num_projections,
        )

    assert (
        products(jax.make_jaxpr(lambda params: model.apply(params, x, level))(params).jaxpr) == 3
    )
    assert products(jax.make_jaxpr(loss)(params).jaxpr) == 3 * (1 + num_projections)


@pytest.mark.parametrize("name", NCSN_FIXTURES)
def test_loss_of_the_official_network_is_the_official_one(name):
    g = golden(name)
    model, params = from_official(g["param"])
    sigmas = g["sigmas"]

    @jax.jit
    def loss(params):
        perturbed = perturb(g["x"], g["ssm_noise"], g["labels"], sigmas)
        losses = sliced_score_matching(
            functools.partial(model.apply, {"params": params}),
            perturbed,
            g["ssm_projection"],
            g["labels"],
        )
        return jnp.mean(jnp.asarray(sigmas)[g["labels"]] ** 2 * losses)

    assert relative(loss(params), g["ssm_loss"]) < 1e-4


@pytest.mark.parametrize("edge", [ssm, annealed_ssm])
@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        (
            {"projection": "cube"},
            "projection='cube' is unknown: it must be one of rademacher, gaussian, sphere",
        ),
        ({"num_projections": 0}, "num_projections=0 must be at least 1"),
    ],
)
def test_refusals(edge, keywords, words):
    keys, x, level = draws(2, (3,))
    with pytest.raises(ValueError, match=words):
        edge(keys, mixture((3,)), x, level, SIGMAS, **keywords)
