"""Objects that the settings of a config name: data, network, objective, optimizer, sampler.

Configs end here: the functions called with these objects take arrays, numbers and functions.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from score_jax.cli.memory import host_memory
from score_jax.cli.names import arguments_of, calling, naming, resolve, signature
from score_jax.cli.table import (
    LEVELS,
    LOSSES,
    MODELS,
    SAMPLERS,
    SETTINGS,
    SOURCES,
    WHOLE_CHAIN,
)
from score_jax.data.dataset import Dataset, in_memory
from score_jax.data.files import ImageTransform
from score_jax.data.transforms import logit, make_prepare
from score_jax.network import as_model
from score_jax.progress import announce
from score_jax.sampling import default_step_size, normal_start, takes_step_size, uniform_start
from score_jax.training import Trainer, TrainState, make_trainer
from score_jax.typing import Array, Keys, LossFn

IMAGE_MODELS = ("ncsn", "ncsnv2", "unet")
NEEDED = {"npz": "path", "idx": "path", "folder": "path", "zip": "path", "tfds": "name"}
"""Source -> the setting without which it has no data."""
FEWEST_FEATURES = 32
"""Fewest inputs and outputs of a weight matrix that Muon updates."""
SAMPLE_ARGUMENTS = ("step_size", "num_steps", "denoise")
"""Settings of the section `sampling` that `sampling.sample` itself hands to the sampler."""


def open_source(settings: Mapping[str, Any]) -> Dataset:
    """Calls the source that the section `data` names, with those of the settings that it takes.

    Raises:
        ValueError: If the source is unknown, or does not give examples of the configured shape.
        OSError: If a file is missing.
    """
    name = settings["source"]
    source = resolve(SOURCES, name, "data.source")
    needed = NEEDED.get(name)
    if needed is not None and settings[needed] is None:
        example = "cifar10" if needed == "name" else "folder"
        raise ValueError(
            f"config.data.source={name!r} needs config.data.{needed}, which is none: set it, as "
            f"in --config.data.{needed}={example}"
        )
    arguments = arguments_of(source, "data", settings, without=("source",))
    resizes = "transform" in signature(source, f"config.data.source={name!r}").parameters
    size, channels = settings["size"], settings["channels"]
    if resizes:
        arguments["transform"] = ImageTransform(settings["crop"], size, channels)
    with calling("data.source", name, settings), naming("data"):
        data = source(**arguments)
    if not isinstance(data, Dataset):
        raise ValueError(
            f"config.data.source={name!r} returned a {type(data).__name__}, but must return a "
            "score_jax.data.dataset.Dataset"
        )

    shape = list(data.train.shape[1:])
    wanted = [size, size, channels]
    fitting = len(shape) == 3 and all(
        want in (None, have) for want, have in zip(wanted, shape, strict=True)
    )
    if not fitting and (size or channels):
        raise ValueError(
            f"config.data.size={size} and channels={channels}, but the source {name!r} has "
            f"examples of {shape}, which it does not resize: set both to none"
        )
    if settings["crop"] and not resizes:
        raise ValueError(
            f"config.data.crop={settings['crop']}, but the source {name!r} does not crop: set it "
            "to none"
        )
    return data


def load_data(
    settings: Mapping[str, Any], *, needed: bool = True, decode: bool = True
) -> tuple[Dataset | None, tuple[int, ...]]:
    """The data set of a config and the shape of one example.

    Args:
        settings: The config's section `data`.
        needed: If False and the shape is known from the settings, do not open the data set.
        decode: If True, decode all examples at once if they fit into the devices' memory.

    Returns:
        The data set, or None if it was not opened, and the shape of one example.

    Raises:
        ValueError: If the source is unknown, or its data do not match the settings.
        OSError: If a file is missing.
    """
    name, size, channels = settings["source"], settings["size"], settings["channels"]
    if not needed and size and channels and not settings["labels"]:
        resolve(SOURCES, name, "data.source")
        return None, (size, size, channels)

    data = open_source(settings)
    if settings["labels"] and not data.num_classes:
        raise ValueError(
            f"config.data.labels=True, but the source {name!r} has no labels: set it to False"
        )
    if not settings["labels"]:
        data = data._replace(train_labels=None, held_out_labels=None, num_classes=None)
    if not data.num_values and any(settings[key] for key in ("dequantize", "logit", "flip")):
        raise ValueError(
            f"the source {name!r} has no pixels: set config.data.dequantize, logit and flip to "
            "False"
        )
    if data.note:
        announce(data.note)
    if needed and decode and fits(data, settings):
        with naming("data"):
            data = data._replace(train=in_memory(data.train), held_out=in_memory(data.held_out))
    return data, tuple(data.train.shape[1:])


def fits(data: Dataset, settings: Mapping[str, Any]) -> bool:
    """Returns True if every device may hold the whole data set."""
    num_bytes = data.train.nbytes + data.held_out.nbytes
    return num_bytes <= min(settings["device_megabytes"] * 1_000_000, host_memory())


def build_prepare(settings: Mapping[str, Any], data: Dataset | None, dropout: bool = True):
    """The random part of data loading, (keys, x, label) -> (x, label).

    Args:
        settings: The config's section `data`.
        data: The data set; None stands for pixels of 256 values without labels.
        dropout: If False, keep every label.
    """
    return make_prepare(
        data.num_values if data else 256,
        dequantize=settings["dequantize"],
        flip=settings["flip"],
        logit=settings["logit"],
        label_dropout=settings["label_dropout"] if dropout else 0.0,
        num_classes=data.num_classes if data else None,
    )


def build_loss(settings: Mapping[str, Any]) -> LossFn:
    """The objective that the section `loss` names, with its settings.

    Raises:
        ValueError: If the objective is unknown or does not take its settings.
    """
    name, number = settings["name"], settings["num_references"]
    loss_fn = resolve(LOSSES, name, "loss.name")
    parameters = signature(loss_fn, f"config.loss.name={name!r}").parameters
    if number and "references" not in parameters:
        raise ValueError(
            f"config.loss.num_references={number} needs an objective that takes references, and "
            f"config.loss.name={name!r} does not: set it to 0, or use dsm"
        )
    return _bound(loss_fn, arguments_of(loss_fn, "loss", settings, without=("name", "levels")))


def build_sampler(settings: Mapping[str, Any]) -> Callable:
    """The sampler that the section `sampling` names, with settings of its own.

    Raises:
        ValueError: If the sampler is unknown or does not take its settings.
    """
    sampler = resolve(SAMPLERS, settings["method"], "sampling.method")
    return _bound(sampler, sampler_arguments(settings))


def sampler_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the sampler takes besides those of all samplers.

    Raises:
        ValueError: As `build_sampler`.
    """
    sampler = resolve(SAMPLERS, settings["method"], "sampling.method")
    return arguments_of(sampler, "sampling", settings, ("method", *SAMPLE_ARGUMENTS))


