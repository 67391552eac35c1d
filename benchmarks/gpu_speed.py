"""The stages `speed` and `profile` of benchmarks/gpu.sh."""

import collections
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import speed as benchmark
from gpu_stages import Record, peak
from tpu import count

import score_jax as sj

LARGEST = 10
"""Number of operations that a profile names."""


def case_of(record: Record) -> str:
    """Name of the case that is measured: NCSN with n = 128 and batches of 128."""
    return "tiny" if record.options.tiny else "cifar10_gpu"


def speed(record: Record) -> None:
    """Measures sampling and training beside PyTorch, in every precision."""
    devices = jax.local_devices()[:1]
    record.write(pytorch=prepare_pytorch(), cases=[])
    rates = {dtype: product_rate(dtype, record.options.tiny) for dtype in ("float32", "bfloat16")}
    record.write(largest_product_tflops=rates)
    for dtype in record.options.dtype.split(","):
        compare(record, dtype, devices)


def prepare_pytorch() -> str:
    """Lets PyTorch use TF32 and choose its convolutions by time, as XLA does; its version."""
    try:
        import torch
    except ImportError as error:
        return f"absent ({error})"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return torch.__version__


def compare(record: Record, dtype: str, devices) -> None:
    """Measures score_jax, then beside it PyTorch in one mode after the other.

    Compiling takes minutes, so all figures are written again after every mode: each has the
    subjects so far, measured in the same rounds. A mode that fails is listed with its error.
    """
    name, rounds = case_of(record), record.options.rounds
    earlier, errors = record.content["cases"], {}
    network = benchmark.make_network(benchmark.CASES[name], dtype)
    ours = benchmark.Ours(benchmark.CASES[name], network, devices)
    subjects, compared = {"score_jax": ours.subject}, {}

    modes = [None, *benchmark.LAYOUTS, "compiled"]
    for mode in modes[:1] if record.content["pytorch"].startswith("absent") else modes:
        begun = time.monotonic()
        try:
            added, facts = ({}, {}) if mode is None else pytorch_mode(name, network, ours, mode)
            found = benchmark.figures(name, dtype, devices, ours, subjects | added, rounds)
        except (Exception, SystemExit) as error:  # PyTorch's compiler can raise anything.
            if mode is None:
                raise
            errors[f"PyTorch {mode}"] = f"{type(error).__name__}: {str(error)[:300]}"
            print(f"  {dtype}, PyTorch {mode}: {errors[f'PyTorch {mode}']}", flush=True)
        else:
            subjects |= added
            if "relative_difference" in facts:  # That of the worst layout
                before = compared.get("relative_difference", 0.0)
                facts["relative_difference"] = max(before, facts["relative_difference"])
            compared |= facts
            result = found | compared
            result["utilisation"] = utilisation(name, dtype, devices[0], result)
            if "PyTorch eager" in subjects:
                result["ratios"] = benchmark.ratios(result)
            seconds = time.monotonic() - begun
            print(f"  {dtype}: {shown(result, [*subjects][-1])} ({seconds:.0f} s)", flush=True)
        record.write(cases=[*earlier, result | {"pytorch_errors": errors}])


def pytorch_mode(name: str, network: benchmark.Network, ours: benchmark.Ours, mode: str):
    """The functions of PyTorch in a mode, and facts, as `torch_subjects` has them."""
    from speed_pytorch import torch_subjects

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    case = benchmark.CASES[name]
    return torch_subjects(name, case, network, ours.chain, device, [mode])


def product_rate(dtype: str, tiny: bool) -> float:
    """TFLOP/s of a large matrix product: the rate that the card reaches at all."""
    size = 256 if tiny else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(8):
        begun = time.perf_counter()
        jax.block_until_ready(product(a, a))
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds) / 1e12


def flops(name: str, dtype: str) -> dict[str, float]:
    """FLOP of one evaluation of the network and of one training step, as tpu.py counts them."""
    case = benchmark.CASES[name]
    network = benchmark.make_network(case, dtype)
    trainer = sj.make_trainer(network.model, sj.annealed_dsm, optax.adam(1e-3), network.sigmas)
    x, _, *label = network.inputs
    state = jax.eval_shape(trainer.init, network.params)
    step = jax.make_jaxpr(trainer.step)(jax.random.key(0), state, x, *label)
    apply = jax.make_jaxpr(network.model.apply)({"params": network.params}, *network.inputs)
    return {"sample": count(apply.jaxpr), "train": count(step.jaxpr)}


def utilisation(name: str, dtype: str, device, result: dict[str, Any]) -> dict[str, Any]:
    """FLOP, TFLOP/s and their share of the card's peak, for sampling and for training."""
    most = peak(device.device_kind, dtype)
    found = {"peak_tflops": most}
    if most is None:
        found["note"] = f"the peak of {device.device_kind} is not in the table"
    for program, flop in flops(name, dtype).items():
        rate = flop / result[f"{program}, score_jax"]["median"] / 1e12
        share = None if most is None else rate / most
        found[program] = {"gflop": flop / 1e9, "tflops": rate, "share_of_peak": share}
    return found


