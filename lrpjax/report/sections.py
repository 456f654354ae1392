"""The parts of a page that need no script: overview, classes, ledger, settings."""

from __future__ import annotations

import dataclasses
import html
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrpjax.data.store import Store
from lrpjax.explore import Findings
from lrpjax.report.gathering import Gathered
from lrpjax.report.sources import Facts

BINS = 40
MOST = 200
"""Classes, or pairs of them, that a table lists."""


@dataclasses.dataclass
class About:
    """What all pages of a report have in common."""

    store: Store
    title: str | None
    names: list[str]
    findings: Findings | None
    plan: Any
    notes: list[str]
    budget_mb: float
    rows: range

    @property
    def heading(self) -> str:
        return self.title or f"Explanations of {self.store.settings.get('model') or self.store.path.name}"


def overview(facts: Facts, about: About) -> str:
    """The numbers that a reader wants first."""
    tiles = [(f"{len(facts):,}", "samples")]
    judged = int(facts.judged.sum())
    if judged:
        wrong = int(facts.wrong.sum())
        tiles.append((f"{1 - wrong / judged:.1%}", f"predicted right ({wrong:,} wrong of {judged:,})"))
    kept = facts.kept[np.isfinite(facts.kept)]
    if kept.size:
        tiles.append((f"{np.median(kept):.3g}", "kept, in the median: Σ R / f(x)"))
    lost = int((~facts.finite).sum())
    tiles.append((f"{lost:,}", "with relevance that is not finite"))
    if about.findings is not None:
        tiles.append(
            (
                f"{len(about.findings.clusters):,}",
                f"clusters in {len(np.unique(about.findings.groups))} groups",
            )
        )
    return "".join(f"<div><dt>{html.escape(what)}</dt><dd>{value}</dd></div>" for value, what in tiles)


def _name(number: int, names: list[str]) -> str:
    return html.escape(names[number]) if 0 <= number < len(names) else f"class {number}"


def _table(caption: str, head: list[str], rows: list[list[str]]) -> str:
    headings = "".join(f'<th scope="col">{h}</th>' for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(caption)}"><table><caption>'
        f"{html.escape(caption)}</caption><thead><tr>{headings}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _show(data: dict[str, Any], label: str) -> str:
    wanted = html.escape(json.dumps(data))
    return f'<button type="button" data-filter="{wanted}" aria-label="Show {label}">show</button>'


def classes(facts: Facts, names: list[str]) -> str:
    """How many samples each class has, how many were predicted wrongly, what was kept; and the most frequent errors."""
    key = facts.true if (facts.true >= 0).any() else facts.prediction
    if not (key >= 0).any():
        return "<p>Neither classes nor predictions are known.</p>"
    by, rows = ("class" if key is facts.true else "prediction"), []
    numbers, counts = np.unique(key[key >= 0], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST]
    for number, count in zip(numbers[order].tolist(), counts[order].tolist(), strict=True):
        here = key == number
        kept = facts.kept[here & np.isfinite(facts.kept)]
        wrong = f"{int(facts.wrong[here].sum()):,}" if by == "class" and facts.judged[here].any() else "–"
        name = _name(number, names)
        middle = f"{np.median(kept):.3g}" if kept.size else "–"
        rows.append([name, f"{count:,}", wrong, middle, _show({by: number}, f"the samples of {name}")])
    made = _table(f"samples by {by}", [by, "samples", "wrong", "kept, median", "filter"], rows)
    pairs = np.stack([facts.true, facts.prediction], 1)[facts.wrong]
    if len(pairs):
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:10]
        rows = []
        for (a, b), count in zip(found[order].tolist(), counts[order].tolist(), strict=True):
            label = f"{_name(a, names)} taken for {_name(b, names)}"
            rows.append(
                [_name(a, names), _name(b, names), f"{count:,}", _show({"class": a, "prediction": b}, label)]
            )
        made += _table("most frequent errors", ["class", "prediction", "samples", "filter"], rows)
    return made


