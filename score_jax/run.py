"""What `main.py` does: prepares a job from a config, then trains, samples or evaluates it in a folder.

The only module that knows all others, and the only one that compiles for many devices: below it travel numbers, arrays and
functions.
"""

import dataclasses
import functools
import json
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorboardX

from score_jax import config as config_lib
from score_jax import images, workdir
from score_jax.checkpoint import Checkpoints
from score_jax.data import sources
from score_jax.data.dataset import Dataset, batch_index, dequantize, random_flip, rescale
from score_jax.evaluation.objective import losses_per_level
from score_jax.langevin import Trajectory, annealed_langevin_trajectory
from score_jax.losses.dsm import annealed_dsm
from score_jax.models.ncsn import NCSN
from score_jax.models.unet import UNet
from score_jax.noise import example_keys, geometric_sigmas, standard_normal, standard_uniform, stratified_levels, uniform_levels
from score_jax.progress import Progress
from score_jax.schedule import step_size_for
from score_jax.training import Trainer, TrainState, make_trainer
from score_jax.typing import Images, Keys, Pixels

# Names that a config may use. A network is built from the noise levels, the number of classes (0: no labels) and its own fields.
SOURCES: dict[str, Callable[[str], Dataset]] = {"digits": lambda path: sources.digits(), "npz": sources.npz}
LOSSES = {"dsm": annealed_dsm}
MODELS: dict[str, tuple[type[nn.Module], Callable[[Any, int], dict]]] = {
    "ncsn": (NCSN, lambda sigmas, num_classes: {"num_levels": len(sigmas)}),
    "unet": (UNet, lambda sigmas, num_classes: {"sigmas": tuple(float(sigma) for sigma in sigmas), "num_classes": num_classes}),
}
LEVELS = {"uniform": uniform_levels, "stratified": stratified_levels}

GRID = 100  # chains in the picture of the samples, ten by ten
AXIS = "devices"


@dataclasses.dataclass(frozen=True)
class Job:
    """A config made into what it describes; nothing is compiled or written yet."""

    config: Mapping[str, Any]
    folder: Path
    devices: Sequence[jax.Device]
    data: Dataset
    model: nn.Module
    sigmas: jax.Array
    step_size: float
    trainer: Trainer
    keys: Mapping[str, jax.Array]
    checkpoints: Checkpoints
    state_shape: TrainState
    restored: tuple[int, TrainState] | None

    def apply(self, params, x, level, *label):
        """The score of the network with `params`."""
        return self.model.apply({"params": params}, x, level, *label)

    def pmap(self, function, in_axes, out_axes, donate=()):
        """`function` on all devices; what has no mapped axis is the same on each."""
        return jax.pmap(function, AXIS, in_axes=in_axes, out_axes=out_axes, donate_argnums=donate, devices=self.devices)

    def split(self, index: np.ndarray) -> np.ndarray:
        """A batch of indices as [devices, share]."""
        return index.reshape(len(self.devices), -1)


