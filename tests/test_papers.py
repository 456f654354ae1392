"""The common parts of tests/papers: an interval by hand, and a finding that holds only where differences are beyond it."""

import importlib
import importlib.util
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from lrpjax import metrics

PAPERS = pathlib.Path(__file__).parent / "papers"


def load(name):
    spec = importlib.util.spec_from_file_location(f"papers_{name}", PAPERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def common():
    return load("common")


@pytest.fixture
def script(monkeypatch):
    """A script by its name; they import what they share by its bare name."""
    monkeypatch.syspath_prepend(str(PAPERS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(PAPERS) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_run_knows_every_script_and_every_script_has_a_page():
    shared = {"common", "language", "run"}
    scripts = {file.stem for file in PAPERS.glob("*.py")} - shared
    assert set(load("run").SCRIPTS) == scripts
    pages = {page.stem.split("_")[0] for page in (PAPERS / "results").glob("*.md")}
    assert pages == scripts


def test_an_interval_is_that_of_student(common):
    mean, half = common.interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose([mean, half], [2.0, 4.302653 / np.sqrt(3)], rtol=1e-6)


def test_above_means_beyond_the_interval_of_paired_differences(common):
    first = {"clear": [2.0, 3.0, 4.0], "unclear": [2.0, 3.0, 9.0], "below": [0.0, 1.0, 2.0]}
    second = {"clear": [1.0, 2.0, 3.1], "unclear": [1.0, 3.5, 1.0], "below": [1.0, 2.0, 3.1]}
    assert common.always_above(first, second) == [True, False, False]


def test_areas_are_those_of_single_curves(common):
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 4, 4, 1)))
    w = np.random.default_rng(1).normal(size=(16, 2))
    f, maps, key = jax.jit(lambda x: x.reshape(len(x), -1) @ w), {"R": x * 2.0}, jax.random.key(0)
    fills = {"one": lambda x, key: jnp.ones_like(x), "mean": lambda x, key: 0 * x + metrics.channel_mean(x)}
    found = common.areas(f, x, maps, fills, (2,), key, steps=4)
    between = common.areas(f, x, maps, {"mean": fills["mean"]}, (2, 4), key, steps=4, between=True)
    assert list(found) == ["R", "random"] and list(found["R"]) == ["one", "mean"]
    assert list(between["R"]) == ["mean, 2 px", "mean, 4 px"]
    how = {"regions": 2, "fill": fills["mean"](x, key), "steps": 4, "key": key}
    morf, lerf, chance = (
        metrics.flipping(f, x, maps["R"], order=order, **how).scores for order in ("morf", "lerf", "random")
    )
    np.testing.assert_allclose(found["R"]["mean"], metrics.aopc(morf))
    np.testing.assert_allclose(found["random"]["mean"], metrics.aopc(chance))
    np.testing.assert_allclose(between["R"]["mean, 2 px"], metrics.abpc(morf, lerf))
    assert not between["random"]["mean, 2 px"].any()
    means = common.over_trainings([found, found])
    assert means["R"]["mean"] == pytest.approx([found["R"]["mean"].mean()] * 2)


