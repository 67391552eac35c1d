"""Log densities of many examples, over all devices, with their errors."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.data.transforms import prepare_pixels
from score_jax.devices import check_divides, feed, merge, pmap, replicate, split
from score_jax.likelihood import Moment, check_prior, check_solver, density_flow
from score_jax.network import as_pytree
from score_jax.noise import example_keys, run_keys
from score_jax.progress import Progress, announce
from score_jax.typing import Array, PrepareFn, Sigmas

LOOSER = 10.0
"""Ratio of the tolerances of the second run, which estimates the solver's error."""


class Likelihood(NamedTuple):
    """Log densities in nats, and the errors of their mean.

    Attributes:
        log_density: Log density of each example, float64 [examples].
        num_evaluations: Evaluations of the score for each example, int [examples].
        standard_error: Standard error of the mean over examples. It includes the error of the
            trace estimator, whose probes differ between examples.
        trace_error: The part of it that is due to the trace estimator: from the variance over the
            probes of an example. 0 for an exact trace, NaN for a single probe.
        solver_error: Mean absolute difference, over the first batch, to a run with tolerances ten
            times larger: an estimate of that run's error, above the error of this one.
    """

    log_density: np.ndarray
    num_evaluations: np.ndarray
    standard_error: float
    trace_error: float
    solver_error: float


def log_likelihood(
    score_fn: Callable[..., Array],
    x: Any,
    sigmas: Sigmas | Sequence[float],
    *,
    label: np.ndarray | None = None,
    prepare: PrepareFn = prepare_pixels,
    log_volume: Callable[[Array], Array] | None = None,
    num_probes: int | None = None,
    mean: Moment | None = None,
    variance: Moment | None = None,
    prior_log_density: Callable[[Array], Array] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
    seed: int = 0,
    batch_size: int = 128,
    devices: Sequence[jax.Device] | None = None,
    device_megabytes: int = 1024,
    progress: bool = True,
) -> Likelihood:
    """The log density of every example by the probability-flow ODE, over all devices.

    Args:
        score_fn: (x, level) -> score; (x, level, label) -> score if `label` is given.
        x: Examples as stored, [examples, *shape], an array or lazy images.
        sigmas: Noise levels, decreasing, two or more.
        label: Labels of the examples, int [examples]; densities are then those given the label.
        prepare: (keys, x, label) -> (x, label), as in `training.make_trainer`. The default
            dequantises uint8 pixels, as it does for training.
        log_volume: Prepared x -> [batch], added to the log densities: the log determinant of a
            transform in `prepare`, for densities of the data before it.
        num_probes: Number of probes per example; None computes the trace exactly.
        mean: Mean of the prepared data, for the prior of `likelihood.density_flow`.
        variance: Variance of the prepared data in each dimension.
        prior_log_density: Log density of another prior.
        rtol: Relative tolerance of the solver.
        atol: Absolute tolerance of the solver.
        max_steps: Largest number of steps per example.
        seed: Seed of dequantisation and probes, in [0, 2**32).
        batch_size: Examples that are solved at once, a multiple of the number of devices.
        devices: Devices that share a batch; None takes all of them.
        device_megabytes: Data sets up to this size are held by every device.
        progress: If True, show progress and announce what is being compiled.

    Returns:
        Log densities with their errors. An example's result depends on (seed, index of the
        example) alone, up to rounding.

    Raises:
        ValueError: If the devices do not divide batch_size, and as `likelihood.density_flow`.
        FloatingPointError: If the solver does not finish for an example; names it.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> x = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
        >>> found = sj.log_likelihood(score_fn, x, sigmas, progress=False)
        >>> found.log_density.shape
        (16,)
    """
    devices = tuple(devices or jax.devices())
    check_divides(batch_size, len(devices))
    check_solver(num_probes, rtol, atol, max_steps)
    check_prior(prior_log_density, mean, variance, x.shape[1:])
    number = x.shape[0]
    fits = x.nbytes <= device_megabytes * 1_000_000
    stored = x[:] if fits else x
    arrays = (stored,) if label is None else (stored, np.asarray(label))
    source = feed(arrays, devices, resident=fits)
    program = Densities(
        sigmas=tuple(np.asarray(sigmas).tolist()),
        prepare=prepare,
        log_volume=log_volume,
        num_probes=num_probes,
        prior_log_density=prior_log_density,
        max_steps=max_steps,
    )
    moments = {"mean": mean, "variance": variance}
    solve = _mapped(program, devices)
    shared = (replicate(as_pytree(score_fn), devices), source.resident, moments)

    def solved(first, looser=1.0):
        # The last batch is filled up with examples from the beginning.
        index = first + np.arange(batch_size)
        tolerances = {"rtol": np.float32(looser * rtol), "atol": np.float32(looser * atol)}
        fixed = (run_keys(seed)["evaluate"], *shared, tolerances)
        found = solve(fixed, split(index, devices), source.fetch(index % number))
        densities, evaluations = (merge(array)[: number - first] for array in found)
        _check_finite(densities, first, max_steps)
        return densities.astype(np.float64), evaluations

    announce("compiling the solver of the probability-flow ODE ...", progress)
    found = []
    with Progress(number, "likelihood", "example", shown=progress) as bar:
        for first in range(0, number, batch_size):
            found.append(solved(first))
            bar.update(min(first + batch_size, number))
    loose, _ = solved(0, LOOSER)
    log_density, evaluations = map(np.concatenate, zip(*found, strict=True))
    likelihood = _summary(log_density, evaluations, loose)
    return likelihood if num_probes else likelihood._replace(trace_error=0.0)


