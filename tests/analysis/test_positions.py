"""Relevance of positions against the program that AttnLRP freezes, written out, and against what is left of the output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import composites
from lrpjax.analysis.positions import PositionError

T, D, V = 5, 6, 4
EXACT = composites.attnlrp(0.0)
IDS = jnp.array([2, 0, 1, 1, 3])


@pytest.fixture
def rng():
    return np.random.default_rng(4)


@pytest.fixture
def params(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    return {
        "embed": normal(V, D),
        "places": normal(T, D),
        "layers": {w: normal(2, D, D) for w in "qkv"},
        "out": normal(D, V),
    }


@jax.custom_vjp
def half(x):
    return x


half.defvjp(lambda x: (x, None), lambda _, g: (g / 2,))


def angles():
    theta = jnp.arange(T, dtype=float)[:, None] * 10.0 ** -jnp.arange(D // 2, dtype=float)
    return jnp.tile(jnp.cos(theta), (1, 2)), jnp.tile(jnp.sin(theta), (1, 2))


def rotated(x, cos, sin, split=lambda a: a):
    turned = jnp.concatenate([-x[:, D // 2 :], x[:, : D // 2]], -1)
    return split(x * cos) + split(turned * sin)


def rotary(params, e, cos, sin, split=lambda a: a):
    x = e
    for i in range(2):
        q, k, v = (x @ params["layers"][w][i] for w in "qkv")
        q, k = rotated(q, cos, sin, split), rotated(k, cos, sin, split)
        x = x + split(jax.nn.softmax(split(q @ k.T) / 3.0) @ v)
    return x @ params["out"]


def tagged(params, ids):
    cos, sin = angles()
    return rotary(
        params, lrpjax.tag(params["embed"][ids], "tokens"), lrpjax.tag(cos, "cos"), lrpjax.tag(sin, "sin")
    )


def test_rotations_take_half_of_every_product(params):
    """As LXT's uniform rule for q cos and q' sin (Bakish et al. 2025): values times derivatives with every product halved."""
    found = lrpjax.positions.relevance(
        functools.partial(tagged, params), EXACT, tokens="tokens", positions=["cos", "sin"], target=1
    )(IDS)
    e, (cos, sin) = params["embed"][IDS], angles()
    slopes = jax.grad(lambda *a: rotary(params, *a, half)[:, 1].sum(), argnums=(0, 1, 2))(e, cos, sin)
    close(found.tokens, (e * slopes[0]).sum(-1))
    close(found.positions, (cos * slopes[1] + sin * slopes[2]).sum(-1))
    close(found.values["cos"], cos * slopes[1])
    close(found.together, found.tokens + found.positions)


def test_without_a_name_the_queries_take_all(params):
    f = functools.partial(tagged, params)
    e, (cos, sin) = params["embed"][IDS], angles()
    split = lambda a: a

    def program(e):
        x = e
        for i in range(2):
            q, k, v = (x @ params["layers"][w][i] for w in "qkv")
            q, k = rotated(q, cos, sin, split), rotated(k, cos, sin, split)
            x = x + half(jax.nn.softmax(half(q @ k.T) / 3.0) @ v)
        return (x @ params["out"])[:, 1].sum()

    close(lrpjax.relevance(f, EXACT, target=1, at="tokens")(IDS), e * jax.grad(program)(e))


@pytest.mark.parametrize("sinusoidal", [False, True])
def test_added_positions_take_their_share_of_the_sum(params, sinusoidal):
    places = jnp.concatenate(angles(), -1)[:, :D] if sinusoidal else params["places"]

    def f(ids):
        x = lrpjax.tag(params["embed"][ids], "tokens") + lrpjax.tag(places, "places")
        weights = lax.stop_gradient(jax.nn.softmax(x @ x.T))
        return (x + weights @ (x @ params["layers"]["v"][0])) @ params["out"]

    found = lrpjax.positions.relevance(f, EXACT, tokens="tokens", positions="places", target=2)(IDS)
    both = lrpjax.relevance(lambda x: f_of(params, x), EXACT, target=2)(params["embed"][IDS] + places)
    share = places / (params["embed"][IDS] + places)
    close(found.values["places"], both * share)
    close(found.tokens, (both * (1 - share)).sum(-1))
    close(found.together.sum(), f(IDS)[:, 2].sum())


def f_of(params, x):
    weights = lax.stop_gradient(jax.nn.softmax(x @ x.T))
    return (x + weights @ (x @ params["layers"]["v"][0])) @ params["out"]


def test_scanned_layers_that_rotate(params):
    """The relevance of what all layers read is that of all of them; named inside of a loop it has the steps first."""

    def f(ids, name):
        cos, sin = angles()
        outer = lrpjax.tag if name == "outside" else lambda a, _: a
        inner = lrpjax.tag if name == "inside" else lambda a, _: a
        cos, sin = outer(cos, "cos"), outer(sin, "sin")

        def step(x, p):
            q, k, v = (x @ p[w] for w in "qkv")
            turn = inner(cos, "cos"), inner(sin, "sin")
            q, k = rotated(q, *turn), rotated(k, *turn)
            return x + jax.nn.softmax(q @ k.T / 3.0) @ v, None

        x = lrpjax.tag(params["embed"][ids], "tokens")
        return lax.scan(step, x, params["layers"])[0] @ params["out"]

    wanted = lrpjax.positions.relevance(
        functools.partial(tagged, params), EXACT, tokens="tokens", positions=["cos", "sin"], target=1
    )(IDS)
    explain = lambda name, axis: lrpjax.positions.relevance(
        functools.partial(f, name=name), EXACT, tokens="tokens", positions=["cos", "sin"], axis=axis, target=1
    )
    for found in (
        explain("outside", 0)(IDS),
        explain("inside", {"cos": 1, "sin": 1})(IDS),
        jax.jit(explain("outside", 0))(IDS),
    ):
        close(found.tokens, wanted.tokens), close(found.positions, wanted.positions)


def test_axes_that_do_not_fit(params):
    f = functools.partial(tagged, params)
    with pytest.raises(PositionError, match="no axis 5"):
        lrpjax.positions.relevance(f, tokens="tokens", positions="cos", axis=5)(IDS)
    with pytest.raises(PositionError, match="axis 1 has 6 positions, but the tokens have 5"):
        lrpjax.positions.relevance(f, tokens="tokens", positions="cos", axis={"cos": 1})(IDS)
