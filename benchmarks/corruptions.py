"""Damages a small trained run in many ways, and counts what the command then does.

    python benchmarks/corruptions.py --number=0

A run with three checkpoints is trained, and beside it one of another seed and one of another
learning rate. Each trial copies the run, damages the copy in one way (bytes changed, files cut,
emptied or removed; checkpoints swapped, copied as another step or from another run; settings,
metadata and logs edited), and opens it as --mode=train and --mode=sample do, also with --step.
What comes back is compared with the truth:

refused      one sentence says why, with exit code 2
passed over  a warning names the checkpoint, and an older sound one is used
harmless     the right state of the newest step that is left, and the right config
SILENT       another state or another config than the run's, without an error
TRACEBACK    any other exception

Exits with 1 if a trial ends in one of the last two.
"""

import argparse
import collections
import contextlib
import copy
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from score_jax.checkpoint import Checkpoints, silence_background_saves
from score_jax.cli.flags import parse
from score_jax.cli.main import main
from score_jax.cli.quality import saved_entries
from score_jax.cli.run import belongs_to, open_run
from score_jax.cli.settings import FREE_TO_CONTINUE, completed, flatten
from score_jax.cli.table import SETTINGS
from score_jax.cli.train import Log
from score_jax.data.examples import splits_of
from score_jax.fitting import _facts, _initial_state
from score_jax.records import RunIdentity

STEPS = (20, 40, 60)
SMALL = {
    "config": "digits",
    "devices": 1,
    "config.data.labels": False,
    "config.data.label_dropout": 0,
    "config.model.name": "mlp",
    "config.model.hidden": 8,
    "config.noise.num_levels": 4,
    "config.optim.warmup_steps": 5,
    "config.training.num_steps": STEPS[-1],
    "config.training.batch_size": 32,
    "config.training.log_every": 20,
    "config.training.eval_every": 20,
    "config.training.eval_batches": 1,
    "config.training.checkpoint_every": 20,
    "config.training.preview_every": "none",
    "config.training.metric_samples": 0,
    "config.sampling.num_samples": 4,
    "config.sampling.batch_size": 4,
    "config.sampling.method": "annealed",
    "config.sampling.num_steps": 1,
    "config.sampling.num_frames": 2,
}
TEXT = (".json",)
KINDS = ("refused", "passed over", "harmless", "SILENT", "TRACEBACK")


def train(folder, **changes):
    """Trains a small run."""
    settings = {**SMALL, **{f"config.{name.replace('__', '.')}": v for name, v in changes.items()}}
    with contextlib.redirect_stdout(io.StringIO()):
        code = main([f"--workdir={folder}", *(f"--{k}={v}" for k, v in settings.items())])
    assert code == 0, f"training in {folder} failed"


# Damages of one file: (name, function of its bytes and a generator).


def flip(content, rng):
    """Changes one bit."""
    if not content:
        return b"\x00"
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(content, rng):
    """Keeps the first part."""
    return content[: int(rng.integers(len(content)))] if content else b""


def of_file(folder, file, damage):
    def apply(copied, rng):
        path = copied / file
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage(path.read_bytes(), rng))

    return apply


def file_trials(run):
    """Every file below the run: a bit, a cut, nothing left, removed."""
    for path in sorted(run.rglob("*")):
        file = path.relative_to(run)
        if not path.is_file() or path.name.endswith(".lock"):
            continue
        if file.parts[0] == "checkpoints" and file.parts[1] != str(STEPS[-1]):
            continue
        step = {"checkpoints": str(STEPS[-1]), "best": "best"}.get(file.parts[0])
        damages = {"bit": flip, "another bit": flip, "cut": cut}
        damages |= {"empty": lambda content, rng: b"", "removed": None}
        for name, damage in damages.items():
            yield f"{name}: {file}", of_file(run, file, damage), step


# Damages of whole checkpoints.


def swapped(first, second):
    def apply(copied, rng):
        aside = copied / "aside"
        (copied / first).rename(aside)
        (copied / second).rename(copied / first)
        aside.rename(copied / second)

    return apply


def copied_from(source, target):
    """Copies the folder `source`, below the copy or absolute, over `target`."""

    def apply(copied, rng):
        shutil.rmtree(copied / target, ignore_errors=True)
        shutil.copytree(copied / source, copied / target)

    return apply


