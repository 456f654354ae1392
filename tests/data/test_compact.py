"""Relevances kept in 16 or 8 bits: how far they are from what was computed, and that stores give them back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax.cli import main
from lrpjax.store import Compact, compact, open_store

# Of a row's largest, what rounding takes at most: half of a step of 1/127, or of a 16-bit float at 1.
STEP = {"int8": 0.5 / 127, "float16": 2.0**-12}


def rows(seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(7, 5, 4, 3)) * 10.0 ** rng.integers(-6, 6, (7, 1, 1, 1))
    x[3] = 0.0
    return jnp.asarray(x, dtype)


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("of", [np.float32, np.float64, jnp.bfloat16])
def test_the_error_is_within_its_bound_and_measured(dtype, of):
    x = rows(0, of)
    found = jax.jit(compact(lambda x: {"relevance": x, "output": x.sum((1, 2, 3))}, dtype))(x)
    assert isinstance(found["relevance"], Compact) and found["relevance"].values.dtype == dtype
    assert found["output"].dtype == x.dtype
    exact, back = np.asarray(x, np.float64), np.asarray(found["relevance"], np.float64)
    largest = np.abs(exact).reshape(7, -1).max(1).reshape(-1, 1, 1, 1)
    assert (np.abs(exact - back) <= largest * (STEP[dtype] + 1e-6)).all()
    total = np.abs(exact).sum((1, 2, 3))
    lost = np.abs(exact - back).sum((1, 2, 3)) / np.where(total > 0, total, 1)
    np.testing.assert_allclose(found["relevance"].error, lost, rtol=1e-2, atol=1e-6)
    assert found["relevance"].error[3] == 0 and (back[3] == 0).all()
    assert (np.asarray(found["relevance"].error)[[0, 1, 2, 4, 5, 6]] > 0).any()


def test_small_entries_keep_their_digits_in_sixteen_bits():
    x = (
        jnp.asarray([[1.0, 1e-3, -1e-4]], jnp.float32) * 1e-20
    )  # out of the range of 16-bit floats without a scale
    found = np.asarray(compact(lambda x: x, "float16")(x)["relevance"])
    np.testing.assert_allclose(found, x, rtol=6e-4)


def test_rows_that_are_not_finite_are_nan_and_the_others_stay():
    x = rows(1).at[2, 0, 0, 0].set(jnp.nan).at[4, 1, 1, 1].set(jnp.inf)
    found = compact(lambda x: x, "int8")(x)["relevance"]
    back = np.asarray(found)
    assert np.isnan(back[[2, 4]]).all() and np.isfinite(back[[0, 1, 3, 5, 6]]).all()
    assert np.isnan(found.error[2]) and np.isnan(found.scale[4])


@pytest.mark.parametrize("dtype", STEP)
def test_a_store_gives_the_numbers_back(tmp_path, dtype):
    x = np.asarray(rows(2))
    explain = jax.jit(compact(lambda x: {"relevance": 2 * x, "output": x.sum((1, 2, 3))}, dtype))
    run = lambda: list(lrpjax.explain_batches(explain, [x[:4], x[4:]], store=tmp_path / "s", progress=False))
    first = np.concatenate([np.asarray(found["relevance"]) for found in run()])
    store = open_store(tmp_path / "s")
    array = store["relevance"]
    assert array.dtype == np.float32 and array.shape == x.shape and dtype in repr(array)
    assert store["relevance.values"].dtype == dtype and store["relevance.error"].shape == (7,)
    np.testing.assert_array_equal(np.asarray(array), first)
    for index in (
        slice(2, 5),
        3,
        np.array([1, 6]),
        (slice(1, 3), slice(0, 2)),
        (2, 1),
        (slice(None), ..., 0),
    ):
        np.testing.assert_array_equal(np.asarray(array[index]), first[index])
    np.testing.assert_array_equal(array[1:4][1:].read().result(), first[2:4])
    # An ended run yields what is stored.
    again = np.concatenate([np.asarray(found["relevance"]) for found in run()])
    np.testing.assert_array_equal(again, first)
    with np.load(store.save(tmp_path / "R.npz", ["relevance"])) as saved:
        np.testing.assert_array_equal(saved["relevance"], first)
    store.verify()


def test_rows_that_are_not_finite_are_reported_as_before(tmp_path):
    x = np.asarray(rows(3)).copy()
    x[5, 0, 0, 0] = np.nan
    explain = jax.jit(compact(lambda x: x, "int8"))
    with pytest.warns(UserWarning, match="1 of its 7 rows have a NaN"):
        list(lrpjax.explain_batches(explain, [x], store=tmp_path / "s", progress=False))
    assert open_store(tmp_path / "s").batches[0, 1] == 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dtype": "int4"}, "can be kept as float16 or int8, not as 'int4'"),
        ({"dtype": {"heat": "int8"}}, "the results are relevance, output; there is no 'heat'"),
        ({"dtype": {"output": "int8"}}, "only an array of floating numbers"),
    ],
)
def test_what_cannot_be_kept_so(keywords, message):
    with pytest.raises(ValueError, match=message):
        compact(lambda x: {"relevance": x, "output": jnp.arange(7)}, **keywords)(rows(4))


MODEL = """
import jax.numpy as jnp

def build():
    return lambda w, x: jnp.maximum(x.reshape(len(x), -1), 0.0) @ w, jnp.eye(36, 3, dtype=jnp.float32)
"""


def test_the_command_line_keeps_fewer_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    np.save("x.npy", np.random.default_rng(5).uniform(0.1, 1.0, (5, 4, 3, 3)).astype(np.float32))
    explain = ["explain", "--model", "model.py:build", "--inputs", "x.npy", "--batch", "2"]
    assert main([*explain, "--out", "whole"]) == 0
    assert main([*explain, "--out", "small", "--store-as", "int8", "--sum-channels", "--png"]) == 0
    assert "relevance is kept as int8: Σ|error| / Σ|R| is" in capsys.readouterr().out
    whole, small = open_store("whole"), open_store("small")
    assert small["relevance"].shape == (5, 4, 3, 1) and small.settings["store_as"] == "int8"
    summed = np.asarray(whole["relevance"]).sum(-1, keepdims=True)
    largest = np.abs(summed).max((1, 2, 3), keepdims=True)
    assert (np.abs(np.asarray(small["relevance"]) - summed) <= largest * 0.51 / 127).all()
    np.testing.assert_array_equal(small["arrived"], whole["arrived"])
    assert main(["show", "small"]) == 0
    assert "kept as int8" in capsys.readouterr().out
    assert main([*explain, "--out", "small"]) == 2  # what is stored is of other bits
    assert "store_as: 'int8' there, None now" in capsys.readouterr().err
