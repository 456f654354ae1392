"""The page on writing rules: its code runs from top to bottom, and prints what the page says."""

import doctest
import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "notebooks" / "writing_rules.md"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def read(text):
    """The examples of a page; the fences around them become empty lines, which end what an example prints."""
    return doctest.DocTestParser().get_doctest(re.sub(r"(?m)^```.*$", "", text), {}, PAGE.name, str(PAGE), 0)


def failures(page):
    said = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=OPTIONS)
    runner.run(page, out=said.append)
    return "".join(said)


def test_the_page_runs():
    page = read(PAGE.read_text())
    assert len(page.examples) > 60
    found = failures(page)
    assert not found, found


def test_what_the_page_gets_wrong_is_found():
    assert "Expected:\n    3\nGot:\n    2" in failures(read("```python\n>>> 1 + 1\n3\n\n```\n"))


def test_no_line_of_text_is_too_long():
    long = [line for line in PAGE.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long
