"""Complexity: how simple is the map?"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.typing import ArrayLike


@jax.jit
def sparseness(relevance: ArrayLike) -> jax.Array:
    """Gini index of |R|: 0 if all elements are equally relevant, (N − 1)/N if a single one is.

    G = Σ_k (2k − N − 1) |R|_(k) / (N Σ_k |R|_(k)), |R|_(1) ≤ … ≤ |R|_(N). Hurley & Rickard, IEEE Trans.
    Inf. Theory 55(10), 2009; used for explanations by Chalasani et al., ICML 2020. Quantus' `Sparseness`
    adds 1e-7 to every |R|.

    Does not show: whether the few relevant elements are those that matter; a single random pixel is as
    sparse as can be.

    Args:
        relevance: [B, ...].

    Returns:
        [B]; NaN where all relevance is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.sparseness(jnp.array([[1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 2.0, 0.0]])))
        [0.   0.75]
    """
    a = jnp.sort(jnp.abs(_flat(relevance)))
    n = a.shape[1]
    weights = (2 * jnp.arange(1, n + 1) - n - 1).astype(a.dtype)
    return (a @ weights) / (n * a.sum(1))


@jax.jit
def complexity(relevance: ArrayLike) -> jax.Array:
    """Entropy of the shares of relevance, −Σ_i p_i log p_i with p_i = |R_i| / Σ_j |R_j|, in nats.

    Bhatt et al., IJCAI 2020 (arXiv 2005.00631), definition of complexity: 0 for a single relevant element,
    log N if all are equally relevant. Quantus' `Complexity` adds 1e-12 inside of the logarithm.

    Does not show: whether simple means right; see `sparseness`.

    Args:
        relevance: [B, ...].

    Returns:
        [B], nats; NaN where all relevance is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.complexity(jnp.array([[1.0, 1.0, -1.0, 1.0], [0.0, 0.0, 2.0, 0.0]])).round(4))
        [1.3863 0.    ]
    """
    a = jnp.abs(_flat(relevance))
    return entr(a / a.sum(1, keepdims=True)).sum(1)


@jax.jit
def effective_complexity(relevance: ArrayLike, *, threshold: ArrayLike = 1e-5) -> jax.Array:
    """Number of elements with |R| above a threshold.

    Σ_i 1[|R_i| > t], as Quantus' `EffectiveComplexity` reads Nguyen & Martínez 2020 (arXiv 2007.07584). There it is the
    smallest number of most relevant features that, when they are known and the others are not, keep the expected loss
    below a tolerance: that needs the model, and can be read from a curve of `flipping` with `order="lerf"`.

    Does not show: whether these elements matter. The threshold is in the unit of R: divide by Σ|R| or max |R| before
    explanations are compared.

    Args:
        relevance: [B, ...].
        threshold: t, in the unit of R.

    Returns:
        [B], whole numbers, in the dtype of relevance.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.effective_complexity(jnp.array([[1.0, -0.5, 0.0, 0.01]]), threshold=0.1))
        [2.]
    """
    a = jnp.abs(_flat(relevance))
    return jnp.sum(a > jnp.asarray(threshold, a.dtype), 1).astype(a.dtype)


@functools.partial(jax.jit, static_argnames="bins")
def histogram_entropy(relevance: ArrayLike, *, bins: int = 100) -> jax.Array:
    """Entropy of the histogram of R over equal bins from its smallest to its largest value, in nats.

    −Σ_b h_b log h_b, h_b the share of elements in bin b. Hedström et al. 2023 (arXiv 2401.06465), the complexity in
    `efficient_mprt`. Quantus calls it `discrete_entropy`.

    Does not show: where the values stand. A single outlier puts all others into one bin.

    Args:
        relevance: [B, ...].
        bins: their number, at least 2.

    Returns:
        [B], nats; at most log bins, and 0 for a constant map.

    Raises:
        ValueError: if bins is less than 2.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.histogram_entropy(jnp.array([[0.0, 1.0, 2.0, 3.0]]), bins=2).round(4))
        [0.6931]
    """
    if bins < 2:
        raise ValueError(f"a histogram needs at least 2 bins, not {bins}")
    flat = _flat(relevance)
    low = flat.min(1, keepdims=True)
    span = flat.max(1, keepdims=True) - low
    place = (flat - low) / jnp.where(span == 0, jnp.ones_like(span), span) * bins
    number = jnp.minimum(place.astype(jnp.int32), bins - 1)
    counts = jax.vmap(lambda row: jnp.bincount(row, length=bins))(number)
    return entr(counts.astype(flat.dtype) / flat.shape[1]).sum(1)


def _flat(relevance):
    relevance = jnp.asarray(relevance)
    return relevance.reshape(len(relevance), -1)
