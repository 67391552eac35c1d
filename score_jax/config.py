"""What a config may say, checked as a whole before anything runs, and the published settings to begin from.

A config is a nested mapping with the sections below; `model` holds the name of a network and that network's own fields.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections


class Rule(NamedTuple):
    """What one setting must be: its type, a condition, and the condition in words."""

    kind: type
    holds: Callable[[Any], bool]
    words: str


def _at_least(low: int) -> Rule:
    return Rule(int, lambda v: v >= low, f"at least {low}")


def _one_of(*names: str) -> Rule:
    return Rule(str, lambda v: v in names, " or ".join(repr(name) for name in names))


_POSITIVE = Rule(float, lambda v: 0 < v < math.inf, "above 0")
_NOT_NEGATIVE = Rule(float, lambda v: 0 <= v < math.inf, "0 or above")
_FRACTION = Rule(float, lambda v: 0 <= v < 1, "in [0, 1)")
_SWITCH = Rule(bool, lambda v: True, "True or False")
_TEXT = Rule(str, lambda v: True, "any text")

RULES: dict[str, Rule] = {
    "seed": Rule(int, lambda v: 0 <= v < 2**32, "in [0, 2**32)"),
    "data.source": _TEXT,
    "data.path": _TEXT,
    "data.name": _TEXT,
    "data.train_split": _TEXT,
    "data.held_out_split": _TEXT,
    "data.crop": _at_least(0),
    "data.size": _at_least(0),
    "data.channels": Rule(int, lambda v: v in (0, 1, 3), "1, 3, or 0 for what the images have"),
    "data.dequantize": _SWITCH,
    "data.logit": _SWITCH,
    "data.flip": _SWITCH,
    "data.labels": _SWITCH,
    "data.label_dropout": _FRACTION,
    "data.device_megabytes": _at_least(0),
    "noise.sigma_max": _POSITIVE,
    "noise.sigma_min": _POSITIVE,
    "noise.num_levels": _at_least(1),
    "loss.name": _TEXT,
    "loss.levels": _one_of("uniform", "stratified"),
    "loss.projection": _one_of("rademacher", "gaussian", "sphere"),
    "loss.num_projections": _at_least(1),
    "loss.variance_reduced": _SWITCH,
    "optim.learning_rate": _POSITIVE,
    "optim.schedule": _one_of("constant", "cosine"),
    "optim.warmup_steps": _at_least(0),
    "optim.beta1": _FRACTION,
    "optim.beta2": _FRACTION,
    "optim.epsilon": _POSITIVE,
    "optim.clip_norm": _NOT_NEGATIVE,
    "optim.ema_decay": _FRACTION,
    "training.batch_size": _at_least(1),
    "training.num_steps": _at_least(1),
    "training.log_every": _at_least(1),
    "training.eval_every": _at_least(1),
    "training.eval_batches": _at_least(1),
    "training.preview_every": _at_least(0),
    "training.checkpoint_every": _at_least(1),
    "training.keep_checkpoints": _at_least(1),
    "training.steps_per_call": _at_least(1),
    "sampling.num_samples": _at_least(1),
    "sampling.batch_size": _at_least(1),
    "sampling.method": _one_of("annealed", "consistent", "langevin"),
    "sampling.start": _one_of("uniform", "normal"),
    "sampling.num_steps": _at_least(1),
    "sampling.step_size": _NOT_NEGATIVE,
    "sampling.denoise": _SWITCH,
    "sampling.num_frames": _at_least(0),
    "sampling.renew_known": _SWITCH,
    "sampling.guidance": _NOT_NEGATIVE,
}

# What configs saved by earlier versions lack, with the values that change nothing.
ADDED: dict[str, Any] = {
    "data.name": "",
    "data.train_split": "train",
    "data.held_out_split": "test",
    "data.crop": 0,
    "data.size": 0,
    "data.channels": 0,
    "data.logit": False,
    "data.label_dropout": 0.0,
    "data.device_megabytes": 1024,
    "loss.projection": "rademacher",
    "loss.num_projections": 1,
    "loss.variance_reduced": True,
    "training.steps_per_call": 1,
    "sampling.method": "annealed",
    "sampling.renew_known": False,
    "sampling.guidance": 0.0,
}

# What may differ when a run is continued; the rest decides which run it is.
FREE_TO_CONTINUE = (
    "data.path",
    "data.device_megabytes",
    "training.num_steps",
    "training.log_every",
    "training.eval_every",
    "training.eval_batches",
    "training.preview_every",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.steps_per_call",
    "sampling.",
)
# What may differ when its network is only used.
FREE_TO_USE = ("seed", "data.path", "data.device_megabytes", "loss.", "optim.", "training.", "sampling.")


def ncsn() -> ml_collections.ConfigDict:
    """Every setting, as Song & Ermon (2019) chose them for CIFAR-10 (section 5 and appendix B)."""
    return _config(
        seed=0,
        data={
            "source": "tfds",  # or folder, zip, idx, npz, digits, mixture
            "path": "",  # where the data are; of tfds, its data_dir, "" for the usual one
            "name": "cifar10",  # of tfds
            "train_split": "train",
            "held_out_split": "test",
            "crop": 0,  # pixels of a central square that is cut out first; 0 cuts none
            "size": 32,  # height and width that images are resized to; 0 leaves them
            "channels": 3,  # 0 leaves them
            "dequantize": True,  # (v + u) / 256, u ~ U[0, 1)
            "logit": False,
            "flip": True,
            "labels": False,  # whether the network is told the class
            "label_dropout": 0.0,  # how often it is not told all the same, and learns the score of all classes together
            "device_megabytes": 1024,  # larger data sets are streamed from the host
        },
        noise={"sigma_max": 1.0, "sigma_min": 0.01, "num_levels": 10},
        model={"name": "ncsn", "width": 128, "centered": True, "dtype": "float32", "remat": False},
        loss={
            "name": "dsm",  # or ssm, implicit; ssm_clean and implicit_clean leave the data unperturbed
            "levels": "uniform",  # or stratified
            "projection": "rademacher",  # of ssm: or gaussian, sphere
            "num_projections": 1,
            "variance_reduced": True,
        },
        optim={
            "learning_rate": 1e-3,
            "schedule": "constant",  # or cosine
            "warmup_steps": 0,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "clip_norm": 0.0,  # 0 does not clip
            "ema_decay": 0.0,  # 0 samples with the last parameters
        },
        training={
            "batch_size": 128,
            "num_steps": 200_000,
            "log_every": 100,
            "eval_every": 5000,
            "eval_batches": 8,
            "preview_every": 0,  # 0 shows none
            "checkpoint_every": 5000,
            "keep_checkpoints": 3,
            "steps_per_call": 10,
        },
        sampling={
            "num_samples": 1000,
            "batch_size": 128,
            "method": "annealed",  # of samples: or consistent; langevin: as many steps, all at the last level
            "start": "uniform",  # in [0, 1]; or normal: 0.5 + sigma_max z
            "num_steps": 100,  # per noise level
            "step_size": 2e-5,  # 0 chooses it by technique 4 of NCSNv2 (consistent: that of ancestral sampling)
            "denoise": False,
            "num_frames": 10,  # of the animation
            "renew_known": False,  # inpainting: noise the known pixels at every step, not once per level
            "guidance": 0.0,  # inpainting: weight of the pull towards the known pixels; 0 is the paper's algorithm
        },
    )


def ncsnv2() -> ml_collections.ConfigDict:
    """Every setting, as Song & Ermon (2020) chose them for CIFAR-10 (section 5 and appendix B)."""
    config = ncsn()
    config.data.dequantize = False
    config.noise.update(sigma_max=50.0, sigma_min=0.01, num_levels=232)
    fields = {"width": 128, "variant": "standard", "centered": True, "dtype": "float32", "remat": False}
    config.model = ml_collections.ConfigDict({"name": "ncsnv2", **fields})
    config.optim.update(learning_rate=1e-4, ema_decay=0.999)
    config.training.num_steps = 300_000
    config.sampling.update(num_steps=5, step_size=6.2e-6, denoise=True, num_frames=16, renew_known=True)
    return config


def _config(**sections) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(sections)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a nested config as (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def completed(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config with the settings that its version did not have, at values that change nothing."""
    config = copy.deepcopy(dict(saved))
    for name, value in ADDED.items():
        section, _, setting = name.partition(".")
        if isinstance(config.get(section), dict):
            config[section].setdefault(setting, value)
    return config


