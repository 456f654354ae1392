"""Contact sheets: pictures in rows and columns, with labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from lrpjax.viz.colours import colormap, load_matplotlib, picture_of
from lrpjax.viz.saving import save

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
        colorbar: name of a diverging colour map to explain below the sheet (blue against, red for), or None.
        cell: height and width given to one picture, in inches.
        path: where to `save` the figure; None saves nothing.

    Returns:
        The figure. In a notebook it is displayed after ``%matplotlib inline``.

    Raises:
        ValueError: no pictures, rows of unequal length, labels that do not fit, arrays that are not pictures.
        OSError: `path` cannot be written; what it held before is untouched.

    Example:
        >>> import numpy as np
        >>> from lrpjax import viz
        >>> R = np.array([[1.0, -1.0], [0.0, 2.0]])
        >>> figure = viz.sheet([[viz.heatmap(R), viz.heatmap(-R)]], ["sample"], ["for", "against"])
        >>> len(figure.axes)
        2
    """
    pictures = [[None if place is None else picture_of(place) for place in row] for row in rows]
    _check_labels(pictures, row_labels, column_labels, captions, group)
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
        bar.ax.set_xticklabels(["against the class", "0", "for the class"], size=8)
        bar.outline.set(linewidth=0.5, edgecolor="0.6")
    if title:
        figure.suptitle(title, size=12, weight="bold")
    if footer:
        figure.supxlabel(footer, size=8, color="0.3")
    if path is not None:
        save(figure, path)
    return figure


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
