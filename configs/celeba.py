"""NCSN on CelebA at 32x32.

Paper: Song & Ermon (2019), section 5 and appendix B: centre crop 140, resize to 32; otherwise as CIFAR-10.
Data: by tensorflow-datasets; or a folder of train/*.jpg and test/*.jpg: --config.data.source=folder --config.data.path=...
Cost: a network of 30.1 million parameters; meant for accelerators, not measured here.
Reaches: the paper shows samples and inpainting only; no score is published.
Command: python main.py --config=configs/celeba.py
"""

import ml_collections

from score_jax.config import ncsn


def get_config() -> ml_collections.ConfigDict:
    config = ncsn()
    config.data.update(name="celeb_a", crop=140, size=32)
    return config
