"""Linear maps without a kernel that rules know: "pool", "linear" (of one value) and free-standing "affine" maps."""

import jax
import jax.numpy as jnp

from lrpjax.core.graph import Value
from lrpjax.core.kinds.base import Along, Kind, Line, PassOn, Propagation, Proportional, is_pass
from lrpjax.core.kinds.functions import arrays_of, evaluate, externals_of, kernels_of, of_shape, rebuilder
from lrpjax.core.kinds.layer import AFFINE, audit_entry
from lrpjax.core.units import Unit
from lrpjax.core.vjps import relevance_of, wide, with_backward
from lrpjax.errors import RuleError
from lrpjax.rules import PLAIN, RATIO, Layer, Rule, is_epsilon

PROPORTIONAL = "in proportion"
SUMS = ("reduce_sum", "reduce_window_sum", "cumsum", "psum", "psum_invariant")
"""Of one operand, with no negative coefficients."""


class _Linear(Kind):
    takes = "linear maps take Epsilon, Norm and rules that define back(layer, x, z, R)"

    def unnamed(self, unit):
        return Proportional(unit, PROPORTIONAL)

    def carry_out(self, unit, rule):
        if is_epsilon(rule) and (rule.bias is True or not self.shifts(unit)):
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
        self.shifts = self.adds = shifts

    def forms(self, form, meant):
        return (RATIO, RATIO) if form == PLAIN and self.shifts and not meant else (form, form)


class WithoutKernel(Propagation):
    """A sum of one value's elements, a scale and a constant, z = a ⊙ sums(x) + b, as a layer with the kernel a.

    Rules that tell positive from negative contributions see their signs, because the sums have no negative terms.
    """

    def __init__(self, unit: Unit, rule: Rule):
        super().__init__(unit, str(rule))
        if not all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in (unit.operands[0], unit.out)):
            raise RuleError("its formula is one of real numbers, and this map is of complex ones")
        # All that is not scaled or shifted: the sum itself, and what moves its elements.
        self.sums = [node for node in unit.nodes if node.name not in AFFINE]
        if any(
            len(node.inputs) > 1 or (node is unit.nodes[0] and node.name not in SUMS) for node in self.sums
        ):
            raise RuleError(
                f"its formula is one of contributions, whose signs in {unit.main.name} are not known"
            )
        self.rule = rule
        self.linear = rule.linear

    def forms(self, form, meant):
        return PLAIN, self.rule.emits

    def run(self, frame):
        unit, rule, slot = self.unit, self.rule, frame.slot_of(self.unit)
        (x_value,) = self.receives
        externals, rebuild, sums = externals_of(unit, x_value), rebuilder(rule), self.sums
        form, rectified = frame.routes.form[unit.out], frame.rectified(unit.out)
        ratio_to_plain = rule.emits == RATIO and frame.routes.gives[unit].get(x_value) == PLAIN
        nonnegative = x_value.nonnegative

        widened = [node.widened() for node in sums]

        def forward(x, rest, leaves):
            return evaluate(unit, x_value, externals, x, rest)

        def summed(x):
            for node in widened:
                (x,) = node.bind(x)
            return x

        def backward(x, rest, z, c):
            rest, leaves = rest
            rule = rebuild(leaves)
            dtype, x = x.dtype, wide(x)
            wide_dtype = x.dtype
            b, scale = _line(unit, externals, rest)

            def transpose(s, w):
                s = jnp.broadcast_to(s * w, z.shape).astype(jax.eval_shape(summed, x).dtype)
                return jax.linear_transpose(summed, x)(s)[0].astype(wide_dtype)

            layer = Layer(
                lambda x, w: summed(x).astype(wide_dtype) * w,
                transpose,
                kernels_of(rule, scale.astype(wide_dtype), unit),
                b.astype(wide_dtype),
                nonnegative,
                rectified,
                lambda: jnp.ones(x.shape, wide_dtype),
                4 * float(jnp.finfo(dtype).eps),
            )
            if slot is not None:
                layer.account = []
            result = rule.back(layer, x, wide(z), relevance_of(z, c, form))
            result = of_shape(result, x.shape, f"{rule}: back", unit)
            if ratio_to_plain:
                result = result * x
            return result if layer.account is None else (result, audit_entry(layer.account))

        rest = [frame.fixed(v) for v in externals], arrays_of(rule)
        y = with_backward(
            forward, backward, frame.operand(unit, x_value), *rest, rectified=rectified, slot=slot
        )
        frame.define(unit.out, y)


def _line(unit: Unit, externals: list[Value], rest: list) -> tuple[jax.Array, jax.Array]:
    """b and a of a unit a ⊙ sums(x) + b, in the shape of its output."""
    first = unit.nodes[0]
    start = unit.operands[0] if first.name in AFFINE else first.out
    env = dict(zip(externals, rest, strict=True))

    def behind(value: float) -> jax.Array:
        known = {**env, start: jnp.full(start.shape, value, start.aval.dtype)}
        for node in unit.nodes if first.name in AFFINE else unit.nodes[1:]:
            values = [v.constant if v.constant is not None else known[v] for v in node.inputs]
            known.update(zip(node.outputs, node.bind(*values), strict=True))
        return wide(known[unit.out])

    b = behind(0.0)
    return b, behind(1.0) - b
