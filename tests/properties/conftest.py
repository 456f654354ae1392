"""How large the properties' search is: a fixed one of a minute in the suite, another one each time by `--nightly`."""

import os
import pathlib
import sys

import hypothesis

sys.path.insert(0, str(pathlib.Path(__file__).parent))

COMMON = {
    "database": None,
    "deadline": None,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "phases": [p for p in hypothesis.Phase if p is not hypothesis.Phase.explain],
}
hypothesis.settings.register_profile("suite", derandomize=True, **COMMON)
hypothesis.settings.register_profile("nightly", derandomize=False, print_blob=True, **COMMON)


def pytest_addoption(parser):
    parser.addoption(
        "--nightly",
        action="store_true",
        help="tests/properties: fifty times as many programs, and others each time",
    )


def pytest_configure(config):
    nightly = config.getoption("--nightly", default=False) or "LRPJAX_NIGHTLY" in os.environ
    hypothesis.settings.load_profile("nightly" if nightly else "suite")
