"""NCSN on CelebA at 32x32.

Paper: Song & Ermon (2019), section 5 and appendix B: centre crop of 140 pixels, resized to 32;
    otherwise as CIFAR-10.
Data: from tensorflow-datasets; or a folder of train/*.jpg and test/*.jpg, with
    --config.data.source=folder --config.data.path=...
Cost: a network of 30.1 million parameters; meant for accelerators, not measured here.
Reaches: the paper shows samples and inpainting only; no score is published.
Command: score-jax --config=celeba
"""

import ml_collections

from score_jax.cli.settings import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn(data={"name": "celeb_a", "crop": 140, "size": 32})
