"""float64, strict dtype promotion and warnings as errors (pyproject) for every test."""

import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Small programs, run once: compiling is what takes the time. Four devices, for shard_map.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
)

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))
