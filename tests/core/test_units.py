"""What a function is taken to be made of, and what each kind of unit does with relevance.

The oracle for everything that is right as JAX differentiates it is the input times the cotangent R / y, with a stop_gradient by hand where a
unit holds something fixed.
"""

import functools

import flax.linen as nn
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import lenient
from jax import lax

import lrpjax
from lrpjax import composites, rules, select

close = functools.partial(helpers.close, of_largest=True)

LRP0 = lrpjax.composites.epsilon(0.0)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def kinds(f, *args):
    return [unit.kind for unit in lrpjax.plan(f, None, *args)]


def ratio(f, x, R):
    """x ⊙ Jᵀ(R / f(x)): sharing in proportion through everything linear, winner takes all through maxima."""
    y, back = jax.vjp(f, x)
    return x * back(jnp.where(y == 0, 0, R / y))[0]


# --------------------------------------------------------------------------------------------------------------------------- activations


def is_activation(f):
    """Whether f maps one array to one of its shape and dtype, element by element, and is not the identity."""
    x = jnp.array([-7.0, -2.3, -0.7, 0.4, 1.9, 8.0])
    try:
        y, left, right = f(x), f(x[:2]), f(x[2:])
    except (TypeError, ValueError, IndexError, AttributeError):
        return False
    if not (isinstance(y, jax.Array) and y.shape == x.shape and y.dtype == x.dtype):
        return False
    return bool((y == jnp.concatenate([left, right])).all() and not (y == x).all())


LIBRARY = {
    f"{library.__name__}.{name}": f
    for library in (jax.nn, nn.activation)
    for name, f in vars(library).items()
    if not name.startswith("_") and callable(f) and not isinstance(f, type) and is_activation(f)
}
HANDWRITTEN = {
    "jnp.tanh": jnp.tanh,
    "jnp.exp": jnp.exp,
    "jnp.square": jnp.square,
    "x * x": lambda x: x * x,
    "cube": lambda x: x**3,
    "root": lambda x: jnp.sqrt(x * x + 1.0),
    "maximum": lambda x: jnp.maximum(x, 0.0),
    "where": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "mask": lambda x: x * (x > 0).astype(x.dtype),
    "clip": lambda x: jnp.clip(x, 0.0, 6.0),
    "sigmoid": lambda x: 1.0 / (1.0 + jnp.exp(-x)),
    "silu": lambda x: x / (1.0 + jnp.exp(-x)),
    "fast gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "tanh gelu": lambda x: 0.5 * x * (1.0 + jnp.tanh(0.797884 * (x + 0.044715 * x**3))),
    "erf gelu": lambda x: x * 0.5 * (1.0 + jax.scipy.special.erf(x / 1.4142135)),
    "jax.nn.gelu, exact": functools.partial(jax.nn.gelu, approximate=False),
    "softplus": lambda x: jnp.log(1.0 + jnp.exp(x)),
    "logaddexp": lambda x: jnp.logaddexp(x, 0.0),
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "softsign": lambda x: x / (1.0 + jnp.abs(x)),
    "hard swish": lambda x: x * jnp.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "snake": lambda x: x + jnp.sin(x) ** 2,
    "gaussian": lambda x: jnp.exp(-x * x),
    "elu": lambda x: jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0.0)) - 1.0),
    "PReLU": lambda x: nn.PReLU().apply({"params": {"negative_slope": jnp.asarray(0.3)}}, x),
}


def test_search_of_the_libraries_finds_the_usual_activations():
    names = (
        "relu relu6 sigmoid softplus silu swish gelu elu selu celu leaky_relu hard_tanh hard_sigmoid hard_silu hard_swish "
        "log_sigmoid soft_sign mish squareplus sparse_plus sparse_sigmoid tanh"
    )
    wanted = [f"jax.nn.{name}" for name in names.split(" ")] + [
        "flax.linen.activation.gelu",
        "flax.linen.activation.tanh",
    ]
    assert set(wanted) <= set(LIBRARY)
    assert len(LIBRARY) < 60


@pytest.mark.parametrize("name", LIBRARY)
def test_activation_of_the_libraries_is_one_unit(name):
    assert kinds(lambda x: LIBRARY[name](x) @ np.ones((6, 3)), jnp.ones((2, 6))) == ["activation", "dense"]


@pytest.mark.parametrize("name", LIBRARY | HANDWRITTEN)
def test_activation_passes_relevance_on(name, rng):
    """However it is written: at most a factor or a sign is left outside."""
    f, x, w = (LIBRARY | HANDWRITTEN)[name], jnp.asarray(rng.normal(size=(2, 6)) * 3), rng.normal(size=(6, 3))
    model = lambda x: f(x) @ w
    assert [kind for kind in kinds(model, x) if kind != "affine"] == ["activation", "dense"]
    R = jnp.asarray(rng.normal(size=(2, 3)))
    close(lrpjax.relevance(model, LRP0, target=R)(x), ratio(lambda h: h @ w, f(x), R))


