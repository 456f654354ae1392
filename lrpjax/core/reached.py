"""All that a Python function can reach, as a key, and the arrays among it: by that a compiled program is known again.

A function that closes over weights, a model or a number may compute something else when it is called again, though it
is the same function. `jax.jit` does not see that. Here everything is walked through that the function refers to: its
code, its closure and defaults, what it is bound to, the attributes of objects, the items of containers, and the globals
that functions outside of installed packages read. What is of a kind that cannot be walked through is `Unknown`.
"""

import contextlib
import dataclasses
import dis
import functools
import re
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lrpjax.core import compat

SIMPLE = (bool, int, str, bytes, type(None), type(...), np.dtype, re.Pattern)
WRITTEN = (float, complex, np.generic, range, slice)
"""What is known by the way it is written: NaN is not equal to itself, and slices have no hash."""

FIXED = (
    type,
    types.ModuleType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    np.ufunc,
    jax.sharding.Sharding,
    jax.sharding.Mesh,
    jax.Device,
)
"""What is itself, and counts as unchanging."""

NOTES = ("_sound", "_warned")
"""What lrpjax notes in rules and composites, which changes nothing that they do."""

LIMIT = 100_000
"""How many objects are looked at."""


class Unknown(Exception):
    """Something of a kind that cannot be walked through, or a traced array."""


class TooMuch(Unknown):
    """More objects than are worth looking at."""


@dataclasses.dataclass
class Reached:
    """key: hashable; equal for functions that are the same but for the numbers in their arrays. arrays: these, in
    order. held: the objects that the key knows by their identity alone, which must live as long as the key does."""

    key: tuple
    arrays: list[Any]
    held: list[Any]


def reached(*objects: Any) -> Reached:
    """Walks through all that objects reach.

    Raises:
        Unknown: not everything can be walked through.
    """
    walk = _Walk()
    stack = list(reversed(objects))
    while stack:
        try:
            stack.extend(reversed(list(walk.look(stack.pop()))))
        except RuntimeError as error:  # another thread changes it
            raise Unknown(str(error)) from error
        if len(walk.key) > LIMIT:
            raise TooMuch(f"more than {LIMIT} objects")
    return Reached(tuple(walk.key), walk.arrays, walk.held)


