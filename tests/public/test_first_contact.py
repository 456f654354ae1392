"""What people write before they have read anything: it works, or the error says what to write, before anything is computed."""

import importlib.util
import subprocess
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lrpjax
from lrpjax import Composite, composites, gradients, rules, select

W = jnp.ones((4, 3))
X = jnp.arange(8.0).reshape(2, 4)
X32 = X.astype(jnp.float32)  # as the parameters of flax


def f(x):
    return jnp.maximum(x @ W, 0.0)


def refused(call, *said, kind=lrpjax.LrpjaxError):
    with pytest.raises(kind) as caught:
        call()
    for words in said:
        assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- f, composite, arguments


@pytest.mark.parametrize("name", ["relevance", "value_and_relevance", "audit"])
def test_the_argument_in_the_place_of_the_composite(name):
    call = getattr(lrpjax, name)
    refused(lambda: call(f, X), "was given arrays", f"{name}(f, composite)(x)")
    refused(lambda: call(f, np.ones(3)), "was given arrays")


def test_plan_vjp_and_linearise_go_without_a_composite():
    assert str(lrpjax.plan(f, X)) == str(lrpjax.plan(f, None, X))
    pair = lambda x, y: x * y["a"]
    assert str(lrpjax.plan(pair, X, {"a": X})) == str(lrpjax.plan(pair, None, X, {"a": X}))
    (y, pull), (_, same) = lrpjax.vjp(f, X), lrpjax.vjp(f, None, X)
    np.testing.assert_array_equal(pull(y)[0], same(y)[0])
    np.testing.assert_array_equal(
        lrpjax.linearise(f, X).pull().input, lrpjax.linearise(f, None, X).pull().input
    )


@pytest.mark.parametrize("call", [lrpjax.plan, lrpjax.vjp, lrpjax.linearise], ids=lambda c: c.__name__)
def test_what_is_no_composite_is_not_taken_for_an_argument(call):
    refused(lambda: call(f, "epsilon_plus", X), "composites.epsilon_plus()")
    refused(lambda: call(f, composites.gradient, X), "composites.gradient()")
    refused(lambda: call(f, rules.Epsilon(), X), "Composite([(select.kind('conv', 'dense'), rules.Epsilon(")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("epsilon_plus", "the text 'epsilon_plus': write composites.epsilon_plus()"),
        ("epsilon_gamma_box", "write composites.epsilon_gamma_box(low, high)"),
        ("EpsilonPlus", "composites.epsilon_plus()"),
        ("epsilonplus", "such as composites.epsilon_plus()"),
        (
            composites.epsilon_plus,
            "the preset epsilon_plus that was not called: write composites.epsilon_plus()",
        ),
        (composites.epsilon_gamma_box, "composites.epsilon_gamma_box(low, high)"),
        (rules.Gamma(0.1), "Composite([(select.kind('conv', 'dense'), rules.Gamma(gamma=0.1"),
        (rules.Epsilon, "rules.Epsilon()"),
        ([("*", rules.Epsilon())], "make a composite of them, Composite([('*', Epsilon("),
        (f, "takes the function first, then a composite"),
        (object(), "which neither lrpjax.composites nor lrpjax.Composite makes"),
        (Composite, "takes the function first, then a composite"),
    ],
)
def test_what_is_no_composite(given, said):
    refused(lambda: lrpjax.relevance(f, given), said, kind=lrpjax.InputError)


def test_what_an_error_advises_runs():
    composite = Composite([(select.kind("conv", "dense"), rules.Epsilon(epsilon=1e-06))])
    expected = lrpjax.relevance(f, composites.epsilon())(X)
    np.testing.assert_allclose(lrpjax.relevance(f, composite)(X), expected)


def test_a_function_called_without_arguments():
    refused(lambda: lrpjax.plan(f, composites.epsilon()), "called without arguments")
    refused(lambda: lrpjax.relevance(f)(), "called without arguments")


# ------------------------------------------------------------------------------------------------------------------------------- models


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.linear(x)))


def test_a_linen_module_or_class_itself():
    model = Linen()
    params = model.init(jax.random.key(0), X32)
    said = "relevance(lambda x: model.apply(params, x))"
    refused(lambda: lrpjax.relevance(model), "the linen module Linen without its parameters", said)
    refused(lambda: lrpjax.plan(model, None, X32), "the linen module Linen without its parameters")
    refused(lambda: lrpjax.relevance(Linen), "the class Linen itself", said)
    expected = lrpjax.relevance(lambda x: model.apply(params, x))(X32)
    np.testing.assert_allclose(lrpjax.relevance(model.apply, argnums=1)(params, X32), expected)
    np.testing.assert_allclose(lrpjax.relevance(model.bind(params))(X32), expected)


