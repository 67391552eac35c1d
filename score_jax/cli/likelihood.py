"""Computes the log density of held-out data and writes it to likelihood.json."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from score_jax.cli import workdir
from score_jax.cli.flags import Command
from score_jax.cli.run import Run, open_run
from score_jax.data.dataset import spread_index
from score_jax.data.transforms import dequantize, logit_log_volume, make_prepare
from score_jax.evaluation.densities import Likelihood, log_likelihood
from score_jax.likelihood import bits_per_dimension
from score_jax.noise import example_keys, run_keys
from score_jax.progress import announce

EXACT = 16
"""Largest number of dimensions with an exact trace, which costs as much as so many probes."""
PROBES = 4
"""Probes per example otherwise."""
FOR_PRIOR, CHUNK = 4096, 256
"""Largest number of training examples that the prior's moments are taken from; at once."""


def likelihood_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Prints the log density of held-out data and writes likelihood.json; True when done.

    Raises:
        ValueError: If the command does not match the workdir.
        OSError: If there is no checkpoint, or the file cannot be written.
        FloatingPointError: If the solver does not finish; nothing is written.
    """
    # Check everything before anything is compiled.
    run = open_run(command, devices, needs_data=True, decode=True)
    if len(run.sigmas) < 2:
        raise ValueError(
            f"--mode=likelihood needs two or more noise levels, but the network of --workdir="
            f"{run.folder} has config.noise.num_levels=1"
        )
    available = len(run.data.held_out)
    wanted = command.options.number
    number = available if wanted is None else min(wanted, available)

    # Examples evenly spread over the held-out set, which can be sorted by class.
    index = spread_index(available, number)
    labels = run.data.held_out_labels
    prepare = build_prepare(run)
    mean, variance = moments(run, prepare)
    dimension = int(np.prod(run.shape))
    begun = time.monotonic()
    found = log_likelihood(
        run.score_fn(run.state.ema_params),
        run.data.held_out[index],
        run.sigmas,
        label=None if labels is None else labels[index],
        prepare=prepare,
        log_volume=logit_log_volume if run.config["data"]["logit"] else None,
        num_probes=None if dimension <= EXACT else PROBES,
        mean=mean,
        variance=variance,
        seed=run.config["seed"],
        batch_size=run.chains_at_once(number),
        devices=devices,
        device_megabytes=run.config["data"]["device_megabytes"],
    )
    report = summary(run, found, time.monotonic() - begun)
    print_summary(run, report)
    workdir.write_json(run.folder / "likelihood.json", report)
    announce(f"wrote {run.folder / 'likelihood.json'}")
    return True


def build_prepare(run: Run) -> Callable:
    """Dequantisation of held-out examples, (keys, x, label) -> (x, label), without flips.

    Pixels v that the network knows as v / (num_values - 1) are spread over the cells around those
    values, other pixels over those of training.
    """
    settings, num_values = run.config["data"], run.data.num_values
    if num_values is None or settings["dequantize"]:
        return make_prepare(num_values, logit=settings["logit"])

    def prepare(keys, x, label=None):
        position = num_values * dequantize(keys, x, num_values)
        return (position - 0.5) / (num_values - 1), label

    return prepare


def values_per_unit(run: Run) -> int | None:
    """Number of pixel values per unit of dequantised data; None if the data are not pixels."""
    num_values = run.data.num_values
    if num_values is None or run.config["data"]["dequantize"]:
        return num_values
    return num_values - 1


def moments(run: Run, prepare: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each dimension of the prepared training examples, float32 [*shape]."""
    train = run.data.train
    number = min(len(train), FOR_PRIOR)
    index = spread_index(len(train), number)
    key = run_keys(run.config["seed"])["evaluate"]
    total = np.zeros((2, *run.shape))
    for first in range(0, number, CHUNK):
        chosen = index[first : first + CHUNK]
        x = np.asarray(prepare(example_keys(key, chosen), train[chosen])[0], np.float64)
        total += np.stack([x.sum(axis=0), (x**2).sum(axis=0)])
    mean = total[0] / number
    variance = np.maximum(total[1] / number - mean**2, 0.0)
    return mean.astype(np.float32), variance.astype(np.float32)


def summary(run: Run, found: Likelihood, seconds: float) -> dict[str, Any]:
    """Means and errors, as likelihood.json stores them."""
    dimension = int(np.prod(run.shape))
    nats = {
        "mean": float(found.log_density.mean()),
        "standard_error": found.standard_error if len(found.log_density) > 1 else None,
        "trace_error": found.trace_error,
        "solver_error": found.solver_error,
    }
    report = {
        "step": run.step,
        "examples": len(found.log_density),
        "given_labels": run.conditional,
        "dimensions": dimension,
        "sigma_min": float(run.sigmas[-1]),
        "trace": "exact" if dimension <= EXACT else f"{PROBES} probes",
        "evaluations": float(found.num_evaluations.mean()),
        "most_evaluations": int(found.num_evaluations.max()),
        "seconds": round(seconds, 1),
        "log_density": nats,
    }
    if values_per_unit(run) is not None:
        unit = dimension * np.log(2)
        errors = {name: error if error is None else error / unit for name, error in nats.items()}
        bits = float(bits_per_dimension(nats["mean"], dimension, values_per_unit(run)))
        report["bits_per_dimension"] = errors | {"mean": bits}
    return report


def print_summary(run: Run, report: dict[str, Any]) -> None:
    """Prints a report."""
    given = ", given their classes" if report["given_labels"] else ""
    announce(
        f"density of data with noise of sigma_min={report['sigma_min']:g} at {report['examples']} "
        f"held-out examples{given}, step {report['step']}:"
    )
    name, what = "log_density", "log density in nats"
    if "bits_per_dimension" in report:
        name, what = "bits_per_dimension", "bits per dimension (an upper bound for the pixels)"
    values = report[name]
    error = values["standard_error"]
    spread = "" if error is None else f" +- {error:.2g} (standard error over examples)"
    announce(f"{what}: {values['mean']:.4f}{spread}")
    trace = report["trace"] if report["trace"] == "exact" else f"{values['trace_error']:.2g}"
    announce(
        f"error of the solver about {values['solver_error']:.2g}, of the trace {trace} "
        f"({report['trace']}), {report['evaluations']:.0f} evaluations of the network's score per "
        f"example, {report['seconds']:.0f} s"
    )
