"""Mutates valid configs and counts what the command makes of them.

    python benchmarks/mutations.py [--number 3000] [--seed 0] [--networks 20] [--verbose]

Every trial takes a published or a small config and changes one to three settings: to numbers up
to 2**63, 1e308, 1e-320, nan and infinity, to the ends of the allowed range and just beyond, to
values of foreign types, to dotted names of objects; or it removes settings, adds unknown ones or
replaces a section. Half of the trials write the values as flags. Each trial passes through what
the command does before it compiles: `flags.parse` or `settings.validate`, then `run.open_run`.

What is accepted takes one training step and runs the sampler for a few steps on the exact score of
a Gaussian. The step is `trainer.step` itself, evaluated without `jax.jit`: the same operations on
the same numbers, of which JAX compiles each only once for all trials; for networks of images it is
compiled, at most --networks of them. Trials of equal settings share a step. The images, the
network, the batch and the number of levels are made small beforehand unless the trial changed
them; steps that would still take more than LARGEST bytes are left out and counted.

Counts that must be 0:
    tracebacks: exceptions other than a ValueError or an OSError of one sentence
    unnamed: refusals that do not name a setting that was changed
    slow: refusals that take more than a second of CPU time
    nonsense: accepted, although the loss or a parameter is not finite after the step, the step
        changes no parameter, or chains are not finite

Exit code 1 unless they are. Prints one line per wrong trial, and a final line of counts.
"""

import argparse
import collections
import contextlib
import copy
import functools
import io
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from score_jax.cli.build import IMAGE_MODELS
from score_jax.cli.config_files import load_config, published_configs
from score_jax.cli.flags import Command, parse
from score_jax.cli.run import Run, open_run
from score_jax.cli.settings import flatten, validate
from score_jax.cli.table import NAMING, SETTINGS, shown
from score_jax.noise import example_keys

LARGEST = 100_000_000
"""Bytes of a batch above which an accepted step is not taken here."""

FOREIGN = (
    *(
        0,
        1,
        2,
        3,
        5,
        7,
        8,
        64,
        1000,
        -1,
        2**16,
        2**31 - 1,
        2**31,
        2**32 - 1,
        2**53,
        2**63,
        -(2**63),
    ),
    *(10**12, 10**30, 10**400, 10**5000, True, False, None, -0.0, 0.5, 1.0, 3.0, 1e-3, 1e12),
    *(1e-12, 1e-30, 1e-40, 1e-46, 1e-320, 1e30, 1e38, 1e39, 1e308, -1e308, 1 - 1e-9, 1 + 1e-9),
    *(float("nan"), float("inf"), float("-inf"), 1j, "", " ", "none", "nan", "1", "1e-3", "True"),
    *("uniform", "x" * 5000, "two\nlines", "a\0b", "\ud800", "é", "²", "-", "=", "a,b", b"bytes"),
    *((), (1,), (1, 2), (0,), (-1,), (2**63,), (1.5,), (True,), (None,), ("a",), (64,) * 3000),
    *([], [64, 64], [[1]], {}, {"a": 1}, {1: 2}, set(), frozenset({1}), object(), type, len),
    *(np.float32(0.5), np.float64(0.5), np.float64("nan"), np.int64(3), np.bool_(True)),
    *(np.str_("dsm"), np.zeros(3), np.array(1.0), range(3), 1e400, complex("nan"), Ellipsis),
)
DOTTED = (
    *("os:getcwd", "math:pi", "json:loads", "builtins:dict", "builtins:type", "builtins:int"),
    *("numpy:zeros", "no_such_module:thing", "os:no_such_name", "a:b:c", ":", "x:", ":x", "os:"),
    *("sys:exit", "builtins:print", "builtins:open", "operator:add", "itertools:count"),
    *("score_jax.models.mlp:MLP", "score_jax.models.unet:UNet", "score_jax.losses.dsm:no"),
    *("score_jax.losses.dsm:annealed_dsm", "score_jax.samplers.langevin:annealed_langevin"),
    *("score_jax.data.sources:digits", "score_jax.noise:stratified_levels", "os.path:join"),
)
"""Dotted names: of objects of the wrong kind, and of some of the package itself."""


class Trial(NamedTuple):
    """One mutation: the initial config and its changes.

    Attributes:
        base: Name of the config.
        changes: Dotted name -> value, or `REMOVED`.
        flags: If True, the changes are made by flags.
    """

    base: str
    changes: dict[str, Any]
    flags: bool


