"""The ledger: in = out + bias + ε + other for every unit, each by hand where theory names it, and messages that sum to both sides."""

import helpers
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
    "gamma_stages": composites.gamma_stages(-3.0, 3.0),
    "gamma_shared": composites.gamma_shared(),
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


def test_a_gradient_is_no_share():
    f = net()
    assert "kept:" in str(lrpjax.audit(f, COMPOSITES["epsilon"], target=1)(X))
    for composite in (composites.gradient(), composites.input_x_gradient(), composites.guided_backprop()):
        assert "kept:" not in str(lrpjax.audit(f, composite, target=1)(X))


def test_the_relevance_comes_with_it():
    f = net()
    R, audit = lrpjax.audit(f, COMPOSITES["epsilon"], target=1, with_relevance=True)(X)
    np.testing.assert_allclose(
        R, lrpjax.relevance(f, COMPOSITES["epsilon"], target=1)(X), rtol=1e-9, atol=1e-12
    )
    assert str(audit) == str(lrpjax.audit(f, COMPOSITES["epsilon"], target=1)(X))


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
    assert str(audits).count("\n") == len(single.units) + 3


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


def test_the_minus_infinity_of_a_mask_is_meant():
    def f(x):
        scores = jnp.where(jnp.tril(jnp.ones((3, 3), bool)), x @ x.T, -jnp.inf)
        return jax.nn.softmax(scores) @ x

    audit = lrpjax.audit(f, composites.attnlrp())(jnp.asarray(np.random.default_rng(0).normal(size=(3, 2))))
    assert "not finite" not in str(audit) and audit.first_broken() is None


def test_no_compiled_cost_beyond_the_sums():
    f = net()
    flops = lambda g: jax.jit(g).lower(X).compile().cost_analysis()["flops"]
    composite = composites.epsilon_plus()
    assert flops(lrpjax.audit(f, composite, target=0)) < 1.45 * flops(
        lrpjax.relevance(f, composite, target=0)
    )


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


# ------------------------------------------------------------------------------------------------------------------------ constants


TOKENS = np.random.default_rng(5).normal(size=(2, 4))
W4 = np.random.default_rng(6).normal(size=(3, 4, 4))


def attention(x, mask=None):
    with jax.named_scope("attention"):
        scores = (x @ W4[0]) @ (x @ W4[1]).T
        scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
        return x + jax.nn.softmax(scores) @ (x @ W4[2])


def with_class_token(x):
    with jax.named_scope("embed"):
        x = jnp.concatenate([TOKENS[:1], x, TOKENS[1:]])
    return attention(x)[0]


def with_registers_by_update(x):
    return attention(jnp.asarray(TOKENS).repeat(3, 0).at[2:5].set(x))[2]


def with_dynamic_update(x):
    return attention(jax.lax.dynamic_update_slice(jnp.asarray(TOKENS).repeat(3, 0), x, (1, 0)))[0]


def with_a_padding_value(x):
    return attention(jnp.pad(x, ((1, 0), (0, 0)), constant_values=0.7))[0]


def with_a_selection(x):
    return attention(jnp.where(jnp.arange(3)[:, None] == 1, TOKENS[0], x))[1]


def with_a_causal_mask(x):
    return attention(jnp.concatenate([TOKENS, x]), jnp.tril(jnp.ones((5, 5), bool)))[-1]


def with_sinks(x):
    """Logits of a sink beside those of the keys, as some decoders have them."""
    scores = (x @ W4[0]) @ (x @ W4[1]).T
    sink = jnp.broadcast_to(jnp.array([0.5]), (scores.shape[0], 1))
    weights = jax.nn.softmax(jnp.concatenate([scores, sink], -1))
    return weights[:, :-1] @ (x @ W4[2])


def with_a_learned_state(x):
    step = lambda h, x: (jnp.tanh(x @ W4[0] + h @ W4[1]), h)
    h, hs = jax.lax.scan(step, jnp.asarray(TOKENS[0]), x)
    return h + hs.sum(0)


def with_a_state_that_is_reset(x):
    step = lambda h, x: (jnp.asarray(TOKENS[1]), jnp.tanh(x @ W4[0] + h))
    _, ys = jax.lax.scan(step, x[0], x)
    return ys


def with_a_branch(x):
    return jax.lax.cond(x[0, 0] < 99, lambda x: jnp.asarray(TOKENS[1:]), lambda x: x[:1], x) + x


def with_what_is_detached(x):
    return attention(jnp.concatenate([jax.lax.stop_gradient(2.0 * x), x]))[-1]


