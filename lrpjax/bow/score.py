"""The score as one JAX function of the images, whose steps carry their relevance rules.

`lrpjax.relevance(lambda images: score(model, images), target="max")(images)` equals
`decompose(model, images).pixels`, and the function can be a part of a larger one, whose other parts the transform
explains by the rules of its composite.
"""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import Array

from lrpjax.bow.decompose import BowModel, checked_sources, mapping_relevance, share_over_supports
from lrpjax.bow.features import LocalFeatures, Patches, local_features, map_to_words, pool
from lrpjax.bow.svm import SVM, outputs
from lrpjax.bow.words import explain_words, search_candidates
from lrpjax.custom import custom_relevance


def score(model: BowModel, images, *, support_chunk: int = 64) -> Array:
    """Scores (N, C) of images: `histogram`, then the SVM's outputs (see `decision`).

    Under `lrpjax.relevance` each step has its rule of `decompose`; a pixel's relevance is shared equally by its
    colours, a local feature's by the components of its descriptor. Relevance R of several outputs at once explains
    their combination sum_c (R_c / f_c) f_c.

    Args:
        model: the model.
        images: as for `histogram`.
        support_chunk: support vectors at once.

    Example:
        >>> import lrpjax
        >>> from lrpjax.bow import Bag, Hard, linear, make_model, make_svm
        >>> bag = Bag(jnp.array([[0.0], [1.0]]), Hard(), (Patches(1),))
        >>> model = make_model(bag, make_svm(linear(), [[0.0, 1.0]], [2.0], -1.0))
        >>> images = jnp.array([[[0.0, 1.0], [0.9, 0.8]]])
        >>> score(model, images).tolist()
        [[0.5]]
        >>> lrpjax.relevance(lambda images: score(model, images))(images).tolist()
        [[[-0.5, 0.333...], [0.333..., 0.333...]]]
    """
    return _score(model, checked_sources(model.bags, images), support_chunk)


@partial(jax.jit, static_argnums=2)
def _score(model, sources, support_chunk):
    pooled = []
    for bag, source in zip(model.bags, sources, strict=True):
        if isinstance(source, LocalFeatures):
            descriptors, valid = source.descriptors, source.valid
        else:
            descriptors, valid = _described(bag.patches)(source), None
        mapped = assign_words(descriptors, bag.vocabulary, bag.mapping)
        pooled.append(_pooled(bag.p)(mapped, valid))
    return _decided(support_chunk)(model.svm, jnp.concatenate(pooled, 1))


# A step is made once for each value of its static arguments, and gets arrays only: its rule must not capture them.


@cache
def _described(patches: tuple[Patches, ...]) -> custom_relevance:
    """Images to descriptors; relevance goes to the pixels of each support."""

    @custom_relevance
    def describe(images):
        return local_features(patches, images).descriptors

    def backward(images, relevance):
        supports = local_features(patches, images).supports
        pixels = share_over_supports(relevance.sum(2), supports, images.shape[1:3])
        if images.ndim == 4:
            pixels = jnp.broadcast_to(pixels[..., None] / images.shape[3], images.shape)
        return (pixels,)

    describe.defrelevance(lambda images: (describe.f(images), images), backward)
    return describe


@custom_relevance
def assign_words(descriptors, vocabulary, mapping):
    """Descriptors to weights of words (`map_to_words`); relevance goes to all components alike.

    Example:
        >>> from lrpjax.bow import Hard
        >>> assign_words(jnp.array([[[0.9]]]), jnp.array([[0.0], [1.0]]), Hard()).tolist()
        [[[0.0, 1.0]]]
    """
    return map_to_words(descriptors, vocabulary, mapping)


def _assign_backward(arguments, relevance):
    descriptors, *constants = arguments
    shared = jnp.broadcast_to(relevance.sum(2, keepdims=True) / descriptors.shape[2], descriptors.shape)
    return (shared, *jax.tree.map(jnp.zeros_like, constants))


assign_words.defrelevance(lambda *arguments: (assign_words.f(*arguments), arguments), _assign_backward)


@cache
def _pooled(p: float) -> custom_relevance:
    """Weights to the histogram; relevance goes to the weights by `mapping_relevance`."""

    @custom_relevance
    def pool_words(mapped, valid):
        return pool(mapped, p, valid)

    def backward(arguments, relevance):
        mapped, valid = arguments
        return mapping_relevance(mapped, relevance, p, valid), jax.tree.map(jnp.zeros_like, valid)

    pool_words.defrelevance(lambda *arguments: (pool_words.f(*arguments), arguments), backward)
    return pool_words


@cache
def _decided(support_chunk: int) -> custom_relevance:
    """Histogram to scores; relevance goes to the words as `word_relevance` does."""

    @custom_relevance
    def decide(svm, x):
        return outputs(svm, x, support_chunk)

    def backward(residuals, relevance):
        svm, x, scores = residuals
        weights = jnp.where(scores == 0, 0, relevance / jnp.where(scores == 0, 1, scores))
        candidates = search_candidates(svm, None, svm.support, len(x), support_chunk)
        words = explain_words(svm, x, weights, None, candidates, support_chunk).words
        return jax.tree.map(jnp.zeros_like, svm), words

    def forward(svm: SVM, x):
        scores = decide.f(svm, x)
        return scores, (svm, x, scores)

    decide.defrelevance(forward, backward)
    return decide
