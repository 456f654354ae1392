"""Which function an elementwise region is: found by evaluating it at a handful of points, not by its name or spelling.

Everything is computed in NumPy while tracing; nothing is compiled. A known function is an entry in KNOWN, or a
family with a parameter in `_family`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import primitives as published

from lrpjax.core.graph import Node, Value
from lrpjax.core.primitives import POINTWISE

POINTS = np.concatenate(
    [
        [-61.0, -9.3, -6.4, -4.1, -3.3, -2.6, -1.4, -0.9, -0.3, -0.011],
        [0.0, 0.013, 0.27, 0.8, 1.2, 1.9, 2.7, 3.2, 3.8, 5.3, 6.6, 8.7, 61.0],
    ]
)
"""Where functions are compared: between and beyond the kinks of those that are made of lines."""

FAR = np.concatenate([sign * 10.0 ** np.arange(-12, 9) for sign in (-1, 1)])
"""Where a function that fits at POINTS is compared once more, with places around the numbers that it is written with:
a limit of 100 or a threshold of 0.001 shows there."""

_erf = np.vectorize(math.erf, otypes=[float])
_sigmoid = lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))
_softplus = lambda x: np.logaddexp(x, 0)
_elu = lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))

KNOWN: Mapping[str, Callable] = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "steep_hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "falling_sigmoid": lambda x: _sigmoid(-x),
    "falling_hard_sigmoid": lambda x: np.clip(3 - x, 0, 6) / 6,
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

STRAIGHT = ("relu", "relu6", "hard_tanh", "abs", "identity")
"""Those that are lines through the origin, near it and apart from constants."""

ELEMENTS = ("abs", "exp", "expm1", "log1p", "square", "identity", "clip")
"""Those that others are written with; the rest are used as a whole."""

FALLING = ("falling_sigmoid", "falling_hard_sigmoid")
ALIASES = {
    "tanh_gelu": "gelu",
    "steep_hard_sigmoid": "hard_sigmoid",
    "falling_sigmoid": "sigmoid",
    "falling_hard_sigmoid": "hard_sigmoid",
}
"""Functions that share a name with the one that they stand for. One minus a sigmoid is a gate as well."""

STAND_IN = 0.3719
"""For a number that is not known while tracing, such as the learned slope of a PReLU."""


def _values() -> dict[str, np.ndarray]:
    with np.errstate(all="ignore"):
        return {name: np.asarray(f(POINTS), float) for name, f in KNOWN.items()}


_VALUES = _values()


_NAMES: dict[tuple, str | None] = {}
"""What was found, by the structure of the nodes: a deep network asks the same many times."""


def name_of(nodes: Sequence[Node], source: Value) -> str | None:
    """The known function of `source` that these nodes compute, the last of them its result; None if it is none. Nodes
    that decide for them, and for others as well (a shared `x > 0`), need not be among them."""
    name = _function(nodes, source)
    return ALIASES.get(name, name)  # type: ignore[arg-type]


def falls(nodes: Sequence[Node], source: Value) -> bool:
    """Whether it is a sigmoid of the negated source."""
    return _function(nodes, source) in FALLING


def _function(nodes: Sequence[Node], source: Value) -> str | None:
    nodes = _with_predicates(nodes, source)
    structure = _structure(nodes, source)
    if structure not in _NAMES:
        if len(_NAMES) > 10_000:
            _NAMES.clear()
        _NAMES[structure] = _name_of(nodes, source)
    return _NAMES[structure]


def _with_predicates(nodes: Sequence[Node], source: Value) -> Sequence[Node]:
    found = set(nodes)
    stack = list(nodes)
    while stack:
        for v in stack.pop().inputs:
            if v is source or v.node is None or v.node in found:
                continue
            # a branch that is made a choice (`vmap` of `cond`) stops the gradient of what it is not taken for
            stopped = v.node.name == published.stop_gradient_p.name and v.node.inputs[0] is source
            if stopped or (v.depends and not v.carries):
                found.add(v.node)
                stack.append(v.node)
    return nodes if len(found) == len(nodes) else sorted(found, key=lambda n: n.index)


def _structure(nodes: Sequence[Node], source: Value) -> tuple:
    """All that the name depends on: primitives and their parameters, what they read, numbers, the type."""
    places = {source: "x", **{node.out: i for i, node in enumerate(nodes)}}
    read = lambda v: places[v] if v in places else _written(number(v))
    parameters = lambda node: tuple(str(node.params.get(p)) for p in ("y", "new_dtype", "rounding_method"))
    steps = ((node.name, parameters(node), tuple(map(read, node.inputs))) for node in nodes)
    return str(source.aval.dtype), *steps


def _written(number: np.ndarray | None) -> tuple | None:
    return None if number is None else (number.dtype == bool, number.item())


def _name_of(nodes: Sequence[Node], source: Value) -> str | None:
    y, guessed = at_points(nodes, source)
    if y is None:
        return None
    tolerance = _tolerance(source)
    far = np.unique(np.concatenate([FAR, _around(nodes)]))
    y_far = at_points(nodes, source, far)[0]
    assert y_far is not None  # what can be computed at some points can be at others

    def fits(known: Callable, at_points: np.ndarray | None = None, straight: bool = False) -> bool:
        with np.errstate(all="ignore"):
            values = known(POINTS) if at_points is None else at_points
            return _close(y, values, POINTS, tolerance, straight) and _close(
                y_far, known(far), far, tolerance, straight
            )

    if not guessed:
        for name, known in KNOWN.items():
            if fits(known, _VALUES[name], name in STRAIGHT):
                return name
    ends = (far[0], y_far[0]), (far[-1], y_far[-1])
    return _family(y, fits, guessed, ends)


def _around(nodes: Sequence[Node]) -> np.ndarray:
    """Places around the numbers that nodes read, where a function may have a kink."""
    found = [number(v) for node in nodes for v in node.inputs]
    numbers = {float(n) for n in found if n is not None and n.dtype != bool and np.isfinite(n)}
    nearby = (0.5, 0.99, 1.0, 1.01, 2.0)
    return np.array(
        [sign * n * k for n in numbers if 1e-12 < abs(n) < 1e12 for k in nearby for sign in (-1, 1)]
    )


def _family(y: np.ndarray, fits: Callable, guessed: bool, ends: tuple) -> str | None:
    """Functions with a parameter, read off the values at POINTS, and off the ends."""
    x, low = POINTS, y[0]
    slope = low / x[0]
    leaky = lambda x: np.where(x > 0, x, slope * x)
    if np.isfinite(low) and slope not in (0, 1) and fits(leaky, straight=True):
        return "prelu" if guessed else "leaky_relu"
    if guessed:
        return None
    bottom, top = (value if abs(value) < abs(place) else place for place, value in ends)
    if bottom < top and fits(lambda x: np.clip(x, bottom, top), straight=True):
        return "clip"
    if low < 0:
        if fits(lambda x: np.where(x > 0, x, -low * np.expm1(np.minimum(x, 0)))):
            return "elu"
        if fits(lambda x: np.where(x > 0, x, -low * np.expm1(np.minimum(x, 0) / -low))):
            return "celu"
    root = 4 * y[x == 0][0] ** 2
    if root > 1e-6 and fits(lambda x: (x + np.sqrt(x * x + root)) / 2):
        return "squareplus"
    return None


def at_points(
    nodes: Sequence[Node], source: Value, points: np.ndarray = POINTS
) -> tuple[np.ndarray | None, bool]:
    """(the region's values at points, whether a number had to be guessed); None where NumPy cannot compute them."""
    env: dict[Value, Any] = {source: points}
    guessed = False
    with np.errstate(all="ignore"):
        for node in nodes:
            inputs = []
            for v in node.inputs:
                known = env[v] if v in env else number(v)
                if known is None and not v.depends and _is_real(v):
                    known, guessed = np.asarray(STAND_IN), True
                inputs.append(known)
            y = _computed(node, inputs)
            if y is None:
                return None, False
            env[node.out] = y
    return np.broadcast_to(y.astype(float), points.shape), guessed


def at_zero(nodes: Sequence[Node], source: Value) -> float | None:
    """What a region is at zero, up to rounding in the model's own type; None where that is not known."""
    y, guessed = at_points(_with_predicates(nodes, source), source, np.zeros(1))
    if y is None or guessed or not np.isfinite(y[0]):
        return None
    return 0.0 if abs(y[0]) <= _tolerance(source) else float(y[0])


REPEATS = (
    *("broadcast_in_dim", "reshape", "squeeze", "transpose", "optimization_barrier", "sharding_constraint"),
    *("pvary", "pbroadcast", "reshard", "vary_unreduced_cast", "device_put", "name"),
)
"""What makes of a number an array of that number, or the same number elsewhere."""


def number(value: Value) -> np.ndarray | None:
    """The number that all elements of a value are, where that is known while tracing."""
    if value.constant is not None:
        constant = np.asarray(value.constant)
        if constant.size != 1 or not (_is_real(value) or constant.dtype.kind in "biu"):
            return None
        return constant.reshape(()).astype(bool if constant.dtype == bool else float)
    node = value.node
    if node is None or value.depends or len(node.outputs) != 1:
        return None
    if node.name in REPEATS:
        return number(node.inputs[0])
    if node.name not in POINTWISE:
        return None
    with np.errstate(all="ignore"):
        return _computed(node, [number(v) for v in node.inputs])


def _computed(node: Node, inputs: Sequence[Any]) -> np.ndarray | None:
    """What a node makes, of real numbers and predicates; of integers only those that a predicate or number becomes."""
    function = POINTWISE.get(node.name)
    if function is None or len(node.outputs) != 1 or any(i is None for i in inputs):
        return None
    converts = node.name == lax.convert_element_type_p.name
    if not (_is_real(node.out) or node.out.aval.dtype == bool or converts):
        return None
    counts = any(not _is_real(v) and v.aval.dtype != bool for v in node.inputs)
    if counts and not converts and node.name != lax.select_n_p.name and node.out.aval.dtype != bool:
        return None
    y = np.asarray(function(*map(np.asarray, inputs), **node.params))
    return None if y.dtype == object or np.iscomplexobj(y) else y


def _is_real(value: Value) -> bool:
    return bool(jax.dtypes.issubdtype(value.aval.dtype, np.floating))


def line(node: Node) -> tuple[float, float] | None:
    """(a, b) of a node that makes a·x + b, with numbers a and b, of the one value that carries relevance; else None."""
    carriers = list(dict.fromkeys(node.carriers()))
    if len(carriers) != 1 or len(node.outputs) != 1 or node.name not in _LINES:
        return None
    if len(node.carriers()) == 2:
        return (2.0, 0.0) if node.name == lax.add_p.name else None
    at = node.inputs.index(carriers[0])
    if len(node.inputs) == 1:
        return _LINES[node.name](0.0, at)
    other = number(node.inputs[1 - at])
    if other is None or not np.isfinite(other) or carriers[0].shape != node.out.shape:
        return None
    if node.name == "div" and at == 1:
        return None
    return _LINES[node.name](float(other), at)


_LINES: Mapping[str, Callable[[float, int], tuple[float, float]]] = {
    lax.neg_p.name: lambda c, at: (-1.0, 0.0),
    lax.convert_element_type_p.name: lambda c, at: (1.0, 0.0),
    lax.copy_p.name: lambda c, at: (1.0, 0.0),
    lax.add_p.name: lambda c, at: (1.0, c),
    lax.sub_p.name: lambda c, at: (1.0, -c) if at == 0 else (-1.0, c),
    lax.mul_p.name: lambda c, at: (c, 0.0),
    lax.div_p.name: lambda c, at: (1 / c if c else math.inf, 0.0),
}


def _tolerance(value: Value) -> float:
    """How far a writing may be from the function: as constants in the model's own type are."""
    return max(1e-5, 2 * 2.0 ** -_MANTISSA.get(str(value.aval.dtype), 23))


_MANTISSA = {"bfloat16": 8, "float16": 11}


SOUND = 15.0
"""Beyond it a writing may overflow where the function does not (`e^x / (1 + e^x)`)."""


def _close(y: np.ndarray, known: np.ndarray, x: np.ndarray, tolerance: float, straight: bool = False) -> bool:
    """Whether values are those of a known function; `straight`: of one that is made of lines through the origin, so
    that errors are small beside x as well."""
    with np.errstate(all="ignore"):
        room = np.minimum(1 + np.abs(known), np.abs(x) if straight else np.inf)
        same = (np.abs(y - known) <= tolerance * room + 1e-14) & np.isfinite(known)
    same |= (y == known) | (np.isnan(y) & np.isnan(known)) | (~np.isfinite(y) & (np.abs(x) > SOUND))
    return bool(np.all(same))
