"""Attention in blocks, with a running maximum, is explained as softmax(q kᵀ) v: the oracle is that in one piece."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites

close = functools.partial(helpers.close, of_largest=True)
pytestmark = pytest.mark.filterwarnings("ignore::lrpjax.UnmatchedWarning")

COMPOSITES = {
    "norms": helpers.NORMS,
    "epsilon": composites.epsilon(0.0),
    "attnlrp": composites.attnlrp(0.0),
    "cp_lrp": composites.cp_lrp(0.0),
    "input_x_gradient": composites.input_x_gradient(),
}
RNG = np.random.default_rng(0)
X, TARGET = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4))
QUERIES, KEYS, VALUES = RNG.normal(size=(3, 4, 4))
MASK = np.tril(np.ones((6, 6), bool))
BLOCKS = 3
SINK = 0.3


def projected(x):
    return [x @ w.astype(x.dtype) for w in (QUERIES / 2, KEYS, VALUES)]


def blocks(a):
    return a.reshape(BLOCKS, -1, *a.shape[1:])


MASKS = np.stack(np.split(MASK, BLOCKS, 1))


def usual(x, masked=False, sink=False):
    q, k, v = projected(x)
    s = q @ k.T
    if masked:
        s = jnp.where(MASK, s, -jnp.inf)
    if sink:
        s = jnp.concatenate([s, jnp.full((6, 1), SINK, s.dtype)], -1)
    return jax.nn.softmax(s)[:, :6] @ v


def start(x, low=-jnp.inf):
    return jnp.full(6, low, x.dtype), jnp.zeros(6, x.dtype), jnp.zeros((6, 4), x.dtype)


def step(q, exp=jnp.exp, safe=False):
    """One block: the carry is (m, Σ exp(s − m), Σ exp(s − m) v)."""

    def body(carry, block):
        m, l, total = carry
        k, v, *mask = block
        s = q @ k.T
        s = s * 1.4426950408889634 if exp is jnp.exp2 else s
        s = jnp.where(mask[0], s, -jnp.inf) if mask else s
        larger = jnp.maximum(m, s.max(-1))
        m_used = jnp.where(jnp.isfinite(larger), larger, 0) if safe else larger
        rescaled, e = exp(m - m_used), exp(s - m_used[:, None])
        return (larger, rescaled * l + e.sum(-1), rescaled[:, None] * total + e @ v), None

    return body


def scanned(x, low=-jnp.inf, wrap=lambda f: f, masked=False, begin=None, reverse=False, **how):
    q, k, v = projected(x)
    given = (blocks(k), blocks(v), jnp.asarray(MASKS)) if masked else (blocks(k), blocks(v))
    return lax.scan(wrap(step(q, **how)), begin or start(x, low), given, reverse=reverse)[0]


def divided(x, **how):
    _, l, total = scanned(x, **how)
    return total / l[:, None]


def normalised(x):  # FA1
    q, k, v = projected(x)

    def body(c, kb):
        m, l, o = c
        k, v = kb
        s = q @ k.T
        mb = s.max(-1)
        p = jnp.exp(s - mb[:, None])
        lb = p.sum(-1)
        mn = jnp.maximum(m, mb)
        a = jnp.exp(m - mn)
        b = jnp.exp(mb - mn)
        ln = a * l + b * lb
        o = ((l * a)[:, None] * o + b[:, None] * (p @ v)) / ln[:, None]
        return (mn, ln, o), None

    return lax.scan(body, start(x), (blocks(k), blocks(v)))[0][2]


def normalised2(x):
    q, k, v = projected(x)

    def body(c, kb):
        m, l, o = c
        k, v = kb
        s = q @ k.T
        mn = jnp.maximum(m, s.max(-1))
        a = jnp.exp(m - mn)
        p = jnp.exp(s - mn[:, None])
        ln = a * l + p.sum(-1)
        o = o * (a * l / ln)[:, None] + (p / ln[:, None]) @ v
        return (mn, ln, o), None

    return lax.scan(body, start(x), (blocks(k), blocks(v)))[0][2]


def normalised3(x):
    q, k, v = projected(x)

    def body(c, kb):
        m, l, o = c
        k, v = kb
        s = q @ k.T
        mn = jnp.maximum(m, s.max(-1))
        a = jnp.exp(m - mn)
        p = jnp.exp(s - mn[:, None])
        ln = a * l + p.sum(-1)
        inv = 1 / ln
        o = inv[:, None] * (o * (a * l)[:, None] + p @ v)
        return (mn, ln, o), None

    return lax.scan(body, start(x), (blocks(k), blocks(v)))[0][2]


def stopped(x):
    q, k, v = projected(x)

    def body(c, kb):
        m, l, acc = c
        k, v = kb
        s = q @ k.T
        mn = lax.stop_gradient(jnp.maximum(m, s.max(-1)))
        a = jnp.exp(m - mn)
        p = jnp.exp(s - mn[:, None])
        return (mn, a * l + p.sum(-1), a[:, None] * acc + p @ v), None

    _, l, a = lax.scan(body, start(x), (blocks(k), blocks(v)))[0]
    return a / l[:, None]


def nomax(x):
    q, k, v = projected(x)

    def body(c, kb):
        l, acc = c
        k, v = kb
        p = jnp.exp(q @ k.T)
        return (l + p.sum(-1), acc + p @ v), None

    l, a = lax.scan(body, start(x)[1:], (blocks(k), blocks(v)))[0]
    return a / l[:, None]


def overq_map(x):
    q, k, v = projected(x)

    def one(qb):
        c = (jnp.full(2, -jnp.inf, x.dtype), jnp.zeros(2, x.dtype), jnp.zeros((2, 4), x.dtype))
        _, l, a = lax.scan(step(qb), c, (blocks(k), blocks(v)))[0]
        return a / l[:, None]

    return lax.map(one, q.reshape(3, 2, 4)).reshape(6, 4)


def overq_vmap(x):
    q, k, v = projected(x)

    def one(qb):
        c = (jnp.full(2, -jnp.inf, x.dtype), jnp.zeros(2, x.dtype), jnp.zeros((2, 4), x.dtype))
        _, l, a = lax.scan(step(qb), c, (blocks(k), blocks(v)))[0]
        return a / l[:, None]

    return jax.vmap(one)(q.reshape(3, 2, 4)).reshape(6, 4)


def overq_dus(x):
    q, k, v = projected(x)

    def one(i, out):
        qb = lax.dynamic_slice(q, (i * 2, 0), (2, 4))
        c = (jnp.full(2, -1e30, x.dtype), jnp.zeros(2, x.dtype), jnp.zeros((2, 4), x.dtype))

        def inner(j, c):
            kb = lax.dynamic_slice(k, (j * 2, 0), (2, 4))
            vb = lax.dynamic_slice(v, (j * 2, 0), (2, 4))
            return step(qb)(c, (kb, vb))[0]

        _, l, a = lax.fori_loop(0, 3, inner, c)
        return lax.dynamic_update_slice(out, a / l[:, None], (i * 2, 0))

    return lax.fori_loop(0, 3, one, jnp.zeros((6, 4), x.dtype))


def rabe(x):
    q, k, v = projected(x)

    @jax.checkpoint
    def chunk(kb):
        k, v = kb
        s = q @ k.T
        m = lax.stop_gradient(s.max(-1, keepdims=True))
        e = jnp.exp(s - m)
        return e @ v, e.sum(-1), m[:, 0]

    vals, ws, ms = lax.map(chunk, (blocks(k), blocks(v)))
    g = ms.max(0, keepdims=True)
    d = jnp.exp(ms - g)
    vals = vals * d[..., None]
    ws = ws * d
    return vals.sum(0) / ws.sum(0)[..., None]


def rabe_nostop(x):
    q, k, v = projected(x)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def chunk(kb):
        k, v = kb
        s = q @ k.T
        m = s.max(-1, keepdims=True)
        e = jnp.exp(s - m)
        return e @ v, e.sum(-1), m[:, 0]

    vals, ws, ms = lax.map(chunk, (blocks(k), blocks(v)))
    g = ms.max(0, keepdims=True)
    d = jnp.exp(ms - g)
    vals = vals * d[..., None]
    ws = ws * d
    return vals.sum(0) / ws.sum(0)[..., None]


def rabe_vmap(x):
    q, k, v = projected(x)

    def chunk(k, v):
        s = q @ k.T
        m = s.max(-1)
        e = jnp.exp(s - m[:, None])
        return e @ v, e.sum(-1), m

    vals, ws, ms = jax.vmap(chunk)(blocks(k), blocks(v))
    g = ms.max(0)
    d = jnp.exp(ms - g)
    return (vals * d[..., None]).sum(0) / (ws * d).sum(0)[..., None]


def ring_lse(x):
    q, k, v = projected(x)
    o = None
    for kb, vb in zip(blocks(k), blocks(v), strict=True):
        s = q @ kb.T
        ob = jax.nn.softmax(s) @ vb
        lb = jax.nn.logsumexp(s, axis=-1)
        if o is None:
            o, L = ob, lb
        else:
            n = jnp.logaddexp(L, lb)
            o = jnp.exp(L - n)[:, None] * o + jnp.exp(lb - n)[:, None] * ob
            L = n
    return o


def ring_lse_scan(x):
    q, k, v = projected(x)

    def body(c, kb):
        o, L = c
        kb, vb = kb
        s = q @ kb.T
        ob = jax.nn.softmax(s) @ vb
        lb = jax.nn.logsumexp(s, axis=-1)
        n = jnp.logaddexp(L, lb)
        o = jnp.exp(L - n)[:, None] * o + jnp.exp(lb - n)[:, None] * ob
        return (o, n), None

    return lax.scan(
        body, (jnp.zeros((6, 4), x.dtype), jnp.full(6, -jnp.inf, x.dtype)), (blocks(k), blocks(v))
    )[0][0]


def lse_combine(x):
    q, k, v = projected(x)
    os, ls = [], []
    for kb, vb in zip(blocks(k), blocks(v), strict=True):
        s = q @ kb.T
        os.append(jax.nn.softmax(s) @ vb)
        ls.append(jax.nn.logsumexp(s, axis=-1))
    o, l = jnp.stack(os), jnp.stack(ls)
    w = jnp.exp(l - jax.nn.logsumexp(l, axis=0))
    return (w[..., None] * o).sum(0)


def lse_softmax(x):
    q, k, v = projected(x)
    os, ls = [], []
    for kb, vb in zip(blocks(k), blocks(v), strict=True):
        s = q @ kb.T
        os.append(jax.nn.softmax(s) @ vb)
        ls.append(jax.nn.logsumexp(s, axis=-1))
    o, l = jnp.stack(os), jnp.stack(ls)
    return (jax.nn.softmax(l, axis=0)[..., None] * o).sum(0)


def firstblock(x):
    q, k, v = projected(x)
    k, v = blocks(k), blocks(v)
    s = q @ k[0].T
    m = s.max(-1)
    p = jnp.exp(s - m[:, None])
    _, l, a = lax.scan(step(q), (m, p.sum(-1), p @ v[0]), (k[1:], v[1:]))[0]
    return a / l[:, None]


def keepdims(x):
    q, k, v = projected(x)

    def body(c, kb):
        m, l, acc = c
        k, v = kb
        s = q @ k.T
        mn = jnp.maximum(m, jnp.max(s, -1, keepdims=True))
        a = jnp.exp(m - mn)
        p = jnp.exp(s - mn)
        return (mn, a * l + jnp.sum(p, -1, keepdims=True), acc * a + jnp.einsum("qk,kd->qd", p, v)), None

    _, l, a = lax.scan(
        body,
        (jnp.full((6, 1), -jnp.inf, x.dtype), jnp.zeros((6, 1), x.dtype), jnp.zeros((6, 4), x.dtype)),
        (blocks(k), blocks(v)),
    )[0]
    return a / l


def perquery(x):
    q, k, v = projected(x)

    def one(q):
        def body(c, kb):
            m, l, a = c
            k, v = kb
            s = q @ k
            mn = jnp.maximum(m, s)
            al = jnp.exp(m - mn)
            p = jnp.exp(s - mn)
            return (mn, al * l + p, al * a + p * v), None

        _, l, a = lax.scan(
            body, (jnp.asarray(-jnp.inf, x.dtype), jnp.zeros((), x.dtype), jnp.zeros(4, x.dtype)), (k, v)
        )[0]
        return a / l

    return jax.vmap(one)(q)


def unrolled(x):
    q, k, v = projected(x)
    c = start(x)
    for kb in zip(blocks(k), blocks(v), strict=True):
        c, _ = step(q)(c, kb)
    return c[2] / c[1][:, None]


def twopass(x):
    q, k, v = projected(x)

    def body(c, k):
        m, l = c
        s = q @ k.T
        mn = jnp.maximum(m, s.max(-1))
        return (mn, jnp.exp(m - mn) * l + jnp.exp(s - mn[:, None]).sum(-1)), None

    m, l = lax.scan(body, start(x)[:2], blocks(k))[0]
    L = m + jnp.log(l)

    def second(o, kb):
        k, v = kb
        return o + jnp.exp(q @ k.T - L[:, None]) @ v, None

    return lax.scan(second, start(x)[2], (blocks(k), blocks(v)))[0]


def twopass2(x):
    q, k, v = projected(x)

    def body(c, k):
        m, l = c
        s = q @ k.T
        mn = jnp.maximum(m, s.max(-1))
        return (mn, jnp.exp(m - mn) * l + jnp.exp(s - mn[:, None]).sum(-1)), None

    m, l = lax.scan(body, start(x)[:2], blocks(k))[0]

    def second(o, kb):
        k, v = kb
        return o + (jnp.exp(q @ k.T - m[:, None]) / l[:, None]) @ v, None

    return lax.scan(second, start(x)[2], (blocks(k), blocks(v)))[0]


def causal_skip(x):
    q, k, v = projected(x)

    def body(c, kb):
        return lax.cond(kb[3] < 100, lambda c: step(q)(c, kb[:3])[0], lambda c: c, c), None

    _, l, a = lax.scan(body, start(x), (blocks(k), blocks(v), jnp.asarray(MASKS), jnp.arange(3)))[0]
    return a / l[:, None]


def fullcarry_q(x):  # kv outer, q inner, carries whole m,l,acc with dus
    q, k, v = projected(x)

    def outer(c, kb):
        def inner(i, c):
            m, l, a = c
            sl = lambda z: lax.dynamic_slice_in_dim(z, i * 2, 2, 0)
            (mn, ln, an), _ = step(sl(q))((sl(m), sl(l), sl(a)), kb)
            up = lambda z, n: lax.dynamic_update_slice_in_dim(z, n, i * 2, 0)
            return up(m, mn), up(l, ln), up(a, an)

        return lax.fori_loop(0, 3, inner, c), None

    _, l, a = lax.scan(outer, start(x), (blocks(k), blocks(v)))[0]
    return a / l[:, None]


def fori_loop(x):
    q, k, v = projected(x)
    k, v = blocks(k), blocks(v)
    _, l, total = lax.fori_loop(0, BLOCKS, lambda i, carry: step(q)(carry, (k[i], v[i]))[0], start(x))
    return total / l[:, None]


ONLINE = {
    "scan": divided,
    "-1e30": functools.partial(divided, low=-1e30),
    "finfo.min": functools.partial(divided, low=float(np.finfo(np.float64).min)),
    "fori_loop": fori_loop,
    "reciprocal": lambda x: (lambda _, l, total: total * (1.0 / l)[:, None])(*scanned(x)),
    "exp of the logarithm": lambda x: (lambda _, l, total: total * jnp.exp(-jnp.log(l))[:, None])(
        *scanned(x)
    ),
    "infinite maxima replaced": lambda x: (lambda _, l, total: total / jnp.where(l == 0, 1, l)[:, None])(
        *scanned(x, safe=True)
    ),
    "sum bounded below": lambda x: (lambda _, l, total: total / jnp.maximum(l, 1e-30)[:, None])(*scanned(x)),
    "sum made safe": lambda x: (lambda _, l, total: total / (l + 1e-20)[:, None])(*scanned(x)),
    "checkpoint": functools.partial(divided, wrap=jax.checkpoint),
    "exp2": functools.partial(divided, exp=jnp.exp2),
    "backwards": functools.partial(divided, reverse=True),
    "normalised in each step": normalised,
    "normalised in each step, by a ratio": normalised2,
    "normalised in each step, by a reciprocal": normalised3,
    "maximum stopped": stopped,
    "no maximum": nomax,
    "map over queries": overq_map,
    "vmap over queries": overq_vmap,
    "loop over queries": overq_dus,
    "in chunks": rabe,
    "in chunks, maximum not stopped": rabe_nostop,
    "in chunks, vmap": rabe_vmap,
    "ring": ring_lse,
    "ring, scan": ring_lse_scan,
    "logsumexp of blocks": lse_combine,
    "softmax over blocks": lse_softmax,
    "first block before the loop": firstblock,
    "keepdims and einsum": keepdims,
    "a key at a time": perquery,
    "unrolled": unrolled,
    "two passes": twopass,
    "two passes, divided": twopass2,
}
MASKED = {
    "scan": functools.partial(divided, masked=True),
    "infinite maxima replaced": functools.partial(divided, masked=True, safe=True, reverse=True),
    "blocks skipped": causal_skip,
}
SINKS = {
    "at the start": lambda x: divided(
        x, begin=(jnp.full(6, SINK, x.dtype), jnp.ones(6, x.dtype), jnp.zeros((6, 4), x.dtype))
    ),
    "at the end": lambda x: (lambda m, l, total: total / (l + jnp.exp(SINK - m))[:, None])(*scanned(x)),
}


def agree(written, usual, names=COMPOSITES, dtype=jnp.float64, tolerance=1e-10):
    x = jnp.asarray(X, dtype)
    for name in names:
        explain = lambda f, c=COMPOSITES[name]: lrpjax.relevance(f, c, target=TARGET.astype(dtype))(x)
        close(explain(written), explain(usual), tolerance)


@pytest.mark.parametrize("name", ONLINE)
def test_attention_in_blocks_is_attention(name):
    agree(ONLINE[name], usual, ["norms", "cp_lrp"])


@pytest.mark.parametrize("name", ["scan", "-1e30", "normalised in each step"])
def test_attention_in_blocks_under_presets_and_in_single_precision(name):
    agree(ONLINE[name], usual, ["epsilon", "input_x_gradient"])
    agree(ONLINE[name], usual, ["attnlrp"], jnp.float32, 3e-6)


@pytest.mark.parametrize("name", MASKED)
def test_masked_attention_in_blocks_is_attention(name):
    agree(MASKED[name], functools.partial(usual, masked=True), ["norms", "cp_lrp"])


@pytest.mark.parametrize("name", SINKS)
def test_attention_in_blocks_with_a_sink(name):
    agree(SINKS[name], functools.partial(usual, sink=True), ["norms", "cp_lrp"])


def test_logsumexp_beside_attention_in_blocks():
    def written(x):
        m, l, total = scanned(x)
        return total / l[:, None] + (m + jnp.log(l))[:, None]

    def plain(x):
        q, k, v = projected(x)
        s = q @ k.T
        return jax.nn.softmax(s) @ v + jax.nn.logsumexp(s, axis=-1, keepdims=True)

    agree(written, plain, ["attnlrp", "cp_lrp"])


@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_attention_in_blocks_under_transforms(wrap):
    x = jnp.stack([X, X[::-1]])
    explain = lambda f: lrpjax.relevance(f, COMPOSITES["attnlrp"], target=TARGET)
    if wrap is jax.vmap:
        found, wanted = jax.vmap(explain(divided))(x), jnp.stack([explain(usual)(one) for one in x])
    else:
        found, wanted = jax.jit(explain(divided))(x[0]), explain(usual)(x[0])
    close(found, wanted)


def test_gradient_of_the_relevance_of_attention_in_blocks():
    weights = jnp.asarray(RNG.normal(size=(6, 4)))
    score = lambda f: jax.grad(
        lambda x: (lrpjax.relevance(f, COMPOSITES["attnlrp"], target=TARGET)(x) * weights).sum()
    )
    close(score(divided)(jnp.asarray(X)), score(usual)(jnp.asarray(X)), 1e-8)


def clipped(x):
    _, l, total = scanned(x)
    return jnp.tanh(total) / l[:, None]


def no_division(x):
    return scanned(x)[2]


def added_before_the_division(x):
    _, l, total = scanned(x)
    return (total + x) / l[:, None]


@pytest.mark.parametrize("f", [clipped, no_division, added_before_the_division, fullcarry_q])
@pytest.mark.parametrize("composite", ["attnlrp", "cp_lrp", "epsilon"])
def test_running_maxima_of_what_is_not_divided_by_its_sum_are_refused(f, composite):
    with pytest.raises(lrpjax.UnsupportedError, match=r"running maximum.*jax\.nn\.softmax"):
        lrpjax.relevance(f, COMPOSITES[composite])(jnp.asarray(X))


def test_shares_of_blocks_that_differ_are_refused():
    """The values of one block carry no relevance: in one piece, its weights would take half."""

    def f(x):
        q, k, v = projected(x)
        e = jnp.exp(q @ k.T)
        return (e[:, :3] @ v[:3] + e[:, 3:] @ jnp.asarray(VALUES)[:3]) / e.sum(-1, keepdims=True)

    with pytest.raises(lrpjax.RuleError, match=r"share relevance differently.*divide before"):
        lrpjax.relevance(f, COMPOSITES["attnlrp"])(jnp.asarray(X))


def test_maxima_that_do_not_cancel_keep_their_relevance():
    """Σ exp(x − m) / Σ exp(x − m) depends on no m; exp(x − m) does."""
    x = jnp.asarray(X)
    gradient = lambda f: (
        lrpjax.relevance(f, composites.gradient(), target=jnp.asarray(TARGET))(x)
        if f(x).ndim > 1
        else lrpjax.relevance(f, composites.gradient(), target=jnp.asarray(TARGET[:, 0]))(x),
        jax.vjp(f, x)[1](jnp.asarray(TARGET if f(x).ndim > 1 else TARGET[:, 0]))[0],
    )
    e = lambda x: jnp.exp(x - x.max(-1, keepdims=True))
    close(*gradient(lambda x: e(x).sum(-1)))
    close(*gradient(lambda x: e(x).sum(-1) * jnp.exp(x.max(-1))))
    close(*gradient(lambda x: e(x) / e(x).sum(0)))
    close(*gradient(lambda x: e(x) / (1 + e(x).sum(-1, keepdims=True))))
    close(*gradient(lambda x: e(x) / e(x).sum(-1, keepdims=True) * x.max(-1, keepdims=True)))
    close(*gradient(lambda x: jnp.log(e(x).sum(-1))))
    close(*gradient(lambda x: jnp.log(e(x).sum(-1)) + x.max(-1)))


def gated(x, low=0.0, below=lambda n, larger: n):
    """xLSTM's exponential gates: the maximum cancels, the decay carries relevance. below: what is divided by."""
    gates, decays, values = projected(x)

    def body(carry, now):
        c, n, m = carry
        gate, decay, value = now
        larger = jnp.maximum(decay + m, gate)
        kept, let_in = jnp.exp(decay + m - larger), jnp.exp(gate - larger)
        c, n = kept * c + let_in * jnp.tanh(value), kept * n + let_in
        return (c, n, larger), c / below(n, larger)

    start = jnp.zeros(4, x.dtype)
    return lax.scan(body, (start, start, start + low), (gates, jax.nn.log_sigmoid(decays), values))[1]


