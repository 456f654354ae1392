"""What people run in 2026, written as its best known programs write it: decoders with scanned, rematerialised and sharded layers, experts by
`ragged_dot`, diffusion transformers, latent attention, quantised layers, attention in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from check import TOKENS, Case, image, model, tokens
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

V, D, H, L, F, T = 40, 32, 4, 3, 64, 8  # vocabulary, width, heads, layers, inner width, length


def _weights(*shape, seed=0, fan_in=None):
    scale = (fan_in or shape[-2]) ** -0.5
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) * scale, jnp.float32)


def _rms(x, scale=None):
    y = x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return y if scale is None else y * scale


def _rope(x):
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / 10_000 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _attention(x, p, causal=True):
    q, k, v = (jnp.einsum("btd,dhe->bthe", x, p[n]) for n in ("q", "k", "v"))
    q, k = _rope(q), _rope(k)
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, 2), jnp.repeat(v, group, 2)
    scores = jnp.einsum("bthe,bshe->bhts", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
    out = jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(scores), v)
    return jnp.einsum("bthe,hed->btd", out, p["o"])


def _attention_weights(layers, kv=2):
    e = D // H
    return {
        "q": _weights(layers, D, H, e, seed=1, fan_in=D),
        "k": _weights(layers, D, kv, e, seed=2, fan_in=D),
        "v": _weights(layers, D, kv, e, seed=3, fan_in=D),
        "o": _weights(layers, H, e, D, seed=4, fan_in=D),
        "norm": 1 + 0.1 * _weights(layers, D, seed=5, fan_in=1),
        "norm2": 1 + 0.1 * _weights(layers, D, seed=6, fan_in=1),
    }


def _decoder(block, p, constrain=lambda x: x, policy=None):
    """A decoder whose layers are scanned and rematerialised. It is explained at its embeddings."""
    table, head = _weights(V, D, seed=7, fan_in=1), _weights(D, V, seed=8)

    def layer(x, p):
        x = constrain(x + _attention(_rms(x, p["norm"]), p))
        return constrain(x + block(_rms(x, p["norm2"]), p)), None

    def f(x):
        x = constrain(x)
        x, _ = lax.scan(jax.checkpoint(layer, policy=policy), x, p)
        return (_rms(x) @ head)[:, -1]

    return Case(f, table[tokens(2, T, V)], kind=TOKENS)


def _swiglu(x, p):
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def _dense_weights():
    return {
        "gate": _weights(L, D, F, seed=9),
        "up": _weights(L, D, F, seed=10),
        "down": _weights(L, F, D, seed=11),
    }


@model("modern/decoder-scan-remat")
def decoder():
    return _decoder(_swiglu, _attention_weights(L) | _dense_weights())


@model("modern/decoder-scan-remat-8-devices")
def sharded_decoder():
    """Fully sharded data and tensor parallel, as MaxText has it by logical axes: the same function, so the same relevance."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=auto)
    put = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
    p = _attention_weights(L, kv=4) | _dense_weights()
    p = {
        **p,
        **{n: put(p[n], None, "fsdp", "tensor") for n in ("q", "k", "v", "gate", "up")},
        "o": put(p["o"], None, "tensor", None, "fsdp"),
        "down": put(p["down"], None, "tensor", "fsdp"),
    }
    sharding = NamedSharding(mesh, PartitionSpec("fsdp", None, None))
    constrain = lambda x: lax.with_sharding_constraint(x, sharding)
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    case = _decoder(_swiglu, p, constrain, policy)
    case.x = jax.device_put(case.x, sharding)
    return case


E = 4  # experts


def _expert_weights():
    return {
        "router": _weights(L, D, E, seed=12),
        "gate": _weights(L, E, D, F, seed=13),
        "up": _weights(L, E, D, F, seed=14),
        "down": _weights(L, E, F, D, seed=15),
    }


