"""The origin of a run: the command that reproduces it, versions, devices, seed and git state.

Written to provenance.json. A run of `--mode=train` is the file's top level; those of
`--mode=sample` are listed under "samples", by the name of their files.
"""

import contextlib
import datetime
import importlib.metadata
import os
import pkgutil
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from score_jax.cli import lock, workdir
from score_jax.cli.config_files import load_config, published_configs
from score_jax.cli.flags import Command
from score_jax.cli.modes import PROCESSES
from score_jax.cli.settings import completed, default_fields, flatten, plain
from score_jax.cli.table import NAMING, SETTINGS, written
from score_jax.devices import described

VERSION = pkgutil.resolve_name("score_jax:__version__")
MODULE = Path(__file__).resolve().parents[1] / "__init__.py"
"""A file of this package, which git tracks in a checkout."""
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
GIT_SECONDS = 5
"""Longest time that one call of git may take."""


def record(command: Command, devices: Sequence[jax.Device], name: str | None = None) -> None:
    """Adds the origin of a training run, or of one file of samples, to provenance.json.

    Args:
        command: The parsed command.
        devices: Devices that share the work.
        name: Stem of the files of samples; None for training.
    """
    file = Path(command.workdir) / "provenance.json"
    origin = describe(command, devices)
    with lock.changing(file):
        try:
            content = workdir.read_json(file) or {}
        except ValueError:
            content = {}  # The file is damaged.
        entries = _samples_in(content)
        if name is None:
            content = {**origin, "samples": entries}
        else:
            content = {**content, "samples": {**entries, name: origin}}
        workdir.write_json(file, content)


def has_samples(folder: Path, name: str) -> bool:
    """True if --mode=sample wrote the samples of this name."""
    return name in _samples(folder)


def rename_samples(folder: Path, old: str, new: str) -> None:
    """Records that the files of samples of one name have another name now."""
    file = Path(folder) / "provenance.json"
    with lock.changing(file):
        entries = _samples(folder)
        if old not in entries:
            return
        entries[new] = entries.pop(old)
        workdir.write_json(file, {**(workdir.read_json(file) or {}), "samples": entries})


def _samples(folder: Path) -> dict[str, Any]:
    """The origins of samples by their names; empty if the file is missing or damaged."""
    try:
        content = workdir.read_json(Path(folder) / "provenance.json") or {}
    except ValueError:
        return {}
    return _samples_in(content)


def _samples_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entry "samples" of provenance.json; empty if it has another shape."""
    entries = content.get("samples")
    return entries if isinstance(entries, dict) else {}


def describe(command: Command, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """The origin of what a command makes, as provenance.json stores it."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "command": reproducing(command),
        "versions": versions(),
        "devices": described(devices),
        "seed": command.config["seed"],
        "git": git_state(),
        "date": now.isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that decide the numbers."""
    found = {"python": platform.python_version(), "score_jax": VERSION}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def reproducing(command: Command) -> str:
    """The command line that gives the same result again.

    Training is described from nothing, by the published config with the fewest other settings;
    other modes by what differs from the config that is saved in the workdir.
    """
    arguments: list[Any] = ["--workdir", command.workdir]
    if command.mode == "train":
        name, flags = nearest_config(command.config)
        arguments = ["--config", name, *arguments]
    else:
        saved = workdir.read_json(Path(command.workdir) / "config.json") or command.config
        flags = differences(completed(saved), command.config)
        arguments.append(f"--mode={command.mode}")
    for option, value in command.options._asdict().items():
        if value is not None and option not in ("coordinator", *PROCESSES):
            arguments += [f"--{option}", value]
    if command.devices is not None:
        arguments += ["--devices", command.devices]
    for setting, value in flags.items():
        arguments += [f"--config.{setting}", value]
    return workdir.command_line(*arguments)


def nearest_config(config: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The published config from which fewest flags lead to a config, and these flags."""
    found = {name: differences(load_config(name), config) for name in published_configs()}
    name = min(found, key=lambda each: len(found[each]))
    return name, found[name]


def differences(start: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """The settings that turn one config into another, as the values of flags."""
    start, config = completed(plain(start)), completed(plain(config))
    old, new = dict(flatten(start)), dict(flatten(config))

    # Another object starts from its own defaults.
    for section, naming in NAMING.items():
        if old.get(naming) == new.get(naming):
            continue
        for name in [name for name in old if name.startswith(f"{section}.")]:
            if section == "model" or name not in SETTINGS:
                del old[name]
        if section == "model":
            fields = default_fields(new[naming])
            old |= {f"model.{last}": value for last, value in fields.items() if last != "name"}
    return {
        name: written(value)
        for name, value in new.items()
        if name not in old or old[name] != value
    }


def git_state() -> dict[str, Any] | None:
    """Commit of the repository of this package, else of the current folder; None without one.

    Returns:
        {"commit": hash, "dirty": True if tracked files differ from it, "folder": the repository's
        root}.
    """
    # A package that is installed beneath some repository is not part of it.
    is_tracked = _git(MODULE.parent, "ls-files", "--error-unmatch", MODULE.name) is not None
    folder = MODULE.parent if is_tracked else Path.cwd()
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "folder": _git(folder, "rev-parse", "--show-toplevel"),
    }


def _git(folder: Path, *words: str) -> str | None:
    """The output of a git command in a folder; None if it fails or there is no git."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
