"""Language models at length: the relevance of every earlier token for every token that a decoder generated.

A decoder says at position t − 1 which token comes at position t. Its logit of the token that did come, z_t, is what is
explained (Achtibat et al. 2024, AttnLRP, explain a language model's next token so): Σ_j R_tj = z_t, up to what biases
and stabilisers absorb, with R_tj the relevance of token j < t, summed over the components of its embedding. All
generated tokens are explained from one forward pass over the whole text, in which a decoder's causal mask hides from
position t − 1 what comes after it; the backward passes are vmapped, a few at a time.

Two things of a long text are large: the logits, [T, V], and the output relevances that the backward passes begin with,
which are as large for each of them. With `unembed`, neither is ever made: the model gives the last hidden values [T,
D], and of the unembedding [D, V] only the columns of the tokens that are explained are used. What else is asked of all
the vocabulary, `next_tokens` computes a block of it at a time.

Functions here take one text, ids [T]. For several of one length, `jax.vmap` them.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lrpjax import _chosen
from lrpjax._evaluate import check_range, map_batched
from lrpjax.composites import Composite
from lrpjax.core.program import Program
from lrpjax.core.seeds import shapes_of
from lrpjax.errors import InputError, PathError, TargetError


def token_relevance(
    f: Callable,
    composite: Composite | None,
    ids: Any,
    *,
    at: str | Sequence[str],
    start: int = 1,
    unembed: Any = None,
    bias: Any = None,
    against: Any = None,
    seeds: int = 8,
) -> Any:
    """The relevance of every token of a text for the logit of each generated token, from one forward pass.

    Args:
        f: ids [T] -> logits [T, V]; those at position t − 1 are for the token at position t. With `unembed`: ids [T] ->
            hidden values [T, D], of which the logits are hidden @ unembed + bias. A model that takes batches is
            `lambda ids: model(ids[None])[0]`.
        composite: which rule for which unit, such as `lrpjax.composites.attnlrp()`. None: each kind's default.
        ids: the whole text, prompt and generated tokens, int [T].
        at: where relevance is read, as in `lrpjax.relevance`: the path (or tag) of the embedding, or of the residual
            stream in a layer. Several paths, or a glob, give a dict. The value there is [T, …], with axes of length one
            in front if need be; in a scan over layers it is that of every layer. Axes behind T are summed.
        start: the position of the first generated token, 1 … T − 1: N = T − start tokens are explained.
        unembed: the unembedding [D, V], or None where f gives logits. No array of T × V elements is made then.
        bias: of the unembedding, [V], or None.
        against: what the logit of a generated token is compared with: R is the relevance of the one logit less that of
            the other. An int, or ints [N]: that token. "mean": the mean over the vocabulary, for which with `unembed`
            the mean of the columns is one more column: the same up to the stabiliser of the unembedding's rule.
        seeds: how many tokens are explained at once. Memory grows with it, and on accelerators speed.

    Returns:
        Relevance [N, T], in the dtype of the value at `at`: that of token j for the generated token start + n. In a
            scan over L layers [N, L, T]. With several paths a dict of them. Zero for tokens that come later, in a
            causal model; NaN for tokens that are not in the vocabulary, where ids are traced. With the gradient family
            of composites sums of derivatives.

    Raises:
        InputError: ids are not integers [T]. TargetError: `start` or `seeds` is out of range, f's output does not fit
            ids or `unembed`, or `against` no token. PathError: `at` names nothing, or a value without an axis for the T
            tokens. And what `lrpjax.relevance` raises.

    Example:
        A model that adds up what it has read so far. The token 2 comes after 0 and 1, which say 1 and 4 for it:

        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import language
        >>> table = jnp.array([[1.0, 0.0], [2.0, 2.0], [0.0, 1.0]])
        >>> unembed = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
        >>> def f(ids):
        ...     return jnp.cumsum(lrpjax.tag(table[ids], "embedded"), 0) @ unembed
        >>> ids = jnp.array([0, 1, 2, 1])
        >>> print(language.token_relevance(f, None, ids, at="embedded", start=2).round(2))
        [[1. 4. 0. 0.]
         [0. 2. 1. 0.]]

        The same without the logits of all tokens at all positions:

        >>> hidden = lambda ids: jnp.cumsum(lrpjax.tag(table[ids], "embedded"), 0)
        >>> print(language.token_relevance(hidden, None, ids, at="embedded", start=2, unembed=unembed).round(2))
        [[1. 4. 0. 0.]
         [0. 2. 1. 0.]]
    """
    return value_and_token_relevance(
        f,
        composite,
        ids,
        at=at,
        start=start,
        unembed=unembed,
        bias=bias,
        against=against,
        seeds=seeds,
    )[1]


def value_and_token_relevance(
    f: Callable,
    composite: Composite | None,
    ids: Any,
    *,
    at: str | Sequence[str],
    start: int = 1,
    unembed: Any = None,
    bias: Any = None,
    against: Any = None,
    seeds: int = 8,
) -> tuple[jax.Array, Any]:
    """As `token_relevance`, returning (the explained logits [N], relevance), in the manner of `jax.value_and_grad`.

    The logits are those of the generated tokens, less those that they are compared with.

    Example:
        >>> import jax.numpy as jnp, lrpjax
        >>> from lrpjax import language
        >>> f = lambda ids: jnp.cumsum(lrpjax.tag(jnp.eye(2)[ids], "embedded"), 0) @ jnp.array([[1.0, 3.0], [4.0, 5.0]])
        >>> z, R = language.value_and_token_relevance(f, None, jnp.array([0, 1, 0]), at="embedded", against=0)
        >>> print(z, R.sum(-1).round(2))
        [2. 0.] [2. 0.]
    """
    ids = _checked_ids(ids)
    length = len(ids)
    start = _checked_int("start", start, 1, length - 1)
    seeds = _checked_int("seeds", seeds, 1, None)
    count = length - start
    against = _checked_against(against, count)
    if bias is not None and unembed is None:
        raise TargetError("bias is that of the unembedding: give `unembed` as well, or leave it out")
    # Held fixed, and no argument of the function that is explained: a column of the unembedding is a weight, and not,
    # as a row of the embedding, what relevance goes to.
    chosen = lax.stop_gradient(ids)[start:]
    if unembed is None:
        run, size = f, None
    else:
        unembed, bias = _checked_unembedding(unembed, bias)
        size = unembed.shape[1]
        _check_tokens(ids, against, size)

        def run(ids):
            hidden = f(ids)
            _check_output(hidden, length, "hidden values", "D", unembed.shape[0])
            hidden = hidden[start - 1 : length - 1]
            with jax.named_scope("unembed"):
                return _scores(hidden, unembed, bias, chosen, against)

    program = Program(run, _chosen.chosen(composite, "language.token_relevance"), (ids,), {}, 0, at, False)
    loops = _checked_places(program, length)
    y, _, pull = program.linearise()
    if size is None:
        _check_output(y, length, "logits", "V", None)
        size = y.shape[-1]
        _check_tokens(ids, against, size)
    known = _in_vocabulary(chosen, size)
    if isinstance(against, jax.Array):
        known &= _in_vocabulary(against, size)
    method = program.composite.method
    if unembed is None:
        scores, seed = _seeds_of_logits(y, start, chosen, against, known, method)
    else:
        scores, seed = _seeds_of_scores(y, known, method)

    def explain(n):
        found = pull(seed(n))
        return (
            _summed(found, loops[None])
            if program.single
            else {k: _summed(v, loops[k]) for k, v in found.items()}
        )

    return scores, map_batched(explain, jnp.arange(count), seeds)


def _seeds_of_scores(y: dict, known: jax.Array, method: str) -> tuple[jax.Array, Callable]:
    """The explained logits, and n -> the output relevance of the n-th of them, where f's output are these logits."""
    sign = {"chosen": 1, "against": -1}
    weight = {name: sign[name] * _weight(v, method, known) for name, v in y.items()}
    scores = y["chosen"] - y["against"] if "against" in y else y["chosen"]
    pick = lambda v, n: jnp.where(jnp.arange(len(v)) == n, v, jnp.zeros_like(v))
    return scores, lambda n: {name: pick(v, n) for name, v in weight.items()}


