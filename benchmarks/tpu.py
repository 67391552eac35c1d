"""Training step and sampler of a config, compiled for TPUs; needs the compiler but no TPU.

    python benchmarks/tpu.py --config=cifar10 --chips=4 --dtype=bfloat16 --batch=128
    python benchmarks/tpu.py --config=cifar10,cifar10_v2 --kind=v5e,v6e --chips=1,4,8,64,256 \\
        --dtype=float32,bfloat16 --remat=no,yes --markdown=tpu.md

`pip install libtpu`, in the version that `jax[tpu]` asks for, brings the compiler. Flags take
several values, separated by commas; one row is printed for each combination. Nothing is run: the
cycles are the compiler's own estimate of each operation, `estimated_cycles` in the text of the
compiled program, times the number of runs of the loops around it. All values are per chip:

    utilisation = FLOP / (cycles / clock * peak)

FLOP are those of the convolutions and matrix products in the jaxpr of the program without remat;
taps of a convolution that fall on its zero padding do not count. Recomputation, padded lanes and
all other operations add cycles but no FLOP. A training row is one step; a sampling row is one of
the chain's network evaluations, with everything around it.
"""

import argparse
import importlib.util
import itertools
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scaling import collectives
from tpu_program import Program

from score_jax.cli import build
from score_jax.cli.config_files import load_config, published_configs
from score_jax.cli.estimate import num_evaluations
from score_jax.devices import Feed, check_divides, compile_pmapped
from score_jax.fitting import compile_steps, initial_params
from score_jax.network import score_fn
from score_jax.noise import geometric_sigmas
from score_jax.sampling import Chains
from score_jax.training import Trainer


class Kind(NamedTuple):
    """A generation of TPUs.

    Attributes:
        accelerator: Name of its slices.
        peak: FLOP per second of one chip, in bfloat16, as published.
        clock: Cycles per second: peak / (2 * multiply-adds per cycle). The published number of
            multiply-adds is 4 x 128^2 for v5e and 4 x 256^2 for v6e.
    """

    accelerator: str
    peak: float
    clock: float


KINDS = {
    "v5e": Kind("v5litepod", 197e12, 1.5e9),
    "v6e": Kind("v6e", 918e12, 1.75e9),
}
SLICES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
"""Number of chips -> shape of the slice; a host has up to eight chips, 2x4."""


class Case(NamedTuple):
    """One row of the table."""

    config: str
    program: str
    kind: str
    chips: int
    dtype: str
    remat: str


def topology(kind: str, chips: int) -> list[Any]:
    """The devices of a slice that need not exist.

    Raises:
        ValueError: If there is no such slice.
        ModuleNotFoundError: If the compiler is not installed.
    """
    if kind not in KINDS or chips not in SLICES:
        raise ValueError(
            f"there is no slice of {chips} x {kind}: choose {' or '.join(KINDS)}, and a number of "
            f"chips among {', '.join(map(str, SLICES))}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            "the TPU compiler is missing: install libtpu in the version that jax[tpu] asks for"
        )
    from jax.experimental import topologies

    shape = SLICES[chips]
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": f"{KINDS[kind].accelerator}-{chips}",
        "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Nothing runs on a TPU, so that another process may hold it.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    host = [min(int(length), most) for length, most in zip(shape.split("x"), (2, 4), strict=True)]
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{kind}:{shape}", chips_per_host_bounds=[*host, 1]
    ).devices


def settings_of(case: Case, width: int | None) -> dict[str, Any]:
    """The config of a row, without labels."""
    config = load_config(case.config)
    config["data"] |= {"labels": False, "label_dropout": 0.0}
    if not config["data"]["size"]:
        raise ValueError(f"{case.config} has no config.data.size: choose a config of images")
    if "dtype" in config["model"]:
        config["model"] |= {"dtype": case.dtype, "remat": case.remat == "yes"}
    if width:
        config["model"]["width"] = width
    return config


