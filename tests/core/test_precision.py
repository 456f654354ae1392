"""Half precision, held against float64; `tests/benchmarks/precision.py` has the whole table."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import Composite, composites, rules, select

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import precision

HALF = ("bfloat16", "float16")


@pytest.mark.parametrize(
    ("network", "rule"),
    [
        *(("narrow gelu", r) for r in ("epsilon", "zplus", "alpha2_beta1", "wsquare")),
        ("narrow sigmoid", "alpha2_beta1"),
        ("mlp relu", "zbox"),
        ("attention", "attnlrp"),
    ],
)
def test_rules_in_half_precision_come_within_a_fiftieth_of_float64(network, rule):
    for dtype, found in precision.measure(network, rule, 24, HALF, floor=False).items():
        assert found["not_finite"] == 0, dtype
        assert found["error"] < (0.02 if dtype == "bfloat16" else 0.004), dtype


def off(f, x, composite=None, dtype="float16", **options):
    """How far the relevance of x in half precision is from that in float64, relative to its largest value."""
    low = jnp.asarray(x, dtype)
    cast = lambda g, dtype: lambda x: g(x, lambda a: jnp.asarray(a, dtype))
    found = lrpjax.relevance(cast(f, dtype), composite, **options)(low)
    right = lrpjax.relevance(cast(f, "float64"), composite, **options)(low.astype(jnp.float64))
    assert found.dtype == low.dtype
    return float(jnp.abs(found.astype(jnp.float64) - right).max() / jnp.abs(right).max())


RNG = np.random.default_rng(0)
X, W, U = RNG.normal(size=(5, 6)), RNG.normal(size=(6, 6)) / 2, RNG.normal(size=(6, 6)) / 2


def softmax(x, c):
    return jax.nn.softmax(x)[0, 1]  # the largest minus the maximum is zero, and has relevance


def scanned(x, c):
    def step(h, x):
        h = jnp.tanh(x @ c(W) + h @ c(U) + c(0.1))
        return h, h

    return lax.scan(step, c(np.zeros(6)), x)[0]


def branched(x, c):
    return lax.cond(x[0, 0] > -9, lambda x: jax.nn.gelu(x @ c(W)), lambda x: x @ c(U), x)


def rematerialised(x, c):
    return jax.checkpoint(lambda x: jnp.sin(x @ c(W)) @ c(U))(x)


def shared(x, c):
    return (x @ c(W)) * jax.nn.sigmoid(x @ c(U)) + x


def mixed(x, c):  # float32 inside
    y = x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    return (y * lax.rsqrt((y * y).mean(-1, keepdims=True))).astype(x.dtype) @ c(W)


def pooled(x, c):
    return lax.reduce_window(
        jax.nn.silu(x @ c(W)), np.zeros((), x.dtype), lax.add, (2, 2), (1, 1), "VALID"
    ).sum(0) @ c(U[:5])


@pytest.mark.parametrize("f", [softmax, scanned, branched, rematerialised, shared, mixed, pooled])
@pytest.mark.parametrize("preset", ["attnlrp", "zplus"])
@pytest.mark.filterwarnings("ignore::lrpjax.errors.ProbabilityWarning")
def test_all_kinds_of_units_in_float16(f, preset):
    composite = {
        "attnlrp": composites.attnlrp(),
        "zplus": Composite([("*", rules.ZPlus())], preset="test"),
    }[preset]
    assert off(f, X, composite) < 0.01


def test_relevance_divided_by_a_small_value_does_not_overflow_float16():
    """Without positive contributions z⁺ is the stabiliser, and R / z⁺ a million times R."""
    f = lambda x, c: jax.nn.sigmoid(x @ c([[-1.0, 1.0], [-1.0, 2.0]]))
    composite = Composite([(select.kind("dense"), rules.ZPlus(bias=False))])
    assert off(f, [1.0, 0.5], composite) < 0.002
    # A value whose relevance is 2⁻¹⁷ of what it divides
    tiny = lambda x, c: (x * c(2.0**-14)).sum() * c(0.5)
    assert off(tiny, [1.0, 0.5], target=lambda y: jnp.ones_like(y) * 8) < 0.002


def test_what_rests_on_relevance_works_in_float16():
    f = lambda x: jax.nn.gelu(x @ jnp.asarray(W, x.dtype)) @ jnp.asarray(U, x.dtype)
    low, high = (jnp.asarray(X, dtype) for dtype in ("float16", "float64"))
    for composite in (None, composites.epsilon_plus(), Composite([("*", rules.ZPlus())])):
        a, b = (lrpjax.audit(f, composite)(x) for x in (low, high))
        np.testing.assert_allclose(
            [u.relevance_out for u in a.units], [u.relevance_out for u in b.units], rtol=0.02, atol=0.02
        )
    # by the batch, and the derivative of the relevance
    R = lrpjax.relevance(f)
    np.testing.assert_allclose(jax.vmap(R)(low), R(low), rtol=0.02, atol=1e-3)
    total = lambda x: (R(x) ** 2).sum()
    np.testing.assert_allclose(jax.grad(total)(low), jax.grad(total)(high), rtol=0.1, atol=0.1)


def test_values_of_a_function_in_half_precision_are_its_own():
    f = lambda x: jax.nn.softmax(jnp.tanh(x @ jnp.asarray(W, x.dtype)) + x) @ jnp.asarray(U, x.dtype)
    for dtype in HALF:
        x = jnp.asarray(X, dtype)
        y = jax.jit(lrpjax.value_and_relevance(f))(x)[0]
        assert y.dtype == x.dtype
        np.testing.assert_allclose(
            y.astype(np.float32), jax.jit(f)(x).astype(np.float32), atol=4e-3 if dtype == "float16" else 0
        )


def converted(first, between, last):
    """A convolution with an affine map and an activation behind it, each in a type of its own, converted to explicitly."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 3, 3, 4)), rng.normal(size=4)
    factor, shift, top = rng.normal(size=4), rng.normal(size=4), rng.normal(size=(64, 3))

    def f(x):
        z = lax.conv_general_dilated(
            x.astype(first),
            jnp.asarray(kernel, first),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        z = (z + jnp.asarray(bias, first)).astype(between)
        z = z * jnp.asarray(factor, between) + jnp.asarray(shift, between)
        return jax.nn.relu(z.astype(last) + jnp.asarray(0.1, last)).reshape(1, -1) @ jnp.asarray(top, last)

    return f


@pytest.mark.parametrize(
    "types",
    [
        ("float64", "float32", "float64"),  # Keras in float64 has its BatchNormalization in float32
        ("float64", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float32", "float64", "float32"),
        ("float64", "float16", "float64"),
        ("bfloat16", "float32", "float64"),
        ("float16", "float64", "float64"),
        ("float16", "bfloat16", "float32"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize(
    "rule",
    [
        rules.Epsilon(),
        rules.Epsilon(bias="share"),
        rules.Gamma(),
        rules.ZPlus(),
        rules.AlphaBeta(),
        rules.WSquare(),
        rules.ZBox(-4.0, 4.0),
    ],
    ids=str,
)
def test_a_layer_may_convert_between_its_input_and_what_is_folded_into_it(types, rule):
    """Against the same network in float64 alone; half precision is right to a few of its own digits."""
    x = np.random.default_rng(1).normal(size=(1, 6, 6, 3)).astype(types[0])
    composite = Composite([(select.kind("conv"), rule)])
    half = "16" in "".join(types)
    for dtype in (types[0], "float64"):
        R = lrpjax.relevance(converted(*types), composite)(jnp.asarray(x, dtype))
        right = lrpjax.relevance(converted(*["float64"] * 3), composite)(jnp.asarray(x, "float64"))
        assert R.dtype == dtype
        error = jnp.abs(R.astype("float64") - right).max() / jnp.abs(right).max()
        assert error < (0.05 if half else 1e-4)
