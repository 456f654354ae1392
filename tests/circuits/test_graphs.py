"""`lrpjax.circuits`: graphs worked out by hand, against Jacobians of the frozen program written out with `stop_gradient`,
and influence against the sum of the powers of the matrix."""

import builtins
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import circuits, composites, rules, select
from lrpjax.circuits import Graph, GraphError, Node, making
from lrpjax.errors import PathError, TargetError

EXACT = composites.epsilon(0.0)
CP = composites.cp_lrp(epsilon=0.0)
held = lax.stop_gradient

T, D, F, V = 3, 4, 7, 5


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(5)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]))
    block = lambda: {
        "qk": normal(D, D),
        "v": normal(D, D),
        "up": normal(D, 8),
        "down": normal(8, D),
        "encode": normal(D, F),
        "decode": normal(F, D),
    }
    sae = {"encode": normal(D, F), "decode": normal(F, D)}
    return {"blocks": [block(), block()], "sae": sae, "out": normal(D, V)}


@pytest.fixture(scope="module")
def x():
    return jnp.asarray(np.random.default_rng(6).normal(size=(T, D)))


def weights_of(x, p):
    return jax.nn.softmax(x @ p["qk"] @ x.T)


def encode(p):
    return lambda x: jax.nn.relu(x @ p["encode"])


def mlp(x, p):
    return jax.nn.gelu(x @ p["up"]) @ p["down"]


def model(params, x):
    """Two blocks with transcoders in place of the MLPs, and an autoencoder behind them."""
    for i, p in enumerate(params["blocks"]):
        x = x + weights_of(x, p) @ (x @ p["v"])
        x = x + circuits.transcoded(x, mlp(x, p), encode(p), lambda a, p=p: a @ p["decode"], f"mlp{i}")
    p = params["sae"]
    x = circuits.reconstructed(x, encode(p), lambda a: a @ p["decode"], "sae")
    return x[-1] @ params["out"]


def plain(params, x):
    for p in params["blocks"]:
        x = x + weights_of(x, p) @ (x @ p["v"])
        x = x + mlp(x, p)
    return x[-1] @ params["out"]


def frozen(params, x):
    """The program that CP-LRP freezes: every named value as a linear function of those before it, which are given."""
    real, parts = x, []
    for p in params["blocks"]:
        attention = held(weights_of(real, p))
        real = real + attention @ (real @ p["v"])
        gate = held((real @ p["encode"] > 0).astype(x.dtype))
        parts.append((p, attention, gate))
        real = real + mlp(real, p)
    gate = held((real @ params["sae"]["encode"] > 0).astype(x.dtype))

    def run(given):
        h, made = given["input"], {}
        for i, (p, attention, open) in enumerate(parts):
            h = h + attention @ (h @ p["v"])
            made[f"mlp{i}"] = (h @ p["encode"]) * open
            h = h + given[f"mlp{i}"] @ p["decode"] + given[f"mlp{i}/error"]
        made["sae"] = (h @ params["sae"]["encode"]) * gate
        made["output"] = (given["sae"] @ params["sae"]["decode"] + given["sae/error"])[-1] @ params["out"]
        return made

    return run


NAMES = ["mlp0", "mlp0/error", "mlp1", "mlp1/error", "sae", "sae/error"]


@pytest.fixture(scope="module")
def lin(params, x):
    return lrpjax.linearise(functools.partial(model, params), CP, x, at=NAMES)


SEED = jnp.array([0.0, 1.0, 0.0, -2.0, 0.0])
"""Two logits."""


@pytest.fixture(scope="module")
def whole(lin):
    return circuits.graph(lin, SEED * lin.output, batch=8)


def conserve(graph):
    inner = graph.where("feature", "output")
    R = np.array([node.relevance for node in graph.nodes])
    close((graph.weights.sum(1) + graph.remainder + graph.absorbed)[inner], R[inner])
    assert not graph.weights[~inner].any() and not graph.remainder[~inner].any()


# --------------------------------------------------------------------------------------------------------- features


