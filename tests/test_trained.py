"""A network that the command has trained, in a program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import final_state, finished_run, opened, tree

import score_jax as sj
from score_jax.cli.trained import load_network


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)


def test_it_is_the_network_of_the_run_with_its_averaged_parameters(finished):
    before = tree(finished)
    network = load_network(finished)
    assert tree(finished) == before
    assert (network.shape, network.num_classes, network.step) == ((8, 8, 1), 10, 60)
    step, state = final_state(finished)
    assert step == 60
    run = opened(finished)
    np.testing.assert_array_equal(network.sigmas, run.sigmas)
    x = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    level, label = jnp.array([0, 1, 3]), jnp.array([7, 2, 10])
    expected = jax.jit(run.model.apply)({"params": state.ema_params}, x, level, label)
    found = jax.jit(network.score_fn)(x, level, label)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # Without a class, it is a score function as any other.
    unconditional = sj.without_label(network.score_fn, network.num_classes)
    operator = sj.mask(np.ones(network.shape, bool))
    posterior = sj.posterior_score(unconditional, operator(x), operator, 0.1, network.sigmas)
    assert jax.eval_shape(posterior, x, level).shape == x.shape


def test_another_checkpoint_is_another_network(finished):
    assert load_network(finished, step=40).step == 40
    assert load_network(str(finished), step="best").step in (30, 60)


def test_a_folder_without_a_run_is_refused_in_a_sentence(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint to evaluate from"):
        load_network(tmp_path / "none")
    with pytest.raises(ValueError, match=r"--step=50 is not kept in .* choose among"):
        load_network(finished, step=50)