class _Removed:
    def __repr__(self):
        return "REMOVED"


REMOVED = _Removed()


def bases(folder: Path) -> dict[str, Any]:
    """The configs to begin with, each also written as a Python file."""
    images_of(folder / "images")
    configs = {name: load_config(name) for name in published_configs()}
    for name in ("digits", "digits_ncsn", "toy"):
        configs[f"{name}_ssm"] = copy.deepcopy(configs[name])
        configs[f"{name}_ssm"]["loss"]["name"] = "ssm"
    configs["own"] = copy.deepcopy(configs["toy"])
    configs["own"]["loss"]["name"] = "score_jax.losses.dsm:annealed_dsm"
    configs["own"]["model"] = {"name": "score_jax.models.mlp:MLP", "hidden": (8,)}
    for name, config in configs.items():
        text = (
            f"import json\n\n\ndef get_config():\n    return json.loads({json.dumps(config)!r})\n"
        )
        (folder / f"{name}.py").write_text(text)
    return configs


def images_of(folder: Path) -> None:
    """Writes 16 small images of two classes."""
    rng = np.random.default_rng(0)
    for i in range(16):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)


def draw(rng: np.random.Generator, configs: dict[str, Any]) -> Trial:
    """One random trial."""
    base = str(rng.choice(list(configs)))
    known = dict(flatten(configs[base]))
    changes = {}
    for _ in range(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])):
        kind = rng.random()
        name = str(rng.choice(list(known)))
        if kind < 0.3:  # More often than its share, as its rules depend on each other.
            name = str(rng.choice([each for each in known if each.startswith("model.")]))
        if kind > 0.97:
            changes[f"{name.partition('.')[0]}.{rng.choice(['unknown', 'a.b', '', 'width'])}"] = 1
        elif kind > 0.94:
            changes[name] = REMOVED
        elif kind > 0.92:
            changes[name.partition(".")[0]] = FOREIGN[rng.integers(len(FOREIGN))]
        elif kind > 0.86:
            section = str(rng.choice([*NAMING, "loss.levels"]))
            changes[NAMING.get(section, section)] = str(rng.choice(DOTTED))
        else:
            changes[name] = value_for(rng, name)
    return Trial(base, changes, bool(rng.random() < 0.5))


def value_for(rng: np.random.Generator, name: str) -> Any:
    """A value for a setting: foreign, or near those that are allowed."""
    setting = SETTINGS.get(name)
    if setting is None or rng.random() < 0.6:
        return FOREIGN[rng.integers(len(FOREIGN))]
    if setting.choices:
        return setting.choices[rng.integers(len(setting.choices))]
    if setting.low is None:
        return [True, False, "text", None][rng.integers(4)]
    high = setting.high if setting.below is None else setting.below
    near = [setting.low, high, setting.low - 1, high + 1, (setting.low + high) / 2]
    near += [np.nextafter(setting.low, high), np.nextafter(high, setting.low), setting.default]
    value = near[rng.integers(len(near))]
    if setting.kind is float or value is None or isinstance(value, tuple):
        return float(value) if setting.kind is float and value is not None else value
    return (int(value),) if setting.kind is tuple else int(value)


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config with changes."""
    config = copy.deepcopy(config)
    for name, value in changes.items():
        section, dot, last = name.partition(".")
        place = config.get(section) if dot else config
        last = last if dot else section
        if not isinstance(place, dict):
            continue  # The section has been replaced.
        if value is REMOVED:
            place.pop(last, None)
        else:
            place[last] = value
    return config


def accepted_config(trial: Trial, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The mutated config, as the command has it after parsing.

    Raises:
        ValueError: If the command refuses it.
    """
    if not trial.flags:
        config = changed(config, trial.changes)
        validate(config)
        return config
    arguments = [f"--config={folder / trial.base}.py", "--mode=train"]
    for name, value in trial.changes.items():
        arguments.append(f"--config.{name}={_text(value)}")
    return parse(arguments).config


def _text(value: Any) -> str:
    """The text of a flag."""
    return "9" * 5001 if isinstance(value, int) and value > 10**4000 else str(value)


