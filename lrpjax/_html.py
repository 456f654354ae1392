"""What notebooks show: tables that can be sorted and searched, and strings that display themselves.

All of it is plain HTML with its own style and script, so that a stored notebook needs no network and no package to be
read; where scripts or styles are taken away (on GitHub, in a notebook that is not trusted) a plain table stays.
"""

import hashlib
import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Html(str):
    """A string that a notebook shows as HTML; everywhere else it is a string like others.

    page: the HTML, where that is not the string itself, such as beside text with colours for a terminal.

    >>> text = Html("<b>a</b>")
    >>> text == "<b>a</b>", text._repr_html_(), Html("a", "<b>a</b>")._repr_html_()
    (True, '<b>a</b>', '<b>a</b>')
    """

    page: str

    def __new__(cls, text: str, page: str | None = None) -> "Html":
        made = super().__new__(cls, text)
        made.page = text if page is None else page
        return made

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return Html, (str(self), self.page)

    def _repr_html_(self) -> str:
        return self.page

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The text beside the HTML in a notebook's file, which would hold it twice."""
        printer.text(f"<{len(self)} characters of HTML>" if self.page == self else str(self))


class Shown:
    """What a notebook shows by its `_repr_html_`, and beside that, and in IPython, as the text that `str` gives."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


class Number(NamedTuple):
    """A cell that shows rounded text and is sorted by the full value.

    >>> print(number(2.0 / 3.0))
    0.6667
    """

    text: str
    value: float

    def __str__(self) -> str:
        return self.text


def number(a: Any, form: str = ".4g") -> Number:
    """The sum over an array as a cell: a whole number is one of shape ()."""
    value = float(np.sum(np.asarray(a)))
    return Number(format(value, form), value)


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str | Number]], notes: Sequence[str] = ()
) -> str:
    """A table as HTML: a click on a heading sorts by its column, and the rows of longer ones can be searched.

    Args:
        caption: what the table shows, also for screen readers.
        head: the names of C columns.
        rows: C cells each. Text is sorted as text, with the numbers in it by their size (block 2 before block 10), a
            `Number` by its value. A column of which a cell is a `Number` is aligned on the right.
        notes: lines below the table.

    Returns:
        HTML for a notebook's output. The same content gives the same HTML, so that notebooks that run again do not
        change. Markup in any text is escaped.

    >>> page = table("sizes", ["name", "size"], [["a<b", Number("0.667", 2 / 3)]])
    >>> "<td>a&lt;b</td>" in page, '<td class="number" data-sort="0.6666666666666666">0.667</td>' in page
    (True, True)
    """
    numeric = [any(isinstance(row[c], Number) for row in rows) for c in range(len(head))]
    right = [' class="number"' if n else "" for n in numeric]
    headings = "".join(
        f'<th scope="col"{how}>{html.escape(name)}</th>' for name, how in zip(head, right, strict=True)
    )
    lines = [
        "<tr>" + "".join(_cell(cell, how) for cell, how in zip(row, right, strict=True)) + "</tr>"
        for row in rows
    ]
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    title = html.escape(caption)
    body = (
        '<div class="search" hidden><label>search <input type="search" autocomplete="off" spellcheck="false"></label> '
        '<span role="status"></span></div>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table><caption>{title}</caption>'
        f"<thead><tr>{headings}</tr></thead>\n<tbody>" + "\n".join(lines) + f"</tbody></table></div>{below}"
    )
    # The content names the table: several stand on one page, and a notebook does not tell a script where it is.
    name = "lrpjax-" + hashlib.blake2b(body.encode(), digest_size=6).hexdigest()
    style, script = _STYLE.replace("NAME", name), _SCRIPT.replace("NAME", name)
    return f'<div class="{name}"><style>{style}</style>{body}</div><script>{script}</script>'


def _cell(cell: str | Number, how: str) -> str:
    if not isinstance(cell, Number):
        return f"<td{how}>{html.escape(cell)}</td>"
    # As a script reads numbers; what is not a number is left out, and sorted last.
    value = repr(cell.value).replace("inf", "Infinity")
    known = "" if math.isnan(cell.value) else f' data-sort="{value}"'
    return f"<td{how}{known}>{html.escape(cell.text)}</td>"


# Colours are those of JupyterLab or VS Code; elsewhere the page's own pair of paper and ink, which fit each other
# whatever the page chose. The styles of notebooks for tables are told apart by one class: `div.NAME` outweighs them.
_STYLE = """
div.NAME{--paper:var(--jp-layout-color0,var(--vscode-editor-background,Canvas));
--ink:var(--jp-content-font-color1,var(--vscode-editor-foreground,CanvasText));
--line:color-mix(in srgb,var(--ink) 22%,var(--paper));--tint:color-mix(in srgb,var(--ink) 8%,var(--paper));
color:var(--ink);background:var(--paper);font-size:13px;line-height:1.4;max-width:100%}
div.NAME .search{padding:4px 0}
div.NAME .search input{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);
border-radius:3px;padding:3px 6px;width:16em;max-width:70%;box-sizing:border-box}
div.NAME .scroll{overflow:auto;max-height:34em;max-width:100%}
div.NAME table{border-collapse:separate;border-spacing:0;margin:0;color:inherit;font:inherit;
font-variant-numeric:tabular-nums;table-layout:auto;width:auto}
div.NAME caption{caption-side:top;text-align:left;padding:4px 0;color:inherit;white-space:nowrap}
div.NAME tbody tr,div.NAME thead tr{background:var(--paper)}
div.NAME tbody tr:hover{background:var(--tint)}
div.NAME th,div.NAME td{text-align:left;vertical-align:top;padding:3px 10px;border:0;
border-bottom:1px solid var(--line);white-space:nowrap;max-width:none;color:inherit}
div.NAME th.number,div.NAME td.number{text-align:right}
div.NAME thead th{position:sticky;top:0;background:var(--tint);font-weight:600}
div.NAME th button{all:unset;cursor:pointer;font:inherit}
div.NAME th button::after{content:"\\2195";opacity:.35;padding-left:4px}
div.NAME th[aria-sort=ascending] button::after{content:"\\2191";opacity:1}
div.NAME th[aria-sort=descending] button::after{content:"\\2193";opacity:1}
div.NAME th button:focus-visible,div.NAME input:focus-visible,div.NAME .scroll:focus-visible{
outline:2px solid currentColor;outline-offset:-2px}
div.NAME p{margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere}
"""

# Rows are moved and hidden, never written: no text of a cell comes into the script or out of it. A table that is shown
# twice is met by two scripts, of which the second finds it done. Keys stay in the search box: a notebook would take
# them for its own.
_SCRIPT = """(function(){document.querySelectorAll("div.NAME").forEach(function(box){
if(box.dataset.ready)return;box.dataset.ready="1";
var body=box.querySelector("tbody"),rows=Array.from(body.rows),heads=Array.from(box.querySelectorAll("th"));
var search=box.querySelector(".search"),input=search.querySelector("input");
var status=search.querySelector("[role=status]");
var words=new Intl.Collator(undefined,{numeric:true,sensitivity:"base"}).compare;
function place(order){order.forEach(function(row){body.appendChild(row);});}
heads.forEach(function(head,column){
var button=document.createElement("button");button.type="button";
while(head.firstChild)button.appendChild(head.firstChild);
head.appendChild(button);head.setAttribute("aria-sort","none");
var numeric=head.classList.contains("number");
button.addEventListener("click",function(){
var next={none:"ascending",ascending:"descending",descending:"none"}[head.getAttribute("aria-sort")];
heads.forEach(function(other){other.setAttribute("aria-sort","none");});
head.setAttribute("aria-sort",next);
if(next==="none")return place(rows);
var sign=next==="ascending"?1:-1;
var keyed=rows.map(function(row){var cell=row.cells[column];
return [numeric?Number("sort" in cell.dataset?cell.dataset.sort:NaN):cell.textContent,row];});
keyed.sort(function(a,b){
if(!numeric)return sign*words(a[0],b[0]);
if(isNaN(a[0])||isNaN(b[0]))return isNaN(a[0])-isNaN(b[0]);
return a[0]===b[0]?0:a[0]<b[0]?-sign:sign;});
place(keyed.map(function(pair){return pair[1];}));});});
function filter(){var wanted=input.value.trim().toLowerCase(),count=0;
rows.forEach(function(row){
var text=Array.from(row.cells,function(cell){return cell.textContent;}).join(" ").toLowerCase();
row.hidden=text.indexOf(wanted)<0;if(!row.hidden)count++;});
status.textContent=wanted?count+" of "+rows.length:"";}
input.addEventListener("input",filter);
input.addEventListener("keydown",function(event){event.stopPropagation();});
search.hidden=rows.length<4;
});})();"""
