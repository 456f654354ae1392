"""The plan: how relevance goes through each unit, in which form each value carries it, and the table that says so.

`assign` gives every unit its rule and asks its kind for the propagation. `flow` walks forward and finds the
values from which relevance can reach what is explained; `route` walks backward and decides, for every value,
whether relevance reaches it and whether its cotangent is relevance (PLAIN) or relevance divided by the value
(RATIO). A rule that gives relevance to zeros needs PLAIN; structural nodes and activations hand that form on
upstream, until a layer's rule takes it.
"""

import dataclasses
import difflib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lrpjax import _hints
from lrpjax._html import Number, Shown, table
from lrpjax.core.dataflow import Flow
from lrpjax.core.graph import Node, Value
from lrpjax.core.kinds import KINDS
from lrpjax.core.kinds.base import Propagation, Refused
from lrpjax.core.recognise.formulas import KNOWN
from lrpjax.core.units import Level, Unit
from lrpjax.errors import RuleError, UnmatchedWarning, UnsupportedError
from lrpjax.rules import LAYERS, PLAIN, RATIO, Rule, is_epsilon
from lrpjax.select import kinds_of

NATIVE = (
    "a rule of weighted layers is asked for, but these weighted sums are explained natively, as by "
    "Epsilon(0): write them as x @ w, as a convolution or as a sum of products, or choose the epsilon rule for all "
    "layers."
)


HEAD = ("#", "path", "kind", "rule", "shape", "source")


@dataclasses.dataclass
class Planned:
    """One unit of a plan: `path` (module path), `kind`, `name` (of the function, where known), `rule` (as
    text), `shape` (of the output), `dtype`, `source` (file:line of the user's code)."""

    path: str
    kind: str
    name: str
    rule: str
    shape: tuple[int, ...]
    dtype: str
    node: Node

    @property
    def source(self) -> str:
        return self.node.source


