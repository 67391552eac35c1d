import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax.checkpoint import Checkpoints
from score_jax.cli.build import build_optimizer
from score_jax.cli.settings import ncsn

SHAPES = {
    "hidden": (3, 3, 48, 64),
    "matrix": (96, 32),
    "first": (3, 3, 1, 64),
    "embedding": (10, 64),
    "position": (14, 14, 64),
    "bias": (64,),
}


def drawn(seed):
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def optimizer(**settings):
    defaults = ncsn().to_dict()["optim"]
    return build_optimizer(defaults | {"learning_rate": 1.0, "epsilon": 1e-12} | settings, 10)


def updates(gradients, **settings):
    chosen = optimizer(**settings)
    return chosen.update(gradients, chosen.init(gradients), gradients)[0]


def test_muon_makes_updates_of_hidden_weights_orthogonal():
    """All singular values are about equal, those of the gradient differ by a factor of 3."""
    gradients, found = drawn(0), updates(drawn(0), name="muon")
    for name in ("hidden", "matrix"):
        update = np.asarray(found[name])
        matrix = update.reshape(-1, update.shape[-1])
        singular = np.linalg.svd(matrix, compute_uv=False)
        raw = np.linalg.svd(gradients[name].reshape(matrix.shape), compute_uv=False)
        # Newton-Schulz iterations of this order leave values from 0.7 to 1.2 (Jordan 2024).
        assert singular.max() / singular.min() < 1.2 / 0.7 < raw.max() / raw.min()
        # The root mean square of an orthogonal matrix, scaled as in Liu et al. (2025).
        assert 0.7 * 0.2 < np.sqrt(np.mean(matrix**2)) < 1.2 * 0.2
        # A step downhill.
        assert np.sum(update * gradients[name]) < 0


def test_muon_leaves_other_parameters_to_adam():
    gradients = drawn(1)
    adam = optax.adam(1.0, eps=1e-8, nesterov=True)
    expected = adam.update(gradients, adam.init(gradients))[0]
    found = updates(gradients, name="muon", epsilon=1e-8)
    for name in ("first", "embedding", "position", "bias"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_the_norm_of_the_gradient_is_clipped_before_either_optimizer():
    large = jax.tree.map(lambda leaf: 1e6 * leaf, drawn(2))
    for name in ("adam", "muon"):
        settings = {"name": name, "epsilon": 1.0}
        unclipped = updates(large, **settings)["bias"]
        clipped = updates(large, clip_norm=1e-3, **settings)["bias"]
        assert np.abs(clipped).max() < 1e-3 < np.abs(unclipped).max()


def test_the_state_of_muon_survives_a_checkpoint(tmp_path):
    chosen, params = optimizer(name="muon", schedule="cosine"), drawn(3)
    state = chosen.update(drawn(4), chosen.init(params), params)[1]
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state, {})
    checkpoints.wait()
    step, restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert step == 1
    further = [chosen.update(drawn(5), each, params)[0] for each in (state, restored)]
    for ours, theirs in zip(*map(jax.tree.leaves, further), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert optax.tree.norm(further[0]) > 0
    assert jnp.isfinite(optax.tree.norm(further[0]))
