"""float64, strict dtype promotion and warnings as errors (pyproject) for every test."""

import gc
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs, run once: compiling is what takes the time. Four devices, for shard_map.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
)

import jax
import pytest

import lrpjax
from lrpjax.core import compiled

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Most programs are single operations that many files run: each process keeps what it compiled, on disk, beyond the files.
programs = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", programs.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# What test files share is found from all folders: helpers.py, explain_in_process.py, golden.py.
HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "golden")]

# Traces are many objects that live long: looking for cycles among them after every few hundred new ones is most of the time of a long run.
gc.set_threshold(100_000, 20, 50)


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file_only():
    """Compiled programs are let go after each file: thousands of them fill gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


COMPILED = ("test_compiled", "test_golden", "test_transform", "test_docs")
"""The files in which explanations outside of jit are compiled, as they are for users. Elsewhere programs are small and
run once: one operation at a time takes half of the time, since many tests share the operations."""


@pytest.fixture(autouse=True)
def explanations_outside_of_jit(request, monkeypatch):
    """None is kept from test to test: some exchange parts of lrpjax."""
    lrpjax.clear_cache()
    if request.path.stem not in COMPILED:
        monkeypatch.setattr(compiled, "KEPT", 0)
    yield
    lrpjax.clear_cache()


def pytest_unconfigure():
    programs.cleanup()
