import jax
import numpy as np
import pytest
from truths import golden

from score_jax.convert import ncsn_params


def test_numbers_move_but_do_not_change():
    state = golden("ncsn_mnist_ngf8")["param"]
    params = ncsn_params({f"module.{name}": value for name, value in state.items()})
    assert len(jax.tree.leaves(params)) == len(state)
    kernel = params["refine2"]["adapt_convs_1"]["2_1_conv"]["kernel"]
    np.testing.assert_array_equal(kernel[2, 0, 3, 5], state["refine2.adapt_convs.1.2_1_conv.weight"][5, 3, 2, 0])
    np.testing.assert_array_equal(params["res2_0"]["shortcut"]["bias"], state["res2.0.shortcut.conv.bias"])
    np.testing.assert_array_equal(params["normalizer"]["embedding"], state["normalizer.embed.weight"])


def test_foreign_names_are_refused():
    with pytest.raises(ValueError, match=r"'begin_conv\.running_mean' is not a parameter"):
        ncsn_params({"begin_conv.running_mean": np.zeros(3)})
