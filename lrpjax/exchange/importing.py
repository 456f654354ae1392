"""Stores of relevances that another library made."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax._version import __version__
from lrpjax.data import layout
from lrpjax.data.store import Store, StoreWriter, fingerprint, open_store
from lrpjax.exchange.shared import ExchangeError, hdf5, whole


def import_store(
    path: str | os.PathLike[str],
    arrays: Any,
    *,
    settings: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    channel_axis: int | None = None,
    batch: int = 64,
) -> Store:
    """Makes a store of relevances that another library made, so that `lrpjax.explore` and others work on them.

    The store appears whole or not at all. Files in .npy, .safetensors, HDF5 and Zarr are read some rows at a time; an
    .npz file is read into memory.

    Args:
        path: directory of the store; it must not be there yet.
        arrays: relevances [N, ...]; or {name: array [N, ...]}, where an array is anything with a shape, a dtype and
            slices of rows; or the path of a .npy, .npz, .safetensors or .h5 (.hdf5) file, or of a Zarr array or group.
        settings: where they came from, JSON values: kept in the store. What lrpjax itself says there are "model",
            "composite", "target" and "labels" (the names of the classes).
        names: {name in the store: name among the arrays}; None: all, as they are called. A single array, or the only
            one in a file, is "relevance". `explore` takes the classes that were predicted from "output" [N, K].
        channel_axis: the axis of the channels in "relevance", 1 for PyTorch's [N, C, H, W]; they are moved to the end,
            where lrpjax has them. None: they are there already.
        batch: how many rows are read, and stored, together.

    Returns:
        The store, opened and complete; its settings have "imported" besides: the file's name, and lrpjax's version.
        Rows with NaN or infinities are kept and counted, as by `lrpjax.explain_batches`.

    Raises:
        ExchangeError: the path is there; settings are empty or no JSON; a file cannot be read; there is no array
            "relevance", it holds no floating numbers, or arrays have different numbers of rows.
        StoreError: the store cannot be written.
        ImportError: the package that reads such a file is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from lrpjax import exchange
        >>> folder, R = tempfile.mkdtemp(), np.ones((5, 3, 8, 8), np.float32)
        >>> made_by = {"model": "vgg16", "composite": "zennit EpsilonPlusFlat"}
        >>> store = exchange.import_store(f"{folder}/store", R, settings=made_by, channel_axis=1)
        >>> store["relevance"].shape, store.settings["composite"], store.complete
        ((5, 8, 8, 3), 'zennit EpsilonPlusFlat', True)
    """
    if batch < 1:
        raise ExchangeError(f"batch must be 1 or more, not {batch}")
    if not settings:
        raise ExchangeError(
            'settings say where relevances came from, such as {"model": ..., "composite": ...}'
        )
    try:
        json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExchangeError(f"settings are values that JSON has: {error}") from error
    target = Path(path).absolute()
    with contextlib.ExitStack() as stack:
        file = Path(arrays) if isinstance(arrays, (str, os.PathLike)) else None
        found = _opened(file, stack) if file is not None else arrays
        found = found if isinstance(found, Mapping) else {"relevance": found}
        found = {name: a if hasattr(a, "shape") else np.asarray(a) for name, a in found.items()}
        chosen = _chosen(found, names)
        read = {name: _rows(name, array, channel_axis) for name, array in chosen.items()}
        forms = {name: rows(0, 1) for name, rows in read.items()}
        count = _count(chosen)
        kind = forms["relevance"].dtype
        if not jnp.issubdtype(kind, jnp.floating):
            raise ExchangeError(f"relevances are floating numbers, not {kind.name}")
        size = min(batch, count)
        structs = {n: jax.ShapeDtypeStruct((size, *form.shape[1:]), form.dtype) for n, form in forms.items()}
        about = {"from": file.name if file is not None else "arrays", "lrpjax": __version__}
        with whole(target) as part:
            writer = StoreWriter(part, {**settings, "imported": about}, structs)
            for index, start in enumerate(range(0, count, size)):
                rows = {name: take(start, min(start + size, count)) for name, take in read.items()}
                bad = np.zeros(len(rows["relevance"]), np.bool_)
                for block in rows.values():
                    if jnp.issubdtype(block.dtype, jnp.inexact):
                        bad |= ~np.isfinite(block.reshape(len(block), -1)).all(1)
                writer.write(index, rows, fingerprint(rows), int(bad.sum()))
            writer.finish(math.ceil(count / size))
    return open_store(target)


def _chosen(found: Mapping[str, Any], names: Mapping[str, str] | None) -> dict[str, Any]:
    there = ", ".join(f"{name} {list(array.shape)}" for name, array in found.items()) or "none"
    if names is None:
        names = {"relevance": next(iter(found))} if len(found) == 1 else {name: name for name in found}
    lacks = [name for name in names.values() if name not in found]
    if lacks:
        raise ExchangeError(f"there is no array {', '.join(lacks)}; there are: {there}")
    if "relevance" not in names:
        raise ExchangeError(
            f'no array is called relevance; say which one it is (names={{"relevance": ...}}). There are: {there}'
        )
    return {name: found[given] for name, given in names.items()}


def _count(arrays: Mapping[str, Any]) -> int:
    counts = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        rows = ", ".join(f"{name} {n}" for name, n in counts.items())
        raise ExchangeError(f"arrays need the same rows, and one at least; they have: {rows}")
    return next(iter(counts.values()))


def _rows(name: str, array: Any, channel_axis: int | None) -> Callable[[int, int], np.ndarray]:
    """A function that reads rows, in this machine's byte order and with the channels at the end."""
    dims = len(array.shape)
    if dims < (2 if name == "relevance" else 1):
        raise ExchangeError(f"{name!r} has the shape {list(array.shape)}; it takes an entry for each row")
    move = channel_axis if name == "relevance" else None
    if move is not None and (move % dims == 0 or not -dims < move < dims):
        raise ExchangeError(
            f"channel_axis is {move}, but {name!r} has the axes 1 to {dims - 1} behind its rows"
        )

    def read(start: int, stop: int) -> np.ndarray:
        try:
            block = np.asarray(array[start:stop])
        except Exception as error:  # each library has its own for a damaged file
            raise ExchangeError(f"rows {start} to {stop - 1} of {name!r} cannot be read: {error}") from error
        if block.dtype.kind not in "fiubcV" or block.dtype.hasobject:
            raise ExchangeError(f"{name!r} holds {block.dtype}, which are no numbers")
        block = block.astype(block.dtype.newbyteorder("="), copy=False)
        return np.ascontiguousarray(block if move is None else np.moveaxis(block, move, -1))

    return read


