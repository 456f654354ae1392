"""Neuralised models: outputs are scikit-learn's, relevance is the printed formula in slow loops, and sums to the output."""

import functools

import jax
import numpy as np
import pytest
from sklearn.cluster import BisectingKMeans, KMeans
from sklearn.datasets import load_digits
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.svm import OneClassSVM

import lrpjax
from lrpjax import composites, neuralised
from lrpjax.errors import InputError

DIGITS = (
    load_digits().images.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) / 16
)  # halved: 4 × 4 pixels
X = DIGITS[::100]  # 18 digits
D = DIGITS.shape[1]
BANDWIDTH = 0.3
COVARIANCES = ("full", "tied", "diag", "spherical")
close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)


@functools.cache
def clusters():
    return KMeans(6, n_init=1, random_state=0).fit(DIGITS)


@functools.cache
def density(weighted=False):
    weights = np.arange(300) % 3 + 1 if weighted else None
    return KernelDensity(bandwidth=BANDWIDTH).fit(DIGITS[:300], sample_weight=weights)


@functools.cache
def machine(gamma="scale"):
    return OneClassSVM(nu=0.2, gamma=gamma).fit(DIGITS[:300])


@functools.cache
def mixture(kind):
    return GaussianMixture(4, covariance_type=kind, reg_covar=1e-2, max_iter=10, tol=1e9, random_state=0).fit(
        DIGITS[:600]
    )


FUNCTIONS = {
    "k-means": lambda: neuralised.kmeans(clusters()),
    "k-means, beta": lambda: neuralised.kmeans(clusters(), beta=0.3),
    "k-means, soft": lambda: neuralised.kmeans(clusters(), beta=0.3, soft=True),
    "density": lambda: neuralised.kernel_density(density()),
    "one class": lambda: neuralised.one_class_svm(machine()),
    "mixture, full": lambda: neuralised.gaussian_mixture(mixture("full")),
    "mixture, diag": lambda: neuralised.gaussian_mixture(mixture("diag")),
    "outlierness, full": lambda: neuralised.gaussian_mixture(mixture("full"), of="outlierness"),
    "outlierness, diag": lambda: neuralised.gaussian_mixture(mixture("diag"), of="outlierness"),
}


def target_of(f):
    return "max" if isinstance(f, neuralised.ClusterEvidence | neuralised.MixtureEvidence) else None


def output_of(f, x):
    return f(x).max(-1) if target_of(f) else f(x)


