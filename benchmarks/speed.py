"""Speed of training and sampling beside PyTorch, in one run.

    python benchmarks/speed.py                      all cases on this machine; needs PyTorch
    python benchmarks/speed.py --cases=digits --rounds=9 --compile --json=speed.json
    python benchmarks/speed.py --growth             scaling of time and memory; without PyTorch

Every case builds one network in both libraries from the same parameters, checks that both give the
same scores, and measures them in alternating order: a step of annealed Langevin dynamics (network,
noise and update) and a training step (noise, loss, gradient, Adam). Each measurement is made twice
in a row and the second one counts, since a run repeats the same calls, too. Printed are the median
of the rounds and, in brackets, the smallest and the largest.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import score_jax as sj
from score_jax.devices import feed, pmap, replicate, split
from score_jax.fitting import compile_steps
from score_jax.network import with_label
from score_jax.noise import standard_uniform

NETWORKS = {"ncsn": sj.NCSN, "unet": sj.UNet, "mlp": sj.MLP}
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
    """The network of a case, with parameters in which no part of it is zero."""
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
    params = jax.jit(model.init)(jax.random.key(0), *first)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = []
    for leaf, key in zip(leaves, keys):
        moved.append(leaf + 0.02 * jax.random.normal(key, (leaf.size,)).reshape(leaf.shape))
    params = jax.tree.unflatten(tree, moved)
    if case.network == "unet":
        # A transposed convolution of PyTorch has one bias for the four pixels of a square.
        params["Dense_1"]["bias"] = jnp.zeros_like(params["Dense_1"]["bias"])
    return Network(model, params, np.asarray(sigmas), tuple(inputs))


def make_chain(case: Case, sigmas: np.ndarray, length: int | None) -> Chain:
    """A chain with the many steps per level of a real one, so that it visits few levels."""
    length = length or case.chain
    num_levels = max(1, min(len(sigmas), length // 10))
    return Chain(num_levels, length // num_levels, 1e-2 * float(sigmas[-1]) ** 2)


class Ours:
    """The compiled programs of score_jax for a case.

    Attributes:
        subject: The functions to time.
        bare: The network alone, as often as in the chain.
        chain: The chain.
        texts: Name -> function that returns the text of the compiled program.
        facts: Compile times, memory and the settings of the chain.
    """

    def __init__(self, case: Case, network: Network, devices, chain_length: int | None = None):
        self.chain = make_chain(case, network.sigmas, chain_length)
        self.facts = {"chain": self.chain.length, "visited": self.chain.num_levels}
        self.num_devices, self.texts = len(devices), {}
        _, _, *label = network.inputs
        label = split(label[0], devices) if label else None
        mapped = (split(np.arange(case.batch), devices), label)
        params = replicate(network.params, devices)

        # Sampling, and the network alone.
        sample_fn, bare_fn = sampling_functions(case, network, self.chain)
        sample = self._compiled("sample", pmap(sample_fn, devices, (None, 0), 0), params, mapped)
        bare = self._compiled("bare", pmap(bare_fn, devices, (None, 0), 0), params, mapped)
        begun = time.perf_counter()
        jax.block_until_ready(sample(params, mapped))
        seconds = time.perf_counter() - begun
        self.facts["first_samples_s"] = self.facts["compile_sample_s"] + seconds

        # Training: all steps of a measurement in one call, which reuses the state's memory.
        trainer = sj.make_trainer(network.model, sj.annealed_dsm, optax.adam(1e-3), network.sigmas)
        x, _, *labels = network.inputs
        source = feed((x, *labels), devices, resident=False)
        batches = [np.stack([split(part, devices)] * case.steps, 1) for part in (x, *labels)]
        state = replicate(trainer.init(network.params), devices)
        begun = time.perf_counter()
        train = compile_steps(trainer, source, state, devices, case.batch, case.steps)
        self._note_compiled("train", begun, train.compiled)

        def train_once():
            nonlocal state
            state, metrics = train(jax.random.key(3), state, tuple(batches), case.steps)
            return jax.block_until_ready(metrics)

        self.bare = lambda: jax.block_until_ready(bare(params, mapped))
        self.subject = Subject(lambda: jax.block_until_ready(sample(params, mapped)), train_once)

    def _compiled(self, name: str, program: Callable, *arguments) -> Callable:
        begun = time.perf_counter()
        compiled = program.lower(*arguments).compile()
        self._note_compiled(name, begun, compiled)
        return compiled

    def _note_compiled(self, name: str, begun: float, compiled: Any) -> None:
        """Notes the time since `begun` and the temporary memory of a compiled program."""
        self.facts[f"compile_{name}_s"] = time.perf_counter() - begun
        self.texts[name] = compiled.as_text
        memory = compiled.memory_analysis()
        total = self.num_devices * memory.temp_size_in_bytes / 1e6 if memory else None
        self.facts[f"temporary_{name}_mb"] = total


def sampling_functions(case: Case, network: Network, chain: Chain):
    """(params, (index, label)) -> samples, and the same number of calls of the bare network."""

    def start(index, params, label):
        keys = sj.example_keys(jax.random.key(2), index)
        score_fn = with_label(sj.score_fn(network.model, params), label)
        return keys, score_fn, standard_uniform(keys, case.shape)

    def sample(params, mapped):
        index, label = mapped
        keys, score_fn, x = start(index, params, label)
        trajectory = sj.annealed_langevin(
            keys,
            score_fn,
            x,
            network.sigmas[: chain.num_levels],
            step_size=chain.step_size,
            num_steps=chain.num_steps,
        )
        return trajectory.x

    def bare(params, mapped):
        index, label = mapped
        _, score_fn, x = start(index, params, label)
        level = jnp.full(len(x), len(network.sigmas) - 1)

        def call(x, _):
            return 1e-4 * score_fn(x, level), None

        return jax.lax.scan(call, x, length=chain.length)[0]

    return sample, bare


def torch_network(case: Case, network: Network, device: str):
    """The counterpart of a network in PyTorch, with the same parameters."""
    import pytorch
    import torch

    sigmas = network.sigmas.tolist()
    if case.network == "ncsn":
        net = pytorch.NCSN(case.fields["width"], case.shape[-1], len(sigmas))
        state = sj.to_official(network.params)
        net.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    elif case.network == "unet":
        model = network.model
        net = pytorch.UNet(
            sigmas,
            case.shape[0],
            model.width,
            model.heads,
            model.groups,
            model.data_mean,
            model.data_std,
            model.num_classes,
        )
        net.load(network.params)
    else:
        net = pytorch.MLP(sigmas)
        net.load(network.params)
    return net.to(device)


def torch_inputs(network: Network, device: str):
    """The inputs of a network as tensors, images with channels first."""
    import torch

    x, *indices = (torch.tensor(part, device=device) for part in network.inputs)
    if x.ndim == 4:
        x = x.permute(0, 3, 1, 2).contiguous()
    return (x, *(part.long() for part in indices))


def torch_scores(net, inputs) -> np.ndarray:
    """The scores of a PyTorch network, with channels last."""
    import torch

    with torch.no_grad():
        score = net(*inputs).cpu().numpy()
    return score.transpose(0, 2, 3, 1) if score.ndim == 4 else score


def torch_subject(case: Case, net, inputs, sigmas, chain: Chain, device: str, mode: str):
    """The functions to time in PyTorch.

    Args:
        case: The case.
        net: The network.
        inputs: Its inputs.
        sigmas: Noise levels.
        chain: The chain.
        device: "cpu" or "cuda".
        mode: "eager" or "compiled", with "_bf16" for autocast.
    """
    import torch

    x, level, *label = inputs
    sigmas = torch.tensor(sigmas, device=device)
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    run = torch.compile(net) if mode.startswith("compiled") else net
    bf16 = mode.endswith("bf16")
    autocast = functools.partial(torch.autocast, device, dtype=torch.bfloat16, enabled=bf16)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    @torch.no_grad()
    def sample():
        y = torch.rand_like(x)
        visited = sigmas[: chain.num_levels].tolist()
        for i, sigma in enumerate(visited):
            step = chain.step_size * (sigma / visited[-1]) ** 2
            index = torch.full_like(level, i)
            for _ in range(chain.num_steps):
                with autocast():
                    score = run(y, index, *label)
                y = y + step * score.float() + (2 * step) ** 0.5 * torch.randn_like(y)
        wait()
        return y

    def train():
        for _ in range(case.steps):
            index = torch.randint(len(sigmas), level.shape, device=device)
            sigma = sigmas[index].reshape(-1, *(1,) * (x.ndim - 1))
            noise = torch.randn_like(x)
            with autocast():
                score = run(x + sigma * noise, index, *label)
            residual = sigma * score.float() + noise
            loss = 0.5 * residual.square().flatten(1).sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        wait()
        return loss

    return Subject(sample, train)


def forward_flops(net, inputs) -> float:
    """FLOPs of one call as counted by PyTorch: convolutions and matrix products only."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs)
    return float(counter.get_total_flops())


