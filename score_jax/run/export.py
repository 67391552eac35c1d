"""Writes a trained sampler as one file that samples without the code of this package."""

import io
import json
import zipfile
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from score_jax import exported, workdir
from score_jax.data.dataset import inverse_logit
from score_jax.run.job import Job, run_keys, say
from score_jax.run.sample import run_sampler

FILE = "sampler.zip"
PLATFORMS = ("cpu", "cuda", "tpu")


def export(job: Job) -> bool:
    """Writes the sampler with the newest checkpoint's averaged parameters; True when done."""
    step, state = job.restored
    parameters = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.ema_params)
    }
    say(f"exports the sampler with the parameters of step {step}, for {', '.join(PLATFORMS)}")
    program, any_batch = _program(job, state.ema_params, parameters)
    facts = {
        "event": list(job.event),
        "batch_size": job.config["sampling"]["batch_size"],
        "any_batch": any_batch,
        "seed": job.config["seed"],
        "step": step,
        "num_classes": job.data.num_classes if job.config["data"]["labels"] else 0,
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
    }
    with workdir.replacing(job.folder / FILE) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sampler.bin", bytes(program.serialize()))
        archive.writestr("parameters.npz", _saved(np.savez, **parameters), zipfile.ZIP_STORED)
        if job.config["data"]["labels"]:
            archive.writestr("labels.npy", _saved(np.save, arr=job.data.train_labels))
        archive.writestr("sampler.json", json.dumps(facts, indent=2) + "\n")
        archive.writestr("config.json", json.dumps(job.config, indent=2) + "\n")
        archive.writestr("exported.py", Path(exported.__file__).read_text())
    say(f"wrote {job.folder / FILE} ({(job.folder / FILE).stat().st_size / 1e6:.1f} MB)")
    say(f'next, in Python: score_jax.exported.load_sampler("{job.folder / FILE}")(seed={job.config["seed"]}, number=10)')
    return True


def _program(job: Job, params, parameters: dict[str, np.ndarray]) -> tuple[jax.export.Exported, bool]:
    """(parameters, seed [], index [batch], *label [batch]) -> images [batch, *event], and whether it takes any batch.

    A network whose code asks for the batch as a number is exported for that of the config.
    """
    names, structure = list(parameters), jax.tree.structure(params)

    @jax.jit
    def images(parameters, seed, index, *label):
        params = jax.tree.unflatten(structure, [parameters[name] for name in names])
        x = run_sampler(job, params, run_keys(seed)["sample"], index, label).x
        if len(job.event) < 3:
            return x
        x = jnp.where(jnp.isfinite(x), x, jnp.nan)  # so that no clipping hides what is not
        return inverse_logit(x) if job.config["data"]["logit"] else jnp.clip(x, 0, 1)

    def exported_for(batch):
        chains = jax.ShapeDtypeStruct((batch,), np.int32)
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in parameters.items()}
        label = [chains] if job.config["data"]["labels"] else []
        return jax.export.export(images, platforms=PLATFORMS)(shapes, jax.ShapeDtypeStruct((), np.uint32), chains, *label)

    try:
        return exported_for(*jax.export.symbolic_shape("batch")), True
    except (TypeError, jax.errors.InconclusiveDimensionOperation):
        return exported_for(job.config["sampling"]["batch_size"]), False


def _saved(save, **arrays) -> bytes:
    """What `numpy.save` or `numpy.savez` writes."""
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()
