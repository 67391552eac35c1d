"""Noise levels and step size that a data set suggests, as a fragment of a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_jax.config import validate
from score_jax.data.dataset import Dataset
from score_jax.noise import geometric_sigmas
from score_jax.run.build import load_data
from score_jax.run.job import Options, say
from score_jax.schedule import largest_distance, num_levels_for, overlap, step_size_for


class Question(NamedTuple):
    """A data set whose schedule is asked for."""

    config: Mapping[str, Any]
    data: Dataset
    subsample: int


def prepare_schedule(config: Mapping[str, Any], folder: Path, devices, options: Options) -> Question:
    """Loads the data; the folder plays no part.

    Raises:
        ValueError: If the config does not fit, or fewer than two examples are asked for.
        OSError: If a file is missing.
    """
    validate(config)
    data = load_data(config["data"])[0]
    if options.subsample == 1 or options.subsample < 0 or len(data.train) < 2:
        raise ValueError(f"--subsample={options.subsample} must be 2 or more, or 0 for all {len(data.train)} training examples")
    return Question(config, data, options.subsample)


def print_schedule(question: Question) -> bool:
    """Prints what techniques 1, 2 and 4 of NCSNv2 suggest; True when done."""
    config, data, number = question.config, question.data, len(question.data.train)
    order = np.arange(number)
    if 0 < question.subsample < number:
        order = np.sort(np.random.default_rng(config["seed"]).permutation(number)[: question.subsample])
    say(f"largest distance between two of {len(order)} of {number} training examples {list(data.train.shape[1:])} ...")
    distance = largest_distance(_Scaled(data, order))
    sigma_max, sigma_min = float(f"{distance.value:.3g}"), config["noise"]["sigma_min"]
    dimension, num_steps = int(np.prod(data.train.shape[1:])), config["sampling"]["num_steps"]
    num_levels = num_levels_for(sigma_max, sigma_min, dimension)
    sigmas = geometric_sigmas(sigma_max, sigma_min, num_levels)
    ratio = (sigma_max / sigma_min) ** (1 / (num_levels - 1))
    say(f"technique 1: {distance.value:.4f}, between training examples {order[distance.first]} and {order[distance.second]}")
    say(
        f"technique 2: {num_levels} levels down to {sigma_min:g} in {dimension} dimensions, overlap {overlap(ratio, dimension):.3f}"
    )
    say(f"technique 4: step size {step_size_for(sigmas, num_steps):.2e} for {num_steps} steps per level")
    say("")
    say(f"config.noise.sigma_max = {sigma_max}")
    say(f"config.noise.sigma_min = {sigma_min}")
    say(f"config.noise.num_levels = {num_levels}")
    say(f"config.sampling.num_steps = {num_steps}")
    say(f"config.sampling.step_size = {step_size_for(sigmas, num_steps):.2g}")
    return True


class _Scaled:
    """Some training examples, scaled to the unit in which the network knows them, block by block."""

    def __init__(self, data: Dataset, order: np.ndarray):
        self._data, self._order = data, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: slice) -> np.ndarray:
        stored = self._data.train[self._order[rows]]
        return stored.astype(np.float32) / max(self._data.num_values - 1, 1)
