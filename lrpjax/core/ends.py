"""Where relevance ends besides the arguments: at constants that enter what carries it.

Class tokens are concatenated, learned states start loops, a branch returns a constant: relevance comes to them as to
anything else that a result is made of, and goes no further. What a unit's own constants take (biases, masks that are
added) stands in the account of the unit; these have none.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lrpjax.core import compat
from lrpjax.core.dataflow import Flow
from lrpjax.core.graph import Node, Value
from lrpjax.core.kinds import KINDS
from lrpjax.core.plan import Assignment, Routes, flow
from lrpjax.core.units import Level, Unit
from lrpjax.rules import RATIO


class End(NamedTuple):
    """A value at which relevance ends, for what a unit makes of it; without one, it is an output. node: where it
    enters."""

    unit: Unit | None
    value: Value
    node: Node | None


def lowest(level: Level, assignment: Assignment, named: Sequence[Value]) -> frozenset[Value]:
    """Those of the named values from which relevance comes to no other of them."""
    borders = [False] * len(level.inputs)
    above = [flow(level, borders, assignment.propagations, frozenset([v])) for v in named]
    return frozenset(
        v for v in named if not any(v in on and v is not w for w, on in zip(named, above, strict=True))
    )


def way(level: Level, seeded: Sequence[bool], routes: Routes, stops: frozenset[Value]) -> set[Value]:
    """The values that relevance comes to from the output if it goes no further than those where it stops."""

    def transfer(known: Flow[bool], step: Unit | Node) -> Iterator[tuple[Value, bool]]:
        if isinstance(step, Unit) and any(known[v] for v in step.outputs if v not in stops):
            yield from ((v, True) for v in routes.gives.get(step, ()))

    known = Flow(False, lambda a, b: a or b, transfer, backward=True, within=routes.reached)
    return {v for v, comes in known.solve(level, seeded).known.items() if comes}


def find(level: Level, routes: Routes, passed: set[Value]) -> list[End]:
    """All values at which relevance ends, on the way through the values that it passes."""
    ends = []
    for unit in level.walk():
        if unit in routes.takes and not KINDS[unit.kind].shown and any(v in passed for v in unit.outputs):
            held = _at_border(unit, routes) if unit.bodies else _read(unit, routes)
            ends += [End(unit, v, unit.main) for v in dict.fromkeys(held) if compat.is_float(v.aval)]
    return ends


def _read(unit: Unit, routes: Routes) -> Iterator[Value]:
    """What a unit that only moves elements reads besides the operands that it hands relevance."""
    inside = {v for node in unit.nodes for v in node.outputs}
    for value in (v for node in unit.nodes for v in node.inputs):
        zero = value.constant is not None and routes.takes[unit] == RATIO and not np.any(value.constant)
        if value not in inside and value not in routes.gives[unit] and not zero:
            yield value


def _at_border(unit: Unit, routes: Routes) -> Iterator[Value]:
    """What a loop starts with, and what it or a branch returns, where relevance comes to it inside, but not there."""
    first, count = unit.carry
    for body in unit.bodies:
        for outer, inner in zip(unit.entering, body.inputs, strict=True):
            if inner in routes.reached and outer not in routes.gives[unit]:
                yield outer
        for place, (outer, inner) in enumerate(zip(unit.outputs, body.outputs, strict=True)):
            before = body.inputs[first + place] if place < count else outer
            if (outer in routes.reached or before in routes.reached) and inner not in routes.reached:
                yield inner
