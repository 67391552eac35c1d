"""Two CPU devices, shapes checked in every annotated function, no silent broadcasting of ranks."""

import os
import shutil
import signal
import tempfile
import threading

# Before jax is imported, and for the processes that tests start.
# Collectives of several CPU devices on few cores need more threads than cores.
os.environ.setdefault("NPROC", "32")
# A program that one test compiled need not be compiled again by another.
CACHE = tempfile.mkdtemp(prefix="score_jax_tests_")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

# Tests send Ctrl-C to their own processes, which would inherit that a background job ignores it.
is_main = threading.current_thread() is threading.main_thread()
if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("score_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="session")
def two_devices():
    assert len(jax.devices()) == 2
    yield
    shutil.rmtree(CACHE, ignore_errors=True)
