"""What rules are made of: the stabiliser, division with 0/0 = 0, positive and negative parts, and a weighted
layer as a rule sees it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def stabilize(z: jax.Array, epsilon: Any) -> jax.Array:
    """z + ε·sign(z) with sign(0) = +1 (Bach et al. 2015, eq. 58).

    >>> import jax.numpy as jnp
    >>> print(stabilize(jnp.array([2.0, 0.0, -2.0]), 0.5))
    [ 2.5  0.5 -2.5]
    """
    if not isinstance(epsilon, (int, float)) or jnp.iscomplexobj(z):
        epsilon = jnp.asarray(epsilon, z.dtype)
        return z + jnp.where(z >= 0, epsilon, -epsilon)
    # These functions are traced in every layer: jnp would trace a function of its own for each operation.
    nonnegative = lax.ge(z, lax.full_like(z, 0))
    return lax.add(z, lax.select(nonnegative, lax.full_like(z, epsilon), lax.full_like(z, -epsilon)))


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0, safe to differentiate.

    >>> import jax.numpy as jnp
    >>> print(divide(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0])))
    [0.5 0. ]
    """
    alike = isinstance(a, jax.Array) and isinstance(b, jax.Array) and (a.shape, a.dtype) == (b.shape, b.dtype)
    if not alike:
        zero = b == 0
        return jnp.where(zero, jnp.zeros((), a.dtype), a / jnp.where(zero, jnp.ones((), b.dtype), b))
    zero = lax.eq(b, lax.full_like(b, 0))
    return lax.select(zero, lax.full_like(a, 0), lax.div(a, lax.select(zero, lax.full_like(b, 1), b)))


def quotient(R: jax.Array, z: jax.Array, epsilon: Any) -> jax.Array:
    """R / (z + ε sign z), and 0 where that divides by 0, for which nothing is computed where a positive ε is
    known to rule it out."""
    stabilized = stabilize(z, epsilon)
    known = isinstance(epsilon, (int, float)) and epsilon >= float(jnp.finfo(z.dtype).tiny)
    return R / stabilized if known else divide(R, stabilized)


def positive(x: Any) -> Any:
    """x⁺ = max(x, 0). A NumPy array gives a NumPy array, here and in `negative` and `Rule.kernels`.

    >>> import jax.numpy as jnp
    >>> print(positive(jnp.array([2.0, -2.0])))
    [2. 0.]
    """
    return (
        np.maximum(x, np.zeros((), x.dtype))
        if isinstance(x, np.ndarray)
        else jnp.maximum(x, jnp.zeros((), x.dtype))
    )


def negative(x: Any) -> Any:
    """x⁻ = min(x, 0).

    >>> import jax.numpy as jnp
    >>> print(negative(jnp.array([2.0, -2.0])))
    [ 0. -2.]
    """
    return (
        np.minimum(x, np.zeros((), x.dtype))
        if isinstance(x, np.ndarray)
        else jnp.minimum(x, jnp.zeros((), x.dtype))
    )


def halves(w: Any, apart: bool = True) -> tuple[Any, Any]:
    """What tells positive contributions from negative ones: (w⁺, w⁻), or, not `apart`, (w, |w|).

    For inputs of unknown sign the second needs fewer products, down to half of them: with z = Σ x w and A = Σ |x| |w|
    known, Σ (x w)⁺ = (z + A) / 2 and Σ (x w)⁻ = (z − A) / 2; and Wᵀ and |W|ᵀ serve both signs of x alike.

    >>> import numpy as np
    >>> print(halves(np.array([2.0, -3.0])), halves(np.array([2.0, -3.0]), apart=False))
    (array([2., 0.]), array([ 0., -3.])) (array([ 2., -3.]), array([2., 3.]))
    """
    return (positive(w), negative(w)) if apart else (w, abs(w))


def uniform(w: Any) -> Any:
    """A kernel of ones, of the shape and type of w."""
    return (np if isinstance(w, np.ndarray) else jnp).ones_like(w)