def test_an_nnx_class_itself():
    refused(lambda: lrpjax.relevance(Nnx), "the class Nnx itself: model = Nnx(…)", "relevance(model)")


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: lambda x: m(x), lambda m: jax.jit(lambda x: m(x))])
def test_nnx_in_training_mode(wrap):
    model = Nnx(nnx.Rngs(0))
    said = "in training mode are drop (Dropout), norm (BatchNorm). Call model.eval() first"
    refused(lambda: lrpjax.relevance(wrap(model))(X32), said, kind=lrpjax.InputError)
    refused(lambda: lrpjax.plan(wrap(model), X32), "model.eval()", kind=lrpjax.InputError)
    model.eval()
    R = lrpjax.relevance(wrap(model))(X32)
    assert np.isfinite(R).all() and np.abs(R).sum() > 0


def test_dropout_alone_is_named():
    class Drop(nnx.Module):
        def __init__(self):
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.drop(x)

    model = Drop()
    refused(lambda: lrpjax.relevance(model)(X32), "drop (Dropout)", "model.eval()")


def test_a_model_that_counts_its_calls():
    class Counts(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.zeros(()))

        def __call__(self, x):
            self.calls[...] = self.calls[...] + 1.0
            return 2 * x

    model = Counts()
    refused(lambda: lrpjax.relevance(model)(X), "nnx.merge(graph, state, copy=True)(x)")
    graph, state = nnx.split(model)
    np.testing.assert_allclose(lrpjax.relevance(lambda x: nnx.merge(graph, state, copy=True)(x))(X), 2 * X)


def test_what_is_no_function():
    refused(lambda: lrpjax.relevance(X), "the function comes first")
    refused(lambda: lrpjax.relevance("model"), "'model', which is text")
    refused(lambda: lrpjax.relevance(3), "3, a int")
    init_and_apply = type("Transformed", (), {"init": None, "apply": lambda self, params, x: x})()
    refused(lambda: lrpjax.relevance(init_and_apply), "its `apply` is one")


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_modules_and_tensors_of_torch():
    import torch

    refused(lambda: lrpjax.relevance(torch.nn.Linear(4, 3)), "lrpjax.torch.explain(module, composite, x)")
    refused(
        lambda: lrpjax.relevance(f)(torch.ones(2, 4)),
        "a tensor of PyTorch",
        "jnp.asarray(tensor.numpy(force=True))",
    )


# ------------------------------------------------------------------------------------------------------------------------------- inputs


def test_pictures_of_pil():
    image = pytest.importorskip("PIL.Image").fromarray(np.full((2, 4), 51, np.uint8))
    refused(
        lambda: lrpjax.relevance(f)(image), "a picture of PIL, 4×2", "np.asarray(image, np.float32) / 255"
    )
    R = lrpjax.relevance(lambda x: x.sum())(np.asarray(image, np.float32) / 255)
    np.testing.assert_allclose(R, 0.2, rtol=1e-5)


def test_lists_of_numbers():
    refused(lambda: lrpjax.relevance(f)([1.0, 2.0, 3.0, 4.0]), "a list of numbers", "jnp.asarray(x)")
    refused(lambda: lrpjax.relevance(f)([[1, 2.0], [3.0, 4.0]]), "a list of numbers", "jnp.float32")
    R = lrpjax.relevance(lambda x: 2 * x[0] + x[1])([1.0, 2.0])  # a function of a pytree of scalars is one
    np.testing.assert_allclose(R, [2.0, 2.0])
    with pytest.raises(TypeError, match="unsupported operand"):  # the user's own mistake stays what it is
        lrpjax.relevance(lambda x: x @ None)(X)


def test_integers_text_and_one_hot_codes():
    refused(lambda: lrpjax.relevance(f)(jnp.ones((2, 4), jnp.int32)), "one-hot codes convert to float first")
    refused(lambda: lrpjax.relevance(f)("a sentence"), "'a sentence', which is text", "at=")


# ------------------------------------------------------------------------------------------------------------------------------ targets


def test_an_integer_one_hot_target():
    hot = np.eye(3, dtype=np.int32)[[2, 0]]
    refused(
        lambda: lrpjax.relevance(f, target=hot)(X),
        "as a one-hot code has",
        "target.argmax(-1)",
        kind=lrpjax.TargetError,
    )
    refused(lambda: lrpjax.relevance(lambda x: f(x)[0], target=hot[0])(X), "as a one-hot code has")
    by_class = lrpjax.relevance(f, target=hot.argmax(-1))(X)
    np.testing.assert_allclose(lrpjax.relevance(f, target=hot.astype(float) * f(X))(X), by_class)


