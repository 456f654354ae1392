"""Normalisations ("norm") and quotients ("quotient"): what stands below the line is held fixed and receives no
relevance."""

from typing import Any

import jax.numpy as jnp

from lrpjax.core.graph import Node, Value
from lrpjax.core.kinds.base import (
    Kind,
    Line,
    PassOn,
    Propagation,
    Proportional,
    by_derivative,
    is_pass,
    refused,
)
from lrpjax.core.units import Solve, Unit
from lrpjax.core.vjps import scale, wide
from lrpjax.errors import RuleError
from lrpjax.rules import is_epsilon


class _Division(Kind):
    takes = "normalisations and quotients take Epsilon and Pass"

    def unnamed(self, unit):
        if isinstance(unit, Solve):
            return self._solved(unit, "matrix fixed")
        if unit.late is not None:
            return Deferred(unit, "Taylor, of a softmax divided late")
        return Line(unit, "denominator fixed", unit.signal)

    def _solved(self, unit: Solve, text: str, epsilon: Any = None) -> Propagation:
        """z = A⁻¹ b, with Σ_j R_j = z for the contributions of the right-hand side b, in proportion."""
        if unit.right:
            return Proportional(unit, text, unit.right, epsilon)
        return refused(
            unit,
            "only the matrix of this linear system carries relevance, and a matrix that is inverted is a "
            f"denominator, of which no rule is known. {by_derivative(unit)}",
        )

    def carry_out(self, unit, rule):
        if isinstance(unit, Solve) and is_epsilon(rule):
            return self._solved(unit, str(rule), rule.epsilon)
        if isinstance(unit, Solve):
            raise self.misfit("it is the solution of a linear system")
        if is_pass(rule):
            return PassOn(unit, str(rule), unit.signal)
        if not is_epsilon(rule):
            raise self.misfit()
        if unit.late is not None:
            return Deferred(unit, str(rule), epsilon=rule.epsilon)
        return Proportional(unit, str(rule), (unit.signal,), rule.epsilon)


class Norm(_Division):
    name = "norm"


class Quotient(_Division):
    name = "quotient"


class Deferred(Proportional):
    """Σ e v / Σ e: the native derivative, of which e takes the share that the products e v leave to it, above the
    line and below."""

    def run(self, frame):
        part = self._part(frame)
        below = self.unit.late.below

        def operand(value, place):
            array = frame.operand(self.unit, value)
            return scale(array, jnp.asarray(part, wide(array).real.dtype)) if value is below else array

        frame.native(self.unit, self.epsilon, operand)

    def _part(self, frame) -> float:
        """The share of the exponentials in the products e v, which is one number."""
        parts = {
            1.0 if product is None else self._share(frame, *product) for product in self.unit.late.products
        }
        if len(parts) > 1:
            raise RuleError(
                f"the softmax at {self.unit.main.source} is divided by its sum after products that share relevance "
                f"differently ({', '.join(map(str, sorted(parts)))} for its weights): divide before them"
            )
        return parts.pop()

    def _share(self, frame, node: Node, exponentials: Value) -> float:
        product: Unit | None = frame.program.owner.get(node)
        if product is None or exponentials not in frame.routes.gives[product]:
            return 0.0
        receivers = [v for v in product.operands if v in frame.routes.gives[product]]
        propagation = frame.program.propagations[product]
        part = propagation.part(exponentials, receivers)
        if part is None:
            raise RuleError(
                f"{propagation.text} is not defined for the softmax at {self.unit.main.source}, "
                "which is divided by its sum after the "
                "product: divide before it"
            )
        return part
