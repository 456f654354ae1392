"""A softmax is a softmax in every writing: the oracle is the same network with `jax.nn.softmax`."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import lrpjax
from lrpjax import composites

close = functools.partial(helpers.close, of_largest=True)

COMPOSITES = {
    "norms": helpers.NORMS,
    "attnlrp": composites.attnlrp(0.0),
    "cp_lrp": composites.cp_lrp(0.0),
    "input_x_gradient": composites.input_x_gradient(),
}
RNG = np.random.default_rng(0)
X, TARGET = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 3))
INTO, OUT = RNG.normal(size=(4, 8)), RNG.normal(size=(8, 3))
MASK = np.tril(np.ones((6, 8), bool), 2)
SEGMENTS = np.array([0, 0, 1, 2, 1, 0])
LABELS = np.arange(6) % 8
SINK = 0.7


pytestmark = pytest.mark.filterwarnings("ignore::lrpjax.UnmatchedWarning")


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def agree(written, usual, names=COMPOSITES, dtype=jnp.float64, tolerance=1e-10):
    x = jnp.asarray(X, dtype)
    for name in names:
        explain = lambda f, c=COMPOSITES[name]: lrpjax.relevance(f, c, target=TARGET.astype(dtype))(x)
        through = lambda f: (
            lambda x: (lambda s: f(s) @ OUT.astype(dtype)[: f(s).shape[1]])(x @ INTO.astype(dtype))
        )
        close(explain(through(written)), explain(through(usual)), tolerance)


def over_sum(
    s, shift=lambda s: s.max(-1, keepdims=True), below=lambda e: e.sum(-1, keepdims=True), mask=lambda e: e
):
    e = mask(jnp.exp(s - shift(s)))
    return e / below(e)


def lse(s, axis=-1):
    return jax.nn.logsumexp(s, axis=axis, keepdims=True)


def split(f, s):
    """f over two axes at once."""
    return f(s.reshape(6, 2, 4)).reshape(6, 8)


def masked(s):
    return jax.nn.softmax(jnp.where(MASK, s, -jnp.inf))


def with_sink(s, sink=SINK):
    return jax.nn.softmax(jnp.concatenate([s, jnp.full((6, 1), sink, s.dtype)], -1))[:, :-1]


def sink_and_maximum(s):
    m = jnp.maximum(s.max(-1, keepdims=True), SINK)
    e = jnp.exp(s - m)
    return e / (e.sum(-1, keepdims=True) + jnp.exp(SINK - m))


def one_and_maximum(s):
    m = jnp.maximum(s.max(-1, keepdims=True), 0)
    e = jnp.exp(s - m)
    return e / (jnp.exp(-m) + e.sum(-1, keepdims=True))


def capped(s):
    return 5 * jnp.tanh(s / 5)


WRITINGS = {
    "exp(x - logsumexp)": (lambda s: jnp.exp(s - lse(s)), jax.nn.softmax),
    "exp(x - log(sum(exp)))": (
        lambda s: jnp.exp(s - jnp.log(jnp.exp(s).sum(-1, keepdims=True))),
        jax.nn.softmax,
    ),
    "exp(log_softmax)": (lambda s: jnp.exp(jax.nn.log_softmax(s)), jax.nn.softmax),
    "maximum not stopped": (over_sum, jax.nn.softmax),
    "everything twice": (
        lambda s: (
            jnp.exp(s - s.max(-1, keepdims=True))
            / jnp.exp(s - s.max(-1, keepdims=True)).sum(-1, keepdims=True)
        ),
        jax.nn.softmax,
    ),
    "mean taken off": (lambda s: over_sum(s, lambda s: s.mean(-1, keepdims=True)), jax.nn.softmax),
    "where=": (lambda s: jax.nn.softmax(s, where=MASK), masked),
    "where(mask, exp, 0)": (lambda s: over_sum(s, mask=lambda e: jnp.where(MASK, e, 0)), masked),
    "exp * mask": (lambda s: over_sum(s, mask=lambda e: MASK * e), masked),
    "several axes": (
        lambda s: split(
            lambda s: over_sum(
                s, lambda s: s.max((1, 2), keepdims=True), lambda e: e.sum((1, 2), keepdims=True)
            ),
            s,
        ),
        jax.nn.softmax,
    ),
    "several axes, logsumexp": (lambda s: split(lambda s: jnp.exp(s - lse(s, (1, 2))), s), jax.nn.softmax),
    "sink": (
        lambda s: (lambda e: e / (e.sum(-1, keepdims=True) + jnp.exp(jnp.asarray(SINK, s.dtype))))(
            jnp.exp(s)
        ),
        with_sink,
    ),
    "sink and maximum": (sink_and_maximum, with_sink),
    "sink and logsumexp": (
        lambda s: jnp.exp(s - lse(jnp.concatenate([s, jnp.full((6, 1), SINK, s.dtype)], -1))),
        with_sink,
    ),
    "1 +": (
        lambda s: (lambda e: e / (1 + e.sum(-1, keepdims=True)))(jnp.exp(s)),
        lambda s: with_sink(s, 0),
    ),
    "1 + and maximum": (one_and_maximum, lambda s: with_sink(s, 0)),
    "soft cap": (lambda s: over_sum(capped(s)), lambda s: jax.nn.softmax(capped(s))),
    "mask behind the softmax": (
        lambda s: (lambda p: p / p.sum(-1, keepdims=True))(jax.nn.softmax(s) * MASK),
        masked,
    ),
    "ratio of exponentials made earlier": (
        lambda s: (lambda p: p / p.sum(-1, keepdims=True))(jnp.exp(s)),
        jax.nn.softmax,
    ),
    "softmax of log_softmax": (lambda s: jax.nn.softmax(jax.nn.log_softmax(s)), jax.nn.softmax),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_softmax_in_every_writing_is_explained_alike(name):
    agree(*WRITINGS[name])


@pytest.mark.parametrize("name", ["exp(x - logsumexp)", "maximum not stopped", "where(mask, exp, 0)", "sink"])
def test_softmax_in_every_writing_in_single_precision(name):
    agree(*WRITINGS[name], ["norms", "attnlrp"], jnp.float32, 3e-6)


@pytest.mark.parametrize(
    "name", ["exp(x - logsumexp)", "exp(log_softmax)", "maximum not stopped", "several axes"]
)
def test_softmax_in_these_writings_is_one_unit(name):
    units = lrpjax.plan(lambda s: WRITINGS[name][0](s) @ OUT, helpers.NORMS, jnp.ones((6, 8)))
    assert {u.kind for u in units} <= {"softmax", "affine", "dense"}
    assert [u.kind for u in units].count("softmax") == 1


LOGARITHMS = {
    "written out": lambda s: s - jnp.log(jnp.exp(s).sum(-1, keepdims=True)),
    "logsumexp": lambda s: s - lse(s),
    "maximum": lambda s: (lambda z: z - jnp.log(jnp.exp(z).sum(-1, keepdims=True)))(
        s - s.max(-1, keepdims=True)
    ),
    "maximum twice": lambda s: (lambda m: s - (m + jnp.log(jnp.exp(s - m).sum(-1, keepdims=True))))(
        s.max(-1, keepdims=True)
    ),
}


@pytest.mark.parametrize("name", LOGARITHMS)
def test_log_softmax_in_every_writing_is_explained_alike(name):
    agree(LOGARITHMS[name], jax.nn.log_softmax)


def test_cross_entropies_are_log_softmax():
    one_hot = jax.nn.one_hot(LABELS, 8)
    usual = lambda s: -jnp.take_along_axis(jax.nn.log_softmax(s), LABELS[:, None], -1)
    agree(lambda s: optax.softmax_cross_entropy_with_integer_labels(s, LABELS)[:, None], usual)
    agree(
        lambda s: optax.softmax_cross_entropy(s, one_hot.astype(s.dtype))[:, None],
        lambda s: -(jax.nn.log_softmax(s) * one_hot.astype(s.dtype)).sum(-1, keepdims=True),
    )


def scattered(weights):
    def f(s):
        _, at = lax.top_k(s, 3)
        return jnp.zeros_like(s).at[jnp.arange(6)[:, None], at].set(weights(s))

    return f


def renormalised(s, k=3, tiny=0.0):
    w = lax.top_k(jax.nn.softmax(s), k)[0]
    return w / (w.sum(-1, keepdims=True) + tiny)


def taken_along(s):
    p = jax.nn.softmax(s)
    w = jnp.take_along_axis(p, lax.top_k(p, 3)[1], -1)
    return w / w.sum(-1, keepdims=True)


def under_threshold(s):
    p = jax.nn.softmax(s)
    p = jnp.where(p >= lax.top_k(p, 3)[0][:, -1:], p, 0)
    return p / p.sum(-1, keepdims=True)


def best(s):
    return jax.nn.softmax(lax.top_k(s, 3)[0])


RENORMALISED = {
    "top_k": (renormalised, best),
    "made safe": (functools.partial(renormalised, tiny=1e-20), best),
    "scaled": (lambda s: 2.5 * renormalised(s), lambda s: 2.5 * best(s)),
    "scattered": (scattered(renormalised), scattered(best)),
    "taken along": (taken_along, best),
    "under a threshold": (
        under_threshold,
        lambda s: jax.nn.softmax(jnp.where(s >= lax.top_k(s, 3)[0][:, -1:], s, -jnp.inf)),
    ),
    "vmap": (lambda s: jax.vmap(lambda s: renormalised(s))(s), best),
}


@pytest.mark.parametrize("name", RENORMALISED)
def test_renormalised_weights_of_the_best_are_a_softmax_of_their_logits(name):
    """Σ over selected softmax outputs, as mixtures of experts divide by."""
    agree(*RENORMALISED[name])


def segmented(s):
    same = SEGMENTS[:, None] == SEGMENTS
    return jnp.diagonal(jax.nn.softmax(jnp.where(same[:, :, None], s[None], -jnp.inf), axis=1)).T


def segment_softmax(s, shift=lambda m: m, tiny=0.0, index=lambda a, i: a[i], ids=SEGMENTS):
    m = shift(jax.ops.segment_max(s, ids, 3))
    e = jnp.exp(s - index(m, ids))
    return e / index(jax.ops.segment_sum(e, ids, 3) + tiny, ids)


def scatter_softmax(s):
    m = jnp.full((3, 8), -jnp.inf, s.dtype).at[SEGMENTS].max(s)
    e = jnp.exp(s - m[SEGMENTS])
    return e / jnp.zeros((3, 8), s.dtype).at[SEGMENTS].add(e)[SEGMENTS]


SEGMENTED = {
    "segment_sum": segment_softmax,
    "maximum stopped": functools.partial(segment_softmax, shift=lax.stop_gradient),
    "made safe": functools.partial(
        segment_softmax, shift=lambda m: jnp.where(jnp.isfinite(m), m, 0), tiny=1e-16
    ),
    "take": functools.partial(segment_softmax, index=functools.partial(jnp.take, axis=0)),
    "scatter": scatter_softmax,
    "segments that are traced": lambda s: jax.jit(lambda s, ids: segment_softmax(s, ids=ids))(
        s, jnp.asarray(SEGMENTS)
    ),
}


@pytest.mark.parametrize("name", SEGMENTED)
def test_softmax_of_segments_is_a_softmax(name):
    agree(SEGMENTED[name], segmented)


NO_SOFTMAX = {
    "kernel": lambda x: (jax.nn.relu(x) + 1) / (jax.nn.relu(x) + 1).sum(-1, keepdims=True),
    "linear attention": lambda x: (
        (jax.nn.elu(x) + 1)
        @ ((jax.nn.elu(x) + 1).T @ x)
        / ((jax.nn.elu(x) + 1) @ (jax.nn.elu(x) + 1).sum(0))[:, None]
    ),
    "exponential and no sum": lambda x: jnp.exp(x) / (1 + jnp.exp(x)),
    "exponential and another use": lambda x: jnp.exp(x) * x,
    "normalised twice, along another axis": lambda x: (lambda p: p / p.sum(0))(
        jnp.abs(x) / jnp.abs(x).sum(-1, keepdims=True)
    ),
}


@pytest.mark.parametrize("name", NO_SOFTMAX)
def test_what_is_no_softmax_is_not_taken_for_one(name):
    assert "softmax" not in {u.kind for u in lrpjax.plan(NO_SOFTMAX[name], None, jnp.asarray(X))}


def test_exponentials_of_features_are_a_quotient():
    """Performer's features: e^q Σ e^k v / e^q Σ e^k. Products of exponentials are no weights of a softmax."""
    w = jnp.asarray(RNG.normal(size=(4, 4)))

    def f(x):
        q, k = jnp.exp(x @ w), jnp.exp(x @ w.T)
        return (q @ (k.T @ x)) / (q @ k.sum(0))[:, None]

    kinds = {u.kind for u in lrpjax.plan(f, None, jnp.asarray(X))}
    assert "quotient" in kinds
    assert "softmax" not in kinds