def folder_trials(others):
    names = [f"checkpoints/{step}" for step in STEPS]
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            yield f"swapped: {first} {second}", swapped(first, second), second[-2:]
        for step in (*STEPS, 7, 80, 1000):
            target = f"checkpoints/{step}"
            if target != first:
                yield f"copied: {first} as {step}", copied_from(first, target), str(step)
    yield "removed: newest", lambda c, rng: shutil.rmtree(c / names[-1]), None
    yield "removed: all", lambda c, rng: shutil.rmtree(c / "checkpoints"), None
    for name, other in others.items():
        for step in STEPS:
            for target in {step, 60, 80}:
                source = other / "checkpoints" / str(step)
                apply = copied_from(source, f"checkpoints/{target}")
                yield f"{name}: step {step} as {target}", apply, str(target)
        best = next((other / "best").iterdir())
        yield f"{name}: best", lambda c, rng, b=best: best_replaced(c, b), "best"
        for file in ("config.json", "run.json", "metrics.json"):
            apply = lambda c, rng, f=other / file: shutil.copy(f, c)  # noqa: E731
            yield f"{name}: {file}", apply, None
        for part in ("state", "meta"):
            apply = copied_from(other / "checkpoints" / "60" / part, f"checkpoints/60/{part}")
            yield f"{name}: {part} of step 60", apply, "60"
    for name in ("²", "007", "1_000", "060", "+60", "-1", "1e3", "\uff16\uff10", "9" * 30):
        yield f"odd name: {name}", copied_from(names[0], f"checkpoints/{name}"), None
    yield "a file as step 99", lambda c, rng: (c / "checkpoints/99").write_text(""), "99"
    yield "an empty step 99", lambda c, rng: (c / "checkpoints/99").mkdir(), "99"
    yield "a dangling link", lambda c, rng: (c / "checkpoints/99").symlink_to("none"), "99"


def best_replaced(copied, source):
    shutil.rmtree(copied / "best")
    shutil.copytree(source, copied / "best" / source.name)


# Edits of JSON.


def edited(file, change):
    """Reads JSON, changes it in place or returns another content, and writes it."""

    def apply(copied, rng):
        path = copied / file
        content = json.loads(path.read_text())
        new = change(content)
        path.write_text(json.dumps(content if new is None else new))

    return apply


def other_value(name, value):
    """Another value of a setting, of the same type where that is possible."""
    setting = SETTINGS.get(name)
    choices = [each for each in (setting.choices if setting else ()) or () if each != value]
    if isinstance(value, bool):
        return not value
    if choices:
        return choices[0]
    if isinstance(value, int):
        return value * 2 or 1
    if isinstance(value, float):
        return value * 1.25 or 0.5
    if isinstance(value, list):
        return [each * 2 for each in value]
    return 1 if value is None and setting and setting.kind in (int, float) else "other"


def setting_trials(config):
    """Every setting of config.json, one after the other."""
    for name, value in flatten(config):
        section, _, last = name.rpartition(".")

        new = other_value(name, value)

        def change(content, section=section, last=last, new=new):
            (content[section] if section else content)[last] = new

        yield f"setting: {name}", edited("config.json", change), None


def json_trials(run):
    """Metadata of the newest checkpoint, and logs of another shape."""
    metas = [path for path in (run / "checkpoints/60/meta").rglob("*") if path.is_file()]
    meta = next(path for path in metas if b"crc" in path.read_bytes()).relative_to(run)
    one_crc = lambda m: m["crc"].update({next(iter(m["crc"])): 1})  # noqa: E731
    for name, change in {
        "step": lambda m: m["stored"].update(step=40),
        "identity": lambda m: m["stored"].update(identity="0" * 32),
        "no identity": lambda m: m["stored"].update(identity=None),
        "checksum": lambda m: m["stored"].update(checksum=0),
        "types": lambda m: m["stored"]["types"].update(dict.fromkeys(m["stored"]["types"], "f8")),
        "config": lambda m: m["config"]["optim"].update(learning_rate=0.5),
        "facts": lambda m: m["run"].update(seed=9),
        "crc": one_crc,
        "no crc": lambda m: {k: v for k, v in m.items() if k != "crc"},
        "no record": lambda m: {k: v for k, v in m.items() if k != "stored"},
        "stored is a list": lambda m: {**m, "stored": []},
        "stored is empty": lambda m: {**m, "stored": {}},
        "a list": lambda m: [],
    }.items():
        yield f"metadata: {name}", edited(meta, change), "60"
    for name, change in {
        "identity": lambda r: r.update(identity="0" * 32),
        "no identity": lambda r: {},
        "number": lambda r: r.update(identity=3),
        "without_identity_until": lambda r: r.update(without_identity_until=10**6),
        "text for a number": lambda r: r.update(without_identity_until="x"),
        "a list": lambda r: [1],
    }.items():
        yield f"run.json: {name}", edited("run.json", change), None
    for file in ("metrics.json", "provenance.json", "moments.json", "diagnostics.json"):
        for value in ([], {}, {"entries": 3}, {"train_loss": 3, "held_out_loss": [[1]]}, "x"):
            if (run / file).exists():
                yield f"{file}: {value}", edited(file, lambda c, v=value: v), None
    for value in ([], {"entries": 3}, {"entries": [3]}, {"entries": [{}]}):

        def write(copied, rng, value=value):
            (copied / "quality.json").write_text(json.dumps(value))

        yield f"quality.json: {value}", write, None


# The verdict


