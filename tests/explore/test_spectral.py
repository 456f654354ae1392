"""Spectral relevance analysis: planted strategies are found, by steps that agree with slow ones and with scikit-learn's."""

import jax
import numpy as np
import pytest
from helpers import planted_strategies as planted
from helpers import store_of as stored
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsTransformer, NearestNeighbors

from lrpjax import explore
from lrpjax.explore import ExploreError, graphs, vectors


def run(source, **keywords):
    return explore.spectral_analysis(source, **{"layout": "spectral", "progress": False, **keywords})


# ------------------------------------------------------------------------------------------------------------ the finding


def test_planted_strategies_are_found_and_the_odd_one_comes_first():
    R, classes, strategies = planted()
    found = run(R, groups=classes)
    assert adjusted_rand_score(strategies, found.labels) == 1.0
    assert [len(c) for c in found.clusters] == [12, 40, 50]  # the class that is of one kind last
    odd = found.clusters[0]
    assert set(odd.rows) == set(np.flatnonzero(strategies == 1)) and odd.group == 0
    assert found.clusters[-1].unlike == pytest.approx(0.0, abs=1e-12)
    assert len(odd.prototypes) == len(odd.outliers) == 8
    assert odd.prototypes[0] == odd.rows[0] and odd.outliers[0] == odd.rows[-1]


def test_every_row_is_in_one_cluster_and_rows_are_ordered_by_their_distance_to_the_mean():
    R, classes, _ = planted(1)
    found = run(R, groups=classes)
    assert sorted(np.concatenate([c.rows for c in found.clusters])) == list(range(len(R)))
    v = explore.pooled(R)
    v = v / np.abs(v).sum(1, keepdims=True)
    for c in found.clusters:
        assert (found.labels[c.rows] == c.number).all() and (found.groups[c.rows] == c.group).all()
        distances = np.linalg.norm(v[c.rows] - v[c.rows].mean(0), axis=1)
        assert (np.diff(distances) >= -1e-7).all()


def test_unlike_by_hand():
    """Two strategies of 30 and 10 rows without noise: means (1, 0) and (0, 1), the class's (¾, ¼)."""
    R = np.repeat(np.eye(2), [30, 10], axis=0) * np.arange(1.0, 41.0)[:, None]
    small, large = run(R, groups=None, clusters=2).clusters
    # |0 − ¾| + |1 − ¼| over 1 + 1; |1 − ¾| + |0 − ¼| over 2
    assert (small.unlike, large.unlike) == pytest.approx((0.75, 0.25), abs=1e-6)


def test_the_outlier_score_is_the_mean_distance_to_neighbours_over_its_median():
    values = np.random.default_rng(2).normal(size=(40, 5))
    found = run(values, groups=None, neighbours=3, normalise=None)
    values = values.astype(np.float32)
    d = np.linalg.norm(values[:, None] - values[None], axis=-1)
    mean = np.sort(d, axis=1)[:, 1:4].mean(1)
    np.testing.assert_allclose(found.outlier, mean / np.median(mean), rtol=1e-4)
    far = values.copy()
    far[7] += 100
    assert run(far, groups=None, neighbours=3, normalise=None).outlier.argmax() == 7


def test_the_same_seed_gives_the_same_findings_and_parts_do_not_matter(tmp_path, monkeypatch):
    R, classes, _ = planted(3)
    found = run(R.astype(np.float32), groups=classes, layout="tsne")
    monkeypatch.setattr(vectors, "PART_BYTES", 5000)
    again = run(stored(tmp_path / "s", R.astype(np.float32)), groups=classes, layout="tsne")
    np.testing.assert_array_equal(found.labels, again.labels)
    np.testing.assert_array_equal(found.position, again.position)
    np.testing.assert_array_equal(found.outlier, again.outlier)
    assert np.abs(found.position).max() == pytest.approx(1.0)


def test_processes_give_what_one_gives():
    R, classes, _ = planted(4)
    one, two = run(R, groups=classes), run(R, groups=classes, jobs=2)
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.position, two.position)


def test_estimators_of_scikit_learn_take_the_place_of_numbers():
    R, classes, strategies = planted(5)
    neighbours = KNeighborsTransformer(n_neighbors=8, mode="distance")
    found = run(
        R, groups=classes, neighbours=neighbours, clusters=KMeans(2, n_init=3, random_state=0), most=2
    )
    mine = classes == 0
    assert adjusted_rand_score(strategies[mine], found.labels[mine]) == 1.0
    assert found.settings["clusters"].startswith("KMeans") and len(found.clusters) == 4


# ------------------------------------------------------------------------------------------------------------- its steps


def test_the_graph_and_its_spectrum_against_loops():
    values = np.random.default_rng(6).normal(size=(30, 4))
    k, n = 4, 30
    d = np.linalg.norm(values[:, None] - values[None], axis=-1)
    A = np.zeros((n, n))
    for i in range(n):
        for j in [j for j in np.argsort(d[i]) if j != i][:k]:
            A[i, j] = A[j, i] = 1
    affinity = graphs.symmetric(graphs.neighbourhood(values, k, 0))
    np.testing.assert_array_equal(affinity.toarray(), A)
    degree = A.sum(1)
    L = np.eye(n) - A / np.sqrt(degree[:, None] * degree[None])
    found, eigenvectors = graphs.smallest_eigenvectors(affinity, 5, 0)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(L)[:5], atol=1e-12)
    np.testing.assert_allclose(L @ eigenvectors, eigenvectors * found, atol=1e-10)


