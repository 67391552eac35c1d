"""NCSNv2 on FFHQ at 256x256.

Paper: Song & Ermon (2020), section 5 and appendix B: the deepest network, 2311 levels from 348 to
    0.01, T = 3, step size 9e-7, Adam with epsilon 1e-3, batches of 32, 80,000 iterations.
Data: a folder or zip of train/*.png and test/*.png: --config.data.path=...
Cost: a network of 94.1 million parameters; meant for many accelerators, not measured here.
Reaches: the paper shows samples; no score is published.
Command: score-jax --config=ffhq_v2 --config.data.path=ffhq
"""

import ml_collections

from score_jax.cli.settings import ncsnv2


def get_config() -> ml_collections.ConfigDict:
    return ncsnv2(
        data={"source": "folder", "name": None, "size": 256},
        noise={"sigma_max": 348.0, "num_levels": 2311},
        model={"name": "ncsnv2", "variant": "deepest"},
        optim={"epsilon": 1e-3},
        training={"batch_size": 32, "num_steps": 80_000},
        sampling={"num_steps": 3, "step_size": 9e-7, "batch_size": 32},
    )
