"""Results kept in fewer bits: floating numbers as 16-bit floats or 8-bit integers with a scale for each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

from lrpjax.core.vjps import wide

__all__ = ["DTYPES", "Compact", "compact", "compacted"]

DTYPES = {"float16": 1.0, "int8": 127.0}
"""{how results are kept: what the largest of a row becomes}."""

PARTS = ("values", "scale", "error")
"""The arrays of a store that stand for one; `Compact` has them as its leaves."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Compact:
    """Rows x of floating numbers in fewer bits: x ≈ values × scale. `np.asarray` gives the numbers back, in float32.

    Attributes:
      values: float16 or int8 [B, ...]; the largest of each row, in magnitude, is 1 or ±127.
      scale: float32 [B]; NaN for rows that are not finite.
      error: float32 [B], Σ|x − values × scale| / Σ|x|: measured for each row, 0 for one without any.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from lrpjax.store import compact
      >>> found = compact(lambda x: x, "int8")(jnp.array([[127.0, -3.2]]))["relevance"]
      >>> print(found.values, found.scale, np.asarray(found))
      [[127  -3]] [1.] [[127.  -3.]]
    """

    values: ArrayLike
    scale: ArrayLike
    error: ArrayLike

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        if copy is False:
            raise ValueError("numbers that were kept in fewer bits are always a copy")
        return restored(np.asarray(self.values), np.asarray(self.scale)).astype(
            dtype or np.float32, copy=False
        )


def compacted(x: jax.Array, dtype: str) -> Compact:
    """Floating rows [B, ...] in fewer bits; see `compact`."""
    rows = wide(x).reshape(len(x), -1)
    largest = jnp.abs(rows).max(1, initial=0)
    finite = jnp.isfinite(rows).all(1)
    scale = jnp.where(finite, jnp.where(largest > 0, largest, 1) / DTYPES[dtype], jnp.nan).astype(jnp.float32)
    # The scale as it is kept. One that is below the smallest float32 would make infinities.
    safe = jnp.where(scale > 0, scale, 1).astype(rows.dtype)[:, None]
    ratio = jnp.where(finite[:, None], rows / safe, 0)
    if dtype == "int8":
        ratio = jnp.clip(jnp.round(ratio), -127, 127)
    values = ratio.astype(dtype)
    lost = jnp.abs(rows - values.astype(rows.dtype) * safe).sum(1)
    total = jnp.abs(rows).sum(1)
    error = jnp.where(total > 0, lost / jnp.where(total > 0, total, 1), 0).astype(jnp.float32)
    return Compact(values.reshape(x.shape), scale, jnp.where(finite, error, jnp.nan))


def restored(values: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers that values and scales stand for; NaN where a row was not finite."""
    scale = scale.astype(np.float32)
    return values.astype(np.float32) * scale.reshape(*scale.shape, *(1,) * (values.ndim - scale.ndim))


def parted(names: Collection[str]) -> list[str]:
    """The arrays of a store that are kept in parts, by the names of the parts.

    Example:
      >>> parted(["output", "relevance.error", "relevance.scale", "relevance.values"])
      ['relevance']
    """
    whole = [name.removesuffix(".values") for name in names if name.endswith(".values")]
    return [n for n in whole if n not in names and all(f"{n}.{part}" in names for part in PARTS)]


def compact(
    explain: Callable[..., Any],
    dtype: str | Mapping[str, str] = "int8",
    names: Sequence[str] = ("relevance",),
) -> Callable[..., Any]:
    """`explain`, whose results are kept in a half or a quarter of the bytes, with the error stated.

    Each row x is divided by a scale of its own, so that its largest entry becomes 1 ("float16") or 127 ("int8"), and
    rounded: |x − x̂| ≤ 2⁻¹¹ |x| + 2⁻²⁵ max|x| in 16 bits, and ≤ max|x| / 254 in 8, to which float32 rounding adds. What
    that came to, Σ|x − x̂| / Σ|x|, is measured for each row and stored beside it. In a store the array keeps its name:
    `open_store(path)["relevance"]` gives float32 numbers; "relevance.values", "relevance.scale" and "relevance.error"
    are there too.

    Args:
      explain: function that gives a dict of arrays by name, or a bare array, which is "relevance"; as for
        `lrpjax.explain_batches`.
      dtype: "float16" or "int8"; or {name: one of these}.
      names: what is kept so, where `dtype` is one for all; all other results stay as they are.

    Returns:
      A function of the same arguments; those of its results are `Compact`, of which `np.asarray` gives numbers.

    Raises:
      ValueError: there is no such dtype or name, or the result is not floating.

    Example:
      >>> import tempfile
      >>> import jax, numpy as np
      >>> from lrpjax import explain_batches, open_store
      >>> from lrpjax.store import compact
      >>> explain = jax.jit(compact(lambda x: {"relevance": x**2}, "float16"))
      >>> path, x = tempfile.mkdtemp(), np.array([[1.0, 3.0]], np.float32)
      >>> for found in explain_batches(explain, [x], store=path, progress=False):
      ...     pass
      >>> store = open_store(path)
      >>> store["relevance"], store["relevance.values"], np.asarray(store["relevance.error"]) < 1e-3
      (<float32[1, 2] on the disk as float16>, <float16[1, 2] on the disk>, array([ True]))
    """
    wanted = dict(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(names, dtype)
    for name, kind in wanted.items():
        if kind not in DTYPES:
            raise ValueError(f"{name!r} can be kept as {' or '.join(DTYPES)}, not as {kind!r}")

    def run(*args: Any, **kwargs: Any) -> Any:
        found = explain(*args, **kwargs)
        bare = not isinstance(found, dict)
        results = {"relevance": found} if bare else dict(found)
        for name, kind in wanted.items():
            if name not in results:
                raise ValueError(
                    f"the results are {', '.join(map(str, results))}; there is no {name!r} to keep as {kind}"
                )
            leaf = results[name]
            if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"only an array of floating numbers can be kept as {kind}; {name!r} is {leaf}"
                )
            results[name] = compacted(leaf, kind)
        return results

    return run
