"""Accuracy of posterior sampling with the exact score of a Gaussian field.

    python benchmarks/posterior_accuracy.py --chains=16000

A field of 8x8 pixels of variance 1 with a squared-exponential covariance is measured with noise of
standard deviation 0.05. For every method, the table shows the largest error of the posterior mean
over all pixels, in posterior standard deviations, and the smallest and largest ratio of the
variance to the true one. Statistical errors with 16000 chains: 0.008 of a mean and 0.011 of a
ratio for each pixel, about three times that for the extremes of 64 pixels. `inpaint` takes the
known pixels as exact and is compared with the truth at the missing ones.
"""

import argparse
import functools
import time

import jax
import numpy as np

import score_jax as sj
from score_jax.samplers.inpainting import inpaint, toward_known
from score_jax.samplers.ode import probability_flow

SHAPE = (8, 8, 1)
NOISE = 0.05
# Chains start at N(0, sigma_1^2 I), which neglects the mean of the posterior: its norm, up to 10
# here, must be small against sigma_1.
SIGMAS = sj.geometric_sigmas(200.0, 0.01, 120)


def covariance(length: float, jitter: float = 1e-3) -> np.ndarray:
    """Squared-exponential covariance of all pixels, [64, 64]."""
    axis = np.arange(8)
    pixels = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(64, 2)
    squares = ((pixels[:, None] - pixels[None]) ** 2).sum(-1)
    matrix = np.exp(-squares / (2 * length**2)) + jitter * np.eye(64)
    return (matrix / (1 + jitter)).astype(np.float32)


def problems() -> dict:
    """Name -> operator."""
    left = np.zeros((8, 8), bool)
    left[:, :4] = True
    frequencies = np.random.default_rng(0).random((8, 8)) < 0.5
    return {
        "right half missing": sj.mask(left),
        "super-resolution by 2": sj.block_mean(2),
        "blur of 1 pixel": sj.blur(1.0),
        "compressed sensing 3/8": sj.random_projections(jax.random.key(1), SHAPE, 24),
        "masked Fourier 1/2": sj.masked_fourier(frequencies),
    }


ODE = {"sampler": probability_flow, "num_steps": 60}
LANGEVIN = {"num_steps": 10, "step_size": 1e-5}
# Name -> settings of the posterior, settings of the sampler.
METHODS = {
    "moment matching": ({}, ODE),
    "moment matching, defaults": ({}, ODE),
    "moment matching, 5 iterations": ({"num_iterations": 5}, ODE),
    "pseudo-inverse": ({"method": "pseudo_inverse"}, ODE),
    "dps, zeta 1": ({"method": "dps", "zeta": 1.0}, ODE),
    "dps, zeta 3": ({"method": "dps", "zeta": 3.0}, ODE),
    "annealed, ODE": ({"method": "annealed"}, ODE),
    "annealed, Langevin 120 x 10": ({"method": "annealed"}, LANGEVIN),
}
# Name -> guidance weight of `inpaint`, annealed Langevin dynamics constrained to known pixels.
COMPLETIONS = {
    "inpaint (paper), 120 x 10": 0.0,
    "inpaint with guidance 1, 120 x 10": 1.0,
}


@functools.cache
def problem(length: float, name: str) -> tuple:
    """Score of the field, operator, one measurement, and the posterior's mean and deviations."""
    mean, matrix = np.zeros(SHAPE, np.float32), covariance(length)
    operator = problems()[name]
    [x_key, y_key] = jax.random.split(jax.random.key(2))
    y = operator(sj.sample_full_gaussian(x_key[None], mean, matrix))
    y = y + NOISE * jax.random.normal(y_key, y.shape)
    means, rest = sj.full_gaussian_posterior(mean, matrix, operator, y, NOISE)
    deviations = np.sqrt(np.diag(rest)).reshape(SHAPE)
    score_fn = sj.full_gaussian_score_fn(mean, matrix, SIGMAS)
    return score_fn, operator, y, np.asarray(means[0]), deviations


def completing(y, operator, weight: float):
    """`inpaint` as a sampler of the field's score."""
    mask = np.asarray(operator.args[1])[..., None]
    pixels = np.zeros(SHAPE, np.float32)
    pixels[mask] = np.asarray(y).ravel()

    def sampler(keys, score_fn, x, sigmas, **settings):
        known, known_mask = (np.broadcast_to(array, x.shape) for array in (pixels, mask))
        if weight:
            score_fn = toward_known(score_fn, known, known_mask, sigmas, weight=weight, variance=1)
        return inpaint(keys, score_fn, x, known, known_mask, sigmas, **settings)

    return sampler


def accuracy(length: float, name: str, chains: int, method: str) -> tuple | None:
    """(largest error of the mean, smallest ratio of variances, largest ratio)."""
    score_fn, operator, y, mean, deviations = problem(length, name)
    if method in COMPLETIONS:
        if name != "right half missing":
            return None
        settings = {**LANGEVIN, "sampler": completing(y, operator, COMPLETIONS[method])}
    else:
        posterior, settings = METHODS[method]
        score_fn = sj.posterior_score(score_fn, y, operator, NOISE, SIGMAS, **posterior)
    x = sj.sample(
        score_fn,
        SIGMAS,
        number=chains,
        shape=SHAPE,
        batch_size=min(chains, 4000),
        progress=False,
        **settings,
    )
    x = np.asarray(x, np.float64)
    bias = np.abs(x.mean(0) - mean) / deviations
    ratios = x.var(0) / deviations**2
    if method in COMPLETIONS:
        # `inpaint` takes the known pixels as exact: compare the missing ones.
        missing = ~np.asarray(operator.args[1])[..., None]
        bias, ratios = bias[missing], ratios[missing]
    return bias.max(), ratios.min(), ratios.max()


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chains", type=int, default=16000)
    parser.add_argument("--lengths", type=float, nargs="*", default=[1.0, 2.0])
    parser.add_argument("--problems", nargs="*", default=list(problems()))
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *COMPLETIONS])
    arguments = parser.parse_args()
    print("| length | problem | method | mean | variance | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for length in arguments.lengths:
        for name in arguments.problems:
            for method in arguments.methods:
                begun = time.monotonic()
                found = accuracy(length, name, arguments.chains, method)
                seconds = time.monotonic() - begun
                if found is None:
                    continue
                bias, low, high = found
                print(
                    f"| {length:g} | {name} | {method} | {bias:.2f} | {low:.2f} to {high:.2f} | "
                    f"{seconds:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
