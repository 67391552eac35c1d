import re
import sys

import jax
import numpy as np
import pytest
from truths import NCSN_FIXTURES, NCSNV2_FIXTURES, golden

from score_jax.models.ncsn import NCSN
from score_jax.models.ncsnv2 import NCSNv2
from score_jax.models.official import from_official, read_official, to_official


@pytest.mark.parametrize("name", NCSN_FIXTURES + NCSNV2_FIXTURES)
def test_a_round_trip_keeps_every_bit(name):
    state = golden(name)["param"]
    _, params = from_official({f"module.{parameter}": value for parameter, value in state.items()})
    assert len(jax.tree.leaves(params)) == len(state)
    back = to_official(params)
    assert back.keys() == state.keys()
    for parameter, value in state.items():
        assert back[parameter].dtype == value.dtype
        np.testing.assert_array_equal(back[parameter], value, err_msg=parameter)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ncsn_cifar_ngf8", NCSN(num_levels=10, width=8)),
        ("ncsn_mnist_ngf8", NCSN(num_levels=10, width=8)),
        (
            "ncsnv2_deepest_64_ngf4",
            NCSNv2(sigmas=tuple(np.geomspace(190, 0.01, 6)), width=4, variant="deepest"),
        ),
    ],
)
def test_the_architecture_is_inferred(name, model):
    found, _ = from_official(golden(name)["param"])
    if isinstance(model, NCSN):
        assert found == model
    else:
        assert (found.width, found.variant) == (model.width, model.variant)
        np.testing.assert_allclose(found.sigmas, model.sigmas, rtol=1e-5)


def test_values_are_transposed_but_do_not_change():
    state = golden("ncsn_mnist_ngf8")["param"]
    _, params = from_official(state)
    kernel = params["refine2"]["adapt_convs_1"]["2_1_conv"]["kernel"]
    np.testing.assert_array_equal(
        kernel[2, 0, 3, 5], state["refine2.adapt_convs.1.2_1_conv.weight"][5, 3, 2, 0]
    )
    np.testing.assert_array_equal(
        params["res2_0"]["shortcut"]["bias"], state["res2.0.shortcut.conv.bias"]
    )
    np.testing.assert_array_equal(
        params["normalizer"]["embedding"], state["normalizer.embed.weight"]
    )


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: without(s, "begin_conv.weight"), "lacks 'begin_conv.weight'"),
        (
            lambda s: without(s, "res3.1.conv2.bias"),
            "lacks 'res3.1.conv2.bias', which this NCSN of width 8 has",
        ),
        (
            lambda s: without(s, "normalizer.embed.weight"),
            "neither 'normalizer.embed.weight' .* nor 'sigmas'",
        ),
        (
            lambda s: s | {"res9.0.conv1.weight": np.zeros(3)},
            "'res9.0.conv1.weight' is not a parameter of NCSN",
        ),
        (
            lambda s: s | {"begin_conv.running_mean": np.zeros(3)},
            "'begin_conv.running_mean' is not a parameter of NCSN",
        ),
        (
            lambda s: s | {"end_conv.bias": np.zeros(4)},
            r"'end_conv.bias' is \[4\], but must be \[1\]",
        ),
        (
            lambda s: s | {"begin_conv.weight": np.zeros(4)},
            r"'begin_conv.weight' is \[4\], but must be",
        ),
    ],
)
def test_names_and_shapes_that_do_not_fit_are_errors(change, words):
    with pytest.raises(ValueError, match=words):
        from_official(change(golden("ncsn_mnist_ngf8")["param"]))


