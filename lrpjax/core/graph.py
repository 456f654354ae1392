"""From a Python function to a graph of values and nodes: tracing, inlining of calls, removal of dead code.

Three facts about each value are found later, by `lrpjax.core.facts`: does it *carry* relevance (it is a
floating-point number that depends on the explained input along floating-point numbers), does it *depend* on that
input at all (be it along integers, predicates or indices), and is it known to be *non-negative*.
"""

import copy
import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax.core import compat
from lrpjax.core.primitives import CALLS, DERIVED

DISTINCT = ("name", compat.custom_call.name, "slice", "dynamic_slice", "gather")
"""What stays two where it is written twice: names and relevances that the user gives to a value, and elements that
are taken out of an array, so that a loop that is written out reads its array as the scanned one does."""
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
    sub-programs (scan, cond, …), `call` the call that it is, where one stays as it is, `trail` the
    equations, by their ids, that lead to it."""

    __slots__ = (
        "bodies",
        "call",
        "eqn",
        "index",
        "inputs",
        "name",
        "outputs",
        "params",
        "path",
        "primitive",
        "sites",
        "trail",
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
        self.trail: tuple[int, ...] = ()
        self.call: Call | None = None
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
        what = self.name if self.call is None else f"{self.call.name} ({self.name})"
        return f"{what} in '{self.path or '(no module path)'}' at {self.source}"

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
        if self.call is not None:  # a function of Python, which may index its arrays by traced numbers
            values = tuple(
                jax.numpy.asarray(v, i.aval.dtype)
                if isinstance(v, (np.ndarray, np.generic, bool, int, float, complex))
                else v
                for v, i in zip(values, self.inputs, strict=True)
            )
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


@dataclasses.dataclass(eq=False)
class Call:
    """A function that the program calls. name: the function's, or the primitive's, if it is no function of Python.
    path: the module path. trail: the equations, by their ids, that lead to this one: another for each of its
    occurrences. derived: whether it has a derivative of its own. sites: as those of a node. made, span: the nodes
    of the graph while it was built, and where among them are those that it was inlined to. obstacle: if it stays a
    node, why it is not explained from inside; None, if its own derivative explains it."""

    eqn: Any
    name: str
    path: str
    trail: tuple[int, ...]
    sites: tuple
    inputs: list[Value]
    made: list[Node] = dataclasses.field(default_factory=list, repr=False)
    span: tuple[int, int] = (0, 0)
    outputs: list[Value] = dataclasses.field(default_factory=list)
    obstacle: str | None = None

    @property
    def derived(self) -> bool:
        return self.eqn.primitive.name in DERIVED

    @property
    def nodes(self) -> list[Node]:
        """The nodes that it was inlined to, but for those that nothing reads."""
        return [node for node in self.made[slice(*self.span)] if node.index >= 0]

    @property
    def place(self) -> str:
        source = compat.source_of(*self.sites)
        return f"{self.name} ({self.eqn.primitive.name}) in '{self.path or '(no module path)'}' at {source}"


class Treatment(Protocol):
    """What becomes of the calls of a program. exchanges_nodes: some may be exchanged that have no body. apart: the
    jaxprs of loops that were taken apart, by the trails of their nodes."""

    exchanges_nodes: bool
    apart: Mapping[tuple[int, ...], Any]

    def exchange(self, call: Call) -> Any:
        """The jaxpr of what is traced in place of a call, or None."""

    def keep(self, call: Call) -> bool:
        """Whether a call stays one node. Else it is inlined."""
        ...


class _Inlining:
    """All calls are replaced by their bodies."""

    exchanges_nodes = False
    apart: Mapping[tuple[int, ...], Any] = types.MappingProxyType({})

    def exchange(self, call: Call) -> Any:
        return None

    def keep(self, call: Call) -> bool:
        return False


INLINING = _Inlining()


@dataclasses.dataclass
class Graph:
    """A program: `inputs` (constants of the jaxpr first, in `constants`), `nodes` in an order that can be run,
    `outputs`; `calls`, those that were inlined, inner ones before outer ones. `quantised`: the quantised layers,
    once they have been looked for. `twins`: the trail, and the outputs, of each equation that was written again and is
    an earlier one's."""

    inputs: list[Value]
    constants: dict[Value, Any]
    nodes: list[Node]
    outputs: list[Value]
    calls: list[Call] = dataclasses.field(default_factory=list)
    quantised: list = dataclasses.field(default_factory=list)
    twins: list[tuple[tuple[int, ...], list[Value]]] = dataclasses.field(default_factory=list, repr=False)

    @property
    def steps(self) -> list[Node]:
        return self.nodes

    def walk(self) -> Iterable[Node]:
        """All nodes in execution order, those of sub-programs included."""
        for node in self.nodes:
            yield node
            for body in node.bodies:
                yield from body.walk()

    def twins_of(self, value: Value) -> list[tuple[tuple[int, ...], int]]:
        """The equations that make the same value once more: their trails, and which of their outputs it is."""
        return [
            (trail, outputs.index(value))
            for graph in graphs(self)
            for trail, outputs in graph.twins
            if value in outputs
        ]


