"""What torchax lacks, or does otherwise than torch: each entry says with which version, and why it stands here.

Checked with torchax 0.0.13 beside torch 2.13.0 and 2.14.1.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

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
    from torchax.ops import ops_registry

    return ops_registry.Operator(
        operation, lowering, is_jax_function=True, is_user_defined=True, needs_env=False, is_view_op=False
    )


OPERATORS: dict[Any, Any] = {}
"""{operation of torch: what torchax does for it}, in place of torchax's own or where it has none."""
