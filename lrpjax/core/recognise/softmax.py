"""Softmax, log-softmax and logsumexp among the nodes of a graph, in every writing.

All of them are right as JAX differentiates them: that is AttnLRP's Taylor expansion (Achtibat et al. 2024, eq. 9).
"""

from lrpjax.core.graph import Node, Value, between
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Level, Unit

THROUGH = ("structural", "affine")
SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "dot_general")


def find(draft: Draft) -> None:
    """exp(u) / Σ exp(u), log Σ exp(u), exp(u − log Σ exp(u)), log(softmax(u)), and Σ exp(u) v / Σ exp(u)."""
    for node in draft.carrying:
        if node.name not in ("exp", "exp2") or not draft.free(node):
            continue
        numerators = draft.forward(node.out, THROUGH)
        sums = [u for v in numerators for u in v.users if u.name in SUMS]
        sums = [s for s in sums if s.name != "dot_general" or len(s.carriers()) == 1]
        for total in sums:
            if not draft.free(total):
                continue
            for denominator in draft.forward(total.out, THROUGH):
                for user in denominator.users:
                    end = _end(draft, user, denominator, numerators)
                    if end is not None and draft.free(end):
                        _add(draft, node, end)
                    elif end is None:
                        _add_deferred(draft, node, user, denominator, numerators)
    for node in draft.carrying:
        if draft.free(node) and (
            (node.name in ("exp", "exp2") and _over_logsumexp(draft, node))
            or (node.name == "log" and _made_by(draft, node.inputs[0], "softmax"))
        ):
            name = "log_softmax" if node.name == "log" else "softmax"
            draft.add(Unit("softmax", [node], node.carriers(), name))


def _add(draft: Draft, start: Node, end: Node) -> None:
    nodes = between(start.out, end)
    if nodes is None or not all(map(draft.free, nodes)):
        return
    name = "logsumexp" if end.name == "log" else "softmax"
    draft.add(Unit("softmax", [start, *nodes], start.carriers(), name))


def _end(draft: Draft, user: Node, denominator: Value, numerators: list[Value]) -> Node | None:
    """The last node of a softmax or logsumexp, if `user` uses its denominator in the way of one."""
    if user.name == "div" and user.inputs[1] is denominator:
        if user.inputs[0] in numerators:
            return user
        if not user.inputs[0].carries:  # the reciprocal of the sum, multiplied with the exponentials
            for r in draft.forward(user.out, ("structural",)):
                for u in r.users:
                    if u.name == "mul" and any(v in numerators for v in u.inputs):
                        return u
    if user.name == "log":
        return user
    return None


def _add_deferred(draft: Draft, start: Node, user: Node, denominator: Value, numerators: list[Value]) -> None:
    """Σ e v / Σ e: the exponentials are a unit, and so is the division, which hands relevance to both sums."""
    if user.name != "div" or user.inputs[1] is not denominator or not draft.free(user):
        return
    if not user.inputs[0].carries:
        return
    node = user.inputs[0].node
    while node is not None and (draft.light(node, ("structural",)) or node.name == "reduce_sum"):
        node = node.carriers()[0].node
    weights = [] if node is None or not draft.bilinear(node) else [v for v in node.inputs if v in numerators]
    if not weights:
        return
    if draft.free(start):
        draft.add(Unit("softmax", [start], start.carriers(), "softmax"))
    if draft.unit_of[start].nodes == [start]:
        top = user.inputs[0]
        draft.add(Unit("quotient", [user], user.inputs, signal=top, core=node, exponentials=weights[0]))


def _over_logsumexp(draft: Draft, node: Node) -> bool:
    """exp(u − log Σ exp(u))"""
    inner = node.inputs[0].node
    return (
        inner is not None
        and inner.name == "sub"
        and inner.inputs[1].carries
        and _made_by(draft, inner.inputs[1], "logsumexp")
    )


def _made_by(draft: Draft, value: Value, name: str) -> bool:
    unit = draft.unit_before(value, THROUGH)
    return unit is not None and unit.name == name


def is_probability(level: Level, value: Value) -> bool:
    """Whether a value is a softmax or log-softmax, but for moving its elements about."""
    owner = {node: unit for unit in level.units for node in unit.nodes}
    subtracted = False
    while value.node in owner:
        unit = owner[value.node]
        if unit.kind == "softmax":
            return subtracted or unit.name != "logsumexp"
        if unit.kind in ("affine", "sum") and value.node.name == "sub":  # u − log Σ exp(u)
            value, subtracted = value.node.inputs[1], True
        elif unit.kind == "structural" and len(value.node.carriers()) == 1:
            value = value.node.carriers()[0]
        else:
            return False
    return False
