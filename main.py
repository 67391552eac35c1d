"""Trains, samples and evaluates noise conditional score networks.

python main.py                                      the digits, from data to samples, in runs/digits
python main.py --config=configs/x.py --config.optim.learning_rate=1e-4 --workdir=runs/mine
python main.py --workdir=runs/mine --mode=sample    the config saved there; flags override it
python main.py --workdir=runs/mine --mode=evaluate  the held-out loss at every noise level
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from score_jax import run, workdir
from score_jax.config import flatten, validate

MODES = {"train": run.train, "sample": run.sample, "evaluate": run.evaluate}
HERE = Path(__file__).resolve().parent
DEFAULT = "configs/digits.py"


def parse(arguments: Sequence[str]) -> tuple[str, dict[str, Any], Path, int]:
    """Mode, config, workdir and number of devices (0: all) from the command line.

    The config is that of `--config`; without it, the one saved in the workdir; without that, the digits'.

    Raises:
        ValueError: With one sentence, for anything that cannot be understood.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--config", "-config")
    peek.add_argument("--workdir", "-workdir")
    try:
        known, rest = peek.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}: write --workdir=folder and --config=file") from error
    if "" in (known.config, known.workdir):
        raise ValueError("--workdir and --config must not be empty: write --workdir=folder and --config=file")
    folder = Path(known.workdir or Path("runs") / Path((known.config or DEFAULT).partition(":")[0]).stem)

    saved = workdir.read_json(folder / "config.json") if known.config is None else None
    start = ml_collections.ConfigDict(saved) if saved is not None else _load_config(known.config or DEFAULT)
    settings = dict(flatten(start.to_dict()))
    for argument in rest:
        name = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if name and name[1] not in settings:
            beside = [setting for setting in settings if setting.rpartition(".")[0] == name[1].rpartition(".")[0]]
            near = difflib.get_close_matches(name[1], settings, 3) or beside
            raise ValueError(f"--config.{name[1]} is not a setting of this config: did you mean {' or '.join(near)}?")

    values = flags.FlagValues()
    flags.DEFINE_enum("mode", "train", list(MODES), "What to do; train also samples.", flag_values=values)
    flags.DEFINE_integer("devices", 0, "How many devices to use; 0: all. On a CPU, its cores.", lower_bound=0, flag_values=values)
    flags.DEFINE_string("workdir", None, "Where the run is kept; runs/<name of the config> by default.", flag_values=values)
    flags.DEFINE_bool("help", False, "Shows this.", short_name="h", flag_values=values)
    try:
        # Left to itself, config_flags reads sys.argv.
        config_flags.DEFINE_config_dict("config", start, flag_values=values, sys_argv=["main.py", *rest])
        unparsed = values(["main.py", *rest])[1:]
    except flags.Error as error:
        setting = re.match(r"flag --config\.([^=]*)=(.*?): ", str(error))
        if setting and setting[1] in settings:
            wanted = type(settings[setting[1]]).__name__
            raise ValueError(
                f"--config.{setting[1]}={setting[2]} must be of type {wanted}, like {settings[setting[1]]!r}"
            ) from error
        raise ValueError(f"{_sentence(error)} (python main.py --help lists the flags)") from error
    if unparsed:
        raise ValueError(f"{unparsed[0]!r} is not a flag: write --name=value (python main.py --help lists the flags)")
    if values.help:
        print(__doc__)
        print("\n".join(f"  --{name}: {values[name].help}" for name in ("mode", "workdir", "devices")))
        print("  --config: a file, such as configs/digits.py; its settings and their values here:")
        print("\n".join(f"    --config.{name}={value}" for name, value in settings.items()))
        sys.exit(0)
    config = values.config.to_dict()
    validate(config)
    return values.mode, config, folder, values.devices


def choose_devices(config: dict[str, Any], requested: int) -> Sequence[jax.Device]:
    """The devices that share the work: all accelerators, or the cores of the CPU.

    Of the cores some may stay idle for the rest to divide both batch sizes, but fewer than half.

    Raises:
        ValueError: If more are requested than there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = (config["training"]["batch_size"], config["sampling"]["batch_size"])
    fitting = max(n for n in range(1, cores + 1) if all(size % n == 0 for size in sizes))
    jax.config.update(
        "jax_num_cpu_devices", requested or (fitting if 2 * fitting > cores else cores)
    )  # accelerators do not heed it
    devices = jax.local_devices()
    if requested > len(devices):
        raise ValueError(f"--devices={requested} is more than there are: {len(devices)} x {devices[0].device_kind}")
    return devices[: requested or len(devices)]


def _load_config(name: str) -> ml_collections.ConfigDict:
    """The config of a file, looked for here and then beside this file; what follows a colon is its variant."""
    path, colon, variant = name.partition(":")
    file = next((candidate for candidate in (Path(path), HERE / path) if candidate.is_file()), None)
    if file is None:
        have = ", ".join(sorted(f"configs/{file.name}" for file in (HERE / "configs").glob("*.py")))
        raise ValueError(f"--config={path} is not a file: there are {have}")
    values = flags.FlagValues()
    arguments = ["main.py", f"--config={file}{colon}{variant}"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except Exception as error:  # whatever the file's own code raises
        raise ValueError(f"--config={name}: {file} cannot be loaded ({type(error).__name__}: {_sentence(error)})") from error
    return values.config


def _sentence(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__


def main(arguments: Sequence[str]) -> int:
    """Runs the command; 0 when done, 2 for input that cannot be used, 1 for a run that failed, 130 for one stopped."""
    try:
        mode, config, folder, requested = parse(arguments)
        job = run.prepare(mode, config, folder, choose_devices(config, requested))
    except (ValueError, OSError) as error:
        print(f"main.py: {_sentence(error) if isinstance(error, ValueError) else error}", file=sys.stderr)
        return 2
    try:
        finished = MODES[mode](job)
    except FloatingPointError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"main.py: cannot write to --workdir={folder} ({error}): what was complete stays; free the disk and run again",
            file=sys.stderr,
        )
        return 2
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
