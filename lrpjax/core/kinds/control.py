"""Loops, branches, rematerialised and sharded bodies: their sub-programs are rewritten and handed to JAX's
public functions.

The rule of such a unit is that of what stands inside.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from lrpjax.core.graph import Value
from lrpjax.core.kinds.base import Kind, Propagation, Proportional, refused
from lrpjax.core.units import Level, Unit
from lrpjax.core.vjps import convert
from lrpjax.errors import PathError, RuleError
from lrpjax.rules import PLAIN, RATIO

SAVED = "lrpjax_denominator"
"""The name of values that a rematerialised body keeps."""

_KEEPING = jax.checkpoint_policies.save_only_these_names(SAVED)


@functools.cache
def keeping_too(policy: Callable | None) -> Callable:
    """A policy of `jax.checkpoint` that also keeps what is named `SAVED`. The user's may answer otherwise than by yes
    and no: it may move values to the host."""

    def keep(primitive: Any, *args: Any, **params: Any) -> Any:
        kept = _KEEPING(primitive, *args, **params)
        return kept if kept or policy is None else policy(primitive, *args, **params)

    return keep


class _Control(Kind):
    shown = False
    takes = "the rule is that of what stands inside"
    how: type["Inside"]

    def unnamed(self, unit):
        return self.how(unit, "inside")

    def explain(self, unit, rule):
        return self.unnamed(unit)


class Inside(Propagation):
    """What control flow has in common. Its forms are those of the values inside, which the analysis of the
    bodies finds."""

    def forms(self, form, meant):
        return RATIO, RATIO

    def credits(self, form):
        return True  # what stands inside says it for itself

    def run(self, frame):
        node = self.unit.nodes[0]
        arrays = [frame.operand(self.unit, v) for v in node.inputs]
        for value, array in zip(node.outputs, self.outputs(frame, node, arrays), strict=True):
            frame.define(value, array)

    def outputs(self, frame: Any, node: Any, arrays: list) -> list:
        raise NotImplementedError(f"{type(self).__name__} does not run")

    def enter(self, frame: Any, body: Level, arrays: list) -> list:
        """A body's inputs, with cotangents converted from the form of the value inside to that which the unit
        gives for the operand."""
        gives, routes, entered = frame.routes.gives[self.unit], frame.routes, []
        for operand, inner, array in zip(self.unit.entering, body.inputs, arrays, strict=True):
            if operand in gives and inner in routes.reached and routes.form[inner] != gives[operand]:
                array = convert(array, None, routes.form[inner], gives[operand])
            elif operand not in gives and inner in routes.reached:
                array = frame.absorb(self.unit, operand, array, routes.form[inner])
            entered.append(array)
        return entered

    def leave(self, frame: Any, body: Level, outputs: list) -> list:
        """A body's outputs, with cotangents converted from the form of the value outside to that of the value
        inside."""
        routes, converted = frame.routes, []
        for outer, inner, array in zip(self.unit.outputs, body.outputs, outputs, strict=True):
            outside = routes.form.get(outer, RATIO)
            inside = routes.form.get(inner, RATIO) if inner in routes.reached else outside
            differ = outside != inside and outer in routes.reached
            if outer in routes.reached and inner not in routes.reached:
                array = frame.absorb(self.unit, inner, array, outside)
            converted.append(convert(array, None, outside, inside) if differ else array)
        return converted


class _Remat(Inside):
    def outputs(self, frame, node, arrays):
        body = self.unit.bodies[0]
        taps = {i: frame.taps[i] for i in frame.program.taps_in(body)}

        def run(arrays, taps):
            outputs, seen = frame.program.run(body, self.enter(frame, body, arrays), taps, frame.slots)
            return self.leave(frame, body, outputs), seen

        p = node.params
        run = run if taps else frame.like_before(self.unit, run)
        policy = frame.keeping(p["policy"])
        outputs, seen = jax.checkpoint(run, prevent_cse=p["prevent_cse"], policy=policy)(arrays, taps)
        frame.seen.update(seen)
        return outputs


class _Cond(Inside):
    def outputs(self, frame, node, arrays):
        indices = [frame.program.taps_in(body) for body in self.unit.bodies]
        taps = {i: frame.taps[i] for group in indices for i in group}

        def branch(body: Level) -> Callable:
            def run(arrays, taps):
                outputs, seen = frame.program.run(body, self.enter(frame, body, arrays), taps, frame.slots)
                return self.leave(frame, body, outputs), {
                    i: seen.get(i, tap.silent) for i, tap in taps.items() if tap.zeros is not None
                }

            return run

        outputs, seen = lax.switch(arrays[0], [branch(body) for body in self.unit.bodies], arrays[1:], taps)
        frame.seen.update(seen)
        return outputs


class _ShardMap(Inside):
    """Each device runs the rewritten body on its shard; what a collective gathers, its transpose hands back."""

    def outputs(self, frame, node, arrays):
        body, p = self.unit.bodies[0], node.params
        if frame.program.taps_in(body):
            raise PathError(
                "`at=`, or a condition, names a value inside a shard_map, of which each device has "
                "its own: name one outside"
            )
        if not p["check_vma"] and not all(frame.program.propagations[u].linear for u in body.walk()):
            raise RuleError(
                f"{node.source}: deconvnet and guided backprop need shard_map(..., check_vma=True): "
                "without it each device holds a part of "
                "the backward signal, and the positive part of a sum is not the sum of positive parts"
            )

        def run(arrays, slots):
            outputs, _ = frame.program.run(body, self.enter(frame, body, arrays), {}, slots)
            return self.leave(frame, body, outputs)

        specs = {"in_specs": (list(p["in_specs"]), PartitionSpec()), "out_specs": list(p["out_specs"])}
        names = set(p.get("newly_manual_axes", p.get("manual_axes", ())))
        mapped = jax.shard_map(run, mesh=p["mesh"], **specs, axis_names=names, check_vma=p["check_vma"])
        return mapped(arrays, frame.slots)


class _Scan(Inside):
    """A carry has one form all the way: that in which a turn hands it relevance, or PLAIN where the loop's result has
    that, because relevance of a zero cannot be divided by it."""

    def outputs(self, frame, node, arrays):
        body = self.unit.bodies[0]
        first, count = node.carry
        arrays = self.enter(frame, body, arrays)
        consts, init, xs = arrays[:first], arrays[first : first + count], arrays[first + count :]
        taps = {i: frame.taps[i] for i in frame.program.taps_in(body)}
        before, outside = body.inputs[first : first + count], node.outputs[:count]
        forms = [self.form_of(frame, v, o) for v, o in zip(before, outside, strict=True)]
        turned = functools.partial(self.turned, frame)

        def step(carry, slices):
            xs, taps = slices
            carry = [
                turned(*one) for one in zip(before, carry, frame_forms(frame, before), forms, strict=True)
            ]
            outputs, seen = frame.program.run(body, [*consts, *carry, *xs], taps, frame.slots)
            inside = frame_forms(frame, body.outputs)
            arriving = [*forms, *frame_forms(frame, node.outputs[count:])]
            outputs = [turned(*one) for one in zip(body.outputs, outputs, arriving, inside, strict=True)]
            return outputs[:count], (outputs[count:], seen)

        given = [turned(*one) for one in zip(before, init, forms, frame_forms(frame, before), strict=True)]
        p = node.params
        carry, (ys, seen) = lax.scan(step, given, (list(xs), taps), p["length"], p["reverse"], p["unroll"])
        frame.seen.update(seen)
        carry = [turned(*one) for one in zip(outside, carry, frame_forms(frame, outside), forms, strict=True)]
        return carry + list(ys)

    def form_of(self, frame: Any, inner: Value, outer: Value) -> str:
        """The form in which relevance is handed from turn to turn."""
        form = frame.routes.form
        return PLAIN if PLAIN in (form.get(inner), form.get(outer)) else RATIO

    def turned(self, frame: Any, value: Value, array: Any, arrives: str, leaves: str) -> Any:
        """A value whose cotangent comes in one form and goes on in another, if relevance comes to it at all."""
        if value not in frame.routes.reached:
            return frame.absorb(self.unit, value, array, arrives)
        differ = arrives != leaves
        return convert(array, None, arrives, leaves) if differ else array


def frame_forms(frame: Any, values: Sequence[Value]) -> list[str]:
    return [frame.routes.form.get(v, RATIO) for v in values]


class Scan(_Control):
    name = "scan"
    how = _Scan


class Cond(_Control):
    name = "cond"
    how = _Cond


class Remat(_Control):
    name = "remat"
    how = _Remat


class ShardMap(_Control):
    name = "shard_map"
    how = _ShardMap


class While(_Control):
    name = "while"
    how = Inside

    def unnamed(self, unit: Unit) -> Propagation:
        return refused(
            unit,
            "a while_loop cannot be run backward: use jax.lax.scan, or fori_loop with bounds that "
            "are known when tracing",
        )


def denominators(propagations: Mapping[Unit, Propagation], units: Iterable[Unit]) -> set[Value]:
    """The outputs of weighted layers that rematerialised bodies compute for their stabilised denominators alone: a body
    returns them, added to others, and makes nothing else of them. The gradient leaves out these products when it goes
    back; to keep what they gave takes as much memory as one output of the body."""
    found: set[Value] = set()
    for unit in units:
        for body in unit.bodies if isinstance(propagations[unit], _Remat) else ():
            owner = {node: inner for inner in body.units for node in inner.nodes}
            passed: set[Unit] = set()
            for inner in reversed(body.units):
                how, users = propagations[inner], [owner.get(node) for node in inner.out.users]
                if len(inner.outputs) > 1 or not all(user in passed for user in users):
                    continue
                if inner.kind in ("sum", "structural"):
                    passed.add(inner)
                elif type(how) is Proportional and how.epsilon is not None:
                    found.add(inner.out)
    return found
