"""A report is made: the size of thumbnails is chosen so that the budget is kept, and the pages are written."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax import explore
from lrpjax.data.store import Store, open_store
from lrpjax.report import gathering, pages, sections, thumbnails
from lrpjax.report.sources import Facts, ReportError, check_rows, facts_of, form_of

MARGIN = 0.97
"""The share of the budget that is aimed at, for sizes are estimated before pages are made."""
LEAST = 20
"""Samples that a page of a folder must have room for."""


def write(
    store: Store | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    inputs: Any = None,
    classes: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    tokens: Sequence[Sequence[str]] | None = None,
    findings: explore.Findings | str | os.PathLike[str] | None = None,
    plan: Any = None,
    name: str = "relevance",
    title: str | None = None,
    budget_mb: float = 64.0,
    rows: slice | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a page on which a whole data set of explanations can be filtered, sorted and looked into.

    The page is one file: no network, no server. Relevance is on it as numbers, one signed byte for each cell
    of a thumbnail, c = round(127 R / s) with each sample's scale s = max |R|, so that what is shown is wrong by at most
    s / 254. Thumbnails are made smaller until the page fits the budget; their cells have the relevance of the pixels
    that they cover, so that every sample's sum stays. Where even small ones (32 pixels) do not fit, a folder of
    pages is written, each of which keeps the budget. Of full-size relevance only a chunk of rows is in memory.

    Args:
        store: an `lrpjax.store.Store` or its directory. It may be incomplete: the page says so.
        out: the page, ending in .html; a folder of pages has the same name without the ending.
        inputs: what was explained, to be shown under the heatmaps: array-like [rows, H, W] or [rows, H, W, C] with
            C of 1 or 3, uint8 or floats in [0, 1], read by slices of rows. Those that leave [0, 1] are stretched to it,
            which the page says.
        classes: int [rows], the true class of each row, −1 where unknown.
        names: the names of classes 0, 1, ...; None takes those in the store's settings, where it has them.
        tokens: for relevance [rows, T] or [rows, T, D]: each row's strings, at most T. They are shown as text.
        findings: clusters, as `explore.Findings` or their file.
        plan: an `lrpjax.plan` of the model, or text.
        name: the array that is shown.
        title: heading; None for the model's name, where the settings have it.
        budget_mb: megabytes (10⁶ bytes) that no page exceeds.
        rows: the rows that are shown; None: all.
        overwrite: whether a page, or folder of pages, that is there is replaced.

    Returns:
        The absolute path of the page, or of index.html in the folder of pages.

    Raises:
        ReportError: what was given does not belong to the store, the budget is too small for any page, another ending,
            or the page is there already. Nothing is written then.
        lrpjax.store.StoreError: there is no store, or it is damaged.
        ImportError: matplotlib or Pillow is not installed.

    >>> import numpy as np, tempfile, lrpjax
    >>> from lrpjax import report
    >>> folder, batch = tempfile.mkdtemp(), np.ones((2, 4, 4), np.float32)
    >>> for R in lrpjax.explain_batches(lambda x: 2 * x, [batch], store=folder, progress=False):
    ...     pass
    >>> report.write(folder, folder + "/report.html", inputs=batch, classes=[0, 1]).name
    'report.html'
    """
    _check_installed()
    if not isinstance(store, Store):
        store = open_store(store)
    path = Path(out).absolute()
    if path.suffix != ".html":
        raise ReportError(
            f"{out}: a report is a page of HTML; its name ends in .html, not in {path.suffix!r}"
        )
    if not path.parent.is_dir():
        raise ReportError(f"there is no folder {path.parent}")
    _check_free(path, overwrite)
    if not 0 < budget_mb < float("inf"):
        raise ReportError(f"budget_mb must be above 0, not {budget_mb}")
    if name not in store:
        raise ReportError(f"{store.path} has the arrays {', '.join(store)}, not {name!r}")
    chosen = _chosen(rows, store)
    found = explore.load(findings) if isinstance(findings, (str, os.PathLike)) else findings
    for what, given in (("inputs", inputs), ("tokens", tokens)):
        if given is not None:
            check_rows(what, given.shape[0] if hasattr(given, "shape") else len(given), store)
    if inputs is not None and not hasattr(inputs, "shape"):
        inputs = np.asarray(inputs)
    form = form_of(name, store[name].shape, store[name].dtype, tokens is not None)
    facts = facts_of(store, chosen, classes, found)
    source, notes = gathering.source_of(chosen, form, store[name], inputs, tokens)
    names = list(store.settings.get("labels") or []) if names is None else list(names)
    about = sections.About(store, title, names, found, plan, notes, budget_mb, chosen)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        try:
            made = _made(source, facts, about, Path(folder), path.stem)
            return _put(made, path, overwrite)
        except OSError as error:
            if isinstance(error, ReportError) or type(error).__name__ == "StoreError":
                raise
            raise ReportError(f"{path} cannot be written: {error}") from error


