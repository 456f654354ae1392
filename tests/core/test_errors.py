"""Bad input gives a clear, specific error or a documented result; and what other LRP libraries get wrong comes out right."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import composites, rules, select
from lrpjax.core import paths, recognise
from lrpjax.core.program import Program
from lrpjax.core.units import Unit

RNG = np.random.default_rng(2)
W, V = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 3))
X = jnp.asarray(RNG.normal(size=(2, 3)))


def dense(x):
    with jax.named_scope("dense"):
        return x @ W


def explain(f=dense, composite=None, x=X, **options):
    return lrpjax.relevance(f, composite, **options)(x)


# ------------------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            jnp.arange(3),
            "has dtype int64: only floating-point values carry relevance.*at='path/of/the/embedding'",
        ),
        (np.arange(3, dtype=np.uint8), "has dtype uint8"),
        (jnp.array([True, False, True]), "has dtype bool"),
        (3, "has dtype int"),
        ("text", "holds 'text', which is text and no array"),
        ({"a": X, "b": "text"}, "holds 'text', which is text and no array"),
        ({}, "holds no arrays"),
        (None, "holds no arrays"),
    ],
)
def test_bad_arguments(x, message):
    with pytest.raises(lrpjax.InputError, match=message) as error:
        explain(lambda x: jnp.ones(()), x=x)
    assert isinstance(error.value, TypeError)


@pytest.mark.parametrize("argnums", [1, -2, (0, 3)])
def test_arguments_that_are_not_there(argnums):
    with pytest.raises(
        lrpjax.InputError, match=r"argnums names argument -?\d, but the function was called with 1 "
    ):
        explain(argnums=argnums)


@pytest.mark.parametrize(
    ("argnums", "message"),
    [
        ("a", "argnums takes the number of an argument, or several, but got 'a'"),
        (1.5, "but got 1.5"),
        (True, "but got True"),
        ((0, 0), r"argnums=\(0, 0\) names an argument twice"),
        ((0, -1), r"argnums=\(0, -1\) names an argument twice"),
        ((), "holds no arrays"),
    ],
)
def test_bad_argnums(argnums, message):
    with pytest.raises(lrpjax.InputError, match=message):
        explain(argnums=argnums)


@pytest.mark.parametrize("f", [dense, lambda x: (x, x, x), lambda x: {"output": x, "aux": x}])
def test_has_aux_needs_a_pair(f):
    with pytest.raises(lrpjax.TargetError, match=r"must return a pair \(output, auxiliary data\)"):
        explain(f, has_aux=True)


@pytest.mark.parametrize(
    ("f", "target", "message"),
    [
        (dense, 4, "target 4 is out of range: the output has 4 classes"),
        (dense, -5, "target -5 is out of range"),
        (dense, np.array([0, 9]), r"target \[0 9\] is out of range"),
        (dense, np.array([0, 1, 2]), r"class targets have shape \(3,\).* takes one int or shape \(2,\)"),
        (dense, "min", "the only target by name is 'max', but this is 'min'"),
        (dense, np.ones((2, 3)), r"the target has shape \(2, 3\), but the output has \(2, 4\)"),
        (dense, True, "this has dtype bool"),
        (
            dense,
            lambda y: y.sum(),
            r"the target function returned shape \(\), but the output has shape \(2, 4\)",
        ),
        (lambda x: x.sum(), 0, "the output is a scalar"),
        (lambda x: x.sum(), "max", "the output is a scalar"),
        (lambda x: (x, x), 0, "the output has 2 arrays, of shapes .*has_aux=True"),
        (lambda x: None, None, "the function returned no array"),
        (lambda x: x.argmax(), None, r"the output holds int64\[\]: only floating-point outputs"),
    ],
)
def test_bad_targets(f, target, message):
    with pytest.raises(lrpjax.TargetError, match=message) as error:
        explain(f, target=target)
    assert isinstance(error.value, ValueError)


def test_bad_seed_of_vjp():
    _, pull = lrpjax.vjp(dense, None, X)
    with pytest.raises(
        lrpjax.TargetError, match=r"the seed has shape \(3,\), but the output has shape \(2, 4\)"
    ):
        pull(jnp.ones(3))


def test_traced_class_that_does_not_exist_gives_nan():
    """What cannot be known when tracing cannot raise: the result says it."""
    found = jax.jit(lambda c: explain(target=c))(jnp.array([1, 9]))
    assert jnp.isfinite(found[0]).all()
    assert jnp.isnan(found[1]).all()


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("elsewhere", "no value leaves the scope 'elsewhere'. Scopes of this function: dense$"),
        (["dense", "elsewhere"], "no value leaves the scope 'elsewhere'"),
        ("else*", r"the glob 'else\*' matches no unit"),
        ([3], "`at` takes module paths, but got 3"),
        (3, "`at` takes module paths, but got 3"),
    ],
)
def test_bad_paths(at, message):
    with pytest.raises(lrpjax.PathError, match=message) as error:
        explain(at=at)
    assert isinstance(error.value, LookupError)


def test_a_value_in_the_midst_of_a_unit_cannot_be_named():
    """No program is known that comes to this: units are not grown across what is named."""
    f = lambda x: jax.nn.softmax(x) @ jnp.ones((3, 2))
    program = Program(f, composites.epsilon(), [jnp.ones(3)], {}, 0, None, False)
    unit = next(unit for unit in program.level.units if unit.kind == "softmax")
    inner = next(v for node in unit.nodes for v in node.outputs if v.carries and v not in unit.outputs)
    with pytest.raises(lrpjax.PathError, match="'here' names a value in the midst of"):
        paths.refuse_inner(program.level, [("here", inner)])
    paths.refuse_inner(program.level, [("there", unit.out)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.Epsilon(-1.0), "Epsilon: epsilon must not be negative, but is -1.0"),
        (lambda: rules.Epsilon(float("nan")), "Epsilon: epsilon must not be negative, but is nan"),
        (lambda: rules.Gamma(-0.1), "Gamma: gamma must not be negative, but is -0.1"),
        (lambda: rules.AlphaBeta(2.0, 2.0), "alpha - beta must be 1 .*but 2.0 - 2.0 is not"),
        (
            lambda: rules.AlphaBeta(-1.0, -2.0),
            "alpha - beta must be 1, and neither negative, but they are -1.0 and -2.0",
        ),
        (lambda: rules.ZBox(1.0, 0.0), "ZBox: low must not exceed high"),
        (lambda: rules.ZBox(np.zeros(3), np.array([1.0, -1.0, 1.0])), "ZBox: low must not exceed high"),
        (
            lambda: rules.ZBox(np.zeros(3), np.ones(4)),
            r"ZBox: low has shape \(3,\) and high \(4,\), which do not broadcast",
        ),
        (lambda: rules.box(0.5, 0.0), "box: std must be positive, but is 0.0"),
        (lambda: rules.box([0.5, 0.5], [0.5, -0.1]), r"box: std must be positive, but is \[ 0.5 -0.1\]"),
        (lambda: rules.box(0.5, float("nan")), "box: std must be positive, but is nan"),
        (lambda: rules.box(0.5, 0.1, 1.0, 0.0), "box: lowest must not exceed highest"),
        (
            lambda: rules.box(np.zeros(3), np.ones(4)),
            r"box: mean, std, lowest and highest have shapes \(3,\), \(4,\), \(\), \(\), which do not broadcast",
        ),
        (lambda: composites.epsilon_gamma_box(1.0, -1.0), "ZBox: low must not exceed high"),
        (lambda: composites.deep_taylor(low=0.0), "deep_taylor: give both low and high, or neither"),
        (lambda: rules.Product("thirds"), "Product: share must be .* but is 'thirds'"),
        (lambda: rules.Product(True), "Product: share must be .* but is True"),
        (lambda: rules.Product(0.5), "Product: share must be .* but is 0.5"),
        (lambda: rules.Sum(True), "Sum: share must be .* but is True"),
        (lambda: rules.Sum("thirds"), "Sum: share must be .* but is 'thirds'"),
        (lambda: rules.Sum(7), "Sum: share must be"),
        (lambda: rules.Gamma(epsilon=-1.0), "Gamma: epsilon must not be negative"),
        (lambda: rules.AlphaBeta(epsilon=-1.0), "AlphaBeta: epsilon must not be negative"),
        (lambda: rules.ZPlus(-1.0), "ZPlus: epsilon must not be negative"),
        (lambda: rules.ZBox(0.0, 1.0, epsilon=-1.0), "ZBox: epsilon must not be negative"),
        (lambda: rules.WSquare(-1.0), "WSquare: epsilon must not be negative"),
        (lambda: rules.Flat(-1.0), "Flat: epsilon must not be negative"),
        (lambda: rules.Norm(-1.0), "Norm: epsilon must not be negative"),
    ],
)
def test_bad_hyper_parameters(make, message):
    with pytest.raises(lrpjax.RuleError, match=message) as error:
        make()
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: lrpjax.Composite([("*", rules.Flat)]),
            lrpjax.RuleError,
            r"Flat is a class; give an instance, Flat\(\)",
        ),
        (
            lambda: lrpjax.Composite([("*", None)]),
            lrpjax.RuleError,
            "the second of a pair is a rule .* but is None",
        ),
        (
            lambda: lrpjax.Composite([("*", 3)]),
            lrpjax.RuleError,
            "the second of a pair is a rule .* but is 3",
        ),
        (lambda: lrpjax.Composite([("*",)]), lrpjax.RuleError, r"each entry is a pair \(selector, rule\)"),
        (
            lambda: lrpjax.Composite([(3, rules.Flat())]),
            TypeError,
            "a selector is a path glob .* but this is 3",
        ),
        (
            lambda: lrpjax.Composite([], method="magic"),
            lrpjax.RuleError,
            "method must be one of .* but is 'magic'",
        ),
        (
            lambda: lrpjax.Composite([], primitives={"qr": "odd"}),
            lrpjax.RuleError,
            "the family of primitive 'qr' must be one of .* but is 'odd'",
        ),
        (
            lambda: explain(composite="epsilon"),
            TypeError,
            "takes a composite, but was given the text 'epsilon'",
        ),
        (lambda: explain(composite=rules.Epsilon()), TypeError, "takes a composite, but was given the rule"),
    ],
)
def test_bad_composites(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_factor_that_a_product_does_not_have():
    composite = lrpjax.Composite([(select.kind("product"), rules.Product(2))])
    with pytest.raises(
        lrpjax.RuleError, match=r"share=2, but the product has 2 factors: product in .*test_errors.py:\d+"
    ):
        explain(lambda x: (x @ W) * (x @ W[::-1] + 1.0), composite)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (np.zeros(7), 1.0, r"ZBox: low has shape \(7,\), .* the layer's input of shape \(2, 3\)"),
        (0.0, np.ones((5, 1, 1)), r"ZBox: high has shape \(5, 1, 1\), .* input of shape \(2, 3\)"),
    ],
)
def test_box_that_does_not_fit_the_input(low, high, message):
    with pytest.raises(lrpjax.RuleError, match=message):
        explain(composite=composites.deep_taylor(low, high))


def test_pair_that_matches_nothing_is_warned_of_once_and_reported():
    composite = lrpjax.Composite([("nowhere", rules.Flat()), (select.kind("dense"), rules.ZPlus())])
    with pytest.warns(lrpjax.UnmatchedWarning, match=r"match no unit: \('nowhere', Flat") as record:
        explain(composite=composite)
        explain(composite=composite)
    assert len(record) == 1
    plan = lrpjax.plan(dense, composite, X)
    assert len(plan.unmatched) == 1
    assert "matched nothing: ('nowhere', Flat" in str(plan)


def test_nan_in_the_input_stays_in_its_example():
    x = X.at[0, 1].set(jnp.nan)
    for composite in (
        None,
        composites.epsilon_plus(),
        composites.epsilon_plus_flat(),
        composites.deep_taylor(),
    ):
        found = lrpjax.relevance(lambda x: jax.nn.relu(x @ W) @ V, composite)(x)
        assert jnp.isnan(found[0]).any()
        close(found[1], lrpjax.relevance(lambda x: jax.nn.relu(x @ W) @ V, composite)(X)[1])


# ------------------------------------------------------------------------------------------------------------------------------ unsupported


def line_of(text):
    with open(__file__) as file:
        return next(i for i, line in enumerate(file, 1) if text in line)


def bad(x):
    """A primitive without a rule."""
    return jnp.ones(x.shape).at[:].multiply(x)


def unsupported(x):
    with jax.named_scope("loop"):
        x = lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x * 2.0 + 1.0, x)  # the while
    x = jax.nn.relu(x @ W)
    with jax.named_scope("block"), jax.named_scope("inner"):
        x = jnp.linalg.cholesky(x @ x.T + np.eye(2))  # the cholesky
    return jax.jit(lambda x: jnp.ones(2).at[0].multiply(x[0, 0]))(x)  # the product


def test_all_unsupported_primitives_are_listed_with_path_and_line():
    with pytest.raises(lrpjax.UnsupportedError) as error:
        explain(unsupported)
    assert isinstance(error.value, NotImplementedError)
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    for primitive, path, mark in [
        ("while", "loop", "# the while"),
        ("cholesky", "block/inner", "# the cholesky"),
        ("scatter", "(no module path)", "# the product"),
    ]:
        (line,) = (s for s in lines if s.strip().startswith(primitive))
        assert f"'{path}'" in line
        assert re.search(rf"test_errors\.py:{line_of(mark)} \(", line)
    assert "use jax.lax.scan" in str(error.value)
    assert "(select.kind('cholesky'), rules.Gradient())" in str(error.value)


@pytest.mark.parametrize(
    "composite", [composites.epsilon_plus(), lrpjax.Composite([(select.kind("dense"), rules.Flat())])]
)
def test_unsupported_primitive_is_an_error_under_every_composite(composite):
    with pytest.raises(lrpjax.UnsupportedError, match="scatter"):
        explain(lambda x: bad(x @ W), composite)


@pytest.mark.parametrize("where", ["scan", "cond", "remat", "jit", "vmap"])
def test_unsupported_primitive_is_found_inside(where):
    f = {
        "scan": lambda x: lax.scan(lambda c, r: (c + bad(r), None), jnp.zeros(3), x)[0],
        "cond": lambda x: lax.cond(
            x[0, 0] > 0, lambda x: x * 2.0, lambda x: bad(x.ravel()).reshape(x.shape), x
        ),
        "remat": lambda x: jax.checkpoint(bad)(x),
        "jit": lambda x: jax.jit(bad)(x),
        "vmap": lambda x: jax.vmap(bad)(x),
    }[where]
    with pytest.raises(lrpjax.UnsupportedError, match=r"scatter.mul in .* at .*test_errors.py"):
        explain(f)


@pytest.mark.parametrize("inside", [False, True])
def test_while_with_constants_in_its_condition_is_refused(inside):
    """What reaches the result only in the second turn is found as well; `odeint` loops like this within a scan."""

    def loop(x):
        turn = lambda s: (s[0] + 1, s[2], x.sum(), s[3])
        return lax.while_loop(lambda s: s[0] < x.size + s[3].max(), turn, (0.0, x[0, 0], 1.0, x))[1]

    f = lambda x: lax.scan(lambda c, _: (c + loop(x), None), 0.0, length=2)[0] if inside else loop(x)
    with pytest.raises(lrpjax.UnsupportedError, match=r"while in .*test_errors.py.*use jax.lax.scan"):
        explain(f)


@pytest.mark.parametrize(
    ("name", "f"),
    {
        "pure_callback": lambda x: jax.pure_callback(np.tanh, x, x),
        "scatter-mul": lambda x: jnp.ones(3).at[jnp.array([0, 0])].multiply(x[:, 0]),
        "regularized_incomplete_beta": lambda x: lax.betainc(jnp.abs(x), 2.0 + 0 * x, 0.3 + 0 * x),
    }.items(),
)
def test_what_jax_cannot_differentiate_is_named_where_the_gradient_is_asked_for(name, f):
    composite = composites.input_x_gradient()
    with pytest.raises(lrpjax.UnsupportedError, match=rf"{name} in .*test_errors.py.*no derivative"):
        explain(f, composite)


def test_an_error_of_the_users_own_callback_is_left_alone():
    def fail(x):
        raise ValueError("mine")

    with pytest.raises(Exception, match="mine") as error:
        explain(
            lambda x: (
                x * lax.stop_gradient(jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), x))
            )
        )
    assert not isinstance(error.value, lrpjax.LrpjaxError)


def test_unsupported_primitive_beside_the_path_is_none_of_our_business():
    f = lambda x: x * 2.0 + lax.stop_gradient(bad(x))
    close(explain(f, target=jnp.ones((2, 3))).shape, (2, 3))
    g = lambda x, y: (x @ W).sum() + bad(y).sum()
    assert jnp.isfinite(lrpjax.relevance(g, argnums=0)(X, X)).all()


def test_loop_over_integers_that_the_data_decides_is_computed():
    """The index carries no relevance, but it is a value like others."""

    def f(x):
        n = lax.while_loop(lambda c: c < x[0].argmax(), lambda c: c + 1, 0)
        return lax.dynamic_index_in_dim(x, n, axis=1)

    wanted = np.zeros((2, 3))
    wanted[:, int(X[0].argmax())] = X[:, int(X[0].argmax())]
    close(explain(f), wanted)


@pytest.mark.parametrize(
    ("family", "wanted"),
    [("stop", lambda x, R: 0 * x), ("elementwise", lambda x, R: R)],
)
def test_primitive_is_given_a_family_by_the_user(family, wanted):
    x, R = X[0], jnp.arange(1.0, 4.0)
    (name,) = {e.primitive.name for e in jax.make_jaxpr(bad)(x).eqns if "mul" in e.primitive.name}
    composite = lrpjax.Composite([], primitives={name: family})
    close(explain(bad, composite, x, target=R), wanted(x, R))
    with pytest.raises(lrpjax.UnsupportedError):
        explain(bad, x=x)


def test_stop_on_the_only_way():
    composite = lrpjax.Composite([(select.kind("activation"), rules.Stop())])
    assert not explain(lambda x: jnp.tanh(x) @ W, composite).any()
    assert not explain(lambda x: lax.stop_gradient(x) @ W).any()


# -------------------------------------------------------------------------------------------------------------------- what peers get wrong


def test_layer_used_twice():
    """zennit's hooks store one input for each module: the second use overwrites the first."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(3, param_dtype=jnp.float64)
            return layer(jax.nn.relu(layer(x)))

    class Copied(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, param_dtype=jnp.float64)(jax.nn.relu(nn.Dense(3, param_dtype=jnp.float64)(x)))

    parameters = Twice().init(jax.random.key(0), X)
    copies = {"params": dict.fromkeys(("Dense_0", "Dense_1"), parameters["params"]["Dense_0"])}
    for composite in (
        composites.epsilon(),
        composites.epsilon_plus_flat(),
        lrpjax.Composite([("Dense_0", rules.Gamma())]),
    ):
        found = lrpjax.relevance(lambda x: Twice().apply(parameters, x), composite)(X)
        if composite.preset:
            close(found, lrpjax.relevance(lambda x: Copied().apply(copies, x), composite)(X))
        else:
            both = lrpjax.Composite([("Dense_*", rules.Gamma())])
            close(found, lrpjax.relevance(lambda x: Copied().apply(copies, x), both)(X))


