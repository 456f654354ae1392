"""Text with its tokens coloured by their relevance."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lrpjax._html import Html
from lrpjax.viz.colours import floats, luminance, over_limit, paint


def tokens(
    tokens: Sequence[str],
    relevance: ArrayLike,
    mode: Literal["ansi", "html"] = "ansi",
    *,
    limit: float | None = None,
    symmetric: bool = True,
    cmap: str | None = "bwr",
    separator: str = " ",
) -> Html:
    """Text with each token on a background coloured by its relevance, for a terminal or a notebook.

    Characters of a token that cannot be printed (line breaks, escape sequences) are shown as Python escapes,
    so that no token can break the line or speak to the terminal; in HTML, markup in tokens is escaped.

    Args:
        tokens: T strings.
        relevance: shape (T,), or (T, D), summed over D (the embedding's components).
        mode: ``"ansi"`` for a terminal with 24-bit colour, ``"html"`` for a page. A notebook shows
            either as HTML, in which hovering over a token tells its value.
        limit, symmetric, cmap: as for `heatmap`; ``"bwr"`` is lighter than seismic: text stays legible.
        separator: stands between tokens; ``""`` for tokenizers that keep their spaces.

    Returns:
        One string, which a notebook displays with its colours.
            Text is black or white, whichever contrasts more. NaN and infinity have the colour `BAD`.

    Raises:
        ValueError: the lengths differ, another mode, and what `heatmap` raises.

    Example:
        >>> from lrpjax import viz
        >>> print(viz.tokens(["a", "<b>"], [0.0, 1.0], mode="html"))
        <div style="..."><span style="background:#ffffff;color:#000000" title="+0">a</span> <span
        style="background:#ff0000;color:#ffffff" title="+1">&lt;b&gt;</span></div>
    """
    values = floats(relevance, "relevance")
    if values.ndim == 2:
        with np.errstate(invalid="ignore"):  # as for channels
            values = values.sum(-1)
    if isinstance(tokens, str) or values.shape != (len(tokens),):
        raise ValueError(
            f"relevance must hold one number (or one vector) for each of the {len(tokens)} tokens; "
            f"tokens is a {type(tokens).__name__} and relevance has shape {np.shape(relevance)}"
        )
    if mode not in ("ansi", "html"):
        raise ValueError(f"mode must be 'ansi' or 'html'; it is {mode!r}")
    colors = paint(over_limit(values[None], limit)[0], symmetric, cmap)
    light = luminance(colors, colors.ndim - 1) > 0.45
    ansi, pieces = [], []
    for token, value, (r, g, b), black in zip(tokens, values, colors.tolist(), light, strict=True):
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
        ansi.append(f"\x1b[48;2;{r};{g};{b}m\x1b[38;5;{16 if black else 231}m{text}\x1b[0m")
        style = f"background:#{r:02x}{g:02x}{b:02x};color:{'#000000' if black else '#ffffff'}"
        pieces.append(f'<span style="{style}" title="{value:+.4g}">{html.escape(text)}</span>')
    page = f'<div style="white-space:pre-wrap;line-height:1.8">{html.escape(separator).join(pieces)}</div>'
    return Html(separator.join(ansi) if mode == "ansi" else page, page)
