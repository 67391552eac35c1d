"""The paper's own network and settings on the digits of 8x8 pixels, narrowed to run on a CPU.

Paper: Song & Ermon (2019), sections 4 and 5: NCSN, 10 levels from 1 to 0.01, T = 100, step size
    2e-5, uniform start, no last denoising step.
Data: as in digits.py, without labels.
Cost and quality: not measured; digits.py is the tuned job.
Command: score-jax --config=digits_ncsn
"""

import ml_collections

from score_jax.cli.settings import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn(
        data={"source": "digits", "name": None, "size": None, "channels": None, "flip": False},
        model={"name": "ncsn", "width": 16},
        optim={"ema_decay": 0.999},
        training={
            "num_steps": 1500,
            "log_every": 50,
            "eval_every": 250,
            "eval_batches": 16,
            "preview_every": 500,
            "checkpoint_every": 500,
        },
    )
