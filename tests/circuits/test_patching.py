"""`lrpjax.circuits` against loops that change one value at a time, RelP's formula written out with `stop_gradient`, and the
theorem that all of them agree on linear functions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close
from jax import lax

import lrpjax
from lrpjax import circuits, composites
from lrpjax.circuits import PatchError
from lrpjax.errors import PathError

T, D, HEADS, SIZE, HIDDEN, LAYERS, V = 5, 8, 2, 4, 12, 2, 6
held = lax.stop_gradient


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def params(rng):
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-2]))
    layers = {
        "q": normal(LAYERS, D, D),
        "k": normal(LAYERS, D, D),
        "v": normal(LAYERS, D, D),
        "o": normal(LAYERS, D, D),
    }
    layers |= {"up": normal(LAYERS, D, HIDDEN), "down": normal(LAYERS, HIDDEN, D)}
    return {"embed": normal(V, D) * 2, "layers": layers, "out": normal(D, V)}


def plain(x):
    return x


def norm(x, keep=plain):
    return x * keep(lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6))


def act(x, keep=plain):
    return x * keep(jax.nn.sigmoid(x))


def heads(x):
    return x.reshape(T, HEADS, SIZE).transpose(1, 0, 2)


def layer(x, p, name, keep=plain, tag=lrpjax.tag):
    h = norm(x, keep)
    q, k, v = (tag(heads(h @ p[w]), name(w)) for w in "qkv")
    scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), q @ k.transpose(0, 2, 1) / 2.0, -jnp.inf)
    weights = tag(jax.nn.softmax(scores), name("weights"))
    mixed = tag((weights @ v).transpose(1, 0, 2), name("heads"))
    x = x + tag(mixed.reshape(T, D) @ p["o"], name("attention"))
    x = x + tag(act(norm(x, keep) @ p["up"], keep) @ p["down"], name("mlp"))
    return tag(x, name("residual"))


def unrolled(params, ids, keep=plain, tag=lrpjax.tag):
    x = tag(params["embed"][ids], "embedding")
    for i in range(LAYERS):
        x = layer(
            x, jax.tree.map(lambda a, i=i: a[i], params["layers"]), lambda what, i=i: f"{what}{i}", keep, tag
        )
    return norm(x, keep) @ params["out"]


def scanned(params, ids):
    x = lrpjax.tag(params["embed"][ids], "embedding")
    x, _ = lax.scan(lambda x, p: (layer(x, p, plain), None), x, params["layers"])
    return norm(x) @ params["out"]


def difference(y):
    return y[-1, 2] - y[-1, 4]


CLEAN, CORRUPTED = jnp.array([0, 1, 2, 3, 1]), jnp.array([0, 4, 2, 5, 1])
NAMES = ["embedding", *(f"{what}{i}" for i in range(LAYERS) for what in ("attention", "mlp", "residual"))]


def with_values(params, ids, changes):
    """f with changed values, and the values, by a tag that adds."""
    seen = {}

    def tag(x, name):
        seen[name] = x
        return changes[name](x) if name in changes else x

    return unrolled(params, ids, tag=tag), seen


@pytest.fixture
def f(params):
    return functools.partial(unrolled, params)


# ------------------------------------------------------------------------------------------------------ patching itself


def test_patching_is_a_loop_over_the_parts_of_values(f, params):
    found = circuits.patch(f, CLEAN, CORRUPTED, at=NAMES, metric=difference, batch=4)
    _, clean = with_values(params, CLEAN, {})
    before = difference(f(CORRUPTED))
    for name in NAMES:
        wanted = [
            difference(
                with_values(params, CORRUPTED, {name: lambda x, t=t, n=name: x.at[t].set(clean[n][t])})[0]
            )
            - before
            for t in range(T)
        ]
        close(found[name], jnp.stack(wanted))


def test_parts_are_tokens_heads_elements_or_all(f, params):
    _, clean = with_values(params, CLEAN, {})
    before = difference(f(CORRUPTED))
    one = lambda where: difference(with_values(params, CORRUPTED, {"heads1": where})[0]) - before
    each = {"heads1": (0, 1), "mlp0": None, "embedding": -1}
    found = circuits.patch(f, CLEAN, CORRUPTED, at=list(each), metric=difference, each=each)
    assert {path: effects.shape for path, effects in found.items()} == {
        "heads1": (T, HEADS),
        "mlp0": (),
        "embedding": (D,),
    }
    for t, h in [(0, 1), (4, 0)]:
        close(found["heads1"][t, h], one(lambda x, t=t, h=h: x.at[t, h].set(clean["heads1"][t, h])))
    close(
        found["mlp0"],
        difference(with_values(params, CORRUPTED, {"mlp0": lambda x: clean["mlp0"]})[0]) - before,
    )


def test_patching_into_the_clean_run_is_the_other_way_round(f):
    found = circuits.patch(f, CLEAN, CORRUPTED, at="residual0", metric=difference, into="clean")
    turned = circuits.patch(f, CORRUPTED, CLEAN, at="residual0", metric=difference)
    close(found["residual0"], turned["residual0"])
    whole = circuits.patch(f, CLEAN, CORRUPTED, at="residual1", metric=difference, each=None)["residual1"]
    close(whole, difference(f(CLEAN)) - difference(f(CORRUPTED)))


def test_scanned_layers_are_patched_step_by_step(params, f):
    found = circuits.patch(
        functools.partial(scanned, params),
        CLEAN,
        CORRUPTED,
        at=["mlp", "heads"],
        metric=difference,
        each={"mlp": 0, "heads": (0, 1)},
    )
    wanted = circuits.patch(
        f,
        CLEAN,
        CORRUPTED,
        at=["mlp0", "mlp1", "heads1"],
        metric=difference,
        each={"mlp0": 0, "mlp1": 0, "heads1": (0, 1)},
    )
    close(found["mlp"], jnp.stack([wanted["mlp0"], wanted["mlp1"]]))
    close(found["heads"][1], wanted["heads1"])


def test_interventions(f, params):
    half = jnp.arange(T)[:, None] < 2
    found = circuits.intervene(f, {"mlp0": (half, 0.0), "residual1": jnp.ones((T, D))})(CLEAN)
    put = {"mlp0": lambda x: jnp.where(half, 0.0, x), "residual1": jnp.ones_like}
    close(found, with_values(params, CLEAN, put)[0])
    close(
        circuits.intervene(f, {"mlp0": (half, 0.0)})(CLEAN),
        with_values(params, CLEAN, {"mlp0": put["mlp0"]})[0],
    )
    close(circuits.intervene(f, {})(CLEAN), f(CLEAN))
    slope = jax.grad(lambda a: circuits.intervene(f, {"mlp0": a})(CLEAN).sum())(jnp.zeros((T, D)))
    close(
        slope,
        jax.grad(lambda a: with_values(params, CLEAN, {"mlp0": lambda x: a})[0].sum())(jnp.zeros((T, D))),
    )


def test_interventions_by_functions_of_the_value(f, params):
    put = {"mlp0": lambda h: h * 0.5, "residual1": jnp.sin}
    found = circuits.intervene(f, put)
    close(found(CLEAN), with_values(params, CLEAN, put)[0])
    close(jax.jit(found)(CLEAN), with_values(params, CLEAN, put)[0])
    # In loops the function is given the value of each step.
    inside = circuits.intervene(functools.partial(scanned, params), {"mlp": lambda h: h * 0.5})(CLEAN)
    each = {"mlp0": put["mlp0"], "mlp1": put["mlp0"]}
    close(inside, with_values(params, CLEAN, each)[0])


def test_what_is_intervened_in_keeps_its_paths_and_sources():
    w = jnp.array([[1.0, 2.0], [3.0, -1.0]])

    def f(x):
        with jax.named_scope("outer"):
            with jax.named_scope("first"):
                x = jax.nn.relu(x @ w)

            def step(h, w):
                with jax.named_scope("inner"):
                    return jnp.tanh(h @ w), None

            return jax.lax.scan(step, x, jnp.stack([w, w]))[0]

    x = jnp.array([[1.0, 2.0]])
    g = circuits.intervene(f, {"outer/first": lambda h: h})
    table = lambda f: [(u.path, u.kind, u.source) for u in lrpjax.plan(f, composites.epsilon(), x).units]
    assert table(g) == table(f)
    assert {"outer/first", "outer/inner"} <= {path for path, _, _ in table(f)}
    for at in ("outer/first", "outer/inner"):
        close(*(lrpjax.relevance(one, composites.epsilon(), at=at)(x) for one in (f, g)))


# -------------------------------------------------------------------------------------------------------- approximations


@pytest.mark.parametrize(
    ("into", "coefficients"), [("corrupted", None), ("clean", None), ("corrupted", "clean")]
)
def test_relp_is_its_formula_written_out(f, params, into, coefficients):
    """Δh ⊙ ∂m/∂h of the function whose norms and activations are frozen (LN-rule, Identity-rule)."""
    composite = composites.relp()
    found = circuits.attribute(
        f, composite, CLEAN, CORRUPTED, at=NAMES, metric=difference, into=into, coefficients=coefficients
    )
    ids = {"clean": CLEAN, "corrupted": CORRUPTED}
    _, clean = with_values(params, CLEAN, {})
    _, corrupted = with_values(params, CORRUPTED, {})
    sign = 1.0 if into == "corrupted" else -1.0

    def run(changes):
        tag = lambda x, name: x + changes.get(name, 0.0)
        return difference(unrolled(params, ids[coefficients or into], keep=held, tag=tag))

    slopes = jax.grad(run)({name: jnp.zeros((T, D)) for name in NAMES})
    for name in NAMES:
        close(found[name], sign * ((clean[name] - corrupted[name]) * slopes[name]).sum(-1))


def test_attribution_patching_is_its_formula(f, params):
    found = circuits.attribute(f, composites.gradient(), CLEAN, CORRUPTED, at=NAMES, metric=difference)
    _, clean = with_values(params, CLEAN, {})
    _, corrupted = with_values(params, CORRUPTED, {})
    run = lambda changes: difference(
        unrolled(params, CORRUPTED, tag=lambda x, name: x + changes.get(name, 0.0))
    )
    slopes = jax.grad(run)({name: jnp.zeros((T, D)) for name in NAMES})
    for name in NAMES:
        close(found[name], ((clean[name] - corrupted[name]) * slopes[name]).sum(-1))


def test_on_linear_functions_all_methods_are_patching(rng):
    a, b = jnp.asarray(rng.normal(size=(D, D))), jnp.asarray(rng.normal(size=(D, 3)))

    def f(x):
        h = lrpjax.tag(x @ a, "h")
        return (h + lrpjax.tag(h @ a, "g")) @ b + 1.0

    runs = [jnp.asarray(rng.normal(size=(T, D))) for _ in range(2)]
    metric = lambda y: y[1, 0] - 2.0 * y[3, 2]
    exact = circuits.patch(f, *runs, at=["h", "g"], metric=metric)
    for composite in (composites.gradient(), composites.relp(), composites.cp_lrp(0.0), None):
        found = circuits.attribute(f, composite, *runs, at=["h", "g"], metric=metric)
        for path in exact:
            close(found[path], exact[path], 1e-4 if composite is None else 1e-9)
    edges = circuits.attribute_edges(f, composites.relp(), *runs, at=["h", "g"], metric=metric)
    close(edges["h", "output"] + edges["h", "g"], exact["h"].sum())
    close(edges["h", "g"], exact["g"].sum())


def test_edges_add_up_to_the_nodes(f):
    nodes = circuits.attribute(f, composites.relp(), CLEAN, CORRUPTED, at=NAMES, metric=difference, each=None)
    edges = circuits.attribute_edges(f, composites.relp(), CLEAN, CORRUPTED, at=NAMES, metric=difference)
    for name in NAMES:
        close(sum(share for (source, _), share in edges.items() if source == name), nodes[name])


def test_scanned_layers_are_the_unrolled_ones(params, f):
    of_loop = circuits.attribute(
        functools.partial(scanned, params), composites.relp(), CLEAN, CORRUPTED, at="mlp", metric=difference
    )
    of_list = circuits.attribute(
        f, composites.relp(), CLEAN, CORRUPTED, at=["mlp0", "mlp1"], metric=difference
    )
    close(of_loop["mlp"], jnp.stack([of_list["mlp0"], of_list["mlp1"]]))


def test_dropping_parts_of_the_backward_pass(params, f):
    """AtP* GradDrop: Σ over layers of |Δh c| with that layer's outputs left out of the backward pass, over layers − 1."""
    groups = [["attention0", "mlp0"], ["attention1", "mlp1"]]
    names = ["embedding", "mlp0", "attention1"]
    found = circuits.attribute(
        f, composites.gradient(), CLEAN, CORRUPTED, at=names, metric=difference, drop=groups
    )
    _, clean = with_values(params, CLEAN, {})
    _, corrupted = with_values(params, CORRUPTED, {})

    def slopes(left_out):
        def run(changes):
            tag = lambda x, name: (held(x) if name in left_out else x) + changes.get(name, 0.0)
            return difference(unrolled(params, CORRUPTED, tag=tag))

        return jax.grad(run)({name: jnp.zeros((T, D)) for name in names})

    for name in names:
        total = 0.0
        for group in groups:
            if name not in group:
                total = total + jnp.abs(((clean[name] - corrupted[name]) * slopes(group)[name]).sum(-1))
        close(found[name], total)
    loop = circuits.attribute(
        functools.partial(scanned, params),
        composites.gradient(),
        CLEAN,
        CORRUPTED,
        at=["embedding", "mlp"],
        metric=difference,
        drop=[["attention", "mlp"]],
    )
    close(loop["embedding"], found["embedding"])
    close(loop["mlp"][0], found["mlp0"])