def prepare(mode: str, config: Mapping[str, Any], folder: Path, devices: Sequence[jax.Device]) -> Job:
    """Builds the job and checks all that can be checked before anything is compiled or written.

    Args:
        mode: "train", "sample" or "evaluate".
        config: As `config.validate` wants it.
        folder: The workdir.
        devices: Those that share the work.
    Raises:
        ValueError: If the config, or what is in the folder, does not fit.
        OSError: If a file is missing, or the folder cannot be written.
    """
    config_lib.validate(config)
    folder = Path(folder)
    saved = workdir.read_json(folder / "config.json")
    workdir.read_json(folder / "metrics.json")  # damaged, it is better told now than after hours
    checkpoints = Checkpoints(folder / "checkpoints", config["training"]["keep_checkpoints"])
    steps = checkpoints.steps()
    if steps and saved is None:
        raise FileNotFoundError(
            f"--workdir={folder} holds checkpoints but no config.json: restore it from a copy, or choose another --workdir"
        )
    if steps:
        free = config_lib.FREE_TO_CONTINUE if mode == "train" else config_lib.FREE_TO_USE
        config_lib.check_same_run(saved, config, free, str(folder))
    data = _lookup(SOURCES, config["data"]["source"], "data.source")(config["data"]["path"])
    if not config["data"]["labels"]:
        data = data._replace(train_labels=None, held_out_labels=None, num_classes=0)
    elif data.num_classes == 0:
        raise ValueError(f"config.data.labels=True, but the source {config['data']['source']!r} has no labels: set it to False")
    noise = config["noise"]
    sigmas = geometric_sigmas(noise["sigma_max"], noise["sigma_min"], noise["num_levels"])
    model = _build_model(config["model"], sigmas, data.num_classes)
    for name in ("training", "sampling"):
        config_lib.check_divides(config[name]["batch_size"], len(devices), f"{name}.batch_size")

    trainer = build_trainer(config, data, model, sigmas, AXIS)
    state_shape = jax.eval_shape(lambda: trainer.init(_init_params(model, jax.random.key(0), data)))
    sampling = config["sampling"]
    if mode != "train" and not steps:
        raise FileNotFoundError(
            f"--workdir={folder} holds no checkpoint to {mode} from: train first, with --mode=train, or choose another --workdir"
        )
    if mode == "train" and steps and steps[0] > config["training"]["num_steps"]:
        raise ValueError(
            f"--workdir={folder} has been trained for {steps[0]} steps, more than config.training.num_steps="
            f"{config['training']['num_steps']}: ask for more steps, or choose another --workdir"
        )
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state_shape))
    sample_bytes = 4 * sampling["num_samples"] * int(np.prod(data.train.shape[1:]))
    kept = config["training"]["keep_checkpoints"] + 1 if mode == "train" else 0
    workdir.check_writable(folder, kept * state_bytes + 2 * sample_bytes + 10_000_000)
    names = ("init", "train", "sample", "evaluate")
    return Job(
        config=config,
        folder=folder,
        devices=devices,
        data=data,
        model=model,
        sigmas=sigmas,
        step_size=sampling["step_size"] or step_size_for(sigmas, sampling["num_steps"]),
        trainer=trainer,
        keys=dict(zip(names, jax.random.split(jax.random.key(config["seed"]), len(names)), strict=True)),
        checkpoints=checkpoints,
        state_shape=state_shape,
        restored=checkpoints.restore(state_shape),
    )


def build_trainer(config: Mapping[str, Any], data: Dataset, model: nn.Module, sigmas: jax.Array, axis_name: str | None) -> Trainer:
    """The trainer that a config describes; `axis_name` as in `training.make_trainer`.

    Raises:
        ValueError: If the config names an objective that is not known.
    """
    return make_trainer(
        lambda params, x, level, *label: model.apply({"params": params}, x, level, *label),
        _lookup(LOSSES, config["loss"]["name"], "loss.name"),
        _build_optimizer(config["optim"], config["training"]["num_steps"]),
        sigmas,
        prepare=functools.partial(prepare_examples, config["data"], data.num_values),
        draw_levels=LEVELS[config["loss"]["levels"]],
        ema_decay=config["optim"]["ema_decay"],
        axis_name=axis_name,
    )


def prepare_examples(settings: Mapping[str, Any], num_values: int, keys: Keys, pixels: Pixels) -> Images:
    """Stored pixels as the network sees them, in [0, 1]; dequantised and flipped at random if `settings` say so."""
    draw_keys, flip_keys = _split_each(keys)
    x = dequantize(draw_keys, pixels, num_values) if settings["dequantize"] else rescale(pixels, num_values)
    return random_flip(flip_keys, x) if settings["flip"] else x


def train(job: Job) -> bool:
    """Trains up to the config's number of steps, from the newest checkpoint if there is one, then samples.

    Returns:
        Whether it came to the end; False if it was asked to stop while it trained.

    Raises:
        FloatingPointError: If a loss is not finite; the last checkpoint stays.
    """
    total = job.config["training"]["num_steps"]
    _say(f"{job.folder}: {_describe(job)}")
    if job.restored and job.restored[0] == total:
        _say(f"training is complete ({total} steps)")
        params, sampler = job.restored[1].ema_params, None
    elif (trained := _train_from(job)) is not None:
        params, sampler = trained
    else:
        return False
    if _samples_are_those_of(job, total):
        _say(f"{job.folder / 'samples.npz'} holds this run's samples already")
    else:
        _sample(job, total, params, sampler)
    _say(f"next: python main.py --workdir={job.folder} --mode=evaluate   or, for other samples: --mode=sample --config.seed=1")
    return True


