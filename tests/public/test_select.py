"""Selectors and composites: which rule goes to which unit."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, rules, select


@dataclasses.dataclass
class Fake:
    path: str
    kind: str
    name: str = ""


UNITS = [
    Fake("Net/encoder/Conv_0", "conv"),
    Fake("Net/encoder", "activation", "relu"),
    Fake("Net/encoder/Conv_1", "conv"),
    Fake("Net/pool", "pool", "max_pool"),
    Fake("Net/head/Dense_0", "dense"),
    Fake("Net/head", "activation", "gelu"),
    Fake("Net/head/Dense_1", "dense"),
    Fake("", "sum"),
]


@pytest.mark.parametrize(
    ("selector", "chosen"),
    [
        (select.path("Net/encoder/*"), [0, 2]),
        (select.path("encoder/*"), [0, 2]),
        (select.path("encoder*"), [0, 1, 2]),
        (select.path("*/Dense_0"), [4]),
        (select.path("*/Dense_?"), [4, 6]),
        (select.path("Dense_0"), []),
        (select.path("*"), [0, 1, 2, 3, 4, 5, 6, 7]),
        (select.path(""), [7]),
        (select.kind("conv"), [0, 2]),
        (select.kind("conv", "dense"), [0, 2, 4, 6]),
        (select.kind("relu"), [1]),
        (select.kind("max_pool"), [3]),
        (select.kind("nothing"), []),
        (select.first("conv"), [0]),
        (select.first("dense", "conv"), [0]),
        (select.first("dense"), [4]),
        (select.last("conv", "dense"), [6]),
        (select.last("conv"), [2]),
        (select.first("nothing"), []),
        (select.between(0.0, 0.5, "conv", "dense"), [0, 2]),
        (select.between(0.5, 1.0, "conv", "dense"), [4, 6]),
        (select.between(0.25, 0.7, "conv", "dense"), [2, 4]),
        (select.between(0.0, 0.0, "conv"), []),
        (select.between(0.0, 1.0, "nothing"), []),
        (select.kind("conv") & ~select.first("conv"), [2]),
        (select.kind("conv") | select.path("head/*"), [0, 2, 4, 6]),
        (select.kind("dense") & "*_1", [6]),
        (~select.path("Net/*"), [7]),
        (~(select.kind("conv") | select.kind("dense")) & select.path("Net*"), [1, 3, 5]),
    ],
    ids=str,
)
def test_selectors(selector, chosen):
    assert [i for i, c in enumerate(selector.choose(UNITS)) if c] == chosen


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        (select.path("a/*"), "'a/*'"),
        (select.kind("conv", "dense") & ~select.first("conv"), "(kind(conv, dense) & ~first(conv))"),
        (select.last("sum") | "x", "(last(sum) | 'x')"),
        (select.between(0.0, 0.5, "conv"), "between(0, 0.5, conv)"),
    ],
)
def test_selectors_print_as_they_are_written(selector, text):
    assert str(selector) == text


def test_parts_of_the_way_leave_no_unit_out_and_take_none_twice():
    units = [Fake(str(i), "conv") for i in range(10)]
    for cut in (0.1, 0.3, 0.35, 0.7, 0.95):
        below, above = (select.between(*part, "conv").choose(units) for part in ((0, cut), (cut, 1)))
        assert [a != b for a, b in zip(below, above, strict=True)] == [True] * 10
        assert sum(below) == int(np.ceil(round(cut * 10, 6)))


@pytest.mark.parametrize("part", [(0.5, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_no_part_of_the_way(part):
    with pytest.raises(lrpjax.RuleError, match="between: start and stop are parts of the way"):
        select.between(*part, "conv")


def test_selectors_are_values():
    assert select.path("a") == select.path("a")
    assert select.kind("conv") & "a" == select.kind("conv") & "a"
    assert hash(~select.first("conv")) == hash(~select.first("conv"))


# ----------------------------------------------------------------------------------------------------------------------------- composites

W, V = np.random.default_rng(0).normal(size=(2, 4, 4))
K = np.random.default_rng(1).normal(size=(4, 4, 3))


def network(x):
    """conv relu conv + sum, pool, dense gelu dense."""
    conv = lambda x: lax.conv(x, jnp.asarray(K), (1,), "SAME")
    with jax.named_scope("stem"):
        x = jax.nn.relu(conv(x))
    with jax.named_scope("body"):
        x = conv(x) + x
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2), (1, 1, 2), "VALID").mean(-1)
    with jax.named_scope("head"):
        return jax.nn.gelu(x @ W) @ V


X = jnp.ones((1, 4, 6))


def plan(composite, f=network):
    return {(u.path, u.kind, u.name): u.rule for u in lrpjax.plan(f, composite, X)}


def rules_of(composite):
    return [u.rule.partition("(")[0] for u in lrpjax.plan(network, composite, X)]


ORDER = ["conv", "activation", "conv", "sum", "pool", "pool", "dense", "activation", "dense"]


def test_network_is_as_described():
    assert [u.kind for u in lrpjax.plan(network, None, X)] == ORDER


@pytest.mark.parametrize(
    ("composite", "found"),
    [  # conv, relu, conv, sum, max pool, mean, dense, gelu, dense: zennit's composites, README of the golden files
        (composites.epsilon(), "Epsilon Pass Epsilon Norm winner Norm Epsilon Pass Epsilon"),
        (composites.epsilon_plus(), "ZPlus Pass ZPlus Norm winner Norm Epsilon Pass Epsilon"),
        (composites.epsilon_plus_flat(), "Flat Pass ZPlus Norm winner Norm Epsilon Pass Epsilon"),
        (composites.epsilon_alpha2_beta1(), "AlphaBeta Pass AlphaBeta Norm winner Norm Epsilon Pass Epsilon"),
        (composites.epsilon_alpha2_beta1_flat(), "Flat Pass AlphaBeta Norm winner Norm Epsilon Pass Epsilon"),
        (composites.epsilon_gamma_box(-1.0, 1.0), "ZBox Pass Gamma Norm winner Norm Epsilon Pass Epsilon"),
        (composites.gamma_stages(), "Gamma Pass Epsilon Norm winner Norm Epsilon Pass Epsilon"),
        (composites.gamma_stages(-1.0, 1.0), "ZBox Pass Epsilon Norm winner Norm Epsilon Pass Epsilon"),
        (composites.gamma_shared(), "Gamma Pass Gamma Norm winner Norm Gamma Pass Gamma"),
        (composites.gamma_shared(-1.0, 1.0), "ZBox Pass Gamma Norm winner Norm Gamma Pass Gamma"),
        (composites.excitation_backprop(), "ZPlus Gradient ZPlus Norm winner Norm ZPlus Gradient ZPlus"),
        (composites.gradient(), "Gradient " * 9),
        (composites.input_x_gradient(), "Gradient " * 9),
        (
            composites.deconvnet(),
            "Gradient Deconvnet Gradient Gradient Gradient Gradient Gradient Gradient Gradient",
        ),
        (composites.guided_backprop(), "Gradient GuidedBackprop " + "Gradient " * 7),
    ],
    ids=lambda c: getattr(c, "preset", ""),
)
def test_presets(composite, found):
    assert [rule.split(" ")[0] for rule in rules_of(composite)] == found.split()


def test_stages_of_gamma():
    """ε in the last of six convolutions, the small γ in the last third before it, γ below, the box in the first."""

    def f(x):
        for _ in range(6):
            x = jax.nn.relu(jnp.convolve(x, jnp.array([1.0, 0.5, -0.2]), "valid"))
        return x @ jnp.array([1.0, 2.0])

    composite = composites.gamma_stages(0.0, 1.0, gamma=0.5, upper=0.1, start=0.6)
    layers = [u.rule for u in lrpjax.plan(f, composite, jnp.ones(14)) if u.kind in ("conv", "dense")]
    wanted = [rules.ZBox(0.0, 1.0), *[rules.Gamma(0.5)] * 3, rules.Gamma(0.1), *[rules.Epsilon()] * 2]
    assert layers == [str(rule) for rule in wanted]


@pytest.mark.parametrize("preset", [composites.deep_taylor, composites.gamma_stages, composites.gamma_shared])
def test_one_bound_is_none(preset):
    with pytest.raises(lrpjax.RuleError, match=f"{preset.__name__}: give both low and high, or neither"):
        preset(low=0.0)


@pytest.mark.parametrize(
    ("composite", "first", "others"),
    [
        (composites.deep_taylor(), rules.WSquare(bias=False), rules.ZPlus(bias=False)),
        (composites.deep_taylor(-1.0, 2.0), rules.ZBox(-1.0, 2.0), rules.ZPlus(bias=False)),
    ],
)
def test_deep_taylor(composite, first, others):
    layers = [u.rule for u in lrpjax.plan(network, composite, X) if u.kind in ("conv", "dense")]
    assert layers == [str(first)] + [str(others)] * 3


def test_presets_with_other_parameters():
    epsilon = composites.epsilon_gamma_box(-1.0, 1.0, epsilon=0.1, gamma=0.5)
    layers = [u.rule for u in lrpjax.plan(network, epsilon, X) if u.kind in ("conv", "dense")]
    assert layers == [
        str(rules.ZBox(-1.0, 1.0)),
        str(rules.Gamma(0.5)),
        str(rules.Epsilon(0.1)),
        str(rules.Epsilon(0.1)),
    ]


def presets():
    """All of them that need no argument, and the box."""
    for name, build in vars(composites).items():
        own = inspect.isfunction(build) and build.__module__ == composites.__name__
        if own and not name.startswith("_"):
            needed = [p for p in inspect.signature(build).parameters.values() if p.default is p.empty]
            if not needed:
                yield build()
    yield composites.epsilon_gamma_box(-1.0, 1.0)


@pytest.mark.parametrize("composite", list(presets()), ids=lambda c: c.preset)
def test_every_preset_works_on_a_network_with_nothing_in_it_that_it_names(composite, recwarn):
    R = lrpjax.relevance(lambda x: jnp.sin(x) + 2.0 * x, composite)(jnp.array([0.5, 1.0]))
    assert jnp.isfinite(R).all() and R.all()
    assert not recwarn.list


def test_first_match_wins():
    composite = lrpjax.Composite(
        [("stem", rules.Flat()), (select.kind("conv"), rules.Gamma()), ("*", rules.Epsilon(0.5))]
    )
    found = plan(composite)
    assert found["stem", "conv", ""].startswith("Flat")
    assert found["body", "conv", ""].startswith("Gamma")
    assert found["head", "dense", ""] == str(rules.Epsilon(0.5))


def test_rule_that_does_not_fit_a_kind_is_passed_over():
    """ "stem" is also the path of a ReLU: a rule of layers goes to the layer, a rule of activations to the activation."""
    composite = lrpjax.Composite([("stem", rules.Flat()), ("stem", rules.BetaSmooth())])
    found = plan(composite)
    assert found["stem", "conv", ""].startswith("Flat")
    assert found["stem", "activation", "relu"].startswith("BetaSmooth")


def test_default_rule_of_a_composite():
    composite = lrpjax.Composite([(select.kind("conv"), rules.ZPlus())], default=rules.Gradient())
    assert rules_of(composite) == ["ZPlus", "Gradient", "ZPlus"] + ["Gradient"] * 6


def test_plan_lists_the_pairs_of_a_preset_that_matched_nothing():
    """Without a warning: presets name what a network need not have (tests/core/test_errors.py has the warning)."""
    box = composites.epsilon_gamma_box(-1.0, 1.0)
    assert lrpjax.plan(network, box, X).unmatched == []
    found = lrpjax.plan(lambda x: x @ W, box, jnp.ones((1, 4))).unmatched
    assert [text.split(",")[0] for text in found] == ["(first(conv)", "(kind(conv)", "((kind(sum"]


def test_composites_are_pytrees_whose_leaves_are_hyper_parameters():
    composite = composites.epsilon_gamma_box(np.zeros((1, 4, 1)), 1.0)
    leaves, treedef = jax.tree.flatten(composite)
    again = jax.tree.unflatten(treedef, leaves)
    assert again.preset == composite.preset and again.pairs == composite.pairs
    doubled = jax.tree.map(lambda v: 2 * v, composites.epsilon(0.25))
    assert [u.rule for u in lrpjax.plan(network, doubled, X) if u.kind == "dense"] == [
        str(rules.Epsilon(0.5))
    ] * 2


def test_plan_computes_nothing_and_takes_shapes():
    shapes = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert [u.kind for u in lrpjax.plan(network, None, shapes)] == ORDER


def test_plan_is_a_sequence_and_a_table():
    p = lrpjax.plan(network, composites.epsilon_plus(), X)
    assert len(p) == len(ORDER) == len(list(p))
    assert len(str(p).splitlines()) == 1 + len(ORDER)
    (head,) = [line for line in str(p).splitlines() if "gelu" in line]
    assert "activation:gelu" in head and "Pass()" in head and "test_select.py:" in head


# ------------------------------------------------------------------------------------------- names that look like patterns

A, B = np.random.default_rng(3).normal(size=(2, 4, 4))


def bracketed(x, inner="layer[0]", other="layer0"):
    with jax.named_scope("Net"):
        with jax.named_scope(inner):
            x = jnp.tanh(x @ A)
        with jax.named_scope(other):
            return lrpjax.tag(jnp.tanh(x @ B), "out[*]") @ A


@pytest.mark.parametrize("name", ["layer[0]", "Net/layer[0]"])
def test_a_path_with_brackets_is_a_path(name):
    plain = lambda x: bracketed(x, "first", "second")
    x = np.ones(4)
    wanted = lrpjax.relevance(plain, at="first")(x)
    found = lrpjax.relevance(bracketed, at=name)(x)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    several = lrpjax.relevance(bracketed, at=[name, "layer0", "out[*]"])(x)
    assert list(several) == [name, "layer0", "out[*]"]
    np.testing.assert_allclose(several[name], wanted, rtol=1e-12)
    rules_of = lambda f, path: [
        u.rule
        for u in lrpjax.plan(f, lrpjax.Composite([(select.path(path), rules.Epsilon(0.5))]), x)
        if u.kind == "dense"
    ]
    assert rules_of(bracketed, name) == rules_of(plain, "first")
    assert rules_of(bracketed, "layer[01]") == rules_of(
        plain, "second"
    )  # a pattern, for nothing has this name
    assert rules_of(bracketed, "*layer[0]*") == rules_of(plain, "*first*")  # its brackets belong to a name


def test_a_tag_with_stars_is_a_tag():
    x = np.ones(4)
    wanted = lrpjax.relevance(lambda x: x @ A)(jnp.tanh(jnp.tanh(x @ A) @ B))
    np.testing.assert_allclose(lrpjax.relevance(bracketed, at="out[*]")(x), wanted, rtol=1e-12)
    one = np.array([True, False, False, False])
    explain = lambda name: lrpjax.concepts.relevance(
        lambda x: lrpjax.tag(jnp.tanh(x @ A), name) @ B, None, {name: one}
    )(x)
    np.testing.assert_allclose(explain("a*[0]"), explain("plain"), rtol=1e-12)


@pytest.mark.parametrize("at", [[], (), "", [""]])
def test_at_that_names_nothing(at):
    with pytest.raises(lrpjax.errors.PathError, match="`at` "):
        lrpjax.relevance(bracketed, at=at)(np.ones(4))
    with pytest.raises(lrpjax.errors.PathError, match="`at` "):
        lrpjax.plan(bracketed, None, np.ones(4), at=at)


def test_at_may_be_any_iterable():
    x = np.ones(4)
    found = lrpjax.relevance(bracketed, at=(name for name in ["layer0", "*layer[0]"]))(x)
    assert set(found) == {"layer0", "Net/layer[0]", "Net/layer[0]#2"}
