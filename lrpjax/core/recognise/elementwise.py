"""Which nodes of a graph are elementwise functions of the explained input, and through which values all of it
passes on its way to a node."""

import functools
from collections.abc import Mapping

from lrpjax.core.graph import Graph, Node, Value

_ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "select_n",
    "convert_element_type",
    "copy",
    "add_any",
    "reduce_precision",
    "stop_gradient",
)


class Dependence:
    """How the nodes of a marked graph depend on the explained input."""

    def __init__(self, graph: Graph, families: Mapping[str, str]):
        self.graph = graph
        self.families = families

    def family(self, node: Node) -> str:
        return self.families.get(node.name, "unknown")

    def elementwise(self, node: Node) -> bool:
        """Elementwise, with one output, in which all that depends on the explained input has the shape of the
        output."""
        known = self.family(node) in ("elementwise", "predicate", "quotient", "negation")
        if len(node.outputs) != 1 or not (known or node.name in _ARITHMETIC):
            return False
        return all(v.shape == node.out.shape for v in node.inputs if v.depends)

    def nonlinear(self, node: Node) -> bool:
        """Of an elementwise node: whether it is more than linear in what depends on the explained input."""
        family = self.family(node)
        if family == "elementwise":
            return True
        if family == "predicate" or node.name == "select_n":
            return node.inputs[0].depends
        return (node.name == "mul" and all(v.depends for v in node.inputs)) or (
            family == "quotient" and node.inputs[1].depends
        )

    @functools.cached_property
    def dominators(self) -> dict[Node, Value | None]:
        """For each node, the last value that every way from the explained inputs to it passes; None where there
        is no such value."""
        depth: dict[Value | None, int] = {None: 0}
        parent: dict[Value, Value | None] = {}
        result: dict[Node, Value | None] = {}
        for v in self.graph.inputs:
            parent[v], depth[v] = None, 1
        for node in self.graph.nodes:
            common: Value | None = None
            inputs = [v for v in dict.fromkeys(node.inputs) if v.depends]
            for i, v in enumerate(inputs):
                if v not in depth:
                    parent[v], depth[v] = None, 1
                if i == 0:
                    common = v
                    continue
                other: Value | None = v
                while common is not other:
                    if depth[common] >= depth[other]:
                        common = parent[common]  # type: ignore[index]
                    else:
                        other = parent[other]  # type: ignore[index]
            result[node] = common
            for out in node.outputs:
                parent[out], depth[out] = common, depth[common] + 1
        return result