def shrunk(config: dict[str, Any], changes: dict[str, Any], images: Path) -> dict[str, Any]:
    """An accepted config with small data and networks where the trial did not change them."""
    config = json.loads(json.dumps(config))
    touched = {name for name in changes if changes[name] is not REMOVED}

    def small(name: str, value: Any, *unless: str) -> None:
        section, _, last = name.partition(".")
        if last in config[section] and not touched & {name, *unless}:
            config[section][last] = value

    stored = config["data"]["source"] in ("tfds", "folder", "zip", "idx", "npz")
    if stored and not touched & {"data.source", "data.path"}:
        config["data"] |= {"source": "folder", "path": str(images)}
        size = 32 if config["model"].get("variant") == "deepest" else 8
        small("data.size", size)
        small("data.crop", None)
    if not any(name.startswith(("model", "data")) for name in touched):
        config["model"] = {"name": "mlp", "hidden": [8]}  # Compiles in no time.
        config["data"] |= {"labels": False, "label_dropout": 0.0}
    if config["model"]["name"] == "unet":
        small("model.width", 4, "model.heads", "model.groups")
    small("model.width", 4, "model.heads", "model.groups")
    small("model.hidden", [8])
    small("training.batch_size", 4)
    frames = "sampling.num_frames"
    levels = min(4, config["noise"]["num_levels"])
    small("noise.num_levels", levels, "noise.sigma_max", "noise.sigma_min", frames)
    small(frames, min(4, config["sampling"]["num_frames"]))
    small("sampling.batch_size", 4)
    small("sampling.num_samples", 4)
    if (
        not touched & {"noise.num_levels", "sampling.step_size"}
        and config["noise"]["num_levels"] > 1
    ):
        small("sampling.step_size", None, "noise.sigma_max", "noise.sigma_min")
    return config


class TooLargeError(Exception):
    """A step that is not taken here."""


@functools.cache
def stepped(program: str) -> str:
    """`take_step` and `run_sampler`, once for all trials of equal settings."""
    run = RUNS.pop(program)
    return take_step(run) or run_sampler(run)


RUNS: dict[str, Run] = {}
NETWORKS: set[str] = set()


def program_of(run: Run) -> str:
    """The settings that a step of training and the sampler depend on, as text."""
    config = copy.deepcopy(run.config)
    config["training"] = {"batch_size": config["training"]["batch_size"]}
    for name in ("num_samples", "batch_size", "num_frames", "inpaint_steps", "renew_known"):
        config["sampling"].pop(name)
    config["sampling"]["num_steps"] = min(config["sampling"]["num_steps"], 2)
    for name in ("path", "name", "train_split", "held_out_split", "device_megabytes"):
        config["data"].pop(name)
    config["optim"]["schedule"] += str(run.config["training"]["num_steps"] > 10**6)
    return json.dumps(config)


def take_step(run: Run) -> str:
    """Takes one training step; returns what is wrong with it, or an empty text."""
    size = run.config["training"]["batch_size"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.state_shape.params))
    widest = max([int(np.prod(run.shape)), *run.config["model"].get("hidden", [])])
    widest *= run.config["model"].get("width", 1) * run.config["loss"]["num_projections"]
    if max(4 * size * widest, 40 * parameters) > LARGEST or len(run.sigmas) > 10_000:
        raise TooLargeError
    index = np.arange(size) % len(run.data.train)
    x = jnp.asarray(run.data.train[index])
    label = ()
    if run.conditional:
        label = (jnp.asarray(run.data.train_labels[index]),)

    key = jax.random.key(run.config["seed"])
    example = jnp.zeros((1, *run.shape))
    is_image = run.config["model"]["name"] in IMAGE_MODELS
    compiled = jax.jit if is_image else lambda function: function
    params = compiled(run.trainer.model.init)(
        key, example, jnp.zeros(1, jnp.int32), *(each[:1] for each in label)
    )
    before = run.trainer.init(params)
    after, metrics = compiled(run.trainer.step)(key, before, x, *label)
    if not (np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm)):
        return f"loss {metrics.loss}, gradient norm {metrics.grad_norm}"
    leaves = jax.tree.leaves((after.params, after.ema_params, after.opt_state))
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        return "a parameter is not finite after the step"
    pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    if not any((np.asarray(old) != np.asarray(new)).any() for old, new in pairs):
        return "the step changes no parameter"
    return ""


