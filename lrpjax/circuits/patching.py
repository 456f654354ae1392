"""What the values inside a function do to its output: by patching, which is exact and runs the function once for each
of them, and by its linear approximations, which take two forward passes and one backward pass for all.

Two runs are compared, a clean one and a corrupted one, in which the same function has other inputs of the same shape
(two sentences that differ in a name). Patching puts a value of one run into the other and looks at a metric of the
output. Attribution multiplies the change of the value by a coefficient of the linearised program: with the gradient
that is attribution patching, with the coefficients of LRP it is RelP.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._chosen import chosen
from lrpjax._evaluate import check_positive, map_batched
from lrpjax.circuits.replacing import PatchError, replaced
from lrpjax.composites import Composite, gradient
from lrpjax.core.program import Program
from lrpjax.errors import PathError
from lrpjax.linearised import Linearised, Reading, linearise
from lrpjax.select import is_glob, matches

__all__ = ["Split", "attribute", "attribute_edges", "intervene", "patch", "split"]

Each = int | Sequence[int] | None | Mapping[str, Any]


def intervene(f: Callable, put: Mapping[str, Any]) -> Callable:
    """`f` with values of its own replaced, as a function of the same arguments.

    Args:
        f: any function, as for `lrpjax.relevance`.
        put: {path: array, (where, array), or function}: what stands in place of the value that `path` names (a module
            path or a `lrpjax.tag`). An array does everywhere, or where a bool array says so; both broadcast to the
            value, which inside of loops is stacked over the steps. A function makes it of the value, and is called in
            every step of a loop with that step's. Later values follow from it.

    Returns:
        A function that returns what f would. It may be differentiated, jitted and vmapped. If only functions are put
        in, it may also be explained: they, the names that they give, and all else that has a name in f, are seen as if
        they were written in f. A call with a derivative of its own around such a value counts as what is written
        inside of it.

    Raises:
        PathError: a path names nothing. PatchError: an array does not broadcast to the value, a function gives another
        shape, or the value stands in a `jax.shard_map`.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: lrpjax.tag(2.0 * x, "h").sum()
    >>> print(lrpjax.circuits.intervene(f, {"h": (jnp.array([True, False]), 0.0)})(jnp.array([1.0, 3.0])))
    6.0

    Concepts and repairs are put into a function so, which is explained then:

    >>> halved = lrpjax.circuits.intervene(f, {"h": lambda h: lrpjax.tag(h / 2.0, "half")})
    >>> print(lrpjax.relevance(halved, at="half")(jnp.array([1.0, 3.0])))
    [1. 3.]
    """
    for path in put:
        if not isinstance(path, str) or is_glob(path):
            raise PathError(
                f"what is put in takes the place of one value each, but {path!r} names none, or several"
            )

    arrays = {path: one for path, one in put.items() if not callable(one)}
    functions = {path: one for path, one in put.items() if callable(one)}
    if functions:
        f = replaced(f, functions)

    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not arrays:
            return f(*args, **kwargs)
        program = Program(f, gradient(), args, kwargs, None, list(arrays), False)
        return _run(program, arrays)

    return run


def patch(
    f: Callable,
    clean: Any,
    corrupted: Any,
    *,
    at: str | Sequence[str],
    metric: Callable = jnp.sum,
    each: Each = 0,
    into: str = "corrupted",
    batch: int = 16,
) -> dict[str, jax.Array]:
    """Activation patching: what a metric of the output changes by when one part of a value is taken from the other run.

    metric(f with h_p := h_p of the other run) − metric(f), for every part p of every named value h: one run of f for
    each, of which `batch` are vmapped (Vig et al. 2020; Meng et al. 2022; Wang et al. 2022). f is traced once; call it
    under `jax.jit` to compile all at once.

    Args:
        f: the function.
        clean, corrupted: its argument in the two runs; a tuple for several arguments.
        at: module paths, tags and globs, as for `lrpjax.relevance`.
        metric: from f's output to a number, such as the difference of two logits.
        each: the axes of a value along which its parts are told apart; the others are patched together. With values
            [tokens, features] 0 patches token by token; () or None patches a value as a whole, (0, 1) every element. A
            mapping says it for each path. Steps of loops are always told apart.
        into: the run that is patched, with values of the other.

    Returns:
        {path: [*steps of loops, *sizes of the axes in `each`]}.

    Raises:
        PatchError: the two runs differ in shapes, the metric is not a number, or `each` names an axis that a value does
            not have. PathError: `at` names nothing.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: lrpjax.tag(x, "h")[0] * x[1]
    >>> print(lrpjax.circuits.patch(f, jnp.array([3.0, 2.0]), jnp.array([1.0, 5.0]), at="h"))
    {'h': Array([10.,  0.], dtype=float...)}
    """
    check_positive("batch", batch)
    base, other = _base_and_other(clean, corrupted, into)
    program = _program(f, base, at)
    values, others = program.values(), _program(f, other, at).values()
    _need_alike(values, others, into)
    begin = _number(metric, _run(program, {}))

    def effects(path: str) -> jax.Array:
        value, loops = others[path], _loops(program, path)
        axes = _axes(each, path, value.shape, loops)
        sizes = [value.shape[a] for a in axes]

        def one(site: jax.Array) -> jax.Array:
            return metric(_run(program, {path: (_where(site, value.shape, axes), value)})) - begin

        return map_batched(one, jnp.arange(math.prod(sizes)), batch).reshape(sizes)

    return {path: effects(path) for path in values}


def attribute(
    f: Callable,
    composite: Composite | None,
    clean: Any,
    corrupted: Any,
    *,
    at: str | Sequence[str],
    metric: Callable = jnp.sum,
    each: Each = 0,
    into: str = "corrupted",
    coefficients: str | None = None,
    drop: Sequence[str | Sequence[str]] | None = None,
    through: Mapping[str, str] | None = None,
    batch: int = 16,
) -> dict[str, jax.Array]:
    """What `patch` measures, estimated for all values at once: Δh ⊙ c, summed over all but the axes of `each`.

    Δh is what patching would change h by, and c the coefficient of the metric in h, in the linearised program of one
    run. With `composites.relp()` this is RelP (Jafari et al. 2025, arXiv 2508.21258), with `composites.gradient()`
    attribution patching (Nanda 2023; Syed et al. 2023), with any other composite the same for its coefficients. Two
    forward passes and one backward pass.

    Args:
        f, clean, corrupted, at, metric, each, into, batch: as for `patch`.
        composite: as for `lrpjax.relevance`.
        coefficients: the run that is linearised, "clean" or "corrupted"; None for that which is patched, as in both
            papers.
        drop: GradDrop (Kramár et al. 2024, AtP*, arXiv 2403.00745): parts of the program, each a path or several,
            behind which the backward pass stops in turn; the result is Σ |Δh c| / (parts − 1), over one backward pass
            for each part, so that ways that cancel are seen one without the other. A value in a loop is as many parts
            as the loop has steps. A value takes no part in the pass that drops it.
        through: the correction for softmax of the same paper: {path: later path}, for queries, keys or scores before a
            softmax and the weights behind it. The change of the later value is computed exactly, by a run of f for each
            part of the first, and only from there on linearly.

    Returns:
        As `patch`.

    Raises:
        As `patch`; and PatchError if `drop` has fewer than two parts, PathError if `through` leads nowhere.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: lrpjax.tag(x, "h")[0] * x[1]
    >>> runs = jnp.array([3.0, 7.0]), jnp.array([1.0, 5.0])
    >>> print(lrpjax.circuits.attribute(f, lrpjax.composites.gradient(), *runs, at="h"))
    {'h': Array([10.,  0.], dtype=float...)}
    """
    through = dict(through or {})
    names = [at] if isinstance(at, str) else list(at)
    groups = [[group] if isinstance(group, str) else list(group) for group in drop or ()]
    extra = [*through, *through.values(), *(path for group in groups for path in group)]
    lin, changes, run = _linearised(
        f, composite, clean, corrupted, list(dict.fromkeys([*names, *extra])), into, coefficients
    )
    weight = _slope(metric, lin.output)
    asked = [p for p in changes if p in names or p not in extra or any(matches(glob, p) for glob in names)]
    shapes = {path: _axes(each, path, changes[path].shape, len(lin.loops(path))) for path in asked}
    exact = {path: later for path, later in through.items() if path in shapes}

    def shifts(path: str) -> Callable:
        """The exact change of the later value for a part of the first."""
        value, later = run.others[path], exact[path]

        def one(site: jax.Array, slope: jax.Array) -> jax.Array:
            there = _values_with(run.program, {path: (_where(site, value.shape, shapes[path]), value)})[later]
            return ((there - run.values[later]) * slope).sum()

        return one

    for path, later in exact.items():
        lin.edge(path, later)  # an error if no way leads from the one to the other

    def score(slopes: Reading) -> dict[str, jax.Array]:
        scores = {}
        for path, axes in shapes.items():
            if path in exact:
                sizes = [lin.values[path].shape[a] for a in axes]
                one = functools.partial(shifts(path), slope=slopes[exact[path]])
                scores[path] = map_batched(one, jnp.arange(math.prod(sizes)), batch).reshape(sizes)
            else:
                product = changes[path] * slopes[path]
                scores[path] = product.sum(tuple(a for a in range(product.ndim) if a not in axes))
        return scores

    if drop is None:
        return score(lin.coefficients(unit=weight))
    parts = [part for group in groups for part in _steps(group, lin)]
    if len(parts) < 2:
        raise PatchError(
            f"GradDrop leaves out one part at a time, of at least two, but drop={drop!r} has {len(parts)}"
        )
    total: dict[str, jax.Array] = {}
    for part in parts:
        slopes = lin.coefficients(unit=weight, stop=[_step(path, index) for path, index in part.items()])
        for path, found in score(slopes).items():
            size = jnp.abs(found)
            if path in part:
                size = size.at[... if part[path] is None else part[path]].set(0.0)
            total[path] = total[path] + size if path in total else size
    return {path: size / (len(parts) - 1) for path, size in total.items()}


def attribute_edges(
    f: Callable,
    composite: Composite | None,
    clean: Any,
    corrupted: Any,
    *,
    at: str | Sequence[str],
    metric: Callable = jnp.sum,
    into: str = "corrupted",
    coefficients: str | None = None,
    batch: int = 16,
) -> dict[tuple[str, str], jax.Array]:
    """Edge attribution patching: what changes when only what a later value reads of an earlier one is patched.

    Σ Δh_source ⊙ c_{source ← target}, with the part of the coefficient that comes through `target` directly (Syed et
    al. 2023, "Attribution Patching Outperforms Automated Circuit Discovery"; with `composites.relp()` the same for
    RelP).

    Args:
        f, composite, clean, corrupted, metric, into, coefficients, batch: as for `attribute`.
        at: the nodes.

    Returns:
        {(source, target): a number}, over pairs of paths, and "output" as a target. A value in a loop has a node for
        each step, "path[0]", "path[1]", ….

    >>> import jax.numpy as jnp, lrpjax
    >>> def f(x):
    ...     a = lrpjax.tag(2.0 * x, "a")
    ...     return (a + lrpjax.tag(3.0 * a, "b")).sum()
    >>> runs = jnp.ones(1), jnp.zeros(1)
    >>> edges = lrpjax.circuits.attribute_edges(f, lrpjax.composites.gradient(), *runs, at=["a", "b"])
    >>> {edge: float(share) for edge, share in edges.items()}
    {('a', 'output'): 2.0, ('b', 'output'): 6.0, ('a', 'b'): 6.0}
    """
    lin, changes, _ = _linearised(f, composite, clean, corrupted, at, into, coefficients)
    weight = _slope(metric, lin.output)
    return lin.edges(unit=weight, sources=list(changes), change=changes, batch=batch)


@functools.partial(jax.tree_util.register_dataclass, data_fields=("parts", "rest"), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Split:
    """Values as sums: `parts[path]` and `parts.output` [*parts, *shape] say what each part of a value brings, and
    `rest[path]`, `rest.output` what is not of it: the biases, and what goes around it.

    >>> import jax.numpy as jnp, lrpjax
    >>> lin = lrpjax.linearise(lambda x: 2.0 * x.sum() + 1.0, lrpjax.composites.epsilon(0.0), jnp.array([3.0, 4.0]))
    >>> found = lrpjax.circuits.split(lin, None)
    >>> print(jnp.rint(found.parts.output), jnp.rint(found.rest.output))
    [6. 8.] 1.0
    """

    parts: Reading
    rest: Reading


def split(
    lin: Linearised, path: str | None, *, each: int | Sequence[int] | None = 0, batch: int = 16
) -> Split:
    """The output, and every later value, as a sum over tokens, heads or neurons of an earlier one.

    Each part of the value is pushed through the linearised program alone (as DePass does, Hong et al. 2025, arXiv
    2510.18462, with attention and the scales of norms held fixed: under `composites.cp_lrp(0.0)`). The parts and the
    rest add up to the values of the run.

    Args:
        lin: a linearised program.
        path: the value that is split; None for the input, if that is one array.
        each: as for `patch`.
        batch: how many parts are pushed at once.

    Raises:
        PatchError: `each` names an axis that the value does not have, or the input is not one array. Else as
            `Linearised.push`.

    >>> import jax.numpy as jnp, lrpjax
    >>> f = lambda x: jnp.maximum(x, 0.0) @ jnp.array([[1.0, 0.0], [2.0, 1.0]]) + 1.0
    >>> found = split(lrpjax.linearise(f, lrpjax.composites.epsilon(0.0), jnp.array([3.0, 4.0])), None)
    >>> print(jnp.rint(found.parts.output), jnp.rint(found.rest.output))
    [[3. 0.]
     [8. 4.]] [1. 1.]
    """
    check_positive("batch", batch)
    if path is None:
        arrays = jax.tree.leaves(lin.inputs)
        if len(arrays) != 1:
            raise PatchError(f"the input holds {len(arrays)} arrays that could be split, not 1: name a value")
        value, loops = arrays[0], 0
    else:
        value, loops = lin.value(path), len(lin.loops(path))
    axes = _axes(each, path or "the input", value.shape, loops)
    sizes = [value.shape[a] for a in axes]
    structure = jax.tree.structure(lin.inputs)

    def one(site: jax.Array) -> Reading:
        part = jnp.where(_where(site, value.shape, axes), value, jnp.zeros_like(value))
        return lin.push(path, part if path is not None else jax.tree.unflatten(structure, [part]))

    flat = map_batched(one, jnp.arange(math.prod(sizes)), batch)
    parts = jax.tree.map(lambda a: a.reshape(*sizes, *a.shape[1:]), flat)
    whole = Reading(None, lin.output, lin.values)
    rest = jax.tree.map(lambda h, a: h - a.sum(0), whole, flat)
    return Split(parts, rest)


# ------------------------------------------------------------------------------------------------ runs and their values


@dataclasses.dataclass
class _Run:
    """The program of the run that exact changes are computed in, its values, and those of the other run."""

    program: Program
    values: dict[str, jax.Array]
    others: dict[str, jax.Array]


def _arguments(run: Any) -> tuple:
    return run if isinstance(run, tuple) else (run,)


def _base_and_other(clean: Any, corrupted: Any, into: str) -> tuple[tuple, tuple]:
    runs = {"clean": _arguments(clean), "corrupted": _arguments(corrupted)}
    if into not in runs:
        raise PatchError(f"a run is 'clean' or 'corrupted', but this is {into!r}")
    return runs[into], runs["corrupted" if into == "clean" else "clean"]


def _program(f: Callable, args: tuple, at: Any, composite: Composite | None = None) -> Program:
    return Program(f, composite or gradient(), args, {}, None, at, False)


def _run(program: Program, put: Mapping[str, Any]) -> Any:
    """The output of a program with values replaced."""
    count = len(program.output_leaves()[0])
    outputs, _ = program.run(program.leaves, {}, {}, puts=_puts(program, put))
    return jax.tree.unflatten(jax.tree.structure(program.shapes), outputs[:count])


def _values_with(program: Program, put: Mapping[str, Any]) -> dict[str, jax.Array]:
    _, seen = program.run(program.leaves, program.zeros(), {}, puts=_puts(program, put))
    return {name: seen[program.tapped.index(v)] for name, v in program.taps.items()}


def _puts(program: Program, put: Mapping[str, Any]) -> dict[int, tuple]:
    puts = {}
    for path, given in put.items():
        value = program.taps[path]
        shape = program.shape_of(value)
        where, array = given if isinstance(given, tuple) else (True, given)
        for what, one in (("where", where), ("array", array)):
            try:
                fits = jnp.broadcast_shapes(jnp.shape(one), shape) == shape
            except ValueError:
                fits = False
            if not fits:
                raise PatchError(
                    f"the {what} put into {path!r} has shape {jnp.shape(one)}, the value has {shape}"
                )
        array = jnp.broadcast_to(jnp.asarray(array).astype(value.aval.dtype), shape)
        puts[program.tapped.index(value)] = (jnp.broadcast_to(jnp.asarray(where, bool), shape), array)
    return puts


def _linearised(
    f: Callable,
    composite: Composite | None,
    clean: Any,
    corrupted: Any,
    at: Any,
    into: str,
    coefficients: str | None,
) -> tuple[Linearised, dict[str, jax.Array], _Run]:
    """The linearised run, what patching changes each value by, and the run of exact changes."""
    base, other = _base_and_other(clean, corrupted, into)
    frozen, _ = _base_and_other(clean, corrupted, coefficients or into)
    composite = chosen(composite, "circuits.attribute_edges")
    lin = linearise(f, composite, *frozen, at=at)
    program = _program(f, base, at, composite)
    values = lin.values if frozen is base else program.values()
    others = lin.values if frozen is other else _program(f, other, at, composite).values()
    _need_alike(values, others, into)
    changes = {path: others[path] - values[path] for path in values}
    return lin, changes, _Run(program, values, others)


def _need_alike(values: Mapping[str, jax.Array], others: Mapping[str, jax.Array], into: str) -> None:
    """
    Raises:
        PatchError: a value has other shapes in the two runs.
    """
    clean, corrupted = (values, others) if into == "clean" else (others, values)
    if clean.keys() != corrupted.keys():
        missing = sorted(clean.keys() ^ corrupted.keys())
        raise PatchError(f"only one of the two runs has the values {missing}")
    for path in clean:
        if clean[path].shape != corrupted[path].shape:
            raise PatchError(
                f"{path!r} has shape {clean[path].shape} in the clean run, but {corrupted[path].shape} in the "
                "corrupted one: two runs are compared value by value, so pad the inputs to one shape"
            )


def _number(metric: Callable, y: Any) -> jax.Array:
    found = metric(y)
    if jnp.shape(found) != ():
        raise PatchError(f"the metric makes a number of the output, but gave shape {jnp.shape(found)}")
    return found


def _slope(metric: Callable, y: Any) -> Any:
    """The derivative of the metric in the output."""
    _number(metric, y)
    return jax.grad(metric)(y)


# ------------------------------------------------------------------------------------------------------ parts of values


def _loops(program: Program, path: str) -> int:
    """How many of a value's leading axes are steps of loops."""
    value = program.taps[path]
    return len(program.shape_of(value)) - len(value.shape)