# ------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", FUNCTIONS)
def test_relevance_sums_to_the_output(name):
    f = FUNCTIONS[name]()
    R = lrpjax.relevance(f, target=target_of(f))(X)
    assert R.shape == X.shape and R.dtype == X.dtype
    close(R.sum(-1), output_of(f, X))
    if target_of(f):  # all outputs at once, though those of other clusters cancel
        close(lrpjax.relevance(f)(X).sum(-1), f(X).sum(-1), rtol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jit_and_vmap_agree(name):
    f = FUNCTIONS[name]()
    explain = lrpjax.value_and_relevance(f, target=target_of(f))
    plain = explain(X)
    jax.tree.map(close, jax.jit(explain)(X), plain)
    jax.tree.map(close, jax.jit(jax.vmap(explain))(X), plain)


@pytest.mark.parametrize("name", ["k-means, beta", "one class", "mixture, full", "outlierness, diag"])
def test_models_are_arguments_of_compiled_functions(name):
    """They are pytrees, and their arrays are traced; any number of axes may stand before that of the features."""
    f = FUNCTIONS[name]()
    R = lrpjax.relevance(f, target=target_of(f))(X)
    explain = jax.jit(lambda f, x: lrpjax.relevance(f, target=target_of(f))(x))
    close(explain(f, X.reshape(2, 3, 3, D)), R.reshape(2, 3, 3, D))


@pytest.mark.parametrize(
    "name", ["k-means", "k-means, soft", "one class", "mixture, full", "outlierness, diag"]
)
def test_float32_in_float32_out(name):
    f = FUNCTIONS[name]()
    x = X.astype(np.float32)
    y, R = lrpjax.value_and_relevance(f, target=target_of(f))(x)
    assert y.dtype == R.dtype == np.float32
    wide = lrpjax.relevance(f, target=target_of(f))(X)
    np.testing.assert_allclose(
        R, wide, rtol=2e-3, atol=2e-5 * np.abs(wide).max()
    )  # where clusters meet, h cancels
    np.testing.assert_allclose(R.sum(-1), y.max(-1) if target_of(f) else y, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["k-means", "k-means, soft", "one class", "mixture, full", "outlierness, diag"]
)
def test_gradients_are_those_of_the_function(name):
    """Until lrpjax transforms them they are plain functions: slopes by differences."""
    f = FUNCTIONS[name]()
    x, step = X[5], 1e-5 * np.random.default_rng(0).normal(size=D)
    slope = jax.grad(lambda x: output_of(f, x))(x) @ step
    np.testing.assert_allclose(slope, (output_of(f, x + step) - output_of(f, x - step)) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["k-means, beta", "density", "mixture, full", "mixture, diag", "outlierness, full"]
)
def test_behind_a_network_relevance_reaches_the_network_and_its_input(name):
    f = FUNCTIONS[name]()
    w = np.random.default_rng(1).normal(size=(32, D)) / 8
    inputs = np.abs(np.random.default_rng(2).normal(size=(5, 32)))
    encoder = lambda x: lrpjax.tag(jax.nn.relu(x @ w), "code")
    whole = lambda x: f(encoder(x))
    exact = composites.epsilon(0.0)
    y = output_of(f, encoder(inputs))
    at_head = lrpjax.relevance(whole, exact, target=target_of(f), at="code")(inputs)
    close(at_head, lrpjax.relevance(f, target=target_of(f))(encoder(inputs)))
    close(at_head.sum(-1), y)
    close(lrpjax.relevance(whole, exact, target=target_of(f))(inputs).sum(-1), y)


def test_presets_leave_the_relevance_as_it_is_and_gradients_are_gradients():
    f = neuralised.kmeans(clusters(), beta=0.3)
    R = lrpjax.relevance(f, target="max")(X)
    for composite in (
        composites.epsilon(0.1),
        composites.epsilon_plus(),
        composites.deep_taylor(),
        composites.attnlrp(),
    ):
        close(lrpjax.relevance(f, composite, target="max")(X), R)
    slope = jax.grad(lambda x: f(x).max(-1).sum())(X)
    close(lrpjax.relevance(f, composites.gradient(), target="max")(X), slope)


# ----------------------------------------------------------------------------------------------------------- k-means


def test_the_largest_evidence_is_the_cluster_of_scikit_learn():
    f = neuralised.kmeans(clusters())
    evidence = np.asarray(f(DIGITS))
    np.testing.assert_array_equal(evidence.argmax(-1), clusters().predict(DIGITS))
    assert ((evidence > 0).sum(-1) == 1).all()
    squared = clusters().transform(X) ** 2
    for row, distances in zip(evidence[::100], squared, strict=True):
        for c, value in enumerate(row):
            close(value, np.delete(distances, c).min() - distances[c])


def neon(x, centers, c, beta, total):
    """The paper's two rules for one example, connection by connection: soft-min, then the midpoint rule."""
    others = [k for k in range(len(centers)) if k != c]
    weights = [2 * (centers[c] - centers[k]) for k in others]
    h = np.array([w @ (x - (centers[c] + centers[k]) / 2) for w, k in zip(weights, others, strict=True)])
    shares = h == h.min() if beta is None else np.exp(-beta * (h - h.min()))
    R = np.zeros_like(x)
    for unit, k in enumerate(others):
        middle = (centers[c] + centers[k]) / 2
        for i in range(len(x)):
            R[i] += shares[unit] / shares.sum() * total * weights[unit][i] * (x[i] - middle[i]) / h[unit]
    return R


@pytest.mark.parametrize("beta", [None, 0.3, 20.0])
@pytest.mark.parametrize("own", [True, False])
def test_k_means_by_loops(beta, own):
    f, centers = neuralised.kmeans(clusters(), beta=beta), clusters().cluster_centers_
    evidence = np.asarray(f(X))
    c = evidence.argmax(-1) if own else evidence.argmin(-1)
    R = lrpjax.relevance(f, target=c)(X)
    for n, x in enumerate(X):
        close(R[n], neon(x, centers, c[n], beta, evidence[n, c[n]]), rtol=1e-7, atol=1e-9)


def test_k_means_by_hand():
    f = neuralised.ClusterEvidence(np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]]))
    x = np.array([0.5, 1.0])
    # h against cluster 1: w = (−4, 0), midpoint (1, 0): −4 (0.5 − 1) = 2. Against 2: w = (0, −8), midpoint (0, 2): 8.
    close(f(x), [2.0, -2.0, -8.0])
    close(lrpjax.relevance(f, target=0)(x), [2.0, 0.0])
    shared = neuralised.ClusterEvidence(f.centers, beta=np.log(3.0) / 6)  # exp(−6 β) = 1/3
    close(lrpjax.relevance(shared, target=0)(x), [1.5, 0.5])
    # both competitors are equally near (h = 4): half for each
    close(lrpjax.relevance(f, target=0)(np.array([0.0, 1.5])), [2.0, 2.0])


