"""What the type checker is told is right also runs, and users' type checkers are told that the package has types."""

import importlib.util
import pathlib

import pytest

import lrpjax

PLACE = pathlib.Path(__file__).with_name("typing_cases.py")
SPEC = importlib.util.spec_from_file_location("typing_cases", PLACE)
typing_cases = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(typing_cases)


@pytest.mark.parametrize("case", typing_cases.CASES, ids=lambda case: case.__name__)
def test_the_calls_that_a_type_checker_accepts_run(case):
    case()


def test_the_package_says_that_it_has_types():
    """PEP 561: without this file type checkers take nothing of what is annotated. The wheel holds the whole folder."""
    assert (pathlib.Path(lrpjax.__file__).parent / "py.typed").is_file()