@pytest.mark.parametrize("name", LIBRARY | HANDWRITTEN)
def test_activation_at_zero_is_finite_and_loses_nothing_elsewhere(name, rng):
    """φ(0) = 0 takes the limit of φ(x) / x; what φ(0) ≠ 0 receives cannot be given to an input that is zero."""
    f, w = (LIBRARY | HANDWRITTEN)[name], rng.normal(size=(4, 3))
    x, R = jnp.array([0.0, 0.5, -0.0, 2.0]), rng.normal(size=3)
    found = lrpjax.relevance(lambda x: f(x) @ w, LRP0, target=R)(x)
    close(found, jnp.where(x == 0, 0.0, ratio(lambda h: h @ w, f(x), R)))


@pytest.mark.parametrize("f", [jnp.tanh, jax.nn.gelu, jax.nn.silu, jnp.sin], ids=lambda f: f.__name__)
def test_relevance_is_differentiable_where_the_input_is_zero(f):
    """R = x · φ(x)/x · 3 has the slope 3 φ'(0) there: the quotient has a limit."""
    slope = jax.grad(lambda x: lrpjax.relevance(lambda x: f(x) * 3.0, LRP0)(x))(0.0)
    assert float(slope) == pytest.approx(3.0 * float(jax.grad(f)(0.0)), rel=1e-6)


def test_affine_prefix_of_an_activation_belongs_to_the_layer(rng):
    w, b, s = rng.normal(size=(4, 3)), rng.normal(size=3), rng.normal(size=3)
    f = lambda x: jax.nn.gelu((x @ w + b) * s)
    assert kinds(f, jnp.ones((2, 4))) == ["dense", "activation"]


def test_activation_with_a_parameter_for_each_channel(rng):
    w, slope, x = rng.normal(size=(4, 3)), rng.uniform(size=4), jnp.asarray(rng.normal(size=(2, 4)))
    f = lambda x: jnp.where(x > 0, x, slope * x) @ w
    assert kinds(f, x) == ["activation", "dense"]
    R = rng.normal(size=(2, 3))
    close(
        lrpjax.relevance(f, LRP0, target=R)(x),
        ratio(lambda h: h @ w, jnp.where(x > 0, x, slope * x), R),
    )


# -------------------------------------------------------------------------------------------------------------------------------- softmax


def causal(x):
    return jnp.where(jnp.tril(jnp.ones((5, 5), bool)), x, -jnp.inf)


SOFTMAX = {
    "jax.nn": (jax.nn.softmax, -1),
    "another axis": (lambda x: jax.nn.softmax(x, axis=0), 0),
    "flax": (nn.softmax, -1),
    "exp / sum": (lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True), -1),
    "exp * (1 / sum)": (lambda x: jnp.exp(x) * (1.0 / jnp.exp(x).sum(-1, keepdims=True)), -1),
    "without the maximum": (
        lambda x: (lambda e: e / e.sum(-1)[:, None])(
            jnp.exp(x - lax.stop_gradient(x.max(-1, keepdims=True)))
        ),
        -1,
    ),
    "maximum not stopped": (
        lambda x: (lambda e: e / e.sum(-1)[:, None])(jnp.exp(x - x.max(-1, keepdims=True))),
        -1,
    ),
    "exp(log_softmax)": (lambda x: jnp.exp(jax.nn.log_softmax(x)), -1),
    "exp(x - logsumexp)": (lambda x: jnp.exp(x - jax.nn.logsumexp(x, axis=-1, keepdims=True)), -1),
    "exp2": (lambda x: (lambda e: e / e.sum(-1, keepdims=True))(jnp.exp2(x * 1.4426950408889634)), -1),
    "masked": (lambda x: jax.nn.softmax(causal(x)), -1),
    "where": (lambda x: jax.nn.softmax(x, where=jnp.tril(jnp.ones((5, 5), bool))), -1),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_in_every_writing_follows_its_taylor_expansion(name, rng):
    """AttnLRP, proposition 3.1: R_x = x ⊙ (R − s ΣR), with s the softmax and R its relevance."""
    f, axis = SOFTMAX[name]
    x, w = jnp.asarray(rng.normal(size=(5, 5))), rng.normal(size=(5, 3))
    model = lambda x: f(x) @ w
    assert "softmax" in kinds(model, x)
    assert not {"activation", "quotient", "product"} & set(kinds(model, x))
    s, R = f(x), rng.normal(size=(5, 3))
    above = ratio(lambda s: s @ w, s, R)
    close(lrpjax.relevance(model, LRP0, target=R)(x), x * (above - s * above.sum(axis, keepdims=True)), 1e-7)


LATE = {
    "division": lambda e, v: (e @ v) / e.sum(-1, keepdims=True),
    "division of a transpose": lambda e, v: ((v.T @ e.T) / e.sum(-1)).T,
    "einsum": lambda e, v: jnp.einsum("qk,kd->qd", e, v) / jnp.einsum("qk->q", e)[:, None],
    "dot with ones": lambda e, v: (e @ v) / (e @ jnp.ones((5, 1))),
    "multiplied and summed": lambda e, v: (e[:, :, None] * v).sum(1) / e.sum(1)[:, None],
    "masked": lambda e, v: (jnp.tril(e) @ v) / jnp.tril(e).sum(-1, keepdims=True),
}