def test_soft_evidence_is_the_log_odds():
    beta, f = 0.3, neuralised.kmeans(clusters(), beta=0.3, soft=True)
    p = np.asarray(jax.nn.softmax(-beta * clusters().transform(X) ** 2))
    close(f(X), np.log(p / (1 - p)) / beta, rtol=1e-8)


def test_at_the_border_relevance_is_shared_by_the_direction():
    """h = 0: x is the root of its unit, and nothing is divided by 0."""
    centers = np.array([[0.0, 0.0], [2.0, 4.0]])
    f = neuralised.ClusterEvidence(centers)
    middle = np.array([1.0, 2.0])
    close(f(middle), [0.0, 0.0])
    close(lrpjax.relevance(f, target=0)(middle), [0.0, 0.0])
    # as a head whose relevance comes from above: w² = (4, 16) · 4
    close(lrpjax.relevance(f, target=np.array([5.0, 0.0]))(middle), [1.0, 4.0])
    g = neuralised.MixtureEvidence(centers, np.ones((2, 2)), np.zeros(2))
    close(lrpjax.relevance(g, target=np.array([5.0, 0.0]))(middle), [1.0, 4.0])


def test_the_plain_formula_is_the_reason():
    """The distances themselves, explained by default, give relevance to the origin, and do not sum to the output."""
    centers = clusters().cluster_centers_
    plain = lambda x: ((x[:, None] - centers) ** 2).sum(-1)
    scores = lambda x: -plain(x)
    y, R = lrpjax.value_and_relevance(scores, target="max")(X)
    kept = np.asarray(R.sum(-1) / y.max(-1))
    assert (np.abs(kept - 1) > 0.2).mean() > 0.8
    # and not the difference of two distances either, though it is linear in x: its bias takes part
    difference = lambda x: jax.lax.sort(plain(x))[:, 1] - jax.lax.sort(plain(x))[:, 0]
    y, R = lrpjax.value_and_relevance(difference)(X)
    assert (np.abs(R.sum(-1) / y - 1) > 0.2).mean() > 0.5


def test_stiffness_is_one_over_the_mean_evidence():
    f = neuralised.kmeans(clusters(), beta=0.3)
    close(neuralised.stiffness(f, X), 1 / np.asarray(f(X)).max(-1).mean())
    with pytest.raises(InputError, match="no scale"):
        neuralised.stiffness(neuralised.ClusterEvidence(np.array([[0.0], [2.0]])), np.ones((3, 1)))


# -------------------------------------------------------------------------------------------------------- outlierness


def test_the_outlierness_of_a_density_is_its_logarithm():
    for model in (density(), density(True)):
        f, gamma = neuralised.kernel_density(model), 1 / (2 * BANDWIDTH**2)
        assert (f(X) > 0).all()
        expected = model.score_samples(X) + D * np.log(BANDWIDTH * np.sqrt(2 * np.pi))
        close(-gamma * f(X), expected, rtol=1e-9)


