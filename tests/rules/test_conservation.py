"""f(x) = Σ R, layer by layer; f(x) = 0 gives R = 0; LRP-0 is gradient × input on networks of ReLUs without biases."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, rules, select

RNG = np.random.default_rng(5)
LAYERS = select.kind("dense", "conv")


def scoped(name, f, *args):
    with jax.named_scope(name):
        return f(*args)


def conv(x, kernel, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x, kernel, options.pop("strides", (1, 1)), "SAME", dimension_numbers=numbers, **options
    )


def normal(*shape):
    return RNG.normal(size=shape)


M = [normal(8, 12), normal(12, 10), normal(10, 4)]
C = [normal(3, 3, 2, 4), normal(3, 3, 4, 4), normal(3, 3, 1, 4), normal(16, 3)]
A = [normal(6, 6) for _ in range(3)] + [normal(6, 3)]
V = RNG.uniform(0.5, 2.0, size=4)


def mlp(x):
    for i, w in enumerate(M[:-1]):
        x = scoped(f"layer{i}", lambda x, w=w: jax.nn.relu(x @ w), x)
    return x @ M[-1]


def cnn(x):
    """Strides, depthwise convolution, max and average pooling, BatchNorm without shift."""
    x = scoped("layer0", lambda x: jax.nn.relu(conv(x, C[0]) * lax.rsqrt(V)), x)
    x = scoped("pool", lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)
    x = scoped("layer1", lambda x: jax.nn.relu(conv(x, C[2], feature_group_count=4)), x)
    x = scoped(
        "mean", lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4.0, x
    )
    return x.reshape(1, -1) @ C[3]


def residual(x):
    x = scoped("layer0", lambda x: jax.nn.relu(conv(x, C[0], strides=(2, 2))), x)
    x = scoped("layer1", lambda x: jax.nn.relu(x + conv(x, C[1])), x)
    x = scoped("layer2", lambda x: x + jax.nn.relu(conv(x, C[1])), x)
    return x.mean((1, 2)) @ C[3][:4]


def attention(x):
    """A transformer block without biases: the softmax and everything under it receives what it hands on."""
    x = scoped("layer0", lambda x: x + attend(rms(x)), x)
    x = scoped("layer1", lambda x: x + jax.nn.gelu(rms(x) @ A[0]) @ A[1], x)
    return x.mean(0) @ A[3]


def rms(x):
    return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def attend(x):
    return jax.nn.softmax((x @ A[0]) @ (x @ A[1]).T / 2.0) @ (x @ A[2])


NETS = {
    "mlp": (mlp, normal(8)),
    "cnn": (cnn, normal(1, 8, 8, 2)),
    "residual": (residual, normal(1, 8, 8, 2)),
}
PATHS = {
    "mlp": ["layer0", "layer1"],
    "cnn": ["layer0", "pool", "layer1", "mean"],
    "residual": ["layer0", "layer1", "layer2"],
}
CONSERVING = {
    "LRP-0": rules.Epsilon(0.0),
    "gamma": rules.Gamma(0.25, epsilon=0.0),
    "alpha2 beta1": rules.AlphaBeta(2.0, 1.0, epsilon=0.0),
    "alpha1.4 beta0.4": rules.AlphaBeta(1.4, 0.4, epsilon=0.0),
    "z+": rules.ZPlus(epsilon=0.0),
    "box": rules.ZBox(-5.0, 5.0, epsilon=0.0),
    "w2": rules.WSquare(epsilon=0.0),
    "flat": rules.Flat(epsilon=0.0),
}


def total(R):
    return float(R.sum())


@pytest.mark.parametrize("rule", CONSERVING)
@pytest.mark.parametrize("net", NETS)
def test_network_without_biases_conserves_layer_by_layer(net, rule):
    """Some rules stand in the first layer alone, over z⁺: box, w² and flat give relevance to zeros, which a layer below could not take, and
    αβ loses −β where a unit of a small network has no negative part."""
    f, x = NETS[net]
    everywhere = rule in ("LRP-0", "gamma", "z+")
    first, others = CONSERVING[rule], CONSERVING[rule if everywhere else "z+"]
    composite = lrpjax.Composite([(select.first("dense", "conv"), first), (LAYERS, others)])
    y, R = lrpjax.value_and_relevance(f, composite, target="max")(jnp.asarray(x))
    assert total(R) == pytest.approx(float(y.max()), rel=1e-10)
    inner = lrpjax.relevance(f, composite, target="max", at=PATHS[net])(jnp.asarray(x))
    assert list(inner) == PATHS[net]
    assert [total(v) for v in inner.values()] == pytest.approx([float(y.max())] * len(inner), rel=1e-10)


@pytest.mark.parametrize("share", ["native", "magnitude", "uniform"])
def test_every_sharing_of_a_residual_sum_conserves(share):
    f, x = NETS["residual"]
    composite = lrpjax.Composite([(select.kind("sum"), rules.Sum(share)), (LAYERS, rules.ZPlus(epsilon=0.0))])
    y, R = lrpjax.value_and_relevance(f, composite, target=0)(jnp.asarray(x))
    assert total(R) == pytest.approx(float(y[0, 0]), rel=1e-10)


def test_attention_without_biases_conserves():
    """AttnLRP: the softmax's rule conserves only Σ_i x_i (R_i − s_i ΣR); with its weights held fixed, everything does."""
    x = jnp.asarray(normal(5, 6))
    composite = composites.cp_lrp(epsilon=0.0)
    y, R = lrpjax.value_and_relevance(attention, composite, target=1)(x)
    assert total(R) == pytest.approx(float(y[1]), rel=1e-10)


