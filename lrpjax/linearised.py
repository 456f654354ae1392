"""The linearised program: a function whose products, normalisations and activations are frozen as a composite says,
with every way of reading it.

A rewritten program is a linear map from the relevance of its output to that of all that it computes. `relevance` reads
it at the input, from the output. Here it is held as one object, which can be begun at any named value, ended at any,
read forward, and taken apart into the direct ways between named values.
"""

import dataclasses
import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._evaluate import check_positive, map_batched
from lrpjax.composites import DEFAULT, Composite
from lrpjax.core import compat, ends
from lrpjax.core.dataflow import Flow
from lrpjax.core.frame import Tap
from lrpjax.core.graph import Node, Value
from lrpjax.core.program import Program
from lrpjax.core.seeds import output_relevance, shapes_of
from lrpjax.core.units import Unit
from lrpjax.errors import PathError, RuleError, TargetError
from lrpjax.rules import PLAIN, divide

__all__ = ["INPUT", "OUTPUT", "Linearised", "Reading", "linearise"]

INPUT, OUTPUT = "input", "output"
"""What the ends of the program are called where edges name them."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=("input", "output", "at"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Reading:
    """What a linearised program was read to give: `reading[path]` at a named value, `reading.input`, `reading.output`.

    input: of the structure of what is explained, with None for arrays of integers; None in a forward reading. output:
    of the structure of the output; None in a backward reading. at: {path: array}, inside of loops stacked over the
    steps.
    """

    input: Any
    output: Any
    at: dict[str, jax.Array]

    def __getitem__(self, path: str) -> jax.Array:
        name, index = (path, None) if path in self.at else _address(path)
        if name not in self.at:
            raise PathError(f"no value is named {path!r} here; named are {', '.join(self.at) or '(none)'}")
        return _at(self.at[name], index)


@dataclasses.dataclass(frozen=True)
class _Place:
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
class _Layout:
    """What is known of a linearised program without its arrays. inputs: the places of the explained arrays, None for
    those that are no floating-point numbers. several: whether several arguments are explained. names: which of `taps` a
    path names. nonlinear: the places of units whose backward pass is no linear map."""

    method: str
    treedef: Any
    several: bool
    inputs: tuple[_Place | None, ...]
    outputs: tuple[_Place, ...]
    output_tree: Any
    taps: tuple[_Place, ...]
    names: dict[str, int]
    nonlinear: tuple[str, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("output", "_seen", "_leaves", "_back"),
    meta_fields=("_layout",),
)
@dataclasses.dataclass(frozen=True)
class Linearised:
    """A function, run once and frozen there: see `lrpjax.linearise`, which makes it.

    It is a pytree, which may be returned from and handed to functions under `jax.jit` and `jax.vmap`. output: the
    function's. values: {path: what the function computed there}. Every method below costs one backward pass (a `push`
    about two) and no forward pass.

    Seeds, as the argument `target` of `lrpjax.relevance`: None (all of it), a class, "max", an array of the shape, or a
    callable. With `start` they are those of that value in place of the output: None is the value itself, an int is its
    channel along the last axis. With composites of the gradient family they are cotangents.

    Paths are those of `at`. A value inside of a loop is stacked over its steps; "path[3]" addresses one step of it.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> def f(x):
    ...     step = lambda h, w: (lrpjax.tag(h * w, "h"), None)
    ...     return jax.lax.scan(step, x, jnp.array([2.0, 3.0]))[0]
    >>> lin = jax.jit(lambda x: lrpjax.linearise(f, lrpjax.composites.epsilon(0.0), x, at="h"))(jnp.array([1.0, 5.0]))
    >>> print(lin.values["h"][0], jnp.rint(lin.pull(start="h[0]").input), jnp.rint(lin.edge("h[0]", "h[1]")))
    [ 2. 10.] [ 2. 10.] [ 6. 30.]
    >>> jax.vmap(lambda seed: lin.pull(seed).input)(jnp.diag(lin.output)).shape
    (2, 2)
    """

    output: Any
    _seen: list[jax.Array]
    _leaves: list[jax.Array]
    _back: Callable
    _layout: _Layout

    @property
    def values(self) -> dict[str, jax.Array]:
        """What the function computed at every named value, by path; inside of loops stacked over the steps."""
        return {path: self._seen[i] for path, i in self._layout.names.items()}

    @property
    def inputs(self) -> Any:
        """What is explained, of the structure of the argument, with None for integers."""
        return self._explained(self._leaves)

    def value(self, path: str) -> jax.Array:
        """What the function computed at a named value, or at one step of it."""
        number, index = self._named(path)
        return _at(self._seen[number], index)

    def loops(self, path: str) -> tuple[int, ...]:
        """The steps of the loops around a named value, along which it is stacked."""
        return self._layout.taps[self._named(path)[0]].loops

    def pull(
        self,
        seed: Any = None,
        *,
        start: str | None = None,
        stop: str | Iterable[str] = (),
        direct: bool = False,
    ) -> Reading:
        """The relevance of the input and of every named value, R_h = h ⊙ c, for that of the output.

        Args:
            seed: the relevance that it begins with, see the class. start: the named value where it begins, in place of
                the output (`start_layer` of zennit-crp). stop: named values at which relevance is read and goes no
                further. direct: whether it goes no further than the first named value on each of its ways.

        Returns:
            A `Reading`. At `start` it is the seed. With composites of the gradient family it is the gradient, or
            input × gradient, as they say.

        Raises:
            PathError: a path is not named, or the output does not depend on `start`. TargetError: the seed does not
                fit; or it gives relevance to elements that are exactly 0 (where that is known; NaN under `jax.jit`), of
                which no share can be said: give `coefficients` a unit instead.
        """
        begun = self._begun(seed, start)
        return self._reading(*begun, self._gates(stop, direct), self._relevance)

    def coefficients(
        self,
        seed: Any = None,
        *,
        unit: Any = None,
        start: str | None = None,
        stop: str | Iterable[str] = (),
        direct: bool = False,
    ) -> Reading:
        """The coefficients c of the frozen program: relevance per unit of every value, R_h = h ⊙ c. They are there also
        where h is 0, unless a rule on the way gives relevance to zeros (flat, w², z^B): then they are 0.

        Args:
            seed: as for `pull`. unit: the coefficients of the output (or of `start`), in place of its relevance:
                floating-point numbers of its structure and shapes. start, stop, direct: as for `pull`.

        Returns:
            A `Reading`. With composites of the gradient family these are the gradients.

        Raises:
            As `pull`. TargetError also if seed and unit are given.
        """
        begun = self._seeded(seed, unit, start)
        return self._reading(*begun, self._gates(stop, direct), self._coefficient)

    def push(
        self, path: str | None, direction: Any, *, stop: str | Iterable[str] = (), direct: bool = False
    ) -> Reading:
        """The change of the output, and of every later named value, in the frozen program, when a named value changes.

        It is the transpose of `coefficients`: ⟨push(path, u).output, c⟩ = ⟨u, coefficients(unit=c)[path]⟩ for all u and
        c. With u = h ⊙ m and c = s / y that is ⟨push(path, h ⊙ m).output, s / y⟩ = ⟨m, pull(s)[path]⟩: what a token, a
        head or a neuron contributes to all logits is push(path, h ⊙ m), m being 1 there and 0 elsewhere.

        Args:
            path: the value that changes; None for the input. direction: by how much, in the shape of the value, or the
                structure of the input. stop: named values that stay as they are. direct: whether all do, so that the
                change of each is what comes to it without passing through another.

        Returns:
            A `Reading` of the output and of the values; at `path` it is the direction.

        Raises:
            RuleError: the rules make a backward pass that is no linear map (deconvnet, guided backprop) and has no
                transpose. TargetError: the direction does not fit. PathError: the path is not named.
        """
        layout = self._layout
        if layout.nonlinear:
            raise RuleError(
                "push reads the program forward, which has to be linear; these rules are not: "
                f"{'; '.join(layout.nonlinear)}"
            )
        where = "the input" if path is None else repr(path)
        value = self.inputs if path is None else self.value(path)
        direction = _fitting(direction, value, "the direction", where)
        gates = self._gates(stop, direct)

        def read(units: list, starts: list) -> Any:
            begun = self._from_units(units, starts)
            reading = self._reading(*begun, gates, self._coefficient)
            return reading.input if path is None else reading[path]

        zero, back = jax.vjp(read, *self._silence())
        change, changes = back(jax.tree.map(lambda u, z: u.astype(z.dtype), direction, zero))
        output = jax.tree.unflatten(layout.output_tree, change)
        return Reading(None, output, {name: changes[i] for name, i in layout.names.items()})

    def edge(self, source: str | None, target: str | None = None, seed: Any = None) -> Any:
        """The relevance that goes from one named value to another without passing through a third.

        It is what `source` gets of the relevance of `target` directly, R_{source ← target}. The linear map itself is
        `push(source, u, direct=True)[target]`, or `coefficients(unit=c, start=target, direct=True)[source]`.

        Args:
            source: the earlier value; None or "input" for the input. target: the later one; None or "output" for the
                output. seed: of the output, as for `pull`.

        Returns:
            Relevance in the shape of `source`.

        Raises:
            PathError: a path is not named, or there is no way from the one to the other.
        """
        source, target = source or INPUT, target or OUTPUT
        (begin, index), (end, _) = self._node(target, OUTPUT), self._node(source, INPUT)
        if not self._way(end, begin):
            raise PathError(f"no way leads from {source!r} to {target!r}")
        outs, starts = self._begun(seed, None)
        if begin is not None:
            inner = self._run(outs, starts, self._gates((), False))[1]
            outs, starts = self._silence()
            starts[begin] = _put(starts[begin], index, _at(inner[begin], index))
        reading = self._reading(outs, starts, self._gates((), True), self._relevance, begun=False)
        return reading.input if end is None else reading[source]

    def edges(
        self,
        seed: Any = None,
        *,
        unit: Any = None,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        change: Mapping[str, Any] | None = None,
        reduce: Callable = jnp.sum,
        batch: int = 16,
    ) -> dict[tuple[str, str], Any]:
        """The relevance of all edges, {(source, target): `reduce` of `edge(source, target, seed)`}.

        One backward pass gives the relevance of the targets, and one more for each target the edges that end there, of
        which `batch` run at once. Of what comes to a target, biases and stabilisers absorb what its edges do not have.

        Args:
            seed, unit: of the output, as for `coefficients`. sources, targets: paths, "input" and "output"; None for
                all. A value in a loop stands for all its steps, "path[0]", "path[1]", …. change: what the coefficients
                of sources are multiplied by in place of their values, in full: {path: array}; a source that is not in
                it has edges of its relevance. reduce: makes of relevance, in the shape of a source (in the structure
                of the input), what is kept of it: arrays. batch: targets at once.

        Returns:
            The pairs between which the program has a way; in loops also such between whose steps none leads, with 0.

        Raises:
            PathError: a path is not named.
        """
        check_positive("batch", batch)
        begins = self._nodes(sources, INPUT)
        ends = self._nodes(targets, OUTPUT)
        first, silent = self._seeded(seed, unit, None)
        change = {p: _fitting(u, self.values[p], "the change", repr(p)) for p, u in (change or {}).items()}
        inner = self._run(first, silent, self._gates((), False))[1]

        def one(number: jax.Array) -> list:
            outs, starts = self._silence()
            for k, (tap, index) in enumerate(ends.values()):
                mine = lambda c, k=k: jnp.where(number == k, c, jnp.zeros_like(c))
                if tap is None:
                    outs = [mine(c) for c in first]
                else:
                    starts[tap] = starts[tap] + _put(starts[tap], index, mine(_at(inner[tap], index)))
            taken = self._run(outs, starts, self._gates((), True))
            reading = self._read(*taken, self._relevance)
            if change:
                slopes = self._read(*taken, self._coefficient)
                changed = {p: c * slopes.at[p] for p, c in change.items()}
                reading = dataclasses.replace(reading, at=reading.at | changed)
            return [
                reduce(reading.input if tap is None else reading[path]) for path, (tap, _) in begins.items()
            ]

        found = map_batched(one, jnp.arange(len(ends)), batch)
        return {
            (source, target): jax.tree.map(lambda r, k=k: r[k], kept)
            for k, (target, (end, _)) in enumerate(ends.items())
            for kept, (source, (begin, _)) in zip(found, begins.items(), strict=True)
            if source != target and self._way(begin, end)
        }

    # ------------------------------------------------------------------------------------------ names and their places

    def _named(self, path: str) -> tuple[int, Any]:
        """The number of a named value, and the step of its loops that the path addresses, if it does."""
        names, taps = self._layout.names, self._layout.taps
        name, index = (path, None) if path in names else _address(path)
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

    def _node(self, name: str, border: str) -> tuple[int | None, Any]:
        """A node of an edge: a named value, or None for the border."""
        if name == border:
            return None, None
        number, index = self._named(name)
        if border == OUTPUT and not self._layout.taps[number].leads:
            raise PathError(f"{name!r} does not lead to the output: no relevance comes to it")
        return number, index

    def _nodes(self, wanted: Sequence[str] | None, border: str) -> dict[str, tuple[int | None, Any]]:
        """Nodes by name; of a value in loops, one for each step."""
        layout, nodes = self._layout, {}
        if wanted is None:
            led = [name for name, i in layout.names.items() if border == INPUT or layout.taps[i].leads]
            wanted = [border, *led]
        for name in [wanted] if isinstance(wanted, str) else wanted:
            number, index = self._node(name, border)
            loops = () if number is None or index is not None else layout.taps[number].loops
            if loops:
                nodes |= {f"{name}[{', '.join(map(str, i))}]": (number, i) for i in np.ndindex(*loops)}
            else:
                nodes[name] = number, index
        return nodes

    def _way(self, source: int | None, target: int | None) -> bool:
        """Whether relevance has a way from one place, or the output, to another, or the input."""
        layout = self._layout
        if target is None:
            places = layout.inputs if source is None else [layout.taps[source]]
            return any(p.leads for p in places if p is not None)
        bit = len(layout.taps) if source is None else source
        return bool(layout.taps[target].ways >> bit & 1)

    # -------------------------------------------------------------------------------------------- the map, and its ends

    def _silence(self) -> tuple[list, list]:
        """Cotangents of the outputs and of the named values with which nothing begins."""
        zeros = lambda places: [jnp.zeros(p.shape, p.dtype) for p in places]
        return zeros(self._layout.outputs), zeros(self._layout.taps)

    def _gates(self, stop: str | Iterable[str], direct: bool) -> list:
        """The gate of every named value: 1 where relevance goes on, and 0 where it stops."""
        gates = [np.full(p.loops, 0.0 if direct else 1.0, np.float32) for p in self._layout.taps]
        for path in [stop] if isinstance(stop, str) else stop:
            number, index = self._named(path)
            gates[number][() if index is None else index] = 0.0
        return [jnp.asarray(g) for g in gates]

    def _begun(self, seed: Any, start: str | None) -> tuple[list, list]:
        """Cotangents that begin with a relevance, in each value's own form."""
        layout = self._layout
        outs, starts = self._silence()
        if start is None:
            given = jax.tree.leaves(output_relevance(self.output, seed, layout.method))
            ys = jax.tree.leaves(self.output)
            outs = [
                self._cotangent(*one, "the output") for one in zip(given, ys, layout.outputs, strict=True)
            ]
        else:
            number, index = self._node(start, OUTPUT)
            h = _at(self._seen[number], index)
            given = output_relevance(h, seed, layout.method)
            c = self._cotangent(given, h, layout.taps[number], repr(start))
            starts[number] = _put(starts[number], index, c)
        return outs, starts

    def _seeded(self, seed: Any, unit: Any, start: str | None) -> tuple[list, list]:
        """Cotangents that begin with a relevance, or with one per unit."""
        if unit is None:
            return self._begun(seed, start)
        if seed is not None:
            raise TargetError("this takes a seed or a unit, but was given both")
        units, starts = self._silence()
        if start is None:
            units = jax.tree.leaves(_fitting(unit, self.output, "the unit", "the output"))
        else:
            number, index = self._node(start, OUTPUT)
            unit = _fitting(unit, _at(self._seen[number], index), "the unit", repr(start))
            starts[number] = _put(starts[number], index, unit)
        return self._from_units(units, starts)

    def _from_units(self, units: list, starts: list) -> tuple[list, list]:
        """Cotangents in each value's own form, from coefficients."""
        turn = lambda c, h, p: (c * h if p.plain and self._layout.method == "relevance" else c).astype(
            p.dtype
        )
        ys = jax.tree.leaves(self.output)
        return [turn(*one) for one in zip(units, ys, self._layout.outputs, strict=True)], [
            turn(*one) for one in zip(starts, self._seen, self._layout.taps, strict=True)
        ]

    def _run(self, outs: list, starts: list, gates: list) -> tuple[list, list]:
        """The cotangents that come to the inputs (None for integers) and to the named values from above."""
        floating, taps = self._back((outs, list(zip(starts, gates, strict=True))))
        given = iter(floating)
        return [None if p is None else next(given) for p in self._layout.inputs], taps

    def _reading(self, outs: list, starts: list, gates: list, read: Callable, begun: bool = True) -> Reading:
        """What the map makes of cotangents. begun: whether what begins at a value counts there."""
        inputs, taps = self._run(outs, starts, gates)
        if begun:
            taps = [c + s for c, s in zip(taps, starts, strict=True)]
        return self._read(inputs, taps, read)

    def _read(self, inputs: list, taps: list, read: Callable) -> Reading:
        layout = self._layout
        explained = zip(inputs, self._leaves, layout.inputs, strict=True)
        inputs = [None if p is None else read(c, h, p) for c, h, p in explained]
        taps = [read(c, h, p) for c, h, p in zip(taps, self._seen, layout.taps, strict=True)]
        return Reading(self._explained(inputs), None, {name: taps[i] for name, i in layout.names.items()})

    def _explained(self, leaves: list) -> Any:
        """The structure of what is explained, with None for integers."""
        kept = [None if p is None else leaf for leaf, p in zip(leaves, self._layout.inputs, strict=True)]
        whole = jax.tree.unflatten(self._layout.treedef, kept)
        return tuple(whole) if self._layout.several else whole[0]

    def _cotangent(self, R: Any, h: jax.Array, place: _Place, where: str) -> jax.Array:
        """The cotangent, in a place's own form, that stands for a relevance."""
        R = jnp.asarray(R).astype(h.dtype)
        if place.plain or self._layout.method != "relevance":
            return R
        lost = (h == 0) & (R != 0)
        if compat.is_known(lost) and lost.any():
            raise TargetError(
                f"the seed gives relevance to elements of {where} that are exactly 0, of which no share can be said: "
                "seed with multiples of the value, or give `coefficients` a unit, which is relevance per value"
            )
        return jnp.where(lost, jnp.asarray(jnp.nan, R.dtype), divide(R, h))

    def _relevance(self, c: jax.Array, h: jax.Array, place: _Place) -> jax.Array:
        """The relevance that a cotangent stands for."""
        if place.plain is None:
            return jnp.zeros_like(h)
        method = self._layout.method
        return c if method == "gradient" or (place.plain and method == "relevance") else c * h

    def _coefficient(self, c: jax.Array, h: jax.Array, place: _Place) -> jax.Array:
        """The coefficient that a cotangent stands for."""
        if place.plain is None:
            return jnp.zeros_like(h)
        return divide(c, h) if place.plain and self._layout.method == "relevance" else c


