"""Two CPU devices, types checked in every function, no silent broadcasting of ranks."""

import functools
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

# Before jax is imported, and for the processes that tests start.
# Collectives of several CPU devices on few cores need more threads than cores.
os.environ.setdefault("NPROC", "32")
# A program that one test compiled need not be compiled again by another.
CACHE = tempfile.mkdtemp(prefix="score_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
# Most programs of the tests take longer to optimise than to run; see `optimize`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
QUICK = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
"""Flags with which XLA compiles a third faster, as far as its version knows them."""


def known(flags):
    """Returns True if XLA knows flags: a process ends at one that it does not know."""
    environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", "import jax; jax.devices()"]
    return not subprocess.run(line, env=environment, capture_output=True).returncode


GIVEN = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag not in QUICK]
if "PYTEST_XDIST_WORKER" not in os.environ:  # A worker has the flags of its parent.
    quick = QUICK if known(QUICK) else [flag for flag in QUICK if known([flag])]
    os.environ["XLA_FLAGS"] = " ".join([*GIVEN, *quick])
# Tracing makes many objects that live until the end of a module.
gc.set_threshold(200_000, 20, 50)

# Tests send signals to their own processes, which would inherit that a background job ignores
# Ctrl-C, and one under nohup SIGHUP.
if threading.current_thread() is threading.main_thread():
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)

import jax
import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Shapes are checked in the library. The command has few arrays and many calls, which that would
# slow down: its types are checked alone.
library = (path.stem for path in (Path(__file__).parents[1] / "score_jax").iterdir())
install_import_hook(
    [f"score_jax.{name}" for name in library if name.isidentifier() and name != "cli"],
    "beartype.beartype",
)
beartype_package(
    "score_jax.cli",
    conf=BeartypeConf(claw_is_pep526=False, is_pep484_tower=True, violation_type=TypeError),
)


@pytest.fixture(autouse=True)
def optimize(request, monkeypatch):
    """XLA's usual optimisations for tests marked `optimized` and the processes that they start."""
    is_marked = request.node.get_closest_marker("optimized") is not None
    if is_marked:
        monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
        monkeypatch.setenv("XLA_FLAGS", " ".join(GIVEN))
    jax.config.update("jax_disable_most_optimizations", not is_marked)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees the programs of a module: each has memory mappings, of which Linux allows 65,530.

    A process that exceeds them crashes while it compiles.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True, scope="session")
def two_devices():
    assert len(jax.devices()) == 2
    yield
    shutil.rmtree(CACHE, ignore_errors=True)


@pytest.fixture
def command(capsys):
    """Runs the command in this process and returns its exit code and standard error."""
    from runs import run_command

    return functools.partial(run_command, capsys)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the system, or the one that Playwright has installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with playwright.sync_playwright() as started:
        if found is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("needs Chromium: apt-get install chromium, or playwright install chromium")
        arguments = ["--no-sandbox"] if is_root else []
        opened = started.chromium.launch(executable_path=found, args=arguments)
        yield opened
        opened.close()
