"""The dossier of an explanation: what it measures, against the same done otherwise; what it refuses; what it writes."""

import html.parser
import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, dossier, explore, metrics
from lrpjax.data.store import open_store
from lrpjax.dossier import identity, limits, measures
from lrpjax.dossier.charts import ticks
from lrpjax.dossier.intervals import mean_interval, proportion_interval
from lrpjax.dossier.subject import Subject, first_uses


def network(params, x):
    """Two layers that are used in another order than their names have."""
    h = jax.nn.relu(x.reshape(len(x), -1) @ params["z"]["w"] + params["z"]["b"])
    return h @ params["a"]["w"] + params["a"]["b"]


def weights(inputs=12, classes=3, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(size=shape)
    return {"z": {"w": draw(inputs, 8), "b": draw(8)}, "a": {"w": draw(8, classes), "b": draw(classes)}}


def inputs(n=24, shape=(12,), seed=1):
    return np.random.default_rng(seed).normal(size=(n, *shape))


RULES = composites.epsilon(0.1)


@pytest.fixture(scope="module")
def made():
    classes = np.asarray(network(weights(), inputs())).argmax(1)
    classes[:3] = (classes[:3] + 1) % 3
    return dossier.make(network, weights(), inputs(), RULES, classes=classes, batch=10)


def subject(**changed):
    x = inputs()
    given = {"classes": np.asarray(network(weights(), x)).argmax(1).astype(np.int32), "batch": 10} | changed
    return Subject(network, RULES, weights(), x, **given)


def explained(params, x, classes):
    return lrpjax.value_and_relevance(network, RULES, argnums=1, target=classes)(params, x)


# ------------------------------------------------------------------------------------------------------------ what is measured


def test_explanations_do_not_depend_on_how_samples_fall_into_batches():
    one = subject()
    y, R = one.explain()
    y2, R2 = explained(weights(), inputs(), one.classes)
    np.testing.assert_allclose(y, y2, rtol=1e-12)
    np.testing.assert_allclose(R, R2, rtol=1e-9, atol=1e-12)


def test_conservation_is_that_of_each_sample_and_the_ledger_closes(made):
    one = subject()
    y, R = explained(weights(), inputs(), one.classes)
    share = np.asarray(R.sum(1) / y[np.arange(24), one.classes])
    kept = made.data["conservation"]
    for name, value in (("median", np.median(share)), ("min", share.min()), ("max", share.max())):
        assert kept["share"][name] == pytest.approx(value, rel=1e-9)
    assert sum(kept["share"]["histogram"]["counts"]) == 24
    ledger = kept["ledger"]
    # 24 samples in batches of 10 fill up 6 rows, which must not count.
    assert ledger["output"] == pytest.approx(float(y.max(1).sum()), rel=1e-9)
    assert ledger["arrived"] == pytest.approx(float(R.sum()), rel=1e-9)
    parts = sum(ledger[name] for name in ("arrived", "bias", "epsilon", "other", "constants", "rest"))
    assert parts == pytest.approx(ledger["output"], rel=1e-9)
    assert ledger["bias"] != 0 and ledger["epsilon"] != 0


def test_randomisation_is_that_of_the_metrics_from_the_output_down(made):
    one, x = subject(), jnp.asarray(inputs())
    fresh = measures.shuffled(weights(), 0)
    explain = lambda params, x: explained(params, x, one.classes)[1]
    similar = lambda a, b: (metrics.spearman(a, b), metrics.spearman(abs(a), abs(b)))
    signed, size = metrics.randomisation(explain, weights(), fresh, x, layers=["a", "z"], similarity=similar)
    found = made.data["sanity"]["randomisation"]
    assert [step["layer"] for step in found["steps"]] == ["a", "z"]
    for i, step in enumerate(found["steps"]):
        # Where no unit of the randomised network is active there is no relevance, and so no correlation.
        assert step["signed"]["left_out"] == int(np.isnan(signed[i]).sum()) < 6
        assert step["signed"]["mean"] == pytest.approx(float(np.nanmean(signed[i])), abs=1e-9)
        assert step["absolute"]["mean"] == pytest.approx(float(np.nanmean(size[i])), abs=1e-9)
    rise = metrics.efficient_mprt(explain, weights(), fresh, x)
    assert found["checks"][2]["found"]["mean"] == pytest.approx(
        float(rise[np.isfinite(rise)].mean()), rel=1e-6
    )


def test_dependence_on_the_class_is_the_contrast_of_the_metrics(made):
    explain = lambda x, c: explained(weights(), x, c)[1]
    contrast = metrics.class_contrast(lambda x: network(weights(), x), explain, inputs())
    check = made.data["sanity"]["classes"]["checks"][0]
    assert 1 - check["found"]["mean"] == pytest.approx(float(np.nanmean(contrast)), abs=1e-9)


def test_faithfulness_is_that_of_the_metrics(made):
    _, R = explained(weights(), inputs(), subject().classes)
    f, x = lambda x: network(weights(), x), inputs()
    *keys, ties = jax.random.split(jax.random.key(0), 4)
    curve = lambda order, key: metrics.flipping(f, x, R, order=order, steps=12, key=key).scores
    morf, lerf = curve("morf", ties), curve("lerf", ties)
    random = np.mean([curve("random", key) for key in keys], 0)
    fill = made.data["faithfulness"]["fills"][0]
    assert fill["fill"] == "0"
    assert fill["gain"]["mean"] == pytest.approx(
        float((metrics.aopc(morf) - metrics.aopc(random)).mean()), rel=1e-6
    )
    assert fill["abpc"]["mean"] == pytest.approx(float(metrics.abpc(morf, lerf).mean()), rel=1e-6)
    assert [point["mean"] for point in fill["curves"]["morf"]] == pytest.approx(
        np.asarray(morf).mean(0), rel=1e-6
    )


def test_an_interval_holds_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    found = [mean_interval(random.exponential(size=40), 0) for _ in range(60)]
    hits = sum(f["low"] <= 1.0 <= f["high"] for f in found)
    assert 51 <= hits <= 60  # 95 % of 60 is 57; below 51 in one of 400 such experiments
    assert mean_interval([1.0, np.nan, *range(9)], 0)["left_out"] == 1
    assert proportion_interval(0, 20)["high"] == pytest.approx(0.161125, abs=1e-5)


def test_a_verdict_needs_the_whole_interval():
    of = lambda low, high: {"low": low, "high": high}
    assert [
        measures.verdict(of(*ends), 0.5, below=True)
        for ends in ((0.1, 0.4), (0.6, 0.9), (0.4, 0.6), (None, None))
    ] == [
        "passed",
        "failed",
        "undecided",
        "undecided",
    ]
    assert measures.verdict(of(0.1, 0.4), 0.0, below=False) == "passed"


def test_a_constant_explanation_fails():
    """An explanation that looks at neither the model nor the class: one layer whose weights do not matter to the map."""
    f = lambda params, x: (x.sum(1, keepdims=True) * params["scale"]) @ jnp.ones((1, 3))
    x = np.abs(inputs(30))
    found = dossier.make(f, {"scale": np.abs(inputs(1)[0][:3]).reshape(1, 3).mean(1) * np.ones(2)[:1]}, x)
    assert not found.data["sanity"]["randomisation"]["applies"]  # a single number cannot be shuffled
    fresh = dossier.make(f, {"scale": np.ones(1)}, x, fresh={"scale": 2 * np.ones(1)})
    verdicts = [check["verdict"] for check in limits.checks_of(fresh.data)]
    assert verdicts == ["failed", "failed", "undecided", "failed", "failed"]
    assert {row["verdict"] for row in fresh.data["brief"]} >= {"failed"}
    assert any("Sanity check failed: model randomisation" in row["text"] for row in fresh.data["limits"])


def test_the_order_in_which_weights_are_used_is_seen_through_jit_and_scan():
    def f(params, x):
        x = jax.jit(lambda w, x: x @ w)(params["c"], x)
        x, _ = jax.lax.scan(lambda x, _: (x @ params["b"], None), x, None, length=2)
        return jnp.tanh(x @ params["a"].T.astype(x.dtype))

    w = jnp.eye(3)
    used = first_uses(f, {"a": w, "b": w, "c": w, "d": w}, w)
    assert np.argsort(used).tolist() == [2, 1, 0, 3]


# ------------------------------------------------------------------------------------------------------------ identity, second runs


def test_hashes_tell_models_inputs_and_programs_apart(made):
    again = dossier.make(network, weights(), inputs(), RULES, classes=None, batch=10)
    other = dossier.make(network, weights(seed=5), inputs(), RULES, batch=10)
    one, two, three = (d.data["model"] for d in (made, again, other))
    assert one["weights"]["sha256"] == two["weights"]["sha256"] != three["weights"]["sha256"]
    assert one["program"] == two["program"] == three["program"]
    assert one["explanation"] == two["explanation"] == three["explanation"]
    assert made.data["data"]["sha256"] == other.data["data"]["sha256"] == identity.array_hash(inputs())
    assert {leaf["path"]: leaf["shape"] for leaf in one["weights"]["leaves"]}["z/w"] == [12, 8]
    wide = identity.program(lambda params, x: jnp.tanh(network(params, x)), weights(), inputs())
    assert wide["jaxpr_sha256"] != one["program"]["jaxpr_sha256"]


def test_weights_that_f_holds_itself_are_hashed_and_said():
    held = weights()
    found = dossier.make(lambda params, x: network(jax.tree.map(jnp.asarray, held), x), {}, inputs(12))
    assert found.data["model"]["program"]["arrays_held_by_f"]["elements"] == 12 * 8 + 8 + 8 * 3 + 3
    texts = " ".join(row["text"] for row in found.data["limits"])
    assert "131 numbers are held by the function itself" in texts
    assert "Model randomisation was not tested" in texts


def test_a_second_dossier_is_the_same_in_every_bit_and_another_model_is_not(made):
    classes = np.asarray(network(weights(), inputs())).argmax(1)
    classes[:3] = (classes[:3] + 1) % 3
    again = dossier.make(
        network, weights(), inputs(), RULES, classes=classes, batch=10, command="another command"
    )
    found = dossier.compare(made, again)
    assert found.equal, str(found)
    assert made.data["made"] != again.data["made"]
    assert all(run["bit_equal"] and run["largest_difference"] == 0 for run in made.data["repeat"]["runs"])
    nudged = weights()
    nudged["a"]["w"][0, 0] += 1e-9
    found = dossier.compare(made, dossier.make(network, nudged, inputs(), RULES, classes=classes, batch=10))
    assert (
        not found.equal and "explanations" in found.differences and {"data", "environment"} <= {*found.same}
    )
    assert "apart" in str(found)


def test_a_run_that_gives_other_bits_is_reported_with_the_difference():
    one = subject()
    y, R = one.explain()
    moved = R.copy()
    moved[3, 2] += 0.25
    found = measures.repeated(one, y, moved)["runs"]
    assert not any(run["bit_equal"] for run in found)
    assert found[0]["samples_that_differ"] == 1 and found[0]["largest_difference"] == pytest.approx(0.25)


SCRIPT = textwrap.dedent("""
    import sys
    import jax, numpy as np
    from lrpjax import dossier
    random = np.random.default_rng(0)
    w = random.normal(size=(4, 3, 3, 1)).astype("float32"), random.normal(size=(4, 3)).astype("float32")
    def f(params, x):
        h = jax.lax.conv_general_dilated(x, params[0], (1, 1), "SAME", dimension_numbers=("NHWC", "OHWI", "NHWC"))
        return jax.nn.relu(h).mean((1, 2)) @ params[1]
    dossier.make(f, w, random.random((12, 8, 8, 1)).astype("float32")).save(sys.argv[1])
""")


def test_two_processes_write_the_same_bits(tmp_path):
    (tmp_path / "a.py").write_text(SCRIPT)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.py").write_text(
        "\n\n" + SCRIPT
    )  # other files and lines make no other program
    processes = [
        subprocess.Popen([sys.executable, file, str(tmp_path / out)], cwd=tmp_path, env=environment())
        for file, out in (("a.py", "one"), ("elsewhere/b.py", "two"))
    ]
    assert [p.wait(200) for p in processes] == [0, 0]
    one, two = (json.loads((tmp_path / out / "dossier.json").read_text()) for out in ("one", "two"))
    assert one.pop("made") and two.pop("made")
    assert json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert one["model"]["explanation"]["optimised_hlo_sha256"] is not None


