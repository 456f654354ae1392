"""Concept activation vectors and ClArC: against slow NumPy, hand-written models, and what theory says."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import composites, patterns, repair
from lrpjax.repair import RepairError

CHANNELS, CLASSES = 6, 3


def close(a, b, tolerance=1e-10):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


class Net(nn.Module):
    """Two convolutions and a dense layer, without biases where conservation is to be exact."""

    bias: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(CHANNELS, (3, 3), use_bias=self.bias, param_dtype=x.dtype)(x))
        x = nn.relu(nn.Conv(CHANNELS, (3, 3), use_bias=self.bias, param_dtype=x.dtype, name="last")(x))
        return nn.Dense(CLASSES, use_bias=self.bias, param_dtype=x.dtype)(x.sum((1, 2)))


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 4, 2)))


def network(images, bias=True):
    model = Net(bias)
    params = jax.jit(model.init)(jax.random.key(0), images)
    if bias:
        params = jax.tree.map(lambda p: p + 0.1, params)
        # No class is predicted of all images.
        params["params"]["Dense_0"]["bias"] -= model.apply(params, images).mean(0)
    return params, lambda x: model.apply(params, x)


def written_out(params, x, change):
    """`Net` with the output of its last convolution changed, in plain JAX."""
    p = params["params"]

    def conv(x, layer):
        y = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + layer.get("bias", 0.0)

    h = change(conv(jax.nn.relu(conv(x, p["Conv_0"])), p["last"]))
    return jax.nn.relu(h).sum((1, 2)) @ p["Dense_0"]["kernel"] + p["Dense_0"].get("bias", 0.0)


def some_cav(seed=0, pool="mean", shift=3.0, shape=(CHANNELS,)):
    draw = np.random.default_rng(seed)
    t = np.arange(40) % 2 == 0
    a = draw.normal(size=(40, *shape)) + shift * t.reshape(-1, *[1] * len(shape)) * draw.normal(size=shape)
    return repair.cav(a, t, pool=pool)


# ------------------------------------------------------------------------------------------------------------- directions


def test_pattern_is_the_covariance_with_the_label_over_its_variance():
    draw = np.random.default_rng(1)
    a, t = draw.normal(size=(30, 4)), draw.random(30) < 0.3
    wanted = np.zeros(4)
    for c in range(4):
        covariance = sum((a[n, c] - a[:, c].mean()) * (t[n] - t.mean()) for n in range(30)) / 30
        wanted[c] = covariance / (sum((t[n] - t.mean()) ** 2 for n in range(30)) / 30)
    found = repair.cav(a, t)
    close(found.direction, wanted / np.linalg.norm(wanted))
    difference = a[t].mean(0) - a[~t].mean(0)
    close(wanted, difference)  # what is said of labels of two kinds
    close(found.present - found.absent, np.linalg.norm(difference))
    close(found.present, np.mean([row @ found.direction for row in a[t]]))


def test_pattern_is_that_of_the_patterns_module_for_a_layer_that_gives_the_label():
    draw = np.random.default_rng(2)
    a, t = draw.normal(size=(40, 4)), np.arange(40) < 13
    kernel = jnp.zeros((5, 1)).at[4].set(1.0)
    rows = np.concatenate([a, t[:, None]], 1)
    fitted = patterns.fit(lambda x: x @ kernel, [rows[:20], rows[20:]], kind="linear")["dense"].ravel()
    close(fitted[4], 1.0)
    close(repair.cav(a, t).direction, fitted[:4] / jnp.linalg.norm(fitted[:4]))


@pytest.mark.parametrize("method", ["svm", "ridge", "logistic", "lasso"])
def test_only_the_pattern_points_at_the_concept_under_correlated_noise(method):
    """The claim of Pahde et al. 2022: filters turn away from distractors that share the concept's direction."""
    draw = np.random.default_rng(3)
    planted, other = np.eye(8)[0], (np.eye(8)[0] + np.eye(8)[1]) / np.sqrt(2)
    t = np.arange(4000) % 2 == 0
    a = t[:, None] * planted + 3.0 * draw.normal(size=(4000, 1)) * other + 0.1 * draw.normal(size=(4000, 8))
    pattern, filtered = repair.cav(a, t), repair.cav(a, t, method)
    assert pattern.direction @ planted > 0.98
    assert filtered.direction @ planted < 0.85
    assert abs(filtered.direction @ other) < 0.1  # it is blind to what disturbs
    assert filtered.auc > 0.99 > 0.8 > pattern.auc  # and separates better


