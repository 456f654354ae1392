"""Contact sheets: pictures in rows and columns, with labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike

from lrpjax.viz.colours import colormap, load_matplotlib, picture_of
from lrpjax.viz.saving import finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def sheet(
    rows: Sequence[Sequence[ArrayLike | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    captions: Sequence[Sequence[str]] = (),
    group: int | None = None,
    title: str = "",
    footer: str = "",
    colorbar: str | None = None,
    limit: float | Literal["own"] | None = None,
    note: str | None = None,
    alt: str | None = None,
    cell: float = 1.0,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """A contact sheet: pictures in rows and columns, with labels.

    Args:
        rows: the pictures, row by row: RGB or RGBA, uint8 or floats in [0, 1], as `heatmap` and `overlay`
            give them; None leaves a place empty. All rows have the same length.
        row_labels: text left of each row; empty for none.
        column_labels: text above each column; empty for none.
        captions: text under each picture, in the shape of `rows`; empty for none.
        group: so many successive rows stand close together, with a gap before the next; None for no gaps.
        title, footer: text above and below everything.
        colorbar: name of the diverging colour map of the heatmaps, ``"relevance"`` unless they were given another,
            which is then explained below the sheet, with the range that it stands for; None for no explanation.
        limit: what the ends of the colour bar stand for: the number that was every heatmap's `limit`; ``"own"`` where
            each picture goes up to its own largest |R|, as `heatmap` does by itself; None if neither is known,
            which the sheet says then.
        note: text under the colour bar in place of what `limit` says, for ranges of another kind, such as a quantile.
        alt: alternative text of the whole sheet, for readers who do not see it; None for one made of its labels. It
            becomes the figure's label, which `save` writes into the file.
        cell: height and width given to one picture, in inches.
        path: where to `save` the figure; None saves nothing.

    Returns:
        The figure. In a notebook it is displayed after ``%matplotlib inline``.

    Raises:
        ValueError: no pictures, rows of unequal length, labels that do not fit, arrays that are not pictures; a limit
            that is not positive, or a limit or note without a colour bar.
        OSError: `path` cannot be written; what it held before is untouched.

    Example:
        >>> import numpy as np
        >>> from lrpjax import viz
        >>> R = np.array([[1.0, -1.0], [0.0, 2.0]])
        >>> figure = viz.sheet([[viz.heatmap(R), viz.heatmap(-R)]], ["sample"], ["for", "against"])
        >>> len(figure.axes)
        2
        >>> figure.get_label()
        'Sheet of pictures, 1 row by 2 columns. Rows: sample. Columns: for, against.'
        >>> figure = viz.sheet([[viz.heatmap(R, limit=4.0)]], colorbar="relevance", limit=4.0)
        >>> [label.get_text() for label in figure.axes[-1].get_xticklabels()]
        ['against the class\\n−4', '0', 'for the class\\n4']
    """
    pictures = [[None if place is None else picture_of(place) for place in row] for row in rows]
    _check_labels(pictures, row_labels, column_labels, captions, group)
    end, said = _range(colorbar, limit, note)
    matplotlib = load_matplotlib()
    count, columns = len(pictures), len(pictures[0])
    group = group or count
    size = (cell * columns + 1.2, cell * (count + count // group / 4) + 1.2)
    layout = matplotlib.layout_engine.ConstrainedLayoutEngine(
        compress=True, w_pad=0.03, h_pad=0.03, wspace=0, hspace=0
    )
    figure = matplotlib.figure.Figure(figsize=size, dpi=160, layout=layout)

    # A thin row of the grid stays empty after each group.
    lines = [i + i // group for i in range(count)]
    heights = np.full(lines[-1] + 1, 0.12)
    heights[lines] = 1.0
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    all_axes = []
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            axes = figure.add_subplot(grid[lines[i], j], xticks=[], yticks=[])
            all_axes.append(axes)
            axes.spines[:].set(linewidth=0.5, color="0.6", visible=picture is not None)
            if picture is not None:
                axes.imshow(picture, interpolation="nearest")
            if captions:
                axes.set_xlabel(captions[i][j], size=7, labelpad=2, color="0.3")
            if row_labels and j == 0:
                axes.set_ylabel(row_labels[i], rotation=0, ha="right", va="center", size=9, labelpad=6)
            if column_labels and i == 0:
                axes.set_title(column_labels[j], size=9, pad=4)
    if colorbar:
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), colormap(colorbar, True))
        bar = figure.colorbar(
            scale,
            ax=all_axes,
            location="bottom",
            ticks=[-1, 0, 1],
            fraction=0.1,
            shrink=0.4,
            aspect=40,
            pad=0.01,
        )
        bar.ax.set_xticklabels([f"against the class\n−{end}", "0", f"for the class\n{end}"], size=8)
        bar.set_label(said, size=8, color="0.3")
        bar.outline.set(linewidth=0.5, edgecolor="0.6")
    if title:
        figure.suptitle(title, size=12, weight="bold")
    if footer:
        figure.supxlabel(footer, size=8, color="0.3")
    if alt is None:
        colours = (
            f"Colour bar from against the class, −{end}, to for the class, {end}: {said}" if colorbar else ""
        )
        alt = _described(len(rows), columns, title, row_labels, column_labels, captions, colours, footer)
    return finished(figure, alt, path)


def _range(colorbar: str | None, limit: float | str | None, note: str | None) -> tuple[str, str]:
    """What stands at the ends of the colour bar, and below it."""
    if colorbar is None:
        if limit is not None or note is not None:
            raise ValueError("limit and note are about the colour bar: give colorbar, such as 'relevance'")
        return "", ""
    if limit is None:
        end, said = (
            "limit",
            "the limit of each picture's colours: its own largest |R|, unless another was set",
        )
    elif limit == "own":
        end, said = "largest |R|", "each picture has its own range, up to its largest |R|"
    elif isinstance(limit, str) or not (np.isfinite(limit) and limit > 0):
        raise ValueError(f"limit must be a positive number, 'own' or None; it is {limit!r}")
    else:
        end, said = f"{float(limit):.3g}", "the same range in all pictures"
    return end, said if note is None else note


def _described(
    count: int,
    columns: int,
    title: str,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    captions: Sequence[Sequence[str]],
    colours: str,
    footer: str,
) -> str:
    """The alternative text of a sheet: whatever is written on it, in the order in which it is read."""
    plural = lambda n, name: f"{n} {name}" + ("" if n == 1 else "s")
    parts = [title, f"Sheet of pictures, {plural(count, 'row')} by {plural(columns, 'column')}"]
    lists = {
        "Rows": row_labels,
        "Columns": column_labels,
        "Captions": [c for row in captions for c in row if c],
    }
    parts += [f"{name}: {', '.join(labels)}" for name, labels in lists.items() if labels]
    sentences = [" ".join(part.split()).rstrip(".") for part in (*parts, colours, footer)]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _check_labels(pictures, row_labels, column_labels, captions, group) -> None:
    if not pictures or not pictures[0]:
        raise ValueError("a sheet needs at least one picture")
    columns = len(pictures[0])
    if any(len(row) != columns for row in pictures):
        raise ValueError(
            f"all rows need the same number of pictures: {[len(row) for row in pictures]}; pad with None"
        )
    if row_labels and len(row_labels) != len(pictures):
        raise ValueError(f"{len(row_labels)} row labels for {len(pictures)} rows")
    if column_labels and len(column_labels) != columns:
        raise ValueError(f"{len(column_labels)} column labels for {columns} columns")
    if captions and [len(row) for row in captions] != [columns] * len(pictures):
        raise ValueError(f"captions must be {len(pictures)} rows of {columns}")
    if group is not None and group < 1:
        raise ValueError(f"group must be at least 1; it is {group}")
