"""Normalisations ("norm") and quotients ("quotient"): what stands below the line is held fixed and receives no
relevance."""

import jax.numpy as jnp

from lrpjax.core.kinds.base import Kind, Line, PassOn, Proportional, is_pass, stabiliser
from lrpjax.core.units import Unit
from lrpjax.core.vjps import scale, wide
from lrpjax.errors import RuleError
from lrpjax.rules import is_epsilon


class _Division(Kind):
    takes = "normalisations and quotients take Epsilon and Pass"

    def unnamed(self, unit):
        if unit.exponentials is not None:
            return Deferred(unit, "Taylor, of a softmax divided late")
        return Line(unit, "denominator fixed", unit.signal)

    def carry_out(self, unit, rule):
        if is_pass(rule):
            return PassOn(unit, str(rule), unit.signal)
        if not is_epsilon(rule):
            raise self.misfit()
        if unit.exponentials is not None:
            return Deferred(unit, str(rule), epsilon=rule.epsilon)
        return Proportional(unit, str(rule), (unit.signal,), rule.epsilon)


class Norm(_Division):
    name = "norm"


class Quotient(_Division):
    name = "quotient"


class Deferred(Proportional):
    """Σ e v / Σ e: the native derivative, of which e takes the share that the product e v leaves to it, above
    the line and below."""

    def run(self, frame):
        unit: Unit = self.unit
        product = frame.program.owner.get(unit.core)
        part = 0.0 if product is None else self._part(frame, product)
        bottom = unit.nodes[0].inputs[1]

        def operand(value, place):
            array = frame.operand(unit, value)
            return scale(array, jnp.asarray(part, wide(array).real.dtype)) if value is bottom else array

        frame.native(unit, stabiliser(self.epsilon), operand)

    def _part(self, frame, product: Unit) -> float:
        """The share of the exponentials in the product e v."""
        receivers = [v for v in product.operands if v in frame.routes.gives[product]]
        if self.unit.exponentials not in receivers:
            return 0.0
        propagation = frame.program.propagations[product]
        part = propagation.part(self.unit.exponentials, receivers)
        if part is None:
            raise RuleError(
                f"{propagation.text} is not defined for the softmax at {self.unit.nodes[0].source}, "
                "which is divided by its sum after the "
                "product: divide before it"
            )
        return part
