"""NCSNv2 on CIFAR-10, with every published setting of the second paper.

Paper: Song & Ermon (2020), section 5 and appendix B: n = 128, 232 levels from 50 to 0.01, T = 5,
    step size 6.2e-6, last denoising step, Adam with learning rate 1e-4, batches of 128, 300,000
    iterations, moving average 0.999.
Data: as in cifar10.py.
Cost: a network of 29.7 million parameters, 2.06e18 FLOP to train, 2.08e13 for a sample. Estimates
    for training: 2.2 hours on an H100, 35 minutes on a v5e-8 slice, 249 days on two CPU cores.
Reaches: FID 10.87, Inception score 8.40 in the paper, of the checkpoint with the smallest FID of
    1000 samples; not reproduced here. docs/cost.md has the assumptions and the evaluation.
Command: score-jax --config=cifar10_v2
"""

import ml_collections

from score_jax.cli.settings import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    return ncsnv2()