def test_values_stay_as_they_are_and_relevance_is_kept(params, x, lin):
    close(lin.output, plain(params, x))
    R = lin.pull(1)
    ends = R.input.sum() + sum(R[name].sum() for name in NAMES if name.endswith("/error"))
    close(ends, lin.output[1])
    # What comes to the features and the error of the autoencoder, behind which nothing else is, is all of it.
    close(R["sae"].sum() + R["sae/error"].sum(), lin.output[1])
    p = params["sae"]
    slope = p["decode"] @ params["out"][:, 1]
    close(R["sae"][-1], lin.values["sae"][-1] * slope)
    close(R["sae/error"][-1], lin.values["sae/error"][-1] * params["out"][:, 1])


def test_features_that_are_decoded_together_close_over_each_other():
    w = jnp.array([[1.0, 2.0], [3.0, 1.0]])

    def f(x):
        first = lrpjax.tag(jax.nn.relu(x), "first")
        y = circuits.transcoded(x, x @ w, jax.nn.relu, lambda a: a @ w + first, "second")
        return y.sum()

    lin = lrpjax.linearise(f, EXACT, jnp.array([1.0, 2.0]), at=["first", "second", "second/error"])
    R = lin.pull()
    close(R["first"], np.array([1.0, 2.0]))
    close(R["second"], np.array([3.0, 8.0]))
    close(R["second/error"], np.array([-1.0, -2.0]))


def test_a_decoder_that_gives_another_shape_is_an_error():
    with pytest.raises(
        TargetError, match=r"'sae' are decoded to an array of shape \(3,\), but it stands for one of \(2,\)"
    ):
        circuits.reconstructed(jnp.ones(2), lambda h: h, lambda a: jnp.ones(3), "sae")


# ------------------------------------------------------------------------------------------------------------ edges


def by_hand(x):
    """x → a = relu(x W) → b = relu(a U) → y = b v + x[0]."""
    a = lrpjax.tag(jax.nn.relu(x @ jnp.array([[1.0, -1.0], [2.0, 1.0]])), "a")
    b = lrpjax.tag(jax.nn.relu(a @ jnp.array([[1.0, 1.0, -1.0], [0.0, 2.0, 0.0]])), "b")
    return b @ jnp.array([2.0, 1.0, 1.0]) + x[0]


def test_a_graph_by_hand():
    # a = [5, 1], b = [5, 7, 0], y = 10 + 7 + 1 = 18.
    lin = lrpjax.linearise(by_hand, EXACT, jnp.array([1.0, 2.0]), at=["a", "b"])
    graph = circuits.graph(lin)
    assert [(n.name, n.kind, n.layer) for n in graph.nodes] == [
        ("input[0]", "input", 0),
        ("input[1]", "input", 0),
        ("a[0]", "feature", 1),
        ("a[1]", "feature", 1),
        ("b[0]", "feature", 2),
        ("b[1]", "feature", 2),
        ("output", "output", 3),
    ]
    close([n.value for n in graph.nodes], [1, 2, 5, 1, 5, 7, 18])
    close([n.relevance for n in graph.nodes], [2, 16, 15, 2, 10, 7, 18])
    wanted = {
        ("input[0]", "a[0]"): 3,
        ("input[1]", "a[0]"): 12,
        ("input[0]", "a[1]"): -2,
        ("input[1]", "a[1]"): 4,
        ("a[0]", "b[0]"): 10,
        ("a[0]", "b[1]"): 5,
        ("a[1]", "b[1]"): 2,
        ("b[0]", "output"): 10,
        ("b[1]", "output"): 7,
        ("input[0]", "output"): 1,
    }
    assert {(s, t) for s, t, _ in graph.edges()} == set(wanted)
    for s, t, weight in graph.edges():
        close(weight, wanted[s, t])
    close(graph.absorbed, np.zeros(7))
    assert repr(graph) == "Graph(2 inputs, 4 features, 1 outputs, 10 edges)"


