"""Conditional relevance, channels, maximising samples and receptive fields, against zennit-crp, slow loops and hand-computed numbers."""

import functools
import itertools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lrpjax
from lrpjax import composites, concepts, rules, select
from lrpjax.analysis.concepts import ConditionError, Samples

close = functools.partial(helpers.close, tolerance=1e-12)

DATA = np.load(helpers.REFERENCES / "crp.npz")
P = {k.removeprefix("params/"): jnp.asarray(v) for k, v in DATA.items() if k.startswith("params/")}
COMPOSITES = {
    "plus": composites.epsilon_plus(),
    "box": composites.epsilon_gamma_box(-4.0, 4.0),
    "gradient": composites.gradient(),
}
CONDITIONS = {  # those of make_crp.py
    "one": (1, {"second": 2}),
    "several": (1, {"second": [0, 3, 4]}),
    "first": (3, {"first": [1, 2]}),
    "both": (1, {"second": [2, 3], "first": [0, 3]}),
    "three": (0, {"dense": [1, 4, 5], "second": [1, 2, 3], "first": [0, 1]}),
}
LAST = {"channel_axis": 1}


def network(x):
    """make_crp.py's, channels first."""
    for name, padding in (("first", "SAME"), ("second", "VALID")):
        with jax.named_scope(name):
            x = lax.conv_general_dilated(x, P[f"{name}/weight"], (1, 1), padding)
            x = x + P[f"{name}/bias"][:, None, None]
        x = jax.nn.relu(x)
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    with jax.named_scope("dense"):
        x = x.reshape(len(x), -1) @ P["dense/weight"].T + P["dense/bias"]
    return jax.nn.relu(x) @ P["last/weight"].T + P["last/bias"]


X = jnp.asarray(DATA["x"])


# ------------------------------------------------------------------------------------------------------------------------- zennit-crp


def test_the_network_is_the_same():
    close(network(X), DATA["logits"])


def axes(conditions):
    """{name: condition} as masks: `dense` has its channels last, the convolutions first."""
    masks = {}
    for name, channels in conditions.items():
        mask = np.isin(np.arange(len(P[f"{name}/bias"])), channels)
        masks[name] = mask if name == "dense" else mask[:, None, None]
    return masks


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_agrees_with_zennit_crp(composite, condition):
    target, conditions = CONDITIONS[condition]
    # zennit's gradient begins with the logit itself, not with one
    seed = lambda y: y * jnp.eye(4)[target]
    explain = concepts.relevance(network, COMPOSITES[composite], axes(conditions), target=seed)
    close(jax.jit(explain)(X[:2]), DATA[f"{composite}/{condition}"], tolerance=1e-9)


@pytest.mark.parametrize("condition", ["one", "several", "both", "three"])
def test_relevance_at_a_layer_under_the_conditions_agrees_with_zennit_crp(condition):
    target, conditions = CONDITIONS[condition]
    explain = concepts.relevance(network, COMPOSITES["plus"], axes(conditions), target=target, at="first")
    close(explain(X[:2]), DATA[f"latent/{condition}"], tolerance=1e-9)


@pytest.mark.parametrize("around", [False, True])
def test_ways_around_agree_with_zennit_crp(around):
    """Its exclude_parallel, on a residual network and gradients."""
    p = {k.removeprefix("residual/"): jnp.asarray(v) for k, v in DATA.items() if k.startswith("residual/")}

    def f(x):
        for name in ("one", "two"):
            h = (
                lax.conv_general_dilated(x, p[f"{name}/weight"], (1, 1), "SAME")
                + p[f"{name}/bias"][:, None, None]
            )
            x = x + jnp.tanh(lrpjax.tag(h, name))
        return x.reshape(len(x), -1) @ p["last/weight"].T + p["last/bias"]

    seed = lambda y: y * jnp.eye(4)[1]
    options = {"target": seed, "around": around, "channel_axis": 1}
    explain = concepts.relevance(f, composites.gradient(), {"two": 0, "one": 1}, **options)
    close(explain(X[:2]), p[str(not around)], tolerance=1e-9)


