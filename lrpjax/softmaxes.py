"""Softmax, log-softmax and logsumexp among the nodes of a graph, in every writing.

All of them are right as JAX differentiates them: that is AttnLRP's Taylor expansion (Achtibat et al. 2024, eq. 9).
"""

from typing import TYPE_CHECKING

from lrpjax.graph import Node, Value, between

if TYPE_CHECKING:
    from lrpjax.units import Finder

THROUGH = ("structural", "affine")
SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "dot_general")


def find(finder: "Finder") -> None:
    """exp(u) / Σ exp(u), log Σ exp(u), exp(u − log Σ exp(u)), log(softmax(u)), and Σ exp(u) v / Σ exp(u)."""
    for node in finder.live:
        if node.name not in ("exp", "exp2") or node in finder.unit_of:
            continue
        numerators = finder.forward(node.out, THROUGH)
        sums = [u for v in numerators for u in v.users if u.name in SUMS]
        sums = [s for s in sums if s.name != "dot_general" or len(s.carriers()) == 1]
        for total in sums:
            if total in finder.unit_of:
                continue
            for denominator in finder.forward(total.out, THROUGH):
                for user in denominator.users:
                    end = _end(finder, user, denominator, numerators)
                    if end is not None and end not in finder.unit_of:
                        _add(finder, node, end)
                    elif end is None:
                        _add_deferred(finder, node, user, denominator, numerators)
    for node in finder.live:
        if node not in finder.unit_of and (
            (node.name in ("exp", "exp2") and _over_logsumexp(finder, node))
            or (node.name == "log" and _ends(finder, node.inputs[0], "softmax"))
        ):
            name = "log_softmax" if node.name == "log" else "softmax"
            finder.make("softmax", [node], node.carriers(), node.carriers(), name)


def _add(finder: "Finder", start: Node, end: Node) -> None:
    nodes = between(start.out, end)
    if nodes is None or any(n in finder.unit_of for n in nodes):
        return
    source, name = start.carriers(), "logsumexp" if end.name == "log" else "softmax"
    finder.make("softmax", [start, *nodes], source, source, name)


def _end(finder: "Finder", user: Node, denominator: Value, numerators: list[Value]) -> Node | None:
    """The last node of a softmax or logsumexp, if `user` uses its denominator in the way of one."""
    if user.name == "div" and user.inputs[1] is denominator:
        if user.inputs[0] in numerators:
            return user
        if not user.inputs[0].carries:  # the reciprocal of the sum, multiplied with the exponentials
            for r in finder.forward(user.out, ("structural",)):
                for u in r.users:
                    if u.name == "mul" and any(v in numerators for v in u.inputs):
                        return u
    if user.name == "log":
        return user
    return None


def _add_deferred(
    finder: "Finder", start: Node, user: Node, denominator: Value, numerators: list[Value]
) -> None:
    """Σ e v / Σ e: the exponentials are a unit, and so is the division, which hands relevance to both sums."""
    if user.name != "div" or user.inputs[1] is not denominator or user in finder.unit_of:
        return
    if not user.inputs[0].carries:
        return
    node = user.inputs[0].node
    while node is not None and (finder.light(node, ("structural",)) or node.name == "reduce_sum"):
        node = node.carriers()[0].node
    weights = [] if node is None or not finder.bilinear(node) else [v for v in node.inputs if v in numerators]
    if not weights:
        return
    if start not in finder.unit_of:
        finder.make("softmax", [start], start.carriers(), start.carriers(), "softmax")
    if finder.unit_of[start].nodes == [start]:
        finder.make("quotient", [user], user.inputs, user.inputs, core=node, weights=weights[0])


def _over_logsumexp(finder: "Finder", node: Node) -> bool:
    """exp(u − log Σ exp(u))"""
    inner = node.inputs[0].node
    return (
        inner is not None
        and inner.name == "sub"
        and inner.inputs[1].carries
        and _ends(finder, inner.inputs[1], "logsumexp")
    )


def _ends(finder: "Finder", value: Value, name: str) -> bool:
    origin = finder.origin(value, THROUGH)
    unit = finder.unit_of.get(origin) if origin is not None else None
    return unit is not None and unit.name == name and unit.nodes[-1] is origin