def _seeds_of_logits(
    y: jax.Array, start: int, chosen: jax.Array, against: Any, known: jax.Array, method: str
) -> tuple[jax.Array, Callable]:
    """The same where f's output are the logits [T, V]."""
    size = y.shape[-1]
    logits = y[start - 1 : -1]
    tokens = [(jnp.clip(chosen, 0, size - 1), 1)]
    if isinstance(against, jax.Array):
        tokens += [(jnp.clip(against, 0, size - 1), -1)]
    values = [sign * jnp.take_along_axis(logits, t[:, None], 1)[:, 0] for t, sign in tokens]
    scores = sum(values[1:], values[0])
    scores = scores - logits.mean(-1) if isinstance(against, str) else scores
    weights = [sign * _weight(sign * v, method, known) for v, (_, sign) in zip(values, tokens, strict=True)]

    def seed(n):
        row = jnp.zeros_like(logits[0])
        for weight, (t, _) in zip(weights, tokens, strict=True):
            row = row.at[t[n]].add(weight[n])
        if isinstance(against, str):
            row = row - _weight(logits[n], method) / size
        return lax.dynamic_update_index_in_dim(jnp.zeros_like(y), row, start - 1 + n, 0)

    return scores, seed


def _weight(z: jax.Array, method: str, known: Any = True) -> jax.Array:
    """What a logit begins with: its value or, in the gradient family, 1; NaN for what is no token."""
    return jnp.where(known, z if method == "relevance" else jnp.ones_like(z), jnp.full_like(z, jnp.nan))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NextTokens:
    """What a model says of the token that comes after each of N positions.

    logsumexp: log Σ_v exp z_v, [N]. mean: of the logits, [N]. tokens: the k likeliest, int [N, k], the first the
    likeliest. logits, probabilities: theirs, [N, k]. logit, log_probability: those of the tokens that were asked for,
    [N], or None. rank: how many tokens have a larger logit than the one that was asked for, int [N], or None.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import language
        >>> said = language.next_tokens(jnp.ones((1, 1)), jnp.array([[0.0, 2.0, 1.0]]), ids=[2], k=2)
        >>> print(said.tokens, said.logits, said.logit, said.rank)
        [[1 2]] [[2. 1.]] [1.] [1]
    """

    logsumexp: jax.Array
    mean: jax.Array
    tokens: jax.Array
    logits: jax.Array
    probabilities: jax.Array
    logit: jax.Array | None
    log_probability: jax.Array | None
    rank: jax.Array | None