@dataclasses.dataclass(frozen=True)
class Densities:
    """The log densities of one device's examples, as a program; equal for equal settings.

    Attributes:
        sigmas: Noise levels, decreasing.
        prepare: (keys, x, label) -> (x, label).
        log_volume: Prepared x -> [batch], added to the log densities; None adds nothing.
        num_probes: Number of probes per example; None for an exact trace.
        prior_log_density: Log density of the prior; None for a Gaussian.
        max_steps: Largest number of steps per example.
    """

    sigmas: tuple[float, ...]
    prepare: PrepareFn
    log_volume: Callable[[Array], Array] | None
    num_probes: int | None
    prior_log_density: Callable[[Array], Array] | None
    max_steps: int

    def __call__(self, fixed: tuple, index: Array, arguments: tuple) -> tuple[Array, Array]:
        """Log densities by each probe, [share, probes], and numbers of evaluations, [share].

        Args:
            fixed: Key, score function, resident examples, moments of the prior and tolerances.
            index: Index of each example, int [share].
            arguments: Those of the examples, as `devices.feed` fetches them.
        """
        key, score_fn, resident, moments, tolerances = fixed
        prepare_key, probe_key = jax.random.split(key)
        x, *rest = [array[arguments[0]] for array in resident] or arguments
        x, label = self.prepare(example_keys(prepare_key, index), x, rest[0] if rest else None)
        flow = density_flow(
            example_keys(probe_key, index),
            score_fn,
            x,
            jnp.asarray(self.sigmas),
            condition=label,
            num_probes=self.num_probes,
            prior_log_density=self.prior_log_density,
            max_steps=self.max_steps,
            **moments,
            **tolerances,
        )
        volume = jnp.zeros(len(x)) if self.log_volume is None else self.log_volume(x)
        return flow.probe_log_density + volume[:, None], flow.num_evaluations


@functools.lru_cache(maxsize=8)
def _mapped(program: Densities, devices: tuple[jax.Device, ...]) -> Callable:
    """The pmapped program; the same object for equal arguments, which compiles once."""
    return pmap(program, devices, (None, 0, 0), 0)


def _check_finite(densities: np.ndarray, first: int, max_steps: int) -> None:
    """Raises a FloatingPointError that names the first example without a log density."""
    finite = np.isfinite(densities).all(axis=1)
    if not finite.all():
        raise FloatingPointError(
            f"the solver did not finish example {first + int(np.argmin(finite))} in max_steps="
            f"{max_steps} steps: train the network longer, or raise max_steps or the tolerances"
        )


def _summary(densities: np.ndarray, evaluations: np.ndarray, loose: np.ndarray) -> Likelihood:
    """The result, from log densities [examples, probes] and those of the looser first batch."""
    number, num_probes = densities.shape
    log_density = densities.mean(axis=1)
    standard_error = trace_error = np.nan
    if number > 1:
        standard_error = log_density.std(ddof=1) / np.sqrt(number)
    if num_probes > 1:
        trace_error = np.sqrt(densities.var(axis=1, ddof=1).sum() / num_probes) / number
    change = loose.mean(axis=1) - log_density[: len(loose)]
    return Likelihood(
        log_density=log_density,
        num_evaluations=evaluations,
        standard_error=float(standard_error),
        trace_error=float(trace_error),
        solver_error=float(np.abs(change).mean()),
    )
