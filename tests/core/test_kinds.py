"""What a rule does to a kind of unit, and what is said where it does nothing: no rule is accepted and then ignored."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import Composite, composites, rules, select
from lrpjax.core import kinds, plan, recognise
from lrpjax.core.kinds import KINDS
from lrpjax.core.kinds.base import Kind, Propagation, Proportional
from lrpjax.core.units import Unit

W = jnp.array([[1.0, 2.0], [-1.0, 1.0], [0.5, -3.0]])
X = jnp.array([1.0, 2.0, 3.0])
HERE = r"test_kinds\.py:\d+"


def network(x):
    return jax.nn.relu(x @ W + 0.5) @ jnp.array([1.0, -1.0])


def explained(f, rule, x=X, selector="*", **options):
    return lrpjax.relevance(f, Composite([(selector, rule)]), **options)(x)


# ------------------------------------------------------------------------------------------- subclasses, decorators, emits


class Twice(rules.Epsilon):
    def back(self, layer, x, z, R):
        return 2 * super().back(layer, x, z, R)


def test_a_subclass_with_its_own_formula_is_called():
    close(explained(network, Twice(1e-3)), 4 * explained(network, rules.Epsilon(1e-3)))
    assert "Twice(epsilon=0.001)" in str(lrpjax.plan(network, Composite([("*", Twice(1e-3))]), X))


def test_a_subclass_that_changes_the_kernels_alone_is_called():
    class OnPositive(rules.Epsilon):
        def kernels(self, w):
            return (rules.positive(w),)

    (w,) = OnPositive().kernels(W)
    z = X @ W
    close(explained(lambda x: (x @ W)[0], OnPositive(0.0)), X * w[:, 0] * 1.0, 1e-6)
    assert z[0] != 0


@pytest.mark.parametrize("f", [lambda x: x.mean(), lambda x: jnp.cumsum(x)[1], lambda x: (3.0 * x)[0]])
def test_a_subclass_is_called_on_linear_maps_without_a_kernel(f):
    close(explained(f, Twice(1e-3)), 2 * explained(f, rules.Epsilon(1e-3)))


def test_formulas_of_layers_on_a_pool_are_those_of_a_layer_of_ones():
    class ZPlusOfPools(rules.ZPlus):
        kinds = ("pool",)

    x = jnp.array([1.0, -2.0, 3.0])
    close(explained(lambda x: x.sum(), ZPlusOfPools(0.0), x), 2 * jnp.array([0.25, 0.0, 0.75]))


def test_signs_of_contributions_are_those_of_the_scale_times_the_input():
    """γ on x·a + b and on a negative average, against its formula in NumPy (generalised γ: the sign of z decides)."""

    class OfLines(rules.Gamma):
        kinds = ("affine", "pool")

    def by_hand(x, w, b, R, gamma=0.25):
        parts = x[:, None] * w
        z = parts.sum(0) + b
        favoured = lambda v: v + gamma * np.where(z > 0, np.maximum(v, 0), np.minimum(v, 0))
        return (favoured(parts) * R / (favoured(parts).sum(0) + favoured(b))).sum(1)

    x, a, b = np.array([3.0, -2.0, 0.5]), np.array([-1.0, 2.0, 4.0]), np.array([-4.0, 1.0, -1.0])
    line, R = lambda x: x * a + b, np.array([1.0, 2.0, 3.0])
    close(explained(line, OfLines(0.25, 0.0), jnp.asarray(x), target=R), by_hand(x, np.diag(a), b, R))
    mean = lambda x: x.mean() * -2.0
    wanted = by_hand(x, np.full((3, 1), -2 / 3), np.zeros(1), mean(x))
    close(explained(mean, OfLines(0.25, 0.0), jnp.asarray(x)), wanted)


def test_a_map_of_unknown_signs_takes_no_formula():
    x = jnp.arange(4.0) + 1.0

    class OfLinear(Shares):
        kinds = ("linear",)

    f = lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 2.0).sum()
    with pytest.raises(lrpjax.RuleError, match=rf"OfLinear.*(complex|signs).*{HERE}"):
        explained(f, OfLinear(), x)


def test_a_subclass_of_epsilon_on_a_sum_of_two_is_an_error_that_names_it():
    class OfSums(Twice):
        kinds = ("sum",)

    with pytest.raises(lrpjax.RuleError, match=rf"OfSums.*sums take.*sum in .*{HERE}"):
        explained(lambda x: x[::-1] + jnp.tanh(x), OfSums())


def test_a_formula_of_its_own_is_for_what_it_can_be_applied_to():
    """A residual sum and a product keep their own rules where the glob gives a formula for layers."""
    assert Twice.kinds == ("dense", "conv", "pool", "linear", "affine")

    class Named(rules.Epsilon):  # has no formula of its own
        pass

    assert Named.kinds == rules.Epsilon.kinds
    f = lambda x: (x + jnp.tanh(x @ W @ W.T)) @ W
    own = explained(f, rules.Epsilon(1e-6), selector=select.kind("dense"))
    layers = Composite([(select.kind("dense"), Twice(1e-6))])
    close(explained(f, Twice(1e-6)), lrpjax.relevance(f, layers)(X))
    assert np.abs(own - explained(f, Twice(1e-6))).max() > 1e-3


class Shares(rules.Rule):
    gain: float = 1.0
    emits = rules.PLAIN

    def kernels(self, w):
        return (w,)

    def back(self, layer, x, z, R):
        return self.gain * x * layer.transpose(rules.divide(R, z), *layer.kernels)


def test_a_rule_needs_no_decorator():
    f = lambda x: (x @ W) @ jnp.array([1.0, 1.0])
    close(explained(f, Shares(1.0)), explained(f, rules.Epsilon(0.0)))
    many = jax.vmap(lambda gain: explained(f, Shares(gain)))(jnp.array([1.0, 2.0]))
    close(many[1], 4 * many[0])
    close(jax.jit(lambda gain: explained(f, Shares(gain)))(2.0), many[1])
    assert jax.tree.leaves(Shares(3.0)) == [3.0]


@pytest.mark.parametrize(
    "decorate",
    [
        dataclasses.dataclass,
        dataclasses.dataclass(frozen=True),
        lambda cls: jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls), ["gain"], []),
        rules.rule(),
    ],
)
def test_decorators_that_people_are_used_to_do_no_harm(decorate):
    @decorate
    class Decorated(rules.Rule):
        gain: float = 2.0
        emits = rules.PLAIN
        kernels, back = Shares.kernels, Shares.back

    close(explained(network, Decorated(3.0)), explained(network, Shares(3.0)))
    assert jax.tree.leaves(Decorated(4.0)) == [4.0] and Decorated(4.0) == Decorated(4.0) != Decorated(5.0)
    close(jax.jit(lambda gain: explained(network, Decorated(gain)))(3.0), explained(network, Shares(3.0)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Decorated().gain = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        del rules.Epsilon().epsilon


def test_what_back_returns_must_be_said():
    with pytest.raises(lrpjax.RuleError, match=r"Forgot defines back.*emits = rules.PLAIN.*rules.RATIO"):

        class Forgot(rules.Rule):
            def back(self, layer, x, z, R):
                return x


def test_both_forms_of_one_formula_agree():
    class Divided(Shares):
        emits = rules.RATIO

        def back(self, layer, x, z, R):
            return self.gain * layer.transpose(rules.divide(R, z), *layer.kernels)

    close(explained(network, Divided()), explained(network, Shares()))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"mode": "a", "__annotations__": {"mode": str}}, r"holds 'a'.*@rules.rule"),
        ({"kernels": lambda self, w: w}, rf"kernels returns a tuple.*{HERE}"),
        ({"back": lambda self, layer, x, z, R: R}, rf"back returns an array of the input's shape.*{HERE}"),
        ({"back": lambda self, layer, x, z, R: (x,)}, rf"but returned tuple.*{HERE}"),
    ],
)
def test_mistakes_in_a_rule_are_named(body, message):
    back = lambda self, layer, x, z, R: x
    rule = type("Mistaken", (rules.Rule,), {"emits": rules.PLAIN, "back": back, **body})
    with pytest.raises(lrpjax.RuleError, match=message):
        explained(network, rule())


def test_a_static_field_is_declared():
    @rules.rule("mode")
    class Moded(Shares):
        mode: str = "plain"

    assert jax.tree.leaves(Moded()) == [1.0] and jax.tree.map(lambda x: x, Moded(2.0, "b")).mode == "b"
    close(explained(network, Moded()), explained(network, Shares()))
    with pytest.raises(lrpjax.RuleError, match="no field nothing"):
        rules.rule("nothing")(Moded)


def test_kinds_that_are_no_tuple():
    with pytest.raises(lrpjax.RuleError, match="kinds is a tuple"):
        type("Odd", (Shares,), {"kinds": "dense"})


# --------------------------------------------------------------------------------------------------- activations, sharing


def test_through_is_given_the_derivative():
    class Slope(rules.Rule):
        def through(self, x, y, R, derivative):
            return R * derivative * x / y

    x = jnp.array([0.5, -1.0, 2.0])
    f = lambda x: jnp.tanh(x).sum()
    close(explained(f, Slope(), x, select.kind("activation")), x / jnp.cosh(x) ** 2)
    assert Slope.kinds == ("activation",)


def test_a_rule_of_the_users_for_a_product_and_for_a_sum():
    class ByPower(rules.Rule):
        power: float = 2.0
        kinds = ("product", "sum")

        def weights(self, values):
            sizes = [abs(v) ** self.power for v in values]
            return [size / sum(sizes) for size in sizes]

    f = lambda x: x[0] * x[1]
    close(explained(f, ByPower()), 2.0 * jnp.array([0.2, 0.8, 0.0]))
    close(explained(f, ByPower(1.0)), explained(f, rules.Product("magnitude")))
    g = lambda x: x[0] - x[1]
    close(explained(g, ByPower()), -1.0 * jnp.array([0.2, 0.8, 0.0]))
    powers = jnp.array([1.0, 2.0])
    close(jax.vmap(lambda p: explained(f, ByPower(p)))(powers)[1], explained(f, ByPower()))
    with pytest.raises(lrpjax.RuleError, match=rf"elementwise products only, but that at .*{HERE}"):
        explained(lambda x: x @ jnp.tanh(x), ByPower())


def test_numbers_are_weights_of_contractions_too():
    class First(rules.Rule):
        def takes(self, factors):
            return [i == 0 for i, _ in enumerate(factors)]

        def weights(self, values):
            return [1.0] * len(values)

    f = lambda x: x @ jnp.tanh(x)
    close(explained(f, First()), explained(f, rules.Product(0)))
    assert "First(): 1 of 2 factors" in str(lrpjax.plan(f, Composite([("*", First())]), X))


def test_a_sum_of_a_value_with_itself():
    for share in ("uniform", "magnitude", 0, 1):
        close(explained(lambda x: x + x, rules.Sum(share)), 2 * X)
    half = lambda x: x - 0.5 * x
    for share in ("uniform", 0):
        close(explained(half, rules.Sum(share)).sum(), half(X).sum())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda self, values: [1.0], "its weights are 1, for 2 values"),
        (lambda self, values: None, "its weights are None"),
        (
            lambda self, values: [jnp.ones(7), jnp.ones(7)],
            r"its weights have shape \(7,\), the product has \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit(weights, message):
    rule = type("Mistaken", (rules.Rule,), {"weights": weights})
    with pytest.raises(lrpjax.RuleError, match=rf"{message}.*{HERE}"):
        explained(lambda x: x[::-1] * jnp.tanh(x), rule())


# ------------------------------------------------------------------------------------------- rules that a unit cannot carry out


def test_a_rule_that_claims_what_it_cannot_do():
    class Everywhere(Shares):
        kinds = ("product", "softmax", "sum", "norm", "activation")

    functions = {
        "product": lambda x: x[::-1] * jnp.tanh(x),
        "softmax": lambda x: jax.nn.softmax(x) * 2.0,
        "sum": lambda x: x[::-1] + jnp.tanh(x),
        "norm": lambda x: x / jnp.sqrt((x * x).mean()),
        "activation": lambda x: jnp.tanh(x),
    }
    for kind, f in functions.items():
        composite = Composite([(select.kind(kind), Everywhere())])
        for use in (lrpjax.relevance(f, composite), lambda x: lrpjax.plan(f, composite, x)):  # noqa: B023
            with pytest.raises(lrpjax.RuleError, match=rf"Everywhere.*{kind}.* in '.*' at .*{HERE}"):
                use(X)


def test_the_path_is_named_too():
    def f(x):
        with jax.named_scope("head"):
            return jax.nn.softmax(x) * 2.0

    with pytest.raises(lrpjax.RuleError, match=rf"Pass\(\).*softmax:softmax in 'head' at .*{HERE}"):
        explained(f, rules.Pass())


def test_pass_is_carried_out_where_it_can_be():
    for f in (
        jnp.tanh,
        lambda x: 2.0 * x + 1.0,
        lambda x: x[::-1] * 2.0,
        lambda x: x / jnp.sqrt((x * x).mean()),
    ):
        seed = jnp.array([1.0, 5.0, 7.0])
        R = explained(f, rules.Pass(), selector=select.kind("activation", "affine", "norm"), target=seed)
        close(jnp.sort(R), seed)


def test_gradient_is_a_choice_for_what_nothing_is_known_of():
    f = lambda x: (x[::-1] ** jnp.exp(x)).sum()
    close(explained(f, rules.Gradient(), target=jnp.asarray(1.0)), jax.grad(f)(X))
    close(
        explained(
            f,
            rules.Gradient(),
            selector=select.kind("unknown", "activation", "pool"),
            target=jnp.asarray(1.0),
        ),
        jax.grad(f)(X),
    )
    assert "unknown" in str(lrpjax.plan(f, composites.gradient(), X))
    assert not explained(f, rules.Stop(), selector=select.kind("unknown")).any()


def test_a_pair_that_names_a_kind_for_which_its_rule_is_not():
    for selector in (select.kind("softmax"), select.first("softmax"), "head"):

        def f(x):
            with jax.named_scope("head"):
                return 2.0 * jax.nn.softmax(x)

        with pytest.raises(
            lrpjax.RuleError, match=rf"Gamma.*is a rule for dense, conv, but .* names\n.*{HERE}"
        ):
            explained(f, rules.Gamma(), selector=selector)
    with pytest.warns(lrpjax.UnmatchedWarning, match="match no unit"):
        explained(f, rules.Gamma())  # a glob takes what there is


def test_a_default_is_for_what_its_rule_is_for():
    composite = Composite((), default=rules.Epsilon(0.5))
    close(lrpjax.relevance(network, composite)(X), explained(network, rules.Epsilon(0.5)))


# --------------------------------------------------------------------------------------------------- advice, when followed

SEVERAL = {
    "pow": lambda a, b: a**b,
    "atan2": jnp.arctan2,
    "clamp": lambda a, b: jax.lax.clamp(a, a + b, b),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_advice_for_functions_of_several_values_works(name):
    g, other = SEVERAL[name], lambda x: x[::-1] + 2.0
    with pytest.raises(
        lrpjax.UnsupportedError, match=rf"^relevance cannot.*\n  {name} in .*{HERE}.*"
    ) as caught:
        lrpjax.relevance(lambda x: g(x, other(x)))(X)
    advice = str(caught.value)
    assert (
        "stop_gradient" in advice
        and "custom_relevance(f, rule=...)" in advice
        and "primitives=" not in advice
    )
    assert "(select.kind('unknown'), rules.Gradient())" in advice

    held = lambda x: g(x, jax.lax.stop_gradient(other(x))) if name != "clamp" else jax.lax.clamp(0.0, x, 2.0)
    assert np.isfinite(lrpjax.relevance(held)(X)).all()
    whole = lambda x: lrpjax.custom_relevance(g, rule=rules.Epsilon(0.0))(x, other(x))
    one = jnp.ones(3)
    native = sum(v * c for v, c in zip((X,), jax.vjp(lambda x: g(x, other(x)), X)[1](one), strict=True))
    gradient = Composite([(select.kind("unknown", "affine"), rules.Gradient())])
    assert np.isfinite(lrpjax.relevance(whole)(X)).all()
    close(X * lrpjax.relevance(lambda x: g(x, other(x)), gradient, target=one)(X), native)


def test_advice_for_an_unknown_primitive_works():
    primitive = jax.extend.core.Primitive("thrice")
    primitive.def_impl(lambda x: 3 * x)
    primitive.def_abstract_eval(lambda x: x)
    jax.interpreters.ad.deflinear2(primitive, lambda c, x: [3 * c])
    jax.interpreters.mlir.register_lowering(
        primitive, jax.interpreters.mlir.lower_fun(lambda x: x + x + x, multiple_results=False)
    )
    f = lambda x: primitive.bind(x)
    with pytest.raises(lrpjax.UnsupportedError, match=r'primitives=\{"thrice": "elementwise"\}'):
        lrpjax.relevance(f)(X)
    for family in ("elementwise", "sum"):
        close(lrpjax.relevance(f, Composite((), primitives={"thrice": family}))(X), 3 * X)
    assert not lrpjax.relevance(f, Composite((), primitives={"thrice": "stop"}))(X).any()
    close(explained(f, rules.Gradient(), target=X), 3 * X)
    close(explained(f, rules.Pass(), target=X), X)


# ------------------------------------------------------------------------------------------------------ biases and defaults


def test_a_free_standing_bias_is_left_out_of_the_denominator():
    shift = jnp.array([1.0, -2.0, 3.0])
    f, target = lambda x: 2.0 * jnp.tanh(x) + shift, jnp.array([1.0, 2.0, 3.0])
    rule = lambda bias: Composite([(select.kind("affine"), rules.Epsilon(0.0, bias=bias))])
    close(lrpjax.relevance(f, rule(False), target=target)(X), target)
    y = 2.0 * jnp.tanh(X)
    close(lrpjax.relevance(f, rule(True), target=target)(X), target * y / (y + shift))
    assert "bias=False" in str(lrpjax.plan(f, rule(False), X))


def test_a_bias_at_the_output_takes_its_share_but_none_below_a_rule_that_gives_relevance_to_zeros():
    shift = jnp.array([1.0, 2.0, -0.5])
    y = jax.nn.relu(X + shift)
    close(lrpjax.relevance(lambda x: jax.nn.relu(x + shift))(X), X * y / (X + shift))
    named = Composite([(select.kind("activation"), rules.Pass())])  # what is the default anyway
    close(lrpjax.relevance(lambda x: jax.nn.relu(x + shift), named)(X), X * y / (X + shift))
    flat = Composite([(select.kind("dense"), rules.Flat())])
    R = lrpjax.relevance(lambda x: jax.nn.relu(x + shift) @ W, flat)(X)
    close(R, jnp.full(3, (y @ W).sum() / 3), 1e-5)


def test_formulas_on_a_pool_compute_in_at_least_float32():
    x = jnp.arange(1.0, 129.0, dtype=jnp.bfloat16)
    R = explained(lambda x: x.mean(), Twice(0.0), x)
    assert R.dtype == jnp.bfloat16
    wanted = 2 * np.asarray(x, np.float32) / 128
    assert np.abs(np.asarray(R, np.float32) / wanted - 1).max() < 2**-7


@pytest.mark.parametrize(
    ("kind", "default", "f"),
    [
        ("dense", rules.Epsilon(0.5), lambda x: x @ W),
        ("activation", rules.Gradient(), lambda x: jnp.tanh(x)),
        ("product", rules.Product("magnitude"), lambda x: x[::-1] * jnp.tanh(x)),
        ("product", rules.Product(1), lambda x: x[::-1] * jnp.tanh(x)),
        ("sum", rules.Sum("magnitude"), lambda x: x[::-1] - jnp.tanh(x)),
        ("norm", rules.Epsilon(0.5), lambda x: x / jnp.sqrt((x * x).mean())),
    ],
)
def test_the_default_of_a_kind_stands_in_one_place(kind, default, f, monkeypatch):
    """Setting it changes both what is computed and what the plan says."""
    named = Composite([(select.kind(kind), default)])
    wanted = lrpjax.relevance(f, named)(X)
    before = lrpjax.relevance(f)(X)
    monkeypatch.setattr(KINDS[kind], "default", default)
    close(lrpjax.relevance(f)(X), wanted)
    assert np.abs(wanted - before).max() > 1e-3
    row = next(u for u in lrpjax.plan(f, None, X) if u.kind == kind)
    assert row.rule.split(":")[0] in (str(default), "signal takes all")


def test_default_of_weighted_layers_is_that_of_the_composite():
    assert KINDS["dense"].default == KINDS["conv"].default == rules.Epsilon(1e-6)
    dense = next(u for u in lrpjax.plan(network, None, X) if u.kind == "dense")
    assert dense.rule == str(composites.epsilon().pairs[0][1]) == "Epsilon(epsilon=1e-06)"


# ------------------------------------------------------------------------------------------- a kind of unit from outside


class AttentionUnit(Unit):
    """softmax(scores) v as one unit."""


def find_attention(draft):
    """A dot of the explained values with the softmax before it, taken together: one unit of two operands."""
    for node in draft.carrying:
        if node.name == "dot_general" and draft.free(node) and len(node.carriers()) == 2:
            before = draft.unit_before(node.inputs[0], ("structural",))
            if before is not None and before.kind == "softmax":
                nodes = sorted({*before.nodes, node}, key=lambda n: n.index)
                draft.add(AttentionUnit("attention", nodes, [*before.operands, node.inputs[1]], core=node))


class Attention(Kind):
    name = "attention"
    takes = "attention takes no rule"

    def unnamed(self, unit):
        return Proportional(unit, "as a whole", [unit.operands[-1]])


def attention(x):
    return jax.nn.softmax(x @ x.T) @ jnp.tanh(x)


@pytest.fixture
def found(monkeypatch):
    order = recognise.RECOGNISERS
    monkeypatch.setattr(recognise, "RECOGNISERS", (*order[:1], find_attention, *order[1:]))


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(kinds.KINDS, "attention", Attention())


@pytest.mark.usefixtures("found", "known")
def test_a_kind_is_a_recogniser_and_a_class():
    x = jnp.arange(6.0).reshape(3, 2) / 6
    rows = [(u.kind, u.rule) for u in lrpjax.plan(attention, None, x)]
    assert rows == [("activation", "Pass()"), ("attention", "as a whole")]
    held = jax.nn.softmax(x @ x.T)
    close(lrpjax.relevance(attention)(x), lrpjax.relevance(lambda x: held @ jnp.tanh(x))(x), 1e-5)
    with pytest.raises(lrpjax.RuleError, match=rf"Epsilon.*is a rule for.*\n.*attention in .*{HERE}"):
        explained(attention, rules.Epsilon(), x, select.kind("attention"))
    close(explained(attention, rules.Stop(), x, select.kind("attention")), 0 * x)


@pytest.mark.usefixtures("found")
def test_a_recogniser_without_a_kind_is_an_error():
    with pytest.raises(
        KeyError, match=r"no kind of unit is called 'attention': define it in lrpjax/core/kinds"
    ):
        lrpjax.relevance(attention)(jnp.ones((3, 2)))


def test_a_kind_with_a_missing_piece_is_an_error():
    with pytest.raises(TypeError, match="the kind Nameless lacks name"):
        type("Nameless", (Kind,), {"takes": "nothing", "default": rules.Pass()})
    with pytest.raises(TypeError, match=r"the kind Silent lacks default \(a rule\) or unnamed"):
        type("Silent", (Kind,), {"name": "silent", "takes": "nothing"})
    with pytest.raises(TypeError, match=r"abstract.*(forms|run)"):
        type("Half", (Propagation,), {"forms": lambda self, form, meant: (form, form)})(None, "")


def test_every_kind_says_what_it_takes_and_refuses_the_rest():
    class Alien(rules.Rule):
        kinds = ("*",)

    unit = Unit("alien", [], [])
    control = {"scan", "cond", "while", "remat", "shard_map"}
    for name, kind in KINDS.items():
        assert kind.name == name and kind.takes
        if name not in control:
            with pytest.raises(lrpjax.RuleError, match=re.escape(kind.takes)):
                kind.explain(unit, Alien())
    assert control <= set(KINDS)


def test_the_plan_asks_for_every_unit_once(monkeypatch):
    asked = []
    explain = Kind.explain
    monkeypatch.setattr(
        Kind, "explain", lambda self, unit, rule: asked.append(unit) or explain(self, unit, rule)
    )
    lrpjax.plan(lambda x: x @ W, None, X)
    assert len(asked) == len(set(asked)) + 1  # the kind asks itself for its default
    assert plan.KINDS is KINDS
