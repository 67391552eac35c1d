#!/usr/bin/env python3
"""Restores held-out digits, beside the exact posterior of a Gaussian prior.

    python benchmarks/restoration.py runs/digits [--images 200] [--completions 20]

The Gaussian prior has the mean and covariance of the training images. Prints one row per task,
method and sampler:

    error       mean squared error of the posterior mean, over that of the Gaussian prior's
    coverage    fraction of pixels inside their central 90 % interval of the samples
    misfit      root mean square of |y - A x| / noise over the samples; 1 for a correct posterior
    agreement   fraction of samples that an SVC puts into the class of the original
    seconds     time of sampling, with compiling

Coverage counts the pixels that vary among the training images (standard deviation above 0.02). An
exact posterior has (0.9 n - 0.9) / (n + 1) with n samples: 0.81 with 20, 0.89 with 200.
"""

import argparse
import time

import jax
import numpy as np
from sklearn.svm import SVC

import score_jax as sj
from score_jax.cli.flags import parse
from score_jax.cli.restore import Task, measure, misfit, posterior_samples, read_task
from score_jax.cli.run import Run, open_run
from score_jax.data.transforms import unit_scale

NOISE = 0.05
TASKS = ("inpaint:right", "sense:0.25", "superresolve:2", "deblur:1")


def open_workdir(folder: str, overrides: list[str]) -> Run:
    """The run of a workdir, with settings such as "--config.sampling.method=ode"."""
    command = parse(["--mode=restore", f"--workdir={folder}", *overrides])
    return open_run(command, jax.local_devices(), needs_data=True)


def gaussian_mean(run: Run, task: Task, measured: np.ndarray) -> np.ndarray:
    """Posterior means of a Gaussian prior fitted to the training images, [images, *shape]."""
    x = scaled(run, run.data.train).reshape(len(run.data.train), -1)
    covariance = np.cov(x.T) + 1e-6 * np.eye(x.shape[1])
    mean = x.mean(0).reshape(run.shape).astype(np.float32)
    means, _ = sj.full_gaussian_posterior(
        mean, covariance, task.operator, measured, task.noise_std
    )
    return np.asarray(means)


def scaled(run: Run, pixels: np.ndarray) -> np.ndarray:
    """Pixels at the middle of their dequantisation interval, float32 in [0, 1]."""
    return unit_scale(pixels, run.data.num_values, run.config["data"]["dequantize"])


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--completions", type=int, default=20)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--methods", nargs="*", default=["moment_matching"])
    arguments, overrides = parser.parse_known_args()
    run = open_workdir(arguments.workdir, overrides)
    x = scaled(run, run.data.held_out[: arguments.images])
    train = scaled(run, run.data.train)
    label = run.data.num_classes if run.conditional else None
    varying = train.std(axis=0) > 0.02
    svc = None
    if run.data.train_labels is not None:
        flat = np.floor(train.reshape(len(train), -1) * 17)
        svc = SVC(gamma=0.001, C=10).fit(flat, run.data.train_labels)

    print("| task | method | error | coverage | misfit | agreement | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in arguments.tasks:
        task = Task(read_task(name, run.shape, run.config["seed"]), NOISE, "")
        measured = measure(run, task, x)
        base = np.mean((gaussian_mean(run, task, measured) - x) ** 2)
        for method in arguments.methods:
            task = task._replace(method=method)
            begun = time.monotonic()
            samples = posterior_samples(run, task, measured, label, arguments.completions)
            seconds = time.monotonic() - begun
            error = np.mean((samples.mean(1) - x) ** 2)
            low, high = np.quantile(samples, [0.05, 0.95], axis=1)
            inside = ((low <= x) & (x <= high))[:, varying].mean()
            rms = np.sqrt(np.mean(misfit(task, measured, samples) ** 2))
            agreement = float("nan")
            if svc is not None:
                flat = np.clip(np.floor(samples.reshape(-1, x[0].size) * 17), 0, 16)
                found = svc.predict(flat).reshape(samples.shape[:2])
                agreement = (found == run.data.held_out_labels[: len(x), None]).mean()
            print(
                f"| {name} | {method} | {error:.4f} / {base:.4f} = {error / base:.2f} | "
                f"{inside:.3f} | {rms:.3f} | {agreement:.3f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
