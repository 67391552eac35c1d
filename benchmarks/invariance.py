"""Table of invariance: the same seed on several devices, batch sizes, processes and after a stop.

    python benchmarks/invariance.py

Trains a small U-Net on the digits on one device, and samples from it with 1, 2, 4 and 8 devices
and three batch sizes, and in two processes; trains it again on each number of devices, in two
processes and with an interruption. Prints, for each, the largest difference of the samples and of
the losses from those of one device, and fails if one exceeds the bound of docs/reproducibility.md.
Every row is a run of the command in processes of its own. `--quick` leaves out most rows.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SAMPLE_BOUND = 1e-3
"""Largest difference between samples in [0, 1], one of which follows another order of sums."""
LOSS_BOUND = 1e-4
"""Largest relative difference between losses of the first hundred steps."""
TRAINING = [
    "--config=digits",
    "--config.model.width=8",
    "--config.noise.num_levels=6",
    "--config.training.num_steps=100",
    "--config.training.batch_size=32",
    "--config.training.log_every=10",
    "--config.training.eval_every=50",
    "--config.training.eval_batches=2",
    "--config.training.checkpoint_every=50",
    "--config.training.keep_checkpoints=10",
    "--config.training.preview_every=none",
    "--config.training.metric_samples=0",
    "--config.training.keep_best=0",
    "--config.optim.warmup_steps=10",
    "--config.sampling.num_frames=2",
    "--config.sampling.num_samples=48",
    "--config.sampling.batch_size=16",
    "--config.sampling.num_steps=20",
]
ENVIRONMENT = {"NPROC": "32", **os.environ}
"""Collectives of several CPU devices on few cores need more threads than cores."""
DEVICES, BATCHES = (1, 2, 4, 8), (8, 16, 48)


def run(folder, *flags, processes=1, devices=1):
    """Runs the command, in one process or several; raises if it fails."""
    lines = [[sys.executable, "-m", "score_jax", f"--workdir={folder}", f"--devices={devices}"]]
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        together = [f"--coordinator={address}", f"--num_processes={processes}"]
        lines = [[*lines[0], *together, f"--process_id={i}"] for i in range(processes)]
    started = [
        subprocess.Popen([*line, *flags], env=ENVIRONMENT, stdout=-1, stderr=subprocess.STDOUT)
        for line in lines
    ]
    shown = [each.communicate()[0].decode(errors="replace") for each in started]
    if any(each.returncode for each in started):
        raise RuntimeError("\n".join(shown))


def stopped_run(folder, step, devices):
    """Trains until the checkpoint of a step is there, and stops by SIGTERM."""
    line = [sys.executable, "-m", "score_jax", f"--workdir={folder}", f"--devices={devices}"]
    line += TRAINING
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=nowhere, stderr=nowhere)
    while not (folder / "checkpoints" / str(step)).is_dir() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError(f"the run ended with exit code {process.returncode} at SIGTERM")


def samples(folder, name="samples"):
    with np.load(Path(folder, f"{name}.npz"), allow_pickle=False) as file:
        return file["samples"]


def losses(folder):
    log = json.loads(Path(folder, "metrics.json").read_text())
    return np.array([loss for name in ("train_loss", "held_out_loss") for _, loss in log[name]])


def difference(ours, theirs):
    """The largest difference, or "same bits"."""
    largest = float(np.abs(ours - theirs).max())
    return ("same bits" if np.array_equal(ours, theirs) else f"{largest:.1e}"), largest


def sampling_row(base, reference, devices, batch, processes=1):
    name = f"d{devices}_b{batch}_p{processes}"
    run(
        base,
        "--mode=sample",
        f"--name={name}",
        f"--config.sampling.batch_size={batch}",
        devices=devices,
        processes=processes,
    )
    return difference(samples(base, name), reference)


def training_row(folder, base, devices, processes=1, stop=None):
    """Differences of losses and samples from those of one device."""
    if stop:
        stopped_run(folder, stop, devices)
    run(folder, *TRAINING, devices=devices, processes=processes)
    ours, theirs = losses(folder), losses(base)
    if stop:  # The step at which it was stopped has a loss of its own.
        ours, theirs = ours[-1:], theirs[-1:]
    relative = float((np.abs(ours - theirs) / np.abs(theirs)).max())
    shown = "same bits" if np.array_equal(ours, theirs) else f"{relative:.1e}"
    return shown, relative, *difference(samples(folder), samples(base))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only two devices, one batch size")
    parser.add_argument("--folder", help="folder of the runs; by default a temporary one")
    arguments = parser.parse_args()
    quick = arguments.quick
    work = Path(arguments.folder or tempfile.mkdtemp(prefix="score_jax_invariance_"))
    base = work / "base"
    run(base, *TRAINING)
    reference = samples(base)
    wrong = rows = 0

    print("| samples of one network | batch size | largest difference from 1 device, batch 16 |")
    print("| --- | --- | --- |")
    cases = [(d, b, 1) for d in DEVICES for b in BATCHES] + [(2, b, 2) for b in BATCHES]
    for devices, batch, processes in [(2, 16, 1), (1, 16, 2)] if quick else cases:
        shown, largest = sampling_row(base, reference, devices, batch, processes)
        wrong, rows = wrong + (largest > SAMPLE_BOUND), rows + 1
        where = f"{devices} device{'s' if devices > 1 else ''}"
        where = f"{processes} processes x {where}" if processes > 1 else where
        print(f"| {where} | {batch} | {shown} |", flush=True)

    print("\n| training and sampling | losses, relative | samples |")
    print("| --- | --- | --- |")
    cases = [
        ("1 device again", 1, 1, None),
        ("2 devices", 2, 1, None),
        ("4 devices", 4, 1, None),
        ("8 devices", 8, 1, None),
        ("2 processes x 2 devices", 2, 2, None),
        ("1 device, stopped at step 50 and continued", 1, 1, 50),
    ]
    for i, (label, devices, processes, stop) in enumerate(cases[:2] if quick else cases):
        loss, relative, sample, largest = training_row(
            work / f"run{i}", base, devices, processes, stop
        )
        exact = label in (cases[0][0], cases[-1][0])
        bad = relative > LOSS_BOUND or largest > SAMPLE_BOUND
        bad = bad or (exact and (loss, sample) != ("same bits", "same bits"))
        wrong, rows = wrong + bad, rows + 1
        print(f"| {label} | {loss} | {sample} |", flush=True)
    print(f"\n{rows} rows, {wrong} beyond the bound")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
