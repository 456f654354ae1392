"""lrpjax.gradients against the golden files, zennit's occlusion, slow loops and hand-computed numbers."""

import itertools

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import REFERENCES

import lrpjax
from lrpjax import composites, gradients, metrics

RNG = np.random.default_rng(0)


FILES = ("mlp", "cnn", "cnn_bn", "activations", "transformer", "innvestigate_cnn")
METHODS = ("gradient", "input_x_gradient", "input_t_gradient", "integrated_gradients", "smooth_grad")


def golden_cases():
    for name in FILES:
        case = golden.load(f"{name}.npz")
        for analysis in case.analyses:
            if analysis["method"] in METHODS:
                yield pytest.param(case, analysis, id=f"{name}-{analysis['id']}")


@pytest.mark.parametrize(("case", "analysis"), list(golden_cases()))
def test_golden(case, analysis):
    method, seed, x = analysis["method"], jnp.asarray(case[analysis["seed"]]), case.x
    if method == "gradient":
        explain = gradients.gradient(case.f, target=seed)
    elif method in ("input_x_gradient", "input_t_gradient"):
        explain = gradients.input_x_gradient(case.f, target=seed)
    elif method == "smooth_grad":
        axes = tuple(range(1, x.ndim))
        sigma = analysis["noise_level"] * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
        explain = gradients.smoothgrad(case.f, target=seed, noise=case[analysis["noise"]] * sigma)
    else:  # zennit ends its path at the input, iNNvestigate one step before
        n = analysis["n_iter"] if analysis["peer"] == "zennit" else analysis["kwargs"]["steps"]
        steps = n if analysis["peer"] == "zennit" else np.arange(n) / n
        explain = gradients.integrated_gradients(case.f, target=seed, steps=steps)
    expected = case[analysis["relevance"]]
    with jax.numpy_dtype_promotion("standard"):  # the networks divide by NumPy integers
        got = jax.jit(explain)(x)
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


W1, W2 = jnp.asarray(RNG.normal(size=(6, 7))), jnp.asarray(RNG.normal(size=(7, 3)))


def mlp(x):
    with jax.named_scope("hidden"):
        h = jax.nn.relu(x @ jnp.asarray(W1, x.dtype) + jnp.asarray(0.1, x.dtype))
    return h @ jnp.asarray(W2, x.dtype)


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)))


# ---- gradient, sensitivity, gradient × input


def test_sensitivity_by_hand():
    f = lambda x: jnp.stack([x[:, 0] * x[:, 1], -3 * x[:, 0]], 1)
    x = jnp.array([[2.0, 5.0]])
    np.testing.assert_allclose(gradients.gradient(f, target=1)(x), [[-3.0, 0.0]])
    np.testing.assert_allclose(gradients.sensitivity(f, target=1)(x), [[3.0, 0.0]])
    np.testing.assert_allclose(gradients.sensitivity(f, target=0, squared=True)(x), [[25.0, 4.0]])
    np.testing.assert_allclose(gradients.input_x_gradient(f, target=0)(x), [[10.0, 10.0]])
    np.testing.assert_allclose(gradients.gradient(f)(x), [[2.0, 2.0]])
    np.testing.assert_allclose(gradients.gradient(f, target="max")(x), [[5.0, 2.0]])


@pytest.mark.parametrize("target", [None, "max", 2, np.array([0, 1, 2, 1])])
def test_agrees_with_the_transform(x, target):
    for method in ("gradient", "input_x_gradient"):
        ours = getattr(gradients, method)(mlp, target=target)(x)
        theirs = lrpjax.relevance(mlp, getattr(composites, method)(), target=target)(x)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_further_arguments_are_passed_on(x):
    f = lambda x, scale, *, shift: mlp(x * scale + shift)
    fixed = lambda x: f(x, 2.0, shift=0.5)
    for make in (
        lambda f: gradients.sensitivity(f, target=0),
        lambda f: gradients.integrated_gradients(f, target=0, steps=3),
        lambda f: gradients.occlusion(f, patch=2, channel_axis=None),
        lambda f: gradients.smooth(lrpjax.relevance(f, target=0), noise=np.zeros((2, 4, 6))),
    ):
        np.testing.assert_allclose(make(f)(x, 2.0, shift=0.5), make(fixed)(x), rtol=1e-10, atol=1e-12)


