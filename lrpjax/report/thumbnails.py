"""Relevance and inputs made small: pooled so that sums stay, quantised with its error known, packed into sheets.

A sheet holds the thumbnails of `SHEET` samples, so that a page decodes them when they scroll into view. Relevance is
not kept as a picture but as numbers: one signed byte for each cell, compressed with zlib, which a browser unpacks
without a picture decoder.
Colour management, gamma, and the noise that some browsers add to what a script reads from a canvas
cannot change them, and the page paints them with any colour map and range.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrpjax.report.sources import Form, flat

SHEET = 48
"""Samples in a sheet."""
COLUMNS = 8
"""Pictures side by side in a sheet of inputs."""
BAD = -128
"""The code of a cell that is NaN or infinite."""
QUALITY = 85
SIDES = {
    "picture": (224, 192, 160, 128, 112, 96, 80, 64, 56, 48, 40, 32),
    "strip": (512, 384, 256, 192, 128, 96, 64),
}
"""The longest side that thumbnails may have; what is smaller stays as it is."""


def sides(form: Form, picture: tuple[int, ...] | None) -> list[int]:
    """The sizes to choose from, the largest first; [0] where nothing is made smaller."""
    if form.kind not in SIDES:
        return [0]
    longest = max(form.height, form.width, *(picture or ())[:2])
    offered = SIDES[form.kind]
    return [min(longest, offered[0]), *(side for side in offered if side < min(longest, offered[0]))]


def small(height: int, width: int, side: int) -> tuple[int, int]:
    """The size of a thumbnail whose longest side is at most `side`; 0: the full size.

    >>> small(480, 640, 64), small(8, 8, 64)
    ((48, 64), (8, 8))
    """
    factor = min(1.0, side / max(height, width)) if side else 1.0
    return max(1, round(height * factor)), max(1, round(width * factor))


@functools.lru_cache(maxsize=16)
def pooling(size: int, cells: int) -> NDArray[np.float64]:
    """[cells, size]: the share of each pixel that each cell gets, by the overlap of their extents. Columns add up to 1.

    >>> pooling(4, 2).tolist(), pooling(3, 2).round(12).tolist()
    ([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], [[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    """
    ends = np.arange(1, size + 1)[None] * cells / size
    begins = np.arange(size)[None] * cells / size
    cell = np.arange(cells)[:, None]
    overlap = np.clip(np.minimum(ends, cell + 1) - np.maximum(begins, cell), 0.0, None)
    return overlap / overlap.sum(0)


def pooled(R: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Relevance [n, H, W] as [n, height, width]: each cell has the relevance of the pixels that it covers, so that the
    sum over each sample stays. A cell over a pixel that is not finite is NaN.

    >>> pooled(np.arange(16.0).reshape(1, 4, 4), 2, 2).tolist()
    [[[10.0, 18.0], [42.0, 50.0]]]
    """
    if R.shape[1:] == (height, width):
        return R
    rows, columns = pooling(R.shape[1], height), pooling(R.shape[2], width)
    finite = np.isfinite(R)
    found = rows @ np.where(finite, R, 0.0) @ columns.T
    lost = ~finite.all((1, 2))
    if lost.any():
        touched = rows @ (~finite[lost]).astype(np.float64) @ columns.T
        found[lost] = np.where(touched > 0, np.nan, found[lost])
    return found


def quantised(R: NDArray[np.float64]) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Codes from −127 to 127 and each sample's scale: R ≈ code · scale / 127, wrong by at most scale / 254, where scale
    is the largest finite magnitude. What is not finite has the code −128.

    >>> codes, scale = quantised(np.array([[[1.0, -2.0, np.nan]]]))
    >>> codes.tolist(), scale.tolist()
    ([[[64, -127, -128]]], [2.0])
    """
    finite = np.isfinite(R)
    values = np.where(finite, R, 0.0)
    scale = np.abs(values).max((1, 2), initial=0.0)
    whole = np.rint(values / np.where(scale > 0, scale, 1.0)[:, None, None] * 127)
    return np.where(finite, whole, BAD).astype(np.int8), scale


def pictures(values: NDArray[Any], height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Inputs [n, H, W, C] as uint8 [n, height, width, C], averaged, and which of them had to be stretched: those with
    values outside of [0, 1] go from their smallest to their largest value."""
    outside = np.zeros(len(values), bool)
    if values.dtype == np.uint8:
        floats = values.astype(np.float64) / 255
    else:
        floats = values.astype(np.float64)
        finite = np.isfinite(floats)
        floats = np.where(finite, floats, 0.0)
        low, high = floats.min((1, 2, 3)), floats.max((1, 2, 3))
        outside = (low < -1e-3) | (high > 1 + 1e-3) | ~finite.all((1, 2, 3))
        if outside.any():
            begin, span = np.where(outside, low, 0.0), np.where(outside & (high > low), high - low, 1.0)
            floats = (floats - begin[:, None, None, None]) / span[:, None, None, None]
    if floats.shape[1:3] != (height, width):
        rows, columns = pooling(floats.shape[1], height), pooling(floats.shape[2], width)
        rows, columns = (m / m.sum(1, keepdims=True) for m in (rows, columns))
        floats = np.einsum("ih,nhwc,jw->nijc", rows, floats, columns, optimize=True)
    return np.rint(np.clip(floats, 0.0, 1.0) * 255).astype(np.uint8), outside


def shrunk(values: NDArray[Any], form: Form, side: int) -> NDArray[np.float64]:
    """Rows of an array as what is drawn of them, [n, height, width]."""
    return pooled(flat(values, form), *small(form.height, form.width, side))


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


def texts(tokens: Sequence[Sequence[str]]) -> str:
    """The tokens of a sheet's samples."""
    return packed(json.dumps([list(row) for row in tokens], separators=(",", ":")).encode())


def sprite(thumbnails: NDArray[np.uint8]) -> tuple[str, str, tuple[int, int]]:
    """Inputs [n, h, w, C] side by side as one picture: its kind, its base64, how far tiles are apart (down, across).

    PNG, where that is smaller, or where pictures are small and every pixel is seen; or else JPEG, whose blocks the
    tiles are filled up to, so that no sample bleeds into the next."""
    from PIL import Image

    n, height, width, channels = thumbnails.shape
    if max(height, width) > 32:
        edges = ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0))
        thumbnails = np.pad(thumbnails, edges, mode="edge")
    step = thumbnails.shape[1:3]
    lines = -(-n // COLUMNS)
    canvas = np.zeros((lines * COLUMNS, *thumbnails.shape[1:]), np.uint8)
    canvas[:n] = thumbnails
    canvas = canvas.reshape(lines, COLUMNS, *thumbnails.shape[1:]).transpose(0, 2, 1, 3, 4)
    canvas = canvas.reshape(lines * step[0], COLUMNS * step[1], channels)
    image = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    kind, best = "image/png", png.getvalue()
    if max(height, width) > 32:
        image.save(jpeg, "JPEG", quality=QUALITY, optimize=True, subsampling=0)
        if len(jpeg.getvalue()) < len(best):
            kind, best = "image/jpeg", jpeg.getvalue()
    return kind, base64.b64encode(best).decode(), (step[0], step[1])