def test_points_without_weight_take_no_part():
    model = KernelDensity(bandwidth=BANDWIDTH).fit(DIGITS[:9], sample_weight=np.arange(9) % 2)
    f, held = neuralised.kernel_density(model), KernelDensity(bandwidth=BANDWIDTH).fit(DIGITS[1:9:2])
    assert len(f.points) == 4
    close(f(X), neuralised.kernel_density(held)(X))


@pytest.mark.parametrize("gamma", ["scale", "auto", 0.5])
def test_outliers_are_above_the_threshold(gamma):
    model = machine(gamma)
    f = neuralised.one_class_svm(model)
    o = f(DIGITS)
    np.testing.assert_array_equal(o > f.threshold, model.decision_function(DIGITS) < 0)
    assert 0 < (o > f.threshold).mean() < 1 and (o >= 0).all()
    total = model.dual_coef_.sum()
    np.testing.assert_allclose(total * np.exp(-model._gamma * o), model.score_samples(DIGITS), rtol=1e-8)


def by_distances(x, points, log_weights, gamma, terms):
    """Soft-min over distances, and each distance's terms over its features, connection by connection."""
    values = [log_weights[j] - gamma * sum(terms(x, j)) for j in range(len(points))]
    weights = np.exp(np.array(values) - max(values))
    total = -(np.log(weights.sum()) + max(values)) / gamma
    R = np.zeros_like(x)
    for j in range(len(points)):
        own = terms(x, j)
        for i in range(len(x)):
            part = own[i] / sum(own) if sum(own) > 0 else 1 / len(x)
            R[i] += weights[j] / weights.sum() * total * part
    return R


@pytest.mark.parametrize("model", ["density", "weighted density", "one class"])
def test_outlierness_by_loops(model):
    if model == "one class":
        f = neuralised.one_class_svm(machine())
    else:
        f = neuralised.kernel_density(density(model == "weighted density"))
    x = np.concatenate([X[:6], f.points[:2]])  # two of them are points of the model
    R = lrpjax.relevance(f)(x)
    for row, own in zip(x, R, strict=True):
        slow = by_distances(row, f.points, f.log_weights, f.gamma, lambda x, j: (x - f.points[j]) ** 2)
        close(own, slow)


def test_outlierness_by_hand():
    f = neuralised.Outlierness(np.array([[0.0, 0.0], [0.0, 4.0]]), np.log([0.5, 0.5]), 1.0)
    # both points at squared distance 8, terms (4, 4) each; −log(½ e⁻⁸ + ½ e⁻⁸) = 8
    close(lrpjax.relevance(f)(np.array([2.0, 2.0])), [4.0, 4.0])
    # at a point: all but e⁻¹⁶ of the relevance is its own, log 2 nearly, divided evenly
    R = lrpjax.relevance(f)(np.array([0.0, 0.0]))
    y = np.log(2) - np.log1p(np.exp(-16.0))
    share = 1 / (1 + np.exp(-16.0))
    close(R, [share * y / 2, share * y / 2 + (1 - share) * y])


# ----------------------------------------------------------------------------------------------------------- mixtures


def precision(model, k):
    """Λ_k as a matrix, from the covariances."""
    covariances, features = model.covariances_, model.means_.shape[1]
    of = {
        "full": lambda: covariances[k],
        "tied": lambda: covariances,
        "diag": lambda: np.diag(covariances[k]),
        "spherical": lambda: covariances[k] * np.eye(features),
    }
    return np.linalg.inv(of[model.covariance_type]())


@pytest.mark.parametrize("kind", COVARIANCES)
def test_mixtures_have_scikit_learns_probabilities(kind):
    model = mixture(kind)
    f, o = neuralised.gaussian_mixture(model), neuralised.gaussian_mixture(model, of="outlierness")
    close(jax.nn.sigmoid(f(X)), model.predict_proba(X), atol=1e-9)
    np.testing.assert_array_equal(f(DIGITS).argmax(-1), model.predict(DIGITS))
    close(o.offset - o(X), model.score_samples(X), rtol=1e-9)
    assert (o(DIGITS) > 0).all()


