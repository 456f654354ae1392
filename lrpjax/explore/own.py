"""Concepts of the user's own: directions, subspaces and features of a sparse autoencoder, put into a function."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lrpjax.circuits import intervene, reconstructed
from lrpjax.explore.findings import ExploreError

__all__ = ["Basis", "Directions", "Features", "Subspaces", "with_concepts"]


class Basis(Protocol):
    """What a value is seen through: anything with these two methods.

    >>> import jax.numpy as jnp
    >>> from lrpjax import explore
    >>> explore.Directions(jnp.eye(2)).encode(jnp.array([3.0, 4.0]))
    Array([3., 4.], dtype=float...)
    """

    def encode(self, h: jax.Array) -> jax.Array:
        """The concepts of a value."""
        ...

    def decode(self, z: jax.Array) -> jax.Array:
        """The value that concepts stand for, of the value's shape."""
        ...


class Directions:
    """Concepts that are directions: z = Vᵀ h along an axis of a value, decoded as (Vᵀ)⁺ z.

    Decoding is by the pseudo-inverse, (Vᵀ)⁺ = V (Vᵀ V)⁻¹ for directions that are linearly independent: what comes back
    is the part of h in the space that they span. Where they are orthonormal that is V z, and with rules by which
    relevance is value × coefficient (ε → 0, gradients, AttnLRP) the relevance of concept k is

        R_k = (v_kᵀ h) (v_kᵀ c),    c = R_h / h,

    the virtual layer of Chormai et al. 2022 ("Disentangled Explanations of Neural Network Predictions by Finding
    Relevant Subspaces", arXiv 2212.14855); a channel that is exactly 0 has no relevance, and c counts as 0 there. Where
    they are not, it is (v_kᵀ h) (p_kᵀ c), with p_k the columns of (Vᵀ)⁺.

    Args:
        vectors: floating [D, K], a direction in each column: from `explore.prca`, concept activation vectors, …; K ≤ D
            of them that are linearly independent, of any length.
        axis: the axis of the value that has the D channels; the K concepts stand there too.

    Raises:
        ExploreError: the array has another shape, is not finite, or its columns are not linearly independent.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import explore
    >>> f = lambda x: lrpjax.tag(x, "h") @ jnp.array([1.0, 2.0])
    >>> up = explore.Directions(jnp.array([[0.6], [0.8]]))
    >>> g = explore.with_concepts(f, {"h": up})
    >>> exact = lrpjax.composites.epsilon(0.0)
    >>> print(jnp.rint(lrpjax.relevance(g, exact, at="h/concepts")(jnp.array([25.0, 0.0]))))  # (0.6·25) (0.6·1 + 0.8·2)
    [33.]
    """

    def __init__(self, vectors: ArrayLike, axis: int = -1):
        self.vectors = _finite(vectors, "directions", 2)
        D, K = self.vectors.shape
        if K == 0 or np.linalg.matrix_rank(self.vectors) < K:
            raise ExploreError(
                f"{K} directions in {D} channels are not linearly independent: leave out those that others make up "
                "(vectors is [channels, directions])"
            )
        self.inverse = np.linalg.pinv(self.vectors)  # [K, D]; its transpose decodes
        self.axis = axis

    def encode(self, h: jax.Array) -> jax.Array:
        """vᵀ h for each direction, [..., K]."""
        return _along(h, self.axis, self.vectors)

    def decode(self, z: jax.Array) -> jax.Array:
        """The part of h in the span of the directions, [..., D]."""
        return _along(z, self.axis, self.inverse)


