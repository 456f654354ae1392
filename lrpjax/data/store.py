"""Results on disk: a Zarr group to which every batch is added whole or not at all.

Layout, readable by any Zarr 3 reader::

    DIR/zarr.json           group; its attribute "lrpjax" holds settings, versions and state
    DIR/<name>/             one array for each leaf of the results, rows first, one chunk for each batch
    DIR/batches/            one record for each batch, written last: a batch is stored if its record is
    DIR/process-00000/...   the same once for each process, where several processes explain together

tensorstore writes each file under another name, synchronises and renames it: none is ever half-written.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax._version import __version__
from lrpjax.data import files
from lrpjax.errors import LrpjaxError

_FORMAT = 1
_RECORDS = "batches"
# rows, rows that are not finite, fingerprint of the input (two words), fingerprint of the results (two words)
_COLUMNS = ["rows", "nonfinite", "input_0", "input_1", "result_0", "result_1"]


class StoreError(LrpjaxError, OSError):
    """Results cannot be stored or read: another run's store, a full disk, damaged data."""


def fingerprint(tree: Any) -> str:
    """The BLAKE2b hash, 128 bits, of a pytree of arrays.

    Equal fingerprints mean equal structure, shapes, dtypes and bytes. Of an array that is spread over several
    processes only this process's part is hashed.

    Args:
      tree: pytree of arrays (NumPy, JAX, typed PRNG keys) or numbers.

    Returns:
      32 hexadecimal digits.

    Raises:
      TypeError: a leaf is not an array of numbers.

    Example:
      >>> import numpy as np
      >>> fingerprint({"x": np.zeros(3, np.float32)})
      'c7ee76cf6ed065ad411176dd834e0a3d'
      >>> fingerprint({"x": np.zeros(3, np.float32)}) == fingerprint({"x": np.zeros(3, np.float64)})
      False
    """
    digest = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            pieces = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        else:
            pieces = [np.asarray(leaf)]
        name = jax.tree_util.keystr(path)
        for piece in pieces:
            if piece.dtype.hasobject or piece.dtype.kind in "SU":
                raise TypeError(f"the leaf {name!r} is no array of numbers but {type(leaf).__name__}")
            digest.update(repr((name, piece.dtype.name, piece.shape)).encode())
            digest.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def array_names(tree: Any) -> list[str]:
    """The name in the store of each leaf of a pytree of results: its path, or "relevance" for a bare array.

    Args:
      tree: pytree of anything.

    Returns:
      One name for each leaf, in the order of `jax.tree.leaves`.

    Raises:
      StoreError: two leaves would have the same name, or one the name of the store's own array.

    Example:
      >>> array_names({"relevance": 0, "output": (1, 2)})
      ['output.0', 'output.1', 'relevance']
    """
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = re.sub(r"[^\w.-]", "_", name).strip(".") or "relevance"
        if name in names or name == _RECORDS or name.startswith("process-"):
            raise StoreError(
                f"the results have two leaves, or one of the store's own, named {name!r}; rename it"
            )
        names.append(name)
    return names


