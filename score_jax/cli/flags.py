"""The command line: one flag per row of two tables, parsed in one pass by absl."""

import ast
import difflib
import importlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from score_jax.cli import workdir
from score_jax.cli.config_files import load_config, published_configs
from score_jax.cli.modes import EVERY_MODE, FLAGS, MODES, readers, users
from score_jax.cli.settings import completed, default_fields, flatten, plain, unknown, validate
from score_jax.cli.table import (
    NAMING,
    SECTIONS,
    SETTINGS,
    Setting,
    allowed,
    holds,
    is_own,
    shortened,
    written,
)
from score_jax.reading import listed, matching_files

DEFAULT_CONFIG = "digits"
PATHS = (
    "workdir",
    "config",
    "cache",
    "checkpoint",
    "mask",
    "write",
    "samples",
    "weights",
    "reference",
)


class Options(NamedTuple):
    """Flags that only some modes use; None where a flag is not given.

    Attributes:
        checkpoint: Official checkpoint to import.
        image: Image files to complete, or patterns of them, separated by commas.
        mask: Missing side of the images, or path of a mask.
        task: Inverse problem, such as "superresolve:2".
        noise: Standard deviation of the noise of its measurements.
        method: Approximation of its posterior.
        label: Class of the images.
        guidance: Weight of the class in classifier-free guidance.
        number: Number of samples, of images to complete, or of rows.
        completions: Number of completions per image, or of chains per row.
        samples: Samples to judge, a file or folder.
        features: Features in which samples are compared.
        weights: File of Inception's weights.
        reference: Real examples to compare samples with.
        name: Stem of the files to write.
        subsample: Number of training images to compare.
        write: Path of the config to write.
        step: Step of the checkpoint to use, or "best".
        workdirs: Folders of the runs, separated by commas.
        objectives: Objectives to compare them by, separated by commas.
        draws: Number of draws of the noise per example.
        coordinator: Address of process 0, "auto" or "none".
        num_processes: Number of processes that run the command together.
        process_id: Number of this process.
        debug_nans: If True, name the operation that gives the first NaN.
    """

    checkpoint: str | None = None
    image: str | None = None
    mask: str | None = None
    task: str | None = None
    noise: float | None = None
    method: str | None = None
    label: int | None = None
    guidance: float | None = None
    number: int | None = None
    completions: int | None = None
    samples: str | None = None
    features: str | None = None
    weights: str | None = None
    reference: str | None = None
    name: str | None = None
    subsample: int | None = None
    write: str | None = None
    step: str | None = None
    workdirs: str | None = None
    objectives: str | None = None
    draws: int | None = None
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    debug_nans: bool = False


class Command(NamedTuple):
    """The parsed command line.

    Attributes:
        mode: Name of the mode.
        config: The config, checked by `settings.validate`.
        workdir: Folder of the run.
        devices: Number of devices per process; None for all.
        cache: Folder for compiled programs; "" for none, None for the usual one.
        dry_run: If True, write nothing.
        options: The other flags.
        changes: The settings that flags give, by dotted name.
        is_default: If True, neither --config nor a run in --workdir chose the config.
    """

    mode: str
    config: dict[str, Any]
    workdir: Path
    devices: int | None = None
    cache: str | None = None
    dry_run: bool = False
    options: Options = Options()
    changes: Mapping[str, Any] = {}
    is_default: bool = False


def parse(arguments: Sequence[str]) -> Command | None:
    """Parses the command line.

    Returns:
        The command; None if help was asked for, which is printed.

    Raises:
        ValueError: With one sentence, for anything that cannot be understood.
        OSError: If a file cannot be read.
    """
    values = _parsed(_translated(arguments))
    if not values["help"].value:
        _check_used(values)
    start, folder, is_default = _start(values)
    changes = _given(values)
    config = overridden(start, changes)
    if values["help"].value:
        print(_help(values, config))
        return None
    validate(config)
    return Command(
        mode=values["mode"].value,
        config=config,
        workdir=folder,
        devices=values["devices"].value,
        cache=values["cache"].value,
        dry_run=values["dry_run"].value,
        options=Options(**{name: values[name].value for name in Options._fields}),
        changes=changes,
        is_default=is_default,
    )


def _translated(arguments: Sequence[str]) -> list[str]:
    """The command line with `report a b` written as --mode=report --workdirs=a,b.

    Raises:
        ValueError: If a folder cannot be listed with others.
    """
    if not arguments or arguments[0] != "report":
        return list(arguments)
    folders = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments[1:]))
    for folder in folders:
        if not folder or ("," in folder and not os.path.isdir(os.path.expanduser(folder))):
            raise ValueError(f"report {folder!r}: there is no such folder")
    listed = [f"--workdirs={','.join(folders)}"] if folders else []
    return ["--mode=report", *listed, *arguments[1 + len(folders) :]]


