"""A report's page, read as a program reads it: what is on it, what was kept of relevance, what is refused. No browser."""

import base64
import json
import re
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import explore, report
from lrpjax.cli.main import main
from lrpjax.report import sources, thumbnails

EVIL = '</script><img src=x onerror="alert(1)">'


def stored(path, relevance, output=None, settings=None, sums=False):
    """A store of given relevances: what `explain` computes is looked up by the row's number."""
    found = {"relevance": np.asarray(relevance)}
    if output is not None:
        found["output"] = np.asarray(output)
    if sums:
        found["explained"] = found["output"].max(1)
        found["arrived"] = found["relevance"].reshape(len(relevance), -1).sum(1)
    batches = [np.arange(i, min(i + 4, len(relevance))) for i in range(0, len(relevance), 4)]
    explain = lambda index: {name: jnp.asarray(values)[index] for name, values in found.items()}
    for _ in lrpjax.explain_batches(
        explain, batches, store=path, settings=settings, progress=False, batch_size=4
    ):
        pass
    return lrpjax.open_store(path)


def data_of(page):
    text = page.read_text("utf-8")
    return json.loads(re.search(r'(?s)id="page-data">(.*?)</script>', text)[1]), text


def column(data, name):
    kind, text = data["columns"][name]
    return np.frombuffer(base64.b64decode(text), {"i": "<i4", "f": "<f4", "d": "<f8", "b": "u1"}[kind])


def codes_of(data, text):
    parts = re.findall(r'id="codes-\d+">(.*?)</script>', text)
    raw = b"".join(zlib.decompress(base64.b64decode(p)) for p in parts)
    return np.frombuffer(raw, np.int8).reshape(data["count"], *data["size"])


