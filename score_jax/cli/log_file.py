"""Reads metrics.json, which holds the losses of training and the seconds of each action."""

from pathlib import Path
from typing import Any

from score_jax.cli.workdir import read_json


def read_log(folder: Path) -> dict[str, Any]:
    """The content of metrics.json; empty if there is no such file.

    Raises:
        ValueError: If it does not hold lists of [step, loss] and the seconds of each action.
    """
    path = Path(folder) / "metrics.json"
    content = read_json(path) or {}
    losses = [content.get(name, []) for name in ("train_loss", "held_out_loss")]
    seconds = content.get("seconds", {})
    sound = all(isinstance(each, list) and all(map(_is_entry, each)) for each in losses)
    if not sound or not isinstance(seconds, dict) or not all(map(_is_number, seconds.values())):
        raise ValueError(
            f"{path} does not hold lists of [step, loss] and the seconds of each action: restore "
            "it from a copy, or move it away"
        )
    return content


def _is_entry(entry: Any) -> bool:
    """True for [step, loss], the loss finite or not."""
    return isinstance(entry, list) and len(entry) == 2 and all(map(_is_number, entry))


def _is_number(value: Any) -> bool:
    """True for a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63