def next_tokens(
    hidden: Any,
    unembed: Any,
    bias: Any = None,
    *,
    ids: Any = None,
    k: int = 5,
    block: int = 4096,
) -> NextTokens:
    """The likeliest next tokens, and the probabilities of given ones, from hidden values and the unembedding: a block
    of the vocabulary at a time, so that the logits [N, V] are never there as a whole.

    z = h W + b, p_v = exp(z_v) / Σ_u exp(z_u), whose sum is kept relative to the largest logit so far (the online
    softmax of Milakov and Gimelshein 2018).

    Args:
        hidden: [N, D]; of a text, `f(ids)[start - 1 : -1]` are those that the tokens from `start` on were said by.
        unembed: [D, V].
        bias: [V], or None.
        ids: tokens whose probabilities are asked for, int [N], or None.
        k: how many of the likeliest tokens, 1 … V.
        block: how many tokens of the vocabulary at a time.

    Returns:
        `NextTokens`, whose numbers are float32, or float64 where hidden is.

    Raises:
        TargetError: the shapes do not fit each other, or k, block or ids are out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import language
        >>> said = language.next_tokens(jnp.array([[2.0], [-1.0]]), jnp.array([[1.0, 2.0, 4.0]]), k=1, block=2)
        >>> print(said.tokens[:, 0], said.logits[:, 0], (100 * said.probabilities[:, 0]).astype(int), "percent")
        [2 0] [ 8. -1.] [97 70] percent
    """
    hidden = jnp.asarray(hidden)
    unembed, bias = _checked_unembedding(unembed, bias)
    width, size = unembed.shape
    if hidden.ndim != 2 or hidden.shape[1] != width or not jnp.issubdtype(hidden.dtype, jnp.floating):
        raise TargetError(
            f"hidden values of shape [N, {width}] fit an unembedding of shape [{width}, {size}], but these are "
            f"{hidden.dtype}{list(hidden.shape)}"
        )
    k = _checked_int("k", k, 1, size)
    block = min(_checked_int("block", block, 1, None), size)
    dtype = jnp.float64 if hidden.dtype == jnp.float64 else jnp.float32
    count = len(hidden)
    logit, wanted = None, jnp.full(count, -1)
    if ids is not None:
        wanted = jnp.asarray(ids)
        if wanted.shape != (count,) or not jnp.issubdtype(wanted.dtype, jnp.integer):
            raise TargetError(f"ids are {count} integers, but these are {wanted.dtype}{list(wanted.shape)}")
        check_range("ids", ids, size, TargetError)
        logit = _scores(hidden.astype(dtype), unembed, bias, wanted, None)["chosen"]
        logit = jnp.where(_in_vocabulary(wanted, size), logit, jnp.nan)
    bar = jnp.full(count, jnp.inf, dtype) if logit is None else logit
    low = jnp.asarray(-jnp.inf, dtype)

    def step(state, number):
        top, tokens, largest, total, plain, above = state
        # The last block begins earlier, so that all have one size, and leaves out what was counted already.
        first = jnp.minimum(number * block, size - block)
        columns = first + jnp.arange(block)
        z = hidden.astype(dtype) @ lax.dynamic_slice_in_dim(unembed, first, block, 1).astype(dtype)
        if bias is not None:
            z = z + lax.dynamic_slice_in_dim(bias, first, block, 0).astype(dtype)
        new = columns >= number * block
        z, plain = jnp.where(new, z, low), plain + jnp.where(new, z, jnp.zeros_like(z)).sum(-1)
        above = above + ((z > bar[:, None]) & (columns != wanted[:, None])).sum(-1, dtype=jnp.int32)
        larger = jnp.maximum(largest, z.max(-1))
        total = total * jnp.exp(largest - larger) + jnp.exp(z - larger[:, None]).sum(-1)
        top, places = lax.top_k(jnp.concatenate([top, z], 1), k)
        rows = jnp.broadcast_to(columns.astype(jnp.int32), z.shape)
        tokens = jnp.take_along_axis(jnp.concatenate([tokens, rows], 1), places, 1)
        return (top, tokens, larger, total, plain, above), None

    nothing = jnp.zeros(count, dtype)
    lowest = jnp.full(count, jnp.finfo(dtype).min, dtype)
    before = (jnp.full((count, k), low), jnp.zeros((count, k), jnp.int32), lowest, nothing, nothing)
    numbers = jnp.arange(math.ceil(size / block))
    state, _ = lax.scan(step, (*before, jnp.zeros(count, jnp.int32)), numbers)
    top, tokens, largest, total, plain, above = state
    normaliser = largest + jnp.log(total)
    return NextTokens(
        normaliser,
        plain / size,
        tokens,
        top,
        jnp.exp(top - normaliser[:, None]),
        logit,
        None if logit is None else logit - normaliser,
        None if logit is None else above,
    )


