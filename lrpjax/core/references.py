"""Plain writings of JAX's own kernels, which are traced in their place: rules are for what they compute.

A kernel is recognised by the name of its function and by the file of JAX that the function stands in, so that a
user's function of the same name is left alone. What a writing here does not cover (residuals that are returned,
dropout, packed sequences) is not exchanged, and so refused.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core import compat
from lrpjax.core.graph import Call


def find(call: Call) -> Callable | None:
    """The plain writing of a kernel of JAX's own, as a function of the call's arrays; None for other calls."""
    known = KERNELS.get(call.name)
    if known is None or not call.derived or "bwd" not in call.eqn.params:
        return None
    places, reference = known
    if compat.defined_in(call.eqn.params["call_jaxpr"]) not in places:
        return None
    static, tree, batched = compat.arguments_of(call.eqn)
    if tree is None:
        return None
    consts = call.eqn.params["num_consts"]

    def plain(*arrays: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return reference(jax.tree.unflatten(tree, arrays), static)

    for dims in batched[::-1]:  # the innermost vmap first
        plain = jax.vmap(plain, in_axes=tuple(dims[consts:]))
    return lambda *arrays: plain(*arrays[consts:])


def wants_static(reference: Callable) -> bool:
    """Whether a function takes the static arguments of a call, by the keyword `static`."""
    try:
        return "static" in inspect.getfullargspec(reference).kwonlyargs
    except TypeError:  # no function of Python
        return False


def with_static(reference: Callable, call: Call) -> Callable:
    """A function of the call's arrays that is given the static arguments too."""
    static = compat.arguments_of(call.eqn)[0]
    return lambda *arrays: reference(*arrays, static=static)