def test_an_npz_of_the_arrays_is_read(tmp_path):
    state = golden("ncsnv2_cifar_ngf8")["param"]
    np.savez(tmp_path / "x.npz", **{f"module.{name}": value for name, value in state.items()})
    found = read_official(tmp_path / "x.npz")
    assert found.step == 0
    assert found.state.keys() == found.ema_state.keys() == state.keys()
    (tmp_path / "y.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"y\.npz cannot be read as an \.npz file"):
        read_official(tmp_path / "y.npz")
    with pytest.raises(FileNotFoundError, match=r"path=.*none\.pth' is not a file"):
        read_official(tmp_path / "none.pth")


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "x.npz", **golden("ncsn_mnist_ngf8")["param"])
    assert "begin_conv.weight" in read_official("~/x.npz").state


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_that_is_not_finite_is_named(value, tmp_path):
    state = golden("ncsn_mnist_ngf8")["param"]
    broken = np.array(state["res2.0.conv1.weight"])
    broken[1, 2, 0, 1] = value
    np.savez(tmp_path / "x.npz", **(state | {"res2.0.conv1.weight": broken}))
    words = r"^\S*x\.npz: 'res2\.0\.conv1\.weight' contains NaN or infinite values"
    with pytest.raises(ValueError, match=words):
        read_official(tmp_path / "x.npz")


def test_an_array_of_anything_but_real_numbers_is_named(tmp_path):
    np.savez(tmp_path / "x.npz", **{"begin_conv.weight": np.zeros(3, np.complex64)})
    words = r"^\S*x\.npz: 'begin_conv\.weight' has dtype complex64, but must be real numbers"
    with pytest.raises(ValueError, match=words):
        read_official(tmp_path / "x.npz")


def test_a_missing_pytorch_is_named_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"content")
    words = r'x\.pth needs PyTorch, which is not installed: pip install "score_jax\[torch\]"'
    with pytest.raises(ValueError, match=words):
        read_official(tmp_path / "x.pth")


def test_parameters_of_narrower_or_wider_arrays_are_float32():
    state = golden("ncsn_mnist_ngf8")["param"]
    for dtype in (np.float16, np.float64):
        _, params = from_official({name: value.astype(dtype) for name, value in state.items()})
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, state, prefix="module."):
    return {prefix + name: torch.from_numpy(np.array(value)) for name, value in state.items()}


@pytest.mark.torch
def test_checkpoints_of_both_official_codes_are_read(torch, tmp_path):
    state = golden("ncsn_mnist_ngf8")["param"]
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))]).state_dict()
    torch.save([tensors(torch, state), optimizer], tmp_path / "2019.pth")
    found = read_official(tmp_path / "2019.pth")
    assert found.step == 0
    for name, value in state.items():
        np.testing.assert_array_equal(found.state[name], value)

    state = golden("ncsnv2_cifar_ngf8")["param"]
    ema = {name: value + 1 for name, value in state.items() if name != "sigmas"}
    torch.save(
        [tensors(torch, state), optimizer, 3, 1234, tensors(torch, ema, prefix="")],
        tmp_path / "2020.pth",
    )
    found = read_official(tmp_path / "2020.pth")
    assert found.step == 1234
    np.testing.assert_array_equal(found.state["end_conv.bias"], state["end_conv.bias"])
    np.testing.assert_array_equal(found.ema_state["end_conv.bias"], state["end_conv.bias"] + 1)
    np.testing.assert_array_equal(found.ema_state["sigmas"], state["sigmas"])


@pytest.mark.parametrize(
    "step", [2**40, -5, 2**31, True, 3.0, [7], pytest.param(10**5000, id="long")]
)
def test_a_step_that_no_training_state_has_is_0(step, tmp_path, monkeypatch):
    content = {"step": step, "state_dict": golden("ncsn_mnist_ngf8")["param"]}
    (tmp_path / "x.pth").write_bytes(bytes(10**6))
    monkeypatch.setattr("score_jax.models.official._load_torch", lambda path: content)
    found = read_official(tmp_path / "x.pth")
    assert found.step == 0
    assert re.search(r"x\.pth, \S.*, is no whole number from 0 to 2147483647", found.note)
    content["step"] = 2**31 - 1
    assert read_official(tmp_path / "x.pth")[2:] == (2**31 - 1, None)
    del content["step"]
    assert read_official(tmp_path / "x.pth")[2:] == (0, None)


