"""The ways from the elements of a value x to those of a value that is linear in it.

Elements of x are numbered as they lie in memory, in row-major order. A `Way` says of each element of a value, by
its coordinates e, which elements of x come to it: those of number offset + strides·e + Σ_k t_k u_k, with
0 ≤ u_k < n_k for the dimensions (t_k, n_k) that were summed over. A value with several ways is a sum of them, or
was put together from them. So movements of elements, slices and sums are known without a look at any array.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from lrpjax.core.graph import Node, Value, known_zero

Steps = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Way:
    """kernel: the node that multiplies, once the way has passed it. sign: −1 where what comes along it is
    subtracted. low, high: the box of coordinates that it comes to. inner: strides and sizes of what was summed."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    offset: int
    strides: tuple[int, ...]
    inner: Steps = ()
    kernel: Node | None = None
    sign: int = 1

    def but(self, **changes) -> "Way":
        return dataclasses.replace(self, **changes)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(h - a for a, h in zip(self.low, self.high, strict=True))

    @property
    def empty(self) -> bool:
        return any(n <= 0 for n in self.sizes)


def whole(shape: Sequence[int]) -> Way:
    """The way of a value to itself."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return Way((0,) * len(shape), tuple(shape), 0, tuple(reversed(strides)))


def moved(node: Node, place: int, output: int, way: Way) -> Way | None:
    """A way through a node that moves elements, from the operand at a place to an output; None if it cannot be
    followed."""
    mover = _MOVERS.get(node.name)
    return None if mover is None else mover(node, place, output, way)


def _picked(way: Way, dims: Sequence[int]) -> Way:
    take = lambda values: tuple(values[d] for d in dims)
    return way.but(low=take(way.low), high=take(way.high), strides=take(way.strides))


def _same(node, place, output, way):
    return way


def _transpose(node, place, output, way):
    return _picked(way, node.params["permutation"])


def _squeeze(node, place, output, way):
    gone = {d % len(way.low) for d in node.params["dimensions"]}
    return _picked(way, [d for d in range(len(way.low)) if d not in gone])


def spread(way: Way, old: Sequence[int], new: Sequence[int], dims: Sequence[int]) -> Way:
    """A way, not an empty one, to a value that is broadcast to another shape; dims: where its dimensions go."""
    low, high, strides = [0] * len(new), list(new), [0] * len(new)
    for d, to in enumerate(dims):
        if old[d] == new[to]:
            low[to], high[to], strides[to] = way.low[d], way.high[d], way.strides[d]
    return way.but(low=tuple(low), high=tuple(high), strides=tuple(strides))


def _broadcast(node, place, output, way):
    return spread(way, node.inputs[0].shape, node.out.shape, node.params["broadcast_dimensions"])


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]] | None:
    """The dimensions before and after a reshape in groups of the same size, or None for what is empty."""
    if 0 in old:
        return None
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start, begin, a, b = i, j, 1, 1
        if i < len(old):
            a, i = old[i], i + 1
        if j < len(new):
            b, j = new[j], j + 1
        while a != b:
            if a < b:
                a, i = a * old[i], i + 1
            else:
                b, j = b * new[j], j + 1
        found.append((range(start, i), range(begin, j)))
    return found


def _reshape(node, place, output, way):
    old, new = node.inputs[0].shape, node.out.shape
    together = groups(old, new)
    if together is None or node.params.get("dimensions") is not None:
        return None
    low, high, strides = [0] * len(new), list(new), [0] * len(new)
    for before, after in together:
        real, made = [d for d in before if old[d] != 1], [d for d in after if new[d] != 1]
        if len(real) == 1 and len(made) == 1:
            low[made[0]], high[made[0]] = way.low[real[0]], way.high[real[0]]
            strides[made[0]] = way.strides[real[0]]
            continue
        if any((way.low[d], way.high[d]) != (0, old[d]) for d in real):
            return None
        if any(way.strides[d] != way.strides[k] * old[k] for d, k in itertools.pairwise(real)):
            return None
        step = way.strides[real[-1]] if real else 0
        for d in reversed(made):
            strides[d] = step
            step *= new[d]
    return way.but(low=tuple(low), high=tuple(high), strides=tuple(strides))


def _slice(node, place, output, way):
    starts, limits = node.params["start_indices"], node.params["limit_indices"]
    return _sliced(way, starts, limits, node.params["strides"] or (1,) * len(starts))


def _sliced(way: Way, starts, limits, steps) -> Way:
    low, high, offset, strides = [], [], way.offset, []
    for d, (start, limit, step) in enumerate(zip(starts, limits, steps, strict=True)):
        size = -(-(limit - start) // step)
        low.append(max(0, -((start - way.low[d]) // step)))
        high.append(min(size, -((start - way.high[d]) // step)))
        offset += way.strides[d] * start
        strides.append(way.strides[d] * step)
    return way.but(low=tuple(low), high=tuple(high), offset=offset, strides=tuple(strides))


def _split(node, place, output, way):
    axis, sizes = node.params["axis"], node.params["sizes"]
    shape = node.inputs[0].shape
    starts, limits = [0] * len(shape), list(shape)
    starts[axis] = sum(sizes[:output])
    limits[axis] = starts[axis] + sizes[output]
    return _sliced(way, starts, limits, (1,) * len(shape))


def _rev(node, place, output, way):
    low, high, offset, strides = list(way.low), list(way.high), way.offset, list(way.strides)
    for d in node.params["dimensions"]:
        n = node.out.shape[d]
        low[d], high[d] = n - way.high[d], n - way.low[d]
        offset += strides[d] * (n - 1)
        strides[d] = -strides[d]
    return way.but(low=tuple(low), high=tuple(high), offset=offset, strides=tuple(strides))


def _shifted(way: Way, by: Sequence[int], shape: Sequence[int]) -> Way:
    low = tuple(max(0, a + s) for a, s in zip(way.low, by, strict=True))
    high = tuple(min(n, h + s) for h, s, n in zip(way.high, by, shape, strict=True))
    return way.but(
        low=low, high=high, offset=way.offset - sum(t * s for t, s in zip(way.strides, by, strict=True))
    )


def _pad(node, place, output, way):
    config = node.params["padding_config"]
    if place != 0 or any(interior for _, _, interior in config):
        return None
    return _shifted(way, [int(a) for a, _, _ in config], node.out.shape)


def _concatenate(node, place, output, way):
    axis = node.params["dimension"]
    by = [0] * len(node.out.shape)
    by[axis] = sum(v.shape[axis] for v in node.inputs[:place])
    return _shifted(way, by, node.out.shape)


_MOVERS = {
    "transpose": _transpose,
    "squeeze": _squeeze,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "rev": _rev,
    "pad": _pad,
    "concatenate": _concatenate,
    **dict.fromkeys(("convert_element_type", "copy", "reduce_precision", "optimization_barrier"), _same),
}
MOVERS = frozenset(_MOVERS)


# ------------------------------------------------------------------------------------------------ sums and kernels


def summed(way: Way, dims: Sequence[int], kept: Sequence[int]) -> Way:
    """A way on which some dimensions are summed over; `kept` are those that stay, in their new order."""
    inner = list(way.inner)
    offset = way.offset
    for d in dims:
        offset += way.strides[d] * way.low[d]
        inner.append((way.strides[d], way.sizes[d]))
    return _picked(way, kept).but(offset=offset, inner=tuple(inner))


def windowed(way: Way, d: int, size: int, step: int, dilation: int, low: int, outputs: int) -> Way:
    """A way on which a dimension is summed in windows, behind `low` zeros: output o has those of o·step − low +
    k·dilation."""
    offset, strides = way.offset - low * way.strides[d], list(way.strides)
    strides[d] *= step
    inner = (*way.inner, (way.strides[d] * dilation, size))
    box = lambda old, new: (*old[:d], new, *old[d + 1 :])
    return way.but(
        low=box(way.low, 0), high=box(way.high, outputs), offset=offset, strides=tuple(strides), inner=inner
    )


def through_sum(node: Node, way: Way) -> tuple[Way, list[int]] | None:
    """A way through a sum of one value's elements, and the dimensions of its operand that are summed."""
    (x,), p = node.carriers(), node.params
    if node.name == "reduce_sum":
        axes = list(p["axes"])
        return summed(way, axes, [d for d in range(len(x.shape)) if d not in axes]), axes
    if node.name == "cumsum":
        d = p["axis"]
        inner = (*way.inner, (way.strides[d], way.sizes[d]))
        offset, strides = way.offset + way.strides[d] * way.low[d], list(way.strides)
        strides[d] = 0
        box = lambda old, new: (*old[:d], new, *old[d + 1 :])
        new = way.but(offset=offset, strides=tuple(strides), inner=inner)
        return new.but(low=box(way.low, 0), high=box(way.high, x.shape[d])), [d]
    if node.name == "scatter-add":
        numbers = p["dimension_numbers"]
        updates = node.inputs[2].shape
        if numbers.operand_batching_dims or not known_zero(node.inputs[0]):
            return None
        windows = list(numbers.update_window_dims)
        kept = [d for d in range(len(node.out.shape)) if d not in numbers.inserted_window_dims]
        if any(updates[d] != node.out.shape[to] for d, to in zip(windows, kept, strict=True)):
            return None
        axes = [d for d in range(len(updates)) if d not in windows]
        return spread(summed(way, axes, windows), [updates[d] for d in windows], node.out.shape, kept), axes
    if node.name == "reduce_window_sum":
        axes = [d for d, n in enumerate(p["window_dimensions"]) if n > 1]
        steps, padding = p["window_strides"], p["padding"]
        base, dilation = p["base_dilation"], p["window_dilation"]
        if any(n > 1 for n in base) or any(
            (steps[d] != 1 or tuple(padding[d]) != (0, 0)) for d in range(len(x.shape)) if d not in axes
        ):
            return None
        for d in axes:
            n = p["window_dimensions"][d]
            way = windowed(way, d, n, steps[d], dilation[d], padding[d][0], node.out.shape[d])
        return way, axes
    return None


