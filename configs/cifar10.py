"""NCSN on CIFAR-10, with every published setting.

Paper: Song & Ermon (2019), section 5 and appendix B: n = 128, 10 levels from 1 to 0.01, T = 100,
    step size 2e-5, Adam with learning rate 1e-3, batches of 128, 200,000 iterations.
Data: from tensorflow-datasets; or zips of train/class/*.jpg and test/class/*.jpg, with
    --config.data.source=zip --config.data.path="cifar10_*.zip"
Cost: a network of 30.1 million parameters, 1.38e18 FLOP to train, 1.79e13 for a sample. Estimates
    for training: 1.5 hours on an H100, 23 minutes on a v5e-8 slice, 166 days on two CPU cores.
Reaches: Inception score 8.87, FID 25.32 in the paper, of the checkpoint with the smallest FID of
    1000 samples; not reproduced here. docs/cost.md has the assumptions and the evaluation.
Command: score-jax --config=cifar10
"""

import ml_collections

from score_jax.cli.settings import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn()
