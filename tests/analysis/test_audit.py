"""The ledger: in = out + bias + ε + other for every unit, each by hand where theory names it, and messages that sum to both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lrpjax
from lrpjax import composites, rules
from lrpjax.errors import PathError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 8, 8, 3))


class Net(nn.Module):
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        options = {"use_bias": self.bias, "param_dtype": x.dtype}
        x = nn.relu(nn.Conv(4, (3, 3), **options, name="conv")(x))
        x = x.reshape(x.shape[0], 4, 2, 4, 2, 4).mean((2, 4))
        x = x + nn.gelu(nn.Conv(4, (3, 3), **options, name="inner")(x))
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(5, **options, name="head")(x)


def net(bias=True):
    model = Net(bias)
    params = model.init(jax.random.key(0), X)
    random = iter(jax.random.split(jax.random.key(1), 20))
    params = jax.tree.map(lambda p: 0.3 * jax.random.normal(next(random), p.shape, X.dtype), params)
    return lambda x: model.apply(params, x)


COMPOSITES = {
    "default": None,
    "epsilon": composites.epsilon(0.1),
    "epsilon_plus_flat": composites.epsilon_plus_flat(),
    "epsilon_alpha2_beta1": composites.epsilon_alpha2_beta1(),
    "epsilon_gamma_box": composites.epsilon_gamma_box(-3.0, 3.0),
    "deep_taylor": composites.deep_taylor(),
    "excitation_backprop": composites.excitation_backprop(),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_accounts_add_up(name):
    f = net()
    audit = jax.jit(lrpjax.audit(f, COMPOSITES[name], target=1))(X)
    R = lrpjax.relevance(f, COMPOSITES[name], target=1)(X)
    np.testing.assert_allclose(audit.relevance, R.sum(), rtol=1e-9)
    np.testing.assert_allclose(audit.seed, f(X)[:, 1].sum(), rtol=1e-9)
    for u in audit.units:
        np.testing.assert_allclose(u.relevance_in - u.relevance_out, u.bias + u.epsilon + u.other, atol=1e-9)
    # what the units absorbed is what is missing at the input: nothing is lost between them
    lost = sum(float(u.bias + u.epsilon + u.other) for u in audit.units)
    np.testing.assert_allclose(audit.seed - audit.relevance, lost, atol=1e-8)
    if name not in ("excitation_backprop",):  # its activations follow the gradient, which conserves nothing
        for u in audit.units:
            np.testing.assert_allclose(u.other, 0, atol=1e-8, err_msg=f"{u.path} {u.kind} {u.rule}")
    plan = lrpjax.plan(f, COMPOSITES[name], X)
    assert [(u.path, u.kind, u.rule, u.source) for u in audit.units] == [
        (u.path, u.kind, u.rule, u.source) for u in plan.units
    ]


def test_without_biases_nothing_is_lost_but_to_epsilon():
    audit = lrpjax.audit(net(bias=False), composites.epsilon(0.1), target=2)(X)
    assert all(abs(u.bias) < 1e-9 for u in audit.units)
    assert abs(sum(u.epsilon for u in audit.units)) > 1e-3


def by_loops(rule, x, w, b, R):
    """(bias, epsilon): the absorbed relevance of a dense layer, in loops over the paper's formulas."""
    bias = epsilon = 0.0
    for row, r_row in zip(x, R, strict=True):
        for j, r in enumerate(r_row):
            terms, own = row * w[:, j], b[j]
            if isinstance(rule, rules.Epsilon):
                parts = [(1.0, terms.sum() + own, own)]
            elif isinstance(rule, rules.WSquare):
                parts = [(1.0, (w[:, j] ** 2).sum() + own**2, own**2)]
            elif isinstance(rule, rules.Gamma):
                z = terms.sum() + own
                part = (lambda v: max(v, 0.0)) if z > 0 else (lambda v: min(v, 0.0))
                own = own + rule.gamma * part(own)
                parts = [(1.0, terms.sum() + rule.gamma * sum(map(part, terms)) + own, own)]
            else:
                above, below = max(own, 0.0), min(own, 0.0)
                parts = [
                    (rule.alpha, np.maximum(terms, 0).sum() + above, above),
                    (-rule.beta, np.minimum(terms, 0).sum() + below, below),
                ]
            for weight, z, own in parts:
                stabilised = z + (rule.epsilon if z >= 0 else -rule.epsilon)
                bias += weight * r * own / stabilised
                epsilon += weight * r * (stabilised - z) / stabilised
    return bias, epsilon


