"""Official PyTorch checkpoints <-> networks and parameters of this package.

Names follow the official state dict, with underscores for the dots before numbers:
`res1.0.conv1.weight` [out, in, kh, kw] is `params["res1_0"]["conv1"]["kernel"]` [kh, kw, in, out].
Arrays are transposed; their values do not change.
"""

import math
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.models.ncsn import NCSN
from score_jax.models.ncsnv2 import NCSNv2
from score_jax.reading import check_archive, check_memory, expanded, load_arrays, within
from score_jax.typing import Params

State = Mapping[str, np.ndarray]
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "score", "module")
EMA = ("ema", "ema_state_dict", "model_ema", "ema_model")
"""Names under which checkpoints hold a state dict, and one of averaged parameters."""
NUMPY_FLOATS = ("torch.float16", "torch.float32", "torch.float64")
DEEPEST = 5
"""Largest number of dictionaries around a state dict."""
PREFIX = re.compile(r"^(?:(?:module|model|_orig_mod)\.)+")
"""Prefixes of names that wrappers of a network add."""


class Official(NamedTuple):
    """Content of an official checkpoint file.

    Attributes:
        state: The state dict, without the `module.` prefix.
        ema_state: The state dict with averaged parameters; `state` if the file has none.
        step: Number of training steps, in [0, 2**31); 0 if the file does not contain it.
        note: A sentence about a step of the file that is not used, or None.
    """

    state: State
    ema_state: State
    step: int
    note: str | None = None


def from_official(state: State) -> tuple[nn.Module, Params]:
    """Builds the network of an official state dict and its parameters.

    The family (NCSN of 2019, or a variant of NCSNv2), the width, the channels and the noise levels
    are inferred from names and shapes.

    Args:
        state: Official names, with or without the `module.` prefix, to arrays in PyTorch's layout.

    Returns:
        (model, params); `model.apply({"params": params}, x, level)` is the score of images x
        [batch, height, width, channels]. Parameters are float32.

    Raises:
        ValueError: If a name is missing or unknown, or an array has a wrong shape.

    Example:
        >>> model = sj.NCSN(num_levels=10, width=8)
        >>> x = jnp.zeros((1, 8, 8, 1))
        >>> params = model.init(jax.random.key(0), x, jnp.array([0]))["params"]
        >>> same_model, same_params = sj.from_official(sj.to_official(params))
        >>> same_model.width, same_model.num_levels
        (8, 10)
    """
    state = {PREFIX.sub("", name): np.asarray(value) for name, value in state.items()}
    model, channels = _network_of(state)
    _check_names_and_shapes(state, model, channels)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), _to_params(state))
    return model, params


def _network_of(state: State) -> tuple[nn.Module, int]:
    """The network of a state dict without prefix, and its number of image channels."""
    if "begin_conv.weight" not in state:
        raise ValueError(
            "the state dict lacks 'begin_conv.weight': it must be that of an official NCSN or "
            "NCSNv2"
        )
    shape = state["begin_conv.weight"].shape
    if len(shape) != 4:
        raise ValueError(
            f"'begin_conv.weight' is {list(shape)}, but must be [width, channels, 3, 3]"
        )
    width, channels = shape[:2]
    if "normalizer.embed.weight" in state:
        num_levels = len(state["normalizer.embed.weight"])
        return NCSN(num_levels=num_levels, width=width), channels
    if "sigmas" in state:
        variant = _variant_of(state)
        return NCSNv2(sigmas=state["sigmas"].ravel(), width=width, variant=variant), channels
    raise ValueError(
        "the state dict has neither 'normalizer.embed.weight' (NCSN) nor 'sigmas' (NCSNv2): it "
        "must be that of one of the two"
    )


def _variant_of(state: State) -> str:
    """The variant of NCSNv2, by the stages that only the deeper ones have."""
    if any(name.startswith("res31.") for name in state):
        return "deepest"
    if any(name.startswith("res5.") for name in state):
        return "deeper"
    return "standard"


def _check_names_and_shapes(state: State, model: nn.Module, channels: int) -> None:
    kind, width = type(model).__name__, model.width
    expected = to_official(_shapes(model, channels))
    for name, value in expected.items():
        if name not in state:
            raise ValueError(
                f"the state dict lacks {name!r}, which this {kind} of width {width} has"
            )
        if state[name].shape != value.shape:
            raise ValueError(
                f"{name!r} is {list(state[name].shape)}, but must be {list(value.shape)} with "
                f"width {width}"
            )
    unknown = [name for name in state if name not in expected]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is not a parameter of {kind} (and {len(unknown) - 1} more are not)"
        )