class Subspaces:
    """Concepts that are subspaces: z = U_sᵀ h for each of S orthogonal subspaces, decoded as Σ_s U_s z_s.

    The relevance of subspace s is the sum over its d directions, R_s = (U_sᵀ h)ᵀ (U_sᵀ c) (Chormai et al. 2022, arXiv
    2212.14855); `concepts.channel_relevance` and `concepts.maximising_samples` give it, as subspaces stand where the
    channels did, and ints in conditions count them.

    Args:
        bases: floating [S, D, d], or S arrays [D, d] that may differ in d, which are
            filled with columns of zeros; together orthonormal.
        axis: the axis of the value that has the D channels. The S subspaces stand there; the directions of each along a
            further axis: the last but one if the subspaces are last, [..., d, S], else the last, [B, S, H, W, d].

    Raises:
        ExploreError: the array has another shape, is not finite, or the bases are not orthonormal.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import concepts, explore
    >>> f = lambda x: lrpjax.tag(x, "h") @ jnp.array([1.0, 2.0, 3.0])
    >>> two = explore.Subspaces([jnp.eye(3)[:, :2], jnp.eye(3)[:, 2:]])
    >>> g = explore.with_concepts(f, {"h": two})
    >>> exact = lrpjax.composites.epsilon(0.0)
    >>> print(jnp.rint(concepts.channel_relevance(g, exact, at="h/concepts")(jnp.ones((1, 3)))))
    [[3. 3.]]
    """

    def __init__(self, bases: ArrayLike | Sequence[ArrayLike], axis: int = -1):
        each = [_finite(basis, "subspaces, each,", 2) for basis in bases]  # type: ignore[union-attr]
        if not each or len({len(basis) for basis in each}) != 1:
            raise ExploreError(
                f"subspaces are of one space, but these have {[len(b) for b in each]} channels"
            )
        d = max(basis.shape[1] for basis in each)
        self.bases = np.stack([np.pad(b, ((0, 0), (0, d - b.shape[1]))) for b in each])
        S, D, d = self.bases.shape
        flat = np.moveaxis(self.bases, 0, 1).reshape(D, S * d)
        used = flat[:, flat.any(0)]
        tolerance = 1e-4 if self.bases.dtype.itemsize < 8 else 1e-8
        if not used.size or np.abs(used.T @ used - np.eye(used.shape[1])).max() > tolerance:
            raise ExploreError(
                "the directions of all subspaces together are not orthonormal: they would count what they share twice "
                "(bases is [subspaces, channels, directions])"
            )
        self.axis = axis

    def encode(self, h: jax.Array) -> jax.Array:
        """Uᵀ h for each subspace."""
        S, D, d = self.bases.shape
        axis = _with_channels(h, self.axis, D)
        last = jnp.moveaxis(h, axis, -1)
        together = jnp.asarray(self.bases.transpose(1, 2, 0).reshape(D, d * S), h.dtype)
        z = (last @ together).reshape(*last.shape[:-1], d, S)
        return z if axis == h.ndim - 1 else jnp.moveaxis(z, -1, axis)

    def decode(self, z: jax.Array) -> jax.Array:
        """The part of h in the subspaces."""
        S, D, d = self.bases.shape
        axis = _axis(z.ndim - 1, self.axis)
        if axis != z.ndim - 2:
            z = jnp.moveaxis(z, axis, -1)
        together = jnp.asarray(self.bases.transpose(2, 0, 1).reshape(d * S, D), z.dtype)
        return jnp.moveaxis(z.reshape(*z.shape[:-2], d * S) @ together, -1, axis)


@dataclasses.dataclass(frozen=True)
class Features:
    """Concepts that are the features of a sparse autoencoder, or of anything else that is encoded and decoded.

    Args:
        encode: from the value to features, such as x ↦ relu(x W + b).
        decode: from features to an array of the value's shape; leave its bias out, and the error gets what it would
            absorb (see `circuits.reconstructed`).

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import explore
    >>> w = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
    >>> f = lambda x: lrpjax.tag(x, "h") @ jnp.array([1.0, 2.0])
    >>> sae = explore.Features(lambda h: jax.nn.relu(h @ w), lambda a: a @ w.T / 2)
    >>> g = explore.with_concepts(f, {"h": sae}, "sae")
    >>> print(jnp.rint(lrpjax.relevance(g, lrpjax.composites.epsilon(0.0), at="h/sae")(jnp.array([4.0, 2.0]))))
    [ 2.  2. -1.]
    """

    encode: Callable[[jax.Array], jax.Array]
    decode: Callable[[jax.Array], jax.Array]