def test_gates_under_a_running_maximum_are_explained():
    x = jnp.asarray(X)
    R = lrpjax.relevance(gated, composites.attnlrp(), target=TARGET)(x)
    assert jnp.isfinite(R).all()
    close(R, lrpjax.relevance(functools.partial(gated, low=-1.0), composites.attnlrp(), target=TARGET)(x))


@pytest.mark.parametrize("name", sorted(COMPOSITES))
def test_a_running_maximum_cancels_behind_the_size_of_a_sum(name):
    """xLSTM divides by max(|n|, 1), in numbers that a maximum is taken off from by max(|n|, exp(−m)). Here n > 0."""
    floors = [
        lambda n, larger: jnp.maximum(jnp.abs(n), jnp.exp(-larger)),
        lambda n, larger: jnp.maximum(n, jnp.exp(-larger)),
    ]
    ours, without = (
        lrpjax.relevance(functools.partial(gated, below=floor), COMPOSITES[name], target=TARGET)(
            jnp.asarray(X)
        )
        for floor in floors
    )
    assert jnp.isfinite(ours).all()
    close(ours, without)


def test_attention_in_a_ring_of_devices_is_attention():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    spec = jax.sharding.PartitionSpec("d")

    def local(q, k, v):
        carry = jax.tree.map(
            lambda a: lax.pcast(a, ("d",), to="varying"),
            (jnp.full(3, -jnp.inf, q.dtype), jnp.zeros(3, q.dtype), jnp.zeros((3, 4), q.dtype)),
        )

        def body(state, _):
            carry, k, v = state
            carry, _ = step(q)(carry, (k, v))
            return (carry, *(lax.ppermute(a, "d", [(0, 1), (1, 0)]) for a in (k, v))), None

        ((_, l, total), _, _), _ = lax.scan(body, (carry, k, v), None, length=2)
        return total / l[:, None]

    ring = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec)
    agree(lambda x: ring(*projected(x)), usual, ["norms", "cp_lrp"])


def test_attention_over_keys_on_several_devices_is_attention():
    """The maximum of all devices cancels as any other does, although JAX has no derivative of `pmax`."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    spec, whole = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()

    def local(q, k, v):
        m, l, total = step(q)(start(q), (k, v))[0]
        w = jnp.exp(m - lax.pmax(m, "d"))
        return lax.psum(w[:, None] * total, "d") / lax.psum(w * l, "d")[:, None]

    spread = jax.shard_map(local, mesh=mesh, in_specs=(whole, spec, spec), out_specs=whole)
    agree(lambda x: spread(*projected(x)), usual, ["norms", "cp_lrp"])
