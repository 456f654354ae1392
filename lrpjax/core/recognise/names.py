"""The names of activations and small facts about the nodes that they are made of."""

from collections.abc import Sequence

from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise import formulas
from lrpjax.core.units import Unit

SPELLINGS = ("max", "min", "select_n", "clamp", "mul", "integer_pow", "pow")
"""Primitives that, even alone, are a writing of some function with a name."""


GATES = ("sigmoid", "hard_sigmoid")


def is_gate(unit: Unit | None) -> bool:
    """Sigmoids (and one minus them): they decide how much of the signal passes and receive no relevance (Arras
    et al. 2017)."""
    return unit is not None and unit.kind == "activation" and unit.name in GATES


def divides(node: Node) -> bool:
    """Whether a node makes a reciprocal of what carries relevance: rsqrt, 1 / x, a negative power."""
    if node.name == "rsqrt" or (node.name == "div" and not node.inputs[0].carries):
        return True
    if node.name == "integer_pow":
        return node.params["y"] < 0
    if node.name == "pow" and node.inputs[0].carries:
        exponent = node.inputs[1]
        while (
            exponent.constant is None
            and exponent.node is not None
            and exponent.node.name in ("convert_element_type", "broadcast_in_dim")
        ):
            exponent = exponent.node.inputs[0]
        return exponent.constant is not None and bool(
            (exponent.constant < 0).all() if hasattr(exponent.constant, "all") else exponent.constant < 0
        )
    return False


def name_of(nodes: Sequence[Node], source: Value) -> str:
    """The function's name, by what it computes; the primitives that it is made of, where it is no known function."""
    names = [n.name for n in nodes if n.name not in ("convert_element_type", "copy")]
    if len(names) == 1 and names[0] not in SPELLINGS:
        return {"logistic": "sigmoid"}.get(names[0], names[0])
    known = formulas.name_of(nodes, source)
    if known is not None:
        return known
    return "+".join(dict.fromkeys(names))[:24]


def size(value: Value) -> int:
    size = 1
    for n in value.shape:
        size *= n
    return size
