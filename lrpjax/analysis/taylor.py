"""Taylor decomposition: a function's value as a sum over its inputs, by its first-order expansion at a root point.

f(x) = f(x₀) + Σ_i ∂f/∂x_i(x₀) (x_i − x₀_i) + ε with f(x₀) = 0 gives R_i = ∂f/∂x_i(x₀) (x_i − x₀_i) (Bach et al. 2015,
PLoS ONE 10(7), e0130140; Montavon et al. 2017, Pattern Recognition 65, 211-222). What it says depends on the root
point; a good one is near x and on the way to it nothing else changes. Deep Taylor decomposition, which does the same in
every neuron, is `lrpjax.composites.deep_taylor`.

Functions here take one example and give one number. For a batch, `jax.vmap` them.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax.errors import InputError, RootError

if TYPE_CHECKING:
    import optax

BISECTIONS = 60
"""Halvings of a step of a line search: more than float64 can resolve."""

PENALTY = 10.0
"""The weight of f(x₀)² in the augmented Lagrangian of `nearest`, in units in which the distance to, and the slope at,
the starting point are 1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Expansion:
    """A Taylor decomposition.

    relevance: R, in the shape of x, averaged over the root points that were found. root: x₀. residual: f(x₀).
    remainder: all of f(x) that is of second and higher order at x₀, f(x) − f(x₀) − Σ R. found: whether x₀ is a root,
    |f(x₀)| ≤ tolerance · |f(x)|. Where a search gives several root points, the last four have an axis for them in
    front.

    Example:
        >>> import jax.numpy as jnp
        >>> expansion = expand(lambda x: x @ x - 1.0, jnp.array([2.0, 0.0]), root=jnp.array([1.0, 0.0]))
        >>> print(expansion.relevance, expansion.residual, expansion.remainder, expansion.found)
        [2. 0.] 0.0 1.0 True
    """

    relevance: jax.Array
    root: jax.Array
    residual: jax.Array
    remainder: jax.Array
    found: jax.Array


Search = Callable[[Callable, jax.Array], jax.Array]
"""A root search: (f, x) -> x₀ in the shape of x, or several of them stacked."""


def expand(f: Callable, x: jax.Array, root: jax.Array, tolerance: float = 1e-4) -> Expansion:
    """The first-order expansion of f at a given point: R = ∇f(x₀) · (x − x₀), elementwise (Bach et al. 2015; Montavon
    et al. 2017).

    Args:
        f: a function of one example, with one number as value.
        x: the example, of any shape.
        root: the point x₀, in the shape of x.
        tolerance: see `Expansion.found`.

    Returns:
        An `Expansion`; nothing is raised if the point is no root.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import taylor
        >>> e = taylor.expand(lambda x: x[0] * x[1], jnp.array([2.0, 3.0]), jnp.array([0.0, 3.0]))
        >>> print(e.relevance, e.remainder, e.found)
        [6. 0.] 0.0 True
    """
    value = f(x)
    residual, slope = jax.value_and_grad(f)(root)
    relevance = slope * (x - root)
    remainder = value - residual - relevance.sum()
    found = jnp.abs(residual) <= jnp.asarray(tolerance, value.dtype) * jnp.abs(value)
    return Expansion(relevance, root, residual, remainder, found)


