"""Makes a workdir of an official PyTorch checkpoint, which every other mode can use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_jax import workdir
from score_jax.checkpoint import Checkpoints
from score_jax.config import validate
from score_jax.convert import from_official, read_official
from score_jax.models.ncsn import NCSN
from score_jax.noise import geometric_sigmas
from score_jax.run.build import build_model, build_trainer
from score_jax.run.job import Options, say
from score_jax.training import TrainState


class Import(NamedTuple):
    """An official checkpoint, ready to be written."""

    config: Mapping[str, Any]
    folder: Path
    checkpoint: str
    step: int
    state: TrainState


def config_for(checkpoint: str) -> str:
    """The config file with the published settings of a checkpoint's network: by its channels, or number of noise levels.

    A network with another number of levels gets the settings of the data set that its variant was first made for.

    Raises:
        ValueError: If the checkpoint cannot be read.
        FileNotFoundError: If there is none.
    """
    model, params = from_official(read_official(checkpoint).state)
    if isinstance(model, NCSN):
        return "configs/mnist.py" if params["end_conv"]["kernel"].shape[-1] == 1 else "configs/cifar10.py"
    by_levels = {232: "cifar10_v2", 500: "celeba_v2", 1086: "lsun_bedroom_v2", 788: "lsun_church_v2", 2311: "ffhq_v2"}
    by_variant = {"standard": "cifar10_v2", "deeper": "celeba_v2", "deepest": "ffhq_v2"}
    return f"configs/{by_levels.get(len(model.sigmas), by_variant[model.variant])}.py"


def prepare_import(config: Mapping[str, Any], folder: Path, devices, options: Options) -> Import:
    """Reads the checkpoint and fits the config to it; nothing is written yet.

    Raises:
        ValueError: If the checkpoint or the config does not fit, or the folder holds a run already.
        OSError: If there is no checkpoint, or the folder cannot be written.
    """
    if not options.checkpoint:
        raise ValueError("--mode=import needs --checkpoint=file.pth, an official checkpoint")
    if Checkpoints(folder / "checkpoints").steps():
        raise ValueError(f"--workdir={folder} holds checkpoints already: choose another --workdir")
    official = read_official(options.checkpoint)
    model, params = from_official(official.state)
    ema_params = from_official(official.ema_state)[1]
    config = _fitted(dict(config), model, params)
    validate(config)
    sigmas = geometric_sigmas(**config["noise"])
    ours = build_model(config["model"], sigmas, 0, config["data"])
    trainer = build_trainer(config, None, ours, sigmas, None)
    state = jax.jit(trainer.init)(params)._replace(step=jnp.int32(official.step), ema_params=ema_params)
    workdir.check_writable(folder, 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + 10_000_000)
    return Import(config, folder, options.checkpoint, official.step, state)


def import_official(job: Import) -> bool:
    """Writes the workdir; True when done."""
    job.folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(job.folder / "config.json", job.config)
    checkpoints = Checkpoints(job.folder / "checkpoints", 1)
    checkpoints.save(job.step, job.state, job.config)
    checkpoints.wait()
    model = job.config["model"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(job.state.params))
    say(
        f"imported {job.checkpoint}: {model['name']} of width {model['width']} and {job.config['noise']['num_levels']} levels, "
        f"{parameters:,} parameters, step {job.step}"
    )
    data, sampling = job.config["data"], job.config["sampling"]
    say(
        f"taken from the config: images of {data['size']}x{data['size']}, {sampling['num_steps']} steps per level, step size "
        f"{sampling['step_size']:g}; --config and --config.data.size choose others"
    )
    say(f"next: python main.py --workdir={job.folder} --mode=sample")
    return True


def _fitted(config: dict[str, Any], model, params) -> dict[str, Any]:
    """The config with the network and noise levels of the checkpoint, whose labels no network of this kind takes."""
    channels = int(params["end_conv"]["kernel"].shape[-1])
    if config["data"]["size"] == 0:
        raise ValueError("config.data.size=0 does not say how large the checkpoint's images are: set it to their height and width")
    config["data"] = {**config["data"], "channels": channels, "labels": False, "label_dropout": 0.0}
    config["model"] = {"name": "ncsn", "width": model.width, "centered": not config["data"]["logit"]}
    if isinstance(model, NCSN):
        config["noise"] = {**config["noise"], "num_levels": model.num_levels}
    else:
        config["model"] |= {"name": "ncsnv2", "variant": model.variant}
        sigmas = np.asarray(params["sigmas"], np.float64)
        config["noise"] = {"sigma_max": float(sigmas[0]), "sigma_min": float(sigmas[-1]), "num_levels": len(sigmas)}
        if not np.allclose(sigmas, np.geomspace(sigmas[0], sigmas[-1], len(sigmas)), rtol=1e-3):
            raise ValueError("the checkpoint's sigmas are not a geometric sequence, the only kind that a config can say")
    frames = min(config["sampling"]["num_frames"], config["noise"]["num_levels"])
    config["sampling"] = {**config["sampling"], "num_frames": frames}
    return config
