"""Relevant subspaces: the directions in which the activations of a layer matter for what is explained."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax.explore.findings import ExploreError

__all__ = ["prca"]


def prca(activations: ArrayLike, contexts: ArrayLike, k: int) -> NDArray[np.float64]:
    """Principal relevant component analysis: the k orthonormal directions that keep most relevance.

    Relevance is R = aᵀ c with a the activations and c the context, R_i / a_i: coefficients of a linearised program. In
    the span of U it is (Uᵀ a)ᵀ (Uᵀ c), whose mean is largest for the eigenvectors of the k largest eigenvalues of the
    symmetrised cross-covariance E[a cᵀ + c aᵀ], without centring (Chormai et al. 2022, "Disentangled Explanations of
    Neural Network Predictions by Finding Relevant Subspaces", arXiv 2212.14855).

    Args:
        activations, contexts: floating [N, D], at positions of a layer over a data set: `lin.values[path]` and
            `lin.coefficients(target)[path]` of `lrpjax.linearise`, with the channels last.
        k: how many directions, 1 … D.

    Returns:
        float64 [D, k] for `explore.Directions`, that of the largest eigenvalue first; the largest entry of each is
        positive. With k = D all relevance is kept.

    Raises:
        ExploreError: shapes that do not fit, rows that are not finite, or another k.

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> a = np.array([[3.0, 4.0], [6.0, 8.0]])
    >>> explore.prca(a, a, 1).round(1).T
    array([[0.6, 0.8]])
    """
    a, c = np.asarray(activations, np.float64), np.asarray(contexts, np.float64)
    if a.ndim != 2 or a.shape != c.shape or not len(a):
        raise ExploreError(
            f"activations and contexts are both [N, D], but have shapes {a.shape} and {c.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(a) & np.isfinite(c)).all(1))
    if len(bad):
        raise ExploreError(f"activations or contexts of rows {', '.join(map(str, bad[:10]))} are not finite")
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= a.shape[1]:
        raise ExploreError(f"k is a number of directions, 1 … {a.shape[1]}, not {k!r}")
    cross = a.T @ c / len(a)
    _, vectors = np.linalg.eigh(cross + cross.T)
    found = vectors[:, ::-1][:, :k]
    return found * np.sign(found[np.abs(found).argmax(0), np.arange(k)])
