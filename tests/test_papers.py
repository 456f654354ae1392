"""The common parts of tests/papers: an interval by hand, and a finding that holds only where differences are beyond it."""

import importlib.util
import pathlib

import numpy as np
import pytest

FILE = pathlib.Path(__file__).parent / "papers" / "common.py"


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("papers_common", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