class StoreWriter:
    """Adds batches of results to a store, new or begun by an earlier run with the same settings.

    Args:
      path: directory of the store; made if missing.
      settings: what the results depend on (composite, target, ...); JSON values. An existing store must have
        the same.
      results: pytree of `jax.ShapeDtypeStruct`: what one batch gives; all leaves have the batch's rows first.
      process: this process's number among those that explain together, and how many they are. More than one:
        each writes its own share, `process-00000` and so on, in the directory.

    Raises:
      StoreError: the directory holds the results of other settings, of other versions of lrpjax and jax, of
        another number of processes, or something else; or it cannot be written.

    Example:
      >>> import tempfile
      >>> import jax, numpy as np
      >>> path = tempfile.mkdtemp()
      >>> shape = jax.ShapeDtypeStruct((2, 3), np.float32)
      >>> writer = StoreWriter(path, {"composite": "epsilon"}, shape)
      >>> writer.write(0, np.ones((2, 3), np.float32), fingerprint(np.zeros(2)))
      >>> writer.finish(1)
      >>> open_store(path)["relevance"].shape
      (2, 3)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        results: Any,
        process: tuple[int, int] = (0, 1),
    ):
        leaves, self._treedef = jax.tree.flatten(results)
        names = array_names(results)
        if not names:
            raise StoreError("there is nothing to store: the results have no leaves")
        self.batch_size = int(leaves[0].shape[0])
        index, count = process
        root = Path(path).absolute()
        self.path = root if count == 1 else root / f"process-{index:05d}"
        self._about: dict[str, Any] = {
            "format": _FORMAT,
            "processes": count,
            "batch_size": self.batch_size,
            "arrays": {
                n: [leaf.dtype.name, list(leaf.shape[1:])] for n, leaf in zip(names, leaves, strict=True)
            },
            "settings": _json_like(settings),
            "versions": {
                "lrpjax": __version__,
                "jax": jax.__version__,
                "jaxlib": importlib.metadata.version("jaxlib"),
            },
        }
        with _reported(f"{self.path} cannot be used as a store"):
            self._claim(root, count)
            for name, leaf in zip(names, leaves, strict=True):
                _open_array(self.path / name, leaf.shape, leaf.dtype)
            self._arrays = [_open_array(self.path / name) for name in names]
            self._records = _open_array(self.path / _RECORDS, (1, len(_COLUMNS)), np.dtype(np.uint64))
            self._stored = _leading(self._records[...].read().result())

    def _claim(self, root: Path, count: int) -> None:
        """Writes the group's metadata, or compares them with those that are there."""
        there = _metadata(root)
        if there is not None and there.get("processes") != count:
            raise StoreError(
                f"the store {root} was made by {there.get('processes')} processes together, not by {count}; "
                "each of them holds its own share. Choose another directory, or start as many"
            )
        if there is None and count > 1:
            _write_metadata(root, {"format": _FORMAT, "processes": count})
        there = _metadata(self.path)
        if there is None:
            _write_metadata(self.path, {**self._about, "batches": None})
            there = {}
        for key, what in (("settings", "settings"), ("versions", "versions")):
            old, new = there.get(key, self._about[key]), self._about[key]
            differ = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            if differ:
                changes = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differ)
                raise StoreError(
                    f"the store {self.path} was made with other {what} ({changes}). "
                    "Choose another directory, or delete that one to start again"
                )
        for key in ("format", "batch_size", "arrays"):
            if there and there.get(key) != self._about[key]:
                raise StoreError(
                    f"the store {self.path} has another {key.replace('_', ' ')} "
                    f"({there.get(key)!r} there, {self._about[key]!r} now)"
                )
        self._complete = there.get("batches")

    @property
    def stored(self) -> int:
        """How many batches, from the first on, are stored."""
        return len(self._stored)

    def read(self, index: int, inputs: str) -> Any:
        """The stored results of a batch.

        Args:
          index: number of the batch, less than `stored`.
          inputs: `fingerprint` of the batch that is to be explained.

        Returns:
          The pytree of NumPy arrays that was written.

        Raises:
          StoreError: another input was explained there, or what is stored is not what was written.
        """
        record = self._stored[index]
        if _hex(record[2:4]) != inputs:
            raise StoreError(
                f"batch {index} of the input is not the one that the store {self.path} holds results of. "
                "Give the same input in the same order, or choose another directory"
            )
        rows, start = int(record[0]), index * self.batch_size
        with _reported(f"batch {index} cannot be read from {self.path}"):
            arrays = [array[start : start + rows].read() for array in self._arrays]
            results = self._treedef.unflatten([array.result() for array in arrays])
        if _hex(record[4:6]) != fingerprint(results):
            raise StoreError(
                f"batch {index} in the store {self.path} is damaged: it is not what was written. "
                f"Delete {self.path / _RECORDS / f'c.{index}.0'} to have it and all after it computed again"
            )
        return results

    def write(self, index: int, results: Any, inputs: str, nonfinite: int = 0) -> None:
        """Adds a batch: when this returns it is on the disk, when it raises (or is killed) the store does not
        have it.

        Args:
          index: number of the batch.
          results: pytree of NumPy arrays with the batch's rows first, at most `batch_size`.
          inputs: `fingerprint` of the batch that was explained.
          nonfinite: how many rows have a NaN or an infinity in their results.

        Raises:
          StoreError: it could not be written; the batch and the reason are named.
        """
        if self._complete is not None and index >= self._complete:
            raise StoreError(
                f"the store {self.path} is of another input: it is complete with {self._complete} batches, "
                "but this one goes on"
            )
        leaves = jax.tree.leaves(results)
        rows, start = leaves[0].shape[0], index * self.batch_size
        record = np.array([rows, nonfinite, *_words(inputs), *_words(fingerprint(results))], np.uint64)
        with _reported(
            f"batch {index} (rows {start} to {start + rows - 1}) could not be stored in {self.path}. "
            f"The {index} batches before it are safe, and the same call goes on with this one"
        ):
            self._arrays = _grown(self._arrays, start + rows)
            writes = [
                array[start : start + rows].write(leaf)
                for array, leaf in zip(self._arrays, leaves, strict=True)
            ]
            for write in writes:
                write.result()
            (self._records,) = _grown([self._records], index + 1)
            self._records[index].write(record).result()
        self._stored[index:] = [record]

    def finish(self, batches: int) -> None:
        """Marks the store as complete.

        Args:
          batches: how many batches the input had.

        Raises:
          StoreError: the store has more or fewer, so it is of another input.
        """
        if batches != self.stored:
            raise StoreError(
                f"the store {self.path} is of another input: it has {self.stored} batches, this one {batches}"
            )
        of_all = fingerprint(np.array([record[2:4] for record in self._stored], np.uint64))
        with _reported(f"{self.path} could not be marked as complete"):
            _write_metadata(self.path, {**self._about, "batches": batches, "input_fingerprint": of_all})


