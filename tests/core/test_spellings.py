"""Activations in odd company: limits far away, biases behind a negation, masks and numbers that are not known, shared
predicates. Relevance is held against that of the plain writing of the same network, or against the output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, lenient

import lrpjax
from lrpjax import Composite, composites, rules, select

RNG = np.random.default_rng(1)
W, B, V = RNG.standard_normal((6, 5)), RNG.standard_normal(5), RNG.standard_normal((5, 4))
X, OTHER, MASK = RNG.standard_normal((3, 6)), RNG.standard_normal((6, 5)), RNG.standard_normal((3, 5)) > 0
LAYERS = select.kind("dense")
COMPOSITES = {
    "epsilon": composites.epsilon(1e-6),
    "zplus": Composite([(LAYERS, rules.ZPlus())]),
    "alphabeta": Composite([(LAYERS, rules.AlphaBeta(2.0, 1.0))]),
    "gamma": Composite([(LAYERS, rules.Gamma(0.25))]),
    "gradient": composites.gradient(),
    "guided": composites.guided_backprop(),
}


def names(f, *args):
    return [u.name for u in lrpjax.plan(lenient(f), None, *args) if u.kind == "activation"]


def same(f, g, chosen=tuple(COMPOSITES)):
    for name in chosen:
        ours, plain = (lrpjax.relevance(lenient(h), COMPOSITES[name])(X) for h in (f, g))
        close(ours, plain, 1e-7, of_largest=True)


@pytest.mark.parametrize("limit", [100.0, 65504.0])
def test_a_limit_far_away_is_seen(limit):
    f = lambda x: jnp.clip(x @ W * 1e5, 0, limit) @ V
    y, R = lrpjax.value_and_relevance(lenient(f), composites.epsilon(0.0))(X)
    close(R.sum(), y.sum(), 1e-9, of_largest=True)
    assert names(f, X) == ["clip"]


def test_a_threshold_close_by_is_seen():
    for t in (1e-7, 1e-3):
        assert names(lambda x, t=t: jnp.where(x > t, x, 0), X) == ["gt+select_n"]
        assert names(lambda x, t=t: jnp.clip(x, -t, t), X) == ["clip"]
    assert names(lambda x: x**-2, X) == ["integer_pow"]


SIGMOIDS = {
    "bias inside": lambda z: 1 / (1 + jnp.exp(-(z + B))),
    "bias behind": lambda z: 1 / (1 + jnp.exp(-z - B)),
    "bias before": lambda z: 1 / (1 + jnp.exp(-B - z)),
    "moved": lambda z: 1 / (1 + jnp.exp((-(z + B)).reshape(5, 3).reshape(3, 5))),
    "one minus": lambda z: 1 - jax.nn.sigmoid(-(z + B)),
    "quotient": lambda z: 1 - 1 / (1 + jnp.exp(z + B)),
    "tanh": lambda z: 0.5 * (1 + jnp.tanh((z + B) / 2)),
    "doubled": lambda z: (lambda u: 0.5 * (2 / (1 + jnp.exp(-0.5 * (u + u)))))(z + B),
}


@pytest.mark.parametrize("writing", SIGMOIDS)
def test_a_sigmoid_leaves_the_signs_of_its_layer_alone(writing):
    f = lambda x: SIGMOIDS[writing](x @ W) @ V
    same(f, lambda x: jax.nn.sigmoid(x @ W + B) @ V)
    assert names(f, X) == ["sigmoid"]


def test_a_flipped_layer_by_hand():
    """z⁺ of σ(x w + b), written with a negation and the bias behind it."""
    f = lambda x: 1 / (1 + jnp.exp(-(x @ W) - B))
    R = lrpjax.relevance(f, Composite([(LAYERS, rules.ZPlus(epsilon=0.0))]))(X)
    y, z = 1 / (1 + np.exp(-(X @ W) - B)), np.maximum(X[:, :, None] * W, 0)
    close(R, (z / (z.sum(1) + np.maximum(B, 0))[:, None] * y[:, None]).sum(-1), 1e-9)


def test_half_precision_with_a_sigmoid_in_single():
    x, w, v = (jnp.asarray(a, jnp.bfloat16) for a in (X, W, V))
    f = lambda x: (1 / (1 + jnp.exp((-(x @ w)).astype(jnp.float32)))).astype(jnp.bfloat16) @ v
    g = lambda x: jax.nn.sigmoid((x @ w).astype(jnp.float32)).astype(jnp.bfloat16) @ v
    for composite in (COMPOSITES["zplus"], COMPOSITES["alphabeta"]):
        ours, plain = (np.asarray(lrpjax.relevance(h, composite)(x), np.float32) for h in (f, g))
        close(ours, plain, 0.02, of_largest=True)


def test_one_minus_a_sigmoid_is_a_gate_in_every_writing():
    def gated(gate):
        return lambda x: (gate(x @ W) * (x @ OTHER)) @ V

    for gate in (
        lambda z: 1 / (1 + jnp.exp(z)),
        lambda z: 1 - jax.nn.sigmoid(z),
        lambda z: 0.5 * (1 - jnp.tanh(z / 2)),
    ):
        for composite in (Composite(()), composites.epsilon(0.0)):
            ours, plain = (
                lrpjax.relevance(gated(g), composite)(X) for g in (gate, lambda z: jax.nn.sigmoid(-z))
            )
            close(ours, plain, 1e-9)


UNKNOWN = {
    "mask": lambda z: jnp.where(MASK, z * jax.nn.sigmoid(z), z),
    "channels": lambda z: jnp.where(jnp.arange(5) < 2, jax.nn.relu(z), jnp.tanh(z)),
    "indices": lambda z: jax.lax.select_n(MASK.astype(np.int32), z * jax.nn.sigmoid(z), z),
    "powers": lambda z: jnp.abs(z) ** jnp.linspace(1, 2, 5),
    "integers": lambda z: z * ((z > 0).astype(jnp.int32) << 1).astype(z.dtype),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_while_tracing_is_no_obstacle(name):
    f = lambda x: UNKNOWN[name](x @ W) @ V
    y, R = lrpjax.value_and_relevance(lenient(f), composites.epsilon(0.0))(X)
    close(R.sum(), y.sum(), 1e-8)
    assert not {"relu", "clip", "sigmoid", "identity"}.intersection(names(f, X))


def test_a_shared_predicate_decides_for_a_relu_as_well():
    def both_sides(x):  # concatenated ReLUs
        z = x @ W
        on = z > 0
        return jnp.concatenate([jnp.where(on, z, 0), jnp.where(on, 0, z)], 1) @ np.concatenate([V, V])

    close(lrpjax.relevance(lenient(both_sides), COMPOSITES["gradient"])(X), V.sum(1)[None] @ W.T + 0 * X)
    assert "relu" in names(both_sides, X)
    halves = lambda x: (lambda z: (jax.nn.relu(z) @ V, jnp.minimum(z, 0) @ V))(x @ W)
    plain = lambda x: sum(halves(x))
    close(*(lrpjax.relevance(lenient(f), composites.epsilon(0.0))(X) for f in (both_sides, plain)), 1e-8)


@pytest.mark.parametrize("name", ["zplus", "guided"])
def test_transformations_change_nothing(name):
    stack = RNG.standard_normal((3, 6, 6))
    for act, plain in (
        (lambda z: 1 / (1 + jnp.exp(-z)), jax.nn.sigmoid),
        (lambda z: z * (z > 0), jax.nn.relu),
    ):
        scanned, unrolled = (
            lambda x, a=act: jax.lax.scan(lambda h, w: (a(h @ w), None), x, stack)[0],
            lambda x, a=plain: a(a(a(x @ stack[0]) @ stack[1]) @ stack[2]),
        )
        same(scanned, unrolled, [name])
        explain = lrpjax.relevance(lenient(scanned), COMPOSITES[name])
        close(jax.jit(explain)(X), explain(X), 1e-9)
        close(jax.vmap(explain)(X), explain(X), 1e-9)


TWICE = {
    "where": lambda x: jnp.where(x @ W + B > 0, x @ W + B, 0.0) @ V,
    "select": lambda x: jax.lax.select(x @ W + B > 0, x @ W + B, jnp.zeros((3, 5))) @ V,
    "product": lambda x: ((x @ W + B) * (x @ W + B > 0)) @ V,
    "branch": lambda x: (
        jax.vmap(jax.vmap(lambda z: jax.lax.cond(z > 0, lambda z: z, lambda z: 0.0 * z, z)))(x @ W + B) @ V
    ),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_layer_that_is_written_twice_is_one(name):
    same(TWICE[name], lambda x: jax.nn.relu(x @ W + B) @ V)
    assert [u.kind for u in lrpjax.plan(lenient(TWICE[name]), None, X)] == ["dense", "activation", "dense"]


def test_a_rectifier_by_pieces_is_no_cut():
    pieces = lambda x: jnp.piecewise(x @ W + B, [x @ W + B > 0], [lambda z: z, 0.0]) @ V
    same(pieces, lambda x: jax.nn.relu(x @ W + B) @ V, ["epsilon", "zplus", "gamma", "gradient"])
    assert lrpjax.plan(lenient(pieces), None, X).notes == []


@pytest.mark.parametrize("base", [2.0, np.e, 10.0])
def test_a_power_of_a_number_is_an_exponential(base):
    def attention(x, power):
        s = x @ W @ W.T @ x.T
        e = jnp.power(base, (s - s.max(-1, keepdims=True)) / np.log(base)) if power else jnp.exp(s)
        return (e / e.sum(-1, keepdims=True) @ (x @ W)) @ V

    same(lambda x: attention(x, True), lambda x: attention(x, False))
    same(
        lambda x: (1 / (1 + jnp.power(base, -(x @ W) / np.log(base)))) @ V,
        lambda x: jax.nn.sigmoid(x @ W) @ V,
    )
    close(jnp.power(base, X), lrpjax.value_and_relevance(lambda x: jnp.power(base, x))(X)[0], 1e-12)


def test_powers_of_integers_and_of_what_is_known_are_left_alone():
    known = lambda x: x @ (10_000.0 ** (-jnp.arange(6.0) / 6))
    close(lrpjax.value_and_relevance(known)(X)[0], known(X), 0)
    counted = lambda n: jax.lax.pow(jnp.full(6, 3.0), n.astype(jnp.int32))
    f = lambda x: counted(jnp.round(x[0])) * x[0]
    with pytest.warns(lrpjax.CutWarning):
        close(lrpjax.value_and_relevance(f, composites.gradient())(X)[0], f(X), 1e-12)


def test_numbers_that_differ_in_the_last_digits_stay_two():
    a, b = np.array([0.123456789012]), np.array([0.123456789013])
    f = lambda x: x * jnp.asarray(a) - x * jnp.asarray(b)
    close(lrpjax.value_and_relevance(f, composites.gradient())(X)[0], X * (a - b), 1e-14)


AROUND = {
    "residual": lambda z, relu: relu(z) + z,
    "difference": lambda z, relu: z - 0.1 * relu(z),
    "two": lambda z, relu: relu(z) + jnp.tanh(z),
    "squared": lambda z, relu: jnp.square(relu(z)),
    "within": lambda z, relu: jnp.tanh(relu(z)),
    "behind": lambda z, relu: relu(jnp.sin(z)),
}


@pytest.mark.parametrize("name", AROUND)
def test_a_rectifier_in_a_function_of_the_same_value_is_a_rectifier(name):
    """The reference is JAX's derivative with a ReLU that is guided by itself."""

    @jax.custom_vjp
    def guided(z):
        return jax.nn.relu(z)

    guided.defvjp(lambda z: (jax.nn.relu(z), z), lambda z, c: (jnp.where((z > 0) & (c > 0), c, 0),))
    f = lambda x, relu: (AROUND[name](x @ W + B, relu) @ V).sum()
    ours = lrpjax.relevance(lenient(lambda x: f(x, jax.nn.relu)), COMPOSITES["guided"])(X)
    with jax.numpy_dtype_promotion("standard"):
        close(ours, jax.grad(lambda x: f(x, guided))(X), 1e-9)


