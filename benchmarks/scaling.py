"""Communication of one training step: counted in the compiled program, and modelled at scale.

    python benchmarks/scaling.py --config=cifar10

Compiles the training step of a config for two CPU devices, lists the collectives in its text, and
prints the time that a ring all-reduce of their bytes takes on 8, 64 and 512 devices:

    seconds = 2 (n - 1) / n * bytes / bandwidth + 2 (n - 1) * latency

The program of a TPU or GPU has the same all-reduces, which XLA may merge further.
"""

import argparse
import re
import sys

import jax
import numpy as np

from score_jax.cli import build
from score_jax.cli.config_files import load_config
from score_jax.devices import feed, replicate
from score_jax.fitting import compile_steps, initial_params
from score_jax.noise import geometric_sigmas

LINKS = {
    "TPU v5e, ICI (one ring over both directions)": (90e9, 1e-6),
    "H100, NVLink within a host": (450e9, 3e-6),
    "H100, 400 Gb/s per GPU between hosts": (50e9, 8e-6),
    "25 Gb/s Ethernet per host, shared by 8 devices": (25e9 / 8 / 8, 30e-6),
}
"""Kind of link -> bytes per second of each device in a ring, and seconds per message.

Bandwidths are those of data sheets; latencies are typical orders of magnitude.
"""
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
COUNTS = (8, 64, 512)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(text):
    """(kind, bytes of the result) of every collective in the text of a compiled program."""
    found = []
    for line in text.splitlines():
        match = re.search(rf" = (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line)
        if match is None:
            continue
        num_bytes = 0
        for name, shape in re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", match[1]):
            lengths = [int(length) for length in shape.split(",") if length]
            num_bytes += SIZES[name] * int(np.prod(lengths, dtype=np.int64))
        found.append((match[2], num_bytes))
    return found


def ring_seconds(num_bytes, num_messages, number, bandwidth, latency):
    """Time of ring all-reduces of this many bytes in all, in this many messages."""
    return 2 * (number - 1) * (num_bytes / number / bandwidth + num_messages * latency)


def compiled_step(config):
    """The compiled training step of a config for two devices, and its number of parameters."""
    devices = jax.devices()[:2]
    size, channels = config["data"]["size"], config["data"]["channels"]
    sigmas = geometric_sigmas(**config["noise"])
    model = build.build_model(config["model"], sigmas, None, config["data"])
    trainer = build.build_trainer(config, None, model, sigmas)
    x = np.zeros((8, size, size, channels), np.uint8)
    state = jax.eval_shape(lambda: trainer.init(initial_params(trainer, x)))
    number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    source = feed((x,), devices, resident=True)
    step = compile_steps(trainer, source, replicate(zeros, devices), devices, 4, 1)
    return step.compiled.as_text(), number


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar10", help="a published config of images")
    parser.add_argument("--width", type=int, help="number of features of the first layers")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)  # They do not change what is sent.
    config = load_config(arguments.config)
    config["data"] |= {"labels": False, "label_dropout": 0.0}
    if arguments.width:
        config["model"]["width"] = arguments.width

    text, num_parameters = compiled_step(config)
    found = collectives(text)
    total = sum(num_bytes for _, num_bytes in found)
    print(f"{arguments.config}, width {config['model']['width']}: {num_parameters:,} parameters")
    print(f"compiled step: {len(found)} collectives, {total / 1e6:.3f} MB in all")
    for kind in sorted({kind for kind, _ in found}):
        sizes = [num_bytes for each, num_bytes in found if each == kind]
        largest = max(sizes) / 1e6
        print(f"  {len(sizes)} x {kind}, the largest {largest:.3f} MB")

    print(f"\n| link | {' | '.join(f'{n} devices' for n in COUNTS)} |")
    print("| --- " * (len(COUNTS) + 1) + "|")
    for name, (bandwidth, latency) in LINKS.items():
        seconds = [ring_seconds(total, len(found), n, bandwidth, latency) for n in COUNTS]
        print(f"| {name} | {' | '.join(f'{1e3 * each:.2f} ms' for each in seconds)} |")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
