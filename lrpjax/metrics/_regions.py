"""What functions of regions share: checked arrays, labels of every element, the relevance of a region."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax._evaluate import as_callable, check_broadcast, fill_like
from lrpjax.metrics.perturb import patches


class Regions(NamedTuple):
    """A function and arrays that fit together: f as a pytree, x and relevance of one shape, the regions of x."""

    f: Any
    x: jax.Array
    relevance: jax.Array
    labels: jax.Array  # int32 [B, elements]
    count: int


def prepare(f: Callable, x: ArrayLike, relevance: ArrayLike, regions: int | ArrayLike | None) -> Regions:
    """Checks what a user gives; raises ValueError on shapes that do not fit and on labels that are none."""
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
    labels = jnp.asarray(labels, jnp.int32)
    return Regions(as_callable(f), x, jnp.broadcast_to(relevance, x.shape), labels, count)


def region_sums(values: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """Σ of the values of every region, [B, count]."""
    flat = values.reshape(len(values), -1)
    return jax.vmap(lambda r, label: jax.ops.segment_sum(r, label, count))(flat, labels)


def of_elements(values: jax.Array, labels: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What stands for every region, [B, count], written to each of its elements."""
    return jnp.take_along_axis(values, labels, axis=1).reshape(shape)


def as_fill(fill: ArrayLike | Callable, x: jax.Array) -> Any:
    """A fill-in as a pytree: a callable as it is, anything else as an array in the dtype of x that broadcasts to it."""
    return as_callable(fill) if callable(fill) else fill_like(fill, x)


def replace(x: jax.Array, removed: jax.Array, fill: Any) -> jax.Array:
    """x with the elements that are `removed` filled in."""
    return jnp.where(removed, fill(x, removed) if callable(fill) else fill, x)
