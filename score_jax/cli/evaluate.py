"""The held-out loss and the calibration at every noise level, for evaluation.json."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from score_jax.cli import build, workdir
from score_jax.cli.flags import Command
from score_jax.cli.names import naming
from score_jax.cli.run import Run, open_run
from score_jax.data.dataset import spread_index
from score_jax.evaluation.calibration import (
    calibrate,
    calibration_warnings,
    residual_scalars,
    residuals,
)
from score_jax.evaluation.objective import evaluate, map_examples
from score_jax.progress import announce

RESIDUAL_BYTES, FEWEST_RESIDUALS = 400_000_000, 64
"""Memory for the residuals of the calibration, and the smallest number of its examples."""


def evaluate_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Prints the held-out loss at every noise level and writes evaluation.json; True when done.

    Raises:
        ValueError: If the command does not match the workdir.
        OSError: If there is no checkpoint, or the file cannot be written.
    """
    run = open_run(command, devices, needs_data=True, decode=True)
    arguments = {
        "seed": run.config["seed"],
        "prepare": build.build_prepare(run.config["data"], run.data, dropout=False),
        "batch_size": run.config["training"]["batch_size"],
        "devices": devices,
        "device_megabytes": run.config["data"]["device_megabytes"],
    }
    score_fn = run.score_fn(run.state.ema_params)
    x, label = run.data.held_out, run.data.held_out_labels
    with naming("training", "data"):
        losses = evaluate(
            build.build_loss(run.config["loss"]),
            score_fn,
            x,
            run.sigmas,
            label=label,
            **arguments,
        )
        # The bias needs whole residuals, which may be too large.
        index, whole = calibration_index(run)
        found = map_examples(
            residuals if whole else residual_scalars,
            score_fn,
            x[index],
            run.sigmas,
            label=None if label is None else label[index],
            **arguments,
        )
    rows = calibrate(jax.tree.map(lambda part: part[0], found), run.sigmas, _eigenvalues(run))
    report = summary(run, losses, rows)
    report["calibration_examples"] = len(index)
    report["warnings"] = calibration_warnings(rows, run.sigmas)
    print_summary(run, report)
    workdir.write_json(run.folder / "evaluation.json", report)
    announce(f"wrote {run.folder / 'evaluation.json'}")
    return True


def calibration_index(run: Run) -> tuple[np.ndarray, bool]:
    """Held-out examples of the calibration, evenly spread, and if their residuals are kept whole.

    They are kept for as many examples as fit into memory, if these are enough.
    """
    number = len(run.data.held_out)
    each = 8 * len(run.sigmas) * int(np.prod(run.shape))
    fitting = RESIDUAL_BYTES // each
    whole = fitting >= max(FEWEST_RESIDUALS, run.config["training"]["batch_size"])
    kept = min(number, fitting) if whole else number
    return spread_index(number, kept), whole


def _eigenvalues(run: Run) -> np.ndarray | None:
    """Eigenvalues of the training data's covariance; None if they are not known."""
    return run.moments.eigenvalues


def summary(run: Run, losses: np.ndarray, calibration: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Losses [examples, levels] and calibration, as evaluation.json stores them."""
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
                **calibration[level],
            }
        )
    return {
        "step": run.step,
        "examples": number,
        "held_out_loss": float(means.mean()),
        "held_out_loss_error": float(losses.mean(axis=1).std() / np.sqrt(number)),
        "levels": levels,
    }


def print_summary(run: Run, report: dict[str, Any]) -> None:
    """Prints a report as a table."""
    announce(
        f"held-out loss of step {report['step']} on {report['examples']} examples, sum over "
        f"{int(np.prod(run.shape))} dimensions:"
    )
    announce(
        "level    sigma      loss  standard error  residual  linear  slope +- error    bias"
        "  whiteness"
    )
    for row in report["levels"]:
        announce(
            f"{row['level']:5d} {row['sigma']:8.4g} {row['loss']:9.4f} "
            f"{row['standard_error']:15.4f} {_cell(row['residual'], 9)} "
            f"{_cell(row['gaussian_residual'], 7)} {_cell(row['slope'], 6)} +- "
            f"{_cell(row['slope_error'], 5)} {_cell(row['bias'], 7)} {_cell(row['whiteness'], 10)}"
        )
    announce(
        f" mean          {report['held_out_loss']:9.4f} {report['held_out_loss_error']:15.4f}"
    )
    for sentence in report["warnings"]:
        announce(f"warning: {sentence}")


def _cell(value: float | None, width: int) -> str:
    """A value of the table, or a dash if it is not defined."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.3f}"
