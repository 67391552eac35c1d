"""Programs compiled for TPUs, where the compiler `libtpu` is installed; no TPU is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

SCRIPT = """
import json
import jax, jax.numpy as jnp
import tpu
from scaling import collectives
from score_jax.cli.config_files import load_config
from score_jax.devices import compile_pmapped, pmap
from score_jax.ops.winograd import convolve
from tpu_program import Program

devices = tpu.topology("v5e", 4)

def cycles(function):
    x = jax.ShapeDtypeStruct((4, 512, 512), jnp.bfloat16)
    text = pmap(function, devices, 0, 0).lower(x).compile().as_text()
    return Program(text).cycles()

def products(number):
    return lambda x: jax.lax.scan(lambda y, _: (jnp.tanh(y @ x), None), x, None, number)[0]

def convolutions(x):
    for _ in range(10):
        x = convolve(x, jnp.ones((3, 3, 128, 128), x.dtype))
    return x

def program(compiled):
    size = compiled.memory_analysis().generated_code_size_in_bytes
    return size, sum(Program(compiled.as_text()).cycles().values())

images = jax.ShapeDtypeStruct((4, 32, 16, 16, 128), jnp.bfloat16)
config = load_config("digits")
config["data"] |= {"labels": False, "label_dropout": 0.0, "size": 8, "channels": 1}
config["model"] = {"name": "mlp", "hidden": (16,)}
case = tpu.Case("digits", "train", "v5e", 4, "float32", "no")
step = tpu.compiled(case, config, 8, devices).as_text()
x = jnp.zeros((512, 512))
print(json.dumps({
    "once": cycles(lambda x: x @ x)["products"],
    "scans": [cycles(products(number))["products"] for number in (10, 30)],
    "flop": tpu.count(jax.make_jaxpr(products(10))(x).jaxpr),
    "collectives": [kind for kind, _ in collectives(step)],
    "step": sum(Program(step).cycles().values()),
    "flop of the step": tpu.flop_of(case, config, 8),
    "plain": program(pmap(convolutions, devices, 0, 0).lower(images).compile()),
    "shared": program(compile_pmapped(convolutions, devices, (images,), 0, 0)),
}))
"""


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_the_tpu_compiler_estimates_products_and_loops_and_sends_the_gradients_once():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (BENCHMARKS, ROOT, *sys.path)))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])

    # A loop costs its body as often as it runs; no product is faster than the chip's peak.
    ten, thirty = counts["scans"]
    assert thirty == 3 * ten
    assert counts["flop"] == 10 * 2 * 512**3
    assert counts["once"] / 1.5e9 >= 2 * 512**3 / 197e12

    # A training step sends one all-reduce, and nothing else.
    assert counts["collectives"] == ["all-reduce"]
    assert counts["step"] > 0
    assert counts["flop of the step"] > 0

    # Equal operations share their code, at the same cycles.
    (plain, cycles), (shared, same) = counts["plain"], counts["shared"]
    assert shared < 0.8 * plain
    assert same == pytest.approx(cycles, rel=0.02)


def test_without_the_compiler_one_sentence_says_so(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tpu

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^the TPU compiler is missing: install libtpu"):
        tpu.topology("v5e", 4)