def run_sampler(run: Run) -> str:
    """Runs the sampler on the score of N(0.5, 0.25); returns what is wrong, or an empty text."""
    sigmas = run.sigmas
    if len(sigmas) > 300:
        raise TooLargeError
    variance = 0.25 + sigmas**2
    score_fn = lambda x, level: (0.5 - x) / variance[level][:, None]  # noqa: E731
    keys = example_keys(jax.random.key(run.config["seed"]), jnp.arange(2))
    settings = {} if run.step_size is None else {"step_size": run.step_size}
    if run.step_size is not None and not np.isfinite(np.float32(run.step_size)):
        return f"step size {run.step_size}"
    num_steps = min(run.config["sampling"]["num_steps"], 2)
    with jax.disable_jit():
        x = run.start(keys, (3,))
        end = run.sampler(
            keys,
            score_fn,
            x,
            sigmas,
            **settings,
            num_steps=num_steps,
            denoise=run.config["sampling"]["denoise"],
        )
    end = getattr(end, "x", end)
    return "" if np.isfinite(end).all() else "a chain is not finite"


def names_setting(message: str, changes: dict[str, Any]) -> bool:
    """Returns True if a message names one of the settings that were changed."""
    for name in changes:
        section, _, last = name.partition(".")
        if f"config.{section}" in message and last in message:
            return True
    return False


def outcome(
    trial: Trial, config: dict[str, Any], folder: Path, networks: int | None
) -> tuple[str, str]:
    """Outcome of a trial, and a sentence about it."""
    begun = time.process_time()
    try:
        accepted = accepted_config(trial, config, folder)
        accepted = shrunk(accepted, trial.changes, folder / "images")
        command = Command(mode="train", config=accepted, workdir=folder / "nowhere")
        run = open_run(command, jax.devices()[:1], needs_data=True, decode=True, num_states=4)
    except (ValueError, OSError) as error:
        message = str(error)
        seconds = time.process_time() - begun
        if "\n" in message or len(message) > 600 or not message:
            return (
                "traceback",
                f"{type(error).__name__} of {len(message)} characters: {message[:300]}",
            )
        if not names_setting(message, trial.changes):
            return "unnamed", message
        if seconds > 1:
            return "slow", f"{seconds:.1f} s: {message}"
        return "refused", message
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
        return "traceback", text
    if networks is None:
        return "accepted", ""
    try:
        program = program_of(run)
        if run.config["model"]["name"] in IMAGE_MODELS and program not in NETWORKS:
            if len(NETWORKS) >= networks:
                return "accepted", ""
            NETWORKS.add(program)
        RUNS[program] = run
        wrong = stepped(program)
    except TooLargeError:
        return "too large", ""
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"
        return "traceback", f"in the step: {text}"
    return ("nonsense", wrong) if wrong else ("stepped", "")


@contextlib.contextmanager
def hidden():
    """Hides what is printed meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


WRONG = ("traceback", "unnamed", "slow", "nonsense")


def main(arguments: list[str] | None = None) -> int:
    """Runs the trials; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=3000, help="trials")
    parser.add_argument("--steps", type=int, default=10**9, help="trials to step")
    parser.add_argument("--networks", type=int, default=10**9, help="networks of images to step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="first trial")
    parser.add_argument("--verbose", action="store_true", help="print every trial")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    if given.steps:
        jax.config.update("jax_disable_most_optimizations", True)
    counts: collections.Counter = collections.Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configs = bases(folder)
        for i in range(given.first, given.first + given.number):
            trial = draw(np.random.default_rng([given.seed, i]), configs)
            begun = time.process_time()
            networks = given.networks if counts["stepped"] < given.steps else None
            with hidden(), np.errstate(all="ignore"):
                kind, text = outcome(trial, configs[trial.base], folder, networks)
            if kind == "refused":
                slowest = max(slowest, time.process_time() - begun)
            counts[kind] += 1
            if (i + 1 - given.first) % 250 == 0:
                print(f"{i + 1 - given.first}: {dict(counts)}", file=sys.stderr, flush=True)
            if kind in WRONG or given.verbose:
                seconds = time.process_time() - begun
                changes = ", ".join(f"{name}={shown(v)}" for name, v in trial.changes.items())
                how = "flags" if trial.flags else "config"
                line = f"{i} {kind} ({seconds:.1f} s) {trial.base} {how} {changes}: {text}"
                print(line.encode("ascii", "backslashreplace").decode(), flush=True)
    counted = ", ".join(f"{counts[kind]} {kind}" for kind in (*WRONG, "stepped", "too large"))
    print(
        f"{given.number} mutations: {counts['refused']} refused (the slowest in {slowest:.2f} s), "
        f"{counts['accepted']} accepted without a step, {counted}"
    )
    return int(any(counts[kind] for kind in WRONG))


if __name__ == "__main__":
    sys.exit(main())
