"""A function that was run once and frozen: the linear map from the cotangents of its output, and of its named values,
to those of all that stands before them.
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core import compat, ends
from lrpjax.core.dataflow import Flow
from lrpjax.core.frame import Tap
from lrpjax.core.graph import Node, Value
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance, shapes_of
from lrpjax.core.units import Unit
from lrpjax.errors import PathError, TargetError
from lrpjax.rules import PLAIN, divide

INPUT, OUTPUT = "input", "output"
"""What the ends of the program are called where edges name them."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A value of the program. loops: the steps of the loops around it. plain: whether its cotangent is relevance, or
    relevance divided by the value; None where relevance never comes. leads: whether the output depends on it.
    ways: the numbers of the named values to which relevance can go from it, as bits."""

    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[int, ...]
    plain: bool | None
    leads: bool
    ways: int


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """What is known of a linearised program without its arrays. inputs: the places of the explained arrays, None for
    those that are no floating-point numbers. several: whether several arguments are explained. names: which of `taps` a
    path names. nonlinear: the places of units whose backward pass is no linear map."""

    method: str
    treedef: Any
    several: bool
    inputs: tuple[Place | None, ...]
    outputs: tuple[Place, ...]
    output_tree: Any
    taps: tuple[Place, ...]
    names: dict[str, int]
    nonlinear: tuple[str, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("output", "seen", "leaves", "back"),
    meta_fields=("layout",),
)
@dataclasses.dataclass(frozen=True)
class Frozen:
    """A frozen program. output: the function's. seen: its named values. leaves: what is explained. back: its
    vector-Jacobian product. Cotangents are lists, of the outputs and of the named values (`layout.taps`), each in its
    own form, relevance or relevance divided by the value."""

    output: Any
    seen: list[jax.Array]
    leaves: list[jax.Array]
    back: Callable[..., Any]
    layout: Layout

    # ------------------------------------------------------------------------------------------ names and their places

    def named(self, path: str) -> tuple[int, Any]:
        """The number of a named value, and the step of its loops that the path addresses, if it does."""
        names, taps = self.layout.names, self.layout.taps
        name, index = (path, None) if path in names else address(path)
        if name not in names:
            known = ", ".join(names) or "(none; `at` names them)"
            raise PathError(f"no value is named {path!r} here; named are {known}")
        loops = taps[names[name]].loops
        if index is None:
            return names[name], None
        if len(index) != len(loops) or not all(-n <= i < n for i, n in zip(index, loops, strict=True)):
            why = f"stands in loops of {', '.join(map(str, loops))} steps" if loops else "stands in no loop"
            raise PathError(f"{path!r} addresses no step: {name!r} {why}")
        return names[name], tuple(i % n for i, n in zip(index, loops, strict=True))

    def node(self, name: str, border: str) -> tuple[int | None, Any]:
        """A node of an edge: a named value, or None for the border."""
        if name == border:
            return None, None
        number, index = self.named(name)
        if border == OUTPUT and not self.layout.taps[number].leads:
            raise PathError(f"{name!r} does not lead to the output: no relevance comes to it")
        return number, index

    def nodes(self, wanted: Sequence[str] | None, border: str) -> dict[str, tuple[int | None, Any]]:
        """Nodes by name; of a value in loops, one for each step."""
        layout, nodes = self.layout, {}
        if wanted is None:
            led = [name for name, i in layout.names.items() if border == INPUT or layout.taps[i].leads]
            wanted = [border, *led]
        for name in [wanted] if isinstance(wanted, str) else wanted:
            number, index = self.node(name, border)
            loops = () if number is None or index is not None else layout.taps[number].loops
            if loops:
                nodes |= {f"{name}[{', '.join(map(str, i))}]": (number, i) for i in np.ndindex(*loops)}
            else:
                nodes[name] = number, index
        return nodes

    def way(self, source: int | None, target: int | None) -> bool:
        """Whether relevance has a way from one place, or the output, to another, or the input."""
        layout = self.layout
        if target is None:
            places = layout.inputs if source is None else [layout.taps[source]]
            return any(p.leads for p in places if p is not None)
        bit = len(layout.taps) if source is None else source
        return bool(layout.taps[target].ways >> bit & 1)

    # -------------------------------------------------------------------------------------------- the map, and its ends

    def silence(self) -> tuple[list[Any], list[Any]]:
        """Cotangents of the outputs and of the named values with which nothing begins."""
        zeros = lambda places: [jnp.zeros(p.shape, p.dtype) for p in places]
        return zeros(self.layout.outputs), zeros(self.layout.taps)

    def gates(self, stop: str | Iterable[str], direct: bool) -> list[Any]:
        """The gate of every named value: 1 where relevance goes on, and 0 where it stops."""
        gates = [np.full(p.loops, 0.0 if direct else 1.0, np.float32) for p in self.layout.taps]
        for path in [stop] if isinstance(stop, str) else stop:
            number, index = self.named(path)
            gates[number][() if index is None else index] = 0.0
        return [jnp.asarray(g) for g in gates]

    def begun(self, seed: Any, start: str | None) -> tuple[list[Any], list[Any]]:
        """Cotangents that begin with a relevance, in each value's own form."""
        layout = self.layout
        outs, starts = self.silence()
        if start is None:
            given = jax.tree.leaves(output_relevance(self.output, seed, layout.method))
            ys = jax.tree.leaves(self.output)
            outs = [self.cotangent(*one, "the output") for one in zip(given, ys, layout.outputs, strict=True)]
        else:
            number, index = self.node(start, OUTPUT)
            h = part_of(self.seen[number], index)
            given = output_relevance(h, seed, layout.method)
            c = self.cotangent(given, h, layout.taps[number], repr(start))
            starts[number] = placed(starts[number], index, c)
        return outs, starts

    def seeded(self, seed: Any, unit: Any, start: str | None) -> tuple[list[Any], list[Any]]:
        """Cotangents that begin with a relevance, or with one per unit."""
        if unit is None:
            return self.begun(seed, start)
        if seed is not None:
            raise TargetError("this takes a seed or a unit, but was given both")
        units, starts = self.silence()
        if start is None:
            units = jax.tree.leaves(fitting(unit, self.output, "the unit", "the output"))
        else:
            number, index = self.node(start, OUTPUT)
            unit = fitting(unit, part_of(self.seen[number], index), "the unit", repr(start))
            starts[number] = placed(starts[number], index, unit)
        return self.from_units(units, starts)

    def from_units(self, units: list[Any], starts: list[Any]) -> tuple[list[Any], list[Any]]:
        """Cotangents in each value's own form, from coefficients."""
        turn = lambda c, h, p: (c * h if p.plain and self.layout.method == "relevance" else c).astype(p.dtype)
        ys = jax.tree.leaves(self.output)
        return [turn(*one) for one in zip(units, ys, self.layout.outputs, strict=True)], [
            turn(*one) for one in zip(starts, self.seen, self.layout.taps, strict=True)
        ]

    def run(self, outs: list[Any], starts: list[Any], gates: list[Any]) -> tuple[list[Any], list[Any]]:
        """The cotangents that come to the inputs (None for integers) and to the named values from above."""
        floating, taps = self.back((outs, list(zip(starts, gates, strict=True))))
        given = iter(floating)
        return [None if p is None else next(given) for p in self.layout.inputs], taps

    def came(
        self, inputs: list[Any], taps: list[Any], turn: Callable[..., Any]
    ) -> tuple[Any, dict[str, jax.Array]]:
        """What cotangents that came to the inputs and the named values stand for, as `turn` says: in the structure of
        the input, and by name."""
        places = zip(inputs, self.leaves, self.layout.inputs, strict=True)
        inputs = [None if p is None else turn(c, h, p) for c, h, p in places]
        taps = [turn(c, h, p) for c, h, p in zip(taps, self.seen, self.layout.taps, strict=True)]
        return self.explained(inputs), {name: taps[i] for name, i in self.layout.names.items()}

    def explained(self, leaves: list[Any]) -> Any:
        """The structure of what is explained, with None for integers."""
        kept = [None if p is None else leaf for leaf, p in zip(leaves, self.layout.inputs, strict=True)]
        whole = jax.tree.unflatten(self.layout.treedef, kept)
        return tuple(whole) if self.layout.several else whole[0]

    def cotangent(self, R: Any, h: jax.Array, place: Place, where: str) -> jax.Array:
        """The cotangent, in a place's own form, that stands for a relevance."""
        R = jnp.asarray(R).astype(h.dtype)
        if place.plain or self.layout.method != "relevance":
            return R
        return per_unit(R, h, where)

    def relevance(self, c: jax.Array, h: jax.Array, place: Place) -> jax.Array:
        """The relevance that a cotangent stands for."""
        if place.plain is None:
            return jnp.zeros_like(h)
        method = self.layout.method
        return c if method == "gradient" or (place.plain and method == "relevance") else c * h

    def coefficient(self, c: jax.Array, h: jax.Array, place: Place) -> jax.Array:
        """The coefficient that a cotangent stands for."""
        if place.plain is None:
            return jnp.zeros_like(h)
        return divide(c, h) if place.plain and self.layout.method == "relevance" else c