def validate(config: Mapping[str, Any]) -> None:
    """Raises a ValueError for the first setting that is unknown, missing, of a wrong type or out of its range."""
    settings = dict(flatten(config))
    for name in settings:
        if name not in RULES and not name.startswith("model."):
            section = name.rpartition(".")[0]
            known = [rule for rule in RULES if section and rule.rpartition(".")[0] == section]
            known = known or sorted({rule.split(".")[0] for rule in RULES} | {"model"})
            raise ValueError(f"config.{name} is not a setting: choose among {', '.join(known)}")
    for name in (*RULES, "model.name"):
        if name not in settings:
            raise ValueError(
                f"config.{name} is missing: it must be {RULES[name].words if name in RULES else 'the name of a network'}"
            )
    for name, rule in RULES.items():
        value = settings[name]
        kinds = (int, float) if rule.kind is float else (rule.kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and rule.kind is not bool):
            raise ValueError(f"config.{name}={value!r} must be of type {rule.kind.__name__}, and {rule.words}")
        if not rule.holds(value):
            raise ValueError(f"config.{name}={value!r} must be {rule.words}")
    _validate_together(settings)


def _validate_together(settings: Mapping[str, Any]) -> None:
    sigma_max, sigma_min, num_levels = (settings[f"noise.{name}"] for name in ("sigma_max", "sigma_min", "num_levels"))
    if (sigma_max != sigma_min) if num_levels == 1 else (sigma_max <= sigma_min):
        raise ValueError(
            f"config.noise: {num_levels} levels from sigma_max={sigma_max:g} to sigma_min={sigma_min:g} do not decrease; "
            "sigma_max must be above sigma_min (with a single level, equal to it)"
        )
    if num_levels == 1 and settings["sampling.step_size"] == 0:
        raise ValueError(
            "config.sampling.step_size=0 asks for technique 4, which needs two or more noise levels: set the step size"
        )
    if settings["data.logit"] and not settings["data.dequantize"]:
        raise ValueError(
            "config.data.logit=True needs config.data.dequantize=True: pixels of 0 and 1 have no logit worth modelling"
        )
    if settings["data.label_dropout"] and not settings["data.labels"]:
        raise ValueError(
            f"config.data.label_dropout={settings['data.label_dropout']} needs config.data.labels=True: set it to 0 without labels"
        )
    if settings["sampling.num_frames"] > num_levels:
        raise ValueError(
            f"config.sampling.num_frames={settings['sampling.num_frames']} must be at most the number of noise levels, {num_levels}"
        )
    if settings["sampling.step_size"] >= 2 * sigma_min**2:
        raise ValueError(
            f"config.sampling.step_size={settings['sampling.step_size']:g} must be below 2 * sigma_min**2 = {2 * sigma_min**2:g}, "
            "above which Langevin dynamics diverges (0 chooses one by technique 4)"
        )
    if settings["optim.warmup_steps"] >= settings["training.num_steps"]:
        raise ValueError(
            f"config.optim.warmup_steps={settings['optim.warmup_steps']} must be below "
            f"config.training.num_steps={settings['training.num_steps']}"
        )


def check_divides(batch_size: int, num_devices: int, name: str) -> None:
    """Raises a ValueError, with the nearest sizes that would do, if the devices cannot share a batch evenly."""
    if batch_size % num_devices:
        below, above = batch_size // num_devices * num_devices, -(-batch_size // num_devices) * num_devices
        near = " or ".join(str(size) for size in (below, above) if size)
        raise ValueError(f"config.{name}={batch_size} cannot be split over {num_devices} devices: use {near}, or another --devices")


def check_same_run(saved: Mapping[str, Any], config: Mapping[str, Any], free: tuple[str, ...], workdir: str) -> None:
    """Raises a ValueError that names the settings in which `config` is not that of the run in `workdir`, but those in `free`."""
    old, new = dict(flatten(saved)), dict(flatten(config))
    names = [*old, *(name for name in new if name not in old)]
    differing = [name for name in names if old.get(name) != new.get(name) and not name.startswith(free)]
    if differing:
        listed = ", ".join(f"config.{name} is {old.get(name)!r} there and {new.get(name)!r} here" for name in differing[:4])
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        raise ValueError(f"--workdir={workdir} holds another run: {listed}{more}; choose another --workdir, or drop what differs")
