"""Pictures to files, which appear whole or not at all."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax.viz.colours import load_matplotlib, picture_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(
    picture: Figure | ArrayLike, path: str | os.PathLike[str], magnify: int = 1, alt: str | None = None
) -> None:
    """Write a figure, or a single heatmap, in the format of the path's ending; the file appears whole or not at all.

    Args:
        picture: a matplotlib figure; or a picture as `heatmap` and `overlay` give it, uint8 or floats in [0, 1], shape
            (H, W, 3) or (H, W, 4), of which each element becomes one pixel.
        path: where to; an existing file is replaced. Its folder must exist.
        magnify: the side in pixels of each element of an array; a figure has its own size.
        alt: alternative text, for readers who do not see the picture; None takes a figure's label, which the functions
            of `lrpjax.viz` set. A PNG file has it as its text "Description", an SVG file as its title and description,
            a PDF file as its subject. Other formats have no place for it, nor have PDF and SVG files of an array.

    Raises:
        ValueError, OSError: as `check_path`; what the path held before is untouched. ValueError: an array that is no
            picture, an ending that is only a figure's, or magnify below 1.

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
        metadata = _metadata(path, picture.get_label() if alt is None else alt)
        write = lambda to: picture.savefig(to, bbox_inches="tight", pad_inches=0.1, **metadata)
    else:
        if magnify < 1 or magnify != int(magnify):
            raise ValueError(f"magnify must be a whole number of at least 1; it is {magnify}")
        pixels = picture_of(picture).repeat(int(magnify), axis=0).repeat(int(magnify), axis=1)
        write = lambda to: _write_pixels(np.ascontiguousarray(pixels), to, alt)
    # In a temporary folder beside the target, for os.replace is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
        written = Path(folder, path.name)
        write(written)
        os.replace(written, path)


def finished(figure: Figure, alt: str, path: str | os.PathLike[str] | None) -> Figure:
    """The figure with its alternative text, as its label and where a notebook shows it; written to `path`, if there
    is one."""
    figure.set_label(alt)
    # IPython asks an object for this first. Its own formatters, which make the picture, know of no text beside it.
    figure._repr_mimebundle_ = functools.partial(_in_notebook, figure)
    if path is not None:
        save(figure, path)
    return figure


def _in_notebook(
    figure: Figure, include: Any = None, exclude: Any = None
) -> tuple[dict[str, bytes], dict[str, dict[str, str]]]:
    """No picture, which IPython makes in the formats that the user has set, but the label as what stands for it."""
    alt = {"alt": str(figure.get_label())}
    return {}, {"image/png": alt, "image/jpeg": alt, "image/svg+xml": alt}


def _metadata(path: Path, alt: str | None) -> dict[str, dict[str, str]]:
    """What matplotlib writes into the file beside the picture, as its argument; formats without a place refuse it."""
    keys = {".png": ["Description"], ".svg": ["Title", "Description"], ".svgz": ["Title", "Description"]}
    keys[".pdf"] = ["Subject"]
    there = keys.get(path.suffix.lower())
    return {"metadata": dict.fromkeys(there, alt)} if alt and there else {}


def _write_pixels(pixels: NDArray, path: Path, alt: str | None) -> None:
    name = {"tif": "tiff"}.get(path.suffix[1:].lower())
    metadata = _metadata(path, alt) if path.suffix.lower() == ".png" else {}
    try:
        load_matplotlib().image.imsave(path, pixels, format=name, **metadata)
    except KeyError as error:  # of Pillow, which has no such format
        raise ValueError(
            f"cannot write an array as {path.suffix}: give it an ending such as .png, .tif, .pdf or .svg"
        ) from error


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
    formats = load_matplotlib().backend_bases.FigureCanvasBase.get_supported_filetypes()
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
