"""One step of optimisation as a pure function, for one device or, with an axis name, for many.

    params <- optimizer(grad mean_i loss(x_i))        ema <- d ema + (1 - d) params

Knows nothing of Flax, configs, files or how it is compiled: `jax.jit` and `jax.pmap` are the caller's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from score_jax.noise import example_keys, uniform_levels
from score_jax.typing import Array, Float, Int, LossFn, OneKey, Params, Sigmas


class TrainState(NamedTuple):
    """What training changes, and all that a checkpoint must hold.

    Attributes:
        step: Steps taken, int32.
        params: Parameters of the score network.
        ema_params: Their exponential moving average, with which one samples.
        opt_state: The optimizer's own state.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """What a step tells.

    Attributes:
        loss: Mean loss of the batch over all devices.
        grad_norm: Global norm of the gradient, before clipping.
        nonfinite_level: The highest level index at which a loss was not finite; -1 if all were.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    nonfinite_level: Int[Array, ""]


class Trainer(NamedTuple):
    """Training as three pure functions.

    Attributes:
        init: params -> TrainState at step 0.
        step: (key of the run, state, x) -> (state, Metrics); x is this device's share of the batch, before `prepare`. A fourth
            argument, the labels of x, goes on to `prepare` and the network.
        loss: (key, params, x) -> (mean loss, nonfinite_level); what `step` differentiates. Labels as there.
    """

    init: Callable[[Params], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    loss: Callable[..., tuple[Array, Array]]


def take_steps(
    step: Callable[..., tuple[TrainState, Metrics]],
    key: OneKey,
    state: TrainState,
    batches: Sequence[Array],
    number: Int[Array, ""],
) -> tuple[TrainState, Metrics]:
    """Several steps as one program, whatever their number: one call, and what they need of memory taken from the system once.

    Args:
        step: As of a Trainer.
        key: The key of the run.
        state: From which to start.
        batches: What each step takes after its state, arrays [most steps, ...].
        number: How many steps to take, at most as many as there are batches.
    Returns:
        The state afterwards, and the metrics of each step, [most steps]; those of steps not taken are 0.
    """

    def batch_of(i):
        return [jax.lax.dynamic_index_in_dim(array, i, keepdims=False) for array in batches]

    def one(i, carry):
        state, metrics = carry
        state, new = step(key, state, *batch_of(i))
        return state, jax.tree.map(lambda every, own: every.at[i].set(own), metrics, new)

    shape = jax.eval_shape(step, key, state, *batch_of(0))[1]
    metrics = jax.tree.map(lambda leaf: jnp.zeros((len(batches[0]), *leaf.shape), leaf.dtype), shape)
    return jax.lax.fori_loop(0, number, one, (state, metrics))


def make_trainer(
    apply: Callable[..., Array],
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    sigmas: Sigmas,
    *,
    prepare: Callable[..., Array | tuple[Array, ...]] = lambda keys, *batch: batch,
    draw_levels: Callable[..., Array] = uniform_levels,
    ema_decay: float = 0.999,
    axis_name: str | None = None,
) -> Trainer:
    """Builds the training step of a score network.

    Args:
        apply: (params, x, level) -> score, or (params, x, level, label) -> score if steps are given labels.
        loss_fn: Losses per example of a score function.
        optimizer: Any optax transformation.
        sigmas: Noise levels, decreasing.
        prepare: (keys, x) -> x, or (keys, x, label) -> (x, label), the random part of data loading (dequantisation, flips), one key
            per example.
        draw_levels: Like `noise.uniform_levels`.
        ema_decay: d above; at step t at most (1 + t) / (10 + t), so that the start is forgotten in short runs, too.
        axis_name: Name of the pmapped axis over which the batch is split, if it is.
    Returns:
        The trainer. Example i of the global batch draws the same numbers on any number of devices.
    Reference: NCSNv2's technique 5 for the moving average.
    """

    def mean_over_devices(tree):
        if axis_name is None:
            return tree
        # Small leaves in one message between devices, not one each; a large one costs more to lay beside the others.
        leaves, treedef = jax.tree.flatten(tree)
        small = {i: leaf for i, leaf in enumerate(leaves) if leaf.size <= 2**15}
        large = {i: leaf for i, leaf in enumerate(leaves) if i not in small}
        flat, unflatten = ravel_pytree(small)
        flat, large = jax.lax.pmean((flat, large), axis_name)
        means = unflatten(flat) | large
        return treedef.unflatten(means[i] for i in range(len(leaves)))

    def over_devices(value, grads, nonfinite_level):
        # The highest level travels as one of many marks, so that it needs no message of its own.
        levels = jnp.arange(len(sigmas))
        value, grads, marks = mean_over_devices((value, grads, (levels == nonfinite_level).astype(jnp.float32)))
        return value, grads, jnp.max(jnp.where(marks > 0, levels, -1))

    def local_loss(key, params, x, *label):
        position, devices = (0, 1) if axis_name is None else (jax.lax.axis_index(axis_name), jax.lax.psum(1, axis_name))
        index = position * len(x) + jnp.arange(len(x))
        level_key, prepare_key, loss_key = jax.random.split(key, 3)
        level = draw_levels(level_key, index, batch_size=devices * len(x), num_levels=len(sigmas))
        prepared = prepare(example_keys(prepare_key, index), x, *label)
        x, *label = prepared if isinstance(prepared, tuple) else (prepared, *label)

        def score_fn(perturbed, level):
            return apply(params, perturbed, level, *label)

        losses = loss_fn(example_keys(loss_key, index), score_fn, x, level, sigmas)
        return jnp.mean(losses), jnp.max(jnp.where(jnp.isfinite(losses), -1, level))

    def loss(key, params, x, *label):
        value, nonfinite_level = local_loss(key, params, x, *label)
        value, _, nonfinite_level = over_devices(value, (), nonfinite_level)
        return value, nonfinite_level

    def init(params):
        return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    def step(key, state, x, *label):
        step_key = jax.random.fold_in(key, state.step)
        grad_fn = jax.value_and_grad(local_loss, argnums=1, has_aux=True)
        (value, nonfinite_level), grads = grad_fn(step_key, state.params, x, *label)
        value, grads, nonfinite_level = over_devices(value, grads, nonfinite_level)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = jax.tree.map(lambda ema, new: ema + (1 - decay) * (new - ema), state.ema_params, params)
        return TrainState(state.step + 1, params, ema_params, opt_state), Metrics(value, optax.tree.norm(grads), nonfinite_level)

    return Trainer(init, step, loss)
