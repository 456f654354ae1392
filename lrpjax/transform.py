"""The public transforms: trace, plan, rewrite, seed the output, run backward, read the relevance off the input."""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import _compat, graph, naming, units
from lrpjax import plan as planning
from lrpjax.composites import Composite
from lrpjax.cotangents import SLOT
from lrpjax.errors import InputError, PathError, ProbabilityWarning, TargetError
from lrpjax.graph import Graph, Value
from lrpjax.plan import Plan
from lrpjax.rewrite import Rewritten
from lrpjax.rules import PLAIN
from lrpjax.select import matches

DEFAULT = Composite((), preset="default")


def relevance(
    f: Callable,
    composite: Composite | None = None,
    *,
    argnums: int | Sequence[int] = 0,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    has_aux: bool = False,
) -> Callable:
    """Transforms `f` into the function that gives the relevance of an argument for `f`'s output, in the manner of `jax.grad`.

    Σ R = f(x), up to what biases and stabilisers absorb (Bach et al. 2015, eq. 2).

    Args:
        f: a function of arrays (or pytrees of arrays) with one array as output. Flax models, closures, jitted functions, anything.
        composite: which rule for which unit, see `lrpjax.composites`. None: each kind's default (ε = 1e-6 in weighted layers).
        argnums: the argument, or arguments, to be explained; as in `jax.grad`.
        target: the relevance of the output. None: all of f(x). "max": the largest entry along the last axis. An int or an int array (one for
            each example): that class. An array of the output's shape: the output relevance itself. A callable: f(x) -> output relevance.
            With the gradient family of composites it is the cotangent of the output in place of its relevance (1 in place of f(x)).
        at: a module path, or several: explain with respect to the value that leaves that scope last, in place of the argument. Several paths,
            or a glob such as "encoder/*" or "*", give a dict.
        has_aux: whether f returns (output, auxiliary data).

    Returns:
        A function of the same arguments as f, which returns relevances: the structure, shapes and dtypes of the argument explained (a tuple
        for several argnums; (relevance, aux) with has_aux).

    Raises:
        InputError: the argument is not floating-point. UnsupportedError: something on the way has no rule (all places are listed at once).
        TargetError: the target does not fit. PathError: `at` names nothing.

    >>> import jax.numpy as jnp, lrpjax
    >>> w = jnp.array([[1.0, 2.0], [-1.0, 1.0]])
    >>> f = lambda x: jnp.maximum(x @ w, 0.0) @ jnp.array([1.0, 1.0])
    >>> R = lrpjax.relevance(f)(jnp.array([2.0, 1.0]))
    >>> print(R.round(2), R.sum().round(2))
    [6. 0.] 6.0
    """
    both = value_and_relevance(f, composite, argnums=argnums, target=target, at=at, has_aux=has_aux)

    @functools.wraps(f)
    def explain(*args: Any, **kwargs: Any) -> Any:
        y, R = both(*args, **kwargs)
        return (R, y[1]) if has_aux else R

    return explain


def value_and_relevance(
    f: Callable,
    composite: Composite | None = None,
    *,
    argnums: int | Sequence[int] = 0,
    target: Any = None,
    at: str | Sequence[str] | None = None,
    has_aux: bool = False,
) -> Callable:
    """As `relevance`, returning (f's output, relevance), in the manner of `jax.value_and_grad`.

    >>> import jax.numpy as jnp, lrpjax
    >>> y, R = lrpjax.value_and_relevance(lambda x: x @ jnp.array([1.0, -1.0]))(jnp.array([3.0, 1.0]))
    >>> print(y, R.round(2))
    2.0 [ 3. -1.]
    """

    @functools.wraps(f)
    def explain(*args: Any, **kwargs: Any) -> Any:
        program = Program(f, composite or DEFAULT, args, kwargs, argnums, at, has_aux)
        y, aux, pull = program.linearise()
        R = pull(output_relevance(y, target, program.composite.method))
        return ((y, aux), R) if has_aux else (y, R)

    return explain