class _Parser(flags.ArgumentParser):
    """Parses and checks the text of a flag, by the rules of a setting."""

    def __init__(self, flag: str, setting: Setting):
        self._flag = flag
        self._setting = setting
        plain = setting.kind is str and not setting.choices
        self.syntactic_help = "" if plain or flag == "help" else allowed(setting)

    def parse(self, argument: Any) -> Any:
        """The value of the flag.

        Raises:
            ValueError: With one sentence, if it is not allowed.
        """
        if not isinstance(argument, str):
            return argument  # A default
        setting = self._setting
        if setting.optional and argument.lower() in ("", "none"):
            return None
        if self._flag == "cache" and not argument:
            return argument
        try:
            value = _READERS[setting.kind](argument)
        except (ValueError, KeyError):
            value = None
        if value is None or not holds(setting, value):
            argument = shortened(argument)
            raise ValueError(f"--{self._flag}={argument} must be {allowed(setting)}")
        return value


def _read_bool(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


def _read_tuple(text: str) -> tuple[int, ...]:
    words = text.strip(" ()[]").rstrip(",").split(",")
    return tuple(int(word) for word in words)


_READERS = {int: int, float: float, str: str, bool: _read_bool, tuple: _read_tuple}


def _parsed(arguments: Sequence[str]) -> flags.FlagValues:
    """All flags, with the values that the command line gives them.

    Raises:
        ValueError: With one sentence, for a flag that is unknown or whose value is not allowed.
    """
    values = _defined(arguments)
    try:
        unparsed = values(["score-jax", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, [flag.name for flag in FLAGS], 2)
        guess = f": did you mean {' or '.join(f'--{name}' for name in close)}?" if close else ""
        raise ValueError(
            f"--{shortened(error.flagname)} is not a flag{guess} (score-jax --help lists the "
            "flags)"
        ) from None
    except flags.IllegalFlagValueError as error:
        raise ValueError(str(error.__context__ or error)) from None
    except flags.Error as error:
        missing = str(error).removeprefix("Missing value for flag ")
        if missing == str(error):
            raise ValueError(missing) from None
        raise ValueError(f"{missing} needs a value: write {missing}=value") from None
    if unparsed:
        raise ValueError(
            f"{unparsed[0]!r} is not a flag: write --name=value (score-jax --help lists the flags)"
        )

    # `~` is the home folder in every path. An address would be taken for a local folder.
    for name in PATHS:
        path = values[name].value
        if path and re.match(r"[a-z][a-z0-9+.-]*://", path):
            raise ValueError(
                f"--{name}={path} is an address, not a path: mount that storage as a file system, "
                "on every host, and give its path"
            )
        if path:
            values[name].value = os.path.expanduser(path)
    for name, exists in (("image", matching_files), ("workdirs", os.path.isdir)):
        if values[name].value:
            paths = listed(values[name].value, exists)
            values[name].value = ",".join(paths) or values[name].value
    return values


def _defined(arguments: Sequence[str]) -> flags.FlagValues:
    """Flags for all rows of the tables, and for settings that only the command line names."""
    values = flags.FlagValues()

    def define(name: str, setting: Setting, parser: flags.ArgumentParser, group: str) -> None:
        flag = flags.Flag(
            parser,
            flags.ArgumentSerializer(),
            name,
            setting.default if setting in FLAGS else None,
            setting.meaning,
            short_name="h" if name == "help" else None,
            boolean=setting.kind is bool,
        )
        flags.DEFINE_flag(flag, flag_values=values, module_name=group)

    for setting in FLAGS:
        define(setting.name, setting, _Parser(setting.name, setting), "Flags")
    for name, setting in SETTINGS.items():
        define(f"config.{name}", setting, _Parser(f"config.{name}", setting), _group(name))

    # An object of the user's own can take settings that are not in the table.
    for argument in arguments:
        match = re.match(r"--?config\.([^=]+)", argument)
        if match and f"config.{match[1]}" not in values:
            setting = Setting(match[1], str, None, "Argument of the object that is named.")
            define(f"config.{match[1]}", setting, flags.ArgumentParser(), _group(match[1]))
    return values


def _group(name: str) -> str:
    section, dot, _ = name.partition(".")
    return f"Settings: {section}" if dot else "Settings"


def _given(values: flags.FlagValues) -> dict[str, Any]:
    """Settings that the command line gives, by dotted name."""
    given = [name for name in values if name.startswith("config.") and values[name].present]
    return {name.removeprefix("config."): values[name].value for name in given}


def _check_used(values: flags.FlagValues) -> None:
    """Raises a ValueError for a flag or a setting that the mode does not use."""
    name = values["mode"].value
    mode = MODES[name]
    for flag in FLAGS:
        if values[flag.name].present and flag.name not in (*EVERY_MODE, *mode.flags):
            raise ValueError(
                f"--{flag.name} is not used by --mode={name}; it is used by {users(flag.name)}"
            )

    # A config file that is written holds all settings.
    if values["write"].present:
        return
    for setting in _given(values):
        if setting in SETTINGS and not setting.startswith(mode.reads):
            raise ValueError(
                f"--config.{setting} is not used by --mode={name}; it is used by "
                f"{readers(setting)}"
            )


def _start(values: flags.FlagValues) -> tuple[dict[str, Any], Path, bool]:
    """The config, before settings of the command line change it, and the workdir.

    The config is that of --config; else the one saved in the workdir; else the published one of
    the checkpoint to import; else that of the digits. The last value is True if neither flag
    chose it.
    """
    name, checkpoint = values["config"].value, values["checkpoint"].value
    default = DEFAULT_CONFIG
    imports = values["mode"].value == "import" and checkpoint and not values["help"].value
    if imports and name is None:
        default = importlib.import_module("score_jax.cli.imports").config_for(checkpoint)
    stem = Path((name or default).partition(":")[0]).stem
    if values["mode"].value == "compare" or values["workdirs"].value:
        stem = "compare"
    folder = Path(values["workdir"].value or Path("runs", stem))

    saved = workdir.read_json(folder / "config.json") if name is None else None
    is_default = name is None and (saved is None or values["workdir"].value is None)
    config = load_config(name or default) if saved is None else completed(saved)
    return config, folder, is_default


def overridden(start: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the settings of the command line.

    Args:
        start: The config that they change.
        given: Dotted names and values; values of settings that are not in the table are text.

    Raises:
        ValueError: If it cannot have such a setting.
    """
    config, before = plain(start), dict(flatten(start))
    now = before | given
    for section in SECTIONS:
        if not isinstance(config.setdefault(section, {}), dict):
            raise ValueError(f"config.{section}={config[section]!r} must be a section of settings")

    # Another object does not take what was set for the former: fields of a network, and settings
    # that are not in the table.
    for section, naming in NAMING.items():
        if now.get(naming) == before.get(naming):
            continue
        if section == "model":
            config[section] = default_fields(now[naming])
            continue
        kept = config[section].items()
        config[section] = {last: value for last, value in kept if f"{section}.{last}" in SETTINGS}

    for name, value in given.items():
        section, _, last = name.rpartition(".")
        if name not in SETTINGS:
            if not is_own(now.get(NAMING.get(section))):
                raise ValueError(f"--config.{name} {unknown(name, now.get('model.name'))}")
            value = _literal(value, before.get(name))
        (config[section] if section else config)[last] = value
    return config


def _literal(text: str, former: Any) -> Any:
    """The value of a setting that is not in the table: a Python literal, or else the text itself.

    Args:
        text: Text of the flag.
        former: The value that it replaces, whose type a text or a float keeps.
    """
    words = {"none": None, "true": True, "false": False}
    if isinstance(former, str):
        return text
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    if isinstance(former, float) and isinstance(value, int):
        return float(value)
    return tuple(value) if isinstance(value, list) else value


USAGE = """\
Noise conditional score networks: train them, sample from them, evaluate them.

  score-jax                                   train on the digits in runs/digits, then sample
  score-jax --config=cifar10 --workdir=FOLDER --config.optim.learning_rate=1e-4
  score-jax --workdir=FOLDER --mode=sample    with the config saved there; flags change it

Modes, and the flags that each uses besides --config, --workdir, --devices and --cache:
"""


def _help(values: flags.FlagValues, config: Mapping[str, Any]) -> str:
    """The text of --help, with the values of a config as defaults of the settings."""
    settings = dict(flatten(config))
    for flag in FLAGS:
        values[flag.name].default_as_str = flag.default if flag.name == "mode" else None
        if flag.name not in EVERY_MODE:
            values[flag.name].help += f" Used by {users(flag.name)}."
    for name, value in settings.items():
        if f"config.{name}" in values:
            values[f"config.{name}"].default_as_str = written(value)
    for name, setting in SETTINGS.items():
        if setting.networks:
            values[f"config.{name}"].help += f" Networks: {', '.join(setting.networks)}."

    lines = [USAGE]
    for name, mode in MODES.items():
        lines.append(f"  {name:12} {mode.meaning}")
        if mode.flags:
            lines.append(" " * 17 + " ".join(f"--{flag}" for flag in mode.flags))
    lines += ["", f"Published configs: {', '.join(published_configs())}"]
    for group in ("Flags", "Settings", *(f"Settings: {section}" for section in SECTIONS)):
        lines.append(values.module_help(group))
    return "\n".join(lines)
