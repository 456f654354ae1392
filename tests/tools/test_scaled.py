"""Exploring with what takes over where data sets are large: dask's workers, pynndescent's neighbours, UMAP, dask-ml's estimators."""

import joblib
import numpy as np
import pytest
from helpers import planted_strategies
from sklearn.metrics import adjusted_rand_score

from lrpjax import explore
from lrpjax.explore import graphs


def run(R, classes, **keywords):
    return explore.spectral_analysis(
        R, groups=classes, **{"layout": "spectral", "progress": False, **keywords}
    )


def test_workers_of_dask_find_what_one_process_finds():
    distributed = pytest.importorskip("distributed")
    R, classes, strategies = planted_strategies(60)
    alone = run(R, classes)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config(backend="dask"),
    ):
        together = run(R, classes)
        done = client.run(lambda dask_worker: dask_worker.state.executed_count)
    assert sum(done.values()) >= 2  # a task for each of the classes
    np.testing.assert_array_equal(alone.labels, together.labels)
    np.testing.assert_array_equal(alone.position, together.position)
    assert adjusted_rand_score(strategies, together.labels) == 1.0


def test_neighbours_of_pynndescent(monkeypatch):
    pytest.importorskip("pynndescent")
    rng = np.random.default_rng(61)
    values = (rng.normal(size=(900, 16)) + 4 * rng.integers(0, 3, (900, 1))).astype(np.float32)
    exact = graphs.neighbourhood(values, 10, 0)
    monkeypatch.setattr(graphs, "EXACT", 500)
    found = graphs.neighbourhood(values, 10, 0)
    assert found.shape == exact.shape and found.diagonal().sum() == 0
    shared = np.mean([len(set(exact[i].indices) & set(found[i].indices)) / 10 for i in range(900)])
    assert shared > 0.95, shared
    classes = np.zeros(900, int)
    assert run(values, classes, normalise=None).settings["approximate"] is True
    np.testing.assert_array_equal(found.toarray(), graphs.neighbourhood(values, 10, 0).toarray())


def test_layout_by_umap():
    pytest.importorskip("umap")
    R, classes, _ = planted_strategies(62)
    found = run(R, classes, layout="umap")
    assert np.isfinite(found.position).all() and np.abs(found.position).max() <= 1 + 1e-9
    assert np.ptp(found.position[classes == 0], axis=0).min() > 0.1