@pytest.mark.parametrize(
    "composite",
    [composites.attnlrp(0.0), composites.cp_lrp(0.0), composites.input_x_gradient()],
    ids=["attnlrp", "cp_lrp", "input_x_gradient"],
)
@pytest.mark.parametrize("name", LATE)
def test_softmax_that_is_divided_late_is_attention(name, composite, rng):
    """Σ e v / Σ e, as attention in blocks computes it, is explained as softmax(s) v is."""
    x, q, k, w = (jnp.asarray(rng.normal(size=shape)) for shape in ((5, 4), (4, 3), (4, 3), (4, 2)))
    scores = lambda x: (x @ q) @ (x @ k).T

    def late(x):
        s = scores(x)
        return LATE[name](jnp.exp(s - lax.stop_gradient(s.max(-1, keepdims=True))), x @ w)

    def usual(x):
        s = (
            jnp.where(jnp.tril(jnp.ones((5, 5), bool)), scores(x), -jnp.inf)
            if name == "masked"
            else scores(x)
        )
        return jax.nn.softmax(s) @ (x @ w)

    target = jnp.asarray(rng.normal(size=(5, 2)))
    found = jax.jit(lrpjax.relevance(late, composite, target=target))(x)
    close(found, lrpjax.relevance(usual, composite, target=target)(x))


@pytest.mark.parametrize("share", [0, 1])
def test_softmax_that_is_divided_late_with_other_shares(share, rng):
    """The sum below the line takes part as the exponentials above it do."""
    x, w = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.normal(size=(4, 5)))
    composite = lrpjax.Composite([(select.kind("product"), rules.Product(share))])

    def late(x):
        e = jnp.exp(x @ w)
        return (e @ x) / e.sum(-1, keepdims=True)

    explain = lambda f: lrpjax.relevance(f, composite, target=jnp.ones((5, 4)))(x)
    close(explain(late), explain(lambda x: jax.nn.softmax(x @ w) @ x))


def test_softmax_that_is_divided_late_has_no_shares_by_magnitude(rng):
    """|e| and |v| say another thing than |softmax| and |v|."""
    x, w = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.normal(size=(4, 5)))
    composite = lrpjax.Composite([(select.kind("product"), rules.Product("magnitude"))])

    def late(x):
        e = jnp.exp(x @ w)
        return (e[:, :, None] * x[None]).sum(1) / e.sum(1)[:, None]

    with pytest.raises(lrpjax.RuleError, match=r"magnitude.*divide before it"):
        lrpjax.relevance(late, composite)(x)


def test_constant_sum_over_a_sum_of_exponentials_is_no_softmax(rng):
    x, w = jnp.asarray(rng.normal(size=4)), jnp.asarray(rng.uniform(size=4))
    f = lambda x: jnp.square(w).sum() / jnp.exp(x).sum()
    close(lrpjax.relevance(f, LRP0)(x).sum(), f(x))


def test_softmax_that_is_divided_late_with_its_product_stopped_or_by_the_chain_rule(rng):
    x, w = jnp.asarray(rng.normal(size=(5, 4))), jnp.asarray(rng.normal(size=(4, 5)))
    target = jnp.asarray(rng.normal(size=(5, 4)))

    def late(x):
        e = jnp.exp(x @ w)
        return (e @ x) / e.sum(-1, keepdims=True)

    def explain(rule):
        composite = lrpjax.Composite(
            [(select.kind("dense"), rules.Epsilon(0.0)), (select.kind("product"), rule)]
        )
        return lrpjax.relevance(late, composite, target=target)(x)

    assert not explain(rules.Stop()).any()
    z, s = x @ w, jax.nn.softmax(x @ w)
    R_s = z * (
        target @ x.T - s * target.sum(-1, keepdims=True)
    )  # the chain rule above the line, native below it
    close(explain(rules.Gradient()), jnp.exp(z).T @ target + x * (R_s / z @ w.T))


def test_shares_by_magnitude_need_an_elementwise_product(rng):
    x = jnp.asarray(rng.normal(size=(4, 4)))
    composite = lrpjax.Composite([(select.kind("product"), rules.Product("magnitude"))])
    with pytest.raises(lrpjax.RuleError, match=r"magnitude.*elementwise.*test_units"):
        lrpjax.relevance(lambda x: x @ x.T, composite)(x)


LOG_SOFTMAX = {
    "jax.nn": jax.nn.log_softmax,
    "written out": lambda x: x - jnp.log(jnp.exp(x).sum(-1, keepdims=True)),
    "logsumexp": lambda x: x - jax.nn.logsumexp(x, axis=-1, keepdims=True),
    "log of softmax": lambda x: jnp.log(jax.nn.softmax(x)),
    "log of softmax, made safe": lambda x: jnp.log(jax.nn.softmax(x) + 1e-12),
    "log of a scaled softmax": lambda x: jnp.log(0.5 * jax.nn.softmax(x)),
}


