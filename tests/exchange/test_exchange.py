import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import planted_strategies, store_of

import lrpjax
from lrpjax import concepts, exchange, explore

h5py = pytest.importorskip("h5py")
yaml = pytest.importorskip("yaml")


def made(folder, x):
    results = lambda x: {"relevance": x, "output": x.reshape(len(x), -1)[:, :3]}
    for _ in lrpjax.explain_batches(results, [x[:4], x[4:]], store=folder / "store", progress=False):
        pass
    rows = np.arange(6)
    place = np.zeros((6, 2))
    found = explore.Findings(rows, rows % 2, rows % 3, place, rows + 1.0, (), {0: rows * 1.0}, {}, {})
    return lrpjax.open_store(folder / "store"), found


def test_a_project_holds_what_was_given(tmp_path):
    x = np.random.default_rng(0).random((6, 8, 8, 3))
    store, found = made(tmp_path, x)
    path = exchange.to_virelay(tmp_path / "p", store, x, np.arange(6) % 3, found)
    with h5py.File(path.parent / "attribution.h5") as file:
        np.testing.assert_allclose(file["attribution"][:].sum(1), x.sum(-1), rtol=1e-6)
    with h5py.File(path.parent / "input.h5") as file:
        np.testing.assert_array_equal(file["data"][:], np.rint(255 * np.moveaxis(x, -1, 1)))
    with h5py.File(path.parent / "analysis.h5") as file:
        assert file["00000001/index"][:].tolist() == [1, 3, 5]
    assert len(json.loads((path.parent / "labels.json").read_text())) == 3


@pytest.mark.filterwarnings("ignore::lrpjax.data.batches.NonFiniteWarning")
def test_what_does_not_fit_is_an_error_and_leaves_nothing(tmp_path):
    x = np.random.default_rng(0).random((6, 8, 8, 1))
    x[2, 0, 0] = np.nan
    store, found = made(tmp_path, x)
    good, classes = np.nan_to_num(x), np.arange(6) % 3
    wrong = [
        (good[:5], classes, "6 rows"),
        (good, classes[:5], "6 rows"),
        (good * 9, classes, "floats in"),
        (good, classes, r"not finite: \[2\]"),
    ]
    for inputs, labels, message in wrong:
        with pytest.raises(exchange.ExchangeError, match=message):
            exchange.to_virelay(tmp_path / "p", store, inputs, labels, found)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_rows_explored_together_are_one_category_that_is_no_class(tmp_path):
    x = np.random.default_rng(0).random((6, 8, 8, 3))
    store, found = made(tmp_path, x)
    found = dataclasses.replace(found, groups=found.groups * 0, settings={"groups": None})
    path = exchange.to_virelay(tmp_path / "p", store, x, np.arange(6) % 3, found)
    with h5py.File(path.parent / "analysis.h5") as file:
        assert list(file) == ["all"] and file["all/index"][:].tolist() == list(range(6))


