"""A LLaMA-style decoder, written in the usual ways, against LXT's formulation written out.

For ε = 0, AttnLRP is x ⊙ ∂f̃/∂x of a function f̃ with f's values and other derivatives (Arras et al. 2025; `lxt.efficient`): an activation's
is f(x) / x, a norm's scale is a constant, a product of two hands half to each (so q and k, with two products above them, get a quarter).
CP-LRP (Ali et al. 2022): q, k, the gate and the router's weights are constants.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites

DIM, HEADS, KV, SIZE, HIDDEN, LAYERS, VOCABULARY, TOKENS = 12, 4, 2, 6, 20, 2, 11, 7
EXPERTS = 3
TOKEN_IDS = jnp.array([3, 1, 4, 1, 5, 9, 2])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def parameters(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1))
    return {
        "embedding": normal(VOCABULARY, DIM),
        "final": 1 + normal(DIM) / 4,
        "layers": {
            "attention_norm": 1 + normal(LAYERS, DIM) / 4,
            "q": normal(LAYERS, DIM, HEADS * SIZE),
            "k": normal(LAYERS, DIM, KV * SIZE),
            "v": normal(LAYERS, DIM, KV * SIZE),
            "o": normal(LAYERS, HEADS * SIZE, DIM),
            "mlp_norm": 1 + normal(LAYERS, DIM) / 4,
            "router": normal(LAYERS, DIM, EXPERTS),
            "gate": normal(LAYERS, EXPERTS, DIM, HIDDEN),
            "up": normal(LAYERS, EXPERTS, DIM, HIDDEN),
            "down": normal(LAYERS, EXPERTS, HIDDEN, DIM),
        },
    }


@jax.custom_vjp
def half(x):
    return x


half.defvjp(lambda x: (x, None), lambda _, g: (g / 2,))


class Plain:
    """The functions as a model has them."""

    activation = staticmethod(jax.nn.silu)
    half = gate = query_key = staticmethod(lambda x: x)

    @staticmethod
    def norm(x, w):
        return w * x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


class AttnLRP(Plain):
    """The same values; the derivatives of LXT's efficient AttnLRP."""

    activation = staticmethod(lambda x: x * lax.stop_gradient(jax.nn.silu(x) / x))

    half = staticmethod(half)

    @staticmethod
    def norm(x, w):
        return w * x * lax.stop_gradient(lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6))


class CPLRP(AttnLRP):
    """The same values; what weighs or gates is a constant, and all of a product goes to its other operand."""

    half = staticmethod(lambda x: x)
    gate = query_key = staticmethod(lax.stop_gradient)