def to_official(params: Params) -> State:
    """The official state dict of parameters: the inverse of `from_official`, bit for bit.

    Args:
        params: Parameters of an `NCSN` or `NCSNv2`.

    Returns:
        Official names, without the `module.` prefix, to arrays in PyTorch's layout.

    Example:
        >>> model = sj.NCSN(num_levels=10, width=8)
        >>> x = jnp.zeros((1, 8, 8, 1))
        >>> params = model.init(jax.random.key(0), x, jnp.array([0]))["params"]
        >>> sorted(sj.to_official(params))[:2]
        ['begin_conv.bias', 'begin_conv.weight']
    """
    state = {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        words = [entry.key for entry in path]
        if isinstance(value, jax.ShapeDtypeStruct):
            value = np.empty(value.shape, value.dtype)
        value = np.asarray(value)
        if words[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1)
        state[_official_name(words, params)] = value
    return state


def _official_name(words: list[str], params: Params) -> str:
    """The official name of the parameter at the path `words`."""
    *modules, leaf = words
    # A pooled convolution is wrapped in one more module.
    is_convolution = leaf in ("kernel", "bias") and modules[-1] in ("conv2", "shortcut")
    if is_convolution and _pools(params[modules[0]]):
        modules.append("conv")
    # A number after an underscore is an index (res1_0, convs_1), but 1_2_conv is a name.
    modules = [re.sub(r"^([a-z]\w*)_(\d+)$", r"\1.\2", word) for word in modules]
    leaf = {"kernel": "weight", "embedding": "embed.weight"}.get(leaf, leaf)
    return ".".join([*modules, leaf])


def read_official(path: str | os.PathLike) -> Official:
    """Reads a checkpoint of the official code of 2019 or 2020, or the arrays of a state dict.

    Args:
        path: A `.pth` file, which needs PyTorch, or an `.npz` file of the arrays of a state dict.
            A `.pth` file holds a state dict; a list [model, optimizer] or [model, optimizer,
            epoch, step, ema] that begins with one; or dictionaries with one under "state_dict",
            "model", "ema" and similar names. `~` is expanded.

    Returns:
        Arrays of the dtypes of the file; bfloat16 becomes float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt or a pickle of anything but tensors, if an array is not
            finite, or if PyTorch is missing.

    Example:
        >>> official = sj.read_official("checkpoint.pth")  # doctest: +SKIP
    """
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path={str(path)!r} is not a file{within(path)}: it must name an official .pth, or "
            "an .npz of its arrays"
        )
    if path.suffix == ".npz":
        state = _load_npz(path)
        return Official(state, state, 0)

    content = _load_torch(path)
    model, ema, step = _parts_of(content)
    if not isinstance(model, Mapping):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, but must hold a state dict, a list that "
            "begins with one, or a dictionary with one under 'state_dict' or 'model'"
        )
    state = _to_arrays(model, path)
    step, note = _checked_step(step, path)
    if not isinstance(ema, Mapping) or ema is model:
        return Official(state, state, step, note)

    # The averaged parameters do not include buffers, so take these from the state dict.
    return Official(state, {**state, **_to_arrays(ema, path)}, step, note)


def _checked_step(step: Any, path: Path) -> tuple[int, str | None]:
    """(step, None), or (0, a sentence) for a step that a training state cannot have."""
    if step is None:
        return 0, None
    whole = isinstance(step, int) and not isinstance(step, bool)
    if whole and 0 <= step < 2**31:
        return step, None
    shown = step if whole and abs(step) < 2**64 else f"a {type(step).__name__}"
    return 0, f"the step in {path}, {shown}, is no whole number from 0 to {2**31 - 1}: 0 is used"


def _parts_of(content: Any) -> tuple[Any, Any, Any]:
    """(state dict, averaged parameters, step) of a checkpoint; None for a part that it lacks."""
    ema, step = None, None
    if isinstance(content, list | tuple):
        parts = dict(enumerate(content))
        content, step, ema = parts.get(0), parts.get(3), parts.get(4)
    elif isinstance(content, Mapping):
        step = content.get("step")
        ema = next((content[key] for key in EMA if isinstance(content.get(key), Mapping)), None)
    model, ema = _unwrapped(content), _unwrapped(ema)
    return model, ema, step


