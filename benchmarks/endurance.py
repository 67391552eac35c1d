"""Memory, threads and open files of one long training run, which must stay flat.

    python benchmarks/endurance.py --steps=20000 [--trim]

Trains a small perceptron on the digits, streamed from the host, with losses, held-out losses,
checkpoints, best checkpoints and previews, in a process of its own, and reads the process's
memory, threads and descriptors from /proc every second. Prints their medians and maxima in four
quarters of the steps. Fails if the last quarter's maximum exceeds the second quarter's: memory by
more than 5 % and 20 MB, threads and descriptors by more than 2.

With --trim, a thread in the process collects unreachable objects and returns freed memory to the
system once per second (malloc_trim of glibc), which leaves the memory that the program holds.
Without it, the readings include what Python has not collected and what the allocator keeps.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "model.name": "mlp",
    "model.hidden": "(32,)",
    "data.labels": False,
    "data.label_dropout": 0.0,
    "data.device_megabytes": 0,
    "noise.num_levels": 4,
    "training.batch_size": 32,
    "training.log_every": 100,
    "training.eval_every": 500,
    "training.checkpoint_every": 500,
    "training.preview_every": 1000,
    "training.metric_samples": 0,
    "sampling.num_samples": 32,
    "sampling.batch_size": 32,
    "sampling.num_steps": 20,
    "sampling.num_frames": 2,
}
TRIMMING = """
import ctypes, gc, sys, threading, time
from score_jax.cli.main import main

def trim():
    while True:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        time.sleep(1.0)

threading.Thread(target=trim, daemon=True).start()
sys.exit(main())
"""
"""The command with a thread that collects garbage and returns freed memory."""
NAMES = ("memory MB", "threads", "descriptors")


def measured(process):
    """Memory in MB, threads and descriptors of a process; None once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000
        threads = int(re.search(r"Threads:\s+(\d+)", status)[1])
        return memory, threads, len(list(Path(f"/proc/{process}/fd").iterdir()))
    except (OSError, TypeError):
        return None


def newest_step(folder):
    """The step of the newest checkpoint; 0 before the first."""
    names = [path.name for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return max(map(int, names), default=0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="between two readings")
    parser.add_argument(
        "--trim", action="store_true", help="collect garbage and return freed memory"
    )
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="score_jax_endurance_")) / "run"
    program = ["-c", TRIMMING] if arguments.trim else [str(ROOT / "main.py")]
    line = [sys.executable, *program, "--config=digits", f"--workdir={folder}"]
    line += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    line += [f"--config.training.num_steps={arguments.steps}"]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)

    # Readings with the step of the newest checkpoint, until the last one is written.
    rows = []
    while process.poll() is None:
        step, reading = newest_step(folder), measured(process.pid)
        if 0 < step < arguments.steps and reading is not None:
            rows.append((step, *reading))
        time.sleep(arguments.seconds)
    if process.returncode:
        print(f"the run ended with exit code {process.returncode}")
        return 1
    table = np.array(rows, float)
    quarter = np.minimum(4 * table[:, 0] // arguments.steps, 3)

    print(f"{len(table)} readings over {arguments.steps} steps, by quarters: median (maximum)")
    wrong = 0
    for i, name in enumerate(NAMES, start=1):
        parts = [table[quarter == q, i] for q in range(4)]
        shown = ", ".join(f"{np.median(part):.0f} ({part.max():.0f})" for part in parts)
        second, last = parts[1].max(), parts[3].max()
        allowed = max(1.05 * second, second + 20) if i == 1 else second + 2
        wrong += last > allowed
        print(f"{name}: {shown}{'' if last <= allowed else '   GROWS'}")
    print(f"{len(NAMES)} quantities, {wrong} that grow")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
