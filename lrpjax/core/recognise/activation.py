"""Activations: elementwise, non-linear functions of one value, however they are written."""

from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise import names
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Unit


def find(draft: Draft) -> None:
    """All nodes between a node and its immediate dominator, if all are elementwise and one is not linear.

    The dominator keeps an affine prefix (a bias, a BatchNorm) out. Where scalar constants alone stand between
    two such functions, both are one (`1 / (1 + exp(-x))`).
    """
    dominators = draft.dependence.dominators()
    for end in reversed(draft.carrying):
        if not draft.free(end) or not draft.dependence.elementwise(end):
            continue
        source = dominators[end]
        region = None if source is None else _region(draft, source, end)
        if region is None or not any(draft.dependence.nonlinear(n) for n in region):
            continue
        source, region = _absorb(draft, *_extend(draft, source, region, dominators))
        draft.add(Unit("activation", region, [source], names.name_of(region)))


def _extend(draft: Draft, source: Value, region: list[Node], dominators: dict) -> tuple[Value, list[Node]]:
    """Grows an activation upwards over scalar constants to an earlier non-linear node of the same value."""
    value, prefix = source, []
    while value.node is not None and draft.free(value.node) and not draft.visible(value):
        node = value.node
        if any(u not in region and u not in prefix for u in value.users):
            break
        if not draft.dependence.elementwise(node):
            break
        start = dominators.get(node)
        inner = None if start is None else _region(draft, start, node)
        if inner is None or not all(v.carries or names.is_scalar(v) for n in inner for v in n.inputs):
            break
        prefix = inner + prefix
        if any(draft.dependence.nonlinear(n) for n in inner):
            source, region, prefix = start, prefix + region, []  # type: ignore[assignment]
        value = start
    return source, region


def _absorb(draft: Draft, source: Value, region: list[Node]) -> tuple[Value, list[Node]]:
    """Takes in the scalar constants before and behind an activation that belong to the same library call
    (`selu`, `hard_sigmoid`)."""
    call = names.call_of(region)
    if call is None:
        return source, region

    def belongs(node: Node) -> bool:
        return (
            node.within[: len(call)] == call
            and draft.free(node)
            and draft.dependence.elementwise(node)
            and len(node.carriers()) == 1
            and all(v.carries or names.is_scalar(v) for v in node.inputs)
        )

    while len(region[-1].out.users) == 1 and not draft.visible(region[-1].out):
        after = region[-1].out.users[0]
        if not belongs(after):
            break
        region = [*region, after]
    while source.node is not None and belongs(source.node) and not draft.visible(source):
        if any(u not in region for u in source.users):
            break
        region = [source.node, *region]
        source = source.node.carriers()[0]
    return source, region


def _region(draft: Draft, source: Value, end: Node) -> list[Node] | None:
    """The elementwise nodes between `source` and `end`, or None if one of them is not elementwise or is needed
    elsewhere."""
    if source.shape != end.out.shape:
        return None
    inside = {end}
    stack = [end]
    while stack:
        for v in stack.pop().inputs:
            if v is source or not v.depends or v.node in inside:
                continue
            if v.node is None or not draft.free(v.node) or draft.visible(v):
                return None
            if not draft.dependence.elementwise(v.node):
                return None
            inside.add(v.node)
            stack.append(v.node)
    if any(u not in inside for n in inside if n is not end for u in n.out.users):
        return None
    return sorted(inside, key=lambda n: n.index)


def rename_statistics(draft: Draft) -> None:
    """max(0, variance) under a root is no ReLU of the network (flax's LayerNorm): rules for "relu" leave it alone."""
    through = ("structural", "affine")
    for unit in set(draft.unit_of.values()):
        if unit.name != "relu":
            continue
        values = draft.forward(unit.out, through)
        uses = {u for v in values for u in v.users if not (draft.light(u, through) and u.carriers() == [v])}
        roots = [u for u in uses if u.name == "sqrt" or names.divides(u)]
        if roots and len(roots) == len(uses) and not any(v.returned for v in values):
            unit.name = "clip"
