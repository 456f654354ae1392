"""Forward and backward functions of the units that have a derivative of their own: weighted layers, activations, and maps that pass relevance on."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax import _compat
from lrpjax.cotangents import BIAS, EPSILON, SLOT, relevance_of, unbroadcast, wide
from lrpjax.graph import Node, Value
from lrpjax.rules import PLAIN, Layer, Rule, divide
from lrpjax.units import Unit

AFFINE = ("add", "sub", "mul", "div", "neg", "add_any")


def _evaluate(unit: Unit, x_value: Value, externals: Sequence[Value], x: Any, rest: Sequence[Any]) -> Any:
    env = {x_value: x, **dict(zip(externals, rest, strict=True))}
    for node in unit.nodes:
        values = [v.constant if v.constant is not None else env[v] for v in node.inputs]
        env.update(zip(node.outputs, node.bind(*values), strict=True))
    return env[unit.out]


def _externals(unit: Unit, x: Value) -> list[Value]:
    """What a unit reads besides x, its own values and literals."""
    inner = {v for node in unit.nodes for v in node.outputs}
    read = dict.fromkeys(v for node in unit.nodes for v in node.inputs)
    return [v for v in read if v is not x and v not in inner and v.constant is None]


def activation(unit: Unit, rule: Rule | None, have: str) -> tuple[Callable, Callable, list[Value]]:
    x_value = unit.passing[0]
    externals = _externals(unit, x_value)
    forward = lambda x, rest, leaves: _evaluate(unit, x_value, externals, x, rest)
    static = _static(rule)
    precise = x_value.node is None or x_value.node.name not in (
        "dot_general",
        "conv_general_dilated",
        "add",
        "sub",
    )
    name = unit.name

    def derivative(x, rest):
        return jax.jvp(lambda x: forward(x, rest, []), (x,), (jnp.ones_like(x),))[1]

    def backward(x, rest, y, c):
        rest, leaves = rest
        if hasattr(rule, "through"):
            return unbroadcast(
                static(leaves).through(wide(x), wide(y), relevance_of(y, c, have), None), x.shape
            )
        if have == PLAIN:
            return unbroadcast(c, x.shape)
        if name == "relu":
            return c * (y > 0).astype(c.dtype)
        wx, wy = wide(x), wide(y)
        tiny = jnp.abs(wx) < jnp.finfo(wx.dtype).tiny
        ratio = divide(wy, jnp.where(tiny, jnp.zeros_like(wx), wx))
        if (
            precise
        ):  # φ(0) = 0: the limit of φ(x) / x. Upstream of a weighted layer it cannot matter, for R = 0 there
            limit = wide(derivative(x, rest))
            ratio = jnp.where(tiny & (wy == 0) & jnp.isfinite(limit), limit, ratio)
        return unbroadcast(wide(c) * ratio, x.shape)

    return forward, backward, externals


def passing_on(unit: Unit, have: str) -> tuple[Callable, Callable, list[Value]]:
    """Affine maps and normalisations to which relevance comes in plain form: it passes to the signal unchanged."""
    x_value = unit.passing[0]
    externals = _externals(unit, x_value)
    forward = lambda x, rest, leaves: _evaluate(unit, x_value, externals, x, rest)
    return forward, lambda x, rest, y, c: unbroadcast(relevance_of(y, c, have), x.shape), externals


SMALL_WINDOW = 16
"""The largest window of which a max pool's elements are compared one by one, where JAX has another derivative to offer."""