def _bound(function: Callable, arguments: dict[str, Any]) -> Callable:
    """`function` with keyword arguments fixed; the function itself if there are none."""
    return _Bound(function, tuple(arguments.items())) if arguments else function


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A function with keyword arguments; equal for equal ones, unlike `functools.partial`."""

    function: Callable
    arguments: tuple[tuple[str, Any], ...]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.function)

    def __call__(self, *arguments, **more):
        return self.function(*arguments, **dict(self.arguments), **more)


def build_model(
    settings: Mapping[str, Any],
    sigmas: jax.Array,
    num_classes: int | None,
    data_settings: Mapping[str, Any],
) -> Any:
    """The network that the section `model` names.

    A network is a class or function that takes its settings by name and, if they are in its
    signature, `sigmas` (a tuple of floats), `num_levels` and `num_classes`. It returns a Flax
    module or a pair (init, apply), as `network.as_model` takes it.

    Args:
        settings: The config's section `model`.
        sigmas: Noise levels, decreasing.
        num_classes: Number of classes of a conditional network; None for an unconditional one.
        data_settings: The config's section `data`.

    Raises:
        ValueError: If the network is unknown, has no such setting, or does not match the data.
    """
    name = settings["name"]
    factory = resolve(MODELS, name, "model.name")
    parameters = signature(factory, f"config.model.name={name!r}").parameters
    if num_classes and "num_classes" not in parameters:
        raise ValueError(
            f"config.data.labels=True, but config.model.name={name!r} takes no labels: set "
            "config.data.labels to False"
        )

    # Check that the network takes all of its settings.
    given = {"sigmas": tuple(float(sigma) for sigma in sigmas), "num_levels": len(sigmas)}
    if num_classes:
        given["num_classes"] = num_classes
    own = [each for each in parameters if each not in ("parent", "name", "num_classes", *given)]
    fields = {key: value for key, value in settings.items() if key != "name"}
    for field in fields:
        if field not in own and f"model.{field}" in SETTINGS:
            raise ValueError(
                f"config.model.{field} is not a setting of the network {name!r}: choose among "
                f"{', '.join(['name', *own])}"
            )
    centered = "centered" in parameters and fields.get("centered", parameters["centered"].default)
    if data_settings["logit"] and centered:
        raise ValueError(
            "config.data.logit=True needs config.model.centered=False: logits are not in [0, 1]"
        )

    arguments = arguments_of(factory, "model", fields)
    arguments |= {key: value for key, value in given.items() if key in parameters}
    with calling("model.name", name, settings), naming("model"):
        model = factory(**arguments)
        as_model(model)
    return model


def build_trainer(
    config: Mapping[str, Any],
    data: Dataset | None,
    model: Any,
    sigmas: jax.Array,
    references: np.ndarray | None = None,
) -> Trainer:
    """The trainer that a config describes.

    Args:
        config: The config.
        data: The data set, or None.
        model: The network.
        sigmas: Noise levels, decreasing.
        references: Examples that stabilise the targets of its steps; None for none.

    Raises:
        ValueError: If the config names an objective that is unknown or does not take its settings.
    """
    loss_fn = build_loss(config["loss"])
    step_loss_fn = None
    if references is not None:
        step_loss_fn = functools.partial(loss_fn, references=jnp.asarray(references))
    return make_trainer(
        model,
        loss_fn,
        build_optimizer(config["optim"], config["training"]["num_steps"]),
        sigmas,
        ema_decay=config["optim"]["ema_decay"],
        draw_levels=resolve(LEVELS, config["loss"]["levels"], "loss.levels"),
        prepare=build_prepare(config["data"], data),
        step_loss_fn=step_loss_fn,
    )


def build_optimizer(settings: Mapping[str, Any], num_steps: int) -> optax.GradientTransformation:
    """Adam or Muon, with the learning-rate schedule and gradient clipping of the section `optim`.

    Muon's updates have the root mean square of Adam's, so that one learning rate serves both.

    Reference: Jordan (2024), "Muon: an optimizer for hidden layers in neural networks"; Liu et al.
    (2025), "Muon is scalable for LLM training", section 2.2 for the size of the updates.
    """
    rate, warmup = settings["learning_rate"], settings["warmup_steps"]
    first_rate = rate / (warmup + 1)
    if settings["schedule"] == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(
            first_rate, rate, warmup, num_steps, 0.01 * rate
        )
    elif warmup:
        schedule = optax.linear_schedule(first_rate, rate, warmup)
    else:
        schedule = rate
    beta1, beta2, epsilon = (settings[key] for key in ("beta1", "beta2", "epsilon"))
    if settings["name"] == "adam":
        optimizer = optax.adam(schedule, beta1, beta2, epsilon)
    else:
        optimizer = optax.contrib.muon(
            schedule,
            eps=epsilon,
            adam_b1=beta1,
            adam_b2=beta2,
            muon_weight_dimension_numbers=hidden_weights,
            consistent_rms=0.2,
        )
    if settings["clip_norm"] is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(settings["clip_norm"]), optimizer)


def hidden_weights(params: Any) -> Any:
    """The weights that Muon updates, by their axes; None for those left to Adam.

    The former are matrices [in, out] and kernels [height, width, in, out] of at least
    `FEWEST_FEATURES` inputs and outputs: those between hidden layers.
    """

    def axes(weights):
        if weights.ndim not in (2, 4) or min(weights.shape[-2:]) < FEWEST_FEATURES:
            return None
        last = weights.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last)

    return jax.tree.map(axes, params)


def state_shape(
    trainer: Trainer,
    name: str,
    shape: tuple[int, ...],
    conditional: bool,
    settings: Mapping[str, Any] | None = None,
) -> TrainState:
    """Shapes and types of the state of training; checks that the network takes the data.

    Args:
        trainer: The trainer.
        name: The network's name in the config.
        shape: Shape of one example.
        conditional: If True, the network takes labels.
        settings: The config's section `model`, for messages.

    Raises:
        ValueError: If the network does not take examples of this shape, or returns another shape.
    """
    if len(shape) != 3 and name in IMAGE_MODELS:
        raise ValueError(
            f"the network {name!r} takes images, but the data are points {list(shape)}: set "
            "config.model.name=mlp"
        )
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    level = jax.ShapeDtypeStruct((1,), jnp.int32)
    label = (level,) if conditional else ()

    def init(x, level, *label):
        params = trainer.model.init(jax.random.key(0), x, level, *label)
        return trainer.init(params), trainer.model.apply(params, x, level, *label)

    try:
        with calling("model.name", name, settings), naming("model"):
            state, score = jax.eval_shape(init, x, level, *label)
    except ValueError as error:
        if name not in IMAGE_MODELS or "cannot take" not in str(error):
            raise
        raise ValueError(f"{error}; set config.data.size, or choose another network") from error
    if jnp.shape(score) != x.shape:
        raise ValueError(
            f"config.model.name={name!r} returns {list(jnp.shape(score))} for examples "
            f"{list(x.shape)}, but a score has the shape of the data"
        )
    return state


def width_setting(settings: Mapping[str, Any]) -> str:
    """The setting that the size of a network depends on."""
    known = ("width", "hidden")
    return next((f"model.{name}" for name in known if name in settings), "model.name")


def build_start(
    settings: Mapping[str, Any], sigmas: jax.Array, in_logits: bool, model: Mapping[str, Any]
) -> Callable[[Keys, tuple[int, ...]], Array]:
    """The distribution from which chains start, (keys, shape) -> x.

    Args:
        settings: The config's section `sampling`.
        sigmas: Noise levels, decreasing.
        in_logits: If True, the network takes logits of pixels.
        model: The config's section `model`.

    Returns:
        A function; equal settings give equal functions, so that compiled programs are reused.

    Raises:
        ValueError: If the start needs the moments of the data, and the network does not have them.
    """
    if settings["start"] == "data":
        if model.get("data_mean") is None or model.get("data_std") is None:
            raise ValueError(
                "config.sampling.start='data' needs config.model.data_mean and data_std, which "
                f"are not set for config.model.name={model['name']!r}: set them if the network "
                "takes them, or use normal"
            )
        std = math.hypot(float(sigmas[0]), model["data_std"])
        return normal_start(std, float(model["data_mean"]))
    if settings["start"] == "uniform":
        return LogitStart(uniform_start()) if in_logits else uniform_start()
    center = 0.0 if in_logits else 0.5  # The logit of 0.5 is 0.
    return normal_start(float(sigmas[0]), center)


@dataclasses.dataclass(frozen=True)
class LogitStart:
    """The logit transform of states drawn in [0, 1]."""

    start: Callable[[Keys, tuple[int, ...]], Array]

    def __call__(self, keys: Keys, shape: tuple[int, ...]) -> Array:
        """Initial states, [batch, *shape]."""
        return logit(self.start(keys, shape))


def build_step_size(
    settings: Mapping[str, Any], sampler: Callable, sigmas: jax.Array
) -> float | None:
    """The step size at the last level: that of the section `sampling`, or the sampler's rule.

    None for a sampler without a step size.

    Args:
        settings: The config's section `sampling`.
        sampler: The sampler that takes it.
        sigmas: Noise levels, decreasing.

    Raises:
        ValueError: If the sampler cannot take the step size.
    """
    if not takes_step_size(sampler):
        return None
    num_steps = settings["num_steps"]
    step_size = settings["step_size"]
    with naming("sampling"):
        if step_size is None:
            step_size = default_step_size(sampler, sigmas, num_steps)
        _check_step_size(sampler, sigmas, step_size, num_steps)
    return step_size


def inpaint_steps(settings: Mapping[str, Any]) -> int:
    """Steps per level of the paper's inpainting, from the config's section `sampling`."""
    if settings["inpaint_steps"] is not None:
        return settings["inpaint_steps"]
    return 10 if settings["method"] in WHOLE_CHAIN else settings["num_steps"]


def _check_step_size(sampler: Callable, sigmas: Any, step_size: float, num_steps: int) -> None:
    """Raises a ValueError for a step size that consistent annealed sampling does not allow."""
    from score_jax.samplers.consistent import consistent_annealed_sampling, consistent_schedule

    if sampler is not consistent_annealed_sampling:
        return
    try:
        consistent_schedule(np.asarray(sigmas, np.float64), step_size, num_steps)
    except ValueError as error:
        raise ValueError(f"{error}, or none for that of ancestral sampling") from error
