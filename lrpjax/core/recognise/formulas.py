"""Which function an elementwise region is: found by evaluating it at a handful of points, not by its name or spelling.

Everything is computed in NumPy while tracing; nothing is compiled. A known function is an entry in KNOWN, or a
family with a parameter in `_family`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax import lax

from lrpjax.core.graph import Node, Value
from lrpjax.core.primitives import POINTWISE

POINTS = np.concatenate(
    [
        [-61.0, -9.3, -6.4, -4.1, -3.3, -2.6, -1.4, -0.9, -0.3, -0.011],
        [0.0, 0.013, 0.27, 0.8, 1.2, 1.9, 2.7, 3.2, 3.8, 5.3, 6.6, 8.7, 61.0],
    ]
)
"""Where functions are compared: between and beyond the kinks of those that are made of lines."""

_erf = np.vectorize(math.erf, otypes=[float])
_sigmoid = lambda x: 0.5 * (1 + np.tanh(x / 2))
_softplus = lambda x: np.logaddexp(x, 0)
_elu = lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

KNOWN: Mapping[str, Callable] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "steep_hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "tanh": np.tanh,
    "softplus": _softplus,
    "log_sigmoid": lambda x: -_softplus(-x),
    "silu": lambda x: x * _sigmoid(x),
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "tanh_gelu": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "elu": _elu,
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * _elu(x)),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "soft_sign": lambda x: x / (1 + np.abs(x)),
    "squareplus": lambda x: (x + np.sqrt(x * x + 4)) / 2,
    "abs": np.abs,
    "exp": np.exp,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "square": np.square,
    "sparse_plus": lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
    "identity": lambda x: x,
}
"""Name -> the function, of float64 arrays. The first that fits gives the name."""

ALIASES = {"tanh_gelu": "gelu", "steep_hard_sigmoid": "hard_sigmoid"}
"""Functions that share a name with the one that they stand for."""

STAND_IN = 0.3719
"""For a number that is not known while tracing, such as the learned slope of a PReLU."""


def _values() -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        return {name: np.asarray(f(POINTS), float) for name, f in KNOWN.items()}


_VALUES = _values()


def name_of(nodes: Sequence[Node], source: Value) -> str | None:
    """The known function of `source` that these nodes compute, the last of them its result; None if it is none."""
    y, guessed = at_points(nodes, source)
    if y is None:
        return None
    close = lambda known: _close(y, known, _tolerance(source))
    if not guessed:
        for name, known in _VALUES.items():
            if close(known):
                return ALIASES.get(name, name)
    return _family(y, close, guessed)


def _family(y: np.ndarray, close: Callable, guessed: bool) -> str | None:
    """Functions with a parameter, read off the ends."""
    x, low, high = POINTS, y[0], y[-1]
    if not (np.isfinite(low) and np.isfinite(high)):
        return None
    slope = low / x[0]
    if slope != 1 and slope != 0 and close(np.where(x > 0, x, slope * x)):
        return "prelu" if guessed else "leaky_relu"
    if guessed:
        return None
    if low < high and close(np.clip(x, low if low > x[0] else -np.inf, high if high < x[-1] else np.inf)):
        return "clip"
    if low < 0:
        with np.errstate(all="ignore"):
            if close(np.where(x > 0, x, -low * np.expm1(np.minimum(x, 0)))):
                return "elu"
            if close(np.where(x > 0, x, -low * np.expm1(np.minimum(x, 0) / -low))):
                return "celu"
    root = 4 * y[x == 0][0] ** 2
    if root > 0 and close((x + np.sqrt(x * x + root)) / 2):
        return "squareplus"
    return None


def at_points(nodes: Sequence[Node], source: Value) -> tuple[np.ndarray | None, bool]:
    """(the region's values at POINTS, whether a number had to be guessed); None where NumPy cannot compute them."""
    env: dict[Value, Any] = {source: POINTS}
    guesses: set[Value] = set()
    with np.errstate(all="ignore"):
        for node in nodes:
            inputs = [env[v] if v in env else number(v) for v in node.inputs]
            if any(i is None for i in inputs):
                guesses.update(v for v, i in zip(node.inputs, inputs, strict=True) if i is None)
                inputs = [STAND_IN if i is None else i for i in inputs]
            function = POINTWISE.get(node.name)
            if function is None or len(node.outputs) != 1:
                return None, False
            env[node.out] = function(*map(np.asarray, inputs), **node.params)
        y = np.asarray(env[nodes[-1].out])
    if y.dtype == object or np.iscomplexobj(y):
        return None, False
    return np.broadcast_to(y.astype(float), POINTS.shape), bool(guesses)


def number(value: Value) -> np.ndarray | None:
    """The number that all elements of a value are, where that is known while tracing."""
    if value.constant is not None:
        constant = np.asarray(value.constant)
        if constant.size != 1 or constant.dtype == object:
            return None
        return constant.reshape(()).astype(bool if constant.dtype == bool else float)
    node = value.node
    if node is None or value.depends or len(node.outputs) != 1:
        return None
    if node.name in ("broadcast_in_dim", "reshape", "squeeze", "transpose"):
        return number(node.inputs[0])
    function = POINTWISE.get(node.name)
    if function is None:
        return None
    inputs = [number(v) for v in node.inputs]
    if any(i is None for i in inputs):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(function(*inputs, **node.params))


def line(node: Node) -> tuple[float, float] | None:
    """(a, b) of a node that makes a·x + b, with numbers a and b, of the one value that carries relevance; else None."""
    carriers = node.carriers()
    if len(carriers) != 1 or len(node.outputs) != 1 or node.name not in _LINES:
        return None
    at = node.inputs.index(carriers[0])
    if len(node.inputs) == 1:
        return -1.0, 0.0
    other = number(node.inputs[1 - at])
    if other is None or not np.isfinite(other) or carriers[0].shape != node.out.shape:
        return None
    if node.name == "div" and at == 1:
        return None
    return _LINES[node.name](float(other), at)


_LINES: Mapping[str, Callable[[float, int], tuple[float, float]]] = {
    lax.neg_p.name: lambda c, at: (-1.0, 0.0),
    lax.add_p.name: lambda c, at: (1.0, c),
    lax.sub_p.name: lambda c, at: (1.0, -c) if at == 0 else (-1.0, c),
    lax.mul_p.name: lambda c, at: (c, 0.0),
    lax.div_p.name: lambda c, at: (1 / c if c else math.inf, 0.0),
}


def _tolerance(value: Value) -> float:
    """How far a writing may be from the function: as constants in the model's own type are."""
    return max(1e-5, 2 * 2.0 ** -_MANTISSA.get(str(value.aval.dtype), 23))


_MANTISSA = {"bfloat16": 8, "float16": 11}


def _close(y: np.ndarray, known: np.ndarray, tolerance: float) -> bool:
    same = np.abs(y - known) <= tolerance * (1 + np.abs(known))
    return bool(np.all(same | (y == known) | (np.isnan(y) & np.isnan(known))))
