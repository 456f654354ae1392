"""Relevance in language models: tokens by layers, and a page on which each generated word shows what it came from."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax._html import Html
from lrpjax.viz.colours import bound_of, colormap, floats, load_matplotlib, over_limit, paint, takes_black
from lrpjax.viz.saving import finished
from lrpjax.viz.text import described, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WORD_STARTS = ("Ġ", "▁", "Ċ")
"""What tokenizers write for a space (byte-level BPE, SentencePiece) and a line break at the beginning of a token."""

SHOWN = {"\n": "↵\n", "\t": "→\t", "\xa0": "⍽"}
"""Whitespace of which a reader would not see what it is; a line break and a tab stay behind their mark."""


def token_layers(
    R: ArrayLike | Mapping[str, ArrayLike],
    tokens: Sequence[str],
    layers: Sequence[str] | None = None,
    *,
    limit: float | None = None,
    symmetric: bool = True,
    cmap: str | None = None,
    title: str = "",
    alt: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """The relevance of every token in every layer, for one generated token: where in the text relevance is, from the
    last layer (at the top) to the embedding (at the bottom).

    Args:
        R: relevance, shape (L, T), the first layer first. Or a mapping from the layer's name to shape (T,), or (L, T)
            of layers in a scan, in this order from the bottom; of `lrpjax.language.token_relevance` with several paths
            that is `{name: r[n] for name, r in R.items()}` for the n-th generated token.
        tokens: T strings.
        layers: L names, instead of the mapping's or of numbers.
        limit, symmetric, cmap: as for `heatmap`; one limit for all layers, so that colours can be compared.
        title: text.
        path: where to `save` the figure; None saves nothing.
        alt: alternative text; None for one that names the token with the largest relevance in each layer.

    Returns:
        The figure. NaN and infinity have the colour `BAD`.

    Raises:
        ValueError: shapes that do not fit, no layers, and what `heatmap` raises. OSError: `path` cannot be written.

    Example:
        >>> from lrpjax import viz
        >>> figure = viz.token_layers({"embedding": [1.0, 2.0], "block": [[0.5, 2.5], [0.0, 3.0]]}, ["The", " cat"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['embedding', 'block 0', 'block 1']
    """
    values, names = _layers_of(R, len(tokens), isinstance(tokens, str))
    if layers is not None:
        if isinstance(layers, str) or len(layers) != len(values):
            raise ValueError(
                f"layers must be {len(values)} names, one for each layer of R, but is {layers!r}"
            )
        names = list(layers)
    scaled = over_limit(values, limit, 1.0)
    bound = bound_of(values, 1.0) if limit is None else float(limit)
    matplotlib = load_matplotlib()
    count, length = values.shape
    figure = matplotlib.figure.Figure(
        figsize=(max(4.0, 0.3 * length + 2.5), max(2.5, 0.25 * count + 1.8)), dpi=160, layout="constrained"
    )
    axes = figure.add_subplot(title=title)
    axes.imshow(paint(scaled, symmetric, cmap), origin="lower", aspect="auto", interpolation="nearest")
    scale = matplotlib.cm.ScalarMappable(
        matplotlib.colors.Normalize(-bound if symmetric else 0.0, bound), colormap(cmap, symmetric)
    )
    figure.colorbar(scale, ax=axes, label="relevance", fraction=0.05, pad=0.02)
    axes.set_yticks(np.arange(count), names)
    axes.set_xticks(
        np.arange(length),
        [shown(token).replace("\n", "") for token in tokens],
        rotation=60,
        ha="right",
        rotation_mode="anchor",
    )
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a token may hold dollar signs
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(length + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    if alt is None:
        top = ["".join(shown(tokens[i]).split()) for i in np.argmax(np.nan_to_num(values, nan=-np.inf), 1)]
        told = "; ".join(f"{name}: {token}" for name, token in zip(names, top, strict=True))
        what = f"Relevance of {length} tokens in {count} layers, colours up to {bound:.3g}"
        alt = f"{title + '. ' if title else ''}{what}. The token with the largest in each: {told}."
    return finished(figure, alt, path)


def _layers_of(
    R: ArrayLike | Mapping[str, ArrayLike], length: int, one_string: bool
) -> tuple[NDArray, list[str]]:
    """Relevance (L, T), and the names of the layers."""
    parts = R if isinstance(R, Mapping) else {"": R}
    rows, names = [], []
    for name, part in parts.items():
        values = floats(part, name or "R")
        single = values.ndim == 1 and isinstance(R, Mapping)
        if one_string or not (single or values.ndim == 2) or values.shape[-1] != length or 0 in values.shape:
            raise ValueError(
                f"{name or 'R'} must hold one number for each of the {length} tokens in each layer, shape (L, {length})"
                f"{f' or ({length},)' if isinstance(R, Mapping) else ''}; it has {values.shape}"
            )
        rows += [values[None] if single else values]
        names += [name] if single else [f"{name} {i}".strip() for i in range(len(values))]
    if not rows:
        raise ValueError("R holds no layers")
    return np.concatenate(rows), names


def generated(
    tokens: Sequence[str],
    R: ArrayLike,
    start: int,
    *,
    words: Sequence[int] | None = None,
    limit: float | None = None,
    symmetric: bool = True,
    cmap: str | None = None,
    separator: str = "",
    document: bool = False,
    alt: str | None = None,
) -> Html:
    """A text whose generated tokens show what they came from: HTML for a notebook or a file, which needs no network.

    At first every token is coloured by its relevance for all that was generated, summed. With the mouse on a generated
    token, or with the keyboard's focus on it, the tokens before it have the colours of their relevance for that token;
    a click (or Enter) on it holds the view of the whole word that it is part of, the sum over the word's tokens, until
    the next one. Hovering over any token tells its value. Without scripts the first view stays.

    Args:
        tokens: T strings.
        R: relevance, shape (N, T) with N = T − start, as `lrpjax.language.token_relevance` gives it.
        start: the position of the first generated token.
        words: for each generated token the number of its word, N integers that never fall. None: a word begins
            with whitespace, or what tokenizers write for it (Ġ, ▁, Ċ); with a separator each token is a word.
        limit: the magnitude at the end of the colour map, for all views. None: each view's own largest.
        symmetric, cmap: as for `tokens`.
        alt: alternative text; None for one that names the tokens with the largest relevance for all that was generated.
        separator: stands between tokens; ``""`` for tokenizers that keep their spaces.
        document: whether to return a whole page, for a file (written as UTF-8), in place of a part of one.

    Returns:
        One string, which a notebook displays.
            Markup in tokens is escaped; line breaks and tabs are marked (↵, →), as is what cannot be printed,
            by Python escapes. NaN and infinity have the colour `BAD`. Values have 5 digits of a view's largest.

    Raises:
        ValueError: shapes, `start` or `words` do not fit, and what `heatmap` raises.

    Example:
        >>> import re
        >>> from lrpjax import viz
        >>> page = viz.generated(["a", " b", " <c", "d>"], [[1.0, -2.0, 0.0, 0.0], [0.0, 1.0, 4.0, 0.0]], start=2)
        >>> re.findall(r'title="([^"]*)"[^>]*>([^<]*)<', page)
        [('+1', 'a'), ('-1', ' b'), ('+4', ' &lt;c'), ('+0', 'd&gt;')]
        >>> re.findall(r'data-word="([^"]*)"', page)
        ['0', '0']
    """
    values = floats(R, "R")
    length = len(tokens)
    if isinstance(tokens, str) or not 1 <= start < length or values.shape != (length - start, length):
        raise ValueError(
            f"R must have shape (T - start, T), with 1 <= start < T; there are {length} tokens, start is {start!r}, "
            f"and R has {values.shape}"
        )
    numbers = _words(tokens[start:], separator) if words is None else np.asarray(words)
    if (
        numbers.shape != (length - start,)
        or numbers.dtype.kind not in "iu"
        or (np.diff(numbers.astype(np.int64)) < 0).any()
    ):
        raise ValueError(
            f"words must be {length - start} integers that never fall, one for each generated token; it is {words!r}"
        )
    with np.errstate(invalid="ignore"):  # as for channels
        total = values.sum(0)
        each = [values[numbers == number].sum(0) for number in np.unique(numbers)]
    colors = paint(over_limit(total[None], limit, 1.0)[0], symmetric, cmap)
    light = takes_black(colors)
    numbers = np.unique(numbers, return_inverse=True)[1]
    pieces = []
    for i, (token, value, (r, g, b), black) in enumerate(
        zip(tokens, total, colors.tolist(), light, strict=True)
    ):
        style = f"background:#{r:02x}{g:02x}{b:02x};color:{'#000000' if black else '#ffffff'}"
        says = (
            f' class="generated" tabindex="0" data-row="{i - start}" data-word="{numbers[i - start]}"'
            if i >= start
            else ""
        )
        pieces.append(f'<span style="{style}" title="{value:+.4g}"{says}>{html.escape(shown(token))}</span>')
    # The middle of the map, and 127 colours to each side; for a one-sided range zero is at the middle as well.
    palette = paint(np.linspace(-1.0, 1.0, 255), symmetric, cmap)
    light = takes_black(palette)
    data = {
        "views": [_packed(view) for view in (total, *values, *each)],
        "rows": len(values),
        "length": length,
        "limit": None if limit is None else float(limit),
        "palette": ["#" + bytes(c.tolist()).hex() for c in palette],
        "text": ["#000000" if black else "#ffffff" for black in light],
        "bad": ["#" + bytes(paint(np.array([np.nan]), symmetric, cmap)[0].tolist()).hex(), "#000000"],
    }
    body = html.escape(separator).join(pieces)
    told = json.dumps(data, separators=(",", ":"))
    # Its content names the view: several stand on one page, and a notebook does not tell a script where it is.
    name = "lrpjax-" + hashlib.blake2b((body + told).encode(), digest_size=6).hexdigest()
    style = _STYLE.replace("NAME", name)
    script = _SCRIPT.replace("NAME", name).replace("DATA", told)
    what = "Text with its tokens coloured by their relevance"
    label = html.escape(described(tokens, total, what) if alt is None else alt)
    head = f'<div class="{name}" role="group" aria-label="{label}"><style>{style}</style>'
    part = f"{head}<div>{body}</div></div><script>{script}</script>"
    if not document:
        return Html(part)
    head = '<meta charset="utf-8"><title>relevance</title>'
    return Html(f"<!doctype html>\n<html><head>{head}</head><body>{part}</body></html>\n", part)


def shown(token: str) -> str:
    """A token with its whitespace marked, and what cannot be printed as Python escapes."""
    return "".join(SHOWN.get(c) or printable(c) for c in token)


def _words(tokens: Sequence[str], separator: str) -> NDArray[np.int64]:
    """The number of each token's word."""
    begins = [bool(separator) or t[:1].isspace() or t.startswith(WORD_STARTS) for t in tokens]
    after = [False, *(t[-1:] == "\n" or t.endswith("Ċ") for t in tokens[:-1])]
    starts = np.array([b or a for b, a in zip(begins, after, strict=True)])
    starts[0] = False
    return np.cumsum(starts)


def _packed(view: NDArray[np.float64]) -> list:
    """[the largest magnitude, the values over it as 16 bits in base64]: −32768 stands for what is not finite."""
    finite = np.isfinite(view)
    bound = bound_of(view, 1.0)
    whole = np.where(finite, np.rint(np.where(finite, view, 0.0) / bound * 32767), -32768).astype("<i2")
    return [bound, base64.b64encode(whole.tobytes()).decode()]


_STYLE = (
    ".NAME{white-space:pre-wrap;line-height:1.8;font-family:sans-serif}"
    ".NAME .generated{border-bottom:2px solid #888;cursor:pointer}"
    ".NAME .shown{border-bottom-color:#000;outline:2px solid #000}"
)

# No text of a token comes into the script: it holds numbers and colours, and sets styles and titles.
_SCRIPT = """(function(){
var d=DATA,views=d.views.map(function(v){var s=atob(v[1]),n=[];
for(var i=0;i<s.length;i+=2){var q=s.charCodeAt(i)|s.charCodeAt(i+1)<<8;q=q>32767?q-65536:q;
n.push(q===-32768?NaN:q/32767*v[0]);}
return {limit:d.limit===null?v[0]:d.limit,values:n};});
document.querySelectorAll(".NAME").forEach(function(box){
var spans=box.querySelectorAll("span"),held=null,own=box.querySelectorAll(".generated");
function show(number){var view=views[number];
for(var i=0;i<d.length;i++){var v=view.values[i],bad=!isFinite(v),
k=bad?0:Math.round(127*Math.max(-1,Math.min(1,v/view.limit)))+127;
spans[i].style.background=bad?d.bad[0]:d.palette[k];spans[i].style.color=bad?d.bad[1]:d.text[k];
spans[i].title=bad?"not finite":(v<0?"":"+")+Number(v.toPrecision(4));}
own.forEach(function(s){var one=number===1+Number(s.dataset.row),word=number===1+d.rows+Number(s.dataset.word);
s.classList.toggle("shown",one||word);});}
function rest(){show(held===null?0:held);}
own.forEach(function(s){
var row=1+Number(s.dataset.row),word=1+d.rows+Number(s.dataset.word);
function hold(){held=held===word?null:word;rest();}
s.onmouseenter=s.onfocus=function(){if(held===null)show(row);};
s.onmouseleave=s.onblur=rest;
s.onclick=hold;
s.onkeydown=function(e){if(e.key==="Enter"){e.preventDefault();hold();}};
});});})();"""