def test_batch_norm_before_a_layer():
    """zennit: not merged, AttributeError or passed on unchanged. Here its shift takes its share."""
    s, t = np.array([0.5, -2.0, 1.0]), np.array([0.3, 0.0, -0.7])
    y = X * s + t
    above = lrpjax.relevance(lambda y: y @ W, composites.epsilon(0.0), target=1)(y)
    close(explain(lambda x: (x * s + t) @ W, composites.epsilon(0.0), target=1), X * s / y * above)


def test_functional_sums_and_activations_are_seen():
    f = lambda x: jnp.maximum(x @ W + (x @ W[::-1]) ** 2, 0.0) @ V
    assert [u.kind for u in lrpjax.plan(f, None, X)] == [
        "dense",
        "dense",
        "activation",
        "sum",
        "activation",
        "dense",
    ]


def test_first_layer_is_that_executed_first():
    """In zennit it is the one registered first."""

    class Reversed(nn.Module):
        def setup(self):
            self.head = nn.Dense(2, param_dtype=jnp.float64)
            self.stem = nn.Dense(5, param_dtype=jnp.float64)

        def __call__(self, x):
            return self.head(jax.nn.relu(self.stem(x)))

    parameters = Reversed().init(jax.random.key(0), X)
    plan = lrpjax.plan(lambda x: Reversed().apply(parameters, x), composites.epsilon_plus_flat(), X)
    assert {u.path.split("/")[-1]: u.rule.split("(")[0] for u in plan if u.kind == "dense"} == {
        "stem": "Flat",
        "head": "Epsilon",
    }


