"""Selectivity, IROF, ROAD, monotonicity, infidelity and fill-ins that are functions, against loops and dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

import lrpjax
from lrpjax import metrics

KEY = jax.random.key(0)
WEIGHT = np.random.default_rng(0).normal(size=(2, 48, 4))


def net(x):
    flat = x.reshape(len(x), -1)
    w = jnp.asarray(WEIGHT, x.dtype)
    return jnp.tanh(flat @ w[0]) * 2.0 + flat @ w[1]


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(5, 4, 4, 3)), rng.normal(size=(5, 4, 4, 3))


def test_selectivity_by_hand():
    np.testing.assert_allclose(metrics.selectivity(jnp.array([[8.0, 4.0, 0.0], [1.0, 1.0, 3.0]])), [4.0, 1.5])


def test_irof_goes_by_the_mean_of_a_segment():
    """The small segment has the larger mean and the smaller sum."""
    x, relevance = jnp.array([[1.0, 1.0, 1.0, 1.0]]), jnp.array([[2.0, 2.0, 2.0, 5.0]])
    f = lambda x: x @ jnp.array([[1.0], [1.0], [1.0], [5.0]])
    got = metrics.irof(f, x, relevance, regions=[0, 0, 0, 1])
    np.testing.assert_allclose(got, 1 - ((1 + 3 / 8) / 2 + 3 / 8 / 2) / 2, rtol=1e-12)


def test_monotonicity_equals_slow_loop(data):
    x, relevance = data
    target, fill = np.array([0, 3, 1, 2, 2]), 0.25
    slope = lambda x: x.reshape(len(x), -1) @ jnp.abs(WEIGHT[0]) - 0.3 * jnp.cos(9 * x[:, 0, 0, :1])
    seen = set()
    for f, values in ((net, x), (slope, np.abs(x) + fill)):
        got = metrics.monotonicity(f, values, relevance, target=target, regions=2, fill=fill)
        for b in range(len(x)):
            labels = np.broadcast_to(metrics.patches(x.shape, 2), x.shape[1:])
            sums = [relevance[b][labels == k].sum() for k in range(4)]
            image, curve = np.full(x.shape[1:], fill), []
            for k in np.argsort(sums):
                image[labels == k] = values[b][labels == k]
                curve.append(float(f(image[None])[0, target[b]]))
            assert bool(got[b]) == (np.diff(curve) >= 0).all()
            seen.add(float(got[b]))
    assert seen == {0.0, 1.0}


def test_monotonicity_correlation_equals_slow_loop(data):
    x, relevance = data
    fills = np.random.default_rng(2).normal(size=(3, 1, 1, 1, 3))
    got = metrics.monotonicity_correlation(net, x, relevance, fills=fills, target=2, regions=1, batch=7)
    labels = np.repeat(np.arange(16), 3).reshape(4, 4, 3)
    for b in range(len(x)):
        score, lost, size = float(net(x[b : b + 1])[0, 2]), [], []
        for k in range(16):
            copies = [
                np.where(labels == k, np.broadcast_to(z, x.shape)[b], x[b]) for z in fills
            ]  # one for each draw
            lost.append(np.mean((score - net(np.stack(copies))[:, 2]) ** 2))
            size.append(abs(relevance[b][labels == k].sum()))
        assert got[b] == pytest.approx(scipy.stats.spearmanr(size, lost)[0], rel=1e-10)


def test_infidelity_equals_slow_loop_and_is_zero_for_the_terms_of_a_linear_model(data):
    x, relevance = data
    noise = np.random.default_rng(3).normal(size=(6, *x.shape))
    got = metrics.infidelity(net, x, relevance, noise=noise, target=1, batch=4)
    expected = [
        ((change * relevance).sum((1, 2, 3)) - (net(x)[:, 1] - net(x - change)[:, 1])) ** 2
        for change in noise
    ]
    np.testing.assert_allclose(got, np.mean(expected, 0), rtol=1e-10)
    w = WEIGHT[0].reshape(4, 4, 3, 4)
    linear = lambda x: x.reshape(len(x), -1) @ WEIGHT[0]
    for terms, shares in ((np.broadcast_to(w[..., 1], x.shape), False), (x * w[..., 1], True)):
        got = metrics.infidelity(linear, x, terms, noise=0.3, samples=5, key=KEY, target=1, shares=shares)
        np.testing.assert_allclose(got, 0.0, atol=1e-20)
    zero = metrics.infidelity(linear, 0 * x, x, noise=noise, target=1, shares=True)
    assert jnp.isfinite(zero).all() and (zero > 0).all()


def test_fill_ins_that_are_functions_see_where_x_is_replaced(data):
    x, relevance = data
    fill = lambda x, removed: jnp.where(removed, x * 0.5, jnp.nan)
    for call in (
        lambda fill: metrics.flipping(net, x, relevance, regions=2, fill=fill).scores,
        lambda fill: metrics.sensitivity_n(net, x, relevance, n=3, key=KEY, subsets=5, fill=fill),
        lambda fill: metrics.irof(net, x, relevance, regions=2, fill=fill),
    ):
        np.testing.assert_allclose(call(fill), call(0.5 * x), rtol=1e-12)


def dense_imputation(image, removed):
    """The linear system of Rong et al. 2022, written out."""
    height, width = image.shape
    matrix, right, image = np.zeros((image.size, image.size)), np.zeros(image.size), image.copy()
    for i in range(height):
        for j in range(width):
            row = i * width + j
            if not removed[i, j]:
                matrix[row, row], right[row] = 1.0, image[i, j]
                continue
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if (di, dj) != (0, 0) and 0 <= i + di < height and 0 <= j + dj < width:
                        weight = 1 / 12 if di and dj else 1 / 6
                        matrix[row, row] += weight
                        matrix[row, row + di * width + dj] -= weight
    return np.linalg.solve(matrix, right).reshape(image.shape)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_linear_imputation_equals_dense_algebra(share):
    rng = np.random.default_rng(4)
    x, removed = rng.normal(size=(2, 9, 8, 3)), rng.random((2, 9, 8, 3)) < share
    got = metrics.LinearImputation(noise=0.0)(jnp.where(removed, 1e3, x), jnp.asarray(removed))
    for b in range(2):
        for c in range(3):
            expected = dense_imputation(x[b, ..., c], removed[b, ..., c])
            np.testing.assert_allclose(got[b, ..., c], expected, rtol=1e-8, atol=1e-8)


def test_linear_imputation_of_nothing_and_of_everything():
    x = jnp.asarray(np.random.default_rng(5).normal(size=(1, 30, 30, 1)))
    impute = metrics.LinearImputation(noise=0.1, key=KEY)
    everything = impute(x, jnp.ones(x.shape, bool))
    np.testing.assert_allclose(everything.std(), 0.1, rtol=0.1)
    quiet = metrics.LinearImputation(noise=0.0)
    np.testing.assert_array_equal(quiet(x, jnp.zeros(x.shape, bool)), x)
    single = x.astype(jnp.float32)
    removed = jnp.asarray(np.random.default_rng(6).random(x.shape) < 0.9)
    np.testing.assert_allclose(quiet(single, removed), quiet(x, removed), atol=1e-4)


def test_road_equals_slow_loop(data):
    x, relevance = data
    target = np.asarray(net(x).argmax(1))
    got = metrics.road(net, x, relevance, steps=[0, 3, 9, 14], noise=0.0)
    pixels = relevance.sum(-1)
    for b in range(len(x)):
        order = np.argsort(-pixels[b].ravel())
        for s, k in enumerate([0, 3, 9, 14]):
            removed = np.isin(np.arange(16), order[:k]).reshape(4, 4)
            image = np.stack([dense_imputation(x[b, ..., c], removed) for c in range(3)], -1)
            assert bool(got.scores[b, s]) == (np.asarray(net(image[None])).argmax() == target[b])
    assert (got.scores[:, 0] == 1).all() and 0 < got.scores[:, 1:].mean() < 1


def test_road_is_compiled_once_for_new_keys_and_parameters(data):
    x, relevance = data
    traces = []

    def apply(weight, x):
        traces.append(1)
        return x.reshape(len(x), -1) @ weight

    for seed in range(3):
        metrics.road(Partial(apply, WEIGHT[0] + seed), x, relevance, steps=2, key=jax.random.key(seed))
        if seed == 0:
            first = len(traces)
    assert len(traces) == first


def test_consistency_and_sufficiency_by_hand():
    maps = jnp.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 1], [1, 1]])
    classes = jnp.array([0, 0, 1, 2, 2, 0])
    expected = [0.5, 0.5, 0.0, 1.0, 1.0, np.nan]
    got = metrics.consistency(maps, classes)
    np.testing.assert_allclose(got, expected)
    assert got.dtype == jnp.float32
    near = jnp.array([[0.0], [1.0], [2.0], [10.0]])
    np.testing.assert_allclose(
        metrics.sufficiency(near, jnp.array([0, 1, 0, 0]), threshold=0.1), [0.0, 0.0, 0.0, np.nan]
    )
    np.testing.assert_allclose(
        metrics.sufficiency(near, jnp.array([0, 1, 0, 0]), threshold=0.2), [0.5, 0.0, 0.5, np.nan]
    )


X, R = np.ones((2, 4, 4, 3)), np.ones((2, 4, 4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.selectivity(jnp.ones((2, 1))), "at least 2 points"),
        (lambda: metrics.road(net, X, R), "noise needs a key"),
        (lambda: metrics.road(net, X, R, noise=0.0, target=4), "0 … 3, not 4"),
        (lambda: metrics.road(lambda x: x.sum((1, 2, 3)), X, R, noise=0.0, target=None), "needs classes"),
        (lambda: metrics.LinearImputation(noise=0.0)(X[0], X[0] > 0), "images with channels"),
        (lambda: metrics.infidelity(net, X, R, noise=0.1), "needs samples and key"),
        (lambda: metrics.infidelity(net, X, R, noise=X), "perturbations must be"),
        (lambda: metrics.monotonicity(net, X, R, fill=np.ones(5)), "fill has shape"),
        (lambda: metrics.monotonicity_correlation(net, X, R, fills=0.0), "one or more draws"),
        (
            lambda: metrics.monotonicity_correlation(net, X, R, fills=np.ones((2, 5))),
            "each of the fills has shape",
        ),
        (lambda: metrics.consistency(R, np.ones(3, int)), "one for each sample"),
        (lambda: metrics.sufficiency(R, np.ones((2, 1), int)), "one for each sample"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_target_that_is_none_is_a_target_error():
    with pytest.raises(lrpjax.TargetError):
        metrics.road(lambda x: x.sum((1, 2, 3)), X, R, noise=0.0, target=None)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_follow_the_input_and_everything_jits(data, dtype):
    @jax.jit
    def everything(x, r):
        return [
            metrics.selectivity(metrics.flipping(net, x, r, steps=3).scores),
            metrics.irof(net, x, r, regions=2),
            metrics.road(net, x, r, steps=2, key=KEY).scores,
            metrics.monotonicity(net, x, r, regions=2),
            metrics.infidelity(net, x, r, noise=0.1, samples=3, key=KEY, shares=True),
            metrics.monotonicity_correlation(net, x, r, fills=[0.0, 1.0], regions=2),
            metrics.consistency(jnp.sign(r[:, :1, :1, 0]), jnp.zeros(5, int)),
            metrics.sufficiency(r, jnp.zeros(5, int), threshold=1.0),
        ]

    outputs = everything(*(jnp.asarray(v, dtype) for v in data))
    assert {v.dtype for v in outputs} == {jnp.dtype(dtype)}
    assert all(jnp.isfinite(v).all() for v in outputs)
