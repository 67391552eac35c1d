"""Log densities by the probability-flow ODE of the variance-exploding process.

    dx / dsigma = -sigma s(x, sigma),   from the data at sigma_min to the prior at sigma_max
    log p(x) = log prior(x(sigma_max)) - integral of sigma div s(x(sigma), sigma) dsigma

The flow turns the prior into a normalised density on the data's space, and this is that density.
With the exact score and the exact density at sigma_max as prior, it is the density of data
perturbed by sigma_min, not of the data themselves: noise below the smallest level is never
removed. It is evaluated at `x` as given; no noise is added to `x`.

Another prior costs on average the Kullback-Leibler divergence from the exact density at sigma_max
to it, in nats per example: mean log densities are too low by that much, never too high. The
default, N(0, sigma_max^2 I), suits a sigma_max far above the spread of the data. For a sigma_max
of their size, pass the mean and the variance of the data.

Between discrete noise levels, `continuous_score.continuous` extends the score; the density is
that of the flow of the extended score. Solutions of the same ODE, from the prior back to
sigma_min, have it; Langevin dynamics, and chains from another start, have other densities.

Reference: Song et al. (2021), "Score-based generative modeling through stochastic differential
equations", equation 39 and appendix D.2. Grathwohl et al. (2019), "FFJORD: free-form continuous
dynamics for scalable reversible generative models", for the estimator of the trace.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.continuous_score import continuous
from score_jax.noise import check_batch, checked_sigmas, sum_per_example
from score_jax.typing import AnyBatch, AnyKeys, Array, Batch, Float, Int, Losses, Scalar, Sigmas

CHUNK = 64
"""Number of directions of an exact trace that are differentiated at once."""
STAGES = 6
"""Evaluations of the score per step of the solver, Tsit5."""
FIRST_STEP = 1 / 32
"""Size of the first step, as a part of the path."""

Moment = float | Float[Array, "*shape"] | Float[np.ndarray, "*shape"]
"""One number for all dimensions, or an array of the shape of an example."""


class DensityFlow(NamedTuple):
    """Solution of the probability-flow ODE for a batch of examples.

    Attributes:
        log_density: Log density of each example in nats, [batch]; the mean over its probes. NaN
            where the solver did not finish.
        probe_log_density: Log density by each probe alone, [batch, probes]; a single column if the
            trace is exact.
        end: States at sigma_max, [batch, *shape].
        num_evaluations: Number of evaluations of the score, rejected steps included, int [batch].
    """

    log_density: Losses
    probe_log_density: Float[Array, "batch probes"]
    end: Batch
    num_evaluations: Int[Array, "batch"]


def log_density(
    keys: AnyKeys | None,
    score_fn: Callable[..., Array],
    x: AnyBatch,
    sigmas: Sigmas | Sequence[float],
    **settings: Any,
) -> Losses:
    """Log density of each example in nats, [batch]; arguments and errors as in `density_flow`.

    Example:
        >>> sigmas = sj.geometric_sigmas(20.0, 0.01, 40)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> log_p = sj.log_density(None, score_fn, jnp.zeros((1, 2)), sigmas, variance=jnp.ones(2))
        >>> abs(float(log_p[0]) + 1.838) < 0.01  # log N(0; 0, I) in two dimensions
        True
    """
    return density_flow(keys, score_fn, x, sigmas, **settings).log_density


def density_flow(
    keys: AnyKeys | None,
    score_fn: Callable[..., Array],
    x: AnyBatch,
    sigmas: Sigmas | Sequence[float],
    *,
    condition: Any = None,
    num_probes: int | None = None,
    mean: Moment | None = None,
    variance: Moment | None = None,
    prior_log_density: Callable[[Array], Array] | None = None,
    rtol: Scalar = 1e-5,
    atol: Scalar = 1e-5,
    max_steps: int = 1000,
) -> DensityFlow:
    """Solves the probability-flow ODE from sigma_min to sigma_max for every example by itself.

    Steps are those of Tsitouras' 5(4) method in log sigma. Each example has step sizes of its own,
    so that its result does not depend on the rest of the batch.

    Args:
        keys: One per example, for the probes; do not reuse them. Ignored if the trace is exact.
        score_fn: (x, level) -> score, in 1/unit of `x`; (x, level, condition) -> score if a
            condition is given. It is called for one example at a time, [1, *shape].
        x: Data, [batch, *shape].
        sigmas: Noise levels of `score_fn`, decreasing, two or more; `continuous_score.continuous`
            goes between them.
        condition: Pytree of arrays [batch, ...], such as labels.
        num_probes: Number of Rademacher probes per example, from which Hutchinson's estimator
            takes the divergence without bias; probes stay fixed along the path. None computes the
            divergence exactly, at the cost of one derivative per dimension.
        mean: Mean of the data, for the prior N(mean, sigma_max^2 + variance); None is 0.
        variance: Variance of the data in each dimension; None is 0.
        prior_log_density: Log density of another prior, [batch, *shape] -> [batch]; excludes mean
            and variance.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step: of the states, in units of the current sigma, and of
            the log density, in nats per dimension.
        max_steps: Largest number of steps, rejected ones included; bounds the memory of gradients.

    Returns:
        Log densities in float32, or wider if `x` is; and what belongs to them.

    Raises:
        ValueError: If there is only one noise level, sigmas do not decrease, keys are missing or
            not one per example, the score has another shape than `x`, or a number is out of range.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> flow = sj.density_flow(None, score_fn, jnp.zeros((1, 2)), sigmas)
        >>> flow.log_density.shape
        (1,)
    """
    # Check all that can be checked, on Python numbers.
    x = check_batch(x, keys if num_probes is not None else None)
    check_solver(num_probes, rtol, atol, max_steps)
    levels = _checked_ends(sigmas)
    check_prior(prior_log_density, mean, variance, x.shape[1:])
    if num_probes is not None and keys is None:
        raise ValueError(f"num_probes={num_probes} needs keys: give one key per example")

    ends = levels[jnp.asarray([0, -1])].astype(float_dtype(x))
    prior = prior_log_density or _gaussian_prior(mean, variance, x, ends[0])

    def one(key, x, condition):
        probes = None if num_probes is None else _rademacher(key, num_probes, x)
        score_at = _score_of_one(score_fn, levels, condition)
        return _solve(score_at, x, probes, ends, rtol, atol, max_steps)

    x = x.astype(float_dtype(x))
    keys = None if num_probes is None else keys
    end, changes, steps, done = jax.vmap(one)(keys, x, condition)
    by_probe = jnp.expand_dims(prior(end), 1) + changes
    by_probe = jnp.where(done[:, None], by_probe, jnp.nan)
    return DensityFlow(by_probe.mean(axis=1), by_probe, end, 1 + STAGES * steps)


def bits_per_dimension(
    log_density: Array | np.ndarray | float, dimension: int, num_values: int = 1
) -> Array | np.ndarray | float:
    """Code length in bits per dimension, -log2 p / D + log2 num_values.

    For integers v in [0, num_values)^D that are dequantised to (v + u) / num_values with
    u ~ U[0, 1), its expectation over u is an upper bound on -log2 P(v) / D, where P(v) is the
    probability that the density gives to the cell of v. The term log2 num_values is that of the
    cell's volume.

    Args:
        log_density: In nats, of data on the scale of the dequantised values.
        dimension: Number of dimensions of one example, D.
        num_values: Number of values per unit of the data: 256 for bytes scaled to [0, 1); 1 gives
            the density itself in bits.

    Reference: Theis et al. (2016), section 3.1.

    Example:
        >>> sj.bits_per_dimension(0.0, dimension=64, num_values=256)
        8.0
    """
    return -log_density / (dimension * math.log(2)) + math.log2(num_values)


def float_dtype(x: Array) -> Any:
    """The floating-point type of log densities of `x`: its own, but at least float32."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _solve(score_at, x, probes, ends, rtol, atol, max_steps):
    """Solves the ODE for one example.

    Args:
        score_at: (x [*shape], sigma) -> score.
        x: Data, [*shape].
        probes: Directions [probes, *shape]; None for the exact divergence.
        ends: sigma_max and sigma_min.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_steps: Largest number of steps.

    Returns:
        The state at sigma_max, the change of the log density by each probe, the number of steps,
        and True if the solver finished.
    """
    sigma_max, sigma_min = ends
    log_ratio = jnp.log(sigma_max / sigma_min)

    # States are divided by sigma, so that tolerances hold at every noise level and in every unit.
    def slope(part, state, _):
        part, scaled = part.astype(x.dtype), state[0].astype(x.dtype)
        sigma = sigma_min * jnp.exp(part * log_ratio)
        score, divergences = _divergence(lambda x: score_at(x, sigma), sigma * scaled, probes)
        slopes = (-sigma * score - scaled, -(sigma**2) * divergences / x.size)
        return jax.tree.map(lambda slope, y: (log_ratio * slope).astype(y.dtype), slopes, state)

    # Ends that are Python numbers are checked here, not by a callback to the host; where 64 bits
    # are enabled, the solver then keeps its state in float64.
    num_estimates = 1 if probes is None else len(probes)
    state = (x / sigma_min, jnp.zeros(num_estimates, x.dtype))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=FIRST_STEP,
        y0=state,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_error_norm),
        max_steps=max_steps,
        throw=False,
    )
    scaled, changes = (values[0].astype(x.dtype) for values in solution.ys)
    done = solution.result == diffrax.RESULTS.successful
    return sigma_max * scaled, x.size * changes, solution.stats["num_steps"], done