def test_quality_is_measured_on_held_out_samples():
    a = np.array([[0.0, 1.0], [1.0, 0.0], [4.0, 1.0], [5.0, 0.0]])
    t = np.array([False, False, True, True])
    other = np.array([[2.0, 9.0], [3.0, 9.0], [2.5, -9.0], [8.0, 9.0], [8.0, 0.0]])
    labels = np.array([False, False, True, True, False])
    found = repair.cav(a, t, held_out=(other, labels))
    close(found.direction, [1.0, 0.0])
    # Pairs: 2.5 beats 2 only; 8 beats 2 and 3 and draws with 8.
    close(found.auc, (1 + 2.5) / 6)
    assert found.held_out and not repair.cav(a, t).held_out
    close(repair.cav(a, t).threshold, 2.5)
    # Of the cuts, 2.25 finds both and passes one of three; 5.5 finds one and passes two.
    close(found.threshold, 2.25)


def test_pooling_when_fitting_and_when_scoring():
    draw = np.random.default_rng(4)
    a, t = draw.normal(size=(20, 3, 2, 4)), np.arange(20) % 2 == 0
    for pool, reduced in (("mean", a.mean((1, 2))), ("max", a.max((1, 2)))):
        found, wanted = repair.cav(a, t, pool=pool), repair.cav(reduced, t)
        close(found.direction, wanted.direction)
        close(found.along(a), reduced @ found.direction)
    whole = repair.cav(a, t, pool="whole")
    close(whole.direction.ravel(), repair.cav(a.reshape(20, -1), t).direction)
    close(whole.along(a), a.reshape(20, -1) @ whole.direction.ravel())


def test_filters_point_to_the_concept_and_take_options():
    a, t = np.random.default_rng(5).normal(size=(60, 3)), np.arange(60) % 2 == 0
    a[:, 1] -= 2.0 * t
    for method in ("svm", "ridge", "logistic", "lasso"):
        found = repair.cav(a, t, method)
        assert found.present > found.absent and found.direction[1] < -0.9
        close(np.linalg.norm(found.direction), 1.0)
    soft, hard = repair.cav(a, t, "svm", C=1e-4), repair.cav(a, t, "svm", C=10.0)
    assert np.abs(soft.direction - hard.direction).max() > 1e-3


def test_activations_of_a_stream(images):
    params, f = network(images)
    values = {}
    written_out(params, images, lambda h: values.setdefault("h", h))
    batches = [images[:2], images[2:4], images[4:]]
    close(repair.activations(f, batches, at="Net/last"), values["h"])
    close(repair.activations(f, batches, at="Net/last", pool="mean"), values["h"].mean((1, 2)))
    close(repair.activations(f, batches, at="Net/last", pool="max"), values["h"].max((1, 2)))


# --------------------------------------------------------------------------------------------------------------- on models


def test_projection_is_the_model_with_its_value_moved(images):
    params, f = network(images)
    found = some_cav()
    v, seen = found.direction, {}

    def moved(h):
        seen["h"] = h - ((h @ v) - found.absent)[..., None] * v
        return seen["h"]

    projected = repair.project(f, {"Net/last": found})
    close(jax.jit(projected)(images), written_out(params, images, moved))
    close(seen["h"] @ v, found.absent)
    close(
        jax.grad(lambda x: projected(x)[:, 1].sum())(images),
        jax.grad(lambda x: written_out(params, x, moved)[:, 1].sum())(images),
    )
    augmented = repair.augment(f, {"Net/last": found})
    added = lambda h: h + (found.present - (h @ v))[..., None] * v
    close(augmented(images), written_out(params, images, added))
    assert np.abs(projected(images) - f(images)).max() > 0.1
    # A function of parameters can be trained with the value moved.
    model = Net()
    train = lambda p: repair.augment(model.apply, {"Net/last": found})(p, images).sum()
    slopes, wanted = (jax.grad(g)(params) for g in (train, lambda p: written_out(p, images, added).sum()))
    jax.tree.map(close, slopes, wanted)


