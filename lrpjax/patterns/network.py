"""The weighted layers of a function, observed while it runs on batches: what `lrpjax.patterns` fits to and measures."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax import rules
from lrpjax.composites import Composite
from lrpjax.core import compat, dimensions, paths
from lrpjax.core.frame import Rewritten, Tap
from lrpjax.core.graph import Value
from lrpjax.core.kinds.layer import Weighted
from lrpjax.core.program import Program
from lrpjax.core.units import Level, Unit
from lrpjax.core.vjps import wide
from lrpjax.errors import PatternError, UnsupportedError
from lrpjax.rules import PLAIN, Gradient


@dataclasses.dataclass(eq=False)
class Site:
    """A weighted layer where it stands in a program: its unit, the value behind its activation, the number of loops
    around it, and the constants of the sub-program that it stands in.

    Arrays of it, as a `Network` observes them, have a leading axis for the examples and one for each loop.
    """

    unit: Unit
    post: Value
    loops: int
    constants: Mapping[Value, Any]

    def __post_init__(self):
        assert self.unit.core is not None
        self.core = self.unit.core
        if self.unit.linear is None or not self.unit.linear.plain:
            what = (
                "quantised" if self.unit.linear is None else f"a weighted sum written with {self.core.name}"
            )
            raise UnsupportedError(
                f"patterns are fitted to dots and convolutions, but the layer at {self.unit.main.source} is {what}: "
                "write it as x @ w or as a convolution"
            )
        self.weighted = Weighted(self.unit, self.unit.operands[0], Gradient(), (PLAIN, PLAIN), False)
        self.at = 1 - self.unit.linear.kernels[0].place
        self.x = self.core.inputs[self.at]
        self.kernel_shape = self.core.inputs[1 - self.at].shape
        labels = dimensions.of_dot if self.unit.kind == "dense" else dimensions.of_convolution
        self.labels = labels(self.core)
        self.kept = [label for label in self.labels if label is not None]
        self.neuron_shape = tuple(n if d in self.kept else 1 for d, n in enumerate(self.kernel_shape))

    def neurons(self, v: jax.Array, weights: jax.Array) -> jax.Array:
        """Σ over weighted samples of an array of the layer's output; shaped as the kernel, with one entry for each
        neuron."""
        lead = 1 + self.loops
        v = v.sum((*range(1, lead), *(lead + d for d, label in enumerate(self.labels) if label is None)))
        v = (v * weights.reshape(-1, *[1] * (v.ndim - 1))).sum(0)
        return v.transpose(np.argsort(self.kept)).reshape(self.neuron_shape)

    def spread(self, k: jax.Array) -> jax.Array:
        """An array with one entry for each neuron, in a shape that broadcasts against the layer's output."""
        k = k.reshape([self.kernel_shape[d] for d in sorted(self.kept)])
        k = k.transpose([sorted(self.kept).index(d) for d in self.kept])
        return k.reshape([1 if label is None else self.kernel_shape[label] for label in self.labels])

    def unmoved(self, v: jax.Array) -> jax.Array:
        """The unit's output for one example as the dot's or convolution's own output: the reshapes between them
        undone."""

        def moves(z):
            for node in self.weighted.moves:
                z = node.bind(z)[0]
            return z

        own = jax.ShapeDtypeStruct(self.core.out.shape, self.core.out.aval.dtype)
        return wide(jax.linear_transpose(moves, own)(v)[0])

    def centred(self, z: jax.Array, bias: Any, reference: jax.Array) -> jax.Array:
        """w·x − K of every sample, from the unit's output z = w·x + b; b may differ from place to place."""
        b = jnp.broadcast_to(bias, self.unit.out.shape).astype(z.dtype)
        return self.mapped(self.unmoved)(z) - (self.unmoved(b) + self.spread(reference))

    def outer(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Σ over samples of x_i c_j, shaped as the kernel: the layer's derivative with respect to its kernel, with c
        for cotangent."""
        params = self.core.params | {
            "precision": (lax.Precision.HIGHEST,) * 2,
            "preferred_element_type": c.dtype,
        }

        def bind(x, w):
            return compat.bind(self.core.primitive, params, *((x, w) if self.at == 0 else (w, x)))[0]

        def apply(w):
            with self.core.eqn.ctx.manager:
                return self.mapped(lambda x: bind(x, w))(x.astype(c.dtype))

        return jax.linear_transpose(apply, jax.ShapeDtypeStruct(self.kernel_shape, c.dtype))(c)[0]

    def mapped(self, function: Callable) -> Callable:
        """A function of one example, over all examples and steps."""
        for _ in range(1 + self.loops):
            function = jax.vmap(function)
        return function


class Network:
    """A function of a batch, traced for one example (as a batch of one), with its weighted layers."""

    def __init__(self, f: Callable, batch: Any):
        leaves, self.treedef = jax.tree.flatten(batch)
        leaves = as_arrays(leaves)
        if not leaves or any(leaf.ndim == 0 for leaf in leaves):
            raise PatternError(
                "a batch is an array, or a pytree of arrays, with the examples along the first axis"
            )
        self.size = size_of(leaves, 1)
        self.shapes = shapes_of(leaves)
        example = [jax.ShapeDtypeStruct((1, *s.shape), s.dtype) for s in self.shapes]
        composite = Composite((), default=Gradient(), method="gradient")
        example = jax.tree.unflatten(self.treedef, example)
        self.program = Program(f, composite, (example,), {}, 0, None, False, inlined=True)
        self.sites = list(sites_of(self.program.level))
        if not self.sites:
            raise PatternError(
                "the function has no dense layer or convolution that patterns could be fitted to"
            )
        self.names = numbered([s.unit.path or s.unit.kind for s in self.sites])

    @property
    def consts(self) -> list:
        """The arrays that the function has captured; compiled functions take them as arguments."""
        return self.program.consts

    def observe(
        self, values: Iterable[Value], consts: Sequence[Any], leaves: Sequence[Any]
    ) -> dict[Value, Any]:
        """The values that a run of one example computes; those in loops are stacked over the steps."""
        values = list(dict.fromkeys(values))
        level = self.program.level
        taps = {i: Tap(jnp.zeros(paths.shape_outside(level, v), v.aval.dtype)) for i, v in enumerate(values)}
        rewritten = Rewritten(self.program.assignment.propagations, self.program.routes, values)
        _, seen = rewritten.run(level, [*consts, *(leaf[None] for leaf in leaves)], taps)
        return {v: seen[i] for i, v in enumerate(values)}

    def observe_all(
        self, values: Iterable[Value], consts: Sequence[Any], leaves: Sequence[Any]
    ) -> dict[Value, Any]:
        """`observe` of every example of a batch, stacked."""
        values = list(dict.fromkeys(values))
        run = lambda *leaves: list(self.observe(values, consts, leaves).values())
        return dict(zip(values, jax.vmap(run)(*leaves), strict=True))

    def merged(self, consts: Sequence[Any]) -> list[tuple[jax.Array, Any]]:
        """The kernel and bias of every layer, with the affine constants behind it folded in."""
        wanted = [v for site in self.sites for v in site.weighted.externals if v not in site.constants]
        seen = self.observe(wanted, consts, [jnp.zeros(s.shape, s.dtype) for s in self.shapes])
        read = lambda site, v: site.constants[v] if v in site.constants else seen[v][(0,) * site.loops]
        merged = [s.weighted.merge([read(s, v) for v in s.weighted.externals]) for s in self.sites]
        return [(wide(w), b) for w, b in merged]

    def padded(self, batches: Iterable[Any]) -> Iterator[tuple[list, int]]:
        """(leaves, number of examples) of each batch; a shorter last one is filled up with copies of its last
        example."""
        short = None
        for number, batch in enumerate(batches, 1):
            leaves, treedef = jax.tree.flatten(batch)
            leaves = as_arrays(leaves)
            shapes = shapes_of(leaves)
            if treedef != self.treedef or shapes != self.shapes:
                text = lambda shapes: ", ".join(f"{s.dtype}{list(s.shape)}" for s in shapes)
                raise PatternError(
                    f"batch {number} holds examples of {text(shapes)}, but the first one holds {text(self.shapes)}"
                )
            size = size_of(leaves, number)
            if short is not None or size > self.size:
                number, size = short or (number, size)
                raise PatternError(
                    f"batch {number} has {size} examples, others have {self.size}: only the last may be shorter"
                )
            if size < self.size:
                short = number, size
                fill = lambda a: np.concatenate([a, np.repeat(a[-1:], self.size - size, 0)])  # noqa: B023
                leaves = [fill(np.asarray(leaf)) for leaf in leaves]
            yield leaves, size


def sites_of(level: Level, loops: int = 0, varying: frozenset[Value] = frozenset()) -> Iterator[Site]:
    """The weighted layers of a level and of its loops, in execution order. `varying` are inputs that change from step
    to step."""
    changing = set(varying)
    for node in level.graph.nodes:
        if any(v in changing for v in node.inputs):
            changing.update(node.outputs)
    owner = {node: unit for unit in level.units for node in unit.nodes}
    for unit in level.units:
        if unit.kind in rules.LAYERS:
            behind = [owner[n] for n in unit.out.users if n in owner and owner[n].kind == "activation"]
            behind = [a.out for a in behind if a.operands == [unit.out] and a.out.shape == unit.out.shape]
            site = Site(unit, behind[0] if behind else unit.out, loops, level.graph.constants)
            if any(v in changing for v in site.weighted.externals):
                raise UnsupportedError(
                    f"the layer {unit.path!r} at {unit.main.source} stands in a loop "
                    "and has another kernel in every step: unroll the loop to fit patterns"
                )
            yield site
        elif unit.kind in ("scan", "remat"):
            first, _ = unit.nodes[0].carry
            body, inputs = unit.bodies[0], unit.nodes[0].inputs
            steps = unit.kind == "scan"
            inner = zip(body.graph.inputs, inputs, strict=True)
            new = [v for i, (v, outer) in enumerate(inner) if (steps and i >= first) or outer in changing]
            yield from sites_of(body, loops + steps, frozenset(new))
        elif any(u.kind in rules.LAYERS for body in unit.bodies for u in body.walk()):
            raise UnsupportedError(
                f"the {unit.kind} at {unit.main.source} holds weighted layers: patterns cannot be fitted inside it"
            )


def numbered(paths: Iterable[str]) -> tuple[str, ...]:
    """Paths made unique: the second layer of a path gets "#2", the third "#3".

    >>> numbered(["conv", "dense", "dense"])
    ('conv', 'dense', 'dense#2')
    """
    counts: dict[str, int] = {}
    names = []
    for path in paths:
        counts[path] = counts.get(path, 0) + 1
        names.append(path if counts[path] == 1 else f"{path}#{counts[path]}")
    return tuple(names)


def as_arrays(leaves: Iterable[Any]) -> list:
    return [leaf if hasattr(leaf, "dtype") else np.asarray(leaf) for leaf in leaves]


def shapes_of(leaves: Iterable[Any]) -> list[jax.ShapeDtypeStruct]:
    """What one example of a batch looks like on the device."""
    return [jax.ShapeDtypeStruct(a.shape[1:], jax.dtypes.canonicalize_dtype(a.dtype)) for a in leaves]


def size_of(leaves: Sequence[Any], number: int) -> int:
    """The number of examples of a batch."""
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        raise PatternError(
            f"batch {number} has no examples, or arrays with different numbers of them: {sorted(sizes)}"
        )
    return sizes.pop()
