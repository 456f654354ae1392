"""The thumbnails of all rows, gathered in one pass over a store into files beside the page, and taken from there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrpjax.report import thumbnails
from lrpjax.report.sources import Facts, Form, ReportError, chunks, row_bytes
from lrpjax.report.thumbnails import SHEET

SAMPLED = 96
"""Rows that the sizes of thumbnails are estimated from."""


@dataclasses.dataclass
class Source:
    """Full-size rows: relevance (None where none is drawn), inputs that go with it, tokens."""

    rows: range
    form: Form
    relevance: Any
    inputs: Any = None
    tokens: Sequence[Sequence[str]] | None = None

    @property
    def picture(self) -> tuple[int, ...] | None:
        """The height, width and channels of an input, where inputs are shown."""
        if self.inputs is None:
            return None
        return (*self.inputs.shape[1:], 1) if len(self.inputs.shape) == 3 else tuple(self.inputs.shape[1:])

    def relevance_of(self, start: int, stop: int, side: int) -> NDArray[np.float64]:
        return thumbnails.shrunk(np.asarray(self.relevance[start:stop]), self.form, side)

    def inputs_of(self, start: int, stop: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        assert self.picture is not None
        values = np.asarray(self.inputs[start:stop]).reshape(stop - start, *self.picture)
        return thumbnails.pictures(values, *thumbnails.small(*self.picture[:2], side))


def source_of(
    rows: range, form: Form, relevance: Any, inputs: Any, tokens: Sequence[Sequence[str]] | None
) -> tuple[Source, list[str]]:
    """What can be shown of what was given, and what the page says of the rest."""
    notes = [form.said]
    shown = Source(rows, form, None if form.kind == "none" else relevance, None, tokens)
    if inputs is not None:
        shape = tuple(inputs.shape[1:])
        channels = shape[2] if len(shape) == 3 else 1
        real = np.dtype(inputs.dtype).kind in "fu" or "float" in np.dtype(inputs.dtype).name
        if form.kind == "picture" and len(shape) in (2, 3) and channels in (1, 3) and real and 0 not in shape:
            shown.inputs = inputs
        else:
            notes.append(
                f"inputs of shape {shape} and dtype {np.dtype(inputs.dtype).name} are not shown: they are no pictures"
            )
    if tokens is not None:
        for row in rows:
            _check_tokens(row, tokens[row], form.width)
        short = sum(len(tokens[row]) < form.width for row in rows)
        if short:
            notes.append(
                f"{short} rows have fewer tokens than relevances: what comes after their last token is not shown"
            )
    return shown, notes


def _check_tokens(row: int, tokens: Any, width: int) -> None:
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        raise ReportError(f"tokens of row {row} must be a list of strings")
    if len(tokens) > width:
        raise ReportError(f"row {row} has {len(tokens)} tokens, but {width} relevances")


@dataclasses.dataclass
class Gathered:
    """Thumbnails of all rows of a source at one size.

    Attributes:
        codes: int8 [n, h, w], in a file; None where nothing is drawn. inputs: uint8 [n, h, w, C], likewise.
        stretched: how many inputs had values outside of [0, 1].
    """

    source: Source
    side: int
    codes: NDArray[np.int8] | None
    inputs: NDArray[np.uint8] | None
    stretched: int


def gather(source: Source, facts: Facts, side: int, folder: Path) -> Gathered:
    """One pass over the rows; sets `scale` and `finite` of the facts."""
    first, form, n = source.rows.start, source.form, len(source.rows)
    codes = inputs = None
    if source.relevance is not None:
        size = thumbnails.small(form.height, form.width, side)
        codes = np.memmap(folder / f"codes-{side}", np.int8, "w+", shape=(n, *size))
        for start, stop in chunks(first, source.rows.stop, row_bytes(source.relevance)):
            at = slice(start - first, stop - first)
            R = source.relevance_of(start, stop, side)
            facts.finite[at] = np.isfinite(R).all((1, 2))
            codes[at], facts.scale[at] = thumbnails.quantised(R)
    stretched = 0
    if source.picture is not None:
        size = thumbnails.small(*source.picture[:2], side)
        inputs = np.memmap(folder / f"inputs-{side}", np.uint8, "w+", shape=(n, *size, source.picture[2]))
        for start, stop in chunks(first, source.rows.stop, row_bytes(source.inputs) * 2):
            inputs[start - first : stop - first], outside = source.inputs_of(start, stop, side)
            stretched += int(outside.sum())
    return Gathered(source, side, codes, inputs, stretched)


def sheets(gathered: Gathered, index: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The sheets of some of the samples, in that order: {"codes", "texts", "picture"} as a page holds them."""
    source, made = gathered.source, []
    for begin in range(0, len(index), SHEET):
        which = index[begin : begin + SHEET]
        sheet: dict[str, Any] = {}
        if gathered.codes is not None:
            sheet["codes"] = thumbnails.packed(np.ascontiguousarray(gathered.codes[which]).tobytes())
        if source.tokens is not None:
            sheet["texts"] = thumbnails.texts([source.tokens[source.rows.start + i] for i in which])
        if gathered.inputs is not None:
            sheet["picture"] = thumbnails.sprite(np.asarray(gathered.inputs[which]))
        made.append(sheet)
    return made


def sheet_bytes(sheet: dict[str, Any]) -> int:
    """What a sheet adds to a page, with its tags."""
    parts = [sheet.get("codes", ""), sheet.get("texts", ""), (sheet.get("picture") or ("", ""))[1]]
    return sum(len(part) + 90 for part in parts)


def bytes_per_row(source: Source, side: int) -> float:
    """What a row takes on a page at this size, estimated from some that are spread over all."""
    n = len(source.rows)
    run = min(n, SHEET)
    starts = sorted({int(s) for s in np.linspace(0, n - run, max(1, min(SAMPLED // SHEET, n // run)))})
    total = 0
    for start in (source.rows.start + s for s in starts):
        sheet: dict[str, Any] = {}
        if source.relevance is not None:
            codes, _ = thumbnails.quantised(source.relevance_of(start, start + run, side))
            sheet["codes"] = thumbnails.packed(codes.tobytes())
        if source.tokens is not None:
            sheet["texts"] = thumbnails.texts(source.tokens[start : start + run])
        if source.picture is not None:
            sheet["picture"] = thumbnails.sprite(source.inputs_of(start, start + run, side)[0])
        total += sheet_bytes(sheet)
    return total / (run * len(starts))


def embedded(value: Any) -> str:
    """JSON that can stand in a script element: no text of it can end the element or begin another.

    >>> embedded({"name": "</script><img onerror=x>"})
    '{"name":"\\\\u003c/script\\\\u003e\\\\u003cimg onerror=x\\\\u003e"}'
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
