import jax
import jax.numpy as jnp
import numpy as np
import pytest
from truths import assert_mean

from score_jax.analytic import gaussian_score_fn, mixture_score_fn
from score_jax.losses.dsm import annealed_dsm, denoising_score_matching, stable_noise
from score_jax.noise import geometric_sigmas, perturb

SIGMAS = geometric_sigmas(2.0, 0.1, 5)


def draws(batch, shape, seed=0):
    keys = jax.random.split(jax.random.key(seed), batch)
    level = jnp.arange(batch) % len(SIGMAS)
    return keys, jax.random.normal(jax.random.key(seed + 1), (batch, *shape)), level


def test_zero_at_the_score_of_a_point_mass():
    """A point mass has the score -(x - point) / sigma^2, which predicts the noise exactly."""
    point = jnp.array([[0.3, -1.2, 0.5]])
    keys, _, level = draws(40, (3,))
    losses = annealed_dsm(
        keys, gaussian_score_fn(point[0], 0.0, SIGMAS), jnp.tile(point, (40, 1)), level, SIGMAS
    )
    assert losses.shape == (40,)
    np.testing.assert_allclose(losses, 0, atol=1e-9)


@pytest.mark.parametrize("level", range(5))
def test_minimum_for_a_gaussian_is_the_known_one(level):
    """For N(0, v I) in D dimensions the expected loss is D v / (2 (v + sigma^2))."""
    v, d, n = 0.7, 6, 20000
    keys, x, _ = draws(n, (d,), seed=level)
    x = np.sqrt(v) * x
    losses = annealed_dsm(
        keys, gaussian_score_fn(jnp.zeros(d), v, SIGMAS), x, jnp.full(n, level), SIGMAS
    )
    assert_mean(losses, d * v / (2 * (v + float(SIGMAS[level]) ** 2)))


@pytest.mark.parametrize("level", range(5))
def test_weights_with_the_standard_deviation_of_the_data_make_levels_alike(level):
    """For N(0, d^2 I) in D dimensions the minimum of the weighted loss is D / 2 at any sigma."""
    d, n = 0.7, 20000
    keys, x, _ = draws(n, (6,), seed=level)
    true = gaussian_score_fn(jnp.zeros(6), d**2, SIGMAS)
    assert_mean(annealed_dsm(keys, true, d * x, jnp.full(n, level), SIGMAS, data_std=d), 3.0)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_standard_deviation_that_is_none_is_refused(wrong):
    keys, x, level = draws(3, (2,))
    with pytest.raises(ValueError, match=rf"data_std={wrong} must be above 0 and finite"):
        annealed_dsm(keys, lambda x, level: -x, x, level, SIGMAS, data_std=wrong)


def test_loss_of_a_zero_score_is_half_the_noise():
    keys, x, level = draws(20000, (4, 2))
    assert_mean(annealed_dsm(keys, lambda x, level: jnp.zeros_like(x), x, level, SIGMAS), 4.0)


def test_gradient_vanishes_at_the_true_score_and_not_beside_it():
    """Among scores a * (true score), the expected loss is least at a = 1."""
    v, n = 0.5, 40000
    keys, x, level = draws(n, (3,), seed=3)
    true = gaussian_score_fn(jnp.zeros(3), v, SIGMAS)

    def slopes(a):
        return jax.jvp(
            lambda a: annealed_dsm(
                keys, lambda x, i: a * true(x, i), jnp.sqrt(v) * x, level, SIGMAS
            ),
            (a,),
            (1.0,),
        )[1]

    assert_mean(slopes(1.0), 0.0)
    assert slopes(1.2).mean() > 0 > slopes(0.8).mean()


def test_edge_is_the_core_with_its_own_noise():
    keys, x, level = draws(4, (5,))
    noise = jax.vmap(lambda k: jax.random.normal(k, (5,)))(keys)
    score_fn = mixture_score_fn(
        jnp.array([0.8, 0.2]), jnp.stack([jnp.ones(5), -jnp.ones(5)]), jnp.ones(2), SIGMAS
    )
    core = denoising_score_matching(score_fn, x, noise, level, SIGMAS)
    np.testing.assert_array_equal(annealed_dsm(keys, score_fn, x, level, SIGMAS), core)
    sigma = np.asarray(SIGMAS)[np.asarray(level)][:, None]
    by_hand = 0.5 * ((sigma * score_fn(perturb(x, noise, level, SIGMAS), level) + noise) ** 2).sum(
        1
    )
    np.testing.assert_allclose(core, by_hand, rtol=1e-5)