def _opened(file: Path, stack: contextlib.ExitStack) -> Any:
    """The arrays of a file by name, or its only one; read when rows are asked for, except those of .npz."""
    if not file.exists():
        raise ExchangeError(f"there is no file {file}")
    if file.is_dir():
        return _zarr(file)
    try:
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if file.suffix in (".h5", ".hdf5"):
            h5py = hdf5()
            opened, found = stack.enter_context(h5py.File(file, "r")), {}
            opened.visititems(lambda name, item: found.update({name: item} if hasattr(item, "shape") else {}))
            return found
        if file.suffix == ".safetensors":
            return _safetensors(file, stack)
    except ImportError:
        raise
    except Exception as error:
        raise ExchangeError(f"{file} cannot be read: {error}") from error
    raise ExchangeError(
        f"{file}: arrays are read from .npy, .npz, .safetensors and .h5 files, or a directory of Zarr"
    )


class _Slices:
    """An array of a .safetensors file, with a shape as NumPy's have."""

    def __init__(self, slices: Any):
        self._slices, self.shape = slices, tuple(slices.get_shape())

    def __getitem__(self, index: slice) -> np.ndarray:
        return self._slices[index]


def _safetensors(file: Path, stack: contextlib.ExitStack) -> dict[str, _Slices]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError('a .safetensors file needs safetensors: pip install "lrpjax[text]"') from error
    opened = stack.enter_context(safe_open(file, "np"))
    return {name: _Slices(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118


def _zarr(folder: Path) -> Any:
    """A Zarr array, or those of a group and of the groups in it, of version 2 or 3."""
    found, root = {}, folder / "zarr.json"
    if root.exists() and "lrpjax" in json.loads(root.read_text(encoding="utf-8")).get("attributes", {}):
        raise ExchangeError(f"{folder} is a store of lrpjax already; open it (lrpjax.open_store)")
    for at in sorted([*folder.rglob("zarr.json"), *folder.rglob(".zarray")]):
        if at.name == "zarr.json" and json.loads(at.read_text(encoding="utf-8")).get("node_type") != "array":
            continue
        spec = {"driver": "zarr3" if at.name == "zarr.json" else "zarr"}
        spec |= {"kvstore": {"driver": "file", "path": f"{at.parent}/"}}
        try:
            opened = layout.tensorstore().open(spec, open=True, read=True).result()
        except layout.FAILURES as error:
            raise ExchangeError(f"{at.parent} cannot be read: {error}") from error
        if at.parent == folder:
            return opened
        found[at.parent.relative_to(folder).as_posix()] = opened
    if not found:
        raise ExchangeError(f"{folder} holds no Zarr arrays")
    return found
