"""Explanations outside of `jax.jit`, compiled all the same: a program is kept for a function, a composite and shapes.

Tracing, planning and compiling are done once. A later call is given the kept program if all that the function reaches
is as it was (`lrpjax.core.reached`), but for the numbers in arrays that the program takes as arguments: weights,
however the function comes by them. A function that cannot be looked through is explained one operation at a time, and
so is what looks at numbers while it runs (a target or a rule in NumPy, say).

As under `jax.jit`, what a function does besides computing with arrays it does once: it draws from NumPy's global random
numbers, reads a clock or a file, or takes numbers out of a JAX array that it computes with as well, at its first call.
"""

import collections
import copy
import dataclasses
import hashlib
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lrpjax.core import compat
from lrpjax.core.given import checked_leaf, given_to
from lrpjax.core.graph import Value
from lrpjax.core.kinds import KINDS
from lrpjax.core.program import Chooses, Program
from lrpjax.core.reached import TooMuch, Unknown, reached
from lrpjax.core.seeds import checked, output_relevance
from lrpjax.core.units import Level

KEPT = 64
"""How many programs are kept; those that were not used for longest are dropped. With 0 nothing is compiled."""

TRIES = 3
"""How many programs are made for functions that differ in arrays which no program takes as arguments."""

NEEDS_NUMBERS = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


class NotCompiled(Exception):
    """A call that is explained one operation at a time."""


@dataclasses.dataclass
class _Kept:
    """A program for functions of one key, and what arrays have to be for it.

    constants: for each constant of the program, the number of the array that it is among those reached, or itself.
    inner: likewise for constants of the functions that it calls, by value. fixed: the numbers of all other arrays, and
    what tells them from others. y: the shapes of the output. run: the compiled function.
    """

    program: Program
    constants: list[Any]
    inner: dict[Value, int]
    fixed: dict[int, Any]
    y: Any
    run: Callable

    def fits(self, arrays: Sequence[Any]) -> bool:
        return all(_is(arrays[i], mark) for i, mark in self.fixed.items())

    def __call__(self, arrays: Sequence[Any], leaves: Sequence[Any], target: Any) -> Any:
        constants = [arrays[c] if isinstance(c, int) else c for c in self.constants]
        return self.run(constants, [arrays[i] for i in self.inner.values()], leaves, target)


@dataclasses.dataclass
class _Entry:
    """What is kept for one key. held: what the key knows by identity. looks: a program looked at numbers."""

    held: list[Any]
    programs: list[_Kept] = dataclasses.field(default_factory=list)
    looks: bool = False


_entries: collections.OrderedDict[Any, _Entry] = collections.OrderedDict()
_too_much: set[Any] = set()
"""Functions that reach more than is looked through, which takes as long every time."""

_lock = threading.RLock()


def clear_cache() -> None:
    """Drops the compiled programs that are kept for explanations outside of `jax.jit`, and their memory.

    The last 64 are kept; weights are not among what they hold, but for arrays that a function reads while it is traced.

    >>> import jax.numpy as jnp, lrpjax
    >>> print(lrpjax.relevance(lambda x: 2.0 * x)(jnp.ones(2)))
    [2. 2.]
    >>> lrpjax.clear_cache()
    """
    with _lock:
        _entries.clear()
        _too_much.clear()