def test_channel_relevance_agrees_with_zennit_crp():
    explain = concepts.channel_relevance(network, COMPOSITES["plus"], at="second", target=2, **LAST)
    close(explain(X), DATA["channels"], tolerance=1e-9)


@pytest.mark.parametrize(
    ("by", "pool", "normalise"),
    [
        ("relevance", "sum", True),
        ("relevance", "max", False),
        ("activation", "sum", False),
        ("activation", "max", True),
    ],
)
def test_maximising_samples_agree_with_zennit_crp(by, pool, normalise):
    best = concepts.maximising_samples(
        network,
        COMPOSITES["plus"],
        [X[:4], X[4:]],
        at="second",
        by=by,
        target=2,
        k=6,
        pool=pool,
        normalise=normalise,
        **LAST,
    )
    expected = {
        field: DATA[f"best/{by}/{pool}/{normalise}/{field}"].T for field in ("score", "index", "position")
    }
    close(best.score, expected["score"], tolerance=1e-9)
    np.testing.assert_array_equal(best.index, expected["index"])
    np.testing.assert_array_equal(best.position, expected["position"])


# -------------------------------------------------------------------------------------------------------------------------- conditions

RNG = np.random.default_rng(0)
W1, W2, W3 = (jnp.asarray(RNG.normal(size=s)) for s in ((3, 4), (4, 4), (4, 2)))
XS = jnp.asarray(RNG.normal(size=(5, 3)))
ZERO = lrpjax.Composite([("*", rules.Epsilon(0.0))])


def mlp(x):
    h = lrpjax.tag(jax.nn.relu(x @ W1), "low")
    h = lrpjax.tag(jax.nn.relu(h @ W2), "high")
    return h @ W3


def loops(x, low, high, target):
    """LRP-0 through the MLP with masks on both hidden layers, message by message."""
    W = [np.asarray(w) for w in (W1, W2, W3)]
    a = [np.asarray(x)]
    for w in W[:2]:
        a.append(np.maximum(a[-1] @ w, 0))
    R = (a[2] @ W[2]) * (np.arange(2) == target)
    for level, mask in ((2, high), (1, low), (0, np.ones(3))):
        z, below = a[level] @ W[level], np.zeros_like(a[level])
        for n, i, j in itertools.product(*map(range, (*a[level].shape, z.shape[1]))):
            if z[n, j] != 0:
                below[n, i] += mask[i] * a[level][n, i] * W[level][i, j] / z[n, j] * R[n, j]
        R = below
    return R


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_a_conjunction_of_fractional_masks_against_loops(wrap):
    low, high = RNG.random(4), RNG.random(4)
    explain = lambda low, high: concepts.relevance(mlp, ZERO, {"low": low, "high": high}, target=1)(XS)
    close(wrap(explain)(low, high), loops(XS, low, high, 1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_relevance_keeps_the_dtype(dtype):
    f = lambda x: lrpjax.tag(x @ W1.astype(dtype), "low").sum(-1)
    R = concepts.relevance(f, None, {"low": np.array([1.0, 0.5, 0.0, 1.0])})(XS.astype(dtype))
    assert R.dtype == dtype and jnp.isfinite(R).all()


def test_concepts_add_up_to_the_whole_and_come_from_one_forward_pass():
    """float32 as well: what XLA counts is one forward pass and a backward pass for each channel."""
    one = lambda c: concepts.relevance(mlp, ZERO, {"high": c}, target=0)(XS)
    close(jax.vmap(one)(jnp.arange(4)).sum(0), lrpjax.relevance(mlp, ZERO, target=0)(XS))


def flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


K = 8
KERNELS = [
    jnp.asarray(RNG.normal(size=s), jnp.float32)
    for s in ((3, 3, 3, 16), (3, 3, 16, K), (3, 3, K, 8), (8, 10))
]
IMAGE = jnp.asarray(RNG.normal(size=(1, 16, 16, 3)), jnp.float32)


def cnn(x):
    for i, kernel in enumerate(KERNELS[:3]):
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.nn.relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions))
        x = lrpjax.tag(x, f"conv{i}")
    return x.mean((1, 2)) @ KERNELS[3]