def vjp(f: Callable, composite: Composite | None, *primals: Any) -> tuple[Any, Callable]:
    """`(f(*primals), pull)`, in the manner of `jax.vjp`: `pull(seed)` takes the relevance of the output and gives that of every primal.

    One forward pass serves any number of seeds: `jax.vmap(pull)(seeds)` explains all classes.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> y, pull = lrpjax.vjp(lambda x: x @ jnp.array([[1.0, 2.0], [3.0, 4.0]]), None, jnp.array([1.0, 1.0]))
    >>> print(jax.vmap(pull)(jnp.diag(y))[0].round(2))
    [[1. 3.]
     [2. 4.]]
    """
    program = Program(f, composite or DEFAULT, primals, {}, tuple(range(len(primals))), None, False)
    y, _, pull = program.linearise()

    def pull_checked(seed: Any) -> Any:
        if jax.tree.structure(seed) != jax.tree.structure(y) or jax.tree.map(jnp.shape, seed) != jax.tree.map(
            jnp.shape, y
        ):
            raise TargetError(f"the seed has {_shapes(seed)}, but the output has {_shapes(y)}")
        return pull(seed)

    return y, pull_checked


def plan(
    f: Callable,
    composite: Composite | None,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    at: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Plan:
    """What `relevance(f, composite)` would do with these arguments: one entry for each unit, and as `str` a table. Computes nothing.

    >>> import jax.numpy as jnp, lrpjax
    >>> p = lrpjax.plan(lambda x: jnp.tanh(x @ jnp.ones((3, 2)) + 1.0), lrpjax.composites.epsilon_plus(), jnp.ones((1, 3)))
    >>> [(u.kind, u.rule, u.shape) for u in p.units]
    [('dense', 'Epsilon(epsilon=1e-06)', (1, 2)), ('activation', 'Pass()', (1, 2))]
    """
    program = Program(f, composite or DEFAULT, args, kwargs, argnums, at, False)
    return planning.describe(program.level, program.assignment, program.found)


class Program:
    """A function, traced, grouped, planned and ready to run: the one place where the stages meet."""

    def __init__(
        self,
        f: Callable,
        composite: Composite,
        args: Sequence[Any],
        kwargs: dict,
        argnums: int | Sequence[int],
        at: Any,
        has_aux: bool,
        conditions: Sequence[str] = (),
    ):
        if not isinstance(composite, Composite):
            raise TypeError(
                f"the composite is made by lrpjax.composites or lrpjax.Composite, but is {composite!r}"
            )
        self.composite = composite
        self.has_aux = has_aux
        self.argnums = argnums
        numbers = _checked_numbers(argnums, len(args))
        explained = [args[i] for i in numbers]
        leaves, self.treedef = jax.tree.flatten(explained)
        self.leaves = [_checked_leaf(leaf, allow_integers=at is not None) for leaf in leaves]
        if not leaves:
            raise InputError("the argument to be explained holds no arrays")

        def flat(*leaves: Any) -> Any:
            full = list(args)
            for i, arg in zip(numbers, jax.tree.unflatten(self.treedef, leaves), strict=True):
                full[i] = arg
            return f(*full, **kwargs)

        with naming.nnx_scopes():
            self.graph, self.consts, self.shapes = graph.trace(flat, *self.leaves)
        if has_aux and not (isinstance(self.shapes, (tuple, list)) and len(self.shapes) == 2):
            raise TargetError("with has_aux=True the function must return a pair (output, auxiliary data)")
        self.prepare(at, conditions)

    def prepare(self, at: Any, conditions: Sequence[str]) -> None:
        g, families = self.graph, self.composite.families
        wanted, conditioned = _scopes(g, at), _scopes(g, conditions)
        inputs = len(self.leaves)
        floats = [_compat.is_float(v.aval) for v in g.inputs]
        explained = [i >= len(g.inputs) - inputs for i in range(len(g.inputs))]
        sources = frozenset(v for v in wanted.values()) | (
            frozenset() if at is None else graph.token_sources(g, explained)
        )
        graph.mark(
            g,
            [e and f for e, f in zip(explained, floats, strict=True)],
            [False] * len(g.inputs),
            sources,
            families,
        )
        self.level = units.find(g, families, frozenset([*wanted.values(), *conditioned.values()]))
        self.taps = dict(_aliased(self.level, wanted)) if self.composite.method == "relevance" else wanted
        if isinstance(at, str) and not _is_glob(at):
            self.single = True
        else:
            self.single = False
            self.taps |= _globbed(self.level, at)
        self.conditions = {path: [v] for path, v in _aliased(self.level, conditioned)} | {
            glob: list(_globbed(self.level, glob).values()) for glob in conditions if _is_glob(glob)
        }
        self.assignment = planning.assign(self.level, self.composite)
        self.orient(list(dict.fromkeys(self.taps.values())))
        planning.refuse(self.found)
        for path, values in self.conditions.items():
            self.conditions[path] = [v for v in values if v in self.found.live]
            if not self.conditions[path]:
                raise PathError(f"the condition {path!r} is on a value through which no relevance flows")
        if self.composite.method == "relevance" and any(
            planning.is_probability(self.level, v) for v in g.outputs[: len(g.outputs) - self.aux_count()]
        ):
            warnings.warn(
                "the function ends in a softmax or log-softmax: relevance is that of a probability. Explaining the logits is usually meant",
                ProbabilityWarning,
                stacklevel=4,
            )
        self.rewrite()

    def orient(self, tapped: list[Value]) -> None:
        """Finds the ways of relevance from the output to the explained inputs and to the tapped values."""
        self.tapped, self.found = tapped, planning.Orientation()
        rules, outs = self.assignment.rules, self.graph.outputs
        carrying = [v.carries for v in self.graph.inputs]
        planning.flow(self.level, carrying, rules, frozenset(tapped), self.found.flowing)
        live = [i < len(outs) - self.aux_count() for i in range(len(outs))]
        planning.orient(self.level, live, [PLAIN] * len(outs), rules, self.found, frozenset(tapped))

    def rewrite(self, audited: Sequence[units.Unit] = ()) -> None:
        """Makes the program that is run: with taps, conditions, and accounts of the units audited."""
        watched = [*self.tapped, *(v for values in self.conditions.values() for v in values)]
        self.slots = [jnp.zeros(SLOT)] * len(audited)
        self.rewritten = Rewritten(self.assignment.rules, self.found, list(dict.fromkeys(watched)), audited)

    def aux_count(self) -> int:
        return len(jax.tree.leaves(self.shapes[1])) if self.has_aux else 0

    def linearise(self, weights: Mapping[Value, Any] | None = None) -> tuple[Any, Any, Callable]:
        """(output, aux, pull): the function's value, and the map from output relevance to what was asked for.

        `weights` multiply the relevance of values that `conditions` named, on its way down; they broadcast to the shapes of `shape_of`.
        """
        y, aux, pull = self.linearise_audited(weights)
        return y, aux, lambda seed: pull(seed)[0]

    def linearise_audited(self, weights: Mapping[Value, Any] | None = None) -> tuple[Any, Any, Callable]:
        """As `linearise`; pull gives a pair, the second of which are the accounts of the units that are audited."""
        y_shapes = self.shapes[0] if self.has_aux else self.shapes
        y_leaves, y_tree = jax.tree.flatten(y_shapes)
        if not y_leaves:
            raise TargetError("the function returned no array: there is nothing to explain")
        for leaf in y_leaves:
            if not _compat.is_float(leaf):
                raise TargetError(
                    f"the output holds {leaf.dtype}{list(leaf.shape)}: only floating-point outputs can be explained"
                )

        def run(leaves, zeros, slots):
            outputs, seen = self.run(leaves, zeros, weights or {}, slots)
            return outputs[: len(y_leaves)], (outputs[len(y_leaves) :], seen)

        if self.tapped:
            on = (self.zeros(), self.slots)
            y, back, (aux, seen) = jax.vjp(lambda z, s: run(self.leaves, z, s), *on, has_aux=True)
        else:
            on = (self.leaves, self.slots)
            y, back, (aux, seen) = jax.vjp(lambda x, s: run(x, {}, s), *on, has_aux=True)

        def pull(seed: Any) -> Any:
            seeds = [jnp.asarray(s).astype(v.dtype) for s, v in zip(jax.tree.leaves(seed), y, strict=True)]
            cotangents, accounts = back(seeds)
            if self.tapped:
                read = {i: self.read(v, seen[i], cotangents[i]) for i, v in enumerate(self.tapped)}
                named = {name: read[self.tapped.index(v)] for name, v in self.taps.items()}
                return (next(iter(named.values())) if self.single else named), accounts
            inputs = self.graph.inputs[len(self.consts) :]
            R = [self.read(v, x, c) for v, x, c in zip(inputs, self.leaves, cotangents, strict=True)]
            explained = jax.tree.unflatten(self.treedef, R)
            explained = tuple(explained) if isinstance(self.argnums, Sequence) else explained[0]
            return explained, accounts

        aux = jax.tree.unflatten(jax.tree.structure(self.shapes[1]), aux) if self.has_aux else None
        return jax.tree.unflatten(y_tree, y), aux, pull

    def run(
        self,
        leaves: Sequence[Any],
        zeros: Mapping[int, Any],
        weights: Mapping[Value, Any],
        slots: Sequence[Any] = (),
    ) -> Any:
        """(flat outputs, {index of a tapped value: its value})."""
        taps = {i: (zeros.get(i), weights.get(v)) for v, i in self.rewritten.tapped.items()}
        return self.rewritten.run(self.level, [*self.consts, *leaves], taps, slots)

    def zeros(self) -> dict[int, Any]:
        return {i: jnp.zeros(self.shape_of(v), v.aval.dtype) for i, v in enumerate(self.tapped)}

    def values(self) -> dict[str, Any]:
        """The values that `at` names, by path, from a forward pass alone."""
        _, seen = self.run(self.leaves, self.zeros(), {})
        return {name: seen[self.tapped.index(v)] for name, v in self.taps.items()}

    def shape_of(self, value: Value) -> tuple[int, ...]:
        """The shape of a value as seen from outside: inside scans it is stacked over the loops."""
        return _tap_shape(self.level, value)

    def read(self, value: Value, x: Any, c: Any) -> Any:
        """The relevance of a value, from the value and its cotangent: none where the plan lets none reach it."""
        if value not in self.found.live:
            return jnp.zeros_like(x)
        plain = self.found.form.get(value) == PLAIN and self.composite.method != "input_x_gradient"
        return c if plain else c * x


# -------------------------------------------------------------------------------------------------------------------------- targets


def output_relevance(y: Any, target: Any, method: str = "relevance") -> Any:
    """The relevance of an output that a target stands for, with the output's structure. See `relevance` for the kinds of target.

    A class that does not exist is a TargetError where it is known when tracing; in a traced int array it makes the relevance NaN.
    """
    weigh = (lambda y: y) if method == "relevance" else jnp.ones_like
    if target is None:
        return jax.tree.map(weigh, y)
    if callable(target):
        seed = target(y)
        if jax.tree.structure(seed) != jax.tree.structure(y) or jax.tree.map(jnp.shape, seed) != jax.tree.map(
            jnp.shape, y
        ):
            raise TargetError(
                f"the target function returned {_shapes(seed)}, but the output has {_shapes(y)}"
            )
        return seed
    leaves = jax.tree.leaves(y)
    if len(leaves) != 1:
        raise TargetError(f"the output has {len(leaves)} arrays: use target=None or a callable")
    (out,) = leaves
    if isinstance(target, str):
        if target != "max":
            raise TargetError(f"the only target by name is 'max', but this is {target!r}")
        _need_axis(out)
        return jax.tree.map(lambda y: _class_mask(y.argmax(-1), y) * weigh(y), y)
    array = target if isinstance(target, jax.Array) else np.asarray(target)
    if array.dtype == bool or not (
        jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)
    ):
        raise TargetError(
            f"a target is None, 'max', a class (int), an array of the output's shape or a callable, but this has dtype {array.dtype}"
        )
    if jnp.issubdtype(array.dtype, jnp.floating):
        if array.shape != out.shape:
            raise TargetError(f"the target has shape {array.shape}, but the output has {out.shape}")
        return jax.tree.map(lambda y: jnp.asarray(array), y)
    _need_axis(out)
    if array.shape not in ((), out.shape[:-1]):
        raise TargetError(
            f"class targets have shape {array.shape}: the output of shape {out.shape} takes one int or shape {out.shape[:-1]}"
        )
    classes = out.shape[-1]
    if (
        not isinstance(array, jax.core.Tracer)
        and array.size
        and not (-classes <= np.asarray(array).min() and np.asarray(array).max() < classes)
    ):
        raise TargetError(f"target {target} is out of range: the output has {classes} classes")
    return jax.tree.map(lambda y: _class_mask(jnp.asarray(array), y) * weigh(y), y)


