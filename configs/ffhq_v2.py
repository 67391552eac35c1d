"""NCSNv2 on FFHQ at 256x256.

Paper: Song & Ermon (2020), section 5 and appendix B: the deepest network, 2311 levels from 348 to 0.01, T = 3, step size 9e-7,
    Adam with epsilon 1e-3, batch 32, 80,000 iterations.
Data: a folder or zip of train/*.png and test/*.png: --config.data.path=...
Cost: a network of 94.1 million parameters; meant for many accelerators, not measured here.
Reaches: the paper shows samples; no score is published.
Command: python main.py --config=configs/ffhq_v2.py --config.data.path=ffhq
"""

import ml_collections

from score_jax.config import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    config = ncsnv2()
    config.data.update(source="folder", name="", size=256)
    config.noise.update(sigma_max=348.0, num_levels=2311)
    config.model.variant = "deepest"
    config.optim.epsilon = 1e-3
    config.training.update(batch_size=32, num_steps=80_000)
    config.sampling.update(num_steps=3, step_size=9e-7, batch_size=32)
    return config
