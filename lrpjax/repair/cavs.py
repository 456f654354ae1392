"""Concept activation vectors: the direction in which a concept lies among the activations of a value."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray
from scipy.stats import rankdata

from lrpjax._html import Shown
from lrpjax.composites import gradient
from lrpjax.core.program import Program
from lrpjax.errors import LrpjaxError

__all__ = ["CAV", "RepairError", "activations", "cav"]

POOLS = ("mean", "max", "whole")
FILTERS = ("svm", "ridge", "lasso", "logistic")


class RepairError(LrpjaxError, ValueError):
    """A concept's direction cannot be found in these activations, or does not fit the value that it is put on.

    >>> import numpy as np
    >>> from lrpjax import repair
    >>> repair.cav(np.eye(3), np.array([True, True, True]))
    Traceback (most recent call last):
    ...
    lrpjax.repair.cavs.RepairError: all 3 samples have the concept: a direction needs samples without it, too
    """


@dataclasses.dataclass(frozen=True, eq=False)
class CAV(Shown):
    """A concept activation vector, which `repair.cav` makes: the direction v of a concept among the activations h.

    Attributes:
        direction: float64 [channels], or of the shape of a whole value for one sample; of length 1, and pointing to the
            samples with the concept.
        present: the mean of vᵀh over samples with the concept, z⁺.
        absent: the mean of vᵀh over samples without it, z⁻.
        threshold: where vᵀh tells the two best, by the mean of both classes' accuracies.
        auc: the probability that vᵀh of a sample with the concept is above that of one without (the area under the
            curve of the receiver operating characteristic): 1 tells them perfectly, 0.5 not at all.
        held_out: whether `auc` and `threshold` are of samples that the direction was not fitted to.
        method: how it was fitted.
        pool: what was made of the positions of a value before: "mean", "max" or "whole".

    >>> import numpy as np
    >>> from lrpjax import repair
    >>> a = np.array([[1.0, 0.0], [1.0, 2.0], [5.0, 0.0], [5.0, 2.0]])
    >>> print(repair.cav(a, np.array([False, False, True, True])))
    pattern CAV of 2 numbers, AUC 1.000: with the concept 5 along it, without 1, threshold 3
    """

    direction: NDArray[np.float64]
    present: float
    absent: float
    threshold: float
    auc: float
    held_out: bool
    method: str
    pool: str

    def __str__(self) -> str:
        judged = "AUC on held-out samples" if self.held_out else "AUC"
        return (
            f"{self.method} CAV of {self.direction.size} numbers, {judged} {self.auc:.3f}: with the concept "
            f"{self.present:.4g} along it, without {self.absent:.4g}, threshold {self.threshold:.4g}"
        )

    def along(self, values: ArrayLike) -> jax.Array:
        """vᵀh of every sample, for activations pooled as those that the direction was fitted to.

        Args:
            values: floating array [B, ..., C], or [B, C] of pooled ones.

        Returns:
            [B], in the dtype of the values.

        Raises:
            RepairError: the direction has another number of channels, or another shape.

        >>> import numpy as np
        >>> from lrpjax import repair
        >>> found = repair.cav(np.array([[1.0, 0.0], [5.0, 0.0]]), np.array([False, True]))
        >>> print(found.along(np.array([[2.0, 7.0], [3.0, 7.0]])))
        [2. 3.]
        """
        h = jnp.asarray(values)
        self.check(h.shape)
        return jnp.tensordot(pooled(h, self.pool), self.direction.astype(h.dtype), self.direction.ndim)

    def check(self, shape: tuple[int, ...], path: str | None = None) -> None:
        """Whether the direction fits values of a shape.

        Raises:
            RepairError: it does not.

        >>> import numpy as np
        >>> from lrpjax import repair
        >>> found = repair.cav(np.array([[1.0, 0.0], [5.0, 0.0]]), np.array([False, True]))
        >>> found.check((8, 3), path="hidden")
        Traceback (most recent call last):
        ...
        lrpjax.repair.cavs.RepairError: 'hidden' has shape (8, 3), of which the last axes must be those of the CAV, (2,)
        """
        own = self.direction.shape
        if shape[-len(own) :] != own:
            what = "the value" if path is None else repr(path)
            raise RepairError(
                f"{what} has shape {shape}, of which the last axes must be those of the CAV, {own}"
            )


def pooled(h: Any, pool: str) -> Any:
    """Activations [N, ..., C] over their positions: [N, C], or as they are."""
    positions = tuple(range(1, h.ndim - 1))
    if pool == "whole" or not positions:
        return h
    return h.mean(positions) if pool == "mean" else h.max(positions)


def cav(
    activations: ArrayLike,
    has_concept: ArrayLike,
    method: str = "pattern",
    *,
    pool: str | None = None,
    held_out: tuple[ArrayLike, ArrayLike] | None = None,
    **options: Any,
) -> CAV:
    """The direction of a concept among activations, from samples with it and samples without.

    method "pattern" is the pattern-CAV (Pahde et al. 2022, "Navigating Neural Space: Revisiting Concept Activation
    Vectors to Overcome Directional Divergence", arXiv 2202.03482), v ∝ cov[h, t] / var[t] with t the labels. It is the
    pattern of Kindermans et al. 2018, eq. 4, for a layer whose output is t, and says where the concept changes the
    activations. For labels of two kinds it is exactly the difference of the two means, which others call mean-CAV.

    The other methods are filters: the weights of a linear model that tells the samples apart best. A filter also turns
    away from whatever else varies along the concept's direction, so that it separates better and points elsewhere (the
    paper's directional divergence): good to detect, worse to project out.

    Args:
        activations: float [N, C], or [N, ..., C], which `pool` makes one vector of.
        has_concept: bool [N].
        method: "pattern", or a filter of scikit-learn: "svm" (LinearSVC; Kim et al. 2018), "ridge" (RidgeClassifier),
            "lasso" (Lasso) or "logistic" (LogisticRegression).
        pool: what becomes of the positions between the first and the last axis: "mean", "max", or "whole", for a
            direction in the whole value, position by position. What has positions needs it said. For what was pooled
            before (see `repair.activations`) say how, so that `react` does the same.
        held_out: further (activations, has_concept), on which threshold and AUC are measured.
        options: of the estimator of scikit-learn, such as C=0.01 or alpha=0.1.

    Returns:
        A `CAV`.

    Raises:
        RepairError: shapes that do not fit, no samples with the concept or none without, activations that are not
            finite, or that do not vary with the concept (the direction would be 0; also where Lasso keeps nothing).
        ImportError: a filter without scikit-learn.

    >>> import numpy as np
    >>> from lrpjax import repair
    >>> concept, noise = np.array([0.0, 0.0, 1.0, 1.0]), np.array([-1.0, 1.0, -1.0, 1.0])
    >>> a = concept[:, None] * np.array([1.0, 0.0]) + noise[:, None] * np.array([3.0, 4.0])
    >>> print(repair.cav(a, concept == 1).direction)
    [1. 0.]
    >>> print(repair.cav(a, concept == 1, "svm", C=1000.0).direction.round(2))
    [ 0.8 -0.6]
    """
    if method != "pattern" and method not in FILTERS:
        raise RepairError(f"method must be one of pattern, {', '.join(FILTERS)}, not {method!r}")
    if method == "pattern" and options:
        raise RepairError(f"a pattern has no options, but was given {', '.join(options)}")
    h, t, pool = _samples(activations, has_concept, pool, "")
    flat = h.reshape(len(h), -1)
    if method == "pattern":
        centred = t - t.mean()
        v = centred @ (flat - flat.mean(0)) / (centred @ centred)
    else:
        v = _filter(method, flat, t, options)
        v = v * (1.0 if (flat @ v)[t].mean() >= (flat @ v)[~t].mean() else -1.0)
    size = float(np.linalg.norm(v))
    # What rounding leaves of a constant is no direction.
    if not size > 1e-12 * float(np.abs(flat).max(initial=0.0)):
        why = "lasso kept no channel: make alpha smaller" if method == "lasso" else "they do not vary with it"
        raise RepairError(f"the activations show no direction of the concept: {why}")
    v = v / size
    scores = flat @ v
    judged, labels = scores, t
    if held_out is not None:
        other, labels, _ = _samples(*held_out, pool, "held-out ")
        if other.shape[1:] != h.shape[1:]:
            raise RepairError(
                f"held-out activations have shape {other.shape[1:]} for a sample, the others {h.shape[1:]}"
            )
        judged = other.reshape(len(other), -1) @ v
    return CAV(
        direction=v.reshape(h.shape[1:]),
        present=float(scores[t].mean()),
        absent=float(scores[~t].mean()),
        threshold=_threshold(judged, labels),
        auc=_auc(judged, labels),
        held_out=held_out is not None,
        method=method,
        pool=pool,
    )


def _samples(activations: Any, has_concept: Any, pool: str | None, kind: str) -> tuple[NDArray, NDArray, str]:
    """Activations in float64, pooled; labels; and how they were pooled."""
    h, t = np.asarray(activations), np.asarray(has_concept)
    if h.ndim < 2 or not jnp.issubdtype(h.dtype, jnp.floating):
        raise RepairError(
            f"{kind}activations are floating-point numbers [N, C] or [N, ..., C], not {h.dtype} of shape {h.shape}"
        )
    if t.dtype != bool or t.shape != h.shape[:1]:
        raise RepairError(
            f"has_concept is a bool for each of the {len(h)} {kind}samples, not {t.dtype} of shape {t.shape}"
        )
    if pool is None and h.ndim > 2:
        raise RepairError(
            f"{kind}activations of shape {h.shape} have positions: say pool='mean', 'max' or 'whole'"
        )
    if pool is not None and pool not in POOLS:
        raise RepairError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
    if t.all() or not t.any():
        have, lack = ("have", "without") if t.all() else ("lack", "with")
        raise RepairError(
            f"all {len(t)} {kind}samples {have} the concept: a direction needs samples {lack} it, too"
        )
    if not np.isfinite(h.astype(np.float64)).all():
        bad = np.flatnonzero(~np.isfinite(h.astype(np.float64).reshape(len(h), -1)).all(1))
        raise RepairError(
            f"{kind}activations are NaN or infinite in {len(bad)} samples, such as number {bad[0]}"
        )
    return pooled(h.astype(np.float64), pool or "mean"), t, pool or "mean"


def _filter(method: str, h: NDArray, t: NDArray, options: dict[str, Any]) -> NDArray:
    """The weights of a linear model of scikit-learn."""
    try:
        from sklearn import linear_model, svm
    except ImportError as error:
        raise ImportError(
            f'CAVs by {method} are fitted by scikit-learn: pip install "lrpjax[explore]"'
        ) from error
    if method == "svm":
        options = {"dual": "auto", "random_state": 0, "max_iter": 100_000} | options
        return svm.LinearSVC(**options).fit(h, t).coef_[0]
    if method == "ridge":
        return linear_model.RidgeClassifier(**options).fit(h, t).coef_.ravel()
    if method == "lasso":
        options = {"alpha": 0.01, "max_iter": 100_000} | options
        return linear_model.Lasso(**options).fit(h, t.astype(np.float64)).coef_
    options = {"max_iter": 10_000} | options
    return linear_model.LogisticRegression(**options).fit(h, t).coef_[0]


def _auc(scores: NDArray, t: NDArray) -> float:
    """Mann and Whitney's U over the number of pairs."""
    of_concept = rankdata(scores)[t]
    n, m = len(of_concept), len(t) - len(of_concept)
    return float((of_concept.sum() - n * (n + 1) / 2) / (n * m))


def _threshold(scores: NDArray, t: NDArray) -> float:
    """The cut with the highest mean of both classes' accuracies, in the midst of the gap in which it may lie."""
    order = np.sort(np.unique(scores))
    if len(order) == 1:
        return float(order[0])
    cuts = (order[:-1] + order[1:]) / 2
    with_concept, without = np.sort(scores[t]), np.sort(scores[~t])
    found = 1 - np.searchsorted(with_concept, cuts) / len(with_concept)
    passed = np.searchsorted(without, cuts) / len(without)
    return float(cuts[np.argmax(found + passed)])


def activations(
    f: Callable, batches: Iterable[ArrayLike], *, at: str, pool: str | None = None
) -> NDArray[np.floating]:
    """What a function computes at a named value, for all samples of a stream: what `repair.cav` is fitted to.

    One forward pass, compiled once; of each batch only the pooled activations are kept.

    Args:
        f: a function of a batch [B, ...].
        batches: of one size; the last may be smaller.
        at: a module path or a `lrpjax.tag`, as for `lrpjax.relevance`; the value's leading axis counts the samples.
        pool: "mean" or "max" over the positions of a value [B, ..., C]; None and "whole" keep them.

    Returns:
        [N, C], or [N, ..., C], in the value's dtype.

    Raises:
        RepairError: no batches, or the leading axis of the value does not count the samples. PathError: `at` names
            nothing, or several values.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import repair
    >>> f = lambda x: lrpjax.tag(jax.nn.relu(x), "hidden").sum((1, 2))
    >>> images = jnp.array([[[1.0, -1.0], [3.0, -1.0]], [[0.0, 2.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    >>> print(repair.activations(f, [images[:2], images[2:]], at="hidden", pool="mean"))
    [[2. 0.]
     [0. 3.]
     [1. 1.]]
    """
    if pool is not None and pool not in POOLS:
        raise RepairError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")

    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        program = Program(f, gradient(), (x,), {}, 0, [at], False)
        if len(program.taps) != 1:
            raise RepairError(f"`at` must name one value, but {at!r} names {len(program.taps)}")
        h = program.values()[next(iter(program.taps))]
        if h.ndim < 2 or len(h) != len(x):
            raise RepairError(
                f"{at!r} has shape {h.shape}, whose first axis does not count the {len(x)} samples"
            )
        return pooled(h, pool or "whole")

    found, size = [], 0
    for batch in batches:
        x = jnp.asarray(batch)
        size = max(size, len(x))
        # A smaller batch is filled up, so that it is not compiled anew.
        full = x[jnp.minimum(jnp.arange(size), len(x) - 1)] if len(x) < size else x
        found.append(np.asarray(run(full))[: len(x)])
    if not found:
        raise RepairError("there are no batches to take activations of")
    return np.concatenate(found)
