"""The plan: which rule goes to which unit, in which form each value carries its relevance, and the table that says so.

`orient` walks backward once and decides, for every value, whether relevance reaches it (`live`) and whether its cotangent is relevance
(PLAIN) or relevance divided by the value (RATIO). A rule that gives relevance to zeros needs PLAIN; structural nodes and activations hand that
form on upstream, until a layer's rule takes it.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

from lrpjax.composites import Composite
from lrpjax.errors import RuleError, UnmatchedWarning, UnsupportedError
from lrpjax.graph import Node, Value
from lrpjax.rules import LAYERS, PLAIN, RATIO, Epsilon, Gradient, Norm, Pass, Product, Rule, Stop, Sum
from lrpjax.selective import Signals
from lrpjax.units import SHOWN, Level, Unit

_REFUSED = {
    "while": "a while_loop cannot be run backward: use jax.lax.scan, or fori_loop with bounds that are known when tracing",
    "unknown": "no rule is known for this primitive: detach it with jax.lax.stop_gradient, write it as other primitives, "
    'or name its family with Composite(..., primitives={{"{name}": "elementwise"}})',
}


@dataclasses.dataclass
class Planned:
    """One unit of a plan: `path` (module path), `kind`, `name` (of the function, where known), `rule` (as text), `shape` (of the output),
    `dtype`, `source` (file:line of the user's code)."""

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
class Plan:
    """What would be done with a function: `units` in execution order; `unmatched`, the pairs of the composite that found nothing; `notes`.

    `str(plan)` is a table.
    """

    units: list[Planned]
    unmatched: list[str]
    notes: list[str]

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    def __str__(self) -> str:
        head = ("#", "path", "kind", "rule", "shape", "source")
        rows = [
            (
                str(i),
                u.path or "-",
                f"{u.kind}:{u.name}" if u.name else u.kind,
                u.rule,
                "×".join(map(str, u.shape)) or "()",
                _short(u.source),
            )
            for i, u in enumerate(self.units)
        ]
        widths = [max(len(r[c]) for r in [head, *rows]) for c in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in [head, *rows]
        ]
        lines += [f"matched nothing: {text}" for text in self.unmatched]
        return "\n".join([*lines, *self.notes])


def _short(source: str) -> str:
    place, _, function = source.partition(" ")
    return "/".join(place.split("/")[-2:]) + (f" {function}" if function else "")


@dataclasses.dataclass
class Assignment:
    """The rule of every unit (None: the default of its kind), and the pairs that matched nothing."""

    rules: dict[Unit, Rule | None]
    unmatched: list[str]


def path_of(unit: Unit) -> str:
    return unit.main.path


@dataclasses.dataclass
class _View:
    path: str
    kind: str
    name: str


def assign(level: Level, composite: Composite) -> Assignment:
    """Gives every unit its rule. Warns, once for each composite, of pairs that match nothing."""
    units = list(level.walk())
    shown = [u for u in units if u.kind in SHOWN]
    views = [_View(path_of(u), u.kind, u.name) for u in shown]
    chosen, unmatched = composite.assign(views)
    rules: dict[Unit, Rule | None] = dict.fromkeys(units, composite.default)
    rules.update(zip(shown, chosen, strict=True))
    for unit in units:
        if unit.kind == "custom" and rules[unit] is None:
            rules[unit] = unit.main.params["call"].function.rule
    selective = [u for u in units if u.kind == "product" and getattr(rules[u], "share", None) == "selective"]
    signals = Signals(level) if selective else None
    for unit in selective:
        unit.selected = signals.of(unit)  # type: ignore[union-attr]
    texts = [f"({selector}, {rule})" for selector, rule in unmatched]
    if texts and not composite.preset and not getattr(composite, "_warned", False):
        object.__setattr__(composite, "_warned", True)
        warnings.warn(
            f"pairs of the composite that match no unit: {'; '.join(texts)}. str(lrpjax.plan(f, composite, *args)) lists the units.",
            UnmatchedWarning,
            stacklevel=5,
        )
    return Assignment(rules, texts)


@dataclasses.dataclass
class Orientation:
    """What `orient` found. `live`: values that relevance reaches. `form`: the form of each live value's cotangent. `given`: the form in which
    a unit wants the cotangents of its outputs. `emits`: the form in which it produces those of its operands. `flowing`: values from which
    relevance can reach an explained one. `meant`: values that are PLAIN because a rule wants it, not only because the output is given so.
    `refused`: units that no rule explains, with the reason."""

    live: set[Value] = dataclasses.field(default_factory=set)
    form: dict[Value, str] = dataclasses.field(default_factory=dict)
    given: dict[Unit, str] = dataclasses.field(default_factory=dict)
    emits: dict[Unit, dict[Value, str]] = dataclasses.field(default_factory=dict)
    flowing: set[Value] = dataclasses.field(default_factory=set)
    meant: set[Value] = dataclasses.field(default_factory=set)
    refused: list[tuple[Unit, str]] = dataclasses.field(default_factory=list)


def flow(
    level: Level,
    flowing_inputs: Sequence[bool],
    rules: Mapping[Unit, Rule | None],
    tapped: frozenset[Value],
    into: set[Value],
) -> None:
    """Adds to `into` all values from which relevance can reach an explained input or a tapped value."""
    into.update(v for v, f in zip(level.graph.inputs, flowing_inputs, strict=True) if f)
    into.update(v for v in level.graph.inputs if v in tapped)
    for unit in level.order:
        if isinstance(unit, Node):  # made from what carries nothing: an embedding's rows
            into.update(v for v in unit.outputs if v in tapped)
            continue
        if unit.bodies:
            flows, (first, count) = [v in into for v in unit.nodes[0].entering], unit.nodes[0].carry
            while True:
                for body in unit.bodies:
                    flow(body, flows, rules, tapped, into)
                grown = list(flows)
                for i, out in enumerate(unit.bodies[0].graph.outputs[:count]):
                    grown[first + i] |= out in into
                if grown == flows:
                    break
                flows = grown
            reached = [any(b.graph.outputs[i] in into for b in unit.bodies) for i in range(len(unit.outputs))]
        else:
            reaches = not isinstance(rules[unit], Stop) and any(v in into for v in passing(unit, rules[unit]))
            reached = [reaches] * len(unit.outputs)
        into.update(v for v, r in zip(unit.outputs, reached, strict=True) if (r and v.carries) or v in tapped)


def orient(
    level: Level,
    live: Sequence[bool],
    forms: Sequence[str],
    rules: Mapping[Unit, Rule | None],
    found: Orientation,
    tapped: frozenset[Value],
) -> None:
    """Decides liveness and form of every value of a level, given those of its outputs. Results are added to `found`."""
    votes: dict[Value, set[str]] = {}
    for v, alive, form in zip(level.graph.outputs, live, forms, strict=True):
        if alive and v in found.flowing:
            votes.setdefault(v, set()).add(form)

    def settle(v: Value) -> None:
        found.live.discard(v)
        if v in votes or v in tapped:
            found.live.add(v)
            found.form[v] = PLAIN if PLAIN in votes.get(v, ()) else RATIO

    for unit in reversed(level.order):
        for v in unit.outputs:
            settle(v)
        if isinstance(unit, Node):
            continue
        outs = [v for v in unit.outputs if v in found.live]
        if not outs:
            found.given.pop(unit, None)
            continue
        reason = _REFUSED.get(unit.kind)
        if unit.kind == "custom" and rules[unit] is None and unit.main.params["call"].function.bwd is None:
            reason = "give it a rule, custom_relevance(f, rule=...), or forward and backward functions by defrelevance"
        if reason is not None and not (unit.kind == "unknown" and isinstance(rules[unit], (Gradient, Stop))):
            found.refused.append((unit, reason.format(name=unit.nodes[-1].name)))
        if unit.bodies:
            found.given[unit] = RATIO
            emitted = _orient_bodies(unit, rules, found, tapped)
        else:
            form = PLAIN if any(found.form[v] == PLAIN for v in outs) else RATIO
            if (
                form == PLAIN
                and rules[unit] is None
                and _shifts(unit)
                and not any(v in found.meant for v in outs)
            ):
                form = RATIO  # at an output a constant takes its share, as it does everywhere but above a rule that emits PLAIN
                found.given[unit], emits = RATIO, RATIO
            else:
                found.given[unit], emits = unit_forms(unit, rules[unit], form)
            emitted = (
                {} if emits is None else {v: emits for v in passing(unit, rules[unit]) if v in found.flowing}
            )
        found.emits[unit] = emitted
        meant = rules[unit] is not None or any(v in found.meant for v in outs)
        for v, emits in emitted.items():
            votes.setdefault(v, set()).add(emits)
            if emits == PLAIN and meant:
                found.meant.add(v)
    for v in level.graph.inputs:
        settle(v)


def _orient_bodies(
    unit: Unit, rules: Mapping[Unit, Rule | None], found: Orientation, tapped: frozenset[Value]
) -> dict[Value, str]:
    for body in unit.bodies:
        found.meant.update(
            i for o, i in zip(unit.outputs, body.graph.outputs, strict=True) if o in found.meant
        )
    live = [v in found.live for v in unit.outputs]
    forms = [found.form.get(v, RATIO) for v in unit.outputs]
    operands, (first, count) = unit.nodes[0].entering, unit.nodes[0].carry
    while True:
        for body in unit.bodies:
            orient(body, live, forms, rules, found, tapped)
        again = False
        for i in range(count):
            carry = unit.bodies[0].graph.inputs[first + i]
            if carry in found.live and (not live[i] or (found.form[carry] == PLAIN != forms[i])):
                live[i], again = True, True
                forms[i] = PLAIN if found.form[carry] == PLAIN else forms[i]
        if not again:
            break
    emitted: dict[Value, str] = {}
    for body in unit.bodies:
        for operand, inner in zip(operands, body.graph.inputs, strict=True):
            if inner in found.live and operand in found.flowing:
                if inner in found.meant:
                    found.meant.add(operand)
                emitted[operand] = PLAIN if PLAIN in (emitted.get(operand), found.form[inner]) else RATIO
    return emitted


def _shifts(unit: Unit) -> bool:
    return unit.kind == "affine" and any(node.name in ("add", "sub", "add_any") for node in unit.nodes)


def passing(unit: Unit, rule: Rule | None) -> list[Value]:
    """The operands to which a unit hands relevance under a rule."""
    if isinstance(rule, Gradient):
        return unit.operands
    if unit.weights is not None and isinstance(rule, Pass):
        return unit.passing[:1]
    if unit.kind != "product" or not isinstance(rule, Product) or rule.share == "gate":
        return unit.passing
    if unit.name == "reduce_product" and (rule.share == "magnitude" or isinstance(rule.share, int)):
        raise RuleError(
            f"Product: share={rule.share!r} is not defined for the product along an axis at {unit.main.source}, whose factors share alike"
        )
    if rule.share == "magnitude" and any(
        node.name in ("dot_general", "conv_general_dilated") for node in unit.nodes
    ):
        raise RuleError(
            f"Product: share='magnitude' is defined for elementwise products only, but that at {unit.main.source} is a contraction"
        )
    if rule.share == "activated":
        return [v for v in unit.passing if v not in unit.activated] or unit.passing
    if rule.share == "selective":
        return unit.selected
    if isinstance(rule.share, int):
        if not -len(unit.operands) <= rule.share < len(unit.operands):
            raise RuleError(
                f"Product: share={rule.share}, but the product at {unit.main.source} has {len(unit.operands)} factors"
            )
        return [unit.operands[rule.share]]
    return unit.operands


def unit_forms(unit: Unit, rule: Rule | None, form: str) -> tuple[str, str | None]:
    """(the form in which a unit wants its outputs' cotangents, the form in which it emits its operands'; None: it passes nothing on)."""
    if isinstance(rule, Stop):
        return form, None
    if isinstance(rule, Gradient):
        return PLAIN, PLAIN
    if unit.kind == "custom" and not isinstance(rule, (Epsilon, Norm)):
        return PLAIN, PLAIN
    if unit.kind in LAYERS:
        if is_native(unit, rule):
            return RATIO, RATIO
        return PLAIN, rule.emits  # type: ignore[union-attr]
    if unit.kind == "activation":
        return (PLAIN, PLAIN) if hasattr(rule, "through") else (form, form)
    if isinstance(rule, Sum) and rule.share != "native" and unit.nodes[-1].name in ("add", "sub", "add_any"):
        return PLAIN, PLAIN
    if unit.kind in ("affine", "norm", "quotient") and not isinstance(rule, (Norm, Epsilon)):
        if unit.weights is not None and rule is None:
            return RATIO, RATIO
        return (PLAIN, PLAIN) if isinstance(rule, Pass) else (form, form)
    if unit.kind == "structural" or (unit.name == "max_pool" and rule is None):
        return form, form
    return RATIO, RATIO


def is_native(unit: Unit, rule: Rule | None) -> bool:
    """Whether a weighted layer's rule is JAX's own transpose behind a stabilised denominator: the ε-rule with the bias in place."""
    return rule is None or (isinstance(rule, (Epsilon, Norm)) and rule.bias)


def is_probability(level: Level, value: Value) -> bool:
    """Whether a value is a softmax or log-softmax, but for moving its elements about."""
    owner = {node: unit for unit in level.units for node in unit.nodes}
    while value.node in owner:
        unit = owner[value.node]
        if unit.kind == "softmax":
            return True
        if (unit.kind == "affine" and value.node.name == "sub") or (
            unit.kind == "sum" and value.node.name == "sub"
        ):  # u − log Σ exp(u)
            value = value.node.inputs[1]
        elif unit.kind == "structural" and len(value.node.carriers()) == 1:
            value = value.node.carriers()[0]
        else:
            return False
    return False


def describe(
    level: Level,
    assignment: Assignment,
    found: Orientation,
    explained: Callable[[Unit], bool] = lambda u: True,
) -> Plan:
    """The table of a plan: all units that relevance reaches."""
    planned = []
    for unit in level.walk():
        if unit.kind in SHOWN and unit in found.given:
            rule = assignment.rules[unit]
            text = str(rule) if rule is not None else default_text(unit)
            if isinstance(rule, Product):
                text += f": {len(passing(unit, rule))} of {len(unit.operands)} factors"
            aval = unit.out.aval
            planned.append(
                Planned(
                    path_of(unit), unit.kind, unit.name, text, tuple(aval.shape), str(aval.dtype), unit.main
                )
            )
    return Plan(planned, assignment.unmatched, [])


def default_text(unit: Unit) -> str:
    """What happens to a unit that no pair of the composite names."""
    if unit.kind == "product":
        if unit.name == "reduce_product":
            return "all factors alike"
        return "signal takes all" if unit.name == "gate" else f"1/{len(unit.operands)} each"
    if unit.kind == "quotient" or unit.kind == "norm":
        return "denominator fixed" if unit.weights is None else "Taylor, of a softmax divided late"
    if unit.kind == "pool" and unit.name == "max_pool":
        return "winner takes all"
    if unit.kind == "custom":
        return "its own"
    return {
        "conv": "Epsilon(epsilon=1e-06)",
        "dense": "Epsilon(epsilon=1e-06)",
        "activation": "Pass()",
        "softmax": "Taylor",
    }.get(unit.kind, "in proportion")


def refuse(found: Orientation) -> None:
    """Raises UnsupportedError, which lists everything that cannot be explained, if there is anything."""
    if not found.refused:
        return
    lines = [f"  {unit.nodes[-1].place}: {reason}" for unit, reason in reversed(dict.fromkeys(found.refused))]
    raise UnsupportedError("relevance cannot be propagated through\n" + "\n".join(lines))