# ---- SmoothGrad


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_smooth_around_lrp_is_the_mean_over_the_copies(x, batch):
    noise = RNG.normal(size=(5, *x.shape)) * 0.1
    explain = lrpjax.relevance(mlp, composites.epsilon_plus(), target=1)
    expected = np.mean([explain(x + d) for d in noise], 0)
    np.testing.assert_allclose(gradients.smooth(explain, noise=noise, batch=batch)(x), expected, rtol=1e-10)


def test_smooth_draws_a_fraction_of_the_range_of_each_sample():
    x = jnp.stack([jnp.linspace(0.0, 10.0, 5000), jnp.linspace(-1.0, 1.0, 5000)])
    spread = gradients.smooth(lambda y: (y - x) ** 2, noise=0.1, samples=4, key=jax.random.key(0))(x)
    np.testing.assert_allclose(np.sqrt(spread.mean(1)), [1.0, 0.2], rtol=0.02)


def test_smooth_of_a_linear_function_is_its_gradient_and_the_key_decides_the_draw(x):
    explain = lambda key: gradients.smoothgrad(mlp, target=0, samples=4, key=key, noise=0.5)(x)
    np.testing.assert_array_equal(explain(jax.random.key(0)), explain(jax.random.key(0)))
    assert not np.allclose(explain(jax.random.key(0)), explain(jax.random.key(1)))
    linear = gradients.smoothgrad(lambda x: x @ W1, target=3, samples=4, key=jax.random.key(0))(x)
    np.testing.assert_allclose(linear, np.broadcast_to(W1[:, 3], x.shape), rtol=1e-12)


def test_smooth_keeps_the_structure_of_the_explanation(x):
    explain = lrpjax.relevance(mlp, target=1, at=["hidden"])
    got = gradients.smooth(explain, noise=np.zeros((3, *x.shape)))(x)
    np.testing.assert_allclose(got["hidden"], explain(x)["hidden"], rtol=1e-12)


# ---- integrated gradients


def test_integrated_gradients_is_complete_in_the_limit(x):
    baseline = jnp.full((1, 6), 0.3)
    gap = lambda steps: np.abs(
        metrics.completeness_gap(
            mlp,
            x,
            gradients.integrated_gradients(mlp, target=1, steps=steps, baseline=baseline)(x),
            target=1,
            baseline=baseline,
        )
    ).max()
    assert gap(1000) < 0.02 < gap(5)
    assert gap((np.arange(20) + 0.5) / 20) < gap(20)


def test_integrate_around_lrp(x):
    explain = lrpjax.relevance(mlp, target=2)
    points = [0.25, 0.5, 1.0]
    expected = np.mean([explain(a * x) for a in points], 0)
    got = gradients.integrate(explain, steps=points, times_input=False)(x)
    np.testing.assert_allclose(got, expected, rtol=1e-10)
    guided = lrpjax.relevance(mlp, composites.guided_backprop(), target=2)
    got = gradients.integrate(guided, steps=points, baseline=1.0, batch=2)(x)
    expected = (x - 1.0) * np.mean([guided(1.0 + a * (x - 1.0)) for a in points], 0)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14)


# ---- occlusion


def slow_occlusion(score, x, patch, stride, fill, keep):
    """Sum and number of the values of the windows that cover each pixel; x is [1, H, W, C]."""
    total, covered = np.zeros(x.shape[1:3]), np.zeros(x.shape[1:3])
    for i, j in itertools.product(range(0, x.shape[1], stride[0]), range(0, x.shape[2], stride[1])):
        inside = np.zeros(x.shape[1:3], bool)
        inside[i : i + patch[0], j : j + patch[1]] = True
        occluded = np.where((inside != keep)[None, :, :, None], np.broadcast_to(fill, x.shape), x)
        value = float(score(occluded)) if keep else float(score(x)) - float(score(occluded))
        total[inside] += value
        covered[inside] += 1
    return total, covered


