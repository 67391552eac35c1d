#!/usr/bin/env python3
"""Samplers beside each other: quality on the digits, and the law of their final variance.

    python benchmarks/samplers.py runs/digits [--seed 0]     quality of 1000 samples of a workdir
    python benchmarks/samplers.py --law                      Gaussians with exact scores

Quality is that of benchmarks/digits_quality.py; `classes` is the largest relative deviation of the
frequency of a class from that in the training images. The second table compares the variance of
chains on N(0, I) in 50 dimensions, 40 noise levels from 10 to 0.03, with the law of
`score_jax.gaussian_law`: the ratio to the variance of the data, and the error of the measured one
in standard errors.
"""

import argparse
import time

import digits_quality
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import score_jax as sj
from score_jax.cli.build import build_sampler
from score_jax.cli.estimate import num_evaluations
from score_jax.cli.flags import parse
from score_jax.cli.run import open_run
from score_jax.cli.table import SETTINGS

# The section `sampling` of a config by default, with the last denoising step.
DEFAULTS = {
    name.partition(".")[2]: setting.default
    for name, setting in SETTINGS.items()
    if name.startswith("sampling.")
} | {"denoise": True}
# Name, and settings of the section `sampling` of a config.
SAMPLERS = [
    ("annealed Langevin, 10 per level", {"method": "annealed", "num_steps": 10}),
    ("annealed Langevin, 5 per level", {"method": "annealed", "num_steps": 5}),
    ("consistent, 5 per level", {"method": "consistent", "num_steps": 5}),
    ("consistent, 1 per level", {"method": "consistent", "num_steps": 1}),
    ("probability-flow ODE, Heun", {"method": "ode", "num_steps": 20, "grid": "edm"}),
    ("stochastic Heun, churn 0.2", {"method": "stochastic_heun", "num_steps": 20, "churn": 0.2}),
    ("ancestral", {"method": "ancestral", "num_steps": 40, "grid": "geometric"}),
    ("ancestral", {"method": "ancestral", "num_steps": 159, "grid": "geometric"}),
    (
        "predictor-corrector, snr 0.16",
        {"method": "predictor_corrector", "num_steps": 40, "grid": "geometric", "snr": 0.16},
    ),
    (
        "predictor-corrector, snr 0.24",
        {"method": "predictor_corrector", "num_steps": 60, "grid": "geometric", "snr": 0.24},
    ),
]


def quality(workdir: str, seed: int | None) -> None:
    """Prints the table of qualities."""
    run = open_run(parse(["--mode=sample", f"--workdir={workdir}"]), jax.local_devices())
    seed = run.config["seed"] if seed is None else seed
    digits = load_digits()
    judge = SVC(gamma=0.001, C=10).fit(digits.data, digits.target)
    _, y_train, _ = digits_quality.split()
    share = np.bincount(y_train) / len(y_train)
    print("| sampler | evaluations | seconds | fd_mlp | is_svc | one_nn | nn_ratio | classes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    chosen = run.config["sampling"]
    for name, settings in SAMPLERS:
        sampler = build_sampler({**chosen, **settings})
        begun = time.monotonic()
        arguments = run.sampling(1000) | {
            "sampler": sampler,
            "num_steps": settings["num_steps"],
            "step_size": None,
            "seed": seed,
            "num_snapshots": 0,
            "progress": False,
        }
        x = sj.sample(
            run.score_fn(run.state.ema_params), run.sigmas, label=run.labels(1000), **arguments
        )
        seconds = time.monotonic() - begun
        found = digits_quality.score(np.clip(x, 0, 1))
        counts = np.bincount(judge.predict(digits_quality.check(np.clip(x, 0, 1))), minlength=10)
        deviation = np.abs(counts / len(x) / share - 1).max()
        evaluations = num_evaluations({**chosen, **settings}, len(run.sigmas))
        print(
            f"| {name} | {evaluations} | {seconds:.0f} | "
            f"{found['fd_mlp']:.2f} | {found['is_svc']:.2f} | {found['one_nn']:.3f} | "
            f"{found['nn_ratio']:.2f} | {deviation:.0%} |",
            flush=True,
        )


def law() -> None:
    """Prints the table of final variances."""
    sigmas = sj.geometric_sigmas(10.0, 0.03, 40)
    size, number = 50, 8000
    mean, variance = jnp.zeros(size), jnp.ones(size)
    exact = sj.gaussian_score_fn(mean, variance, sigmas)
    print("| sampler | evaluations | ratio by the law | measured | standard errors |")
    print("| --- | --- | --- | --- | --- |")
    for name, settings in SAMPLERS:
        method = build_sampler({**DEFAULTS, **settings})
        num_steps = settings["num_steps"]
        step_size = sj.sampling.default_step_size(method, sigmas, num_steps)
        arguments = {} if step_size is None else {"step_size": step_size}
        ideal = sj.final_variance(
            method, sigmas, np.ones(1, np.float32), num_steps=num_steps, denoise=True, **arguments
        )[0]
        x = sj.sample(
            exact,
            sigmas,
            number=number,
            shape=(size,),
            num_steps=num_steps,
            sampler=method,
            batch_size=number,
            progress=False,
        )
        measured = float(np.mean(np.asarray(x, np.float64) ** 2))
        error = (measured / ideal - 1) / np.sqrt(2 / x.size)
        evaluations = num_evaluations({**DEFAULTS, **settings}, len(sigmas))
        print(
            f"| {name} | {evaluations} | {ideal:.3f} | {measured:.3f} | {error:+.1f} |",
            flush=True,
        )


def main():
    """Prints one of the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", nargs="?")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--law", action="store_true")
    arguments = parser.parse_args()
    if arguments.law:
        law()
    elif arguments.workdir:
        quality(arguments.workdir, arguments.seed)
    else:
        parser.error("give a workdir, or --law")


if __name__ == "__main__":
    main()
