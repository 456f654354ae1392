"""What torchax lacks, or does otherwise than torch: each entry says with which version, and why it stands here.

Checked with torchax 0.0.13 beside torch 2.13.0 and 2.14.1.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.errors import UnsupportedError

MISSING = 'lrpjax.torch needs torch and torchax: pip install "lrpjax[torch]"'


class _Removed:
    """Stands for an operator, or an overload of one, that torch no longer has."""

    def __init__(self, name: str):
        self.name = name

    def __getattr__(self, overload: str) -> "_Removed":
        if overload.startswith("__"):
            raise AttributeError(overload)
        return _Removed(f"{self.name}.{overload}")


@contextlib.contextmanager
def _removed_operators() -> Iterator[None]:
    """While open, operators that torch does not have are placeholders, which nothing will ever call.

    torchax 0.0.13 names overloads by dimension names (`aten.prod.dim_Dimname`, `aten.index_copy.dimname`, …) in tables
    that it builds when it is imported. torch 2.13 removed them. torchax 0.0.14 leaves them out itself.
    """
    from torch import _ops

    classes = [_ops.OpOverloadPacket, _ops._OpNamespace]
    originals = [cls.__getattr__ for cls in classes]

    def lenient(original: Any) -> Any:
        def __getattr__(self, name: str) -> Any:
            try:
                return original(self, name)
            except AttributeError:
                if name.startswith("__"):
                    raise
                return _Removed(f"{self}.{name}")

        return __getattr__

    for cls, original in zip(classes, originals, strict=True):
        cls.__getattr__ = lenient(original)
    try:
        yield
    finally:
        for cls, original in zip(classes, originals, strict=True):
            cls.__getattr__ = original


def import_torchax() -> Any:
    """torchax, imported beside whichever torch there is.

    Raises:
        ImportError: torch or torchax is not installed.
    """
    try:
        importlib.import_module("torch")
        with _removed_operators():
            for part in ("ops.jaten", "ops.jtorch", "ops.jtorchvision_nms", "decompositions"):
                importlib.import_module(f"torchax.{part}")
        return importlib.import_module("torchax")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("torch", "torchax"):
            raise ImportError(MISSING) from error
        raise


def of_arrays(operation: Any, lowering: Callable) -> Any:
    """A function of JAX arrays as what torchax does for an operation of torch."""
    from torchax.ops import ops_registry  # pyright: ignore[reportMissingImports]

    return ops_registry.Operator(
        operation, lowering, is_jax_function=True, is_user_defined=True, needs_env=False, is_view_op=False
    )


def linear(input: Any, weight: Any, bias: Any = None) -> Any:
    """`torch.nn.functional.linear`. That of torchax 0.0.13 knows its arguments by other names, so that
    `F.linear(input=x, weight=w)`, as timm writes it, fails."""
    made = jnp.einsum("...a,ba->...b" if weight.ndim > 1 else "...a,a->...", input, weight)
    return made if bias is None else made + bias


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """`scaled_dot_product_attention`. That of torchax 0.0.13 is NaN where a row of the mask lets nothing through, as in
    a batch with padding; torch gives 0 there. It also draws random numbers where torch is asked for dropout, which
    no explanation can have."""
    if dropout_p > 0:
        raise UnsupportedError(
            "attention with dropout_p > 0 draws random numbers, and an explanation needs a function"
        )
    if enable_gqa:
        key, value = (jnp.repeat(x, query.shape[-3] // x.shape[-3], axis=-3) for x in (key, value))
    scores = query @ jnp.swapaxes(key, -2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = np.tril(np.ones(scores.shape[-2:], bool))
    if attn_mask is None:
        return jax.nn.softmax(scores, axis=-1) @ value
    allowed = attn_mask if attn_mask.dtype == bool else attn_mask != -jnp.inf
    some = jnp.any(allowed, axis=-1, keepdims=True)
    if attn_mask.dtype == bool:
        masked = jnp.where(allowed | ~some, scores, -jnp.inf)
    else:
        masked = scores + jnp.where(some, attn_mask, 0).astype(scores.dtype)
    weights = jax.nn.softmax(masked, axis=-1)
    if isinstance(some, jax.core.Tracer) or not some.all():
        weights = jnp.where(some, weights, 0)
    return weights @ value


def grouped_mm(input: Any, mat2: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """`torch._grouped_mm`, with which transformers 5 multiplies tokens with the matrices of their experts: torchax
    0.0.13 has none.

    Raises:
        UnsupportedError: it is not of rows, ordered by expert, with one matrix for each expert.
    """
    if input.ndim != 2 or mat2.ndim != 3 or offs is None or bias is not None or out_dtype is not None:
        raise UnsupportedError(
            f"torch._grouped_mm of {input.ndim} and {mat2.ndim} dimensions, or with a bias or a dtype of its own, has "
            "no lowering: only that of rows with one matrix for each group has"
        )
    sizes = jnp.diff(offs.astype(jnp.int32), prepend=jnp.zeros(1, jnp.int32))
    return jax.lax.ragged_dot(input, mat2, sizes)


def power(x: Any, exponent: Any) -> Any:
    """`x ** number`, as a root or a square where it is one: that of torchax 0.0.13 is a general power, in which nothing
    shows that `x.pow(2).sum().pow(0.5)` is a norm, and whose derivative at 0 is NaN."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        if exponent == 0.5:
            return jnp.sqrt(x)
        if exponent == -0.5:
            return jax.lax.rsqrt(x)
        if float(exponent).is_integer() and abs(exponent) < 8:
            return jax.lax.integer_pow(x, int(exponent))
    from torchax.ops import jaten  # pyright: ignore[reportMissingImports]

    return jaten._aten_pow(x, exponent)


@functools.cache
def operators() -> dict[Any, Any]:
    """{operation of torch: what torchax does for it}, in place of torchax's own or where it has none."""
    import torch

    aten = torch.ops.aten
    rows = {
        torch.nn.functional.linear: linear,
        torch.nn.functional.scaled_dot_product_attention: attention,
        aten.scaled_dot_product_attention: attention,
        aten._grouped_mm: grouped_mm,
        aten.pow.Tensor_Scalar: power,
        # With which `torch._check_tensor_all` looks at data: torchax 0.0.13 has none.
        aten._is_all_true: jnp.all,
    }
    return {operation: of_arrays(operation, lowering) for operation, lowering in rows.items()}
