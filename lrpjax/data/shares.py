"""What one process has stored, opened for reading: files that are damaged or missing are found and named."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrpjax.data import layout
from lrpjax.data.layout import StoreError


class Share:
    """A directory with arrays, opened.

    Attributes:
      path: the directory.
      about: what its group says of it.
      arrays: {name: tensorstore's array, of all rows that are in shards}.
      records: one for each batch that is stored.
      tail: the batches that are in no shard yet, as their files hold them.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path, self.about = path, about
        self.batch_size, self.chunk = about["batch_size"], about["chunk"]
        self.names = sorted(about["arrays"])
        self.records: list[np.ndarray] = []
        self.tail: list[bytes] = []
        self._last: tuple[int, list[dict[str, np.ndarray]]] = (-1, [])
        with layout.reported(f"{path} cannot be read"):
            self.arrays = {name: layout.open_array(path / name) for name in self.names}
            self.open_records = layout.open_array(path / layout.RECORDS)
            self._load()

    def _load(self) -> None:
        """Reads the records and the tail, while a run may be moving batches from one to the other."""
        rows = min(array.shape[0] for array in self.arrays.values())
        self.records = self._read_records()
        while True:
            failure, in_shards = None, len(self.records)
            try:
                tail = self._read_tail()
            except (StoreError, FileNotFoundError) as error:
                failure, tail = error, []
            self.records = self._read_records()
            if len(self.records) == in_shards:
                break
        if rows > (in_shards + self.chunk) * self.batch_size:
            raise self.damaged([f"{self.path / layout.RECORDS} lacks records of the {rows} rows"], in_shards)
        if failure is not None:
            raise failure
        self.arrays = {name: layout.open_array(self.path / name) for name in self.names}
        self.tail = [content for content, _ in tail]
        self.records += [record for _, record in tail]
        for name, array in self.arrays.items():
            if array.shape[0] < self.rows_before(in_shards):
                raise self.damaged(
                    [f"{self.path / name / 'zarr.json'} lacks rows"], array.shape[0] // self.batch_size
                )
        if self.about["batches"] not in (None, len(self.records)):
            fault = f"{self.about['batches']} batches were written, but {len(self.records)} are there"
            raise self.damaged([fault], len(self.records))

    def _read_records(self) -> list[np.ndarray]:
        array = self.open_records.resolve(fix_resizable_bounds=False).result()
        with self._noticing():
            records = array.read().result()
        there = records[:, 0] > 0
        count = len(there) if there.all() else int(np.argmin(there))
        if there[count:].any():
            raise self.damaged([f"{self.path / layout.RECORDS} lacks the record of batch {count}"], count)
        return list(records[:count])

    def _read_tail(self) -> list[tuple[bytes, np.ndarray]]:
        first, found = len(self.records), []
        for index, path in sorted(self.tail_files().items()):
            if index < first:
                continue
            wanted = self.tail_file(first + len(found))
            if path != wanted:
                fault = f"{wanted} is missing, but the batches after it are there"
                raise self.damaged([fault], first + len(found))
            content = path.read_bytes()
            try:
                found.append((content, layout.decoded(content, self.about, check=True)[0]))
            except ValueError as error:
                raise self.damaged([f"{path} (batch {index}): {error}"], index) from error
        return found

    def tail_file(self, index: int) -> Path:
        return self.path / layout.TAIL / f"{index:012d}"

    def tail_files(self) -> dict[int, Path]:
        """{number of a batch: its file in the tail}."""
        files = (self.path / layout.TAIL).glob("*")
        return {int(path.name): path for path in files if re.fullmatch(r"\d{12}", path.name)}

    @property
    def in_shards(self) -> int:
        """How many batches, from the first on, are in shards."""
        return len(self.records) - len(self.tail)

    def rows_before(self, index: int) -> int:
        """How many rows the batches before this one have; only the last batch may be short."""
        return (index - 1) * self.batch_size + int(self.records[index - 1][0]) if index else 0

    def shard_file(self, name: str, number: int) -> Path:
        return self.path / name / f"c.{number}{'.0' * len(self.about['arrays'][name][1])}"

    def results(self, index: int) -> dict[str, np.ndarray]:
        """The results of a batch, compared with their checksum; reads a whole shard and keeps it for the next call.

        Raises:
          StoreError: they are damaged.
        """
        if index >= self.in_shards:
            return {
                n: x.copy()
                for n, x in layout.decoded(self.tail[index - self.in_shards], self.about)[1].items()
            }
        number = index // self.chunk
        if self._last[0] != number:
            arrays, faults = self._read_shard(number)
            if faults:
                raise self.damaged(faults, number * self.chunk)
            self._last = number, self._divided(arrays, number)
        found = self._last[1][index % self.chunk]
        if fault := self._changed(index, found):
            raise self.damaged([fault], index)
        return {name: array.copy() for name, array in found.items()}

    def _read_shard(self, number: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """The arrays' rows in their shards of this number, and what is damaged."""
        first = number * self.chunk
        start, stop = (self.rows_before(min(i, self.in_shards)) for i in (first, first + self.chunk))
        reading = {name: self.arrays[name][start:stop].read() for name in self.names}
        found, faults = {}, []
        for name, read in reading.items():
            try:
                found[name] = read.result()
            except layout.FAILURES as error:
                faults.append(self.fault(error))
        return found, faults

    def _divided(self, arrays: Mapping[str, np.ndarray], number: int) -> list[dict[str, np.ndarray]]:
        """The batches of a shard."""
        first, size = number * self.chunk, self.batch_size
        count = min(self.chunk, self.in_shards - first)
        return [{name: x[i * size : (i + 1) * size] for name, x in arrays.items()} for i in range(count)]

    def _changed(self, index: int, results: Mapping[str, np.ndarray]) -> str:
        if layout.checksum(results) == self.records[index][4]:
            return ""
        files = ", ".join(str(self.shard_file(name, index // self.chunk)) for name in self.names)
        return f"{files}: batch {index} (rows {self._rows(index, index + 1)}) is not what was written"

    def check_sizes(self) -> None:
        """Looks for files of shards that are missing, or not as long as they were, without reading any.

        Raises:
          StoreError: it names them.
        """
        found = [(number, fault) for number in range(self._shards) for fault in self._wrong_sizes(number)]
        if found:
            raise self.damaged([fault for _, fault in found], found[0][0] * self.chunk)

    @property
    def _shards(self) -> int:
        return -(-self.in_shards // self.chunk)

    def _wrong_sizes(self, number: int) -> Iterator[str]:
        for name, size in zip(self.names, self.records[number * self.chunk][layout.COLUMNS :], strict=True):
            path = self.shard_file(name, number)
            there = file_size(path)
            if there != size:
                what = f"has {there} bytes, not {size}" if there else "is missing"
                yield f"{path} ({self._place(number)}) {what}"

    def faults(self) -> Iterator[tuple[int, str]]:
        """Reads everything: the first batch that is lost, and the file that is damaged, for each such file."""
        for number in range(self._shards):
            found = list(self._wrong_sizes(number))
            if not found:
                arrays, found = self._read_shard(number)
                batches = [] if found else self._divided(arrays, number)
                changed = [self._changed(number * self.chunk + i, batch) for i, batch in enumerate(batches)]
                found += filter(None, changed)
            for fault in found:
                yield number * self.chunk, fault

    def fault(self, error: BaseException) -> str:
        """What an exception of tensorstore says is wrong, with the file, batches and rows."""
        text = re.sub(r" \[\w+='.*", "", str(error), flags=re.DOTALL)
        file = re.search(r'local file "(.*?)"', text)
        if file is None:
            return text
        path = Path(file[1])
        number = re.match(r"c\.(\d+)", path.name)
        place = f" ({self._place(int(number[1]))})" if number and path.parent.name in self.names else ""
        reason = text.split(f'local file "{file[1]}"')[-1].removeprefix(":").strip()
        return f"{path}{place}{' ' if reason == 'is missing' else ': '}{reason}"

    def lost(self, error: BaseException) -> int:
        """The first batch that is lost with the file that an exception of tensorstore names."""
        file = re.search(r'local file ".*?([^/"]*)/c\.(\d+)[.\d]*"', str(error))
        if file is None:
            return 0
        return int(file[2]) * (layout.RECORDS_IN_A_FILE if file[1] == layout.RECORDS else self.chunk)

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except layout.FAILURES as error:
            raise self.damaged([self.fault(error)], self.lost(error)) from error

    def _place(self, number: int) -> str:
        first, last = number * self.chunk, min((number + 1) * self.chunk, self.in_shards)
        return f"batches {first} to {last - 1}, rows {self._rows(first, last)}"

    def _rows(self, first: int, last: int) -> str:
        return f"{self.rows_before(first)} to {self.rows_before(last) - 1}"

    def damaged(self, faults: list[str], batch: int) -> StoreError:
        """The error that names what is damaged, and says how the store is used again."""
        kept = batch // self.chunk * self.chunk if batch < self.in_shards else batch
        return StoreError(
            f"the store {self.path} is damaged: {'; '.join(faults)}. lrpjax.store.cut({str(self.path)!r}, {kept}) "
            f"keeps the {kept} batches before that, and the call that made the store computes the others again"
        )


def file_size(path: Path) -> int:
    """In bytes; 0 where there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
