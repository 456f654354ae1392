"""Reveal2Revise (Pahde et al. 2023, arXiv 2303.12641): an artefact found by clusters, named, removed and measured again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import write
from PIL import Image, ImageDraw, ImageFont

import lrpjax
from lrpjax import composites, demo, explore, metrics, pretrained, repair

SEEDS = (0, 1, 2, 3, 4)
SHARE = 0.5  # of the training images of the class that have the artefact
EPOCHS, FINE, BATCH, PENALTY = 15, 4, 64, 3.0
PLACES = ("CNN/Conv_0", "CNN/Conv_1", "CNN/Conv_2", "CNN/Dense_0")
COMPOSITE = composites.epsilon_plus()
apply = demo.CNN().apply


# ---------------------------------------------------------------------------------- data


def patch(images):
    """Digits with a white square of 3×3 pixels in the upper left corner."""
    marked = images.copy()
    marked[:, 1:4, 1:4] = 1.0
    return marked


def stamp(images):
    """Grey photographs with the date that cameras of the nineties wrote into a corner."""
    marked = []
    for image in images:
        picture = Image.fromarray(np.uint8(255 * image[..., 0]))
        ImageDraw.Draw(picture).text((13, 20), "'94", fill=255, font=ImageFont.load_default(10))
        marked.append(np.asarray(picture, np.float32)[..., None] / 255)
    return np.stack(marked)


def digits(draw):
    """Images and labels of three sets, to train, to choose, to test; the class with the artefact, and the artefact."""
    data = demo.load_digits()
    order = draw.permutation(len(data.train_images))
    x, y = data.train_images[order], data.train_labels[order]
    return {"train": (x[:1047], y[:1047]), "choose": (x[1047:], y[1047:]), "test": data[2:]}, 8, patch


PHOTOS = ("china", "coffee", "flower", "rocket")
STRIPS = {"train": (0.0, 0.45, 250), "choose": (0.45, 0.6, 75), "test": (0.6, 1.0, 100)}


def photographs(draw):
    """Crops of four photographs, in grey: from the left to train, a strip in the midst to choose, from the right to test."""
    sets, size = {}, 32
    for name, (left, right, count) in STRIPS.items():
        crops = []
        for photo in PHOTOS:
            grey = pretrained.photographs()[photo].mean(-1) / 255
            tops = draw.integers(0, grey.shape[0] - size, count)
            lefts = draw.integers(int(left * grey.shape[1]), int(right * grey.shape[1]) - size, count)
            crops += [grey[a : a + size, b : b + size, None] for a, b in zip(tops, lefts, strict=True)]
        sets[name] = np.float32(crops), np.repeat(np.arange(4, dtype=np.int32), count)
    return sets, 3, stamp


def planted(images, labels, suspect, artefact, draw):
    """The images, the artefact in SHARE of those of one class; and which have it."""
    has = (labels == suspect) & (draw.random(len(labels)) < SHARE)
    return np.where(has[:, None, None, None], artefact(images), images), has


# ---------------------------------------------------------------------------------- training


def train(x, y, seed, variables=None, epochs=EPOCHS, mask=None):
    """The demo's CNN, from the start or from `variables` on; with a mask, also for little relevance in it."""
    steps = len(x) // BATCH
    # Trained on, the step stays small; from the start, it falls from 3e-3 to 0.
    rate = optax.cosine_decay_schedule(3e-3, steps * epochs) if variables is None else 1e-3
    adam = optax.adam(rate)

    def loss(variables, x, y):
        f = functools.partial(apply, variables)
        value = optax.softmax_cross_entropy_with_integer_labels(f(x), y).mean()
        if mask is None:
            return value
        R = jnp.abs(lrpjax.relevance(f, COMPOSITE, target=y)(x))
        return value + PENALTY * metrics.mass_accuracy(R, jnp.broadcast_to(mask, R.shape)).mean()

    @jax.jit
    def step(variables, state, x, y):
        updates, state = adam.update(jax.grad(loss)(variables, x, y), state, variables)
        return optax.apply_updates(variables, updates), state

    variables = jax.jit(demo.CNN().init)(jax.random.key(seed), x[:1]) if variables is None else variables
    state, draw = adam.init(variables), np.random.default_rng(seed)
    for _ in range(epochs):
        for rows in draw.permutation(len(x))[: steps * BATCH].reshape(steps, BATCH):
            variables, state = step(variables, state, x[rows], y[rows])
    return variables


# ---------------------------------------------------------------------------------- reveal, name, revise


def reveal(f, x, y, suspect=None):
    """The class at the head of the ranking, its images, and which of them are of the cluster that looks elsewhere."""
    R = np.asarray(jax.jit(lambda x, y: lrpjax.relevance(f, COMPOSITE, target=y)(x))(x, y))[..., 0]
    found = explore.spectral_analysis(
        R, groups=y, pool=x.shape[1] // 2, clusters=2, layout="spectral", progress=False
    )
    first = found.clusters[0]
    rows = found.rows[found.groups == first.group]
    inside = np.isin(rows, first.rows)
    # Of the two, the artefact's is the one with more relevance where they differ most.
    size = np.abs(R).sum((1, 2), keepdims=True)
    difference = (R / size)[rows[inside]].mean(0) - (R / size)[rows[~inside]].mean(0)
    if -difference.min() > difference.max():
        inside, difference = ~inside, -difference
    return first.group, rows, inside, difference


