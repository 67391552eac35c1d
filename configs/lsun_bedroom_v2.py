"""NCSNv2 on LSUN bedrooms at 128x128.

Paper: Song & Ermon (2020), section 5 and appendix B: the deeper network, 1086 levels from 190 to 0.01, T = 3, step size 1.8e-6,
    150,000 iterations.
Data: by tensorflow-datasets (lsun/bedroom); or a folder of train/*.jpg and validation/*.jpg:
    --config.data.source=folder --config.data.path=...
Cost: a network of 83.4 million parameters; meant for accelerators, not measured here.
Reaches: the paper shows samples; no score that can be compared is published.
Command: python main.py --config=configs/lsun_bedroom_v2.py
"""

import ml_collections

from score_jax.config import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    config = ncsnv2()
    config.data.update(name="lsun/bedroom", held_out_split="validation", size=128)
    config.noise.update(sigma_max=190.0, num_levels=1086)
    config.model.variant = "deeper"
    config.training.num_steps = 150_000
    config.sampling.update(num_steps=3, step_size=1.8e-6)
    return config
