"""Bag-of-words decomposition against loops over the formulas of Bach et al. 2015, to 1e-10 in float64."""

import functools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics.pairwise import additive_chi2_kernel, chi2_kernel

from lrpjax import bow

close = functools.partial(helpers.close, tolerance=1e-10)

INF = float("inf")


def rng(seed=0):
    return np.random.default_rng(seed)


def histograms(count, words, seed=0, zeros=0.3):
    """Random histograms, with entries that are exactly 0."""
    draw = rng(seed)
    return draw.random((count, words)) * (draw.random((count, words)) > zeros)


# Kernels by loops, with their derivatives in c for the Taylor expansion.


def loop_linear(a, c):
    return [x * y for x, y in zip(a, c, strict=True)]


def loop_intersection(a, c):
    return [min(x, y) for x, y in zip(a, c, strict=True)]


def loop_chi2(a, c):
    return [2 * x * y / (x + y) if x + y else 0.0 for x, y in zip(a, c, strict=True)]


def loop_rbf(gamma):
    def value(a, c):
        return math.exp(-gamma * sum((x - y) ** 2 for x, y in zip(a, c, strict=True)))

    def slope(a, c):
        return [2 * gamma * (x - y) * value(a, c) for x, y in zip(a, c, strict=True)]

    return value, slope


def loop_chi2_rbf(gamma):
    def value(a, c):
        return math.exp(
            -gamma * sum((x - y) ** 2 / (x + y) if x + y else 0 for x, y in zip(a, c, strict=True))
        )

    def slope(a, c):
        # d/dy (x - y)^2 / (x + y) = 1 - 4 x^2 / (x + y)^2
        return [
            -gamma * (1 - (4 * x * x / (x + y) ** 2 if x + y else 0)) * value(a, c)
            for x, y in zip(a, c, strict=True)
        ]

    return value, slope


SUMMED = {
    "linear": (bow.linear, loop_linear),
    "intersection": (bow.intersection, loop_intersection),
    "chi2": (bow.chi2, loop_chi2),
}
SMOOTH = {
    "rbf": (bow.rbf(0.7), loop_rbf(0.7)),
    "chi2_rbf": (bow.chi2_rbf(0.4), loop_chi2_rbf(0.4)),
    "user": (
        bow.differentiable(lambda a, c, power: (1 + jnp.dot(a, c)) ** power, 3),
        (
            lambda a, c: (1 + sum(loop_linear(a, c))) ** 3,
            lambda a, c: [3 * (1 + sum(loop_linear(a, c))) ** 2 * x for x in a],
        ),
    ),
}


# --- Mapping and pooling


def loop_mapping(kind, descriptor, vocabulary, nearest, parameter):
    distances = [sum((x - y) ** 2 for x, y in zip(descriptor, word, strict=True)) for word in vocabulary]
    order = sorted(range(len(distances)), key=lambda d: distances[d])
    weights = [0.0] * len(distances)
    chosen = order[: nearest or len(order)]
    for rank, d in enumerate(chosen, 1):
        if kind == "hard":
            weights[d] = 1.0
        elif kind == "rank":
            weights[d] = parameter**-rank
        else:
            weights[d] = math.exp(-parameter * distances[d])
    if kind == "soft":
        weights = [w / sum(weights) for w in weights]
    return weights


@pytest.mark.parametrize(
    "mapping,kind,nearest,parameter",
    [
        (bow.Hard(), "hard", 1, None),
        (bow.Soft(2.5), "soft", None, 2.5),
        (bow.Soft(0.3, nearest=3), "soft", 3, 0.3),
        (bow.Rank(), "rank", 8, 2.4),
        (bow.Rank(nearest=2, base=1.5), "rank", 2, 1.5),
    ],
)
def test_mapping(mapping, kind, nearest, parameter):
    descriptors, words = rng(1).random((2, 5, 3)), rng(2).random((9, 3))
    found = bow.map_to_words(jnp.asarray(descriptors), jnp.asarray(words), mapping)
    expected = [[loop_mapping(kind, l, words, nearest, parameter) for l in row] for row in descriptors]
    close(found, expected)


