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

Regions = ArrayLike | Callable[[tuple[int, ...]], ArrayLike] | None


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
    regions: Regions | tuple[Regions, Regions] = None,
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
            numbers. The two inputs may differ in shape, as sentences of T and T' tokens do, if f takes both and gives
            the same shape.
        composite: as for `lrpjax.relevance`.
        regions: int labels 0, 1, … that broadcast to the inputs, such as `lrpjax.metrics.patches(x[None].shape, 4)`;
            None: each feature is its own region. A tuple of two: one for each input. A function of an input's shape
            gives labels that fit each: `lambda shape: np.arange(shape[0])[:, None]` makes every token a region of
            embeddings [T, D], so that the result is [T, T'].
        batch: how many dimensions of the embedding to explain at once.

    Returns:
        A function of (x, x'), floating arrays, which returns [P, P'], in the dtype of the relevance: P and P' are the
        numbers of regions, or of features, of x and x'.

    Raises:
        RegionError: the labels are not whole numbers from 0, do not broadcast, or are a tuple of other than two.
        TargetError: the embedding is not one array, or the two embeddings differ in shape. Else as `lrpjax.vjp`.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import similarity
        >>> f = lambda x: x @ jnp.array([[1.0, 1.0], [1.0, -1.0]])
        >>> print(jnp.rint(similarity.bilrp(f)(jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0]))))
        [[6. 0.]
         [0. 4.]]
        >>> of_tokens = similarity.bilrp(lambda x: x.sum(0), regions=lambda shape: jnp.arange(shape[0])[:, None])
        >>> print(jnp.rint(of_tokens(jnp.ones((2, 4)), jnp.ones((3, 4)))))
        [[4. 4. 4.]
         [4. 4. 4.]]
    """
    pair = regions if isinstance(regions, tuple) else (regions, regions)
    if len(pair) != 2:
        raise RegionError(
            f"a tuple of regions has one entry for each of the two inputs, but this has {len(pair)}"
        )

    def rows(x: jax.Array, regions: Regions) -> tuple[jax.Array, tuple[int, ...]]:
        """The relevance of regions for each dimension of the embedding, [M, P], and the embedding's shape."""
        x = jnp.asarray(x)
        labels, count = _labels(regions(x.shape) if callable(regions) else regions, x.shape)
        y, pull = vjp(f, composite, x)
        if not hasattr(y, "shape"):
            raise TargetError(f"the embedding must be one array, but f returns {jax.tree.structure(y)}")
        number = jnp.arange(y.size).reshape(y.shape)

        def one(m: jax.Array) -> jax.Array:
            (R,) = pull(jnp.where(number == m, y, jnp.zeros_like(y)))
            return R.reshape(-1) if labels is None else jax.ops.segment_sum(R.reshape(-1), labels, count)

        return map_batched(one, jnp.arange(y.size), batch), y.shape

    def explain(x: jax.Array, other: jax.Array) -> jax.Array:
        (R, shape), (R_other, shape_other) = rows(x, pair[0]), rows(other, pair[1])
        if shape != shape_other:
            raise TargetError(f"the embeddings of the two inputs differ in shape: {shape} and {shape_other}")
        return jnp.matmul(R.T, R_other, precision="highest")

    return explain


def _labels(regions: ArrayLike | None, shape: tuple[int, ...]) -> tuple[jax.Array | None, int]:
    """Flat labels of an input's features, and how many there are."""
    if regions is None:
        return None, math.prod(shape)
    labels = np.asarray(regions)
    wrong = None
    if not np.issubdtype(labels.dtype, np.integer):
        wrong = f"have dtype {labels.dtype}"
    elif not labels.size:
        wrong = "are none"
    elif labels.min() < 0:
        wrong = f"begin at {labels.min()}"
    if wrong:
        raise RegionError(f"regions are integer labels 0, 1, …, but these {wrong}")
    try:
        full = np.broadcast_to(labels, shape)
    except ValueError:
        raise RegionError(f"regions have shape {labels.shape}, which does not broadcast to {shape}") from None
    return jnp.asarray(full.reshape(-1), jnp.int32), int(labels.max()) + 1
