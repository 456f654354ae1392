"""A bag-of-words SVM on the handwritten digits of scikit-learn, explained down to the pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lrpjax.bow.decompose import Bag, BowModel, decompose, histogram, make_model, score
from lrpjax.bow.features import Patches, Soft, local_features, vocabulary
from lrpjax.bow.kernels import Gram, chi2
from lrpjax.bow.svm import from_svc

# Empty pixels around each digit, so that patches cover its border as often as its centre.
MARGIN = 2


class Trained(NamedTuple):
    """What `train` returns.

    Attributes:
        classes, pairs: the model with one output per class, and with one per pair of classes.
        images, labels: (N, 12, 12) float32 in [0, 1] and (N,), the test digits with an empty margin.
        mean: (12, 12) the mean training digit.
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


def train(words: int = 200, seed: int = 0) -> Trained:
    """Vocabulary (k-means), histograms (dense 4 x 4 patches, soft mapping) and chi-squared SVM of the digits.

    Args:
        words: size of the vocabulary.
        seed: of the split into training and test digits (3 : 1) and of k-means.

    Raises:
        ImportError: without scikit-learn.

    Example:
        >>> trained = train(words=20)
        >>> trained.images.shape, trained.accuracy > 0.5
        ((450, 12, 12), True)
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn: pip install 'lrpjax[demo]'") from error
    digits, labels = load_digits(return_X_y=True)
    digits = np.asarray(digits, np.float32).reshape(-1, 8, 8) / 16
    digits = np.pad(digits, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    parts = train_test_split(digits, labels, test_size=0.25, random_state=seed, stratify=labels)
    images, test_images, labels, test_labels = (np.asarray(part) for part in parts)
    patches = (Patches(4),)
    descriptors = local_features(patches, jnp.asarray(images)).descriptors
    bag = Bag(vocabulary(descriptors, words, seed=seed, at_most=20_000), Soft(beta=8.0), patches)
    x, test_x = (np.asarray(histogram(bag, part, chunk=128)) for part in (images, test_images))
    kernel: Any = Gram(
        chi2()
    )  # scikit-learn takes a callable, which its default value hides from type checkers
    svc = SVC(kernel=kernel, C=100).fit(x, labels)
    classes = make_model(bag, from_svc(svc, histograms=x))
    pairs = make_model(bag, from_svc(svc, histograms=x, of="pairs"))
    largest = np.argmax(score(classes, test_images), 1)
    return Trained(
        classes,
        pairs,
        test_images,
        test_labels,
        images.mean(0),
        float(svc.score(test_x, test_labels)),
        float(np.mean(np.asarray(classes.svm.labels)[largest] == test_labels)),
    )


def inside(order) -> np.ndarray:
    """`order` (N, H, W) with the empty margin put last.

    Example:
        >>> inside(np.zeros((1, 5, 5)))[0, 2].tolist()
        [inf, inf, 0.0, inf, inf]
    """
    order = np.asarray(order)
    inner = slice(MARGIN, -MARGIN)
    padded = np.full(order.shape, np.inf)
    padded[:, inner, inner] = order[:, inner, inner]
    return padded


def scores_without(model: BowModel, images, target, order, count, fill) -> np.ndarray:
    """Scores of one output per image after removing pixels, i.e. giving them the value that `fill` has there.

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
    scores = np.asarray(score(model, left))
    return (scores * np.asarray(target)).sum(1)


