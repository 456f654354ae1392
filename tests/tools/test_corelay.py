"""The real CoRelAy works on what is written for it, and finds the same clusters; what it finds comes back."""

import numpy as np
import pytest
from helpers import planted_strategies, store_of

from lrpjax import exchange, explore

pytest.importorskip("corelay")
# It imports UMAP where that is installed, which misses TensorFlow aloud; here that warning is let go, once.
pytest.importorskip("corelay.processor.embedding")
h5py = pytest.importorskip("h5py")
adjusted_rand_score = pytest.importorskip("sklearn.metrics").adjusted_rand_score
NEIGHBOURS = 8


def pipeline(clusters):
    """SpRAy as CoRelAy's documentation writes it, for attributions [n, C, H, W]."""
    from corelay.pipeline.spectral import SpectralClustering
    from corelay.processor.affinity import SparseKNN
    from corelay.processor.clustering import KMeans
    from corelay.processor.embedding import EigenDecomposition

    summed = lambda R: R.sum(1).reshape(len(R), -1)
    return SpectralClustering(
        preprocessing=lambda R: summed(R) / summed(R).sum(1, keepdims=True),
        affinity=SparseKNN(n_neighbors=NEIGHBOURS, symmetric=True),
        embedding=EigenDecomposition(n_eigval=clusters, is_output=True),
        clustering=KMeans(n_clusters=clusters, is_output=True, kwargs={"random_state": 0, "n_init": 10}),
    )


def analysed(folder):
    """CoRelAy's analysis of each class of attribution.h5, written in its layout."""
    with h5py.File(folder / "attribution.h5") as read, h5py.File(folder / "theirs.h5", "w") as written:
        classes = read["label"][:]
        for group in np.unique(classes):
            (index,) = np.nonzero(classes == group)
            (eigenvalues, embedding), labels = pipeline(2)(read["attribution"][index, :])
            place = written.create_group(f"{group:08d}")
            place["index"] = index.astype(np.uint32)
            place["embedding/spectral"] = embedding.astype(np.float32)
            place["embedding/spectral"].attrs["eigenvalue"] = eigenvalues.astype(np.float32)
            place["cluster/kmeans-02"] = labels
            place["cluster/kmeans-02"].attrs["embedding"] = "spectral"
            place["cluster/kmeans-02"].attrs["k"] = 2
            place["cluster/kmeans-02"].attrs["index"] = np.arange(2, dtype=np.uint32)
    return folder / "theirs.h5"


def test_it_finds_the_clusters_that_explore_finds(tmp_path):
    R, classes, strategies = planted_strategies(sizes=((40, 16), (30, 20)))
    store = store_of(tmp_path / "store", R.astype(np.float32))
    ours = explore.spectral_analysis(
        store, groups=classes, clusters=2, neighbours=NEIGHBOURS, layout="spectral", progress=False
    )
    theirs = exchange.from_corelay(analysed(exchange.to_corelay(tmp_path / "out", store, classes)), store)
    np.testing.assert_array_equal(theirs.rows, np.arange(len(R)))
    np.testing.assert_array_equal(theirs.groups, classes)
    assert adjusted_rand_score(strategies, theirs.labels) == 1
    assert adjusted_rand_score(ours.labels, theirs.labels) == 1
    # The clusters are the same ones, so everything that is measured of them agrees: also with our own findings.
    mine = {frozenset(c.rows.tolist()): c for c in ours.clusters}
    assert len(theirs.clusters) == len(mine) == 4
    for cluster in theirs.clusters:
        same = mine[frozenset(cluster.rows.tolist())]
        np.testing.assert_array_equal(cluster.prototypes, same.prototypes)
        assert cluster.unlike == pytest.approx(same.unlike, abs=1e-12)
    # Two strategies far from each other: the graph of a class falls into two parts.
    for values in theirs.eigenvalues.values():
        np.testing.assert_allclose(values, 0, atol=1e-5)
    file = theirs.save(tmp_path / "findings.npz")
    np.testing.assert_array_equal(explore.load(file).labels, theirs.labels)


def test_noise_stays_noise(tmp_path):
    from corelay.processor.clustering import DBSCAN

    R, classes, _ = planted_strategies()
    folder = exchange.to_corelay(tmp_path / "out", R, classes * 0)
    vectors = explore.pooled(R)
    vectors[:3] = np.random.default_rng(0).normal(size=(3, vectors.shape[1])) * 50
    labels = DBSCAN(eps=5.0)(vectors)
    assert set(labels[:3]) == {-1}
    with h5py.File(folder / "theirs.h5", "w") as file:
        file["00000000/index"] = np.arange(len(R), dtype=np.uint32)
        file["00000000/embedding/spectral"] = vectors[:, :2].astype(np.float32)
        file["00000000/cluster/dbscan"] = labels
    found = exchange.from_corelay(folder / "theirs.h5", R)
    np.testing.assert_array_equal(found.labels == -1, labels == -1)
    assert sum(len(c) for c in found.clusters) == (labels >= 0).sum()
