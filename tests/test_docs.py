"""What the documentation says exists: names in the pages' tables, and an example that runs in the docstring of every public name."""

import ast
import doctest
import importlib
import inspect
import pathlib
import re

import pytest

import lrpjax
from lrpjax.core import recognise
from lrpjax.core.kinds import KINDS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ("coming_from.md", "family.md")
EXPORTED = [node for node in ast.parse(inspect.getsource(lrpjax)).body if isinstance(node, ast.ImportFrom)]
PLACES = ("lrpjax", "lrpjax.analysis")
MODULES = {a.name for node in EXPORTED if node.module in PLACES for a in node.names if a.name == a.asname} | {
    "bow",
    "demo",
    "dossier",
    "estimators",
    "exchange",
    "explore",
    "repair",
    "report",
    "similarity",
    "viz",
}


def module(name):
    return lrpjax if name == "lrpjax" else importlib.import_module(f"lrpjax.{name}")


# ------------------------------------------------------------------------------------------------------------------------ the pages' code

CODE = re.compile(r"(?<![\w.])(" + "|".join(sorted({"lrpjax", *MODULES})) + r")\.\w")


def code_of(page):
    """The code spans of a page that speak of lrpjax; what an ellipsis cuts short is no code."""
    text = (ROOT / "notebooks" / page).read_text()
    spans = dict.fromkeys(span.replace(r"\|", "|") for span in re.findall(r"`([^`\n]+)`", text))
    return [span for span in spans if CODE.search(span) and "…" not in span and "/" not in span.split("(")[0]]


def resolve(node):
    """The object that `module.name.…` stands for, or None if the expression begins with something else."""
    if isinstance(node, ast.Name):
        return module(node.id) if node.id in {"lrpjax", *MODULES} else None
    if isinstance(node, ast.Attribute):
        owner = resolve(node.value)
        return None if owner is None else getattr(owner, node.attr)
    return None


@pytest.mark.parametrize(("page", "span"), [(page, span) for page in PAGES for span in code_of(page)])
def test_code_on_a_page_names_what_exists(page, span):
    found = []
    for node in ast.walk(ast.parse(span)):
        if isinstance(node, ast.Attribute):
            found.append(resolve(node))
        if isinstance(node, ast.Call) and resolve(node.func) is not None:
            given = [None for a in node.args if not isinstance(a, ast.Starred) and ast.unparse(a) != "..."]
            signature = inspect.signature(resolve(node.func))
            bind = signature.bind if len(given) == len(node.args) else signature.bind_partial
            bind(*given, **{k.arg: None for k in node.keywords})
    assert any(object is not None for object in found)


def test_pages_are_read():
    assert len(code_of("coming_from.md")) > 80
    with pytest.raises(AttributeError, match="no attribute 'Episilon'"):
        test_code_on_a_page_names_what_exists("", "rules.Episilon(1e-6)")
    with pytest.raises(TypeError, match="unexpected keyword"):
        test_code_on_a_page_names_what_exists("", "rules.Epsilon(gamma=1e-6)")


# ------------------------------------------------------------------------------------------------------------------- what is told to contributors

BLOCK = re.compile(r"(?ms)^```python\n(.*?)^```$")


def failures(code, names):
    """What examples print otherwise than they say."""
    said = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(doctest.DocTestParser().get_doctest(code, names, "CONTRIBUTING.md", None, 0), out=said.append)
    return "".join(said)


def test_the_kind_that_contributors_are_shown_works(monkeypatch):
    errors, recogniser, kind, use = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert not failures(errors, {})
    written = {}
    exec(recogniser, written)
    exec(kind, written)
    first, *others = recognise.RECOGNISERS
    assert first is recognise.softmax.find
    monkeypatch.setattr(recognise, "RECOGNISERS", (first, written["find"], *others))
    monkeypatch.setitem(KINDS, "attention", written["Attention"]())
    assert not failures(use, {})
    assert "Got:\n    4" in failures(">>> 2 + 2\n5\n", {})