def test_edges_are_jacobians_of_the_frozen_program(params, x, lin, whole):
    values = {"input": x, **lin.values, "output": lin.output}
    jacobian = jax.jacrev(frozen(params, x))(values)
    close(frozen(params, x)(values), {n: values[n] for n in ("mlp0", "mlp1", "sae", "output")})
    R = lin.pull(SEED * lin.output)
    relevance = {"input": R.input, **R.at, "output": SEED * lin.output}
    count = 0
    for t, target in enumerate(whole.nodes):
        if target.kind not in ("feature", "output"):
            continue
        y, share = values[target.path][target.index], relevance[target.path][target.index]
        close(target.value, y)
        for s, source in enumerate(whole.nodes):
            if source.path == "output":
                continue
            block = jacobian[target.path][source.path][target.index][source.index]
            part = (block * values[source.path][source.index]).sum() * share / y
            close(whole.weights[t, s], part)
            count += abs(float(part)) > 1e-9
    assert count > 100


def test_edges_add_up_to_the_relevance_of_both_their_ends(lin, whole):
    conserve(whole)
    close(whole.absorbed, np.zeros(len(whole.nodes)))
    close(whole.remainder, np.zeros(len(whole.nodes)))
    below = ~whole.where("output")
    close(whole.weights.sum(0)[below], np.array([n.relevance for n in whole.nodes])[below])
    ends = whole.where("input", "error")
    close(sum(n.relevance for n, e in zip(whole.nodes, ends, strict=True) if e), (SEED * lin.output).sum())


def test_what_goes_to_elements_that_are_no_nodes_is_counted(lin, whole):
    few = circuits.graph(lin, SEED * lin.output, at_most=2)
    conserve(few)
    close(few.absorbed, np.zeros(len(few.nodes)))
    assert np.abs(few.remainder).max() > 1e-3
    for path in ("mlp0", "sae", "input"):
        own = [n for n in few.nodes if n.path == path]
        sizes = sorted((abs(n.relevance) for n in whole.nodes if n.path == path), reverse=True)
        close(sorted((abs(n.relevance) for n in own), reverse=True), sizes[:2])
    # Errors and outputs are all kept, and edges between nodes that both graphs have are the same.
    assert (
        sum(n.kind == "error" for n in few.nodes) == 3 * T and sum(n.kind == "output" for n in few.nodes) == 2
    )
    place = {n.name: i for i, n in enumerate(whole.nodes)}
    kept = [place[n.name] for n in few.nodes]
    close(few.weights, whole.weights[np.ix_(kept, kept)])


def test_a_threshold_keeps_the_fewest_nodes_of_a_share(lin, whole):
    most = circuits.graph(lin, SEED * lin.output, threshold=0.9)
    conserve(most)
    close(most.absorbed, np.zeros(len(most.nodes)))
    for path in ("mlp0", "mlp1", "sae"):
        sizes = np.sort([abs(n.relevance) for n in whole.nodes if n.path == path])[::-1]
        count = sum(n.path == path for n in most.nodes)
        assert sizes[:count].sum() >= 0.9 * sizes.sum() > sizes[: count - 1].sum()


def test_relevance_passes_through_named_values_that_are_no_nodes(lin, params, x):
    some = circuits.graph(lin, 1, nodes=["sae", "sae/error"])
    own = lrpjax.linearise(functools.partial(model, params), CP, x, at=["sae", "sae/error"])
    close(some.weights, circuits.graph(own, 1).weights)
    # Relevance that ends in errors which are no nodes is in no edge.
    conserve(some)
    assert np.abs(some.absorbed).max() > 1e-3


def test_biases_and_stabilisers_absorb():
    def f(x):
        return (lrpjax.tag(jax.nn.relu(x @ jnp.eye(2) + 1.0), "h") @ jnp.ones((2, 1)))[0]

    graph = circuits.graph(lrpjax.linearise(f, EXACT, jnp.array([1.0, 3.0]), at="h"))
    conserve(graph)
    close(graph.absorbed, np.array([0, 0, 1, 1, 0]))


def test_whole_values_are_those_of_linearised_edges(lin):
    graph = circuits.graph(lin, 3, split=None)
    assert sorted(n.name for n in graph.nodes) == sorted(["input", *NAMES, "output"])
    found = {(s, t): w for s, t, w in graph.edges()}
    edges = {k: float(v) for k, v in lin.edges(3).items() if abs(v) > 1e-12}
    assert found.keys() == edges.keys()
    for key, weight in edges.items():
        close(found[key], weight)
    close(graph.nodes[0].value, float(np.linalg.norm(lin.inputs)))