def test_the_change_of_attention_weights_is_computed_exactly(params, f):
    """AtP*'s correction: Δ softmax, and only behind it the gradient."""
    through = {"q1": "weights1", "k1": "weights1"}
    each = {"q1": (0, 1), "k1": (0, 1), "mlp0": 0}
    found = circuits.attribute(
        f,
        composites.gradient(),
        CLEAN,
        CORRUPTED,
        at=list(each),
        metric=difference,
        each=each,
        through=through,
    )
    _, clean = with_values(params, CLEAN, {})
    _, base = with_values(params, CORRUPTED, {})
    run = lambda d: difference(unrolled(params, CORRUPTED, tag=lambda x, n: x + d if n == "weights1" else x))
    slope = jax.grad(run)(jnp.zeros((HEADS, T, T)))
    for path in ("q1", "k1"):
        assert set(found) == set(each) and found[path].shape == (HEADS, T)
        for h, t in [(0, 1), (1, 4)]:
            put = {path: lambda x, h=h, t=t, p=path: x.at[h, t].set(clean[p][h, t])}
            there = with_values(params, CORRUPTED, put)[1]["weights1"]
            close(found[path][h, t], ((there - base["weights1"]) * slope).sum())
    usual = circuits.attribute(f, composites.gradient(), CLEAN, CORRUPTED, at="mlp0", metric=difference)
    close(found["mlp0"], usual["mlp0"])


