"""Sampling with a score function: chains in batches over all devices.

    start -> sampler(keys, score_fn, start, sigmas, ...) -> samples

Chain i draws from keys folded from (seed, i). Its random numbers therefore do not depend on the
batch size or the number of devices.
"""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.debugging import first_not_finite, first_operation, is_debugging, unchecked
from score_jax.devices import (
    check_divides,
    compile_pmapped,
    described,
    first_replica,
    merge,
    merge_second,
    replicate,
    split,
)
from score_jax.network import as_pytree, with_label
from score_jax.noise import (
    check_counts,
    check_seed,
    checked_sigmas,
    example_keys,
    run_keys,
    split_keys,
    standard_normal,
    standard_uniform,
)
from score_jax.progress import Progress, announce
from score_jax.samplers.consistent import ancestral_step_size, consistent_annealed_sampling
from score_jax.samplers.langevin import annealed_langevin
from score_jax.samplers.loop import Trajectory
from score_jax.schedule import step_size_for
from score_jax.typing import Array, Batch, JaxBatch, Keys, ObserveFn, OneKey, Sigmas

Start = Callable[[Keys, tuple[int, ...]], Batch]
"""(keys, shape) -> initial states [batch, *shape]."""


@dataclasses.dataclass(frozen=True)
class normal_start:  # noqa: N801 (a function of (keys, shape), equal for equal arguments)
    """Initial states `center + sigma z` with z ~ N(0, I).

    Attributes:
        sigma: Standard deviation, usually the first noise level.
        center: Mean, the same for every dimension.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> sj.sample(
        ...     score_fn, sigmas, number=4, shape=(2,), num_steps=2, start=sj.normal_start(1.0),
        ...     progress=False,
        ... ).shape
        (4, 2)
    """

    sigma: float
    center: float = 0.0

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> JaxBatch:
        """Draws [batch, *shape], one state per key."""
        return jnp.full((1, *shape), self.center) + self.sigma * standard_normal(keys, shape)


@dataclasses.dataclass(frozen=True)
class uniform_start:  # noqa: N801
    """Initial states uniform in [0, 1), as for the images of NCSN.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> sj.sample(
        ...     score_fn, sigmas, number=4, shape=(2,), num_steps=2, start=sj.uniform_start(),
        ...     progress=False,
        ... ).shape
        (4, 2)
    """

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> JaxBatch:
        """Draws [batch, *shape], one state per key."""
        return standard_uniform(keys, shape)


def default_step_size(sampler: Callable, sigmas: Sigmas, num_steps: int) -> float | None:
    """The step size that a sampler's own rule gives for these noise levels.

    Args:
        sampler: A sampler of this package or one like them.
        sigmas: Noise levels, decreasing and concrete; two or more.
        num_steps: Steps per level.

    Returns:
        The step size of ancestral sampling for `consistent_annealed_sampling`; otherwise that of
        technique 4, `schedule.step_size_for`. None for samplers without the argument `step_size`.

    Raises:
        ValueError: If there are fewer than two levels, or num_steps is less than 1.
    """
    if not takes_step_size(sampler):
        return None
    if sampler is consistent_annealed_sampling:
        return ancestral_step_size(sigmas, num_steps)
    return step_size_for(sigmas, num_steps)


def takes_step_size(sampler: Callable) -> bool:
    """True if a sampler has the argument `step_size`."""
    parameters = inspect.signature(sampler).parameters
    return "step_size" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def takes_observer(sampler: Callable) -> bool:
    """True if a sampler has the argument `observe`."""
    return "observe" in inspect.signature(sampler).parameters


