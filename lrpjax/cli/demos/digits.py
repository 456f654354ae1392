"""What both demos share: handwritten digits, a small network that reads them, and methods that explain it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike, NDArray

from lrpjax import composites, transform

SIZE = 16
LOW, HIGH = 0.0, 1.0  # black and white: the bounds that the z^B-rule needs to know
BATCH = 64
EPOCHS = 30

# (class, rival): classes that share strokes, so that the difference has a place in the image.
PAIRS = ((3, 9), (4, 9), (7, 1), (8, 3), (5, 6), (9, 3), (6, 0), (2, 1), (1, 7), (0, 6))

SENSITIVITY = "sensitivity"  # |gradient|
METHODS = {
    "LRP-ε": composites.epsilon(),
    "LRP-z⁺ / flat": composites.epsilon_plus_flat(),
    "LRP-α2β1": composites.epsilon_alpha2_beta1(),
    "LRP-γ / box": composites.epsilon_gamma_box(LOW, HIGH),
    "Deep Taylor": composites.deep_taylor(LOW, HIGH),
    "gradient × input": composites.input_x_gradient(),
    SENSITIVITY: composites.gradient(),
}


class Digits(NamedTuple):
    """Images, float32 (N, 16, 16, 1) in [0, 1], and their classes, int32 (N,), to train and to test with.

    Example:
        >>> digits = load_digits()
        >>> digits.train_labels.shape, digits.test_labels[:3].dtype
        ((1347,), dtype('int32'))
    """

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int32]


class CNN(nn.Module):
    """Three convolutions with average pooling, then two dense layers: images to the logits of ten classes.

    Example:
        >>> x = jnp.zeros((2, SIZE, SIZE, 1), jnp.float32)
        >>> CNN().apply(jax.jit(CNN().init)(jax.random.key(0), x), x).shape
        (2, 10)
    """

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = _average_pool(x)
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = _average_pool(x)
        x = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def _average_pool(x):
    # What nn.avg_pool does, which refuses strict dtype promotion because it divides by a NumPy integer.
    return nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4


def load_digits() -> Digits:
    """The 1797 handwritten digits that ship with scikit-learn, a quarter of them for testing.

    The 8×8 images are enlarged to 16×16 (cubic), so that a picture of relevance has more to show. The split
    is stratified and always the same.

    Returns:
        `Digits`: 1347 images to train with and 450 to test with.

    Raises:
        ImportError: scikit-learn is not installed.

    Example:
        >>> from lrpjax import demo
        >>> digits = demo.load_digits()
        >>> digits.train_images.shape, digits.test_images.shape, digits.test_images.max().item()
        ((1347, 16, 16, 1), (450, 16, 16, 1), 1.0)
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise ImportError('the digits come with scikit-learn: pip install "lrpjax[demo]"') from error
    pixels, classes = datasets.load_digits(return_X_y=True)
    small = np.asarray(pixels, np.float32).reshape(-1, 8, 8) / np.float32(16)
    large = jax.image.resize(small, (len(small), SIZE, SIZE), "cubic")
    images = np.clip(np.asarray(large)[..., None], LOW, HIGH)
    labels = np.asarray(classes, np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(images)), test_size=450, random_state=0, stratify=labels
    )
    return Digits(images[train], labels[train], images[test], labels[test])


