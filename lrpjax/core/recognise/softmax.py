"""Softmax, log-softmax and logsumexp among the nodes of a graph, in every writing.

All of them are right as JAX differentiates them: that is AttnLRP's Taylor expansion (Achtibat et al. 2024,
proposition 3.1).
"""

from lrpjax.core import compat
from lrpjax.core.graph import Node, Value, between
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.recognise.exponentials import EXPONENTIALS, log_addition
from lrpjax.core.units import RUNNING_MAXIMUM, Level, Unit

_LIGHT = (
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "transpose",
    "convert_element_type",
    "copy",
    "mul",
    "select_n",
    "stop_gradient",
    "reduce_max",
    "dynamic_slice",
    "slice",
    "gather",
)
THROUGH = ("structural", "affine")
SUMS = ("reduce_sum", "cumsum", "reduce_window_sum", "dot_general", "scatter-add")


def find(draft: Draft) -> None:
    """exp(u) / Σ exp(u), log Σ exp(u), exp(u − log Σ exp(u)), log(softmax(u)), and Σ exp(u) v / Σ exp(u)."""
    for node in draft.exponentials.log_additions.intersection(draft.graph.nodes):
        nodes, a, b = log_addition(node)  # type: ignore[misc]
        nodes = sorted(nodes, key=lambda n: n.index)
        operands = [v for n in nodes for v in n.inputs if v in (a, b) and v.carries]
        draft.add(Unit("softmax", nodes, operands, "logsumexp"))
    for node in draft.carrying:
        if node.name not in EXPONENTIALS or not draft.free(node):
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
    for node in draft.carrying:
        if not draft.free(node):
            continue
        if node.name in EXPONENTIALS and _over_logsumexp(draft, node):
            above = node.inputs[0].node.inputs[0]  # type: ignore[union-attr]
            nodes = between(above, node)
            if nodes is None or not _sole(draft, nodes):
                above, nodes = node.inputs[0], [node]
            draft.add(Unit("softmax", nodes, [above] * _readings(above, nodes), "softmax"))
        elif node.name == "log" and _made_by(draft, node.inputs[0], "softmax"):
            draft.add(Unit("softmax", [node], node.carriers(), "log_softmax"))
        else:
            _add_late(draft, node)
        if draft.free(node) and node.name in EXPONENTIALS and _under_running_maximum(node):
            draft.add(Unit("unknown", [node], node.carriers(), RUNNING_MAXIMUM))


def _under_running_maximum(node: Node) -> bool:
    """exp(s − m) or exp(m' − m) with m = max(m', max s). Not so where m cancels and m' is f + the maximum before, with
    a decay f that carries relevance: these are the gates of a recurrence (xLSTM; Beck et al. 2024)."""
    inner = _origin(node.inputs[0]).node
    if inner is None or inner.name != "sub":
        return False
    taken = _origin(inner.inputs[1]).node
    if taken is None or taken.name != "max" or any(v.constant is not None for v in taken.inputs):
        return False
    origins = {_origin(v) for v in taken.inputs}
    decays = any(v.carries and v.node is not None and v.node.name == "add" for v in origins)
    return _origin(inner.inputs[0]) in origins and (taken.out.carries or not decays)


def _origin(value: Value) -> Value:
    """Where a value comes from, behind moves, scales, fillings, stops and maxima along axes."""
    while value.node is not None and value.node.name in _LIGHT:
        inputs = [v for v in value.node.inputs if v.constant is None and compat.is_float(v.aval)]
        carrying = [v for v in inputs if v.carries] or inputs
        if len(carrying) != 1:
            break
        value = carrying[0]
    return value


def _readings(value: Value, nodes: list[Node]) -> int:
    return sum(v is value for node in nodes for v in node.inputs)


def _sole(draft: Draft, nodes: list[Node]) -> bool:
    """Whether nodes may be one unit: none has another that is not among them, and nothing else wants a value from
    inside."""
    free = all(set(draft.unit_of[n].nodes) <= set(nodes) for n in nodes if not draft.free(n))
    inner = [v for node in nodes[:-1] for v in node.outputs if v.carries]
    return free and not any(draft.visible(v) or any(u not in nodes for u in v.users) for v in inner)


def _add_late(draft: Draft, node: Node) -> None:
    """What belongs to softmaxes that are divided late: Σ e v / Σ e, in one graph or in several."""
    found, operands = draft.exponentials, node.carriers()
    if node in found.exponentials:
        draft.add(Unit("softmax", [node], operands, "softmax"))
    elif node in found.logarithms:
        draft.add(Unit("softmax", [node], operands, "logsumexp"))
    elif node in found.reciprocals:
        draft.add(Unit("softmax", [node], operands, "reciprocal"))
    elif node in found.sums:
        draft.add(Unit("linear", [node], operands))
    elif node in found.divisions:
        late = found.divisions[node]
        if late.products == {None}:
            draft.add(Unit("softmax", [node], operands, "softmax"))
        else:
            (signal,) = [v for v in operands if v is not late.below]
            draft.add(Unit("quotient", [node], operands, signal=signal, late=late))


def _add(draft: Draft, start: Node, end: Node) -> None:
    nodes = between(start.out, end)
    if nodes is None or not _sole(draft, [start, *nodes]):
        return
    name = "logsumexp" if end.name == "log" else "softmax"
    operand, nodes = start.inputs[0], [start, *nodes]
    shift = operand.node
    if shift is not None and shift.name == "sub" and all(v.carries for v in shift.inputs):
        whole = between(
            shift.inputs[0], end
        )  # with a maximum that does not cancel: a constant stands below the line
        if whole is not None and _sole(draft, whole):
            operand, nodes = shift.inputs[0], whole
    draft.add(Unit("softmax", nodes, [operand] * _readings(operand, nodes), name))


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
        if unit.kind in ("affine", "sum", "linear") and value.node.name == "sub":  # u − log Σ exp(u)
            value, subtracted = value.node.inputs[1], True
        elif unit.kind == "structural" and len(value.node.carriers()) == 1:
            value = value.node.carriers()[0]
        else:
            return False
    return False
