"""The two forms in which positive and negative contributions are told apart: what they cost, and how exact they are."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import rules, select

close = functools.partial(helpers.close, relative=1e-9)

RULES = {
    "z+": rules.ZPlus(),
    "alpha2 beta1": rules.AlphaBeta(2.0, 1.0),
    "gamma": rules.Gamma(0.25),
    "z+ without bias": rules.ZPlus(bias=False),
    "gamma, bias shared": rules.Gamma(1.0, bias="share"),
}


def composite(rule):
    return lrpjax.Composite([(select.kind("dense", "conv"), rule)])


# ---------------------------------------------------------------------------------------------------------------------- what they cost


def flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def dense(activation):
    def f(x, weights):
        for w in weights:
            x = activation(x @ w)
        return x.sum(-1)

    x, w = jax.ShapeDtypeStruct((512, 512), "float32"), jax.ShapeDtypeStruct((512, 512), "float32")
    return f, x, [w] * 4


def convolutional(activation):
    def f(x, weights):
        for w in weights:
            x = activation(jax.lax.conv_general_dilated(x, w, (1, 1), "SAME"))
        return x.sum((1, 2, 3))

    x, w = jax.ShapeDtypeStruct((2, 64, 8, 8), "float32"), jax.ShapeDtypeStruct((64, 64, 3, 3), "float32")
    return f, x, [w] * 4


@pytest.mark.parametrize("network", [dense, convolutional])
@pytest.mark.parametrize("rule", ["z+", "alpha2 beta1", "gamma"])
def test_inputs_of_unknown_sign_cost_twice_the_gradient(network, rule):
    """One product in the forward pass, and one and two ways back, beside what the gradient does: W and |W| serve all."""
    f, x, weights = network(jax.nn.gelu)
    gradient = flops(jax.grad(lambda x, w: f(x, w).sum()), x, weights)
    explained = flops(lrpjax.relevance(f, composite(RULES[rule])), x, weights)
    assert 1.9 < explained / gradient <= 2.05


def test_gamma_before_a_sum_that_is_rectified_needs_both_ways_back():
    """relu(x w + x): relevance comes to x w where that is negative, so that c = (W + γ W⁺)ᵀ s₊ + (W + γ W⁻)ᵀ s₋ with two
    different s: two products, which no kernel that is known beforehand makes one. The layer after a ReLU without a sum
    has one."""
    gradient = lambda f, x, w: flops(jax.grad(lambda x, w: f(x, w).sum()), x, w)
    cost = lambda f, x, w: flops(lrpjax.relevance(f, composite(RULES["gamma"])), x, w) / gradient(f, x, w)
    f, x, weights = dense(jax.nn.relu)
    start = lambda body: lambda x, w: body(jax.nn.relu(x), w)
    assert 1.4 < cost(start(f), x, weights) <= 1.55

    def residual(x, weights):
        for w in weights:
            x = jax.nn.relu(x @ w + x)
        return x.sum(-1)

    assert 1.9 < cost(start(residual), x, weights) <= 2.05


# ------------------------------------------------------------------------------------------------------------------- how exact they are


def by_connection(rule, x, w, b, R):
    """The rules' formulas for one dense layer in float64, one connection at a time."""
    x, w, b, R = (np.asarray(a, np.float64) for a in (x, w, b, R))
    contributions = x[:, :, None] * w
    above, below = np.maximum(contributions, 0), np.minimum(contributions, 0)
    b_above, b_below = np.maximum(b, 0), np.minimum(b, 0)
    s = lambda R, d: (R / (d + np.where(d >= 0, rule.epsilon, -rule.epsilon)))[:, None]
    if isinstance(rule, rules.ZPlus):
        return (above * s(R, above.sum(1) + b_above)).sum(2)
    if isinstance(rule, rules.AlphaBeta):
        s_above, s_below = (
            s(rule.alpha * R, above.sum(1) + b_above),
            s(-rule.beta * R, below.sum(1) + b_below),
        )
        return (above * s_above + below * s_below).sum(2)
    excited = x @ w + b > 0
    favoured = contributions + rule.gamma * np.where(excited[:, None], above, below)
    b = b + rule.gamma * np.where(excited, b_above, b_below)
    return (favoured * s(R, favoured.sum(1) + b)).sum(2)


