"""Pallas kernels, and functions that are traced in place of a call: against the plain writing of the same network."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import lrpjax
from lrpjax import Composite, composites, rules, select

with warnings.catch_warnings(action="ignore"):  # newer versions of JAX advise another library
    from jax.experimental.pallas.ops.gpu import attention
    from jax.experimental.pallas.ops.tpu import flash_attention
    from jax.experimental.pallas.ops.tpu.megablox import gmm
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

RNG = np.random.default_rng(0)
W = jnp.asarray(RNG.normal(size=(8, 8)))
X = jnp.asarray(RNG.normal(size=(4, 8)))


def tanh_kernel(x_ref, o_ref):
    o_ref[...] = jnp.tanh(x_ref[...])


def bare(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(tanh_kernel, out_shape=shape, interpret=True, name="my_tanh")(x)


def sums(x):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...].sum(1)

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape[:1], x.dtype), interpret=True)(x)


@jax.custom_vjp
def derived(x):
    return bare(x)


derived.defvjp(lambda x: (bare(x), x), lambda x, g: (g * (1 - jnp.tanh(x) ** 2),))


def test_a_kernel_with_a_derivative_has_the_gradients_of_jax():
    f = lambda x: derived(x @ W) @ W
    expected = X * jax.grad(lambda x: f(x).sum())(X)
    np.testing.assert_allclose(lrpjax.relevance(f, composites.input_x_gradient())(X), expected, rtol=1e-12)


def test_a_kernel_is_refused_with_advice_that_works():
    with pytest.raises(lrpjax.UnsupportedError, match=r"calls=\{'my_tanh': f\}") as caught:
        lrpjax.relevance(lambda x: bare(x @ W) @ W)(X)
    assert "Gradient" not in str(caught.value)  # it has no derivative
    with pytest.raises(lrpjax.UnsupportedError, match=r"select\.kind\('derived'\), rules\.Gradient\(\)"):
        lrpjax.relevance(lambda x: derived(x @ W) @ W)(X)
    plain = lambda x: jnp.tanh(x @ W) @ W
    for f in (lambda x: bare(x @ W) @ W, lambda x: derived(x @ W) @ W):
        for composite in (
            Composite(calls={"my_tanh": jnp.tanh}),
            Composite(primitives={"pallas_call": "elementwise"}),
        ):
            R = lrpjax.relevance(f, composite)(X)
            np.testing.assert_allclose(R, lrpjax.relevance(plain)(X), rtol=1e-12)
    by_gradient = [(select.kind("activation"), rules.Gradient())]
    R = lrpjax.relevance(
        lambda x: derived(x @ W) @ W, Composite([(select.kind("derived"), rules.Gradient())])
    )(X)
    np.testing.assert_allclose(R, lrpjax.relevance(plain, Composite(by_gradient))(X), rtol=1e-12)


def test_an_elementwise_kernel_keeps_the_shape():
    composite = Composite(primitives={"pallas_call": "elementwise"})
    np.testing.assert_allclose(lrpjax.relevance(bare, composite)(X), jnp.tanh(X), rtol=1e-12)
    with pytest.raises(
        lrpjax.RuleError, match=r"pallas_call makes an array of shape \(4,\) of one of \(4, 8\)"
    ):
        lrpjax.relevance(sums, composite)(X)


@pytest.mark.parametrize(
    "wrap", [jax.jit, jax.custom_jvp, jax.custom_vjp], ids=["jit", "custom_jvp", "custom_vjp"]
)
def test_a_call_is_exchanged(wrap):
    def gate(x):
        return jnp.sort(x, -1) * 2.0

    inner = wrap(gate)
    if hasattr(inner, "defjvp"):
        inner.defjvp(lambda primals, tangents: (gate(*primals), tangents[0]))
    elif hasattr(inner, "defvjp"):
        inner.defvjp(lambda x: (gate(x), None), lambda _, g: (g,))
    f = lambda x: inner(x @ W) @ W
    plain = lambda x: (x @ W) ** 2 @ W
    composite = Composite(calls={"gate": jnp.square})
    np.testing.assert_allclose(lrpjax.relevance(f, composite)(X), lrpjax.relevance(plain)(X), rtol=1e-12)
    (note,) = lrpjax.plan(f, composite, X).notes
    assert "exchanged: gate" in note and "test_kernels.py" in note and "square" in note
    assert note in str(lrpjax.plan(f, composite, X))
    assert jax.tree.unflatten(*jax.tree.flatten(composite)[::-1]).calls == {"gate": jnp.square}
    jitted = jax.jit(lambda x, c: lrpjax.relevance(f, c)(x))(X, composite)
    np.testing.assert_allclose(jitted, lrpjax.relevance(plain)(X), rtol=1e-12)


def test_static_arguments_are_given_where_they_are_wanted():
    inner = jax.custom_vjp(lambda power, x, scale: jnp.sort(x) ** power * scale, nondiff_argnums=(0,))
    inner.defvjp(lambda power, x, scale: (x, None), lambda power, _, g: (g, g))
    seen = []

    def reference(x, scale, *, static):
        seen.append(static)
        return x ** static[0] * scale

    f = lambda x: inner(3, x @ W, X @ W)
    R = lrpjax.relevance(f, Composite(calls={"<lambda>": reference}))(X)
    assert seen == [(3,)]
    np.testing.assert_allclose(R, lrpjax.relevance(lambda x: (x @ W) ** 3 * (X @ W))(X), rtol=1e-10)


def test_what_does_not_fit_is_an_error():
    f = lambda x: bare(x @ W) @ W
    with pytest.raises(
        lrpjax.RuleError, match=r"returns \(float64\[4\]\), but the call returns \(float64\[4,8\]\)"
    ):
        lrpjax.relevance(f, Composite(calls={"my_tanh": lambda x: x.sum(1)}))(X)
    with pytest.raises(lrpjax.RuleError, match=r"float32\[4,8\]"):
        lrpjax.relevance(f, Composite(calls={"my_tanh": lambda x: x.astype(jnp.float32)}))(X)
    with pytest.raises(lrpjax.RuleError, match="cannot be traced with the call's arrays"):
        lrpjax.relevance(f, Composite(calls={"my_tanh": lambda x, y: x}))(X)
    with pytest.raises(lrpjax.RuleError, match="functions by the names"):
        Composite(calls={"my_tanh": 3})
    with pytest.warns(lrpjax.UnmatchedWarning, match=r"names in calls that no call has: calls\['other'\]"):
        lrpjax.relevance(lambda x: x @ W, Composite(calls={"other": jnp.tanh}))(X)


# ------------------------------------------------------------------------------------------ JAX's own kernels


@pytest.fixture
def as_shipped():
    """The kernels promote types, and are written for 32 bits."""
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        yield


def plainly(q, k, v, mask=None, scale=1.0, bias=0.0):
    scores = (jnp.einsum("...td,...sd->...ts", q, k) + bias) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jnp.einsum("...ts,...sd->...td", jax.nn.softmax(scores, -1), v)


def alike(f, g, x, tolerance):
    for composite in (composites.attnlrp(), composites.cp_lrp()):
        expected = lrpjax.relevance(g, composite)(x)
        difference = jnp.abs(lrpjax.relevance(f, composite)(x) - expected).max()
        assert difference <= tolerance * jnp.abs(expected).max(), composite.preset
    (note,) = lrpjax.plan(f, composites.attnlrp(), x).notes
    assert "plain writing in lrpjax" in note


HEADS, T = 2, 16
PROJECTIONS = [jnp.asarray(RNG.normal(size=(8, HEADS * 16)) * 0.3, jnp.float32) for _ in range(3)]
SEQUENCE = jnp.asarray(RNG.normal(size=(1, T, 8)), jnp.float32)
SEGMENTS = jnp.arange(T, dtype=jnp.int32)[None] // 7
BLOCKS = attention.BlockSizes(16, 16, 16, 16, 16, 16)


def multi_head(attend):
    return lambda x: attend(*((x @ w).reshape(*x.shape[:-1], HEADS, 16) for w in PROJECTIONS)).reshape(
        x.shape[0], -1
    )


@pytest.mark.parametrize(("causal", "segments"), [(False, None), (True, None), (True, SEGMENTS)])
def test_pallas_attention_for_gpus(as_shipped, causal, segments):
    kernel = multi_head(
        lambda q, k, v: attention.mha(
            q, k, v, segments, sm_scale=0.25, causal=causal, block_sizes=BLOCKS, interpret=True
        )
    )
    mask = jnp.tril(jnp.ones((T, T), bool)) if causal else jnp.ones((T, T), bool)
    if segments is not None:
        mask &= segments[0][:, None] == segments[0][None, :]
    moved = lambda q, k, v: (a.swapaxes(1, 2) for a in (q, k, v))
    plain = multi_head(lambda q, k, v: plainly(*moved(q, k, v), mask, 0.25).swapaxes(1, 2))
    alike(kernel, plain, SEQUENCE, 1e-6)
    if causal and segments is None:
        expected = SEQUENCE * jax.grad(lambda x: kernel(x).sum())(SEQUENCE)
        gradient = lrpjax.relevance(kernel, composites.input_x_gradient())(SEQUENCE)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
        alike(jax.vmap(kernel), jax.vmap(plain), jnp.stack([SEQUENCE, -SEQUENCE, 2 * SEQUENCE]), 1e-6)


LONG, WIDE = 256, 128
LONG_X = jnp.asarray(RNG.normal(size=(1, HEADS, LONG, 8)), jnp.float32)
LONG_W = [jnp.asarray(RNG.normal(size=(8, WIDE)) * 0.2, jnp.float32) for _ in range(3)]
CAUSAL = jnp.tril(jnp.ones((LONG, LONG), bool))
APART = jnp.arange(LONG)[:, None] - jnp.arange(LONG)[None, :]


@pytest.mark.parametrize("with_bias", [False, True])
def test_flash_attention_for_tpus(as_shipped, with_bias):
    bias = jnp.asarray(RNG.normal(size=(1, HEADS, LONG, LONG)), jnp.float32) if with_bias else None
    ids = jnp.arange(LONG)[None] // 100
    segments = flash_attention.SegmentIds(ids, ids) if with_bias else None
    kernel = lambda x: flash_attention.flash_attention(
        *(x @ w for w in LONG_W), bias, segments, causal=True, sm_scale=0.1
    )
    mask = CAUSAL & (ids[0][:, None] == ids[0][None, :]) if with_bias else CAUSAL
    plain = lambda x: plainly(*(x @ w for w in LONG_W), mask, 0.1, 0.0 if bias is None else bias)
    alike(kernel, plain, LONG_X, 1e-6)


RANDOM = np.asarray(RNG.random((LONG, LONG)) > 0.3) | np.eye(LONG, dtype=bool)


@pytest.mark.parametrize(
    ("mask", "dense"),
    [
        (masks.CausalMask((LONG, LONG)), CAUSAL),
        (masks.FullMask((LONG, LONG)), CAUSAL | True),
        (masks.LocalMask((LONG, LONG), (30, 5), 0), (APART <= 30) & (APART >= -5)),
        (masks.NumpyMask(RANDOM), jnp.asarray(RANDOM)),
    ],
    ids=["causal", "full", "local", "numpy"],
)
def test_splash_attention(as_shipped, mask, dense):
    sizes = splash.BlockSizes(128, 128, 128)
    run = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * HEADS), head_shards=1, q_seq_shards=1, block_sizes=sizes
    )
    alike(
        lambda x: jax.vmap(run)(*(x @ w for w in LONG_W)),
        lambda x: plainly(*(x @ w for w in LONG_W), dense),
        LONG_X,
        1e-6,
    )


def test_grouped_products(as_shipped):
    x = jnp.asarray(RNG.normal(size=(256, 128)), jnp.float32)
    w = jnp.asarray(RNG.normal(size=(3, 128, 128)), jnp.float32)
    sizes = jnp.array([64, 128, 64], jnp.int32)
    for transposed in (False, True):
        kernel = lambda x, t=transposed: gmm(x, w, sizes, jnp.float32, (128, 128, 128), transpose_rhs=t)
        kernels = w.swapaxes(1, 2) if transposed else w
        alike(kernel, lambda x, k=kernels: jax.lax.ragged_dot(x, k, sizes), x, 1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"bias": jnp.asarray(RNG.normal(size=(2, 4, T, T)), jnp.bfloat16)},
        {"mask": jnp.asarray(RANDOM[:T, :T])[None, None]},
        {
            "query_seq_lengths": jnp.array([16, 9], jnp.int32),
            "key_value_seq_lengths": jnp.array([12, 9], jnp.int32),
        },
    ],
    ids=lambda o: next(iter(o)),
)
def test_attention_of_cudnn(as_shipped, options, monkeypatch):
    """Only traced: the device would refuse it before."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda *args: 91000)
    weights = [jnp.asarray(RNG.normal(size=(8, 64)) * 0.3, jnp.bfloat16) for _ in range(3)]
    x = jnp.asarray(RNG.normal(size=(2, T, 4, 8)), jnp.bfloat16)
    attend = lambda how: (
        lambda x: jax.nn.dot_product_attention(*(x @ w for w in weights), implementation=how, **options)
    )
    y, _ = lrpjax.value_and_relevance(attend("cudnn"), composites.attnlrp())(x)
    np.testing.assert_array_equal(y, attend("xla")(x))
    alike(attend("cudnn"), attend("xla"), x, 2e-2)


def test_a_users_function_of_the_same_name_is_left_alone():
    @jax.custom_vjp
    def mha(x):
        return jnp.tanh(x)

    mha.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g,))
    assert lrpjax.plan(lambda x: mha(x @ W), composites.attnlrp(), X).notes == []