def test_what_a_mask_puts_to_minus_infinity_takes_nothing():
    f = lambda x: jax.nn.softmax(jnp.where(x > 0, x, -jnp.inf)) @ W
    for composite in (composites.epsilon(), composites.attnlrp(), composites.deep_taylor()):
        R = np.asarray(lrpjax.relevance(f, composite)(X))
        assert np.isfinite(R).all() and not R[X <= 0].any() and R[X > 0].any()
    close(
        lrpjax.relevance(f, composites.input_x_gradient())(X),
        X * jax.grad(lambda x: f(x).sum())(X),
        1e-9,
    )


SHIFTED = {
    "softplus": lambda z: jax.nn.softplus(z) - np.log(2.0),
    "wide tanh": lambda z: 2 * jax.nn.sigmoid(2 * z / 3.0) - 1,
    "hyperbolic cosine": lambda z: jnp.cosh(z) - 1,
}


@pytest.mark.parametrize("name", SHIFTED)
def test_a_number_that_makes_a_function_zero_at_zero_belongs_to_it(name):
    """The reference is the same function with a relevance of its own: it passes all on."""
    one = lrpjax.custom_relevance(SHIFTED[name], rule=rules.Pass())
    for chosen in ("epsilon", "zplus", "gamma"):
        explain = lambda act, how=COMPOSITES[chosen]: lrpjax.relevance(
            lenient(lambda x: act(x @ W + B) @ V), how
        )(X)
        close(explain(SHIFTED[name]), explain(one), 1e-5)
    kinds = lambda act: [u.kind for u in lrpjax.plan(lenient(lambda x: act(x @ W)), None, X)]
    assert kinds(SHIFTED[name]) == ["dense", "activation"]
    assert kinds(lambda z: SHIFTED[name](z) - 0.1)[-1] == "affine"


