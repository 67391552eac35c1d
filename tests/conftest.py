"""Two CPU devices, shapes checked in every annotated function, no silent broadcasting of ranks."""

import os

os.environ.setdefault("NPROC", "32")  # enough threads for collectives of CPU devices on few cores

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("score_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="session")
def two_devices():
    assert len(jax.devices()) == 2
