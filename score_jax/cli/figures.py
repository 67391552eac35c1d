"""The figures of the paper: the toy density, nearest neighbours of samples, mixing of chains."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax import sampling
from score_jax.analytic import mixture_log_density, mixture_score_fn, sample_mixture
from score_jax.checkpoint import Checkpoints
from score_jax.cli import build, images, workdir
from score_jax.cli.flags import Command
from score_jax.cli.run import Run, naming_step_size, open_run
from score_jax.cli.scaled import ScaledExamples
from score_jax.cli.settings import validate
from score_jax.data import sources
from score_jax.data.dataset import Dataset
from score_jax.data.transforms import unit_scale
from score_jax.evaluation.neighbors import nearest_neighbors
from score_jax.losses.ssm import annealed_ssm, ssm
from score_jax.models.mlp import MLP
from score_jax.network import as_model, with_label
from score_jax.noise import example_keys, run_keys, standard_uniform
from score_jax.progress import announce
from score_jax.samplers.langevin import annealed_langevin, langevin, langevin_step
from score_jax.samplers.loop import anneal
from score_jax.schedule import step_size_for
from score_jax.training import make_trainer

# The toy density of figures 2 and 3.
WEIGHTS = sources.MIXTURE_WEIGHTS
MEANS = sources.MIXTURE_MEANS
SCALES = sources.MIXTURE_SCALES
TOY_SIGMAS = np.geomspace(20, 1, 10).astype(np.float32)
EXTENT = 8.0
"""Half the side of the plots' square, and of the square from which chains start."""
NUM_CHAINS = 20_000
NUM_SHOWN = 1280
FIGURE_1_PIXELS = 50_000_000
"""Largest number of pixels of all images of figure 1 together."""
NUM_NEIGHBORS = 9
MIXING_COLUMNS = 10
MIXING_STEPS = 200
"""Number of steps between two columns of the picture of mixing."""
NUM_SAMPLES = 8


def figures_mode(command: Command, devices: Sequence[jax.Device]) -> bool:
    """Draws all figures, each into a PNG of its own; True when done.

    Raises:
        ValueError: If the config or the folder does not fit.
        OSError: If a file is missing, or the folder cannot be written.
    """
    # Open the trained network if there is one, and the images of figure 1.
    validate(command.config)
    options, folder = command.options, Path(command.workdir)
    number = NUM_SAMPLES if options.number is None else options.number
    if number < 1:
        raise ValueError(f"--number={number} must be at least 1")
    run = None
    if Checkpoints(folder / "checkpoints").steps():
        run = open_run(command, devices, needs_data=True)
    data = run.data if run else build.load_data(command.config["data"], decode=False)[0]
    workdir.check_writable(folder, 10_000_000)

    # Figures 1 to 3 need no trained network.
    folder.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(command.config["seed"]), 3)
    figures = (
        ("figure1.png", lambda key: sliced_losses(key, figure_1_images(data))),
        ("figure2.png", toy_scores),
        ("figure3.png", toy_samples),
    )
    for (name, draw), key in zip(figures, keys, strict=True):
        begun = time.monotonic()
        announce(f"computing {name} ...")
        _save(folder, name, draw(key))
        announce(f"wrote {name} ({time.monotonic() - begun:.1f} s)")
    if run is None:
        announce(
            f"--workdir={folder} holds no trained network: nearest neighbours and mixing are left "
            "out; train one there, then draw again"
        )
        return True

    # The last two show samples of the trained network.
    labels = run.labels(number)
    score_fn = run.score_fn(run.state.ema_params)
    arguments = {**run.sampling(number), "num_snapshots": 0}
    with naming_step_size(run):
        samples = sampling.sample(score_fn, run.sigmas, label=labels, **arguments)
    samples = run.to_images(samples)
    _save(folder, "neighbors.png", neighbors(run, samples))
    _save(folder, "mixing.png", mixing(run, samples, labels))
    announce(f"wrote neighbors.png and mixing.png to {folder}")
    return True


def _save(folder: Path, name: str, picture: np.ndarray) -> None:
    with workdir.replacing(folder / name) as path:
        images.save_png(path, picture)


