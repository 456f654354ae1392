"""What is taken off before an exponential and cancels behind it: the maximum of a softmax, and the running maxima of
one that is computed in blocks (flash attention: Rabe & Staats 2021; Dao et al. 2022).

A stabiliser m cancels if nothing changes when any element of it grows by any number δ. To see that, the program is
walked once with what δ does to every value: it adds a multiple of δ, or multiplies by a power of e^δ, or does
nothing. exp(s − m) is multiplied by e^(−δ), and so are its sums along axes on which m is one number; a quotient of
two such values is as it was. Where a loop carries m, that at the beginning of a step and that at its end are two
stabilisers, and what the loop carries besides must do as well with the one as with the other.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lrpjax.core import compat
from lrpjax.core.graph import Graph, Node, Value

_SAME = (
    "convert_element_type",
    "reduce_precision",
    "copy",
    "optimization_barrier",
    "sharding_constraint",
    "device_put",
    "name",
    "pvary",
)
_RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")
_MOVES = (*_SAME, *_RESHAPES, "transpose", "slice", "dynamic_slice", "gather")
_ENTERED = ("scan", "remat2", "checkpoint", "cond")
_LOW = -1e4
"""What is below it is no number that anything depends on, but stands for −∞."""

_COMPARE = ("eq", "ne", "lt", "le", "gt", "ge", "is_finite")
_LOGIC = ("and", "or", "not", "reduce_and", "reduce_or")

Labels = tuple[tuple[tuple[int, Any], ...], ...]
"""For each dimension of a value, its factors (their sizes' product is its size): along which dimension of a
stabiliser an index runs, as (dimension, stride), or None where the stabiliser is the same all along."""

Key = tuple[Value, Labels]
Names = dict[Value, tuple[Value, dict[int, int]]]


@dataclasses.dataclass(frozen=True)
class Change:
    """What δ does to a value: adds terms · δ (`log`), or multiplies by e^(terms · δ). `zero`: the value is 0, or −∞
    where it is a logarithm, so that any change is true of it. `guard`: a predicate on whether that is so."""

    log: bool = True
    terms: Mapping[Key, float] = dataclasses.field(default_factory=dict)
    zero: bool = False
    guard: bool = False


NONE, ZERO, GUARD = Change(), Change(zero=True), Change(guard=True)


def find(graph: Graph, families: Mapping[str, str]) -> frozenset[Value]:
    """The stabilisers of a marked graph, and of its sub-programs, that carry relevance and cancel."""
    symbols = _candidates(graph, families)
    while symbols:
        walk = _Walk(symbols)
        walk.program(graph)
        for value in graph.outputs:
            walk.breaks(walk[value])
        if not walk.broken:
            break
        # What is behind another symbol is not judged before that one is known to be one.
        symbols = symbols - (frozenset(filter(_is_no_maximum, walk.broken)) or walk.broken)
    return frozenset(symbols)


# ------------------------------------------------------------------------------------------------------ candidates


def _candidates(graph: Graph, families: Mapping[str, str]) -> frozenset[Value]:
    """What is subtracted, while it carries relevance, from what goes into an exponential; and where it leaves and
    enters loops."""
    found: set[Value] = set()
    for level in _levels(graph):
        for node in level.nodes:
            if node.name in ("exp", "exp2") and node.inputs[0].carries:
                found.update(_subtracted(node.inputs[0]))
    return frozenset(_handed_on(graph, found)) if found else frozenset()


def _is_no_maximum(value: Value) -> bool:
    return value.node is not None and "max" not in value.node.name and not value.node.bodies


def _levels(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.nodes:
        for body in node.bodies:
            yield from _levels(body)


def _subtracted(value: Value) -> Iterator[Value]:
    seen: set[Value] = set()
    stack = [value]
    while stack:
        v = stack.pop()
        node = v.node
        if v in seen or node is None:
            continue
        seen.add(v)
        carriers = node.carriers()
        if node.name in ("sub", "neg"):
            taken = node.inputs[-1]
            if taken.carries and (origin := _origin(taken)).node is not None:
                yield origin
            if node.name == "sub" and len(carriers) == 2:
                stack.append(node.inputs[0])
            continue
        if node.name in _MOVES or node.name in ("add", "add_any", "mul", "select_n", "div"):
            stack.extend(carriers)


def _origin(value: Value) -> Value:
    """Where a value comes from, behind moves, scales and fillings."""
    while value.node is not None and value.node.name in (*_MOVES, "select_n", "mul", "div"):
        carriers = value.node.carriers()
        if len(carriers) != 1:
            break
        value = carriers[0]
    return value


def _handed_on(graph: Graph, found: set[Value]) -> set[Value]:
    """`found`, and what stands for the same outside and at the beginning of a loop's step."""
    for node in graph.nodes:
        for body in node.bodies:
            _handed_on(body, found)
        if node.name in _ENTERED:
            first, count = node.carry
            for i, outer in enumerate(node.outputs):
                inside = [body.outputs[i] for body in node.bodies]
                if any(v.carries and _plain(v) in found for v in inside):
                    found.add(outer)
                    if i < count:
                        found.add(node.bodies[0].inputs[first + i])
    return found


def _plain(value: Value) -> Value:
    while value.node is not None and value.node.name in (
        *_SAME,
        "squeeze",
        "reshape",
        "expand_dims",
        "broadcast_in_dim",
    ):
        value = value.node.inputs[0]
    return value


# ---------------------------------------------------------------------------------------------------------- labels


def _constant(shape: Sequence[int]) -> Labels:
    return tuple(((n, None),) if n != 1 else () for n in shape)


def _own(shape: Sequence[int]) -> Labels:
    return tuple(((n, (d, 1)),) if n != 1 else () for d, n in enumerate(shape))


def _merged(factors: Sequence[tuple[int, Any]]) -> tuple:
    """Neighbouring factors that are one."""
    out: list[tuple[int, Any]] = []
    for size, label in factors:
        if out:
            before, last = out[-1]
            if last is None and label is None:
                out[-1] = (before * size, None)
                continue
            if label and last and last[0] == label[0] and last[1] == label[1] * size:
                out[-1] = (before * size, label)
                continue
        out.append((size, label))
    return tuple(out)


def _reshaped(labels: Labels, shape: Sequence[int]) -> Labels | None:
    rest = [f for dim in labels for f in dim][::-1]
    out = []
    for n in shape:
        dim = []
        while n > 1:
            if not rest:
                return None
            size, label = rest.pop()
            if n % size == 0:
                dim.append((size, label))
                n //= size
            elif size % n == 0 and (label is None or isinstance(label[0], int)):
                low = size // n
                dim.append((n, None if label is None else (label[0], label[1] * low)))
                rest.append((low, label))
                n = 1
            else:
                return None
        out.append(_merged(dim))
    return None if rest else tuple(out)


def _is_constant(dim: tuple) -> bool:
    return all(label is None for _, label in dim)


def _moved(node: Node, labels: Labels) -> Labels | None:
    """The labels of what a node makes that only moves elements; None where that is not known."""
    p, name, shape = node.params, node.name, node.out.shape
    if name in _SAME:
        return labels
    if name == "transpose":
        return tuple(labels[d] for d in p["permutation"])
    if name == "squeeze":
        gone = {d % len(labels) for d in p["dimensions"]}
        return tuple(dim for d, dim in enumerate(labels) if d not in gone)
    if name == "broadcast_in_dim":
        out = list(_constant(shape))
        for d, dim, n in zip(p["broadcast_dimensions"], labels, node.inputs[0].shape, strict=True):
            if n == shape[d]:
                out[d] = dim
        return tuple(out)
    if name in ("reshape", "expand_dims"):
        return _reshaped(labels, shape)
    if name in ("slice", "dynamic_slice", "rev", "pad", "sort", "cumsum", "cummax"):
        axes = p.get("dimensions", (p.get("dimension", p.get("axis")),)) if name not in _MOVES else ()
        out = []
        for d, (dim, n, m) in enumerate(zip(labels, node.inputs[0].shape, shape, strict=True)):
            if n != m or d in axes or (name == "slice" and (p["strides"] or (1,) * len(shape))[d] != 1):
                if not _is_constant(dim):
                    return None
                dim = _constant((m,))[0]
            out.append(dim)
        return tuple(out)
    return None


def _looked_up(node: Node) -> tuple[Any, int] | None:
    """(the indices, the number of dimensions that they make) of a gather or scatter of whole rows."""
    dims = node.params["dimension_numbers"]
    indices = node.inputs[1]
    if node.name == "gather":
        rows, start, batching = dims.collapsed_slice_dims, dims.start_index_map, dims.operand_batching_dims
        count = len(node.out.shape) - len(dims.offset_dims)
        others = dims.offset_dims
    else:
        rows, start = dims.inserted_window_dims, dims.scatter_dims_to_operand_dims
        batching = dims.operand_batching_dims
        others = dims.update_window_dims
        count = len(node.inputs[2].shape) - len(others)
    if tuple(rows) != (0,) or tuple(start) != (0,) or batching or count != 1:
        return None
    if tuple(others) != tuple(range(1, 1 + len(others))):
        return None
    return _index_origin(indices), count


def _index_origin(value: Value) -> Value:
    """Integers, behind what makes negative ones count from the end."""
    while value.node is not None:
        node = value.node
        if node.name in (*_SAME, *_RESHAPES):
            value = node.inputs[0]
        elif node.name == "select_n":
            cases = [_shifted(v) for v in node.inputs[1:]]
            if any(c is not cases[0] for c in cases):
                break
            value = cases[0]
        else:
            break
    return value


def _shifted(value: Value) -> Value:
    if value.node is not None and value.node.name == "add":
        value = value.node.inputs[0]
    return value


# ------------------------------------------------------------------------------------------------------------ walk


class _Walk:
    """What growing each of the symbols does to every value of a program; `broken` are those that something other than
    a stabilised sum depends on."""

    def __init__(self, symbols: frozenset[Value]):
        self.symbols = symbols
        self.broken: set[Value] = set()
        self.known: dict[Value, Change] = {}

    def __getitem__(self, value: Value) -> Change:
        if value.constant is not None:
            return _of_constant(value.constant)
        return self.known.get(value, NONE)

    def breaks(self, *changes: Change) -> Change:
        self.broken.update(symbol for change in changes for symbol, _ in change.terms)
        return NONE

    def program(self, graph: Graph) -> None:
        for node in graph.nodes:
            changes = [self[v] for v in node.inputs]
            outs = [NONE] * len(node.outputs)
            if any(c is not NONE for c in changes) or node.bodies:
                made = self.loop(node, changes) if node.bodies else self.node(node, changes)
                outs = made if isinstance(made, list) else [made] * len(node.outputs)
            for value, change in zip(node.outputs, outs, strict=True):
                self.note(value, change)

    def note(self, value: Value, change: Change) -> None:
        if value in self.symbols:
            change = Change(True, {(value, _own(value.shape)): 1.0})
        if change is NONE:
            self.known.pop(value, None)
        else:
            self.known[value] = change

    def node(self, node: Node, changes: list[Change]) -> Change | list[Change]:
        name = node.name
        if any(v in self.symbols for v in node.outputs) and len(node.outputs) == 1:
            return NONE  # it takes the place of all that it is made of
        if name == "stop_gradient":
            return NONE
        if name in _COMPARE:
            changed = any(c.terms for c in changes)
            return GUARD if changed else NONE
        if name in _LOGIC:
            return GUARD if any(c.guard for c in changes) else NONE
        if not any(c.terms for c in changes):
            return self.unchanged(node, changes)
        rule = _RULES.get(name)
        made = None if rule is None else rule(self, node, changes)
        return self.breaks(*changes) if made is None else made

    def unchanged(self, node: Node, changes: list[Change]) -> Change:
        """What is made of zeros, and of what does not change at all."""
        zero = [c.zero for c in changes]
        if node.name in _MOVES:
            return ZERO if zero[0] else GUARD if changes[0].guard else NONE
        if node.name in ("mul", "div", "exp", "exp2", "dot_general"):
            return ZERO if zero[0] or (zero[-1] and node.name != "div") else NONE
        if node.name == "select_n":
            return ZERO if all(zero[1:]) else NONE
        return NONE

    # ------------------------------------------------------------------------------------------------------- loops

    def loop(self, node: Node, changes: list[Change]) -> list[Change]:
        if node.name not in _ENTERED:
            self.breaks(*changes)
            for body in node.bodies:
                self.program(body)
                self.breaks(*(self[v] for v in body.outputs))
            return [NONE] * len(node.outputs)
        if node.name == "cond":
            return self.branches(node, changes[1:])
        (body,) = node.bodies
        first, count = node.carry
        stacked = node.name == "scan"
        inside = self.inside(body)
        entering = [self.sliced(c) if stacked and i >= first + count else c for i, c in enumerate(changes)]
        inits, starts = changes[first : first + count], body.inputs[first : first + count]
        carried = [ZERO] * count
        for _ in range(4 + count):
            for i, value in enumerate(body.inputs):
                self.note(value, carried[i - first] if first <= i < first + count else entering[i])
            self.program(body)
            outs = [self[v] for v in body.outputs]
            names = _names(outs[:count], starts)
            back = [self.renamed(change, names, inside) for change in outs[:count]]
            back = [NONE if b.zero and not i.zero else b for b, i in zip(back, inits, strict=True)]
            again = [b if c.zero else c for b, c in zip(back, carried, strict=True)]
            if again == carried:
                break
            carried = again
        for i, start in enumerate(starts):
            if start in self.symbols:
                if start not in (name for name, _ in names.values()):
                    self.broken.add(start)
            elif not _alike(back[i], carried[i]):
                self.breaks(back[i], carried[i])
        self.begin(starts, inits, carried)
        last = _names(outs[:count], node.outputs[:count])
        each = _names(outs[count:], node.outputs[count:])
        result = []
        for i, (change, outer) in enumerate(zip(outs, node.outputs, strict=True)):
            stack = outer.shape[:1] if stacked and i >= count else None
            result.append(self.left(change, each if i >= count else last, inside, stack))
        return result

    def branches(self, node: Node, changes: list[Change]) -> list[Change]:
        """What all branches leave; where they leave a stabiliser, each its own, that is one outside."""
        left = []
        for body in node.bodies:
            for value, change in zip(body.inputs, changes, strict=True):
                self.note(value, change)
            self.program(body)
            outs, inside = [self[v] for v in body.outputs], self.inside(body)
            names = _names(outs, node.outputs)
            left.append([self.left(change, names, inside | names.keys(), None) for change in outs])
        result = []
        for made in zip(*left, strict=True):
            same = _one(made)
            result.append(self.breaks(*made) if same is None else same)
        return result

    def inside(self, body: Graph) -> set[Value]:
        return {*body.inputs, *(v for n in body.nodes for v in n.outputs)} & self.symbols

    def renamed(self, change: Change, names: Names, inside: set[Value]) -> Change:
        """A change in the names of the next step; symbols without one are broken."""
        self.broken.update(s for s, _ in change.terms if s in inside and s not in names)
        terms = {
            (names[s][0], _translated(labels, names[s][1])) if s in names else (s, labels): c
            for (s, labels), c in change.terms.items()
        }
        return Change(change.log, terms) if terms else change

    def begin(self, starts: list[Value], inits: list[Change], carried: list[Change]) -> None:
        """Checks what a loop begins with against what it carries."""
        first = dict(zip(starts, inits, strict=True))
        names: dict[Value, Value | None] = {}
        for start, init in first.items():
            if start in self.symbols:
                names[start] = next((s for s in _names([init], [start])), None)
                if init.terms and names[start] is None:
                    self.breaks(init)
                    self.broken.add(start)
        for start, init, change in zip(starts, inits, carried, strict=True):
            if start in self.symbols or init.zero:
                continue
            renamed = {(names.get(s, s), labels): c for (s, labels), c in change.terms.items()}
            expected = Change(change.log, {key: c for key, c in renamed.items() if key[0] is not None})
            if not _alike(expected, init):
                self.breaks(init, change)

    def left(self, change: Change, names: Names, inside: set[Value], stack: tuple[int, ...] | None) -> Change:
        """What a loop leaves, in the names of its outputs. stack: the dimension along which it stacks it."""
        if not change.terms:
            return NONE if change.guard else change
        terms: dict[Key, float] = {}
        for (symbol, labels), c in change.terms.items():
            if symbol not in inside:
                if stack is not None:
                    labels = (*_constant(stack), *labels)
                terms[symbol, labels] = c
            elif symbol in names and names[symbol][0] in self.symbols:
                named, dims = names[symbol]
                labels = _translated(labels, dims)
                if stack is not None:
                    dims = {d: d + 1 for d in range(len(named.shape))}
                    labels = (*_own(stack), *_translated(labels, dims))
                terms[named, labels] = c
            else:
                self.broken.add(symbol)
        return Change(change.log, terms)

    def sliced(self, change: Change) -> Change:
        """What a loop is given of a stack in each step."""
        if not change.terms:
            return change
        if any(not _is_constant(labels[0]) for _, labels in change.terms):
            return self.breaks(change)
        return Change(change.log, {(s, labels[1:]): c for (s, labels), c in change.terms.items()})


def _names(changes: Sequence[Change], called: Sequence[Value]) -> Names:
    """The symbols that some values are, what else they are called, and which of its dimensions are theirs."""
    names: Names = {}
    for change, name in zip(changes, called, strict=True):
        if not change.log or len(change.terms) != 1:
            continue
        (((symbol, labels), power),) = change.terms.items()
        own = [(d, dim) for d, dim in enumerate(_own(symbol.shape)) if dim]
        there = [(d, dim) for d, dim in enumerate(labels) if dim]
        if power == 1.0 and [dim for _, dim in own] == [dim for _, dim in there]:
            names.setdefault(symbol, (name, {d: e for (d, _), (e, _) in zip(own, there, strict=True)}))
    return names


def _translated(labels: Labels, dims: Mapping[int, int]) -> Labels:
    """Labels that say other numbers for a stabiliser's dimensions."""

    def one(label: Any) -> Any:
        if label is None:
            return None
        if isinstance(label[0], int):
            return dims.get(label[0], label[0]), label[1]
        tag, rows, inner = label[0]
        return (tag, rows, tuple((n, one(a)) for n, a in inner)), label[1]

    return tuple(tuple((n, one(a)) for n, a in dim) for dim in labels)


def _of_constant(constant: Any) -> Change:
    array = np.asarray(constant)
    if array.size != 1 or not compat.is_float(array):
        return NONE
    number = float(array.reshape(-1)[0].real)
    return ZERO if number == 0 or number <= _LOW else NONE


def _alike(a: Change, b: Change) -> bool:
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
            whole = _constant(node.out.shape)
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
    while value.constant is None and value.node is not None and value.node.name in (*_SAME, *_RESHAPES):
        value = value.node.inputs[0]
    if value.constant is None or np.size(value.constant) != 1:
        return None
    return float(np.asarray(value.constant).reshape(-1)[0])


def _one(changes: Sequence[Change]) -> Change | None:
    """The change that several values have in common, if they do; zeros have any."""
    some = [c for c in changes if not c.zero]
    if not some:
        return ZERO
    return some[0] if all(_alike(c, some[0]) for c in some) else None


def _add(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    sign = -1.0 if node.name == "sub" else 1.0
    if all(c.log or not c.terms for c in (a, b)):
        return _total(True, a, _scaled(b, sign))
    guarded = [c for v, c in zip(node.inputs, (a, b), strict=True) if not _is_tiny(v)]
    return _one(guarded)


def _is_tiny(value: Value) -> bool:
    """What is added to a sum of exponentials, the largest of which is 1, so that nobody divides by zero."""
    number = _number(value)
    return number is not None and 0 <= number <= 1e-12


def _mul(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    if all(not c.log or not c.terms for c in (a, b)):
        return _total(False, a, b)
    for change, other in ((a, node.inputs[1]), (b, node.inputs[0])):
        number = _number(other)
        if change.terms and change.log and number is not None:
            return _scaled(change, number)
    return None


def _div(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    if all(not c.log or not c.terms for c in (a, b)):
        made = _total(False, a, _scaled(b, -1.0))
        return dataclasses.replace(made, zero=a.zero)
    number = _number(node.inputs[1])
    return _scaled(a, 1.0 / number) if number and not b.terms else None


def _exp(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    (a,) = changes
    if not a.log:
        return None
    return _scaled(dataclasses.replace(a, log=False), math.log(2.0) if node.name == "exp2" else 1.0)


def _log(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    (a,) = changes
    return None if a.log else dataclasses.replace(a, log=True, zero=False)


def _neg(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    (a,) = changes
    return _scaled(a, -1.0) if a.log else a


def _power(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    return None if changes[0].log else _scaled(changes[0], float(node.params["y"]))


def _size(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    return None if changes[0].log else changes[0]


def _reduce(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    """Sums of what is multiplied alike, maxima of what grows alike."""
    (a,) = changes
    if a.log and node.name not in ("reduce_max", "reduce_min"):
        return None
    axes = node.params["axes"]
    terms = {}
    for (symbol, labels), c in a.terms.items():
        if not all(_is_constant(labels[d]) for d in axes):
            return None
        terms[symbol, tuple(dim for d, dim in enumerate(labels) if d not in axes)] = c
    return Change(a.log, terms)


def _move(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    if any(c.terms for c in changes[1:]):
        return None
    terms = {}
    for (symbol, labels), c in changes[0].terms.items():
        moved = _gathered(node, labels) if node.name == "gather" else _moved(node, labels)
        if moved is None:
            return None
        terms[symbol, moved] = c
    return dataclasses.replace(changes[0], terms=terms)


def _over_devices(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    """Sums of what is multiplied alike on all devices: by what is their common maximum."""
    if len(changes) != 1 or changes[0].log:
        return None
    common = all(s.node is not None and s.node.name == "pmax" for s, _ in changes[0].terms)
    return changes[0] if common else None


def _along(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    """Running sums of what is multiplied alike, running maxima of what grows alike, order."""
    if changes[0].log and node.name == "cumsum":
        return None
    return _move(walk, node, changes)


def _gathered(node: Node, labels: Labels) -> Labels | None:
    rows = _looked_up(node)
    if rows is None or any(
        a != b for a, b in zip(node.params["slice_sizes"][1:], node.inputs[0].shape[1:], strict=True)
    ):
        return None
    (n,) = node.out.shape[:1]
    if _is_constant(labels[0]):
        return (*_constant((n,)), *labels[1:])
    return ((((n, (("rows", rows[0], labels[0]), 1))),), *labels[1:])


def _scatter(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    """Sums and maxima of rows that are the same row of a stabiliser, into zeros."""
    into, _, rows = changes
    looked = _looked_up(node)
    if looked is None or into.terms or not into.zero or (rows.log and node.name == "scatter-add"):
        return None
    terms = {}
    for (symbol, labels), c in rows.terms.items():
        if _is_constant(labels[0]):
            first: Any = _constant(node.out.shape[:1])[0]
        elif len(labels[0]) == 1 and labels[0][0][1][0][:2] == ("rows", looked[0]):
            first = labels[0][0][1][0][2]
        else:
            return None
        terms[symbol, (first, *labels[1:])] = c
    return Change(rows.log, terms)


def _select(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    which, *cases = changes
    if which.terms:
        return None
    same = _one(cases)
    if same is None and which.guard:  # a number in place of what is zero, or infinite
        same = _one([c for c in cases if c.terms])
    return same


def _larger(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    a, b = _spread(node, changes)
    guarded = [c for v, c in zip(node.inputs, (a, b), strict=True) if not _is_tiny(v)]
    return _one(guarded)


def _join(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    same, axis = _one(changes), node.params["dimension"]
    if same is None:
        return None
    terms = {}
    for (symbol, labels), c in same.terms.items():
        if not _is_constant(labels[axis]):
            return None
        whole = _constant(node.out.shape[axis : axis + 1])[0]
        terms[symbol, (*labels[:axis], whole, *labels[axis + 1 :])] = c
    return dataclasses.replace(same, terms=terms)


def _pad(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
    return _move(walk, node, [changes[0]]) if changes[1].zero else None


def _split(walk: _Walk, node: Node, changes: list[Change]) -> Any:
    axis, results = node.params["axis"], []
    for out in node.outputs:
        terms = {}
        for (symbol, labels), c in changes[0].terms.items():
            if not _is_constant(labels[axis]):
                return None
            whole = _constant(out.shape[axis : axis + 1])[0]
            terms[symbol, (*labels[:axis], whole, *labels[axis + 1 :])] = c
        results.append(dataclasses.replace(changes[0], terms=terms))
    return results


def _dot(walk: _Walk, node: Node, changes: list[Change]) -> Change | None:
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
            if not all(_is_constant(labels[d]) for d in contracted[i]):
                return None
            own = tuple(labels[d] for d in frees[i])
            other = _constant([node.inputs[1 - i].shape[d] for d in frees[1 - i]])
            terms[symbol, (*(labels[d] for d in batch[i]), *((own + other) if i == 0 else (other + own)))] = c
        parts.append(Change(False, terms, change.zero))
    return _total(False, *parts)


_RULES: dict[str, Callable[[_Walk, Node, list[Change]], Any]] = {
    **dict.fromkeys(("add", "sub", "add_any"), _add),
    "mul": _mul,
    "div": _div,
    **dict.fromkeys(("exp", "exp2"), _exp),
    "log": _log,
    "neg": _neg,
    "integer_pow": _power,
    "abs": _size,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min"), _reduce),
    **dict.fromkeys(_MOVES, _move),
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
