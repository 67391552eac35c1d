"""Official PyTorch checkpoints <-> networks and parameters of this package.

Names follow the official state dict with the dots before a number turned into underscores: `res1.0.conv1.weight` [out, in, kh, kw]
is `params["res1_0"]["conv1"]["kernel"]` [kh, kw, in, out]. Numbers move, but do not change.
"""

import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.models.ncsn import NCSN
from score_jax.models.ncsnv2 import NCSNv2
from score_jax.typing import Params

State = Mapping[str, np.ndarray]


class Official(NamedTuple):
    """What an official checkpoint file holds.

    Attributes:
        state: The state dict, without the `module.` prefix.
        ema_state: The same with averaged parameters, if there are any; `state` otherwise.
        step: Training steps taken; 0 if the file does not say.
    """

    state: State
    ema_state: State
    step: int


def from_official(state: State) -> tuple[nn.Module, Params]:
    """The network that an official state dict belongs to, and its parameters.

    Family (NCSN of 2019, or NCSNv2 and which variant), width, channels and noise levels are read off names and shapes.

    Args:
        state: Official names, with or without the `module.` prefix, to arrays in PyTorch's layout.
    Returns:
        (model, params) with `model.apply({"params": params}, x, level)` the score of x [batch, height, width, channels].
    Raises:
        ValueError: If a name is missing or foreign, or an array has a wrong shape.
    """
    state = {name.removeprefix("module."): np.asarray(value) for name, value in state.items()}
    if "begin_conv.weight" not in state:
        raise ValueError("the state dict lacks 'begin_conv.weight': it is not that of an official NCSN or NCSNv2")
    if state["begin_conv.weight"].ndim != 4:
        raise ValueError(f"'begin_conv.weight' is {list(state['begin_conv.weight'].shape)}, but must be [width, channels, 3, 3]")
    width, channels = state["begin_conv.weight"].shape[:2]
    if "normalizer.embed.weight" in state:
        model = NCSN(num_levels=len(state["normalizer.embed.weight"]), width=width)
    elif "sigmas" in state:
        variant = "deepest" if any(name.startswith("res31.") for name in state) else "standard"
        variant = "deeper" if variant == "standard" and any(name.startswith("res5.") for name in state) else variant
        model = NCSNv2(sigmas=tuple(state["sigmas"].ravel().tolist()), width=width, variant=variant)
    else:
        raise ValueError("the state dict has neither 'normalizer.embed.weight' (NCSN) nor 'sigmas' (NCSNv2): which is it of?")
    wanted = to_official(_shapes(model, channels))
    for name in wanted:
        if name not in state:
            raise ValueError(f"the state dict lacks {name!r}, which this {type(model).__name__} of width {width} has")
        if state[name].shape != wanted[name].shape:
            raise ValueError(f"{name!r} is {list(state[name].shape)}, but must be {list(wanted[name].shape)} with width {width}")
    if surplus := [name for name in state if name not in wanted]:
        raise ValueError(f"{surplus[0]!r} is not a parameter of {type(model).__name__} (and {len(surplus) - 1} more are not)")
    return model, jax.tree.map(jnp.asarray, _to_params(state))


def to_official(params: Params) -> State:
    """The official state dict of parameters: the reverse of `from_official`, bit for bit.

    Args:
        params: Of an `NCSN` or `NCSNv2`.
    Returns:
        Official names, without the `module.` prefix, to arrays in PyTorch's layout.
    """
    state = {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        words = [entry.key for entry in path]
        if words[-1] in ("kernel", "bias") and words[-2] in ("conv2", "shortcut") and _pools(params[words[0]]):
            words.insert(-1, "conv")  # a pooled convolution is wrapped once more
        leaf = {"kernel": ["weight"], "embedding": ["embed", "weight"]}.get(words[-1], words[-1:])
        # A number after an underscore is an index: res1_0, convs_1; 1_2_conv is a name.
        name = ".".join([*(re.sub(r"^([a-z]\w*)_(\d+)$", r"\1.\2", word) for word in words[:-1]), *leaf])
        value = np.asarray(value) if not isinstance(value, jax.ShapeDtypeStruct) else np.empty(value.shape, value.dtype)
        state[name] = value.transpose(3, 2, 0, 1) if words[-1] == "kernel" else value
    return state


def read_official(path: str | Path) -> Official:
    """Reads a `.pth` file of the official code of 2019 or 2020, or an `.npz` file of the arrays of a state dict.

    Args:
        path: `.pth` holds a state dict, a list [model, optimizer] or [model, optimizer, epoch, step, ema]; needs PyTorch.
    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or a pickle that holds anything but tensors, or PyTorch is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--checkpoint={path} is not a file: it must name an official .pth, or an .npz of its arrays")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                state = _bare({name: file[name] for name in file.files}, path)
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as an .npz file of arrays ({error})") from error
        return Official(state, state, 0)
    content = _load_torch(path)
    parts = list(content) if isinstance(content, list | tuple) else [content]
    if not parts or not isinstance(parts[0], Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, but must hold a state dict or a list that begins with one")
    state = _bare(parts[0], path)
    ema_state = {**state, **_bare(parts[4], path)} if len(parts) > 4 and isinstance(parts[4], Mapping) else state
    step = parts[3] if len(parts) > 3 and isinstance(parts[3], int) else 0
    return Official(state, ema_state, step)


def _load_torch(path: Path):
    try:
        import torch
    except ImportError as error:
        raise ValueError(f"reading {path} needs PyTorch, which is not installed: pip install -e '.[torch]'") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is damaged, or a pickle that holds more than tensors and numbers, which could run any code"
        ) from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint, it may be truncated ({error})") from error


def _bare(tensors: Mapping, path: Path) -> State:
    """Tensors as numpy arrays, by their names without prefix."""
    state = {}
    for name, value in tensors.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise ValueError(f"{path}: {name!r} is a {type(value).__name__}, but a state dict maps names to tensors")
        state[name.removeprefix("module.")] = np.asarray(value)
    return state


def _to_params(state: State) -> Params:
    params: dict = {}
    for name, value in state.items():
        words = re.sub(r"\.embed\.weight$", ".embedding", name)
        words = re.sub(r"\.conv\.(weight|bias)$", r".\1", words)
        *path, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", words).split(".")
        node = params
        for word in path:
            node = node.setdefault(word, {})
        node["kernel" if leaf == "weight" else leaf] = value.transpose(2, 3, 1, 0) if leaf == "weight" else value
    return params


def _shapes(model: nn.Module, channels: int) -> Params:
    # No parameter depends on the size of the image; 32 halves as often as any variant wants.
    shape = (1, 32, 32, channels)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1, jnp.int32))["params"]


def _pools(block: Mapping) -> bool:
    """Whether a residual block halves the resolution: then its shortcut is a 1x1 convolution."""
    return "shortcut" in block and block["shortcut"]["kernel"].shape[0] == 1
