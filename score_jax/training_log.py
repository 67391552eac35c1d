"""The losses and times of a training run, and the checks that they are finite."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.checkpoint import Checkpoints
from score_jax.data.dataset import batch_index
from score_jax.data.examples import Examples
from score_jax.debugging import first_not_finite, first_operation, is_debugging
from score_jax.training import Metrics, Trainer, TrainState

NORMS = 5
"""Number of gradient norms in an error."""


class Report(NamedTuple):
    """State of a run, as callbacks receive it.

    Attributes:
        step: Steps taken.
        num_steps: Steps of the whole run.
        state: Replicated training state; valid during the callback only, since the next step
            reuses its memory.
        losses: (step, mean training loss since the entry before), since this call of `fit`.
        held_out_losses: (step, held-out loss of the averaged parameters), since this call.
        grad_norm: Gradient norm of the last step.
        steps_per_second: Speed since the entry before the last in `losses`.
        compile_seconds: Time this call spent compiling.
        train_seconds: Time since then.
        stopping: True if training ends here, before its last step.
    """

    step: int
    num_steps: int
    state: TrainState
    losses: list[tuple[int, float]]
    held_out_losses: list[tuple[int, float]]
    grad_norm: float
    steps_per_second: float
    compile_seconds: float
    train_seconds: float
    stopping: bool = False


class Log:
    """The losses and times of one call of `fit`."""

    def __init__(self, trainer: Trainer, compile_seconds: float, checkpoints: Checkpoints | None):
        self._checkpoints = checkpoints
        self._trainer = trainer
        self._sigmas = np.asarray(trainer.sigmas)
        self.losses: list[tuple[int, float]] = []
        self.held_out_losses: list[tuple[int, float]] = []
        self.compile_seconds = compile_seconds
        # (metrics, number of valid steps) of each call since the last entry of `losses`.
        self.pending: list[tuple[Metrics, int]] = []
        self._grad_norm, self._steps_per_second = float("nan"), 0.0
        self._norms: list[float] = []  # Gradient norms of the last steps before `pending`.
        self._begun = self._since = time.monotonic()

    def add_losses(self, done: int) -> None:
        """Appends the mean loss since the last entry, all of which must be finite."""
        metrics = _concatenated(self.pending)
        self._check_metrics(metrics, done)
        self._norms = [*self._norms, *map(float, metrics.grad_norm[-NORMS:])][-NORMS:]
        self.losses.append((done, float(np.mean(metrics.loss))))
        self._grad_norm = float(metrics.grad_norm[-1])
        now = time.monotonic()
        self._steps_per_second = len(metrics.loss) / max(now - self._since, 1e-9)
        self._since = now
        self.pending = []

    def last_loss(self, metrics: Metrics) -> float:
        """The last mean loss, or that of the first step if there is none yet."""
        return self.losses[-1][1] if self.losses else float(np.asarray(metrics.loss)[0])

    def report(self, done: int, num_steps: int, state: TrainState, stopping: bool) -> Report:
        """The report for callbacks, after steps that must be finite."""
        if self.pending:
            self._check_metrics(_concatenated(self.pending), done)
        return Report(
            step=done,
            num_steps=num_steps,
            state=state,
            losses=self.losses,
            held_out_losses=self.held_out_losses,
            grad_norm=self._grad_norm,
            steps_per_second=self._steps_per_second,
            compile_seconds=self.compile_seconds,
            train_seconds=time.monotonic() - self._begun,
            stopping=stopping and done < num_steps,
        )

    @contextlib.contextmanager
    def naming_norms(self) -> Iterator[None]:
        """Adds the last gradient norms to errors that do not name them."""
        try:
            yield
        except FloatingPointError as error:
            if "gradient norms" in str(error):
                raise
            norms = [*self._norms]
            for metrics, number in self.pending:
                norms += map(float, np.asarray(metrics.grad_norm)[:number])
            raise FloatingPointError(f"{error}{norms_before(norms)}") from error

    def debugged(self, step_fn: Callable, train: Examples, seed: int, batch_size: int) -> Callable:
        """`step_fn`, or with `jax_debug_nans` one that repeats a step that is not finite.

        Args:
            step_fn: As returned by `compile_steps`, for one step per call.
            train: The training examples.
            seed: Seed of the run.
            batch_size: Examples per step.
        """
        if not is_debugging():
            return step_fn

        def step(key, state, arguments, number):
            before = jax.tree.map(np.asarray, state)
            state, metrics = step_fn(key, state, arguments, number)
            done = int(before.step) + 1
            try:
                self._check_metrics(_concatenated([*self.pending, (metrics, number)]), done)
                check_state(state, done, self._checkpoints)
            except FloatingPointError as error:
                index = batch_index(seed, done - 1, len(train.x), batch_size)
                examples = [jnp.asarray(array[index]) for array in train.arrays()]
                before = jax.tree.map(jnp.asarray, before)
                operation = first_operation(self._trainer.step, key, before, *examples)
                raise FloatingPointError(f"{operation}; {error}") from error
            return state, metrics

        return step

    def _check_metrics(self, metrics: Metrics, done: int) -> None:
        finite = np.isfinite(metrics.loss) & np.isfinite(metrics.grad_norm)
        if finite.all():
            return
        at = int(np.argmin(finite))
        step, level = done - len(finite) + 1 + at, int(metrics.nonfinite_level[at])
        what = "the gradient"
        if level >= 0:
            what = f"the loss at noise level {level} (sigma {self._sigmas[level]:.4g})"
        norms = [*self._norms, *map(float, metrics.grad_norm[:at])]
        message = f"{what} is not finite at step {step}{norms_before(norms)}"
        if self._checkpoints is not None:
            message = f"{message}; {self._checkpoints.kept()}"
        raise FloatingPointError(f"{message}: lower the learning rate, or clip the gradient")


def check_state(
    state: TrainState, step: int | None = None, checkpoints: Checkpoints | None = None
) -> None:
    """Checks that a training state is finite.

    Raises:
        ValueError: If it is not and was given by the caller, with `step` None.
        FloatingPointError: If training arrived at it after `step` steps.
    """
    name = first_not_finite(state)
    if name is None:
        return
    if step is None:
        raise ValueError(f"state.{name} is not finite: start from a sound state")
    kept = "nothing was saved" if checkpoints is None else checkpoints.kept()
    raise FloatingPointError(f"{name} is not finite at step {step}; {kept}")


def norms_before(norms: list[float]) -> str:
    """A clause about the gradient norms of the steps before an error; empty without any."""
    if not norms:
        return ""
    return f"; gradient norms before it: {', '.join(f'{norm:.3g}' for norm in norms[-NORMS:])}"


def _concatenated(pending: list[tuple[Metrics, int]]) -> Metrics:
    """The metrics of the steps of several calls, one array each."""
    parts = []
    for metrics, number in pending:
        parts.append(jax.tree.map(lambda values, n=number: np.asarray(values)[:n], metrics))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
