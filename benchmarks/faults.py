#!/usr/bin/env python3
"""Kills, stops and starves the command, and counts the runs that end with the same bits.

    python benchmarks/faults.py [--kills 100] [--only train,save] [--seed 0] [--folder FOLDER]

Of 100 kills (SIGKILL), in proportion for other numbers:

    train      30 at random moments of training on one device, importing and compiling included
    save       20 while a checkpoint is being written
    sample     20 while samples are written in shards
    devices    20 at random moments of training on two CPU devices
    hosts      10 of one of two hosts, after which the other one must end within a minute, unless
               they had not met yet

After each kill, every checkpoint and every shard that is found is compared bit for bit with that
of a run that was never disturbed. The same command then goes on, to be killed again or to end with
the samples of the undisturbed run. A kill counts as an exact recovery if both are the same.

    signals    SIGTERM, SIGHUP and SIGINT while importing, compiling, training and sampling: the
               exit code, the seconds until it, and the bits after the same command again
    disk       full and gone while training, full while sampling, read-only checkpoints: one
               sentence, and the bits after the same command again; needs root for small disks

The last line holds the counts. The exit code is 1 if any is wrong.
"""

import argparse
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax.checkpoint import Checkpoints
from score_jax.cli.flags import parse
from score_jax.cli.run import open_run

ROOT = Path(__file__).resolve().parents[1]
SHARES = {"train": 30, "save": 20, "sample": 20, "devices": 20, "hosts": 10}
"""Kills of each kind, of 100."""
HOSTS = 2
"""Processes of a job of several hosts, which meet on the loopback."""
LONGEST_WAIT = 60.0
"""Seconds within which the other hosts must end after one is killed."""
NUM_STEPS, EVERY = 400, 20
NUMBER, CHAINS = 480, 12
"""Samples of a set, and chains per shard."""
SETTINGS = {
    "model.name": "mlp",
    "model.hidden": "(16,)",
    "data.labels": False,
    "data.label_dropout": 0.0,
    "noise.num_levels": 4,
    "training.num_steps": NUM_STEPS,
    "training.batch_size": 32,
    "training.log_every": 20,
    "training.eval_every": 100,
    "training.eval_batches": 1,
    "training.steps_per_call": 7,
    "training.checkpoint_every": EVERY,
    "training.preview_every": "none",
    "training.metric_samples": 0,
    "sampling.num_samples": 24,
    "sampling.batch_size": 16,
    "sampling.num_steps": 40,
    "sampling.num_frames": 3,
}
PROGRAM = f"""
import sys
from score_jax.cli import main, interrupts
interrupts.exit_on_signals()
from score_jax.cli import shards
shards.MOST_CHAINS = {CHAINS}
sys.exit(main.main())
"""
"""The command with small shards."""
PATIENCE = 240.0
"""Longest time of one process, in seconds."""


