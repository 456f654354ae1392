"""Results on disk: atomic batches, resuming, refusing what does not belong together, damage, full disks."""

import json
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from explain_in_process import Logged, in_process, numbered
from jax import export
from jax.experimental import io_callback

from lrpjax.data import layout
from lrpjax.data.batches import explain_batches
from lrpjax.data.store import StoreError, StoreWriter, array_names, cut, fingerprint, open_store
from lrpjax.pretrained import read_safetensors


def explain(x):
    """Gradient times input of sum(x^3): 3 x^3, row by row."""
    return x * jax.grad(lambda x: (x**3).sum())(x)


def rows(*sizes):
    """Batches of so many rows of 2 different numbers."""
    numbers = np.arange(2 * sum(sizes), dtype=np.float32).reshape(-1, 2) / 8
    return np.split(numbers, np.cumsum(sizes)[:-1])


def run(explain, batches, **keywords):
    return list(explain_batches(explain, batches, progress=False, **keywords))


def files(directory):
    """Path -> bytes of every file under a directory."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}


def test_a_run_killed_many_times_ends_with_the_same_bytes(tmp_path):
    batches, kills = 100, 20
    lives = in_process("killed", tmp_path, kills, batches).strip().splitlines()
    assert len(lives) == kills + 1
    stored = [int(life.split(" ", 1)[0]) for life in lives] + [batches]
    computed = [json.loads(life.split(" ", 1)[1].replace("'", "")) for life in lives]
    for life, numbers in enumerate(computed):
        # Nothing that was stored is computed again, and only what was in flight is lost.
        assert numbers == list(range(stored[life], stored[life] + len(numbers)))
        assert len(numbers) <= stored[life + 1] - stored[life] + 7
    assert sum(bool(numbers) for numbers in computed) > kills / 2

    in_process("undisturbed", tmp_path / "other", batches)
    assert files(tmp_path / "store") == files(tmp_path / "other")
    store = open_store(tmp_path / "store")
    assert store.complete
    assert store.rows == 8 * (batches - 1) + 3
    expected = np.concatenate([batch.sum(1) for batch in numbered(batches)])
    np.testing.assert_allclose(np.asarray(store["output"]), expected, rtol=1e-5, atol=1e-5)


def test_a_resumed_run_yields_what_was_stored_and_computes_the_rest(tmp_path):
    log = tmp_path / "log"
    batches = list(numbered(8))
    results = explain_batches(Logged(log), batches, store=tmp_path / "store", progress=False)
    first = [next(results), next(results)]
    results.close()
    jax.effects_barrier()
    before = len(log.read_text().split())
    again = run(Logged(log), batches, store=tmp_path / "store")
    jax.effects_barrier()
    assert before <= 8
    # Two were yielded, and four more handed to the thread that stores them.
    assert [int(n) for n in log.read_text().split()[before:]] == [6, 7]
    jax.tree.map(np.testing.assert_array_equal, first, again[:2])
    jax.tree.map(np.testing.assert_array_equal, run(Logged(log), batches), again)
    once_more = run(Logged(log), batches, store=tmp_path / "store")
    jax.tree.map(np.testing.assert_array_equal, again, once_more)


@pytest.mark.parametrize(
    "dtype",
    [
        "bool",
        "int8",
        "uint32",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
    ],
)
def test_every_dtype_comes_back_as_it_was(dtype, tmp_path):
    values = [np.array([[0, 1], [2, 3]]).astype(jnp.dtype(dtype)), np.zeros((1, 2), jnp.dtype(dtype))]
    written = run(lambda x: x, values, store=tmp_path)
    stored = run(lambda x: x, values, store=tmp_path)
    for value, result, again in zip(values, written, stored, strict=True):
        assert result.dtype == again.dtype == value.dtype
        np.testing.assert_array_equal(result, again)
        np.testing.assert_array_equal(result, value)


@pytest.fixture
def made(tmp_path):
    """Makes a store with two arrays of a dtype, and gives it and what is in it."""

    def make(dtype="float32"):
        values = [np.array([[0, 1], [2, 3]]).astype(jnp.dtype(dtype)), np.ones((1, 2), jnp.dtype(dtype))]
        run(
            lambda x: {"relevance": x, "file": x + x},
            values,
            store=tmp_path / "store",
            settings={"target": 3},
        )
        whole = np.concatenate(values)
        return open_store(tmp_path / "store"), {"file": whole + whole, "relevance": whole}

    return make


@pytest.mark.parametrize("dtype", ["int8", "float16", "float32", "complex64"])
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_arrays_are_saved_as_they_are(ending, dtype, made, tmp_path):
    store, arrays = made(dtype)
    path = store.save(tmp_path / f"R{ending}")
    assert path == tmp_path / f"R{ending}"
    found = dict(np.load(path)) if ending == ".npz" else read_safetensors(path)
    assert sorted(found) == ["file", "relevance"]
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"R{ending}", "store"]


def test_a_saved_file_says_what_its_relevances_are_of(made, tmp_path):
    store, _ = made()
    with safetensors.safe_open(store.save(tmp_path / "R.safetensors"), "np") as file:
        about = {key: json.loads(text) for key, text in file.metadata().items()}
    assert about == {"settings": store.settings, "versions": store.versions}
    assert about["settings"]["target"] == 3


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_types_that_numpy_lacks_are_kept_or_widened_but_never_bare_bytes(dtype, made, tmp_path):
    store, arrays = made(dtype)
    kept = saved_as(store.save(tmp_path / "R.safetensors"))
    for name, array in arrays.items():
        assert kept(name) == (dtype, array.tobytes())
    for file, names in (("R.npz", None), ("R.npy", ["relevance"])):
        with pytest.raises(ValueError, match=f"is {dtype}, which NumPy would read as bare bytes: .*--widen"):
            store.save(tmp_path / file, names)
        assert not (tmp_path / file).exists()
        found = np.load(store.save(tmp_path / file, names, widen=True))
        found = found["relevance"] if names is None else found
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, arrays["relevance"].astype(np.float32))


def saved_as(path):
    """The dtype and the bytes of each array of a .safetensors file, read as its format says."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}

    def read(name):
        begin, end = header[name]["data_offsets"]
        return names[header[name]["dtype"]], content[8 + size + begin : 8 + size + end]

    return read


