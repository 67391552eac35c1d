"""Speed of training and sampling beside PyTorch, in one run.

    python benchmarks/speed.py                      all cases on this machine; needs PyTorch
    python benchmarks/speed.py --cases=digits --rounds=9 --compile --json=speed.json
    python benchmarks/speed.py --growth             scaling of time and memory; without PyTorch

Every case builds one network in both libraries from the same parameters, checks that both give the
same scores, and measures them in alternating order: a step of annealed Langevin dynamics (network,
noise and update) and a training step (noise, loss, gradient, Adam). Each measurement is made twice
in a row and the second one counts, since a run repeats the same calls, too. PyTorch runs eagerly
in both memory layouts of images, channels first ("eager") and last ("channels_last"). Printed are
the median of the rounds and, in brackets, the smallest and the largest; then one line with the
ratio of the medians of PyTorch's better layout and score_jax, for each of the two steps.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from speed_cases import (
    CASES,
    LAYOUTS,
    Case,
    Chain,
    Network,
    Subject,
    make_chain,
    make_network,
)

import score_jax as sj
from score_jax.devices import feed, pmap, replicate, split
from score_jax.fitting import compile_steps
from score_jax.network import with_label
from score_jax.noise import standard_uniform


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
        modes: Modes of PyTorch as in speed_pytorch.py, "eager" first; empty to measure score_jax
            alone.
        dtype: Precision of the layers.
        devices: Devices that share the batch.
    """
    case = CASES[name]
    device = "cuda" if devices[0].platform == "gpu" else "cpu"
    network = make_network(case, dtype)
    ours = Ours(case, network, devices)

    subjects, compared = {"score_jax": ours.subject}, {}
    if modes:
        from speed_pytorch import torch_subjects

        theirs, compared = torch_subjects(name, case, network, ours.chain, device, modes)
        subjects |= theirs

    result = figures(name, dtype, devices, ours, subjects, rounds) | compared
    if modes:
        result["ratios"] = ratios(result)
        print_comparison(case, result, list(subjects))
    return result


def figures(
    name: str, dtype: str, devices, ours: Ours, subjects: dict[str, Subject], rounds: int
) -> dict[str, Any]:
    """Measures the subjects in alternating order: settings, facts and times.

    Args:
        name: Name of the case.
        dtype: Precision of the layers.
        devices: Devices that share the batch.
        ours: The programs of score_jax.
        subjects: Name -> functions, "score_jax" among them.
        rounds: Number of rounds.
    """
    case = CASES[name]
    times = measure(case, subjects, ours, rounds)
    bare, sample = times["bare", "score_jax"], times["sample", "score_jax"]
    result = {
        "case": name,
        "batch": case.batch,
        "devices": len(devices),
        "dtype": dtype,
        **ours.facts,
        "overhead": statistics.median(sample) / statistics.median(bare) - 1,
    }
    for kind in ("sample", "train"):
        for who in subjects:
            result[f"{kind}, {who}"] = spread(times[kind, who])
    return result


def ratios(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Median time of PyTorch in its better memory layout over that of score_jax.

    Returns:
        "sample" and "train" -> {"layout": the layout, "ratio": the ratio}.
    """
    found = {}
    for kind in ("sample", "train"):
        medians = {}
        for layout in LAYOUTS:
            times = result.get(f"{kind}, PyTorch {layout}")
            if times:
                medians[layout] = times["median"]
        layout = min(medians, key=medians.get)
        ratio = medians[layout] / result[f"{kind}, score_jax"]["median"]
        found[kind] = {"layout": layout, "ratio": ratio}
    return found


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
                f"  {kind:7s}{who:23s}{shown(found):36s}{images:10.0f} images/s "
                f"{rate:8.1f} GFLOP/s{against}"
            )
    print(
        f"  score_jax: the chain takes {100 * result['overhead']:+.1f} % over the bare network; "
        f"compiled in {result['compile_sample_s']:.1f} s (sampler) and "
        f"{result['compile_train_s']:.1f} s (training), first samples after "
        f"{result['first_samples_s']:.1f} s; temporary memory "
        f"{result['temporary_sample_mb']:.0f} and {result['temporary_train_mb']:.0f} MB"
    )
    shares = []
    for kind, step in (("sample", "Langevin step"), ("train", "training step")):
        found = result["ratios"][kind]
        shares.append(f"{step} {found['ratio']:.2f} ({found['layout']})")
    print(f"  {result['case']}, PyTorch's better layout / score_jax: {', '.join(shares)}")


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
    add(
        "--cases", default="cifar10,cifar10_v2,mnist,digits,toy", help=f"any of {', '.join(CASES)}"
    )
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

        about["torch"] = torch.__version__
        about["threads"] = torch.get_num_threads()
        device = "cuda" if devices[0].platform == "gpu" else "cpu"
        about["matmul_gflops"] = matmul_rate(device) / 1e9
        print(about)
        results, modes = [], [*LAYOUTS, "compiled"] if settings.compile else LAYOUTS
        for name in settings.cases.split(","):
            results.append(compare(name, settings.rounds, modes, settings.dtype, devices))
    about["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"\npeak memory of this process: {about['peak_memory_mb']:.0f} MB")
    if settings.json:
        content = {"about": about, "results": results}
        Path(settings.json).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
