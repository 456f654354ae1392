"""Relevance over an ensemble, or over samples of a posterior: how sure an explanation is, and what makes a
prediction unsure.

Two questions, from the relevances R_m of the members m = 1 … M of an ensemble:

- How much do the members agree on a feature? Means, deviations, quantiles and the share of members that find it
  positive (B-LRP, Bykov et al. 2020, "How Much Can I Trust You? Quantifying Uncertainties in Explaining Neural
  Networks", arXiv 2006.09000: percentiles of relevance. Its equations, and its names for low and high
  percentiles, could not be looked up when this was written).
- Which features make the members' predictions differ? Cov_m(R_i, R_j), whose sum over i and j is the variance of
  the prediction where relevance is conserved (CovLRP, Bley et al. 2025, "Explaining Predictive Uncertainty by
  Exposing Second-Order Effects", Pattern Recognition 160, arXiv 2401.17441; the covariance, its diagonal and its
  marginal are those of the authors' example script).

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    u = lrpjax.uncertainty.ensemble(f, composite, stacked, target=3)(x)
    u.mean, u.std, u.marginal  # each in the shape of x
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._evaluate import _chunks, sum_batched
from lrpjax.analysis.bilrp import Regions, _labels
from lrpjax.composites import Composite
from lrpjax.core.seeds import output_relevance
from lrpjax.errors import LrpjaxError
from lrpjax.transform import value_and_relevance

__all__ = ["Ensemble", "EnsembleError", "ensemble"]


class EnsembleError(LrpjaxError, ValueError):
    """The stacked params are not those of an ensemble, or what is asked of it does not exist.

    >>> import jax.numpy as jnp
    >>> ensemble(lambda p, x: p["w"] * x + p["b"], None, {"w": jnp.ones(3), "b": jnp.ones(2)})
    Traceback (most recent call last):
    ...
    lrpjax.analysis.uncertainty.EnsembleError: the params differ in their members: ['b'] has 2, ['w'] has 3
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """The relevances of the members of an ensemble, summed up. Moments are those of a population (divided by M).

    Attributes:
        mean: the mean over members, in the shape of the relevance; itself a relevance, of the mean
            prediction.
        std: the standard deviation over members; std² is the diagonal form of CovLRP.
        marginal: Cov_m(R_i, Σ_j R_j), the marginal form of CovLRP, without a matrix: what feature i has in
            the variance of the prediction, all its interactions included. Σ marginal = Var_m(Σ R).
        positive: the share of members with R_i > 0. `positive >= 0.95` are the features on which nearly all
            agree (intersection), `positive >= 0.05` those that some members use (union).
        score_mean, score_variance: of what is explained (the logit of the target, for each example), over
            members.
        quantiles: [Q, ...], one heatmap for each quantile that was asked for, or None. A low quantile shows
            what all members find relevant, a high one what any does (B-LRP).
        covariance: [B, P, P] over P regions or features, or [P, P] for a single example; None if not asked
            for. Its diagonal and its sums over rows are the two forms above, for regions.
        relevances: [M, ...], of all members, or None.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> members = jnp.array([[1.0, 0.0], [3.0, 2.0]])
        >>> u = lrpjax.uncertainty.ensemble(lambda w, x: x @ w, None, members)(jnp.array([[1.0, 1.0]]))
        >>> print(u.mean.round(2), u.marginal.round(2), u.score_variance.round(2))
        [[2. 1.]] [[2. 2.]] [4.]
    """

    mean: Any
    std: Any
    marginal: Any
    positive: Any
    score_mean: jax.Array
    score_variance: jax.Array
    quantiles: Any = None
    covariance: Any = None
    relevances: Any = None