def with_an_output_apart(x):
    return jnp.concatenate([x @ W4[0], TOKENS]), jnp.asarray(TOKENS)


def with_tables(x):
    rows = jnp.asarray(W4[0])[jnp.array([0, 3])]
    return attention(jnp.stack([*rows, *x]))[0]


CONSTANTS = {f.__name__: f for f in (
    with_class_token, with_registers_by_update, with_dynamic_update, with_a_padding_value, with_a_selection,
    with_a_causal_mask, with_sinks, with_a_learned_state, with_a_state_that_is_reset, with_a_branch,
    with_what_is_detached, with_an_output_apart, with_tables,
)}  # fmt: skip


def closes(audit, tolerance=1e-9):
    taken = sum(c.relevance for c in audit.constants)
    absorbed = sum(u.bias + u.epsilon + u.other for u in audit.units)
    scale = 1 + np.abs(audit.seed) + sum(np.abs(u.relevance_in) for u in audit.units)
    assert np.all(np.abs(audit.seed - audit.ended - absorbed - taken) < tolerance * scale)
    np.testing.assert_allclose(audit.rest, audit.seed - audit.ended - absorbed - taken, atol=1e-12)


@pytest.mark.parametrize("composite", ["default", "attnlrp", "flat"])
@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_have_accounts_and_the_sums_close(name, composite):
    f = CONSTANTS[name]
    composite = {
        "default": None,
        "attnlrp": composites.attnlrp(0.1),
        "flat": lrpjax.Composite([("*", rules.Flat())], preset="flat"),
    }[composite]
    x = np.random.default_rng(7).normal(size=(3, 4))
    target = (
        (lambda y: y)
        if name == "with_an_output_apart"
        else lambda y: y * jnp.arange(1.0, 1 + y.size).reshape(y.shape)
    )
    audit = lrpjax.audit(f, composite, target=target)(x)
    closes(audit)
    R = lrpjax.relevance(f, composite, target=target)(x)
    np.testing.assert_allclose(audit.relevance, R.sum(), rtol=1e-9)
    assert audit.ended == pytest.approx(audit.relevance)
    taking = [c for c in audit.constants if abs(c.relevance) > 1e-6]
    assert taking and all("test_audit.py" in c.source for c in taking if c.name != "output")
    assert f"constants {float(sum(c.relevance for c in taking)):.4g}" in str(audit)


def test_what_a_constant_takes_by_hand():
    """The relevance of a token that is explained instead."""
    x = np.random.default_rng(7).normal(size=(3, 4))
    composite = composites.attnlrp()
    both = lambda x, tokens: attention(jnp.concatenate([tokens[:1], x, tokens[1:]]))[0]
    _, R = lrpjax.relevance(both, composite, argnums=(0, 1))(x, TOKENS)
    audit = lrpjax.audit(with_class_token, composite)(x)
    ours = [c for c in audit.constants if c.name == "concatenate"]
    np.testing.assert_allclose([c.relevance for c in ours], R.sum(1), rtol=1e-9)
    assert all(c.path == "embed" and c.shape == (1, 4) for c in ours)


@pytest.mark.parametrize("name", ["with_class_token", "with_a_learned_state", "with_a_causal_mask"])
def test_constants_under_transformations(name):
    f = CONSTANTS[name]
    xs = np.random.default_rng(8).normal(size=(2, 3, 4))
    one = [lrpjax.audit(f)(x) for x in xs]
    batch = jax.jit(jax.vmap(lrpjax.audit(f)))(xs)
    closes(batch)
    for i, audit in enumerate(one):
        for a, b in zip(batch[i].constants, audit.constants, strict=True):
            np.testing.assert_allclose(a.relevance, b.relevance, rtol=1e-8, atol=1e-10)
    mapped = lrpjax.audit(lambda xs: jax.lax.map(jax.checkpoint(f), xs))(xs)
    closes(mapped)
    wanted = sum(c.relevance for audit in one for c in audit.constants)
    np.testing.assert_allclose(sum(c.relevance for c in mapped.constants), wanted, rtol=1e-8)


