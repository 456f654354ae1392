"""Localisation: does the relevance lie where an object is known to be?"""

import functools

import jax
import jax.numpy as jnp
from jax.scipy.stats import rankdata
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
        relevance: [B, ...]; pool the channels before.
        mask: of the same shape.

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
    return _hits_of_top(relevance, mask, mask.sum(1))


@jax.jit
def pointing_game(relevance: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Whether the most relevant element lies inside a mask: 1 for a hit, 0 for a miss.

    Zhang et al., IJCV 126, 2018; the mean over samples is their accuracy. For their tolerance of some
    pixels dilate the mask. If several elements share the maximum one inside suffices. Quantus'
    `PointingGame` agrees, but counts an empty mask as a hit (it stores NaN in a boolean array).

    Does not show: anything but one pixel: the rest of the map may be arbitrary, and large objects are hit
    by chance.

    Args:
        relevance: [B, ...]; pool the channels before.
        mask: of the same shape.

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


@functools.partial(jax.jit, static_argnames="k")
def top_k_intersection(relevance: ArrayLike, mask: ArrayLike, *, k: int) -> jax.Array:
    """Share of the k most relevant elements that lie inside a mask.

    Theiner et al., WACV 2022 (arXiv 2104.14995), top-k intersection; their concept influence is this divided by the
    share of elements in the mask. Agrees with Quantus' `TopKIntersection`. With k of the size of the mask it is
    `rank_accuracy`. Equal relevances go in the order of their position.

    Does not show: see `rank_accuracy`. If k exceeds the size of the mask it cannot reach 1.

    Args:
        relevance: [B, ...]; pool the channels before.
        mask: of the same shape.
        k: from 1 to the number of elements.

    Returns:
        [B], in [0, 1]; NaN where the mask is empty.

    Raises:
        ValueError: if the shapes differ, or k is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> mask = jnp.array([[True, True, False]])
        >>> print(metrics.top_k_intersection(jnp.array([[3.0, 1.0, 2.0]]), mask, k=1))
        [1.]
    """
    relevance, mask = _masked(relevance, mask)
    if not 1 <= k <= mask.shape[1]:
        raise ValueError(f"k must lie between 1 and {mask.shape[1]}, the number of elements, not {k}")
    hits = _hits_of_top(relevance, mask, jnp.full(len(mask), k))
    return jnp.where(mask.any(1), hits, jnp.nan)


@jax.jit
def roc_auc(relevance: ArrayLike, mask: ArrayLike) -> jax.Array:
    """Area under the ROC curve of telling the mask's elements from the others by their relevance.

    P(R_i > R_j) + ½ P(R_i = R_j), i inside and j outside (the Mann–Whitney statistic). Fawcett, Pattern Recognition
    Letters 27(8), 2006. Agrees with Quantus' `AUC` and scikit-learn's `roc_auc_score`.

    Does not show: how much relevance lies inside; a map with a thousand barely positive elements inside and one outlier
    outside is nearly perfect. With a background of zeros it hardly moves. And see `mass_accuracy`.

    Args:
        relevance: [B, ...]; pool the channels before.
        mask: of the same shape.

    Returns:
        [B], in [0, 1], ½ for a constant map; NaN where the mask is empty or full.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.roc_auc(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([[True, True, False]])))
        [0.5]
    """
    relevance, mask = _masked(relevance, mask)
    ranks = rankdata(relevance, axis=1).astype(relevance.dtype)
    inside = mask.sum(1).astype(relevance.dtype)
    above = jnp.sum(jnp.where(mask, ranks, jnp.zeros_like(ranks)), 1) - inside * (inside + 1) / 2
    return above / (inside * (mask.shape[1] - inside))


@functools.partial(jax.jit, static_argnames="weighted")
def attribution_localisation(relevance: ArrayLike, mask: ArrayLike, *, weighted: bool = False) -> jax.Array:
    """Share of the positive relevance that lies inside a mask, μ = Σ_{i∈mask} R_i⁺ / Σ_i R_i⁺.

    Kohlbrenner et al., IJCNN 2020 (arXiv 1910.09840), inside-total relevance ratio μ, and weighted by the size of the
    mask, μ_w = μ · N / |mask|: `mass_accuracy` of the positive part. Quantus' `AttributionLocalisation` agrees for
    `positive_attributions=True, abs=False`; weighted, it multiplies by |mask| where the paper divides.

    Does not show: negative relevance at all; and see `mass_accuracy`.

    Args:
        relevance: [B, ...]; pool the channels before.
        mask: of the same shape.
        weighted: whether large masks count less. 1 is then what chance gives.

    Returns:
        [B], in [0, 1] if not weighted; NaN where the mask is empty or no relevance is positive.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> r, mask = jnp.array([[3.0, 1.0, -5.0, 0.0]]), jnp.array([[True, False, False, False]])
        >>> print(metrics.attribution_localisation(r, mask), metrics.attribution_localisation(r, mask, weighted=True))
        [0.75] [3.]
    """
    relevance, mask = _masked(relevance, mask)
    share = mass_accuracy(jnp.maximum(relevance, jnp.zeros_like(relevance)), mask)
    return share / mask.mean(1, dtype=relevance.dtype) if weighted else share


def _hits_of_top(relevance, mask, size):
    """Of the `size` [B] most relevant elements, the share inside."""
    inside = jnp.take_along_axis(mask, jnp.argsort(-relevance, stable=True), axis=1)
    top = jnp.arange(mask.shape[1]) < size[:, None]
    return (inside & top).sum(1).astype(relevance.dtype) / size.astype(relevance.dtype)


def _masked(relevance, mask):
    relevance, mask = jnp.asarray(relevance), jnp.asarray(mask)
    if relevance.shape != mask.shape:
        raise ValueError(
            f"relevance {relevance.shape} and mask {mask.shape} differ in shape; pool the channels first"
        )
    return relevance.reshape(len(mask), -1), mask.astype(bool).reshape(len(mask), -1)
