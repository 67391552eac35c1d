"""Everything that is to be measured on a GPU, in stages that also run separately.

    bash benchmarks/gpu.sh OUT                            all stages, within 25 minutes
    bash benchmarks/gpu.sh OUT correctness speed          some of them
    bash benchmarks/gpu.sh OUT cifar10 --data="cifar10_*.zip" --minutes=1,5 --total=540
    bash benchmarks/gpu.sh OUT --tiny                     a rehearsal on a CPU

gpu.sh prepares the environment. Every stage runs in a process of its own and writes OUT/STAGE.json
after every part. If it fails or exceeds its budget, the parts before are kept and the other stages
still run; OUT/summary.json has the status of each. The exit code is 1 if one failed. docs/gpu.md
lists the figures.
"""

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Stage(NamedTuple):
    """A part of the measurements.

    Attributes:
        meaning: One line.
        budget: Seconds after which it is ended.
        flags: XLA flags of its process.
    """

    meaning: str
    budget: int
    flags: str = ""


STAGES = {
    "correctness": Stage(
        "scores of the golden files, the same bits twice, batch sizes, bfloat16",
        300,
        "--xla_gpu_deterministic_ops=true",
    ),
    "speed": Stage("sampling and training beside PyTorch, and utilisation", 420),
    "profile": Stage("memory, and the ten operations that take the most time", 120),
    "quality": Stage("the digits job in float32 and bfloat16, with metrics", 210),
    "cifar10": Stage("training on CIFAR-10, with metrics after some minutes", 1500),
}


def parse() -> argparse.Namespace:
    """The command line.

    Raises:
        SystemExit: If it cannot be used.
    """
    stages = "\n".join(f"  {name:12} {stage.meaning}" for name, stage in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="gpu.sh",
        description=f"{__doc__}\nstages:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("out", type=Path, help="folder of the JSON files and pictures")
    add("stages", nargs="*", metavar="STAGE", help=f"any of {', '.join(STAGES)}; default: all")
    add("--data", help="CIFAR-10: zip archives, as config.data.path of the source zip, or an .npz")
    add("--config", default="cifar10", help="config of the stage cifar10")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="a setting of that config, such as model.width=64; can be repeated",
    )
    add("--minutes", default="1,5,10,20", help="training time after which samples are judged")
    add("--dtype", default="float32,bfloat16", help="precisions of speed and profile")
    add("--rounds", type=int, default=5, help="rounds of speed")
    add("--total", type=float, default=1500, help="seconds for all stages together")
    add(
        "--budget",
        default="",
        help="seconds per stage, such as speed=300,quality=100; default: "
        + ",".join(f"{name}={stage.budget}" for name, stage in STAGES.items()),
    )
    add("--tiny", action="store_true", help="tiny sizes, on any device")
    add("--scratch", type=Path, required=True, help="folder of what is not a result")
    options = parser.parse_args()
    options.stages = options.stages or list(STAGES)
    for name in [*options.stages, *budgets(options.budget)]:
        if name not in STAGES:
            parser.error(f"{name} is no stage: choose among {', '.join(STAGES)}")
    return options


def budgets(text: str) -> dict[str, float]:
    """The budgets that "speed=300,quality=100" gives."""
    pairs = (each.partition("=") for each in text.split(",") if each)
    return {name: float(seconds) for name, _, seconds in pairs}


def missing_packages() -> list[str]:
    """Packages of requirements.txt that cannot be imported here."""
    own = {"orbax-checkpoint": "orbax.checkpoint", "pillow": "PIL", "absl-py": "absl"}
    lines = (HERE.parent / "requirements.txt").read_text().split()
    packages = [re.split(r"[<>=\[]", line)[0] for line in lines]
    missing = []
    for package in packages:
        try:
            found = importlib.util.find_spec(own.get(package, package.replace("-", "_")))
        except ModuleNotFoundError:
            found = None
        if found is None:
            missing.append(package)
    return missing


def run(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Runs a stage, for at most so many seconds; how it ended."""
    settings = {key: value for key, value in vars(options).items() if key != "stages"}
    settings |= {"seconds": seconds, "out": str(options.out), "scratch": str(options.scratch)}
    environment = dict(os.environ)
    flags = [environment.get("XLA_FLAGS", ""), STAGES[name].flags]
    environment["XLA_FLAGS"] = " ".join(filter(None, flags))
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "gpu_stages.py"), name, json.dumps(settings)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that processes of the stage end with it
    )
    last = collections.deque(maxlen=30)

    def show():
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line.rstrip()[-500:])

    reader = threading.Thread(target=show, daemon=True)
    reader.start()
    try:
        code = process.wait(seconds)
        status = "done" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "over budget"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
    ended = {"status": status, "seconds": round(time.monotonic() - begun, 1), "budget": seconds}
    if status != "done":
        ended["last_lines"] = list(last)
    return ended


def main() -> int:
    """Runs the stages; the exit code."""
    options = parse()
    begun = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    own = budgets(options.budget)
    file = options.out / "summary.json"
    summary = json.loads(file.read_text()) if file.is_file() else {"stages": {}}
    summary["missing_packages"] = missing_packages()
    if summary["missing_packages"]:
        print(f"not installed here: {', '.join(summary['missing_packages'])}")

    # A signal ends the stage as well, which runs in a session of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for name in options.stages:
        left = options.total - (time.monotonic() - begun)
        seconds = min(own.get(name, STAGES[name].budget), left)
        if name == "cifar10" and options.data is None:
            ended = {"status": "skipped", "reason": "there is no --data"}
        elif seconds < 5:
            ended = {"status": "failed", "reason": f"no time is left of --total={options.total:g}"}
        else:
            print(f"\n== {name}: {STAGES[name].meaning} (at most {seconds:.0f} s)", flush=True)
            ended = run(name, options, round(seconds, 1))
        print(f"== {name}: {ended['status']} after {ended.get('seconds', 0):.0f} s", flush=True)
        summary["stages"][name] = ended
        file.write_text(json.dumps(summary, indent=1))

    statuses = {name: summary["stages"][name]["status"] for name in options.stages}
    print(f"\n{options.out}: {', '.join(f'{name} {status}' for name, status in statuses.items())}")
    return 0 if {*statuses.values()} <= {"done", "skipped"} else 1


if __name__ == "__main__":
    sys.exit(main())
