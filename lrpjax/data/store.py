"""Stored results, opened: `open_store` gives them by name, `Store.save` writes them into one file.

How a store lies on the disk is said in `lrpjax/data/layout.py`, how it is written in `lrpjax/data/writing.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrpjax._html import Number, table
from lrpjax.data import files, layout
from lrpjax.data.compact import Compact as Compact
from lrpjax.data.compact import compact as compact
from lrpjax.data.compact import parted, restored
from lrpjax.data.layout import StoreError as StoreError
from lrpjax.data.layout import array_names as array_names
from lrpjax.data.layout import fingerprint as fingerprint
from lrpjax.data.shares import Share
from lrpjax.data.writing import StoreWriter as StoreWriter
from lrpjax.data.writing import cut as cut


class StoredArray:
    """Rows of one array of a store, read from the disk when they are asked for.

    `array[10:20]` and other indices give another one; `np.asarray(array)` and `array.read().result()` read.

    Attributes:
      tensorstore: the array as tensorstore has it. Its errors are tensorstore's own.
      at_once: how many rows are stored together, so that reading one of them reads them all.

    Example:
      >>> import tempfile
      >>> import jax, numpy as np
      >>> from lrpjax import explain_batches, open_store
      >>> path = tempfile.mkdtemp()
      >>> for R in explain_batches(lambda x: 2 * x, [np.ones((2, 3), np.float32)], store=path, progress=False):
      ...     pass
      >>> array = open_store(path)["relevance"]
      >>> array.shape, array[1:].shape, np.asarray(array[0])
      ((2, 3), (1, 3), array([2., 2., 2.], dtype=float32))
    """

    def __init__(self, array: Any, shares: Sequence[Share]):
        self.tensorstore, self._shares = array, shares

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensorstore.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.tensorstore.dtype.numpy_dtype

    @property
    def at_once(self) -> int:
        return self._shares[0].batch_size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> StoredArray:
        part = self.tensorstore[index]
        # tensorstore's parts keep the numbers of their rows; here they count from 0 again, as NumPy's do.
        return StoredArray(part[layout.tensorstore().d[:].translate_to[0]], self._shares)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows that are read from the disk are always a copy")
        return self.read().result().astype(dtype or self.dtype, copy=False)

    def __repr__(self) -> str:
        return f"<{self.dtype.name}{list(self.shape)} on the disk>"

    def read(self) -> Reading:
        """Begins to read the rows; `result()` of what this gives waits for them.

        Returns:
          An object with `result()`, which gives a NumPy array.

        Raises:
          StoreError: by `result()`: a file is damaged or missing; it is named, with its batches and rows.
        """
        return Reading(self.tensorstore.read(), self._shares)


class Reading:
    """Rows that are being read; see `StoredArray.read`."""

    def __init__(self, future: Any, shares: Sequence[Share]):
        self._future, self._shares = future, shares

    def result(self) -> np.ndarray:
        """Waits for the rows.

        Returns:
          A NumPy array.

        Raises:
          StoreError: a file is damaged or missing; it is named, with its batches and rows.
        """
        try:
            return self._future.result()
        except layout.FAILURES as error:
            share = next((s for s in self._shares if f'"{s.path}/' in str(error)), self._shares[0])
            raise share.damaged([share.fault(error)], share.lost(error)) from error


class RestoredArray(StoredArray):
    """Rows of an array that is stored in fewer bits (`lrpjax.store.compact`): the numbers that they stand for, in
    float32.

    Its indices begin with one of the rows.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from lrpjax import explain_batches, open_store
      >>> from lrpjax.store import compact
      >>> path, x = tempfile.mkdtemp(), np.array([[1.0, -1.0]], np.float32)
      >>> for found in explain_batches(compact(lambda x: 2 * x, "int8"), [x], store=path, progress=False):
      ...     pass
      >>> array = open_store(path)["relevance"]
      >>> array, np.asarray(array[:, 1])
      (<float32[1, 2] on the disk as int8>, array([-2.], dtype=float32))
    """

    def __init__(self, values: StoredArray, scale: StoredArray):
        super().__init__(values.tensorstore, values._shares)
        self._values, self._scale = values, scale

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def __getitem__(self, index: Any) -> StoredArray:
        first = index[:1] if isinstance(index, tuple) else index  # pyright: ignore[reportUnknownVariableType]
        return RestoredArray(self._values[index], self._scale[first])

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]} as {self._values.dtype.name}>"

    def read(self) -> Reading:
        return _RestoredReading(self._values.read(), self._scale.read())


class _RestoredReading(Reading):
    def __init__(self, values: Reading, scale: Reading):
        self._parts = values, scale

    def result(self) -> np.ndarray:
        values, scale = (part.result() for part in self._parts)
        return restored(values, scale)


class Store(Mapping[str, "StoredArray"]):
    """Stored results: a mapping from names to arrays, read lazily; made by `open_store`.

    Attributes:
      path: the directory.
      settings: what the results depend on, as given by whoever made them.
      versions: of lrpjax, jax and jaxlib.
      complete: whether the whole input was explained.
      rows: how many rows are stored.
      batches: array `[number of batches, 2]`: for each stored batch its rows, and how many of them are not
        finite.
      fingerprints: `fingerprint` of the input of each stored batch.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path).absolute()
        about = _about(self.path)
        if about is None:
            raise StoreError(f"there is no store in {self.path}")
        paths = [self.path]
        if "arrays" not in about:
            paths = [self.path / f"process-{index:05d}" for index in range(about["processes"])]
        self._shares: list[Share] = []
        for path in paths:
            about = _about(path)
            if about is None:
                raise StoreError(f"{path}, the share of one of the {len(paths)} processes, is missing")
            self._shares.append(Share(path, about))
        abouts = [share.about for share in self._shares]
        self.settings: dict[str, Any] = abouts[0]["settings"]
        self.versions: dict[str, str] = abouts[0]["versions"]
        self.complete: bool = all(found["batches"] is not None for found in abouts)
        self.rows = sum(share.rows_before(len(share.records)) for share in self._shares)
        records = [record[:2] for share in self._shares for record in share.records]
        self.batches = np.array(records, np.int64).reshape(-1, 2)
        self.fingerprints = [layout.digest(r[2:4]) for share in self._shares for r in share.records]
        with layout.reported(f"{self.path} cannot be read"):
            self._arrays = {
                name: StoredArray(self._joined(name), self._shares) for name in abouts[0]["arrays"]
            }
        for name in parted(self._arrays):
            values, scale = (self._arrays[f"{name}.{part}"] for part in ("values", "scale"))
            self._arrays[name] = RestoredArray(values, scale)

    def _repr_html_(self) -> str:
        """What is stored, for notebooks."""
        rows = [
            [name, Number("×".join(map(str, a.shape)), a.shape[0]), a.dtype.name] for name, a in self.items()
        ]
        notes = [
            f"{self.rows} rows in {len(self.batches)} batches, {'complete' if self.complete else 'not complete'}",
            f"{int(self.batches[:, 1].sum())} rows are not finite",
        ]
        return table(f"arrays of {self.path.name}", ("array", "shape", "dtype"), rows, notes)

    def _joined(self, name: str) -> Any:
        """An array's rows: of each share those in shards, which stay on the disk, then those of its tail."""
        ts = layout.tensorstore()
        parts: list[Any] = []
        for share in self._shares:
            parts.append(share.arrays[name][: share.rows_before(share.in_shards)])
            if share.tail:
                tail = [layout.decoded(content, share.about)[1][name] for content in share.tail]
                parts.append(ts.array(np.concatenate(tail)))
        return parts[0] if len(parts) == 1 else ts.concat(parts, axis=0)

    def verify(self) -> None:
        """Reads everything that is stored, a file after the other, and compares it with what was written.

        Reading an array finds a byte that has changed, and a file that is missing or was cut, among the files that it
        reads. This finds them in all files, and besides files that stand in each other's place.

        Raises:
          StoreError: it names every file that is damaged, with its batches and rows.

        Example:
          >>> import tempfile
          >>> import jax, numpy as np
          >>> from lrpjax import explain_batches, open_store
          >>> path, double = tempfile.mkdtemp(), jax.jit(lambda x: 2 * x)
          >>> for R in explain_batches(double, [np.ones((2, 3), np.float32)] * 4, store=path, progress=False):
          ...     pass
          >>> open_store(path).verify()
        """
        for share in self._shares:
            found = list(share.faults())
            if found:
                raise share.damaged([fault for _, fault in found], found[0][0])

    def save(
        self,
        file: str | os.PathLike[str],
        names: Sequence[str] | None = None,
        *,
        widen: bool = False,
        partial: bool = False,
    ) -> Path:
        """Writes the stored arrays into one file, for programs that read no Zarr.

        The store stays as it is: it is what a run resumes from. The file appears whole or not at all. Rows are read and
        written some at a time (32 MiB, or one batch if that is more), so the store may be bigger than memory.

        Args:
          file: .npz, .safetensors or .h5 (HDF5), with the arrays by their names, or .npy with one of them. A
            .safetensors file has the settings and versions among its metadata, as JSON; a .h5 file among its
            attributes.
          names: the arrays that are written; None: all.
          widen: what NumPy lacks (bfloat16, float8) is written to .npz, .npy and .h5 as float32, which holds each of
            these numbers exactly. Without it that is an error, because NumPy reads such files as bare bytes.
          partial: also write a store that is not complete.

        Returns:
          The absolute path of the file.

        Raises:
          ValueError: another ending; no such array; several arrays for .npy; a dtype that the format lacks.
          StoreError: the file is there already, or cannot be written; the store is not complete.
          ImportError: safetensors, or h5py, is not installed.

        Example:
          >>> import tempfile
          >>> import jax, numpy as np
          >>> from lrpjax import explain_batches, open_store
          >>> folder, batches = tempfile.mkdtemp(), [np.ones((2, 3), np.float32)]
          >>> sensitivity = jax.jit(jax.grad(lambda x: (x**2).sum()))
          >>> for R in explain_batches(sensitivity, batches, store=f"{folder}/store", progress=False):
          ...     pass
          >>> path = open_store(f"{folder}/store").save(f"{folder}/relevances.npz")
          >>> with np.load(path) as arrays:
          ...     print(arrays["relevance"])
          [[2. 2. 2.]
           [2. 2. 2.]]
        """
        path = Path(file).absolute()
        names = list(self if names is None else names)
        write = files.WRITERS.get(path.suffix)
        if write is None:
            raise ValueError(
                f"{file}: files of arrays end in {', '.join(files.WRITERS)}, not in {path.suffix!r}"
            )
        for name in names:
            if name not in self:
                raise ValueError(f"{self.path} has the arrays {', '.join(self)}, not {name!r}")
        if path.suffix == ".npy" and len(names) != 1:
            raise ValueError(
                f"{file}: a .npy file holds one array, not {', '.join(names)}; name it, or take .npz"
            )
        if not self.complete and not partial:
            raise StoreError(
                f"{self.path} is not complete: {self.rows} rows are stored. Go on with what made it, or ask for "
                "what is there (partial=True, --partial)"
            )
        if path.exists():
            raise StoreError(f"{path} is there already; delete it, or choose another name")
        arrays = {name: files.rows_of(self[name]) for name in names}
        if path.suffix != ".safetensors":
            arrays = {name: files.known_to_numpy(name, array, widen) for name, array in arrays.items()}
        part = path.with_name(f".{path.name}.part")
        try:
            write(
                part, arrays, {"settings": json.dumps(self.settings), "versions": json.dumps(self.versions)}
            )
            part.replace(path)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error}") from error
        finally:
            part.unlink(missing_ok=True)
        return path

    def __getitem__(self, name: str) -> StoredArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def open_store(path: str | os.PathLike[str]) -> Store:
    """Opens stored results for reading; those of several processes are put one after the other.

    Args:
      path: directory given to `lrpjax.explain_batches` as `store`, complete or not.

    Returns:
      A `Store`: a mapping from names to arrays `[rows, ...]` (`StoredArray`): nothing is read before it is
      asked for, `np.asarray(store["relevance"][10:20])` reads ten rows. What is damaged is an error when it is
      read; `Store.verify` looks at everything.

    Raises:
      StoreError: there is no store, or it cannot be read.

    Example:
      >>> import tempfile
      >>> import jax, numpy as np
      >>> from lrpjax import explain_batches
      >>> path, sensitivity = tempfile.mkdtemp(), jax.jit(jax.grad(lambda x: (x**2).sum()))
      >>> batches = [np.ones((2, 3), np.float32), np.ones((1, 3), np.float32)]
      >>> settings = {"method": "gradient"}
      >>> for R in explain_batches(sensitivity, batches, store=path, settings=settings, progress=False):
      ...     pass
      >>> store = open_store(path)
      >>> store.settings["method"], store.complete, np.asarray(store["relevance"][1:])
      ('gradient', True, array([[2., 2., 2.],
             [2., 2., 2.]], dtype=float32))
    """
    return Store(path)


def _about(path: Path) -> dict[str, Any] | None:
    about = layout.metadata(path)
    if about is not None:
        layout.check_format(path, about)
    return about
