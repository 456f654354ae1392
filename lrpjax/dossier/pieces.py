"""What the page is made of: tables, badges, hashes, intervals. Text that comes from data is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

MARKS = {"passed": "✓", "failed": "✗", "undecided": "?", "not tested": "–", "measured": "="}
INTERVAL = "95 % interval"


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of the page's own words: what comes from data has been escaped by whoever put it in."""
    return f"<p{style and f' class={style}'}>{text}</p>"


def code(text: Any) -> str:
    return f"<code>{escape(str(text))}</code>"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], right: str = "") -> str:
    """right: one letter for each column, r where it is aligned on the right. Cells that are `Raw` are HTML already."""
    how = [' class="number"' if letter == "r" else "" for letter in right.ljust(len(head))]
    top = "".join(f'<th scope="col"{h}>{escape(t)}</th>' for t, h in zip(head, how, strict=True))
    body = "".join(
        "<tr>"
        + "".join(_cell(cell, h, first=c == 0) for c, (cell, h) in enumerate(zip(row, how, strict=True)))
        + "</tr>"
        for row in rows
    )
    words = escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{words}"><table><caption>{words}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


class Raw(str):
    """Text that is HTML."""


def _cell(cell: Any, how: str, first: bool) -> str:
    text = cell if isinstance(cell, Raw) else escape(_text(cell))
    return f'<th scope="row"{how}>{text}</th>' if first else f"<td{how}>{text}</td>"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def facts(caption: str, rows: Sequence[tuple[str, Any]]) -> str:
    return table(caption, ("what", "value"), rows)


def digits_of(digits: str | None) -> Raw:
    return Raw("–" if digits is None else f'<code class="hash">{escape(digits)}</code>')


def badge(verdict: str) -> Raw:
    kind = verdict.replace(" ", "-")
    return Raw(
        f'<span class="badge {escape(kind)}"><span aria-hidden="true">{MARKS.get(verdict, "")}</span> {escape(verdict)}'
        "</span>"
    )


def with_interval(found: Mapping[str, Any], form: str = ".3g") -> str:
    if found["mean"] is None:
        return "no value"
    if found["low"] is None:
        return f"{found['mean']:{form}} (n = {found['n']}: too few for an interval)"
    without = (
        f" ({found['left_out']} of {found['n'] + found['left_out']} have no value)"
        if found["left_out"]
        else ""
    )
    return f"{found['mean']:{form}} [{found['low']:{form}}, {found['high']:{form}}]{without}"


def interval_cell(found: Mapping[str, Any], form: str = ".3g") -> Raw:
    """As `with_interval`, for a table: in one line."""
    return Raw(f'<span class="whole">{escape(with_interval(found, form))}</span>')


def more(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def figure(drawing: str, caption: str) -> str:
    words = escape(caption)
    return (
        f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{words}">{drawing}</div>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def refused(section: Mapping[str, Any]) -> str:
    return paragraph(f"<strong>Not applicable</strong>, because {escape(section['because'])}.", "refused")
