"""One page of a report: its data as JSON and sheets, what stands on it without a script, and the whole file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax.core.plan import Plan
from lrpjax.report import sections
from lrpjax.report.gathering import Gathered, embedded, sheet_bytes
from lrpjax.report.sections import About
from lrpjax.report.sources import Facts
from lrpjax.report.thumbnails import COLUMNS, SHEET

GENERATOR = '<meta name="generator" content="lrpjax report">'
MAPS = ("relevance", "blue-orange", "seismic", "coldnhot", "RdBu_r", "PuOr_r")
SCRIPTS = ("data.js", "grid.js", "charts.js", "page.js")
FACT_BYTES = 110
"""What the facts of one sample take on a page."""


@dataclasses.dataclass
class Folder:
    """The place of a page in a folder of them. facts: of all rows. parts: the positions that each page has.
    number: this page's, 0 for the index."""

    facts: Facts
    parts: list[tuple[int, int]]
    number: int


def file_of(number: int, count: int) -> str:
    return f"page-{number:0{len(str(count))}d}.html" if number else "index.html"


def page(
    facts: Facts,
    sheets: list[dict[str, Any]],
    about: About,
    gathered: Gathered,
    index: NDArray[np.int64],
    folder: Folder | None,
) -> bytes:
    """The page of some samples, whole."""
    text = {name: resources.files("lrpjax.report").joinpath(name).read_text("utf-8") for name in SCRIPTS}
    script = "(()=>{'use strict';\n" + "\n".join(text.values()) + "\n})();"
    plan = _plan(about.plan)
    blocks, largest = _blocks(sheets)
    everything = facts if folder is None else folder.facts
    fill = {
        "TITLE": html.escape(about.heading),
        "GENERATOR": GENERATOR,
        "POLICY": _policy(script, plan),
        "STYLE": resources.files("lrpjax.report").joinpath("page.css").read_text("utf-8"),
        "OVERVIEW": sections.overview(everything, about),
        "PLACE": _place(about, folder, len(facts)),
        "CLASSES": sections.classes(everything, about.names),
        "LEDGER": sections.ledger(everything),
        "PLAN": plan
        or "<p>No plan was given. <code>lrpjax report --plan</code> makes one from the model.</p>",
        "SETTINGS": sections.settings(about, gathered),
        "DATA": embedded(_data(facts, about, gathered, folder, largest)),
        "SHEETS": blocks,
        "SCRIPT": script,
        "SIZE": "SIZE",
    }
    template = resources.files("lrpjax.report").joinpath("page.html").read_text("utf-8")
    content = re.sub(r"<!--([A-Z]+)-->", lambda found: fill[found[1]], template)
    size = len(content.encode()) / 1e6
    said = f"{size:.1f} MB of {about.budget_mb:g} MB"
    return content.replace("@@SIZE@@", said, 1).encode()


def _blocks(sheets: list[dict[str, Any]]) -> tuple[str, int]:
    """Sheets as elements that a browser keeps as text until a script asks for them."""
    made = []
    for number, sheet in enumerate(sheets):
        made += [
            f'<script type="text/plain" id="{part}-{number}">{sheet[part]}</script>'
            for part in ("codes", "texts")
            if part in sheet
        ]
        if "picture" in sheet:
            kind, content, step = sheet["picture"]
            tags = f'data-kind="{kind}" data-step="{step[0]},{step[1]}"'
            made.append(f'<script type="text/plain" id="picture-{number}" {tags}>{content}</script>')
    return "\n".join(made), max(map(sheet_bytes, sheets), default=0)


def _policy(script: str, plan: str) -> str:
    """The page may run its own scripts, by their hashes, and load nothing from anywhere."""
    scripts = [script, *re.findall(r"(?s)<script>(.*?)</script>", plan)]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"


def _plan(plan: Any) -> str:
    if plan is None:
        return ""
    if isinstance(plan, Plan):
        return plan._repr_html_()
    return f'<pre tabindex="0">{html.escape(str(plan))}</pre>'


