"""Pictures in files as arrays: what their headers say, and their pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg")

# The last bytes of a whole file. Some programs write more behind them: a file that ends otherwise may still be whole.
_ENDS = {"PNG": b"IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}


def _pillow():
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError('reading pictures needs Pillow: pip install "lrpjax[viz]"') from error
    return Image, ImageOps


def header(path: Path, channels: int | None = None) -> tuple[int, int, int]:
    """The height, width and channels of a picture, upright, from its header.

    A file whose end is not a picture's is read whole, so that one that was cut off is found.

    Args:
      path: the file. channels: 1 or 3, what all pictures are converted to; `None`: what the picture has.

    Raises:
      OSError and others of Pillow: it cannot be read.
    """
    Image, _ = _pillow()
    with Image.open(path) as picture:
        (width, height), grey, form = picture.size, _is_grey(picture.mode), picture.format
        # Pillow would decode a whole PNG to look for EXIF behind the pixels.
        turned = form == "JPEG" or "exif" in picture.info
        if turned and picture.getexif().get(0x0112, 1) >= 5:
            width, height = height, width
        end = _ENDS.get(form or "", b"")
        with path.open("rb") as file:
            file.seek(-min(len(end), path.stat().st_size), 2)
            whole = file.read() == end
        if not whole:
            picture.load()
    return height, width, channels or (1 if grey else 3)


def pixels(
    path: Path, size: tuple[int, ...] | None, crop: tuple[int, ...] | None, channels: int | None
) -> np.ndarray:
    """A picture as an array (height, width, channels): bytes, or floats in [0, 1] if it is grey with 16 bits.

    Args:
      path: the file. size, crop: what `lrpjax.loading.Inputs` makes of its options. channels: as for `header`.

    Raises:
      OSError and others of Pillow: it cannot be read. ValueError: it is smaller than the crop.
    """
    Image, ImageOps = _pillow()
    with Image.open(path) as picture:
        picture = ImageOps.exif_transpose(picture)
        deep = picture.mode.startswith("I")  # 16 bits, which no conversion but that to floats keeps
        grey = _is_grey(picture.mode)
        if not deep and picture.has_transparency_data:
            # As it is seen on a page: the colours that transparent pixels happen to have are seen by nobody.
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        wanted = channels or (1 if grey else 3)
        picture = picture.convert("F" if deep else "L" if wanted == 1 else "RGB")
        if size:
            picture = picture.resize(resized(picture.size, size), Image.Resampling.BILINEAR)
        if crop:
            picture = picture.crop(middle(picture.size, crop, path))
        array = np.asarray(picture)
    array = array / np.float32(65535) if deep else array
    array = array.reshape(*array.shape[:2], -1)
    return np.repeat(array, wanted, axis=-1) if deep else array


def _is_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "La") or mode.startswith("I")


def resized(size: tuple[int, int], wanted: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of a picture after resizing. A shorter side is given alone: the longer one is rounded down then,
    as torchvision's `Resize` does, with which most networks were evaluated."""
    if len(wanted) == 2:
        return wanted[1], wanted[0]
    width, height = (side * wanted[0] // min(size) for side in size)
    return width, height


def middle(size: tuple[int, int], crop: tuple[int, ...], path: Path) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) in the middle of a picture of this width and height."""
    (width, height), (rows, columns) = size, crop
    if rows > height or columns > width:
        raise ValueError(
            f"--crop {rows}x{columns}: {path} is {height}x{width} there; --size makes it larger before"
        )
    left, top = round((width - columns) / 2), round((height - rows) / 2)
    return left, top, left + columns, top + rows