def shown(result: dict[str, Any], who: str) -> str:
    """One line with the times and rates of a subject, all by the FLOP of score_jax's network."""
    parts = [who]
    for program in ("sample", "train"):
        found, times = result["utilisation"][program], result[f"{program}, {who}"]
        rate = found["gflop"] / 1e3 / times["median"]
        most = result["utilisation"]["peak_tflops"]
        of_peak = "" if most is None else f", {100 * rate / most:.1f} % of the peak"
        parts.append(f"{program} {benchmark.shown(times)}, {rate:.3g} TFLOP/s{of_peak}")
    return "; ".join(parts)


def profile(record: Record) -> None:
    """Records memory, and the operations that take the most time, in every precision."""
    devices = jax.local_devices()[:1]
    case = benchmark.CASES[case_of(record)]
    record.write(programs=[])
    # The largest memory so far can only grow: bfloat16 first, which needs less.
    for dtype in sorted(record.options.dtype.split(",")):
        ours = benchmark.Ours(case, benchmark.make_network(case, dtype), devices)
        for program in ("sample", "train"):
            function = getattr(ours.subject, program)
            function()
            memory = devices[0].memory_stats()
            folder = Path(record.options.scratch) / f"trace_{dtype}_{program}"
            seconds = traced(function, folder)
            found = {
                "dtype": dtype,
                "program": program,
                "batch": case.batch,
                "calls": ours.chain.length if program == "sample" else case.steps,
                "temporary_mb": ours.facts[f"temporary_{program}_mb"],
                "memory": memory or "the platform does not report it",
                "seconds": seconds,
            }
            try:
                found |= operations(folder, ours.texts[program]())
            except (ValueError, OSError) as error:
                record.wrong.append(f"profile, {dtype}, {program}")
                found |= {"operations": [], "error": f"the trace cannot be read: {error}"}
            record.write(programs=[*record.content["programs"], found])
            top = found["operations"][0] if found["operations"] else None
            print(f"  {dtype}, {program}: {seconds:.3f} s; largest operation: {top}", flush=True)


def traced(function, folder: Path) -> float:
    """Seconds of a call, whose trace is written to a folder."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        begun = time.perf_counter()
        function()
        return time.perf_counter() - begun


def operations(folder: Path, text: str) -> dict[str, Any]:
    """The operations of the newest trace in a folder that take the most time.

    Args:
        folder: The folder of the trace.
        text: Text of the compiled program, which says what an operation computes.
    """
    files = [*folder.rglob("*.xplane.pb")]
    if not files:
        raise FileNotFoundError(f"{folder} holds no trace")
    newest = max(files, key=lambda path: path.stat().st_mtime)
    totals, calls = collections.Counter(), collections.Counter()
    data = jax.profiler.ProfileData.from_file(str(newest))
    for line in lines_of(data):
        for name, own in own_times(line):
            totals[name] += own
            calls[name] += 1
    every = sum(totals.values())
    kinds = collections.Counter()
    for (operation, kernel), own in totals.items():
        kinds[re.sub(r"[.\d]+$", "", operation or kernel)] += own
    if not every:
        lines = [f"{plane.name}: {line.name}" for plane in data.planes for line in plane.lines]
        raise ValueError(f"{newest} holds no operation, but {', '.join(lines)}")
    source = dict(re.findall(r"^\s*(?:ROOT )?%?(\S+) = .*?op_name=\"([^\"]*)\"", text, re.M))
    listed = []
    for (operation, kernel), own in totals.most_common(LARGEST):
        listed.append(
            {
                "operation": operation,
                "kernel": kernel,
                "computes": source.get(operation, ""),
                "calls": calls[operation, kernel],
                "ms": own / 1e6,
                "share": own / every,
            }
        )
    shares = {kind: own / every for kind, own in kinds.most_common(LARGEST)}
    return {"traced_ms": every / 1e6, "kinds": shares, "operations": listed}


def lines_of(data: Any) -> Iterable[list[tuple[float, float, tuple[str, str]]]]:
    """(start, end, (operation, kernel)) of the events of each stream, in ns.

    These are the kernels and copies of a GPU, or the operations in the threads of a CPU.
    """
    planes = list(data.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue  # Summaries of the streams
            events = []
            for event in line.events:
                stats = dict(event.stats)
                operation = str(stats.get("hlo_op", ""))
                if devices or operation:
                    name = (operation, event.name)
                    events.append((event.start_ns, event.start_ns + event.duration_ns, name))
            if events:
                yield events


def own_times(
    events: list[tuple[float, float, tuple[str, str]]],
) -> Iterable[tuple[tuple[str, str], float]]:
    """(name, duration without the events inside it) of events that nest, as loops do on a CPU."""
    opened = []
    for start, end, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while opened and opened[-1][1] <= start:
            yield opened.pop()[2:]
        if opened:
            outer = opened[-1]
            opened[-1] = (*outer[:3], outer[3] - (end - start))
        opened.append((start, end, name, end - start))
    while opened:
        yield opened.pop()[2:]
