"""Traces objects of the user's own, so that what they raise is known before anything is compiled.

Only shapes are computed. The package's own objects need no such check.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from score_jax.cli.names import calling, resolve
from score_jax.cli.table import LEVELS, is_own, shown
from score_jax.network import score_fn
from score_jax.sampling import Chains
from score_jax.training import Trainer, TrainState


def check_objective(
    config: Mapping[str, Any], trainer: Trainer, state: TrainState, shape: tuple[int, ...]
) -> None:
    """Traces the loss with its levels, if one of them or the network is the user's own.

    Args:
        config: The config.
        trainer: The trainer.
        state: Shapes and types of the state of training.
        shape: Shape of one example.

    Raises:
        ValueError: If one of them fails, or does not return one value per example.
    """
    settings = config["loss"]
    if is_own(settings["levels"]):
        draw_levels = resolve(LEVELS, settings["levels"], "loss.levels")
        with calling("loss.levels", settings["levels"]):
            draw = lambda key, index: draw_levels(  # noqa: E731
                key, index, batch_size=2, num_levels=len(trainer.sigmas)
            )
            level = jax.eval_shape(draw, jax.random.key(0), _ints(2))
            _check_type("loss.levels", settings["levels"], level, (2,), jnp.integer)
    if not any(is_own(each) for each in (settings["name"], config["model"]["name"])):
        return
    label = [_ints(2)] if config["data"]["labels"] else []
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    with calling("loss.name", settings["name"], settings), calling(
        "model.name", config["model"]["name"], config["model"]
    ):
        loss, _ = jax.eval_shape(trainer.loss, jax.random.key(0), state.params, x, *label)
        _check_type("loss.name", settings["name"], loss, (), jnp.floating)


def check_sampler(
    config: Mapping[str, Any], trainer: Trainer, state: TrainState, chains: Chains
) -> None:
    """Traces the sampler on two chains, if it is the user's own.

    Args:
        config: The config.
        trainer: The trainer.
        state: Shapes and types of the state of training.
        chains: The sampler with its settings.

    Raises:
        ValueError: If it fails, or returns no trajectory of the chains.
    """
    name = config["sampling"]["method"]
    if not is_own(name):
        return
    label = _ints(2) if config["data"]["labels"] else None

    def run(params, index, label):
        key = jax.random.key(0)
        return chains((key, score_fn(trainer.model, params)), (index, label)).x

    with calling("sampling.method", name, config["sampling"]):
        x = jax.eval_shape(run, state.params, _ints(2), label)
        _check_type("sampling.method", name, x, (2, *chains.shape), jnp.floating)


def _ints(number: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((number,), jnp.int32)


def _check_type(setting: str, name: str, found: Any, shape: tuple[int, ...], kind: Any) -> None:
    """Raises a ValueError if an object returned another shape or kind of numbers."""
    if tuple(jnp.shape(found)) != shape or not jnp.issubdtype(found.dtype, kind):
        raise ValueError(
            f"config.{setting}={shown(name)} returned {found.dtype} {list(jnp.shape(found))}, but "
            f"must return {kind.__name__} values of shape {list(shape)}"
        )