def _ragged_experts(x, p):
    """Tokens sorted by expert, two experts for each, weights renormalised (Mixtral, Qwen 3, gpt-oss)."""
    rows = x.reshape(-1, D)
    weights, chosen = lax.top_k(jax.nn.softmax(rows @ p["router"]), 2)
    weights = weights / weights.sum(-1, keepdims=True)
    order = jnp.argsort(chosen.reshape(-1))
    sizes = jnp.bincount(chosen.reshape(-1), length=E).astype(jnp.int32)
    sorted_rows = rows[order // 2]
    h = jax.nn.silu(lax.ragged_dot(sorted_rows, p["gate"], sizes)) * lax.ragged_dot(
        sorted_rows, p["up"], sizes
    )
    out = lax.ragged_dot(h, p["down"], sizes)[jnp.argsort(order)].reshape(-1, 2, D)
    return (out * weights[..., None]).sum(1).reshape(x.shape)


@model("modern/experts-ragged-dot")
def experts():
    return _decoder(_ragged_experts, _attention_weights(L) | _expert_weights())


def _sigmoid_experts(x, p):
    """Sigmoid scores with a bias for the choice alone, a shared expert, all experts computed (DeepSeek 3)."""
    scores = jax.nn.sigmoid(x @ p["router"])
    _, chosen = lax.top_k(scores + 0.1, 2)
    mask = jax.nn.one_hot(chosen, E).sum(-2)
    weights = scores * mask
    weights = 2.5 * weights / (weights.sum(-1, keepdims=True) + 1e-20)
    h = jax.nn.silu(jnp.einsum("btd,edf->btef", x, p["gate"])) * jnp.einsum("btd,edf->btef", x, p["up"])
    out = jnp.einsum("btef,efd->bted", h, p["down"])
    shared = _swiglu(x, {n: p[n][0] for n in ("gate", "up", "down")})
    return shared + jnp.einsum("bted,bte->btd", out, weights)


@model("modern/experts-sigmoid-shared")
def sigmoid_experts():
    return _decoder(_sigmoid_experts, _attention_weights(L) | _expert_weights())


@model("modern/diffusion-transformer")
def diffusion_transformer():
    """Patches, adaptive layer norm from the time embedding with gated branches, back to an image (Peebles & Xie 2023)."""
    p = _attention_weights(L, kv=H) | {
        "in": _weights(L, D, F, seed=16),
        "out": _weights(L, F, D, seed=17),
        "ada": 0.3 * _weights(L, D, 6 * D, seed=18),
    }
    patch, back = _weights(4 * 4 * 3, D, seed=19), _weights(D, 4 * 4 * 3, seed=20)
    time = jax.nn.silu(jnp.sin(jnp.arange(D) * 0.3))
    position = 0.1 * _weights(16, D, seed=21, fan_in=1)

    def norm(x):
        x = x - x.mean(-1, keepdims=True)
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)

    def f(x):
        x = x.reshape(-1, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 48)
        x = x @ patch + position

        def layer(x, p):
            shift, scale, gate, shift2, scale2, gate2 = jnp.split(time @ p["ada"], 6)
            x = x + gate * _attention(norm(x) * (1 + scale) + shift, p, causal=False)
            h = jax.nn.gelu((norm(x) * (1 + scale2) + shift2) @ p["in"], approximate=True)
            return x + gate2 * (h @ p["out"]), None

        x, _ = lax.scan(layer, x, p)
        return (norm(x) @ back).reshape(x.shape[0], -1)

    return Case(f, image(1, 16, 16, 3))


@model("modern/conditioned-on-the-image")
def conditioned():
    """As a diffusion transformer whose shifts, scales and gates are computed from the explained input itself."""
    w, ada, out = _weights(16, D, seed=22), 0.3 * _weights(D, 3 * D, seed=23), _weights(D, 5, seed=24)

    def f(x):
        h = x @ w
        shift, scale, gate = jnp.split(jax.nn.silu(h.mean(1, keepdims=True)) @ ada, 3, -1)
        return (h + gate * jax.nn.gelu(_rms(h) * (1 + scale) + shift)).mean(1) @ out

    return Case(f, image(2, T, 16))


