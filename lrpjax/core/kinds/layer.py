"""Weighted layers: "dense" and "conv", with the bias and the affine constants behind them folded into the kernel.

A kernel is an array, or a tuple of them where a sum is written with several multiplications; rules see each array.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax.core import compat
from lrpjax.core.graph import Node, Value, known_zero
from lrpjax.core.kinds.base import Kind, Propagation, Proportional
from lrpjax.core.kinds.bounds import brought
from lrpjax.core.kinds.functions import (
    arrays_of,
    chooses_halves,
    evaluate,
    externals_of,
    kernels_of,
    of_shape,
    rebuilder,
)
from lrpjax.core.units import Region, Unit
from lrpjax.core.vjps import BIAS, EPSILON, SLOT, relevance_of, wide, wide_dtype, with_backward
from lrpjax.rules import PLAIN, RATIO, Epsilon, Layer, Rule, is_coarse, is_epsilon

AFFINE = ("add", "sub", "mul", "div", "neg", "add_any")
ADDITIONS = ("add", "sub", "add_any")


class _Weighted(Kind):
    default = Epsilon(1e-6)
    stands_for_inside = True
    takes = "weighted layers take rules that define back(layer, x, z, R)"

    def carry_out(self, unit, rule):
        if is_epsilon(rule) and rule.bias is True and not unit.out.narrow:
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
        slot, rectified = frame.slot_of(unit), frame.rectified(unit.out) and not unit.flipped
        forms = frame.routes.form[unit.out], frame.routes.gives[unit].get(x, rule.emits)
        weighted = Weighted(unit, x, rule, forms, rectified, slot is not None)
        externals = [frame.fixed(v) for v in weighted.externals]
        prepared = weighted.prepare([frame.known(v) for v in weighted.externals], arrays_of(rule))
        operand, leaves = frame.operand(unit, x), arrays_of(brought(rule, unit, x))
        rest = externals, prepared, leaves
        y = with_backward(weighted.forward, weighted.backward, operand, *rest, rectified=rectified, slot=slot)
        frame.define(unit.out, y)


class Weighted:
    """A weighted layer with a rule of its own: the static part, from which forward and backward functions are made."""

    def __init__(
        self,
        unit: Unit,
        x_value: Value,
        rule: Rule,
        forms: tuple[str, str],
        rectified: bool,
        audited: bool = False,
    ):
        assert unit.linear is not None
        self.unit, self.x_value, self.region = unit, x_value, unit.linear
        self.forms, self.rectified, self.audited = forms, rectified, audited
        self.rebuild = rebuilder(rule)
        self.kernels = [k for kernel in self.region.kernels for k in kernel.all()]
        # Constants are kept as they were before they were spread out.
        self.spreads = list(dict.fromkeys(n for k in self.kernels for n in k.moves))
        self.externals = externals_of(unit, x_value, self.spreads)
        self.multiplying = {n for k in self.kernels for n in (k.node, *k.scales)}
        self.behind = unit.nodes[len(self.region.nodes) :]
        self.moves = [n for n in self.behind if n.name not in AFFINE]
        # Where the program converts on the way from x to the output, rules compute in the wider of both types, and
        # what they are given is as exact as the coarsest.
        ends = [wide_dtype(v.aval.dtype) for v in (x_value, unit.out)]
        self.dtype = max(ends, key=lambda dtype: jnp.finfo(dtype).bits)
        passed = [x_value, *(v for node in unit.nodes for v in node.outputs if v.carries)]
        self.narrow = any(v.narrow for v in passed)
        self.noise = 4 * max(float(jnp.finfo(v.aval.dtype).eps) for v in passed)
        self.apart = x_value.nonnegative or is_coarse(self.noise) or not chooses_halves(type(rule))

    def forward(self, x: Any, externals: list, prepared: Any, leaves: list) -> Any:
        return evaluate(self.unit, self.x_value, self.externals, x, externals, self.spreads)

    def backward(self, x: Any, rest: Any, z: Any, c: Any) -> Any:
        externals, prepared, leaves = rest
        rule = self.rebuild(leaves)
        if prepared is None or not self.region.plain:
            externals = [compat.late(a, c) for a in externals]
        if prepared is None:
            w, b = self.merge(externals)
            prepared = kernels_of(rule, w, self.unit, self.apart), b
        x = compat.late(x, c)  # or the CPU runs the second forward pass at once, and keeps all of it
        layer = self.layer(x, *prepared, dict(zip(self.externals, externals, strict=True)))
        if self.audited:
            layer.account = []
        R, z = relevance_of(z, c, self.forms[0]).astype(self.dtype), z.astype(self.dtype)
        result = rule.back(layer, x.astype(self.dtype), -z if self.unit.flipped else z, R)
        result = of_shape(result, x.shape, f"{rule}: back", self.unit)
        if rule.emits == RATIO and self.forms[1] == PLAIN:
            result = result * x.astype(result.dtype)
        return result if layer.account is None else (result, audit_entry(layer.account))

    def prepare(self, externals: list, leaves: list) -> Any:
        """The merged kernels and bias, computed now, if all they depend on is known now; else None."""
        if any(a is None or isinstance(a, jax.core.Tracer) for a in [*externals, *leaves]):
            return None
        if self.shifts():  # their sum would have to be compiled
            return None
        with jax.ensure_compile_time_eval():
            w, b = self.merge([np.asarray(a) for a in externals])  # in NumPy: nothing to compile
            rule = self.rebuild([np.asarray(a) for a in leaves])
            return kernels_of(rule, w, self.unit, self.apart), b

    def shifts(self) -> bool:
        """Whether constants are added inside the region, or stand beside x in it."""
        numbers = [
            v for n in self.region.nodes if n not in self.multiplying for v in n.inputs if not v.carries
        ]
        return any(compat.is_float(v.aval) and not known_zero(v) for v in numbers)

    def merge(self, externals: list) -> tuple[Any, Any]:
        """Kernel and bias, with the affine constants behind the layer folded in. A kernel of several arrays is a
        tuple."""
        env = dict(zip(self.externals, externals, strict=True))
        read = lambda v: np.asarray(v.constant, v.aval.dtype) if v.constant is not None else env[v]
        typed = lambda a: a.astype(self.dtype)
        kernels, region = self.kernels, self.region
        w, b = [wide(read(k.value)) if self.narrow else read(k.value) for k in kernels], 0.0
        w = [1 / each if k.node.name == "div" else each for each, k in zip(w, kernels, strict=True)]
        for node in region.nodes:
            at = [i for i, k in enumerate(kernels) if node in k.scales]
            factor = _factor(node, read) if at else None
            for i in at:
                w[i] = w[i] * along(factor, kernels[i].scales[node], w[i].ndim).astype(w[i].dtype)
        if self.shifts():
            b = typed(self.shift(read))
        value = region.out
        for node in self.behind:
            if node.name in ADDITIONS:
                t = typed(read(next(v for v in node.inputs if v is not value)))
                if node.name != "sub":
                    b = b + t
                elif node.inputs[0] is value:
                    b = b - t
                else:
                    w, b = [-each for each in w], t - b
            elif node.name in AFFINE:
                factor = _factor(node, read)
                w = [
                    each * along(factor, k.scales[node], each.ndim).astype(each.dtype)
                    for each, k in zip(w, kernels, strict=True)
                ]
                b = b * typed(factor)
            elif not isinstance(b, float):
                b = typed(node.widened().bind(jnp.broadcast_to(b, value.shape))[0])
            value = node.out
        signed = {k: -each if k.sign < 0 else each for k, each in zip(kernels, w, strict=True)}
        merged = [
            functools.reduce(lambda a, b: a + b, [signed[k] for k in kernel.all()])
            for kernel in region.kernels
        ]
        if self.unit.flipped:
            merged, b = [-each for each in merged], -b
        return merged[0] if len(merged) == 1 else tuple(merged), b

    def shift(self, read: Callable) -> Any:
        """What the region makes of x = 0: the constants that are added inside."""
        env = {self.region.x: jnp.zeros(self.region.x.shape, self.region.x.aval.dtype)}
        for node in (*self.spreads, *self.region.nodes):
            values = compat.varying_alike(*(env[v] if v in env else read(v) for v in node.inputs))
            env.update(zip(node.outputs, node.bind(*values), strict=True))
        return env[self.region.out]

    def linear(self, x: Any, w: Sequence[Any], read: Callable, widened: bool = False) -> Any:
        """The region as a linear map of x, with other kernels. Signs and scales are the kernels' matter. `widened`:
        its sums are made in at least float32."""
        whole = widened and (self.narrow or not self.region.plain)
        typed = wide if whole else lambda a: a  # one product is told what type to make
        bind = lambda node, *values: (node.widened() if widened else node).bind(*values)
        made = {self.region.x: typed(x)}
        kernels = {k.node: (k, typed(each)) for k, each in zip(self.region.kernels, w, strict=True)}
        others = {k.node for kernel in self.region.kernels for k in kernel.merged}
        zeros = lambda v: typed(jnp.zeros(v.shape, v.aval.dtype))
        for node in self.region.nodes:
            out, inside = node.out, [made[v] for v in node.inputs if v in made]
            if node in others:
                made[out] = zeros(out)
            elif node in kernels:
                kernel, each = kernels[node]
                for move in kernel.moves:
                    (each,) = bind(move, each)
                if node.name == "div":
                    made[out] = inside[0] * each
                    continue
                values = [
                    made[v] if v in made else typed(read(v)) if i != kernel.place else each
                    for i, v in enumerate(node.inputs)
                ]
                (made[out],) = bind(node, *values)
            elif node.name in AFFINE:
                terms = [jnp.broadcast_to(a, out.shape) for a in inside]
                made[out] = functools.reduce(jnp.add, terms)
            else:
                values = [
                    made[v] if v in made else zeros(v) if compat.is_float(v.aval) else read(v)
                    for v in node.inputs
                ]
                made.update(zip(node.outputs, bind(node, *values), strict=True))
        return made[self.region.out]

    def layer(self, x: Any, kernels: tuple, b: Any, env: Mapping[Value, Any]) -> Layer:
        like = x
        read = lambda v: v.constant if v.constant is not None else env[v]

        def run(x, w, widened):
            x, *w, _ = compat.varying_alike(x, *(w if isinstance(w, tuple) else (w,)), like)
            z = self.linear(x, w, read, widened)
            for node in self.moves:
                z = (node.widened() if widened else node).bind(z)[0]
            return z

        dtype, shape = x.dtype, self.unit.out.shape
        out = (self.moves or self.region.nodes)[-1].out.aval.dtype
        out = wide_dtype(out) if self.narrow else out

        def transpose(s, w):
            s = jnp.broadcast_to(s, shape).astype(out)
            # Relevance divided by z overflows float16; bfloat16 holds it.
            z_of = lambda x: run(x, w, self.narrow)
            return jax.linear_transpose(z_of, wide(x) if self.narrow else x)(s)[0].astype(self.dtype)

        def ones():
            alike = [] if self.moves else _batch_dims(self.region)
            shape = [1 if d in alike else n for d, n in enumerate(x.shape)]
            return lax.optimization_barrier(
                jnp.ones(shape, self.dtype)
            )  # or XLA convolves constants when compiling, slowly

        return Layer(
            lambda x, w: run(x.astype(dtype), w, True).astype(self.dtype),
            transpose,
            kernels,
            b if isinstance(b, float) else b.astype(self.dtype),
            self.x_value.nonnegative,
            self.rectified,
            ones,
            self.noise,
            self.apart,
        )


def audit_entry(account: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """What an audit's slot is given by a rule: the sums of what the bias and the stabiliser absorb."""
    entry = jnp.zeros(SLOT)
    for bias, epsilon in account:
        entry = entry.at[BIAS].add(bias.astype(entry.dtype)).at[EPSILON].add(epsilon.astype(entry.dtype))
    return entry