@pytest.mark.parametrize("name", LOG_SOFTMAX)
def test_log_softmax_in_every_writing_shares_as_it_is_differentiated(name, rng):
    """Taken for activations, its log and exp give relevances of 1e9 and more."""
    x, w = jnp.asarray(rng.normal(size=(4, 5)) * 5), rng.normal(size=(5, 3))
    model = lambda x: LOG_SOFTMAX[name](x) @ w
    close(lrpjax.relevance(model, LRP0)(x), ratio(model, x, model(x)))
    assert "activation" not in kinds(model, x)


def test_logsumexp_shares_by_its_gradient(rng):
    x, w = jnp.asarray(rng.normal(size=(4, 5))), rng.normal(size=(5, 3))
    f = lambda x: jax.nn.logsumexp(x @ w, axis=-1)
    assert set(kinds(f, x)) == {
        "dense",
        "affine",
        "softmax",
    }  # affine: the maximum, taken off and added again
    close(lrpjax.relevance(f, LRP0)(x), ratio(f, x, f(x)))


@pytest.mark.parametrize(
    "f",
    [
        jax.nn.softmax,
        jax.nn.log_softmax,
        lambda x: jax.nn.softmax(x)[:, ::-1],
        lambda x: jnp.log(jax.nn.softmax(x)),
    ],
)
def test_explaining_a_probability_is_warned_of(f):
    with pytest.warns(lrpjax.ProbabilityWarning, match="logits"):
        lrpjax.relevance(f)(jnp.ones((2, 3)))


# ---------------------------------------------------------------------------------------------------------------------------- normalisation


def layer_norm(x, over):
    """x, centred and divided by over(variance), axis -1."""
    centred = x - x.mean(-1, keepdims=True)
    return over(centred, jnp.square(centred).mean(-1, keepdims=True) + 1e-5)


DIVIDED = {
    "rsqrt": lambda c, v: c * lax.rsqrt(v),
    "rsqrt first": lambda c, v: lax.rsqrt(v) * c,
    "1 / sqrt": lambda c, v: c * (1.0 / jnp.sqrt(v)),
    "/ sqrt": lambda c, v: c / jnp.sqrt(v),
    "power": lambda c, v: c * v**-0.5,
    "/ power": lambda c, v: c / v**0.5,
    "/ (sqrt + eps)": lambda c, v: c / (jnp.sqrt(v) + 1e-3),
    "clamped": lambda c, v: c / jnp.maximum(jnp.sqrt(v), 1e-3),
    "scaled": lambda c, v: c * (lax.rsqrt(v) * jnp.arange(1.0, 7.0)),
    "scaled and shifted": lambda c, v: c * (lax.rsqrt(v) * jnp.arange(1.0, 7.0)) + 0.5,
}


@pytest.mark.parametrize("name", DIVIDED)
@pytest.mark.parametrize("centred", [True, False], ids=["LayerNorm", "RMSNorm"])
def test_normalisation_in_every_writing_holds_its_statistic_fixed(name, centred, rng):
    """Σ R = f(x) then: a normalised layer without shift conserves exactly."""
    x, w = jnp.asarray(rng.normal(size=(3, 6))), rng.normal(size=(6, 2))

    def model(x, hold=lambda v: v):
        c = x - x.mean(-1, keepdims=True) if centred else x
        return DIVIDED[name](c, hold(jnp.square(c).mean(-1, keepdims=True) + 1e-5)) @ w

    R = jnp.asarray(rng.normal(size=(3, 2)))
    found = lrpjax.relevance(model, LRP0, target=R)(x)
    close(found, ratio(lambda x: model(x, lax.stop_gradient), x, R))
    if "shifted" not in name:
        close(found.sum(-1), R.sum(-1))
    assert {"norm", "quotient"} & set(kinds(model, x))


def l2(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


SCALE = jnp.arange(1.0, 7.0)


def flax_norm(module, **more):
    return lenient(lambda x: module.apply({"params": {"scale": SCALE, **more}}, x))


SHIFT = {"bias": 0.0 * SCALE}
NORMS = {
    "nn.LayerNorm": flax_norm(nn.LayerNorm(), **SHIFT),
    "nn.LayerNorm, slow variance": flax_norm(nn.LayerNorm(use_fast_variance=False), **SHIFT),
    "nn.RMSNorm": flax_norm(nn.RMSNorm()),
    "nn.GroupNorm": flax_norm(nn.GroupNorm(2), **SHIFT),
    "nn.InstanceNorm": lambda x: flax_norm(nn.InstanceNorm(), **SHIFT)(
        x[..., None, :] * jnp.array([[1.0], [2.0]])
    ).sum(-2),
    "jax.nn.standardize": jax.nn.standardize,
    "l2": l2,
    "l2, clamped": lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6),
    "l2, by rsqrt": lambda x: x * lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12)),
    "l1": lambda x: x / jnp.abs(x).sum(-1, keepdims=True),
    "batch statistics": lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_of_the_libraries_conserve(name, rng):
    """They are linear in the signal, once the statistic is fixed: Σ R is the output relevance, and |R| stays of its size."""
    x, w = jnp.asarray(rng.normal(size=(3, 6))), rng.normal(size=(6, 2))
    model = lambda x: NORMS[name](x) @ w
    assert {"norm", "quotient"} & set(kinds(model, x))
    found = lrpjax.relevance(model, LRP0)(x)
    np.testing.assert_allclose(found.sum(), model(x).sum(), rtol=1e-6, atol=1e-10)
    assert abs(found).sum() < 50 * abs(model(x)).sum()