def _scores(hidden: jax.Array, unembed: jax.Array, bias: Any, tokens: jax.Array, against: Any) -> dict:
    """The logits of one token for each of the hidden values [N, D], and of that which it is compared with, [N]."""
    hidden_dot = lambda columns: jnp.einsum("nd,dn->n", hidden, columns.astype(hidden.dtype))

    def score(pick):
        z = hidden_dot(pick(unembed))
        return z if bias is None else z + pick(bias).astype(z.dtype)

    scores = {"chosen": score(lambda v: jnp.take(v, tokens, -1, mode="clip"))}
    if isinstance(against, str):
        mean = lambda v: jnp.broadcast_to(v.mean(-1)[..., None], (*v.shape[:-1], len(tokens)))
        scores["against"] = score(mean)
    elif against is not None:
        scores["against"] = score(lambda v: jnp.take(v, against, -1, mode="clip"))
    return scores


def _summed(R: jax.Array, loops: tuple[int, int]) -> jax.Array:
    """Relevance with an axis for the tokens last, behind those of the loops; axes of length one between are dropped."""
    stacked, tokens = loops
    shape = R.shape
    return R.reshape(*shape[:stacked], shape[tokens], -1).sum(-1)


def _checked_places(program: Program, length: int) -> dict:
    """For each path, how many axes are those of loops, and which is that of the tokens."""
    found = {}
    for path, value in program.taps.items():
        own, shape = value.shape, program.shape_of(value)
        stacked = len(shape) - len(own)
        ones = next((i for i, n in enumerate(own) if n != 1), len(own))
        if own[ones : ones + 1] != (length,):
            raise PathError(
                f"the value at {path!r} has shape {list(own)}: it must have an axis for the {length} tokens, with "
                "none but axes of length one before it"
            )
        found[path] = (stacked, stacked + ones)
    if program.single:
        found[None] = next(iter(found.values()))
    return found


