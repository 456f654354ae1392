"""What mutations of the rules have shown to be tested too little."""

import functools

import helpers
import jax
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


def test_negative_part_does_not_drown_in_half_precision():
    """There it is computed directly, in float32: all of β goes to the second input."""
    w = jnp.array([[1.0], [-float(jnp.finfo(jnp.bfloat16).eps) / 4]], jnp.bfloat16)
    x = jnp.ones(2, jnp.bfloat16)
    R = explain(lambda x: x @ w, rules.AlphaBeta(2.0, 1.0, epsilon=1e-6), x, jnp.ones(1, jnp.bfloat16))
    close(R.astype(jnp.float32), np.array([2.0, -1.0], np.float32), tolerance=1e-2)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_negative_part_that_drowns_in_rounding_counts_as_large_as_the_rounding(dtype):
    """z = 1 − ε/4 is rounded to z⁺ = 1, and z⁻ to 0: divided by the stabiliser of 0 alone, the second input would get
    −w₂ / (a thousandth of the rounding), of the wrong sign. The floor is four ε, of which its contribution is a sixteenth.
    Where the sign of x is not known beforehand, both parts are found as differences, and it counts as nothing."""
    eps = float(jnp.finfo(dtype).eps)
    w = jnp.array([[1.0], [-eps / 4]], dtype)
    x = jnp.ones(2, dtype)
    assert (x @ w)[0] == 1.0
    rule, seed = rules.AlphaBeta(2.0, 1.0, epsilon=eps / 1000), jnp.ones(1, dtype)
    R = explain(lambda x: jax.nn.relu(x) @ w, rule, x, seed)
    close(R.astype(jnp.float32), np.array([2.0, -1 / 16], np.float32), tolerance=1e-2)
    R = explain(lambda x: x @ w, rule, x, seed)
    close(R.astype(jnp.float32), np.array([2.0, 0.0], np.float32), tolerance=1e-6)


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


# ------------------------------------------------------------------------------------------------------------------------ the bias


@pytest.mark.parametrize(
    "rule",
    [rules.Epsilon, rules.Gamma, rules.AlphaBeta, rules.ZPlus, rules.WSquare],
    ids=lambda r: r.__name__,
)
def test_bias_counts_unless_it_is_left_out(rule):
    """One input of weight one, and a bias as large: half of the relevance each, of α = 2 its doubled half."""
    f = lambda x: x[None] @ jnp.array([1.0]) + 1.0
    part = 2.0 if rule is rules.AlphaBeta else 1.0
    close(explain(f, rule(epsilon=0.0), 1.0, 1.0), part / 2)
    close(explain(f, rule(epsilon=0.0, bias=False), 1.0, 1.0), part)


class GammaOfMaps(rules.Gamma):
    """γ for the maps without a kernel that `Gamma` itself is not for."""

    kinds = ("affine", "pool", "linear")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rule", [rules.Epsilon, GammaOfMaps], ids=lambda r: r.__name__)
def test_affine_map_as_a_layer_of_its_own(rule, bias):
    """y = a x + b, one input for each output: a x of a x + b, with what the rule favours raised, or without the bias."""
    x, a, b = np.array([1.0, -2.0, 3.0]), np.array([2.0, 0.5, 1.5]), np.array([0.5, 3.0, -9.0])
    z, R = a * x + b, np.array([1.0, 2.0, -3.0])
    composite = lrpjax.Composite([(select.kind("affine"), rule(epsilon=0.1, bias=bias))])
    kept = b if bias else 0 * b
    gamma = 0.25 if rule is GammaOfMaps else 0.0
    raised = lambda v: v + gamma * np.where(z > 0, np.maximum(v, 0), np.minimum(v, 0))
    bottom = raised(a * x) + raised(kept)
    wanted = raised(a * x) / (bottom + 0.1 * np.where(bottom >= 0, 1, -1)) * R
    found = lrpjax.relevance(lambda x: x * a + b, composite, target=jnp.asarray(R))(jnp.asarray(x))
    close(found, wanted)


@pytest.mark.parametrize("rule", [rules.Flat(epsilon=0.0), rules.WSquare(epsilon=0.0, bias=False)], ids=str)
def test_rules_of_the_weights_alone_with_a_batch_that_is_reshaped(rule):
    """The sums of the kernel are those of one example, but reshaping is that of all of them."""
    w = np.array([[1.0, -2.0, 0.5, 1.0], [3.0, 1.0, -1.0, 0.0]])
    x, R = np.array([[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]]), np.arange(1.0, 13.0).reshape(3, 2, 2)
    v = np.ones_like(w) if isinstance(rule, rules.Flat) else w**2
    wanted = (R.reshape(3, 4) / v.sum(0)) @ v.T
    close(explain(lambda x: (x @ w).reshape(3, 2, 2) + 1.0, rule, x, R), wanted)


# ---------------------------------------------------------------------------------------------------------- what stands above a line

QUOTIENTS = {
    "quotient": (lambda x: x / x.sum(), "quotient"),
    "root mean square": (lambda x: x / jnp.sqrt((x * x).mean()), "norm"),
    "rsqrt": (lambda x: x * lax.rsqrt((x * x).mean()), "norm"),
    "softmax divided late": (
        lambda x: (jnp.exp(x)[:, None] * jnp.outer(x, jnp.arange(1.0, 3.0))).sum(0) / jnp.exp(x).sum(),
        "quotient",
    ),
}


# The sums of a softmax are no units of these kinds.
@pytest.mark.filterwarnings("ignore::lrpjax.UnmatchedWarning")
@pytest.mark.parametrize("name", QUOTIENTS)
def test_stabilised_quotient_absorbs_what_the_stabiliser_takes(name):
    """ε on top of what the unit does without a rule: R y / (y + ε sign y)."""
    f, kind = QUOTIENTS[name]
    x = jnp.array([0.5, -1.0, 2.0])
    y = f(x)
    R = jnp.arange(1.0, y.size + 1)
    sums = (select.kind("pool", "sum"), rules.Norm(0.0))
    found = lrpjax.relevance(f, lrpjax.Composite([(select.kind(kind), rules.Epsilon(0.5)), sums]), target=R)(
        x
    )
    damped = R * y / (y + 0.5 * jnp.where(y >= 0, 1.0, -1.0))
    close(found, lrpjax.relevance(f, lrpjax.Composite([sums]), target=damped)(x))


@pytest.mark.parametrize("name", QUOTIENTS)
def test_root_below_the_line_makes_a_normalisation(name):
    f, kind = QUOTIENTS[name]
    kinds = [u.kind for u in lrpjax.plan(f, None, jnp.array([0.5, -1.0, 2.0]))]
    assert [k for k in kinds if k in ("norm", "quotient")] == [kind]


# -------------------------------------------------------------------------------------------------------------- rules of one's own


class Magnitudes(rules.Epsilon):
    """ε-LRP with |w| above the line."""

    def kernels(self, w):
        return (abs(w),)


def test_epsilon_with_a_kernel_of_its_own_is_not_taken_for_the_native_derivative():
    x, w, R = np.array([1.0, -2.0, 3.0]), np.array([2.0, -1.0, -0.5]), 2.0
    close(explain(lambda x: x @ w, Magnitudes(0.5), x, R), x * abs(w) * R / (x @ w + 0.5))
