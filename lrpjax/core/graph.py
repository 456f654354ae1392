"""From a Python function to a graph of values and nodes: tracing, inlining of calls, removal of dead code.

Three facts about each value are found later, by `lrpjax.core.facts`: does it *carry* relevance (it is a
floating-point number that depends on the explained input along floating-point numbers), does it *depend* on that
input at all (be it along integers, predicates or indices), and is it known to be *non-negative*.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core import compat
from lrpjax.core.primitives import CALLS

FLOAT32 = np.dtype(np.float32)
HALF = (np.dtype(np.float16), np.dtype(jnp.bfloat16))


def _is_half(param: Any) -> bool:
    return isinstance(param, (np.dtype, type)) and param in HALF


class Value:
    """One array of the traced program. `node` made it (None for inputs and constants); `users` read it, one
    entry for each reading operand."""

    __slots__ = ("aval", "carries", "constant", "depends", "node", "nonnegative", "returned", "users")

    def __init__(self, aval: Any, node: "Node | None" = None, constant: Any = None):
        self.aval = aval
        self.node = node
        self.constant = constant
        self.users: list[Node] = []
        self.returned = False
        self.carries = False
        self.depends = False
        self.nonnegative = False

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.aval.shape)

    @property
    def narrow(self) -> bool:
        """Whether its type has so few exponents (float16: 2⁻²⁴ to 2¹⁶) that relevance divided by the value may
        leave them."""
        return self.aval.dtype == np.float16


class Node:
    """One equation. `path` is its module path, `within` the names of the inlined calls around it, `bodies` its
    sub-programs (scan, cond, …)."""

    __slots__ = (
        "bodies",
        "eqn",
        "index",
        "inputs",
        "name",
        "outputs",
        "params",
        "path",
        "primitive",
        "sites",
        "within",
    )

    def __init__(self, eqn: Any, inputs: list[Value], path: str, within: tuple[str, ...], sites: tuple):
        self.eqn = eqn
        self.sites = sites
        self.primitive = eqn.primitive
        self.name: str = eqn.primitive.name
        self.params: dict = eqn.params
        self.inputs = inputs
        self.outputs = [Value(v.aval, self) for v in eqn.outvars]
        self.path = path
        self.within = within
        self.bodies: list[Graph] = []
        self.index = -1

    @property
    def out(self) -> Value:
        return self.outputs[0]

    @property
    def source(self) -> str:
        return compat.source_of(*self.sites)

    @property
    def place(self) -> str:
        """The primitive, its module path and the user's line, as errors name them."""
        return f"{self.name} in '{self.path or '(no module path)'}' at {self.source}"

    def carriers(self) -> list[Value]:
        return [v for v in self.inputs if v.carries]

    @property
    def entering(self) -> list[Value]:
        """The operands that the inputs of every body stand for, in their order: not the index of a branch, nor
        the constants of a condition."""
        first = {"cond": 1, "while": self.params.get("cond_nconsts")}.get(self.name)
        return self.inputs[first:]

    @property
    def steering(self) -> list[Value]:
        """The operands that decide which branch runs, or when a loop ends."""
        if self.name == "cond":
            return self.inputs[:1]
        if self.name != "while":
            return []
        condition = compat.open_jaxpr(self.params["cond_jaxpr"])[0]
        read = {v for eqn in condition.eqns for v in eqn.invars if not isinstance(v, compat.Literal)}
        read |= {v for v in condition.outvars if not isinstance(v, compat.Literal)}
        first, count = self.params["cond_nconsts"], len(self.outputs)
        asked = [*self.inputs[:first], *self.inputs[len(self.inputs) - count :]]
        return [value for var, value in zip(condition.invars, asked, strict=True) if var in read]

    @property
    def carry(self) -> tuple[int, int]:
        """Where the state of a loop stands among the inputs of its body, and of how many values it is."""
        if self.name == "scan":
            return compat.scan_layout(self.params)
        return (self.params["body_nconsts"], len(self.outputs)) if self.name == "while" else (0, 0)

    @property
    def steps(self) -> int | None:
        """How many times a loop runs its body, where that is known; None for what is no such loop."""
        return self.params["length"] if self.name == "scan" else None

    def bind(self, *values: Any) -> list:
        with self.eqn.ctx.manager:
            return compat.bind(self.primitive, self.params, *values)

    def widened(self) -> "Node":
        """This node, with results of float32 where they are of half precision."""
        if not any(v.aval.dtype in HALF for v in self.outputs):
            return self
        wide = copy.copy(self)
        wide.params = {k: FLOAT32 if _is_half(p) else p for k, p in self.params.items()}
        if "preferred_element_type" in wide.params:
            wide.params["preferred_element_type"] = FLOAT32
        return wide


@dataclasses.dataclass
class Graph:
    """A program: `inputs` (constants of the jaxpr first, in `constants`), `nodes` in an order that can be run,
    `outputs`."""

    inputs: list[Value]
    constants: dict[Value, Any]
    nodes: list[Node]
    outputs: list[Value]

    @property
    def steps(self) -> list[Node]:
        return self.nodes

    def walk(self) -> Iterable[Node]:
        """All nodes in execution order, those of sub-programs included."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.walk()


def trace(f: Callable, *args: Any) -> tuple[Graph, list, Any]:
    """Traces `f(*args)` (a function of flat arrays) and returns its graph, the values of its captured
    constants, and the output's tree of shapes."""
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    return build(jaxpr), compat.open_jaxpr(jaxpr)[1], shapes