def test_axes_that_are_split_by_hand(lin, whole):
    graph = circuits.graph(lin, 1, split={"mlp0": (0,), "input": (0, 1), "sae": -1, "output": ()})
    sizes = {path: sum(n.path == path for n in graph.nodes) for path in ("mlp0", "input")}
    assert sizes == {"mlp0": T, "input": T * D}
    conserve(graph)
    R = lin.pull(1)
    close(np.array([n.relevance for n in graph.nodes if n.path == "mlp0"]), R["mlp0"].sum(1))
    one = next(n for n in graph.nodes if n.path == "sae")
    assert one.token is None and one.feature == one.index[0]
    close(one.relevance, R["sae"].sum(0)[one.index[0]])
    assert {n.token for n in whole.nodes if n.path == "mlp0"} <= set(range(T))
    assert all((n.token, n.feature) == n.index for n in whole.nodes if n.path == "mlp0")
    assert all(n.token is None for n in circuits.graph(lin, 1, tokens=None).nodes)
    swapped = circuits.graph(lin, 1, tokens={"mlp0": 1})
    assert all((n.feature, n.token) == n.index for n in swapped.nodes if n.path == "mlp0")


def test_a_batch_of_one_has_the_same_tokens_and_features(params, x, whole):
    f = lambda x: jax.vmap(functools.partial(model, params))(x)
    lin = lrpjax.linearise(f, CP, x[None], at=NAMES)
    graph = circuits.graph(lin, SEED * lin.output)
    close(graph.weights, whole.weights)
    for one, other in zip(graph.nodes, whole.nodes, strict=True):
        assert one.index == (0, *other.index)
        assert (one.kind, one.layer, one.token, one.feature) == (
            other.kind,
            other.layer,
            other.token,
            other.feature,
        )
    none = circuits.graph(lin, 1, tokens={"sae": None, "output": 0})
    assert {n.token for n in none.nodes if n.path == "sae"} == {None}
    assert {n.token for n in none.nodes if n.path == "output"} == {0}


def test_input_times_gradient_has_edges_too(params, x):
    f = functools.partial(model, params)
    lin = lrpjax.linearise(f, composites.input_x_gradient(), x, at=NAMES)
    graph = circuits.graph(lin, 1)
    R = lin.pull(1)
    below = ~graph.where("output")
    close(graph.weights.sum(0)[below], np.array([n.relevance for n in graph.nodes])[below])
    close(sum(n.relevance for n in graph.nodes if n.kind == "input"), R.input.sum())


def test_float32_and_half_precision(params, x):
    def made(dtype):
        p, out = jax.tree.map(lambda a: a.astype(dtype), (params["sae"], params["out"]))
        f = lambda x: circuits.reconstructed(x, encode(p), lambda a: a @ p["decode"], "sae")[-1] @ out
        lin = lrpjax.linearise(f, CP, x.astype(dtype), at=["sae", "sae/error"])
        return circuits.graph(lin, SEED.astype(dtype) * lin.output)

    wanted = made("float64").edges()
    largest = max(abs(w) for _, _, w in wanted)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.1)):
        graph = made(dtype)
        assert graph.weights.dtype == np.float64
        found = {(s, t): w for s, t, w in graph.edges()}
        for s, t, w in wanted:
            assert abs(found.get((s, t), 0.0) - w) < tolerance * largest


def test_steps_of_a_loop_are_nodes_of_their_own(rng):
    w = jnp.asarray(rng.normal(size=(3, D, D)))

    def scanned(x):
        step = lambda h, w: (lrpjax.tag(jax.nn.relu(h @ w) + h, "h"), None)
        return lax.scan(step, x, w)[0].sum(0)

    def unrolled(x):
        for i in range(3):
            x = lrpjax.tag(jax.nn.relu(x @ w[i]) + x, f"h{i}")
        return x.sum(0)

    x = jnp.asarray(rng.normal(size=(2, D)))
    loop = circuits.graph(lrpjax.linearise(scanned, EXACT, x, at="h"), 1)
    flat = circuits.graph(lrpjax.linearise(unrolled, EXACT, x, at=["h0", "h1", "h2"]), 1)
    close(loop.weights, flat.weights)
    assert [n.layer for n in loop.nodes] == [n.layer for n in flat.nodes]
    assert [(n.token, n.feature) for n in loop.nodes] == [(n.token, n.feature) for n in flat.nodes]
    steps = circuits.graph(lrpjax.linearise(scanned, EXACT, x, at="h"), 1, split=None)
    assert [n.name for n in steps.nodes] == ["input", "h[0]", "h[1]", "h[2]", "output"]
    close(np.diag(steps.weights, -1), np.array([n.relevance for n in steps.nodes[:-1]]))