def matmul_rate(device: str) -> float:
    """FLOP/s of a large float32 matrix product, in the faster of the two libraries."""
    size, repeats = 2048, 6
    a = np.random.default_rng(0).random((size, size), np.float32)
    ours = jnp.asarray(a)
    product = jax.jit(jnp.matmul)
    products = [lambda: jax.block_until_ready(product(ours, ours))]
    if device == "cpu":
        import torch

        theirs = torch.tensor(a)
        products.append(lambda: theirs @ theirs)
    seconds = []
    for function in products:
        for _ in range(repeats):
            begun = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def timed(function: Callable[[], Any], number: int) -> float:
    """Seconds of one of `number` steps, in the second of two calls, with memory allocated."""
    function()
    begun = time.perf_counter()
    function()
    return (time.perf_counter() - begun) / number


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def shown(found: dict[str, float]) -> str:
    scale, unit = (1e3, "ms") if found["median"] < 1 else (1, "s")
    median, low, high = (scale * found[name] for name in ("median", "min", "max"))
    return f"{median:.2f} {unit} ({low:.2f} to {high:.2f})"


def compare(name: str, rounds: int, modes: Sequence[str], dtype: str, devices) -> dict[str, Any]:
    """Measures one case beside PyTorch, prints and returns the figures.

    Args:
        name: Name in `CASES`.
        rounds: Number of rounds.
        modes: Modes of PyTorch, "eager" first; empty to measure score_jax alone.
        dtype: Precision of the layers.
        devices: Devices that share the batch.
    """
    case = CASES[name]
    device = "cuda" if devices[0].platform == "gpu" else "cpu"
    network = make_network(case, dtype)
    ours = Ours(case, network, devices)

    # The same network in PyTorch, once for each mode, as training changes it.
    subjects, compared = {"score_jax": ours.subject}, {}
    inputs = torch_inputs(network, device) if modes else ()
    suffix = "_bf16" if dtype == "bfloat16" else ""
    for mode in modes:
        net = torch_network(case, network, device)
        if mode == "eager":
            compared["relative_difference"] = check_scores(name, network, net, inputs, device)
            compared["forward_gflop"] = forward_flops(net, inputs) / 1e9
        subjects[f"PyTorch {mode}"] = torch_subject(
            case, net, inputs, network.sigmas, ours.chain, device, mode + suffix
        )

    times = measure(case, subjects, ours, rounds)
    bare, sample = times["bare", "score_jax"], times["sample", "score_jax"]
    result = {
        "case": name,
        "batch": case.batch,
        "devices": len(devices),
        "dtype": dtype,
        **compared,
        **ours.facts,
        "overhead": statistics.median(sample) / statistics.median(bare) - 1,
    }
    for kind in ("sample", "train"):
        for who in subjects:
            result[f"{kind}, {who}"] = spread(times[kind, who])
    if modes:
        print_comparison(case, result, list(subjects))
    return result