def _checked_ids(ids: Any) -> jax.Array:
    try:
        ids = jnp.asarray(ids)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"ids must be integers of shape [T], but no array can be made of them ({error})"
        ) from None
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(
            f"ids must be integers of shape [T], one text, but are {ids.dtype}{list(ids.shape)}: "
            "map over texts with jax.vmap"
        )
    if len(ids) < 2:
        raise InputError(
            f"a text of {len(ids)} tokens has none that comes after another: ids must be two or more"
        )
    return ids


def _checked_int(name: str, value: Any, low: int, high: int | None) -> int:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        most = f"from {low} to {high}" if high is not None else f"and at least {low}"
        raise TargetError(f"{name} must be an integer {most}, but is {value!r}")
    return int(value)


def _checked_against(against: Any, count: int) -> Any:
    if against is None or (isinstance(against, str) and against == "mean"):
        return against
    if not isinstance(against, str):
        try:
            tokens = jnp.asarray(against)
        except (TypeError, ValueError):
            tokens = None
        if (
            tokens is not None
            and jnp.issubdtype(tokens.dtype, jnp.integer)
            and tokens.shape in ((), (count,))
        ):
            return jnp.broadcast_to(tokens, (count,))
    raise TargetError(
        f"against must be 'mean', a token (int) or {count} tokens, one for each that is explained, but is {against!r}"
    )


def _checked_unembedding(unembed: Any, bias: Any) -> tuple[jax.Array, jax.Array | None]:
    unembed = jnp.asarray(unembed)
    if unembed.ndim != 2 or not jnp.issubdtype(unembed.dtype, jnp.floating):
        raise TargetError(
            f"unembed must be floating-point numbers of shape [D, V], but is {unembed.dtype}{list(unembed.shape)}"
        )
    if bias is not None:
        bias = jnp.asarray(bias)
        if bias.shape != unembed.shape[1:]:
            raise TargetError(
                f"bias has shape {list(bias.shape)}, but an unembedding of shape {list(unembed.shape)} takes "
                f"{list(unembed.shape[1:])}"
            )
    return unembed, bias


def _check_tokens(ids: jax.Array, against: Any, size: int) -> None:
    check_range("ids", ids, size, TargetError)
    if isinstance(against, jax.Array):
        check_range("against", against, size, TargetError)


def _in_vocabulary(tokens: jax.Array, size: int) -> jax.Array:
    # The number of tokens may be more than a small integer type holds.
    tokens = tokens.astype(jnp.int32) if tokens.dtype.itemsize < 4 else tokens
    return (tokens >= 0) & (tokens < size)


def _check_output(y: Any, length: int, what: str, letter: str, size: int | None) -> None:
    last = letter if size is None else size
    if not hasattr(y, "shape") or len(y.shape) != 2 or y.shape[0] != length or size not in (None, y.shape[1]):
        batch = " (take [0] of a batch of one text)" if getattr(y, "ndim", 0) == 3 else ""
        raise TargetError(
            f"f must give {what} of shape [{length}, {last}] for {length} ids, but gives {shapes_of(y)}{batch}"
        )