def test_what_cannot_be_saved_is_an_error_and_leaves_no_file(made, tmp_path, monkeypatch):
    store, _ = made("complex128")
    (tmp_path / "there.npz").write_text("mine")
    mistakes = [
        (
            "R.csv",
            None,
            ValueError,
            r"R.csv: files of arrays end in .npz, .npy, .safetensors, .h5, not in '.csv'",
        ),
        ("R", None, ValueError, "not in ''"),
        (
            "R.npy",
            None,
            ValueError,
            "a .npy file holds one array, not file, relevance; name it, or take .npz",
        ),
        ("R.npz", ["R"], ValueError, "has the arrays file, relevance, not 'R'"),
        ("there.npz", None, StoreError, "there.npz is there already; delete it, or choose another name"),
        ("nowhere/R.npz", None, StoreError, "R.npz cannot be written: .*No such file or directory"),
        ("nowhere/R.npy", ["file"], StoreError, "R.npy cannot be written: .*No such file or directory"),
        (
            "R.safetensors",
            None,
            ValueError,
            r"safetensors cannot write .* \(file complex128, relevance complex128\)",
        ),
    ]
    for file, names, error, message in mistakes:
        with pytest.raises(error, match=message):
            store.save(tmp_path / file, names)
    assert (tmp_path / "there.npz").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'needs safetensors: pip install "lrpjax\[text\]"'):
        store.save(tmp_path / "R.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store", "there.npz"]


def test_a_store_that_is_not_complete_is_saved_only_when_asked_for(tmp_path):
    batches = rows(4, 4, 4, 4, 4, 4, 4)
    results = explain_batches(explain, batches, store=tmp_path / "store", progress=False)
    next(results)
    results.close()
    store = open_store(tmp_path / "store")
    with pytest.raises(StoreError, match=r"is not complete: 20 rows are stored. .*partial=True, --partial"):
        store.save(tmp_path / "R.npy")
    np.testing.assert_array_equal(np.load(store.save(tmp_path / "R.npy", partial=True)), store["relevance"])
    run(explain, batches, store=tmp_path / "store")  # saving did not stop it from resuming
    assert len(np.load(open_store(tmp_path / "store").save(tmp_path / "all.npy"))) == 28


def test_what_is_not_stored_yet_is_not_there(tmp_path):
    results = explain_batches(explain, rows(4, 4, 4, 4, 4, 4, 4), store=tmp_path, progress=False)
    next(results)
    store = open_store(tmp_path)
    assert store.rows in (4, 8, 12, 16, 20)
    assert (store.complete, store["relevance"].shape) == (False, (store.rows, 2))
    results.close()
    assert open_store(tmp_path).rows == 20


