"""Guidance: a score function made of two others.

    s(x, i) = s_u(x, i) + w (s_c(x, i) - s_u(x, i))

Classifier-free guidance has s_c conditional on a class and s_u unconditional. w = 1 is the
conditional score; larger weights w draw more typical and less varied images of the class.

Autoguidance has s_c of a network and s_u of a weaker version of it, such as that of an earlier
step of its training. Where both err alike but the weaker one more, weights above 1 correct the
error of the better one. It needs no classes.

At the largest noise levels guidance mostly lowers diversity; it can begin at a later level.

Reference: Ho & Salimans (2022), "Classifier-free diffusion guidance", equation 6, whose weight is
w - 1; Karras et al. (2024), "Guiding a diffusion model with a bad version of itself", equation 3;
Kynkäänniemi et al. (2024), "Applying guidance in a limited interval improves sample and
distribution quality in diffusion models".
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_jax.network import as_pytree
from score_jax.noise import per_example
from score_jax.typing import Array, Scalar


def class_guidance(
    conditional: Callable[..., Array], unconditional: Callable[..., Array], weight: Scalar
) -> Callable[..., Array]:
    """The guided score.

    Args:
        conditional: (x, level) -> score given the class, or (x, level, label) -> score.
        unconditional: (x, level) -> score.
        weight: w above, 0 or more. 0 is the unconditional score, 1 the conditional one.

    Returns:
        A score function with the arguments of `conditional`, as a pytree of the arrays of both.
        It evaluates both networks.

    Raises:
        ValueError: If a concrete weight is negative.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> unconditional = sj.gaussian_score_fn(jnp.zeros(2), 4 * jnp.ones(2), sigmas)
        >>> guided = sj.class_guidance(score_fn, unconditional, 1.5)
        >>> print(np.asarray(guided(jnp.ones((1, 2)), jnp.array([0]))).round(3))
        [[-0.65 -0.65]]
    """
    return _partial(_guided, conditional, unconditional, weight)


def autoguidance(
    score_fn: Callable[..., Array],
    weaker: Callable[..., Array],
    weight: Scalar,
    first_level: Scalar = 0.0,
) -> Callable[..., Array]:
    """The score guided by a weaker network.

    Args:
        score_fn: (x, level, *label) -> score.
        weaker: The score of the weaker network, with the same arguments.
        weight: w above, 0 or more. 1 is `score_fn` itself; Karras et al. use 1.4 to 2.1.
        first_level: Level from which on the score is guided, an index that may lie between two
            levels, as in `noise.sigma_at`. At earlier levels, of more noise, it is `score_fn`.

    Returns:
        A score function with the same arguments, as a pytree of the arrays of both. It evaluates
        both networks, but only `score_fn` where no example of a batch is guided.

    Raises:
        ValueError: If a concrete weight is negative.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> weaker = sj.gaussian_score_fn(jnp.zeros(2), 4 * jnp.ones(2), sigmas)
        >>> guided = sj.autoguidance(score_fn, weaker, 1.5)
        >>> print(np.asarray(guided(jnp.ones((1, 2)), jnp.array([0]))).round(3))
        [[-0.65 -0.65]]
    """
    return _partial(_autoguided, score_fn, weaker, weight, first_level)


def _partial(
    function: Callable, better: Callable, base: Callable, weight: Scalar, *more: Scalar
) -> Callable:
    if not isinstance(weight, jax.core.Tracer) and not float(weight) >= 0:
        raise ValueError(f"weight={weight} must be 0 or above")
    parts = as_pytree(better), as_pytree(base)
    scalars = (jnp.asarray(scalar, jnp.float32) for scalar in (weight, *more))
    return jax.tree_util.Partial(function, *parts, *scalars)


def without_label(score_fn: Callable[..., Array], num_classes: int) -> Callable[..., Array]:
    """The unconditional score of a conditional network that was trained with label dropout.

    Args:
        score_fn: (x, level, label) -> score; the label num_classes stands for no class.
        num_classes: Number of classes.

    Returns:
        (x, level) -> score, as a pytree of the arrays of `score_fn`. Further arguments are
        ignored.

    Example:
        >>> conditional = lambda x, level, label: label[:, None] - x
        >>> any_class = sj.without_label(conditional, 10)  # label 10 stands for no class
        >>> any_class(jnp.zeros((2, 1)), jnp.zeros(2, int)).tolist()
        [[10.0], [10.0]]
    """
    return with_fixed_label(score_fn, num_classes)


def with_fixed_label(score_fn: Callable[..., Array], label: int | Array) -> Callable[..., Array]:
    """The score of a conditional network with one label for all examples.

    Args:
        score_fn: (x, level, label) -> score.
        label: The label, a scalar.

    Returns:
        (x, level) -> score, as a pytree of the arrays of `score_fn`. Further arguments are
        ignored.

    Example:
        >>> conditional = lambda x, level, label: label[:, None] - x
        >>> threes = sj.with_fixed_label(conditional, 3)
        >>> threes(jnp.zeros((2, 1)), jnp.zeros(2, int)).tolist()
        [[3.0], [3.0]]
    """
    return jax.tree_util.Partial(_labelled, as_pytree(score_fn), jnp.int32(label))


def _guided(conditional, unconditional, weight, x, level, *label):
    return _extrapolated(unconditional(x, level), conditional(x, level, *label), weight, x.dtype)


def _autoguided(score_fn, weaker, weight, first_level, x, level, *label):
    score = score_fn(x, level, *label)
    guided = level >= first_level

    def extrapolated(score):
        found = _extrapolated(weaker(x, level, *label), score, weight, x.dtype)
        return jnp.where(per_example(guided, x), found, score)

    return jax.lax.cond(jnp.any(guided), extrapolated, lambda score: score, score)


def _extrapolated(base, better, weight, dtype):
    return (base + weight.astype(base.dtype) * (better - base)).astype(dtype)


def _labelled(score_fn, fixed, x, level, *label):
    return score_fn(x, level, jnp.broadcast_to(fixed, x.shape[:1]))
