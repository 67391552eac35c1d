"""What the words of a config stand for: data, objective, network, optimizer.

Here config stops; below travel numbers, arrays and functions.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax.consistent import ancestral_step_size, consistent_steps
from score_jax.data import files, prepared, sources
from score_jax.data.dataset import Dataset, dequantize, in_memory, logit, random_flip, rescale
from score_jax.data.files import ImageTransform
from score_jax.losses.dsm import annealed_dsm
from score_jax.losses.implicit import annealed_implicit, implicit
from score_jax.losses.ssm import annealed_ssm, ssm
from score_jax.models.mlp import MLP
from score_jax.models.ncsn import NCSN
from score_jax.models.ncsnv2 import NCSNv2
from score_jax.models.unet import UNet
from score_jax.noise import stratified_levels, uniform_levels
from score_jax.schedule import step_size_for
from score_jax.training import Trainer, TrainState, make_trainer
from score_jax.typing import Array, Keys, LossFn


def _splits(settings: Mapping[str, Any]) -> dict[str, Any]:
    transform = ImageTransform(settings["crop"], settings["size"], settings["channels"])
    return {"train_split": settings["train_split"], "held_out_split": settings["held_out_split"], "transform": transform}


def _sliced(loss_fn: LossFn) -> Callable[[Mapping[str, Any]], LossFn]:
    names = ("projection", "num_projections", "variance_reduced")
    return lambda settings: functools.partial(loss_fn, **{name: settings[name] for name in names})


def _floats(sigmas: jax.Array) -> tuple[float, ...]:
    return tuple(float(sigma) for sigma in sigmas)


# Names that a config may use.
SOURCES: dict[str, Callable[[Mapping[str, Any]], Dataset]] = {
    "digits": lambda settings: sources.digits(),
    "mixture": lambda settings: sources.mixture(),
    "npz": lambda settings: sources.npz(settings["path"]),
    "idx": lambda settings: sources.idx(settings["path"]),
    "folder": lambda settings: files.folder(settings["path"], **_splits(settings)),
    "zip": lambda settings: files.zipped(settings["path"], **_splits(settings)),
    "tfds": lambda settings: prepared.tfds(settings["name"], settings["path"], **_splits(settings), labels=settings["labels"]),
}
TRANSFORMED = ("folder", "zip", "tfds")  # sources that crop, resize and convert images
LOSSES: dict[str, Callable[[Mapping[str, Any]], LossFn]] = {
    "dsm": lambda settings: annealed_dsm,
    "ssm": _sliced(annealed_ssm),
    "implicit": lambda settings: annealed_implicit,
    "ssm_clean": _sliced(ssm),
    "implicit_clean": lambda settings: implicit,
}
# A network is built from the noise levels, the number of classes (0: no labels) and its own fields.
MODELS: dict[str, tuple[type[nn.Module], Callable[[Any, int], dict]]] = {
    "ncsn": (NCSN, lambda sigmas, num_classes: {"num_levels": len(sigmas)}),
    "ncsnv2": (NCSNv2, lambda sigmas, num_classes: {"sigmas": _floats(sigmas)}),
    "unet": (UNet, lambda sigmas, num_classes: {"sigmas": _floats(sigmas), "num_classes": num_classes}),
    "mlp": (MLP, lambda sigmas, num_classes: {"sigmas": _floats(sigmas)}),
}
LEVELS = {"uniform": uniform_levels, "stratified": stratified_levels}


def load_data(settings: Mapping[str, Any], needed: bool = True, decode: bool = True) -> tuple[Dataset | None, tuple[int, ...]]:
    """The data set of a config and the shape of an example.

    Args:
        settings: The config's section `data`.
        needed: Whether the examples are; if not, and their shape is known, None stands in the data set's place.
        decode: Whether to decode all of them at once, if they fit.

    Raises:
        ValueError: If the source is not known, or does not hold what the config says.
        OSError: If a file is missing.
    """
    source = _lookup(SOURCES, settings["source"], "data.source")
    size, channels = settings["size"], settings["channels"]
    if not needed and size and channels and not settings["labels"]:
        return None, (size, size, channels)
    data = source(settings)
    event = tuple(data.train.shape[1:])
    fitting = len(event) == 3 and size in (0, event[0]) and size in (0, event[1]) and channels in (0, event[2])
    if not fitting and (size or channels):
        raise ValueError(
            f"config.data.size={size} and channels={channels}, but the source {settings['source']!r} has examples of "
            f"{list(event)}, which it does not resize: set both to 0"
        )
    if settings["crop"] and settings["source"] not in TRANSFORMED:
        raise ValueError(f"config.data.crop={settings['crop']}, but the source {settings['source']!r} does not crop: set it to 0")
    if settings["labels"] and data.num_classes == 0:
        raise ValueError(f"config.data.labels=True, but the source {settings['source']!r} has no labels: set it to False")
    if not settings["labels"]:
        data = data._replace(train_labels=None, held_out_labels=None, num_classes=0)
    if data.num_values == 0 and (settings["dequantize"] or settings["logit"] or settings["flip"]):
        raise ValueError(f"the source {settings['source']!r} has no pixels: set config.data.dequantize, logit and flip to False")
    if needed and decode and fits(data, settings):
        data = data._replace(train=in_memory(data.train), held_out=in_memory(data.held_out))
    return data, event


def build_trainer(
    config: Mapping[str, Any], data: Dataset | None, model: nn.Module, sigmas: jax.Array, axis_name: str | None
) -> Trainer:
    """The trainer that a config describes; `axis_name` as in `training.make_trainer`.

    Raises:
        ValueError: If the config names an objective that is not known.
    """
    num_values, num_classes = (data.num_values, data.num_classes) if data else (256, 0)
    return make_trainer(
        lambda params, x, level, *label: model.apply({"params": params}, x, level, *label),
        loss_of(config["loss"]),
        _build_optimizer(config["optim"], config["training"]["num_steps"]),
        sigmas,
        prepare=functools.partial(prepare_examples, config["data"], num_values, num_classes),
        draw_levels=LEVELS[config["loss"]["levels"]],
        ema_decay=config["optim"]["ema_decay"],
        axis_name=axis_name,
    )


def loss_of(settings: Mapping[str, Any]) -> LossFn:
    """The objective that a config names."""
    return _lookup(LOSSES, settings["name"], "loss.name")(settings)


def prepare_examples(
    settings: Mapping[str, Any],
    num_values: int,
    num_classes: int,
    keys: Keys,
    stored: Array | np.ndarray,
    *label: Array | np.ndarray,
) -> tuple[Array | np.ndarray, ...]:
    """Stored examples, and their labels if there are any, as the network sees them.

    Pixels come into [0, 1], dequantised, flipped at random and logit-transformed if `settings` say so. A label is now and then
    replaced by num_classes, which stands for any class.
    """
    draw_keys, flip_keys, drop_keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
    if num_values == 0:
        x = stored
    else:
        x = dequantize(draw_keys, stored, num_values) if settings["dequantize"] else rescale(stored, num_values)
    if settings["flip"]:
        x = random_flip(flip_keys, x)
    if settings["logit"]:
        x = logit(x)
    if label and settings["label_dropout"]:
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, settings["label_dropout"]))(drop_keys)
        label = (jnp.where(dropped, num_classes, label[0]),)
    return (x, *label)


def build_model(fields: Mapping[str, Any], sigmas: jax.Array, num_classes: int, data: Mapping[str, Any]) -> nn.Module:
    """The network that a config names, for these noise levels and classes.

    Raises:
        ValueError: If it is not known, has no such field, or cannot take the data as the config prepares them.
    """
    name, fields = fields["name"], {key: value for key, value in fields.items() if key != "name"}
    kind, given = _lookup(MODELS, name, "model.name")
    given = given(sigmas, num_classes)
    if num_classes and "num_classes" not in given:
        raise ValueError(f"config.data.labels=True, but the network {name!r} takes no labels: set it to False")
    own = [field.name for field in dataclasses.fields(kind) if field.name not in ("parent", "name", *given)]
    if unknown := [name for name in fields if name not in own]:
        raise ValueError(f"config.model.{unknown[0]} is not a setting of this network: choose among {', '.join(['name', *own])}")
    if data["logit"] and fields.get("centered", getattr(kind, "centered", False)):
        raise ValueError("config.data.logit=True needs config.model.centered=False: logits do not live in [0, 1]")
    return kind(**given, **{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def init_params(model: nn.Module, key: jax.Array, event: tuple[int, ...], labels: bool):
    """Initial parameters of a network for examples of shape `event`."""
    level = jnp.zeros(1, jnp.int32)
    return model.init(key, jnp.zeros((1, *event)), level, *([level] if labels else []))["params"]


def init_shape(trainer: Trainer, model: nn.Module, event: tuple[int, ...], labels: bool) -> TrainState:
    """Shapes and types of the state of training; checks on the way that the network takes the data.

    Raises:
        ValueError: If it does not.
    """
    if len(event) != 3 and not isinstance(model, MLP):
        raise ValueError(f"{type(model).__name__} takes images, but the data are points {list(event)}: set config.model.name=mlp")
    return jax.eval_shape(lambda: trainer.init(init_params(model, jax.random.key(0), event, labels)))


def fits(data: Dataset, settings: Mapping[str, Any]) -> bool:
    """Whether every device may hold the whole data set."""
    return data.train.nbytes + data.held_out.nbytes <= settings["device_megabytes"] * 1_000_000


def step_size_of(sampling: Mapping[str, Any], sigmas: jax.Array, annealed: bool = False) -> float:
    """The step size at the last level: the config's, or for 0 the one that the sampler's rule gives.

    Args:
        sampling: That section of the config.
        sigmas: The noise levels.
        annealed: Whether annealed Langevin dynamics it is, whatever the config's method.

    Raises:
        ValueError: If consistent annealed sampling cannot take the config's step size.
    """
    if annealed or sampling["method"] != "consistent":
        return sampling["step_size"] or step_size_for(sigmas, sampling["num_steps"])
    step_size = sampling["step_size"] or ancestral_step_size(sigmas, sampling["num_steps"])
    try:
        consistent_steps(np.asarray(sigmas, np.float64), step_size, sampling["num_steps"])
    except ValueError as error:
        raise ValueError(f"config.sampling.{error}, or 0 for that of ancestral sampling") from error
    return step_size


def _lookup(table: Mapping[str, Any], name: str, setting: str) -> Any:
    if name not in table:
        raise ValueError(f"config.{setting}={name!r} is not known: choose among {', '.join(table)}")
    return table[name]


def _build_optimizer(optim: Mapping[str, Any], num_steps: int) -> optax.GradientTransformation:
    rate, warmup = optim["learning_rate"], optim["warmup_steps"]
    if optim["schedule"] == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(rate / (warmup + 1), rate, warmup, num_steps, 0.01 * rate)
    else:
        schedule = optax.linear_schedule(rate / (warmup + 1), rate, warmup) if warmup else rate
    adam = optax.adam(schedule, optim["beta1"], optim["beta2"], optim["epsilon"])
    return optax.chain(optax.clip_by_global_norm(optim["clip_norm"]), adam) if optim["clip_norm"] else adam
