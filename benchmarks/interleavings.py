"""Runs two or three processes of the command in one workdir, and checks that nothing is mixed.

    python benchmarks/interleavings.py [--number=20]

Each interleaving starts processes of their own: two trainings of different learning rates, the
same command twice, an import into a workdir in which another process trains, a writer that is
killed (SIGKILL) with others that start at once, and modes that read while another process trains.
An interleaving is wrong if a process ends with a traceback or with another exit code than it
should, if a refusal does not name the holder, if the final state or the samples of the run differ
by a bit from those of an undisturbed run, if an output does not load or does not have the settings
that were asked for, or if a temporary file is left. Prints one line per interleaving and the
counts; exits with 1 if one is wrong.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

from score_jax.cli.flags import parse
from score_jax.cli.run import open_run

ROOT = Path(__file__).resolve().parents[1]
STEPS = 300
SMALL = [
    "--config=digits",
    "--devices=1",
    "--config.data.labels=False",
    "--config.data.label_dropout=0",
    "--config.model.name=mlp",
    "--config.model.hidden=16",
    "--config.noise.num_levels=4",
    "--config.optim.warmup_steps=5",
    f"--config.training.num_steps={STEPS}",
    "--config.training.batch_size=32",
    "--config.training.log_every=20",
    "--config.training.eval_every=50",
    "--config.training.eval_batches=1",
    "--config.training.checkpoint_every=10",
    "--config.training.keep_checkpoints=2",
    "--config.training.preview_every=none",
    "--config.training.metric_samples=0",
    "--config.sampling.num_samples=4",
    "--config.sampling.batch_size=4",
    "--config.sampling.method=annealed",
    "--config.sampling.num_steps=1",
    "--config.sampling.num_frames=2",
]
OTHER = [*SMALL, "--config.optim.learning_rate=0.01"]
LONGER = [*SMALL, f"--config.training.num_steps={STEPS + 100}"]
REFUSED = "is being written by process"


class Wrong(Exception):  # noqa: N818 (the verdict of a trial)
    """The reason why an interleaving is wrong."""


class Process:
    """The command in a process of its own."""

    def __init__(self, folder, *arguments):
        line = [sys.executable, "-m", "score_jax", f"--workdir={folder}", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.child = subprocess.Popen(line, cwd=ROOT, env=environment, text=True, **pipes)
        self.name = " ".join(arguments[-2:])

    def end(self, *codes, saying=""):
        """Waits for the end, and returns the exit code, which must be one of `codes`."""
        try:
            shown = self.child.communicate(timeout=300)[0]
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise Wrong(f"{self.name} does not end") from None
        code = self.child.returncode
        if "Traceback" in shown or code not in codes:
            raise Wrong(f"{self.name} ends with {code}: {shown[-600:]}")
        if code == 2 and saying not in shown:
            raise Wrong(f"{self.name} says: {shown[-400:]}")
        return code

    def pause(self, until):
        """Stops and continues the process again and again, until an event."""
        while not until.wait(0.1) and self.child.poll() is None:
            self.child.send_signal(signal.SIGSTOP)
            until.wait(1.0)
            self.child.send_signal(signal.SIGCONT)

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.communicate()


def wait_for_checkpoint(folder, process):
    """Waits until the first checkpoint is there."""
    begun = time.monotonic()
    while not any((folder / "checkpoints").glob("[1-9]*0")):
        if process.child.poll() is not None or time.monotonic() - begun > 120:
            raise Wrong(f"no checkpoint: {process.child.communicate()[0][-400:]}")
        time.sleep(0.01)


def result(folder):
    """The bits of a finished run: its final step, state and samples."""
    command = parse([f"--workdir={folder}", "--mode=sample", "--devices=1"])
    run = open_run(command, jax.devices()[:1])
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(run.state)]
    with np.load(folder / "samples.npz", allow_pickle=False) as file:
        return run.step, leaves, file["samples"].tobytes(), run.config["optim"]["learning_rate"]


def settings_of(folder, name):
    """The settings in a file of samples, which must load with its pictures."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        settings = json.loads(str(file["settings"]))
        if len(file["samples"]) != settings["num_samples"]:
            raise Wrong(f"{name}.npz mixes {len(file['samples'])} samples with {settings}")
    if not (folder / f"{name}.png").exists():
        raise Wrong(f"{name}.png is missing")
    return settings