def test_metadata(tmp_path):
    run(explain, rows(4, 2), store=tmp_path, settings={"composite": "epsilon", "target": [1, 2]})
    store = open_store(tmp_path)
    assert store.settings["composite"] == "epsilon"
    assert store.settings["target"] == [1, 2]
    assert store.versions["jax"] == jax.__version__
    assert store.complete
    about = json.loads((tmp_path / "zarr.json").read_text())["attributes"]["lrpjax"]
    assert len(about["input_fingerprint"]) == 32
    assert list(store) == ["relevance"]
    assert len(store) == 1


SETTINGS = {"composite": "epsilon", "target": "max"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"settings": {**SETTINGS, "composite": "gamma"}},
            r"other settings \(composite: 'epsilon' there, 'gamma' now\)",
        ),
        ({"settings": {**SETTINGS, "target": 3}}, r"other settings \(target: 'max' there, 3 now\)"),
        ({"settings": {"composite": "epsilon"}}, r"other settings \(target: 'max' there, None now\)"),
        (
            {"params": {"w": np.full(2, 3.0, np.float32)}},
            r"other settings \(params: '\w+' there, '\w+' now\)",
        ),
        ({"explain": lambda p, x: x * p["w"] * 2}, r"other settings \(program: "),
        ({"batches": rows(8, 1)}, r"other settings \(program: "),
        (
            {"batches": [rows(4)[0] + np.float32(1), rows(1)[0]]},
            "batch 0 of the input is not the one that the store",
        ),
        ({"batches": rows(4)}, "it has 2 batches, this one 1"),
        ({"batches": rows(4, 4, 4)}, "batch 1 of the input is not the one"),
        ({"settings": {**SETTINGS, "function": explain}}, "settings are kept as JSON"),
    ],
)
def test_a_store_of_another_run_is_refused_and_kept(change, message, tmp_path):
    call = {
        "explain": lambda p, x: x * p["w"],
        "batches": rows(4, 1),
        "params": {"w": np.full(2, 2.0, np.float32)},
        "settings": SETTINGS,
        "store": tmp_path / "store",
    }
    run(**call)
    before = files(tmp_path)
    with pytest.raises(StoreError, match=message):
        run(**{**call, **change})
    assert files(tmp_path) == before
    run(**call)


def test_more_input_than_a_complete_store_has_is_refused(tmp_path):
    run(explain, rows(4, 4), store=tmp_path)
    with pytest.raises(StoreError, match="it is complete with 2 batches, but this one goes on"):
        run(explain, rows(4, 4, 4), store=tmp_path)
    assert open_store(tmp_path).rows == 8


def exported(f):
    shape = jax.ShapeDtypeStruct((4, 2), jnp.float32)
    return export.deserialize(export.export(jax.jit(f))(shape).serialize()).call


def in_a_loop(f):
    return lambda x: jax.lax.scan(lambda x, _: (f(x), None), x, length=2)[0]


@pytest.mark.parametrize("closed", [float, np.float32, np.array, jnp.array], ids=lambda f: f.__name__)
@pytest.mark.parametrize("wrapped", [lambda f: f, jax.jit, jax.checkpoint, in_a_loop, exported])
def test_what_a_function_closes_over_is_part_of_the_settings(wrapped, closed, tmp_path):
    def explain(number):
        scale = closed(number) if closed in (float, np.float32) else closed([1, number], np.float32)
        return wrapped(lambda x: x * scale)

    for _ in range(2):
        run(explain(2), rows(4), store=tmp_path)
    with pytest.raises(StoreError, match=r"other settings \(program: "):
        run(explain(3), rows(4), store=tmp_path)


