"""What rules do with the bias: it gives its share to the layer's inputs (`bias="share"`), or shares with them by magnitude."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, lenient
from jax import lax

import lrpjax
from lrpjax import Composite, RuleError, rules, select

RNG = np.random.default_rng(11)
LAYERS = select.kind("dense", "conv")
EPSILON = 1e-3

MAKE = {
    "epsilon": lambda bias: rules.Epsilon(EPSILON, bias=bias),
    "gamma": lambda bias: rules.Gamma(0.5, EPSILON, bias=bias),
    "alpha_beta": lambda bias: rules.AlphaBeta(2.0, 1.0, EPSILON, bias=bias),
    "z_plus": lambda bias: rules.ZPlus(EPSILON, bias=bias),
    "w_square": lambda bias: rules.WSquare(EPSILON, bias=bias),
}
RULES = {name: make("share") for name, make in MAKE.items()}


def stabilized(z):
    return z + (EPSILON if z >= 0 else -EPSILON)


def shares(name, terms, w, b):
    """What each of a neuron's inputs gets of a relevance of 1, from its terms x_i w_i and the bias b."""
    n, z = len(terms), sum(terms) + b
    up, down = np.maximum(terms, 0), np.minimum(terms, 0)
    even = lambda parts, bias: (parts + bias / n) / stabilized(sum(parts) + bias)
    if name == "epsilon":
        return even(terms, b)
    if name == "gamma":
        if z == 0:
            return np.zeros(n)
        favoured, b_favoured = (up, max(b, 0)) if z > 0 else (down, min(b, 0))
        return even(terms + 0.5 * favoured, b + 0.5 * b_favoured)
    if name == "alpha_beta":
        return 2 * even(up, max(b, 0)) - even(down, min(b, 0))
    if name == "z_plus":
        return even(up, max(b, 0))
    return even(w**2, b**2)


def by_loops(name, x, w, b, R):
    """Of a dense layer [n, m], neuron by neuron."""
    return sum(shares(name, x * w[:, j], w[:, j], b[j]) * R[j] for j in range(w.shape[1]))


@pytest.mark.parametrize("name", RULES)
def test_dense_by_loops(name):
    x, w, b = RNG.normal(size=5), RNG.normal(size=(5, 4)), RNG.normal(size=4)
    x[1] = 0.0
    R = RNG.normal(size=4)
    composite = Composite([("*", RULES[name])])
    found = lrpjax.relevance(lambda x: x @ w + b, composite, target=jnp.asarray(R))(jnp.asarray(x))
    close(found, by_loops(name, x, w, b, R), 1e-9)
    assert found[1] != 0, "an input that is zero gets its share of the bias"


@pytest.mark.parametrize("name", RULES)
def test_convolution_by_loops(name):
    """Padding is no input: at the border fewer of them share the bias."""
    x, w, b = RNG.normal(size=7), RNG.normal(size=3), 0.7
    R = RNG.normal(size=7)
    f = lambda x: jnp.convolve(x, jnp.asarray(w), "same") + b
    found = lrpjax.relevance(f, Composite([("*", RULES[name])]), target=jnp.asarray(R))(jnp.asarray(x))
    wanted = np.zeros(7)
    for j in range(7):
        inputs = [i for i in (j - 1, j, j + 1) if 0 <= i < 7]
        weights = np.array([w[1 + j - i] for i in inputs])
        wanted[inputs] += shares(name, x[inputs] * weights, weights, b) * R[j]
    close(found, wanted, 1e-9)


@pytest.mark.parametrize("name", MAKE)
def test_by_magnitude_the_inputs_divide_their_part_as_if_there_was_no_bias(name):
    x, w, b, R = RNG.normal(size=5), RNG.normal(size=(5, 4)), RNG.normal(size=4), RNG.normal(size=4)
    b[2], b[3] = 0.0, -(x @ w)[3] * (1 + 1e-9)  # no bias, and one that all but cancels its neuron
    u = x @ w
    part = np.abs(u) / (np.abs(u) + np.abs(b))
    explain = lambda f, bias, R: lrpjax.relevance(
        f, Composite([("*", MAKE[name](bias))]), target=jnp.asarray(R)
    )
    found = explain(lambda x: x @ w + b, "magnitude", R)(jnp.asarray(x))
    if name == "gamma":  # whose sign is that of z, with its bias
        wanted = explain(lambda x: x @ w + b, False, R * part)(jnp.asarray(x))
    else:
        wanted = explain(lambda x: x @ w, True, R * part)(jnp.asarray(x))
    close(found, wanted, 1e-9)
    audit = lrpjax.audit(
        lambda x: x @ w + b, Composite([("*", MAKE[name]("magnitude"))]), target=jnp.asarray(R)
    )
    entry = audit(jnp.asarray(x)).units[0]
    close(entry.bias, (R * (1 - part)).sum(), 1e-9)


