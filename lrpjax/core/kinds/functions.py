"""Units as functions of arrays: evaluating them, and running them with a backward function of their own."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lrpjax.core.graph import Node, Value
from lrpjax.core.units import Unit
from lrpjax.core.vjps import with_backward
from lrpjax.errors import RuleError
from lrpjax.rules import Rule


def evaluate(
    unit: Unit,
    x_value: Value,
    externals: Sequence[Value],
    x: Any,
    rest: Sequence[Any],
    before: Sequence[Node] = (),
) -> Any:
    """A unit's output, from one of its operands and all else that it reads. `before` are nodes outside of the unit
    that are run with it."""
    env = {x_value: x, **dict(zip(externals, rest, strict=True))}
    for node in (*before, *unit.nodes):
        values = [v.constant if v.constant is not None else env[v] for v in node.inputs]
        env.update(zip(node.outputs, node.bind(*values), strict=True))
    return env[unit.out]


def externals_of(unit: Unit, x: Value, before: Sequence[Node] = ()) -> list[Value]:
    """What a unit reads besides x, its own values and literals."""
    nodes = (*before, *unit.nodes)
    inner = {v for node in nodes for v in node.outputs}
    read = dict.fromkeys(v for node in nodes for v in node.inputs)
    return [v for v in read if v is not x and v not in inner and v.constant is None]


def arrays_of(rule: Rule | None) -> list:
    """The hyper-parameters of a rule that are no plain numbers: they travel as arguments."""
    arrays = [leaf for leaf in jax.tree.leaves(rule) if not isinstance(leaf, (bool, int, float))]
    for leaf in arrays:
        if not hasattr(leaf, "dtype"):
            raise RuleError(
                f"a field holds {leaf!r}, which is neither a number nor an "
                "array; name such fields in the decorator, "
                '@rules.rule("name")'
            )
    return arrays


def rebuilder(rule: Rule | None) -> Callable[[Sequence], Any]:
    """A function from a rule's array leaves to the rule; numbers are static."""
    leaves, treedef = jax.tree.flatten(rule)
    numbers = [leaf if isinstance(leaf, (bool, int, float)) else None for leaf in leaves]

    def rebuild(arrays):
        arrays = iter(arrays)
        return jax.tree.unflatten(treedef, [next(arrays) if n is None else n for n in numbers])

    return rebuild


@functools.cache
def chooses_halves(own: type[Rule]) -> bool:
    """Whether the `kernels` of a class of rules asks which of the two forms of `halves` it has to take."""
    return "apart" in inspect.signature(own.kernels).parameters


def kernels_of(rule: Any, w: Any, unit: Unit, apart: bool = True) -> tuple:
    """What a rule takes from a kernel; from each array of one that is several.

    Raises:
        RuleError: it is no tuple.
    """
    if isinstance(w, tuple):
        return tuple(zip(*(kernels_of(rule, each, unit, apart) for each in w), strict=True))
    kernels = rule.kernels(w) if apart else rule.kernels(w, apart=False)
    if not isinstance(kernels, tuple):
        kind = type(kernels).__name__
        raise RuleError(f"{rule}: kernels returns a tuple of arrays, but returned one {kind}: {unit.place}")
    return kernels


def of_shape(result: Any, shape: tuple[int, ...], what: str, unit: Unit) -> Any:
    """What a rule's formula returned, checked to be an array of this shape."""
    if getattr(result, "shape", None) != shape:
        got = getattr(result, "shape", type(result).__name__)
        raise RuleError(
            f"{what} returns an array of the input's shape, {shape}, but returned {got}: {unit.place}"
        )
    return result


class Own:
    """A unit as a function of one operand `x`, with a backward function of its own: `backward(x, (externals,
    leaves), y, c)` gives x's cotangent from y's, c. It closes over static data only; `externals` are the arrays
    that the unit reads besides x, `leaves` those of the rule."""

    def __init__(self, unit: Unit, x: Value, backward: Callable, rule: Rule | None = None):
        self.unit, self.x, self.backward, self.rule = unit, x, backward, rule
        self.externals = externals_of(unit, x)

    def forward(self, x: Any, externals: Sequence[Any], *rest: Any) -> Any:
        return evaluate(self.unit, self.x, self.externals, x, externals)


def run_own(frame: Any, own: Own) -> None:
    """Runs a unit with a backward function of its own."""
    rest = [frame.fixed(v) for v in own.externals], arrays_of(own.rule)
    frame.define(
        own.unit.out, with_backward(own.forward, own.backward, frame.operand(own.unit, own.x), *rest)
    )
