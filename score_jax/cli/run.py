"""A run: the config, folder and devices of a command, made into the objects that modes work with.

Opening a run checks everything that can be checked; nothing is compiled or written by it.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_jax.checkpoint import ATTEMPTS, BestCheckpoints, Check, Checkpoints
from score_jax.cli import build, images, own, workdir
from score_jax.cli.flags import Command
from score_jax.cli.log_file import read_log
from score_jax.cli.memory import check_memory, check_state
from score_jax.cli.modes import MODES
from score_jax.cli.moments import moments_of
from score_jax.cli.names import naming
from score_jax.cli.settings import (
    FREE_TO_CONTINUE,
    FREE_TO_USE,
    check_same_run,
    completed,
    differences_listed,
    validate,
)
from score_jax.cli.table import SETTINGS, WHOLE_CHAIN, shown
from score_jax.data.dataset import Dataset, batch_index
from score_jax.data.transforms import inverse_logit, logit
from score_jax.devices import check_agreement, check_divides, described
from score_jax.evaluation.diagnostics import ChainObserver, DataMoments
from score_jax.guidance import autoguidance, class_guidance, without_label
from score_jax.network import score_fn
from score_jax.noise import geometric_sigmas, level_at
from score_jax.records import RunIdentity
from score_jax.samplers.langevin import annealed_langevin
from score_jax.sampling import Chains, takes_observer
from score_jax.training import Trainer, TrainState
from score_jax.typing import Array, Params


class Autoguided(NamedTuple):
    """Parameters of a network and of the weaker one that guides it."""

    params: Params
    weaker: Params


@dataclasses.dataclass(frozen=True)
class Run:
    """The objects that a config describes, and the newest checkpoint of its workdir.

    Attributes:
        config: The config as JSON stores it, with lists instead of tuples.
        folder: The workdir.
        devices: Devices that share the work.
        data: The data set; None if the mode does not need it.
        shape: Shape of one example.
        model: The network, as `network.as_model` takes it.
        sigmas: Noise levels, decreasing.
        trainer: The trainer.
        sampler: The sampler.
        start: Distribution from which chains start, (keys, shape) -> x.
        step_size: Step size of the sampler at the last level; None if it takes none.
        state_shape: Shapes and types of the state of training.
        step: Step of the newest checkpoint, or of that of --step; None if there is none.
        state: State of that checkpoint, as host arrays; None if there is none.
    """

    config: Mapping[str, Any]
    folder: Path
    devices: Sequence[jax.Device]
    data: Dataset | None
    shape: tuple[int, ...]
    model: Any
    sigmas: jax.Array
    trainer: Trainer
    sampler: Callable
    start: Callable
    step_size: float | None
    state_shape: TrainState
    step: int | None
    state: TrainState | None

    def describe(self) -> str:
        """One line about the network, the data, the noise levels and the devices."""
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state_shape.params))
        noise = self.config["noise"]
        return (
            f"{self.config['model']['name']} of {num_parameters:,} parameters, "
            f"{len(self.data.train)} training examples {list(self.shape)}, {len(self.sigmas)} "
            f"noise levels from {noise['sigma_max']:g} to {noise['sigma_min']:g}, "
            f"{described(self.devices)}"
        )

    @property
    def conditional(self) -> bool:
        """True if the network takes labels."""
        return self.config["data"]["labels"]

    def score_fn(self, params: Params) -> Callable[..., Array]:
        """The score function of the network with these parameters."""
        if isinstance(params, Autoguided):
            settings = self.config["sampling"]
            largest = settings["autoguidance_sigma_max"]
            return autoguidance(
                self.score_fn(params.params),
                self.score_fn(params.weaker),
                settings["autoguidance_weight"],
                0.0 if largest is None else level_at(largest, self.sigmas),
            )
        return score_fn(self.model, params)

    def for_samples(self, params: Params, step: int) -> Params:
        """The parameters of the score function that the final samples are drawn with.

        Args:
            params: Parameters of the network.
            step: Their training step.

        Returns:
            The same, or with autoguidance `Autoguided`. A network that is not older than the
            weaker one is not guided.

        Raises:
            FileNotFoundError: If the weaker network has no checkpoint.
        """
        if not self.is_guided(step):
            return params
        weaker = self.config["sampling"]["autoguidance_step"]
        checkpoints = Checkpoints(self.folder / "checkpoints", None, RunIdentity(self.folder))
        found = checkpoints.restore(self.state_shape, weaker, belongs_to(self.folder))
        return Autoguided(params, found[1].ema_params)

    def is_guided(self, step: int) -> bool:
        """Returns True if a weaker network guides the final samples of the network of a step.

        Raises:
            FileNotFoundError: If the weaker network has no checkpoint.
        """
        weaker = self.config["sampling"]["autoguidance_step"]
        if weaker is None or step <= weaker:
            return False
        steps = Checkpoints(self.folder / "checkpoints").steps()
        if weaker not in steps:
            raise FileNotFoundError(
                f"config.sampling.autoguidance_step={weaker}, but --workdir={self.folder} holds "
                f"no checkpoint of this step: choose among {', '.join(map(str, sorted(steps)))}, "
                "or none"
            )
        return True

    def guided_score_fn(self, params: Params, weight: float | None) -> Callable[..., Array]:
        """`score_fn` with classifier-free guidance; None for no guidance.

        Raises:
            ValueError: If the network has not learned the unconditional score as well.
        """
        if weight is None:
            return self.score_fn(params)
        dropout = self.config["data"]["label_dropout"]
        if not self.conditional or not dropout:
            raise ValueError(
                f"--guidance={weight:g} needs a network that was trained with "
                f"config.data.labels=True and config.data.label_dropout above 0, but that of "
                f"--workdir={self.folder} has {self.conditional} and {dropout:g}"
            )
        conditional = self.score_fn(params)
        base = without_label(conditional, self.data.num_classes)
        return class_guidance(conditional, base, weight)

    def sampling(self, number: int) -> dict[str, Any]:
        """Arguments of `sampling.sample` for `number` samples, apart from their labels."""
        settings = self.config["sampling"]
        return {
            "number": number,
            "shape": self.shape,
            "num_steps": settings["num_steps"],
            "step_size": self.step_size,
            "sampler": self.sampler,
            "denoise": settings["denoise"],
            "start": self.start,
            "seed": self.config["seed"],
            "batch_size": self.chains_at_once(number),
            "devices": self.devices,
            "num_snapshots": self.num_frames,
            "observe": self.observer,
        }

    @property
    def num_frames(self) -> int:
        """Frames of the animation: the config's, or as many as the chain has steps."""
        settings = self.config["sampling"]
        if settings["method"] in WHOLE_CHAIN:
            return min(settings["num_frames"], settings["num_steps"])
        return settings["num_frames"]

    def chains_at_once(self, number: int) -> int:
        """The sampling batch of the config, or less if fewer chains are wanted."""
        num_devices = len(self.devices)
        share = -(-number // num_devices)
        return min(self.config["sampling"]["batch_size"], share * num_devices)

    @functools.cached_property
    def moments(self) -> DataMoments | None:
        """Moments of the training data in the unit of the network; None if they are not known."""
        return moments_of(self)

    @property
    def observer(self) -> ChainObserver | None:
        """The observer of the chains; None if the sampler takes none, or the data are unknown."""
        if self.moments is None or not takes_observer(self.sampler):
            return None
        return ChainObserver(self.moments.center, self.moments.low, self.moments.high)

    def labels(self, number: int, label: int | None = None) -> np.ndarray | None:
        """The classes of the first `number` chains.

        Args:
            number: Number of chains.
            label: Class of all chains. None takes the labels of the training examples, in an order
                drawn from the seed, so that classes are as frequent as in the data.

        Returns:
            int32 [number]; None for an unconditional network.

        Raises:
            ValueError: If the network is unconditional but `label` is given, or `label` is out of
                range.
        """
        self.check_label(label)
        if not self.conditional:
            return None
        if label is not None:
            return np.full(number, label, np.int32)
        size = len(self.data.train)
        order = batch_index(self.config["seed"], 0, size, size)
        return self.data.train_labels[order][np.arange(number) % size]

    def check_label(self, label: int | None) -> None:
        """Raises a ValueError if chains cannot have this class; None stands for no class."""
        if label is None:
            return
        if not self.conditional:
            raise ValueError(
                f"--label={label} cannot be used: the network of --workdir={self.folder} takes no "
                "labels"
            )
        if not 0 <= label < self.data.num_classes:
            raise ValueError(
                f"--label={label} must be a class from 0 to {self.data.num_classes - 1}"
            )

    def to_network(self, x: Array | np.ndarray) -> Array | np.ndarray:
        """Values in [0, 1] in the space in which the network models data."""
        return logit(x) if self.config["data"]["logit"] else x

    def to_images(self, x: np.ndarray) -> np.ndarray:
        """Final states as images in [0, 1]; values that are not pixels are returned unchanged."""
        if not self.has_pixels:
            return x
        return np.asarray(inverse_logit(x)) if self.config["data"]["logit"] else np.clip(x, 0, 1)

    @property
    def has_images(self) -> bool:
        """True if examples are [height, width, channels]."""
        return len(self.shape) == 3

    @property
    def has_pixels(self) -> bool:
        """True if examples are images whose pixels the network sees in [0, 1]."""
        return self.has_images and (self.data is None or bool(self.data.num_values))

    def picture(self, x: np.ndarray, columns: int = 10, pixels: int = 720) -> np.ndarray:
        """Draws images in a grid, or points in the plane, as uint8 [height, width, 3]."""
        if self.has_pixels:
            return images.grid(x, columns, pixels)

        # Other values are drawn on the scale of the training examples.
        known = self.data.train[:10_000]
        if self.has_images:
            low, high = float(known.min()), float(known.max())
            return images.grid((x - low) / ((high - low) or 1.0), columns, pixels)
        extent = 1.1 * float(np.abs(known.reshape(len(known), -1)[:, :2]).max())
        return images.scatter(x.reshape(len(x), -1), pixels, extent=extent)


def open_run(
    command: Command,
    devices: Sequence[jax.Device],
    *,
    needs_data: bool = False,
    decode: bool = False,
    inpainting: bool = False,
    num_states: int = 0,
    output: Path | None = None,
) -> Run:
    """Builds a run and checks all that can be checked before anything is compiled or written.

    Args:
        command: The parsed command. All modes but "train" need a trained network.
        devices: Devices that share the work.
        needs_data: If True, open the data set even if its shape is known from the config.
        decode: If True, decode all examples at once if they fit into the devices' memory.
        inpainting: If True, the sampler is the annealed Langevin dynamics of the paper's
            inpainting, whatever the config's method.
        num_states: Number of states of training that the mode writes, for the check of free disk.
        output: Folder that the mode writes to; None for the workdir.

    Raises:
        ValueError: If the config, the devices and the contents of the folder do not match.
        OSError: If a file is missing, or the folder cannot be written.
    """
    validate(command.config)
    config = json.loads(json.dumps(command.config))
    checkpoints, step = _open_checkpoints(command, config)

    # Refuse sizes beyond memory, if possible before the data are read.
    size, channels = config["data"]["size"], config["data"]["channels"]
    batches, trains = MODES[command.mode].batches, command.mode == "train"
    if size and channels:
        check_memory(config, (size, size, channels), devices, batches, trains)

    # Build everything that the config names.
    data, shape = build.load_data(config["data"], needed=needs_data, decode=decode)
    check_memory(config, shape, devices, batches, trains)
    with naming("noise"):
        sigmas = geometric_sigmas(**config["noise"])
    conditional = config["data"]["labels"]
    num_classes = data.num_classes if conditional else None
    model = build.build_model(config["model"], sigmas, num_classes, config["data"])
    for section in batches:
        check_divides(config[section]["batch_size"], len(devices), f"config.{section}.batch_size")
    settings = config["sampling"]
    sampler = build.build_sampler(settings)
    if inpainting:
        sampler = annealed_langevin
        settings = {**settings, "num_steps": build.inpaint_steps(settings)}
    step_size = build.build_step_size(settings, sampler, sigmas)
    trainer = build.build_trainer(config, data, model, sigmas)

    start = build.build_start(config["sampling"], sigmas, config["data"]["logit"], config["model"])

    # Trace the functions and the network, with shapes alone.
    own.check_objective(config["loss"], build.build_loss(config["loss"]), sigmas, shape)
    if "sampling" in batches:
        levels = tuple(float(sigma) for sigma in sigmas)
        steps, denoise = settings["num_steps"], settings["denoise"]
        chains = Chains(sampler, start, shape, levels, steps, step_size, denoise)
        own.check_sampler(settings, chains)
    state_shape = build.state_shape(
        trainer, config["model"]["name"], shape, conditional, config["model"]
    )

    # Room for the states, for samples and their pictures.
    leaves = jax.tree.leaves(state_shape)
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    check_state(state_bytes, devices, build.width_setting(config["model"]))
    sample_bytes = 4 * config["sampling"]["num_samples"] * int(np.prod(shape))
    needed_bytes = num_states * state_bytes + 2 * sample_bytes + 10_000_000
    of_states = num_states * state_bytes > 2 * sample_bytes
    name = build.width_setting(config["model"]) if of_states else "sampling.num_samples"
    section, _, last = name.partition(".")
    largest = f"config.{name}={shown(config[section][last])}"
    workdir.check_writable(output or command.workdir, needed_bytes, largest)

    restored = _restored(command, config, checkpoints, step, state_shape)
    _check_number_of_steps(command, config, restored[0])
    check_agreement([config, restored[0]], f"the config or the checkpoints in {command.workdir}")
    return Run(
        config=config,
        folder=Path(command.workdir),
        devices=devices,
        data=data,
        shape=shape,
        model=model,
        sigmas=sigmas,
        trainer=trainer,
        sampler=sampler,
        start=start,
        step_size=step_size,
        state_shape=state_shape,
        step=restored[0],
        state=restored[1],
    )


def _open_checkpoints(
    command: Command, config: Mapping[str, Any]
) -> tuple[Checkpoints, int | None]:
    """The checkpoints to restore from, after checking that they belong to this config.

    Returns:
        The checkpoints, and the step that --step asks for; None for the newest.
    """
    folder, mode = Path(command.workdir), command.mode
    saved = workdir.read_json(folder / "config.json")
    read_log(folder)  # Report a damaged file now, not after hours.
    run, measure = RunIdentity(folder), config["training"]["best_by"]
    checkpoints = Checkpoints(folder / "checkpoints", config["training"]["keep_checkpoints"], run)
    if saved is None and mode == "train" and not command.dry_run:
        checkpoints.put_remains_aside()
    steps, best = checkpoints.steps(), []
    asked = command.options.step
    if asked is not None:
        best = BestCheckpoints(folder / "best", measure=measure, run=run).steps()
    if not steps and not best and mode != "train":
        raise FileNotFoundError(
            f"--workdir={folder} holds no checkpoint to {mode} from: train first, with "
            "--mode=train, or choose another --workdir"
        )
    if (steps or best) and saved is None:
        raise FileNotFoundError(
            f"--workdir={folder} holds checkpoints but no config.json: restore it from a copy, or "
            "choose another --workdir"
        )
    if steps or best:
        free = FREE_TO_CONTINUE if mode == "train" else FREE_TO_USE
        check_same_run(completed(saved), config, free, str(folder))
    if asked is None:
        return checkpoints, None
    step = _asked_step(asked, steps, best, folder)
    if step in steps and asked != "best":
        return checkpoints, step
    return Checkpoints(folder / "best", keep=None, run=run), step


def _restored(
    command: Command,
    config: Mapping[str, Any],
    checkpoints: Checkpoints,
    step: int | None,
    state_shape: TrainState,
) -> tuple[int | None, TrainState | None]:
    """The step and state to go on with; None twice without a checkpoint."""
    check = belongs_to(command.workdir)
    for _ in range(ATTEMPTS):
        try:
            return checkpoints.restore(state_shape, step, check) or (None, None)
        except ValueError:
            if command.options.step != "best" or checkpoints.has(step):
                raise
        # Another process has found a better one meanwhile.
        checkpoints, step = _open_checkpoints(command, config)
    return checkpoints.restore(state_shape, step, check)


def belongs_to(folder: Path) -> Check:
    """The check that a checkpoint was written with the config that its workdir holds.

    Settings that can change when training is continued can differ.
    """

    def check(step: int, metadata: Mapping[str, Any]) -> None:
        saved = workdir.read_json(Path(folder) / "config.json")
        if saved is None or not isinstance(metadata.get("config"), Mapping):
            return
        there = f"in the checkpoint of step {step}"
        listed = differences_listed(
            saved, metadata["config"], FREE_TO_CONTINUE, "in config.json", there
        )
        if listed:
            raise ValueError(
                f"--workdir={folder} has files of two runs: {listed}; restore config.json or the "
                "checkpoint from a copy, or choose another --workdir"
            )

    return check


def _check_number_of_steps(command: Command, config: Mapping[str, Any], step: int | None) -> None:
    """Raises a ValueError if training has gone beyond the number of steps that is asked for."""
    num_steps = config["training"]["num_steps"]
    if command.mode == "train" and step is not None and step > num_steps:
        raise ValueError(
            f"--workdir={command.workdir} has been trained for {step} steps, more than "
            f"config.training.num_steps={num_steps}: ask for more steps, or choose another "
            "--workdir"
        )


def _asked_step(asked: str, steps: list[int], best: list[int], folder: Path) -> int:
    """The step that --step asks for.

    Args:
        asked: Value of the flag.
        steps: Steps of the newest checkpoints.
        best: Steps of the best checkpoints, the best first.
        folder: The workdir.

    Raises:
        ValueError: If it is not a step, or no checkpoint of it is kept.
    """
    kept = ", ".join(map(str, sorted({*steps, *best}))) or "none"
    if asked == "best":
        if best:
            return best[0]
        raise ValueError(
            f"--step=best needs a best checkpoint, but --workdir={folder} holds none, as it was "
            f"trained with config.training.keep_best=0: choose among the steps kept, {kept}"
        )
    if not (asked.isascii() and asked.isdigit()):
        raise ValueError(f"--step={asked} must be the number of a step, or best")
    if int(asked) not in (*steps, *best):
        raise ValueError(
            f"--step={asked} is not kept in --workdir={folder}: choose among the steps kept, "
            f"{kept}{', or best' if best else ''}"
        )
    return int(asked)


def output_settings(
    config: Mapping[str, Any], step: int, names: Sequence[str] = (), **options: Any
) -> dict[str, Any]:
    """The settings that decide what chains give, to be stored with them.

    Args:
        config: The config.
        step: Training step of the parameters.
        names: Settings of the section `sampling` that matter, besides those of all chains.
        **options: Options of the mode.
    """
    sampling = config["sampling"]
    own = [name for name in sampling if f"sampling.{name}" not in SETTINGS]
    if "method" in names:
        own += build.sampler_arguments(sampling)
    names = ("start", "num_steps", "step_size", "denoise", *names, *own)
    chosen = {name: sampling[name] for name in names}
    return {"seed": config["seed"], "step": step, **chosen, **options}


@contextlib.contextmanager
def naming_step_size(run: Run) -> Iterator[None]:
    """Adds the setting and its value to the error for chains that are not finite."""
    try:
        yield
    except FloatingPointError as error:
        if run.step_size is None:
            raise FloatingPointError(str(error).replace("lower step_size, or ", "")) from error
        named = f"lower config.sampling.step_size (now {run.step_size:.3g})"
        raise FloatingPointError(str(error).replace("lower step_size", named)) from error
