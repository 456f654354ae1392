"""A model's tree with every part coloured by its relevance."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._html import Html
from lrpjax.viz.colours import bound_of, luminance, over_limit, paint

STOPS = 33
"""How many colours of a map treescope is told, between which it interpolates."""


def tree(
    R: Any, *, limit: float | None = None, cmap: str | None = None, size: int = 4000, height: int | None = 20
) -> Html:
    """The tree of a model's parameters, or of any relevances, drawn by treescope: parts fold and unfold with a click.

    Before every part stands its share of Σ|R| over the whole tree, red where its Σ R is positive and blue where it is
    negative, the stronger the larger the share. Below each array stand its elements, coloured as in `heatmap`.

    Args:
        R: relevances in any structure: dicts of parameters, Flax NNX modules or states, dataclasses, lists. That of
            parameters comes from `lrpjax.parameters.relevance`, with the structure of the model. A dict of relevances
            at named values, from `lrpjax.relevance(…, at=[…])`, has shares of the sum over all of them.
        limit: the magnitude at the end of the colour map, for all arrays. None: each array's own largest.
        cmap: as for `heatmap`.
        size: of how many elements of an array are drawn at most; the middle of its axes is left out.
        height: how many lines are unfolded at first; None for all.

    Returns:
        A string of HTML that a notebook displays. What is not finite has the colour `BAD`.

    Raises:
        ImportError: treescope is not installed. ValueError: R holds no array of real numbers, limit is not a positive
            number, or no colour map has that name.

    Example:
        >>> import jax.numpy as jnp, lrpjax, re
        >>> from lrpjax import viz
        >>> R = {"first": {"w": jnp.array([3.0, -4.0])}, "second": jnp.array([1.0])}
        >>> page = viz.tree(R)
        >>> page.startswith("<")
        True
    """
    try:
        import treescope
    except ImportError as error:
        raise ImportError('viz.tree needs treescope: pip install "lrpjax[notebook]"') from error
    leaves = [leaf for leaf in jax.tree.leaves(R) if _is_real(leaf)]
    if not leaves:
        raise ValueError("R holds no array of real numbers")
    over_limit(np.zeros((1, 1)), limit)
    colours = [tuple(c) for c in paint(np.linspace(-1.0, 1.0, STOPS), True, cmap).tolist()]

    def elements(value: Any, path: str | None) -> Any:
        if not _is_real(value) or np.size(value) < 2:
            return None
        a = np.asarray(value, np.float64)
        drawn = treescope.render_array(
            a,
            continuous=True,
            around_zero=True,
            vmax=bound_of(a, 1.0) if limit is None else float(limit),
            trim_outliers=False,
            colormap=colours,
            truncate=True,
            maximum_size=size,
        )
        return treescope.IPythonVisualization(drawn)

    renderer = treescope.active_renderer.get().extended_with(wrapper_hooks=[_shares(leaves, cmap)])
    with (
        treescope.active_renderer.set_scoped(renderer),
        treescope.active_autovisualizer.set_scoped(elements),
        treescope.using_expansion_strategy(max_height=height),
    ):
        page = treescope.render_to_html(R)
    # treescope gives its output a random name; one made of the content leaves a notebook that runs again as it was.
    for name in dict.fromkeys(re.findall("treescope_out_[0-9a-f]{32}", page)):
        page = page.replace(name, "treescope_out_" + hashlib.md5(page.replace(name, "").encode()).hexdigest())
    return Html(f'<div style="overflow-x:auto;max-width:100%">{page}</div>')


def _shares(leaves: Sequence[Any], cmap: str | None) -> Callable:
    """A hook of treescope's renderer that writes its share of the relevance before every part."""
    from treescope import rendering_parts as parts

    whole = sum(_sums(leaf)[1] for leaf in leaves)

    around: list[Any] = [None]  # of each part being drawn, the array, if it holds only one

    def hook(node: Any, path: str | None, node_renderer: Callable) -> Any:
        own = [leaf for leaf in jax.tree.leaves(node) if _is_real(leaf)]
        if not own or (len(own) == 1 and own[0] is around[-1]):
            return NotImplemented  # the array in a part that holds nothing else has the part's mark
        total, size = (sum(column) for column in zip(*map(_sums, own), strict=True))
        finite = np.isfinite(total) and np.isfinite(size)
        share = size / whole if finite and np.isfinite(whole) and whole else 0.0
        colour = paint(np.array([np.copysign(share, total) if finite else np.nan]), True, cmap)
        (r, g, b), light = colour[0].tolist(), luminance(colour, 1)[0] > 0.45
        style = (
            f"background:rgb({r},{g},{b});color:{'#000' if light else '#fff'};border:1px solid #888;"
            "border-radius:3px;padding:0 3px;margin-right:4px;font-size:85%"
        )
        text = f"{share:.1%}, Σ R = {total:.3g}" if finite else "not finite"
        mark = parts.siblings(parts.custom_style(parts.text(text), style), parts.text(" "))
        around.append(own[0] if len(own) == 1 else None)
        drawn = node_renderer(node, path)
        around.pop()
        return parts.siblings_with_annotations(mark, drawn)

    return hook


def _is_real(value: Any) -> bool:
    """Whether it is an array of floats, of JAX or NumPy."""
    return isinstance(value, (jax.Array, np.ndarray)) and jnp.issubdtype(value.dtype, jnp.floating)


def _sums(array: Any) -> tuple[float, float]:
    """Σ R and Σ|R|."""
    with np.errstate(invalid="ignore"):  # ∞ − ∞: shown as not finite
        a = np.asarray(array, np.float64)
        return float(a.sum()), float(np.abs(a).sum())