def _class_mask(classes: jax.Array, y: jax.Array) -> jax.Array:
    """One where the class stands, along the last axis of y; NaN all along where there is no such class."""
    number = y.shape[-1]
    classes = jnp.broadcast_to(classes, y.shape[:-1])[..., None]
    valid = (classes >= -number) & (classes < number)
    hot = jnp.arange(number, dtype=classes.dtype) == classes % number
    return jnp.where(valid, hot.astype(y.dtype), jnp.asarray(jnp.nan, y.dtype))


def _need_axis(y: jax.Array) -> None:
    if y.ndim == 0:
        raise TargetError("the output is a scalar: it has no classes to choose from; use target=None")


def _shapes(tree: Any) -> str:
    leaves, treedef = jax.tree.flatten(tree)
    return (
        f"shape {jnp.shape(leaves[0])}"
        if len(leaves) == 1
        else f"{treedef} of shapes {[jnp.shape(leaf) for leaf in leaves]}"
    )


# --------------------------------------------------------------------------------------------------------------------- arguments, paths


def _checked_numbers(argnums: Any, count: int) -> tuple[int, ...]:
    numbers = tuple(argnums) if isinstance(argnums, Sequence) else (argnums,)
    for i in numbers:
        if not isinstance(i, (int, np.integer)) or isinstance(i, bool):
            raise InputError(f"argnums takes the number of an argument, or several, but got {argnums!r}")
        if not -count <= i < count:
            raise InputError(
                f"argnums names argument {i}, but the function was called with {count} positional arguments"
            )
    if len({i % count for i in numbers}) < len(numbers):
        raise InputError(f"argnums={argnums!r} names an argument twice")
    return numbers