def _address(path: str) -> tuple[str, tuple[int, ...] | None]:
    """A path with the step that it addresses, "path[3]" or "path[3, 1]", taken apart."""
    found = re.fullmatch(r"(.+)\[\s*(-?\d+(?:\s*,\s*-?\d+)*)\s*\]", path)
    return (found[1], tuple(map(int, found[2].split(",")))) if found else (path, None)


def _at(array: jax.Array, index: Any) -> jax.Array:
    return array if index is None else array[index]


def _put(array: jax.Array, index: Any, part: jax.Array) -> jax.Array:
    """Zeros of an array's shape, but for a part of it."""
    return jnp.zeros_like(array).at[... if index is None else index].set(part.astype(array.dtype))


def _fitting(given: Any, like: Any, what: str, where: str) -> Any:
    """A tree of arrays in the types of another.

    Raises:
        TargetError: it has another structure or other shapes.
    """
    same = jax.tree.structure(given) == jax.tree.structure(like)
    if not same or jax.tree.map(jnp.shape, given) != jax.tree.map(jnp.shape, like):
        raise TargetError(f"{what} has {shapes_of(given)}, but {where} has {shapes_of(like)}")
    return jax.tree.map(lambda g, h: jnp.asarray(g).astype(h.dtype), given, like)


