"""What became of the relevance at every unit: accounts, and the warning that relevance grows, breaks or is lost."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core import ends
from lrpjax.core.graph import Value
from lrpjax.core.plan import Planned, describe, described
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance
from lrpjax.core.units import Level, Unit
from lrpjax.core.vjps import BROKEN, PASSED, RECEIVED, SIZE_PASSED, SIZE_RECEIVED
from lrpjax.errors import ConservationWarning, RuleError

BOUND = 1e3
"""How many times the relevance of the output the sizes |R| at a unit may sum to, unless a user says otherwise."""

KEPT = 0.01
"""The part of the output's relevance that has to arrive."""


@dataclasses.dataclass
class Accounts:
    """A run whose units are audited. y, aux, R: what came out. seed: the relevance of the output. units: those that
    have an account, in execution order; planned: what a plan says of them; turns: how often a loop runs each; columns:
    the accounts. ended: where relevance ends besides, and how much. stops: the named values at which it ends; passing:
    what came to the arguments beside them."""

    y: Any
    aux: Any
    R: Any
    seed: Any
    units: list[Unit]
    planned: list[Planned]
    turns: list[int]
    columns: Sequence[jax.Array]
    ended: list[tuple[ends.End, jax.Array]]
    stops: frozenset[Value]
    passing: list[jax.Array]


def run(program: Program, target: Any, closing: bool = False) -> Accounts:
    """Forward and backward with an account of every unit that a plan shows. `closing`: also of all else at which
    relevance ends; named values are the arguments then, at which it goes no further."""
    level, routes = program.level, program.routes
    units = described(level, routes)
    planned = describe(level, program.assignment, routes).units
    found: list[ends.End] = []
    stops: frozenset[Value] = frozenset()
    beside: list[int] = []
    if closing:
        stops = ends.lowest(level, program.assignment, program.tapped)
        passed = ends.way(level, program.seeded, routes, stops) - stops
        kept = [any(v in passed for v in u.outputs) for u in units]
        units = [u for u, k in zip(units, kept, strict=True) if k]
        planned = [p for p, k in zip(planned, kept, strict=True) if k]
        found = ends.find(level, routes, passed)
        arguments = level.inputs[len(program.consts) :]
        beside = [i for i, v in enumerate(arguments) if program.tapped and v in passed]
    program.rewrite([*units, *((end.unit, end.value) for end in found)], stops, beside)
    y, aux, pull = program.linearise_audited()
    seed = output_relevance(y, target, program.composite.method)
    R, (columns, passing) = pull(seed)
    turns = dict(_turns(level, 1))
    ended = [(end, own[RECEIVED]) for end, own in zip(found, columns[len(units) :], strict=True)]
    for value, own in zip(level.outputs, jax.tree.leaves(seed), strict=False):
        if closing and value not in routes.reached:
            ended.append((ends.End(None, value, value.node), total(own)))
    of_units = columns[: len(units)]
    return Accounts(
        y, aux, R, seed, units, planned, [turns[u] for u in units], of_units, ended, stops, passing
    )


def _turns(level: Level, around: int) -> Any:
    """(unit, how often the loops around it run it)."""
    for unit in level.units:
        yield unit, around
        for body in unit.bodies:
            steps = unit.nodes[0].steps
            yield from _turns(body, around * (1 if steps is None else max(steps, 1)))


def total(tree: Any, of: Callable = lambda a: a) -> jax.Array:
    """The sum over all arrays of a tree, of each element as `of` has it."""
    zero = jnp.zeros(())
    leaves = [of(jnp.real(leaf).astype(zero.dtype)).sum() for leaf in jax.tree.leaves(tree)]
    return sum(leaves, start=zero)


def bound_of(check: Any) -> float | None:
    """What `check=` says: None for no check.

    Raises:
        RuleError: it is no bool and no number above 1.
    """
    if isinstance(check, bool):
        return BOUND if check else None
    if not isinstance(check, (int, float)) or not check > 1:
        raise RuleError(
            f"check is True, False or the factor that relevance may grow by, above 1, but is {check!r}"
        )
    return float(check)


