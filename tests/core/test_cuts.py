"""Ways of relevance that integers, comparisons and indices cut: an error where all are, a warning where some are, and
neither where they only choose. Held against relevance by hand, and against which of them a reader would expect."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import rules, select

rng = np.random.default_rng(3)
W, TABLE, EXPERTS = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (4, 3), (3, 4, 2)))
X, TOKENS = (jnp.asarray(rng.normal(size=s)) for s in ((4,), (5, 4)))


@pytest.fixture(autouse=True)
def promotion():
    """Integers and predicates are mixed with numbers here as people mix them."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def counted(x):
    """A loop that counts what is positive."""
    return jax.lax.scan(lambda n, e: (n + (e > 0), None), 0, x)[0].astype(x.dtype)


def counted_as_numbers(x):
    return jax.lax.scan(lambda n, e: (n + (e > 0).astype(n.dtype), None), 0.0, x)[0]


def doubled_until(x):
    return jax.lax.while_loop(lambda c: c[0] < x.sum() + 5.0, lambda c: (c[0] + 1.0, c[1] * 2), (0.0, 1.0))[1]


@jax.custom_vjp
def spike(x):
    return (x > 0).astype(x.dtype)


spike.defvjp(lambda x: (spike(x), x), lambda x, c: (c / (1 + abs(x)) ** 2,))

CUT = {
    "table[argmax]": (lambda x: TABLE[jnp.argmax(x)], "argmax"),
    "take(argmin)": (lambda x: jnp.take(TABLE, jnp.argmin(x), axis=0), "argmin"),
    "count": (lambda x: (x > 0).astype(x.dtype).sum(), "gt"),
    "count of ints": (lambda x: jnp.sum(x > 0) * 1.5, "gt"),
    "where": (lambda x: jnp.where(x >= 0, 1.0, 0.0) @ W, "ge"),
    "rounded": (lambda x: (x * 10).round().astype(int).astype(x.dtype) @ W, "convert_element_type"),
    "bits": (lambda x: (x.view(jnp.int64) >> 3).view(x.dtype).sum(), "bitcast_convert_type"),
    "sign bit": (lambda x: jnp.signbit(x).astype(x.dtype), "bitcast_convert_type"),
    "searchsorted": (lambda x: jnp.searchsorted(jnp.arange(4.0), x).astype(x.dtype), r"\w"),
    "digitize": (lambda x: jnp.arange(5.0)[jnp.digitize(x, jnp.arange(4.0))], r"\w"),
    "one_hot": (lambda x: jax.nn.one_hot(jnp.argmax(x), 4) @ W, "argmax"),
    "order": (lambda x: jnp.argsort(x).astype(x.dtype) @ W, "sort"),
    "places of top_k": (lambda x: jax.lax.top_k(x, 2)[1].astype(x.dtype), "top_k"),
    "branch": (lambda x: jax.lax.cond(x.sum() > 0, lambda: 1.0, lambda: 0.0), "gt"),
    "loop over integers": (counted, "gt"),
    "loop over numbers": (counted_as_numbers, "gt"),
    "condition": (doubled_until, "while"),
}
PARTLY = {
    "sum": (lambda x: (x @ W).sum() + TABLE[jnp.argmax(x)].sum(), "argmax"),
    "scaled": (
        lambda x: abs(x).max() * ((x * 9).astype(jnp.int8).astype(x.dtype) @ W),
        "convert_element_type",
    ),
    "inside a loop": (
        lambda x: jax.lax.scan(lambda c, e: (c + e + (x.sum() > e) * 1.0, None), 0.0, x)[0],
        "gt",
    ),
    "concatenated": (lambda x: jnp.concatenate([x, jax.nn.one_hot(jnp.argmax(x), 2)]), "argmax"),
    "chosen": (lambda x: jnp.where(x > 0, x, jnp.where(x.sum() > 1, 1.0, 2.0)), "gt"),
    "branch": (lambda x: jax.lax.cond(x[0] > 0, lambda: x.sum(), lambda: jnp.argmax(x) * 1.0), "argmax"),
    "places that count": (lambda x: jnp.argmax(x).astype(x.dtype) * x, "argmax"),
    "scattered": (lambda x: x.at[0].add((x > 0).sum().astype(x.dtype)), "gt"),
    "two outputs": (lambda x: {"sum": x.sum(), "positive": (x > 0).astype(x.dtype)}, "gt"),
}


