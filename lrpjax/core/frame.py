"""From units, propagations and routes to a function whose vector-Jacobian product is relevance.

The rewritten function computes what the original computes, node for node; only its derivatives are others. What
is right as JAX differentiates it is bound as it is; everything else goes through one of a few `jax.custom_vjp`
functions, which close over static data only.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lrpjax.core.alike import bodies_alike
from lrpjax.core.graph import Node, Value
from lrpjax.core.kinds.base import Propagation
from lrpjax.core.kinds.control import SAVED, denominators, keeping_too
from lrpjax.core.maxima import max_pool
from lrpjax.core.plan import Routes
from lrpjax.core.primitives import BETWEEN_DEVICES, IN_NUMPY
from lrpjax.core.units import Level, Unit
from lrpjax.core.vjps import (
    BROKEN,
    EPSILON,
    PASSED,
    RECEIVED,
    SIZE_PASSED,
    SIZE_RECEIVED,
    absorbing,
    convert,
    detach,
    junction,
    metered,
    scale,
    wide,
    widen,
    with_backward,
)
from lrpjax.errors import UnsupportedError
from lrpjax.rules import PLAIN, RATIO, Rule


class Tap(NamedTuple):
    """What a run does at a tapped value; every entry may be None. Inside of loops arrays are stacked over the steps.

    put: (where, array), with which the value is replaced, where the first is true. zeros: is added, so that its
    cotangent is that of the value, which the run returns. weight: is multiplied onto the cotangent, and with it onto
    the relevance that goes on from there. gate: a number, with which the tap is a `junction`; the run returns a pair,
    the value and the gate, whose cotangents steer the backward pass.
    """

    zeros: Any = None
    weight: Any = None
    gate: Any = None
    put: Any = None

    @property
    def silent(self) -> Any:
        """Zeros of what the run returns here: for a branch that the value does not stand in."""
        return jax.tree.map(jnp.zeros_like, self.zeros if self.gate is None else (self.zeros, self.gate))


class Rewritten:
    """A level's function with relevance for derivative.

    `tapped` lists values at which relevance is asked for, weighted or steered: `run` takes a `Tap` for each of them.
    `audited` lists units, and values at which relevance ends (`lrpjax.core.ends`) with the unit that reads them, of
    which an account is asked for: `run` is given a slot (zeros) for each, whose cotangent is the account. At `stops`,
    tapped values, relevance is read and goes no further. `crediting`: constants have cotangents, too; what depends on
    the explained input, and gets no relevance, hands none to them.
    """

    def __init__(
        self,
        propagations: Mapping[Unit, Propagation],
        routes: Routes,
        tapped: Sequence[Value],
        audited: Sequence[Unit | tuple[Unit, Value]] = (),
        stops: frozenset[Value] = frozenset(),
        crediting: bool = False,
    ):
        self.crediting = crediting
        self.propagations = propagations
        self.routes = routes
        self.tapped = {v: i for i, v in enumerate(tapped)}
        self.owner = {node: unit for unit in routes.takes for node in unit.nodes}
        self.readers: dict[Value, list[Unit]] = {}
        for unit in routes.takes:
            for value in unit.operands:
                self.readers.setdefault(value, []).append(unit)
        self.audited = {entry: i for i, entry in enumerate(audited)}
        self.made = {v: unit for unit in audited if isinstance(unit, Unit) for v in unit.outputs}
        self.stops = stops
        # What a rule takes from the place of its unit in the whole program is not the same for units that are alike.
        rules = (getattr(p, "rule", None) for p in propagations.values())
        self.saved = denominators(propagations, routes.takes)
        self.anywhere = not any(isinstance(rule, Rule) and rule.of_argument for rule in rules)

    def run(
        self,
        level: Level,
        inputs: Sequence[Any],
        taps: Mapping[int, Tap],
        slots: Sequence[Any] = (),
    ) -> tuple[list, dict[int, Any]]:
        """(outputs, {index of a tapped value: what its tap returns}) of a level."""
        frame = Frame(self, level, taps, slots)
        for value, array in zip(level.inputs, inputs, strict=True):
            frame.define(value, array)
        for step in level.steps:
            frame.execute(step)
        return [frame.read(v) for v in level.outputs], frame.seen

    def rectified(self, value: Value) -> bool:
        """Whether every way of relevance to a value leads through a ReLU of it, or of a selection of its elements."""
        if value.returned or value in self.tapped:
            return False
        for unit in self.readers.get(value, ()):
            how = self.propagations[unit]
            if how.rectifies:
                continue
            if not how.selects or not all(
                self.rectified(v) for v in unit.outputs if v in self.routes.reached
            ):
                return False
        return True

    def taps_in(self, level: Level) -> list[int]:
        """The tapped values that stand in a level or in its sub-programs."""
        inside = [v for n in level.graph.nodes for v in n.outputs]
        own = [self.tapped[v] for v in [*level.inputs, *inside] if v in self.tapped]
        return own + [i for unit in level.units for body in unit.bodies for i in self.taps_in(body)]


class Frame:
    """One execution of one level: the values computed so far."""

    def __init__(self, program: Rewritten, level: Level, taps: Mapping[int, Tap], slots: Sequence[Any]):
        self.program, self.routes = program, program.routes
        self.taps, self.slots = taps, slots
        self.seen: dict[int, Any] = {}
        self.env: dict[Value, Any] = dict(level.graph.constants)
        self.detached: dict[Value, Any] = {}
        self.made: list[tuple[Unit, Callable]] = []

    def define(self, value: Value, array: Any) -> None:
        """Sets a value; at a tapped one relevance is read or weighted, at one that an audited unit makes it is
        entered into the account."""
        index = self.program.tapped.get(value)
        if index is not None:
            tap = self.taps[index]
            if tap.put is not None:
                array = jnp.where(tap.put[0], tap.put[1], array)
            if tap.gate is not None:
                array, value_seen, gate = junction(array, tap.zeros, tap.gate)
                self.seen[index] = value_seen, gate
            elif tap.zeros is not None:
                self.seen[index] = array
                array = (detach(array) if value in self.program.stops else array) + tap.zeros
            if tap.weight is not None:
                array = scale(array, tap.weight)
        maker = self.program.made.get(value)
        if maker is not None and value in self.routes.reached and value not in self.program.stops:
            array = self.audit(
                maker, array, self.routes.form[value], {RECEIVED: 1, BROKEN: 1, SIZE_RECEIVED: 1}
            )
        self.env[value] = array

    def like_before(self, unit: Unit, run: Callable) -> Callable:
        """What runs the body of a unit: the function of an earlier unit of this level, if that does the same, so that
        JAX need not trace and differentiate another one."""
        program = self.program
        if self.slots or not program.anywhere:
            return run
        for earlier, made in self.made:
            if bodies_alike(program.propagations, self.routes, earlier, unit):
                return made
        self.made.append((unit, run))
        return run

    def keeping(self, policy: Callable | None) -> Callable | None:
        """What a rematerialised body keeps: what the user's policy does, and the `denominators`."""
        return keeping_too(policy) if self.program.saved else policy

    def slot_of(self, unit: Unit) -> Any:
        """The slot of an audited unit, or None."""
        index = self.program.audited.get(unit)
        return None if index is None else self.slots[index]

    def audit(self, unit: Unit, array: Any, form: str, weights: Mapping[int, float]) -> Any:
        """The array, at which the relevance that passes is entered into the account of a unit, if there is one."""
        slot = self.slot_of(unit)
        return array if slot is None else metered(array, slot, form, weights)

    def absorb(self, unit: Unit, value: Value, array: Any, form: str) -> Any:
        """A constant, at which the relevance that ends there is entered into its account, if there is one."""
        index = self.program.audited.get((unit, value))
        if index is None:
            return array
        return absorbing(jnp.asarray(array, value.aval.dtype), self.slots[index], form)

    def read(self, value: Value) -> Any:
        return value.constant if value.constant is not None else self.env[value]

    def fixed(self, value: Value) -> Any:
        """A value as a constant of the relevance."""
        if value not in self.routes.reached and not (self.program.crediting and value.carries):
            return self.read(value)
        if value not in self.detached:
            self.detached[value] = detach(self.read(value))
        return self.detached[value]

    def known(self, value: Value) -> Any:
        """A constant as a concrete array, where all that it is computed from is concrete; else None."""
        if value.constant is not None:
            return value.constant
        if value in self.env and not isinstance(self.env[value], jax.core.Tracer):
            return self.env[value]
        if value.node is None or value.carries or value.node.bodies or value.node.name in BETWEEN_DEVICES:
            return None
        inputs = [self.known(v) for v in value.node.inputs]
        if any(i is None for i in inputs):
            return None
        in_numpy = IN_NUMPY.get(value.node.name)
        if in_numpy is not None:
            return in_numpy(*map(np.asarray, inputs), **value.node.params)
        with jax.ensure_compile_time_eval():
            outputs = value.node.bind(*inputs)
        return outputs[value.node.outputs.index(value)]

    def execute(self, step: Unit | Node) -> None:
        if isinstance(step, Node):
            self.bind(step, self.fixed)
        elif step not in self.routes.takes:
            self.bind_fixed(step)
        else:
            self.program.propagations[step].run(self)
            if not step.bodies:
                self.stop(step)

    def stop(self, unit: Unit) -> None:
        """Detaches what a unit makes besides that through which relevance flows: the half of a split that
        becomes a gate.

        Not what leaves a loop or a branch, which was detached inside: done again, without a tangent to stop, it
            would stop those of derivatives of the relevance.
        """
        for value in (v for node in unit.nodes for v in node.outputs):
            used = value.returned or any(user not in unit.nodes for user in value.users)
            if used and value.carries and value not in self.routes.reached:
                self.env[value] = detach(self.env[value])

    def bind(self, node: Node, read: Callable[[Value], Any]) -> None:
        for value, array in zip(node.outputs, _bind(node, [read(v) for v in node.inputs]), strict=True):
            self.define(value, array)

    def bind_fixed(self, unit: Unit) -> None:
        """Runs a unit through which no relevance goes."""
        for node in unit.nodes:
            self.bind(node, self.fixed)

    def operand(self, unit: Unit, value: Value) -> Any:
        """An operand of a unit; where relevance flows, with its cotangent converted from the form that the unit
        gives to that of the value."""
        gives = self.routes.gives[unit].get(value)
        if gives is None:
            fixed = self.fixed(value)
            return fixed if unit.bodies else self.absorb(unit, value, fixed, self.routes.takes[unit])
        array, form = self.env[value], self.routes.form[value]
        array = array if gives == form else convert(array, None, gives, form)
        valid = self.program.propagations[unit].valid
        if valid is not None:
            array = scale(array, jnp.where(valid, 1.0, jnp.nan))
        return self.audit(unit, array, gives, {PASSED: 1, SIZE_PASSED: 1})

    def rectified(self, value: Value) -> bool:
        """Whether relevance reaches a value only where it is positive: all of it comes through ReLUs, in ratio form."""
        return self.routes.form[value] == RATIO and self.program.rectified(value)

    def native(
        self,
        unit: Unit,
        epsilon: Any = None,
        operand: Callable[[Value, int], Any] | None = None,
        share: np.ndarray | None = None,
    ) -> None:
        """Binds a unit's nodes as they are; converts the cotangents at its border, of which only `share` enters.

        epsilon: the stabiliser of the outputs' denominator. operand: makes an operand from a value and its
            place among those of its node.
        """
        inner = {v for node in unit.nodes for v in node.outputs}
        operands: dict[Value, Any] = {}
        inside: dict[Value, Any] = {}
        takes = self.routes.takes[unit]
        widened = self._widened(unit)

        def read(value: Value, place: int) -> Any:
            if value in inner:
                return inside[value]
            if value not in operands or operand is not None:
                array = operand(value, place) if operand is not None else self.operand(unit, value)
                if takes == RATIO and self.routes.gives[unit].get(value) == PLAIN:
                    array = widen(array) if widened else convert(array, None, RATIO, PLAIN)
                operands[value] = wide(array) if widened else array
            return operands[value]

        def bind(node: Node) -> list:
            return _bind(node.widened() if widened else node, _operands(node, read))

        for node in unit.nodes[:-1]:
            for value, array in zip(node.outputs, bind(node), strict=True):
                if not widened:
                    self.define(value, array)
                    array = self.env[value]
                elif value.returned or any(user not in unit.nodes for user in value.users):
                    self.define(value, array.astype(value.aval.dtype))
                inside[value] = array
        for value, array in zip(unit.nodes[-1].outputs, bind(unit.nodes[-1]), strict=True):
            form = self.routes.form.get(value)
            if share is not None:
                array = scale(array, jnp.asarray(share, wide(array).real.dtype))
            if value in self.routes.reached and (form != takes or epsilon is not None):
                if epsilon is not None:
                    array = self.audit(unit, array, takes, {EPSILON: -1})
                rectified = epsilon is not None and self.rectified(unit.out)
                if value in self.program.saved:
                    array = checkpoint_name(array, SAVED)
                array = convert(array, epsilon, form, takes, rectified)  # type: ignore[arg-type]
                if epsilon is not None:
                    array = self.audit(unit, array, form, {EPSILON: 1})  # type: ignore[arg-type]
            self.define(value, array.astype(value.aval.dtype) if widened else array)

    def _widened(self, unit: Unit) -> bool:
        """Whether a unit is run in float32 because relevance divided by its float16 values would overflow."""
        takes, gives = self.routes.takes[unit], self.routes.gives[unit]
        inner = {v for node in unit.nodes for v in node.outputs}
        return (
            takes == RATIO
            and any(v.narrow for v in (*gives, *unit.outputs))
            and not any(node.name == "custom_relevance_call" for node in unit.nodes)
            and not any(v in self.program.tapped for v in inner if v not in unit.outputs)
        )


