"""Colour images of 32x32 pixels on two CPU cores, without labels.

Data: CIFAR-10 as zips of train/class/*.jpg and test/class/*.jpg; or from tensorflow-datasets, with
    --config.data.source=tfds --config.data.name=cifar10
Method: as configs/mnist_small.py, with a wider U-Net and more steps. The largest noise level
    follows from the largest principal component of the data.
Cost: 66 minutes of training on two CPU cores (AMD Zen 4; 0.44 s a step) and 2 minutes for 1000
    samples.
Reaches: the figures and pictures after 5, 20 and 60 minutes and at the end are in
    benchmarks/RESULTS.md.
Command: score-jax --config=cifar10_small --config.data.path="cifar10_*.zip"
"""

import ml_collections

from score_jax.cli.settings import small_images


def get_config() -> ml_collections.ConfigDict:
    return small_images(
        size=32,
        channels=3,
        mean=0.476,
        std=0.251,
        sigma_max=33.2,
        num_steps=9_000,
        data={"source": "zip", "path": None},
        model={"width": 64, "num_blocks": (2, 4)},
    )