class Store(Mapping[str, Any]):
    """Stored results: a mapping from names to arrays, read lazily; made by `open_store`.

    Attributes:
      path: the directory.
      settings: what the results depend on, as given by whoever made them.
      versions: of lrpjax, jax and jaxlib.
      complete: whether the whole input was explained.
      rows: how many rows are stored.
      batches: array `[number of batches, 2]`: for each stored batch its rows, and how many of them are not
        finite.
    """

    def __init__(self, path: str | os.PathLike[str]):
        import tensorstore as ts

        self.path = Path(path).absolute()
        about = _metadata(self.path)
        if about is None:
            raise StoreError(f"there is no store in {self.path}")
        shares = [self.path]
        if "arrays" not in about:
            shares = [self.path / f"process-{index:05d}" for index in range(about["processes"])]
        abouts: list[Any] = []
        for share in shares:
            abouts.append(_metadata(share))
            if abouts[-1] is None:
                raise StoreError(f"{share}, the share of one of the {len(shares)} processes, is missing")
        self.settings: dict[str, Any] = abouts[0]["settings"]
        self.versions: dict[str, str] = abouts[0]["versions"]
        self.complete: bool = all(found["batches"] is not None for found in abouts)
        with _reported(f"{self.path} cannot be read"):
            records = [_leading(_open_array(share / _RECORDS)[...].read().result()) for share in shares]
            rows = [int(sum(record[0] for record in share)) for share in records]
            self._arrays = {}
            for name in abouts[0]["arrays"]:
                parts = [_open_array(share / name)[:n] for share, n in zip(shares, rows, strict=True)]
                self._arrays[name] = parts[0] if len(parts) == 1 else ts.concat(parts, axis=0)
        self.rows = sum(rows)
        self.batches = np.array([record[:2] for share in records for record in share], np.int64).reshape(
            -1, 2
        )

    def save(
        self,
        file: str | os.PathLike[str],
        names: Sequence[str] | None = None,
        *,
        widen: bool = False,
        partial: bool = False,
    ) -> Path:
        """Writes the stored arrays into one file, for programs that read no Zarr.

        The store stays as it is: it is what a run resumes from. The file appears whole or not at all.

        Args:
          file: .npz or .safetensors, with the arrays by their names, or .npy with one of them. A .safetensors
            file has the settings and versions among its metadata, as JSON.
          names: the arrays that are written; None: all.
          widen: what NumPy lacks (bfloat16, float8) is written to .npz and .npy as float32, which holds each of
            these numbers exactly. Without it that is an error, because NumPy reads such files as bare bytes.
          partial: also write a store that is not complete.

        Returns:
          The absolute path of the file.

        Raises:
          ValueError: another ending; no such array; several arrays for .npy; a dtype that the format lacks.
          StoreError: the file is there already, or cannot be written; the store is not complete.
          ImportError: safetensors is not installed.

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
        with _reported(f"{self.path} cannot be read"):
            arrays = {name: np.ascontiguousarray(self[name].read().result()) for name in names}
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

    def __getitem__(self, name: str) -> Any:
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
      A `Store`: a mapping from names to arrays `[rows, ...]`, of tensorstore: nothing is read before it is
      asked for, `np.asarray(store["relevance"][10:20])` reads ten rows.

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


def _json_like(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"settings are kept as JSON, so they hold strings, numbers, lists and dicts only: {error}"
        ) from error


def _metadata(path: Path) -> dict[str, Any] | None:
    """The attribute "lrpjax" of the Zarr group in a directory; None where there is no group."""
    try:
        text = (path / "zarr.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return json.loads(text)["attributes"]["lrpjax"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} holds a Zarr array or group that lrpjax did not make; choose another directory"
        ) from error


def _write_metadata(path: Path, about: Mapping[str, Any]) -> None:
    document = {"zarr_format": 3, "node_type": "group", "attributes": {"lrpjax": about}}
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    files = _tensorstore().KvStore.open({"driver": "file", "path": f"{path}/"}).result()
    files.write("zarr.json", text.encode()).result()


def _open_array(path: Path, chunk: tuple[int, ...] | None = None, dtype: Any = None) -> Any:
    """The array in a directory; where there is none and a chunk's shape is given, a new one without rows."""
    files = {"driver": "file", "path": f"{path}/"}
    spec: dict[str, Any] = {"driver": "zarr3", "kvstore": files, "recheck_cached_metadata": True}
    create = not (path / "zarr.json").exists()
    if create and chunk is not None:
        spec["metadata"] = {
            "shape": [0, *chunk[1:]],
            "data_type": np.dtype(dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(n, 1) for n in chunk]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": _fill_value(np.dtype(dtype)),
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "zstd", "configuration": {"level": 1}},
            ],
        }
    return (
        _tensorstore()
        .open(spec, create=create and chunk is not None, open=not create or chunk is None)
        .result()
    )


