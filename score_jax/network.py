"""Networks as pairs of pure functions, and as score functions.

    model = (init, apply)            init: (key, x, level) -> params
    score = apply(params, x, level)  a score function once `params` are fixed

A conditional network takes the labels of the batch as one more argument, after `level`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from score_jax.typing import Array, Labels, Params, ScoreFn


class Model(NamedTuple):
    """A score network as two pure functions.

    Attributes:
        init: (key, x [batch, *shape], level int [batch]) -> params, a pytree of arrays. A
            conditional network takes (key, x, level, label).
        apply: (params, x, level) -> score [batch, *shape]. A conditional network takes
            (params, x, level, label).

    Example:
        >>> linear = sj.Model(
        ...     init=lambda key, x, level: {"w": jnp.zeros(())},
        ...     apply=lambda params, x, level: -params["w"] * x,
        ... )
        >>> sj.score_fn(linear, {"w": jnp.array(2.0)})(jnp.ones((1, 2)), jnp.array([0])).tolist()
        [[-2.0, -2.0]]
    """

    init: Callable[..., Params]
    apply: Callable[..., Array]


def as_model(model: Any) -> Model:
    """The pair of pure functions of a network.

    Args:
        model: A Flax linen module, or a pair (init, apply) as in `Model`, which serves Haiku,
            Equinox, Flax NNX and plain functions.

    Raises:
        ValueError: If `model` is neither.
    """
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return Model(*model)
    if callable(getattr(model, "init", None)) and callable(getattr(model, "apply", None)):
        return Model(_LinenInit(model), _LinenApply(model))
    raise ValueError(
        f"model is a {type(model).__name__}, but must be a Flax linen module or a pair "
        "(init, apply) of functions"
    )


@dataclasses.dataclass(frozen=True)
class _LinenInit:
    """Initial parameters of a linen module; equal for equal modules."""

    module: Any

    def __call__(self, key, x, level, *label):
        return self.module.init(key, x, level, *label)["params"]


@dataclasses.dataclass(frozen=True)
class _LinenApply:
    """Output of a linen module; equal for equal modules, so that compiled programs are reused."""

    module: Any

    def __call__(self, params, x, level, *label):
        return self.module.apply({"params": params}, x, level, *label)


def score_fn(model: Any, params: Params) -> ScoreFn:
    """The score function of a network with fixed parameters.

    The result is a pytree with the leaves of `params`: compiled programs take the parameters as
    arguments instead of embedding them as constants.

    Args:
        model: As in `as_model`.
        params: Its parameters.

    Returns:
        (x, level) -> score, or (x, level, label) -> score for a conditional network.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> model = sj.MLP(sigmas=sigmas)
        >>> x, level = jnp.zeros((3, 2)), jnp.array([0, 1, 4])
        >>> params = model.init(jax.random.key(0), x, level)["params"]
        >>> sj.score_fn(model, params)(x, level).shape
        (3, 2)
    """
    return jax.tree_util.Partial(as_model(model).apply, params)


def with_label(score_fn: Callable[..., Array], label: Labels | Any) -> ScoreFn:
    """Fixes the label, or another condition, of a conditional score function (x, level, label).

    None returns `score_fn` unchanged.
    """
    if label is None:
        return score_fn
    return lambda x, level: score_fn(x, level, label)


def as_pytree(score_fn: Callable[..., Array]) -> Callable[..., Array]:
    """A score function as a pytree of arrays, to be an argument of a compiled program.

    Functions that are not such pytrees, like closures, become pytrees without leaves; the arrays
    that they refer to are constants of the program.
    """
    leaves = jax.tree.leaves(score_fn)
    if any(leaf is score_fn for leaf in leaves):
        return jax.tree_util.Partial(score_fn)
    if all(hasattr(leaf, "dtype") for leaf in leaves):
        return score_fn
    return jax.tree_util.Partial(lambda *arguments: score_fn(*arguments))
