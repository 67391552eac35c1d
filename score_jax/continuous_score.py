"""A score at any noise level, from a score function that knows the training levels.

continuous(score_fn, sigmas):           (x, sigma) -> score
at_sigmas(score_fn, sigmas, others):    (x, level) -> score, with levels that index `others`
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from score_jax.network import as_pytree, with_label
from score_jax.noise import checked_sigmas, level_at, per_example, sigma_at
from score_jax.typing import Array, Batch, Float, JaxBatch, ScoreFn, Sigmas

ContinuousScoreFn = Callable[[Array, Array], Array]
"""(x [batch, *shape], sigma [batch]) -> score [batch, *shape]."""


def continuous(
    score_fn: ScoreFn, sigmas: Sigmas | Sequence[float], *, fractional: bool | None = None
) -> ContinuousScoreFn:
    """The score as a function of sigma.

    Networks that are conditioned on sigma itself, such as `UNet` and `MLP`, and the densities of
    `analytic` take floating-point levels and are evaluated at sigma exactly. For all others,

        s(x, sigma) = s(x, i) sigma_i / sigma,   i the nearest level on a logarithmic scale,

    which is exact for networks that divide by sigma, such as `NCSNv2`; for the others the result
    jumps halfway between two levels. Beyond the first and the last level, the same rule extends
    the score of that level.

    Args:
        score_fn: (x, level) -> score.
        sigmas: The levels of `score_fn`, decreasing.
        fractional: True if `score_fn` takes floating-point levels, in the sense of
            `noise.sigma_at`; None finds out by tracing it.

    Returns:
        (x [batch, *shape], sigma [batch]) -> score, a pure function.

    Raises:
        ValueError: If sigmas do not decrease.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> at = sj.continuous(score_fn, sigmas)
        >>> at(jnp.ones((1, 2)), jnp.array([1.0])).round(3).tolist()
        [[-0.5, -0.5]]
    """
    sigmas = jnp.asarray(checked_sigmas(sigmas))

    def at(x: Batch, sigma: Float[Array, "batch"]) -> JaxBatch:
        level = level_at(sigma, sigmas)
        takes_fractions = fractional
        if takes_fractions is None:
            takes_fractions = takes_fractional_levels(score_fn, x)
        if not takes_fractions:
            level = jnp.round(level).astype(jnp.int32)
        scale = sigma_at(level, sigmas) / sigma
        if takes_fractions:
            # Between the levels the ratio is 1 up to rounding.
            inside = (sigma <= sigmas[0]) & (sigma >= sigmas[-1])
            scale = jnp.where(inside, 1.0, scale)
        return (per_example(scale, x) * score_fn(x, level)).astype(x.dtype)

    return at


def at_sigmas(
    score_fn: Callable[..., Array],
    sigmas: Sigmas | Sequence[float],
    others: Any,
) -> Callable[..., Array]:
    """The score function for other noise levels, by `continuous`.

    Args:
        score_fn: (x, level) -> score, or (x, level, label) -> score.
        sigmas: The levels of `score_fn`, decreasing.
        others: The levels that the result knows, an array or numbers, decreasing.

    Returns:
        A score function of the same arguments, whose levels index `others`; a pytree with the
        leaves of `score_fn`.

    Raises:
        ValueError: If sigmas or others do not decrease.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> finer = sj.at_sigmas(score_fn, sigmas, sj.geometric_sigmas(1.0, 0.1, 9))
        >>> print(np.asarray(finer(jnp.ones((1, 2)), jnp.array([8]))).round(3))
        [[-0.99 -0.99]]
    """
    arrays = (jnp.asarray(checked_sigmas(each)) for each in (sigmas, others))
    return jax.tree_util.Partial(_at_sigmas, as_pytree(score_fn), *arrays)


def _at_sigmas(score_fn, sigmas: Array, others: Array, x: Batch, level: Array, *label) -> JaxBatch:
    own = with_label(score_fn, *label) if label else score_fn
    return continuous(own, sigmas)(jnp.asarray(x), others[level])


def takes_fractional_levels(score_fn: ScoreFn, x: Batch) -> bool:
    """True if a score function can be traced with floating-point levels.

    Indexing and embedding by a floating-point level is an error in JAX and Flax.
    """
    try:
        jax.eval_shape(score_fn, x, jnp.zeros(x.shape[0], jnp.float32))
    except Exception:  # A user's function may raise anything; the call with int levels reports it.
        return False
    return True
