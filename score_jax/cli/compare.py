"""Compares the held-out losses of several runs and writes compare.json and compare.png."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax.analytic import mixture_score_fn
from score_jax.cli import images, workdir
from score_jax.cli import likelihood as densities
from score_jax.cli.comparison_report import Result, describe, picture, print_result, summary
from score_jax.cli.flags import Command
from score_jax.cli.names import naming
from score_jax.cli.run import Run, open_run
from score_jax.cli.settings import completed
from score_jax.continuous_score import at_sigmas
from score_jax.data import sources
from score_jax.data.dataset import spread_index
from score_jax.data.transforms import logit_log_volume, make_prepare
from score_jax.evaluation.comparison import compare
from score_jax.evaluation.densities import log_likelihood
from score_jax.evaluation.objective import common_sigmas, map_examples, score_error
from score_jax.likelihood import bits_per_dimension
from score_jax.losses.dsm import annealed_dsm
from score_jax.losses.ssm import annealed_ssm
from score_jax.progress import announce
from score_jax.reading import listed

MEANINGS = {
    "dsm": "denoising score matching, sum over {dimension} dimensions",
    "ssm": "sliced score matching, sum over {dimension} dimensions",
    "exact": "sigma^2 / 2 |score - true score|^2, sum over {dimension} dimensions",
    "likelihood": "negative log density of data with noise of sigma_min, in {unit}",
}
"""Objective -> its meaning and unit; lower is better for all."""
DRAWS = 4
"""Number of draws of the noise per example, by default."""
MOST_RUNS = 26
"""Largest number of runs, one letter each."""
CHUNK = 256
"""Number of held-out examples that are hashed at once."""


def compare_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Prints the comparison and writes compare.json and compare.png; True when done.

    Raises:
        ValueError: If the runs cannot be compared, or the command does not match them.
        OSError: If there is no checkpoint, or files cannot be written.
        FloatingPointError: If the solver of a likelihood does not finish.
    """
    # Check everything before anything is compiled.
    options = command.options
    folders = run_folders(options.workdirs)
    runs = [open_one(command, devices, folder) for folder in folders]
    data = runs[0].data
    check_same_data(folders, runs)
    names = objectives(options.objectives, runs)
    labels = [run.data.held_out_labels for run in runs]
    runs = [dataclasses.replace(run, data=data) for run in runs]  # One copy is enough.
    available = len(data.held_out)
    number = min(options.number or available, available)
    if number < 2:
        raise ValueError("--mode=compare needs two or more held-out examples: use --number=2")

    # Examples evenly spread over the held-out set, which can be sorted by class.
    index = spread_index(available, number)
    held_out = data.held_out[index] if number < available else data.held_out
    labels = [None if each is None else each[index] for each in labels]
    seed, draws = command.config["seed"], options.draws or DRAWS
    arguments = {"x": held_out, "seed": seed, "devices": devices}
    describe(folders, runs, number)
    results = []
    levelled = [name for name in names if name != "likelihood"]
    if levelled:
        results += losses_of(levelled, folders, runs, labels, draws, arguments)
    if "likelihood" in names:
        results.append(likelihoods(folders, runs, labels, arguments))

    content = summary(folders, runs, results, number, draws, seed)
    for result in results:
        print_result(result, folders)
    command.workdir.mkdir(parents=True, exist_ok=True)
    workdir.write_json(command.workdir / "compare.json", content)
    with workdir.replacing(command.workdir / "compare.png") as path:
        images.save_png(path, picture(results, folders))
    announce(f"wrote compare.json and compare.png to {command.workdir}")
    return True


# Runs, their data and the objectives


def run_folders(workdirs: str | None) -> list[str]:
    """The folders that --workdirs lists.

    Raises:
        ValueError: If there are fewer than two, too many, or one is listed twice.
    """
    folders = listed(workdirs or "", os.path.isdir)
    if len(folders) < 2:
        given = f"--workdirs={workdirs} is one run" if folders else "--workdirs is missing"
        raise ValueError(f"{given}, but --mode=compare needs two or more: --workdirs=a,b")
    if len(folders) > MOST_RUNS:
        raise ValueError(
            f"--workdirs lists {len(folders)} runs, but must list {MOST_RUNS} at most"
        )
    known: dict[Path, str] = {}
    for folder in folders:
        path = Path(folder).resolve()
        if path in known:
            same = "twice" if known[path] == folder else f"as {known[path]} as well"
            raise ValueError(f"--workdirs lists {folder} {same}: list every run once")
        known[path] = folder
    return folders