def figure_1_images(data: Dataset) -> np.ndarray:
    """Training images in [0, 1], as many as figure 1 needs; digits if the data are not pixels."""
    if not data.num_values:
        data = sources.digits()
    affordable = FIGURE_1_PIXELS // int(np.prod(data.train.shape[1:]))
    number = min(len(data.train), 10_000, max(128, affordable))
    return unit_scale(data.train[np.arange(number)], data.num_values, False)


def sliced_losses(key: jax.Array, x: np.ndarray) -> np.ndarray:
    """Figure 1: the sliced loss on images as they are, and perturbed by N(0, 0.0001)."""
    sigmas = np.array([0.01], np.float32)
    model = MLP(sigmas=(0.01,), hidden=(256, 256))
    curves = {}
    for name, loss_fn, scale in (
        ("no noise", ssm, 1),
        ("perturbed by N(0, 0.0001)", annealed_ssm, sigmas[0] ** 2),
    ):
        losses = train_briefly(key, model, x, sigmas, loss_fn, num_steps=3000)[1]
        curves[name] = losses / scale
        last = curves[name][-100:]
        announce(
            f"figure 1, {name}: mean loss of the last 100 steps {last.mean():.4g}, spread "
            f"{last.std():.4g}"
        )
    return images.curves_apart(curves, xlabel="step", ylabel="sliced score matching loss")


def train_briefly(
    key: jax.Array,
    model: Any,
    x: np.ndarray | jax.Array,
    sigmas: np.ndarray,
    loss_fn: Callable,
    num_steps: int,
) -> tuple[Any, np.ndarray]:
    """Trains with Adam on batches of 128 in one program, which takes seconds for a small network.

    `fit` would spend more time between the steps than in them.

    Returns:
        The parameters, and the loss of every step.
    """
    trainer = make_trainer(model, loss_fn, optax.adam(1e-3), sigmas, ema_decay=0.0)
    init_key, batch_key, train_key = jax.random.split(key, 3)

    @jax.jit
    def run(x):
        params = trainer.model.init(init_key, x[:1], jnp.zeros(1, jnp.int32))

        def step(state, n):
            index = jax.random.randint(jax.random.fold_in(batch_key, n), (128,), 0, len(x))
            state, metrics = trainer.step(train_key, state, x[index])
            return state, metrics.loss

        return jax.lax.scan(step, trainer.init(params), np.arange(num_steps))

    state, losses = run(x)
    return state.params, np.asarray(losses)


def toy_scores(key: jax.Array) -> np.ndarray:
    """Figure 2: the true score of the mixture, and an MLP's estimate by sliced score matching."""
    sample_key, train_key, test_key = jax.random.split(key, 3)
    x = sample_mixture(jax.random.split(sample_key, 100_000), WEIGHTS, MEANS, SCALES)
    model = MLP(sigmas=(1.0,))
    params, _ = train_briefly(train_key, model, x, np.ones(1, np.float32), ssm, num_steps=10_000)
    true_fn = mixture_score_fn(WEIGHTS, MEANS, SCALES, np.full(1, 1e-6, np.float32))

    def both(x):
        level = jnp.zeros(len(x), jnp.int32)
        return np.asarray(true_fn(x, level)), np.asarray(as_model(model).apply(params, x, level))

    # The error of the estimate, where the data are and on the whole square.
    grid = _square(20)
    positions = {
        "under the density": sample_mixture(
            jax.random.split(test_key, 10_000), WEIGHTS, MEANS, SCALES
        ),
        "on the square": grid,
    }
    for name, points in positions.items():
        true, estimated = both(jnp.asarray(points))
        squared_error = np.mean(np.sum((estimated - true) ** 2, axis=1))
        error = np.sqrt(squared_error / np.mean(np.sum(true**2, axis=1)))
        announce(f"figure 2: relative error of the estimated score {name} {error:.3f}")

    true, estimated = both(jnp.asarray(grid))
    log_density = mixture_log_density(jnp.asarray(_square(200)), WEIGHTS, MEANS, SCALES)
    density = np.exp(np.asarray(log_density)).reshape(200, 200)
    vectors = {"data scores": true, "estimated scores": estimated}
    return images.fields(grid, vectors, density, EXTENT)