class _Walk:
    def __init__(self) -> None:
        self.key: list[Any] = []
        self.arrays: list[Any] = []
        self.held: list[Any] = []
        self.met: list[Any] = []  # which keeps them, lest another object be given the id of one
        self.seen: dict[int, int] = {}
        self.classes: set[type] = set()

    def look(self, thing: Any) -> Iterator[Any]:
        """Enters one object into the key, and yields what it holds."""
        add = self.key.append
        if isinstance(thing, SIMPLE):
            add((type(thing), thing))
            return
        if isinstance(thing, WRITTEN):
            add((type(thing), repr(thing)))
            return
        number = self.seen.get(id(thing))
        if number is not None:
            add(("again", number))
            return
        self.seen[id(thing)] = len(self.seen)
        self.met.append(thing)
        if isinstance(thing, jax.core.Tracer):
            raise Unknown("a traced array")
        if isinstance(thing, (jax.Array, np.ndarray)):
            if jax.dtypes.issubdtype(thing.dtype, jax.dtypes.prng_key):
                add(np.asarray(jax.random.key_data(thing)).tobytes())
                return
            if not isinstance(thing.dtype, np.dtype) or thing.dtype.hasobject:
                raise Unknown(f"an array of {thing.dtype}")
            add(("array", type(thing), thing.shape, thing.dtype, getattr(thing, "weak_type", False)))
            self.arrays.append(thing)
        elif isinstance(thing, FIXED):
            self.by_identity(thing)
            if isinstance(thing, type):
                yield from self.of_class(thing)
        elif isinstance(thing, (list, tuple, set, frozenset)):
            add((type(thing), len(thing)))
            yield from thing
            yield from vars(thing).values() if hasattr(thing, "__dict__") else ()
        elif isinstance(thing, (dict, types.MappingProxyType)):
            add((type(thing), len(thing)))
            for name, value in thing.items():
                yield from (name, value)
            yield from vars(thing).values() if hasattr(thing, "__dict__") else ()
        elif isinstance(thing, types.CellType):
            add("cell")
            try:
                yield thing.cell_contents
            except ValueError:  # not filled yet
                return
        elif isinstance(thing, types.FunctionType):
            add(thing.__code__)
            yield from (thing.__defaults__, thing.__kwdefaults__, thing.__closure__, thing.__dict__)
            yield from self.read_by(thing)
        elif isinstance(thing, types.BuiltinFunctionType):
            self.by_identity(thing)
            yield thing.__self__  # the dict of a `dict.get`, say
        elif isinstance(thing, types.MethodType):
            add("method")
            yield from (thing.__func__, thing.__self__)
        elif isinstance(thing, functools.partial):
            add("partial")
            yield from (thing.func, thing.args, thing.keywords)
        elif isinstance(thing, (staticmethod, classmethod)):
            add(type(thing))
            yield thing.__func__
        elif isinstance(thing, property):
            add("property")
            yield from (thing.fget, thing.fset)
        elif isinstance(thing, weakref.ref):
            add("weak")
            yield thing()
        elif compat.is_jitted(thing):
            self.by_identity(thing)
            yield thing.__wrapped__
        elif (version := compat.version_of_tensor(thing)) is not None:
            self.by_identity(thing)
            add(version)
        else:
            yield from self.of_object(thing)

    def by_identity(self, thing: Any) -> None:
        self.key.append(("is", id(thing)))
        self.held.append(thing)

    def of_object(self, thing: Any) -> Iterator[Any]:
        """An object of a class in Python: its class and its attributes."""
        own = type(thing)
        slots = _slots(own)
        if _hides(own, len(slots)):
            raise Unknown(f"{own.__module__}.{own.__qualname__}")
        attributes = {k: v for k, v in getattr(thing, "__dict__", {}).items() if k not in NOTES}
        self.key.append(("object", len(attributes), len(slots)))
        yield own
        for name, value in attributes.items():
            yield from (name, value)
        for name in slots:
            yield getattr(thing, name, None)

    def of_class(self, own: type) -> Iterator[Any]:
        """What a user's class holds: its attributes, and what its methods read."""
        for base in own.__mro__:
            if base in self.classes or not compat.is_users(base.__module__):
                continue
            self.classes.add(base)
            for name, value in vars(base).items():
                if isinstance(value, functools.cached_property):
                    yield from (name, value.func)
                elif isinstance(getattr(value, "__func__", value), types.FunctionType) or not name.startswith(
                    ("__", "_abc")
                ):
                    yield from (name, value)

    def read_by(self, function: types.FunctionType) -> Iterator[Any]:
        """The globals that a function of the user's own reads, and the attributes of modules that it may read."""
        if not compat.is_users_file(function.__code__.co_filename):
            return
        known, names = function.__globals__, _names(function.__code__)
        modules = [sys.modules[name] for name in names if name in sys.modules]  # imported inside of it
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # not filled yet
                modules += [cell.cell_contents] if isinstance(cell.cell_contents, types.ModuleType) else []
        for name in _globals(function.__code__):
            if name in known:
                yield from (name, known[name])
                modules += [known[name]] if isinstance(known[name], types.ModuleType) else []
        looked = set()
        while modules:
            module = modules.pop()
            if module.__name__ in looked or not compat.is_users(module.__name__):
                continue
            looked.add(module.__name__)
            for name in names:
                if name in vars(module):
                    value = vars(module)[name]
                    yield from (name, value)
                    modules += [value] if isinstance(value, types.ModuleType) else []


@functools.cache
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names of globals and attributes in a function, and in the functions inside it."""
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))


@functools.cache
def _globals(code: types.CodeType) -> tuple[str, ...]:
    """The names of globals that a function reads, and the functions inside it."""
    inner = [
        name for const in code.co_consts if isinstance(const, types.CodeType) for name in _globals(const)
    ]
    read = (i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    return tuple(dict.fromkeys([*read, *inner]))


@functools.cache
def _slots(own: type) -> tuple[str, ...]:
    """The slots of a class and its bases, by the names that they are read by."""
    found = []
    for base in own.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            found.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


@functools.cache
def _hides(own: type, slots: int) -> bool:
    """Whether objects of a class hold more than their attributes, as those of classes written in C do: they are larger
    than attributes, and references to dict and weak references, make them."""
    word = tuple.__itemsize__
    references = slots + (own.__dictoffset__ > 0) + (own.__weakrefoffset__ > 0)
    return own.__basicsize__ > object.__basicsize__ + word * references
