"""Neighbourhood graphs of vectors, and what their spectrum says: how many clusters there are, and which."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrpjax.explore.findings import ExploreError

__all__ = ["eigengap", "neighbourhood", "smallest_eigenvectors", "symmetric"]

EXACT = 20_000
"""Up to so many rows the neighbours are looked for one by one, where nobody says how."""

DENSE = 200


def sklearn() -> Any:
    """scikit-learn, or an error that says where it comes from."""
    try:
        import sklearn
    except ImportError as error:
        raise ImportError('exploring needs scikit-learn: pip install "lrpjax[explore]"') from error
    return sklearn


def approximate(rows: int) -> bool:
    """Whether the neighbours among so many rows are looked for by pynndescent, where nobody says how."""
    return rows > EXACT and importlib.util.find_spec("pynndescent") is not None


def neighbourhood(values: NDArray, neighbours: Any, seed: int) -> Any:
    """The distances to each row's nearest neighbours, as a sparse matrix [n, n] with an entry for each neighbour.

    Distances are Euclidean. scikit-learn's exact search goes through the rows in parts, so that memory does not grow
    with n²; above `EXACT` rows pynndescent's approximate one takes its place if it is installed.
    """
    sklearn()
    import scipy.sparse
    from sklearn.base import clone
    from sklearn.neighbors import KNeighborsTransformer

    if not isinstance(neighbours, int):
        search = clone(neighbours)
    elif approximate(len(values)):
        from pynndescent import PyNNDescentTransformer  # pyright: ignore[reportMissingImports]

        search = PyNNDescentTransformer(n_neighbors=neighbours, random_state=seed)
    else:
        search = KNeighborsTransformer(mode="distance", n_neighbors=neighbours, algorithm="brute")
    # A row's distance to itself is among what they give, and not always exactly 0.
    found = search.fit_transform(values).tocoo()
    others = found.row != found.col
    pairs = (found.row[others], found.col[others])
    return scipy.sparse.csr_matrix((found.data[others], pairs), shape=found.shape)


def symmetric(distances: Any) -> Any:
    """The graph of who is whose neighbour: A_ij = 1 where i is among j's nearest, or j among i's; else 0.

    Ties between equal rows have distance 0, and are neighbours nevertheless.
    """
    affinity = distances.tocsr(copy=True)
    affinity.data = np.ones_like(affinity.data, dtype=np.float64)
    return affinity.maximum(affinity.T).tocsr()


def smallest_eigenvectors(affinity: Any, count: int, seed: int) -> tuple[NDArray, NDArray]:
    """Of the normalised Laplacian L = I − D^(−1/2) A D^(−1/2): its smallest eigenvalues, and their eigenvectors.

    Args:
        affinity: symmetric sparse [n, n], not negative. count: how many, at most n.

    Returns:
        Eigenvalues [count], ascending, between 0 and 2, and eigenvectors [n, count] of length 1, each with its largest
        entry positive.
    """
    import scipy.sparse
    from scipy.sparse import csgraph
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    laplacian = csgraph.laplacian(affinity, normed=True)
    n = affinity.shape[0]
    if n <= DENSE or count >= n - 1:
        values, vectors = np.linalg.eigh(laplacian.toarray())
        values, vectors = values[:count], vectors[:, :count]
    else:
        # The largest of 2 I − L are found without solving systems, which a graph's matrix would fill up.
        start = np.random.default_rng(seed).uniform(-1.0, 1.0, n)
        try:
            values, vectors = eigsh(2.0 * scipy.sparse.identity(n) - laplacian, count, which="LA", v0=start)
        except ArpackNoConvergence as error:
            raise ExploreError(
                f"the spectrum of a graph of {n} rows did not converge; ask for fewer clusters (most=), or for more "
                "neighbours"
            ) from error
        order = np.argsort(-values, kind="stable")
        values, vectors = 2.0 - values[order], vectors[:, order]
    signs = np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return np.clip(values, 0.0, 2.0), vectors * signs


def eigengap(eigenvalues: NDArray) -> int:
    """How many clusters a graph has, by the largest step between its smallest eigenvalues: argmax_k λ_{k+1} − λ_k
    (von Luxburg 2007, "A tutorial on spectral clustering", section 8.3).

    Args:
        eigenvalues: [m], ascending, of the normalised Laplacian.

    Returns:
        k, from 1 to m − 1.

    Example:
        >>> import numpy as np
        >>> from lrpjax import explore
        >>> explore.eigengap(np.array([0.0, 0.01, 0.3, 0.35]))
        2
    """
    return int(np.diff(eigenvalues).argmax()) + 1
