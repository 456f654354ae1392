"""Taylor decomposition by hand, against the rules that it justifies, and against iNNvestigate's Deep Taylor."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import lrpjax
from lrpjax import composites, rules, select, taylor
from lrpjax.errors import InputError, RootError

LAYERS = select.kind("dense", "conv")

# ----------------------------------------------------------------------------------------------------------------- expansion at a point


def test_a_quadratic_by_hand():
    """f = x₁² + 3 x₁x₂ − 10 at (1, 3) is a root: ∇f = (2 + 9, 3), and the remainder is that of the second order, 1·1 + 3·1·1."""
    f = lambda x: x[0] ** 2 + 3 * x[0] * x[1] - 10
    e = taylor.expand(f, jnp.array([2.0, 4.0]), jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(e.relevance, [11.0, 3.0])
    assert (float(e.residual), float(e.remainder), bool(e.found)) == (0.0, 4.0, True)
    off = taylor.expand(f, jnp.array([2.0, 4.0]), jnp.array([1.0, 4.0]))
    np.testing.assert_allclose(off.relevance, [14.0, 0.0])
    assert (float(off.residual), float(off.remainder), bool(off.found)) == (3.0, 1.0, False)


@pytest.mark.parametrize(
    "search",
    [
        taylor.line(),
        taylor.nearest(),
        taylor.nearest(-0.5, 3.0),
        taylor.nearest(starts=3, key=jax.random.key(0)),
    ],
    ids=["line", "nearest", "box", "starts"],
)
def test_relevance_residual_and_remainder_add_up(search):
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(6, 9)), rng.normal(size=9)
    f = lambda x: jnp.tanh(x @ w) @ v + 0.2 * jnp.sum(x * x) - 1.0
    x = jnp.asarray(rng.uniform(0, 2, size=6))
    e = taylor.decompose(f, search)(x)
    each = jax.vmap(lambda root: taylor.expand(f, x, root))(jnp.atleast_2d(e.root))
    assert np.all(e.found)
    np.testing.assert_allclose(e.relevance, each.relevance.mean(0), rtol=1e-9)
    np.testing.assert_allclose(f(x), e.relevance.sum() + (e.residual + e.remainder).mean(), rtol=1e-9)
    np.testing.assert_allclose(e.residual, 0, atol=1e-4 * float(f(x)))


# -------------------------------------------------------------------------------------------------------- one ReLU neuron and its rules

LOW, HIGH = -1.0, 2.0
NEURON = {  # rule, and the direction in which its root point lies (Montavon et al. 2017, section 4)
    "w²": (rules.WSquare(0.0, bias=False), lambda x, w: w),
    "z": (rules.Epsilon(0.0, bias=False), lambda x, w: x),
    "z⁺": (rules.ZPlus(0.0, bias=False), lambda x, w: x * (w > 0)),
    "z^B": (rules.ZBox(LOW, HIGH, 0.0), lambda x, w: x - LOW * (w > 0) - HIGH * (w < 0)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NEURON)
def test_the_rule_of_a_relu_neuron_is_its_taylor_expansion(name, seed):
    """R_i = w_i (x_i − x₀_i) with x₀ = x − t d and f(x₀) = 0 is w_i d_i / Σ w d · f(x), the rule, for every bias b ≤ 0."""
    rule, direction = NEURON[name]
    rng = np.random.default_rng(seed)
    w = rng.normal(size=5)
    x = rng.uniform(0, HIGH, size=5)
    w, b = (w if w @ x > 0 else -w), -0.3 * abs(w @ x)
    f = lambda x: jax.nn.relu(x @ w[:, None] + b)[..., 0]
    R = lrpjax.relevance(f, lrpjax.Composite([(LAYERS, rule)]))(jnp.asarray(x))
    d = direction(x, w)
    e = taylor.decompose(f, taylor.line(d, length=2 * (w @ x + b) / (w @ d)))(jnp.asarray(x))
    np.testing.assert_allclose(e.relevance, R, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(e.root, x - (w @ x + b) / (w @ d) * d, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(e.remainder, 0, atol=1e-12)
    if name in ("z⁺", "z^B"):  # the root point is one that an input may be
        low, high = (0.0, np.inf) if name == "z⁺" else (LOW, HIGH)
        assert np.all(e.root >= low - 1e-12) and np.all(e.root <= high + 1e-12)


def test_the_nearest_root_of_a_relu_neuron_is_that_of_the_w2_rule():
    w, x = np.array([1.0, -2.0, 0.5]), jnp.array([3.0, 0.5, 1.0])
    f = lambda x: jax.nn.relu(x @ w[:, None] - 0.5)[..., 0]
    e = taylor.decompose(f, taylor.nearest())(x)
    R = lrpjax.relevance(f, lrpjax.Composite([(LAYERS, rules.WSquare(0.0, bias=False))]))(x)
    np.testing.assert_allclose(e.relevance, R, rtol=1e-5)
    np.testing.assert_allclose(e.relevance, w * w / (w @ w) * 2.0, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------------- line search


def test_the_line_search_takes_the_first_root():
    f = lambda x: (x[0] - 1) * (x[0] - 2) * (x[0] - 3)
    root = lambda x, **kwargs: float(taylor.line(jnp.ones(1), **kwargs)(f, jnp.array([x]))[0])
    assert root(5.0, length=4.5) == pytest.approx(3, abs=1e-12)
    assert root(2.7, length=2.5) == pytest.approx(2, abs=1e-12)  # f(2.7) < 0
    assert root(2.0) == 2.0


def test_several_directions_are_averaged():
    x = jnp.array([2.0, 4.0])
    f = lambda x: x[0] * x[1] - 4
    e = taylor.decompose(f, taylor.line(jnp.array([[1.0, 0.0], [0.0, 1.0]]), length=4.0))(x)
    np.testing.assert_allclose(e.root, [[1.0, 4.0], [2.0, 2.0]], rtol=1e-12)
    np.testing.assert_allclose(e.relevance, [4.0 / 2, 4.0 / 2], rtol=1e-12)
    assert e.found.tolist() == [True, True]


def test_directions_without_a_root_are_left_out():
    f = lambda x: x[0] - 1.0
    search = taylor.line(jnp.array([[1.0, 0.0], [0.0, 1.0]]), length=3.0)
    e = taylor.decompose(f, search)(jnp.array([3.0, 1.0]))
    assert e.found.tolist() == [True, False]
    np.testing.assert_allclose(e.relevance, [2.0, 0.0], rtol=1e-12)
    np.testing.assert_allclose(e.residual, [0.0, 2.0], atol=1e-12)


def test_the_root_of_a_relu_lies_where_it_is_still_active():
    f = lambda x: jax.nn.relu(x.sum() - 1.0)
    e = taylor.decompose(f, taylor.line(lambda x: x))(jnp.array([2.0, 3.0]))
    assert float(e.residual) >= 0
    np.testing.assert_allclose(e.relevance, [1.6, 2.4], rtol=1e-9)


# --------------------------------------------------------------------------------------------------------------------------- nearest root


def nearest_on_a_plane(w, b, x, low, high):
    """min ‖x₀ − x‖ with w·x₀ + b = 0 in a box: x₀ = clip(x − λ w) with the λ that solves it."""
    at = lambda multiplier: np.clip(x - multiplier * w, low, high)
    return at(scipy.optimize.brentq(lambda m: w @ at(m) + b, -1e3, 1e3, xtol=1e-14))


@pytest.mark.parametrize("box", [(-np.inf, np.inf), (-0.2, 2.0), (0.4, 2.0)])
@pytest.mark.parametrize("seed", range(3))
def test_nearest_root_on_a_plane(seed, box):
    rng = np.random.default_rng(seed)
    w, x = rng.uniform(0.2, 1, size=4) * np.array([1, 1, 1, -1]), rng.uniform(0.5, 1.5, size=4)
    start = np.clip(x - 0.6 * w, *box)
    b = -w @ start  # a root that lies in the box
    bounds = [None if np.isinf(v) else v for v in box]
    e = taylor.decompose(lambda x: x @ w + b, taylor.nearest(*bounds))(jnp.asarray(x))
    np.testing.assert_allclose(e.root, nearest_on_a_plane(w, b, x, *box), atol=1e-4)
    assert np.all(e.root >= box[0]) and np.all(e.root <= box[1])
    np.testing.assert_allclose(e.relevance, w * (x - e.root), rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [None, optax.adam(0.02), optax.sgd(0.05)], ids=["default", "adam", "sgd"]
)
def test_nearest_root_on_a_sphere(optimizer):
    x = jnp.array([3.0, 4.0])
    search = taylor.nearest(optimizer=optimizer, steps=100)
    with jax.numpy_dtype_promotion("standard"):  # optax's adam needs it
        e = taylor.decompose(lambda x: jnp.sum(x * x) - 1.0, search)(x)
    np.testing.assert_allclose(e.root, x / 5, atol=1e-3)
    np.testing.assert_allclose(e.residual, 0, atol=1e-9)
    np.testing.assert_allclose(e.remainder, 16.0, rtol=1e-3)  # ‖x − x₀‖²


def tanh_network(seed):
    rng = np.random.default_rng(seed)
    w, b, v = rng.normal(size=(6, 16)), 0.3 * rng.normal(size=16), rng.normal(size=16)
    return lambda x: jnp.tanh(x @ w + b) @ v, rng.normal(size=6)


CURVED = {  # f, x
    "tangent far off": (lambda x: 4 - x[0] ** 2 - x[1] ** 2 + x[0], np.array([0.9, 0.1])),
    "exponential": (lambda x: jnp.exp(x.sum()) - 2, np.array([1.0, 2.0, 0.0])),
    "steep": (lambda x: 1e4 * (x.sum() - 1), np.array([2.0, 3.0])),
    "flat": (lambda x: 1e-4 * (x.sum() - 1) ** 3, np.array([2.0, 3.0])),
    "network 3": tanh_network(3),
    "network 4": tanh_network(4),
}


@pytest.mark.parametrize("name", CURVED)
def test_scipy_finds_no_root_that_is_nearer(name):
    f, x = CURVED[name]
    e = taylor.decompose(f, taylor.nearest())(jnp.asarray(x))
    slope, start = jax.jit(jax.grad(f)), np.asarray(e.root)
    is_root = {"type": "eq", "fun": lambda z: float(f(z)), "jac": lambda z: np.asarray(slope(z))}
    away = lambda z: (((z - x) ** 2).sum(), 2 * (z - x))
    best = scipy.optimize.minimize(away, start, jac=True, method="SLSQP", constraints=is_root)
    assert np.linalg.norm(start - x) <= np.sqrt(best.fun) * (1 + 1e-3)


def test_a_bound_for_each_input():
    x, low = jnp.array([2.0, 2.0]), jnp.array([1.5, -9.0])
    e = taylor.decompose(lambda x: x.sum() - 2.0, taylor.nearest(low, 9.0))(x)
    np.testing.assert_allclose(e.root, [1.5, 0.5], atol=1e-5)


def test_several_starts_find_several_roots():
    """f = 1 − x² has the roots 1 and −1; from 0.1, 1 is nearer, but from other places −1 is found."""
    search = taylor.nearest(starts=16, key=jax.random.key(1))
    e = taylor.decompose(lambda x: 1 - x[0] ** 2, search)(jnp.array([0.1]))
    assert e.found.all() and e.root.shape == (16, 1)
    np.testing.assert_allclose(np.unique(np.round(e.root, 9)), [-1, 1])
    np.testing.assert_allclose(e.relevance, jnp.mean(-2 * e.root * (0.1 - e.root), 0), rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------------------- no root found


@pytest.mark.parametrize("search", [taylor.line(jnp.ones(2)), taylor.nearest()], ids=["line", "nearest"])
def test_where_there_is_no_root_it_says_so(search):
    f = lambda x: jnp.sum(x * x) + 1.0
    x = jnp.array([1.0, 2.0])
    with pytest.raises(
        RootError, match=r"no root point was found: f\(x\) is 6, the least \|f\(x₀\)\| .* is [1-5]"
    ):
        taylor.decompose(f, search)(x)
    e = taylor.decompose(f, search, strict=False)(x)
    assert not e.found and 1 <= float(e.residual) < 6
    np.testing.assert_allclose(e.relevance.sum() + e.residual + e.remainder, 6.0, rtol=1e-12)
    assert np.isnan(jax.jit(taylor.decompose(f, search))(x).relevance).all()


def test_a_box_without_a_root_is_refused():
    with pytest.raises(RootError, match=r"no root point was found: f\(x\) is 3, the least .* is 1\. Try"):
        taylor.decompose(lambda x: x.sum() - 1.0, taylor.nearest(1.0, 5.0))(jnp.array([2.0, 2.0]))


def test_examples_of_a_batch_without_a_root_are_nan():
    explain = jax.jit(jax.vmap(taylor.decompose(lambda x: x.sum() - 1.0, taylor.line(jnp.array([1.0, 0.0])))))
    e = explain(jnp.array([[1.0, 0.5], [3.0, 1.0]]))
    np.testing.assert_allclose(e.relevance, [[0.5, 0.0], [np.nan, np.nan]], rtol=1e-12)
    assert e.found.tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("search", [taylor.line(), taylor.nearest(0.0, 9.0)], ids=["line", "nearest"])
def test_precisions_and_compilation(search, dtype):
    w = np.array([1.0, 2.0, -1.0], dtype)
    explain = taylor.decompose(lambda x: x @ w - np.ones((), dtype), search)
    x = jnp.array([[2.0, 3.0, 1.0], [4.0, 1.0, 2.0]], dtype)
    e = jax.jit(jax.vmap(explain))(x)
    assert e.relevance.dtype == e.residual.dtype == dtype
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(e.relevance, jnp.stack([explain(x).relevance for x in x]), rtol=tolerance)
    np.testing.assert_allclose(e.relevance.sum(-1), [6.0, 3.0], rtol=1e-4)


@pytest.mark.parametrize(
    ("run", "error", "match"),
    [
        (lambda: taylor.decompose(jnp.sum, taylor.line())(np.arange(3)), InputError, "this has dtype int64"),
        (lambda: taylor.decompose(jnp.sin, taylor.line())(np.ones(3)), InputError, r"f gives shape \(3,\)"),
        (
            lambda: taylor.decompose(jnp.sum, taylor.line(jnp.ones(4)))(np.ones(3)),
            RootError,
            r"the direction has shape \(4,\), but x has shape \(3,\)",
        ),
        (
            lambda: taylor.decompose(jnp.sum, lambda f, x: x[:2])(np.ones(3)),
            RootError,
            r"gave root points of shape \(2,\) for an x of shape \(3,\)",
        ),
        (
            lambda: taylor.decompose(jnp.sum, taylor.nearest(2.0, 3.0))(np.ones(3)),
            RootError,
            "x lies outside the bounds",
        ),
        (lambda: taylor.nearest(starts=2), RootError, "starts is 2: .* a key is needed"),
        (lambda: taylor.nearest(starts=0), RootError, "starts is 0: it must be at least 1"),
        (lambda: taylor.line(points=0), RootError, "points is 0: it must be at least 1"),
    ],
)
def test_bad_input(run, error, match):
    with pytest.raises(error, match=match):
        run()


# ----------------------------------------------------------------------------------------------------------------------------- Deep Taylor


@pytest.mark.parametrize("bounded", [True, False])
def test_deep_taylor_equals_that_of_innvestigate(bounded):
    """Without bounds iNNvestigate takes inputs for positive, and so uses z⁺ at the input too, not w²."""
    case = golden.load("innvestigate_cnn.npz")
    (analysis,) = (a for a in case.analyses if a["id"] == "inn1_deep_taylor" + ".bounded" * bounded)
    ours = composites.deep_taylor(-1.0, 1.0, epsilon=0.0) if bounded else composites.deep_taylor(epsilon=0.0)
    if not bounded:
        z_plus = (select.first("conv", "dense"), rules.ZPlus(0.0, bias=False))
        ours = lrpjax.Composite([z_plus, *ours.pairs])
    R = lrpjax.relevance(case.f, ours, target=jnp.asarray(case[analysis["seed"]]))(case.x)
    want = case[analysis["relevance"]]
    assert np.abs(R - want).max() <= 1e-7 * np.abs(want).max()


def shallow(x):
    """A convolution, a max-pooling and two dense layers, all biases negative and all ReLUs: what Deep Taylor asks for."""
    rng = np.random.default_rng(5)
    w1, w2, w3 = (rng.normal(size=s) for s in ((3, 3, 2, 6), (54, 8), (8, 3)))
    w3 = w3 + 1.5  # or some logit is never active
    y = jax.lax.conv_general_dilated(x, w1, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jax.nn.relu(y - 0.2)
    y = jax.lax.reduce_window(y, -np.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    y = jax.nn.relu(y.reshape(len(x), -1) @ w2 - 0.1)
    return jax.nn.relu(y @ w3 - 0.1)


@pytest.mark.parametrize("bounds", [(), (-1.0, 1.0)], ids=["w²", "z^B"])
@pytest.mark.parametrize("target", [0, 1, 2, "max"])
def test_deep_taylor_is_positive_and_conservative(bounds, target):
    x = jnp.asarray(np.random.default_rng(6).uniform(-1, 1, size=(4, 6, 6, 2)))
    composite = composites.deep_taylor(*bounds, epsilon=0.0)
    y, R = lrpjax.value_and_relevance(shallow, composite, target=target)(x)
    explained = y.max(-1) if target == "max" else y[:, target]
    assert (R >= 0).all()
    np.testing.assert_allclose(R.sum((1, 2, 3)), explained, rtol=1e-9, atol=1e-12)
    assert (explained > 0).any()


def test_deep_taylor_is_the_expansion_of_every_neuron():
    """Two layers: relevance of the hidden neurons is z⁺ and, each neuron's being c·h, that of the inputs its expansion at the nearest root."""
    rng = np.random.default_rng(7)
    w, v = rng.normal(size=(4, 5)), np.abs(rng.normal(size=(5, 1)))
    x = jnp.asarray(rng.normal(size=4))
    f = lambda x: (jax.nn.relu(x @ w) @ v)[0]
    want = np.zeros(4)
    for j in range(5):
        if x @ w[:, j] > 0:
            want += taylor.decompose(lambda x, j=j: v[j, 0] * jax.nn.relu(x @ w[:, j]), taylor.nearest())(
                x
            ).relevance
    R = lrpjax.relevance(f, composites.deep_taylor(epsilon=0.0))(x)
    np.testing.assert_allclose(R, want, rtol=1e-5)