def decompose(
    f: Callable, search: Search, *, tolerance: float = 1e-4, strict: bool = True
) -> Callable[[Any], Expansion]:
    """Transforms f into the function that searches root points of it and expands it there.

    Σ R = f(x) − f(x₀) − remainder, averaged over the root points found.

    Args:
        f: a function of one example, with one number as value (a logit, `lambda x: model(x[None])[0, c]`).
        search: `line(...)`, `nearest(...)`, or any function (f, x) -> root points.
        tolerance: a point counts as a root where |f(x₀)| ≤ tolerance · |f(x)|.
        strict: what happens where no root was found. True: RootError, or, under `jit` and `vmap`, where nothing can be
            raised, relevance NaN. False: the expansion at the points that the search ended in; look at `found`,
            `residual` and `remainder`.

    Returns:
        A function of x that returns an `Expansion`. It can be jitted and vmapped.

    Raises:
        InputError: x is not floating-point, or f does not give one number.
        RootError: no root was found, and strict.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import taylor
        >>> f = lambda x: jnp.maximum(x @ jnp.array([1.0, 2.0]) - 2.0, 0.0)
        >>> e = taylor.decompose(f, taylor.line(lambda x: x))(jnp.array([4.0, 3.0]))
        >>> print(e.relevance.round(3), e.root.round(3))
        [3.2 4.8] [0.8 0.6]
    """

    def explain(x: Any) -> Expansion:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"only floating-point values can be decomposed, but this has dtype {x.dtype}")
        shape = jax.eval_shape(f, x).shape
        if shape != ():
            raise InputError(
                f"a Taylor decomposition is that of one number, but f gives shape {shape}: "
                "choose an output, and map over examples with jax.vmap"
            )
        roots = search(f, x)
        if roots.shape[roots.ndim - x.ndim :] != x.shape or roots.ndim > x.ndim + 1:
            raise RootError(f"the search gave root points of shape {roots.shape} for an x of shape {x.shape}")
        single = roots.ndim == x.ndim
        each = jax.vmap(lambda root: expand(f, x, root, tolerance))(roots[None] if single else roots)
        if strict and not isinstance(each.found, jax.core.Tracer) and not bool(each.found.any()):
            best = np.abs(np.asarray(each.residual)).min()
            raise RootError(
                f"no root point was found: f(x) is {float(f(x)):.4g}, "
                f"the least |f(x₀)| that the search came to is {best:.4g}. "
                "Try another direction, a longer way or wider bounds, or take strict=False"
            )
        used = each.found if strict else each.found | ~each.found.any()
        total = jnp.where(used.reshape(-1, *[1] * x.ndim), each.relevance, jnp.zeros((), x.dtype)).sum(0)
        count = used.sum().astype(x.dtype)
        relevance = jnp.where(count > 0, total / jnp.maximum(count, jnp.ones((), x.dtype)), jnp.nan)
        rest = (each.root, each.residual, each.remainder, each.found)
        return Expansion(relevance, *(a[0] if single else a for a in rest))

    return explain


def line(direction: Any = None, *, length: float = 1.0, points: int = 32) -> Search:
    """Searches the first root of f on the way from x to x − length · direction.

    The way is looked at in `points` steps; the first in which f changes its sign, or becomes 0, is halved until nothing
    is left of it. The root is the last point before f changes sign: of a ReLU, one where it is still active.

    Args:
        direction: an array in the shape of x, or several stacked, each of which gives a root point; or a function that
            makes it from x. The directions in which the rules of LRP look, for a ReLU neuron with kernel w (Montavon et
            al. 2017): w² looks along w, z along x, z⁺ along x · [w > 0], z^B along x − low · [w > 0] − high · [w < 0].
            None: the gradient of f at x, in such a length that the way ends at twice the distance of the tangent's
            root.
        length: how far to look, in units of the direction.
        points: how many points on the way are looked at.

    Returns:
        A search for `decompose`.

    Raises:
        RootError: points is not positive; in the search, if the direction has a shape that does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import taylor
        >>> print(taylor.line()(lambda x: x[0] + 2 * x[1] - 5, jnp.array([2.0, 4.0])).round(3))
        [1. 2.]
    """

    if points < 1:
        raise RootError(f"points is {points}: it must be at least 1")

    def search(f: Callable, x: jax.Array) -> jax.Array:
        if direction is None:
            value, slope = jax.value_and_grad(f)(x)
            d = 2 * value * _over_its_square(slope)
        else:
            d = jnp.asarray(direction(x) if callable(direction) else direction).astype(x.dtype)
        if d.shape != x.shape and d.shape[1:] != x.shape:
            raise RootError(f"the direction has shape {d.shape}, but x has shape {x.shape}")
        walk = lambda d: _first_root(f, lambda t: x - t * d, length, points, x.dtype)
        return walk(d) if d.shape == x.shape else lax.map(walk, d)

    return search


