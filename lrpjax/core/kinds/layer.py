"""Weighted layers: "dense" and "conv", with the bias and the affine constants behind them folded into the kernel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax.core import compat
from lrpjax.core.graph import Node, Value
from lrpjax.core.kinds.base import Kind, Propagation, Proportional
from lrpjax.core.kinds.functions import arrays_of, evaluate, externals_of, kernels_of, of_shape, rebuilder
from lrpjax.core.units import Unit
from lrpjax.core.vjps import BIAS, EPSILON, SLOT, relevance_of, wide, with_backward
from lrpjax.rules import PLAIN, Epsilon, Layer, Rule, is_epsilon

AFFINE = ("add", "sub", "mul", "div", "neg", "add_any")


class _Weighted(Kind):
    default = Epsilon(1e-6)
    stands_for_inside = True
    takes = "weighted layers take rules that define back(layer, x, z, R)"

    def carry_out(self, unit, rule):
        if is_epsilon(rule) and rule.bias:
            return Proportional(unit, str(rule), epsilon=rule.epsilon, bias_takes_rest=True)
        if hasattr(rule, "back"):
            return Ruled(unit, rule)
        raise self.misfit()


class Dense(_Weighted):
    name = "dense"


class Conv(_Weighted):
    name = "conv"


class Ruled(Propagation):
    """A weighted layer, to which the `back` of a rule is applied."""

    def __init__(self, unit: Unit, rule: Rule):
        super().__init__(unit, str(rule))
        self.rule = rule
        self.linear = rule.linear

    def forms(self, form, meant):
        return PLAIN, self.rule.emits

    def run(self, frame):
        unit, rule = self.unit, self.rule
        (x,) = self.receives
        slot, rectified = frame.slot_of(unit), frame.rectified(unit.out)
        weighted = Weighted(unit, x, rule, frame.routes.form[unit.out], rectified, slot is not None)
        operand, leaves = frame.operand(unit, x), arrays_of(rule)
        externals = [frame.fixed(v) for v in weighted.externals]
        rest = externals, weighted.prepare([frame.known(v) for v in weighted.externals], leaves), leaves
        y = with_backward(weighted.forward, weighted.backward, operand, *rest, rectified=rectified, slot=slot)
        frame.define(unit.out, y)


class Weighted:
    """A weighted layer with a rule of its own: the static part, from which forward and backward functions are made."""

    def __init__(
        self, unit: Unit, x_value: Value, rule: Rule, form: str, rectified: bool, audited: bool = False
    ):
        assert unit.core is not None
        self.unit, self.core, self.x_value = unit, unit.core, x_value
        self.form, self.rectified, self.audited = form, rectified, audited
        self.externals = externals_of(unit, x_value)
        self.rebuild = rebuilder(rule)
        self.at = self.core.inputs.index(x_value)
        self.moves = [n for n in unit.nodes[1:] if n.name not in AFFINE]

    def forward(self, x: Any, externals: list, prepared: Any, leaves: list) -> Any:
        return evaluate(self.unit, self.x_value, self.externals, x, externals)

    def backward(self, x: Any, rest: Any, z: Any, c: Any) -> Any:
        externals, prepared, leaves = rest
        rule = self.rebuild(leaves)
        if prepared is None:
            w, b = self.merge([compat.late(a, c) for a in externals])
            prepared = kernels_of(rule, w, self.unit), b
        x = compat.late(x, c)  # or the CPU runs the second forward pass at once, and keeps all of it
        layer = self.layer(x, *prepared)
        if self.audited:
            layer.account = []
        result = rule.back(layer, wide(x), wide(z), relevance_of(z, c, self.form))
        result = of_shape(result, x.shape, f"{rule}: back", self.unit)
        return result if layer.account is None else (result, audit_entry(layer.account))

    def prepare(self, externals: list, leaves: list) -> Any:
        """The merged kernels and bias, computed now, if all they depend on is known now; else None."""
        if any(a is None or isinstance(a, jax.core.Tracer) for a in [*externals, *leaves]):
            return None
        with jax.ensure_compile_time_eval():
            w, b = self.merge([np.asarray(a) for a in externals])  # in NumPy: nothing to compile
            return kernels_of(self.rebuild([np.asarray(a) for a in leaves]), w, self.unit), b

    def merge(self, externals: list) -> tuple[Any, Any]:
        """Kernel and bias, with the affine constants behind the layer folded in."""
        env = dict(zip(self.externals, externals, strict=True))
        read = lambda v: np.asarray(v.constant) if v.constant is not None else env[v]
        w, b = read(self.core.inputs[1 - self.at]), 0.0
        value = self.core.out
        for node in self.unit.nodes[1:]:
            t = None if len(node.inputs) == 1 else wide(read(next(v for v in node.inputs if v is not value)))
            if node.name in ("add", "add_any"):
                b = b + t
            elif node.name == "sub":
                w, b = (w, b - t) if node.inputs[0] is value else (-w, t - b)
            elif node.name in AFFINE:
                factor = np.asarray(-1.0, wide(w).dtype) if t is None else t if node.name == "mul" else 1 / t
                w, b = w * _along(factor, self.unit.scales[node], w.ndim).astype(w.dtype), b * factor
            elif not isinstance(b, float):
                b = node.bind(jnp.broadcast_to(b, value.shape))[0]
            value = node.out
        return w, b

    def layer(self, x: Any, kernels: tuple, b: Any) -> Layer:
        like = x

        def apply(x, w):
            x, w, _ = compat.varying_alike(x, w, like)
            z = self.core.bind(*((x, w) if self.at == 0 else (w, x)))[0]
            for node in self.moves:
                z = node.bind(z)[0]
            return z

        dtype, wide_dtype, shape = x.dtype, wide(x).dtype, self.unit.out.shape
        # A BatchNorm behind the layer may compute in a wider type.
        out = (self.moves or [self.core])[-1].out.aval.dtype

        def transpose(s, w):
            s = jnp.broadcast_to(s, shape).astype(out)
            return jax.linear_transpose(lambda x: apply(x, w), x)(s)[0].astype(wide_dtype)

        def ones():
            alike = [] if self.moves else _batch_dims(self.core, self.at)
            shape = [1 if d in alike else n for d, n in enumerate(x.shape)]
            return lax.optimization_barrier(
                jnp.ones(shape, wide_dtype)
            )  # or XLA convolves constants when compiling, slowly

        return Layer(
            lambda x, w: apply(x.astype(dtype), w).astype(wide_dtype),
            transpose,
            kernels,
            b,
            self.x_value.nonnegative,
            self.rectified,
            ones,
            4 * float(jnp.finfo(dtype).eps),
        )


def audit_entry(account: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """What an audit's slot is given by a rule: the sums of what the bias and the stabiliser absorb."""
    entry = jnp.zeros(SLOT)
    for bias, epsilon in account:
        entry = entry.at[BIAS].add(bias.astype(entry.dtype)).at[EPSILON].add(epsilon.astype(entry.dtype))
    return entry


def _along(factor: jax.Array, dims: tuple[int, ...], rank: int) -> jax.Array:
    """A factor of a layer's output, laid along the dimensions of the kernel that it belongs to."""
    factor = factor.reshape([n for n in factor.shape if n > 1])
    factor = factor.transpose(sorted(range(len(dims)), key=lambda i: dims[i]))
    shape = [1] * rank
    for d, n in zip(sorted(dims), factor.shape, strict=True):
        shape[d] = n
    return factor.reshape(shape)


def _batch_dims(core: Node, at: int) -> list[int]:
    """The dimensions of a layer's input along which all denominators that do not look at the input are alike."""
    p = core.params
    if core.name == "conv_general_dilated":
        return [p["dimension_numbers"].lhs_spec[0]] if at == 0 and p["batch_group_count"] == 1 else []
    contract, batch = p["dimension_numbers"][0][at], p["dimension_numbers"][1][at]
    return [d for d in range(len(core.inputs[at].shape)) if d not in contract and d not in batch]
