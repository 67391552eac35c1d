"""Suggests noise levels and a step size for a data set, and writes a config file for it."""

import contextlib
import copy
import json
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_jax.cli import build, workdir
from score_jax.cli.flags import Command, overridden
from score_jax.cli.names import takes
from score_jax.cli.settings import is_own, plain, small_image_levels, small_images, validate
from score_jax.cli.table import MODELS, SECTIONS, SETTINGS, SOURCES
from score_jax.data.dataset import Dataset, in_memory, spread_index
from score_jax.data.files import UnreadableImageError
from score_jax.data.transforms import logit, unit_scale
from score_jax.gaussian_law import final_variance
from score_jax.models.preconditioning import principal_components
from score_jax.noise import geometric_sigmas
from score_jax.progress import announce
from score_jax.reading import expanded, listed, matching_files
from score_jax.sampling import default_step_size
from score_jax.schedule import largest_distance, num_levels_for, overlap

LARGEST_SIZE = 32
"""Height and width of images to which larger ones, or ones of several sizes, are resized if the
config does not say."""
SMALLEST_SIZE = 16
"""Height and width of the smallest images that get the settings of `small_images`."""
FEWEST_LEVELS = 10
"""In few dimensions, technique 2 asks for fewer levels, too far apart for short chains."""
COMPONENT_LEVEL = 4.4
"""Lower bound of the first of normally distributed levels, in units of the standard deviation
along the first principal component. The start of the chains then has at least 95 % of the variance
of the perturbed data in every direction."""
COMPONENT_EXAMPLES = 2048
"""Largest number of examples that this standard deviation is taken from."""
LEAST_COMPONENT = 1e-5
"""Standard deviation along the first principal component below which examples coincide."""
EXAMPLES_PER_COMPONENT = 10
"""Smallest number of training examples for each principal component of a U-Net."""
TOLERANCE, TOLERANCE_OF_NORMAL = 0.03, 0.06
"""Relative error of the variance with which chains may end on Gaussian data; that for normally
distributed levels is the error of configs/mnist_small.py."""
FACTORS = (1, 2, 5, 10, 20, 50)
"""Multiples of the config's steps that are tried."""


class Examples(NamedTuple):
    """The training examples that a suggestion is made from.

    Attributes:
        settings: The section `data` of a config that gives these examples.
        data: The data set.
        index: Indices of the examples among all training examples.
        x: The examples in the network's unit, [examples, *shape].
    """

    settings: dict[str, Any]
    data: Dataset
    index: np.ndarray
    x: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x.shape[1:]


class Levels(NamedTuple):
    """Noise levels for a data set.

    Attributes:
        sigma_max: First noise level.
        sigma_min: Last noise level.
        num_levels: Number of levels.
        lines: Lines about their derivation, to be printed.
        method: One sentence about it, for the docstring of a config.
    """

    sigma_max: float
    sigma_min: float
    num_levels: int
    lines: tuple[str, ...]
    method: str

    @property
    def settings(self) -> dict[str, Any]:
        """The section `noise` of a config."""
        return {name: getattr(self, name) for name in ("sigma_max", "sigma_min", "num_levels")}


class Suggestion(NamedTuple):
    """Noise levels and steps of the sampler for a data set.

    Attributes:
        levels: The noise levels.
        num_steps: Steps of the sampler: those of the config, or as many more as bring `ratio`
            within `tolerance` of 1.
        step_size: Step size at the last level (technique 4, or that of ancestral sampling); None
            for a sampler without one.
        config_ratio: `ratio` with the steps of the config.
        ratio: Final variance of chains on a Gaussian with the standard deviation of the data, over
            that of the data; None for a user's own sampler.
        tolerance: Allowed distance of `ratio` from 1.
        mean: Mean of the examples.
        std: Standard deviation of the examples.
    """

    levels: Levels
    num_steps: int
    step_size: float | None
    config_ratio: float | None
    ratio: float | None
    tolerance: float
    mean: float
    std: float