def test_token_numbers_have_their_embeddings_as_inputs(params, rng):
    table = jnp.asarray(rng.normal(size=(9, D)))
    f = lambda tokens: model(params, lrpjax.tag(table[tokens], "embedding"))
    lin = lrpjax.linearise(f, CP, jnp.array([4, 1, 7]), at=["embedding", *NAMES])
    graph = circuits.graph(lin, 1)
    assert [(n.path, n.index) for n in graph.nodes if n.kind == "input"] == [
        ("embedding", (t,)) for t in range(3)
    ]
    floating = lrpjax.linearise(functools.partial(model, params), CP, table[jnp.array([4, 1, 7])], at=NAMES)
    close(graph.weights, circuits.graph(floating, 1).weights)


def test_inputs_of_several_arrays_are_told_apart():
    f = lambda x, y: lrpjax.tag(x["a"] * 2.0 + y, "h") @ jnp.ones(2)
    lin = lrpjax.linearise(f, EXACT, {"a": jnp.array([1.0, 2.0])}, jnp.ones(2), at="h", argnums=(0, 1))
    graph = circuits.graph(lin, split=None)
    assert graph.edges() == [("input[0]['a']", "h", 6.0), ("input[1]", "h", 2.0), ("h", "output", 8.0)]


def test_compiled_or_not_edges_are_the_same(lin):
    close(circuits.graph(lin, 1, batch=3).weights, circuits.graph(lin, 1, batch=100).weights)
    small = lrpjax.linearise(by_hand, EXACT, jnp.array([1.0, 2.0]), at=["a", "b"])
    with jax.disable_jit():
        bare = circuits.graph(small).weights
    close(circuits.graph(small).weights, bare)


def test_a_program_that_was_linearised_under_jit(params, x, lin):
    made = jax.jit(lambda x: lrpjax.linearise(functools.partial(model, params), CP, x, at=NAMES))(x)
    close(circuits.graph(made, 1).weights, circuits.graph(lin, 1).weights)


# -------------------------------------------------------------------------------------------- influence and pruning


@pytest.fixture
def four():
    """x → a, b → y, and an error at y."""
    make = lambda name, kind, layer, R: Node(name, (), kind, 1.0, R, layer)
    nodes = (
        make("x", "input", 0, 5.0),
        make("a", "feature", 1, 6.0),
        make("b", "feature", 1, -1.0),
        make("b/error", "error", 1, 3.0),
        make("y", "output", 2, 8.0),
    )
    weights = np.zeros((5, 5))
    weights[1, 0], weights[2, 0] = 6.0, -1.0
    weights[4, 1:4] = 6.0, -1.0, 3.0
    return Graph(nodes, weights, np.zeros(5), np.zeros(5))


def test_influence_by_hand(four):
    # A[y] = [0, 0.6, 0.1, 0.3]; a and b come from x alone.
    close(four.influence(), np.array([0.7, 0.6, 0.1, 0.3, 0]))
    # The inputs' part of 0.7 + 0.3; and of y 0.7 is from no error, of a and b all: (1 · 0.7 + 0.7 + 0.6 + 0.1 + 0.3) / 2.7.
    close(tuple(four.scores()), (0.7, 2.4 / 2.7))
    close(four.influence([2.0]), 2 * four.influence())


