"""Time of each objective, forward and backward, on the paper's network, in one run and in alternating order.

Command: python benchmarks/objectives.py [--width=32] [--batch=16] [--size=32] [--rounds=7]
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from score_jax.losses.dsm import annealed_dsm
from score_jax.losses.ssm import annealed_ssm
from score_jax.models.ncsn import NCSN
from score_jax.noise import geometric_sigmas

LOSSES = {
    "denoising": annealed_dsm,
    "sliced": annealed_ssm,
    "sliced, 4 projections": functools.partial(annealed_ssm, num_projections=4),
}


def main():
    parser = argparse.ArgumentParser()
    for name, default in (("width", 32), ("batch", 16), ("size", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    settings = parser.parse_args()
    model, sigmas = NCSN(num_levels=10, width=settings.width), geometric_sigmas(1.0, 0.01, 10)
    x = jax.random.uniform(jax.random.key(0), (settings.batch, settings.size, settings.size, 3))
    level, keys = jnp.arange(settings.batch) % 10, jax.random.split(jax.random.key(1), settings.batch)
    params = jax.jit(model.init)(jax.random.key(2), x, level)["params"]
    programs, times = {}, {name: [] for name in LOSSES}
    for name, loss_fn in LOSSES.items():

        def loss(params, loss_fn=loss_fn):
            return loss_fn(keys, lambda x, level: model.apply({"params": params}, x, level), x, level, sigmas).mean()

        programs[name] = jax.jit(jax.value_and_grad(loss))
        jax.block_until_ready(programs[name](params))
    for _ in range(settings.rounds):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(params))
            times[name].append(time.perf_counter() - begun)
    base = statistics.median(times["denoising"])
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, NCSN n = {settings.width}, batch {settings.batch}")
    for name, found in times.items():
        print(
            f"{name:24s} {statistics.median(found):.3f} s ({min(found):.3f} to {max(found):.3f}), {statistics.median(found) / base:.2f}"
        )


if __name__ == "__main__":
    main()
