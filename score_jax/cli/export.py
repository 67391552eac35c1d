"""Writes a trained sampler as one file, which samples without the code of this package."""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from score_jax import exported
from score_jax.cli import workdir
from score_jax.cli.flags import Command
from score_jax.cli.run import Run, open_run
from score_jax.data.transforms import inverse_logit
from score_jax.noise import run_keys
from score_jax.progress import announce
from score_jax.sampling import Chains

FILE = "sampler.zip"
PLATFORMS = ("cpu", "cuda", "tpu")


def export_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Writes the sampler with the averaged parameters of the newest checkpoint; True when done.

    Raises:
        ValueError: If the command does not match the workdir.
        OSError: If there is no checkpoint, or the file cannot be written.
    """
    run = open_run(command, devices, num_states=1)
    announce(
        f"exporting the sampler with the parameters of step {run.step}, for "
        f"{', '.join(PLATFORMS)} ..."
    )
    params = run.for_samples(run.state.ema_params, run.step)
    parameters = named_parameters(params)
    program, any_batch = export_program(run, params)
    facts = {
        "shape": list(run.shape),
        "batch_size": run.config["sampling"]["batch_size"],
        "any_batch": any_batch,
        "seed": run.config["seed"],
        "step": run.step,
        "num_classes": run.data.num_classes if run.conditional else None,
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
    }

    file = run.folder / FILE
    with (
        workdir.replacing(file) as path,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr("sampler.bin", bytes(program.serialize()))
        archive.writestr("parameters.npz", _saved(np.savez, **parameters), zipfile.ZIP_STORED)
        if run.conditional:
            archive.writestr("labels.npy", _saved(np.save, arr=run.data.train_labels))
        archive.writestr("sampler.json", json.dumps(facts, indent=2) + "\n")
        archive.writestr("config.json", json.dumps(run.config, indent=2) + "\n")
        archive.writestr("exported.py", Path(exported.__file__).read_text())
    announce(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)")
    announce(
        "next, in Python: import score_jax as sj; "
        f"sj.load_sampler({str(file)!r})(seed={run.config['seed']}, number=10)"
    )
    return True


def named_parameters(params: Any) -> dict[str, np.ndarray]:
    """The parameters as a flat dictionary, path -> array."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def export_program(run: Run, params: Any) -> tuple[jax.export.Exported, bool]:
    """Exports (parameters, seed [], index [batch], *label [batch]) -> samples [batch, *shape].

    Args:
        run: The run.
        params: Parameters of the network, for their structure and shapes.

    Returns:
        The exported program, and True if it takes a batch of any size. A network whose code asks
        for the size of the batch as a number is exported for the batch of the config.
    """
    parameters = named_parameters(params)
    images = jax.jit(_program(run, list(parameters), jax.tree.structure(params)))

    def export_for(batch):
        chains = jax.ShapeDtypeStruct((batch,), np.int32)
        shapes = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in parameters.items()
        }
        seed = jax.ShapeDtypeStruct((), np.uint32)
        label = [chains] if run.conditional else []
        return jax.export.export(images, platforms=PLATFORMS)(shapes, seed, chains, *label)

    try:
        return export_for(*jax.export.symbolic_shape("batch")), True
    except (TypeError, jax.errors.InconclusiveDimensionOperation):
        return export_for(run.config["sampling"]["batch_size"]), False


def _program(run: Run, names: Sequence[str], structure: Any) -> Callable:
    """The function to export; chain i has the keys that `sampling.sample` gives it."""
    chains = Chains(
        sampler=run.sampler,
        start=run.start,
        shape=run.shape,
        sigmas=tuple(np.asarray(run.sigmas).tolist()),
        num_steps=run.config["sampling"]["num_steps"],
        step_size=run.step_size,
        denoise=run.config["sampling"]["denoise"],
    )

    def images(parameters, seed, index, label=None):
        params = jax.tree.unflatten(structure, [parameters[name] for name in names])
        x = chains((run_keys(seed)["sample"], run.score_fn(params)), (index, label)).x
        if not run.has_pixels:
            return x
        # Keep infinite values visible, which clipping would hide.
        x = jnp.where(jnp.isfinite(x), x, jnp.nan)
        return inverse_logit(x) if run.config["data"]["logit"] else jnp.clip(x, 0, 1)

    return images


def _saved(save: Callable, **arrays: np.ndarray) -> bytes:
    """The bytes that `numpy.save` or `numpy.savez` writes."""
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()
