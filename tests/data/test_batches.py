"""Batches over devices and processes: order, padding, overlap, memory, bad input."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explain_in_process import free_address, in_process, in_processes
from jax.sharding import AbstractMesh, AxisType, Mesh

from lrpjax import batches as module
from lrpjax.data.batches import BatchError, NonFiniteWarning, explain_batches
from lrpjax.data.store import StoreError, open_store


def explain(x):
    """Gradient times input of sum(x^3): 3 x^3, row by row."""
    return x * jax.grad(lambda x: (x**3).sum())(x)


def rows(*sizes, dtype=np.float32):
    """Batches of so many rows of 2 different numbers."""
    numbers = np.arange(2 * sum(sizes), dtype=dtype).reshape(-1, 2) / 8
    return np.split(numbers, np.cumsum(sizes)[:-1])


def run(*arguments, **keywords):
    return list(explain_batches(*arguments, progress=False, **keywords))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("sizes", [(1,), (4,), (4, 4), (4, 4, 4, 1), (3, 3, 2)])
def test_results_come_in_order_with_the_rows_of_their_batch(sizes, dtype):
    batches = rows(*sizes, dtype=dtype)
    results = run(jax.jit(explain), batches)
    assert [result.dtype for result in results] == [np.dtype(dtype)] * len(sizes)
    for batch, result in zip(batches, results, strict=True):
        np.testing.assert_allclose(np.float64(result), 3 * np.float64(batch) ** 3, rtol=2e-2)


def test_a_given_batch_size_is_the_shape_on_the_device():
    seen = []

    def note(x):
        seen.append(x.shape)
        return x

    assert [len(result) for result in run(jax.jit(note), rows(3), batch_size=8)] == [3]
    assert seen == [(8, 2)]


def test_a_ragged_last_batch_compiles_nothing():
    compiled, traced = [], []

    def note(x):
        traced.append(x.shape)
        return explain(x)

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    batches = rows(4, 4, 4, 4, 3)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        results = explain_batches(jax.jit(note), batches, progress=False)
        next(results)
        after_first = len(compiled)
        assert after_first > 0
        assert [len(result) for result in results] == [4, 4, 4, 3]
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(compiled) == after_first
    assert traced == [(4, 2)]


def test_rows_that_fill_up_a_batch_cannot_cause_nan():
    (result,) = run(lambda x: 1 / x, [np.full((3, 2), 2.0)], batch_size=8, nonfinite="raise")
    np.testing.assert_array_equal(result, np.full((3, 2), 0.5))


def test_pytrees_params_and_things_that_become_arrays():
    class Tensor:
        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return np.array(self.values, dtype)

    def predict(params, batch):
        logits = batch["x"] * params["scale"]
        return {"sum": logits.sum(1), "pair": (logits, batch["label"])}

    x = np.arange(6.0).reshape(3, 2)
    batches = [
        {"x": Tensor(x), "label": np.array([1, 2, 3], np.int32)},
        {"x": x[:1], "label": jnp.int32([7])},
    ]
    first, second = run(jax.jit(predict), batches, params={"scale": np.float64(2)})
    np.testing.assert_array_equal(first["sum"], [2, 10, 18])
    np.testing.assert_array_equal(first["pair"][0], 2 * x)
    np.testing.assert_array_equal(second["pair"][1], [7])
    assert second["pair"][1].dtype == np.int32


def test_an_iterable_may_reuse_its_buffer_and_keeps_it():
    buffer = np.zeros((64, 64))

    def reused():
        for number in range(6):
            buffer[...] = number
            yield buffer
            assert (buffer == number).all()

    results = run(jax.jit(explain), reused())
    assert [result[0, 0] for result in results] == [3 * n**3 for n in range(6)]


def sent_to_device(monkeypatch):
    """Records every device array that is made of a batch."""
    sent = []
    batch = module.Placement.batch
    monkeypatch.setattr(module.Placement, "batch", lambda self, x: sent.append(batch(self, x)) or sent[-1])
    return sent


def test_what_results_can_use_is_donated_and_nothing_else(monkeypatch):
    sent = sent_to_device(monkeypatch)
    batches = [{"mask": np.ones((4, 3), np.int32), "x": np.ones((4, 2))} for _ in range(3)]
    run(lambda batch: batch["x"] * (batch["mask"][:, :2] > 0).astype(float), batches)
    assert [array.is_deleted() for array in sent] == [False, True] * 3


def test_the_next_batch_is_read_and_sent_while_one_is_computed(monkeypatch):
    """What computes a batch is still at it when the next one is asked for, and when it has arrived."""
    computed, asked, arrived = [], [], []
    dispatch, put = module._Program.dispatch, module.Placement.batch

    def spy_dispatch(self, batch, state):
        states, results = dispatch(self, batch, state)
        computed.append(results)
        return states, results

    def spy_put(self, array):
        sent = put(self, array).block_until_ready()
        arrived.append(bool(computed) and not computed[-1].is_ready())
        return sent

    monkeypatch.setattr(module._Program, "dispatch", spy_dispatch)
    monkeypatch.setattr(module.Placement, "batch", spy_put)

    def read():
        for number in range(5):
            asked.append(bool(computed) and not computed[-1].is_ready())
            yield np.full((300, 300), 0.01 * number)

    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, x: jnp.tanh(x @ x), x))
    assert len(run(slow, read())) == 5
    assert asked == [False] + [True] * 4
    assert arrived == [False] + [True] * 4


def test_no_more_than_two_batches_are_read_ahead_of_the_results():
    read = []

    def batches():
        for number in range(20):
            read.append(number)
            yield np.full((2, 2), float(number))

    for number, _ in enumerate(explain_batches(jax.jit(explain), batches(), progress=False)):
        assert len(read) <= number + 2


def test_memory_does_not_grow_with_the_number_of_batches():
    host_growth, device_peak, batch = map(float, in_process("memory").split())
    assert host_growth < 8 * batch
    assert device_peak <= 4 * batch


def test_progress_shows_rows_and_rate(capsys):
    assert len(list(explain_batches(jax.jit(explain), rows(4, 4, 3)))) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "11/11" in shown.err
    assert "rows/s" in shown.err


def test_progress_shows_a_given_total(capsys):
    results = explain_batches(jax.jit(explain), iter(rows(4, 4)), total=100)
    next(results)
    results.close()
    assert "4/100" in capsys.readouterr().err


def rest(batches):
    """Yields the first batch well, then the others."""
    return [np.ones((4, 2), np.float32), *batches]


BAD = {
    "more rows": (rest([np.ones((5, 2), np.float32)]), "batch 1 has 5 rows, more than the batch size, 4"),
    "short in the middle": (
        rest([np.ones((3, 2), np.float32), np.ones((4, 2), np.float32)]),
        "batch 1 has 3 rows, not 4; only the last batch may have fewer",
    ),
    "shape": (
        rest([np.ones((4, 3), np.float32)]),
        r"batch 1 is not like batch 0 \(its top: float32\[3\], in .*\[2\]",
    ),
    "dtype": (
        rest([np.ones((4, 2), np.int32)]),
        r"batch 1 is not like batch 0 \(its top: int32\[2\], in .* float32",
    ),
    "structure": (rest([{"x": np.ones((4, 2), np.float32)}]), r"\['x'\]: float32\[2\], in batch 0 missing"),
    "text": (rest(["four"]), "batch 1: the leaf at its top is no array of numbers but str"),
    "object": (rest([[object()]]), r"batch 1: the leaf at \[0\] is no array of numbers but object"),
    "dates": (rest([np.zeros(4, "M8[s]")]), "is no array of numbers but ndarray"),
    "number": (rest([[1.0, 2.0]]), r"batch 1: the leaf at \[0\] is a single number"),
    "no rows": (rest([np.ones((0, 2), np.float32)]), "batch 1 has no rows"),
    "no arrays": (rest([{}]), "batch 1 holds no arrays"),
    "unequal": (
        rest([{"a": np.ones(4), "b": np.ones(3)}]),
        r"batch 1: its arrays differ in their number of rows {\"\['a'\]\": 4, \"\['b'\]\": 3}",
    ),
}


@pytest.mark.parametrize(("batches", "message"), BAD.values(), ids=BAD)
def test_a_bad_batch_is_named_and_what_came_before_is_kept(batches, message, tmp_path):
    results = explain_batches(jax.jit(explain), batches, store=tmp_path / "store", progress=False)
    assert next(results).shape == (4, 2)
    with pytest.raises(BatchError, match=message):
        next(results)
    store = open_store(tmp_path / "store")
    assert (store.rows, store.complete) == (4, False)
    np.testing.assert_array_equal(store["relevance"], np.full((4, 2), 3))


def test_an_error_of_the_iterable_comes_after_the_results_of_what_it_gave(tmp_path):
    def broken():
        yield from rows(4, 4)
        raise OSError("the cable is out")

    results = explain_batches(jax.jit(explain), broken(), store=tmp_path, progress=False)
    assert [len(next(results)), len(next(results))] == [4, 4]
    with pytest.raises(OSError, match="the cable is out"):
        next(results)
    assert open_store(tmp_path).rows == 8
    assert len(run(jax.jit(explain), rows(4, 4, 1), store=tmp_path)) == 3


def test_an_empty_iterable_is_an_error_and_makes_no_store(tmp_path):
    with pytest.raises(BatchError, match="there are no batches"):
        run(jax.jit(explain), [], store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"axis": "data"}, ValueError, "axis 'data' is given, but no mesh"),
        ({"mesh": 8}, TypeError, "mesh must be a jax.sharding.Mesh, not int"),
        ({"mesh": AbstractMesh((1,), ("data",))}, TypeError, "must be a jax.sharding.Mesh, not AbstractMesh"),
        (
            {"mesh": Mesh(np.array(jax.devices()[:1]), ("data",)), "axis": "rows"},
            ValueError,
            r"has the axes \('data',\)",
        ),
        (
            {"skip_stored": True},
            ValueError,
            "skip_stored passes over what a store holds, but no store is given",
        ),
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, not 0"),
        ({"nonfinite": "ignore"}, ValueError, "nonfinite must be 'warn' or 'raise'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_once(keywords, error, message):
    with pytest.raises(error, match=message):
        explain_batches(explain, rows(4), progress=False, **keywords)


def test_explain_and_batches_are_checked_at_once():
    with pytest.raises(TypeError, match="explain must be a function of a batch, not ndarray"):
        explain_batches(np.ones(3), rows(4))
    with pytest.raises(TypeError, match="batches must be an iterable of batches, not int"):
        explain_batches(explain, 3)


@pytest.mark.parametrize("result", [lambda x: x.sum(), lambda x: x.T, lambda x: {"R": x, "n": jnp.zeros(3)}])
def test_results_without_a_row_for_each_row_are_refused(result):
    with pytest.raises(BatchError, match="every result must have one row for each row of the batch"):
        run(result, rows(4))


def divided(x):
    return x / x


def test_nan_is_reported_by_name_and_kept(tmp_path):
    batches = [np.ones((4, 2)), np.array([[1.0, 1], [0, 1], [1, 1], [0, 0]]), np.ones((2, 2))]
    with pytest.warns(
        NonFiniteWarning, match=r"batch 1: the results of 2 of its 4 rows .* \(rows 1, 3 of the batch"
    ) as warned:
        results = run(divided, batches, store=tmp_path)
    assert warned[0].filename == __file__
    assert len(results) == 3
    store = open_store(tmp_path)
    assert store.complete
    assert store.batches.tolist() == [[4, 0], [4, 2], [2, 0]]
    assert np.isnan(np.asarray(store["relevance"])).sum() == 3


def test_nan_can_be_an_error(tmp_path):
    results = explain_batches(
        divided, [np.ones((2, 2)), np.zeros((2, 2))], store=tmp_path, nonfinite="raise", progress=False
    )
    next(results)
    with pytest.raises(BatchError, match="batch 1: the results of 2 of its 2 rows have a NaN"):
        next(results)
    assert open_store(tmp_path).rows == 2


def test_nan_is_named_in_the_leaf_where_it_is():
    with pytest.warns(NonFiniteWarning, match=r"\(rows 0, 1 of the batch, at \['b'\]\)"):
        run(lambda x: {"a": x, "b": 1 / x, "n": jnp.ones(2, int)}, [np.zeros((2, 1))])


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
def test_a_mesh_of_one_device(types):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(types,))
    results = run(jax.jit(explain), rows(4, 4, 1), mesh=mesh)
    for batch, result in zip(rows(4, 4, 1), results, strict=True):
        np.testing.assert_allclose(result, 3 * batch**3, rtol=1e-5)


def test_eight_devices_give_the_results_of_one(tmp_path):
    assert "8 devices agree" in in_process("devices", tmp_path)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two real processes wrote, case by case."""
    directory = tmp_path_factory.mktemp("together")
    address = free_address()
    in_processes(*[("together", directory, address, index) for index in range(2)])
    return directory


