"""Relevant subspaces: the directions in which the activations of a layer matter for what is explained."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrpjax._evaluate import check_positive
from lrpjax.composites import Composite
from lrpjax.explore.findings import ExploreError
from lrpjax.linearised import linearise

__all__ = ["Contexts", "contexts", "drsa", "prca"]


class Contexts(NamedTuple):
    """Activations and their contexts at N positions of a layer with D channels: `explore.contexts` gathers them.

    activations, contexts: floating [N, D], relevance is their product. sample: int [N], the number of each one's sample
    in the data set. position: int [N], its place in the sample, flat (row-major).

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> a, c = np.array([[1.0, 2.0]]), np.array([[3.0, 0.0]])
    >>> found = explore.Contexts(a, c, np.array([0]), np.array([0]))
    >>> explore.prca(found.activations, found.contexts, 1).round(2).T
    array([[0.85, 0.53]])
    """

    activations: NDArray[Any]
    contexts: NDArray[Any]
    sample: NDArray[np.int64]
    position: NDArray[np.int64]


def contexts(
    f: Callable,
    composite: Composite | None,
    batches: Iterable[Any],
    *,
    at: str,
    target: Any = "max",
    per_sample: int | None = None,
    channel_axis: int = -1,
    seed: int = 0,
) -> Contexts:
    """Activations a and contexts c of a layer over a data set: what `explore.prca` and `explore.drsa` are found from.

    Relevance is R = a ⊙ c with c the coefficients of the linearised program: R / a, and there also where a is 0 (see
    `Linearised.coefficients`; relevance that passes through `explore.with_concepts` counts c as 0 there). Chormai et
    al. 2022 (arXiv 2212.14855) take a few positions of each sample at random, so that neighbours, which are alike, do
    not fill the memory. One pass; each batch is one call of a compiled function.

    Args:
        f: a function of a batch [B, ...].
        composite: as for `lrpjax.relevance`; with one of the gradient family the contexts are gradients.
        batches: batches [B, ...], or pairs (batch, target) with a target for each. The last may be smaller.
        at: the value's name, see `lrpjax.relevance`; its leading axis counts the samples.
        target: as for `lrpjax.relevance`; the default explains the class predicted.
        per_sample: how many positions to take of each sample, at random without repetition; None for all.
        channel_axis: axis of the channels in the value's own shape.
        seed: of the positions. Those of a sample depend on its number and the seed, not on how batches are cut.

    Returns:
        `Contexts`, NumPy arrays in the value's dtype, sample by sample.

    Raises:
        ExploreError: `at` names several values or one in a loop, the value has no samples or no channels, fewer
        positions than per_sample, there are no batches, or numbers are not finite. Else as `lrpjax.linearise`.

    >>> import jax.numpy as jnp, lrpjax
    >>> from lrpjax import explore
    >>> f = lambda x: lrpjax.tag(x, "h") @ jnp.array([[1.0, 0.0], [2.0, 1.0]])
    >>> found = explore.contexts(f, lrpjax.composites.epsilon(0.0), [jnp.array([[1.0, 1.0], [3.0, 0.0]])], at="h")
    >>> print(found.contexts, found.sample)
    [[1. 2.]
     [1. 2.]] [0 1]
    """
    if per_sample is not None:
        check_positive("per_sample", per_sample)

    @jax.jit
    def gathered(x: jax.Array, labels: Any, first: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        lin = linearise(f, composite, x, at=at)
        if len(lin.values) != 1:
            raise ExploreError(f"`at` must name one value, but {at!r} names {len(lin.values)}")
        ((name, a),) = lin.values.items()
        if lin.loops(name) or not a.shape or a.shape[0] != len(x):
            raise ExploreError(
                f"{name!r} has shape {a.shape}, whose first axis does not count the {len(x)} samples"
            )
        if not -a.ndim <= channel_axis < a.ndim or channel_axis % a.ndim == 0:
            raise ExploreError(f"{name!r} has shape {a.shape}: axis {channel_axis} cannot count its channels")
        c = lin.coefficients(target if labels is None else labels)[name]
        a, c = (jnp.moveaxis(v, channel_axis, -1).reshape(len(x), -1, v.shape[channel_axis]) for v in (a, c))
        places = a.shape[1]
        if per_sample is not None and per_sample > places:
            raise ExploreError(f"{name!r} has {places} positions, fewer than per_sample={per_sample}")

        def chosen(number: jax.Array) -> jax.Array:
            if per_sample is None:
                return jnp.arange(places, dtype=jnp.int32)
            drawn = jax.random.permutation(jax.random.fold_in(jax.random.key(seed), number), places)
            return drawn[:per_sample].astype(jnp.int32)

        position = jax.vmap(chosen)(first + jnp.arange(len(x), dtype=jnp.int32))
        a, c = (jnp.take_along_axis(v, position[..., None], 1) for v in (a, c))
        return a, c, position

    found, size, seen = [], 0, 0
    for number, batch in enumerate(batches):
        x, labels = batch if isinstance(batch, tuple) else (batch, None)
        rows = len(x)
        if not rows:
            raise ExploreError(f"batch {number} is empty")
        size = max(size, rows)
        labels = labels if labels is None or np.ndim(labels) == 0 else _filled(labels, size)
        a, c, position = (np.asarray(v)[:rows] for v in gathered(_filled(x, size), labels, jnp.int32(seen)))
        for what, v in (("activations", a), ("contexts", c)):
            bad = np.flatnonzero(~np.isfinite(v).all((1, 2)))
            if len(bad):
                raise ExploreError(
                    f"the {what} of {at!r} are not finite for samples {', '.join(map(str, seen + bad[:10]))}; so are "
                    "contexts where the output that is explained is exactly 0"
                )
        sample = np.repeat(np.arange(seen, seen + rows), position.shape[1])
        found.append(
            (*(v.reshape(-1, v.shape[-1]) for v in (a, c)), sample, position.ravel().astype(np.int64))
        )
        seen += rows
    if not found:
        raise ExploreError("there are no batches to go through")
    return Contexts(*map(np.concatenate, zip(*found, strict=True)))


def _filled(x: ArrayLike, size: int) -> jax.Array:
    """x with its last row repeated, so that a smaller batch does not compile anew."""
    x = jnp.asarray(x)
    return x[jnp.minimum(jnp.arange(size), len(x) - 1)] if len(x) < size else x


def prca(activations: ArrayLike, contexts: ArrayLike, k: int) -> NDArray[np.float64]:
    """Principal relevant component analysis: the k orthonormal directions that keep most relevance.

    Relevance is R = aᵀ c with a the activations and c the context, R_i / a_i: coefficients of a linearised program. In
    the span of U it is (Uᵀ a)ᵀ (Uᵀ c), whose mean is largest for the eigenvectors of the k largest eigenvalues of the
    symmetrised cross-covariance E[a cᵀ + c aᵀ], without centring (Chormai et al. 2022, "Disentangled Explanations of
    Neural Network Predictions by Finding Relevant Subspaces", arXiv 2212.14855).

    Args:
        activations, contexts: floating [N, D], at positions of a layer over a data set: `lin.values[path]` and
            `lin.coefficients(target)[path]` of `lrpjax.linearise`, with the channels last;
            `explore.contexts` gathers them.
        k: how many directions, 1 … D.

    Returns:
        float64 [D, k] for `explore.Directions`, that of the largest eigenvalue first; the largest entry of each is
        positive. With k = D all relevance is kept.

    Raises:
        ExploreError: shapes that do not fit, rows that are not finite, or another k.

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> a = np.array([[3.0, 4.0], [6.0, 8.0]])
    >>> explore.prca(a, a, 1).round(1).T
    array([[0.6, 0.8]])
    """
    a, c = _pairs(activations, contexts)
    if not isinstance(k, (int, np.integer)) or not 1 <= k <= a.shape[1]:
        raise ExploreError(f"k is a number of directions, 1 … {a.shape[1]}, not {k!r}")
    cross = a.T @ c / len(a)
    _, vectors = np.linalg.eigh(cross + cross.T)
    found = vectors[:, ::-1][:, :k]
    return _signed(found)


def drsa(
    activations: ArrayLike,
    contexts: ArrayLike,
    *,
    subspaces: int,
    dims: int,
    steps: int = 500,
    lr: float = 0.02,
    starts: int = 4,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Disentangled relevant subspace analysis: K orthogonal subspaces that are relevant for different samples.

    The relevance of subspace k for sample n is R_kn = (U_kᵀ a_n)ᵀ (U_kᵀ c_n). Chormai et al. 2022 (arXiv 2212.14855)
    maximise over orthonormal U = (U_1 | … | U_K)

        J(U) = M_k^{1/2} [ M_n^2 [ max(R_kn, 0) ] ],    M^p[x] = (mean x^p)^{1/p},

    where M² over samples rewards a subspace that is much relevant for some of them, and M^{1/2} over subspaces rewards
    that none is left without. U goes up the gradient along the orthonormal
    matrices (Adam, with steps that shrink to 0 by a cosine), and after each step to the nearest orthonormal matrix, its
    polar factor U (UᵀU)^{−1/2}. The starts are the directions of `explore.prca`, split in their order, and random ones;
    the best U of all steps of all starts is kept, so that J is never below that of the split.

    Args:
        activations, contexts: floating [N, D], from `explore.contexts`.
        subspaces: how many, K.
        dims: directions in each, d; K·d ≤ D. Relevance outside of the subspaces is the rest.
        steps, lr: of the gradient ascent; lr is about how far an entry of U goes in a step.
        starts: how many in all, 1 or more; the first is PRCA's.
        seed: of the random starts; with it the result is the same again.

    Returns:
        float64 [K, D, d] for `explore.Subspaces`, the subspace of most relevance first; the directions in each are its
        principal relevant ones, the largest entry of each positive.

    Raises:
        ExploreError: shapes that do not fit, rows that are not finite, no positive relevance, or numbers out of range.

    >>> import numpy as np
    >>> from lrpjax import explore
    >>> a = np.array([[3.0, 3.0, 0.1], [3.0, -3.0, 0.0], [0.0, 0.1, 2.0], [0.0, 0.1, -2.0]])
    >>> U = explore.drsa(a, a, subspaces=2, dims=1)
    >>> U.shape, round(float(np.abs(U[0].T @ U[1]).max()), 6)
    ((2, 3, 1), 0.0)
    """
    a, c = _pairs(activations, contexts)
    for name, number in (("subspaces", subspaces), ("dims", dims), ("steps", steps), ("starts", starts)):
        if not isinstance(number, (int, np.integer)) or number < 1:
            raise ExploreError(f"{name} is a whole number of at least 1, not {number!r}")
    D, wanted = a.shape[1], int(subspaces) * int(dims)
    if wanted > D:
        raise ExploreError(f"{subspaces} subspaces of {dims} directions do not fit into {D} channels")
    if not lr > 0:
        raise ExploreError(f"lr is a positive number, not {lr!r}")
    # Adam's steps do not depend on the scale; in float32 the squares of relevances could overflow.
    a, c = (v / max(float(np.abs(v).max()), np.finfo(np.float64).tiny) for v in (a, c))
    rng = np.random.default_rng(seed)
    begin = [prca(a, c, wanted), *(np.linalg.qr(rng.normal(size=(D, wanted)))[0] for _ in range(starts - 1))]
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies by powers with its count of steps
        U, J = _ascended(*map(jnp.asarray, (a, c, np.stack(begin), lr)), steps=int(steps), dims=int(dims))
    J = np.asarray(J)
    if not J.max() > 0:
        raise ExploreError(
            "no subspace has positive relevance for any sample: is the target that of the contexts?"
        )
    left, _, right = np.linalg.svd(np.asarray(U, np.float64)[J.argmax()], full_matrices=False)
    bases = (left @ right).reshape(D, subspaces, dims).transpose(1, 0, 2)
    order = sorted(bases, key=lambda V: -((a @ V) * (c @ V)).sum())
    return np.stack([_signed(V @ prca(a @ V, c @ V, int(dims))) for V in order])


@functools.partial(jax.jit, static_argnames=("steps", "dims"))
def _ascended(
    a: jax.Array, c: jax.Array, begin: jax.Array, lr: jax.Array, steps: int, dims: int
) -> tuple[jax.Array, jax.Array]:
    """Of every start the best U, [starts, D, K·d], and its objective, [starts]."""
    import optax  # here, for it takes a third of the time that `import lrpjax` would take with it

    tiny = jnp.finfo(a.dtype).tiny
    adam = optax.chain(
        optax.scale_by_adam(), optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, steps))
    )

    def objective(U: jax.Array) -> jax.Array:
        R = jax.nn.relu(((a @ U) * (c @ U)).reshape(len(a), -1, dims).sum(2))
        # The slope of a root at 0 is infinite: a subspace without relevance has none in place of NaN.
        root = lambda m, p: jnp.where(m > tiny, m, jnp.ones_like(m)) ** p * (m > tiny).astype(m.dtype)
        return root(root((R**2).mean(0), 0.25).mean(), 2.0)

    def climbed(U: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            U, state, best, top = carry
            J, slope = jax.value_and_grad(objective)(U)
            best, top = jnp.where(top < J, U, best), jnp.maximum(J, top)
            across = U.T @ slope  # J grows with the length of U, which says nothing of where it should turn
            change, state = adam.update(slope - U @ (across + across.T) / 2, state)
            left, _sizes, right = jnp.linalg.svd(U + lr.astype(U.dtype) * change, full_matrices=False)
            return (left @ right, state, best, top), None

        first = (U, adam.init(U), U, jnp.asarray(-jnp.inf, U.dtype))
        (U, _, best, top), _ = jax.lax.scan(step, first, None, length=steps)
        J = objective(U)
        return jnp.where(top < J, U, best), jnp.maximum(J, top)

    return jax.lax.map(climbed, begin)


def _pairs(activations: ArrayLike, contexts: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, c = np.asarray(activations, np.float64), np.asarray(contexts, np.float64)
    if a.ndim != 2 or a.shape != c.shape or not len(a):
        raise ExploreError(
            f"activations and contexts are both [N, D], but have shapes {a.shape} and {c.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(a) & np.isfinite(c)).all(1))
    if len(bad):
        raise ExploreError(f"activations or contexts of rows {', '.join(map(str, bad[:10]))} are not finite")
    return a, c


def _signed(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each column with its largest entry positive."""
    return vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