def _error_norm(errors):
    """Size of the errors (states, log densities) of a step in units of the tolerance."""
    states, changes = errors
    return jnp.maximum(jnp.sqrt(jnp.mean(states**2)), jnp.max(jnp.abs(changes)))


def _divergence(score_at, x, probes):
    """The score at `x` and its divergence: exact, [1], or by each probe, [probes]."""
    score, derivative = jax.linearize(score_at, x)

    def along(direction):
        return jnp.sum(direction * derivative(direction))

    if probes is not None:
        return score, jax.vmap(along)(probes)
    basis = jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)
    return score, jnp.sum(jax.lax.map(along, basis, batch_size=CHUNK), keepdims=True)


def _rademacher(key, num_probes, x):
    """Probes of -1 and 1, [probes, *shape]."""
    flat = jax.random.rademacher(key, (num_probes * x.size,), x.dtype)
    return flat.reshape(num_probes, *x.shape)


def _score_of_one(score_fn, sigmas, condition):
    """(x [*shape], sigma) -> score [*shape], of one example with its condition."""
    own = ()
    if condition is not None:
        own = (jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), condition),)

    def checked(x, level):
        score = score_fn(x, level, *own)
        if score.shape != x.shape:
            raise ValueError(
                f"score_fn returns {list(score.shape)} for one example {list(x.shape)}: what "
                "differs between examples must be passed as condition"
            )
        return score

    at = continuous(checked, sigmas)
    return lambda x, sigma: at(x[None], sigma[None])[0]


