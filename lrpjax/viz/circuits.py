"""Attribution graphs, drawn from their inputs at the bottom to their outputs at the top."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrpjax.viz.colours import bound_of, colormap, load_matplotlib
from lrpjax.viz.saving import finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = {"input": "s", "feature": "o", "error": "D", "output": "s"}


def circuit(
    graph: Any,
    *,
    tokens: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    edges: int = 200,
    title: str = "",
    alt: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """An attribution graph: layers from the bottom to the top, tokens from the left to the right.

    Lines grow in width with |weight|, up to the largest; lines and nodes are red where relevance is positive and blue
    where it is negative. Circles are features, diamonds errors, squares inputs and outputs. Nodes without a token
    stand in the middle, and outputs without one above the last token. Prune a graph before it is drawn: about fifty
    nodes can be read.

    Args:
        graph: from `lrpjax.circuits.graph`.
        tokens: the text of every token, below the columns; None for their numbers.
        labels: {name of a node: its text}; None for the numbers of the features.
        edges: how many of the largest |weight| to draw.
        title: text.
        path: where to `save` the figure; None saves nothing.
        alt: alternative text; None for one that names the layers and the strongest nodes.

    Returns:
        The figure.

    Raises:
        ValueError: the graph has no nodes, or more tokens than are named; or edges is negative.
        OSError: `path` cannot be written.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import circuits, viz
        >>> f = lambda x: lrpjax.tag(x @ jnp.array([[1.0, -1.0], [2.0, 1.0]]), "h").sum()
        >>> lin = lrpjax.linearise(f, lrpjax.composites.epsilon(0.0), jnp.array([1.0, 3.0]), at="h")
        >>> figure = viz.circuit(circuits.graph(lin))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['input', 'h', 'output']
    """
    nodes = list(graph.nodes)
    if not nodes or edges < 0:
        raise ValueError(
            f"circuit needs a graph with nodes, and edges of at least 0; it has {len(nodes)} nodes, edges={edges}"
        )
    count = 1 + max([node.token for node in nodes if node.token is not None], default=-1)
    if tokens is not None and len(tokens) < count:
        raise ValueError(f"the graph has nodes at {count} tokens, but {len(tokens)} are named")
    x, y, ticks, width = _places(nodes, count)
    rows = sorted({node.layer for node in nodes})
    figure = load_matplotlib().figure.Figure(
        figsize=(float(np.clip(0.42 * width + 2, 5, 24)), float(np.clip(1.15 * len(rows) + 1, 3.5, 24))),
        dpi=160,
        layout="constrained",
    )
    axes = figure.add_subplot(title=title)
    colours = colormap(None, symmetric=True)
    colour = lambda numbers: colours(0.5 + 0.5 * np.sign(numbers))

    for here, there in itertools.pairwise(ticks):
        axes.axvline((here[1] + there[0]) / 2, color="0.9", linewidth=0.8, zorder=0)
    _draw_edges(axes, np.asarray(graph.weights), x, y, edges, colour)
    relevance = np.array([node.relevance for node in nodes])
    strength = np.sqrt(np.clip(np.abs(relevance) / bound_of(relevance[None], 1.0), 0.0, 1.0))
    for kind, marker in MARKERS.items():
        at = np.array([node.kind == kind for node in nodes])
        if at.any():
            axes.scatter(
                x[at],
                y[at],
                s=30 + 130 * strength[at],
                marker=marker,
                facecolors=colour(relevance[at]),
                edgecolors="0.15",
                linewidths=0.7,
                zorder=3,
                label=kind,
            )
    for node, across, up, strong in zip(nodes, x, y, strength, strict=True):
        numbered = node.feature is not None and node.kind != "error"
        text = (labels or {}).get(node.name, str(node.feature) if numbered else "")
        if text:
            axes.annotate(
                text,
                (across, up),
                (4 + 3.5 * strong, 0),
                textcoords="offset points",
                va="center",
                size=7,
                zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4, "alpha": 0.7},
            )

    axes.set_yticks(rows, [_row_name(nodes, row) for row in rows])
    axes.set_ylim(rows[0] - 0.45, rows[-1] + 0.6)
    axes.set_xlim(-0.9, width - 0.1)
    named = [str(t) for t in range(count)] if tokens is None else list(tokens)[:count]
    axes.set_xticks([(low + high) / 2 for low, high in ticks][:count], named)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    kinds = list(dict.fromkeys(node.kind for node in nodes if node.kind in MARKERS))
    mark = load_matplotlib().lines.Line2D
    entries = [
        mark([], [], marker=MARKERS[kind], color="0.15", markerfacecolor="white", linestyle="", label=kind)
        for kind in kinds
        if kind in ("feature", "error")
    ]
    entries += [
        mark([], [], color=colour(sign), linewidth=2, label=text)
        for sign, text in ((1, "positive"), (-1, "negative"))
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return finished(figure, _described(graph, nodes, rows, title, labels or {}) if alt is None else alt, path)


def _described(graph: Any, nodes: list, rows: list[int], title: str, labels: Mapping[str, str]) -> str:
    """The alternative text of a graph: how large it is, and its strongest nodes."""
    strongest = sorted((n for n in nodes if n.kind == "feature"), key=lambda n: -abs(n.relevance))[:3]
    said = ", ".join(f"{labels.get(n.name, n.name)} ({n.relevance:+.3g})" for n in strongest)
    count = int(np.count_nonzero(graph.weights))
    layers = "; ".join(_row_name(nodes, row) for row in rows)
    what = f"Attribution graph of {len(nodes)} nodes and {count} edges, from the bottom: {layers}"
    sentences = [title, what, f"Strongest features: {said}" if said else ""]
    return " ".join(f"{sentence}." for sentence in sentences if sentence)


def _places(
    nodes: list, count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[tuple[float, float]], float]:
    """Where nodes stand, across and up; from where to where each token's column reaches; and the width of all."""
    column = [
        node.token if node.token is not None else max(count - 1, 0) if node.kind == "output" else -1
        for node in nodes
    ]
    cells: dict[tuple[int, int], list[int]] = {}
    for i, node in enumerate(nodes):
        cells.setdefault((column[i], node.layer), []).append(i)
    widths = [max([len(c) for (k, _), c in cells.items() if k == token], default=1) for token in range(count)]
    alone = max([len(c) for (k, _), c in cells.items() if k == -1], default=0)
    starts = np.concatenate([[0.0], np.cumsum(np.array(widths, float) + 0.6)])
    if count:
        width = max(float(starts[-1]) - 0.6, float(alone))
    else:
        width = float(max(len(c) for c in cells.values()))
    x, y = np.zeros(len(nodes)), np.zeros(len(nodes))
    for (token, row), own in cells.items():
        middle = (
            (width - 1) / 2 if token == -1 or not count else float(starts[token]) + (widths[token] - 1) / 2
        )
        for k, i in enumerate(own):
            x[i], y[i] = middle + k - (len(own) - 1) / 2, row
            # Every second one a little lower, so that the numbers of neighbours do not meet.
            y[i] -= 0.16 * (k % 2) if len(own) > 3 else 0.0
    ticks = [(float(starts[t]) - 0.3, float(starts[t]) + widths[t] - 0.7) for t in range(count)]
    return x, y, ticks, width


def _draw_edges(axes: Any, weights: NDArray, x: NDArray, y: NDArray, count: int, colour: Any) -> None:
    """The edges of the largest magnitude, the largest on top."""
    targets, sources = np.nonzero(weights)
    sizes = np.abs(weights[targets, sources])
    order = np.argsort(-sizes, kind="stable")[:count][::-1]
    if not len(order):
        return
    targets, sources, sizes = targets[order], sources[order], sizes[order]
    share = sizes / sizes.max()
    colours = np.array(colour(weights[targets, sources]))
    colours[:, 3] = 0.15 + 0.7 * np.sqrt(share)
    ends = np.stack([np.stack([x[sources], y[sources]], 1), np.stack([x[targets], y[targets]], 1)], 1)
    lines = load_matplotlib().collections.LineCollection(
        ends, colors=colours, linewidths=0.3 + 4 * share, capstyle="round", zorder=1
    )
    axes.add_collection(lines)


def _row_name(nodes: list, row: int) -> str:
    """What stands in a row: the paths of its values, without those of their errors."""
    paths = dict.fromkeys(node.path for node in nodes if node.layer == row and node.kind != "error")
    return ", ".join(paths or dict.fromkeys(node.path for node in nodes if node.layer == row))