def ensemble(
    f: Callable,
    composite: Composite | None,
    params: Any,
    *,
    target: Any = None,
    argnums: int = 1,
    at: str | Sequence[str] | None = None,
    quantiles: Sequence[float] | None = None,
    covariance: bool = False,
    regions: Regions = None,
    batched: bool = True,
    keep: bool = False,
    batch: int = 8,
) -> Callable:
    """Relevance of f(params_m, x) for all members m of an ensemble, and its statistics over them.

    Cov_ij = 1/M Σ_m (R_mi − R̄_i) (R_mj − R̄_j), as in the authors' script (the population's covariance, for
    each example). Σ_ij Cov_ij = Var_m(Σ_i R_mi), which is the variance of the prediction where Σ R = f(x);
    biases and stabilisers take their share of it as they do of f(x). Quantiles of relevances over samples of
    a posterior are the heatmaps of B-LRP; quantiles interpolate linearly, as NumPy's.

    Members are explained `batch` at a time and their moments merged, so that memory does not grow with their
    number, unless `quantiles` or `keep` is given: these hold M relevances.

    Args:
        f: a function f(params, x, ...).
        composite: as for `lrpjax.relevance`.
        params: a pytree whose arrays all have the members along their first axis: trained networks stacked,
            samples of a posterior, or random keys [M] if f draws from them (Monte Carlo dropout).
        target: as for `lrpjax.relevance`, the same for all members. "max" is the class that has the largest
            mean output (and takes another forward pass), not the largest of each member.
        argnums: which argument of f is explained, counted with the params: 1 is the first after them.
        at: as for `lrpjax.relevance`; several paths give dicts.
        quantiles: numbers between 0 and 1, such as (0.05, 0.5, 0.95).
        covariance: whether to compute all of the covariance, P² numbers for each example.
        regions: int labels 0, 1, … that broadcast to the relevance of one example, or a function of its
            shape, as for `lrpjax.similarity.bilrp`: relevance is summed over them first, so that the
            covariance is that of P regions. Given, `covariance` is meant.
        batched: whether the first axis of the relevance is that of examples, which have a covariance each. If
            not, all of x is one example.
        keep: whether to return the relevances of all members.
        batch: how many members to explain at once.

    Returns:
        A function of f's arguments after the params, which returns an `Ensemble` in the dtype of the
        relevance. It works under `jax.jit` and `jax.vmap`.

    Raises:
        EnsembleError: there are no params or no members, or the arrays differ in their number; a quantile is
            not between 0 and 1; argnums is 0; a covariance is asked for of several values. RegionError: as for
            `bilrp`. Else as `lrpjax.relevance`.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> members = jnp.array([[1.0, 5.0, 0.0], [1.0, 1.0, 4.0]])
        >>> of = lambda **options: lrpjax.uncertainty.ensemble(lambda w, x: x @ w, None, members, **options)
        >>> u = of(quantiles=(0.0, 1.0), covariance=True)(jnp.ones((1, 3)))
        >>> print(u.quantiles[:, 0].round(2))
        [[1. 1. 0.]
         [1. 5. 4.]]
        >>> print(u.covariance[0].round(2) + 0.0, u.covariance.sum().round(2) + 0.0)
        [[ 0.  0.  0.]
         [ 0.  4. -4.]
         [ 0. -4.  4.]] 0.0
        >>> print(of(regions=jnp.array([0, 0, 1]))(jnp.ones((1, 3))).covariance[0].round(2))
        [[ 4. -4.]
         [-4.  4.]]
    """
    count = _members(params)
    if argnums < 1:
        raise EnsembleError(
            f"argnums is {argnums}, but the params of f, its argument 0, are what an ensemble samples"
        )
    if quantiles is not None:
        levels = np.asarray(quantiles, np.float64)
        if levels.ndim != 1 or not levels.size or not ((levels >= 0) & (levels <= 1)).all():
            raise EnsembleError(
                f"quantiles are numbers between 0 and 1, such as (0.05, 0.5, 0.95), not {quantiles}"
            )

    def explain(*args: Any, **kwargs: Any) -> Ensemble:
        own = target
        if isinstance(target, str) and target == "max":
            output = lambda m: f(_member(params, m), *args, **kwargs)
            own = sum_batched(output, jnp.arange(count), batch).argmax(-1)

        def member(m: jax.Array) -> tuple[Any, Any]:
            """The relevance of one member, and the score that it explains."""
            g = lambda *args: f(_member(params, m), *args, **kwargs)
            y, R = value_and_relevance(g, composite, argnums=argnums - 1, target=own, at=at)(*args)
            seeds = jax.tree.leaves(output_relevance(y, own))
            return R, sum(_over_features(v, batched and v.ndim > 0).sum(-1) for v in seeds)

        def labelled(R: Any) -> Any:
            return _regional(R, regions, batched) if covariance or regions is not None else None

        return _summary(member, labelled, count, batch, batched, None if quantiles is None else levels, keep)

    return explain