def ledger(facts: Facts) -> str:
    """What was explained, and what of it arrived."""
    known = np.isfinite(facts.explained) & np.isfinite(facts.arrived)
    lost = int((~facts.finite).sum())
    if not known.any():
        return (
            "<p>The store does not hold what was explained and what arrived (stores of "
            "<code>lrpjax explain</code> do). "
            f"{lost:,} rows have relevance that is not finite.</p>"
        )
    explained, arrived = facts.explained[known].sum(), facts.arrived[known].sum()
    kept = facts.kept[np.isfinite(facts.kept)]
    rows = [
        ["explained, Σ f(x)", f"{explained:,.6g}"],
        ["arrived, Σ R", f"{arrived:,.6g}"],
        ["arrived / explained", f"{arrived / explained:.4g}" if explained else "–"],
        ["rows with finite sums", f"{int(known.sum()):,} of {len(facts):,}"],
        ["rows with relevance that is not finite", f"{lost:,}"],
    ]
    if kept.size:
        rows += [
            ["kept share, median", f"{np.median(kept):.4g}"],
            ["kept share, least", f"{kept.min():.4g}"],
            ["kept share, most", f"{kept.max():.4g}"],
        ]
    return _table("sums over all rows", ["quantity", "value"], rows) + (
        _histogram(kept) if kept.size > 1 else ""
    )


def _histogram(kept: NDArray[np.float64]) -> str:
    """The middle 98 % of the kept shares, as bars."""
    low, high = np.quantile(kept, [0.01, 0.99])
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-30):
        low, high = kept.min() - 0.5, kept.max() + 0.5
    inside = kept[(kept >= low) & (kept <= high)]
    counts, edges = np.histogram(inside, BINS, (low, high))
    tall, bars = max(int(counts.max()), 1), []
    for i, count in enumerate(counts.tolist()):
        height = 100 * count / tall
        said = f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {count:,} rows"
        bars.append(
            f'<rect x="{i * 8}" y="{100 - height:.2f}" width="7" height="{height:.2f}"><title>{said}</title></rect>'
        )
    below, above = int((kept < low).sum()), int((kept > high).sum())
    label = f"Histogram of the kept share from {low:.4g} to {high:.4g}; median {np.median(kept):.4g}"
    return (
        f'<figure><svg class="histogram" viewBox="0 0 {BINS * 8} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}">{"".join(bars)}</svg><figcaption><span>{low:.4g}</span>'
        f"<span>kept share of each row, Σ R / f(x); {below:,} rows below and {above:,} above</span>"
        f"<span>{high:.4g}</span></figcaption></figure>"
    )


def settings(about: About, gathered: Gathered) -> str:
    """Where all of it comes from, and what was done to it for the page."""
    store, form = about.store, gathered.source.form
    notes = list(about.notes)
    if gathered.codes is not None:
        height, width = gathered.codes.shape[1:]
        notes.append(
            "relevance is kept in 8 bits with a scale for each sample: what is shown is wrong by at most 1/254 of the "
            "sample's largest magnitude"
        )
        if (height, width) != (form.height, form.width):
            notes.append(
                f"relevance of {form.height}×{form.width} is pooled to {height}×{width}: each cell has the sum of "
                "what it covers, so that the sum over a sample stays as it is"
            )
    if gathered.inputs is not None:
        height, width = gathered.inputs.shape[1:3]
        notes.append(f"inputs are shown with {height}×{width} pixels, and may be compressed as JPEG")
    if gathered.stretched:
        notes.append(
            f"{gathered.stretched:,} inputs had values outside of [0, 1], and are stretched to that range"
        )
    if about.findings is not None:
        notes += [
            f"not explored: {len(rows):,} rows, {reason}" for reason, rows in about.findings.skipped.items()
        ]
    told = {**store.settings, **{f"version of {k}": v for k, v in store.versions.items()}}
    told.pop("labels", None)
    if about.findings is not None:
        told |= {f"exploring: {k}": v for k, v in about.findings.settings.items()}
    text = lambda value: value if isinstance(value, str) else json.dumps(value)
    rows = [[html.escape(str(k)), html.escape(text(v))] for k, v in told.items() if v is not None]
    listed = "".join(f"<li>{html.escape(note)}.</li>" for note in notes)
    return f"<ul>{listed}</ul>" + _table("what the store was made with", ["setting", "value"], rows)