def test_directions_of_whole_values_and_several_at_once(images):
    params, f = network(images)
    whole = some_cav(seed=1, pool="whole", shape=(4, 4, CHANNELS))
    seen = {}

    def kept(h):
        seen["h"] = h
        return h

    written_out(params, images, kept)
    step = lambda h: h - jnp.einsum("n,hwc->nhwc", whole.along(h) - whole.absent, whole.direction)
    close(repair.project(f, {"Net/last": whole})(images), written_out(params, images, step))
    close(whole.along(step(seen["h"])), whole.absent)

    several = [some_cav(seed=2), some_cav(seed=3)]
    put = {}

    def g(x):
        put["h"] = lrpjax.tag(x, "h")
        return lrpjax.tag(1.0 * put["h"], "after")

    h = jnp.asarray(np.random.default_rng(6).normal(size=(7, CHANNELS)))
    after = repair.project(g, {"h": several})(h)
    for one in several:
        close(after @ one.direction, one.absent)
    # The step lies in the span of the directions: it is the shortest one.
    basis = np.linalg.qr(np.stack([one.direction for one in several]).T)[0]
    close((after - h) - (after - h) @ basis @ basis.T, 0.0)
    assert abs(several[0].direction @ several[1].direction) > 0.01


def test_samples_for_which_no_condition_holds_are_bit_identical():
    images = jnp.asarray(np.random.default_rng(12).normal(size=(12, 4, 4, 2)))
    _, f = network(images)
    found = some_cav(pool="max")
    plain = f(images)
    projected = repair.project(f, {"Net/last": found})(images)
    predicted = np.asarray(plain.argmax(1))
    chosen = predicted == predicted[0]
    assert chosen.any() and not chosen.all()
    scores = found.along(repair.activations(f, [images], at="Net/last"))
    limit = float(np.median(scores))
    above = np.asarray(scores > limit)
    for condition, wanted in (
        ({"classes": int(predicted[0])}, chosen),
        ({"classes": [0, 1, 2]}, np.ones(12, bool)),
        ({"detect": limit}, above),
        ({"classes": int(predicted[0]), "detect": limit}, chosen & above),
    ):
        reacting = repair.react(f, {"Net/last": found}, **condition)
        for run in (reacting, jax.jit(reacting)):
            now = run(images)
            close(now[wanted], projected[wanted])
            close(now[~wanted], plain[~wanted])
        bits = np.asarray(reacting(images)[~wanted]).tobytes()
        assert bits == np.asarray(repair.react(f, {"Net/last": found}, detect=1e9)(images)[~wanted]).tobytes()
        assert bits == np.asarray(f(images)[~wanted]).tobytes()
    assert 0 < (chosen & above).sum() < min(chosen.sum(), above.sum())
    default = repair.react(f, {"Net/last": found}, detect=True)(images)
    there = np.asarray(scores > found.threshold)
    close(default, np.where(there[:, None], projected, plain))


def test_reactions_can_be_put_around_each_other(images):
    _, f = network(images)
    a, b = some_cav(seed=7), some_cav(seed=8)
    inner = repair.react(f, {"Net/last": a}, detect=-1e9)
    outer = repair.react(inner, {"Net/Conv_0": b}, detect=-1e9)
    both = repair.project(f, {"Net/last": a, "Net/Conv_0": b})
    close(outer(images), both(images))
    close(jax.grad(lambda x: outer(x).sum())(images), jax.grad(lambda x: both(x).sum())(images))


# ------------------------------------------------------------------------------------------------------------- relevance


def test_paths_kinds_and_rules_are_those_of_the_model(images):
    _, f = network(images)
    composite = composites.epsilon_plus()
    table = lambda g: [
        (u.path, u.kind, repr(u.rule)) for u in lrpjax.plan(g, composite, images).units if u.path
    ]
    found = some_cav()
    assert table(repair.project(f, {"Net/last": found})) == table(f)
    assert table(repair.react(f, {"Net/last": found}, classes=0, detect=True)) == table(f)


