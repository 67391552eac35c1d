import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_jax as sj

SIGMAS = sj.geometric_sigmas(1.0, 0.1, 4)
X = jax.random.normal(jax.random.key(0), (6, 3))
LEVEL = jnp.asarray([0, 1, 2, 3, 0, 1])


def gaussian(mean):
    return sj.gaussian_score_fn(jnp.full(3, mean), 0.5, SIGMAS)


@pytest.mark.parametrize("guide", [sj.class_guidance, sj.autoguidance])
@pytest.mark.parametrize(("weight", "mean"), [(0.0, -1.0), (1.0, 2.0), (3.0, 8.0)])
def test_between_gaussians_of_one_variance_the_guided_score_is_that_of_a_shifted_one(
    guide, weight, mean
):
    """The score is linear in the mean, -1 + weight (2 - -1)."""
    guided = guide(gaussian(2.0), gaussian(-1.0), weight)
    np.testing.assert_allclose(guided(X, LEVEL), gaussian(mean)(X, LEVEL), rtol=1e-4, atol=1e-4)


def conditional_network():
    network = sj.MLP(sigmas=SIGMAS)

    def init(key, x, level, label):
        return {
            "classes": jax.random.normal(key, (4, 3)),
            "net": network.init(key, x, level)["params"],
        }

    def apply(params, x, level, label):
        return network.apply({"params": params["net"]}, x, level) + params["classes"][label]

    params = init(jax.random.key(1), X, LEVEL, LEVEL)
    return (init, apply), params


def test_labels_pass_to_the_conditional_score_only():
    (init, apply), params = conditional_network()
    score_fn = sj.score_fn((init, apply), params)
    guided = sj.class_guidance(score_fn, sj.without_label(score_fn, 3), 2.0)
    label = jnp.asarray([0, 1, 2, 2, 1, 0])
    base = apply(params, X, LEVEL, jnp.full(6, 3))
    expected = base + 2 * (apply(params, X, LEVEL, label) - base)
    np.testing.assert_allclose(guided(X, LEVEL, label), expected, rtol=1e-5, atol=1e-5)


def test_with_autoguidance_labels_pass_to_both_scores():
    (init, apply), params = conditional_network()
    weaker = jax.tree.map(lambda leaf: 0.5 * leaf, params)
    networks = (sj.score_fn((init, apply), each) for each in (params, weaker))
    label = jnp.asarray([0, 1, 2, 2, 1, 0])
    base = apply(weaker, X, LEVEL, label)
    expected = base + 2 * (apply(params, X, LEVEL, label) - base)
    guided = sj.autoguidance(*networks, 2.0)
    np.testing.assert_allclose(guided(X, LEVEL, label), expected, rtol=1e-5, atol=1e-5)


def test_an_error_that_the_weaker_network_has_twice_is_removed():
    """Weight 2 extrapolates from error 2 e and error e to none."""
    true, error = gaussian(0.3), jax.random.normal(jax.random.key(2), X.shape)
    wrong = [lambda x, level, n=n: true(x, level) + n * error for n in (1, 2)]
    guided = sj.autoguidance(*wrong, 2.0)
    np.testing.assert_allclose(guided(X, LEVEL), true(X, LEVEL), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [0.0, 1.5, 2.0, 3.5])
def test_the_weaker_network_guides_from_the_first_level_on_only(first):
    guided = sj.autoguidance(gaussian(2.0), gaussian(-1.0), 3.0, first)
    better, expected = gaussian(2.0)(X, LEVEL), gaussian(8.0)(X, LEVEL)
    expected = jnp.where((first <= LEVEL)[:, None], expected, better)
    np.testing.assert_allclose(guided(X, LEVEL), expected, rtol=1e-4, atol=1e-4)


def test_where_nothing_is_guided_the_weaker_network_is_not_evaluated():
    calls = []

    def weaker(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return -x

    guided = jax.jit(sj.autoguidance(gaussian(2.0), weaker, 3.0, 2.0))
    for level in ([0, 1, 1, 0, 1, 1], [0, 1, 2, 0, 1, 1]):
        jax.block_until_ready(guided(X, jnp.asarray(level)))
        jax.effects_barrier()
    assert len(calls) == 1


def test_other_parameters_and_weights_do_not_compile_again():
    (init, apply), params = conditional_network()

    @jax.jit
    def evaluated(score_fn, label):
        traces.append(1)
        return score_fn(X, LEVEL, label)

    traces = []
    for scale, weight in ((1.0, 2.0), (0.5, 3.0)):
        scales = jax.tree.map(lambda leaf, scale=scale: scale * leaf, params)
        score_fn = sj.score_fn((init, apply), scales)
        guided = sj.class_guidance(score_fn, sj.without_label(score_fn, 3), weight)
        evaluated(guided, jnp.zeros(6, jnp.int32))
    assert len(traces) == 1


def test_the_dtype_of_x_is_kept():
    guided = sj.class_guidance(gaussian(2.0), gaussian(-1.0), 2.0)
    assert guided(X.astype(jnp.bfloat16), LEVEL).dtype == jnp.bfloat16


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"weight=-1\.0 must be 0 or above"):
        sj.class_guidance(gaussian(2.0), gaussian(-1.0), -1.0)
