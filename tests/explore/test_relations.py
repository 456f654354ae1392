"""The attribution graph against conditional relevance, channel by channel, and its sums."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close

import lrpjax
from lrpjax import composites, concepts, explore
from lrpjax.explore import ExploreError

EXACT = composites.epsilon(0.0)


@pytest.fixture
def chain():
    """Convolutions without biases, with the channels `low` (4), `mid` (5) and `high` (6)."""
    rng = np.random.default_rng(3)
    kernels = [jnp.asarray(rng.normal(size=s)) for s in ((3, 2, 4), (3, 4, 5), (3, 5, 6))]
    v = jnp.asarray(rng.normal(size=(6, 3)))

    def f(x):
        for name, kernel in zip(("low", "mid", "high"), kernels, strict=True):
            x = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
            x = lrpjax.tag(jax.nn.relu(x), name)
        return x.mean(1) @ v

    return f, jnp.asarray(rng.normal(size=(1, 7, 2)))


def matrix(found, sources, targets):
    """R(source | target) of the graph, [sources, targets] with 0 for channels that are no nodes."""
    edges = {(s, t): w for s, t, w in found.edges()}
    name = lambda path, i: f"{path[0]}[{i}]"
    return np.array(
        [
            [edges.get((name(sources, i), name(targets, j)), 0.0) for j in range(targets[1])]
            for i in range(sources[1])
        ]
    )


def test_edges_are_conditional_relevances(chain):
    f, x = chain
    found = explore.attribution_graph(f, EXACT, x, target=1, at=["high", "mid", "low"], concepts=None)
    for lower, upper in ((("low", 4), ("mid", 5)), (("mid", 5), ("high", 6))):
        given = lambda j, lower=lower, upper=upper: concepts.channel_relevance(
            f, EXACT, at=lower[0], conditions={upper[0]: j}, target=1
        )(x)[0]
        close(matrix(found, lower, upper), jax.vmap(given)(jnp.arange(upper[1])).T)
    assert {(s.split("[")[0], t.split("[")[0]) for s, t, _ in found.edges()} == {
        ("input", "low"),
        ("low", "mid"),
        ("mid", "high"),
        ("high", "output"),
    }


def test_all_channels_add_up(chain):
    f, x = chain
    found = explore.attribution_graph(f, EXACT, x, target=1, at=["low", "mid", "high"], concepts=None)
    R = concepts.channel_relevance(f, EXACT, at=["low", "mid", "high"], target=1)(x)
    low, mid, high = (np.asarray(R[name][0]) for name in ("low", "mid", "high"))
    close(matrix(found, ("low", 4), ("mid", 5)).sum(1), low)
    close(matrix(found, ("low", 4), ("mid", 5)).sum(0), mid)
    close(matrix(found, ("mid", 5), ("high", 6)).sum(1), mid)
    close(matrix(found, ("mid", 5), ("high", 6)).sum(0), high)
    close(high.sum(), f(x)[0, 1])
    close(found.remainder, np.zeros(len(found.nodes)))


def test_the_most_relevant_channels_are_kept(chain):
    f, x = chain
    whole = explore.attribution_graph(f, EXACT, x, at=["mid", "low"], concepts=None)
    found = explore.attribution_graph(f, EXACT, x, at=["mid", "low"], concepts=2)
    R = concepts.channel_relevance(f, EXACT, at=["low", "mid"], target="max")(x)
    for name in ("low", "mid"):
        mine = [node.index[0] for node in found.nodes if node.path == name]
        assert sorted(mine) == sorted(np.argsort(-np.abs(R[name][0]))[:2].tolist())
    edges = {(s, t): w for s, t, w in whole.edges()}
    assert found.edges() and all(abs(edges[s, t] - w) < 1e-9 for s, t, w in found.edges())


def test_channels_first_and_skips(chain):
    rng = np.random.default_rng(5)
    w = jnp.asarray(rng.normal(size=(4, 4)))

    def f(x):  # [B, channels, places]
        h = lrpjax.tag(x, "low")
        return lrpjax.tag(h + jnp.einsum("bcp,cd->bdp", lrpjax.tag(2.0 * h, "mid"), w), "high").sum(2)

    x = jnp.asarray(rng.normal(size=(1, 4, 3)))
    found = explore.attribution_graph(
        f, EXACT, x, target=2, at=["low", "mid", "high"], concepts=None, channel_axis=1
    )
    into = matrix(found, ("low", 4), ("mid", 4)).sum(1) + matrix(found, ("low", 4), ("high", 4)).sum(1)
    R = concepts.channel_relevance(f, EXACT, at="low", target=2, channel_axis=1)(x)[0]
    close(into, R)  # what skips the middle is an edge of its own, so nothing counts twice
    assert np.abs(matrix(found, ("low", 4), ("high", 4))).max() > 0


def test_it_is_drawn_and_handed_on(chain):
    f, x = chain
    found = explore.attribution_graph(f, EXACT, x, at=["high", "mid"], concepts=3)
    written = found.to_json()
    assert len(written["nodes"]) == len(found.nodes) and len(written["links"]) == len(found.edges()) > 0
    if importlib.util.find_spec("networkx"):
        assert set(found.to_networkx().nodes) == {node.name for node in found.nodes}
    pytest.importorskip("matplotlib")
    figure = lrpjax.viz.circuit(found)
    assert figure.axes
    figure.clear()


def test_what_does_not_fit(chain):
    f, x = chain
    with pytest.raises(ExploreError, match="no axis 3 for channels"):
        explore.attribution_graph(f, EXACT, x, at="mid", channel_axis=3)
    with pytest.raises(lrpjax.circuits.GraphError, match="at_most must be at least 1"):
        explore.attribution_graph(f, EXACT, x, at="mid", concepts=0)
