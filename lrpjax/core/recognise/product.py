"""Products of several values that all carry relevance."""

from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise import names
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Unit

THROUGH = ("structural", "affine")


def find(draft: Draft) -> None:
    """Multilinear trees: `a * b * c` is one product of three factors, however it is associated."""
    for node in reversed(draft.carrying):
        if not draft.free(node) or not draft.bilinear(node):
            continue
        nodes, factors = _factors(draft, node)
        gates = [v for v in factors if names.is_gate(draft.unit_before(v, THROUGH))]
        activated = [v for v in factors if _activated(draft, v)]
        name = "gate" if 0 < len(gates) < len(factors) else ""
        draft.add(Unit("product", nodes, factors, name, gates=gates, activated=activated))


def _factors(draft: Draft, node: Node) -> tuple[list[Node], list[Value]]:
    nodes, factors = [node], []
    for v in node.inputs:
        inner, moves = v.node, []
        while inner is not None and draft.light(inner, ("structural",)) and _sole(draft, inner):
            moves.append(inner)
            inner = inner.carriers()[0].node
        if inner is not None and draft.free(inner) and draft.bilinear(inner) and _sole(draft, inner):
            below, more = _factors(draft, inner)
            nodes += [*moves, *below]
            factors += more
        else:
            factors.append(v)
    return sorted(set(nodes), key=lambda n: n.index), factors


def _sole(draft: Draft, node: Node) -> bool:
    """Whether nothing but its one user wants what a node makes."""
    return len(node.out.users) == 1 and not draft.visible(node.out) and draft.free(node)


def _activated(draft: Draft, value: Value) -> bool:
    unit = draft.unit_before(value, ("structural",))
    return unit is not None and unit.kind == "activation"