@pytest.mark.parametrize("around", [False, True])
def test_all_concepts_cost_one_forward_pass_and_one_backward_pass_each(around):
    composite = composites.epsilon()

    def heatmaps(x):
        one = lambda c: concepts.relevance(cnn, composite, {"conv1": c}, target=0, around=around)(x)
        return jax.vmap(one)(jnp.arange(K))

    forward = flops(cnn, IMAGE)
    single = flops(lambda x: lrpjax.relevance(cnn, composite, target=0)(x), IMAGE)
    assert flops(heatmaps, IMAGE) <= 1.05 * (forward + K * (single - forward))
    assert flops(heatmaps, IMAGE) < 0.85 * K * single


def test_traces_the_function_once():
    calls = []

    def f(x):
        calls.append(1)
        return mlp(x)

    jax.vmap(lambda c: concepts.relevance(f, ZERO, {"high": c}, target=0)(XS))(jnp.arange(4))
    assert len(calls) == 1


def test_globs_condition_every_unit_that_matches():
    def f(x):
        for i, w in enumerate((W1, W2)):
            with jax.named_scope(f"layer{i}"):
                x = jax.nn.relu(x @ w)
        return x @ W3

    close(
        concepts.relevance(f, ZERO, {"layer*": [0, 2]}, target=0)(XS),
        concepts.relevance(f, ZERO, {"layer0": [0, 2], "layer1": [0, 2]}, target=0)(XS),
    )


def test_a_mask_may_differ_between_examples_and_positions():
    mask = RNG.random((5, 4))
    rows = [concepts.relevance(mlp, ZERO, {"low": m}, target=0)(XS[i : i + 1])[0] for i, m in enumerate(mask)]
    close(concepts.relevance(mlp, ZERO, {"low": mask}, target=0)(XS), jnp.stack(rows))


def test_relevance_is_that_of_the_mask_as_a_function():
    """d R / d mask is what the mask lets through, so conditions can be trained."""
    total = lambda mask: concepts.relevance(mlp, ZERO, {"high": mask}, target=0)(XS)[0, 0]
    ones = jnp.ones(4)
    close(jax.grad(total)(ones) @ ones, total(ones))


def test_gradient_family_masks_the_gradient():
    explain = concepts.relevance(mlp, composites.gradient(), {"high": 1}, target=0)
    high = lambda x: jax.nn.relu(jax.nn.relu(x @ W1) @ W2)[:, 1].sum() * W3[1, 0]
    close(explain(XS), jax.grad(high)(XS))


def test_has_aux_argnums_and_keyword_arguments():
    f = lambda a, b, scale: (mlp(a * b) * scale, a + 1)
    explain = concepts.relevance(f, ZERO, {"high": [0, 1]}, argnums=(0, 1), target=0, has_aux=True)
    (Ra, Rb), aux = explain(XS, XS, scale=2.0)  # of twice the logit, half to each factor
    plain = concepts.relevance(mlp, ZERO, {"high": [0, 1]}, target=0)(XS * XS)
    close(Ra, plain)
    close(Rb, plain)
    close(aux, XS + 1)


# --------------------------------------------------------------------------------------------------------------------------- ways around


def residual(x):
    h = lrpjax.tag(x @ W1, "branch")
    h = lrpjax.tag(h @ W2, "end") + (x @ W1)
    return h @ W3