def test_a_page_has_its_settings_intervals_and_findings(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.write(
        "page",
        "Title",
        "Two seeds.",
        {"method": {"LRP": {"a": [1.0, 1.0]}}, "B": {"LRP": {"b": [250.0, 250.0]}}},
        ["It holds."],
    )
    text = (tmp_path / "page.md").read_text()
    assert "## method\n\n| | a |" in text and "| LRP | 1.00 ± 0.00 |" in text and "| LRP | 250 ± 0 |" in text
    assert "Two seeds." in text and text.endswith("- It holds.\n")


def test_a_sentence_says_where_a_method_is_above_and_below(common):
    up, down, unclear = [2.0, 3.0, 4.0], [0.0, 1.0, 2.0], [2.0, 3.0, 9.0]
    rows = {
        "LRP": {"black, 1 px": up, "black, 2 px": up, "mean, 1 px": down, "mean, 2 px": unclear},
        "other": {c: [1.0, 2.1, 3.0] for c in ("black, 1 px", "black, 2 px", "mean, 1 px", "mean, 2 px")},
    }
    assert common.against(rows, ["LRP"], "other") == (
        "Against other:\n  - LRP: above in 2 of 4 (black); below in 1 of 4 (mean, 1 px)."
    )


def test_the_largest_jump_is_that_of_the_metric(script):
    montavon, key = script("montavon"), jax.random.key(0)
    x = jax.random.uniform(key, (2, 8, 8, 1))
    explain = lambda x: jnp.sin(5 * x)
    copies = {"moved": [metrics.translate(x, s, axis=2) for s in (-1, 1)]}
    plain, scaled = montavon.largest_jumps(explain, x, copies)
    to_one = lambda x: explain(x) / jnp.abs(explain(x)).sum((1, 2, 3), keepdims=True)
    for found, e in ((plain, explain), (scaled, to_one)):
        expected = metrics.continuity(e, x, shifts=[-1, 1]).mean()
        np.testing.assert_allclose(found["moved"], expected, rtol=1e-5)


def test_the_toy_has_the_weights_that_cancel_its_distractors(script):
    kindermans = script("kindermans")
    x, w, signal = kindermans.toy(np.random.default_rng(0), 10, 3, 1000)
    np.testing.assert_allclose(x @ w, signal @ w, atol=1e-9)
    found = kindermans.angles(x, w, signal)
    assert found["PatternNet, to the signal"] < 30 < found["gradient, to the signal"]


def test_an_angle_of_samples(script):
    angle = script("kindermans").angle
    first, second = (
        np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        np.array([[-2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    )
    assert angle(first, second) == pytest.approx(45)


def test_rollout_is_the_product_of_attention_and_skip_connections(script):
    achtibat = script("achtibat")
    first, second = np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
    whole = (np.eye(2) + second) @ (np.eye(2) + first)
    for read in np.eye(2):
        rolled = achtibat.rollout([jnp.asarray(first[None]), jnp.asarray(second[None])], jnp.asarray(read))
        np.testing.assert_allclose(rolled[0], read @ whole)


def test_attention_is_that_of_the_network_and_so_is_its_gradient(script, monkeypatch):
    """Against the derivative by what is added to the weights inside the network, of one layer after the other."""
    achtibat = script("achtibat")

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + achtibat.Attention(name="attention")(x)

    network, x = (
        nn.Sequential([Layer(), Layer()]),
        jnp.asarray(np.arange(288.0).reshape(2, 3, -1) % 7 / 7, "f4"),
    )
    f, classes = Partial(network.apply, jax.jit(network.init)(jax.random.key(1), x)), jnp.array([3, 7])
    softmax, seen = jax.nn.softmax, []

    def score(shifts):
        left = list(shifts)
        monkeypatch.setattr(nn, "softmax", lambda s: seen.append(softmax(s)) or seen[-1] + left.pop(0))
        y = f(x).sum(1)
        monkeypatch.undo()
        return y[jnp.arange(2), classes].sum(), seen

    shifts = [jnp.zeros((2, achtibat.HEADS, 3, 3), "f4")] * 2
    expected, weights = jax.jit(jax.grad(score, has_aux=True))(shifts)
    found = jax.jit(lambda x: achtibat.attention_of(lambda x: f(x).sum(1), x, classes, achtibat.HEADS))(x)
    for (own, gradient), true, by in zip(found, weights, expected, strict=True):
        np.testing.assert_allclose(own, true, atol=1e-5)
        np.testing.assert_allclose(gradient, by, atol=1e-5 * float(abs(by).max()))


def test_relp_is_closer_to_patching_than_attribution_patching_is(script, monkeypatch):
    """Rezaei Jafari et al. 2025, table 1, in small: a decoder of two layers that has learned which name is due."""
    language, jafari = script("language"), script("jafari")
    for name, size in {"WIDTH": 32, "HEADS": 2, "SIZE": 16, "HIDDEN": 64}.items():
        monkeypatch.setattr(language, name, size)
    task = language.TASKS["indirect objects"]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        params, accuracy = language.trained(task, 0, steps=400, batch=32)
        assert accuracy > 0.95
        clean, corrupted, *answers = task.pairs(np.random.default_rng(5), 8)
        runs = [jnp.asarray(a, jnp.int32) for a in (clean, corrupted, np.stack(answers, 1))]
        exact = jafari.effects(params, *runs)
        found = {}
        for name in ("attribution patching", "RelP"):
            scores = jafari.attributed(jafari.METHODS[name], jafari.NAMES)(params, *runs)
            found[name] = {
                place: jafari.correlation(scores, exact, names) for place, names in jafari.PLACES.items()
            }
    for place in jafari.PLACES:
        assert found["RelP"][place] > max(0.9, found["attribution patching"][place] + 0.05), (place, found)
