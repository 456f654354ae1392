"""What a notebook is shown: tables, strings of HTML, treescope's trees, and progress bars in a kernel."""

import dataclasses
import html.parser
import os
import pathlib
import pickle
import re

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from nbclient import NotebookClient

import lrpjax
from lrpjax import composites, viz
from lrpjax._html import Html, Number, number, table
from lrpjax.core import plan as plans

ROOT = pathlib.Path(__file__).parent.parent


class Reader(html.parser.HTMLParser):
    """The headings, cells and notes of a table, with what cells are sorted by, and the tags that were opened."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.heads, self.rows, self.sorts, self.notes, self.inside, self.links = (
            [],
            [],
            [],
            [],
            [],
            None,
            [],
        )
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        self.links += [value for key, value in attrs if key in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
            self.sorts.append([])
        if tag == "td":
            self.rows[-1].append("")
            self.sorts[-1].append(dict(attrs).get("data-sort"))

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "th":
            self.heads.append(data)
        elif self.inside == "td":
            self.rows[-1][-1] += data
        elif self.inside == "p":
            self.notes.append(data)


def text_of(read):
    return [tuple(row) for row in read.rows[1:]]


# ------------------------------------------------------------------------------------------------------------------------------- tables


def test_text_is_escaped():
    rows = [['<script>alert("1")</script>', "a&b"], ["</td>", "</script>"]]
    read = Reader(table("a <b>", ["na<me", "c"], rows, ["note <i>"]))
    assert text_of(read) == [tuple(row) for row in rows]
    assert read.heads == ["na<me", "c"] and read.notes == ["note <i>"]
    assert read.tags.count("script") == 1 and not {"b", "i"} & set(read.tags)


def test_numbers_are_sorted_by_their_full_value():
    values = [1 / 3, -np.inf, np.nan, 1e-30, np.inf, 12345.678]
    read = Reader(table("numbers", ["v"], [[number(v)] for v in values]))
    assert [row[0] for row in read.sorts[1:]] == [
        "0.3333333333333333", "-Infinity", None, "1e-30", "Infinity", "12345.678",
    ]  # fmt: skip
    assert [row[0] for row in text_of(read)] == ["0.3333", "-inf", "nan", "1e-30", "inf", "1.235e+04"]


def test_a_column_of_text_is_not_sorted_as_numbers():
    page = table("t", ["name", "n"], [["7", Number("1", 1)], ["8", "-"]])
    assert '<th scope="col">name</th><th scope="col" class="number">n</th>' in page
    assert Reader(page).sorts[1:] == [[None, "1"], [None, None]]


def test_nothing_comes_from_outside_and_the_same_content_gives_the_same_page():
    make = lambda n: table("t", ["n"], [[Number("1", n)]])
    assert make(1.0) == make(1.0)
    name = lambda page: re.match('<div class="(lrpjax-[0-9a-f]{12})">', page)[1]
    assert name(make(1.0)) != name(make(1.5))
    assert not Reader(make(1.0)).links and "http" not in make(1.0) and "NAME" not in make(1.0)
    # Every rule of the style, and what the script looks for, is of this table alone.
    style = re.search("<style>(.*)</style>", make(1.0), re.S)[1]
    chosen = [part.strip() for part in re.findall(r"([^{}]+)\{", style) for part in part.split(",")]
    assert len(chosen) > 10 and all(s.startswith(f"div.{name(make(1.0))}") for s in chosen)
    assert make(1.0).count("document.") == 2  # one search for this table, and one button made


def test_an_empty_table():
    assert Reader(table("t", ["a", "b"], [])).heads == ["a", "b"]


# ---------------------------------------------------------------------------------------------------------------------- what has a table


def model(x):
    with jax.named_scope("first<&>"):
        x = jax.nn.relu(x @ jnp.array([[1.0, 2.0], [3.0, -1.0]]) + 1.0)
    with jax.named_scope("last"):
        return x @ jnp.array([[1.0], [1.0]])


X = jnp.array([[1.0, 2.0]])


def cells_of(text, count):
    """The columns' texts of the lines below the heading; cells are apart by two spaces."""
    return [tuple(re.split(r"\s{2,}", line.strip())) for line in text.splitlines()[1 : count + 1]]


def test_a_plan():
    plan = lrpjax.plan(model, composites.epsilon(0.5), X)
    read = Reader(plan._repr_html_())
    assert text_of(read) == cells_of(str(plan), len(plan))
    assert read.rows[1][1] == "first<&>"
    assert [row[4] for row in read.sorts[1:]] == ["2", "2", "1"]
    noted = dataclasses.replace(plan, unmatched=["(a, b)"], notes=["cut <here>"])
    assert Reader(noted._repr_html_()).notes == ["matched nothing: (a, b)", "cut <here>"]