def _place(about: About, folder: Folder | None, shown: int) -> str:
    """What the page shows of the store, and the way to the other pages."""
    said, store = [], about.store
    if not store.complete:
        said.append(f'<p class="notice">The store is not complete: {store.rows:,} rows so far.</p>')
    if len(about.rows) != store.rows:
        rows = about.rows
        said.append(f"<p>Rows {rows.start:,} to {rows.stop - 1:,} of {store.rows:,} are shown.</p>")
    if folder is None:
        return "".join(said)
    first, links = about.rows.start, []
    for number in range(len(folder.parts) + 1):
        a, b = folder.parts[number - 1] if number else (0, 0)
        text = f"rows {first + a:,}–{first + b - 1:,}" if number else "index"
        here = ' aria-current="page"' if number == folder.number else ""
        links.append(f'<li><a href="{file_of(number, len(folder.parts))}"{here}>{text}</a></li>')
    if folder.number == 0:
        said.append(
            f"<p>One page does not have room for all {len(folder.facts):,} samples within the budget. This index shows "
            f"{shown:,} of them (prototypes and outliers of clusters, and an even choice of all); the pages "
            "below show all.</p>"
        )
    else:
        said.append("<p>The overview, the classes and the ledger are of all pages together.</p>")
    listed = (
        f'<details class="pages" {"open" if len(links) < 15 else ""}><summary>{len(links)} pages</summary>'
    )
    return "".join(said) + f'<nav aria-label="Pages">{listed}<ul>{"".join(links)}</ul></details></nav>'


def _data(
    facts: Facts, about: About, gathered: Gathered, folder: Folder | None, largest: int
) -> dict[str, Any]:
    from lrpjax.viz.colours import BAD, colormap

    codes, pictures = gathered.codes, gathered.inputs
    maps = {name: colormap(name)(np.arange(257), bytes=True)[:, :3] for name in MAPS}
    columns = {
        "row": _column(facts.row, "i"),
        "true": _column(facts.true, "i"),
        "pred": _column(facts.prediction, "i"),
        "cluster": _column(facts.cluster, "i"),
        "group": _column(facts.group, "i"),
        "finite": _column(facts.finite, "b"),
        "scale": _column(facts.scale, "d"),
        "x": _column(facts.position[:, 0], "f"),
        "y": _column(facts.position[:, 1], "f"),
    }
    for name in ("score", "explained", "arrived", "kept", "outlier"):
        columns[name] = _column(getattr(facts, name), "f")
    found, files = about.findings, []
    if folder is not None:
        first, count = about.rows.start, len(folder.parts)
        files = [[first + a, first + b, file_of(k, count)] for k, (a, b) in enumerate(folder.parts, 1)]
    return {
        "count": len(facts),
        "kind": gathered.source.form.kind if codes is not None else "none",
        "size": list(codes.shape[1:]) if codes is not None else [0, 0],
        "picture": list(pictures.shape[1:]) if pictures is not None else None,
        "sheet": SHEET,
        "across": COLUMNS,
        "largest": largest,
        "columns": columns,
        "names": about.names,
        "maps": {name: base64.b64encode(table.tobytes()).decode() for name, table in maps.items()},
        "bad": [int(BAD[i : i + 2], 16) for i in (1, 3, 5)],
        "pages": files,
        "clusters": [
            {
                "number": int(c.number),
                "group": int(c.group),
                "size": len(c),
                "unlike": _finite(c.unlike),
                "prototypes": [int(r) for r in c.prototypes[:6]],
                "outliers": [int(r) for r in c.outliers[:3]],
            }
            for c in (found.clusters if found else ())
        ],
        "groups": sorted({int(g) for g in found.groups}) if found else [],
        "eigenvalues": {
            str(int(g)): [_finite(v) for v in values]
            for g, values in (found.eigenvalues if found else {}).items()
        },
    }


def _finite(value: ArrayLike) -> float | None:
    number = float(np.asarray(value))
    return number if np.isfinite(number) else None


def _column(values: NDArray[Any], kind: str) -> list[str]:
    dtype = {"i": "<i4", "f": "<f4", "d": "<f8", "b": "u1"}[kind]
    with np.errstate(over="ignore"):
        return [kind, base64.b64encode(values.astype(dtype).tobytes()).decode()]
