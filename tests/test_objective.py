import jax
import jax.numpy as jnp
import numpy as np

from score_jax.analytic import gaussian_score_fn
from score_jax.evaluation.objective import losses_per_level
from score_jax.losses.dsm import annealed_dsm
from score_jax.noise import geometric_sigmas

SIGMAS = geometric_sigmas(2.0, 0.1, 4)


def test_losses_of_a_gaussian_at_every_level_are_the_known_ones():
    v, n = 0.7, 20000
    x = np.sqrt(v) * jax.random.normal(jax.random.key(0), (n, 3))
    losses = losses_per_level(jax.random.key(1), annealed_dsm, gaussian_score_fn(jnp.zeros(3), v, SIGMAS), x, np.arange(n), SIGMAS)
    assert losses.shape == (4, n)
    for level, sigma in enumerate(np.asarray(SIGMAS)):
        at_level = np.asarray(losses[level], np.float64)
        assert abs(at_level.mean() - 1.5 * v / (v + sigma**2)) < 5 * at_level.std() / np.sqrt(n)


def test_an_example_is_judged_alike_in_any_batch():
    score_fn, x = gaussian_score_fn(jnp.zeros(3), 1.0, SIGMAS), jax.random.normal(jax.random.key(0), (6, 3))
    whole = losses_per_level(jax.random.key(1), annealed_dsm, score_fn, x, np.arange(6), SIGMAS)
    part = losses_per_level(jax.random.key(1), annealed_dsm, score_fn, x[4:], np.arange(4, 6), SIGMAS)
    np.testing.assert_allclose(part, whole[:, 4:], rtol=1e-6)