def test_pruning_by_hand(four):
    # In order x 0.7, a 0.6, error 0.3, b 0.1 of 1.7: 0.41, 0.76, 0.94, 1.
    close(four.prune(1.0, 1.0).weights, four.weights)
    names = lambda g: [n.name for n in g.nodes]
    most = four.prune(nodes=0.9, edges=1.0)
    assert names(most) == ["x", "a", "b/error", "y"]
    close(most.node_share, 1.6 / 1.7)
    close(most.edge_share, 1.0)
    close(most.remainder, np.array([0, 0, 0, -1.0]))
    close(most.ranks, np.array([0.7 / 1.7, 1.3 / 1.7, 1.6 / 1.7, 1]))
    # Within it A[y] = [2/3 of a, 1/3 of the error]: edges x → a 2/3, a → y 2/3, error → y 1/3, of 5/3.
    less = four.prune(nodes=0.9, edges=0.75)
    assert less.edges() == [("x", "a", 6.0), ("a", "y", 6.0)] and names(less) == ["x", "a", "y"]
    close(less.edge_share, 0.8)
    close(less.remainder, np.array([0, 0, 2.0]))
    # a has lost the edge to y, so that it goes; inputs and outputs stay.
    assert names(four.prune(nodes=0.0)) == ["x", "y"] and not four.prune(nodes=0.0).edges()


def test_influence_is_the_sum_of_the_powers_of_the_matrix(whole):
    A = np.abs(whole.weights)
    A = A / np.maximum(A.sum(1, keepdims=True), 1e-300)
    power, total = A, A.copy()
    for _ in range(10):
        power = power @ A
        total += power
    w = np.zeros(len(A))
    w[whole.where("output")] = [0.25, 0.75]
    close(whole.influence([0.25, 0.75]), w @ total)
    close(np.linalg.inv(np.eye(len(A)) - A) - np.eye(len(A)), total)
    assert not power.any()
    errors = whole.where("error")
    I = w @ total
    close(
        whole.scores([0.25, 0.75]).replacement,
        I[whole.where("input")].sum() / (I[errors].sum() + I[whole.where("input")].sum()),
    )


def test_a_pruned_graph_keeps_its_accounts(whole):
    pruned = whole.prune(0.8, 0.9)
    assert len(pruned.nodes) < len(whole.nodes)
    assert pruned.node_share + 1e-9 >= 0.8 and pruned.edge_share > 0.7
    conserve(pruned)
    place = {n.name: i for i, n in enumerate(whole.nodes)}
    kept = [place[n.name] for n in pruned.nodes]
    on = pruned.weights != 0
    close(pruned.weights[on], whole.weights[np.ix_(kept, kept)][on])
    for i, node in enumerate(pruned.nodes):
        if node.kind in ("feature", "error"):
            assert on[:, i].any()
        if node.kind == "feature":
            assert on[i].any()
    assert whole.where("input").sum() == pruned.where("input").sum() == T


def test_the_strongest_nodes_and_edges(whole, four):
    few = whole.strongest(nodes=4)
    sizes = np.sort([abs(n.relevance) for n in whole.nodes if n.kind in ("feature", "error")])[::-1]
    close(np.sort([abs(n.relevance) for n in few.nodes if n.kind in ("feature", "error")])[::-1], sizes[:4])
    conserve(few)
    assert four.strongest(edges=2).edges() == [("x", "a", 6.0), ("a", "y", 6.0)]
    assert [e[2] for e in four.strongest(threshold=0.2).edges()] == [6.0, 6.0, 3.0]
    close(four.strongest(threshold=0.2).remainder, np.array([0, 0, -1, 0, -1]))
    assert len(four.strongest(nodes=100, edges=100).edges()) == 5
    # By hand: b and its error make up 0.4 of the influence of 1.7, and the edges x → a and a → y 1.2 of 1.7.
    one = four.strongest(nodes=1, edges=9)
    close((one.node_share, one.edge_share), (1.3 / 1.7, 1.2 / 1.7))


# ----------------------------------------------------------------------------------------------------------- exports


