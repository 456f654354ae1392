"""`check=True`: relevance that grows without bound, breaks or is lost is seen, under JAX's transforms too."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import Composite, composites, rules, select

EXACT = composites.epsilon(0.0)
X = jnp.array([10000.0, 9999.0])


def cancelling(x):
    with jax.named_scope("head"):
        return x @ jnp.array([1.0, -1.0])


def said(call, *args):
    """What a call warns of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = jax.block_until_ready(call(*args))
        jax.effects_barrier()
    assert all(w.category is lrpjax.ConservationWarning for w in seen)
    return result, [str(w.message) for w in seen]


def test_growth_is_measured_and_names_unit_path_and_line():
    checked = lrpjax.relevance(cancelling, EXACT, check=True)
    R, (text,) = said(checked, X)
    np.testing.assert_allclose(R, [10000.0, -9999.0])  # the result itself is not touched
    for part in (
        "grows to 2e+04",
        "signed sum is 1 for 1",
        "Epsilon(epsilon=0)",
        "in 'head'",
        "test_check.py:20",
    ):
        assert part in text
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        checked(X)
    assert seen[0].filename == __file__ and seen[0].lineno == 20


def test_the_bound_is_a_choice():
    for bound, warns in ((True, True), (1.9e4, True), (2.1e4, False), (False, False)):
        _, texts = said(lrpjax.value_and_relevance(cancelling, EXACT, check=bound), X)
        assert bool(texts) == warns
    for bad in (1, 0.5, "yes", None, float("nan")):
        with pytest.raises(lrpjax.errors.RuleError, match="check is True, False or the factor"):
            lrpjax.relevance(cancelling, EXACT, check=bad)


def test_has_aux_and_value():
    f = lambda x: (cancelling(x), x + 1.0)
    ((y, aux), R), texts = said(lrpjax.value_and_relevance(f, EXACT, has_aux=True, check=True), X)
    np.testing.assert_allclose((y, aux[0], R[0]), (1.0, 10001.0, 10000.0))
    assert len(texts) == 1


CHECKED = lrpjax.relevance(cancelling, EXACT, check=True)
FINE = jnp.array([2.0, 1.0])


@pytest.mark.parametrize(
    ("transformed", "x", "count"),
    [
        (jax.jit(CHECKED), X, 1),
        (jax.vmap(CHECKED), jnp.stack([X, FINE]), 1),
        (jax.jit(jax.vmap(CHECKED)), jnp.stack([X, FINE, X]), 2),
        (jax.jit(jax.grad(lambda x: (CHECKED(x) ** 2).sum())), X, 1),
        (jax.jit(lambda xs: lax.scan(lambda c, x: (c, CHECKED(x)), 0.0, xs)[1]), jnp.stack([X, FINE]), 1),
        (jax.jit(jax.checkpoint(CHECKED)), X, 1),
        (jax.jit(lambda x: lax.cond(x[0] > 0, CHECKED, lambda x: x, x)), X, 1),
    ],
    ids=["jit", "vmap", "jit of vmap", "grad", "scan", "remat", "cond"],
)
def test_it_works_under_the_transforms(transformed, x, count):
    _, texts = said(transformed, x)
    assert len(texts) == count and all("grows to 2e+04" in t for t in texts)


def test_without_it_nothing_is_computed():
    plain = str(jax.make_jaxpr(lrpjax.relevance(cancelling, EXACT))(X))
    assert plain == str(jax.make_jaxpr(lrpjax.relevance(cancelling, EXACT, check=False))(X))
    assert "callback" not in plain


def test_what_is_ordinary_is_silent():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)))
    f = lambda x: jax.nn.relu(jax.nn.relu(x @ w + 0.1) @ w) @ w
    for composite in (None, composites.attnlrp(), composites.gradient(), composites.deep_taylor()):
        assert not said(lrpjax.relevance(f, composite, check=True, target=0), jnp.linspace(0.1, 1.0, 6))[1]


def test_relevance_that_is_not_finite_names_where_it_ceases_to_be():
    def f(x):
        with jax.named_scope("lower"):
            y = x @ jnp.array([1.0, -1.0])  # 10¹⁰ times what comes is beyond float64
        with jax.named_scope("upper"):
            return y @ jnp.ones((1, 2))

    f, x = lambda x, f=f: f(x[:, None].T), jnp.array([1e10, 1e10 - 1])
    huge = lambda y: jnp.full_like(y, 5e299)
    _, (text,) = said(lrpjax.relevance(f, EXACT, check=True, target=huge), x)
    assert "not finite; it ceases to be" in text and "in 'lower'" in text
    _, (text,) = said(lrpjax.relevance(lambda x: jnp.log(x).sum(), check=True), jnp.array([0.0, 1.0]))
    assert "output's relevance is not finite" in text


