"""The score as a JAX function: its value, its gradient, and its relevance through the transform."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrpjax
from lrpjax import bow, composites

close = functools.partial(helpers.close, tolerance=1e-10)


def two_bags(kernel, p=2.0):
    """A model of two bags and three outputs, whose support vectors are histograms of random images."""
    draw = np.random.default_rng(0)
    bags = [
        bow.Bag(draw.random((5, 9)), bow.Soft(2.0), (bow.Patches(3, 2),), p),
        bow.Bag(draw.random((4, 4)), bow.Rank(2), (bow.Patches(2, 2), bow.Patches(4, cells=2))),
    ]
    support = np.asarray(bow.histogram(bags, draw.random((12, 7, 8))))
    return bow.make_model(bags, bow.make_svm(kernel, support, draw.normal(size=(3, 12)), [0.1, 0.2, -0.3]))


def random_images(*shape):
    return jnp.asarray(np.random.default_rng(1).random(shape))


def test_score_is_the_chain_of_its_steps_and_differentiable():
    model, images = two_bags(bow.chi2_rbf(0.4), p=3.0), random_images(3, 7, 8)
    close(bow.score(model, images), bow.decision(model.svm, bow.histogram(model.bags, images, chunk=2)))
    model = bow.make_model(model.bags[0], bow.make_svm(bow.chi2(), model.svm.support[:, :5], [1.0] * 12, 0.0))
    direction = random_images(3, 7, 8) - 0.5
    f = jax.jit(lambda t: bow.score(model, images + t * direction, support_chunk=5).sum())
    close(jax.grad(f)(0.0), (f(1e-5) - f(-1e-5)) / 2e-5, tolerance=1e-6)


@pytest.mark.parametrize("kernel", [bow.chi2(), bow.intersection(), bow.chi2_rbf(2.0)])
@pytest.mark.parametrize("target", ["max", 1])
def test_relevance_of_the_score_equals_decompose(kernel, target):
    model, images = two_bags(kernel), random_images(4, 7, 8)
    explain = lrpjax.relevance(lambda images: bow.score(model, images), target=target)
    expected = bow.decompose(model, images, target)
    close(jax.jit(explain)(images), expected.pixels)
    if target == "max":
        close(explain(images), expected.pixels)


@pytest.mark.parametrize("kernel", [bow.chi2(), bow.chi2_rbf(2.0)])
def test_all_outputs_by_vmap_and_contrasts(kernel):
    model, images = two_bags(kernel), random_images(4, 7, 8)
    scores, pull = lrpjax.vjp(lambda images: bow.score(model, images), None, images)
    close(scores, bow.score(model, images))
    (every,) = jax.vmap(pull)(jnp.eye(3)[:, None] * scores)
    close(every, [bow.decompose(model, images, output).pixels for output in range(3)])
    contrast = jnp.array([1.0, 0.0, -1.0])
    close(pull(contrast * scores)[0], bow.decompose(model, images, contrast).pixels)


def test_relevance_of_inner_steps():
    """Relevance at descriptors of one's own: that of a local feature, shared equally by its components."""
    model, images = two_bags(bow.chi2()), random_images(4, 7, 8)
    brought = [bow.local_features(bag.patches, images) for bag in model.bags]

    def f(descriptors):
        features = [
            dataclasses.replace(own, descriptors=value)
            for own, value in zip(brought, descriptors, strict=True)
        ]
        return bow.score(model, features)

    found = lrpjax.relevance(f, target="max")([own.descriptors for own in brought])
    expected = bow.decompose(model, images).features
    close(jnp.concatenate([relevance.sum(2) for relevance in found], 1), expected)
    for relevance in found:
        close(relevance, relevance[..., :1] + jnp.zeros_like(relevance))


def test_features_that_are_not_valid_get_no_relevance():
    model, images = two_bags(bow.chi2()), random_images(2, 7, 8)
    bag = model.bags[0]
    alone = bow.make_model(bag, bow.make_svm(bow.chi2(), model.svm.support[:, :5], [1.0] * 12, 0.1))
    features = bow.local_features(bag.patches, images)
    valid = jnp.ones(features.descriptors.shape[:2], bool).at[0, 3:].set(False)
    features = dataclasses.replace(features, valid=valid)
    f = lambda descriptors: bow.score(alone, dataclasses.replace(features, descriptors=descriptors))
    found = lrpjax.relevance(f)(features.descriptors).sum(2)
    close(found, bow.decompose(alone, features).features)
    close(found[0, 3:], 0)


def test_colours_share_a_pixel_equally():
    bag = bow.Bag(np.random.default_rng(0).random((5, 12)), bow.Soft(2.0), (bow.Patches(2),))
    model = bow.make_model(bag, bow.make_svm(bow.chi2(), np.ones((1, 5)), [1.0], 0.1))
    images = random_images(2, 4, 5, 3)
    found = lrpjax.relevance(lambda images: bow.score(model, images))(images)
    close(found, jnp.broadcast_to(bow.decompose(model, images).pixels[..., None] / 3, images.shape))


def test_as_a_part_of_a_larger_function():
    """Before it a linear layer with the epsilon rule, after it a choice of outputs: nothing is lost."""
    model, codes = two_bags(bow.chi2()), random_images(4, 6)
    kernel = random_images(6, 7 * 8) / 6
    decode = lambda codes: (codes @ kernel).reshape(-1, 7, 8)
    f = lambda codes: bow.score(model, decode(codes))[:, :2] * 3
    found = jax.jit(lrpjax.relevance(f, composites.epsilon(1e-9), target=1))(codes)
    pixels = bow.decompose(model, decode(codes), 1).pixels.reshape(4, -1) * 3
    expected = codes * ((pixels / decode(codes).reshape(4, -1)) @ kernel.T)
    close(found, expected, tolerance=1e-6)
    close(found.sum(1), f(codes)[:, 1], tolerance=1e-6)


def test_a_score_of_zero_has_no_relevance():
    model, images = two_bags(bow.chi2()), random_images(2, 7, 8)
    nothing = bow.make_model(model.bags, bow.make_svm(bow.chi2(), model.svm.support, np.zeros(12), 0.0))
    close(lrpjax.relevance(lambda images: bow.score(nothing, images))(images), jnp.zeros_like(images))


def test_plan_names_the_steps():
    model = two_bags(bow.chi2())
    plan = lrpjax.plan(lambda images: bow.score(model, images), None, random_images(1, 7, 8))
    assert [unit.kind for unit in plan.units] == ["custom"] * 7
    for step in ("describe", "assign_words", "pool_words", "decide"):
        assert f"custom:{step}" in str(plan)