def open_one(command: Command, devices: Sequence[jax.Device], folder: str) -> Run:
    """Opens one of the runs with the config saved in its workdir.

    Raises:
        ValueError: As `open_run`, naming the folder.
        OSError: As `open_run`, naming the folder.
    """
    saved = workdir.read_json(Path(folder) / "config.json")
    if saved is None:
        raise FileNotFoundError(
            f"--workdirs={folder} holds no run (no config.json): train first, with --mode=train, "
            "or choose another folder"
        )
    own = command._replace(workdir=Path(folder), config=completed(saved))
    with _naming_workdirs():
        return open_run(own, devices, needs_data=True, decode=True, output=command.workdir)


@contextmanager
def _naming_workdirs() -> Iterator[None]:
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(str(error).replace("--workdir", "--workdirs")) from error


def check_same_data(folders: Sequence[str], runs: Sequence[Run]) -> None:
    """Checks that all runs have the same held-out examples, in the same space.

    Raises:
        ValueError: If one differs from the first; names the difference.
    """
    first, *others = runs
    for folder, run in zip(folders[1:], others, strict=True):
        for what, ours, theirs in _facts(first, run):
            if ours != theirs:
                raise ValueError(
                    f"--workdirs: {folder} has {what} {theirs}, but {folders[0]} {ours}: runs can "
                    "be compared on the same held-out examples only"
                )
        stored = ("source", "path", "name", "train_split", "held_out_split")
        stored += ("crop", "size", "channels")
        if all(run.config["data"][name] == first.config["data"][name] for name in stored):
            continue
        if _hash(run.data.held_out) != _hash(first.data.held_out):
            raise ValueError(
                f"--workdirs: the held-out examples of {folder} are not those of {folders[0]}: "
                "runs can be compared on the same held-out examples only"
            )


def _facts(first: Run, run: Run) -> Iterator[tuple[str, Any, Any]]:
    """Facts about the data that must agree, as (name, that of the first run, that of the run)."""
    for name in ("source", "dequantize", "logit"):
        yield f"config.data.{name}", first.config["data"][name], run.config["data"][name]
    yield "examples of shape", list(first.shape), list(run.shape)
    yield "the number of pixel values", first.data.num_values, run.data.num_values
    yield "the number of held-out examples", len(first.data.held_out), len(run.data.held_out)


def _hash(examples: Any) -> str:
    """A hash of examples [examples, *shape], which may be decoded lazily."""
    found = hashlib.sha256(str(examples.dtype).encode())
    for first in range(0, len(examples), CHUNK):
        found.update(np.ascontiguousarray(examples[first : first + CHUNK]).tobytes())
    return found.hexdigest()


def objectives(text: str | None, runs: Sequence[Run]) -> list[str]:
    """The objectives that --objectives lists, by default those that suit the data.

    Raises:
        ValueError: If one is unknown, listed twice, or not defined for these runs.
    """
    known = runs[0].config["data"]["source"] == "mixture"
    if text is None:
        return ["dsm", "exact"] if known else ["dsm"]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in MEANINGS:
            raise ValueError(f"--objectives={text} must list some of {', '.join(MEANINGS)}")
        if names.count(name) > 1:
            raise ValueError(f"--objectives={text} lists {name} twice")
    if "exact" in names and not known:
        raise ValueError(
            "--objectives=exact needs data whose density is known, config.data.source='mixture', "
            f"but that of these runs is {runs[0].config['data']['source']!r}"
        )
    if "likelihood" in names:
        for run in runs:
            if len(run.sigmas) < 2:
                raise ValueError(
                    "--objectives=likelihood needs two or more noise levels, but the network of "
                    f"{run.folder} has config.noise.num_levels=1"
                )
    return names


# Losses


@dataclasses.dataclass(frozen=True)
class _Losses:
    """Several objectives as one function, name -> losses, with the same noise where they draw it.

    Attributes:
        functions: Pairs (name, objective).
    """

    functions: tuple[tuple[str, Callable], ...]

    def __call__(self, keys, score_fn, x, level, sigmas) -> dict[str, jax.Array]:
        return {name: loss(keys, score_fn, x, level, sigmas) for name, loss in self.functions}


