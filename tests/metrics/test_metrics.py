"""lrpjax.metrics against hand-computed numbers, slow NumPy loops and scipy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.tree_util import Partial

import lrpjax
from lrpjax import metrics

CLASSES = 4
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(3, 48, CLASSES))


def net(x):
    """A function of images [B, 4, 4, 3] with interactions, so that the order of flipping matters."""
    flat = x.reshape(len(x), -1)
    w = jnp.asarray(WEIGHT, x.dtype)
    return flat @ w[0] + jnp.tanh(flat @ w[1]) * (flat @ w[2])


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(5, 4, 4, 3)), rng.normal(size=(5, 4, 4, 3))


def slow_curve(f, x, relevance, target, labels, fill, descending):
    """Scores after 0, 1, … flipped regions, one image and one region at a time."""
    curves = []
    for b in range(len(x)):
        sums = [relevance[b][labels == k].sum() for k in range(labels.max() + 1)]
        image, curve = x[b].copy(), []
        for k in [None, *sorted(range(len(sums)), key=lambda k: -sums[k] if descending else sums[k])]:
            if k is not None:
                image[labels == k] = np.broadcast_to(fill, x.shape)[b][labels == k]
            curve.append(float(f(image[None])[0, target[b]]))
        curves.append(curve)
    return np.asarray(curves)


# ---- flipping


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("regions", [None, 1, 2, 3])
def test_flipping_equals_slow_loop(data, order, regions):
    x, relevance = data
    target = np.array([0, 3, 1, 2, 2])
    labels = {
        None: np.arange(48).reshape(4, 4, 3),
        1: np.repeat(np.arange(16), 3).reshape(4, 4, 3),
        2: np.repeat([[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2, 3).reshape(4, 4, 3),
        3: np.repeat([[0, 0, 0, 1]] * 3 + [[2, 2, 2, 3]], 3).reshape(4, 4, 3),
    }[regions]
    fill = x.mean((1, 2), keepdims=True)
    counts, scores = metrics.flipping(
        net, x, relevance, target=target, order=order, regions=regions, fill=fill, batch=3
    )
    expected = slow_curve(net, x, relevance, target, labels, fill, order == "morf")
    np.testing.assert_array_equal(counts, np.arange(labels.max() + 2))
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 4, 1000])
def test_flipping_does_not_depend_on_batch(data, batch):
    x, relevance = data
    expected = metrics.flipping(net, x, relevance, batch=7).scores
    np.testing.assert_allclose(metrics.flipping(net, x, relevance, batch=batch).scores, expected, rtol=1e-12)


def test_flipping_steps(data):
    x, relevance = data
    every = metrics.flipping(net, x, relevance, regions=1)
    counts, scores = metrics.flipping(net, x, relevance, regions=1, steps=4)
    np.testing.assert_array_equal(counts, [0, 4, 8, 12, 16])
    np.testing.assert_allclose(scores, every.scores[:, ::4], rtol=1e-12)
    counts, scores = metrics.flipping(net, x, relevance, regions=1, steps=[0, 1, 5])
    np.testing.assert_array_equal(counts, [0, 1, 5])
    np.testing.assert_allclose(scores, every.scores[:, np.array([0, 1, 5])], rtol=1e-12)


def test_flipping_target_max_is_that_of_the_unperturbed_input(data):
    x, relevance = data
    expected = metrics.flipping(net, x, relevance, target=np.asarray(net(x)).argmax(1)).scores
    np.testing.assert_array_equal(metrics.flipping(net, x, relevance).scores, expected)
    whole = lambda x: net(x)[:, 2]
    np.testing.assert_array_equal(
        metrics.flipping(whole, x, relevance, target=None).scores,
        metrics.flipping(net, x, relevance, target=2).scores,
    )


def test_flipping_relevance_per_pixel_orders_like_its_broadcast(data):
    x, relevance = data
    pixel = relevance.sum(-1, keepdims=True)
    np.testing.assert_allclose(
        metrics.flipping(net, x, pixel, regions=1).scores,
        metrics.flipping(net, x, relevance, regions=1).scores,
        rtol=1e-12,
    )


def test_flipping_labels_of_every_sample(data):
    x, relevance = data
    labels = np.random.default_rng(2).integers(0, 5, x.shape)
    scores = metrics.flipping(net, x, relevance, regions=labels, target=1).scores
    for b in range(len(x)):
        single = slow_curve(net, x[b : b + 1], relevance[b : b + 1], [1], labels[b], 0.0, True)
        np.testing.assert_allclose(scores[b : b + 1], single, rtol=1e-12)


def test_flipping_ties_follow_labels_or_the_key():
    x = jnp.array([[1.0, 10.0, 100.0, 1000.0]])
    f = lambda x: x.sum(1, keepdims=True)
    flat = jnp.zeros_like(x)
    np.testing.assert_array_equal(metrics.flipping(f, x, flat).scores, [[1111, 1110, 1100, 1000, 0]])
    orders = {tuple(metrics.flipping(f, x, flat, key=jax.random.key(k)).scores[0].tolist()) for k in range(8)}
    assert len(orders) > 1
    loud = jnp.array([[0.0, 0.0, 0.0, 1.0]])
    for k in range(4):
        assert metrics.flipping(f, x, loud, key=jax.random.key(k)).scores[0, 1] == 111.0


def test_flipping_random_order_is_a_permutation_independent_of_relevance(data):
    x, relevance = data
    key = jax.random.key(3)
    first = metrics.flipping(net, x, relevance, order="random", key=key, regions=2).scores
    second = metrics.flipping(net, x, -relevance, order="random", key=key, regions=2).scores
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first[:, 0], net(x).max(1), rtol=1e-12)
    blank = net(jnp.zeros_like(x))[jnp.arange(5), net(x).argmax(1)]
    np.testing.assert_allclose(first[:, -1], blank, rtol=1e-12)


def test_flipping_tokens_of_integer_type():
    table = jnp.asarray(RNG.normal(size=(10, 3)))
    f = lambda tokens: table[tokens].sum(1)
    tokens = jnp.array([[1, 2, 3, 4]])
    scores = metrics.flipping(f, tokens, jnp.array([[0.1, 0.4, 0.2, 0.3]]), target=0, fill=9).scores
    sentences = [[1, 2, 3, 4], [1, 9, 3, 4], [1, 9, 3, 9], [1, 9, 9, 9], [9, 9, 9, 9]]
    np.testing.assert_allclose(scores[0], [table[jnp.array(s)].sum(0)[0] for s in sentences], rtol=1e-12)


def test_aopc_and_abpc_by_hand():
    morf, lerf = jnp.array([[8.0, 4.0, 0.0], [1.0, 1.0, 1.0]]), jnp.array([[8.0, 7.0, 0.0], [1.0, 1.0, 1.0]])
    np.testing.assert_allclose(metrics.aopc(morf), [4.0, 0.0])
    np.testing.assert_allclose(metrics.abpc(morf, lerf), [1.0, 0.0])


def test_linear_model_is_explained_perfectly_by_its_terms():
    x = jnp.asarray(RNG.normal(size=(4, 9)))
    w = jnp.asarray(RNG.normal(size=(9, 3)))
    f = lambda x: x @ w
    terms = x * w[:, 1]
    morf = metrics.flipping(f, x, terms, target=1)
    best = metrics.abpc(morf.scores, metrics.flipping(f, x, terms, target=1, order="lerf").scores)
    other = jnp.asarray(RNG.normal(size=x.shape))
    curves = [metrics.flipping(f, x, other, target=1, order=o).scores for o in ("morf", "lerf")]
    assert (best > metrics.abpc(*curves)).all()
    for n in (1, 8):
        corr = metrics.sensitivity_n(f, x, 3 * terms, n=n, key=jax.random.key(n), target=1)
        np.testing.assert_allclose(corr, 1.0, rtol=1e-10)
    np.testing.assert_allclose(metrics.completeness_gap(f, x, terms, target=1), 0.0, atol=1e-13)


# ---- sensitivity-n, completeness


def test_faithfulness_correlation_equals_slow_loop(data):
    x, relevance = data
    labels = metrics.patches(x.shape, 1)
    subsets = np.stack([[RNG.permutation(16)[:5] for _ in x] for _ in range(12)])
    got = metrics.faithfulness_correlation(net, x, relevance, subsets, target=1, regions=1, fill=0.5, batch=5)
    wide = np.broadcast_to(labels, x.shape[1:])
    for b in range(len(x)):
        sums, drops = [], []
        for subset in subsets[:, b]:
            inside = np.isin(wide, subset)
            sums.append(relevance[b][inside].sum())
            drops.append(float(net(x[b : b + 1])[0, 1] - net(np.where(inside, 0.5, x[b])[None])[0, 1]))
        assert got[b] == pytest.approx(scipy.stats.pearsonr(sums, drops)[0], rel=1e-10)


def test_sensitivity_n_draws_subsets_of_n(data):
    """f counts what was removed: with n fixed the count never varies, so the correlation is 0/0."""
    x = jnp.ones((2, 10))
    f = lambda x: x.sum(1, keepdims=True)
    assert jnp.isnan(metrics.sensitivity_n(f, x, x, n=4, key=jax.random.key(0))).all()
    seen = metrics.sensitivity_n(
        lambda x: x[:, :1] * 1.0, x, jnp.eye(10)[:1].repeat(2, 0), n=4, key=jax.random.key(0)
    )
    np.testing.assert_allclose(seen, 1.0, rtol=1e-12)


def test_completeness_gap_by_hand():
    x, relevance = jnp.array([[2.0, 3.0], [0.0, 1.0]]), jnp.array([[1.0, 2.0], [0.0, 1.0]])
    f = lambda x: jnp.stack([x.prod(1), x.sum(1) + 1.0], 1)
    np.testing.assert_allclose(metrics.completeness_gap(f, x, relevance, target=[0, 1]), [-3.0, -1.0])
    np.testing.assert_allclose(metrics.completeness_gap(f, x, relevance, target=1, baseline=0.0), [-2.0, 0.0])


# ---- maps, similarities


def test_map_metrics_by_hand():
    r = jnp.array([[[4.0, 1.0], [3.0, 2.0]], [[1.0, 0.0], [0.0, 0.0]]])
    mask = jnp.array([[[1, 0], [0, 1]], [[0, 0], [0, 0]]])
    np.testing.assert_allclose(metrics.mass_accuracy(r, mask), [0.6, np.nan])
    np.testing.assert_allclose(metrics.rank_accuracy(r, mask), [0.5, np.nan])
    np.testing.assert_allclose(metrics.pointing_game(r, mask), [1.0, np.nan])
    np.testing.assert_allclose(metrics.pointing_game(-r, mask)[0], 0.0)
    np.testing.assert_allclose(metrics.sparseness(r), [0.25, 0.75])
    np.testing.assert_allclose(metrics.sparseness(-r), [0.25, 0.75])
    p = np.array([0.4, 0.1, 0.3, 0.2])
    np.testing.assert_allclose(metrics.complexity(r), [-(p * np.log(p)).sum(), 0.0], atol=1e-15)


def test_correlations_equal_scipy_also_with_ties():
    a, b = RNG.normal(size=(2, 6, 5, 4))
    a, b = np.round(a, 1), np.round(b)
    for got, reference in (
        (metrics.pearson, scipy.stats.pearsonr),
        (metrics.spearman, scipy.stats.spearmanr),
    ):
        expected = [reference(p.ravel(), q.ravel())[0] for p, q in zip(a, b, strict=True)]
        np.testing.assert_allclose(got(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_correlations_of_relevance_that_has_grown_out_of_bounds(scale):
    a, b = RNG.normal(size=(2, 3, 40)).astype(np.float32)
    expected = [scipy.stats.pearsonr(p, q)[0] for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(metrics.pearson(a * np.float32(scale), b), expected, rtol=1e-4)
    slope = jax.grad(lambda a: metrics.pearson(a, b).sum())(jnp.asarray(a * np.float32(scale)))
    plain = jax.grad(lambda a: metrics.pearson(a, b).sum())(jnp.asarray(a))
    np.testing.assert_allclose(slope * np.float32(scale), plain, rtol=1e-3, atol=1e-6)
    constant = metrics.pearson(jnp.full((1, 4), scale, jnp.float32), b[:1, :4])
    assert np.isnan(constant).all()


def test_fill_ins():
    x = RNG.normal(size=(2, 9, 8, 3))
    np.testing.assert_allclose(metrics.channel_mean(x), x.mean((1, 2), keepdims=True), rtol=1e-12)
    first = metrics.channel_mean(np.moveaxis(x, -1, 1), channel_axis=1)
    np.testing.assert_allclose(first, x.mean((1, 2))[:, :, None, None], rtol=1e-12)
    np.testing.assert_allclose(metrics.channel_mean(x, channel_axis=None).ravel(), x.mean((1, 2, 3)))
    expected = scipy.ndimage.gaussian_filter(x, (0, 1.5, 1.5, 0), mode="nearest")
    np.testing.assert_allclose(metrics.blur(x, 1.5), expected, rtol=1e-10, atol=1e-12)
    expected = scipy.ndimage.gaussian_filter(x, (0, 0, 4, 4), mode="nearest", truncate=2.0)
    np.testing.assert_allclose(
        metrics.blur(x, 4.0, channel_axis=1, truncate=2.0), expected, rtol=1e-10, atol=1e-12
    )
    noise = metrics.uniform_noise(jax.random.key(0), x)
    assert noise.shape == x.shape and noise.min() >= x.min() and noise.max() <= x.max()
    assert len(np.unique(noise)) == x.size


def test_patches_of_channels_first_sequences_and_rectangles():
    np.testing.assert_array_equal(
        metrics.patches((1, 3, 4, 2), 2, channel_axis=1)[0], [[0, 0]] * 2 + [[1, 1]] * 2
    )
    np.testing.assert_array_equal(metrics.patches((1, 5, 7), 2)[:, 0], [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(
        metrics.patches((1, 2, 4), (1, 2), channel_axis=None), [[0, 0, 1, 1], [2, 2, 3, 3]]
    )


# ---- methods


def test_randomisation_replaces_the_layers_it_says(data):
    x = jnp.asarray(data[0].reshape(5, -1)[:, :6])
    draw = lambda seed: {
        "a": {"w": jax.random.normal(jax.random.key(seed), (6, 6)), "b": jnp.full(6, 1.0 + seed)},
        "ab": jax.random.normal(jax.random.key(seed + 10), (6,)),
        "c": jax.random.normal(jax.random.key(seed + 20), (6,)),
    }
    params, fresh = draw(0), draw(1)
    explain = lambda p, x: jnp.tanh(x @ p["a"]["w"] + p["a"]["b"]) * p["ab"] * p["c"]
    kinds = lambda a, b: {"pearson": metrics.pearson(a, b), "spearman": metrics.spearman(a, b)}
    trained = explain(params, x)
    for cascade, swaps in ((True, [["c"], ["c", "a"]]), (False, [["c"], ["a"]])):
        got = metrics.randomisation(
            explain, params, fresh, x, layers=["c", "a"], similarity=kinds, cascade=cascade
        )
        for step, names in enumerate(swaps):
            other = explain(params | {name: fresh[name] for name in names}, x)
            np.testing.assert_allclose(got["pearson"][step], metrics.pearson(trained, other), rtol=1e-10)
            np.testing.assert_allclose(got["spearman"][step], metrics.spearman(trained, other), rtol=1e-10)


def test_robustness_equals_slow_loop():
    x = jnp.asarray(RNG.normal(size=(3, 4)))
    explain = lambda x: jnp.sin(x) * x
    deltas = RNG.uniform(-0.2, 0.2, (6, 3, 4))
    change = [
        np.linalg.norm(explain(x + d) - explain(x), axis=1) / np.linalg.norm(explain(x), axis=1)
        for d in deltas
    ]
    got = metrics.robustness(explain, x, noise=deltas, batch=4)
    np.testing.assert_allclose(got.maximum, np.max(change, 0), rtol=1e-10)
    np.testing.assert_allclose(got.mean, np.mean(change, 0), rtol=1e-10)


def test_robustness_draws_within_the_radius():
    x = jnp.ones((2, 500))
    worst, mean = metrics.robustness(lambda x: x, x, noise=0.3, samples=20, key=jax.random.key(0))
    np.testing.assert_allclose(mean, 0.3 / np.sqrt(3), rtol=0.02)  # std of uniform noise of radius 0.3
    assert (worst >= mean).all() and (worst < 0.3).all()


# ---- types, compilation, errors


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_follow_the_input_and_everything_jits(data, dtype):
    key = jax.random.key(0)

    @jax.jit
    def everything(x, r):
        mask = r > 0
        return [
            metrics.flipping(net, x, r, fill=metrics.blur(x, 1.0), key=key, steps=3).scores,
            metrics.sensitivity_n(net, x, r, n=5, key=key, subsets=4, target=1),
            metrics.faithfulness_correlation(net, x, r, np.arange(10).reshape(5, 1, 2)),
            metrics.completeness_gap(net, x, r, baseline=0.0, target=[0, 1, 2, 3, 0]),
            *(m(r, mask) for m in (metrics.mass_accuracy, metrics.rank_accuracy, metrics.pointing_game)),
            *(m(r) for m in (metrics.sparseness, metrics.complexity, metrics.channel_mean)),
            *(m(x, r) for m in (metrics.pearson, metrics.spearman)),
            metrics.ssim(x[..., 0], r[..., 0], window=3),
            metrics.robustness(lambda x: x * x, x, noise=0.1, samples=3, key=key).maximum,
            metrics.uniform_noise(key, x),
        ]

    outputs = everything(*(jnp.asarray(v, dtype) for v in data))
    assert {v.dtype for v in outputs} == {jnp.dtype(dtype)}
    chex.assert_tree_all_finite(outputs)


def test_under_an_outer_jit_targets_may_be_traced_and_fixed_ones_are_still_checked(data):
    x, relevance = data
    plain = metrics.flipping(net, x, relevance, regions=2, target=1).scores
    jitted = jax.jit(lambda x, r, t: metrics.flipping(net, x, r, regions=2, target=t).scores)
    np.testing.assert_allclose(jitted(x, relevance, 1), plain, rtol=1e-12)
    with pytest.raises(lrpjax.TargetError, match="0 … 3, not 9"):
        jax.jit(lambda x, r: metrics.flipping(net, x, r, target=9).scores)(x, relevance)


def test_a_callable_is_traced_once_per_shape_and_new_parameters_do_not_retrace(data):
    x, relevance = data
    traces = []

    def apply(weight, x):
        traces.append(1)
        return x.reshape(len(x), -1) @ weight

    for seed in range(3):
        weight = jax.random.normal(jax.random.key(seed), (48, CLASSES))
        got = metrics.flipping(Partial(apply, weight), x, relevance, target=0, regions=2).scores
        np.testing.assert_allclose(got[:, 0], (x.reshape(5, -1) @ np.asarray(weight))[:, 0], rtol=1e-10)
        if seed == 0:
            first = len(traces)
    assert len(traces) == first


def test_memory_grows_with_batch_and_not_with_steps():
    x = jnp.ones((4, 16, 16, 3))
    f = lambda x: jnp.tanh(x).sum((1, 2))

    def bytes_needed(steps, batch):
        run = jax.jit(
            lambda x, r: metrics.flipping(f, x, r, regions=1, steps=steps, batch=batch, target=0).scores
        )
        return run.lower(x, x).compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(128, 4) < 1.1 * bytes_needed(16, 4)
    assert bytes_needed(128, 64) > 3 * bytes_needed(128, 4)


X, R = np.ones((2, 4, 4, 3)), np.ones((2, 4, 4, 3))
KEY = jax.random.key(0)
PARAMS = {"a": jnp.ones(3), "b": jnp.ones(3)}
TWICE = lambda p, x: x * p["a"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.flipping(net, X, R, order="best"), "'morf', 'lerf' or 'random', not 'best'"),
        (lambda: metrics.flipping(net, X, R, order="random"), "needs a key"),
        (lambda: metrics.flipping(net, X, R[:, :2]), "relevance has shape .* does not broadcast"),
        (lambda: metrics.flipping(net, X, R[..., 0]), "the same rank"),
        (lambda: metrics.flipping(net, X[0, 0, 0], R[0, 0, 0]), "need a batch axis"),
        (lambda: metrics.flipping(net, X, R, target=4), r"target must lie in 0 … 3, not 4"),
        (lambda: metrics.flipping(net, X, R, target=[0, -1]), r"target must lie in 0 … 3, not -1"),
        (lambda: metrics.flipping(net, X, R, target=[0, 1, 2]), "2 integers, one for each sample, not int"),
        (lambda: metrics.flipping(net, X, R, target=1.0), "not float"),
        (lambda: metrics.flipping(net, X, R, target="min"), "not 'min'"),
        (lambda: metrics.flipping(net, X, R, target=None), "with target=None f must return"),
        (lambda: metrics.flipping(lambda x: x, X, R), "f must return scores .B, classes."),
        (lambda: metrics.flipping(net, X, R, regions=5), "not larger than the image"),
        (lambda: metrics.flipping(net, X, R, regions=0), "at least 1"),
        (lambda: metrics.flipping(net, X, R, regions=np.ones((4, 4, 3))), "regions must be labels"),
        (lambda: metrics.flipping(net, X, R, regions=np.full((4, 4, 3), -1)), "regions must be labels"),
        (lambda: metrics.flipping(net, X, R, regions=np.ones((3, 4, 3), int)), "regions has shape"),
        (lambda: metrics.flipping(net, X, R, fill=np.ones(5)), "fill has shape"),
        (lambda: metrics.flipping(net, X, R, steps=0), "steps must be at least 1"),
        (lambda: metrics.flipping(net, X, R, steps=[0, 49]), r"steps must lie in 0 … 48"),
        (lambda: metrics.flipping(net, X, R, batch=0), "batch must be at least 1"),
        (lambda: metrics.sensitivity_n(net, X, R, n=48, key=KEY), "n must lie between 1 and 47"),
        (lambda: metrics.sensitivity_n(net, X, R, n=2, key=KEY, subsets=1), "at least 2 subsets"),
        (lambda: metrics.faithfulness_correlation(net, X, R, np.zeros((3, 2))), "subsets must be"),
        (lambda: metrics.faithfulness_correlation(net, X, R, np.full((3, 2, 1), 48)), "0 … 47"),
        (lambda: metrics.completeness_gap(net, X, R[:1]), "batch size"),
        (lambda: metrics.completeness_gap(net, X, R, baseline=np.ones(5)), "baseline has shape"),
        (lambda: metrics.abpc(R[:, 0], R[:, :2]), "the curves differ in shape"),
        (lambda: metrics.mass_accuracy(R, R[..., 0]), "pool the channels first"),
        (lambda: metrics.pearson(R, R[0]), "the maps differ in shape"),
        (lambda: metrics.ssim(R[..., 0], R[..., 0]), "window must be odd"),
        (lambda: metrics.patches((2, 4, 4, 3), (2, 2, 2)), "3 patch sides .* for 2 spatial axes"),
        (lambda: metrics.patches((2, 4), 2), "no spatial axes"),
        (lambda: metrics.patches((2, 4, 4), 2, channel_axis=0), "batch axis"),
        (lambda: metrics.blur(X, 0.0), "sigma must be positive"),
        (lambda: metrics.randomisation(TWICE, PARAMS, {"a": 1.0}, X, layers=["a"]), "structure, shapes"),
        (
            lambda: metrics.randomisation(TWICE, PARAMS, PARAMS, X, layers=["c"]),
            "no parameters under 'c'; there are a, b",
        ),
        (lambda: metrics.randomisation(TWICE, PARAMS, PARAMS, X, layers=["a", "a"]), "belongs to two layers"),
        (lambda: metrics.randomisation(TWICE, PARAMS, PARAMS, X, layers=[]), "layers is empty"),
        (lambda: metrics.robustness(jnp.sin, X, noise=0.1), "needs samples and key"),
        (lambda: metrics.robustness(jnp.sin, X, noise=0.1, samples=0, key=KEY), "samples must be at least 1"),
        (lambda: metrics.robustness(jnp.sin, X, noise=-0.1, samples=2, key=KEY), "radius must be positive"),
        (lambda: metrics.robustness(jnp.sin, X, noise=X), "perturbations must be"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