class Warnings(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.shown = []

    def emit(self, record):
        self.shown.append(record.getMessage())


def equal(state, truth):
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(truth), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def same_config(config, truth):
    old, new = dict(flatten(completed(truth))), dict(flatten(completed(config)))
    differing = [name for name in {*old, *new} if old.get(name) != new.get(name)]
    return all(name.startswith(FREE_TO_CONTINUE) for name in differing)


def opened(folder, mode, step):
    """The step, state and config with which a mode would go on; that of `fit` in training."""
    flags = [f"--workdir={folder}", f"--mode={mode}", *([f"--step={step}"] if step else [])]
    command = parse(flags)
    run = open_run(command, jax.devices()[:1], needs_data=mode == "train")
    if mode == "sample":
        run.observer  # noqa: B018
        return run.step, run.state, run.config
    saved_entries(run.folder)
    Log(run)
    if not (folder / "checkpoints").exists():
        return run.step, run.state, run.config
    examples = splits_of(run.data, None, None, None)[0]
    settings, seed = run.config["training"], run.config["seed"]
    facts = _facts(run.trainer, examples, seed, settings["batch_size"])
    identity = RunIdentity(folder)
    checkpoints = Checkpoints(folder / "checkpoints", run=identity)
    check, steps = belongs_to(folder), settings["num_steps"]
    state = _initial_state(run.trainer, examples, seed, None, checkpoints, facts, steps, check)
    if run.state is not None and not equal(run.state, state):
        return int(state.step), None, run.config
    return int(state.step), state, run.config


def verdict(folder, mode, step, truth, config):
    """The kind of what happens, and the sentence."""
    warnings = Warnings()
    logging.getLogger("score_jax").addHandler(warnings)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            found, state, effective = opened(folder, mode, step)
    except SystemExit as error:
        return "refused", f"exit {error.code}"
    except (ValueError, OSError) as error:
        sentence = " ".join(str(error).split())
        if re.search(r"\b(delete|remove|rm)\b", sentence):
            return "TRACEBACK", f"advises deletion: {sentence}"
        return "refused", sentence
    except Exception as error:
        return "TRACEBACK", f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger("score_jax").removeHandler(warnings)
    if not same_config(effective, config):
        return "SILENT", "another config"
    if found is None or state is None:
        is_gone = not any((folder / "checkpoints").glob("[0-9]*"))
        return ("harmless", "begins anew") if is_gone else ("SILENT", f"step {found}, no state")
    if found not in truth or not equal(state, truth[found]):
        return "SILENT", f"another state as step {found}"
    if warnings.shown:
        return "passed over", "; ".join(warnings.shown)
    return "harmless", f"step {found}"


def trials(run, others):
    config = json.loads((run / "config.json").read_text())
    yield from folder_trials(others)
    yield from json_trials(run)
    yield from setting_trials(config)
    yield from file_trials(run)


def truth_of(run):
    """The states of all steps, and the config."""
    command = parse([f"--workdir={run}", "--mode=sample"])
    opened_run = open_run(command, jax.devices()[:1])
    checkpoints = Checkpoints(run / "checkpoints")
    states = {step: checkpoints.restore(opened_run.state_shape, step)[1] for step in STEPS}
    return states, copy.deepcopy(dict(opened_run.config))


def counted(folder, number=0, seed=0, shown=print):
    """Makes the runs below a folder, and counts the kinds of `number` trials; 0 takes all."""
    run = folder / "run"
    train(run)
    others = {"another seed": folder / "seed", "another rate": folder / "rate"}
    train(others["another seed"], seed=1)
    train(others["another rate"], optim__learning_rate=0.01)
    truth, config = truth_of(run)
    listed = list(trials(run, others))
    if number and number < len(listed):
        listed = [listed[i] for i in np.linspace(0, len(listed) - 1, number).astype(int)]
    counts = collections.Counter()
    for index, (name, damage, step) in enumerate(listed):
        kinds = set()
        openings = [("train", None), ("sample", None)] + ([("sample", step)] if step else [])
        for mode, asked in openings:
            copied = folder / f"trial_{index}"
            shutil.copytree(run, copied, symlinks=True)
            damage(copied, np.random.default_rng([seed, index]))
            kind, sentence = verdict(copied, mode, asked, truth, config)
            shutil.rmtree(copied)
            kinds.add(kind)
            label = mode if asked is None else f"{mode} --step={asked}"
            if kind in KINDS[3:] or os.environ.get("SHOW"):
                shown(f"{kind}: {name} [{label}]: {sentence[:300]}")
        counts[max(kinds, key=KINDS.index)] += 1
    return len(listed), counts


def run_all():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=0, help="number of trials; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    silence_background_saves()
    logging.getLogger("score_jax").propagate = False
    with tempfile.TemporaryDirectory() as folder:
        number, counts = counted(Path(folder), options.number, options.seed)
    listed = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    print(f"{number} corruptions: {listed}")
    return 1 if counts["SILENT"] or counts["TRACEBACK"] else 0


if __name__ == "__main__":
    sys.exit(run_all())