def test_the_sparse_solver_agrees_with_the_dense_one(monkeypatch):
    """Also where an eigenvalue is there several times: three parts that hang together by nothing."""
    rng = np.random.default_rng(7)
    values = np.concatenate([rng.normal(size=(60, 3)) + 100 * i for i in range(3)])
    affinity = graphs.symmetric(graphs.neighbourhood(values, 6, 0))
    dense, _ = graphs.smallest_eigenvectors(affinity, 6, 0)
    monkeypatch.setattr(graphs, "DENSE", 10)
    sparse, eigenvectors = graphs.smallest_eigenvectors(affinity, 6, 0)
    np.testing.assert_allclose(sparse, dense, atol=1e-9)
    np.testing.assert_allclose(eigenvectors.T @ eigenvectors, np.eye(6), atol=1e-9)
    assert (dense[:3] < 1e-12).all() and explore.eigengap(dense) == 3


def test_equal_rows_are_neighbours():
    """Their distance is 0, which a sparse matrix might drop."""
    values = np.repeat(np.eye(2), 10, axis=0)
    affinity = graphs.symmetric(graphs.neighbourhood(values, 3, 0)).toarray()
    assert (affinity.sum(1) >= 3).all() and affinity[:10, 10:].sum() == 0 and np.trace(affinity) == 0


def test_neighbours_are_those_of_scikit_learn():
    values = np.random.default_rng(8).normal(size=(50, 6))
    ours = graphs.neighbourhood(values, 5, 0)
    _, index = NearestNeighbors(n_neighbors=5).fit(values).kneighbors()
    for row in range(50):
        np.testing.assert_array_equal(np.sort(ours[row].indices), np.sort(index[row]))


@pytest.mark.parametrize("shape", [(3, 20, 13, 2), (3, 5, 7), (3, 30)])
def test_pooling_keeps_the_sums(shape):
    R = np.random.default_rng(9).normal(size=shape)
    found = explore.pooled(R, pool=4)
    assert found.shape[1] == (30 if len(shape) == 2 else 16)
    np.testing.assert_allclose(found.sum(1), R.reshape(3, -1).sum(1), rtol=1e-12)


def test_cells_are_as_equal_as_they_can_be():
    found = explore.pooled(np.ones((1, 10, 1)), pool=4)
    np.testing.assert_array_equal(found, [[2, 3, 2, 3]])


def test_functions_pool():
    R, classes, strategies = planted(10)
    found = run(R, groups=classes, pool=lambda R: R[:, :6].sum((2, 3)), clusters=2)
    mine = (classes == 0) & np.isin(np.arange(len(R)), found.rows)
    labels = found.labels[np.isin(found.rows, np.flatnonzero(mine))]
    assert adjusted_rand_score(strategies[mine], labels) == 1.0
    with pytest.raises(ExploreError, match=r"shape \(5, 12\) for 102 rows; it must be \[102, d\]"):
        run(R, groups=classes, pool=lambda R: R[:5].sum((2, 3)))


# ------------------------------------------------------------------------------------------------------ what may go wrong


def test_a_store_by_its_predictions(tmp_path):
    R, classes, strategies = planted(11)
    output = np.eye(2)[classes] + 0.1
    found = run(stored(tmp_path / "s", R, output, {"model": "net", "composite": "epsilon"}))
    assert adjusted_rand_score(strategies, found.labels) == 1.0
    np.testing.assert_array_equal(found.groups, classes)
    assert found.settings["store"]["composite"] == "epsilon"
    np.testing.assert_array_equal(run(tmp_path / "s", rows=slice(10, 60)).rows, np.arange(10, 60))


def test_rows_that_cannot_be_explored_are_named(tmp_path):
    R, classes, _ = planted(12)
    R[3, 0, 0, 0], R[5], R[8] = np.nan, 0.0, np.inf
    output = np.eye(2)[classes]
    output[9] = np.nan
    found = run(stored(tmp_path / "s", R, output))
    assert {k: list(v) for k, v in found.skipped.items()} == {
        "not finite": [3, 8],
        "without any relevance": [5],
        "without a finite output": [9],
    }
    assert not set(found.rows) & {3, 5, 8, 9} and "2 rows, not finite" in str(found)
    with pytest.raises(ExploreError, match="none of the 4 rows can be explored: 4 are not finite"):
        run(np.full((4, 3), np.nan), groups=None)


def test_small_classes_are_not_divided_and_a_number_of_clusters_that_they_lack_is_an_error():
    R, classes, _ = planted(13, ((40,), (20,)))
    classes[0], classes[1:6] = 7, 8
    found = run(R, groups=classes)
    assert (found.labels[:6] == -1).all() and (found.outlier[:6] == 1).all()
    assert {c.group for c in found.clusters} == {0, 1} and set(found.eigenvalues) == {0, 1}
    with pytest.raises(ExploreError, match=r"class 7 has 1; class 8 has 5\. Ask for fewer"):
        run(R, groups=classes, clusters=5)


