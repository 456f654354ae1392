"""Softmax, functions with a relevance of their own, what only moves elements, and what nothing is known of."""

import jax
import jax.numpy as jnp

from lrpjax.core import compat
from lrpjax.core.kinds.base import (
    Along,
    Kind,
    PassOn,
    Propagation,
    Proportional,
    by_derivative,
    is_pass,
    refused,
)
from lrpjax.core.primitives import FACTORISATIONS
from lrpjax.core.units import RUNNING_MAXIMUM, Unit
from lrpjax.core.vjps import relevance_of
from lrpjax.rules import PLAIN, is_epsilon


class Softmax(Kind):
    """Softmax, log-softmax and logsumexp: JAX's derivative in ratio form is AttnLRP's Taylor expansion
    (Achtibat et al. 2024, proposition 3.1)."""

    name = "softmax"
    takes = "a softmax takes its Taylor expansion (name no rule for it)"

    def unnamed(self, unit):
        return Proportional(unit, "Taylor")


class Custom(Kind):
    """A function that `custom_relevance` gave a relevance of its own."""

    name = "custom"
    takes = "custom functions take Epsilon, Norm and, where they keep the shape of one array, Pass"

    def unnamed(self, unit):
        function = unit.main.params["call"].function
        if function.rule is not None:
            return self.explain(unit, function.rule)
        if function.bwd is None:
            return refused(
                unit,
                "give it a rule, custom_relevance(f, rule=...), or forward and backward functions by defrelevance",
            )
        return Called(unit, "its own", passes=False)

    def carry_out(self, unit, rule):
        if is_epsilon(rule):
            return Proportional(unit, str(rule), epsilon=rule.epsilon)
        if not is_pass(rule):
            raise self.misfit()
        node = unit.nodes[0]
        call = node.params["call"]
        one = len(node.inputs) - call.consts == 1 and len(node.outputs) == 1
        if not one or node.inputs[-1].shape != node.out.shape:
            raise self.misfit(f"{call} must map one array to one array of the same shape")
        return Called(unit, str(rule), passes=True)


class Called(Propagation):
    """A function's own relevance (or `Pass`): relevance goes in and comes out as such."""

    def __init__(self, unit: Unit, text: str, passes: bool):
        super().__init__(unit, text)
        self.passes = passes

    def forms(self, form, meant):
        return PLAIN, PLAIN

    def run(self, frame):
        node, passes = self.unit.nodes[0], self.passes
        call, count = node.params["call"], len(node.inputs) - node.params["call"].consts
        forms = [frame.routes.form.get(v, PLAIN) for v in node.outputs]

        @jax.custom_vjp
        def run(*values):
            return list(call(*values))

        def fwd(*values):
            out, residuals = (call(*values), None) if passes else call.forward(*values)
            return list(out), (residuals, list(values), list(out))

        def bwd(residuals, cotangents):
            residuals, values, out = residuals
            R = [
                relevance_of(y, c, form).astype(y.dtype)
                for y, c, form in zip(out, cotangents, forms, strict=True)
            ]
            relevances = R if passes else call.backward(residuals, R)
            flat = [None] * (len(values) - count) + list(relevances)
            return tuple(
                None if r is None else jnp.asarray(r).astype(v.dtype)
                for r, v in zip(flat, values, strict=True)
            )

        run.defvjp(fwd, bwd)
        arrays = run(*(frame.operand(self.unit, v) for v in node.inputs))
        for value, array in zip(node.outputs, arrays, strict=True):
            frame.define(value, array)


class Structural(Kind):
    """What moves, selects or repeats elements."""

    name = "structural"
    takes = "what moves elements takes Pass"
    shown = False

    def unnamed(self, unit):
        return Along(unit, "moved")

    def carry_out(self, unit, rule):
        if is_pass(rule):
            return Along(unit, str(rule))
        raise self.misfit()


class Unknown(Kind):
    """A primitive that no family names, or a function of several values that no rule of the literature is about
    (x ** y, arctan2, clamp)."""

    name = "unknown"
    takes = "what no rule is known for takes Pass, where it keeps the shape of one array"

    def unnamed(self, unit):
        name, several = unit.nodes[-1].name, len(unit.operands) > 1
        if name in FACTORISATIONS:
            why = "no rule is known for the factorisation of a matrix"
            if not compat.has_derivative(unit.nodes[-1].primitive):
                return refused(
                    unit,
                    f"{why}, and JAX has no derivative of it: give it a relevance of its own with custom_relevance",
                )
            return refused(unit, f"{why}. {by_derivative(unit)}")
        if unit.name == RUNNING_MAXIMUM:
            return refused(
                unit,
                "it is rescaled by a running maximum, as in a softmax that is computed in blocks, but no division of "
                "its sums by each other was found: divide Σ exp(s − m) v by Σ exp(s − m) behind the last block, or "
                "write it with jax.nn.softmax",
            )
        own, kernel = (
            "a rule as a whole with custom_relevance(f, rule=...)",
            compat.kernel_name(unit.nodes[-1].eqn),
        )
        if kernel:
            own += f", or trace a plain function in its place with Composite(..., calls={{{kernel!r}: f}})"
        else:
            own += ", or Gradient() with (select.kind('unknown'), rules.Gradient())"
        if several:
            return refused(
                unit,
                f"no rule is known for it where {len(unit.operands)} operands carry relevance: detach all but one with "
                f"jax.lax.stop_gradient, or give it {own}",
            )
        return refused(
            unit,
            "no rule is known for this primitive: detach it with jax.lax.stop_gradient, write it as "
            "other primitives, name its family with "
            f'Composite(..., primitives={{"{name}": "elementwise"}}), or give it {own}',
        )

    def carry_out(self, unit, rule):
        same = len(unit.operands) == 1 and len(unit.outputs) == 1 and unit.operands[0].shape == unit.out.shape
        if is_pass(rule) and same:
            return PassOn(unit, str(rule), unit.operands[0])
        raise self.misfit()
