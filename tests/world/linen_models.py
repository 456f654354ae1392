"""Networks of our own in flax.linen, for families and writings that the collections lack."""

import functools

import jax
import jax.numpy as jnp
from check import TOKENS, Case, image, model, shake, tokens
from flax import linen as nn

from lrpjax import composites


def _case(net, x, kind="image", **more):
    variables = shake(jax.jit(net.init)(jax.random.key(0), x))
    return Case(lambda x: net.apply(variables, x), x, kind=kind, **more)


def _net(body):
    """A linen module from a function of x."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return body(x)

    return Net()


def _define(name, x, body, kind="image", **more):
    model(f"linen/{name}")(lambda: _case(_net(body), x(), kind, **more))


picture = functools.partial(image, 1, 16, 16, 3)
sequence = functools.partial(image, 2, 8, 16)


def _norm(x):
    return nn.BatchNorm(use_running_average=True)(x)


def _unet(x):
    skips = []
    for width in (8, 16):
        x = nn.relu(nn.GroupNorm(4)(nn.Conv(width, (3, 3))(x)))
        skips.append(x)
        x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.silu(nn.Conv(16, (3, 3))(x))
    for skip, width in zip(skips[::-1], (16, 8), strict=True):
        x = nn.ConvTranspose(width, (2, 2), (2, 2))(x)
        x = nn.relu(nn.Conv(width, (3, 3))(jnp.concatenate([x, skip], -1)))
    x = jax.image.resize(x, (1, 8, 8, 8), "bilinear")
    return nn.Conv(2, (1, 1))(x).mean((1, 2))


_define("u-net", picture, _unet)


def _diffusion_unet(x):
    time = nn.silu(nn.Dense(16)(jnp.sin(jnp.arange(16.0) * 0.3)))
    h = nn.Conv(16, (3, 3))(x)
    skip = h
    h = nn.silu(nn.GroupNorm(4)(h))
    h = nn.Conv(16, (3, 3))(h)
    scale, shift = jnp.split(nn.Dense(32)(time), 2)
    h = nn.silu(nn.GroupNorm(4)(h) * (1 + scale) + shift)
    h = skip + nn.Conv(16, (3, 3))(h)
    tokens = h.reshape(1, -1, 16)
    h = h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(tokens)).reshape(h.shape)
    return nn.Conv(3, (3, 3))(h)


_define("diffusion-u-net", functools.partial(image, 1, 6, 6, 3), _diffusion_unet)


def _densenet(x):
    x = nn.Conv(8, (3, 3), use_bias=False)(x)
    for _ in range(2):
        for _ in range(3):
            h = nn.Conv(8, (1, 1), use_bias=False)(nn.relu(_norm(x)))
            x = jnp.concatenate([x, nn.Conv(4, (3, 3), use_bias=False)(nn.relu(_norm(h)))], -1)
        x = nn.avg_pool(nn.Conv(8, (1, 1), use_bias=False)(nn.relu(_norm(x))), (2, 2), (2, 2))
    return nn.Dense(5)(x.mean((1, 2)))


_define("densenet", picture, _densenet)


def _clean_resnet(x):
    x = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(x))
    for _ in range(3):
        h = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(x))
        x = nn.relu(x + nn.Conv(8, (3, 3), use_bias=False)(h))
        x = nn.avg_pool(x, (2, 2), (2, 2))
    return nn.Dense(5, use_bias=False)(x.mean((1, 2)))


_define("resnet-no-bias", picture, _clean_resnet, conserves=True)
_define(
    "mlp-no-bias-gelu",
    lambda: image(2, 12),
    lambda x: nn.Dense(5, use_bias=False)(
        nn.gelu(nn.Dense(16, use_bias=False)(nn.silu(nn.Dense(16, use_bias=False)(x))))
    ),
    conserves=True,
)


def _inverted(x, width, expand=4, act=nn.relu6):
    h = act(_norm(nn.Conv(x.shape[-1] * expand, (1, 1), use_bias=False)(x)))
    h = act(_norm(nn.Conv(h.shape[-1], (3, 3), feature_group_count=h.shape[-1], use_bias=False)(h)))
    s = nn.sigmoid(nn.Conv(h.shape[-1], (1, 1))(nn.silu(nn.Conv(4, (1, 1))(h.mean((1, 2), keepdims=True)))))
    h = _norm(nn.Conv(width, (1, 1), use_bias=False)(h * s))
    return x + h if width == x.shape[-1] else h


def _mobilenet(act):
    def body(x):
        x = act(_norm(nn.Conv(8, (3, 3), 2, use_bias=False)(x)))
        for width in (8, 8, 16, 16):
            x = _inverted(x, width, act=act)
        return nn.Dense(5)(act(nn.Conv(32, (1, 1))(x)).mean((1, 2)))

    return body


_define("mobilenet-relu6", picture, _mobilenet(nn.relu6))
_define("mobilenet-relu6-as-clip", picture, _mobilenet(lambda x: jnp.clip(x, 0.0, 6.0)))
_define("mobilenet-relu6-as-minmax", picture, _mobilenet(lambda x: jnp.minimum(jnp.maximum(x, 0.0), 6.0)))
_define("efficientnet-silu", picture, _mobilenet(nn.silu))
_define("mobilenet-hard-swish", picture, _mobilenet(nn.hard_swish))
_define("mobilenet-hard-swish-by-hand", picture, _mobilenet(lambda x: x * nn.relu6(x + 3.0) / 6.0))


def _activations(x):
    for act in (
        nn.elu, nn.selu, nn.celu, nn.softplus, nn.soft_sign, nn.leaky_relu, nn.hard_tanh, nn.log_sigmoid, jax.nn.mish, jax.nn.squareplus, jnp.tanh,
        nn.gelu, functools.partial(nn.gelu, approximate=False), nn.hard_silu, jnp.sin, lambda x: jnp.square(nn.relu(x)), lambda x: jnp.abs(x),
        lambda x: x * jnp.tanh(jax.nn.softplus(x)), lambda x: 0.5 * x * (1 + jax.lax.erf(x / 2**0.5)), lambda x: x / (1 + jnp.exp(-x)),
        lambda x: jnp.where(x > 0, x, 0.1 * (jnp.exp(x) - 1)), nn.PReLU(), lambda x: jnp.maximum(x, 0.2 * x), lambda x: x * jax.nn.sigmoid(1.702 * x),
        lambda x: jnp.log1p(jnp.exp(x)), lambda x: jnp.log(jnp.cosh(x) + 0.1), lambda x: jnp.arctan(x), lambda x: jnp.exp(-(x**2)),
    ):  # fmt: skip
        x = nn.LayerNorm()(nn.Dense(16)(act(nn.Dense(16)(x))))
    return nn.Dense(5)(x)


_define(
    "activation-zoo",
    lambda: image(2, 16),
    _activations,
    # With less, sums that cancel multiply relevance by 10⁵ along 57 dense layers, without a residual connection.
    composites={"epsilon": composites.epsilon(0.05)},
)


def _maxout(x):
    for _ in range(2):
        x = nn.Dense(32)(x).reshape(2, 16, 2).max(-1)
    a, b = jnp.split(nn.Dense(32)(x), 2, -1)
    x = jnp.maximum(a, b) + jnp.minimum(nn.Dense(16)(x), nn.Dense(16)(x))
    return nn.Dense(5)(jnp.concatenate([nn.relu(x), nn.relu(-x)], -1))


_define("maxout-crelu", lambda: image(2, 12), _maxout)


def _mixer(x):
    for _ in range(2):
        y = jnp.swapaxes(nn.LayerNorm()(x), 1, 2)
        x = x + jnp.swapaxes(nn.Dense(x.shape[1])(nn.gelu(nn.Dense(16)(y))), 1, 2)
        x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))
    return nn.Dense(5)(nn.LayerNorm()(x).mean(1))


_define("mlp-mixer", sequence, _mixer)


def _gmlp(x):
    for _ in range(2):
        u, v = jnp.split(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))), 2, -1)
        v = jnp.swapaxes(
            nn.Dense(8, bias_init=nn.initializers.ones)(jnp.swapaxes(nn.LayerNorm()(v), 1, 2)), 1, 2
        )
        x = x + nn.Dense(16)(u * v)
    return nn.Dense(5)(x.mean(1))


_define("gmlp", sequence, _gmlp, TOKENS)


def _fnet(x):
    for _ in range(2):
        x = nn.LayerNorm()(x + jnp.fft.fft2(x).real)
        x = nn.LayerNorm()(x + nn.Dense(16)(nn.gelu(nn.Dense(32)(x))))
    return nn.Dense(5)(x.mean(1))


_define("fnet-fft", sequence, _fnet, TOKENS)


def _spectral(x):
    f = jnp.fft.rfft(x, axis=1)
    low = f[:, :3] * (0.5 + 0.2j)
    y = jnp.fft.irfft(jnp.concatenate([low, jnp.zeros_like(f[:, 3:])], 1), n=x.shape[1], axis=1)
    return nn.Dense(5)(nn.gelu(y + nn.Dense(16)(x)).mean(1))


_define("fourier-neural-operator", sequence, _spectral, TOKENS)


def _swiglu(x):
    return nn.Dense(16, use_bias=False)(
        nn.silu(nn.Dense(24, use_bias=False)(x)) * nn.Dense(24, use_bias=False)(x)
    )


def _geglu(x):
    a, b = jnp.split(nn.Dense(48)(x), 2, -1)
    return nn.Dense(16)(nn.gelu(a) * b)


def _glu(x):
    return nn.Dense(16)(nn.glu(nn.Dense(48)(x)))


def _transformer(attend, feed, norm=lambda x: nn.RMSNorm()(x), depth=2):
    def body(x):
        for _ in range(depth):
            x = x + attend(norm(x))
            x = x + feed(norm(x))
        return nn.Dense(5)(norm(x).mean(1))

    return body


def _heads(x, n=4):
    split = lambda y: y.reshape(*y.shape[:2], n, -1)
    return [split(nn.Dense(16)(x)) for _ in range(3)]


def _attention(scores_to_weights, scores=lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2.0):
    def attend(x):
        q, k, v = _heads(x)
        weights = scores_to_weights(scores(q, k))
        return nn.Dense(16)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))

    return attend


def _handwritten(s):
    e = jnp.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _no_max(s):
    e = jnp.exp(s)
    return e / jnp.sum(e, -1, keepdims=True)


def _masked_where(s):
    return jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, -jnp.inf), -1)


def _masked_where_argument(s):
    return jax.nn.softmax(s, -1, where=jnp.tril(jnp.ones(s.shape[-2:], bool)))


def _masked_add(s):
    return jax.nn.softmax(s + jnp.where(jnp.tril(jnp.ones(s.shape[-2:])) > 0, 0.0, -jnp.inf), -1)


def _off_by_one(s):
    m = jnp.maximum(jax.lax.stop_gradient(s.max(-1, keepdims=True)), 0.0)
    e = jnp.exp(s - m)
    return e / (jnp.exp(-m) + e.sum(-1, keepdims=True))


def _reciprocal(s):
    e = jnp.exp(s - jax.lax.stop_gradient(s).max(-1, keepdims=True))
    return e * (1.0 / e.sum(-1, keepdims=True))


for _name, _weights in (
    ("softmax", lambda s: jax.nn.softmax(s, -1)),
    ("exp-log-softmax", lambda s: jnp.exp(jax.nn.log_softmax(s, -1))),
    ("exp-minus-logsumexp", lambda s: jnp.exp(s - jax.nn.logsumexp(s, -1, keepdims=True))),
    ("softmax-by-hand", _handwritten),
    ("softmax-no-max", _no_max),
    ("softmax-reciprocal", _reciprocal),
    ("softmax-masked-where", _masked_where),
    ("softmax-where-argument", _masked_where_argument),
    ("softmax-masked-add", _masked_add),
    ("softmax-off-by-one", _off_by_one),
    ("softmax-temperature-soft-cap", lambda s: jax.nn.softmax(30.0 * jnp.tanh(s / 30.0), -1)),
    ("sigmoid-attention", lambda s: jax.nn.sigmoid(s - jnp.log(8.0))),
    ("relu-attention-normalised", lambda s: nn.relu(s) / (nn.relu(s).sum(-1, keepdims=True) + 1e-6)),
    ("double-normalised", lambda s: (lambda a: a / (1e-9 + a.sum(-2, keepdims=True)))(jax.nn.softmax(s, -1))),
    ("sparsemax", lambda s: _sparsemax(s)),
    ("talking-heads", lambda s: jnp.einsum("bhqk,hg->bgqk", jax.nn.softmax(s, -1), jnp.eye(4) + 0.1)),
):
    _define(f"attention/{_name}", sequence, _transformer(_attention(_weights), _swiglu), TOKENS)


def _sparsemax(s):
    sorted_ = jnp.sort(s, -1)[..., ::-1]
    total = jnp.cumsum(sorted_, -1)
    rank = jnp.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    support = (1 + rank * sorted_ > total).sum(-1, keepdims=True)
    threshold = (jnp.take_along_axis(total, support - 1, -1) - 1) / support
    return jnp.maximum(s - threshold, 0)


def _cosine_scores(q, k):
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    return jnp.einsum("bqhd,bkhd->bhqk", unit(q), unit(k)) * jnp.exp(jnp.minimum(2.3, 4.6))


def _cosine_rsqrt(q, k):
    unit = lambda x: x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-6)
    return 10.0 * jnp.einsum("bqhd,bkhd->bhqk", unit(q), unit(k))


_soft = lambda s: jax.nn.softmax(s, -1)
_define("attention/cosine-swin-v2", sequence, _transformer(_attention(_soft, _cosine_scores), _geglu), TOKENS)
_define("attention/cosine-rsqrt", sequence, _transformer(_attention(_soft, _cosine_rsqrt), _glu), TOKENS)
_define("attention/l2-distance", sequence, _transformer(_attention(_soft, lambda q, k: -((q[:, :, None] - k[:, None]) ** 2).sum(-1).transpose(0, 3, 1, 2)), _glu), TOKENS)  # fmt: skip
_define("attention/linen-module", sequence, _transformer(lambda x: nn.MultiHeadDotProductAttention(4)(x, mask=nn.make_causal_mask(x[..., 0])), _geglu, lambda x: nn.LayerNorm()(x)), TOKENS)  # fmt: skip


def _linear_attention(x):
    q, k, v = _heads(x)
    q, k = nn.elu(q) + 1, nn.elu(k) + 1
    kv = jnp.einsum("bkhd,bkhe->bhde", k, v)
    z = 1 / (jnp.einsum("bqhd,bhd->bqh", q, k.sum(1)) + 1e-6)
    return nn.Dense(16)(jnp.einsum("bqhd,bhde,bqh->bqhe", q, kv, z).reshape(x.shape))


def _performer(x):
    q, k, v = _heads(x)
    projection = jax.random.normal(jax.random.key(3), (4, 8))
    phi = lambda x: jnp.exp(x @ projection - jnp.square(x).sum(-1, keepdims=True) / 2) / 8**0.5
    q, k = phi(q), phi(k)
    out = jnp.einsum("bqhm,bhme->bqhe", q, jnp.einsum("bkhm,bkhe->bhme", k, v))
    return nn.Dense(16)((out / jnp.einsum("bqhm,bhm->bqh", q, k.sum(1))[..., None]).reshape(x.shape))


def _gqa_rope(x):
    q = nn.DenseGeneral((4, 4))(x)
    k, v = nn.DenseGeneral((2, 4))(x), nn.DenseGeneral((2, 4))(x)
    angle = jnp.arange(x.shape[1])[:, None] * 0.5 ** jnp.arange(2.0)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]

    def rotate(x):
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    out = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
    return nn.DenseGeneral(16, (-2, -1))(out)


def _complex_rope(x):
    q, k, v = _heads(x)
    turn = jnp.exp(1j * jnp.arange(x.shape[1])[:, None, None] * 0.5 ** jnp.arange(2.0))
    rotate = lambda x: (jax.lax.complex(x[..., 0::2], x[..., 1::2]) * turn).view(jnp.float32)
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) / 2, -1)
    return nn.Dense(16)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


def _flash_like(x):
    """Attention computed over blocks of keys with a running maximum, by scan."""
    q, k, v = (jnp.swapaxes(y, 1, 2) for y in _heads(x))
    blocks = lambda y: jnp.moveaxis(y.reshape(*y.shape[:2], 2, -1, y.shape[-1]), 2, 0)

    def step(carry, kv):
        m, total, out = carry
        s = jnp.einsum("bhqd,bhkd->bhqk", q, kv[0]) / 2
        new = jnp.maximum(m, s.max(-1))
        p, old = jnp.exp(s - new[..., None]), jnp.exp(m - new)
        return (
            new,
            total * old + p.sum(-1),
            out * old[..., None] + jnp.einsum("bhqk,bhkd->bhqd", p, kv[1]),
        ), None

    start = (jnp.full(q.shape[:3], -1e9), jnp.zeros(q.shape[:3]), jnp.zeros(q.shape))
    (_, total, out), _ = jax.lax.scan(step, start, (blocks(k), blocks(v)))
    return nn.Dense(16)(jnp.swapaxes(out / total[..., None], 1, 2).reshape(x.shape))


for _name, _attend in (
    ("linear", _linear_attention), ("performer", _performer), ("gqa-rope", _gqa_rope), ("complex-rope", _complex_rope), ("flash-like-scan", _flash_like)
):  # fmt: skip
    _define(f"attention/{_name}", sequence, _transformer(_attend, _swiglu), TOKENS)


def _perceiver(x):
    latents = jnp.broadcast_to(nn.Embed(4, 16)(jnp.arange(4)), (x.shape[0], 4, 16))
    for _ in range(2):
        latents = latents + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(latents), nn.LayerNorm()(x))
        latents = latents + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(latents))
        latents = latents + _geglu(nn.LayerNorm()(latents))
    return nn.Dense(5)(latents.mean(1))


_define("perceiver", sequence, _perceiver, TOKENS)


def _experts(x, n=4):
    w1 = jax.random.normal(jax.random.key(0), (n, 16, 24)) / 4
    w2 = jax.random.normal(jax.random.key(1), (n, 24, 16)) / 5
    return w1, w2


def _moe_dense(x):
    w1, w2 = _experts(x)
    gates = nn.softmax(nn.Dense(4)(x))
    top, index = jax.lax.top_k(gates, 2)
    top = top / top.sum(-1, keepdims=True)
    weights = (jax.nn.one_hot(index, 4) * top[..., None]).sum(-2)
    h = nn.silu(jnp.einsum("btd,ndf->btnf", x, w1))
    return jnp.einsum("btnf,nfd,btn->btd", h, w2, weights)


def _moe_gather(x):
    w1, w2 = _experts(x)
    top, index = jax.lax.top_k(nn.Dense(4)(x), 2)
    gates = nn.softmax(top)
    h = nn.gelu(jnp.einsum("btd,btkdf->btkf", x, w1[index]))
    return (jnp.einsum("btkf,btkfd->btkd", h, w2[index]) * gates[..., None]).sum(-2)


def _moe_dispatch(x):
    """Switch transformer: capacity, one-hot dispatch and combine tensors."""
    w1, w2 = _experts(x)
    flat = x.reshape(-1, 16)
    probabilities = nn.softmax(nn.Dense(4)(flat))
    gate, expert = probabilities.max(-1), probabilities.argmax(-1)
    mask = jax.nn.one_hot(expert, 4)
    position = (jnp.cumsum(mask, 0) * mask - 1).astype(jnp.int32)
    dispatch = jax.nn.one_hot(position, 8) * mask[..., None]
    inputs = jnp.einsum("td,tnc->ncd", flat, dispatch)
    out = jnp.einsum("ncf,nfd->ncd", nn.relu(jnp.einsum("ncd,ndf->ncf", inputs, w1)), w2)
    return jnp.einsum("ncd,tnc->td", out, dispatch * gate[:, None, None]).reshape(x.shape)


def _moe_ragged(x):
    w1, w2 = _experts(x)
    flat = x.reshape(-1, 16)
    logits = nn.Dense(4)(flat)
    expert = logits.argmax(-1)
    order = jnp.argsort(expert)
    sizes = jnp.bincount(expert, length=4)
    h = jax.lax.ragged_dot(nn.relu(jax.lax.ragged_dot(flat[order], w1, sizes)), w2, sizes)
    gate = jnp.take_along_axis(nn.softmax(logits), expert[:, None], 1)
    return (h[jnp.argsort(order)] * gate).reshape(x.shape)


for _name, _feed in (
    ("dense", _moe_dense),
    ("gather", _moe_gather),
    ("dispatch", _moe_dispatch),
    ("ragged-dot", _moe_ragged),
):
    _define(f"moe/{_name}", sequence, _transformer(_attention(_soft), _feed), TOKENS)


def _soft_moe(x):
    w1, w2 = _experts(x)
    logits = nn.Dense(8)(nn.LayerNorm()(x))
    slots = jnp.einsum("btd,bts->bsd", x, jax.nn.softmax(logits, 1)).reshape(-1, 4, 2, 16)
    out = jnp.einsum("bncf,nfd->bncd", nn.gelu(jnp.einsum("bncd,ndf->bncf", slots, w1)), w2).reshape(
        -1, 8, 16
    )
    return jnp.einsum("bsd,bts->btd", out, jax.nn.softmax(logits, 2))


_define("moe/soft", sequence, _transformer(_attention(_soft), _soft_moe), TOKENS)


# ------------------------------------------------------------------------------------------------------------------ recurrent, state-space


def _recurrent(cell):
    return lambda x: nn.Dense(5)(nn.RNN(cell())(x)[:, -1])


for _name, _cell in (
    ("lstm", lambda: nn.LSTMCell(8)),
    ("optimized-lstm", lambda: nn.OptimizedLSTMCell(8)),
    ("gru", lambda: nn.GRUCell(8)),
    ("mgu", lambda: nn.MGUCell(8)),
    ("simple", lambda: nn.SimpleCell(8)),
):
    _define(f"rnn/{_name}", sequence, _recurrent(_cell))


def _bidirectional(x):
    x = nn.Bidirectional(nn.RNN(nn.LSTMCell(8)), nn.RNN(nn.GRUCell(8)))(x)
    weights = nn.softmax(nn.Dense(1)(jnp.tanh(nn.Dense(8)(x))), 1)
    return nn.Dense(5)((weights * x).sum(1))


_define("rnn/bidirectional-attention", sequence, _bidirectional)


def _lstm_text():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            x = nn.Embed(40, 16, name="embed")(ids)
            return nn.Dense(5)(nn.RNN(nn.OptimizedLSTMCell(8))(x)[:, -1])

    net, ids = Net(), tokens(2, 7, 40)
    params = shake(net.init(jax.random.key(0), ids))["params"]
    weights = lambda table: net.apply({"params": {**params, "embed": {"embedding": table}}}, ids)
    f = lambda ids: net.apply({"params": params}, ids)
    return Case(f, ids, at="Net/embed", weights=(weights, params["embed"]["embedding"]))


model("linen/rnn/lstm-text")(_lstm_text)


def _wavenet(x):
    skip = 0.0
    for dilation in (1, 2, 4):
        pad = ((dilation, 0),)
        f = nn.Conv(16, (2,), kernel_dilation=dilation, padding=pad)(x)
        g = nn.Conv(16, (2,), kernel_dilation=dilation, padding=pad)(x)
        h = jnp.tanh(f) * nn.sigmoid(g)
        skip = skip + nn.Dense(16)(h)
        x = x + nn.Dense(16)(h)
    return nn.Dense(5)(nn.relu(skip)).mean(1)


_define("wavenet", sequence, _wavenet)


def _highway(x):
    for _ in range(3):
        t = nn.sigmoid(nn.Dense(16)(x))
        x = t * nn.relu(nn.Dense(16)(x)) + (1 - t) * x
    return nn.Dense(5)(x.mean(1))


_define("highway", sequence, _highway)


def _selective(x, scan):
    """Mamba: Δ, B, C from the data, A fixed, h ← exp(ΔA) h + ΔB x."""
    u, z = jnp.split(nn.Dense(32, use_bias=False)(x), 2, -1)
    u = nn.silu(nn.Conv(16, (4,), padding=((3, 0),), feature_group_count=16)(u))
    delta = nn.softplus(nn.Dense(16)(nn.Dense(2, use_bias=False)(u)))
    B, C = jnp.split(nn.Dense(8, use_bias=False)(u), 2, -1)
    A = -jnp.exp(jnp.log(jnp.arange(1.0, 5.0)) * jnp.ones((16, 1)))
    decay = jnp.exp(delta[..., None] * A)
    drive = (delta * u)[..., None] * B[:, :, None]
    y = jnp.einsum("btdn,btn->btd", scan(decay, drive), C) + u
    return nn.Dense(16, use_bias=False)(y * nn.silu(z))


def _loop(decay, drive):
    def step(h, t):
        h = t[0] * h + t[1]
        return h, h

    return jnp.moveaxis(
        jax.lax.scan(
            step, jnp.zeros_like(drive[:, 0]), (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(drive, 1, 0))
        )[1],
        0,
        1,
    )


def _parallel(decay, drive):
    return jax.lax.associative_scan(lambda a, b: (b[0] * a[0], b[0] * a[1] + b[1]), (decay, drive), axis=1)[1]


for _name, _scan in (("mamba-scan", _loop), ("mamba-associative-scan", _parallel)):
    _define(
        f"ssm/{_name}",
        sequence,
        lambda x, s=_scan: nn.Dense(5)((x + _selective(nn.RMSNorm()(x), s)).mean(1)),
        TOKENS,
    )


def _s4(x):
    """S4D: a diagonal complex state space, as a convolution by FFT."""
    real, imag = -0.5 * jnp.ones((16, 4)), jnp.pi * jnp.arange(4.0) * jnp.ones((16, 4))
    weight = jax.random.normal(jax.random.key(2), (16, 4)) + 1j * jax.random.normal(
        jax.random.key(3), (16, 4)
    )
    times = jnp.arange(x.shape[1])
    kernel = 2 * jnp.einsum("dn,dnt->td", weight, jnp.exp((real + 1j * imag)[..., None] * 0.1 * times)).real
    size = 2 * x.shape[1]
    y = jnp.fft.irfft(jnp.fft.rfft(x, size, 1) * jnp.fft.rfft(kernel, size, 0), size, 1)[:, : x.shape[1]]
    return x + nn.Dense(16)(nn.gelu(y + x))


_define("ssm/s4d-fft", sequence, lambda x: nn.Dense(5)(_s4(nn.LayerNorm()(_s4(x))).mean(1)), TOKENS)


def _hyena(x):
    v, a, b = jnp.split(nn.Dense(48)(x), 3, -1)
    filters = (
        jnp.sin(nn.Dense(16)(jnp.sin(jnp.arange(x.shape[1])[:, None] * jnp.arange(1.0, 5.0))))
        * jnp.exp(-jnp.arange(x.shape[1]))[:, None]
    )
    size = 2 * x.shape[1]
    for gate in (a, b):
        v = (
            gate
            * jnp.fft.irfft(jnp.fft.rfft(v, size, 1) * jnp.fft.rfft(filters, size, 0), size, 1)[
                :, : x.shape[1]
            ]
        )
    return nn.Dense(16)(v)


_define("ssm/hyena", sequence, _transformer(_hyena, _swiglu), TOKENS)


def _rwkv(x):
    k, v, r = nn.Dense(16)(x), nn.Dense(16)(x), nn.Dense(16)(x)
    decay, bonus = -jnp.exp(jnp.linspace(-2.0, 0.0, 16)), 0.3

    def step(carry, kv):
        a, b, m = carry
        k, v = kv
        new = jnp.maximum(m, k + bonus)
        old, now = jnp.exp(m - new), jnp.exp(k + bonus - new)
        out = (old * a + now * v) / (old * b + now)
        new = jnp.maximum(m + decay, k)
        old, now = jnp.exp(m + decay - new), jnp.exp(k - new)
        return (old * a + now * v, old * b + now, new), out

    zero = jnp.zeros((x.shape[0], 16))
    wkv = jax.lax.scan(step, (zero, zero, zero - 1e9), (jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0)))[1]
    return nn.Dense(16)(nn.sigmoid(r) * jnp.moveaxis(wkv, 0, 1))


_define(
    "ssm/rwkv",
    sequence,
    _transformer(_rwkv, lambda x: nn.Dense(16)(jnp.square(nn.relu(nn.Dense(32)(x))))),
    TOKENS,
)


def _mlstm(x):
    q, k, v = (jnp.moveaxis(y, 1, 0) for y in _heads(x, 2))
    i, f = jnp.moveaxis(nn.Dense(2)(x), 1, 0), jnp.moveaxis(nn.Dense(2)(x), 1, 0)

    def step(carry, t):
        memory, total, m = carry
        q, k, v, i, f = t
        f = jax.nn.log_sigmoid(f)
        new = jnp.maximum(f + m, i)
        i, f = jnp.exp(i - new), jnp.exp(f + m - new)
        memory = f[..., None, None] * memory + i[..., None, None] * v[..., :, None] * k[..., None, :]
        total = f[..., None] * total + i[..., None] * k
        read = jnp.einsum("bhde,bhe->bhd", memory, q)
        size = jnp.maximum(jnp.abs(jnp.einsum("bhe,bhe->bh", total, q)), jnp.exp(-new))
        return (memory, total, new), read / size[..., None]

    start = (jnp.zeros((x.shape[0], 2, 8, 8)), jnp.zeros((x.shape[0], 2, 8)), jnp.zeros((x.shape[0], 2)))
    h = jnp.moveaxis(jax.lax.scan(step, start, (q, k / 8**0.5, v, i, f))[1], 0, 1)
    return nn.Dense(16)(nn.sigmoid(nn.Dense(16)(x)) * h.reshape(x.shape))


_define("ssm/xlstm-mlstm", sequence, _transformer(_mlstm, _swiglu), TOKENS)


def _retention(x):
    q, k, v = _heads(x)
    distance = jnp.arange(8.0)[:, None] - jnp.arange(8.0)
    decay = jnp.where(distance >= 0, 0.9**distance, 0.0)
    s = jnp.einsum("bqhd,bkhd->bhqk", q, k) * decay
    s = s / jnp.maximum(jnp.abs(s.sum(-1, keepdims=True)), 1.0)
    out = nn.GroupNorm(4)(jnp.einsum("bhqk,bkhd->bqhd", s, v).reshape(x.shape))
    return nn.Dense(16)(nn.silu(nn.Dense(16)(x)) * out)


_define("ssm/retnet", sequence, _transformer(_retention, _geglu), TOKENS)

# ----------------------------------------------------------------------------------------------------------- linen transforms, structure


def _scanned_layers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x)))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(
                nn.remat(Block, prevent_cse=False),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=3,
            )
            return nn.Dense(5)(layers()(x, None)[0].mean(1))

    return _case(Net(), sequence(), TOKENS, note="nn.scan of nn.remat")


model("linen/structure/scan-remat")(_scanned_layers)


def _vmapped():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            many = nn.vmap(
                nn.Dense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                out_axes=0,
                axis_size=3,
            )
            heads = nn.relu(many(8)(x))
            return nn.Dense(5)(jnp.moveaxis(heads, 0, -2).reshape(*x.shape[:-1], -1)).mean(1)

    return _case(Net(), sequence(), note="an ensemble by nn.vmap")


model("linen/structure/vmap-ensemble")(_vmapped)


def _weight_norms(x):
    x = nn.relu(nn.WeightNorm(nn.Dense(16))(x))
    return nn.Dense(5)(nn.relu(nn.InstanceNorm()(x)).mean(1))


_define("structure/weight-norm", sequence, _weight_norms)


def _vae(x):
    h = nn.relu(nn.Conv(8, (3, 3), 2)(x)).reshape(x.shape[0], -1)
    mean, log_variance = nn.Dense(4)(h), nn.Dense(4)(h)
    z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(jax.random.key(5), mean.shape)
    h = nn.relu(nn.Dense(8 * 8 * 8)(z)).reshape(-1, 8, 8, 8)
    return nn.sigmoid(nn.ConvTranspose(3, (3, 3), (2, 2))(h))


_define("vae", picture, _vae)


def _vae_loss(x):
    h = nn.relu(nn.Dense(16)(x))
    mean, log_variance = nn.Dense(4)(h), nn.Dense(4)(h)
    kl = -0.5 * (1 + log_variance - mean**2 - jnp.exp(log_variance)).sum(-1)
    return (kl + jnp.square(nn.Dense(12)(mean) - x).mean(-1))[:, None]


_define("vae-elbo", lambda: image(2, 12), _vae_loss)


def _coupling(x):
    for flip in (False, True, False):
        a, b = jnp.split(x[:, ::-1] if flip else x, 2, -1)
        s, t = jnp.split(nn.Dense(12)(nn.relu(nn.Dense(16)(a))), 2, -1)
        x = jnp.concatenate([a, b * jnp.exp(jnp.tanh(s)) + t], -1)
    return x


_define("real-nvp", lambda: image(2, 12), _coupling)


def _capsules(x):
    u = nn.Dense(6 * 4)(x).reshape(2, -1, 4)
    squash = lambda v: (n := jnp.square(v).sum(-1, keepdims=True)) / (1 + n) * v / jnp.sqrt(n + 1e-7)
    predictions = jnp.einsum(
        "bid,ijde->bije", squash(u), jax.random.normal(jax.random.key(1), (u.shape[1], 3, 4, 4))
    )
    logits = jnp.zeros(predictions.shape[:3])
    for _ in range(2):
        v = squash((jax.nn.softmax(logits, 2)[..., None] * predictions).sum(1))
        logits = logits + (predictions * v[:, None]).sum(-1)
    return jnp.sqrt(jnp.square(v).sum(-1) + 1e-7)


_define("capsules", lambda: image(2, 12), _capsules)


def _hyper(x):
    w = nn.Dense(16 * 8)(nn.relu(nn.Dense(16)(x))).reshape(-1, 16, 8)
    return nn.Dense(5)(nn.relu(jnp.einsum("bd,bdf->bf", nn.Dense(16)(x), w)))


_define("hypernetwork", lambda: image(2, 12), _hyper)


def _cross(x):
    y = x
    for _ in range(2):
        y = x * nn.Dense(12)(y) + y
    factor = nn.Dense(8)(x)
    machine = 0.5 * (jnp.square(factor.sum(-1, keepdims=True)) - jnp.square(factor).sum(-1, keepdims=True))
    deep = nn.Dense(1)(nn.relu(nn.Dense(16)(x)))
    return jnp.concatenate([nn.Dense(3)(y), machine + deep], -1)


_define("recommender-dcn-fm", lambda: image(2, 12), _cross)


def _rbf(x):
    centres = jax.random.normal(jax.random.key(2), (10, 12))
    squared = jnp.square(x[:, None] - centres).sum(-1)
    return nn.Dense(5)(jnp.exp(-squared / 12))


_define("rbf-network", lambda: image(2, 12), _rbf)


def _kan(x):
    for width in (8, 5):
        grid = jnp.linspace(-2, 2, 6)
        basis = jnp.maximum(0.0, 1 - jnp.abs(x[..., None] - grid) / 0.8)
        x = nn.DenseGeneral(width, (-2, -1), use_bias=False)(basis) + nn.Dense(width)(nn.silu(x))
    return x


_define("kolmogorov-arnold", lambda: image(2, 12), _kan)


def _siren(x):
    x = jnp.concatenate([jnp.sin(x * 2.0**k) for k in range(3)] + [jnp.cos(x * 2.0**k) for k in range(3)], -1)
    for _ in range(2):
        x = jnp.sin(3.0 * nn.Dense(16)(x))
    density, colour = nn.softplus(nn.Dense(1)(x)), nn.sigmoid(nn.Dense(3)(x))
    alpha = 1 - jnp.exp(-density * 0.3)
    through = jnp.cumprod(jnp.concatenate([jnp.ones_like(alpha[:, :1]), 1 - alpha[:, :-1] + 1e-10], 1), 1)
    return (alpha * through * colour).sum(1)


_define("nerf-siren", lambda: image(2, 6, 3), _siren)


def _spatial_transformer(x):
    theta = 0.2 * nn.Dense(6)(nn.relu(nn.Dense(16)(x.reshape(1, -1)))) + jnp.asarray([1.0, 0, 0, 0, 1.0, 0])
    grid = jnp.stack([*jnp.meshgrid(jnp.linspace(-1, 1, 8), jnp.linspace(-1, 1, 8)), jnp.ones((8, 8))], -1)
    where = (jnp.einsum("hwk,ck->chw", grid, theta.reshape(2, 3)) + 1) * 3.5
    sampled = jnp.stack(
        [
            jax.scipy.ndimage.map_coordinates(x[0, ..., c], [where[1], where[0]], 1, mode="nearest")
            for c in range(3)
        ],
        -1,
    )
    return nn.Dense(5)(nn.relu(nn.Conv(8, (3, 3))(sampled[None])).mean((1, 2)))


_define("spatial-transformer", functools.partial(image, 1, 8, 8, 3), _spatial_transformer)


def _tabnet(x):
    prior, total = jnp.ones_like(x), 0.0
    a = nn.relu(nn.Dense(8)(x))
    for _ in range(2):
        mask = _sparsemax(nn.Dense(12)(a) * prior)
        prior = prior * (1.3 - mask)
        d, a = jnp.split(nn.glu(nn.Dense(32)(mask * x)), 2, -1)
        total = total + nn.relu(d)
    return nn.Dense(5)(total)


_define("tabnet", lambda: image(2, 12), _tabnet)


def _point_transformer(x):
    """Offset attention of a point-cloud transformer: softmax over one axis, then divided by its own sum over the other."""
    for _ in range(2):
        q, k, v = nn.Dense(4)(x), nn.Dense(4)(x), nn.Dense(16)(x)
        a = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k), -1)
        a = a / (1e-9 + a.sum(1, keepdims=True))
        x = x + nn.relu(_norm(nn.Dense(16)(x - jnp.einsum("bqk,bqd->bkd", a, v))))
    return nn.Dense(5)(x.max(1))


_define("point-transformer", sequence, _point_transformer)


def _pointnet(x):
    nearest = jax.lax.top_k(-jnp.square(x[:, :, None] - x[:, None]).sum(-1), 3)[1]
    neighbours = jax.vmap(lambda x, i: x[i])(x, nearest)
    edge = jnp.concatenate(
        [jnp.broadcast_to(x[:, :, None], neighbours.shape), neighbours - x[:, :, None]], -1
    )
    return nn.Dense(5)(nn.leaky_relu(nn.Dense(16)(edge)).max(2).max(1))


_define("dgcnn-edge-conv", sequence, _pointnet)


def _sinkhorn(x):
    s = jnp.einsum("bqd,bkd->bqk", nn.Dense(8)(x), nn.Dense(8)(x))
    for _ in range(3):
        s = s - jax.nn.logsumexp(s, -1, keepdims=True)
        s = s - jax.nn.logsumexp(s, -2, keepdims=True)
    return nn.Dense(5)(jnp.einsum("bqk,bkd->bqd", jnp.exp(s), nn.Dense(16)(x)).mean(1))


_define("sinkhorn-attention", sequence, _sinkhorn, TOKENS)


def _adaptive(x):
    halting, total, state = 0.0, 0.0, x.mean(1)
    for _ in range(3):
        state = jnp.tanh(nn.Dense(16)(state))
        p = nn.sigmoid(nn.Dense(1)(state))
        weight = jnp.where(halting + p < 0.99, p, 1 - halting)
        total, halting = total + weight * state, halting + weight
    return nn.Dense(5)(total)


_define("adaptive-computation", sequence, _adaptive)


def _neural_turing(x):
    memory, out = jnp.zeros((2, 6, 8)) + 0.1, []
    for t in range(4):
        h = jnp.tanh(nn.Dense(16)(x[:, t]))
        key, strength, erase, add = (
            nn.Dense(8)(h),
            nn.softplus(nn.Dense(1)(h)),
            nn.sigmoid(nn.Dense(8)(h)),
            nn.Dense(8)(h),
        )
        cosine = jnp.einsum("bnd,bd->bn", memory, key) / (
            jnp.linalg.norm(memory, axis=-1) * jnp.linalg.norm(key, axis=-1, keepdims=True) + 1e-6
        )
        w = nn.softmax(strength * cosine)
        memory = memory * (1 - w[..., None] * erase[:, None]) + w[..., None] * add[:, None]
        out.append(jnp.einsum("bn,bnd->bd", w, memory))
    return nn.Dense(5)(jnp.concatenate(out, -1))


_define("neural-turing-machine", sequence, _neural_turing)


def _bfloat(x):
    x = x.astype(jnp.bfloat16)
    for _ in range(2):
        x = x + nn.MultiHeadDotProductAttention(4, dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x))
        x = x + nn.Dense(16, dtype=jnp.bfloat16)(
            nn.gelu(nn.Dense(32, dtype=jnp.bfloat16)(nn.LayerNorm(dtype=jnp.bfloat16)(x)))
        )
    return nn.Dense(5, dtype=jnp.bfloat16)(x.mean(1)).astype(jnp.float32)


_define("bfloat16-transformer", sequence, _bfloat, TOKENS)


def _half(x):
    x = x.astype(jnp.float16)
    for width in (8, 16):
        x = nn.relu(
            nn.BatchNorm(use_running_average=True, dtype=jnp.float16)(
                nn.Conv(width, (3, 3), dtype=jnp.float16)(x)
            )
        )
        x = nn.max_pool(x, (2, 2), (2, 2))
    return nn.Dense(5, dtype=jnp.float16)(x.mean((1, 2)))


_define("float16-convnet", picture, _half)
