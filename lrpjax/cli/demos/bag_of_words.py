"""`lrpjax demo --bow`: a bag-of-words SVM says why 3 and not 9, next to the network of `lrpjax demo`.

Both see the same digits, so that their heatmaps can be compared: Bach et al. (2015) explain the two kinds of
classifiers with one idea. `train` and `scores_without` also serve examples and tests.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax import viz
from lrpjax._progress import status
from lrpjax.bow.decompose import Bag, BowModel, decompose, histogram, make_model
from lrpjax.bow.features import Patches, Soft, local_features, vocabulary
from lrpjax.bow.kernels import Gram, chi2
from lrpjax.bow.score import score
from lrpjax.bow.svm import from_svc
from lrpjax.cli.demos import digits as handwritten

# Empty pixels around each digit, so that patches cover its border as often as its centre.
MARGIN = 4
INNER = (slice(None), slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
REMOVED = 16  # pixels, of the 256 of a digit
NETWORK_METHODS = ("LRP-ε", "LRP-z⁺ / flat", "LRP-α2β1")


class Trained(NamedTuple):
    """What `train` returns.

    Attributes:
        classes, pairs: the model with one output per class, and with one per pair of classes.
        images, labels: (N, 24, 24) float32 in [0, 1] and (N,), the test digits with an empty margin.
        mean: (24, 24) the mean training digit.
        svc_accuracy, accuracy: shares of test digits recognised by the votes of scikit-learn's SVC, and by
            the largest of the class outputs, which are what is explained.
    """

    classes: BowModel
    pairs: BowModel
    images: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    svc_accuracy: float
    accuracy: float


def with_margin(images) -> np.ndarray:
    """Images (N, 16, 16, 1) or heatmaps of that shape with an empty margin: (N, 24, 24).

    Example:
        >>> with_margin(np.ones((2, 16, 16, 1))).shape
        (2, 24, 24)
    """
    return np.pad(np.asarray(images)[..., 0], ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))


def train(digits: handwritten.Digits, words: int = 200, seed: int = 0) -> Trained:
    """Vocabulary (k-means), histograms (dense patches, soft mapping) and chi-squared SVM of the digits.

    Args:
        digits: from `lrpjax.demo.load_digits`.
        words: size of the vocabulary.
        seed: of k-means.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for fewer than one word, or more than different patches; a negative seed.

    Example:
        >>> trained = train(handwritten.load_digits(), words=20)
        >>> trained.images.shape, trained.accuracy > 0.5
        ((450, 24, 24), True)
    """
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError('the demo needs scikit-learn: pip install "lrpjax[demo]"') from error
    if seed < 0:
        raise ValueError(f"seed must not be negative; it is {seed}")
    images, test_images = with_margin(digits.train_images), with_margin(digits.test_images)
    patches = (Patches(8, cells=4),)
    # Neighbouring patches are alike: every fourth pixel gives the vocabulary enough to see.
    sparse = local_features(Patches(8, stride=4, cells=4), jnp.asarray(images)).descriptors
    bag = Bag(vocabulary(sparse, words, seed=seed, at_most=20_000), Soft(beta=8.0), patches)
    x, test_x = (np.asarray(histogram(bag, part, chunk=64)) for part in (images, test_images))
    kernel: Any = Gram(chi2())  # a type that scikit-learn takes, but does not tell type checkers
    svc = SVC(kernel=kernel, C=100).fit(x, digits.train_labels)
    classes = make_model(bag, from_svc(svc, histograms=x))
    pairs = make_model(bag, from_svc(svc, histograms=x, of="pairs"))
    largest = np.argmax(class_scores(classes, test_images), 1)
    return Trained(
        classes,
        pairs,
        test_images,
        digits.test_labels,
        images.mean(0),
        float(svc.score(test_x, digits.test_labels)),
        float(np.mean(np.asarray(classes.svm.labels)[largest] == digits.test_labels)),
    )


def class_scores(model: BowModel, images, chunk: int = 64) -> np.ndarray:
    """Scores (N, C) of images, `chunk` at a time.

    Example:
        >>> from lrpjax.bow import Hard, linear, make_svm
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> model = make_model(bag, make_svm(linear(), [[0.0, 1.0]], [1.0], 0.0))
        >>> class_scores(model, np.ones((3, 1, 1)), 2).tolist()
        [[1.0], [1.0], [1.0]]
    """
    parts = [score(model, images[start : start + chunk]) for start in range(0, len(images), chunk)]
    return np.concatenate(parts)


def inside(order) -> np.ndarray:
    """`order` (N, H, W) with the empty margin put last.

    Example:
        >>> inside(np.zeros((1, 9, 9)))[0, 4].tolist()
        [inf, inf, inf, inf, 0.0, inf, inf, inf, inf]
    """
    order = np.asarray(order)
    padded = np.full(order.shape, np.inf)
    padded[INNER] = order[INNER]
    return padded


def scores_without(model: BowModel, images, target, order, count, fill) -> np.ndarray:
    """Scores after removing pixels, i.e. giving them the value that `fill` has there.

    Args:
        model: the model.
        images: (N, H, W).
        target: (N, C) weights of the outputs that are looked at, as `decompose` returns them.
        order: (N, H, W); the pixels with the `count` smallest values are removed. So the relevance removes
            the most negative pixels first, minus the relevance the most positive ones.
        count: how many pixels to remove: a number, or (N,).
        fill: (H, W), e.g. the mean image.

    Returns:
        (N,).

    Example:
        >>> from lrpjax.bow import Hard, linear, make_svm
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> model = make_model(bag, make_svm(linear(), [[0.0, 1.0]], [1.0], 0.0))
        >>> order = np.array([[[1, 0]]])
        >>> scores_without(model, np.ones((1, 1, 2)), np.ones((1, 1)), order, 1, np.zeros((1, 2))).tolist()
        [0.5]
    """
    order = np.asarray(order).reshape(len(images), -1)
    rank = np.argsort(np.argsort(order, 1), 1).reshape(np.shape(images))
    left = np.where(rank < np.reshape(count, (-1, 1, 1)), fill, images)
    return (class_scores(model, left) * np.asarray(target)).sum(1)


def removal(trained: Trained, result, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What the scores of the test digits change by when up to `count` pixels get their value in the mean digit.

    Args:
        trained: what `train` returned.
        result: the decomposition of its test digits.
        count: pixels to remove of each sign, most relevant first; fewer where a digit has fewer.
        seed: of the random pixels.

    Returns:
        Arrays (N,): "positive" and "negative", and for each as many pixels "instead of" it at random.

    Example:
        >>> trained = train(handwritten.load_digits(), words=10)
        >>> changes = removal(trained, decompose(trained.classes, trained.images), 8)
        >>> bool(changes["positive"].mean() < changes["instead of positive"].mean())
        True
    """
    relevance, before = inside(result.pixels), np.asarray(result.score)
    chance = inside(np.random.default_rng(seed).random(relevance.shape))
    changes = {}
    for name, sign in (("positive", -1), ("negative", 1)):
        order = inside(sign * np.asarray(result.pixels))
        removed = np.minimum(count, (order < 0).sum((1, 2)))
        for label, pixels in ((name, order), (f"instead of {name}", chance)):
            arguments = (trained.images, result.target, pixels, removed, trained.mean)
            changes[label] = scores_without(trained.classes, *arguments) - before
    return changes


