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
from lrpjax.core.units import Unit
from lrpjax.core.vjps import wide
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
    found = origin(unit, value) if rule.of_argument else None
    if found is None or not found.moved:
        return rule

    def bring(path: Any, leaf: Any) -> Any:
        belongs = getattr(path[0], "name", None) in rule.of_argument and np.ndim(leaf) > 0
        fits = belongs and broadcasts(np.shape(leaf), found.argument.shape)
        return _move(leaf, found) if fits else leaf

    return jax.tree_util.tree_map_with_path(bring, rule)


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
