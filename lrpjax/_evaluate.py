"""Calling the user's functions many times: compiled, a batch at a time, on checked arguments."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial
from jax.typing import ArrayLike

from lrpjax.errors import TargetError

Target = str | int | ArrayLike | None


def as_callable(f: Callable) -> Any:
    """`f` as a pytree: itself if it is one (its arrays are then traced), else wrapped as static."""
    return Partial(f) if jax.tree_util.all_leaves([f]) else f


@jax.jit
def apply(f, *args):
    """f(*args), compiled; used everywhere so that each function is traced once per shape."""
    return f(*args)


def target_index(scores: jax.Array, target: Target) -> jax.Array | None:
    """Class of every sample, int [B], or None where the scores [B] are of one class already."""
    if target is None:
        if scores.ndim != 1:
            raise TargetError(f"with target=None f must return scores [B], not {scores.shape}")
        return None
    if scores.ndim != 2:
        raise TargetError(f"f must return scores [B, classes], not {scores.shape}")
    count, classes = scores.shape
    if isinstance(target, str):
        if target != "max":
            raise TargetError(f"target must be 'max', an integer, integers [B] or None, not {target!r}")
        return jnp.argmax(scores, -1)
    index = target if isinstance(target, Tracer) else np.asarray(target)
    if not jnp.issubdtype(index.dtype, jnp.integer) or index.shape not in ((), (count,)):
        kind = f"{index.dtype} of shape {index.shape}"
        raise TargetError(f"target must be an integer or {count} integers, one for each sample, not {kind}")
    check_range("target", index, classes, TargetError)
    return jnp.broadcast_to(jnp.asarray(index), (count,))


def read(scores: jax.Array, index: jax.Array | None) -> jax.Array:
    """The score [B] of every sample's class."""
    return scores if index is None else jnp.take_along_axis(scores, index[:, None], axis=1)[:, 0]


def map_batched(f: Callable[..., Any], seeds: jax.Array, batch: int) -> Any:
    """[f(seed) for seed in seeds], stacked, at most `batch` of them at a time."""
    chunks, valid = _chunks(seeds, batch)
    out = jax.lax.map(jax.vmap(f), chunks)
    return jax.tree.map(lambda v: v.reshape(valid.size, *v.shape[2:])[: len(seeds)], out)


def sum_batched(f: Callable, seeds: jax.Array, batch: int) -> Any:
    """Σ f(seed) over seeds, at most `batch` of them at a time; holds one sum and no stack of results."""
    chunks, valid = _chunks(seeds, batch)

    def add(total, chunk):
        seeds, valid = chunk
        masked = lambda v: jnp.where(valid.reshape(-1, *(1,) * (v.ndim - 1)), v, jnp.zeros_like(v))
        return jax.tree.map(lambda t, v: t + masked(v).sum(0, dtype=v.dtype), total, jax.vmap(f)(seeds)), None

    zero = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), jax.eval_shape(f, seeds[0]))
    return jax.lax.scan(add, zero, (chunks, jnp.asarray(valid)))[0]


def _chunks(seeds: jax.Array, batch: int) -> tuple[jax.Array, np.ndarray]:
    """`seeds` as [chunks, size, ...], and which of them are meant.

    Chunks have one size, the last seed being repeated if need be: `jax.lax.map(batch_size=...)` would
    compile f a second time for the remainder, which costs more than a few superfluous evaluations."""
    check_positive("batch", batch)
    count = len(seeds)
    chunks = -(-count // batch)
    size = -(-count // chunks)
    index = np.arange(chunks * size).reshape(chunks, size)
    return seeds[np.minimum(index, count - 1)], index < count


def fill_like(fill: ArrayLike, x: jax.Array, name: str = "fill") -> jax.Array:
    """`fill` in the dtype of x, checked to broadcast to it."""
    fill = jnp.asarray(fill, x.dtype)
    check_broadcast(name, fill.shape, x.shape)
    return fill


def check_broadcast(name: str, shape: tuple[int, ...], onto: tuple[int, ...]) -> None:
    """Raises ValueError unless `shape` broadcasts to exactly `onto`."""
    try:
        fits = jnp.broadcast_shapes(shape, onto) == onto
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} has shape {shape}, which does not broadcast to {onto}")


def check_range(name: str, values: ArrayLike, size: int, error: type[ValueError] = ValueError) -> None:
    """Raises `error` if concrete `values` leave 0 … size − 1 (indexing would clamp them silently)."""
    if isinstance(values, Tracer):
        return
    values = np.asarray(values)  # jax.numpy would stage the comparison under jit
    if values.size and (values.min() < 0 or values.max() >= size):
        raise error(f"{name} must lie in 0 … {size - 1}, not {values.min()} … {values.max()}")


def check_positive(name: str, value: int) -> None:
    """Raises ValueError unless `value` is at least 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
