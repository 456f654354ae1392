"""Photographs: those that come with scikit-image and scikit-learn, and their way into an image network."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lrpjax.pretrained import checkpoints

INSTALL = 'pip install "lrpjax[photo]"'
SHIFT, SCALE = 127.0, 128.0  # EfficientNet-Lite's, so that an input in eight bits loses nothing

PLACES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}


def photographs() -> dict[str, NDArray[np.uint8]]:
    """Real photographs in colour that lie inside of scikit-image and scikit-learn; nothing is downloaded.

    From scikit-image: "astronaut" (Eileen Collins; NASA, public domain), "cat" (Chelsea, by Stéfan van der Walt;
    CC0), "coffee" (by Rachel Michetti; CC0) and "rocket" (Falcon 9 with DSCOVR, by SpaceX; public domain). From
    scikit-learn: "china" (a pagoda in China) and "flower" (a dahlia), both CC BY 2.0, from danielbuechele's and
    vultilion's pages on Flickr.

    Returns:
        {name: picture}, uint8 (height, width, 3), each in its own size.

    Raises:
        ImportError: scikit-image, scikit-learn or Pillow is not installed.

    Example:
        >>> photographs()["cat"].shape
        (300, 451, 3)
    """
    return {
        name: np.asarray(_open(checkpoints.locate(*place, INSTALL)).convert("RGB"))
        for name, place in PLACES.items()
    }


def photograph(
    image: NDArray[np.uint8] | str | os.PathLike, size: int = 224, dtype: DTypeLike = np.float32
) -> NDArray:
    """A picture as EfficientNet-Lite takes it: the middle of it, resized, (255·pixel − 127) / 128.

    The middle square of 87.5 % of the shorter side is resized by Pillow's bicubic filter, as the network was
    evaluated by its authors (Tan & Le 2019; 224 of 256 pixels).

    Args:
        image: uint8 (height, width, 3) or (height, width), or a file that Pillow reads.
        size: of the square, in pixels.
        dtype: of the result.

    Returns:
        (size, size, 3), values in [−127/128, 1].

    Raises:
        TypeError: the array is not uint8: pixels from 0 to 1 would be taken for nearly black.
        ImportError: Pillow is not installed.

    Example:
        >>> x = photograph(np.full((300, 400, 3), 255, np.uint8))
        >>> x.shape, float(x.min()), float(x.max())
        ((224, 224, 3), 1.0, 1.0)
    """
    return normalise(crop(image, size), dtype)


def crop(image: NDArray[np.uint8] | str | os.PathLike, size: int = 224) -> NDArray[np.uint8]:
    """The middle of a picture, uint8 (size, size, 3): what `photograph` normalises, to be shown beside a map.

    Example:
        >>> crop(np.zeros((300, 400), np.uint8), size=8).shape
        (8, 8, 3)
    """
    picture = _open(image).convert("RGB")
    from PIL import Image  # after `_open`, whose error names the extra

    side = 0.875 * min(picture.size)
    left, top = ((length - side) / 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box))


def normalise(pixels: NDArray[np.uint8], dtype: DTypeLike = np.float32) -> NDArray:
    """Bytes to EfficientNet-Lite's values, (byte − 127) / 128, in any shape.

    Example:
        >>> normalise(np.asarray([0, 127, 255], np.uint8))
        array([-0.9921875,  0.       ,  1.       ], dtype=float32)
    """
    return (pixels.astype(dtype) - np.asarray(SHIFT, dtype)) / np.asarray(SCALE, dtype)


def _open(image: NDArray | str | os.PathLike):
    if importlib.util.find_spec("PIL") is None:
        raise ImportError(f"photographs need Pillow: {INSTALL}")
    from PIL import Image

    if isinstance(image, str | Path | os.PathLike):
        return Image.open(image)
    if image.dtype != np.uint8:
        raise TypeError(f"a photograph is uint8, bytes from 0 to 255; this one is {image.dtype}")
    return Image.fromarray(image)
