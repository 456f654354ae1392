"""float64, strict dtype promotion and warnings as errors (pyproject) for every test."""

import gc
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs, run once: compiling is what takes the time. Four devices, for shard_map.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))

# Traces are many objects that live long: looking for cycles among them after every few hundred new ones is most of the time of a long run.
gc.set_threshold(100_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file_only():
    """Compiled programs are let go after each file: thousands of them fill gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()