def watch(accounts: Accounts, bound: float, conserves: bool) -> None:
    """Has Python warn, when the numbers are there, of what `finding` finds."""
    places = [unit.place for unit in accounts.units]
    sources = [planned.source for planned in accounts.planned]
    rules = [planned.rule for planned in accounts.planned]
    turns = np.asarray(accounts.turns)

    def report(columns: Any, seed: Any, R: Any) -> None:
        found = finding(np.asarray(columns), turns, np.asarray(seed), np.asarray(R), bound, conserves)
        if found is not None:
            text, index = found
            unit = "" if index is None else f": {rules[index]} of {places[index]}"
            file, line = _line(None if index is None else sources[index])
            warnings.warn_explicit(f"{text}{unit}", ConservationWarning, file, line)

    both = lambda tree: jnp.stack([total(tree), total(tree, jnp.abs)])
    columns = jnp.stack(accounts.columns) if accounts.columns else jnp.zeros((0, 0))
    jax.debug.callback(report, columns, both(accounts.seed), both(accounts.R))


def _line(source: str | None) -> tuple[str, int]:
    """The file and the line of a source, as warnings show them."""
    file, _, line = (source or "").partition(" ")[0].rpartition(":")
    return (file, int(line)) if file and line.isdigit() else ("lrpjax", 1)


def finding(
    columns: np.ndarray, turns: np.ndarray, seed: np.ndarray, R: np.ndarray, bound: float, conserves: bool
) -> tuple[str, int | None] | None:
    """What is wrong with a relevance, and the number of the unit that does most to it; None if nothing is.

    Args:
        columns: the accounts, one row for each unit.
        turns: how often loops run each.
        seed, R: (sum, sum of sizes) of the output's relevance and of what arrived.
        bound: what the sizes may grow to, as a multiple of the output's.
        conserves: whether what arrives should be what the output began with.
    """
    if not np.isfinite(seed).all():
        return "the output's relevance is not finite", None
    if not len(columns):
        return None
    with np.errstate(all="ignore"):
        received, passed = columns[:, SIZE_RECEIVED], columns[:, SIZE_PASSED]
        gain = np.where(received > 0, passed / received, 0.0)
        broken = np.flatnonzero(columns[:, BROKEN] > 0)
        if broken.size and not np.isfinite(R).all():
            return "relevance is not finite, because values are not; the first are those", int(broken[0])
        makes = np.flatnonzero(np.isfinite(received) & ~np.isfinite(passed))
        finite = np.where(np.isfinite(gain), gain, 0.0)
        if makes.size:
            worst = int(finite.argmax())
            index = int(makes[-1])
            also = f", after a growth that is greatest, by a factor {finite[worst]:.1g}, in unit {worst}"
            return f"relevance is not finite; it ceases to be{also if finite[worst] > 10 else ''} at", index
        if not np.isfinite(R).all():
            return "relevance is not finite", int(finite.argmax())
        # In a loop each turn has relevance of its own: the mean over the turns.
        growth = max(float((passed / turns).max()), float(R[1])) / seed[1] if seed[1] > 0 else 0.0
        if growth > bound:
            index = int(finite.argmax())
            text = (
                f"relevance grows to {growth:.1g} times that of the output (sizes |R|; the signed sum is "
                f"{R[0]:.3g} for {seed[0]:.3g}); most, by a factor {gain[index]:.1g}, at"
            )
            return text, index
        if conserves and abs(R[0]) < KEPT * abs(seed[0]):
            lost = (columns[:, RECEIVED] - columns[:, PASSED]) * np.sign(seed[0])
            index = int(lost.argmax())
            part = abs(R[0] / seed[0])
            text = (
                f"relevance is lost: {part:.1%} of that of the output arrives ({R[0]:.3g} of {seed[0]:.3g}); most, "
                f"{abs(lost[index]):.3g}, is absorbed (by a bias, a stabiliser or a rule that does not conserve) at"
            )
            return text, index
    return None
