"""NCSN on CIFAR-10: every published setting of the paper.

Paper: Song & Ermon (2019), section 5 and appendix B: n = 128, 10 levels from 1 to 0.01, T = 100, step size 2e-5, Adam 1e-3,
    batch 128, 200,000 iterations.
Data: by tensorflow-datasets; or zips of train/class/*.jpg and test/class/*.jpg:
    --config.data.source=zip --config.data.path="cifar10_*.zip"
Cost: a network of 30.1 million parameters; meant for accelerators, not measured here.
Reaches: Inception score 8.87, FID 25.32 in the paper.
Command: python main.py --config=configs/cifar10.py
"""

import ml_collections

from score_jax.config import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn()
