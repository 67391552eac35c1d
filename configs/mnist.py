"""NCSN on MNIST.

Paper: Song & Ermon (2019), section 5 and appendix B: n = 64, 10 levels from 1 to 0.01, T = 100,
    step size 2e-5, 200,000 iterations.
Data: from tensorflow-datasets; or MNIST's own files, with
    --config.data.source=idx --config.data.path=folder
Cost: a network of 7.6 million parameters; meant for an accelerator, not measured here.
Reaches: the paper shows samples and inpainting only; no score is published.
Command: score-jax --config=mnist
"""

import ml_collections

from score_jax.cli.settings import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn(
        data={"name": "mnist", "size": 28, "channels": 1, "flip": False},
        model={"name": "ncsn", "width": 64},
    )