def per_unit(R: jax.Array, h: jax.Array, where: str) -> jax.Array:
    """A relevance divided by the value that has it.

    Raises:
        TargetError: it is given to elements that are exactly 0, where that is known; else it is NaN there.
    """
    lost = (h == 0) & (R != 0)
    if compat.is_known(lost) and lost.any():
        raise TargetError(
            f"the seed gives relevance to elements of {where} that are exactly 0, of which no share can be said: seed "
            "with multiples of the value (`Linearised.coefficients` takes a unit, which is relevance per value)"
        )
    return jnp.where(lost, jnp.asarray(jnp.nan, R.dtype), divide(R, h))


def address(path: str) -> tuple[str, tuple[int, ...] | None]:
    """A path with the step that it addresses, "path[3]" or "path[3, 1]", taken apart."""
    found = re.fullmatch(r"(.+)\[\s*(-?\d+(?:\s*,\s*-?\d+)*)\s*\]", path)
    return (found[1], tuple(map(int, found[2].split(",")))) if found else (path, None)


def part_of(array: jax.Array, index: Any) -> jax.Array:
    return array if index is None else array[index]


def placed(array: jax.Array, index: Any, part: jax.Array) -> jax.Array:
    """Zeros of an array's shape, but for a part of it."""
    return jnp.zeros_like(array).at[... if index is None else index].set(part.astype(array.dtype))


