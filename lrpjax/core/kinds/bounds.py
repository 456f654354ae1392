"""Hyper-parameters that belong to the elements of the function's argument, as the bounds of z^B do, brought to a layer.

A network may move the elements of its argument before its first layer reads them: from channels last to channels first,
into patches. Arrays that broadcast against the argument are moved likewise.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core import compat
from lrpjax.core.graph import Node, Value, known_number
from lrpjax.core.primitives import FAMILIES
from lrpjax.core.units import Unit
from lrpjax.core.vjps import wide
from lrpjax.errors import RuleError
from lrpjax.rules import Rule
from lrpjax.rules.arithmetic import broadcasts

RETYPES = ("convert_element_type", "copy", "name", "reduce_precision")
"""The movements that leave every element in its place. Bounds keep their own precision."""

MOVES = (
    *RETYPES,
    *("transpose", "reshape", "squeeze", "broadcast_in_dim", "slice", "dynamic_slice", "split", "pad", "rev"),
)


class Origin(NamedTuple):
    """Where a value's elements come from. argument: the explained argument of the function or, in a loop over a part
    of it, that of the turn. moved: the values on the way from there, in order, each made of the one before it."""

    argument: Value
    moved: list[Value]


def origin(unit: Unit, value: Value) -> Origin | None:
    """The origin of what a unit reads, if there is nothing but movements of elements on the way; else None."""
    moved: list[Value] = []
    while value.node is not None:
        if not _moves(value.node):
            return None
        moved.insert(0, value)
        (value,) = value.node.carriers()
    if not unit.within:
        return Origin(value, moved)
    holder, number = unit.within[-1]
    place, (first, count) = holder.bodies[number].inputs.index(value), holder.carry
    outside = holder.entering[place]
    before = None if first <= place < first + count else origin(holder, outside)
    if before is None:
        return None
    if outside.shape != value.shape:
        return Origin(value, moved)
    return Origin(before.argument, [*before.moved, *moved])


def _moves(node: Node) -> bool:
    others = [v for v in node.inputs if not v.carries]
    return (
        node.name in MOVES and len(node.carriers()) == 1 and all(known_number(v) is not None for v in others)
    )


def brought(rule: Rule, unit: Unit, value: Value) -> Rule:
    """A rule for a layer that reads a value, with its arrays that belong to the elements of the argument moved to where
    the layer reads them: those that broadcast against the argument."""
    if not rule.of_argument:
        return rule
    found = origin(unit, value)
    rearranged = None if found is not None else _rearranged(value)

    def bring(path: Any, leaf: Any) -> Any:
        name, shape = getattr(path[0], "name", None), np.shape(leaf)
        if name not in rule.of_argument or not shape:
            return leaf
        if found is not None:
            return _move(leaf, found) if found.moved and broadcasts(shape, found.argument.shape) else leaf
        ends = () if rearranged is None else (rearranged.argument, value)
        if rearranged is not None and all(broadcasts(shape, v.shape) for v in ends):
            raise RuleError(
                f"{rule}: {name} has shape {shape}, which fits the function's input of shape "
                f"{rearranged.argument.shape} and what the layer reads, {value.shape}, but how the one becomes the "
                f"other is not followed through\n  {rearranged.by.place}\nRearrange the input outside of the function, "
                "or by transposing, reshaping, reversing, slicing or padding with a constant; or give numbers"
            )
        return leaf

    return jax.tree_util.tree_map_with_path(bring, rule)


class Rearranged(NamedTuple):
    """An argument whose elements a layer reads somewhere else, moved by a node that bounds are not moved by."""

    argument: Value
    by: Node


def _rearranged(value: Value) -> Rearranged | None:
    """What is known of a value that is made of an argument's elements by structural nodes, some of which are not
    followed; None where anything is computed on the way."""
    by: Node | None = None
    ends, todo, seen = [], [value], {value}
    while todo:
        node = todo[-1].node
        if node is None:
            ends.append(todo.pop())
            continue
        todo.pop()
        if FAMILIES.get(node.name) != "structural":
            return None
        by = by if _moves(node) else node
        new = [v for v in node.carriers() if v not in seen]
        seen.update(new)
        todo += new
    return None if by is None else Rearranged(ends[0], by)


def _move(array: Any, origin: Origin) -> jax.Array:
    dtype = wide(np.zeros((), origin.argument.aval.dtype)).dtype
    array = jnp.broadcast_to(jnp.asarray(array, dtype), origin.argument.shape)
    for value in origin.moved:
        node = value.node
        assert node is not None
        if node.name not in RETYPES:
            moved = node.bind(*(array if v.carries else _number(v, dtype) for v in node.inputs))
            array = moved[node.outputs.index(value)]
    return array


def _number(value: Value, dtype: Any) -> jax.Array:
    """What an array is padded with, of the array's type; or the place that a slice begins at."""
    own = dtype if compat.is_float(value.aval) else value.aval.dtype
    return jnp.full(value.shape, known_number(value), own)
