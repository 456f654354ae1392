"""Faithfulness: does the model's score depend on what the explanation calls relevant?"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from lrpjax._evaluate import (
    Target,
    apply,
    as_callable,
    check_broadcast,
    check_positive,
    check_range,
    fill_like,
    map_batched,
    read,
    target_index,
)
from lrpjax.metrics.agreement import pearson
from lrpjax.metrics.perturb import patches


class Curve(NamedTuple):
    """A perturbation curve: `scores[b, s]` is f of sample b with `counts[s]` of its regions flipped.

    Example:
        >>> import jax.numpy as jnp
        >>> Curve(counts=jnp.array([0, 1]), scores=jnp.array([[3.0, 1.0]])).scores.shape
        (1, 2)
    """

    counts: jax.Array
    scores: jax.Array


def flipping(
    f: Callable,
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    target: Target = "max",
    order: str = "morf",
    regions: int | ArrayLike | None = None,
    fill: ArrayLike = 0.0,
    steps: int | Sequence[int] | None = None,
    key: jax.Array | None = None,
    batch: int = 8,
) -> Curve:
    """Pixel and region flipping: the class score as regions are replaced in the order of their relevance.

    x⁽⁰⁾ = x, and x⁽ᵏ⁾ is x with its k first regions replaced by `fill`; a region's relevance is the sum
    over its elements. Bach et al., PLOS ONE 10(7), 2015 (pixel flipping); Samek et al., IEEE TNNLS 28(11),
    2017, section III (region perturbation: most relevant first).

    Does not show: whether a score falls because evidence is gone or because the flipped image is unlike any
    that the model was trained on; curves of different fill-ins are different questions. Does not show that
    the relevance of any single element is right (only the order counts), nor anything about features that
    act only jointly. On the digits CNN of this package's tests LRP beats sensitivity where flipping erases
    ink and loses to it, all but z^B, where uniform noise adds ink.

    Args:
        f: x -> scores [B, classes], or [B] with `target=None`. Logits and probabilities give different
            curves.
        x: input, [B, ...].
        relevance: of the shape of x, or with axes of size 1 that broadcast to it (one value per pixel).
            Unused, and still needed, for `order="random"`.
        target: class whose score is read: "max" (the largest for the unperturbed x), an integer, or
            integers [B].
        order: "morf" (most relevant first), "lerf" (least relevant first) or "random".
        regions: None, patch size, or labels that broadcast to `x.shape[1:]` or to `x.shape` (see the module).
        fill: broadcasts to x.
        steps: None evaluates after every single region; an integer S at S + 1 evenly spaced numbers of
            regions from 0 to all; a sequence at exactly these numbers of flipped regions.
        key: random key; orders "random", and decides between regions of equal relevance, which otherwise
            go in the order of their labels (top left first).
        batch: number of perturbed copies of x that are evaluated at once.

    Returns:
        `Curve(counts [S], scores [B, S])`.

    Raises:
        ValueError: on shapes that do not fit, an unknown order, `order="random"` without key, steps out of
            range.
        TargetError: if the target is no class.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> x = jnp.array([[3.0, 1.0, 2.0]])
        >>> f = lambda x: x.sum(1, keepdims=True)
        >>> counts, scores = metrics.flipping(f, x, relevance=x)
        >>> print(counts, scores)
        [0 1 2 3] [[6. 3. 1. 0.]]
    """
    f, x, relevance, labels, regions_n = _prepare(f, x, relevance, regions)
    if order not in ("morf", "lerf", "random"):
        raise ValueError(f"order must be 'morf', 'lerf' or 'random', not {order!r}")
    if order == "random" and key is None:
        raise ValueError("order='random' needs a key")
    index, fill = target_index(apply(f, x), target), fill_like(fill, x)
    counts = _counts(steps, regions_n)
    scores = _flipping(f, x, relevance, index, labels, fill, counts, key, order, regions_n, batch)
    return Curve(counts, scores)


@functools.partial(jax.jit, static_argnames=("order", "regions_n", "batch"))
def _flipping(f, x, relevance, index, labels, fill, counts, key, order, regions_n, batch):
    sums = _region_sums(relevance, labels, regions_n)
    value = {"morf": -sums, "lerf": sums, "random": jnp.zeros_like(sums)}[order]
    tie = jnp.zeros_like(sums) if key is None else jax.random.uniform(key, sums.shape, sums.dtype)
    rows, positions = jnp.arange(len(x))[:, None], jnp.arange(regions_n, dtype=counts.dtype)
    rank = jnp.zeros(sums.shape, counts.dtype).at[rows, jnp.lexsort((tie, value))].set(positions)
    rank = jnp.take_along_axis(rank, labels, axis=1).reshape(x.shape)
    score = lambda count: read(f(jnp.where(rank < count, fill, x)), index)
    return map_batched(score, counts, batch).T


def aopc(scores: ArrayLike) -> jax.Array:
    """Area over a perturbation curve, AOPC = 1/(L+1) Σ_{k=0..L} (f(x⁽⁰⁾) − f(x⁽ᵏ⁾)), per sample.

    Samek et al., IEEE TNNLS 28(11), 2017, section III; the paper averages it over samples. Large is good
    for MoRF.

    Does not show: more than the curve (see `flipping`). Its size depends on the model's output scale, on the
    fill-in and on how many regions are flipped; compare only values obtained alike.

    Args:
        scores: [..., L + 1], the first being the unperturbed score; the points should be evenly spaced.

    Returns:
        [...], in the unit of f.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.aopc(jnp.array([[6.0, 3.0, 1.0, 0.0]])))
        [3.5]
    """
    scores = jnp.asarray(scores)
    return jnp.mean(scores[..., :1] - scores, -1)


def abpc(morf: ArrayLike, lerf: ArrayLike) -> jax.Array:
    """Area between perturbation curves, ABPC = 1/(L+1) Σ_{k=0..L} (f(x⁽ᵏ⁾ LeRF) − f(x⁽ᵏ⁾ MoRF)), per sample.

    Samek et al., IEEE TNNLS 28(11), 2017, appendix. Large is good; the expectation for a random order is 0.
    That the fill-in pushes the score down shows in both curves and cancels in part.

    Does not show: more than the two curves (see `flipping`); the scale is that of f.

    Args:
        morf: scores [..., L + 1] of order "morf".
        lerf: scores [..., L + 1] of order "lerf", at the same steps with the same fill-in.

    Returns:
        [...], in the unit of f.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import metrics
        >>> print(metrics.abpc(jnp.array([6.0, 3.0, 1.0, 0.0]), jnp.array([6.0, 5.0, 3.0, 0.0])))
        1.0
    """
    morf, lerf = jnp.asarray(morf), jnp.asarray(lerf)
    if morf.shape != lerf.shape:
        raise ValueError(f"the curves differ in shape: morf {morf.shape}, lerf {lerf.shape}")
    return jnp.mean(lerf - morf, -1)


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
    fill: ArrayLike = 0.0,
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
    f, x, relevance, labels, regions_n = _prepare(f, x, relevance, regions)
    if not 1 <= n < regions_n:
        raise ValueError(f"n must lie between 1 and {regions_n - 1} (one less than the regions), not {n}")
    if subsets < 2:
        raise ValueError(f"a correlation needs at least 2 subsets, not {subsets}")
    index, fill = target_index(apply(f, x), target), fill_like(fill, x)
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
    fill: ArrayLike = 0.0,
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
    f, x, relevance, labels, regions_n = _prepare(f, x, relevance, regions)
    subsets = subsets if isinstance(subsets, Tracer) else np.asarray(subsets)
    if subsets.ndim != 3 or subsets.shape[0] < 2 or subsets.shape[1] not in (1, x.shape[0]):
        raise ValueError(f"subsets must be [M ≥ 2, {x.shape[0]} or 1, n], not {subsets.shape}")
    check_range("region numbers in subsets", subsets, regions_n)
    subsets = jnp.broadcast_to(subsets, (subsets.shape[0], x.shape[0], subsets.shape[2]))
    index, fill = target_index(apply(f, x), target), fill_like(fill, x)
    return _correlation(f, x, relevance, index, labels, fill, subsets, regions_n, None, batch)


@functools.partial(jax.jit, static_argnames=("regions_n", "n", "batch"))
def _correlation(f, x, relevance, index, labels, fill, seeds, regions_n, n, batch):
    """`seeds` are the subsets [M, B, n], or, with n, keys to draw them."""
    sums = _region_sums(relevance, labels, regions_n)
    rows = jnp.arange(len(x))[:, None]

    def one(seed):
        subset = seed if n is None else jnp.argsort(jax.random.uniform(seed, sums.shape))[:, :n]
        removed = jnp.zeros(sums.shape, bool).at[rows, subset].set(True)
        inside = jnp.take_along_axis(removed, labels, axis=1).reshape(x.shape)
        score = read(f(jnp.where(inside, fill, x)), index)
        return jnp.sum(jnp.where(removed, sums, jnp.zeros_like(sums)), 1), score

    removed, scores = map_batched(one, seeds, batch)
    return -pearson(removed.T, scores.T)  # of f(x) − score: the constant does not change a correlation


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
        f, x, target: as in `flipping`. relevance: [B, ...], of any shape.
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
    if relevance.shape[:1] != x.shape[:1]:
        raise ValueError(f"x has batch size {x.shape[:1]}, relevance {relevance.shape[:1]}")
    scores = apply(f, x)
    index = target_index(scores, target)
    explained = read(scores, index)
    if baseline is not None:
        reference = jnp.broadcast_to(fill_like(baseline, x, "baseline"), x.shape)
        explained = explained - read(apply(f, reference), index)
    return relevance.reshape(len(x), -1).sum(1) - explained


def _prepare(f, x, relevance, regions):
    """f as a pytree, x and relevance as arrays of one shape, labels [B, elements], number of regions."""
    x, relevance = jnp.asarray(x), jnp.asarray(relevance)
    if x.ndim < 2 or relevance.ndim != x.ndim:
        raise ValueError(
            f"x and relevance need a batch axis and the same rank, not {x.shape} and {relevance.shape}"
        )
    check_broadcast("relevance", relevance.shape, x.shape)
    if regions is None:
        labels = np.arange(x[0].size).reshape(x.shape[1:])
    else:
        labels = patches(x.shape, regions) if isinstance(regions, int) else np.asarray(regions)
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise ValueError(f"regions must be labels 0, 1, …, integers, not {labels.dtype} from {labels.min()}")
    check_broadcast("regions", labels.shape, x.shape if labels.ndim == x.ndim else x.shape[1:])
    count = int(labels.max()) + 1
    labels = np.broadcast_to(labels, x.shape).reshape(len(x), -1)
    return as_callable(f), x, jnp.broadcast_to(relevance, x.shape), jnp.asarray(labels, jnp.int32), count


def _region_sums(relevance, labels, count):
    flat = relevance.reshape(len(relevance), -1)
    return jax.vmap(lambda r, label: jax.ops.segment_sum(r, label, count))(flat, labels)


def _counts(steps, count):
    """Numbers of flipped regions at which the score is read."""
    if steps is None:
        steps = count
    if isinstance(steps, int):
        check_positive("steps", steps)
        return jnp.asarray(np.linspace(0, count, steps + 1).round(), jnp.int32)
    steps = np.asarray(steps)
    check_range("steps", steps, count + 1)
    return jnp.asarray(steps, jnp.int32)
