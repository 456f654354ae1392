"""The common parts of tests/papers: an interval by hand, and a finding that holds only where differences are beyond it."""

import importlib
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrpjax import metrics

FILE = pathlib.Path(__file__).parent / "papers" / "common.py"


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("papers_common", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def beside(monkeypatch):
    """A module of tests/papers by its name; those import each other by their bare names, as scripts do."""
    monkeypatch.syspath_prepend(str(FILE.parent))
    return importlib.import_module


def test_an_interval_is_that_of_student(common):
    mean, half = common.interval([1.0, 2.0, 3.0])
    np.testing.assert_allclose([mean, half], [2.0, 4.302653 / np.sqrt(3)], rtol=1e-6)


def test_above_means_beyond_the_interval_of_paired_differences(common):
    first = {"clear": [2.0, 3.0, 4.0], "unclear": [2.0, 3.0, 9.0], "below": [0.0, 1.0, 2.0]}
    second = {"clear": [1.0, 2.0, 3.1], "unclear": [1.0, 3.5, 1.0], "below": [1.0, 2.0, 3.1]}
    assert common.always_above(first, second) == [True, False, False]


def test_a_page_has_its_settings_intervals_and_findings(common, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    common.write("page", "Title", "Two seeds.", ["a"], {"LRP": {"a": [1.0, 1.0]}}, ["It holds."])
    text = (tmp_path / "page.md").read_text()
    assert "| LRP | 1.00 ± 0.00 |" in text and "Two seeds." in text and text.endswith("- It holds.\n")


def test_a_sentence_says_where_a_method_is_above_and_below(beside):
    up, down, unclear = [2.0, 3.0, 4.0], [0.0, 1.0, 2.0], [2.0, 3.0, 9.0]
    rows = {
        "LRP": {"black, 1 px": up, "black, 2 px": up, "mean, 1 px": down, "mean, 2 px": unclear},
        "other": {c: [1.0, 2.1, 3.0] for c in ("black, 1 px", "black, 2 px", "mean, 1 px", "mean, 2 px")},
    }
    assert beside("tables").against(rows, ["LRP"], "other") == (
        "Against other:\n  - LRP: above in 2 of 4 (black); below in 1 of 4 (mean, 1 px)."
    )


def test_a_page_can_have_several_tables(beside, tmp_path, monkeypatch):
    tables = beside("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    tables.write_tables(
        "page", "Title", "Set.", {"A": {"LRP": {"a": [1.0, 1.0]}}, "B": {"LRP": {"b": [250.0, 250.0]}}}, []
    )
    text = (tmp_path / "page.md").read_text()
    assert "## A\n\n| | a |" in text and "| LRP | 1.00 ± 0.00 |" in text and "| LRP | 250 ± 0 |" in text


def test_the_largest_jump_is_that_of_the_metric(beside):
    montavon, key = beside("montavon"), jax.random.key(0)
    x = jax.random.uniform(key, (2, 8, 8, 1))
    explain = lambda x: jnp.sin(5 * x)
    copies = {"moved": [metrics.translate(x, s, axis=2) for s in (-1, 1)]}
    plain, scaled = montavon.largest_jumps(explain, x, copies)
    to_one = lambda x: explain(x) / jnp.abs(explain(x)).sum((1, 2, 3), keepdims=True)
    for found, e in ((plain, explain), (scaled, to_one)):
        expected = metrics.continuity(e, x, shifts=[-1, 1]).mean()
        np.testing.assert_allclose(found["moved"], expected, rtol=1e-5)


def test_the_toy_has_the_weights_that_cancel_its_distractors(beside):
    kindermans = beside("kindermans")
    x, w, signal = kindermans.toy(np.random.default_rng(0), 10, 3, 1000)
    np.testing.assert_allclose(x @ w, signal @ w, atol=1e-9)
    found = kindermans.angles(x, w, signal)
    assert found["PatternNet, to the signal"] < 30 < found["gradient, to the signal"]


def test_an_angle_of_samples(beside):
    angle = beside("kindermans").angle
    first, second = (
        np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        np.array([[-2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    )
    assert angle(first, second) == pytest.approx(45)
