"""Computes the held-out loss at every noise level and writes it to evaluation.json."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from score_jax.cli import build, workdir
from score_jax.cli.flags import Command
from score_jax.cli.names import naming
from score_jax.cli.run import Run, open_run
from score_jax.evaluation.objective import evaluate
from score_jax.progress import announce


def evaluate_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Prints the held-out loss at every noise level and writes evaluation.json; True when done.

    Raises:
        ValueError: If the command does not match the workdir.
        OSError: If there is no checkpoint, or the file cannot be written.
    """
    run = open_run(command, devices, needs_data=True, decode=True)
    with naming("training", "data"):
        losses = evaluate(
            build.build_loss(run.config["loss"]),
            run.score_fn(run.state.ema_params),
            run.data.held_out,
            run.sigmas,
            seed=run.config["seed"],
            label=run.data.held_out_labels,
            prepare=build.build_prepare(run.config["data"], run.data, dropout=False),
            batch_size=run.config["training"]["batch_size"],
            devices=devices,
            device_megabytes=run.config["data"]["device_megabytes"],
        )
    report = summary(run, losses)
    print_summary(run, report)
    workdir.write_json(run.folder / "evaluation.json", report)
    announce(f"wrote {run.folder / 'evaluation.json'}")
    return True


def summary(run: Run, losses: np.ndarray) -> dict[str, Any]:
    """Means and standard errors of losses [examples, levels], as evaluation.json stores them."""
    number = len(losses)
    means = losses.mean(axis=0)
    errors = losses.std(axis=0) / np.sqrt(number)
    levels = []
    for level, sigma in enumerate(np.asarray(run.sigmas)):
        levels.append(
            {
                "level": level,
                "sigma": float(sigma),
                "loss": float(means[level]),
                "standard_error": float(errors[level]),
            }
        )
    return {
        "step": run.step,
        "examples": number,
        "held_out_loss": float(means.mean()),
        "levels": levels,
    }


def print_summary(run: Run, report: dict[str, Any]) -> None:
    """Prints a report as a table."""
    announce(
        f"held-out loss of step {report['step']} on {report['examples']} examples, sum over "
        f"{int(np.prod(run.shape))} dimensions:"
    )
    announce("level    sigma      loss  standard error")
    for row in report["levels"]:
        announce(
            f"{row['level']:5d} {row['sigma']:8.4g} {row['loss']:9.4f} "
            f"{row['standard_error']:9.4f}"
        )
    announce(f" mean          {report['held_out_loss']:9.4f}")
