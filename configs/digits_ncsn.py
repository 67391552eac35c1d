"""The paper's own network and settings on the digits of 8x8 pixels, narrowed: every part of the paper on a CPU.

Paper: Song & Ermon (2019), sections 4 and 5: NCSN, 10 levels from 1 to 0.01, T = 100, step size 2e-5, no last denoising,
uniform start.
Data: as in digits.py, all classes together.
Cost and quality: not measured; digits.py is the tuned job.
Command: python main.py --config=configs/digits_ncsn.py
"""

import importlib.util
from pathlib import Path

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location("digits", Path(__file__).with_name("digits.py"))
    digits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(digits)
    config = digits.get_config()

    config.data.labels = False

    config.noise.sigma_max = 1.0
    config.noise.sigma_min = 0.01
    config.noise.num_levels = 10

    config.model = model = ml_collections.ConfigDict()
    model.name = "ncsn"
    model.width = 16
    model.centered = True

    config.loss.levels = "uniform"

    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 0
    config.optim.clip_norm = 0.0

    config.sampling.start = "uniform"
    config.sampling.num_steps = 100
    config.sampling.step_size = 2e-5
    config.sampling.denoise = False
    config.sampling.num_frames = 10
    return config
