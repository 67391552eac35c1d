"""Workdirs for the tests of the report: files as the modes write them, without training."""

import json

import numpy as np
from runs import perceptron, small

from score_jax.cli.config_files import load_config
from score_jax.data import sources

SIGMAS = np.geomspace(1.0, 0.03, 5)


def write_json(path, content):
    path.write_text(json.dumps(content))


def workdir_of_digits(folder, seed=0, number=24, frames=5, loss=7.6):
    """A complete workdir: real digits with a little noise stand for samples."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    write_json(folder / "config.json", small(seed=seed))
    data = sources.digits()
    x = (data.train[:number] + 0.5) / 17
    x = np.clip(x + 0.1 * rng.standard_normal(x.shape), 0, 1).astype(np.float32)
    sigmas = np.geomspace(1.0, 0.03, frames).astype(np.float32)
    noise = rng.standard_normal((frames, *x.shape))
    chain = np.clip(x + sigmas[:, None, None, None, None] * noise, 0, 1)
    np.savez(
        folder / "samples.npz",
        samples=x,
        labels=data.train_labels[:number],
        seed=seed,
        step=60,
        config="{}",
        settings="{}",
        chain=(255 * chain).astype(np.uint8),
        chain_sigma=sigmas,
    )
    write_figures(folder, seed, loss)
    return folder


def workdir_of_points(folder):
    """A workdir of points in the plane, with samples and chains only."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    config = load_config("toy")
    write_json(folder / "config.json", config)
    x = (5 + rng.standard_normal((30, 2))).astype(np.float32)
    chain = np.stack([x + 3 * rng.standard_normal(x.shape), x]).astype(np.float32)
    np.savez(folder / "samples.npz", samples=x, seed=0, step=9, chain=chain, chain_sigma=[3.0, 0])
    return folder


def workdir_of_nothing(folder):
    """A workdir that holds a config only."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", perceptron())
    return folder


def write_figures(folder, seed=0, loss=7.6, step=60):
    """metrics, evaluation, quality, diagnostics and provenance, as the modes write them."""
    rng = np.random.default_rng(seed)
    steps = np.arange(20, step + 1, 20)
    write_json(
        folder / "metrics.json",
        {
            "train_loss": [[int(n), float(loss + 200 / n)] for n in steps],
            "held_out_loss": [[int(n), float(loss + 100 / n)] for n in steps],
            "seconds": {"compile": 8.1, "train": 70.3, "sample": 12.5},
        },
    )
    levels = []
    for level, sigma in enumerate(SIGMAS):
        levels.append(
            {
                "level": level,
                "sigma": float(sigma),
                "loss": float(loss / (1 + sigma)),
                "standard_error": 0.1,
                "residual": float(0.5 / (1 + sigma)),
                "residual_error": 0.01,
                "gaussian_residual": float(0.7 / (1 + sigma)),
                "slope": float(1 + 0.02 * rng.standard_normal()),
                "slope_error": 0.02,
                "bias": float(0.05 * sigma),
                "bias_error": 0.004,
                "whiteness": float(0.1 * sigma),
                "whiteness_error": 0.02,
            }
        )
    write_json(
        folder / "evaluation.json",
        {
            "step": step,
            "examples": 297,
            "held_out_loss": loss,
            "held_out_loss_error": 0.1,
            "levels": levels,
            "warnings": [],
        },
    )
    write_json(
        folder / "diagnostics.json",
        {
            "samples": "samples.npz",
            "sampler": "predictor_corrector",
            "step": step,
            "number": 1000,
            "levels": [
                {
                    "index": level,
                    "sigma": float(sigma),
                    "score_norm": float(0.9 + 0.02 * rng.standard_normal()),
                    "score_norm_expected": 0.9,
                    "step_to_noise": 0.3,
                    "out_of_range": None if level == len(SIGMAS) - 1 else float(0.1 * sigma),
                    "spread": float(1 + 0.05 * sigma),
                    "spread_expected": 1.0,
                }
                for level, sigma in enumerate(SIGMAS)
            ],
            "warnings": ["At level 2 (sigma 0.37) the step is 5 times too large."],
        },
    )
    names = {
        "fd_classifier": (1.79, 0.08, 1.5, "lower"),
        "kd_classifier": (0.0021, 0.0004, 0.0, "lower"),
        "is_classifier": (8.3, 0.1, 8.9, "higher"),
        "precision": (0.91, None, 0.93, "higher"),
        "a_new_metric": (0.4, 0.01, None, "higher"),
    }
    metrics = [
        {
            "name": name,
            "value": value,
            "error": error,
            "floor": floor,
            "floor_error": 0.05 if floor else None,
            "better": better,
        }
        for name, (value, error, floor, better) in names.items()
    ]
    entry = {
        "samples": "samples.npz",
        "number": 1000,
        "step": step,
        "features": "classifier",
        "weights": None,
        "reference": "held_out",
        "reference_number": 297,
        "floor_number": 1000,
        "classifier_accuracy": 0.97,
        "seconds": 3.1,
        "metrics": metrics,
    }
    write_json(folder / "quality.json", {"entries": [entry]})
    write_json(
        folder / "provenance.json",
        {
            "command": f"score-jax --config=digits --config.seed={seed}",
            "versions": {"python": "3.12.1", "jax": "0.11.0"},
            "devices": "2 x cpu",
            "seed": seed,
            "git": {"commit": "0123456789abcdef", "dirty": True},
            "date": "2026-01-02T03:04:05+00:00",
            "samples": {},
        },
    )


def write_comparison(folder, runs):
    """compare.json of some workdirs."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(run) for run in runs]
    values = [
        {
            "run": name,
            "total": 7.6 + place,
            "total_error": 0.1,
            "levels": [float(7 + place - sigma) for sigma in SIGMAS],
            "levels_error": [0.1] * len(SIGMAS),
        }
        for place, name in enumerate(names)
    ]
    pair = {
        "runs": names[:2],
        "difference": -1.0,
        "error": 0.02,
        "interval": [-1.05, -0.95],
        "p_value": 0.0003,
        "verdict": f"{names[0]} is better",
        "power_2_percent": 0.97,
        "detectable_percent": 0.8,
        "levels": [
            {"difference": -1.0, "error": 0.05, "interval": [-1.1, -0.9], "verdict": "better"}
        ]
        * len(SIGMAS),
    }
    write_json(
        folder / "compare.json",
        {
            "runs": names,
            "steps": [60] * len(names),
            "examples": 297,
            "draws": 4,
            "confidence": 0.95,
            "objectives": [
                {
                    "name": "dsm",
                    "unit": "sum over 64 dimensions",
                    "sigmas": [float(sigma) for sigma in SIGMAS],
                    "common_sigmas": None,
                    "values": values,
                    "pairs": [pair],
                }
            ],
        },
    )
