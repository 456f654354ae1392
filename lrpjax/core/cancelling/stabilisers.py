"""What is taken off before an exponential and cancels behind it: the maximum of a softmax, and the running maxima of
one that is computed in blocks (flash attention: Rabe & Staats 2021; Dao et al. 2022).

A stabiliser m cancels if nothing changes when any element of it grows by any number δ. To see that, the program is
walked once with what δ does to every value: it adds a multiple of δ, or multiplies by a power of e^δ, or does
nothing. exp(s − m) is multiplied by e^(−δ), and so are its sums along axes on which m is one number; a quotient of
two such values is as it was. Where a loop carries m, that at the beginning of a step and that at its end are two
stabilisers, and what the loop carries besides must do as well with the one as with the other.
"""

from collections.abc import Iterator, Mapping

from lrpjax.core.cancelling.labels import MOVES, SAME
from lrpjax.core.cancelling.walk import ENTERED, Walk
from lrpjax.core.graph import Graph, Value, graphs


def find(graph: Graph, families: Mapping[str, str]) -> frozenset[Value]:
    """The stabilisers of a marked graph, and of its sub-programs, that carry relevance and cancel."""
    symbols = _candidates(graph, families)
    while symbols:
        walk = Walk(symbols)
        walk.program(graph)
        for value in graph.outputs:
            walk.breaks(walk[value])
        if not walk.broken:
            break
        # What is behind another symbol is not judged before that one is known to be one.
        symbols = symbols - (frozenset(filter(_is_no_maximum, walk.broken)) or walk.broken)
    return frozenset(symbols)


def _candidates(graph: Graph, families: Mapping[str, str]) -> frozenset[Value]:
    """What is subtracted, while it carries relevance, from what goes into an exponential; and where it leaves and
    enters loops."""
    found: set[Value] = set()
    for level in graphs(graph):
        for node in level.nodes:
            if node.name in ("exp", "exp2") and node.inputs[0].carries:
                found.update(_subtracted(node.inputs[0]))
    return frozenset(_handed_on(graph, found)) if found else frozenset()


def _is_no_maximum(value: Value) -> bool:
    return value.node is not None and "max" not in value.node.name and not value.node.bodies


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
        if node.name in MOVES or node.name in ("add", "add_any", "mul", "select_n", "div"):
            stack.extend(carriers)


def _origin(value: Value) -> Value:
    """Where a value comes from, behind moves, scales and fillings."""
    while value.node is not None and value.node.name in (*MOVES, "select_n", "mul", "div"):
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
        if node.name in ENTERED:
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
        *SAME,
        "squeeze",
        "reshape",
        "expand_dims",
        "broadcast_in_dim",
    ):
        value = value.node.inputs[0]
    return value
