"""Solutions of linear systems, A z = b, where the matrix carries relevance."""

from collections.abc import Sequence

from lrpjax.core import compat
from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Solve


def find(draft: Draft) -> None:
    """z = A⁻¹ b is linear in the right-hand side b; the matrix A is a denominator. With a constant matrix it is a
    linear map, which others take."""
    for node in draft.carrying:
        right = right_hand_sides(node) if draft.free(node) and node.name in SOLVES else None
        if right is not None and any(v.carries for v in node.inputs if v not in right):
            right = [v for v in right if v.carries]
            name = name_of(draft, node)
            draft.add(Solve("quotient", [node], node.carriers(), name, right=right))


SOLVES = ("triangular_solve", "tridiagonal_solve", "custom_linear_solve", "linear_solve")


def right_hand_sides(node: Node) -> Sequence[Value]:
    if node.name == "custom_linear_solve":
        return node.inputs[sum(node.params["const_lengths"]) :]
    if node.name == "linear_solve":  # that of lineax
        return [node.inputs[i] for i in compat.places_in_arguments(node.eqn, 2)]
    return node.inputs[3:] if node.name == "tridiagonal_solve" else node.inputs[1:]


def name_of(draft: Draft, node: Node) -> str:
    """The function of JAX's own that a node stands in ("cholesky", "solve", "inv"), or else its primitive's name."""
    for call in draft.graph.calls:
        if compat.is_library_call(call.eqn) and node in call.nodes:
            return call.name
    return node.name