def test_networkx_and_back(whole):
    networkx = pytest.importorskip("networkx")
    made = whole.to_networkx()
    assert networkx.is_directed_acyclic_graph(made)
    names = [n.name for n in whole.nodes]
    back = networkx.to_numpy_array(made, nodelist=names, weight="weight")
    close(back.T, whole.weights)
    node = whole.nodes[5]
    entry = made.nodes[node.name]
    assert (entry["path"], entry["index"], entry["kind"], entry["token"]) == (
        node.path,
        node.index,
        node.kind,
        node.token,
    )
    close(np.array([made.nodes[n]["influence"] for n in names]), whole.influence())


def test_without_networkx_the_error_names_the_extra(four, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args):
        if name == "networkx":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "lrpjax\[circuits\]"'):
        four.to_networkx()


REQUIRED = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}
"""Of nodes, in Neuronpedia's schema (version 1.0.0)."""


def test_the_file_for_viewers(whole, tmp_path):
    pruned = whole.prune(0.9)
    some = next(n for n in pruned.nodes if n.kind == "feature")
    made = pruned.to_json(
        tmp_path / "g.json",
        slug="cats",
        scan="toy",
        tokens=["A", " cat", " sat"],
        labels={some.name: "animals"},
        probabilities=jnp.array([0.75, 0.25]),
        metadata={"node_threshold": 0.8},
    )
    assert json.loads((tmp_path / "g.json").read_text()) == made
    assert [p.name for p in tmp_path.iterdir()] == ["g.json"]
    assert made.keys() == {"metadata", "qParams", "nodes", "links"}
    about = made["metadata"]
    assert about["prompt"] == "A cat sat" and about["prompt_tokens"] == ["A", " cat", " sat"]
    assert (about["slug"], about["scan"], about["node_threshold"]) == ("cats", "toy", 0.8)
    assert made["qParams"].keys() == {"pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"}
    entries = {e["node_id"]: e for e in made["nodes"]}
    assert len(entries) == len(pruned.nodes) == len(made["nodes"])
    for entry, node in zip(made["nodes"], pruned.nodes, strict=True):
        assert entry.keys() >= REQUIRED
        assert isinstance(entry["feature"], int) and isinstance(entry["layer"], str)
        assert 0 <= entry["ctx_idx"] < T
        if node.kind == "feature":
            assert entry["node_id"] == f"{node.layer - 1}_{node.feature}_{node.token}"
            assert entry["activation"] == node.value and 0 < entry["influence"] <= 1 + 1e-9
    types = {e["feature_type"] for e in made["nodes"]}
    assert types == {"cross layer transcoder", "mlp reconstruction error", "embedding", "logit"}
    assert entries[f"{some.layer - 1}_{some.feature}_{some.token}"]["clerp"] == "animals"
    logits = [e for e in made["nodes"] if e["feature_type"] == "logit"]
    assert [e["feature"] for e in logits] == [1, 3] and [e["is_target_logit"] for e in logits] == [
        True,
        False,
    ]
    assert logits[0]["clerp"] == 'Output "output[1]" (p=0.750)' and logits[0]["ctx_idx"] == T - 1
    assert logits[0]["layer"] == str(3 + 1) and [e["token_prob"] for e in logits] == [0.75, 0.25]
    order = {n.name: e["node_id"] for n, e in zip(pruned.nodes, made["nodes"], strict=True)}
    assert [(li["source"], li["target"], li["weight"]) for li in made["links"]] == [
        (order[s], order[t], w) for s, t, w in pruned.edges()
    ]


def test_ids_are_unique_also_where_nothing_tells_nodes_apart():
    f = lambda x, y: lrpjax.tag(x + y, "h").sum()
    lin = lrpjax.linearise(f, EXACT, jnp.ones(2), jnp.ones(2), at="h", argnums=(0, 1))
    made = circuits.graph(lin, split=None).to_json()
    ids = [e["node_id"] for e in made["nodes"]]
    assert len(set(ids)) == 4 and {li["source"] for li in made["links"]} <= set(ids)


# ------------------------------------------------------------------------------------------------------------ errors


