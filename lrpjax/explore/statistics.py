"""What concepts do in each class of a data set: their means, variances and shares, and the samples that show them."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._chosen import chosen
from lrpjax._evaluate import check_positive
from lrpjax.analysis import concepts
from lrpjax.analysis.concepts import Samples
from lrpjax.composites import Composite
from lrpjax.core.program import Program
from lrpjax.explore.findings import ExploreError

__all__ = ["ConceptStatistics", "concept_statistics"]


class ConceptStatistics(NamedTuple):
    """Of K classes and C channels, over the samples of a data set; NaN where a class has none.

    count: int [K], samples of each class. mean, variance: float [K, C], of s_c, a channel's sum over positions. share:
    float [K, C], the part of Σ_c |mean_c| that each channel has, with its sign. samples: `concepts.Samples` of K × C
    rows, row class · C + channel: those of the class with the highest s_c.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import explore
    >>> f = lambda x: lrpjax.tag(x, "in") @ jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> batches = [(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([0, 0]))]
    >>> found = explore.concept_statistics(f, None, batches, at="in", by="activation", classes=2)
    >>> print(found.count, found.mean[0], found.variance[0])
    [2 0] [2. 3.] [1. 1.]
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array
    share: jax.Array
    samples: Samples


def concept_statistics(
    f: Callable,
    composite: Composite | None,
    batches: Iterable[tuple[Any, Any]],
    *,
    at: str,
    classes: int,
    by: str = "relevance",
    k: int = 8,
    channel_axis: int = -1,
) -> ConceptStatistics:
    """Means, variances and shares of each channel of a named value in each class, and the samples that show it most.

    As RelStats and ActStats of zennit-crp (Achtibat et al. 2023): s_c = Σ_p v_{p,c}, v being the relevance of the
    sample's own class, or the value itself. One pass; means and variances are merged batch by batch (Chan et al. 1979),
    so that nothing grows with the data set.

    Args:
        f: a function of a batch [B, ...] that gives [B, K].
        composite: as for `lrpjax.relevance`.
        batches: pairs (batch, int [B]) with the class of each sample. The last may be smaller.
        at: the value's name, see `lrpjax.relevance`; its leading axis counts the samples.
        classes: how many classes there are, K.
        by: "relevance" or "activation".
        k: samples to keep for each class and channel.
        channel_axis: axis of the channels in the value's own shape.

    Returns:
        `ConceptStatistics`.

    Raises:
        ExploreError: `by` is neither, a class is not below K, there are no batches, or results are not finite.
        ConditionError: the value has no samples or no channels. Else as `lrpjax.relevance`.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import explore
    >>> f = lambda x: lrpjax.tag(x, "in") @ jnp.array([[1.0, 0.0], [3.0, 1.0]])
    >>> batches = [(jnp.array([[1.0, 1.0], [3.0, 1.0]]), jnp.array([0, 0])), (jnp.array([[1.0, 1.0]]), jnp.array([1]))]
    >>> found = explore.concept_statistics(f, None, batches, at="in", classes=2)
    >>> print(jnp.rint(found.mean[0]), found.count, found.samples.index[0, :2])
    [2. 3.] [2 1] [1 0]
    """
    if by not in ("relevance", "activation"):
        raise ExploreError(f"by must be 'relevance' or 'activation', not {by!r}")
    check_positive("k", k)
    check_positive("classes", classes)

    def scores(x: jax.Array, labels: jax.Array) -> jax.Array:
        if by == "relevance":
            return concepts.channel_relevance(f, composite, at=at, target=labels, channel_axis=channel_axis)(
                x
            )
        program = Program(f, chosen(composite, "concept_statistics"), (x,), {}, 0, at, False)
        if len(program.taps) != 1:
            raise ExploreError(f"`at` must name one value, but {at!r} names {len(program.taps)}")
        ((name, value),) = program.taps.items()
        if not 0 < channel_axis % max(len(value.shape), 1) < len(value.shape):
            raise ExploreError(
                f"{name!r} has shape {value.shape}: axis {channel_axis} cannot count its channels"
            )
        v = jnp.moveaxis(program.values()[name], channel_axis, -1)
        return v.reshape(len(x), -1, v.shape[-1]).sum(1)

    @jax.jit
    def batch_of(x: jax.Array, labels: jax.Array, rows: jax.Array, first: jax.Array) -> tuple:
        s = scores(x, labels)
        number = jnp.arange(len(x), dtype=jnp.int32)
        mine = (labels[None] == jnp.arange(classes, dtype=labels.dtype)[:, None]) & (number < rows)
        one = mine.astype(s.dtype)
        count = one.sum(1)
        mean = one @ s / jnp.maximum(count, 1)[:, None]
        away = jnp.where(mine[..., None], s - mean[:, None], jnp.zeros((), s.dtype))
        ranked = jnp.where(mine[:, None], s.T[None], -jnp.inf).reshape(-1, len(x))
        best, order = jax.lax.top_k(ranked, min(k, len(x)))
        index = jnp.where(best > -jnp.inf, first + order.astype(jnp.int32), -1)
        wide = [(0, 0), (0, k - best.shape[1])]
        best, index = jnp.pad(best, wide, constant_values=-jnp.inf), jnp.pad(index, wide, constant_values=-1)
        return count, mean, (away**2).sum(1), Samples(best, index, jnp.where(index < 0, -1, 0), rows)

    @jax.jit
    def merged(a: tuple, b: tuple) -> tuple:
        count = a[0] + b[0]
        part = (b[0] / jnp.maximum(count, 1))[:, None]
        apart = b[1] - a[1]
        squares = a[2] + b[2] + apart**2 * part * a[0][:, None]
        return count, a[1] + apart * part, squares, a[3].merge(b[3])

    found, size, seen = [], 0, 0
    for number, (x, labels) in enumerate(batches):
        x, labels = np.asarray(x), np.asarray(labels)
        if labels.shape != (len(x),) or not np.issubdtype(labels.dtype, np.integer):
            raise ExploreError(
                f"batch {number} has {len(x)} samples, but its classes are {labels.dtype}{labels.shape}"
            )
        if len(x) == 0 or labels.min() < 0 or labels.max() >= classes:
            raise ExploreError(f"batch {number} is empty, or has classes that are not 0 … {classes - 1}")
        rows, size = len(x), max(size, len(x))
        fill = np.minimum(np.arange(size), rows - 1)
        new = batch_of(jnp.asarray(x[fill]), jnp.asarray(labels[fill]), jnp.int32(rows), jnp.int32(seen))
        found = [functools.reduce(merged, [*found, new])]
        seen += rows
    if not found:
        raise ExploreError("there are no batches to go through")
    count, mean, squares, samples = found[0]
    if not bool(jnp.isfinite(mean).all()):
        raise ExploreError(f"the {by} of {at!r} is not finite for some samples")
    there = count[:, None] > 0
    mean = jnp.where(there, mean, jnp.nan)
    variance = jnp.where(there, squares / jnp.maximum(count, 1)[:, None], jnp.nan)
    total = jnp.abs(mean).sum(1, keepdims=True)
    share = jnp.where(
        total == 0, jnp.zeros_like(mean), mean / jnp.where(total == 0, jnp.ones_like(total), total)
    )
    return ConceptStatistics(count.astype(jnp.int32), mean, variance, share, samples)
