"""Stored relevances as vectors that can be compared: read in parts, pooled and normalised."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax._progress import bar
from lrpjax.data.store import Store, open_store
from lrpjax.explore.findings import ExploreError

__all__ = ["Source", "Vectors", "pooled", "source_of", "vectors"]

Pool = int | None | Callable[[NDArray], NDArray]

# Of one part of what is read; two are in memory at a time.
PART_BYTES = 64 << 20
SAME = ("model", "composite", "target", "at", "labels", "program", "params")
"""Settings that have to agree where several stores are explored as one."""


class Source:
    """Rows of explanations by name: of one store, of several that were made alike, or of an array.

    Attributes:
        rows: how many there are.
        settings: what the store says of how they were made.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], what: str):
        self._parts, self.settings, self._what = parts, settings, what
        self._starts = np.cumsum([0] + [len(next(iter(part.values()))) for part in parts])
        self.rows = int(self._starts[-1])

    def __contains__(self, name: str) -> bool:
        return all(name in part for part in self._parts)

    def array_of(self, name: str) -> Any:
        """The first part's array of that name: all have its dtype and the shape of its rows."""
        if name not in self:
            raise ExploreError(f"{self._what} has the arrays {', '.join(self._parts[0])}, not {name!r}")
        return self._parts[0][name]

    def parts(self, name: str, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray]]:
        """Rows, ascending, part by part as they lie on the disk; the next part is read while one is worked on.

        Yields:
            The numbers of n rows, and these rows of the array.
        """
        array = self.array_of(name)
        size = max(1, PART_BYTES // max(1, array.dtype.itemsize * int(np.prod(array.shape[1:]))))
        ahead: tuple[NDArray[np.int64], Callable[[], NDArray]] | None = None
        for start, stop, part in zip(self._starts, self._starts[1:], self._parts, strict=False):
            mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
            for first in range(0, len(mine), size):
                numbers = mine[first : first + size]
                begun = (numbers, _begun(part[name], numbers - start))
                if ahead is not None:
                    yield ahead[0], ahead[1]()
                ahead = begun
        if ahead is not None:
            yield ahead[0], ahead[1]()


def _begun(stored: Any, rows: NDArray[np.int64]) -> Callable[[], NDArray]:
    """Begins to read rows; what this gives waits for them."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    index = slice(first, last) if last - first == len(rows) else rows
    if hasattr(stored, "read"):
        return stored[index].read().result
    return lambda: np.asarray(stored[index])


def source_of(
    source: Store | ArrayLike | str | os.PathLike[str] | Sequence[Any], name: str, partial: bool
) -> Source:
    """What the explorations are given, in one form; see `explore.spectral_analysis` for what that may be."""
    if isinstance(source, (str, os.PathLike)):
        source = open_store(source)
    if isinstance(source, Store):
        source = [source]
    if isinstance(source, (list, tuple)) and source:
        stores = [open_store(s) if isinstance(s, (str, os.PathLike)) else s for s in source]
        if all(isinstance(s, Store) for s in stores):
            return _of_stores([s for s in stores if isinstance(s, Store)], name, partial)
    array: Any = source if hasattr(source, "shape") else np.asarray(source)
    if array.ndim < 2 or len(array) == 0:
        raise ExploreError(
            f"explanations are rows of an array, [rows, ...], or a store of them; this has shape {tuple(array.shape)}"
        )
    return Source([{name: array}], {}, "the array")


def _of_stores(stores: Sequence[Store], name: str, partial: bool) -> Source:
    first = stores[0]
    for store in stores:
        if name not in store:
            raise ExploreError(f"{store.path} has the arrays {', '.join(store)}, not {name!r}")
        if not store.complete and not partial:
            raise ExploreError(
                f"{store.path} is still being written, or its run was ended: {store.rows} rows are stored. Go on with "
                "what made it, or explore what is there (partial=True, --partial)"
            )
        if store.rows == 0:
            raise ExploreError(f"{store.path} has no rows yet")
        differ = [k for k in SAME if store.settings.get(k) != first.settings.get(k)]
        if store[name].shape[1:] != first[name].shape[1:]:
            differ.append(f"shape of {name}")
        if differ:
            raise ExploreError(
                f"{store.path} and {first.path} were not made alike: {', '.join(differ)} differ. Their relevances "
                "cannot be compared; explore them one by one"
            )
    return Source(stores, first.settings, str(first.path))


class Vectors(NamedTuple):
    """What the vectors of a data set are, row by row.

    rows: int [n], the rows of the source that have one, ascending. values: float32 [n, d]. skipped: {reason: int [m]}.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]
    skipped: dict[str, NDArray[np.int64]]


NORMS: dict[str | None, Callable[[NDArray], NDArray]] = {
    None: lambda v: np.ones(len(v)),
    "l1": lambda v: np.abs(v).sum(1),
    "l2": lambda v: np.linalg.norm(v, axis=1),
    "max": lambda v: np.abs(v).max(1),
}


