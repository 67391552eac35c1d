"""The paper's figures: the toy density's, and of a trained network its nearest neighbours and how its chains mix."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax import images, workdir
from score_jax.analytic import mixture_log_density, mixture_score_fn, sample_mixture
from score_jax.checkpoint import Checkpoints
from score_jax.config import validate
from score_jax.data import sources
from score_jax.data.dataset import unit_scale
from score_jax.evaluation.neighbors import nearest_neighbors
from score_jax.langevin import anneal, annealed_langevin, chain_noise, langevin, langevin_step
from score_jax.losses.ssm import annealed_ssm, ssm
from score_jax.models.mlp import MLP
from score_jax.noise import example_keys, standard_uniform
from score_jax.run.build import load_data
from score_jax.run.job import Job, Options, prepare, say
from score_jax.run.sample import chain_labels, make_sampler, run_chains
from score_jax.training import make_trainer

# The toy density of figures 2 and 3.
WEIGHTS, MEANS, SCALES = np.array([0.8, 0.2], np.float32), np.array([[5, 5], [-5, -5]], np.float32), np.ones(2, np.float32)
TOY_SIGMAS = np.geomspace(20, 1, 10).astype(np.float32)
EXTENT = 8.0  # of the plots, and of the uniform starts
NUM_CHAINS, NUM_SHOWN = 20_000, 1280
FIGURE_1_PIXELS = 50_000_000  # at most, over all images


class Figures(NamedTuple):
    """What there is to draw from.

    Attributes:
        seed: Of the run.
        folder: Where the figures go.
        options: What else the command line says.
        x: Images in [0, 1] for figure 1, float32 [examples, height, width, channels].
        job: The trained network, if the folder holds one.
    """

    seed: int
    folder: Path
    options: Options
    x: np.ndarray
    job: Job | None


def prepare_figures(config, folder: Path, devices, options: Options) -> Figures:
    """Loads the data, and the trained network if there is one.

    Raises:
        ValueError: If the config or the folder does not fit.
        OSError: If a file is missing, or the folder cannot be written.
    """
    validate(config)
    if options.number < 1:
        raise ValueError(f"--number={options.number} must be at least 1")
    trained = bool(Checkpoints(Path(folder) / "checkpoints").steps())
    job = prepare("figures", config, folder, devices, options) if trained else None
    data = job.data if job else load_data(config["data"])[0]
    if data.num_values == 0:
        data = sources.digits()  # figure 1 is about images
    workdir.check_writable(folder, 10_000_000)
    number = min(len(data.train), 10_000, max(128, FIGURE_1_PIXELS // int(np.prod(data.train.shape[1:]))))
    return Figures(config["seed"], Path(folder), options, unit_scale(data.train[np.arange(number)], data.num_values, False), job)


def draw_figures(figures: Figures) -> bool:
    """Draws all figures, each into a PNG of its own; True when done."""
    figures.folder.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(figures.seed), 3)
    for draw, key in ((_sliced_losses, keys[0]), (_toy_scores, keys[1]), (_toy_samples, keys[2])):
        begun = time.monotonic()
        name, picture = draw(figures, key)
        _save(figures, name, picture)
        say(f"wrote {name} ({time.monotonic() - begun:.1f} s)")
    if figures.job is None:
        say(
            f"--workdir={figures.folder} holds no trained network: nearest neighbours and mixing are left out; "
            "train one there, then draw again"
        )
        return True
    job, number = figures.job, figures.options.number
    ends = [ends for _, _, ends in run_chains(job, _sampler(job), number, "sample", job.config["sampling"]["batch_size"])]
    samples = np.concatenate(ends)
    for draw in (_neighbors, _mixing):
        name, picture = draw(figures, samples)
        _save(figures, name, picture)
        say(f"wrote {name}")
    return True


def _save(figures: Figures, name: str, picture: np.ndarray) -> None:
    with workdir.replacing(figures.folder / name) as path:
        images.save_png(path, picture)


def _train(
    key: jax.Array, model, x: np.ndarray | jax.Array, sigmas: np.ndarray, loss_fn: Callable, num_steps: int
) -> tuple[Any, np.ndarray]:
    """Trains with Adam 1e-3 on batches of 128, in one program; parameters and the loss of every step."""
    trainer = make_trainer(
        lambda params, x, level: model.apply({"params": params}, x, level), loss_fn, optax.adam(1e-3), sigmas, ema_decay=0.0
    )
    init_key, batch_key, train_key = jax.random.split(key, 3)

    @jax.jit
    def run(x):
        params = model.init(init_key, x[:1], jnp.zeros(1, jnp.int32))["params"]

        def step(state, n):
            index = jax.random.randint(jax.random.fold_in(batch_key, n), (128,), 0, len(x))
            state, metrics = trainer.step(train_key, state, x[index])
            return state, metrics.loss

        return jax.lax.scan(step, trainer.init(params), np.arange(num_steps))

    state, losses = run(x)
    return state.params, np.asarray(losses)


def _sliced_losses(figures: Figures, key: jax.Array) -> tuple[str, np.ndarray]:
    """Figure 1: the sliced loss on images as they are, and perturbed by N(0, 0.0001)."""
    sigmas = np.array([0.01], np.float32)
    curves = {}
    for name, loss_fn in (("no noise", ssm), ("perturbed by N(0, 0.0001)", annealed_ssm)):
        losses = _train(key, MLP(sigmas=(0.01,), hidden=(256, 256)), figures.x, sigmas, loss_fn, num_steps=3000)[1]
        curves[name] = losses / (sigmas[0] ** 2 if loss_fn is annealed_ssm else 1)
        last = curves[name][-100:]
        say(f"figure 1, {name}: mean loss of the last 100 steps {last.mean():.4g}, spread {last.std():.4g}")
    return "figure1.png", images.curves_apart(curves, xlabel="step", ylabel="sliced score matching loss")


def _toy_scores(figures: Figures, key: jax.Array) -> tuple[str, np.ndarray]:
    """Figure 2: the true score of the mixture, and the one that an MLP estimates by sliced score matching."""
    sample_key, train_key, test_key = jax.random.split(key, 3)
    x = sample_mixture(jax.random.split(sample_key, 100_000), WEIGHTS, MEANS, SCALES)
    model = MLP(sigmas=(1.0,))
    params, _ = _train(train_key, model, x, np.ones(1, np.float32), ssm, num_steps=10_000)
    true_fn = mixture_score_fn(WEIGHTS, MEANS, SCALES, np.full(1, 1e-6, np.float32))
    axis = np.linspace(-EXTENT, EXTENT, 20, dtype=np.float32)
    fine = np.linspace(-EXTENT, EXTENT, 200, dtype=np.float32)

    def plane(axis):
        return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)

    def both(x):
        level = jnp.zeros(len(x), jnp.int32)
        return np.asarray(true_fn(x, level)), np.asarray(model.apply({"params": params}, x, level))

    density = np.exp(np.asarray(mixture_log_density(jnp.asarray(plane(fine)), WEIGHTS, MEANS, SCALES))).reshape(200, 200)
    where = {
        "under the density": sample_mixture(jax.random.split(test_key, 10_000), WEIGHTS, MEANS, SCALES),
        "on the square": plane(axis),
    }
    for name, points in where.items():
        true, estimated = both(jnp.asarray(points))
        error = np.sqrt(np.mean(np.sum((estimated - true) ** 2, 1)) / np.mean(np.sum(true**2, 1)))
        say(f"figure 2: relative error of the estimated score {name} {error:.3f}")
    true, estimated = both(jnp.asarray(plane(axis)))
    fields = {"data scores": true, "estimated scores": estimated}
    return "figure2.png", images.fields(plane(axis), fields, density, EXTENT)


def _toy_samples(figures: Figures, key: jax.Array) -> tuple[str, np.ndarray]:
    """Figure 3: independent samples of the mixture, Langevin dynamics and annealed Langevin dynamics with the exact score."""
    start_keys, chain_keys, exact_keys = (example_keys(k, np.arange(NUM_CHAINS)) for k in jax.random.split(key, 3))
    x = EXTENT * (2 * standard_uniform(start_keys, (2,)) - 1)
    level = jnp.zeros(NUM_CHAINS, jnp.int32)
    exact = mixture_score_fn(WEIGHTS, MEANS, SCALES, np.full(1, 1e-6, np.float32))
    # At every level the components' own standard deviation is sigma.
    perturbed = mixture_score_fn(WEIGHTS, MEANS, np.zeros(2, np.float32), TOY_SIGMAS)
    points = {
        "i.i.d. samples": sample_mixture(exact_keys, WEIGHTS, MEANS, SCALES),
        "Langevin dynamics": jax.jit(lambda: langevin(chain_keys, exact, x, level, step_size=0.05, num_steps=1000))(),
        "annealed Langevin dynamics": jax.jit(
            lambda: annealed_langevin(chain_keys, perturbed, x, TOY_SIGMAS, step_size=0.05, num_steps=100)
        )(),
    }
    points = {name: np.asarray(found) for name, found in points.items()}
    say(f"weight of the larger mode over {NUM_CHAINS} chains (true: {WEIGHTS[0]:.1f}):")
    for name, found in points.items():
        say(f"  {name}: {np.mean(found.sum(1) > 0):.4f}")
    return "figure3.png", images.scatters({name: found[:NUM_SHOWN] for name, found in points.items()}, EXTENT)


def _sampler(job: Job) -> Callable:
    params = job.replicate(job.restored[1].ema_params)
    return functools.partial(make_sampler(job, params), params)


def _neighbors(figures: Figures, samples: np.ndarray) -> tuple[str, np.ndarray]:
    """Samples, each followed by the training examples nearest to it."""
    job = figures.job
    seen = _Seen(job)
    number = min(9, len(seen))
    index, distance = nearest_neighbors(samples, seen, number)
    say(f"nearest neighbours: distances from {distance[:, 0].min():.3g} to {distance[:, 0].max():.3g}")
    rows = np.concatenate([samples[:, None], np.stack([seen.at(row) for row in index])], axis=1)
    return "neighbors.png", job.picture(rows.reshape(-1, *job.event), columns=1 + number, pixels=80 * (1 + number))


class _Seen:
    """The training examples in the unit of samples, block by block."""

    def __init__(self, job: Job):
        self._data, self._dequantized = job.data, job.config["data"]["dequantize"]

    def __len__(self) -> int:
        return len(self._data.train)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.at(np.arange(len(self))[rows])

    def at(self, index: np.ndarray) -> np.ndarray:
        return unit_scale(self._data.train[index], self._data.num_values, self._dequantized)


def _mixing(figures: Figures, samples: np.ndarray) -> tuple[str, np.ndarray]:
    """One long chain per row, at the last noise level: whether it leaves the mode it began in."""
    job, columns, per_column = figures.job, 10, 200
    last = len(job.sigmas) - 1
    label = []
    if job.config["data"]["labels"]:
        told = chain_labels(job, len(samples))
        label = [jnp.asarray(np.full_like(told, job.data.num_classes) if job.config["data"]["label_dropout"] else told)]
    keys = example_keys(job.keys["figures"], np.arange(len(samples)))
    level = jnp.full(len(samples), last, jnp.int32)

    @jax.jit
    def chains(params, x):
        def step(x, _, n):
            return langevin_step(job.apply(params, x, level, *label), x, chain_noise(keys, n, job.event), job.step_size)

        return anneal(step, x, columns, per_column, columns)

    frames = job.to_images(np.asarray(chains(job.restored[1].ema_params, job.to_data(jnp.asarray(samples))).snapshots))
    frames = np.moveaxis(np.concatenate([samples[None], frames]), 0, 1)
    moved = np.linalg.norm((frames[:, -1] - frames[:, 0]).reshape(len(samples), -1), axis=1)
    say(
        f"mixing: {columns * per_column} steps at sigma {float(job.sigmas[last]):.3g} move a chain by {moved.mean():.3g} on average"
    )
    return "mixing.png", job.picture(frames.reshape(-1, *job.event), columns=1 + columns, pixels=80 * (1 + columns))
