"""Trains, samples and evaluates noise conditional score networks.

    python main.py                                      the digits, from data to samples, in runs/digits
    python main.py --config=configs/x.py --config.optim.learning_rate=1e-4 --workdir=runs/mine
    python main.py --workdir=runs/mine --mode=sample    the config saved there; flags override it
    python main.py --workdir=runs/mine --mode=evaluate  the held-out loss at every noise level
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from score_jax import run, workdir
from score_jax.config import validate

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
    peek.add_argument("--config")
    peek.add_argument("--workdir")
    known, rest = peek.parse_known_args(list(arguments))
    folder = Path(known.workdir or Path("runs") / Path((known.config or DEFAULT).partition(":")[0]).stem)

    values = flags.FlagValues()
    flags.DEFINE_enum("mode", "train", list(MODES), "What to do; train also samples.", flag_values=values)
    flags.DEFINE_integer("devices", 0, "How many devices to use; 0: all. On a CPU, its cores.", lower_bound=0, flag_values=values)
    flags.DEFINE_string("workdir", None, "Where the run is kept; runs/<name of the config> by default.", flag_values=values)
    flags.DEFINE_bool("help", False, "Shows this.", short_name="h", flag_values=values)
    saved = workdir.read_json(folder / "config.json") if known.config is None else None
    if saved is not None:
        config_flags.DEFINE_config_dict("config", ml_collections.ConfigDict(saved), flag_values=values)
        front = []
    else:
        config_flags.DEFINE_config_file("config", None, "Config file; settings as --config.section.name=value.", flag_values=values)
        front = [f"--config={_find_config(known.config or DEFAULT)}"]
    try:
        unparsed = values(["main.py", *front, *rest])[1:]
    except flags.Error as error:
        raise ValueError(f"{str(error).splitlines()[0]} (python main.py --help lists the flags)") from error
    except (AttributeError, KeyError, TypeError) as error:  # what config_flags raises for a setting that does not exist
        raise ValueError(f"a --config setting is not known: {_sentence(error)}") from error
    if unparsed:
        raise ValueError(f"{unparsed[0]!r} is not a flag: write --name=value (python main.py --help lists the flags)")
    if values.help:
        print(__doc__, values.main_module_help(), sep="\n")
        print(values.get_help())
        sys.exit(0)
    config = values.config.to_dict()
    validate(config)
    return values.mode, config, folder, values.devices


def choose_devices(config: dict[str, Any], requested: int) -> Sequence[jax.Device]:
    """The devices that share the work: all accelerators, or as many CPU cores as divide both batch sizes.

    Raises:
        ValueError: If more are requested than there are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes = (config["training"]["batch_size"], config["sampling"]["batch_size"])
    fitting = max(n for n in range(1, cores + 1) if all(size % n == 0 for size in sizes))
    jax.config.update("jax_num_cpu_devices", requested or fitting)  # no effect on accelerators
    devices = jax.local_devices()
    if requested > len(devices):
        raise ValueError(f"--devices={requested} is more than there are: {len(devices)} x {devices[0].device_kind}")
    return devices[: requested or len(devices)]


def _find_config(name: str) -> str:
    """The path of a config file, looked for here and then beside this file; a variant after a colon is kept."""
    path, colon, variant = name.partition(":")
    for candidate in (Path(path), HERE / path):
        if candidate.is_file():
            return f"{candidate}{colon}{variant}"
    have = ", ".join(sorted(f"configs/{file.name}" for file in (HERE / "configs").glob("*.py")))
    raise ValueError(f"--config={path} is not a file: there are {have}")


def _sentence(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split()) or type(error).__name__


def main(arguments: Sequence[str]) -> int:
    """Runs the command; 0 when done, 2 for input that cannot be used, 1 for a run that failed."""
    try:
        mode, config, folder, requested = parse(arguments)
        job = run.prepare(mode, config, folder, choose_devices(config, requested))
    except (ValueError, OSError) as error:
        print(f"main.py: {_sentence(error) if isinstance(error, ValueError) else error}", file=sys.stderr)
        return 2
    try:
        MODES[mode](job)
    except FloatingPointError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"main.py: cannot write to --workdir={folder} ({error}): what was complete stays; free the disk and run again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
