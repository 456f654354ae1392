"""Output relevances that set a class against others, or one input against another: callables for `target=`.

    lrpjax.relevance(f, composite, target=targets.difference(3, 5))(x)

Each returns y -> output relevance, for f's output y: [..., classes], of any floating dtype. Σ R at the input is
Σ of the output relevance, up to what biases and stabilisers absorb; rules are linear in the output relevance,
so each is the difference of two explanations.
"""

# JAX annotates its functions in part: what is unknown of their types cannot be said here.
# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lrpjax.core.seeds import output_relevance
from lrpjax.errors import TargetError

__all__ = ["clrp", "difference", "sglrp", "similarity"]


def difference(label: Any, other: Any = None) -> Callable[[jax.Array], jax.Array]:
    """Relevance of a difference of logits: y_label at one class, −y_other at the other, so that Σ R = y_label −
    y_other (own formula).

    What speaks for both classes alike cancels; what is left speaks for one against the other.

    Args:
        label: a class, an int or ints [...] (one for each example).
        other: the class to be compared with, likewise; None: the strongest of all others, for each example.

    Returns:
        y -> output relevance [..., classes].

    Raises:
        TargetError: when called, if a class does not exist, or y has fewer than two.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import targets
        >>> print(targets.difference(0)(jnp.array([5.0, 3.0, 4.0])))
        [ 5.  0. -4.]
    """

    def seed(y: jax.Array) -> jax.Array:
        hot = _hot(y, label)
        rival = jnp.where(hot == 0, y, -jnp.inf).argmax(-1) if other is None else other
        weights = hot - _hot(y, rival)
        return jnp.where(weights == 0, 0.0, y * weights).astype(y.dtype)  # 0 · ∞ is none

    return seed


def clrp(label: Any) -> Callable[[jax.Array], jax.Array]:
    """Contrastive LRP: y_t at the target t, −y_t / (N − 1) at each of the N − 1 other classes, so that Σ R = 0.

    The relevance is R − R_dual of Gu, Yang & Tresp 2018 ("Understanding Individual Decisions of CNNs via
    Contrastive Backpropagation"), where the dual concept is the rest of the classes (CLRP1), to which the
    target's score is given in equal parts. Their heatmap keeps the positive part of it: `jnp.maximum(R, 0)`.
    The programs that the authors of CLRP and of SGLRP have published scale the two heatmaps to one sum before
    they subtract them, which differs from this where biases or stabilisers absorb unlike shares of the two;
    that of CLRP begins the dual with the other classes' own scores, |y_n|, where the paper (and this) shares
    out the target's.

    Args:
        label: the target t, an int or ints [...] (one for each example).

    Returns:
        y -> output relevance [..., classes].

    Raises:
        TargetError: when called, if the class does not exist, or y has fewer than two.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import targets
        >>> print(targets.clrp(1)(jnp.array([5.0, 2.0, 4.0])))
        [-1.  2. -1.]
    """

    def seed(y: jax.Array) -> jax.Array:
        hot = _hot(y, label)
        score = (y * hot).sum(-1, keepdims=True)
        return score * (hot - (1 - hot) / (y.shape[-1] - 1))

    return seed


def sglrp(label: Any) -> Callable[[jax.Array], jax.Array]:
    """Softmax-gradient LRP: p_t (1 − p_t) at the target t, −p_t p_n at every other class n, where p =
    softmax(y); Σ R = 0.

    Iwana, Kuroki & Uchida 2019 ("Explaining Convolutional Neural Networks using Softmax Gradient Layer-wise
    Relevance Propagation"): the output relevance is ∂p_t/∂y, so rivals count as much as they are likely. y are
    logits. Their program scales the heatmap of the rivals to the sum of the target's before it subtracts it;
    here both are one explanation.

    Args:
        label: the target t, an int or ints [...] (one for each example).

    Returns:
        y -> output relevance [..., classes].

    Raises:
        TargetError: when called, if the class does not exist, or y has fewer than two.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import targets
        >>> print(targets.sglrp(0)(jnp.log(jnp.array([0.5, 0.25, 0.25]))).round(3))
        [ 0.25  -0.125 -0.125]
    """

    def seed(y: jax.Array) -> jax.Array:
        hot, p = _hot(y, label), jax.nn.softmax(y)
        return (p * hot).sum(-1, keepdims=True) * (hot - p)

    return seed


def similarity(embedding: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Relevance of one input for its similarity to another: y ⊙ φ(x'), so that Σ R = ⟨φ(x), φ(x')⟩ (the dot
    product as a last layer).

    `lrpjax.similarity.bilrp` gives the interactions of both inputs; their sum over the other input's features
    is this relevance.

    Args:
        embedding: φ(x'), of the shape of f's output.

    Returns:
        y -> output relevance, of the output's shape.

    Raises:
        TargetError: when called, if the embedding has another shape than y.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrpjax import targets
        >>> print(targets.similarity(jnp.array([1.0, -1.0]))(jnp.array([3.0, 2.0])))
        [ 3. -2.]
    """

    def seed(y: jax.Array) -> jax.Array:
        if jnp.shape(embedding) != jnp.shape(y):
            raise TargetError(
                f"the embedding has shape {jnp.shape(embedding)}, but the output {jnp.shape(y)}"
            )
        return y * jnp.asarray(embedding).astype(y.dtype)

    return seed


def _hot(y: Any, label: Any) -> jax.Array:
    """One at the class, zero elsewhere; NaN where a traced class does not exist."""
    if jnp.ndim(y) == 0 or jnp.shape(y)[-1] < 2:
        raise TargetError(
            f"a class is set against others, but the output has shape {jnp.shape(y)}: it needs "
            "classes along its last axis"
        )
    classes = label if isinstance(label, jax.Array) else np.asarray(label)
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise TargetError(f"a class is an int, or ints with one for each example, but this is {label!r}")
    return output_relevance(y, classes, "gradient")
