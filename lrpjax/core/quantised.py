"""Quantised layers: numbers are divided by a scale and rounded, a dot or convolution takes the codes, and what comes
out is multiplied by the scale again. That is the layer with the dequantised kernel.

Whether it is one is told by algebra. Every value around the dot is a polynomial in what it is made of; rounding and
clipping count for nothing, moving elements neither. If that which the layer makes is the input times the kernel,
times and plus what does not depend on the input, then the scales (and zero points) cancel, in whatever order they
are applied.
"""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core import compat, dimensions
from lrpjax.core.graph import Graph, Node, Value

CORES = ("dot_general", "conv_general_dilated")
CASTS = ("convert_element_type", "copy", "reduce_precision")
MOVES = ("reshape", "transpose", "squeeze", "expand_dims")
ROUNDING = ("round", "floor")
CLIPPING = ("max", "min", "clamp")
SCALING = ("mul", "div", "neg")
SHIFTING = ("add", "sub", "add_any")
SUMS = ("reduce_sum", "psum", "psum_invariant")
LONGEST = 24
"""Of the chains that are followed from a dot up to what was rounded."""

Monomial = frozenset
Polynomial = Mapping[frozenset, float]


@dataclasses.dataclass(eq=False)
class Quantised:
    """A quantised layer. x: what is quantised. steps: the nodes from there to the codes. moves: those that move the
    codes on their way to the core. core: the dot or convolution, which takes them at place `at`. behind: the core and
    the nodes that follow it. scales: for each of these that scales, the dimensions of the kernel that it varies
    along. shifted: whether there is a constant in the codes."""

    x: Value
    steps: list[Node]
    moves: list[Node]
    core: Node
    at: int
    behind: list[Node]
    scales: dict[Node, tuple[int, ...]]
    shifted: bool
    algebra: "Algebra"

    @property
    def codes(self) -> Value:
        return self.steps[-1].out

    @property
    def out(self) -> Value:
        return self.behind[-1].out

    def others(self, nodes: Sequence[Node], made: Value) -> Iterator[tuple[Node, Value | None]]:
        """The nodes of a chain that begins with `made`, and what each of them reads besides."""
        for node in nodes:
            yield node, next((v for v in node.inputs if v is not made), None)
            made = node.out


def find(graph: Graph) -> None:
    """Sets `quantised` on a graph whose values are marked, and on its sub-programs."""
    for node in graph.nodes:
        for body in node.bodies:
            find(body)
    found = [q for node in graph.nodes for q in (layer(node),) if q is not None]
    begins = {q.x for q in found}
    for i, q in enumerate(found):
        inside = next((n.out for n in q.behind[:-1] if n.out in begins), None)
        if inside is not None:  # its result is rescaled for the next layer at once
            found[i] = layer(q.core, inside)  # type: ignore[assignment]
    ends = {q.out for q in found if q is not None}
    inner = {n.out for q in found if q is not None for n in q.behind} - ends
    graph.quantised = [q for q in found if q is not None and q.x not in inner]


def explained(graph: Graph) -> dict[Value, Value]:
    """For each number that a quantised layer makes, in a graph and its sub-programs, the value that it carries the
    relevance of. What stands before its bias counts too: a call may end there."""
    found = {n.out: q.x for q in graph.quantised for n in q.behind if compat.is_float(n.out.aval)}
    for node in graph.nodes:
        for body in node.bodies:
            found |= explained(body)
    return found


def layer(core: Node, until: Value | None = None) -> Quantised | None:
    """The quantised layer of this dot or convolution, if it is one. It ends with the value `until` at the latest."""
    if core.name not in CORES:
        return None
    for at in (0, 1):
        codes, kernel = core.inputs[at], core.inputs[1 - at]
        if codes.depends and not kernel.depends:
            above = list(_above(codes))
            for start in _starts(above):
                found = _layer(core, at, above[:start][::-1], until)
                if found is not None:
                    return found
    return None


