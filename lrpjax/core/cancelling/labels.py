"""Which element of a stabiliser stands behind each element of a value, through what only moves elements."""

from collections.abc import Mapping, Sequence
from typing import Any

from lrpjax.core.graph import Node, Value

SAME = (
    "convert_element_type",
    "reduce_precision",
    "copy",
    "optimization_barrier",
    "sharding_constraint",
    "device_put",
    "name",
    "pvary",
)
RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")
MOVES = (*SAME, *RESHAPES, "transpose", "slice", "dynamic_slice", "gather")

Labels = tuple[tuple[tuple[int, Any], ...], ...]
"""For each dimension of a value, its factors (their sizes' product is its size): along which dimension of a
stabiliser an index runs, as (dimension, stride), or None where the stabiliser is the same all along."""


def constant(shape: Sequence[int]) -> Labels:
    """Of a value of this shape behind all of which one element of the stabiliser stands."""
    return tuple(((n, None),) if n != 1 else () for n in shape)


def own(shape: Sequence[int]) -> Labels:
    """Of the stabiliser itself."""
    return tuple(((n, (d, 1)),) if n != 1 else () for d, n in enumerate(shape))


def _merged(factors: Sequence[tuple[int, Any]]) -> tuple:
    """Neighbouring factors that are one."""
    out: list[tuple[int, Any]] = []
    for size, label in factors:
        if out:
            before, last = out[-1]
            if last is None and label is None:
                out[-1] = (before * size, None)
                continue
            if label and last and last[0] == label[0] and last[1] == label[1] * size:
                out[-1] = (before * size, label)
                continue
        out.append((size, label))
    return tuple(out)


def _reshaped(labels: Labels, shape: Sequence[int]) -> Labels | None:
    rest = [f for dim in labels for f in dim][::-1]
    out = []
    for n in shape:
        dim = []
        while n > 1:
            if not rest:
                return None
            size, label = rest.pop()
            if n % size == 0:
                dim.append((size, label))
                n //= size
            elif size % n == 0 and (label is None or isinstance(label[0], int)):
                low = size // n
                dim.append((n, None if label is None else (label[0], label[1] * low)))
                rest.append((low, label))
                n = 1
            else:
                return None
        out.append(_merged(dim))
    return None if rest else tuple(out)


def is_constant(dim: tuple) -> bool:
    """Whether the stabiliser is the same all along a dimension."""
    return all(label is None for _, label in dim)


def moved(node: Node, labels: Labels) -> Labels | None:
    """The labels of what a node makes that only moves elements; None where that is not known."""
    p, name, shape = node.params, node.name, node.out.shape
    if name in SAME:
        return labels
    if name == "transpose":
        return tuple(labels[d] for d in p["permutation"])
    if name == "squeeze":
        gone = {d % len(labels) for d in p["dimensions"]}
        return tuple(dim for d, dim in enumerate(labels) if d not in gone)
    if name == "broadcast_in_dim":
        out = list(constant(shape))
        for d, dim, n in zip(p["broadcast_dimensions"], labels, node.inputs[0].shape, strict=True):
            if n == shape[d]:
                out[d] = dim
        return tuple(out)
    if name in ("reshape", "expand_dims"):
        return _reshaped(labels, shape)
    if name in ("slice", "dynamic_slice", "rev", "pad", "sort", "cumsum", "cummax"):
        axes = p.get("dimensions", (p.get("dimension", p.get("axis")),)) if name not in MOVES else ()
        out = []
        for d, (dim, n, m) in enumerate(zip(labels, node.inputs[0].shape, shape, strict=True)):
            if n != m or d in axes or (name == "slice" and (p["strides"] or (1,) * len(shape))[d] != 1):
                if not is_constant(dim):
                    return None
                dim = constant((m,))[0]
            out.append(dim)
        return tuple(out)
    return None


def looked_up(node: Node) -> tuple[Any, int] | None:
    """(the indices, the number of dimensions that they make) of a gather or scatter of whole rows."""
    dims = node.params["dimension_numbers"]
    indices = node.inputs[1]
    if node.name == "gather":
        rows, start, batching = dims.collapsed_slice_dims, dims.start_index_map, dims.operand_batching_dims
        count = len(node.out.shape) - len(dims.offset_dims)
        others = dims.offset_dims
    else:
        rows, start = dims.inserted_window_dims, dims.scatter_dims_to_operand_dims
        batching = dims.operand_batching_dims
        others = dims.update_window_dims
        count = len(node.inputs[2].shape) - len(others)
    if tuple(rows) != (0,) or tuple(start) != (0,) or batching or count != 1:
        return None
    if tuple(others) != tuple(range(1, 1 + len(others))):
        return None
    return _index_origin(indices), count


def _index_origin(value: Value) -> Value:
    """Integers, behind what makes negative ones count from the end."""
    while value.node is not None:
        node = value.node
        if node.name in (*SAME, *RESHAPES):
            value = node.inputs[0]
        elif node.name == "select_n":
            cases = [_shifted(v) for v in node.inputs[1:]]
            if any(c is not cases[0] for c in cases):
                break
            value = cases[0]
        else:
            break
    return value


def _shifted(value: Value) -> Value:
    if value.node is not None and value.node.name == "add":
        value = value.node.inputs[0]
    return value


def gathered(node: Node, labels: Labels) -> Labels | None:
    rows = looked_up(node)
    if rows is None or any(
        a != b for a, b in zip(node.params["slice_sizes"][1:], node.inputs[0].shape[1:], strict=True)
    ):
        return None
    (n,) = node.out.shape[:1]
    if is_constant(labels[0]):
        return (*constant((n,)), *labels[1:])
    return ((((n, (("rows", rows[0], labels[0]), 1))),), *labels[1:])


def translated(labels: Labels, dims: Mapping[int, int]) -> Labels:
    """Labels that say other numbers for a stabiliser's dimensions."""

    def one(label: Any) -> Any:
        if label is None:
            return None
        if isinstance(label[0], int):
            return dims.get(label[0], label[0]), label[1]
        tag, rows, inner = label[0]
        return (tag, rows, tuple((n, one(a)) for n, a in inner)), label[1]

    return tuple(tuple((n, one(a)) for n, a in dim) for dim in labels)
