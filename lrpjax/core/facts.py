"""Three facts about every value of a graph: does it carry relevance, does it depend on what is explained at all,
and is it known to be non-negative. And where the relevance of tokens begins."""

import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lrpjax.core import compat
from lrpjax.core.dataflow import Flow
from lrpjax.core.graph import Graph, Node, Value, graphs, known_nonnegative
from lrpjax.core.primitives import ANY_SIGN, NONNEGATIVE, SIGN_KEEPING

NOT, CHOICE, AMOUNT = range(3)
"""How a value that carries no relevance depends on what is explained all the same. NOT: not at all. CHOICE: it is
one of several constants, or a sum of such, which predicates or indices choose. AMOUNT: it is a number itself, an
integer that was a float, an index that is counted with."""


class Fact(NamedTuple):
    """Of a value. cut: how it depends on what is explained, if it does not carry; see `AMOUNT`."""

    carries: bool = False
    nonnegative: bool = True
    cut: int = NOT

    @property
    def depends(self) -> bool:
        return self.carries or self.cut > NOT


def mark(flow: Flow[Fact]) -> Flow[Fact]:
    """Sets `carries`, `depends` and `nonnegative` on every value, as `find` knows them, and returns them."""
    for value, fact in flow.known.items():
        value.carries, value.nonnegative, value.depends = fact.carries, fact.nonnegative, fact.depends
    return flow


def find(
    graph: Graph,
    carries: Sequence[bool],
    sources: frozenset[Value],
    families: Mapping[str, str],
    fixed: frozenset[Value] = frozenset(),
    made: Mapping[Value, Value] = types.MappingProxyType({}),
) -> Flow[Fact]:
    """The facts of every value, given which inputs carry. `sources` carry in any case (they are explained
    themselves); what is `fixed` carries in none. What is `made` of another value, be it along integers, carries if
    that does."""

    def transfer(flow: Flow[Fact], node: Node) -> Iterator[tuple[Value, Fact]]:
        facts = [flow[v] for v in node.inputs]
        heard = any(f.depends for f in facts) and families.get(node.name) != "stop"
        reached = heard and any(f.carries for f in facts)
        sign = _sign(node, [f.nonnegative for f in facts])
        for value in node.outputs:
            if not heard or value in fixed:
                yield value, Fact(False, sign)
            elif (value in made and flow[made[value]].carries) or (reached and compat.is_float(value.aval)):
                yield value, Fact(True, sign)
            else:
                yield value, Fact(False, sign, _cut(node, facts, value))

    def steer(flow: Flow[Fact], node: Node) -> Iterator[tuple[Value, Fact]]:
        if any(flow[v].depends for v in node.steering):
            kind = CHOICE if node.name == "cond" else AMOUNT
            yield from ((v, Fact(False, True, kind)) for v in node.outputs)

    join = lambda a, b: Fact(a.carries or b.carries, a.nonnegative and b.nonnegative, max(a.cut, b.cut))
    flow = Flow(Fact(), join, transfer, steer=steer)
    flow.known = {v: Fact(True, True) for v in sources}
    for level in graphs(graph):
        flow.known |= {v: Fact(v in sources, known_nonnegative(c)) for v, c in _constants(level)}
    return flow.solve(graph, [Fact(c, False) for c in carries])


def _cut(node: Node, facts: Sequence[Fact], value: Value) -> int:
    """How what a node makes depends on what is explained, where it does not carry."""
    if value.aval.dtype == bool:
        return CHOICE
    if node.name == "sort":
        return AMOUNT
    chosen = choosing(node)
    data = [f for i, f in enumerate(facts) if i not in chosen]
    return AMOUNT if any(f.carries for f in data) else max([CHOICE, *(f.cut for f in data)])


def choosing(node: Node) -> Collection[int]:
    """The places of the operands that only say which elements of the others are taken, and where they go: a
    predicate, indices, keys to sort by. A function with a relevance of its own answers for all of them."""
    count = len(node.inputs)
    if node.name in ("select_n", "cond"):
        return range(1)
    if node.name in ("gather", "dynamic_slice"):
        return range(1, count)
    if node.name == "dynamic_update_slice" or node.name.startswith("ragged_dot"):
        return range(2, count)
    if node.name == "sort":
        return [i for i, v in enumerate(node.inputs) if not compat.is_float(v.aval)]
    if node.name == compat.custom_call.name:
        return range(count)
    return range(1, 2) if node.name.startswith("scatter") else range(0)


def _constants(graph: Graph) -> Iterator[tuple[Value, Any]]:
    """The constants of a graph and the literals that its nodes read or that it returns."""
    yield from graph.constants.items()
    for value in (*(v for node in graph.nodes for v in node.inputs), *graph.outputs):
        if value.constant is not None:
            yield value, value.constant


def _sign(node: Node, signs: Sequence[bool]) -> bool:
    """Whether what a node makes is non-negative, given which of its operands are."""
    name = node.name
    if name in NONNEGATIVE or (name == "integer_pow" and node.params["y"] % 2 == 0) or not node.outputs:
        return True
    if name in ANY_SIGN:
        return any(signs)
    if name == "select_n":
        return all(signs[1:])
    if name in ("gather", "dynamic_slice", "sort", "top_k"):
        return signs[0]
    if name == "dynamic_update_slice":
        return all(signs[:2])
    if name == "mul" and node.inputs[0] is node.inputs[1]:
        return not jax.numpy.issubdtype(node.out.aval.dtype, jax.numpy.complexfloating)
    return name in SIGN_KEEPING and all(signs)


def token_sources(graph: Graph, explained: Sequence[bool]) -> frozenset[Value]:
    """Floating-point values looked up by integers that come from the explained input: where the relevance of
    tokens begins."""
    integers = {v for v, e in zip(graph.inputs, explained, strict=True) if e and not compat.is_float(v.aval)}
    sources: set[Value] = set()
    for node in graph.nodes:
        if not any(v in integers for v in node.inputs):
            continue
        for value in node.outputs:
            table = node.name in ("gather", "dot_general", "dynamic_slice") and any(
                len(v.shape) > 1 and compat.is_float(v.aval) and v not in integers for v in node.inputs
            )
            (sources if table and compat.is_float(value.aval) else integers).add(value)
    return frozenset(sources)
