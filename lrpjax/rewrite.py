"""From units, rules and orientation to a function whose vector-Jacobian product is relevance.

The rewritten function computes what the original computes, node for node; only its derivatives are others. What is right as JAX
differentiates it is bound as it is; everything else goes through one of a few `jax.custom_vjp` functions, which close over static data only.
Loops, branches and rematerialised bodies are rewritten by the same code and handed to the public `lax.scan`, `lax.switch`, `jax.checkpoint`.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lrpjax.cotangents import (
    BROKEN,
    EPSILON,
    PASSED,
    RECEIVED,
    convert,
    detach,
    metered,
    relevance_of,
    scale,
    unbroadcast,
    wide,
    with_backward,
)
from lrpjax.errors import PathError, RuleError, UnsupportedError
from lrpjax.explained import Weighted, activation, arrays_of, max_pool, passing_on
from lrpjax.graph import Node, Value
from lrpjax.plan import Orientation, is_native
from lrpjax.primitives import IN_NUMPY
from lrpjax.rules import (
    PLAIN,
    RATIO,
    Deconvnet,
    Epsilon,
    Gradient,
    GuidedBackprop,
    Norm,
    Pass,
    Product,
    Rule,
    Sum,
    divide,
)
from lrpjax.units import Level, Unit

DEFAULT = Epsilon(1e-6)
"""The rule of weighted layers that no composite names."""


# ------------------------------------------------------------------------------------------------------------------------- execution


class Rewritten:
    """A level's function with relevance for derivative.

    `tapped` lists values at which relevance is asked for or weighted: `run` takes a pair of arrays for each of them, either of which may be
    None. It adds the first (zeros) to the value and returns the value; it multiplies the second onto the value's cotangent, and with it onto
    the relevance that goes on from there.
    `audited` lists units of which an account is asked for: `run` is given a slot (zeros) for each, whose cotangent is the account.
    """

    def __init__(
        self,
        rules: Mapping[Unit, Rule | None],
        found: Orientation,
        tapped: Sequence[Value],
        audited: Sequence[Unit] = (),
    ):
        self.rules = rules
        self.found = found
        self.tapped = {v: i for i, v in enumerate(tapped)}
        self.owner = {node: unit for unit in found.given for node in unit.nodes}
        self.audited = {unit: i for i, unit in enumerate(audited)}
        self.made = {v: unit for unit in audited for v in unit.outputs}

    def run(
        self,
        level: Level,
        inputs: Sequence[Any],
        taps: Mapping[int, tuple[Any, Any]],
        slots: Sequence[Any] = (),
    ) -> tuple[list, dict[int, Any]]:
        """(outputs, {index of a tapped value: its value}) of a level."""
        frame = _Frame(self, level, taps, slots)
        for value, array in zip(level.graph.inputs, inputs, strict=True):
            frame.define(value, array)
        for step in level.order:
            frame.execute(step)
        return [frame.read(v) for v in level.graph.outputs], frame.seen

    def rectified(self, value: Value) -> bool:
        """Whether every way of relevance to a value leads through a ReLU of it, or of a selection of its elements."""
        if value.returned or value in self.tapped:
            return False
        for user in value.users:
            unit = self.owner.get(user)
            if unit is None:
                continue
            if (
                unit.kind == "activation"
                and unit.name in ("relu", "relu6")
                and isinstance(self.rules[unit], (Pass, type(None)))
            ):
                continue
            if not (unit.kind == "structural" or unit.name == "max_pool") or not all(
                self.rectified(v) for v in unit.outputs if v in self.found.live
            ):
                return False
        return True

    def taps_in(self, level: Level) -> list[int]:
        """The tapped values that stand in a level or in its sub-programs."""
        inside = [v for n in level.graph.nodes for v in n.outputs]
        found = [self.tapped[v] for v in [*level.graph.inputs, *inside] if v in self.tapped]
        return found + [i for unit in level.units for body in unit.bodies for i in self.taps_in(body)]


class _Frame:
    """One execution of one level: the values computed so far."""

    def __init__(
        self, program: Rewritten, level: Level, taps: Mapping[int, tuple[Any, Any]], slots: Sequence[Any]
    ):
        self.program = program
        self.slots = slots
        self.found = program.found
        self.taps = taps
        self.seen: dict[int, Any] = {}
        self.env: dict[Value, Any] = dict(level.graph.constants)
        self.detached: dict[Value, Any] = {}

    def define(self, value: Value, array: Any) -> None:
        index = self.program.tapped.get(value)
        if index is not None:
            zeros, weight = self.taps[index]
            if zeros is not None:
                self.seen[index] = array
                array = array + zeros
            if weight is not None:
                array = scale(array, weight)
        maker = self.program.made.get(value)
        if maker is not None and value in self.found.live:
            array = self.audit(maker, array, self.found.form[value], {RECEIVED: 1, BROKEN: 1})
        self.env[value] = array

    def audit(self, unit: Unit, array: Any, form: str, weights: Mapping[int, float]) -> Any:
        """The array, at which the relevance that passes is entered into the account of a unit, if there is one."""
        index = self.program.audited.get(unit)
        return array if index is None else metered(array, self.slots[index], form, weights)

    def read(self, value: Value) -> Any:
        return value.constant if value.constant is not None else self.env[value]

    def fixed(self, value: Value) -> Any:
        """A value as a constant of the relevance."""
        if value not in self.found.live:
            return self.read(value)
        if value not in self.detached:
            self.detached[value] = detach(self.env[value])
        return self.detached[value]

    def known(self, value: Value) -> Any:
        """A constant as a concrete array, where all that it is computed from is concrete; else None."""
        if value.constant is not None:
            return value.constant
        if value in self.env and not isinstance(self.env[value], jax.core.Tracer):
            return self.env[value]
        if value.node is None or value.carries or value.node.bodies:
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
        elif step not in self.found.given:
            for node in step.nodes:
                self.bind(node, self.fixed)
        elif step.bodies:
            self.structured(step)
        else:
            self.explain(step, self.program.rules[step])
            self.stop(step)

    def stop(self, unit: Unit) -> None:
        """Detaches what a unit makes besides that through which relevance flows: the half of a split that becomes a gate.

        Not what leaves a loop or a branch, which was detached inside: done again, without a tangent to stop, it would stop those of derivatives
        of the relevance.
        """
        for value in (v for node in unit.nodes for v in node.outputs):
            used = value.returned or any(user not in unit.nodes for user in value.users)
            if used and value.carries and value not in self.found.live:
                self.env[value] = detach(self.env[value])

    def bind(self, node: Node, read: Callable[[Value], Any]) -> None:
        for value, array in zip(node.outputs, _bind(node, [read(v) for v in node.inputs]), strict=True):
            self.define(value, array)

    # --------------------------------------------------------------------------------------------------------------- units with rules

    def operand(self, unit: Unit, value: Value) -> Any:
        """An operand of a unit; where relevance flows, with its cotangent converted to the form of the value."""
        emits = self.found.emits[unit].get(value)
        if emits is None:
            return self.fixed(value)
        array, form = self.env[value], self.found.form[value]
        array = array if emits == form else convert(array, None, emits, form)
        return self.audit(unit, array, emits, {PASSED: 1})

    def rectified(self, unit: Unit) -> bool:
        """Whether relevance reaches a unit only where its output is positive: all of it comes through ReLUs, in ratio form."""
        return self.found.form[unit.out] == RATIO and self.program.rectified(unit.out)

    def explain(self, unit: Unit, rule: Rule | None) -> None:
        given, form = self.found.given[unit], self.found.form
        if isinstance(rule, Gradient):
            self.native(unit)
        elif unit.kind in ("dense", "conv") and not is_native(unit, rule):
            self.layer(unit, rule)
        elif unit.kind == "activation":
            self.custom(unit, *activation(unit, rule, form[unit.out]), rule)
        elif given == PLAIN and unit.kind in ("affine", "norm", "quotient"):
            self.custom(unit, *passing_on(unit, form[unit.out]), rule)
        elif unit.kind == "product":
            self.product(unit, rule)
        elif unit.weights is not None:
            self.divided_late(unit, rule)
        elif unit.kind == "custom" and not isinstance(rule, (Epsilon, Norm)):
            self.called(unit, rule)
        elif isinstance(rule, Sum) and rule.share != "native":
            self.shared_sum(unit, rule)
        else:
            self.native(unit, epsilon=_epsilon(unit, rule))

    def native(
        self,
        unit: Unit,
        epsilon: Any = None,
        operand: Callable[[Value], Any] | None = None,
        share: np.ndarray | None = None,
    ) -> None:
        """Binds a unit's nodes as they are; converts the cotangents at its border, of which only `share` enters."""
        inner = {v for node in unit.nodes for v in node.outputs}
        cache: dict[Value, Any] = {}

        def read(value: Value) -> Any:
            if value in inner:
                return self.env[value]
            if operand is not None:
                return operand(value)
            if value not in cache:
                cache[value] = self.operand(unit, value)
            return cache[value]

        given = self.found.given[unit]
        for node in unit.nodes[:-1]:
            self.bind(node, read)
        last = unit.nodes[-1]
        for value, array in zip(last.outputs, _bind(last, [read(v) for v in last.inputs]), strict=True):
            form = self.found.form.get(value)
            if share is not None:
                array = scale(array, jnp.asarray(share, wide(array).real.dtype))
            if value in self.found.live and (form != given or epsilon is not None):
                if epsilon is not None:
                    array = self.audit(unit, array, given, {EPSILON: -1})
                array = convert(array, epsilon, form, given, epsilon is not None and self.rectified(unit))  # type: ignore[arg-type]
                if epsilon is not None:
                    array = self.audit(unit, array, form, {EPSILON: 1})  # type: ignore[arg-type]
            self.define(value, array)

    def custom(
        self, unit: Unit, forward: Callable, backward: Callable, externals: list[Value], rule: Rule | None
    ) -> None:
        """Evaluates a unit of one relevant operand and one output with a backward function of its own."""
        (x,) = self.found.emits[unit] or unit.passing[:1]
        rest = [self.fixed(v) for v in externals]
        self.define(unit.out, with_backward(forward, backward, self.operand(unit, x), rest, arrays_of(rule)))

    def layer(self, unit: Unit, rule: Rule | None) -> None:
        """A weighted layer whose rule is more than the native transpose."""
        (x,) = self.found.emits[unit]
        rectified = self.rectified(unit)
        index = self.program.audited.get(unit)
        weighted = Weighted(unit, x, rule or DEFAULT, self.found.form[unit.out], rectified, index is not None)
        operand, slot = self.operand(unit, x), None if index is None else self.slots[index]
        externals, leaves = [self.fixed(v) for v in weighted.externals], arrays_of(rule)
        rest = externals, weighted.prepare([self.known(v) for v in weighted.externals], leaves), leaves
        y = with_backward(weighted.forward, weighted.backward, operand, *rest, rectified=rectified, slot=slot)
        self.define(unit.out, y)

    def product(self, unit: Unit, rule: Rule | None) -> None:
        """y = a·b·…: the native derivative, which gives each factor all of the relevance, times each factor's share."""
        emits = self.found.emits[unit]
        if unit.name == "reduce_product":
            self.native(unit, epsilon=_epsilon(unit, rule), share=1 / _factors(unit.nodes[0]))
            return
        factors = [v for v in unit.operands if v in emits]
        share = rule.share if isinstance(rule, Product) else "uniform"
        weights: dict[Value, Any] = dict.fromkeys(factors, 1.0 / len(factors))
        if share == "magnitude" and len(factors) > 1:
            sizes = {v: jnp.abs(wide(self.fixed(v))) for v in dict.fromkeys(factors)}
            total = functools.reduce(jnp.add, (sizes[v] for v in factors))
            weights = {v: divide(jnp.broadcast_to(sizes[v], total.shape), total) for v in sizes}

        def operand(value: Value) -> Any:
            array = self.operand(unit, value)
            if value not in emits or len(factors) == 1:
                return array
            weight = weights[value]
            if share == "magnitude":
                array = jnp.broadcast_to(array, weight.shape)
            return scale(array, jnp.asarray(weight, wide(array).real.dtype))

        self.native(unit, epsilon=_epsilon(unit, rule), operand=operand)

    def divided_late(self, unit: Unit, rule: Rule | None) -> None:
        """Σ e v / Σ e: the native derivative, of which e takes the share that the product e v leaves to it, above the line and below."""
        product = self.program.owner.get(unit.core)  # type: ignore[arg-type]
        rule_of_product = None if product is None else self.program.rules[product]
        factors = (
            [] if product is None else [v for v in product.operands if v in (self.found.emits[product] or {})]
        )
        if isinstance(rule_of_product, Product) and rule_of_product.share == "magnitude":
            raise RuleError(
                f"Product: share='magnitude' is not defined for the softmax at {unit.nodes[0].source}, which is divided by its sum after the "
                "product: divide before it"
            )
        share = 1 / len(factors) if unit.weights in factors else 0.0
        if isinstance(rule_of_product, Gradient):
            share = 1.0
        bottom = unit.nodes[0].inputs[1]

        def operand(value: Value) -> Any:
            array = self.operand(unit, value)
            return scale(array, jnp.asarray(share, wide(array).real.dtype)) if value is bottom else array

        self.native(unit, epsilon=_epsilon(unit, rule), operand=operand)

    def called(self, unit: Unit, rule: Rule | None) -> None:
        """A function with a relevance of its own (or `Pass`): relevance goes in and comes out as such."""
        node = unit.nodes[0]
        call, count = node.params["call"], len(node.inputs) - node.params["call"].consts
        forms = [self.found.form.get(v, PLAIN) for v in node.outputs]
        if rule is not None and (
            count != 1 or node.inputs[-1].shape != node.out.shape or len(node.outputs) != 1
        ):
            raise RuleError(
                f"Pass cannot explain {call}: it must map one array to one array of the same shape"
            )

        @jax.custom_vjp
        def run(*values):
            return list(call(*values))

        def fwd(*values):
            out, residuals = (call(*values), None) if rule is not None else call.forward(*values)
            return list(out), (residuals, list(values), list(out))

        def bwd(residuals, cotangents):
            residuals, values, out = residuals
            R = [
                relevance_of(y, c, form).astype(y.dtype)
                for y, c, form in zip(out, cotangents, forms, strict=True)
            ]
            relevances = R if rule is not None else call.backward(residuals, R)
            flat = [None] * (len(values) - count) + list(relevances)
            return tuple(
                None if r is None else jnp.asarray(r).astype(v.dtype)
                for r, v in zip(flat, values, strict=True)
            )

        run.defvjp(fwd, bwd)
        for value, array in zip(
            node.outputs, run(*(self.operand(unit, v) for v in node.inputs)), strict=True
        ):
            self.define(value, array)

    def shared_sum(self, unit: Unit, rule: Sum) -> None:
        """y = a ± b with shares of the relevance that do not follow the terms."""
        node = unit.nodes[-1]
        a, b = node.inputs
        share, shapes, have = rule.share, (a.shape, b.shape), self.found.form[unit.out]

        @jax.custom_vjp
        def call(a, b):
            return _bind(node, [a, b])[0]

        def bwd(residuals, c):
            a, b, y = (wide(v) for v in residuals)
            R = wide(c) if have == PLAIN else wide(c) * y
            if share == "magnitude":
                size_a, size_b = jnp.abs(a), jnp.abs(b)
                part = divide(jnp.broadcast_to(size_a, y.shape), jnp.broadcast_to(size_a + size_b, y.shape))
            else:
                part = jnp.asarray({"uniform": 0.5, 0: 1.0, 1: 0.0}[share], y.dtype)
            parts = (R * part, R * (1 - part))
            return tuple(
                unbroadcast(p, s).astype(v.dtype)
                for p, s, v in zip(parts, shapes, residuals[:2], strict=True)
            )

        def fwd(a, b):
            y = call(a, b)
            return y, (a, b, y)

        call.defvjp(fwd, bwd)
        self.define(unit.out, call(self.operand(unit, a), self.operand(unit, b)))

    # ------------------------------------------------------------------------------------------------------------- structured control

    def structured(self, unit: Unit) -> None:
        node = unit.nodes[0]
        run = getattr(self, f"run_{unit.kind}")
        arrays = [self.operand(unit, v) for v in node.inputs]
        for value, array in zip(node.outputs, run(unit, node, arrays), strict=True):
            self.define(value, array)

    def enter(self, unit: Unit, body: Level, operands: Sequence[Value], arrays: Sequence[Any]) -> list:
        """A body's inputs, with cotangents converted from the form of the value inside to that which the unit emits for the operand."""
        emits, form, entered = self.found.emits[unit], self.found.form, []
        for operand, inner, array in zip(operands, body.graph.inputs, arrays, strict=True):
            if operand in emits and inner in self.found.live and form[inner] != emits[operand]:
                array = convert(array, None, form[inner], emits[operand])
            entered.append(array)
        return entered

    def leave(self, unit: Unit, body: Level, outputs: list) -> list:
        """A body's outputs, with cotangents converted from the form of the value outside to that of the value inside."""
        converted = []
        for outer, inner, array in zip(unit.outputs, body.graph.outputs, outputs, strict=True):
            have = self.found.form.get(outer, RATIO)
            want = self.found.form.get(inner, RATIO) if inner in self.found.live else have
            converted.append(
                convert(array, None, have, want) if have != want and outer in self.found.live else array
            )
        return converted

    def run_remat(self, unit: Unit, node: Node, arrays: list) -> list:
        body = unit.bodies[0]
        taps = {i: self.taps[i] for i in self.program.taps_in(body)}

        def run(arrays, taps):
            outputs, seen = self.program.run(
                body, self.enter(unit, body, node.inputs, arrays), taps, self.slots
            )
            return self.leave(unit, body, outputs), seen

        outputs, seen = jax.checkpoint(
            run, prevent_cse=node.params["prevent_cse"], policy=node.params["policy"]
        )(arrays, taps)
        self.seen.update(seen)
        return outputs

    def run_cond(self, unit: Unit, node: Node, arrays: list) -> list:
        indices = [self.program.taps_in(body) for body in unit.bodies]
        taps = {i: self.taps[i] for group in indices for i in group}

        def branch(body: Level) -> Callable:
            def run(arrays, taps):
                outputs, seen = self.program.run(
                    body, self.enter(unit, body, node.inputs[1:], arrays), taps, self.slots
                )
                return self.leave(unit, body, outputs), {
                    i: seen.get(i, jnp.zeros_like(z)) for i, (z, _) in taps.items() if z is not None
                }

            return run

        outputs, seen = lax.switch(arrays[0], [branch(body) for body in unit.bodies], arrays[1:], taps)
        self.seen.update(seen)
        return outputs

    def run_shard_map(self, unit: Unit, node: Node, arrays: list) -> list:
        """Each device runs the rewritten body on its shard; what a collective gathers, its transpose hands back."""
        body, p = unit.bodies[0], node.params
        if self.program.taps_in(body):
            raise PathError(
                "`at=`, or a condition, names a value inside a shard_map, of which each device has its own: name one outside"
            )
        rules = [self.program.rules[u] for u in body.walk()]
        if not p["check_vma"] and any(isinstance(r, (Deconvnet, GuidedBackprop)) for r in rules):
            raise RuleError(
                f"{node.source}: deconvnet and guided backprop need shard_map(..., check_vma=True): without it each device holds a part of "
                "the backward signal, and the positive part of a sum is not the sum of positive parts"
            )

        def run(arrays, slots):
            outputs, _ = self.program.run(body, self.enter(unit, body, node.inputs, arrays), {}, slots)
            return self.leave(unit, body, outputs)

        specs = {"in_specs": (list(p["in_specs"]), PartitionSpec()), "out_specs": list(p["out_specs"])}
        names = set(p.get("newly_manual_axes", p.get("manual_axes", ())))
        mapped = jax.shard_map(run, mesh=p["mesh"], **specs, axis_names=names, check_vma=p["check_vma"])
        return mapped(arrays, self.slots)

    def run_scan(self, unit: Unit, node: Node, arrays: list) -> list:
        body = unit.bodies[0]
        first, count = node.carry
        arrays = self.enter(unit, body, node.inputs, arrays)
        consts, init, xs = arrays[:first], arrays[first : first + count], arrays[first + count :]
        taps = {i: self.taps[i] for i in self.program.taps_in(body)}
        forms = [self.found.form.get(v, RATIO) for v in body.graph.inputs[first : first + count]]

        def step(carry, slices):
            xs, taps = slices
            outputs, seen = self.program.run(body, [*consts, *carry, *xs], taps, self.slots)
            carry = [
                self.carry_over(o, a, f)
                for o, a, f in zip(body.graph.outputs[:count], outputs[:count], forms, strict=True)
            ]
            return carry, (outputs[count:], seen)

        p = node.params
        carry, (ys, seen) = lax.scan(
            step, list(init), (list(xs), taps), p["length"], p["reverse"], p["unroll"]
        )
        self.seen.update(seen)
        outside = [
            convert(a, None, self.found.form[v], f) if v in self.found.live and self.found.form[v] != f else a
            for v, a, f in zip(unit.outputs[:count], carry, forms, strict=True)
        ]
        return outside + list(ys)

    def carry_over(self, value: Value, array: Any, form: str) -> Any:
        """A carry at the end of a step: from the form that the next step gives to the form that this step wants."""
        have, want = form, self.found.form.get(value, RATIO)
        return convert(array, None, have, want) if value in self.found.live and have != want else array


