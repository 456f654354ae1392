"""Sparse autoencoders and transcoders within a function, so that their features are values with names."""

from collections.abc import Callable

import jax

from lrpjax.custom import tag
from lrpjax.errors import TargetError

__all__ = ["ERROR", "reconstructed", "transcoded"]

ERROR = "/error"
"""What the name of an error ends in, behind the name of the features that leave it."""


def reconstructed(h: jax.Array, encode: Callable, decode: Callable, name: str) -> jax.Array:
    """h, through the features of a sparse autoencoder: decode(a) + (h − decode(a)) with a = encode(h).

    The value is h, up to rounding. Relevance comes to the features, tagged `name`, which hand it on to h as the
    encoder says, and to the error, tagged `name + "/error"`, which is a constant and keeps what it gets (Marks et al.
    2024, "Sparse Feature Circuits"). A bias of the decoder is absorbed, as all biases are: give it to the error by
    leaving it out of `decode`.

    Args:
        h: floating array [..., D].
        encode: from h to features [..., F], such as x ↦ relu(x W + b).
        decode: from features to an array of the shape of h.
        name: what `at=` calls the features.

    Returns:
        An array of the shape of h.

    Raises:
        TargetError: decode gives another shape.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import circuits
    >>> w = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    >>> def f(x):
    ...     h = circuits.reconstructed(x, lambda h: jax.nn.relu(h @ w), lambda a: a @ w.T / 2, "sae")
    ...     return h @ jnp.array([1.0, 2.0])
    >>> lin = lrpjax.linearise(f, lrpjax.composites.epsilon(0.0), jnp.array([4.0, 2.0]), at=["sae", "sae/error"])
    >>> R = lin.pull()
    >>> print(lin.output, lin.values["sae"], jnp.rint(R["sae"]), jnp.rint(R["sae/error"]))
    8.0 [4. 2. 2.] [ 2.  2. -1.] [1. 4.]
    """
    return _through(h, h, encode, decode, name)


def transcoded(x: jax.Array, y: jax.Array, encode: Callable, decode: Callable, name: str) -> jax.Array:
    """y, which a layer made of x, through a transcoder's features: decode(a) + (y − decode(a)) with a = encode(x).

    The value is y, up to rounding. Relevance comes to the features, tagged `name`, which hand it on to x as the
    encoder says and in place of the layer; and to the error, tagged `name + "/error"`, which is a constant and keeps
    what it gets (the local replacement model of Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs
    in Language Models"; there normalisations and attention patterns are constants too, as with
    `composites.cp_lrp(epsilon=0)`).

    In a cross-layer transcoder the features of several layers are decoded together: `decode` may close over those of
    earlier layers, and over x for a skip connection.

    Args:
        x: what the features are read from, floating.
        y: what the layer gave, floating.
        encode: from x to features.
        decode: from features to an array of the shape of y.
        name: what `at=` calls the features.

    Returns:
        An array of the shape of y.

    Raises:
        TargetError: decode gives another shape.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import circuits
    >>> mlp = lambda x: jax.nn.gelu(x @ jnp.array([[1.0, -1.0], [2.0, 0.0]])) @ jnp.array([[1.0], [1.0]])
    >>> def f(x):
    ...     decode = lambda a: a @ jnp.array([[1.0], [2.0]])
    ...     return circuits.transcoded(x, mlp(x), jax.nn.relu, decode, "mlp").sum()
    >>> lin = lrpjax.linearise(f, lrpjax.composites.epsilon(0.0), jnp.array([3.0, 1.0]), at=["mlp", "mlp/error"])
    >>> print(jnp.rint(lin.pull()["mlp"]), jnp.rint(lin.pull().input))
    [3. 2.] [3. 2.]
    """
    return _through(x, y, encode, decode, name)


def _through(x: jax.Array, y: jax.Array, encode: Callable, decode: Callable, name: str) -> jax.Array:
    made = decode(tag(encode(x), name))
    if made.shape != y.shape:
        raise TargetError(
            f"the features {name!r} are decoded to an array of shape {made.shape}, but it stands for one of {y.shape}"
        )
    return made + tag(jax.lax.stop_gradient(y - made), name + ERROR)