def vectors(
    source: Source, name: str, rows: NDArray[np.int64], pool: Pool, normalise: str | None, progress: bool
) -> Vectors:
    """A vector for each row that is finite and not all zero; `n × d × 4` bytes, and two parts of what is read."""
    if normalise not in NORMS:
        known = ", ".join(repr(key) for key in NORMS)
        raise ExploreError(f"normalise must be one of {known}, not {normalise!r}")
    kept: list[NDArray] = []
    values: list[NDArray[np.float32]] = []
    skipped: dict[str, list[NDArray]] = {"not finite": [], "without any relevance": []}
    with bar("reading explanations", len(rows), rate="rows", stderr=True) if progress else _Quiet() as shown:
        for numbers, part in source.parts(name, rows):
            # Sums of 16-bit numbers are not to be taken in 16 bits.
            part = pooled(part.astype(np.float32, copy=False), pool)
            finite = np.logical_and.reduce(np.isfinite(part), axis=1)
            size = NORMS[normalise](np.where(finite[:, None], part, 0.0))
            some = (part != 0).any(1)
            skipped["not finite"].append(numbers[~finite])
            skipped["without any relevance"].append(numbers[finite & ~some])
            good = finite & some
            kept.append(numbers[good])
            values.append((part[good] / size[good, None]).astype(np.float32))
            shown.advance(len(numbers))
    left = {reason: np.concatenate(found) for reason, found in skipped.items() if found}
    return Vectors(
        np.concatenate(kept), np.concatenate(values), {r: found for r, found in left.items() if len(found)}
    )


class _Quiet:
    """A progress bar that shows nothing."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def advance(self, steps: float = 1) -> None: ...


def pooled(R: ArrayLike, pool: Pool = 16) -> NDArray:
    """Relevances as one vector for each row: sums over channels and over cells of a coarser grid.

    Pooling by sums keeps Σ R. The cells of an axis of n places are k parts of n/k places each, as equal as they can be.

    Args:
        R: floating [B, ...]: pictures [B, H, W, C], whose channels are summed, maps [B, H, W], or vectors [B, d].
        pool: the largest number of cells along height and width; None keeps all of them, and channels apart; or a
            function from [B, ...] to [B, d]. Vectors are kept as they are.

    Returns:
        [B, d], of R's dtype.

    Raises:
        ExploreError: the rows have other than one to three axes, or the function gives no vectors.

    Example:
        >>> import numpy as np
        >>> from lrpjax import explore
        >>> explore.pooled(np.arange(16.0).reshape(1, 4, 4, 1), pool=2)
        array([[10., 18., 42., 50.]])
    """
    R = np.asarray(R)
    if callable(pool):
        found = np.asarray(pool(R))
        if found.ndim != 2 or len(found) != len(R):
            raise ExploreError(
                f"pool gives an array of shape {found.shape} for {len(R)} rows; it must be [{len(R)}, d]"
            )
        return found
    if pool is None or R.ndim == 2:
        return R.reshape(len(R), -1)
    if pool < 1:
        raise ExploreError(f"pool must be 1 or more, not {pool}")
    if R.ndim not in (3, 4):
        raise ExploreError(
            f"rows of shape {R.shape[1:]} are no pictures: say how they become vectors (pool= a function), or take "
            "them as they are (pool=None)"
        )
    if R.ndim == 4:
        R = R.sum(-1)
    for axis in (1, 2):
        size = R.shape[axis]
        cells = min(pool, size)
        R = np.add.reduceat(R, np.arange(cells) * size // cells, axis=axis)
    return R.reshape(len(R), -1)


def chosen_rows(source: Source, rows: Any) -> NDArray[np.int64]:
    """The rows that are asked for, ascending."""
    if rows is None:
        return np.arange(source.rows)
    if isinstance(rows, slice):
        return np.arange(source.rows)[rows]
    found: NDArray[Any] = np.unique(np.asarray(rows))
    if found.dtype.kind not in "iu" or np.ndim(rows) != 1:
        raise ExploreError("rows are a slice, or the numbers of rows")
    if len(found) and not (found[0] >= 0 and found[-1] < source.rows):
        raise ExploreError(f"rows {found[0]} to {found[-1]} are asked for, but there are {source.rows}")
    return found.astype(np.int64)


def groups_of(
    source: Source, rows: NDArray[np.int64], groups: Any
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The group of each of the rows, and whether it has none."""
    none_lost = np.zeros(len(rows), np.bool_)
    if groups is None:
        return np.zeros(len(rows), np.int64), none_lost
    if isinstance(groups, str) and groups != "prediction":
        raise ExploreError(f'groups must be "prediction", None or a class for each row, not {groups!r}')
    if isinstance(groups, str):
        if "output" not in source:
            raise ExploreError(
                'there is no array "output" that tells what was predicted: give groups=, a class for each row, or '
                "None to explore all rows together"
            )
        if source.array_of("output").ndim != 2:
            shape = tuple(source.array_of("output").shape[1:])
            raise ExploreError(
                f"outputs of shape {shape} have no largest class: give groups=, a class for each row, or None"
            )
        found = [(y.argmax(1), ~np.isfinite(y).all(1)) for _, y in source.parts("output", rows)]
        return np.concatenate([c for c, _ in found]), np.concatenate([bad for _, bad in found])
    array: NDArray[Any] = np.asarray(groups)
    if array.shape != (source.rows,) or array.dtype.kind not in "iu":
        raise ExploreError(
            f"groups have {array.dtype}{list(array.shape)}, not one class number for each of {source.rows} rows"
        )
    return array[rows].astype(np.int64), none_lost