@pytest.mark.parametrize("call", [jax.pure_callback, io_callback], ids=["pure", "io"])
def test_what_a_function_calls_back_is_part_of_the_settings(call, tmp_path):
    class Table:
        def __init__(self, name):
            self.name = name  # where it was read from, which is not what it does

        def __call__(self, x):
            return np.asarray(x) * np.float32(2)

        def doubled(self, x):
            return np.asarray(x) * np.float32(2)

    def explain(host):
        return jax.jit(lambda x: call(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x))

    def scaled(scale):
        return lambda x: np.asarray(x) * scale

    def plus(x, number):
        return np.asarray(x) + number

    same = [
        (scaled(np.float32(2)), scaled(np.float32(2))),
        (partial(plus, number=np.float32(1)), partial(plus, number=np.float32(1))),
        (Table("a"), Table("b")),
        (Table("a").doubled, Table("b").doubled),
    ]
    for number, (one, other) in enumerate(same):
        run(explain(one), rows(4), store=tmp_path / str(number))
        run(explain(other), rows(4), store=tmp_path / str(number))
    different = [
        lambda x: np.asarray(x) * np.float32(3),
        lambda x: np.asarray(x) + np.float32(2),
        scaled(np.float32(3)),
        partial(plus, number=np.float32(2)),
    ]
    for number in range(len(same)):
        for host in different:
            with pytest.raises(StoreError, match=r"other settings \(program: "):
                run(explain(host), rows(4), store=tmp_path / str(number))


def test_a_debug_callback_is_not_part_of_the_settings(tmp_path):
    for note in (lambda x: None, lambda x: str(x)):

        def explain(x, note=note):
            jax.debug.callback(note, x[0, 0])
            return x

        run(jax.jit(explain), rows(4), store=tmp_path)
    jax.effects_barrier()


def test_a_store_of_another_format_is_refused(tmp_path):
    run(explain, rows(4), store=tmp_path)
    file = tmp_path / "zarr.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    for use in (open_store, lambda path: run(explain, rows(4), store=path), lambda path: cut(path, 0)):
        with pytest.raises(StoreError, match=r"another version of lrpjax, in format 1; this one .* format 2"):
            use(tmp_path)


def test_a_store_of_other_versions_is_refused(tmp_path, monkeypatch):
    run(explain, rows(4), store=tmp_path)
    monkeypatch.setattr(jax, "__version__", "99")
    with pytest.raises(StoreError, match=f"other versions .jax: '{jax.version.__version__}' there, '99' now"):
        run(explain, rows(4), store=tmp_path)


def test_a_store_of_another_number_of_processes_is_refused(tmp_path):
    shape = jax.ShapeDtypeStruct((4, 2), np.float32)
    StoreWriter(tmp_path / "one", {}, shape)
    StoreWriter(tmp_path / "two", {}, shape, process=(1, 2))
    with pytest.raises(StoreError, match=r"was made by 1 process.* together, not by 2"):
        StoreWriter(tmp_path / "one", {}, shape, process=(0, 2))
    with pytest.raises(StoreError, match=r"was made by 2 process.* together, not by 1"):
        StoreWriter(tmp_path / "two", {}, shape)


def test_shares_are_read_one_after_the_other(tmp_path):
    shape = jax.ShapeDtypeStruct((2, 3), np.float32)
    for index, sizes in enumerate([(2, 2, 1), (2,)]):
        writer = StoreWriter(tmp_path, {}, shape, process=(index, 2))
        for number, size in enumerate(sizes):
            writer.write(number, np.full((size, 3), 10 * index + number, np.float32), fingerprint(number))
        writer.finish(len(sizes))
    store = open_store(tmp_path)
    assert store.complete
    assert np.asarray(store["relevance"])[:, 0].tolist() == [0, 0, 1, 1, 2, 10, 10]
    assert np.asarray(store["relevance"][4:6])[:, 2].tolist() == [2, 10]
    assert open_store(tmp_path / "process-00001").rows == 2
    shutil.rmtree(tmp_path / "process-00001")
    with pytest.raises(StoreError, match="process-00001, the share of one of the 2 processes, is missing"):
        open_store(tmp_path)


def test_two_runs_at_once_on_one_store_do_not_destroy_each_other(tmp_path):
    ahead = explain_batches(explain, rows(4, 4, 4, 2), store=tmp_path, progress=False)
    next(ahead)
    behind = explain_batches(explain, rows(4, 4, 4, 2), store=tmp_path, progress=False)
    next(behind)
    assert len(list(ahead)) == 3
    assert open_store(tmp_path).rows == 14
    assert len(list(behind)) == 3
    store = open_store(tmp_path)
    assert store.complete
    np.testing.assert_allclose(
        np.asarray(store["relevance"]), 3 * np.concatenate(rows(4, 4, 4, 2)) ** 3, rtol=1e-6
    )