@dataclasses.dataclass
class Job:
    """Processes of one command, one per host; their output goes to files.

    Attributes:
        processes: The processes.
        output: File of their output.
        began: Time of the start.
    """

    processes: list[subprocess.Popen]
    output: Path
    began: float

    def running(self) -> bool:
        """True until a process has ended."""
        return all(process.poll() is None for process in self.processes)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal to all processes."""
        for process in self.processes:
            process.send_signal(number)

    def wait(self) -> int:
        """The exit code of the first process; all are killed after `PATIENCE` seconds."""
        for process in self.processes:
            try:
                process.wait(max(1.0, self.began + PATIENCE - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
                process.wait()
        return self.processes[0].returncode

    def text(self) -> str:
        """The output so far."""
        return self.output.read_text(errors="replace")

    def until(self, found: Callable[[], bool]) -> bool:
        """Waits until something is found or a process ends; True if it is found."""
        while self.running() and time.monotonic() < self.began + PATIENCE:
            if found():
                return True
            time.sleep(0.002)
        return False


class Trials:
    """The reference runs, the folder of the trials and the counts.

    Args:
        folder: Folder for everything that is written.
        seed: Seed of the moments.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = random.Random(seed)
        self.tracebacks = 0
        self.failures: list[str] = []
        self._states: dict[str, dict[int, list[np.ndarray]]] = {}
        self._number = 0

    def start(self, workdir: Path, *flags: str, kind: str = "train") -> Job:
        """Starts the command in a workdir."""
        self._number += 1
        output = self.folder / f"output_{self._number}.txt"
        hosts = host_flags() if kind == "hosts" else [[]]
        devices = 2 if kind == "devices" else 1
        common = [f"--workdir={workdir}", f"--cache={self.folder / 'cache'}"]
        common += [f"--devices={devices}", *flags]
        if kind != "sample" and not any(flag.startswith("--mode") for flag in flags):
            common += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        processes = []
        with output.open("wb") as file:
            for host in hosts:
                line = [sys.executable, "-c", PROGRAM, *common, *host]
                processes.append(
                    subprocess.Popen(
                        line, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
                    )
                )
        return Job(processes, output, time.monotonic())

    def ended(self, job: Job, expected: int | None = 0) -> int:
        """Waits for a job, counts its tracebacks, and notes an exit code that is not expected."""
        code = job.wait()
        text = job.text()
        self.tracebacks += text.count("Traceback (most recent call last)")
        if expected is not None and code != expected:
            self.fail(f"exit code {code} instead of {expected}: {text[-400:]}")
        return code

    def fail(self, reason: str) -> None:
        """Notes and prints a failure."""
        self.failures.append(reason)
        print(f"WRONG: {reason}", flush=True)

    def reference(self, kind: str) -> Path:
        """The undisturbed run of a kind, which keeps all of its checkpoints."""
        kind = kind if kind in ("devices", "hosts") else "train"
        workdir = self.folder / f"reference_{kind}"
        if not workdir.exists():
            self.ended(self.start(workdir, "--config.training.keep_checkpoints=1000", kind=kind))
        if kind == "train" and not (workdir / "many.npz").exists():
            self.ended(self.start(workdir, *flags_of("sample")))
        return workdir

    def states(self, workdir: Path) -> dict[int, list[np.ndarray]]:
        """The arrays of all checkpoints of a workdir; a damaged one is a failure."""
        if not (workdir / "config.json").exists():
            return {}
        like = open_run(
            parse(["--mode=sample", f"--workdir={self.folder / 'reference_train'}"]),
            jax.local_devices()[:1],
        ).state_shape
        checkpoints = Checkpoints(workdir / "checkpoints", keep=None)
        found = {}
        for step in checkpoints.steps():
            try:
                found[step] = jax.tree.leaves(checkpoints.restore(like, step)[1])
            except ValueError as error:
                self.fail(f"{workdir} step {step}: {error}")
        return found

    def same_checkpoints(self, workdir: Path, kind: str) -> bool:
        """True if all checkpoints of a workdir have the bits of the undisturbed run."""
        kind = kind if kind in ("devices", "hosts") else "train"
        if kind not in self._states:
            self._states[kind] = self.states(self.reference(kind))
        failures = len(self.failures)
        for step, leaves in self.states(workdir).items():
            # Steps that a signal saved are between those of the reference.
            if step % EVERY:
                continue
            wanted = self._states[kind][step]
            if not all(map(np.array_equal, leaves, wanted)):
                self.fail(f"{workdir}: step {step} differs from the undisturbed run")
        return len(self.failures) == failures

    def same_shards(self, workdir: Path) -> bool:
        """True if all shards of a workdir hold samples of the undisturbed set."""
        wanted = arrays(self.reference("train") / "many.npz")["samples"]
        failures = len(self.failures)
        for path in sorted((workdir / "many.shards").glob("[0-9]*.npz")):
            first = int(path.stem) * CHAINS
            if not np.array_equal(arrays(path)["samples"], wanted[first : first + CHAINS]):
                self.fail(f"{path} differs from the undisturbed set")
        return len(self.failures) == failures

    def same_end(self, workdir: Path, kind: str, name: str = "samples") -> bool:
        """True if a run has ended as the undisturbed one."""
        same = self.same_checkpoints(workdir, kind)
        wanted = arrays(self.reference(kind) / f"{name}.npz")
        found = arrays(workdir / f"{name}.npz")
        for key, array in wanted.items():
            if key not in ("config", "settings") and not np.array_equal(array, found[key]):
                self.fail(f"{workdir}: {key} of {name}.npz differs from the undisturbed run")
                same = False
        if (workdir / f"{name}.shards").exists():
            self.fail(f"{workdir}: {name}.shards is left behind")
            same = False
        return same

    def workdir(self, kind: str) -> Path:
        """A workdir for a new trial: empty, or trained for the trials of sampling."""
        self._number += 1
        folder = self.folder / f"trial_{self._number}_{time.time_ns()}"
        if kind == "sample":
            names = ("config.json", "run.json", "provenance.json", "moments.json", "metrics.json")
            shutil.copytree(self.reference("train"), folder, ignore=_all_but(names))
        return folder


