"""Numbers of the relevance map alone: where it lies (localisation) and how simple it is (complexity)."""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jax.typing import ArrayLike


@jax.jit
def mass_accuracy(relevance: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Share of the relevance that lies inside a mask, Σ_{i∈mask} R_i / Σ_i R_i.

    Relevance mass accuracy of Arras et al., Information Fusion 81, 2022 (CLEVR-XAI), where R ≥ 0 is pooled
    over channels. Agrees with Quantus' `RelevanceMassAccuracy`.

    Does not show: whether the model should have used the masked object; evidence outside (context, a
    watermark) that it truly uses counts as a miss. With relevance of both signs it may leave [0, 1]: decide
    before whether to take the positive part or the absolute value.

    Args:
        relevance: [B, ...]; pool the channels before, for example with `.sum(-1)`.
        mask: of the same shape, true (non-zero) on the object.

    Returns:
        [B]; NaN where the mask is empty or all relevance sums to 0.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.mass_accuracy(jnp.array([[3.0, 1.0]]), jnp.array([[True, False]])))
        [0.75]
    """
    relevance, mask = _masked(relevance, mask)
    inside = jnp.sum(jnp.where(mask, relevance, jnp.zeros_like(relevance)), 1)
    return jnp.where(mask.any(1), inside / relevance.sum(1), jnp.nan)


@jax.jit
def rank_accuracy(relevance: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Share of the K most relevant elements that lie inside a mask of K elements.

    Relevance rank accuracy of Arras et al., Information Fusion 81, 2022 (CLEVR-XAI). Agrees with Quantus'
    `RelevanceRankAccuracy`. Equal relevances go in the order of their position.

    Does not show: how strongly relevance is concentrated (only ranks count), nor whether the model should
    have used the masked object (see `mass_accuracy`).

    Args:
        relevance: [B, ...]; pool the channels before. mask: of the same shape.

    Returns:
        [B], in [0, 1]; NaN where the mask is empty.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.rank_accuracy(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([[True, True, False]])))
        [0.5]
    """
    relevance, mask = _masked(relevance, mask)
    inside = jnp.take_along_axis(mask, jnp.argsort(-relevance, stable=True), axis=1)
    top = jnp.arange(mask.shape[1]) < mask.sum(1, keepdims=True)
    hits, size = ((inside & top).sum(1), mask.sum(1))
    return hits.astype(relevance.dtype) / size.astype(relevance.dtype)


@jax.jit
def pointing_game(relevance: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Whether the most relevant element lies inside a mask: 1 for a hit, 0 for a miss.

    Zhang et al., IJCV 126, 2018; the mean over samples is their accuracy. For their tolerance of some
    pixels dilate the mask. If several elements share the maximum one inside suffices. Quantus'
    `PointingGame` agrees, but counts an empty mask as a hit (it stores NaN in a boolean array).

    Does not show: anything but one pixel: the rest of the map may be arbitrary, and large objects are hit
    by chance.

    Args:
        relevance: [B, ...]; pool the channels before. mask: of the same shape.

    Returns:
        [B], 0 or 1; NaN where the mask is empty.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.pointing_game(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([[True, True, False]])))
        [1.]
    """
    relevance, mask = _masked(relevance, mask)
    hit = jnp.any(mask & (relevance == relevance.max(1, keepdims=True)), 1)
    return jnp.where(mask.any(1), hit.astype(relevance.dtype), jnp.nan)


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


def _flat(relevance):
    relevance = jnp.asarray(relevance)
    return relevance.reshape(len(relevance), -1)


def _masked(relevance, mask):
    relevance, mask = jnp.asarray(relevance), jnp.asarray(mask)
    if relevance.shape != mask.shape:
        raise ValueError(
            f"relevance {relevance.shape} and mask {mask.shape} differ in shape; pool the channels first"
        )
    return _flat(relevance), _flat(mask.astype(bool))