def loop_pool(weights, p, used):
    rows = [row for row, use in zip(weights, used, strict=True) if use]
    if p == INF:
        return [max(column) for column in zip(*rows, strict=True)]
    return [(sum(m**p for m in column) / len(rows)) ** (1 / p) for column in zip(*rows, strict=True)]


WEIGHTS = rng(3).random((3, 6, 4)) * (rng(4).random((3, 6, 4)) > 0.4)
WEIGHTS[:, :, 2] = 0  # a word in Z(x)
WEIGHTS[0, 1:3, 0] = 2.0  # a tie at the maximum
VALID = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1]], bool)


@pytest.mark.parametrize("p", [1, 1.5, 2, 7.0, INF])
@pytest.mark.parametrize("valid", [None, VALID])
def test_pooling(p, valid):
    used = np.ones((3, 6), bool) if valid is None else valid
    found = bow.pool(jnp.asarray(WEIGHTS), p, valid)
    close(found, [loop_pool(w, p, u) for w, u in zip(WEIGHTS, used, strict=True)])


def test_pooling_limits():
    weights = jnp.asarray([[[1e-200, 3.0], [2e-200, 0.0]]])
    close(bow.pool(weights, 1), [[1.5e-200, 1.5]])
    close(bow.pool(weights, 1e6)[:, 1], [3.0], tolerance=1e-5)
    assert bow.pool(weights, 400.0)[0, 0] > 1.9e-200  # powers of 1e-200 alone would be 0
    assert np.isfinite(np.asarray(jax.grad(lambda w: bow.pool(w, 3.0).sum())(jnp.zeros((1, 2, 2))))).all()


def loop_features(weights, words, p, used):
    """R^(2)_l from R^(3)_d of one image, by the paper's formulas."""
    count = sum(used)
    relevance = [0.0] * len(weights)
    for d, total in enumerate(words):
        column = [row[d] if use else 0.0 for row, use in zip(weights, used, strict=True)]
        for l, m in enumerate(column):
            if not any(column):
                relevance[l] += total / count if used[l] else 0.0
            elif p == INF:
                winners = [x == max(column) for x in column]
                relevance[l] += total * winners[l] / sum(winners)
            else:
                relevance[l] += total * m**p / sum(x**p for x in column)
    return relevance


@pytest.mark.parametrize("p", [1, 1.5, 2, 7.0, INF])
@pytest.mark.parametrize("valid", [None, VALID])
def test_feature_relevance(p, valid):
    used = np.ones((3, 6), bool) if valid is None else valid
    words = rng(5).normal(size=(3, 4))
    found = bow.feature_relevance(jnp.asarray(WEIGHTS), jnp.asarray(words), p, valid)
    close(found, [loop_features(*each, p, u) for *each, u in zip(WEIGHTS, words, used, strict=True)])
    close(found.sum(1), words.sum(1))
    by_word = bow.mapping_relevance(jnp.asarray(WEIGHTS), jnp.asarray(words), p, valid)
    close(by_word.sum(1), words)


def test_words_without_support_are_shared_equally():
    weights = jnp.zeros((1, 4, 2)).at[0, 1, 0].set(0.5)
    close(bow.feature_relevance(weights, jnp.array([[3.0, 8.0]])), [[2.0, 5.0, 2.0, 2.0]])


# --- Pixels