def check(condition, reason):
    if not condition:
        raise Wrong(reason)


class Trials:
    """The interleavings; each is a method that takes a new folder."""

    def __init__(self, base):
        self.base = base
        self.truth = {}

    def alone(self, name):
        """The result of an undisturbed run."""
        if name not in self.truth:
            # The schedule of the learning rate depends on the number of steps.
            commands = {"plain": [SMALL], "other": [OTHER], "longer": [SMALL, LONGER]}[name]
            for command in commands:
                Process(self.base / name, *command).end(0)
            self.truth[name] = result(self.base / name)
        return self.truth[name]

    def is_whole(self, folder, *names):
        found = result(folder)
        check(any(found == self.alone(name) for name in names), "other bits than alone")
        for path in folder.rglob("*"):
            left = path.name.startswith(".") and ".lock" not in path.name
            check(not left and "orbax-checkpoint-tmp" not in path.name, f"{path} is left")
        for path in folder.glob("*.json"):
            json.loads(path.read_text())

    def at_once(self, folder, *commands):
        """Several writers at once: one goes on, the others are refused."""
        started = [Process(folder, *command) for command in commands]
        codes = sorted(each.end(0, 2, saying=REFUSED) for each in started)
        check(codes == [0] + [2] * (len(commands) - 1), f"exit codes {codes}")

    def beside(self, folder, *commands, code=0, saying=""):
        """Other commands while one trains, begun at its first checkpoint.

        Training pauses most of the time while they run, so that it does not end before them.
        """
        training = Process(folder, *SMALL)
        wait_for_checkpoint(folder, training)
        started = [Process(folder, *command) for command in commands]
        pausing = threading.Event()
        pauses = threading.Thread(target=training.pause, args=(pausing,))
        pauses.start()
        try:
            for process in started:
                process.end(code, saying=saying)
        finally:
            pausing.set()
            pauses.join()
        training.end(0)
        self.is_whole(folder, "plain")

    def killed(self, folder):
        training = Process(folder, *SMALL)
        wait_for_checkpoint(folder, training)
        training.kill()

    def finished(self, folder):
        Process(folder, *SMALL).end(0)

    def many_readers_beside(self, folder):
        """This process opens the run again and again while another one trains."""
        training = Process(folder, *SMALL)
        wait_for_checkpoint(folder, training)
        command = parse([f"--workdir={folder}", "--mode=sample", "--devices=1"])
        opened = 0
        while training.child.poll() is None:
            run = open_run(command, jax.devices()[:1])
            check(int(run.state.step) == run.step, "a step with another state")
            opened += 1
        training.end(0)
        check(opened > 2, f"only {opened} readings")
        self.is_whole(folder, "plain")

    def two_rates_at_once(self, folder):
        self.at_once(folder, SMALL, OTHER)
        self.is_whole(folder, "plain", "other")

    def another_rate_later(self, folder):
        self.beside(folder, OTHER, code=2, saying=REFUSED)

    def the_same_command_at_once(self, folder):
        self.at_once(folder, SMALL, SMALL)
        self.is_whole(folder, "plain")

    def the_same_command_later(self, folder):
        self.beside(folder, SMALL, code=2, saying=REFUSED)

    def three_at_once(self, folder):
        self.at_once(folder, SMALL, OTHER, SMALL)
        self.is_whole(folder, "plain", "other")

    def more_steps_later(self, folder):
        self.beside(folder, LONGER, code=2, saying=REFUSED)
        Process(folder, *LONGER).end(0)
        self.is_whole(folder, "longer")

    def kill_and_the_same_at_once(self, folder):
        self.killed(folder)
        Process(folder, *SMALL).end(0)
        self.is_whole(folder, "plain")

    def kill_and_two_at_once(self, folder):
        self.killed(folder)
        self.at_once(folder, SMALL, SMALL)
        self.is_whole(folder, "plain")

    def kill_and_another_rate(self, folder):
        self.killed(folder)
        Process(folder, *OTHER).end(2, saying="holds another run: config.optim.learning_rate")
        Process(folder, *SMALL).end(0)
        self.is_whole(folder, "plain")

    def interrupt_while_another_waits(self, folder):
        training = Process(folder, *SMALL)
        wait_for_checkpoint(folder, training)
        second = Process(folder, *SMALL)
        time.sleep(1.0)
        training.child.send_signal(signal.SIGTERM)
        second.end(0, 2, saying=REFUSED)
        training.end(0, 130, 143, -signal.SIGTERM)
        Process(folder, *SMALL).end(0)
        self.is_whole(folder, "plain")

    def sample_beside(self, folder):
        self.beside(folder, ["--mode=sample", "--number=3"])

    def named_samples_beside(self, folder):
        self.beside(folder, *(["--mode=sample", f"--number={n}", f"--name=s{n}"] for n in (2, 5)))
        for number in (2, 5):
            check(settings_of(folder, f"s{number}")["num_samples"] == number, "other settings")
        made = json.loads((folder / "provenance.json").read_text())["samples"]
        check({"s2", "s5"} <= set(made), f"provenance.json has only {list(made)}")

    def the_best_beside(self, folder):
        training = Process(folder, *SMALL)
        wait_for_checkpoint(folder, training)
        while training.child.poll() is None and not any((folder / "best").glob("[1-9]*0")):
            time.sleep(0.01)
        Process(folder, "--mode=sample", "--step=best", "--name=best_one").end(0)
        training.end(0)
        settings_of(folder, "best_one")
        self.is_whole(folder, "plain")

    def evaluate_beside(self, folder):
        self.beside(folder, ["--mode=evaluate"])
        check(json.loads((folder / "evaluation.json").read_text())["levels"], "no levels")

    def report_beside(self, folder):
        self.beside(folder, ["--mode=report"])

    def interpolate_and_export_beside(self, folder):
        few = ["--number=1", "--completions=2"]
        self.beside(folder, ["--mode=interpolate", *few], ["--mode=export"])
        np.load(folder / "interpolation.npz", allow_pickle=False).close()

    def import_beside(self, folder):
        sys.path.insert(0, str(ROOT / "tests"))
        from truths import golden

        file = folder.with_suffix(".npz")
        state = golden("ncsn_mnist_ngf8")["param"]
        np.savez(file, **{f"module.{name}": value for name, value in state.items()})
        self.beside(folder, ["--mode=import", f"--checkpoint={file}"], code=2)

    def two_samplers_of_other_settings(self, folder):
        self.finished(folder)
        commands = [["--mode=sample", f"--number={number}"] for number in (3, 5)]
        codes = [p.end(0, 2) for p in [Process(folder, *command) for command in commands]]
        # One that was refused because the other wrote "samples" can be run again.
        for command, code in zip(commands, codes, strict=True):
            if code == 2:
                Process(folder, *command).end(0)
        found = {path.stem: settings_of(folder, path.stem) for path in folder.glob("samples*.npz")}
        numbers = sorted(settings["num_samples"] for settings in found.values())
        check(numbers == [3, 4, 5], f"the sets have {numbers} samples")
        self.is_whole(folder, "plain")

    def two_samplers_of_the_same_settings(self, folder):
        self.finished(folder)
        command = ["--mode=sample", "--number=3", "--name=both"]
        codes = [p.end(0, 2) for p in [Process(folder, *command) for _ in range(2)]]
        check(0 in codes, f"exit codes {codes}")
        check(settings_of(folder, "both")["num_samples"] == 3, "other settings")
        self.is_whole(folder, "plain")


def trial_names():
    """The interleavings, in the order of the class."""
    helpers = ("alone", "is_whole", "at_once", "beside", "killed", "finished")
    return [name for name in vars(Trials) if not name.startswith("_") and name not in helpers]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--number", type=int, default=20, help="number of interleavings")
    parser.add_argument("--only", help="part of the names of those to run")
    options = parser.parse_args()
    names = [name for name in trial_names() if (options.only or "") in name][: options.number]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        for name in names:
            begun = time.monotonic()
            try:
                getattr(trials, name)(Path(folder) / name)
                verdict = "nothing lost or mixed"
            except Wrong as error:
                wrong += 1
                verdict = f"WRONG: {error}"
            print(f"{name}: {verdict} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(names)} interleavings: {len(names) - wrong} right, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