def test_no_store_and_what_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store in"):
        open_store(tmp_path)
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(StoreError, match="a Zarr array or group that lrpjax did not make"):
        open_store(tmp_path)
    with pytest.raises(StoreError, match="a Zarr array or group that lrpjax did not make"):
        run(explain, rows(4), store=tmp_path)
    assert list(files(tmp_path)) == ["zarr.json"]


def large():
    """Four batches that do not compress: 2 MB each."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(4, 1 << 16)) for _ in range(4)]


def test_a_write_that_fails_is_named_and_the_run_resumes(tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_file = layout.write_file

    def limited(path, content):
        if path.name == "000000000001":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        write_file(path, content)

    monkeypatch.setattr(layout, "write_file", limited)
    results = explain_batches(lambda x: {"a": x[:, :8], "b": x}, large(), store=tmp_path, progress=False)
    try:
        next(results)
        with pytest.raises(
            StoreError, match=r"batch 1 \(rows 4 to 7\) could not be stored .* The 1 batches before"
        ):
            next(results)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    monkeypatch.undo()
    assert open_store(tmp_path).rows == 4
    run(lambda x: {"a": x[:, :8], "b": x}, large(), store=tmp_path)
    np.testing.assert_array_equal(np.asarray(open_store(tmp_path)["b"]), np.concatenate(large()))


def test_a_full_disk_is_named_and_the_run_resumes(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5M", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        results = explain_batches(jax.jit(lambda x: x), large(), store=disk / "store", progress=False)
        next(results), next(results)
        with pytest.raises(
            StoreError, match=r"batch 2 \(rows 8 to 11\) could not be stored .*: the disk is full"
        ):
            next(results)
        assert open_store(disk / "store").rows == 8
        subprocess.run(["mount", "-o", "remount,size=20M", disk], check=True)
        run(jax.jit(lambda x: x), large(), store=disk / "store")
        np.testing.assert_array_equal(
            np.asarray(open_store(disk / "store")["relevance"]), np.concatenate(large())
        )
    finally:
        subprocess.run(["umount", disk], check=True)


def test_fingerprints_tell_apart_what_differs():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    different = [
        x,
        x.T,
        x.reshape(3, 2),
        x.astype(np.float64),
        x.view(np.int32),
        x.astype(jnp.bfloat16),
        {"x": x},
        {"y": x},
        [x],
        [x, x],
        x[:1],
        x + np.float32(1e-6),
        jax.random.key(0),
        jax.random.key(1),
        3,
        None,
    ]
    assert len({fingerprint(tree) for tree in different}) == len(different)
    same = [x, jnp.asarray(x), np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2]]
    assert len({fingerprint(tree) for tree in same}) == 1
    with pytest.raises(TypeError, match=r"the leaf \"\['name'\]\" is no array of numbers but str"):
        fingerprint({"name": "x"})
    with pytest.raises(TypeError, match="no array of numbers but object"):
        fingerprint(object())


def test_names_of_arrays():
    assert array_names(0) == ["relevance"]
    assert array_names((0, {"a b": 1, "c": [2]})) == ["0", "1.a_b", "1.c.0"]
    for tree in ({"batches": 0}, {"tail": 0}, {"a b": 0, "a_b": 1}, {"process-0": 0}):
        with pytest.raises(StoreError, match="rename it"):
            array_names(tree)


def test_results_without_arrays_cannot_be_stored(tmp_path):
    with pytest.raises(StoreError, match="the results have no leaves"):
        run(lambda x: {}, rows(4), store=tmp_path)


def test_tensorstore_is_asked_for_only_when_results_are_stored():
    code = "import lrpjax.batches, lrpjax.store, sys; assert 'tensorstore' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )


def test_a_missing_tensorstore_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match="storing results needs tensorstore"):
        StoreWriter(tmp_path, {}, jax.ShapeDtypeStruct((4, 2), np.float32))


def test_a_part_of_a_part_counts_from_its_own_beginning(tmp_path):
    """As NumPy's do; tensorstore's keep the numbers of the whole."""
    x = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    for _ in explain_batches(lambda x: x, [x[:4], x[4:]], store=tmp_path / "s", progress=False):
        pass
    array = open_store(tmp_path / "s")["relevance"]
    np.testing.assert_array_equal(np.asarray(array[2:7][1:3]), x[2:7][1:3])
    np.testing.assert_array_equal(np.asarray(array[3][1:][1]), x[3][1:][1])
    assert array[2:7][1:].shape == (4, 3) and array[5][0].shape == ()
