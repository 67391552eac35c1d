"""How fast networks train and sample, side by side with PyTorch in one run.

python benchmarks/speed.py                          all cases on this machine; needs pip install -e ".[torch]"
python benchmarks/speed.py --cases=digits --rounds=9 --compile --json=speed.json
python benchmarks/speed.py --growth                 what time and memory grow with; without PyTorch

Every case builds one network twice from the same parameters, checks that both give the same scores, and then measures in alternating
order: a step of annealed Langevin dynamics (the network, the noise and the update), and a training step (noise, loss, gradient, Adam).
Each is called twice in a row and timed the second time, for in a run, too, call follows call of the same kind.
Printed are the median of the rounds and, in brackets, the smallest and the largest.
"""

import argparse
import functools
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax.convert import to_official
from score_jax.langevin import annealed_langevin
from score_jax.losses.dsm import annealed_dsm
from score_jax.models.mlp import MLP
from score_jax.models.ncsn import NCSN
from score_jax.models.unet import UNet
from score_jax.noise import example_keys, geometric_sigmas, standard_uniform
from score_jax.training import make_trainer, take_steps

AXIS = "devices"


class Case(NamedTuple):
    """A network, the shape of its examples, and how much of it is one measurement."""

    network: str
    event: tuple[int, ...]
    batch: int
    fields: dict[str, Any]
    sigmas: tuple[float, float, int] = (1.0, 0.01, 10)
    chain: int = 10  # Langevin steps in a measurement
    steps: int = 5  # training steps in a measurement, and in a call


CASES = {
    "cifar10": Case("ncsn", (32, 32, 3), 16, {"width": 64}, chain=20, steps=10),
    "mnist": Case("ncsn", (28, 28, 1), 64, {"width": 16}, chain=50, steps=10),
    "digits": Case("unet", (8, 8, 1), 128, {"width": 24, "data_mean": 0.3, "data_std": 0.35}, (1.0, 0.03, 32), 320, 50),
    "toy": Case("mlp", (2,), 128, {}, (20.0, 0.1, 20), 2000, 500),
    "cifar10_gpu": Case("ncsn", (32, 32, 3), 128, {"width": 128}, chain=50, steps=10),
}


class Subject(NamedTuple):
    """Two things to time: calls that do `chain` Langevin steps, and `steps` training steps; and what is known about them."""

    sample: Callable[[], Any]
    train: Callable[[], Any]
    facts: dict[str, Any]