@pytest.mark.parametrize("kind", ["project", "augment", "react"])
def test_relevance_of_a_corrected_model_is_conserved(images, kind):
    """Without biases, and with the value moved to 0 along the direction, no layer absorbs anything."""
    _, f = network(images, bias=False)
    t = np.arange(40) % 2 == 0
    a = np.random.default_rng(9).normal(size=(40, CHANNELS)) + 2.0 * t[:, None]
    v = repair.cav(a, t).direction
    at_zero = a - (t == (kind == "augment"))[:, None] * (a @ v)[:, None] * v  # the mean that counts is 0
    found = repair.cav(at_zero, t)
    assert abs(found.present if kind == "augment" else found.absent) < 1e-10
    put = {"Net/last": found}
    corrected = {
        "project": repair.project(f, put),
        "augment": repair.augment(f, put),
        "react": repair.react(f, put, classes=int(f(images).argmax(1)[0])),
    }[kind]
    R = lrpjax.relevance(corrected, composites.epsilon(0.0), target=1)(images)
    close(R.sum((1, 2, 3)), corrected(images)[:, 1], 1e-5)
    assert np.abs(R - lrpjax.relevance(f, composites.epsilon(0.0), target=1)(images)).max() > 1e-3


def test_relevance_through_the_step_is_that_of_a_linear_layer():
    found = some_cav()
    v, w = found.direction, np.random.default_rng(10).normal(size=CHANNELS)
    f = lambda h: lrpjax.tag(h, "h") @ w
    h = np.random.default_rng(11).normal(size=(4, CHANNELS))
    P = np.eye(CHANNELS) - np.outer(v, v)
    for composite in (composites.epsilon(), composites.epsilon_plus(), composites.gamma_stages(-3.0, 3.0)):
        R = lrpjax.relevance(repair.project(f, {"h": found}), composite)(h)
        close(R, h * (P @ w), 1e-3)  # but for the stabiliser
        # The bias v z⁻ keeps what is its own.
        close(R.sum(1), h @ P @ w, 1e-3)
        close(repair.project(f, {"h": found})(h) - R.sum(1), found.absent * (v @ w), 1e-3)
    close(jax.grad(lambda h: repair.project(f, {"h": found})(h).sum())(h), np.broadcast_to(P @ w, h.shape))


def test_samples_left_alone_keep_their_relevance(images):
    _, f = network(images)
    reacting = repair.react(f, {"Net/last": some_cav()}, classes=int(f(images).argmax(1)[0]))
    left = np.asarray(f(images).argmax(1) != f(images).argmax(1)[0])
    composite = composites.epsilon_plus()
    for at in (None, "Net/last", "Net/Conv_0"):
        new, old = (lrpjax.relevance(g, composite, target=1, at=at)(images) for g in (reacting, f))
        close(new[left], old[left], 1e-6)
        assert left.any() and np.abs(new - old)[~left].max() > 1e-3


def test_the_artefact_loses_its_relevance():
    """A mark that only the concept's direction carries: after the projection it has no relevance at all."""
    w = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    f = lambda x: lrpjax.tag(x @ w, "h") @ jnp.array([[1.0, 0.0], [3.0, 1.0]])
    x = jnp.array([[2.0, 1.0, 4.0]])
    found = repair.cav(np.array([[1.0, 0.0], [1.0, 5.0]]), np.array([False, True]))
    before, after = (
        lrpjax.relevance(g, composites.epsilon(0.0), target=0)(x)
        for g in (f, repair.project(f, {"h": found}))
    )
    close(before, [[2.0, 3.0, 24.0]])
    close(after, [[2.0, 0.0, 0.0]], 1e-6)  # but for the stabiliser


