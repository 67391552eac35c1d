"""NCSNv2 on CIFAR-10: every published setting of the second paper.

Paper: Song & Ermon (2020), section 5 and appendix B: n = 128, 232 levels from 50 to 0.01, T = 5, step size 6.2e-6, last denoising,
    Adam 1e-4, batch 128, 300,000 iterations, moving average 0.999.
Data: as in cifar10.py.
Cost: a network of 29.7 million parameters; meant for accelerators, not measured here.
Reaches: FID 10.87, Inception score 8.40 in the paper.
Command: python main.py --config=configs/cifar10_v2.py
"""

import ml_collections

from score_jax.config import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    return ncsnv2()
