"""The scales of narrow floating-point numbers: what is cast to eight bits is divided by its largest size before, and
what is made of it is multiplied by that again."""

from collections.abc import Iterator, Mapping

from lrpjax.core import compat
from lrpjax.core.graph import Graph, Node, Value, graphs

MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy")
SCALING = ("mul", "div", "add", "integer_pow", "exp2", "log2", "round", "ceil", "floor")
GUARDS = ("max", "min", "clamp", "select_n")
SIZES = ("reduce_max", "pmax", "reduce_window_max", "cummax")


def find(graph: Graph, families: Mapping[str, str]) -> frozenset[Value]:
    """The largest sizes by which values are divided before they are cast to floats of eight bits or fewer."""
    found = set()
    for level in graphs(graph):
        for node in level.nodes:
            if (
                node.name == "convert_element_type"
                and node.inputs[0].carries
                and compat.is_narrow(node.out.aval)
            ):
                found.update(_scales(node))
    return frozenset(found)


def _scales(cast: Node) -> Iterator[Value]:
    node = cast.inputs[0].node
    while node is not None and len(node.carriers()) == 1 and node.name in (*MOVES, *GUARDS):
        node = node.carriers()[0].node
    if node is not None and node.name in ("div", "mul") and len(node.carriers()) == 2:
        sizes = [size for size in map(_largest, node.inputs) if size is not None]
        if len(sizes) == 1:
            yield sizes[0]


def _largest(value: Value) -> Value | None:
    """The maximum that a value was made of, by moving it, scaling it and guarding it against zero."""
    while value.node is not None:
        if value.node.name in SIZES:
            return value
        carriers = list(dict.fromkeys(value.node.carriers()))
        if len(carriers) != 1 or value.node.name not in (*MOVES, *SCALING, *GUARDS):
            return None
        value = carriers[0]
    return None
