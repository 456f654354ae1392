"""Checks of array values, shared by the steps. They see concrete values only: inside `jit` they are
skipped."""

from __future__ import annotations

import numpy as np
from jax.core import Tracer


def concrete(x) -> bool:
    """Whether `x` has values that can be looked at, i.e. is not an abstract value inside a transformation."""
    return not isinstance(x, Tracer)


def finite(name: str, x) -> None:
    """Raise ValueError if `x` holds a NaN or an infinity."""
    if concrete(x) and not np.isfinite(np.asarray(x)).all():
        raise ValueError(f"{name} has non-finite values (NaN or infinity)")


def non_negative(name: str, x, reason: str) -> None:
    """Raise ValueError if `x` holds a negative value; `reason` says why it must not."""
    if concrete(x) and (np.asarray(x) < 0).any():
        raise ValueError(f"{name} has negative values; {reason}")


def positive_number(name: str, x):
    """`x` if it is a finite number above 0 (or abstract); ValueError otherwise."""
    if concrete(x) and not (np.ndim(x) == 0 and np.isfinite(x) and x > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {x}")
    return x


def dims(name: str, x, expected: str) -> None:
    """Raise ValueError unless `x` has the axes that `expected` names, e.g. "(N, D)", and none is empty."""
    count = len([axis for axis in expected.strip("()").split(",") if axis.strip()])
    if x.ndim != count:
        raise ValueError(f"{name} must have shape {expected}, got {x.shape}")
    if 0 in x.shape:
        raise ValueError(f"{name} is empty: its shape is {x.shape}")
