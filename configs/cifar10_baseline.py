"""The paper's baseline on CIFAR-10: one noise level and plain Langevin dynamics.

Paper: Song & Ermon (2019), section 5, "baseline": sigma 0.01 only, sampled with 1000 steps of 2e-5
    from uniform noise.
Data: as in cifar10.py.
Cost: a network of 29.9 million parameters; meant for accelerators, not measured here.
Reaches: no recognisable image, as in the paper; cifar10.py shows what annealing adds.
Command: score-jax --config=cifar10_baseline
"""

import ml_collections

from score_jax.cli.settings import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn(
        noise={"sigma_max": 0.01, "sigma_min": 0.01, "num_levels": 1},
        sampling={"method": "langevin", "num_steps": 1000, "step_size": 2e-5, "num_frames": 1},
    )
