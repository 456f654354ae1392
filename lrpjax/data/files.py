"""Arrays in one file, for programs that read no Zarr: one function for each ending."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def known_to_numpy(name: str, array: np.ndarray, widen: bool) -> np.ndarray:
    """An array as NumPy's files can hold it.

    Raises:
      ValueError: its dtype is none of NumPy's own, and `widen` is not asked for.
    """
    if array.dtype.isbuiltin == 1:
        return array
    if not widen:
        raise ValueError(
            f"{name!r} is {array.dtype.name}, which NumPy would read as bare bytes: take .safetensors, which keeps it, "
            "or float32, which holds each of its numbers (widen=True, --widen)"
        )
    return array.astype(np.float32)


def write_npy(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    with path.open("wb") as file:
        for array in arrays.values():
            np.save(file, array, allow_pickle=False)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    # Not np.savez, which takes the name "file" for its own argument.
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise ImportError('a .safetensors file needs safetensors: pip install "lrpjax[text]"') from error
    try:
        save_file(dict(arrays), path, dict(about))
    except SafetensorError as error:
        dtypes = ", ".join(f"{name} {array.dtype.name}" for name, array in arrays.items())
        raise ValueError(f"safetensors cannot write these arrays ({dtypes}): {error}") from error


WRITERS = {".npz": write_npz, ".npy": write_npy, ".safetensors": write_safetensors}
"""{ending: function of (path, arrays by name, texts by name that the format may hold beside them)}."""
