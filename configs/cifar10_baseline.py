"""The paper's baseline on CIFAR-10: one noise level, plain Langevin dynamics.

Paper: Song & Ermon (2019), section 5, "baseline": sigma 0.01 only, sampled with 1000 steps of 2e-5 from uniform noise.
Data: as in cifar10.py.
Cost: a network of 29.9 million parameters; meant for accelerators, not measured here.
Reaches: no image; that is its point. What annealing adds is seen beside cifar10.py.
Command: python main.py --config=configs/cifar10_baseline.py
"""

import ml_collections

from score_jax.config import ncsn


def get_config() -> ml_collections.ConfigDict:
    config = ncsn()
    config.noise.update(sigma_max=0.01, sigma_min=0.01, num_levels=1)
    config.sampling.update(method="langevin", num_steps=1000, step_size=2e-5, num_frames=1)
    return config
