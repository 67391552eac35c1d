"""Handwritten digits of 8x8 pixels: the job of `score-jax` without flags, minutes on a CPU.

Data: the 1797 real digits that come with the package; 1500 to train on, 297 held out.
Method: denoising score matching at 32 noise levels (Song & Ermon 2019, equation 6) with a small
    class-conditional network on squares of 2x2 pixels and label dropout; predictor-corrector
    sampling (Song et al. 2021) in 121 evaluations of the network.
Cost: 50 to 54 s on two CPU cores with an empty compilation cache, of which 8 compile, 27 train, 4
    sample and 5 are for the metrics and the report.
Reaches: fd_mlp 2.0 to 2.2, is_svc 8.2 to 8.3, one_nn 0.54 to 0.57 over three seeds
    (benchmarks/RESULTS.md).
Command: score-jax
"""

import ml_collections

from score_jax.cli.settings import ncsn


def get_config() -> ml_collections.ConfigDict:
    return ncsn(
        data={
            "source": "digits",
            "name": None,
            "size": None,
            "channels": None,
            "flip": False,
            "labels": True,
            "label_dropout": 0.1,
        },
        noise={"sigma_max": 1.0, "sigma_min": 0.03, "num_levels": 32},
        model={
            "name": "unet",
            "patch_size": 2,
            "width": 64,
            "multipliers": (1,),
            "num_blocks": (3,),
            "attention": 0,
            "groups": 8,
            "data_mean": 0.3,
            "data_std": 0.35,
        },
        loss={"levels": "stratified"},
        optim={
            "learning_rate": 2e-3,
            "schedule": "cosine",
            "warmup_steps": 200,
            "clip_norm": 1.0,
            "ema_decay": 0.999,
        },
        training={
            "batch_size": 128,
            "num_steps": 1500,
            "log_every": 50,
            "eval_every": 250,
            "eval_batches": 16,
            "preview_every": 500,
            "checkpoint_every": 500,
        },
        sampling={
            "method": "predictor_corrector",
            "start": "normal",
            "num_steps": 60,
            "step_size": None,
            "grid": "geometric",
            "snr": 0.24,
            "denoise": True,
            "num_frames": 16,
            "renew_known": True,
            "guidance": 4.0,
        },
    )