def linearise(
    f: Callable,
    composite: Composite | None = None,
    *primals: Any,
    at: str | Sequence[str] | None = None,
    argnums: int | Sequence[int] | None = None,
    **kwargs: Any,
) -> Linearised:
    """Runs `f(*primals)` once and returns the frozen program, to be read in every way: see `Linearised`.

    In the frozen program products, normalisations and attention are what the composite makes of them, with the values
    of this run: every value is a linear function of those before it, h = Σ J h', up to biases, and relevance is
    R = h ⊙ c with c the coefficients of the output in h (Bach et al. 2015, eq. 56, read as in Jafari et al. 2025,
    "RelP: Faithful and Efficient Circuit Discovery via Relevance Patching", section 3).

    Args:
        f, composite: as for `lrpjax.relevance`. primals: the arguments of f. at: module paths, tags and globs, as for
            `lrpjax.relevance`: the named values. argnums: which arguments are the input: None for the first (or for
            those that f says itself), as for `lrpjax.relevance`; they may be integers where `at` is given. Further
            keywords are those of f.

    Returns:
        A `Linearised`, a pytree.

    Raises:
        PathError: a name is not known, or a value is called "input" or "output". Else as `lrpjax.relevance`.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> w, v = jnp.array([[1.0, 2.0], [-1.0, 1.0]]), jnp.array([[1.0], [3.0]])
    >>> def f(x):
    ...     hidden = lrpjax.tag(jax.nn.relu(x @ w), "hidden")
    ...     return hidden @ v
    >>> x = jnp.array([2.0, 1.0])
    >>> lin = lrpjax.linearise(f, lrpjax.composites.epsilon(0.0), x, at="hidden")
    >>> print(lin.output, lin.values["hidden"], jnp.rint(lin.pull()["hidden"]), jnp.rint(lin.pull().input))
    [16.] [1. 5.] [ 1. 15.] [14.  2.]
    >>> print(jnp.rint(lin.coefficients()["hidden"]), jnp.rint(lin.push("hidden", jnp.array([0.0, 5.0])).output))
    [1. 3.] [15.]
    >>> print(jnp.rint(lin.pull(1, start="hidden").input))  # where the second hidden neuron comes from
    [4. 1.]
    """
    composite = composite or DEFAULT
    per_unit = composite.method == "relevance"
    program = Program(f, composite, primals, kwargs, argnums, at, False, per_unit=per_unit)
    program.warn()
    count = len(program.output_leaves()[0])
    floating = [i for i, leaf in enumerate(program.leaves) if compat.is_float(leaf)]
    layout = _layout_of(program)

    def run(given: list, zeros: list) -> tuple[list, list]:
        leaves = dict(enumerate(program.leaves)) | dict(zip(floating, given, strict=True))
        taps = {
            i: Tap(z, gate=jnp.ones(p.loops, jnp.float32))
            for i, (z, p) in enumerate(zip(zeros, layout.taps, strict=True))
        }
        arrays = [*program.consts, *(leaves[i] for i in range(len(leaves)))]
        outputs, seen = program.rewritten.run(program.level, arrays, taps)
        return outputs[:count], [seen[i] for i in range(len(zeros))]

    zeros = list(program.zeros().values())
    (outputs, seen), back = jax.vjp(run, [program.leaves[i] for i in floating], zeros)
    output = jax.tree.unflatten(layout.output_tree, outputs)
    return Linearised(output, [value for value, _ in seen], list(program.leaves), back, layout)


def _layout_of(program: Program) -> _Layout:
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

    def place(value: Value) -> _Place:
        shape = program.shape_of(value)
        plain = routes.form[value] == PLAIN if value in routes.reached else None
        loops = shape[: len(shape) - len(value.shape)]
        leaving = ways.get(value, 0) & (-1 if loops else ~bits.get(value, 0))
        return _Place(shape, value.aval.dtype, loops, plain, value in led, leaving)

    seeded = [v for v, s in zip(level.outputs, program.seeded, strict=True) if s]
    return _Layout(
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
