"""Relevance in other coordinates than those of the argument: of frequencies, of principal components, of wavelets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax.core import compat
from lrpjax.errors import InputError


class Inspection:
    """The coordinates z = to(x) of an argument x, and the map that takes its relevance to theirs.

    Behind z comes the linear map x = back(z), which shares relevance in proportion: R_z = z ⊙ Jᵀ(R_x / x), with the
    Jacobian J of `back`. Complex coordinates are the pairs of their real and imaginary parts.
    """

    def __init__(self, inspect: Any, x: Any, derivative: bool):
        """x: the argument, a pytree of floating arrays. derivative: whether what is explained is a derivative, in place
        of relevance: then that of z is asked for, which is no product with z.

        Raises:
            InputError: `inspect` is no pair of functions that undo each other at x, or `back` is not linear.
        """
        if not isinstance(inspect, (tuple, list)) or len(inspect) != 2 or not all(map(callable, inspect)):
            raise InputError(f"inspect is a pair (to, back) of functions, but is {inspect!r}")
        to, back = inspect
        self.derivative = derivative
        # What is compared with x must not differ by what a device saves in products of matrices.
        with jax.default_matmul_precision("highest"):
            leaves, self.tree = jax.tree.flatten(to(x))
            self.parts = [_parts(leaf, derivative) for leaf in leaves]

            def rebuild(parts: list[list[jax.Array]]) -> Any:
                leaves = [lax.complex(*p) if len(p) == 2 else p[0] for p in parts]
                return back(jax.tree.unflatten(self.tree, leaves))

            rebuilt, self.pull = jax.vjp(rebuild, self.parts)
            _check_shapes(rebuilt, x)
            if not any(
                isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((self.parts, rebuilt, x))
            ):
                _check_inverse(rebuilt, x)
                at = lambda t: rebuild(jax.tree.map(lambda part: t * part, self.parts))
                _check_linear(at(-2), at(0), rebuilt)

    def relevance(self, ratio: Any) -> Any:
        """The relevance of z, from x's divided by x; or its derivative, from that with respect to x."""
        (shares,) = self.pull(ratio)
        if not self.derivative:
            shares = jax.tree.map(jnp.multiply, shares, self.parts)
        return jax.tree.unflatten(self.tree, [sum(parts[1:], start=parts[0]) for parts in shares])


def _parts(leaf: Any, derivative: bool) -> list[jax.Array]:
    """A real array, or the real and the imaginary parts of a complex one."""
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf):
        if derivative:
            raise InputError(
                "inspect: the derivative with respect to a complex number is no real number. Choose a composite that "
                "gives relevance, such as input_x_gradient(), or functions (to, back) of real coordinates"
            )
        return [leaf.real, leaf.imag]
    if not compat.is_float(leaf.aval):
        raise InputError(
            f"inspect: to(x) holds {leaf.dtype}{list(leaf.shape)}: only numbers with a fraction have shares"
        )
    return [leaf]


def _check_shapes(rebuilt: Any, x: Any) -> None:
    types = [jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (rebuilt, x)]
    if types[0] != types[1]:
        raise InputError(
            f"inspect: back(to(x)) is {types[0]}, but the argument is {types[1]}: back has to undo to"
        )


def _check_inverse(rebuilt: Any, x: Any) -> None:
    for found, wanted in zip(jax.tree.leaves(rebuilt), jax.tree.leaves(x), strict=True):
        if (error := _excess(found, wanted, wanted)) is not None:
            raise InputError(f"inspect: back(to(x)) differs from x, {error}: back has to undo to")


def _check_linear(behind: Any, zero: Any, rebuilt: Any) -> None:
    """A linear map with a constant added is a line through back(−2z), back(0) and back(z)."""
    for a, b, c in zip(*map(jax.tree.leaves, (behind, zero, rebuilt)), strict=True):
        if (error := _excess(a + 2 * c, 3 * b, c)) is not None:
            raise InputError(
                f"inspect: back is not linear: back(-2z) - back(0) is not -2 (back(z) - back(0)), {error}. Explain "
                "f(back(z)) as a function of z instead, with a composite that has rules for what back computes"
            )


def _excess(found: Any, wanted: Any, of: Any) -> str | None:
    """How much two arrays of finite numbers differ, if it is more than rounding: half of a number's digits."""
    limit = float(jnp.finfo(of.dtype).eps) ** 0.5
    found, wanted, of = (np.asarray(a, np.complex128) for a in (found, wanted, of))
    error, scale = (np.abs(a).max(initial=0.0) for a in (found - wanted, of))
    if not np.isfinite(scale) or error <= limit * scale:
        return None
    return f"by up to {error:.3g} where the largest value is {scale:.3g}"
