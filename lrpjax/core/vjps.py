"""Identities with another derivative: the few `jax.custom_vjp` functions through which relevance is steered.
They close over static data only."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lrpjax.core import compat
from lrpjax.rules import PLAIN, RATIO, divide, positive, quotient


@jax.custom_jvp
def detach(x: jax.Array) -> jax.Array:
    """x, through which no relevance flows. Unlike `stop_gradient` it leaves derivatives *of* the relevance alone."""
    return x


def _detach_jvp(primals, tangents):
    return primals[0], SymbolicZero(jax.typeof(primals[0]))


detach.defjvp(_detach_jvp, symbolic_zeros=True)


@jax.custom_vjp
def scale(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x, whose cotangent is multiplied by `weight`."""
    return x


def _scale_bwd(w, c):
    if not w.ndim:  # a number is as exact as the cotangent's own type
        return lax.mul(c, lax.broadcast(_as(w, c.dtype), c.shape)), None
    return _as(wide(c) * w.astype(wide_dtype(c.dtype)), c.dtype), None


scale.defvjp(lambda x, w: (x, w), _scale_bwd)


@jax.custom_vjp
def junction(x: jax.Array, zeros: jax.Array, gate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x + zeros, x, gate): a place at which a backward pass is steered by the cotangents that it is given.

    The cotangent that arrives from above is that of `zeros`. What goes on is this, times the cotangent of the third
    (1: on as it came; 0: no further), and the cotangent of the second, which begins here.
    """
    return x + zeros, x, gate


def _junction_bwd(_, cotangents):
    c, begins, passes = cotangents
    return c * passes.astype(c.real.dtype) + begins, c, None


junction.defvjp(lambda x, zeros, gate: ((x + zeros, x, gate), None), _junction_bwd)


def convert(x: jax.Array, epsilon: Any, arrives: str, leaves: str, rectified: bool = False) -> jax.Array:
    """x, whose cotangent arrives in the form `arrives` and goes on in the form `leaves`.

    With an `epsilon`, a cotangent in ratio form is damped by x / (x + ε sign x): that is the ε-rule of whatever
    linear map made x. `rectified`: the cotangent is zero wherever x is not positive, so that x⁺, which the ReLU
    keeps anyway, can be kept in place of x.
    """
    known = epsilon if isinstance(epsilon, (int, float)) else None
    traced = None if epsilon is None or known is not None else jnp.asarray(epsilon)
    return _convert(x, traced, known, arrives, leaves, rectified)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convert(x, epsilon, known, arrives, leaves, rectified):
    return x


def _convert_fwd(x, epsilon, known, arrives, leaves, rectified):
    return x, (positive(x) if rectified else x, epsilon)


def _convert_bwd(known, arrives, leaves, rectified, residuals, c):
    x, epsilon = residuals
    epsilon = known if epsilon is None else epsilon
    dtype = c.dtype
    x, c = wide(residual(x, c)), wide(c)
    if arrives == RATIO and (leaves == PLAIN or epsilon is not None):
        c = lax.mul(c, x)
        arrives = PLAIN
    if arrives == PLAIN and leaves == RATIO:
        c = divide(c, x) if epsilon is None else quotient(c, x, epsilon)
    return _as(c, dtype), None


_convert.defvjp(_convert_fwd, _convert_bwd)


@jax.custom_vjp
def widen(x: jax.Array) -> jax.Array:
    """x in at least float32, whose cotangent arrives in ratio form and goes on in plain form, in x's own type."""
    return wide(x)


def _widen_bwd(x, c):
    return ((c * wide(residual(x, c))).astype(x.dtype),)


widen.defvjp(lambda x: (wide(x), x), _widen_bwd)


def wide(x: jax.Array) -> jax.Array:
    """x in the precision that rules compute in: at least float32."""
    return x.astype(jnp.float32) if is_half(x.dtype) else x


def _as(x: jax.Array, dtype: Any) -> jax.Array:
    """x in a type, which costs nothing where it has that."""
    return x if x.dtype == dtype else x.astype(dtype)


def wide_dtype(dtype: Any) -> Any:
    """The type that `wide` gives to values of a type."""
    return jnp.dtype(jnp.float32) if is_half(dtype) else dtype


def is_half(dtype: Any) -> bool:
    return dtype in (jnp.bfloat16, jnp.float16)