@pytest.mark.parametrize("name", ["nn.LayerNorm", "nn.GroupNorm", "nn.InstanceNorm"])
def test_clipped_variance_is_no_relu_of_the_network(name, rng):
    """max(0, E[x²] − E[x]²): guided backprop, and all else that is for ReLUs, must leave it alone."""
    x = jnp.asarray(rng.normal(size=(3, 6)))
    model = lambda x: jax.nn.relu(NORMS[name](x)) @ np.ones((6, 2))
    names = [u.name for u in lrpjax.plan(model, lrpjax.composites.guided_backprop(), x)]
    assert names.count("relu") == names.count("bound") == 1


def test_relu_under_the_root_of_a_sum_is_one(rng):
    """A norm of rectified features is not the guard of a root."""
    model = lambda x: jnp.sqrt(jax.nn.relu(x).sum(-1))
    names = [u.name for u in lrpjax.plan(model, lrpjax.composites.guided_backprop(), jnp.ones((3, 6)))]
    assert "relu" in names


@pytest.mark.parametrize(
    "preset",
    ["epsilon", "epsilon_plus", "excitation_backprop", "deep_taylor", "guided_backprop", "attnlrp", "cp_lrp"],
)
def test_scale_of_a_normalisation_may_stand_on_either_side(preset, rng):
    """(c / σ) · g + b, in which g and b stand free, and flax's c · (g / σ) + b."""
    x, g, b = jnp.asarray(rng.normal(size=(3, 6))), rng.normal(size=6), rng.normal(size=6)
    w, v = rng.normal(size=(6, 6)), rng.normal(size=(6, 2))

    def model(x, free):
        h = x @ w
        c = h - h.mean(-1, keepdims=True)
        s = lax.rsqrt(jnp.square(c).mean(-1, keepdims=True) + 1e-5)
        return jax.nn.relu((c * s * g if free else c * (s * g)) + b) @ v

    explain = lambda free: lrpjax.relevance(
        functools.partial(model, free=free), getattr(lrpjax.composites, preset)(), target=1
    )(x)
    close(explain(True), explain(False), 1e-5)


def test_rsqrt_of_a_constant_variance_is_no_normalisation(rng):
    w, var = rng.normal(size=(4, 3)), rng.uniform(0.5, 1.0, size=3)
    assert kinds(lambda x: (x @ w) * lax.rsqrt(var), jnp.ones((2, 4))) == ["dense"]


# ---------------------------------------------------------------------------------------- every primitive, whichever operand carries the data


def both(f):
    """A function of one array whose two halves are f's operands."""
    return lambda x: f(x[0], x[1])


A = np.array([[0.9, -1.7, 0.4], [2.2, 0.6, -0.8]])
B = np.array([[-1.1, 0.5, 1.6], [0.3, -2.1, 1.2]])
SQUARE = np.array([[1.2, -0.7], [0.4, 2.1]])
INDEX = np.array([1, 0, 1])