@pytest.mark.parametrize(
    "rule",
    [
        rules.Epsilon(0.1),
        rules.Gamma(0.3, 0.1),
        rules.AlphaBeta(2.0, 1.0, 0.1),
        rules.AlphaBeta(1.0, 0.0, 0.1),
        rules.WSquare(0.1),
    ],
    ids=str,
)
def test_bias_and_epsilon_by_hand(rule):
    w, b, x = RNG.normal(size=(4, 3)), RNG.normal(size=3), RNG.normal(size=(2, 4))
    R = RNG.normal(size=(2, 3))
    composite = lrpjax.Composite([("*", rule)])
    (unit,) = lrpjax.audit(lambda x: x @ w + b, composite, target=R)(x).units
    bias, epsilon = by_loops(rule, x, w, b, R)
    np.testing.assert_allclose([unit.bias, unit.epsilon, unit.other], [bias, epsilon, 0], atol=1e-12)
    np.testing.assert_allclose(unit.relevance_in, R.sum())


def test_loops_branches_and_remat_are_summed():
    w = RNG.normal(size=(4, 4)) / 2
    x = RNG.normal(size=(4,))

    def body(x, _):
        with jax.named_scope("layer"):
            return jnp.tanh(x @ w + 0.1), None

    def scanned(x):
        return jax.lax.cond(
            True, jax.checkpoint(lambda x: jax.lax.scan(body, x, None, length=3)[0]), lambda x: x, x
        )

    def unrolled(x):
        for _ in range(3):
            x, _ = body(x, None)
        return x

    one = lrpjax.audit(scanned, composites.epsilon(0.1))(x)
    three = lrpjax.audit(unrolled, composites.epsilon(0.1))(x)
    for field in ("relevance_in", "relevance_out", "bias", "epsilon"):
        assert sum(getattr(u, field) for u in three.units if u.kind == "dense") == pytest.approx(
            sum(getattr(u, field) for u in one.units if u.kind == "dense")
        )
    assert one.relevance == pytest.approx(three.relevance)


def test_batches_by_vmap():
    f = net()
    audits = jax.vmap(lrpjax.audit(lambda x: f(x[None])[0], composites.epsilon_plus(), target=0))(X)
    single = lrpjax.audit(f, composites.epsilon_plus(), target=0)(X[1:])
    for a, b in zip(audits[1].units, single.units, strict=True):
        np.testing.assert_allclose(a.relevance_in, b.relevance_in, atol=1e-9)
        np.testing.assert_allclose(a.bias, b.bias, atol=1e-9)
    assert str(audits).count("\n") == len(single.units) + 2


def test_what_a_softmax_absorbs_is_other():
    w = RNG.normal(size=(3, 4, 4))

    def attention(x):
        with jax.named_scope("attention"):
            weights = jax.nn.softmax((x @ w[0]) @ (x @ w[1]).T)
        return weights @ (x @ w[2])

    x = RNG.normal(size=(5, 4))
    audit = lrpjax.audit(attention, composites.attnlrp(0.0))(x)
    softmax = next(u for u in audit.units if u.kind == "softmax")
    assert abs(softmax.other) > 0.01 * abs(audit.seed)
    assert audit.worst() is softmax
    np.testing.assert_allclose(audit.seed - audit.relevance, softmax.other, rtol=1e-9)
    assert "attention" in str(audit)
    stopped = lrpjax.audit(attention, composites.cp_lrp(0.0))(x)
    assert all(u.kind != "softmax" for u in stopped.units)  # no relevance reaches it
    np.testing.assert_allclose(stopped.seed, stopped.relevance)