def rotate_half(x, position):
    """RoPE as LLaMA's code has it: the first half of a head's features against the second."""
    angle = position[:, None] / 100 ** (jnp.arange(SIZE // 2) / (SIZE // 2))
    cos, sin = (jnp.concatenate([f(angle)] * 2, -1)[:, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-b, a], -1) * sin


def rotate_complex(x, position):
    """The same rotation, of complex numbers."""
    angle = position[:, None] / 100 ** (jnp.arange(SIZE // 2) / (SIZE // 2))
    a, b = jnp.split(x, 2, -1)
    turned = lax.complex(a, b) * lax.complex(jnp.cos(angle), jnp.sin(angle))[:, None]
    return jnp.concatenate([turned.real, turned.imag], -1)


def repeated(q, k, v):
    k, v = (jnp.repeat(x, HEADS // KV, 1) for x in (k, v))
    scores = jnp.einsum("qhd,khd->hqk", q, k) / np.sqrt(SIZE)
    scores = jnp.where(jnp.tril(jnp.ones((TOKENS, TOKENS), bool)), scores, -jnp.inf)
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v)


def grouped(q, k, v):
    q = q.reshape(TOKENS, KV, HEADS // KV, SIZE)
    scores = jnp.einsum("qhgd,khd->hgqk", q, k) * SIZE**-0.5 + jnp.triu(jnp.full((TOKENS, TOKENS), -1e30), 1)
    e = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("hgqk,khd->qhgd", e / e.sum(-1, keepdims=True), v)
    return out.reshape(TOKENS, HEADS, SIZE)


def library(q, k, v):
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]


def dense_mlp(d, p, x):
    h = d.half(d.gate(d.activation(x @ p["gate"][0])) * (x @ p["up"][0]))
    return h @ p["down"][0]


def experts_mlp(d, p, x):
    """The two best of three experts, each weighted by the router's probability: a product of data with data as well."""
    weights, chosen = lax.top_k(jax.nn.softmax(x @ p["router"]), 2)
    gate, up, down = (p[name][chosen] for name in ("gate", "up", "down"))
    h = d.half(d.gate(d.activation(jnp.einsum("td,tkdh->tkh", x, gate))) * jnp.einsum("td,tkdh->tkh", x, up))
    return d.half(jnp.einsum("tkh,tkhd->tkd", h, down) * d.gate(weights)[..., None]).sum(1)


def separate(p, h):
    return h @ p["q"], h @ p["k"], h @ p["v"]


def fused(p, h):
    """One layer for all three, cut afterwards: q and k leave the split beside v, and CP-LRP gives them nothing."""
    together = h @ jnp.concatenate([p["q"], p["k"], p["v"]], -1)
    return jnp.split(together, [HEADS * SIZE, (HEADS + KV) * SIZE], -1)


def decoder(
    params,
    tokens,
    added=None,
    *,
    d=Plain,
    rotate=rotate_half,
    attend=repeated,
    mlp=dense_mlp,
    project=separate,
    loop=False,
):
    """Logits of the next token, for token ids or their embeddings; `added` [layers, tokens, dim] is added to what the layers put out."""
    position = jnp.arange(TOKENS, dtype=params["final"].dtype)

    def layer(x, given):
        p, add = given
        h = d.norm(x, p["attention_norm"])
        q, k, v = (u.reshape(TOKENS, -1, SIZE) for u in project(p, h))
        q, k = (d.query_key(d.half(d.half(rotate(u, position)))) for u in (q, k))
        x = x + attend(q, k, d.half(v)).reshape(TOKENS, -1) @ p["o"]
        x = x + mlp(d, p, d.norm(x, p["mlp_norm"]))
        x = x if add is None else x + add
        return lrpjax.tag(x, "residual"), x

    x = lrpjax.tag(params["embedding"][tokens] if tokens.ndim == 1 else tokens, "embedded")
    if loop:
        x, streams = lax.scan(layer, x, (params["layers"], added))
    else:
        streams = []
        for i in range(LAYERS):
            x, _ = layer(x, jax.tree.map(lambda a: a[i], (params["layers"], added)))  # noqa: B023
            streams.append(x)
    return d.norm(x[-1], params["final"]) @ params["embedding"].T, jnp.asarray(streams)


WRITINGS = {
    "repeated heads": {},
    "grouped heads": {"attend": grouped},
    "the library's attention": {"attend": library},
    "complex rotation": {"rotate": rotate_complex},
    "experts": {"mlp": experts_mlp},
    "one projection": {"project": fused},
    "one projection, scanned": {"project": fused, "loop": True},
    "scanned": {"loop": True, "attend": grouped},
    "scanned experts": {"loop": True, "mlp": experts_mlp},
}
METHODS = {"attnlrp": (composites.attnlrp(0.0), AttnLRP), "cp_lrp": (composites.cp_lrp(0.0), CPLRP)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("writing", WRITINGS)
def test_relevance_of_the_embedded_tokens_is_that_of_lxt(writing, method, rng):
    composite, derivatives = METHODS[method]
    params, target = parameters(rng), 6
    f = lambda x, **d: decoder(params, x, **WRITINGS[writing], **d)[0]
    x = params["embedding"][TOKEN_IDS]
    expected = x * jax.grad(lambda x: f(x, d=derivatives)[target])(x)
    found = lrpjax.relevance(f, composite, target=target, at="embedded")(TOKEN_IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(f(x, d=derivatives), f(TOKEN_IDS), rtol=1e-12)


@pytest.mark.parametrize("preset", [composites.attnlrp, composites.cp_lrp, composites.mambalrp])
def test_gamma_in_linear_layers_and_nowhere_else(preset, rng):
    params = parameters(rng)
    f = lambda x: decoder(params, x)[0]
    x = params["embedding"][TOKEN_IDS]
    plain, ruled = (lrpjax.plan(f, preset(1e-9, gamma=g), x).units for g in (None, 0.25))
    assert {u.rule for u in ruled if u.kind == "dense"} == {"Gamma(gamma=0.25, epsilon=1e-09)"}
    assert [u.rule for u in plain if u.kind != "dense"] == [u.rule for u in ruled if u.kind != "dense"]
    none, small = (lrpjax.relevance(f, preset(1e-9, gamma=g), target=6)(x) for g in (None, 0.0))
    np.testing.assert_allclose(small, none, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loop", [False, True], ids=["unrolled", "scanned"])
def test_relevance_of_the_residual_stream_is_that_of_lxt(loop, method, rng):
    composite, derivatives = METHODS[method]
    params, target = parameters(rng), 6
    nothing = jnp.zeros((LAYERS, TOKENS, DIM))
    f = functools.partial(decoder, params, mlp=experts_mlp, loop=loop)
    slope, streams = jax.grad(
        lambda added: (lambda y, s: (y[target], s))(*f(TOKEN_IDS, added, d=derivatives)), has_aux=True
    )(nothing)
    explain = lrpjax.relevance(
        lambda x: f(x)[0], composite, target=target, at="residual" if loop else ["embedded", "residual"]
    )
    found = explain(TOKEN_IDS)
    if loop:  # every layer's
        np.testing.assert_allclose(found, streams * slope, rtol=1e-9, atol=1e-12)
    else:  # the last value of that name
        np.testing.assert_allclose(found["residual"], (streams * slope)[-1], rtol=1e-9, atol=1e-12)