def test_ways_around_a_condition_count_only_where_asked_for():
    via = lambda m: concepts.relevance(residual, ZERO, {"branch": m}, target=0)(XS)
    both = lambda m: concepts.relevance(residual, ZERO, {"branch": m}, target=0, around=True)(XS)
    whole = lrpjax.relevance(residual, ZERO, target=0)(XS)
    skip = both(jnp.zeros(4))
    close(both(jnp.ones(4)), whole)
    close(via(jnp.ones(4)) + skip, whole, tolerance=1e-10)
    close(via(jnp.zeros(4)), jnp.zeros_like(XS))
    # y = Σ of both terms, each in proportion: by hand, what goes through the branch is its share of R
    R = (XS @ W1 @ W2 + XS @ W1) * W3[:, 0]
    share = R * (XS @ W1 @ W2) / (XS @ W1 @ W2 + XS @ W1)
    close(via(jnp.ones(4)).sum(-1), share.sum(-1), tolerance=1e-10)


def test_ways_around_conjunctions_and_relevance_at_intermediate_values():
    def f(x):
        a = lrpjax.tag(x @ W1, "a")
        b = lrpjax.tag(a @ W2 + a, "b")
        c = lrpjax.tag(b @ W2, "c") + b
        return c @ W3

    names = ("a", "c")
    masks = {"c": np.array([1.0, 0, 1, 0]), "a": np.array([0, 1.0, 1, 0])}
    found = concepts.relevance(f, ZERO, masks, target=0, at=("b", *names))(XS)
    only = concepts.relevance(f, ZERO, {"c": masks["c"]}, target=0, at="b")(XS)
    close(found["b"], only, tolerance=1e-10)  # the condition on a lies below
    top = concepts.relevance(f, ZERO, {"c": masks["c"]}, target=0, at="c", around=True)(XS)
    close(found["c"], top, tolerance=1e-10)
    passing_c = concepts.relevance(f, ZERO, {"c": masks["c"]}, target=0, at="a")(XS)
    close(found["a"], passing_c * masks["a"], tolerance=1e-10)
    # the input is reached through a alone, so conditioning it is what masking its relevance is
    through = concepts.relevance(f, ZERO, masks, target=0)(XS)
    expected = lrpjax.vjp(lambda x: x @ W1, ZERO, XS)[1](passing_c * masks["a"])[0]
    close(through, expected, tolerance=1e-10)


def test_several_arguments_with_a_way_around_for_one_of_them():
    f = lambda x, y: (lrpjax.tag(x @ W1, "mid") + y) @ W3
    x, y = XS, XS @ W1
    Rx, Ry = concepts.relevance(f, ZERO, {"mid": [0, 1]}, argnums=(0, 1), target=0)(x, y)
    half = lrpjax.relevance(f, ZERO, argnums=1, target=0)(x, y) * jnp.array([1.0, 1, 0, 0])
    close(Rx, lrpjax.vjp(lambda x: x @ W1, ZERO, x)[1](half)[0])
    assert jnp.isfinite(Ry).all()


# ------------------------------------------------------------------------------------------------------------------------ control flow


def cell(h, w):
    h = lrpjax.tag(jax.nn.relu(h @ w), "cell")
    return h, None


STACK = jnp.asarray(RNG.normal(size=(3, 4, 4)))


def unrolled(h):
    for i, w in enumerate(STACK):
        h = lrpjax.tag(jax.nn.relu(h @ w), f"cell{i}")
    return h @ W3


@pytest.mark.parametrize("remat", [False, True])
def test_conditions_inside_a_scan_one_for_each_step_or_one_for_all(remat):
    body = jax.checkpoint(cell) if remat else cell
    scanned = lambda h: lax.scan(body, h, STACK)[0] @ W3
    h = jnp.abs(XS @ W1)
    masks = RNG.random((3, 1, 4))
    each = concepts.relevance(scanned, ZERO, {"cell": masks}, target=0, around=True)(h)
    close(each, concepts.relevance(unrolled, ZERO, {f"cell{i}": m for i, m in enumerate(masks)}, target=0)(h))
    every = concepts.relevance(scanned, ZERO, {"cell": [1, 2]}, target=0, around=True)(h)
    close(every, concepts.relevance(unrolled, ZERO, {f"cell{i}": [1, 2] for i in range(3)}, target=0)(h))
    close(concepts.relevance(scanned, ZERO, {"cell": [1, 2]}, target=0)(h), every)


