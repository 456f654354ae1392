"""Axioms: does the relevance add up, and does it keep still where the model does?"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lrpjax._evaluate import Target, apply, as_callable, fill_like, read, target_index


def completeness_gap(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    target: Target = "max",
    baseline: ArrayLike | None = None,
) -> jax.Array:
    """How much relevance is missing or too much: Σ_i R_i − (f(x) − f(baseline)).

    Without baseline it is the gap of conservation, Σ_i R_i = f(x), Bach et al. 2015, Eq. (2); with one that
    of completeness, Sundararajan et al., ICML 2017, Proposition 1. Quantus' `Completeness` says whether it
    is exactly 0.

    Does not show: whether relevance went to the right places: R_1 = f(x) and 0 elsewhere has no gap. A gap
    need not be a fault either: biases and stabilisers absorb relevance by design.

    Args:
        f, x, target: as in `flipping`.
        relevance: [B, ...], of any shape.
        baseline: broadcasts to x, or None.

    Returns:
        [B], in the unit of f; positive if there is more relevance than there is score to explain.

    Raises:
        ValueError: if the batch sizes differ.
        TargetError: if the target is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, 1.0]])
        >>> f = lambda x: x.sum(1, keepdims=True) + 1.0
        >>> print(metrics.completeness_gap(f, x, x), metrics.completeness_gap(f, x, x, baseline=0.0))
        [-1.] [0.]
    """
    f, x, relevance = as_callable(f), jnp.asarray(x), jnp.asarray(relevance)
    _check_batch(x, relevance)
    scores = apply(f, x)
    index = target_index(scores, target)
    explained = read(scores, index)
    if baseline is not None:
        reference = jnp.broadcast_to(fill_like(baseline, x, "baseline"), x.shape)
        explained = explained - read(apply(f, reference), index)
    return relevance.reshape(len(x), -1).sum(1) - explained


class Kept(NamedTuple):
    """What became of the score: ΣR / f(x), and Σ|R| / |ΣR|, each of shape [B].

    Example:
        >>> import jax.numpy as jnp
        >>> print(*Kept(share=jnp.array([0.5]), size=jnp.array([2.0])))
        [0.5] [2.]
    """

    share: jax.Array
    size: jax.Array


def kept_share(f: Callable, x: ArrayLike, relevance: ArrayLike, *, target: Target = "max") -> Kept:
    """How much of the score arrives at the input, and in how much relevance of both signs it is hidden.

    share = ΣR / f(x), 1 if conserved (Bach et al. 2015, Eq. (2)): what is missing went to biases and stabilisers, or
    to zeros. size = Σ|R| / |ΣR|, at least 1: how often over relevance of one sign is cancelled by that of the other;
    where it is large, the sum is a small difference of large numbers, and single elements exceed the score. Ours: no
    paper states these two numbers; `completeness_gap` is the share as a difference. `lrpjax.audit` says where
    relevance went.

    Does not show: whether relevance lies at the right places (see `completeness_gap`), nor whether it tells classes
    apart (see `class_contrast`): rules that keep all of it may give all classes the same map.

    Args:
        f, x, target: as in `flipping`.
        relevance: [B, ...], of any shape; of what f's score was explained, not of a probability or a difference.

    Returns:
        `Kept(share [B], size [B])`; not finite where f(x), or ΣR, is 0.

    Raises:
        ValueError: if the batch sizes differ.
        TargetError: if the target is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, -1.0]])
        >>> f = lambda x: x.sum(1, keepdims=True) + 2.0
        >>> print(*metrics.kept_share(f, x, x))
        [0.5] [2.]
    """
    x, relevance = jnp.asarray(x), jnp.asarray(relevance)
    _check_batch(x, relevance)
    scores = apply(as_callable(f), x)
    return kept_of(relevance, read(scores, target_index(scores, target)))


def kept_of(relevance: jax.Array, score: jax.Array) -> Kept:
    """As `kept_share`, of the score [B] itself."""
    flat = relevance.reshape(len(relevance), -1)
    total = flat.sum(1)
    return Kept(total / score, jnp.abs(flat).sum(1) / jnp.abs(total))


def input_invariance(
    explain: Callable, explain_shifted: Callable, x: ArrayLike, shift: ArrayLike
) -> jax.Array:
    """Input invariance: how far the explanation moves if data and model are shifted against each other.

    max_i |R_i(x; f) − R_i(x + m; f_m)| / max_i |R_i(x; f)|, where f_m(x + m) = f(x): the same network but for the
    bias of its first layer, b − Wᵀ m. Kindermans et al. 2017 (arXiv 1711.00867), section 2. Quantus'
    `InputInvariance` says whether the difference is within 1e-4; it does not shift the first element, and its new
    bias is that of a first layer without padding.

    Does not show: that a method that moves is wrong. Rules that multiply by the input (ε, z⁺, gradient × input) take
    0 as the point where nothing is said, and have to move when the data does; z^B moves with its bounds, and a
    method with a reference moves unless that is shifted too.

    Args:
        explain: x -> relevance [B, ...] of f.
        explain_shifted: x -> relevance [B, ...] of f_m.
        x: [B, ...].
        shift: m, broadcasts to x.

    Returns:
        [B], 0 if invariant; NaN where R(x) is 0.

    Raises:
        ValueError: if the shift does not broadcast to x, or the relevances differ in shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, m = jnp.array([[1.0, 2.0]]), jnp.array([1.0, 0.0])
        >>> f, shifted = (lambda x: jnp.tanh(x).sum()), (lambda x: jnp.tanh(x - m).sum())
        >>> print(metrics.input_invariance(jax.grad(f), jax.grad(shifted), x, m))
        [0.]
        >>> print(metrics.input_invariance(lambda x: x * jax.grad(f)(x), lambda x: x * jax.grad(shifted)(x), x, m))
        [1.]
    """
    x = jnp.asarray(x)
    before = apply(as_callable(explain), x)
    after = apply(as_callable(explain_shifted), x + fill_like(shift, x, "shift"))
    if before.shape != after.shape:
        raise ValueError(f"the explanations differ in shape: {before.shape} and {after.shape}")
    largest = lambda v: jnp.abs(v).reshape(len(x), -1).max(1)
    return largest(after - before) / largest(before)


def _check_batch(x, relevance):
    if relevance.shape[:1] != x.shape[:1]:
        raise ValueError(f"x has batch size {x.shape[:1]}, relevance {relevance.shape[:1]}")