def _checked_leaf(leaf: Any, allow_integers: bool) -> Any:
    if not (
        isinstance(leaf, (jax.Array, np.ndarray, np.generic, float, jax.ShapeDtypeStruct))
        or (isinstance(leaf, int) and not isinstance(leaf, bool))
    ):
        raise InputError(f"the argument to be explained holds {leaf!r}, which is no array")
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(jnp.asarray(leaf))
    if _compat.is_float(aval):
        return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
    if allow_integers:
        return jnp.asarray(leaf)
    raise InputError(
        f"the argument to be explained has dtype {aval.dtype}: only floating-point values carry relevance. For token models explain with respect "
        "to the embedding, relevance(..., at='path/of/the/embedding'); for images convert to float first"
    )


def _is_glob(path: str) -> bool:
    return any(c in path for c in "*?[")


def _scopes(g: Graph, at: Any) -> dict[str, Value]:
    """For each plain path, the value that leaves that scope last."""
    if at is None:
        return {}
    paths = list(at) if isinstance(at, Iterable) and not isinstance(at, str) else [at]
    found = {}
    for path in paths:
        if not isinstance(path, str):
            raise PathError(f"`at` takes module paths, but got {path!r}")
        if not _is_glob(path):
            found[path] = _tagged(g, path) or _leaving(g, path)
    return found


