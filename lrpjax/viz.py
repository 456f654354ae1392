"""Pictures of relevance: heatmaps, overlays, contact sheets, token heatmaps and metric curves.

Everything here works on plain arrays (NumPy or JAX, of any real dtype) and returns plain arrays, strings or
`matplotlib.figure.Figure` objects; no pyplot, so no global state and no display is needed. Colour maps are
matplotlib's, by name, plus zennit's ``"coldnhot"``. matplotlib is optional: ``pip install "lrpjax[viz]"``.

Three conventions hold throughout. *Symmetric* ranges [−limit, limit] are for signed relevance: zero has the
colour at the middle of the map (exactly white in the default map, with red for and blue against).
*One-sided* ranges [0, limit] are for quantities without a sign, such as sensitivity. And a value that is NaN
or infinite is painted in `BAD`, a green that no diverging map contains, so that it is seen where it is and
never taken for a small relevance.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

BAD = "#00ff00"
"""The colour of NaN and infinity in every picture."""

# zennit's "0ff,00f,80:000,f00,ff0,fff" (src/zennit/image.py): cyan, blue, black at zero, red, yellow, white,
# evenly spaced on each side of zero.
_COLDNHOT = [
    (0.0, "#00ffff"),
    (0.25, "#0000ff"),
    (0.5, "#000000"),
    (2 / 3, "#ff0000"),
    (5 / 6, "#ffff00"),
    (1.0, "#ffffff"),
]

__all__ = [
    "BAD",
    "check_path",
    "curves",
    "heatmap",
    "kept",
    "overlay",
    "save",
    "shared_limit",
    "sheet",
    "tokens",
]


def _matplotlib():
    try:
        import matplotlib
        import matplotlib.backend_bases
        import matplotlib.cm
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.image
        import matplotlib.layout_engine
    except ImportError as error:
        raise ImportError('lrpjax.viz needs matplotlib: pip install "lrpjax[viz]"') from error
    return matplotlib


def _colormap(name: str | None, symmetric: bool) -> Colormap:
    matplotlib = _matplotlib()
    name = name or ("seismic" if symmetric else "hot_r")
    if name == "coldnhot":
        colormap = matplotlib.colors.LinearSegmentedColormap.from_list("coldnhot", _COLDNHOT)
    elif name in matplotlib.colormaps:
        colormap = matplotlib.colormaps[name]
    else:
        raise ValueError(
            f"unknown colour map {name!r}: give a matplotlib name such as 'seismic', or 'coldnhot'"
        )
    # An odd number of entries has a middle one: with matplotlib's 256, zero would not be quite white.
    return colormap.resampled(257).with_extremes(bad=BAD)


def _floats(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values)
    if np.iscomplexobj(array):
        raise TypeError(f"{name} must be real, not {array.dtype}")
    return array.astype(np.float64)


def _sum_channels(R: ArrayLike) -> NDArray[np.float64]:
    R = _floats(R, "R")
    if R.ndim not in (2, 3, 4) or 0 in R.shape:
        raise ValueError(
            f"R must have shape (H, W), (H, W, C) or (N, H, W, C), none of them empty; it has {R.shape}"
        )
    if R.ndim > 2 and R.shape[-3] in (1, 3) and min(R.shape[-2:]) > 4:
        raise ValueError(
            f"R has its channels first, {R.shape}: move them last, jnp.moveaxis(R, -3, -1). If {R.shape[-1]} are its "
            "channels, sum over them, R.sum(-1, keepdims=True)"
        )
    with np.errstate(invalid="ignore"):  # inf − inf: the NaN it makes is painted as such
        return R if R.ndim == 2 else R.sum(-1)


def _scaled(R: NDArray[np.float64], limit: ArrayLike | None, quantile: float = 1.0) -> NDArray[np.float64]:
    """R divided by its limit (by default the quantile of each picture's finite magnitudes); zeros stay zeros."""
    if limit is None:
        pictures = R[None] if R.ndim == 2 else R
        bounds = [_bound(picture, quantile) for picture in pictures]
        return R / np.reshape(bounds, (*R.shape[:-2], 1, 1))
    bound = _floats(limit, "limit")
    if not (np.isfinite(bound) & (bound > 0)).all():
        raise ValueError(
            f"limit must be positive and finite, or None for the largest magnitude; it is {limit}"
        )
    if bound.ndim > 1 or (bound.ndim == 1 and (R.ndim < 3 or len(bound) != len(R))):
        raise ValueError(
            f"limit must be a number or one number per picture; it has shape {bound.shape} for {R.shape}"
        )
    return R / (bound[:, None, None] if bound.ndim else bound)


def _bound(R: NDArray[np.float64], quantile: float) -> float:
    """The quantile of the finite magnitudes; the largest where that is zero, and 1 where all are."""
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be above 0 and at most 1; it is {quantile}")
    finite = np.abs(R[np.isfinite(R)])
    if not finite.size:
        return 1.0
    return float(np.quantile(finite, quantile) or finite.max() or 1.0)


def shared_limit(*maps: ArrayLike, quantile: float = 1.0) -> float:
    """One limit for several maps, to be given to `heatmap` and `overlay`: a colour means the same in all of them then.

    Args:
        maps: relevances, each as for `heatmap`; of whatever sizes.
        quantile: of the magnitudes |Σ_c R_c| of all pixels of all maps; 1 is the largest, which a single pixel decides.

    Returns:
        The limit, in R's unit; 1 where all relevance is zero.

    Raises:
        ValueError: no maps, a quantile outside (0, 1], and what `heatmap` raises.

    Example:
        >>> import numpy as np
        >>> from lrpjax import viz
        >>> a, b = np.array([[1.0, -2.0]]), np.array([[4.0]])
        >>> viz.shared_limit(a, b), viz.shared_limit(a, b, quantile=0.5)
        (4.0, 2.0)
    """
    if not maps:
        raise ValueError("give at least one map")
    return _bound(np.concatenate([_sum_channels(R).reshape(-1) for R in maps]), quantile)


def _paint(scaled: NDArray[np.float64], symmetric: bool, cmap: str | None) -> NDArray[np.uint8]:
    position = 0.5 * (1 + scaled) if symmetric else scaled
    # Masked before clipping, for an infinity would be clipped to the end of the map.
    masked = np.ma.masked_invalid(position, copy=False)
    return _colormap(cmap, symmetric)(np.ma.clip(masked, 0.0, 1.0), bytes=True)[..., :3]


def heatmap(
    R: ArrayLike,
    limit: ArrayLike | None = None,
    symmetric: bool = True,
    cmap: str | None = None,
    quantile: float = 1.0,
) -> NDArray[np.uint8]:
    """Relevance as an RGB picture, its channels summed.

    A pixel's colour is the map's at (1 + r) / 2 for a symmetric range and at r for a one-sided one, where
    r = Σ_c R_c / limit is cut off to [−1, 1] or [0, 1].

    Args:
        R: relevance, shape (H, W), (H, W, C) or (N, H, W, C), any real dtype.
        limit: the magnitude at the end of the map, in R's unit: a number, or an array of shape (N,) for a
            batch. None takes each picture's own, see `quantile`; give a limit, such as `shared_limit`, to compare
            pictures.
        symmetric: True for the range [−limit, limit], False for [0, limit], in which negative values have the
            colour of zero.
        cmap: a matplotlib name or ``"coldnhot"``; None is ``"seismic"`` (blue, white at zero, red) for
            symmetric and ``"hot_r"`` (white at zero, yellow, red, black) for one-sided ranges.
        quantile: without a limit, the quantile of a picture's finite |Σ_c R_c| that is taken: 1 is the largest, which a
            single pixel decides; 0.99 lets one in a hundred exceed the range.

    Returns:
        uint8 array of shape (H, W, 3) or (N, H, W, 3). An all-zero R has the colour of zero everywhere; NaN
        and infinite pixels have the colour `BAD`.

    Raises:
        ValueError: unknown map, R of another rank or empty, or with its channels first; limit not positive or of the
            wrong shape; quantile outside (0, 1].
        TypeError: complex R.
        ImportError: matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> from lrpjax import viz
        >>> viz.heatmap(np.array([[-1.0, 0.0, 2.0]])).tolist()
        [[[0, 0, 255], [255, 255, 255], [127, 0, 0]]]
    """
    R = _sum_channels(R)
    return _paint(_scaled(R, limit, quantile), symmetric, cmap)


def overlay(
    image: ArrayLike,
    R: ArrayLike,
    limit: ArrayLike | None = None,
    symmetric: bool = True,
    cmap: str | None = None,
    opacity: float = 1.0,
    quantile: float = 1.0,
) -> NDArray[np.uint8]:
    """Relevance painted over the image it explains, which shows through in grey where there is none.

    A pixel is a · colour + (1 − a) · grey, with a = opacity · √(|r|): r is the relevance over its limit as in
    `heatmap`, colour the map's, and grey the image's luminance 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601),
    compressed to the middle three quarters of the range so that the colours stand out on black and on white.

    Args:
        image: shape (H, W), (H, W, 1) or (H, W, 3), or with a leading N as `R`; floats in [0, 1] or uint8.
        R: relevance of the same height and width, as for `heatmap`.
        limit, symmetric, cmap, quantile: as for `heatmap`.
        opacity: 0 shows the image alone, 1 covers it entirely where |relevance| reaches the limit.

    Returns:
        uint8 array of shape (H, W, 3) or (N, H, W, 3). NaN and infinite relevance has the colour `BAD`,
        opaque.

    Raises:
        ValueError: image and R differ in height or width, values of the image outside [0, 1], opacity outside
            [0, 1], and what `heatmap` raises.

    Example:
        >>> import numpy as np
        >>> from lrpjax import viz
        >>> viz.overlay(np.zeros((1, 2)), np.array([[0.0, 2.0]])).tolist()
        [[[32, 32, 32], [127, 0, 0]]]
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1]; it is {opacity}")
    R = _sum_channels(R)
    grey = _luminance(image, R.ndim)
    if grey.shape != R.shape:
        raise ValueError(
            f"image is {grey.shape} and R is {R.shape}: resize one of them first (jax.image.resize)"
        )
    scaled = _scaled(R, limit, quantile)
    weight = opacity * np.sqrt(np.clip(np.abs(scaled) if symmetric else scaled, 0.0, 1.0))
    weight = np.where(np.isfinite(R), weight, 1.0)[..., None]
    background = 255 * (0.125 + 0.75 * grey[..., None])
    return np.rint(weight * _paint(scaled, symmetric, cmap) + (1 - weight) * background).astype(np.uint8)


def _luminance(image: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """The image in grey, in [0, 1], with `ndim` axes."""
    scale = 255.0 if np.asarray(image).dtype == np.uint8 else 1.0
    values = _floats(image, "image") / scale
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("image must be uint8, or floats in [0, 1]: rescale it first")
    if values.ndim == ndim:
        return values
    if values.ndim == ndim + 1 and values.shape[-1] in (1, 3):
        weights = np.array([0.299, 0.587, 0.114]) if values.shape[-1] == 3 else np.ones(1)
        return values @ weights
    raise ValueError(
        f"image must have shape (H, W), (H, W, 1) or (H, W, 3), with R's leading axis; it has {values.shape}"
    )


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
    pictures = [[None if place is None else _picture(place) for place in row] for row in rows]
    _check_labels(pictures, row_labels, column_labels, captions, group)
    matplotlib = _matplotlib()
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
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(-1, 1), _colormap(colorbar, True))
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


def _picture(values: ArrayLike) -> NDArray:
    picture = np.asarray(values)
    if picture.ndim != 3 or picture.shape[-1] not in (3, 4) or 0 in picture.shape:
        raise ValueError(
            f"a picture of a sheet must have shape (H, W, 3) or (H, W, 4); this one has {picture.shape}. "
            "heatmap turns an array into a picture"
        )
    if picture.dtype != np.uint8:
        picture = _floats(picture, "picture")
        if not ((picture >= 0) & (picture <= 1)).all():
            raise ValueError("a picture must be uint8, or floats in [0, 1]; heatmap turns relevance into one")
    return picture


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


def tokens(
    tokens: Sequence[str],
    relevance: ArrayLike,
    mode: Literal["ansi", "html"] = "ansi",
    *,
    limit: float | None = None,
    symmetric: bool = True,
    cmap: str | None = "bwr",
    separator: str = " ",
) -> str:
    """Text with each token on a background coloured by its relevance, for a terminal or a notebook.

    Characters of a token that cannot be printed (line breaks, escape sequences) are shown as Python escapes,
    so that no token can break the line or speak to the terminal; in HTML, markup in tokens is escaped.

    Args:
        tokens: T strings.
        relevance: shape (T,), or (T, D), summed over D (the embedding's components).
        mode: ``"ansi"`` for a terminal with 24-bit colour, ``"html"`` for a notebook, in which
            ``IPython.display.HTML`` shows it and hovering over a token tells its value.
        limit, symmetric, cmap: as for `heatmap`; ``"bwr"`` is lighter than seismic: text stays legible.
        separator: stands between tokens; ``""`` for tokenizers that keep their spaces.

    Returns:
        One string. Text is black or white, whichever contrasts more. NaN and infinity have the colour `BAD`.

    Raises:
        ValueError: the lengths differ, another mode, and what `heatmap` raises.

    Example:
        >>> from lrpjax import viz
        >>> print(viz.tokens(["a", "<b>"], [0.0, 1.0], mode="html"))
        <div style="..."><span style="background:#ffffff;color:#000000" title="+0">a</span> <span
        style="background:#ff0000;color:#ffffff" title="+1">&lt;b&gt;</span></div>
    """
    values = _floats(relevance, "relevance")
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
    colors = _paint(_scaled(values[None], limit)[0], symmetric, cmap)
    light = _luminance(colors, colors.ndim - 1) > 0.45
    pieces = []
    for token, value, (r, g, b), black in zip(tokens, values, colors.tolist(), light, strict=True):
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in token)
        if mode == "ansi":
            pieces.append(f"\x1b[48;2;{r};{g};{b}m\x1b[38;5;{16 if black else 231}m{text}\x1b[0m")
        else:
            style = f"background:#{r:02x}{g:02x}{b:02x};color:{'#000000' if black else '#ffffff'}"
            pieces.append(f'<span style="{style}" title="{value:+.4g}">{html.escape(text)}</span>')
    if mode == "ansi":
        return separator.join(pieces)
    return f'<div style="white-space:pre-wrap;line-height:1.8">{html.escape(separator).join(pieces)}</div>'


def curves(
    x: ArrayLike,
    values: Mapping[str, ArrayLike],
    *,
    x_label: str = "",
    y_label: str = "",
    title: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Metric curves, such as the score against the fraction of pixels flipped, one line for each method.

    Args:
        x: shape (S,), the positions shared by all curves.
        values: from a method's name to its curve, shape (S,), or to the curves of N samples, shape (N, S),
            drawn as their mean with a band of ± one standard error, std(ddof=1) / √N.
        x_label, y_label, title: text.
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
    x = _floats(x, "x")
    if x.ndim != 1 or not values:
        raise ValueError(
            f"curves needs x of shape (S,) and at least one curve; x has {x.shape}, {len(values)} curves"
        )
    figure = _matplotlib().figure.Figure(figsize=(6, 4), dpi=160, layout="constrained")
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, title=title, axisbelow=True)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    for name, curve in values.items():
        samples = _floats(curve, name)
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
    if path is not None:
        save(figure, path)
    return figure


def kept(
    stages: Mapping[str, Sequence[Any]],
    *,
    title: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """What is left of the output's relevance after each stage of a network, one line for each composite.

    Where a share is below a tenth, the axis is linear around zero and logarithmic beyond (symlog), for shares fall by
    powers of ten in deep networks and may change their sign. The dotted line at 1 is all of the output's relevance.

    Args:
        stages: from a composite's name to `audit.stages(depth)`. Of audits under `jax.vmap` the line is the median of
            the examples, with a band from the lower to the upper quartile.
        title: text. path: where to `save` the figure; None saves nothing.

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
    figure = _matplotlib().figure.Figure(
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
    if path is not None:
        save(figure, path)
    return figure


def _shares(stages: Sequence[Any]) -> NDArray[np.float64]:
    """The shares that are left, 1 at the output and then after each stage, (examples, 1 + stages)."""
    left = np.stack([np.atleast_1d(_floats(stage.kept, "kept")).ravel() for stage in stages], axis=1)
    return np.concatenate([np.ones((len(left), 1)), left], axis=1)


def _without_shared(paths: Sequence[str]) -> list[str]:
    """The paths without the modules that all of them stand in."""
    parts = [path.split("/") for path in paths]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return ["/".join(p[shared:]) or "-" for p in parts]


def _apart(heights: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
    """Heights moved up where they are closer than this, in their order; then down if the last stands above 1."""
    order = np.argsort(heights, kind="stable")
    steps = distance * np.arange(len(heights))
    moved = np.maximum.accumulate(heights[order] - steps) + steps
    moved = np.minimum(moved, 1 - steps[::-1])
    return moved[np.argsort(order, kind="stable")]


def save(picture: Figure | ArrayLike, path: str | os.PathLike[str], magnify: int = 1) -> None:
    """Write a figure, or a single heatmap, in the format of the path's ending; the file appears whole or not at all.

    Args:
        picture: a matplotlib figure; or a picture as `heatmap` and `overlay` give it, uint8 or floats in [0, 1], shape
            (H, W, 3) or (H, W, 4), of which each element becomes one pixel.
        path: where to; an existing file is replaced. Its folder must exist.
        magnify: the side in pixels of each element of an array; a figure has its own size.

    Raises:
        ValueError, OSError: as `check_path`; what the path held before is untouched. ValueError: an array that is no
            picture, or magnify below 1.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from lrpjax import viz
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     viz.save(viz.curves([0, 1], {"a": [0, 1]}), Path(folder, "curve.png"))
        ...     viz.save(viz.heatmap(np.eye(8)), Path(folder, "heatmap.png"), magnify=4)
        ...     print(sorted(file.name for file in Path(folder).iterdir()))
        ['curve.png', 'heatmap.png']
    """
    path = check_path(path)
    if hasattr(picture, "savefig"):
        write = lambda to: picture.savefig(to, bbox_inches="tight", pad_inches=0.1)
    else:
        if magnify < 1 or magnify != int(magnify):
            raise ValueError(f"magnify must be a whole number of at least 1; it is {magnify}")
        pixels = _picture(picture).repeat(int(magnify), axis=0).repeat(int(magnify), axis=1)
        write = lambda to: _matplotlib().image.imsave(to, np.ascontiguousarray(pixels))
    # In a temporary folder beside the target, for os.replace is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        written = Path(folder, path.name)
        write(written)
        os.replace(written, path)


def check_path(path: str | os.PathLike[str]) -> Path:
    """Finds out whether `save` could write there, before a long computation whose result would be lost.

    Args:
        path: where a figure shall go.

    Returns:
        The path.

    Raises:
        ValueError: matplotlib writes no format of that ending.
        FileNotFoundError: there is no such folder.
        IsADirectoryError: the path is a folder.
        PermissionError: the folder cannot be written to.

    Example:
        >>> from lrpjax import viz
        >>> viz.check_path("relevance.txt")
        Traceback (most recent call last):
            ...
        ValueError: cannot write relevance.txt: its ending must be a picture's, such as .png, .pdf or .svg
    """
    formats = _matplotlib().backend_bases.FigureCanvasBase.get_supported_filetypes()
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {path}: it is a folder")
    if path.suffix[1:].lower() not in formats:
        raise ValueError(f"cannot write {path}: its ending must be a picture's, such as .png, .pdf or .svg")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: no permission to write to the folder {path.parent}")
    return path
