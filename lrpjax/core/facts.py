"""Two facts about every value of a graph: does it carry relevance, and is it known to be non-negative. And
where the relevance of tokens begins."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lrpjax.core import compat
from lrpjax.core.dataflow import Flow
from lrpjax.core.graph import Graph, Node, Value, known_nonnegative
from lrpjax.core.primitives import ANY_SIGN, NONNEGATIVE, SIGN_KEEPING


class Fact(NamedTuple):
    carries: bool = False
    nonnegative: bool = True


def mark(
    graph: Graph,
    carries: Sequence[bool],
    sources: frozenset[Value],
    families: Mapping[str, str],
    fixed: frozenset[Value] = frozenset(),
) -> None:
    """Sets `carries` and `nonnegative` on every value, given which inputs carry. `sources` carry in any case
    (they are explained themselves); what is `fixed` carries in none."""

    def transfer(flow: Flow[Fact], node: Node) -> Iterator[tuple[Value, Fact]]:
        facts = [flow[v] for v in node.inputs]
        reached = any(f.carries for f in facts) and families.get(node.name) != "stop"
        sign = _sign(node, [f.nonnegative for f in facts])
        for value in node.outputs:
            yield value, Fact(reached and compat.is_float(value.aval) and value not in fixed, sign)

    join = lambda a, b: Fact(a.carries or b.carries, a.nonnegative and b.nonnegative)
    flow = Flow(Fact(), join, transfer)
    flow.known = {v: Fact(True, True) for v in sources}
    for level in _graphs(graph):
        flow.known |= {v: Fact(v in sources, known_nonnegative(c)) for v, c in _constants(level)}
    flow.solve(graph, [Fact(c, False) for c in carries])
    for value, fact in flow.known.items():
        value.carries, value.nonnegative = fact


def _graphs(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.nodes:
        for body in node.bodies:
            yield from _graphs(body)


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
