"""Traces objects of the user's own, so that what they raise is known before anything is compiled.

Only shapes are computed, with a stand-in for the network. The package's own objects need no such
check.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.cli.names import calling, resolve
from score_jax.cli.table import LEVELS, is_own, shown
from score_jax.sampling import Chains
from score_jax.typing import LossFn


def check_objective(
    settings: Mapping[str, Any], loss_fn: LossFn, sigmas: jax.Array, shape: tuple[int, ...]
) -> None:
    """Traces the loss and the draw of the levels, where they are the user's own.

    Args:
        settings: The config's section `loss`.
        loss_fn: The objective.
        sigmas: Noise levels, decreasing.
        shape: Shape of one example.

    Raises:
        ValueError: If one of them fails, or does not return one value per example.
    """
    name, levels = settings["name"], settings["levels"]
    if is_own(levels):
        draw_levels = resolve(LEVELS, levels, "loss.levels")

        def draw(key, index):
            return draw_levels(key, index, batch_size=2, num_levels=len(sigmas))

        with calling("loss.levels", levels):
            drawn = jax.eval_shape(draw, jax.random.key(0), _ints(2))
            _check_type("loss.levels", levels, drawn, (2,), jnp.integer)
    if is_own(name):
        x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        with calling("loss.name", name, settings):
            losses = jax.eval_shape(
                lambda keys, x, level: loss_fn(keys, _stand_in, x, level, sigmas),
                jax.random.split(jax.random.key(0)),
                x,
                _ints(2),
            )
            _check_type("loss.name", name, losses, (2,), jnp.floating)


def check_sampler(settings: Mapping[str, Any], chains: Chains) -> None:
    """Traces the sampler on two chains, if it is the user's own.

    Args:
        settings: The config's section `sampling`.
        chains: The sampler with its settings.

    Raises:
        ValueError: If it fails, or returns no trajectory of the chains.
    """
    name = settings["method"]
    if not is_own(name):
        return
    with calling("sampling.method", name, settings):
        x = jax.eval_shape(
            lambda index: chains((jax.random.key(0), _stand_in), (index, None)).x, _ints(2)
        )
        _check_type("sampling.method", name, x, (2, *chains.shape), jnp.floating)


def _stand_in(x: Any, level: Any) -> Any:
    """The score of N(0, I)."""
    del level
    return -x


def _ints(number: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((number,), np.int32)


def _check_type(setting: str, name: str, found: Any, shape: tuple[int, ...], kind: Any) -> None:
    """Raises a ValueError if an object returned another shape or kind of numbers."""
    if tuple(jnp.shape(found)) != shape or not jnp.issubdtype(found.dtype, kind):
        raise ValueError(
            f"config.{setting}={shown(name)} returned {found.dtype} {list(jnp.shape(found))}, but "
            f"must return {kind.__name__} values of shape {list(shape)}"
        )