def check_scores(name: str, network: Network, net, inputs, device: str) -> float:
    """Relative difference of the scores in float32; exits if it is not a rounding error."""
    model = network.model
    if getattr(model, "dtype", "float32") != "float32":
        model = model.clone(dtype="float32")
    with full_precision():
        theirs = torch_scores(net, inputs)
        ours = np.asarray(jax.jit(model.apply)({"params": network.params}, *network.inputs))
    difference = float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours))
    # Some algorithms of cuDNN round more often than a sum does.
    if difference > (1e-5 if device == "cpu" else 1e-3):
        raise SystemExit(f"{name}: the two networks differ by {difference:.1e}")
    return difference


@contextlib.contextmanager
def full_precision():
    """Keeps both libraries from rounding the factors of products to TF32, as they do on GPUs."""
    import torch

    cudnn, convolutions = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        with jax.default_matmul_precision("highest"):
            yield
    finally:
        cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def measure(case: Case, subjects: dict[str, Subject], ours: Ours, rounds: int):
    """(kind, who) -> times, in rounds that alternate the order of the subjects."""
    times = {(kind, who): [] for kind in ("sample", "train") for who in subjects}
    times["bare", "score_jax"] = []
    for round_number in range(rounds):
        order = list(subjects)
        if round_number % 2 == 0:
            order.reverse()
        for who in order:
            times["sample", who].append(timed(subjects[who].sample, ours.chain.length))
            if who == "score_jax":
                times["bare", who].append(timed(ours.bare, ours.chain.length))
            times["train", who].append(timed(subjects[who].train, case.steps))
    return times


