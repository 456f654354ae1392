"""Activations: elementwise, non-linear functions of one value."""

from typing import Any

import jax
import jax.numpy as jnp

from lrpjax.core.kinds.base import Kind, Propagation, is_pass
from lrpjax.core.kinds.functions import Own, of_shape, rebuilder, run_own
from lrpjax.core.units import Unit
from lrpjax.core.vjps import relevance_of, unbroadcast, wide
from lrpjax.rules import PLAIN, RATIO, Pass, Rule, divide
from lrpjax.rules.arithmetic import broadcasts

KEEPS_POSITIVE = ("relu", "relu6")
"""Functions that give nothing back for what is not positive."""

BETWEEN = {"relu": (0.0, float("inf")), "relu6": (0.0, 6.0), "hard_tanh": (-1.0, 1.0)}
"""Where the slope of a rectifier is 1; elsewhere it is 0."""


class Activation(Kind):
    name = "activation"
    default = Pass()
    takes = "activations take Pass and rules that define through(x, y, R, derivative)"

    def carry_out(self, unit, rule):
        if any(not broadcasts(v.shape, unit.out.shape) for v in unit.operands):
            (x,) = unit.operands
            raise self.misfit(
                f"{unit.main.name} makes an array of shape {unit.out.shape} of one of {x.shape}"
            )
        if hasattr(rule, "through"):
            return Through(unit, rule)
        if is_pass(rule):
            return PassThrough(unit, str(rule))
        raise self.misfit()


class PassThrough(Propagation):
    """R_i = R_j: the cotangent itself in plain form, times φ(x) / x in ratio form."""

    def __init__(self, unit: Unit, text: str):
        super().__init__(unit, text)
        self.rectifies = unit.name in KEEPS_POSITIVE

    def forms(self, form, meant):
        return form, form

    def run(self, frame):
        unit, (x_value,), form = self.unit, self.receives, frame.routes.form[self.unit.out]
        # φ(0) = 0: the limit of φ(x) / x. Behind a weighted layer it cannot matter, for R = 0 there.
        behind_layer = ("dot_general", "conv_general_dilated", "add", "sub")
        limit_matters = x_value.node is None or x_value.node.name not in behind_layer

        def backward(x, rest, y, c):
            if form == PLAIN:
                return unbroadcast(c, x.shape)
            if unit.name == "relu":
                return c * (y > 0).astype(c.dtype)
            wx, wy = wide(x), wide(y)
            wy = jnp.where((c == 0) & jnp.isinf(wy), jnp.zeros_like(wy), wy)  # −∞ of a mask takes nothing
            tiny = jnp.abs(wx) < jnp.finfo(wx.dtype).tiny
            ratio = divide(wy, jnp.where(tiny, jnp.zeros_like(wx), wx))
            if limit_matters:
                limit = wide(derivative(own, x, rest[0]))
                ratio = jnp.where(tiny & (wy == 0) & jnp.isfinite(limit), limit, ratio)
            return unbroadcast(wide(c) * ratio, x.shape)

        def given(x, rest, y, c):
            c = backward(x, rest, y, c)
            return wide(c) * wide(x) if form == RATIO and gives == PLAIN else c

        own, gives = Own(unit, x_value, given), frame.routes.gives[unit].get(x_value)
        run_own(frame, own)


class Through(Propagation):
    """The formula of a rule."""

    def __init__(self, unit: Unit, rule: Rule):
        super().__init__(unit, str(rule))
        self.rule = rule
        self.linear = rule.linear

    def forms(self, form, meant):
        return PLAIN, PLAIN

    def run(self, frame):
        form, rebuild = frame.routes.form[self.unit.out], rebuilder(self.rule)

        def backward(x, rest, y, c):
            externals, leaves = rest
            slope = wide(derivative(own, x, externals))
            if self.unit.name in BETWEEN:  # at a kink JAX has ½, 0 or 1 by the writing; that of networks is 0
                low, high = BETWEEN[self.unit.name]
                slope = ((x > low) & (x < high)).astype(slope.dtype)
            rule = rebuild(leaves)
            R = rule.through(wide(x), wide(y), relevance_of(y, c, form), slope)
            return unbroadcast(of_shape(R, y.shape, f"{rule}: through", self.unit), x.shape)

        own = Own(self.unit, self.receives[0], backward, self.rule)
        run_own(frame, own)


def derivative(own: Own, x: jax.Array, externals: Any) -> jax.Array:
    """φ'(x), of an elementwise function."""
    return jax.jvp(lambda x: own.forward(x, externals), (x,), (jnp.ones_like(x),))[1]