def _square(side: int) -> np.ndarray:
    """A grid of side x side points on the square, float32 [side * side, 2]."""
    axis = np.linspace(-EXTENT, EXTENT, side, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def toy_samples(key: jax.Array) -> np.ndarray:
    """Figure 3: samples of the mixture, by Langevin and annealed Langevin dynamics."""
    keys = [example_keys(each, np.arange(NUM_CHAINS)) for each in jax.random.split(key, 3)]
    start_keys, chain_keys, exact_keys = keys
    x = EXTENT * (2 * standard_uniform(start_keys, (2,)) - 1)
    level = jnp.zeros(NUM_CHAINS, jnp.int32)
    exact = mixture_score_fn(WEIGHTS, MEANS, SCALES, np.full(1, 1e-6, np.float32))
    # At every level the components' own standard deviation is sigma.
    perturbed = mixture_score_fn(WEIGHTS, MEANS, np.zeros(2, np.float32), TOY_SIGMAS)

    @jax.jit
    def plain():
        return langevin(chain_keys, exact, x, level, step_size=0.05, num_steps=1000).x

    @jax.jit
    def annealed():
        return annealed_langevin(
            chain_keys, perturbed, x, TOY_SIGMAS, step_size=0.05, num_steps=100
        ).x

    points = {
        "i.i.d. samples": np.asarray(sample_mixture(exact_keys, WEIGHTS, MEANS, SCALES)),
        "Langevin dynamics": np.asarray(plain()),
        "annealed Langevin dynamics": np.asarray(annealed()),
    }
    announce(f"weight of the larger mode over {NUM_CHAINS} chains (true: {WEIGHTS[0]:.1f}):")
    for name, found in points.items():
        announce(f"  {name}: {np.mean(found.sum(axis=1) > 0):.4f}")
    shown = {name: found[:NUM_SHOWN] for name, found in points.items()}
    return images.scatters(shown, EXTENT)


def neighbors(run: Run, samples: np.ndarray) -> np.ndarray:
    """Samples, each followed by its nearest training examples."""
    data = run.data
    examples = ScaledExamples(data.train, data.num_values, run.config["data"]["dequantize"])
    number = min(NUM_NEIGHBORS, len(examples))
    index, distance = nearest_neighbors(samples, examples, number)
    announce(
        f"nearest neighbours: distances from {distance[:, 0].min():.3g} to "
        f"{distance[:, 0].max():.3g}"
    )
    nearest = np.stack([examples.at(row) for row in index])
    rows = np.concatenate([samples[:, None], nearest], axis=1)
    columns = 1 + number
    return run.picture(rows.reshape(-1, *run.shape), columns, pixels=80 * columns)


def mixing(run: Run, samples: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """One long chain per row, at the last noise level, from the samples on."""
    last = len(run.sigmas) - 1
    number = len(samples)
    if labels is not None and run.config["data"]["label_dropout"]:
        labels = np.full_like(labels, run.data.num_classes)  # Any class: chains can change theirs.
    keys = example_keys(run_keys(run.config["seed"])["figures"], np.arange(number))

    # A sampler without a step size leaves it to technique 4.
    step_size = run.step_size or step_size_for(run.sigmas, num_steps=10)

    def update(x, score, noise, level, n):
        return langevin_step(score, x, noise, step_size)

    @jax.jit
    def chains(score_fn, x):
        # One column of the picture takes the place of one noise level.
        return anneal(
            update,
            keys,
            with_label(score_fn, labels),
            x,
            jnp.arange(MIXING_COLUMNS, 0, -1, dtype=jnp.float32),
            num_steps=MIXING_STEPS,
            num_snapshots=MIXING_COLUMNS,
            score_levels=np.full(MIXING_COLUMNS * MIXING_STEPS, last, np.int32),
        )

    announce(f"compiling {MIXING_COLUMNS * MIXING_STEPS} steps at the last noise level ...")
    start = jnp.asarray(run.to_network(samples))
    snapshots = chains(run.score_fn(run.state.ema_params), start).snapshots
    frames = np.concatenate([samples[None], run.to_images(np.asarray(snapshots))])
    moved = np.linalg.norm((frames[-1] - frames[0]).reshape(number, -1), axis=1)
    announce(
        f"mixing: {MIXING_COLUMNS * MIXING_STEPS} steps at sigma {float(run.sigmas[last]):.3g} "
        f"move a chain by {moved.mean():.3g} on average"
    )
    rows = np.moveaxis(frames, 0, 1).reshape(-1, *run.shape)
    return run.picture(rows, 1 + MIXING_COLUMNS, pixels=80 * (1 + MIXING_COLUMNS))
