"""NCSNv2 on CelebA at 64x64.

Paper: Song & Ermon (2020), section 5 and appendix B: the standard network, 500 levels from 90 to
    0.01, T = 5, step size 3.3e-6, 210,000 iterations; centre crop of 140 pixels, resized to 64.
Data: as in celeba.py; 2 GB as pixels, so they are streamed.
Cost: a network of 29.7 million parameters; meant for accelerators, not measured here.
Reaches: not measured here.
Command: score-jax --config=celeba_v2
"""

import ml_collections

from score_jax.cli.settings import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    return ncsnv2(
        data={"name": "celeb_a", "crop": 140, "size": 64},
        noise={"sigma_max": 90.0, "num_levels": 500},
        training={"num_steps": 210_000},
        sampling={"step_size": 3.3e-6},
    )
