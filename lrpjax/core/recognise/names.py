"""The names of activations and small facts about the nodes that they are made of."""

from collections.abc import Sequence

from lrpjax.core.graph import Node, Value
from lrpjax.core.units import Unit

NAMED = frozenset(
    [
        "relu",
        "relu6",
        "silu",
        "swish",
        "gelu",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "softplus",
        "mish",
        "hard_silu",
        "hard_swish",
        "hard_tanh",
        "log_sigmoid",
        "soft_sign",
        "squareplus",
        "sparse_plus",
        "sparse_sigmoid",
        "hard_sigmoid",
        "identity",
        "logaddexp",
        "prelu",
    ]
)
"""Library functions whose name, where they are a call of their own, names the activation in a plan."""


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


def call_of(nodes: Sequence[Node]) -> tuple[str, ...] | None:
    """The outermost named library call that holds all the nodes: the calls from the outside down to it, or None."""
    common = nodes[0].within
    for node in nodes[1:]:
        common = tuple(a for a, b in zip(common, node.within, strict=False) if a == b)
    return next((common[: i + 1] for i, name in enumerate(common) if name in NAMED), None)


def name_of(nodes: Sequence[Node]) -> str:
    """The function's name: from the call that holds all its nodes, else from the primitive."""
    common = nodes[0].within
    for node in nodes[1:]:
        common = tuple(a for a, b in zip(common, node.within, strict=False) if a == b)
    names = [n.name for n in nodes if n.name not in ("convert_element_type", "copy")]
    if names == ["max"] and any(
        v.constant is not None and is_scalar(v) and v.constant == 0 for v in _literals(nodes[-1])
    ):
        return "relu"
    if names == ["logistic"] or (
        names in (["neg", "exp", "add", "div"], ["exp", "add", "div"]) and not nodes[-1].inputs[0].carries
    ):
        return "sigmoid"
    if "hard_sigmoid" in common and "hard_silu" not in common[common.index("hard_sigmoid") :]:
        return "hard_sigmoid"
    for name in reversed(common):
        if name in NAMED:
            return {"logaddexp": "softplus", "swish": "silu"}.get(name, name)
    return {"logistic": "sigmoid"}.get(names[0], names[0]) if len(names) == 1 else _shape_name(names)


def _shape_name(names: list[str]) -> str:
    for inner, name in (
        ("erf", "gelu"),
        ("erfc", "gelu"),
        ("logistic", "silu"),
        ("tanh", "tanh"),
        ("max", "clip"),
        ("min", "clip"),
    ):
        if inner in names:
            return "gelu" if inner == "tanh" and "mul" in names and len(names) > 4 else name
    return "+".join(dict.fromkeys(names))[:24]


def _literals(node: Node) -> list[Value]:
    origins = []
    for v in node.inputs:
        while (
            v.constant is None
            and v.node is not None
            and v.node.name in ("convert_element_type", "broadcast_in_dim")
        ):
            v = v.node.inputs[0]
        origins.append(v)
    return origins


def is_scalar(value: Value) -> bool:
    return size(value) == 1 or (
        value.node is not None and value.node.name == "broadcast_in_dim" and size(value.node.inputs[0]) == 1
    )


def size(value: Value) -> int:
    size = 1
    for n in value.shape:
        size *= n
    return size
