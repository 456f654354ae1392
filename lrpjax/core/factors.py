"""Weights that are explained as if they were inputs.

With a network's parameters as the explained argument, W·h is a product of two explained values from the second layer
on, and each takes half of the relevance. Nobody means that by the relevance of parameters.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lrpjax.core.dataflow import Flow
from lrpjax.core.graph import Node, Value
from lrpjax.core.plan import Routes
from lrpjax.core.units import Level, Unit


class Origin(NamedTuple):
    """From which explained arrays a value comes, as bits: at all, and through a weighted sum."""

    arrays: int = 0
    summed: int = 0


def find(
    level: Level, routes: Routes, explained: Sequence[Value], argument: Sequence[int]
) -> list[tuple[Unit, int, int]]:
    """The products that sum over an axis of an explained array and of what was computed, by weighted sums, from another
    array of the same argument: (unit, the one array, the other), by number. argument: that of each array."""

    def transfer(known: Flow[Origin], step: Unit | Node) -> Iterator[tuple[Value, Origin]]:
        if isinstance(step, Unit):
            arrays = summed = 0
            for value in step.operands:
                arrays, summed = arrays | known[value].arrays, summed | known[value].summed
            if step.contracts or step.linear is not None:
                summed = arrays
            yield from ((v, Origin(arrays, summed)) for v in step.outputs)

    join = lambda a, b: Origin(a.arrays | b.arrays, a.summed | b.summed)
    place = {v: i for i, v in enumerate(explained)}
    borders = [Origin(1 << place[v]) if v in place else Origin() for v in level.inputs]
    known = Flow(Origin(), join, transfer).solve(level, borders)
    found = []
    for unit in level.walk():
        if unit not in routes.takes or not unit.contracts or len(unit.operands) < 2:
            continue
        for bare in unit.operands:
            own = known[bare]
            if own.summed or own.arrays.bit_count() != 1:
                continue
            number = own.arrays.bit_length() - 1
            through = 0
            for other in unit.operands:
                through |= known[other].summed if other is not bare else 0
            others = [
                i
                for i, a in enumerate(argument)
                if through >> i & 1 and i != number and a == argument[number]
            ]
            if others:
                found.append((unit, number, others[0]))
                break
    return found