def case(width, lean, dtype, seed=0):
    """A dense layer whose outputs lean to one side for the first row: at `lean` = −30 what is positive is a hundred
    thousandth of what is negative."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(4, width)), rng.normal(size=(width, 16)) / np.sqrt(width)
    w = w + lean * np.sign(x[:1].T) * np.abs(rng.normal(size=w.shape)) / np.sqrt(width)
    x, w, b = (np.asarray(a, dtype) for a in (x, w, rng.normal(size=16) / 10))
    return x, w, b, np.abs(x @ w + b)


@pytest.mark.parametrize(("lean", "bound"), [(0, 2e-6), (-4, 3e-5), (-30, 2e-3)])
@pytest.mark.parametrize("width", [8, 256, 4096])
@pytest.mark.parametrize("rule", ["z+", "alpha2 beta1", "gamma"])
def test_inputs_of_unknown_sign_are_explained_as_connection_by_connection(rule, width, lean, bound):
    x, w, b, R = case(width, lean, np.float32)
    rule = RULES[rule]
    found = lrpjax.relevance(lambda x: x @ w + b, composite(rule), target=R)(x)
    wanted = by_connection(rule, x, w, b, R)
    errors = np.abs(np.asarray(found, float) - wanted).sum(1) / np.abs(wanted).sum(1)
    assert errors.max() < bound
    assert errors[1:].max() < 2e-6  # what one row suffers does not touch the others


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lean", [0, -4])
def test_both_forms_agree(rule, lean):
    """[x⁺, −x⁻] is known to be nonnegative, and gives the same contributions by the kernel [w; −w]."""
    x, w, b, R = case(64, lean, np.float64)
    both = np.concatenate([w, -w])

    def apart(x):
        return jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], -1) @ both + b

    explain = lambda f: lrpjax.relevance(f, composite(RULES[rule]), target=R)(x)
    if "shared" not in rule:  # twice as many inputs share the bias otherwise
        close(explain(lambda x: x @ w + b), explain(apart), 1e-9)
    close(explain(lambda x: x @ w + b), jax.jit(lambda: explain(lambda x: x @ w + b))())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_neuron_without_contributions_of_a_sign_gives_none(dtype, sign):
    """What rounding makes of z + A there is not taken for a contribution, however small the stabiliser is."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 1000))
    w = (-np.sign(x[0]) * np.abs(rng.normal(size=1000)))[:, None]
    x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    explain = lambda rule, w: lrpjax.relevance(
        lambda x: x @ w + 0.3, composite(rule), target=jnp.ones((1, 1), dtype)
    )(x)
    tiny = 1e-30
    assert not jnp.any(explain(rules.ZPlus(epsilon=tiny), w))
    R = explain(rules.AlphaBeta(2.0, 1.0, epsilon=tiny, bias=False), sign * w)
    helpers.close(R.sum(), -1.0 if sign > 0 else 2.0, 1e-4)
    assert (R <= 0).all() if sign > 0 else (R >= 0).all()


def test_half_precision_keeps_the_parts_apart():
    """There z has too few digits for a difference, and products are made of w⁺ and w⁻."""
    x, w, b, R = case(64, -30, np.float32)
    half = lambda a: jnp.asarray(a, jnp.bfloat16)
    f = lambda x: x @ half(w) + half(b)
    for rule in (RULES["z+"], RULES["alpha2 beta1"]):
        found = lrpjax.relevance(f, composite(rule), target=half(R))(half(x))
        wanted = by_connection(rule, *(np.asarray(half(a), np.float64) for a in (x, w, b, R)))
        errors = np.abs(np.asarray(found, float) - wanted).sum(1) / np.abs(wanted).sum(1)
        assert errors.max() < 0.02


def test_a_rule_of_the_users_own_is_given_the_positive_and_the_negative_part():
    seen = []

    class Mine(rules.Rule):
        emits = rules.RATIO

        def back(self, layer, x, z, R):
            above, below = layer.kernels
            seen.append((np.asarray(above), np.asarray(below)))
            return layer.give(x, R / layer.positive(x, z))

    x, w, _, R = case(8, 0, np.float64)
    found = lrpjax.relevance(lambda x: x @ w, composite(Mine()), target=R)(x)
    close(found, by_connection(rules.ZPlus(epsilon=0.0), x, w, np.zeros(16), R), 1e-9)
    np.testing.assert_array_equal(seen[0][0] + seen[0][1], w)
    assert (seen[0][0] >= 0).all() and (seen[0][1] <= 0).all()
