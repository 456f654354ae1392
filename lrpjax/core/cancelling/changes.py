"""What growing a stabiliser by δ does to a value, and what each primitive makes of that: a new one is a line of
RULES."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lrpjax.core import compat
from lrpjax.core.cancelling.labels import (
    MOVES,
    RESHAPES,
    SAME,
    Labels,
    constant,
    gathered,
    is_constant,
    looked_up,
    moved,
)
from lrpjax.core.graph import Node, Value

_LOW = -1e4
"""What is below it is no number that anything depends on, but stands for −∞."""

Key = tuple[Value, Labels]


@dataclasses.dataclass(frozen=True)
class Change:
    """What δ does to a value: adds terms · δ (`log`), or multiplies by e^(terms · δ). `zero`: the value is 0, or −∞
    where it is a logarithm, so that any change is true of it. `guard`: a predicate on whether that is so."""

    log: bool = True
    terms: Mapping[Key, float] = dataclasses.field(default_factory=dict)
    zero: bool = False
    guard: bool = False


NONE, ZERO, GUARD = Change(), Change(zero=True), Change(guard=True)


def of_constant(constant: Any) -> Change:
    array = np.asarray(constant)
    if array.size != 1 or not compat.is_float(array):
        return NONE
    number = float(array.reshape(-1)[0].real)
    return ZERO if number == 0 or number <= _LOW else NONE


def alike(a: Change, b: Change) -> bool:
    if a.terms.keys() != b.terms.keys() or (a.terms and a.log != b.log):
        return False
    return all(math.isclose(c, b.terms[key], rel_tol=1e-6) for key, c in a.terms.items())


def _scaled(change: Change, factor: float) -> Change:
    return dataclasses.replace(change, terms={key: c * factor for key, c in change.terms.items()})


def _total(log: bool, *changes: Change) -> Change:
    terms: dict[Key, float] = {}
    for change in changes:
        for key, c in change.terms.items():
            terms[key] = terms.get(key, 0.0) + c
    left = {key: c for key, c in terms.items() if abs(c) > 1e-6}
    return Change(log, left, any(c.zero for c in changes) and not log)


def _spread(node: Node, changes: Sequence[Change]) -> list[Change]:
    """The changes of the operands of an elementwise node, which stretches dimensions of size one."""
    result = []
    for value, change in zip(node.inputs, changes, strict=True):
        if change.terms and value.shape != node.out.shape:
            whole = constant(node.out.shape)
            stretched = lambda labels, n=value.shape, whole=whole: tuple(
                own if size != 1 else all_of
                for own, size, all_of in zip(labels or whole, n or (1,) * len(whole), whole, strict=True)
            )
            change = dataclasses.replace(
                change, terms={(s, stretched(labels)): c for (s, labels), c in change.terms.items()}
            )
        result.append(change)
    return result


def _number(value: Value) -> float | None:
    """The one number that a value holds, if that is known."""
    while value.constant is None and value.node is not None and value.node.name in (*SAME, *RESHAPES):
        value = value.node.inputs[0]
    if value.constant is None or np.size(value.constant) != 1:
        return None
    return float(np.asarray(value.constant).reshape(-1)[0])


def one(changes: Sequence[Change]) -> Change | None:
    """The change that several values have in common, if they do; zeros have any."""
    some = [c for c in changes if not c.zero]
    if not some:
        return ZERO
    return some[0] if all(alike(c, some[0]) for c in some) else None


def _add(node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    sign = -1.0 if node.name == "sub" else 1.0
    if all(c.log or not c.terms for c in (a, b)):
        return _total(True, a, _scaled(b, sign))
    guarded = [c for v, c in zip(node.inputs, (a, b), strict=True) if not _is_tiny(v)]
    return one(guarded)


def _is_tiny(value: Value) -> bool:
    """What is added to a sum of exponentials, the largest of which is 1, so that nobody divides by zero."""
    number = _number(value)
    return number is not None and 0 <= number <= 1e-12


def _mul(node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    if all(not c.log or not c.terms for c in (a, b)):
        return _total(False, a, b)
    for change, other in ((a, node.inputs[1]), (b, node.inputs[0])):
        number = _number(other)
        if change.terms and change.log and number is not None:
            return _scaled(change, number)
    return None


def _div(node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    if all(not c.log or not c.terms for c in (a, b)):
        made = _total(False, a, _scaled(b, -1.0))
        return dataclasses.replace(made, zero=a.zero)
    number = _number(node.inputs[1])
    return _scaled(a, 1.0 / number) if number and not b.terms else None


def _exp(node: Node, changes: list[Change]) -> Change | None:
    (a,) = changes
    if not a.log:
        return None
    return _scaled(dataclasses.replace(a, log=False), math.log(2.0) if node.name == "exp2" else 1.0)


def _log(node: Node, changes: list[Change]) -> Change | None:
    (a,) = changes
    return None if a.log else dataclasses.replace(a, log=True, zero=False)


def _neg(node: Node, changes: list[Change]) -> Change | None:
    (a,) = changes
    return _scaled(a, -1.0) if a.log else a


def _power(node: Node, changes: list[Change]) -> Change | None:
    return None if changes[0].log else _scaled(changes[0], float(node.params["y"]))


def _size(node: Node, changes: list[Change]) -> Change | None:
    return None if changes[0].log else changes[0]


def _reduce(node: Node, changes: list[Change]) -> Change | None:
    """Sums of what is multiplied alike, maxima of what grows alike."""
    (a,) = changes
    if a.log and node.name not in ("reduce_max", "reduce_min"):
        return None
    axes = node.params["axes"]
    terms = {}
    for (symbol, labels), c in a.terms.items():
        if not all(is_constant(labels[d]) for d in axes):
            return None
        terms[symbol, tuple(dim for d, dim in enumerate(labels) if d not in axes)] = c
    return Change(a.log, terms)


def _move(node: Node, changes: list[Change]) -> Change | None:
    if any(c.terms for c in changes[1:]):
        return None
    terms = {}
    for (symbol, labels), c in changes[0].terms.items():
        there = gathered(node, labels) if node.name == "gather" else moved(node, labels)
        if there is None:
            return None
        terms[symbol, there] = c
    return dataclasses.replace(changes[0], terms=terms)


def _over_devices(node: Node, changes: list[Change]) -> Change | None:
    """Sums of what is multiplied alike on all devices: by what is their common maximum."""
    if len(changes) != 1 or changes[0].log:
        return None
    common = all(s.node is not None and s.node.name == "pmax" for s, _ in changes[0].terms)
    return changes[0] if common else None


def _along(node: Node, changes: list[Change]) -> Change | None:
    """Running sums of what is multiplied alike, running maxima of what grows alike, order."""
    if changes[0].log and node.name == "cumsum":
        return None
    return _move(node, changes)


def _scatter(node: Node, changes: list[Change]) -> Change | None:
    """Sums and maxima of rows that are the same row of a stabiliser, into zeros."""
    into, _, rows = changes
    looked = looked_up(node)
    if looked is None or into.terms or not into.zero or (rows.log and node.name == "scatter-add"):
        return None
    terms = {}
    for (symbol, labels), c in rows.terms.items():
        if is_constant(labels[0]):
            first: Any = constant(node.out.shape[:1])[0]
        elif len(labels[0]) == 1 and labels[0][0][1][0][:2] == ("rows", looked[0]):
            first = labels[0][0][1][0][2]
        else:
            return None
        terms[symbol, (first, *labels[1:])] = c
    return Change(rows.log, terms)


def _select(node: Node, changes: list[Change]) -> Change | None:
    which, *cases = changes
    if which.terms:
        return None
    same = one(cases)
    if same is None and which.guard:  # a number in place of what is zero, or infinite
        same = one([c for c in cases if c.terms])
    return same


def _larger(node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    guarded = [c for v, c in zip(node.inputs, (a, b), strict=True) if not _is_tiny(v)]
    return one(guarded)


def _join(node: Node, changes: list[Change]) -> Change | None:
    same, axis = one(changes), node.params["dimension"]
    if same is None:
        return None
    terms = {}
    for (symbol, labels), c in same.terms.items():
        if not is_constant(labels[axis]):
            return None
        whole = constant(node.out.shape[axis : axis + 1])[0]
        terms[symbol, (*labels[:axis], whole, *labels[axis + 1 :])] = c
    return dataclasses.replace(same, terms=terms)


def _pad(node: Node, changes: list[Change]) -> Change | None:
    return _move(node, [changes[0]]) if changes[1].zero else None


def _split(node: Node, changes: list[Change]) -> Any:
    axis, results = node.params["axis"], []
    for out in node.outputs:
        terms = {}
        for (symbol, labels), c in changes[0].terms.items():
            if not is_constant(labels[axis]):
                return None
            whole = constant(out.shape[axis : axis + 1])[0]
            terms[symbol, (*labels[:axis], whole, *labels[axis + 1 :])] = c
        results.append(dataclasses.replace(changes[0], terms=terms))
    return results


def _dot(node: Node, changes: list[Change]) -> Change | None:
    """Sums of products, of which every term is multiplied alike."""
    contracted, batch = node.params["dimension_numbers"]
    parts = []
    frees = [
        [d for d in range(len(v.shape)) if d not in contracted[i] and d not in batch[i]]
        for i, v in enumerate(node.inputs)
    ]
    for i, change in enumerate(changes):
        if change.log and change.terms:
            return None
        terms = {}
        for (symbol, labels), c in change.terms.items():
            if not all(is_constant(labels[d]) for d in contracted[i]):
                return None
            own = tuple(labels[d] for d in frees[i])
            other = constant([node.inputs[1 - i].shape[d] for d in frees[1 - i]])
            terms[symbol, (*(labels[d] for d in batch[i]), *((own + other) if i == 0 else (other + own)))] = c
        parts.append(Change(False, terms, change.zero))
    return _total(False, *parts)


RULES: dict[str, Callable[[Node, list[Change]], Any]] = {
    **dict.fromkeys(("add", "sub", "add_any"), _add),
    "mul": _mul,
    "div": _div,
    **dict.fromkeys(("exp", "exp2"), _exp),
    "log": _log,
    "neg": _neg,
    "integer_pow": _power,
    "abs": _size,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduce),
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(("cumsum", "cummax", "rev", "sort"), _along),
    **dict.fromkeys(("scatter-add", "scatter-max"), _scatter),
    **dict.fromkeys(("psum", "psum_invariant"), _over_devices),
    "select_n": _select,
    **dict.fromkeys(("max", "min"), _larger),
    "concatenate": _join,
    "pad": _pad,
    "split": _split,
    "dot_general": _dot,
}