def build(case: Case, devices, dtype: str = "float32", chain: int | None = None):
    """The network, its parameters and what is measured of it."""
    sigmas, label = geometric_sigmas(*case.sigmas), []
    own = tuple(float(sigma) for sigma in sigmas)
    fields = dict(case.fields) if case.network == "mlp" else {**case.fields, "dtype": dtype}
    if case.network == "ncsn":
        model = NCSN(num_levels=len(own), **fields)
    elif case.network == "unet":
        model, label = UNet(sigmas=own, num_classes=10, **fields), [np.arange(case.batch, dtype=np.int32) % 10]
    else:
        model = MLP(sigmas=own, **fields)
    share = (len(devices), case.batch // len(devices))
    split = lambda x: np.reshape(x, (*share, *np.shape(x)[1:]))  # noqa: E731
    x = np.random.default_rng(0).random((case.batch, *case.event), np.float32)
    level = np.arange(case.batch, dtype=np.int32) % len(own)
    params = jax.jit(model.init)(jax.random.key(0), x[:1], level[:1], *(part[:1] for part in label))["params"]
    # Off its start, where parts of a network are zero.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.02 * jax.random.normal(key, (leaf.size,)).reshape(leaf.shape) for key, leaf in zip(keys, leaves)]
    params = jax.tree.unflatten(tree, leaves)
    if case.network == "unet":  # PyTorch has one bias for the four pixels that one becomes
        params["Dense_1"]["bias"] = jnp.zeros_like(params["Dense_1"]["bias"])

    pmap = functools.partial(jax.pmap, axis_name=AXIS, devices=devices)
    replicate = pmap(lambda tree, _: tree, in_axes=(None, 0), out_axes=None)
    here = replicate(params, np.arange(len(devices)))
    apply = lambda params, x, level, *label: model.apply({"params": params}, x, level, *label)  # noqa: E731
    # As a chain is long in earnest: many steps at each of the levels that it gets to.
    visited = max(1, min(len(own), (chain or case.chain) // 10))
    num_steps = (chain or case.chain) // visited
    alpha = 1e-2 * own[-1] ** 2

    def chains(params, index, *label):
        keys = example_keys(jax.random.key(2), index)
        score_fn = lambda x, level: apply(params, x, level, *label)  # noqa: E731
        start = standard_uniform(keys, case.event)
        return annealed_langevin(keys, score_fn, start, sigmas[:visited], step_size=alpha, num_steps=num_steps)

    def bare(params, index, *label):
        x = standard_uniform(example_keys(jax.random.key(2), index), case.event)
        level = jnp.full(len(x), len(own) - 1)
        return jax.lax.scan(lambda x, _: (1e-4 * apply(params, x, level, *label), None), x, length=num_steps * visited)[0]

    trainer = make_trainer(apply, annealed_dsm, optax.adam(1e-3), sigmas, axis_name=AXIS)
    train = pmap(
        lambda key, state, batches, number: take_steps(trainer.step, key, state, batches, number),
        in_axes=(None, None, 0, None),
        out_axes=None,
        donate_argnums=(1,),
    )
    state = [replicate(trainer.init(params), np.arange(len(devices)))]
    batches = [np.stack([split(part)] * case.steps, axis=1) for part in (x, *label)]
    arguments = (here, split(np.arange(case.batch)), *(split(part) for part in label))
    facts, programs = {}, {}
    for name, function, given in (
        ("sample", pmap(chains, in_axes=(None, *(0,) * (1 + len(label)))), arguments),
        ("bare", pmap(bare, in_axes=(None, *(0,) * (1 + len(label)))), arguments),
        ("train", train, (jax.random.key(3), state[0], batches, np.int32(case.steps))),
    ):
        begun = time.perf_counter()
        programs[name] = function.lower(*given).compile()
        facts[f"compile_{name}_s"] = time.perf_counter() - begun
        memory = programs[name].memory_analysis()
        facts[f"temporary_{name}_mb"] = len(devices) * memory.temp_size_in_bytes / 1e6 if memory else None
    begun = time.perf_counter()
    jax.block_until_ready(programs["sample"](*arguments))
    facts["first_samples_s"] = facts["compile_sample_s"] + time.perf_counter() - begun
    facts["chain"], facts["visited"] = num_steps * visited, visited

    def step():
        state[0], metrics = programs["train"](jax.random.key(3), state[0], batches, np.int32(case.steps))
        return jax.block_until_ready(metrics)

    subject = Subject(lambda: jax.block_until_ready(programs["sample"](*arguments)), step, facts)
    return subject, lambda: jax.block_until_ready(programs["bare"](*arguments)), model, params, (x, level, *label), alpha


def build_torch(case: Case, params, inputs, alpha: float, facts: dict[str, Any], device: str, mode: str):
    """The counterpart in PyTorch; `mode` is eager or compiled, with _bf16 for autocast."""
    import pytorch
    import torch

    sigmas = geometric_sigmas(*case.sigmas)
    own = tuple(float(sigma) for sigma in sigmas)
    if case.network == "ncsn":
        net = pytorch.NCSN(case.fields["width"], case.event[-1], len(own))
        net.load_state_dict({name: torch.tensor(np.asarray(value)) for name, value in to_official(params).items()})
    elif case.network == "unet":
        fields = case.fields
        net = pytorch.UNet(own, case.event[0], fields["width"], 4, 4, fields["data_mean"], fields["data_std"], 10)
        net.load(params)
    else:
        net = pytorch.MLP(own)
        net.load(params)
    net = net.to(device)
    x, level, *label = (torch.tensor(part) for part in inputs)
    x = (x.permute(0, 3, 1, 2) if x.ndim == 4 else x).contiguous().to(device)
    level, label = level.long().to(device), [part.long().to(device) for part in label]
    noise_levels = torch.tensor(own, device=device)
    with torch.no_grad():
        score = net(x, level, *label).cpu().numpy()
    score = score.transpose(0, 2, 3, 1) if score.ndim == 4 else score
    adam = torch.optim.Adam(net.parameters(), 1e-3)
    run = torch.compile(net) if mode.startswith("compiled") else net
    autocast = functools.partial(torch.autocast, device, dtype=torch.bfloat16, enabled=mode.endswith("bf16"))
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    @torch.no_grad()
    def sample():
        y = torch.rand_like(x)
        for i, sigma in enumerate(own[: facts["visited"]]):
            step = alpha * (sigma / own[facts["visited"] - 1]) ** 2
            index = torch.full_like(level, i)
            for _ in range(facts["chain"] // facts["visited"]):
                with autocast():
                    score = run(y, index, *label)
                y = y + step * score.float() + (2 * step) ** 0.5 * torch.randn_like(y)
        wait()
        return y

    def train():
        for _ in range(case.steps):
            index = torch.randint(len(own), level.shape, device=device)
            sigma = noise_levels[index].reshape(-1, *(1,) * (x.ndim - 1))
            noise = torch.randn_like(x)
            with autocast():
                score = run(x + sigma * noise, index, *label)
            loss = 0.5 * (sigma * score.float() + noise).square().flatten(1).sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        wait()
        return loss

    return Subject(sample, train, {}), score, net


def forward_flops(net, inputs) -> float:
    """Multiplications and additions of one call as PyTorch counts them: convolutions and matrix products only."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    device = next(net.parameters()).device
    x, level, *label = (torch.tensor(part, device=device) for part in inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x.permute(0, 3, 1, 2) if x.ndim == 4 else x, level.long(), *(part.long() for part in label))
    return float(counter.get_total_flops())


def matmul_rate(device: str) -> float:
    """FLOP/s of a large float32 matrix product, the better of the two libraries."""
    a, rates = np.random.default_rng(0).random((2048, 2048), np.float32), []
    product = jax.jit(jnp.matmul)
    ours = jnp.asarray(a)
    for _ in range(6):
        begun = time.perf_counter()
        jax.block_until_ready(product(ours, ours))
        rates.append(2 * 2048**3 / (time.perf_counter() - begun))
    if device == "cpu":
        import torch

        theirs = torch.tensor(a)
        for _ in range(6):
            begun = time.perf_counter()
            theirs @ theirs
            rates.append(2 * 2048**3 / (time.perf_counter() - begun))
    return max(rates)


def timed(function: Callable[[], Any], number: int) -> float:
    """Seconds of one of `number` steps, in the second call of two: as in a run, the memory that the steps need is at hand."""
    function()
    begun = time.perf_counter()
    function()
    return (time.perf_counter() - begun) / number


def spread(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def shown(found: dict[str, float]) -> str:
    scale, unit = (1e3, "ms") if found["median"] < 1 else (1, "s")
    return f"{found['median'] * scale:.2f} {unit} ({found['min'] * scale:.2f} to {found['max'] * scale:.2f})"


def compare(name: str, rounds: int, compiled: bool, dtype: str, devices) -> dict[str, Any]:
    """Measures one case against PyTorch."""
    case, device = CASES[name], "cuda" if devices[0].platform == "gpu" else "cpu"
    ours, bare, model, params, inputs, alpha = build(case, devices, dtype)
    chain, suffix = ours.facts["chain"], "_bf16" if dtype == "bfloat16" else ""
    subjects, scores = {"score_jax": ours}, {}
    for mode in ("eager", *(("compiled",) if compiled else ())):
        theirs, score, net = build_torch(case, params, inputs, alpha, ours.facts, device, mode + suffix)
        subjects[f"PyTorch {mode}"], scores[mode] = theirs, score
    plain = model if dtype == "float32" else model.clone(dtype="float32")
    score = np.asarray(jax.jit(plain.apply)({"params": params}, *inputs))
    error = float(np.linalg.norm(score - scores["eager"]) / np.linalg.norm(score))
    if error > (1e-5 if device == "cpu" else 5e-3):  # TF32 on a GPU
        raise SystemExit(f"{name}: the two networks differ by {error:.1e}")
    times = {(kind, who): [] for kind in ("sample", "train") for who in subjects} | {("bare", "score_jax"): []}
    for round_number in range(rounds):
        order = list(subjects) if round_number % 2 else list(subjects)[::-1]
        for who in order:
            times["sample", who].append(timed(subjects[who].sample, chain))
            if who == "score_jax":
                times["bare", who].append(timed(bare, chain))
            times["train", who].append(timed(subjects[who].train, case.steps))
    flops = forward_flops(net, inputs)
    result: dict[str, Any] = {
        "case": name,
        "batch": case.batch,
        "devices": len(devices),
        "relative_difference": error,
        "forward_gflop": flops / 1e9,
    }
    result |= {
        "dtype": dtype,
        **ours.facts,
        "overhead": statistics.median(times["sample", "score_jax"]) / statistics.median(times["bare", "score_jax"]) - 1,
    }
    print(
        f"\n{name}: {case.network} {case.fields}, batch {case.batch}, {list(case.event)}, {dtype}, {len(devices)} devices; same scores to {error:.0e}"
    )
    for kind, work in (("sample", flops), ("train", 3 * flops)):
        base = spread(times[kind, "score_jax"])["median"]
        for who in subjects:
            found = spread(times[kind, who])
            result[f"{kind}, {who}"] = found
            rate, images = work / found["median"] / 1e9, case.batch / found["median"]
            against = "" if who == "score_jax" else f", score_jax is {found['median'] / base:.2f} times as fast"
            print(f"  {kind:7s}{who:17s}{shown(found):36s}{images:10.0f} images/s {rate:8.1f} GFLOP/s{against}")
    print(
        f"  score_jax: the chain takes {100 * result['overhead']:+.1f} % over the bare network; compiled in "
        f"{result['compile_sample_s']:.1f} s (sampler) and {result['compile_train_s']:.1f} s (training), first samples after "
        f"{result['first_samples_s']:.1f} s; temporary memory {result['temporary_sample_mb']:.0f} and {result['temporary_train_mb']:.0f} MB"
    )
    return result


def growth(devices) -> list[dict[str, Any]]:
    """Time and temporary memory as the MNIST network grows, and as the chain does."""
    start, rows = CASES["mnist"], []
    grown = [("as it is", start, devices, None)]
    grown += [(f"batch {batch}", start._replace(batch=batch), devices, None) for batch in (16, 32, 128)]
    grown += [(f"size {size}", start._replace(event=(size, size, 1)), devices, None) for size in (16, 40)]
    grown += [(f"width {width}", start._replace(fields={"width": width}), devices, None) for width in (8, 32, 64)]
    grown += [(f"{levels} levels", start._replace(sigmas=(1.0, 0.01, levels)), devices, levels) for levels in (2, 50)]
    grown += [(f"chain of {chain}", start, devices, chain) for chain in (10, 100)]
    grown += [(f"{number} devices", start, devices[:number], None) for number in range(1, len(devices))]
    for name, case, used, chain in grown:
        subject, *_ = build(case._replace(steps=2), used, chain=chain)
        sample = spread([timed(subject.sample, subject.facts["chain"]) for _ in range(3)])
        train = spread([timed(subject.train, 2) for _ in range(3)])
        rows.append({"what": name, "sample": sample, "train": train, **subject.facts})
        print(
            f"  {name:14s} sample {shown(sample):32s} train {shown(train):34s} temporary memory {subject.facts['temporary_sample_mb']:7.1f}"
            f" and {subject.facts['temporary_train_mb']:7.1f} MB, compiled in {subject.facts['compile_train_s']:.0f} s",
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="cifar10,mnist,digits,toy", help=f"of {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile, too")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--devices", type=int, default=0, help="how many; 0: all, or the cores of the CPU")
    parser.add_argument("--growth", action="store_true", help="what time and memory grow with, instead")
    parser.add_argument("--json", help="where to write all figures")
    settings = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", settings.devices or len(os.sched_getaffinity(0)))
    devices = jax.local_devices()[: settings.devices or None]
    about = {"date": time.strftime("%Y-%m-%d"), "device": f"{len(devices)} x {devices[0].device_kind}"}
    about |= {"python": platform.python_version(), "jax": jax.__version__, "machine": platform.machine()}
    if settings.growth:
        print(about)
        results = growth(devices)
    else:
        import torch

        sys.path.insert(0, str(Path(__file__).parent))
        about |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        about["matmul_gflops"] = matmul_rate("cuda" if devices[0].platform == "gpu" else "cpu") / 1e9
        print(about)
        results = [compare(name, settings.rounds, settings.compile, settings.dtype, devices) for name in settings.cases.split(",")]
    about["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(f"\npeak memory of this process: {about['peak_memory_mb']:.0f} MB")
    if settings.json:
        Path(settings.json).write_text(json.dumps({"about": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