def findings_of(n):
    rows = np.arange(n)
    one = explore.Cluster(0, 0, rows[: n // 2], rows[:2], rows[n // 2 - 1 : n // 2], 0.7)
    two = explore.Cluster(1, 0, rows[n // 2 :], rows[n // 2 : n // 2 + 2], rows[-1:], 0.1)
    position = np.stack([np.linspace(-1, 1, n), np.linspace(1, -1, n)], 1)
    labels = (rows >= n // 2).astype(int)
    return explore.Findings(
        rows, rows * 0, labels, position, rows + 1.0, (one, two), {0: np.array([0, 0.1, 0.9])}, {}, {}
    )


def test_what_is_on_the_page_is_what_was_stored(tmp_path):
    rng = np.random.default_rng(0)
    R, y = rng.normal(size=(10, 6, 5, 3)), rng.normal(size=(10, 4))
    R[3, 2, 2] = np.nan
    with pytest.warns(lrpjax.batches.NonFiniteWarning):
        store = stored(tmp_path / "store", R, y, sums=True)
    page = report.write(store, tmp_path / "r.html", classes=np.arange(10) % 4, findings=findings_of(10))
    data, text = data_of(page)
    codes, scale = codes_of(data, text), column(data, "scale")
    shown = np.where(codes == -128, np.nan, codes / 127 * scale[:, None, None])
    assert np.isnan(shown).sum() == 1 and np.isnan(shown[3, 2, 2])
    error = np.abs(shown - R.sum(-1)) / scale[:, None, None]
    assert 1 / 1000 < np.nanmax(error) <= 1 / 254 + 1e-12
    np.testing.assert_allclose(scale, np.nanmax(np.abs(R.sum(-1)), (1, 2)))
    np.testing.assert_array_equal(column(data, "pred"), y.argmax(1))
    np.testing.assert_allclose(column(data, "score"), y.max(1).astype(np.float32))
    np.testing.assert_array_equal(column(data, "finite"), np.arange(10) != 3)
    np.testing.assert_allclose(column(data, "kept"), R.sum((1, 2, 3)) / y.max(1), rtol=1e-6)
    np.testing.assert_array_equal(column(data, "cluster"), [0] * 5 + [1] * 5)
    assert [c["prototypes"] for c in data["clusters"]] == [[0, 1], [5, 6]]
    said = re.search(r'id="size">([\d.]+) MB of 64 MB', text)[1]
    assert float(said) == pytest.approx(page.stat().st_size / 1e6, abs=0.06)
    finite = np.arange(10) != 3
    assert f"{R.sum((1, 2, 3))[finite].sum():,.6g}" in text and f"{y.max(1)[finite].sum():,.6g}" in text


def test_the_same_store_gives_the_same_page(tmp_path):
    store = stored(tmp_path / "store", np.random.default_rng(0).normal(size=(5, 4, 4)))
    pages = [report.write(store, tmp_path / f"{n}.html").read_bytes() for n in "ab"]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(("size", "small"), [((12, 8), (3, 4)), ((7, 9), (3, 5)), ((224, 224), (32, 32))])
def test_pooling_conserves_the_sum_of_each_sample(size, small):
    R = np.random.default_rng(0).normal(size=(3, *size))
    pooled = thumbnails.pooled(R, *small)
    assert pooled.shape == (3, *small)
    np.testing.assert_allclose(pooled.sum((1, 2)), R.sum((1, 2)), rtol=1e-10)
    # What a cell has comes from where it lies: a point's neighbourhood has all of its relevance.
    point = np.zeros((1, *size))
    point[0, -1, 0] = 1.0
    assert thumbnails.pooled(point, *small)[0, -1, 0] == pytest.approx(1.0)
    if size == (12, 8):
        np.testing.assert_allclose(pooled, R.reshape(3, 3, 4, 4, 2).sum((2, 4)))


def test_a_cell_over_what_is_not_finite_is_not_finite_and_no_other():
    R = np.ones((2, 4, 4))
    R[0, 0, 0] = np.inf
    found = thumbnails.pooled(R, 2, 2)
    assert np.isnan(found[0, 0, 0]) and np.isfinite(found).sum() == 7


def test_the_budget_is_kept_first_by_smaller_thumbnails_then_by_a_folder(tmp_path):
    R = np.random.default_rng(0).normal(size=(120, 96, 96)).astype(np.float32)
    store = stored(tmp_path / "store", R)
    free, tight = (report.write(store, tmp_path / f"{mb}.html", budget_mb=mb) for mb in (8, 0.5))
    sizes = [data_of(page)[0]["size"] for page in (free, tight)]
    assert sizes[0] == [96, 96] and 32 <= sizes[1][0] < 96
    assert tight.stat().st_size <= 0.5e6
    index = report.write(store, tmp_path / "folder.html", budget_mb=0.16, findings=findings_of(120))
    assert index == tmp_path / "folder" / "index.html" and not (tmp_path / "folder.html").exists()
    pages = sorted(index.parent.glob("page-*.html"))
    assert len(pages) > 1 and all(page.stat().st_size <= 0.16e6 for page in [index, *pages])
    rows = np.concatenate([column(data_of(page)[0], "row") for page in pages])
    np.testing.assert_array_equal(rows, np.arange(120))
    assert {0, 1, 59, 60, 61, 119} <= {*column(data_of(index)[0], "row").tolist()}  # prototypes and outliers
    links = re.findall(r'<li><a href="([^"]+)"', index.read_text())
    assert [*links] == ["index.html", *(page.name for page in pages)]
    with pytest.raises(report.ReportError, match="too small for a page of 20 samples"):
        report.write(store, tmp_path / "none.html", budget_mb=0.01)
    assert not list(tmp_path.glob("*none*"))


def test_no_text_becomes_markup(tmp_path):
    R = np.random.default_rng(0).normal(size=(3, 2))
    store = stored(tmp_path / "store", R, R, {"model": EVIL, "note": EVIL}, sums=True)
    page = report.write(
        store, tmp_path / "r.html", tokens=[[EVIL, "b"]] * 3, names=[EVIL, "b"], plan=EVIL, classes=[0, 1, 0]
    )
    data, text = data_of(page)
    assert data["names"][0] == EVIL and "<img" not in text
    packed = re.search(r'id="texts-0">(.*?)</script>', text)[1]
    assert json.loads(zlib.decompress(base64.b64decode(packed)))[0] == [EVIL, "b"]
    scripts = re.findall(r"<script([^>]*)>", text)
    assert sum("type=" not in s for s in scripts) == 1  # its own, allowed by its hash
    assert "default-src 'none'" in text and not re.search(r'(?:src|href)="https?:', text)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((4, 7), "strip"), ((4,), "none"), ((4, 2, 3, 4, 5), "none"), ((4, 3, 8, 8), "picture")],
)
def test_every_shape_gives_a_page(tmp_path, shape, kind):
    store = stored(tmp_path / "store", np.random.default_rng(0).normal(size=shape))
    data, text = data_of(report.write(store, tmp_path / "r.html"))
    assert data["kind"] == kind
    assert ("which are not drawn" in text) == (kind == "none")
    if kind == "picture":
        assert data["size"] == [8, 8] and "which come first" in text


def test_what_does_not_belong_to_the_store_is_refused(tmp_path):
    store = stored(tmp_path / "store", np.ones((6, 2)))
    for given, said in (
        ({"classes": [0.5] * 6}, "one class number"),
        ({"classes": [0] * 5}, "classes has 5 rows, but the store has 6"),
        ({"inputs": np.ones((5, 2, 2))}, "inputs has 5 rows"),
        ({"tokens": [["a"] * 3] * 6}, "row 0 has 3 tokens, but 2 relevances"),
        ({"tokens": ["ab"] * 6}, "must be a list of strings"),
        ({"findings": findings_of(8)}, "of another store"),
        ({"name": "nothing"}, "not 'nothing'"),
        ({"rows": slice(6, 9)}, "at least one row"),
        ({"rows": slice(0, 6, 2)}, "every row"),
        ({"budget_mb": 0}, "above 0"),
    ):
        with pytest.raises(report.ReportError, match=said):
            report.write(store, tmp_path / "r.html", **given)
    with pytest.raises(report.ReportError, match=r"ends in \.html"):
        report.write(store, tmp_path / "r.pdf")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_page_is_replaced_only_when_asked(tmp_path):
    store = stored(tmp_path / "store", np.ones((6, 2)))
    page = report.write(store, tmp_path / "r.html")
    with pytest.raises(report.ReportError, match="there already"):
        report.write(store, page)
    before = page.read_bytes()
    assert report.write(store, page, rows=slice(0, 3), overwrite=True).read_bytes() != before
    assert "Rows 0 to 2 of 6" in page.read_text()


def test_a_store_that_is_being_written(tmp_path):
    import jax

    def batches():
        yield np.ones((4, 3))
        raise KeyError("stopped")

    with pytest.raises(KeyError):
        list(
            lrpjax.explain_batches(
                jax.jit(lambda x: 2.0 * x), batches(), store=tmp_path / "store", progress=False
            )
        )
    page = report.write(tmp_path / "store", tmp_path / "r.html", classes=np.zeros(9, int))
    assert "The store is not complete: 4 rows so far." in page.read_text()


MODEL = """
import jax.numpy as jnp

def build():
    return lambda w, x: jnp.maximum(x.reshape(len(x), -1), 0.0) @ w, jnp.ones((48, 2), jnp.float32)
"""


def test_the_command_compares_inputs_and_undoes_mean_and_std(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).uniform(size=(7, 4, 4, 3)).astype(np.float32)
    np.save("x.npy", x)
    np.save("other.npy", x[::-1])
    np.save("y.npy", np.zeros(7, int))
    (tmp_path / "model_of_report.py").write_text(MODEL)
    explain = (
        "explain --model model_of_report.py:build --inputs x.npy --batch 3 --out store --mean 0.5 --std 0.25"
    )
    assert main(explain.split()) == 0
    assert (
        main(["report", "store", "--out", "a.html", "--inputs", "x.npy", "--classes", "y.npy", "--plan"]) == 0
    )
    data, text = data_of(tmp_path / "a.html")
    assert data["picture"] == [4, 4, 3] and "dense" in text and "stretched" not in text
    store = lrpjax.open_store("store")
    inputs = sources.Explained(lrpjax.loading.Inputs(["x.npy"], mean="0.5", std="0.25"), store)
    np.testing.assert_allclose(inputs[2:5], x[2:5], atol=1e-6)
    assert main(["report", "store", "--out", "b.html", "--inputs", "other.npy"]) == 2
    assert "batch 0 of the input (rows 0 to 2) is not the one that was explained" in capsys.readouterr().err
    assert not (tmp_path / "b.html").exists()
    assert main(["report", "store", "--out", "a.html"]) == 2
    assert main(["report", "store", "--out", "a.html", "--force", "--rows", "1:4"]) == 0
    np.testing.assert_array_equal(column(data_of(tmp_path / "a.html")[0], "row"), [1, 2, 3])