@dataclasses.dataclass
class Plan(Shown):
    """What would be done with a function: `units` in execution order; `unmatched`, the pairs of the composite
    that found nothing; `notes`, the places where a way of relevance is cut (see `lrpjax.CutWarning`), the
    weighted sums that are explained natively (see `lrpjax.NativeWarning`), and, where the rules let nothing
    come to what is explained, where they end it.

    `str(plan)` is a table; a notebook shows one that can be sorted and searched.
    """

    units: list[Planned]
    unmatched: list[str]
    notes: list[str]

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    def __str__(self) -> str:
        rows = [HEAD, *(tuple(map(str, row)) for row in self._rows())]
        widths = [max(len(r[c]) for r in rows) for c in range(len(HEAD))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([*lines, *self._lines()])

    def _repr_html_(self) -> str:
        return table("units and their rules", HEAD, self._rows(), self._lines())

    def _rows(self) -> list[tuple[Number | str, ...]]:
        return [
            (
                Number(str(i), i),
                u.path or "-",
                f"{u.kind}:{u.name}" if u.name else u.kind,
                u.rule,
                Number("×".join(map(str, u.shape)) or "()", math.prod(u.shape)),
                _short(u.source),
            )
            for i, u in enumerate(self.units)
        ]

    def _lines(self) -> list[str]:
        return [*(f"matched nothing: {text}" for text in self.unmatched), *self.notes]


def _short(source: str) -> str:
    place, _, function = source.partition(" ")
    parts = place.split("/")[-2:]
    # The folder of a notebook's cells has the number of the process in its name, which says nothing to a reader.
    parts = parts[1:] if parts[0].startswith("ipykernel_") else parts
    return "/".join(parts) + (f" {function}" if function else "")


@dataclasses.dataclass
class Assignment:
    """How relevance goes through every unit, what became of the pairs, and what of the composite matched nothing.
    weighs: a rule that looks at the weights of layers is asked for."""

    propagations: dict[Unit, Propagation]
    pairs: list[Any]
    weighs: bool = False
    unmatched: list[str] = dataclasses.field(default_factory=list)


def assign(level: Level, composite: Any) -> Assignment:
    """Gives every unit its rule, and asks its kind what follows."""
    units = list(level.walk())
    shown = [u for u in units if KINDS[u.kind].shown]
    rules, pairs = composite.assign(shown)
    chosen = dict(zip(shown, rules, strict=True))
    asked = [*(pair.rule for pair in pairs), *(chosen.get(u) for u in units if u.linear is not None)]
    explained = {u: _explain(u, chosen.get(u, composite.default_of(u))) for u in units}
    return Assignment(explained, pairs, any(map(_weighs, asked)))


def check(assignment: Assignment, composite: Any, unused: Sequence[str]) -> None:
    """Warns, once for each composite, of pairs that match nothing, and of `unused` names in `calls`.

    Raises:
        RuleError: a pair names units by kind or by path, and its rule is for none of them.
    """
    idle = [pair for pair in assignment.pairs if not pair.fitting]
    for pair in idle:
        if not pair.chosen and not pair.preset:
            _refuse_name(pair)
        if pair.chosen and pair.names_units:
            kinds = ", ".join(pair.rule.kinds)
            places = "\n".join(f"  {u.place}" for u in pair.chosen)
            raise RuleError(f"{pair.rule} is a rule for {kinds}, but {pair.selector} names\n{places}")
    texts = [f"({pair.selector}, {pair.rule})" for pair in idle if not pair.preset]
    own = [f"({pair.selector}, {pair.rule})" for pair in idle if pair.preset]
    what = "pairs of the composite that match no unit"
    if unused:
        what = (
            f"{what}, or names in its calls that no call has" if texts else "names in calls that no call has"
        )
    texts += [f"calls[{name!r}]" for name in unused]
    assignment.unmatched = [*own, *texts]
    if texts and not composite.preset and not getattr(composite, "_warned", False):
        object.__setattr__(composite, "_warned", True)
        warnings.warn(
            f"{what}: {'; '.join(texts)}. str(lrpjax.plan(f, composite, *args)) lists the units.",
            UnmatchedWarning,
            stacklevel=5,
        )


def _refuse_name(pair: Any) -> None:
    """
    Raises:
        RuleError: a pair that matches nothing names what is no kind, but nearly one; or a kind where a path is meant.
    """
    kinds, known = ", ".join(KINDS), {*KINDS, *KNOWN}
    for name in kinds_of(pair.selector):
        near = difflib.get_close_matches(name.lower(), known, 1, 0.8)
        if name not in known and near:
            raise RuleError(
                f"{pair.selector}: no kind of unit and no function is called {name!r}. Is select.kind({near[0]!r}) "
                f"meant? The kinds are {kinds}"
            )
    path = getattr(pair.selector, "glob", "")
    kind = path if path in known else _hints.KINDS.get(path.lower())
    if kind is not None:
        raise RuleError(
            f"({path!r}, {pair.rule}): a text is a module path, and no unit has the path {path!r}. For units of a kind "
            f"write (select.kind({kind!r}), {pair.rule})"
        )


def _weighs(rule: Rule | None) -> bool:
    """Whether a rule of layers looks at their weights, and is more than their contributions in proportion."""
    layers = rule is not None and not {*LAYERS, "*"}.isdisjoint(rule.kinds)
    return layers and hasattr(rule, "back") and not is_epsilon(rule)


def _explain(unit: Unit, rule: Any) -> Propagation:
    try:
        return KINDS[unit.kind].explain(unit, rule)
    except RuleError as error:
        what = "the rule of its kind" if rule is None else str(rule)
        return Refused(unit, RuleError, f"{what}: {error}: {unit.place}")


class Reached(NamedTuple):
    """What `route` knows of a value. reached: relevance comes to it. plain: a way on which it comes gives it in
    plain form. meant: and that is so because a rule wants it, not only because the output's relevance is given
    so."""

    reached: bool = False
    plain: bool = False
    meant: bool = False

    @property
    def form(self) -> str:
        return PLAIN if self.plain else RATIO


@dataclasses.dataclass
class Routes:
    """Where relevance goes. flowing: values from which it can come to what is explained. reached: the values
    that it comes to. form: the form of their cotangents. takes: the form in which a unit takes those of its
    outputs (only units that relevance reaches are listed). gives: the form in which it gives those of the
    operands that it hands relevance. meant: the values whose form is
    PLAIN because a rule wants it. refused: the units that no rule explains."""

    flowing: set[Value]
    reached: set[Value] = dataclasses.field(default_factory=set)
    form: dict[Value, str] = dataclasses.field(default_factory=dict)
    takes: dict[Unit, str] = dataclasses.field(default_factory=dict)
    gives: dict[Unit, dict[Value, str]] = dataclasses.field(default_factory=dict)
    meant: set[Value] = dataclasses.field(default_factory=set)
    refused: dict[Unit, Refused] = dataclasses.field(default_factory=dict)


def flow(
    level: Level,
    sources: Sequence[bool],
    propagations: Mapping[Unit, Propagation],
    tapped: frozenset[Value],
) -> set[Value]:
    """All values from which relevance can reach the inputs that are `sources`, or a tapped value."""

    def transfer(known: Flow[bool], step: Unit | Node) -> Iterator[tuple[Value, bool]]:
        if isinstance(step, Unit) and any(known[v] for v in propagations[step].receives):
            yield from ((v, v.carries) for v in step.outputs)

    known = Flow(False, lambda a, b: a or b, transfer)
    known.known = dict.fromkeys(tapped, True)
    return {v for v, flows in known.solve(level, sources).known.items() if flows}


def route(
    level: Level,
    borders: Sequence[Reached],
    propagations: Mapping[Unit, Propagation],
    tapped: frozenset[Value],
    flowing: set[Value],
) -> Routes:
    """Decides which values relevance reaches, and in which form, given at which outputs it begins, and in which."""

    narrow = _too_narrow(level, flowing, propagations)

    def transfer(known: Flow[Reached], step: Unit | Node) -> Iterator[tuple[Value, Reached]]:
        if isinstance(step, Node):
            return
        here = _together(known, step)
        if here.reached:
            how = propagations[step]
            takes, gives = how.forms(here.form, here.meant)
            routes.takes[step] = takes
            routes.gives[step] = {v: PLAIN if v in narrow else gives for v in how.receives if v in flowing}
            wanted = here.meant or how.forms(RATIO, False)[1] == PLAIN
            for v, given in routes.gives[step].items():
                yield v, Reached(True, given == PLAIN, gives == PLAIN and wanted)

    routes = Routes(flowing)
    join = lambda a, b: Reached(a.reached or b.reached, a.plain or b.plain, a.meant or b.meant)
    known = Flow(Reached(), join, transfer, backward=True, within=flowing)
    known.known = {v: Reached(True, v in narrow) for v in tapped}
    known.solve(level, borders)
    for value, fact in known.known.items():
        if fact.reached:
            routes.reached.add(value)
            routes.form[value] = fact.form
            if fact.meant:
                routes.meant.add(value)
    for unit in level.walk():
        if unit.bodies and _together(known, unit).reached:
            inside = [v for body in unit.bodies for v in zip(unit.entering, body.inputs, strict=True)]
            given = [
                (outer, inner) for outer, inner in inside if inner in routes.reached and outer in flowing
            ]
            routes.takes[unit] = RATIO
            routes.gives[unit] = dict.fromkeys((outer for outer, _ in given), RATIO)
            routes.gives[unit] |= {outer: PLAIN for outer, inner in given if routes.form[inner] == PLAIN}
        if unit in routes.takes and isinstance(propagations[unit], Refused):
            routes.refused[unit] = propagations[unit]  # type: ignore[assignment]
    return routes


def ended(
    level: Level, seeded: Sequence[bool], propagations: Mapping[Unit, Propagation], routes: Routes
) -> list[str]:
    """Where relevance ends, if rules give none of it to what is explained, though the output depends on that."""
    outs = [v for v, s in zip(level.outputs, seeded, strict=True) if s and v.carries]
    if not outs or any(v in routes.flowing for v in outs):
        return []
    ends = [
        unit
        for unit in level.walk()
        if not unit.bodies
        and any(v in routes.flowing for v in unit.operands)
        and not any(v in routes.flowing for v in unit.outputs)
    ]
    return list(dict.fromkeys(f"{propagations[unit].text} for {unit.place}" for unit in ends))


def _too_narrow(
    level: Level, flowing: set[Value], propagations: Mapping[Unit, Propagation]
) -> frozenset[Value]:
    """The float16 values, which relevance divided by them may leave: they carry it in plain form. Not those that
    a constant was added to, whose operand has relevance where they are zero."""
    narrow = {v for v in flowing if v.narrow}
    shifted: set[Value] = set()
    for unit in level.walk() if narrow else ():
        how = propagations[unit]
        if how.adds or (how.selects and any(v in shifted for v in unit.operands)):
            shifted.update(unit.outputs)
    return frozenset(narrow - shifted)


def _together(known: Flow[Reached], unit: Unit) -> Reached:
    """What is known of all the outputs of a unit."""
    facts = [known[v] for v in unit.outputs]
    reached = [f for f in facts if f.reached]
    return Reached(bool(reached), any(f.plain for f in reached), any(f.meant for f in reached))


def natives(level: Level, assignment: Assignment, routes: Routes) -> list[str]:
    """The weighted sums that relevance reaches and that are no layers, where a rule of layers is asked for that would
    explain them otherwise."""
    if not assignment.weighs:
        return []
    return [f"{unit.place}: {unit.native}" for unit in level.walk() if unit.native and unit in routes.takes]


def refuse(routes: Routes) -> None:
    """Raises an error that lists everything that cannot be explained, if there is anything."""
    if not routes.refused:
        return
    lines = "\n".join(f"  {refused.line}" for refused in routes.refused.values())
    if all(refused.error is RuleError for refused in routes.refused.values()):
        raise RuleError(f"a unit cannot carry out the rule that the composite gives it\n{lines}")
    raise UnsupportedError(f"relevance cannot be propagated through\n{lines}")


def described(level: Level, routes: Routes) -> list[Unit]:
    """The units that a plan lists: all that relevance reaches, but for what only moves it and what holds others."""
    return [u for u in level.walk() if KINDS[u.kind].shown and u in routes.takes]


def describe(level: Level, assignment: Assignment, routes: Routes, notes: Iterable[str] = ()) -> Plan:
    """The table of a plan: all units that relevance reaches."""
    planned = []
    for unit in described(level, routes):
        aval, text = unit.out.aval, assignment.propagations[unit].text
        planned.append(
            Planned(unit.path, unit.kind, unit.name, text, tuple(aval.shape), str(aval.dtype), unit.main)
        )
    return Plan(planned, assignment.unmatched, list(notes))
