"""Conversion of scikit-learn's SVCs, and the handwritten digits, explained and with pixels removed."""

import functools
import math

import helpers
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics.pairwise import chi2_kernel
from sklearn.svm import SVC, NuSVC

from lrpjax import bow
from lrpjax import demo as core_demo
from lrpjax.bow import demo

close = functools.partial(helpers.close, tolerance=1e-10)


def training_set(classes, count=60, words=5):
    """Histograms whose largest word depends on the class."""
    draw = np.random.default_rng(11)
    labels = np.arange(count) % classes
    x = draw.random((count, words))
    x[np.arange(count), labels % words] += 1.0
    return x, labels


def loop_pairs(svc, kernel, training, x):
    """scikit-learn's pairwise decisions, by loops over its documented layout of dual_coef_."""
    classes = len(svc.classes_)
    stop = np.cumsum(svc.n_support_)
    start = stop - svc.n_support_
    out = []
    for row in x:
        values = [kernel(training[i], row) for i in svc.support_]
        scores = []
        for i in range(classes):
            for j in range(i + 1, classes):
                total = svc.intercept_[len(scores)]
                total += sum(svc.dual_coef_[j - 1, s] * values[s] for s in range(start[i], stop[i]))
                total += sum(svc.dual_coef_[i, s] * values[s] for s in range(start[j], stop[j]))
                scores.append(total)
        out.append(scores)
    return np.array(out)


@pytest.mark.parametrize("kind", [SVC, NuSVC])
def test_from_svc_binary(kind):
    x, labels = training_set(2)
    names = np.array(["no", "yes"])[labels]
    svc = kind(kernel=bow.Gram(bow.chi2())).fit(x, names)
    for of, label in (("classes", "yes"), ("pairs", ("yes", "no"))):
        svm = bow.from_svc(svc, histograms=x, of=of)
        assert svm.labels == (label,)
        close(bow.decision(svm, x)[:, 0], svc.decision_function(x))
    found = bow.word_relevance(svm, x)
    close(found.words.sum(1), svc.decision_function(x))


@pytest.mark.parametrize("way", ["gram", "callable", "precomputed"])
def test_from_svc_of_several_classes(way):
    x, labels = training_set(4)
    test = training_set(4, 17)[0] * 0.9
    kernel = bow.chi2_rbf(0.8)
    if way == "precomputed":
        svc = SVC(kernel="precomputed", decision_function_shape="ovo").fit(chi2_kernel(x, gamma=0.8), labels)
        decisions = svc.decision_function(chi2_kernel(test, x, gamma=0.8))
    else:
        function = bow.Gram(kernel) if way == "gram" else lambda a, b: chi2_kernel(a, b, gamma=0.8)
        svc = SVC(kernel=function, decision_function_shape="ovo").fit(x, labels)
        decisions = svc.decision_function(test)
    given = None if way == "gram" else kernel
    pairs = bow.from_svc(svc, given, x, of="pairs")
    assert pairs.labels == ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    close(bow.decision(pairs, test), decisions)
    close(decisions, loop_pairs(svc, lambda a, c: chi2_kernel(a[None], c[None], gamma=0.8)[0, 0], x, test))
    classes = bow.from_svc(svc, given, x)
    assert classes.labels == (0, 1, 2, 3)
    mean = np.zeros((17, 4))
    for column, (i, j) in enumerate(pairs.labels):
        mean[:, i] += decisions[:, column] / 3
        mean[:, j] -= decisions[:, column] / 3
    close(bow.decision(classes, test), mean)
    voted = np.asarray(bow.decision(classes, x)).argmax(1)
    assert (voted == labels).mean() > 0.9


def test_the_relevance_of_a_class_is_the_mean_of_its_pairs():
    x, labels = training_set(3)
    svc = SVC(kernel=bow.Gram(bow.intersection())).fit(x, labels)
    pairs, classes = bow.from_svc(svc, histograms=x, of="pairs"), bow.from_svc(svc, histograms=x)
    by_pair = [bow.word_relevance(pairs, x, c).words for c in range(3)]  # (0, 1), (0, 2), (1, 2)
    close(bow.word_relevance(classes, x, 1).words, (by_pair[2] - by_pair[0]) / 2)


@pytest.mark.parametrize("gamma", ["scale", "auto", 0.37])
def test_from_svc_with_kernels_of_scikit_learn(gamma):
    x, labels = training_set(3)
    svc = SVC(kernel="rbf", gamma=gamma, decision_function_shape="ovo").fit(x, labels)
    svm = bow.from_svc(svc, histograms=x if gamma == "scale" else None, of="pairs")
    close(bow.decision(svm, x), svc.decision_function(x))
    svc = SVC(kernel="linear", decision_function_shape="ovo").fit(x, labels)
    close(bow.decision(bow.from_svc(svc, of="pairs"), x), svc.decision_function(x))
    svc = SVC(kernel="poly", degree=3, gamma=1.0, coef0=1.0, decision_function_shape="ovo").fit(x, labels)
    cubic = bow.differentiable(lambda a, c: (1 + jnp.dot(a, c)) ** 3)
    close(bow.decision(bow.from_svc(svc, cubic, of="pairs"), x), svc.decision_function(x))


def test_from_svc_trained_on_sparse_histograms():
    from scipy.sparse import csr_matrix

    x, labels = training_set(3)
    svc = SVC(kernel="linear", decision_function_shape="ovo").fit(csr_matrix(x), labels)
    close(bow.decision(bow.from_svc(svc, of="pairs"), x), svc.decision_function(csr_matrix(x)))


@pytest.fixture(scope="module")
def trained():
    return demo.train(core_demo.load_digits())


def test_digits_are_recognised(trained):
    assert trained.svc_accuracy >= 0.95
    assert trained.accuracy >= 0.95


@pytest.mark.parametrize("whose", ["own", "rival"])
@pytest.mark.parametrize("count", [8, 16])
def test_removed_pixels(trained, whose, count):
    """Without positive pixels the score falls, without negative ones it rises, more than without random ones.

    For the class of each test digit and for its rival; a removed pixel gets its value in the mean digit. Of
    the pixels with the sign in question up to `count` are removed, and as many at random. Each difference of
    means is at least two of its standard errors above 0.
    """
    scores = demo.class_scores(trained.classes, trained.images)
    scores[np.arange(len(scores)), trained.labels] += np.inf if whose == "own" else -np.inf
    result = bow.decompose(trained.classes, trained.images, scores.argmax(1))
    changes = demo.removal(trained, result, count)

    def clearly_positive(values):
        return values.mean() > 2 * values.std() / math.sqrt(len(values))

    assert clearly_positive(-changes["positive"])
    assert clearly_positive(changes["instead of positive"] - changes["positive"])
    assert clearly_positive(changes["negative"])
    assert clearly_positive(changes["negative"] - changes["instead of negative"])


def test_demo_writes_its_picture(tmp_path, capsys):
    out = tmp_path / "bow.png"
    found = demo.bow_demo(out, epochs=1, images=2, words=20)
    assert out.read_bytes().startswith(b"\x89PNG")
    assert found["error"] < 1e-9
    assert found["positive"] < found["instead of positive"]
    assert found["instead of negative"] < found["negative"]
    printed = capsys.readouterr().out
    assert f"{found['svc_accuracy']:.1%} (votes of the SVC)" in printed
    assert "picture: " in printed
