"""Which nodes of a graph are elementwise functions of the explained input, and through which values all of it
passes on its way to a node."""

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
    """What depends on the explained input of a marked graph, and how."""

    def __init__(self, graph: Graph, families: Mapping[str, str]):
        self.graph = graph
        self.families = families
        self.derived = {v for v in graph.inputs if v.carries}
        for node in graph.nodes:
            if self.family(node) != "stop" and any(v in self.derived for v in node.inputs):
                self.derived.update(node.outputs)
            else:
                self.derived.update(o for o in node.outputs if o.carries)

    def family(self, node: Node) -> str:
        return self.families.get(node.name, "unknown")

    def depends(self, value: Value) -> bool:
        """Whether a value is derived from one that carries relevance, be it by a predicate."""
        return value in self.derived

    def elementwise(self, node: Node) -> bool:
        """Elementwise, with one output, in which all that depends on the explained input has the shape of the
        output."""
        known = self.family(node) in ("elementwise", "predicate", "quotient", "negation")
        if len(node.outputs) != 1 or not (known or node.name in _ARITHMETIC):
            return False
        return all(v.shape == node.out.shape for v in node.inputs if self.depends(v))

    def nonlinear(self, node: Node) -> bool:
        """Of an elementwise node: whether it is more than linear in what depends on the explained input."""
        family = self.family(node)
        if family == "elementwise":
            return True
        if family == "predicate" or node.name == "select_n":
            return self.depends(node.inputs[0])
        return (node.name == "mul" and all(self.depends(v) for v in node.inputs)) or (
            family == "quotient" and self.depends(node.inputs[1])
        )

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
            inputs = [v for v in dict.fromkeys(node.inputs) if self.depends(v)]
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