def _members(params: Any) -> int:
    """How many members there are."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise EnsembleError("the params hold no arrays, so that there are no members")
    sizes = {jax.tree_util.keystr(path) or "the params": jnp.shape(leaf)[:1] for path, leaf in leaves}
    for name, size in sizes.items():
        if not size:
            raise EnsembleError(
                f"the params are to have the members along their first axis, but {name} is a number"
            )
    different = {size[0]: name for name, size in sizes.items()}
    if len(different) > 1:
        listed = ", ".join(f"{name} has {size}" for size, name in sorted(different.items()))
        raise EnsembleError(f"the params differ in their members: {listed}")
    (count,) = different
    if not count:
        raise EnsembleError("the first axis of the params has length 0: there are no members")
    return count


def _member(params: Any, m: jax.Array) -> Any:
    return jax.tree.map(lambda v: (v if isinstance(v, jax.Array) else jnp.asarray(v))[m], params)


def _over_features(R: jax.Array, batched: bool) -> jax.Array:
    """[B, features] or, for one example, [features]."""
    return R.reshape(*R.shape[:1], -1) if batched else R.reshape(-1)


def _regional(R: Any, regions: Any, batched: bool) -> jax.Array:
    """Relevance of regions, or of features, [B, P] or [P]."""
    if not hasattr(R, "shape"):
        raise EnsembleError(
            f"a covariance is that of one array, but what is explained is {jax.tree.structure(R)}"
        )
    shape = R.shape[1:] if batched else R.shape
    labels, count = _labels(regions(shape) if callable(regions) else regions, shape)
    flat = _over_features(R, batched)
    return flat if labels is None else jax.ops.segment_sum(flat.T, labels, count).T


def _summary(
    member: Callable,
    labelled: Callable,
    count: int,
    batch: int,
    batched: bool,
    levels: np.ndarray | None,
    keep: bool,
) -> Ensemble:
    """The members' moments, chunk by chunk."""
    indices, valid = _chunks(jnp.arange(count), batch)
    stack = keep or levels is not None

    def step(before: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        chosen, weights = chunk
        R, score = jax.vmap(member)(chosen)
        regional = jax.vmap(labelled)(R)
        new = _moments({"R": R, "score": score}, weights, batched), _covariances(regional, weights)
        return _merged(before, new, batched), R if stack else None

    shape = jax.eval_shape(lambda: step(_Start(), (indices[0], jnp.asarray(valid[0])))[0])
    start = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shape)
    (moments, between), relevances = jax.lax.scan(step, start, (indices, jnp.asarray(valid)))
    quantiles = None
    if stack:
        relevances = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:])[:count], relevances)
    if levels is not None:
        quantiles = jax.tree.map(lambda v: jnp.quantile(v, jnp.asarray(levels, v.dtype), axis=0), relevances)
    over_members = lambda key: jax.tree.map(lambda v: v / jnp.asarray(count, v.dtype), moments[key]["R"])
    return Ensemble(
        moments["mean"]["R"],
        jax.tree.map(jnp.sqrt, over_members("square")),
        over_members("marginal"),
        over_members("positive"),
        moments["mean"]["score"],
        moments["square"]["score"] / jnp.asarray(count, moments["square"]["score"].dtype),
        quantiles,
        None if between is None else between["product"] / jnp.asarray(count, between["product"].dtype),
        relevances if keep else None,
    )


# ------------------------------------------------------------------- moments of chunks (Chan, Golub and LeVeque 1983)


class _Start:
    """In place of the moments of no members, whose shapes are not yet known."""


def _total(v: jax.Array, batched: bool, stacked: bool = False) -> jax.Array:
    """Σ over the features of an example, kept as axes of length 1."""
    first = int(stacked) + int(batched and v.ndim > int(stacked))
    return v.sum(tuple(range(first, v.ndim)), keepdims=True)


def _weighted(v: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights in the shape of v, and their sum."""
    w = weights.astype(v.dtype)
    return w.reshape(-1, *(1,) * (v.ndim - 1)), w.sum()


def _moments(values: Any, weights: jax.Array, batched: bool) -> dict:
    """Mean, Σ (v − mean)², Σ (v − mean) (total − its mean), Σ [v > 0] over members [S, ...] that weigh 1 or 0."""

    def of(v: jax.Array) -> tuple:
        w, n = _weighted(v, weights)
        mean = (w * v).sum(0) / n
        apart = v - mean
        total = _total(apart, batched, stacked=True)
        positive = (w * (v > 0).astype(v.dtype)).sum(0)
        return mean, (w * apart**2).sum(0), (w * apart * total).sum(0), positive

    split = jax.tree.map(of, values)
    part = lambda n: jax.tree.map(lambda found: found[n], split, is_leaf=lambda v: isinstance(v, tuple))
    names = ("mean", "square", "marginal", "positive")
    return {"count": weights.sum(), **{name: part(n) for n, name in enumerate(names)}}


def _covariances(v: jax.Array | None, weights: jax.Array) -> dict | None:
    """Mean and Σ (v_i − mean_i) (v_j − mean_j) over members [S, ..., P]."""
    if v is None:
        return None
    w, n = _weighted(v, weights)
    mean = (w * v).sum(0) / n
    apart = v - mean
    return {"mean": mean, "product": jnp.einsum("s...i,s...j->...ij", w * apart, apart, precision="highest")}


def _merged(before: Any, new: Any, batched: bool) -> Any:
    """The moments of two sets of members together."""
    if isinstance(before, _Start):
        return new
    (a, a_between), (b, b_between) = before, new
    n = a["count"] + b["count"]
    share = lambda v: b["count"].astype(v.dtype) / n.astype(v.dtype)
    cross = lambda v: share(v) * a["count"].astype(v.dtype)
    apart = jax.tree.map(lambda u, v: v - u, a["mean"], b["mean"])
    add = lambda key, f: jax.tree.map(lambda u, v, d: u + v + f(d) * cross(d), a[key], b[key], apart)
    merged = {
        "count": n,
        "mean": jax.tree.map(lambda u, d: u + d * share(d), a["mean"], apart),
        "square": add("square", jnp.square),
        "marginal": add("marginal", lambda d: d * _total(d, batched)),
        "positive": jax.tree.map(jnp.add, a["positive"], b["positive"]),
    }
    if a_between is None:
        return merged, None
    d = b_between["mean"] - a_between["mean"]
    product = a_between["product"] + b_between["product"] + d[..., :, None] * d[..., None, :] * cross(d)
    return merged, {"mean": a_between["mean"] + d * share(d), "product": product}