def trace(f: Callable, *args: Any) -> tuple[Any, Any]:
    """Traces `f(*args)` (a function of flat arrays) and returns its jaxpr, and the output's tree of shapes."""
    return jax.make_jaxpr(f, return_shape=True)(*args)


def _captured(var: Any, constant: Any) -> Value:
    """A constant of a jaxpr. A number that is known while tracing is one like a written one."""
    value = Value(var.aval)
    if var.aval.size == 1 and compat.is_float(var.aval) and compat.is_known(constant):
        value.constant = np.asarray(constant)
    return value


def build(
    jaxpr: Any,
    treatment: Treatment = INLINING,
    prefix: str = "",
    within: tuple[str, ...] = (),
    holders: tuple = (),
    trail: tuple[int, ...] = (),
) -> Graph:
    """The graph of a jaxpr. Its constants come first among the inputs of the outermost graph; a sub-program
    keeps its own in `constants`.

    `treatment` says what becomes of calls. `holders` are the equations that hold a sub-program, innermost first;
    `trail` is that which leads to it.
    """
    holder, consts = compat.open_jaxpr(jaxpr)
    nodes: list[Node] = []
    calls: list[Call] = []
    constants: dict[Value, Any] = {}
    env: dict[Any, Value] = {}
    twins: list[tuple[tuple[int, ...], list[Value]]] = []
    seen: dict[tuple, list[tuple[dict, list[Value]]]] = {}

    def read(atom: Any, env: dict) -> Value:
        if isinstance(atom, compat.Literal):
            return Value(atom.aval, constant=atom.val)
        return env[atom]

    def inline(
        jaxpr: Any,
        inputs: list[Value],
        prefix: str,
        within: tuple[str, ...],
        site: Any,
        trail: tuple[int, ...],
    ) -> list[Value]:
        holder, consts = compat.open_jaxpr(jaxpr)
        env = dict(zip(holder.invars, inputs, strict=True))
        for var, const in zip(holder.constvars, consts, strict=True):
            env[var] = constant = _captured(var, const)
            constants[constant] = const
        return run(holder, env, prefix, within, site, trail)

    def run(
        holder: Any, env: dict, prefix: str, within: tuple[str, ...], site: Any, trail: tuple[int, ...]
    ) -> list[Value]:
        for eqn in holder.eqns:
            inputs = [read(a, env) for a in eqn.invars]
            path = _join(prefix, compat.scope_of(eqn))
            key = _key(eqn, inputs, path)
            earlier = seen.get(key, ()) if key is not None else ()
            twin = next((outputs for params, outputs in earlier if _alike(params, eqn.params)), None)
            if twin is not None:  # what is written twice is one value, as if the user had given it a name
                env.update(zip(eqn.outvars, twin, strict=True))
                twins.append(((*trail, id(eqn)), twin))
                continue
            here, sites = (*trail, id(eqn)), (site or eqn, *holders)
            holds = CALLS.get(eqn.primitive.name)
            body = None if holds is None else eqn.params.get(holds)
            call = exchanged = None
            if body is not None or treatment.exchanges_nodes:
                call = Call(eqn, _call_name(eqn), path, here, sites, inputs)
                exchanged = treatment.exchange(call)
            plain = _as_exponential(eqn, inputs)
            if plain is not None:
                outputs = inline(plain, inputs[1:], path, within, site or eqn, here)
            elif here in treatment.apart:
                outputs = inline(treatment.apart[here], inputs, path, within, site, here)
            elif call is not None and (
                exchanged is not None or (body is not None and not treatment.keep(call))
            ):
                start = len(nodes)
                inner_site = site or (eqn if compat.is_library_call(eqn) else None)
                around = (*within, call.name)
                inner = body if exchanged is None else exchanged
                outputs = inline(inner, inputs, path, around, inner_site, here)
                call.made, call.span, call.outputs = nodes, (start, len(nodes)), outputs
                calls.append(call)
            elif (product := _as_product(eqn)) is not None:
                outputs = inline(product, inputs, path, within, site or eqn, here)
            else:
                node = Node(eqn, inputs, path, within, sites)
                node.trail = here
                node.call = None if body is None else call
                node.bodies = [
                    build(inner, treatment, path, within, sites, (*here, i))
                    for i, inner in enumerate(_bodies(eqn))
                ]
                nodes.append(node)
                outputs = node.outputs
            env.update(zip(eqn.outvars, outputs, strict=True))
            if key is not None:
                seen.setdefault(key, []).append((eqn.params, outputs))
        return [read(a, env) for a in holder.outvars]

    constvars = [_captured(var, const) for var, const in zip(holder.constvars, consts, strict=True)]
    invars = [Value(v.aval) for v in holder.invars]
    env.update(zip(holder.constvars, constvars, strict=True))
    env.update(zip(holder.invars, invars, strict=True))
    if holders:  # they are no operands of the equation that holds the sub-program
        constants.update(zip(constvars, consts, strict=True))
        constvars = []
    outputs = run(holder, env, prefix, within, None, trail)
    return _prune(Graph([*constvars, *invars], constants, nodes, outputs, calls, twins=twins))


