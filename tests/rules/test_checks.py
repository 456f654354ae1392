"""Hyper-parameters that a formula does not admit: an error where they are known, and NaN where they are traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import Composite, rules, select
from lrpjax.errors import RuleError

RNG = np.random.default_rng(0)
W, V, X = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2)), RNG.normal(size=(2, 3))


class Own(rules.Epsilon):
    factor: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        rules.check(lambda f: f > 0, self.factor, message="Own: factor must be positive")


class Halved(rules.Epsilon):
    """Its `__post_init__` changes it, and is to be run once."""

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "epsilon", self.epsilon / 2)


MADE = {
    "Epsilon": rules.Epsilon,
    "Epsilon without bias": lambda v: rules.Epsilon(v, bias=False),
    "Gamma": rules.Gamma,
    "Gamma's epsilon": lambda v: rules.Gamma(0.1, v),
    "AlphaBeta": lambda v: rules.AlphaBeta(v, v - 1),
    "AlphaBeta's epsilon": lambda v: rules.AlphaBeta(2.0, 1.0, v),
    "ZPlus": rules.ZPlus,
    "Flat": rules.Flat,
    "WSquare": rules.WSquare,
    "ZBox": lambda v: rules.ZBox(0.0, v),
    "ZBox of arrays": lambda v: rules.ZBox(jnp.zeros(3), jnp.array([1.0, v, 1.0])),
    "a subclass": lambda v: Own(factor=v),
}


def network(x):
    return jax.nn.relu(x @ W + 0.1) @ V


def explain(rule, f=network):
    return lrpjax.relevance(f, Composite([(select.first("dense"), rule)]))(X)


@pytest.mark.parametrize("name", MADE)
def test_traced_ones_make_the_relevance_nan(name):
    make = MADE[name]
    expected = explain(make(2.0))
    run = jax.jit(lambda v: explain(make(v)))
    np.testing.assert_allclose(run(2.0), expected, rtol=1e-10)
    assert np.isnan(run(-1.0)).all()
    both = jax.vmap(lambda v: explain(make(v)))(jnp.array([-1.0, 2.0]))
    assert np.isnan(both[0]).all()
    np.testing.assert_allclose(both[1], expected, rtol=1e-10)
    with pytest.raises(RuleError):
        explain(make(-1.0))


@pytest.mark.parametrize("name", MADE)
def test_rules_that_come_out_of_tree_transformations(name):
    """Nothing is checked when JAX puts a rule together again: when it is used, it is."""
    bad = jax.tree.map(lambda leaf: -5 * leaf - 1, MADE[name](2.0))
    with pytest.raises(RuleError, match="must"):
        explain(bad)
    assert np.isnan(jax.jit(explain)(bad)).all()
    assert not np.isnan(jax.jit(explain)(MADE[name](2.0))).any()


@pytest.mark.parametrize("kind", ["product", "quotient", "norm", "sum", "pool"])
def test_units_without_weights(kind):
    f = {
        "product": lambda x: x * x[::-1],
        "quotient": lambda x: x / (x[::-1] ** 2 + 1),
        "norm": lambda x: x / jnp.sqrt((x**2).mean() + 1),
        "sum": lambda x: x + 2 * x[::-1],
        "pool": lambda x: x.mean(0),
    }[kind]
    run = jax.jit(lambda e: lrpjax.relevance(f, Composite([(select.kind(kind), rules.Epsilon(e))]))(X))
    assert np.isnan(run(-1.0)).any() and not np.isnan(run(1.0)).any()


def test_inside_of_loops_and_branches():
    def f(x):
        body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ W @ W.T), None))
        x = jax.lax.scan(body, x, None, length=2)[0]
        return jax.lax.cond(x.sum() > 1e9, lambda x: x, lambda x: x @ W @ W.T, x)

    run = jax.jit(lambda e: lrpjax.relevance(f, Composite([(select.kind("dense"), rules.Gamma(e))]))(X))
    assert np.isnan(run(-1.0)).all() and not np.isnan(run(1.0)).any()


def test_of_a_custom_function():
    def run(e):
        swap = lrpjax.custom_relevance(lambda x: x[::-1] ** 3, rule=rules.Epsilon(e))
        return lrpjax.relevance(swap)(X)

    assert np.isnan(jax.jit(run)(-1.0)).all() and not np.isnan(jax.jit(run)(1.0)).any()
    with pytest.raises(RuleError):
        run(-1.0)


def test_what_is_known_costs_nothing():
    text = str(jax.make_jaxpr(lambda x: lrpjax.relevance(network, lrpjax.composites.epsilon_plus())(x))(X))
    assert "nan" not in text
    arrays = Composite([(select.first("dense"), rules.ZBox(np.zeros(3), np.ones(3)))])
    assert "nan" not in str(jax.make_jaxpr(lambda x: lrpjax.relevance(network, arrays)(x))(X))


def test_a_rule_is_checked_without_being_changed():
    rule = Halved(2.0)
    assert rule.epsilon == 1.0
    explain(rule)
    assert rule.epsilon == 1.0


def test_a_check_of_the_users_own_that_nothing_traced_can_pass():
    class Plain(rules.Epsilon):
        def __post_init__(self):
            if self.epsilon < 0:
                raise ValueError("negative")

    explained = jax.jit(explain)(Plain(1.0))
    np.testing.assert_allclose(explained, explain(Plain(1.0)), rtol=1e-10)
    with pytest.raises(ValueError, match="negative"):
        explain(jax.tree.map(lambda leaf: -leaf, Plain(1.0)))