def test_a_tuple_as_target():
    refused(
        lambda: lrpjax.relevance(f, target=(0, 1))(X), "a list or an array, [0, 1]", kind=lrpjax.TargetError
    )
    np.testing.assert_allclose(
        lrpjax.relevance(f, target=[0, 1])(X), lrpjax.relevance(f, target=np.array([0, 1]))(X)
    )
    maps = lambda x: jnp.stack([x @ W, 2 * x @ W], 1)
    one = lambda y: jnp.zeros_like(y).at[:, 1, 2].set(y[:, 1, 2])  # as the error says
    np.testing.assert_allclose(lrpjax.relevance(maps, target=one)(X), 2 * X, rtol=1e-5)


def test_a_class_as_a_float():
    refused(lambda: lrpjax.relevance(f, target=1.0)(X), "A class is an int")


@pytest.mark.parametrize("target", [None, "max", 0])
@pytest.mark.parametrize("kind", [tuple, list])
def test_a_tuple_as_output(target, kind):
    two = lambda x: (f(x), x)
    refused(
        lambda: lrpjax.relevance(lambda x: kind(two(x)), target=target)(X),
        "2 arrays",
        "has_aux=True",
        kind=lrpjax.TargetError,
    )
    R, aux = lrpjax.relevance(two, target=target, has_aux=True)(X)
    np.testing.assert_array_equal(R, lrpjax.relevance(f, target=target)(X))
    np.testing.assert_array_equal(aux, X)


def test_all_of_a_tuple_as_output_as_its_error_says():
    two = lambda x: (f(x), x**2)
    refused(lambda: gradients.gradient(two)(X), "target=lambda y: y", kind=lrpjax.TargetError)
    np.testing.assert_allclose(
        lrpjax.relevance(two, target=lambda y: y)(X), lrpjax.relevance(f)(X) + X**2, rtol=1e-5
    )
    named = lambda x: dict(zip("ab", two(x), strict=True))
    np.testing.assert_array_equal(lrpjax.relevance(named)(X), lrpjax.relevance(two, target=lambda y: y)(X))


def test_an_output_with_integers_beside_it():
    refused(lambda: lrpjax.relevance(lambda x: (f(x), f(x).argmax(-1)))(X), "has_aux=True")


def test_several_outputs_on_purpose():
    two = lambda x: {"a": f(x), "b": 2 * f(x)}
    np.testing.assert_allclose(
        lrpjax.relevance(two, target=lambda y: y)(X), 3 * lrpjax.relevance(f)(X), rtol=1e-6
    )


# ---------------------------------------------------------------------------------------------------------------------- kinds and pairs


@pytest.mark.parametrize(
    "choose", [select.kind, select.first, select.last, lambda k: select.between(0, 1, k)]
)
@pytest.mark.parametrize(
    ("name", "here"), [("convolution", "conv"), ("Conv2d", "conv"), ("fully_connected", "dense")]
)
def test_kinds_by_the_names_of_others(choose, name, here):
    refused(lambda: choose(name), f"{name!r}: here it is {here!r}", kind=lrpjax.RuleError)


def test_kinds_are_texts():
    refused(lambda: select.kind(["conv"]), "kinds are texts", kind=lrpjax.RuleError)


def test_a_kind_that_is_nearly_one():
    with warnings.catch_warnings(action="error"):
        composite = Composite([(select.kind("dens") & ~select.path("x/*"), rules.Epsilon())])
        refused(
            lambda: lrpjax.relevance(f, composite)(X), "'dens'", "select.kind('dense')", kind=lrpjax.RuleError
        )
    with pytest.warns(lrpjax.UnmatchedWarning):  # a name that a function of the user's may have
        lrpjax.relevance(f, Composite([(select.kind("my_kernel"), rules.Gradient())]))(X)
    with pytest.warns(lrpjax.UnmatchedWarning):  # a function that this network has not
        lrpjax.relevance(f, Composite([(select.kind("gelu"), rules.Pass())]))(X)


@pytest.mark.parametrize(
    ("text", "kind"), [("dense", "dense"), ("conv", "conv"), ("convolution", "conv"), ("relu", "relu")]
)
def test_a_kind_where_a_path_belongs(text, kind):
    composite = Composite([(text, rules.Gradient())])
    refused(lambda: lrpjax.relevance(f, composite)(X), f"select.kind({kind!r})", kind=lrpjax.RuleError)


def test_a_scope_with_the_name_of_a_kind_is_a_path():
    def g(x):
        with jax.named_scope("dense"):
            return x @ W

    zero = lrpjax.relevance(g, Composite([("dense", rules.Stop())]))(X)
    np.testing.assert_array_equal(zero, 0)


