"""Data flows one way: what a module may import is told by the folder, or the stage of the core, that it stands in."""

import ast
import pathlib

import pytest

import lrpjax

PACKAGE = pathlib.Path(lrpjax.__file__).parent

LAYERS = (
    "errors select _version _aliases _hints _html _progress _types",
    "rules",
    "core.compat",
    "core.primitives core.reached",
    "core.graph",
    "core.dataflow core.dimensions core.facts core.maxima core.nnx core.quantised core.units core.vjps core.ways",
    "core.cancelling core.recognise",
    "core.kinds",
    "core.plan core.paths core.references",
    "core.alike core.calls core.cuts core.ends core.factors core.turns",
    "core.frame",
    "core.given core.inspection core.program core.seeds",
    "core.accounts core.compiled core.frozen",
    "core",
    "composites custom targets viz _evaluate",
    "_chosen",
    "linearised transform",
    "analysis circuits metrics neuralised patterns bow",
    "data keras onnx pretrained torch",
    "explore",
    "exchange repair report",
    "dossier",
    "cli",
    "",
)
"""From the bottom to the top; a module belongs to the longest name that it begins with. The package itself is above all."""

RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split(" ")}
MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


def layer_of(module):
    """The name in LAYERS that a module stands under, or None if nobody has said where it belongs."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    if module == "core" or (parts[0] == "core" and len(parts) == 1):
        return "core"
    if parts[0] == "core":
        names = [n for n in names if n != "core"]
    return "" if module == "" else next((n for n in names if n in RANK), None)


def imports_of(module):
    """The modules of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "lrpjax":
                inner = name.partition(".")[2]
                yield inner if inner in MODULES else inner.rpartition(".")[0]


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m or "lrpjax")
def test_a_module_imports_only_what_stands_below_it(module):
    layer = layer_of(module)
    assert layer is not None, f"{module} stands in no layer: say in LAYERS what it may import"
    for other in imports_of(module):
        assert RANK[layer_of(other)] <= RANK[layer], f"{module} imports {other}, which stands above it"


def test_no_two_modules_import_each_other():
    graph = {m: set(imports_of(m)) - {m} for m in MODULES if m}
    while graph:
        free = [m for m, used in graph.items() if not used & set(graph)]
        assert free, f"a circle of imports among {sorted(graph)}"
        for m in free:
            del graph[m]


def test_rules_know_nothing_of_the_core():
    used = {other for m in MODULES if m.startswith("rules") for other in imports_of(m)}
    assert all(other.split(".")[0] in ("rules", "errors", "_hints") for other in used)


def test_only_kinds_and_recognisers_say_kinds_by_name():
    """What a kind does stands in its class: nothing else of the core compares `kind` with a name."""
    for module, file in MODULES.items():
        if module.startswith("core.") and not module.startswith(("core.recognise", "core.kinds")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Compare):
                    sides = [node.left, *node.comparators]
                    asks = any(isinstance(s, ast.Attribute) and s.attr == "kind" for s in sides)
                    assert not asks, f"{module}, line {node.lineno}"


def test_the_layers_can_be_violated(monkeypatch):
    """The test above it can fail: a module that nobody placed, and an import that goes up."""
    assert layer_of("somewhere") is None
    assert layer_of("core.kinds.layer") == "core.kinds" and layer_of("core.elsewhere") is None
    assert RANK[layer_of("core.kinds.layer")] > RANK[layer_of("rules.layers")]
