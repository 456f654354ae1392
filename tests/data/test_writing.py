"""The thread that stores: in order, bounded, ended with its run; full disks, kills between any two steps, loaders with threads."""

import errno
import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from lrpjax.data import layout, shares, writing
from lrpjax.data.batches import BatchError, explain_batches
from lrpjax.data.store import StoreError, StoreWriter, open_store


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Four batches in a file."""
    monkeypatch.setattr(layout, "CHUNK_BATCHES", 4)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert ours() == []


def ours():
    return [thread for thread in threading.enumerate() if thread.name.startswith("lrpjax-store")]


double = jax.jit(lambda x: 2 * x)


def batches(count, last=4):
    return [np.full((4 if n < count - 1 else last, 2), n, np.float32) for n in range(count)]


def started(given, store, explain=double, **keywords):
    return explain_batches(explain, given, store=store, progress=False, **keywords)


def run(given, store, **keywords):
    return [int(result[0, 0]) // 2 for result in started(given, store, **keywords)]


def note(results, numbers):
    """Adds the number of each batch to a list as it is yielded."""
    for result in results:
        numbers.append(int(result[0, 0]) // 2)


def files(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def slowly(monkeypatch, seconds=0.01):
    """Makes every batch take so long to store."""
    write = StoreWriter.write

    def slow(self, *arguments):
        time.sleep(seconds)
        return write(self, *arguments)

    monkeypatch.setattr(StoreWriter, "write", slow)


class Killed(BaseException):
    """Stands for SIGKILL: nobody expects it, and nothing is done after it."""


def test_a_run_ended_between_any_two_steps_is_gone_on_with(tmp_path, monkeypatch):
    """Each life ends one step later than the one before it; what was yielded is there, and the end is the same."""
    given = batches(11, last=3)
    run(given, tmp_path / "whole")
    wanted = files(tmp_path / "whole")
    steps = [0, 10**9]

    def counted(function):
        def step(*arguments, **keywords):
            steps[0] += 1
            if steps[0] >= steps[1]:
                raise Killed
            return function(*arguments, **keywords)

        return step

    for owner, name in [
        (layout, "write_file"),
        (layout, "make_arrays"),
        (layout, "_make_array"),
        (layout, "grown"),
        (writing, "file_size"),
        (Path, "unlink"),
        (Path, "rmdir"),
    ]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    for end in itertools.count(1):
        store, yielded = tmp_path / str(end), []
        steps[:] = [0, end]
        try:
            note(started(given, store), yielded)
            over = True
        except Killed:
            over = False
        steps[1] = 10**9
        if (store / "batches" / "zarr.json").exists():
            opened = open_store(store)
            assert opened.rows >= 4 * len(yielded) - 1
            np.testing.assert_array_equal(opened["relevance"], 2 * np.concatenate(given)[: opened.rows])
            skipped = run(given, store, skip_stored=True)
            assert skipped == list(range(len(opened.batches), 11))
        assert run(given, store) == list(range(11))
        assert files(store) == wanted
        if over:
            break
    assert end > 30


@pytest.mark.parametrize("where", ["tail", "shard", "records", "end"])
def test_a_disk_that_fills_up_is_named_and_the_run_goes_on(where, tmp_path, monkeypatch):
    given = batches(10)

    def full(function, name):
        def write(*arguments):
            if name(*arguments):
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments)

        return write

    failing = 9 if where == "end" else {"tail": 5}.get(where, 7)
    if where == "tail":
        at = lambda path, content: path.name == "000000000005"
        monkeypatch.setattr(layout, "write_file", full(layout.write_file, at))
    elif where == "end":
        at = lambda path, content: path.name == "zarr.json" and b'"batches": 10' in content
        monkeypatch.setattr(layout, "write_file", full(layout.write_file, at))
    else:
        rows = {"shard": 32, "records": 8}[where]
        monkeypatch.setattr(layout, "grown", full(layout.grown, lambda arrays, count: count == rows))
    results, found = started(given, tmp_path), []
    message = rf"batch {failing} \(rows {4 * failing} to .* The {failing} batches before it are safe, .*: the disk is full"
    with pytest.raises(
        StoreError, match="marked as complete: the disk is full" if where == "end" else message
    ):
        note(results, found)
    kept = 10 if where == "end" else failing
    assert found == list(range(kept))
    store = open_store(tmp_path)
    assert (store.rows, store.complete) == (4 * kept, False)
    monkeypatch.undo()
    assert run(given, tmp_path) == list(range(10))
    open_store(tmp_path).verify()


def test_many_batches_are_in_a_file(tmp_path):
    run(batches(103), tmp_path)
    assert len(files(tmp_path)) == 1 + (1 + 26) + (1 + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"zarr.json", "relevance", "batches"}


@pytest.mark.parametrize(
    ("shape", "batches_in_a_file"), [((8, 224, 224, 3), 6), ((4, 2), 256), ((8, 2048, 2048, 3), 1)]
)
def test_how_many_batches_are_in_a_file(shape, batches_in_a_file, monkeypatch):
    monkeypatch.setattr(layout, "CHUNK_BATCHES", 256)
    about = layout.new_about(["relevance"], [jax.ShapeDtypeStruct(shape, np.float32)])
    assert about["chunk"] == batches_in_a_file


def test_storing_does_not_hold_up_the_main_loop_and_is_bounded(tmp_path, monkeypatch):
    slowly(monkeypatch)
    writers, read = set(), []
    write = StoreWriter.write

    def noted(self, *arguments):
        writers.add(threading.current_thread().name)
        return write(self, *arguments)

    monkeypatch.setattr(StoreWriter, "write", noted)

    def loader():
        for batch in batches(20):
            read.append(int(batch[0, 0]))
            yield batch

    for number, _ in enumerate(started(loader(), tmp_path)):
        assert len(read) <= number + 7
        assert open_store(tmp_path).rows >= 4 * (number + 1)
        assert len(ours()) == 1
    assert {name.startswith("lrpjax-store") for name in writers} == {True}


def test_closing_early_stores_what_was_handed_over(tmp_path, monkeypatch):
    slowly(monkeypatch)
    results = started(batches(10), tmp_path)
    next(results)
    assert len(ours()) == 1
    results.close()
    assert ours() == []
    assert open_store(tmp_path).rows == 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stored", [0, 9])
def test_an_exception_ends_the_thread(stored, error, tmp_path, monkeypatch):
    if stored:
        list(started(batches(10)[:stored], tmp_path))
        layout.write_metadata(tmp_path, layout.metadata(tmp_path) | {"batches": None})
    slowly(monkeypatch)

    def loader():
        yield from batches(7)
        raise error("from the loader")

    found = []
    with pytest.raises(error, match="from the loader"):
        note(started(loader(), tmp_path), found)
    assert ours() == []
    if error is RuntimeError:  # an interrupt does not wait for what is under way
        assert found == list(range(7))


def test_an_error_while_one_batch_is_stored_keeps_those_before_it(tmp_path, monkeypatch):
    slowly(monkeypatch)
    given = batches(8)
    given[5][2] = np.nan
    found = []
    with pytest.raises(BatchError, match="batch 5: the results of 1 of its 4 rows have a NaN"):
        note(started(given, tmp_path, nonfinite="raise"), found)
    assert found == list(range(5))
    assert open_store(tmp_path).rows == 20


def test_an_error_of_the_computation_keeps_those_before_it(tmp_path):
    def host(x):
        if x[0, 0] == 5:
            raise ValueError("the callback fails")
        return 2 * np.asarray(x)

    explain = jax.jit(lambda x: jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x))
    found = []
    with pytest.raises(Exception, match="the callback fails"):
        note(started(batches(8), tmp_path, explain), found)
    assert found == list(range(5))
    assert open_store(tmp_path).rows == 20


def test_a_loader_with_threads_and_one_whose_thread_dies(tmp_path):
    def loader(dies):
        filled = queue.Queue(maxsize=2)

        def fill():
            for batch in batches(9):
                if dies and batch[0, 0] == 6:
                    filled.put(OSError("the worker died"))
                    return
                filled.put(batch)
            filled.put(None)

        thread = threading.Thread(target=fill)
        thread.start()
        try:
            while (found := filled.get()) is not None:
                if isinstance(found, OSError):
                    raise found
                yield found
        finally:
            thread.join()

    with pytest.raises(OSError, match="the worker died"):
        run(loader(dies=True), tmp_path)
    assert open_store(tmp_path).rows == 24
    assert run(loader(dies=False), tmp_path, skip_stored=True) == [6, 7, 8]
    assert open_store(tmp_path).complete


def test_several_threads_explain_into_stores_of_their_own(tmp_path):
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: run(batches(10 + n), tmp_path / str(n)), range(4)))
    assert found == [list(range(10 + n)) for n in range(4)]
    for number in range(4):
        store = open_store(tmp_path / str(number))
        store.verify()
        np.testing.assert_array_equal(store["relevance"], 2 * np.concatenate(batches(10 + number)))


def test_several_threads_explain_into_one_store(tmp_path):
    """They do the same work, and the store is whole."""
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda n: run(batches(12), tmp_path), range(3)))
    assert found == [list(range(12))] * 3
    store = open_store(tmp_path)
    assert (store.rows, store.complete) == (48, True)
    store.verify()
    assert len(files(tmp_path / "relevance")) == 4


def test_a_store_is_read_while_a_run_moves_batches_from_the_tail(tmp_path, monkeypatch):
    """A reader that looks at the tail just when it is moved looks again."""
    results = started(batches(10), tmp_path)
    next(results)  # batches 0 to 4 are stored or about to be
    read_tail, moved = shares.Share._read_tail, []

    def late(self):
        if not moved:
            moved.append(True)
            for _ in range(4):
                next(results)
        return read_tail(self)

    monkeypatch.setattr(shares.Share, "_read_tail", late)
    store = open_store(tmp_path)
    rest = list(results)
    assert moved and store.rows >= 20
    np.testing.assert_array_equal(store["relevance"], 2 * np.concatenate(batches(10))[: store.rows])
    assert len(rest) == 5


@pytest.mark.parametrize("stored", [3, 4, 6, 10])
def test_what_is_stored_can_be_passed_over(stored, tmp_path, capsys):
    given, reads = batches(10), []
    write_all = started(given[:stored] if stored == 10 else given, tmp_path)
    for _ in range(stored - 2 if stored < 10 else stored):
        next(write_all)
    assert next(write_all, None) is None if stored == 10 else True
    write_all.close()
    results_of = shares.Share.results
    there = len(open_store(tmp_path).batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shares.Share, "results", lambda self, index: reads.append(index) or results_of(self, index)
        )
        found = explain_batches(double, given, store=tmp_path, skip_stored=True)
        assert [int(result[0, 0]) // 2 for result in found] == list(range(there, 10))
    assert there >= stored and reads == []
    assert "40/40" in capsys.readouterr().err
    other = [*given[:1], given[1] + 1, *given[2:]]
    with pytest.raises(StoreError, match="batch 1 of the input is not the one"):
        run(other, tmp_path, skip_stored=True)


def test_many_small_batches_are_resumed_quickly(tmp_path, monkeypatch):
    """By what is read: a file for 256 batches, and none of them where results are passed over."""
    monkeypatch.setattr(layout, "CHUNK_BATCHES", 256)
    given = batches(600)
    writer_files = layout.write_file
    monkeypatch.setattr(
        layout, "write_file", lambda path, content: path.suffix and writer_files(path, content)
    )
    run(given, tmp_path)
    monkeypatch.undo()
    read_shard, read = shares.Share._read_shard, []
    monkeypatch.setattr(
        shares.Share, "_read_shard", lambda self, number: read.append(number) or read_shard(self, number)
    )
    assert run(given, tmp_path) == list(range(600))
    assert read == [0, 1, 2]
    assert run(given, tmp_path, skip_stored=True) == []
    assert read == [0, 1, 2]
