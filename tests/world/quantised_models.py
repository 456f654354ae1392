"""Networks that qwix and aqt quantise. Each is held against the network that was not quantised, whose maps it must
resemble. The packages are imported when a model is built, so that either may be missing."""

import jax
import jax.numpy as jnp
from check import TOKENS, Case, image, model, shake
from flax import linen as nn


class _MLP(nn.Module):
    dot_general: object = None

    @nn.compact
    def __call__(self, x):
        more = {} if self.dot_general is None else {"dot_general": self.dot_general}
        for _ in range(2):
            x = nn.relu(nn.Dense(32, **more)(x))
        return nn.Dense(5, **more)(x)


class _CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (8, 16):
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


class _Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            x = x + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(5)(nn.LayerNorm()(x).mean(1))


def _vectors():
    return image(3, 16)


def _sequence():
    return image(2, 8, 32)


def _picture():
    return image(1, 16, 16, 3)


def _trained(net, x):
    return shake(jax.jit(net.init)(jax.random.key(0), x))["params"]


def _qwix(name, build, shape, kind="image", **rule):
    """Weights stored as integers and, where the rule says so, activations quantised as they come."""

    @model(f"qwix/{name}")
    def case():
        import qwix

        net, x = build(), shape()
        params = _trained(net, x)
        provider = qwix.PtqProvider([qwix.QuantizationRule(module_path=".*", **rule)])
        quantised = qwix.quantize_model(net, provider)
        stored = qwix.quantize_params(params, jax.eval_shape(quantised.init, jax.random.key(0), x)["params"])
        return Case(
            lambda x: quantised.apply({"params": stored}, x),
            x,
            kind=kind,
            like=lambda x: net.apply({"params": params}, x),
        )


BOTH = {"weight_qtype": jnp.int8, "act_qtype": jnp.int8}
_qwix("mlp-w8a8", _MLP, _vectors, **BOTH)
_qwix("mlp-w8", _MLP, _vectors, weight_qtype=jnp.int8)
_qwix("mlp-w4-in-tiles", _MLP, _vectors, weight_qtype=jnp.int4, tile_size=8)
_qwix("mlp-float8", _MLP, _vectors, weight_qtype=jnp.float8_e4m3fn, act_qtype=jnp.float8_e4m3fn)
_qwix("cnn-w8a8", _CNN, _picture, **BOTH)
_qwix("transformer-w8a8", _Transformer, _sequence, TOKENS, **BOTH)
_qwix("transformer-w8", _Transformer, _sequence, TOKENS, weight_qtype=jnp.int8)


@model("qwix/mlp-in-training")
def training():
    """Quantised and dequantised again at every step, with a straight-through gradient."""
    import qwix

    net, x = _MLP(), _vectors()
    params = _trained(net, x)
    quantised = qwix.quantize_model(net, qwix.QtProvider([qwix.QtRule(module_path=".*", **BOTH)]))
    plain = lambda x: net.apply({"params": params}, x)
    return Case(lambda x: quantised.apply({"params": params}, x), x, like=plain)


@model("aqt/mlp-w8a8")
def aqt():
    from aqt.jax.v2 import config
    from aqt.jax.v2.flax.aqt_flax import AqtDotGeneral

    net, x = _MLP(), _vectors()
    params = _trained(net, x)
    quantised = _MLP(lambda *args, **how: AqtDotGeneral(config.config_v4())(*args, **how))
    keys = {"params": jax.random.key(1)}
    variables = {**quantised.init(jax.random.key(0), x), "params": params}
    plain = lambda x: net.apply({"params": params}, x)
    return Case(lambda x: quantised.apply(variables, x, rngs=keys), x, like=plain)