PRESETS = {
    "epsilon": composites.epsilon(0.0),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-5.0, 5.0),
    "excitation_backprop": composites.excitation_backprop(),
    "deep_taylor": composites.deep_taylor(),
    "deep_taylor, box": composites.deep_taylor(-5.0, 5.0),
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("net", NETS)
def test_no_relevance_comes_of_none(net, preset):
    """f(x) = 0 gives R = 0: an input of zeros, and a seed of zeros."""
    f, x = NETS[net]
    x = jnp.asarray(x)
    assert not lrpjax.relevance(f, PRESETS[preset])(jnp.zeros_like(x)).any()
    assert not lrpjax.relevance(f, PRESETS[preset], target=jnp.zeros_like(f(x)))(x).any()


@pytest.mark.parametrize("net", NETS)
def test_deep_taylor_is_non_negative_for_a_positive_output(net):
    f, x = NETS[net]
    y, R = lrpjax.value_and_relevance(f, composites.deep_taylor(-5.0, 5.0), target="max")(jnp.asarray(x))
    assert y.max() > 0
    assert (R >= 0).all()
    assert total(R) == pytest.approx(float(y.max()), rel=1e-5)


@pytest.mark.parametrize("net", NETS)
def test_lrp_0_is_gradient_times_input_without_biases(net):
    """Kindermans et al. 2016: LRP-0, which is ε with ε = 0, on ReLU and max-pooling networks."""
    f, x = NETS[net]
    x = jnp.asarray(x)
    wanted = x * jax.grad(lambda x: f(x)[..., 2].sum())(x)
    for composite in (composites.epsilon(0.0), composites.input_x_gradient()):
        found = lrpjax.relevance(f, composite, target=2)(x)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_bias_takes_its_share_and_no_more():
    """What is lost in a layer is Σ_j b_j R_j / z_j under LRP-0, nothing where the rule leaves the bias out."""
    w, b, x = normal(6, 4), normal(4), jnp.asarray(normal(6))
    f = lambda x: x @ w + b
    R = lambda **options: lrpjax.relevance(f, lrpjax.Composite([("*", rules.Epsilon(0.0, **options))]))(
        x
    ).sum()
    assert float(R()) == pytest.approx(float((f(x) - b).sum()), rel=1e-10)
    assert float(R(bias=False)) == pytest.approx(float(f(x).sum()), rel=1e-10)


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_epsilon_takes_its_share_and_no_more(epsilon):
    w, x = normal(6, 4), jnp.asarray(normal(6))
    z = x @ w
    R = lrpjax.relevance(lambda x: x @ w, composites.epsilon(epsilon))(x)
    assert total(R) == pytest.approx(total(z * z / (z + epsilon * jnp.sign(z))), rel=1e-10)


def test_residual_network_does_not_explode():
    """zennit #148: relevances of 7e10 in ResNets. Here 24 residual blocks, some of whose sums cancel, with z⁺ in every layer."""
    kernels = normal(24, 6, 6) * 0.5

    def f(x):
        for w in kernels:
            x = x + jax.nn.relu(x @ w) @ w.T * 0.3
            x = x * lax.rsqrt(jnp.square(x).mean() + 1e-6)
        return jax.nn.relu(x) @ kernels[0]

    x = jnp.asarray(abs(normal(6)))
    y, R = lrpjax.value_and_relevance(f, lrpjax.Composite([(LAYERS, rules.ZPlus())]), target="max")(x)
    assert abs(R).sum() < 10 * abs(y.max())
