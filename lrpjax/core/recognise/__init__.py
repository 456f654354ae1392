"""From a marked graph to its units: the recognisers, in the order in which they run.

A recogniser is a function of a `Draft`; it looks for one sort of unit among the nodes that are still free and
adds what it recognises. A new one is a file here and a line in RECOGNISERS.
"""

from collections.abc import Mapping

from lrpjax.core.graph import Graph, Node, Value
from lrpjax.core.recognise import (
    activation,
    division,
    layer,
    product,
    quantised,
    recurrence,
    single,
    softmax,
    solve,
    weighted,
)
from lrpjax.core.recognise.draft import Draft
from lrpjax.core.recognise.exponentials import Exponentials
from lrpjax.core.units import Level, Unit
from lrpjax.errors import UnsupportedError

RECOGNISERS = (
    softmax.find,  # before activations, which would take the exponential and the division for functions of their own
    quantised.find,  # before all that would take its parts
    activation.find,  # before layers, so that x·sigmoid(x) is no affine map
    activation.rename_statistics,
    weighted.find,  # before layers of one node
    layer.find,
    solve.find,
    division.find,  # behind layers: a constant denominator belongs to the layer
    product.find,  # behind divisions, which take the products with a reciprocal
    single.find,  # all that is left
    weighted.mark,  # what of it are weighted sums all the same
)
"""What is recognised first is taken first."""


def find(
    graph: Graph, families: Mapping[str, str], kept: frozenset[Value] = frozenset(), folds: bool = True
) -> Level:
    """Groups the nodes of a marked graph. Values in `kept` stay visible: no unit is grown across them. Where `folds`, a
    weighted layer takes in its constants (a BatchNorm) nevertheless, and stands for the values inside of it."""
    level = _find(graph, families, kept, Exponentials(graph, families), folds)
    recurrence.attach(level)
    _place(level, ())
    return level


def _place(level: Level, within: tuple[tuple[Unit, int], ...]) -> None:
    for unit in level.units:
        unit.within = within
        for number, body in enumerate(unit.bodies):
            _place(body, (*within, (unit, number)))


def _find(
    graph: Graph,
    families: Mapping[str, str],
    kept: frozenset[Value],
    exponentials: Exponentials,
    folds: bool,
) -> Level:
    level_of = lambda body: _find(body, families, kept, exponentials, folds)
    draft = Draft(graph, families, kept, level_of, exponentials, folds)
    for recognise in RECOGNISERS:
        recognise(draft)
    steps = _sorted(draft)
    _check(draft)
    return Level(graph, steps)


def _check(draft: Draft) -> None:
    """Raises an error where relevance would have to begin inside a unit, and so would be lost."""
    for node in draft.carrying:
        unit = draft.unit_of.get(node)
        for value in node.inputs if unit is not None and node in unit.nodes else ():
            other = draft.unit_of.get(value.node) if value.carries and value.node is not None else None
            if other is not None and other is not unit and value not in other.outputs:
                raise UnsupportedError(
                    f"{unit.place} reads what is made in the midst of {other.place}: the two were found to be units of "
                    "their own, which they cannot both be. Give one of them a relevance of its own with "
                    "custom_relevance, and please report this program"
                )


def _sorted(draft: Draft) -> list[Unit | Node]:
    """Stable topological order of units and of the nodes that belong to none."""
    done: set[Node] = set()
    order: list[Unit | Node] = []
    for node in draft.graph.nodes:
        stack = [node]
        while stack:
            top = stack[-1]
            if top in done:
                stack.pop()
                continue
            unit = draft.unit_of.get(top)
            nodes = unit.nodes if unit else [top]
            waiting = [
                v.node
                for n in nodes
                for v in n.inputs
                if v.node and v.node not in done and v.node not in nodes
            ]
            if waiting:
                stack.extend(waiting)
                continue
            done.update(nodes)
            order.append(unit or top)
            stack.pop()
    return order