def test_sums_and_logarithms_of_a_softmax_that_are_returned_too_carry_their_relevance():
    """The parts of a softmax that something else wants are units of their own."""

    def f(x):
        e = jnp.exp(x @ INTO)
        total = e.sum(-1, keepdims=True)
        return (e / total) @ OUT + jnp.log(total)

    def usual(x):
        s = x @ INTO
        return jax.nn.softmax(s) @ OUT + lse(s)

    for composite in (COMPOSITES["attnlrp"], COMPOSITES["cp_lrp"]):
        explain = lambda f, c=composite: lrpjax.relevance(f, c, target=TARGET)(jnp.asarray(X))
        close(explain(f), explain(usual))


def test_weighted_sums_of_softmax_weights_are_layers():
    """Held against the dot with the same kernel; behind attention, against the matrix product."""
    w, v = np.asarray(RNG.normal(size=(4, 3))), np.asarray(RNG.normal(size=(3, 2)))
    x = jnp.asarray(RNG.normal(size=(5, 4)))
    pairs = [
        (lambda x: (jax.nn.softmax(x)[..., None] * w).sum(-2), lambda x: jax.nn.softmax(x) @ w),
        (
            lambda x: sum((jax.nn.softmax(x @ x.T) @ x)[:, i, None] * w[i] for i in range(4)) @ v,
            lambda x: jax.nn.softmax(x @ x.T) @ x @ w @ v,
        ),
    ]
    for rule in (lrpjax.rules.ZPlus(), lrpjax.rules.AlphaBeta(2.0, 1.0), lrpjax.rules.Flat()):
        composite = lrpjax.Composite([(lrpjax.select.kind("dense"), rule)])
        for written, plain in pairs:
            close(*(lrpjax.relevance(f, composite)(x) for f in (written, plain)), 1e-7, of_largest=True)
