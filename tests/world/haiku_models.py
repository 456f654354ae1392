"""dm-haiku: its nets, and small networks of its recurrent cores, attention and other layers."""

import haiku as hk
import jax
import jax.numpy as jnp
from check import TOKENS, Case, image, model, shake


def _pure(net, x, clean=False, training=None):
    """A function of x from a haiku function, with its parameters and its state fixed. `training`: what is_training is when explaining."""
    transformed = hk.transform_with_state(net)
    mode = lambda value: {} if training is None else {"is_training": value}
    params, state = transformed.init(jax.random.key(0), x, **mode(True))
    params = params if clean else shake(params)
    if training is False:  # running statistics of a batch
        batch = image(4, *x.shape[1:], seed=1)
        state = transformed.apply(params, state, jax.random.key(2), batch, **mode(True))[1]
    if clean:  # which may shift nothing where no bias is wanted
        state = {
            name: jax.tree.map(jnp.zeros_like, value) if "mean" in name else value
            for name, value in state.items()
        }
    return lambda x: transformed.apply(params, state, jax.random.key(1), x, **mode(training))[0]


@model("haiku/mlp")
def mlp():
    x = image(2, 12)
    return Case(_pure(lambda x: hk.nets.MLP([16, 16, 5])(x), x), x)


@model("haiku/mobilenet-v1")
def mobilenet():
    x = image(1, 32, 32, 3)
    return Case(
        _pure(lambda x, is_training: hk.nets.MobileNetV1(num_classes=5)(x, is_training), x, training=False), x
    )


def _resnet(depth, version=1, clean=False):
    x = image(1, 32, 32, 3)
    cls = getattr(hk.nets, f"ResNet{depth}")
    config = {"name": "final", "w_init": hk.initializers.VarianceScaling()}

    def net(x, is_training):
        return cls(
            5, resnet_v2=version == 2, logits_config=config, bn_config={"decay_rate": 0.9, "eps": 1e-5}
        )(x, is_training)

    return Case(_pure(net, x, clean, training=False), x)


for _depth in (18, 50, 101):
    for _version in (1, 2):
        model(f"haiku/resnet{_depth}-v{_version}")(lambda d=_depth, v=_version: _resnet(d, v))


@model("haiku/resnet18-v1-clean")
def resnet_clean():
    case = _resnet(18, clean=True)
    case.conserves, case.note = True, "as initialised, no bias"
    return case


@model("haiku/vq-vae")
def vq():
    x = image(1, 16, 16, 3)

    def net(x):
        z = hk.Sequential([hk.Conv2D(8, 3, 2), jax.nn.relu, hk.Conv2D(4, 3, 2)])(x)
        z = hk.nets.VectorQuantizer(4, 8, 0.25)(z, is_training=False)["quantize"]
        return hk.Sequential([hk.Conv2DTranspose(8, 3, 2), jax.nn.relu, hk.Conv2DTranspose(3, 3, 2)])(z)

    return Case(_pure(net, x), x, note="straight-through estimator")


def _recurrent(core):
    x = image(2, 7, 6)

    def net(x):
        cell = core()
        h, _ = hk.dynamic_unroll(cell, x, cell.initial_state(x.shape[0]), time_major=False)
        return hk.Linear(4)(h[:, -1])

    return Case(_pure(net, x), x)


@model("haiku/lstm")
def lstm():
    return _recurrent(lambda: hk.LSTM(8))


@model("haiku/gru")
def gru():
    return _recurrent(lambda: hk.GRU(8))


@model("haiku/vanilla-rnn")
def rnn():
    return _recurrent(lambda: hk.VanillaRNN(8))


@model("haiku/deep-lstm-residual")
def deep_lstm():
    return _recurrent(lambda: hk.deep_rnn_with_skip_connections([hk.LSTM(8), hk.LSTM(8)]))


@model("haiku/lstm-static-unroll")
def static_lstm():
    x = image(2, 4, 6)

    def net(x):
        cell = hk.LSTM(8)
        h, _ = hk.static_unroll(cell, x, cell.initial_state(2), time_major=False)
        return hk.Linear(4)(h[:, -1])

    return Case(_pure(net, x), x)


@model("haiku/conv-lstm")
def conv_lstm():
    x = image(1, 3, 8, 8, 2)

    def net(x):
        cell = hk.Conv2DLSTM((8, 8), 4, 3)
        h, _ = hk.dynamic_unroll(cell, x, cell.initial_state(1), time_major=False)
        return hk.Linear(4)(h[:, -1].mean((1, 2)))

    return Case(_pure(net, x), x)


@model("haiku/transformer")
def transformer():
    x = image(1, 6, 16)

    def net(x):
        norm = lambda x: hk.LayerNorm(-1, True, True)(x)
        for _ in range(2):
            h = norm(x)
            x = x + hk.MultiHeadAttention(4, 4, w_init=hk.initializers.VarianceScaling(), model_size=16)(
                h, h, h
            )
            x = x + hk.Linear(16)(jax.nn.gelu(hk.Linear(32)(norm(x))))
        return hk.Linear(5)(norm(x).mean(1))

    return Case(_pure(net, x), x, kind=TOKENS)


@model("haiku/transformer-layer-stack")
def layer_stack():
    x = image(1, 6, 16)

    def block(x):
        h = hk.RMSNorm(-1)(x)
        x = x + hk.MultiHeadAttention(4, 4, w_init=hk.initializers.VarianceScaling(), model_size=16)(h, h, h)
        return x + hk.Linear(16)(jax.nn.silu(hk.Linear(32)(hk.RMSNorm(-1)(x))))

    return Case(
        _pure(lambda x: hk.Linear(5)(hk.layer_stack(3)(block)(x).mean(1)), x),
        x,
        kind=TOKENS,
        note="scan over layers",
    )


@model("haiku/instance-norm-style")
def instance_norm():
    x = image(1, 16, 16, 3)

    def net(x):
        for width in (8, 16):
            x = jax.nn.relu(hk.InstanceNorm(True, True)(hk.Conv2D(width, 3, 2)(x)))
        x = jax.nn.relu(hk.GroupNorm(4)(hk.SeparableDepthwiseConv2D(2, 3)(x)))
        return hk.Linear(5)(hk.Flatten()(hk.MaxPool(2, 2, "SAME")(x)))

    return Case(_pure(net, x), x)


@model("haiku/batch-norm-training")
def batch_norm_training():
    x = image(4, 8, 8, 3)

    def net(x, is_training):
        for width in (8, 16):
            x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(width, 3, 2)(x), is_training))
        return hk.Linear(5)(x.mean((1, 2)))

    return Case(_pure(net, x, training=True), x, note="batch statistics")


@model("haiku/dcgan-generator")
def dcgan():
    x = image(2, 10)

    def net(z, is_training):
        x = jnp.reshape(hk.Linear(4 * 4 * 16)(z), (-1, 4, 4, 16))
        for width in (8, 4):
            x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2DTranspose(width, 4, 2)(x), is_training))
        return jnp.tanh(hk.Conv2DTranspose(3, 4, 2)(x))

    return Case(_pure(net, x, training=False), x)


@model("haiku/gan-discriminator")
def discriminator():
    x = image(2, 8, 8, 3)

    def net(x):
        for width in (8, 16):
            x = jax.nn.leaky_relu(hk.Conv2D(width, 3, 2)(x), 0.2)
        return hk.Linear(1)(hk.Flatten()(x))

    return Case(_pure(net, x), x)