def residual(x: jax.Array, c: jax.Array) -> jax.Array:
    """A value that the forward pass left for a cotangent. Where a device computes half precision in float32,
    XLA would keep that copy of it."""
    return x if wide(x) is x else compat.late(x, c)


def with_backward(
    forward: Callable,
    backward: Callable,
    x: jax.Array,
    *rest: Any,
    rectified: bool = False,
    slot: jax.Array | None = None,
) -> jax.Array:
    """forward(x, *rest), with `backward(x, rest, y, c)` for the cotangent of x and none for the rest. Both
    close over static data only.

    `rectified` as in `convert`: the backward function is given y⁺ for y. With a `slot` the backward function
    returns a pair, the second of which is the cotangent of the slot.
    """

    @jax.custom_vjp
    def call(x, slot, *rest):
        return forward(x, *rest)

    def fwd(x, slot, *rest):
        y = forward(x, *rest)
        return y, (x, rest, positive(y) if rectified else y)

    def bwd(residuals, c):
        x, rest, y = residuals
        result = backward(residual(x, c), rest, residual(y, c), c)
        result, noted = (result, None) if slot is None else result
        return (result.astype(x.dtype), noted, *([None] * len(rest)))

    call.defvjp(fwd, bwd)
    return call(x, slot, *rest)


SLOT = 7
RECEIVED, PASSED, BIAS, EPSILON, BROKEN, SIZE_RECEIVED, SIZE_PASSED = range(SLOT)
"""The columns of an audit's slot: relevance at a unit's output and at its operands, what bias and stabiliser
absorb, values that are not finite; and the sums of the sizes |R| at its output and at its operands."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def meter(x: jax.Array, slot: jax.Array, form: str, weights: tuple[float, ...]) -> jax.Array:
    """x. Into the columns of `slot`, as its cotangent, goes the sum of the relevance that passes here (of its
    sizes, in the columns for those), times the weight of each column; where that of BROKEN is not zero, the number
    of values of x that are not finite."""
    return x


def _each(x: jax.Array, c: jax.Array, form: str) -> jax.Array:
    """The relevance of every element: none where the cotangent is zero, whatever x is (masks with −∞)."""
    R = relevance_of(jnp.where(c == 0, jnp.zeros((), x.dtype), x), c, form)
    return jnp.real(R).astype(jnp.zeros(()).dtype)


def _meter_bwd(form, weights, x, c):
    each = _each(x, c, form)
    R, size = each.sum(), jnp.abs(each).sum()
    noted = [
        (size if i in (SIZE_RECEIVED, SIZE_PASSED) else R) * w if w else jnp.zeros_like(R)
        for i, w in enumerate(weights)
    ]
    if weights[BROKEN]:
        noted[BROKEN] = (~jnp.isfinite(x)).sum().astype(R.dtype)
    return c, jnp.stack(noted)


meter.defvjp(lambda x, slot, form, weights: (x, x), _meter_bwd)


def metered(x: jax.Array, slot: jax.Array, form: str, weights: Mapping[int, float]) -> jax.Array:
    """x, with `meter`."""
    slot = compat.varying_alike(slot, x)[0]
    return meter(x, slot, form, tuple(float(weights.get(i, 0)) for i in range(SLOT)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def absorb(x: jax.Array, slot: jax.Array, form: str) -> jax.Array:
    """x, a constant. Into `slot`, as what it receives, goes the relevance that ends here."""
    return x


def _absorb_bwd(form, x, c):
    return None, jnp.zeros(SLOT).at[RECEIVED].set(_each(x, c, form).sum())


absorb.defvjp(lambda x, slot, form: (x, x), _absorb_bwd)


def absorbing(x: jax.Array, slot: jax.Array, form: str) -> jax.Array:
    """x, with `absorb`."""
    slot, x = compat.varying_alike(slot, x)
    return absorb(x, slot, form)


def unbroadcast(c: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Sums an array over the axes along which something of this shape was broadcast to it."""
    c = c.sum(tuple(range(c.ndim - len(shape))))
    axes = tuple(d for d, n in enumerate(shape) if n == 1 and c.shape[d] != 1)
    return c.sum(axes, keepdims=True) if axes else c


def relevance_of(y: jax.Array, c: jax.Array, form: str) -> jax.Array:
    """The relevance of y, from its cotangent in some form."""
    return wide(c) if form == PLAIN else wide(c) * wide(y)