def test_conditions_inside_a_branch():
    branches = [lambda h: lrpjax.tag(h @ W2, "branch"), lambda h: h @ W2]
    f = lambda h, i: lax.switch(i, branches, h) @ W3
    h = XS @ W1
    explain = jax.jit(concepts.relevance(f, ZERO, {"branch": [0]}, target=0, around=True))
    expected = concepts.relevance(lambda h: lrpjax.tag(h @ W2, "m") @ W3, ZERO, {"m": [0]}, target=0)(h)
    close(explain(h, 0), expected)
    close(explain(h, 1), lrpjax.relevance(lambda h: h @ W2 @ W3, ZERO, target=0)(h))


def test_channel_relevance_of_a_scanned_value_keeps_the_steps():
    scanned = lambda h: lax.scan(cell, h, STACK)[0] @ W3
    h = jnp.abs(XS @ W1)
    steps = concepts.channel_relevance(scanned, ZERO, at="cell", target=0)(h)
    expected = lrpjax.relevance(unrolled, ZERO, at=[f"cell{i}" for i in range(3)], target=0)(h)
    close(steps, jnp.stack([expected[f"cell{i}"] for i in range(3)]))


# ------------------------------------------------------------------------------------------------------------------ channels and samples


def test_channel_relevance_sums_positions_and_obeys_conditions():
    explain = concepts.channel_relevance(
        network, ZERO, at="first", conditions={"second": [1]}, target=0, **LAST
    )
    R = concepts.relevance(network, ZERO, {"second": [1]}, target=0, at="first", **LAST)(X)
    close(explain(X), R.sum((2, 3)))
    several = concepts.channel_relevance(network, ZERO, at=("first", "second"), target=0, **LAST)(X)
    assert {k: v.shape for k, v in several.items()} == {"first": (6, 4), "second": (6, 5)}


SET = jnp.asarray(RNG.normal(size=(37, 6, 3)))


