"""The paper's own network and settings on the digits of 8x8 pixels, narrowed: every part of the paper on a CPU.

Paper: Song & Ermon (2019), sections 4 and 5: NCSN, 10 levels from 1 to 0.01, T = 100, step size 2e-5, no last denoising,
    uniform start.
Data: as in digits.py, all classes together.
Cost and quality: not measured; digits.py is the tuned job.
Command: python main.py --config=configs/digits_ncsn.py
"""

import ml_collections

from score_jax.config import ncsn


def get_config() -> ml_collections.ConfigDict:
    config = ncsn()
    config.data.update(source="digits", name="", size=0, channels=0, flip=False)
    config.model.width = 16
    config.optim.ema_decay = 0.999
    config.training.update(num_steps=1500, log_every=50, eval_every=250, eval_batches=16, preview_every=500, checkpoint_every=500)
    return config
