"""Noise levels and step size that a data set suggests, as a fragment of a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_jax.config import validate
from score_jax.data.dataset import logit, unit_scale
from score_jax.noise import geometric_sigmas
from score_jax.run.build import fits, load_data
from score_jax.run.job import Options, say
from score_jax.schedule import Distance, largest_distance, num_levels_for, overlap, step_size_for


class Suggestion(NamedTuple):
    """What a data set suggests.

    Attributes:
        distance: The largest distance between two training examples, and which.
        dimension: Of an example.
        sigma_min: The config's last noise level.
        num_steps: The config's steps per level.
    """

    distance: Distance
    dimension: int
    sigma_min: float
    num_steps: int


def prepare_schedule(config: Mapping[str, Any], folder: Path, devices, options: Options) -> Suggestion:
    """Finds the largest distance; the folder plays no part.

    Raises:
        ValueError: If the config does not fit, fewer than two examples are asked for, or more than memory may hold.
        OSError: If a file is missing.
    """
    validate(config)
    settings = config["data"]
    data = load_data(settings, decode=options.subsample == 0)[0]
    number, event = len(data.train), data.train.shape[1:]
    if options.subsample == 1 or options.subsample < 0 or number < 2:
        raise ValueError(f"--subsample={options.subsample} must be 2 or more, or 0 for all {number} training examples")
    if options.subsample == 0 and not fits(data, settings):
        raise ValueError(
            f"{number} training examples are more than config.data.device_megabytes={settings['device_megabytes']} hold: give "
            "--subsample, how many of them to compare"
        )
    order = np.arange(number)
    if 0 < options.subsample < number:
        order = np.sort(np.random.default_rng(config["seed"]).permutation(number)[: options.subsample])
    say(f"largest distance between two of {len(order)} of {number} training examples {list(event)} ...")
    x = unit_scale(data.train[order], data.num_values, settings["dequantize"])
    distance = largest_distance(np.asarray(logit(x)) if settings["logit"] else x)
    if distance.value <= config["noise"]["sigma_min"]:
        raise ValueError(
            f"the largest distance, {distance.value:.4g}, is not above config.noise.sigma_min={config['noise']['sigma_min']:g}: "
            "lower it"
        )
    distance = distance._replace(first=int(order[distance.first]), second=int(order[distance.second]))
    return Suggestion(distance, int(np.prod(event)), config["noise"]["sigma_min"], config["sampling"]["num_steps"])


def print_schedule(found: Suggestion) -> bool:
    """Prints what techniques 1, 2 and 4 of NCSNv2 suggest; True when done."""
    sigma_max, sigma_min = float(f"{found.distance.value:.3g}"), found.sigma_min
    num_levels = num_levels_for(sigma_max, sigma_min, found.dimension)
    step_size = step_size_for(geometric_sigmas(sigma_max, sigma_min, num_levels), found.num_steps)
    condition = overlap((sigma_max / sigma_min) ** (1 / (num_levels - 1)), found.dimension)
    say(f"technique 1: {found.distance.value:.4f}, between training examples {found.distance.first} and {found.distance.second}")
    say(f"technique 2: {num_levels} levels down to {sigma_min:g} in {found.dimension} dimensions, overlap {condition:.3f}")
    say(f"technique 4: step size {step_size:.2e} for {found.num_steps} steps per level")
    say("")
    say(f"config.noise.sigma_max = {sigma_max}")
    say(f"config.noise.sigma_min = {sigma_min}")
    say(f"config.noise.num_levels = {num_levels}")
    say(f"config.sampling.num_steps = {found.num_steps}")
    say(f"config.sampling.step_size = {step_size:.2g}")
    return True