def test_values_that_are_not_finite_are_named_before_relevance():
    f = lambda x: jnp.where(jnp.isfinite(jnp.exp(x)), x, 0.0).sum() + jnp.exp(x * 0.0 + 1.0).sum()
    assert not said(lrpjax.relevance(f, check=True), jnp.array([1.0, 2.0]))[1]
    g = lambda x: lax.select(x > 1e3, x, jnp.sin(1e308 * x * 100.0)) @ jnp.ones(2)
    _, texts = said(lrpjax.relevance(g, check=True), jnp.array([2e3, 3e3]))
    assert not texts or "values are not" in texts[0]


def test_relevance_that_is_lost_is_said():
    f = lambda x: x @ jnp.array([0.001, 0.001]) + 5.0
    _, (text,) = said(lrpjax.relevance(f, check=True), jnp.ones(2))
    assert (
        "0.0% of that of the output arrives (0.002 of 5)" in text
        and "most, 5," in text
        and "dense in" in text
    )
    # where relevance of an inner value, or a gradient, is asked for, it need not be conserved
    assert not said(lrpjax.relevance(f, composites.gradient(), check=True), jnp.ones(2))[1]
    assert not said(lrpjax.relevance(lambda x: lrpjax.tag(f(x), "y"), at="y", check=True), jnp.ones(2))[1]


def deep(bias):
    """A network whose biases outweigh what enters them, as BatchNorms folded into layers do."""
    rng = np.random.default_rng(3)
    layers = [(rng.normal(size=(16, 16)) / 4, rng.normal(size=16) * 2) for _ in range(12)]

    def f(x):
        for i, (w, b) in enumerate(layers):
            with jax.named_scope(f"layer{i}"):
                x = jax.nn.silu(x @ w + b)
        return x[..., 0]

    composite = Composite([(select.kind("dense"), rules.Gamma(0.25, bias=bias))])
    return f, composite, jnp.asarray(rng.normal(size=16))


def test_gamma_without_biases_multiplies_relevance_and_is_seen():
    f, composite, x = deep(bias=False)
    R, (text,) = said(jax.jit(lrpjax.relevance(f, composite, check=True)), x)
    assert "Gamma(gamma=0.25, epsilon=1e-06, bias=False)" in text and "in 'layer" in text
    audit = lrpjax.audit(f, composite)(x)
    assert audit.growth() > 1e3 and audit.amplifier().path in text and audit.amplifier().gain > 3
    assert str(audit).splitlines()[-1].startswith("relevance grows to ")
    assert f"unit {audit.units.index(audit.amplifier())}" in str(audit).splitlines()[-1]
    # by hand: the sizes at the first layer's operand are those of the argument
    np.testing.assert_allclose(audit.units[0].size_out, np.abs(R).sum(), rtol=1e-8)
    np.testing.assert_allclose(audit.size, np.abs(f(x)), rtol=1e-12)
    f, composite, x = deep(bias=True)
    audit = lrpjax.audit(f, composite)(x)
    assert audit.growth() < 1e3 and "grows" not in str(audit)


def gated(cell, seed=3, width=64):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]))
    if cell == "gru":
        (wz, wr, wn), (uz, ur, un) = (
            [draw(8, width) for _ in range(3)],
            [draw(width, width) for _ in range(3)],
        )

        def step(h, x):
            z, r = jax.nn.sigmoid(x @ wz + h @ uz), jax.nn.sigmoid(x @ wr + h @ ur)
            n = jnp.tanh(x @ wn + r * (h @ un))
            h = (1.0 - z) * n + z * h
            return h, None

        start = jnp.zeros(width)
    else:
        ws, us = [draw(8, width) for _ in range(4)], [draw(width, width) for _ in range(4)]

        def step(state, x):
            c, h = state
            i, f, g, o = (x @ w + h @ u for w, u in zip(ws, us, strict=True))
            c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (c, jax.nn.sigmoid(o) * jnp.tanh(c)), None

        start = (jnp.zeros(width), jnp.zeros(width))
    head = draw(width, 3)
    last = lambda state: state if cell == "gru" else state[1]
    return lambda x: last(lax.scan(step, start, x)[0]) @ head, jnp.asarray(rng.normal(size=(256, 8)))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_attnlrp_on_a_recurrent_network_is_bounded_because_gates_take_nothing(cell):
    """The growth is the formula's own (it is the same in float64), step by step: the check looks at sums over a loop."""
    f, x = gated(cell)
    R, texts = said(
        jax.jit(lrpjax.relevance(f, composites.attnlrp(share="uniform"), target=0, check=True)), x
    )
    assert len(texts) == 1 and "grows to" in texts[0] and np.abs(R).max() > 1e6
    R, texts = said(jax.jit(lrpjax.relevance(f, composites.attnlrp(), target=0, check=True)), x)
    assert not texts and np.abs(R).sum() < 100 * np.abs(f(x)[0])
    np.testing.assert_allclose(R.sum(), f(x)[0], rtol=1e-3)
