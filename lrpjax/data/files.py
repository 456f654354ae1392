"""Arrays in one file, for programs that read no Zarr: one function for each ending.

Arrays are taken and written some rows at a time, so none of them has to fit into memory.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

# How many bytes of an array are in memory at once, or a batch of the store if that is more.
BLOCK = 32 << 20

SAFETENSORS = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
"""{NumPy's name of a dtype: what the header of a .safetensors file calls it}."""


class Rows(NamedTuple):
    """An array that is read some rows at a time: its dtype, its shape, and a function that begins to read it."""

    dtype: np.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[np.ndarray]]

    def as_type(self, dtype: Any) -> Rows:
        """The same numbers in another dtype."""
        return Rows(
            np.dtype(dtype), self.shape, lambda: (block.astype(dtype, copy=False) for block in self.blocks())
        )


def rows_of(array: Any) -> Rows:
    """Anything that has a shape, a dtype and slices of rows (an array, one on the disk, a dataset of h5py), as `Rows`.

    Of what is stored in batches, whole ones are read.
    """
    shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    size = max(math.prod(shape[1:]) * dtype.itemsize, 1)
    at_once = getattr(array, "at_once", 1)
    step = -(-max(BLOCK // size, 1) // at_once) * at_once

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, shape[0], step):
            yield np.ascontiguousarray(array[start : min(start + step, shape[0])])

    return Rows(dtype, shape, blocks)


def known_to_numpy(name: str, rows: Rows, widen: bool) -> Rows:
    """An array as NumPy's files, and those of HDF5, can hold it.

    Raises:
      ValueError: its dtype is none of NumPy's own, and `widen` is not asked for.
    """
    if rows.dtype.isbuiltin == 1:
        return rows
    if not widen:
        raise ValueError(
            f"{name!r} is {rows.dtype.name}, which NumPy would read as bare bytes: take .safetensors, which keeps it, "
            "or float32, which holds each of its numbers (widen=True, --widen)"
        )
    return rows.as_type(np.float32)


def write_npy(path: Path, arrays: Mapping[str, Rows], about: Mapping[str, str]) -> None:
    with path.open("wb") as file:
        for rows in arrays.values():
            _write_npy(file, rows)


def _write_npy(file: Any, rows: Rows) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": rows.shape,
    }
    np.lib.format.write_array_header_2_0(file, header)
    for block in rows.blocks():
        file.write(block.reshape(-1).view(np.uint8).data)


def write_npz(path: Path, arrays: Mapping[str, Rows], about: Mapping[str, str]) -> None:
    # Not np.savez, which takes the name "file" for its own argument, and whole arrays.
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, rows in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_npy(file, rows)


def write_safetensors(path: Path, arrays: Mapping[str, Rows], about: Mapping[str, str]) -> None:
    """Eight bytes with the length of the header, the header as JSON, and the arrays one after the other.

    The package safetensors writes only what is in memory; here it reads the header that was written.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError('a .safetensors file needs safetensors: pip install "lrpjax[text]"') from error
    dtypes = ", ".join(f"{name} {rows.dtype.name}" for name, rows in arrays.items())
    header: dict[str, Any] = {"__metadata__": dict(about)}
    begin = 0
    for name, rows in arrays.items():
        if rows.dtype.name not in SAFETENSORS:
            raise ValueError(f"safetensors cannot write these arrays ({dtypes}): it has no {rows.dtype.name}")
        end = begin + math.prod(rows.shape) * rows.dtype.itemsize
        kind, shape = SAFETENSORS[rows.dtype.name], list(rows.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned where the file is mapped into memory
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for rows in arrays.values():
            _write_little_endian(file, rows)
    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"safetensors cannot write these arrays ({dtypes}): {error}") from error


def _write_little_endian(file: BinaryIO, rows: Rows) -> None:
    for block in rows.blocks():
        little = block.astype(block.dtype.newbyteorder("<"), copy=False)
        file.write(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def write_hdf5(path: Path, arrays: Mapping[str, Rows], about: Mapping[str, str]) -> None:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('a .h5 file needs h5py: pip install "lrpjax[exchange]"') from error
    with h5py.File(path, "w") as file:
        file.attrs.update(about)
        for name, rows in arrays.items():
            add_dataset(file, name, rows)


def add_dataset(group: Any, name: str, rows: Rows) -> None:
    """Writes an array into a group of h5py, in pieces of about a megabyte, so that single rows are read quickly."""
    size = max(math.prod(rows.shape[1:]) * rows.dtype.itemsize, 1)
    piece = None
    if math.prod(rows.shape):
        piece = (min(rows.shape[0], max((1 << 20) // size, 1)), *rows.shape[1:])
    dataset = group.create_dataset(name, rows.shape, rows.dtype, chunks=piece)
    start = 0
    for block in rows.blocks():
        dataset[start : start + len(block)] = block
        start += len(block)


WRITERS = {".npz": write_npz, ".npy": write_npy, ".safetensors": write_safetensors, ".h5": write_hdf5}
"""{ending: function of (path, `Rows` by name, texts by name that the format may hold beside them)}."""