def max_pool(node: Node) -> tuple[Callable, Callable] | None:
    """Forward and backward of a max pool: the first of the largest of a window gets all, as JAX's derivative has it.

    That is a scatter, which XLA runs one element at a time on some devices, and JAX has none for dilated windows; here it is k comparisons for
    each window of k elements.
    """
    p = node.params
    window, strides, padding = p["window_dimensions"], p["window_strides"], p["padding"]
    gaps, spacing = p["window_dilation"], p["base_dilation"]
    differentiable = {*gaps, *spacing} == {1} and all(low >= 0 and high >= 0 for low, high in padding)
    if math.prod(window) > SMALL_WINDOW and differentiable:
        return None

    def backward(x, rest, y, c):
        around = [(low, high, d - 1) for (low, high), d in zip(padding, spacing, strict=True)]
        padded = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), around)
        zero, taken, parts = jnp.zeros((), c.dtype), jnp.zeros(y.shape, bool), []
        for place in itertools.product(*map(range, window)):
            first = [i * d for i, d in zip(place, gaps, strict=True)]
            end = [i + (n - 1) * s + 1 for i, n, s in zip(first, y.shape, strides, strict=True)]
            wins = ~(lax.slice(padded, first, end, strides) < y) & ~taken  # so that NaN wins
            taken |= wins
            borders = zip(first, end, padded.shape, strides, strict=True)
            back = [(i, n - e, s - 1) for i, e, n, s in borders]
            parts.append(lax.pad(jnp.where(wins, c, zero), zero, back))
        inside = lax.pad(functools.reduce(jnp.add, parts), zero, [(-low, -high, 0) for low, high in padding])
        return lax.slice(inside, [0] * x.ndim, inside.shape, spacing)

    return lambda x: node.bind(x)[0], backward


def arrays_of(rule: Rule | None) -> list:
    return [leaf for leaf in jax.tree.leaves(rule) if not isinstance(leaf, (bool, int, float))]


def _static(rule: Rule | None) -> Callable[[list], Any]:
    """A function from a rule's array leaves to the rule; numbers are static."""
    leaves, treedef = jax.tree.flatten(rule)
    numbers = [leaf if isinstance(leaf, (bool, int, float)) else None for leaf in leaves]

    def rebuild(arrays):
        arrays = iter(arrays)
        return jax.tree.unflatten(treedef, [next(arrays) if n is None else n for n in numbers])

    return rebuild


class Weighted:
    """A weighted layer with a rule of its own: the static part, from which forward and backward functions are made."""

    def __init__(
        self, unit: Unit, x_value: Value, rule: Rule, have: str, rectified: bool, audited: bool = False
    ):
        assert unit.core is not None
        self.unit, self.core, self.x_value, self.have, self.rectified = (
            unit,
            unit.core,
            x_value,
            have,
            rectified,
        )
        self.audited = audited
        self.externals = _externals(unit, x_value)
        self.rebuild = _static(rule)
        self.at = self.core.inputs.index(x_value)
        self.moves = [n for n in unit.nodes[1:] if n.name not in AFFINE]

    def forward(self, x: Any, externals: list, prepared: Any, leaves: list) -> Any:
        return _evaluate(self.unit, self.x_value, self.externals, x, externals)

    def backward(self, x: Any, rest: Any, z: Any, c: Any) -> Any:
        externals, prepared, leaves = rest
        rule = self.rebuild(leaves)
        if prepared is None:
            w, b = self.merge([_compat.late(a, c) for a in externals])
            prepared = rule.kernels(w), b
        x = _compat.late(x, c)  # or the CPU runs the second forward pass at once, and keeps all of it
        layer = self.layer(x, *prepared)
        if self.audited:
            layer.account = []
        result = rule.back(layer, wide(x), wide(z), relevance_of(z, c, self.have))
        return result if layer.account is None else (result, _entry(layer.account))

    def prepare(self, externals: list, leaves: list) -> Any:
        """The merged kernels and bias, computed now, if all they depend on is known now; else None."""
        if any(a is None or isinstance(a, jax.core.Tracer) for a in [*externals, *leaves]):
            return None
        with jax.ensure_compile_time_eval():
            w, b = self.merge([np.asarray(a) for a in externals])  # in NumPy: nothing to compile
            return self.rebuild([np.asarray(a) for a in leaves]).kernels(w), b

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
            x, w, _ = _compat.varying_alike(x, w, like)
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


def _entry(account: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
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