def _tagged(g: Graph, name: str) -> Value | None:
    """The last value that `lrpjax.tag` gave this name."""
    hits = [node.out for node in g.walk() if node.name == "name" and node.params.get("name") == name]
    return hits[-1] if hits else None


def _leaving(g: Graph, path: str) -> Value:
    inside = lambda node: matches(path, node.path) or matches(path + "/*", node.path)
    last = None
    graphs = [g]
    while graphs:
        level = graphs.pop()
        graphs += [body for node in level.nodes for body in node.bodies]
        for node in level.nodes:
            for v in node.outputs:
                leaves = v.returned or any(not inside(u) for u in v.users)
                if (
                    inside(node)
                    and leaves
                    and _compat.is_float(v.aval)
                    and not (node.bodies and all(inside(n) for b in node.bodies for n in b.nodes))
                ):
                    last = v
        if last is not None:
            return last
    known = sorted({node.path for node in g.walk() if node.path})
    raise PathError(
        f"no value leaves the scope {path!r}. Scopes of this function: {', '.join(known[:40]) or '(none)'}{', …' if len(known) > 40 else ''}"
    )


def _aliased(level: units.Level, wanted: dict[str, Value]) -> list[tuple[str, Value]]:
    """A value inside a unit (a convolution before its BatchNorm) has the relevance of the unit's output."""
    inner = {
        v: u.out
        for u in level.walk()
        if u.kind in ("dense", "conv", "pool", "affine")
        for n in u.nodes[:-1]
        for v in n.outputs
    }
    return [(path, inner[v] if v in inner and inner[v].shape == v.shape else v) for path, v in wanted.items()]


