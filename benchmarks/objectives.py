"""Time of each objective, forward and backward, on the paper's network.

    python benchmarks/objectives.py [--width=32] [--batch=16] [--size=32] [--rounds=7]

All objectives are timed in one run, in alternating order.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp

import score_jax as sj

LOSSES = {
    "denoising": sj.annealed_dsm,
    "sliced": sj.annealed_ssm,
    "sliced, 4 projections": functools.partial(sj.annealed_ssm, num_projections=4),
}


def main():
    """Prints the times."""
    parser = argparse.ArgumentParser()
    for name, default in (("width", 32), ("batch", 16), ("size", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    settings = parser.parse_args()

    # The network and one batch.
    sigmas = sj.geometric_sigmas(1.0, 0.01, 10)
    model = sj.NCSN(sigmas=sigmas, width=settings.width)
    shape = (settings.batch, settings.size, settings.size, 3)
    x = jax.random.uniform(jax.random.key(0), shape)
    level = jnp.arange(settings.batch) % 10
    keys = jax.random.split(jax.random.key(1), settings.batch)
    params = jax.jit(model.init)(jax.random.key(2), x, level)["params"]

    def mean_loss(params, loss_fn):
        return loss_fn(keys, sj.score_fn(model, params), x, level, sigmas).mean()

    programs = {}
    for name, loss_fn in LOSSES.items():
        loss = functools.partial(mean_loss, loss_fn=loss_fn)
        programs[name] = jax.jit(jax.value_and_grad(loss))
        jax.block_until_ready(programs[name](params))

    times = {name: [] for name in LOSSES}
    for _ in range(settings.rounds):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(params))
            times[name].append(time.perf_counter() - begun)

    print(
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}, NCSN n = {settings.width}, "
        f"batch {settings.batch}"
    )
    base = statistics.median(times["denoising"])
    for name, own in times.items():
        median = statistics.median(own)
        print(f"{name:24s} {median:.3f} s ({min(own):.3f} to {max(own):.3f}), {median / base:.2f}")


if __name__ == "__main__":
    main()