def heatmaps(trained: Trained, index, labels, rivals) -> dict[str, np.ndarray]:
    """Relevance of pixels (N, 24, 24) for the outputs `labels`, and for `labels` against `rivals`.

    Args:
        trained: what `train` returned.
        index: (N,) positions of test digits.
        labels, rivals: (N,) classes.
    """
    images, names = trained.images[index], trained.pairs.svm.labels
    # The machine of a pair (i, j) has i < j and is positive for i.
    pair = [names.index((min(a, b), max(a, b))) for a, b in zip(labels, rivals, strict=True)]
    weights = np.zeros((len(pair), len(names)))
    weights[np.arange(len(pair)), pair] = np.where(np.asarray(labels) < rivals, 1, -1)
    return {
        "BoW-SVM": np.asarray(decompose(trained.classes, images, labels).pixels),
        "BoW-SVM, pair": np.asarray(decompose(trained.pairs, images, weights).pixels),
    }


def bow_demo(
    out: Path, epochs: int = handwritten.EPOCHS, seed: int = 0, images: int = 4, words: int = 200
) -> dict[str, float]:
    """Trains both classifiers, explains, prints a table and writes the picture: `lrpjax demo --bow`.

    Args:
        out: the picture's path; its ending names the format.
        epochs: of the network's training.
        seed: of both trainings and of the pixels removed at random.
        images: how many digits to show, each for its own class and for a rival.
        words: size of the vocabulary.

    Returns:
        The figures printed: accuracies, largest conservation error, mean changes of the score.

    Raises:
        ValueError: a number out of range, or a format that matplotlib does not write.
        OSError: `out` cannot be written; found before the training starts.
        ImportError: scikit-learn or matplotlib is not installed.
    """
    from rich.console import Console

    if not 1 <= images <= len(handwritten.PAIRS):
        raise ValueError(f"images must be from 1 to {len(handwritten.PAIRS)}; it is {images}")
    viz.check_path(out)
    console = Console()
    digits = handwritten.load_digits()
    with status(console, "training the bag-of-words SVM"):
        start = time.perf_counter()
        trained = train(digits, words, seed)
        seconds = time.perf_counter() - start
    size = len(trained.classes.svm.support)
    console.print(f"{words} words, chi² SVM with {size} support vectors: trained in {seconds:.1f} s")
    accuracies = f"{trained.svc_accuracy:.1%} (votes of the SVC), {trained.accuracy:.1%} (class outputs)"
    console.print(f"test accuracy: {accuracies}")

    with status(console, "explaining"):
        start = time.perf_counter()
        result = jax.block_until_ready(decompose(trained.classes, trained.images))
        seconds = time.perf_counter() - start
        changes = removal(trained, result, REMOVED, seed)
    error = float(jnp.max(jnp.abs(result.score - result.pixels.sum((1, 2)))))
    console.print(f"{len(trained.images)} test digits explained in {seconds:.1f} s, compilation included")
    largest = float(jnp.max(jnp.abs(result.score)))
    console.print(f"largest |f(x) - sum of pixel relevance|: {error:.1e}, of scores up to {largest:.2f}")
    means = {name: float(change.mean()) for name, change in changes.items()}
    console.print(f"mean change of the score without up to {REMOVED} of 256 pixels:")
    for name, change in means.items():
        console.print(f"  {name} {change:+.3f}")

    with status(console, "training the network"):
        logits = handwritten.train(digits, epochs, seed)
        values = np.asarray(jax.jit(logits)(digits.test_images))
    console.print(f"test accuracy of the network: {np.mean(values.argmax(1) == digits.test_labels):.1%}")
    index, rivals = handwritten.choose(values, digits.test_labels, images)
    own = digits.test_labels[index]
    shown = np.repeat(index, 2)
    classes = np.stack([own, rivals], 1).reshape(-1)
    others = np.stack([rivals, own], 1).reshape(-1)
    maps = heatmaps(trained, shown, classes, others)
    functions = handwritten.explainers(logits)
    for name in NETWORK_METHODS:
        relevance = functions[name](digits.test_images[shown], classes)
        maps[f"CNN, {name}"] = with_margin(relevance)
    columns = [viz.heatmap(trained.images[shown][..., None], limit=1.0, symmetric=False, cmap="gray")]
    columns += [viz.heatmap(relevance[..., None]) for relevance in maps.values()]
    questions = ("why {}?", "why not {}?")
    viz.sheet(
        list(zip(*columns, strict=True)),
        [questions[i % 2].format(label) for i, label in enumerate(classes)],
        ["image", *(title.replace(", ", ",\n") for title in maps)],
        group=2,
        title="What speaks for a class, and what against it",
        footer="pair: the class against the other one of the two rows.",
        colorbar="relevance",
        limit="own",
        path=out,
    )
    console.print(f"picture: {out}", soft_wrap=True)
    return {"svc_accuracy": trained.svc_accuracy, "accuracy": trained.accuracy, "error": error, **means}