def moves(node: Node) -> bool:
    """Whether a node only moves the elements of its first operand, zeros around them included."""
    if node.name == "broadcast_in_dim":
        return _size(node.out) == _size(node.inputs[0])
    if node.name == "pad":
        around = _bare(node.inputs[1]).constant
        inside = all(low >= 0 <= high for low, high, _ in node.params["padding_config"])
        return inside and around is not None and not np.any(around)
    return node.name in MOVES


def _above(value: Value) -> Iterator[Node]:
    """The nodes that a value went through, from the last one up, as far as they may be steps of a quantisation."""
    for _ in range(LONGEST):
        node = value.node
        if node is None or not (
            node.name in (*CASTS, *ROUNDING, *CLIPPING, *SCALING, *SHIFTING) or moves(node)
        ):
            return
        data = _data(node)
        if data is None:
            return
        yield node
        value = data


def _data(node: Node) -> Value | None:
    """The operand of a node that is the signal, where the others are scales, zero points or bounds."""
    depending = [v for v in node.inputs if v.depends]
    if len(depending) > 1:
        depending = [v for v in depending if not _spread(v, node.out)]
    if len(depending) != 1 or (node.name == "div" and depending[0] is not node.inputs[0]):
        return None
    return depending[0]


def _spread(value: Value, onto: Value) -> bool:
    """Whether a value repeats the same numbers in the shape of another."""
    return varying(value) < {d for d, n in enumerate(onto.shape) if n not in (0, 1)}


def varying(value: Value) -> set[int]:
    """The dimensions along which a value is not known to repeat."""
    node = value.node
    if node is None or node.name not in (*CASTS, "broadcast_in_dim"):
        return {d for d, n in enumerate(value.shape) if n not in (0, 1)}
    inner = varying(node.inputs[0])
    if node.name != "broadcast_in_dim":
        return inner
    return {outer for d, outer in enumerate(node.params["broadcast_dimensions"]) if d in inner}


def _rounds(node: Node) -> bool:
    if node.name != "convert_element_type":
        return node.name in ROUNDING
    new = node.params["new_dtype"]
    return not jnp.issubdtype(new, jnp.inexact) or _bits(new) == 8


def _bits(dtype: Any) -> int:
    return jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.inexact) else 32


def _starts(above: Sequence[Node]) -> list[int]:
    """How many of the nodes above a core may be its quantisation: from the scale next above the rounding, then from
    those further up. Where a number of the signal itself, such as its least, is taken off above a scale, with that
    first."""
    rounded = [i for i, node in enumerate(above) if _rounds(node)]
    scales = [i for i, node in enumerate(above) if rounded and i > rounded[0] and node.name in SCALING][:3]
    starts = []
    for i in scales:
        if (
            i + 1 < len(above)
            and above[i + 1].name in SHIFTING
            and all(v.depends for v in above[i + 1].inputs)
        ):
            starts.append(i + 2)
        starts.append(i + 1)
    return starts


def _layer(core: Node, at: int, nodes: list[Node], until: Value | None) -> Quantised | None:
    x = _data(nodes[0])
    moved = [i for i, node in enumerate(nodes) if moves(node)]
    computed = [i for i, node in enumerate(nodes) if node.name not in CASTS and not moves(node)]
    if x is None or not compat.is_float(x.aval) or (moved and moved[0] < computed[-1]):
        return None
    steps = nodes[: moved[0]] if moved else nodes
    after = [nodes[i] for i in moved]
    algebra = Algebra(x, core, at)
    codes = algebra.of(core.inputs[at])
    if not all(algebra.scaled(algebra.of(node.out)) for node in nodes) or not _commutes(
        steps, after, core, at
    ):
        return None
    rounded = max(i for i, node in enumerate(nodes) if _rounds(node))
    rescaled = any(node.name in SCALING for node in nodes[rounded:])
    behind, scales = _behind(core, at, algebra, rescaled or until is not None, until)
    if not behind:
        return None
    kept = {atom for monomial in algebra.of(behind[-1].out) for atom, _ in monomial}
    algebra.neutral = {
        atom: 1.0 if atom in algebra.scales else 0.0
        for atom in algebra.scales | algebra.shifts
        if atom not in kept and (atom in algebra.scales or algebra.atoms[atom].depends)
    }
    shifted = any(not any(a in ("x", *algebra.neutral) for a, _ in m) for m in codes)
    for node in steps:
        for v in node.inputs:
            if v is not _data(node) and algebra.static(v):
                return None  # a scale of each channel is part of what the layer reads
    return Quantised(x, steps, after, core, at, behind, scales, shifted, algebra)


