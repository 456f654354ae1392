"""From models of scikit-learn to the functions that they are."""

import math
from typing import Any, Literal

import numpy as np

from lrpjax.neuralised.functions import (
    ClusterEvidence,
    MixtureEvidence,
    MixtureOutlierness,
    ModelError,
    Outlierness,
    check_beta,
)


def kmeans(model: Any, *, beta: float | None = None, soft: bool = False) -> "ClusterEvidence":
    """A fitted k-means as the evidence for each of its clusters: f_c(x) = min_{k≠c} ‖x − μ_k‖² − ‖x − μ_c‖².

    The evidence is positive for the cluster that x is in, and 0 on its border. See `ClusterEvidence`.

    Args:
        model: anything with `cluster_centers_` [K, D] whose clusters are those of the nearest centre:
            scikit-learn's KMeans, MiniBatchKMeans, MeanShift.
        beta: how relevance is shared among the competitors, see `ClusterEvidence`; `stiffness` finds one.
        soft: whether the minimum is a soft one, too.

    Returns:
        A function [..., D] -> [..., K].

    Raises:
        ModelError: the model is not fitted, has one cluster, two clusters at one point or a tree of clusters
            (BisectingKMeans); or beta is not positive, or missing though soft.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from sklearn.cluster import KMeans
        >>> from lrpjax import neuralised
        >>> model = KMeans(2, n_init=1, random_state=0).fit([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]])
        >>> f, x = neuralised.kmeans(model), jnp.array([1.0, 2.0])
        >>> y, R = lrpjax.value_and_relevance(f, target="max")(x)
        >>> print(y.max(), R)
        8.0 [8. 0.]
    """
    centers = _fitted(model, "cluster_centers_", "call fit first, or give a model that has centres")
    if hasattr(model, "bisecting_strategy"):
        raise ModelError(
            "BisectingKMeans assigns clusters by a tree and not by the nearest centre: fit a KMeans, "
            "for instance with init=model.cluster_centers_"
        )
    _several(len(centers), "cluster")
    check_beta(beta, soft)
    if len(np.unique(centers, axis=0)) < len(centers):
        raise ModelError(
            "two clusters have the same centre, so that nothing tells them apart: fit fewer clusters"
        )
    return ClusterEvidence(centers, beta, soft)


def kernel_density(model: Any) -> "Outlierness":
    """A fitted kernel density estimate as the outlierness of a point, a soft minimum of its distances to the
    data.

    o(x) = −1/γ log Σ_j w_j exp(−γ ‖x − u_j‖²) with γ = 1 / (2 bandwidth²) and Σ w_j = 1. In terms of the
    log-density, o(x) = −(score_samples(x) + D log(bandwidth √(2π))) / γ: a squared distance, 0 where the
    density is as high as it could be. See `Outlierness`.

    Args:
        model: scikit-learn's KernelDensity with kernel="gaussian" and a Euclidean metric, with sample weights
            or without. Its `score_samples` may be approximate (`rtol`, `atol`); o is not.

    Returns:
        A function [..., D] -> [...].

    Raises:
        ModelError: the model is not fitted, or its kernel or metric is another.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from sklearn.neighbors import KernelDensity
        >>> from lrpjax import neuralised
        >>> f = neuralised.kernel_density(KernelDensity(bandwidth=0.5).fit([[0.0, 0.0]]))
        >>> print(lrpjax.relevance(f)(jnp.array([3.0, 4.0])))
        [ 9. 16.]
    """
    tree = _fitted(model, "tree_", "call fit first, or give a KernelDensity", array=False)
    if model.kernel != "gaussian":
        raise ModelError(
            f'the kernel is {model.kernel!r}, but only "gaussian" is a soft minimum of distances'
        )
    if model.metric not in ("euclidean", "l2") and not (
        model.metric == "minkowski" and (model.metric_params or {}).get("p", 2) == 2
    ):
        raise ModelError(f"the metric is {model.metric!r}, but only Euclidean distances are neuralised")
    points, weights = np.asarray(tree.data, np.float64), tree.sample_weight
    weights = np.ones(len(points)) if weights is None else np.asarray(weights, np.float64)
    bandwidth = float(getattr(model, "bandwidth_", model.bandwidth))
    return _outlierness(points, weights, 0.5 / bandwidth**2)