def loop_pixels(features, supports, shape):
    image = np.zeros(shape)
    for relevance, support in zip(features, supports, strict=True):
        area = [q for q in support if q >= 0]
        for q in area:
            image[q // shape[1], q % shape[1]] += relevance / len(area)
    return image


def test_pixel_relevance():
    supports = np.array([[0, 1, 5], [5, -1, -1], [-1, 11, 0], [3, 2, -1]])
    features = rng().normal(size=(2, 4))
    found = bow.pixel_relevance(jnp.asarray(features), supports, (3, 4))
    close(found, [loop_pixels(f, supports, (3, 4)) for f in features])
    close(found.sum((1, 2)), features.sum(1))
    own = np.stack([supports, supports[::-1]])
    found = bow.pixel_relevance(jnp.asarray(features), own, (3, 4))
    close(found, [loop_pixels(f, s, (3, 4)) for f, s in zip(features, own, strict=True)])


# --- Kernels and machines


@pytest.mark.parametrize("name", [*SUMMED, *SMOOTH])
@pytest.mark.parametrize("chunk", [2, 100])
def test_kernel_values(name, chunk):
    a, c = histograms(5, 4), histograms(3, 4, 1)
    a[0], c[0] = 0, 0  # chi2 has 0/0 in every word
    if name in SUMMED:
        kernel, loop = SUMMED[name][0](), lambda *rows: sum(SUMMED[name][1](*rows))
    else:
        kernel, (loop, _) = SMOOTH[name]
    found = bow.gram(kernel, jnp.asarray(a), jnp.asarray(c), chunk=chunk)
    close(found, [[loop(row_a, row_c) for row_a in a] for row_c in c])


def test_chi2_kernels_against_scikit_learn():
    a, c = histograms(5, 4), histograms(3, 4, 1)
    close(bow.gram(bow.chi2_rbf(0.3), jnp.asarray(a), jnp.asarray(c)), chi2_kernel(c, a, gamma=0.3))
    masses = (c.sum(1)[:, None] + a.sum(1)[None]) / 2
    close(bow.gram(bow.chi2(), jnp.asarray(a), jnp.asarray(c)), masses + additive_chi2_kernel(c, a) / 2)


def machine(kernels, words=6, support=7, outputs=3, seed=0):
    draw = rng(seed)
    coefficients, bias = draw.normal(size=(outputs, support)), draw.normal(size=outputs)
    return bow.make_svm(kernels, histograms(support, words, seed + 1), coefficients, bias)


@pytest.mark.parametrize("chunk,support_chunk", [(64, 256), (2, 3), (1, 1), (5, 7)])
def test_decision_with_several_kernels_and_words_of_their_own(chunk, support_chunk):
    kernels = [bow.intersection(words=(0, 4), weight=0.5), bow.chi2_rbf(0.4, words=(2, 6), weight=2.0)]
    svm, x = machine(kernels), histograms(5, 6, 9)
    expected = np.zeros((5, 3))
    for n in range(5):
        for c in range(3):
            expected[n, c] = svm.bias[c]
            for i, row in enumerate(np.asarray(svm.support)):
                value = 0.5 * sum(loop_intersection(row[:4], x[n, :4]))
                value += 2.0 * loop_chi2_rbf(0.4)[0](row[2:], x[n, 2:])
                expected[n, c] += svm.coefficients[c, i] * value
    close(bow.decision(svm, x, chunk=chunk, support_chunk=support_chunk), expected)


# --- Words


@pytest.mark.parametrize("name", SUMMED)
@pytest.mark.parametrize("chunk,support_chunk", [(64, 256), (2, 3)])
def test_words_of_sum_decomposable_kernels(name, chunk, support_chunk):
    make, loop = SUMMED[name]
    svm, x = machine(make(weight=1.5)), histograms(5, 6, 9)
    target = np.array([0, 2, 1, 1, 0])
    found = bow.word_relevance(svm, x, target, chunk=chunk, support_chunk=support_chunk)
    expected = np.zeros((5, 6))
    for n, c in enumerate(target):
        for d in range(6):
            expected[n, d] = svm.bias[c] / 6
            for i, row in enumerate(np.asarray(svm.support)):
                expected[n, d] += svm.coefficients[c, i] * 1.5 * loop(row, x[n])[d]
    close(found.words, expected)
    close(found.score, np.take_along_axis(np.asarray(bow.decision(svm, x)), target[:, None], 1)[:, 0])
    close(found.remainder, np.zeros(5))
    close(found.words.sum(1), found.score)
    assert found.root is None and found.root_score is None


def test_words_of_a_kernel_of_ones_own():
    hellinger = bow.sum_decomposable(lambda a, c, power: (a * c) ** power, 0.5, nonnegative=True)
    svm, x = machine(hellinger, outputs=1), histograms(4, 6, 9)
    found = bow.word_relevance(svm, x)
    a, support = np.asarray(svm.coefficients)[0], np.asarray(svm.support)
    close(
        found.words, [[svm.bias[0] / 6 + a @ np.sqrt(support[:, d] * row[d]) for d in range(6)] for row in x]
    )


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("chunk,support_chunk", [(64, 256), (2, 3)])
def test_words_by_taylor_expansion_at_given_points(name, chunk, support_chunk):
    kernel, (value, slope) = SMOOTH[name]
    svm, x, root = machine(kernel), histograms(5, 6, 9), histograms(5, 6, 10)
    x[0, 0] = root[0, 0] = 0
    target = np.array([0, 2, 1, 1, 0])
    found = bow.word_relevance(svm, x, target, root=root, chunk=chunk, support_chunk=support_chunk)
    support = np.asarray(svm.support)
    for n, c in enumerate(target):
        gradient = np.zeros(6)
        score = root_score = float(svm.bias[c])
        for i, row in enumerate(support):
            gradient += svm.coefficients[c, i] * np.array(slope(row, root[n]))
            score += float(svm.coefficients[c, i]) * value(row, x[n])
            root_score += float(svm.coefficients[c, i]) * value(row, root[n])
        close(found.words[n], (x[n] - root[n]) * gradient)
        close(found.score[n], score)
        close(found.root_score[n], root_score)
        close(found.remainder[n], score - sum((x[n] - root[n]) * gradient))


@pytest.mark.parametrize(
    "name,chunk,support_chunk", [("rbf", 3, 2), ("chi2_rbf", 3, 2), ("chi2_rbf", 64, 256), ("user", 64, 256)]
)
def test_root_search(name, chunk, support_chunk):
    svm, x = machine(SMOOTH[name][0], support=30, outputs=2), histograms(20, 6, 9)
    svm = svm_with_bias(svm, -np.median(np.asarray(bow.decision(svm, np.asarray(svm.support))), 0))
    points, scores = bow.find_roots(svm, x, chunk=chunk, support_chunk=support_chunk)
    close(scores, np.zeros(20), tolerance=1e-11)
    found = bow.word_relevance(svm, x, chunk=chunk, support_chunk=support_chunk)
    close(found.root, points)
    close(found.root_score, scores)
    # On the line to the nearest support vector whose score has the other sign.
    support = np.asarray(svm.support)
    sides = np.sign(np.asarray(bow.decision(svm, support)))
    for n, c in enumerate(np.asarray(found.target).argmax(1)):
        other = np.flatnonzero(sides[:, c] == -np.sign(found.score[n]))
        end = support[other[np.argmin(((support[other] - x[n]) ** 2).sum(1))]]
        t = (points[n] - x[n]) @ (end - x[n]) / ((end - x[n]) @ (end - x[n]))
        assert 0 < t < 1
        close(points[n], x[n] + t * (end - x[n]))


def svm_with_bias(svm, bias):
    return bow.make_svm(svm.kernels, svm.support, svm.coefficients, np.asarray(svm.bias) + bias)


def test_root_search_where_there_is_none():
    svm = svm_with_bias(machine(bow.rbf(0.7), outputs=1), 100.0)
    x = histograms(3, 6, 9)
    found = bow.word_relevance(svm, x)
    scores = np.asarray(bow.decision(svm, svm.support))[:, 0]
    close(found.root, np.broadcast_to(svm.support[scores.argmin()], x.shape))
    close(found.root_score, np.full(3, scores.min()))
    assert (found.root_score > 90).all()  # which says that it is no root


def test_the_expansion_of_a_point_that_is_a_root_is_zero():
    svm, x = machine(bow.rbf(0.7), outputs=1, support=30), histograms(8, 6, 9)
    svm = svm_with_bias(svm, -np.median(np.asarray(bow.decision(svm, svm.support))))
    roots, _ = bow.find_roots(svm, x)
    close(bow.word_relevance(svm, roots).words, np.zeros((8, 6)), tolerance=1e-6)


def test_taylor_remainder_falls_with_the_square_of_the_distance():
    svm = machine(bow.chi2_rbf(0.4), outputs=1)
    root = 0.5 + histograms(1, 6, 9)
    step = rng().normal(size=(1, 6))
    left = []
    for size in (1e-2, 1e-3):
        found = bow.word_relevance(svm, root + size * step, root=root)
        left.append(abs(found.remainder[0] - found.root_score[0]))
    assert 80 < left[0] / left[1] < 120


def test_linear_kernel_by_taylor_equals_its_sum_where_the_root_is_the_origin():
    """k(a, c) = a . c is both: at x0 = 0, where f is 0 without bias, the formulas agree."""
    as_vector = bow.differentiable(jnp.dot)
    summed, smooth = machine(bow.linear(), outputs=1), machine(as_vector, outputs=1)
    summed, smooth = (svm_with_bias(svm, -np.asarray(svm.bias)) for svm in (summed, smooth))
    x = histograms(4, 6, 9)
    expanded = bow.word_relevance(smooth, x, root=np.zeros((4, 6)))
    close(expanded.words, bow.word_relevance(summed, x).words)
    close(expanded.remainder, np.zeros(4))


def test_both_kinds_of_kernels():
    """Differentiable kernels expanded at x0, the others by their exact difference to x0."""
    _, slope = loop_rbf(0.7)
    kernels = [bow.chi2(weight=0.5, words=(0, 3)), bow.rbf(0.7, weight=2.0, words=(1, 6))]
    svm, x, root = machine(kernels, outputs=1), histograms(4, 6, 9), histograms(4, 6, 10)
    found = bow.word_relevance(svm, x, root=root)
    support, a = np.asarray(svm.support), np.asarray(svm.coefficients)[0]
    for n in range(4):
        expected = np.zeros(6)
        for i, row in enumerate(support):
            difference = np.subtract(loop_chi2(row[:3], x[n, :3]), loop_chi2(row[:3], root[n, :3]))
            expected[:3] += a[i] * 0.5 * difference
            expected[1:] += a[i] * 2.0 * (x[n] - root[n])[1:] * np.array(slope(row[1:], root[n, 1:]))
        close(found.words[n], expected)
    searched = bow.word_relevance(svm_with_bias(svm, -np.median(bow.decision(svm, svm.support))), x)
    close(searched.root_score, np.zeros(4), tolerance=1e-11)


@pytest.mark.parametrize("name", ["intersection", "chi2_rbf"])
def test_combinations_of_outputs(name):
    """A combination of outputs is explained as the machine with the combined coefficients and bias is."""
    svm, x = machine(SUMMED[name][0]() if name in SUMMED else SMOOTH[name][0]), histograms(4, 6, 9)
    weights = np.array([1.0, 0.0, -1.0])
    combined = bow.make_svm(svm.kernels, svm.support, weights @ svm.coefficients, weights @ svm.bias)
    found, expected = bow.word_relevance(svm, x, weights), bow.word_relevance(combined, x)
    close(found.words, expected.words)
    close(found.score, expected.score)
    close(found.target, np.broadcast_to(weights, (4, 3)))
    own = rng(4).normal(size=(4, 3))
    rows = [bow.word_relevance(svm, x[n : n + 1], own[n]).words[0] for n in range(4)]
    close(bow.word_relevance(svm, x, own).words, rows)
    if name in SUMMED:  # these are linear in the machine
        close(found.words, bow.word_relevance(svm, x, 0).words - bow.word_relevance(svm, x, 2).words)


# --- All steps


def two_bags(p=2.0):
    first = bow.Bag(rng(1).random((5, 9)), bow.Rank(nearest=2), (bow.Patches(3, 2),), p)
    second = bow.Bag(
        rng(2).random((4, 4)), bow.Soft(3.0), (bow.Patches(2, 3, cells=2), bow.Patches(4, cells=2)), 1.0
    )
    kernels = [bow.intersection(words=(0, 5)), bow.chi2(words=(5, 9), weight=0.7)]
    return bow.make_model([first, second], machine(kernels, words=9))


def small_model(kernel, p=1.0):
    bag = bow.Bag(rng(1).random((4, 4)), bow.Soft(2.0), (bow.Patches(2, 2),), p)
    return bow.make_model(bag, machine(kernel, words=4))


@pytest.mark.parametrize("p,chunk,support_chunk", [(1.0, 64, 256), (3.0, 2, 3), (INF, 2, 3)])
def test_decompose_against_loops_and_conservation(p, chunk, support_chunk):
    model, images = two_bags(p), rng(7).random((5, 6, 7))
    found = bow.decompose(model, images, chunk=chunk, support_chunk=support_chunk)
    svm = model.svm
    scores = np.asarray(bow.decision(svm, found.histogram))
    assert (np.asarray(found.target).argmax(1) == scores.argmax(1)).all()
    for n in range(5):
        x, mapped, supports = [], [], []
        for bag, kind, nearest, parameter in zip(
            model.bags, ["rank", "soft"], [2, None], [2.4, 3.0], strict=True
        ):
            local = bow.local_features(bag.patches, jnp.asarray(images[n : n + 1]))
            words = np.asarray(bag.vocabulary)
            rows = [
                loop_mapping(kind, l, words, nearest, parameter) for l in np.asarray(local.descriptors[0])
            ]
            x += loop_pool(rows, bag.p, [True] * len(rows))
            mapped.append(rows)
            supports.append(np.asarray(local.supports))
        close(found.histogram[n], x)
        c = scores[n].argmax()
        words = np.full(9, float(svm.bias[c]) / 9)
        for i, row in enumerate(np.asarray(svm.support)):
            words[:5] += svm.coefficients[c, i] * np.array(loop_intersection(row[:5], x[:5]))
            words[5:] += svm.coefficients[c, i] * 0.7 * np.array(loop_chi2(row[5:], x[5:]))
        close(found.words[n], words)
        features = loop_features(mapped[0], words[:5], p, [True] * len(mapped[0]))
        pixels = loop_pixels(features, supports[0], (6, 7))
        second = loop_features(mapped[1], words[5:], 1.0, [True] * len(mapped[1]))
        pixels += loop_pixels(second, supports[1], (6, 7))
        close(found.features[n], features + second)
        close(found.pixels[n], pixels)
    for relevance in (found.words, found.features, found.pixels):
        close(relevance.reshape(5, -1).sum(1) + found.remainder, found.score)
    close(found.remainder, np.zeros(5))
    close(found.score, scores.max(1))


def test_decompose_with_a_taylor_expansion_conserves_up_to_the_remainder():
    model = small_model(bow.chi2_rbf(0.4))
    found = bow.decompose(model, rng(7).random((5, 6, 7)), 1, chunk=2)
    for relevance in (found.words, found.features, found.pixels):
        close(relevance.reshape(5, -1).sum(1) + found.remainder, found.score)
    steps = bow.word_relevance(model.svm, found.histogram, 1)
    close(found.words, steps.words)
    close(found.root, steps.root)


def test_descriptors_of_ones_own():
    """One's own descriptors and supports give what the built-in extraction gives; also if images differ."""
    model, images = two_bags(), rng(7).random((4, 6, 7))
    expected = bow.decompose(model, images, chunk=3)
    brought = [bow.local_features(bag.patches, jnp.asarray(images)) for bag in model.bags]
    found = bow.decompose(model, brought, chunk=3)
    close(found.pixels, expected.pixels)
    own = [
        bow.LocalFeatures(f.descriptors, np.broadcast_to(f.supports, (4, *f.supports.shape)), (6, 7))
        for f in brought
    ]
    close(bow.decompose(model, tuple(own), chunk=3).pixels, expected.pixels)
    close(bow.histogram(model.bags, own), expected.histogram)


def test_images_with_different_numbers_of_features():
    """Filled-up rows change nothing: an image has the same relevance alone and next to a longer one."""
    bag = bow.Bag(rng(1).random((5, 3)), bow.Hard(), p=2.0)
    model = bow.make_model(bag, machine(bow.intersection(), words=5))
    draw = rng(3)
    descriptors, supports = draw.random((2, 6, 3)), draw.integers(0, 20, (2, 6, 4))
    alone = bow.LocalFeatures(jnp.asarray(descriptors[1:, :4]), supports[1:, :4], (4, 5))
    valid = np.array([[True] * 6, [True] * 4 + [False] * 2])
    supports[1, 4:] = -1
    together = bow.LocalFeatures(jnp.asarray(descriptors), supports, (4, 5), jnp.asarray(valid))
    one, both = bow.decompose(model, alone), bow.decompose(model, together, chunk=1)
    close(both.pixels[1], one.pixels[0])
    close(both.features[1], [*np.asarray(one.features[0]), 0, 0])
    close(both.pixels.sum((1, 2)), both.score)


def test_float32_stays_float32_and_integers_are_taken():
    full, images = small_model(bow.chi2()), rng(7).random((3, 6, 7))
    model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), full)
    found = bow.decompose(model, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    close(found.pixels, bow.decompose(full, images).pixels, tolerance=1e-4)
    ones = np.ones((3, 6, 7))
    close(bow.decompose(full, ones.astype(np.uint8)).pixels, bow.decompose(full, ones).pixels)


def test_under_jit_and_vmap():
    model, images = small_model(bow.chi2()), jnp.asarray(rng(7).random((3, 6, 7)))
    expected = bow.decompose(model, images, 0)
    close(jax.jit(bow.decompose)(model, images, 0).pixels, expected.pixels)
    all_outputs = jax.vmap(lambda target: bow.decompose(model, images, target).pixels)(jnp.arange(3))
    close(all_outputs.sum((2, 3)), bow.score(model, images).T)
    support = model.svm.support
    widths = jnp.array([0.1, 0.5])
    grams = jax.vmap(lambda gamma: bow.gram(bow.rbf(gamma), support, support))(widths)
    close(grams[1], bow.gram(bow.rbf(0.5), support, support))


@pytest.mark.parametrize("kernel", [bow.chi2(), bow.chi2_rbf(0.4)])
def test_memory_is_bounded_by_the_chunks(kernel):
    """Four times the histograms and support vectors: the temporary memory grows by copies of these alone."""
    from lrpjax.bow.words import _word_relevance

    def temporary(n, support, words=40):
        svm = machine(kernel, words=words, support=support, outputs=1)
        rows = (jnp.asarray(histograms(n, words)), None, None)
        compiled = _word_relevance.lower(svm, rows, svm.support, 8, 16).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary(64, 128), temporary(256, 512)
    inputs = (256 + 512) * 40 * 8
    assert large < small + 6 * inputs
    assert large < 256 * 512 * 40 * 8 / 10  # a tenth of all pairs at once
