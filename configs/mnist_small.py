"""MNIST draft."""

import ml_collections

from score_jax.cli.settings import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn(
        data={
            "source": "idx",
            "path": "mnist",
            "name": None,
            "size": 28,
            "channels": 1,
            "dequantize": False,
            "flip": False,
        },
        noise={"sigma_max": 10.0, "sigma_min": 0.02, "num_levels": 64},
        model={
            "name": "unet",
            "width": 48,
            "multipliers": (1, 2),
            "num_blocks": (1, 3),
            "patch_size": 2,
            "heads": 4,
            "groups": 8,
            "data_mean": 0.13,
            "data_std": 0.31,
            "components": 300,
        },
        loss={"levels": "normal", "data_std": 0.31},
        optim={
            "name": "muon",
            "learning_rate": 3e-3,
            "beta2": 0.99,
            "schedule": "cosine",
            "warmup_steps": 100,
            "clip_norm": 1.0,
            "ema_decay": 0.998,
        },
        training={
            "batch_size": 64,
            "num_steps": 2400,
            "log_every": 50,
            "eval_every": 600,
            "eval_batches": 16,
            "checkpoint_every": 600,
            "metric_samples": 0,
        },
        sampling={
            "method": "stochastic_heun",
            "start": "normal",
            "num_steps": 20,
            "step_size": None,
            "churn": 0.2,
            "batch_size": 250,
            "num_frames": 16,
            "autoguidance_step": 600,
            "autoguidance_weight": 1.5,
        },
    )
