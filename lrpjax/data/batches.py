"""Explaining a data set: batches from any iterable, over the devices of a mesh, by one process or several."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from concurrent.futures import Future
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lrpjax._progress import bar
from lrpjax.data import programs
from lrpjax.data import store as stores
from lrpjax.data.background import Background
from lrpjax.data.placement import FAILED, OVER, PeerError, Placement
from lrpjax.errors import LrpjaxError

# Batches that are given to the device before the results of the one before them are waited for.
_AHEAD = 1
# Batches that are being stored, or wait for it, while the next ones are computed: now and then one takes longer, when
# a file of many is written.
_STORING = 4
# Batches of a resumed run that are compared with what is stored, or wait for it, while the next ones are read.
_LOOKED_AHEAD = 8
# What a batch gives that is stored, when nobody asks for its results.
_SKIPPED = object()


class BatchError(LrpjaxError, ValueError):
    """A batch that does not fit: of another structure, dtype or size, or not made of arrays."""


class NonFiniteWarning(UserWarning):
    """The results of a batch hold a NaN or an infinity."""


@dataclasses.dataclass(frozen=True)
class _Batch:
    index: int
    rows: int
    leaves: list[np.ndarray]
    treedef: Any

    def tree(self) -> Any:
        return self.treedef.unflatten(self.leaves)

    def form(self) -> dict[str, str]:
        """Path of each leaf -> dtype and shape of its rows: what has to be the same in every batch."""
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(self.tree())]
        return {p: f"{x.dtype.name}{list(x.shape[1:])}" for p, x in zip(paths, self.leaves, strict=True)}


def explain_batches(
    explain: Callable[..., Any],
    batches: Iterable[Any],
    *,
    params: Any = None,
    mesh: Mesh | None = None,
    axis: str | tuple[str, ...] | None = None,
    batch_size: int | None = None,
    store: str | os.PathLike[str] | None = None,
    skip_stored: bool = False,
    settings: Mapping[str, Any] | None = None,
    nonfinite: Literal["warn", "raise"] = "warn",
    progress: bool = True,
    total: int | None = None,
) -> Iterator[Any]:
    """Explains batch after batch; yields the results in order, as NumPy arrays.

    While the device computes one batch, the next one is read and sent to it; no more than two are on the
    device, so neither its memory nor the host's grows with the number of batches. Every batch has the same
    shape on the device (a shorter last one is filled up by repeating its last row, and what that gives is cut
    off), so `explain` is compiled once. The device's copy of a batch is donated to results of the same shape
    and dtype.

    With a `mesh` the batches are divided over its first axis (or `axis`) by GSPMD. If the mesh spans several
    processes (`jax.distributed.initialize`), all call this function, each with its own share of the batches
    and the same sizes; one may have fewer than another. Each yields, and stores, the results of its own
    share.

    With a `store` each batch is stored before it is yielded, whole or not at all. A thread hashes and writes while
    the next batches are computed; no more than five batches wait for it, and it keeps at most a file's worth of
    results, 32 MB. So a few batches more may be stored than were yielded. A run that was ended, in whatever way,
    and is started again with the same arguments compares the input's fingerprints with those of the stored
    batches, yields what they hold, compared with what was written, and goes on with the first that is missing.
    With `skip_stored` their results are neither read nor yielded: then only files that are missing, or not as long
    as they were, are noticed (`lrpjax.open_store(path).verify()` reads everything).

    Args:
      explain: function of a batch, usually `jax.jit(lrpjax.relevance(f, composite, target="max"))`; gives a
        pytree of arrays with one row for each row of the batch, which must not depend on the other rows. With
        `params`: function of `params` and a batch.
      batches: iterable of pytrees of host arrays (NumPy, torch, TensorFlow), rows first. All have the same
        structure, dtypes and number of rows; only the last may have fewer rows. They are copied, so that the
        iterable may reuse its buffers.
      params: first argument of `explain`. With a mesh, leaves that already lie on its devices stay as they
        are; all others are replicated.
      mesh: devices to compute on; `None`: the default device.
      axis: name, or names, of the mesh's axes that the rows are divided over; `None`: its first.
      batch_size: rows of a batch; `None`: as many as the first batch has. With several processes, of each
        one's.
      store: directory of the results on disk (see `lrpjax.open_store`).
      skip_stored: do not read and yield what an earlier run has stored, only the results that are computed now.
      settings: what the results depend on, by name, kept in the store (composite, target, ...; JSON values).
        A store made with other settings, versions, `params` or another `explain` is refused.
      nonfinite: what to do with a batch whose results hold a NaN or an infinity: "warn" and keep it, or
        "raise".
      progress: show a bar with rate and remaining time on the standard error output.
      total: number of rows of the input, for the bar, where `len(batches)` does not tell.

    Returns:
      An iterator over the results, one pytree of NumPy arrays for each batch.

    Raises:
      BatchError: a batch that does not fit, named by its number. As after every error, including those of
        `batches` itself, all batches before it have been yielded and stored.
      PeerError: another process, of those that compute together, has failed.
      lrpjax.store.StoreError: the store is another run's, damaged, or cannot be written.
      ValueError: arguments that do not fit each other.

    Example:
      >>> import jax, numpy as np
      >>> sensitivity = jax.jit(jax.grad(lambda x: (x**2).sum()))
      >>> batches = [np.full((2, 3), 1, np.float32), np.full((1, 3), 2, np.float32)]
      >>> for R in explain_batches(sensitivity, batches, progress=False):
      ...     print(R)
      [[2. 2. 2.]
       [2. 2. 2.]]
      [[4. 4. 4.]]
    """
    if not callable(explain):
        raise TypeError(f"explain must be a function of a batch, not {type(explain).__name__}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if nonfinite not in ("warn", "raise"):
        raise ValueError(f"nonfinite must be 'warn' or 'raise', not {nonfinite!r}")
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, not {type(batches).__name__}")
    if skip_stored and store is None:
        raise ValueError("skip_stored passes over what a store holds, but no store is given")
    placement = Placement(mesh, axis)
    settings = dict(settings or {})
    run = _run(explain, iter(batches), params, placement, batch_size, store, skip_stored, settings, nonfinite)
    count = len(batches) if isinstance(batches, Sized) else None
    return _shown(run, progress and jax.process_index() == 0, total, count)


class _Program:
    """`explain`, compiled for batches of one shape, and what it needs around it."""

    def __init__(
        self, explain: Callable[..., Any], params: Any, first: _Batch, size: int, placement: Placement
    ):
        self.placement, self.size, self.treedef = placement, size, first.treedef
        self.params = placement.params(params)
        self.empty = [np.zeros((size, *leaf.shape[1:]), leaf.dtype) for leaf in first.leaves]

        def step(params, states, *leaves):
            batch = first.treedef.unflatten(leaves)
            return states, (explain(batch) if params is None else explain(params, batch))

        whole = [jax.ShapeDtypeStruct(placement.shape(leaf), leaf.dtype) for leaf in self.empty]
        with placement.context():
            out = jax.eval_shape(step, self.params, None, *whole)[1]
        for path, leaf in jax.tree_util.tree_leaves_with_path(out):
            if leaf.shape[:1] != whole[0].shape[:1]:
                raise BatchError(
                    f"explain gives {leaf.dtype.name}{list(leaf.shape)} at {_named(path)} for a batch of "
                    f"{whole[0].shape[0]} rows; every result must have one row for each row of the batch"
                )
        # Donating what no result can use would only give a warning.
        wanted = Counter((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(out))
        donated = []
        for position, leaf in enumerate(whole):
            if wanted[leaf.shape, leaf.dtype] > 0:
                wanted[leaf.shape, leaf.dtype] -= 1
                donated.append(2 + position)
        shardings = None if placement.mesh is None else (placement.replicated, placement.rows)
        self._step = jax.jit(step, donate_argnums=donated, out_shardings=shardings)
        self._function, self._whole = step, whole
        self.results = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), out
        )

    def fingerprint(self) -> str:
        """Of what `explain` computes, on whatever devices: see `programs.fingerprint`."""
        return programs.fingerprint(jax.make_jaxpr(self._function)(self.params, None, *self._whole))

    def dispatch(self, batch: _Batch | None, state: int) -> tuple[Any, Any]:
        """Sends a batch to the device and starts computing; waits for neither."""
        leaves = self.empty if batch is None else [_filled(leaf, self.size) for leaf in batch.leaves]
        states = None
        if self.placement.together:
            states = self.placement.batch(np.full(self.placement.shards, state, np.int32))
        leaves = list(map(self.placement.batch, leaves))
        with self.placement.context():
            states, results = self._step(self.params, states, *leaves)
        for leaf in jax.tree.leaves(results):
            for shard in leaf.addressable_shards:
                shard.data.copy_to_host_async()
        return states, results


def _run(
    explain, batches, params, placement, batch_size, store, skip_stored, settings, nonfinite
) -> Iterator[tuple[int, Any]]:
    """The number of rows and the results of each batch."""
    first, size = _first(batches, batch_size, placement)
    program = _Program(explain, params, first, size, placement)
    writer, failure = None, None
    if store is not None:
        try:
            settings = {**settings, "program": program.fingerprint()}
            if params is not None:
                settings["params"] = stores.fingerprint(program.params)
            writer = stores.StoreWriter(store, settings, program.results, placement.process)
        except Exception as error:
            failure = error
    # Processes that compute together go on together, with the first batch that one of them has not stored.
    start = int(placement.agree(failure, writer.stored if writer else 0).min())

    reader = _read(itertools.chain([first], batches), first.form(), size)
    with Background(thread=writer is not None) as background:
        done = 0
        if writer is not None:
            done, failure = yield from _stored(reader, writer, start, skip_stored, background)
        done += yield from _computed(reader, program, writer, nonfinite, background, failure)
    if writer is not None:
        writer.finish(done)


def _stored(
    reader: Iterator[_Batch], writer: stores.StoreWriter, start: int, skip: bool, background: Background
) -> Generator[tuple[int, Any], None, tuple[int, Exception | None]]:
    """The results of the batches before `start`; gives how many there were, and what has failed."""

    def look(batch: _Batch) -> Any:
        inputs = stores.fingerprint(batch.tree())
        if not skip:
            return writer.read(batch.index, inputs)
        writer.check(batch.index, inputs)
        return _SKIPPED

    batches, failure, done, over = itertools.islice(reader, start), None, 0, False
    looking: deque[tuple[int, Future]] = deque()
    while looking or not over:
        if not over:
            try:
                batch = next(batches, None)
            except Exception as error:
                batch, failure = None, error
            over = batch is None
            if batch is not None:
                looking.append((batch.rows, background.submit(look, batch)))
                if len(looking) <= _LOOKED_AHEAD:
                    continue
        if not looking:
            break
        rows, job = looking.popleft()
        try:
            results = job.result()
        except Exception as error:
            return done, error
        done += 1
        yield rows, results
    return done, failure


def _computed(
    reader: Iterator[_Batch],
    program: _Program,
    writer: stores.StoreWriter | None,
    nonfinite: str,
    background: Background,
    failure: Exception | None,
) -> Generator[tuple[int, Any], None, int]:
    """The results of the other batches, each when it is stored; gives how many, or raises what has failed."""
    placement, done, over = program.placement, 0, False
    computing: deque[tuple[_Batch | None, tuple[Any, Any]]] = deque()
    storing: deque[tuple[_Batch, Future]] = deque()
    while computing or not over:
        batch = None
        try:
            batch = next(reader, None) if failure is None else None
        except Exception as error:
            failure = error
        # A process that has no more batches, or has failed, still has to take part in what all compute.
        over = batch is None and not placement.together
        if not over:
            state = FAILED if failure else batch.rows if batch else OVER
            try:
                computing.append((batch, program.dispatch(batch, state)))
            except Exception as error:
                if placement.together:
                    raise
                failure, over = error, True
            if len(computing) <= _AHEAD and not over:
                continue
        if not computing:
            break
        batch, (states, results) = computing.popleft()
        try:
            if placement.together and _ended(np.asarray(states), failure, placement):
                break
            if batch is None:
                continue
            results = _fetched(results, batch.rows)
        except Exception as error:
            failed = error
        else:
            storing.append((batch, background.submit(_store, batch, results, writer, nonfinite)))
            yielded, failed = yield from _finished(storing, 0 if writer is None else _STORING)
            done += yielded
        if failed is not None:
            failure = failed
            if not placement.together or isinstance(failure, PeerError):
                break
            computing = deque((None, on_device) for _, on_device in computing)
    yielded, failed = yield from _finished(storing, 0)
    failure = failed or failure
    if failure is not None:
        raise failure
    return done + yielded


def _finished(
    storing: deque[tuple[_Batch, Future]], left: int
) -> Generator[tuple[int, Any], None, tuple[int, Exception | None]]:
    """Results that are stored, the oldest first, until only so many batches are left; gives how many, and what has
    failed: then the batches after it are not stored either."""
    done = 0
    while len(storing) > left:
        batch, job = storing.popleft()
        try:
            results, message = job.result()
        except Exception as error:
            storing.clear()
            return done, error
        if message:
            warnings.warn(message, NonFiniteWarning, stacklevel=5)
        done += 1
        yield batch.rows, results
    return done, None


def _first(batches: Iterator[Any], batch_size: int | None, placement: Placement) -> tuple[_Batch, int]:
    """The first batch, and the number of rows that every batch of this process has on the device."""
    first, failure = None, None
    try:
        first = _host_batch(0, next(batches))
    except StopIteration:
        failure = BatchError("there are no batches: the iterable is empty")
    except Exception as error:
        failure = error
    form = hashlib.blake2b(repr(first and first.form()).encode(), digest_size=3).digest()
    said = placement.agree(failure, first.rows if first else 0, batch_size or 0, int.from_bytes(form, "big"))
    if (said[:, 1:] != said[0, 1:]).any():
        raise BatchError("the processes were given batches of different structure, or different batch sizes")
    assert first is not None  # agree has raised otherwise
    size = batch_size or int(said[:, 0].max())
    if size % placement.shards:
        raise BatchError(
            f"batches of {size} rows cannot be divided over the {placement.shards} devices of this process "
            f"along {', '.join(placement.axes)} of the mesh; take a multiple of {placement.shards}"
        )
    return first, size


def _read(batches: Iterable[Any], form: Mapping[str, str], size: int) -> Iterator[_Batch]:
    """Checks each batch; holds a short one back until it is known to be the last."""
    short = None
    for index, batch in enumerate(batches):
        if short is not None:
            raise BatchError(
                f"batch {short.index} has {short.rows} rows, not {size}; only the last batch may have fewer"
            )
        batch = batch if isinstance(batch, _Batch) else _host_batch(index, batch)
        there = batch.form()
        differ = [path for path in {**form, **there} if form.get(path) != there.get(path)]
        if differ:
            changes = "; ".join(
                f"{_named(p)}: {there.get(p, 'missing')}, in batch 0 {form.get(p, 'missing')}" for p in differ
            )
            raise BatchError(f"batch {index} is not like batch 0 ({changes})")
        if batch.rows > size:
            raise BatchError(f"batch {index} has {batch.rows} rows, more than the batch size, {size}")
        if batch.rows < size:
            short = batch
            continue
        yield batch
    if short is not None:
        yield short


def _host_batch(index: int, batch: Any) -> _Batch:
    """A copy of the batch in host memory: the iterable may use its buffers again while the copy is sent."""
    paths_and_leaves, treedef = jax.tree_util.tree_flatten_with_path(batch)
    arrays, rows = [], {}
    for path, leaf in paths_and_leaves:
        name = f"batch {index}: the leaf at {_named(path)}"
        try:
            array = np.asarray(leaf)
            array = np.array(array, jax.dtypes.canonicalize_dtype(array.dtype))
        except Exception as error:
            raise BatchError(f"{name} is no array of numbers but {type(leaf).__name__} ({error})") from error
        if array.dtype.hasobject or array.dtype.kind in "SUMm":
            raise BatchError(
                f"{name} is no array of numbers but {type(leaf).__name__} of dtype {array.dtype}"
            )
        if array.ndim == 0:
            raise BatchError(
                f"{name} is a single number; batches are arrays, or pytrees of arrays, with rows first"
            )
        arrays.append(array)
        rows[_named(path)] = array.shape[0]
    if not arrays:
        raise BatchError(f"batch {index} holds no arrays")
    if len(set(rows.values())) > 1:
        raise BatchError(f"batch {index}: its arrays differ in their number of rows {rows}")
    if not arrays[0].shape[0]:
        raise BatchError(f"batch {index} has no rows")
    return _Batch(index, arrays[0].shape[0], arrays, treedef)


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    missing = rows - array.shape[0]
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _fetched(results: Any, rows: int) -> Any:
    """This process's rows of the results, without what a short batch was filled up with."""

    def fetch(leaf: jax.Array) -> np.ndarray:
        parts = {shard.index[0].start or 0: shard.data for shard in leaf.addressable_shards}
        arrays = [np.asarray(parts[start]) for start in sorted(parts)]
        return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays))[:rows]

    return jax.tree.map(fetch, results)