def with_concepts(f: Callable, bases: Mapping[str, Basis], name: str = "concepts") -> Callable:
    """`f` with values seen through concepts: it computes the same, and the concepts are values with names.

    The value h at each path becomes decode(z) + (h − decode(z)), z = encode(h), without a change to f's own code (by
    `circuits.intervene` and `circuits.reconstructed`). In what is returned "PATH/concepts" names z, and
    "PATH/concepts/error" the difference, a constant that keeps what it gets: the relevance of what lies outside of the
    concepts. So Σ R_z + Σ R_error = Σ R_h, up to what biases and stabilisers absorb. Whatever takes `at=` or
    conditions takes these names: `concepts.relevance`, `concepts.channel_relevance`, `concepts.maximising_samples`,
    `linearise`, `circuits.graph`, `explore.concept_statistics`.

    The products by which values are encoded and decoded are layers like others, and get the rules that the composite
    has for dense layers; with rules that treat signs apart (z⁺, γ, αβ) relevance is not value × coefficient. They stand
    in the scopes "PATH/concepts/encode" and "PATH/concepts/decode", by which a composite can give them another rule:
    `Composite([("*/concepts/*", rules.Epsilon(0.0)), ...])`.

    Args:
        f: any function, as for `lrpjax.relevance`.
        bases: {path: basis}: a module path or a `lrpjax.tag`, and `Directions`, `Subspaces`, `Features` or another
            object with `encode` and `decode`.
        name: what stands behind the path.

    Returns:
        A function of the same arguments, which gives what f gives, up to rounding.

    Raises:
        ExploreError: there is no basis, or one has no `encode` and `decode`; when the function is called, that the
        value has not the channels of the basis. PathError: then, that a path names nothing. TargetError: that what is
        decoded has another shape than the value.

    >>> import jax, jax.numpy as jnp, lrpjax
    >>> from lrpjax import concepts, explore
    >>> f = lambda x: lrpjax.tag(x, "h") @ jnp.array([[1.0], [2.0]])
    >>> g = explore.with_concepts(f, {"h": explore.Directions(jnp.array([[0.6, -0.8], [0.8, 0.6]]))})
    >>> x, exact = jnp.array([[25.0, 0.0]]), lrpjax.composites.epsilon(0.0)
    >>> print(jnp.rint(concepts.channel_relevance(g, exact, at="h/concepts")(x)))
    [[33. -8.]]
    >>> print(jnp.rint(concepts.relevance(g, exact, {"h/concepts": 0})(x)))  # where the first is read from
    [[33.  0.]]
    """
    if not isinstance(bases, Mapping) or not bases:
        raise ExploreError(f"concepts are a mapping from paths to bases, but this is {bases!r}")
    for path, basis in bases.items():
        if not (callable(getattr(basis, "encode", None)) and callable(getattr(basis, "decode", None))):
            raise ExploreError(
                f"the basis at {path!r} has no encode and decode: make it explore.Directions(array), Subspaces(array) "
                f"or Features(encode, decode), not {type(basis).__name__}"
            )

    def through(path: str, basis: Basis) -> Callable:
        whole = f"{path}/{name}"

        def encode(h: jax.Array) -> jax.Array:
            with jax.named_scope(f"{whole}/encode"):
                return basis.encode(h)

        def decode(z: jax.Array) -> jax.Array:
            with jax.named_scope(f"{whole}/decode"):
                return basis.decode(z)

        return lambda h: reconstructed(h, encode, decode, whole)

    return intervene(f, {path: through(path, basis) for path, basis in bases.items()})


def _finite(array: Any, what: str, ndim: int) -> np.ndarray:
    array = np.asarray(array)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if array.ndim != ndim or not np.isfinite(array).all():
        wrong = f"shape {array.shape}" if array.ndim != ndim else "entries that are NaN or infinite"
        raise ExploreError(f"{what} are finite numbers with {ndim} axes, but these have {wrong}")
    return array


def _axis(ndim: int, axis: int) -> int:
    if not -ndim <= axis < ndim:
        raise ExploreError(f"the value has {ndim} axes, and no axis {axis} for channels")
    return axis % ndim


def _with_channels(x: jax.Array, axis: int, count: int) -> int:
    axis = _axis(x.ndim, axis)
    if x.shape[axis] != count:
        raise ExploreError(
            f"the value has {x.shape[axis]} channels along axis {axis}, the concepts have {count}"
        )
    return axis


def _along(x: jax.Array, axis: int, matrix: np.ndarray) -> jax.Array:
    """x times a matrix along an axis."""
    axis = _with_channels(x, axis, len(matrix))
    product = jnp.moveaxis(x, axis, -1) @ jnp.asarray(matrix, x.dtype)
    return jnp.moveaxis(product, -1, axis)