def _bind(node: Node, values: Sequence[Any]) -> list:
    """Binds a node, with the derivative 0 at 0 that jax.nn gives its rectifiers (the bare maximum has ½ there), and max pools with a quick one."""
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
        if not re.search("JVP|gradient|differentia", str(error)):
            raise
        raise UnsupportedError(
            f"relevance cannot be propagated through\n  {node.place}: JAX has no derivative of it ({error}). "
            "Detach it with jax.lax.stop_gradient, or give it a relevance of its own with custom_relevance"
        ) from error


def _factors(node: Node) -> np.ndarray:
    """The number of factors of each element of a product along axes."""
    x, p = node.inputs[0], node.params
    if node.name == "reduce_prod":
        return np.asarray(math.prod(x.shape[a] for a in p["axes"]))
    numbers = np.arange(1, x.shape[p["axis"]] + 1)
    return np.expand_dims(
        numbers[::-1] if p["reverse"] else numbers, [d for d in range(len(x.shape)) if d != p["axis"]]
    )


def _pair(node: Node, at: int, x: Any, bound: Any) -> Any:
    return node.bind(*((x, bound) if at == 0 else (bound, x)))[0]


def _mask(x, rest, y, c):
    return c * ((y == x) & (y != rest[0])).astype(c.dtype)


def _epsilon(unit: Unit, rule: Rule | None) -> Any:
    """The stabiliser at the output of a unit whose nodes are bound as they are; None for none."""
    if rule is None and unit.kind in ("dense", "conv"):
        rule = DEFAULT
    if not isinstance(rule, (Epsilon, Norm)) or (
        isinstance(rule.epsilon, (int, float)) and rule.epsilon == 0
    ):
        return None
    return jnp.asarray(rule.epsilon)
