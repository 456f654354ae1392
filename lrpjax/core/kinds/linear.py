"""Linear maps without a kernel that rules know: "pool", "linear" (of one value) and free-standing "affine" maps."""

import jax
import jax.numpy as jnp

from lrpjax.core import compat
from lrpjax.core.graph import Value
from lrpjax.core.kinds.base import Along, Kind, Line, PassOn, Propagation, Proportional, is_pass
from lrpjax.core.kinds.functions import arrays_of, evaluate, externals_of, kernels_of, of_shape, rebuilder
from lrpjax.core.kinds.layer import audit_entry
from lrpjax.core.units import Unit
from lrpjax.core.vjps import relevance_of, wide, with_backward
from lrpjax.errors import RuleError
from lrpjax.rules import PLAIN, RATIO, Layer, Rule, is_epsilon

PROPORTIONAL = "in proportion"


class _Linear(Kind):
    takes = "linear maps take Epsilon, Norm and rules that define back(layer, x, z, R)"

    def unnamed(self, unit):
        return Proportional(unit, PROPORTIONAL)

    def carry_out(self, unit, rule):
        if is_epsilon(rule) and (rule.bias or not self.shifts(unit)):
            return Proportional(unit, str(rule), epsilon=rule.epsilon, bias_takes_rest=self.shifts(unit))
        if hasattr(rule, "back"):
            return WithoutKernel(unit, rule)
        raise self.misfit()

    def shifts(self, unit: Unit) -> bool:
        """Whether a unit adds a constant."""
        return False


class Pool(_Linear):
    """Sums and averages, and maxima, in which the winner takes all."""

    name = "pool"
    stands_for_inside = True

    def unnamed(self, unit):
        return Along(unit, "winner takes all") if unit.name == "max_pool" else super().unnamed(unit)

    def carry_out(self, unit, rule):
        if unit.name == "max_pool" and hasattr(rule, "back") and not is_epsilon(rule):
            raise self.misfit("a max pool is no linear map")
        return super().carry_out(unit, rule)


class Linear(_Linear):
    name = "linear"


class Affine(_Linear):
    """Adding, and multiplying with, constants. In plain form relevance passes unchanged."""

    name = "affine"
    stands_for_inside = True
    takes = "affine maps take Epsilon, Norm, Pass and rules that define back(layer, x, z, R)"

    def unnamed(self, unit):
        return Shifted(unit, PROPORTIONAL, unit.operands[0], self.shifts(unit))

    def carry_out(self, unit, rule):
        if is_pass(rule):
            return PassOn(unit, str(rule), unit.operands[0])
        return super().carry_out(unit, rule)

    def shifts(self, unit):
        return any(node.name in ("add", "sub", "add_any") for node in unit.nodes)


class Shifted(Line):
    """A `Line` whose constants take their share where relevance is plain only because the target is given so."""

    bias_takes_rest = True

    def __init__(self, unit: Unit, text: str, receiver: Value, shifts: bool):
        super().__init__(unit, text, receiver)
        self.shifts = shifts

    def forms(self, form, meant):
        return (RATIO, RATIO) if form == PLAIN and self.shifts and not meant else (form, form)


class WithoutKernel(Propagation):
    """A linear map of one value, plus a constant, as a layer whose kernel is the number 1: z = map(1·x) + b."""

    def __init__(self, unit: Unit, rule: Rule):
        super().__init__(unit, str(rule))
        if not all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in (unit.operands[0], unit.out)):
            raise RuleError("its formula is one of real numbers, and this map is of complex ones")
        self.rule = rule
        self.linear = rule.linear

    def forms(self, form, meant):
        return PLAIN, self.rule.emits

    def run(self, frame):
        unit, rule, slot = self.unit, self.rule, frame.slot_of(self.unit)
        (x_value,) = self.receives
        externals, rebuild = externals_of(unit, x_value), rebuilder(rule)
        form, rectified, nonnegative = (
            frame.routes.form[unit.out],
            frame.rectified(unit.out),
            x_value.nonnegative,
        )

        def forward(x, rest, leaves):
            return evaluate(unit, x_value, externals, x, rest)

        def backward(x, rest, z, c):
            rest, leaves = rest
            rule = rebuild(leaves)
            dtype, wide_dtype = x.dtype, wide(x).dtype
            b = wide(forward(jnp.zeros_like(x), rest, leaves))
            apply = lambda x, w: wide(forward((x * w).astype(dtype), rest, leaves)) - b

            def transpose(s, w):
                s = jnp.broadcast_to(s, z.shape).astype(z.dtype)
                linear = lambda x: forward(x, rest, leaves)
                pulled = jax.vjp(linear, jnp.zeros_like(x))[1](s)[0]
                return pulled.astype(wide_dtype) * w

            kernels = kernels_of(rule, jnp.ones((), wide_dtype), unit)
            noise = 4 * float(jnp.finfo(dtype).eps)
            ones = lambda: jnp.ones(x.shape, wide_dtype)
            layer = Layer(apply, transpose, kernels, b, nonnegative, rectified, ones, noise)
            if slot is not None:
                layer.account = []
            result = rule.back(layer, wide(x), wide(z), relevance_of(z, c, form))
            result = of_shape(result, x.shape, f"{rule}: back", unit)
            return result if layer.account is None else (result, audit_entry(layer.account))

        rest = [frame.fixed(v) for v in externals], arrays_of(rule)
        operand = compat.varying_alike(frame.operand(unit, x_value))[0]
        y = with_backward(forward, backward, operand, *rest, rectified=rectified, slot=slot)
        frame.define(unit.out, y)