def fitting(given: Any, like: Any, what: str, where: str) -> Any:
    """A tree of arrays in the types of another.

    Raises:
        TargetError: it has another structure or other shapes.
    """
    same = jax.tree.structure(given) == jax.tree.structure(like)
    if not same or jax.tree.map(jnp.shape, given) != jax.tree.map(jnp.shape, like):
        raise TargetError(f"{what} has {shapes_of(given)}, but {where} has {shapes_of(like)}")
    return jax.tree.map(lambda g, h: jnp.asarray(g).astype(h.dtype), given, like)


def freeze(program: Program) -> Frozen:
    """Runs a program, which was made with its output's relevance per unit.

    Raises:
        PathError: a named value is called as an end of the program is.
    """
    count = len(program.output_leaves()[0])
    floating = [i for i, leaf in enumerate(program.leaves) if compat.is_float(leaf)]
    layout = _layout_of(program)

    def run(given: list, zeros: list) -> tuple[list, list]:
        leaves = dict(enumerate(program.leaves)) | dict(zip(floating, given, strict=True))
        places = zip(zeros, layout.taps, strict=True)
        taps = {i: Tap(z, gate=jnp.ones(p.loops, jnp.float32)) for i, (z, p) in enumerate(places)}
        arrays = [*program.consts, *(leaves[i] for i in range(len(leaves)))]
        outputs, seen = program.rewritten.run(program.level, arrays, taps)
        return outputs[:count], [seen[i] for i in range(len(zeros))]

    zeros = list(program.zeros().values())
    (outputs, seen), back = jax.vjp(run, [program.leaves[i] for i in floating], zeros)
    output = jax.tree.unflatten(layout.output_tree, outputs)
    return Frozen(output, [value for value, _ in seen], list(program.leaves), back, layout)


def _layout_of(program: Program) -> Layout:
    level, routes, tapped = program.level, program.routes, program.tapped
    for name in program.taps:
        if name in (INPUT, OUTPUT):
            raise PathError(
                f"a value cannot be called {name!r} here: that is what an end of the program is called"
            )
    led = ends.way(level, program.seeded, routes, frozenset())
    inputs = level.inputs[len(program.consts) :]
    bits = {v: 1 << i for i, v in enumerate(tapped)}
    ways = _ways(program, bits, 1 << len(tapped))

    def place(value: Value) -> Place:
        shape = program.shape_of(value)
        plain = routes.form[value] == PLAIN if value in routes.reached else None
        loops = shape[: len(shape) - len(value.shape)]
        leaving = ways.get(value, 0) & (-1 if loops else ~bits.get(value, 0))
        return Place(shape, value.aval.dtype, loops, plain, value in led, leaving)

    seeded = [v for v, s in zip(level.outputs, program.seeded, strict=True) if s]
    return Layout(
        method=program.composite.method,
        treedef=program.treedef,
        several=isinstance(program.argnums, Sequence),
        inputs=tuple(place(v) if compat.is_float(v.aval) else None for v in inputs),
        outputs=tuple(map(place, seeded)),
        output_tree=jax.tree.structure(program.shapes),
        taps=tuple(map(place, tapped)),
        names={name: tapped.index(v) for name, v in program.taps.items()},
        nonlinear=tuple(
            unit.place
            for unit in level.walk()
            if unit in routes.takes and not program.assignment.propagations[unit].linear
        ),
    )


def _ways(program: Program, bits: dict[Value, int], whole: int) -> dict[Value, int]:
    """For every value, as bits, the named values (itself, if it is one), and the input, that relevance can go to from
    it."""
    routes, level = program.routes, program.level

    def transfer(known: Flow[int], step: Unit | Node) -> Iterator[tuple[Value, int]]:
        if isinstance(step, Unit) and step in routes.takes:
            given = functools.reduce(operator.or_, (known[v] for v in routes.gives[step]), 0)
            yield from ((v, given) for v in step.outputs)

    flow = Flow(0, operator.or_, transfer, known=dict(bits))
    inputs = level.inputs[len(program.consts) :]
    borders = [0] * len(program.consts) + [whole if v in routes.reached else 0 for v in inputs]
    return flow.solve(level, borders).known