def environment():
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# ------------------------------------------------------------------------------------------------------------ bad and unusual input


def test_rows_that_are_not_finite_are_left_out_and_named():
    x = inputs(14)
    x[3, 0], x[7] = np.nan, np.inf
    found = dossier.make(network, weights(), x, RULES)
    assert [row["row"] for row in found.data["data"]["left_out"]] == [3, 7]
    assert found.data["data"]["rows"] == [0, 1, 2, 4, 5, 6, *range(8, 14)]
    assert found.data["conservation"]["n"] == 12
    assert any(
        row["text"] == "Left out, the input is not finite: 2 samples, rows 3, 7."
        for row in found.data["limits"]
    )
    x[:] = np.nan
    with pytest.raises(dossier.DossierError, match="none of the 14 samples that were drawn is finite"):
        dossier.make(network, weights(), x, RULES)


def test_rows_whose_output_is_not_finite_are_left_out():
    f = lambda params, x: jnp.log(x @ params)
    x = np.abs(inputs(12, (4,)))
    x[5] = -1.0
    found = dossier.make(f, np.ones((4, 2)), x)
    assert found.data["data"]["left_out"] == [{"row": 5, "reason": "its output or relevance is not finite"}]
    assert len(found.data["conservation"]["samples"]) == 11


def test_few_samples_have_no_intervals_and_no_verdicts():
    found = dossier.make(network, weights(), inputs(4), RULES)
    assert {check["verdict"] for check in limits.checks_of(found.data)} == {"undecided"}
    assert found.data["faithfulness"]["fills"][0]["gain"]["low"] is None
    assert any("Only 4 samples" in row["text"] for row in found.data["limits"])
    assert "too few for an interval" in found.html()