def one_class_svm(model: Any) -> "Outlierness":
    """A fitted one-class SVM as the outlierness of a point, a soft minimum of its distances to the support
    vectors.

    o(x) = −1/γ log Σ_j α_j exp(−γ ‖x − u_j‖²), with α scaled to Σ α_j = 1, which the threshold follows:
    `f.threshold` is the outlierness of the border, and o(x) > f.threshold where `decision_function` is
    negative and `predict` says −1. See `Outlierness`. Inliers have a decomposition of their own in the paper,
    which is not here.

    Args:
        model: scikit-learn's OneClassSVM with kernel="rbf".

    Returns:
        A function [..., D] -> [...].

    Raises:
        ModelError: the model is not fitted, or its kernel is another.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from sklearn.svm import OneClassSVM
        >>> from lrpjax import neuralised
        >>> f = neuralised.one_class_svm(OneClassSVM(gamma=0.5, nu=0.5).fit([[0.0, 0.0], [0.0, 2.0]]))
        >>> R = lrpjax.relevance(f)(jnp.array([3.0, 1.0]))
        >>> print(R.round(3), bool(R.sum() > f.threshold))
        [9. 1.] True
    """
    support = _fitted(model, "support_vectors_", "call fit first, or give a OneClassSVM")
    if model.kernel != "rbf":
        raise ModelError(f'the kernel is {model.kernel!r}, but only "rbf" is a soft minimum of distances')
    alpha = _dense(_fitted(model, "dual_coef_", "call fit first", array=False)).reshape(-1)
    gamma, total, rho = float(model._gamma), alpha.sum(), float(np.ravel(model.offset_)[0])
    threshold = math.log(total / rho) / gamma if rho > 0 else math.inf
    return _outlierness(support, alpha, gamma, threshold)


def gaussian_mixture(
    model: Any, *, of: Literal["clusters", "outlierness"] = "clusters"
) -> "MixtureEvidence | MixtureOutlierness":
    """A fitted Gaussian mixture as the evidence for each of its components, or as the outlierness of a point.

    "clusters": f_c(x) = log P(c | x) / (1 − P(c | x)), see `MixtureEvidence`. "outlierness": how far log p(x)
    is below its bound, see `MixtureOutlierness`.

    Args:
        model: scikit-learn's GaussianMixture, of any `covariance_type`.
        of: what to explain.

    Returns:
        A function [..., D] -> [..., K] or [...].

    Raises:
        ModelError: the model is not fitted, is a BayesianGaussianMixture, has a component without weight, or, for
            clusters, has one component only.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from sklearn.mixture import GaussianMixture
        >>> from lrpjax import neuralised
        >>> X = [[-3.0, 0.0], [-3.0, 2.0], [-5.0, 1.0], [3.0, 0.0], [3.0, 2.0], [5.0, 1.0]]
        >>> model = GaussianMixture(2, covariance_type="spherical", random_state=0).fit(X)
        >>> f, x = neuralised.gaussian_mixture(model), jnp.array([2.0, 1.0])
        >>> y, R = lrpjax.value_and_relevance(f, target="max")(x)
        >>> print(R.round(1) + 0.0, jnp.allclose(R.sum(), y.max()))
        [18.9  0. ] True
    """
    means = _fitted(model, "means_", "call fit first, or give a GaussianMixture")
    if hasattr(model, "weight_concentration_"):
        raise ModelError(
            "BayesianGaussianMixture scores with expectations over its posterior, which is no Gaussian mixture: "
            "fit a GaussianMixture"
        )
    if of not in ("clusters", "outlierness"):
        raise ModelError(f'of is "clusters" or "outlierness", not {of!r}')
    factors = _fitted(model, "precisions_cholesky_", "call fit first")
    weights = _fitted(model, "weights_", "call fit first")
    if not np.all(weights > 0):
        raise ModelError(
            "a component has no weight, so that its logarithm is not finite: fit fewer components"
        )
    if model.covariance_type == "tied":
        factors = factors[None]  # [1, D, D]: the same for all components
    elif model.covariance_type == "spherical":
        factors = np.broadcast_to(factors[:, None], means.shape)
    diagonal = factors if factors.ndim == 2 else np.diagonal(factors, axis1=1, axis2=2)
    heights = np.log(weights) + np.log(diagonal).sum(1) - 0.5 * means.shape[1] * math.log(2 * math.pi)
    if of == "outlierness":
        offset = np.logaddexp.reduce(heights)
        return MixtureOutlierness(means, factors, heights - offset, offset)
    _several(len(means), "component")
    return MixtureEvidence(means, factors, heights)


def _outlierness(points: np.ndarray, weights: np.ndarray, gamma: float, threshold: float | None = None):
    """The weights scaled to a sum of 1, without the points that have none."""
    held = weights > 0
    return Outlierness(points[held], np.log(weights[held] / weights[held].sum()), gamma, threshold)


def _fitted(model: Any, name: str, advice: str, array: bool = True) -> Any:
    value = getattr(model, name, None)
    if value is None:
        raise ModelError(f"{type(model).__name__} has no {name}: {advice}")
    return np.asarray(_dense(value), np.float64) if array else value


def _dense(matrix: Any) -> np.ndarray:
    """An array that scikit-learn keeps sparse if the model was fitted to sparse data."""
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix)


def _several(count: int, what: str) -> None:
    if count < 2:
        raise ModelError(
            f"there is one {what} only, and evidence for it is evidence against others: fit at least two"
        )