def test_a_presets_own_pair_may_match_nothing():
    mine = ("*", rules.Gradient())
    with warnings.catch_warnings(action="error"):
        lrpjax.relevance(f, composites.epsilon_gamma_box(0.0, 1.0))(X)
        lrpjax.relevance(f, Composite([mine, *composites.epsilon_gamma_box(0.0, 1.0).pairs]))(X)
        jax.tree.map(lambda leaf: leaf, Composite([*composites.epsilon_plus().pairs]))
        copied = jax.tree.map(lambda leaf: leaf, Composite([*composites.epsilon_plus().pairs]))
        lrpjax.relevance(f, copied)(X)
    with pytest.warns(lrpjax.UnmatchedWarning) as caught:
        lrpjax.relevance(f, Composite([("nowhere/*", rules.Flat()), *composites.epsilon_plus().pairs]))(X)
    assert "nowhere" in str(caught[0].message) and "ZPlus" not in str(caught[0].message)


# ------------------------------------------------------------------------------------------------------------------- names of others


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gradients.integrated_gradients(f, n_steps=50), "captum's name for what is here steps"),
        (lambda: gradients.integrated_gradients(f, baselines=0.0), "captum's name for what is here baseline"),
        (lambda: gradients.occlusion(f, patch=2, baselines=0.0), "captum's name for what is here fill"),
        (lambda: gradients.smoothgrad(f, nt_samples=5), "captum's name for what is here samples"),
        (lambda: rules.Epsilon(eps=1e-3), "here it is epsilon"),
        (lambda: rules.Gamma(0.25, stabilizer=1e-3), "zennit's name for what is here epsilon"),
        (lambda: rules.ZPlus(zero_params="bias"), "zennit's name for what is here bias=False"),
        (lambda: composites.epsilon_plus(eps=1e-3), "here it is epsilon"),
        (lambda: composites.epsilon_gamma_box(lo=0.0, high=1.0), "here it is low"),
        (lambda: lrpjax.relevance(f, argnum=1), "here it is argnums"),
        (lambda: lrpjax.relevance(f, attr_output=0), "zennit's name for what is here target"),
    ],
)
def test_arguments_of_others(call, said):
    refused(call, "unexpected keyword argument", said, kind=TypeError)


def test_an_argument_that_nobody_knows_is_pythons_error():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'nonsense'$"):
        rules.Epsilon(nonsense=1)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'nonsense'$"):
        composites.epsilon(nonsense=1)


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (composites, "EpsilonPlus", "zennit's name for what is here composites.epsilon_plus()"),
        (rules, "EpsilonRule", "captum's name for what is here rules.Epsilon()"),
        (rules, "EpsilonPlus", "composites.epsilon_plus()"),
        (gradients, "IntegratedGradients", "gradients.integrated_gradients(f)"),
        (lrpjax, "LRP", "captum's name for what is here relevance(f, composite)"),
        (lrpjax, "EpsilonPlus", "composites.epsilon_plus()"),
    ],
)
def test_names_of_others(module, name, said):
    refused(lambda: getattr(module, name), f"no attribute {name!r}", said, kind=AttributeError)
    assert not hasattr(module, "nonsense")


def test_every_hint_names_what_exists():
    """What the tables advise is there, and what they explain is not."""
    from lrpjax import _hints

    names = {
        "composites": composites,
        "rules": rules,
        "gradients": gradients,
        "select": select,
        **vars(lrpjax),
    }
    for module, table in _hints.NAMES.items():
        for name, hint in table.items():
            assert not hasattr(__import__(module, fromlist=["_"]), name)
            owner, _, rest = hint.here.partition("(")[0].partition(".")
            assert not rest or callable(getattr(names[owner], rest)), hint
            assert rest or callable(names[owner]), hint
    from lrpjax.core.kinds import KINDS
    from lrpjax.core.recognise.formulas import KNOWN

    for name, kind in _hints.KINDS.items():
        assert kind in {*KINDS, *KNOWN, "max_pool", "avg_pool"} and name not in KINDS, name


def test_alpha_and_beta():
    refused(
        lambda: rules.AlphaBeta(2, -1), "alpha - beta must be 1", "AlphaBeta(2, 1)", kind=lrpjax.RuleError
    )


def test_the_first_lines_say_that_params_are_explained():
    assert "model.apply" in "\n".join(lrpjax.relevance.__doc__.splitlines()[:8])


# ----------------------------------------------------------------------------------------------------------------------------- modules


@pytest.mark.parametrize("name", ["viz", "bow", "demo", "pretrained", "estimators"])
def test_a_module_is_there_without_an_import_of_its_own(name):
    code = f"import lrpjax; lrpjax.{name}; assert {name!r} in dir(lrpjax); import lrpjax.{name} as m; assert m is lrpjax.{name}"
    subprocess.run([sys.executable, "-c", code], check=True)