def explained(
    f: Callable[..., Any],
    composite: Chooses,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    argnums: int | Sequence[int] | None,
    target: Any,
    at: Any,
    has_aux: bool,
) -> tuple[Any, Any, Any]:
    """(the output, auxiliary data, relevance).

    Raises:
        NotCompiled: this call has to be explained one operation at a time.
    """
    if (
        not KEPT
        or compat.tracing()
        or not isinstance(composite, Chooses)
        or any(rule.looks for _, rule in composite.pairs)
    ):
        raise NotCompiled
    if getattr(f, "__code__", None) in _too_much:
        raise NotCompiled
    given, named, _, numbers = given_to(f, args, kwargs, argnums)
    numbers = [n % len(given) for n in numbers]
    leaves, tree = jax.tree.flatten([given[n] for n in numbers])
    if not all(isinstance(leaf, (jax.Array, np.ndarray, np.generic, float)) for leaf in leaves):
        raise NotCompiled
    function = target if target is None or isinstance(target, str) or callable(target) else ""
    try:
        of_f = reached(f, [a for n, a in enumerate(given) if n not in numbers], named)
        settings = reached(
            composite, function, argnums, at, has_aux, [kind.default for kind in KINDS.values()]
        )
    except Unknown as error:
        if isinstance(error, TooMuch) and isinstance(f, types.FunctionType) and len(_too_much) < KEPT:
            _too_much.add(f.__code__)
        raise NotCompiled from None
    leaves = [checked_leaf(leaf, allow_integers=at is not None) for leaf in leaves]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves([leaves, target])):
        raise NotCompiled
    forms = tuple((leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves)
    arrays = [*of_f.arrays, *settings.arrays]
    with _lock:
        key = (of_f.key, settings.key, tree, forms, compat.settings())
        entry = _entries.setdefault(key, _Entry([*of_f.held, *settings.held]))
        _entries.move_to_end(key)
        while len(_entries) > KEPT:
            _entries.popitem(last=False)
        kept = next((kept for kept in entry.programs if kept.fits(arrays)), None)
        if entry.looks or (kept is None and len(entry.programs) >= TRIES):
            raise NotCompiled
    if kept is not None:
        kept.program.warn_again()
    else:
        program = Program(f, composite, args, kwargs, argnums, at, has_aux)
        program.warn()
        kept = _made(program, function, arrays, len(of_f.arrays))
    aim = checked(target, kept.y)
    try:
        result = kept(arrays, leaves, aim if isinstance(aim, (np.ndarray, jax.Array)) else None)
    except NEEDS_NUMBERS:
        entry.looks = True
        raise NotCompiled from None
    with _lock:
        if kept not in entry.programs:
            entry.programs.append(kept)
    y, aux, R = result
    named = at is not None and not kept.program.single
    # Values that are named keep their order, which jit does not.
    return y, aux, {name: R[name] for name in kept.program.taps} if named else R


def _made(program: Program, function: Any, arrays: Sequence[Any], count: int) -> _Kept:
    """A program as a compiled function of its constants, without those that are arrays of the user's. The first `count`
    of the arrays may be: all but those that are looked at while planning."""
    program.output_leaves()
    places = collections.Counter(
        _place(a) for a in arrays[:count]
    )  # two views of one memory cannot be told apart
    number = {_place(a): i for i, a in enumerate(arrays[:count]) if a.size > 1 and places[_place(a)] == 1}
    find = lambda constant: number.get(_place(constant))
    level, composite = program.level, program.composite
    graph, steps = level.graph, level.steps
    constants = [c if find(c) is None else find(c) for c in program.consts]
    inner = {value: find(c) for value, c in graph.constants.items() if find(c) is not None}
    taken = {c for c in [*constants, *inner.values()] if isinstance(c, int)}
    fixed = {i: _mark(a) for i, a in enumerate(arrays) if i not in taken}
    y = program.shapes[0] if program.has_aux else program.shapes
    for value in inner:
        graph.constants[value] = None
    program.consts, program.leaves = [None] * len(constants), [None] * len(program.leaves)
    program.jaxpr = None

    @jax.jit
    def run(constants: Sequence[Any], others: Sequence[Any], leaves: Sequence[Any], target: Any) -> Any:
        own = copy.copy(program)
        own.consts, own.leaves, own.warned = constants, leaves, True
        within = dict(zip(inner, others, strict=True))
        own.level = Level(dataclasses.replace(graph, constants=graph.constants | within), steps)
        y, aux, pull = own.linearise()
        aim = target if target is not None else function
        return y, aux, pull(output_relevance(y, aim, composite.method))

    return _Kept(program, constants, inner, fixed, y, run)


def _place(array: Any) -> Any:
    """What an array and the constant that JAX makes of it have in common: they are one, or views of the same memory."""
    if not isinstance(array, np.ndarray):
        return id(array)
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype


def _mark(array: Any) -> Any:
    """What tells an array from others: its numbers, or, of a large one that cannot change, itself."""
    if isinstance(array, jax.Array) and (array.size > 64 or not array.is_fully_addressable):
        return weakref.ref(array)
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


def _is(array: Any, mark: Any) -> bool:
    return mark() is array if isinstance(mark, weakref.ref) else _mark(array) == mark