def _gaussian_prior(mean, variance, x, sigma_max):
    """The log density of N(mean, sigma_max^2 + variance) with independent dimensions."""
    dtype, shape = float_dtype(x), x.shape[1:]
    mean = jnp.asarray(0.0 if mean is None else mean, dtype)
    total = jnp.asarray(0.0 if variance is None else variance, dtype) + sigma_max**2
    mean, total = (jnp.broadcast_to(value, shape)[None] for value in (mean, total))

    def prior_log_density(x):
        return -0.5 * sum_per_example((x - mean) ** 2 / total + jnp.log(2 * jnp.pi * total))

    return prior_log_density


def check_prior(
    prior_log_density: Callable | None,
    mean: Moment | None,
    variance: Moment | None,
    shape: tuple[int, ...],
) -> None:
    """Raises a ValueError for arguments of a prior that do not fit each other or the examples.

    Args:
        prior_log_density: Log density of a prior; None for a Gaussian.
        mean: Mean of the data, or None.
        variance: Variance of the data, or None.
        shape: Shape of an example.
    """
    moments = {"mean": mean, "variance": variance}
    given = {name: value for name, value in moments.items() if value is not None}
    if prior_log_density is not None and given:
        raise ValueError(
            "prior_log_density excludes mean and variance, which describe a Gaussian prior: give "
            "one or the other"
        )
    for name, value in given.items():
        if jnp.shape(value) not in ((), tuple(shape)):
            raise ValueError(
                f"{name} has shape {list(jnp.shape(value))}, but must be a number or have the "
                f"shape of an example, {list(shape)}"
            )
    if isinstance(variance, jax.core.Tracer | None):
        return
    if not (np.asarray(variance) >= 0).all():
        raise ValueError(f"variance={np.min(variance)} must be 0 or above")


def _checked_ends(sigmas: Any) -> Array:
    """Noise levels as an array, after a check that there are two or more."""
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    if len(sigmas) < 2:
        raise ValueError(
            f"the only noise level, {sigmas[0]:g}, leaves no path from the data to the prior: "
            "give two or more"
        )
    return sigmas


def check_solver(num_probes: int | None, rtol: Scalar, atol: Scalar, max_steps: int) -> None:
    """Raises a ValueError for numbers that are out of range, as in `density_flow`."""
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes={num_probes} must be at least 1, or None for an exact trace")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not isinstance(value, jax.core.Tracer) and not 0 < float(value) < 1:
            raise ValueError(f"{name}={value} must be between 0 and 1")
    if max_steps < 1:
        raise ValueError(f"max_steps={max_steps} must be at least 1")
