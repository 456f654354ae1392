"""The weighted layers of a function, observed while it runs on batches: what `lrpjax.patterns` fits to and measures."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax import _compat, dimensions, rules, transform
from lrpjax.composites import Composite
from lrpjax.cotangents import wide
from lrpjax.errors import PatternError, UnsupportedError
from lrpjax.explained import Weighted
from lrpjax.graph import Value
from lrpjax.plan import carry_of, path_of
from lrpjax.rewrite import Rewritten
from lrpjax.rules import PLAIN, Gradient
from lrpjax.units import Level, Unit


@dataclasses.dataclass(eq=False)
class Site:
    """A weighted layer where it stands in a program: its unit, the value behind its activation, the number of loops around it, and the
    constants of the sub-program that it stands in.

    Arrays of it, as a `Network` observes them, have a leading axis for the examples and one for each loop.
    """

    unit: Unit
    post: Value
    loops: int
    constants: Mapping[Value, Any]

    def __post_init__(self):
        assert self.unit.core is not None
        self.core = self.unit.core
        self.x = self.unit.operands[0]
        self.weighted = Weighted(self.unit, self.x, Gradient(), PLAIN, False)
        self.at = self.weighted.at
        self.kernel_shape = self.core.inputs[1 - self.at].shape
        labels = dimensions.of_dot if self.unit.kind == "dense" else dimensions.of_convolution
        self.labels = labels(self.core)

    def neurons(self, v: jax.Array, weights: jax.Array) -> jax.Array:
        """Σ over weighted samples of an array of the layer's output; shaped as the kernel, with one entry for each neuron."""
        lead = 1 + self.loops
        v = v.sum((*range(1, lead), *(lead + d for d, label in enumerate(self.labels) if label is None)))
        v = (v * weights.reshape(-1, *[1] * (v.ndim - 1))).sum(0)
        kept = [label for label in self.labels if label is not None]
        shape = [n if d in kept else 1 for d, n in enumerate(self.kernel_shape)]
        return v.transpose(np.argsort(kept)).reshape(shape)

    def spread(self, k: jax.Array) -> jax.Array:
        """An array with one entry for each neuron, in a shape that broadcasts against the layer's output."""
        kept = [label for label in self.labels if label is not None]
        k = k.reshape([self.kernel_shape[d] for d in sorted(kept)])
        k = k.transpose([sorted(kept).index(d) for d in kept])
        return k.reshape([1 if label is None else self.kernel_shape[label] for label in self.labels])

    def unmoved(self, v: jax.Array) -> jax.Array:
        """An array of the unit's output as one of the dot's or convolution's own output: the reshapes between them undone."""

        def moves(z):
            for node in self.weighted.moves:
                z = node.bind(z)[0]
            return z

        if not self.weighted.moves:
            return wide(v)
        own = jax.ShapeDtypeStruct(self.core.out.shape, self.core.out.aval.dtype)
        return wide(self.mapped(lambda v: jax.linear_transpose(moves, own)(v)[0])(v))

    def outer(self, x: jax.Array, c: jax.Array) -> jax.Array:
        """Σ over samples of x_i c_j, shaped as the kernel: the layer's derivative with respect to its kernel, with c for cotangent."""
        params = self.core.params | {
            "precision": (lax.Precision.HIGHEST,) * 2,
            "preferred_element_type": c.dtype,
        }

        def bind(x, w):
            return _compat.bind(self.core.primitive, params, *((x, w) if self.at == 0 else (w, x)))[0]

        def apply(w):
            with self.core.eqn.ctx.manager:
                return self.mapped(lambda x: bind(x, w))(x.astype(c.dtype))

        return jax.linear_transpose(apply, jax.ShapeDtypeStruct(self.kernel_shape, c.dtype))(c)[0]

    def mapped(self, function: Callable) -> Callable:
        """A function of one example, over all examples and steps."""
        for _ in range(1 + self.loops):
            function = jax.vmap(function)
        return function

    # ---------------------------------------------------------------------------------------- samples, written out, as rows of a matrix

    def row_layout(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """(dimensions of the input that enumerate samples, those shared with the kernel's groups, those summed over; those of the kernel alike:
        groups, neurons and inputs in one permutation) of a dot."""
        (contract, other_contract), (batch, other_batch) = self.core.params["dimension_numbers"]
        if self.at == 1:
            contract, other_contract, batch, other_batch = other_contract, contract, other_batch, batch
        free = [d for d in range(len(self.x.shape)) if d not in contract and d not in batch]
        neurons = [
            d for d in range(len(self.kernel_shape)) if d not in other_contract and d not in other_batch
        ]
        return free, list(batch), list(contract), [*other_batch, *neurons, *other_contract]

    def groups(self) -> int:
        """In how many groups the neurons see different inputs at one position."""
        if self.unit.kind == "dense":
            return int(np.prod([self.x.shape[d] for d in self.row_layout()[1]], dtype=int))
        if self.at != 0 or self.core.params["batch_group_count"] != 1:
            raise UnsupportedError(
                f"the samples of the convolution {path_of(self.unit)!r} cannot be written out"
            )
        return self.core.params["feature_group_count"]

    def kernel_rows(self, w: jax.Array) -> jax.Array:
        """A kernel (or pattern) as groups × neurons × inputs."""
        groups = self.groups()
        if self.unit.kind == "dense":
            _, _, contract, order = self.row_layout()
            inputs = int(np.prod([self.x.shape[d] for d in contract], dtype=int))
            return w.transpose(order).reshape(groups, -1, inputs)
        spec = self.core.params["dimension_numbers"].rhs_spec
        return w.transpose(spec).reshape(groups, w.shape[spec[0]] // groups, -1)

    def input_rows(self, x: jax.Array) -> jax.Array:
        """What one example feeds into the layer, as samples × groups × inputs: the patches of a convolution."""
        groups = self.groups()
        if self.unit.kind == "dense":
            free, batch, contract, _ = self.row_layout()
            samples = int(np.prod([x.shape[d] for d in free], dtype=int))
            return x.transpose([*free, *batch, *contract]).reshape(samples, groups, -1)
        p = self.core.params
        numbers = p["dimension_numbers"]
        patches = lax.conv_general_dilated_patches(
            x,
            [self.kernel_shape[d] for d in numbers.rhs_spec[2:]],
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            numbers,
            precision=lax.Precision.HIGHEST,
        )
        patches = jnp.moveaxis(patches, (numbers.out_spec[0], numbers.out_spec[1]), (0, -1))
        return patches.reshape(-1, groups, patches.shape[-1] // groups)

    def output_rows(self, z: jax.Array) -> jax.Array:
        """What one example makes of the layer's output, as samples × groups × neurons."""
        groups = self.groups()
        if self.unit.kind == "dense":
            shared = [d for d, label in enumerate(self.labels) if label is not None]
            batch, neurons = shared[: len(self.row_layout()[1])], shared[len(self.row_layout()[1]) :]
            samples = [d for d in range(z.ndim) if d not in shared]
            shape = int(np.prod([z.shape[d] for d in samples], dtype=int)), groups, -1
            return z.transpose([*samples, *batch, *neurons]).reshape(shape)
        numbers = self.core.params["dimension_numbers"]
        z = jnp.moveaxis(z, (numbers.out_spec[0], numbers.out_spec[1]), (0, -1))
        return z.reshape(-1, groups, z.shape[-1] // groups)


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
        self.program = transform.Program(f, composite, (example,), {}, 0, None, False)
        self.sites = list(sites_of(self.program.level))
        if not self.sites:
            raise PatternError(
                "the function has no dense layer or convolution that patterns could be fitted to"
            )
        self.names = numbered([path_of(s.unit) or s.unit.kind for s in self.sites])

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
        zeros = {i: jnp.zeros(transform._tap_shape(level, v), v.aval.dtype) for i, v in enumerate(values)}
        rewritten = Rewritten(self.program.assignment.rules, self.program.found, values)
        _, seen = rewritten.run(level, [*consts, *(leaf[None] for leaf in leaves)], zeros)
        return {v: seen[i] for i, v in enumerate(values)}

    def observe_all(
        self, values: Iterable[Value], consts: Sequence[Any], leaves: Sequence[Any]
    ) -> dict[Value, Any]:
        """`observe` of every example of a batch, stacked."""
        values = list(dict.fromkeys(values))
        run = lambda *leaves: list(self.observe(values, consts, leaves).values())
        return dict(zip(values, jax.vmap(run)(*leaves), strict=True))

    def kernels(self, consts: Sequence[Any]) -> list[jax.Array]:
        """The kernel of every layer, with the affine constants behind it folded in."""
        wanted = [v for site in self.sites for v in site.weighted.externals if v not in site.constants]
        seen = self.observe(wanted, consts, [jnp.zeros(s.shape, s.dtype) for s in self.shapes])
        read = lambda site, v: site.constants[v] if v in site.constants else seen[v][(0,) * site.loops]
        return [wide(s.weighted.merge([read(s, v) for v in s.weighted.externals])[0]) for s in self.sites]

    def padded(self, batches: Iterable[Any]) -> Iterator[tuple[list, int]]:
        """(leaves, number of examples) of each batch; a shorter last one is filled up with copies of its last example."""
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
    """The weighted layers of a level and of its loops, in execution order. `varying` are inputs that change from step to step."""
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
                    f"the layer {path_of(unit)!r} at {unit.main.source} stands in a loop and has another kernel in every step: "
                    "unroll the loop to fit patterns"
                )
            yield site
        elif unit.kind in ("scan", "remat"):
            first, _ = carry_of(unit)
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