class Net(nn.Module):
    """A depthwise convolution, BatchNorms that shift, strides, a residual sum and a dense head with a bias."""

    @nn.compact
    def __call__(self, x):
        norm = lambda name: nn.BatchNorm(use_running_average=True, name=name)
        x = nn.relu(norm("norm0")(nn.Conv(4, (3, 3), name="conv0")(x)))
        y = nn.relu(norm("norm1")(nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x)))
        x = x + norm("norm2")(nn.Conv(4, (1, 1), name="point")(y))
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="down")(x))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(5)  # the fixture is the same in whatever order the tests are run
    model, x = Net(), jnp.asarray(rng.uniform(size=(2, 8, 8, 3)))
    shapes = jax.eval_shape(lenient(model.init), jax.random.key(0), x)
    # Kernels of both signs; biases and shifts that leave no channel dead, through which nothing could be shared.
    fill = lambda p: jnp.asarray(rng.normal(size=p.shape) if p.ndim > 1 else rng.uniform(0.2, 1.0, p.shape))
    params = jax.tree.map(fill, shapes)
    return lenient(lambda x: model.apply(params, x)), x


@pytest.mark.parametrize("name", ["z_plus", "gamma", "epsilon"])
def test_what_biases_take_is_kept(net, name):
    f, x = net
    keep = {
        "z_plus": rules.ZPlus(0.0, bias="share"),
        "gamma": rules.Gamma(1.0, 0.0, bias="share"),
        "epsilon": rules.Epsilon(0.0, bias="share"),
    }[name]
    explain = lambda rule: lrpjax.relevance(f, Composite([(LAYERS, rule)]), target="max")(x).sum((1, 2, 3))
    logit = f(x).max(-1)
    # Under z⁺ a neuron that nothing excites, and that is handed a share of a bias above, has nothing to share by.
    close(explain(keep), logit, 0.02 if name == "z_plus" else 1e-7)
    lost = explain(dataclasses.replace(keep, bias=True))
    assert np.abs(np.asarray(lost / logit) - 1).max() > 0.01, "biases take a part otherwise"


def test_an_audit_says_that_the_bias_keeps_nothing(net):
    f, x = net
    audit = lrpjax.audit(f, Composite([(LAYERS, rules.ZPlus(bias="share"))]), target="max")(x)
    layers = [u for u in audit.units if u.kind in ("conv", "dense")]
    assert len(layers) == 5
    assert max(abs(float(u.bias)) for u in layers) == 0.0
    assert abs(float(audit.rest)) < 1e-9 * abs(float(audit.seed))


def test_compiled_batched_and_swept(net):
    f, x = net
    explain = lambda x, g: lrpjax.relevance(f, Composite([(LAYERS, rules.Gamma(g, bias="share"))]), target=1)(
        x
    )
    gammas = jnp.array([0.1, 1.0])
    swept = jax.jit(jax.vmap(explain, (None, 0)))(x, gammas)
    close(swept, jnp.stack([explain(x, 0.1), explain(x, 1.0)]), 1e-9)
    single = jax.vmap(lambda x: explain(x[None], 1.0)[0])(x)
    close(single, swept[1], 1e-9)


def test_without_a_bias_nothing_changes():
    x, w = jnp.asarray(RNG.normal(size=5)), jnp.asarray(RNG.normal(size=(5, 4)))
    f = lambda x: jax.nn.relu(x @ w).sum()
    for rule in (rules.Epsilon, rules.ZPlus, rules.Gamma, rules.AlphaBeta, rules.WSquare):
        shared, kept = (lrpjax.relevance(f, Composite([("*", rule(bias=b))]))(x) for b in ("share", True))
        close(shared, kept, 1e-12)


def test_a_scale_and_a_shift_alone():
    """An affine map of one input: all of the bias is that input's."""
    f = lambda x: jnp.tanh(2.0 * jnp.tanh(x) + 1.0)
    R = lrpjax.relevance(f, Composite([(select.kind("affine"), rules.Epsilon(0.0, bias="share"))]))
    x = jnp.array([0.5, -2.0, 0.1])
    close(R(x), f(x), 1e-12)


def test_scanned_and_unrolled_agree():
    w, b, x = RNG.normal(size=(3, 4, 4)), RNG.normal(size=(3, 4)), jnp.asarray(RNG.normal(size=4))
    layer = lambda x, p: (jax.nn.relu(x @ p[0] + p[1]), None)
    scanned = lambda x: lax.scan(layer, x, (jnp.asarray(w), jnp.asarray(b)))[0].sum()

    def unrolled(x):
        for p in zip(w, b, strict=True):
            x, _ = layer(x, p)
        return x.sum()

    composite = Composite([(LAYERS, rules.ZPlus(bias="share"))])
    close(lrpjax.relevance(scanned, composite)(x), lrpjax.relevance(unrolled, composite)(x), 1e-12)


def test_anything_else_is_an_error():
    with pytest.raises(
        RuleError, match=r'ZPlus: bias is True, False, "share" or "magnitude", but is \'keep\''
    ):
        rules.ZPlus(bias="keep")
