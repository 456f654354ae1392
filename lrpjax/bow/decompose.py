"""The score of a bag-of-words SVM, decomposed into words, local features and pixels (Bach et al. 2015).

    images -> local features l -> weights m_(d)(l) -> histogram x_(d) -> score f(x)
    pixels R^(1)_q <- features R^(2)_l             <- words R^(3)_d   <- f(x)

Every step is a function of its own: `word_relevance`, `mapping_relevance` / `feature_relevance`,
`pixel_relevance`; `decompose` does all of them. The formulas are those of Bach et al. 2015 (doi
10.1371/journal.pone.0130140), section on bag-of-words features; where one is our own the docstring says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from lrpjax.bow import _check
from lrpjax.bow.features import (
    LocalFeatures,
    Mapping,
    Patches,
    check_local_features,
    check_p,
    check_supports,
    local_features,
    map_to_words,
    pool,
    pooling_shares,
)
from lrpjax.bow.kernels import in_chunks
from lrpjax.bow.svm import SVM
from lrpjax.bow.words import expansion_points, explain_words, search_candidates, target_weights


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bag:
    """One kind of local feature with its words: from images to one histogram.

    Attributes:
        vocabulary: (D, F) the words' centres.
        mapping: `Hard()`, `Soft(beta)`, `Rank()`, or an object with the members of `Mapping`.
        patches: extractors; empty if descriptors of your own are brought as `LocalFeatures`.
        p: exponent of the pooling: 1 mean, inf maximum.

    Example:
        >>> from lrpjax.bow import Hard
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> histogram(bag, jnp.ones((1, 2, 2))).tolist()
        [[0.0, 1.0]]
    """

    vocabulary: Array
    mapping: Mapping
    patches: tuple[Patches, ...] = field(default=(), metadata={"static": True})
    p: float = field(default=1.0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BowModel:
    """One or several bags, whose histograms side by side are the SVM's input. Build it with `make_model`.

    Attributes:
        bags: in the order of their words in the histogram.
        svm: sees the words of all bags; `Kernel.words` gives each kernel its own.

    Example:
        >>> from lrpjax.bow import Hard, linear, make_svm
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> model = make_model(bag, make_svm(linear(), [[0.0, 1.0]], [1.0], 0.0))
        >>> len(model.bags), model.svm.support.shape
        (1, (1, 2))
    """

    bags: tuple[Bag, ...]
    svm: SVM


class Decomposition(NamedTuple):
    """What `decompose` returns for N images.

    Attributes:
        pixels: (N, H, W) R^(1).
        features: (N, L) R^(2), the local features of all bags one after the other.
        words: (N, D) R^(3), the words of all bags one after the other.
        score: (N,) f(x), the output (or combination) explained. score = sum R^(3) + remainder, sum R^(3) =
            sum R^(2) = sum R^(1).
        remainder, target, root, root_score: as in `WordRelevance`.
        histogram: (N, D) x.

    Example:
        >>> from lrpjax.bow import Hard, linear, make_svm
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> model = make_model(bag, make_svm(linear(), [[0.0, 1.0]], [1.0], 0.0))
        >>> result = decompose(model, jnp.ones((1, 2, 2)))
        >>> result.words.tolist(), result.features.tolist(), result.pixels.tolist()
        ([[0.0, 1.0]], [[0.25, 0.25, 0.25, 0.25]], [[[0.25, 0.25], [0.25, 0.25]]])
    """

    pixels: Array
    features: Array
    words: Array
    score: Array
    remainder: Array
    target: Array
    histogram: Array
    root: Array | None
    root_score: Array | None


def make_model(bags: Bag | Sequence[Bag], svm: SVM) -> BowModel:
    """A model from bags and the SVM that was trained on their histograms.

    Args:
        bags: one or several.
        svm: of as many words as the bags together.

    Returns:
        BowModel; the vocabularies are taken to the SVM's dtype.

    Raises:
        ValueError: if the numbers of words differ, a vocabulary is not finite, or p < 1.

    Example:
        >>> from lrpjax.bow import Hard, linear, make_svm
        >>> bag = Bag(jnp.eye(4), Hard(), (Patches(2),))
        >>> make_model(bag, make_svm(linear(), jnp.ones((1, 3)), [1.0], 0.0))
        Traceback (most recent call last):
        ...
        ValueError: the bags have 4 words, the SVM 3
    """
    bags = tuple(_checked(bag, svm.support.dtype) for bag in _as_bags(bags))
    words = sum(len(bag.vocabulary) for bag in bags)
    if words != svm.support.shape[1]:
        raise ValueError(f"the bags have {words} words, the SVM {svm.support.shape[1]}")
    return BowModel(bags, svm)


def _as_bags(bags: Bag | Sequence[Bag]) -> tuple[Bag, ...]:
    several = (bags,) if isinstance(bags, Bag) else tuple(bags)
    if not several or not all(isinstance(bag, Bag) for bag in several):
        raise TypeError(f"bags must be a Bag or a non-empty sequence of them, got {bags!r}")
    return several


def _checked(bag: Bag, dtype) -> Bag:
    """`bag` with its vocabulary taken to `dtype`; ValueError if a part of it is bad."""
    check_p(bag.p)
    vocabulary = jnp.asarray(bag.vocabulary, dtype)
    _check.dims("vocabulary", vocabulary, "(D, F)")
    _check.finite("vocabulary", vocabulary)
    # One descriptor shows what is wrong with a mapping; inside `jit` its values could not be seen.
    weights = map_to_words(vocabulary[:1], vocabulary, bag.mapping)
    _check.finite("the mapping", weights)
    _check.non_negative("the mapping", weights, "a local feature belongs to a word with a weight >= 0")
    patches = (bag.patches,) if isinstance(bag.patches, Patches) else tuple(bag.patches)
    return Bag(vocabulary, bag.mapping, patches, float(bag.p))


def bag_features(bag: Bag, images: Array | LocalFeatures) -> LocalFeatures:
    """Local features of a bag: extracted from images (N, H, W[, colours]), or those brought, as they are.

    Example:
        >>> from lrpjax.bow import Hard
        >>> bag_features(Bag(jnp.zeros((2, 4)), Hard(), (Patches(2),)), jnp.ones((1, 3, 3))).descriptors.shape
        (1, 4, 4)
    """
    if isinstance(images, LocalFeatures):
        return images
    if not bag.patches:
        raise ValueError("a bag without patches needs LocalFeatures, not images")
    return local_features(bag.patches, images)


def bag_weights(bag: Bag, features: LocalFeatures) -> Array:
    """The weights m_(d)(l) (N, L, D) of a bag's local features. See `map_to_words`.

    Example:
        >>> from lrpjax.bow import Hard
        >>> features = LocalFeatures(jnp.ones((1, 2, 1)), jnp.zeros((2, 1), jnp.int32), (1, 1))
        >>> bag_weights(Bag(jnp.array([[0.0], [1.0]]), Hard()), features).tolist()
        [[[0.0, 1.0], [0.0, 1.0]]]
    """
    return map_to_words(features.descriptors, bag.vocabulary, bag.mapping)


def histogram(bags: Bag | Sequence[Bag], images, *, chunk: int | None = None) -> Array:
    """Histograms x (N, D) of images, those of several bags side by side: the SVM's input.

    Args:
        bags: one or several.
        images: (N, H, W[, colours]) numbers, taken to the vocabularies' dtype, or `LocalFeatures`, one for
            each bag.
        chunk: images at once; None: all.

    Raises:
        ValueError: for images or features that do not fit; see `local_features`, `check_local_features`.

    Example:
        >>> from lrpjax.bow import Hard
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> histogram(bag, jnp.array([[[0.0, 1.0], [0.9, 0.8]]])).tolist()
        [[0.25, 0.75]]
    """
    bags = tuple(_checked(bag, jnp.asarray(bag.vocabulary).dtype) for bag in _as_bags(bags))
    sources = checked_sources(bags, images)
    return _histogram(bags, sources, _length(sources) if chunk is None else chunk)


def checked_sources(bags: Sequence[Bag], images) -> list[Any]:
    """What each bag starts from, checked: the same images for all, or local features of its own.

    Example:
        >>> from lrpjax.bow import Hard
        >>> bag = Bag(jnp.zeros((2, 4)), Hard(), (Patches(2),))
        >>> [source.shape for source in checked_sources([bag, bag], [[[0, 1], [2, 3]]])]
        [(1, 2, 2), (1, 2, 2)]
    """
    if isinstance(images, LocalFeatures):
        images = (images,)
    several = isinstance(images, tuple | list) and any(isinstance(item, LocalFeatures) for item in images)
    if not several:
        images = jnp.asarray(images, bags[0].vocabulary.dtype)
        _check.finite("images", images)
        return [images] * len(bags)
    if len(images) != len(bags) or not all(isinstance(item, LocalFeatures) for item in images):
        raise ValueError(f"{len(bags)} LocalFeatures are needed, one for each bag, or one array of images")
    for item in images:
        check_local_features(item)
    sizes, shapes = {len(item.descriptors) for item in images}, {tuple(item.shape) for item in images}
    if len(sizes) > 1 or len(shapes) > 1:
        raise ValueError(
            f"bags must see the same images, got {sorted(sizes)} images of shapes {sorted(shapes)}"
        )
    return [
        replace(
            item,
            descriptors=jnp.asarray(item.descriptors, bag.vocabulary.dtype),
            supports=jnp.asarray(item.supports),
        )
        for item, bag in zip(images, bags, strict=True)
    ]


def _length(sources: list[Any]) -> int:
    """How many images the sources hold."""
    return max(jax.tree.leaves(sources[0])[0].shape[0], 1)


def _by_image(sources: list[Any]) -> list[Any]:
    """The sources without supports that all images share: what may be cut into chunks of images."""
    shared = lambda source: isinstance(source, LocalFeatures) and source.supports.ndim == 2
    return [replace(source, supports=None) if shared(source) else source for source in sources]


def _features(bag: Bag, part, source) -> LocalFeatures:
    """Local features of a chunk `part` of `source`, with the supports that all images share put back."""
    if isinstance(part, LocalFeatures) and part.supports is None:
        part = replace(part, supports=source.supports)
    return bag_features(bag, part)


def _pooled(bags: Sequence[Bag], features: list[LocalFeatures], mapped: list[Array]) -> Array:
    """The histograms of all bags side by side."""
    pooled = [pool(m, bag.p, own.valid) for bag, own, m in zip(bags, features, mapped, strict=True)]
    return jnp.concatenate(pooled, 1)


@partial(jax.jit, static_argnums=2)
def _histogram(bags, sources, chunk):
    def block(parts):
        features = [_features(*each) for each in zip(bags, parts, sources, strict=True)]
        return _pooled(bags, features, [bag_weights(*each) for each in zip(bags, features, strict=True)])

    return in_chunks(block, chunk, _by_image(sources))


def mapping_relevance(mapped: Array, words: Array, p: float = 1.0, valid: Array | None = None) -> Array:
    """Relevance of every pair of local feature and word: R^(3)_d times the share of l in d.

    The shares are those of `pooling_shares`.

    Args:
        mapped: (N, L, D) the weights m_(d)(l).
        words: (N, D) R^(3), of the same dtype.
        p: exponent of the pooling.
        valid: (N, L) bool or None.

    Returns:
        (N, L, D), with the sum over l equal to `words`.

    Raises:
        ValueError: for p < 1 or shapes that do not match.

    Example:
        >>> mapping_relevance(jnp.array([[[1.0], [3.0]]]), jnp.array([[8.0]])).tolist()
        [[[2.0], [6.0]]]
    """
    if mapped.ndim != 3 or words.shape != (mapped.shape[0], mapped.shape[2]):
        raise ValueError(
            f"words of shape {words.shape} do not match mapped of shape {mapped.shape}, (N, L, D)"
        )
    return pooling_shares(mapped, p, valid) * words[:, None]


def feature_relevance(mapped: Array, words: Array, p: float = 1.0, valid: Array | None = None) -> Array:
    """Relevance of local features (Bach et al. 2015, local feature scores for sum and p-means pooling).

    R^(2)_l = sum_(d not in Z(x)) R^(3)_d m_(d)(l)^p / sum_l' m_(d)(l')^p + sum_(d in Z(x)) R^(3)_d / M.

    Args:
        mapped, words, p, valid: as for `mapping_relevance`.

    Returns:
        (N, L).

    Raises:
        ValueError: for p < 1 or shapes that do not match.

    Example:
        >>> weights = jnp.array([[[1.0, 0.0], [3.0, 0.0]]])  # no feature supports the second word
        >>> feature_relevance(weights, jnp.array([[8.0, 1.0]])).tolist()
        [[2.5, 6.5]]
    """
    return mapping_relevance(mapped, words, p, valid).sum(2)


def pixel_relevance(features: Array, supports, shape: tuple[int, int]) -> Array:
    """Relevance of pixels: each local feature's is shared equally over its support (Bach et al. 2015).

    R^(1)_q = sum over the features l with q in area(l) of R^(2)_l / |area(l)|.

    Args:
        features: (N, L) R^(2).
        supports: (L, A) or (N, L, A) integers, the pixels of each feature; see `LocalFeatures`.
        shape: (H, W).

    Returns:
        (N, H, W). Pixels in no support get 0.

    Raises:
        ValueError: if supports do not match, point outside of the image or are empty (of a feature with
            relevance).

    Example:
        >>> pixel_relevance(jnp.array([[4.0, 1.0]]), jnp.array([[0, 1], [1, -1]]), (1, 3)).tolist()
        [[[2.0, 3.0, 0.0]]]
    """
    _check.dims("features", features, "(N, L)")
    _check.finite("features", features)
    if supports.shape[:-1] not in (features.shape, features.shape[1:]):
        raise ValueError(
            f"supports of shape {supports.shape} do not match features of shape {features.shape}: "
            f"({features.shape[1]}, A) or ({features.shape[0]}, {features.shape[1]}, A) is needed"
        )
    check_supports(supports, shape, features != 0)
    return share_over_supports(features, supports, shape)


@partial(jax.jit, static_argnums=2)
def share_over_supports(features: Array, supports, shape: tuple[int, int]) -> Array:
    """`pixel_relevance` without checks.

    Example:
        >>> share_over_supports(jnp.array([[4.0]]), jnp.array([[0, 1]]), (1, 3)).tolist()
        [[[2.0, 2.0, 0.0]]]
    """
    supports = jnp.asarray(supports)
    inside = supports >= 0
    area = jnp.maximum(jnp.sum(inside, -1, dtype=features.dtype), 1)
    share = jnp.broadcast_to((features / area)[..., None], (*features.shape, supports.shape[-1]))
    # Fill-up positions go behind the last pixel, where scatter drops them.
    positions = jnp.where(inside, supports, shape[0] * shape[1])
    image = jnp.zeros((len(features), shape[0] * shape[1]), features.dtype)
    if supports.ndim == 2:
        image = image.at[:, positions].add(share, mode="drop")
    else:
        image = image.at[jnp.arange(len(features))[:, None, None], positions].add(share, mode="drop")
    return image.reshape(-1, *shape)


def decompose(
    model: BowModel,
    images,
    target: ArrayLike | str = "max",
    *,
    root: ArrayLike | None = None,
    candidates: ArrayLike | None = None,
    chunk: int = 64,
    support_chunk: int = 64,
) -> Decomposition:
    """Decompose the score of images into words, local features and pixels, in one call.

    Args:
        model: the model.
        images: (N, H, W[, colours]) numbers, taken to the model's dtype, or `LocalFeatures`, one for each
            bag.
        target: "max": the largest output of each image; an integer or (N,) integers: that output; floating
            weights (C,) or (N, C): that combination of outputs.
        root, candidates: for kernels that need a Taylor expansion; see `word_relevance`.
        chunk: images at once, in every step.
        support_chunk: support vectors at once.

    Returns:
        Decomposition.

    Raises:
        ValueError: for bad images, features, supports, targets or points; each message says what was wrong.

    Example:
        >>> from lrpjax.bow import Hard, intersection, make_svm
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> model = make_model(bag, make_svm(intersection(), [[0.0, 0.5]], [2.0], -0.5))
        >>> result = decompose(model, jnp.array([[[0.0, 1.0], [0.9, 0.8]]]))
        >>> result.score.tolist(), result.words.tolist()
        ([0.5], [[-0.25, 0.75]])
        >>> result.pixels.tolist()
        [[[-0.25, 0.25], [0.25, 0.25]]]
    """
    sources = checked_sources(model.bags, images)
    n = _length(sources)
    weights = target_weights(model.svm, target, n)
    root, candidates = expansion_points(model.svm, n, root, candidates)
    return _decompose(model, sources, (weights, root), candidates, chunk, support_chunk)


@partial(jax.jit, static_argnums=(4, 5))
def _decompose(model, sources, rows, candidates, chunk, support_chunk) -> Decomposition:
    bags, svm = model.bags, model.svm
    candidates = search_candidates(svm, rows[1], candidates, chunk, support_chunk)

    def block(chunk_rows):
        parts, target, root = chunk_rows
        features = [_features(*each) for each in zip(bags, parts, sources, strict=True)]
        mapped = [bag_weights(*each) for each in zip(bags, features, strict=True)]
        x = _pooled(bags, features, mapped)
        explained = explain_words(svm, x, target, root, candidates, support_chunk)
        pixels, relevance, start = jnp.zeros((), x.dtype), [], 0
        for bag, own, weights in zip(bags, features, mapped, strict=True):
            words = explained.words[:, start : start + weights.shape[2]]
            start += weights.shape[2]
            relevance.append(feature_relevance(weights, words, bag.p, own.valid))
            pixels = pixels + share_over_supports(relevance[-1], own.supports, own.shape)
        return Decomposition(
            pixels=pixels, features=jnp.concatenate(relevance, 1), histogram=x, **explained._asdict()
        )

    return in_chunks(block, chunk, (_by_image(sources), *rows))