@pytest.mark.parametrize("beta", [i / 100 for i in range(101)])
def test_alpha_and_beta_that_floats_do_not_subtract_exactly(beta):
    """zennit compares α − β with 1 and rejects 19 of these pairs."""
    assert rules.AlphaBeta(1 + beta, beta).beta == beta


@pytest.mark.parametrize(
    "rule",
    [
        rules.ZPlus(epsilon=0.0),
        rules.AlphaBeta(epsilon=0.0),
        rules.Gamma(epsilon=0.0),
        rules.Epsilon(0.0),
        rules.Flat(epsilon=0.0),
    ],
    ids=lambda r: type(r).__name__,
)
def test_all_dead_unit(rule):
    """0 / 0 is 0: nothing to share, nothing to share it among."""
    f = lambda x: jax.nn.relu(x @ W) @ V
    composite = lrpjax.Composite([(select.kind("dense"), rule)])
    assert jnp.isfinite(explain(f, composite, jnp.zeros((2, 3)), target=jnp.ones((2, 3)))).all()
    assert jnp.isfinite(jax.jacobian(lambda x: explain(f, composite, x).sum())(jnp.zeros((2, 3)))).all()


@pytest.mark.parametrize(
    "rule", [rules.Flat(), rules.WSquare(), rules.ZBox(-1.0, 1.0)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize(
    "between",
    [lambda x: x, lambda x: x.reshape(3, 1)[::-1, 0], jnp.tanh],
    ids=["none", "moved", "activation"],
)
def test_exact_zeros_get_their_share_of_plain_rules(rule, between):
    """input × gradient loses what Flat, w² and z^B give to pixels that are exactly zero."""
    composite = lrpjax.Composite([(select.kind("dense"), rule)])
    found = lrpjax.relevance(lambda x: between(x) @ W, composite, target=jnp.ones(4))(
        jnp.array([0.0, 1.0, 0.0])
    )
    assert (found != 0).all()
    assert float(found.sum()) == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize(
    ("f", "fixed"),
    [
        (jax.nn.softmax, None),
        (
            jax.nn.standardize,
            lambda x: (
                (x - x.mean(-1, keepdims=True)) / lax.stop_gradient(jnp.sqrt(x.var(-1, keepdims=True) + 1e-5))
            ),
        ),
    ],
    ids=["softmax", "normalisation"],
)
def test_softmax_and_normalisation_are_not_given_the_plain_gradient_of_their_relevance(f, fixed):
    """In zennit every module without a rule has R_i = Σ_j ∂y_j/∂x_i R_j."""
    R = jnp.asarray(RNG.normal(size=(2, 4)))
    model = lambda x: f(x) @ W
    found = explain(model, composites.epsilon(0.0), target=R)
    y = f(X)
    above = lrpjax.relevance(lambda y: y @ W, composites.epsilon(0.0), target=R)(y)
    plain = jax.vjp(f, X)[1](above)[0]
    right = (
        X * (above - y * above.sum(-1, keepdims=True))
        if fixed is None
        else X * jax.vjp(fixed, X)[1](above / y)[0]
    )
    close(found, right)
    assert abs(found - plain).max() > 1e-3


def test_recognisers_that_claim_what_is_read_from_outside(monkeypatch):
    """Relevance that arrives in the midst of a unit would be lost without a word."""

    def greedy(draft):
        dense, activation = draft.carrying[:2]
        draft.add(Unit("activation", [dense, activation], dense.carriers(), "of its own"))

    monkeypatch.setattr(recognise, "RECOGNISERS", (greedy, *recognise.RECOGNISERS))
    with pytest.raises(
        lrpjax.UnsupportedError, match=r"midst of activation.*test_errors.py.*custom_relevance"
    ):
        explain(lambda x: (lambda h: jnp.sin(h) + h * V[:, 0])(x @ W))