def nearest(
    low: Any = None,
    high: Any = None,
    *,
    starts: int = 1,
    key: jax.Array | None = None,
    rounds: int = 10,
    steps: int = 50,
    optimizer: "optax.GradientTransformation | None" = None,
) -> Search:
    """Searches the root of f that is nearest to x: min ‖x₀ − x‖ such that f(x₀) = 0 and low ≤ x₀ ≤ high (Montavon et
    al. 2017).

    By an augmented Lagrangian (Nocedal & Wright 2006, Numerical Optimization, section 17.3), from the root that `line`
    finds along the gradient; at the end the root is made exact by a line search through the point found, and where that
    leads nowhere it is the one that it began with. f need not be convex, so the root is a near one, not always the
    nearest.

    Args:
        low, high: bounds of the root point, numbers or arrays that broadcast against x; None for none. x itself must
            lie inside.
        starts: how many root points are searched for, all but the first from a random place.
        key: of those random places; needed with several starts.
        rounds: updates of the multiplier.
        steps: steps of the optimizer in each round.
        optimizer: of optax; None: clipped gradient descent with Nesterov momentum. Its unit of length is the distance
            from x to where it starts.

    Returns:
        A search for `decompose`.

    Raises:
        RootError: x lies outside the bounds, or there are several starts and no key.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import taylor
        >>> f = lambda x: x[0] + x[1] - 4
        >>> x = jnp.array([3.0, 3.0])
        >>> print(taylor.nearest()(f, x).round(3), taylor.nearest(2.5, 9.0)(f, x).round(3))
        [2. 2.] [2.5 2.5]
    """
    if starts < 1 or (starts > 1 and key is None):
        raise RootError(f"starts is {starts}: it must be at least 1, and with more than one a key is needed")
    import optax  # here, for it takes a third of the time that `import lrpjax` would take with it

    if optimizer is None:
        descent = optax.sgd(0.5 / (1 + PENALTY), momentum=0.9, nesterov=True)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0 + PENALTY), descent)

    def search(f: Callable, x: jax.Array) -> jax.Array:
        bounds = [
            jnp.asarray(-jnp.inf if low is None else low),
            jnp.asarray(jnp.inf if high is None else high),
        ]
        below, above = (jnp.broadcast_to(b.astype(x.dtype), x.shape) for b in bounds)
        outside = ((x < below) | (x > above)).any()
        if not isinstance(outside, jax.core.Tracer) and bool(outside):
            raise RootError("x lies outside the bounds between which its root point is searched")
        downhill = 2 * f(x) * _over_its_square(jax.grad(f)(x))
        guess = _first_root(f, lambda t: jnp.clip(x - t * downhill, below, above), 1.0, 32, x.dtype)
        unit = _length_or_one(guess - x)
        scale = unit * _length_or_one(jax.grad(f)(guess))
        rounding = jnp.sqrt(jnp.finfo(x.dtype).eps) * jnp.abs(f(x))
        missed = lambda point: jnp.maximum(jnp.abs(f(point)), rounding)
        inside = lambda u: optax.projections.projection_box(u, (below - x) / unit, (above - x) / unit)

        def lagrangian(u, multiplier):
            h = f(x + unit * u) / scale
            return (u * u).sum() / 2 + multiplier * h + PENALTY / 2 * h * h, h

        def step(_, carry):
            u, state, multiplier = carry
            gradient = jax.grad(lambda u: lagrangian(u, multiplier)[0])(u)
            update, state = optimizer.update(gradient, state, u)
            return inside(optax.apply_updates(u, update)), state, multiplier

        def round_(_, carry):
            u, multiplier = carry
            u, _, _ = lax.fori_loop(0, steps, step, (u, optimizer.init(u), multiplier))
            return u, multiplier + PENALTY * lagrangian(u, multiplier)[1]

        def one(noise):
            start = inside((guess - x) / unit + noise)
            u, _ = lax.fori_loop(0, rounds, round_, (start, jnp.zeros((), x.dtype)))
            path = lambda t: jnp.clip(x + t * unit * u, below, above)
            root = _first_root(f, path, 1.25, 32, x.dtype)
            return jnp.where(missed(root) <= missed(guess), root, guess)

        if starts == 1:
            return one(jnp.zeros_like(x))
        noise = jax.random.normal(key, (starts, *x.shape), x.dtype) / np.sqrt(x.size).astype(x.dtype)
        return lax.map(one, noise.at[0].set(0))

    return search


def _first_root(f: Callable, path: Callable, length: float, points: int, dtype: Any) -> jax.Array:
    """The last point of a path before f first changes its sign; where it does not, the point of those looked at with
    the least |f|."""
    times = jnp.linspace(0, length, points + 1, dtype=dtype)
    values = lax.map(lambda t: f(path(t)), times)
    sign = jnp.sign(values[0])
    crossed = sign * values[1:] <= 0
    first = crossed.argmax()

    def halve(_, ends):
        before, behind = ends
        middle = (before + behind) / 2
        still = sign * f(path(middle)) > 0
        return jnp.where(still, middle, before), jnp.where(still, behind, middle)

    before, _ = lax.fori_loop(0, BISECTIONS, halve, (times[first], times[first + 1]))
    return path(jnp.where(crossed.any(), before, times[jnp.abs(values).argmin()]))


def _over_its_square(g: jax.Array) -> jax.Array:
    """g / (g·g), and 0 for g = 0."""
    square = (g * g).sum()
    return jnp.where(
        square > 0, g / jnp.where(square > 0, square, jnp.ones((), g.dtype)), jnp.zeros((), g.dtype)
    )


def _length_or_one(v: jax.Array) -> jax.Array:
    """‖v‖, and 1 where that is 0 or no number."""
    length = jnp.linalg.norm(v.ravel())
    return jnp.where((length > 0) & jnp.isfinite(length), length, jnp.ones((), v.dtype))
