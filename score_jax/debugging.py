"""Finds values that are not finite: the leaf of a tree, or the operation that gave the first one.

With JAX's switch `jax_debug_nans`, `fit` and `sample` keep what they need to repeat the step that
failed. They run compiled programs unchecked and then repeat that step one operation at a time.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

LIBRARY = Path(jax.__file__).parent


def first_not_finite(tree: Any) -> str | None:
    """The path of the first floating-point leaf with NaN or infinity; None if there is none.

    Args:
        tree: Pytree of concrete arrays. Leaves of other types, such as keys, are passed over.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jax.dtypes.issubdtype(dtype, np.inexact):
            continue
        if not np.isfinite(np.asarray(leaf)).all():
            return jax.tree_util.keystr(path).lstrip(".") or "the array"
    return None


def is_debugging() -> bool:
    """True if JAX's switch `jax_debug_nans` is on."""
    return bool(jax.config.jax_debug_nans)  # type: ignore[attr-defined]


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Switches `jax_debug_nans` off, for programs whose results are checked in another way."""
    with jax.debug_nans(False):
        yield


def first_operation(function: Callable, *arguments: Any) -> str:
    """Repeats a computation one operation at a time; names the first that gives NaN or infinity.

    Args:
        function: A pure function.
        *arguments: Concrete arrays and trees of them.

    Returns:
        A clause, such as "the operation log gave the first NaN, at losses.py:12 in robust".
    """
    try:
        with unchecked(), jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
            function(*arguments)
    except FloatingPointError as error:
        kind = "infinity" if "(inf)" in str(error) else "NaN"
        operation = str(error).rpartition(" ")[2].rstrip(".")
        return f"the operation {operation} gave the first {kind}{_place(error)}"
    return "the same step was finite when repeated one operation at a time"


def _place(error: BaseException) -> str:
    """The innermost line outside JAX that an error passed through, in words."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if (
            LIBRARY not in path.parents
            and path != Path(__file__)
            and "contextlib" not in path.name
        ):
            return f", at {path.parent.name}/{path.name}:{frame.lineno} in {frame.name}"
    return ""