def test_under_jit_and_vmap(f):
    at = ["mlp0", "residual0"]
    attribute = lambda a, b: circuits.attribute(f, composites.relp(), a, b, at=at, metric=difference)
    one = attribute(CLEAN, CORRUPTED)
    for found in (
        jax.jit(attribute)(CLEAN, CORRUPTED),
        jax.tree.map(
            lambda a: a[1], jax.vmap(attribute)(jnp.stack([CORRUPTED, CLEAN]), jnp.stack([CLEAN, CORRUPTED]))
        ),
    ):
        for path in at:
            close(found[path], one[path])
    patch = jax.jit(lambda a, b: circuits.patch(f, a, b, at=at, metric=difference))
    close(
        patch(CLEAN, CORRUPTED)["mlp0"], circuits.patch(f, CLEAN, CORRUPTED, at=at, metric=difference)["mlp0"]
    )


def test_several_arguments(params):
    f = lambda x, scale: lrpjax.tag(x * scale, "h").sum()
    runs = (jnp.ones(3), 2.0), (jnp.zeros(3), 5.0)
    close(circuits.patch(f, *runs, at="h")["h"], 2.0 * jnp.ones(3))
    close(circuits.attribute(f, composites.gradient(), *runs, at="h")["h"], 2.0 * jnp.ones(3))


