"""Heatmaps of relevance, alone and over the image that it explains."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax.viz.colours import bound_of, luminance, over_limit, paint, sum_channels


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
    return bound_of(np.concatenate([sum_channels(R).reshape(-1) for R in maps]), quantile)


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
        cmap: the name of a colour map. None is ``"relevance"`` (blue, white at zero, red; the strongest colours are at
            the ends) for symmetric and ``"hot_r"`` (white at zero, yellow, red, black) for one-sided ranges.
            ``"blue-orange"`` is like ``"relevance"`` and looks equally strong on both sides to the colour-blind;
            ``"coldnhot"`` is zennit's, black at zero. Any name of matplotlib's is taken: the ends of ``"PuOr_r"`` and
            ``"RdBu_r"`` differ to the colour-blind too; ``"seismic"`` was the default before, and is dark at its ends.
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
        [[[170, 171, 250], [255, 255, 255], [212, 20, 18]]]
    """
    R = sum_channels(R)
    return paint(over_limit(R, limit, quantile), symmetric, cmap)


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
        [[[32, 32, 32], [212, 20, 18]]]
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1]; it is {opacity}")
    R = sum_channels(R)
    grey = luminance(image, R.ndim)
    if grey.shape != R.shape:
        raise ValueError(
            f"image is {grey.shape} and R is {R.shape}: resize one of them first (jax.image.resize)"
        )
    scaled = over_limit(R, limit, quantile)
    weight = opacity * np.sqrt(np.clip(np.abs(scaled) if symmetric else scaled, 0.0, 1.0))
    weight = np.where(np.isfinite(R), weight, 1.0)[..., None]
    background = 255 * (0.125 + 0.75 * grey[..., None])
    return np.rint(weight * paint(scaled, symmetric, cmap) + (1 - weight) * background).astype(np.uint8)