def losses_of(
    names: Sequence[str],
    folders: Sequence[str],
    runs: Sequence[Run],
    labels: Sequence[np.ndarray | None],
    draws: int,
    arguments: dict[str, Any],
) -> list[Result]:
    """The objectives that have a loss at every noise level."""
    with _no_common_range(folders, runs):
        sigmas, note = common_sigmas([run.sigmas for run in runs])
    known = {"dsm": annealed_dsm, "ssm": annealed_ssm}
    if "exact" in names:
        truth = (sources.MIXTURE_WEIGHTS, sources.MIXTURE_MEANS, sources.MIXTURE_SCALES)
        known["exact"] = score_error(mixture_score_fn(*truth, sigmas))
    functions = _Losses(tuple((name, known[name]) for name in names))
    first = runs[0]
    data = first.config["data"]
    prepare = make_prepare(
        first.data.num_values, dequantize=data["dequantize"], logit=data["logit"]
    )

    found = []
    for folder, run, label in zip(folders, runs, labels, strict=True):
        announce(f"{folder}:")
        score_fn = run.score_fn(run.state.ema_params)
        if note is not None:
            score_fn = at_sigmas(score_fn, run.sigmas, sigmas)
        with naming("training", "data"):
            losses = map_examples(
                functions,
                score_fn,
                sigmas=sigmas,
                draws=draws,
                label=label,
                prepare=prepare,
                batch_size=batch_size(runs, "training", len(run.devices)),
                device_megabytes=data["device_megabytes"],
                **arguments,
            )
        found.append({name: each.mean(axis=0) for name, each in losses.items()})

    levels = [float(sigma) for sigma in np.asarray(sigmas)]
    unit = {name: MEANINGS[name].format(dimension=int(np.prod(first.shape))) for name in names}
    results = []
    for name in names:
        losses = {folder: each[name] for folder, each in zip(folders, found, strict=True)}
        comparison = compare(losses, seed=arguments["seed"])
        results.append(Result(name, unit[name], levels, note, comparison))
    return results


@contextmanager
def _no_common_range(folders: Sequence[str], runs: Sequence[Run]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        ranges = ", ".join(
            f"{folder}: {run.sigmas[0]:g} to {run.sigmas[-1]:g}"
            for folder, run in zip(folders, runs, strict=True)
        )
        raise ValueError(f"--workdirs: {error} ({ranges})") from error


def likelihoods(
    folders: Sequence[str],
    runs: Sequence[Run],
    labels: Sequence[np.ndarray | None],
    arguments: dict[str, Any],
) -> Result:
    """Negative log densities of the examples, in bits per dimension or in nats."""
    first = runs[0]
    dimension = int(np.prod(first.shape))
    prepare = densities.build_prepare(first)
    mean, variance = densities.moments(first, prepare)
    num_values = densities.values_per_unit(first)
    losses = {}
    for folder, run, label in zip(folders, runs, labels, strict=True):
        announce(f"{folder}:")
        found = log_likelihood(
            run.score_fn(run.state.ema_params),
            sigmas=run.sigmas,
            label=label,
            prepare=prepare,
            log_volume=logit_log_volume if run.config["data"]["logit"] else None,
            num_probes=None if dimension <= densities.EXACT else densities.PROBES,
            mean=mean,
            variance=variance,
            batch_size=batch_size(runs, "sampling", len(run.devices)),
            device_megabytes=run.config["data"]["device_megabytes"],
            **arguments,
        ).log_density
        if num_values is not None:
            found = -bits_per_dimension(found, dimension, num_values)
        losses[folder] = -found[:, None]

    smallest = {folder: float(run.sigmas[-1]) for folder, run in zip(folders, runs, strict=True)}
    note = None
    if len(set(smallest.values())) > 1:
        listed = ", ".join(f"{folder}: {sigma:g}" for folder, sigma in smallest.items())
        note = (
            f"sigma_min differs ({listed}), so these are densities of differently perturbed data, "
            "and a lower value is not a better network"
        )
    unit = "nats" if num_values is None else "bits per dimension"
    unit = MEANINGS["likelihood"].format(unit=unit)
    return Result("likelihood", unit, [], note, compare(losses, seed=arguments["seed"]))


def batch_size(runs: Sequence[Run], section: str, num_devices: int) -> int:
    """The smallest batch of the runs' configs, rounded up to a multiple of the devices."""
    smallest = min(run.config[section]["batch_size"] for run in runs)
    return -(-smallest // num_devices) * num_devices