def routed(x):
    """A mixture of experts that takes the best two by their indices."""
    weights, chosen = jax.lax.top_k(jax.nn.softmax(x @ W), 2)
    return weights @ jnp.tanh(jnp.einsum("d,edf->ef", x, EXPERTS[chosen]))


def dispatched(x):
    """A mixture of experts by products with one-hot masks, with a capacity."""
    gates = jax.nn.softmax(x @ W)
    mask = jax.nn.one_hot(jnp.argmax(gates, -1), 3)
    place = jnp.cumsum(mask, 0) * mask
    mask = mask * (place <= 2)
    dispatch = mask[..., None] * jax.nn.one_hot((place.sum(-1) - 1).astype(int), 2)[:, None]
    inside = jnp.tanh(jnp.einsum("ecd,edf->ecf", jnp.einsum("tec,td->ecd", dispatch, x), EXPERTS))
    return jnp.einsum("tec,ecf->tf", dispatch * (gates * mask).sum(-1)[:, None, None], inside)


def straight_through(x):
    return (x + jax.lax.stop_gradient((x * 4).round().astype(int) / 4 - x)) @ W


CHOOSING = {
    "where": (lambda x: jnp.where(x > 0, x, 0), X),
    "where(w, a, b)": (lambda x: jnp.where(x[:3] > 0, x @ W, 2 * (x @ W)), X),
    "x (x > 0)": (lambda x: x * (x > 0), X),
    "mask": (lambda x: (x @ W) * (x[:3] > 0).astype(x.dtype), X),
    "gather": (lambda x: (x @ W)[jnp.argmax(x[:3])], X),
    "take_along_axis": (lambda x: jnp.take_along_axis(x, jnp.argmax(x, -1)[:, None], -1), TOKENS),
    "dynamic_slice": (lambda x: jax.lax.dynamic_slice(x, (jnp.argmax(x[:2]),), (2,)), X),
    "sort": (lambda x: jnp.sort(x) @ W, X),
    "argsort": (lambda x: x[jnp.argsort(x)] @ W, X),
    "scattered": (lambda x: jnp.zeros(4).at[jnp.argsort(x)].set(x) @ W, X),
    "branch": (lambda x: jax.lax.cond(x.sum() > 0, lambda: x @ W, lambda: 2 * (x @ W)), X),
    "branch of each": (
        lambda x: jax.vmap(lambda x: jax.lax.cond(x[0] > 0, jnp.sin, lambda x: x, x))(x),
        TOKENS,
    ),
    "kernel": (lambda x: x @ jnp.stack([W, 2 * W])[(x.sum() > 0).astype(int)], X),
    "mixture": (routed, X),
    "mixture by masks": (dispatched, TOKENS),
    "straight through": (straight_through, X),
    "mean of some": (lambda x: (x * (x > 0)).sum() / (x > 0).sum(), X),
    "mean of some, by a mask": (lambda x: (lambda m: (x * m).sum() / m.sum())(x > 0), X),
    "nanmean": (jnp.nanmean, X),
    "median": (jnp.median, X),
    "masked softmax": (lambda x: jax.nn.softmax(jnp.where(x > 0, x, -1e30)) @ W, X),
    "step within an activation": (lambda x: x + (x > 0), X),
    "detached": (lambda x: x.sum() + (jax.lax.stop_gradient(x) > 0).astype(x.dtype).sum(), X),
}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.checkpoint], ids=["bare", "jit", "remat"])
@pytest.mark.parametrize("name", CUT)
def test_an_output_that_depends_along_integers_only_is_an_error(name, transform):
    f, node = CUT[name]
    with pytest.raises(
        lrpjax.UnsupportedError, match=rf"only along what carries no relevance.*\n  {node}"
    ) as error:
        lrpjax.relevance(transform(f))(X)
    assert "test_cuts.py" in str(error.value) and "at=" in str(error.value)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["bare", "jit"])
@pytest.mark.parametrize("name", PARTLY)
def test_a_part_that_is_cut_is_a_warning_and_a_note(name, transform):
    f, node = PARTLY[name]
    with pytest.warns(lrpjax.CutWarning, match=rf"made by.*{node} in .*test_cuts.py") as record:
        R = lrpjax.relevance(transform(f))(X)
    assert len(record) == 1 and np.all(np.isfinite(R)) and np.any(R)
    notes = lrpjax.plan(transform(f), None, X).notes
    assert len(notes) >= 1 and any(note.startswith(f"cut: {node} in") for note in notes)
    assert all(note in str(lrpjax.plan(f, None, X)) for note in lrpjax.plan(f, None, X).notes)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["bare", "jit"])
