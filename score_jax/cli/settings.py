"""Configs: the published ones, how a config is checked, and what makes two runs the same.

A config is a nested mapping: `seed` and the sections data, noise, model, loss, optim, training and
sampling, with the settings of `table.SETTINGS`. `python -m score_jax.cli.settings` prints the page
docs/configs.md.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from score_jax.cli.table import (
    CONTINUE,
    FREE,
    MODELS,
    NAMING,
    NEVER,
    REQUIRED,
    SECTIONS,
    SETTINGS,
    USE,
    WHOLE_CHAIN,
    Setting,
    allowed,
    holds,
    is_own,
    shortened,
    shown,
    written,
)

Config = Mapping[str, Any] | ml_collections.ConfigDict


def freedom(name: str) -> str:
    """When a setting can differ from that of a saved run: CONTINUE, USE or NEVER."""
    own = SETTINGS[name].free if name in SETTINGS else ""
    return own or FREE.get(name.partition(".")[0], NEVER)


def _free(*kinds: str) -> tuple[str, ...]:
    """Names of settings, and prefixes of what users' samplers and losses add to a section."""
    names = [name for name in SETTINGS if freedom(name) in kinds]
    prefixes = [f"{section}." for section in NAMING if FREE.get(section) in kinds]
    return (*names, *prefixes)


FREE_TO_CONTINUE = _free(CONTINUE)
FREE_TO_USE = _free(CONTINUE, USE)

FIRST_LEVEL, GUIDED_LEVEL, MIDDLE_LEVEL = 32.26, 6.5, 1.44
"""Noise levels of small images in units of the standard deviation of pixels: the first one, the
largest one with autoguidance, and the middle one."""


def ncsn(**sections: Any) -> ml_collections.ConfigDict:
    """The settings of Song & Ermon (2019) for CIFAR-10, section 5 and appendix B.

    Args:
        **sections: Settings that differ, such as `data={"name": "mnist"}` or `seed=1`. Another
            `model.name` brings the default fields of that network.

    Raises:
        ValueError: If there is no such setting.
    """
    return _published(sections)


def ncsnv2(**sections: Any) -> ml_collections.ConfigDict:
    """The settings of Song & Ermon (2020) for CIFAR-10, section 5 and appendix B.

    Args:
        **sections: As for `ncsn`.

    Raises:
        ValueError: If there is no such setting.
    """
    second_paper = {
        "data": {"dequantize": False},
        "noise": {"sigma_max": 50.0, "sigma_min": 0.01, "num_levels": 232},
        "model": {"name": "ncsnv2"},
        "optim": {"learning_rate": 1e-4, "ema_decay": 0.999},
        "training": {"num_steps": 300_000},
        "sampling": {
            "num_steps": 5,
            "step_size": 6.2e-6,
            "denoise": True,
            "num_frames": 16,
            "renew_known": True,
        },
    }
    return _published(second_paper, sections)


