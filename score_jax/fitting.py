"""The training loop: from a trainer and an array of examples to a trained state.

    for every step:  batch <- examples[batch_index(seed, step)]
                     state, metrics <- pmap(trainer.step)(key, state, batch)

The batch of a step is a pure function of (seed, step) and the random numbers of an example one of
(seed, step, position in the batch). A run that was interrupted and resumed from a checkpoint
therefore continues with the same bits as one that was not.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.checkpoint import BestCheckpoints, Check, Checkpoints
from score_jax.data.dataset import batch_index
from score_jax.data.examples import Examples, placed, splits_of
from score_jax.data.stream import prefetch
from score_jax.debugging import is_debugging, unchecked
from score_jax.devices import (
    AXIS,
    Feed,
    check_agreement,
    check_divides,
    compile_pmapped,
    described,
    feed,
    first_replica,
    is_first_process,
    replicate,
)
from score_jax.noise import check_counts, check_seed, run_keys
from score_jax.progress import Progress, announce
from score_jax.records import RunIdentity
from score_jax.training import Metrics, Trainer, TrainState
from score_jax.training_log import Log, Report, check_state


def fit(
    trainer: Trainer,
    x: Any,
    *,
    num_steps: int,
    batch_size: int,
    seed: int = 0,
    label: np.ndarray | None = None,
    held_out: Any = None,
    held_out_label: np.ndarray | None = None,
    workdir: str | Path | None = None,
    devices: Sequence[jax.Device] | None = None,
    state: TrainState | None = None,
    steps_per_call: int = 10,
    log_every: int = 100,
    eval_every: int = 1000,
    eval_batches: int = 8,
    checkpoint_every: int = 1000,
    keep_checkpoints: int = 3,
    keep_steps: Sequence[int] = (),
    keep_best: int = 0,
    best_by: Callable[[Report], float] | None = None,
    device_megabytes: int = 1024,
    callbacks: Sequence[tuple[int, Callable[[Report], None]]] = (),
    progress: bool = True,
    stop: Callable[[], int] | None = None,
    metadata: Mapping[str, Any] | None = None,
    check: Check | None = None,
) -> TrainState:
    """Trains a score network on an array of examples, over all devices.

    With a `workdir`, checkpoints are written to `workdir/checkpoints` and training resumes from
    the newest sound one: a run that was killed ends with the bits of a run that was not. Without
    one, nothing is written. With `keep_best`, the states with the smallest values of a measure are
    written to `workdir/best` as well.

    Several processes that `jax.distributed` connects train together if all call this with the same
    arguments. Each reads its own part of every batch, and the first one writes; `workdir` must be
    a folder that all of them see.

    Args:
        trainer: Built by `training.make_trainer`.
        x: Examples [examples, *shape]: floating-point values, or uint8 pixels. May also be a
            `data.dataset.Dataset`, which brings its labels and held-out examples, or a
            `data.dataset.LazyImages`. Pixels that take fewer than 256 values need a trainer whose
            `prepare` is `make_prepare(num_values)`.
        num_steps: Steps of the whole run; a resumed run takes those that are missing.
        batch_size: Examples per step over all devices, a multiple of the number of devices.
        seed: Seed of the run, in [0, 2**32).
        label: Labels of the examples, int [examples], for a conditional network.
        held_out: Examples that are not trained on; if given, their loss is computed.
        held_out_label: Labels of the held-out examples.
        workdir: Folder of the run, or None to write nothing.
        devices: Devices that share the batch; None takes all of them.
        state: State to begin with if there is no checkpoint; None initialises one from the seed.
        steps_per_call: Steps that run in one XLA call.
        log_every: Steps between two entries of the training loss.
        eval_every: Steps between two held-out losses.
        eval_batches: Batches per held-out loss.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: Number of newest checkpoints to keep.
        keep_steps: Steps whose checkpoints are kept besides; multiples of checkpoint_every.
        keep_best: Number of best checkpoints to keep in `workdir/best`; 0 for none. The states at
            multiples of `eval_every` and after the last step are compared.
        best_by: Measure of a state, smaller is better, which is stored with the checkpoint; None
            takes the held-out loss of the averaged parameters.
        device_megabytes: Data sets up to this size are held by every device; larger ones are
            streamed from the host.
        callbacks: Pairs (every, function): the function receives a `Report` at multiples of
            `every`, after the last step and when training stops.
        progress: If True, show progress and announce what is being compiled.
        stop: Called between two XLA calls; once it returns True, or the number of a signal, the
            step is saved and `fit` returns. In several processes it must return the same at the
            same step.
        metadata: JSON values to store with every checkpoint.
        check: Called with the step and the metadata of a checkpoint before it is used; raises a
            ValueError for one that belongs to another run.

    Returns:
        The state after the last step, on the first device. If `stop` ended training early,
        `state.step` is below `num_steps`.

    Raises:
        ValueError: If arguments do not fit each other, or the checkpoints in `workdir` do not fit
            them.
        FloatingPointError: If a loss, a gradient or a parameter is not finite; names the step,
            the noise level and the gradient norms before it. Earlier checkpoints are kept. With
            JAX's switch `jax_debug_nans`, steps run one by one and the error also names the
            operation that gave the first NaN.
        OSError: If `workdir` cannot be written, or an example cannot be read. If the first
            process, or the only one, cannot read it, the steps before are saved; if another one
            cannot, the run continues from the last checkpoint before.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> trainer = sj.make_trainer(
        ...     sj.MLP(sigmas=sigmas, hidden=(8,)), sj.annealed_dsm, optax.adam(1e-3), sigmas
        ... )
        >>> x = np.zeros((64, 2), np.float32)
        >>> state = sj.fit(trainer, x, num_steps=2, batch_size=16, seed=0, progress=False)
        >>> score_fn = sj.score_fn(trainer.model, state.ema_params)
    """
    devices = tuple(devices or jax.devices())
    train, held_out = splits_of(x, label, held_out, held_out_label)
    run = RunIdentity(workdir) if workdir is not None else None
    best = _best_callbacks(run, keep_best, best_by, held_out, eval_every, metadata)
    callbacks = [*callbacks, *best]
    intervals = {
        "log_every": log_every,
        "eval_every": eval_every,
        "checkpoint_every": checkpoint_every,
        **{f"callbacks[{i}]": every for i, (every, _) in enumerate(callbacks)},
    }
    check_counts(
        num_steps=num_steps,
        batch_size=batch_size,
        steps_per_call=steps_per_call,
        eval_batches=eval_batches,
        keep_checkpoints=keep_checkpoints,
        **intervals,
    )
    check_seed(seed)
    check_divides(batch_size, len(devices))

    # Resume from the newest checkpoint, or initialise the parameters from the seed.
    checkpoints = _newest_checkpoints(run, keep_checkpoints, keep_steps)
    facts = _facts(trainer, train, seed, batch_size)
    metadata = {**(metadata or {}), "run": facts}
    state = _initial_state(trainer, train, seed, state, checkpoints, facts, num_steps, check)
    first = done = int(state.step)
    check_agreement([first, num_steps, facts], "the checkpoints or the arguments")
    if first == num_steps:
        announce(f"training is complete ({num_steps} steps)", progress)
        return state
    if first:
        announce(f"continues from the checkpoint of step {first}", progress)

    # Compile the training step and the held-out loss.
    train, held_out, resident = placed(train, held_out, device_megabytes)
    source, state = feed(train.arrays(), devices, resident), replicate(state, devices)
    begun = _announce_compiling(batch_size, devices, progress)
    steps_per_call = 1 if is_debugging() else steps_per_call
    step_fn = compile_steps(trainer, source, state, devices, batch_size, steps_per_call)
    held_out_loss = _held_out_loss_fn(
        trainer, held_out, resident, state, devices, batch_size, seed, eval_batches
    )
    log = Log(trainer, time.monotonic() - begun, checkpoints)
    step_fn = log.debugged(step_fn, train, seed, batch_size)
    announce(f"compiled in {log.compile_seconds:.1f} s", progress)
    key = run_keys(seed)["train"]
    steps = range(first, num_steps)
    batches = _batches(source, seed, steps, len(train.x), batch_size, steps_per_call)
    with Progress(num_steps, "train", "step", first, shown=progress) as bar, log.naming_norms():
        stopping = False
        while done < num_steps and not stopping:
            # Run up to the next step at which something is due, in one XLA call.
            ahead = _steps_ahead(done, num_steps, steps_per_call, intervals.values())
            with _keeping_steps(checkpoints, log, done, state, metadata):
                arguments = _stacked(batches, ahead, steps_per_call)
            state, metrics = step_fn(key, state, *arguments)
            done += ahead
            log.pending.append((metrics, ahead))
            if devices[0].platform == "cpu":
                # Collectives that pile up on the CPU deadlock in XLA.
                jax.block_until_ready(metrics)

            # Read `stop` once, so that all actions below see the same value.
            stopping = stop is not None and bool(stop())
            last = stopping or done == num_steps
            due = {name: last or done % every == 0 for name, every in intervals.items()}
            if due["log_every"] or due["checkpoint_every"]:
                log.add_losses(done)
            if due["eval_every"] and held_out_loss is not None:
                log.held_out_losses.append((done, held_out_loss(state.ema_params)))
            if due["checkpoint_every"] and checkpoints is not None and is_first_process():
                checkpoints.save(done, state, metadata)
            for i, (_, callback) in enumerate(callbacks):
                if due[f"callbacks[{i}]"]:
                    callback(log.report(done, num_steps, state, stopping))
            bar.update(done, loss=log.last_loss(metrics))
    batches.close()
    return _finished(state, done, checkpoints)


def _finished(state: TrainState, done: int, checkpoints: Checkpoints | None) -> TrainState:
    """The state on the first device, once everything is on disk."""
    state = first_replica(state)
    if checkpoints is None:
        check_state(state, done)
    else:
        checkpoints.wait()
    return state


def _announce_compiling(batch_size: int, devices: Sequence[jax.Device], progress: bool) -> float:
    """Announces that the training step is compiled; the time on the clock."""
    where = f"batch of {batch_size} on {described(devices)}"
    announce(f"compiling the training step ({where}) ...", progress)
    return time.monotonic()


def compile_steps(
    trainer: Trainer,
    source: Feed,
    state: TrainState,
    devices: Sequence[jax.Device],
    batch_size: int,
    steps_per_call: int,
) -> Callable:
    """Compiles several training steps as one program over all devices.

    Args:
        trainer: The trainer.
        source: Feed of the training examples.
        state: Replicated training state.
        devices: Devices that share the batch.
        batch_size: Examples per step over all devices.
        steps_per_call: Largest number of steps in one call.

    Returns:
        (key, state, arguments, number of steps) -> (state, metrics of each step). The arguments
        are mapped arrays [devices, steps per call, ...]; the state is donated. The attribute
        `compiled` is the compiled program itself.
    """

    def steps(fixed, state, arguments, number):
        key, resident = fixed

        def one_step(i, carry):
            state, metrics = carry
            batch = [jax.lax.dynamic_index_in_dim(array, i, keepdims=False) for array in arguments]
            x, *label = source.take(resident, batch)
            state, new = trainer.step(key, state, x, *label, axis_name=AXIS)
            store = lambda every, own: every.at[i].set(own.astype(every.dtype))  # noqa: E731
            return state, jax.tree.map(store, metrics, new)

        # Steps that are not run leave zeros.
        types = Metrics(loss=float, grad_norm=float, nonfinite_level=jnp.int32)
        empty = jax.tree.map(lambda dtype: jnp.zeros(steps_per_call, dtype), types)
        return jax.lax.fori_loop(0, number, one_step, (state, empty))

    axes = (None, None, 0, None)
    example = source.fetch(np.zeros(batch_size, np.int32))
    arguments = tuple(np.stack([array] * steps_per_call, axis=1) for array in example)
    fixed = (jax.random.key(0), source.resident)
    call = (fixed, state, arguments, np.int32(1))
    with unchecked():
        compiled = compile_pmapped(steps, devices, call, axes, None, donate=(1,))

    def run(key, state, arguments, number):
        with unchecked():
            return compiled((key, source.resident), state, arguments, np.int32(number))

    program: Any = run
    program.compiled = compiled
    return program


def initial_params(trainer: Trainer, x: Any, label: Any = None, seed: int = 0) -> Any:
    """Initial parameters of the trainer's network, for examples like the first of `x`.

    Args:
        trainer: The trainer.
        x: Examples as stored, [examples, *shape].
        label: Their labels, for a conditional network.
        seed: Seed of the run.
    """
    example = jnp.zeros((1, *x.shape[1:]), jnp.float32)
    level = jnp.zeros(1, jnp.int32)
    arguments = (example, level) if label is None else (example, level, level)
    return jax.jit(trainer.model.init)(run_keys(seed)["init"], *arguments)


def _newest_checkpoints(
    run: RunIdentity | None, keep: int, keep_steps: Sequence[int]
) -> Checkpoints | None:
    """The checkpoints from which a run is resumed; None for a run that writes nothing."""
    if run is None:
        return None
    return Checkpoints(run.file.parent / "checkpoints", keep, run, keep_steps)


def _best_callbacks(run, keep_best, best_by, held_out, eval_every, metadata) -> list:
    """The callback that saves the best states, if any are kept; takes the arguments of `fit`.

    Raises:
        ValueError: If keep_best is no count, or there is no measure.
    """
    check_counts(0, keep_best=keep_best)
    if keep_best and best_by is None and held_out is None:
        raise ValueError(
            f"keep_best={keep_best} needs a measure: give held_out examples, or best_by"
        )
    if run is None or not keep_best:
        return []
    return [(eval_every, _KeepBest(run, keep_best, best_by, eval_every, metadata))]


class _KeepBest:
    """The callback that saves a state if its measure is among the smallest."""

    def __init__(
        self,
        run: RunIdentity,
        keep_best: int,
        best_by: Callable[[Report], float] | None,
        eval_every: int,
        metadata: Mapping[str, Any] | None,
    ):
        measure = "held_out_loss"
        if best_by is not None:
            measure = getattr(best_by, "__name__", type(best_by).__name__)
        self._checkpoints = BestCheckpoints(run.file.parent / "best", keep_best, measure, run)
        self._best_by = best_by
        self._eval_every = eval_every
        self._metadata = metadata

    def __call__(self, report: Report) -> None:
        # A run that is stopped at another step must keep the same states as one that is not.
        if report.step % self._eval_every and report.step != report.num_steps:
            return
        value = report.held_out_losses[-1][1] if report.held_out_losses else float("nan")
        if self._best_by is not None:
            value = float(self._best_by(report))
        if is_first_process():
            self._checkpoints.offer(report.step, value, report.state, self._metadata)
            self._checkpoints.wait()


def _facts(trainer: Trainer, train: Examples, seed: int, batch_size: int) -> dict[str, Any]:
    """Facts on which the batches and the objective of a run depend, stored in its checkpoints."""
    return {
        "seed": int(seed),
        "batch_size": int(batch_size),
        "num_examples": int(train.x.shape[0]),
        "shape": [int(length) for length in train.x.shape[1:]],
        "sigmas": [float(sigma) for sigma in np.asarray(trainer.sigmas)],
    }


def _initial_state(
    trainer, train, seed, state, checkpoints: Checkpoints | None, facts, num_steps, check
) -> TrainState:
    """The state of the newest checkpoint; without one, `state` or a new state at step 0."""
    where = "state has"
    if checkpoints is not None and checkpoints.steps():
        where = f"{checkpoints.folder.parent} has"
        like = jax.eval_shape(
            lambda: trainer.init(initial_params(trainer, train.x, train.label, seed))
        )

        def check_all(
            step: int, stored: Mapping[str, Any], checkpoints: Checkpoints = checkpoints
        ) -> None:
            _check_same_run(checkpoints, stored, facts)
            if check is not None:
                check(step, stored)

        restored: Any = checkpoints.restore(like, check=check_all)
        state = jax.tree.map(jnp.asarray, restored[1])
    elif state is None:
        state = trainer.init(initial_params(trainer, train.x, train.label, seed))
    else:
        check_state(state)
    if int(state.step) > num_steps:
        raise ValueError(
            f"{where} been trained for {int(state.step)} steps, more than num_steps={num_steps}: "
            "ask for more steps, or choose another workdir"
        )
    return state


def _check_same_run(checkpoints: Checkpoints, stored: Mapping[str, Any], facts) -> None:
    """Raises a ValueError if a checkpoint was written with other data or another seed."""
    known = stored.get("run", {})
    for name, value in facts.items():
        if name in known and known[name] != value:
            raise ValueError(
                f"the checkpoints in {checkpoints.folder} belong to another run: {name} is "
                f"{known[name]} there and {value} here; choose another workdir"
            )


def _batches(
    source: Feed, seed: int, steps: range, num_examples: int, batch_size: int, steps_per_call: int
) -> Generator:
    """The mapped arguments of each step; threads fetch streamed examples of one call ahead."""

    def batch(step):
        return source.fetch(batch_index(seed, step, num_examples, batch_size))

    if source.resident:
        return (batch(step) for step in steps)
    return prefetch(batch, steps, ahead=max(2, steps_per_call))


def _steps_ahead(done: int, num_steps: int, steps_per_call: int, intervals) -> int:
    """Number of steps until something is due, at most `steps_per_call`."""
    to_next = [every - done % every for every in intervals]
    return min([steps_per_call, num_steps - done, *to_next])


@contextlib.contextmanager
def _keeping_steps(
    checkpoints: Checkpoints | None, log: Log, done: int, state: TrainState, metadata: Any
) -> Iterator[None]:
    """Saves the steps that this call has taken if the block cannot read the data."""
    try:
        yield
    except (OSError, ValueError):
        first = is_first_process()
        if first and checkpoints is not None and (log.pending or log.losses):
            if log.pending:
                log.add_losses(done)
            checkpoints.save(done, state, metadata)
            checkpoints.wait()
        raise


def _stacked(batches: Generator, ahead: int, steps_per_call: int):
    """The arguments of the next `ahead` steps, padded to the compiled number; and that number."""
    taken = [next(batches) for _ in range(ahead)]
    taken += [taken[-1]] * (steps_per_call - ahead)
    return tuple(np.stack(arrays, axis=1) for arrays in zip(*taken, strict=True)), ahead


def _held_out_loss_fn(
    trainer, held_out: Examples | None, resident, state, devices, batch_size, seed, eval_batches
) -> Callable[[Any], float] | None:
    """params -> mean held-out loss, always over the same examples, levels and noise.

    None without held-out examples.
    """
    if held_out is None:
        return None
    source = feed(held_out.arrays(), devices, resident)

    def loss(fixed, params, arguments):
        key, resident = fixed
        x, *label = source.take(resident, arguments)
        return trainer.loss(key, params, x, *label, axis_name=AXIS)[0]

    key = run_keys(seed)["evaluate"]
    axes = (None, None, 0)
    example = source.fetch(np.zeros(batch_size, np.int32))
    arguments = ((key, source.resident), state.ema_params, example)
    program = compile_pmapped(loss, devices, arguments, axes, None)

    def held_out_loss(params) -> float:
        losses = []
        for k in range(eval_batches):
            index = batch_index(seed, k, len(held_out.x), batch_size)
            fixed = (jax.random.fold_in(key, k), source.resident)
            losses.append(float(program(fixed, params, source.fetch(index))))
        return float(np.mean(losses))

    return held_out_loss