def _store(batch: _Batch, results: Any, writer: stores.StoreWriter | None, nonfinite: str) -> tuple[Any, str]:
    """Stores a batch's results; gives them, and a message if some of them are not finite."""
    bad = np.zeros(batch.rows, bool)
    where = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(results):
        if jnp.issubdtype(leaf.dtype, np.inexact):
            found = ~np.isfinite(leaf).reshape(batch.rows, -1).all(axis=1)
            where += [_named(path)] if found.any() else []
            bad |= found
    rows = ", ".join(map(str, np.flatnonzero(bad)[:10])) + (", ..." if bad.sum() > 10 else "")
    message = (
        f"batch {batch.index}: the results of {bad.sum()} of its {batch.rows} rows have a NaN or an infinity "
        f"(rows {rows} of the batch, at {', '.join(where)})"
    )
    if bad.any() and nonfinite == "raise":
        raise BatchError(message)
    if writer is not None:
        writer.write(batch.index, results, stores.fingerprint(batch.tree()), int(bad.sum()))
    return results, message if bad.any() else ""


def _ended(states: np.ndarray, failure: Exception | None, placement: Placement) -> bool:
    """Whether all processes have come to their end, or one has failed: then this one stops as well."""
    failed = placement.failed_processes(states)
    if failure is None:
        placement.stop_if_failed(failed, "while the others went on")
    return bool(failed) or not states.any()


def _named(path: Any) -> str:
    name = path if isinstance(path, str) else jax.tree_util.keystr(path)
    return name or "its top"


def _shown(
    results: Iterator[tuple[int, Any]], show: bool, total: int | None, count: int | None
) -> Iterator[Any]:
    """The results, with a progress bar."""
    if not show:
        for _, result in results:
            if result is not _SKIPPED:
                yield result
        return
    with bar("explaining", total, rate="rows", stderr=True) as shown:
        for rows, result in results:
            if shown.total is None and count is not None:
                shown.total = rows * count
            shown.advance(rows)
            if result is not _SKIPPED:
                yield result
        shown.total = shown.done