@pytest.mark.parametrize(
    "composite", [composites.epsilon(0.0), composites.attnlrp(0.0)], ids=["epsilon", "attnlrp"]
)
def test_a_dot_that_sums_nothing_up_is_a_product_of_elements(composite):
    """Where einsum multiplies with a reciprocal last, a quotient is seen, whose denominator takes nothing."""
    rng = np.random.default_rng(8)
    q, k, v = rng.normal(size=(3, 4, 4))
    x = rng.normal(size=(5, 4))

    def f(x, spelling):
        queries, keys = jnp.exp(jnp.tanh(x @ q)), jnp.exp(jnp.tanh(x @ k))
        return spelling(queries, keys.T @ (x @ v), queries @ keys.sum(0) + 0.1)

    spellings = [
        lambda a, b, c: (a @ b) / c[:, None],
        lambda a, b, c: jnp.einsum("tk,kv,t->tv", a, b, 1 / c),
        lambda a, b, c: jnp.einsum("t,tv->tv", 1 / c, a @ b),
        lambda a, b, c: jnp.einsum("tv,t->vt", a @ b, 1 / c).T,
        lambda a, b, c: jax.vmap(lambda a, c: (a @ b) * (1 / c))(a, c),
    ]
    wanted, *found = (lrpjax.relevance(lambda x, s=s: f(x, s), composite)(x) for s in spellings)
    for R in found:
        np.testing.assert_allclose(R, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "act", [jnp.tanh, jax.nn.relu, jax.nn.silu, jax.nn.sigmoid], ids=lambda f: f.__name__
)
def test_two_negations_in_front_of_an_activation_undo_each_other(act):
    same(lambda x: act(-(-B - x @ W)) @ V, lambda x: act(x @ W + B) @ V, ["zplus", "alphabeta", "gamma"])