def conv1d(x):
    x = lax.conv_general_dilated(
        x, W1[:, None, :].swapaxes(0, 1)[:1], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return lrpjax.tag(jax.nn.relu(x), "features").sum(1) @ W3


def test_maximising_samples_against_a_sort_of_everything():
    R = np.asarray(lrpjax.relevance(conv1d, at="features", target="max")(SET))
    batches = [SET[i : i + 8] for i in range(0, 37, 8)]
    best = concepts.maximising_samples(conv1d, None, batches, at="features", k=5)
    order = np.argsort(-R.sum(1), 0, kind="stable")[:5]
    np.testing.assert_array_equal(best.index, order.T)
    close(best.score, np.take_along_axis(R.sum(1), order, 0).T)
    np.testing.assert_array_equal(best.position, np.take_along_axis(R.argmax(1), order, 0).T)
    assert best.seen == 37


@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_samples_go_on_and_merge(by):
    find = lambda batches, **kw: concepts.maximising_samples(
        conv1d, None, batches, at="features", by=by, k=4, **kw
    )
    whole = find([SET])
    chex.assert_trees_all_close(find([SET[20:30], SET[30:]], previous=find([SET[:20]])), whole, rtol=1e-12)
    apart = find([SET[20:]])
    shifted = apart._replace(index=apart.index + 20)
    chex.assert_trees_all_close(find([SET[:20]]).merge(shifted), whole, rtol=1e-12)


def test_samples_with_a_target_for_each_batch_and_fewer_samples_than_k():
    labels = np.arange(3) % 2
    best = concepts.maximising_samples(
        conv1d, None, [(SET[:2], labels[:2]), (SET[2:3], labels[2:])], at="features", k=5
    )
    R = np.asarray(lrpjax.relevance(conv1d, at="features", target=labels)(SET[:3])).sum(1)
    close(best.score[:, :3], -np.sort(-R, 0).T)
    assert (best.index[:, 3:] == -1).all() and (best.position[:, 3:] == -1).all()
    assert (best.score[:, 3:] == -np.inf).all()


def test_a_stream_compiles_once_and_keeps_no_batch():
    traces = []

    def f(x):
        traces.append(1)
        return conv1d(x)

    concepts.maximising_samples(f, None, (SET[i : i + 8] for i in range(0, 37, 8)), at="features")
    assert len(traces) == 1


def test_samples_in_float32_and_bfloat16():
    for dtype in (jnp.float32, jnp.bfloat16):
        f = lambda x: lrpjax.tag(x, "in") @ W3[:3].astype(x.dtype)
        best = concepts.maximising_samples(f, None, [XS.astype(dtype)], at="in", k=2)
        assert best.score.dtype == jnp.float32 and best.index.dtype == jnp.int32


# ---------------------------------------------------------------------------------------------------------------------- receptive fields


def stacked(x, relu=jax.nn.relu):
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = relu(
        lax.conv_general_dilated(x, jnp.zeros((3, 3, 1, 2)), (1, 1), "SAME", dimension_numbers=dimensions)
    )
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = lax.conv_general_dilated(x, -jnp.ones((3, 1, 2, 2)), (1, 1), "VALID", dimension_numbers=dimensions)
    return lrpjax.tag(relu(x), "top").sum((1, 2))


def test_receptive_fields_by_the_rule_of_sizes():
    """3×3 SAME, max pool 2, 3×1 VALID: rows 2p−1 … 2p+7, columns 2p−1 … 2p+3, cut at the borders; with kernels of zeros too."""
    fields = concepts.receptive_fields(stacked, at="top", batch=3)(jnp.ones((4, 12, 9, 1)))
    assert fields.shape == (4, 4, 2, 2) and fields.dtype == jnp.int32
    for i, j in np.ndindex(4, 4):
        expected = [[max(2 * i - 1, 0), min(2 * i + 7, 12)], [max(2 * j - 1, 0), min(2 * j + 3, 9)]]
        np.testing.assert_array_equal(fields[i, j], expected)


def test_receptive_fields_channels_first_and_of_dense_values():
    fields = concepts.receptive_fields(network, at="second", channel_axis=1)(X)
    i = np.arange(6)
    np.testing.assert_array_equal(fields[:, 0, 0], np.stack([np.maximum(i - 1, 0), np.minimum(i + 4, 8)], -1))
    np.testing.assert_array_equal(
        concepts.receptive_fields(network, at="dense", channel_axis=1)(X), [[0, 8], [0, 8]]
    )


def test_crops_hold_what_relevance_of_one_position_touches():
    best = concepts.maximising_samples(network, COMPOSITES["plus"], [X], at="second", k=1, target=0, **LAST)
    fields = concepts.receptive_fields(network, at="second", channel_axis=1)(X).reshape(-1, 2, 2)
    for channel in range(5):
        sample, position = int(best.index[channel, 0]), int(best.position[channel, 0])
        mask = np.zeros((5, 36))
        mask[channel, position] = 1
        R = concepts.relevance(network, COMPOSITES["plus"], {"second": mask.reshape(5, 6, 6)}, target=0)(X)[
            sample
        ]
        inside = concepts.crop(R, fields[position], channel_axis=0)
        close(np.abs(inside).sum(), np.abs(R).sum())
        assert inside.shape[1] <= 5


# --------------------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("conditions", "error", "match"),
    [
        ({}, ConditionError, "conditions are a mapping"),
        ([1], ConditionError, "conditions are a mapping"),
        (
            {"low": np.ones(3)},
            ConditionError,
            r"mask for 'low' has shape \(3,\), which does not broadcast to \(5, 4\)",
        ),
        ({"low": []}, ConditionError, "does not broadcast"),
        ({"low": np.ones((2, 5, 4))}, ConditionError, "does not broadcast"),
        ({"low": 4}, ConditionError, "'low' has 4 channels, 0 … 3, but the condition names 4"),
        ({"low": [0, -1]}, ConditionError, "has 4 channels"),
        ({"low": [[0]]}, ConditionError, "a condition is a channel, a list of channels or a mask"),
        ({"low": "a"}, ConditionError, "a condition is a channel"),
        ({"nowhere": 0}, lrpjax.PathError, "nowhere"),
        ({"no*": 0}, lrpjax.PathError, "matches no unit"),
    ],
)
def test_bad_conditions(conditions, error, match):
    with pytest.raises(error, match=match):
        concepts.relevance(mlp, None, conditions, target=0)(XS)


