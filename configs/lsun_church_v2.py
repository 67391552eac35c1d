"""NCSNv2 on LSUN churches (outdoor) at 96x96.

Paper: Song & Ermon (2020), section 5 and appendix B: the deeper network, 788 levels from 140 to 0.01, T = 4, step size 4.9e-6.
    The number of iterations is ours.
Data: by tensorflow-datasets (lsun/church_outdoor); or a folder of train/*.jpg and validation/*.jpg:
    --config.data.source=folder --config.data.path=...
Cost: a network of 83.4 million parameters; meant for accelerators, not measured here.
Reaches: the paper shows samples; no score that can be compared is published.
Command: python main.py --config=configs/lsun_church_v2.py
"""

import ml_collections

from score_jax.config import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    config = ncsnv2()
    config.data.update(name="lsun/church_outdoor", held_out_split="validation", size=96)
    config.noise.update(sigma_max=140.0, num_levels=788)
    config.model.variant = "deeper"
    config.training.num_steps = 200_000
    config.sampling.update(num_steps=4, step_size=4.9e-6)
    return config