def test_a_store_that_is_being_written(tmp_path):
    R, classes, _ = planted(14)
    store = stored(tmp_path / "s", R, np.eye(2)[classes], finish=False)
    with pytest.raises(ExploreError, match="still being written, or its run was ended: 102 rows"):
        run(store)
    assert len(run(store, partial=True).rows) == len(R)


def test_several_stores_made_alike_and_not(tmp_path):
    R, classes, strategies = planted(15)
    output = np.eye(2)[classes]
    first = stored(tmp_path / "a", R[:48], output[:48])
    stored(tmp_path / "b", R[48:], output[48:])
    found = run([first, tmp_path / "b"])
    assert adjusted_rand_score(strategies, found.labels) == 1.0 and len(found.rows) == 102
    np.testing.assert_array_equal(found.labels, run(R, groups=classes).labels)
    other = stored(tmp_path / "c", R[48:], output[48:], {"model": "another"})
    with pytest.raises(ExploreError, match="not made alike: model differ"):
        run([first, other])
    with pytest.raises(ExploreError, match="shape of relevance differ"):
        run([first, stored(tmp_path / "d", R[48:, :6], output[48:])])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"groups": "class"}, "groups must be"),
        ({"groups": np.zeros(3, int)}, r"groups have int64\[3\], not one class number for each of 102"),
        ({"groups": np.zeros(102)}, "groups have float64"),
        ({"groups": "prediction"}, 'no array "output"'),
        ({"normalise": "sum"}, "normalise must be one of"),
        ({"clusters": 0}, "clusters must be 1 or more"),
        ({"clusters": "many"}, "clusters is a number"),
        ({"neighbours": "few"}, "neighbours is a number"),
        ({"layout": "pca"}, "layout must be one of tsne, umap, spectral"),
        ({"rows": [5, 200]}, "rows 5 to 200 are asked for, but there are 102"),
        ({"rows": slice(200, 300)}, "there are no rows"),
        ({"rows": [0.5]}, "rows are a slice"),
        ({"pool": 0}, "pool must be 1 or more"),
    ],
)
def test_arguments_that_do_not_fit(keywords, message):
    R, _, _ = planted(16)
    with pytest.raises(ExploreError, match=message):
        run(R, **{"groups": None, **keywords})


def test_no_array_of_that_name_or_shape(tmp_path):
    R, _, _ = planted(17)
    with pytest.raises(ExploreError, match="has the arrays relevance, not 'heatmap'"):
        run(stored(tmp_path / "s", R), name="heatmap")
    with pytest.raises(ExploreError, match="no pictures"):
        run(R[..., None, None], groups=None)
    with pytest.raises(ExploreError, match=r"this has shape \(3,\)"):
        run(np.ones(3), groups=None)
    with pytest.raises(ExploreError, match="has no rows yet"):
        run(stored(tmp_path / "empty", R[:0], finish=False), partial=True)


def test_findings_come_back_from_their_file(tmp_path):
    R, classes, _ = planted(18)
    R[3] = np.nan
    found = run(R, groups=classes)
    again = explore.load(found.save(tmp_path / "f.npz"))
    for name in ("rows", "groups", "labels", "position", "outlier"):
        np.testing.assert_array_equal(getattr(found, name), getattr(again, name))
    assert again.settings == found.settings and str(again) == str(found)
    for one, two in zip(found.clusters, again.clusters, strict=True):
        assert (one.number, one.group, one.unlike) == (two.number, two.group, two.unlike)
        for part in ("rows", "prototypes", "outliers"):
            np.testing.assert_array_equal(getattr(one, part), getattr(two, part))
    for group, values in found.eigenvalues.items():
        np.testing.assert_array_equal(values, again.eigenvalues[group])
    assert list(tmp_path.iterdir()) == [tmp_path / "f.npz"]
    assert "<table" in found._repr_html_() and found.cluster(0).number == 0
    with pytest.raises(ExploreError, match="there is no cluster 99; there are: 0, 1"):
        found.cluster(99)


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_files_that_hold_no_findings(tmp_path, content):
    file = tmp_path / "f.npz"
    if content is None:
        np.savez(file, a=np.ones(3))
    else:
        file.write_bytes(content)
    with pytest.raises(ExploreError, match="holds no findings, or is damaged"):
        explore.load(file)


def test_findings_are_kept_in_npz_files(tmp_path):
    found = run(planted(19)[0], groups=None)
    with pytest.raises(ExploreError, match=r"kept in a \.npz file"):
        found.save(tmp_path / "f.json")
    with pytest.raises(ExploreError, match="cannot be written"):
        found.save(tmp_path / "nowhere" / "f.npz")


def test_arrays_of_jax_are_explored_too():
    R, classes, strategies = planted(20)
    found = run(jax.numpy.asarray(R), groups=jax.numpy.asarray(classes))
    assert adjusted_rand_score(strategies, found.labels) == 1.0
