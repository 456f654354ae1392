"""Bad input of `lrpjax.bow`: every message is specific."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.metrics.pairwise import chi2_kernel
from sklearn.svm import SVC, SVR

from lrpjax import bow
from lrpjax import demo as core_demo
from lrpjax.bow import demo

INF, NAN = float("inf"), float("nan")


def machine(kernel, words=6):
    """A machine of three outputs."""
    draw = np.random.default_rng(0)
    return bow.make_svm(kernel, draw.random((7, words)), draw.normal(size=(3, 7)), np.zeros(3))


def two_bags():
    first = bow.Bag(np.random.default_rng(1).random((5, 9)), bow.Hard(), (bow.Patches(3, 2),))
    second = bow.Bag(np.random.default_rng(2).random((4, 4)), bow.Soft(3.0), (bow.Patches(4, cells=2),))
    return bow.make_model([first, second], machine(bow.intersection(), words=9))


def good_features(**changes):
    parts = {"descriptors": jnp.ones((2, 3, 4)), "supports": np.zeros((3, 1), np.int32), "shape": (2, 2)}
    return bow.LocalFeatures(**(parts | changes))


def own_model():
    bag = bow.Bag(jnp.ones((5, 4)), bow.Hard())
    return bow.make_model(bag, machine(bow.chi2(), words=5))


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: bow.Patches(0), ValueError, "size must be at least 1"),
        (lambda: bow.Patches(1, kind="gradient"), ValueError, "size must be at least 2"),
        (lambda: bow.Patches(4, stride=0), ValueError, "stride and bins at least 1"),
        (lambda: bow.Patches(4, cells=3), ValueError, "cells=3 does not divide size=4"),
        (lambda: bow.Patches(4, kind="sift"), ValueError, 'kind must be "raw" or "gradient"'),
        (
            lambda: bow.local_features(bow.Patches(5), jnp.ones((1, 4, 6))),
            ValueError,
            "size 5 do not fit into images of 4 x 6",
        ),
        (lambda: bow.local_features(bow.Patches(2), jnp.ones((4, 4))), ValueError, "images must have shape"),
        (lambda: bow.local_features(bow.Patches(2), jnp.ones((0, 4, 4))), ValueError, "images is empty"),
        (
            lambda: bow.local_features(bow.Patches(2), jnp.ones((1, 4, 4), int)),
            ValueError,
            "images must be floating, got int64",
        ),
        (
            lambda: bow.local_features(bow.Patches(2), jnp.full((1, 4, 4), NAN)),
            ValueError,
            "images has non-finite values",
        ),
        (
            lambda: bow.local_features([bow.Patches(2), bow.Patches(3)], jnp.ones((1, 4, 4))),
            ValueError,
            r"equally long, got lengths \[4, 9\]",
        ),
        (lambda: bow.supports_from_boxes([[0.5, 0, 1, 1]], (2, 2)), ValueError, "boxes must be integers"),
        (lambda: bow.supports_from_masks(np.ones((2, 2, 2))), ValueError, "masks must be boolean"),
        (
            lambda: bow.map_to_words(jnp.ones((1, 3)), jnp.ones((2, 4)), bow.Hard()),
            ValueError,
            "length 3 do not match words of length 4",
        ),
        (
            lambda: bow.map_to_words(jnp.ones((1, 3)), jnp.ones((2, 3)), bow.Rank(nearest=3)),
            ValueError,
            r"nearest=3 must be in 1 \.\. 2",
        ),
        (
            lambda: bow.map_to_words(jnp.ones((1, 3)), jnp.ones((2, 3)), bow.Soft(-1.0)),
            ValueError,
            "beta must be a finite number above 0",
        ),
        (
            lambda: bow.map_to_words(jnp.ones((1, 3)), jnp.ones((2, 3)), bow.Rank(1, base=1.0)),
            ValueError,
            "base must be above 1",
        ),
        (lambda: bow.pool(jnp.ones((1, 2, 3)), 0.9), ValueError, "p must be a number >= 1"),
        (lambda: bow.pool(jnp.ones((1, 2, 3)), NAN), ValueError, "p must be a number >= 1"),
        (lambda: bow.pool(-jnp.ones((1, 2, 3))), ValueError, "mapped has negative values"),
        (lambda: bow.pool(jnp.full((1, 2, 3), INF)), ValueError, "mapped has non-finite values"),
        (
            lambda: bow.feature_relevance(jnp.ones((1, 2, 3)), jnp.ones((1, 4))),
            ValueError,
            r"words of shape \(1, 4\) do not match mapped of shape \(1, 2, 3\)",
        ),
        (
            lambda: bow.vocabulary(np.ones((9, 2)), 3),
            ValueError,
            r"must be in 1 \.\. 1, the number of different",
        ),
        (lambda: bow.vocabulary(np.full((9, 2), NAN), 3), ValueError, "descriptors has non-finite"),
        (lambda: bow.rbf(0.0), ValueError, "gamma must be a finite number above 0"),
        (lambda: bow.chi2_rbf(INF), ValueError, "gamma must be a finite number above 0"),
        (
            lambda: bow.pixel_relevance(jnp.ones((1, 2)), np.array([[4], [0]]), (2, 2)),
            ValueError,
            r"supports point outside of images of shape \(2, 2\)",
        ),
        (
            lambda: bow.pixel_relevance(jnp.ones((1, 2)), np.array([[-1], [0]]), (2, 2)),
            ValueError,
            "empty support",
        ),
        (
            lambda: bow.pixel_relevance(jnp.ones((1, 2)), np.zeros((3, 1), int), (2, 2)),
            ValueError,
            r"supports of shape \(3, 1\) do not match features of shape \(1, 2\)",
        ),
        (
            lambda: bow.pixel_relevance(jnp.ones((1, 2)), np.zeros((2, 1)), (2, 2)),
            ValueError,
            "supports must be integers",
        ),
    ],
)
def test_bad_steps(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: bow.make_svm([], [[1.0]], [1.0], 0.0), "kernels must be a Kernel"),
        (lambda: bow.make_svm([min], [[1.0]], [1.0], 0.0), "kernels must be a Kernel"),
        (lambda: bow.from_svc(SVR()), "SVC or NuSVC is needed, got SVR"),
        (lambda: bow.make_model([], machine(bow.linear())), "bags must be a Bag"),
    ],
)
def test_bad_types(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("kernel", [bow.chi2(), bow.intersection(), bow.chi2_rbf(1.0)])
def test_negative_histograms(kernel):
    message = "negative values; the kernel is defined for histograms >= 0 only"
    with pytest.raises(ValueError, match=f"support has {message}"):
        bow.make_svm(kernel, [[1.0, -1.0]], [1.0], 0.0)
    svm = machine(kernel, words=2)
    for call in (bow.decision, bow.word_relevance, bow.find_roots):
        with pytest.raises(ValueError, match=f"x has {message}"):
            call(svm, np.array([[1.0, -1e-9]]))
    with pytest.raises(ValueError, match=message):
        SVC(kernel=bow.Gram(kernel)).fit(np.array([[1.0, -1.0], [0.0, 1.0]]), [0, 1])
    bow.decision(machine(bow.rbf(1.0), words=2), np.array([[1.0, -1.0]]))  # others take them
    partly = machine(bow.chi2(words=(0, 1)), words=2)
    bow.decision(partly, np.array([[1.0, -1.0]]))  # as does chi2 where it does not look


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: machine(bow.linear(words=(2, 9))), "a kernel sees the words 2:9, but support has 6"),
        (lambda: bow.make_svm(bow.linear(), [[NAN]], [1.0], 0.0), "support has non-finite"),
        (lambda: bow.make_svm(bow.linear(), [[1.0]], [INF], 0.0), "coefficients has non-finite"),
        (lambda: bow.make_svm(bow.linear(), [[1.0]], [1.0, 2.0], 0.0), "coefficients of shape"),
        (lambda: bow.make_svm(bow.linear(), [[1.0]], [[1.0], [2.0]], 0.0), "coefficients of shape"),
        (lambda: bow.make_svm(bow.linear(), [[1.0]], [1.0], 0.0, labels="ab"), "2 labels were given for 1"),
        (lambda: bow.decision(machine(bow.linear()), np.ones((2, 5))), "x has 5 words, 6 are needed"),
        (lambda: bow.decision(machine(bow.linear()), np.ones(6)), r"x must have shape \(N, D\)"),
        (lambda: bow.decision(machine(bow.linear()), np.full((1, 6), NAN)), "x has non-finite"),
        (lambda: bow.decision(machine(bow.linear()), np.ones((9, 6)), chunk=0), "chunk sizes must be"),
        (
            lambda: bow.decision(machine(bow.linear()), np.ones((9, 6)), support_chunk=0),
            "chunk sizes must be",
        ),
        (lambda: bow.word_relevance(machine(bow.linear()), np.ones((2, 6)), 3), r"is not in 0 \.\. 2"),
        (lambda: bow.word_relevance(machine(bow.linear()), np.ones((2, 6)), -1), r"is not in 0 \.\. 2"),
        (lambda: bow.word_relevance(machine(bow.linear()), np.ones((2, 6)), [0, 1, 2]), "2 integers"),
        (lambda: bow.word_relevance(machine(bow.linear()), np.ones((2, 6)), 0.5), "must be an integer"),
        (lambda: bow.word_relevance(machine(bow.linear()), np.ones((2, 6)), "min"), 'must be "max", int'),
        (
            lambda: bow.word_relevance(machine(bow.linear()), np.ones((2, 6)), [0.0, 1.0, NAN]),
            "target has non",
        ),
        (
            lambda: bow.word_relevance(machine(bow.linear()), np.ones((2, 6)), [0.0, 1.0]),
            r"weights of shape \(3,\)",
        ),
        (
            lambda: bow.word_relevance(machine(bow.rbf(1.0)), np.ones((2, 6)), root=np.ones((3, 6))),
            "3 root points were given for 2 histograms",
        ),
        (
            lambda: bow.word_relevance(machine(bow.chi2_rbf(1.0)), np.ones((2, 6)), root=-np.ones((2, 6))),
            "root has negative values",
        ),
        (
            lambda: bow.find_roots(machine(bow.rbf(1.0)), np.ones((2, 6)), candidates=np.ones((2, 4))),
            "candidates has 4 words, 6 are needed",
        ),
        (lambda: bow.decompose(two_bags(), np.full((1, 6, 7), NAN)), "images has non-finite"),
        (lambda: bow.decompose(two_bags(), np.ones((0, 6, 7))), "images is empty"),
        (lambda: bow.decompose(two_bags(), np.ones((6, 7))), "images must have shape"),
        (lambda: bow.decompose(two_bags(), np.ones((1, 3, 3))), "do not fit into images of 3 x 3"),
        (lambda: bow.decompose(two_bags(), good_features()), "2 LocalFeatures are needed"),
        (lambda: bow.decompose(own_model(), np.ones((1, 3, 3))), "without patches needs LocalFeatures"),
        (
            lambda: bow.decompose(own_model(), good_features(descriptors=jnp.ones((2, 3, 7)))),
            "length 7 do not match words of length 4",
        ),
        (
            lambda: bow.decompose(own_model(), good_features(supports=np.zeros((4, 1), int))),
            r"supports of shape \(4, 1\) do not match descriptors of shape \(2, 3, 4\)",
        ),
        (
            lambda: bow.decompose(own_model(), good_features(supports=np.full((3, 1), -1))),
            "empty support",
        ),
        (lambda: bow.decompose(own_model(), good_features(supports=np.full((3, 1), 4))), "point outside"),
        (
            lambda: bow.decompose(own_model(), good_features(descriptors=jnp.full((2, 3, 4), INF))),
            "descriptors has non-finite",
        ),
        (lambda: bow.decompose(own_model(), good_features(valid=jnp.ones((2, 4), bool))), "valid of shape"),
        (
            lambda: bow.decompose(own_model(), good_features(valid=jnp.zeros((2, 3), bool))),
            "an image has no valid local feature",
        ),
        (
            lambda: bow.make_model(bow.Bag(jnp.ones((4, 4)), bow.Hard()), machine(bow.chi2(), words=5)),
            "the bags have 4 words, the SVM 5",
        ),
        (
            lambda: bow.make_model(
                bow.Bag(jnp.ones((5, 4)), bow.Hard(), p=0.5), machine(bow.chi2(), words=5)
            ),
            "p must be a number >= 1",
        ),
        (
            lambda: bow.make_model(bow.Bag(jnp.ones((5, 4)), bow.Soft(0.0)), machine(bow.chi2(), words=5)),
            "beta must be a finite number above 0",
        ),
        (lambda: bow.histogram(bow.Bag(jnp.full((5, 4), NAN), bow.Hard()), good_features()), "non-finite"),
        (lambda: demo.bow_demo("unused.png", images=11), "images must be from 1 to 10"),
        (lambda: demo.bow_demo("unused.txt"), "its ending must be a picture's"),
        (lambda: demo.train(core_demo.load_digits(), seed=-1), "seed must not be negative"),
    ],
)
def test_bad_values(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bags_that_see_different_images():
    bag = bow.Bag(jnp.ones((3, 4)), bow.Hard())
    features = good_features(descriptors=jnp.ones((1, 3, 4)))
    with pytest.raises(ValueError, match=r"must see the same images, got \[1, 2\] images"):
        bow.histogram([bag, bag], [good_features(), features])
    with pytest.raises(ValueError, match=r"must see the same images, got \[2\] images of shapes"):
        bow.histogram([bag, bag], [good_features(), good_features(shape=(3, 3))])


def test_a_mapping_of_ones_own_with_negative_weights():
    class Negative:
        nearest = None

        def weights(self, squared_distances):
            return -squared_distances

    jax.tree_util.register_static(Negative)
    bag = bow.Bag(np.random.default_rng(0).random((3, 4)), Negative())
    with pytest.raises(ValueError, match="the mapping has negative values"):
        bow.make_model(bag, machine(bow.linear(), words=3))


def test_bad_svcs():
    x, labels = np.random.default_rng(0).random((60, 5)), np.arange(60) % 3
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        bow.from_svc(SVC(kernel="linear"))
    ours = SVC(kernel=bow.Gram(bow.chi2())).fit(x, labels)
    with pytest.raises(ValueError, match="keeps no support vectors: give histograms"):
        bow.from_svc(ours)
    with pytest.raises(ValueError, match=r"are not those of fit: \(60, D\) is needed"):
        bow.from_svc(ours, histograms=x[:50])
    with pytest.raises(ValueError, match='of must be "classes" or "pairs"'):
        bow.from_svc(ours, histograms=x, of="votes")
    theirs = SVC(kernel=chi2_kernel).fit(x, labels)
    with pytest.raises(ValueError, match="does not say what it computes: give kernels"):
        bow.from_svc(theirs, histograms=x)
    with pytest.raises(ValueError, match="not the one that the SVC was trained with"):
        bow.from_svc(theirs, bow.chi2(), x)
    with pytest.raises(ValueError, match="'precomputed' of the SVC does not say"):
        bow.from_svc(SVC(kernel="precomputed").fit(chi2_kernel(x), labels), histograms=x)
    with pytest.raises(ValueError, match='gamma="scale" depends on the training histograms'):
        bow.from_svc(SVC().fit(x, labels))


@pytest.mark.parametrize(
    "module,call",
    [
        ("sklearn", lambda: bow.vocabulary(np.arange(4.0)[:, None], 2)),
        ("sklearn", lambda: bow.from_svc(None)),
        ("sklearn", lambda: demo.train(None)),
        ("matplotlib", lambda: demo.bow_demo("unused.png")),
    ],
)
def test_missing_extras(monkeypatch, module, call):
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install ['\"]lrpjax\[(bow|viz|demo)\]['\"]"):
        call()