def along(factor: jax.Array, dims: tuple[int, ...], rank: int) -> jax.Array:
    """A factor of a layer's output, laid along the dimensions of the kernel that it belongs to."""
    factor = factor.reshape([n for n in factor.shape if n > 1])
    factor = factor.transpose(sorted(range(len(dims)), key=lambda i: dims[i]))
    shape = [1] * rank
    for d, n in zip(sorted(dims), factor.shape, strict=True):
        shape[d] = n
    return factor.reshape(shape)


def _factor(node: Node, read: Callable) -> Any:
    """The constant that a node scales with."""
    fixed = [wide(read(v)) for v in node.inputs if not v.carries]
    if not fixed:
        return np.asarray(-1.0, wide(np.zeros((), node.out.aval.dtype)).dtype)
    return 1 / fixed[0] if node.name == "div" else fixed[0]


def _batch_dims(region: Region) -> list[int]:
    """The dimensions of a layer's input along which all denominators that do not look at the input are alike."""
    if not region.plain:
        return []
    core, at = region.nodes[-1], 1 - region.kernels[0].place
    p, dims = core.params, range(len(core.inputs[at].shape))
    if core.name == "conv_general_dilated":
        alike = [p["dimension_numbers"].lhs_spec[0]] if at == 0 and p["batch_group_count"] == 1 else []
    else:
        contract, batch = p["dimension_numbers"][0][at], p["dimension_numbers"][1][at]
        alike = [d for d in dims if d not in contract and d not in batch]
    if not all(node.name == "pad" for node in region.nodes[:-1]):
        return []
    padded = {
        d for n in region.nodes[:-1] for d, width in enumerate(n.params["padding_config"]) if any(width)
    }
    return [d for d in alike if d not in padded]