def schedule_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Prints a suggestion and writes a config file if asked to; True when done.

    Raises:
        ValueError: If the config does not fit the data, or memory cannot hold the examples.
        OSError: If a file is missing, or the config file exists already or cannot be written.
    """
    del devices
    validate(command.config)
    file = command.options.write and expanded(command.options.write)
    if file:
        check_config_file(file)
    config, examples = read_examples(command)
    found = suggest(config, examples, command.changes)
    print_suggestion(found)
    if file:
        config = config_for_data(config, examples, found, command.changes)
        validate(config)
        write_config(file, config, examples, found)
        announce(f"wrote {file}")
        announce(f"next: {workdir.command_line('--config', file)}")
    return True


def check_config_file(file: Path) -> None:
    """Raises an OSError or a ValueError if a config file cannot be created."""
    if file.exists():
        raise FileExistsError(f"--write={file} exists already: choose another name, or remove it")
    if file.suffix != ".py":
        raise ValueError(f"--write={file} must end with .py: a config is a Python file")
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"--write={file}: there is no folder {file.absolute().parent}")


def read_examples(command: Command) -> tuple[dict[str, Any], Examples]:
    """Reads the training examples, or a random part of them, in the network's unit.

    Without a size in the config, images of a source that can resize them keep their size if all
    have the same and a small U-Net can take it; otherwise they are resized.

    Returns:
        The config to adapt to the examples, as `suited_config`, and the examples.

    Raises:
        ValueError: If the source does not fit the config, there are fewer than two examples, or
            there are more than memory may hold.
        OSError: If a file is missing.
    """
    settings = dict(command.config["data"])
    resizes = takes(SOURCES, settings["source"], "data.source", "transform")
    if resizes and settings["size"] is None:
        # Images of another shape than the first, or damaged ones, are found when they are read.
        with contextlib.suppress(UnreadableImageError):
            data = build.open_source(settings)
            if _is_small(data.train.shape[1:]):
                return _suited_and_read(command, settings, data)
        settings |= {"size": LARGEST_SIZE, "channels": settings["channels"] or 3}
        announce(
            f"images are resized to {LARGEST_SIZE}x{LARGEST_SIZE}; --config.data.size chooses "
            "another size"
        )
    return _suited_and_read(command, settings, build.open_source(settings))


def _is_small(shape: tuple[int, ...]) -> bool:
    """True for square images that a small U-Net takes as they are."""
    height, width = shape[:2]
    return height == width and height % 2 == 0 and height <= LARGEST_SIZE


def _suited_and_read(
    command: Command, settings: dict[str, Any], data: Dataset
) -> tuple[dict[str, Any], Examples]:
    config = suited_config(command, settings, data.train.shape[1:])
    return config, _read(config, dict(config["data"]), data, command.options.subsample)


def suited_config(
    command: Command, settings: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, Any]:
    """The config of a command with its data; for small images, `small_images` as the default.

    A config that --config or --workdir chose stays. In the default config, images with an odd side
    get squares of one pixel, unless the command sets model.patch_size.

    Args:
        command: The command.
        settings: The section `data` with which the data set was opened.
        shape: Shape of one example.
    """
    is_image = len(shape) == 3 and shape[2] in (1, 3)
    if not (command.is_default and is_image and _is_small(shape) and shape[0] >= SMALLEST_SIZE):
        config = {**command.config, "data": settings}
        is_odd = is_image and any(side % 2 for side in shape[:2])
        is_free = command.is_default and "model.patch_size" not in command.changes
        if is_odd and is_free and "patch_size" in config["model"]:
            # Squares of 2x2 pixels do not divide these images.
            config["model"] = {**config["model"], "patch_size": 1}
        return config

    # `config_for_data` replaces the mean and the standard deviation.
    size, _, channels = shape
    arguments = {"size": size, "channels": channels, "mean": 0.5, "std": 0.5}
    if "training.num_steps" in command.changes:
        arguments["num_steps"] = command.changes["training.num_steps"]
    config = plain(small_images(**arguments))
    if command.changes.get("data.labels"):
        config["loss"]["num_references"] = 0  # References have no labels.
    config = overridden(config, command.changes)
    config["data"] |= {"size": size, "channels": channels}
    announce(f"images of {size}x{size}: the settings are those of --config=mnist_small")
    return config


def _read(
    config: Mapping[str, Any], settings: dict[str, Any], data: Dataset, subsample: int | None
) -> Examples:
    number = len(data.train)
    if number < 2 or (subsample is not None and subsample < 2):
        raise ValueError(
            f"--subsample={subsample} must be 2 or more; without it, all {number} training "
            "examples are compared, which must be 2 or more"
        )
    if subsample is None and not build.fits(data, settings):
        raise ValueError(
            f"{number} training examples are more than config.data.device_megabytes="
            f"{settings['device_megabytes']} hold: give --subsample, the number of them to compare"
        )

    # Adapt the section to the data: labels only if there are classes, pixels only if there are.
    if not data.num_classes:
        settings = {**settings, "labels": False, "label_dropout": 0.0}
    if not data.num_values:
        settings = {**settings, "dequantize": False, "logit": False, "flip": False}
    if data.note:
        announce(data.note)

    # Read the examples in the network's unit.
    index = np.arange(number)
    if subsample is not None and subsample < number:
        rng = np.random.default_rng(config["seed"])
        index = np.sort(rng.permutation(number)[:subsample])
    announce(
        f"reading {len(index)} of {number} training examples {list(data.train.shape[1:])} ..."
    )
    stored = in_memory(data.train) if len(index) == number else data.train[index]
    x = unit_scale(stored, data.num_values, settings["dequantize"])
    if settings["logit"]:
        x = np.asarray(logit(x))
    return Examples(settings, data, index, x)


def suggest(
    config: Mapping[str, Any], examples: Examples, changes: Mapping[str, Any]
) -> Suggestion:
    """Derives noise levels and the steps of the sampler from a data set.

    Args:
        config: The config, whose levels are replaced.
        examples: The training examples.
        changes: The settings that flags give, by dotted name.

    Raises:
        ValueError: If the examples are too close to each other for the last noise level.
    """
    is_normal = config["loss"]["levels"] == "normal"
    std = float(np.std(examples.x, dtype=np.float64))
    if is_normal:
        levels = normally_distributed_levels(config, examples, std, changes)
    else:
        levels = levels_by_techniques(config, examples)
    tolerance = TOLERANCE_OF_NORMAL if is_normal else TOLERANCE
    sigmas = geometric_sigmas(**levels.settings)
    sampler = build.build_sampler(config["sampling"])
    num_steps, ratio, config_ratio = suggest_steps(
        sampler, sigmas, std, config["sampling"], tolerance
    )
    return Suggestion(
        levels=levels,
        num_steps=num_steps,
        step_size=default_step_size(sampler, sigmas, num_steps),
        config_ratio=config_ratio,
        ratio=ratio,
        tolerance=tolerance,
        mean=float(np.mean(examples.x, dtype=np.float64)),
        std=std,
    )


def levels_by_techniques(config: Mapping[str, Any], examples: Examples) -> Levels:
    """Noise levels by techniques 1 and 2 of NCSNv2, down to the last level of a config.

    Raises:
        ValueError: If the config's last noise level is not below the largest distance.
    """
    sigma_min = config["noise"]["sigma_min"]
    dimension = int(np.prod(examples.shape))
    distance = largest_distance(examples.x)
    if distance.value <= sigma_min:
        raise ValueError(
            f"the largest distance, {distance.value:.4g}, is not above config.noise.sigma_min="
            f"{sigma_min:g}: lower it, or scale the data to about unit size"
        )
    first, second = (int(examples.index[i]) for i in (distance.first, distance.second))
    sigma_max = float(f"{distance.value:.3g}")
    fewest_levels = num_levels_for(sigma_max, sigma_min, dimension)
    num_levels = max(FEWEST_LEVELS, fewest_levels)
    level_ratio = (sigma_max / sigma_min) ** (1 / (num_levels - 1))
    return Levels(
        sigma_max,
        sigma_min,
        num_levels,
        lines=(
            f"technique 1: {distance.value:.4f}, between training examples {first} and {second}",
            f"technique 2: {fewest_levels} levels down to {sigma_min:g} in {dimension} "
            f"dimensions; {num_levels} are suggested, overlap "
            f"{overlap(level_ratio, dimension):.3f}",
        ),
        method=f"{num_levels} noise levels, from the largest distance between two training "
        f"examples, {sigma_max:g} (technique 1 of NCSNv2), to {sigma_min:g}, where technique 2 "
        f"asks for {fewest_levels}.",
    )


def normally_distributed_levels(
    config: Mapping[str, Any], examples: Examples, std: float, changes: Mapping[str, Any]
) -> Levels:
    """Noise levels for `noise.normal_levels`: about a middle level, as `small_image_levels`.

    The first level is large enough for the widest direction of the data; colour photos differ most
    in brightness. Levels that flags give are kept.

    Args:
        config: The config, whose number of levels is kept.
        examples: The training examples.
        std: Standard deviation of all of their values.
        changes: The settings that flags give, by dotted name.

    Raises:
        ValueError: If the examples hardly differ.
    """
    index = spread_index(len(examples.x), min(len(examples.x), COMPONENT_EXAMPLES))
    widest = float(principal_components(examples.x[index], 1).variance[0]) ** 0.5
    std = max(std, LEAST_COMPONENT)
    levels = small_image_levels(std)
    if levels["sigma_max"] < COMPONENT_LEVEL * widest:
        levels = small_image_levels(std, COMPONENT_LEVEL * widest)
    given = {name: changes[f"noise.{name}"] for name in levels if f"noise.{name}" in changes}
    sigma_max, sigma_min = (levels | given).values()
    least = max(sigma_min, LEAST_COMPONENT)
    if widest <= least:
        raise ValueError(
            "the training examples hardly differ: their standard deviation along the first "
            f"principal component, {widest:.3g}, must be above {least:.3g}"
        )
    num_levels = config["noise"]["num_levels"]
    line = f"standard deviation along the first principal component: {widest:.4g}"
    return Levels(
        sigma_max,
        sigma_min,
        num_levels,
        lines=(line,),
        method=f"{num_levels} noise levels from {sigma_max:g} to {sigma_min:g}, most often near "
        f"{(sigma_max * sigma_min) ** 0.5:.2g}, with the weights of Karras et al. (2022); the "
        f"standard deviation of the data along their first principal component is {widest:.3g}.",
    )


def suggest_steps(
    sampler: Callable,
    sigmas: jax.Array,
    std: float,
    settings: Mapping[str, Any],
    tolerance: float,
) -> tuple[int, float | None, float | None]:
    """The steps with which chains on a Gaussian end with its variance, within a tolerance.

    Args:
        sampler: The sampler.
        sigmas: Noise levels, decreasing.
        std: Standard deviation of the Gaussian.
        settings: The config's section `sampling`.
        tolerance: Relative error of the variance.

    Returns:
        The steps of the config if they suffice, else the first sufficient multiple of them or, if
        there is none, the best; the ratio of the variances with them and with those of the config.
        For a user's own sampler, those of the config and None.
    """
    if is_own(settings["method"]):
        return settings["num_steps"], None, None
    ratios = {}
    for factor in FACTORS:
        num_steps = factor * settings["num_steps"]
        step_size = default_step_size(sampler, sigmas, num_steps)
        arguments = {} if step_size is None else {"step_size": step_size}
        variance = final_variance(
            sampler,
            sigmas,
            np.asarray([std**2], np.float32),
            num_steps=num_steps,
            denoise=settings["denoise"],
            **arguments,
        )
        ratios[num_steps] = float(variance[0]) / std**2
        if abs(ratios[num_steps] - 1) <= tolerance:
            break
    best = min(ratios, key=lambda num_steps: abs(ratios[num_steps] - 1))
    return best, ratios[best], ratios[settings["num_steps"]]


def print_suggestion(found: Suggestion) -> None:
    """Prints a suggestion, ending with a fragment of a config."""
    for line in found.levels.lines:
        announce(line)
    announce(describe_steps(found))
    announce(f"mean {found.mean:.4f}, standard deviation {found.std:.4f}")
    announce("")
    for name, value in found.levels.settings.items():
        announce(f"config.noise.{name} = {value}")
    announce(f"config.sampling.num_steps = {found.num_steps}")
    if found.step_size is not None:
        announce(f"config.sampling.step_size = {found.step_size:.2g}")


def describe_steps(found: Suggestion) -> str:
    """One sentence about the width with which chains end, and the steps that follow from it."""
    if found.ratio is None:
        return f"{found.num_steps} steps of your own sampler"
    words = f"Chains of the config's steps end {_excess(found.config_ratio)} on Gaussian data"
    if found.config_ratio != found.ratio:
        words += f"; {found.num_steps} steps end {_excess(found.ratio)}"
        if abs(found.ratio - 1) > found.tolerance:
            words += ", the best of those tried: choose another config.sampling.method"
    if found.step_size is not None:
        words += f"; step size {found.step_size:.2e}"
    return words


def _excess(ratio: float) -> str:
    """A ratio of variances in words, such as "12.7 % too wide"."""
    return f"{100 * abs(ratio - 1):.1f} % too {'wide' if ratio > 1 else 'narrow'} in variance"


def config_for_data(
    config: Mapping[str, Any],
    examples: Examples,
    found: Suggestion,
    changes: Mapping[str, Any],
) -> dict[str, Any]:
    """The config at hand with the data, noise levels and network that fit a data set.

    Args:
        config: The config.
        examples: The training examples.
        found: The noise levels and steps.
        changes: The settings that flags give, by dotted name.

    Raises:
        ValueError: If its network does not take the images.
    """
    config = copy.deepcopy(dict(config))
    config["data"] = {**examples.settings, "path": _absolute(examples.settings)}
    config["noise"] = found.levels.settings
    if config["loss"]["data_std"] is not None:
        config["loss"]["data_std"] = _short(found.std)
    config["sampling"]["step_size"] = None
    config["sampling"]["num_steps"] = found.num_steps
    config["sampling"]["num_frames"] = min(
        config["sampling"]["num_frames"], found.levels.num_levels
    )

    # Keep the network at hand if it can take the data; points need a perceptron.
    if len(examples.shape) != 3 and config["model"]["name"] in build.IMAGE_MODELS:
        config["model"] = {"name": "mlp", "hidden": (128, 128)}
    if not takes(MODELS, config["model"]["name"], "model.name", "num_classes"):
        config["data"] |= {"labels": False, "label_dropout": 0.0}
    if config["model"]["name"] == "unet":
        from score_jax.models.unet import size_divisor

        height, width, _ = examples.shape
        divisor = size_divisor(config["model"]["patch_size"], config["model"]["multipliers"])
        if height % divisor or width % divisor:
            raise ValueError(
                f"this U-Net takes images whose height and width are multiples of {divisor}, but "
                f"these are {height}x{width}: set config.data.size, or choose another "
                "config.model.name"
            )
        # Guidance begins at a multiple of the standard deviation of the data.
        largest = config["sampling"]["autoguidance_sigma_max"]
        if largest is not None and "sampling.autoguidance_sigma_max" not in changes:
            largest *= found.std / config["model"]["data_std"]
            config["sampling"]["autoguidance_sigma_max"] = float(f"{largest:.2g}")
        config["model"]["data_mean"] = _short(found.mean)
        config["model"]["data_std"] = _short(found.std)
        # A Gaussian with more components than this has those of the sample, not of the data.
        most = len(examples.data.train) // EXAMPLES_PER_COMPONENT
        config["model"]["components"] = min(config["model"]["components"], most)
    return config


def _absolute(settings: Mapping[str, Any]) -> str | None:
    """The path of the data, valid from any folder; archives can be several paths."""
    if settings["path"] is None:
        return None
    parts = [os.path.expanduser(settings["path"])]
    if settings["source"] == "zip":
        parts = listed(settings["path"], matching_files)
    return ",".join(os.path.abspath(part) for part in parts)


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def write_config(
    file: Path, config: Mapping[str, Any], examples: Examples, found: Suggestion
) -> None:
    """Writes a config as a Python file that `--config` reads.

    Raises:
        OSError: If the file exists already or cannot be written.
    """
    lines = [
        sheet(file, config, examples, found),
        "",
        "import ml_collections",
        "",
        "from score_jax.cli.settings import ncsn",
        "",
        "",
        "def get_config() -> ml_collections.ConfigDict:",
        "    return ncsn(",
    ]
    lines.append(f"        seed={config['seed']},")
    for section in SECTIONS:
        lines.append(f"        {section}={{")
        for name in sorted(config[section], key=lambda name: _position(section, name)):
            lines.append(f'            "{name}": {_literal(config[section][name])},')
        lines.append("        },")
    lines.append("    )")
    with file.open("x") as stream:
        stream.write("\n".join(lines) + "\n")


def _position(section: str, name: str) -> int:
    """Position of a setting in the table; settings that it does not have come last."""
    names = list(SETTINGS)
    return names.index(f"{section}.{name}") if f"{section}.{name}" in names else len(names)


def _literal(value: Any) -> str:
    """A value as Python source."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def sheet(file: Path, config: Mapping[str, Any], examples: Examples, found: Suggestion) -> str:
    """The docstring of a config file: its data, how its settings were chosen, its command."""
    shape = "x".join(str(length) for length in examples.shape)
    kind = "Images" if len(examples.shape) == 3 else "Points"
    data = examples.data
    classes = ""
    if data.num_classes and not config["data"]["labels"]:
        classes = f" Their {data.num_classes} classes are not used; data.labels=True uses them."
    paragraphs = [
        f"{kind} of {shape}, from the source {config['data']['source']}.",
        "",
        f"Data: {len(data.train)} training examples and {len(data.held_out)} held-out ones."
        f"{classes}",
        f"Method: {found.levels.method} {describe_steps(found)}.",
        *_network_sheet(config["model"], found),
        "Cost and quality: not measured; --dry_run estimates the time. More steps "
        "(training.num_steps) and a wider network (model.width, or model.hidden) give better "
        "samples of more varied data.",
    ]
    lines = []
    for paragraph in paragraphs:
        lines += textwrap.wrap(paragraph, 99, subsequent_indent="    ") or [""]
    lines.append(f"Command: {workdir.command_line('--config', file)}")
    text = "\n".join(lines).replace("\\", "\\\\").replace('"', '\\"')
    return f'"""{text}\n"""'


def _network_sheet(settings: Mapping[str, Any], found: Suggestion) -> list[str]:
    """The paragraph of a config's docstring about its network."""
    if settings["name"] == "unet":
        law = "the mean and standard deviation of the data"
        if settings["components"]:
            law += f", and {settings['components']} principal components"
        return [f"Network: a small U-Net, with {law}."]
    if settings["name"] != "mlp":
        return []
    text = (
        "Network: a perceptron, which expects data of about unit size. These have mean "
        f"{found.mean:.3g} and standard deviation {found.std:.3g}"
    )
    if 0.2 <= found.std <= 5 and abs(found.mean) <= 5:
        return [f"{text}."]
    return [f"{text}: scale them to mean 0 and standard deviation 1 for better samples."]
