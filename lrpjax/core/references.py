"""Plain writings of kernels, traced in their place."""

import inspect
from collections.abc import Callable

from lrpjax.core import compat
from lrpjax.core.graph import Call


def find(call: Call) -> Callable | None:
    """The plain writing of a kernel of JAX's own, as a function of the call's arrays; None for other calls."""
    return None


def wants_static(reference: Callable) -> bool:
    """Whether a function takes the static arguments of a call, by the keyword `static`."""
    try:
        return "static" in inspect.getfullargspec(reference).kwonlyargs
    except TypeError:  # no function of Python
        return False


def with_static(reference: Callable, call: Call) -> Callable:
    static = compat.arguments_of(call.eqn)[0]
    return lambda *arrays: reference(*arrays, static=static)
