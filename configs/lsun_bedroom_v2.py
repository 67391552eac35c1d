"""NCSNv2 on LSUN bedrooms at 128x128.

Paper: Song & Ermon (2020), section 5 and appendix B: the deeper network, 1086 levels from 190 to
    0.01, T = 3, step size 1.8e-6, 150,000 iterations.
Data: from tensorflow-datasets (lsun/bedroom); or a folder of train/*.jpg and validation/*.jpg,
    with --config.data.source=folder --config.data.path=...
Cost: a network of 83.4 million parameters; meant for accelerators, not measured here.
Reaches: the paper shows samples; no comparable score is published.
Command: score-jax --config=lsun_bedroom_v2
"""

import ml_collections

from score_jax.cli.settings import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    return ncsnv2(
        data={"name": "lsun/bedroom", "held_out_split": "validation", "size": 128},
        noise={"sigma_max": 190.0, "num_levels": 1086},
        model={"name": "ncsnv2", "variant": "deeper"},
        training={"num_steps": 150_000},
        sampling={"num_steps": 3, "step_size": 1.8e-6},
    )