def _globbed(level: units.Level, at: Any) -> dict[str, Value]:
    """For each glob, the outputs of all units whose path matches, by path ("path#2" for the second unit of a path)."""
    found: dict[str, Value] = {}
    for glob in [] if at is None else [at] if isinstance(at, str) else at:
        if not _is_glob(glob):
            continue
        hits = [
            u
            for u in level.walk()
            if u.kind in units.SHOWN and matches(glob, planning.path_of(u)) and u.out.carries
        ]
        if not hits:
            raise PathError(
                f"the glob {glob!r} matches no unit; str(lrpjax.plan(f, composite, *args)) lists them"
            )
        for unit in hits:
            path = base = planning.path_of(unit) or unit.kind
            number = 1
            while path in found and found[path] is not unit.out:
                number += 1
                path = f"{base}#{number}"
            found[path] = unit.out
    return found


def _tap_shape(level: units.Level, value: Value) -> tuple[int, ...]:
    """The shape of a tapped value as seen from a level: inside scans it is stacked over the loops."""

    def search(level: units.Level) -> tuple[int, ...] | None:
        if value in level.graph.inputs or any(value in n.outputs for n in level.graph.nodes):
            return value.shape
        for unit in level.units:
            for body in unit.bodies:
                inner = search(body)
                if inner is not None:
                    return (unit.nodes[0].params["length"], *inner) if unit.kind == "scan" else inner
        return None

    shape = search(level)
    if shape is None:
        raise PathError("a value inside a loop that carries no relevance cannot be explained")
    return shape
