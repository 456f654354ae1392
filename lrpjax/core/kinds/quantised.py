"""Quantised layers, explained as the layer with the dequantised kernel.

The forward pass is the program's own, in integers. For the backward pass the codes are turned back into numbers, the
scales that cancel are left out, those that do not are folded into the kernel, and the rule is applied to that layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax.core import compat
from lrpjax.core.graph import Value
from lrpjax.core.kinds import layer
from lrpjax.core.kinds.base import Propagation
from lrpjax.core.kinds.functions import arrays_of, evaluate, externals_of, kernels_of, of_shape, rebuilder
from lrpjax.core.kinds.layer import along, audit_entry
from lrpjax.core.quantised import CASTS, SCALING, SHIFTING, SUMS, Quantised, moves
from lrpjax.core.units import Unit
from lrpjax.core.vjps import relevance_of, wide, with_backward
from lrpjax.rules import PLAIN, RATIO, Gradient, Layer, Rule, Stop, divide


class _Quantised(layer._Weighted):
    def explain(self, unit, rule):
        if not unit.coded or isinstance(rule, Stop):
            return super().explain(unit, rule)
        rule = self.default if rule is None else rule
        arrays_of(rule)
        if not hasattr(rule, "back") and not isinstance(rule, Gradient):
            raise self.misfit()
        return Dequantised(unit, rule)


class Dense(_Quantised, layer.Dense):
    name = "dense"


class Conv(_Quantised, layer.Conv):
    name = "conv"


class Dequantised(Propagation):
    """A quantised layer, to which the `back` of a rule is applied, or whose derivative is that of the layer."""

    bias_takes_rest = True

    def __init__(self, unit: Unit, rule: Rule):
        super().__init__(unit, str(rule))
        self.rule, self.linear = rule, rule.linear

    def forms(self, form, meant):
        return (PLAIN, PLAIN) if isinstance(self.rule, Gradient) else (PLAIN, self.rule.emits)

    def run(self, frame):
        unit, rule = self.unit, self.rule
        (x,) = self.receives
        slot, form, rectified = frame.slot_of(unit), frame.routes.form[unit.out], frame.rectified(unit.out)
        kernel = Kernel(unit, unit.how)
        rebuild, audited = rebuilder(rule), slot is not None
        run = externals_of(unit, x)
        read = list(dict.fromkeys([*run, *kernel.read]))

        def forward(_, arrays, leaves):
            return evaluate(unit, x, run, None, arrays[: len(run)])

        def backward(array, rest, z, c):
            arrays, leaves = rest
            rule = rebuild(leaves)
            env = dict(zip(read, (compat.late(a, c) for a in arrays), strict=True))
            w, b = kernel.merged(env)
            restored = kernel.restored(env, wide(array).dtype)
            apply, transpose = kernel.maps(restored, z.shape)
            if isinstance(rule, Gradient):
                return transpose(wide(c), w)
            layer = Layer(
                apply,
                transpose,
                kernels_of(rule, w, unit),
                b,
                x.nonnegative,
                rectified,
                lambda: lax.optimization_barrier(jnp.ones(restored.shape, restored.dtype)),
                4 * float(jnp.finfo(array.dtype).eps),
            )
            if audited:
                layer.account = []
            result = rule.back(layer, restored, wide(z), relevance_of(z, c, form))
            result = of_shape(result, array.shape, f"{rule}: back", unit)
            if rule.emits == RATIO:  # divided by the number that the codes stand for
                result = result * divide(restored, wide(array))
            return result if layer.account is None else (result, audit_entry(layer.account))

        if isinstance(rule, Gradient):
            slot = None
        rest = [frame.fixed(v) for v in read], arrays_of(rule)
        operand = frame.operand(unit, x)
        frame.define(
            unit.out, with_backward(forward, backward, operand, *rest, rectified=rectified, slot=slot)
        )


class Kernel:
    """The layer that a quantised one stands for: its kernel and bias, and its input."""

    def __init__(self, unit: Unit, how: Quantised):
        self.unit, self.how = unit, how
        self.chain = list(how.others(how.steps, how.x))
        self.behind = list(how.others(how.behind[1:], how.core.out))
        others = [v for _, v in (*self.chain, *self.behind) if v is not None and v.constant is None]
        self.kernel = how.core.inputs[1 - how.at]
        scaling = [
            v
            for n, v in self.chain
            if v is not None and v.constant is None and n.name in (*SCALING, *SHIFTING)
        ]
        behind = [v for n, v in self.behind if v is not None and v.constant is None]
        self.read = list(
            dict.fromkeys([self.kernel, how.codes, *others, *how.algebra.leaves([*scaling, *behind])])
        )

    def restored(self, env: dict[Value, Any], dtype: Any) -> Any:
        """The numbers that the codes stand for."""
        value = env[self.how.codes].astype(dtype)
        for i in reversed(range(len(self.chain))):
            node, other = self.chain[i]
            if node.name == "neg":
                value = -value
            if other is None or node.name not in (*SCALING, *SHIFTING):
                continue
            if node.name in SHIFTING and any(n.name == "floor" for n, _ in self.chain[i : i + 2]):
                continue  # the half that makes of a floor a rounding
            t = jnp.asarray(other.constant if other.constant is not None else env[other]).astype(dtype)
            if node.name == "mul":
                value = divide(value, t)
            elif node.name == "div":
                value = value * t
            elif node.name == "sub":
                value = value + t if node.inputs[1] is other else t - value
            else:
                value = value - t
        return value

    def merged(self, env: dict[Value, Any]) -> tuple[Any, Any]:
        """Kernel and bias, with all scales that do not cancel folded in."""
        how, b, w = self.how, 0.0, env[self.kernel]
        w = wide(w if jnp.issubdtype(w.dtype, jnp.inexact) else w.astype(_float(self.unit)))
        w = w.astype(_float(self.unit))
        read = lambda v: v.constant if v.constant is not None else env[v]
        of = lambda v: jnp.asarray(how.algebra.neutralised(v, read)).astype(w.dtype)
        a, shift = jnp.ones((), w.dtype), jnp.zeros((), w.dtype)
        for i, (node, other) in enumerate(self.chain):
            if node.name == "neg":
                a, shift = -a, -shift
            if other is None or node.name not in (*SCALING, *SHIFTING):
                continue
            t = of(other).ravel()[0]
            if node.name in SCALING:
                a, shift = (a * t, shift * t) if node.name == "mul" else (a / t, shift / t)
            elif not any(n.name == "floor" for n, _ in self.chain[i : i + 2]):
                minus, swapped = node.name == "sub", node.inputs[0] is other
                a = -a if minus and swapped else a
                shift = t - shift if minus and swapped else shift - t if minus else shift + t
        if how.shifted:
            codes = jnp.full(how.core.inputs[how.at].shape, shift, w.dtype)
            b = _bound(how.core, how.at, codes, w)
        w = w * a
        value = how.core.out
        for node, other in self.behind:
            t = None if other is None else of(other)
            if node.name in SHIFTING:
                swapped = node.inputs[0] is other
                if node.name == "sub":
                    w, b = (-w, t - b) if swapped else (w, b - t)
                else:
                    b = b + t
            elif node.name in SCALING:
                factor = -jnp.ones((), w.dtype) if t is None else t if node.name == "mul" else 1 / t
                b = b * factor
                w = w * along(
                    _sliced(factor, how.algebra.static(other) if other else ()), how.scales[node], w.ndim
                )
            elif node.name not in CASTS and not isinstance(b, float):
                b = _moved(node, jnp.broadcast_to(b, value.shape))
            value = node.out
        return w, b

    def maps(self, like: Any, shape: tuple[int, ...]) -> tuple[Callable, Callable]:
        """The layer without its bias, as a function of the input and a kernel, and its transpose."""
        how = self.how

        def apply(x, w):
            x, w, _ = compat.varying_alike(x, w, like)
            for node in how.moves:
                x = _moved(node, x)
            z = _bound(how.core, how.at, x, w)
            for node, _ in self.behind:
                if node.name in SUMS or moves(node):
                    z = _moved(node, z)
            return z

        def transpose(s, w):
            s = jnp.broadcast_to(s, shape).astype(like.dtype)
            return jax.linear_transpose(lambda x: apply(x, w), like)(s)[0]

        return apply, transpose


def _float(unit: Unit) -> Any:
    """The type that a layer's numbers are computed in."""
    return jnp.promote_types(unit.operands[0].aval.dtype, jnp.float32)


def _sliced(factor: Any, varies: Sequence[int] | set[int]) -> Any:
    """A factor, of which one element stands for all along the dimensions that it does not vary along."""
    return factor[tuple(slice(None) if d in varies else slice(0, 1) for d in range(factor.ndim))]


def _moved(node: Any, x: Any) -> Any:
    return node.bind(x, *(jnp.zeros((), x.dtype) for _ in node.inputs[1:]))[0]


def _bound(core: Any, at: int, x: Any, w: Any) -> Any:
    params = {**core.params, "preferred_element_type": np.dtype(x.dtype), "precision": lax.Precision.HIGHEST}
    return compat.bind(core.primitive, params, *((x, w) if at == 0 else (w, x)))[0]
