"""Makes a workdir of an official PyTorch checkpoint, for all other modes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.cli import lock, workdir
from score_jax.cli.flags import Command
from score_jax.progress import announce

BY_LEVELS = {
    232: "cifar10_v2",
    500: "celeba_v2",
    1086: "lsun_bedroom_v2",
    788: "lsun_church_v2",
    2311: "ffhq_v2",
}
"""Number of noise levels of a published NCSNv2 -> the config it was trained with."""


def config_for(checkpoint: str) -> str:
    """The name of the config with the published settings of a checkpoint's network.

    An NCSN is recognised by its channels and an NCSNv2 by its number of noise levels or, if no
    published network has that many, by its depth. Only names and shapes of the arrays are read, so
    that no JAX backend is initialised.

    Raises:
        ValueError: If the checkpoint cannot be read.
        FileNotFoundError: If there is none.
    """
    state = _read(checkpoint).state
    shapes = {name: np.shape(value) for name, value in state.items()}
    if "sigmas" not in shapes:
        first_kernel = shapes.get("begin_conv.weight", ())
        return "mnist" if first_kernel[1:2] == (1,) else "cifar10"
    num_levels = int(np.prod(shapes["sigmas"]))
    if num_levels in BY_LEVELS:
        return BY_LEVELS[num_levels]
    if any(name.startswith("res31.") for name in shapes):
        return "ffhq_v2"
    if any(name.startswith("res5.") for name in shapes):
        return "lsun_bedroom_v2"
    return "cifar10_v2"


def _read(checkpoint: str) -> Any:
    """The official checkpoint in a file; errors speak of the flag instead of the argument."""
    from score_jax.models.official import read_official

    try:
        return read_official(checkpoint)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("path=", "--checkpoint=", 1)) from error


def import_mode(command: Command, devices: Sequence[Any]) -> bool:
    """Writes the workdir of an official checkpoint; True when done.

    Raises:
        ValueError: If the checkpoint or the config does not fit, or the folder holds a run.
        OSError: If there is no checkpoint, or the folder cannot be written.
    """
    import jax

    from score_jax.checkpoint import Checkpoints
    from score_jax.cli.settings import validate
    from score_jax.models.official import from_official
    from score_jax.records import RunIdentity

    del devices

    # Read the checkpoint and fit the config to it before anything is written.
    checkpoint, folder = command.options.checkpoint, Path(command.workdir)
    if checkpoint is None:
        raise ValueError("--mode=import needs --checkpoint=file.pth, an official checkpoint")
    checkpoints = Checkpoints(folder / "checkpoints", keep=1, run=RunIdentity(folder))
    if checkpoints.steps():
        raise ValueError(f"--workdir={folder} holds checkpoints already: choose another --workdir")
    official = _read(checkpoint)
    if official.note:
        announce(official.note)
    model, params = from_official(official.state)
    ema_params = from_official(official.ema_state)[1]
    config = fitted_config(command.config, model, params)
    validate(config)
    config = json.loads(json.dumps(config))
    state = _initial_state(config, params, ema_params, official.step)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    workdir.check_writable(folder, 2 * num_bytes + 10_000_000)

    with lock.held(folder):
        if checkpoints.steps() or workdir.read_json(folder / "config.json") not in (None, config):
            raise ValueError(f"--workdir={folder} holds a run already: choose another --workdir")
        workdir.write_json(folder / "config.json", config)
        checkpoints.save(official.step, state, {"config": config})
        checkpoints.wait()

    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    data, sampling = config["data"], config["sampling"]
    step_size = sampling["step_size"]
    announce(
        f"imported {checkpoint}: {config['model']['name']} of width {config['model']['width']} "
        f"and {config['noise']['num_levels']} levels, {num_parameters:,} parameters, step "
        f"{official.step}"
    )
    announce(
        f"from the config: images of {data['size']}x{data['size']}, {sampling['num_steps']} steps "
        f"per level, step size {'by its rule' if step_size is None else format(step_size, 'g')}; "
        "--config and --config.data.size choose others"
    )
    announce(f"next: {workdir.command_line('--workdir', folder, '--mode=sample')}")
    return True


def _initial_state(config: Mapping[str, Any], params: Any, ema_params: Any, step: int):
    """The state of training with imported parameters and a new optimizer."""
    import jax
    import jax.numpy as jnp

    from score_jax.cli import build
    from score_jax.noise import geometric_sigmas

    sigmas = geometric_sigmas(**config["noise"])
    model = build.build_model(config["model"], sigmas, None, config["data"])
    trainer = build.build_trainer(config, None, model, sigmas)
    state = jax.jit(trainer.init)(params)
    return state._replace(step=jnp.int32(step), ema_params=ema_params)


def fitted_config(config: Mapping[str, Any], model: Any, params: Any) -> dict[str, Any]:
    """A config with the network and the noise levels of an official checkpoint.

    Args:
        config: The config to start from.
        model: The network of the checkpoint, an `NCSN` or `NCSNv2`.
        params: Its parameters.

    Raises:
        ValueError: If the config does not give the size of the images, or no config can describe
            the noise levels of the checkpoint.
    """
    config = dict(config)
    channels = int(params["end_conv"]["kernel"].shape[-1])
    if config["data"]["size"] is None:
        raise ValueError(
            "config.data.size=None does not say how large the checkpoint's images are: set it to "
            "their height and width"
        )

    # The official networks take no labels.
    unlabelled = {"channels": channels, "labels": False, "label_dropout": 0.0}
    config["data"] = {**config["data"], **unlabelled}
    config["model"] = {
        "name": "ncsn",
        "width": model.width,
        "centered": not config["data"]["logit"],
    }
    if "sigmas" in params:
        config["model"] |= {"name": "ncsnv2", "variant": model.variant}
        sigmas = np.asarray(params["sigmas"], np.float64)
        geometric = np.geomspace(sigmas[0], sigmas[-1], len(sigmas))
        if not np.allclose(sigmas, geometric, rtol=1e-3):
            raise ValueError(
                "the checkpoint's sigmas are not a geometric sequence, the only kind that a "
                "config can describe"
            )
        config["noise"] = {
            "sigma_max": float(sigmas[0]),
            "sigma_min": float(sigmas[-1]),
            "num_levels": len(sigmas),
        }
    else:
        config["noise"] = {**config["noise"], "num_levels": model.num_levels}
    frames = min(config["sampling"]["num_frames"], config["noise"]["num_levels"])
    config["sampling"] = {**config["sampling"], "num_frames": frames}
    return config
