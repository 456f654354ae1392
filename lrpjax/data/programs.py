"""What a function computes, as one fingerprint: a store is gone on with by the same function only."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType
from typing import Any

import jax
import numpy as np
from jax.export import Exported
from jax.extend import core

from lrpjax.data import layout


def fingerprint(program: core.ClosedJaxpr) -> str:
    """The hash of a program: of its text, the arrays that it closes over, and the Python functions that it calls back.

    Of a function that is called back (`jax.pure_callback`, `io_callback`) the code counts, its defaults, and the
    numbers, texts, arrays and functions that it closes over; what it reads elsewhere does not. `jax.debug.callback`
    gives nothing to the results, and is passed over.

    Args:
      program: what `jax.make_jaxpr` gives.

    Returns:
      32 hexadecimal digits.

    Example:
      >>> import jax
      >>> fingerprint(jax.make_jaxpr(lambda x: 2 * x)(1.0)) == fingerprint(jax.make_jaxpr(lambda x: 3 * x)(1.0))
      False
    """
    text = re.sub(r"\bat 0x[0-9a-fX]+", "", str(program))
    arrays = layout.fingerprint(list(_constants(program)))
    return hashlib.blake2b(text.encode() + arrays.encode(), digest_size=16).hexdigest()


def _constants(program: core.ClosedJaxpr | core.Jaxpr) -> Iterator[Any]:
    """The arrays, exported programs and called-back functions of a jaxpr and those inside it."""
    yield from getattr(program, "consts", ())
    for equation in getattr(program, "jaxpr", program).eqns:
        yield from (atom.val for atom in equation.invars if isinstance(atom, core.Literal))
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(value):
                yield from _constants(value)
            elif isinstance(value, Exported):
                yield np.frombuffer(value.mlir_module_serialized, np.uint8)
            elif callback := getattr(value, "callback_func", None):
                yield from _parts(callback, set())


def _is_program(value: Any) -> bool:
    return isinstance(value, core.ClosedJaxpr | core.Jaxpr)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """What a Python function consists of, or a value that it closes over, as arrays."""
    if id(value) in seen:
        return
    if isinstance(value, functools.partial):
        value = (value.func, value.args, value.keywords)
    value = getattr(value, "__func__", value)  # of a bound method
    if isinstance(value, FunctionType):
        seen.add(id(value))
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != _EMPTY]
        value = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
    if isinstance(value, CodeType):
        value = [value.co_code, value.co_names, value.co_consts]
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    if isinstance(value, list | tuple):
        yield np.int64(len(value))
        for part in value:
            yield from _parts(part, seen)
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        yield value
    elif value is None or isinstance(value, str | bytes | int | float | complex):
        yield np.frombuffer(repr(value).encode(), np.uint8)
    elif isinstance(value, frozenset):  # its order changes from run to run
        yield np.frombuffer(repr(sorted(map(repr, value))).encode(), np.uint8)
    elif callable(value) and isinstance(call := type(value).__call__, FunctionType):
        yield from _parts(call, seen)


_EMPTY = CellType()