@pytest.mark.parametrize("kind", COVARIANCES)
@pytest.mark.parametrize("own", [True, False])
def test_evidence_of_mixtures_by_loops(kind, own):
    model, features = mixture(kind), X.shape[1]
    means, count = model.means_, len(model.means_)
    L = [precision(model, k) for k in range(count)]
    f = neuralised.gaussian_mixture(model)
    evidence = np.asarray(f(X))
    c_of = evidence.argmax(-1) if own else evidence.argmin(-1)
    R = lrpjax.relevance(f, target=c_of)(X)
    log_height = [np.log(model.weights_[k]) + np.linalg.slogdet(L[k])[1] / 2 for k in range(count)]
    for n, x in enumerate(X[:8]):
        c, expected = c_of[n], np.zeros(features)
        others = [k for k in range(count) if k != c]
        z = []
        for k in others:
            apart = means[c] - means[k]
            e, mean, difference = x - (means[c] + means[k]) / 2, (L[c] + L[k]) / 2, L[k] - L[c]
            terms = e * (mean @ apart) + e * (difference @ e) / 2 + apart * (difference @ apart) / 8
            parts = apart * (mean @ apart)
            z.append(terms + (log_height[c] - log_height[k]) * parts / parts.sum())
        h = np.array([v.sum() for v in z])
        shares = np.exp(h.min() - h) / np.exp(h.min() - h).sum()
        for unit in range(len(others)):
            expected += shares[unit] * evidence[n, c] * z[unit] / h[unit]
        close(R[n], expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("kind", COVARIANCES)
def test_outlierness_of_mixtures_by_loops(kind):
    model = mixture(kind)
    means, L = model.means_, [precision(model, k) for k in range(4)]
    f = neuralised.gaussian_mixture(model, of="outlierness")
    x = np.concatenate([X[:5], means[:1]])
    R = lrpjax.relevance(f)(x)
    for row, own in zip(x, R, strict=True):
        terms = lambda x, k: (x - means[k]) * (L[k] @ (x - means[k]))
        # the terms of Mahalanobis distances; γ = ½, and o is in units of −log p
        slow = by_distances(row, means, f.log_weights, 0.5, terms) / 2
        close(own, slow, rtol=1e-8, atol=1e-8)


def test_a_mixture_of_equal_spheres_is_a_soft_k_means():
    centers, variance = clusters().cluster_centers_, 0.7
    count, features = centers.shape
    f = neuralised.ClusterEvidence(centers, beta=1 / (2 * variance), soft=True)
    factors = np.full((count, features), variance**-0.5)
    g = neuralised.MixtureEvidence(centers, factors, np.zeros(count))
    close(g(X), f(X) * f.beta)
    close(lrpjax.relevance(g, target="max")(X), lrpjax.relevance(f, target="max")(X) * f.beta, rtol=1e-9)


def test_with_one_covariance_the_root_is_on_the_line_through_the_means():
    rng = np.random.default_rng(3)
    means, P = rng.normal(size=(2, 3)), np.tril(rng.normal(size=(3, 3))) + 2 * np.eye(3)
    heights = np.array([0.4, -1.1])
    f = neuralised.MixtureEvidence(means, P[None], heights)
    x, w = rng.normal(size=3), P @ P.T @ (means[0] - means[1])
    apart = means[0] - means[1]
    root = means.mean(0) - (heights[0] - heights[1]) / (w @ apart) * apart
    close(f(root), [0.0, 0.0])
    close(lrpjax.relevance(f, target=0)(x), w * (x - root))


def test_components_at_one_mean_share_the_constant_evenly():
    means, factors = np.zeros((2, 2)), np.array([[1.0, 1.0], [2.0, 2.0]])
    f = neuralised.MixtureEvidence(means, factors, np.array([0.0, 1.0]))
    x = np.array([1.0, 2.0])
    # h = −1 + ½ (4 − 1) (1 + 4): terms 1.5 and 6, less half of the constant each
    close(lrpjax.relevance(f, target=0)(x), [1.0, 5.5])


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("convert", "model", "message"),
    [
        (neuralised.kmeans, KMeans(2), "KMeans has no cluster_centers_: call fit first"),
        (neuralised.kmeans, KMeans(1, n_init=1).fit(X), "there is one cluster only"),
        (neuralised.kmeans, BisectingKMeans(2).fit(X), "by a tree and not by the nearest centre"),
        (neuralised.kernel_density, KernelDensity(), "KernelDensity has no tree_: call fit first"),
        (neuralised.kernel_density, KernelDensity(kernel="tophat").fit(X), "the kernel is 'tophat'"),
        (neuralised.kernel_density, KernelDensity(metric="manhattan").fit(X), "the metric is 'manhattan'"),
        (neuralised.one_class_svm, OneClassSVM(), "OneClassSVM has no support_vectors_: call fit first"),
        (neuralised.one_class_svm, OneClassSVM(kernel="linear").fit(X), "the kernel is 'linear'"),
        (neuralised.one_class_svm, KMeans(2), "KMeans has no support_vectors_"),
        (neuralised.gaussian_mixture, GaussianMixture(2), "GaussianMixture has no means_: call fit first"),
        (neuralised.gaussian_mixture, GaussianMixture(1).fit(X), "there is one component only"),
        (
            neuralised.gaussian_mixture,
            BayesianGaussianMixture(n_components=1).fit(X),
            "fit a GaussianMixture",
        ),
    ],
)
def test_models_that_cannot_be_neuralised_are_errors(convert, model, message):
    with pytest.raises(neuralised.ModelError, match=message):
        convert(model)