def sample(
    score_fn: Callable[..., Array],
    sigmas: Sigmas,
    *,
    number: int,
    first: int = 0,
    shape: Sequence[int],
    num_steps: int = 10,
    step_size: float | None = None,
    sampler: Callable[..., Trajectory] = annealed_langevin,
    denoise: bool = True,
    start: Start | None = None,
    seed: int = 0,
    label: int | np.ndarray | None = None,
    condition: Any = None,
    observe: ObserveFn | None = None,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    num_snapshots: int = 0,
    callbacks: Sequence[Callable[[int, Trajectory], Mapping[str, float] | None]] = (),
    collect: bool = True,
    progress: bool = True,
) -> np.ndarray:
    """Draws samples with a score function, over all devices.

    Args:
        score_fn: (x, level) -> score, in 1/unit of the data. `network.score_fn` builds one from a
            network; calls with other parameters of the same network do not compile again.
        sigmas: Noise levels, decreasing, in the unit of the data.
        number: Number of samples.
        first: Index of the first chain, so that a set can be drawn in parts: chains first to
            first + number - 1 are those that a call with first=0 and more samples gives.
        shape: Shape of one sample.
        num_steps: Steps per noise level; for the samplers of `samplers.ode` and
            `samplers.predictor_corrector`, steps of the whole chain.
        step_size: Step size at the last level, in the square of the unit; None takes
            `default_step_size`. Only for samplers with this argument.
        sampler: Sampler with the signature of `samplers.langevin.annealed_langevin`, or without
            its `step_size`; `functools.partial` fixes further arguments.
        denoise: If True, end with one step to the posterior mean.
        start: (keys, shape) -> initial states; None draws from N(0, sigma_1^2 I). For images in
            [0, 1], NCSN uses `uniform_start()`.
        seed: Seed of the samples, in [0, 2**32).
        label: Class of all samples, or int [number]; `score_fn` is then
            (x, level, label) -> score.
        condition: Pytree of arrays [number, ...], such as measurements; `score_fn` is then
            (x, level, condition) -> score and receives the entries of its chains. Excludes
            `label`.
        observe: As in `samplers.loop.anneal`; the callbacks' trajectories hold its results. Equal
            functions are compiled once. Only for samplers with this argument.
        batch_size: Chains that run at once over all devices; None chooses at most 128.
        devices: Devices that share the chains; None takes all of them.
        num_snapshots: Number of intermediate states per chain in the callbacks' trajectories.
        callbacks: Called after each batch with the index of its first chain and its trajectory,
            as host arrays. The values that one returns are shown beside the progress.
        collect: If False, the samples reach the callbacks only, and none are returned.
        progress: If True, show progress and announce what is being compiled.

    Returns:
        float32 [number, *shape], or [0, *shape] without `collect`. Not clipped.

    Raises:
        ValueError: If arguments do not fit each other.
        FloatingPointError: If a chain is not finite; names the chain and the noise level.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> sj.sample(score_fn, sigmas, number=100, shape=(2,), num_steps=10, progress=False).shape
        (100, 2)
    """
    shape = tuple(int(length) for length in shape)
    check_counts(number=number)
    check_seed(seed)
    if not 0 <= first <= 2**31 - number:
        raise ValueError(f"first={first} must be at least 0 and first + number at most 2**31")
    if condition is not None:
        _check_condition(condition, label, number)
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    if step_size is not None and not takes_step_size(sampler):
        raise ValueError(f"step_size={step_size} cannot be used: the sampler takes no step size")
    if step_size is None:
        step_size = default_step_size(sampler, sigmas, num_steps)
    if start is None:
        start = normal_start(float(sigmas[0]))

    chains = Chains(
        sampler=sampler,
        start=start,
        shape=shape,
        sigmas=tuple(np.asarray(sigmas).tolist()),
        num_steps=num_steps,
        step_size=None if step_size is None else float(step_size),
        denoise=denoise,
        num_snapshots=num_snapshots,
        observe=observe,
    )
    return run_chains(
        chains,
        (run_keys(seed)["sample"], as_pytree(score_fn)),
        number,
        first=first,
        per_chain=_labels(label, number)
        if condition is None
        else jax.tree.map(np.asarray, condition),
        batch_size=batch_size,
        devices=devices,
        callbacks=callbacks,
        collect=collect,
        progress=progress,
    )


@dataclasses.dataclass(frozen=True)
class Chains:
    """A sampler with its settings, as a program for `run_chains`; equal for equal settings.

    Attributes:
        sampler: Sampler with the signature of `samplers.langevin.annealed_langevin`.
        start: (keys, shape) -> initial states.
        shape: Shape of one sample.
        sigmas: Noise levels, decreasing, in the unit of the data.
        num_steps: Steps per noise level.
        step_size: Step size at the last level, in the square of the unit; None for a sampler
            without one.
        denoise: If True, end with one step to the posterior mean.
        num_snapshots: Number of intermediate states to keep.
        observe: As in `samplers.loop.anneal`; None observes nothing.
    """

    sampler: Callable[..., Trajectory]
    start: Start
    shape: tuple[int, ...]
    sigmas: tuple[float, ...]
    num_steps: int
    step_size: float | None
    denoise: bool
    num_snapshots: int = 0
    observe: ObserveFn | None = None

    def __call__(self, shared: tuple[OneKey, Callable], own: tuple[Array, Any]):
        """Runs the chains of one device.

        Args:
            shared: Key from which chain i folds its keys, and the score function.
            own: Index of each chain, int [share], and the last argument of the score function:
                labels int [share], another condition, or None.
        """
        key, score_fn = shared
        index, condition = own
        start_keys, chain_keys = split_keys(example_keys(key, index))
        step_size = {} if self.step_size is None else {"step_size": self.step_size}
        observe = {} if self.observe is None else {"observe": self.observe}
        return self.sampler(
            chain_keys,
            with_label(score_fn, condition),
            self.start(start_keys, self.shape),
            jnp.asarray(self.sigmas),
            **step_size,
            num_steps=self.num_steps,
            denoise=self.denoise,
            num_snapshots=self.num_snapshots,
            **observe,
        )