def test_the_source_of_a_cell_does_not_name_the_process():
    assert plans._short("/tmp/ipykernel_123/456.py:3 (f)") == "456.py:3 (f)"
    assert plans._short("/home/a/b/c.py:3 (f)") == "b/c.py:3 (f)"


def test_an_audit_and_its_stages():
    audit = lrpjax.audit(model, composites.epsilon(0.5))(X)
    read = Reader(audit._repr_html_())
    assert text_of(read) == cells_of(str(audit), len(audit.units))
    assert read.notes == str(audit).splitlines()[1 + len(audit.units) :]
    assert [float(row[4]) for row in read.sorts[1:]] == [float(u.relevance_in) for u in audit.units]
    stages = audit.stages()
    read = Reader(stages._repr_html_())
    assert text_of(read) == cells_of(str(stages), len(stages))
    assert float(read.sorts[1][3]) == pytest.approx(float(stages[0].kept))


def test_a_tuning_and_its_front():
    grid = {"z": composites.epsilon(0.0), "e<": (composites.epsilon, {"epsilon": [1.0, 3.0]})}
    result = lrpjax.tune(lambda x: x @ jnp.array([[2.0, -1.0], [0.0, 1.0]]), X, grid)
    read = Reader(result._repr_html_())
    assert [row[:2] for row in text_of(read)] == [("z", "*"), ("e<(epsilon=1)", ""), ("e<(epsilon=3)", "")]
    assert float(read.sorts[2][2]) == result.rows[1].median("kept")
    front = Reader(result.front._repr_html_())
    assert front.heads == ["candidate", "kept", "size", "alike"] and [row[0] for row in text_of(front)] == [
        "z"
    ]
    assert isinstance(result.front, tuple)


def test_a_store(tmp_path):
    path = tmp_path / "a&b"
    for _ in lrpjax.explain_batches(
        lambda x: 2 * x, [np.ones((2, 3), np.float32)], store=path, progress=False
    ):
        pass
    read = Reader(lrpjax.open_store(path)._repr_html_())
    assert text_of(read) == [("relevance", "2×3", "float32")]
    assert read.notes == ["2 rows in 1 batches, complete", "0 rows are not finite"]


# ------------------------------------------------------------------------------------------------------------------------------- strings


class Printer:
    def __init__(self, shown):
        self.said = ""
        shown._repr_pretty_(self, False)

    def text(self, text):
        self.said += text


def test_tokens_show_themselves():
    ansi, page = (viz.tokens(["a", "<b>"], [0.0, 1.0], mode=mode) for mode in ("ansi", "html"))
    assert isinstance(ansi, str) and "\x1b[" in ansi and "\x1b[" not in ansi._repr_html_()
    assert ansi._repr_html_() == page == page._repr_html_()
    assert Printer(ansi).said == ansi and Printer(page).said == f"<{len(page)} characters of HTML>"
    assert pickle.loads(pickle.dumps(ansi))._repr_html_() == page


def test_a_generated_text_shows_itself_as_a_part_of_a_page():
    R = [[1.0, -2.0, 0.0], [0.0, 1.0, 4.0]]
    whole = viz.generated(["a", "b", "c"], R, start=1, document=True)
    part = viz.generated(["a", "b", "c"], R, start=1)
    assert whole.startswith("<!doctype") and whole._repr_html_() == part == part._repr_html_()
    assert isinstance(part, Html)


def test_tables_stand_beside_their_text():
    plan = lrpjax.plan(model, None, X)
    assert Printer(plan).said == str(plan)


# --------------------------------------------------------------------------------------------------------------------------------- trees


def text_of_tree(R, **keywords):
    """The page of a tree before treescope packs it, of which the tests read the marks."""
    import treescope

    packed, pages = treescope.render_to_html, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            treescope, "render_to_html", lambda R: pages.append(packed(R, compressed=False)) or pages[0]
        )
        viz.tree(R, **keywords)
    return pages[0]


def test_a_tree_has_the_share_of_every_part():
    pytest.importorskip("treescope")
    R = {"first": {"w": jnp.array([3.0, -4.0])}, "second": jnp.array([1.0]), "name": "x"}
    marks = re.findall(
        r"background:(rgb\([^)]*\))[^>]*>([\d.]+%, Σ R = [-\d.e]+)", text_of_tree(R, cmap="bwr")
    )
    # That of "first" stands for its only array as well.
    assert [text for _, text in marks] == ["100.0%, Σ R = 0", "87.5%, Σ R = -1", "12.5%, Σ R = 1"]
    assert [colour.replace(" ", "") for colour, _ in marks][1:] == ["rgb(31,31,255)", "rgb(255,223,223)"]


