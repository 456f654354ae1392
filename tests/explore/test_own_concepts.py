"""Directions, subspaces and features as named values: against the formula of the virtual layer, and by what adds up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import circuits, composites, concepts, explore
from lrpjax.errors import PathError, TargetError
from lrpjax.explore import ExploreError

D = 6
EXACT = composites.epsilon(0.0)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def net(rng):
    w, v = (jnp.asarray(rng.normal(size=shape)) for shape in ((4, D), (D, 3)))

    def f(x):
        with jax.named_scope("hidden"):
            h = jax.nn.relu(x @ w)
        return jnp.tanh(h).sum(1) @ v if h.ndim == 3 else jnp.tanh(h) @ v

    return f


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(2, 5, 4)))


def orthonormal(rng, k):
    return np.linalg.qr(rng.normal(size=(D, D)))[0][:, :k]


def value_and_coefficient(f, x):
    """Channels that are exactly 0 have no relevance, and hand none to concepts."""
    lin = lrpjax.linearise(f, EXACT, x, at="hidden")
    h = lin.values["hidden"]
    return h, jnp.where(h == 0, 0.0, lin.coefficients(1)["hidden"])


@pytest.mark.parametrize("k", [1, 3, D])
def test_orthonormal_directions_are_the_virtual_layer(net, x, rng, k):
    U = orthonormal(rng, k)
    g = explore.with_concepts(net, {"hidden": explore.Directions(U)})
    close(g(x), net(x))
    h, c = value_and_coefficient(net, x)
    R = lrpjax.relevance(g, EXACT, target=1, at=["hidden", "hidden/concepts", "hidden/concepts/error"])(x)
    close(R["hidden/concepts"], (h @ U) * (c @ U))
    close(R["hidden/concepts/error"], (h - h @ U @ U.T) * c)
    whole = lrpjax.relevance(net, EXACT, target=1, at="hidden")(x)
    close(R["hidden/concepts"].sum(-1) + R["hidden/concepts/error"].sum(-1), whole.sum(-1))


def test_unit_directions_are_the_channels(net, x):
    g = explore.with_concepts(net, {"hidden": explore.Directions(np.eye(D))})
    for target in (0, 2):
        close(
            lrpjax.relevance(g, EXACT, target=target, at="hidden/concepts")(x),
            lrpjax.relevance(net, EXACT, target=target, at="hidden")(x),
        )
        close(
            concepts.relevance(g, EXACT, {"hidden/concepts": 3}, target=target)(x),
            concepts.relevance(net, EXACT, {"hidden": 3}, target=target)(x),
        )


def test_directions_that_are_not_orthogonal_are_decoded_by_the_pseudo_inverse(net, x, rng):
    V = rng.normal(size=(D, 3))
    g = explore.with_concepts(net, {"hidden": explore.Directions(V)})
    h, c = value_and_coefficient(net, x)
    P = V @ np.linalg.inv(V.T @ V)
    R = lrpjax.relevance(g, EXACT, target=1, at=["hidden/concepts", "hidden/concepts/error"])(x)
    close(R["hidden/concepts"], (h @ V) * (c @ P))
    close(R["hidden/concepts"].sum(-1) + R["hidden/concepts/error"].sum(-1), (h * c).sum(-1))


def test_conditions_sum_to_what_the_concepts_have(net, x, rng):
    U = orthonormal(rng, 4)
    g = explore.with_concepts(net, {"hidden": explore.Directions(U)}, "mine")
    each = jax.vmap(lambda k: concepts.relevance(g, EXACT, {"hidden/mine": k}, target=1)(x))(jnp.arange(4))
    by_concept = concepts.channel_relevance(g, EXACT, at="hidden/mine", target=1)(x)
    close(each.sum((2, 3)).T, by_concept)


@pytest.mark.parametrize("axis", [-1, 1, -3])
def test_subspaces_sum_their_directions(rng, axis):
    U = orthonormal(rng, 5)
    sizes = [U[:, :2], U[:, 2:5]]
    shape = (2, 3, 4, D) if axis == -1 else (2, D, 3, 4)
    h = jnp.asarray(rng.normal(size=shape))
    c = jnp.asarray(rng.normal(size=shape))
    f = lambda h: (lrpjax.tag(h, "h") * c).sum((1, 2, 3))
    g = explore.with_concepts(f, {"h": explore.Subspaces(sizes, axis)})
    channel = -1 if axis == -1 else 1
    found = concepts.channel_relevance(g, EXACT, at="h/concepts", channel_axis=channel)(h)
    last = lambda a: np.moveaxis(np.asarray(a), channel, -1)
    expected = [((last(h) @ B) * (last(c) @ B)).sum((1, 2, 3)) for B in sizes]
    close(found, np.stack(expected, 1))
    close(g(h), f(h))
    one = explore.with_concepts(f, {"h": explore.Directions(U, axis)})
    by_direction = concepts.channel_relevance(one, EXACT, at="h/concepts", channel_axis=channel)(h)
    close(found, np.stack([by_direction[:, :2].sum(1), by_direction[:, 2:].sum(1)], 1))


def test_features_are_those_of_reconstructed(net, x, rng):
    w = jnp.asarray(rng.normal(size=(D, 9)))
    encode, decode = lambda h: jax.nn.relu(h @ w), lambda a: a @ w.T / 9

    written = circuits.intervene(net, {"hidden": lambda h: circuits.reconstructed(h, encode, decode, "sae")})
    g = explore.with_concepts(net, {"hidden": explore.Features(encode, decode)}, "sae")
    a = lrpjax.relevance(g, EXACT, target=0, at=["hidden/sae", "hidden/sae/error"])(x)
    b = lrpjax.relevance(written, EXACT, target=0, at=["sae", "sae/error"])(x)
    close(list(a.values()), list(b.values()))


def test_samples_and_graphs_work_on_the_new_names(net, rng):
    U = orthonormal(rng, 2)
    g = explore.with_concepts(net, {"hidden": explore.Directions(U)})
    x = jnp.asarray(rng.normal(size=(8, 4)))
    best = concepts.maximising_samples(
        g, EXACT, [x[:4], x[4:]], at="hidden/concepts", by="activation", target=0, k=3
    )
    score = lrpjax.linearise(net, EXACT, x, at="hidden").values["hidden"] @ U
    close(best.index, np.argsort(-np.asarray(score), 0)[:3].T)
    lin = lrpjax.linearise(g, EXACT, x[:1], at=["hidden/concepts", "hidden/concepts/error"])
    graph = circuits.graph(lin, 1)
    assert {n.kind for n in graph.nodes if n.path == "hidden/concepts"} == {"feature"}
    assert {n.kind for n in graph.nodes if n.path == "hidden/concepts/error"} == {"error"}
    close(
        sum(n.relevance for n in graph.nodes if n.path.startswith("hidden/concepts")), float(net(x[:1])[0, 1])
    )


def test_a_composite_can_give_the_products_rules_of_their_own(net, x, rng):
    U = orthonormal(rng, 3)
    g = explore.with_concepts(net, {"hidden": explore.Directions(U)})
    every = (lrpjax.select.kind("dense"), lrpjax.rules.ZPlus())
    own = lrpjax.Composite([("*hidden/concepts/*", lrpjax.rules.Epsilon(0.0)), every])
    units = lrpjax.plan(g, own, x).units
    mine = [str(u.rule) for u in units if "hidden/concepts/" in u.path and u.kind == "dense"]
    assert len(mine) == 2 and all("Epsilon" in rule for rule in mine)


def test_what_does_not_fit(net, x, rng):
    with pytest.raises(ExploreError, match="not linearly independent"):
        explore.Directions(np.ones((D, 2)))
    with pytest.raises(ExploreError, match="NaN or infinite"):
        explore.Directions(np.full((D, 1), np.nan))
    with pytest.raises(ExploreError, match=r"with 2 axes, but these have shape \(6,\)"):
        explore.Directions(np.ones(D))
    with pytest.raises(ExploreError, match="not orthonormal"):
        explore.Subspaces([orthonormal(rng, 2), orthonormal(rng, 2)])
    with pytest.raises(ExploreError, match="of one space"):
        explore.Subspaces([np.eye(3), np.eye(4)])
    with pytest.raises(ExploreError, match="a mapping from paths to bases"):
        explore.with_concepts(net, {})
    with pytest.raises(ExploreError, match="has no encode and decode"):
        explore.with_concepts(net, {"hidden": np.eye(D)})
    with pytest.raises(ExploreError, match="has 6 channels along axis 2, the concepts have 4"):
        explore.with_concepts(net, {"hidden": explore.Directions(np.eye(4))})(x)
    with pytest.raises(ExploreError, match="no axis 4 for channels"):
        explore.with_concepts(net, {"hidden": explore.Directions(np.eye(D), 4)})(x)
    with pytest.raises(PathError, match="nowhere"):
        explore.with_concepts(net, {"nowhere": explore.Directions(np.eye(D))})(x)
    short = explore.Features(lambda h: h, lambda z: z[..., :2])
    with pytest.raises(TargetError, match="decoded to an array of shape"):
        explore.with_concepts(net, {"hidden": short})(x)