def test_a_condition_where_no_relevance_flows():
    f = lambda x: mlp(x) * lax.stop_gradient(lrpjax.tag(jnp.tanh(x[:, :1]), "gate"))
    with pytest.raises(lrpjax.PathError, match="'gate' is on a value through which no relevance flows"):
        concepts.relevance(f, None, {"gate": 0}, target=0)(XS)


def test_a_traced_channel_that_does_not_exist_is_nan():
    R = jax.vmap(lambda c: concepts.relevance(mlp, None, {"low": c}, target=0)(XS))(jnp.array([0, 4]))
    assert jnp.isfinite(R[0]).all() and jnp.isnan(R[1]).any()


def test_bad_axes():
    with pytest.raises(ConditionError, match="no axis 2 for channels"):
        concepts.relevance(mlp, None, {"low": 0}, channel_axis=2)(XS)
    with pytest.raises(ConditionError, match="first axis counts examples"):
        concepts.channel_relevance(mlp, at="low", channel_axis=0)(XS)
    with pytest.raises(ConditionError, match="it needs examples first"):
        concepts.receptive_fields(mlp, at="low")(XS)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"by": "size"}, "by must be"),
        ({"pool": "mean"}, "pool must be"),
        ({"k": 0}, "k must be at least 1"),
        ({"batches": []}, "no batches"),
        ({"batches": [SET * jnp.nan]}, "is NaN for some samples"),
        ({"at": "nowhere"}, "nowhere"),
        ({"channel_axis": 0}, "first axis counts examples"),
    ],
)
def test_bad_samples(options, match):
    options = {"at": "features", "batches": [SET], "composite": None} | options
    with pytest.raises((ValueError, lrpjax.LrpjaxError), match=match):
        concepts.maximising_samples(conv1d, **options)


def test_samples_that_do_not_fit_together():
    one = Samples(jnp.zeros((3, 2)), jnp.zeros((3, 2), jnp.int32), jnp.zeros((3, 2), jnp.int32), jnp.int32(2))
    with pytest.raises(ConditionError, match="of 3 channels cannot be merged with samples of 4"):
        one.merge(one._replace(score=jnp.zeros((4, 2))))
    with pytest.raises(ValueError, match="k=8, but the previous samples are 2"):
        concepts.maximising_samples(conv1d, None, [SET], at="features", previous=one)
    merged_rows = lambda x: lrpjax.tag(x.reshape(-1, 3), "rows") @ W1
    with pytest.raises(ConditionError, match="does not count the 37 samples"):
        concepts.maximising_samples(merged_rows, None, [SET], at="rows")
    with pytest.raises(ConditionError, match="`at` must name one value"):
        concepts.maximising_samples(network, None, [X], at="*")


def test_a_field_behind_a_comparison_that_drops_nan():
    with pytest.raises(ConditionError, match="does not become NaN"):
        concepts.receptive_fields(lambda x: stacked(x, lambda v: jnp.where(v > 0, v, 0.0)), at="top")(
            jnp.ones((1, 8, 8, 1))
        )


def test_a_crop_of_another_rank():
    with pytest.raises(ConditionError, match=r"a field for a sample of shape \(8, 8, 3\) is \[2, 2\]"):
        concepts.crop(np.zeros((8, 8, 3)), [0, 3])


def test_rules_that_need_plain_relevance_are_conditioned_too():
    composite = lrpjax.Composite([(select.kind("dense"), rules.Flat())])
    parts = [concepts.relevance(mlp, composite, {"low": c}, target=0)(XS) for c in range(4)]
    close(sum(parts), lrpjax.relevance(mlp, composite, target=0)(XS))