def train(
    digits: Digits,
    epochs: int = EPOCHS,
    seed: int = 0,
    on_epoch: Callable[[float], object] = lambda loss: None,
) -> Callable[[ArrayLike], Any]:
    """Trains `CNN` with Adam on the digits, each shifted by up to one pixel at random.

    Args:
        digits: from `load_digits`.
        epochs: passes over the training images.
        seed: of the initial weights, the order of the images and their shifts.
        on_epoch: called after each epoch with the loss of its last batch.

    Returns:
        The trained network: images (N, 16, 16, 1) to logits (N, 10).

    Raises:
        ValueError: epochs below 1, or a negative seed.

    Example:
        >>> from lrpjax import demo
        >>> digits = demo.load_digits()
        >>> logits = demo.train(digits, epochs=1)
        >>> logits(digits.test_images).shape
        (450, 10)
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1; it is {epochs}")
    if seed < 0:
        raise ValueError(f"seed must not be negative; it is {seed}")
    steps = len(digits.train_images) // BATCH
    variables = jax.jit(CNN().init)(jax.random.key(seed), digits.train_images[:1])
    state = _optimizer(steps, epochs).init(variables)
    random = np.random.default_rng(seed)
    # One call for each batch: on a CPU, XLA runs convolutions inside a loop of its own ten times slower.
    for _ in range(epochs):
        for images, labels in _batches(digits, steps, random):
            variables, state, loss = _step(variables, state, images, labels, steps, epochs)
        on_epoch(float(loss))
    return functools.partial(CNN().apply, variables)


def _optimizer(steps: int, epochs: int) -> optax.GradientTransformation:
    return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps, steps * epochs + 1))


@functools.partial(jax.jit, static_argnames=("steps", "epochs"))
def _step(variables, state, images, labels, steps: int, epochs: int):
    def loss(variables):
        logits: Any = CNN().apply(variables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = jax.value_and_grad(loss)(variables)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam does not run under strict promotion
        updates, state = _optimizer(steps, epochs).update(gradient, state, variables)
    return optax.apply_updates(variables, updates), state, value


def _batches(digits: Digits, steps: int, random: np.random.Generator) -> Iterator[tuple[NDArray, NDArray]]:
    padded = np.pad(digits.train_images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = np.lib.stride_tricks.sliding_window_view(padded[..., 0], (SIZE, SIZE), axis=(1, 2))
    order = random.permutation(len(padded))[: steps * BATCH].reshape(steps, BATCH)
    for chosen in order:
        down, right = random.integers(0, 3, (2, BATCH))
        yield shifted[chosen, down, right][..., None], digits.train_labels[chosen]


def choose(logits: NDArray, labels: NDArray, images: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Which test images to show: for each of the first `PAIRS`, a clear case that has something of the rival.

    That is the image of the class with the largest product of the two logits, among those that the network
    gets right with the rival as runner-up; if there are none, among those that it gets right; else among all.

    Args:
        logits: shape (N, 10).
        labels: shape (N,), the true classes.
        images: how many.

    Returns:
        Indices into the test images and rival classes, both int32 (images,).

    Example:
        >>> logits, labels = np.eye(10)[[3, 9]] + 0.5 * np.eye(10)[[9, 3]], np.array([3, 9])
        >>> print(*choose(logits, labels, images=1))
        [0] [9]
    """
    ranked = np.argsort(-logits, axis=1)
    chosen = []
    for own, rival in PAIRS[:images]:
        keys = (logits[:, own] * logits[:, rival], ranked[:, 1] == rival, ranked[:, 0] == own, labels == own)
        chosen.append(np.lexsort(keys)[-1])
    return np.array(chosen, np.int32), np.array([rival for _, rival in PAIRS[:images]], np.int32)


def explainers(logits: Callable) -> dict[str, Callable]:
    """Each of `METHODS` for a network, jitted: from (images, classes) to relevance, shaped as the images.

    Example:
        >>> digits = load_digits()
        >>> functions = explainers(train(digits, epochs=1))
        >>> functions['LRP-ε'](digits.test_images[:2], digits.test_labels[:2]).shape
        (2, 16, 16, 1)
    """

    def explainer(composite):
        def explain(x, classes):
            return transform.relevance(logits, composite, target=classes)(x)

        return explain

    functions = {name: explainer(composite) for name, composite in METHODS.items()}
    gradient = functions[SENSITIVITY]
    functions[SENSITIVITY] = lambda x, classes: jnp.abs(gradient(x, classes))
    return {name: jax.jit(function) for name, function in functions.items()}