def through_kernel(node: Node, place: int, x: Value, way: Way) -> Way | None:
    """A way through a dot, or another multiplication with constants, that x enters at a place."""
    new: Way | None = None
    if node.name == "dot_general":
        contract, batch = (
            node.params["dimension_numbers"][0][place],
            node.params["dimension_numbers"][1][place],
        )
        free = [d for d in range(len(x.shape)) if d not in contract and d not in batch]
        others = len(node.out.shape) - len(batch) - len(free)
        new = summed(way, contract, [*batch, *free])
        before = 0 if place == 0 else others
        dims = [*range(len(batch)), *(len(batch) + before + k for k in range(len(free)))]
        shape = [x.shape[d] for d in (*batch, *free)]
        new = spread(new, shape, node.out.shape, dims)
    elif node.name == "conv_general_dilated" and place == 0:
        p = node.params
        spec, out = p["dimension_numbers"].lhs_spec, p["dimension_numbers"].out_spec
        kernel = p["dimension_numbers"].rhs_spec
        if (
            p["feature_group_count"] != 1
            or p["batch_group_count"] != 1
            or any(n != 1 for n in p["lhs_dilation"])
        ):
            return None
        new = way
        for k in range(2, len(spec)):
            size, d = node.inputs[1].shape[kernel[k]], spec[k]
            step, dilation, low = p["window_strides"][k - 2], p["rhs_dilation"][k - 2], p["padding"][k - 2][0]
            new = windowed(new, d, size, step, dilation, low, node.out.shape[out[k]])
        kept = [spec[0], *spec[2:]]
        shape = [node.out.shape[out[0]], *(node.out.shape[d] for d in out[2:])]
        new = spread(summed(new, [spec[1]], kept), shape, node.out.shape, [out[0], *out[2:]])
    elif node.name == "mul" or (node.name == "div" and place == 0):
        new = spread(way, x.shape, node.out.shape, range(len(x.shape)))
    return None if new is None else new.but(kernel=node)