@pytest.mark.parametrize("name", CHOOSING)
def test_what_only_chooses_is_no_cut(name, transform):
    f, x = CHOOSING[name]
    assert np.all(np.isfinite(lrpjax.relevance(transform(f))(x)))
    assert lrpjax.plan(transform(f), None, x).notes == []


def test_surrogates_are_explained_by_their_own_derivative():
    with pytest.raises(
        lrpjax.UnsupportedError, match=r"spike .*comes back from integers.*select\.kind\('call'\)"
    ):
        lrpjax.relevance(lambda x: spike(x) @ W)(X)
    own = lrpjax.Composite([(select.kind("call"), rules.Gradient())])
    assert np.any(lrpjax.relevance(lambda x: spike(x) @ W, own)(X))


def test_a_function_of_something_else_still_gives_zeros():
    for f in (lambda x: W.sum(), lambda x: jax.lax.stop_gradient(x).astype(int) * 1.0):
        close(lrpjax.relevance(f)(X), np.zeros(4))


def test_what_a_rule_stops_is_no_cut():
    stopped = lrpjax.Composite([(select.kind("dense"), rules.Stop())])
    f = lambda x: (x @ W)[jnp.argmax(x)]
    close(lrpjax.relevance(f, stopped)(X), np.zeros(4))
    (note,) = lrpjax.plan(f, stopped, X).notes
    assert re.fullmatch(r"nothing arrives: Stop\(\) for dense in .*test_cuts.py:\d+ .*", note)
    assert lrpjax.plan(lambda x: f(x) + x.sum(), stopped, X).notes == []


@pytest.mark.parametrize("composite", [lrpjax.composites.gradient(), lrpjax.composites.input_x_gradient()])
def test_zeros_are_the_true_derivative(composite):
    with pytest.warns(lrpjax.CutWarning, match="argmax"):
        close(lrpjax.relevance(CUT["table[argmax]"][0], composite)(X), np.zeros(4))


def test_the_advice_works():
    def f(x):
        return jnp.tanh(lrpjax.tag(TABLE[jnp.argmax(x)], "row")) @ W.T

    with pytest.raises(lrpjax.UnsupportedError, match="at="):
        lrpjax.relevance(f)(X)
    R = lrpjax.relevance(f, at="row")(X)
    row = TABLE[np.argmax(X)]
    close(R, lrpjax.relevance(lambda r: jnp.tanh(r) @ W.T)(row))
    rounded = lambda x: x.astype(int).astype(x.dtype) @ W
    with pytest.raises(lrpjax.UnsupportedError, match="custom_relevance"):
        lrpjax.relevance(rounded)(5 * X)
    own = lrpjax.custom_relevance(lambda x: x.astype(int).astype(x.dtype), rule=rules.Pass())
    in_floats = lambda x: jnp.trunc(x) @ W
    for mended in (lambda x: own(x) @ W, in_floats):
        close(lrpjax.relevance(mended)(5 * X), lrpjax.relevance(lambda q: q @ W)(np.trunc(5 * X)))


def test_at_looks_at_what_stands_behind_it():
    """Before the named value a way may be cut; behind it, all of them may be, though others lead to the input."""

    def f(x):
        looked_up = lrpjax.tag(TABLE[jnp.argmax(x)] + x[:3], "sum")
        return x[:3] + looked_up

    lrpjax.relevance(f, at="sum")(X)
    assert lrpjax.plan(f, None, X, at="sum").notes == [] and lrpjax.plan(f, None, X).notes

    def g(x):
        return x[:3] + (lrpjax.tag(x[:3] * 2, "sum") > 0).astype(x.dtype)

    with pytest.raises(lrpjax.UnsupportedError, match="gt in"):
        lrpjax.relevance(g, at="sum")(X)


def test_auxiliary_data_may_be_anything():
    f = lambda x: (x.sum(), jnp.argmax(x) * 1.0)
    R, aux = lrpjax.relevance(f, has_aux=True)(X)
    close(R, X, 1e-5)
    assert aux == np.argmax(X)


def test_which_part_of_several_arguments_is_cut():
    """Relevance reaches one of the arguments: that it does not reach the other is a warning."""
    f = lambda x, y: x.sum() + (y > 0).sum()
    with pytest.warns(lrpjax.CutWarning, match="gt"):
        R, none = lrpjax.relevance(f, argnums=(0, 1))(X, X)
    close(R, X, 1e-5)
    close(none, np.zeros(4))