WEIGHT = jnp.asarray(RNG.normal(size=(5 * 7 * 2, 3)))
IMAGES = RNG.normal(size=(3, 5, 7, 2))


def classifier(x):
    h = x.reshape(len(x), -1)
    return jnp.tanh(h @ WEIGHT) + h**2 @ WEIGHT


@pytest.mark.parametrize(
    ("measure", "keep", "patch", "stride"),
    [
        ("logit", False, (2, 3), (1, 2)),
        ("logit", True, (1, 2), (2, 3)),
        ("probability", False, (3, 3), (3, 3)),
        ("probability", True, (5, 7), (5, 7)),
        ("class", False, (2, 2), (1, 1)),
        ("class", True, (4, 4), (2, 3)),
    ],
)
def test_occlusion_equals_slow_loop(measure, keep, patch, stride):
    target = np.array([1, 0, 2])
    fill = metrics.channel_mean(IMAGES)
    options = {
        "patch": patch,
        "stride": stride,
        "target": target,
        "measure": measure,
        "fill": fill,
        "keep": keep,
    }
    mean = gradients.occlusion(classifier, **options, batch=3)(IMAGES)
    total = gradients.occlusion(classifier, **options, overlap="sum")(IMAGES)
    assert mean.shape == (3, 5, 7, 1)
    compiled = jax.jit(classifier)
    for b in range(3):
        score = lambda x, t=target[b]: {
            "logit": lambda y: y[0, t],
            "probability": lambda y: np.exp(y[0, t]) / np.exp(y[0]).sum(),
            "class": lambda y: float(y[0].argmax() == t),
        }[measure](np.asarray(compiled(x)))
        expected, covered = slow_occlusion(score, IMAGES[b : b + 1], patch, stride, fill[b : b + 1], keep)
        np.testing.assert_allclose(total[b, ..., 0], expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mean[b, ..., 0], expected / np.maximum(covered, 1), rtol=1e-9, atol=1e-12)


def test_occlusion_equals_zennit():
    """zennit's default keeps the window and sums; it repeats the map for every channel, channels first."""
    with np.load(REFERENCES / "zennit_occlusion.npz") as file:
        z = dict(file)
    x, target = z["x"], z["target"]

    def f(x):
        layout = ("NCHW", "OIHW", "NCHW")
        h = jax.lax.conv_general_dilated(x, z["conv_weight"], (1, 1), "SAME", dimension_numbers=layout)
        h = jax.nn.softplus(h + z["conv_bias"][:, None, None])
        return h.reshape(len(x), -1) @ z["dense_weight"].T + z["dense_bias"]

    np.testing.assert_allclose(f(jnp.asarray(x)), z["logits"], rtol=1e-10)
    common = {"target": target, "channel_axis": 1, "overlap": "sum"}
    for name, options in {
        "keep": {"patch": 4, "keep": True},
        "keep_gaps": {"patch": (3, 2), "stride": 4, "keep": True},
        "keep_probability": {"patch": (6, 3), "keep": True, "measure": "probability"},
    }.items():
        got = gradients.occlusion(f, **common, **options)(x)
        np.testing.assert_allclose(np.broadcast_to(got, x.shape), z[name], rtol=1e-10, atol=1e-12)
    hidden = gradients.occlusion(f, patch=4, fill=metrics.channel_mean(x, channel_axis=1), **common)(x)
    score = np.take_along_axis(z["logits"], target[:, None], 1)[:, :, None, None]
    np.testing.assert_allclose(np.broadcast_to(score - hidden, x.shape), z["hide"], rtol=1e-10)


def test_occlusion_of_sequences_and_without_classes():
    x = jnp.arange(1.0, 7.0).reshape(1, 6)
    got = gradients.occlusion(lambda x: x.sum(1), patch=2, target=None, channel_axis=None)(x)
    np.testing.assert_allclose(got, [[3.0, 3.0, 7.0, 7.0, 11.0, 11.0]])