# ---------------------------------------------------------------------------------------------------------------- splits


def test_splits_add_up_to_the_values(f, params):
    names = ["embedding", "heads0", "mlp0", "residual1"]
    lin = lrpjax.linearise(f, composites.cp_lrp(0.0), CLEAN, at=names)
    for path, each, sizes in [
        ("embedding", 0, (T,)),
        ("heads0", (1,), (HEADS,)),
        ("heads0", (0, 1), (T, HEADS)),
        ("mlp0", -1, (D,)),
    ]:
        found = circuits.split(lin, path, each=each, batch=3)
        axes = tuple(range(len(sizes)))
        assert found.parts.output.shape == (*sizes, T, V)
        close(found.parts.output.sum(axes) + found.rest.output, lin.output)
        close(found.parts["residual1"].sum(axes) + found.rest["residual1"], lin.values["residual1"])
    # From the embedding on, in a network without biases, tokens make all of it.
    close(circuits.split(lin, "embedding").rest.output, jnp.zeros((T, V)), 1e-9)
    causal = circuits.split(lin, "embedding").parts.output
    reaches = jnp.abs(causal).sum(-1) > 0  # [word, place]: no word says anything of the places before it
    np.testing.assert_array_equal(reaches, np.triu(np.ones((T, T), bool)))


