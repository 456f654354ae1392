"""Nothing is differentiated but what relevance flows through: run step by step, no value that a unit takes as a constant has a tangent.

A gate and its signal are often cut from one array (the library's LSTM, GPT-2's q, k and v, gated MLPs): the gate's half then leaves the same
operation as the signal's, and JAX would differentiate it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import lrpjax
from lrpjax import composites
from lrpjax.core import frame


class LSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.OptimizedLSTMCell(5))(x)[:, -1])


class GPT(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(12)(nn.RMSNorm()(x)), 3, -1)
        x = x + nn.Dense(4)(nn.softmax(q @ k.swapaxes(-1, -2)) @ v)
        a, b = jnp.split(nn.Dense(16)(nn.LayerNorm()(x)), 2, -1)
        return nn.Dense(3)(x + nn.Dense(4)(nn.gelu(a) * b))[:, -1]


class Mamba(nn.Module):
    @nn.compact
    def __call__(self, x):
        h, z = jnp.split(nn.Dense(16)(x), 2, -1)
        delta, b, c = jnp.split(nn.Dense(14)(nn.silu(h)), [8, 11], -1)
        delta = nn.softplus(delta)
        decay = jnp.exp(-delta[..., None] * jnp.arange(1.0, 4.0, dtype=x.dtype))
        drive = (delta * h)[..., None] * b[..., None, :]
        step = lambda s, t: (lambda s: (s, (s * t[2]).sum(-1)))(s * t[0] + t[1])
        scanned = jax.vmap(lambda *t: lax.scan(step, jnp.zeros((8, 3), x.dtype), t)[1])
        return nn.Dense(3)(scanned(decay, drive, c) * nn.silu(z))[:, -1]


COMPOSITES = {
    "default": None,
    "attnlrp": composites.attnlrp(),
    "cp_lrp": composites.cp_lrp(),
    "mambalrp": composites.mambalrp(),
}


def differentiated(model, composite, monkeypatch):
    """The places whose values are read as constants and have a tangent all the same."""
    found, fixed = set(), frame.Frame.fixed

    def watched(self, value):
        array = fixed(self, value)
        tangent = getattr(array, "tangent", None)
        if tangent is not None and type(tangent).__name__ != "Zero":
            found.add(value.node.place if value.node else "input")
        return array

    x = jax.random.normal(jax.random.key(0), (2, 4, 4), jnp.float32)
    variables = model.init(jax.random.key(1), x)
    monkeypatch.setattr(frame.Frame, "fixed", watched)
    with jax.disable_jit():  # loops and branches too are run step by step, where tangents can be seen
        lrpjax.relevance(lambda x: model.apply(variables, x), composite, target="max")(x)
    return found


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("model", [LSTM(), GPT(), Mamba()], ids=lambda m: type(m).__name__)
def test_what_is_read_as_a_constant_has_no_tangent(model, name, monkeypatch):
    assert not differentiated(model, COMPOSITES[name], monkeypatch)


@pytest.mark.parametrize(
    ("model", "name"), [(LSTM(), "default"), (GPT(), "cp_lrp"), (Mamba(), "mambalrp")], ids=str
)
def test_the_watch_sees_a_half_that_is_not_detached(model, name, monkeypatch):
    monkeypatch.setattr(frame.Frame, "stop", lambda self, unit: None)
    assert any(place.startswith("split") for place in differentiated(model, COMPOSITES[name], monkeypatch))