@pytest.mark.parametrize("case", ["even", "uneven", "apart"])
def test_two_processes_explain_their_own_shares(case, together):
    store = open_store(together / case / "store")
    expected = np.concatenate([np.load(together / case / f"expected-{index}.npy") for index in range(2)])
    assert store.complete
    assert store.rows == len(expected)
    np.testing.assert_allclose(np.asarray(store["relevance"]), expected, rtol=1e-5, atol=1e-5)


def test_two_processes_end_together_when_one_fails_and_resume(together):
    errors = [(together / "fails" / f"error-{index}").read_text() for index in range(2)]
    assert errors[0].startswith(
        "PeerError: process 1 failed while the others went on; its own error says why"
    )
    assert errors[1] == "OSError: the cable is out"
    for index in range(2):
        assert (together / "fails" / f"stored-{index}").read_text() == "[[8, 0], [8, 0], [8, 0]]"
    store = open_store(together / "fails" / "store")
    assert store.complete
    expected = np.concatenate([np.load(together / "fails" / f"expected-{index}.npy") for index in range(2)])
    np.testing.assert_allclose(np.asarray(store["relevance"]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        (
            "empty",
            "PeerError: process 1 failed before the first batch",
            "BatchError: there are no batches",
        ),
        (
            "structure",
            "BatchError: the processes were given batches of",
            "BatchError: the processes were given",
        ),
        (
            "refused",
            "PeerError: process 1 failed before the first batch",
            "StoreError: .* lrpjax did not make",
        ),
    ],
)
def test_two_processes_refuse_what_does_not_fit_together(case, first, second, together):
    for index, message in enumerate([first, second]):
        assert re.match(message, (together / case / f"error-{index}").read_text())


def test_a_store_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("a file is in the way")
    with pytest.raises(StoreError, match="cannot be"):
        run(jax.jit(explain), rows(4), store=tmp_path / "file")


def test_no_warning_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(lambda x: x.sum(1), rows(4, 2))
