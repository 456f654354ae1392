"""Damage to a store: every byte, file and length that is not what was written is found, named and can be mended."""

import shutil

import jax
import numpy as np
import pytest

from lrpjax.data import layout
from lrpjax.data.batches import explain_batches
from lrpjax.data.store import StoreError, StoreWriter, cut, fingerprint, open_store


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Two batches in a file."""
    monkeypatch.setattr(layout, "CHUNK_BATCHES", 2)


def explain(x):
    return {"a": x + 1, "b": x.sum(1)}


def batches(count=7):
    return [np.arange(8, dtype=np.float32).reshape(4, 2) + 8 * n for n in range(count)]


def run(store, **keywords):
    return list(explain_batches(explain, batches(), store=store, progress=False, **keywords))


def files(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def begun(store):
    """A store in which 5 of 7 batches are stored, the last of them alone."""
    results = explain_batches(explain, batches(), store=store, progress=False)
    next(results)
    results.close()
    assert sorted(path.name for path in (store / "tail").iterdir()) == ["000000000004"]
    return store


def flipped(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


DAMAGE = {
    "first byte": lambda file: flipped(file, 0),
    "a byte": lambda file: flipped(file, file.stat().st_size // 3),
    "last byte": lambda file: flipped(file, -1),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "empty": lambda file: file.write_bytes(b""),
    "missing": lambda file: file.unlink(),
    "another": lambda file: shutil.copy(file.with_name(file.name.replace("c.1", "c.0")), file),
}


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named_wherever_it_is_read_and_mended(damage, name, tmp_path):
    run(tmp_path)
    before = files(tmp_path)
    file = tmp_path / name / {"a": "c.1.0", "b": "c.1"}[name]
    DAMAGE[damage](file)
    store = open_store(tmp_path)
    np.testing.assert_array_equal(store[name][:8], np.concatenate([explain(b)[name] for b in batches(2)]))
    reads = [store.verify, lambda: run(tmp_path)]
    if damage != "another":  # its checksum is right
        reads += [
            lambda: np.asarray(store[name]),
            store[name][9:14].read().result,
            lambda: store.save(tmp_path / "saved.npz"),
        ]
    if damage in ("cut", "empty", "missing"):
        reads.append(lambda: run(tmp_path, skip_stored=True))
    for read in reads:
        with pytest.raises(
            StoreError, match=rf"{file}.*lrpjax.store.cut\('{tmp_path}', 2\) keeps the 2 batches"
        ):
            read()
        if damage != "another":
            with pytest.raises(StoreError, match=r"\(batches 2 to 3, rows 8 to 15\)"):
                read()
    cut(tmp_path, 2)
    assert (open_store(tmp_path).rows, open_store(tmp_path).complete) == (8, False)
    assert len(run(tmp_path)) == 7
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", ["first byte", "a byte", "last byte", "cut", "empty"])
def test_a_damaged_file_of_the_tail_is_named_and_mended(damage, tmp_path):
    run(tmp_path / "whole")
    store = begun(tmp_path / "store")
    file = store / "tail" / "000000000004"
    DAMAGE[damage](file)
    for use in (open_store, run, lambda path: run(path, skip_stored=True)):
        with pytest.raises(
            StoreError, match=rf"is damaged: {file} \(batch 4\): it (is not what|was cut).*, 4\)"
        ):
            use(store)
    cut(store, 4)
    assert open_store(store).rows == 16
    run(store)
    assert files(store) == files(tmp_path / "whole")


def test_a_file_of_the_tail_that_is_missing_before_others_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BATCHES", 8)
    results = explain_batches(explain, batches(), store=tmp_path, progress=False)
    next(results)
    results.close()
    (tmp_path / "tail" / "000000000001").unlink()
    with pytest.raises(
        StoreError, match=r"000000000001 is missing, but the batches after it are there.*, 1\)"
    ):
        open_store(tmp_path)
    cut(tmp_path, 1)
    assert len(run(tmp_path)) == 7


@pytest.mark.parametrize("damage", ["a byte", "cut", "empty", "missing"])
def test_damaged_records_are_named_and_mended(damage, tmp_path):
    run(tmp_path)
    before = files(tmp_path)
    DAMAGE[damage](tmp_path / "batches" / "c.0.0")
    for use in (open_store, run):
        with pytest.raises(
            StoreError, match=rf"is damaged: .*(batches|7 batches were written).*cut\('{tmp_path}', 0\)"
        ):
            use(tmp_path)
    cut(tmp_path, 0)
    run(tmp_path)
    assert files(tmp_path) == before


def test_missing_records_of_a_store_that_is_not_complete_are_named(tmp_path):
    begun(tmp_path)
    shutil.rmtree(tmp_path / "tail")
    (tmp_path / "batches" / "c.0.0").unlink()
    with pytest.raises(StoreError, match=r"batches lacks records of the 16 rows"):
        open_store(tmp_path)


def test_records_that_are_missing_between_others_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "RECORDS_IN_A_FILE", 2)
    run(tmp_path)
    before = files(tmp_path)
    (tmp_path / "batches" / "c.1.0").unlink()
    with pytest.raises(StoreError, match=r"batches lacks the record of batch 2.*, 2\) keeps"):
        open_store(tmp_path)
    cut(tmp_path, 3)
    run(tmp_path)
    assert files(tmp_path) == before


def test_an_array_that_lacks_rows_is_named(tmp_path):
    run(tmp_path)
    metadata = tmp_path / "b" / "zarr.json"
    metadata.write_text(metadata.read_text().replace('"shape":[28]', '"shape":[9]'))
    with pytest.raises(StoreError, match=rf"{metadata} lacks rows"):
        open_store(tmp_path)
    metadata.unlink()
    with pytest.raises(StoreError, match=r"cannot be read: .*b/"):
        open_store(tmp_path)


def test_everything_that_is_damaged_is_named_at_once(tmp_path):
    run(tmp_path)
    flipped(tmp_path / "a" / "c.1.0", 5)
    flipped(tmp_path / "b" / "c.1", 5)
    (tmp_path / "b" / "c.3").unlink()
    with pytest.raises(StoreError) as error:
        open_store(tmp_path).verify()
    for text in (
        "a/c.1.0 (batches 2 to 3, rows 8 to 15)",
        "b/c.1 (",
        "b/c.3 (batches 6 to 6, rows 24 to 27) is missing",
    ):
        assert text in str(error.value)
    (tmp_path / "a" / "c.0.0").unlink()
    with pytest.raises(StoreError) as error:
        run(tmp_path, skip_stored=True)
    assert "a/c.0.0 (batches 0 to 1, rows 0 to 7) is missing" in str(error.value)
    assert "b/c.3 (" in str(error.value)


def test_what_a_share_lacks_is_named_with_its_path(tmp_path):
    shape = jax.ShapeDtypeStruct((2, 3), np.float32)
    for index in range(2):
        writer = StoreWriter(tmp_path, {}, shape, process=(index, 2))
        for number in range(4):
            writer.write(number, np.ones((2, 3), np.float32), fingerprint(number))
        writer.finish(4)
    file = tmp_path / "process-00001" / "relevance" / "c.1.0"
    file.unlink()
    store = open_store(tmp_path)
    store["relevance"][:12].read().result()
    for read in (store.verify, store["relevance"].read().result):
        with pytest.raises(
            StoreError, match=rf"{file} \(batches 2 to 3, rows 4 to 7\) is missing.*process-00001', 2\)"
        ):
            read()
    with pytest.raises(StoreError, match="is no store of one process"):
        cut(tmp_path, 2)
    cut(file.parent.parent, 2)
    assert open_store(tmp_path).rows == 12


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_results_that_are_all_nan_or_zero_are_not_missing(value, tmp_path):
    given = [np.full((4, 2), value, np.float32)] * 5
    writer = StoreWriter(tmp_path, {}, jax.ShapeDtypeStruct((4, 2), np.float32))
    for number, batch in enumerate(given):
        writer.write(number, batch, fingerprint(batch))
    writer.finish(len(given))
    store = open_store(tmp_path)
    store.verify()
    np.testing.assert_array_equal(store["relevance"], np.concatenate(given))


def test_what_is_cut_away_does_not_come_back(tmp_path):
    run(tmp_path)
    cut(tmp_path, 3)
    cut(tmp_path, 5)  # there are fewer
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["c.0.0", "zarr.json"]
    assert open_store(tmp_path).rows == 8
    results = explain_batches(explain, batches(), store=tmp_path, skip_stored=True, progress=False)
    np.testing.assert_array_equal(next(results)["a"], batches()[2] + 1)
    results.close()
    open_store(tmp_path).verify()


def test_an_array_of_a_store(tmp_path):
    run(tmp_path)
    array = open_store(tmp_path)["a"]
    assert (array.shape, array.ndim, array.dtype, len(array)) == ((28, 2), 2, np.float32, 28)
    assert repr(array[1:3]) == "<float32[2, 2] on the disk>"
    np.testing.assert_array_equal(np.asarray(array[5, 1]), 12)
    assert np.asarray(array, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="always a copy"):
        np.array(array, copy=False)
