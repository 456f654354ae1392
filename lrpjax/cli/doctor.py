"""`lrpjax doctor`: what is installed, on which devices, and whether it works; for bug reports.

Nothing that it prints tells who ran it or where: no paths, no names of users or machines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import composites, transform
from lrpjax._version import __version__

SHOWN = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "JAX_PLATFORM_NAME",
    "JAX_ENABLE_X64",
    "JAX_DEBUG_NANS",
    "JAX_DISABLE_JIT",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_TF32_OVERRIDE",
)
"""Environment variables whose values are told; of others of JAX and XLA it is told that they are set."""

SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_disable_jit",
    "jax_debug_nans",
)


def report() -> dict[str, Any]:
    """What `lrpjax doctor` tells, as values that JSON can hold.

    Returns:
      A dict with "lrpjax", "python", "platform", "packages" and "extras" (name -> version, or None where it is not
      installed), "devices", "settings", "environment", "checks" and "passed".

    Example:
      >>> found = report()
      >>> found["passed"], [check["passed"] for check in found["checks"]]
      (True, [True, True, True, True])
    """
    packages, extras = _packages()
    checks = _checks()
    return {
        "lrpjax": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "extras": extras,
        "devices": _devices(),
        "settings": {name: getattr(jax.config, name) for name in SETTINGS},
        "environment": _environment(),
        "checks": checks,
        "passed": all(check["passed"] for check in checks),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _packages() -> tuple[dict[str, str | None], dict[str, dict[str, str | None]]]:
    """Versions of what lrpjax needs, and of what its extras do, as the metadata of the installed lrpjax say."""
    try:
        required = metadata.requires("lrpjax") or []
    except metadata.PackageNotFoundError:
        # It runs from a folder, without being installed.
        required = ["jax", "jaxlib", "flax", "optax", "chex", "rich"]
    packages: dict[str, str | None] = {}
    extras: dict[str, dict[str, str | None]] = {}
    for line in required:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", line)
        if name is None:
            continue
        if extra is None:
            packages[name[0]] = _version(name[0])
        elif extra[1] not in (
            "test",
            "dev",
            "docs",
        ):  # for those who develop lrpjax; they hold all the others
            extras.setdefault(extra[1], {})[name[0]] = _version(name[0])
    packages.setdefault("numpy", np.__version__)
    return packages, extras


def _devices() -> list[str]:
    try:
        devices = jax.devices()
    except RuntimeError as error:
        return [f"none: {_public(str(error))}"]
    kinds = [f"{device.platform}: {device.device_kind}" for device in devices]
    return [f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)]


def _environment() -> dict[str, str]:
    names = sorted(n for n in os.environ if n in SHOWN or n.startswith(("JAX_", "XLA_", "LIBTPU_")))
    return {name: _public(os.environ[name]) if name in SHOWN else "(set)" for name in names}


def _public(text: str) -> str:
    """Text without paths."""
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:\\|/|\\\\)[^\s,;:'\"]*", "<path>", text)


# x @ _FIRST is (5, 1, -3): the last unit is off. The output is 5 · 1 + 1 · 2 = 7. All numbers are exact in bfloat16.
_X = np.array([1, 2], np.float32)
_FIRST = np.array([[1, -1, -1], [2, 1, -1]], np.float32)
_LAST = np.array([1, 2, 4], np.float32)


def _network(x):
    return jax.nn.relu(x @ jnp.asarray(_FIRST)) @ jnp.asarray(_LAST)


def _checks() -> list[dict[str, Any]]:
    """A network of two layers, explained under jit, against numbers from paper."""
    explain = lambda composite: jax.jit(transform.relevance(_network, composite))(_X)
    # z⁺: the units have relevance 5 and 2. The first has inputs 1 and 4 of 5, the second only the second input's.
    z_plus = lambda: explain(composites.excitation_backprop())
    epsilon = lambda: explain(composites.epsilon(0.0))
    gradient = lambda: jax.jit(jax.grad(_network))(_X) * _X
    return [
        _check("z⁺ gives what is calculated by hand", z_plus, lambda: [1.0, 6.0]),
        _check("relevance sums to the output", lambda: [z_plus().sum()], lambda: [7.0]),
        _check("ε = 0 is gradient × input", epsilon, gradient),
        _check("float32 stays float32", lambda: [str(epsilon().dtype)], lambda: ["float32"]),
    ]


def _check(name: str, find: Callable[[], Any], expect: Callable[[], Any]) -> dict[str, Any]:
    try:
        found, expected = np.asarray(find()).tolist(), np.asarray(expect()).tolist()
        numbers = not isinstance(expected[0], str)
        passed = bool(np.allclose(found, expected, rtol=1e-3, atol=1e-5)) if numbers else found == expected
    except Exception as error:  # whatever is broken is what is asked for
        return {"check": name, "passed": False, "found": f"{type(error).__name__}: {_public(str(error))}"}
    return {"check": name, "passed": passed, "found": found, "expected": expected}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds `lrpjax doctor` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what is installed here and whether it works; for bug reports",
        description="Prints versions, devices, settings and a self-check, without paths or names of users. "
        "The exit code is 0 if all checks pass and 1 if not.",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run_doctor)
    return parser


def run_doctor(args: argparse.Namespace) -> int:
    """Prints the report, as the command line says; returns the exit code: 0, or 1 if a check fails."""
    found = report()
    print(json.dumps(found, indent=2, ensure_ascii=False, default=str) if args.json else _text(found))
    return 0 if found["passed"] else 1


def _text(found: dict[str, Any]) -> str:
    versions = lambda names: ", ".join(f"{name} {version or 'is missing'}" for name, version in names.items())
    lines = [f"lrpjax {found['lrpjax']}, {found['python']}, {found['platform']}", versions(found["packages"])]
    lines += [f"extra {extra}: {versions(names)}" for extra, names in found["extras"].items()]
    lines += [f"device: {device}" for device in found["devices"]]
    lines += [f"{name} = {value}" for name, value in {**found["settings"], **found["environment"]}.items()]
    for check in found["checks"]:
        wanted = "" if check["passed"] else f": found {check['found']}, expected {check.get('expected')}"
        lines.append(f"{'PASS' if check['passed'] else 'FAIL'} {check['check']}{wanted}")
    return "\n".join(lines)