def _made(source: gathering.Source, facts: Facts, about: sections.About, folder: Path, stem: str) -> Path:
    """The page, or the folder of pages, in the temporary folder."""
    budget, offered = about.budget_mb * 1e6, thumbnails.sides(source.form, source.picture)
    everything = np.arange(len(facts))
    fixed = len(
        pages.page(facts, [], about, gathering.Gathered(source, offered[-1], None, None, 0), everything, None)
    )
    room = budget * MARGIN - fixed
    costs = {side: gathering.bytes_per_row(source, side) * len(facts) for side in offered}
    fitting = [side for side in offered if costs[side] <= room]
    for side in fitting:
        gathered = gathering.gather(source, facts, side, folder)
        text = pages.page(facts, gathering.sheets(gathered, everything), about, gathered, everything, None)
        if len(text) <= budget:
            page = folder / f"{stem}.html"
            page.write_bytes(text)
            return page
    gathered = gathering.gather(source, facts, offered[-1], folder)
    return _folder(gathered, facts, about, folder / stem, costs[offered[-1]] / len(facts))


def _folder(
    gathered: gathering.Gathered, facts: Facts, about: sections.About, folder: Path, cost: float
) -> Path:
    budget, n = about.budget_mb * 1e6, len(facts)
    # What every page has, whatever its samples: its style and script, the plan, the clusters' cards.
    none = np.arange(0)
    whole = pages.Folder(facts, [(0, n)] * max(1, n // LEAST), 0)
    fixed = len(pages.page(facts[none], [], about, gathered, none, whole))
    each = cost + pages.FACT_BYTES
    count = int((budget * MARGIN - fixed) // each)
    while count >= LEAST:
        folder.mkdir()
        parts = [(start, min(start + count, n)) for start in range(0, n, count)]
        if _written(gathered, facts, about, folder, parts, count):
            return folder
        shutil.rmtree(folder)
        count = int(count * 0.9)
    needed = (fixed + LEAST * each) / 1e6 / MARGIN
    raise ReportError(
        f"budget_mb={about.budget_mb:g} is too small for a page of {LEAST} samples, which takes about {needed:.1f} MB"
    )


def _written(
    gathered: gathering.Gathered,
    facts: Facts,
    about: sections.About,
    folder: Path,
    parts: list[tuple[int, int]],
    count: int,
) -> bool:
    """Writes the pages of a folder; False if one of them is too large."""
    for number in range(len(parts) + 1):
        index = np.arange(*parts[number - 1]) if number else _for_index(facts, about, count)
        text = pages.page(
            facts[index],
            gathering.sheets(gathered, index),
            about,
            gathered,
            index,
            pages.Folder(facts, parts, number),
        )
        if len(text) > about.budget_mb * 1e6:
            return False
        (folder / pages.file_of(number, len(parts))).write_bytes(text)
    return True


def _for_index(facts: Facts, about: sections.About, count: int) -> NDArray[np.int64]:
    """The samples that the index of a folder shows: prototypes and outliers, then an even choice of all."""
    first, n = about.rows.start, len(facts)
    wanted: list[int] = []
    for cluster in about.findings.clusters if about.findings else ():
        wanted += [int(r) - first for r in (*cluster.prototypes, *cluster.outliers)]
    wanted = [i for i in dict.fromkeys(wanted) if 0 <= i < n]
    spread = np.linspace(0, n - 1, min(n, count, 200)).astype(int).tolist()
    return np.sort(np.array(list(dict.fromkeys([*wanted, *spread]))[:count], np.int64))


def _chosen(rows: slice | None, store: Store) -> range:
    if rows is not None and not isinstance(rows, slice):
        raise ReportError(f"rows must be a slice, such as slice(0, 1000), not {type(rows).__name__}")
    chosen = range(store.rows)[slice(None) if rows is None else rows]
    if chosen.step != 1 or not chosen:
        what = "every row from a first to a last" if chosen else "at least one row"
        raise ReportError(
            f"a report shows {what}; {rows} of the {store.rows} rows of {store.path} is not that"
        )
    return chosen


def _check_installed() -> None:
    missing = [name for name in ("matplotlib", "PIL") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f'lrpjax.report needs {", ".join(missing)}: pip install "lrpjax[report]"')


def _check_free(path: Path, overwrite: bool) -> None:
    """Refuses what is there, and whatever is no report in any case."""
    for there in (path, path.with_suffix("")):
        if not there.exists() or (there == path.with_suffix("") and not overwrite and not there.is_dir()):
            continue
        index = there / "index.html" if there.is_dir() else there
        if there.suffix != ".html" and not index.is_file():
            continue  # it is in the way of a folder of pages only, and `_put` says so
        if not overwrite:
            raise ReportError(
                f"{there} is there already; choose another name, or overwrite it (overwrite=True, --force)"
            )
        if there.is_dir() and not _ours(index):
            raise ReportError(f"{there} is no report of lrpjax, and is not overwritten")


def _ours(index: Path) -> bool:
    with contextlib.suppress(OSError):
        return pages.GENERATOR.encode() in index.read_bytes()[:4000]
    return False


def _put(made: Path, path: Path, overwrite: bool) -> Path:
    if made.is_file():
        made.replace(path)
        return path
    place = path.with_suffix("")
    if place.exists():
        if not (overwrite and place.is_dir() and _ours(place / "index.html")):
            raise ReportError(f"{place}, where a folder of pages would go, is there already")
        place.replace(made.parent / "before")
    made.replace(place)
    return place / "index.html"