def _axes(each: Any, path: str, shape: tuple[int, ...], loops: int) -> tuple[int, ...]:
    """The axes of a stacked value that tell its parts apart."""
    if isinstance(each, Mapping):
        each = each.get(path, ())
    given = () if each is None else (each,) if isinstance(each, (int, np.integer)) else tuple(each)
    own = len(shape) - loops
    for axis in given:
        if not isinstance(axis, (int, np.integer)) or not -own <= axis < own:
            raise PatchError(f"{path!r} has shape {shape[loops:]}: it has no axis {axis} to be told apart by")
    return (*range(loops), *sorted({loops + axis % own for axis in given}))


def _where(site: jax.Array, shape: tuple[int, ...], axes: Sequence[int]) -> jax.Array:
    """Where the part of this number is, parts being counted along the axes."""
    here = jnp.ones((), bool)
    for axis in reversed(axes):
        along = jnp.arange(shape[axis]) == site % shape[axis]
        here = here & along.reshape(-1, *(1,) * (len(shape) - axis - 1))
        site = site // shape[axis]
    return jnp.broadcast_to(here, shape)


def _steps(group: Sequence[str], lin: Linearised) -> list[dict[str, Any]]:
    """A part of the program, as {path: step}; where its values stand in loops, one for each step.

    Raises:
        PatchError: they stand in different loops.
    """
    loops = {lin.loops(path) for path in group}
    if len(loops) != 1:
        raise PatchError(
            f"a part that is dropped is of one layer, but {list(group)} stand in loops of {sorted(loops)}"
        )
    (steps,) = loops
    return [dict.fromkeys(group, index) for index in np.ndindex(*steps)] if steps else [dict.fromkeys(group)]


def _step(path: str, index: Any) -> str:
    return path if index is None else f"{path}[{', '.join(map(str, index))}]"