PATHS = re.compile(r"(?<![\w/.])((?:lrpjax|tests|core|rules|notebooks|\.ci)/[\w/.]*\w)")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page):
    named = PATHS.findall(re.sub(r"(?s)### An example.*?\n## ", "", (ROOT / page).read_text()))
    assert named
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "lrpjax" / path).exists(), path


# ------------------------------------------------------------------------------------------------------------------------------ docstrings


def public(name):
    """The names that a module offers: its `__all__`, what a package imports as itself, or what it defines without an underscore."""
    owner = module(name)
    names = getattr(owner, "__all__", None)
    if names is None:
        names = [
            key
            for key, value in vars(owner).items()
            if not key.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__.startswith(owner.__name__)
        ]
    return [key for key in names if callable(getattr(owner, key))]


@pytest.mark.parametrize(
    "name", [f"{owner}.{key}" for owner in ["lrpjax", *sorted(MODULES)] for key in public(owner)]
)
def test_a_public_name_has_an_example(name):
    owner, key = name.split(".")
    text = getattr(module(owner), key).__doc__ or ""
    assert ">>>" in text, f"lrpjax.{name} has no example in its docstring"


# -------------------------------------------------------------------------------------------------------------------------------- the site

API = "".join(path.read_text() for path in sorted((ROOT / "notebooks" / "api").glob("*.md")))


@pytest.mark.parametrize("name", [f"{o}.{key}" for o in ["lrpjax", *sorted(MODULES)] for key in public(o)])
def test_a_public_name_is_in_the_reference(name):
    owner, key = name.split(".")
    object = getattr(module(owner), key)
    homes = {"lrpjax", f"lrpjax.{owner}", object.__module__, *(f"lrpjax.{o}" for o in MODULES)}
    listed = re.findall(rf"(?m)^\.\. (?:auto\w+|py:data):: (lrpjax[\w.]*)\.{key}$", API)
    assert homes & {*listed}, f"{name} is on no page of notebooks/api"


def test_each_page_is_in_a_table_of_contents():
    notebooks = ROOT / "notebooks"
    pages = {
        p.relative_to(notebooks).with_suffix("").as_posix()
        for e in ("md", "ipynb")
        for p in notebooks.rglob(f"*.{e}")
    }
    listed = {"index"}
    for path in notebooks.rglob("*.md"):
        for block in re.findall(r"(?ms)^```\{toctree\}\n(.*?)^```$", path.read_text()):
            for line in block.splitlines():
                if line and not line.startswith(":"):
                    name = re.sub(r"^.*<(.*)>$", r"\1", line)
                    listed.add((path.parent / name).relative_to(notebooks).as_posix())
    assert pages <= listed, pages - listed


def test_each_exception_has_a_section():
    source = "".join(path.read_text() for path in (ROOT / "lrpjax").rglob("*.py"))
    defined = re.findall(r"(?m)^class (\w+)\((?:LrpjaxError|UserWarning)", source)
    pages = ROOT / "notebooks"
    listed = re.findall(r"autoexception:: [\w.]+\.(\w+)", (pages / "api" / "errors.md").read_text())
    sections = re.findall(r"(?m)^### (\w+)$", (pages / "errors.md").read_text())
    assert len(defined) > 20
    assert {*defined, "LrpjaxError"} == {*listed} == {*sections}


def test_each_table_of_results_has_a_page():
    for path in (ROOT / "tests").glob("*/results/*.md"):
        page = ROOT / "notebooks" / "results" / path.parent.parent.name / path.name
        assert f"../../../{path.relative_to(ROOT).as_posix()}" in page.read_text()


@pytest.mark.parametrize("page", ["how_it_works.md", "errors.md"])
def test_what_a_page_shows_is_what_comes(page):
    text = re.sub(r"(?m)^```.*$", "", (ROOT / "notebooks" / page).read_text())
    assert text.count(">>>") > 8
    found = failures(text, {})
    assert not found, found