def _unwrapped(content: Any) -> Any:
    """The state dict in dictionaries that hold it under one of the usual names."""
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            return content
        if any(hasattr(value, "shape") for value in content.values()):
            return content
        names = (*WRAPPERS, *EMA)
        inner = [content[key] for key in names if isinstance(content.get(key), Mapping)]
        if not inner:
            return content
        content = inner[0]
    return content


def _load_npz(path: Path) -> State:
    try:
        arrays = load_arrays(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of arrays ({error})") from error
    return _to_arrays(arrays, path)


def _load_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f'reading {path} needs PyTorch, which is not installed: pip install "score_jax[torch]"'
        ) from error
    try:
        check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is corrupt, or a pickle of more than tensors and numbers, "
            "which could run any code"
        ) from error
    except Exception as error:  # Damaged files raise exceptions of any kind.
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint, it may be truncated ({error})"
        ) from error


def _to_arrays(tensors: Mapping, path: Path) -> State:
    """Tensors or arrays as numpy arrays, by their names without the `module.` prefix.

    Raises:
        ValueError: If a value is not an array of finite real numbers, or if one claims more bytes
            than the content of the file has, or all together more than the memory.
    """
    state, claimed, limit = {}, 0, check_archive(path)
    for name, value in tensors.items():
        if not isinstance(name, str) or not hasattr(value, "shape"):
            raise ValueError(
                f"{path}: {name!r} is a {type(value).__name__}, but a state dict maps names to "
                "tensors"
            )
        # A tensor can claim any shape by strides of 0.
        claimed += _claimed(value, f"{path}: {name!r}", limit)
        check_memory(claimed, f"{path}: its arrays need")
        array = _to_array(value, f"{path}: {name!r}")
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{path}: {name!r} has dtype {array.dtype}, but must be real numbers")
        if not np.isfinite(array).all():
            raise ValueError(
                f"{path}: {name!r} contains NaN or infinite values: take a checkpoint from before "
                "training diverged"
            )
        state[PREFIX.sub("", name)] = array
    return state


def _claimed(value: Any, name: str, limit: int) -> int:
    """Bytes of a tensor or array, as float32 if it is narrower; its own are at most `limit`."""
    size = value.element_size() if hasattr(value, "element_size") else value.dtype.itemsize
    number = math.prod(value.shape)
    if number * size > limit:
        raise ValueError(
            f"{name} claims {list(value.shape)}, {number * size} bytes, but the content of the "
            f"file has {limit}"
        )
    return number * max(size, 4)


def _to_array(value: Any, name: str) -> np.ndarray:
    """A tensor as an array."""
    # Numpy takes neither tensors that require a gradient nor bfloat16 and shorter floats.
    try:
        if hasattr(value, "detach"):
            value = value.detach()
            if value.is_floating_point() and str(value.dtype) not in NUMPY_FLOATS:
                value = value.float()
        return np.asarray(value)
    except Exception as error:  # Sparse and quantized tensors raise exceptions of any kind.
        raise ValueError(f"{name} cannot be read as an array ({error})") from error


def _to_params(state: State) -> Params:
    """The tree of parameters of a state dict without prefix."""
    params: dict = {}
    for name, value in state.items():
        name = re.sub(r"\.embed\.weight$", ".embedding", name)
        # The wrapper of a pooled convolution has no counterpart here.
        name = re.sub(r"\.conv\.(weight|bias)$", r".\1", name)
        *modules, leaf = re.sub(r"\.(\d+)(?=\.)", r"_\1", name).split(".")
        if leaf == "weight":
            leaf, value = "kernel", value.transpose(2, 3, 1, 0)
        node = params
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = value
    return params


def _shapes(model: nn.Module, channels: int) -> Params:
    # No parameter depends on the size of the image; 32 can be halved as often as any variant does.
    x = jnp.zeros((1, 32, 32, channels))
    return jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1, jnp.int32))["params"]


def _pools(block: Mapping) -> bool:
    """True for a residual block that halves the resolution: its shortcut is a 1x1 convolution."""
    return "shortcut" in block and block["shortcut"]["kernel"].shape[0] == 1