# ------------------------------------------------------------------------------------------------- do they meet?


def reaches_zero(total: int, steps: Sequence[tuple[int, int, int]]) -> bool:
    """Whether total + Σ t v = 0 for some integers v, each from its a to its b; steps are triples (t, a, b).

    Where that takes too long to find out, the answer is yes.
    """
    steps = sorted((s for s in steps if s[0] != 0), key=lambda s: -abs(s[0]))
    low, high = [0], [0]
    for t, a, b in reversed(steps):
        low.append(low[-1] + min(t * a, t * b))
        high.append(high[-1] + max(t * a, t * b))
    low.reverse()
    high.reverse()
    left = 2000

    def search(total: int, k: int) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            return True
        if not low[k] <= -total <= high[k]:
            return False
        if k == len(steps):
            return total == 0
        t, a, b = steps[k]
        # −total − t v has to lie between what the others can give.
        ends = sorted(((-total - high[k + 1]) / t, (-total - low[k + 1]) / t))
        first, last = max(a, int(ends[0]) - 1), min(b, int(ends[1]) + 1)
        return any(search(total + t * v, k + 1) for v in range(first, last + 1))

    return search(total, 0)


def apart(way: Way) -> bool:
    """Whether a way brings no element of x to an output twice: the strides of what is summed nest."""
    reach = 0
    for t, n in sorted((abs(t), n) for t, n in way.inner if n > 1):
        if t <= reach:
            return False
        reach += t * (n - 1)
    return True


def overlap(a: Way, b: Way) -> bool:
    """Whether two ways come to the same output."""
    boxes = zip(a.low, a.high, b.low, b.high, strict=True)
    return all(max(low, other) < min(high, limit) for low, high, other, limit in boxes)


def meet(a: Way, b: Way) -> bool:
    """Whether two ways bring the same element of x to the same output."""
    if not overlap(a, b):
        return False
    steps, total = [], a.offset - b.offset
    for d, (t, other) in enumerate(zip(a.strides, b.strides, strict=True)):
        low, high = max(a.low[d], b.low[d]), min(a.high[d], b.high[d]) - 1
        steps.append((t - other, low, high))
    steps += [(t, 0, n - 1) for t, n in a.inner] + [(-t, 0, n - 1) for t, n in b.inner]
    return reaches_zero(total, steps)


def slides(a: Way, b: Way) -> bool:
    """Whether two ways bring the same element of x to different outputs, of those that it tells apart."""
    if a.strides != b.strides:
        return False
    steps = [(t, 1 - n, n - 1) for t, n in zip(a.strides, a.sizes, strict=True) if t and n > 1]
    steps += [(t, 0, n - 1) for t, n in a.inner] + [(-t, 0, n - 1) for t, n in b.inner]
    return reaches_zero(a.offset - b.offset, steps)
