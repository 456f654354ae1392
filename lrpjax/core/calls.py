"""What becomes of the functions that a program calls: inlined, kept as one node, or exchanged for another function.

Most are inlined, because rules are for what stands inside. A function with a derivative of its own (`custom_jvp`,
`custom_vjp`) stays one node, explained by that derivative, where a pair names it, where everything inside would be
explained by the plain derivative anyway, and where it cannot be explained from inside, which then is an error that
says so. A call whose name stands in the composite's `calls` is exchanged, and so are kernels of JAX's own
(`references`), unless their own derivative is what counts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from lrpjax.core import compat, references
from lrpjax.core.graph import Call, Graph, Node, Value, graphs
from lrpjax.core.kinds import KINDS
from lrpjax.core.kinds.base import Derivative, Refused
from lrpjax.core.plan import Assignment, Routes
from lrpjax.core.units import Level, Unit
from lrpjax.errors import LrpjaxError, RuleError
from lrpjax.rules import Gradient, Rule


class StandIn(NamedTuple):
    """What a selector sees of a call that would be inlined."""

    path: str
    kind: str
    name: str


class Calls:
    """The treatment of the calls of one program.

    composite: what chooses the rules. everything: all functions with a derivative of their own stay. notes: the
    exchanges, as a plan shows them. apart: see `Treatment`. unused: the names in the composite's `calls` that no call
    has.
    """

    def __init__(self, composite: Any, everything: bool):
        self.composite, self.everything = composite, everything
        self.kept: dict[tuple[int, ...], str | None] = {}
        self.used: set[str] = set()
        self.notes: dict[str, None] = {}
        self.apart: dict[tuple[int, ...], Any] = {}
        self._traced: dict[tuple[int, ...], Any] = {}

    @property
    def exchanges_nodes(self) -> bool:
        return bool(self.composite.calls)

    @property
    def unused(self) -> list[str]:
        return [name for name in self.composite.calls if name not in self.used]

    def borders(self, graph: Graph) -> Iterator[Value]:
        """Values across which no unit is grown, so that each function with a derivative of its own has its own units:
        where all others are explained by their derivatives, a rule may be for one of them."""
        if self.composite.method != "relevance" and isinstance(self.composite.default, Gradient):
            for call in (call for level in graphs(graph) for call in level.calls):
                if call.derived and not compat.is_library_call(call.eqn):
                    yield from (*call.inputs, *call.outputs)

    def keep(self, call: Call) -> bool:
        if self.everything and call.derived:
            return True
        call.obstacle = self.kept.get(call.trail)
        return call.trail in self.kept

    def exchange(self, call: Call) -> Any:
        if call.trail in self._traced:
            return self._traced[call.trail]
        own = self.composite.calls.get(call.name)
        if own is not None:
            self.used.add(call.name)
            reference = own if not references.wants_static(own) else references.with_static(own, call)
            traced = _traced(reference, call)
            name = getattr(own, "__qualname__", None) or repr(own)
            self._traced[call.trail] = traced
            self.notes[f"exchanged: {call.place}, for {name}"] = None
            return traced
        shipped = None if self.composite.method != "relevance" else references.find(call)
        if shipped is None or any(_names(pair, [call])[0] for pair in self._deriving()):
            return None
        try:
            traced = _traced(shipped, call)
        except RuleError:  # it was called in another way than the plain writing is for
            return None
        self._traced[call.trail] = traced
        self.notes[f"exchanged: {call.place}, for its plain writing in lrpjax"] = None
        return traced

    def _deriving(self) -> list[tuple[Any, Rule]]:
        """The pairs of the composite whose rule can explain a function as a whole."""
        return [(s, r) for s, r in self.composite.pairs if "*" in r.kinds or "call" in r.kinds]

    def extend(
        self,
        level: Level,
        assignment: Assignment,
        routes: Routes,
        families: Mapping[str, str],
        named: Iterable[Value],
    ) -> bool:
        """Decides which calls stay, once all is inlined and has its rules. Whether there are more than before."""
        before = len(self.kept)
        candidates = list(_candidates(level, assignment, families, frozenset(named)))
        ours = [c for c in candidates if c.call.derived or c.refused]
        calls = [c.call for c in ours]
        wanted = [False] * len(calls)
        for pair in self._deriving() if calls else ():
            hits = zip(wanted, _names(pair, calls), strict=True)
            wanted = [a or b for a, b in hits]
        for candidate, want in zip(ours, wanted, strict=True):
            call = candidate.call
            if self._inside_kept(call):
                continue
            explained = not candidate.refused and not candidate.lost
            if want and not (explained and compat.is_library_call(call.eqn)):
                self.kept[call.trail] = "no rule is for the function as a whole"
            elif call.derived and self._by_derivative(candidate, assignment):
                self.kept[call.trail] = None
        for candidate in reversed(ours):  # the innermost first
            call = candidate.call
            if call.derived and not self._inside_kept(call) and not self._holds_kept(call):
                blocked = [u for u in candidate.refused if u in routes.refused]
                if blocked or candidate.lost:
                    self.kept[call.trail] = _obstacle(blocked, candidate.lost, assignment)
        return len(self.kept) > before

    def _by_derivative(self, candidate: "Candidate", assignment: Assignment) -> bool:
        """Whether all inside would be explained by the plain derivative. JAX's own functions have that of their bodies,
        and may be a part of a unit (the ReLU in a hard sigmoid)."""
        if compat.is_library_call(candidate.call.eqn):
            return False
        shown = [u for u in candidate.units if KINDS[u.kind].shown]
        if shown:
            return all(type(assignment.propagations[u]) is Derivative for u in shown)
        call = candidate.call
        (rule,), _ = self.composite.assign([StandIn(call.path, "call", call.name)])
        return isinstance(rule, Gradient)

    def _inside_kept(self, call: Call) -> bool:
        return any(call.trail[:n] in self.kept for n in range(1, len(call.trail) + 1))

    def _holds_kept(self, call: Call) -> bool:
        return any(trail[: len(call.trail)] == call.trail for trail in self.kept)


class Candidate(NamedTuple):
    """A call that was inlined, and depends on what is explained. units: what it was inlined to, as units. refused:
    those among them that no rule explains. lost: the outputs that carry nothing, though they depend on it."""

    call: Call
    units: list[Unit]
    refused: list[Unit]
    lost: list[Value]


def _candidates(
    level: Level,
    assignment: Assignment,
    families: Mapping[str, str],
    named: frozenset[Value],
) -> Iterator[Candidate]:
    """The calls of a level and of its sub-programs, outer ones first."""
    owner = {node: unit for unit in level.walk() for node in unit.nodes}
    for call in (call for graph in graphs(level.graph) for call in reversed(graph.calls)):
        if not any(v.carries for v in call.inputs):
            continue
        nodes = call.nodes
        inside = {v for node in nodes for v in node.outputs}.difference(call.outputs)
        if not inside.isdisjoint(named):
            continue
        own = list(dict.fromkeys(owner[n] for n in nodes if n in owner))
        units = [u for one in own for u in (one, *(i for body in one.bodies for i in body.walk()))]
        refused = [u for u in units if isinstance(assignment.propagations[u], Refused)]
        surrogate = call.derived and not any(v.carries for v in call.outputs)
        lost = [v for v in call.outputs if surrogate and _is_lost(v, set(nodes), families)]
        yield Candidate(call, units, refused, lost)


def _is_lost(value: Value, inside: set[Node], families: Mapping[str, str]) -> bool:
    """Whether an output of a call carries nothing, though it is a floating-point number that something in the call
    made of what carries, without stopping it."""
    if value.carries or value.node not in inside or not compat.is_float(value.aval):
        return False
    stack, seen = [value], {value}
    while stack:
        node = stack.pop().node
        if node is None or node not in inside or families.get(node.name) == "stop":
            continue
        if any(v.carries for v in node.inputs):
            return True
        stack += [v for v in node.inputs if v not in seen]
        seen.update(node.inputs)
    return False


def _obstacle(blocked: Sequence[Unit], lost: Sequence[Value], assignment: Assignment) -> str:
    """What in a call cannot be explained."""
    reasons = [assignment.propagations[u].line for u in blocked]  # type: ignore[attr-defined]
    if lost:
        reasons.append(
            "what it computes comes back from integers, comparisons or indices, which carry no relevance"
        )
    return "; ".join(dict.fromkeys(reasons))


def _names(pair: tuple[Any, Rule], calls: Sequence[Call]) -> list[bool]:
    """Whether a pair names calls, by their kind or by the name of the function, and not only all that stands at
    their place."""
    selector, _ = pair
    named = [StandIn(c.path, "call" if c.derived else "", c.name) for c in calls]
    nameless = [StandIn(c.path, "", "") for c in calls]
    hits = zip(selector.choose(named), selector.choose(nameless), strict=True)
    return [a and not b for a, b in hits]


def _traced(reference: Callable, call: Call) -> Any:
    """The jaxpr of a function that stands for a call, of the same shapes and types.

    Raises:
        RuleError: it cannot be traced with the call's arguments, or gives other results.
    """
    shapes = [jax.ShapeDtypeStruct(v.shape, v.aval.dtype) for v in call.inputs]
    given = ", ".join(map(_type, shapes))
    try:
        traced = jax.make_jaxpr(reference)(*shapes)
    except LrpjaxError:
        raise
    except Exception as error:
        raise RuleError(
            f"calls: the function given for {call.place} cannot be traced with the call's arrays ({given}): "
            f"{type(error).__name__}: {error}"
        ) from error
    wanted = ", ".join(_type(v.aval) for v in call.eqn.outvars)
    made = ", ".join(map(_type, traced.out_avals))
    if made != wanted:
        raise RuleError(
            f"calls: the function given for {call.place} returns ({made}), but the call returns ({wanted}); "
            f"its arguments are ({given})"
        )
    return traced


def _type(aval: Any) -> str:
    return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
