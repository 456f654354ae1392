"""Second-order relevance: which features of one input, together with which of another, make a similarity model find
them alike."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax._evaluate import map_batched
from lrpjax.composites import Composite
from lrpjax.errors import LrpjaxError, TargetError
from lrpjax.transform import vjp

__all__ = ["RegionError", "bilrp"]


class RegionError(LrpjaxError, ValueError):
    """Labels of regions are not whole numbers from 0, or do not fit the input.

    >>> import jax.numpy as jnp
    >>> bilrp(lambda x: x, None, regions=jnp.array([0.5, 1.0]))(jnp.ones((1, 2)), jnp.ones((1, 2)))
    Traceback (most recent call last):
    ...
    lrpjax.analysis.bilrp.RegionError: regions are integer labels 0, 1, …, but these have dtype float...
    """


def bilrp(
    f: Callable,
    composite: Composite | None = None,
    *,
    regions: ArrayLike | None = None,
    batch: int = 16,
) -> Callable:
    """Which features of two inputs make them similar: R_{ii'} = Σ_m R(φ_m)_i · R(φ_m)_{i'} (BiLRP).

    Eberle et al. 2020, "Building and Interpreting Deep Similarity Models", in the factored form, in which LRP runs once
    for each dimension m of the embedding φ and each input, and the products are summed.

    Σ_{ii'} R_{ii'} = ⟨φ(x), φ(x')⟩, up to what biases and stabilisers absorb in R(φ_m). One forward pass and M backward
    passes for each input, M being the length of the embedding; with regions, relevance is summed over them before the
    product, so that memory is M·(P + P') + P·P' numbers in place of as many for single features.

    Args:
        f: the embedding φ, a function of one input (without an axis of examples); its output, of any shape, holds M
            numbers.
        composite: as for `lrpjax.relevance`.
        regions: int labels 0, 1, … that broadcast to the inputs, such as `lrpjax.metrics.patches(x[None].shape, 4)`;
            None: each feature is its own region.
        batch: how many dimensions of the embedding to explain at once.

    Returns:
        A function of (x, x'), floating arrays, which returns [P, P'], in the dtype of the relevance: P is the number of
        regions, or of features.

    Raises:
        RegionError: the labels are not whole numbers from 0, or do not broadcast. Else as `lrpjax.vjp`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import similarity
        >>> f = lambda x: x @ jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> print(jnp.rint(similarity.bilrp(f)(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0]))))
        [[6. 0.]
         [0. 4.]]
    """

    def rows(x: jax.Array) -> jax.Array:
        """The relevance of regions for each dimension of the embedding, [M, P]."""
        x = jnp.asarray(x)
        labels, count = _labels(regions, x.shape)
        y, pull = vjp(f, composite, x)
        if not hasattr(y, "shape"):
            raise TargetError(f"the embedding must be one array, but f returns {jax.tree.structure(y)}")
        number = jnp.arange(y.size).reshape(y.shape)

        def one(m: jax.Array) -> jax.Array:
            (R,) = pull(jnp.where(number == m, y, jnp.zeros_like(y)))
            return R.reshape(-1) if labels is None else jax.ops.segment_sum(R.reshape(-1), labels, count)

        return map_batched(one, jnp.arange(y.size), batch)

    def explain(x: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.matmul(rows(x).T, rows(other), precision="highest")

    return explain


def _labels(regions: ArrayLike | None, shape: tuple[int, ...]) -> tuple[jax.Array | None, int]:
    """Flat labels of an input's features, and how many there are."""
    if regions is None:
        return None, math.prod(shape)
    labels = np.asarray(regions)
    if not np.issubdtype(labels.dtype, np.integer) or not labels.size or labels.min() < 0:
        raise RegionError(f"regions are integer labels 0, 1, …, but these have dtype {labels.dtype}")
    try:
        full = np.broadcast_to(labels, shape)
    except ValueError:
        raise RegionError(f"regions have shape {labels.shape}, which does not broadcast to {shape}") from None
    return jnp.asarray(full.reshape(-1), jnp.int32), int(labels.max()) + 1