def small_images(
    *,
    size: int,
    channels: int,
    mean: float,
    std: float,
    sigma_max: float | None = None,
    num_steps: int = 2800,
    **sections: Any,
) -> ml_collections.ConfigDict:
    """Settings with which small images train in minutes on two CPU cores.

    Denoising score matching with the weights and level frequencies of Karras et al. (2022); a
    U-Net on squares of 2x2 pixels that corrects the score of a Gaussian with the principal
    components of the data; stable targets (Xu et al. 2023); Muon; stochastic Heun sampling with
    autoguidance by the network of a quarter of the steps, at small noise levels.

    Args:
        size: Height and width in pixels, an even number. A size that 4 does not divide has squares
            of one pixel, which are about four times as slow.
        channels: Number of channels.
        mean: Mean of all pixels.
        std: Standard deviation of all pixels.
        sigma_max: Largest noise level; None as in `small_image_levels`.
        num_steps: Number of training steps.
        **sections: As for `ncsn`.

    Raises:
        ValueError: If there is no such setting.
    """
    quarter = max(1, num_steps // 4)
    recipe = {
        "data": {
            "name": None,
            "size": size,
            "channels": channels,
            "dequantize": False,
            "flip": False,
        },
        "noise": {**small_image_levels(std, sigma_max), "num_levels": 64},
        "model": {
            "name": "unet",
            "width": 48,
            "multipliers": (1, 2),
            "num_blocks": (1, 4),
            "attention": 0,
            "patch_size": 1 if size % 4 else 2,
            "groups": 8,
            "data_mean": mean,
            "data_std": std,
            "components": min(300, size**2 * channels // 2),
        },
        "loss": {"levels": "normal", "data_std": std, "num_references": 8192},
        "optim": {
            "name": "muon",
            "learning_rate": 6e-3,
            "beta2": 0.99,
            "schedule": "cosine",
            "warmup_steps": min(100, num_steps // 4),
            "clip_norm": 1.0,
            "ema_decay": 0.995,
        },
        "training": {
            "batch_size": 64,
            "num_steps": num_steps,
            "log_every": 50,
            "eval_every": quarter,
            "eval_batches": 16,
            "checkpoint_every": quarter,
            "metric_samples": 0,
        },
        "sampling": {
            "method": "stochastic_heun",
            "start": "data",
            "num_steps": 20,
            "step_size": None,
            "denoise": True,
            "churn": 0.2,
            "batch_size": 250,
            "num_frames": 16,
            "autoguidance_step": quarter,
            "autoguidance_weight": 2.0,
            "autoguidance_sigma_max": float(f"{GUIDED_LEVEL * std:.2g}"),
        },
    }
    return _published(recipe, sections)


def small_image_levels(std: float, sigma_max: float | None = None) -> dict[str, float]:
    """The first and the last noise level of `small_images`.

    `noise.normal_levels` draws levels near the geometric mean of the two most often. It is
    `MIDDLE_LEVEL` times the standard deviation of the pixels, whatever the first level.

    Args:
        std: Standard deviation of all pixels; above 0.
        sigma_max: First level; None for `FIRST_LEVEL` times `std`.

    Returns:
        sigma_max, rounded to three digits, and sigma_min, to two.
    """
    sigma_max = FIRST_LEVEL * std if sigma_max is None else sigma_max
    sigma_min = (MIDDLE_LEVEL * std) ** 2 / sigma_max
    return {"sigma_max": float(f"{sigma_max:.3g}"), "sigma_min": float(f"{sigma_min:.2g}")}


def _published(*changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    config = {section: {} for section in ("seed", *SECTIONS)}
    for name, setting in SETTINGS.items():
        section, _, last = name.rpartition(".")
        if not section:
            config[last] = setting.default
        elif not setting.networks:
            config[section][last] = setting.default
    config["model"] = default_fields(config["model"]["name"])

    # Later changes win; another network replaces the fields of the former.
    for change in changes:
        for section, values in change.items():
            if not isinstance(values, Mapping):
                config[section] = values
                continue
            if section == "model" and "name" in values:
                config["model"] = default_fields(values["name"])
            config.setdefault(section, {}).update(values)
    _check_names(dict(flatten(config)))

    # An optional setting has a type even without a value.
    typed = ml_collections.ConfigDict(config)
    for name, value in flatten(config):
        if value is None and name in SETTINGS:
            section, _, last = name.rpartition(".")
            typed[section][last] = config_dict.placeholder(SETTINGS[name].kind)
    return typed


def default_fields(network: str) -> dict[str, Any]:
    """The section `model` of a network: its name and the defaults of its fields."""
    fields = {"name": network}
    for name, setting in SETTINGS.items():
        if _is_one_of(network, setting.networks):
            fields[name.rpartition(".")[2]] = setting.networks[network]
    return fields


def flatten(config: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a nested config as (dotted name, value)."""
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def plain(config: Config) -> dict[str, Any]:
    """A config as nested dicts, with tuples for the lists that JSON has instead."""
    converted = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            value = plain(value)
        converted[name] = tuple(value) if isinstance(value, list) else value
    return converted


def unknown(name: str, network: Any = None) -> str:
    """The end of a sentence about a name that is no setting.

    Args:
        name: Dotted name.
        network: Name of the config's network.

    Returns:
        Near names, and those of the section.
    """
    section, _, last = name.partition(".")
    beside = [
        each.rpartition(".")[2]
        for each, setting in SETTINGS.items()
        if each.startswith(f"{section}.") and _applies(setting, network)
    ]
    if not beside:
        close = difflib.get_close_matches(name, SETTINGS, 2)
        listed = f"the sections are {', '.join(SECTIONS)}"
    else:
        by_initials = [
            each for each in beside if last == re.sub(r"([a-z])[a-z0-9]*_?", r"\1", each)
        ]
        close = difflib.get_close_matches(last, beside, 2) or by_initials
        close = [f"{section}.{each}" for each in close]
        owner = f"the network {shown(network)}" if section == "model" else section
        listed = f"{owner} has {', '.join(beside)}"
    guess = f" (did you mean {' or '.join(close)}?)" if close else ""
    return f"is not a setting{guess}: {listed}"


def _check_names(settings: Mapping[str, Any]) -> None:
    """Raises a ValueError for the first name that the config cannot have."""
    network = settings.get("model.name")
    for name, value in settings.items():
        section, _, last = name.partition(".")
        if name in SETTINGS and _applies(SETTINGS[name], network):
            continue
        if is_own(settings.get(NAMING.get(section))) and last and "." not in last:
            _check_own(name, value)
            continue
        if name in SETTINGS and not _is_one_of(network, MODELS):
            continue  # The name of the network will be refused.
        raise ValueError(f"config.{shortened(name)} {unknown(name, network)}")


def _applies(setting: Setting, network: Any) -> bool:
    """Returns True unless a setting is a field of other networks."""
    return not setting.networks or _is_one_of(network, setting.networks)


def _is_one_of(value: Any, names: Mapping[str, Any]) -> bool:
    """True for one of these names; values of any type can be asked for, also arrays."""
    return isinstance(value, str) and value in names


def _check_own(name: str, value: Any) -> None:
    """Raises a ValueError for a value that JSON cannot store and flags cannot override."""
    values = value if isinstance(value, tuple | list) else (value,)
    for each in values:
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"config.{name}={shown(value)} must be finite")
        if not isinstance(each, int | float | str | None):
            raise ValueError(
                f"config.{name}={shown(value)} must be a number, text, True, False, none, or a "
                "tuple of these"
            )


def validate(config: Config) -> None:
    """Checks a config as a whole.

    Raises:
        ValueError: For the first setting that is unknown, missing or not allowed, or that does not
            go with another one.
    """
    settings = dict(flatten(config))
    _check_names(settings)
    for name, setting in SETTINGS.items():
        if name not in settings:
            if setting.networks:
                continue  # The network has a default.
            raise ValueError(f"config.{name} is missing: it must be {allowed(setting)}")
        if not _applies(setting, settings.get("model.name")):
            continue
        value = settings[name]
        if not holds(setting, value):
            raise ValueError(f"config.{name}={shown(value)} must be {allowed(setting)}")
    _check_levels(settings)
    _check_together(settings)


def _check_levels(settings: Mapping[str, Any]) -> None:
    sigma_max, sigma_min = settings["noise.sigma_max"], settings["noise.sigma_min"]
    num_levels = settings["noise.num_levels"]
    if num_levels == 1 and sigma_max != sigma_min:
        raise ValueError(
            f"config.noise.num_levels=1: a single level needs sigma_max={sigma_max:g} and "
            f"sigma_min={sigma_min:g} to be equal"
        )
    if num_levels > 1 and sigma_max <= sigma_min:
        raise ValueError(
            f"config.noise.num_levels={num_levels}: levels from sigma_max={sigma_max:g} to "
            f"sigma_min={sigma_min:g} do not decrease: sigma_max must be above sigma_min"
        )
    if settings["sampling.num_frames"] > num_levels:
        raise ValueError(
            f"config.sampling.num_frames={settings['sampling.num_frames']} must be at most "
            f"config.noise.num_levels={num_levels}"
        )

    # A user's own sampler has rules of its own, and some samplers take no step size.
    method, step_size = settings["sampling.method"], settings["sampling.step_size"]
    if is_own(method):
        return
    if method in WHOLE_CHAIN:
        if num_levels == 1:
            raise ValueError(
                f"config.sampling.method={method!r} needs config.noise.num_levels of 2 or more"
            )
        return
    if num_levels == 1 and step_size is None:
        raise ValueError(
            "config.sampling.step_size=none asks for technique 4, which needs two or more noise "
            "levels: set the step size"
        )
    if step_size is not None and step_size >= 2 * sigma_min**2:
        raise ValueError(
            f"config.sampling.step_size={step_size:g} must be below 2 * sigma_min**2 = "
            f"{2 * sigma_min**2:g}, above which Langevin dynamics diverges (none chooses one by "
            "technique 4)"
        )


def _check_together(settings: Mapping[str, Any]) -> None:
    if settings["data.logit"] and not settings["data.dequantize"]:
        raise ValueError(
            "config.data.logit=True needs config.data.dequantize=True: the logits of pixels 0 and "
            "1 are infinite"
        )
    dropout = settings["data.label_dropout"]
    if dropout and not settings["data.labels"]:
        raise ValueError(
            f"config.data.label_dropout={dropout} needs config.data.labels=True: set it to 0 "
            "without labels"
        )
    references = settings["loss.num_references"]
    if references and settings["data.labels"]:
        raise ValueError(
            f"config.loss.num_references={references} needs data without labels: set it to 0, or "
            "set config.data.labels to False"
        )
    warmup, num_steps = settings["optim.warmup_steps"], settings["training.num_steps"]
    if warmup >= num_steps:
        raise ValueError(
            f"config.optim.warmup_steps={warmup} must be below "
            f"config.training.num_steps={num_steps}"
        )
    weaker, every = settings["sampling.autoguidance_step"], settings["training.checkpoint_every"]
    if weaker is not None and (weaker % every or weaker >= num_steps):
        raise ValueError(
            f"config.sampling.autoguidance_step={weaker} must be a multiple of "
            f"config.training.checkpoint_every={every} below "
            f"config.training.num_steps={num_steps}, or none"
        )


def completed(saved: Config) -> dict[str, Any]:
    """A saved config in the form of this version.

    Settings that were added since get values that change nothing, and None replaces the 0 or the
    empty text that stood for it. Lists, which JSON has instead of tuples, become tuples.
    """
    config = plain(saved)
    for name, setting in SETTINGS.items():
        section, _, last = name.rpartition(".")
        values = config.get(section)
        if not isinstance(values, dict):
            continue
        network = values.get("name")
        if setting.networks:
            if _applies(setting, network):
                values.setdefault(last, setting.networks[network])
        elif setting.before is not REQUIRED:
            values.setdefault(last, setting.before)
        if setting.optional and values.get(last) in (0, ""):
            values[last] = None
    return config


def check_same_run(saved: Config, config: Config, free: tuple[str, ...], folder: str) -> None:
    """Checks that a config describes the run that a workdir holds.

    Args:
        saved: The config of the run, also of an earlier version.
        config: The config that is asked for.
        free: Names, or beginnings of names, of settings that can differ.
        folder: The workdir.

    Raises:
        ValueError: If any other setting differs.
    """
    listed = differences_listed(saved, config, free, "there", "here")
    if listed:
        raise ValueError(
            f"--workdir={folder} holds another run: {listed}; choose another --workdir, or drop "
            "what differs"
        )


def differences_listed(
    old: Config, new: Config, free: tuple[str, ...], old_place: str, new_place: str
) -> str:
    """The settings in which two configs of a run differ, in words; "" if there are none.

    Args:
        old: A config, also of an earlier version.
        new: Another one.
        free: Names, or beginnings of names, of settings that can differ.
        old_place: Place of the first config, such as "there".
        new_place: Place of the second.
    """
    before, after = dict(flatten(completed(old))), dict(flatten(completed(new)))
    differing = [
        name
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name) and not name.startswith(free)
    ]
    listed = ", ".join(
        f"config.{name} is {shown(before.get(name))} {old_place} and {shown(after.get(name))} "
        f"{new_place}"
        for name in differing[:4]
    )
    more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
    return f"{listed}{more}"


def markdown() -> str:
    """The page docs/configs.md."""
    lines = [
        "# Settings",
        "",
        "A config holds these settings. A flag such as `--config.data.flip=False` changes one; in",
        "flags, `none` stands for None and `64,64` for a tuple. The defaults are those published",
        "for NCSN on CIFAR-10 (Song & Ermon 2019); `score-jax --config=NAME --help` shows those",
        "of another config.",
        "",
        "Where `package.module:name` is allowed, a setting can name an object of your own. The",
        "same section can then hold further settings, which become arguments of that object.",
        "",
        "This page is written by `python -m score_jax.cli.settings > docs/configs.md`.",
    ]
    for section in ("", *SECTIONS):
        lines += ["", f"## {section or 'seed'}", ""]
        lines += ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for name, setting in SETTINGS.items():
            if name.rpartition(".")[0] == section:
                cells = (f"`{name}`", _default_cell(setting), allowed(setting), setting.meaning)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _default_cell(setting: Setting) -> str:
    if not setting.networks:
        return f"`{written(setting.default)}`"
    cells = (f"`{written(value)}` ({network})" for network, value in setting.networks.items())
    return ", ".join(cells)


if __name__ == "__main__":
    print(markdown(), end="")