def test_equal_centres_and_bad_options_are_errors():
    model = clusters()
    twice = KMeans(2)
    twice.cluster_centers_ = np.ones((2, 3))
    with pytest.raises(neuralised.ModelError, match="the same centre"):
        neuralised.kmeans(twice)
    for beta in (0.0, -1.0, float("inf")):
        with pytest.raises(neuralised.ModelError, match="beta must be positive"):
            neuralised.kmeans(model, beta=beta)
        with pytest.raises(neuralised.ModelError, match="beta must be positive"):
            neuralised.ClusterEvidence(model.cluster_centers_, beta)(X)
    with pytest.raises(neuralised.ModelError, match="needs a beta"):
        neuralised.kmeans(model, soft=True)
    with pytest.raises(neuralised.ModelError, match='"clusters" or "outlierness"'):
        neuralised.gaussian_mixture(mixture("diag"), of="density")
    empty = GaussianMixture(2).fit(X)
    empty.weights_ = np.array([1.0, 0.0])
    with pytest.raises(neuralised.ModelError, match="no weight"):
        neuralised.gaussian_mixture(empty)


@pytest.mark.parametrize("name", ["k-means", "density", "one class", "mixture, full", "outlierness, diag"])
def test_inputs_that_do_not_fit_are_errors(name):
    f = FUNCTIONS[name]()
    with pytest.raises(InputError, match=r"has 16 features, but x has shape \(2, 15\)"):
        f(np.ones((2, 15)))
    with pytest.raises(InputError, match="x has dtype int64"):
        f(np.ones((2, D), int))
    with pytest.raises(InputError, match=r"x has shape \(\)"):
        f(np.float64(1.0))


def test_one_component_has_an_outlierness():
    model = GaussianMixture(1).fit(X[:, 4:8])
    f = neuralised.gaussian_mixture(model, of="outlierness")
    close(f.offset - f(X[:, 4:8]), model.score_samples(X[:, 4:8]), rtol=1e-8)


def test_sparse_support_vectors_are_read():
    sparse = pytest.importorskip("scipy.sparse")
    model = OneClassSVM(gamma=0.5, nu=0.3).fit(sparse.csr_matrix(X))
    f, dense = (
        neuralised.one_class_svm(model),
        neuralised.one_class_svm(OneClassSVM(gamma=0.5, nu=0.3).fit(X)),
    )
    np.testing.assert_allclose(f(X), dense(X), rtol=1e-4)
