"""A job: a config, a folder and devices, checked and ready; nothing is compiled or written yet."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import tensorboardX

from score_jax import config as config_lib
from score_jax import images, workdir
from score_jax.checkpoint import Checkpoints
from score_jax.data.dataset import Dataset, LazyImages, in_memory, inverse_logit, logit
from score_jax.noise import geometric_sigmas
from score_jax.run.build import build_model, build_trainer, fits, init_shape, load_data, step_size_of
from score_jax.training import Trainer, TrainState
from score_jax.typing import Array

AXIS = "devices"
KEYS = ("init", "train", "sample", "evaluate", "inpaint", "interpolate", "figures")


class Options(NamedTuple):
    """What the command line says beside the config.

    Attributes:
        checkpoint: Official checkpoint to import.
        image: Image files to complete, separated by commas; "" takes held-out images.
        mask: The file of a mask, or the side of the image that is missing.
        label: Class of the images to complete; -1 if it is not told.
        number: How many images to complete, rows of chains to interpolate between, or samples to show in the figures.
        completions: How many completions of each, or chains between each pair.
        subsample: How many training images the largest distance is sought among; 0: all.
    """

    checkpoint: str = ""
    image: str = ""
    mask: str = "right"
    label: int = -1
    number: int = 8
    completions: int = 8
    subsample: int = 0


class Feed(NamedTuple):
    """How a pmapped program gets at the examples of one split.

    Attributes:
        constants: What every device holds all the time: the split, if it fits.
        args: index [batch] -> what a call takes, a tuple of [devices, share, ...].
        take: (constants, args of one device) -> the images, and the labels if there are any; within the program.
    """

    constants: tuple[Any, ...]
    args: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    take: Callable[..., list]


@dataclasses.dataclass(frozen=True)
class Job:
    """A config made into what it describes; nothing is compiled or written yet.

    `data` is None where a mode does not need it, `event` the shape of one example.
    """

    config: Mapping[str, Any]
    options: Options
    folder: Path
    devices: Sequence[jax.Device]
    data: Dataset | None
    event: tuple[int, ...]
    model: nn.Module
    sigmas: jax.Array
    step_size: float
    trainer: Trainer
    keys: Mapping[str, jax.Array]
    checkpoints: Checkpoints
    state_shape: TrainState
    restored: tuple[int, TrainState] | None

    def apply(self, params, x, level, *label):
        """The score of the network with `params`."""
        return self.model.apply({"params": params}, x, level, *label)

    def pmap(self, function, in_axes, out_axes, donate=()):
        """`function` on all devices; what has no mapped axis is the same on each."""
        return jax.pmap(function, AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate, devices=self.devices)

    def split(self, batch: np.ndarray) -> np.ndarray:
        """[batch, ...] as [devices, share, ...]."""
        return batch.reshape(len(self.devices), -1, *batch.shape[1:])

    def chains_at_once(self, number: int) -> int:
        """The config's sampling batch, or less if fewer chains are wanted; a multiple of the devices."""
        share = len(self.devices)
        return min(self.config["sampling"]["batch_size"], -(-number // share) * share)

    def replicate(self, tree):
        """`tree` on every device, in the form in which a pmapped program returns what is the same everywhere."""
        return self.pmap(lambda tree, _: tree, (None, 0), None)(tree, np.arange(len(self.devices)))

    def feed(self, examples: np.ndarray | LazyImages, labels: np.ndarray | None) -> Feed:
        """The examples of a split: held by every device if the data set fits there, else streamed from the host."""
        arrays = (examples,) if labels is None else (examples, labels)
        if fits(self.data, self.config["data"]):
            constants = self.replicate((in_memory(examples), *arrays[1:]))
            return Feed(constants, lambda index: (self.split(index),), lambda held, args: [array[args[0]] for array in held])
        return Feed((), lambda index: tuple(self.split(array[index]) for array in arrays), lambda held, args: list(args))

    def to_data(self, x: Array | np.ndarray) -> Array | np.ndarray:
        """What lives in [0, 1], in the space in which the network knows data."""
        return logit(x) if self.config["data"]["logit"] else x

    def to_images(self, x: np.ndarray) -> np.ndarray:
        """The reverse: ends of chains as images in [0, 1]; points stay as they are."""
        if len(self.event) < 3:
            return x
        return np.asarray(inverse_logit(x)) if self.config["data"]["logit"] else np.clip(x, 0, 1)

    def picture(self, x: np.ndarray, columns: int = 10, pixels: int = 720) -> np.ndarray:
        """Images in a grid, or points in the plane, as uint8 [height, width, 3]."""
        return images.grid(x, columns, pixels) if len(self.event) == 3 else images.scatter(x, pixels)


def prepare(
    mode: str, config: Mapping[str, Any], folder: Path, devices: Sequence[jax.Device], options: Options | None = None
) -> Job:
    """Builds the job and checks all that can be checked before anything is compiled or written.

    Args:
        mode: "train", or one that uses what was trained: "sample", "evaluate", ...
        config: As `config.validate` wants it.
        folder: The workdir.
        devices: Those that share the work.
        options: What else the command line says.

    Raises:
        ValueError: If the config, or what is in the folder, does not fit.
        OSError: If a file is missing, or the folder cannot be written.
    """
    config_lib.validate(config)
    config = json.loads(json.dumps(config))  # as it will be read again: tuples are lists there
    folder, options = Path(folder), options or Options()
    checkpoints = _open_checkpoints(mode, config, folder)
    steps = checkpoints.steps()
    if mode != "train" and not steps:
        raise FileNotFoundError(
            f"--workdir={folder} holds no checkpoint to {mode} from: train first, with --mode=train, or choose another --workdir"
        )
    needed = mode in ("train", "evaluate", "figures") or (mode == "inpaint" and not options.image)
    data, event = load_data(config["data"], needed, decode=mode in ("train", "evaluate"))
    sampling, sigmas = config["sampling"], geometric_sigmas(**config["noise"])
    model = build_model(config["model"], sigmas, data.num_classes if data else 0, config["data"])
    for name in ("training", "sampling"):
        config_lib.check_divides(config[name]["batch_size"], len(devices), f"{name}.batch_size")
    step_size = step_size_of(sampling, sigmas, annealed=mode in ("inpaint", "interpolate"))
    trainer = build_trainer(config, data, model, sigmas, AXIS)
    state_shape = init_shape(trainer, model, event, config["data"]["labels"])
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shape))
    sample_bytes = 4 * sampling["num_samples"] * int(np.prod(event))
    kept = {"train": config["training"]["keep_checkpoints"] + 1, "export": 1}.get(mode, 0)
    workdir.check_writable(folder, kept * state_bytes + 2 * sample_bytes + 10_000_000)
    return Job(
        config=config,
        options=options,
        folder=folder,
        devices=devices,
        data=data,
        event=event,
        model=model,
        sigmas=sigmas,
        step_size=step_size,
        trainer=trainer,
        keys=run_keys(config["seed"]),
        checkpoints=checkpoints,
        state_shape=state_shape,
        restored=checkpoints.restore(state_shape),
    )