def training(config: dict[str, Any], batch: int) -> tuple[Trainer, Any, Any]:
    """The trainer, the shapes of its state, and a share of `batch` images."""
    size, channels = config["data"]["size"], config["data"]["channels"]
    sigmas = geometric_sigmas(**config["noise"])
    model = build.build_model(config["model"], sigmas, None, config["data"])
    trainer = build.build_trainer(config, None, model, sigmas)
    x = np.zeros((batch, size, size, channels), np.uint8)
    return trainer, jax.eval_shape(lambda: trainer.init(initial_params(trainer, x))), x


def chains(config: dict[str, Any], trainer: Trainer, shape: tuple[int, ...]) -> Chains:
    """The sampler of a config, as one program."""
    settings, sigmas = config["sampling"], trainer.sigmas
    sampler = build.build_sampler(settings)
    return Chains(
        sampler=sampler,
        start=build.build_start(settings, sigmas, config["data"]["logit"], config["model"]),
        shape=shape,
        sigmas=tuple(np.asarray(sigmas).tolist()),
        num_steps=settings["num_steps"],
        step_size=build.build_step_size(settings, sampler, sigmas),
        denoise=settings["denoise"],
    )


def compiled(case: Case, config: dict[str, Any], batch: int, devices: list[Any]) -> Any:
    """The compiled program of a row, for `batch` images on each of the devices."""
    trainer, state, x = training(config, batch)
    if case.program == "train":
        # All rows, those of other hosts, too.
        source = Feed((), lambda index: (np.stack([x] * len(devices)),), lambda held, rows: rows)
        step = compile_steps(trainer, source, state, devices, batch * len(devices), 1)
        return step.compiled
    program = chains(config, trainer, x.shape[1:])
    shared = (jax.random.key(0), score_fn(trainer.model, state.ema_params))
    own = (np.zeros((len(devices), batch), np.int32), None)
    return compile_pmapped(program, devices, (shared, own), (None, 0), 0)


def flop_of(case: Case, config: dict[str, Any], batch: int) -> float:
    """FLOP of one training step or one network evaluation, without remat."""
    config = config | {"model": dict(config["model"])}
    if "remat" in config["model"]:
        config["model"]["remat"] = False
    trainer, state, x = training(config, batch)
    if case.program == "train":
        key = jax.random.key(0)
        return count(jax.make_jaxpr(trainer.step)(key, state, jnp.asarray(x)).jaxpr)
    level = jnp.zeros(batch, jnp.int32)
    images = jnp.zeros(x.shape, jnp.float32)
    return count(jax.make_jaxpr(trainer.model.apply)(state.params, images, level).jaxpr)


