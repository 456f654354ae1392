"""Which factor of a product is the signal, in recurrences that select their input (state-space models, linear
attention with decay).

MambaLRP (Jafari et al. 2024) holds the discretised A and B and the readout C fixed, so that relevance runs
along the state and the input of the recurrence. Nothing in a program says which factor is A, B or C. They are
recognised by what makes them what they are:

* a gate is made by exp, softplus or a sigmoid, or of gates only (Ā = exp(Δ A), and products of them in an
  associative scan; Δ);
* a state is carried by a loop, or is a sum with a term that Ā decays or Δ scales;
* an input is the factor that the others are computed from (u, of which B = W u).

Relevance goes to the state if there is one, else to the input, else in equal parts to what is no gate: where B
and the input are slices of one layer (Mamba 2), neither is computed from the other, and both take half.
`lrpjax.plan` says how many factors of a product take part.
"""

import functools
from collections.abc import Callable

from lrpjax.core.graph import Node, Value
from lrpjax.core.recognise import names
from lrpjax.core.units import Level, Unit

DECAYS = ("exp", "exp2", "softplus")
GATES = (*DECAYS, *names.GATES)
_MOVES = (
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
)


def attach(level: Level) -> None:
    """Gives every product of a level, and of its sub-programs, the means to tell its signals, should a rule ask."""
    signals = functools.cache(lambda: Signals(level))
    for unit in level.walk():
        if unit.kind == "product":
            unit.find_signals = functools.partial(lambda unit: signals().of(unit), unit)


class Signals:
    """Tells, for the product units of a level and of its sub-programs, which operands are the signal."""

    def __init__(self, level: Level):
        self.owner: dict[Node, Unit] = {node: unit for unit in level.walk() for node in unit.nodes}
        self.outside: dict[
            Value, Value | None
        ] = {}  # an input of a sub-program -> the operand, None for a carry
        self.results: dict[Value, list[Value]] = {}  # an output of a sub-program's node -> the values inside
        for unit in level.walk():
            for body in unit.bodies:
                self.link(unit, body)

    def link(self, unit: Unit, body: Level) -> None:
        first, count = unit.carry
        for i, (inner, operand) in enumerate(zip(body.inputs, unit.entering, strict=True)):
            self.outside[inner] = None if first <= i < first + count else operand
        for outer, inner in zip(unit.outputs, body.outputs, strict=True):
            self.results.setdefault(outer, []).append(inner)

    def of(self, unit: Unit) -> list[Value]:
        signals = [v for v in unit.operands if not self.gate(v)] or unit.operands
        states = [v for v in signals if self.state(v)]
        return states or self.inputs(signals) or signals

    def gate(self, value: Value, decay: bool = False) -> bool:
        """Whether a value is made of gates only; with `decay`, of those of a discretised recurrence."""
        names = DECAYS if decay else GATES

        def decide(unit: Unit) -> bool | None:
            if unit.kind == "activation":
                return unit.name in names
            return None if unit.kind in ("structural", "affine", "sum", "product") else False

        return self.follow(value, decide, all)

    def state(self, value: Value) -> bool:
        """Whether a value is carried by a loop, or a sum with a term that such a gate scales."""

        def decide(unit: Unit) -> bool | None:
            if unit.kind == "product":
                return any(self.gate(v, decay=True) for v in unit.operands)
            return None if unit.kind in ("structural", "affine", "sum", "linear", "scan", "remat") else False

        return self.follow(value, decide, any, carried=True)

    def follow(
        self, value: Value, decide: Callable[[Unit], bool | None], join: Callable, carried: bool = False
    ) -> bool:
        """Walks back from a value until `decide` knows; `join` (all or any) is what is made of several operands."""
        seen: dict[Value, bool] = {}

        def walk(v: Value) -> bool:
            if v in seen:
                return seen[v]
            seen[v] = join is all  # on a way that comes back to itself: what does not decide
            if v in self.outside:
                outer = self.outside[v]
                result = carried if outer is None else walk(outer)
            elif v in self.results:
                result = join([walk(inner) for inner in self.results[v]])
            else:
                unit = self.owner.get(v.node) if v.node is not None else None
                if unit is None:
                    result = False
                else:
                    known = decide(unit)
                    result = join([walk(o) for o in unit.operands]) if known is None else known
            seen[v] = result
            return result

        return walk(value)

    def inputs(self, factors: list[Value]) -> list[Value]:
        """The one factor that all others are computed from, if there is one."""
        origins = [self.origin(v) for v in factors]
        roots = [
            v
            for i, v in enumerate(factors)
            if all(
                i == k or (o is not origins[i] and origins[i] in self.before(o))
                for k, o in enumerate(origins)
            )
        ]
        return roots if len(roots) == 1 and len(factors) > 1 else []

    def origin(self, value: Value) -> Value:
        """A value before it was reshaped or repeated."""
        while True:
            if self.outside.get(value) is not None:
                value = self.outside[value]  # type: ignore[assignment]
            elif value.node is not None and value.node.name in _MOVES:
                value = value.node.inputs[0]
            else:
                return value

    def before(self, value: Value) -> set[Value]:
        """All values that a value is computed from."""
        above_it: set[Value] = set()
        stack = [value]
        while stack:
            v = stack.pop()
            above = list(v.node.inputs) if v.node is not None else []
            above += self.results.get(v, [])
            if self.outside.get(v) is not None:
                above.append(self.outside[v])  # type: ignore[arg-type]
            stack += [a for a in above if a not in above_it]
            above_it.update(above)
        return above_it