def test_what_is_refused(lin, whole, params, x):
    graph = functools.partial(circuits.graph, lin, 1)
    with pytest.raises(PathError, match="no value is named 'mlp9'"):
        graph(nodes=["mlp9"])
    with pytest.raises(GraphError, match="at_most must be at least 1, not 0"):
        graph(at_most=0)
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(GraphError, match="threshold is a share of relevance"):
            graph(threshold=threshold)
    with pytest.raises(GraphError, match="batch must be at least 1"):
        graph(batch=0)
    with pytest.raises(GraphError, match='split is "features", a mapping'):
        graph(split="all")
    with pytest.raises(GraphError, match=r'split is "features".* not 3'):
        graph(split=3)
    with pytest.raises(GraphError, match=r"split has the axes \[2\] of 'mlp0', which has 2 axes"):
        graph(split={"mlp0": 2})
    with pytest.raises(GraphError, match="split speaks of mlp9"):
        graph(split={"mlp9": 0})
    with pytest.raises(GraphError, match="tokens speaks of mlp9"):
        graph(tokens={"mlp9": 0})
    with pytest.raises(GraphError, match="tokens is the axis 5"):
        graph(tokens=5)
    with pytest.raises(GraphError, match="the seed gives no element of the output relevance"):
        circuits.graph(lin, jnp.zeros(V))
    with pytest.raises(GraphError, match=r"outside of jax\.jit"):
        jax.jit(
            lambda x: circuits.graph(lrpjax.linearise(functools.partial(model, params), CP, x, at=NAMES), 1)
        )(x)
    guided = lrpjax.Composite([(select.kind("activation"), rules.GuidedBackprop())])
    with pytest.raises(GraphError, match="a linear map of that of the output; these rules make none: "):
        circuits.graph(lrpjax.linearise(by_hand, guided, jnp.ones(2), at="a"))
    gradients = lrpjax.linearise(functools.partial(model, params), composites.gradient(), x, at=NAMES)
    with pytest.raises(GraphError, match="gradients, which do not add up"):
        circuits.graph(gradients, 1)


def test_steps_of_loops_have_to_be_told_apart():
    w = jnp.ones((3, 2, 2))
    f = lambda x: lax.scan(lambda h, w: (lrpjax.tag(h @ w, "h"), None), x, w)[0]
    lin = lrpjax.linearise(f, EXACT, jnp.ones(2), at="h")
    with pytest.raises(GraphError, match="the first 1 are steps of loops"):
        circuits.graph(lin, 0, split={"h": 1})
    with pytest.raises(GraphError, match=r"'h\[1\]' is one step of a loop"):
        circuits.graph(lin, 0, nodes=["h[1]"])


def test_a_circle_is_refused():
    nodes = [Node(name, (), "feature", 1.0, 1.0, 0) for name in "ab"]
    with pytest.raises(GraphError, match="the graph has a circle"):
        making._layers(nodes, np.array([[0.0, 1.0], [1.0, 0.0]]), [0, 0])
    with pytest.raises(GraphError, match="every edge leads to a later one"):
        Graph(tuple(nodes), np.array([[0.0, 1.0], [0.0, 0.0]]), np.zeros(2), np.zeros(2))


def test_what_pruning_and_exports_refuse(four):
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(GraphError, match="nodes is a share of the influence"):
            four.prune(nodes=share)
        with pytest.raises(GraphError, match="edges is a share of the influence"):
            four.prune(edges=share)
    for outputs in ([1.0, 1.0], [-1.0], [0.0]):
        with pytest.raises(GraphError, match="outputs are 1 weights"):
            four.influence(outputs)
    with pytest.raises(GraphError, match="nodes must not be negative, but is -1"):
        four.strongest(nodes=-1)
    with pytest.raises(GraphError, match="was given 2 probabilities"):
        four.to_json(probabilities=[0.5, 0.5])
    with pytest.raises(GraphError, match="the graph has no nodes z that labels could name"):
        four.to_json(labels={"z": "what"})
    with pytest.raises(GraphError, match="nodes at 1 tokens, but was given 0"):
        four.to_json(tokens=[])


def test_numbers_that_json_has_not_leave_no_file(four, tmp_path):
    weights = four.weights.copy()
    weights[1, 0] = np.inf
    with pytest.raises(ValueError, match="not JSON compliant"), np.errstate(invalid="ignore"):
        Graph(four.nodes, weights, four.remainder, four.absorbed).to_json(tmp_path / "g.json")
    assert not list(tmp_path.iterdir())
