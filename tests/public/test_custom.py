"""Functions with a relevance of their own, and tagged values: as they are, and under the transforms of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import composites, rules

RNG = np.random.default_rng(4)
W, V = RNG.normal(size=(3, 4)), RNG.normal(size=(4, 2))
X = jnp.asarray(RNG.normal(size=(3,)))


def uniform():
    """x ↦ x², whose relevance is shared evenly: no rule of lrpjax gives that."""

    @lrpjax.custom_relevance
    def square(x):
        return x * x

    square.defrelevance(lambda x: (x * x, x), lambda x, R: (jnp.full_like(x, R.mean()),))
    return square


LIFT = {
    "plain": lambda g: g,
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "scan": lambda g: lambda x: lax.scan(lambda c, _: (g(c), None), x, length=1)[0],
    "cond": lambda g: lambda x: lax.cond(x.sum() < 99.0, g, lambda x: x, x),
}


@pytest.mark.parametrize("lift", LIFT)
def test_own_relevance_replaces_that_of_the_body(lift):
    g = LIFT[lift](uniform())
    f = lambda x: g(x @ W) @ V
    h = X @ W
    above = h**2 * (V @ np.ones(2))  # ε = 0 in the layer above: y_j / y_j = 1
    wanted = X * (W @ (above.sum() / 4 / h))
    close(lrpjax.relevance(f, composites.epsilon(0.0))(X), wanted)
    close(jax.jit(lrpjax.relevance(f, composites.epsilon(0.0)))(X), wanted)


def test_to_everything_else_it_is_the_function_itself():
    g = uniform()
    close(g(X), X * X)
    close(jax.jit(jax.vmap(g))(jnp.stack([X, 2 * X])), jnp.stack([X * X, 4 * X * X]))
    close(jax.grad(lambda x: g(x).sum())(X), 2 * X)
    close(jax.jvp(g, (X,), (jnp.ones(3),))[1], 2 * X)


def test_vmap_inside_and_outside_keep_examples_apart():
    g, xs = uniform(), jnp.stack([X, 2 * X, -X])
    explain = lrpjax.relevance(lambda x: g(x) * 3.0)
    wanted = jnp.stack([jnp.full(3, 3.0 * (x * x).mean()) for x in xs])
    close(jax.vmap(explain)(xs), wanted)
    close(lrpjax.relevance(lambda xs: jax.vmap(g)(xs) * 3.0)(xs), wanted)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (rules.Pass(), lambda x, R: R),
        (rules.Gradient(), lambda x, R: 3 * x**2 * R),
        (rules.Epsilon(0.0), lambda x, R: 3 * R),
        (rules.Epsilon(0.5), lambda x, R: 3 * x**3 * R / (x**3 + 0.5 * np.sign(x))),
        (rules.Stop(), lambda x, R: 0 * R),
    ],
    ids=lambda p: None if callable(p) else str(p),
)
def test_rules_for_a_function_as_a_whole(rule, wanted):
    cube = lrpjax.custom_relevance(lambda x: x**3, rule=rule)
    R = RNG.normal(size=3)
    close(lrpjax.relevance(lambda x: cube(x), target=R)(X), wanted(X, R))


def test_several_arguments_pytrees_and_captured_arrays():
    scale = jnp.asarray(RNG.normal(size=3))

    @lrpjax.custom_relevance
    def mix(tree, c):
        return {"sum": tree["a"] + scale * tree["b"][0], "product": tree["a"] * c}

    def bwd(_, R):
        return {"a": R["sum"], "b": [R["product"]]}, 0 * R["sum"]

    mix.defrelevance(lambda tree, c: (mix.f(tree, c), None), bwd)
    tree = {"a": X, "b": [2 * X]}
    found = lrpjax.relevance(lambda tree, c: mix(tree, c), argnums=(0, 1))(tree, X)
    close(found, ({"a": X + scale * 2 * X, "b": [X * X]}, 0 * X))


def test_plan_shows_it():
    plan = lrpjax.plan(lambda x: uniform()(x @ W) @ V, None, X)
    assert [(u.kind, u.name, u.rule) for u in plan][1] == ("custom", "square", "its own")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lrpjax.custom_relevance(jnp.sin, rule=rules.Flat()), lrpjax.RuleError, "but was given Flat"),
        (
            lambda: lrpjax.relevance(lrpjax.custom_relevance(lambda x: x * 2.0))(X),
            lrpjax.UnsupportedError,
            "give it a rule, .* or forward and backward functions by defrelevance",
        ),
        (
            lambda: lrpjax.relevance(lrpjax.custom_relevance(lambda x: x.sum(), rule=rules.Pass()))(X),
            lrpjax.RuleError,
            "must map one array to one array of the same shape",
        ),
    ],
)
def test_bad_use(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_backward_function_of_another_structure():
    g = lrpjax.custom_relevance(lambda x: x * 2.0)
    g.defrelevance(lambda x: (x * 2.0, None), lambda _, R: {"x": R})
    with pytest.raises(lrpjax.RuleError, match=r"bwd returned .* but the arguments are"):
        lrpjax.relevance(lambda x: g(x))(X)


def test_tagged_values_are_explained_by_name():
    """The last of a name counts; a tag changes nothing else."""

    def f(x, tag=lrpjax.tag):
        h = tag(jax.nn.relu(x @ W), "hidden")
        return tag(h * 2.0, "hidden") @ V

    plain = functools.partial(f, tag=lambda x, name: x)
    h = jax.nn.relu(X @ W) * 2.0
    close(lrpjax.relevance(f, at="hidden")(X), lrpjax.relevance(lambda h: h @ V)(h))
    close(lrpjax.relevance(f)(X), lrpjax.relevance(plain)(X))
    kinds = [[u.kind for u in lrpjax.plan(g, None, X)] for g in (f, plain)]
    assert kinds[0] == kinds[1]