def test_a_vision_transformer_closes():
    class Vit(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"param_dtype": float}
            x = nn.Conv(8, (4, 4), (4, 4), name="patches", **options)(x).reshape(x.shape[0], -1, 8)
            token = self.param("cls", nn.initializers.normal(1.0), (1, 1, 8), float)
            x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], 1)
            x = x + self.param("positions", nn.initializers.normal(1.0), x.shape[1:], float)
            h = nn.LayerNorm(name="norm", **options)(x)
            x = x + nn.MultiHeadDotProductAttention(2, name="attention", **options)(h)
            return nn.Dense(3, name="head", **options)(nn.LayerNorm(name="last", **options)(x)[:, 0])

    params = helpers.lenient(Vit().init)(jax.random.key(0), X)
    f = helpers.lenient(lambda x: Vit().apply(params, x))
    for composite in (composites.attnlrp(), composites.cp_lrp(), composites.epsilon_plus_flat()):
        audit = jax.jit(lrpjax.audit(f, composite, target=1))(X)
        closes(audit)
        (token,) = [c for c in audit.constants if c.shape == (2, 1, 8)]
        assert abs(token.relevance) > 1e-3 * abs(audit.seed) and token.name == "concatenate"


# -------------------------------------------------------------------------------------------------------------------------------- at


def deep(x):
    with jax.named_scope("one"):
        x = jnp.tanh(x @ W4[0] + 0.1)
    with jax.named_scope("two"):
        x = jnp.tanh(x @ W4[1] + 0.2)
    return lrpjax.tag(x, "tagged") @ W4[2]


@pytest.mark.parametrize("at", ["one", "two", "tagged", ["one"], ["one", "two"], "*", ["two", "tagged"]])
def test_audits_of_named_values(at):
    x = np.random.default_rng(9).normal(size=(2, 4))
    R = lrpjax.relevance(deep, composites.epsilon(0.1), at=at, target=1)(x)
    audit = jax.jit(lrpjax.audit(deep, composites.epsilon(0.1), at=at, target=1))(x)
    np.testing.assert_allclose(audit.seed, deep(x)[:, 1].sum(), rtol=1e-9)
    if isinstance(R, dict):
        assert set(audit.relevance) == set(R)
        for name, value in R.items():
            np.testing.assert_allclose(audit.relevance[name], value.sum(), rtol=1e-9)
            assert f"at {name}: " in str(audit)
    else:
        np.testing.assert_allclose(audit.relevance, R.sum(), rtol=1e-9)
        np.testing.assert_allclose(audit.ended, R.sum(), rtol=1e-9)
    closes(audit)
    paths = [u.path for u in audit.units]
    assert ("two" in paths) == (at in ("one", "*") or "one" in at)
    assert ("one" in paths) == (at == "*")  # only that between the lowest named value and the output


def test_what_passes_a_named_value_by():
    def residual(x):
        x = jnp.tanh(x @ W4[0] + 0.1)
        with jax.named_scope("branch"):
            h = jnp.tanh(x @ W4[1])
        return (x + h) @ W4[2]

    x = np.random.default_rng(9).normal(size=(4,))
    audit = lrpjax.audit(residual, composites.epsilon(0.1), at="branch")(x)
    R = lrpjax.relevance(residual, composites.epsilon(0.1), at="branch")(x)
    np.testing.assert_allclose(audit.relevance, R.sum(), rtol=1e-9)
    assert abs(audit.ended - audit.relevance) > 1e-3
    closes(audit)


def test_audits_of_tokens():
    random = np.random.default_rng(2)
    table, prompt = random.normal(size=(7, 4)), random.normal(size=(2, 4))

    def decoder(tokens):
        with jax.named_scope("embedding"):
            rows = jnp.asarray(table)[tokens]
        return attention(jnp.concatenate([prompt, rows]), jnp.tril(jnp.ones((5, 5), bool)))[-1]

    tokens = jnp.array([3, 1, 6])
    R = lrpjax.relevance(decoder, composites.attnlrp(), at="embedding")(tokens)
    audit = jax.jit(lrpjax.audit(decoder, composites.attnlrp(), at="embedding"))(tokens)
    np.testing.assert_allclose(audit.relevance, R.sum(), rtol=1e-9)
    closes(audit)
    assert any(abs(c.relevance) > 1e-3 and c.name == "concatenate" for c in audit.constants)
    with pytest.raises(PathError, match="nowhere"):
        lrpjax.audit(decoder, at="nowhere")(tokens)


def chain(x):
    """Three modules, one of which stands in another, with what is in no module between them."""
    for name, bias in (("net/low/a", 1.0), ("net/low/b", 2.0), ("net/high", 4.0)):
        with jax.named_scope(name):
            x = x + bias * jnp.array([1.0, 0.0])
        x = jnp.maximum(x, 0.0)
    return x[0]


