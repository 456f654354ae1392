"""Relevances of other libraries become stores, and stores become files of other programs."""

import tracemalloc

import numpy as np
import pytest
from helpers import planted_strategies, store_of

import lrpjax
from lrpjax import exchange, explore, report
from lrpjax.data.store import StoredArray

h5py = pytest.importorskip("h5py")
pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
SAID = {"model": "net", "composite": "made elsewhere"}


def written(folder, kind, arrays):
    """The path of a file, or a directory of Zarr, with these arrays."""
    file = folder / f"file.{kind}"
    if kind == "npz":
        np.savez(file, **arrays)
    elif kind == "npy":
        np.save(file, arrays["relevance"])
    elif kind == "safetensors":
        pytest.importorskip("safetensors.numpy").save_file(arrays, file)
    elif kind == "h5":
        with h5py.File(file, "w") as opened:
            opened.update({name: a.astype(a.dtype.newbyteorder(">")) for name, a in arrays.items()})
    else:
        for name, array in arrays.items():
            spec = {"driver": kind, "kvstore": {"driver": "file", "path": f"{file}/{name}/"}}
            ts = pytest.importorskip("tensorstore")
            ts.open(spec, create=True, dtype=array.dtype.name, shape=array.shape).result()[...] = array
    return file


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors", "h5", "zarr", "zarr3"])
def test_a_file_becomes_a_store(tmp_path, kind):
    rng = np.random.default_rng(0)
    arrays = {
        "relevance": rng.normal(size=(7, 3, 5, 4)).astype(np.float32),
        "output": rng.normal(size=(7, 2)),
    }
    file = written(tmp_path, kind, arrays)
    store = exchange.import_store(tmp_path / "store", file, settings=SAID, channel_axis=1, batch=3)
    assert store.complete and store.settings["imported"]["from"] == file.name
    assert store.settings["model"] == "net" and len(store.batches) == 3
    np.testing.assert_array_equal(store["relevance"], np.moveaxis(arrays["relevance"], 1, -1))
    if kind != "npy":
        np.testing.assert_array_equal(store["output"], arrays["output"])
    store.verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.name, "store"]


def test_what_is_imported_is_explored_as_what_is_stored(tmp_path):
    R, classes, _ = planted_strategies()
    output = np.eye(2)[classes]
    arrays = {"attr": np.moveaxis(R, -1, 1), "logits": output}
    names = {"relevance": "attr", "output": "logits"}
    store = exchange.import_store(tmp_path / "a", arrays, settings=SAID, names=names, channel_axis=1)
    wanted = explore.spectral_analysis(store_of(tmp_path / "b", R, output), layout="spectral", progress=False)
    found = explore.spectral_analysis(store, layout="spectral", progress=False)
    np.testing.assert_array_equal(found.labels, wanted.labels)
    assert found.clusters[0].unlike == wanted.clusters[0].unlike
    found.save(store.path / "findings.npz")
    page = report.write(store.path, tmp_path / "report.html", classes=classes)
    assert "made elsewhere" in page.read_text()  # the composite that the settings say


def test_rows_that_are_not_finite_are_counted(tmp_path):
    R = np.ones((5, 3, 3))
    R[3, 0, 0] = np.nan
    store = exchange.import_store(tmp_path / "s", R, settings=SAID, batch=2)
    np.testing.assert_array_equal(store.batches, [[2, 0], [2, 1], [1, 0]])


def test_what_cannot_be_imported_is_an_error_and_leaves_nothing(tmp_path):
    R = np.ones((4, 3, 3))
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    (tmp_path / "there").mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    store_of(tmp_path / "ours", R)
    before = sorted(tmp_path.rglob("*"))

    class Broken:
        shape, dtype = (4, 3, 3), R.dtype

        def __getitem__(self, index):
            if index.start == 2:
                raise RuntimeError("a damaged file")
            return R[index]

    wrong = [
        ({"a": R, "b": R}, {}, "no array is called relevance"),
        ({"relevance": R, "output": R[:3]}, {}, "relevance 4, output 3"),
        (R[:0], {}, "one at least"),
        (R, {"names": {"relevance": "x"}}, "no array x"),
        (R, {"channel_axis": 3}, "channel_axis is 3"),
        (R, {"channel_axis": 0}, "channel_axis is 0"),
        (R.astype(int), {}, "floating numbers, not int64"),
        (R, {"settings": {}}, "settings say"),
        (R, {"settings": {"a": R}}, "JSON"),
        (R, {"batch": 0}, "batch must be"),
        (tmp_path / "bad.npz", {}, "cannot be read"),
        (tmp_path / "objects.npy", {}, "cannot be read"),
        (tmp_path / "none.npy", {}, "there is no file"),
        (tmp_path / "there", {}, "no Zarr"),
        (tmp_path / "ours", {}, "store of lrpjax already"),
        (Broken(), {"batch": 2}, "rows 2 to 3 of 'relevance' cannot be read: a damaged file"),
    ]
    for arrays, options, message in wrong:
        with pytest.raises(exchange.ExchangeError, match=message):
            exchange.import_store(tmp_path / "s", arrays, **{"settings": SAID, **options})
    with pytest.raises(exchange.ExchangeError, match="there already"):
        exchange.import_store(tmp_path / "there", R, settings=SAID)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_is_saved_as_hdf5(tmp_path):
    R = np.random.default_rng(0).normal(size=(20, 4, 4, 1))
    store = store_of(tmp_path / "store", R, np.ones((20, 2)), {"model": "net"}, batch=8)
    with h5py.File(store.save(tmp_path / "all.h5")) as file:
        np.testing.assert_array_equal(file["relevance"], R)
        assert file["output"].shape == (20, 2) and "net" in file.attrs["settings"]
    with h5py.File(store.save(tmp_path / "one.h5", ["output"])) as file:
        assert list(file) == ["output"]
    with pytest.raises(lrpjax.store.StoreError, match="there already"):
        store.save(tmp_path / "one.h5")
    part = store_of(tmp_path / "part", R, finish=False, batch=8)
    with pytest.raises(lrpjax.store.StoreError, match="not complete"):
        part.save(tmp_path / "part.h5")
    assert not (tmp_path / "part.h5").exists()
    with h5py.File(part.save(tmp_path / "part.h5", partial=True)) as file:
        np.testing.assert_array_equal(file["relevance"], R)


@pytest.mark.parametrize("kind", ["h5", "npz", "npy", "safetensors"])
def test_saving_takes_no_more_memory_than_some_rows(tmp_path, kind, monkeypatch):
    if kind == "safetensors":
        pytest.importorskip("safetensors")
    monkeypatch.setattr("lrpjax.data.files.BLOCK", 1 << 20)
    read = StoredArray.__array__
    # What tensorstore reads into is not traced; a copy of it is.
    monkeypatch.setattr(
        StoredArray, "__array__", lambda self, dtype=None, copy=None: np.array(read(self, dtype))
    )
    R = np.random.default_rng(0).normal(size=(512, 64, 64)).astype(np.float32)  # 8 MiB
    store = store_of(tmp_path / "store", R, batch=16)  # batches of 256 KiB
    tracemalloc.start()
    try:
        store.save(tmp_path / f"file.{kind}")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 1 << 20 <= peak < 4 << 20