def _commutes(steps: list[Node], moves: list[Node], core: Node, at: int) -> bool:
    """Whether the scales of the signal are the same all along what the core sums over."""
    varies = set()
    for node in steps:
        for v in node.inputs:
            if v is not _data(node):
                varies |= varying(v)
    labels: list = [d in varies for d in range(len(steps[-1].out.shape))]
    if not varies:
        return True
    shape = steps[-1].out.shape
    for node in moves:
        labels, shape = dimensions.moved(node, labels, shape), node.out.shape
    if core.name == "dot_general":
        summed = core.params["dimension_numbers"][0][at]
    else:
        spec = core.params["dimension_numbers"]
        rows = (spec.lhs_spec if at == 0 else spec.rhs_spec)[0]
        summed = [d for d in range(len(labels)) if d != rows]
    return not any(labels[d] for d in summed if shape[d] > 1)


def _behind(
    core: Node, at: int, algebra: "Algebra", rescaled: bool, until: Value | None
) -> tuple[list[Node], dict[Node, tuple[int, ...]]]:
    """The core and the nodes that follow it, up to the last where the scales have cancelled, and what they fold
    along. None, if none of them scales and nothing before did (`rescaled`)."""
    labels: list = (dimensions.of_dot if core.name == "dot_general" else dimensions.of_convolution)(core, at)
    nodes, scales = [core], {}
    cancelled, value = 0, core.out
    while len(value.users) == 1 and not value.returned and value is not until:
        user = value.users[0]
        if len(user.outputs) != 1:
            break
        if user.name in CASTS or moves(user):
            labels = (
                dimensions.moved(user, labels, value.shape) if user.name != "reduce_precision" else labels
            )
        elif user.name in SUMS and len(user.inputs) == 1:
            axes = user.params["axes"] if user.name == "reduce_sum" else ()
            labels = [label for d, label in enumerate(labels) if d not in axes]
        elif user.name in (*SCALING, *SHIFTING) and user.out.shape == value.shape:
            other = next((v for v in user.inputs if v is not value), None)
            if other is not None and (
                algebra.has_x(other) or (user.name == "div" and other is user.inputs[0])
            ):
                break
            if user.name in SCALING:
                varies = set() if other is None else algebra.static(other)
                if any(labels[d] is None for d in varies):
                    break
                scales[user] = tuple(labels[d] for d in sorted(varies))
                rescaled = rescaled or other is not None
        else:
            break
        nodes.append(user)
        value = user.out
        if compat.is_float(value.aval) and algebra.clean(algebra.of(value)):
            cancelled = len(nodes) if rescaled else 0
    kept = nodes[:cancelled]
    return kept, {node: dims for node, dims in scales.items() if node in kept}


