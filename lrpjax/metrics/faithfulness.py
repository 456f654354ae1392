"""Faithfulness: does the model's score depend on what the explanation calls relevant?"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lrpjax._evaluate import (
    Target,
    apply,
    check_broadcast,
    check_range,
    map_batched,
    read,
    target_index,
)
from lrpjax.metrics._noise import perturbations
from lrpjax.metrics._regions import as_fill, of_elements, prepare, region_sums, replace
from lrpjax.metrics.agreement import pearson, spearman


def sensitivity_n(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    n: int,
    key: jax.Array,
    subsets: int = 100,
    target: Target = "max",
    regions: int | ArrayLike | None = None,
    fill: ArrayLike | Callable = 0.0,
    batch: int = 8,
) -> jax.Array:
    """Correlation between the relevance of random sets of n regions and the score lost when they are removed.

    corr over random S with |S| = n of Σ_{i∈S} R_i and f(x) − f(x with x_S = fill). Ancona et al., ICLR 2018
    (arXiv 1711.06104), definition of sensitivity-n: an explanation has the property exactly if the two are
    equal for all S; the paper plots this correlation against n. For one n it is the faithfulness
    correlation of Bhatt et al., IJCAI 2020 (see `faithfulness_correlation`).

    Quantus' `SensitivityN` is another quantity: it removes features cumulatively in the order of relevance
    and correlates over *samples* at each step.

    Does not show: whether the relevance has the right scale (correlation ignores it); for n near 1 or near
    all regions, more than how the model reacts to inputs far from the data.

    Args:
        f, x, relevance, target, regions, fill, batch: as in `flipping`.
        n: number of regions removed together, 1 ≤ n < number of regions.
        key: random key for the sets; every sample gets its own.
        subsets: number of random sets, at least 2.

    Returns:
        Pearson correlation per sample, [B], in [−1, 1]; NaN if the score or the relevance never varies.

    Raises:
        ValueError: on shapes that do not fit, n or subsets out of range.
        TargetError: if the target is no class.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, 1.0, 2.0, -1.0]])
        >>> f = lambda x: x.sum(1, keepdims=True)
        >>> print(metrics.sensitivity_n(f, x, 5 * x, n=2, key=jax.random.key(0)).round(4))
        [1.]
    """
    f, x, relevance, labels, regions_n = prepare(f, x, relevance, regions)
    if not 1 <= n < regions_n:
        raise ValueError(f"n must lie between 1 and {regions_n - 1} (one less than the regions), not {n}")
    if subsets < 2:
        raise ValueError(f"a correlation needs at least 2 subsets, not {subsets}")
    index, fill = target_index(apply(f, x), target), as_fill(fill, x)
    keys = jax.random.split(key, subsets)
    return _correlation(f, x, relevance, index, labels, fill, keys, regions_n, n, batch)


def faithfulness_correlation(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    subsets: ArrayLike,
    *,
    target: Target = "max",
    regions: int | ArrayLike | None = None,
    fill: ArrayLike | Callable = 0.0,
    batch: int = 8,
) -> jax.Array:
    """Correlation of relevance and score lost, as `sensitivity_n`, over sets of regions that are given.

    μ_F = corr_{S} (Σ_{i∈S} R_i, f(x) − f(x with x_S = fill)). Bhatt et al., IJCAI 2020 (arXiv 2005.00631),
    definition of faithfulness. Quantus' `FaithfulnessCorrelation` agrees for the same sets.

    Does not show: see `sensitivity_n`.

    Args:
        f, x, relevance, target, regions, fill, batch: as in `flipping`.
        subsets: region numbers, [M, B, n] or [M, 1, n] (the same for every sample), M ≥ 2 sets of n regions.

    Returns:
        Pearson correlation per sample, [B].

    Raises:
        ValueError: on shapes that do not fit, fewer than 2 sets, region numbers out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, 1.0, 2.0]])
        >>> f = lambda x: x.sum(1, keepdims=True)
        >>> print(metrics.faithfulness_correlation(f, x, x, [[[0, 1]], [[1, 2]]]).round(4))
        [1.]
    """
    f, x, relevance, labels, regions_n = prepare(f, x, relevance, regions)
    subsets = subsets if isinstance(subsets, Tracer) else np.asarray(subsets)
    if subsets.ndim != 3 or subsets.shape[0] < 2 or subsets.shape[1] not in (1, x.shape[0]):
        raise ValueError(f"subsets must be [M ≥ 2, {x.shape[0]} or 1, n], not {subsets.shape}")
    check_range("region numbers in subsets", subsets, regions_n)
    subsets = jnp.broadcast_to(subsets, (subsets.shape[0], x.shape[0], subsets.shape[2]))
    index, fill = target_index(apply(f, x), target), as_fill(fill, x)
    return _correlation(f, x, relevance, index, labels, fill, subsets, regions_n, None, batch)


@functools.partial(jax.jit, static_argnames=("regions_n", "n", "batch"))
def _correlation(f, x, relevance, index, labels, fill, seeds, regions_n, n, batch):
    """`seeds` are the subsets [M, B, n], or, with n, keys to draw them."""
    sums = region_sums(relevance, labels, regions_n)
    rows = jnp.arange(len(x))[:, None]

    def one(seed):
        subset = seed if n is None else jnp.argsort(jax.random.uniform(seed, sums.shape))[:, :n]
        removed = jnp.zeros(sums.shape, bool).at[rows, subset].set(True)
        score = read(f(replace(x, of_elements(removed, labels, x.shape), fill)), index)
        return jnp.sum(jnp.where(removed, sums, jnp.zeros_like(sums)), 1), score

    removed, scores = map_batched(one, seeds, batch)
    return -pearson(removed.T, scores.T)  # of f(x) − score: the constant does not change a correlation


def infidelity(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    noise: float | ArrayLike,
    samples: int | None = None,
    key: jax.Array | None = None,
    target: Target = "max",
    shares: bool = False,
    batch: int = 8,
) -> jax.Array:
    """Infidelity: mean squared error of the score's change as the explanation predicts it.

    E_I (Iᵀ Φ − (f(x) − f(x − I)))², I a perturbation and Φ the explanation as a slope. Yeh et al., NeurIPS 2019
    (arXiv 1901.09392), definition 2.1. For what comes in shares of the score (LRP, gradient × input) Φ is
    R / x (`shares=True`, captum's `multiply_by_inputs`). The perturbation of the paper's "square removal" is
    I = x − x with the square filled in. Quantus' `Infidelity` agrees for the same I and `shares=False`; its own I
    pile up: every square is removed from an image that lacks all squares before.

    Does not show: whether the explanation is good for changes of another size or kind: for small normal noise
    the gradient is optimal, whatever it looks like. The authors' code scales Φ by its best factor before; a wrong scale
    dominates the number otherwise.

    Args:
        f, x, target: as in `flipping`; x is floating.
        relevance: of the shape of x, or broadcasts to it.
        noise: standard deviation of normal I, in the unit of x, or the I themselves, [K, *x.shape].
        samples: number K of perturbations, with a standard deviation.
        key: random key, with a standard deviation.
        shares: whether relevance holds shares of the score; elements that are 0 then predict no change.
        batch: number of perturbed copies of x that are evaluated at once.

    Returns:
        [B], in the squared unit of f.

    Raises:
        ValueError: on shapes that do not fit; a standard deviation that is not positive or without samples or key.
        TargetError: if the target is no class.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, f = jnp.array([[3.0, 1.0]]), lambda x: x.sum(1, keepdims=True)
        >>> noise = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
        >>> slope = jnp.array([[1.0, 2.0]])
        >>> print(metrics.infidelity(f, x, slope, noise=noise), metrics.infidelity(f, x, x, noise=noise, shares=True))
        [0.5] [0.]
    """
    f, x, relevance, _, _ = prepare(f, x, relevance, None)
    index = target_index(apply(f, x), target)
    seeds, scale = perturbations(x, noise, samples, key)
    if shares:
        relevance = jnp.where(x == 0, jnp.zeros_like(x), relevance / jnp.where(x == 0, jnp.ones_like(x), x))
    return _infidelity(f, x, relevance, index, seeds, scale, batch)


@functools.partial(jax.jit, static_argnames="batch")
def _infidelity(f, x, slope, index, seeds, scale, batch):
    scores = read(f(x), index)

    def one(seed):
        change = seed if scale is None else scale * jax.random.normal(seed, x.shape, x.dtype)
        predicted = jnp.sum((change * slope).reshape(len(x), -1), 1)
        return jnp.square(predicted - (scores - read(f(x - change), index)))

    return map_batched(one, seeds, batch).mean(0)


def monotonicity_correlation(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    fills: ArrayLike,
    target: Target = "max",
    regions: int | ArrayLike | None = None,
    batch: int = 8,
) -> jax.Array:
    """Monotonicity of Nguyen & Martínez: rank correlation of |R| of a region and what is lost if it is unknown.

    Spearman correlation over regions i of |Σ_{j∈i} R_j| and E_z (f(x) − f(x with x_i = z_i))². Nguyen & Martínez
    2020 (arXiv 2007.07584), with the squared loss. Quantus' `MonotonicityCorrelation` agrees for the
    same draws of z; it divides the loss by f(x)², which changes no ranks.

    Does not show: what regions do jointly: one that another can stand in for loses nothing alone. The ranks of
    many irrelevant regions, which are noise, count as much as those of the few relevant ones.

    Args:
        f, x, relevance, target, regions: as in `flipping`.
        fills: draws of z, [K, ...]; each broadcasts to x. `uniform_noise` for K keys for instance.
        batch: number of perturbed copies of x that are evaluated at once.

    Returns:
        [B], in [−1, 1]; NaN where all regions lose the same.

    Raises:
        ValueError: on shapes that do not fit.
        TargetError: if the target is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x, f = jnp.array([[3.0, 1.0, -2.0]]), lambda x: x.sum(1, keepdims=True)
        >>> print(metrics.monotonicity_correlation(f, x, x, fills=[0.0]).round(4))
        [1.]
    """
    f, x, relevance, labels, count = prepare(f, x, relevance, regions)
    index, fills = target_index(apply(f, x), target), jnp.asarray(fills, x.dtype)
    if fills.ndim == 0 or len(fills) == 0:
        raise ValueError(f"fills must be [K, ...], one or more draws, not of shape {fills.shape}")
    check_broadcast("each of the fills", fills.shape[1:], x.shape)
    return _monotonicity_correlation(f, x, relevance, index, labels, fills, count, batch)


@functools.partial(jax.jit, static_argnames=("count", "batch"))
def _monotonicity_correlation(f, x, relevance, index, labels, fills, count, batch):
    scores, draws = read(f(x), index), len(fills)

    def one(seed):
        region, draw = seed // draws, seed % draws
        inside = (labels == region).reshape(x.shape)
        return jnp.square(scores - read(f(jnp.where(inside, fills[draw], x)), index))

    lost = map_batched(one, jnp.arange(count * draws, dtype=labels.dtype), batch)
    lost = lost.reshape(count, draws, len(x)).mean(1)
    return spearman(jnp.abs(region_sums(relevance, labels, count)), lost.T)


@jax.jit
def consistency(explanations: ArrayLike, classes: ArrayLike) -> jax.Array:
    """Consistency: how many of the other samples with the very same explanation have the same predicted class.

    Pr_j(ŷ_j = ŷ_i | e_j = e_i), j ≠ i. Dasgupta et al., ICML 2022 (arXiv 2202.00734). Maps of real
    numbers are never the same: discretise them before, to signs, to the top regions, to ranks. Quantus'
    `Consistency` compares the signs of the *first* five elements unless told otherwise, and gives 0 where no
    other sample has the explanation.

    Does not show: whether the explanation says why: the predicted class itself, as an explanation, is perfectly
    consistent.

    Args:
        explanations: discretised, [B, ...].
        classes: that the model predicts, integers [B].

    Returns:
        [B], in [0, 1]; NaN where no other sample has the same explanation. In float32, or the type of floating
        explanations.

    Raises:
        ValueError: if the batch sizes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> signs = jnp.sign(jnp.array([[3.0, -1.0], [2.0, -5.0], [1.0, -1.0], [1.0, 1.0]]))
        >>> print(metrics.consistency(signs, jnp.array([0, 0, 1, 0])))
        [0.5 0.5 0.  nan]
    """
    flat = _flat_with_classes(explanations, classes)
    return _agreeing(lambda row: jnp.all(flat == row, 1), flat, classes)


@jax.jit
def sufficiency(relevance: ArrayLike, classes: ArrayLike, *, threshold: ArrayLike = 0.6) -> jax.Array:
    """Sufficiency: how many of the other samples that are explained alike have the same predicted class.

    Pr_j(ŷ_j = ŷ_i | d(R_i, R_j) ≤ threshold · max d), j ≠ i, d the Euclidean distance after every element was
    divided by its standard deviation over the samples. Dasgupta et al., ICML 2022 (arXiv 2202.00734),
    where an explanation is a set of samples; distances stand for it in Quantus' `Sufficiency`, which agrees, but
    gives 0 where no other sample is explained alike.

    Does not show: see `consistency`. The number depends on which samples are given, how many classes are among
    them, and on the threshold.

    Args:
        relevance: [B, ...].
        classes: that the model predicts, integers [B].
        threshold: in shares of the largest distance.

    Returns:
        [B], in [0, 1]; NaN where no other sample is explained alike.

    Raises:
        ValueError: if the batch sizes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> maps = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
        >>> print(metrics.sufficiency(maps, jnp.array([0, 0, 1, 0])))
        [0.5 0.5 0.  nan]
    """
    flat = _flat_with_classes(relevance, classes)
    deviation = jnp.std(flat, 0, ddof=1)
    scaled = flat / jnp.where(deviation == 0, jnp.inf, deviation)  # what never varies tells nothing apart
    distance = lambda row: jnp.linalg.norm(scaled - row, axis=1)
    largest = jax.lax.map(lambda row: distance(row).max(), scaled).max()
    return _agreeing(
        lambda row: distance(row) <= jnp.asarray(threshold, flat.dtype) * largest, scaled, classes
    )


def _flat_with_classes(explanations, classes):
    explanations = jnp.asarray(explanations)
    if jnp.shape(classes) != explanations.shape[:1]:
        raise ValueError(
            f"classes must be [{len(explanations)}], one for each sample, not {jnp.shape(classes)}"
        )
    return explanations.reshape(len(explanations), -1)


def _agreeing(alike, rows, classes):
    """Of the other samples that are alike, the share with the same class; one row at a time, to keep memory small."""
    classes, numbers = jnp.asarray(classes), jnp.arange(len(rows))
    dtype = jnp.result_type(rows) if jnp.issubdtype(rows.dtype, jnp.floating) else jnp.float32

    def one(sample):
        number, row, label = sample
        others = alike(row) & (numbers != number)
        return jnp.sum(others & (classes == label)).astype(dtype) / jnp.sum(others).astype(dtype)

    return jax.lax.map(one, (numbers, rows, classes))
