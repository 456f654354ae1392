"""The names that users import: they stay, wherever the package keeps the code, and cost nothing before they are used."""

import importlib
import subprocess
import sys

import pytest

PLACES = {
    "lrpjax.batches": "lrpjax.data.batches",
    "lrpjax.bow.demo": "lrpjax.cli.demos.bag_of_words",
    "lrpjax.commands": "lrpjax.cli.commands",
    "lrpjax.concepts": "lrpjax.analysis.concepts",
    "lrpjax.demo": "lrpjax.cli.demos.network",
    "lrpjax.estimators": "lrpjax.patterns.estimators",
    "lrpjax.gradients": "lrpjax.analysis.gradients",
    "lrpjax.language": "lrpjax.analysis.language",
    "lrpjax.loading": "lrpjax.data.loading",
    "lrpjax.metrics.similarity": "lrpjax.metrics.agreement",
    "lrpjax.parameters": "lrpjax.analysis.parameters",
    "lrpjax.positions": "lrpjax.analysis.positions",
    "lrpjax.similarity": "lrpjax.analysis.bilrp",
    "lrpjax.store": "lrpjax.data.store",
    "lrpjax.taylor": "lrpjax.analysis.taylor",
    "lrpjax.uncertainty": "lrpjax.analysis.uncertainty",
    "lrpjax.walks": "lrpjax.analysis.walks",
}


@pytest.mark.parametrize("name", PLACES)
def test_a_name_gives_the_module_object_of_its_place(name):
    module = importlib.import_module(name)
    assert module is importlib.import_module(PLACES[name])
    assert module.__name__ == module.__spec__.name == PLACES[name]
    parent, _, child = name.rpartition(".")
    assert getattr(importlib.import_module(parent), child) is module


def test_the_package_has_its_modules_and_audit_is_a_function():
    code = (
        "import sys, lrpjax\n"
        "for name in 'batches circuits concepts gradients language metrics patterns similarity store taylor walks'.split():\n"
        "    assert type(getattr(lrpjax, name)) is type(sys), name\n"
        "assert callable(lrpjax.audit)\n"
        "heavy = {'matplotlib', 'sklearn', 'flax', 'optax', 'tensorstore', 'orbax', 'lrpjax.cli', 'lrpjax.bow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from lrpjax import estimators\n"
        "from lrpjax.concepts import Samples\n"
        "import lrpjax.store\n"
        "assert Samples is lrpjax.concepts.Samples and estimators is lrpjax.patterns.estimators\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
