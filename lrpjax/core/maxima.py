"""A derivative of max pools that is made of comparisons."""

import functools
import itertools
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from lrpjax.core.graph import Node

SMALL_WINDOW = 16
"""The largest window of which a max pool's elements are compared one by one, where JAX has another derivative
to offer."""


def max_pool(node: Node) -> tuple[Callable, Callable] | None:
    """Forward and backward of a max pool: the first of the largest of a window gets all, as JAX's derivative has it.

    That is a scatter, which XLA runs one element at a time on some devices, and JAX has none for dilated
    windows; here it is k comparisons for each window of k elements.
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
