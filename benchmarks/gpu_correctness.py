"""The stage `correctness` of benchmarks/gpu.sh: figures with bounds."""

import functools
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import speed
from gpu_stages import Record

import score_jax as sj
from score_jax.data.sources import digits

TESTS = Path(__file__).resolve().parents[1] / "tests"
ROUNDING = {"float32, highest precision": 1e-5, "float32": 5e-3, "bfloat16": 1e-1}
"""Bounds of relative errors. A GPU rounds the factors of float32 products to TF32 by default."""


def correctness(record: Record) -> None:
    """Checks scores, seeds, batch sizes and precisions."""
    fixtures(record)
    if not record.options.tiny:
        published_width(record)
    seeds(record)


def fixtures(record: Record) -> None:
    """Scores of the networks in tests/fixtures beside those of the official code."""
    sys.path.append(str(TESTS))
    from truths import NCSN_FIXTURES, NCSNV2_FIXTURES, golden, relative

    names = ["ncsn_mnist_ngf8"] if record.options.tiny else NCSN_FIXTURES + NCSNV2_FIXTURES
    for name in names:
        g = golden(name)
        model, params = sj.from_official(g["param"])

        def error(model=model, params=params, g=g):
            score = jax.jit(model.apply)({"params": params}, g["x"], g["labels"])
            return relative(score, g["score"])

        with jax.default_matmul_precision("highest"):
            errors = {"float32, highest precision": error()}
        if record.content["about"]["platform"] == "gpu":
            errors["float32"] = error()
        errors["bfloat16"] = error(model.clone(dtype="bfloat16"))
        for precision, value in errors.items():
            record.check(f"{name}, {precision}", value, ROUNDING[precision])


def published_width(record: Record) -> None:
    """Scores of the network that is measured for speed, in bfloat16 and in float32."""
    network = speed.make_network(speed.CASES["cifar10_gpu"])
    scores = []
    for dtype in ("float32", "bfloat16"):
        apply = jax.jit(network.model.clone(dtype=dtype).apply)
        scores.append(np.asarray(apply({"params": network.params}, *network.inputs)))
    error = np.linalg.norm(scores[1] - scores[0]) / np.linalg.norm(scores[0])
    record.check("speed's network, bfloat16 against float32", error, ROUNDING["bfloat16"])


def seeds(record: Record) -> None:
    """Training twice, sampling twice, and in batches of another size."""
    tiny = record.options.tiny
    data, sigmas = digits(), sj.geometric_sigmas(1.0, 0.03, 4 if tiny else 16)
    model = sj.MLP(sigmas=sigmas) if tiny else sj.NCSN(sigmas=sigmas, width=64)
    trainer = sj.make_trainer(
        model, sj.annealed_dsm, optax.adam(1e-3), sigmas, prepare=sj.make_prepare(data.num_values)
    )
    settings = {"num_steps": 4 if tiny else 300, "batch_size": 8 if tiny else 128}
    states = []
    for _ in range(2):
        state = sj.fit(trainer, data.train, **settings, progress=False)
        states.append(jax.device_get(state.params))
    record.check("training twice, largest difference", largest(*states), 0.0)

    draw = functools.partial(
        sj.sample,
        sj.score_fn(model, jax.tree.map(np.asarray, states[0])),
        sigmas,
        number=8 if tiny else 64,
        shape=(8, 8, 1),
        num_steps=2 if tiny else 20,
        progress=False,
    )
    size = 8 if tiny else 64
    first, again, smaller = (draw(batch_size=each) for each in (size, size, size // 2))
    record.check("sampling twice, largest difference", largest(first, again), 0.0)
    record.check("sampling in smaller batches, largest difference", largest(first, smaller), 1e-3)


def largest(a, b) -> float:
    """The largest difference of two pytrees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)