def test_occlusion_feeds_flipping():
    relevance = gradients.occlusion(classifier, patch=1)(IMAGES)
    other = metrics.flipping(classifier, IMAGES, RNG.normal(size=IMAGES.shape), regions=1).scores
    scores = metrics.flipping(classifier, IMAGES, relevance, regions=1).scores
    assert (metrics.aopc(scores) > metrics.aopc(other)).all()


# ---- Grad-CAM


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="first")(x))
        x = Block(name="block")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Conv(5, (3, 3), strides=2, name="conv")(x))


@pytest.fixture(scope="module")
def cnn():
    net = Net()
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 2), jnp.float32)
    return net, net.init(jax.random.key(1), x), x


@pytest.mark.parametrize("target", [1, "max", np.array([2, 0])])
def test_grad_cam_equals_the_formula_on_the_split_network(cnn, target):
    net, params, x = cnn
    f = lambda x: net.apply(params, x)
    _, state = net.apply(params, x, capture_intermediates=True)
    A = state["intermediates"]["block"]["__call__"][0]
    head = params["params"]["head"]
    classes = np.broadcast_to(np.asarray(f(x).argmax(1)) if isinstance(target, str) else target, 2)
    G = np.stack([np.asarray(head["kernel"])[:, c] for c in classes])[:, None, None] / A[0, ..., 0].size
    expected = np.maximum((A * G).sum(-1), 0)
    got = jax.jit(gradients.grad_cam(f, at="Net/block", target=target))(x)
    assert got.shape == (2, 4, 3) and (got > 0).any()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_with_channels_first_through_a_head_that_is_not_linear():
    kernel = jnp.asarray(RNG.normal(size=(5, 2, 3, 3)))
    weight = jnp.asarray(RNG.normal(size=(5 * 4 * 4, 3)))

    def features(x):
        layout = ("NCHW", "OIHW", "NCHW")
        return jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout))

    head = lambda a: jnp.tanh(0.1 * a.reshape(len(a), -1) @ weight)

    def f(x):
        with jax.named_scope("features"):
            a = features(x)
        return head(a)

    x = jnp.asarray(RNG.normal(size=(2, 2, 4, 4)))
    A = features(x)
    G = jax.grad(lambda a: head(a)[:, 2].sum())(A)
    expected = np.maximum((A * G.mean((2, 3), keepdims=True)).sum(1), 0)
    assert (expected > 0).any() and (expected == 0).any()
    got = gradients.grad_cam(f, at="features", target=2, channel_axis=1)(x)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-14)


# ---- types, transformations, memory, errors


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_follow_the_input_and_everything_jits(x, dtype):
    x, key = x.astype(dtype), jax.random.key(0)
    explanations = [
        gradients.sensitivity(mlp, target=0),
        gradients.input_x_gradient(mlp, target="max"),
        gradients.smoothgrad(mlp, target=0, samples=3, key=key),
        gradients.integrated_gradients(mlp, target=0, steps=3),
        gradients.smooth(lrpjax.relevance(mlp, target=0), noise=np.zeros((3, *x.shape))),
        *(gradients.occlusion(mlp, patch=2, channel_axis=None, measure=m) for m in gradients.MEASURES),
    ]
    for got in jax.jit(lambda x: [explain(x) for explain in explanations])(x):
        assert got.dtype == dtype and got.shape == x.shape and jnp.isfinite(got).all()


def test_differentiable_and_vmappable(x):
    f = lambda x: jnp.tanh(mlp(x))
    explain = gradients.integrated_gradients(f, target=0, steps=4)
    loss = lambda x: (explain(x) ** 2).sum()
    step = 1e-6 * jnp.asarray(RNG.normal(size=x.shape))
    slope = (loss(x + step) - loss(x - step)) / 2
    np.testing.assert_allclose((jax.grad(loss)(x) * step).sum(), slope, rtol=1e-5)
    stacked = jax.vmap(explain)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(stacked[1], explain(2 * x), rtol=1e-10)