def test_stages_tell_what_is_left_after_each_of_them():
    audit = lrpjax.audit(chain, composites.epsilon(0.0))(jnp.array([2.0, 1.0]))
    high, low = audit.stages()
    assert [high.path, low.path] == ["net/high", "net/low"]
    np.testing.assert_allclose([high.relevance, low.relevance], [5, 2], rtol=1e-12)
    np.testing.assert_allclose([high.kept, low.kept], [5 / 9, 2 / 9], rtol=1e-12)
    np.testing.assert_allclose([high.bias, low.bias], [4, 3], rtol=1e-12)
    # a rectifier outside of the modules belongs to the one before it, and every unit to one stage
    assert sorted(i for stage in (low, high) for i in stage.units) == list(range(len(audit.units)))
    assert audit.units[high.units.start].path == "net/high"
    inner = audit.stages(2)
    assert [stage.path for stage in inner] == ["net/high", "net/low/b", "net/low/a"]
    np.testing.assert_allclose([stage.relevance for stage in inner], [5, 3, 2], rtol=1e-12)
    line = str(audit.stages()).splitlines()[2].split()
    assert line == ["net/low", "4", "2", "22.2%", "3", "0", "0", "0"]
    with pytest.raises(ValueError, match="depth of stages is at least 1, but is 0"):
        audit.stages(0)


def test_stages_of_scopes_that_begin_with_a_slash():
    def f(x):
        for name in ("/net/low", "net/high"):
            with jax.named_scope(name):
                x = jnp.maximum(x + jnp.array([1.0, 0.0]), 0.0)
        return x[0]

    stages = lrpjax.audit(f, composites.epsilon(0.0))(jnp.array([2.0, 1.0])).stages()
    assert [stage.path for stage in stages] == ["net/high", "net/low"]


@pytest.mark.parametrize("name", COMPOSITES)
def test_what_the_stages_lose_adds_up_to_what_is_missing(name):
    audit = jax.jit(lrpjax.audit(net(), COMPOSITES[name], target=1))(X)
    left = audit.seed
    stages = audit.stages()
    assert [stage.path for stage in stages] == ["Net/head", "Net/inner", "Net/conv"]
    for stage in stages:
        here = [audit.units[i] for i in stage.units]
        np.testing.assert_allclose(stage.bias, sum(u.bias for u in here), atol=1e-12)
        lost = stage.bias + stage.epsilon + stage.other + stage.constants
        np.testing.assert_allclose(left - stage.relevance, lost, atol=1e-9)
        left = stage.relevance
    np.testing.assert_allclose(left, audit.ended + audit.rest, atol=1e-9)
    np.testing.assert_allclose(stages[-1].kept, audit.kept, atol=1e-9)


def test_constants_are_lost_where_they_enter():
    token = jnp.array([3.0])

    def f(x):
        with jax.named_scope("embed"):
            x = x * 2.0
        x = jnp.concatenate([token, x])
        with jax.named_scope("head"):
            return x @ jnp.array([2.0, 1.0])

    audit = lrpjax.audit(f, composites.epsilon(0.0))(jnp.array([1.0]))
    head, embed = audit.stages()
    np.testing.assert_allclose([head.relevance, head.constants], [8, 0])
    np.testing.assert_allclose([embed.relevance, embed.constants], [2, 6])
    outside = lrpjax.audit(lambda x: (f(x), token), composites.epsilon(0.0), target=lambda y: y)(
        jnp.array([1.0])
    )
    np.testing.assert_allclose([stage.constants for stage in outside.stages()], [3, 6])
    assert not lrpjax.audit(lambda x: x)(jnp.array([1.0])).stages()


def test_the_share_that_is_kept():
    w, b, x = RNG.normal(size=(4, 3)), RNG.normal(size=3), RNG.normal(size=(5, 4))
    f = lambda x: x @ w + b
    R = np.asarray(lrpjax.relevance(f, composites.epsilon(0.1), target=1)(x))
    audits = jax.vmap(lrpjax.audit(f, composites.epsilon(0.1), target=1))(x)
    np.testing.assert_allclose(audits.kept, R.sum(1) / f(x)[:, 1], rtol=1e-10)
    np.testing.assert_allclose(audits.cancelled, np.abs(R).sum(1) / np.abs(R.sum(1)), rtol=1e-10)
    np.testing.assert_allclose(audits.stages()[0].kept, audits.kept, rtol=1e-10)
    kept, cancelled = R[2].sum() / f(x)[2, 1], np.abs(R[2]).sum() / abs(R[2].sum())
    assert f"kept: Σ R / f(x) = {kept:.4g}, Σ|R| / |Σ R| = {cancelled:.4g}" in str(audits[2])
    assert "kept" not in str(lrpjax.audit(f, target=jnp.zeros(3))(x[0]))