def _key(eqn: Any, inputs: list[Value], path: str) -> tuple | None:
    """What equations that compute the same have in common, besides their parameters. None for those that are told
    apart whatever they compute."""
    name = eqn.primitive.name
    if eqn.effects or name in CALLS or name in DISTINCT or _bodies(eqn):
        return None
    return (
        name,
        path,
        *(v if v.constant is None else (_bits(v.constant), v.aval.dtype, v.shape) for v in inputs),
    )


def _bits(constant: Any) -> Any:
    """What tells a number from others, exactly; itself, if it is none."""
    array = np.asarray(constant)
    return id(constant) if array.dtype == object else array.tobytes()


def _alike(a: dict, b: dict) -> bool:
    """Whether two equations have the same parameters."""
    try:
        return bool(a == b)
    except ValueError:  # arrays among them, of which no one truth is known
        return False


def _as_exponential(eqn: Any, inputs: list[Value]) -> Any:
    """The jaxpr of exp(x log c), if an equation is the power c^x of a known positive number. Not of an x that is known
    while tracing (the frequencies of rotary embeddings), which can explain nothing and would be rounded otherwise."""
    if eqn.primitive.name != "pow" or not _depends_on_inputs(inputs[1]):
        return None
    base, x = known_number(inputs[0]), inputs[1].aval
    if base is None or np.iscomplexobj(base) or not base > 0 or base == 1:
        return None
    if not compat.is_float(x) or x.shape != eqn.outvars[0].aval.shape:
        return None
    rate = np.asarray(np.log2(base) if base == 2 else np.log(base)).astype(x.dtype)
    exponential = jnp.exp2 if base == 2 else jnp.exp
    f = lambda x: exponential(x if rate == 1 else x * rate)
    return jax.make_jaxpr(f)(jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type))


def _depends_on_inputs(value: Value) -> bool:
    """Whether a value is computed from an input, or from an array that the program captured."""
    seen, stack = set(), [value]
    while stack:
        v = stack.pop()
        if v.node is None and v.constant is None:
            return True
        if v.node is not None and v.node not in seen:
            seen.add(v.node)
            stack.extend(v.node.inputs)
    return False


def _as_product(eqn: Any) -> Any:
    """The jaxpr of a product of elements that is written as a dot, which sums nothing up and has one operand without
    axes of its own: einsum writes a scale so, and a division as a product with a reciprocal. None for any other."""
    if eqn.primitive.name != "dot_general" or eqn.params.get("out_sharding") is not None:
        return None
    (contracted, _), batches = eqn.params["dimension_numbers"]
    avals, out = [v.aval for v in eqn.invars], eqn.outvars[0].aval
    scales = any(len(batch) == len(aval.shape) for batch, aval in zip(batches, avals, strict=True))
    if contracted or not scales or not compat.is_float(out) or any(a.dtype != out.dtype for a in avals):
        return None
    if any(getattr(a, "vma", None) for a in avals):  # how devices differ is known only where it is traced
        return None

    def spread(a: Any, batch: Sequence[int]) -> Any:
        free = [d for d in range(a.ndim) if d not in batch]
        axes = range(len(out.shape)) if free else range(len(batch))
        return lax.broadcast_in_dim(lax.transpose(a, (*batch, *free)), out.shape, tuple(axes))

    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    return jax.make_jaxpr(lambda a, b: lax.mul(spread(a, batches[0]), spread(b, batches[1])))(*shapes)


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
    """The name of the function that an equation calls; that of its primitive, if it calls none."""
    key = CALLS.get(eqn.primitive.name)
    if key is None or key not in eqn.params:
        return compat.kernel_name(eqn) or eqn.primitive.name
    if "name" in eqn.params:
        return str(eqn.params["name"])
    info = getattr(compat.open_jaxpr(eqn.params[key])[0], "debug_info", None)
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


def graphs(graph: Graph) -> Iterator[Graph]:
    """A graph and those of its sub-programs."""
    yield graph
    for node in graph.nodes:
        for body in node.bodies:
            yield from graphs(body)


def known_nonnegative(constant: Any) -> bool:
    """Whether a constant is known to be non-negative without computing anything: scalars are looked at, arrays
    are not."""
    if isinstance(constant, (bool, int, float, np.generic)) or (
        isinstance(constant, np.ndarray) and constant.size == 1
    ):
        return bool(np.all(np.asarray(constant) >= 0)) if np.asarray(constant).dtype != object else False
    return False


def known_number(value: Value) -> Any:
    """The number that a constant is known to be without computing anything: a literal, perhaps spread out. Else
    None."""
    while value.node is not None and value.node.name in ("convert_element_type", "broadcast_in_dim"):
        value = value.node.inputs[0]
    constant = value.constant
    return None if constant is None or np.size(constant) != 1 else np.asarray(constant).reshape(())[()]


def known_zero(value: Value) -> bool:
    """Whether a constant is known to be zero without computing anything."""
    return known_number(value) == 0


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
