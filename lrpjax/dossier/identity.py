"""What was examined, exactly: hashes of the weights, the program and the inputs; versions; the device; the plan."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import transform
from lrpjax._version import __version__
from lrpjax.composites import Composite

PACKAGES = ("jax", "jaxlib", "flax", "numpy")
SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)
"""The settings of JAX that change numbers."""


def sha256(*parts: bytes | str) -> str:
    """64 hexadecimal digits; each part counts with its length, so that no two lists of parts are the same bytes.

    >>> sha256("ab", "c") == sha256("a", "bc")
    False
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def array_hash(array: Any) -> str:
    """The hash of an array's dtype, shape and bytes (of its numbers in row-major order).

    >>> array_hash(np.zeros(2, np.float32)) == array_hash(np.zeros((2, 1), np.float32))
    False
    """
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    values = np.asarray(array)
    return sha256(values.dtype.name, repr(tuple(values.shape)), np.ascontiguousarray(values).tobytes())


def text_hash(text: str) -> str:
    """The hash of a program's text, without what changes from process to process or from place to place: addresses in
    memory, and the names of files and lines that XLA notes beside its instructions.

    >>> text_hash("f at 0x7f01") == text_hash("f at 0x7f02")
    True
    """
    text = re.sub(r"0x[0-9a-f]{4,}", "0x", text)
    text = re.sub(r",? ?metadata=\{[^{}]*\}", "", text)
    # The tables that metadata refers to stand between the module's first line and its computations.
    text = re.sub(r"(?ms)^(FileNames|FunctionNames|FileLocations|StackFrames)\n(?:.+\n)*", "", text)
    return sha256(re.sub(r"\n{2,}", "\n\n", text))


def weights(params: Any) -> dict[str, Any]:
    """Each leaf's path, dtype, shape and hash, and one hash of all of them."""
    leaves = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shape, dtype = jnp.shape(leaf), getattr(leaf, "dtype", np.asarray(leaf).dtype)
        leaves.append(
            {
                "path": jax.tree_util.keystr(path, simple=True, separator="/"),
                "dtype": str(dtype),
                "shape": list(shape),
                "sha256": array_hash(leaf),
            }
        )
    total = sha256(*(part for leaf in leaves for part in (leaf["path"], leaf["sha256"])))
    number = sum(int(np.prod(leaf["shape"], dtype=np.int64)) for leaf in leaves)
    return {"sha256": total, "parameters": number, "leaves": leaves}


def program(f: Callable[..., Any], params: Any, x: Any) -> dict[str, Any]:
    """The hash of the jaxpr of f for one input, and that of the arrays that f holds itself."""
    traced = jax.make_jaxpr(f)(params, x[:1])
    held = [
        np.asarray(c) for c in traced.consts if not jnp.issubdtype(jnp.result_type(c), jax.dtypes.extended)
    ]
    return {
        "jaxpr_sha256": text_hash(str(traced)),
        "equations": len(traced.jaxpr.eqns),
        "arrays_held_by_f": {
            "number": len(held),
            "elements": int(sum(a.size for a in held)),
            "sha256": sha256(*map(array_hash, held)),
        },
    }


def compiled(lowered: Any, executable: Any) -> dict[str, Any]:
    """The hashes of the program of the explanation: as XLA was given it, and as XLA made it of that."""
    try:
        made = text_hash(executable.as_text())
    except Exception:  # some backends do not tell
        made = None
    return {"stablehlo_sha256": text_hash(lowered.as_text()), "optimised_hlo_sha256": made}


def environment() -> dict[str, Any]:
    """Versions, device and settings that numbers depend on."""
    device = jax.devices()[0]
    versions = {"lrpjax": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "compiler": getattr(device.client, "platform_version", "").splitlines()[:1],
        "settings": {name: _plain(getattr(jax.config, name, None)) for name in SETTINGS},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def composite(chosen: Composite, name: str | None) -> dict[str, Any]:
    """A composite's name and its pairs as text."""
    return {
        "name": name or chosen.preset or "a composite of the user's",
        "method": chosen.method,
        "pairs": [[_text(selector), _text(rule)] for selector, rule in chosen.pairs],
        "default": None if chosen.default is None else _text(chosen.default),
        "primitives": dict(chosen.primitives),
        "calls": sorted(chosen.calls),
    }


def plan(f: Callable[..., Any], chosen: Composite, params: Any, x: Any) -> dict[str, Any]:
    """Which rule explains which unit."""
    made = transform.plan(f, chosen, params, x, argnums=1)
    units = [
        {
            "path": u.path,
            "kind": f"{u.kind}:{u.name}" if u.name else u.kind,
            "rule": u.rule,
            "shape": list(u.shape),
        }
        for u in made.units
    ]
    return {"units": units, "unmatched": made.unmatched, "notes": list(map(placed, made.notes))}


def placed(text: str) -> str:
    """A message without the folders of the files that it names: they differ from machine to machine, and may hold names
    of persons.

    >>> placed("gt at /home/someone/code/model.py:12 (f)")
    'gt at code/model.py:12 (f)'
    """
    return re.sub(r"(?<![\w/])/(?:[^\s/:'\"]+/)*([^\s/:'\"]+/[^\s/:'\"]+\.py)", r"\1", text)


def _text(thing: Any) -> str:
    return re.sub(r"0x[0-9a-f]{4,}", "0x", str(thing))


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
