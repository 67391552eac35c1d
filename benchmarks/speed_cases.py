"""The cases of benchmarks/speed.py: networks, their inputs, and the size of a measurement."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import score_jax as sj

LAYOUTS = ("eager", "channels_last")
"""The eager modes of PyTorch, one for each memory layout of images."""
NETWORKS = {"ncsn": sj.NCSN, "ncsnv2": sj.NCSNv2, "unet": sj.UNet, "mlp": sj.MLP}
NUM_CLASSES = 10


class Case(NamedTuple):
    """A network, its data, and the size of one measurement.

    Attributes:
        network: Name in `NETWORKS`.
        shape: Shape of one example.
        batch: Examples per step, over all devices.
        fields: Fields of the network.
        sigmas: Arguments of `geometric_sigmas`.
        chain: Langevin steps in a measurement.
        steps: Training steps in a measurement, which are one call.
    """

    network: str
    shape: tuple[int, ...]
    batch: int
    fields: dict[str, Any]
    sigmas: tuple[float, float, int] = (1.0, 0.01, 10)
    chain: int = 10
    steps: int = 5


CASES = {
    "cifar10": Case("ncsn", (32, 32, 3), 16, {"width": 64}, chain=20, steps=10),
    "cifar10_v2": Case(
        "ncsnv2",
        (32, 32, 3),
        16,
        {"width": 64},
        sigmas=(50.0, 0.01, 232),
        chain=20,
        steps=10,
    ),
    "mnist": Case("ncsn", (28, 28, 1), 64, {"width": 16}, chain=50, steps=10),
    "digits": Case(
        "unet",
        (8, 8, 1),
        128,
        {"width": 24, "data_mean": 0.3, "data_std": 0.35, "num_classes": NUM_CLASSES},
        sigmas=(1.0, 0.03, 32),
        chain=320,
        steps=50,
    ),
    "toy": Case("mlp", (2,), 128, {}, sigmas=(20.0, 0.1, 20), chain=2000, steps=500),
    "tiny": Case("mlp", (2,), 8, {}, sigmas=(20.0, 0.1, 4), chain=4, steps=2),
    "cifar10_gpu": Case("ncsn", (32, 32, 3), 128, {"width": 128}, chain=50, steps=10),
}


class Network(NamedTuple):
    """A network with parameters and one batch of inputs.

    Attributes:
        model: The Flax module.
        params: Its parameters.
        sigmas: Noise levels.
        inputs: (x, level) or (x, level, label), numpy arrays.
    """

    model: Any
    params: Any
    sigmas: np.ndarray
    inputs: tuple[np.ndarray, ...]


class Chain(NamedTuple):
    """The chain of a measurement.

    Attributes:
        num_levels: Number of noise levels that it visits, beginning with the largest.
        num_steps: Langevin steps per level.
        step_size: Step size at the last of these levels.
    """

    num_levels: int
    num_steps: int
    step_size: float

    @property
    def length(self) -> int:
        """Langevin steps in all."""
        return self.num_levels * self.num_steps


class Subject(NamedTuple):
    """Two functions to time: one runs a whole chain, the other one all training steps."""

    sample: Callable[[], Any]
    train: Callable[[], Any]


def make_network(case: Case, dtype: str = "float32") -> Network:
    """The network of a case, with parameters that leave no part of it zero."""
    sigmas = sj.geometric_sigmas(*case.sigmas)
    fields = dict(case.fields)
    if case.network != "mlp":
        fields["dtype"] = dtype
    model = NETWORKS[case.network](sigmas=sigmas, **fields)

    x = np.random.default_rng(0).random((case.batch, *case.shape), np.float32)
    inputs = [x, np.arange(case.batch, dtype=np.int32) % len(sigmas)]
    if case.network == "unet":
        inputs.append(np.arange(case.batch, dtype=np.int32) % NUM_CLASSES)

    # Move away from the initial parameters, where parts of a network are zero.
    first = [array[:1] for array in inputs]
    initial = jax.jit(model.init)(jax.random.key(0), *first)["params"]
    leaves, tree = jax.tree.flatten(initial)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = []
    for leaf, key in zip(leaves, keys):
        moved.append(leaf + 0.02 * jax.random.normal(key, (leaf.size,)).reshape(leaf.shape))
    params = jax.tree.unflatten(tree, moved)
    if case.network == "ncsnv2":
        # Its noise levels are constants, although they are stored among the parameters.
        params["sigmas"] = initial["sigmas"]
    if case.network == "unet":
        # A transposed convolution of PyTorch has one bias for the four pixels of a square.
        params["Dense_1"]["bias"] = jnp.zeros_like(params["Dense_1"]["bias"])
    return Network(model, params, np.asarray(sigmas), tuple(inputs))


def make_chain(case: Case, sigmas: np.ndarray, length: int | None) -> Chain:
    """A chain with the many steps per level of a real one, so that it visits few levels."""
    length = length or case.chain
    num_levels = max(1, min(len(sigmas), length // 10))
    return Chain(num_levels, length // num_levels, 1e-2 * float(sigmas[-1]) ** 2)
