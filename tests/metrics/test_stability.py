"""Robustness, sanity, axioms and numbers of maps that the tests against Quantus leave open, by hand or in loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

import lrpjax
from lrpjax import composites, metrics

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
norm = lambda v: np.linalg.norm(np.asarray(v).reshape(len(v), -1), axis=1)


@pytest.fixture
def data():
    # Of its own, so that whether some noise leads to another class does not depend on which tests ran before.
    rng = np.random.default_rng(2)
    return rng.normal(size=(3, 4)), rng.uniform(-0.5, 0.5, size=(6, 3, 4))


explain = lambda x: jnp.sin(x) * x
f = lambda x: jnp.stack([x[:, 0], x[:, 1]], 1) * 2.0


def expected(x, noise, ratio, *, same_class=False):
    values = np.stack([ratio(x, x + d) for d in noise])
    if same_class:
        same = np.stack([f(x + d).argmax(1) == f(x).argmax(1) for d in noise])
        assert not same.all()
        values = np.where(same, values, -np.inf)
    return values.max(0)


@pytest.mark.parametrize("same_class", [False, True])
def test_stabilities_equal_slow_loops(data, same_class):
    x, noise = data
    options = {"noise": noise, "predict": f if same_class else None, "batch": 4}
    represent = lambda x: jnp.cos(x)
    relative = lambda a, b: norm((a - b) / a)
    for got, ratio in (
        (
            metrics.local_lipschitz(explain, x, **options),
            lambda x, y: norm(explain(x) - explain(y)) / norm(x - y),
        ),
        (
            metrics.relative_input_stability(explain, x, **options),
            lambda x, y: relative(explain(x), explain(y)) / relative(x, y),
        ),
        (
            metrics.relative_output_stability(explain, f, x, **options),
            lambda x, y: relative(explain(x), explain(y)) / norm(f(x) - f(y)),
        ),
        (
            metrics.relative_representation_stability(explain, represent, x, **options),
            lambda x, y: relative(explain(x), explain(y)) / relative(represent(x), represent(y)),
        ),
    ):
        np.testing.assert_allclose(got, expected(x, noise, ratio, same_class=same_class), rtol=1e-9)


def test_stabilities_leave_out_other_classes_and_divide_zeros_by_the_smallest_number():
    x = jnp.array([[1.0, 0.0]])
    away = jnp.array([[[-2.0, 2.0]]])
    assert jnp.isnan(metrics.local_lipschitz(explain, x, noise=away, predict=f)).all()
    got = metrics.relative_input_stability(lambda x: x, x, noise=jnp.array([[[0.0, 1e-3]]]), smallest=1e-2)
    np.testing.assert_allclose(got, 1.0)
    got = metrics.relative_input_stability(
        lambda x: x * x, x, noise=jnp.array([[[0.0, 1e-6]]]), smallest=1e-2
    )
    np.testing.assert_allclose(got, (1e-12 / 1e-2) / 1e-2)


def test_continuity_moves_the_image_and_takes_the_sum_over_the_norm():
    x = RNG.normal(size=(2, 1, 5, 1))
    method = lambda x: x**2
    values = []
    for shift in (-2, 1):
        moved = np.full_like(x, 0.5)
        if shift > 0:
            moved[:, :, shift:] = x[:, :, :-shift]
        else:
            moved[:, :, :shift] = x[:, :, -shift:]
        np.testing.assert_array_equal(metrics.translate(x, shift, axis=2, fill=0.5), moved)
        values.append(np.abs(method(moved) - method(x)).sum((1, 2, 3)) / norm(moved - x))
    got = metrics.continuity(method, x, shifts=[-2, 1], fill=0.5)
    np.testing.assert_allclose(got, np.max(values, 0), rtol=1e-10)


def test_random_logit_draws_every_other_class_and_never_the_own():
    x, target = jnp.ones((400, 1)), jnp.arange(400) % 4
    classes = lambda x, c: c[:, None].astype(x.dtype) * x
    own, rival = metrics.random_logit(
        classes, x, target, classes=4, key=KEY, similarity=lambda a, b: (a[:, 0], b[:, 0])
    )
    np.testing.assert_array_equal(own, target)
    pairs = {(int(a), int(b)) for a, b in zip(own, rival, strict=True)}
    assert pairs == {(a, b) for a in range(4) for b in range(4) if a != b}


def test_class_contrast_asks_for_the_runner_up():
    x = jnp.asarray(RNG.normal(size=(5, 6)))
    w = jnp.asarray(RNG.normal(size=(6, 4)))
    g = lambda x: x @ w
    terms = lambda x, c: x * w.T[c]
    order = np.argsort(-g(x), axis=1)
    got = metrics.class_contrast(g, terms, x)
    np.testing.assert_allclose(got, 1 - metrics.pearson(terms(x, order[:, 0]), terms(x, order[:, 1])))
    last = metrics.class_contrast(g, terms, x, target=order[:, 3], similarity=metrics.spearman)
    np.testing.assert_allclose(last, 1 - metrics.spearman(terms(x, order[:, 3]), terms(x, order[:, 0])))
    blind = metrics.class_contrast(g, lambda x, c: x, x)
    np.testing.assert_allclose(blind, 0.0, atol=1e-12)


def test_kept_share_sees_what_a_bias_absorbs():
    rng = np.random.default_rng(1)
    w, b, v = rng.normal(size=(6, 8)), rng.normal(size=8), rng.normal(size=(8, 3))
    g = lambda x: jax.nn.relu(x @ w + b) @ v
    x = jnp.asarray(rng.normal(size=(4, 6)))
    R = lrpjax.relevance(g, composites.epsilon(1e-12), target="max")(x)
    share, size = metrics.kept_share(g, x, R)
    np.testing.assert_allclose(share, R.sum(1) / g(x).max(1), rtol=1e-12)
    np.testing.assert_allclose(size, np.abs(R).sum(1) / np.abs(R.sum(1)), rtol=1e-12)
    assert (np.abs(share - 1) > 1e-3).all() and (size >= 1).all()
    no_bias = lambda x: jax.nn.relu(x @ w) @ v
    R = lrpjax.relevance(no_bias, composites.epsilon(1e-12), target="max")(x)
    np.testing.assert_allclose(metrics.kept_share(no_bias, x, R).share, 1.0, rtol=1e-9)


def test_smooth_mprt_draws_noise_in_shares_of_the_range():
    """The explanation is the input itself, so the smoothed one is x plus the mean of the noise."""
    x = jnp.asarray(RNG.normal(size=(2, 3000)))
    span = x.max(1) - x.min(1)
    params = {"a": jnp.ones(())}
    noise = metrics.smooth_mprt(
        lambda p, x: x * p["a"], params, params, x, layers=["a"], noise=0.2, samples=4, key=KEY, batch=3,
        similarity=lambda trained, random: (trained - x).std(1),
    )  # fmt: skip
    np.testing.assert_allclose(noise[0], 0.2 * span / 2, rtol=0.05)


def test_histogram_entropy_equals_numpy():
    values = RNG.normal(size=(4, 500))
    values[0] = 1.0
    for row, got in zip(values, metrics.histogram_entropy(values, bins=17), strict=True):
        shares = np.histogram(row, bins=17)[0] / row.size
        wanted = -sum(p * np.log(p) for p in shares if p > 0)
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_localisation_by_hand_and_by_scikit_learn():
    rng = np.random.default_rng(0)  # of its own: the largest values must not be alike, as some draws' are
    r = rng.normal(size=(4, 5, 5)).round(1)
    mask = rng.random((4, 5, 5)) < 0.4
    mask[3] = False
    wanted = [sklearn.metrics.roc_auc_score(m.ravel(), v.ravel()) for v, m in zip(r[:3], mask, strict=False)]
    np.testing.assert_allclose(metrics.roc_auc(r, mask), [*wanted, np.nan], rtol=1e-12)
    positive = np.maximum(r, 0)
    share = (positive * mask).sum((1, 2)) / positive.sum((1, 2))
    share[3] = np.nan
    np.testing.assert_allclose(metrics.attribution_localisation(r, mask), share, rtol=1e-12)
    with np.errstate(divide="ignore"):
        weighted = share * 25 / mask.sum((1, 2))
    np.testing.assert_allclose(metrics.attribution_localisation(r, mask, weighted=True), weighted, rtol=1e-12)
    size = int(mask[0].sum())
    same = metrics.top_k_intersection(r, mask, k=size)
    assert same[0] == metrics.rank_accuracy(r, mask)[0] and np.isnan(same[3])


def test_chance_has_a_weighted_localisation_of_one():
    r, mask = RNG.normal(size=(200, 400)), RNG.random((200, 400)) < RNG.random((200, 1))
    np.testing.assert_allclose(
        metrics.attribution_localisation(r, mask, weighted=True).mean(), 1.0, atol=0.03
    )


X = np.ones((2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.local_lipschitz(explain, X, noise=0.1), "needs samples and key"),
        (
            lambda: metrics.relative_input_stability(explain, X, noise=-1.0, samples=2, key=KEY),
            "must be positive",
        ),
        (lambda: metrics.continuity(explain, X, shifts=[0, 1], axis=1), "other than 0"),
        (lambda: metrics.continuity(explain, X, shifts=[0.5], axis=1), "must be integers"),
        (lambda: metrics.random_logit(explain, X, 0, classes=1, key=KEY), "at least 2 classes"),
        (lambda: metrics.random_logit(explain, X, 3, classes=3, key=KEY), "0 … 2, not 3"),
        (lambda: metrics.class_contrast(lambda x: x.sum(1), explain, X, target=None), "at least 2 classes"),
        (lambda: metrics.class_contrast(lambda x: x[:, :1], explain, X), "at least 2 classes"),
        (lambda: metrics.kept_share(f, X, X[:1]), "batch size"),
        (lambda: metrics.input_invariance(explain, explain, X, np.ones(3)), "shift has shape"),
        (lambda: metrics.input_invariance(explain, lambda x: x[:, :1], X, 1.0), "differ in shape"),
        (lambda: metrics.top_k_intersection(X, X, k=5), "between 1 and 4"),
        (lambda: metrics.roc_auc(X, X[:1]), "pool the channels first"),
        (lambda: metrics.histogram_entropy(X, bins=1), "at least 2 bins"),
        (lambda: metrics.efficient_mprt(lambda p, x: x, 0.0, 0.0, X, bins=0), "at least 2 bins"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_follow_the_input_and_everything_jits(data, dtype):
    params = {"a": jnp.ones(4, dtype), "b": jnp.arange(4, dtype=dtype)}
    fresh = {"a": jnp.arange(4, dtype=dtype) + 2, "b": jnp.ones(4, dtype) * 2}
    model = lambda p, x: x * p["a"] + p["b"]
    noisy = {"noise": 0.1, "samples": 3, "key": KEY}

    @jax.jit
    def everything(x):
        mask = x > 0
        return [
            metrics.local_lipschitz(explain, x, **noisy, predict=f),
            metrics.continuity(explain, x, shifts=[1], axis=1),
            metrics.relative_input_stability(explain, x, **noisy),
            metrics.relative_output_stability(explain, f, x, **noisy),
            metrics.relative_representation_stability(explain, jnp.cos, x, **noisy),
            metrics.smooth_mprt(model, params, fresh, x, layers=["a", "b"], **noisy),
            metrics.efficient_mprt(model, params, fresh, x, bins=3),
            metrics.random_logit(
                lambda x, c: x + c[:, None].astype(x.dtype) * x**2, x, 0, classes=3, key=KEY
            ),
            metrics.class_contrast(f, lambda x, c: x + c[:, None].astype(x.dtype) * x**2, x),
            *metrics.kept_share(f, x, x),
            metrics.input_invariance(explain, explain, x, 0.5),
            metrics.roc_auc(x, mask),
            metrics.top_k_intersection(x, mask, k=2),
            metrics.attribution_localisation(x, mask, weighted=True),
            metrics.effective_complexity(x),
            metrics.histogram_entropy(x, bins=4),
        ]

    x = data[0] * np.array([1.0, -1.0, 1.0, -1.0]) * np.sign(data[0])  # both signs in every sample
    outputs = everything(jnp.asarray(x, dtype))
    assert {v.dtype for v in outputs} == {jnp.dtype(dtype)}
    assert all(jnp.isfinite(v).all() for v in outputs)
