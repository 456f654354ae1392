"""How Sphinx makes the site of these pages: `python -m sphinx -W --keep-going -b html notebooks build/site`.

The site is read from a disk as well as from a server. So it loads nothing from other hosts, and its search is Sphinx's
own, which needs neither a server nor a network.
"""

import ast
import functools
import inspect
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from docutils import nodes  # noqa: E402
from sphinx.pycode.parser import VariableCommentPicker  # noqa: E402

from lrpjax import __version__  # noqa: E402  (of this tree, wherever another one is installed)

# The one address of the repository, for the link to a page's source. Empty as long as there is none.
REPOSITORY = ""

project = "lrpjax"
author = "the authors of lrpjax"
copyright = "the authors of lrpjax, MIT licence"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["**/.ipynb_checkpoints", "_static", "images"]
root_doc = "index"

# ---------------------------------------------------------------------------------------------------------------- pages

# The notebooks are kept with their outputs, and run by tests/test_notebooks.py.
nb_execution_mode = "off"
nb_merge_streams = True
nb_number_source_lines = False
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = [
    # Outputs of notebooks have a form for pages and others for consoles; the others are rightly passed over.
    "mystnb.mime_priority",
]

# ------------------------------------------------------------------------------------------------------------ docstrings

napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
# What lrpjax.torch and lrpjax.onnx import is big, and their docstrings are read without it.
autodoc_mock_imports = ["torch", "torchax", "jax2onnx", "onnx_ir", "onnxruntime"]
default_role = "py:obj"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

# ------------------------------------------------------------------------------------------------------------ appearance

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"lrpjax {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
# The texts of results are fetched from their pages, which browsers refuse to pages that are opened from a disk.
html_show_search_summary = False
html_theme_options = {"navigation_with_keys": True}
if REPOSITORY:
    html_theme_options |= {
        "source_repository": REPOSITORY,
        "source_branch": "main",
        "source_directory": "notebooks/",
    }
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .gp, .go"

# ----------------------------------------------------------------------------------------------------------------- links

# Where a page leads to files outside of notebooks/, so that the link works in the repository, too, the site has the
# same file as a page of its own: (what the link begins with, what stands in its place in the site).
PLACES = [
    (r"(?:\.\./)*(?:tests/)?(papers|benchmarks|world)/results/", r"/results/\1/"),
    (r"(?:\.\./)*README\.md(?:#[\w-]*)?", "/index.md"),
    (r"(?:\.\./)*CONTRIBUTING\.md", "/contributing.md"),
    (r"(?:\.\./)*CHANGELOG\.md", "/changelog.md"),
    (r"(?:\.\./)*CITATION\.cff", "/cite.md"),
    (r"notebooks/(?=[\w/]+\.(?:md|ipynb))", "/"),
]


def relink(text: str) -> str:
    """The text of a page with its links to other files of the repository led to their pages in the site."""
    for place, there in PLACES:
        text = re.sub(rf"(?<=\]\(){place}", there, text)
    return text


INCLUDE = re.compile(r"(?m)^```\{include\} (\S+)\n```$")


def with_alternatives(notebook: str) -> str:
    """A notebook whose cells say what stands for their pictures: MyST-NB asks cells, and notebooks keep it with outputs."""
    read = json.loads(notebook)
    for cell in read["cells"]:
        kept = [output.get("metadata", {}).get("image/png", {}) for output in cell.get("outputs", [])]
        told = [metadata["alt"] for metadata in kept if metadata.get("alt")]
        if told:
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["alt"] = " ".join(told)
    return json.dumps(read)


def read_page(app, name, source):
    """Puts files in where a page asks for them, before MyST does, so that their links can be led to pages, too."""
    if str(app.env.doc2path(name)).endswith(".ipynb"):
        source[0] = with_alternatives(source[0])
    folder = Path(app.env.doc2path(name)).parent

    def included(match):
        path = (folder / match[1]).resolve()
        app.env.note_dependency(str(path))
        return path.read_text()

    source[0] = relink(INCLUDE.sub(included, source[0]))


# --------------------------------------------------------------------------------------------- docstrings, as reST wants

KEPT = re.compile(r"(``.+?``|`[^`]+`)", re.S)


def read_docstring(app, what, name, object, options, lines):
    """Escapes what reST would take for markup in text that is written as text: stars, bars, names ending in _."""
    text, out, example = [], [], False

    def flush():
        parts = KEPT.split("\n".join(text))
        for i in range(0, len(parts), 2):
            parts[i] = re.sub(r"(?<!\*)\*(?!\*)|\|", lambda m: "\\" + m[0], parts[i])
            parts[i] = re.sub(r"(?<=\w)_(?!\w)", r"\_", parts[i])
        for i in range(1, len(parts), 2):
            # A bare backslash is markup in a role; inside of double backticks it is itself.
            if not parts[i].startswith("``") and re.search(r"[\\<>!~]", parts[i]):
                parts[i] = f"`{parts[i]}`"
        out.extend("".join(parts).split("\n") if text else [])
        text.clear()

    for line in lines:
        if line.lstrip().startswith(">>>") and not example:
            flush()
            if out and out[-1].strip():
                out.append("")
            example = True
        elif not line.strip() and example:
            example = False
        if example:
            out.append(line)
        else:
            text.append(line)
    flush()
    lines[:] = out


@functools.cache
def _tree(path):
    return ast.parse(Path(path).read_text())


def _written(function):
    """The parameters of a function and what it returns, as its source has them."""
    path, line = inspect.getsourcefile(function), function.__code__.co_firstlineno
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if first == line and node.name == function.__name__:
                return ast.unparse(node.args), node.returns and ast.unparse(node.returns)
    return None


def signature(app, what, name, object, options, arguments, returned):
    """Signatures as they are written: `ArrayLike`, and not the long union of types that it stands for."""
    function = inspect.unwrap(object) if callable(object) else object
    if inspect.isclass(object):
        function = vars(object).get("__init__")
    if not inspect.isfunction(function) or "site-packages" in (inspect.getsourcefile(function) or ""):
        return None
    try:
        found = _written(function)
    except (OSError, TypeError):
        return None
    if found is None:
        return None
    # Two classes have this name; the whole one says which is meant.
    arguments, returned = (
        text and re.sub(r"\bReading\b", f"{function.__module__}.Reading", text) for text in found
    )
    if what in ("class", "exception", "method"):
        arguments = re.sub(r"^(self|cls)(, |$)", "", arguments)
    return f"({arguments})", None if what in ("class", "exception") else returned


# Of a function with overloads the signature is its own here, which says in a few lines what they say in many.
VariableCommentPicker.add_overload_entry = lambda self, function: None


def skip(app, what, name, object, skip, options):
    """Fields of named tuples say nothing of themselves; their class does."""
    if (getattr(object, "__doc__", None) or "").startswith("Alias for field number"):
        return True
    return None


# ------------------------------------------------------------------------------------------------------------- formulas

# MathML, which browsers draw by themselves. Sphinx's own ways load a script from elsewhere, or need TeX.


def formula(translator, node):
    from latex2mathml.converter import convert

    translator.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def formula_in_its_own_line(translator, node):
    from latex2mathml.converter import convert

    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>\n')
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (formula, None), (formula_in_its_own_line, None))
    app.connect("source-read", read_page)
    # Before napoleon, which takes what is left for markup.
    app.connect("autodoc-process-docstring", read_docstring, priority=400)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
