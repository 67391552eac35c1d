"""NCSNv2 on CelebA at 64x64.

Paper: Song & Ermon (2020), section 5 and appendix B: the deeper network, 500 levels from 90 to 0.01, T = 5, step size 3.3e-6,
    210,000 iterations; centre crop 140, resize to 64.
Data: as in celeba.py; 2 GB as pixels, so they are streamed.
Cost: a network of 83.4 million parameters; meant for accelerators, not measured here.
Reaches: FID 10.23 in the paper.
Command: python main.py --config=configs/celeba_v2.py
"""

import ml_collections

from score_jax.config import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    config = ncsnv2()
    config.data.update(name="celeb_a", crop=140, size=64)
    config.noise.update(sigma_max=90.0, num_levels=500)
    config.model.variant = "deeper"
    config.training.num_steps = 210_000
    config.sampling.step_size = 3.3e-6
    return config
