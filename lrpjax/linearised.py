"""The linearised program: a function whose products, normalisations and activations are frozen as a composite says,
with every way of reading it.

A rewritten program is a linear map from the relevance of its output to that of all that it computes. `relevance` reads
it at the input, from the output. Here it is held as one object, which can be begun at any named value, ended at any,
read forward, and taken apart into the direct ways between named values.
"""

# JAX annotates its functions in part: what is unknown of their types cannot be said here.
# pyright: reportUnknownMemberType=false

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lrpjax._chosen import leading
from lrpjax._evaluate import check_positive, map_batched
from lrpjax._types import Target
from lrpjax.composites import Composite
from lrpjax.core.frozen import INPUT, OUTPUT, Frozen, Place, address, fitting, freeze, part_of, placed
from lrpjax.core.program import Program
from lrpjax.errors import PathError, RuleError

__all__ = ["INPUT", "OUTPUT", "Linearised", "Reading", "linearise"]

_Turn = Callable[[Any, jax.Array, Place], Any]
"""What a cotangent stands for, of a value at its place."""


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
        name, index = (path, None) if path in self.at else address(path)
        if name not in self.at:
            raise PathError(f"no value is named {path!r} here; named are {', '.join(self.at) or '(none)'}")
        return part_of(self.at[name], index)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("frozen",), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Linearised:
    """A function, run once and frozen there: see `lrpjax.linearise`, which makes it.

    It is a pytree, which may be returned from and handed to functions under `jax.jit` and `jax.vmap`. output: the
    function's. values: {path: what the function computed there}. Making it costs one forward pass; every reading costs
    a backward pass, a `push` too, and no forward pass.

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

    frozen: Frozen

    @property
    def output(self) -> Any:
        """The function's output."""
        return self.frozen.output

    @property
    def values(self) -> dict[str, jax.Array]:
        """What the function computed at every named value, by path; inside of loops stacked over the steps."""
        return {path: self.frozen.seen[i] for path, i in self.frozen.layout.names.items()}

    @property
    def inputs(self) -> Any:
        """What is explained, of the structure of the argument, with None for integers."""
        return self.frozen.explained(self.frozen.leaves)

    def value(self, path: str) -> jax.Array:
        """What the function computed at a named value, or at one step of it."""
        number, index = self.frozen.named(path)
        return part_of(self.frozen.seen[number], index)

    def loops(self, path: str) -> tuple[int, ...]:
        """The steps of the loops around a named value, along which it is stacked."""
        return self.frozen.layout.taps[self.frozen.named(path)[0]].loops

    def pull(
        self,
        seed: Target = None,
        *,
        start: str | None = None,
        stop: str | Iterable[str] = (),
        direct: bool = False,
    ) -> Reading:
        """The relevance of the input and of every named value, R_h = h ⊙ c, for that of the output.

        Args:
            seed: the relevance that it begins with, see the class.
            start: the named value where it begins, in place of the output (`start_layer` of zennit-crp).
            stop: named values at which relevance is read and goes no further.
            direct: whether it goes no further than the first named value on each of its ways.

        Returns:
            A `Reading`. At `start` it is the seed. With composites of the gradient family it is the gradient, or
            input × gradient, as they say.

        Raises:
            PathError: a path is not named, or the output does not depend on `start`. TargetError: the seed does not
                fit; or it gives relevance to elements that are exactly 0 (where that is known; NaN under `jax.jit`), of
                which no share can be said: give `coefficients` a unit instead.
        """
        begun = self.frozen.begun(seed, start)
        return self._reading(*begun, self.frozen.gates(stop, direct), self.frozen.relevance)

    def coefficients(
        self,
        seed: Target = None,
        *,
        unit: Any = None,
        start: str | None = None,
        stop: str | Iterable[str] = (),
        direct: bool = False,
    ) -> Reading:
        """The coefficients c of the frozen program: relevance per unit of every value, R_h = h ⊙ c. They are there also
        where h is 0, unless a rule on the way gives relevance to zeros (flat, w², z^B): then they are 0.

        Args:
            seed: as for `pull`.
            unit: the coefficients of the output (or of `start`), in place of its relevance: floating-point numbers of
                its structure and shapes.
            start, stop, direct: as for `pull`.

        Returns:
            A `Reading`. With composites of the gradient family these are the gradients.

        Raises:
            As `pull`. TargetError also if seed and unit are given.
        """
        begun = self.frozen.seeded(seed, unit, start)
        return self._reading(*begun, self.frozen.gates(stop, direct), self.frozen.coefficient)

    def push(
        self, path: str | None, direction: Any, *, stop: str | Iterable[str] = (), direct: bool = False
    ) -> Reading:
        """The change of the output, and of every later named value, in the frozen program, when a named value changes.

        It is the transpose of `coefficients`: ⟨push(path, u).output, c⟩ = ⟨u, coefficients(unit=c)[path]⟩ for all u and
        c. With u = h ⊙ m and c = s / y that is ⟨push(path, h ⊙ m).output, s / y⟩ = ⟨m, pull(s)[path]⟩: what a token, a
        head or a neuron contributes to all logits is push(path, h ⊙ m), m being 1 there and 0 elsewhere.

        Args:
            path: the value that changes; None for the input.
            direction: by how much, in the shape of the value, or the structure of the input.
            stop: named values that stay as they are.
            direct: whether all do, so that the change of each is what comes to it without passing through another.

        Returns:
            A `Reading` of the output and of the values; at `path` it is the direction.

        Raises:
            RuleError: the rules make a backward pass that is no linear map (deconvnet, guided backprop) and has no
                transpose. TargetError: the direction does not fit. PathError: the path is not named.
        """
        layout = self.frozen.layout
        if layout.nonlinear:
            raise RuleError(
                "push reads the program forward, which has to be linear; these rules are not: "
                f"{'; '.join(layout.nonlinear)}"
            )
        where = "the input" if path is None else repr(path)
        value = self.inputs if path is None else self.value(path)
        direction = fitting(direction, value, "the direction", where)
        gates = self.frozen.gates(stop, direct)

        def read(units: list[Any], starts: list[Any]) -> Any:
            begun = self.frozen.from_units(units, starts)
            reading = self._reading(*begun, gates, self.frozen.coefficient)
            return reading.input if path is None else reading[path]

        back: Callable[[Any], Any]
        zero, back = jax.vjp(read, *self.frozen.silence())  # pyright: ignore[reportUnknownVariableType]
        change, changes = back(jax.tree.map(_typed_like, direction, zero))
        output = jax.tree.unflatten(layout.output_tree, change)
        return Reading(None, output, {name: changes[i] for name, i in layout.names.items()})

    def edge(self, source: str | None, target: str | None = None, seed: Target = None) -> Any:
        """The relevance that goes from one named value to another without passing through a third.

        It is what `source` gets of the relevance of `target` directly, R_{source ← target}. The linear map itself is
        `push(source, u, direct=True)[target]`, or `coefficients(unit=c, start=target, direct=True)[source]`.

        Args:
            source: the earlier value; None or "input" for the input.
            target: the later one; None or "output" for the output.
            seed: of the output, as for `pull`.

        Returns:
            Relevance in the shape of `source`.

        Raises:
            PathError: a path is not named, or there is no way from the one to the other.
        """
        source, target = source or INPUT, target or OUTPUT
        (begin, index), (end, _) = self.frozen.node(target, OUTPUT), self.frozen.node(source, INPUT)
        if not self.frozen.way(end, begin):
            raise PathError(f"no way leads from {source!r} to {target!r}")
        outs, starts = self.frozen.begun(seed, None)
        if begin is not None:
            inner = self.frozen.run(outs, starts, self.frozen.gates((), False))[1]
            outs, starts = self.frozen.silence()
            starts[begin] = placed(starts[begin], index, part_of(inner[begin], index))
        reading = self._reading(outs, starts, self.frozen.gates((), True), self.frozen.relevance, begun=False)
        return reading.input if end is None else reading[source]

    def edges(
        self,
        seed: Target = None,
        *,
        unit: Any = None,
        sources: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        change: Mapping[str, Any] | None = None,
        reduce: Callable[[Any], Any] = jnp.sum,
        batch: int = 16,
    ) -> dict[tuple[str, str], Any]:
        """The relevance of all edges, {(source, target): `reduce` of `edge(source, target, seed)`}.

        One backward pass gives the relevance of the targets, and one more for each target the edges that end there, of
        which `batch` run at once. Of what comes to a target, biases and stabilisers absorb what its edges do not have.

        Args:
            seed, unit: of the output, as for `coefficients`.
            sources, targets: paths, "input" and "output"; None for all. A value in a loop stands for all its steps,
                "path[0]", "path[1]", ….
            change: what the coefficients of sources are multiplied by in place of their values, in full: {path: array};
                a source that is not in it has edges of its relevance.
            reduce: makes of relevance, in the shape of a source (in the structure of the input), what is kept of it:
                arrays.
            batch: targets at once.

        Returns:
            The pairs between which the program has a way; in loops also such between whose steps none leads, with 0.

        Raises:
            PathError: a path is not named.
        """
        check_positive("batch", batch)
        begins = self.frozen.nodes(sources, INPUT)
        ends = self.frozen.nodes(targets, OUTPUT)
        first, silent = self.frozen.seeded(seed, unit, None)
        change = {p: fitting(u, self.values[p], "the change", repr(p)) for p, u in (change or {}).items()}
        inner = self.frozen.run(first, silent, self.frozen.gates((), False))[1]

        def one(number: jax.Array) -> list[Any]:
            outs, starts = self.frozen.silence()
            for k, (tap, index) in enumerate(ends.values()):

                def mine(c: jax.Array, k: int = k) -> jax.Array:
                    return jnp.where(number == k, c, jnp.zeros_like(c))

                if tap is None:
                    outs = [mine(c) for c in first]
                else:
                    starts[tap] = starts[tap] + placed(starts[tap], index, mine(part_of(inner[tap], index)))
            taken = self.frozen.run(outs, starts, self.frozen.gates((), True))
            reading = self._read(*taken, self.frozen.relevance)
            if change:
                slopes = self._read(*taken, self.frozen.coefficient)
                changed = {p: c * slopes.at[p] for p, c in change.items()}
                reading = dataclasses.replace(reading, at=reading.at | changed)
            return [
                reduce(reading.input if tap is None else reading[path]) for path, (tap, _) in begins.items()
            ]

        found = map_batched(one, jnp.arange(len(ends)), batch)
        return {
            (source, target): jax.tree.map(operator.itemgetter(k), kept)
            for k, (target, (end, _)) in enumerate(ends.items())
            for kept, (source, (begin, _)) in zip(found, begins.items(), strict=True)
            if source != target and self.frozen.way(begin, end)
        }

    def _reading(
        self, outs: list[Any], starts: list[Any], gates: list[Any], turn: _Turn, begun: bool = True
    ) -> Reading:
        """What the map makes of cotangents. begun: whether what begins at a value counts there."""
        inputs, taps = self.frozen.run(outs, starts, gates)
        if begun:
            taps = [c + s for c, s in zip(taps, starts, strict=True)]
        return self._read(inputs, taps, turn)

    def _read(self, inputs: list[Any], taps: list[Any], turn: _Turn) -> Reading:
        explained, at = self.frozen.came(inputs, taps, turn)
        return Reading(explained, None, at)


def _typed_like(array: jax.Array, like: jax.Array) -> jax.Array:
    return array.astype(like.dtype)


def linearise(
    f: Callable[..., Any],
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
        f, composite: as for `lrpjax.relevance`.
        primals: the arguments of f.
        at: module paths, tags and globs, as for `lrpjax.relevance`: the named values.
        argnums: which arguments are the input: None for the first (or for those that f says itself), as for
            `lrpjax.relevance`; they may be integers where `at` is given. Further keywords are those of f.

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
    rules, primals = leading(composite, primals, "linearise")
    per_unit = rules.method == "relevance"
    program = Program(f, rules, primals, kwargs, argnums, at, False, per_unit=per_unit)
    program.warn()
    return Linearised(freeze(program))