def run_keys(seed: int | Array) -> dict[str, jax.Array]:
    """A random key for everything that a run does."""
    return dict(zip(KEYS, jax.random.split(jax.random.key(seed), len(KEYS)), strict=True))


def _open_checkpoints(mode: str, config: Mapping[str, Any], folder: Path) -> Checkpoints:
    """The checkpoints of the folder, if they are those of this config."""
    saved = workdir.read_json(folder / "config.json")
    workdir.read_json(folder / "metrics.json")  # damaged, it is better told now than after hours
    checkpoints = Checkpoints(folder / "checkpoints", config["training"]["keep_checkpoints"])
    steps = checkpoints.steps()
    if steps and saved is None:
        raise FileNotFoundError(
            f"--workdir={folder} holds checkpoints but no config.json: restore it from a copy, or choose another --workdir"
        )
    if steps:
        free = config_lib.FREE_TO_CONTINUE if mode == "train" else config_lib.FREE_TO_USE
        config_lib.check_same_run(config_lib.completed(saved), config, free, str(folder))
    if mode == "train" and steps and steps[0] > config["training"]["num_steps"]:
        raise ValueError(
            f"--workdir={folder} has been trained for {steps[0]} steps, more than config.training.num_steps="
            f"{config['training']['num_steps']}: ask for more steps, or choose another --workdir"
        )
    return checkpoints


def merge(x: Array | np.ndarray) -> np.ndarray:
    """What a pmapped program returns, [devices, share, ...], as [batch, ...]."""
    x = np.asarray(x)
    return x.reshape(-1, *x.shape[2:])


def merge_second(x: Array | np.ndarray) -> np.ndarray:
    """[devices, kept, share, ...] as [batch, kept, ...]."""
    return merge(np.moveaxis(np.asarray(x), 1, 2))


@contextmanager
def events(job: Job, step: int) -> Iterator[tensorboardX.SummaryWriter]:
    """Writes what TensorBoard shows, in the place of anything after `step`."""
    writer = tensorboardX.SummaryWriter(str(job.folder), purge_step=step + 1)
    try:
        yield writer
    finally:
        writer.close()


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)
