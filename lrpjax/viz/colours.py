"""Numbers to colours: ranges, colour maps, and pictures as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

BAD = "#00ff00"
"""The colour of NaN and infinity in every picture."""

DEFAULT = "relevance"
"""The colour map of signed relevance where none is named."""

# Straight lines in CIELAB from white to two ends of one lightness and one chroma, at 1, 3/4, 1/2, 1/4 and 0 of the
# range: L* = 100 - 55 r, C* = 86 r, at the hues 294° (against) and 38° (for). So equal steps of relevance look like
# equal steps, equal magnitudes look equally strong on both sides, and the strongest colours are at the ends. (The ends
# of matplotlib's "seismic" are dark: its brightest red is at half of the range. The blue of "bwr" is stronger by a
# third, and darker, than its red.) tests/test_viz.py measures all this.
_RELEVANCE = [
    "#145ef0",
    "#7683f5",
    "#aaabfa",
    "#d6d4fd",
    "#ffffff",
    "#ffccc0",
    "#f99983",
    "#ea634a",
    "#d41412",
]

# The same with L* = 100 - 50 r and C* = 68 r, at the hues 284° and 60°. Who sees no red, or no green, sees its two
# ends as about equally strong; the red of "relevance" is darker to the first.
_BLUE_ORANGE = [
    "#0075e8",
    "#6f95ef",
    "#a5b7f5",
    "#d3dafa",
    "#ffffff",
    "#f6d5c0",
    "#e8ac83",
    "#d48449",
    "#bc5d00",
]

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

_OWN = {"relevance": _RELEVANCE, "blue-orange": _BLUE_ORANGE, "coldnhot": _COLDNHOT}


def load_matplotlib():
    """matplotlib with the parts that are used here; an ImportError that says how to install it."""
    try:
        import matplotlib
        import matplotlib.backend_bases
        import matplotlib.cm
        import matplotlib.collections
        import matplotlib.colors
        import matplotlib.figure
        import matplotlib.image
        import matplotlib.layout_engine
        import matplotlib.lines
    except ImportError as error:
        raise ImportError('lrpjax.viz needs matplotlib: pip install "lrpjax[viz]"') from error
    return matplotlib


def colormap(name: str | None = None, symmetric: bool = True) -> Colormap:
    """The colour map of the heatmaps, for drawings of your own in matplotlib.

    Args:
        name: as `cmap` of `heatmap`: ``"relevance"``, ``"blue-orange"``, ``"coldnhot"``, or one of matplotlib's. None:
            the default for a range of that kind.
        symmetric: whether the range is [−limit, limit] or [0, limit].

    Returns:
        A colour map of 257 entries, so that zero lies in the middle of one, with `BAD` for what is not finite.

    Raises:
        ValueError: there is no colour map of that name. ImportError: matplotlib is not installed.

    Example:
        >>> from lrpjax import viz
        >>> viz.colormap()(0.5, bytes=True)[:3]  # white
        (np.uint8(255), np.uint8(255), np.uint8(255))
    """
    matplotlib = load_matplotlib()
    name = name or (DEFAULT if symmetric else "hot_r")
    if name in _OWN:
        colormap = matplotlib.colors.LinearSegmentedColormap.from_list(name, _OWN[name])
    elif name in matplotlib.colormaps:
        colormap = matplotlib.colormaps[name]
    else:
        raise ValueError(
            f"unknown colour map {name!r}: give one of {', '.join(map(repr, _OWN))}, or a matplotlib name such as "
            "'seismic'"
        )
    # An odd number of entries has a middle one: with matplotlib's 256, zero would not be quite white.
    return colormap.resampled(257).with_extremes(bad=BAD)


def floats(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Real values as float64; `name` is what an error calls them."""
    array = np.asarray(values)
    if np.iscomplexobj(array):
        raise TypeError(f"{name} must be real, not {array.dtype}")
    return array.astype(np.float64)


def sum_channels(R: ArrayLike) -> NDArray[np.float64]:
    """Relevance of every pixel, (H, W) or (N, H, W)."""
    R = floats(R, "R")
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


def over_limit(R: NDArray[np.float64], limit: ArrayLike | None, quantile: float = 1.0) -> NDArray[np.float64]:
    """R divided by its limit (by default the quantile of each picture's finite magnitudes); zeros stay zeros."""
    if limit is None:
        pictures = R[None] if R.ndim == 2 else R
        bounds = [bound_of(picture, quantile) for picture in pictures]
        return R / np.reshape(bounds, (*R.shape[:-2], 1, 1))
    bound = floats(limit, "limit")
    if not (np.isfinite(bound) & (bound > 0)).all():
        raise ValueError(
            f"limit must be positive and finite, or None for the largest magnitude; it is {limit}"
        )
    if bound.ndim > 1 or (bound.ndim == 1 and (R.ndim < 3 or len(bound) != len(R))):
        raise ValueError(
            f"limit must be a number or one number per picture; it has shape {bound.shape} for {R.shape}"
        )
    return R / (bound[:, None, None] if bound.ndim else bound)


def bound_of(R: NDArray[np.float64], quantile: float) -> float:
    """The quantile of the finite magnitudes; the largest where that is zero, and 1 where all are."""
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be above 0 and at most 1; it is {quantile}")
    finite = np.abs(R[np.isfinite(R)])
    if not finite.size:
        return 1.0
    return float(np.quantile(finite, quantile) or finite.max() or 1.0)


def paint(scaled: NDArray[np.float64], symmetric: bool, cmap: str | None) -> NDArray[np.uint8]:
    """The colours of values over their limit, (…, 3)."""
    position = 0.5 * (1 + scaled) if symmetric else scaled
    # Masked before clipping, for an infinity would be clipped to the end of the map.
    masked = np.ma.masked_invalid(position, copy=False)
    return colormap(cmap, symmetric)(np.ma.clip(masked, 0.0, 1.0), bytes=True)[..., :3]


def takes_black(colors: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether black text contrasts more than white with each colour (…, 3): WCAG's ratio is above 4.5 either way."""
    srgb = colors / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return (luminance + 0.05) ** 2 > 1.05 * 0.05


def luminance(image: ArrayLike, ndim: int) -> NDArray[np.float64]:
    """The image in grey, in [0, 1], with `ndim` axes."""
    scale = 255.0 if np.asarray(image).dtype == np.uint8 else 1.0
    values = floats(image, "image") / scale
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


def picture_of(values: ArrayLike) -> NDArray:
    """A picture that was checked to be one: RGB or RGBA, uint8 or floats in [0, 1]."""
    picture = np.asarray(values)
    if picture.ndim != 3 or picture.shape[-1] not in (3, 4) or 0 in picture.shape:
        raise ValueError(
            f"a picture of a sheet must have shape (H, W, 3) or (H, W, 4); this one has {picture.shape}. "
            "heatmap turns an array into a picture"
        )
    if picture.dtype != np.uint8:
        picture = floats(picture, "picture")
        if not ((picture >= 0) & (picture <= 1)).all():
            raise ValueError("a picture must be uint8, or floats in [0, 1]; heatmap turns relevance into one")
    return picture