def test_worst_names_the_unit_that_makes_relevance():
    def f(x):
        with jax.named_scope("fine"):
            x = x @ jnp.eye(3)
        with jax.named_scope("shifted"):
            return x @ jnp.eye(3) - 0.999 * jnp.array([1.0, 1.0, 1.0])

    audit = lrpjax.audit(f)(jnp.ones((1, 3)))
    assert audit.worst().path == "shifted"
    assert "test_audit.py" in audit.worst().source


@pytest.mark.parametrize("what", ["value", "relevance"])
def test_what_is_not_finite_is_located(what):
    def f(x):
        with jax.named_scope("first"):
            x = x @ jnp.eye(2)
        with jax.named_scope("second"):
            x = jnp.log(x) if what == "value" else x @ (jnp.eye(2) * 1e-200)
        with jax.named_scope("third"):
            return x @ jnp.ones((2, 1))

    x = jnp.array([[0.0, 1.0]])
    audit = lrpjax.audit(f, composites.epsilon(0.0), target=jnp.full((1, 1), 1e200))(x)
    unit, kind = audit.first_broken()
    assert (unit.path, kind) == ("second", what) if what == "value" else kind == "relevance"
    assert audit.worst() is unit
    assert "not finite" in str(audit)


def test_no_compiled_cost_beyond_the_sums():
    f = net()
    flops = lambda g: jax.jit(g).lower(X).compile().cost_analysis()["flops"]
    composite = composites.epsilon_plus()
    assert flops(lrpjax.audit(f, composite, target=0)) < 1.3 * flops(lrpjax.relevance(f, composite, target=0))


@pytest.mark.parametrize("name", COMPOSITES)
def test_messages_sum_to_both_sides(name):
    f, composite = net(), COMPOSITES[name]
    M = jax.jit(lrpjax.messages(f, composite, at="head", target=3))(X)
    head = next(u for u in lrpjax.audit(f, composite, target=3)(X).units if u.path.endswith("head"))
    assert M.shape == (2, 64, 5)
    np.testing.assert_allclose(M.sum(), head.relevance_out, rtol=1e-9)
    assert np.all(M[..., [0, 1, 2, 4]] == 0)  # the other outputs have no relevance


def test_messages_by_hand():
    w, b = RNG.normal(size=(4, 3)), RNG.normal(size=3)
    x, R = RNG.normal(size=(2, 4)), RNG.normal(size=(2, 3))

    def f(x):
        with jax.named_scope("layer"):
            return x @ w + b

    M = lrpjax.messages(f, composites.epsilon(0.1), at="layer", target=R)(x)
    z = x @ w + b
    expected = x[:, :, None] * w * (R / (z + 0.1 * np.sign(z)))[:, None, :]
    np.testing.assert_allclose(M, expected, rtol=1e-10)
    np.testing.assert_allclose(
        M.sum(-1), lrpjax.relevance(f, composites.epsilon(0.1), target=R)(x), rtol=1e-10
    )


def test_messages_of_a_layer_beside_a_residual():
    w = RNG.normal(size=(4, 4))

    def f(x):
        x = jnp.tanh(x)
        with jax.named_scope("layer"):
            h = x @ w
        return x + jnp.tanh(h)

    x = RNG.normal(size=(4,))
    M = lrpjax.messages(f, composites.epsilon(0.0), at="layer")(x)
    (layer,) = [u for u in lrpjax.audit(f, composites.epsilon(0.0))(x).units if u.path == "layer"]
    np.testing.assert_allclose(M.sum(), layer.relevance_out, rtol=1e-10)
    R_out = lrpjax.relevance(f, composites.epsilon(0.0), at="layer")(x)
    np.testing.assert_allclose(M.sum(0), R_out, rtol=1e-10)


def test_messages_of_no_layer():
    with pytest.raises(PathError, match=r"0 dense layers have the path 'nothing'.*head"):
        lrpjax.messages(net(), at="nothing")(X)
