"""A network that the command has trained, as a score function for programs."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from score_jax.cli.flags import parse
from score_jax.cli.run import open_run
from score_jax.typing import Array, ScoreFn


class TrainedNetwork(NamedTuple):
    """A network that the command has trained.

    Attributes:
        score_fn: The score with the averaged parameters, (x, level) -> score, or for a conditional
            network (x, level, label) -> score. Pixels are in [0, 1], or are logits if
            `config["data"]["logit"]` is True.
        sigmas: Noise levels, decreasing, [levels].
        shape: Shape of one example.
        num_classes: Number of classes; None for an unconditional network. The label `num_classes`
            stands for no class.
        step: Training step of the parameters.
        config: The config of the run.
    """

    score_fn: ScoreFn
    sigmas: Array
    shape: tuple[int, ...]
    num_classes: int | None
    step: int
    config: Mapping[str, Any]


def load_network(workdir: str | os.PathLike, step: int | str | None = None) -> TrainedNetwork:
    """The network of a workdir; nothing is written.

    A workdir of somebody else can run any program: its config names objects to import.

    Args:
        workdir: Folder of a run of the command.
        step: Training step of a checkpoint that is kept, or "best"; None takes the newest.

    Raises:
        FileNotFoundError: If the folder holds no such checkpoint, or no config.
        ValueError: If the config or the checkpoint is damaged.

    Example (after the main job):
        network = load_network("runs/digits")
        score = network.score_fn(x, level, label)
    """
    words = [f"--workdir={os.fspath(workdir)}", "--mode=evaluate"]
    command = parse(words if step is None else [*words, f"--step={step}"])
    # The workdir may be read-only.
    run = open_run(command, jax.local_devices()[:1], output=Path(tempfile.gettempdir()))
    return TrainedNetwork(
        run.score_fn(jax.device_put(run.state.ema_params)),
        run.sigmas,
        run.shape,
        run.data.num_classes if run.conditional else None,
        run.step,
        run.config,
    )
