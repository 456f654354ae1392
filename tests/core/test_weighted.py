"""Weighted sums in other writings, against explicit contributions z_ij in NumPy and against the plain writing."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import rules, select
from lrpjax.core import compat, graph, ways

B, N, M = 3, 4, 5
RNG = np.random.default_rng(3)
X, W, BIAS, V = RNG.normal(size=(B, N)), RNG.normal(size=(N, M)), RNG.normal(size=M), RNG.normal(size=N)
GROUP = np.abs(RNG.normal(size=(2, 1, M))) + 0.5
RULES = [
    rules.ZPlus(),
    rules.AlphaBeta(2.0, 1.0, bias=False),
    rules.Gamma(0.3),
    rules.Flat(),
    rules.WSquare(),
    rules.ZBox(-3.0, 3.0),
    rules.Epsilon(0.1, bias=False),
]
TWO = [rules.Gamma(0.3), rules.Flat()]
"""One rule that needs kernels split by sign, in ratio form, and one in plain form."""


def everywhere(rule):
    return lrpjax.Composite([(select.kind("dense", "conv"), rule)])


def explain(f, rule, x, R):
    return np.asarray(lrpjax.relevance(f, everywhere(rule), target=jnp.asarray(R))(jnp.asarray(x)))


# ------------------------------------------------------------------------------------------------------------------ the oracle


def contributions(rule, z, w, b, low=-3.0, high=3.0):
    """(numerators, denominator) pairs of one output with contributions z_i = x_i w_i and bias b."""
    pos, neg = np.maximum(z, 0), np.minimum(z, 0)
    kept = b if getattr(rule, "bias", True) else 0.0
    if isinstance(rule, rules.ZPlus):
        return [(pos, pos.sum() + max(kept, 0))]
    if isinstance(rule, rules.AlphaBeta):
        return [(2 * pos, pos.sum() + max(kept, 0)), (-neg, neg.sum() + min(kept, 0))]
    if isinstance(rule, rules.Gamma):
        side = (lambda v: np.maximum(v, 0)) if z.sum() + b > 0 else (lambda v: np.minimum(v, 0))
        return [(z + 0.3 * side(z), (z + 0.3 * side(z)).sum() + kept + 0.3 * side(kept))]
    if isinstance(rule, rules.Flat):
        return [(np.ones_like(w), float(len(w)))]
    if isinstance(rule, rules.WSquare):
        return [(w**2, (w**2).sum() + kept**2)]
    if isinstance(rule, rules.ZBox):
        boxed = z - low * np.maximum(w, 0) - high * np.minimum(w, 0)
        return [(boxed, boxed.sum())]
    return [(z, z.sum() + kept)]


def by_hand(rule, x, kernel, bias, R):
    """Relevance of x (n,) for outputs j whose kernel is a dict {i: w_ij}, one contribution at a time."""
    found = np.zeros(x.size)
    for j, weights in enumerate(kernel):
        at, w = np.array(list(weights)), np.array(list(weights.values()))
        for numerators, denominator in contributions(rule, x.ravel()[at] * w, w, bias[j]):
            denominator += rule.epsilon if denominator >= 0 else -rule.epsilon
            found[at] += numerators * R[j] / denominator
    return found.reshape(x.shape)


def dense_kernel():
    return [{b * N + i: W[i, j] for i in range(N)} for b in range(B) for j in range(M)]


# -------------------------------------------------------------------------------------------------------------------- dense


def blocks(x):
    a, b = jnp.split(x, 2, axis=1)
    return a @ W[:2] + b @ W[2:] + BIAS


DENSE = {
    "broadcast": lambda x: (x[..., None] * W).sum(1) + BIAS,
    "transposed": lambda x: (W.T * x[:, None, :]).sum(-1) + BIAS,
    "materialised": lambda x: (
        (jnp.broadcast_to(x[..., None], (B, N, M)) * jnp.broadcast_to(W, (B, N, M))).sum(1) + BIAS
    ),
    "mean": lambda x: (x[..., None] * (W * N)).mean(1) + BIAS,
    "moved": lambda x: jnp.moveaxis(x[..., None] * W, 1, 0).sum(0) + BIAS,
    "subtracted": lambda x: BIAS - (x[..., None] * (-W)).sum(1),
    "divided": lambda x: (x[..., None] / (1 / W)).sum(1) + BIAS,
    "vmapped": lambda x: jax.vmap(lambda v: (v[:, None] * W).sum(0))(x) + BIAS,
    "in two sums": lambda x: (x.reshape(B, 2, 2, 1) * W.reshape(2, 2, M)).sum(1).sum(1) + BIAS,
    "unrolled": lambda x: sum(x[:, i, None] * W[i] for i in range(N)) + BIAS,
    "unrolled, mixed signs": lambda x: (
        x[:, :1] * W[0] + BIAS + x[:, 1:2] * W[1] - x[:, 2:3] * (-W[2]) + W[3] * x[:, 3:]
    ),
    "in blocks": lambda x: x[:, :1] @ W[:1] + BIAS + x[:, 1:3] @ W[1:3] + x[:, 3:] @ W[3:],
    "split": blocks,
    "a block of each sort": lambda x: x[:, :2] @ W[:2] + (x[:, 2:, None] * W[2:]).sum(1) + BIAS,
    "two matrices": lambda x: x @ (3 * W) - x @ (2 * W) + BIAS,
    "groups with scales": lambda x: (
        (jnp.einsum("bgi,gim->bgm", x.reshape(B, 2, 2), W.reshape(2, 2, M) / GROUP) * GROUP[:, 0]).sum(1)
        + BIAS
    ),
    "ragged": lambda x: lax.ragged_dot(x, jnp.asarray(W)[None], jnp.array([B])) + BIAS,
    "padded with zeros": lambda x: (
        jnp.pad(x, ((0, 0), (1, 2))) @ jnp.pad(W, ((1, 2), (0, 0)), constant_values=7.0) + BIAS
    ),
    "window": lambda x: lax.reduce_window(x[..., None] * W, 0.0, lax.add, (1, N, 1), (1, 1, 1), "VALID")[
        :, 0
    ],
}


@pytest.mark.parametrize("writing", DENSE)
def test_a_dense_layer_in_other_writings(writing):
    f, R = DENSE[writing], RNG.normal(size=(B, M))
    bias = np.zeros(M) if writing == "window" else BIAS
    helpers.close(f(jnp.asarray(X)), X @ W + bias, 1e-12)
    for rule in RULES if writing in ("broadcast", "in blocks", "two matrices", "ragged") else TWO:
        wanted = by_hand(rule, X, dense_kernel(), np.tile(bias, B), R.ravel())
        helpers.close(explain(f, rule, X, R), wanted, 1e-9)
    units = [u.kind for u in lrpjax.plan(f, None, jnp.asarray(X)) if u.kind != "affine"]
    assert units == ["conv" if writing == "window" else "dense"]


VECTOR = {
    "sum": lambda x: jnp.sum(x * V, -1),
    "mean": lambda x: jnp.mean(x * (V * N), -1),
    "scalars": lambda x: x[:, 0] * V[0] + x[:, 1] * V[1] + x[:, 2] * V[2] + x[:, 3] * V[3],
    "segments": lambda x: jax.ops.segment_sum((x * V).ravel(), jnp.arange(B * N) // N, num_segments=B),
}


@pytest.mark.parametrize("writing", VECTOR)
def test_one_neuron_in_other_writings(writing):
    R, kernel = RNG.normal(size=B), [{b * N + i: V[i] for i in range(N)} for b in range(B)]
    for rule in TWO:
        helpers.close(explain(VECTOR[writing], rule, X, R), by_hand(rule, X, kernel, np.zeros(B), R), 1e-9)


def test_running_sums_with_weights():
    R, kernel = (
        RNG.normal(size=(B, N)),
        [{b * N + i: V[i] for i in range(j + 1)} for b in range(B) for j in range(N)],
    )
    for rule in TWO:
        found = explain(lambda x: jnp.cumsum(x * V, -1), rule, X, R)
        helpers.close(found, by_hand(rule, X, kernel, np.zeros(B * N), R.ravel()), 1e-9)


def test_experts_by_ragged_dot():
    """Each row has the matrix of its expert, whichever that is: it may depend on x."""
    experts = RNG.normal(size=(3, N, M))
    x, R = RNG.normal(size=(6, N)), RNG.normal(size=(6, M))
    x[:, 0] = np.sort(x[:, 0])

    def f(x):
        which = jnp.clip(jnp.floor(lax.stop_gradient(x[:, 0]) + 1), 0, 2).astype(jnp.int32)
        return lax.ragged_dot(x, jnp.asarray(experts), jnp.bincount(which, length=3).astype(jnp.int32))

    which = np.clip(np.floor(x[:, 0] + 1), 0, 2).astype(int)
    kernel = [{t * N + i: experts[which[t], i, j] for i in range(N)} for t in range(6) for j in range(M)]
    for rule in TWO:
        wanted = by_hand(rule, x, kernel, np.zeros(6 * M), R.ravel())
        helpers.close(explain(f, rule, x, R), wanted, 1e-9)
        helpers.close(
            jax.jit(lambda x, rule=rule: lrpjax.relevance(f, everywhere(rule), target=R)(x))(x), wanted, 1e-9
        )


@pytest.mark.parametrize("writing", ["broadcast", "unrolled", "in blocks", "two matrices", "ragged"])
def test_jit_vmap_and_half_precision(writing):
    f, rule = DENSE[writing], rules.Gamma(0.3)
    R = lrpjax.relevance(f, everywhere(rule))
    plain = lrpjax.relevance(lambda x: x @ W + BIAS, everywhere(rule))
    x = jnp.asarray(X)
    helpers.close(jax.jit(R)(x), plain(x), 1e-9)
    several = jnp.stack([x, -x, 2 * x])
    if writing != "ragged":  # which JAX itself cannot map over
        helpers.close(jax.vmap(R)(several), jnp.stack([plain(v) for v in several]), 1e-9)
    with jax.numpy_dtype_promotion("standard"):
        w, b = jnp.asarray(W, jnp.bfloat16), jnp.asarray(BIAS, jnp.bfloat16)
        g = {
            "broadcast": lambda x: (x[..., None] * w).sum(1) + b,
            "unrolled": lambda x: sum(x[:, i, None] * w[i] for i in range(N)) + b,
            "in blocks": lambda x: x[:, :1] @ w[:1] + x[:, 1:] @ w[1:] + b,
            "two matrices": lambda x: x @ (3 * w) - x @ (2 * w) + b,
            "ragged": lambda x: lax.ragged_dot(x, w[None], jnp.array([B])) + b,
        }[writing]
        found = lrpjax.relevance(g, everywhere(rules.ZPlus()))(x.astype(jnp.bfloat16))
        wanted = lrpjax.relevance(lambda x: x @ W + BIAS, everywhere(rules.ZPlus()))(x)
    assert found.dtype == jnp.bfloat16
    helpers.close(np.asarray(found, float), wanted, 0.05, of_largest=True)


# -------------------------------------------------------------------------------------------------------------- convolutions

C, T, K = 3, 7, 3
SEQUENCE, TAPS = RNG.normal(size=(2, T, C)), RNG.normal(size=(K, C))
FULL, CBIAS = RNG.normal(size=(K, C, 4)), RNG.normal(size=C)
NWC = ("NWC", "WIO", "NWC")


def depthwise(x, padding, stride=1):
    kernel = jnp.asarray(TAPS)[:, None]
    z = lax.conv_general_dilated(x, kernel, (stride,), padding, dimension_numbers=NWC, feature_group_count=C)
    return z + CBIAS


def convolution(x, padding, kernel=FULL, dilation=1):
    kernel = jnp.asarray(kernel)
    return lax.conv_general_dilated(x, kernel, (1,), padding, (dilation,), dimension_numbers=NWC)


def padded(x, low, high):
    return jnp.pad(x, ((0, 0), (low, high), (0, 0)))


def taps(x, size=T, step=1):
    return sum(x[:, i : i + size : step] * TAPS[i] for i in range(K)) + CBIAS


SHIFTED = {
    "causal": (lambda x: taps(padded(x, 2, 0)), lambda x: depthwise(x, [(2, 0)])),
    "zeros beside": (
        lambda x: taps(jnp.concatenate([jnp.zeros((2, 2, C)), x], 1)),
        lambda x: depthwise(x, [(2, 0)]),
    ),
    "no padding": (lambda x: taps(x, T - 2), lambda x: depthwise(x, [(0, 0)])),
    "strides": (lambda x: taps(x, T - 2, 2), lambda x: depthwise(x, [(0, 0)], 2)),
    "each padded": (
        lambda x: sum(padded(x, K - 1 - i, 0)[:, :T] * TAPS[i] for i in range(K)) + CBIAS,
        lambda x: depthwise(x, [(2, 0)]),
    ),
    "padded behind": (
        lambda x: sum(padded(x * TAPS[i], 2 - i, i)[:, :T] for i in range(K)) + CBIAS,
        lambda x: depthwise(x, [(2, 0)]),
    ),
    "rolled": (
        lambda x: sum(jnp.roll(x, K - 1 - i, axis=1) * TAPS[i] for i in range(K)) + CBIAS,
        lambda x: depthwise(jnp.concatenate([x[:, -2:], x], 1), [(0, 0)]),
    ),
    "dots": (
        lambda x: sum(padded(x, 1, 1)[:, i : i + T] @ FULL[i] for i in range(K)),
        lambda x: convolution(x, [(1, 1)]),
    ),
    "channels apart": (
        lambda x: (
            convolution(x[..., :1], [(1, 1)], FULL[:, :1]) + convolution(x[..., 1:], [(1, 1)], FULL[:, 1:])
        ),
        lambda x: convolution(x, [(1, 1)]),
    ),
    "two kernels": (
        lambda x: convolution(x, [(1, 1)], 3 * FULL) - convolution(x, [(1, 1)], 2 * FULL),
        lambda x: convolution(x, [(1, 1)]),
    ),
    "behind a layer": (
        lambda x: jax.nn.silu(taps(padded(x @ TAPS, 2, 0))),
        lambda x: jax.nn.silu(depthwise(x @ TAPS, [(2, 0)])),
    ),
}
PADDED = {
    "pad": (lambda x: convolution(padded(x, 1, 1), [(0, 0)]), lambda x: convolution(x, [(1, 1)])),
    "moved behind": (
        lambda x: lax.conv_general_dilated(
            jnp.pad(x, ((0, 0), (1, 1), (0, 0))).transpose(0, 2, 1),
            jnp.asarray(FULL).transpose(2, 1, 0),
            (1,),
            "VALID",
        ).transpose(0, 2, 1),
        lambda x: convolution(x, [(1, 1)]),
    ),
    "read twice": (
        lambda x: (lambda p: convolution(p, [(0, 0)]) + jnp.tanh(convolution(p, [(0, 0)])))(padded(x, 1, 1)),
        lambda x: convolution(x, [(1, 1)]) + jnp.tanh(convolution(x, [(1, 1)])),
    ),
    "between elements": (
        lambda x: convolution(
            lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (1, 0, 1), (0, 0, 0)]), [(1, 2)]
        ),
        lambda x: convolution(x, [(2, 2)], dilation=2),
    ),
    "cropped": (
        lambda x: convolution(
            lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (-1, 1, 0), (0, 0, 0)]), [(0, 0)]
        ),
        lambda x: convolution(x[:, 1:], [(0, 1)]),
    ),
}


@pytest.mark.parametrize("writing", [*SHIFTED, *PADDED])
def test_a_convolution_in_other_writings(writing):
    f, plain = (SHIFTED | PADDED)[writing]
    x = jnp.asarray(SEQUENCE)
    R = RNG.normal(size=plain(x).shape)
    for rule in (rules.ZBox(-3.0, 3.0), rules.Gamma(0.3)):
        helpers.close(explain(f, rule, x, R), explain(plain, rule, x, R), 1e-8)
    kinds = [u.kind for u in lrpjax.plan(f, None, x) if u.kind != "affine"]
    assert kinds == [u.kind for u in lrpjax.plan(plain, None, x) if u.kind != "affine"]


def test_a_depthwise_convolution_one_contribution_at_a_time():
    f, _ = SHIFTED["causal"]
    R = RNG.normal(size=SEQUENCE.shape)
    place = lambda b, t, c: (b * T + t) * C + c
    kernel = [
        {place(b, t + i - 2, c): TAPS[i, c] for i in range(K) if t + i >= 2}
        for b in range(2)
        for t in range(T)
        for c in range(C)
    ]
    for rule in RULES:
        wanted = by_hand(rule, SEQUENCE, kernel, np.tile(CBIAS, 2 * T), R.ravel())
        helpers.close(explain(f, rule, SEQUENCE, R), wanted, 1e-9)


@pytest.mark.parametrize("mode", ["constant", "wrap", "reflect"])
def test_only_zeros_are_no_inputs(mode):
    """Ones, or copies of x, that are padded are inputs of the layer."""
    options = {"constant_values": 1.0} if mode == "constant" else {}
    f = lambda x: convolution(jnp.pad(x, ((0, 0), (1, 1), (0, 0)), mode=mode, **options), [(0, 0)])
    pad = lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0)), mode=mode, **options)
    x, R = jnp.asarray(SEQUENCE), RNG.normal(size=(2, T, 4))
    for rule in (rules.Flat(), rules.WSquare()):
        inner = explain(lambda p: convolution(p, [(0, 0)]), rule, pad(x), R)
        # In plain form each padded element hands its relevance to the one that it is a copy of.
        helpers.close(explain(f, rule, x, R), jax.vjp(pad, x)[1](jnp.asarray(inner))[0], 1e-9)


def test_an_explicit_padding_that_is_asked_for_stays_visible():
    def f(x):
        return convolution(lrpjax.tag(padded(x, 1, 1), "padded"), [(0, 0)])

    x = jnp.asarray(SEQUENCE)
    found = lrpjax.relevance(f, everywhere(rules.Flat()), at="padded")(x)
    assert found.shape == (2, T + 2, C)


# ---------------------------------------------------------------------------------------------------- what is no layer

G, SHIFT = RNG.normal(size=N), RNG.normal(size=N)
COS, SIN = np.cos(np.arange(N // 2)), np.sin(np.arange(N // 2))


def normalised(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * G + SHIFT


ORDINARY = {
    "a scale": lambda x: x * G + SHIFT,
    "sum": lambda x: x.sum(-1),
    "mean of a scaled value": lambda x: (x * G).mean(0),
    "layer norm": lambda x: normalised(x) @ W,
    "mean of a layer norm": lambda x: normalised(x).mean(0),
    "average of a layer": lambda x: (x[:, None, :] @ W).mean(1),
    "positions": lambda x: jax.nn.relu(x + SHIFT) @ W,
    "rotary": lambda x: jnp.concatenate(
        [x[:, :2] * COS - x[:, 2:] * SIN, x[:, 2:] * COS + x[:, :2] * SIN], -1
    ),
    "rotary, halves": lambda x: (
        x * np.tile(COS, 2) + jnp.concatenate([-x[:, 2:], x[:, :2]], -1) * np.tile(SIN, 2)
    ),
    "low rank": lambda x: x @ W + (x @ W[:, :2]) @ W[:2] * 0.5,
    "residual": lambda x: x + x @ W[:, :N],
    "two branches": lambda x: (
        convolution(x[..., None], [(1, 1)], FULL[:, :1]) + convolution(x[..., None], [(0, 0)], FULL[:1, :1])
    ),
    "recurrence": lambda x: lax.scan(
        lambda c, a: (jnp.tanh(c + a[:, None] * V), None), jnp.zeros((B, N)), x.T
    )[0],
    "mean over steps": lambda x: lax.scan(lambda c, a: (c + a / N, None), jnp.zeros(B), x.T)[0],
    "residual steps": lambda x: lax.scan(lambda c, a: (c + jnp.tanh(c @ a), None), x, jnp.ones((2, N, N)))[0],
}


@pytest.mark.parametrize("network", ORDINARY)
def test_ordinary_networks_have_no_layers_but_their_own_and_give_no_warning(network):
    f, x = ORDINARY[network], jnp.asarray(X)
    composite = lrpjax.Composite([(select.kind("dense", "conv"), rules.ZPlus())], preset="of this test")
    assert lrpjax.plan(f, composite, x).notes == []
    lrpjax.relevance(f, composite)(x)
    layers = sum(u.kind in ("dense", "conv") for u in lrpjax.plan(f, None, x))
    products = str(jax.make_jaxpr(f)(x)).count("dot_general") + str(jax.make_jaxpr(f)(x)).count(
        "conv_general_dilated["
    )
    assert layers == products


NATIVE = {
    "steps": lambda x: lax.scan(
        lambda c, a: (c + a[0][:, None] * a[1], None), jnp.zeros((B, M)), (x.T, jnp.asarray(W))
    )[0],
    "steps of a counter": lambda x: lax.fori_loop(
        0, N, lambda i, c: c + x[:, i, None] * jnp.asarray(W)[i], jnp.zeros((B, M))
    ),
    "steps of dots": lambda x: lax.scan(
        lambda c, a: (c + a[0] @ a[1], None),
        jnp.zeros((B, M)),
        (x.reshape(B, 2, 2).transpose(1, 0, 2), jnp.asarray(W).reshape(2, 2, M)),
    )[0],
    "Fourier": lambda x: jax.scipy.signal.fftconvolve(x[0], jnp.asarray(V)),
    "several ways": lambda x: (x[..., None] * W).sum() + (x * V).sum(),
    "solve": lambda x: jax.scipy.linalg.solve_triangular(
        jnp.eye(N) + jnp.tril(jnp.ones((N, N))), x.T, lower=True
    ),
}


@pytest.mark.parametrize("network", NATIVE)
def test_weighted_sums_that_stay_native_are_named(network):
    f, x = NATIVE[network], jnp.asarray(X)
    asked = lrpjax.Composite([(select.kind("dense", "conv"), rules.Gamma())], preset="of this test")
    with pytest.warns(lrpjax.NativeWarning, match="test_weighted.py") as given:
        lrpjax.relevance(f, asked)(x)
    assert len(given) == 1
    assert any(note.startswith("native: ") for note in lrpjax.plan(f, asked, x).notes)
    for composite in (None, lrpjax.composites.epsilon()):  # in proportion is what these ask for
        lrpjax.relevance(f, composite)(x)
        assert lrpjax.plan(f, composite, x).notes == []


def test_patterns_refuse_what_is_no_dot_or_convolution():
    with pytest.raises(lrpjax.UnsupportedError, match="patterns are fitted to dots and convolutions"):
        lrpjax.patterns.fit(lambda x: (x[..., None] * W).sum(1), [X])


def test_patterns_behind_an_explicit_padding():
    x = RNG.normal(size=(8, T, C))
    one = lrpjax.patterns.fit(lambda x: convolution(padded(x, 1, 1), [(0, 0)]), [x], kind="linear")
    two = lrpjax.patterns.fit(lambda x: convolution(x, [(1, 1)]), [x], kind="linear")
    helpers.close(one["conv"], two["conv"], 1e-8)


# ------------------------------------------------------------------------------------------------------------------- ways


def test_whether_ways_meet():
    assert ways.reaches_zero(-6, [(4, 0, 1), (2, 0, 1)]) and not ways.reaches_zero(-5, [(4, 0, 1), (2, 0, 1)])
    assert ways.reaches_zero(3, [(-3, 0, 2)]) and not ways.reaches_zero(3, [(3, 0, 2)])
    rng = np.random.default_rng(0)
    for _ in range(300):
        steps = [
            (int(t), int(a), int(a) + int(n)) for t, a, n in rng.integers([-4, -4, 0], [4, 4, 8], (3, 3))
        ]
        total = int(rng.integers(-9, 9))
        grids = np.meshgrid(*(np.arange(a, b + 1) * t for t, a, b in steps))
        assert ways.reaches_zero(total, steps) == bool((sum(grids) + total == 0).any())


MOVES = {
    "reshape": lambda x: x.reshape(2, 12),
    "transposed": lambda x: x.transpose(2, 0, 1),
    "slices": lambda x: x[1:, ::2, 1:3],
    "reversed": lambda x: x[:, ::-1],
    "padded": lambda x: lax.pad(x, 0.0, [(1, 0, 0), (-1, 2, 0), (0, 0, 0)]),
    "beside": lambda x: jnp.concatenate([x[:, 1:], x[:, :1]], 1),
    "split": lambda x: jnp.split(x, 2, axis=2)[1],
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (2, 5, 3, 4)),
    "merged": lambda x: x[:, :, None].reshape(6, 1, 4).squeeze(1),
}


@pytest.mark.parametrize("move", MOVES)
def test_ways_know_which_elements_move_where(move):
    x = np.arange(24.0).reshape(2, 3, 4)
    g = graph.build(jax.make_jaxpr(MOVES[move])(jnp.asarray(x)))
    (source,) = g.inputs
    source.carries = True
    found = {source: [ways.whole(source.shape)]}
    for node in g.nodes:
        for i, out in enumerate(node.outputs):
            out.carries = compat.is_float(out.aval) and any(v.carries for v in node.inputs)
            moved = [
                ways.moved(node, place, i, w) for place, v in enumerate(node.inputs) for w in found.get(v, [])
            ]
            assert None not in moved
            found[out] = [w for w in moved if not w.empty]
    (out,) = g.outputs
    wanted = np.asarray(MOVES[move](jnp.asarray(x + 1)))
    made = np.zeros(out.shape)
    for way in found[out]:
        for e in np.ndindex(*out.shape):
            if all(a <= c < b for a, c, b in zip(way.low, e, way.high, strict=True)):
                made[e] += x.ravel()[way.offset + sum(s * c for s, c in zip(way.strides, e, strict=True))] + 1
    np.testing.assert_array_equal(made, wanted)


def test_a_dot_that_sums_nothing_up_is_a_scale():
    """Each output has one input: there are no contributions for z⁺ to choose among."""
    rng = np.random.default_rng(5)
    x, a = rng.normal(size=(3, 4)), rng.normal(size=4)
    composite = lrpjax.Composite([("*", rules.ZPlus())])
    for spelling in (lambda x: jnp.einsum("td,d->td", x, a), lambda x: jnp.einsum("d,td->dt", a, x).T):
        kinds = [u.kind for u in lrpjax.plan(lambda x, f=spelling: jnp.tanh(f(x)), None, x)]
        assert "dense" not in kinds
        ours = lrpjax.relevance(lambda x, f=spelling: f(x) @ np.ones(4), composite)(x)
        np.testing.assert_allclose(
            ours, lrpjax.relevance(lambda x: (x * a) @ np.ones(4), composite)(x), rtol=1e-9
        )


def test_two_average_pools_of_stacked_slices_are_no_convolution():
    """The mean of neighbours, twice, with a roll between: sums of slices with one number each."""
    halves = lambda x: jnp.stack([x[0::2], x[1::2]]).mean(0)
    f = lambda x: halves(jnp.roll(halves(x), 1))
    assert {u.kind for u in lrpjax.plan(f, None, jnp.arange(8.0))}.isdisjoint({"conv", "dense"})
