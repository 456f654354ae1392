"""The first and the last turn of a loop, run outside of it.

A body of a loop is one program for all turns, so a rule that a selector gives to the unit that is executed first
(`lrpjax.select.first`), or last, would hold in every turn. Here the loop is written as that turn and a loop of the
others, as it would be unrolled: the turn has units of its own.

So is the last turn where a rule behind the loop hands relevance to zeros (PLAIN form) and those inside do not, or the
other way round, because all turns take relevance from behind in one form.

Where no turn depends on the one before (`jax.lax.map`), each is a run of its own, as under `jax.vmap`, and its first
unit is first in it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax import lax

from lrpjax.core import compat
from lrpjax.core.graph import Graph, Node, Value
from lrpjax.core.kinds import KINDS
from lrpjax.core.plan import Routes
from lrpjax.core.units import Level
from lrpjax.errors import PathError, RuleError
from lrpjax.select import End


class Turn(NamedTuple):
    """The first or the last (`which`) turn of the loop that a node is, why it is unlike the others, and what to do
    where it cannot be."""

    node: Node
    which: str
    why: str
    advice: str

    def __str__(self) -> str:
        return f"a loop, {self.node.place}, whose {self.which} turn {self.why}"


def wanted(level: Level, ends: Sequence[End]) -> Turn | None:
    """A turn that one of these selectors distinguishes from the others of its loop; None if there is none any more."""
    if not ends:
        return None
    shown = [u for u in level.walk() if KINDS[u.kind].shown]
    for end in ends:
        for unit in (u for u, chosen in zip(shown, end.choose(shown), strict=True) if chosen):
            for holder, _ in unit.within:
                node = holder.nodes[0]
                if (node.steps or 1) > 1 and _dependent(node):
                    why = f"has a rule of its own, by {end}"
                    advice = f"to give that rule to every turn, name the unit: select.path({unit.path!r})"
                    return Turn(node, end.which, why, advice)
    return None


MOST = 16
"""Of turns that are taken out of the loops of one program."""


def unlike(level: Level, routes: Routes) -> Turn | None:
    """A last turn that takes relevance in another form than the turns before it, because rules want it so; None if
    there is none."""
    for unit in level.walk():
        node = unit.nodes[0]
        if unit in routes.takes and (node.steps or 1) > 1:
            first, count = node.carry
            for outer, inner in zip(node.outputs[:count], node.bodies[0].inputs[first:], strict=False):
                both = outer in routes.reached and inner in routes.reached
                if both and (outer in routes.meant) != (inner in routes.meant):
                    why = "takes relevance in another form than the others, by the rules inside and behind the loop"
                    return Turn(node, "last", why, "write the loop out")
    return None


def _dependent(node: Node) -> bool:
    """Whether the turns of a loop hand on something that relevance flows along."""
    first, count = node.carry
    return any(v.carries for v in node.bodies[0].inputs[first : first + count])


def refuse_named(turn: Turn, named: Iterable[tuple[str, Value]]) -> None:
    """Raises a PathError if one of the values, by name, lies inside the loop: it would be two, one of the turn and one
    of the others."""
    inside = set(_values(turn.node.bodies[0]))
    for name, value in named:
        if value in inside:
            raise PathError(f"{name!r} names a value inside {turn}: name a value outside; or, {turn.advice}")


def _values(graph: Graph) -> Iterable[Value]:
    yield from graph.inputs
    for node in graph.walk():
        yield from node.outputs
        for body in node.bodies:
            yield from body.inputs


def apart(turn: Turn, before: int) -> Any:
    """The jaxpr of a loop whose turn stands outside of it, in the place of the loop's equation. `before`: how many
    turns were taken out already."""
    if before == MOST:
        raise RuleError(f"too many turns are unlike the others of their loops; one is {turn}: {turn.advice}")
    p = turn.node.params
    body, length, reverse = compat.jaxpr_as_fun(p["jaxpr"]), p["length"], p["reverse"]
    first, count = turn.node.carry
    early = turn.which == "first"
    at_start = early != reverse  # whether its slices are the first of the arrays, and not the last

    def one(carry: Sequence, consts: Sequence, slices: Sequence) -> tuple[list, list]:
        out = body(*consts, *carry, *slices)
        return list(out[:count]), list(out[count:])

    def others(carry: Sequence, consts: Sequence, xs: Sequence) -> tuple[list, list]:
        kept = [lax.slice_in_dim(x, *((1, None) if at_start else (0, length - 1))) for x in xs]
        step = lambda carry, slices: one(carry, consts, slices)
        return lax.scan(step, list(carry), kept, length - 1, reverse, p["unroll"])

    def run(*operands: Any) -> list:
        consts, carry, xs = operands[:first], operands[first : first + count], operands[first + count :]
        own = [lax.index_in_dim(x, 0 if at_start else length - 1, keepdims=False) for x in xs]
        if early:
            carry, y = one(carry, consts, own)
            carry, ys = others(carry, consts, xs)
        else:
            carry, ys = others(carry, consts, xs)
            carry, y = one(carry, consts, own)
        parts = [
            (lax.expand_dims(a, [0]), b) if at_start else (b, lax.expand_dims(a, [0]))
            for a, b in zip(y, ys, strict=True)
        ]
        return [*carry, *(lax.concatenate(pair, 0) for pair in parts)]

    traced = compat.traced_at(turn.node.eqn, run)
    if traced is None:
        raise RuleError(
            f"inside a shard_map there is {turn}: shard_map(..., check_vma=False) lets that turn be taken out of "
            f"the loop; or, {turn.advice}"
        )
    return traced
