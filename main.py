"""Trains, samples and evaluates noise conditional score networks.

python main.py                                         the digits, from data to samples, in runs/digits
python main.py --config=configs/x.py --config.optim.learning_rate=1e-4 --workdir=runs/mine
python main.py --workdir=runs/mine --mode=sample       the config saved there; flags override it
python main.py --workdir=runs/mine --mode=evaluate     the held-out loss at every noise level
python main.py --workdir=runs/mine --mode=inpaint --mask=left             or --image=my.png --mask=mask.png
python main.py --workdir=runs/mine --mode=interpolate  rows of samples between two samples
python main.py --workdir=runs/mine --mode=figures      the paper's figures, and the trained network's
python main.py --workdir=runs/mine --mode=export       the sampler as one file that samples without this package
python main.py --config=configs/x.py --mode=schedule   noise levels and step size that the data suggest
python main.py --mode=import --checkpoint=official.pth --workdir=runs/official
"""

import argparse
import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from score_jax import workdir
from score_jax.config import completed, flatten, validate
from score_jax.data.files import UnreadableImageError
from score_jax.run.cache import keep_compiled
from score_jax.run.evaluate import evaluate
from score_jax.run.export import export
from score_jax.run.figures import draw_figures, prepare_figures
from score_jax.run.imports import config_for, import_official, prepare_import
from score_jax.run.inpaint import complete, prepare_inpainting
from score_jax.run.interpolate import draw_interpolation, prepare_interpolation
from score_jax.run.job import Options, prepare
from score_jax.run.sample import sample
from score_jax.run.schedule import prepare_schedule, print_schedule
from score_jax.run.train import train

# What a mode checks and builds first, from (config, workdir, devices, options), and what it then does with it.
MODES: dict[str, tuple[Callable[..., Any], Callable[[Any], bool]]] = {
    "train": (functools.partial(prepare, "train"), train),
    "sample": (functools.partial(prepare, "sample"), sample),
    "evaluate": (functools.partial(prepare, "evaluate"), evaluate),
    "inpaint": (prepare_inpainting, complete),
    "interpolate": (prepare_interpolation, draw_interpolation),
    "export": (functools.partial(prepare, "export"), export),
    "schedule": (prepare_schedule, print_schedule),
    "figures": (prepare_figures, draw_figures),
    "import": (prepare_import, import_official),
}
HERE = Path(__file__).resolve().parent
DEFAULT = "configs/digits.py"


class Command(NamedTuple):
    """What the command line asks for; of `devices`, 0 are all; `cache` as in `keep_compiled`."""

    mode: str
    config: dict[str, Any]
    folder: Path
    devices: int
    options: Options
    cache: str | None


def parse(arguments: Sequence[str]) -> Command:
    """What the command line asks for.

    The config is that of `--config`; without it, the one saved in the workdir; without that, the one that an imported checkpoint
    was trained with; without that, the digits'.

    Raises:
        ValueError: With one sentence, for anything that cannot be understood.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--config", "-config")
    for name in ("workdir", "mode", "checkpoint"):
        peek.add_argument(f"--{name}", f"-{name}")
    try:
        known = peek.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}: write --workdir=folder and --config=file") from error
    if "" in (known.config, known.workdir):
        raise ValueError("--workdir and --config must not be empty: write --workdir=folder and --config=file")
    rest = _without(arguments, "config", "workdir")
    default = config_for(known.checkpoint) if known.mode == "import" and known.checkpoint and not known.config else DEFAULT
    folder = Path(known.workdir or Path("runs") / Path((known.config or default).partition(":")[0]).stem)

    saved = workdir.read_json(folder / "config.json") if known.config is None else None
    start = ml_collections.ConfigDict(_tuples(completed(saved))) if saved is not None else _load_config(known.config or default)
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
    meaning = "Where compiled programs are kept for the next run; empty: nowhere. By default the user's cache folder."
    flags.DEFINE_string("cache", None, meaning, flag_values=values)
    _define_options(values)
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
        print("\n".join(f"  --{name}: {values[name].help}" for name in ("mode", "workdir", "devices", "cache", *Options._fields)))
        print("  --config: a file, such as configs/digits.py; its settings and their values here:")
        print("\n".join(f"    --config.{name}={value}" for name, value in settings.items()))
        sys.exit(0)
    config = values.config.to_dict()
    validate(config)
    options = Options(**{name: values[name].value for name in Options._fields})
    return Command(values.mode, config, folder, values.devices, options, values.cache)


def _define_options(values: flags.FlagValues) -> None:
    """Defines the flags that `Options` holds."""
    defaults = Options()
    for name, meaning in (
        ("checkpoint", "import: official .pth, or an .npz of the arrays of its state dict."),
        ("image", "inpaint: image files to complete, or patterns of them, separated by commas; without it, held-out images."),
        ("mask", "inpaint: the side that is missing (right, left, top, bottom) or center, or an image file: white is known."),
    ):
        flags.DEFINE_string(name, getattr(defaults, name), meaning, flag_values=values)
    for name, meaning in (
        ("label", "inpaint: class of the images, for a network that takes labels; -1 does not tell it."),
        ("number", "inpaint: how many held-out images; interpolate: how many rows; figures: how many samples."),
        ("completions", "inpaint: completions of each image; interpolate: chains in a row."),
        ("subsample", "schedule: among how many training images to seek the largest distance; 0: all."),
    ):
        flags.DEFINE_integer(name, getattr(defaults, name), meaning, flag_values=values)


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    """A config with tuples for the lists that JSON has in their place, which flags could not override."""
    return {
        name: _tuples(value) if isinstance(value, dict) else tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
    }


def _without(arguments: Sequence[str], *names: str) -> list[str]:
    """The command line without these flags and their values."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in names:
        parser.add_argument(f"--{name}", f"-{name}")
    return parser.parse_known_args(list(arguments))[1]


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
        command = parse(arguments)
        prepare_mode, run_mode = MODES[command.mode]
        devices = choose_devices(command.config, command.devices)
        job = prepare_mode(command.config, command.folder, devices, command.options)
    except (ValueError, OSError) as error:
        print(f"main.py: {_sentence(error) if isinstance(error, ValueError) else error}", file=sys.stderr)
        return 2
    keep_compiled(command.cache)
    try:
        finished = run_mode(job)
    except FloatingPointError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except UnreadableImageError as error:
        print(f"main.py: {error}: what was complete stays", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"main.py: cannot write to --workdir={command.folder} ({error}): what was complete stays; free the disk and run again",
            file=sys.stderr,
        )
        return 2
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
