"""Activations are known by what they compute: every writing of one has its name, and gives its relevance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, lenient
from jax import lax

import lrpjax
from lrpjax import Composite, composites, rules, select
from lrpjax.core.recognise import formulas

RNG = np.random.default_rng(0)
W, B, V = RNG.standard_normal((6, 5)), RNG.standard_normal(5), RNG.standard_normal((5, 4))
X = RNG.standard_normal((3, 6))

SPELLINGS = {
    "relu": (
        jax.nn.relu,
        lambda z: jnp.maximum(z, 0),
        lambda z: jnp.maximum(0, z),
        lambda z: jnp.where(z > 0, z, 0),
        lambda z: jnp.where(z <= 0, 0, z),
        lambda z: z * (z > 0),
        lambda z: z * jnp.where(z > 0, 1.0, 0.0),
        lambda z: (z + jnp.abs(z)) / 2,
        lambda z: 0.5 * (z + jnp.abs(z)),
        lambda z: jnp.clip(z, 0),
        lambda z: -jnp.minimum(-z, 0),
        lambda z: lax.select(z > 0, z, jnp.zeros_like(z)),
        lambda z: z * jnp.heaviside(z, 0.0),
    ),
    "relu6": (
        jax.nn.relu6,
        lambda z: jnp.clip(z, 0, 6),
        lambda z: jnp.where(z < 0, 0, jnp.where(z > 6, 6, z)),
    ),
    "hard_tanh": (
        jax.nn.hard_tanh,
        lambda z: jnp.clip(z, -1, 1),
        lambda z: jnp.maximum(-1, jnp.minimum(z, 1)),
    ),
    "leaky_relu": (
        jax.nn.leaky_relu,
        lambda z: jnp.where(z > 0, z, 0.01 * z),
        lambda z: jnp.maximum(z, 0.01 * z),
        lambda z: jnp.maximum(z, 0) + 0.01 * jnp.minimum(z, 0),
    ),
    "sigmoid": (
        jax.nn.sigmoid,
        lambda z: 1 / (1 + jnp.exp(-z)),
        lambda z: jnp.exp(z) / (1 + jnp.exp(z)),
        lambda z: 0.5 * (jnp.tanh(z / 2) + 1),
        lambda z: 0.5 + 0.5 * jnp.tanh(0.5 * z),
        lambda z: jnp.exp(-jnp.log1p(jnp.exp(-z))),
    ),
    "hard_sigmoid": (
        jax.nn.hard_sigmoid,
        lambda z: jnp.clip(z / 6 + 0.5, 0, 1),
        lambda z: jnp.minimum(jnp.maximum(z + 3, 0), 6) * (1 / 6),
    ),
    "tanh": (
        jnp.tanh,
        lambda z: 2 * jax.nn.sigmoid(2 * z) - 1,
        lambda z: 2 / (1 + jnp.exp(-2 * z)) - 1,
        lambda z: (jnp.exp(z) - jnp.exp(-z)) / (jnp.exp(z) + jnp.exp(-z)),
        lambda z: (jnp.exp(2 * z) - 1) / (jnp.exp(2 * z) + 1),
    ),
    "softplus": (
        jax.nn.softplus,
        lambda z: jnp.log(1 + jnp.exp(z)),
        lambda z: jnp.log1p(jnp.exp(z)),
        lambda z: jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z))),
    ),
    "silu": (jax.nn.silu, lambda z: z * jax.nn.sigmoid(z), lambda z: z / (1 + jnp.exp(-z))),
    "hard_silu": (jax.nn.hard_swish, lambda z: z * jnp.clip(z + 3, 0, 6) / 6),
    "gelu": (
        lambda z: jax.nn.gelu(z, approximate=False),
        lambda z: 0.5 * z * (1 + lax.erf(z / np.sqrt(2))),
        lambda z: z * jax.scipy.stats.norm.cdf(z),
    ),
    "elu": (jax.nn.elu, lambda z: jnp.where(z > 0, z, jnp.exp(z) - 1)),
    "selu": (jax.nn.selu,),
    "celu": (lambda z: jax.nn.celu(z, 0.7),),
    "mish": (jax.nn.mish, lambda z: z * jnp.tanh(jnp.log1p(jnp.exp(z)))),
    "expm1": (jnp.expm1, lambda z: jnp.exp(z) - 1),
    "soft_sign": (jax.nn.soft_sign, lambda z: z / (1 + jnp.abs(z))),
    "abs": (jnp.abs, lambda z: jnp.maximum(z, -z), lambda z: jnp.sqrt(z**2)),
}
CASES = [pytest.param(name, i, id=f"{name}-{i}") for name, fs in SPELLINGS.items() for i in range(len(fs))]
LAYERS = select.kind("dense")
COMPOSITES = {
    "epsilon": composites.epsilon(),
    "alphabeta": Composite([(LAYERS, rules.AlphaBeta(2.0, 1.0))]),
    "gamma": Composite([(LAYERS, rules.Gamma(0.25))]),
    "gradient": composites.gradient(),
    "guided": composites.guided_backprop(),
    "deconvnet": composites.deconvnet(),
}


def network(activation, bias=B):
    def f(x):
        w, b, v = (np.asarray(a, x.dtype) for a in (W, bias, V))
        return activation(x @ w + b) @ v

    return lenient(f)


@pytest.mark.parametrize(("name", "i"), CASES)
def test_a_writing_has_the_name_of_its_function(name, i):
    for dtype in (jnp.float64, jnp.float32):
        plan = lrpjax.plan(network(SPELLINGS[name][i]), None, jnp.asarray(X, dtype))
        assert [(u.kind, u.name) for u in plan] == [("dense", ""), ("activation", name), ("dense", "")]


@pytest.mark.parametrize(("name", "i"), CASES)
def test_a_writing_has_the_relevance_of_its_function(name, i):
    for composite in COMPOSITES.values():
        for bias in (B, 0.0):
            ours, plain = (
                lrpjax.relevance(network(f, bias), composite)(X)
                for f in (SPELLINGS[name][i], SPELLINGS[name][0])
            )
            close(ours, plain, 1e-9)


def test_a_users_function_is_not_trusted_by_its_name():
    @jax.jit
    def relu(z):
        return 2 * jnp.maximum(z, 0)

    @jax.jit
    def hard_sigmoid(z):
        return z * jnp.sin(z)

    for composite in COMPOSITES.values():
        ours, plain = (
            lrpjax.relevance(network(f), composite)(X) for f in (relu, lambda z: 2 * jax.nn.relu(z))
        )
        close(ours, plain, 1e-9)
    y, R = lrpjax.value_and_relevance(network(relu, 0.0), composites.epsilon(0.0))(X)
    close(R.sum(), y.sum(), 1e-9)
    assert [u.name for u in lrpjax.plan(network(hard_sigmoid), None, X)][1] == "sin+mul"
    gated = lambda x: hard_sigmoid(x @ W) * (x[:, ::-1] @ W)
    even = lrpjax.relevance(gated, composites.epsilon(0.0))(X)
    close(
        even,
        lrpjax.relevance(lambda x: (z := x @ W) * jnp.sin(z) * (x[:, ::-1] @ W), composites.epsilon(0.0))(X),
        1e-9,
    )


def test_a_negation_of_an_activation_stays_out_of_the_kernel():
    """z⁺ and αβ would swap w⁺ and w⁻. A Gaussian's negation belongs to it as much as a sigmoid's."""
    for activation in (lambda z: jnp.exp(-z), lambda z: jnp.exp(-0.5 * z)):
        plan = lrpjax.plan(lambda x, f=activation: f(x @ W), Composite([(LAYERS, rules.ZPlus())]), X)
        R = lrpjax.relevance(
            lambda x, f=activation: f(x @ W), Composite([(LAYERS, rules.ZPlus(epsilon=0.0))])
        )(X)
        y, shares = activation(X @ W), np.maximum(X[:, :, None] * W, 0)
        shares /= np.maximum(shares.sum(1, keepdims=True), 1e-300)
        close(R, (shares * y[:, None]).sum(-1), 1e-9)
        assert plan.units[0].kind == "dense"


def test_numbers_that_are_captured_count_as_written():
    half, two = jnp.asarray(0.5), np.float64(2.0)
    plan = lrpjax.plan(network(lambda z: half * (jnp.tanh(z / two) + 1)), None, X)
    assert [u.name for u in plan] == ["", "sigmoid", ""]
    traced = jax.jit(lambda x, half: lrpjax.relevance(network(lambda z: half * (jnp.tanh(z / 2) + 1)))(x))(
        X, half
    )
    assert np.all(np.isfinite(traced))


def test_a_learned_slope_is_no_obstacle():
    plan = lrpjax.plan(network(lambda z: jnp.where(z >= 0, z, jnp.full(5, 0.1) * z)), None, X)
    slope = lambda x, a: network(lambda z: jnp.where(z >= 0, z, a * z))(x)
    assert [u.name for u in plan] == ["", "leaky_relu", ""]
    assert [u.name for u in lrpjax.plan(slope, None, X, np.full(5, 0.1))] == ["", "prelu", ""]


def test_half_precision_does_not_hide_a_function():
    for dtype in (jnp.bfloat16, jnp.float16):
        x, w = jnp.asarray(X, dtype), jnp.asarray(W, dtype)
        for name in ("gelu", "relu", "sigmoid", "silu", "tanh"):
            for f in SPELLINGS[name][:2]:
                plan = lrpjax.plan(lenient(lambda x, f=f, w=w: f(x @ w)), None, x)
                assert [u.name for u in plan][-1] == name, (name, dtype)


def test_rules_of_relu_are_for_every_rectifier_and_for_what_is_named():
    z, g = X @ W + B, np.ones((3, 4)) @ V.T
    for f in (
        jax.nn.relu6,
        jax.nn.hard_tanh,
        lambda z: jnp.where(z > 0, z, 0),
        lambda z: jnp.clip(z, 0, 0.5),
    ):
        slope = jax.vmap(jax.vmap(jax.grad(f)))(z)
        guided, deconvnet, smooth = (
            lrpjax.relevance(network(f), c)(X)
            for c in (composites.guided_backprop(), composites.deconvnet(), composites.beta_smooth(3.0))
        )
        close(guided, (np.maximum(g, 0) * slope) @ W.T, 1e-9)
        close(deconvnet, np.maximum(g, 0) @ W.T, 1e-9)
        close(smooth, (g / (1 + np.exp(-3.0 * z))) @ W.T, 1e-9)
    gradient = {"default": rules.Gradient(), "method": "gradient"}
    slope = jax.vmap(jax.vmap(jax.grad(jax.nn.gelu)))(z)
    for selector in (select.kind("gelu"), select.kind("activation"), select.kind("gelu") & select.path("*")):
        named = Composite([(selector, rules.GuidedBackprop())], **gradient)
        close(lrpjax.relevance(network(jax.nn.gelu), named)(X), (np.maximum(g, 0) * slope) @ W.T, 1e-9)
    glob = Composite([("*", rules.GuidedBackprop())], **gradient)
    with pytest.warns(lrpjax.UnmatchedWarning):
        R = lrpjax.relevance(network(jax.nn.gelu), glob)(X)
    close(R, (g * slope) @ W.T, 1e-9)


def test_a_rectifier_gives_nothing_back_at_its_kink():
    x = jnp.array([0.0, 1.0, -1.0])
    for i, f in enumerate(SPELLINGS["relu"]):
        assert lrpjax.relevance(lenient(f), composites.guided_backprop())(x)[0] == 0.0, i


def test_the_table_of_functions_is_that_of_jax():
    named = {"hard_silu": jax.nn.hard_silu, "silu": jax.nn.silu, "log_sigmoid": jax.nn.log_sigmoid}
    named |= {
        n: getattr(jax.nn, n) for n in ("elu", "selu", "mish", "soft_sign", "squareplus", "sparse_plus")
    }
    for name, f in named.items():
        close(formulas.KNOWN[name](formulas.POINTS), f(jnp.asarray(formulas.POINTS)), 1e-6)