def test_an_array_that_claims_more_than_the_file_holds(tmp_path, monkeypatch):
    content = {"begin_conv.weight": np.broadcast_to(np.float32(1), (1000, 1000))}
    (tmp_path / "x.pth").write_bytes(bytes(10**6))
    monkeypatch.setattr("score_jax.models.official._load_torch", lambda path: content)
    words = r"'begin_conv\.weight' claims \[1000, 1000\], 4000000 bytes, .* file has 1000000"
    with pytest.raises(ValueError, match=words):
        read_official(tmp_path / "x.pth")
    (tmp_path / "x.pth").write_bytes(bytes(4 * 10**6))
    monkeypatch.setattr("score_jax.reading.memory_bytes", lambda: 3 * 10**6)
    with pytest.raises(ValueError, match=r"its arrays need at least 4 MB, but there are 3 MB"):
        read_official(tmp_path / "x.pth")


class Trap:
    def __reduce__(self):
        return (print, ("the pickle ran",))


@pytest.mark.torch
def test_a_pickle_of_more_than_tensors_is_refused(torch, tmp_path, capsys):
    torch.save([Trap(), {}], tmp_path / "trap.pth")
    with pytest.raises(ValueError, match=r"trap\.pth is refused: .*more than tensors"):
        read_official(tmp_path / "trap.pth")
    assert "the pickle ran" not in capsys.readouterr().out


@pytest.mark.torch
def test_a_truncated_checkpoint_is_named(torch, tmp_path):
    torch.save(tensors(torch, golden("ncsn_mnist_ngf8")["param"]), tmp_path / "whole.pth")
    for size in (100, 50_000):
        (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:size])
        with pytest.raises(
            ValueError,
            match=r"cut\.pth (is refused: it is corrupt|cannot be read as a PyTorch checkpoint)",
        ):
            read_official(tmp_path / "cut.pth")
    torch.save("hello", tmp_path / "text.pth")
    with pytest.raises(ValueError, match="holds a str, but must hold a state dict"):
        read_official(tmp_path / "text.pth")


@pytest.mark.torch
def test_bfloat16_tensors_and_trainable_ones_are_read(torch, tmp_path):
    state = tensors(torch, golden("ncsn_mnist_ngf8")["param"])
    narrow = {name: value.to(torch.bfloat16) for name, value in state.items()}
    trainable = {name: torch.nn.Parameter(value) for name, value in state.items()}
    torch.save(narrow, tmp_path / "narrow.pth")
    torch.save(trainable, tmp_path / "trainable.pth")
    name = "begin_conv.weight"
    expected = state[f"module.{name}"].numpy()
    found = read_official(tmp_path / "narrow.pth").state[name]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2**-8)
    np.testing.assert_array_equal(read_official(tmp_path / "trainable.pth").state[name], expected)


@pytest.mark.torch
@pytest.mark.parametrize("key", ["state_dict", "model", "ema", "net"])
def test_a_state_dict_under_a_key_is_read(torch, tmp_path, key):
    state = golden("ncsn_mnist_ngf8")["param"]
    content = {"epoch": 3, "step": 1234, "optimizer": {}, key: tensors(torch, state)}
    torch.save(content, tmp_path / "x.pth")
    found = read_official(tmp_path / "x.pth")
    assert found.step == 1234
    assert found.state.keys() == found.ema_state.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found.state[name], value)
    del content["step"]
    torch.save(content, tmp_path / "x.pth")
    assert read_official(tmp_path / "x.pth").step == 0


@pytest.mark.torch
@pytest.mark.parametrize("place", [0, 4])
def test_a_tensor_that_is_not_finite_is_named(torch, tmp_path, place):
    """In the parameters and in the averaged ones."""
    state = golden("ncsnv2_cifar_ngf8")["param"]
    content = [tensors(torch, state), {}, 3, 1234, tensors(torch, state)]
    content[place]["module.end_conv.bias"][0] = float("nan")
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: 'module\.end_conv\.bias' contains NaN"):
        read_official(tmp_path / "x.pth")
