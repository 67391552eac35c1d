"""One step of optimisation as a pure function, for one device or, with an axis name, for many.

    params <- optimizer(grad mean_i loss(x_i))        ema <- d ema + (1 - d) params

This module takes functions and arrays; compiling them with `jax.jit` or `jax.pmap` is the caller's
choice.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from score_jax.data.transforms import prepare_pixels
from score_jax.devices import mean_over_devices
from score_jax.network import Model, as_model, with_label
from score_jax.noise import checked_sigmas, example_keys, uniform_levels
from score_jax.typing import Array, Float, Int, LossFn, Params, PrepareFn, Sigmas


class TrainState(NamedTuple):
    """Everything that training changes, and all that a checkpoint must hold.

    Attributes:
        step: Number of steps taken, int32.
        params: Parameters of the score network.
        ema_params: Their exponential moving average, used for sampling.
        opt_state: State of the optimizer.
    """

    step: Int[Array, ""]
    params: Params
    ema_params: Params
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """Scalars reported by one training step.

    Attributes:
        loss: Mean loss of the batch over all devices.
        grad_norm: Global norm of the gradient, before the optimizer clips it.
        nonfinite_level: Largest level index at which a loss was not finite; -1 if all were finite.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    nonfinite_level: Int[Array, ""]


class Trainer(NamedTuple):
    """Training as pure functions.

    Attributes:
        init: params -> TrainState at step 0.
        step: (key of the run, state, x, label=None, *, axis_name=None) -> (state, Metrics). `x` is
            this device's share of the batch, before `prepare`; `label` its labels, for a
            conditional network; `axis_name` the pmapped axis over which the batch is split.
        loss: (key, params, x, label=None, *, axis_name=None) -> (mean loss, nonfinite_level), the
            objective on held-out examples.
        model: The network as a pair of pure functions.
        sigmas: Noise levels, decreasing.
    """

    init: Callable[[Params], TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    loss: Callable[..., tuple[Array, Array]]
    model: Model
    sigmas: Sigmas


def make_trainer(
    model: Any,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    sigmas: Sigmas,
    *,
    ema_decay: float = 0.999,
    draw_levels: Callable[..., Any] = uniform_levels,
    prepare: PrepareFn = prepare_pixels,
    step_loss_fn: LossFn | None = None,
) -> Trainer:
    """Builds the training step of a score network.

    Args:
        model: A Flax linen module, or a pair (init, apply) of pure functions as in
            `network.Model`.
        loss_fn: Loss per example of a score function, such as `losses.dsm.annealed_dsm`.
        optimizer: An optax transformation.
        sigmas: Noise levels, decreasing, in the unit of the prepared data.
        ema_decay: Decay d of the moving average, in [0, 1), capped at (1 + t) / (10 + t) at step
            t. 0 disables averaging.
        draw_levels: Distribution of the training levels: `noise.uniform_levels`,
            `noise.stratified_levels` or a function like them.
        prepare: (keys, x, label) -> (x, label), the random part of data loading, one key per
            example. The default dequantises uint8 pixels to [0, 1) and leaves floats unchanged;
            `data.transforms.make_prepare` builds others.
        step_loss_fn: Loss that a step differentiates and reports, if it is not `loss_fn`: one with
            the same gradient on average, such as `annealed_dsm` with references.

    Returns:
        The trainer. Example i of a batch draws the same random numbers on any number of devices.

    Raises:
        ValueError: If ema_decay is out of range, sigmas do not decrease, or `model` is neither a
            Flax module nor a pair of functions.

    Reference: Technique 5 of Song & Ermon (2020) for the moving average.

    Example:
        >>> sigmas = sj.geometric_sigmas(1.0, 0.1, 5)
        >>> trainer = sj.make_trainer(
        ...     sj.MLP(sigmas=sigmas, hidden=(8,)), sj.annealed_dsm, optax.adam(1e-3), sigmas
        ... )
        >>> x = np.zeros((64, 2), np.float32)
        >>> state = sj.fit(trainer, x, num_steps=2, batch_size=16, progress=False)
        >>> int(state.step)
        2
    """
    model = as_model(model)
    sigmas = jnp.asarray(checked_sigmas(sigmas))
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay={ema_decay} must be in [0, 1)")

    def local_loss(loss_fn, key, params, x, label, axis_name):
        # Number the examples of the whole batch, so that keys do not depend on the devices.
        position = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        num_devices = 1 if axis_name is None else jax.lax.psum(1, axis_name)
        index = position * len(x) + jnp.arange(len(x))
        level_key, prepare_key, loss_key = jax.random.split(key, 3)
        batch_size = num_devices * len(x)
        level = draw_levels(level_key, index, batch_size=batch_size, num_levels=len(sigmas))

        # The loss of each example at its own level, and the largest level where it is not finite.
        x, label = prepare(example_keys(prepare_key, index), x, label)
        score_fn = with_label(lambda *arguments: model.apply(params, *arguments), label)
        losses = loss_fn(example_keys(loss_key, index), score_fn, x, level, sigmas)
        return jnp.mean(losses), jnp.max(jnp.where(jnp.isfinite(losses), -1, level))

    def over_devices(value, grads, nonfinite_level, axis_name):
        # Encode the level as a one-hot vector so that it can join the same pmean.
        levels = jnp.arange(len(sigmas))
        one_hot = (levels == nonfinite_level).astype(jnp.float32)
        value, grads, one_hot = mean_over_devices((value, grads, one_hot), axis_name)
        return value, grads, jnp.max(jnp.where(one_hot > 0, levels, -1))

    def loss(key, params, x, label=None, *, axis_name=None):
        value, nonfinite_level = local_loss(loss_fn, key, params, x, label, axis_name)
        value, _, nonfinite_level = over_devices(value, (), nonfinite_level, axis_name)
        return value, nonfinite_level

    def init(params):
        return TrainState(
            jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params)
        )

    def step(key, state, x, label=None, *, axis_name=None):
        step_key = jax.random.fold_in(key, state.step)

        # Loss and gradient of this device's share, then their mean over all devices.
        step_loss = functools.partial(local_loss, step_loss_fn or loss_fn)
        grad_fn = jax.value_and_grad(step_loss, argnums=1, has_aux=True)
        (value, nonfinite_level), grads = grad_fn(step_key, state.params, x, label, axis_name)
        value, grads, nonfinite_level = over_devices(value, grads, nonfinite_level, axis_name)

        # Update the parameters, then their average, whose decay is capped early in training.
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema_params = jax.tree.map(
            lambda ema, new: (ema + (1 - decay) * (new - ema)).astype(ema.dtype),
            state.ema_params,
            params,
        )
        state = TrainState(state.step + 1, params, ema_params, opt_state)
        return state, Metrics(value, optax.tree.norm(grads), nonfinite_level)

    return Trainer(init, step, loss, model, sigmas)