class Algebra:
    """Values as polynomials in x, the kernel and all else. A monomial is a set of (atom, exponent); x and the kernel
    are the atoms "x" and "w", other atoms are values, known by what they are computed from (`atoms`)."""

    def __init__(self, x: Value, core: Node, at: int):
        self.x, self.core, self.at = x, core, at
        self.known: dict[Value, Polynomial] = {}
        self.keys: dict[Value, Hashable] = {}
        self.atoms: dict[Hashable, Value] = {}
        self.scales: set[Hashable] = set()
        self.shifts: set[Hashable] = set()
        self.neutral: dict[Hashable, float] = {}
        self.kernel = self.key(_bare(core.inputs[1 - at]))
        p = core.params
        self.summed = None if core.name != "dot_general" else sorted(p["dimension_numbers"][0][1 - at])

    def of(self, value: Value) -> Polynomial:
        if value not in self.known:
            self.known[value] = self._of(value)
        return self.known[value]

    def _of(self, value: Value) -> Polynomial:
        node = value.node
        if value is self.x:
            return {Monomial([("x", 1)]): 1.0}
        if value.constant is not None and np.size(value.constant) == 1 and _real(value.constant):
            number = float(np.asarray(value.constant, np.float64).reshape(()))
            return {Monomial(): number} if number else {}
        if node is None or len(node.outputs) != 1:
            return self.atom(value)
        inputs = node.inputs
        if node is self.core:
            return _times(self.of(inputs[self.at]), {Monomial([("w", 1)]): 1.0})
        if node.name in (*CASTS, "broadcast_in_dim", "stop_gradient", *SUMS[1:]) or moves(node):
            return self.of(inputs[0])
        if node.name == "reduce_sum":
            return self.total(value)
        if node.name in (*ROUNDING, *CLIPPING):
            data = _data(node) if any(v.depends for v in inputs) else None
            inside = {} if data is None else self.of(data)
            if not any("x" in dict(m) for m in inside):
                return self.atom(value)
            half = {Monomial(): -0.5} if node.name == "floor" and inside.get(Monomial()) == 0.5 else {}
            return _plus(inside, half)
        if node.name == "mul":
            return _times(self.of(inputs[0]), self.of(inputs[1]))
        if node.name == "neg":
            return _times(self.of(inputs[0]), {Monomial(): -1.0})
        if node.name in SHIFTING:
            if not any("x" in dict(m) or "w" in dict(m) for v in inputs for m in self.of(v)):
                return self.atom(value)
            sign = {Monomial(): -1.0 if node.name == "sub" else 1.0}
            return _plus(self.of(inputs[0]), _times(self.of(inputs[1]), sign))
        if node.name == "div" and (below := _inverse(self.of(inputs[1]))) is not None:
            return _times(self.of(inputs[0]), below)
        if node.name == "integer_pow" and node.params["y"] == -1 and (below := _inverse(self.of(inputs[0]))):
            return below
        if node.name == "select_n" and (kept := guarded(node)) is not None:
            return self.of(kept)
        return self.atom(value)

    def atom(self, value: Value) -> Polynomial:
        key = self.key(_bare(value))
        if key == self.kernel:
            return {Monomial([("w", 1)]): 1.0}
        self.atoms.setdefault(key, _bare(value))
        return {Monomial([(key, 1)]): 1.0}

    def total(self, value: Value) -> Polynomial:
        """A sum of the kernel over what the core sums over is the kernel, where all it is multiplied by is alike."""
        node = value.node
        assert node is not None
        inner, axes = node.inputs[0], sorted(node.params["axes"])
        plain = inner
        while plain.node is not None and plain.node.name in CASTS:
            plain = plain.node.inputs[0]
        own = self.core.inputs[1 - self.at]
        while own.node is not None and own.node.name in CASTS:
            own = own.node.inputs[0]
        if plain is own and axes == self.summed:
            return {Monomial([("w", 1)]): 1.0}
        if any("x" in dict(m) for m in self.of(inner)):
            return self.of(inner)  # what the layer makes, summed over groups
        return self.atom(value)

    def key(self, value: Value, depth: int = 8) -> Hashable:
        """The same for two values that are computed alike from the same."""
        node = value.node
        if value in self.keys:
            return self.keys[value]
        key: Hashable = id(value)
        if value.constant is not None and np.size(value.constant) == 1:
            key = ("number", str(value.constant))
        elif (
            node is not None and value is not self.x and depth and len(node.outputs) == 1 and not node.bodies
        ):
            inside = tuple(self.key(v, depth - 1) for v in node.inputs)
            key = (node.name, str(sorted(node.params.items(), key=lambda item: item[0])), inside)
        self.keys[value] = key
        return key

    def has_x(self, value: Value) -> bool:
        return any("x" in dict(m) for m in self.of(value))

    def scaled(self, codes: Polynomial) -> bool:
        """Whether codes are x, scaled and shifted. Notes by what."""
        terms = [dict(m) for m in codes if "x" in dict(m)]
        self.scales |= {atom for term in terms for atom in term if atom != "x"}
        self.shifts = (self.shifts | {atom for m in codes for atom, _ in m if atom != "x"}) - self.scales
        return len(terms) == 1 and terms[0]["x"] == 1

    def clean(self, polynomial: Polynomial) -> bool:
        """Whether this is x times the kernel, times and plus what does not depend on x."""
        terms = [dict(m) for m in polynomial]
        first = [term for term in terms if "x" in term]
        if len(first) != 1 or first[0]["x"] != 1 or first[0].get("w") != 1:
            return False
        others = [atom for term in terms for atom in term if atom not in ("x", "w")]
        rows = [atom for atom in self.scales if _size(self.atoms[atom]) > 1]
        return not any(self.atoms[atom].depends or atom in rows for atom in others)

    def static(self, value: Value) -> set[int]:
        """The dimensions along which a value varies, where numbers stand for what scales and shifts x in the codes."""
        node, own = value.node, self.scales | self.shifts
        if not own & {atom for m in self.of(value) for atom, _ in m}:
            return varying(value)
        if node is None or self.key(value) in own:
            return set()
        if node.name in (*CASTS, "stop_gradient"):
            return self.static(node.inputs[0])
        if node.name in MOVES:
            before = node.inputs[0]
            inner = self.static(before)
            labels = [d in inner for d in range(len(before.shape))]
            moved = dimensions.moved(node, labels, before.shape) if inner else []
            return {d for d, label in enumerate(moved) if label is not False and value.shape[d] > 1}
        if node.name == "broadcast_in_dim":
            inner = self.static(node.inputs[0])
            return {outer for d, outer in enumerate(node.params["broadcast_dimensions"]) if d in inner}
        if node.name == "select_n" and (kept := guarded(node)) is not None:
            return self.static(kept)
        if node.name in (*SCALING, *SHIFTING, "integer_pow"):
            return set().union(*(self.static(v) for v in node.inputs))
        return varying(value)

    def neutralised(self, value: Value, read: Callable[[Value], Any]) -> Any:
        """A value, with numbers in the place of what cancels; `read` gives what it is computed from."""
        node = value.node
        if self.key(value) in self.neutral:
            return jnp.full(value.shape, self.neutral[self.key(value)], value.aval.dtype)
        if node is None or not any(atom in self.neutral for m in self.of(value) for atom, _ in m):
            return read(value)
        if node.name == "select_n" and (kept := guarded(node)) is not None:
            return jnp.broadcast_to(self.neutralised(kept, read), value.shape)
        return node.bind(*(self.neutralised(v, read) for v in node.inputs))[0]

    def leaves(self, values: Sequence[Value]) -> list[Value]:
        """What `neutralised` reads, for these values."""
        read: dict[Value, None] = {}

        def note(value: Value) -> Any:
            read[value] = None
            return jnp.zeros(value.shape, value.aval.dtype)

        jax.eval_shape(lambda: [self.neutralised(v, note) for v in values])
        return [v for v in read if v.constant is None]


