"""The process of one stage of benchmarks/gpu.sh, which starts it.

    python gpu_stages.py STAGE '{"out": ..., "seconds": ..., ...}'

A stage writes its JSON file again after every part. `Record` holds the file's content, and checks:
figures with bounds that decide about the exit code.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax

from score_jax.cli.workdir import write_json
from score_jax.devices import described

BEGUN = time.monotonic()
FUNCTIONS = {
    "correctness": "gpu_correctness:correctness",
    "speed": "gpu_speed:speed",
    "profile": "gpu_speed:profile",
    "quality": "gpu_training:quality_stage",
    "cifar10": "gpu_training:cifar10",
}
PEAKS = {
    "H100 PCIe": (756, 378),
    "H100 NVL": (835, 417),
    "H100": (989, 494),
    "H200": (989, 494),
    "A100": (312, 156),
    "L40S": (362, 183),
    "L4": (121, 60),
}
"""Part of a card's name -> TFLOP/s in bfloat16 and TF32, dense, as its data sheet has them."""


class Record:
    """The content of a stage's JSON file.

    Attributes:
        options: The flags of the command.
        content: What `write` writes.
        wrong: Names of the checks that failed.
    """

    def __init__(self, name: str, options: argparse.Namespace):
        self.options = options
        self.content: dict[str, Any] = {"about": about(), "complete": False}
        self.wrong: list[str] = []
        self._path = Path(options.out) / f"{name}.json"

    @property
    def seconds_left(self) -> float:
        """Seconds until the stage is ended."""
        return self.options.seconds - (time.monotonic() - BEGUN)

    def picture(self, name: str) -> Path:
        """Path of a picture."""
        return self._path.with_name(name)

    def write(self, **parts: Any) -> None:
        """Adds parts and writes the file."""
        self.content |= parts
        write_json(self._path, self.content)

    def check(self, name: str, value: float, bound: float) -> None:
        """Adds a figure that must be at most `bound`, and writes the file."""
        right = bool(value <= bound)  # False for NaN
        seconds = time.monotonic() - BEGUN
        verdict = "" if right else "WRONG"
        print(f"  {seconds:4.0f} s  {name}: {value:.2g}, at most {bound:g} {verdict}", flush=True)
        if not right:
            self.wrong.append(name)
        checks = self.content.setdefault("checks", {})
        checks[name] = {"value": float(value), "bound": bound, "right": right, "after": seconds}
        self.write()


def about() -> dict[str, Any]:
    """The devices and versions."""
    device = jax.local_devices()[0]
    versions = {}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", "torch"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "devices": described(jax.local_devices()),
        "platform": device.platform,
        "python": platform.python_version(),
        "versions": versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "peak_tflops": {dtype: peak(device.device_kind, dtype) for dtype in ("bfloat16", "tf32")},
    }


def peak(kind: str, dtype: str) -> float | None:
    """TFLOP/s of a card in bfloat16 or TF32, which float32 uses; None for an unknown card."""
    found = next((peaks for name, peaks in PEAKS.items() if name in kind), None)
    return None if found is None else float(found[0 if dtype == "bfloat16" else 1])


def main() -> int:
    """Runs the stage; the exit code."""
    name, options = sys.argv[1], argparse.Namespace(**json.loads(sys.argv[2]))
    found = jax.local_devices()[0].platform
    if found != "gpu" and not options.tiny:
        print(f"JAX finds no GPU, but a device of the platform {found}: --tiny rehearses on it")
        return 1
    # Compilation takes most of the time of a rehearsal.
    jax.config.update("jax_disable_most_optimizations", options.tiny)
    record = Record(name, options)
    record.write()
    module, _, function = FUNCTIONS[name].partition(":")
    getattr(importlib.import_module(module), function)(record)
    record.write(complete=True, seconds=time.monotonic() - BEGUN)
    if record.wrong:
        print(f"out of bounds: {', '.join(record.wrong)}")
    return 1 if record.wrong else 0


if __name__ == "__main__":
    # The other modules import this one by its name.
    sys.modules["gpu_stages"] = sys.modules["__main__"]
    sys.exit(main())
