#!/usr/bin/env python3
"""Times the features and the metrics of samples, on images of noise.

    python benchmarks/metrics.py [--number 10000] [--size 32] [--channels 3] [--inception 64]

Prints seconds, compilation included: the classifier's features of `number` images, all metrics of
`number` samples against as many examples, and the features of Inception v3 with random weights for
`--inception` images (0 leaves it out).
"""

import argparse
import os
import time

import jax

jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from score_jax.evaluation.classifier import (  # noqa: E402
    Trained,
    classifier_features,
    initial_classifier,
)
from score_jax.evaluation.features import extract  # noqa: E402
from score_jax.evaluation.metrics import sample_metrics  # noqa: E402
from score_jax.models.inception import Inception, inception_features  # noqa: E402


def timed(what, function):
    """The result of a function; prints its seconds."""
    begun = time.monotonic()
    result = function()
    print(f"{what}: {time.monotonic() - begun:.1f} s", flush=True)
    return result


def main():
    """Prints the times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--inception", type=int, default=64)
    args = parser.parse_args()
    shape = (args.size, args.size, args.channels)
    x = np.random.default_rng(0).random((args.number, *shape), np.float32)

    trained = Trained(initial_classifier(shape, 10), 10, 0.5, 0.25)
    function = classifier_features(trained)
    settings = {"batch_size": 256, "progress": False}
    found = timed(
        f"classifier features of {args.number} images {list(shape)}",
        lambda: extract(function, x, **settings),
    )
    timed(f"metrics of {args.number} samples", lambda: sample_metrics(found, found))

    if args.inception:
        params = jax.jit(Inception().init)(jax.random.key(0), jnp.zeros((1, 299, 299, 3)))
        function = inception_features(params["params"])
        few = x[: args.inception]
        timed(
            f"Inception features of {args.inception} images",
            lambda: extract(function, few, batch_size=32, progress=False),
        )


if __name__ == "__main__":
    main()
