"""Weights as packages carry them, as NumPy arrays: torch's checkpoints without torch, and safetensors.

A torch checkpoint is a pickle, and a pickle is a program. This reader admits what a table of weights needs, and
nothing else: ordered dicts, tensors and their storages.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

# The old format (torch < 1.6) begins with these two numbers, each a pickle of its own.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def locate(package: str, file: str, install: str) -> Path:
    """The path of a file inside an installed package, which is not imported: importing it could import torch.

    Args:
        package: the name one would import; a top-level one.
        file: the path inside the package's folder.
        install: the command that installs it, for the error.

    Raises:
        ImportError: the package, or the file in it, is not there.

    Example:
        >>> locate("numpy", "version.py", "pip install numpy").name
        'version.py'
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = [path for folder in folders if (path := Path(folder, file)).is_file()]
    if not found:
        raise ImportError(f"{file} of the package {package} is not installed: {install}")
    return found[0]


def read_torch(path: str | Path) -> dict[str, NDArray]:
    """The tensors of a torch checkpoint (`torch.save(model.state_dict(), path)`), read without torch.

    Both formats are read: the zip archive, and the one that came before it (torch < 1.6).

    Args:
        path: a file that holds one state dict, {name: tensor}.

    Returns:
        {name: array}, in the file's order and in its dtypes; bfloat16 is that of ml_dtypes.

    Raises:
        pickle.UnpicklingError: the file names anything but tensors, ordered dicts and storages: nothing of it has
            been called.
        ValueError: it is no checkpoint of a state dict, or a damaged one.
    """
    with open(path, "rb") as file:
        try:
            read = _read_zip if zipfile.is_zipfile(file) else _read_old
            file.seek(0)
            table, data = read(file)
            if not isinstance(table, Mapping) or not all(isinstance(t, _Tensor) for t in table.values()):
                raise _UnreadError("it holds no state dict, which is one table of names and tensors")
            return {name: _array(tensor, data) for name, tensor in table.items()}
        except _RefusedError:
            raise
        except _UnreadError as error:
            raise ValueError(f"{path} is not read: {error}") from error
        except Exception as error:  # a pickle of other bytes can fail in any way
            kind = type(error).__name__
            raise ValueError(f"{path} is no torch checkpoint, or a damaged one ({kind}: {error})") from error


def read_safetensors(path: str | Path) -> dict[str, NDArray]:
    """The tensors of a safetensors file, {name: array}, read by the library of that name.

    Raises:
        ImportError: without safetensors.
    """
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError('this file needs safetensors: pip install "lrpjax[text]"') from error
    return load_file(path)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of values of one dtype that tensors share."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A strided view of a storage; offset and strides are counted in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _UnreadError(ValueError):
    """What the reader itself finds wrong with a file."""


class _RefusedError(pickle.UnpicklingError):
    """The file asks for more than tensors."""


class _Restricted(pickle.Unpickler):
    """Gives records of tensors and storages, and refuses every other name that a pickle mentions."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new object each time: what a pickle may write to it has no effect elsewhere.
            return functools.partial(_rebuild)
        if module == "torch" and name in STORAGES:
            return name
        raise _RefusedError(
            f"the checkpoint names {module}.{name}; only tensors, ordered dicts and storages are read. If you trust "
            "the file, load it with torch and save its state dict"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, name, key, _device, count = pid[:5]
        if kind != "storage" or any(view is not None for view in pid[5:]):
            raise _RefusedError("the checkpoint has a persistent object that is not a whole storage")
        return self.storages.setdefault(key, _Storage(key, STORAGES[name], count))


def _rebuild(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_grad_and_hooks: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _read_zip(file: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        (index,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        folder = index.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise _UnreadError("it was written on a big-endian machine")
        with archive.open(index) as entry:
            reader = _Restricted(entry)
            table = reader.load()
        return table, {key: archive.read(f"{folder}data/{key}") for key in reader.storages}


def _read_old(file: IO[bytes]) -> tuple[Any, dict[str, bytes]]:
    """Magic number, protocol, system, table and keys, five pickles; then each storage with its count in front."""
    if [_Restricted(file).load() for _ in range(2)] != [MAGIC, PROTOCOL]:
        raise _UnreadError("it does not begin as a torch checkpoint does")
    system = _Restricted(file).load()
    if not system["little_endian"]:
        raise _UnreadError("it was written on a big-endian machine")
    reader = _Restricted(file)
    table, keys = reader.load(), _Restricted(file).load()
    data = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        data[key] = file.read(count * reader.storages[key].dtype.itemsize)
    return table, data


def _array(tensor: _Tensor, data: Mapping[str, bytes]) -> NDArray:
    storage = tensor.storage
    if len(data[storage.key]) < storage.count * storage.dtype.itemsize:
        raise _UnreadError("it ends too early: a storage has fewer bytes than it says")
    values = np.frombuffer(data[storage.key], storage.dtype)
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    # as_strided reads whatever lies in memory: a tensor must stay inside of its storage.
    if min(sizes) < 0 or (0 not in tensor.shape and last >= len(values)):
        raise _UnreadError("a tensor reaches beyond its storage")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, values.dtype)
    steps = [step * values.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, steps).copy()