def test_under_jit_grad_vmap_and_pmap():
    keys, x, level = draws(4, (3,))

    def loss(scale, keys, x, level):
        return annealed_dsm(keys, lambda x, i: -scale * x, x, level, SIGMAS).mean()

    eager = loss(0.5, keys, x, level)
    np.testing.assert_allclose(jax.jit(loss)(0.5, keys, x, level), eager, rtol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(loss, (0, None, None, None))(jnp.array([0.5, 1.0]), keys, x, level)[0],
        eager,
        rtol=1e-6,
    )
    halves = jax.pmap(loss, in_axes=(None, 0, 0, 0))(
        0.5, keys.reshape(2, 2), x.reshape(2, 2, 3), level.reshape(2, 2)
    )
    np.testing.assert_allclose(halves.mean(), eager, rtol=1e-6)
    step = 1e-2
    numeric = (loss(0.5 + step, keys, x, level) - loss(0.5 - step, keys, x, level)) / (2 * step)
    np.testing.assert_allclose(jax.grad(loss)(0.5, keys, x, level), numeric, rtol=1e-3)


def test_stable_noise_is_the_exact_score_of_the_examples():
    """{x, references} is a mixture of point masses, whose perturbed score is known."""
    _, noise, level = draws(20, (2, 3))
    x, references = jax.random.normal(jax.random.key(5), (1, 2, 3)), noise[:7] + 0.5
    stable = stable_noise(jnp.tile(x, (20, 1, 1)), noise, level, SIGMAS, references)
    points = jnp.concatenate([x, references]).reshape(8, 6)
    score_fn = mixture_score_fn(jnp.full(8, 1 / 8), points, jnp.zeros(8), SIGMAS)
    perturbed = perturb(jnp.tile(x, (20, 1, 1)), noise, level, SIGMAS).reshape(20, 6)
    expected = -SIGMAS[level][:, None] * score_fn(perturbed, level)
    np.testing.assert_allclose(stable.reshape(20, 6), expected, atol=2e-5)


def test_stable_noise_is_the_noise_itself_far_from_all_references():
    _, noise, level = draws(10, (784,))
    x, references = jnp.zeros((10, 784)), jnp.ones((5, 784))
    assert bool((stable_noise(x, noise, level, SIGMAS, references) == noise).all())


def test_references_keep_the_mean_of_the_gradient_and_lower_its_variance():
    """For N(0, v I), and the score -a x / (v + sigma^2): the mean gradient vanishes at a = 1."""
    v, n, number, level = 0.7, 4000, 16, 0
    sigma = float(SIGMAS[level])

    @jax.vmap
    def gradients(key):
        own, others, noise = jax.random.split(key, 3)
        x = v**0.5 * jax.random.normal(own, (1, 2))
        references = v**0.5 * jax.random.normal(others, (number, 2))

        def loss(a, references):
            def score_fn(x, level):
                return -a * x / (v + sigma**2)

            noises = jax.random.normal(noise, (1, 2))
            levels = jnp.full(1, level)
            return denoising_score_matching(
                score_fn, x, noises, levels, SIGMAS, references=references
            )[0]

        return jax.grad(loss)(1.0, references), jax.grad(loss)(1.0, None)

    stable, plain = gradients(jax.random.split(jax.random.key(3), n))
    assert_mean(stable, 0.0)
    assert_mean(plain, 0.0)
    assert float(jnp.var(stable)) < 0.5 * float(jnp.var(plain))


@pytest.mark.parametrize("shape", [(4, 3), (0, 2), (2,)])
def test_references_of_another_shape_are_refused(shape):
    keys, noise, level = draws(4, (2,))
    with pytest.raises(ValueError, match="references of shape"):
        annealed_dsm(keys, lambda x, level: x, noise, level, SIGMAS, references=jnp.zeros(shape))