def count(jaxpr: Any) -> float:
    """FLOP of the convolutions and matrix products of a jaxpr."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, settings = equation.primitive.name, equation.params
        if name in ("convolution", "filter_gradient", "conv_general_dilated", "dot_general"):
            left, right = (each.aval.shape for each in equation.invars)
            out = equation.outvars[0].aval.shape
            if name == "convolution":
                products = taps(left, right[0], settings) * math.prod(right[2:]) / out[-1]
            elif name == "filter_gradient":
                products = math.prod(left[:3]) * taps(left, out[0], settings) / out[0] ** 2
            elif name == "conv_general_dilated":
                products = math.prod(right) / right[settings["dimension_numbers"].rhs_spec[0]]
            else:
                products = math.prod(left[axis] for axis in settings["dimension_numbers"][0][0])
            total += 2 * math.prod(out) * products
        else:
            inner = sum(count(each) for each in inner_jaxprs(settings))
            total += settings.get("length", 1) * inner if name == "scan" else inner
    return total


def taps(image: tuple[int, ...], size: int, settings: dict[str, Any]) -> float:
    """Mean number of taps of a convolution that fall into the image, of size^2."""
    number = 1.0
    for length in image[1:3]:
        offsets = (abs(settings["dilation"] * (i - size // 2)) for i in range(size))
        number *= sum(max(length - offset, 0) for offset in offsets) / length
    return number


def inner_jaxprs(settings: dict[str, Any]) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    leaves = jax.tree.leaves(list(settings.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns"))
    found = []
    for leaf in leaves:
        leaf = getattr(leaf, "jaxpr", leaf)
        if hasattr(leaf, "eqns"):
            found.append(leaf)
    return found


COLUMNS = (
    "config | program | chips | dtype | remat | images a chip | memory, MB | GFLOP | Mcycles | "
    "ms | utilisation, % | collectives, MB | program, MB | compiled in, s | share of the cycles, %"
)


def row(case: Case, batch: int | None, width: int | None) -> str:
    """Compiles a case and returns its row of the table."""
    config = settings_of(case, width)
    if batch is None:
        check_divides(config["training"]["batch_size"], case.chips)
        batch = config["training"]["batch_size"] // case.chips
    devices, kind = topology(case.kind, case.chips), KINDS[case.kind]
    begun = time.monotonic()
    result = compiled(case, config, batch, devices)
    seconds = time.monotonic() - begun
    text = result.as_text()
    if folder := os.environ.get("TPU_TEXT"):
        (Path(folder) / f"{'_'.join(map(str, case))}_{batch}.txt").write_text(text)

    # The whole chain is one program: divide by its evaluations.
    runs = 1
    if case.program == "sample":
        runs = num_evaluations(config["sampling"], config["noise"]["num_levels"])
    shares = Program(text).cycles()
    cycles = sum(shares.values()) / runs
    flop = flop_of(case, config, batch)
    memory = result.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes
    used += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    sent = collectives(text)
    cells = [
        case.config + (f", n = {width}" if width else ""),
        case.program,
        f"{case.chips} x {case.kind}",
        case.dtype,
        case.remat,
        batch,
        f"{used / 1e6:.0f}",
        f"{flop / 1e9:.1f}",
        f"{cycles / 1e6:.2f}",
        f"{1e3 * cycles / kind.clock:.2f}",
        f"{100 * flop / (cycles / kind.clock * kind.peak):.1f}",
        f"{len(sent)} x, {sum(size for _, size in sent) / 1e6:.1f}" if sent else "none",
        f"{memory.generated_code_size_in_bytes / 1e6:.0f}",
        f"{seconds:.0f}",
        ", ".join(
            f"{name} {100 * part / sum(shares.values()):.0f}"
            for name, part in shares.most_common()
            if part > 0.005 * sum(shares.values())
        ),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="cifar10", help="published configs, or all")
    parser.add_argument("--program", default="train,sample", help="train, sample")
    parser.add_argument("--kind", default="v5e", help=", ".join(KINDS))
    parser.add_argument("--chips", default="4", help=", ".join(map(str, SLICES)))
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16")
    parser.add_argument("--remat", default="no", help="no, yes")
    parser.add_argument("--batch", type=int, help="images a chip; default: the config's share")
    parser.add_argument("--width", type=int, help="number of features of the first layers")
    parser.add_argument("--markdown", type=Path, help="file to which the table is written")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    if arguments.config == "all":
        arguments.config = ",".join(published_configs())
    names = ("config", "program", "kind", "chips", "dtype", "remat")
    values = [getattr(arguments, name).split(",") for name in names]

    header = f"| {COLUMNS} |\n{'| --- ' * len(COLUMNS.split(' | '))}|"
    print(header, flush=True)
    rows, failed = [header], 0
    for each in itertools.product(*values):
        case = Case(*each)._replace(chips=int(each[3]))
        try:
            rows.append(row(case, arguments.batch, arguments.width))
        except (ValueError, ModuleNotFoundError, jax.errors.JaxRuntimeError) as error:
            rows.append(f"| {' | '.join(map(str, case))} | {str(error).splitlines()[0][:300]} |")
            failed += 1
        print(rows[-1], flush=True)
        if arguments.markdown:
            arguments.markdown.write_text("\n".join(rows) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
