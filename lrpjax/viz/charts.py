"""Curves: of metrics, and of the relevance that is left from stage to stage."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax.viz.colours import floats, load_matplotlib
from lrpjax.viz.saving import finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves(
    x: ArrayLike,
    values: Mapping[str, ArrayLike],
    *,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
    alt: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Metric curves, such as the score against the fraction of pixels flipped, one line for each method.

    Args:
        x: shape (S,), the positions shared by all curves.
        values: from a method's name to its curve, shape (S,), or to the curves of N samples, shape (N, S),
            drawn as their mean with a band of ± one standard error, std(ddof=1) / √N.
        x_label, y_label, title: text. alt: alternative text; None for one made of the labels and the curves' ends.
        path: where to `save` the figure; None saves nothing.

    Returns:
        The figure.

    Raises:
        ValueError: no curves, or one that does not fit x.
        OSError: `path` cannot be written.

    Example:
        >>> from lrpjax import viz
        >>> figure = viz.curves([0, 1, 2], {"LRP": [9, 2, 1], "random": [9, 7, 4]}, x_label="pixels flipped")
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['LRP', 'random']
    """
    x = floats(x, "x")
    if x.ndim != 1 or not values:
        raise ValueError(
            f"curves needs x of shape (S,) and at least one curve; x has {x.shape}, {len(values)} curves"
        )
    figure = load_matplotlib().figure.Figure(figsize=(6, 4), dpi=160, layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, title=title, axisbelow=True)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    for name, curve in values.items():
        samples = floats(curve, name)
        if samples.ndim not in (1, 2) or samples.shape[-1] != len(x) or samples.size == 0:
            raise ValueError(
                f"curve {name!r} must have shape ({len(x)},) or (N, {len(x)}); it has {samples.shape}"
            )
        mean = samples if samples.ndim == 1 else samples.mean(0)
        (line,) = axes.plot(x, mean, label=name)
        if samples.ndim == 2 and len(samples) > 1:
            error = samples.std(0, ddof=1) / np.sqrt(len(samples))
            axes.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.legend(frameon=False)
    if alt is None:
        means = {name: np.atleast_2d(floats(curve, name)).mean(0) for name, curve in values.items()}
        told = [f"{name} from {mean[0]:.3g} to {mean[-1]:.3g}" for name, mean in means.items() if len(mean)]
        axis = f"{y_label or 'values'} against {x_label or 'x'}"
        alt = f"{title + '. ' if title else ''}Curves of {axis}: {'; '.join(told)}."
    return finished(figure, alt, path)


def kept(
    stages: Mapping[str, Sequence[Any]],
    *,
    title: str = "",
    alt: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """What is left of the output's relevance after each stage of a network, one line for each composite.

    Where a share is below a tenth, the axis is linear around zero and logarithmic beyond (symlog), for shares fall by
    powers of ten in deep networks and may change their sign. The dotted line at 1 is all of the output's relevance.

    Args:
        stages: from a composite's name to `audit.stages(depth)`. Of audits under `jax.vmap` the line is the median of
            the examples, with a band from the lower to the upper quartile.
        title: text.
        path: where to `save` the figure; None saves nothing.
        alt: alternative text; None for one made of the title and what is left in the end.

    Returns:
        The figure.

    Raises:
        ValueError: no stages, or other stages in one composite than in another.
        OSError: `path` cannot be written.

    Example:
        >>> import jax, jax.numpy as jnp, lrpjax
        >>> from lrpjax import composites, viz
        >>> f = lambda x: jax.named_call(lambda x: x + 1.0, name="layer")(x)[0]
        >>> stages = lrpjax.audit(f, composites.epsilon())(jnp.array([3.0, 1.0])).stages()
        >>> figure = viz.kept({"epsilon": stages})
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['output', 'layer']
    """
    paths = [[stage.path for stage in own] for own in stages.values()]
    if not paths or not paths[0] or any(own != paths[0] for own in paths):
        raise ValueError(f"kept needs the same stages, at least one, for every composite; it has {paths}")
    shares = {name: _shares(own) for name, own in stages.items()}
    figure = load_matplotlib().figure.Figure(
        figsize=(max(5, 0.45 * len(paths[0]) + 3), 4), dpi=160, layout="constrained"
    )
    axes = figure.add_subplot(ylabel="share left: Σ R / f(x)", title=title, axisbelow=True)
    places = np.arange(len(paths[0]) + 1)
    sizes = np.abs(np.concatenate([share.ravel() for share in shares.values()]))
    smallest = np.min(sizes, where=sizes > 0, initial=1.0)
    if smallest < 0.1:
        axes.set_yscale("symlog", linthresh=max(smallest, 1e-4))
    axes.set_xticks(
        places, ["output", *_without_shared(paths[0])], rotation=45, ha="right", rotation_mode="anchor"
    )
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.axhline(1, color="0.4", linewidth=0.8, linestyle=":")
    ends, colors = [], []
    for name, share in shares.items():
        low, middle, high = np.quantile(share, [0.25, 0.5, 0.75], axis=0)
        (line,) = axes.plot(places, middle, marker="o", markersize=3, label=name)
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ends.append(middle[-1])
        colors.append(line.get_color())
    points = axes.transData.transform([(0, end) for end in ends])
    for name, color, height in zip(
        shares, colors, _apart(axes.transAxes.inverted().transform(points)[:, 1], 0.06), strict=True
    ):
        axes.text(1.02, height, name, color=color, transform=axes.transAxes, va="center", size=8)
    if alt is None:
        told = "; ".join(f"{name} {end:.3g}" for name, end in zip(shares, ends, strict=True))
        what = (
            f"Share of the output's relevance that is left after each of {len(paths[0])} stages; in the end"
        )
        alt = f"{title + '. ' if title else ''}{what}: {told}."
    return finished(figure, alt, path)


def _shares(stages: Sequence[Any]) -> NDArray[np.float64]:
    """The shares that are left, 1 at the output and then after each stage, (examples, 1 + stages)."""
    left = np.stack([np.atleast_1d(floats(stage.kept, "kept")).ravel() for stage in stages], axis=1)
    return np.concatenate([np.ones((len(left), 1)), left], axis=1)


def _without_shared(paths: Sequence[str]) -> list[str]:
    """The paths without the modules that all of them stand in; such a module itself keeps its name."""
    parts = [path.split("/") for path in paths]
    shared = sum(
        1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))
    )
    return ["/".join(p[shared:]) or p[-1] or "-" for p in parts]


def _apart(heights: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
    """Heights moved up where they are closer than this, in their order; then down if the last stands above 1."""
    order = np.argsort(heights, kind="stable")
    steps = distance * np.arange(len(heights))
    moved = np.maximum.accumulate(heights[order] - steps) + steps
    moved = np.minimum(moved, 1 - steps[::-1])
    return moved[np.argsort(order, kind="stable")]