def examples(trained: Trained, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first recognised test digit of each class, for `count` classes: positions, and their rival classes.

    The rival is the class with the second largest output.
    """
    scores = np.asarray(score(trained.classes, trained.images))
    ranked = np.argsort(-scores, 1)
    recognised = ranked[:, 0] == trained.labels
    chosen = np.array([np.flatnonzero(recognised & (trained.labels == label))[0] for label in range(count)])
    return chosen, ranked[chosen, 1]


def heatmaps(trained: Trained, chosen: np.ndarray, rivals: np.ndarray) -> dict[str, np.ndarray]:
    """Relevance of pixels (N, 12, 12): for the digit's class, for its rival, and one against the other."""
    images, labels = trained.images[chosen], trained.labels[chosen]
    own = decompose(trained.classes, images, labels).pixels
    rival = decompose(trained.classes, images, rivals).pixels
    # The machine of a pair (i, j) has i < j and is positive for i.
    pairs = trained.pairs.svm.labels
    position = np.array([pairs.index((min(a, b), max(a, b))) for a, b in zip(labels, rivals, strict=True)])
    sign = np.where(labels < rivals, 1, -1)[:, None, None]
    against = np.asarray(decompose(trained.pairs, images, position).pixels) * sign
    return {
        "BoW-SVM:\nown class": np.asarray(own),
        "BoW-SVM:\nrival class": np.asarray(rival),
        "BoW-SVM:\nown, not rival": against,
    }


def draw(path: Path, images: np.ndarray, rows: Sequence[str], maps: dict[str, np.ndarray]) -> None:
    """Write a picture: one row per image, the image first, then its heatmaps in red (for) and blue (against).

    A black line on each heatmap shows where the image crosses half of its range.

    Args:
        path: of the picture; its suffix names the format.
        images: (N, H, W).
        rows: N labels.
        maps: title to (N, H, W); the colours of each panel span its own symmetric range.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'lrpjax[viz]'") from error
    columns = len(maps) + 1
    figure = Figure(figsize=(1.35 * columns + 0.3, 1.3 * len(images) + 0.9), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(images), columns))
    for panel in axes.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
    shown: Any = None
    for row, (image, label) in enumerate(zip(images, rows, strict=True)):
        axes[row, 0].imshow(image, cmap="gray_r")
        axes[row, 0].set_ylabel(label, fontsize=9)
        for panel, relevance in zip(axes[row, 1:], maps.values(), strict=True):
            limit = np.abs(relevance[row]).max() or 1.0
            shown = panel.imshow(relevance[row] / limit, cmap="seismic", vmin=-1, vmax=1)
            if image.min() < image.max():
                middle = (image.min() + image.max()) / 2
                panel.contour(image, levels=[middle], colors="black", linewidths=0.7)
    for panel, title in zip(axes[0], ["test digit", *maps], strict=True):
        panel.set_title(title, fontsize=9)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.5, aspect=30, ticks=[-1, 0, 1])
    bar.set_ticklabels(["against", "0", "for"])
    figure.savefig(path, dpi=150)


def bow_demo(
    out: str | Path = "lrpjax-demo",
    *,
    count: int = 10,
    words: int = 200,
    seed: int = 0,
    others: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, np.ndarray]] | None = None,
    echo: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train, explain and draw; print accuracy, conservation, and what removing pixels does to the score.

    Args:
        out: folder for `bow.png`, made if it is missing.
        count: digits drawn, one per class from 0 on.
        words: size of the vocabulary.
        seed: see `train`.
        others: further heatmaps to draw next to these, e.g. a network's: a function from the digits (N, 8, 8)
            in [0, 1], their labels (N,) and their rivals (N,) to titles and arrays (N, 8, 8).
        echo: what to print with.

    Returns:
        The figures printed, and the path of the picture.
    """
    if not 1 <= count <= 10:
        raise ValueError(f"count must be in 1 .. 10, the number of classes, got {count}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    trained = train(words, seed)
    trained_in = time.perf_counter() - start
    size = len(trained.classes.svm.support)
    echo(f"bag of {words} words, chi2 SVM with {size} support vectors: trained in {trained_in:.1f} s")
    accuracies = f"{trained.svc_accuracy:.1%} (votes of the SVC), {trained.accuracy:.1%} (class outputs)"
    echo(f"test accuracy: {accuracies}")

    start = time.perf_counter()
    result = decompose(trained.classes, trained.images)
    result.pixels.block_until_ready()
    explained_in = time.perf_counter() - start
    error = float(jnp.max(jnp.abs(result.score - result.pixels.sum((1, 2)))))
    echo(f"{len(trained.images)} test digits explained in {explained_in:.1f} s (compilation included)")
    top = float(result.score.max())
    echo(f"largest |f(x) - sum of pixel relevance|: {error:.1e}, of scores up to {top:.2f}")

    relevance = inside(result.pixels)
    orders = {
        "positive": inside(-result.pixels),
        "negative": relevance,
        "random": inside(np.random.default_rng(seed).random(relevance.shape)),
    }
    removal = {}
    for name, order in orders.items():
        wanted = {"positive": relevance > 0, "negative": relevance < 0}.get(name, relevance < np.inf)
        removed = np.minimum(6, wanted.sum((1, 2)))
        left = scores_without(trained.classes, trained.images, result.target, order, removed, trained.mean)
        removal[name] = float(left.mean() - result.score.mean())
    changes = ", ".join(f"{name} {change:+.3f}" for name, change in removal.items())
    echo(f"mean change of the score without up to 6 pixels (set to the mean digit): {changes}")

    chosen, rivals = examples(trained, count)
    images, labels = trained.images[chosen], trained.labels[chosen]
    maps = heatmaps(trained, chosen, rivals)
    if others is not None:
        inner = slice(MARGIN, -MARGIN)
        margins = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
        further = others(images[:, inner, inner], labels, rivals)
        maps |= {title: np.pad(relevance, margins) for title, relevance in further.items()}
    path = out / "bow.png"
    rows = [f"{label} (rival {rival})" for label, rival in zip(labels, rivals, strict=True)]
    draw(path, images, rows, maps)
    echo(f"heatmaps: {path}")
    return {
        "svc_accuracy": trained.svc_accuracy,
        "accuracy": trained.accuracy,
        "conservation_error": error,
        "removal": removal,
        "picture": path,
    }


def run(args) -> None:
    """Entry of `lrpjax demo --bow`: `args.out` is the folder to write to."""
    bow_demo(args.out)