def _fill_value(dtype: np.dtype) -> Any:
    """What is not stored reads as NaN, so that nobody takes it for a relevance of zero."""
    if jnp.issubdtype(dtype, np.complexfloating):
        return ["NaN", "NaN"]
    if jnp.issubdtype(dtype, np.floating):
        return "NaN"
    return False if dtype == np.bool_ else 0


def _grown(arrays: list[Any], rows: int) -> list[Any]:
    """The arrays with at least so many rows; never with fewer, which would delete what another run stores."""
    arrays = [array.result() for array in [array.resolve(fix_resizable_bounds=False) for array in arrays]]
    resized = [
        array.resize(exclusive_max=[rows, *array.shape[1:]], expand_only=True, resize_metadata_only=True)
        for array in arrays
        if array.shape[0] < rows
    ]
    done = iter([array.result() for array in resized])
    return [next(done) if array.shape[0] < rows else array for array in arrays]


def _leading(records: np.ndarray) -> list[np.ndarray]:
    """The records from the first to the last before one that is missing."""
    missing = np.flatnonzero(records[:, 0] == 0)
    return list(records[: missing[0] if len(missing) else None])


def _words(digest: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digest), "<u8")


def _hex(words: ArrayLike) -> str:
    return np.asarray(words, "<u8").tobytes().hex()


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError as error:
        raise ImportError(
            "storing results needs tensorstore, which comes with flax: pip install tensorstore"
        ) from error
    return tensorstore


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turns tensorstore's exceptions, whatever their kind, into a `StoreError` that says what failed."""
    try:
        yield
    except StoreError:
        raise
    except (ValueError, OSError, NotImplementedError, TypeError) as error:
        reason = re.sub(r" \[\w+='.*", "", str(error), flags=re.DOTALL)
        if "No space left on device" in reason:
            reason = f"the disk is full ({reason})"
        raise StoreError(f"{what}: {reason}") from error