def _all_but(names: Sequence[str]) -> Callable:
    """Lets shutil.copytree copy some files and the newest checkpoint only."""

    def ignored(folder: str, entries: list[str]) -> set[str]:
        if Path(folder).name.startswith("reference_"):
            return set(entries) - {*names, "checkpoints"}
        if Path(folder).name == "checkpoints":
            return set(entries) - {str(NUM_STEPS)}
        return set()

    return ignored


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def host_flags() -> list[list[str]]:
    """The flags of each host of a job of several."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    common = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={HOSTS}"]
    return [[*common, f"--process_id={i}"] for i in range(HOSTS)]


def flags_of(kind: str) -> list[str]:
    """The flags of the command of a kind."""
    return ["--mode=sample", f"--number={NUMBER}", "--name=many"] if kind == "sample" else []


def moment(trials: Trials, job: Job, workdir: Path, kind: str) -> bool:
    """Waits for the moment of a kill; False if the job ends before."""
    rng = trials.random
    if kind == "save":
        folder = workdir / "checkpoints"

        def saving() -> bool:
            return folder.is_dir() and any("tmp" in name for name in os.listdir(folder))

        # Any save of this start, not always the first.
        for _ in range(rng.randrange(1, 4)):
            job.until(lambda: not saving())
            if not job.until(saving):
                return False
        time.sleep(rng.uniform(0, 0.02))
        return job.running()
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 4))  # While importing or compiling
        return job.running()
    if kind == "sample":
        folder = workdir / "many.shards"
        before = len(list(folder.glob("[0-9]*.npz")))
        if not job.until(lambda: len(list(folder.glob("[0-9]*.npz"))) > before):
            return False
        time.sleep(rng.uniform(0, 0.1))
        return job.running()
    if not job.until(lambda: "compiled in" in job.text()):
        return False
    time.sleep(rng.uniform(0, 3))
    return job.running()


def kill_trials(trials: Trials, kind: str, wanted: int) -> tuple[int, int]:
    """Kills jobs of a kind; the number of kills and of exact recoveries."""
    kills = exact = 0
    while kills < wanted:
        workdir, pending = trials.workdir(kind), 0
        while True:
            job = trials.start(workdir, *flags_of(kind), kind=kind)
            # The last job goes on to its end.
            if kills < wanted and moment(trials, job, workdir, kind):
                if kind == "hosts":
                    kill_one_host(trials, job)
                else:
                    job.kill()
                trials.ended(job, expected=None)
                if kind == "save" and not list(workdir.glob("checkpoints/*tmp*")):
                    continue  # The save was done a moment before.
                kills += 1
                same = trials.same_shards(workdir) if kind == "sample" else True
                pending += trials.same_checkpoints(workdir, kind) and same
                print(f"{kind}: kill {kills} of {wanted}", flush=True)
                continue
            if trials.ended(job) == 0:
                name = "many" if kind == "sample" else "samples"
                exact += pending if trials.same_end(workdir, kind, name) else 0
            break
        shutil.rmtree(workdir, ignore_errors=True)
    return kills, exact


def kill_one_host(trials: Trials, job: Job) -> None:
    """Kills one process of a job; the others must end by themselves."""
    have_met = "compiling" in job.text()
    trials.random.choice(job.processes).kill()
    killed = time.monotonic()
    if not have_met:  # The other one would wait for it for minutes.
        job.kill()
    while any(process.poll() is None for process in job.processes):
        if time.monotonic() > killed + LONGEST_WAIT:
            trials.fail(f"a host has not ended {LONGEST_WAIT} s after another one")
            job.kill()
            return
        time.sleep(0.05)


def signal_trials(trials: Trials, numbers: Sequence[int]) -> tuple[int, int]:
    """Sends signals at several moments; the number of trials and of correct ones."""
    done = correct = 0
    moments = {
        "importing": lambda job: time.sleep(0.5) or True,
        "compiling": lambda job: job.until(lambda: "compiling" in job.text()),
        "training": lambda job: job.until(lambda: "train " in job.text()),
        "sampling": lambda job: job.until(lambda: "sample " in job.text()),
    }
    for number in numbers:
        for when, wait in moments.items():
            kind = "sample" if when == "sampling" else "train"
            workdir, failures = trials.workdir(kind), len(trials.failures)
            job = trials.start(workdir, *flags_of(kind), kind=kind)
            if not wait(job):
                trials.fail(f"{when}: ended before the signal: {job.text()[-300:]}")
            begun = time.monotonic()
            job.kill(number)
            trials.ended(job, expected=128 + number)
            seconds = time.monotonic() - begun
            said = job.text().strip().splitlines()[-1]
            print(f"{signal.Signals(number).name} while {when}: {seconds:.1f} s: {said}")
            if seconds > 10:
                trials.fail(f"{when}: {seconds:.1f} s until the end")
            if kind == "sample" and "shards are kept" not in said:
                trials.fail(f"{when}: says {said!r}")
            trials.ended(trials.start(workdir, *flags_of(kind), kind=kind))
            trials.same_end(workdir, kind, "many" if kind == "sample" else "samples")
            shutil.rmtree(workdir, ignore_errors=True)
            done += 1
            correct += len(trials.failures) == failures
    return done, correct


def mounted(folder: Path, options: str = "size=60m") -> bool:
    """Mounts a small disk; False if the system does not allow it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fill(folder: Path) -> Path:
    """Fills the disk of a folder; the file that takes its place."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return ballast


DISKS = ("full", "sampling", "read-only", "gone")
"""Trials of the disk; "sampling" is a disk that fills up while samples are written in shards."""


def disk_trials(trials: Trials, names: Sequence[str]) -> tuple[int, int]:
    """Takes the disk away in several ways; the number of trials and of correct ones."""
    done = correct = 0
    for name in names:
        kind = "sample" if name == "sampling" else "train"
        failures = len(trials.failures)
        disk = trials.folder / f"disk_{time.time_ns()}"
        workdir = disk / "run"
        place = workdir / "checkpoints" if name == "read-only" else disk
        if name != "gone" and not mounted(place):
            print(f"disk {name}: skipped, as no small disk can be mounted here")
            continue
        try:
            if kind == "sample":
                shutil.copytree(trials.workdir(kind), workdir)
            job = trials.start(workdir, *flags_of(kind), kind=kind)
            part = workdir / ("many.shards" if kind == "sample" else "checkpoints")
            job.until(lambda part=part: part.is_dir() and len(list(part.glob("[0-9]*"))) > 1)
            release = _take_away(name, disk, workdir)
            trials.ended(job, expected=2)
            said = job.text().strip().splitlines()[-1]
            print(f"disk {name}: {said}", flush=True)
            release()
            trials.ended(trials.start(workdir, *flags_of(kind), kind=kind))
            trials.same_end(workdir, kind, "many" if kind == "sample" else "samples")
        finally:
            if name != "gone":
                subprocess.run(["umount", "-l", str(place)], check=False)
        done += 1
        correct += len(trials.failures) == failures
    return done, correct


def _take_away(name: str, disk: Path, workdir: Path) -> Callable[[], Any]:
    """Makes a disk fail; the function that mends it."""
    if name in ("full", "sampling"):
        return fill(disk).unlink
    if name == "gone":
        while workdir.exists():
            shutil.rmtree(workdir, ignore_errors=True)
        return lambda: None
    remount = ["mount", "-o", "remount,ro", str(workdir / "checkpoints")]
    while subprocess.run(remount, capture_output=True, check=False).returncode:
        time.sleep(0.01)  # A save is writing.
    remount[2] = "remount,rw"
    return lambda: subprocess.run(remount, check=True)


def main() -> int:
    """Runs the trials; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default="", help="kinds of trials, separated by commas")
    parser.add_argument("--signals", default="TERM,HUP,INT")
    parser.add_argument("--disks", default=",".join(DISKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default=None, help="an empty folder, kept afterwards")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else [*SHARES, "signals", "disk"]
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="faults_"))
    folder.mkdir(parents=True, exist_ok=True)
    trials, begun = Trials(folder, arguments.seed), time.monotonic()

    # Processes inherit ignored signals: SIGHUP under nohup, SIGINT of a background job.
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

    # Kills, then signals, then the disk.
    counts: dict[str, tuple[int, int]] = {}
    for kind, share in SHARES.items():
        if kind in chosen:
            counts[kind] = kill_trials(trials, kind, max(1, round(arguments.kills * share / 100)))
    numbers = [getattr(signal, f"SIG{name}") for name in arguments.signals.split(",")]
    if "signals" in chosen:
        counts["signals"] = signal_trials(trials, numbers)
    if "disk" in chosen:
        counts["disk"] = disk_trials(trials, arguments.disks.split(","))
    if not arguments.folder:
        shutil.rmtree(folder, ignore_errors=True)

    kills = [counts[kind] for kind in SHARES if kind in counts]
    parts = [f"{kind} {good} of {all_}" for kind, (all_, good) in counts.items()]
    print(
        f"kills {sum(all_ for all_, _ in kills)}, exact recoveries "
        f"{sum(good for _, good in kills)}, tracebacks {trials.tracebacks} "
        f"({', '.join(parts)}; {time.monotonic() - begun:.0f} s)"
    )
    is_right = all(all_ == good for all_, good in counts.values())
    return 0 if is_right and not trials.tracebacks and not trials.failures else 1


if __name__ == "__main__":
    sys.exit(main())