# ------------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("a", "t", "arguments", "message"),
    [
        (np.ones((4, 2)), np.zeros(4, bool), {}, "all 4 samples lack the concept"),
        (np.ones((4, 2)), np.ones(4, bool), {}, "all 4 samples have the concept"),
        (np.ones((4, 2)), np.arange(4) < 2, {}, "they do not vary with it"),
        (0.1 * np.ones((7, 2)), np.arange(7) < 3, {}, "they do not vary with it"),
        (np.ones((4, 2)), np.arange(4) < 2, {"method": "svm"}, "they do not vary with it"),
        (np.eye(4), np.arange(4) < 2, {"method": "lasso", "alpha": 9.0}, "make alpha smaller"),
        (np.eye(4), np.arange(3) < 2, {}, "a bool for each of the 4 samples"),
        (np.eye(4), np.arange(4), {}, "a bool for each of the 4 samples"),
        (np.eye(4, dtype=int), np.arange(4) < 2, {}, "floating-point numbers"),
        (np.ones(4), np.arange(4) < 2, {}, "not float64 of shape"),
        (np.ones((4, 3, 2)), np.arange(4) < 2, {}, "say pool="),
        (np.ones((4, 3, 2)), np.arange(4) < 2, {"pool": "sum"}, "pool must be one of"),
        (np.eye(4), np.arange(4) < 2, {"method": "mean"}, "method must be one of"),
        (np.eye(4), np.arange(4) < 2, {"C": 1.0}, "a pattern has no options"),
        (np.array([[1.0], [np.nan], [np.inf]]), np.arange(3) < 2, {}, "in 2 samples, such as number 1"),
        (
            np.eye(4),
            np.arange(4) < 2,
            {"held_out": (np.eye(3), np.arange(3) < 1)},
            "have shape \\(3,\\) for a sample",
        ),
        (
            np.eye(4),
            np.arange(4) < 2,
            {"held_out": (np.eye(4), np.arange(4) < 0)},
            "all 4 held-out samples lack",
        ),
    ],
)
def test_activations_that_show_no_direction(a, t, arguments, message):
    with pytest.raises(RepairError, match=message):
        repair.cav(a, t, **arguments)


def test_directions_that_do_not_fit(images):
    _, f = network(images)
    found, wide = some_cav(), some_cav(shape=(9,))
    with pytest.raises(RepairError, match="'Net/last' has shape"):
        repair.project(f, {"Net/last": wide})(images)
    with pytest.raises(RepairError, match="the value has shape"):
        wide.along(images)
    with pytest.raises(lrpjax.PathError, match="nowhere"):
        repair.project(f, {"nowhere": found})(images)
    with pytest.raises(lrpjax.PathError, match="nowhere"):
        repair.activations(f, [images], at="nowhere")
    with pytest.raises(RepairError, match="different shapes"):
        repair.project(f, {"Net/last": [found, wide]})
    with pytest.raises(RepairError, match="linearly dependent"):
        repair.project(f, {"Net/last": [found, found]})
    for nothing in ({}, None, [found], {"Net/last": []}, {"Net/last": found.direction}):
        with pytest.raises(RepairError, match="CAV"):
            repair.augment(f, nothing)
    with pytest.raises(RepairError, match="takes a CAV of lrpjax"):
        repair.react(f, {"Net/last": [found]}, classes=1)


def test_conditions_that_do_not_fit(images):
    _, f = network(images)
    found = {"Net/last": some_cav()}
    with pytest.raises(RepairError, match="needs a condition"):
        repair.react(f, found)
    for wrong in ([], 0.5, [[1]]):
        with pytest.raises(RepairError, match="classes is a class or several"):
            repair.react(f, found, classes=wrong)
    with pytest.raises(RepairError, match="f has 3 classes"):
        repair.react(f, found, classes=3)(images)
    with pytest.raises(RepairError, match="needs outputs"):
        repair.react(lambda x: f(x)[:, 0], found, classes=1)(images)
    with pytest.raises(RepairError, match="does not begin as the predictions do"):
        repair.react(lambda x: f(x)[:2], found, classes=1)(images)
    with pytest.raises(RepairError, match="does not count the 5 samples"):
        repair.activations(lambda x: lrpjax.tag(x.sum(0), "h").sum(), [images], at="h")
    with pytest.raises(RepairError, match="no batches"):
        repair.activations(f, [], at="Net/last")
    with pytest.raises(RepairError, match="pool must be"):
        repair.activations(f, [images], at="Net/last", pool="sum")
    with pytest.raises(lrpjax.PathError, match="matches no unit"):
        repair.activations(f, [images], at="no*")
    with pytest.raises(RepairError, match="names 3"):
        repair.activations(f, [images], at="Net/*")
