"""Official PyTorch weights as parameters.

Names follow the official state dict with its dots between a word and a number turned into underscores: `res1.0.conv1.weight`
[out, in, kh, kw] is `params["res1_0"]["conv1"]["kernel"]` [kh, kw, in, out].
"""

import re
from collections.abc import Mapping

import numpy as np

from score_jax.typing import Params


def ncsn_params(state: Mapping[str, np.ndarray]) -> Params:
    """The parameters of `models.ncsn.NCSN` from an official NCSN (2019) state dict.

    Args:
        state: Official names, with or without the `module.` prefix, to float32 arrays in PyTorch's layout.
    Returns:
        Nested dict of the same numbers, convolution kernels as [kh, kw, in, out].
    Raises:
        ValueError: If a name is not one of an NCSN's.
    """
    params: dict = {}
    for name, value in state.items():
        words = name.removeprefix("module.")
        words = re.sub(r"\.embed\.weight$", ".embedding", words)
        words = re.sub(r"(?:\.conv)?\.(weight|bias)$", r".\1", words)  # a pooled convolution is wrapped once more
        words = re.sub(r"\.(\d+)(?=\.)", r"_\1", words)
        *path, leaf = words.split(".")
        if not path or leaf not in ("weight", "bias", "embedding"):
            raise ValueError(f"{name!r} is not a parameter of an NCSN state dict: expected names like 'res1.0.conv1.weight'")
        node = params
        for word in path:
            node = node.setdefault(word, {})
        value = np.asarray(value)
        node["kernel" if leaf == "weight" else leaf] = value.transpose(2, 3, 1, 0) if leaf == "weight" else value
    return params