def build(jaxpr: Any, prefix: str = "", within: tuple[str, ...] = (), holders: tuple = ()) -> Graph:
    """The graph of a jaxpr. Its constants come first among the inputs of the outermost graph; a sub-program
    keeps its own in `constants`.

    `holders` are the equations that hold a sub-program, innermost first.
    """
    holder, consts = compat.open_jaxpr(jaxpr)
    nodes: list[Node] = []
    constants: dict[Value, Any] = {}
    env: dict[Any, Value] = {}
    seen: dict[Any, list[Value]] = {}

    def read(atom: Any, env: dict) -> Value:
        if isinstance(atom, compat.Literal):
            return Value(atom.aval, constant=atom.val)
        return env[atom]

    def inline(holder: Any, env: dict, prefix: str, within: tuple[str, ...], site: Any) -> list[Value]:
        for eqn in holder.eqns:
            inputs = [read(a, env) for a in eqn.invars]
            path = _join(prefix, compat.scope_of(eqn))
            twin = (eqn.primitive.name, inputs[0]) if eqn.primitive.name in ("exp", "exp2") else None
            if twin in seen:  # a softmax may be written with the same exponential twice
                env.update(zip(eqn.outvars, seen[twin], strict=True))
                continue
            key = CALLS.get(eqn.primitive.name)
            if key is not None and key in eqn.params:
                inner, inner_consts = compat.open_jaxpr(eqn.params[key])
                inner_env = dict(zip(inner.invars, inputs, strict=True))
                for var, const in zip(inner.constvars, inner_consts, strict=True):
                    inner_env[var] = constant = Value(var.aval)
                    constants[constant] = const
                outputs = inline(
                    inner,
                    inner_env,
                    path,
                    (*within, _call_name(eqn)),
                    site or (eqn if compat.is_library_call(eqn) else None),
                )
            else:
                node = Node(eqn, inputs, path, within, (site or eqn, *holders))
                node.bodies = [build(body, path, within, node.sites) for body in _bodies(eqn)]
                nodes.append(node)
                outputs = node.outputs
            env.update(zip(eqn.outvars, outputs, strict=True))
            if twin is not None:
                seen[twin] = outputs
        return [read(a, env) for a in holder.outvars]

    constvars = [Value(v.aval) for v in holder.constvars]
    invars = [Value(v.aval) for v in holder.invars]
    env.update(zip(holder.constvars, constvars, strict=True))
    env.update(zip(holder.invars, invars, strict=True))
    if holders:  # they are no operands of the equation that holds the sub-program
        constants.update(zip(constvars, consts, strict=True))
        constvars = []
    outputs = inline(holder, env, prefix, within, None)
    return _prune(Graph([*constvars, *invars], constants, nodes, outputs))


def _bodies(eqn: Any) -> list:
    p = eqn.params
    if eqn.primitive.name == "cond":
        return list(p["branches"])
    if eqn.primitive.name == "while":
        return [p["body_jaxpr"]]
    if eqn.primitive.name in ("scan", "remat2", "shard_map"):
        return [p["jaxpr"]]
    return []


def _call_name(eqn: Any) -> str:
    if "name" in eqn.params:
        return str(eqn.params["name"])
    info = getattr(compat.open_jaxpr(eqn.params[CALLS[eqn.primitive.name]])[0], "debug_info", None)
    return str(getattr(info, "func_name", "") or "")


def _join(prefix: str, scope: str) -> str:
    return f"{prefix}/{scope}" if prefix and scope else prefix or scope


def _prune(graph: Graph) -> Graph:
    """Drops what contributes to no output and has no effect, numbers the nodes and fills in `users`."""
    needed: set[Value] = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.eqn.effects or not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    graph.nodes = kept[::-1]
    for index, node in enumerate(graph.nodes):
        node.index = index
        for value in node.inputs:
            value.users.append(node)
    for value in graph.outputs:
        value.returned = True
    return graph


def known_nonnegative(constant: Any) -> bool:
    """Whether a constant is known to be non-negative without computing anything: scalars are looked at, arrays
    are not."""
    if isinstance(constant, (bool, int, float, np.generic)) or (
        isinstance(constant, np.ndarray) and constant.size == 1
    ):
        return bool(np.all(np.asarray(constant) >= 0)) if np.asarray(constant).dtype != object else False
    return False


def between(start: Value, end: Node) -> list[Node] | None:
    """The nodes on the ways from `start` to `end`, in order, or None if relevance enters them from elsewhere."""
    found: set[Node] = {end}
    stack = [end]
    while stack:
        for v in stack.pop().carriers():
            if v is start or (v.node is not None and v.node in found):
                continue
            if v.node is None or v.node.index <= (start.node.index if start.node else -1):
                return None
            found.add(v.node)
            stack.append(v.node)
    return sorted(found, key=lambda n: n.index)