def test_what_is_missing_or_there_already_is_said(tmp_path):
    x, classes = np.random.default_rng(0).random((6, 8, 8, 3)), np.arange(6) % 3
    store, found = made(tmp_path, x)
    with pytest.raises(exchange.ExchangeError, match=r"true class of each of the 6 rows is needed"):
        exchange.to_virelay(tmp_path / "p", store, x, None, found)
    with pytest.raises(exchange.ExchangeError, match="there is a class -1"):
        exchange.to_virelay(tmp_path / "p", store, x, classes - 1, found)
    begun = store_of(tmp_path / "begun", x, x[:, 0, 0], finish=False)
    with pytest.raises(exchange.ExchangeError, match="not complete: 6 rows"):
        exchange.to_virelay(tmp_path / "p", begun, x, classes, found)
    with pytest.raises(explore.ExploreError, match="still being written"):
        exchange.to_corelay(tmp_path / "c", begun, classes, found)
    exchange.to_virelay(tmp_path / "p", begun, x, classes, found, partial=True)
    before = (tmp_path / "p" / "project.yaml").read_bytes()
    for write in (
        lambda: exchange.to_virelay(tmp_path / "p", store, x, classes, found),
        lambda: exchange.to_corelay(tmp_path / "p", store, classes, found),
    ):
        with pytest.raises(exchange.ExchangeError, match="there already"):
            write()
    assert (tmp_path / "p" / "project.yaml").read_bytes() == before
    x[4, 1, 1, 1] = np.inf
    with pytest.raises(exchange.ExchangeError, match=r"not finite: \[4\]"):
        exchange.to_corelay(tmp_path / "c", x, classes, found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begun", "p", "store"]


def test_findings_come_back_from_corelays_layout(tmp_path):
    R, classes, _ = planted_strategies()
    for groups in (classes, None):
        found = explore.spectral_analysis(R, groups=groups, layout="spectral", progress=False)
        folder = exchange.to_corelay(tmp_path / f"c{groups is None}", R, classes, found)
        again = exchange.from_corelay(folder / "analysis.h5", R)
        for name in ("rows", "groups", "labels"):
            np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
        np.testing.assert_allclose(again.position, found.position, atol=1e-7)
        np.testing.assert_allclose(again.outlier, found.outlier)
        assert [c.number for c in again.clusters] == [c.number for c in found.clusters]
        for one, other in zip(again.clusters, found.clusters, strict=True):
            np.testing.assert_array_equal(one.rows, other.rows)
            np.testing.assert_array_equal(one.outliers, other.outliers)
            assert one.unlike == other.unlike
        for group, values in found.eigenvalues.items():
            np.testing.assert_allclose(again.eigenvalues[group], values, atol=1e-7)
        assert again.settings["groups"] == (None if groups is None else "given")
    with h5py.File(folder / "attribution.h5") as file:
        np.testing.assert_allclose(file["attribution"][:], np.moveaxis(R, -1, 1), rtol=1e-6)
        np.testing.assert_array_equal(file["label"], classes)


def analysis(folder, categories=None, **parts):
    """A file in CoRelAy's layout with these parts in each category, of the rows 0 to 19 and so on."""
    with h5py.File(folder / "a.h5", "w") as file:
        for i, category in enumerate(categories or ["00000002"]):
            good = {
                "index": np.arange(20, dtype=np.uint32) + 20 * i,
                "embedding/tsne": np.arange(40.0).reshape(20, 2),
                "cluster/kmeans": np.arange(20) // 10,
            }
            for name, array in {**good, **parts}.items():
                if array is not None:
                    file[f"{category}/{name}"] = array
    return folder / "a.h5"


def test_categories_get_their_classes_and_rows_their_order(tmp_path):
    R = np.random.default_rng(0).random((40, 8, 8))
    order = np.random.default_rng(1).permutation(20)
    file = analysis(tmp_path, ["n01", "n00"], **{"embedding/tsne": np.arange(40.0).reshape(20, 2)[order]})
    with h5py.File(file, "a") as opened:
        for category in opened.values():
            category["index"][...] = category["index"][:][order]
            category["cluster/kmeans"][...] = category["cluster/kmeans"][:][order]
    found = exchange.from_corelay(file, R, categories={"n00": 0, "n01": 1})
    np.testing.assert_array_equal(found.groups, np.repeat([1, 0], 20))
    np.testing.assert_array_equal(found.labels, np.repeat([2, 3, 0, 1], 10))
    assert (np.diff(found.position[:20], axis=0) > 0).all()
    assert found.position.min() == -1 and found.position.max() == 1


def test_a_file_that_is_no_such_analysis_is_an_error(tmp_path):
    R = np.random.default_rng(0).random((40, 8, 8))
    two = np.zeros((20, 2))
    wrong = [
        ({"cluster/dbscan": np.zeros(20, int)}, {}, "clusterings dbscan, kmeans: name the one"),
        ({}, {"clustering": "x"}, "there is no 'x'"),
        ({"embedding/umap": two}, {}, "embeddings tsne, umap: name the one"),
        ({"index": None}, {}, "has no index"),
        ({"cluster/kmeans": None}, {}, "has no cluster"),
        ({"cluster/kmeans": np.zeros(19, int)}, {}, "20 rows, but labels"),
        ({"cluster/kmeans": np.zeros(20)}, {}, "float64"),
        ({"embedding/tsne": two[:, :1]}, {}, "it takes the columns"),
        ({"embedding/tsne": two * np.nan}, {}, "not finite"),
        ({"index": np.arange(20) + 30}, {}, "the row 49, but there are 40"),
        ({"index": np.zeros(20, int)}, {}, "twice in one"),
        ({"index": -np.arange(20)}, {}, "names no rows"),
        ({}, {"categories": {"n01": 3}}, "no known class"),
        ({}, {"neighbours": 0}, "neighbours must be"),
    ]
    for parts, options, message in wrong:
        with pytest.raises(exchange.ExchangeError, match=message):
            exchange.from_corelay(analysis(tmp_path, **parts), R, **options)
    with pytest.raises(exchange.ExchangeError, match="no known class"):
        exchange.from_corelay(analysis(tmp_path, ["n01"]), R)
    with pytest.raises(exchange.ExchangeError, match="as another one is"):
        exchange.from_corelay(analysis(tmp_path, ["1", "01"]), R)
    (tmp_path / "text.h5").write_text("text")
    for name, message in (("text.h5", "damaged"), ("none.h5", "there is no file")):
        with pytest.raises(exchange.ExchangeError, match=message):
            exchange.from_corelay(tmp_path / name, R)


def test_samples_for_semanticlens(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    score = jnp.array([[3.0, 2.0], [5.0, 1.0]])
    index = jnp.array([[4, 0], [1, 2]])
    best = concepts.Samples(score, index, index * 0, jnp.array(5))
    names = {"dataset": "d", "model": "m", "layer": "conv.1"}
    file = exchange.to_semanticlens(tmp_path, best, **names)
    assert file == tmp_path / "ActivationComponentVisualizer/d/m/aggregate_conv_mean-2-conv.1.safetensors"
    with safetensors.safe_open(file, "np") as opened:
        np.testing.assert_array_equal(opened.get_tensor("activations"), score)
        assert opened.get_tensor("sample_ids").dtype == np.int64
        np.testing.assert_array_equal(opened.get_tensor("sample_ids"), index)
        assert opened.metadata()["n_latents"] == "2"
    few = best._replace(score=score.at[1, 1].set(-jnp.inf), index=index.at[1, 1].set(-1))
    for samples, changed, message in (
        (few, {}, r"channels \[1\] have fewer than 2"),
        (best, {"layer": "a/b"}, "part of a path"),
        (best, {}, "there already"),
        (best._replace(index=index[0]), {}, r"not \[channels, k\]"),
    ):
        with pytest.raises(exchange.ExchangeError, match=message):
            exchange.to_semanticlens(tmp_path, samples, **{**names, **changed})
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]