def _train_from(job: Job) -> tuple[Any, Callable | None] | None:
    """Trains on from what was restored.

    Returns:
        The averaged parameters, and the sampler if it was compiled for a preview; None if asked to stop on the way.
    """
    first, state = job.restored or (0, None)
    training, total = job.config["training"], job.config["training"]["num_steps"]
    seed, batch_size = job.config["seed"], training["batch_size"]
    log = workdir.read_json(job.folder / "metrics.json") or {}
    log = {
        "train_loss": [pair for pair in log.get("train_loss", []) if pair[0] <= first],
        "held_out_loss": [pair for pair in log.get("held_out_loss", []) if pair[0] <= first],
        "seconds": {"compile": 0.0, "train": 0.0, **log.get("seconds", {})} if first else {"compile": 0.0, "train": 0.0},
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(job.folder / "config.json", job.config)

    data = _replicate(job, _arrays(job.data.train, job.data.train_labels))
    if state is None:
        init = job.pmap(lambda key, _: job.trainer.init(_init_params(job.model, key, job.data)), (None, 0), None)
        state = init(job.keys["init"], np.arange(len(job.devices)))
    else:
        _say(f"continues from the checkpoint of step {first}")
        state = _replicate(job, state)

    def batch(step):
        return job.split(batch_index(seed, step, len(job.data.train), batch_size))

    begun = time.monotonic()
    program = job.pmap(
        lambda key, state, data, index: job.trainer.step(key, state, *_take(data, index)), (None, None, None, 0), None, donate=(1,)
    )
    step_fn = program.lower(job.keys["train"], state, data, batch(first)).compile()
    held_out_loss = _held_out_loss_fn(job, state.ema_params)
    log["seconds"]["compile"] += time.monotonic() - begun
    _say(f"compiled in {time.monotonic() - begun:.1f} s")
    sampler = None
    # Blocking keeps programs with collectives from piling up on the CPU, where they deadlock.
    wait = job.devices[0].platform == "cpu"
    pending, trained, begun = [], log["seconds"]["train"], time.monotonic()
    rate_from = begun

    with _stop_requested() as stop, Progress(total, "train", "step", first) as progress, _events(job, first) as events:
        for done in range(first + 1, total + 1):
            state, metrics = step_fn(job.keys["train"], state, data, batch(done - 1))
            pending.append(metrics)
            if wait:
                jax.block_until_ready(metrics)
            stopping = stop()  # asked once: what it brings about must all happen in the same step
            last = stopping or done == total
            due = {name: last or done % training[f"{name}_every"] == 0 for name in ("log", "eval", "checkpoint")}
            if due["log"] or due["checkpoint"]:
                loss = _mean_loss(job, pending, done)
                log["train_loss"].append([done, loss])
                events.add_scalar("loss/train", loss, done)
                events.add_scalar("gradient_norm", float(pending[-1].grad_norm), done)
                events.add_scalar("steps_per_second", len(pending) / max(time.monotonic() - rate_from, 1e-9), done)
                pending, rate_from = [], time.monotonic()
                log["seconds"]["train"] = trained + time.monotonic() - begun
            if due["eval"]:
                log["held_out_loss"].append([done, held_out_loss(state.ema_params)])
                events.add_scalar("loss/held_out", log["held_out_loss"][-1][1], done)
            if due["checkpoint"]:
                job.checkpoints.save(done, state, job.config)
                _write_metrics(job, log)
            if training["preview_every"] and done % training["preview_every"] == 0 and done < total:
                sampler = sampler or make_sampler(job, state.ema_params)
                _preview(job, sampler, state.ema_params, done, events)
            progress.update(done, loss=log["train_loss"][-1][1] if log["train_loss"] else float(metrics.loss))
            if stopping:
                job.checkpoints.wait()
                _say(f"stopped at step {done} of {total}, which is saved; the same command continues from there")
                return None
        job.checkpoints.wait()
        if stop():
            _say(f"stopped after the last step, {total}, which is saved; the same command goes on to sample")
            return None
    return state.ema_params, sampler


def make_sampler(job: Job, params) -> Callable:
    """Compiles the whole chain as one program: (params, chain indices [devices, share]) -> Trajectory, led by [devices].

    Chain i draws from the run's key with i folded in, whatever the batch and the devices.
    """
    sampling, event = job.config["sampling"], job.data.train.shape[1:]

    labels = [] if job.data.train_labels is None else [jnp.asarray(chain_labels(job, len(job.data.train)))]

    def chains(key, params, index):
        label = _take(labels, index % len(job.data.train))
        start_keys, chain_keys = _split_each(example_keys(key, index))
        if sampling["start"] == "uniform":
            x = standard_uniform(start_keys, event)
        else:
            x = 0.5 + job.sigmas[0] * standard_normal(start_keys, event)
        return annealed_langevin_trajectory(
            chain_keys,
            lambda x, level: job.apply(params, x, level, *label),
            x,
            job.sigmas,
            step_size=job.step_size,
            num_steps=sampling["num_steps"],
            denoise=sampling["denoise"],
            num_snapshots=sampling["num_frames"],
        )

    index = job.split(np.arange(sampling["batch_size"]))
    program = job.pmap(chains, (None, None, 0), 0).lower(job.keys["sample"], params, index).compile()
    return lambda params, index: program(job.keys["sample"], params, index)


def chain_labels(job: Job, number: int) -> np.ndarray:
    """The classes that the first `number` chains sample, int32: those of the training images, in an order drawn from the seed.

    So the classes are as frequent among the samples as in the data.
    """
    size = len(job.data.train)
    return job.data.train_labels[batch_index(job.config["seed"], 0, size, size)][np.arange(number) % size]


def sample(job: Job) -> bool:
    """Samples by annealed Langevin dynamics with the newest checkpoint's averaged parameters; True when done.

    Raises:
        FloatingPointError: If a chain is not finite, with the level where that began; nothing is written.
    """
    step, state = job.restored
    _sample(job, step, state.ema_params)
    _say(f"next: python main.py --workdir={job.folder} --mode=evaluate")
    return True


def _sample(job: Job, step: int, params, sampler: Callable | None = None) -> None:
    """Samples with `params`, those of `step`, and writes everything that comes of it."""
    sampling = job.config["sampling"]
    params = _replicate(job, params)
    number, batch_size = sampling["num_samples"], sampling["batch_size"]
    _say(
        f"samples {number} images with the parameters of step {step}: {len(job.sigmas)} levels x {sampling['num_steps']} steps, "
        f"step size {job.step_size:.3g}"
    )
    if sampler is None:
        begun = time.monotonic()
        sampler = make_sampler(job, params)
        _say(f"compiled in {time.monotonic() - begun:.1f} s")
    samples, frames, begun = [], [], time.monotonic()
    with Progress(number, "sample", "image") as progress:
        for start in range(0, number, batch_size):
            trajectory = sampler(params, job.split(start + np.arange(batch_size)))
            samples.append(_checked_chains(job, trajectory, start))
            if sampling["num_frames"] and start < GRID:
                frames.append(_merge(np.moveaxis(np.asarray(trajectory.snapshots), 1, 2)))
            progress.update(min(start + batch_size, number))
    samples = np.clip(np.concatenate(samples), 0, 1)
    seconds = time.monotonic() - begun

    with workdir.replacing(job.folder / "samples.npz") as path, path.open("wb") as file:
        extra = {} if job.data.train_labels is None else {"labels": chain_labels(job, number)}
        np.savez_compressed(file, samples=samples, **extra, seed=job.config["seed"], step=step, config=json.dumps(job.config))
    picture = images.grid(samples[:GRID], columns=10)
    with workdir.replacing(job.folder / "samples.png") as path:
        images.save_png(path, picture)
    written = ["samples.npz", "samples.png"]
    if sampling["num_frames"]:
        frames = np.moveaxis(np.concatenate(frames)[: min(GRID, number)], 1, 0)
        with workdir.replacing(job.folder / "chain.webp") as path:
            images.save_webp(path, [*(images.grid(frame, columns=10) for frame in frames), picture])
        written.append("chain.webp")
    log = workdir.read_json(job.folder / "metrics.json") or {}
    log.setdefault("seconds", {})["sample"] = round(seconds, 3)
    _write_metrics(job, log)
    with _events(job, step) as events:
        events.add_image("samples", picture, step, dataformats="HWC")
    _say(f"wrote {', '.join(written)} to {job.folder} ({seconds:.1f} s)")


def evaluate(job: Job) -> bool:
    """Prints the held-out loss at every noise level and writes it to evaluation.json; True when done."""
    step, state = job.restored
    params = _replicate(job, state.ema_params)
    batch_size, number = job.config["training"]["batch_size"], len(job.data.held_out)
    loss_fn = LOSSES[job.config["loss"]["name"]]

    def batch_losses(key, params, data, index):
        prepare_key, loss_key = jax.random.split(key)
        pixels, *label = _take(data, index % number)
        x = prepare_examples(job.config["data"], job.data.num_values, example_keys(prepare_key, index), pixels)
        return losses_per_level(loss_key, loss_fn, lambda x, level: job.apply(params, x, level, *label), x, index, job.sigmas)

    program = job.pmap(batch_losses, (None, None, None, 0), 0)
    data, losses = _replicate(job, _arrays(job.data.held_out, job.data.held_out_labels)), []
    with Progress(number, "evaluate", "image") as progress:
        for start in range(0, number, batch_size):
            found = program(job.keys["evaluate"], params, data, job.split(start + np.arange(batch_size)))
            losses.append(_merge(np.moveaxis(np.asarray(found), 1, 2)))
            progress.update(min(start + batch_size, number))
    losses = np.concatenate(losses)[:number].astype(np.float64)  # [examples, levels]
    mean, error = losses.mean(0), losses.std(0) / np.sqrt(number)
    _say(f"held-out loss of step {step} on {number} images, sum over {job.data.train[0].size} dimensions:")
    _say("level    sigma      loss  standard error")
    for level, sigma in enumerate(np.asarray(job.sigmas)):
        _say(f"{level:5d} {sigma:8.4g} {mean[level]:9.4f} {error[level]:9.4f}")
    _say(f" mean          {mean.mean():9.4f}")
    report = {
        "step": step,
        "examples": number,
        "held_out_loss": float(mean.mean()),
        "levels": [
            {"level": i, "sigma": float(s), "loss": float(m), "standard_error": float(e)}
            for i, (s, m, e) in enumerate(zip(np.asarray(job.sigmas), mean, error, strict=True))
        ],
    }
    workdir.write_json(job.folder / "evaluation.json", report)
    _say(f"wrote {job.folder / 'evaluation.json'}")
    return True


def _lookup(table: Mapping[str, Any], name: str, setting: str) -> Any:
    if name not in table:
        raise ValueError(f"config.{setting}={name!r} is not known: choose among {', '.join(table)}")
    return table[name]


def _build_model(fields: Mapping[str, Any], sigmas: jax.Array, num_classes: int) -> nn.Module:
    name, fields = fields["name"], {key: value for key, value in fields.items() if key != "name"}
    kind, given = _lookup(MODELS, name, "model.name")
    given = given(sigmas, num_classes)
    if num_classes and "num_classes" not in given:
        raise ValueError(f"config.data.labels=True, but the network {name!r} takes no labels: set it to False")
    own = [field.name for field in dataclasses.fields(kind) if field.name not in ("parent", "name", *given)]
    if unknown := [name for name in fields if name not in own]:
        raise ValueError(f"config.model.{unknown[0]} is not a setting of this network: choose among {', '.join(['name', *own])}")
    return kind(**given, **fields)


def _build_optimizer(optim: Mapping[str, Any], num_steps: int) -> optax.GradientTransformation:
    rate, warmup = optim["learning_rate"], optim["warmup_steps"]
    if optim["schedule"] == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(rate / (warmup + 1), rate, warmup, num_steps, 0.01 * rate)
    else:
        schedule = optax.linear_schedule(rate / (warmup + 1), rate, warmup) if warmup else rate
    adam = optax.adam(schedule, optim["beta1"], optim["beta2"], optim["epsilon"])
    return optax.chain(optax.clip_by_global_norm(optim["clip_norm"]), adam) if optim["clip_norm"] else adam


def _init_params(model: nn.Module, key: jax.Array, data: Dataset):
    label = [] if data.train_labels is None else [jnp.zeros(1, jnp.int32)]
    return model.init(key, jnp.zeros((1, *data.train.shape[1:])), jnp.zeros(1, jnp.int32), *label)["params"]


def _split_each(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _arrays(images: np.ndarray, labels: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """What a program needs of a data set: its images, and its labels if there are any."""
    return (images,) if labels is None else (images, labels)


def _take(arrays: Sequence[jax.Array], index: jax.Array) -> list[jax.Array]:
    return [array[index] for array in arrays]


def _replicate(job: Job, tree):
    """`tree` on every device, in the form in which a pmapped program returns what is the same everywhere."""
    return job.pmap(lambda tree, _: tree, (None, 0), None)(tree, np.arange(len(job.devices)))


def _merge(x: np.ndarray) -> np.ndarray:
    """[devices, share, ...] -> [batch, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _held_out_loss_fn(job: Job, params) -> Callable[[Any], float]:
    """params -> mean held-out loss, always over the same examples, levels and noise."""
    training, number = job.config["training"], len(job.data.held_out)
    program = job.pmap(
        lambda key, params, data, index: job.trainer.loss(key, params, *_take(data, index))[0], (None, None, None, 0), None
    )
    data = _replicate(job, _arrays(job.data.held_out, job.data.held_out_labels))
    program = program.lower(job.keys["evaluate"], params, data, job.split(np.zeros(training["batch_size"], np.int32))).compile()

    def held_out_loss(params) -> float:
        losses = []
        for k in range(training["eval_batches"]):
            index = job.split(batch_index(job.config["seed"], k, number, training["batch_size"]))
            losses.append(float(program(jax.random.fold_in(job.keys["evaluate"], k), params, data, index)))
        return float(np.mean(losses))

    return held_out_loss


def _mean_loss(job: Job, pending: list, done: int) -> float:
    """The mean loss of the steps since the last look, all of which must be finite."""
    for step, metrics in enumerate(pending, done - len(pending) + 1):
        loss, grad_norm, level = float(metrics.loss), float(metrics.grad_norm), int(metrics.nonfinite_level)
        if np.isfinite(loss) and np.isfinite(grad_norm):
            continue
        what = f"the loss at noise level {level} (sigma {float(job.sigmas[level]):.4g})" if level >= 0 else "the gradient"
        saved = job.checkpoints.steps()
        kept = f"the checkpoint of step {saved[0]} stays" if saved else "no checkpoint had been written yet"
        raise FloatingPointError(
            f"{what} is not finite at step {step}: {kept}; lower config.optim.learning_rate="
            f"{job.config['optim']['learning_rate']:g}, or set config.optim.clip_norm, in another --workdir"
        )
    return float(np.mean([float(metrics.loss) for metrics in pending]))


def _checked_chains(job: Job, trajectory: Trajectory, start: int) -> np.ndarray:
    """The ends of the chains that are asked for [at most batch, ...], all of which must be finite."""
    x = _merge(np.asarray(trajectory.x))[: job.config["sampling"]["num_samples"] - start]
    if not np.isfinite(x).all():
        finite = _merge(np.moveaxis(np.asarray(trajectory.finite), 1, 2))  # [batch, levels]
        chain = int(np.argmin(np.isfinite(x.reshape(len(x), -1)).all(1)))
        where = "the last denoising step" if finite[chain].all() else f"noise level {int(np.argmin(finite[chain]))}"
        raise FloatingPointError(
            f"chain {start + chain} is not finite after {where}: lower config.sampling.step_size "
            f"(now {job.step_size:.3g}), or train the network longer"
        )
    return x


def _preview(job: Job, sampler: Callable, params, step: int, events) -> None:
    """A small grid of the chains as they would end now; the same chains each time."""
    trajectory = sampler(params, job.split(np.arange(job.config["sampling"]["batch_size"])))
    picture = images.grid(_merge(np.asarray(trajectory.x))[:36], columns=6, pixels=360)
    with workdir.replacing(job.folder / "preview.png") as path:
        images.save_png(path, picture)
    events.add_image("preview", picture, step, dataformats="HWC")


def _write_metrics(job: Job, log: dict) -> None:
    workdir.write_json(job.folder / "metrics.json", log)
    curves = {
        name: tuple(zip(*log[key], strict=True))
        for name, key in (("training", "train_loss"), ("held out (averaged parameters)", "held_out_loss"))
        if log.get(key)
    }
    if curves:
        with workdir.replacing(job.folder / "loss.png") as path:
            images.save_curves(path, curves, xlabel="step", ylabel=f"loss ({job.config['loss']['name']}, sum over dimensions)")


def _samples_are_those_of(job: Job, step: int) -> bool:
    """Whether samples.npz was made with this config and the parameters of `step`."""
    path = job.folder / "samples.npz"
    if not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["config"])) == dict(job.config) and int(file["step"]) == step
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile):  # another program's file, or half of ours
        return False


def _describe(job: Job) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(job.state_shape.params))
    kind = job.devices[0].device_kind
    return (
        f"{job.config['model']['name']} of {parameters:,} parameters, {len(job.data.train)} training images "
        f"{list(job.data.train.shape[1:])}, {len(job.sigmas)} noise levels from {job.config['noise']['sigma_max']:g} to "
        f"{job.config['noise']['sigma_min']:g}, {len(job.devices)} x {kind}"
    )


def _say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _events(job: Job, step: int) -> Iterator[tensorboardX.SummaryWriter]:
    writer = tensorboardX.SummaryWriter(str(job.folder), purge_step=step + 1)
    try:
        yield writer
    finally:
        writer.close()


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Turns SIGTERM and the first Ctrl-C into a request that is heard between two steps."""
    asked = []

    def ask(number, frame):
        if asked:
            sys.exit(128 + number)
        asked.append(number)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
