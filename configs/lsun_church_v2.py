"""NCSNv2 on LSUN churches (outdoor) at 96x96.

Paper: Song & Ermon (2020), section 5 and appendix B: the deeper network, 788 levels from 140 to
    0.01, T = 4, step size 4.9e-6. The number of iterations is ours.
Data: from tensorflow-datasets (lsun/church_outdoor); or a folder of train/*.jpg and
    validation/*.jpg, with --config.data.source=folder --config.data.path=...
Cost: a network of 83.4 million parameters; meant for accelerators, not measured here.
Reaches: the paper shows samples; no comparable score is published.
Command: score-jax --config=lsun_church_v2
"""

import ml_collections

from score_jax.cli.settings import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    return ncsnv2(
        data={"name": "lsun/church_outdoor", "held_out_split": "validation", "size": 96},
        noise={"sigma_max": 140.0, "num_levels": 788},
        model={"name": "ncsnv2", "variant": "deeper"},
        training={"num_steps": 200_000},
        sampling={"num_steps": 4, "step_size": 4.9e-6},
    )
