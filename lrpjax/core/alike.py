"""Whether two sub-programs run alike, so that JAX traces, differentiates and lowers what one of them computes once.

JAX does so for a function that is called twice. The rematerialised blocks of a network are calls of one function; what
relevance makes of them is the same program only if all that it depends on is the same, which is compared here: the
nodes, what is known of their values, the units, their rules, and the ways and forms of relevance. What is not known to
be the same counts as different, which costs time and nothing else.
"""

import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lrpjax.core.graph import Graph, Node, Value
from lrpjax.core.plan import Routes
from lrpjax.core.units import Level, Unit

PLAIN_TYPES = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(None),
    np.generic,
    np.dtype,
    jax.core.AbstractValue,
)
SAYS = ("kind", "name", "flipped", "native")
HOLDS = ("operands", "gates", "activated", "signal", "core", "late", "find_signals")
"""The attributes of units that are compared: not those that say where a unit stands, nor its `linear`, which is made of
its nodes alone."""


def bodies_alike(propagations: Mapping[Unit, Any], routes: Routes, a: Unit, b: Unit) -> bool:
    """Whether the bodies of two units of control flow run alike, and relevance enters and leaves them in one form."""
    outer = lambda unit: (
        [routes.gives[unit].get(v) for v in unit.entering],
        [(routes.form.get(v), v in routes.reached) for v in unit.outputs],
        type(propagations[unit]),
    )
    if len(a.bodies) != len(b.bodies) or outer(a) != outer(b):
        return False
    compare = _Comparison(propagations, routes)
    return all(compare.levels(x, y) for x, y in zip(a.bodies, b.bodies, strict=True))


class _Comparison:
    """A walk through two sub-programs side by side. partners: by its `id`, what the other has in the place of each
    object that was met."""

    def __init__(self, propagations: Mapping[Unit, Any], routes: Routes):
        self.propagations, self.routes = propagations, routes
        self.partners: dict[int, Any] = {}

    def levels(self, a: Level, b: Level) -> bool:
        return (
            len(a.inputs) == len(b.inputs)
            and len(a.steps) == len(b.steps)
            and all(self.values(x, y) for x, y in zip(a.inputs, b.inputs, strict=True))
            and self.constants(a.graph, b.graph)
            and all(self.steps(x, y) for x, y in zip(a.steps, b.steps, strict=True))
            and self.same(a.outputs, b.outputs)
        )

    def constants(self, a: Graph, b: Graph) -> bool:
        pairs = zip(a.constants.items(), b.constants.items(), strict=False)
        return len(a.constants) == len(b.constants) and all(
            x is y and self.values(v, w) for (v, x), (w, y) in pairs
        )

    def values(self, a: Value, b: Value) -> bool:
        """Of values that the sub-programs are given or make."""
        routes = self.routes
        facts = lambda v: (
            v.aval,
            v.carries,
            v.depends,
            v.nonnegative,
            v.returned,
            routes.form.get(v),
            v in routes.reached,
            v in routes.flowing,
        )
        self.partners[id(a)] = b
        return facts(a) == facts(b) and self.same(a.constant, b.constant)

    def steps(self, a: Unit | Node, b: Unit | Node) -> bool:
        if isinstance(a, Node) or isinstance(b, Node):
            return isinstance(a, Node) and isinstance(b, Node) and self.nodes(a, b)
        gives = self.routes.gives
        return (
            len(a.nodes) == len(b.nodes)
            and len(a.bodies) == len(b.bodies)
            and all(self.nodes(x, y) for x, y in zip(a.nodes, b.nodes, strict=True))
            and all(self.levels(x, y) for x, y in zip(a.bodies, b.bodies, strict=True))
            and self.same(a, b)
            and self.routes.takes.get(a) == self.routes.takes.get(b)
            and self.same(gives.get(a, {}), gives.get(b, {}))
            and self.same(self.propagations.get(a), self.propagations.get(b))
        )

    def nodes(self, a: Node, b: Node) -> bool:
        self.partners[id(a)] = b
        one = a.eqn is b.eqn or (
            a.primitive is b.primitive and a.eqn.ctx == b.eqn.ctx and self.same(a.params, b.params)
        )
        return (
            one
            and a.within == b.within
            and self.same(a.inputs, b.inputs)
            and len(a.outputs) == len(b.outputs)
            and all(self.values(x, y) for x, y in zip(a.outputs, b.outputs, strict=True))
        )

    def same(self, a: Any, b: Any) -> bool:
        """Whether two objects are one, or alike in all that they hold."""
        partner = self.partners.get(id(a))
        if partner is not None:
            return partner is b
        if a is b:
            return True
        if type(a) is not type(b):
            return False
        if isinstance(a, PLAIN_TYPES):
            return bool(a == b)
        if isinstance(a, (tuple, list)):
            return len(a) == len(b) and all(map(self.same, a, b))
        if isinstance(a, dict):
            return (
                len(a) == len(b) and all(map(self.same, a, b)) and all(map(self.same, a.values(), b.values()))
            )
        if isinstance(a, (set, frozenset)):
            return len(a) == len(b) and all(any(self.same(x, y) for y in b) for x in a)
        if isinstance(a, types.FunctionType):
            cells = lambda f: [c.cell_contents for c in f.__closure__ or ()]
            own = lambda f: [f.__defaults__, f.__kwdefaults__, cells(f)]
            return a.__code__ is b.__code__ and self.same(own(a), own(b))
        if isinstance(a, types.MethodType):
            return a.__func__ is b.__func__ and self.same(a.__self__, b.__self__)
        if isinstance(a, functools.partial):
            return self.same([a.func, a.args, a.keywords], [b.func, b.args, b.keywords])
        if isinstance(a, Value):  # of a literal: all others have met before
            literal = a.constant is not None and b.constant is not None
            return literal and a.aval == b.aval and _number(a.constant) == _number(b.constant) is not None
        if not type(a).__module__.startswith("lrpjax.") or not hasattr(a, "__dict__"):
            return False
        self.partners[id(a)] = b
        if type(a) is Unit:
            return all(getattr(a, n) == getattr(b, n) for n in SAYS) and all(
                self.same(getattr(a, n), getattr(b, n)) for n in HOLDS
            )
        held, other = vars(a), vars(b)
        return len(held) == len(other) and all(n in other and self.same(v, other[n]) for n, v in held.items())


def _number(constant: Any) -> bytes | None:
    """The bytes of a small constant."""
    array = np.asarray(constant) if isinstance(constant, (np.ndarray, *PLAIN_TYPES)) else None
    return None if array is None or array.dtype == object or array.size > 16 else array.tobytes()