LINEAR = {  # right as JAX differentiates them: x ⊙ Jᵀ(R / y)
    "reshape": lambda x: x.reshape(3, 2),
    "transpose": lambda x: x.T,
    "squeeze": lambda x: x[:, None].squeeze(1),
    "expand_dims": lambda x: x[None],
    "broadcast": lambda x: jnp.broadcast_to(x, (4, 2, 3)),
    "slice": lambda x: x[:, ::2],
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (0, 1), (2, 2)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:1] * 3.0, (1, 0)),
    "gather": lambda x: x[INDEX],
    "take": lambda x: jnp.take(x, INDEX, axis=0),
    "concatenate": lambda x: jnp.concatenate([x, 2.0 * x, np.ones((1, 3))]),
    "pad": lambda x: jnp.pad(x, 1, constant_values=2.0),
    "rev": lambda x: x[::-1],
    "split": lambda x: jnp.split(x, 3, axis=1)[1],
    "stack": lambda x: jnp.stack([x, -x]),
    "tile": lambda x: jnp.tile(x, (2, 2)),
    "repeat": lambda x: jnp.repeat(x, 2, axis=0),
    "roll": lambda x: jnp.roll(x, 1, axis=1),
    "where": lambda x: jnp.where(A > 0, x, -x),
    "select of two values": lambda x: jnp.where(x > 0, x, x.T.reshape(2, 3)),
    "sort": lambda x: jnp.sort(x, axis=-1),
    "top_k": lambda x: lax.top_k(x, 2)[0],
    "cummax": lambda x: lax.cummax(x),
    "cummin": lambda x: lax.cummin(x),
    "max": lambda x: x.max(-1),
    "min": lambda x: x.min(-1),
    "maximum of two": lambda x: jnp.maximum(x[0], x[1]),
    "minimum of two": lambda x: jnp.minimum(x[0], x[1]),
    "convert": lambda x: x.astype(jnp.float32).astype(x.dtype),
    "reduce_precision": lambda x: lax.reduce_precision(x, 11, 40),
    "copy": lambda x: jnp.array(x, copy=True),
    "barrier": lambda x: lax.optimization_barrier(x),
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(-1),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "reversed cumsum": lambda x: lax.cumsum(x, axis=1, reverse=True),
    "add": lambda x: x[0] + x[1],
    "sub": lambda x: x[0] - x[1],
    "subtract from a broadcast": lambda x: x - x[:, :1],
    "neg": lambda x: -x,
    "scale": lambda x: x * B,
    "scale from the left": lambda x: B * x,
    "divide by a constant": lambda x: x / B,
    "scatter_add": lambda x: jnp.zeros((2, 3)).at[INDEX].add(x[INDEX]),
    "scatter": lambda x: jnp.zeros((4, 3)).at[np.array([3, 0])].set(x),
    "segment_sum": lambda x: jax.ops.segment_sum(x, np.array([1, 1]), 2),
    "dot": lambda x: x @ SQUARE.repeat(3, 0)[:3],
    "dot from the left": lambda x: SQUARE @ x,
    "matrix times vector": lambda x: x @ np.array([1.0, -2.0, 3.0]),
    "einsum": lambda x: jnp.einsum("ij,kjl->ikl", x, np.arange(1.0, 13.0).reshape(2, 3, 2)),
    "batched dot": lambda x: jnp.einsum("bi,bio->bo", x, np.arange(1.0, 13.0).reshape(2, 3, 2)),
    "convolution": lambda x: lax.conv(
        x[None], np.arange(1, 9).reshape(2, 2, 2).astype(x.dtype), (1,), "SAME"
    ),
    "convolution by the data": lambda x: lax.conv(
        np.arange(1.0, 13.0).reshape(1, 2, 6), x[None], (1,), "VALID"
    ),
    "triangular_solve": lambda x: lax.linalg.triangular_solve(SQUARE, x, left_side=True, lower=True),
    "fft": lambda x: jnp.fft.irfft(jnp.fft.rfft(x, axis=1) * np.array([2.0 + 1.0j, 0.5]), n=3, axis=1),
    "real and imaginary": lambda x: jnp.real(lax.complex(x, 2.0 * x) * np.complex128(1.0 - 2.0j)),
    "interpolation": lambda x: jax.image.resize(x, (4, 5), "bilinear"),
    "avg_pool": lenient(lambda x: nn.avg_pool(x.reshape(1, 3, 2), (2,), padding="SAME")),
    "avg_pool, pads not counted": lenient(
        lambda x: nn.avg_pool(x.reshape(1, 3, 2), (2,), padding="SAME", count_include_pad=False)
    ),
    "max_pool": lambda x: nn.max_pool(x.reshape(1, 3, 2), (2,), padding="SAME"),
    "min_pool": lambda x: lax.reduce_window(x, jnp.inf, lax.min, (1, 2), (1, 1), "VALID"),
    "global average": lambda x: x.mean((0, 1)),
    "logcumsumexp": lambda x: lax.cumlogsumexp(x),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_and_selecting_primitives_share_in_proportion(name, rng):
    x = jnp.asarray(A)
    f = LINEAR[name]
    R = jnp.asarray(rng.normal(size=f(x).shape))
    tolerance = 1e-6 if name == "convert" else 1e-9
    close(lrpjax.relevance(f, LRP0, target=R)(x), ratio(f, x, R), tolerance)