def test_a_tree_of_a_module():
    pytest.importorskip("treescope")
    from flax import nnx

    net = nnx.Linear(3, 2, param_dtype=float, rngs=nnx.Rngs(0))
    R = lrpjax.parameters.relevance(lambda m, x: m(x), composites.epsilon(0.0))(net, jnp.ones((1, 3)))
    page = text_of_tree(R)
    total = float(sum(leaf.sum() for leaf in jax.tree.leaves(R)))
    assert "Linear" in page and f"100.0%, Σ R = {total:.3g}" in page


def test_a_tree_is_the_same_each_time_and_says_what_is_not_finite():
    pytest.importorskip("treescope")
    R = {"w": jnp.array([[1.0, -jnp.inf], [jnp.nan, 1.0]])}
    page = viz.tree(R)
    assert page == viz.tree(R) and page._repr_html_() == page
    assert "not finite" in text_of_tree(R) and "background:rgb(0,255,0)" in text_of_tree(R)


@pytest.mark.parametrize(
    ("R", "keywords", "says"),
    [
        ({"a": jnp.arange(3)}, {}, "no array of real numbers"),
        (jnp.ones(2), {"limit": 0.0}, "limit must be positive"),
        (jnp.ones(2), {"cmap": "none such"}, "unknown colour map"),
    ],
)
def test_what_a_tree_refuses(R, keywords, says):
    pytest.importorskip("treescope")
    with pytest.raises(ValueError, match=says):
        viz.tree(R, **keywords)


def test_a_tree_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "treescope", None)
    with pytest.raises(ImportError, match="pip install"):
        viz.tree(jnp.ones(2))


# ------------------------------------------------------------------------------------------------------------------------ progress bars

CELLS = [
    "import jax, numpy as np, lrpjax\n"
    "f = jax.jit(lambda x: 2 * x)\n"
    "done = list(lrpjax.explain_batches(f, [np.ones((2, 3), np.float32)] * 30))",
    "from lrpjax._progress import track\nfor i in track(range(9), 'steps <b>', 9):\n    if i == 4: break",
    "for i in track(iter(range(3)), 'unknown'): pass",
    "for name in [n for n in __import__('sys').modules if n.split('.')[0] == 'ipywidgets']: print(name)",
]


@pytest.mark.filterwarnings("default")  # those of jupyter_client, pyzmq and asyncio
def test_bars_in_a_kernel(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute(env=env)
    explained, stopped, unknown, widgets = (cell.outputs for cell in notebook.cells)
    # One output each, in its last state; none on the standard error output, and no widgets.
    assert [len(outputs) for outputs in (explained, stopped, unknown, widgets)] == [1, 1, 1, 0]
    bars = [outputs[0]["data"] for outputs in (explained, stopped, unknown)]
    assert re.fullmatch(r"explaining 60/60 · \S+ rows/s · 0:\d\d:\d\d", bars[0]["text/plain"])
    assert 'value="60" max="60"' in bars[0]["text/html"]
    assert re.fullmatch(r"steps <b> 4/9 · 0:\d\d:\d\d · stopped", bars[1]["text/plain"])
    assert "steps &lt;b&gt; <progress" in bars[1]["text/html"]
    assert bars[2]["text/plain"].startswith("unknown 3/3 · ")


def test_a_figure_has_its_alternative_text_in_a_notebook():
    figure = viz.curves([0, 1], {"a": [3.0, 1.0]}, alt="mine")
    assert DisplayFormatter().format(figure)[1]["image/png"] == {"alt": "mine"}
    figure.set_label("another")  # the label is asked when the figure is shown
    assert DisplayFormatter().format(pickle.loads(pickle.dumps(figure)))[1]["image/png"] == {"alt": "another"}


def test_stored_pictures_have_their_alternative_texts():
    """The pictures of notebooks are in the formats that these ask for, and no other."""
    shown = nbformat.read(ROOT / "notebooks" / "photograph.ipynb", as_version=4)
    outputs = [
        output
        for cell in shown.cells
        for output in cell.get("outputs", [])
        if "image/jpeg" in output.get("data", {})
    ]
    assert outputs and all(
        "image/png" not in output.data and output.metadata["image/jpeg"].alt for output in outputs
    )