def test_memory_grows_with_batch_and_not_with_samples():
    x = jnp.ones((4, 1000))
    f = lambda x: jnp.tanh(x).sum(1, keepdims=True)

    def bytes_needed(samples, batch):
        explain = gradients.smoothgrad(f, target=0, samples=samples, key=jax.random.key(0), batch=batch)
        return jax.jit(explain).lower(x).compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(128, 4) < 1.1 * bytes_needed(16, 4)
    assert bytes_needed(128, 64) > 3 * bytes_needed(128, 4)


X = np.ones((2, 6))
KEY = jax.random.key(0)
EXPLAIN = lambda x: x


@pytest.mark.parametrize(
    ("error", "call", "message"),
    [
        (ValueError, lambda: gradients.smooth(EXPLAIN), "needs samples and key"),
        (
            ValueError,
            lambda: gradients.smooth(EXPLAIN, samples=0, key=KEY),
            "samples must be at least 1, not 0",
        ),
        (ValueError, lambda: gradients.smoothgrad(mlp, samples=-3, key=KEY), "samples must be at least 1"),
        (ValueError, lambda: gradients.smooth(EXPLAIN, samples=2, key=KEY, noise=-0.1), "not be negative"),
        (
            ValueError,
            lambda: gradients.smooth(EXPLAIN, samples=2, key=KEY, batch=0),
            "batch must be at least 1",
        ),
        (
            ValueError,
            lambda: gradients.smooth(EXPLAIN, noise=np.zeros((3, 2, 5)))(X),
            r"noise must be \[n, 2, 6\]",
        ),
        (ValueError, lambda: gradients.integrate(EXPLAIN, steps=0), "steps must be at least 1"),
        (ValueError, lambda: gradients.integrate(EXPLAIN, steps=[]), "sequence of points"),
        (ValueError, lambda: gradients.integrate(EXPLAIN, baseline=np.ones(5))(X), "baseline has shape .5,."),
        (ValueError, lambda: gradients.integrated_gradients(mlp, baseline=np.ones((3, 2, 6)))(X), "baseline"),
        (
            ValueError,
            lambda: gradients.occlusion(classifier, patch=6)(IMAGES),
            r"patch \(6, 6\) is larger than the",
        ),
        (ValueError, lambda: gradients.occlusion(classifier, patch=0)(IMAGES), "patch must be at least 1"),
        (
            ValueError,
            lambda: gradients.occlusion(classifier, patch=2, stride=0)(IMAGES),
            "stride must be at least",
        ),
        (ValueError, lambda: gradients.occlusion(classifier, patch=(2, 2, 2))(IMAGES), "2 spatial axes"),
        (ValueError, lambda: gradients.occlusion(mlp, patch=2)(X), "0 spatial axes"),
        (ValueError, lambda: gradients.occlusion(mlp, patch=2, measure="loss"), "not 'loss'"),
        (
            ValueError,
            lambda: gradients.occlusion(mlp, patch=2, measure="class", target=None),
            "needs classes",
        ),
        (ValueError, lambda: gradients.occlusion(mlp, patch=2, overlap="max"), "'mean' or 'sum'"),
        (
            ValueError,
            lambda: gradients.occlusion(classifier, patch=2, fill=np.ones(9))(IMAGES),
            "fill has shape",
        ),
        (
            lrpjax.TargetError,
            lambda: gradients.occlusion(classifier, patch=2, target=3)(IMAGES),
            "0 … 2, not 3",
        ),
        (lrpjax.TargetError, lambda: gradients.sensitivity(mlp, target=3)(X), "out of range"),
        (
            lrpjax.PathError,
            lambda: gradients.grad_cam(mlp, at="layer4")(X),
            "no value leaves the scope 'layer4'",
        ),
        (lrpjax.PathError, lambda: gradients.grad_cam(mlp, at="*")(X), "at one path, not at '.'"),
        (ValueError, lambda: gradients.grad_cam(mlp, at="hidden")(X), "no axes besides batch and channels"),
    ],
)
def test_bad_input(error, call, message):
    with pytest.raises(error, match=message):
        call()