def is_zero(value: Any) -> bool:
    """Whether a hyper-parameter is known to be zero (a traced one is not)."""
    return isinstance(value, (int, float)) and value == 0


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of one shape can be stretched to another."""
    return len(shape) <= len(to) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False)
    )


def is_coarse(noise: float) -> bool:
    """Whether numbers with this relative rounding error are of half precision."""
    return noise > 1e-4


@dataclasses.dataclass
class Layer:
    """A weighted layer as a rule sees it: z = apply(x, w) + b, with `transpose(s, w)` the adjoint of `apply` in x.

    Both are linear, and take and return arrays of the precision that rules compute in, whatever the model's own:
    apply(x, w) of x's and w's shapes gives z's shape, transpose(s, w) of z's and w's gives x's.

    kernels: what the rule's `kernels` made of w. b: the bias, a number or an array that broadcasts to z.
    nonnegative: x ≥ 0 is known beforehand (it follows a ReLU, say). rectified: R_j is zero wherever z_j ≤ 0, known
    beforehand. ones: a function that gives an array of ones for x, of batch size one where possible. noise: the
    relative rounding error of what `apply` gives. apart: whether the kernels of rules that tell positive contributions
    from negative ones are w⁺ and w⁻, or w and |w| (`halves`). account: where an audit asks for it, what the bias and
    the stabiliser absorb, one pair for each `share`.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import rules
    >>> class Explicit(rules.Rule):  # LRP-0: R_i = x_i Σ_j w_ij R_j / z_j
    ...     emits = rules.PLAIN
    ...     def kernels(self, w):
    ...         return (w,)
    ...     def back(self, layer, x, z, R):
    ...         (w,) = layer.kernels
    ...         return x * layer.transpose(rules.divide(R, layer.apply(x, w) + layer.b), w)
    >>> f = lambda x: x @ jnp.array([3.0, -1.0])
    >>> print(lrpjax.relevance(f, lrpjax.Composite([("*", Explicit())]))(jnp.array([1.0, 2.0])).round(1))
    [ 3. -2.]
    """

    apply: Callable[[jax.Array, jax.Array], jax.Array]
    transpose: Callable[[jax.Array, jax.Array], jax.Array]
    kernels: tuple[jax.Array, ...]
    b: jax.Array | float
    nonnegative: bool
    rectified: bool
    ones: Callable[[], jax.Array]
    noise: float
    apart: bool = True
    account: list[tuple[jax.Array, jax.Array]] | None = None

    @property
    def coarse(self) -> bool:
        """Whether z has so few digits (half precision) that a difference from it is worth a product more."""
        return is_coarse(self.noise)

    @property
    def faint(self) -> float:
        """The share of Σ_i |x_i w_ij| up to which a sum that was found as a difference counts as nothing."""
        return 8 * self.noise

    def share(self, R: jax.Array, z: jax.Array, epsilon: Any, bias: Any = 0.0) -> jax.Array:
        """R / (z + ε sign z): what each unit of a contribution to z earns. `bias` is the part of z that no
        input made."""
        s = quotient(R, z, epsilon)
        if self.account is not None:
            self.account.append(((s * jnp.asarray(bias, s.dtype)).sum(), (R - s * z).sum()))
        return s

    def lose(self, R: jax.Array, part: jax.Array) -> jax.Array:
        """R without this part of it, which the bias absorbs."""
        lost = R * part
        if self.account is not None:
            self.account.append((lost.sum(), jnp.zeros((), lost.dtype)))
        return R - lost

    def evenly(self, R: jax.Array, epsilon: Any = 0.0) -> jax.Array:
        """R_j shared among the inputs of j, each the same part (the flat rule)."""
        ones = jax.tree.map(uniform, self.kernels[0])
        return self.transpose(self.share(R, self.apply(self.ones(), ones), epsilon), ones)

    def positive(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """Σ_i (x_i w_ij)⁺ without the bias. It and the two methods below are for kernels made by `halves`."""
        if self.nonnegative:
            return self.apply(x, self.kernels[0])
        if self.apart:
            above, below = self.kernels[:2]
            return self.apply(positive(x), above) + self.apply(negative(x), below)
        size = self.apply(abs(x), self.kernels[1])
        found = (z - self.b + size) / 2
        return jnp.where(found > self.faint * size, found, 0.0)

    def negative(self, x: jax.Array, z: jax.Array, above: jax.Array) -> jax.Array:
        """Σ_i (x_i w_ij)⁻ without the bias, given what `positive` returned."""
        if self.coarse:
            w_above, w_below = self.kernels[:2]
            if self.nonnegative:
                return self.apply(x, w_below)
            return self.apply(positive(x), w_below) + self.apply(negative(x), w_above)
        # Without another forward pass: where it drowns in the rounding of that difference, it counts as large as the
        # rounding, or as nothing.
        found = negative(z - self.b - above)
        if not (self.nonnegative or self.apart):
            return jnp.where(-found > self.faint * above, found, 0.0)
        return jnp.minimum(found, -jnp.asarray(self.noise, z.dtype) * above)

    def give(self, x: jax.Array, s_positive: jax.Array, s_negative: Any = 0.0) -> jax.Array:
        """Σ_j (s⁺_j (x_i w_ij)⁺ + s⁻_j (x_i w_ij)⁻) / x_i: what is earned by contributions of either sign."""
        one_sided = is_zero(s_negative)

        def earned(above: Any, below: Any) -> jax.Array:
            c = self.transpose(s_positive, above)
            return c if one_sided else c + self.transpose(s_negative, below)

        if self.nonnegative:
            return earned(*self.kernels[:2])
        if self.apart:
            above, below = self.kernels[:2]
            return jnp.where(x > 0, earned(above, below), earned(below, above))
        w, size = self.kernels[:2]
        c = self.transpose(s_positive + s_negative, w)
        return (c + jnp.sign(x) * self.transpose(s_positive - s_negative, size)) / 2