def guarded(node: Node) -> Value | None:
    """The value that a choice between it and a number guards (`where(s == 0, 1, s)`)."""
    cases = [v for v in node.inputs[1:] if _bare(v).constant is None]
    return cases[0] if len(cases) == 1 and len(node.inputs) == 3 else None


def _bare(value: Value) -> Value:
    """A value before it was moved, repeated or cast."""
    through = (*CASTS, *MOVES, "broadcast_in_dim", "stop_gradient")
    while value.node is not None and value.node.name in through:
        value = value.node.inputs[0]
    return value


def _size(value: Value) -> int:
    return math.prod(value.shape)


def _real(constant: Any) -> bool:
    dtype = np.asarray(constant).dtype
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    product: dict = {}
    for left, x in a.items():
        for right, y in b.items():
            powers = dict(left)
            for atom, power in right:
                powers[atom] = powers.get(atom, 0) + power
            monomial = Monomial((atom, power) for atom, power in powers.items() if power)
            product[monomial] = product.get(monomial, 0.0) + x * y
    return product


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    total = {m: a.get(m, 0.0) + b.get(m, 0.0) for m in (*a, *b)}
    return {m: c for m, c in total.items() if c}


def _inverse(a: Polynomial) -> Polynomial | None:
    if len(a) != 1:
        return None
    ((monomial, factor),) = a.items()
    return {Monomial((atom, -power) for atom, power in monomial): 1 / factor}