PRODUCTS = {  # of values that both carry relevance: what the first and the second receive of R
    "mul": (lambda a, b: a * b, lambda a, b, R: (R / 2, R / 2)),
    "squared": (lambda a, b: a * b * b, lambda a, b, R: (R / 3, 2 * R / 3)),
    "div": (lambda a, b: a / b, lambda a, b, R: (R, 0 * R)),
    "gate": (lambda a, b: jax.nn.sigmoid(a) * b, lambda a, b, R: (0 * R, R)),
    "gate on the right": (lambda a, b: b * jax.nn.sigmoid(a), lambda a, b, R: (0 * R, R)),
    "one minus gate": (lambda a, b: (1.0 - jax.nn.sigmoid(a)) * b, lambda a, b, R: (0 * R, R)),
    "SwiGLU": (lambda a, b: jax.nn.silu(a) * b, lambda a, b, R: (R / 2, R / 2)),
    "rsqrt": (lambda a, b: a * lax.rsqrt(b * b + 1.0), lambda a, b, R: (R, 0 * R)),
    "prod": (lambda a, b: jnp.stack([a, b]).prod(0), lambda a, b, R: (R / 2, R / 2)),
    "maximum": (jnp.maximum, lambda a, b, R: (R * (a > b), R * (b > a))),
    "power": (lambda a, b: jnp.exp(b * jnp.log(jnp.abs(a))), lambda a, b, R: (R / 2, R / 2)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_two_values(name, rng):
    f, shares = PRODUCTS[name]
    a, b, R = A, B, rng.normal(size=A.shape)
    close(
        lrpjax.relevance(both(f), LRP0, target=jnp.asarray(R))(jnp.stack([a, b])), np.stack(shares(a, b, R))
    )


@pytest.mark.parametrize("carries", [0, 1])
@pytest.mark.parametrize("name", ["mul", "div", "gate", "SwiGLU", "rsqrt", "maximum"])
def test_with_one_constant_operand_the_other_takes_all(name, carries, rng):
    """A constant factor is a weight; what is left of a quotient or a maximum is an elementwise function: relevance passes."""
    f, _ = PRODUCTS[name]
    operands = [jnp.asarray(A), jnp.asarray(B)]

    def g(v):
        arguments = list(operands)
        arguments[carries] = v
        return f(*arguments)

    x, R = operands[carries], jnp.asarray(rng.normal(size=A.shape))
    close(lrpjax.relevance(g, LRP0, target=R)(x), R)


MATRIX = {
    "scores": lambda a, b: a @ b.T,
    "batched": lambda a, b: jnp.einsum("ij,ij->i", a, b),
    "outer": lambda a, b: jnp.einsum("i,j->ij", a[0], b[0]),
}


@pytest.mark.parametrize("carries", [(0, 1), (0,), (1,)], ids=["both", "left", "right"])
@pytest.mark.parametrize("name", MATRIX)
def test_matrix_products_whichever_operand_carries_the_data(name, carries, rng):
    """Both: half to each (AttnLRP, proposition 3.3), all other: a dense layer."""
    f, operands = MATRIX[name], (jnp.asarray(A), jnp.asarray(B))
    y = f(*operands)
    R = jnp.asarray(rng.normal(size=y.shape))
    found = lrpjax.relevance(f, LRP0, argnums=carries, target=R)(*operands)
    cotangents = jax.vjp(f, *operands)[1](R / y)
    for i, got in zip(carries, found, strict=True):
        close(got, operands[i] * cotangents[i] / len(carries))
    kind = "product" if len(carries) == 2 else "dense"
    assert [u.kind for u in lrpjax.plan(f, None, *operands, argnums=carries)] == [kind]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "name",
    ["dot", "convolution", "add", "mean", "max_pool", "avg_pool", "cumsum", "gather", "scale", "sort"],
)
def test_dtypes_of_primitives(name, dtype, rng):
    """The result has the dtype of the input, and is that of float64 up to the dtype's precision."""
    f = lenient(lambda x: LINEAR[name](x).astype(x.dtype))
    x = jnp.asarray(A, dtype)
    R = jnp.asarray(rng.normal(size=f(x).shape), dtype)
    found = jax.jit(lrpjax.relevance(f, LRP0, target=R))(x)
    assert found.dtype == x.dtype
    wanted = ratio(LINEAR[name], x.astype("float64"), R.astype("float64"))
    precision = 64 * float(jnp.finfo(dtype).eps)
    close(found.astype("float64"), wanted, precision)


@pytest.mark.parametrize(
    "name",
    ["dot", "convolution", "max_pool", "sort", "cumsum", "gather", "where", "dynamic_slice", "scatter_add"],
)
def test_vmap_of_primitives(name, rng):
    xs = jnp.asarray(rng.normal(size=(3, *A.shape)))
    relevance = lrpjax.relevance(LINEAR[name], lrpjax.composites.epsilon_plus())
    close(jax.jit(jax.vmap(relevance))(xs), jnp.stack([relevance(x) for x in xs]))


@pytest.mark.parametrize("name", ["add a constant", "constant minus"])
def test_added_constant_takes_its_share_before_a_layer(name, rng):
    w, x = rng.normal(size=(3, 4)), jnp.asarray(A)
    shifted = {"add a constant": lambda x: x + B, "constant minus": lambda x: B - x}[name]
    f = lambda x: shifted(x) @ w
    close(lrpjax.relevance(f, LRP0)(x), ratio(f, x, f(x)))


@pytest.mark.parametrize("rule", [rules.Flat(), rules.WSquare(bias=False), rules.ZBox(-9.0, 9.0)], ids=str)
def test_input_that_is_zero_gets_its_share_of_plain_rules_through_preprocessing(rule, rng):
    """(x − mean) / std inside of f: relevance goes to the pixels unchanged, whatever their values."""
    w, x = rng.normal(size=(3, 4)), jnp.array([[0.0, 0.5, 1.0]])
    composite = lrpjax.Composite([(select.kind("dense"), rule)])
    prepare = lambda x: (x - 0.5) / np.array([0.2, 0.3, 0.4])
    R = jnp.ones((1, 4))
    found = lrpjax.relevance(lambda x: prepare(x) @ w, composite, target=R)(x)
    close(found, lrpjax.relevance(lambda x: x @ w, composite, target=R)(prepare(x)))
    assert (found != 0).all()


@pytest.mark.parametrize("size", [1.0, 1e3])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_alpha_beta_stays_bounded_in_every_precision(dtype, size, rng):
    """Σ|R| ≤ (α + β) Σ|seed|: units with next to no negative part must not turn rounding into relevance."""
    weight = np.where(rng.uniform(size=(64, 256)) < 0.02, -0.05, 1.0) * rng.uniform(size=(64, 256))
    w, x = jnp.asarray(weight, dtype), jnp.asarray(rng.uniform(size=64) * size, dtype)
    composite = lrpjax.Composite([(select.kind("dense"), rules.AlphaBeta())])
    found = lrpjax.relevance(lambda x: x @ w, composite, target=jnp.ones(256, dtype))(x)
    assert abs(found.astype("float64")).sum() <= 3.1 * 256


@pytest.mark.parametrize(
    "rule",
    [rules.Epsilon(), rules.Gamma(), rules.AlphaBeta(), rules.ZBox(-3.0, 3.0), rules.WSquare(), rules.Flat()],
    ids=lambda r: type(r).__name__,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_rules_in_low_precision(rule, dtype, layer, rng):
    """Rules compute in float32 or better: no overflow of z / (z + ε), and the dtype of the input comes back."""
    if layer == "dense":
        w, x, run = rng.normal(size=(6, 4)), rng.normal(size=(2, 6)), lambda x, w: x @ w
    else:
        w, x, run = (
            rng.normal(size=(3, 2, 2, 2)),
            rng.normal(size=(1, 2, 4, 4)),
            lambda x, w: lax.conv(x, w, (1, 1), "SAME"),
        )
    w, x = jnp.asarray(w, dtype), jnp.asarray(x, dtype)
    composite = lrpjax.Composite([(select.kind("dense", "conv"), rule)])
    f = lambda x, w: jax.nn.relu(run(x, w))
    found = jax.jit(lrpjax.relevance(f, composite))(x, w)
    exact = lrpjax.relevance(f, composite)(x.astype("float64"), w.astype("float64"))
    assert found.dtype == x.dtype
    close(found.astype("float64"), exact, 100 * float(jnp.finfo(dtype).eps))


# ------------------------------------------------------------------------------------------------------------------------------ composition


def test_unused_and_integer_paths_carry_nothing(rng):
    x = jnp.asarray(rng.normal(size=6))
    w = rng.normal(size=(3, 2))
    f = lambda x: (x[jnp.argsort(x)[:3]] * 2.0 + lax.stop_gradient(x[:3])) @ w
    wanted, order = np.zeros(6), np.argsort(np.asarray(x))[:3]
    wanted[order] = 2.0 * x[order] * w.sum(1)
    close(lrpjax.relevance(f, LRP0)(x), wanted)


def test_value_used_several_times_collects_relevance(rng):
    w, x = rng.normal(size=(4, 4)), jnp.asarray(rng.normal(size=4))
    f = lambda x: x @ w + jnp.tanh(x) + 2.0 * x
    y, h = f(x), x @ w
    wanted = x * (w @ (1 / y * y)) + jnp.tanh(x) + 2 * x
    assert h.shape == y.shape
    close(lrpjax.relevance(f, LRP0)(x), wanted)


def test_plan_of_a_network_lists_units_in_order_of_execution(rng):
    w, v, k = rng.normal(size=(8, 5)), rng.normal(size=(5, 3)), rng.normal(size=(3, 3, 1, 2))

    def f(x):
        with jax.named_scope("stem"):
            x = jax.nn.relu(
                lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
        with jax.named_scope("pool"):
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(1, -1)
        with jax.named_scope("block"), jax.named_scope("dense"):
            h = jax.nn.gelu(x @ w)
        return (h + h * 2.0) @ v

    plan = lrpjax.plan(f, lrpjax.composites.epsilon_plus(), jnp.ones((1, 4, 4, 1)))
    assert [(u.path, u.kind, u.name, u.shape) for u in plan] == [
        ("stem", "conv", "", (1, 4, 4, 2)),
        ("stem", "activation", "relu", (1, 4, 4, 2)),
        ("pool", "pool", "max_pool", (1, 2, 2, 2)),
        ("block/dense", "dense", "", (1, 5)),
        ("block/dense", "activation", "gelu", (1, 5)),
        ("", "affine", "", (1, 5)),
        ("", "sum", "", (1, 5)),
        ("", "dense", "", (1, 3)),
    ]
    assert plan.units[0].rule.startswith("ZPlus(")
    assert plan.units[3].rule.startswith("Epsilon(")
    assert all("test_units.py:" in u.source for u in plan)
    table = str(plan).splitlines()
    assert table[0].split() == ["#", "path", "kind", "rule", "shape", "source"]
    assert "stem" in table[1] and "conv" in table[1] and "1×4×4×2" in table[1]


@pytest.mark.parametrize("of", ["apply", "jit(apply)", "jit(partial(apply))", "remat"])
def test_units_of_a_jitted_module_name_the_line_of_its_code(of):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))

    net = (nn.remat(Net) if of == "remat" else Net)()
    x = jnp.ones((1, 5), jnp.float32)
    params = net.init(jax.random.key(0), x)
    f = {
        "apply": lambda x: net.apply(params, x),
        "jit(apply)": functools.partial(jax.jit(net.apply), params),
        "jit(partial(apply))": jax.jit(functools.partial(net.apply, params)),
        "remat": lambda x: net.apply(params, x),
    }[of]
    f(x)  # the cache of the first trace serves the plan
    plan = lrpjax.plan(f, None, x)
    assert len(plan.units) == 3
    assert all(u.source.endswith("Net.__call__)") and "test_units.py:" in u.source for u in plan), plan
