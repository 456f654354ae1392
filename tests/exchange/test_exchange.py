import json

import numpy as np
import pytest

import lrpjax
from lrpjax import exchange, explore

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