def run_chains(
    program: Callable[[Any, tuple[Array, Any]], Trajectory],
    shared: Any,
    number: int,
    *,
    first: int = 0,
    per_chain: Any = None,
    batch_size: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    name: str = "sample",
    callbacks: Sequence[Callable[[int, Trajectory], Mapping[str, float] | None]] = (),
    collect: bool = True,
    progress: bool = True,
) -> np.ndarray:
    """Runs `number` chains in batches over all devices.

    Args:
        program: (shared, (index int [share], per_chain)) -> Trajectory, a pure function in which
            a chain depends on its own index and entries of `per_chain` alone. Calls with an equal
            function reuse its compiled form.
        shared: Pytree that every device receives.
        number: Number of chains.
        first: Index of the first chain.
        per_chain: Pytree of arrays [number, ...], of which a chain receives its own entries.
        batch_size: Chains that run at once over all devices; None chooses at most 128.
        devices: Devices that share the chains; None takes all of them.
        name: Name of the work in the progress line.
        callbacks: Called after each batch with the index of its first chain and its trajectory,
            as host arrays [batch, ...] without the chains that only fill up the last batch. The
            values that one returns are shown beside the progress.
        collect: If False, the final states reach the callbacks only, and none are returned.
        progress: If True, show progress and announce what is being compiled.

    Returns:
        Final states, [number, *shape], or [0, *shape] without `collect`.

    Raises:
        ValueError: If the devices do not divide batch_size.
        FloatingPointError: If a chain is not finite; names the chain and the noise level.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> score_fn = sj.gaussian_score_fn(jnp.zeros(2), jnp.ones(2), sigmas)
        >>> def program(_, share):
        ...     index, _ = share
        ...     keys = sj.example_keys(jax.random.key(0), index)
        ...     x = jnp.zeros((len(keys), 2))
        ...     return sj.annealed_langevin(keys, score_fn, x, sigmas, step_size=5e-3, num_steps=2)
        >>> sj.run_chains(program, None, 10, progress=False).shape
        (10, 2)
    """
    devices = tuple(devices or jax.devices())
    if batch_size is None:
        share = -(-min(number, 128) // len(devices))
        batch_size = share * len(devices)
    check_divides(batch_size, len(devices))

    def own(begin):
        # Surplus chains of the last batch repeat the entries of the last chain.
        index = np.arange(begin, begin + batch_size, dtype=np.int32)
        taken = np.minimum(index - first, number - 1)
        entries = (index, jax.tree.map(lambda array: array[taken], per_chain))
        return jax.tree.map(lambda array: split(array, devices), entries)

    shared = replicate(shared, devices)
    arguments = (shared, own(first))
    leaves, treedef = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    known = _program(program, devices, treedef, shapes)
    compiled = known.compiled(arguments, batch_size, progress)

    end, ends = first + number, []
    with Progress(end, name, "chain", first, shown=progress) as bar:
        for begin in range(first, end, batch_size):
            with unchecked():
                trajectory = compiled(shared, own(begin))
            # Chains that only fill up the last batch are dropped before they are checked.
            trajectory = _fetched(trajectory, min(batch_size, end - begin))
            _check_finite(trajectory, begin, program, (shared, per_chain, first))
            shown: dict[str, float] = {}
            for callback in callbacks:
                shown |= callback(begin, trajectory) or {}
            ends.append(trajectory.x if collect else trajectory.x[:0].copy())
            bar.update(min(begin + batch_size, end), **shown)
    return np.concatenate(ends)


@dataclasses.dataclass
class _Program:
    """A program for arguments of fixed shapes, compiled when it is first needed."""

    program: Callable
    devices: tuple[jax.Device, ...]
    executable: Callable | None = None

    def compiled(self, arguments: tuple, batch_size: int, progress: bool) -> Callable:
        """The compiled program; announces its compilation if `progress` is True."""
        if self.executable is None:
            where = f"batch of {batch_size} on {described(self.devices)}"
            announce(f"compiling the sampler ({where}) ...", progress)
            begun = time.monotonic()
            axes = (None, 0)
            self.executable = compile_pmapped(self.program, self.devices, arguments, axes, 0)
            announce(f"compiled in {time.monotonic() - begun:.1f} s", progress)
        return self.executable


@functools.lru_cache(maxsize=8)
def _program(program, devices, treedef, shapes) -> _Program:
    """The same object for equal arguments."""
    return _Program(program, devices)


def _fetched(trajectory: Trajectory, number: int) -> Trajectory:
    """The first `number` chains of a mapped trajectory, as host arrays."""
    x = merge(trajectory.x)[:number]
    snapshots: Any = np.moveaxis(merge_second(trajectory.snapshots)[:number], 1, 0)
    finite: Any = np.moveaxis(merge_second(trajectory.finite)[:number], 1, 0)
    observed = jax.tree.map(
        lambda leaf: np.moveaxis(merge_second(leaf)[:number], 1, 0), trajectory.observed
    )
    return Trajectory(x, snapshots, finite, observed)


def _check_finite(
    trajectory: Trajectory, begin: int, program: Callable, arguments: tuple[Any, Any, int]
) -> None:
    """Raises a FloatingPointError that names the first chain that is not finite.

    Args:
        trajectory: Chains, as host arrays.
        begin: Index of the first of them.
        program: As in `run_chains`.
        arguments: Its arguments `shared`, replicated, `per_chain` and `first`.
    """
    x = trajectory.x
    finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    if finite.all():
        return
    chain = int(np.argmin(finite))
    levels = trajectory.finite[:, chain]
    where = "the last denoising step"
    if not levels.all():
        where = _level_in_words(int(np.argmin(levels)), program, len(levels))
    message = f"chain {begin + chain} is not finite after {where}"

    # Parameters that are not finite need another remedy than unstable steps.
    shared, per_chain, first = arguments
    if first_not_finite(first_replica(shared)) is not None:
        raise FloatingPointError(f"{message}, because a parameter is not: take a sound checkpoint")
    if is_debugging():
        own = jax.tree.map(lambda array: array[begin + chain - first][None], per_chain)
        operation = _first_operation(program, first_replica(shared), own, begin + chain)
        message = f"{operation}; {message}"
    raise FloatingPointError(f"{message}: lower step_size, or train the network longer")


def _level_in_words(level: int, program: Callable, num_levels: int) -> str:
    """A noise level, with its sigma for samplers that walk through the program's own levels."""
    sigmas = getattr(program, "sigmas", ())
    walks = len(sigmas) == num_levels and takes_step_size(getattr(program, "sampler", len))
    return f"noise level {level} (sigma {sigmas[level]:.4g})" if walks else f"noise level {level}"


def _first_operation(program: Callable, shared: Any, own: Any, chain: int) -> str:
    """Repeats one chain, with entries [1, ...], to name the operation that gave its first NaN."""
    announce(f"repeats chain {chain} one operation at a time ...")
    index = jnp.asarray([chain], jnp.int32)
    return first_operation(program, shared, (index, jax.tree.map(jnp.asarray, own)))


def _check_condition(condition: Any, label: Any, number: int) -> None:
    """Raises a ValueError if a condition cannot be shared out among `number` chains."""
    if label is not None:
        raise ValueError("label and condition exclude each other: make the label a part of it")
    for leaf in jax.tree.leaves(condition):
        if np.ndim(leaf) == 0 or np.shape(leaf)[0] != number:
            raise ValueError(
                f"condition has an array {list(np.shape(leaf))}, but its arrays must have one "
                f"entry per chain: [{number}, ...]"
            )


def _labels(label: int | np.ndarray | None, number: int) -> np.ndarray | None:
    """Labels of the chains, int32 [number]; None without labels."""
    if label is None:
        return None
    label = np.asarray(label)
    if label.shape not in ((), (number,)) or label.dtype.kind not in "iu":
        raise ValueError(
            f"label is {label.dtype} {list(label.shape)}, but must be a whole number or an array "
            f"of whole numbers [{number}]"
        )
    return np.broadcast_to(label, (number,)).astype(np.int32)