# ------------------------------------------------------------------------------------------------------------- bad input


def test_runs_that_do_not_fit(f):
    with pytest.raises(PatchError, match="pad the inputs to one shape"):
        circuits.patch(lambda x: lrpjax.tag(2.0 * x, "h").sum(), jnp.ones(3), jnp.ones(4), at="h")
    with pytest.raises(PatchError, match="'clean' or 'corrupted'"):
        circuits.patch(f, CLEAN, CORRUPTED, at="mlp0", into="neither")
    with pytest.raises(PatchError, match="makes a number"):
        circuits.patch(f, CLEAN, CORRUPTED, at="mlp0", metric=lambda y: y)
    with pytest.raises(PatchError, match="has no axis 2"):
        circuits.attribute(f, None, CLEAN, CORRUPTED, at="mlp0", metric=difference, each=2)
    with pytest.raises(PathError, match="no value leaves the scope"):
        circuits.patch(f, CLEAN, CORRUPTED, at="mlp9", metric=difference)


def test_corrections_that_do_not_fit(f, params):
    with pytest.raises(PatchError, match="at least two"):
        circuits.attribute(f, None, CLEAN, CORRUPTED, at="mlp0", metric=difference, drop=["mlp1"])
    with pytest.raises(PatchError, match="stand in loops of"):
        circuits.attribute(
            functools.partial(scanned, params),
            None,
            CLEAN,
            CORRUPTED,
            at="mlp",
            metric=difference,
            drop=[["embedding", "mlp"]],
        )
    with pytest.raises(PathError, match="no way leads from 'mlp1'"):
        circuits.attribute(
            f, None, CLEAN, CORRUPTED, at="mlp1", metric=difference, through={"mlp1": "weights0"}
        )


def test_interventions_that_do_not_fit(f):
    with pytest.raises(PatchError, match="the array put into 'mlp0' has shape"):
        circuits.intervene(f, {"mlp0": jnp.ones(3)})(CLEAN)
    with pytest.raises(PatchError, match="the where put into 'mlp0' has shape"):
        circuits.intervene(f, {"mlp0": (jnp.ones(3, bool), 0.0)})(CLEAN)
    with pytest.raises(PatchError, match="the function put at 'mlp0' gives shape"):
        circuits.intervene(f, {"mlp0": lambda h: h[0]})(CLEAN)
    with pytest.raises(PathError, match="names none, or several"):
        circuits.intervene(f, {"mlp*": 0.0})


def test_splits_that_do_not_fit(f):
    lin = lrpjax.linearise(f, composites.cp_lrp(0.0), CLEAN, at="mlp0")
    with pytest.raises(PatchError, match="has no axis 5"):
        circuits.split(lin, "mlp0", each=5)
    with pytest.raises(PatchError, match="name a value"):
        circuits.split(lin, None)
