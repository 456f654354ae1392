"""Text with its tokens coloured by their relevance."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax._html import Html
from lrpjax.viz.colours import floats, over_limit, paint, takes_black


def tokens(
    tokens: Sequence[str],
    relevance: ArrayLike,
    mode: Literal["ansi", "html"] = "ansi",
    *,
    limit: float | None = None,
    symmetric: bool = True,
    cmap: str | None = None,
    separator: str = " ",
    alt: str | None = None,
) -> Html:
    """Text with each token on a background coloured by its relevance, for a terminal or a notebook.

    Characters of a token that cannot be printed (line breaks, escape sequences) are shown as Python escapes,
    so that no token can break the line or speak to the terminal; in HTML, markup in tokens is escaped.

    Args:
        tokens: T strings.
        relevance: shape (T,), or (T, D), summed over D (the embedding's components).
        mode: ``"ansi"`` for a terminal with 24-bit colour, ``"html"`` for a page. A notebook shows
            either as HTML, in which hovering over a token tells its value.
        limit, symmetric, cmap: as for `heatmap`.
        separator: stands between tokens; ``""`` for tokenizers that keep their spaces.
        alt: alternative text of the HTML; None for one that names the tokens with the largest relevance.

    Returns:
        One string, which a notebook displays with its colours.
            Text is black or white, whichever contrasts more. NaN and infinity have the colour `BAD`.

    Raises:
        ValueError: the lengths differ, another mode, and what `heatmap` raises.

    Example:
        >>> from lrpjax import viz
        >>> print(viz.tokens(["a", "<b>"], [0.0, 1.0], mode="html"))
        <div style="..." role="group" aria-label="..."><span style="background:#ffffff;color:#000000"
        title="+0">a</span> <span style="background:#d41412;color:#ffffff" title="+1">&lt;b&gt;</span></div>
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
    light = takes_black(colors)
    ansi, pieces = [], []
    for token, value, (r, g, b), black in zip(tokens, values, colors.tolist(), light, strict=True):
        text = printable(token)
        ansi.append(f"\x1b[48;2;{r};{g};{b}m\x1b[38;5;{16 if black else 231}m{text}\x1b[0m")
        style = f"background:#{r:02x}{g:02x}{b:02x};color:{'#000000' if black else '#ffffff'}"
        pieces.append(f'<span style="{style}" title="{value:+.4g}">{html.escape(text)}</span>')
    label = described(tokens, values, "Tokens coloured by their relevance") if alt is None else alt
    head = (
        f'<div style="white-space:pre-wrap;line-height:1.8" role="group" aria-label="{html.escape(label)}">'
    )
    page = f"{head}{html.escape(separator).join(pieces)}</div>"
    return Html(separator.join(ansi) if mode == "ansi" else page, page)


def printable(text: str) -> str:
    """Text with what cannot be printed as Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def described(tokens: Sequence[str], values: NDArray[np.float64], what: str) -> str:
    """The alternative text of coloured tokens: those with the largest relevance, for and against, and where there is
    none."""
    order = np.argsort(-np.abs(np.where(np.isfinite(values), values, 0.0)), kind="stable")[:3]
    said = [
        f"“{printable(tokens[i].strip())}” {values[i]:+.4g}"
        for i in order
        if values[i] and np.isfinite(values[i])
    ]
    bad = int((~np.isfinite(values)).sum())
    sentences = [what, f"the largest: {', '.join(said)}" if said else "none has any"]
    return "; ".join([*sentences, f"not finite: {bad}"] if bad else sentences)