def test_a_regression_has_no_classes():
    found = dossier.make(
        lambda params, x: network(params, x)[:, 0], weights(), inputs(12), RULES, target=None
    )
    assert found.data["sanity"]["classes"] == {
        "applies": False,
        "because": "the outputs are explained all together (target None), so that there are no classes to tell apart",
    }
    assert found.data["faithfulness"]["applies"] and found.data["conservation"]["applies"]
    assert "<strong>Not applicable</strong>" in found.html()
    with pytest.raises(dossier.DossierError, match="For a regression give target=None"):
        dossier.make(lambda params, x: network(params, x)[:, 0], weights(), inputs(12), RULES)


def test_gradients_are_not_conserved_and_that_is_said():
    found = dossier.make(network, weights(), inputs(12), composites.gradient())
    assert not found.data["conservation"]["applies"]
    assert any("gradients are no shares of the output" in row["text"] for row in found.data["limits"])


def test_a_cut_and_an_unmatched_pair_are_among_the_limits():
    f = lambda params, x: network(params, x) + (x > 1.0).sum(1, keepdims=True).astype(x.dtype)
    rules = lrpjax.Composite([("nowhere*", lrpjax.rules.Flat())])
    found = dossier.make(f, weights(), inputs(12), rules)
    texts = " ".join(row["text"] for row in found.data["limits"])
    assert "CutWarning: a part of what the output depends on receives no relevance" in texts
    assert "matched nothing here: ('nowhere*'" in texts
    assert str(dossier.__file__).rsplit("/", 3)[0] not in found.json()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": inputs(0)}, "N of at least 1"),
        ({"x": np.ones((4, 12), int)}, "only floating-point inputs"),
        ({"samples": 0}, "at least 1, not 0"),
        ({"target": 7}, "out of range: the outputs have 3 classes"),
        ({"target": "largest"}, "a target is"),
        ({"target": np.zeros(5, int)}, "target has 5 entries, but there are 12 samples"),
        ({"classes": np.zeros(12)}, "classes must be int"),
        ({"names": ["a"]}, "1 names were given"),
        ({"fresh": {"z": 0}}, "fresh must have the structure"),
        (
            {"f": lambda params, x: x @ params["nothing"]},
            r"f\(params, x\) failed for x of float64\[12, 12\] with KeyError",
        ),
        ({"f": lambda params, x: (x, x)}, "one array of outputs"),
        ({"f": lambda params, x: x.sum()}, "one array of outputs"),
    ],
)
def test_bad_input_is_told(changed, message):
    given = {"f": network, "params": weights(), "x": inputs(12), "composite": RULES} | changed
    with pytest.raises(dossier.DossierError, match=message):
        dossier.make(**given)


