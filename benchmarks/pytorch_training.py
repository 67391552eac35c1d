"""NCSN with the published recipe in plain PyTorch, a contestant of benchmarks/time_to_quality.py.

    python benchmarks/pytorch_training.py mnist folder --num_steps=1000   trains up to this step
    python benchmarks/pytorch_training.py mnist folder --images=100       times its sampler

Song & Ermon (2019): Adam with rate 1e-3, batches of 128, noise levels in geometric progression
from 1 to 0.01, one drawn uniformly per example. Eager, float32, on all cores; images are
dequantised as in configs/mnist.py. `folder` holds initial.npz, the official state dict to begin
with, whose shapes give the width and the number of levels. Training writes

    state.pt        network, optimizer and random numbers, from which a later call continues
    network.npz     the official state dict
    metrics.json    seconds of training so far, without imports and loading, as score_jax writes it

and prints "trained in" once they are on disk. JAX is not imported: the start of this process is
that of a program that uses PyTorch alone.
"""

import argparse
import gzip
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from pytorch import NCSN

BATCH, RATE = 128, 1e-3
STEP_SIZE, STEPS = 2e-5, 100
TIMED_STEPS = 10
"""Langevin steps per level that are timed, of `STEPS`."""


def read_images(folder: str) -> torch.Tensor:
    """The training images of MNIST's idx files, uint8 [examples, 1, height, width]."""
    [file] = sorted(Path(folder).expanduser().glob("train-images*idx3-ubyte*"))[:1]
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    number, height, width = np.frombuffer(content, ">i4", 3, offset=4)
    pixels = np.frombuffer(content, np.uint8, offset=16)
    return torch.tensor(pixels.reshape(number, 1, height, width))


def read_network(file: Path) -> tuple[NCSN, torch.Tensor]:
    """The network of an official state dict, and its noise levels."""
    with np.load(file) as arrays:
        state = {name: torch.tensor(arrays[name]) for name in arrays.files}
    width, channels = state["begin_conv.weight"].shape[:2]
    num_levels = len(state["normalizer.embed.weight"])
    net = NCSN(width, channels, num_levels)
    net.load_state_dict(state)
    return net, torch.tensor(np.geomspace(1.0, 0.01, num_levels), dtype=torch.float32)


def loss_of(net: NCSN, sigmas: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The denoising objective of uint8 images, a mean over examples."""
    x = (images + torch.rand(images.shape)) / 256
    level = torch.randint(len(sigmas), (len(x),))
    sigma, z = sigmas[level][:, None, None, None], torch.randn(x.shape)
    return 0.5 * (sigma * net(x + sigma * z, level) + z).square().sum((1, 2, 3)).mean()


def train(data: str, folder: Path, num_steps: int) -> None:
    """Trains from the saved state, or from the beginning, up to a step, and saves the state."""
    images = read_images(data)
    net, sigmas = read_network(folder / "initial.npz")
    adam = torch.optim.Adam(net.parameters(), RATE)
    first, seconds = 0, 0.0
    torch.manual_seed(0)
    if (folder / "state.pt").exists():
        saved = torch.load(folder / "state.pt")
        net.load_state_dict(saved["net"])
        adam.load_state_dict(saved["adam"])
        torch.set_rng_state(saved["random"])
        first, seconds = saved["step"], saved["seconds"]

    begun = time.monotonic()
    for step in range(first, num_steps):
        loss = loss_of(net, sigmas, images[torch.randint(len(images), (BATCH,))])
        adam.zero_grad()
        loss.backward()
        adam.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{num_steps}  loss {loss.item():.4g}", flush=True)

    # A file appears whole, and state.pt, which a later call continues from, at the end.
    arrays = {name: value.numpy() for name, value in net.state_dict().items()}
    np.savez(folder / "network.npz", **arrays)
    seconds += time.monotonic() - begun
    state = {"net": net.state_dict(), "adam": adam.state_dict(), "random": torch.get_rng_state()}
    torch.save(state | {"step": num_steps, "seconds": seconds}, folder / "state.tmp")
    (folder / "metrics.json").write_text(json.dumps({"seconds": {"train": seconds}}))
    (folder / "state.tmp").replace(folder / "state.pt")
    print(f"trained in {seconds:.1f} s", flush=True)


@torch.no_grad()
def seconds_per_1000(data: str, folder: Path, number: int) -> float:
    """Seconds to draw 1000 images, from a tenth of the steps for `number` images."""
    net, sigmas = read_network(folder / "network.npz")
    x = torch.rand(number, *read_images(data).shape[1:])
    net(x, torch.zeros(number, dtype=torch.long))
    begun = time.monotonic()
    for i, sigma in enumerate(sigmas):
        level, alpha = torch.full((number,), i), STEP_SIZE * (sigma / sigmas[-1]) ** 2
        for _ in range(TIMED_STEPS):
            x = x + alpha * net(x, level) + torch.sqrt(2 * alpha) * torch.randn(x.shape)
    return (time.monotonic() - begun) * (STEPS / TIMED_STEPS) * (1000 / number)


def main() -> None:
    """Trains, or prints the seconds of sampling."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="folder of MNIST's idx files")
    parser.add_argument("folder", type=Path)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--num_steps", type=int)
    task.add_argument("--images", type=int)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.num_steps:
        train(args.data, args.folder, args.num_steps)
    else:
        print(seconds_per_1000(args.data, args.folder, args.images))


if __name__ == "__main__":
    main()
