"""Quotients and normalisations: what has a value that carries relevance below the line, as well as one above it."""

from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise import names
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Unit

THROUGH = ("structural", "affine")


def find(draft: Draft) -> None:
    """A quotient, and a product with a factor made by rsqrt, a negative power or a reciprocal. Below a
    normalisation's line is a root."""
    for node in draft.carrying:
        if not draft.free(node):
            continue
        if node.name == "div" and node.inputs[1].carries:
            top, bottom = node.inputs
            if top.carries:
                origin = draft.origin(bottom, THROUGH)
                kind = "norm" if origin is not None and _holds(draft, origin, "sqrt") else "quotient"
                draft.add(Unit(kind, [node], node.carriers(), signal=top))
        elif node.name == "mul" and len(node.carriers()) == 2 and node.inputs[0] is not node.inputs[1]:
            below = [_reciprocal(draft, v) for v in node.inputs]
            if sum(below) == 1:
                draft.add(Unit("norm", [node], node.carriers(), signal=node.inputs[below.index(False)]))


def _holds(draft: Draft, node: Node, name: str) -> bool:
    """Whether a node is the primitive `name`, or the activation that it ends holds it."""
    unit = draft.unit_of.get(node)
    return node.name == name or (unit is not None and any(n.name == name for n in unit.nodes))


def _reciprocal(draft: Draft, value: Value) -> bool:
    origin = draft.origin(value, THROUGH)
    return (
        origin is not None and names.divides(origin) and not names.is_gate(draft.unit_before(value, THROUGH))
    )
