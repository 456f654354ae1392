"""One function that carries facts along a program until nothing changes any more, loops and branches included.

A program is anything with `inputs`, `outputs` and `steps` (a `Graph` of nodes, a `Level` of units); a step has
`outputs` and, where it holds sub-programs, `bodies`, `entering` (the operands that the inputs of every body
stand for) and `carry` (which of them a loop hands on from turn to turn). A fact is an element of a lattice:
joining only ever adds, so going round a loop ends.
"""

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from lrpjax.core.graph import Value

Fact = TypeVar("Fact")


class Program(Protocol):
    inputs: Sequence[Value]
    outputs: Sequence[Value]

    @property
    def steps(self) -> Sequence[Any]: ...


@dataclasses.dataclass
class Flow(Generic[Fact]):
    """An analysis. bottom: the fact of a value of which nothing has been heard. join: the least fact that
    covers two. transfer: what a step without bodies says, as (value, fact) pairs, given this object. backward:
    from outputs to inputs instead of the other way round. within: the values that have facts at all, where not
    all do. steer: what a step with bodies says besides what its bodies say: that a branch was chosen by an index,
    that a condition ended a loop. known: facts so far."""

    bottom: Fact
    join: Callable[[Fact, Fact], Fact]
    transfer: Callable[["Flow[Fact]", Any], Iterable[tuple[Value, Fact]]]
    backward: bool = False
    within: Container[Value] | None = None
    steer: Callable[["Flow[Fact]", Any], Iterable[tuple[Value, Fact]]] = lambda flow, step: ()
    known: dict[Value, Fact] = dataclasses.field(default_factory=dict)

    def __getitem__(self, value: Value) -> Fact:
        return self.known.get(value, self.bottom)

    def add(self, value: Value, fact: Fact) -> None:
        if self.within is None or value in self.within:
            self.known[value] = self.join(self[value], fact)

    def solve(self, program: Program, border: Iterable[Fact]) -> "Flow[Fact]":
        """Carries the facts of a program's border (its inputs; its outputs, if backward) through all of it."""
        for value, fact in zip(self._entered(program), border, strict=True):
            self.add(value, fact)
        for step in reversed(program.steps) if self.backward else program.steps:
            if getattr(step, "bodies", ()):
                self._enter(step)
            else:
                for value, fact in self.transfer(self, step):
                    self.add(value, fact)
        return self

    def _entered(self, program: Program) -> Sequence[Value]:
        return program.outputs if self.backward else program.inputs

    def _enter(self, step: Any) -> None:
        before, after = (step.outputs, step.entering) if self.backward else (step.entering, step.outputs)
        border = [self[v] for v in before]
        while True:
            for body in step.bodies:
                self.solve(body, border)
            grown = list(border)
            for left, index in self._handed_on(step):
                grown[index] = self.join(grown[index], self[left])
            if grown == border:
                break
            border = grown
        for body in step.bodies:
            for outer, inner in zip(after, body.inputs if self.backward else body.outputs, strict=True):
                self.add(outer, self[inner])
        for value, fact in self.steer(self, step):
            self.add(value, fact)

    def _handed_on(self, step: Any) -> Iterator[tuple[Value, int]]:
        """What a loop hands on to its next turn (backward: is handed by it): the value inside, and its place in
        the border."""
        first, count = step.carry
        for i in range(count):
            body = step.bodies[0]
            yield (body.inputs[first + i], i) if self.backward else (body.outputs[i], first + i)
