"""Results are added to a store, batch by batch, whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lrpjax._version import __version__
from lrpjax.data import layout
from lrpjax.data.layout import StoreError
from lrpjax.data.shares import Share, file_size


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
      >>> from lrpjax.store import fingerprint, open_store
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
        self._names = layout.array_names(results)
        if not leaves:
            raise StoreError("there is nothing to store: the results have no leaves")
        index, count = process
        root = Path(path).absolute()
        self.path = root if count == 1 else root / f"process-{index:05d}"
        about: dict[str, Any] = {
            "format": layout.FORMAT,
            "processes": count,
            **layout.new_about(self._names, leaves),
            "settings": _json_like(settings),
            "versions": {
                "lrpjax": __version__,
                "jax": jax.__version__,
                "jaxlib": importlib.metadata.version("jaxlib"),
            },
        }
        with layout.reported(f"{self.path} cannot be used as a store"):
            self._about = self._claim(root, about)
            layout.make_arrays(self.path, self._about)
            self._share = Share(self.path, self._about)
        self._share.check_sizes()
        self._drop_tail()

    def _claim(self, root: Path, about: dict[str, Any]) -> dict[str, Any]:
        """Writes the group's metadata, or compares them with those that are there, and gives them."""
        there, count = layout.metadata(root), about["processes"]
        if there is not None:
            layout.check_format(root, there)
            if there.get("processes") != count:
                raise StoreError(
                    f"the store {root} was made by {there.get('processes')} processes together, not by {count}; "
                    "each of them holds its own share. Choose another directory, or start as many"
                )
        elif count > 1:
            layout.write_metadata(root, {"format": layout.FORMAT, "processes": count})
        there = layout.metadata(self.path)
        if there is None:
            there = {**about, "batches": None}
            layout.write_metadata(self.path, there)
        layout.check_format(self.path, there)
        for key, what in (("settings", "settings"), ("versions", "versions")):
            old, new = there.get(key, about[key]), about[key]
            differ = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
            if differ:
                changes = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differ)
                raise StoreError(
                    f"the store {self.path} was made with other {what} ({changes}). "
                    "Choose another directory, or delete that one to start again"
                )
        for key, what in (("batch_size", "another batch size"), ("arrays", "other arrays")):
            if there.get(key) != about[key]:
                raise StoreError(
                    f"the store {self.path} has {what} ({there.get(key)!r} there, {about[key]!r} now)"
                )
        return there

    @property
    def stored(self) -> int:
        """How many batches, from the first on, are stored."""
        return len(self._share.records)

    def check(self, index: int, inputs: str) -> None:
        """Compares a stored batch's input with the one that is there now, without reading results.

        Args:
          index: number of the batch, less than `stored`.
          inputs: `fingerprint` of the batch that is to be explained.

        Raises:
          StoreError: another input was explained there.
        """
        if layout.digest(self._share.records[index][2:4]) != inputs:
            raise StoreError(
                f"batch {index} of the input is not the one that the store {self.path} holds results of. "
                "Give the same input in the same order, or choose another directory"
            )

    def read(self, index: int, inputs: str) -> Any:
        """The stored results of a batch.

        Whole files are read, many batches at once, so that asking for one batch after the other is cheap.

        Args:
          index: number of the batch, less than `stored`.
          inputs: `fingerprint` of the batch that is to be explained.

        Returns:
          The pytree of NumPy arrays that was written.

        Raises:
          StoreError: another input was explained there, or what is stored is not what was written.
        """
        self.check(index, inputs)
        with layout.reported(f"batch {index} cannot be read from {self.path}"):
            results = self._share.results(index)
        return self._treedef.unflatten([results[name] for name in self._names])

    def write(self, index: int, results: Any, inputs: str, nonfinite: int = 0) -> None:
        """Adds a batch: when this returns it is on the disk, when it raises (or is killed) the store does not
        have it.

        A batch that is stored already stays as it is, but its input must be the same.

        Args:
          index: number of the batch, at most `stored`.
          results: pytree of NumPy arrays with the batch's rows first, at most `batch_size`.
          inputs: `fingerprint` of the batch that was explained.
          nonfinite: how many rows have a NaN or an infinity in their results.

        Raises:
          StoreError: it could not be written; the batch and the reason are named.
        """
        complete = self._about["batches"]
        if complete is not None and index >= complete:
            raise StoreError(
                f"the store {self.path} is of another input: it is complete with {complete} batches, "
                "but this one goes on"
            )
        if index < self.stored:
            return self.check(index, inputs)
        if index > self.stored:
            raise ValueError(f"batch {index} cannot be stored before batch {self.stored}")
        arrays = dict(zip(self._names, jax.tree.leaves(results), strict=True))
        rows, start = next(iter(arrays.values())).shape[0], index * self._share.batch_size
        forms = {name: [array.dtype.name, list(array.shape[1:])] for name, array in arrays.items()}
        if forms != self._about["arrays"]:
            raise ValueError(f"batch {index} has {forms}, but the store holds {self._about['arrays']}")
        with layout.reported(
            f"batch {index} (rows {start} to {start + rows - 1}) could not be stored in {self.path}. "
            f"The {index} batches before it are safe, and the same call goes on with this one"
        ):
            record = layout.record_of(rows, nonfinite, inputs, arrays)
            content = layout.encoded(record, arrays)
            if (index + 1) % self._share.chunk:
                layout.write_file(self._share.tail_file(index), content)
                self._share.tail.append(content)
                self._share.records.append(record)
            else:
                self._move([*self._share.tail, content])
        return None

    def _move(self, tail: list[bytes]) -> None:
        """Writes the batches of the tail as one shard of each array, then their records; deletes their files then."""
        share, first = self._share, self._share.in_shards
        records, batches = zip(*[layout.decoded(content, self._about) for content in tail], strict=True)
        start = first * share.batch_size
        stop = start + int(sum(record[0] for record in records))
        arrays = layout.grown([share.arrays[name] for name in share.names], stop)
        share.arrays = dict(zip(share.names, arrays, strict=True))
        writes = [
            array[start:stop].write(np.concatenate([batch[name] for batch in batches]))
            for name, array in share.arrays.items()
        ]
        for write in writes:
            write.result()
        sizes = [file_size(share.shard_file(name, first // share.chunk)) for name in share.names]
        records = [np.array([*record[: layout.COLUMNS], *sizes], np.uint64) for record in records]
        (share.open_records,) = layout.grown([share.open_records], first + len(records))
        share.open_records[first : first + len(records)].write(np.stack(records)).result()
        share.records[first:], share.tail = records, []
        self._drop_tail()

    def _drop_tail(self) -> None:
        """Deletes the files of the tail whose batches are in shards,."""
        with layout.reported(f"{self._share.path / layout.TAIL} cannot be deleted"):
            for index, path in self._share.tail_files().items():
                if index < self._share.in_shards:
                    path.unlink(missing_ok=True)

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
        of_all = layout.fingerprint(np.array([record[2:4] for record in self._share.records], np.uint64))
        with layout.reported(f"{self.path} could not be marked as complete"):
            # First, for only a store that takes no more batches may have a shard that is not full.
            self._about = {**self._about, "batches": batches, "input_fingerprint": of_all}
            layout.write_metadata(self.path, self._about)
            if self._share.tail:
                self._move(self._share.tail)
            with contextlib.suppress(OSError):  # another run on the same store may have a file in it
                (self.path / layout.TAIL).rmdir()


def cut(path: str | os.PathLike[str], batches: int) -> None:
    """Takes a store's last batches away, so that the call that made it computes them again.

    That is how a store is used again of which a file is damaged or missing.

    Args:
      path: directory of the store; of a store that several processes made together, that of one process's share.
      batches: how many batches stay; of a file that holds many batches all stay or none.

    Raises:
      StoreError: there is no store, it is the store of several processes, or it cannot be written.

    Example:
      >>> import tempfile
      >>> import jax, numpy as np
      >>> from lrpjax import explain_batches, open_store
      >>> path, double = tempfile.mkdtemp(), jax.jit(lambda x: 2 * x)
      >>> for R in explain_batches(double, [np.ones((2, 3), np.float32)] * 4, store=path, progress=False):
      ...     pass
      >>> cut(path, 0)
      >>> open_store(path).rows
      0
      >>> len(list(explain_batches(double, [np.ones((2, 3), np.float32)] * 4, store=path, progress=False)))
      4
    """
    path = Path(path).absolute()
    about = layout.metadata(path)
    if about is None or "arrays" not in about:
        raise StoreError(
            f"{path} is no store of one process; of several together, each process-... directory is one"
        )
    layout.check_format(path, about)
    with layout.reported(f"{path} cannot be cut"):
        layout.write_metadata(path, {**about, "batches": None, "input_fingerprint": None})
        records = layout.open_array(path / layout.RECORDS)
        in_shards = records.shape[0]
        if batches < in_shards:
            batches = batches // about["chunk"] * about["chunk"]
        for file in (path / layout.TAIL).glob("*"):
            if not file.name.isdigit() or int(file.name) >= batches:
                file.unlink(missing_ok=True)
        if batches < in_shards:
            # The rest of the last file that stays would come back when the array grows again.
            end = min(in_shards, -(-batches // layout.RECORDS_IN_A_FILE) * layout.RECORDS_IN_A_FILE)
            if end > batches:
                records[batches:end].write(0).result()
        if batches < in_shards:
            rows = batches * about["batch_size"]
            records.resize(exclusive_max=[batches, records.shape[1]]).result()
            for name in about["arrays"]:
                array = layout.open_array(path / name)
                if array.shape[0] > rows:
                    array.resize(exclusive_max=[rows, *array.shape[1:]]).result()


def _json_like(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"settings are kept as JSON, so they hold strings, numbers, lists and dicts only: {error}"
        ) from error