class NotCovered(Exception):
    """The kernel was called in a way that the plain writing is not for."""


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    scale: float = 1.0,
    bias: jax.Array | None = None,
    cap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale (q kᵀ + bias)) v, for q [..., T, D], k [..., S, D], v [..., S, E]. cap: scores are bounded by
    cap · tanh(score / cap). sinks: a score for each head that stands for nothing."""
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=wide)
    if bias is not None:
        scores = scores + bias.astype(wide)
    if scale != 1.0:
        scores = scores * jnp.asarray(scale, wide)
    if cap is not None:
        scores = jnp.tanh(scores / cap) * cap
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.asarray(-0.7 * float(jnp.finfo(wide).max), wide))
    if sinks is not None:
        extra = jnp.broadcast_to(sinks.astype(wide)[:, None, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, extra], -1)
    weights = jax.nn.softmax(scores, -1)
    weights = weights if sinks is None else weights[..., :-1]
    return jnp.einsum("...ts,...se->...te", weights.astype(v.dtype), v, preferred_element_type=wide)


def _causal(queries: int, keys: int) -> jax.Array:
    return jnp.arange(queries)[:, None] >= jnp.arange(keys)[None, :]


def _both(*masks: jax.Array | None) -> jax.Array | None:
    given = [m for m in masks if m is not None]
    return functools.reduce(jnp.logical_and, given) if given else None


def _like_heads(q: jax.Array, kv: jax.Array) -> jax.Array:
    """Keys or values [..., K, S, D] for each head of the queries [..., N, T, D]."""
    return jnp.repeat(kv, q.shape[-3] // kv.shape[-3], -3)


def _gpu_attention(arguments: tuple, static: tuple) -> jax.Array:
    q, k, v, segments = arguments
    scale, causal, *_, residuals = static
    if residuals:
        raise NotCovered
    same = None if segments is None else (segments[:, :, None] == segments[:, None, :])[:, None]
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    mask = _both(_causal(q.shape[2], k.shape[2]) if causal else None, same)
    return jnp.swapaxes(attend(q, k, v, mask, scale), 1, 2).astype(q.dtype)


def _tpu_attention(arguments: tuple, static: tuple) -> jax.Array:
    q, k, v, bias, segments = arguments
    residuals, causal, scale = static[:3]
    if residuals:
        raise NotCovered
    same = None if segments is None else (segments[0][:, :, None] == segments[1][:, None, :])[:, None]
    mask = _both(_causal(q.shape[2], k.shape[2]) if causal else None, same)
    return attend(q, k, v, mask, scale, bias).astype(q.dtype)


def _splash_attention(arguments: tuple, static: tuple) -> jax.Array:
    info, _, _, q, k, v, segments, sinks = arguments
    residuals, _, one_head, sizes, _, function, cap = static[:7]
    if residuals:
        raise NotCovered
    k, v = (a[None] if one_head else a for a in (k, v))
    same = None if segments is None else segments[0][:, None] == segments[1][None, :]
    mask = _both(_dense(info, function, q.shape[-2], k.shape[-2], sizes), same)
    return attend(q, _like_heads(q, k), _like_heads(q, v), mask, cap=cap, sinks=sinks).astype(q.dtype)


def _dense(info: Any, function: Callable | None, queries: int, keys: int, sizes: Any) -> jax.Array | None:
    """The mask [heads or 1, T, S] that splash attention keeps as blocks, or None if nothing is masked."""
    if function is not None:
        return jnp.asarray(function(jnp.asarray(info.q_sequence)[:, None], jnp.arange(keys)[None, :]))
    if info.block_mask is None:
        return None
    kinds, (height, width) = jnp.asarray(info.block_mask), (sizes.block_q, sizes.block_kv)
    blocks = info.partial_mask_blocks
    heads, rows, places = kinds.shape
    chosen = jnp.broadcast_to((kinds == 2)[..., None, None], (*kinds.shape, height, width))
    if blocks is not None and info.mask_next is not None:
        if blocks.ndim != 3 or blocks.shape[1:] != (height, width):
            raise NotCovered
        partial = jnp.asarray(blocks)[jnp.asarray(info.mask_next).astype(jnp.int32)].astype(bool)
        chosen = jnp.where((kinds == 1)[..., None, None], partial, chosen)
    columns = jnp.arange(places) if info.data_next is None else jnp.asarray(info.data_next).astype(jnp.int32)
    columns = jnp.broadcast_to(columns, kinds.shape)
    h, i, _ = np.indices(kinds.shape)
    dense = jnp.zeros((heads, rows, keys // width, height, width), bool).at[h, i, columns].max(chosen)
    return dense.transpose(0, 1, 3, 2, 4).reshape(heads, queries, keys)


def _cudnn_attention(arguments: tuple, static: tuple) -> Sequence[jax.Array] | jax.Array:
    q, k, v, bias, q_lengths, k_lengths, q_offsets, k_offsets, q_table, k_table = arguments[:10]
    if len(arguments) > 10 and static[7] is not None:  # newer versions of JAX take a function of the scores
        raise NotCovered
    scale, _, dropout, variadic, kind, layout, window, *_ = static
    kind = int(getattr(kind, "value", kind))
    padded, causal, slopes = kind in (1, 3), kind in (2, 3), kind == 4
    packed = any(a is not None and a.size for a in (q_offsets, k_offsets, q_table, k_table))
    if static[-1] or dropout or slopes or packed:
        raise NotCovered
    swapped = layout == 0
    q, k, v = (jnp.swapaxes(a, 1, 2) if swapped else a for a in (q, k, v))
    queries, keys = q.shape[2], k.shape[2]
    behind = jnp.arange(queries)[:, None] - jnp.arange(keys)[None, :]
    near = None if not window else (behind >= 0) & (behind < window)
    inside = None
    if padded:
        inside = (jnp.arange(keys)[None, :] < k_lengths.reshape(-1, 1))[:, None, None, :]
    mask = _both(_causal(queries, keys) if causal else None, near, inside)
    # the bias is not scaled
    bias = bias.astype(jnp.float32) / scale if variadic[0] else None
    out = attend(q, _like_heads(q, k), _like_heads(q, v), mask, scale, bias)
    if padded:
        rows = (jnp.arange(queries)[None, :] < q_lengths.reshape(-1, 1))[:, None, :, None]
        out = jnp.where(rows, out, 0.0)
    return (jnp.swapaxes(out, 1, 2) if swapped else out).astype(q.dtype)


def _grouped_product(arguments: tuple, static: tuple) -> jax.Array:
    x, w, sizes, *rest = arguments
    if any(r is not None for r in rest):
        raise NotCovered
    dtype, _, transposed, _ = static
    w = jnp.swapaxes(w, 1, 2) if transposed else w
    return jax.lax.ragged_dot(x, w, sizes, preferred_element_type=dtype)


_OPS = "experimental/pallas/ops/"
KERNELS: dict[str, tuple[tuple[str, ...], Callable]] = {
    "mha": ((_OPS + "gpu/attention.py",), _gpu_attention),
    "_flash_attention": ((_OPS + "tpu/flash_attention.py",), _tpu_attention),
    "_splash_attention_custom": (
        (_OPS + "tpu/splash_attention/splash_attention_kernel.py",),
        _splash_attention,
    ),
    "_dot_product_attention": (("_src/cudnn/fused_attention_stablehlo.py",), _cudnn_attention),
    "gmm": ((_OPS + "tpu/megablox/gmm.py",), _grouped_product),
}
"""By the name of its function, where a kernel stands in JAX, and its plain writing: a function of the arguments that
are arrays, in their order, and of those that are static."""