def test_sequences_pictures_and_long_vectors_have_regions():
    assert measures.regions_of((2, 7, 5))[0].shape == (7, 1)
    assert measures.regions_of((2, 100))[0].max() + 1 == 50
    labels, words = measures.regions_of((2, 3, 224, 224))
    assert labels.shape == (1, 224, 224) and labels.max() + 1 == 64 and words == "squares of 28×28 pixels"
    assert measures.regions_of((2, 12), np.arange(12) // 3)[0].max() == 3


# ------------------------------------------------------------------------------------------------------------ stores and findings


def stored(path, params=None, n=12):
    params = weights() if params is None else params
    explain = lambda x: dict(zip(("output", "relevance"), explained(params, x, "max"), strict=True))
    for _ in lrpjax.explain_batches(
        explain, [inputs(n)], store=path, settings={"model": "m"}, progress=False
    ):
        pass
    return open_store(path)


def findings(n=12):
    rows = np.arange(n)
    clusters = (
        explore.Cluster(0, 1, rows[:9], rows[:2], rows[8:9], 0.1),
        explore.Cluster(1, 1, rows[9:], rows[9:10], rows[11:], 0.9),
    )
    outlier = np.ones(n)
    outlier[5] = 4.0
    return explore.Findings(
        rows,
        rows * 0 + 1,
        np.repeat([0, 1], [9, 3]),
        np.zeros((n, 2)),
        outlier,
        clusters,
        {},
        {"NaN rows": rows[:0]},
        {"k": 2},
    )


def test_findings_beside_a_store_are_reported(tmp_path):
    store = stored(tmp_path / "store")
    assert (
        "the store has none"
        in dossier.make(network, weights(), inputs(12), RULES, store=store).data["clusters"]["because"]
    )
    findings().save(store.path / "findings.npz")
    found = dossier.make(network, weights(), inputs(12), RULES, store=store.path, names=["a", "b<i>", "c"])
    assert [c["size"] for c in found.data["clusters"]["clusters"]] == [9, 3]
    assert found.data["clusters"]["outliers"][0] == {"row": 5, "class": 1, "outlier": 4.0}
    assert found.data["store"]["outputs_compared"]["samples"] == 12
    assert str(tmp_path) not in found.json()
    page = found.html()
    assert "b&lt;i&gt;" in page and "b<i>" not in page


def test_a_store_of_another_model_is_an_error(tmp_path):
    stored(tmp_path / "store", weights(seed=9))
    with pytest.raises(dossier.DossierError, match="is of another model or other inputs: its outputs differ"):
        dossier.make(network, weights(), inputs(12), RULES, store=tmp_path / "store")


# ------------------------------------------------------------------------------------------------------------ what is written


class Reader(html.parser.HTMLParser):
    """Tags that are open at the end or closed in another order; ids; links; text of headings."""

    VOID = ("meta", "line", "rect", "polygon", "polyline", "link", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.wrong, self.ids, self.links, self.tags = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[a] for a in ("href", "src") if a in given]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_and_needs_nothing_besides_itself(made):
    page = made.html()
    read = Reader(page)
    assert not read.open and not read.wrong and len({*read.ids}) == len(read.ids)
    assert all(link.startswith("#") and link[1:] in read.ids for link in read.links)
    assert "script" not in {tag for tag, _ in read.tags} and "@import" not in page and "url(" not in page
    drawings = [given for tag, given in read.tags if tag == "svg"]
    assert len(drawings) >= 4 and all(
        given["role"] == "img" and len(given["aria-label"]) > 30 for given in drawings
    )
    assert page.count("<table>") == page.count("<caption>")
    for name in ("z/w", made.data["model"]["weights"]["sha256"], "Epsilon(epsilon=0.1)"):
        assert name in page
    assert "None" not in page and "nan" not in page.lower().replace("finance", "")


def test_markup_in_names_and_paths_is_text():
    evil = '<script>alert("x")</script>'
    params = {evil: weights()["z"], "a": weights()["a"]}
    f = lambda params, x: network({"z": params[evil], "a": params["a"]}, x)
    found = dossier.make(
        f,
        params,
        inputs(12),
        RULES,
        names=[evil, "'\">", "c"],
        classes=np.zeros(12, int),
        model=evil,
        composite_name=evil,
        command=evil,
    )
    page = found.html()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4
    assert not Reader(page).wrong


def test_both_files_are_written_or_none(made, tmp_path, monkeypatch):
    folder = made.save(tmp_path / "a" / "b")
    assert dossier.load(folder).data == dossier.load(folder / "dossier.json").data == made.data
    assert (folder / "dossier.html").read_text() == made.html()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    from pathlib import Path

    whole = Path.replace

    def fails(self, target):
        if str(target).endswith(".json"):
            raise OSError("the disk is full")
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    other = dossier.Dossier({**made.data, "limits": []})
    with pytest.raises(dossier.DossierError, match="the disk is full"):
        other.save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    with pytest.raises(dossier.DossierError, match="the disk is full"):
        other.save(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_reading_tells_what_is_no_dossier(tmp_path, made):
    with pytest.raises(dossier.DossierError, match="there is no dossier"):
        dossier.load(tmp_path)
    for text, message in (("{", "damaged"), ("[1]", "JSON of another kind")):
        (tmp_path / "dossier.json").write_text(text)
        with pytest.raises(dossier.DossierError, match=message):
            dossier.load(tmp_path)
    (tmp_path / "dossier.json").write_text(json.dumps({**made.data, "format": 0}))
    with pytest.raises(dossier.DossierError, match="another version of lrpjax"):
        dossier.load(tmp_path)


def test_json_is_strict(made):
    text = made.json()
    refuse = lambda name: pytest.fail(f"{name} in JSON")
    assert json.loads(text, parse_constant=refuse) == made.data


def test_ticks_are_few_and_round():
    for low, high in ((0.93, 1.0), (-3.0, 700.0), (0.0, 1e-7), (5.0, 5.0)):
        found = ticks(low, high)
        assert len(found) <= 7 and all(low - 1e-12 <= t <= max(high, low + 1) for t in found)
