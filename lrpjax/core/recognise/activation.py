"""Activations: elementwise, non-linear functions of one value, however they are written."""

from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise import formulas, names
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.units import Unit

SUMS = ("add", "sub", "add_any")
MOST = 4
"""How many numbers in front of a function, and behind it, are tried as a part of it."""


def find(draft: Draft) -> None:
    """All nodes between a node and its immediate dominator, if all are elementwise and one is not linear.

    The dominator keeps an affine prefix (a bias, a BatchNorm) out. Where numbers alone stand between two such
    functions, both are one (`1 / (1 + exp(-x))`). Numbers in front of a function and behind it belong to it where
    all of it is a known function (`2σ(2x) − 1`, `relu6(x + 3) / 6`).
    """
    dominators = draft.dependence.dominators
    for end in reversed(draft.carrying):
        if not draft.free(end) or not draft.dependence.elementwise(end):
            continue
        source = dominators[end]
        region = None if source is None else _region(draft, source, end)
        if region is None or not any(draft.dependence.nonlinear(n) for n in region):
            continue
        unit = named(draft, *_extend(draft, source, region, dominators))
        if (
            end.name not in SUMS
            or formulas.name_of(unit.nodes, unit.operands[0])
            or not any(_is_known(draft, source, v) for v in end.inputs)
        ):
            draft.add(unit)


def _is_known(draft: Draft, source: Value, value: Value) -> bool:
    """Whether a value is a function of `source` that networks use as a whole (`relu(h)` in `h - relu(h) / 2`)."""
    while value is not source and value.node is not None and formulas.line(value.node) is not None:
        (value,) = dict.fromkeys(value.node.carriers())
    if value is source or value.node is None or not value.carries:
        return False
    region = _region(draft, source, value.node)
    return region is not None and _whole(region, source)


def _whole(region: list[Node], source: Value) -> bool:
    return formulas.name_of(region, source) not in (None, *formulas.ELEMENTS)


def _extend(draft: Draft, source: Value, region: list[Node], dominators: dict) -> tuple[Value, list[Node]]:
    """Grows an activation upwards over numbers to an earlier non-linear node of the same value. Where no number stands
    between, a function that networks use as a whole stays by itself (`square(relu(h))`), unless both together are one
    that is known."""
    value, prefix = source, []
    while value.node is not None and draft.free(value.node) and not draft.visible(value):
        node = value.node
        if any(u not in region and u not in prefix for u in value.users):
            break
        if not draft.dependence.elementwise(node):
            break
        start = dominators.get(node)
        inner = None if start is None else _region(draft, start, node)
        if inner is None or not all(
            v.depends or formulas.number(v) is not None for n in inner for v in n.inputs
        ):
            break
        stacked = not prefix and (_is_known(draft, start, value) or _whole(region, value))  # type: ignore[arg-type]
        if stacked and formulas.name_of([*inner, *region], start) is None:  # type: ignore[arg-type]
            break
        prefix = inner + prefix
        if any(draft.dependence.nonlinear(n) for n in inner):
            source, region, prefix = start, prefix + region, []  # type: ignore[assignment]
        value = start
    return source, region


def named(draft: Draft, source: Value, region: list[Node]) -> Unit:
    """The unit of a region, by its function's name, with the numbers around it that make a known function of it, or
    behind it one that is zero at zero: such a number is no constant that would take relevance (`softplus(x) − log 2`,
    SchNet; Schütt et al. 2017)."""
    before, behind = _lines_before(draft, source, region), _lines_behind(draft, region)
    for first in range(len(before), -1, -1):
        for last in range(len(behind), -1, -1):
            if not first and not last:
                break
            nodes = [*reversed(before[:first]), *region, *behind[:last]]
            start = nodes[0].carriers()[0] if first else source
            name = formulas.name_of(nodes, start)
            if name in formulas.KNOWN:
                return Unit("activation", nodes, [start], name)
    if formulas.at_zero(region, source) not in (None, 0.0):
        for last in range(1, len(behind) + 1):
            if formulas.at_zero([*region, *behind[:last]], source) == 0:
                region = [*region, *behind[:last]]
                break
    return Unit("activation", region, [source], names.name_of(region, source))


def _lines_before(draft: Draft, source: Value, region: list[Node]) -> list[Node]:
    """The nodes that make a line of numbers of a value, and only for this region: from it upwards."""
    found: list[Node] = []
    readers = set(region)
    while len(found) < MOST and source.node is not None and draft.free(source.node):
        node = source.node
        if draft.visible(source) or not readers.issuperset(source.users) or formulas.line(node) is None:
            break
        found.append(node)
        readers, source = {node}, node.carriers()[0]
    return found


def _lines_behind(draft: Draft, region: list[Node]) -> list[Node]:
    """The nodes that make a line of numbers of what a region makes, and are alone in reading it: downwards."""
    found: list[Node] = []
    value = region[-1].out
    while len(found) < MOST and len(value.users) == 1 and not draft.visible(value):
        node = value.users[0]
        if not draft.free(node) or formulas.line(node) is None:
            break
        found.append(node)
        value = node.out
    return found


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
    inside -= _shared_predicates(inside, source, end)
    if any(u not in inside for n in inside if n is not end for u in n.out.users):
        return None
    return sorted(inside, key=lambda n: n.index)


def _shared_predicates(inside: set[Node], source: Value, end: Node) -> set[Node]:
    """Nodes that carry no relevance and decide for others as well (`x > 0`): they run by themselves, before the unit.
    All that they depend on is made before it, of the value that the unit begins with."""
    shared: set[Node] = set()
    for node in sorted((n for n in inside if not n.out.carries and n is not end), key=lambda n: -n.index):
        if any(u not in inside or u in shared for u in node.out.users):
            shared.add(node)
    early = lambda n: all(not v.depends or v is source or v.node in shared for v in n.inputs)
    return shared if all(map(early, shared)) else set()


def rename_statistics(draft: Draft) -> None:
    """max(0, variance) under a root is no ReLU of the network (flax's LayerNorm): rules for rectifiers pass it over."""
    through = ("structural", "affine")
    for unit in set(draft.unit_of.values()):
        if unit.name not in ("relu", "clip"):
            continue
        values = draft.forward(unit.out, through)
        uses = {u for v in values for u in v.users if not (draft.light(u, through) and u.carriers() == [v])}
        roots = [u for u in uses if u.name == "sqrt" or names.divides(u)]
        if roots and len(roots) == len(uses) and not any(v.returned for v in values):
            unit.name = "bound"
