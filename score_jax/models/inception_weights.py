"""Weights of Inception v3 from a user's file, in the names of the usual PyTorch conversion.

A convolution, for example `Mixed_5b.branch1x1`, has the arrays

    .conv.weight                            [features, inputs, height, width]
    .bn.weight, .bn.bias                    [features]
    .bn.running_mean, .bn.running_var       [features]

and the last layer `fc.weight` [1008, 2048]. The batch norm is folded into the convolution:

    scale = weight / sqrt(running_var + 1e-3)
    kernel = scale conv.weight        bias = bn.bias - scale running_mean
"""

import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.models.inception import SIZE, Inception
from score_jax.models.official import State, read_official
from score_jax.typing import Params

EPSILON = 1e-3
"""Added to the variance in every batch norm."""

UNUSED = re.compile(r"^AuxLogits\.|\.num_batches_tracked$|^fc\.bias$")
"""Names of arrays that files have and features do not depend on."""

HINT = "the file must be the PyTorch conversion of the TensorFlow graph of 2015-12-05"


def read_inception(path: str | os.PathLike) -> Params:
    """Reads the weights of Inception v3 as used for FID.

    Args:
        path: The PyTorch conversion of the TensorFlow graph of 2015-12-05, which pytorch-fid and
            torch-fidelity distribute (`...inception-2015-12-05-6726825d.pth`) and which needs
            PyTorch, or an `.npz` file of its arrays. Only tensors are read, and nothing is
            downloaded. `~` is expanded.

    Returns:
        Parameters for `inception_features`, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as in `read_official`, an array is missing, has a
            wrong shape or is no part of the network, or a variance is negative.

    Example:
        >>> params = sj.read_inception("pt_inception.pth")  # doctest: +SKIP
    """
    state = read_official(path).state
    try:
        return inception_params(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def inception_params(state: State) -> Params:
    """The parameters of Inception v3 of a state dict; raises as `read_inception`."""
    state = {name: value for name, value in state.items() if not UNUSED.search(name)}
    shapes = _shapes()
    _check(state, _state_shapes(shapes))

    def convert(path, leaf):
        *modules, kind = [entry.key for entry in path]
        name = ".".join(modules)
        value = _kernel(state, name) if kind == "kernel" else _bias(state, name)
        return jnp.asarray(value.reshape(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(convert, shapes)


def _scale(state: State, name: str) -> np.ndarray:
    variance = np.asarray(state[f"{name}.bn.running_var"], np.float64)
    return state[f"{name}.bn.weight"] / np.sqrt(variance + EPSILON)


def _kernel(state: State, name: str) -> np.ndarray:
    if name == "fc":
        return state["fc.weight"].T
    return state[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * _scale(state, name)


def _bias(state: State, name: str) -> np.ndarray:
    return state[f"{name}.bn.bias"] - _scale(state, name) * state[f"{name}.bn.running_mean"]


def _shapes() -> Params:
    x = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), x)["params"]


def _state_shapes(shapes: Params) -> dict[str, list[int]]:
    """Names in the state dict to shapes."""
    found: dict[str, list[int]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *modules, kind = [entry.key for entry in path]
        name = ".".join(modules)
        if name == "fc":
            found["fc.weight"] = list(leaf.shape[::-1])
        elif kind == "kernel":
            height, width, inputs, features = leaf.shape
            found[f"{name}.conv.weight"] = [features, inputs, height, width]
        else:
            for constant in ("weight", "bias", "running_mean", "running_var"):
                found[f"{name}.bn.{constant}"] = list(leaf.shape)
    return found


def _check(state: State, shapes: dict[str, list[int]]) -> None:
    missing = [name for name in shapes if name not in state]
    if missing:
        raise ValueError(
            f"{missing[0]!r} is missing (and {len(missing) - 1} more arrays of Inception v3 are): "
            f"{HINT}"
        )
    unknown = [name for name in state if name not in shapes]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is no array of Inception v3 (and {len(unknown) - 1} more are not): "
            f"{HINT}"
        )
    for name, shape in shapes.items():
        if list(state[name].shape) != shape:
            raise ValueError(f"{name!r} is {list(state[name].shape)}, but must be {shape}: {HINT}")
        if name.endswith("running_var") and (state[name] < 0).any():
            raise ValueError(
                f"{name!r} is {state[name].min():g} at its smallest, but a variance must be at "
                "least 0: the file is damaged"
            )