def _operands(node: Node, read: Callable[[Value, int], Any]) -> list:
    return [read(v, place) for place, v in enumerate(node.inputs)]


def _bind(node: Node, values: Sequence[Any]) -> list:
    """Binds a node, with the derivative 0 at 0 that jax.nn gives its rectifiers (the bare maximum has ½ there),
    and max pools with a quick one."""
    if (
        node.name in ("max", "min")
        and {"relu", "relu6"} & set(node.within)
        and sum(v.carries for v in node.inputs) == 1
    ):
        at = 0 if node.inputs[0].carries else 1
        x, bound = values[at], values[1 - at]
        return [with_backward(functools.partial(_pair, node, at), _mask, x, bound)]
    if node.name == "reduce_window_max" and node.inputs[0].carries and (own := max_pool(node)):
        return [with_backward(*own, *values)]
    try:
        return node.bind(*values)
    except (NotImplementedError, ValueError) as error:
        if not re.search("JVP|gradient|differentia|derivative", str(error), re.IGNORECASE):
            raise
        raise UnsupportedError(
            f"relevance cannot be propagated through\n  {node.place}: JAX has no derivative of it ({error}). "
            "Detach it with jax.lax.stop_gradient, or give it a relevance of its own with custom_relevance"
        ) from error


def _pair(node: Node, at: int, x: Any, bound: Any) -> Any:
    return node.bind(*((x, bound) if at == 0 else (bound, x)))[0]


def _mask(x, rest, y, c):
    return c * ((y == x) & (y != rest[0])).astype(c.dtype)