@model("modern/latent-attention")
def latent_attention():
    """Keys and values from a compressed latent (DeepSeek 2): low-rank projections with a norm between them."""
    p = {
        "q": _weights(D, H * 8, seed=25),
        "down": _weights(D, 8, seed=26),
        "up": _weights(8, H * 16, seed=27),
        "o": _weights(H * 8, D, seed=28),
    }
    table, head = _weights(V, D, seed=7, fan_in=1), _weights(D, V, seed=8)

    def f(x):
        h = _rms(x)
        q = (h @ p["q"]).reshape(*x.shape[:2], H, 8)
        k, v = jnp.split((_rms(h @ p["down"]) @ p["up"]).reshape(*x.shape[:2], H, 16), 2, -1)
        a = jax.nn.dot_product_attention(_rope(q), _rope(k), v, is_causal=True)
        return (_rms(x + a.reshape(*x.shape[:2], -1) @ p["o"]) @ head)[:, -1]

    return Case(f, table[tokens(2, T, V)], kind=TOKENS)


def _int8(x, axis):
    scale = jnp.max(jnp.abs(x), axis, keepdims=True) / 127
    return jnp.clip(jnp.round(x / scale), -127, 127).astype(jnp.int8), scale


@model("modern/dynamic-int8")
def dynamic_int8():
    """Activations quantised row by row, weights by column, products of integers."""
    layers = [_weights(a, b, seed=s) for s, (a, b) in enumerate([(12, 32), (32, 32), (32, 5)])]
    stored = [_int8(w, 0) for w in layers]

    def dense(x, w, scale):
        q, s = _int8(x, -1)
        return lax.dot(q, w, preferred_element_type=jnp.int32).astype(jnp.float32) * s * scale

    def f(x):
        for i, (w, scale) in enumerate(stored):
            x = dense(x, w, scale)
            x = jax.nn.relu(x) if i < 2 else x
        return x

    return Case(f, image(3, 12), conserves=True)


@model("modern/attention-in-blocks")
def blocks():
    """Attention with a running maximum, over blocks of keys (Dao et al. 2022)."""
    p = jax.tree.map(lambda a: a[0], _attention_weights(1, kv=H))
    head = _weights(D, 5, seed=29)

    def f(x):
        q, k, v = (jnp.einsum("btd,dhe->bhte", x, p[n]) for n in ("q", "k", "v"))
        split = lambda a: jnp.moveaxis(a.reshape(*a.shape[:2], -1, 4, a.shape[-1]), 2, 0)

        def step(carry, kv):
            m, total, acc = carry
            s = jnp.einsum("bhte,bhse->bhts", q, kv[0]) / q.shape[-1] ** 0.5
            top = jnp.maximum(m, s.max(-1))
            e, old = jnp.exp(s - top[..., None]), jnp.exp(m - top)
            acc = acc * old[..., None] + jnp.einsum("bhts,bhse->bhte", e, kv[1])
            return (top, total * old + e.sum(-1), acc), None

        start = (jnp.full(q.shape[:3], -jnp.inf), jnp.zeros(q.shape[:3]), jnp.zeros(q.shape))
        (_, total, acc), _ = lax.scan(step, start, (split(k), split(v)))
        out = jnp.einsum("bhte,hed->btd", acc / total[..., None], p["o"])
        return (x + out).mean(1) @ head

    return Case(f, image(1, T, D))


@model("modern/fixed-step-ode")
def ode():
    """A neural ordinary differential equation by Runge-Kutta steps in a scan."""
    w1, w2, out = _weights(8, 32, seed=30), _weights(32, 8, seed=31), _weights(8, 3, seed=32)
    field = lambda y: jnp.tanh(y @ w1) @ w2

    def f(x):
        def step(y, _):
            k1 = field(y)
            k2 = field(y + 0.05 * k1)
            return y + 0.1 * k2, None

        return lax.scan(step, x, None, 10)[0] @ out

    return Case(f, image(2, 8), conserves=False)


@model("modern/mixture-of-depths")
def depths():
    """Only the highest scored tokens pass through the block; gathered and scattered back."""
    w, w1, w2, head = (_weights(*s, seed=33 + i) for i, s in enumerate([(D, 1), (D, F), (F, D), (D, 5)]))

    def f(x):
        score = jax.nn.sigmoid(x @ w)[..., 0]
        value, index = lax.top_k(score, 4)
        rows = jnp.take_along_axis(x, index[..., None], 1)
        out = jax.nn.gelu(rows @ w1) @ w2 * value[..., None]
        batch = jnp.arange(x.shape[0])[:, None]
        return x.at[batch, index].add(out).mean(1) @ head

    return Case(f, image(2, T, D))
