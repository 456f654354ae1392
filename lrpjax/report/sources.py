"""What a report is made of, row by row: facts of a store, relevance and inputs, read a chunk at a time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from lrpjax.data import layout
from lrpjax.data.store import Store
from lrpjax.errors import LrpjaxError
from lrpjax.explore import Findings

CHUNK_BYTES = 16 << 20
"""Full-size results that are in memory at once."""

UNKNOWN = -1
UNEXPLORED = -2
"""The cluster of a row that the findings do not have; −1 is one that was explored and not divided."""


class ReportError(LrpjaxError, ValueError):
    """A report cannot be made as asked: what was given does not belong to the store, a budget is too small for any
    page, or there is a file already.

    >>> import numpy as np, tempfile, lrpjax
    >>> from lrpjax import report
    >>> path = tempfile.mkdtemp()
    >>> double = lambda x: 2 * x
    >>> for R in lrpjax.explain_batches(double, [np.ones((2, 4, 4), np.float32)], store=path, progress=False):
    ...     pass
    >>> report.write(path, path + "/report.html", classes=[0, 1, 2])
    Traceback (most recent call last):
    ...
    lrpjax.report.sources.ReportError: classes has 3 rows, but the store has 2
    """


@dataclasses.dataclass(frozen=True)
class Form:
    """How the rows of an array are drawn.

    Attributes:
        kind: "picture", "strip" (a bar for each feature), "text" (a colour for each token) or "none".
        height, width: of what is drawn of a row, before it is made smaller; 0 for "none".
        channels: the axis of the array that is summed, or None.
        said: what the page says of it.
    """

    kind: str
    height: int
    width: int
    channels: int | None
    said: str


def form_of(name: str, shape: Sequence[int], dtype: np.dtype, text: bool) -> Form:
    """How relevance of this shape [rows, ...] is drawn; what cannot be drawn is said, and is no error.

    >>> form_of("relevance", (10, 28, 28, 3), np.dtype(np.float32), False).said
    'relevance of every pixel, summed over 3 channels'
    >>> form_of("relevance", (10, 2, 2, 2, 2, 2), np.dtype(np.float32), False).kind
    'none'
    """
    row = tuple(shape[1:])
    what = f"{name} has rows of shape {row} and dtype {dtype.name}, which are not drawn"
    if 0 in row or np.issubdtype(dtype, np.complexfloating) or dtype == np.bool_:
        return Form("none", 0, 0, None, what)
    if text:
        if len(row) not in (1, 2):
            raise ReportError(
                f"tokens go with {name} of shape [rows, tokens] or [rows, tokens, components], not {list(shape)}"
            )
        summed = f", summed over {row[1]} components" if len(row) == 2 else ""
        return Form("text", 1, row[0], 2 if len(row) == 2 else None, f"relevance of every token{summed}")
    if len(row) == 1:
        return Form("strip", 1, row[0], None, "relevance of every feature, as bars")
    if len(row) == 2:
        return Form("picture", row[0], row[1], None, "relevance of every pixel")
    if len(row) == 3:
        first = row[0] in (1, 3) and min(row[1:]) > 4  # as in viz.heatmap, which refuses it
        height, width = row[1:] if first else row[:2]
        channels = row[0] if first else row[2]
        said = (
            f"relevance of every pixel, summed over {channels} channels"
            if channels > 1
            else "relevance of every pixel"
        )
        return Form(
            "picture", height, width, 1 if first else 3, said + (", which come first" if first else "")
        )
    return Form("none", 0, 0, None, what)


def flat(values: NDArray[Any], form: Form) -> NDArray[np.float64]:
    """Relevance as [n, height, width], its channels summed."""
    with np.errstate(invalid="ignore"):  # inf − inf is a NaN, and shown as such
        values = values.astype(np.float64)
        values = values if form.channels is None else values.sum(form.channels)
    return values.reshape(len(values), form.height, form.width)


def chunks(first: int, last: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of which none has more than `CHUNK_BYTES`."""
    step = max(1, CHUNK_BYTES // max(row_bytes, 1))
    for start in range(first, last, step):
        yield start, min(start + step, last)


def row_bytes(array: Any) -> int:
    return math.prod(array.shape[1:]) * np.dtype(array.dtype).itemsize


@dataclasses.dataclass
class Facts:
    """A number of each kind for each of n rows.

    Attributes:
        row: the store's row. true, prediction: class numbers, −1 where unknown. score: the output of the prediction.
        explained, arrived: relevance at the output and at what is explained, NaN where the store does not tell.
        cluster: −1 not divided, −2 not explored. group, outlier, position: as in `explore.Findings`.
        scale: the magnitude of code 127. finite: whether all relevance of the row is.
    """

    row: NDArray[np.int64]
    true: NDArray[np.int64]
    prediction: NDArray[np.int64]
    score: NDArray[np.float64]
    explained: NDArray[np.float64]
    arrived: NDArray[np.float64]
    cluster: NDArray[np.int64]
    group: NDArray[np.int64]
    outlier: NDArray[np.float64]
    position: NDArray[np.float64]
    scale: NDArray[np.float64]
    finite: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, index: Any) -> Facts:
        return Facts(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))

    @property
    def kept(self) -> NDArray[np.float64]:
        """arrived / explained; NaN where either is not known or not finite, or nothing was explained."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = self.arrived / self.explained
        return np.where(np.isfinite(share) & (self.explained != 0), share, np.nan)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return (self.true >= 0) & (self.prediction >= 0) & (self.true != self.prediction)

    @property
    def judged(self) -> NDArray[np.bool_]:
        """Whether both the class and the prediction are known."""
        return (self.true >= 0) & (self.prediction >= 0)


def facts_of(store: Store, rows: range, classes: Any, findings: Findings | None) -> Facts:
    """Everything but scale and finite, which are known when relevance has been read."""
    n = len(rows)
    unknown, nan = np.full(n, UNKNOWN), np.full(n, np.nan)
    facts = Facts(
        np.arange(rows.start, rows.stop),
        unknown.copy(),
        unknown.copy(),
        *(nan.copy() for _ in range(3)),
        np.full(n, UNEXPLORED),
        unknown.copy(),
        nan.copy(),
        np.full((n, 2), np.nan),
        nan.copy(),
        np.ones(n, bool),
    )
    if classes is not None:
        facts.true = _classes(classes, store)[rows.start : rows.stop]
    if "output" in store and store["output"].ndim in (1, 2):
        _predict(store["output"], rows, facts)
    for name in ("explained", "arrived"):
        if name in store and store[name].ndim == 1:
            setattr(facts, name, np.asarray(store[name][rows.start : rows.stop]).astype(np.float64))
    if findings is not None:
        _explored(findings, store, rows, facts)
    return facts


def _predict(output: Any, rows: range, facts: Facts) -> None:
    for start, stop in chunks(rows.start, rows.stop, row_bytes(output)):
        values = np.asarray(output[start:stop]).astype(np.float64).reshape(stop - start, -1)
        at = slice(start - rows.start, stop - rows.start)
        known = ~np.isnan(values).any(1)
        best = np.where(known, np.where(np.isnan(values), -np.inf, values).argmax(1), UNKNOWN)
        facts.score[at] = np.where(known, values[np.arange(len(values)), best], np.nan)
        if values.shape[1] > 1:
            facts.prediction[at] = best


def _classes(classes: Any, store: Store) -> NDArray[np.int64]:
    values = np.asarray(classes)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ReportError(
            f"classes must hold one class number for each row, not {values.dtype}{list(values.shape)}"
        )
    check_rows("classes", len(values), store)
    if len(values) and values.min() < UNKNOWN:
        raise ReportError(
            f"classes are numbers from 0 on, or −1 where unknown; row {values.argmin()} has {values.min()}"
        )
    return values.astype(np.int64)


def check_rows(what: str, count: int, store: Store) -> None:
    """Refuses what has another number of rows than the store; one that is still being written may have fewer."""
    if count != store.rows and (store.complete or count < store.rows):
        raise ReportError(f"{what} has {count} rows, but the store has {store.rows}")


def _explored(findings: Findings, store: Store, rows: range, facts: Facts) -> None:
    largest = max(
        [int(findings.rows.max(initial=-1)), *(int(c.rows.max(initial=-1)) for c in findings.clusters)]
    )
    if largest >= store.rows:
        raise ReportError(
            f"the findings are of another store: they have row {largest}, this one has {store.rows} rows"
        )
    inside = (findings.rows >= rows.start) & (findings.rows < rows.stop)
    at = findings.rows[inside] - rows.start
    facts.cluster[at] = findings.labels[inside]
    facts.group[at] = findings.groups[inside]
    facts.outlier[at] = findings.outlier[inside]
    facts.position[at] = findings.position[inside]


class Explained:
    """Inputs in files as pictures: compared with the store's fingerprints, and with mean and std undone.

    Args:
        inputs: `lrpjax.loading.Inputs` with the reading options of the store's settings.
        store: what was explained.
        labels: the class numbers that were explained, where the store's target was a file of them.

    Raises:
        ReportError: another number of inputs; and, when rows are taken, inputs that are not those that were explained.
    """

    def __init__(self, inputs: Any, store: Store, labels: NDArray[Any] | None = None):
        if not store.complete and (store.path / "process-00000").exists():
            raise ReportError(
                f"{store.path} is being written by several processes: its rows are not yet in the order of the inputs. "
                "Wait until it is complete, or make the report without inputs"
            )
        check_rows("the input", inputs.rows, store)
        self._inputs, self._store, self._labels = inputs, store, labels
        self._ends = np.cumsum(store.batches[:, 0])
        self._mean, self._std = (_numbers(store.settings.get(key)) for key in ("mean", "std"))
        self._last: tuple[int, NDArray[Any]] = (-1, np.zeros(0))
        first = inputs[0:1]
        self.shape, self.dtype = (store.rows, *first.shape[1:]), first.dtype

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        first = int(np.searchsorted(self._ends, rows.start, side="right"))
        last = int(np.searchsorted(self._ends, rows.stop, side="left"))
        parts = []
        for batch in range(first, last + 1):
            begin = int(self._ends[batch] - self._store.batches[batch, 0])
            parts.append(self._batch(batch, begin)[max(rows.start - begin, 0) : rows.stop - begin])
        return np.concatenate(parts)

    def _batch(self, number: int, begin: int) -> NDArray[Any]:
        if self._last[0] != number:
            array = _as_explained(self._inputs[begin : int(self._ends[number])])
            tree = (
                array
                if self._labels is None
                else (array, _as_explained(self._labels[begin : self._ends[number]]))
            )
            if layout.fingerprint(tree) != self._store.fingerprints[number]:
                raise ReportError(
                    f"batch {number} of the input (rows {begin} to {self._ends[number] - 1}) is not the one that was "
                    f"explained into {self._store.path}. Give the same files in the same order"
                )
            if self._std is not None:
                array = array * self._std
            self._last = (number, array if self._mean is None else array + self._mean)
        return self._last[1]


def _as_explained(array: Any) -> NDArray[Any]:
    """As `explain_batches` hashes a batch."""
    array = np.asarray(array)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _numbers(text: str | None) -> NDArray[np.float64] | None:
    return None if text is None else np.array([float(part) for part in text.split(",")])