def print_comparison(case: Case, result: dict[str, Any], names: list[str]) -> None:
    print(
        f"\n{result['case']}: {case.network} {case.fields}, batch {case.batch}, "
        f"{list(case.shape)}, {result['dtype']}, {result['devices']} devices; relative "
        f"difference of the scores {result['relative_difference']:.0e}"
    )
    # A training step counts as three forward passes.
    for kind, passes in (("sample", 1), ("train", 3)):
        base = result[f"{kind}, score_jax"]["median"]
        for who in names:
            found = result[f"{kind}, {who}"]
            rate = passes * result["forward_gflop"] / found["median"]
            images = case.batch / found["median"]
            ratio = found["median"] / base
            against = "" if who == "score_jax" else f", score_jax is {ratio:.2f} times as fast"
            print(
                f"  {kind:7s}{who:17s}{shown(found):36s}{images:10.0f} images/s "
                f"{rate:8.1f} GFLOP/s{against}"
            )
    print(
        f"  score_jax: the chain takes {100 * result['overhead']:+.1f} % over the bare network; "
        f"compiled in {result['compile_sample_s']:.1f} s (sampler) and "
        f"{result['compile_train_s']:.1f} s (training), first samples after "
        f"{result['first_samples_s']:.1f} s; temporary memory "
        f"{result['temporary_sample_mb']:.0f} and {result['temporary_train_mb']:.0f} MB"
    )


def growth(devices) -> list[dict[str, Any]]:
    """Time and temporary memory of the MNIST network for growing settings, one at a time."""
    start = CASES["mnist"]
    variants = [("baseline", start, devices, None)]
    for batch in (16, 32, 128):
        variants.append((f"batch {batch}", start._replace(batch=batch), devices, None))
    for size in (16, 40):
        case = start._replace(shape=(size, size, 1))
        variants.append((f"size {size}", case, devices, None))
    for width in (8, 32, 64):
        case = start._replace(fields={"width": width})
        variants.append((f"width {width}", case, devices, None))
    for levels in (2, 50):
        case = start._replace(sigmas=(1.0, 0.01, levels))
        variants.append((f"{levels} levels", case, devices, levels))
    for chain in (10, 100):
        variants.append((f"chain of {chain}", start, devices, chain))
    for number in range(1, len(devices)):
        variants.append((f"{number} devices", start, devices[:number], None))
    return [measure_alone(*variant) for variant in variants]


def measure_alone(name: str, case: Case, devices, chain: int | None) -> dict[str, Any]:
    """Measures one case without PyTorch, prints and returns the figures."""
    case = case._replace(steps=2)
    ours = Ours(case, make_network(case), devices, chain)
    sample = spread([timed(ours.subject.sample, ours.chain.length) for _ in range(3)])
    train = spread([timed(ours.subject.train, case.steps) for _ in range(3)])
    facts = ours.facts
    print(
        f"  {name:14s} sample {shown(sample):32s} train {shown(train):34s} temporary memory "
        f"{facts['temporary_sample_mb']:7.1f} and {facts['temporary_train_mb']:7.1f} MB, "
        f"compiled in {facts['compile_train_s']:.0f} s",
        flush=True,
    )
    return {"what": name, "sample": sample, "train": train, **facts}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", default="cifar10,mnist,digits,toy", help=f"any of {', '.join(CASES)}")
    add("--rounds", type=int, default=5, help="number of rounds")
    add("--compile", action="store_true", help="measure torch.compile, too")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="precision of ours")
    add("--devices", type=int, help="number of devices; default: all, or the cores of the CPU")
    add("--growth", action="store_true", help="measure the scaling of time and memory instead")
    add("--json", help="file for all figures")
    return parser.parse_args()


def main():
    """Prints the figures of all cases."""
    settings = parse()
    cores = len(os.sched_getaffinity(0))
    jax.config.update("jax_num_cpu_devices", settings.devices or cores)
    devices = jax.local_devices()[: settings.devices]
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "machine": platform.machine(),
    }
    if settings.growth:
        print(about)
        results = growth(devices)
    else:
        import torch

        # The module pytorch lies beside this file.
        sys.path.insert(0, str(Path(__file__).parent))
        about["torch"] = torch.__version__
        about["threads"] = torch.get_num_threads()
        device = "cuda" if devices[0].platform == "gpu" else "cpu"
        about["matmul_gflops"] = matmul_rate(device) / 1e9
        print(about)
        results, modes = [], ["eager", "compiled"] if settings.compile else ["eager"]
        for name in settings.cases.split(","):
            results.append(compare(name, settings.rounds, modes, settings.dtype, devices))
    about["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"\npeak memory of this process: {about['peak_memory_mb']:.0f} MB")
    if settings.json:
        content = {"about": about, "results": results}
        Path(settings.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
