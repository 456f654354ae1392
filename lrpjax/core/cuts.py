"""Where the output depends on what is explained along something that carries no relevance, and what is made of that
comes back into floating-point numbers: the way of relevance is cut.

A predicate or an index that chooses among values that carry is no cut, however the choice is written (`where`, a
gather, a branch, a factor made of predicates): which of them is taken is no part of any relevance. Nor is what
stands inside a unit, nor what the program itself detaches.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from lrpjax.core import facts
from lrpjax.core.dataflow import Flow
from lrpjax.core.facts import AMOUNT, NOT, Fact
from lrpjax.core.graph import Node, Value, known_number
from lrpjax.core.kinds.base import Propagation
from lrpjax.core.plan import Routes
from lrpjax.core.units import Level, Unit

FACTORS = ("mul", "dot_general", "conv_general_dilated", "ragged_dot_general", "div")
PARTLY = (
    "a part of what the output depends on receives no relevance, because its way leads along integers, comparisons or "
    "indices, made by"
)
ADVICE = (
    "Explain with respect to a later value with at= (a module path, or the name of an lrpjax.tag), write the step "
    "with floating-point numbers, or give it a relevance of its own with custom_relevance"
)


@dataclasses.dataclass
class Cuts:
    """nodes: those that read what carries relevance and make of it what carries none, though the output depends
    on it. whole: nothing that the output depends on receives any."""

    nodes: list[Node]
    whole: bool

    @property
    def places(self) -> list[str]:
        return list(dict.fromkeys(node.place for node in self.nodes))


def find(
    level: Level,
    known: Flow[Fact],
    seeded: Sequence[bool],
    propagations: Mapping[Unit, Propagation],
    routes: Routes,
) -> Cuts:
    """The cuts between what is explained, from which the facts `known` begin, and the outputs that are `seeded`."""
    lost = {v for v, fact in known.known.items() if fact.cut > NOT and not fact.carries}
    if not lost:
        return Cuts([], False)

    def transfer(flow: Flow[bool], node: Node) -> Iterator[tuple[Value, bool]]:
        if any(flow[v] for v in node.outputs):
            yield from ((v, True) for v in node.inputs if v in lost)

    def steer(flow: Flow[bool], node: Node) -> Iterator[tuple[Value, bool]]:
        if any(flow[v] for v in node.outputs):
            yield from ((v, True) for v in node.steering if v in lost)

    graph = level.graph
    flow = Flow(False, lambda a, b: a or b, transfer, backward=True, within=lost, steer=steer)
    flow.known = dict.fromkeys(_landing(level, known, lost, propagations, routes), True)
    flow.solve(graph, seeded)
    nodes = [
        node
        for node in graph.walk()
        if any(flow[v] for v in node.outputs)
        and any(known[v].carries for v in (node.steering if node.bodies else node.inputs))
    ]
    carried = any(known[v].carries for v, seed in zip(graph.outputs, seeded, strict=True) if seed)
    return Cuts(nodes, bool(nodes) and not carried)


def _landing(
    level: Level,
    known: Flow[Fact],
    lost: set[Value],
    propagations: Mapping[Unit, Propagation],
    routes: Routes,
) -> Iterator[Value]:
    """The values of `lost` that are more than a choice to a node through which relevance goes."""
    owner = {node: unit for unit in level.walk() for node in unit.nodes}
    for unit in routes.takes:
        for body in unit.bodies:
            for outer, inner in zip(unit.outputs, body.outputs, strict=True):
                if inner in lost and outer in routes.reached:
                    yield inner
            for outer, inner in zip(unit.entering, body.inputs, strict=True):
                if outer in lost and inner in routes.reached:
                    yield outer
        if unit.bodies or not propagations[unit].receives:
            continue
        coded = unit.coded
        for node in unit.nodes:
            for place, value in enumerate(node.inputs):
                if value in lost and value not in coded and place not in facts.choosing(node):
                    inside = _inside(unit, value, owner)
                    factor = node.name in FACTORS and known[value].cut < AMOUNT
                    numbers = _chosen(value)
                    alike = len(numbers) == 1 and None not in numbers
                    if not (inside or factor or alike):
                        yield value


def _inside(unit: Unit, value: Value, owner: Mapping[Node, Unit]) -> bool:
    """Whether a value is made within a unit, or of the unit's operands alone (a predicate that others read too)."""
    if value.node is None or owner.get(value.node) is unit:
        return value.node is not None
    reads = [v for v in value.node.inputs if v.depends]
    return value.aval.dtype == bool and all(v in unit.operands for v in reads)


def _chosen(value: Value) -> set:
    """The numbers of which a value is one, whatever chooses it; with None for what is no number."""
    node = value.node
    if node is not None and node.name in (
        "copy",
        "convert_element_type",
        "stop_gradient",
        "broadcast_in_dim",
    ):
        return _chosen(node.inputs[0])
    if node is not None and node.name == "select_n":
        return set().union(*map(_chosen, node.inputs[1:]))
    return {known_number(value)}
