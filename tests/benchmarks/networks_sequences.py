"""Further networks for sequences, in flax linen with random weights: LSTM, Mamba and a decoder like Llama, each behind its embedding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


class LSTM(nn.Module):
    """Layers of LSTM in a scan over time: embedded tokens to the logits of the next token."""

    width: int = 512
    depth: int = 2
    words: int = 8192

    @nn.compact
    def __call__(self, x):
        start = jnp.zeros((x.shape[0], self.width), x.dtype)
        for _ in range(self.depth):
            x = nn.RNN(nn.OptimizedLSTMCell(self.width))(x, initial_carry=(start, start))
        return nn.Dense(self.words, use_bias=False)(x[:, -1])


class Selective(nn.Module):
    """The mixer of Mamba: a causal depthwise convolution, a selective state space in a scan over time, a gate."""

    states: int = 16
    expand: int = 2
    window: int = 4

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        wide, rank = self.expand * width, max(1, width // 16)
        dense = lambda width, bias=False: nn.Dense(width, use_bias=bias)
        y, gate = jnp.split(dense(2 * wide)(x), 2, -1)
        y = nn.Conv(wide, (self.window,), padding="CAUSAL", feature_group_count=wide)(y)
        y = nn.swish(y)
        step, into, out = jnp.split(dense(rank + 2 * self.states)(y), [rank, rank + self.states], -1)
        step = nn.softplus(dense(wide, bias=True)(step))
        rates = lambda *_: jnp.log(jnp.broadcast_to(jnp.arange(1.0, self.states + 1), (wide, self.states)))
        decay = -jnp.exp(self.param("rates", rates))
        skip = self.param("skip", nn.initializers.ones, (wide,))

        def turn(h, now):
            y, step, into, out = now
            h = jnp.exp(step[..., None] * decay) * h + (step * y)[..., None] * into[:, None]
            return h, jnp.einsum("bes,bs->be", h, out)

        time_first = lambda a: jnp.swapaxes(a, 0, 1)
        h = jnp.zeros((x.shape[0], wide, self.states), x.dtype)
        _, read = lax.scan(turn, h, tuple(map(time_first, (y, step, into, out))))
        return dense(width)((time_first(read) + y * skip) * nn.swish(gate))


class Mamba(nn.Module):
    """Embedded tokens to the logits of the next token."""

    width: int = 512
    depth: int = 4
    words: int = 8192

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = x + Selective()(nn.RMSNorm()(x))
        return nn.Dense(self.words, use_bias=False)(nn.RMSNorm()(x)[:, -1])


def rotated(x: jax.Array) -> jax.Array:
    """Rotary positions of [batch, tokens, heads, width]."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class LlamaBlock(nn.Module):
    """Grouped-query attention with rotary positions, and SwiGLU."""

    heads: int
    groups: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        dense = lambda width: nn.Dense(width, use_bias=False)
        h = nn.RMSNorm()(x)
        shaped = lambda heads: dense(heads * width // self.heads)(h).reshape(*x.shape[:2], heads, -1)
        q, k, v = rotated(shaped(self.heads)), rotated(shaped(self.groups)), shaped(self.groups)
        q = q.reshape(*x.shape[:2], self.groups, self.heads // self.groups, -1)
        scores = jnp.einsum("bqgrd,bkgd->bgrqk", q, k) * q.shape[-1] ** -0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        seen = jnp.einsum("bgrqk,bkgd->bqgrd", nn.softmax(scores), v)
        x = x + dense(width)(seen.reshape(x.shape))
        h = nn.RMSNorm()(x)
        return x + dense(width)(nn.swish(dense(self.hidden)(h)) * dense(self.hidden)(h))


class Llama(nn.Module):
    """Embedded tokens to the logits of the next token."""

    width: int = 512
    depth: int = 4
    heads: int = 8
    groups: int = 4
    hidden: int = 1408
    words: int = 8192
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(LlamaBlock) if self.remat else LlamaBlock
        for _ in range(self.depth):
            x = block(self.heads, self.groups, self.hidden)(x)
        return nn.Dense(self.words, use_bias=False)(nn.RMSNorm()(x)[:, -1])


NETWORKS = {
    "lstm": LSTM(),
    "mamba": Mamba(),
    "llama": Llama(),
    "tiny_lstm": LSTM(8, 1, 16),
    "tiny_mamba": Mamba(8, 1, 16),
    "tiny_llama": Llama(8, 1, 2, 1, 16, 16),
}
