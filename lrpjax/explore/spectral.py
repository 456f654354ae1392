"""Spectral relevance analysis: which strategies a model has, from the explanations of a whole data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax._version import __version__
from lrpjax.data.store import Store
from lrpjax.explore import graphs, threads, vectors
from lrpjax.explore.findings import Cluster, ExploreError, Findings

__all__ = ["spectral_analysis"]

SMALLEST = 8
"""Groups of fewer rows are not divided where the number of clusters is to be found."""

LAYOUTS = ("tsne", "umap", "spectral")


def spectral_analysis(
    source: Store | str | os.PathLike[str] | Sequence[Store] | ArrayLike,
    *,
    name: str = "relevance",
    groups: Literal["prediction"] | ArrayLike | None = "prediction",
    rows: slice | ArrayLike | None = None,
    pool: int | Callable[[NDArray], NDArray] | None = 16,
    normalise: Literal["l1", "l2", "max"] | None = "l1",
    neighbours: Any = 10,
    clusters: Any = "auto",
    most: int = 8,
    layout: Literal["tsne", "umap", "spectral"] = "tsne",
    prototypes: int = 8,
    outliers: int = 8,
    jobs: int | None = None,
    partial: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> Findings:
    """Clusters the explanations of each class, and ranks the clusters by how unlike their class they are.

    Spectral relevance analysis, SpRAy (Lapuschkin et al. 2019, "Unmasking Clever Hans predictors and assessing what
    machines really learn", Nature Communications 10): the relevances of a class are pooled and normalised; each is
    joined to its nearest neighbours, A = max(A, Aᵀ); the smallest eigenvalues of the graph's normalised Laplacian tell
    how many clusters there are (`explore.eigengap`), and k-means on its eigenvectors, whose rows are divided by their
    length (Ng et al. 2002), which. A cluster's score is the share of its mean explanation that its class's has not:

        unlike = ‖m_cluster − m_class‖₁ / (‖m_cluster‖₁ + ‖m_class‖₁),

    0 where both are the same and 1 where no place is relevant, with one sign, to both (own measure). A small cluster
    that looks elsewhere than the rest, such as at a watermark, comes first.

    Args:
        source: a store, its directory, or several stores that were made alike, whose rows count on; or relevances
            [N, ...].
        name: the array of the store that is explored: relevances of the input, or of the concepts of a layer.
        groups: what is explored apart: "prediction", the rows of each class that was predicted; a class number for each
            row of the source; None, all together.
        rows: the rows that are explored, a slice or their numbers; None: all.
        pool, normalise: how an explanation becomes a vector: see `explore.pooled`; then it is divided by Σ|v| ("l1"),
            ‖v‖ ("l2"), max|v| ("max"), or by nothing (None).
        neighbours: how many neighbours each row is joined to, at most half of the others; or a transformer of
            scikit-learn's interface that gives a sparse graph of distances (`KNeighborsTransformer`,
            `pynndescent.PyNNDescentTransformer`). With a number, groups of more than 20,000 rows are searched by
            pynndescent where that is installed, else exactly.
        clusters: how many in each group; "auto": by the eigengap, 1 to `most`; or an estimator of scikit-learn's
            interface with `fit_predict` (HDBSCAN, one of dask-ml), which is given the first `most` eigenvectors.
        most: the largest number of clusters that "auto" finds.
        layout: where a drawing puts the rows: "tsne" (scikit-learn) or "umap" (umap-learn) of the first `most`
            eigenvectors, or "spectral", the second and third of them, at no cost.
        prototypes, outliers: how many of each are named for a cluster: the rows nearest to its mean, and farthest.
        jobs: how many groups at a time, as joblib counts; None: what `joblib.parallel_config` says. Under
            `joblib.parallel_config(backend="dask")` (or ray's) the groups are analysed on its workers.
        partial: also explore a store that is not complete.
        seed: of everything random. The same seed gives the same findings on one machine.
        progress: show a bar while the store is read.

    Returns:
        `Findings`, whose settings say whether neighbours were approximate. Rows with NaN or infinities, and rows that
        are 0 everywhere, are in its `skipped`. A group of fewer than 8 rows is not divided ("auto"): its rows have the
        label −1.

    Raises:
        ExploreError: the source does not have these rows, is not complete, or its stores were not made alike; a group
            has no more rows than there are to be clusters; arguments out of range.
        ImportError: scikit-learn, or umap-learn for "umap", is not installed.

    Example:
        >>> import numpy as np
        >>> from lrpjax import explore
        >>> R = np.zeros((60, 8, 8))
        >>> R[:48, 2:6, 2:6] = np.random.default_rng(0).uniform(1, 2, (48, 4, 4))  # most look at the middle
        >>> R[48:, 0, 7] = np.random.default_rng(1).uniform(1, 2, 12)  # some at a corner
        >>> found = explore.spectral_analysis(R, groups=None, layout="spectral", progress=False)
        >>> odd = found.clusters[0]
        >>> len(odd), sorted(odd.rows.tolist())[:3], round(odd.unlike, 2)
        (12, [48, 49, 50], 0.8)
    """
    _check(neighbours, clusters, most, layout, prototypes, outliers)
    graphs.sklearn()
    origin = vectors.source_of(source, name, partial)
    asked = vectors.chosen_rows(origin, rows)
    if len(asked) == 0:
        raise ExploreError("there are no rows to explore")
    group_of_row, lost = vectors.groups_of(origin, asked, groups)
    found = vectors.vectors(origin, name, asked[~lost], pool, normalise, progress)
    if lost.any():
        found.skipped["without a finite output"] = asked[lost]
    if len(found.rows) == 0:
        reasons = ", ".join(f"{len(rows)} are {reason}" for reason, rows in found.skipped.items())
        raise ExploreError(f"none of the {len(asked)} rows can be explored: {reasons}")
    group_of = group_of_row[np.searchsorted(asked, found.rows)]
    numbers = np.unique(group_of)
    members = [np.flatnonzero(group_of == group) for group in numbers]
    if isinstance(clusters, int):
        few = [f"class {g} has {len(m)}" for g, m in zip(numbers, members, strict=True) if len(m) <= clusters]
        if few:
            raise ExploreError(
                f"{clusters} clusters need more rows than that in each group, but {'; '.join(few)}. Ask for fewer, "
                'for "auto", which does not divide small groups, or leave these rows out (rows=)'
            )

    from joblib import Parallel, delayed

    analysed = Parallel(n_jobs=jobs)(
        delayed(_analysed)(found.values[m], neighbours, clusters, most, layout, seed) for m in members
    )
    settings = {
        "name": name,
        "pool": _said(pool),
        "normalise": normalise,
        "neighbours": _said(neighbours),
        "approximate": isinstance(neighbours, int) and any(graphs.approximate(len(m)) for m in members),
        "clusters": _said(clusters),
        "most": most,
        "layout": layout,
        "seed": seed,
        "groups": groups if groups is None or isinstance(groups, str) else "given",
        "lrpjax": __version__,
        "store": dict(origin.settings),
    }
    return joined(found, group_of, numbers, members, analysed, prototypes, outliers, settings)


def _check(neighbours: Any, clusters: Any, most: int, layout: str, prototypes: int, outliers: int) -> None:
    numbers = {"most": most, "prototypes": prototypes, "outliers": outliers}
    numbers |= {"neighbours": neighbours} if isinstance(neighbours, int) else {}
    numbers |= {"clusters": clusters} if isinstance(clusters, int) else {}
    for what, number in numbers.items():
        if number < 1:
            raise ExploreError(f"{what} must be 1 or more, not {number}")
    if not isinstance(neighbours, int) and not hasattr(neighbours, "fit_transform"):
        raise ExploreError(f"neighbours is a number, or an object with fit_transform, not {neighbours!r}")
    if clusters != "auto" and not isinstance(clusters, int) and not hasattr(clusters, "fit_predict"):
        raise ExploreError(f'clusters is a number, "auto", or an object with fit_predict, not {clusters!r}')
    if layout not in LAYOUTS:
        raise ExploreError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")


def _said(argument: Any) -> Any:
    """An argument as JSON has it."""
    if argument is None or isinstance(argument, (int, str)):
        return argument
    return getattr(argument, "__name__", None) or str(argument)


class Group(NamedTuple):
    """What was found in one group: labels [n] from 0 on, or −1; position [n, 2]; outlier [n]; eigenvalues or None."""

    labels: NDArray[np.int64]
    position: NDArray[np.float64]
    outlier: NDArray[np.float64]
    eigenvalues: NDArray[np.float64] | None


def _analysed(values: NDArray, neighbours: Any, clusters: Any, most: int, layout: str, seed: int) -> Group:
    """One group's clusters; a function of its own, so that it can run in another process."""
    with threads.enough_for(len(values)):
        return _clustered(values, neighbours, clusters, most, layout, seed)


def _clustered(values: NDArray, neighbours: Any, clusters: Any, most: int, layout: str, seed: int) -> Group:
    n = len(values)
    if n < (3 if isinstance(clusters, int) else SMALLEST):
        alone = 0 if isinstance(clusters, int) else -1
        return Group(np.full(n, alone), np.zeros((n, 2)), np.ones(n), None)
    if isinstance(neighbours, int):
        neighbours = max(1, min(neighbours, (n - 1) // 2))
    distances = graphs.neighbourhood(values, neighbours, seed)
    count = min(n, max(most, clusters if isinstance(clusters, int) else 0, 3) + 1)
    eigenvalues, eigenvectors = graphs.smallest_eigenvectors(graphs.symmetric(distances), count, seed)
    if isinstance(clusters, str):
        clusters = graphs.eigengap(eigenvalues[: most + 1])
    if isinstance(clusters, int):
        labels = _k_means(eigenvectors[:, :clusters], clusters, seed)
    else:
        from sklearn.base import clone

        labels = np.asarray(clone(clusters).fit_predict(eigenvectors[:, :most])).astype(np.int64)
    return Group(labels, _position(eigenvectors, layout, seed), far_off(distances), eigenvalues)


def _k_means(eigenvectors: NDArray, clusters: int, seed: int) -> NDArray[np.int64]:
    if clusters == 1:
        return np.zeros(len(eigenvectors), np.int64)
    from sklearn.cluster import KMeans

    length = np.linalg.norm(eigenvectors, axis=1, keepdims=True)
    directions = eigenvectors / np.where(length > 0, length, 1.0)
    return KMeans(clusters, n_init=10, random_state=seed).fit_predict(directions).astype(np.int64)


def _position(eigenvectors: NDArray, layout: str, seed: int) -> NDArray[np.float64]:
    """Places in the plane, within [−1, 1]."""
    n = len(eigenvectors)
    if layout == "spectral":
        places = eigenvectors[:, 1:3]
    elif layout == "tsne":
        from sklearn.manifold import TSNE

        # The length of an eigenvector is 1 over all rows: what t-SNE begins with is to be of the size of its distances.
        scaled = eigenvectors[:, 1:] * np.sqrt(n)
        places = TSNE(perplexity=min(30.0, (n - 1) / 3), init="pca", random_state=seed).fit_transform(scaled)
    else:
        try:
            from umap import UMAP  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError('layout="umap" needs umap-learn: pip install "lrpjax[umap]"') from error
        scaled = eigenvectors[:, 1:] * np.sqrt(n)
        places = UMAP(n_neighbors=min(15, n - 1), random_state=seed, n_jobs=1).fit_transform(scaled)
    places = np.asarray(places, np.float64)
    middle = (places.max(0) + places.min(0)) / 2
    half = (places.max(0) - places.min(0)).max() / 2
    return (places - middle) / (half if half > 0 else 1.0)


def far_off(distances: Any) -> NDArray[np.float64]:
    """The mean distance to the neighbours, as a multiple of its median over the group."""
    distances = distances.tocsr()
    counts = np.maximum(np.diff(distances.indptr), 1)
    mean = np.asarray(distances.sum(1)).reshape(-1).astype(np.float64) / counts
    usual = np.median(mean)
    if usual == 0:  # more than half of the rows are alike
        usual = mean.mean()
    return mean / usual if usual > 0 else np.ones(len(mean))


def joined(
    found: vectors.Vectors,
    group_of: NDArray[np.int64],
    numbers: NDArray[np.int64],
    members: Sequence[NDArray[np.int64]],
    analysed: Sequence[Group],
    prototypes: int,
    outliers: int,
    settings: dict[str, Any],
) -> Findings:
    labels = np.full(len(found.rows), -1, np.int64)
    position, outlier = np.zeros((len(found.rows), 2)), np.ones(len(found.rows))
    clusters: list[Cluster] = []
    for group, mine, result in zip(numbers, members, analysed, strict=True):
        position[mine], outlier[mine] = result.position, result.outlier
        of_class = found.values[mine].mean(0, dtype=np.float64)
        for label in np.unique(result.labels[result.labels >= 0]):
            chosen = mine[result.labels == label]
            values = found.values[chosen]
            mean = values.mean(0, dtype=np.float64)
            ordered = chosen[np.argsort(np.linalg.norm(values - mean, axis=1), kind="stable")]
            size = np.abs(mean).sum() + np.abs(of_class).sum()
            unlike = float(np.abs(mean - of_class).sum() / size) if size > 0 else 0.0
            labels[chosen] = len(clusters)
            rows = found.rows[ordered]
            clusters.append(
                Cluster(len(clusters), int(group), rows, rows[:prototypes], rows[::-1][:outliers], unlike)
            )
    eigenvalues = {
        int(g): result.eigenvalues
        for g, result in zip(numbers, analysed, strict=True)
        if result.eigenvalues is not None
    }
    ranked = tuple(sorted(clusters, key=lambda c: (-c.unlike, c.number)))
    return Findings(
        found.rows, group_of, labels, position, outlier, ranked, eigenvalues, found.skipped, settings
    )
