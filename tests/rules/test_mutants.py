"""What mutations of the rules have shown to be tested too little: rounding in αβ, and the stabilisers that are not given."""

import functools

import helpers
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, rules, select

close = functools.partial(helpers.close, tolerance=1e-10, relative=1e-9)


def explain(f, rule, x, R):
    """R(x) of a function all of whose units that a rule fits have it, started with relevance R at the output."""
    composite = lrpjax.Composite([(select.kind("dense", "conv"), rule)])
    return lrpjax.relevance(f, composite, target=jnp.asarray(R))(jnp.asarray(x))


# --------------------------------------------------------------------------------------------------------------------- rounding in αβ


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_negative_part_that_drowns_in_rounding_counts_as_large_as_the_rounding(dtype):
    """z = 1 − ε/4 is rounded to z⁺ = 1, and z⁻ to 0: divided by the stabiliser of 0 alone, the second input would get
    −w₂ / (a thousandth of the rounding), of the wrong sign. The floor is four ε, of which its contribution is a sixteenth."""
    eps = float(jnp.finfo(dtype).eps)
    w = jnp.array([[1.0], [-eps / 4]], dtype)
    x = jnp.ones(2, dtype)
    assert (x @ w)[0] == 1.0
    R = explain(lambda x: x @ w, rules.AlphaBeta(2.0, 1.0, epsilon=eps / 1000), x, jnp.ones(1, dtype))
    close(R.astype(jnp.float32), np.array([2.0, -1 / 16], np.float32), tolerance=1e-2)


# ------------------------------------------------------------------------------------------------------------- stabilisers not given

STABILISED = [
    rules.Epsilon(),
    rules.Norm(),
    rules.Gamma(0.0),
    rules.AlphaBeta(1.0, 0.0),
    rules.ZPlus(),
    rules.ZBox(0.0, 0.0),
    rules.WSquare(),
    rules.Flat(),
]


@pytest.mark.parametrize("rule", STABILISED, ids=lambda r: type(r).__name__)
def test_rules_are_stabilised_by_a_millionth(rule):
    """Where the denominator is a millionth itself, half of the relevance is absorbed."""
    assert rule.epsilon == 1e-6
    if isinstance(rule, rules.Flat):
        return
    w = jnp.array([1e-3 if isinstance(rule, rules.WSquare) else 1e-6])
    close(explain(lambda x: x[None] @ w, rule, 1.0, 1.0), 0.5)


PRESETS = {
    "default": None,
    "epsilon": composites.epsilon(),
    "epsilon_plus": composites.epsilon_plus(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_dense_layers_are_stabilised_by_a_millionth(preset):
    """z = 1e-6 of terms that cancel: both get what ε-LRP with ε = 1e-6 gives them."""
    w = jnp.array([1.0, -1.0 + 1e-6])
    R = lrpjax.relevance(lambda x: x @ w, PRESETS[preset], target=jnp.asarray(1.0))(jnp.ones(2))
    close(R, w / (w.sum() + 1e-6))


@pytest.mark.parametrize("preset", ["default", "epsilon"])
def test_convolutions_are_stabilised_by_a_millionth(preset):
    w = jnp.array([1.0, -1.0 + 1e-6])
    f = lambda x: lax.conv(x[None, None], w[None, None], (1,), "VALID").reshape(())
    R = lrpjax.relevance(f, PRESETS[preset], target=jnp.asarray(1.0))(jnp.ones(2))
    close(R, w / (w.sum() + 1e-6))
